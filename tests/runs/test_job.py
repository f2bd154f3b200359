"""Jobs: what their runs hold, how they resume, and on what their bits depend."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from featmap.errors import FeatmapError, ModelError, RecipeError
from featmap.mapping import run as mapping
from featmap.network.loading import load
from featmap.optimize.limits import seeds_of
from featmap.optimize.recipe import RECIPES
from featmap.runs import estimate, folder_layout, lifecycle, maximise, store
from featmap.runs.folder_layout import STATUSES
from featmap.runs.job import Job
from featmap.runs.progress import Silent
from featmap.runs.worker import Worker
from tests.helpers import tiny
from tests.helpers.settings import options, resolve

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SIZE, STEPS, ROWS = 16, 6, 4
CPU = torch.device("cpu")
FAST = {"size": SIZE, "steps": STEPS, "rows": ROWS}
ARRAYS = ("images", "null_images", "activation", "null_activation", "curve", "status")


def job_of(module: torch.nn.Module, layer: str, seeds: int = 1, **changes: Any) -> Job:
    network = load(module)
    recipe = resolve(network, CPU, "pixels", **(FAST | changes))
    return mapping.similarity_job(layer, network, recipe, seeds=seeds)


def computed(job: Job, folder: Path, watcher: Any = None) -> xr.Dataset:
    lifecycle.carry_out(job, lifecycle.open_run(job, folder), Worker, watcher)
    return store.open_arrays(folder).load()


def assert_same(one: xr.Dataset, two: xr.Dataset, names: tuple[str, ...] = ARRAYS) -> None:
    for name in names:
        a, b = one[name].values, two[name].values
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes(), name


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, xr.Dataset]:
    job = job_of(tiny.small(), "second", seeds=2)
    return job, computed(job, tmp_path_factory.mktemp("runs") / "run")


def responses_of(module: torch.nn.Module, image: np.ndarray) -> list[float]:
    """The mean over the grid of every feature of `second`, one image and one feature at a time, in float64."""
    x = torch.tensor(image, dtype=torch.float64)[None]
    with torch.no_grad():
        for child in module.double():
            x = child(x)
    return [float(x[0, c].sum()) / (x.shape[2] * x.shape[3]) for c in range(x.shape[1])]


def test_A_holds_the_plain_networks_responses_to_the_stored_images(finished: tuple[Job, xr.Dataset]) -> None:
    _, data = finished
    plain = tiny.small()
    assert data["A"].shape == (2, tiny.FEATURES, tiny.FEATURES)
    for s in range(2):
        null = responses_of(plain, data["null_images"][s].values)
        np.testing.assert_allclose(data["null"][s], null, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(data["null_activation"][s], null, rtol=1e-5, atol=1e-7)
        for i in range(tiny.FEATURES):
            again = responses_of(plain, data["images"][s, i].values)
            np.testing.assert_allclose(data["A"][s, i], again, rtol=1e-5, atol=1e-7)
            np.testing.assert_allclose(data["activation"][s, i], again[i], rtol=1e-5, atol=1e-7)


def test_images_and_responses_are_labelled_by_their_features(finished: tuple[Job, xr.Dataset]) -> None:
    job, data = finished
    names = [f"second:{c}" for c in range(tiny.FEATURES)]
    assert job.labels == job.columns == names
    assert list(data["image"].values) == list(data["response"].values) == names
    assert list(data["seed"].values) == [0, 1]
    assert list(data["channel"].values) == ["red", "green", "blue"]
    assert data["images"].dims == ("seed", "image", "channel", "y", "x")
    assert data["A"].dims == ("seed", "image", "response")


def test_the_descent_raises_every_feature_above_the_null_image(finished: tuple[Job, xr.Dataset]) -> None:
    _, data = finished
    assert (data["status"].values == folder_layout.LIVE).all()
    assert (data["activation"].values > data["null_activation"].values).all()
    assert (data["curve"].values[..., -1] > data["curve"].values[..., 0]).all()
    assert not np.array_equal(data["images"][0], data["images"][1])


def test_statuses_of_a_sick_layer() -> None:
    data = maximise.maximise([f"relu:{c}" for c in range(4)], tiny.sick(), **options(**FAST))
    statuses = [STATUSES[s] for s in data["status"].values[0]]
    assert statuses[tiny.LIVE] == "live"
    assert statuses[tiny.DEAD] == statuses[tiny.CONSTANT] == "dead"
    assert statuses[tiny.OVERFLOWING] == "not-finite"


def test_responses_that_are_zero_but_for_rounding_are_dead() -> None:
    """The mean over positions is 0 by construction, its gradient is rounding, and an offset of 10 adds to both."""
    first = nn.Conv2d(3, 4, 3, bias=True)
    with torch.no_grad():
        first.weight.copy_(torch.randn(first.weight.shape, generator=torch.Generator().manual_seed(3)))
        first.bias.fill_(10.0)
    parts = OrderedDict(first=first, instance=nn.InstanceNorm2d(4), mixed=nn.Conv2d(4, 4, 1, bias=False))
    net = nn.Sequential(OrderedDict(**parts, layer=nn.LayerNorm([SIZE - 2, SIZE - 2]))).eval()
    units = [f"{layer}:{c}" for layer in ("instance", "mixed", "layer") for c in range(4)]
    data = maximise.maximise([*units, "first:0", "instance:0:3:3"], net, **options(**FAST))
    found = dict(zip(data["image"].values, folder_layout.status_names(data["status"].values[0]), strict=True))
    assert found == dict.fromkeys(units, "dead") | {"first:0": "live", "instance:0:3:3": "live"}
    assert folder_layout.starts(data["status"].values[0])[:12] == [None] * 12
    with torch.no_grad():
        net.layer.bias.fill_(0.3)  # the mean is 0.3, whatever the image
    constant = maximise.maximise([f"layer:{c}" for c in range(4)], net, **options(**FAST))
    assert set(folder_layout.status_names(constant["status"].values[0])) == {"dead"}


@pytest.mark.parametrize("offset", [0.0, 1.0, -0.5])
def test_means_that_a_normalisation_fixes_are_dead(offset: float) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 5), norm=nn.InstanceNorm2d(4, affine=True)))
    nn.init.constant_(net.norm.bias, offset)
    units = [f"norm:{c}" for c in range(4)]
    data = maximise.maximise([*units, "conv:0"], net, **options(**FAST | {"steps": 40}))
    assert folder_layout.status_names(data["status"].values[0]) == [*["dead"] * 4, "live"]


class Cut(nn.Module):
    """Passes its input on without its gradient."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.way == "detach":
            return x.detach() + 1
        with torch.no_grad() if self.way == "no_grad" else torch.inference_mode():
            return x + 1


