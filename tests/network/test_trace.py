from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featmap.errors import UnitError
from featmap.network.hooks import ActivationHooks
from featmap.network.loading import load
from featmap.network.receptive_field import ReceptiveField
from featmap.network.trace import trace
from tests.helpers import networks

pytestmark = pytest.mark.usefixtures("one_thread")


class Net(nn.Module):
    """A forward pass written down as a function of the module and the image."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def conv(inputs: int, outputs: int, kernel: Any = 1, **settings: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, **settings)


# ---------------------------------------------------------------- layers, grids, branches


def test_layers_of_small_inception() -> None:
    found = trace(networks.small_inception(), 16)
    assert found.failure == "" and found.size == 16
    assert {name: (la.kind, la.shape) for name, la in found.layers.items()} == {
        "stem": ("Conv2d", (8, 8, 8)),
        "norm": ("BatchNorm2d", (8, 8, 8)),
        "relu@1": ("ReLU", (8, 8, 8)),
        "mixed.branch1.conv": ("Conv2d", (5, 8, 8)),
        "mixed.branch1.bn": ("BatchNorm2d", (5, 8, 8)),
        "mixed.branch1": ("ConvNorm", (5, 8, 8)),
        "mixed.branch2.0.conv": ("Conv2d", (4, 8, 8)),
        "mixed.branch2.0.bn": ("BatchNorm2d", (4, 8, 8)),
        "mixed.branch2.0": ("ConvNorm", (4, 8, 8)),
        "mixed.branch2.1.conv": ("Conv2d", (6, 8, 8)),
        "mixed.branch2.1.bn": ("BatchNorm2d", (6, 8, 8)),
        "mixed.branch2.1": ("ConvNorm", (6, 8, 8)),
        "mixed.branch2": ("Sequential", (6, 8, 8)),
        "mixed": ("Mixed", (11, 8, 8)),
        "narrow": ("Conv2d", (7, 6, 6)),
        "norm2": ("BatchNorm2d", (7, 6, 6)),
        "relu@2": ("ReLU", (7, 6, 6)),
        "pool": ("AdaptiveAvgPool2d", (7, 1, 1)),
        "fc": ("Linear", (4, 1, 1)),
    }
    assert list(found.layers)[::18] == ["stem", "fc"], "in order of completion"
    assert found.calls["relu"] == 2 and found.calls["mixed"] == 1
    assert all(name == la.name for name, la in found.layers.items())


def test_branches_of_small_inception() -> None:
    layers = trace(networks.small_inception(), 16).layers
    assert layers["mixed"].branches == (("branch1", 5), ("branch2", 6))
    assert [layers["mixed"].branch(c) for c in (0, 4, 5, 10)] == ["branch1", "branch1", "branch2", "branch2"]
    assert layers["stem"].branches == () and layers["stem"].branch(0) == ""


def test_grids_follow_the_size() -> None:
    for size in (16, 17, 33):
        with torch.no_grad(), ActivationHooks(networks.small_inception(), ["mixed", "relu@2"]) as hooks:
            outputs = hooks.run(torch.zeros(1, 3, size, size))
        layers = trace(networks.small_inception(), size).layers
        assert {k: layers[k].shape for k in outputs} == {k: tuple(v.shape[1:]) for k, v in outputs.items()}


def test_work_until_a_layer_is_counted() -> None:
    found = trace(networks.small_inception(), 16)
    layers = found.layers
    assert layers["stem"].cumulative_elements == 8 * 8 * 8
    assert layers["norm"].cumulative_elements == 2 * layers["stem"].cumulative_elements
    assert layers["mixed"].cumulative_elements == layers["mixed.branch2"].cumulative_elements + 11 * 8 * 8
    order = [la.cumulative_elements for la in layers.values()]
    assert order == sorted(order) and found.elements == order[-1]


def test_logits_are_a_grid_of_one() -> None:
    layers = trace(networks.logits_network(), 8).layers
    assert layers["fc"].shape == (3, 1, 1)
    assert layers["pool"].shape == (6, 1, 1)
    assert layers["conv"].shape == (6, 8, 8)


def test_dense_concatenations_keep_every_piece() -> None:
    def run(s: Any, x: Tensor) -> Tensor:
        x = torch.cat([x, s.a(x)], 1)
        x = torch.cat((x, s.b(x)), dim=1)
        return torch.cat([x, F.avg_pool2d(x, 3, 1, 1)], 1)

    net = nn.Sequential(Net(run, a=conv(3, 4, 3, padding=1), b=conv(7, 2)))
    layer = trace(net.eval(), 8).layers["0"]
    assert layer.branches == (("input", 3), ("a", 4), ("b", 2), ("avg_pool2d", 9))
    assert layer.branch(8) == "b" and layer.branch(17) == "avg_pool2d" and layer.branch(18) == ""


def test_a_concatenation_of_concatenations_names_its_own_branches() -> None:
    def outer(s: Any, x: Tensor) -> Tensor:
        return torch.cat([s.first(x), s.second(x)], 1)

    def inner(s: Any, x: Tensor) -> Tensor:
        return torch.cat([s.a(x), s.b(x)], 1)

    pair = Net(inner, a=conv(3, 2), b=conv(3, 3))
    net = nn.Sequential(Net(outer, first=pair, second=conv(3, 4)))
    layers = trace(net.eval(), 8).layers
    assert layers["0"].branches == (("first", 5), ("second", 4))
    assert layers["0.first"].branches == (("a", 2), ("b", 3))


def test_concatenations_of_other_axes_are_no_branches() -> None:
    net = nn.Sequential(Net(lambda s, x: torch.cat([s.a(x), s.a(x)], 2), a=conv(3, 4)))
    assert trace(net.eval(), 8).layers["0"].branches == ()


def test_outputs_of_no_layout_are_no_layers() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    net = Net(
        lambda s, x: s.last(s.tokens(s.flat(s.pair(s.a(x))[0])).transpose(1, 2)),
        a=conv(3, 4),
        pair=Pair(),
        flat=nn.Flatten(2),
        tokens=nn.Identity(),
        last=nn.Linear(4, 5),
    )
    layers = trace(net.eval(), 8).layers
    assert {name: layer.layout.kind for name, layer in layers.items()} == {
        "a": "N x C x H x W",
        "pair": "N x C x H x W",
        "last": "N x L x C",
    }, "N x C x L is none"
    assert layers["last"].shape == (5, 8, 8)


def test_outputs_that_are_no_real_numbers_are_no_layers() -> None:
    net = Net(
        lambda s, x: s.b(s.spectrum(torch.fft.rfft2(s.a(x))).abs() * s.mask(x[:, :1, :, :5] > 0)),
        **{"a": conv(3, 4), "spectrum": nn.Identity(), "mask": nn.Identity(), "b": conv(4, 5)},
    )
    assert list(trace(net.eval(), 8).layers) == ["a", "b"]


def test_channels_last_grids_are_layers() -> None:
    net = Net(
        lambda s, x: s.back(s.norm(s.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
        a=conv(3, 8),
        norm=nn.LayerNorm(8),
        back=nn.ReLU(),
    )
    found = trace(net.eval(), 8).layers
    assert list(found) == ["a", "norm", "back"]
    assert [la.layout.kind for la in found.values()] == ["N x C x H x W", "N x H x W x C", "N x C x H x W"]
    for name in ("norm", "back"):
        assert found[name].shape == (8, 8, 8) and found[name].field == ReceptiveField.pixel()


def windowed(order: tuple[int, ...], dims: int = 3) -> nn.Module:
    """A linear map on 2 x 2 windows of a grid, with images, window rows, rows and so on in an order.

    1 dimension stands for windows of one position each.
    """

    def run(s: Any, x: Tensor) -> Tensor:
        x = s.a(x).permute(0, 2, 3, 1)
        n, height, width, channels = x.shape
        x = x.view(n, height // 2, 2, width // 2, 2, channels).permute(order)
        shape = {1: (-1, 1), 2: (-1,), 3: (-1, 4), 4: (n, -1, 4), 5: (-1, 2, 2)}[dims]
        return s.linear(x.reshape(*shape, channels))

    return Net(run, a=conv(3, 4), linear=nn.Linear(4, 5)).eval()


@pytest.mark.parametrize("dims", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("order", [(0, 1, 3, 2, 4, 5), (0, 2, 4, 1, 3, 5)], ids=["neighbours", "spread"])
def test_windows_are_layers(order: tuple[int, ...], dims: int) -> None:
    net = windowed(order, dims)
    layer = trace(net, 8).layers["linear"]
    assert (layer.layout.kind, layer.shape) == ("windows x C", (5, 8, 8)) and layer.field == ReceptiveField.pixel()
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    outputs: list[Tensor] = []
    net.linear.register_forward_hook(lambda _, __, out: outputs.append(out))
    with torch.no_grad():
        expected = net.linear(net.a(images).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        outputs.clear()
        net(images)
        torch.testing.assert_close(layer.layout.to_grid(outputs[0]), expected)
        replaced = layer.layout.with_grid(outputs[0], expected + 1)
    torch.testing.assert_close(replaced, outputs[0] + 1)


def test_windows_among_which_images_are_mixed_are_no_layers() -> None:
    assert "linear" in trace(windowed((0, 1, 3, 2, 4, 5)), 8).layers
    for dims in (1, 2, 3):
        assert "linear" not in trace(windowed((1, 3, 0, 2, 4, 5), dims), 8).layers, "the images lie between the windows"


@pytest.mark.parametrize(("size", "readable"), [(4, ["first", "last"]), (8, ["first"])])
def test_windows_of_one_position_are_told_from_a_batch(size: int, readable: list[str]) -> None:
    """As in MobileViT on few positions: each place within a patch makes a sequence, at 4 pixels of one patch."""

    def run(s: Any, x: Tensor) -> Tensor:
        n, c, height, width = (x := s.a(x)).shape
        x = x.reshape(n, c, height // 4, 4, width // 4, 4).permute(0, 3, 5, 2, 4, 1).reshape(n * 16, -1, c)
        return s.last(s.first(x).transpose(0, 1))  # of several patches in each sequence: the images lie between them

    net = Net(run, a=conv(3, 4), first=nn.Linear(4, 5), last=nn.Linear(5, 6)).eval()
    layers = trace(net, size).layers
    assert list(layers) == ["a", *readable] and all(layers[n].layout.kind == "windows x C" for n in readable)
    images = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), ActivationHooks(net, readable, layouts=lambda n, *_: layers[n].layout) as hooks:
        expected = net.first(net.a(images).permute(0, 2, 3, 1))
        for name, grid in zip(readable, (expected, net.last(expected)), strict=False):
            torch.testing.assert_close(hooks.run(images)[name], grid.permute(0, 3, 1, 2))


def test_sequences_may_have_the_batch_second() -> None:
    net = Net(lambda s, x: s.b(s.a(x).flatten(2).permute(2, 0, 1)), a=conv(3, 4), b=nn.Linear(4, 5)).eval()
    layer = trace(net, 3).layers["b"]
    assert (layer.layout.kind, layer.shape) == ("L x N x C", (5, 3, 3))
    images = torch.rand(2, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), ActivationHooks(net, ["b"], layouts=lambda *_: layer.layout) as hooks:
        expected = net.b(net.a(images).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        torch.testing.assert_close(hooks.run(images)["b"], expected)


def test_outputs_that_are_not_one_for_each_image_are_refused() -> None:
    net = Net(lambda s, x: s.b(s.a(x).mean(0, keepdim=True)), a=conv(3, 4), b=conv(4, 5)).eval()
    with ActivationHooks(net, ["b"]) as hooks, pytest.raises(UnitError, match="'b' outputs 1 grids for 2 images"):
        hooks.run(torch.rand(2, 3, 4, 4))


def test_nothing_of_the_module_is_changed() -> None:
    net = networks.small_inception()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.get_rng_state()
    trace(net, 16)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())
    assert torch.equal(state, torch.get_rng_state())


def test_a_size_that_is_too_small_is_noted() -> None:
    found = trace(networks.small_inception(), 4)
    assert found.failure.startswith("RuntimeError: ") and len(found.failure.splitlines()) == 1
    assert "mixed" in found.layers and "narrow" not in found.layers
    net = networks.small_inception()
    trace(net, 4)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in net.modules()), "also after a failure"


def test_an_empty_network_has_no_layers() -> None:
    assert trace(nn.Sequential(), 8).layers == {}


# ---------------------------------------------------------------- pairs that can be merged


def test_fold_pairs_of_small_inception() -> None:
    assert sorted(trace(networks.small_inception(), 16).folds) == [
        ("mixed.branch1.conv", "mixed.branch1.bn"),
        ("mixed.branch2.0.conv", "mixed.branch2.0.bn"),
        ("mixed.branch2.1.conv", "mixed.branch2.1.bn"),
        ("narrow", "norm2"),
        ("stem", "norm"),
    ]


def twice_read(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    return s.n(y) + y


def overwritten(s: Any, x: Tensor) -> Tensor:
    return s.n(F.relu_(s.a(x)))


@pytest.mark.parametrize(
    "net",
    [
        Net(twice_read, a=conv(3, 4), n=nn.BatchNorm2d(4)),
        Net(overwritten, a=conv(3, 4), n=nn.BatchNorm2d(4)),
        Net(lambda s, x: s.n(s.a(x) * 2), a=conv(3, 4), n=nn.BatchNorm2d(4)),
        Net(lambda s, x: s.n(s.a(x)), a=conv(3, 4), n=nn.BatchNorm2d(4, track_running_stats=False)),
        Net(lambda s, x: s.n(s.a(x)) + s.n(s.b(x)), a=conv(3, 4), b=conv(3, 4), n=nn.BatchNorm2d(4)),
        Net(lambda s, x: s.n(s.a(s.a(x))), a=conv(3, 3), n=nn.BatchNorm2d(3)),
        Net(lambda s, x: s.a(s.n(x)), a=conv(3, 4), n=nn.BatchNorm2d(3)),
        Net(lambda s, x: s.n(s.a(x)), a=nn.ConvTranspose2d(3, 4, 2), n=nn.BatchNorm2d(4)),
        Net(
            lambda s, x: s.n(s.a(x)),
            a=nn.utils.parametrizations.weight_norm(conv(3, 4)),
            n=nn.BatchNorm2d(4),
        ),
    ],
    ids=[
        "read twice",
        "overwritten",
        "not what the norm reads",
        "no statistics",
        "norm twice",
        "convolution twice",
        "norm first",
        "transposed",
        "weights are computed",
    ],
)
def test_other_pairs_of_modules_are_not_folded(net: nn.Module) -> None:
    assert trace(net.eval(), 8).folds == []


def test_a_shape_that_is_asked_for_is_not_a_reading() -> None:
    def run(s: Any, x: Tensor) -> Tensor:
        y = s.a(x)
        return s.n(y).reshape(y.size(0), y.shape[1], -1)

    assert trace(Net(run, a=conv(3, 4), n=nn.BatchNorm2d(4)).eval(), 8).folds == [("a", "n")]


# ---------------------------------------------------------------- receptive fields


class Balanced(nn.Module):
    """A network with a module that returns a number, as the balance loss of a mixture of experts does."""

    class Mean(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean()

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.balance, self.head = nn.Conv2d(3, 4, 3), self.Mean(), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        self.balance(x)
        return self.head(x.mean((2, 3)))


def test_a_module_that_returns_a_number_is_no_layer() -> None:
    assert list(load(Balanced().eval(), input_size=16).trace().layers) == ["conv", "head"]
