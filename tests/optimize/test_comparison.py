"""The network that descends is the one that was given: compared with it, and left as it is where a copy differs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import featmap
from featmap import Execution
from featmap.errors import ModelError
from featmap.network.loading import load
from featmap.network.model import Network
from featmap.optimize import comparison
from featmap.optimize.batch import Batches
from featmap.optimize.comparison import FOLDED, UNTOUCHED, check_repeatable, choose_preparation, relative_difference
from featmap.optimize.objective import Objective
from featmap.optimize.prepare import prepare
from featmap.optimize.recipe import RECIPES
from featmap.runs import folder_layout
from tests.helpers import kinds, networks

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
SIZE = 16


def images(count: int = 3, size: int = SIZE) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(2))


def measured(net: nn.Module, layer: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """A layer's output and the gradient of a weighted sum of it, by a hook and torch's autograd alone."""
    x, outputs = x.clone().requires_grad_(True), []
    handle = net.get_submodule(layer).register_forward_hook(lambda _, __, out: outputs.append(out))
    net(x)
    handle.remove()
    weights = torch.randn(outputs[-1].shape, generator=torch.Generator().manual_seed(3))
    (gradient,) = torch.autograd.grad((outputs[-1] * weights).sum(), x)
    return outputs[-1].detach(), gradient


def assert_copy_is_the_network(network: Network, layer: str, tolerance: float = 1e-3) -> nn.Module:
    """Hold the module that descends to the network, in outputs and gradient."""
    twin = Batches(network, CPU).prepared_module((layer,), SIZE)
    expected, found = measured(network.module, layer, images()), measured(twin, layer, images())
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).norm() / other.norm()) < tolerance
    return twin


@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (kinds.norm_with_activation, "3"),
        (kinds.norm_and_activation, "3"),
        (kinds.aliased, "head"),
        (kinds.aliased, "norm"),
        (kinds.aliased, "backbone.1"),
        (kinds.reusing, "head"),
        (kinds.checkpointed, "last"),
        (kinds.plain, "3"),
    ],
)
def test_what_descends_computes_what_the_network_computes(make: object, layer: str) -> None:
    net = make()  # type: ignore[operator]
    twin = assert_copy_is_the_network(load(net), layer)
    assert twin is not net


def test_a_norm_with_its_activation_is_not_folded() -> None:
    network = load(kinds.norm_with_activation())
    assert network.trace(SIZE).folds == []
    twin = Batches(network, CPU).prepared_module(("3",), SIZE)
    assert [type(m) for m in twin] == [nn.Conv2d, kinds.ActivatedNorm] * 2
    assert load(kinds.norm_and_activation()).trace(SIZE).folds == [("0", "1.0"), ("2", "3.0")]


def test_activation_inside_the_norm_or_after_it_gives_the_same_bits() -> None:
    recipe = RECIPES["pixels"].resolved(SIZE, size=SIZE, steps=6, rows=4)
    curves = [
        Batches(load(make()), CPU).descend([Objective.parse(f"3:{c}") for c in range(4)], recipe, 0).curve[:, 0]
        for make in (kinds.norm_with_activation, kinds.norm_and_activation)
    ]
    # before the first step both see the same noise: only the folding of the plain norms rounds differently
    torch.testing.assert_close(*curves, rtol=1e-5, atol=1e-7)


def test_folding_acts_under_every_name_of_a_module() -> None:
    net = kinds.aliased()
    folds = load(net).trace(SIZE).folds
    assert folds == [("backbone.0", "backbone.1")]
    twin = prepare(net, folds, ["head"], CPU)
    assert twin.norm is twin.backbone[1] is twin.parts[1] and type(twin.norm) is nn.Identity
    torch.testing.assert_close(twin(images()), net(images()), rtol=1e-4, atol=1e-5)
    kept = prepare(net, folds, ["conv"], CPU)  # its own output is asked for, by its second name
    assert type(kept.norm) is nn.BatchNorm2d


def test_a_copy_that_differs_does_not_descend() -> None:
    network = load(kinds.reusing())
    choice = Batches(network, CPU).preparation(("head",), SIZE)
    assert choice.network == UNTOUCHED and not choice.in_place
    assert choice.output > 0.01 or choice.gradient > 0.01
    twin = prepare(network.module, network.trace(SIZE).folds, ["head"], CPU)
    expected, found = measured(network.module, "head", images())[0], measured(twin, "head", images())[0]
    assert float((found - expected).norm() / expected.norm()) > 0.01
    assert choice.to_json()["network"] == "untouched" and "head (outputs by" in str(choice)


def test_a_preparation_that_is_right_is_kept_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    network, recipe = load(networks.small_inception()), RECIPES["pixels"].resolved(SIZE, size=SIZE, steps=5, rows=2)
    objectives = [Objective.parse("narrow:0"), Objective.parse("fc:1")]
    found = Batches(network, CPU).descend(objectives, recipe, 0).images
    choices = list(network.preparations.values())
    assert [c.network for c in choices] == [FOLDED, FOLDED] and max(c.output for c in choices) < 1e-5
    again = load(networks.small_inception())
    monkeypatch.setattr(
        "featmap.optimize.batch.choose_preparation",
        lambda _, layers, *__: comparison.Preparation(tuple(layers), FOLDED, 0.0, 0.0),
    )
    assert torch.equal(Batches(again, CPU).descend(objectives, recipe, 0).images, found)


class Closure(nn.Module):
    """A module that reaches its parts through a function that a copy does not copy."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 1)
        self.last = lambda x: self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(x).relu())


