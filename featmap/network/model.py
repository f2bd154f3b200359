"""The `Network`: a module together with its weights' identity, its input normalisation and its layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from featmap import image_ops
from featmap.errors import UnitError, suggest
from featmap.network.directions import Directions, as_directions, check_name, split_name
from featmap.network.layouts import Layout
from featmap.network.modules import freeze, modules_by_name
from featmap.network.trace import Layer, Trace, trace
from featmap.network.unit import CLASS, Unit, split_call
from featmap.network.weights import hash_architecture

MAX_SEARCH_SIZE = 1024
"""Largest image size, in pixels, that is tried when an error message suggests a size."""
MAX_IMAGE_SIZE = 65_536
"""Largest image size in pixels."""
Triple = tuple[float, float, float]


@dataclass
class Network:
    """A network with everything that belongs to its weights.

    The module is never changed for good: whatever a forward pass needs is undone afterwards. Images lie in [0, 1] and
    are normalised by the network's own mean and standard deviation.

    Parameters
    ----------
    module : nn.Module
        The module; it takes N x 3 x H x W images in float32.
    name : str
        Name of the architecture.
    weights : str
        Description of the weights: a file's name, or ``random:SEED``.
    sha256 : str
        SHA-256 of the weights' file, or of the module's state where there is no file.
    input_size : int, default 224
        Size in pixels of the images that the network was trained for.
    mean : tuple of float, default (0, 0, 0)
        Mean of red, green and blue that is subtracted from the images.
    std : tuple of float, default (1, 1, 1)
        Standard deviation of red, green and blue by which the images are then divided.
    notes : tuple of str, default ()
        Remarks on the network for the user.
    categories : tuple of str, default ()
        Names of the classes, in the order of the logits; empty where they are unknown.
    arguments : dict, optional
        The arguments of `featmap.load` that load this network again.
    layout : torch.memory_format, default torch.channels_last
        Memory format of the weights in descents.
    allow_stochastic : bool, default False
        Whether the forward pass may give different results for one image.
    directions : dict, optional
        Sets of directions by the name of their layer, such as ``inception4a/nmf``; `with_directions` adds to them.
    _traces : dict, optional
        Cached traces by image size.
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
    allow_stochastic: bool = False
    directions: dict[str, Directions] = field(default_factory=dict)
    preparations: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """How the network is prepared for descents; `featmap.optimize.batch.Batches.preparation` sets it."""
    _traces: dict[int, Trace] = field(default_factory=dict, repr=False)

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise images as the module expects them.

        Parameters
        ----------
        images : Tensor
            B x 3 x H x W, in [0, 1].

        Returns
        -------
        Tensor
            B x 3 x H x W: the mean subtracted, then divided by the standard deviation.
        """
        mean, std = (
            image_ops.constant_tensor(tuple(values), images.device, images.dtype) for values in (self.mean, self.std)
        )
        return (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)

    def trace(self, size: int | None = None) -> Trace:
        """Trace one forward pass; the result is cached.

        Parameters
        ----------
        size : int or None, default None
            Image size in pixels; None takes the network's own.

        Returns
        -------
        Trace
            The layers at this size.

        Raises
        ------
        UnitError
            If the size is below 1 or above `MAX_IMAGE_SIZE`.
        """
        size = self.input_size if size is None else size
        if size < 1:
            raise UnitError(f"size {size}: an image has at least 1 pixel; choose a size of 32 or more")
        if size > MAX_IMAGE_SIZE:
            raise UnitError(f"size {size}: images are at most {MAX_IMAGE_SIZE} pixels wide; choose a smaller size")
        if size not in self._traces:
            with freeze(self.module):
                self._traces[size] = self._add_directions(trace(self.module, size))
        return self._traces[size]

    def _add_directions(self, trace: Trace) -> Trace:
        """List the sets of directions of each layer behind it."""
        if not self.directions:
            return trace
        layers: dict[str, Layer] = {}
        for layer in trace.layers.values():
            layers[layer.name] = layer
            for name, chosen in self.directions.items():
                if split_name(name)[0] == layer.name:
                    elements = layer.cumulative_elements + chosen.count * layer.height * layer.width
                    changes = {"kind": "directions", "channels": chosen.count, "branches": (), "base": layer.name}
                    about = changes | {"names": chosen.names, "cumulative_elements": elements}
                    layers[name] = replace(layer, name=name, **about)  # type: ignore[arg-type]
        return replace(trace, layers=layers)

    def with_directions(self, sets: Mapping[str, Directions | ArrayLike | str | Path]) -> Network:
        """Add sets of directions, which become layers of their own.

        Parameters
        ----------
        sets : mapping
            For each set its K x C vectors, a file that `featmap.network.directions.read_directions` reads, or
            `Directions`. A key is ``layer/name``; the name of a layer alone takes the name of the set, or of its file.

        Returns
        -------
        Network
            The same network with the layers ``layer/name``, whose features are the directions.

        Raises
        ------
        FeatmapError
            If a layer does not exist, a set is malformed or made for another number of channels, or two sets have one
            name.
        """
        directions = dict(self.directions)
        for key, value in sets.items():
            chosen, whole = as_directions(value, key), self.trace()
            if key in directions:
                raise UnitError(f"directions {chosen.source}: there is a layer {key!r} already; give another name")
            is_layer = key in whole.layers or self.first_name(key) in whole.layers
            layer, name = (key, chosen.name or "directions") if is_layer else split_name(key)
            if not name and "/" not in key:
                self.layer(key)  # an unknown layer: the message names the nearest ones
            check_name(name, chosen.source)
            base = self.layer(layer)
            base_name = layer if layer in whole.layers else self.first_name(layer)
            full = f"{base_name}/{name}"
            if base.base:
                raise UnitError(f"directions {chosen.source}: {layer!r} are directions themselves; name their layer")
            if full in directions or full in whole.layers:
                raise UnitError(f"directions {chosen.source}: there is a layer {full!r} already; give another name")
            if chosen.width != base.channels:
                raise UnitError(
                    f"directions {chosen.source}: {chosen.width} channels wide, while {layer} has {base.channels} "
                    "channels; give directions of this layer (K x C), or the layer that they were made for"
                )
            directions[full] = replace(chosen, name=name)
        return replace(self, directions=directions, _traces={})

    def base_layers(self, layers: Iterable[str]) -> tuple[str, ...]:
        """List the layers of modules that layers are or are read from.

        Parameters
        ----------
        layers : iterable of str
            Names of layers, of directions too.

        Returns
        -------
        tuple of str
            For each layer itself or the one that its directions are read from, each once.
        """
        return tuple(dict.fromkeys(split_name(la)[0] if la in self.directions else la for la in layers))

    def layer(self, name: str, size: int | None = None) -> Layer:
        """Get one layer at an image size.

        Parameters
        ----------
        name : str
            Name of the layer, as `featmap layers` prints it.
        size : int or None, default None
            Image size in pixels; None takes the network's own.

        Returns
        -------
        Layer
            The layer.

        Raises
        ------
        UnitError
            If the layer is unknown (the message gives the nearest names), if its module is called several times and
            the name does not say which call, or if the size is too small for it.
        """
        trace = self.trace(size)
        if name in trace.layers:
            return trace.layers[name]
        first = self.first_name(name)
        if first != name:
            return replace(self.layer(first, size), name=name)
        if trace.calls.get(name, 0) > 1 and f"{name}@1" in trace.layers:
            count = trace.calls[name]
            raise UnitError(
                f"layer {name!r} is called {count} times in one pass; choose one of {name}@1 to {name}@{count}"
            )
        if trace.failure:
            raise UnitError(self._size_message(name, trace))
        base, set_name = split_name(name)
        if set_name and base in trace.layers:
            known = f" ({', '.join(self.directions)} are)" if self.directions else ""
            raise UnitError(f"layer {name!r}: no directions of this name are loaded{known}; name their file")
        if name in trace.calls or name in modules_by_name(self.module):
            raise UnitError(f"layer {name!r} has no grid or vector as its output; `featmap layers` lists those that do")
        raise UnitError(f"no layer {name!r} in {self.name}{suggest(name, trace.layers)}; `featmap layers` lists them")

    def find_layout(self, layer: str, height: int, width: int) -> Layout | None:
        """Find where a layer's grid lies in the output of its module.

        Parameters
        ----------
        layer : str
            Name of the layer.
        height : int
            Height of the images in pixels.
        width : int
            Width of the images in pixels.

        Returns
        -------
        Layout or None
            The layout; None where the network has no such layer at this size.
        """
        layers = self.trace(height).layers
        found = layers.get(layer) or layers.get(self.first_name(layer))
        return None if found is None else found.layout

    def first_name(self, layer: str) -> str:
        """Get the first name of a layer whose module is registered under several.

        Parameters
        ----------
        layer : str
            Any name of the layer, with or without the number of a call.

        Returns
        -------
        str
            The name under which it is traced; the name itself where there is no such module.
        """
        path, _ = split_call(layer)
        wanted = modules_by_name(self.module).get(path)
        first = next((name for name, part in self.module.named_modules() if part is wanted), path)
        return first + layer[len(path) :]

    def find_min_size(self, name: str, low: int, high: int) -> int:
        """Find the smallest image size at which a layer has an output.

        Parameters
        ----------
        name : str
            Name of the layer.
        low : int
            A size in pixels that is too small.
        high : int
            A size in pixels that suffices.

        Returns
        -------
        int
            The smallest sufficient size: above `low`, at most `high`.
        """
        # bisection: a layer that exists at one size is taken to exist at every larger one
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if name in self.trace(middle).layers else (middle, high)
        return high

    def _size_message(self, name: str, trace: Trace) -> str:
        """Explain why a layer has no output at the size of a failed trace, and suggest a size."""
        high = max(self.input_size, 2 * trace.size)
        if high > MAX_SEARCH_SIZE or name not in self.trace(high).layers:
            return (
                f"layer {name!r} at {trace.size} pixels: the network fails ({trace.failure}); "
                "its input is N x 3 x H x W images in float32"
            )
        min_size = self.find_min_size(name, trace.size, high)
        return f"size {trace.size} is too small for layer {name!r} of {self.name}; choose a size of {min_size} or more"

    def resolve_unit(self, unit: Unit, size: int | None = None) -> Unit:
        """Check a unit against this network and resolve class logits.

        Parameters
        ----------
        unit : Unit
            The unit; ``class:k`` stands for feature k of the last layer that is a vector.
        size : int or None, default None
            Image size in pixels; None takes the network's own.

        Returns
        -------
        Unit
            The unit, on a layer of this network.

        Raises
        ------
        UnitError
            If the layer does not exist at this size, an index is out of range, or the network has no class logits.
        """
        if unit.layer == CLASS and CLASS not in self.trace(size).layers:
            if self.trace(size).failure:
                raise UnitError(self._size_message(self._last_layer(), self.trace(size)))
            layers = self.trace(size).layers.items()
            vectors = [n for n, la in layers if (la.height, la.width) == (1, 1) and not la.base]
            if not vectors:
                raise UnitError(f"{unit}: {self.name} has no layer of class logits; name a layer")
            unit = unit.with_layer(vectors[-1])
        return unit.check(self.layer(unit.layer, size).shape)

    def _last_layer(self) -> str:
        """Name of the last layer at the network's own size."""
        return ([*self.trace().layers] or ["the last"])[-1]

    def identity(self) -> dict[str, Any]:
        """Describe what distinguishes this network from any other.

        Returns
        -------
        dict
            Name, weights, their SHA-256, the architecture's hash, the input normalisation and the directions, as plain
            JSON values.
        """
        return {
            "name": self.name,
            "weights": self.weights,
            "sha256": self.sha256,
            "architecture": hash_architecture(self.module),
            "mean": list(self.mean),
            "std": list(self.std),
            "transform_input": bool(getattr(self.module, "transform_input", False)),
            **({"allow_stochastic": True} if self.allow_stochastic else {}),
            **({"directions": {n: d.identity() for n, d in self.directions.items()}} if self.directions else {}),
        }

    def __str__(self) -> str:
        notes = "".join(f"; {n}" for n in self.notes)
        sets = "".join(f"; {d.count} directions {n}, SHA-256 {d.sha256[:12]}" for n, d in self.directions.items())
        return f"network {self.name}, weights {self.weights}, SHA-256 {self.sha256}{notes}{sets}"
