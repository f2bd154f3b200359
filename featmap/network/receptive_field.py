"""Receptive fields: which input pixels one position of a layer's grid can see, by rule and by measurement."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from featmap.network.hooks import ActivationHooks, Layouts
from featmap.network.modules import copy_module

Pair = tuple[int, int]


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
        field. `measure_fields` measures them.

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
        for k, index, limit in ((0, row, height), (1, column, width)):
            first = self.start[k] + index * self.jump[k]
            slices.append(slice(min(max(first, 0), limit), min(max(first + self.size[k], 0), limit)))
        return slices[0], slices[1]

    def __str__(self) -> str:
        if self.whole:
            return "at most the whole image" if self.unknown else "whole image"
        return f"{self.size[0]} x {self.size[1]}"


# functions that leave each position of the grid where it is; of those that do so only with some arguments (reductions,
# reshapes, `linear`, norms), `featmap.network.positions` checks the arguments
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
        end = max(f.start[k] + f.size[k] for f in fields)
        axes.append((end - start, max(f.jump[k] for f in fields), start))
    (h, jh, sh), (w, jw, sw) = axes
    return ReceptiveField((h, w), (jh, jw), (sh, sw))


def propagate(field: ReceptiveField, function: str, args: Sequence[Any], kwargs: dict[str, Any]) -> ReceptiveField:
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

    Returns
    -------
    ReceptiveField
        The field of the output; the whole image for functions that are not known to keep positions in place.
    """
    if field.whole:
        return unknown_field() if field.unknown and function.strip("_") not in POINTWISE else field
    if function == "conv2d":
        kernel = _as_pair(tuple(get_argument(args, kwargs, 1, "weight").shape[2:]))
        stride = _as_pair(get_argument(args, kwargs, 3, "stride", 1))
        dilation = _as_pair(get_argument(args, kwargs, 5, "dilation", 1))
        padding = get_argument(args, kwargs, 4, "padding", 0)
        if padding == "same":
            padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
        return _apply_window(field, kernel, stride, _as_pair(0 if padding == "valid" else padding), dilation)
    if function.startswith(("max_pool2d", "avg_pool2d")):
        window = _as_pair(get_argument(args, kwargs, 1, "kernel_size"))
        stride = get_argument(args, kwargs, 2, "stride", None)
        padding = _as_pair(get_argument(args, kwargs, 3, "padding", 0))
        spread = _as_pair(get_argument(args, kwargs, 4, "dilation", 1) if "max" in function else 1)
        return _apply_window(field, window, _as_pair(stride) if stride else window, padding, spread)
    if function == "pad":
        if get_argument(args, kwargs, 2, "mode", "constant") == "circular":
            return WHOLE_IMAGE
        left, _, top, _ = (*get_argument(args, kwargs, 1, "pad"), 0, 0, 0, 0)[:4]
        start = (field.start[0] - top * field.jump[0], field.start[1] - left * field.jump[1])
        return ReceptiveField(field.size, field.jump, start)
    # a function that is not known to leave each position where it is may have mixed them
    return field if function.strip("_") in POINTWISE else WHOLE_IMAGE


def _apply_window(
    field: ReceptiveField, kernel: Sequence[int], stride: Pair, padding: Pair, dilation: Pair
) -> ReceptiveField:
    """Compute the field after a convolution or pooling with this window."""
    axes = [
        (
            field.size[k] + (kernel[k] - 1) * dilation[k] * field.jump[k],
            field.jump[k] * stride[k],
            field.start[k] - padding[k] * field.jump[k],
        )
        for k in (0, 1)
    ]
    (h, jh, sh), (w, jw, sw) = axes
    return ReceptiveField((h, w), (jh, jw), (sh, sw))


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


def _as_pair(value: Any) -> Pair:
    """Convert one number, or one or two numbers, to a pair."""
    if isinstance(value, int):
        return value, value
    values = tuple(value)
    return (values[0], values[0]) if len(values) == 1 else (values[0], values[1])


DRAWS = 2
"""Random images and signs by which a field is measured; all that any of them reaches belongs to it."""
SMALLEST_REACH = 1e-40
"""Smallest gradient, relative to the largest, of a pixel that is reached; masks that add -100 before a softmax leave
less."""
CORNERS = 4
"""Corners of an image."""
_HALF_OPEN = {"relu", "relu6", "hardtanh", "threshold"}
_OPEN = {"clamp", "clip", "clamp_min", "clamp_max", "hardsigmoid"}


