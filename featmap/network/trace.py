"""Trace one forward pass: a network's layers with their grids, branches and receptive fields, and foldable pairs.

The network itself is run, and every torch function is intercepted. No graph compiler is needed, and any Python code in
the forward pass is followed.
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

from featmap.network.modules import is_plain
from featmap.network.receptive_field import WHOLE_IMAGE, ReceptiveField, join, propagate

GRID_AXES = (2, 3)
"""Axes of a grid's rows and columns in N x C x H x W."""
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
"""Functions that may regroup axes; they keep the grid where its axes stay the last two and keep their lengths."""


@dataclass(frozen=True)
class Layer:
    """A module call whose output is a convolutional grid, or a vector (a 1 x 1 grid).

    Parameters
    ----------
    name : str
        Path of the module; ``path@k`` for the k-th call of a module that is called several times.
    kind : str
        Class of the module.
    channels : int
        Number of channels, the features.
    height : int
        Rows of the grid.
    width : int
        Columns of the grid.
    branches : tuple of (str, int)
        Name and number of channels of each part that a concatenation in this layer joins, in order; empty where there
        is none.
    field : ReceptiveField
        Receptive field of the grid's positions.
    cumulative_elements : int, default 0
        Numbers per image that all functions have computed up to the end of this layer.
    """

    name: str
    kind: str
    channels: int
    height: int
    width: int
    branches: tuple[tuple[str, int], ...]
    field: ReceptiveField
    cumulative_elements: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.channels, self.height, self.width

    def branch(self, channel: int) -> str:
        """Find the branch that a channel comes from.

        Parameters
        ----------
        channel : int
            Index of the channel.

        Returns
        -------
        str
            Name of the branch; empty where the layer has none.
        """
        for name, width in self.branches:
            if channel < width:
                return name
            channel -= width
        return ""


@dataclass
class Trace:
    """The result of tracing one forward pass at one image size.

    Parameters
    ----------
    size : int
        Image size in pixels.
    layers : dict of str to Layer
        The layers by name, in order of completion.
    folds : list of (str, str)
        Names of each convolution and the batch norm after it that together compute one affine map and can be merged.
    calls : Counter of str
        Number of calls by the module's name.
    elements : int, default 0
        Numbers per image in the outputs of all functions.
    failure : str, default ""
        Error that stopped the forward pass; empty if it reached the end. The layers before it are complete.
    """

    size: int
    layers: dict[str, Layer] = field(default_factory=dict)
    folds: list[tuple[str, str]] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    elements: int = 0
    failure: str = ""

    def field(self, layer: str, channel: int) -> ReceptiveField:
        """Get the receptive field of one channel.

        Parameters
        ----------
        layer : str
            Name of the layer.
        channel : int
            Index of the channel.

        Returns
        -------
        ReceptiveField
            The field of the channel's branch where the branch is itself a layer, or else that of the whole layer.
        """
        whole = self.layers[layer]
        branch = self.layers.get(f"{layer}.{whole.branch(channel)}")
        return whole.field if branch is None else branch.field


@dataclass
class _TensorInfo:
    """Properties of one tensor: the axes of its grid, its receptive field, the parts that were concatenated."""

    axes: tuple[int, int] | None
    field: ReceptiveField
    function: str = ""
    branches: tuple[tuple[str, int], ...] = ()
    owner: str = ""


@dataclass(frozen=True)
class _ModuleOutput:
    """The output of one module call: its number in order of completion, elements computed so far, the tensor."""

    order: int
    elements: int
    tensor: Tensor


