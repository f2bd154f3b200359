"""Hooks into a pass: read layers' outputs, let gradients pass flat activations, collect elementwise operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.hooks import RemovableHandle

from featmap.errors import UnitError
from featmap.network.directions import Directions, Pairs, Projection, split_name
from featmap.network.layouts import GRID, VECTOR, Layout, first_tensor, replace_first
from featmap.network.modules import REDUCED, freeze, modules_by_name
from featmap.network.unit import split_call

SAMPLES, SHORT = 1024, 15
"""Values on which an elementwise operation is tried, and values of the short tensors: too few for a vector register."""
UNTAGGED = frozenset(
    f"{name}{end}"
    for name in ("hardswish", "hardsigmoid", "hardtanh", "leaky_relu", "elu", "mish", "softplus", "_prelu_kernel")
    for end in ("", "_backward")
) | {"log_sigmoid_forward", "log_sigmoid_backward"}
"""Elementwise operations that torch does not mark as such."""
_TWO_WAYS: dict[Any, dict[int, Tensor]] = {}
"""Values that elementwise operations round in two ways, as far as this process has tried."""
RESCUE_SLOPE = 0.1
"""Factor of the gradient that passes an open gate where the activation is flat."""


class _Stop(BaseException):
    """Stop the forward pass once every layer has its output; no `except Exception` of a module catches it."""


Layouts = Callable[[str, int, int], Layout | None]
"""Finds the layout of a layer by its name and the images' height and width; None for an unknown layer."""


