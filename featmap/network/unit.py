"""Units: the parts of a network that can be maximised, and their notation.

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

Tokens beside a grid of tokens are layers of their own, 1 x 1 grids: ``blocks.3@cls``, ``@dist``, ``@reg1``. Their units
are written ``blocks.3@cls:17``; ``blocks.3:17@cls`` is read as the same unit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from featmap.errors import UnitError, suggest

Kind = Literal["feature", "row", "neuron", "neurons", "prefix", "layer"]
Shape = tuple[int, int, int]
CLASS = "class"

GRAMMAR = "layer:f (feature), layer:f:m (row), layer:f:m:n (neuron), layer:f:m:n+f:m:n (set), layer:f:..k (prefix)"
_NUMBER = re.compile(r"\d{1,9}\Z", re.ASCII)
_RANGE = re.compile(r"\d{1,9}(-\d{1,9})?\Z", re.ASCII)
_TOKEN = re.compile(r"@(cls|dist|reg|tok)\d{0,4}\Z", re.ASCII)


@dataclass(frozen=True, order=True)
class Unit:
    """A part of a network that can be maximised.

    Parameters
    ----------
    layer : str
        Name of the layer, as `featmap layers` prints it.
    channel : int or None, default None
        Index f of the channel, from 0; None for a set of neurons and for a whole layer.
    row : int or None, default None
        Row m of the grid, from 0; None for a whole feature.
    column : int or None, default None
        Column n of the grid, from 0; None for a whole feature or row.
    first : int or None, default None
        Number of neurons in a prefix of the grid in reading order; None for any other unit.
    neurons : tuple of (int, int, int), default ()
        The (f, m, n) of each neuron of a set; empty for any other unit.

    References
    ----------
    The article, section "Feature Visualization from First Principles".
    """

    layer: str
    channel: int | None = None
    row: int | None = None
    column: int | None = None
    first: int | None = None
    neurons: tuple[tuple[int, int, int], ...] = ()

    @property
    def kind(self) -> Kind:
        """The form of this unit, one of those in the module's table."""
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

    @staticmethod
    def parse(text: str) -> Unit:
        """Parse a unit expression such as ``inception4a:17``.

        Parameters
        ----------
        text : str
            One of the forms in the module's table; spaces around it are ignored.

        Returns
        -------
        Unit
            The unit; it is not checked against any network.

        Raises
        ------
        UnitError
            If `text` has none of the forms.
        """
        layer, *rest = normalise_label(text.strip()).split(":", 1)
        if not layer:
            raise UnitError(f"{text!r} names no layer; allowed: {GRAMMAR}")
        if not rest or rest[0] == "all":
            return Unit(layer)
        position = rest[0]
        if "+" in position:
            points = [_parse_indices(text, part) for part in position.split("+")]
            if any(len(p) != 3 for p in points):
                raise UnitError(f"{text!r}: a set joins neurons f:m:n by +; allowed: {GRAMMAR}")
            return Unit(layer, neurons=tuple(sorted({(f, m, n) for f, m, n in points})))
        head, dots, count = position.partition(":..")
        if dots:
            (channel,) = _parse_indices(text, head, max_count=1)
            (first,) = _parse_indices(text, count, max_count=1)
            return Unit(layer, channel, first=first)
        indices: list[int | None] = [*_parse_indices(text, position), None, None]
        return Unit(layer, indices[0], indices[1], indices[2])

    def with_layer(self, layer: str) -> Unit:
        """Copy this unit to another layer.

        Parameters
        ----------
        layer : str
            Name of the other layer.

        Returns
        -------
        Unit
            The unit with the same indices in `layer`.
        """
        return replace(self, layer=layer)

    def check(self, shape: Shape) -> Unit:
        """Check that this unit lies within a layer.

        Parameters
        ----------
        shape : tuple of int
            Channels, height and width of the layer's output.

        Returns
        -------
        Unit
            This unit.

        Raises
        ------
        UnitError
            If an index is out of range; the message gives the range that is allowed.
        """
        channels, height, width = shape
        if self.first is not None and not 1 <= self.first <= height * width:
            raise UnitError(
                f"{self}: a prefix of {self.first} neurons; the grid is {height} x {width}, "
                f"so 1 to {height * width} are allowed"
            )
        points = self.neurons or ((self.channel, self.row, self.column),)
        for point in points:
            for axis, index, size in zip(("channel", "row", "column"), point, shape, strict=True):
                if index is not None and not 0 <= index < size:
                    raise UnitError(
                        f"{self}: {axis} {index} is out of range; {self.layer} is "
                        f"{channels} x {height} x {width} here, so 0 to {size - 1} are allowed"
                    )
        return self

    def mask(self, shape: Shape) -> tuple[list[int], np.ndarray | None]:
        """Compute the channels of this unit and the mask of its neurons.

        Parameters
        ----------
        shape : tuple of int
            Channels, height and width of the layer's output.

        Returns
        -------
        channels : list of int
            The P channels that hold neurons of this unit, each once, in increasing order.
        mask : np.ndarray or None
            P x height x width, boolean, True for the unit's neurons; None where all neurons of `channels` belong.

        Raises
        ------
        UnitError
            If the unit does not lie within `shape`.
        """
        channels, height, width = shape
        self.check(shape)
        if self.kind == "layer":
            return list(range(channels)), None
        if self.kind == "feature":
            return [self._channel], None
        if self.neurons:
            features = sorted({f for f, _, _ in self.neurons})
            mask = np.zeros((len(features), height, width), dtype=bool)
            for f, m, n in self.neurons:
                mask[features.index(f), m, n] = True
            return features, mask
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
        """The channel of a unit that has exactly one."""
        assert self.channel is not None
        return self.channel


