"""One forward pass that learns a network's layers: grids, branches, receptive fields, foldable pairs.

The pass runs the network itself and watches every torch function, so that it needs no graph compiler
and follows whatever Python the forward contains.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from featmap.network.receptive_field import WHOLE_IMAGE, ReceptiveField, join, propagate

GRID_AXES = (2, 3)
_REDUCING = {
    "__getitem__",
    "mean",
    "sum",
    "amax",
    "amin",
    "max",
    "min",
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "linear",
}
RESHAPING = {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "chunk", "split", "__getitem__"}


@dataclass(frozen=True)
class Layer:
    """A place in the network whose output is a convolutional grid, or a vector (a 1 x 1 grid).

    `branches` are the (name, channels) of the pieces that a concatenation in this layer joins, in order;
    empty where there is none. `field` is the receptive field of one output position. `reach` counts the
    numbers per image that were computed until this layer was done.
    """

    name: str
    kind: str
    channels: int
    height: int
    width: int
    branches: tuple[tuple[str, int], ...]
    field: ReceptiveField
    reach: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.channels, self.height, self.width

    def branch(self, channel: int) -> str:
        """Return the name of the branch that `channel` comes from, or an empty string."""
        for name, width in self.branches:
            if channel < width:
                return name
            channel -= width
        return ""


@dataclass
class Trace:
    """What one pass at one input size taught.

    `layers` in order of completion; `folds` the (convolution, batch norm) module names that compute
    one affine map and can be merged; `elements` how many numbers all functions' outputs hold per image;
    `failure` what stopped the pass, if it did not reach the end (the layers before are known all the same).
    """

    size: int
    layers: dict[str, Layer] = field(default_factory=dict)
    folds: list[tuple[str, str]] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    elements: int = 0
    failure: str = ""

    def field(self, layer: str, channel: int) -> ReceptiveField:
        """Return the receptive field of one channel: its branch's own, where that is a layer by itself."""
        whole = self.layers[layer]
        own = self.layers.get(f"{layer}.{whole.branch(channel)}")
        return whole.field if own is None else own.field


@dataclass
class _Tag:
    """What is known of one tensor: which axes are its grid, what it sees, how it was put together."""

    axes: tuple[int, int] | None
    field: ReceptiveField
    function: str = ""
    branches: tuple[tuple[str, int], ...] = ()
    owner: str = ""


@dataclass(frozen=True)
class _Output:
    """What one call of a module gave: its place in the order of completion, elements computed so far, the tensor."""

    place: int
    elements: int
    tensor: Tensor


