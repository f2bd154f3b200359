"""What a GPU does otherwise than a CPU, tried on a CPU: nothing waits in the loop, units land behind the next one."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import featmap
from featmap import channel, load
from featmap.network.hooks import Gate, GatedActivations
from featmap.optimize import descent
from featmap.optimize.batch import Batches
from featmap.optimize.parameterization import initial_image
from featmap.optimize.recipe import FAST, INTERACT, PIXELS, Recipe
from featmap.runs import device as devices
from featmap.runs import engine, lifecycle, progress
from featmap.runs.device import keep_memory
from featmap.runs.engine import Execution
from featmap.runs.progress import Silent
from tests.helpers import networks, tiny
from tests.helpers.settings import options

CPU = torch.device("cpu")
pytestmark = [
    pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning"),
    pytest.mark.usefixtures("one_thread"),
]


class InPlace(nn.Module):
    """A network whose ReLUs overwrite: one by its module, one by a method whose result nobody takes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu = nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=True)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.last = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.relu(self.first(x)))
        x.relu_()
        return self.last(x)


class Plain(InPlace):
    """The same without overwriting."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.second(torch.relu(self.first(x)))))


@pytest.mark.parametrize("start", [PIXELS, FAST, INTERACT], ids=["pixels", "fast", "interact"])
def test_a_gpu_that_does_not_ask_makes_the_same_images(start: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    network, recipe = load(networks.dead_network()), start.resolved(16, size=16, steps=12, rows=4)
    objectives = [channel("relu", 0), channel("relu", networks.ASLEEP), channel("relu", 1)]
    objectives.append(channel("relu", 0) + channel("relu", networks.ASLEEP))
    asked = Batches(network, CPU).descend(objectives, recipe, 0)
    monkeypatch.setattr(descent._Loop, "reads_device", property(lambda _: False, lambda *_: None), raising=False)
    unasked = Batches(network, CPU).descend(objectives, recipe, 0)
    assert asked.rescued.tolist()[1] and torch.equal(asked.rescued, unasked.rescued)
    for kind in ("images", "curve", "had_gradient"):  # rows of one term have no second curve
        assert torch.equal(*(torch.nan_to_num(getattr(found, kind), 7.0) for found in (asked, unasked))), kind


def test_a_row_that_dies_unexpectedly_is_rescued_by_another_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether dead rows were expected (and one pass made that is taken back twice) or not: the same bits."""
    network, recipe = load(networks.dead_network()), PIXELS.resolved(16, size=16, steps=80, rows=4)
    objectives = [channel("relu", 0), channel("relu", networks.ASLEEP), channel("relu", 1)]
    found, passes = [], []
    real = descent._Loop._losses

    def counted(self: descent._Loop, *given: Any) -> Any:
        passes[-1].append(given[-1] is not None)
        return real(self, *given)

    monkeypatch.setattr(descent._Loop, "_losses", counted)
    for expects in (None, True, False):
        if expects is not None:
            monkeypatch.setattr(
                descent._Loop, "any_dead", property(lambda _, e=expects: e, lambda *_: None), raising=False
            )
        passes.append([])
        found.append(Batches(network, CPU).descend(objectives, recipe, 0))
    for other in found[1:]:
        for name in ("images", "curve", "had_gradient", "rescued"):
            assert torch.equal(getattr(found[0], name), getattr(other, name)), name
    assert found[0].rescued.tolist()[:2] == [False, True]
    assert passes[1] == [True] * 20 + [False] * 60
    again = sum(passes[2])  # steps in which a row was dead
    assert passes[2][:2] == [False, True] and len(passes[2]) == 80 + again and 0 < again < 20
    assert passes[0][0] and sum(passes[0]) <= again + 1 and len(passes[0]) == 80