class _TracingMode(TorchFunctionMode):
    """Records properties of every tensor that the forward pass computes."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.info: dict[int, _TensorInfo] = {id(image): _TensorInfo(GRID_AXES, ReceptiveField.pixel())}
        self.alive: list[Any] = [image]  # an id is only unique while its tensor lives
        self.uses: Counter[int] = Counter()
        self.producers: dict[int, str] = {}
        self.module_stack: list[str] = [""]
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
        inputs = list(_iterate_tensors((*args, *kwargs.values())))
        results = list(_iterate_tensors((out,)))
        if results:  # a query such as the size of a tensor does not read it
            self.uses.update({id(t) for t in inputs})
        traced = [t for t in inputs if id(t) in self.info]
        for tensor in results:
            if traced and id(tensor) in self.info and any(tensor is t for t in inputs):
                # changed in place: the tensor now depends on all inputs
                fields = [propagate(self.info[id(t)].field, name, args, kwargs) for t in traced]
                self.info[id(tensor)].field = join(fields)
            elif traced:
                self.alive.append(tensor)
                self.elements += tensor.numel()
                self.info[id(tensor)] = self._describe(name, tensor, traced, args, kwargs)
                self.producers.pop(id(tensor), None)
        return out

    def _describe(
        self, name: str, out: Tensor, inputs: list[Tensor], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> _TensorInfo:
        """Compute the properties of a function's output from those of its inputs."""
        infos = [self.info[id(t)] for t in inputs]
        axes = _grid_axes(name, out, inputs[0], infos[0].axes, args, kwargs)
        field = join([t.field for t in infos])
        if infos[0].axes is not None and _mixes_grid(name, inputs[0], infos[0].axes, args, kwargs):
            field = WHOLE_IMAGE
        elif name in _REDUCING and not _keeps_grid(out, axes, inputs[0], infos[0].axes):
            field = join(
                [WHOLE_IMAGE if not _is_single_position(t, i) else i.field for t, i in zip(inputs, infos, strict=True)]
            )
        elif axes is None and any(i.axes and not _is_single_position(t, i) for t, i in zip(inputs, infos, strict=True)):
            field = WHOLE_IMAGE
        else:
            field = propagate(field, name, args, kwargs)
        info = _TensorInfo(axes, field, name)
        if name in {"cat", "concat", "concatenate"} and _cat_dim(args, kwargs) == 1:
            info.branches, info.owner = self._list_branches(inputs, infos), self.module_stack[-1]
        return info

    def _list_branches(self, inputs: list[Tensor], infos: list[_TensorInfo]) -> tuple[tuple[str, int], ...]:
        """List name and width of the tensors that a concatenation joins.

        A name is that of the module inside the concatenating one that computed the tensor, or else of the function.
        """
        owner = self.module_stack[-1]
        branches: list[tuple[str, int]] = []
        for tensor, info in zip(inputs, infos, strict=True):
            if info.branches and info.owner == owner:  # itself concatenated here, as in DenseNet
                branches.extend(info.branches)
                continue
            producer = self.producers.get(id(tensor), "")
            is_inside = producer.startswith(f"{owner}.") if owner else bool(producer)
            name = producer[len(owner) + 1 if owner else 0 :] if is_inside else info.function or "input"
            branches.append((name, tensor.shape[1]))
        return tuple(branches)


def _keeps_grid(out: Tensor, axes: tuple[int, int] | None, source: Tensor, before: tuple[int, int] | None) -> bool:
    """Check whether an output has a grid of the same size as the input."""
    if axes is None or before is None:
        return False
    return all(out.shape[a] == source.shape[b] for a, b in zip(axes, before, strict=True))


def _grid_axes(
    name: str,
    out: Tensor,
    source: Tensor,
    axes: tuple[int, int] | None,
    args: Sequence[Any],
    kwargs: dict[str, Any],
) -> tuple[int, int] | None:
    """Find the axes of a function's output that are the grid's rows and columns, or None."""
    if name in {"conv2d", "conv_transpose2d"}:
        return GRID_AXES
    if axes is None:
        return None
    if name in {"permute", "transpose", "swapaxes", "movedim", "moveaxis"}:
        order = _axis_order(name, source.dim(), args, kwargs)
        rows, columns = (order.index(axes[0]), order.index(axes[1])) if order else (1, 0)
        return (rows, columns) if rows < columns else None  # a transposed grid is not followed further
    last = (out.dim() - 2, out.dim() - 1)
    if name == "__getitem__" and out.dim() == source.dim():
        return axes if _only_slices(args[1]) else None
    if name in RESHAPING and not (name == "__getitem__" and not _only_slices(args[1])):
        is_same = axes == (source.dim() - 2, source.dim() - 1) and out.shape[-2:] == source.shape[-2:]
        return last if is_same and out.dim() >= 3 else None
    if name in RESHAPING:
        return None
    return axes if out.dim() == source.dim() else None


def _only_slices(index: Any) -> bool:
    """Check whether an index only picks and slices, which cannot reorder positions."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(part is None or part is Ellipsis or isinstance(part, (int, slice)) for part in parts)


def _mixes_grid(name: str, source: Tensor, axes: tuple[int, int], args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Check whether a linear map or a layer norm runs over the grid's own axes."""
    if name == "linear":
        return source.dim() - 1 in axes
    over = kwargs.get("normalized_shape", args[1] if len(args) > 1 else ())
    return name == "layer_norm" and max(axes) >= source.dim() - len(tuple(over))


def _axis_order(name: str, dims: int, args: Sequence[Any], kwargs: dict[str, Any]) -> list[int] | None:
    """Find the order of axes that a permute or transpose yields; None where it cannot be read from the arguments."""
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
    """Get the axis of a concatenation."""
    return int(kwargs.get("dim", args[1] if len(args) > 1 else 0))


def _is_single_position(tensor: Tensor, info: _TensorInfo) -> bool:
    """Check whether a tensor's grid is a single position; reducing it then leaves its receptive field as it is."""
    return info.axes is not None and all(tensor.shape[a] == 1 for a in info.axes)


