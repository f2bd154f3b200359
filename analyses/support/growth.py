"""Effect of one more neuron on the image of others: where the image changes, and by how much."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analyses.formulas import extents
from analyses.support.image_sets import ImageSet
from featmap.network.receptive_field import ReceptiveField
from featmap.stats.correlation import FLOOR

OWN_SHARE = 0.95
"""Share of a neuron's change alone in its own pixels."""


@dataclass(frozen=True, eq=False)
class Growth:
    """Effect of one more neuron, for N added neurons over S seeds.

    Parameters
    ----------
    layer : str
        Name of the layer.
    before, after, alone : ImageSet
        Images of the prefix without the neuron, with it, and of the neuron by itself.
    fields : list of ReceptiveField
        Receptive fields of the neurons' channels.
    positions : list of (int, int)
        Positions of the neurons in the grid.
    """

    layer: str
    before: ImageSet
    after: ImageSet
    alone: ImageSet
    fields: list[ReceptiveField]
    positions: list[tuple[int, int]]

    @property
    def changes(self) -> np.ndarray:
        """Change by the added neuron, `S x N x 3 x H x W`."""
        difference: np.ndarray = self.after.images - self.before.images
        return difference

    @property
    def bounds(self) -> list[tuple[slice, slice]]:
        """Rows and columns in the field of each added neuron."""
        size = self.after.images.shape[-1]
        return [f.bounds(*at, size, size) for f, at in zip(self.fields, self.positions, strict=True)]


def share_beyond_own(changes: np.ndarray, alone: np.ndarray) -> np.ndarray:
    """Compute the share of each change's energy outside the neuron's own pixels.

    These hold `OWN_SHARE` of what the neuron changes alone.

    Parameters
    ----------
    changes, alone : numpy.ndarray
        Changes by N added neurons after others, and by each alone, `N x 3 x H x W`.

    Returns
    -------
    numpy.ndarray
        N shares; NaN for a neuron that changes nothing, after others or alone.
    """
    energy = extents.change_energy(changes)
    share = np.full(len(energy), np.nan)
    for k, (one, own) in enumerate(zip(energy, alone, strict=True)):
        region = extents.energy_region(own, OWN_SHARE)
        if one.sum() > 0 and region.any():
            share[k] = one[~region].sum() / one.sum()
    return share


def movement_elsewhere(grown: Growth, rest: np.ndarray) -> np.ndarray:
    """Compute the relative change of the image outside the field, as a root of energies.

    Parameters
    ----------
    grown : Growth
        N added neurons over S seeds.
    rest : numpy.ndarray
        Share of the image outside each neuron's field, N values.

    Returns
    -------
    numpy.ndarray
        `S x N`; NaN where nothing is outside the field, or nothing was there but the rounding of float32.
    """
    movement = np.full(grown.changes.shape[:2], np.nan)
    for s, (change, before) in enumerate(zip(grown.changes, grown.before.changes, strict=True)):
        now, then = (extents.change_energy(x) for x in (change, before))
        rounding = change.shape[1] * (FLOOR * np.abs(grown.before.images[s]).max()) ** 2  # of a pixel
        for k, bounds in enumerate(grown.bounds):
            total, pixels = then[k].sum() - then[k][bounds].sum(), then[k].size - then[k][bounds].size
            if rest[k] > 0 and total > pixels * rounding:
                movement[s, k] = np.sqrt(max(0.0, now[k].sum() - now[k][bounds].sum()) / total)
    return movement
