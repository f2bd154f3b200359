"""Photographs of a similarity run: responses stored in its folder, resumed, limited and refused."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featmap
from featmap.cli import app
from featmap.errors import FeatmapError, StoreError
from featmap.mapping.photographs import PhotographUnit, PhotographWorker
from featmap.mapping.run import add_photographs, similarity, similarity_job
from featmap.mapping.view import View
from featmap.network.loading import load
from featmap.optimize.photograph_folder import AnyPhotographs, Photographs, open_photographs
from featmap.runs import integrity, lifecycle
from featmap.runs.progress import Silent
from featmap.runs.store import Run, open_arrays
from tests.helpers import tiny
from tests.helpers.pictures import save_noise, zip_noise
from tests.helpers.settings import options, resolve

pytestmark = [
    pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning"),
    pytest.mark.usefixtures("cheap_runs"),
]
FAST: dict[str, Any] = {"size": 16, "steps": 4, "rows": 4, "device": "cpu"}
VIEW = View(probe_layers="first")
COUNT = 150


def fill(photographs: AnyPhotographs, out: Path, view: View = VIEW, watcher: Silent | None = None) -> Run:
    """Store the arrays of a run, without its tables and figures."""
    watcher, network = watcher or Silent(), load(tiny.small())
    recipe = resolve(network, size=16, steps=4, rows=4)
    job = add_photographs(similarity_job("second", network, recipe, view=view), photographs, watcher)
    run = lifecycle.open_run(job, out)
    with run.locked():
        lifecycle.carry_out(job, run, PhotographWorker, watcher)
        lifecycle.complete(job, run)
    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_noise(tmp_path_factory.mktemp("pictures") / "noise", COUNT)


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "both"
    similarity("second", tiny.small(), photographs=folder, view=VIEW, **options(out=out, **FAST))
    return out


def test_responses_are_those_of_probe_to_the_bit_in_all_recorded_layers(run: Path, folder: Path) -> None:
    stored = open_arrays(run)["photograph_A"]
    probed = featmap.probe(folder, ["second", "first"], tiny.small(), size=16)
    assert stored.dims == ("photograph", "response") and stored.dtype == np.float32
    assert stored["photograph"].values.tolist() == probed["image"].values.tolist()
    assert stored["response"].values.tolist() == probed["response"].values.tolist()
    np.testing.assert_array_equal(stored.values, probed.values)


def test_the_map_of_images_is_the_same_with_photographs_and_without(run: Path, tmp_path: Path) -> None:
    alone = similarity("second", tiny.small(), view=VIEW, **options(out=tmp_path / "alone", **FAST))
    both = open_arrays(run)
    for name in open_arrays(alone.folder).data_vars:
        np.testing.assert_array_equal(both[name].values, open_arrays(alone.folder)[name].values)
    manifest = Run.read(alone.folder).manifest
    for name in manifest.files:
        assert (run / name).read_bytes() == (alone.folder / name).read_bytes()
    assert "photographs" not in manifest.identity and not [name for name in manifest.files if "photograph" in name]


def test_identity_and_manifest_name_the_photographs(run: Path, folder: Path) -> None:
    opened = open_photographs(folder)
    stored = Run.read(run)
    assert stored.identity["photographs"] == {"count": COUNT, "sha256": opened.digest, "limit": None, "size": 16}
    assert stored.manifest.photographs == {"folder": "noise", "count": COUNT, "sha256": opened.digest}
    assert integrity.inspect(run).faults == []


def test_a_damaged_chunk_of_responses_is_found_and_computed_again(folder: Path, tmp_path: Path) -> None:
    run = fill(folder, tmp_path / "run").folder
    chunk = run / "arrays.zarr" / "photograph_A" / "1.0"
    before = chunk.read_bytes()
    chunk.write_bytes(b"x" + before[1:])
    assert [fault.path for fault in integrity.inspect(run).faults] == ["arrays.zarr/photograph_A/1.0"]
    fill(folder, run)
    assert chunk.read_bytes() == before and integrity.inspect(run).faults == []


def test_an_interrupted_run_continues_to_the_same_bits(run: Path, folder: Path, tmp_path: Path) -> None:
    class Interrupting(Silent):
        def stage(self, name: str, done: int, total: int) -> None:
            assert total == COUNT
            if name == "photographs":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(folder, tmp_path / "cut", watcher=Interrupting())
    first = tiny.landed(tmp_path / "cut")
    assert {"photographs-000000-000064.json"} == {path.name for path in first if path.name.startswith("photo")}
    fill(folder, tmp_path / "cut")
    assert first.items() <= tiny.landed(tmp_path / "cut").items()
    np.testing.assert_array_equal(open_arrays(tmp_path / "cut")["photograph_A"], open_arrays(run)["photograph_A"])
    assert {p.name for p in tiny.landed(tmp_path / "cut")} == {p.name for p in tiny.landed(run)}


def test_a_changed_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    pictures = save_noise(tmp_path / "pictures", 8)
    fill(pictures, tmp_path / "run")
    save_noise(pictures, 8, seed=1)
    with pytest.raises(StoreError, match=r"holds a run with other settings \(photographs\.sha256: ") as raised:
        fill(pictures, tmp_path / "run")
    assert "\n" not in str(raised.value)
    with pytest.raises(StoreError, match=r"photographs\.count: 8 there, nothing here"):
        similarity("second", tiny.small(), view=VIEW, **options(out=tmp_path / "run", **FAST))


def test_a_limit_takes_evenly_spaced_names_of_all_classes(folder: Path, tmp_path: Path) -> None:
    run = fill(Photographs(folder, limit=6), tmp_path / "run")
    labels = open_photographs(folder).labels
    names = [str(name) for name in open_arrays(run.folder)["photograph"].values]
    assert names == [labels[k * COUNT // 6] for k in range(6)]
    assert {name.partition("/")[0] for name in names} == {"class0", "class1", "class2"}
    assert run.identity["photographs"]["limit"] == 6
    with pytest.raises(FeatmapError, match="limit 0: give the number of photographs to read, 1 or more"):
        fill(Photographs(folder, limit=0), tmp_path / "none")


def test_a_limit_above_the_number_of_photographs_makes_no_other_run(folder: Path) -> None:
    network = load(tiny.small())
    job = similarity_job("second", network, resolve(network, size=16, steps=4))
    limits = (None, COUNT, COUNT + 5, COUNT - 5)
    whole, *equal, fewer = (add_photographs(job, Photographs(folder, limit), Silent()).identity() for limit in limits)
    assert equal == [whole, whole] and fewer["photographs"]["limit"] == COUNT - 5


def test_the_disk_that_is_needed_counts_the_maps_of_examples(folder: Path) -> None:
    network, opened = load(tiny.small()), open_photographs(folder, limit=8)
    recipe = resolve(network, size=16, steps=4)
    jobs = [similarity_job("first", network, recipe, view=View(shown)) for shown in ("0", "0-3")]
    one, four = (add_photographs(job, opened, Silent()).disk_needed for job in jobs)
    more = add_photographs(jobs[0], opened, Silent(), 20)
    layer = network.layer("first", 16)
    assert four - one == 3 * (9 + 3) * layer.height * layer.width * 4
    assert more.disk_needed - one == (20 - 9) * layer.height * layer.width * 4
    assert more.identity() == add_photographs(jobs[0], opened, Silent()).identity()


def test_the_manifest_counts_what_a_limit_leaves_out(folder: Path, tmp_path: Path) -> None:
    settings = options(out=tmp_path / "run", **FAST)
    similarity("first", tiny.small(), view=View("0-3", "photographs"), photographs=Photographs(folder, 6), **settings)
    assert Run.read(tmp_path / "run").manifest.photographs["left_out"] == {"beyond the limit": COUNT - 6}


def test_broken_photographs_are_named_or_skipped(tmp_path: Path) -> None:
    pictures = save_noise(tmp_path / "pictures", 5)
    (pictures / "bad.png").write_bytes(b"no picture")
    with pytest.raises(FeatmapError, match=r"photographs .*: 1 cannot be read: 'bad\.png'"):
        fill(pictures, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    run = fill(Photographs(pictures, skip_broken=True), tmp_path / "run")
    assert open_arrays(run.folder).sizes["photograph"] == 5


def test_photographs_are_read_again_in_another_process(folder: Path) -> None:
    opened = open_photographs(folder, limit=7)
    sent = pickle.loads(pickle.dumps(opened))
    assert (sent.labels, sent.digest, sent.record()) == (opened.labels, opened.digest, opened.record())
    np.testing.assert_array_equal(sent.read([0, 6], 12).numpy(), opened.read([0, 6], 12).numpy())


def test_a_job_of_photographs_can_be_sent_to_workers(folder: Path) -> None:
    network = load(tiny.small())
    job = similarity_job("second", network, resolve(network, size=16, steps=4))
    job = add_photographs(job, open_photographs(folder, limit=20), Silent())
    unit, sent = PhotographUnit(0, 20), pickle.loads(pickle.dumps(job))
    assert [u.name for u in job.work_units()][-1] == unit.name and job.cost(unit) > 0
    np.testing.assert_array_equal(PhotographWorker(sent).measure(unit), PhotographWorker(job).measure(unit))


def test_photographs_as_only_stimuli_have_to_be_given() -> None:
    with pytest.raises(FeatmapError, match="stimuli photographs: no photographs are given"):
        similarity("second", tiny.small(), view=View(stimuli="photographs"))


@pytest.mark.parametrize(("more", "named"), [({"seeds": 2}, "seeds"), ({"start": np.zeros((3, 16, 16))}, "start")])
def test_what_needs_images_does_not_go_with_photographs_alone(more: dict[str, Any], named: str, folder: Path) -> None:
    with pytest.raises(FeatmapError, match=f"{named}: photographs alone make no images"):
        similarity("second", tiny.small(), view=View(stimuli="photographs"), photographs=folder, **more)


def test_a_run_is_no_folder_of_photographs(run: Path) -> None:
    with pytest.raises(FeatmapError, match="is a run; give a folder or zip of photographs"):
        similarity("second", tiny.small(), photographs=run, **options(**FAST))


def test_options_of_photographs_need_their_folder(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--limit", "3"], ["--skip-broken"], ["--stimuli", "photographs"]):
        with pytest.raises(SystemExit) as end:
            app.main(["similarity", "--layer", "inception4a", *words])
        assert end.value.code == 2 and "go with --photographs FOLDER" in capsys.readouterr().err


def test_photographs_are_not_embedded_where_there_is_no_atlas(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options_ = ["--photographs", str(folder), "--embed-photographs", "--no-atlas"]
    with pytest.raises(SystemExit) as end:
        app.main(["similarity", "--layer", "inception4a", *options_])
    error = capsys.readouterr().err
    assert end.value.code == 2 and "--no-atlas" in error and "--embed-photographs" in error


def test_a_file_that_is_no_zip_is_refused_under_the_name_of_its_setting(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.png")
    with pytest.raises(FeatmapError, match=r"^photographs .*list\.txt': that is a file, and no zip"):
        fill(tmp_path / "list.txt", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_dry_run_counts_photographs(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["--model", "tests.helpers.tiny:small", "--mean", "0,0,0", "--std", "1,1,1", "--input-size", "16"]
    words += ["--layer", "second", "--steps", "4", "--photographs", str(folder), "--out", str(tmp_path / "run")]
    for more, images in (([], "11 images x 1 seed(s), 4 steps"), (["--stimuli", "photographs"], "")):
        with pytest.raises(SystemExit) as end:
            app.main(["similarity", *words, *more, "--dry-run"])
        printed = capsys.readouterr().out.splitlines()[-1]
        assert end.value.code == 0 and images in printed and f"{COUNT} photographs: about" in printed
        assert ("seed" in printed) == bool(images)
        assert "GB of memory" in printed and "MB on disk" in printed and not (tmp_path / "run").exists()


def test_a_validation_keeps_the_photographs_of_the_run(run: Path, folder: Path) -> None:
    featmap.validate(run, photographs=folder, seeds=2, null_seeds=0, network=load(tiny.small()))
    assert integrity.inspect(run).faults == []
    assert "photographs" not in json.loads((run / "validation" / "seed-1" / "manifest.json").read_text())["identity"]


MEMORY_LIMIT = 320 * 2**20
"""Bytes by which 20,000 photographs and 1,000 features may enlarge a process; A in float64 alone is 160 MB, and the
formula for all at once holds four arrays of that size."""
GROWTH = """
import resource, sys
from pathlib import Path
import torch
from torch import nn
from featmap.mapping.layer_arrays import correlate_photographs, photograph_responses
from featmap.mapping.photographs import PhotographWorker
from featmap.optimize.photograph_folder import Photographs
from featmap.mapping.run import add_photographs, similarity_job
from featmap.mapping.view import View
from featmap.network.loading import load
from featmap.optimize.recipe import Recipe
from featmap.runs import lifecycle
from featmap.runs.progress import Silent
from featmap.runs.store import open_arrays

torch.manual_seed(0)
network = load(nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(3, 1000, 1)).eval())

def grown(limit, out):
    job = similarity_job("1", network, Recipe.named("pixels", 16, 1).resolved(16), view=View(stimuli="photographs"))
    job = add_photographs(job, Photographs(sys.argv[1], limit), Silent())
    run = lifecycle.open_run(job, Path(sys.argv[2]) / out)
    with run.locked():
        lifecycle.carry_out(job, run, PhotographWorker, Silent())
        lifecycle.complete(job, run)
    found, S = correlate_photographs(photograph_responses(open_arrays(run.folder), "1"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, found.images, S.shape

before = grown(64, "few")[0]
after, images, shape = grown(None, "all")
print(after - before, images, *shape)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the largest size of a process is read in Linux's unit")
def test_thousands_of_photographs_need_little_memory(tmp_path: Path) -> None:
    source = zip_noise(tmp_path / "many.zip", 20_000, 16)
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, str(source), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    growth, images, *shape = map(int, done.stdout.split())
    assert (images, shape) == (20_000, [1000, 1000])
    assert growth < MEMORY_LIMIT, f"{growth / 2**20:.0f} MiB"
