"""A strided convolution over few channels under the space-to-depth transform: the same outputs and gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from featmap.network.hooks import ActivationHooks
from featmap.optimize.prepare import SpaceToDepthConv2d, prepare, supports_space_to_depth, use_space_to_depth

CPU = torch.device("cpu")


def transformed(conv: nn.Conv2d) -> SpaceToDepthConv2d:
    twin = copy.deepcopy(conv)
    use_space_to_depth(twin)
    assert isinstance(twin, SpaceToDepthConv2d)
    return twin


pytestmark = pytest.mark.usefixtures("one_thread")


@settings(deadline=None, max_examples=60)
@given(
    channels=st.integers(1, 4),
    kernel=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    stride=st.integers(2, 4),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    sides=st.tuples(st.integers(7, 23), st.integers(7, 23)),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_outputs_and_gradients_are_the_convolutions(
    channels: int,
    kernel: tuple[int, int],
    stride: int,
    padding: tuple[int, int],
    sides: tuple[int, int],
    bias: bool,
    seed: int,
) -> None:
    assume(supports_space_to_depth(nn.Conv2d(channels, 5, kernel, stride, padding)))
    generator = torch.Generator().manual_seed(seed)
    conv = nn.Conv2d(channels, 5, kernel, stride, padding, bias=bias, dtype=torch.float64)
    with torch.no_grad():
        for p in conv.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    x = torch.randn(2, channels, *sides, generator=generator, dtype=torch.float64, requires_grad=True)
    expected, found = conv(x), transformed(conv)(x)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    gradients = [torch.autograd.grad((out * weights).sum(), x)[0] for out in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 4, 7),
        nn.Conv2d(3, 4, 3, 2),
        nn.Conv2d(5, 4, 7, 2),
        nn.Conv2d(4, 4, 7, 2, groups=2),
        nn.Conv2d(3, 4, 7, 2, dilation=2),
        nn.Conv2d(3, 4, 7, (2, 1)),
        nn.Conv2d(3, 4, 7, 2, 1, padding_mode="reflect"),
        nn.Conv2d(3, 4, 7, padding="same"),
        type("Own", (nn.Conv2d,), {})(3, 4, 7, 2),
        nn.MaxPool2d(2),
    ],
)
def test_other_modules_are_left_alone(conv: nn.Module) -> None:
    net = nn.Sequential(conv)
    use_space_to_depth(net)
    assert not supports_space_to_depth(conv) and net[0] is conv


def test_a_convolution_with_hooks_is_left_alone() -> None:
    conv = nn.Conv2d(3, 4, 7, 2)
    assert supports_space_to_depth(conv)
    handle = conv.register_forward_hook(lambda *_: None)
    assert not supports_space_to_depth(conv)
    handle.remove()
    handle = conv.register_forward_pre_hook(lambda *_: None)
    assert not supports_space_to_depth(conv)
    handle.remove()
    handle = conv.register_full_backward_hook(lambda *_: None)
    assert not supports_space_to_depth(conv)
    handle.remove()
    conv.forward = conv.forward
    assert not supports_space_to_depth(conv)


class Twice(nn.Module):
    """One convolution under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 3, 4, 2, 1)
        self.b = self.a

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Go through it twice."""
        return self.b(self.a(x))


class Listed(nn.Module):
    """A convolution that is held in a list of its own too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 4, 2, 1)
        self.steps = [self.conv]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Go through the list."""
        for step in self.steps:
            x = step(x)
        return x


@pytest.mark.parametrize(("made", "layers"), [(Twice, ["a@1", "a@2"]), (Listed, ["conv"])])
def test_whoever_else_holds_a_convolution_holds_the_transformed_one(made: type[nn.Module], layers: list[str]) -> None:
    net, x = made().eval(), torch.rand(2, 3, 16, 16)
    twin = prepare(net, [], layers, CPU)
    assert sum(isinstance(m, SpaceToDepthConv2d) for m in twin.modules()) == 1
    for layer in layers:
        with torch.no_grad(), ActivationHooks(net, [layer]) as plain, ActivationHooks(twin, [layer]) as ours:
            torch.testing.assert_close(ours.run(x)[layer], plain.run(x)[layer])


class Tied(nn.Module):
    """Uses its convolution's weights by themselves too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the image that the weights make of the convolution's output."""
        return nn.functional.conv_transpose2d(self.conv(x), self.conv.weight, stride=2)


def test_weights_and_settings_stay_and_move_with_the_module() -> None:
    torch.manual_seed(1)
    net = Tied().eval()
    before = net.conv
    twin = prepare(net, [], ["conv"], CPU)
    assert net.conv is before and isinstance(twin.conv, SpaceToDepthConv2d)
    assert torch.equal(twin.conv.weight, before.weight) and list(twin.state_dict()) == list(net.state_dict())
    x = torch.rand(2, 3, 9, 9)
    torch.testing.assert_close(twin(x), net(x))
    half = prepare(net, [], ["conv"], CPU, dtype=torch.bfloat16)
    assert half.conv.rearranged_weight.dtype is torch.bfloat16
    assert half(x.bfloat16()).dtype is torch.bfloat16
    for kept in (
        prepare(net, [], ["conv"], CPU, torch.contiguous_format),
        prepare(net, [], [], CPU, space_to_depth=False),
    ):
        assert type(kept.conv) is nn.Conv2d


def test_weights_that_are_no_numbers_are_zeros_here_too() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 7, 2))
    with torch.no_grad():
        net[0].weight[1] = float("nan")
    out = prepare(net, [], ["0"], CPU)(torch.rand(1, 3, 9, 9))
    assert bool(out.isfinite().all())
