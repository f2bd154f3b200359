"""Photographs: found in a folder, read one at a time, brought to a square in [0, 1]."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from featmap.errors import FeatmapError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def find_photographs(folder: Path) -> list[Path]:
    """Return the photographs below `folder`, in the order of their names.

    Raises
    ------
    FeatmapError
        if there is no such folder or no photograph in it.
    """
    if not folder.is_dir():
        raise FeatmapError(f"images {str(folder)!r}: there is no such folder; give a folder of photographs or a run")
    found = [
        p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()
    ]
    if not found:
        raise FeatmapError(f"images {str(folder)!r}: no photographs in it ({', '.join(SUFFIXES)})")
    return sorted(found, key=lambda p: p.relative_to(folder).as_posix())


def read_photograph(path: Path, size: int) -> Tensor:
    """Return a photograph as 3 x size x size in [0, 1]: shorter side resized to `size`, middle cut out.

    Raises
    ------
    FeatmapError
        if the file is missing or no picture.
    """
    try:
        with Image.open(path) as picture:
            upright = ImageOps.exif_transpose(picture).convert("RGB")
            square = ImageOps.fit(upright, (size, size), Image.Resampling.BICUBIC)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        reason = "there is no such file" if not path.exists() else f"{type(error).__name__}"
        raise FeatmapError(f"image {str(path)!r} cannot be read ({reason}); give a JPEG or PNG") from error
    return torch.from_numpy(np.array(square, dtype=np.float32) / 255.0).permute(2, 0, 1).contiguous()


def starting_image(given: Any, size: int) -> Tensor:
    """Return what a descent starts from: a photograph's path, read at `size`, or an array as it is.

    Parameters
    ----------
    given : a path, or 3 x H x H of floats (a photograph's lie in [0, 1], noise may go beyond); a copy is made

    Raises
    ------
    FeatmapError
        if the file cannot be read, or the array is no square image of finite floats.
    """
    if isinstance(given, (str, Path)):
        return read_photograph(Path(given), size)
    array = given.detach().cpu() if isinstance(given, Tensor) else torch.from_numpy(np.array(given))
    if array.dim() != 3 or array.shape[0] != 3 or array.shape[1] != array.shape[2] or not array.numel():
        raise FeatmapError(f"start of shape {tuple(array.shape)}; allowed: one image, 3 x H x H, or a picture's path")
    if not array.is_floating_point() or not bool(array.isfinite().all()):
        raise FeatmapError(f"start of {array.dtype} holds no finite floats alone; give pixels as floats, 0 to 1")
    return array.to(torch.float32, copy=True).contiguous()


def batches(paths: Sequence[Path], size: int, rows: int) -> Iterator[tuple[int, Tensor]]:
    """Yield (index of the first, photographs as B x 3 x size x size), `rows` at a time."""
    for first in range(0, len(paths), rows):
        yield first, torch.stack([read_photograph(p, size) for p in paths[first : first + rows]])
