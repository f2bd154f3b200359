from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from PIL import Image

import featmap
from featmap.errors import FeatmapError, StoreError
from featmap.mapping.neighbours import neighbour_frame
from featmap.mapping.result import LayerMaps, SimilarityMap, read_maps
from featmap.mapping.run import similarity
from featmap.mapping.writing import build_graph
from featmap.network.loading import load
from featmap.runs import integrity, lifecycle, output, store
from featmap.stats import clustering
from tests.helpers import settings, tiny
from tests.helpers.settings import options
from tests.helpers.tables import check_plain_tables

pytestmark = [
    pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning"),
    pytest.mark.usefixtures("cheap_runs"),
]
FAST: dict[str, Any] = {"size": 16, "steps": 6, "rows": 4, "device": "cpu"}
SQUARE = ("activations", "coactivation", "relative", "selective", "profile")
NAMES = [f"features:{c}" for c in range(12)]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> SimilarityMap:
    return similarity("features", tiny.planted(), **options(out=tmp_path_factory.mktemp("maps") / "planted", **FAST))


def test_copies_are_nearest_neighbours(planted: SimilarityMap) -> None:
    S = planted.measures["profile"]
    for copy, (original, _) in tiny.COPIES.items():
        assert S.loc[f"features:{copy}", f"features:{original}"] > 0.99
        assert planted.features.loc[f"features:{copy}", "nearest_1"] == f"features:{original}"
        assert planted.features.loc[f"features:{original}", "nearest_1"] == f"features:{copy}"
    others = [S.iloc[i, j] for i in range(6) for j in range(i)]
    assert max(others) < 0.95
    assert S.to_numpy(dtype=float).diagonal().tolist() == [1.0] * 12


def test_a_graph_of_few_features_has_the_same_order_in_every_process(planted: SimilarityMap) -> None:
    """The subgraph of networkx takes the order of a set of names where they are less than half of the nodes."""
    few, whole = ["features:7", "features:2", "features:9", "features:0", "features:1"], planted.clusters.graph
    graph = build_graph(planted, few, 10)
    assert list(graph) == [name for name in whole if name in few]
    assert list(graph.edges) == [edge for edge in whole.edges if {*edge} <= {*few}]
    assert all(graph.edges[edge]["weight"] == whole.edges[edge]["weight"] for edge in graph.edges)


def test_scale_of_a_copy_changes_A_but_not_coactivation(planted: SimilarityMap) -> None:
    C = planted.measures["coactivation"]
    for copy, (original, factor) in tiny.COPIES.items():
        a, b = f"features:{copy}", f"features:{original}"
        np.testing.assert_allclose(planted.activations[a], factor * planted.activations[b], rtol=1e-4, atol=1e-6)
        assert C.loc[a, b] == pytest.approx(1.0, abs=1e-3)
        assert C.loc[b, a] == pytest.approx(1.0, abs=1e-3)


def test_coactivation_follows_its_formula(planted: SimilarityMap) -> None:
    data = store.open_arrays(planted.folder)
    A, n = data["A"].values[0].astype(float), data["null"].values[0].astype(float)
    for i, j in ((0, 1), (3, 9), (11, 2)):
        expected = (A[i, j] - n[j]) / (A[j, j] - n[j])
        assert planted.measures["coactivation"].iloc[i, j] == pytest.approx(expected, rel=1e-9)
    np.testing.assert_array_equal(planted.activations.to_numpy(), A)


def test_all_files_are_written_with_labels(planted: SimilarityMap) -> None:
    for name in SQUARE:
        parquet = pd.read_parquet(planted.folder / f"{name}.parquet")
        written = pd.read_csv(planted.folder / f"{name}.csv", index_col=0)
        assert list(parquet.index) == list(parquet.columns) == NAMES
        assert list(written.index) == list(written.columns) == NAMES
        np.testing.assert_allclose(written.to_numpy(dtype=float), parquet.to_numpy(dtype=float), rtol=1e-8)
    features = pd.read_csv(planted.folder / "features.csv", index_col=0)
    assert list(features.index) == NAMES
    assert {"channel", "status", "activation", "null_activation", "identity", "nearest_1"} <= set(features.columns)
    for name in ("heatmap.png", "features.png", "neighbours.png"):
        with Image.open(planted.folder / name) as picture:
            picture.load()
            assert min(picture.size) > 50
    assert b"<svg" in (planted.folder / "heatmap.svg").read_bytes()[:2000]


def test_networkx_reads_the_graph(planted: SimilarityMap) -> None:
    graph = nx.read_graphml(planted.folder / "graph.graphml")
    assert set(graph) == set(NAMES)
    assert graph.has_edge("features:0", "features:6")
    assert all(0 < d["weight"] <= 1 for _, _, d in graph.edges(data=True))
    assert {d["status"] for _, d in graph.nodes(data=True)} == {"live"}


