"""Laws that hold for any network, on networks put together at random: nothing computed differs from plain PyTorch."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from featmap.network.loading import load
from featmap.network.model import Network
from featmap.network.receptive_field import ReceptiveField
from featmap.network.trace import Layer
from featmap.optimize import comparison
from featmap.optimize.batch import Batches
from featmap.optimize.comparison import FOLDED, UNTOUCHED, choose_preparation, copy_settings, relative_difference
from featmap.optimize.measured_fields import measure_fields
from featmap.optimize.objective import channel
from featmap.optimize.prepare import prepare
from featmap.optimize.recipe import RECIPES
from featmap.optimize.responses import Probe
from tests.helpers import kinds, networks

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
SIZE, WIDTH, ROWS = 20, 6, 3
GRID, LAST, TOKENS, VECTOR = "grid", "channels last", "tokens", "vector"
"""What a module puts out, known from the way that the network is put together."""


class Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class AddedInPlace(Residual):
    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        y += x
        return y


class Joined(nn.Module):
    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([b(x) for b in self.branches], 1)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Conv2d(WIDTH, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))


class OverChannels(nn.Module):
    """A layer norm over the channels of a grid, as ConvNeXt has it: its inside lies channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix = marked(LAST, nn.LayerNorm(WIDTH)), marked(LAST, nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class TwoNames(nn.Module):
    """One batch norm, registered twice, on two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = same_conv(), same_conv()
        self.norm = self.again = nn.BatchNorm2d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.second(F.silu(self.norm(self.first(x)))))


class ReadTwice(nn.Module):
    """A convolution whose output is read beside its batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = same_conv(), nn.BatchNorm2d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + 0.5 * y


class ChannelsLast(nn.Module):
    """An MLP on channels last; what it returns lies so too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.hidden, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, 4)
        marked(LAST, self)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(self.hidden(self.norm(x.permute(0, 2, 3, 1)))))


class Tokens(nn.Module):
    """Attention among patches and a class token, which is the first."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(WIDTH, 8, 2, 2)
        self.cls_token, self.norm = nn.Parameter(torch.zeros(1, 1, 8)), marked(TOKENS, nn.LayerNorm(8))
        self.attention = marked(TOKENS, nn.MultiheadAttention(8, 2, batch_first=True))
        self.out = marked(TOKENS, nn.Linear(8, 4))
        marked(TOKENS, self)
        self.patches.lies = GRID  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        y = self.norm(x)
        return self.out(x + self.attention(y, y, y, need_weights=False)[0])


class Logits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = marked(VECTOR, nn.Linear(WIDTH, 4))
        self.lies = VECTOR

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x.mean((2, 3)))


def marked(lies: str, module: nn.Module) -> nn.Module:
    """Note in a module and its parts what they put out."""
    for part in module.modules():
        part.lies = lies  # type: ignore[assignment]
    return module


def same_conv(out: int = WIDTH, **options: Any) -> nn.Module:
    return nn.Conv2d(WIDTH, out, 3, padding=1, **options)


def normed(out: int = WIDTH, **options: Any) -> nn.Module:
    return nn.Sequential(same_conv(out, **options), nn.BatchNorm2d(out), nn.SiLU())


def hooked_norm() -> nn.Module:
    """A batch norm with a hook that changes its output."""
    norm = nn.BatchNorm2d(WIDTH)
    norm.register_forward_hook(_double_sine)
    return norm


def _double_sine(_: nn.Module, __: Any, out: Tensor) -> Tensor:
    return 2 * torch.sin(out)


