"""Single neurons of a layer for a study: their channels, their positions in the grid, and images that they fit into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analyses.formulas import extents
from analyses.support.image_sets import ImageSet
from analyses.support.study import FIRST as FIRST_FEATURES
from analyses.support.study import Context
from featmap import Network
from featmap.network.receptive_field import ReceptiveField
from featmap.network.trace import Layer
from featmap.rng import generator

POSITIONS, LARGEST_SIZE, STEP = 8, 160, 16
"""Other positions of each channel; the largest image tried for the fields to fit into and its steps, in pixels."""
FIRST, INTERIOR, LAST = -1, 0, 1
"""Place of a channel's branch among those of its module."""


@dataclass(frozen=True, eq=False)
class Neurons:
    """Neurons of one layer, in the middle of the image and at other positions.

    Parameters
    ----------
    layer : Layer
        The layer.
    channels : list of int
        Channels of the neurons.
    fields : list of ReceptiveField
        Receptive fields of the channels.
    branches : list of str
        Names of the channels' branches.
    central : ImageSet
        Images of the neurons in the middle, from many starts.
    elsewhere : ImageSet or None
        Images of the neurons at other positions.
    positions : list of list of (int, int)
        These positions in the grid, for each channel.
    inside_image : bool
        Whether the receptive fields of the central neurons lie within the image.
    """

    layer: Layer
    channels: list[int]
    fields: list[ReceptiveField]
    branches: list[str]
    central: ImageSet
    elsewhere: ImageSet | None
    positions: list[list[tuple[int, int]]]
    inside_image: bool

    def branch_position(self, channel: int) -> int:
        """Locate a channel's branch among those of the module.

        Parameters
        ----------
        channel : int
            Channel.

        Returns
        -------
        int
            `FIRST`, `INTERIOR` or `LAST` branch; in a layer without branches the first quarter of its channels, the
            last quarter, or between.
        """
        if self.layer.branches:
            branch = self.layer.branch(channel)
            return FIRST if branch == self.layer.branches[0][0] else LAST * (branch == self.layer.branches[-1][0])
        share = channel / self.layer.channels
        return FIRST if share < 0.25 else LAST if share >= 0.75 else INTERIOR


def draw_by_branch(context: Context, layer: Layer) -> list[int]:
    """Choose channels: those that are named, and others at random, equally many of each branch.

    Parameters
    ----------
    context : Context
        The study.
    layer : Layer
        The layer.

    Returns
    -------
    list of int
        The named channels, then those drawn, in order; those of `Context.draw_channels` where there are no branches,
        or where the first channels are measured.
    """
    if not layer.branches or FIRST_FEATURES in context.units:
        return context.draw_channels(layer.name)
    each, first, chosen = max(1, context.features // len(layer.branches)), 0, []
    named = context.named_channels(layer.name)
    for branch, width in layer.branches:
        rng = generator("study", context.model, layer.name, branch)
        drawn = (first + rng.choice(width, min(each, width), replace=False)).tolist()
        known = [c for c in named if first <= c < first + width]
        chosen += [c for c in drawn if c not in named][: max(0, min(each, width) - len(known))]
        first += width
    return [*named, *sorted(chosen)]


def central_position(layer: Layer, fields: Sequence[ReceptiveField], size: int) -> tuple[int, int]:
    """Find the grid position nearest to the middle of the image.

    The position is that whose widest receptive field is centred nearest to the middle.

    Parameters
    ----------
    layer : Layer
        The layer.
    fields : sequence of ReceptiveField
        Receptive fields of its channels.
    size : int
        Size of the image, in pixels.

    Returns
    -------
    tuple of int
        Row and column.
    """
    widest = max(fields, key=lambda f: f.size)
    if widest.whole:
        return layer.height // 2, layer.width // 2
    centres = np.array([[extents.field_centre(widest, m, n) for n in range(layer.width)] for m in range(layer.height)])
    distance = np.abs(centres - (size - 1) / 2)
    return int(distance[:, 0, 0].argmin()), int(distance[0, :, 1].argmin())


def field_inside(field: ReceptiveField, position: tuple[int, int], size: int) -> bool:
    """Check whether the receptive field of a grid position lies within the image.

    Parameters
    ----------
    field : ReceptiveField
        Receptive field of the layer.
    position : tuple of int
        Row and column.
    size : int
        Size of the image, in pixels.

    Returns
    -------
    bool
        True if it does.
    """
    firsts = [field.start[k] + i * field.jump[k] for k, i in enumerate(position)]
    return not field.whole and all(a >= 0 and a + field.size[k] <= size for k, a in enumerate(firsts))


def fields_fit(network: Network, name: str, size: int) -> bool:
    """Check whether the fields of a layer's central neurons lie within the image.

    Parameters
    ----------
    network : Network
        The network.
    name : str
        Name of the layer.
    size : int
        Size of the image, in pixels.

    Returns
    -------
    bool
        True if they do, in every branch.
    """
    trace = network.trace(size)
    if name not in trace.layers:
        return False
    layer = trace.layers[name]
    firsts = np.cumsum([0, *(width for _, width in layer.branches[:-1])])
    fields = [trace.field(name, int(f)) for f in firsts]
    position = central_position(layer, fields, size)
    return all(field_inside(f, position, size) for f in fields)


def fitting_size(network: Network, layers: Sequence[str], smallest: int) -> int:
    """Choose the smallest image size into which the fields of the most layers fit.

    Parameters
    ----------
    network : Network
        The network.
    layers : sequence of str
        Names of the layers.
    smallest : int
        Smallest size, in pixels; the largest is `LARGEST_SIZE`.

    Returns
    -------
    int
        Size in pixels.
    """
    sizes = range(smallest, max(smallest, LARGEST_SIZE) + 1, STEP)
    return max(sizes, key=lambda size: (sum(fields_fit(network, layer, size) for layer in layers), -size))


def draw_positions(layer: Layer, channel: int, central: tuple[int, int]) -> list[tuple[int, int]]:
    """Draw up to `POSITIONS` grid positions for a channel at random.

    Positions in the outermost rows and columns are left out, as long as there are others.

    Parameters
    ----------
    layer : Layer
        The layer.
    channel : int
        Channel.
    central : tuple of int
        Position to leave out.

    Returns
    -------
    list of (int, int)
        Rows and columns, in order.
    """
    rows, columns = (range(1, n - 1) if n > 3 else range(n) for n in (layer.height, layer.width))
    every = [(m, n) for m in rows for n in columns if (m, n) != central]
    rng = generator("places", layer.name, channel, layer.height, layer.width)
    return (
        [every[i] for i in sorted(rng.choice(len(every), min(POSITIONS, len(every)), replace=False))] if every else []
    )
