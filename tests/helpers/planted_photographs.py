"""Photographs with a pattern at known places, and a network that detects it."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

SIZE, SIDE, COUNT = 32, 5, 14
"""Side of a photograph and of the pattern in pixels, and number of photographs."""
DETECTOR, SILENT = "relu:0", "relu:3"
"""Features of `network`: one that detects the pattern, one that never responds."""
HOSTILE = "<img src=x onerror=alert(1)>.png"
"""Name of the photograph that is markup."""


def _pattern() -> np.ndarray:
    """A pattern of one sign that no shifted copy of it resembles: H x W x 3 in {0, 1}."""
    return np.random.default_rng(5).integers(0, 2, (SIDE, SIDE, 3)).astype(np.float64)


def _name(k: int) -> str:
    """Name of a photograph."""
    return HOSTILE if k == 3 else f"{k:02d}.png"


PLACES = {
    _name(k): tuple(int(n) for n in 2 * np.random.default_rng(k).integers(0, (SIZE - SIDE) // 2, 2))
    for k in range(COUNT)
}
"""Upper left corner of the pattern by photograph, where a window of the network begins."""
_STRENGTHS = {_name(k): 1 - 0.03 * ((5 * k) % COUNT) for k in range(COUNT)}


def ranked_names() -> list[str]:
    """Names of the photographs, by falling strength of the pattern."""
    return sorted(_STRENGTHS, key=lambda name: -_STRENGTHS[name])


def save_photographs(folder: Path, count: int = COUNT) -> Path:
    """Write photographs: middle gray with the pattern."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in list(PLACES)[:count]:
        y, x = PLACES[name]
        pixels = np.full((SIZE, SIZE, 3), 128.0)
        pixels[y : y + SIDE, x : x + SIDE] += 127 * _STRENGTHS[name] * (2 * _pattern() - 1)
        Image.fromarray(pixels.round().astype(np.uint8)).save(folder / name)
    return folder


def network() -> nn.Module:
    """Layer `relu`: a detector of the pattern, one of its opposite, one of noise, and a feature that is silent."""
    conv = nn.Conv2d(3, 4, SIDE, 2, SIDE // 2)
    pattern = torch.from_numpy(2 * _pattern() - 1).permute(2, 0, 1).float()
    pattern = pattern - pattern.mean((1, 2), keepdim=True)
    noise = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(2)) - 0.5
    with torch.no_grad():
        conv.weight.copy_(torch.stack([pattern, -pattern, noise, torch.zeros_like(noise)]))
        conv.bias.copy_(torch.tensor([-12.0, 0, 0, -1]))
    return nn.Sequential(OrderedDict(conv=conv, relu=nn.ReLU())).eval()
