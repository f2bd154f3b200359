"""Dataset examples of networks that detect a planted pattern: which photographs, where, and in which files."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from PIL import Image
from torch import nn

from featmap.errors import FeatmapError, StoreError
from featmap.mapping import examples, result
from featmap.mapping.examples import ExampleSource, Place, find_examples, write_examples
from featmap.mapping.run import similarity
from featmap.mapping.view import View
from featmap.network.loading import load
from featmap.network.receptive_field import WHOLE_IMAGE, ReceptiveField, unknown_field
from featmap.optimize.photograph_folder import PhotographFolder, Photographs, open_photographs
from featmap.runs import integrity
from featmap.runs.output import format_number
from featmap.runs.progress import Silent
from featmap.runs.store import Run
from tests.helpers import planted_photographs as planted
from tests.helpers.settings import options

pytestmark = [
    pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning"),
    pytest.mark.usefixtures("one_thread", "cheap_runs"),
]
FAST: dict[str, Any] = {"size": planted.SIZE, "steps": 2, "rows": 4, "device": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted.save_photographs(tmp_path_factory.mktemp("pictures") / "planted")


@pytest.fixture(scope="module")
def run(folder: Path, cheap_runs: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "planted"
    similarity("relu", planted.network(), photographs=folder, **options(out=out, **FAST))
    return out


def found(photographs: PhotographFolder, k: int = 9, module: nn.Module | None = None) -> examples.LayerExamples:
    """Find examples of the layer `relu` from responses that are computed here."""
    network = load(module or planted.network())
    source = ExampleSource(network, photographs, planted.SIZE, torch.device("cpu"))
    images = photographs.read(range(len(photographs)), planted.SIZE)
    with torch.no_grad():
        values = network.module(network.normalise(images)).mean((2, 3)).numpy()
    coords = {"response": [f"relu:{c}" for c in range(values.shape[1])]}
    responses = xr.DataArray(values, dims=("photograph", "response"), coords=coords)
    return find_examples(source, responses, Silent(), k=k)


def test_crops_are_the_planted_places(run: Path) -> None:
    """The box of the best position is the pattern itself, which lies where no other window of the stride matches it."""
    table = pd.read_parquet(run / "examples.parquet").loc[[planted.DETECTOR]]
    table = table[table["kind"] == "best"]
    expected = planted.ranked_names()[:9]
    assert table["photograph"].tolist() == expected
    for row in table.itertuples():
        y, x = planted.PLACES[row.photograph]
        assert (row.top, row.bottom, row.left, row.right) == (y, y + planted.SIDE, x, x + planted.SIDE)
        assert (row.y, row.x) == ((y + 2) / 2, (x + 2) / 2) and row.crop == "receptive field"
    assert table["rank"].tolist() == list(range(1, 10)) and table["percentile"].isna().all()
    assert table["response"].is_monotonic_decreasing
    # one position fires, so that the mean over the grid is its share of the largest activation
    np.testing.assert_allclose(table["response"] * (planted.SIZE // 2) ** 2, table["activation"], rtol=1e-5)


def test_the_number_of_examples_is_that_asked_for(run: Path, folder: Path, tmp_path: Path) -> None:
    settings_ = options(out=tmp_path / "few", **FAST)
    with mock.patch.object(examples.sheets, "example_figure", wraps=examples.sheets.example_figure) as drawn:
        few = similarity("relu", planted.network(), photographs=folder, view=View(examples=3), **settings_)
    assert drawn.call_count and {len(row.tiles) for call in drawn.call_args_list for row in call.args[1]} <= {0, 6}
    rows = {row.name: row for call in drawn.call_args_list for row in call.args[1]}
    one = few.examples.loc[planted.DETECTOR]
    shown = rows[next(name for name in rows if name.split()[0] == planted.DETECTOR)]
    assert list(shown.columns) == [0, 1, 2, 3, 4, 5]
    assert list(shown.captions) == [format_number(value) for value in one["response"]]  # best, then percentiles
    table, whole = few.examples, pd.read_parquet(run / "examples.parquet")
    pd.testing.assert_frame_equal(table, whole[~(whole["rank"] > 3)])
    assert View.from_record(Run.read(few.folder).manifest.view).examples == 3
    assert "examples" not in Run.read(run).manifest.view
    for count in (0, 21, 2.5):
        with pytest.raises(FeatmapError, match=f"examples {count}: give a number of photographs from 1 to 20"):
            View(examples=count)


def test_maps_are_those_of_the_network_at_each_example(run: Path, folder: Path) -> None:
    table, maps = pd.read_parquet(run / "examples.parquet"), result.read_example_maps(run)
    photographs, network = open_photographs(folder), load(planted.network())
    images = photographs.read(range(len(photographs)), planted.SIZE)
    with torch.no_grad():
        outputs = network.module(network.normalise(images)).numpy()
    for k, (feature, name) in enumerate(zip(table.index, table["photograph"], strict=True)):
        expected = outputs[photographs.labels.index(name), int(feature.rpartition(":")[2])]
        np.testing.assert_allclose(maps["activation"].values[k], expected, rtol=1e-5, atol=1e-6)
        assert table["activation"].iloc[k] == maps["activation"].values[k].max()
    np.testing.assert_array_equal(maps["y"], np.arange(planted.SIZE // 2) * 2.0)
    np.testing.assert_allclose(maps["activation"].mean(("row", "column")), table["response"], rtol=1e-4, atol=1e-7)


def test_percentiles_are_those_of_all_responses(run: Path) -> None:
    table = pd.read_parquet(run / "examples.parquet")
    stored = xr.open_zarr(run / "arrays.zarr")["photograph_A"]
    for name in (planted.DETECTOR, "relu:1"):
        own = table.loc[[name]]
        values = stored.sel(response=name).values
        rows = own[own["kind"] == "percentile"]
        assert rows["percentile"].tolist() == [50, 90, 99] and rows["rank"].isna().all()
        np.testing.assert_array_equal(
            rows["response"], np.percentile(values, (50, 90, 99), method="inverted_cdf").astype(np.float64)
        )
        for row in rows.itertuples():
            assert float(stored.sel(response=name, photograph=row.photograph)) == row.response


def test_features_that_respond_to_all_photographs_alike_have_no_examples(run: Path) -> None:
    table = pd.read_parquet(run / "examples.parquet")
    assert planted.SILENT not in table.index and set(table.index) == {"relu:0", "relu:1", "relu:2"}
    assert (run / "examples.png").is_file() and (run / "example-crops.pdf").is_file()


def test_equal_bytes_and_equal_pixels_count_once(folder: Path, tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    shutil.copytree(folder, copies)
    best, second = planted.ranked_names()[:2]
    shutil.copy(copies / best, copies / f"!{best}")  # equal bytes, earlier in the order of names
    with Image.open(copies / second) as picture:
        picture.save(copies / f"z-{Path(second).stem}.bmp")  # other bytes, equal pixels
    before, after = found(open_photographs(folder)), found(open_photographs(copies))
    assert (before.duplicates, after.duplicates) == (0, 2)
    renamed = before.table["photograph"].replace({best: f"!{best}"})
    assert after.table["photograph"].tolist() == renamed.tolist()
    np.testing.assert_array_equal(after.table["response"], before.table["response"])


def test_equal_responses_to_other_pixels_count_each(tmp_path: Path) -> None:
    """Nothing fires for gray photographs of different shades: equal to the network, but not in their pixels."""
    for k in range(4):
        Image.new("RGB", (planted.SIZE,) * 2, (100 + k,) * 3).save(tmp_path / f"{k}.png")
    planted.save_photographs(tmp_path, count=2)
    examples_ = found(open_photographs(tmp_path))
    assert examples_.duplicates == 0 and len(examples_.table.loc[planted.DETECTOR]) == 6 + 3


def test_there_may_be_fewer_photographs_than_examples(folder: Path) -> None:
    three = open_photographs(folder, limit=3)
    table = found(three).table.loc[planted.DETECTOR]
    assert table["rank"].tolist()[:3] == [1, 2, 3] and table["percentile"].tolist()[3:] == [50, 90, 99]
    assert len(table) == 6 and set(table["photograph"]) <= set(three.labels)
    assert len(found(open_photographs(folder, limit=1)).table) == 0  # a single response is the same as all


def test_broken_photographs_are_skipped(folder: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    shutil.copytree(folder, pictures)
    (pictures / "00.png").write_bytes(b"no picture")
    table = found(open_photographs(pictures, skip_broken=True)).table.loc[[planted.DETECTOR]]
    assert table["photograph"].tolist()[:9] == [n for n in planted.ranked_names() if n != "00.png"][:9]


def test_a_feature_that_is_not_finite_has_no_examples(folder: Path) -> None:
    module = planted.network()
    with torch.no_grad():
        module[0].bias[1] = math.nan
    examples_ = found(open_photographs(folder), module=module)
    assert examples_.constant == ["relu:1", planted.SILENT] and "relu:1" not in examples_.table.index


def test_only_the_photographs_that_are_examples_are_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photographs, read = open_photographs(folder), list[int]()
    original = PhotographFolder.read

    def noted(self: PhotographFolder, indices: Any, size: Any, channels: int = 3) -> torch.Tensor:
        read.extend(indices)
        return original(self, indices, size, channels)

    monkeypatch.setattr(PhotographFolder, "read", noted)
    table = found(photographs, k=1).table
    again = read[len(photographs) :]
    assert again == sorted({photographs.labels.index(name) for name in table["photograph"]}) and len(again) < 12


def test_photographs_are_told_apart_by_features_that_are_not_shown(
    run: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A feature that is silent on all photographs responds to all alike, but their pixels differ."""
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    layer_map = result.read_maps(copied)["relu"]
    layer_map.shown = [planted.SILENT]
    source = ExampleSource(load(planted.network()), open_photographs(folder), planted.SIZE, torch.device("cpu"))
    again = list[int]()
    monkeypatch.setattr(PhotographFolder, "read", lambda self, indices, *_: again.extend(indices))
    write_examples(Run.read(copied), source, layer_map, {}, Silent())
    assert again == [] and pd.read_parquet(copied / "examples.parquet").empty