def _parse_indices(text: str, part: str, max_count: int = 3) -> list[int]:
    """Parse the indices, separated by colons, in `part` of the unit expression `text`."""
    numbers = part.split(":")
    if len(numbers) > max_count or not all(_NUMBER.match(n) for n in numbers):
        raise UnitError(f"{text!r} is not a unit; allowed: {GRAMMAR}")
    return [int(n) for n in numbers]


def normalise_label(text: str) -> str:
    """Bring the label of a token's unit to its canonical form.

    Parameters
    ----------
    text : str
        A label, such as ``blocks.3:17@cls``.

    Returns
    -------
    str
        The label with the token after the layer, such as ``blocks.3@cls:17``; any other label as it is.
    """
    head, token = split_token(text)
    layer, colon, rest = head.partition(":")
    return f"{layer}{token}{colon}{rest}" if token and colon and layer else text


def split_token(layer: str) -> tuple[str, str]:
    """Split the kind of a token from the end of a name.

    Parameters
    ----------
    layer : str
        Name of a layer, such as ``blocks.3@cls``.

    Returns
    -------
    name : str
        The name without it.
    token : str
        The token with its sign, such as ``@cls``; empty where the name has none.
    """
    match = _TOKEN.search(layer)
    return (layer[: match.start()], match.group()) if match else (layer, "")


def split_call(layer: str) -> tuple[str, int]:
    """Split a layer's name into the path of its module and the number of the call.

    One forward pass may call a module several times; ``path@k`` is the output of its k-th call. The name of a token
    (``path@cls``, ``path@k@cls``) is that of its grid, followed by the kind of the token.

    Parameters
    ----------
    layer : str
        Name of a layer, ``path`` or ``path@k``, with or without a token.

    Returns
    -------
    path : str
        Path of the module within the network.
    call : int
        Number of the call, from 1; 1 where the name has none.
    """
    layer, _ = split_token(layer)
    path, at, call = layer.rpartition("@")
    return (path, int(call)) if at and call.isdecimal() else (layer, 1)


def number_names(text: str, names: Mapping[str, Sequence[str]]) -> str:
    """Replace names of directions in units by their numbers.

    Parameters
    ----------
    text : str
        A unit, or a sum of units such as ``0.5 * inception4a/sae:eyes + inception4a:3``. Digits are numbers, also
        where a direction is named so.
    names : mapping of str to sequence of str
        For each layer whose features have names, those in their order.

    Returns
    -------
    str
        The same text with numbers.

    Raises
    ------
    UnitError
        If a feature of such a layer is named that it does not have; the message gives the nearest names.
    """
    for layer, known in names.items():  # a name may hold what separates the units of a sum
        for name in sorted((n for n in known if re.search(r"\s\+\s", n)), key=len, reverse=True):
            whole = rf"(?<![^\s*]){re.escape(f'{layer}:{name}')}(?=[:\s]|\Z)"
            text = re.sub(whole, f"{layer}:{list(known).index(name)}", text)
    terms = re.split(r"(\s+\+\s+)", text)
    for k, term in enumerate(terms):
        for layer, known in names.items():
            match = re.fullmatch(rf"(\s*(?:[^*]*\*)?\s*{re.escape(layer)}:)(.*\S)\s*", term)
            if match is not None and match[2] == "all" in known:
                raise UnitError(
                    f"{text.strip()!r} may be all of {layer} or its direction 'all'; write {layer} or "
                    f"{layer}:{list(known).index('all')}"
                )
            if match is None or match[2] == "all" or re.fullmatch(r"[\d:]+", match[2]):
                continue
            fitting = [name for name in known if match[2] == name or match[2].startswith(f"{name}:")]
            if not fitting and match[2][0].isdecimal():  # no unit either: the grammar is explained elsewhere
                continue
            if not fitting:
                raise UnitError(
                    f"{text.strip()!r}: {layer} has no direction {match[2]!r}{suggest(match[2], known)}; "
                    f"give one of its names, or a number, 0 to {len(known) - 1}"
                )
            name = max(fitting, key=len)
            terms[k] = f"{match[1]}{list(known).index(name)}{match[2][len(name) :]}"
    return "".join(terms)


