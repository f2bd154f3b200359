"""S over photographs between layers: tables of pairs, and of whole networks, against dense computations."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import pytest

import featmap
from featmap.mapping import cross_tables, large, result, tables
from featmap.mapping.layer_arrays import PhotographLayers
from featmap.mapping.result import LayerMaps
from featmap.mapping.run import similarity
from featmap.mapping.view import View
from featmap.runs import integrity
from featmap.runs.progress import Silent
from featmap.runs.store import Run, open_arrays
from featmap.stats import blockwise, cross_layer
from featmap.stats.measures import standardise_and_centre
from tests.helpers import pictures, tiny
from tests.helpers.settings import options
from tests.helpers.tables import check_plain_tables

pytestmark = [
    pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning"),
    pytest.mark.usefixtures("cheap_runs"),
]
FAST: dict[str, Any] = {"size": 16, "steps": 2, "rows": 4, "device": "cpu", "neighbours": 4}
LAYERS = ["second", "first"]
PAIRS = [("second", "first"), ("first", "second")]
ALONE = View(stimuli="photographs", neighbours=4)
COUNT = 40


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.save_noise(tmp_path_factory.mktemp("pictures") / "noise", COUNT)


@pytest.fixture(scope="module")
def both(noise: Path, tmp_path_factory: pytest.TempPathFactory) -> LayerMaps:
    out = tmp_path_factory.mktemp("maps") / "both"
    return similarity(LAYERS, tiny.small(), photographs=noise, **options(out=out, **FAST))


def map_alone(noise: Path, out: Path, layers: Any = LAYERS, **more: Any) -> Any:
    settings = {k: v for k, v in FAST.items() if k != "neighbours"}
    view = View(stimuli="photographs", neighbours=4, **more)
    return similarity(layers, tiny.small(), photographs=noise, view=view, **options(out=out, **settings))


@pytest.fixture(scope="module")
def alone(noise: Path, tmp_path_factory: pytest.TempPathFactory) -> LayerMaps:
    return map_alone(noise, tmp_path_factory.mktemp("maps") / "alone")


@pytest.fixture(scope="module")
def responses(noise: Path) -> pd.DataFrame:
    return featmap.probe(noise, ["second", "first", "relu"], tiny.small(), size=16).to_pandas().astype(float)


def densely(responses: pd.DataFrame, one: str, other: str) -> pd.DataFrame:
    """Correlate standardised and centred roots of responses feature by feature."""
    blocks = []
    for layer in (one, other):
        own = responses[[name for name in responses if name.rpartition(":")[0] == layer]]
        Z, defined = standardise_and_centre(np.sign(own.to_numpy()) * np.abs(own.to_numpy()) ** 0.5)
        assert defined.all()
        blocks.append((own.columns, Z))
    (rows, X), (columns, Y) = blocks
    table = [[np.corrcoef(X[:, i], Y[:, j])[0, 1] for j in range(len(columns))] for i in range(len(rows))]
    return pd.DataFrame(table, index=rows, columns=columns)


def test_similarity_between_layers_is_that_of_a_dense_computation(both: LayerMaps, responses: pd.DataFrame) -> None:
    assert list(both.photograph_crossings) == PAIRS
    for pair in PAIRS:
        found, expected = both.photograph_crossings[pair], densely(responses, *pair)
        pd.testing.assert_frame_equal(found.measures["profile"], expected, atol=1e-9, check_names=False)
        written = pd.read_parquet(both.folder / "cross" / f"{pair[0]}-to-{pair[1]}" / "photographs_profile.parquet")
        np.testing.assert_array_equal(written.to_numpy(), found.measures["profile"].to_numpy())
        assert list(written.index) == list(expected.index) and list(written.columns) == list(expected.columns)
        partners = pd.read_csv(both.folder / "cross" / f"{pair[0]}-to-{pair[1]}" / "photographs_partners.csv")
        assert list(partners.columns) == ["feature", "rank", "partner", "similarity"]
        first = partners[partners["rank"] == 1].set_index("feature")["partner"]
        assert first.to_dict() == expected.idxmax(axis=1).to_dict()
    S, back = (both.photograph_crossings[pair].measures["profile"].to_numpy() for pair in PAIRS)
    assert np.array_equal(S, back.T)


def test_the_table_of_layers_is_that_of_a_dense_computation(both: LayerMaps, responses: pd.DataFrame) -> None:
    table = result.read_layer_table(both.folder, result.PHOTOGRAPH_LAYER_TABLE)
    assert table is not None and list(table) == list(both.layers)
    assert list(zip(table["layer"], table["other"], strict=True)) == PAIRS
    for row in table.itertuples():
        S = densely(responses, row.layer, row.other)
        assert row.best == pytest.approx(S.max(axis=1).mean(), abs=1e-9)
        assert (row.features, row.images) == (len(S), COUNT)
        first, second = (responses[list(names)] for names in (S.index, S.columns))
        _, floor, highest = cross_layer.layer_agreement(first, second, draws=60, seed=1)
        assert row.floor == pytest.approx(floor, abs=0.08) and row.floor <= row.highest_floor < highest + 0.1
    summary = both.summary["photograph_crossings"]
    assert [entry["best"] for entry in summary] == table["best"].tolist()
    assert any(line.startswith(f"on {COUNT} photographs: second to first: mean S") for line in both.lines())


def test_files_of_pairs_are_written_beside_those_of_images(both: LayerMaps) -> None:
    kinds = [f"photographs_{name}.{ending}" for name in ("profile", "partners") for ending in ("csv", "parquet")]
    drawn = [f"photographs_heatmap.{ending}" for ending in ("png", "svg")]
    layers = [f"cross/photographs_layers.{ending}" for ending in ("csv", "parquet", "png", "svg")]
    pairs = [f"cross/{one}-to-{other}/{name}" for one, other in PAIRS for name in (*kinds, *drawn)]
    names = [n for n in Run.read(both.folder).manifest.files if n.startswith("cross/") and "photographs_" in n]
    assert sorted(names) == sorted([*pairs, *layers])
    title = (both.folder / "cross" / "second-to-first" / "photographs_heatmap.svg").read_text()
    assert f"{COUNT} photographs" in title and "maximised" not in title
    assert "cross/photographs_layers.png" in cross_tables.main_files(Run.read(both.folder), both)
    check_plain_tables(both.folder)
    assert integrity.inspect(both.folder).faults == []


def test_photographs_alone_have_the_same_tables_with_plain_names(alone: LayerMaps, both: LayerMaps) -> None:
    assert not alone.crossings and list(alone.photograph_crossings) == PAIRS
    for one, other in PAIRS:
        folder = Path("cross") / f"{one}-to-{other}"
        for name in ("profile.csv", "partners.csv"):
            assert (alone.folder / folder / name).read_bytes() == (
                both.folder / folder / f"photographs_{name}"
            ).read_bytes()
        assert (alone.folder / folder / "heatmap.png").is_file()
    own, beside = (
        (m.folder / "cross" / n).read_bytes() for m, n in ((alone, "layers.csv"), (both, "photographs_layers.csv"))
    )
    assert own == beside
    assert integrity.inspect(alone.folder).faults == []


def test_a_repeated_call_writes_nothing(both: LayerMaps, noise: Path) -> None:
    def times() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in both.folder.rglob("*") if p.is_file() and p.name != ".lock"}

    before = times()
    again = similarity(LAYERS, tiny.small(), photographs=noise, **options(out=both.folder, **FAST))
    assert again.lines() == both.lines() and times() == before


@pytest.mark.slow
def test_lost_files_are_written_again(both: LayerMaps, noise: Path) -> None:
    names = ("first-to-second/photographs_profile.parquet", "photographs_layers.csv")
    lost = {both.folder / "cross" / name: (both.folder / "cross" / name).read_bytes() for name in names}
    for path in lost:
        path.unlink()
    similarity(LAYERS, tiny.small(), photographs=noise, **options(out=both.folder, **FAST))
    assert {path: path.read_bytes() for path in lost} == lost


def test_a_finished_run_of_an_earlier_version_is_read(both: LayerMaps, noise: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(both.folder, folder)
    run = Run.read(folder)
    for name in [n for n in run.manifest.files if n.startswith("cross/") and "photographs_" in n]:
        (folder / name).unlink()
        del run.manifest.files[name]
    del run.manifest.summary["photograph_crossings"]
    run.save()
    again = similarity(LAYERS, tiny.small(), photographs=noise, **options(out=folder, **FAST))
    assert not any("photographs: second to first" in line for line in again.lines())
    S = again.photograph_crossings["second", "first"].measures["profile"]
    pd.testing.assert_frame_equal(S, both.photograph_crossings["second", "first"].measures["profile"])


def test_probed_layers_have_tables_over_photographs(noise: Path, tmp_path: Path, responses: pd.DataFrame) -> None:
    found = map_alone(noise, tmp_path / "run", "second", probe_layers=["relu"], shown="1,3")
    pair = ("second", "relu")
    assert list(found.photograph_crossings) == [pair]
    pd.testing.assert_frame_equal(
        found.photograph_crossings[pair].measures["profile"],
        densely(responses, *pair),
        atol=1e-9,
        check_names=False,
    )
    table = pd.read_parquet(tmp_path / "run" / "cross" / "second-to-relu" / "profile.parquet")
    assert list(table.index) == ["second:1", "second:3"] and list(table.columns) == [f"relu:{c}" for c in range(6)]
    assert (tmp_path / "run" / "cross" / "second-to-relu" / "heatmap.png").is_file()
    assert any("second to relu: mean S" in line for line in found.lines())
    written = pd.read_parquet(tmp_path / "run" / "cross" / "layers.parquet").reset_index()
    assert list(written["other"]) == ["relu"]


def check_whole_network(cross: Path, prefix: str, responses: pd.DataFrame) -> pd.DataFrame:
    """Compare the files of a whole network over photographs with dense tables; returns S of both layers."""
    blocks = {(a, b): densely(responses, a, b) for a in LAYERS for b in LAYERS}
    S = pd.concat([pd.concat([blocks[a, b] for b in LAYERS], axis=1) for a in LAYERS])
    S = S.mask(np.eye(len(S), dtype=bool))
    near = pd.read_parquet(cross / f"{prefix}neighbours.parquet")
    assert set(near["feature"]) == set(S)
    for feature, part in near.groupby("feature"):
        expected = S.loc[feature][S.loc[feature] > 0].sort_values(ascending=False)[:4]
        assert list(part["neighbour"]) == list(expected.index)
        np.testing.assert_allclose(part["similarity"], expected, atol=1e-9)
    partners = pd.read_parquet(cross / f"{prefix}partners.parquet")
    assert list(partners) == ["feature", "layer", "partner", "similarity"] and len(partners) == len(S)
    for row in partners.itertuples():
        own = blocks[row.feature.rpartition(":")[0], row.layer].loc[row.feature]
        assert row.partner == own.idxmax() and row.similarity == pytest.approx(own.max(), abs=1e-9)
    graph = nx.read_graphml(cross / f"{prefix}graph.graphml")
    assert list(graph) == list(S) and graph.nodes["second:1"] == {"layer": "second", "status": "live"}
    edges = {frozenset(pair) for pair in zip(near["feature"], near["neighbour"], strict=True)}
    assert {frozenset(edge) for edge in graph.edges} == edges
    table = result.read_layer_table(cross.parent, f"cross/{prefix}layers")
    assert table is not None and table["best"].iloc[0] == pytest.approx(blocks["second", "first"].max(axis=1).mean())
    return S


@pytest.mark.parametrize("prefix", ["", "photographs_"])
def test_whole_networks_keep_the_nearest_features_over_photographs(
    prefix: str, both: LayerMaps, tmp_path: Path, responses: pd.DataFrame
) -> None:
    found = PhotographLayers.read(open_arrays(both.folder), LAYERS)
    with Run(tmp_path / "run", {"command": "similarity"}).open({}, {}, {}).locked() as run:
        summary = large.write_photographs(run, found, ALONE, prefix, Silent())
    check_whole_network(tmp_path / "run" / "cross", prefix, responses)
    assert summary["profiles"] == len(found.names) and summary["images"] == COUNT
    lines = tables.all_crossing_lines({"photograph_network": summary})
    assert f"with a profile over {COUNT} photographs: {summary['edges']} edges to the 4 nearest" in lines[0]
    assert lines[1].startswith(f"on {COUNT} photographs: ") and ": mean S of a feature's best partner" in lines[1]


@pytest.mark.slow
@pytest.mark.parametrize("by_itself", [False, True])
def test_a_whole_network_is_mapped_over_photographs(
    by_itself: bool, noise: Path, tmp_path: Path, responses: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blockwise, "LARGE", 10)
    if by_itself:
        found = map_alone(noise, tmp_path / "run")
    else:
        found = similarity(LAYERS, tiny.small(), photographs=noise, **options(out=tmp_path / "run", **FAST))
    S = check_whole_network(tmp_path / "run" / "cross", "" if by_itself else "photographs_", responses)
    assert not [path for path in (tmp_path / "run" / "cross").iterdir() if path.is_dir()]
    assert any(f"with a profile over {COUNT} photographs" in line for line in found.lines())
    pair = found.photograph_crossings["first", "second"].measures["profile"]
    pd.testing.assert_frame_equal(pair, S.loc[list(pair.index), list(pair)], atol=1e-9, check_names=False)
    assert integrity.inspect(tmp_path / "run").faults == []


def test_small_panels_of_many_photographs_give_the_same(both: LayerMaps, monkeypatch: pytest.MonkeyPatch) -> None:
    """The panels shrink with the number of photographs; what is found does not depend on them."""
    found = PhotographLayers.read(open_arrays(both.folder), LAYERS)
    whole, widths, real = found.overview(3), [], blockwise._panel

    def watched(profiles: Any, rows: Any, first: int, last: int) -> Any:
        widths.append(last - first)
        return real(profiles, rows, first, last)

    monkeypatch.setattr(blockwise, "_panel", watched)
    monkeypatch.setattr(blockwise, "PANEL_BYTES", 8 * COUNT * 5)  # five columns of all photographs
    parts = found.overview(3)
    assert max(widths) <= 5 and sum(widths) == len(found.names)
    np.testing.assert_array_equal(parts.nearest, whole.nearest)
    np.testing.assert_allclose(parts.best, whole.best, atol=1e-12)
    np.testing.assert_array_equal(parts.partner, whole.partner)
