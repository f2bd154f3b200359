"""Receptive fields: which input pixels one position of a layer's grid can see, by rule and by measurement."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

Pair = tuple[int, int]
UNBOUNDED = (2**31, 2**31)
"""End of an image of any size."""


@dataclass(frozen=True)
class ReceptiveField:
    """The receptive field of the positions of a grid, computed analytically.

    Position (m, n) sees rows ``start[0] + m * jump[0]`` to ``start[0] + m * jump[0] + size[0] - 1`` of the image, and
    columns alike; what lies outside the image is padding.

    Parameters
    ----------
    size : tuple of int
        Height and width in input pixels.
    jump : tuple of int
        Input pixels between the fields of neighbouring positions, down and to the right.
    start : tuple of int
        First row and column that position (0, 0) sees, in input pixels; negative in the padding.
    whole : bool, default False
        Whether every position sees the whole image: after a global pooling, or after an operation that mixes
        positions in a way that cannot be followed. The other values then mean nothing.
    unknown : int, default 0
        Above 0 where the field is not known and `whole` is only its upper bound; fields of the same number are the same
        field. `featmap.optimize.measured_fields` measures them.
    end : tuple of int, default `UNBOUNDED`
        First row and column from which on no window reads the image, where strides leave out its last pixels.

    References
    ----------
    Araujo, A., Norris, W. and Sim, J. (2019). Computing receptive fields of convolutional neural networks. Distill.
    10.23915/distill.00021
    """

    size: Pair
    jump: Pair
    start: Pair
    whole: bool = False
    unknown: int = 0
    end: Pair = UNBOUNDED

    @staticmethod
    def pixel() -> ReceptiveField:
        """Make the receptive field of the image itself.

        Returns
        -------
        ReceptiveField
            One pixel per position.
        """
        return ReceptiveField((1, 1), (1, 1), (0, 0))

    def shifted(self, axis: int, first: int, step: int = 1) -> ReceptiveField:
        """Compute the receptive field after a slice of the grid's rows or columns.

        Parameters
        ----------
        axis : int
            0 for rows, 1 for columns.
        first : int
            The position that becomes the first; negative where positions are added before it.
        step : int, default 1
            Distance between the positions that are kept.

        Returns
        -------
        ReceptiveField
            The field of the remaining positions.
        """
        if self.whole:
            return self if not self.unknown or (first, step) == (0, 1) else unknown_field()
        jump, start = list(self.jump), list(self.start)
        start[axis] += first * jump[axis]
        jump[axis] *= step
        return replace(self, jump=(jump[0], jump[1]), start=(start[0], start[1]))

    def of_blocks(self, block: Pair) -> ReceptiveField:
        """Compute the receptive field of blocks of positions.

        Parameters
        ----------
        block : tuple of int
            Height and width of a block.

        Returns
        -------
        ReceptiveField
            The field of the grid of blocks.
        """
        return self if self.whole else _apply_window(self, block, block, (0, 0), (1, 1))

    def bounds(self, row: int, column: int, height: int, width: int) -> tuple[slice, slice]:
        """Compute the part of an image that one position sees.

        Parameters
        ----------
        row : int
            Row of the position in the grid.
        column : int
            Column of the position in the grid.
        height : int
            Height of the image in pixels.
        width : int
            Width of the image in pixels.

        Returns
        -------
        rows : slice
            Rows of the image; empty where the position sees padding only.
        columns : slice
            Columns of the image.
        """
        if self.whole:
            return slice(0, height), slice(0, width)
        slices = []
        for k, index, side in ((0, row, height), (1, column, width)):
            limit = min(side, self.end[k])
            first = self.start[k] + index * self.jump[k]
            slices.append(slice(min(max(first, 0), limit), min(max(first + self.size[k], 0), limit)))
        return slices[0], slices[1]

    def centres(self, grid: Pair, size: Pair) -> tuple[list[float], list[float]]:
        """Compute the pixels at the centres of the fields of a grid.

        Parameters
        ----------
        grid : (int, int)
            Height and width of the grid.
        size : (int, int)
            Height and width of the image in pixels.

        Returns
        -------
        rows : list of float
            Row of pixels of each row of the grid; in the padding it is none of the image's. Where every position sees
            the whole image, as far as is known, the grid is spread evenly over the image.
        columns : list of float
            Column of pixels of each column of the grid.
        """
        found = []
        for k in (0, 1):
            first, step = self.start[k] + (self.size[k] - 1) / 2, float(self.jump[k])
            if self.whole:
                step = size[k] / grid[k]
                first = (step - 1) / 2
            found.append([first + step * index for index in range(grid[k])])
        return found[0], found[1]

    def __str__(self) -> str:
        if self.whole:
            return "at most the whole image" if self.unknown else "whole image"
        return f"{self.size[0]} x {self.size[1]}"


# functions that leave each position of the grid where it is; some do so only with certain arguments (reductions,
# reshapes, `linear`, norms), which `featmap.network.positions` checks
POINTWISE = frozenset(
    {
        *("add", "sub", "mul", "div", "rsub", "radd", "rmul", "rdiv", "truediv", "rtruediv", "iadd", "isub", "imul"),
        *("itruediv", "multiply", "divide", "subtract", "true_divide", "neg", "abs", "absolute", "positive", "sign"),
        *("pow", "rpow", "float_power", "square", "sqrt", "rsqrt", "reciprocal", "exp", "expm1", "log", "log1p", "sin"),
        *("cos", "erf", "sigmoid", "tanh", "floor", "round", "ceil", "clamp", "clip", "clamp_min", "clamp_max"),
        *("minimum", "maximum", "where", "masked_fill", "lerp", "addcmul", "addcdiv", "nan_to_num", "isnan"),
        *("isfinite", "eq", "ne", "lt", "gt", "le", "ge", "logical_not", "logical_and", "logical_or", "logsigmoid"),
        *("softplus", "mish", "gelu", "silu", "elu", "selu", "celu", "relu", "relu6", "leaky_relu", "prelu", "rrelu"),
        *("hardtanh", "hardswish", "hardsigmoid", "hardshrink", "softshrink", "softsign", "tanhshrink", "threshold"),
        *("batch_norm", "local_response_norm", "dropout", "dropout2d", "alpha_dropout", "feature_dropout"),
        *("stochastic_depth", "contiguous", "clone", "detach", "data", "real", "to", "type", "float", "double", "half"),
        *("bfloat16", "cat", "concat", "concatenate", "chunk", "adaptive_avg_pool2d", "adaptive_max_pool2d", "mean"),
        *("sum", "amax", "amin", "max", "min", "linear", "layer_norm", "view", "reshape", "flatten", "unflatten"),
        *("squeeze", "unsqueeze", "permute", "transpose", "swapaxes", "unbind", "getitem"),
    }
)
WHOLE_IMAGE = ReceptiveField((0, 0), (0, 0), (0, 0), whole=True)
_numbers = itertools.count(1)


def unknown_field() -> ReceptiveField:
    """Make a receptive field that is not known.

    Returns
    -------
    ReceptiveField
        The whole image as an upper bound, with a number of its own.
    """
    return replace(WHOLE_IMAGE, unknown=next(_numbers))


def join(fields: Iterable[ReceptiveField]) -> ReceptiveField:
    """Compute the smallest receptive field that covers several.

    This is the field after a sum or concatenation of branches.

    Parameters
    ----------
    fields : iterable of ReceptiveField
        The fields, at least one.

    Returns
    -------
    ReceptiveField
        The field from the first start to the last end, with the largest jump; not known where one of them is not.
    """
    fields = list(dict.fromkeys(fields))
    if any(f.whole and not f.unknown for f in fields):
        return WHOLE_IMAGE
    if any(f.unknown for f in fields):
        return fields[0] if len(fields) == 1 else unknown_field()
    axes = []
    for k in (0, 1):
        start = min(f.start[k] for f in fields)
        stop = max(f.start[k] + f.size[k] for f in fields)
        axes.append((stop - start, max(f.jump[k] for f in fields), start, max(f.end[k] for f in fields)))
    (h, jh, sh, eh), (w, jw, sw, ew) = axes
    return ReceptiveField((h, w), (jh, jw), (sh, sw), end=(eh, ew))


def propagate(
    field: ReceptiveField, function: str, args: Sequence[Any], kwargs: dict[str, Any], sides: Pair | None = None
) -> ReceptiveField:
    """Compute the receptive field of a torch function's output.

    Parameters
    ----------
    field : ReceptiveField
        The field of the function's input.
    function : str
        Name of the torch function, such as ``conv2d``.
    args : sequence
        Positional arguments of the call.
    kwargs : dict
        Keyword arguments of the call.
    sides : (int, int) or None, default None
        Height and width of the output; None takes all pixels of the image as read.

    Returns
    -------
    ReceptiveField
        The field of the output; the whole image for functions that are not known to keep positions in place.
    """
    if field.whole:
        return unknown_field() if field.unknown and function.strip("_") not in POINTWISE else field
    inputs = None if sides is None else expand_pair(tuple(get_argument(args, kwargs, 0, "input").shape[-2:]))
    if function == "conv2d":
        kernel = expand_pair(tuple(get_argument(args, kwargs, 1, "weight").shape[2:]))
        stride = expand_pair(get_argument(args, kwargs, 3, "stride", 1))
        dilation = expand_pair(get_argument(args, kwargs, 5, "dilation", 1))
        padding = get_argument(args, kwargs, 4, "padding", 0)
        if padding == "same":
            padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
        padding = expand_pair(0 if padding == "valid" else padding)
        return _apply_window(field, kernel, stride, padding, dilation, inputs, sides)
    if function.startswith(("max_pool2d", "avg_pool2d")):
        window = expand_pair(get_argument(args, kwargs, 1, "kernel_size"))
        stride = get_argument(args, kwargs, 2, "stride", None)
        padding = expand_pair(get_argument(args, kwargs, 3, "padding", 0))
        spread = expand_pair(get_argument(args, kwargs, 4, "dilation", 1) if "max" in function else 1)
        return _apply_window(field, window, expand_pair(stride) if stride else window, padding, spread, inputs, sides)
    if function == "pad":
        if get_argument(args, kwargs, 2, "mode", "constant") == "circular":
            return WHOLE_IMAGE
        left, _, top, _ = (*get_argument(args, kwargs, 1, "pad"), 0, 0, 0, 0)[:4]
        start = (field.start[0] - top * field.jump[0], field.start[1] - left * field.jump[1])
        return replace(field, start=start)
    # a function that is not known to leave each position where it is may have mixed them
    return field if function.strip("_") in POINTWISE else WHOLE_IMAGE


def _apply_window(
    field: ReceptiveField,
    kernel: Sequence[int],
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    inputs: Pair | None = None,
    outputs: Pair | None = None,
) -> ReceptiveField:
    """Compute the field after a convolution or pooling with this window, from the sides of its input and output."""
    size, jump, start, end = list(field.size), list(field.jump), list(field.start), list(field.end)
    for k in (0, 1):
        reach = (kernel[k] - 1) * dilation[k]
        if inputs is not None and outputs is not None:
            last = (outputs[k] - 1) * stride[k] - padding[k] + reach
            if last < inputs[k] - 1:  # positions after it are in no window
                end[k] = min(end[k], start[k] + last * jump[k] + size[k])
        size[k] += reach * jump[k]
        start[k] -= padding[k] * jump[k]
        jump[k] *= stride[k]
    return ReceptiveField(expand_pair(size), expand_pair(jump), expand_pair(start), end=expand_pair(end))


def get_argument(args: Sequence[Any], kwargs: dict[str, Any], index: int, name: str, default: Any = None) -> Any:
    """Get an argument of a call by its position or name.

    Parameters
    ----------
    args : sequence
        Positional arguments of the call.
    kwargs : dict
        Keyword arguments of the call.
    index : int
        Position of the argument.
    name : str
        Name of the argument.
    default : Any
        The value where it is not passed.

    Returns
    -------
    Any
        The argument.
    """
    if name in kwargs:
        return kwargs[name]
    return args[index] if len(args) > index else default


def expand_pair(value: Any) -> Pair:
    """Convert one number, or one or two numbers, to a pair.

    Parameters
    ----------
    value : int or sequence of int
        One number, or one or two numbers.

    Returns
    -------
    (int, int)
        The pair; one number is taken twice.
    """
    if isinstance(value, int):
        return value, value
    values = tuple(value)
    return (values[0], values[0]) if len(values) == 1 else (values[0], values[1])


def list_dims(count: int, dim: Any) -> list[int]:
    """List the dimensions that an argument names; all where it is None.

    Parameters
    ----------
    count : int
        Number of dimensions of the tensor.
    dim : int, sequence of int, bool or None
        The argument; negative dimensions count from the last.

    Returns
    -------
    list of int
        The dimensions, 0 to `count` - 1.
    """
    if dim is None or isinstance(dim, bool):
        return list(range(count))
    return [n % max(1, count) for n in ([dim] if isinstance(dim, int) else dim)]


def axis_order(name: str, count: int, numbers: Sequence[Any]) -> list[int] | None:
    """Find the order of axes that a permute or transpose yields.

    Parameters
    ----------
    name : str
        Name of the function, such as ``permute``, ``transpose``, ``movedim`` or ``T``.
    count : int
        Number of dimensions of its input.
    numbers : sequence
        Its arguments after the input.

    Returns
    -------
    list of int or None
        For each dimension of the output the input's; None where it cannot be read from the arguments.
    """
    order = list(range(count))
    if name in ("t", "T", "mT", "adjoint"):
        return order[::-1] if name in ("t", "T") else [*order[:-2], *order[-2:][::-1]]
    if name in ("movedim", "moveaxis") and len(numbers) == 2:
        source, target = (list_dims(count, n) for n in numbers)
        order = [k for k in order if k not in source]
        for position, old in sorted(zip(target, source, strict=True)):
            order.insert(position, old)
        return order
    if numbers and isinstance(numbers[0], (tuple, list)):
        numbers = list(numbers[0])
    if not all(isinstance(n, int) for n in numbers):
        return None
    dims = [n % count for n in numbers]
    if name == "permute":
        return dims if len(dims) == count else None
    if len(dims) == 2:
        order[dims[0]], order[dims[1]] = dims[1], dims[0]
        return order
    return None
