"""Small networks of kinds that users have: each does something that a toolkit may get wrong silently.

Each is a factory, ``tests.helpers.kinds:name``, with seeded weights and batch statistics as training leaves them.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.helpers.networks import randomised


class ActivatedNorm(nn.BatchNorm2d):
    """A batch norm that applies its activation too, as timm has it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(super().forward(x))


def _norms(inside: bool) -> nn.Module:
    def norm(channels: int) -> nn.Module:
        return ActivatedNorm(channels) if inside else nn.Sequential(nn.BatchNorm2d(channels), nn.SiLU())

    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), norm(8), nn.Conv2d(8, 8, 3, padding=1, bias=False), norm(8)
    )
    return randomised(net, seed=4).eval()


def norm_with_activation() -> nn.Module:
    """Two convolutions, each with an `ActivatedNorm`."""
    return _norms(True)


def norm_and_activation() -> nn.Module:
    """The same function written with plain batch norms and activations."""
    return _norms(False)


class Aliased(nn.Module):
    """A stem that is also registered inside the backbone that it was taken from; both names are called."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.conv, self.norm = self.backbone[0], self.backbone[1]
        self.parts = [self.conv, self.norm]  # a plain list, which torch does not register
        self.head = nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return self.head(F.relu(x))


def aliased() -> nn.Module:
    """`Aliased` with seeded weights."""
    return randomised(Aliased(), seed=5).eval()


class Reusing(nn.Module):
    """A network that reads a batch norm's and a convolution's weights beside calling the modules."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x)) + F.conv2d(x, self.conv.weight, padding=1)
        return self.head(F.relu(y * self.norm.weight[:, None, None]))


def reusing() -> nn.Module:
    """`Reusing` with seeded weights."""
    return randomised(Reusing(), seed=6).eval()


class Checkpointed(nn.Module):
    """A middle part whose outputs are computed again in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first, self.middle = nn.Conv2d(3, 8, 3), nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 1))
        self.last, self.reentrant, self.on = nn.Conv2d(6, 6, 3), reentrant, True

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        x = checkpoint(self.middle, x, use_reentrant=self.reentrant) if self.on else self.middle(x)
        return self.last(x)


def checkpointed(reentrant: bool = False) -> nn.Module:
    """`Checkpointed` with seeded weights."""
    return randomised(Checkpointed(reentrant), seed=7).eval()


def plain() -> nn.Module:
    """A convolution, a batch norm, a ReLU and a convolution."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1))
    return randomised(net, seed=8).eval()


class Autocast(nn.Module):
    """A network that computes in bfloat16 by its own choice."""

    def __init__(self) -> None:
        super().__init__()
        self.body = plain()

    def forward(self, x: Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.body(x)


def autocast() -> nn.Module:
    """`Autocast` in evaluation mode."""
    return Autocast().eval()


class OwnHalf(nn.Module):
    """A network in float16 that converts its input itself."""

    def __init__(self) -> None:
        super().__init__()
        self.body = plain().half()

    def forward(self, x: Tensor) -> Any:
        return self.body(x.half())


class DroppedSamples(nn.Module):
    """Dropout of whole samples that stays active in evaluation; it leaves most passes as they are."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand(len(x), 1, 1, 1) >= self.rate)


def stochastic() -> nn.Module:
    """Layer ``drop`` drops a tenth of the samples of layer ``body``."""
    return nn.Sequential(OrderedDict(body=plain(), drop=DroppedSamples(0.1))).eval()


class Remembering(nn.Module):
    """A network that counts its passes in a buffer and an attribute, and caches its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.passes: Tensor
        self.register_buffer("passes", torch.zeros(()))
        self.count = 0

    def forward(self, x: Tensor) -> Any:
        self.passes += 1
        self.count += 1
        self.cache = x
        return self.conv(x)


def remembering() -> nn.Module:
    """`Remembering` with seeded weights."""
    return randomised(Remembering(), seed=9)
