"""Units: what can be maximised, and how it is written.

The notation follows the article's tensor slices, `[f, :, :]`, `[f, m, :]` and `[f, m, n]`:

====================  ==================================================================
``layer:f``           a feature, one channel of the layer's output
``layer:f:m``         row m of that feature's grid
``layer:f:m:n``       one neuron
``layer:f:m:n+f:m:n`` a set of neurons of one layer
``layer:f:..k``       the first k neurons of the grid in reading order
``layer`` alone       the whole layer (also ``layer:all``)
``class:k``           a class logit: feature k of the network's last layer
====================  ==================================================================
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from featmap.errors import UnitError

Kind = Literal["feature", "row", "neuron", "neurons", "prefix", "layer"]
Shape = tuple[int, int, int]
CLASS = "class"

GRAMMAR = "layer:f (feature), layer:f:m (row), layer:f:m:n (neuron), layer:f:m:n+f:m:n (set), layer:f:..k (prefix)"
_NUMBER = re.compile(r"\d{1,9}\Z", re.ASCII)


@dataclass(frozen=True, order=True)
class Unit:
    """Anything that can be maximised.

    Parameters
    ----------
    layer : the layer's name, as `featmap layers` prints it
    channel : index f of the channel; None for a set of neurons or a whole layer
    row, column : position in the grid, from 0
    first : length of a reading-order prefix of the grid
    neurons : the (f, m, n) of a set

    Source: the article, section "Feature Visualization from First Principles".
    """

    layer: str
    channel: int | None = None
    row: int | None = None
    column: int | None = None
    first: int | None = None
    neurons: tuple[tuple[int, int, int], ...] = ()

    @property
    def kind(self) -> Kind:
        """Which of the forms in the module's table this unit has."""
        if self.neurons:
            return "neurons"
        if self.channel is None:
            return "layer"
        if self.first is not None:
            return "prefix"
        if self.row is None:
            return "feature"
        return "row" if self.column is None else "neuron"

    def __str__(self) -> str:
        if self.neurons:
            return f"{self.layer}:" + "+".join(":".join(map(str, p)) for p in self.neurons)
        if self.channel is None:
            return f"{self.layer}:all"
        if self.first is not None:
            return f"{self.layer}:{self.channel}:..{self.first}"
        parts = [p for p in (self.channel, self.row, self.column) if p is not None]
        return ":".join([self.layer, *map(str, parts)])

    def on(self, layer: str) -> Unit:
        """Return the same unit of another layer."""
        return replace(self, layer=layer)

    def check(self, shape: Shape) -> Unit:
        """Return this unit if it lies within a layer of `shape` (channels, height, width).

        Raises
        ------
        UnitError
            with the index that is out of range and the range that is allowed.
        """
        channels, height, width = shape
        if self.first is not None and not 1 <= self.first <= height * width:
            raise UnitError(
                f"{self}: a prefix of {self.first} neurons; the grid is {height} x {width}, "
                f"so 1 to {height * width} are allowed"
            )
        points = self.neurons or ((self.channel, self.row, self.column),)
        for point in points:
            for what, index, size in zip(("channel", "row", "column"), point, shape, strict=True):
                if index is not None and not 0 <= index < size:
                    raise UnitError(
                        f"{self}: {what} {index} is out of range; {self.layer} is "
                        f"{channels} x {height} x {width} here, so 0 to {size - 1} are allowed"
                    )
        return self

    def mask(self, shape: Shape) -> tuple[list[int], np.ndarray | None]:
        """Return the channels this unit reads and which of their neurons.

        Parameters
        ----------
        shape : channels, height, width of the layer's output

        Returns
        -------
        channels : P channel indices
        mask : P x height x width of booleans, or None where every neuron of those channels belongs
        """
        channels, height, width = shape
        self.check(shape)
        if self.kind == "layer":
            return list(range(channels)), None
        if self.kind == "feature":
            return [self._channel], None
        if self.neurons:
            used = sorted({f for f, _, _ in self.neurons})
            mask = np.zeros((len(used), height, width), dtype=bool)
            for f, m, n in self.neurons:
                mask[used.index(f), m, n] = True
            return used, mask
        mask = np.zeros((1, height, width), dtype=bool)
        if self.first is not None:
            mask.reshape(-1)[: self.first] = True
        elif self.column is None:
            mask[0, self.row] = True
        else:
            mask[0, self.row, self.column] = True
        return [self._channel], mask

    @property
    def _channel(self) -> int:
        assert self.channel is not None
        return self.channel


def feature(layer: str, channel: int) -> Unit:
    """Return the unit ``layer:channel``."""
    return Unit(layer, channel)


def parse_unit(text: str) -> Unit:
    """Return the unit that `text` names (the grammar is this module's table).

    Raises
    ------
    UnitError
        if `text` is not of one of the forms.
    """
    layer, *rest = text.strip().split(":", 1)
    if not layer:
        raise UnitError(f"{text!r} names no layer; allowed: {GRAMMAR}")
    if not rest or rest[0] == "all":
        return Unit(layer)
    where = rest[0]
    if "+" in where:
        points = [_numbers(text, part) for part in where.split("+")]
        if any(len(p) != 3 for p in points):
            raise UnitError(f"{text!r}: a set joins neurons f:m:n by +; allowed: {GRAMMAR}")
        return Unit(layer, neurons=tuple(sorted({(f, m, n) for f, m, n in points})))
    head, dots, count = where.partition(":..")
    if dots:
        (channel,) = _numbers(text, head, most=1)
        (first,) = _numbers(text, count, most=1)
        return Unit(layer, channel, first=first)
    indices: list[int | None] = [*_numbers(text, where, most=3), None, None]
    return Unit(layer, indices[0], indices[1], indices[2])


def _numbers(text: str, part: str, most: int = 3) -> list[int]:
    """Return the colon-separated indices in `part` of the unit expression `text`."""
    pieces = part.split(":")
    if len(pieces) > most or not all(_NUMBER.match(p) for p in pieces):
        raise UnitError(f"{text!r} is not a unit; allowed: {GRAMMAR}")
    return [int(p) for p in pieces]


def parse_channels(text: str, channels: int, layer: str = "the layer") -> list[int]:
    """Return the channels named by a list such as ``0-15,42``: sorted, each once.

    Raises
    ------
    UnitError
        for anything that is not a list of numbers and ranges, and for channels out of range.
    """
    if text.strip() == "all":
        return list(range(channels))
    chosen: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not _NUMBER.match(first) or (dash and not _NUMBER.match(last)):
            raise UnitError(f"features {text!r}: {part.strip()!r} is no number or range; write 0-15,42 or all")
        low, high = int(first), int(last) if dash else int(first)
        if high < low:
            raise UnitError(f"features {text!r}: the range {part.strip()} runs backwards; write {high}-{low}")
        if high >= channels:
            raise UnitError(
                f"features {text!r}: channel {high} is out of range; {layer} has {channels} channels, "
                f"so 0 to {channels - 1} are allowed"
            )
        chosen.update(range(low, high + 1))
    return sorted(chosen)


def written_channels(channels: Sequence[int]) -> str:
    """Return sorted channels as `parse_channels` reads them, shortest: ``0-15,42``."""
    parts: list[list[int]] = []
    for c in channels:
        if parts and c == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], c]
        else:
            parts.append([c])
    return ",".join("-".join(map(str, p)) for p in parts)


def labels(units: Iterable[Unit]) -> list[str]:
    """Return the units as they are written."""
    return [str(u) for u in units]
