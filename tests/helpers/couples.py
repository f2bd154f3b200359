"""Tiny networks whose units' interaction is known; each can be named as ``--model tests.helpers.couples:name``."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

LEFT, RIGHT, LEFT_TOO, RIGHT_TOO = range(4)
"""The features of `halves`."""

ONE, COPY, LARGER, OPPOSITE, OTHER = range(5)
"""The features of `twins`: one, itself again, three times it, its negative, a different one."""

RED, GREEN, AND = 0, 1, 5
"""Features of `gated`: RED and GREEN in `colours`, AND in `gates`."""


def _random(shape: tuple[int, ...], seed: int) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values - values.mean(tuple(range(1, len(shape))), keepdim=True)


def _convolution(weight: Tensor, bias: Tensor | None = None, padding: int = 0) -> nn.Conv2d:
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], padding=padding, bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None and layer.bias is not None:
            layer.bias.copy_(bias)
    return layer


class Windows(nn.Module):
    """Channel c is kept in the columns from `sides[c]` on (negative: before its absolute value), 0 elsewhere."""

    def __init__(self, sides: tuple[int, ...]) -> None:
        super().__init__()
        self.sides = sides

    def forward(self, x: Tensor) -> Tensor:
        columns = torch.arange(x.shape[3], device=x.device)
        window = torch.stack([columns < -s if s < 0 else columns >= s for s in self.sides])
        return x * window[:, None, :].to(x)


def _windowed(weight: Tensor, last: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(mix=_convolution(weight), parts=Windows((-4, 28, -4, 28)), out=last)).eval()


COLOURS = torch.tensor([[1.0, -1.0, 0.5], [0.5, 1.0, -1.0], [1.0, 1.0, 1.0], [0.2, -0.4, 0.9]])


def halves() -> nn.Module:
    """Layer `out`: at 32 pixels each feature reads its colour in four columns, at the left or at the right end.

    LEFT and RIGHT have gradients of one length. Linear.
    """
    return _windowed(COLOURS[:, :, None, None], nn.Identity())


def unequal() -> nn.Module:
    """`halves` with a RIGHT of half the scale."""
    return _windowed((COLOURS * torch.tensor([1.0, 0.5, 1, 1])[:, None])[:, :, None, None], nn.Identity())


def saturating() -> nn.Module:
    """`halves` that are full at 1: every pixel of LEFT and RIGHT gets there, whatever the other does."""
    return _windowed(COLOURS[:, :, None, None], nn.Hardtanh(-1.0, 1.0))


def twins() -> nn.Module:
    """Layer `features`, linear: see `ONE` and the others; two more for the ceiling."""
    weight = _random((7, 3, 3, 3), 31)
    weight[COPY], weight[LARGER], weight[OPPOSITE] = weight[ONE], 3 * weight[ONE], -weight[ONE]
    return nn.Sequential(OrderedDict(features=_convolution(weight, padding=1))).eval()


def gated() -> nn.Module:
    """Layers `colours` (linear) and, one up, `gates`, whose AND fires where red and green are high together.

    The other gates fire on one colour each, far below their threshold or on a constant.
    """
    colours = torch.cat([torch.eye(3), torch.tensor([[1.0, 0, 1], [0, 1, 1], [-1, 0, 1]])])
    gates = torch.zeros(6, 6)
    gates[0, 0] = gates[1, 1] = gates[2, 2] = gates[3, 5] = 1.0
    gates[4, 2] = -1.0
    gates[AND, RED] = gates[AND, GREEN] = 1.0
    bias = torch.tensor([0.0, 0, 0, 2, 5, -1.45])
    layers = OrderedDict(
        colours=_convolution(colours[:, :, None, None]),
        gates=nn.Sequential(_convolution(gates[:, :, None, None], bias), nn.ReLU()),
    )
    return nn.Sequential(layers).eval()


class Counted(nn.Conv2d):
    """A convolution that counts its forward passes, over all copies of it."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        Counted.calls += 1
        return super().forward(x)


def counted() -> nn.Module:
    """Layers `first`, `relu` and `second`; `first` is a `Counted`."""
    module = nn.Sequential(OrderedDict(first=Counted(3, 6, 3), relu=nn.ReLU(), second=nn.Conv2d(6, 6, 3))).eval()
    with torch.no_grad():
        for k, tensor in enumerate(module.parameters()):
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(k)))
    return module


AND_GATE, OR_GATE, XOR_GATE, BLOCKED_GATE, PLAIN_GATE = range(5)
"""Features of `logic` in the layer `gates`."""


