"""Layouts: where the grid of a layer and the tokens beside it lie in the output of its module."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from featmap.network.axes import Axes, Dimension, Factor, Grid, Segment

GRID, CHANNELS_LAST, TOKENS, VECTOR = "N x C x H x W", "N x H x W x C", "N x L x C", "N x C"
"""Names of layouts: grids with channels first or last, sequences of tokens, vectors."""
SEQUENCE_FIRST = "L x N x C"
"""Sequences of tokens whose first dimension is the sequence."""
WINDOWS = "windows x C"
"""Positions in several dimensions, or among the images: N windows x positions x C, or N positions x C."""

CHANNELS_FIRST_WINDOWS = "N x C x windows"
"""Positions in two or more dimensions behind the channels: N x C x positions of a window x windows."""

CHANNELS_SECOND = (GRID, VECTOR, CHANNELS_FIRST_WINDOWS)
"""Layouts whose channels are the second dimension."""
SETTLED_BY_BATCH = (SEQUENCE_FIRST, TOKENS, WINDOWS, CHANNELS_FIRST_WINDOWS)
"""Layouts in which one image does not show where the images of a batch lie."""


@dataclass(frozen=True)
class Layout:
    """Where the grid of a layer lies in the output of its module.

    Parameters
    ----------
    kind : str, default "N x C x H x W"
        One of `GRID`, `CHANNELS_LAST`, `TOKENS`, `SEQUENCE_FIRST`, `WINDOWS`, `CHANNELS_FIRST_WINDOWS` and `VECTOR`.
    grid : (int, int), default (1, 1)
        Height and width of the grid, for sequences and windows.
    first : int, default 0
        Number of tokens before the grid, for sequences.
    order : tuple of (int, int, int), default ()
        Axis (0 rows, 1 columns), size and stride of the factors of the sequence, or of all dimensions of windows in
        turn, the slowest first; empty where the grid is in reading order.

    Examples
    --------
    >>> from torch import zeros
    >>> tuple(Layout(TOKENS, (4, 4), first=1).to_grid(zeros(2, 17, 8)).shape)
    (2, 8, 4, 4)
    """

    kind: str = GRID
    grid: Grid = (1, 1)
    first: int = 0
    order: tuple[tuple[int, int, int], ...] = ()

    def to_grid(self, output: Tensor) -> Tensor:
        """Bring a module's output to N x C x H x W.

        Parameters
        ----------
        output : Tensor
            The output in this layout.

        Returns
        -------
        Tensor
            A view of the output where one exists.
        """
        if self.kind == GRID:
            return output
        if self.kind == VECTOR:
            return output[:, :, None, None]
        if self.kind == CHANNELS_LAST:
            return output.permute(0, 3, 1, 2)
        height, width = self.grid
        if self.kind == WINDOWS:
            output = output.reshape(-1, height * width, output.shape[-1])
        if self.kind == CHANNELS_FIRST_WINDOWS:
            output = output.flatten(2).permute(0, 2, 1)
        tokens = output.permute(1, 2, 0) if self.kind == SEQUENCE_FIRST else output.permute(0, 2, 1)
        tokens = tokens[:, :, self.first : self.first + height * width]
        if not self.order:
            return tokens.unflatten(2, (height, width))
        factors = tokens.unflatten(2, [size for _, size, _ in self.order])
        order = sorted(range(len(self.order)), key=lambda k: (self.order[k][0], -self.order[k][2]))
        return factors.permute(0, 1, *(2 + k for k in order)).reshape(*tokens.shape[:2], height, width)

    def with_grid(self, output: Tensor, grid: Tensor) -> Tensor:
        """Replace the grid in a module's output.

        Parameters
        ----------
        output : Tensor
            The output in this layout.
        grid : Tensor
            N x C x H x W, the new values.

        Returns
        -------
        Tensor
            A new tensor in this layout; what is not in the grid (other tokens) is the output's.
        """
        if self.kind == GRID:
            return grid.clone()
        if self.kind == VECTOR:
            return grid[:, :, 0, 0].clone()
        if self.kind == CHANNELS_LAST:
            return grid.permute(0, 2, 3, 1).clone()
        if self.kind == CHANNELS_FIRST_WINDOWS:  # the same numbers as a sequence
            sequence = replace(self, kind=TOKENS).with_grid(output.flatten(2).permute(0, 2, 1), grid)
            return sequence.permute(0, 2, 1).reshape(output.shape)
        tokens, dim = output, int(self.kind != SEQUENCE_FIRST)
        if self.kind == WINDOWS:
            tokens = output.reshape(len(grid), -1, output.shape[-1])
        places = torch.arange(tokens.shape[dim], device=output.device).view(1, -1, 1)
        places = self.to_grid(places if dim else places.transpose(0, 1)).flatten()
        values = grid.flatten(2).permute((0, 2, 1) if dim else (2, 0, 1))
        return tokens.index_copy(dim, places, values).view(output.shape)


GRID_LAYOUT = Layout()
"""The layout of a grid with channels first."""


def describe(axes: Axes | None, shape: Sequence[int]) -> tuple[Layout, dict[str, int]] | None:
    """Find the layout of a module's output.

    Parameters
    ----------
    axes : Axes or None
        Axes of the output for a single image; None where they are not known.
    shape : sequence of int
        Shape of the output.

    Returns
    -------
    layout : Layout
        The layout of the grid.
    extra : dict of str to int
        Position in the sequence of each extra token by its name, such as ``cls``; numbered (``reg1``) where there are
        several of a kind.

        None instead of both where the output is no grid, sequence or vector.
    """
    if 0 in shape:
        return None
    if len(shape) == 2 and shape[0] == 1 and (axes is None or not axes.spatial([0])):
        return Layout(VECTOR), {}
    if axes is None:
        return None
    dims = axes.dims
    if len(shape) == 4 and shape[0] == 1:
        if axes.is_whole(2, "rows") and axes.is_whole(3, "columns") and not axes.spatial([1]):
            return Layout(GRID), {}
        if axes.is_whole(1, "rows") and axes.is_whole(2, "columns") and not axes.spatial([3]):
            return Layout(CHANNELS_LAST), {}
    if len(shape) == 3:
        for dim, kind in ((1, TOKENS), (0, SEQUENCE_FIRST)):
            if shape[1 - dim] == 1 and not axes.spatial([1 - dim, 2]):
                result = _describe_sequence(axes, dims[dim], shape[dim], kind)
                if result is not None:
                    return result
    return _describe_windows(axes)


def _describe_windows(axes: Axes) -> tuple[Layout, dict[str, int]] | None:
    """Find the layout of windows whose last or second dimension is channels, and whose others are positions."""
    if not axes.dims:  # a number, such as a loss that a module returns
        return None
    for kind, channels, dims in ((WINDOWS, -1, axes.dims[:-1]), (CHANNELS_FIRST_WINDOWS, 1, (*axes.dims[2:],))):
        factors = tuple(f for dim in dims for f in dim)
        if kind == CHANNELS_FIRST_WINDOWS and (len(axes.dims) < 4 or axes.dims[0] or not factors):
            return None
        if (
            not axes.spatial([channels])
            and all(f.axis in ("rows", "columns") for f in factors)
            and axes.covers(factors)
        ):
            return Layout(kind, axes.grid, 0, tuple((int(f.axis == "columns"), f.size, f.stride) for f in factors)), {}
    return None


def _describe_sequence(axes: Axes, dim: Dimension, length: int, kind: str) -> tuple[Layout, dict[str, int]] | None:
    """Find the layout of a sequence of tokens."""
    if len(dim) == 1 and dim[0].axis == "tokens" and any(s.order for s in dim[0].segments):
        segments: Sequence[Segment] = dim[0].segments
    elif (length > 1 and axes.covers(dim) and all(f.axis != "other" for f in dim)) or length == 1:
        segments = [Segment(length, order=dim if length > 1 else (Factor("rows", 1),))]
    else:
        return None
    layout, first = None, 0
    names: list[tuple[str, int]] = []
    for s in segments:
        if s.order:
            grid = axes.grid if s.length > 1 else (1, 1)
            order = tuple((int(f.axis == "columns"), f.size, f.stride) for f in s.order)
            is_plain = order in (((0, grid[0], 1), (1, grid[1], 1)), ((0, grid[0], 1),), ((1, grid[1], 1),))
            layout = Layout(kind, grid, first, () if is_plain else order)
        else:
            names.extend((s.name, first + k) for k in range(s.length))
        first += s.length
    counts = {name: sum(n == name for n, _ in names) for name, _ in names}
    numbers = dict.fromkeys(counts, 0)
    extra = {}
    for name, position in names:
        numbers[name] += 1
        # registers are numbered also where there is one: a network may have any number
        extra[f"{name}{numbers[name]}" if counts[name] > 1 or name == "reg" else name] = position
    return None if layout is None else (layout, extra)


def _entries(output: Any) -> dict[Any, Any]:
    """List what a module returns by index, key or attribute; of a tuple or list the first only."""
    if isinstance(output, (tuple, list)):
        return dict(enumerate(output[:1]))
    if isinstance(output, Mapping):
        return dict(output)
    if is_dataclass(output) and not isinstance(output, type):
        return {f.name: getattr(output, f.name) for f in fields(output)}
    return dict(getattr(output, "__dict__", {}))


def _find_entry(output: Any) -> tuple[Any, list[Any]]:
    """Find the one tensor among what a module returns; None beside the keys of all where there are several."""
    tensors = {key: value for key, value in _entries(output).items() if isinstance(value, Tensor)}
    for keys in (list(tensors), [key for key, value in tensors.items() if value.dim() >= 3]):
        if len(keys) == 1:
            return keys[0], keys
    return None, list(tensors)


def first_tensor(output: Any) -> Tensor | None:
    """Get the tensor that a module returns, alone or in a tuple, dictionary or object.

    Parameters
    ----------
    output : Any
        What the module returns.

    Returns
    -------
    Tensor or None
        The tensor; of a dictionary or object the only one, or the only one of three or more dimensions. None where
        there is none, or several could be meant.
    """
    if isinstance(output, Tensor):
        return output
    key, _ = _find_entry(output)
    return None if key is None else _entries(output)[key]


def competing_tensors(output: Any) -> list[str]:
    """List the tensors in a module's output if several could be meant.

    Parameters
    ----------
    output : Any
        What the module returns.

    Returns
    -------
    list of str
        Their keys or attributes; empty where `first_tensor` finds one, or there is none.
    """
    if isinstance(output, Tensor):
        return []
    key, keys = _find_entry(output)
    return list(map(str, keys)) if key is None else []


def replace_first(output: Any, tensor: Tensor | None) -> Any:
    """Replace the tensor that `first_tensor` gets.

    Parameters
    ----------
    output : Any
        What the module returns; it is not changed.
    tensor : Tensor
        The new tensor.

    Returns
    -------
    Any
        The same with the new tensor.
    """
    if isinstance(output, Tensor):
        return tensor
    if isinstance(output, (tuple, list)):
        values = [tensor, *output[1:]]
        return type(output)(*values) if hasattr(output, "_fields") else type(output)(values)
    key, _ = _find_entry(output)
    if is_dataclass(output) and not isinstance(output, (type, Mapping)):
        return replace(output, **{key: tensor})
    copied: Any = copy.copy(output)
    if isinstance(output, Mapping):
        copied[key] = tensor
    else:
        setattr(copied, key, tensor)
    return copied
