"""Encode images for a page: data URIs within a budget of bytes, thumbnails, animations. Equal pixels, equal bytes."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from featmap import image_shape

QUALITIES = (92, 85, 75, 60, 45)
"""Qualities of WebP that are tried, the best first."""
MIN_SIDE = 48
"""Images are not reduced below this side, in pixels, whatever the budget."""
SAMPLES = 8
"""Images that an encoding is tried on."""
MAX_WIDTH = 2000
"""Width of a report's figure in pixels: twice that on the page."""


@dataclass(frozen=True)
class Encoding:
    """Format and size of encoded images.

    Parameters
    ----------
    quality : int or None
        Quality of WebP; None writes PNG.
    side : int
        Maximum length of the longer side in pixels.
    """

    quality: int | None
    side: int

    def __str__(self) -> str:
        """Describe the encoding in words."""
        kind = "PNG, lossless" if self.quality is None else f"WebP, quality {self.quality}"
        return f"{kind}, {self.side} pixels"


def to_rgb_picture(image: np.ndarray) -> Image.Image:
    """Convert an image to a picture of 8 bits a channel.

    Parameters
    ----------
    image : numpy.ndarray
        C x H x W; values are clipped to [0, 1], NaN becomes middle gray.

    Returns
    -------
    PIL.Image.Image
        RGB image; other than three channels are shown as `featmap.image_shape.to_rgb` shows them.
    """
    return Image.fromarray(image_shape.to_8_bit(image))


def png_bytes_per_pixel(image: np.ndarray) -> float:
    """Measure how well an image compresses.

    Parameters
    ----------
    image : numpy.ndarray
        C x H x W, values in [0, 1].

    Returns
    -------
    float
        Bytes of the PNG per pixel: low for flat or repetitive images, about 3 for noise.
    """
    return len(_compress(to_rgb_picture(image), None)) / float(np.prod(image.shape[1:]))


def _compress(picture: Image.Image, quality: int | None) -> bytes:
    """Return the bytes of a picture as PNG (no quality) or WebP."""
    stream = io.BytesIO()
    if quality is None:
        picture.save(stream, "PNG", optimize=True)
    else:
        picture.save(stream, "WEBP", quality=quality, method=4)
    return stream.getvalue()


def _uri(data: bytes, quality: int | None) -> str:
    """Return the data URI of a PNG (no quality) or WebP."""
    return f"data:image/{'png' if quality is None else 'webp'};base64,{b64encode(data).decode()}"


def encode_image(image: np.ndarray, encoding: Encoding) -> str:
    """Encode an image as a data URI.

    Parameters
    ----------
    image : numpy.ndarray
        C x H x W, values in [0, 1].
    encoding : Encoding
        Format and size.

    Returns
    -------
    str
        Data URI.
    """
    picture = to_rgb_picture(image)
    if max(picture.size) > encoding.side:
        picture.thumbnail((encoding.side, encoding.side), Image.Resampling.LANCZOS)
    return _uri(_compress(picture, encoding.quality), encoding.quality)


def choose_encoding(sample: Sequence[np.ndarray], count: int, budget: int) -> Encoding:
    """Choose the best encoding with which images fit into a budget.

    Lossless if there is room, then WebP of decreasing quality, then smaller images, down to a side of `MIN_SIDE`.

    Parameters
    ----------
    sample : sequence of numpy.ndarray
        Some of the images, C x H x W.
    count : int
        Number of images in all; each is assumed to take as many bytes as the largest of the sample.
    budget : int
        Bytes for all of them.

    Returns
    -------
    Encoding
        Format and size; the smallest one where nothing fits.
    """
    trial_images = sample[:: -(-len(sample) // SAMPLES)]
    side = max(max(image.shape[1:]) for image in trial_images)
    while True:
        for quality in (None, *QUALITIES):
            encoding = Encoding(quality, side)
            # length of the data URI: base64 takes a third more than the image itself
            largest = max(len(encode_image(image, encoding)) for image in trial_images)
            if largest * count <= budget:
                return encoding
        if side <= MIN_SIDE:
            return encoding
        side = max(MIN_SIDE, side * 3 // 4)


class ThumbnailSheet:
    """Thumbnails in rows on a single picture, which a page decodes at once.

    Parameters
    ----------
    count : int
        Number of thumbnails; more of them are smaller.
    """

    def __init__(self, count: int) -> None:
        self.side = 56 if count <= 600 else 48 if count <= 1200 else 40
        self.columns = max(1, int(np.ceil(np.sqrt(count))))
        rows = -(-count // self.columns)
        self.sheet = Image.new("RGB", (self.columns * self.side, rows * self.side), "#c9c9c9")

    def put(self, position: int, image: np.ndarray) -> None:
        """Put an image on the sheet.

        Parameters
        ----------
        position : int
            Number of the thumbnail, from 0, row by row.
        image : numpy.ndarray
            C x H x W, values in [0, 1].
        """
        tile = to_rgb_picture(image)
        filter_ = Image.Resampling.LANCZOS if max(tile.size) > self.side else Image.Resampling.NEAREST
        width, height = (max(1, round(self.side * n / max(tile.size))) for n in tile.size)
        tile = tile.resize((width, height), filter_)
        x, y = position % self.columns * self.side, position // self.columns * self.side
        self.sheet.paste(tile, (x + (self.side - width) // 2, y + (self.side - height) // 2))

    def as_json(self) -> dict[str, Any]:
        """Encode the sheet for a page.

        Returns
        -------
        dict
            Side of a thumbnail in pixels, number of columns, and the sheet as a data URI.
        """
        return {"side": self.side, "columns": self.columns, "uri": _uri(_compress(self.sheet, 82), 82)}


def encode_figure(path: Any) -> tuple[str, tuple[int, int]]:
    """Encode an image file as a data URI, at most `MAX_WIDTH` pixels wide.

    Parameters
    ----------
    path : Path
        Image file, such as a figure of a run.

    Returns
    -------
    uri : str
        Data URI.
    size : (int, int)
        Width and height in pixels.
    """
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((MAX_WIDTH, 4 * MAX_WIDTH), Image.Resampling.LANCZOS)
    return _uri(_compress(picture, 88), 88), picture.size


def encode_animation(frames: Sequence[np.ndarray], milliseconds: int, side: int, quality: int = 70) -> bytes:
    """Encode frames as an animated WebP that repeats forever.

    Parameters
    ----------
    frames : sequence of numpy.ndarray
        One or more images, C x H x W, values in [0, 1].
    milliseconds : int
        Duration of a frame; the last one lasts five times as long.
    side : int
        Length of the longer side in pixels.
    quality : int, default 70
        Quality of WebP.

    Returns
    -------
    bytes
        Content of the file.
    """
    pictures = []
    for frame in frames:
        picture = to_rgb_picture(frame)
        scale = side / max(picture.size)
        kind = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
        pictures.append(picture.resize([max(1, round(scale * n)) for n in picture.size], kind))
    stream = io.BytesIO()
    durations = [milliseconds] * (len(pictures) - 1) + [5 * milliseconds]
    pictures[0].save(
        stream, "WEBP", save_all=True, append_images=pictures[1:], duration=durations, loop=0, quality=quality, method=4
    )
    return stream.getvalue()
