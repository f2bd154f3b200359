"""Trace one forward pass: a network's layers with their grids, branches and receptive fields, and foldable pairs.

The network itself is run, and every torch function is intercepted. No graph compiler is needed, and any Python code in
the forward pass is followed.
"""

from __future__ import annotations

import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from featmap.image_shape import Size, as_pair
from featmap.network.axes import Axes, cat_dim, iterate_tensors
from featmap.network.layouts import (
    CHANNELS_LAST,
    CHANNELS_SECOND,
    GRID,
    GRID_LAYOUT,
    SETTLED_BY_BATCH,
    VECTOR,
    WINDOWS,
    Layout,
    competing_tensors,
    describe,
    first_tensor,
)
from featmap.network.modules import is_plain
from featmap.network.positions import CONSTANT, Result, follow
from featmap.network.receptive_field import WHOLE_IMAGE, ReceptiveField, unknown_field
from featmap.network.unit import split_call, split_token

_VIEWS = frozenset({"T", "mT", "data", "real"})
"""Attributes of a tensor that are tensors with the same numbers."""
_TOKEN_KINDS = (("cls", "cls"), ("class", "cls"), ("dist", "dist"), ("reg", "reg"))
"""Parts of parameters' names, and the kinds of tokens that such parameters are."""
SAMPLED = 16
"""About how many channels, rows and columns of a grid are compared to find where a batch's images lie."""


@dataclass(frozen=True)
class Layer:
    """A module call whose output is a grid, in any layout, or a vector (a 1 x 1 grid).

    Parameters
    ----------
    name : str
        Path of the module; ``path@k`` for the k-th call of a module that is called several times; with ``@cls``,
        ``@dist``, ``@reg1`` and so on at its end for a token beside the grid.
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
    layout : Layout, default N x C x H x W
        Where the grid lies in the module's output.
    base : str, default ""
        Of a set of directions, see `featmap.network.directions`: the layer whose channels they are read from.
    names : tuple of str, default ()
        Names of the features, where they have any.
    """

    name: str
    kind: str
    channels: int
    height: int
    width: int
    branches: tuple[tuple[str, int], ...]
    field: ReceptiveField
    cumulative_elements: int = 0
    layout: Layout = GRID_LAYOUT
    base: str = ""
    names: tuple[str, ...] = ()

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
    size : int or (int, int)
        Image size in pixels.
    layers : dict of str to Layer
        The layers by name, in order of completion.
    folds : list of (str, str)
        Names of each convolution and the batch norm after it that together compute one affine map and can be merged.
    calls : Counter of str
        Number of calls by the module's name.
    competing : dict of str to list of str
        Keys of the tensors that a module returns in a dictionary or object, where several could be meant.
    elements : int, default 0
        Numbers per image in the outputs of all functions.
    measured : dict of int to ReceptiveField
        Fields that no rule gives and that have been measured, by their number.
    image : Tensor
        The image that was traced.
    failure : str, default ""
        Error that stopped the forward pass; empty if it reached the end. The layers before it are complete.
    failed_in : str, default ""
        Path of the source file whose code raised that error; this module's own for errors of torch's functions.
    """

    size: Size
    layers: dict[str, Layer] = field(default_factory=dict)
    folds: list[tuple[str, str]] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    competing: dict[str, list[str]] = field(default_factory=dict)
    elements: int = 0
    measured: dict[int, ReceptiveField] = field(default_factory=dict)
    image: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)
    failure: str = ""
    failed_in: str = ""

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

    axes: Axes | None
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

    def __init__(self, image: Tensor, names: dict[int, str]) -> None:
        super().__init__()
        self.info = {id(image): _TensorInfo(Axes.of_grid(image.shape), ReceptiveField.pixel())}
        self.alive: list[Any] = [image]  # an id is only unique while its tensor lives
        self.names = names  # of parameters and what is computed from them alone, such as an expanded class token
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
        if name == "__get__":  # an attribute such as `tensor.mT`
            name = getattr(getattr(func, "__self__", None), "__name__", "")
            if not isinstance(out, Tensor) or name not in _VIEWS:
                return out
        inputs = list(iterate_tensors((*args, *kwargs.values())))
        results = list(iterate_tensors((out,)))
        if results:  # a query such as the size of a tensor does not read it
            self.uses.update({id(t) for t in inputs})
        if not any(id(t) in self.info for t in inputs):
            self._name(inputs, results)
            return out
        if name == "__setitem__":
            self.info[id(args[0])] = _TensorInfo(None, unknown_field(), name)
            return out
        new = [t for t in results if not any(t is i for i in inputs)]
        self.alive.extend(new)
        self.elements += sum(t.numel() for t in new)
        if not results or name in CONSTANT:
            return out
        followed = follow(name, args, kwargs, results, self._known, self._kind_of)
        for tensor, (axes, seen) in zip(results, followed, strict=True):
            if id(tensor) in self.info and any(tensor is t for t in inputs):
                # changed in place: the tensor now depends on all inputs
                self.info[id(tensor)].axes, self.info[id(tensor)].field = axes, seen
            else:
                self.info[id(tensor)] = info = _TensorInfo(axes, seen, name)
                if name in {"cat", "concat", "concatenate"}:
                    layout = describe(axes, tensor.shape)
                    channels = 1 if layout is None or layout[0].kind in CHANNELS_SECOND else tensor.dim() - 1
                    if cat_dim(args, kwargs, tensor.dim()) == channels:
                        joined = [t for t in inputs if id(t) in self.info]
                        info.branches, info.owner = self._list_branches(joined, channels), self.module_stack[-1]
                self.producers.pop(id(tensor), None)
        return out

    def _known(self, tensor: Tensor) -> Result | None:
        """Get a tensor's axes and receptive field."""
        info = self.info.get(id(tensor))
        return None if info is None else (info.axes, info.field)

    def _kind_of(self, tensor: Tensor) -> str:
        """Find the kind of the tokens in a tensor by the name of the parameter that it is computed from."""
        name = self.names.get(id(tensor), "").lower()
        return next((kind for sign, kind in _TOKEN_KINDS if sign in name), "tok")

    def _name(self, inputs: Sequence[Tensor], results: Sequence[Tensor]) -> None:
        """Name tensors after the parameter that they are computed from, by preference one that names tokens."""
        named = sorted((t for t in inputs if id(t) in self.names), key=lambda t: self._kind_of(t) == "tok")
        for tensor in results if named else ():
            self.names[id(tensor)] = self.names[id(named[0])]
            self.alive.append(tensor)

    def _list_branches(self, inputs: list[Tensor], dim: int) -> tuple[tuple[str, int], ...]:
        """List name and width of the tensors that a concatenation joins.

        A name is that of the module inside the concatenating one that computed the tensor, or else of the function.
        """
        owner = self.module_stack[-1]
        branches: list[tuple[str, int]] = []
        for tensor in inputs:
            info = self.info[id(tensor)]
            if info.branches and info.owner == owner:  # itself concatenated here, as in DenseNet
                branches.extend(info.branches)
                continue
            producer = self.producers.get(id(tensor), "")
            is_inside = producer.startswith(f"{owner}.") if owner else bool(producer)
            name = producer[len(owner) + 1 if owner else 0 :] if is_inside else info.function or "input"
            branches.append((name, tensor.shape[dim]))
        return tuple(branches)


