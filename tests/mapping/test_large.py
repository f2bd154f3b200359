"""Maps of whole networks: beyond a size no table of pairs, the same numbers, one layer in memory at a time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import networkx as nx
import pandas as pd
import pytest
import torch
from torch import nn

from featmap.cli import app
from featmap.mapping import analysis
from featmap.mapping import large as large_maps
from featmap.mapping import run as mapping
from featmap.mapping.result import LayerMaps
from featmap.mapping.run import similarity
from featmap.network.loading import load
from featmap.report import atlas
from featmap.runs import job as runs
from featmap.runs.store import Run
from featmap.stats import blockwise
from tests.helpers import settings, tiny
from tests.helpers.settings import options
from tests.helpers.tables import check_plain_tables

pytestmark = [
    pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning"),
    pytest.mark.usefixtures("cheap_runs"),
]
FAST: dict[str, Any] = {"size": 16, "steps": 6, "rows": 4, "device": "cpu"}
LAYERS = ["first", "relu", "second"]
K = 4


def three() -> nn.Module:
    """`small` with a feature that is dead."""
    module = tiny.small()
    with torch.no_grad():
        module.first.weight[2] = 0
        module.first.bias[2] = -1
    return module


@pytest.fixture(scope="module", autouse=True)
def from_ten_features_on() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockwise, "LARGE", 10)
        yield


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> LayerMaps:
    folder = tmp_path_factory.mktemp("maps") / "large"
    return similarity(LAYERS, three(), **options(neighbours=K, seeds=2, out=folder, **FAST))


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> LayerMaps:
    folder = tmp_path_factory.mktemp("maps") / "dense"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockwise, "LARGE", 10**6)
        return similarity(LAYERS, three(), **options(neighbours=K, seeds=2, out=folder, **FAST))


def test_layers_and_pairs_equal_the_dense_computation(large: LayerMaps, dense: LayerMaps) -> None:
    assert list(large.maps) == list(dense.maps) and list(large.crossings) == list(dense.crossings)
    for pair, expected in dense.crossings.items():
        crossing = large.crossings[pair]
        assert set(crossing.measures) == set(expected.measures)
        for name, frame in expected.measures.items():
            pd.testing.assert_frame_equal(crossing.measures[name], frame, check_exact=False, atol=1e-12)
    pd.testing.assert_frame_equal(large.layers["best"].to_frame(), dense.layers["best"].to_frame(), atol=1e-9)
    same = ["layer", "other", "features", "images"]
    pd.testing.assert_frame_equal(large.layers[same], dense.layers[same])
    assert (large.layers["draws"] == blockwise.DRAWS).all()
    assert (large.layers["floor"] <= large.layers["highest_floor"]).all()
    for layer, one in dense.maps.items():
        for path in (dense.folder / layer).iterdir():
            assert (large.folder / layer / path.name).read_bytes() == path.read_bytes(), path
        pd.testing.assert_frame_equal(large.maps[layer].measures["profile"], one.measures["profile"])
        assert large.summary["layers"][layer] == one.summary
    with pytest.raises(KeyError):
        large.maps["third"]


def test_neighbour_graph_links_nearest_features_of_all_layers(large: LayerMaps, dense: LayerMaps) -> None:
    near = pd.read_parquet(large.folder / f"{large_maps.NEIGHBOURS}.parquet")
    graph = nx.read_graphml(large.folder / large_maps.GRAPH)
    live = [f for one in dense.maps.values() for f in one.clusters.labels.index]
    assert list(graph.nodes) == live and "first:2" not in live
    assert graph.nodes["second:3"] == {"layer": "second", "status": "live", "start": "gradient"}
    edges = {frozenset(pair) for pair in zip(near["feature"], near["neighbour"], strict=True)}
    assert {frozenset(e) for e in graph.edges} == edges
    across = 0
    for (feature, other), S in zip(near[["feature", "neighbour"]].to_numpy(), near["similarity"], strict=True):
        assert graph.edges[feature, other]["weight"] == S > 0
        one, two = (name.rpartition(":")[0] for name in (feature, other))
        if one != two:
            across += 1
            assert dense.crossings[one, two].measures["profile"].loc[feature, other] == pytest.approx(S, abs=1e-9)
    assert across > 10 and near.groupby("feature").size().max() == K
    network = large.summary["network"]
    assert network["edges"] == graph.number_of_edges() and network["live"] == len(live)
    assert f"{len(live)} live features" in " ".join(large.lines())


def test_partners_equal_the_dense_computation(large: LayerMaps, dense: LayerMaps) -> None:
    partners = pd.read_parquet(large.folder / f"{large_maps.PARTNERS}.parquet")
    live = sum(int(one.features["status"].isin(["live", "rescued"]).sum()) for one in large.maps.values())
    assert live >= 20 and len(partners) == 2 * live, "one in each of the two other layers"
    for row in partners.itertuples():
        one = row.feature.rpartition(":")[0]
        S = dense.crossings[one, row.layer].measures["profile"].loc[row.feature]
        assert S.max() == pytest.approx(row.similarity, abs=1e-9)
        assert S[row.partner] == pytest.approx(row.similarity, abs=1e-9)


def test_no_pair_tables_are_written_and_all_files_recorded(large: LayerMaps) -> None:
    assert {p.name for p in (large.folder / "cross").iterdir()} == {
        *("layers.csv", "layers.parquet", "layers.png", "layers.svg"),
        *("neighbours.parquet", "partners.parquet", "graph.graphml"),
    }
    manifest = json.loads((large.folder / "manifest.json").read_text(), parse_constant=pytest.fail)
    present = {p.relative_to(large.folder).as_posix() for p in large.folder.rglob("*") if p.is_file()}
    own = {
        p
        for p in present
        if p.split("/")[0] not in ("arrays.zarr", "units", "manifest.json", ".copy", ".lock", ".owner.json")
    }
    assert set(manifest["files"]) == own and manifest["status"] == "complete"


def times(folder: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def again(large: LayerMaps, **changes: Any) -> LayerMaps:
    return similarity(
        LAYERS, three(), **options(neighbours=changes.pop("neighbours", K), seeds=2, out=large.folder, **FAST)
    )


def test_repeated_call_writes_nothing(large: LayerMaps) -> None:
    before = times(large.folder)
    assert again(large).lines() == large.lines()
    assert times(large.folder) == before


def test_missing_file_is_restored_without_touching_other_layers(large: LayerMaps) -> None:
    before = times(large.folder)
    lost = [large.folder / name for name in ("relu/heatmap.png", "cross/partners.parquet")]
    kept = {path: path.read_bytes() for path in lost}
    for path in lost:
        path.unlink()
    again(large)
    assert all(path.read_bytes() == content for path, content in kept.items())
    untouched = [p for p in before if p.parent.name in ("first", "second")]
    assert len(untouched) > 20 and all(times(large.folder)[p] == before[p] for p in untouched)


def test_validation_marks_neighbours_partners_and_graph(large: LayerMaps, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(large.folder, folder)
    stored = Run.read(folder)
    stored.manifest.reliability = dict.fromkeys(large.maps["second"].features.index, 0.95) | {"second:3": 0.5}
    stored.save()
    similarity(LAYERS, three(), **options(neighbours=K, seeds=2, out=folder, **FAST))
    assert f"{large_maps.PARTNERS}.parquet" in check_plain_tables(folder)
    for name, other in ((large_maps.NEIGHBOURS, "neighbour"), (large_maps.PARTNERS, "partner")):
        plain, marked = (pd.read_parquet(f / f"{name}.parquet") for f in (large.folder, folder))
        assert "reliable" not in plain
        pd.testing.assert_frame_equal(marked[plain.columns], plain)
        for column, whose in (("reliable", "feature"), (f"{other}_reliable", other)):
            bad, unknown = marked[whose] == "second:3", ~marked[whose].str.startswith("second:")
            assert bad.any() and not marked.loc[bad, column].any()
            assert marked.loc[unknown, column].isna().all() and marked.loc[~bad & ~unknown, column].all()
    graph = nx.read_graphml(folder / large_maps.GRAPH)
    assert graph.nodes["second:3"]["reliable"] is False and graph.nodes["second:1"]["reliable"] is True
    assert "reliable" not in graph.nodes["first:3"]


def test_interrupted_mapping_resumes_at_the_interrupted_layer(
    large: LayerMaps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = analysis.map_layer, []

    def stopped(job: runs.Job, layer: str, *rest: Any) -> Any:
        seen.append(layer)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(job, layer, *rest)

    monkeypatch.setattr(analysis, "map_layer", stopped)
    call = {"neighbours": K, "out": tmp_path / "run", **FAST}
    with pytest.raises(KeyboardInterrupt):
        similarity(LAYERS, three(), **options(**call))
    similarity(LAYERS, three(), **options(**call))
    assert seen == ["first", "relu", "relu", "second"]


def test_neighbours_and_atlas_work_on_large_runs(large: LayerMaps, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        app.main(["neighbours", "second:1", str(large.folder)])
    assert end.value.code == 0 and "most like second:1" in capsys.readouterr().out
    pages = atlas.atlas(large.folder, network=load(three()))
    assert len(pages) == 4 and all(p.stat().st_size > 10_000 for p in pages)


def test_network_without_live_features_completes(tmp_path: Path) -> None:
    result = similarity("relu,features,relu*", tiny.asleep(), **options(out=tmp_path / "small", **FAST))
    assert isinstance(result, LayerMaps) and not result.large_lines  # six features are no large run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockwise, "LARGE", 2)
        result = similarity(["relu", "features"], tiny.asleep(), **options(out=tmp_path / "run", **FAST))
        assert result.large_lines and result.layers["floor"].isna().all()
        assert result.summary["network"]["live"] == len(pd.read_csv(tmp_path / "run" / "features" / "features.csv"))


def test_command_line_maps_all_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", "tests.helpers.tiny:small", "--size", "16", "--steps", "4", "--rows", "4", "--device", "cpu"]
    with pytest.raises(SystemExit) as end:
        app.main(["similarity", "--layer", "all", *options, "--out", str(tmp_path / "run")])
    printed = capsys.readouterr()
    assert end.value.code == 0, printed.err
    assert "2 layers, 17 features: first, second" in printed.out
    assert f"featmap atlas {tmp_path / 'run'}" in printed.out
    assert printed.out.splitlines()[-1].startswith(f"result: {tmp_path / 'run'} (cross/neighbours.parquet")
    with pytest.raises(SystemExit) as end:
        app.main(["similarity", "--layer", "*", *options, "--dry-run"])
    assert end.value.code == 0 and "2 layers, 17 features" in capsys.readouterr().out


def test_disk_estimate_omits_pair_tables_of_large_runs() -> None:
    network = load(tiny.paired())
    recipe = settings.resolve(network, torch.device("cpu"), "pixels", 16, 6, rows=4)
    job = mapping.similarity_job("all", network, recipe)
    N = len(tiny.SCALES)
    large = job.disk_needed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockwise, "LARGE", 10**6)
        assert job.disk_needed - large == 5 * 22 * ((2 * N) ** 2 - 2 * N**2)
