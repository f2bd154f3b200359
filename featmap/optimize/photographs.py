"""Photographs: decode any image file that Pillow reads, upright, in [0, 1], of a network's size and channels."""

from __future__ import annotations

import hashlib
import os
import sys
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from featmap.errors import FeatmapError
from featmap.image_shape import Size, as_pair

MAX_BYTES = 1 << 30
"""Largest file that is read: some decoders hold the whole file in memory."""
UNDECODED = ("BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF")
"""Formats that Pillow names but cannot decode by itself; EPS would start another program on the file."""
NO_SUFFIX = ("IMT", "MCIDAS", "SPIDER", "XVTHUMB")
"""Formats without a suffix of their own, for which damaged files of other formats could be taken."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by the orientation in its EXIF data."""
PHOTOGRAPH_CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's modes by the number of channels that a photograph is read with."""
_COLOURS = {"RGB": 3, "RGBA": 3, "LA": 1}
"""Numbers of channels that are colours, by Pillow's modes of which files may hold 16 bits."""
_GRAY_OPACITY = "LA;16B"
"""Pillow's mode of files of 16-bit gray with opacity: upper and lower byte of the gray, then of the opacity."""
ONLY_8_BITS = "its 16-bit values use only 8 bits, nearly black; save it with 8 bits"
"""Why a file is refused that another program filled with too small values."""


class UnreadableError(ValueError):
    """A file whose pixels have no meaning as a photograph; the message says why."""


@cache
def decoded_formats() -> tuple[str, ...]:
    """List the formats that are read.

    Returns
    -------
    tuple of str
        Pillow's names, in the order in which it tries them.
    """
    Image.init()
    return tuple(name for name in Image.ID if name not in (*UNDECODED, *NO_SUFFIX))


@cache
def decoded_suffixes() -> frozenset[str]:
    """List the suffixes of the formats that are read.

    Returns
    -------
    frozenset of str
        In lower case, with the dot.
    """
    formats = decoded_formats()
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


def has_image_header(file: IO[bytes]) -> bool:
    """Check whether a file begins as an image of a common format does.

    Parameters
    ----------
    file : binary file
        Content of the file, from its start.

    Returns
    -------
    bool
        True for JPEG, PNG, GIF, WebP, TIFF and AVIF, whether or not the rest can be decoded.
    """
    start = file.read(12)
    known = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\x00", b"MM\x00*")
    return start.startswith(known) or start[:4] + start[8:] == b"RIFFWEBP" or start[4:] == b"ftypavif"


@contextmanager
def without_decoder_warnings() -> Iterator[None]:
    """Keep Pillow's warnings about single files from being printed, or raised.

    Warnings are settings of the whole process, so this is entered by the thread that starts the decoding threads.
    What they warn of is checked and counted: see `PhotographFolder.remarks`.

    Yields
    ------
    None
        Nothing; the context decodes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


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
    transparent pixels are put on white, unless their opacity is the fourth channel; of several frames or pages the
    first is read.

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
    try:
        with without_decoder_warnings(), path.open("rb") as file:
            return fit_image(file, size, channels)
    except Exception as error:  # whatever a decoder raises on a damaged file
        raise FeatmapError(
            f"image {str(path)!r} cannot be read ({explain_failure(error)}); give a JPEG or PNG"
        ) from error


def fit_image(file: BinaryIO, size: Size, channels: int = 3) -> Tensor:
    """Decode an image file at a size, see `read_photograph`.

    Parameters
    ----------
    file : binary file
        Content of the file, from its start.
    size : int or (int, int)
        Side, or height and width, of the result in pixels.
    channels : int, default 3
        A key of `PHOTOGRAPH_CHANNELS`.

    Returns
    -------
    Tensor
        C x H x W in [0, 1], float32.

    Raises
    ------
    Exception
        Whatever Pillow raises for a damaged file; `explain_failure` puts it in words.
    """
    height, width = as_pair(size)
    picture = decode(file, keep_opacity=channels == 4)[0]
    fitted = ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC).convert(PHOTOGRAPH_CHANNELS[channels])
    pixels = np.array(fitted, dtype=np.float32).reshape(height, width, channels) / 255.0
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def decode(file: BinaryIO, keep_opacity: bool = False) -> tuple[Image.Image, tuple[str, ...]]:
    """Decode all pixels of an image file, upright and as RGB.

    Parameters
    ----------
    file : binary file
        Content of the file, from its start.
    keep_opacity : bool, default False
        Decode as RGBA, opaque where the file holds no opacity, instead of putting transparent pixels on white.

    Returns
    -------
    PIL.Image.Image
        The first frame.
    tuple of str
        What the reader of a result should know of the file, see `PhotographFolder.remarks`.

    Raises
    ------
    Exception
        Whatever Pillow raises for a damaged file; `explain_failure` puts it in words.
    """
    length = file.seek(0, os.SEEK_END)
    if not 0 < length <= MAX_BYTES:
        raise UnreadableError("it is empty" if not length else f"it is larger than {MAX_BYTES:,} bytes")
    file.seek(0)
    with Image.open(file, formats=decoded_formats()) as picture:
        is_deep = any(map(_deep_mode, picture.tile))
        picture.load()  # decodes all pixels, so that a truncated file fails here
        remarks = list(_remarks(picture))
        # of 16-bit colours Pillow keeps the upper 8 bits
        if (
            is_deep
            and picture.mode in _COLOURS
            and (most := np.asarray(picture)[..., : _COLOURS[picture.mode]].max()) < 16
        ):
            if most:
                remarks.insert(0, "of 16-bit colours whose values are all below 4,096, which are read as dark")
            elif _has_lower_bits(file):
                raise UnreadableError(ONLY_8_BITS)
        return _to_rgb(_upright(picture), keep_opacity), tuple(remarks)


def _deep_mode(tile: Any) -> str:
    """Get the mode in which a part of a file holds 16-bit values, such as "RGB;16B"; empty for other parts."""
    mode = tile[3] if isinstance(tile[3], str) else next(iter(tile[3] or ()), "")
    return mode if isinstance(mode, str) and mode.endswith((";16B", ";16L", ";16N")) else ""


def _has_lower_bits(file: BinaryIO) -> bool:
    """Check whether 16-bit colours have any lower 8 bits: Pillow keeps these where the bytes are swapped."""
    swapped = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
    file.seek(0)
    with Image.open(file, formats=decoded_formats()) as picture:
        tiles: list[Any] = picture.tile
        modes = set(map(_deep_mode, tiles))
        for k, tile in enumerate(tiles):
            if mode := _deep_mode(tile):
                # Pillow has no swapped mode for gray with opacity, whose four bytes are read as colours instead
                other = "RGBA" if mode == _GRAY_OPACITY else mode[:-1] + swapped[mode[-1]]
                args = other if isinstance(tile[3], str) else (other, *tile[3][1:])
                tiles[k] = type(tile)(*tile[:3], args) if hasattr(tile, "_fields") else (*tile[:3], args)
        try:
            picture.load()
        except ValueError:  # Pillow has no such mode for these colours, which are taken as they are read: black
            return False
        lower = slice(1, 2) if _GRAY_OPACITY in modes else slice(_COLOURS[picture.mode])
        return bool(np.asarray(picture)[..., lower].any())


def _remarks(picture: Image.Image) -> Iterator[str]:
    """Generate what the reader of a result should know of an image."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and picture.width * picture.height > limit:
        yield f"of more than {limit:,} pixels"
    try:
        has_frames = bool(getattr(picture, "is_animated", False))
    except Exception:  # noqa: BLE001 - later frames may be damaged in many ways, and the first one is decoded already
        has_frames = True
    # cameras and scanners of 10 to 12 bits store their values as they are
    if picture.mode.startswith("I") and 255 < np.asarray(picture).max() < 4096:
        yield "of 16-bit gray whose values are all below 4,096, which are read as dark"
    # a photograph of some cameras (MPO) holds a preview beside it, which is no other picture
    if has_frames and picture.format != "MPO":
        yield "of several frames or pages, of which the first is read"