def logic(*gates: int) -> nn.Module:
    """Layers `colours` (red, green, blue, blue - red; linear) and `gates`: only the given ones read red and green.

    With u and v, red and green above 0.5: AND is relu(u + v - 0.3), OR relu(u + v) less what exceeds 0.36, XOR |u - v|,
    BLOCKED relu(u - 2 v), which green shuts for red; PLAIN and all that are not given read blue.
    """
    colours = torch.cat([torch.eye(3), torch.tensor([[-1.0, 0, 1]])])
    rows = {  # weights of u and v, threshold, and the gate's weight
        AND_GATE: [(1, 1, 0.3, 1.0)],
        OR_GATE: [(1, 1, 0.0, 1.0), (1, 1, 0.36, -1.0)],
        XOR_GATE: [(1, -1, 0.0, 1.0), (-1, 1, 0.0, 1.0)],
        BLOCKED_GATE: [(1, -2, 0.0, 1.0)],
    }
    hidden = [(gate, row) for gate in gates for row in rows[gate]]
    first, bias = torch.zeros(len(hidden) + 1, 4), torch.zeros(len(hidden) + 1)
    second = torch.zeros(5, len(hidden) + 1)
    first[-1, 2] = 1.0
    second[[g for g in range(5) if g not in gates], -1] = 1.0
    for k, (gate, (u, v, threshold, weight)) in enumerate(hidden):
        first[k, :2], bias[k] = torch.tensor([u, v]).float(), -0.5 * (u + v) - threshold
        second[gate, k] = weight
    middle = nn.Sequential(
        _convolution(first[:, :, None, None], bias), nn.ReLU(), _convolution(second[:, :, None, None])
    )
    return nn.Sequential(OrderedDict(colours=_convolution(colours[:, :, None, None]), gates=middle)).eval()


class Turning(nn.Module):
    """Values up to 0.5; from there on they fall by four times their excess."""

    def forward(self, x: Tensor) -> Tensor:
        return x - 5 * torch.relu(x - 0.5)


def conjunctions(kind: str) -> nn.Module:
    """Layers `colours` (red, green, blue) and `next`: twelve features that read red, green, blue and one value more.

    With "and" that value is relu(red + green - 1.2), which is above 0 where both are high; with "sum" it is blue again,
    and so it is with "turning", where colours turn over above 0.5.
    """
    is_and = kind == "and"
    middle = torch.cat([torch.eye(3), torch.tensor([[1.0, 1, 0] if is_and else [0.0, 0, 1]])])
    bias = torch.tensor([9.0, 9, 9, -1.2 if is_and else 9])
    weight = _random((12, 4, 1, 1), 7) * torch.tensor([1.0, 1, 1, 4 if is_and else 1]).view(4, 1, 1)
    last = _convolution(weight, -9 * weight[:, : 3 if is_and else 4].sum((1, 2, 3)))
    parts = [_convolution(middle[:, :, None, None], bias), nn.ReLU(), last]
    first = [Turning()] if kind == "turning" else []
    layers = OrderedDict(colours=_convolution(torch.eye(3)[:, :, None, None]), next=nn.Sequential(*first, *parts))
    return nn.Sequential(layers).eval()


def rivals(single: bool = False) -> nn.Module:
    """Layer `out`: two features that inhibit each other, relu(r - 1.5 g + 0.35) and relu(g - 1.5 r + 0.35), and blue.

    With `single` they read the image's mean colour, on a grid of one position.
    """
    weight = torch.tensor([[1.0, -1.5, 0], [-1.5, 1, 0], [0, 0, 1]])
    mix = _convolution(weight[:, :, None, None], torch.tensor([0.35, 0.35, 0]))
    layers: OrderedDict[str, nn.Module] = OrderedDict(mix=mix, out=nn.ReLU())
    if single:
        layers = OrderedDict(pool=nn.AdaptiveAvgPool2d(1), **layers)
    return nn.Sequential(layers).eval()


class Product(nn.Module):
    """A channel for each pair of channels (0, 1), (0, 2) and (1, 2): their product."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[:, 0] * x[:, 1], x[:, 0] * x[:, 2], x[:, 1] * x[:, 2]], dim=1)


def product() -> nn.Module:
    """Layers `colours` (red, green, blue) and `products` of two of them at each pixel: a quadratic network."""
    return nn.Sequential(OrderedDict(colours=_convolution(torch.eye(3)[:, :, None, None]), products=Product())).eval()


def smooth() -> nn.Module:
    """Layers `first` and `second`, a softplus between them: the second derivative is nowhere zero."""
    layers = OrderedDict(
        first=_convolution(0.3 * _random((6, 3, 3, 3), 5), padding=1),
        act=nn.Softplus(),
        second=_convolution(_random((5, 6, 3, 3), 6), padding=1),
    )
    return nn.Sequential(layers).eval()


def rough(side: int = 16) -> nn.Module:
    """Two linear features of the whole image: one smooth part that they share, and each its own fine pattern.

    A blur takes the fine patterns out of the images, so that both features reach more on the joint image than alone.
    """
    y, x = torch.meshgrid(torch.arange(float(side)), torch.arange(float(side)), indexing="ij")
    centre = (side - 1) / 2
    shared = torch.exp(-((x - centre) ** 2 + (y - centre) ** 2) / 32)
    fine = [torch.where((x + y) % 2 == 0, 1.0, -1.0), torch.where(x % 2 == 0, 1.0, -1.0)]
    weight = torch.stack([shared / shared.norm() + 2 * pattern / pattern.norm() for pattern in fine])
    rest = _random((2, side, side), 0) / 20
    return nn.Sequential(_convolution(torch.cat([weight, rest])[:, None].expand(-1, 3, -1, -1).contiguous())).eval()
