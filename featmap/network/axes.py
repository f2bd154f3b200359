"""Axes: which of a tensor's dimensions run over the rows and columns of a grid, over tokens, or over anything else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

Axis = Literal["rows", "columns", "tokens", "other"]
Grid = tuple[int, int]


@dataclass(frozen=True)
class Segment:
    """A part of a sequence of tokens: the grid's, or extra tokens of one kind.

    Parameters
    ----------
    length : int
        Number of tokens.
    name : str, default ""
        Kind of the extra tokens, such as ``cls``; empty for the grid.
    order : tuple of Factor, default ()
        How the grid became a sequence; empty for extra tokens.
    """

    length: int
    name: str = ""
    order: tuple[Factor, ...] = ()


@dataclass(frozen=True)
class Factor:
    """A factor of a tensor's dimension, as in einops; the slowest comes first.

    Parameters
    ----------
    axis : {"rows", "columns", "tokens", "other"}
        What the factor runs over: the grid's rows or columns, a sequence of tokens with the grid among them, or
        anything else (batch, channels, heads).
    size : int
        Number of steps.
    stride : int, default 1
        Rows or columns from one step to the next: the 8 windows in a row of 56 positions are a factor of size 8 and
        stride 7.
    segments : tuple of Segment, default ()
        The parts of a sequence of tokens.
    """

    axis: Axis
    size: int
    stride: int = 1
    segments: tuple[Segment, ...] = ()


Dimension = tuple[Factor, ...]
"""Factors of one dimension of a tensor; none for a dimension of size 1."""


@dataclass(frozen=True)
class Axes:
    """The meaning of a tensor's dimensions.

    Parameters
    ----------
    dims : tuple of tuple of Factor
        The factors of each dimension.
    grid : (int, int)
        Rows and columns of the grid that the factors belong to.
    """

    dims: tuple[Dimension, ...]
    grid: Grid

    @staticmethod
    def of_grid(shape: Sequence[int]) -> Axes:
        """Make the axes of a grid with channels first.

        Parameters
        ----------
        shape : sequence of int
            N, C, height and width.

        Returns
        -------
        Axes
            The axes.
        """
        n, channels, height, width = shape
        return Axes((other(n), other(channels), _factor("rows", height), _factor("columns", width)), (height, width))

    @property
    def is_single(self) -> bool:
        """Whether the grid is a single position."""
        return self.grid == (1, 1)

    def spatial(self, dims: Iterable[int]) -> Dimension:
        """List the factors of some dimensions that run over positions.

        Parameters
        ----------
        dims : iterable of int
            Numbers of the dimensions; negative ones count from the end.

        Returns
        -------
        tuple of Factor
            Factors of rows, columns and tokens.
        """
        return tuple(f for d in dims for f in self.dims[d] if f.axis != "other" and f.size > 1)

    def covers(self, factors: Dimension) -> bool:
        """Check whether factors run over all positions of the grid.

        Parameters
        ----------
        factors : tuple of Factor
            Some factors of this tensor.

        Returns
        -------
        bool
            True if they run over all rows and all columns, or over a sequence that holds the grid.
        """
        sizes = {"rows": 1, "columns": 1}
        for f in factors:
            if f.axis == "tokens" and any(s.order for s in f.segments):
                return True
            if f.axis in sizes:
                sizes[f.axis] *= f.size
        return (sizes["rows"], sizes["columns"]) == self.grid

    def is_whole(self, dim: int, axis: Axis) -> bool:
        """Check whether a dimension is exactly the grid's rows or its columns.

        Parameters
        ----------
        dim : int
            Number of the dimension.
        axis : {"rows", "columns"}
            The axis.

        Returns
        -------
        bool
            True if it is, in the grid's order.
        """
        return self.dims[dim] == _factor(axis, self.grid[axis == "columns"])

    def is_channels_first(self) -> bool:
        """Check whether these are the axes of N x C x H x W.

        Returns
        -------
        bool
            True if they are.
        """
        is_grid = len(self.dims) == 4 and self.is_whole(2, "rows") and self.is_whole(3, "columns")
        return is_grid and not self.spatial([0, 1])

    def has_sequence(self) -> bool:
        """Check whether positions lie in the batch, or rows and columns in one dimension.

        Returns
        -------
        bool
            True for windows of a grid and for tokens.
        """
        axes = [{f.axis for f in dim if f.axis != "other"} for dim in self.dims]
        return bool(axes[0]) or any(len(a) > 1 or "tokens" in a for a in axes)

    def reshape(self, shape: Sequence[int]) -> Axes | None:
        """Follow a reshape.

        Parameters
        ----------
        shape : sequence of int
            The new shape.

        Returns
        -------
        Axes or None
            The new axes; None where a new dimension cuts through factors.
        """
        queue = [f for dim in self.dims for f in dim if f.size > 1]
        dims = []
        for size in shape:
            dim, rest = [], size
            while rest > 1:
                if not queue:
                    return None
                f = queue.pop(0)
                if f.size > rest:
                    inner = f.size // rest
                    if f.size % rest or f.axis == "tokens":
                        return None
                    queue.insert(0, replace(f, size=inner))
                    f = replace(f, size=rest, stride=f.stride * (1 if f.axis == "other" else inner))
                if rest % f.size:
                    return None
                dim.append(f)
                rest //= f.size
            dims.append(_merge(dim))
        return None if queue else Axes(tuple(dims), self.grid)

    def permute(self, order: Sequence[int]) -> Axes:
        """Follow a permutation of dimensions.

        Parameters
        ----------
        order : sequence of int
            For each new dimension the old one.

        Returns
        -------
        Axes
            The new axes.
        """
        return Axes(tuple(self.dims[k] for k in order), self.grid)

    def coarsen(self) -> tuple[Axes, Grid] | None:
        """Follow the loss of positions within blocks, such as 2 x 2 turned into channels.

        Returns
        -------
        axes : Axes
            The axes of a grid of blocks.
        block : (int, int)
            Rows and columns of a block.

            None instead of both where the factors that are left do not run over whole blocks.
        """
        block = []
        for axis, size in zip(("rows", "columns"), self.grid, strict=True):
            factors = sorted((f.stride, f.size) for dim in self.dims for f in dim if f.axis == axis)
            block.append(factors[0][0] if factors else size)
            for stride, count in factors:
                if stride * count != next((s for s, _ in factors if s > stride), size):
                    return None
        step = {"rows": block[0], "columns": block[1]}
        dims = [tuple(replace(f, stride=f.stride // step.get(f.axis, 1)) for f in dim) for dim in self.dims]
        axes = Axes(tuple(map(_merge, dims)), (self.grid[0] // block[0], self.grid[1] // block[1]))
        return axes, (block[0], block[1])

    def with_dim(self, dim: int, factors: Dimension) -> Axes:
        """Replace the factors of one dimension.

        Parameters
        ----------
        dim : int
            Number of the dimension.
        factors : tuple of Factor
            Its new factors.

        Returns
        -------
        Axes
            The new axes.
        """
        dims = list(self.dims)
        dims[dim] = factors
        return Axes(tuple(dims), self.grid)

    def resize(self, dim: int, size: int) -> Axes | None:
        """Follow a function that changes one dimension's length, such as a pooling.

        Parameters
        ----------
        dim : int
            Number of the dimension.
        size : int
            Its new length.

        Returns
        -------
        Axes or None
            The new axes: a dimension of rows or columns becomes the rows or columns of a new grid. None where the
            dimension holds only part of them, or both.
        """
        for k, axis in ((0, "rows"), (1, "columns")):
            if self.is_whole(dim, axis) and (self.dims[dim] or self._is_last(dim, k)):  # type: ignore[arg-type]
                axes = self.with_dim(dim, _factor(axis, size))  # type: ignore[arg-type]
                return Axes(axes.dims, (size, self.grid[1]) if k == 0 else (self.grid[0], size))
        return None if self.spatial([dim]) else self.with_dim(dim, other(size))

    def _is_last(self, dim: int, k: int) -> bool:
        """Check whether a dimension of size 1 is where rows or columns lie with channels first."""
        return len(self.dims) == 4 and dim % 4 == 2 + k

    def narrow(self, dim: int, start: int, length: int, step: int = 1) -> Axes | None:
        """Follow a slice.

        Parameters
        ----------
        dim : int
            Number of the dimension.
        start : int
            First index that is kept.
        length : int
            Number of indices that are kept.
        step : int, default 1
            Distance between them.

        Returns
        -------
        Axes or None
            The new axes; None where the slice cuts through the grid of a sequence of tokens.
        """
        factors = self.dims[dim]
        if len(factors) != 1 or factors[0].axis != "tokens":
            return self.resize(dim, length)
        if step != 1:
            return None
        parts, first = [], 0
        for s in factors[0].segments:
            count = min(first + s.length, start + length) - max(first, start)
            if s.order and 0 < count < s.length:
                return None
            if count > 0:
                parts.append(replace(s, length=count))
            first += s.length
        return self.with_dim(dim, _sequence(parts))


def length_of(dim: Dimension) -> int:
    """Compute the length of a dimension.

    Parameters
    ----------
    dim : tuple of Factor
        Its factors.

    Returns
    -------
    int
        The product of their sizes.
    """
    return math.prod(f.size for f in dim)


def other(size: int) -> Dimension:
    """Make a dimension without positions.

    Parameters
    ----------
    size : int
        Its length.

    Returns
    -------
    tuple of Factor
        Its factors.
    """
    return _factor("other", size)


def _factor(axis: Axis, size: int) -> Dimension:
    """Make a dimension of one factor; none where its size is 1."""
    return (Factor(axis, size),) if size > 1 else ()


def _merge(dim: Sequence[Factor]) -> Dimension:
    """Join neighbouring factors that together run over an axis in order."""
    merged: list[Factor] = []
    for f in dim:
        last = merged[-1] if merged else None
        if last is not None and last.axis == f.axis == "other":
            merged[-1] = replace(last, size=last.size * f.size)
        elif last is not None and last.axis == f.axis != "tokens" and last.stride == f.stride * f.size:
            merged[-1] = replace(f, size=last.size * f.size)
        else:
            merged.append(f)
    return tuple(merged)


def _sequence(parts: Sequence[Segment]) -> Dimension:
    """Make the dimension of a sequence of tokens; the grid alone keeps its own factors."""
    if len(parts) == 1 and parts[0].order:
        return parts[0].order
    return (Factor("tokens", sum(s.length for s in parts), 1, tuple(parts)),)


def join_tokens(parts: Sequence[tuple[Axes | None, int, str]], dim: int) -> Axes | None:
    """Follow a concatenation of tokens with the grid.

    Parameters
    ----------
    parts : sequence of (Axes or None, int, str)
        Axes of each tensor (None for one that does not depend on the image), its length along the dimension, and the
        kind of its tokens.
    dim : int
        Number of the dimension.

    Returns
    -------
    Axes or None
        The new axes; None where the result is not a single whole grid with extra tokens.
    """
    segments: list[Segment] = []
    result = None
    for axes, length, name in parts:
        factors = () if axes is None else axes.dims[dim]
        if len(factors) == 1 and factors[0].axis == "tokens":
            segments.extend(factors[0].segments)
        elif axes is not None and factors and axes.covers(factors) and axes.spatial([dim]) == factors:
            segments.append(Segment(length, order=factors))
        elif axes is not None and axes.is_single and length == 1 and not any(a and a.spatial([dim]) for a, *_ in parts):
            segments.append(Segment(1, order=(Factor("rows", 1),)))  # a grid of one patch
        elif axes is None or not axes.spatial([dim]):
            segments.append(Segment(length, name))
        else:
            return None
        if axes is not None and (result is None or axes.spatial([dim])):
            result = axes
    if result is None or sum(bool(s.order) for s in segments) > 1:
        return None
    return result.with_dim(dim, _sequence(segments))


def iterate_tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among values and in the lists and tuples among them.

    Parameters
    ----------
    values : iterable
        Tensors, lists, tuples and anything else.

    Yields
    ------
    Tensor
        A tensor.
    """
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from iterate_tensors(value)


def cat_dim(args: Sequence[Any], kwargs: dict[str, Any], count: int) -> int:
    """Get the dimension of a concatenation.

    Parameters
    ----------
    args : sequence
        Positional arguments of the call.
    kwargs : dict
        Keyword arguments of the call.
    count : int
        Number of dimensions.

    Returns
    -------
    int
        The dimension, from 0.
    """
    dim = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else 0))
    return int(dim) % max(1, count)
