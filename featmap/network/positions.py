"""Follow a grid's positions through torch functions: which dimensions they lie in, and what each of them sees."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from featmap.network.axes import Axes, Axis, Dimension, cat_dim, iterate_tensors, join_tokens, length_of, other
from featmap.network.receptive_field import (
    POINTWISE,
    WHOLE_IMAGE,
    ReceptiveField,
    axis_order,
    get_argument,
    join,
    list_dims,
    propagate,
    unknown_field,
)

Result = tuple[Axes | None, ReceptiveField]
"""Axes of a tensor, None where they are not known, and the receptive field of its positions."""
CONSTANT = {
    *("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "new_zeros", "new_ones"),
    *("new_empty", "new_full", "new_tensor", "bernoulli"),
}
"""Functions whose output does not depend on the values of their input."""
_RESHAPES = {
    *("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as", "ravel"),
}
_PERMUTES = {"permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "T", "mT", "adjoint"}
_PARTS = {"chunk", "split", "tensor_split", "split_with_sizes", "unsafe_chunk", "unsafe_split", "unbind"}
_INDICES = {"getitem", "select", "narrow"}
_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
_NORMS = {"layer_norm", "rms_norm", "group_norm", "instance_norm", "batch_norm"}
_EXPANSIONS = {"expand", "expand_as", "broadcast_to"}
_RESIZES = (
    *("interpolate", "upsample", "upsample_nearest", "upsample_bilinear", "pixel_shuffle", "pixel_unshuffle", "fold"),
    *("lp_pool2d", "grid_sample", "conv_transpose2d", "fractional_max_pool2d", "unfold", "repeat"),
)
# positions of the argument that says over which dimensions a function runs
_REDUCTIONS = dict.fromkeys(
    (
        *("mean", "sum", "amax", "amin", "max", "min", "std", "var", "var_mean", "std_mean", "logsumexp", "prod"),
        *("nanmean", "nansum", "argmax", "argmin", "any", "all", "median"),
    ),
    1,
) | dict.fromkeys(("norm", "vector_norm", "linalg_vector_norm"), 2)
_RUNS_ALONG = {"softmax": 1, "log_softmax": 1, "softmin": 1, "normalize": 2}
_SPATIAL: tuple[Axis, ...] = ("rows", "columns")


@dataclass
class _Call:
    """One call of a torch function; the input is the first argument, also where the call named it."""

    name: str
    args: Sequence[Any]
    kwargs: dict[str, Any]
    known: Callable[[Tensor], Result | None]
    kind_of: Callable[[Tensor], str]

    def __post_init__(self) -> None:
        self.name = self.name.strip("_")
        if "input" in self.kwargs:
            self.args = (self.kwargs["input"], *self.args)
            self.kwargs = {k: v for k, v in self.kwargs.items() if k != "input"}
        self.inputs = [t for t in iterate_tensors((*self.args, *self.kwargs.values())) if self.known(t)]
        self.infos = [info for info in map(self.known, self.inputs) if info is not None]
        self.source, self.axes = self.inputs[0], self.infos[0][0]
        self.field = join(field for _, field in self.infos)

    def argument(self, index: int, *names: str, default: Any = None) -> Any:
        """Get an argument by its position or one of its names."""
        value = next((self.kwargs[n] for n in names if n in self.kwargs), None)
        return value if value is not None else get_argument(self.args, {}, index, "", default)

    def axes_of(self, tensor: Any) -> Axes | None:
        """Get the axes of a tensor; None where it has none."""
        info = self.known(tensor) if isinstance(tensor, Tensor) else None
        return None if info is None else info[0]

    def mixed(self, axes: Axes | None, dims: Iterable[int]) -> ReceptiveField:
        """Compute the field after a function that runs over some dimensions of a tensor."""
        if axes is None:
            return self.lost()
        factors = axes.spatial(dims)
        if not factors:
            return self.field
        return WHOLE_IMAGE if axes.covers(factors) else self.lost()

    def lost(self) -> ReceptiveField:
        """Compute the field after a function that mixes positions in a way that is not followed."""
        has_positions = any(axes is None or axes.spatial(range(len(axes.dims))) for axes, _ in self.infos)
        if not has_positions or (self.field.whole and not self.field.unknown):
            return self.field
        return unknown_field()

    def absorbed(self, axes: Axes, dims: Sequence[int]) -> Result:
        """Find axes and field after a function whose output has channels in place of some dimensions."""
        factors, result = axes.spatial(dims), axes
        if not factors:
            return axes, self.field
        for d in dims:
            result = result.with_dim(d, other(length_of(axes.dims[d])))
        if axes.covers(factors):
            return Axes(result.dims, (1, 1)), WHOLE_IMAGE
        coarse = result.coarsen()
        if coarse is None:
            return None, self.lost()
        return coarse[0], unknown_field() if self.field.unknown else self.field.of_blocks(coarse[1])

    def slice(self, axes: Axes, dim: int, first: int, step: int = 1) -> ReceptiveField:
        """Compute the field after a slice, or a padding (a negative `first`), of one dimension."""
        for k, axis in enumerate(_SPATIAL):
            if axes.spatial([dim]) and axes.is_whole(dim, axis):
                return self.field.shifted(k, first, step)
        return self.field


def follow(
    name: str,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    outputs: Sequence[Tensor],
    known: Callable[[Tensor], Result | None],
    kind_of: Callable[[Tensor], str],
) -> list[Result]:
    """Follow the grid's positions through one call of a torch function.

    Parameters
    ----------
    name : str
        Name of the function.
    args : sequence
        Positional arguments of the call.
    kwargs : dict
        Keyword arguments of the call; at least one tensor among all depends on the image.
    outputs : sequence of Tensor
        The tensors that the call returned.
    known : callable
        Axes and receptive field of a tensor; None for one that does not depend on the image.
    kind_of : callable
        Kind of the tokens that a tensor without axes holds, such as ``cls``.

    Returns
    -------
    list of (Axes or None, ReceptiveField)
        Axes (None where they are not known) and receptive field of each output.
    """
    call = _Call(name, args, kwargs, known, kind_of)
    if call.name in _PARTS:
        return _follow_parts(call, outputs)
    results = []
    for out in outputs:
        axes, field = _follow_one(call, out)
        if axes is not None and tuple(map(length_of, axes.dims)) != tuple(out.shape):
            axes = None  # whatever the rule: axes that do not fit the shape are wrong
        is_grid = call.axes is not None and call.axes.is_channels_first() and out.dim() == 4
        is_rearranged = call.name in _RESHAPES | _PERMUTES | _INDICES
        if is_grid and not is_rearranged and (axes is None or not axes.is_channels_first()):
            axes, field = Axes.of_grid(out.shape), call.lost()  # a grid computed from a grid in a way of its own
        results.append((axes, field))
    return results


def _follow_one(call: _Call, out: Tensor) -> Result:
    """Follow one output of a function."""
    name, axes = call.name, call.axes
    rule = _RULES.get(name)
    if name.startswith(("max_pool", "avg_pool")):
        rule = _follow_window
    if name.startswith("adaptive_"):
        rule = _follow_adaptive
    if rule is not None:
        return rule(call, out)
    if axes is None:
        others = [a for a, _ in call.infos if a is not None]
        return (others[0] if others and out.shape == call.source.shape else None), call.lost()
    if name in _RESHAPES:
        reshaped = axes.reshape(out.shape)
        return reshaped, call.field if reshaped is not None else call.lost()
    if name in _PERMUTES:
        order = axis_order(call.name, call.source.dim(), [*call.args[1:], *call.kwargs.values()])
        return (None, call.lost()) if order is None else (axes.permute(order), call.field)
    if name in _INDICES:
        return _follow_index(call, axes)
    if name in _REDUCTIONS and not isinstance(call.argument(1, "other"), Tensor):
        return _follow_reduction(call, axes, out)
    if name in _RUNS_ALONG:
        dim = call.argument(_RUNS_ALONG[name], "dim", "axis", default=1 if name == "normalize" else -1)
        return axes, call.mixed(axes, list_dims(call.source.dim(), dim))
    if name in _NORMS:
        dims = _normalised_dims(call)
        is_last = name == "layer_norm" and dims == [out.dim() - 1] and not axes.covers(axes.spatial(dims))
        return call.absorbed(axes, dims) if is_last else (axes, call.mixed(axes, dims))
    if name == "linear":
        absorbed, field = call.absorbed(axes, [out.dim() - 1])
        return None if absorbed is None else absorbed.with_dim(-1, other(out.shape[-1])), field
    if name == "glu":
        return _resized(call, out), call.mixed(axes, [call.argument(1, "dim", default=-1)])
    if name in _EXPANSIONS:
        extra = out.dim() - call.source.dim()
        return _resize(Axes(((),) * extra + axes.dims, axes.grid), out), call.field
    return _follow_elements(call, out)


def _follow_elements(call: _Call, out: Tensor) -> Result:
    """Follow a function of each element, or one that is not known."""
    axes, is_consistent = _broadcast(call, out)
    if call.name in POINTWISE and is_consistent:
        return axes, call.field
    return axes if axes is not None else _resized(call, out), call.lost()


def _broadcast(call: _Call, out: Tensor) -> tuple[Axes | None, bool]:
    """Find the axes of a function of broadcast inputs, and whether each position is combined with itself only."""
    fitting = [axes for axes, _ in call.infos if axes is not None and len(axes.dims) <= out.dim()]
    if len(fitting) < len(call.infos):
        return None, False
    dims, is_consistent = [], True
    for k in range(-out.dim(), 0):
        each = [a.dims[k] for a in fitting if len(a.dims) >= -k and a.dims[k]]
        spatial = [d for d in each if any(f.axis != "other" for f in d)]
        is_consistent &= len(set(spatial)) <= 1
        dims.append(_first_fitting(spatial or each, out.shape[k]))
    return Axes(tuple(dims), _main_axes(fitting).grid), is_consistent


def _first_fitting(dims: Iterable[Dimension], size: int) -> Dimension:
    """Get the first of several dimensions that has a size."""
    return next((d for d in dims if length_of(d) == size), other(size))


def _main_axes(each: Iterable[Axes]) -> Axes:
    """Get those of several axes that hold most of the grid."""
    return max(each, key=lambda axes: len(axes.spatial(range(len(axes.dims)))))


def _resized(call: _Call, out: Tensor) -> Axes | None:
    """Find the axes after a function that may change the lengths of dimensions."""
    if call.axes is None or out.dim() != call.source.dim():
        return None
    return _resize(call.axes, out)


def _resize(axes: Axes | None, out: Tensor) -> Axes | None:
    """Fit axes to an output of as many dimensions."""
    for k, size in enumerate(out.shape):
        if axes is not None and length_of(axes.dims[k]) != size:
            axes = axes.resize(k, size)
    return axes


def _follow_resize(call: _Call, out: Tensor) -> Result:
    """Follow a function that computes a grid of another size in a way that is not followed."""
    return _resized(call, out), call.lost()


def _follow_window(call: _Call, out: Tensor) -> Result:
    """Follow a convolution, a pooling or a padding."""
    axes, name = call.axes, call.name
    if axes is not None and name in _CONVOLUTIONS and axes.spatial([1]):
        axes, call.field = call.absorbed(axes, [1])
    if axes is not None and axes.is_channels_first() and (name in ("conv2d", "pad") or "pool2d" in name):
        sides = int(out.shape[-2]), int(out.shape[-1])
        return Axes.of_grid(out.shape), propagate(call.field, name, call.args, call.kwargs, sides)
    if axes is not None and name == "pad":
        return _follow_padding(call, axes, out)
    is_sequence = axes is not None and axes.has_sequence() and not axes.spatial([1])
    if axes is not None and is_sequence and name in _CONVOLUTIONS and _is_one_by_one(call, out):
        return axes.with_dim(1, other(out.shape[1])), call.field
    if name == "conv2d" and out.dim() == 4 and out.shape[0] == 1:
        return Axes.of_grid(out.shape), call.lost()  # whatever was before
    return _resized(call, out), call.lost()


def _is_one_by_one(call: _Call, out: Tensor) -> bool:
    """Check whether a convolution computes each position by itself."""
    weight, padding = call.argument(1, "weight"), call.argument(4, "padding", default=0)
    pads = [0] if isinstance(padding, str) else [padding] if isinstance(padding, int) else list(padding)
    is_batched = weight.dim() == out.dim() == call.source.dim()
    return is_batched and weight.shape[2:].numel() == 1 and out.shape[2:] == call.source.shape[2:] and not any(pads)


def _follow_padding(call: _Call, axes: Axes, out: Tensor) -> Result:
    """Follow a padding of any dimensions."""
    pads = list(call.argument(1, "pad"))
    padded: Axes | None = axes
    for k, (before, after) in enumerate(zip(pads[::2], pads[1::2], strict=True)):
        dim = out.dim() - 1 - k
        if (before, after) != (0, 0) and padded is not None:
            call.field = call.slice(axes, dim, -before)
            padded = padded.resize(dim, out.shape[dim])
    if call.argument(2, "mode", default="constant") == "circular":
        return padded, call.lost()
    return padded, call.field if padded is not None else call.lost()


def _follow_adaptive(call: _Call, out: Tensor) -> Result:
    """Follow an adaptive pooling: of all positions, of none, or by a rule that is not followed."""
    changed = [k for k, (a, b) in enumerate(zip(call.source.shape, out.shape, strict=True)) if a != b]
    if all(out.shape[k] == 1 for k in changed):
        return _resized(call, out), call.mixed(call.axes, changed)
    return _resized(call, out), call.lost()


def _normalised_dims(call: _Call) -> list[int]:
    """List the dimensions over which a normalisation computes its statistics."""
    dims = list(range(call.source.dim()))
    if call.name in ("layer_norm", "rms_norm"):
        return dims[-len(tuple(call.argument(1, "normalized_shape", default=()))) :]
    if call.name == "group_norm":
        return dims[1:]
    names = ("training",) if call.name == "batch_norm" else ("use_input_stats",)
    uses_input = call.argument(1, "running_mean") is None or bool(call.argument(5, *names, default=False))
    return [0, *dims[2:]] if uses_input else []


def _follow_reduction(call: _Call, axes: Axes, out: Tensor) -> Result:
    """Follow a mean, sum, maximum or norm over some dimensions."""
    dims = list_dims(call.source.dim(), call.argument(_REDUCTIONS[call.name], "dim", "axis"))
    reduced, field = call.absorbed(axes, dims)
    if reduced is None:
        return None, field
    for d in dims:
        reduced = reduced.with_dim(d, ())
    if out.dim() != call.source.dim():
        reduced = reduced.permute([k for k in range(call.source.dim()) if k not in dims])
    return reduced, field


def _index_parts(call: _Call) -> list[Any] | None:
    """List what indexes each dimension, None for a new one; None instead where a tensor or list indexes."""
    count = call.source.dim()
    if call.name in ("select", "narrow"):
        dim, start = call.argument(1, "dim") % count, call.argument(2, "index", "start")
        if call.name == "narrow":
            start = int(start) % max(1, call.source.shape[dim])
            start = slice(start, start + call.argument(3, "length"))
        parts = [slice(None)] * dim + [start]
    else:
        parts = list(call.args[1]) if isinstance(call.args[1], tuple) else [call.args[1]]
    if not all(p is None or p is Ellipsis or (isinstance(p, (int, slice)) and not isinstance(p, bool)) for p in parts):
        return None
    rest = [slice(None)] * (count - sum(p is not None and p is not Ellipsis for p in parts))
    k = next((k for k, p in enumerate(parts) if p is Ellipsis), len(parts))
    return parts[:k] + rest + parts[k + 1 :]


def _follow_index(call: _Call, axes: Axes) -> Result:
    """Follow an index made of numbers, slices and new dimensions."""
    parts, dim = _index_parts(call), 0
    dims: list[int | None] = []
    result: Axes | None = axes
    for part in parts or ():
        if part is None:
            dims.append(None)
            continue
        length = call.source.shape[dim]
        start, stop, step = part.indices(length) if isinstance(part, slice) else (part % max(1, length), None, 1)
        size = len(range(start, stop, step)) if stop is not None else 1
        if isinstance(part, slice):
            dims.append(dim)
        if (start, size, step) != (0, length, 1) and result is not None:
            call.field = call.slice(axes, dim, start, step)
            result = result.narrow(dim, start, size, step)
        dim += 1
    if parts is None or result is None:
        return None, call.lost()
    return Axes(tuple(() if d is None else result.dims[d] for d in dims), result.grid), call.field


def _follow_parts(call: _Call, outputs: Sequence[Tensor]) -> list[Result]:
    """Follow a function that cuts a tensor into parts along a dimension."""
    axes, count = call.axes, call.source.dim()
    dim = call.argument(1 if call.name == "unbind" else 2, "dim", default=0) % count
    if axes is None or (call.name == "unbind" and axes.spatial([dim])):
        return [(None, call.lost()) for _ in outputs]
    if call.name == "unbind":
        return [(axes.permute([k for k in range(count) if k != dim]), call.field) for _ in outputs]
    results: list[Result] = []
    first = 0
    for out in outputs:
        part = axes.narrow(dim, first, out.shape[dim])
        results.append((part, call.slice(axes, dim, first) if part is not None else call.lost()))
        first += out.shape[dim]
    return results


def _follow_cat(call: _Call, out: Tensor) -> Result:
    """Follow a concatenation: of channels, of tokens, or of grids."""
    tensors = [t for t in call.argument(0, "tensors", default=()) if t.dim() == out.dim()]
    dim = cat_dim(call.args, call.kwargs, out.dim())
    each = [call.axes_of(t) for t in tensors]
    axes = [a for a in each if a is not None]
    if len(axes) < len(call.infos):
        return None, call.lost()
    is_tokens = out.dim() == 3 and dim != 2 and len(axes) < len(each)  # parameters beside tokens, of a grid or alone
    if is_tokens or any(a.spatial([dim]) for a in axes):
        parts = [(a, t.shape[dim], call.kind_of(t)) for t, a in zip(tensors, each, strict=True)]
        joined = join_tokens(parts, dim)
        if joined is not None:
            return joined, call.field
        return _main_axes(axes).resize(dim, out.shape[dim]), call.lost()
    rest = [k for k in range(out.dim()) if k != dim]
    is_consistent = len({tuple(a.dims[k] for k in rest if a.spatial([k])) for a in axes}) == 1
    joined = _main_axes(axes).with_dim(dim, other(out.shape[dim]))
    return joined, call.field if is_consistent else call.lost()


def _follow_stack(call: _Call, out: Tensor) -> Result:
    """Follow the joining of tensors along a new dimension."""
    dim = call.argument(1, "dim", default=0) % out.dim()
    if call.axes is None or len({axes for axes, _ in call.infos}) > 1:
        return None, call.lost()
    dims = (*call.axes.dims[:dim], other(out.shape[dim]), *call.axes.dims[dim:])
    return Axes(dims, call.axes.grid), call.field


def _follow_product(call: _Call, out: Tensor) -> Result:
    """Follow a matrix product."""
    left, right = call.args[0], call.argument(1, "other", "mat2")
    if call.name == "rmatmul":
        left, right = right, left
    a, b = call.axes_of(left), call.axes_of(right)
    known = [x for x in (a, b) if x is not None]
    if left.dim() < 2 or right.dim() < 2 or len(known) < len(call.infos):
        return None, call.lost()
    dims = []
    for k in range(-out.dim(), -2):
        each = [x.dims[k] for x in known if len(x.dims) >= -k and x.dims[k]]
        spatial = [d for d in each if any(f.axis != "other" for f in d)]
        dims.append(_first_fitting(spatial or each, out.shape[k]))
    dims.append(other(out.shape[-2]) if a is None else a.dims[-2])
    dims.append(other(out.shape[-1]) if b is None else b.dims[-1])
    fields = [call.mixed(x, [d]) for x, d in ((a, -1), (b, -2)) if x is not None]
    return Axes(tuple(dims), _main_axes(known).grid), join(fields)


def _follow_attention(call: _Call, out: Tensor) -> Result:
    """Follow torch's attention function."""
    query, key, value = (call.axes_of(call.argument(k, n)) for k, n in enumerate(("query", "key", "value")))
    if query is None:  # learned queries, which are no positions
        return None, call.mixed(value, [-2])
    return query.with_dim(-1, other(out.shape[-1])), call.mixed(value if value is not None else key, [-2])