def test_relus_that_overwrite_are_rescued_like_those_that_do_not() -> None:
    weights = networks.randomised(InPlace(), 3).state_dict()
    weights["second.bias"] = weights["second.bias"] - torch.tensor([0.0, 9, 0, 0, 9, 0])
    recipe = PIXELS.resolved(16, size=16, steps=12, rows=6)
    found = []
    for made in (InPlace(), Plain()):
        made.load_state_dict(weights)
        found.append(Batches(load(made.eval()), CPU).descend([channel("last", k) for k in range(6)], recipe, 0))
    assert found[0].rescued.tolist() == [False, True, False, False, True, False]
    assert torch.equal(found[0].images, found[1].images) and torch.equal(found[0].curve, found[1].curve)


def test_with_the_gate_shut_the_gradient_is_the_plain_one_to_the_bit() -> None:
    module = networks.randomised(Plain(), 5)
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    (plain,) = torch.autograd.grad(module(images).square().sum(), images)
    with GatedActivations(gate := Gate()):
        loss = module(images).square().sum()
    (shut,) = torch.autograd.grad(loss, images, retain_graph=True)
    gate.open = True
    (opened,) = torch.autograd.grad(loss, images)
    assert torch.equal(plain, shut) and not torch.equal(plain, opened)


def test_gradients_of_nan_pass_a_gate_as_they_pass_a_relu() -> None:
    given = torch.tensor([float("nan"), -1.0, 0.0, 2.0], requires_grad=True)
    (plain,) = torch.autograd.grad(given.relu().sum(), given)
    with GatedActivations(Gate()):
        (shut,) = torch.autograd.grad(given.relu().sum(), given)
    assert plain.tolist() == shut.tolist() == [1, 0, 0, 1]


SATURATIONS = {
    "relu6": (nn.functional.relu6, 0.0, 6.0),
    "ReLU6": (nn.ReLU6(), 0.0, 6.0),
    "ReLU6 in place": (nn.ReLU6(inplace=True), 0.0, 6.0),
    "hardtanh": (partial(nn.functional.hardtanh, min_val=-2.0, max_val=3.0), -2.0, 3.0),
    "hardtanh by place": (lambda x: nn.functional.hardtanh(x, -2.0, 3.0, True), -2.0, 3.0),
    "Hardswish": (nn.Hardswish(), -3.0, math.inf),
    "Hardswish in place": (nn.Hardswish(inplace=True), -3.0, math.inf),
    "Hardsigmoid": (nn.Hardsigmoid(), -3.0, 3.0),
    "Hardsigmoid in place": (nn.Hardsigmoid(inplace=True), -3.0, 3.0),
}


@pytest.mark.parametrize("activation", SATURATIONS)
def test_activations_with_flat_ends_are_gated_like_relus(activation: str) -> None:
    function, low, high = SATURATIONS[activation]
    given = torch.linspace(-8.03, 8.01, 701).reshape(1, 1, 1, 701).requires_grad_(True)
    weights = torch.rand(given.shape, generator=torch.Generator().manual_seed(2)) - 0.5
    plain_output = function(given * 1)
    (plain,) = torch.autograd.grad((weights * plain_output).sum(), given)
    with GatedActivations(gate := Gate()):
        output = function(given * 1)
    (shut,) = torch.autograd.grad((weights * output).sum(), given, retain_graph=True)
    gate.open = True
    (opened,) = torch.autograd.grad((weights * output).sum(), given)
    assert torch.equal(output, plain_output) and torch.equal(plain, shut)
    flat = (given < low) | (given > high)
    assert flat.any() and not plain[flat].any()
    torch.testing.assert_close(opened[flat], 0.1 * weights[flat])
    assert torch.equal(opened[~flat], plain[~flat])