def test_a_module_that_cannot_be_copied_descends_itself() -> None:
    net = networks.randomised(Closure(), seed=3).eval()
    network = load(net)
    batches = Batches(network, CPU)
    assert batches.prepared_module(("head",), SIZE) is net
    assert network.preparations[("head",), "cpu", torch.channels_last].in_place
    state = {k: v.clone() for k, v in net.state_dict().items()}
    recipe = RECIPES["pixels"].resolved(SIZE, size=SIZE, steps=4, rows=2)
    images = batches.descend([Objective.parse("head:0")], recipe, 0).images
    assert images.isfinite().all() and all(torch.equal(net.state_dict()[k], v) for k, v in state.items())
    with pytest.raises(ModelError, match="bfloat16"):
        batches.prepared_module(("head",), SIZE, "bfloat16")


def test_rounding_that_flips_relus_is_told_from_another_network(monkeypatch: pytest.MonkeyPatch) -> None:
    network = load(networks.small_inception())
    monkeypatch.setattr(comparison, "OUTPUT_TOLERANCE", -1.0)  # nothing agrees in float32
    assert choose_preparation(network, ["narrow"], SIZE, CPU).network == FOLDED
    assert choose_preparation(load(kinds.reusing()), ["head"], SIZE, CPU).network == UNTOUCHED


def test_a_network_that_computes_in_bfloat16_is_not_judged_in_float64() -> None:
    choice = choose_preparation(load(kinds.autocast()), ["body.3"], SIZE, CPU)
    assert choice.network == UNTOUCHED and choice.output > comparison.OUTPUT_TOLERANCE


def test_weights_that_are_no_numbers_do_not_count_as_a_difference() -> None:
    network = load(networks.dead_network())
    choice = choose_preparation(network, ["relu"], SIZE, CPU)
    assert choice.network == FOLDED and choice.output < 1e-6


@pytest.mark.parametrize(
    ("result", "expected", "difference"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([3.0, 0.0], [0.0, 4.0], 1.25),
        ([1.0, 5.0], [1.0, float("nan")], 0.0),
        ([float("nan"), 1.0], [1.0, 1.0], float("inf")),
        ([0.0], [0.0], 0.0),
        ([1.0], [0.0], float("inf")),
        ([1.0, 2.0], [1.0], float("inf")),
    ],
)
def test_differences_are_relative(result: Sequence[float], expected: Sequence[float], difference: float) -> None:
    assert relative_difference(torch.tensor(result), torch.tensor(expected)) == pytest.approx(difference)


# ---------------------------------------------------------------- two results for one image


def test_a_network_that_draws_random_numbers_is_refused() -> None:
    network = load(kinds.stochastic())
    with pytest.raises(ModelError, match="two results for one image") as error:
        check_repeatable(network, ["drop"], SIZE, CPU)
    assert "layer 'drop'" in str(error.value) and "\n" not in str(error.value)
    check_repeatable(network, ["body"], SIZE, CPU)  # what lies before the dropout is a function