def names_read_otherwise(names: Sequence[str]) -> list[int]:
    """List the directions whose names are read as numbers, ranges or ``all``.

    Parameters
    ----------
    names : sequence of str
        Names of the directions of a set; may be empty.

    Returns
    -------
    list of int
        Their numbers, by which alone they can be selected. A name that is the direction's own number is none of them.
    """
    return [k for k, n in enumerate(names) if n != str(k) and (n == "all" or re.fullmatch(r"[\d:]+|\d+-\d+", n))]


def parse_channels(text: str, channels: int, layer: str = "the layer", names: Sequence[str] = ()) -> list[int]:
    """Parse a list of channels such as ``0-15,42``.

    Parameters
    ----------
    text : str
        Numbers and ranges (both ends included) joined by commas, or ``all``.
    channels : int
        Number of channels of the layer.
    layer : str, default "the layer"
        Name of the layer, for messages.
    names : sequence of str, default ()
        Names of the channels, which may be written too; numbers and ranges are read as such.

    Returns
    -------
    list of int
        The channels in increasing order, each once.

    Raises
    ------
    UnitError
        If `text` is not a list of numbers and ranges, or a channel is out of range.
    """
    if text.strip() == "all":
        return list(range(channels))
    selected: set[int] = set()
    for part in _split_channels(text, names):
        if part.strip() in names and not _RANGE.match(part.strip()):
            selected.add(list(names).index(part.strip()))
            continue
        first, dash, last = part.strip().partition("-")
        if not _NUMBER.match(first) or (dash and not _NUMBER.match(last)):
            hint = f" or name{suggest(part.strip(), names)}" if names else ""
            raise UnitError(f"features {text!r}: {part.strip()!r} is not a number or range{hint}; write 0-15,42 or all")
        low, high = int(first), int(last) if dash else int(first)
        if high < low:
            raise UnitError(f"features {text!r}: the range {part.strip()} runs backwards; write {high}-{low}")
        if high >= channels:
            raise UnitError(
                f"features {text!r}: channel {high} is out of range; {layer} has {channels} channels, "
                f"so 0 to {channels - 1} are allowed"
            )
        selected.update(range(low, high + 1))
    return sorted(selected)


def _split_channels(text: str, names: Sequence[str]) -> list[str]:
    """Split a list of channels at its commas, but not at those inside a name."""
    parts = text.split(",")
    joined: list[str] = []
    while parts:
        counts = [n for n in range(len(parts), 1, -1) if ",".join(parts[:n]).strip() in names]
        count = counts[0] if counts else 1
        name = ",".join(parts[:count]).strip()
        if count > 1 and all(p.strip() in names or _RANGE.match(p.strip()) for p in parts[:count]):
            raise UnitError(
                f"features {text!r}: {name!r} may be one direction or {count}; "
                f"write numbers, such as {list(names).index(name)}"
            )
        joined.append(name if count > 1 else parts[0])
        parts = parts[count:]
    return joined


def format_channels(channels: Sequence[int]) -> str:
    """Format channels as the shortest list that `parse_channels` reads.

    Parameters
    ----------
    channels : sequence of int
        Channels in increasing order.

    Returns
    -------
    str
        Numbers and ranges joined by commas, such as ``0-15,42``.
    """
    ranges: list[list[int]] = []
    for c in channels:
        if ranges and c == ranges[-1][-1] + 1:
            ranges[-1] = [ranges[-1][0], c]
        else:
            ranges.append([c])
    return ",".join("-".join(map(str, r)) for r in ranges)