class _SmoothFunctions(TorchFunctionMode):
    """Computes functions that have no gradient in places by ones of the same reach that have one everywhere."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").strip("_")
        value = args[0] if args else kwargs.get("input")
        if not isinstance(value, Tensor):
            return func(*args, **kwargs)
        if name in _HALF_OPEN:
            return functional.leaky_relu(value, 0.3)
        if name in _OPEN and value.is_floating_point():
            return value * 0.5
        if name == "hardswish":
            return functional.silu(value)
        if name == "max_pool2d" and _as_pair(get_argument(args, kwargs, 4, "dilation", 1)) == (1, 1):
            window = [get_argument(args, kwargs, k, n, d) for k, n, d in _POOLING]
            return functional.avg_pool2d(value, *window)
        return func(*args, **kwargs)


_POOLING: tuple[tuple[int, str, Any], ...] = (
    (1, "kernel_size", None),
    (2, "stride", None),
    (3, "padding", 0),
    (5, "ceil_mode", False),
)


def measure_fields(
    module: nn.Module, grids: Mapping[str, Pair], images: Tensor, layouts: Layouts | None = None
) -> dict[str, ReceptiveField]:
    """Measure receptive fields: the pixels that the gradient of a layer's central position reaches.

    A copy of the network in float64 with random weights is differentiated, so that what is reached is never exactly
    zero; units that have no gradient in places are computed as if they had one.

    Parameters
    ----------
    module : nn.Module
        The network; it is not changed.
    grids : mapping of str to (int, int)
        Height and width of each layer's grid, by name.
    images : Tensor
        Any image, 1 x C x H x W: its shape and device count.
    layouts : callable or None, default None
        Finds the layouts of the layers, see `featmap.network.hooks.ActivationHooks`.

    Returns
    -------
    dict of str to ReceptiveField
        The field of the central position, within the image; the whole image where the corners see it too. A size of
        0 x 0 says that the layer does not depend on the image.
    """
    twin = copy_module(module).double().eval()
    generator = torch.Generator().manual_seed(0)
    _randomise(twin, generator)
    shape, device = images.shape[1:], images.device
    with ActivationHooks(twin, list(grids), layouts=layouts) as hooks, _SmoothFunctions():
        batch = _random_images(generator, shape).repeat(2 * CORNERS, 1, 1, 1)
        for k, (row, column) in enumerate(((0, 0), (0, -1), (-1, 0), (-1, -1))):
            batch[k, :, row, column] += 1
        with torch.no_grad():
            outputs = hooks.run(batch.to(device))
        fields = {name: WHOLE_IMAGE for name, grid in grids.items() if _is_whole(outputs[name], grid)}
        reached = {name: torch.zeros(shape[1:], dtype=torch.bool) for name in grids if name not in fields}
        for _ in range(DRAWS if reached else 0):
            image = _random_images(generator, shape).to(device).requires_grad_(True)
            outputs = hooks.run(image)
            for name, pixels in reached.items():
                place = outputs[name][0, :, grids[name][0] // 2, grids[name][1] // 2]
                if place.requires_grad:
                    weights = torch.randn(place.shape, generator=generator, dtype=torch.float64).to(device)
                    (gradient,) = torch.autograd.grad((place * weights).sum(), image, retain_graph=True)
                    pixels |= (gradient.abs() > SMALLEST_REACH * gradient.abs().amax())[0].any(0).cpu()
    return fields | {name: _field_of(pixels, grids[name]) for name, pixels in reached.items()}


def _random_images(generator: torch.Generator, shape: Sequence[int]) -> Tensor:
    """Draw one image in float64, 1 x C x H x W."""
    return torch.rand((1, *shape), generator=generator, dtype=torch.float64)


def _randomise(module: nn.Module, generator: torch.Generator) -> None:
    """Draw weights of random signs, none of which is zero, in place."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.reset_running_stats()
        for parameter in module.parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            spread = max(1, parameter[0].numel()) ** -0.5 if parameter.dim() > 1 else 0.5
            parameter.copy_(values * spread + (values.sign() * 0.5 if parameter.dim() < 2 else 0))


def _is_whole(outputs: Tensor, grid: Pair) -> bool:
    """Check whether the centre and two corners of a grid see all corners of the image, and so all of it.

    The first half of the outputs are of images with one corner changed, the others of the same image: where these
    differ, by rounding, changes are not believed.
    """
    changed, same = outputs[:CORNERS], outputs[CORNERS:]
    for m, n in ((grid[0] // 2, grid[1] // 2), (0, 0), (grid[0] - 1, grid[1] - 1)):
        if bool((same[:, :, m, n] != same[:1, :, m, n]).any()):
            return False
        if not bool((changed[:, :, m, n] != same[:1, :, m, n]).any(1).all()):
            return False
    return True


def _field_of(reached: Tensor, grid: Pair) -> ReceptiveField:
    """Make the field of a grid whose central position reaches pixels (H x W of booleans)."""
    axes = []
    for k in (0, 1):
        places = torch.nonzero(reached.any(1 - k)).flatten().tolist()
        first, last = (places[0], places[-1] + 1) if places else (0, 0)
        jump = max(1, round(reached.shape[k] / grid[k]))
        axes.append((last - first, jump, first - (grid[k] // 2) * jump))
    (h, jh, sh), (w, jw, sw) = axes
    return ReceptiveField((h, w), (jh, jw), (sh, sw))