def test_a_network_that_mixes_the_images_of_a_batch_is_refused() -> None:
    network = load(networks.randomised(norm_of_the_batch(), seed=12).eval())
    with pytest.raises(ModelError, match="other images") as error:
        check_repeatable(network, ["conv", "head"], SIZE, CPU)
    assert "layer 'head'" in str(error.value) and "\n" not in str(error.value)
    check_repeatable(network, ["conv"], SIZE, CPU)  # what lies before the norm is each image's own
    check_repeatable(load(network.module, allow_stochastic=True), ["head"], SIZE, CPU)


def test_the_check_leaves_random_numbers_as_they_were() -> None:
    network = load(kinds.plain())
    torch.manual_seed(4)
    np.random.seed(4)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    check_repeatable(network, ["3"], SIZE, CPU)
    choose_preparation(network, ["3"], SIZE, CPU)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_a_stochastic_network_goes_on_where_it_is_allowed() -> None:
    network = load(kinds.stochastic(), allow_stochastic=True)
    check_repeatable(network, ["drop"], SIZE, CPU)
    assert network.identity()["allow_stochastic"] is True
    assert "allow_stochastic" not in load(kinds.stochastic()).identity()
    assert choose_preparation(network, ["drop"], SIZE, CPU).network == FOLDED


# ---------------------------------------------------------------- pairs that look as if they could be folded


class Pair(nn.Module):
    """A convolution and a batch norm, put together by a function, before a head."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 5, padding=2)
        self.norm, self.head = norm or nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1)
        self.body = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self, x))


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


class Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * x + 0.1


def plainly(s: Any, x: Tensor) -> Tensor:
    return F.silu(s.norm(s.conv(x)))


def changed_before(s: Any, x: Tensor) -> Tensor:
    return s.norm(s.conv(x).mul_(2).sin_())


def read_through_a_view(s: Any, x: Tensor) -> Tensor:
    y = s.conv(x)
    first = y[:, :4]
    z = s.norm(y)
    return z[:, 4:].repeat(1, 2, 1, 1) + first.repeat(1, 2, 1, 1)


def norm_changed_in_place(s: Any, x: Tensor) -> Tensor:
    return s.norm(s.conv(x)).mul_(0.5).sin_()


def norm_of_two(s: Any, x: Tensor) -> Tensor:
    return F.silu(s.norm(s.conv(x))) + s.norm(s.other(x))


def read_by_a_function(s: Any, x: Tensor) -> Tensor:
    y = s.conv(x)
    return s.norm(y) + F.batch_norm(y, s.norm.running_mean, s.norm.running_var) * 0.3


class Keeping(Pair):
    """A network that keeps the convolution's output by a hook of its own, and reads it behind the norm."""

    def __init__(self) -> None:
        super().__init__(lambda s, x: s.norm(s.conv(x)) + s.kept.sin())
        self.conv.register_forward_hook(self.keep)

    def keep(self, _: nn.Module, __: Any, out: Tensor) -> None:
        self.kept = out


def hooked(*, before: bool) -> nn.Module:
    norm = nn.BatchNorm2d(8)
    if before:
        norm.register_forward_pre_hook(lambda _, args: (args[0].sin(),))
    else:
        norm.register_forward_hook(lambda _, __, out: out.sin())
    return Pair(plainly, norm)


def with_its_own_forward() -> nn.Module:
    norm = nn.BatchNorm2d(8)
    norm.forward = lambda x: F.batch_norm(x, norm.running_mean, norm.running_var).sin()  # type: ignore[method-assign]
    return Pair(plainly, norm)


def parametrised_norm() -> nn.Module:
    norm = nn.BatchNorm2d(8)
    parametrize.register_parametrization(norm, "weight", Scaled())
    return Pair(plainly, norm)


def parametrised_conv() -> nn.Module:
    net = Pair(plainly)
    parametrize.register_parametrization(net.conv, "weight", Sine())
    return net


def pruned_conv() -> nn.Module:
    net = Pair(plainly)
    prune.random_unstructured(net.conv, "weight", 0.5)
    return net


def tied_weights() -> nn.Module:
    """Two convolutions with one weight, of which one has a norm behind it."""
    net = Pair(lambda s, x: F.silu(s.norm(s.conv(x))) + s.other(x))
    net.other = nn.Conv2d(3, 8, 3, padding=1)
    net.other.weight = net.conv.weight
    return net


