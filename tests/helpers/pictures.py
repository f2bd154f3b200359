"""Small photographs for tests, in folders, and a network whose answers to them are known."""

from __future__ import annotations

import io
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn


def save_noise(folder: Path, count: int, seed: int = 0, classes: int = 3) -> Path:
    """Write small photographs into a folder for each class."""
    rng = np.random.default_rng(seed)
    for k in range(count):
        path = folder / f"class{k % classes}" / f"{k:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (18, 21, 3), dtype=np.uint8)).save(path)
    return folder


def zip_noise(path: Path, count: int, side: int) -> Path:
    """Write many small photographs into a zip, quickly."""
    rng = np.random.default_rng(0)
    head = f"P6 {side} {side} 255\n".encode()
    with zipfile.ZipFile(path, "w") as archive:
        for k in range(count):
            archive.writestr(f"{k:06d}.ppm", head + rng.bytes(3 * side * side))
    return path


def save_colours(folder: Path, colours: np.ndarray) -> Path:
    """Write photographs of one colour each, N x 3 bytes."""
    folder.mkdir(parents=True)
    for k, colour in enumerate(np.asarray(colours, dtype=np.uint8)):
        Image.fromarray(np.broadcast_to(colour, (8, 8, 3)).copy()).save(folder / f"{k:03d}.png")
    return folder


def purple_and_green(count: int, seed: int = 0) -> np.ndarray:
    """Colours of which red equals blue, green is independent and at most 0.4 of white: N x 3 bytes."""
    rng = np.random.default_rng(seed)
    red, green = rng.integers(20, 236, count), rng.integers(20, 102, count)
    return np.stack([red, green, red], axis=1)


RED, BLUE, GREEN, BRIGHT_GREEN = range(4)
"""Features of `parting`; three more are the negatives of the first three."""


def parting() -> nn.Module:
    """Layer `features`, in which photographs and maximising images give different answers.

    RED and BLUE respond to red and to blue. Photographs in which red always equals blue drive them alike, while each
    one's maximising image has only its own colour. BRIGHT_GREEN is ten times the green above 0.4, and a fifth of the
    blue. Maximising GREEN or BRIGHT_GREEN takes the green to 1, and both respond; on photographs whose green stays
    below 0.4, BRIGHT_GREEN sees nothing but blue.
    """
    parts, features = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 7, 1, bias=False)
    with torch.no_grad():
        parts.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 0]])[:, :, None, None])
        parts.bias.copy_(torch.tensor([0.0, 0, 0, -0.4]))
        rows = [[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0.2, 0, 10]]
        features.weight.copy_(torch.tensor([*rows, *(-np.array(rows[:3])).tolist()])[:, :, None, None])
    return nn.Sequential(OrderedDict(parts=parts, relu=nn.ReLU(), features=features)).eval()


def responses_to_colours(colours: np.ndarray) -> np.ndarray:
    """What the features of `parting` respond to photographs of one colour, by hand: N x 7."""
    red, green, blue = np.asarray(colours, dtype=np.float64).T / 255
    bright = 10 * np.maximum(green - 0.4, 0) + 0.2 * blue
    return np.stack([red, blue, green, bright, -red, -blue, -green], axis=1)


def png_bytes(seed: int = 0) -> bytes:
    """A small photograph as a file's content."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (18, 21, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
