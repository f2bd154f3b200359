"""Tiny networks for runs, maps and the command line; each is a factory, ``tests.helpers.tiny:name``."""

from __future__ import annotations

import math
from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn

FEATURES = 11
COPIES = {6: (0, 3.0), 7: (1, 0.25), 8: (2, 10.0), 9: (3, 1.0), 10: (4, 0.01), 11: (5, 7.0)}
"""Feature of `planted` -> (the feature that it copies, the factor on it)."""

SCALES = (1.0, 4.0, 0.5, 1.0, 16.0, 2.0, 0.125, 1.0, 8.0)
"""What each feature of the second layer of `paired` is times its original."""

LIVE, DEAD, CONSTANT, OVERFLOWING = range(4)
"""The features of `sick`."""


def landed(folder: str | Path) -> dict[Path, int]:
    """The records of the work units that have landed in a run folder, and when they were written."""
    return {p: p.stat().st_mtime_ns for p in (Path(folder) / "units").iterdir()}


def _conv(inputs: int, outputs: int, seed: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=bias)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weight = torch.randn(conv.weight.shape, generator=generator)
        conv.weight.copy_((weight - weight.mean((1, 2, 3), keepdim=True)) / math.sqrt(9 * inputs))
        if conv.bias is not None:
            conv.bias.fill_(0.1)
    return conv


def small(seed: int = 1) -> nn.Module:
    """Two convolutions with a ReLU between them; `second` has `FEATURES` features."""
    return nn.Sequential(
        OrderedDict(first=_conv(3, 6, seed, 2, bias=True), relu=nn.ReLU(), second=_conv(6, FEATURES, seed + 1))
    ).eval()


def other() -> nn.Module:
    """`small` with other weights."""
    return small(seed=101)


def wide() -> nn.Module:
    """`small` with 24 features in `second`: a run of many batches."""
    return nn.Sequential(OrderedDict(first=_conv(3, 6, 1, 2, bias=True), relu=nn.ReLU(), second=_conv(6, 24, 2))).eval()


def planted() -> nn.Module:
    """Six features and a scaled copy of each (`COPIES`)."""
    features = _conv(3, 12, 14)
    with torch.no_grad():
        for copy, (original, factor) in COPIES.items():
            features.weight[copy] = factor * features.weight[original]
    return nn.Sequential(OrderedDict(features=features)).eval()


def paired() -> nn.Module:
    """Layers `features` and `copies`: feature j of the second is `SCALES[j]` times feature j of the first."""
    features, copies = _conv(3, len(SCALES), 21, bias=True), nn.Conv2d(len(SCALES), len(SCALES), 1, bias=False)
    with torch.no_grad():
        copies.weight.copy_(torch.diag(torch.tensor(SCALES))[:, :, None, None])
    return nn.Sequential(OrderedDict(features=features, copies=copies)).eval()


def one() -> nn.Module:
    """A layer of one feature."""
    return nn.Sequential(OrderedDict(features=_conv(3, 1, 3))).eval()


def two() -> nn.Module:
    """A layer of two features."""
    return nn.Sequential(OrderedDict(features=_conv(3, 2, 3))).eval()


def sick() -> nn.Module:
    """Layer `relu`: a live, a dead and a constant feature, and one that is infinite whatever the image."""
    features = nn.Conv2d(3, 4, 1)
    with torch.no_grad():
        features.weight.copy_(torch.tensor([[1.0, -1, 0], [-1, -1, -1], [0, 0, 0], [0, 1, 1]])[:, :, None, None])
        features.bias.copy_(torch.tensor([0.5, -50.0, 0.25, math.inf]))
    return nn.Sequential(OrderedDict(features=features, relu=nn.ReLU())).eval()


def asleep() -> nn.Module:
    """A layer (`relu`) of three features that are all dead."""
    features = nn.Conv2d(3, 3, 1)
    with torch.no_grad():
        features.weight.fill_(-1.0)
        features.bias.fill_(-50.0)
    return nn.Sequential(OrderedDict(features=features, relu=nn.ReLU())).eval()


class Turning(nn.Module):
    """The identity; a channel whose mean over the grid is above its limit is NaN."""

    def __init__(self, limits: tuple[float, ...]) -> None:
        super().__init__()
        self.limits = limits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0 * torch.sqrt(torch.tensor(self.limits).to(x)[:, None, None] - x.mean((2, 3), keepdim=True))


def turning() -> nn.Module:
    """Layer `turn` of four features, of which the last two turn NaN as soon as a descent has raised them."""
    first = nn.Conv2d(3, 4, 1, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[0.0, 1, -1], [0, -1, 1], [1, 0, 0], [1, 1, 0]])[:, :, None, None])
    return nn.Sequential(OrderedDict(first=first, turn=Turning((9e9, 9e9, 0.7, 1.3)))).eval()


class Level(nn.Module):
    """Rises where it falls: the value of -x with the gradient of x in all channels but the last."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = x - 2 * x.detach()
        return torch.cat([found[:, :-1], x[:, -1:]], dim=1)


def level() -> nn.Module:
    """Layer `level` of three features; the descents of the first two have gradients and only make things worse."""
    features = nn.Conv2d(3, 3, 1, bias=False)
    with torch.no_grad():
        features.weight.copy_(torch.tensor([[1.0, 0.5, 0], [-1, 0.2, 1], [0, 1, 1]])[:, :, None, None])
    return nn.Sequential(OrderedDict(features=features, level=Level())).eval()


def broken() -> nn.Module:
    """Layer `features` of three features that are NaN whatever the image."""
    features = nn.Conv2d(3, 3, 1)
    with torch.no_grad():
        for tensor in features.parameters():
            tensor.fill_(math.nan)
    return nn.Sequential(OrderedDict(features=features, relu=nn.ReLU())).eval()


def shrinking() -> nn.Module:
    """Without padding: `last` takes images of 15 pixels or more."""
    layers = OrderedDict(
        first=nn.Conv2d(3, 4, 3, stride=2),
        middle=nn.Conv2d(4, 4, 3, stride=2),
        last=nn.Conv2d(4, 5, 3),
    )
    module = nn.Sequential(layers).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.copy_(0.2 * torch.randn(tensor.shape, generator=generator))
    return module


def hostile() -> nn.Module:
    """A layer whose name is markup."""
    return nn.Sequential(OrderedDict({"<script>alert('&')</script>": _conv(3, 4, 9)})).eval()


def failing() -> nn.Module:
    """A factory that fails, in two lines."""
    raise RuntimeError("first line\nsecond line")


def not_a_module() -> str:
    """A factory that makes something else."""
    return "a network"