BLOCKS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "conv": lambda _: nn.Sequential(same_conv(), nn.SiLU()),
    "conv norm": lambda _: normed(),
    "conv norm, in-place activation": lambda _: nn.Sequential(
        same_conv(bias=False), nn.BatchNorm2d(WIDTH), nn.SiLU(inplace=True)
    ),
    "depthwise": lambda _: nn.Sequential(normed(groups=WIDTH), nn.Conv2d(WIDTH, WIDTH, 1), nn.BatchNorm2d(WIDTH)),
    "norm without weights": lambda _: nn.Sequential(same_conv(), nn.BatchNorm2d(WIDTH, affine=False)),
    "activated norm": lambda _: nn.Sequential(same_conv(), kinds.ActivatedNorm(WIDTH)),
    "hooked norm": lambda _: nn.Sequential(same_conv(), hooked_norm()),
    "parametrised": lambda _: nn.Sequential(
        nn.utils.parametrizations.weight_norm(same_conv()), nn.BatchNorm2d(WIDTH), nn.Tanh()
    ),
    "group norm": lambda _: nn.Sequential(same_conv(), nn.GroupNorm(2, WIDTH), nn.SiLU()),
    "norm over channels": lambda _: OverChannels(),
    "gated": lambda _: Gated(),
    "residual": lambda _: Residual(normed()),
    "residual in place": lambda _: AddedInPlace(normed()),
    "joined": lambda _: Joined(normed(2), nn.Sequential(same_conv(4), kinds.ActivatedNorm(4))),
    "shared": lambda shared: shared,
    "two names": lambda _: TwoNames(),
    "read twice": lambda _: ReadTwice(),
    "strided": lambda _: nn.Sequential(same_conv(stride=2), nn.BatchNorm2d(WIDTH), nn.SiLU()),
    "dilated": lambda _: nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=2, dilation=2), nn.Softplus()),
    "pool": lambda _: nn.AvgPool2d(2, 1),
    "upsampled": lambda _: nn.Sequential(nn.AvgPool2d(2), nn.Upsample(scale_factor=2)),
}
ENDS: dict[str, Callable[[], nn.Module]] = {
    GRID: lambda: nn.Conv2d(WIDTH, 4, 1),
    LAST: ChannelsLast,
    TOKENS: Tokens,
    VECTOR: Logits,
}
UNREAD = 7
"""Largest number of pixels at an edge that the strides of these networks leave out."""
STEMS = {"7 x 7": (7, 2, 3), "4 x 4": (4, 2, 1), "3 x 3": (3, 1, 1)}
plans = st.tuples(
    st.sampled_from(list(STEMS)),
    st.lists(st.sampled_from(list(BLOCKS)), max_size=5),
    st.sampled_from(list(ENDS)),
    st.integers(0, 99),
)
Plan = tuple[str, list[str], str, int]
laws = settings(deadline=None, derandomize=True, max_examples=100)


def build(plan: Plan) -> nn.Module:
    """Put a network together; its activations are smooth, so that rounding flips nothing."""
    stem, blocks, end, seed = plan
    shared = normed()
    parts = [nn.Conv2d(3, WIDTH, *STEMS[stem]), nn.BatchNorm2d(WIDTH), nn.SiLU(), *(BLOCKS[k](shared) for k in blocks)]
    return networks.randomised(nn.Sequential(*parts, ENDS[end]()), seed).eval()


def loaded(net: nn.Module, size: int = SIZE) -> Network:
    """Load at a size that is named: attention among the positions of an image of the default size takes seconds."""
    return load(net, input_size=size)


def images(seed: int, count: int = ROWS) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def position_means(lies: str, out: Tensor) -> Tensor:
    """The mean of each channel over the grid, N x C, by what the network's builder knows."""
    if lies == TOKENS:
        return out[:, 1:].mean(1)
    return out.mean({GRID: (2, 3), LAST: (1, 2)}[lies]) if lies != VECTOR else out


