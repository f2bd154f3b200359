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
from featmap.image_shape import Size, area, as_pair, as_size, format_size, with_shorter
from featmap.network.directions import Directions, as_directions, check_name, split_name
from featmap.network.layouts import Layout
from featmap.network.modules import freeze, modules_by_name
from featmap.network.trace import Layer, Trace, trace
from featmap.network.unit import CLASS, Unit, number_names, split_call
from featmap.network.weights import hash_architecture

MAX_SEARCH_SIZE = 1024
"""Largest image size, in pixels, that is tried when an error message suggests a size."""
MAX_IMAGE_SIZE = 65_536
"""Largest image size in pixels."""
Values = tuple[float, ...]
"""A number for each input channel."""


@dataclass
class Network:
    """A network with everything that belongs to its weights.

    The module is never changed for good: whatever a forward pass needs is undone afterwards. Images lie in [0, 1] and
    are normalised by the network's own mean and standard deviation.

    Parameters
    ----------
    module : nn.Module
        The module; it takes N x C x H x W images in float32.
    name : str
        Name of the architecture.
    weights : str
        Description of the weights: a file's name, or ``random:SEED``.
    sha256 : str
        SHA-256 of the weights' file, or of the module's state where there is no file.
    input_size : int or (int, int), default 224
        Size in pixels of the images that the network was trained for.
    mean : tuple of float, default ()
        Mean of each channel that is subtracted from the images; 0 where it is empty.
    std : tuple of float, default ()
        Standard deviation of each channel by which the images are then divided; 1 where it is empty.
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
    channels : int, default 3
        Number C of input channels: 3 are red, green and blue, 1 is gray.
    working_size : int, (int, int) or None, default None
        A size at which the network works, where `input_size` is another that was named.
    _traces : dict, optional
        Cached traces by image size.
    """

    module: nn.Module
    name: str
    weights: str
    sha256: str
    input_size: Size = 224
    mean: Values = ()
    std: Values = ()
    notes: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    arguments: dict[str, Any] = field(default_factory=dict)
    layout: torch.memory_format = torch.channels_last
    allow_stochastic: bool = False
    directions: dict[str, Directions] = field(default_factory=dict)
    channels: int = 3
    working_size: Size | None = None
    preparations: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """How the network is prepared for descents; `featmap.optimize.batch.Batches.preparation` sets it."""
    _traces: dict[Size, Trace] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.mean, self.std = self.mean or (0.0,) * self.channels, self.std or (1.0,) * self.channels

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise images as the module expects them.

        Parameters
        ----------
        images : Tensor
            B x C x H x W, in [0, 1].

        Returns
        -------
        Tensor
            B x C x H x W: the mean subtracted, then divided by the standard deviation.
        """
        mean, std = (
            image_ops.constant_tensor(tuple(values), images.device, images.dtype) for values in (self.mean, self.std)
        )
        return (images - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)

    def image_shape(self, size: Size) -> tuple[int, int, int]:
        """Get the shape of an image that the network takes.

        Parameters
        ----------
        size : int or (int, int)
            Image size in pixels.

        Returns
        -------
        (int, int, int)
            Channels, height and width.
        """
        return (self.channels, *as_pair(size))

    def trace(self, size: Size | None = None) -> Trace:
        """Trace one forward pass; the result is cached.

        Parameters
        ----------
        size : int, (int, int) or None, default None
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
        if min(as_pair(size)) < 1:
            raise UnitError(f"size {format_size(size)}: an image has at least 1 pixel; choose a size of 32 or more")
        if max(as_pair(size)) > MAX_IMAGE_SIZE:
            raise UnitError(
                f"size {format_size(size)}: images are at most {MAX_IMAGE_SIZE} pixels wide; choose a smaller size"
            )
        if size not in self._traces:
            with freeze(self.module):
                self._traces[size] = self._add_directions(trace(self.module, size, self.channels))
        return self._traces[size]

    def _add_directions(self, trace: Trace) -> Trace:
        """List the sets of directions of each layer after it."""
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
            For each set its K x C vectors, a file that `featmap.network.directions.read_directions` reads, or a
            `featmap.network.directions.Directions`, which also holds a bias and names. A key is ``layer/name``; the
            name of a layer alone takes the name of the set, or of its file.

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
                turned = ": this is C x K, so transpose it" if chosen.count == base.channels else ""
                raise UnitError(
                    f"directions {chosen.source}: {chosen.width} channels wide, while {layer} has {base.channels} "
                    f"channels; give directions of this layer (K x C), or the layer that they were made for{turned}"
                )
            directions[full] = replace(chosen, name=name)
        return replace(self, directions=directions, _traces={})

    def number_names(self, text: str) -> str:
        """Replace names of directions in units by their numbers.

        Parameters
        ----------
        text : str
            A unit or a sum of units, such as ``inception4a/sae:eyes``.

        Returns
        -------
        str
            The text with numbers, see `featmap.network.unit.number_names`.

        Raises
        ------
        UnitError
            If a direction is named that a set with names does not have.
        """
        return number_names(text, {layer: chosen.names for layer, chosen in self.directions.items() if chosen.names})

    def base_layers(self, layers: Iterable[str]) -> tuple[str, ...]:
        """List the module outputs that some layers are read from, each once.

        Parameters
        ----------
        layers : iterable of str
            Names of layers, of modules or of directions.

        Returns
        -------
        tuple of str
            For a set of directions the layer whose channels it reads, for any other layer its own name.
        """
        return tuple(dict.fromkeys(split_name(la)[0] if la in self.directions else la for la in layers))

    def layer(self, name: str, size: Size | None = None) -> Layer:
        """Get one layer at an image size.

        Parameters
        ----------
        name : str
            Name of the layer, as `featmap layers` prints it.
        size : int, (int, int) or None, default None
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
        if name in trace.competing:
            raise UnitError(
                f"layer {name!r} returns several tensors ({', '.join(trace.competing[name])}), and any may be meant; "
                "choose a layer inside or after it"
            )
        if trace.failure:
            raise UnitError(self._size_message(name, trace))
        base, set_name = split_name(name)
        if set_name and base in trace.layers:
            known = f" ({', '.join(self.directions)} are)" if self.directions else ""
            raise UnitError(f"layer {name!r}: no directions of this name are loaded{known}; name their file")
        if name in trace.calls or name in modules_by_name(self.module):
            raise UnitError(f"layer {name!r} outputs neither a grid nor a vector; `featmap layers` lists those that do")
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
        layers = self.trace(as_size((height, width))).layers
        known = layers.get(layer) or layers.get(self.first_name(layer))
        return None if known is None else known.layout

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

    def find_min_size(self, name: str, low: Size, high: Size) -> Size:
        """Find the smallest image size at which a layer has an output.

        Parameters
        ----------
        name : str
            Name of the layer.
        low : int or (int, int)
            A size in pixels that is too small.
        high : int or (int, int)
            A size in pixels that suffices; its ratio of height to width is kept.

        Returns
        -------
        int or (int, int)
            The smallest sufficient size: above `low`, at most `high`.
        """
        # bisection: a layer that exists at one size is taken to exist at every larger one
        below, above = min(as_pair(low)), min(as_pair(high))
        while above - below > 1:
            middle = (below + above) // 2
            exists = name in self.trace(with_shorter(high, middle)).layers
            below, above = (below, middle) if exists else (middle, above)
        return with_shorter(high, above)

    def only_size(self, name: str, size: Size) -> Size | None:
        """Find the size that a layer needs, if it exists at that one only.

        Parameters
        ----------
        name : str
            Name of the layer; an empty one stands for the whole network.
        size : int or (int, int)
            A size in pixels at which the layer does not exist.

        Returns
        -------
        int, (int, int) or None
            The size; None where the layer exists at none that is known, or at larger ones too.
        """

        def exists(at: Size) -> bool:
            trace = self.trace(at)
            return name in trace.layers if name else not trace.failure

        works = next((s for s in (self.input_size, self.working_size) if s is not None and exists(s)), None)
        if works is None:
            return None
        larger = with_shorter(works, 2 * min(as_pair(works)))
        is_only = area(works) < area(size) or (min(as_pair(larger)) <= MAX_SEARCH_SIZE and not exists(larger))
        return works if is_only else None

    def _size_message(self, name: str, trace: Trace) -> str:
        """Explain why a layer has no output at the size of a failed trace, and suggest a size."""
        shown = format_size(trace.size)
        only = self.only_size(name, trace.size)
        if only is not None:
            return (
                f"size {shown} does not fit layer {name!r} of {self.name}, which works at {format_size(only)} pixels "
                f"and not at every size; choose {format_size(only, 'x')}"
            )
        double = with_shorter(trace.size, 2 * min(as_pair(trace.size)))
        high = max((self.input_size, double), key=area)
        if max(as_pair(high)) > MAX_SEARCH_SIZE or name not in self.trace(high).layers:
            return (
                f"layer {name!r} at {shown} pixels: the network fails ({trace.failure}); "
                f"its input was N x {self.channels} x H x W images in float32"
            )
        min_size = self.find_min_size(name, trace.size, high)
        return (
            f"size {shown} is too small for layer {name!r} of {self.name}; "
            f"choose a size of {format_size(min_size, 'x')} or more"
        )

    def resolve_unit(self, unit: Unit, size: Size | None = None) -> Unit:
        """Check a unit against this network and resolve class logits.

        Parameters
        ----------
        unit : Unit
            The unit; ``class:k`` stands for feature k of the last layer that is a vector.
        size : int, (int, int) or None, default None
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
        """Get the name of the last layer at the network's own size."""
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
            **({"channels": self.channels} if self.channels != 3 else {}),
            **({"allow_stochastic": True} if self.allow_stochastic else {}),
            **({"directions": {n: d.identity() for n, d in self.directions.items()}} if self.directions else {}),
        }

    def __str__(self) -> str:
        stochastic = ("two passes may give different results, which is allowed",) if self.allow_stochastic else ()
        notes = "".join(f"; {n}" for n in (*self.notes, *stochastic))
        sets = "".join(f"; {d.count} directions {n}, SHA-256 {d.sha256[:12]}" for n, d in self.directions.items())
        return f"network {self.name}, weights {self.weights}, SHA-256 {self.sha256}{notes}{sets}"