def test_places_say_what_their_box_is() -> None:
    grid = np.zeros((4, 4), dtype=np.float32)
    grid[3, 0] = 2
    field = ReceptiveField((6, 6), (4, 4), (-1, -1))
    size = (16, 16)
    corner = Place.find(grid, field, size)
    assert (corner.box, corner.y, corner.x, corner.activation) == ((11, 16, 0, 5), 3, 0, 2)
    assert corner.crop == "receptive field"
    for other, reason in (
        (WHOLE_IMAGE, "covered by the field"),
        (ReceptiveField((99, 99), (4, 4), (-50, -50)), "covered by the field"),
        (unknown_field(), "field not known"),
        (ReceptiveField((2, 2), (9, 9), (-40, -40)), "field in the padding"),
    ):
        place = Place.find(grid, other, size)
        assert (place.box, place.crop) == ((0, 16, 0, 16), f"whole image: {reason}")
        assert (place.y, place.x) == (3, 0)
    flat = Place.find(np.ones((4, 4)), field, size)
    assert math.isnan(flat.y) and flat.activation == 1 and flat.crop == "whole image: activation flat"
    assert math.isnan(Place.find(np.full((2, 2), math.nan), field, size).activation)
    assert Place.find(np.ones((1, 1)), WHOLE_IMAGE, size).y == 0  # a single position is the largest