def test_manifest_records_settings_and_environment(planted: SimilarityMap) -> None:
    manifest = json.loads((planted.folder / "manifest.json").read_text())
    identity = manifest["identity"]
    assert (manifest["status"], identity["command"], identity["layer"], identity["seeds"]) == (
        *("complete", "similarity", "features"),
        [0],
    )
    assert identity["model"]["sha256"] == load(tiny.planted()).sha256
    assert (identity["recipe"]["rows"], identity["recipe"]["octaves"][0]["steps"]) == (4, 6)
    assert {"python", "featmap", "torch", "torchvision", "numpy", "networkx", "zarr"} <= set(
        manifest["environment"]["versions"]
    )
    assert manifest["timings"]["descent_and_probe"] > 0
    assert manifest["timings"]["tables_and_figures"] > 0
    present = {
        p.relative_to(planted.folder).as_posix()
        for p in planted.folder.glob("*.*")
        if p.is_file() and p.name != ".lock"
    }
    assert set(manifest["files"]) == present - {"manifest.json"}
    assert set(manifest["units"]) == {p.stem for p in tiny.landed(planted.folder)}


def test_xarray_opens_the_arrays_with_labels(planted: SimilarityMap) -> None:
    data = xr.open_zarr(planted.folder / "arrays.zarr")
    assert dict(data.sizes) == {
        **{"seed": 1, "image": 12, "response": 12, "step": 6},
        **{"channel": 3, "y": 16, "x": 16},
    }
    assert data["A"].dims == ("seed", "image", "response")
    assert float(data["A"].sel(seed=0, image="features:1", response="features:7")) == pytest.approx(
        planted.activations.loc["features:1", "features:7"]
    )
    assert data["status"].attrs["flag_meanings"].split()[0] == "live"
    images = data["images"].values
    assert images.min() >= 0
    assert images.max() <= 1


def unpickled(folder: Path) -> None:
    for path in folder.rglob("*"):
        assert path.suffix not in (".pkl", ".pickle", ".npy", ".npz", ".pt", ".pth"), path
        if path.name in (".zarray", ".zmetadata"):
            text = path.read_text()
            assert "pickle" not in text
            assert '"|O"' not in text


def test_run_folder_contains_no_pickle(planted: SimilarityMap) -> None:
    unpickled(planted.folder)


def test_repeated_call_writes_nothing(planted: SimilarityMap) -> None:
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in planted.folder.rglob("*")}
    again = similarity("features", tiny.planted(), **options(out=planted.folder, **FAST))
    assert {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in planted.folder.rglob("*")} == before
    pd.testing.assert_frame_equal(again.measures["profile"], planted.measures["profile"])
    assert again.lines() == planted.lines()


def test_missing_figure_is_drawn_from_the_arrays(planted: SimilarityMap) -> None:
    units = tiny.landed(planted.folder)
    picture = (planted.folder / "heatmap.png").read_bytes()
    (planted.folder / "heatmap.png").unlink()
    similarity("features", tiny.planted(), **options(out=planted.folder, **FAST))
    assert (planted.folder / "heatmap.png").read_bytes() == picture
    assert tiny.landed(planted.folder) == units


def test_tables_open_as_plain_float64(planted: SimilarityMap, tmp_path: Path) -> None:
    for name in SQUARE:
        values = pd.read_parquet(planted.folder / f"{name}.parquet").to_numpy()
        assert values.dtype == np.float64 and np.isfinite(values).any()
    assert "features.parquet" in check_plain_tables(planted.folder)
    features = pd.read_parquet(planted.folder / "features.parquet")
    assert features[["activation", "null_activation", "similarity_1"]].to_numpy().dtype == np.float64
    frame = pd.DataFrame([[0.25, np.nan], [np.nan, 1 / 3]], index=["a", "b"], columns=["a", "b"])
    run = store.Run(tmp_path, store.Run.read(planted.folder).manifest)
    output.write_frame(run, "table", frame)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "table.parquet"), frame.rename_axis(index="image"))
    assert (tmp_path / "table.csv").read_text() == "image,a,b\na,0.25,\nb,,0.333333333\n"
    with mock.patch.object(output, "CSV_CELLS", 3):
        output.write_frame(run, "wide", frame)
    assert (tmp_path / "wide.parquet").is_file() and not (tmp_path / "wide.csv").exists()
    frame.astype("Float64").to_parquet(tmp_path / "older.parquet")
    pd.testing.assert_frame_equal(store.read_frame(tmp_path, "older"), frame)


