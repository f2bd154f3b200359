"""Kinds of images of one neuron: how many clearly different ones, from different starts, are near its best."""

from __future__ import annotations

import numpy as np

from analyses.formulas.likeness import correlation_clusters, pairwise_correlations
from analyses.support.image_sets import ImageSet
from featmap.stats.correlation import standardise

GOOD = 0.9
"""Share of a neuron's best activation that counts as reached."""


def standardised_profiles(image_set: ImageSet) -> np.ndarray:
    """Compute response profiles on a common scale.

    Parameters
    ----------
    image_set : ImageSet
        Images of N neurons from S starts, with the responses of M features.

    Returns
    -------
    numpy.ndarray
        `S x N x M'`: responses less those to the null image of the same start, each of the M' features that vary over
        these differences of mean 0 and variance 1.
    """
    risen = image_set.risen
    Z = standardise(risen.reshape(-1, risen.shape[2]), np.ones(risen.shape[0] * risen.shape[1], dtype=bool))
    Z = Z.reshape(risen.shape)
    chosen: np.ndarray = Z[..., np.isfinite(Z).all((0, 1))]
    return chosen


def median_distance(values: np.ndarray, live: np.ndarray) -> float:
    """Compute the median distance (1 - r) of different neurons' images from one start.

    Parameters
    ----------
    values : numpy.ndarray
        What is compared, `S x N x ...`.
    live : numpy.ndarray
        Booleans, `S x N`.

    Returns
    -------
    float
        NaN where no start has two live neurons whose values vary.
    """
    correlations = []
    for one, alive in zip(values, live, strict=True):
        r = pairwise_correlations(one[alive]) if alive.sum() > 1 else np.empty((0, 0))
        correlations += r[np.triu_indices(len(r), 1)].tolist()
    return float(1 - np.nanmedian(correlations)) if np.isfinite(correlations).any() else float("nan")


def good_starts(image_set: ImageSet) -> np.ndarray:
    """Find the starts that reach `GOOD` of their neuron's best activation.

    Parameters
    ----------
    image_set : ImageSet
        Images of N neurons from S starts.

    Returns
    -------
    numpy.ndarray
        Booleans, `S x N`.
    """
    value = np.where(image_set.live, image_set.activation, -np.inf)
    best = value.max(0)
    return (value >= GOOD * best) & (best > 0) & image_set.live


def count_kinds(values: np.ndarray, image_set: ImageSet, alike: float) -> tuple[np.ndarray, np.ndarray]:
    """Count the kinds of images that reach `GOOD` of each neuron's best.

    Images are of one kind if they correlate by more than `alike`.

    Parameters
    ----------
    values : numpy.ndarray
        What is compared, `S x N x ...`.
    image_set : ImageSet
        Images of the neurons.
    alike : float
        Least correlation within a kind.

    Returns
    -------
    counts, distance : numpy.ndarray
        Number of kinds of each neuron, and mean distance of its images.
    """
    good = good_starts(image_set)
    counts, apart = np.full(good.shape[1], np.nan), np.full(good.shape[1], np.nan)
    for k in range(good.shape[1]):
        if good[:, k].any() and np.isfinite(alike):
            r = pairwise_correlations(values[good[:, k], k])
            counts[k] = len(set(correlation_clusters(r, alike)) - {-1})
            pairs = r[np.triu_indices(len(r), 1)]
            apart[k] = 1 - np.nanmean(pairs) if np.isfinite(pairs).any() else np.nan
    return counts, apart
