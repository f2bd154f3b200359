"""The shape of images: sizes in pixels, square or not, and how images of any number of channels are shown.

A size is an int for square images, and (height, width) for others only: what is square is written, hashed and stored as
a single number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from featmap.errors import FeatmapError

Size = int | tuple[int, int]
"""Side of square images, or height and width of others, in pixels."""


def as_pair(size: Size) -> tuple[int, int]:
    """Convert a size to height and width.

    Parameters
    ----------
    size : int or (int, int)
        A size.

    Returns
    -------
    (int, int)
        Height and width in pixels.
    """
    return (size, size) if isinstance(size, int) else size


def as_size(value: Any) -> Size:
    """Convert a side, or height and width, to a size.

    Parameters
    ----------
    value : int or sequence of int
        A side, or height and width, such as a list that was read from JSON.

    Returns
    -------
    int or (int, int)
        The size; an int where height and width are equal.

    Raises
    ------
    FeatmapError
        If the value is neither a whole number nor two of them.
    """
    sides = [value] if isinstance(value, int) else list(value) if isinstance(value, (tuple, list)) else []
    if len(sides) not in (1, 2) or any(isinstance(s, bool) or not isinstance(s, int) for s in sides):
        raise FeatmapError(
            f"size {value!r}: give a whole number of pixels, or two: height and width, such as (64, 128)"
        )
    return sides[0] if sides[0] == sides[-1] else (sides[0], sides[1])


def parse_size(text: str | int | None, name: str = "size") -> Size | None:
    """Parse a size as it is typed: ``96``, or ``64x128`` for height x width.

    Parameters
    ----------
    text : str, int or None
        The text.
    name : str, default "size"
        Name of the setting, for the message.

    Returns
    -------
    int, (int, int) or None
        The size; None for None.

    Raises
    ------
    FeatmapError
        If the text is no size.
    """
    if text is None or isinstance(text, int):
        return text
    match = re.fullmatch(r"\s*([+-]?\d{1,9})\s*(?:[xX×]\s*(\d{1,9})\s*)?", text)
    if match is None:
        raise FeatmapError(f"{name} {text!r}: give pixels, such as 96, or height x width, such as 64x128")
    return as_size([int(side) for side in match.groups() if side is not None])


def format_size(size: Size, by: str = " x ") -> str:
    """Format a size.

    Parameters
    ----------
    size : int or (int, int)
        A size.
    by : str, default " x "
        What stands between height and width; ``x`` writes what `parse_size` reads.

    Returns
    -------
    str
        ``96``, or ``64 x 128``.
    """
    return str(size) if isinstance(size, int) else by.join(map(str, size))


def area(size: Size) -> int:
    """Compute the number of pixels of an image.

    Parameters
    ----------
    size : int or (int, int)
        A size.

    Returns
    -------
    int
        Height times width.
    """
    height, width = as_pair(size)
    return height * width


def scale(size: Size, factor: float) -> Size:
    """Scale both sides and round them.

    Parameters
    ----------
    size : int or (int, int)
        A size.
    factor : float
        Factor of both sides.

    Returns
    -------
    int or (int, int)
        The size; sides have at least 1 pixel.
    """
    return as_size([max(1, round(factor * side)) for side in as_pair(size)])


def with_shorter(size: Size, side: int) -> Size:
    """Scale a size so that its shorter side has a number of pixels.

    Parameters
    ----------
    size : int or (int, int)
        A size, which gives the ratio of the sides.
    side : int
        The shorter side.

    Returns
    -------
    int or (int, int)
        The size; an int for an int.
    """
    return side if isinstance(size, int) else scale(size, side / min(size))


def smallest(sizes: Iterable[Size]) -> Size:
    """Find the size of the fewest pixels.

    Parameters
    ----------
    sizes : iterable of int or (int, int)
        One or more sizes.

    Returns
    -------
    int or (int, int)
        The first of the smallest ones.
    """
    return min(sizes, key=area)


def largest(sizes: Iterable[Size]) -> Size:
    """Find the size of the most pixels.

    Parameters
    ----------
    sizes : iterable of int or (int, int)
        One or more sizes.

    Returns
    -------
    int or (int, int)
        The first of the largest ones.
    """
    return max(sizes, key=area)


def channel_names(channels: int) -> list[str]:
    """Name the channels of images.

    Parameters
    ----------
    channels : int
        Number of channels.

    Returns
    -------
    list of str
        ``gray``; ``red``, ``green`` and ``blue``; or numbers from 0.
    """
    return {1: ["gray"], 3: ["red", "green", "blue"]}.get(channels, [str(c) for c in range(channels)])


def _colour_groups(channels: int) -> list[list[int]]:
    """List the channels whose mean is shown as red, as green and as blue."""
    if channels == 1:
        return [[0], [0], [0]]
    if channels == 2:
        return [[0], [1], [0, 1]]
    if channels <= 4:
        return [[0], [1], [2]]
    return [list(map(int, group)) for group in np.array_split(np.arange(channels), 3)]


def describe_colours(channels: int) -> str:
    """Say in which colours images are shown.

    Parameters
    ----------
    channels : int
        Number of channels.

    Returns
    -------
    str
        Empty for red, green and blue; ``gray``; or the channels that are shown as red, green and blue.
    """
    if channels in (1, 3):
        return "gray" if channels == 1 else ""
    parts = []
    for colour, group in zip(("red", "green", "blue"), _colour_groups(channels), strict=True):
        parts.append(
            f"{colour} is channel {group[0]}" if len(group) == 1 else f"{colour} the mean of {group[0]}-{group[-1]}"
        )
    hidden = "; channel 3 is not shown" if channels == 4 else ""
    return f"false colours: {', '.join(parts)}{hidden}"


def colour_note(channels: int) -> str:
    """Name false colours for the title of a figure.

    Parameters
    ----------
    channels : int
        Number of channels.

    Returns
    -------
    str
        The colours in brackets after a space; empty where there are none that are false.
    """
    return "" if channels in (1, 3) else f" ({describe_colours(channels)})"


def to_rgb(image: np.ndarray) -> np.ndarray:
    """Convert an image of any number of channels to one that can be shown.

    Parameters
    ----------
    image : numpy.ndarray
        C x H x W.

    Returns
    -------
    numpy.ndarray
        The image itself where C is 3, else 3 x H x W in the colours of `describe_colours`, of equal channels where it
        is gray; they do not depend on the pixels, so that pictures can be compared.
    """
    image = np.asarray(image)
    if len(image) == 3:
        return image
    return np.stack(
        [image[group].mean(0) if len(group) > 1 else image[group[0]] for group in _colour_groups(len(image))]
    )


def to_8_bit(image: np.ndarray) -> np.ndarray:
    """Convert an image to 8 bits a channel, for a picture.

    Parameters
    ----------
    image : numpy.ndarray
        C x H x W; values are clipped to [0, 1], NaN becomes middle gray.

    Returns
    -------
    numpy.ndarray
        H x W x 3, uint8; other than three channels are shown as `to_rgb` shows them.
    """
    finite = np.nan_to_num(np.asarray(image, dtype=np.float32), nan=0.5, posinf=1, neginf=0).clip(0, 1)
    return np.rint(255 * to_rgb(finite).transpose(1, 2, 0)).astype(np.uint8)


def octave_size(size: Size | float | None, final: Size, last: Size | float | None) -> Size:
    """Compute an octave's size in pixels for a finished image.

    Parameters
    ----------
    size : int, (int, int), float or None
        Size of the octave in the recipe: pixels, a share of the finished image's sides, or None for its size.
    final : int or (int, int)
        Size of the finished image in pixels.
    last : int, (int, int), float or None
        Size of the last octave in the recipe; sizes in pixels are scaled by the ratio of `final` to it.

    Returns
    -------
    int or (int, int)
        Pixels.
    """
    if size is None:
        return final
    if isinstance(size, float):
        return scale(final, size)
    if not isinstance(last, (int, tuple)):
        return size
    sides = zip(as_pair(size), as_pair(final), as_pair(last), strict=True)
    return as_size([max(1, round(own * whole / end)) for own, whole, end in sides])