@pytest.mark.parametrize("activation", ["ReLU6", "ReLU6 in place", "Hardswish", "Hardsigmoid in place"])
def test_features_behind_a_flat_end_are_rescued_like_those_behind_a_relu(activation: str) -> None:
    function, low, _ = SATURATIONS[activation]
    recipe, found = PIXELS.resolved(16, size=16, steps=12, rows=6), []
    for act, end in ((function, low), (nn.ReLU(), 0.0)):
        module = networks.randomised(Plain(), 3)
        chain = nn.Sequential(module.first, nn.ReLU(), module.second, act, nn.AdaptiveAvgPool2d(1)).eval()
        with torch.no_grad():
            highest = chain[:3](initial_image(recipe, 0)[None]).amax((0, 2, 3))
            module.second.bias[[1, 4]] += end - 0.01 - highest[[1, 4]]
        found.append(Batches(load(chain), CPU).descend([channel("3", k) for k in range(6)], recipe, 0))
    assert found[0].rescued.tolist() == found[1].rescued.tolist() == [False, True, False, False, True, False]
    if low == 0:  # no response reaches 6, so that the function is a ReLU
        assert torch.equal(found[0].images, found[1].images) and torch.equal(found[0].curve, found[1].curve)


@pytest.mark.parametrize("activation", [name for name in SATURATIONS if "place" in name])
def test_an_activation_that_overwrites_a_view_is_gated_too(activation: str) -> None:
    function, found = SATURATIONS[activation][0], []
    for gated in (False, True):
        given = torch.linspace(-8.03, 8.01, 64).reshape(1, 8, 8).requires_grad_(True)
        with GatedActivations(Gate()) if gated else nullcontext():
            whole = given * 1
            function(whole.view(1, 8, 8, 1))
            function(whole[:, :4])
        found.append((whole.detach(), *torch.autograd.grad(whole.square().sum(), given)))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


class OnAView(Plain):
    """A ReLU that overwrites half of the channels of what it is given, whose result nobody takes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(torch.relu(self.first(x)))
        half = x[:, :3]
        half.relu_()
        return self.last(x)


class HalfPlain(OnAView):
    """The same without overwriting."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(torch.relu(self.first(x)))
        return self.last(torch.cat([torch.relu(x[:, :3]), x[:, 3:]], 1))


def test_a_relu_that_overwrites_a_view_is_seen_by_what_it_views() -> None:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    weights, found = networks.randomised(OnAView(), 3).state_dict(), []
    for made in (OnAView(), HalfPlain()):
        made.load_state_dict(weights)
        given = images.clone().requires_grad_(True)
        with GatedActivations(gate := Gate()):
            output = made(given)
        loss = output.square().sum()
        (shut,) = torch.autograd.grad(loss, given, retain_graph=True)
        gate.open = True
        (opened,) = torch.autograd.grad(loss, given)
        found.append((output.detach(), shut, opened))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert bool((found[0][0][:, :3] >= 0).all()) and not torch.equal(found[0][1], found[0][2])