class ActivationHooks:
    """Forward hooks that read the outputs of layers.

    The forward pass stops once the last of the layers has its output.

    Parameters
    ----------
    module : nn.Module
        The network; inside the context it is in evaluation mode and frozen, afterwards as before.
    layers : sequence of str
        Names as `featmap layers` prints them; ``name@k`` is the k-th call of a module that one forward pass calls
        several times.
    leaves : sequence of str, default ()
        Those of the layers that are detached from what lies before them and become leaves of the autograd graph:
        gradients of deeper layers are taken with respect to their outputs.
    layouts : callable or None, default None
        Gives the layout of a layer for images of a height and width, such as `Network.find_layout`. None takes outputs
        as N x C x H x W and N x C.
    directions : mapping of str to Directions, optional
        Sets of directions by the names of their layers, such as `Network.directions`; these layers may be requested
        beside those of modules, but not be leaves.

    Examples
    --------
    >>> from torch import nn, zeros
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))
    >>> with ActivationHooks(net, ["1"]) as hooks:
    ...     tuple(hooks.run(zeros(2, 3, 8, 8))["1"].shape)
    (2, 4, 6, 6)
    """

    def __init__(
        self,
        module: nn.Module,
        layers: Sequence[str],
        leaves: Sequence[str] = (),
        layouts: Layouts | None = None,
        directions: Mapping[str, Directions] | None = None,
    ) -> None:
        self.module, self.leaves = module, frozenset(leaves)
        self.layouts, self._layouts = layouts, dict[str, Layout | None]()
        self._size = (0, 0)
        self.layers = list(dict.fromkeys(layers))
        self._directions = {name: directions[name] for name in self.layers if directions and name in directions}
        self._projections: dict[str, Projection] = {}
        self._needed: Mapping[str, Pairs] = {}
        bases = {name: split_name(name)[0] if name in self._directions else name for name in self.layers}
        self._calls_by_layer = {name: split_call(base) for name, base in bases.items()}
        self._outputs: dict[str, Tensor] = {}
        self._call_counts: dict[str, int] = {}
        self._running = False
        self._handles: list[RemovableHandle] = []
        self._frozen: Any = None

    def __enter__(self) -> ActivationHooks:
        modules = modules_by_name(self.module)
        for name, (path, _) in self._calls_by_layer.items():
            if path not in modules:
                raise UnitError(f"no layer {name!r} in this network; `featmap layers` lists them")
        self._frozen = freeze(self.module)
        self._frozen.__enter__()
        for path in {path for path, _ in self._calls_by_layer.values()}:
            self._handles.append(modules[path].register_forward_hook(self._hook(path)))
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        while self._handles:
            self._handles.pop().remove()
        self._outputs.clear()
        self._frozen.__exit__(kind, value, tb)

    def _hook(self, path: str) -> Any:
        """Make the forward hook of the module at `path`."""
        names: dict[int, list[str]] = {}
        for name, (p, call) in self._calls_by_layer.items():
            if p == path:
                names.setdefault(call, []).append(name)

        def store(_: nn.Module, __: Any, result: Any) -> Any:
            if not self._running:  # a forward pass that `run` did not start
                return None
            self._call_counts[path] = call = self._call_counts.get(path, 0) + 1
            output, is_changed = first_tensor(result), False
            for name in names.get(call, ()):  # several: a grid and the tokens beside it
                layout = self._layout(name, output)
                assert output is not None
                # cloned, because an in-place ReLU after the layer would overwrite the stored output
                is_leaf = name in self.leaves
                value = layout.to_grid(output.detach() if is_leaf else output).clone()
                # what a network computes in less than float32 is measured and summed in float32
                value = value.float() if value.dtype in REDUCED else value
                value = self._project(name, value) if name in self._directions else value
                self._outputs[name] = value = value.requires_grad_(True) if is_leaf else value
                if is_leaf:
                    source = output if is_changed else output.detach()
                    output, is_changed = layout.with_grid(source, value.to(output.dtype)), True
            if len(self._outputs) == len(self.layers):
                raise _Stop
            return replace_first(result, output) if is_changed else None

        return store

    def _project(self, name: str, grid: Tensor) -> Tensor:
        """Read directions from the grid of their layer."""
        if name not in self._projections:
            self._projections[name] = Projection(self._directions[name], grid)
        return self._projections[name](grid, self._needed.get(name))

    def _layout(self, name: str, output: Tensor | None) -> Layout:
        """Find the layout of a layer's output."""
        layout = self._layouts.get(name)
        if layout is None and output is not None and output.dim() in (2, 4):
            layout = Layout(GRID if output.dim() == 4 else VECTOR)
        if layout is None or output is None:
            raise UnitError(f"layer {name!r} outputs neither a grid nor a vector; `featmap layers` lists those that do")
        return layout

    def run(self, images: Tensor, needed: Mapping[str, Pairs] | None = None) -> dict[str, Tensor]:
        """Run the module on images and read the layers' outputs.

        Parameters
        ----------
        images : Tensor
            N x C x H x W, normalised as the module expects them.
        needed : mapping of str to sequence of (int, int), optional
            For each layer the images and features that are needed, sorted. Other directions are 0 in the result;
            layers of modules are complete in any case.

        Returns
        -------
        dict of str to Tensor
            N x C x H x W by layer, in the order of `layers`; a vector is a 1 x 1 grid.

        Raises
        ------
        UnitError
            If a layer's output is no grid or vector, or not one for each image, or the forward pass does not reach
            a layer.
        """
        height, width = images.shape[-2:]
        if self.layouts is not None and self._size != (height, width):
            self._layouts = {name: self.layouts(name, height, width) for name in self.layers}
            self._size = (height, width)
        self._outputs, self._call_counts, self._running, self._needed = {}, {}, True, needed or {}
        try:
            with suppress(_Stop):
                self.module(images)
        finally:
            self._running = False
        missing = [name for name in self.layers if name not in self._outputs]
        if missing:
            raise UnitError(
                f"layer {missing[0]!r} was not reached by the forward pass; `featmap layers` lists those that are"
            )
        outputs, self._outputs = self._outputs, {}
        for name, output in outputs.items():
            if len(output) != len(images):
                raise UnitError(
                    f"layer {name!r} outputs {len(output)} grids for {len(images)} images, so that its features have "
                    "no value for each image; choose a layer before or after it"
                )
        return {name: outputs[name] for name in self.layers}


