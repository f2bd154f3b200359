"""Photographs of a similarity run: responses stored in its folder, resumed, limited and refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import featmap
from featmap.cli import app
from featmap.errors import FeatmapError, StoreError
from featmap.mapping.photographs import Photographs
from featmap.mapping.run import similarity
from featmap.mapping.view import View
from featmap.network.loading import load
from featmap.optimize.photograph_folder import open_photographs
from featmap.runs import integrity
from featmap.runs.engine import Execution
from featmap.runs.progress import Silent
from featmap.runs.store import Run, open_arrays
from tests.helpers import tiny
from tests.helpers.settings import options

pytestmark = pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning")
FAST: dict[str, Any] = {"size": 16, "steps": 4, "rows": 4, "device": "cpu"}
COUNT = 150


def save_noise(folder: Path, count: int, seed: int = 0, classes: int = 3) -> Path:
    """Write small photographs into a folder for each class."""
    rng = np.random.default_rng(seed)
    for k in range(count):
        path = folder / f"class{k % classes}" / f"{k:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (18, 21, 3), dtype=np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_noise(tmp_path_factory.mktemp("pictures") / "noise", COUNT)


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "both"
    view = View(probe_layers="first")
    similarity("second", tiny.small(), photographs=folder, view=view, **options(out=out, **FAST))
    return out


def test_responses_are_those_of_probe_to_the_bit_in_all_recorded_layers(run: Path, folder: Path) -> None:
    stored = open_arrays(run)["photograph_A"]
    probed = featmap.probe(folder, ["second", "first"], tiny.small(), size=16)
    assert stored.dims == ("photograph", "response") and stored.dtype == np.float32
    assert stored["photograph"].values.tolist() == probed["image"].values.tolist()
    assert stored["response"].values.tolist() == probed["response"].values.tolist()
    np.testing.assert_array_equal(stored.values, probed.values)


def test_images_are_the_same_with_photographs_and_without(run: Path, tmp_path: Path) -> None:
    view = View(probe_layers="first")
    alone = similarity("second", tiny.small(), view=view, **options(out=tmp_path / "alone", **FAST))
    both = open_arrays(run)
    for name in open_arrays(alone.folder).data_vars:
        np.testing.assert_array_equal(both[name].values, open_arrays(alone.folder)[name].values)
    for name in ("profile.csv", "coactivation.csv", "clusters.json", "graph.graphml"):
        assert (run / name).read_bytes() == (alone.folder / name).read_bytes()
    assert "photographs" not in Run.read(alone.folder).identity
    assert not [name for name in Run.read(alone.folder).manifest.files if "photograph" in name]


def test_identity_and_manifest_name_the_photographs(run: Path, folder: Path) -> None:
    opened = open_photographs(folder)
    stored = Run.read(run)
    assert stored.identity["photographs"] == {"count": COUNT, "sha256": opened.digest, "limit": None, "size": 16}
    assert stored.manifest.photographs == {"folder": "noise", "count": COUNT, "sha256": opened.digest}
    assert integrity.inspect(run).faults == []


def test_a_damaged_chunk_of_responses_is_found_and_computed_again(run: Path, folder: Path) -> None:
    chunk = run / "arrays.zarr" / "photograph_A" / "1.0"
    before = chunk.read_bytes()
    chunk.write_bytes(b"x" + before[1:])
    assert [fault.path for fault in integrity.inspect(run).faults] == ["arrays.zarr/photograph_A/1.0"]
    view = View(probe_layers="first")
    similarity("second", tiny.small(), photographs=folder, view=view, **options(out=run, **FAST))
    assert chunk.read_bytes() == before and integrity.inspect(run).faults == []


def test_an_interrupted_run_continues_to_the_same_bits(run: Path, folder: Path, tmp_path: Path) -> None:
    class Interrupting(Silent):
        def stage(self, name: str, done: int, total: int) -> None:
            if name == "photographs" and done >= 64:
                raise KeyboardInterrupt

    settings = options(**FAST)
    settings["execution"] = Execution("cpu", out=tmp_path / "cut", watcher=Interrupting())
    view = View(probe_layers="first")
    with pytest.raises(KeyboardInterrupt):
        similarity("second", tiny.small(), photographs=folder, view=view, **settings)
    records = {path.name for path in (tmp_path / "cut" / "units").iterdir()}
    assert "photographs-000000-000064.json" in records and "photographs-000064-000128.json" not in records
    first = tiny.landed(tmp_path / "cut")
    similarity("second", tiny.small(), photographs=folder, view=view, **options(out=tmp_path / "cut", **FAST))
    assert first.items() <= tiny.landed(tmp_path / "cut").items()
    np.testing.assert_array_equal(open_arrays(tmp_path / "cut")["photograph_A"], open_arrays(run)["photograph_A"])
    assert {p.name for p in tiny.landed(tmp_path / "cut")} == {p.name for p in tiny.landed(run)}


def test_a_changed_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    pictures = save_noise(tmp_path / "pictures", 8)
    call = options(out=tmp_path / "run", **FAST)
    similarity("second", tiny.small(), photographs=pictures, **call)
    save_noise(pictures, 8, seed=1)
    with pytest.raises(StoreError, match=r"holds a run with other settings \(photographs\.sha256: ") as raised:
        similarity("second", tiny.small(), photographs=pictures, **call)
    assert "\n" not in str(raised.value)
    with pytest.raises(StoreError, match=r"photographs\.count: 8 there, nothing here"):
        similarity("second", tiny.small(), **call)


def test_a_limit_takes_evenly_spaced_names(folder: Path, tmp_path: Path) -> None:
    call = options(out=tmp_path / "run", **FAST)
    similarity("second", tiny.small(), photographs=Photographs(folder, limit=6), **call)
    labels = open_photographs(folder).labels
    names = [str(name) for name in open_arrays(tmp_path / "run")["photograph"].values]
    assert names == [labels[k * COUNT // 6] for k in range(6)]
    assert {name.partition("/")[0] for name in names} == {"class0", "class1", "class2"}
    assert Run.read(tmp_path / "run").manifest.photographs["left_out"] == {"beyond the limit": COUNT - 6}
    with pytest.raises(FeatmapError, match="limit 0: give the number of photographs to read, 1 or more"):
        similarity("second", tiny.small(), photographs=Photographs(folder, limit=0), **options(**FAST))


def test_broken_photographs_are_named_or_skipped(tmp_path: Path) -> None:
    pictures = save_noise(tmp_path / "pictures", 5)
    (pictures / "bad.png").write_bytes(b"no picture")
    call = options(out=tmp_path / "run", **FAST)
    with pytest.raises(FeatmapError, match=r"photographs .*: 1 cannot be read: 'bad\.png'"):
        similarity("second", tiny.small(), photographs=pictures, **call)
    assert not (tmp_path / "run").exists()
    similarity("second", tiny.small(), photographs=Photographs(pictures, skip_broken=True), **call)
    assert open_arrays(tmp_path / "run").sizes["photograph"] == 5


def test_photographs_are_read_again_in_another_process(folder: Path) -> None:
    opened = open_photographs(folder, limit=7)
    sent = pickle.loads(pickle.dumps(opened))
    assert (sent.labels, sent.digest, sent.record()) == (opened.labels, opened.digest, opened.record())
    np.testing.assert_array_equal(sent.read([0, 6], 12).numpy(), opened.read([0, 6], 12).numpy())


def test_photographs_as_only_stimuli_have_to_be_given() -> None:
    with pytest.raises(FeatmapError, match="stimuli photographs: no photographs are given"):
        similarity("second", tiny.small(), view=View(stimuli="photographs"))


def test_a_run_is_no_folder_of_photographs(run: Path) -> None:
    with pytest.raises(FeatmapError, match="is a run; give a folder or zip of photographs"):
        similarity("second", tiny.small(), photographs=run, **options(**FAST))


def test_options_of_photographs_need_their_folder(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--limit", "3"], ["--skip-broken"], ["--stimuli", "photographs"]):
        with pytest.raises(SystemExit) as end:
            app.main(["similarity", "--layer", "inception4a", *words])
        assert end.value.code == 2 and "go with --photographs FOLDER" in capsys.readouterr().err


def test_a_dry_run_counts_photographs(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = [
        "--model",
        "tests.helpers.tiny:small",
        "--mean",
        "0,0,0",
        "--std",
        "1,1,1",
        "--input-size",
        "16",
        "--layer",
        "second",
        "--steps",
        "4",
    ]
    with pytest.raises(SystemExit) as end:
        app.main(["similarity", *words, "--photographs", str(folder), "--out", str(tmp_path / "run"), "--dry-run"])
    printed = capsys.readouterr().out.splitlines()[-1]
    assert end.value.code == 0 and "11 images x 1 seed(s), 4 steps" in printed and f"{COUNT} photographs" in printed
    assert "GB of memory" in printed and "MB on disk" in printed and not (tmp_path / "run").exists()


def test_validation_of_a_run_with_photographs_keeps_them(run: Path, folder: Path) -> None:
    featmap.validate(run, photographs=folder, seeds=2, null_seeds=0, network=load(tiny.small()))
    assert integrity.inspect(run).faults == []
    assert "photographs" not in json.loads((run / "validation" / "seed-1" / "manifest.json").read_text())["identity"]