class _Watch(TorchFunctionMode):
    """Tags every tensor that the forward pass makes."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.tags: dict[int, _Tag] = {id(image): _Tag(GRID_AXES, ReceptiveField.pixel())}
        self.kept: list[Any] = [image]  # an id is only unique while its tensor lives
        self.uses: Counter[int] = Counter()
        self.makers: dict[int, str] = {}
        self.stack: list[str] = [""]
        self.elements = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name == "__get__":
            return out
        inputs = list(_tensors((*args, *kwargs.values())))
        results = list(_tensors((out,)))
        if results:  # asking a tensor for its size does not read it
            self.uses.update({id(t) for t in inputs})
        tagged = [t for t in inputs if id(t) in self.tags]
        for tensor in results:
            if tagged and id(tensor) in self.tags and any(tensor is t for t in inputs):
                own = self.tags[id(tensor)]  # changed in place: it sees what went into it as well
                own.field = join([propagate(self.tags[id(t)].field, name, args, kwargs) for t in tagged])
            elif tagged:
                self.kept.append(tensor)
                self.elements += tensor.numel()
                self.tags[id(tensor)] = self._tag(name, tensor, tagged, args, kwargs)
                self.makers.pop(id(tensor), None)
        return out

    def _tag(self, name: str, out: Tensor, inputs: list[Tensor], args: Sequence[Any], kwargs: dict[str, Any]) -> _Tag:
        tags = [self.tags[id(t)] for t in inputs]
        axes = _axes(name, out, inputs[0], tags[0].axes, args, kwargs)
        seen = join([t.field for t in tags])
        if tags[0].axes is not None and _mixes(name, inputs[0], tags[0].axes, args, kwargs):
            seen = WHOLE_IMAGE
        elif name in _REDUCING and not _keeps_grid(out, axes, inputs[0], tags[0].axes):
            seen = join([WHOLE_IMAGE if not _one(t, tag) else tag.field for t, tag in zip(inputs, tags, strict=True)])
        elif axes is None and any(t.axes and not _one(i, t) for i, t in zip(inputs, tags, strict=True)):
            seen = WHOLE_IMAGE
        else:
            seen = propagate(seen, name, args, kwargs)
        tag = _Tag(axes, seen, name)
        if name in {"cat", "concat", "concatenate"} and _cat_dim(args, kwargs) == 1:
            tag.branches, tag.owner = self._pieces(inputs, tags), self.stack[-1]
        return tag

    def _pieces(self, inputs: list[Tensor], tags: list[_Tag]) -> tuple[tuple[str, int], ...]:
        owner = self.stack[-1]
        pieces: list[tuple[str, int]] = []
        for tensor, tag in zip(inputs, tags, strict=True):
            if tag.branches and tag.owner == owner:
                pieces.extend(tag.branches)
                continue
            maker = self.makers.get(id(tensor), "")
            inside = maker.startswith(f"{owner}.") if owner else bool(maker)
            name = maker[len(owner) + 1 if owner else 0 :] if inside else tag.function or "input"
            pieces.append((name, tensor.shape[1]))
        return tuple(pieces)


def _keeps_grid(out: Tensor, axes: tuple[int, int] | None, source: Tensor, before: tuple[int, int] | None) -> bool:
    if axes is None or before is None:
        return False
    return all(out.shape[a] == source.shape[b] for a, b in zip(axes, before, strict=True))


def _axes(
    name: str,
    out: Tensor,
    source: Tensor,
    axes: tuple[int, int] | None,
    args: Sequence[Any],
    kwargs: dict[str, Any],
) -> tuple[int, int] | None:
    """Return which axes of `out` are the grid's rows and columns, or None."""
    if name in {"conv2d", "conv_transpose2d"}:
        return GRID_AXES
    if axes is None:
        return None
    if name in {"permute", "transpose", "swapaxes", "movedim", "moveaxis"}:
        order = _order(name, source.dim(), args, kwargs)
        moved = (order.index(axes[0]), order.index(axes[1])) if order else (1, 0)
        return moved if moved[0] < moved[1] else None  # a grid turned over is not followed further
    last = (out.dim() - 2, out.dim() - 1)
    if name == "__getitem__" and out.dim() == source.dim():
        return axes if _plain(args[1]) else None
    if name in RESHAPING and not (name == "__getitem__" and not _plain(args[1])):
        kept = axes == (source.dim() - 2, source.dim() - 1) and out.shape[-2:] == source.shape[-2:]
        return last if kept and out.dim() >= 3 else None
    if name in RESHAPING:
        return None
    return axes if out.dim() == source.dim() else None


def _plain(index: Any) -> bool:
    """Does this index only pick and slice (which cannot put positions in another order)?"""
    parts = index if isinstance(index, tuple) else (index,)
    return all(part is None or part is Ellipsis or isinstance(part, (int, slice)) for part in parts)