def shared_norm_of_two_names() -> nn.Module:
    net = Pair(lambda s, x: s.norm(s.conv(x)) + s.again(s.other(x)))
    net.again = net.norm  # type: ignore[assignment]
    return net


def norm_of_the_batch() -> nn.Module:
    return Pair(plainly, nn.BatchNorm2d(8, track_running_stats=False))


PAIRS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "a plain pair": (lambda: Pair(plainly), 1),
    "a norm without weights": (lambda: Pair(plainly, nn.BatchNorm2d(8, affine=False)), 1),
    "a norm changed in place": (lambda: Pair(norm_changed_in_place), 1),
    "tied weights": (tied_weights, 1),
    "a norm with its activation": (lambda: Pair(plainly, kinds.ActivatedNorm(8)), 0),
    "a norm with a hook": (lambda: hooked(before=False), 0),
    "a norm with a hook before it": (lambda: hooked(before=True), 0),
    "a norm with a forward of its own": (with_its_own_forward, 0),
    "a parametrised norm": (parametrised_norm, 0),
    "a parametrised convolution": (parametrised_conv, 0),
    "a pruned convolution": (pruned_conv, 0),
    "a norm of the batch's own statistics": (norm_of_the_batch, 0),
    "changed in place before the norm": (lambda: Pair(changed_before), 0),
    "read through a view": (lambda: Pair(read_through_a_view), 0),
    "read by a function": (lambda: Pair(read_by_a_function), 0),
    "kept by a hook": (Keeping, 0),
    "a norm of two convolutions": (lambda: Pair(norm_of_two), 0),
    "a norm of two names": (shared_norm_of_two_names, 0),
}
"""Makers of networks, and how many pairs of each may be folded."""


@pytest.mark.parametrize("case", PAIRS)
def test_only_pairs_that_compute_one_affine_map_are_folded(case: str) -> None:
    make, count = PAIRS[case]
    net = networks.randomised(make(), seed=12).eval()
    network = load(net)
    assert len(network.trace(SIZE).folds) == count
    for layer in ("norm", "head"):
        assert_copy_is_the_network(network, layer)
    recipe = RECIPES["interact"].resolved(SIZE, size=SIZE, steps=4, rows=2)
    plain = load(net)
    plain.preparations[("head",), "cpu", plain.layout] = comparison.Preparation(
        ("head",), UNTOUCHED, 0.0, 0.0, torch.contiguous_format, in_place=True
    )
    found, expected = (Batches(n, CPU).descend([Objective.parse("head:1")], recipe, 0) for n in (network, plain))
    assert relative_difference(found.images - recipe.mean, expected.images - recipe.mean) < 1e-3


def test_weights_that_are_not_finite_are_named_and_never_used_silently() -> None:
    module = nn.Sequential(OrderedDict(first=nn.Conv2d(3, 4, 3), last=nn.Conv2d(4, 3, 1), unused=nn.Identity())).eval()
    module.register_buffer("mask", torch.full((2,), -torch.inf))  # as attention has it: no fault
    assert not any("finite" in note for note in load(module).notes)
    with torch.no_grad():
        module.first.weight[1, 0, 0, 0] = torch.nan
    network = load(module)
    assert "weights that are not finite (NaN or infinity): first.weight" in network.notes
    assert choose_preparation(network, ["first"], 16, CPU).network == FOLDED, "three channels are sound"
    recipe = RECIPES["pixels"].resolved(SIZE, size=SIZE, steps=2, rows=2)
    data = featmap.maximise(["last:0", "first:1", "first:2"], network, recipe=recipe, execution=Execution("cpu"))
    statuses = [folder_layout.STATUSES[k] for k in data["status"].values[0]]
    assert statuses == ["not-finite", "not-finite", "live"], "each unit is told by its own"


class Single(nn.Module):
    """Tokens of exactly one image."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.mixed = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.mixed(self.patches(x).flatten(2).transpose(1, 2).reshape(1, 16, 8))


@pytest.mark.parametrize("allowed", [False, True])
def test_networks_of_one_image_at_a_time_are_refused_by_name(allowed: bool) -> None:
    network = load(Single().eval(), input_size=16, allow_stochastic=allowed)
    assert network.layer("mixed").channels == 8, "its layers are described"
    with pytest.raises(ModelError, match=r"Single takes one image at a time: it fails for \d \(RuntimeError: shape"):
        check_repeatable(network, ["mixed"], 16, torch.device("cpu"))