def trace(module: nn.Module, size: Size, channels: int = 3) -> Trace:
    """Trace one forward pass of a module on a gray image.

    The module is not changed. If the forward pass fails, for example because the image is too small for deep layers,
    the error is recorded in the result.

    Parameters
    ----------
    module : nn.Module
        The network, in evaluation mode; the image is put on its device.
    size : int or (int, int)
        Side of the image, or its height and width, in pixels.
    channels : int, default 3
        Number of the image's channels.

    Returns
    -------
    Trace
        The layers up to the end of the pass or up to its failure.
    """
    parameter = next(module.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    image = torch.full((1, channels, *as_pair(size)), 0.5, device=device)
    tracer = _TracingMode(image, {id(p): name.rpartition(".")[2] for name, p in module.named_parameters()})
    result = Trace(size, image=image)
    outputs: dict[str, list[_ModuleOutput]] = defaultdict(list)
    norm_inputs: dict[str, int] = {}
    conv_outputs: dict[int, str] = {}
    with ExitStack() as stack, torch.no_grad():
        for name, child in module.named_modules():
            stack.enter_context(_record_calls(child, name, tracer, outputs, norm_inputs, conv_outputs, result))
        stack.enter_context(tracer)
        try:
            module(image)
        except Exception as error:  # noqa: BLE001 - a network of the user's own may raise anything
            result.failure = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            result.failed_in = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)][-1]
    for name, calls in outputs.items():
        result.calls[name] = len(calls)
    kinds = {name: type(child).__name__ for name, child in module.named_modules()}
    ordered = [(out, name, k) for name, calls in outputs.items() for k, out in enumerate(calls, 1)]
    for out, name, k in sorted(ordered, key=lambda item: item[0].order):
        if not name or ":" in name:  # a colon could not be written in a unit
            continue
        for layer in _describe_layers(name if len(outputs[name]) == 1 else f"{name}@{k}", kinds[name], out, tracer):
            result.layers[layer.name] = layer
    _settle_batches(module, image, result)
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
    result: Trace,
) -> Iterator[None]:
    """Record the inputs and outputs of one module while the context lasts."""

    def before(_: nn.Module, args: tuple[Any, ...]) -> None:
        tracer.module_stack.append(name)
        if isinstance(child, nn.BatchNorm2d) and args and isinstance(args[0], Tensor):
            norm_inputs[name] = id(args[0])

    def after(_: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        tracer.module_stack.pop()
        if isinstance(out, Tensor):
            tracer.producers[id(out)] = name
        if competing := competing_tensors(out):
            result.competing[name] = competing
        out = first_tensor(out)
        if out is not None:
            tracer.alive.append(out)
            outputs[name].append(_ModuleOutput(sum(map(len, outputs.values())), tracer.elements, out))
            if type(child) is nn.Conv2d:
                conv_outputs[id(out)] = name

    handles = [child.register_forward_pre_hook(before), child.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _settle_batches(module: nn.Module, image: Tensor, result: Trace) -> None:
    """Find where the images of a batch lie in layers of windows and of sequences, and drop those that mix them.

    One image cannot show how images share a dimension with windows, or whether a dimension of size 1 is the batch, the
    number of windows or their length, so an image is compared in a batch and alone.
    """
    doubtful = {n: la for n, la in result.layers.items() if la.layout.kind in SETTLED_BY_BATCH}
    if not doubtful:
        return
    other = torch.rand(image.shape, generator=torch.Generator().manual_seed(0)).to(image)
    grids = {n: la.layout for n, la in doubtful.items() if not split_token(n)[1]}
    (alone, _), (batched, passed) = (_read_grids(module, x, grids) for x in (other, torch.cat([image, other])))
    for name, layer in doubtful.items():
        grid = split_token(name)[0]
        if not passed and grid in alone and grid not in batched:  # the network takes one image at a time
            continue
        kinds = [kind for kind, expected in alone.get(grid, {}).items() if _follows(batched.get(grid), kind, expected)]
        if kinds:
            result.layers[name] = replace(layer, layout=replace(layer.layout, kind=kinds[0]))
        else:
            del result.layers[name]


def _follows(batched: dict[str, Tensor] | None, kind: str, expected: Tensor) -> bool:
    """Check whether the second image of a batch has the grid that it has alone, read by one kind of layout."""
    actual = (batched or {}).get(kind)
    is_batch = actual is not None and len(expected) == 1 and actual.shape == (2, *expected.shape[1:])
    # where the batch has a dimension of its own the shape suffices: stochastic networks are refused elsewhere
    return is_batch and actual is not None and (kind != WINDOWS or _is_close(actual[1], expected[0]))


def _is_close(actual: Tensor, expected: Tensor) -> bool:
    """Check whether two grids are the same but for rounding."""
    return torch.allclose(actual, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def _read_grids(
    module: nn.Module, images: Tensor, layouts: Mapping[str, Layout]
) -> tuple[dict[str, dict[str, Tensor]], bool]:
    """Read samples of layers' grids by each kind of layout that fits; whether the pass reached its end."""
    passed = False
    counts: Counter[str] = Counter()
    grids: dict[str, dict[str, Tensor]] = defaultdict(dict)

    def keep(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            counts[path] += 1
            name = path if path in layouts else f"{path}@{counts[path]}"
            tensor = first_tensor(output)
            if name not in layouts or tensor is None:
                return
            for kind in dict.fromkeys((layouts[name].kind, WINDOWS)):
                with suppress(RuntimeError):  # the shape does not fit this kind
                    grid = replace(layouts[name], kind=kind).to_grid(tensor)
                    steps = [max(1, side // SAMPLED) for side in grid.shape[1:]]
                    grids[name][kind] = grid[:, :: steps[0], :: steps[1], :: steps[2]].clone()

        return hook

    with ExitStack() as stack, torch.no_grad():
        for path in {split_call(name)[0] for name in layouts}:
            stack.callback(module.get_submodule(path).register_forward_hook(keep(path)).remove)
        with suppress(Exception):  # a network of the user's own may raise anything
            module(images)
            passed = True
    return grids, passed


def _describe_layers(name: str, kind: str, output: _ModuleOutput, tracer: _TracingMode) -> Iterator[Layer]:
    """Describe a module's output as a layer, and the tokens beside its grid as further ones."""
    out, info = output.tensor, tracer.info.get(id(output.tensor))
    result = None if info is None else describe(info.axes, out.shape)
    if info is None or result is None or not out.is_floating_point():  # masks, indices and spectra have no response
        return
    layout, extra = result
    if layout.kind in (GRID, VECTOR):
        channels, height, width = (*out.shape[1:], 1, 1)[:3]
    elif layout.kind == CHANNELS_LAST:
        height, width, channels = out.shape[1:]
    else:
        channels, (height, width) = out.shape[1 if layout.kind in CHANNELS_SECOND else -1], layout.grid
    is_flattened = layout.kind == VECTOR and info.axes is not None and bool(info.axes.spatial([1]))
    field = WHOLE_IMAGE if is_flattened else info.field
    yield Layer(name, kind, channels, height, width, info.branches, field, output.elements, layout)
    for token, position in extra.items():
        # before the first attention such a token sees nothing of the image, after it what attention sees
        field = info.field if info.field.whole and not info.field.unknown else unknown_field()
        place = Layout(layout.kind, (1, 1), position)
        yield Layer(f"{name}@{token}", kind, channels, 1, 1, info.branches, field, output.elements, place)


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
