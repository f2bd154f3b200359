"""Compare the network that descents use with the untouched one, and passes of a network with each other."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from featmap import image_ops
from featmap.errors import ModelError
from featmap.image_shape import Size
from featmap.network.hooks import ActivationHooks
from featmap.network.model import Network
from featmap.network.modules import REDUCED, copy_module, place_module
from featmap.optimize.prepare import FOLDED, UNTOUCHED, Preparation, copy_settings, prepare

OUTPUT_TOLERANCE = 1e-4
"""Largest relative difference of outputs in float32; folding changes rounding, which grows with the depth. Chosen on
half of 46 networks of torchvision and timm with random weights (95 layers, median 3e-7, at most 1.9e-6); the other half
reaches 1.6e-6."""
GRADIENT_TOLERANCE = 1e-2
"""The same for gradients, where units at a ReLU's boundary flip with the rounding: at most 1.8e-3 on the first half and
2.5e-4 on the other (median 6e-7 on both), 7e-3 on the layers of GoogLeNet, SqueezeNet and InceptionV3.
VGG with random weights reaches 0.016 at 32 pixels: no tolerance holds for all, so float64 decides above this one."""
ROUNDING_LIMIT = 0.1
"""Relative difference in float32 up to which rounding may be its cause; then float64 decides."""
DOUBLE_TOLERANCE = 1e-6
"""The same in float64, where folding agrees to 1e-10; constants of float32 in a network's own code cost some digits."""
REPEAT_TOLERANCE = 1e-5
"""Relative difference of two passes up to which sums in a changing order may be its cause, as some GPU kernels have."""
LEAST_NORM = 1e-30
"""Least norm of an output by which the weights of the loss are divided: by a subnormal one they would overflow."""
REPEATS = 8
"""Passes that are compared where a pass draws random numbers: one of stochastic depth often draws the same twice."""
PINK_IMAGES = 2
"""Number of 1/f images on which networks are compared, beside one of noise as descents start from."""
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
Measured = tuple[dict[str, Tensor], Tensor]
"""Outputs by layer, and the gradient with respect to the images."""


def trial_images(network: Network, size: Size) -> Tensor:
    """Make the images on which networks are compared.

    Parameters
    ----------
    network : Network
        The network.
    size : int or (int, int)
        Size of the images in pixels.

    Returns
    -------
    Tensor
        1 + `PINK_IMAGES` images: noise of mean 0.5 and standard deviation 0.1, then 1/f images.
    """
    noise = 0.5 + 0.1 * image_ops.noise(0, size, "comparison", network.channels)
    return torch.cat([noise[None], image_ops.pink_noise(PINK_IMAGES, size, network.channels)])


def choose_preparation(
    network: Network, layers: Sequence[str], size: Size, device: torch.device, trace_size: Size | None = None
) -> Preparation:
    """Choose the fastest copy that computes what the network computes.

    The copies are compared with the untouched network by the outputs of the layers and by the gradient of a random
    weighting of them: the folded copy first, then the plain one, both in the network's memory format and then both in
    the contiguous one, and finally the module itself. Weights that are not finite are 0 in all of them, see `prepare`.

    Parameters
    ----------
    network : Network
        The network.
    layers : sequence of str
        Names of the layers that descents maximise together.
    size : int or (int, int)
        Size of the images in pixels.
    device : torch.device
        Device of the descents.
    trace_size : int, (int, int) or None, default None
        Size at which the network is traced for pairs to fold; None takes `size`.

    Returns
    -------
    Preparation
        The choice, with the differences of the folded copy.

    Raises
    ------
    ModelError
        If the module must be moved to the device, and no copy computes what it computes.
    """
    # directions are computed behind the network: whatever they are, their layer decides
    names, folds = tuple(sorted(network.base_layers(layers))), network.trace(trace_size or size).folds
    images = trial_images(network, size).to(device)
    untouched = place_module(network.module, device)
    with _watch_precision(untouched) as is_reduced:
        expected, weights = _measure(untouched, network, names, images)
    if not _is_finite(network.module):
        plain = prepare(network.module, (), names, device, network.layout, space_to_depth=False)
        expected, _ = _measure(plain, network, names, images, weights)
    first = (float("inf"), float("inf"))
    layouts = dict.fromkeys((network.layout, torch.contiguous_format))
    for layout in layouts:
        for kind in (FOLDED, UNTOUCHED):

            def build(source: nn.Module, kind: str = kind, layout: torch.memory_format = layout) -> nn.Module:
                return prepare(source, layers=names, device=device, layout=layout, **copy_settings(kind, folds))

            output, gradient = _differences(
                lambda: _measure(build(network.module), network, names, images, weights)[0], expected
            )
            if kind == FOLDED and layout is network.layout:
                first = output, gradient
            agrees = output <= OUTPUT_TOLERANCE and gradient <= GRADIENT_TOLERANCE
            if not agrees and max(output, gradient) <= ROUNDING_LIMIT and not is_reduced():
                agrees = _agrees_in_double(network, build, names, images)
            if agrees:
                return Preparation(names, kind, *first, layout)
    if untouched is not network.module:
        raise ModelError(
            f"network {network.name} computes something else once it is copied to {device.type}; "
            "choose the device that it lies on, or make it a module that copy.deepcopy copies"
        )
    return Preparation(names, UNTOUCHED, *first, torch.contiguous_format, in_place=True)


