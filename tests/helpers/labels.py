"""Labelled pictures for the training's tests: random ones of 36 pixels, a folder a class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES, EACH = ("n01", "n02", "n03"), 5


def write(folder: Path) -> Path:
    """Write them, as Tiny-ImageNet lies on disk, and return the folder."""
    rng = np.random.Generator(np.random.PCG64(1))
    for name in CLASSES:
        (folder / name / "images").mkdir(parents=True)
        for k in range(EACH):
            pixels = rng.integers(0, 256, (36, 36, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / "images" / f"{k}.png")
    return folder