class Waits(TorchDispatchMode):
    """Counts what makes a GPU's loop wait: numbers read back, tensors made of Python's, copies between devices."""

    NAMES = ("_local_scalar_dense", "nonzero", "lift_fresh", "_to_copy", "is_nonzero", "item")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ in self.NAMES
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("start", "changes"),
    [(PIXELS, {}), (PIXELS, {"parameterisation": "fourier", "clamp": "end"}), (PIXELS, {"jitter": 2})],
)
def test_the_loop_waits_for_nothing(start: Recipe, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    network, counts = load(networks.dead_network()), []
    objectives = [channel("relu", 0), channel("relu", networks.ASLEEP)]
    monkeypatch.setattr(descent._Loop, "reads_device", property(lambda _: False, lambda *_: None), raising=False)
    for steps in (4, 4, 24):
        recipe = start.resolved(16, size=16, steps=steps, rows=2, **changes)
        with Waits() as seen:
            Batches(network, CPU).descend(objectives, recipe, 0)
        counts.append(seen.count)
    assert counts[1] == counts[2]  # nothing a step; the first run of all may put constants on the device


# ---------------------------------------------------------------- landing behind


def array_bytes(out: Path) -> dict[str, bytes]:
    recipe, execution = Recipe.named("pixels", size=16, steps=4, rows=2), Execution("cpu", out=out)
    featmap.maximise([f"second:{k}" for k in range(5)], tiny.small(), **options(recipe=recipe, execution=execution))
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*")) if "/c/" in p.as_posix()}


@pytest.fixture
def behind(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Let this process land its units as it does beside a GPU; yields the threads that landed one."""
    threads: list[str] = []
    plain, land = engine.background_store, lifecycle.Run.land

    def noted(self: Any, *given: Any) -> None:
        threads.append(threading.current_thread().name)
        land(self, *given)

    monkeypatch.setattr(lifecycle, "background_store", lambda store, _: plain(store, True))
    monkeypatch.setattr(lifecycle.Run, "land", noted)
    yield threads


def test_units_that_land_behind_are_the_same_files(tmp_path: Path, behind: list[str]) -> None:
    late = array_bytes(tmp_path / "behind")
    assert behind and threading.main_thread().name not in behind
    with pytest.MonkeyPatch.context() as undone:
        undone.setattr(lifecycle, "background_store", engine.background_store)
        assert array_bytes(tmp_path / "plain") == late


def test_a_unit_that_cannot_land_ends_the_run_and_the_rest_is_kept(
    tmp_path: Path, behind: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    land, calls = lifecycle.Run.land, []

    def full(self: Any, name: str, parts: Any) -> None:
        calls.append(name)
        if len(calls) == 2:
            raise OSError(28, "No space left on device", "images")
        land(self, name, parts)

    monkeypatch.setattr(lifecycle.Run, "land", full)
    with pytest.raises(OSError, match="No space left"):
        array_bytes(tmp_path / "run")
    monkeypatch.setattr(lifecycle.Run, "land", land)
    resumed = array_bytes(tmp_path / "run")
    assert resumed == array_bytes(tmp_path / "other") and len(calls) <= 3


def test_whoever_asks_the_folder_waits_for_what_is_landing() -> None:
    class Slow:
        def __init__(self) -> None:
            self.landed: list[str] = []
            self.go = threading.Event()

        def land(self, name: str, parts: Any) -> None:
            assert self.go.wait(10)
            self.landed.append(name)

    store = Slow()
    with ThreadPoolExecutor(1) as thread:
        kept = engine.BackgroundStore(store, thread)  # type: ignore[arg-type]
        kept.land("one", {})
        assert not store.landed
        threading.Timer(0.05, store.go.set).start()
        assert kept.landed == ["one"]


# ---------------------------------------------------------------- progress and memory


def test_a_gpu_is_asked_for_its_activation_now_and_then() -> None:
    class Recorder(Silent):
        def __init__(self) -> None:
            self.values: list[float] = []

        def step(self, activation: float, count: int = 1) -> None:
            self.values.append(activation)

    on_cpu, on_gpu = Recorder(), Recorder()
    for watcher, device in ((on_cpu, CPU), (on_gpu, torch.device("cuda"))):
        tell = progress.step_callback(watcher, device)
        for step in range(5):
            tell(step, torch.full((2, 1), float(step)))
    assert on_cpu.values == [0, 1, 2, 3, 4]
    assert on_gpu.values == [0, 0, 0, 0, 0], "counted at every step, looked at once in a quarter of a second"


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_other_systems_have_no_mallopt(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        def __init__(self) -> None:
            self.calls: list[tuple[int, int]] = []

        def mallopt(self, what: int, value: int) -> int:
            self.calls.append((what, value))
            return 1

        def malloc_trim(self, pad: int) -> int:
            self.calls.append((0, pad))
            return 1

    library = Library()
    monkeypatch.setattr(devices.sys, "platform", platform)
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda _: library)
    with keep_memory():
        inside = list(library.calls)
    assert bool(inside) == (platform == "linux")
    assert (library.calls[-1:] == [(0, 0)]) == (platform == "linux")