def _is_finite(module: nn.Module) -> bool:
    """Check whether all parameters and buffers are finite numbers."""
    tensors = (*module.parameters(), *module.buffers())
    return all(bool(t.isfinite().all()) for t in tensors if t.is_floating_point())


def _hooks(network: Network, module: nn.Module, layers: Sequence[str]) -> ActivationHooks:
    """Make hooks on a copy of a network's module."""
    return ActivationHooks(module, layers, layouts=network.find_layout)


def _measure(
    module: nn.Module,
    network: Network,
    layers: Sequence[str],
    images: Tensor,
    weights: dict[str, Tensor] | None = None,
) -> tuple[Measured, dict[str, Tensor]]:
    """Compute outputs, a gradient, and the weights of the loss, which are drawn unless they are passed."""
    x = images.clone().requires_grad_(True)
    with torch.enable_grad(), fixed_random_numbers(images.device), _hooks(network, module, layers) as hooks:
        outputs = hooks.run(network.normalise(x))
        finite = {la: torch.where(out.isfinite(), out, 0) for la, out in outputs.items()}
        if weights is None:
            generator = torch.Generator().manual_seed(0)
            # a layer of large outputs must not hide the others' gradients
            weights = {
                la: torch.randn(out.shape[1:], generator=generator) / max(float(out.detach().norm()), LEAST_NORM)
                for la, out in finite.items()
            }
        loss = torch.stack([(out * weights[la].to(out)).sum() for la, out in finite.items()]).sum()
        gradient = torch.autograd.grad(loss, x)[0] if loss.requires_grad else torch.zeros_like(x)
    return ({la: out.detach() for la, out in outputs.items()}, gradient), weights


def _differences(compute: Callable[[], Measured], expected: Measured) -> tuple[float, float]:
    """Compute the relative differences of outputs and gradients; infinite where a copy of the network fails."""
    try:
        outputs, gradient = compute()
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception:  # noqa: BLE001 - a network of the user's own may fail in any way when it is copied
        return float("inf"), float("inf")
    return max(relative_difference(outputs[la], expected[0][la]) for la in outputs), relative_difference(
        gradient, expected[1]
    )


def relative_difference(result: Tensor, expected: Tensor) -> float:
    """Compute the norm of a difference over the norm of what is expected.

    Parameters
    ----------
    result, expected : Tensor
        Tensors of one shape.

    Returns
    -------
    float
        0 for equal tensors. Values that are not finite in `expected` are left out; where only `result` is not finite,
        or `expected` alone is all 0, the difference is infinite.
    """
    if result.shape != expected.shape:
        return float("inf")
    result, expected = result.detach().cpu().double(), expected.detach().cpu().double()
    counted = expected.isfinite()
    if bool((counted & ~result.isfinite()).any()):
        return float("inf")
    difference = float((result[counted] - expected[counted]).norm())
    norm = float(expected[counted].norm())
    return difference / norm if norm > 0 else 0.0 if difference == 0 else float("inf")


def _agrees_in_double(
    network: Network, build: Callable[[nn.Module], nn.Module], layers: Sequence[str], images: Tensor
) -> bool:
    """Check a copy against the network in float64, where no unit flips by rounding."""
    try:
        source = copy_module(network.module).double()
        plain = prepare(source, (), layers, images.device, torch.contiguous_format, space_to_depth=False)
        expected, weights = _measure(plain, network, layers, images.double())
        result, _ = _measure(build(source), network, layers, images.double(), weights)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception:  # noqa: BLE001 - code of the user's own may insist on float32, and some devices have no float64
        return False
    return max(_differences(lambda: result, expected)) <= DOUBLE_TOLERANCE


@contextmanager
def _watch_precision(module: nn.Module) -> Iterator[Callable[[], bool]]:
    """Watch whether a part of a module outputs less than float32, as under autocast in its own forward pass."""
    seen: list[bool] = []

    def note(_: nn.Module, __: object, output: object) -> None:
        if isinstance(output, Tensor) and output.dtype in REDUCED:
            seen.append(True)

    handles = [part.register_forward_hook(note) for part in module.modules()]
    try:
        yield lambda: bool(seen)
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def fixed_random_numbers(device: torch.device) -> Iterator[None]:
    """Draw the same random numbers in every pass, and restore all generators.

    Parameters
    ----------
    device : torch.device
        Where the network is computed.

    Yields
    ------
    None
        Inside the context torch's generators are seeded with 0.
    """
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global generators, which a network may use
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