def _iterate_tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    """Yield the tensors among values and in the lists and tuples among them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _iterate_tensors(value)


def trace(module: nn.Module, size: int) -> Trace:
    """Trace one forward pass of a module on a gray image.

    The module is not changed. If the forward pass fails, for example because the image is too small for deep layers,
    the error is recorded in the result.

    Parameters
    ----------
    module : nn.Module
        The network, in evaluation mode; the image is put on its device.
    size : int
        Height and width of the image in pixels.

    Returns
    -------
    Trace
        The layers up to the end of the pass or up to its failure.
    """
    parameter = next(module.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    image = torch.full((1, 3, size, size), 0.5, device=device)
    tracer, result = _TracingMode(image), Trace(size)
    outputs: dict[str, list[_ModuleOutput]] = defaultdict(list)
    norm_inputs: dict[str, int] = {}
    conv_outputs: dict[int, str] = {}
    with ExitStack() as stack, torch.no_grad():
        for name, child in module.named_modules():
            stack.enter_context(_record_calls(child, name, tracer, outputs, norm_inputs, conv_outputs))
        stack.enter_context(tracer)
        try:
            module(image)
        except Exception as error:  # noqa: BLE001 - a network of the user's own may raise anything
            result.failure = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    for name, calls in outputs.items():
        result.calls[name] = len(calls)
    kinds = {name: type(child).__name__ for name, child in module.named_modules()}
    ordered = [(out, name, k) for name, calls in outputs.items() for k, out in enumerate(calls, 1)]
    for out, name, k in sorted(ordered, key=lambda item: item[0].order):
        layer = _describe_layer(name if len(outputs[name]) == 1 else f"{name}@{k}", kinds[name], out, tracer)
        if name and layer is not None and ":" not in name:  # a colon could not be written in a unit
            result.layers[layer.name] = layer
    result.folds = _find_folds(
        module,
        norm_inputs,
        conv_outputs,
        tracer,
        result.calls,
        Counter(id(o.tensor) for c in outputs.values() for o in c),
    )
    result.elements = tracer.elements
    return result


@contextmanager
def _record_calls(
    child: nn.Module,
    name: str,
    tracer: _TracingMode,
    outputs: dict[str, list[_ModuleOutput]],
    norm_inputs: dict[str, int],
    conv_outputs: dict[int, str],
) -> Iterator[None]:
    """Record the inputs and outputs of one module while the context lasts."""

    def before(_: nn.Module, args: tuple[Any, ...]) -> None:
        tracer.module_stack.append(name)
        if isinstance(child, nn.BatchNorm2d) and args and isinstance(args[0], Tensor):
            norm_inputs[name] = id(args[0])

    def after(_: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        tracer.module_stack.pop()
        if isinstance(out, Tensor):
            tracer.alive.append(out)
            tracer.producers[id(out)] = name
            outputs[name].append(_ModuleOutput(sum(map(len, outputs.values())), tracer.elements, out))
            if type(child) is nn.Conv2d:
                conv_outputs[id(out)] = name

    handles = [child.register_forward_pre_hook(before), child.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _describe_layer(name: str, kind: str, output: _ModuleOutput, tracer: _TracingMode) -> Layer | None:
    """Describe a module's output as a layer; None where it is no grid or vector."""
    out, info = output.tensor, tracer.info.get(id(output.tensor))
    if info is None or 0 in out.shape:
        return None
    if out.dim() == 2:
        return Layer(name, kind, out.shape[1], 1, 1, info.branches, info.field, output.elements)
    if out.dim() == 4 and info.axes == GRID_AXES:
        channels, height, width = out.shape[1:]
        return Layer(name, kind, channels, height, width, info.branches, info.field, output.elements)
    return None


def _find_folds(
    module: nn.Module,
    norm_inputs: dict[str, int],
    conv_outputs: dict[int, str],
    tracer: _TracingMode,
    calls: Counter[str],
    output_counts: Counter[int],
) -> list[tuple[str, str]]:
    """Find the pairs in which only the batch norm reads the convolution's output, and no other module outputs it.

    Both are torch's own classes with nothing added: a subclass may do more, such as apply an activation.
    A container that ends in the convolution outputs the same tensor, which may be requested as a layer of its own.
    """
    pairs = []
    for norm, key in norm_inputs.items():
        conv = conv_outputs.get(key)
        if conv is None or tracer.uses[key] != 1 or output_counts[key] != 1 or calls[conv] != 1 or calls[norm] != 1:
            continue
        pair = module.get_submodule(conv), module.get_submodule(norm)
        is_affine = is_plain(pair[0], nn.Conv2d) and is_plain(pair[1], nn.BatchNorm2d)
        if is_affine and getattr(pair[1], "running_mean", None) is not None:
            pairs.append((conv, norm))
    return pairs