def test_runs_with_nullable_columns_are_read(planted: SimilarityMap, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(planted.folder, folder)
    stored, path = store.Run.read(folder), folder / "features.parquet"
    plain, text = pd.read_parquet(path), (folder / "features.csv").read_text()
    older = plain.astype({"identity": "boolean", "cluster": "Int64", "community": "Int64", "activation": "Float64"})
    stored.write(path.name, older.to_parquet)
    stored.save()
    assert integrity.inspect(folder).faults == []
    (layer_map,) = read_maps(folder).values()
    pd.testing.assert_frame_equal(layer_map.features, plain)
    pd.testing.assert_frame_equal(
        neighbour_frame("features:3", folder), neighbour_frame("features:3", planted.folder), check_dtype=True
    )
    (folder / "features.csv").unlink()
    again = similarity("features", tiny.planted(), **options(out=folder, **FAST))
    assert not isinstance(again, LayerMaps)
    pd.testing.assert_frame_equal(again.features, plain)
    pd.testing.assert_frame_equal(pd.read_parquet(path), plain)
    assert (folder / "features.csv").read_text() == text


def no_nan(folder: Path) -> None:
    check_plain_tables(folder)
    for path in folder.glob("*.csv"):
        cells = [c.lower() for line in path.read_text().splitlines() for c in line.split(",")]
        assert not {"nan", "inf", "-inf", "<na>"} & set(cells), path.name
    for path in folder.glob("*.parquet"):
        assert "Float64" not in set(map(str, pd.read_parquet(path).dtypes)), path.name
        frame = pd.read_parquet(path, dtype_backend="pyarrow")
        for column in frame.select_dtypes("number"):
            values = frame[column].dropna().to_numpy(dtype=float)
            assert np.isfinite(values).all(), (path.name, column)


def test_shown_features_do_not_restrict_the_stimuli(planted: SimilarityMap, tmp_path: Path) -> None:
    shown = ["features:1", "features:3", "features:7"]
    part = similarity("features", tiny.planted(), **options(features="1,3,7", out=tmp_path / "part", **FAST))
    for name in SQUARE:
        frame = pd.read_parquet(tmp_path / "part" / f"{name}.parquet")
        whole = pd.read_parquet(planted.folder / f"{name}.parquet")
        assert list(frame.index) == list(frame.columns) == shown
        pd.testing.assert_frame_equal(frame, whole.loc[shown, shown])
    assert list(pd.read_csv(tmp_path / "part" / "features.csv")["feature"]) == shown
    assert store.open_arrays(tmp_path / "part").sizes["image"] == 12
    assert set(nx.read_graphml(tmp_path / "part" / "graph.graphml")) == set(shown)
    assert "3 shown" in part.lines()[0]


def test_stimuli_shown_maximises_only_shown_features(planted: SimilarityMap, tmp_path: Path) -> None:
    part = similarity(
        "features", tiny.planted(), **options(features=[1, 3, 7, 8], stimuli="shown", out=tmp_path / "run", **FAST)
    )
    data, whole = store.open_arrays(tmp_path / "run"), store.open_arrays(planted.folder)
    assert list(data["image"].values) == [f"features:{c}" for c in (1, 3, 7, 8)]
    for name in data["image"].values:
        assert data["images"].sel(image=name).values.tobytes() == whole["images"].sel(image=name).values.tobytes()
    assert part.measures["profile"].shape == (4, 4)
    with pytest.raises(FeatmapError, match="shown"):
        similarity("features", tiny.planted(), **options(stimuli="all", **FAST))


def test_seeds_are_averaged_and_their_agreement_reported(tmp_path: Path) -> None:
    result = similarity("features", tiny.planted(), **options(seeds=2, out=tmp_path / "run", **FAST))
    seeds = result.summary["seeds"]
    assert seeds["count"] == 2
    assert 0.5 < seeds["correlation_of_S"] <= 1
    assert -1 <= seeds["ari_of_clusters"] <= 1
    A = store.open_arrays(tmp_path / "run")["A"].values.astype(float)
    np.testing.assert_allclose(result.activations.to_numpy(), (A[0] + A[1]) / 2)
    assert any("2 seeds" in line for line in result.lines())
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["summary"]["seeds"] == seeds


def test_single_communities_of_seeds_have_no_agreement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = clustering.communities
    monkeypatch.setattr(
        clustering, "communities", lambda *given: replace(found(*given), labels=found(*given).labels * 0)
    )
    result = similarity("features", tiny.planted(), **options(seeds=2, out=tmp_path / "run", **FAST))
    assert result.summary["seeds"]["ari_of_clusters"] is None
    assert any("between single seeds undefined" in line for line in result.lines())


def test_layer_of_dead_features_completes(tmp_path: Path) -> None:
    result = similarity("relu", tiny.asleep(), **options(out=tmp_path / "run", **FAST))
    assert list(result.features["status"]) == ["dead"] * 3
    assert result.summary["identity_rate"] is None
    no_nan(tmp_path / "run")
    for name in (*[f"{n}.csv" for n in SQUARE], "features.csv", "graph.graphml", "features.png"):
        assert (tmp_path / "run" / name).is_file()


def test_layer_with_a_non_finite_feature_completes(tmp_path: Path) -> None:
    result = similarity("relu", tiny.sick(), **options(out=tmp_path / "run", **FAST))
    assert result.features["status"]["relu:3"] == "not-finite"
    no_nan(tmp_path / "run")


def test_non_finite_feature_does_not_affect_the_others(tmp_path: Path) -> None:
    result = similarity("relu", tiny.sick(), **options(out=tmp_path / "run", **FAST))
    assert list(result.features["status"]) == ["live", "dead", "dead", "not-finite"]


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("factory", [tiny.one, tiny.two])
def test_the_smallest_layers_complete(factory: Any, seeds: int, tmp_path: Path) -> None:
    result = similarity("features", factory(), **options(seeds=seeds, out=tmp_path / "run", **FAST))
    assert set(result.features["status"]) == {"live"}
    assert result.summary["clusters"]["count"] == 0
    assert len(result.lines()) >= 3
    if seeds == 2:
        assert result.summary["seeds"]["correlation_of_S"] is None
    no_nan(tmp_path / "run")
    json.loads((tmp_path / "run" / "manifest.json").read_text(), parse_constant=pytest.fail)


def test_hostile_layer_names_are_escaped_everywhere(tmp_path: Path) -> None:
    name = "<script>alert('&')</script>"
    result = similarity(name, tiny.hostile(), **options(out=tmp_path / "<b>run", **FAST))
    html = result._repr_html_()
    assert "<script" not in html
    assert "<b>run" not in html
    assert "&lt;script&gt;" in html
    assert set(nx.read_graphml(result.folder / "graph.graphml")) == {f"{name}:{c}" for c in range(4)}
    assert b"<script" not in (result.folder / "heatmap.svg").read_bytes()


def test_descent_starts_from_a_photograph(tmp_path: Path) -> None:
    pixels = np.random.Generator(np.random.PCG64(2)).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    network = load(tiny.small())
    recipe = settings.resolve(network, torch.device("cpu"), "interact", 16, 1, rows=4)
    data = featmap.maximise("second:1", network, **options(recipe=recipe, start=tmp_path / "photo.png", device="cpu"))
    Image.fromarray(255 - pixels).save(tmp_path / "photo.png")
    negative = featmap.maximise(
        "second:1", network, **options(recipe=recipe, start=tmp_path / "photo.png", device="cpu")
    )
    middle = Image.fromarray(pixels).crop((5, 0, 25, 20)).resize((16, 16), Image.Resampling.BICUBIC)
    photograph = np.asarray(middle, dtype=float).transpose(2, 0, 1) / 255
    for image in (data["images"].values[0, 0], data["null_images"].values[0]):
        assert np.corrcoef(image.ravel(), photograph.ravel())[0, 1] > 0.5
    assert np.corrcoef(negative["images"].values[0, 0].ravel(), photograph.ravel())[0, 1] < -0.5


@pytest.mark.parametrize(
    "name",
    ["profile.csv", "graph.graphml", "heatmap.svg", "manifest.json"],
)
def test_full_disk_at_the_end_is_a_store_error(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = os.replace

    def full(source: str, target: str) -> None:
        if Path(target).name == name and (tmp_path / "units" / "s0-000000-000002.json").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(StoreError, match="no space left"):
            similarity("features", tiny.two(), **options(out=tmp_path, **FAST))
    similarity("features", tiny.two(), **options(out=tmp_path, **FAST))
    assert (tmp_path / name).is_file()


def test_lack_of_disk_space_is_detected_before_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lifecycle, "free_space", lambda _: 1000)
    with pytest.raises(StoreError, match=r"no space: .* MB needed.*choose another folder"):
        similarity("features", tiny.planted(), **options(out=tmp_path / "run", **FAST))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_reference_network_can_be_mapped(tmp_path: Path) -> None:
    result = similarity(
        "inception3a",
        **options(features="0-3", stimuli="shown", out=tmp_path / "run", size=32, steps=3, rows=4, device="cpu"),
    )
    assert result.activations.shape == (4, 4)
    assert set(result.features["branch"]) == {"branch1"}
    assert np.isfinite(result.activations.to_numpy(dtype=float)).all()
    unpickled(tmp_path / "run")