@pytest.mark.parametrize("way", ["detach", "no_grad", "inference_mode"])
def test_layers_without_a_gradient_are_refused_in_one_line(way: str) -> None:
    net = nn.Sequential(OrderedDict(first=nn.Conv2d(3, 4, 3), cut=Cut(way), last=nn.Conv2d(4, 3, 1))).eval()
    with pytest.raises(ModelError, match="no gradient flows from 'last' to the image") as raised:
        maximise.maximise(["last:1"], net, **options(**FAST))
    assert "\n" not in str(raised.value) and "choose a layer before it" in str(raised.value)
    assert maximise.maximise(["first:1"], net, **options(**FAST))["status"].values.tolist() == [[folder_layout.LIVE]]


def test_a_feature_that_is_not_finite_leaves_the_others_their_status(tmp_path: Path) -> None:
    data = computed(job_of(tiny.sick(), "relu"), tmp_path / "run")
    statuses = [STATUSES[s] for s in data["status"].values[0]]
    assert statuses == ["live", "dead", "dead", "not-finite"]


@pytest.mark.parametrize("recipe", ["pixels", "pixels-long", "interact"])
def test_a_features_bits_depend_on_nothing_but_itself(recipe: str, tmp_path: Path) -> None:
    module = tiny.small()
    everything = maximise.maximise(
        [f"second:{c}" for c in range(tiny.FEATURES)], module, **options(recipe=recipe, **FAST)
    )
    alone = maximise.maximise("second:5", module, **options(recipe=recipe, **FAST))
    chosen = [9, 2, 5, 0, 10, 7, 3]
    seven = maximise.maximise([f"second:{c}" for c in chosen], module, **options(recipe=recipe, **FAST))
    folder = maximise.maximise(
        [f"second:{c}" for c in chosen], module, **options(recipe=recipe, out=tmp_path / "run", **FAST)
    )
    assert_same(everything.isel(image=[5]), alone)
    assert_same(everything.isel(image=chosen), seven)
    assert_same(seven, folder)
    assert np.isfinite(everything["images"].values).all()


def test_sums_beside_a_feature_change_none_of_its_bits() -> None:
    module = tiny.small()
    alone = maximise.maximise("second:1", module, **options(**FAST))
    among = maximise.maximise(
        ["second:0 + 0.5 * first:2", "second:1", "first:3:1", "second:2:0:1"], module, **options(**FAST)
    )
    assert_same(among.isel(image=[1]), alone)


