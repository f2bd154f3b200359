"""Selection of layers by name, pattern or keyword: a network's blocks, its convolutions, or named layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.conv import _ConvNd

from featmap.errors import UnitError
from featmap.image_shape import Size
from featmap.network.layouts import GRID, VECTOR
from featmap.network.model import Network
from featmap.network.modules import modules_by_name
from featmap.network.trace import Layer, Trace
from featmap.network.unit import split_call, split_token

ALL, CONVOLUTIONS = "all", "convs"
"""Keywords for all blocks and for all convolutions."""
CONTAINER_TYPES = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
"""Modules that only hold others, and are no blocks where they hold several convolutions."""


def select_layers(selection: str | Sequence[str], network: Network, size: Size) -> list[str]:
    """Select layers by names, patterns and keywords.

    The keyword ``all`` selects the network's blocks (see `find_blocks`), ``convs`` all its convolutions. A pattern
    such as ``inception4*`` selects the blocks that match it, or, where no block does, the layers that match it. A name
    selects itself, even if the network has no such layer.

    Parameters
    ----------
    selection : str or sequence of str
        Names, patterns and keywords: a sequence, or one text that joins them by commas.
    network : Network
        The network.
    size : int or (int, int)
        Image size in pixels; a size that is too small for the network is replaced by the network's own.

    Returns
    -------
    list of str
        Names of the layers, each once.

    Raises
    ------
    UnitError
        If the selection is empty, or a pattern matches no layer.
    """
    trace = _complete_trace(network, size)
    if isinstance(selection, str):
        selection = [selection] if selection in trace.layers else [part.strip() for part in selection.split(",")]
    names = dict.fromkeys(name for part in selection if part for name in _match_layers(part, trace, network))
    if not names:
        raise UnitError("no layer; give at least one, such as inception4a, inception4*, or all")
    return list(names)


def _complete_trace(network: Network, size: Size) -> Trace:
    """Trace at a size, or at the network's own where the forward pass fails at that size."""
    trace = network.trace(size)
    return network.trace() if trace.failure else trace


def _match_layers(part: str, trace: Trace, network: Network) -> list[str]:
    """List the layers that one name, pattern or keyword selects."""
    if part in trace.layers:
        return [part]
    if part == ALL:
        return find_blocks(network.module, trace)
    if part == CONVOLUTIONS:
        return find_convolutions(network.module, trace)
    if not any(sign in part for sign in "*?["):
        return [part]
    for names in (find_blocks(network.module, trace), list(trace.layers)):
        matches = [name for name in names if fnmatchcase(name, part)]
        if matches:
            return matches
    raise UnitError(f"pattern {part!r} matches no layer of {network.name}; `featmap layers` lists them")


def find_blocks(module: nn.Module, trace: Trace) -> list[str]:
    """Find a network's blocks, in the order in which a forward pass completes them.

    A block is the outermost module that computes a grid by convolutions (or, in layouts with channels last, by linear
    maps and attention) and is not a plain container. In GoogLeNet and InceptionV3 the blocks are the convolutions with
    their batch norm and ReLU, and the inception modules; in ResNet the first convolution and each residual block; in a
    plain sequence such as VGG each convolution. A container (`nn.Sequential`, `ModuleList`, `ModuleDict`) of several
    convolutions is searched; one of a single convolution is a block. Where the whole network is a single block, its
    children are searched, and so are stages of transformers: modules with channels last that hold a container of
    several blocks.

    Parameters
    ----------
    module : nn.Module
        The network.
    trace : Trace
        A complete trace of it.

    Returns
    -------
    list of str
        Names of the blocks' layers.
    """
    computing = _find_computing(module, trace)
    prefix, names = "", list(_iterate_blocks(module, "", trace, computing))
    while len(names) == 1 and _count_inside(split_call(names[0])[0], computing) > 1:
        prefix = split_call(names[0])[0]
        inner = list(_iterate_blocks(module.get_submodule(prefix), prefix, trace, computing))
        if not inner:
            break
        names = inner
    order = {name: k for k, name in enumerate(trace.layers)}
    return sorted(dict.fromkeys(names), key=order.__getitem__)


def _iterate_blocks(module: nn.Module, prefix: str, trace: Trace, computing: Mapping[str, int]) -> Iterator[str]:
    """Yield the blocks among a module's children, and those inside children that are no blocks."""
    for name, child in module.named_children():
        path = f"{prefix}.{name}" if prefix else name
        count = _count_inside(path, computing)
        if not count:
            continue
        calls = [la for la in trace.layers if split_call(la)[0] == path and not split_token(la)[1]]
        is_container = type(child) in CONTAINER_TYPES and count > 1
        if calls and not is_container and not _is_stage(child, path, trace.layers[calls[0]], computing):
            yield from calls
        else:
            yield from _iterate_blocks(child, path, trace, computing)


def find_convolutions(module: nn.Module, trace: Trace) -> list[str]:
    """Find the layers that are outputs of convolutions, before batch norm and ReLU.

    Parameters
    ----------
    module : nn.Module
        The network.
    trace : Trace
        A complete trace of it.

    Returns
    -------
    list of str
        Names of the layers, in order of completion.
    """
    own = [name for name, layer in trace.layers.items() if not layer.base]
    return [name for name in own if isinstance(module.get_submodule(split_call(name)[0]), _ConvNd)]


def _find_computing(module: nn.Module, trace: Trace) -> dict[str, int]:
    """Find the convolutions, and the linear maps and attention modules that compute grids with channels last.

    Each name is mapped to the identity of its module: a shared one counts once.
    """
    last = {split_call(name)[0] for name, layer in trace.layers.items() if layer.layout.kind not in (GRID, VECTOR)}
    return {
        name: id(part)
        for name, part in modules_by_name(module).items()
        if isinstance(part, _ConvNd) or (isinstance(part, (nn.Linear, nn.MultiheadAttention)) and name in last)
    }


def _count_inside(path: str, computing: Mapping[str, int]) -> int:
    """Count the computing modules that a module is or holds."""
    return len({part for name, part in computing.items() if name == path or name.startswith(f"{path}.")})


def _is_stage(module: nn.Module, path: str, layer: Layer, computing: Mapping[str, int]) -> bool:
    """Check whether a module with channels last holds a container of several blocks."""
    if layer.layout.kind in (GRID, VECTOR):
        return False
    for name, part in module.named_modules():
        inner = f"{path}.{name}" if name else path
        if type(part) in CONTAINER_TYPES:
            counts = [_count_inside(f"{inner}.{child}", computing) for child, _ in part.named_children()]
            if sum(count > 1 for count in counts) > 1:
                return True
    return False
