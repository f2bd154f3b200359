"""Pictures for a page: data URIs within a budget of bytes, and a sheet of thumbnails. Same pixels, same bytes."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

QUALITIES = (92, 85, 75, 60, 45)
MIN_SIDE = 48
SAMPLES = 8
MAX_WIDTH = 2000  # pixels of a report's figure: twice what a page shows


@dataclass(frozen=True)
class Encoding:
    """How images are written: PNG (`quality` None) or WebP of a quality, their longer side at most `side` pixels."""

    quality: int | None
    side: int

    def __str__(self) -> str:
        """In words."""
        kind = "PNG, every bit kept" if self.quality is None else f"WebP, quality {self.quality}"
        return f"{kind}, {self.side} pixels"


def to_8_bit(image: np.ndarray) -> Image.Image:
    """Return float [3, h, w] as a picture, clipped to [0, 1]; what is not a number is middle gray."""
    finite = np.nan_to_num(np.asarray(image, dtype=np.float32), nan=0.5, posinf=1, neginf=0).clip(0, 1)
    return Image.fromarray(np.rint(255 * finite.transpose(1, 2, 0)).astype(np.uint8))


def png_bytes_per_pixel(image: np.ndarray) -> float:
    """Return how many bytes a pixel of float [3, h, w] takes as PNG: low for what is flat or repeats, 3 for noise."""
    return len(_written(to_8_bit(image), None)) / float(np.prod(image.shape[1:]))


def _written(picture: Image.Image, quality: int | None) -> bytes:
    stream = io.BytesIO()
    if quality is None:
        picture.save(stream, "PNG", optimize=True)
    else:
        picture.save(stream, "WEBP", quality=quality, method=4)
    return stream.getvalue()


def _uri(data: bytes, quality: int | None) -> str:
    return f"data:image/{'png' if quality is None else 'webp'};base64,{b64encode(data).decode()}"


def encode_image(image: np.ndarray, coding: Encoding) -> str:
    """Return float [3, h, w] as a data URI."""
    picture = to_8_bit(image)
    if max(picture.size) > coding.side:
        picture.thumbnail((coding.side, coding.side), Image.Resampling.LANCZOS)
    return _uri(_written(picture, coding.quality), coding.quality)


def choose_encoding(sample: Sequence[np.ndarray], count: int, budget: int) -> Encoding:
    """Return the best coding under which `count` images like those of the sample take `budget` bytes at most.

    All bits if there is room, then WebP of falling quality, then smaller pictures; never below `LEAST_SIDE`.
    """
    tried = sample[:: -(-len(sample) // SAMPLES)]
    side = max(max(image.shape[1:]) for image in tried)
    while True:
        for quality in (None, *QUALITIES):
            coding = Encoding(quality, side)
            largest = max(len(encode_image(image, coding)) for image in tried)
            if largest * count <= budget:
                return coding
        if side <= MIN_SIDE:
            return coding
        side = max(MIN_SIDE, side * 3 // 4)


class ThumbnailSheet:
    """Thumbnails in rows on one picture, so that a page decodes one picture and not thousands."""

    def __init__(self, count: int) -> None:
        self.side = 56 if count <= 600 else 48 if count <= 1200 else 40
        self.columns = max(1, int(np.ceil(np.sqrt(count))))
        rows = -(-count // self.columns)
        self.sheet = Image.new("RGB", (self.columns * self.side, rows * self.side), "#c9c9c9")

    def put(self, at: int, image: np.ndarray) -> None:
        """Place float [3, h, w] as thumbnail `at`."""
        tile = to_8_bit(image)
        filter_ = Image.Resampling.LANCZOS if max(tile.size) > self.side else Image.Resampling.NEAREST
        tile = tile.resize((self.side, self.side), filter_)
        self.sheet.paste(tile, (at % self.columns * self.side, at // self.columns * self.side))

    def as_json(self) -> dict[str, Any]:
        """Return side, columns and the sheet as a data URI."""
        return {"side": self.side, "columns": self.columns, "uri": _uri(_written(self.sheet, 82), 82)}


def encode_figure(path: Any) -> tuple[str, tuple[int, int]]:
    """Return a figure of a run folder as a data URI, at most `WIDEST` pixels wide, and its size on the page."""
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((MAX_WIDTH, 4 * MAX_WIDTH), Image.Resampling.LANCZOS)
    return _uri(_written(picture, 88), 88), picture.size


def encode_animation(frames: Sequence[np.ndarray], milliseconds: int, side: int, quality: int = 70) -> bytes:
    """Return frames, float [3, h, w] in [0, 1], as an animated WebP that repeats for ever.

    `milliseconds` a frame, the last one five times as long; longer side `side` pixels. At least one frame.
    """
    pictures = []
    for frame in frames:
        picture = to_8_bit(frame)
        scale = side / max(picture.size)
        kind = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
        pictures.append(picture.resize([max(1, round(scale * n)) for n in picture.size], kind))
    stream = io.BytesIO()
    lasting = [milliseconds] * (len(pictures) - 1) + [5 * milliseconds]
    pictures[0].save(
        stream, "WEBP", save_all=True, append_images=pictures[1:], duration=lasting, loop=0, quality=quality, method=4
    )
    return stream.getvalue()
