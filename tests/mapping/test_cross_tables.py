"""Maps of one layer with probed layers, and of several layers, from descent to files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from featmap.errors import StoreError, UnitError
from featmap.mapping import cross_tables, tables
from featmap.mapping import run as mapping
from featmap.mapping.result import LayerMaps, SimilarityMap
from featmap.mapping.run import similarity
from featmap.mapping.view import View
from featmap.network.loading import load
from featmap.runs import estimate
from featmap.runs import job as runs
from featmap.runs.worker import Worker
from tests.helpers import networks, settings, tiny
from tests.helpers.settings import options
from tests.mapping.test_run import no_nan, unpickled

pytestmark = [
    pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning"),
    pytest.mark.usefixtures("cheap_runs"),
]
FAST: dict[str, Any] = {"size": 16, "steps": 6, "rows": 4, "device": "cpu"}
LAYERS = ["features", "copies"]
N = len(tiny.SCALES)
BOTH = [("features", "copies"), ("copies", "features")]
CROSS_FILES = ("activations", "relative", "selective", "profile", "partners")


@pytest.fixture(scope="module")
def paired(tmp_path_factory: pytest.TempPathFactory) -> LayerMaps:
    return similarity(LAYERS, tiny.paired(), **options(out=tmp_path_factory.mktemp("maps") / "paired", **FAST))


@pytest.fixture(scope="module")
def probing(tmp_path_factory: pytest.TempPathFactory) -> SimilarityMap:
    folder = tmp_path_factory.mktemp("maps") / "probing"
    return similarity("second", tiny.small(), **options(probe_layers=["first", "relu"], out=folder, **FAST))


def names(layer: str, n: int = N) -> list[str]:
    return [f"{layer}:{c}" for c in range(n)]


def times(folder: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_best_partner_of_each_feature_is_its_copy(paired: LayerMaps) -> None:
    for pair in BOTH:
        c = paired.crossings[pair]
        assert list(c.activations.index) == names(pair[0])
        assert list(c.activations.columns) == names(pair[1])
        np.testing.assert_allclose(np.diag(c.measures["profile"].to_numpy(float)), 1, atol=1e-4)
        first = c.partners[c.partners["rank"] == 1]
        assert [p.rpartition(":")[2] for p in first["partner"]] == [str(i) for i in range(N)]
    S, back = (paired.crossings[pair].measures["profile"].to_numpy(float) for pair in BOTH)
    assert np.array_equal(S, back.T)
    assert set(paired.layers["best"].round(3)) == {1.0}
    assert (paired.layers["floor"] < 0.9).all()
    assert list(paired.layers["images"]) == [2 * N] * 2


def test_copies_with_the_same_image_have_full_coactivation(paired: LayerMaps) -> None:
    images = paired.dataset["images"].sel(seed=0)
    C = paired.crossings["features", "copies"].measures["coactivation"]
    coincide = 0
    for c, scale in enumerate(tiny.SCALES):
        one, two = (images.sel(image=f"{layer}:{c}").values for layer in LAYERS)
        assert C.loc[f"features:{c}", f"copies:{c}"] == pytest.approx(1, abs=0.02)
        if scale == 1:
            coincide += np.allclose(one, two, atol=1e-6)
            assert C.loc[f"features:{c}", f"copies:{c}"] == pytest.approx(1, abs=1e-5)
    assert coincide == 3


def test_layer_map_equals_a_single_layer_run(paired: LayerMaps, tmp_path: Path) -> None:
    for layer in LAYERS:
        alone = similarity(layer, tiny.paired(), **options(out=tmp_path / layer, **FAST))
        whole = paired.dataset.sel(image=names(layer), response=names(layer))
        for name in ("images", "A", "null", "activation", "null_activation", "curve", "status"):
            assert whole[name].values.tobytes() == alone.dataset[name].values.tobytes(), (layer, name)
        places = {p.relative_to(tmp_path / layer).as_posix(): p for p in (tmp_path / layer).glob("*.*")}
        own = set(places) - {"manifest.json", "arrays.zarr", ".lock", ".copy"}
        assert own == {p.name for p in (paired.folder / layer).iterdir()}
        for name in own:
            assert places[name].read_bytes() == (paired.folder / layer / name).read_bytes(), name


def test_probe_layers_do_not_change_the_layer_map(probing: SimilarityMap, tmp_path: Path) -> None:
    alone = similarity("second", tiny.small(), **options(out=tmp_path / "run", **FAST))
    own = names("second", tiny.FEATURES)
    for name in ("images", "activation", "curve", "status"):
        assert probing.dataset[name].values.tobytes() == alone.dataset[name].values.tobytes()
    assert probing.dataset["A"].sel(response=own).values.tobytes() == alone.dataset["A"].values.tobytes()
    for path in (tmp_path / "run").glob("*.*"):
        if path.is_file() and path.name != "manifest.json":
            assert path.read_bytes() == (probing.folder / path.name).read_bytes(), path.name


def test_probed_responses_match_the_plain_network(probing: SimilarityMap) -> None:
    images = torch.tensor(probing.dataset["images"].values[0])
    with torch.no_grad():
        first = tiny.small()[0](images).mean((2, 3)).numpy()
    np.testing.assert_allclose(probing.crossings["second", "first"].activations, first, rtol=1e-5, atol=1e-7)
    relu = probing.crossings["second", "relu"].activations
    np.testing.assert_array_equal(probing.dataset["A"].values[0, :, -6:], relu)


def calls(job: runs.Job) -> int:
    """How many forward passes one work unit and the null image take."""
    count = [0]
    handle = job.network.module.register_forward_pre_hook(lambda *_: count.__setitem__(0, count[0] + 1))
    worker = Worker(job)
    for unit in job.work_units()[:2]:
        worker.make(unit)
    handle.remove()
    return count[0]


@pytest.mark.parametrize("probes", [("first",), ("first", "relu")])
def test_recording_probe_layers_adds_no_forward_pass(probes: tuple[str, ...]) -> None:
    recipe = settings.resolve(load(tiny.small()), torch.device("cpu"), "pixels", 16, 3, rows=4)
    plain, more = (
        mapping.similarity_job("second", load(tiny.small()), recipe, view=View(probe_layers=p)) for p in ((), probes)
    )
    assert len(more.columns) > len(plain.columns)
    assert calls(more) == calls(plain) > 3


def test_all_files_are_written_with_labels(paired: LayerMaps, probing: SimilarityMap) -> None:
    for run, pair in ((paired, BOTH[0]), (paired, BOTH[1]), (probing, ("second", "first"))):
        folder = run.folder / "cross" / f"{pair[0]}-to-{pair[1]}"
        c = run.crossings[pair]
        listed = run is paired
        tables_of = {*CROSS_FILES, *(["coactivation"] if listed else [])}
        assert {p.name for p in folder.iterdir()} == {
            *(f"{name}.{kind}" for name in tables_of for kind in ("csv", "parquet")),
            *("heatmap.png", "heatmap.svg"),
        }
        for name in tables_of - {"partners"}:
            parquet, csv = pd.read_parquet(folder / f"{name}.parquet"), pd.read_csv(folder / f"{name}.csv", index_col=0)
            assert list(parquet.index) == list(csv.index) == list(c.activations.index)
            assert list(parquet.columns) == list(csv.columns) == list(c.activations.columns)
        partners = pd.read_csv(folder / "partners.csv")
        assert list(partners.columns) == ["feature", "rank", "partner", "similarity"]
        with Image.open(folder / "heatmap.png") as picture:
            assert min(picture.size) > 300
        no_nan(folder)
    assert {p.name for p in (paired.folder / "cross").iterdir() if p.is_file()} == {
        *("layers.csv", "layers.parquet", "layers.png", "layers.svg"),
    }
    assert not (probing.folder / "cross" / "layers.png").exists()
    written = json.loads((paired.folder / "manifest.json").read_text())
    present = {p.relative_to(paired.folder).as_posix() for p in paired.folder.rglob("*") if p.is_file()}
    assert set(written["files"]) == {
        p for p in present if p.split("/")[0] not in ("arrays.zarr", "units", "manifest.json", ".lock", ".copy")
    }
    assert written["identity"]["layers"] == LAYERS
    unpickled(paired.folder)
    no_nan(paired.folder / "cross")


def test_missing_coactivation_of_probed_layers_is_explained(probing: SimilarityMap, paired: LayerMaps) -> None:
    notes = [line for line in probing.lines() if "co-activation is undefined" in line]
    assert len(notes) == 2
    assert "selective" in notes[0] and "map the layers second and first" in notes[0]
    assert "coactivation" not in probing.crossings["second", "first"].measures
    assert b"standardised" in (probing.folder / "cross" / "second-to-first" / "heatmap.svg").read_bytes()
    assert b"co-activation" in (paired.folder / "cross" / "copies-to-features" / "heatmap.svg").read_bytes()
    assert not [line for line in paired.lines() if "is undefined" in line]
    assert "copies to features" in paired._repr_html_()


@pytest.mark.parametrize("measure", ["raw", "relative", "selective", "profile", "linear_profile"])
def test_every_measure_can_be_drawn(measure: str, paired: LayerMaps, tmp_path: Path) -> None:
    result = similarity(
        LAYERS, tiny.paired(), **options(features="0-3", stimuli="shown", measure=measure, out=tmp_path / "run", **FAST)
    )
    label = cross_tables.LABELS[measure].split()[0].encode()
    folder = tmp_path / "run" / "cross" / "features-to-copies"
    assert label in (folder / "heatmap.svg").read_bytes()
    assert (folder / "linear_profile.csv").exists() == (measure == "linear_profile")
    assert result.crossings[BOTH[0]].activations.shape == (4, 4)


def test_repeated_call_writes_nothing_and_gives_the_same_result(paired: LayerMaps, probing: SimilarityMap) -> None:
    before = times(paired.folder) | times(probing.folder)
    again = similarity(LAYERS, tiny.paired(), **options(out=paired.folder, **FAST))
    once_more = similarity(
        "second", tiny.small(), **options(probe_layers=["first", "relu"], out=probing.folder, **FAST)
    )
    assert times(paired.folder) | times(probing.folder) == before
    assert again.lines() == paired.lines() and once_more.lines() == probing.lines()
    pd.testing.assert_frame_equal(again.layers, paired.layers)
    with pytest.raises(StoreError, match="responses"):
        similarity("second", tiny.small(), **options(probe_layers="first", out=probing.folder, **FAST))


def test_missing_figure_is_drawn_again(paired: LayerMaps) -> None:
    lost = paired.folder / "cross" / "copies-to-features" / "heatmap.png"
    picture = lost.read_bytes()
    lost.unlink()
    similarity(LAYERS, tiny.paired(), **options(out=paired.folder, **FAST))
    assert lost.read_bytes() == picture


def test_shown_features_restrict_mapped_layers_only(tmp_path: Path) -> None:
    result = similarity(LAYERS, tiny.paired(), **options(features="1,3,4", out=tmp_path / "run", **FAST))
    folder = tmp_path / "run" / "cross" / "features-to-copies"
    frame = pd.read_parquet(folder / "coactivation.parquet")
    assert list(frame.index) == [f"features:{c}" for c in (1, 3, 4)]
    assert list(frame.columns) == [f"copies:{c}" for c in (1, 3, 4)]
    assert result.crossings[BOTH[0]].activations.shape == (N, N)
    assert set(pd.read_csv(folder / "partners.csv")["feature"]) == set(frame.index)
    part = similarity(
        "second",
        tiny.small(),
        **options(probe_layers="first", features="2,5", stimuli="shown", out=tmp_path / "two", **FAST),
    )
    assert part.crossings["second", "first"].activations.shape == (2, 6)
    with pytest.raises(UnitError, match="channel 8 is out of range; first has 6"):
        similarity(["second", "first"], tiny.small(), **options(features="0-8", **FAST))


def test_list_of_one_layer_equals_the_layer(tmp_path: Path) -> None:
    network = load(tiny.small())
    recipe = settings.resolve(network, torch.device("cpu"), "pixels", 16, 3, rows=4)
    one, listed, twice = (
        mapping.similarity_job(layers, network, recipe) for layers in ("second", ["second"], ["second", "second"])
    )
    assert one.identity() == listed.identity() == twice.identity()
    result = similarity(["second"], tiny.small(), **options(out=tmp_path / "run", **FAST))
    assert isinstance(result, LayerMaps) and (tmp_path / "run" / "heatmap.png").is_file()
    assert not (tmp_path / "run" / "cross").exists()


def test_conflicting_layers_are_rejected() -> None:
    for arguments, message in (
        (("second", "second"), "is the layer that is maximised"),
        ((["second", "first"], "relu"), "exclude each other"),
        (([], ()), "no layer"),
        (("second", "frst"), "nearest: first"),
    ):
        with pytest.raises(UnitError, match=message):
            similarity(arguments[0], tiny.small(), **options(probe_layers=arguments[1], **FAST))


def test_dead_features_have_no_rows_and_undefined_columns(tmp_path: Path) -> None:
    result = similarity(["relu", "features"], tiny.sick(), **options(out=tmp_path / "run", **FAST))
    c = result.crossings["features", "relu"]
    assert list(result.maps["relu"].features["status"]) == ["live", "dead", "dead", "not-finite"]
    for name in ("coactivation", "relative", "selective", "profile"):
        assert c.measures[name][["relu:1", "relu:2", "relu:3"]].isna().to_numpy().all(), name
    no_nan(tmp_path / "run" / "cross" / "features-to-relu")
    no_nan(tmp_path / "run" / "cross")
    probed = similarity("features", tiny.sick(), **options(probe_layers="relu", out=tmp_path / "probed", **FAST))
    assert probed.crossings["features", "relu"].measures["selective"]["relu:1"].isna().all()


def test_run_without_live_features_completes(tmp_path: Path) -> None:
    result = similarity(["relu", "features"], tiny.asleep(), **options(out=tmp_path / "run", **FAST))
    assert result.layers["best"].isna().all()
    no_nan(tmp_path / "run" / "cross")
    json.loads((tmp_path / "run" / "manifest.json").read_text(), parse_constant=pytest.fail)
    similarity("relu", tiny.asleep(), **options(probe_layers="features", out=tmp_path / "probed", **FAST))
    assert not (tmp_path / "probed" / "cross" / "relu-to-features" / "heatmap.png").exists()
    assert len(similarity(["relu", "features"], tiny.asleep(), **options(out=tmp_path / "run", **FAST)).lines()) > 4


def test_class_logits_are_a_1x1_layer(tmp_path: Path) -> None:
    result = similarity("conv", networks.logits_network(), **options(probe_layers="fc", out=tmp_path / "run", **FAST))
    c = result.crossings["conv", "fc"]
    assert c.activations.shape == (6, 3)
    assert c.measures["selective"].notna().to_numpy().all()
    both = similarity(["conv", "fc"], networks.logits_network(), **options(out=tmp_path / "both", **FAST))
    assert both.crossings["fc", "conv"].measures["coactivation"].shape == (3, 6)


def test_cross_layer_responses_are_averaged_over_seeds(tmp_path: Path) -> None:
    result = similarity(LAYERS, tiny.paired(), **options(seeds=2, out=tmp_path / "run", **FAST))
    A = result.dataset["A"].sel(image=names("features"), response=names("copies")).values.astype(float)
    np.testing.assert_allclose(result.crossings[BOTH[0]].activations, A.mean(0))
    assert all("seeds" in one.summary for one in result.maps.values())


def test_folder_names_are_unique_on_every_file_system() -> None:
    assert tables.layer_folders(["a"]) == {"a": ""}
    assert tables.layer_folders(["x/y", "x-y", "X-y", "units", "cross"]) == {
        **{"x/y": "x-y/", "x-y": "x-y-2/", "X-y": "X-y-3/", "units": "units-2/", "cross": "cross-2/"},
    }
    pairs = [("a/b", "c"), ("a-b", "c"), ("a-to-b", "c"), ("a", "b-to-c")]
    assert len(set(cross_tables.pair_folders(pairs).values())) == 4


def test_estimate_covers_every_layer(tmp_path: Path) -> None:
    recipe = settings.resolve(load(tiny.paired()), torch.device("cpu"), "pixels", 16, 6, rows=4)
    seen: list[str] = []
    job = mapping.similarity_job(LAYERS, load(tiny.paired()), recipe)
    real = estimate.Batches.descend
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            estimate.Batches,
            "descend",
            lambda self, objectives, *rest: (seen.append(objectives[0].layers[0]), real(self, objectives, *rest))[1],
        )
        assert estimate.estimate(job, tmp_path).seconds > 0
    assert set(seen) == set(LAYERS)


def test_a_pair_that_lacks_the_requested_measure_is_noted() -> None:
    entry = {"layer": "second", "other": "relu", "best": None, "floor": None, "strongest": []}
    entry |= {"requested": "coactivation", "heatmap": "selective"}
    lines = tables.crossing_lines([entry])
    assert lines[0] == "second to relu: mean S of a feature's best partner undefined"
    assert lines[1].startswith("relu is probed, not maximised: ") and "so the heatmap shows selective" in lines[1]
    older = {{"requested": "asked"}.get(key, key): value for key, value in entry.items()}
    assert tables.crossing_lines([older]) == lines
    assert len(tables.crossing_lines([entry | {"heatmap": "coactivation"}])) == 1
