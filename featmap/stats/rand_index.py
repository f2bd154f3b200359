"""Compare partitions of the same things: pairs in common, and the adjusted Rand index."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featmap.errors import FeatmapError


def count_pairs(
    one: Sequence[object] | np.ndarray, two: Sequence[object] | np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Count the pairs of things that two partitions put together.

    Parameters
    ----------
    one, two : sequence
        D labels each, of the same things; the names of the labels do not matter.
    weights : numpy.ndarray, optional
        W x D, how often each thing counts, as in a bootstrap; default: once. A pair j, k counts ``w_j w_k`` times;
        pairs of a thing with its own copy do not count.

    Returns
    -------
    both, in_one, in_two, total : numpy.ndarray
        Numbers of pairs that lie in one group in both partitions, in the first, in the second, and of all pairs: W
        whole numbers each (one without weights).
    """
    a, b = (np.unique(np.asarray(labels), return_inverse=True)[1] for labels in (one, two))
    w = np.ones((1, len(a))) if weights is None else np.asarray(weights, dtype=np.float64)

    def within(groups: np.ndarray) -> np.ndarray:
        # the sum of w_j w_k over pairs is half of (sum w)^2 - sum w^2; whole numbers below 2^53 are exact
        size = np.stack([np.bincount(groups, row) for row in w])
        pairs: np.ndarray = ((size**2).sum(axis=1) - (w**2).sum(axis=1)) / 2
        return pairs

    both = np.unique(a * (b.max(initial=0) + 1) + b, return_inverse=True)[1]
    return within(both), within(a), within(b), within(np.zeros_like(a))


def adjusted_rand(one: Sequence[object] | np.ndarray, two: Sequence[object] | np.ndarray) -> float:
    """Compute the adjusted Rand index of two partitions of the same things.

    Parameters
    ----------
    one, two : sequence
        A label for each thing, in the same order; the names of the labels do not matter.

    Returns
    -------
    float
        At most 1, which equal partitions have; about 0 for unrelated ones, below 0 for less agreement than chance.

    Raises
    ------
    FeatmapError
        If the lengths differ.

    References
    ----------
    Hubert & Arabie (1985), Journal of Classification 2, doi 10.1007/BF01908075.
    """
    if len(one) != len(two):
        raise FeatmapError(f"partitions of {len(one)} and {len(two)} things cannot be compared; give the same things")
    both, in_one, in_two, total = (int(pairs[0]) for pairs in count_pairs(one, two))
    if in_one == in_two == both:
        return 1.0
    # integers have no rounding, however many things there are
    chance = in_one * in_two / total
    return (both - chance) / ((in_one + in_two) / 2 - chance)
