"""Where an image changed: the centre of the change, how far it reaches, what lies outside a field. No torch.

A change is an image less what it would have been (the null image of its seed, or the image before one more neuron was
added), N x C x H x W. Its energy at a pixel is the sum over the channels of its squares. Positions are (row, column) in
pixels, (0, 0) the middle of the upper left one. Where nothing changed, everything is undefined: NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featmap.network.receptive_field import ReceptiveField


def change_energy(changes: np.ndarray) -> np.ndarray:
    """Return the energy of changes at every pixel: N x H x W, 0 or more."""
    found: np.ndarray = np.square(np.asarray(changes, dtype=np.float64)).sum(1)
    return found


def _energy_and_total(changes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the energy N x H x W and its total N, NaN where there is none."""
    held = change_energy(changes)
    total = held.sum((1, 2))
    return held, np.where(total > 0, total, np.nan)


def centres(changes: np.ndarray) -> np.ndarray:
    """Return the centre of gravity of each change's energy: N x 2, row and column."""
    held, total = _energy_and_total(changes)
    rows, columns = np.arange(held.shape[1]), np.arange(held.shape[2])
    return np.stack([held.sum(2) @ rows / total, held.sum(1) @ columns / total], axis=1)


def radii(changes: np.ndarray, share: float = 0.9) -> np.ndarray:
    """Return the radius about its own centre within which each change has `share` of its energy: N, in pixels."""
    held, total = _energy_and_total(changes)
    found = np.full(len(held), np.nan)
    for k, (y, x) in enumerate(centres(changes)):
        if np.isfinite(total[k]):
            away = np.hypot(np.arange(held.shape[1])[:, None] - y, np.arange(held.shape[2])[None] - x).ravel()
            order = np.argsort(away, kind="stable")
            upto = np.cumsum(held[k].ravel()[order])
            found[k] = away[order][np.searchsorted(upto, share * upto[-1])]
    return found


def outside_share(changes: np.ndarray, bounds: Sequence[tuple[slice, slice]]) -> np.ndarray:
    """Return the share of each change's energy that lies outside its rows and columns: N values in [0, 1].

    `bounds` are those of `featmap.network.receptive_field.Field.bounds`, one for each change.
    """
    held, total = _energy_and_total(changes)
    inside = np.array([held[k][there].sum() for k, there in enumerate(bounds)])
    found: np.ndarray = np.clip(1 - inside / total, 0, 1)
    return found


def energy_region(change: np.ndarray, share: float = 0.95) -> np.ndarray:
    """Return the fewest pixels that hold `share` of a change's energy, C x H x W: H x W booleans; none if it is 0."""
    held = change_energy(change[None])[0]
    order = np.argsort(-held, axis=None, kind="stable")
    upto = np.cumsum(held.ravel()[order])
    chosen = np.zeros(held.size, dtype=bool)
    if upto[-1] > 0:
        chosen[order[: np.searchsorted(upto, share * upto[-1]) + 1]] = True
    return chosen.reshape(held.shape)


def field_centre(field: ReceptiveField, row: int, column: int) -> tuple[float, float]:
    """Return the centre of what a grid position sees, in pixels, also where that reaches beyond the image."""
    at = [field.start[k] + i * field.jump[k] + (field.size[k] - 1) / 2 for k, i in enumerate((row, column))]
    return at[0], at[1]


def field_coverage(field: ReceptiveField, row: int, column: int, height: int, width: int) -> float:
    """Return the share of a height x width image that a grid position sees, in [0, 1]."""
    rows, columns = field.bounds(row, column, height, width)
    return (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