def plain_responses(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The responses of every call of every module, by torch's own hooks."""
    outputs: dict[str, list[Tensor]] = defaultdict(list)

    def hook(name: str, lies: str) -> Callable[..., None]:
        def keep(_: nn.Module, __: Any, out: Any) -> None:
            outputs[name].append(position_means(lies, out[0] if isinstance(out, tuple) else out).clone())

        return keep

    handles = [
        part.register_forward_hook(hook(name, getattr(part, "lies", VECTOR if name == "" else GRID)))
        for name, part in net.named_modules()
        if name and "parametrizations" not in name  # those compute weights
    ]
    with torch.no_grad():
        net(x)
    for handle in handles:
        handle.remove()
    return {
        (name if len(calls) == 1 else f"{name}@{k}"): value
        for name, calls in outputs.items()
        for k, value in enumerate(calls, 1)
    }


@laws
@given(plans)
def test_every_layer_has_the_responses_of_plain_pytorch(plan: Plan) -> None:
    net = build(plan)
    network, x = loaded(net), images(plan[-1])
    found = network.trace(SIZE)
    assert found.failure == ""
    expected = plain_responses(net, x)
    grids = [name for name in found.layers if not name.endswith("@cls")]
    assert set(grids) == set(expected), "every call of every module is a layer"
    for layer, values in Probe(network, rows=ROWS).responses(x, grids).items():
        scale = float(expected[layer].norm())
        assert float((torch.from_numpy(values) - expected[layer]).norm()) <= 1e-5 * scale, layer


def input_gradient(net: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(net(x).sin().sum(), x)
    return gradient


@laws
@given(plans)
def test_the_prepared_copy_has_the_networks_gradients(plan: Plan) -> None:
    net = build(plan)
    network, last, x = loaded(net), str(len(net) - 1), images(plan[-1])
    state = {k: v.clone() for k, v in net.state_dict().items()}
    choice = choose_preparation(network, [last], SIZE, CPU)
    assert choice.network == FOLDED and not choice.in_place
    twin = prepare(
        net, layers=[last], device=CPU, layout=choice.layout, **copy_settings(FOLDED, network.trace(SIZE).folds)
    )
    assert relative_difference(twin(x), net(x)) < 1e-5
    assert relative_difference(input_gradient(twin, x), input_gradient(net, x)) < 1e-4
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items()), "the network is as it was"
    exact = copy.deepcopy(net).double()
    twin = prepare(
        exact,
        layers=[last],
        device=CPU,
        layout=torch.contiguous_format,
        **copy_settings(FOLDED, network.trace(SIZE).folds),
    )
    assert relative_difference(input_gradient(twin, x.double()), input_gradient(exact, x.double())) < 1e-10


@settings(laws, max_examples=30)
@given(plans)
def test_descending_on_the_copy_is_descending_on_the_network(plan: Plan) -> None:
    net = build(plan)
    network, plain, last = loaded(net), loaded(copy.deepcopy(net)), str(len(net) - 1)
    recipe = RECIPES["interact"].resolved(SIZE, size=SIZE, steps=6, rows=2)  # linear steps: no sign of a tiny gradient
    plain.preparations[(last,), "cpu", plain.layout] = comparison.Preparation(
        (last,), UNTOUCHED, 0.0, 0.0, torch.contiguous_format, in_place=True
    )
    objectives = [channel(last, 1), channel(last, 2)]
    found, expected = (Batches(n, CPU).descend(objectives, recipe, 0) for n in (network, plain))
    for one, other in zip(found.images, expected.images, strict=True):
        assert relative_difference(one - recipe.mean, other - recipe.mean) < 1e-3
    responses = [position_means(plan[2], net(n.normalise(d.images))) for n, d in ((network, found), (plain, expected))]
    assert relative_difference(*responses) < 1e-3


def bounds_of(layer: Layer, field: ReceptiveField, size: int) -> tuple[slice, slice]:
    return field.bounds(layer.height // 2, layer.width // 2, size, size)


@settings(laws, max_examples=60)
@given(plans, st.integers(17, 24))
def test_receptive_fields_by_rule_are_those_that_are_measured(plan: Plan, size: int) -> None:
    network = loaded(build(plan), size)
    layers = network.trace(size).layers.values()
    by_rule = {la.name: la for la in layers if not la.field.unknown and not la.name.endswith("@cls")}
    measured = measure_fields(
        network.module,
        {name: (la.height, la.width) for name, la in by_rule.items()},
        torch.zeros(1, 3, size, size),
        network.find_layout,
    )
    is_dense = "dilated" not in plan[1]  # beside the edge, what a dilated window leaves out may be all there is
    for name, layer in by_rule.items():
        for found, rule in zip(
            bounds_of(layer, measured[name], size), bounds_of(layer, layer.field, size), strict=True
        ):
            assert rule.start <= found.start and found.stop <= rule.stop, f"{name}: {layer.field}"
            # strides leave out fewer pixels at the edge than a field that is whole says
            left_out = UNREAD if layer.field.whole else 0
            assert not is_dense or (found.start == rule.start and found.stop >= rule.stop - left_out), name
