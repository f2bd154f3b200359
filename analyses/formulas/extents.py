"""Where an image changed: centre and extent of the change, and its share outside a receptive field, without torch.

A change is an image minus what it would have been (the null image of its seed, or the image before one more neuron was
added), `N x C x H x W`. Its energy at a pixel is the sum of its squares over the channels. Positions are (row, column)
in pixels, with (0, 0) in the middle of the upper left pixel. Where nothing changed, everything is undefined: NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featmap.network.receptive_field import ReceptiveField


def change_energy(changes: np.ndarray) -> np.ndarray:
    """Compute the energy of changes at every pixel.

    Parameters
    ----------
    changes : numpy.ndarray
        `N x C x H x W`.

    Returns
    -------
    numpy.ndarray
        `N x H x W`, from 0.
    """
    energy: np.ndarray = np.square(np.asarray(changes, dtype=np.float64)).sum(1)
    return energy


def _energy_and_total(changes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the energy `N x H x W` and its total over pixels, N values, NaN where it is 0."""
    energy = change_energy(changes)
    total = energy.sum((1, 2))
    return energy, np.where(total > 0, total, np.nan)


def centres(changes: np.ndarray) -> np.ndarray:
    """Compute the centre of gravity of each change's energy.

    Parameters
    ----------
    changes : numpy.ndarray
        `N x C x H x W`.

    Returns
    -------
    numpy.ndarray
        `N x 2`: row and column in pixels.
    """
    energy, total = _energy_and_total(changes)
    rows, columns = np.arange(energy.shape[1]), np.arange(energy.shape[2])
    return np.stack([energy.sum(2) @ rows / total, energy.sum(1) @ columns / total], axis=1)


def radii(changes: np.ndarray, share: float = 0.9) -> np.ndarray:
    """Compute the radius within which a share of each change's energy lies.

    The radius is measured from the change's own centre of gravity.

    Parameters
    ----------
    changes : numpy.ndarray
        `N x C x H x W`.
    share : float, default 0.9
        Share of the energy.

    Returns
    -------
    numpy.ndarray
        N radii in pixels.
    """
    energy, total = _energy_and_total(changes)
    radius = np.full(len(energy), np.nan)
    for k, (y, x) in enumerate(centres(changes)):
        if np.isfinite(total[k]):
            distance = np.hypot(np.arange(energy.shape[1])[:, None] - y, np.arange(energy.shape[2])[None] - x).ravel()
            order = np.argsort(distance, kind="stable")
            cumulative = np.cumsum(energy[k].ravel()[order])
            radius[k] = distance[order][np.searchsorted(cumulative, share * cumulative[-1])]
    return radius


def outside_share(changes: np.ndarray, bounds: Sequence[tuple[slice, slice]]) -> np.ndarray:
    """Compute the share of each change's energy outside its rows and columns.

    Parameters
    ----------
    changes : numpy.ndarray
        `N x C x H x W`.
    bounds : sequence of (slice, slice)
        Rows and columns for each change, as `featmap.network.receptive_field.ReceptiveField.bounds` returns them.

    Returns
    -------
    numpy.ndarray
        N values in [0, 1].
    """
    energy, total = _energy_and_total(changes)
    inside = np.array([energy[k][part].sum() for k, part in enumerate(bounds)])
    share: np.ndarray = np.clip(1 - inside / total, 0, 1)
    return share


def energy_region(change: np.ndarray, share: float = 0.95) -> np.ndarray:
    """Find the fewest pixels that hold a share of a change's energy.

    Parameters
    ----------
    change : numpy.ndarray
        `C x H x W`.
    share : float, default 0.95
        Share of the energy.

    Returns
    -------
    numpy.ndarray
        Booleans, `H x W`; all False where the energy is 0.
    """
    energy = change_energy(change[None])[0]
    order = np.argsort(-energy, axis=None, kind="stable")
    cumulative = np.cumsum(energy.ravel()[order])
    chosen = np.zeros(energy.size, dtype=bool)
    if cumulative[-1] > 0:
        chosen[order[: np.searchsorted(cumulative, share * cumulative[-1]) + 1]] = True
    return chosen.reshape(energy.shape)


def field_centre(field: ReceptiveField, row: int, column: int) -> tuple[float, float]:
    """Compute the centre of the receptive field of a grid position.

    Parameters
    ----------
    field : ReceptiveField
        Receptive field of the layer.
    row, column : int
        Position in the layer's grid.

    Returns
    -------
    tuple of float
        Row and column in pixels, also where the field reaches beyond the image.
    """
    at = [field.start[k] + i * field.jump[k] + (field.size[k] - 1) / 2 for k, i in enumerate((row, column))]
    return at[0], at[1]


def field_coverage(field: ReceptiveField, row: int, column: int, height: int, width: int) -> float:
    """Compute the share of an image that a grid position sees.

    Parameters
    ----------
    field : ReceptiveField
        Receptive field of the layer.
    row, column : int
        Position in the layer's grid.
    height, width : int
        Size of the image, in pixels.

    Returns
    -------
    float
        In [0, 1].
    """
    rows, columns = field.bounds(row, column, height, width)
    return (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
