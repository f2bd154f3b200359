"""Single neurons of a layer for a study: of which channels, at which places of the grid, in images they fit into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analyses.formulas import extents
from analyses.support.image_sets import Made
from analyses.support.study import Context
from featmap import Network
from featmap.network.receptive_field import ReceptiveField
from featmap.network.trace import Layer
from featmap.rng import generator

PLACES, LARGEST, STEP = 8, 160, 16
"""Other places of each channel; the largest image that is tried for a field to fit into, in pixels, by steps."""
FRONT, INSIDE, BACK = -1, 0, 1


@dataclass(frozen=True, eq=False)
class Neurons:
    """One layer's neurons: those in the middle of the image from many starts, and those at other places.

    `fields` are the receptive fields of the `channels`, `branches` their branches' names, `places` where else in the
    grid each channel was maximised. `whole` tells that the middle neurons see nothing beyond the image.
    """

    layer: Layer
    channels: list[int]
    fields: list[ReceptiveField]
    branches: list[str]
    middle: Made
    around: Made | None
    places: list[list[tuple[int, int]]]
    whole: bool

    def end(self, channel: int) -> int:
        """Is the channel of the first branch (`FRONT`), the last (`BACK`) or between (`INSIDE`)?

        In a layer without branches: of the first quarter, the last, or between.
        """
        if self.layer.branches:
            branch = self.layer.branch(channel)
            return FRONT if branch == self.layer.branches[0][0] else BACK * (branch == self.layer.branches[-1][0])
        share = channel / self.layer.channels
        return FRONT if share < 0.25 else BACK if share >= 0.75 else INSIDE


def stratified(context: Context, layer: Layer) -> list[int]:
    """Return channels drawn at random, as many of each branch; those of `Context.drawn` where there are no branches."""
    if not layer.branches:
        return context.drawn(layer.name)
    each, first, chosen = max(1, context.features // len(layer.branches)), 0, []
    for branch, width in layer.branches:
        rng = generator("study", context.network.name, layer.name, branch)
        chosen += (first + rng.choice(width, min(each, width), replace=False)).tolist()
        first += width
    return sorted(chosen)


def central(layer: Layer, fields: Sequence[ReceptiveField], size: int) -> tuple[int, int]:
    """Return the place of the grid whose widest field lies nearest to the middle of an image of `size` pixels."""
    widest = max(fields, key=lambda f: f.size)
    if widest.whole:
        return layer.height // 2, layer.width // 2
    centres = np.array([[extents.field_centre(widest, m, n) for n in range(layer.width)] for m in range(layer.height)])
    away = np.abs(centres - (size - 1) / 2)
    return int(away[:, 0, 0].argmin()), int(away[0, :, 1].argmin())


def within(field: ReceptiveField, place: tuple[int, int], size: int) -> bool:
    """Does what a place of the grid sees lie within an image of `size` pixels?"""
    firsts = [field.start[k] + i * field.jump[k] for k, i in enumerate(place)]
    return not field.whole and all(a >= 0 and a + field.size[k] <= size for k, a in enumerate(firsts))


def fits(network: Network, name: str, size: int) -> bool:
    """Do the fields of a layer's middle neurons lie within an image of `size` pixels, whatever the branch?"""
    trace = network.trace(size)
    if name not in trace.layers:
        return False
    layer = trace.layers[name]
    firsts = np.cumsum([0, *(width for _, width in layer.branches[:-1])])
    fields = [trace.field(name, int(f)) for f in firsts]
    place = central(layer, fields, size)
    return all(within(f, place, size) for f in fields)


def fitting(network: Network, layers: Sequence[str], smallest: int) -> int:
    """Return the image size, from `smallest` to `LARGEST`, into which the most layers' fields fit: the least such."""
    sizes = range(smallest, max(smallest, LARGEST) + 1, STEP)
    return max(sizes, key=lambda size: (sum(fits(network, layer, size) for layer in layers), -size))


def places(layer: Layer, channel: int, middle: tuple[int, int]) -> list[tuple[int, int]]:
    """Return up to `PLACES` places of the grid for a channel, drawn at random, without the middle one.

    Not of the outermost rows and columns, as long as there are others.
    """
    rows, columns = (range(1, n - 1) if n > 3 else range(n) for n in (layer.height, layer.width))
    every = [(m, n) for m in rows for n in columns if (m, n) != middle]
    rng = generator("places", layer.name, channel, layer.height, layer.width)
    return [every[i] for i in sorted(rng.choice(len(every), min(PLACES, len(every)), replace=False))] if every else []
