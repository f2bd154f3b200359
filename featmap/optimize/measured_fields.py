"""Measure receptive fields that no rule gives, by the pixels that a gradient reaches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from featmap.image_shape import Size
from featmap.network.hooks import ActivationHooks, Layouts
from featmap.network.model import Network
from featmap.network.modules import copy_module
from featmap.network.receptive_field import WHOLE_IMAGE, Pair, ReceptiveField, expand_pair, get_argument

DRAWS = 2
"""Random images, each with random weights of the channels, by which a field is measured; it is all that any reaches."""
SMALLEST_REACH = 1e-40
"""Gradient, relative to the largest, above which a pixel is reached. A mask that adds -100 before a softmax leaves
less."""
CORNERS = 4
"""Corners of an image."""
_POOLING: tuple[tuple[int, str, Any], ...] = (
    (1, "kernel_size", None),
    (2, "stride", None),
    (3, "padding", 0),
    (5, "ceil_mode", False),
)
"""Position, name and default of the arguments of `max_pool2d` that `avg_pool2d` has too."""
_HALF_OPEN = {"relu", "relu6", "hardtanh", "threshold"}
_OPEN = {"clamp", "clip", "clamp_min", "clamp_max", "hardsigmoid"}
"""Functions that are flat on one side, and functions that may be flat on both."""


class _SmoothFunctions(TorchFunctionMode):
    """Replace functions that have no gradient in places by ones of the same reach that have a gradient everywhere."""

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
        if name == "max_pool2d" and expand_pair(get_argument(args, kwargs, 4, "dilation", 1)) == (1, 1):
            window = [get_argument(args, kwargs, k, n, d) for k, n, d in _POOLING]
            return functional.avg_pool2d(value, *window)
        return func(*args, **kwargs)


def measure_fields(
    module: nn.Module, grids: Mapping[str, Pair], images: Tensor, layouts: Layouts | None = None
) -> dict[str, ReceptiveField]:
    """Measure receptive fields: the pixels that a central position's gradient reaches.

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
    copied = copy_module(module).double().eval()
    generator = torch.Generator().manual_seed(0)
    _randomise(copied, generator)
    shape, device = images.shape[1:], images.device
    with ActivationHooks(copied, list(grids), layouts=layouts) as hooks, _SmoothFunctions():
        batch = _random_image(generator, shape).repeat(2 * CORNERS, 1, 1, 1)
        for k, (row, column) in enumerate(((0, 0), (0, -1), (-1, 0), (-1, -1))):
            batch[k, :, row, column] += 1
        with torch.no_grad():
            outputs = hooks.run(batch.to(device))
        fields = {name: WHOLE_IMAGE for name, grid in grids.items() if _is_whole(outputs[name], grid)}
        reached = {name: torch.zeros(shape[1:], dtype=torch.bool) for name in grids if name not in fields}
        for _ in range(DRAWS if reached else 0):
            image = _random_image(generator, shape).to(device).requires_grad_(True)
            outputs = hooks.run(image)
            for name, pixels in reached.items():
                place = outputs[name][0, :, grids[name][0] // 2, grids[name][1] // 2]
                if place.requires_grad:
                    weights = torch.randn(place.shape, generator=generator, dtype=torch.float64).to(device)
                    (gradient,) = torch.autograd.grad((place * weights).sum(), image, retain_graph=True)
                    pixels |= (gradient.abs() > SMALLEST_REACH * gradient.abs().amax())[0].any(0).cpu()
    return fields | {name: _field_of(pixels, grids[name]) for name, pixels in reached.items()}


def _random_image(generator: torch.Generator, shape: Sequence[int]) -> Tensor:
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


def find_fields(network: Network, names: Iterable[str], size: Size | None = None) -> dict[str, ReceptiveField]:
    """Find the receptive fields of layers; measure those that no rule gives.

    Parameters
    ----------
    network : Network
        The network.
    names : iterable of str
        Names of the layers.
    size : int, (int, int) or None, default None
        Image size in pixels; None takes the network's own.

    Returns
    -------
    dict of str to ReceptiveField
        The fields by layer. One that cannot be measured stays an upper bound, the whole image.
    """
    trace = network.trace(size)
    # directions see what their layer sees
    layers = {name: network.layer(network.base_layers([name])[0], size) for name in names}
    # layers that differ by functions of single positions share a field, which is measured once
    first = {la.field.unknown: la for la in layers.values() if la.field.unknown}
    missing = {la.name: (la.height, la.width) for k, la in first.items() if k not in trace.measured}
    if missing:
        try:
            measured = measure_fields(network.module, missing, trace.image, network.find_layout)
        except Exception:  # noqa: BLE001 - a network of the user's own may not be computable in float64
            measured = {}
        trace.measured |= {layers[name].field.unknown: field for name, field in measured.items()}
    return {name: trace.measured.get(la.field.unknown, la.field) for name, la in layers.items()}
