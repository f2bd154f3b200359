"""Photographs: list the files of a folder and read each as an image in [0, 1] of a network's size and channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from featmap.errors import FeatmapError
from featmap.image_shape import Size, as_pair

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
PHOTOGRAPH_CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's modes by the number of channels that a photograph is read with."""
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


def check_photograph_channels(channels: int) -> None:
    """Check that photographs have the channels that a network takes.

    Parameters
    ----------
    channels : int
        Number of input channels of the network.

    Raises
    ------
    FeatmapError
        If it is none of `PHOTOGRAPH_CHANNELS`.
    """
    if channels not in PHOTOGRAPH_CHANNELS:
        raise FeatmapError(
            f"photographs have 1 channel (gray), 3 (red, green, blue) or 4 (and opacity), and the network takes "
            f"{channels}; give an array of images, N x {channels} x H x W, in Python, or leave the photographs out"
        )


def read_photograph(path: Path, size: Size, channels: int = 3) -> Tensor:
    """Read a photograph at a size.

    It is resized to cover the size, and the centre is cropped. 16-bit gray is scaled to 8 bits (65535 is white);
    transparent pixels are put on white.

    Parameters
    ----------
    path : Path
        Image file.
    size : int or (int, int)
        Size of the result in pixels.
    channels : int, default 3
        Channels of the result: 1 is gray (ITU-R 601 luma), 3 are red, green and blue, 4 these and an opacity of 1.

    Returns
    -------
    Tensor
        C x H x W in [0, 1], float32.

    Raises
    ------
    FeatmapError
        If the file is missing or not a readable image, or photographs have no such channels.
    """
    check_photograph_channels(channels)
    height, width = as_pair(size)
    try:
        fitted = ImageOps.fit(_open_rgb(path), (width, height), Image.Resampling.BICUBIC)
    except _READ_ERRORS as error:
        raise FeatmapError(
            f"image {str(path)!r} cannot be read ({_reason(path, error)}); give a JPEG or PNG"
        ) from error
    fitted = fitted.convert(PHOTOGRAPH_CHANNELS[channels])
    pixels = np.array(fitted, dtype=np.float32).reshape(height, width, channels) / 255.0
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


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


def load_start_image(value: Any, size: Size, channels: int = 3) -> Tensor:
    """Load the image that a descent starts from.

    Parameters
    ----------
    value : str, Path, Tensor or array_like
        Path of an image file, which is read at `size`; or C x H x W of floats, which are copied as they are (those of
        a photograph lie in [0, 1], noise may go beyond).
    size : int or (int, int)
        Size in pixels of the descent's first images, at which a file is read.
    channels : int, default 3
        Number C of the network's input channels.

    Returns
    -------
    Tensor
        C x H x W, float32, on the CPU.

    Raises
    ------
    FeatmapError
        If the file cannot be read, or the array is not an image of finite floats with as many channels and the same
        ratio of height to width.
    """
    if isinstance(value, (str, Path)):
        return read_photograph(Path(value), size, channels)
    array = value.detach().cpu() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    height, width = as_pair(size)
    is_image = array.dim() == 3 and array.shape[0] == channels and array.numel() > 0
    # sides of a recipe's octaves are rounded, so the ratio need not be exact, unless it is that of a square
    tolerance = 0 if height == width else 0.02 * array.shape[-1] * height
    if not is_image or abs(array.shape[1] * width - array.shape[2] * height) > tolerance:
        shape = "H x H" if height == width else f"H x W with H : W = {height} : {width}"
        raise FeatmapError(
            f"start of shape {tuple(array.shape)}; allowed: one image, {channels} x {shape}, or an image file's path"
        )
    if not array.is_floating_point() or not bool(array.isfinite().all()):
        raise FeatmapError(f"start of {array.dtype}: not all values are finite floats; give pixels as floats, 0 to 1")
    return array.to(torch.float32, copy=True).contiguous()
