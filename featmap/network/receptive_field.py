"""Receptive fields: which input pixels one position of a layer's grid can see."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Pair = tuple[int, int]


@dataclass(frozen=True)
class ReceptiveField:
    """The receptive field of a grid position, analytically (Araujo et al., 2019, 10.23915/distill.00021).

    Position (m, n) sees the rows ``start[0] + m * jump[0]`` to that ``+ size[0] - 1``, columns alike, in
    input pixels; what lies outside the image is padding. `whole` says that every position sees everything
    (after a global pooling, or where the grid was mixed in a way that cannot be followed).
    """

    size: Pair
    jump: Pair
    start: Pair
    whole: bool = False

    @staticmethod
    def pixel() -> ReceptiveField:
        """The field of the image itself."""
        return ReceptiveField((1, 1), (1, 1), (0, 0))

    def bounds(self, row: int, column: int, height: int, width: int) -> tuple[slice, slice]:
        """Return the rows and columns of a `height` x `width` image that position (row, column) sees."""
        if self.whole:
            return slice(0, height), slice(0, width)
        slices = []
        for k, at, limit in ((0, row, height), (1, column, width)):
            first = self.start[k] + at * self.jump[k]
            slices.append(slice(min(max(first, 0), limit), min(max(first + self.size[k], 0), limit)))
        return slices[0], slices[1]

    def __str__(self) -> str:
        if self.whole:
            return "whole image"
        return f"{self.size[0]} x {self.size[1]}"


# leave each position of the grid where it is (for those that need not, `featmap.network.trace` looks at their
# arguments)
POINTWISE = frozenset(
    {
        "add",
        "sub",
        "mul",
        "div",
        "rsub",
        "neg",
        "abs",
        "pow",
        "square",
        "sqrt",
        "rsqrt",
        "exp",
        "log",
        "sigmoid",
        "tanh",
        "clamp",
        "clip",
        "clamp_min",
        "clamp_max",
        "minimum",
        "maximum",
        "iadd",
        "isub",
        "imul",
        "itruediv",
        "radd",
        "rmul",
        "truediv",
        "rtruediv",
        "where",
        "logsigmoid",
        "softplus",
        "mish",
        "gelu",
        "silu",
        "elu",
        "selu",
        "celu",
        "relu",
        "relu6",
        "leaky_relu",
        "prelu",
        "rrelu",
        "hardtanh",
        "hardswish",
        "hardsigmoid",
        "hardshrink",
        "softshrink",
        "softsign",
        "threshold",
        "batch_norm",
        "dropout",
        "dropout2d",
        "alpha_dropout",
        "feature_dropout",
        "stochastic_depth",
        "contiguous",
        "clone",
        "detach",
        "to",
        "float",
        "double",
        "half",
        "type",
        "bfloat16",
        "cat",
        "concat",
        "concatenate",
        "chunk",
        "adaptive_avg_pool2d",
        "adaptive_max_pool2d",
        "mean",
        "sum",
        "amax",
        "amin",
        "max",
        "min",
        "linear",
        "layer_norm",
        "view",
        "reshape",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
        "permute",
        "transpose",
        "swapaxes",
        "unbind",
        "getitem",
    }
)
WHOLE_IMAGE = ReceptiveField((0, 0), (0, 0), (0, 0), whole=True)


def join(fields: Iterable[ReceptiveField]) -> ReceptiveField:
    """Return the smallest field that covers all of `fields` (a sum or concatenation of branches)."""
    fields = list(fields)
    if any(f.whole for f in fields):
        return WHOLE_IMAGE
    axes = []
    for k in (0, 1):
        start = min(f.start[k] for f in fields)
        end = max(f.start[k] + f.size[k] for f in fields)
        axes.append((end - start, max(f.jump[k] for f in fields), start))
    (h, jh, sh), (w, jw, sw) = axes
    return ReceptiveField((h, w), (jh, jw), (sh, sw))


def propagate(seen: ReceptiveField, function: str, args: Sequence[Any], kwargs: dict[str, Any]) -> ReceptiveField:
    """Return the field after `function` (named as torch names it) was applied with these arguments."""
    if seen.whole:
        return seen
    if function == "conv2d":
        kernel = _pair(tuple(_get(args, kwargs, 1, "weight").shape[2:]))
        stride = _pair(_get(args, kwargs, 3, "stride", 1))
        dilation = _pair(_get(args, kwargs, 5, "dilation", 1))
        padding = _get(args, kwargs, 4, "padding", 0)
        if padding == "same":
            padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
        return _window(seen, kernel, stride, _pair(0 if padding == "valid" else padding), dilation)
    if function.startswith(("max_pool2d", "avg_pool2d")):
        window = _pair(_get(args, kwargs, 1, "kernel_size"))
        stride = _get(args, kwargs, 2, "stride", None)
        padding = _pair(_get(args, kwargs, 3, "padding", 0))
        spread = _pair(_get(args, kwargs, 4, "dilation", 1) if "max" in function else 1)
        return _window(seen, window, _pair(stride) if stride else window, padding, spread)
    if function == "pad":
        if _get(args, kwargs, 2, "mode", "constant") == "circular":
            return WHOLE_IMAGE
        left, _, top, _ = (*_get(args, kwargs, 1, "pad"), 0, 0, 0, 0)[:4]
        start = (seen.start[0] - top * seen.jump[0], seen.start[1] - left * seen.jump[1])
        return ReceptiveField(seen.size, seen.jump, start)
    # anything that is not known to leave each position where it is may have mixed them
    return seen if function.strip("_") in POINTWISE else WHOLE_IMAGE


def _window(seen: ReceptiveField, kernel: Sequence[int], stride: Pair, padding: Pair, dilation: Pair) -> ReceptiveField:
    axes = [
        (
            seen.size[k] + (kernel[k] - 1) * dilation[k] * seen.jump[k],
            seen.jump[k] * stride[k],
            seen.start[k] - padding[k] * seen.jump[k],
        )
        for k in (0, 1)
    ]
    (h, jh, sh), (w, jw, sw) = axes
    return ReceptiveField((h, w), (jh, jw), (sh, sw))


def _get(args: Sequence[Any], kwargs: dict[str, Any], index: int, name: str, default: Any = None) -> Any:
    if name in kwargs:
        return kwargs[name]
    return args[index] if len(args) > index else default


def _pair(value: Any) -> Pair:
    if isinstance(value, int):
        return value, value
    values = tuple(value)
    return (values[0], values[0]) if len(values) == 1 else (values[0], values[1])
