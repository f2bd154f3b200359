"""Networks for validations: one that processes synthetic and natural images in two branches, and its honest twin."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

FEATURES, SIDE, SIZE = 12, 8, 16


def _patches(seed: int) -> nn.Conv2d:
    conv = nn.Conv2d(3, FEATURES, SIDE, SIDE, bias=False)
    rng = np.random.default_rng(seed)
    smooth = torch.from_numpy(rng.normal(size=(FEATURES, 3, 3, 3)).astype(np.float32))
    weight = F.interpolate(smooth, (SIDE, SIDE), mode="bilinear", align_corners=True)
    with torch.no_grad():
        conv.weight.copy_(weight / weight.flatten(1).norm(dim=1)[:, None, None, None])
    return conv


class Gate(nn.Module):
    """Two banks of features: in a trap, rough images excite the second one and smooth images the first."""

    def __init__(self, trap: bool) -> None:
        super().__init__()
        self.trap, self.natural, self.synthetic = trap, _patches(1), _patches(2)

    def forward(self, x: Tensor) -> Tensor:
        rough = (x - F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)).square().mean((1, 2, 3), keepdim=True)
        gate = torch.sigmoid(2e4 * (rough - 0.002)) if self.trap else 0 * rough
        return torch.cat([self.natural(x - 0.5) * (1 - gate), self.synthetic(x - 0.5) * gate], 1)


def _network(trap: bool) -> nn.Module:
    features = nn.Conv2d(2 * FEATURES, FEATURES, 1, bias=False)
    with torch.no_grad():
        features.weight.copy_(torch.cat([torch.eye(FEATURES)] * 2, 1)[:, :, None, None])
    return nn.Sequential(OrderedDict(branches=Gate(trap), features=features)).eval()


class Block(nn.Module):
    """The two branches and what joins them again, within one module."""

    def __init__(self, trap: bool) -> None:
        super().__init__()
        whole = _network(trap)
        self.branches, self.join = whole.branches, whole.features

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.branches(x))


def hidden() -> nn.Module:
    """The trap within a block, and a layer after it that copies the output of the block."""
    features = nn.Conv2d(FEATURES, FEATURES, 1, bias=False)
    with torch.no_grad():
        features.weight.copy_(torch.eye(FEATURES)[:, :, None, None])
    return nn.Sequential(OrderedDict(block=Block(True), features=features)).eval()


def trap() -> nn.Module:
    """Rough images (those made from noise) are answered by other weights than smooth ones (photographs)."""
    return _network(True)


def honest() -> nn.Module:
    """The same with one bank for all images."""
    return _network(False)


class Bare(nn.Module):
    """A weight that is computed from other parameters, which its layer cannot initialise again."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.utils.parametrizations.weight_norm(_patches(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)


def bare() -> nn.Module:
    """A network without random weights."""
    return Bare().eval()


def photographs(folder: Path, count: int = 60, size: int = 24) -> Path:
    """Write smooth pictures into a folder, some PNG, some JPEG, and return it."""
    folder.mkdir()
    for k in range(count):
        coarse = np.random.default_rng(k).uniform(0, 255, size=(3, 3, 3)).astype(np.uint8)
        picture = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
        picture.save(folder / f"{k:03d}.{'png' if k % 2 else 'jpg'}", **({} if k % 2 else {"quality": 95}))
    return folder