class Gate:
    """Switch that, while open, lets damped gradients pass where activations are flat."""

    def __init__(self) -> None:
        self.open = False


class _GatedReLU(torch.autograd.Function):
    """A ReLU that allows two backward passes of one forward pass: as usual, and with the gate open."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Gate, in_place: bool) -> Tensor:
        ctx.gate = gate
        ctx.save_for_backward(x <= 0)  # False for NaN, so the gradient passes, as in torch
        if in_place:
            ctx.mark_dirty(x)
            return x.relu_()
        return x.relu()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (dead,) = ctx.saved_tensors
        return torch.where(dead, RESCUE_SLOPE * grad if ctx.gate.open else torch.zeros_like(grad), grad), None, None


@dataclass(frozen=True)
class _Saturation:
    """An activation of mobile networks that is flat below, above or both; value and derivative are torch's own."""

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]
    is_flat: Callable[[Tensor], Tensor]


def _saturation(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[_Saturation, bool]:
    """Read a call of `hardtanh`, `relu6`, `hardswish` or `hardsigmoid`: the activation, and whether it is in place."""
    aten, names = torch.ops.aten, ("min_val", "max_val", "inplace") if name.startswith("hardtanh") else ("inplace",)
    call = {"min_val": -1.0, "max_val": 1.0, "inplace": False} | dict(zip(names, args, strict=False)) | dict(kwargs)
    in_place = bool(call["inplace"]) or name.endswith("_")
    if name == "hardswish":
        return _Saturation(aten.hardswish, aten.hardswish_backward, lambda x: x < -3), in_place
    if name.startswith("hardsigmoid"):
        return _Saturation(aten.hardsigmoid, aten.hardsigmoid_backward, lambda x: (x <= -3) | (x >= 3)), in_place
    # nn.ReLU6 arrives as hardtanh, the function relu6 under its own name
    low, high = (0.0, 6.0) if name == "relu6" else (call["min_val"], call["max_val"])
    return (
        _Saturation(
            lambda x: aten.hardtanh(x, low, high),
            lambda grad, x: aten.hardtanh_backward(grad, x, low, high),
            lambda x: (x <= low) | (x >= high),
        ),
        in_place,
    )


class _GatedSaturation(torch.autograd.Function):
    """The same for an activation that saturates."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Gate, saturation: _Saturation, in_place: bool) -> Tensor:
        ctx.gate, ctx.saturation = gate, saturation
        ctx.save_for_backward(x.clone() if in_place else x)  # its value is gone when the gradient is computed
        if in_place:
            ctx.mark_dirty(x)
            return x.copy_(saturation.forward(x))
        return saturation.forward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        usual = ctx.saturation.backward(grad, x)  # torch's own, so that bits do not change where no row is dead
        passed = torch.where(ctx.saturation.is_flat(x), RESCUE_SLOPE * grad, usual) if ctx.gate.open else usual
        return passed, None, None, None


class GatedActivations(TorchFunctionMode):
    """Give every activation with a flat part inside this context a gate.

    ReLU, ReLU6, hardtanh, hardswish and hardsigmoid, as modules, functions and methods; values and gradients with the
    gate shut are torch's, to the bit.

    Parameters
    ----------
    gate : Gate
        The gate of all of them.
    """

    RELUS = frozenset({"relu", "relu_"})  # nn.ReLU, functional.relu and the tensor's methods all arrive as these
    SATURATIONS = frozenset({"relu6", "hardtanh", "hardtanh_", "hardswish", "hardsigmoid"})

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gate = gate

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name not in self.RELUS and name not in self.SATURATIONS:
            return func(*args, **kwargs)
        x = args[0] if args else kwargs["input"]
        if not x.requires_grad:  # no gradient flows back through this call
            return func(*args, **kwargs)
        if name in self.RELUS:
            in_place = name == "relu_" or bool(kwargs.get("inplace", args[1] if len(args) > 1 else False))
            gated = partial(_GatedReLU.apply, x, self.gate)
        else:
            saturation, in_place = _saturation(name, args[1:], {k: v for k, v in kwargs.items() if k != "input"})
            kept = x.clone() if in_place and x._is_view() else x  # the copy below overwrites x, the gradient reads it
            gated = partial(_GatedSaturation.apply, kept, self.gate, saturation)
        if in_place and x._is_view():  # autograd does not let a custom function overwrite a view in place
            return x.copy_(gated(False))
        return gated(in_place)


def has_bits_of(result: Tensor, expected: Tensor) -> bool:
    """Compare two tensors bit by bit.

    Parameters
    ----------
    result, expected : Tensor
        Any tensors.

    Returns
    -------
    bool
        Whether shapes, types and all bits are equal; unlike values, NaN equals itself and 0 differs from -0.
    """
    same = result.shape == expected.shape and result.dtype == expected.dtype
    return same and torch.equal(bits(result), bits(expected))


def bits(values: Tensor) -> Tensor:
    """View values as their bytes.

    Parameters
    ----------
    values : Tensor
        Any tensor, ... .

    Returns
    -------
    Tensor
        Bytes of each element, ... x bytes, uint8; those of a complex number are ... x 2 x bytes.
    """
    values = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
    return values.contiguous()[..., None].view(torch.uint8)


class ElementwiseCalls(TorchDispatchMode):
    """Collect the elementwise operations of a pass, those of the backward pass too.

    Operations of equal settings and shapes are collected once, in the order of the pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = dict[Any, ElementwiseCall]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        # a clone copies bits, whatever its memory format
        if (torch.Tag.pointwise in func.tags and name != "clone") or name.rstrip("_") in UNTAGGED:
            leaves, tree = tree_flatten((args, kwargs or {}))
            found = [(tuple(p.shape), p.stride(), p.dtype) if isinstance(p, Tensor) else p for p in leaves]
            if any(isinstance(p, Tensor) and p.dim() for p in leaves):
                self.calls.setdefault((func, *found), ElementwiseCall(func, tree, leaves))
        return func(*args, **(kwargs or {}))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Tell torch that nothing is compiled here: switching off its compiler would import it, for seconds."""
        return False

    def round_alike(self, next_larger: ElementwiseCalls, added: int) -> bool:
        """Check that each element is rounded as in a larger batch.

        Shapes are extrapolated from two passes: networks may move rows, or merge them with frames or windows.

        Parameters
        ----------
        next_larger : ElementwiseCalls
            Operations of the same pass with one row more.
        added : int
            Rows that the larger batch has in addition to those of this pass.

        Returns
        -------
        bool
            Whether it is, for values of any size; False where the two passes have other operations.
        """
        # operations that both passes have, with the same shapes, do not depend on the number of rows
        own, larger = (
            [call for key, call in one.calls.items() if key not in other.calls]
            for one, other in ((self, next_larger), (next_larger, self))
        )
        return len(own) == len(larger) and all(a.rounds_alike(b, added) for a, b in zip(own, larger, strict=True))


class ElementwiseCall:
    """An elementwise operation with its settings and the shapes of its tensors.

    Parameters
    ----------
    function : callable
        The operation.
    tree : object
        Structure of its arguments.
    leaves : sequence
        The arguments.
    """

    def __init__(self, function: Any, tree: Any, leaves: Sequence[Any]) -> None:
        self.function, self.tree = function, tree
        self.leaves = [p.to("meta") if isinstance(p, Tensor) else p for p in leaves]
        self.device = next(p.device for p in leaves if isinstance(p, Tensor) and p.dim())

    def rounds_alike(self, next_larger: ElementwiseCall, added: int) -> bool:
        """Check that each element is rounded as in a larger batch.

        Parameters
        ----------
        next_larger : ElementwiseCall
            The operation in a batch with one row more.
        added : int
            Rows that the larger batch has in addition.

        Returns
        -------
        bool
            Whether it is, for values of any size.
        """
        if self.function is not next_larger.function or len(self.leaves) != len(next_larger.leaves):
            return False
        values = self._two_ways()
        if not values:
            return True
        # one value that rounds in two ways, at all places of tensors of the call's shapes, shows where it does so
        own, other = (
            self._apply({k: self._filled(p, next_larger.leaves[k], more, values[k]) for k, p in self._tensors()})
            for more in (0, added)
        )
        if any(large - small > added for small, large in zip(own.shape, other.shape, strict=True)):
            # rows are merged with something else, in an unknown order: then all places have to round alike
            first = other[(slice(1),) * other.dim()]
            return all(has_bits_of(each, first.expand_as(each)) for each in (own, other))
        return has_bits_of(own, other[tuple(map(slice, own.shape))])

    def _two_ways(self) -> dict[int, Tensor]:
        """Find a value for each tensor so that the result rounds otherwise in a short tensor; none where none does."""
        kinds = [(p.dtype, p.dim() > 0) if isinstance(p, Tensor) else p for p in self.leaves]
        key = (self.function, *kinds, self.device, torch.get_num_threads())
        if key not in _TWO_WAYS:
            generator = torch.Generator().manual_seed(0)
            values = {k: _sample(p, generator).to(self.device) for k, p in self._tensors()}
            short = [self._apply({k: v[i : i + SHORT] for k, v in values.items()}) for i in range(0, SAMPLES, SHORT)]
            differ = (bits(self._apply(values)) != bits(torch.cat(short))).flatten(1).any(1).nonzero()
            _TWO_WAYS[key] = {k: v[int(differ[0])] for k, v in values.items()} if len(differ) else {}
        return _TWO_WAYS[key]

    def _tensors(self) -> list[tuple[int, Tensor]]:
        """List the tensors that are not single numbers, with their places."""
        return [(k, p) for k, p in enumerate(self.leaves) if isinstance(p, Tensor) and p.dim()]

    def _filled(self, like: Tensor, next_larger: Tensor, added: int, value: Tensor) -> Tensor:
        """Make a tensor of one value, of the shape and memory order that a tensor has with rows added."""
        shape, strides = (
            [size + added * (more - size) for size, more in zip(one, two, strict=True)]
            for one, two in ((like.shape, next_larger.shape), (like.stride(), next_larger.stride()))
        )
        own = [1 if stride == 0 else size for size, stride in zip(shape, strides, strict=True)]
        filled = torch.empty_strided(own, strides, dtype=like.dtype, device=self.device)
        return filled.fill_(value).expand(shape)

    def _apply(self, tensors: dict[int, Tensor]) -> Tensor:
        """Apply the operation to copies of tensors; single numbers of tensors are 0.7."""
        single = {k: torch.tensor(0.7).to(p.dtype) for k, p in enumerate(self.leaves) if isinstance(p, Tensor)}
        # cloned, because it may work in place; the strides stay
        given = single | {k: t if 0 in t.stride() else t.clone() for k, t in tensors.items()}
        args, kwargs = tree_unflatten([given.get(k, p) for k, p in enumerate(self.leaves)], self.tree)
        result = self.function(*args, **kwargs)
        return result if isinstance(result, Tensor) else next(p for p in result if isinstance(p, Tensor))


def _sample(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw values of a tensor's type, half of them positive, on which an elementwise operation is tried."""
    if not (like.is_floating_point() or like.is_complex()):
        return torch.randint(0, 2, (SAMPLES,), generator=generator).to(like.dtype)
    numbers = 3 * torch.randn(2, SAMPLES, generator=generator)
    numbers[:, ::2] = numbers[:, ::2].abs()
    return torch.complex(*numbers).to(like.dtype) if like.is_complex() else numbers[0].to(like.dtype)