def test_examples_are_part_of_the_result_and_of_the_verified_files(run: Path, folder: Path, tmp_path: Path) -> None:
    mapped = similarity("relu", planted.network(), photographs=folder, **options(out=tmp_path / "again", **FAST))
    assert mapped.examples.index.unique().tolist() == ["relu:0", "relu:1", "relu:2"]
    pd.testing.assert_frame_equal(mapped.examples, pd.read_parquet(run / "examples.parquet"))
    for name in ("examples.csv", "examples.nc", "examples.png", "examples.pdf", "example-crops.png"):
        assert (run / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    manifest = Run.read(run).manifest
    assert manifest.photograph_folder == str(folder.resolve())
    for name in ("examples.parquet", "examples.csv", "examples.nc", "examples.png", "example-crops.pdf"):
        assert name in manifest.files
    again = pd.read_csv(run / "examples.csv", index_col=0)
    pd.testing.assert_frame_equal(again, pd.read_parquet(run / "examples.parquet"), check_dtype=False, rtol=1e-6)
    assert integrity.inspect(run).faults == []
    (tmp_path / "again" / "examples.parquet").unlink()
    with pytest.raises(StoreError, match="has no dataset examples"):
        _ = mapped.examples


def test_examples_stay_where_the_photographs_are_not_at_hand(run: Path, tmp_path: Path) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    again = Run.read(copied)
    layer_map = result.read_maps(copied)["relu"]
    earlier, again.manifest.files = again.manifest.files, {}
    write_examples(again, None, layer_map, earlier, Silent())
    assert again.manifest.files.keys() == {name for name in earlier if name.startswith("example")}
    (copied / "examples.nc").write_bytes(b"damaged")
    again.manifest.files = {}
    write_examples(again, None, layer_map, earlier, Silent())
    assert again.manifest.files == {}


def test_photographs_alone_have_examples_of_each_layer(folder: Path, tmp_path: Path) -> None:
    maps = similarity(
        ["conv", "relu"],
        planted.network(),
        photographs=Photographs(folder, limit=5),
        view=View(stimuli="photographs"),
        **options(out=tmp_path / "run", **FAST),
    )
    for layer, one in maps.maps.items():
        assert {name.rpartition(":")[0] for name in one.examples.index} == {layer}
        assert {"examples.nc", "examples.pdf"} <= {p.name for p in (tmp_path / "run" / one.prefix).iterdir()}


def test_a_photograph_that_is_gone_stops_the_search(folder: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    shutil.copytree(folder, pictures)
    photographs = open_photographs(pictures)
    images = photographs.read(range(len(photographs)), planted.SIZE)
    network = load(planted.network())
    with torch.no_grad():
        values = network.module(network.normalise(images)).mean((2, 3)).numpy()
    responses = xr.DataArray(values, dims=("p", "response"), coords={"response": [f"relu:{c}" for c in range(4)]})
    (pictures / planted.ranked_names()[0]).unlink()
    source = ExampleSource(network, photographs, planted.SIZE, torch.device("cpu"))
    with pytest.raises(FeatmapError, match="cannot be read any more"):
        find_examples(source, responses, Silent())