def _upright(picture: Image.Image) -> Image.Image:
    """Turn a photograph as its EXIF data say; where these are damaged, it is taken as it is stored."""
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001 - metadata have many ways to be damaged, and the pixels are intact
        return picture
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return picture if turn is None else picture.transpose(turn)


def _to_rgb(picture: Image.Image, keep_opacity: bool) -> Image.Image:
    """Convert an image of any mode to RGB, or one with opacity to RGBA."""
    if picture.mode == "F" or picture.mode == "I" or picture.mode.startswith("I;16"):
        return _gray_to_rgb(np.asarray(picture, dtype=np.float32), is_float=picture.mode == "F")
    try:
        if picture.has_transparency_data:
            over = picture.convert("RGBA")
            if keep_opacity:
                return over
            return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
        return picture.convert("RGB")
    except ValueError as error:
        raise UnreadableError(f"its colours ({picture.mode}) cannot be converted to RGB") from error


def _gray_to_rgb(values: np.ndarray, is_float: bool) -> Image.Image:
    """Scale gray values of more than 8 bits to 8: integers by 65535, floats by 1."""
    white = 1.0 if is_float else 65535.0
    # another range would be a guess: a float image of 0 to 255 read as 0 to 1 is all white
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= white):
        raise UnreadableError(f"its gray values are not all from 0 to {white:.0f}")
    if not is_float and 0 < values.max() <= 255:
        raise UnreadableError(ONLY_8_BITS)
    gray = np.round(values * 255.0 if is_float else values / 257.0)
    return Image.fromarray(gray.astype(np.uint8)).convert("RGB")


def explain_failure(error: Exception) -> str:
    """Describe in words why a file could not be read.

    Parameters
    ----------
    error : Exception
        What opening or decoding it raised.

    Returns
    -------
    str
        Such as "it is truncated or not an image".
    """
    if isinstance(error, UnreadableError):
        return str(error)
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    if isinstance(error, Image.DecompressionBombError):
        return f"it has too many pixels, over {2 * (Image.MAX_IMAGE_PIXELS or 0):,}"
    if isinstance(error, OSError) and error.errno is not None:
        known = {FileNotFoundError: "there is no such file", PermissionError: "permission denied"}
        return known.get(type(error), error.strerror or "it cannot be opened")
    if isinstance(error, RuntimeError) and "encrypted" in str(error):
        return "it is encrypted"
    if isinstance(error, zipfile.BadZipFile):
        return "it is damaged within the zip"
    return "it is truncated or not an image"


def pixel_checksum(image: np.ndarray) -> str:
    """Compute a checksum of a photograph as the network sees it.

    Parameters
    ----------
    image : numpy.ndarray
        C x H x W.

    Returns
    -------
    str
        SHA-256 of the pixels, in hexadecimal.
    """
    return hashlib.sha256(np.ascontiguousarray(image, dtype=np.float32).tobytes()).hexdigest()


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
