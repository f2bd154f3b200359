"""Compare directions of a layer's channel space with its channels."""

from __future__ import annotations

import numpy as np

from featmap.stats.correlation import FLOOR, TIE


def channels_for_share(vectors: np.ndarray, share: float = 0.9) -> np.ndarray:
    """Count the channels that explain a share of each direction's squared weight.

    Parameters
    ----------
    vectors : numpy.ndarray
        K x C.
    share : float, default 0.9
        Share of the sum of squared weights, in (0, 1].

    Returns
    -------
    numpy.ndarray
        K whole numbers: the fewest channels whose squared weights add up to it; 1 for a channel, C for equal weights
        at a share of 1.
    """
    squares = -np.sort(-(np.asarray(vectors, dtype=np.float64) ** 2), axis=1)
    sums = np.cumsum(squares, axis=1)
    # what is left of a sum by rounding must not cost a channel
    reached = sums >= share * sums[:, -1:] * (1 - TIE)
    return np.argmax(reached, axis=1) + 1


def most_similar_channels(directions: np.ndarray, channels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the channel whose responses correlate most with each direction's.

    Parameters
    ----------
    directions : numpy.ndarray
        Responses of K directions to N images, N x K.
    channels : numpy.ndarray
        Responses of C channels to the same images, N x C.

    Returns
    -------
    channel : numpy.ndarray
        K numbers of channels; -1 where no correlation is defined.
    correlation : numpy.ndarray
        K Pearson correlations; NaN where undefined (responses that do not vary).
    """
    x, y = (np.asarray(v, dtype=np.float64) for v in (directions, channels))
    x, y = x - x.mean(0), y - y.mean(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (x / np.linalg.norm(x, axis=0)).T @ (y / np.linalg.norm(y, axis=0))
    defined = np.isfinite(r)
    best = np.argmax(np.where(defined, r, -np.inf), axis=1)
    has_any = defined.any(axis=1)
    return np.where(has_any, best, -1), np.where(has_any, r[np.arange(len(r)), best], np.nan)


def explained_share(values: np.ndarray, vectors: np.ndarray, centre: bool) -> float:
    """Compute the share of the activations' sum of squares that lies in the span of directions.

    Parameters
    ----------
    values : numpy.ndarray
        Activations, N x C.
    vectors : numpy.ndarray
        K x C.
    centre : bool
        Subtract the mean of the activations first, so that the share is one of the variance.

    Returns
    -------
    float
        In [0, 1]; 1 where the directions span everything. NaN for activations without any.
    """
    x = np.asarray(values, dtype=np.float64)
    x = x - x.mean(0) if centre else x
    basis, scales, _ = np.linalg.svd(np.asarray(vectors, dtype=np.float64).T, full_matrices=False)
    basis = basis[:, scales > scales[0] * FLOOR]
    total = float((x**2).sum())
    return float(((x @ basis) ** 2).sum() / total) if total > 0 else float("nan")