def test_another_seed_and_another_step_make_other_images() -> None:
    module = tiny.small()
    plain = maximise.maximise("second:1", module, **options(**FAST))["images"].values
    for changed in ({"seed": 1}, {"steps": STEPS + 1}):
        assert not np.array_equal(
            plain, maximise.maximise("second:1", module, **options(**(FAST | changed)))["images"].values
        )


class Stopper(Silent):
    """Presses Ctrl-C once some units have landed."""

    def __init__(self, after: int) -> None:
        self.left = after

    def landed(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


class Counter(Silent):
    def __init__(self) -> None:
        self.units, self.begun = 0, (0, 0)

    def begin(self, total: int, done: int) -> None:
        self.begun = total, done

    def landed(self) -> None:
        self.units += 1


def test_after_an_interruption_the_same_call_resumes(finished: tuple[Job, xr.Dataset], tmp_path: Path) -> None:
    job, data = finished
    with pytest.raises(KeyboardInterrupt):
        computed(job, tmp_path / "run", Stopper(after=4))
    rest = Counter()
    assert_same(computed(job, tmp_path / "run", rest), data, (*ARRAYS, "A", "null"))
    assert len(job.work_units()) == 8
    assert rest.units == 4
    assert rest.begun == (6 * STEPS, 2 * STEPS)


def test_a_second_call_computes_and_writes_nothing(finished: tuple[Job, xr.Dataset], tmp_path: Path) -> None:
    job, _ = finished
    run = lifecycle.open_run(job, tmp_path / "run")
    assert lifecycle.carry_out(job, run, Worker) == 8
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert lifecycle.carry_out(job, lifecycle.open_run(job, tmp_path / "run"), Worker) == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_of_a_run_with_a_damaged_chunk_only_one_unit_is_repeated(
    finished: tuple[Job, xr.Dataset], tmp_path: Path
) -> None:
    job, data = finished
    computed(job, tmp_path / "run")
    chunk = tmp_path / "run" / "arrays.zarr" / "images" / "1.2.0.0.0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    again = Counter()
    assert_same(computed(job, tmp_path / "run", again), data, (*ARRAYS, "A", "null"))
    assert again.units == 1


def test_everything_that_results_depend_on_changes_the_default_folder() -> None:
    one = job_of(tiny.small(), "second")
    folders = [one.default_folder()]
    assert job_of(tiny.small(), "second").default_folder() == folders[0]
    folders += [
        job_of(tiny.other(), "second").default_folder(),
        job_of(tiny.small(), "first").default_folder(),
        job_of(tiny.small(), "second", seeds=2).default_folder(),
        job_of(tiny.small(), "second", rows=5).default_folder(),
        job_of(tiny.small(), "second", metric="l2", C=7.0).default_folder(),
        replace(one, start=torch.zeros(3, SIZE, SIZE)).default_folder(),
    ]
    assert len(set(folders)) == len(folders)


def test_a_run_folder_refuses_other_weights(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        computed(job_of(tiny.small(), "second"), tmp_path / "run", Stopper(after=1))
    with pytest.raises(FeatmapError, match=r"model\.sha256"):
        lifecycle.open_run(job_of(tiny.other(), "second"), tmp_path / "run")


def test_the_model_comes_back_as_it_was(tmp_path: Path) -> None:
    module = tiny.small().train()
    module.first.requires_grad_(False)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        computed(job_of(module, "second"), tmp_path / "a", Stopper(after=2))
    computed(job_of(module, "second"), tmp_path / "b")
    assert module.training
    assert module.second.training
    assert [p.requires_grad for p in module.parameters()] == [False, False, True]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("seeds", [range(-1, 0), [2**31], 0, -2, [], [3, 3]])
def test_seeds_out_of_range_are_refused(seeds: Any) -> None:
    with pytest.raises(RecipeError, match="give 1 to 10,000 different seeds, each from 0 to 2147483647"):
        seeds_of(seeds, RECIPES["pixels"])


def test_seeds_count_up_from_the_first() -> None:
    assert seeds_of(range(7, 10), RECIPES["pixels"]) == (7, 8, 9)
    assert seeds_of(1, RECIPES["article"]) == (999,)
    assert seeds_of(2, RECIPES["article"]) == (999, 1000)


def test_an_estimate_writes_nothing_and_is_positive(tmp_path: Path) -> None:
    result = estimate.estimate(job_of(tiny.small(), "second"), tmp_path / "nowhere")
    assert result.seconds > 0
    assert result.memory > 1e6
    assert result.free > result.disk > 0
    assert list(tmp_path.iterdir()) == []


FORKER = """
import json, os, signal, sys
from featmap.cli import app as cli
from featmap.mapping import run, tables
from featmap.plotting import heatmaps
from featmap.runs import maximise as api
from featmap.network.loading import load
from tests.helpers.settings import options
print("ready", flush=True)
for line in sys.stdin:
    call = json.loads(line)
    child = os.fork()
    if child == 0:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell has it ignored
        log = os.open(call["log"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if call["arguments"]:
            cli.main(call["arguments"])
        else:
            settings = options(out=call["out"], **call["settings"])
            api.maximise(call["units"], load("tests.helpers.tiny:wide"), **settings)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Forker:
    """Runs command lines in processes of their own, forked from one that has imported torch already."""

    def __init__(self) -> None:
        path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORKER],
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONPATH": path.rstrip(os.pathsep), "OMP_WAIT_POLICY": "PASSIVE"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.line() == "ready"

    def line(self, seconds: float = 180) -> str:
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], seconds)[0], f"no answer within {seconds} s"
        return self.process.stdout.readline().strip()

    def start(self, arguments: list[str], log: Path, **call: Any) -> int:
        """Run a command line, or without one `maximise` with the keywords of `call`; return the process id."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"arguments": arguments, "log": str(log)} | call) + "\n")
        self.process.stdin.flush()
        return int(self.line())

    def end(self) -> int:
        return int(self.line())


@pytest.fixture(scope="module")
def forker() -> Iterator[Forker]:
    started = Forker()
    yield started
    assert started.process.stdin is not None
    assert started.process.stdout is not None
    started.process.stdin.close()
    started.process.wait(30)
    started.process.stdout.close()


def command(folder: Path, rows: int = 2) -> list[str]:
    text = (
        f"optimize --layer second --model tests.helpers.tiny:wide --size {SIZE} --steps 40 --rows {rows} --device cpu"
    )
    return [*text.split(), "--out", str(folder)]


def records(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in (folder / "units").glob("[!.]*.json")}


def wait_for_records(folder: Path, count: int, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while len(records(folder)) < count:
        assert time.monotonic() < until, f"{len(records(folder))} units after {seconds} s"
        time.sleep(0.005)


@pytest.mark.slow
def test_a_killed_run_is_resumed_bit_for_bit(forker: Forker, tmp_path: Path) -> None:
    units, settings = [f"second:{c}" for c in range(24)], {"size": SIZE, "steps": 20, "rows": 2}
    network = load("tests.helpers.tiny:wide")
    expected = maximise.maximise(units, network, **options(**settings))
    chance = random.Random(5)
    for k in range(3):
        folder = tmp_path / f"killed-{k}"
        child = forker.start([], tmp_path / "log", units=units, settings=settings, out=str(folder))
        wait_for_records(folder, chance.randint(1, 6))
        time.sleep(chance.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        assert forker.end() == -signal.SIGKILL, (tmp_path / "log").read_text()
        before = records(folder)
        assert 1 <= len(before) < 13
        assert_same(maximise.maximise(units, network, **options(out=folder, **settings)).load(), expected)
        after = records(folder)
        assert len(after) == 13
        assert {name: after[name] for name in before} == before
        assert json.loads((folder / "manifest.json").read_text())["status"] == "complete"


@pytest.mark.slow
def test_a_run_killed_while_its_folder_is_prepared_is_resumed(forker: Forker, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    child = forker.start(command(folder), tmp_path / "log")
    until = time.monotonic() + 60
    while not (folder / "arrays.zarr").exists():
        assert time.monotonic() < until
    os.kill(child, signal.SIGKILL)
    assert forker.end() == -signal.SIGKILL
    network = load("tests.helpers.tiny:wide")
    job = maximise.maximise_job(
        [f"second:{c}" for c in range(24)], network, resolve(network, CPU, "pixels", SIZE, 40, rows=2)
    )
    with lifecycle.open_run(job, folder).locked() as run:
        assert run.manifest.status == "running"
        assert run.manifest.layout and run.are_intact(run.manifest.layout)


@pytest.mark.slow
def test_ctrl_c_ends_in_one_line_and_status_130(forker: Forker, tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    child = forker.start(command(folder), tmp_path / "log")
    wait_for_records(folder, 3)
    os.kill(child, signal.SIGINT)
    assert forker.end() == 130
    printed = (tmp_path / "log").read_text().splitlines()
    assert printed[0].startswith("network tests.helpers.tiny:wide")
    assert printed[1:] == ["featmap: interrupted; finished work is stored, and the same command resumes it"]
    assert not [p for p in folder.rglob("*") if ".part" in p.name]
