"""Compare the network that descents use with the untouched one, and passes of a network with each other."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from featmap import image_ops
from featmap.errors import ModelError
from featmap.image_shape import Size
from featmap.network.hooks import ActivationHooks, ElementwiseCalls, has_bits_of
from featmap.network.model import Network
from featmap.network.modules import REDUCED, copy_module, place_module
from featmap.optimize.prepare import FOLDED, UNTOUCHED, Preparation, copy_settings, prepare
from featmap.optimize.recipe import MIN_ROWS

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
CHECK_SHARE = 0.25
"""Largest cost of a check as a share of what it saves."""
_CHOICES: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], int]] = WeakKeyDictionary()
"""Rows that this process chose for a network's batches, by kind of batch, rows tried, layout and threads."""
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
        plain = prepare(
            network.module, layers=names, device=device, layout=network.layout, **copy_settings(UNTOUCHED, ())
        )
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
        settings = copy_settings(UNTOUCHED, ())
        plain = prepare(source, layers=layers, device=images.device, layout=torch.contiguous_format, **settings)
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


@dataclass(frozen=True)
class BatchKind:
    """Everything that the kernels of a batch depend on, besides the network.

    Parameters
    ----------
    layers : tuple of str
        Names of the layers.
    images : int
        Number of images, or objectives.
    rows : int
        Number of rows of a full batch.
    settings : hashable
        Of a descent its recipe, with one step at each size, and the number of terms; of a forward pass its shape.
    device : torch.device
        Where the batch is computed.
    """

    layers: tuple[str, ...]
    images: int
    rows: int
    settings: Hashable
    device: torch.device


def choose_rows(
    network: Network, kind: BatchKind, compute: Callable[[int], Sequence[Tensor]], savings: float = math.inf
) -> int:
    """Choose the least number of rows that a batch needs.

    It is chosen once in a process for each kind of batch.

    Parameters
    ----------
    network : Network
        The network that is computed, or a copy of it.
    kind : BatchKind
        The batch.
    compute : callable
        See `find_least_rows`.
    savings : float, default inf
        Passes that are computed with the result for every pass of the check; where they do not pay for it, the batch
        stays full.

    Returns
    -------
    int
        At least the number of images; all rows for a network whose passes may differ.
    """
    count, rows = kind.images, kind.rows
    if count >= rows or network.allow_stochastic:
        return rows
    least = max(MIN_ROWS, count)
    candidates = [n for n in (least, *(2**k for k in range(rows.bit_length()))) if least <= n < rows]
    # a check computes the full batch once and a candidate twice, and then a batch of one row more
    paid = tuple(n for n in dict.fromkeys(candidates) if rows + 3 * n + 1 <= CHECK_SHARE * savings * (rows - n))
    choices, key = chosen_rows(network), (kind, paid, network.layout, torch.get_num_threads())
    if paid and key not in choices:
        choices[key] = find_least_rows(compute, paid, rows, kind.device)
    return choices.get(key, rows)


def chosen_rows(network: Network) -> dict[tuple[Any, ...], int]:
    """Get the rows that this process chose for a network's batches.

    Parameters
    ----------
    network : Network
        The network.

    Returns
    -------
    dict
        Rows by kind of batch, rows tried, layout and number of threads.
    """
    return _CHOICES.setdefault(network.module, {})


def find_least_rows(
    compute: Callable[[int], Sequence[Tensor]], candidates: Sequence[int], rows: int, device: torch.device
) -> int:
    """Find the least number of rows that gives the bits of a full batch.

    Libraries select kernels by shapes, types and threads, not by values: what one step with values other than 0 shows
    holds for all. The exception are elementwise operations: the last elements of a tensor, or of a thread's share of
    it, do not fill a vector register, and exp and its like round there otherwise, for some values only. So each of
    them is compared by where it rounds otherwise, too.

    Parameters
    ----------
    compute : callable
        Computes a batch of a number of rows: R x ... each, the first rows always the same.
    candidates : sequence of int
        Numbers of rows to try, ascending.
    rows : int
        Rows of the full batch.
    device : torch.device
        Where it is computed.

    Returns
    -------
    int
        The first candidate that has the bits, or `rows`; also where the network fails in a batch of another size.
    """

    def run(count: int) -> Sequence[Tensor]:
        with fixed_random_numbers(device):
            return compute(count)

    try:
        expected = run(rows) if candidates else ()
        for fewer in candidates:
            results = run(fewer)
            if not all(has_bits_of(a, b[: len(a)]) for a, b in zip(results, expected, strict=True)):
                continue
            passes = []
            for count in (fewer, fewer + 1):
                with ElementwiseCalls() as seen:
                    run(count)
                passes.append(seen)
            if passes[0].round_alike(passes[1], rows - fewer):
                return fewer
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception:  # noqa: BLE001 - a network of the user's own may raise anything; the full batch then says what
        return rows
    return rows
