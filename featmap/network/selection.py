"""Which layers a word, a pattern or a list stands for: a network's blocks, its convolutions, or those named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.conv import _ConvNd

from featmap.errors import UnitError
from featmap.network.model import Network
from featmap.network.trace import Trace

ALL, CONVOLUTIONS = "all", "convs"
CONTAINER_TYPES = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def select_layers(given: str | Sequence[str], network: Network, size: int) -> list[str]:
    """Return the layers that are meant, each once.

    A list joins names, patterns and words by commas (or is a sequence of them). ``all`` are the network's `blocks`,
    ``convs`` all its convolutions. A pattern such as ``inception4*`` takes those of the blocks that match it, and any
    of the layers where no block does. A name is itself, known or not.

    Raises
    ------
    UnitError
        for nothing at all, and a pattern that matches no layer.
    """
    found = _whole(network, size)
    if isinstance(given, str):
        given = [given] if given in found.layers else [part.strip() for part in given.split(",")]
    names = dict.fromkeys(name for part in given if part for name in _meant(part, found, network))
    if not names:
        raise UnitError("no layer; give at least one, such as inception4a, inception4*, or all")
    return list(names)


def _whole(network: Network, size: int) -> Trace:
    """Return the trace at a size, or at the network's own where that size is too small to get to the end."""
    found = network.trace(size)
    return network.trace() if found.failure else found


def _meant(part: str, found: Trace, network: Network) -> list[str]:
    if part in found.layers:
        return [part]
    if part == ALL:
        return find_blocks(network.module, found)
    if part == CONVOLUTIONS:
        return find_convolutions(network.module, found)
    if not any(sign in part for sign in "*?["):
        return [part]
    for names in (find_blocks(network.module, found), list(found.layers)):
        matching = [name for name in names if fnmatchcase(name, part)]
        if matching:
            return matching
    raise UnitError(f"pattern {part!r} matches no layer of {network.name}; `featmap layers` lists them")


def find_blocks(module: nn.Module, found: Trace) -> list[str]:
    """Return a network's blocks in the order in which a forward pass completes them.

    A block is the outermost module that computes a grid by convolutions and is no plain container: GoogLeNet's
    and InceptionV3's convolutions with their norm and ReLU, and their inception modules; ResNet's first convolution
    and each of its residual blocks; in a plain sequence such as VGG each convolution. A container (`nn.Sequential`,
    `ModuleList`, `ModuleDict`) of several convolutions is looked into, one of a single convolution is a block. Where
    the whole network is a single block, its inside is taken.
    """
    place, inside = "", list(_inside(module, "", found))
    while len(inside) == 1 and _count(module.get_submodule(_path(inside[0]))) > 1:
        place = _path(inside[0])
        deeper = list(_inside(module.get_submodule(place), place, found))
        if not deeper:
            break
        inside = deeper
    order = {name: k for k, name in enumerate(found.layers)}
    return sorted(dict.fromkeys(inside), key=order.__getitem__)


def _inside(module: nn.Module, place: str, found: Trace) -> Iterator[str]:
    """Yield the blocks among a module's children, and within those of them that are none."""
    for name, child in module.named_children():
        path, count = f"{place}.{name}" if place else name, _count(child)
        if not count:
            continue
        calls = [path] if path in found.layers else [la for la in found.layers if _path(la) == path]
        if calls and not (type(child) in CONTAINER_TYPES and count > 1):
            yield from calls
        else:
            yield from _inside(child, path, found)


def find_convolutions(module: nn.Module, found: Trace) -> list[str]:
    """Return every convolution's layers: their output before norm and ReLU."""
    return [name for name in found.layers if isinstance(module.get_submodule(_path(name)), _ConvNd)]


def _count(module: nn.Module) -> int:
    return sum(isinstance(m, _ConvNd) for m in module.modules())


def _path(layer: str) -> str:
    """Return the path of the module that a layer (``path`` or ``path@call``) is the output of."""
    path, at, call = layer.rpartition("@")
    return path if at and call.isdigit() else layer