def _follow_attention_module(call: _Call, out: Tensor) -> Result:
    """Follow `multi_head_attention_forward`, which takes L x N x C and returns that and its weights."""
    query, key = (call.axes_of(call.argument(k, n)) for k, n in enumerate(("query", "key")))
    is_result = (
        query is not None
        and len(query.dims) == out.dim()
        and query.dims[:-1]
        and out.shape[-1] == call.source.shape[-1]
    )
    axes = query.with_dim(-1, other(out.shape[-1])) if query is not None and is_result else None
    return axes, call.mixed(key, [0])


def _follow_einsum(call: _Call, out: Tensor) -> Result:
    """Follow an einsum whose letters are written out."""
    inputs, arrow, target = str(call.args[0]).replace(" ", "").partition("->")
    if not arrow or "." in inputs or any(axes is None for axes, _ in call.infos):
        return None, call.lost()
    letters: dict[str, Dimension] = {}
    fields, known = [], []
    for names, tensor in zip(inputs.split(","), iterate_tensors(call.args[1:]), strict=True):
        axes = call.axes_of(tensor)
        if axes is not None:
            known.append(axes)
            fields.append(call.mixed(axes, [k for k, n in enumerate(names) if n not in target]))
            letters |= {n: axes.dims[k] for k, n in enumerate(names) if axes.spatial([k]) or n not in letters}
    dims = tuple(letters.get(n, other(size)) for n, size in zip(target, out.shape, strict=True))
    return Axes(dims, _main_axes(known).grid), join(fields)


_RULES: dict[str, Callable[[_Call, Tensor], Result]] = {
    **dict.fromkeys(("cat", "concat", "concatenate"), _follow_cat),
    **dict.fromkeys(_CONVOLUTIONS, _follow_window),
    **dict.fromkeys(_RESIZES, _follow_resize),
    **dict.fromkeys(("matmul", "rmatmul", "bmm", "mm"), _follow_product),
    "pad": _follow_window,
    "stack": _follow_stack,
    "einsum": _follow_einsum,
    "scaled_dot_product_attention": _follow_attention,
    "multi_head_attention_forward": _follow_attention_module,
}
