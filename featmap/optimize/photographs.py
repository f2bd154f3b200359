"""Photographs: list the files of a folder and read each as a square image in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from featmap.errors import FeatmapError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_READ_ERRORS = (OSError, Image.DecompressionBombError, SyntaxError, ValueError)
"""What Pillow raises for files that are damaged or not images."""


def find_photographs(folder: Path) -> list[Path]:
    """List the photographs below a folder, sorted by their paths.

    Parameters
    ----------
    folder : Path
        Folder to search, with its subfolders; hidden files are left out.

    Returns
    -------
    list of Path
        Files whose suffix is one of `SUFFIXES`.

    Raises
    ------
    FeatmapError
        If there is no such folder or no photograph in it.
    """
    if folder.is_file():
        raise FeatmapError(f"images {str(folder)!r}: that is a file; give a folder, or unpack the archive")
    if not folder.is_dir():
        raise FeatmapError(f"images {str(folder)!r}: there is no such folder; give a folder of photographs")
    paths = [
        p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()
    ]
    if not paths:
        raise FeatmapError(
            f"images {str(folder)!r}: no photographs in it; allowed: files that end in {', '.join(SUFFIXES)}"
        )
    return sorted(paths, key=lambda p: p.relative_to(folder).as_posix())


def read_photograph(path: Path, size: int) -> Tensor:
    """Read a photograph as a square image.

    The shorter side is resized to `size` and the centre is cropped. 16-bit gray is scaled to 8 bits (65535 is white);
    transparent pixels are put on white.

    Parameters
    ----------
    path : Path
        Image file.
    size : int
        Side of the result in pixels.

    Returns
    -------
    Tensor
        3 x size x size in [0, 1], float32.

    Raises
    ------
    FeatmapError
        If the file is missing or not a readable image.
    """
    try:
        square = ImageOps.fit(_open_rgb(path), (size, size), Image.Resampling.BICUBIC)
    except _READ_ERRORS as error:
        raise FeatmapError(
            f"image {str(path)!r} cannot be read ({_reason(path, error)}); give a JPEG or PNG"
        ) from error
    return torch.from_numpy(np.array(square, dtype=np.float32) / 255.0).permute(2, 0, 1).contiguous()


def _open_rgb(path: Path) -> Image.Image:
    """Load an image file completely, turn it upright and convert it to RGB."""
    with Image.open(path) as picture:
        picture.load()  # decodes all pixels, so that a truncated file fails here
        upright = ImageOps.exif_transpose(picture)
    if upright.mode == "I" or upright.mode.startswith("I;16"):
        gray = np.clip(np.round(np.asarray(upright, dtype=np.float64) / 257.0), 0, 255)
        return Image.fromarray(gray.astype(np.uint8)).convert("RGB")
    if upright.has_transparency_data:
        over = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
    return upright.convert("RGB")


def _reason(path: Path, error: Exception) -> str:
    """Describe in words why a file could not be read."""
    if not path.exists():
        return "there is no such file"
    if isinstance(error, PermissionError):
        return "permission denied"
    if isinstance(error, Image.DecompressionBombError):
        return "it has too many pixels"
    return "it is truncated or not an image"


def check_readable(paths: Sequence[Path], progress: Callable[[int, int], None] | None = None) -> None:
    """Check that every photograph can be read, before a long run needs them.

    Parameters
    ----------
    paths : sequence of Path
        Image files.
    progress : callable or None, default None
        Called after each file with the number of files checked and the number of all.

    Raises
    ------
    FeatmapError
        If a file cannot be read; it names the first one and the number of others.
    """
    bad: list[tuple[Path, Exception]] = []
    for k, path in enumerate(paths):
        try:
            _open_rgb(path)
        except _READ_ERRORS as error:
            bad.append((path, error))
        if progress is not None:
            progress(k + 1, len(paths))
    if bad:
        path, first = bad[0]
        others = {0: "", 1: ", nor can 1 other file"}.get(len(bad) - 1, f", nor can {len(bad) - 1:,} other files")
        raise FeatmapError(
            f"image {str(path)!r} cannot be read ({_reason(path, first)}){others}; "
            "remove unreadable files from the folder, or replace them by JPEG or PNG files"
        ) from first


def load_start_image(value: Any, size: int) -> Tensor:
    """Load the image that a descent starts from.

    Parameters
    ----------
    value : str, Path, Tensor or array_like
        Path of an image file, which is read at `size`; or 3 x H x H of floats, which are copied as they are (those of
        a photograph lie in [0, 1], noise may go beyond).
    size : int
        Side in pixels of an image that is read from a file.

    Returns
    -------
    Tensor
        3 x H x H, float32, on the CPU.

    Raises
    ------
    FeatmapError
        If the file cannot be read, or the array is not a square image of finite floats.
    """
    if isinstance(value, (str, Path)):
        return read_photograph(Path(value), size)
    array = value.detach().cpu() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    if array.dim() != 3 or array.shape[0] != 3 or array.shape[1] != array.shape[2] or not array.numel():
        raise FeatmapError(
            f"start of shape {tuple(array.shape)}; allowed: one image, 3 x H x H, or an image file's path"
        )
    if not array.is_floating_point() or not bool(array.isfinite().all()):
        raise FeatmapError(f"start of {array.dtype}: not all values are finite floats; give pixels as floats, 0 to 1")
    return array.to(torch.float32, copy=True).contiguous()
