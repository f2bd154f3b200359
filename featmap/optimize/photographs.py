"""Photographs: found in a folder, read one at a time, brought to a square in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
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
    if folder.is_file():
        raise FeatmapError(f"images {str(folder)!r}: that is a file; give the folder of the photographs, unpacked")
    if not folder.is_dir():
        raise FeatmapError(f"images {str(folder)!r}: there is no such folder; give a folder of photographs")
    found = [
        p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()
    ]
    if not found:
        raise FeatmapError(f"images {str(folder)!r}: no photographs in it ({', '.join(SUFFIXES)})")
    return sorted(found, key=lambda p: p.relative_to(folder).as_posix())


def read_photograph(path: Path, size: int) -> Tensor:
    """Return a photograph as 3 x size x size in [0, 1]: shorter side resized to `size`, middle cut out.

    16-bit gray is brought to 8 bits by scale (65535 is white); what is transparent lies on white.

    Raises
    ------
    FeatmapError
        if the file is missing or no picture.
    """
    try:
        square = ImageOps.fit(_opened(path), (size, size), Image.Resampling.BICUBIC)
    except _FAULTS as error:
        raise FeatmapError(
            f"image {str(path)!r} cannot be read ({_reason(path, error)}); give a JPEG or PNG"
        ) from error
    return torch.from_numpy(np.array(square, dtype=np.float32) / 255.0).permute(2, 0, 1).contiguous()


_FAULTS = (OSError, Image.DecompressionBombError, SyntaxError, ValueError)


def _opened(path: Path) -> Image.Image:
    """Return a picture upright, whole, in RGB."""
    with Image.open(path) as picture:
        picture.load()
        upright = ImageOps.exif_transpose(picture)
    if upright.mode == "I" or upright.mode.startswith("I;16"):
        gray = np.clip(np.round(np.asarray(upright, dtype=np.float64) / 257.0), 0, 255)
        return Image.fromarray(gray.astype(np.uint8)).convert("RGB")
    if upright.has_transparency_data:
        over = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
    return upright.convert("RGB")


def _reason(path: Path, error: Exception) -> str:
    if not path.exists():
        return "there is no such file"
    if isinstance(error, PermissionError):
        return "nobody may read it"
    if isinstance(error, Image.DecompressionBombError):
        return "it has too many pixels"
    return "it is cut short or no picture"


def check(paths: Sequence[Path], progress: Callable[[int, int], None] | None = None) -> None:
    """Open every photograph, so that none turns out unreadable hours later; `progress` is told (done, total).

    Raises
    ------
    FeatmapError
        that names the first one that cannot be read, and how many others cannot.
    """
    bad: list[tuple[Path, Exception]] = []
    for k, path in enumerate(paths):
        try:
            _opened(path)
        except _FAULTS as error:
            bad.append((path, error))
        if progress is not None:
            progress(k + 1, len(paths))
    if bad:
        path, first = bad[0]
        others = {0: "", 1: ", nor can 1 other"}.get(len(bad) - 1, f", nor can {len(bad) - 1:,} others")
        raise FeatmapError(
            f"image {str(path)!r} cannot be read ({_reason(path, first)}){others}; "
            "take what cannot be read out of the folder, or put JPEG or PNG files in its place"
        ) from first


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