def check_repeatable(network: Network, layers: Sequence[str], size: Size, device: torch.device) -> None:
    """Check that a network gives one result for one image.

    Networks that torchvision defines do, so that they are not run.

    Parameters
    ----------
    network : Network
        The network; with `allow_stochastic` results may differ, but it has to take several images.
    layers : sequence of str
        Names of the layers that are maximised or measured.
    size : int or (int, int)
        Size of the images in pixels.
    device : torch.device
        Where the network is computed.

    Raises
    ------
    ModelError
        If two passes differ by more than sums in another order explain, the result for an image depends on the
        other images of its batch, or the network takes one image at a time.
    """
    name = network.arguments.get("model")
    if name is not None and ":" not in name:
        return
    images = network.normalise(trial_images(network, size).to(device))
    module = place_module(network.module, device)
    bases = network.base_layers(layers)
    with torch.no_grad(), fixed_random_numbers(device), _hooks(network, module, bases) as hooks:
        before = _random_state(device)
        try:
            first = hooks.run(images)
        except Exception as error:
            hooks.run(images[:1])  # a failure that has nothing to do with the batch keeps its own words
            reason = (str(error).splitlines() or [""])[0]
            raise ModelError(
                f"network {network.name} takes one image at a time: it fails for {len(images)} "
                f"({type(error).__name__}: {reason}); descents compute batches, so let its forward take any number"
            ) from error
        if network.allow_stochastic:
            return
        draws = _random_state(device) != before
        for _ in range(REPEATS if draws else 1):
            for layer, values in hooks.run(images).items():
                # compared bit by bit first: NaN equals itself, and a norm costs more
                if torch.equal(values.nan_to_num(), first[layer].nan_to_num()):
                    continue
                difference = relative_difference(values, first[layer])
                if difference > REPEAT_TOLERANCE:
                    raise ModelError(
                        f"network {network.name} gives two results for one image (layer {layer!r}, relative "
                        f"difference {difference:.2g}): dropout or noise is active in evaluation; "
                        "switch it off, or allow a stochastic network (allow_stochastic)"
                    )
        for layer, values in hooks.run(images[:1].repeat(len(images), 1, 1, 1)).items():
            difference = relative_difference(values[:1], first[layer][:1])
            if difference > REPEAT_TOLERANCE:
                raise ModelError(
                    f"network {network.name} gives a result for one image that depends on the other images of its "
                    f"batch (layer {layer!r}, relative difference {difference:.2g}), as batch norms without running "
                    "statistics do; give them statistics, or allow a stochastic network (allow_stochastic)"
                )


def _random_state(device: torch.device) -> tuple[object, ...]:
    """Read the state of all generators that a forward pass may draw from."""
    cuda = torch.cuda.get_rng_state(device).numpy().tobytes() if device.type == "cuda" else b""
    numbers = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().numpy().tobytes(), cuda, random.getstate(), str(numbers)


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
    """View values as whole numbers: the bits of each element, in a last dimension of its own."""
    values = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
    return values.contiguous()[..., None].view(torch.uint8)


class ElementwiseCalls(TorchDispatchMode):
    """Collect the elementwise operations on tensors of some number of rows, forward and backward, each once.

    Parameters
    ----------
    rows : int
        Number of rows.
    """

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows, self.calls = rows, dict[Any, ElementwiseCall]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        # a clone copies bits, whatever its memory format
        if (torch.Tag.pointwise in func.tags and name != "clone") or name.rstrip("_") in UNTAGGED:
            leaves, tree = tree_flatten((args, kwargs or {}))
            found = [(tuple(p.shape), p.stride(), p.dtype) if isinstance(p, Tensor) else p for p in leaves]
            if any(isinstance(p, Tensor) and p.dim() and len(p) == self.rows for p in leaves):
                self.calls.setdefault((func, *found), ElementwiseCall(func, tree, leaves, self.rows))
        return func(*args, **(kwargs or {}))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Tell torch that nothing is compiled here: to switch off its compiler it would import it, for seconds."""
        return False


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
    rows : int
        Number of rows of the tensors that have rows.
    """

    def __init__(self, function: Any, tree: Any, leaves: Sequence[Any], rows: int) -> None:
        self.function, self.tree, self.rows = function, tree, rows
        self.leaves = [p.to("meta") if isinstance(p, Tensor) else p for p in leaves]
        self.device = next(p.device for p in leaves if isinstance(p, Tensor) and p.dim())

    def rounds_alike(self, rows: int) -> bool:
        """Check that each element is rounded as in a batch of another number of rows.

        Parameters
        ----------
        rows : int
            The other number, at least as large.

        Returns
        -------
        bool
            Whether it is, for values of any size.
        """
        values = self._two_ways()
        if not values:
            return True
        # one value that rounds in two ways, at all places of tensors of the call's shapes, shows where it does so
        own, other = (
            bits(self._apply({k: self._filled(p, count, values[k]) for k, p in self._tensors()}))
            for count in (self.rows, rows)
        )
        return torch.equal(own, other[: len(own)])

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

    def _filled(self, like: Tensor, rows: int, value: Tensor) -> Tensor:
        """Make a tensor of one value and of the shape and memory order of another, with a number of rows."""
        shape = (rows, *like.shape[1:]) if len(like) == self.rows else like.shape
        own = [1 if stride == 0 else size for size, stride in zip(shape, like.stride(), strict=True)]
        filled = torch.empty_strided(own, like.stride(), dtype=like.dtype, device=self.device)
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