def _mixes(name: str, source: Tensor, axes: tuple[int, int], args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Does a linear map or a layer norm run over the grid itself?"""
    if name == "linear":
        return source.dim() - 1 in axes
    over = kwargs.get("normalized_shape", args[1] if len(args) > 1 else ())
    return name == "layer_norm" and max(axes) >= source.dim() - len(tuple(over))


def _order(name: str, dims: int, args: Sequence[Any], kwargs: dict[str, Any]) -> list[int] | None:
    """Return the axis order that a permute or transpose makes, or None where it cannot be read off."""
    numbers: list[Any] = [*args[1:], *kwargs.values()]
    if numbers and isinstance(numbers[0], (tuple, list)):
        numbers = list(numbers[0])
    if not all(isinstance(n, int) for n in numbers):
        return None
    axes = [n % dims for n in numbers]
    if name == "permute" and len(axes) == dims:
        return axes
    if name in {"transpose", "swapaxes"} and len(axes) == 2:
        order = list(range(dims))
        order[axes[0]], order[axes[1]] = order[axes[1]], order[axes[0]]
        return order
    return None


def _cat_dim(args: Sequence[Any], kwargs: dict[str, Any]) -> int:
    return int(kwargs.get("dim", args[1] if len(args) > 1 else 0))


def _one(tensor: Tensor, tag: _Tag) -> bool:
    """Is this tensor's grid a single position (so that reducing it adds nothing to what it sees)?"""
    return tag.axes is not None and all(tensor.shape[a] == 1 for a in tag.axes)


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def trace(module: nn.Module, size: int) -> Trace:
    """Run `module` (in evaluation mode, on one gray image of `size` pixels) and describe its layers.

    The image lies on the module's own device. Nothing of the module is changed. A pass that fails, for
    instance because `size` is too small for deep layers, is noted in the result.
    """
    parameter = next(module.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    image = torch.full((1, 3, size, size), 0.5, device=device)
    watch, found = _Watch(image), Trace(size)
    outputs: dict[str, list[_Output]] = defaultdict(list)
    fed: dict[str, int] = {}
    made: dict[int, str] = {}
    with ExitStack() as stack, torch.no_grad():
        for name, child in module.named_modules():
            stack.enter_context(_hooked(child, name, watch, outputs, fed, made))
        stack.enter_context(watch)
        try:
            module(image)
        except Exception as error:  # noqa: BLE001 - a network of the user's own may raise anything
            found.failure = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    for name, calls in outputs.items():
        found.calls[name] = len(calls)
    kinds = {name: type(child).__name__ for name, child in module.named_modules()}
    ordered = [(out, name, k) for name, calls in outputs.items() for k, out in enumerate(calls, 1)]
    for out, name, k in sorted(ordered, key=lambda item: item[0].place):
        layer = _layer(name if len(outputs[name]) == 1 else f"{name}@{k}", kinds[name], out, watch)
        if name and layer is not None and ":" not in name:  # such a name could not be written in a unit
            found.layers[layer.name] = layer
    found.folds = _folds(
        module, fed, made, watch, found.calls, Counter(id(o.tensor) for c in outputs.values() for o in c)
    )
    found.elements = watch.elements
    return found


@contextmanager
def _hooked(
    child: nn.Module,
    name: str,
    watch: _Watch,
    outputs: dict[str, list[_Output]],
    fed: dict[str, int],
    made: dict[int, str],
) -> Iterator[None]:
    """Note what goes into and comes out of one module, for the time of the context."""

    def before(_: nn.Module, args: tuple[Any, ...]) -> None:
        watch.stack.append(name)
        if isinstance(child, nn.BatchNorm2d) and args and isinstance(args[0], Tensor):
            fed[name] = id(args[0])

    def after(_: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        watch.stack.pop()
        if isinstance(out, Tensor):
            watch.kept.append(out)
            watch.makers[id(out)] = name
            outputs[name].append(_Output(sum(map(len, outputs.values())), watch.elements, out))
            if type(child) is nn.Conv2d:
                made[id(out)] = name

    handles = [child.register_forward_pre_hook(before), child.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layer(name: str, kind: str, output: _Output, watch: _Watch) -> Layer | None:
    out, tag = output.tensor, watch.tags.get(id(output.tensor))
    if tag is None or 0 in out.shape:
        return None
    if out.dim() == 2:
        return Layer(name, kind, out.shape[1], 1, 1, tag.branches, tag.field, output.elements)
    if out.dim() == 4 and tag.axes == GRID_AXES:
        channels, height, width = out.shape[1:]
        return Layer(name, kind, channels, height, width, tag.branches, tag.field, output.elements)
    return None


def _folds(
    module: nn.Module,
    fed: dict[str, int],
    made: dict[int, str],
    watch: _Watch,
    calls: Counter[str],
    given_out: Counter[int],
) -> list[tuple[str, str]]:
    """Return the pairs in which only the batch norm reads the convolution's output, and only the convolution gives it.

    A container that ends in the convolution gives out the same tensor, and may be asked for it.
    """
    pairs = []
    for norm, key in fed.items():
        conv = made.get(key)
        if conv is None or watch.uses[key] != 1 or given_out[key] != 1 or calls[conv] != 1 or calls[norm] != 1:
            continue
        both = module.get_submodule(conv), module.get_submodule(norm)
        # pruning and weight norm make the weight anew before each call
        hooked = any(m._forward_pre_hooks or m._forward_hooks for m in both) or "weight" not in both[0]._parameters
        if not hooked and getattr(both[1], "running_mean", None) is not None:
            pairs.append((conv, norm))
    return pairs
