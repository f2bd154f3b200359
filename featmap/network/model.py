"""Networks: load one by name, import path or checkpoint; its layers; its input normalisation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from featmap import image_ops
from featmap.errors import UnitError, suggest
from featmap.network.hooks import freeze
from featmap.network.trace import Layer, Trace, trace
from featmap.network.unit import CLASS, Unit
from featmap.network.weights import hash_architecture

MAX_SEARCH_SIZE = 1024
MAX_IMAGE_SIZE = 65_536
Triple = tuple[float, float, float]


@dataclass
class Network:
    """A network with everything that belongs to its weights.

    `module` is never changed for good: what is done to it for a forward pass is undone. Images that go
    in lie in [0, 1]; `mean` and `std` are the network's own. `sha256` names the weights (of the file they
    came from, or of the state where there is no file). `arguments` are those that `load` was given.
    """

    module: nn.Module
    name: str
    weights: str
    sha256: str
    input_size: int = 224
    mean: Triple = (0.0, 0.0, 0.0)
    std: Triple = (1.0, 1.0, 1.0)
    notes: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    arguments: dict[str, Any] = field(default_factory=dict)
    layout: torch.memory_format = torch.channels_last
    _traces: dict[int, Trace] = field(default_factory=dict, repr=False)

    def normalise(self, images: Tensor) -> Tensor:
        """Return images in [0, 1], B x 3 x H x W, as the module takes them."""
        mean, std = (
            image_ops.constant_tensor(tuple(values), images.device, images.dtype) for values in (self.mean, self.std)
        )
        return (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)

    def trace(self, size: int | None = None) -> Trace:
        """Return what one forward pass at `size` pixels (default: the network's own) tells of the layers."""
        size = self.input_size if size is None else size
        if size < 1:
            raise UnitError(f"size {size}: an image has at least 1 pixel; give --size 32 or more")
        if size > MAX_IMAGE_SIZE:
            raise UnitError(f"size {size}: images are at most {MAX_IMAGE_SIZE} pixels wide; give a smaller --size")
        if size not in self._traces:
            with freeze(self.module):
                self._traces[size] = trace(self.module, size)
        return self._traces[size]

    def layer(self, name: str, size: int | None = None) -> Layer:
        """Return one layer at an image size.

        Raises
        ------
        UnitError
            for an unknown layer (with the nearest names), one called several times, or a size too small.
        """
        found = self.trace(size)
        if name in found.layers:
            return found.layers[name]
        if found.calls.get(name, 0) > 1 and f"{name}@1" in found.layers:
            count = found.calls[name]
            raise UnitError(
                f"layer {name!r} is called {count} times in one pass; say which: {name}@1 to {name}@{count}"
            )
        if found.failure:
            raise UnitError(self._too_small(name, found))
        if name in found.calls or name in dict(self.module.named_modules()):
            raise UnitError(f"layer {name!r} gives no N x C x H x W grid; `featmap layers` lists those that do")
        raise UnitError(f"no layer {name!r} in {self.name}{suggest(name, found.layers)}; `featmap layers` lists them")

    def least(self, name: str, low: int, high: int) -> int:
        """Return the least size at which a layer has an output: above `low`, which is too small, up to `high`."""
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if name in self.trace(middle).layers else (middle, high)
        return high

    def _too_small(self, name: str, found: Trace) -> str:
        high = max(self.input_size, 2 * found.size)
        if high > MAX_SEARCH_SIZE or name not in self.trace(high).layers:
            return (
                f"layer {name!r} at {found.size} pixels: the network fails ({found.failure}); "
                "featmap gives it N x 3 x H x W images in float32"
            )
        least = self.least(name, found.size, high)
        return f"size {found.size} is too small for layer {name!r} of {self.name}; give --size {least} or more"

    def unit(self, unit: Unit, size: int | None = None) -> Unit:
        """Return `unit` checked against this network; ``class:k`` becomes its last layer's feature k."""
        if unit.layer == CLASS and CLASS not in self.trace(size).layers:
            if self.trace(size).failure:
                raise UnitError(self._too_small(self._last_layer(), self.trace(size)))
            vectors = [n for n, la in self.trace(size).layers.items() if (la.height, la.width) == (1, 1)]
            if not vectors:
                raise UnitError(f"{unit}: {self.name} has no layer of class logits; name a layer")
            unit = unit.on(vectors[-1])
        return unit.check(self.layer(unit.layer, size).shape)

    def _last_layer(self) -> str:
        return ([*self.trace().layers] or ["the last"])[-1]

    def identity(self) -> dict[str, Any]:
        """Return what tells this network from any other, as plain JSON values."""
        return {
            "name": self.name,
            "weights": self.weights,
            "sha256": self.sha256,
            "architecture": hash_architecture(self.module),
            "mean": list(self.mean),
            "std": list(self.std),
            "transform_input": bool(getattr(self.module, "transform_input", False)),
        }

    def __str__(self) -> str:
        notes = "".join(f"; {n}" for n in self.notes)
        return f"network {self.name}, weights {self.weights}, SHA-256 {self.sha256}{notes}"
