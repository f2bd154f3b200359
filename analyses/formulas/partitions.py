"""Agreement of a given partition (the branches of a module) with the similarity of features, without torch.

Similarity matrices S are `D x D`, float64, symmetric, NaN where undefined; a pair is two different features; a
partition is D labels. p is one-sided, `(1 + b) / (permutations + 1)`, where b is the number of permutations of the
labels that reach the statistic. Intervals are bootstraps over features in which pairs of a feature with its own copy
are dropped (see `featmap.stats.reliability`). A statistic without a defined pair is undefined: NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from featmap.rng import generator
from featmap.stats.correlation import TIE
from featmap.stats.reliability import DRAWS, Interval, adjusted_rand, bootstrap_counts, count_pairs, percentile_interval

PERMUTATIONS = 1999
Labels = Sequence[object] | np.ndarray


@dataclass(frozen=True, eq=False)
class PermutationTest:
    """A statistic of similarity and partition with its permutation test.

    Parameters
    ----------
    statistic : Interval
        The statistic with its bootstrap interval.
    p : float
        One-sided p of the permutation test.
    permuted : numpy.ndarray
        The statistic under each permutation of the labels.
    """

    statistic: Interval
    p: float
    permuted: np.ndarray

    @property
    def chance(self) -> float:
        """Mean of the statistic over the permutations."""
        return float(self.permuted.mean())


def _label_numbers(labels: Labels) -> np.ndarray:
    """Convert labels to numbers from 0, in sorted order."""
    return np.unique(np.asarray(labels), return_inverse=True)[1]


def rand_index(one: Labels, two: Labels, weights: np.ndarray | None = None) -> np.ndarray:
    """Compute the adjusted Rand index of two partitions from their pairs.

    Parameters
    ----------
    one, two : sequence
        Labels of D items.
    weights : numpy.ndarray, default None
        `W x D`, how often each item is present (None: once). The pair j, k then counts `w_j w_k` times; an item and its
        own copy are never a pair.

    Returns
    -------
    numpy.ndarray
        W values (one without weights), at most 1, about 0 for unrelated partitions; NaN where both partitions put all
        pairs together or all apart.

    References
    ----------
    Hubert & Arabie (1985), Comparing partitions. doi:10.1007/BF01908075
    """
    both, in_a, in_b, total = count_pairs(one, two, weights)
    chance = in_a * in_b / np.where(total > 0, total, np.nan)
    room = (in_a + in_b) / 2 - chance
    return (both - chance) / np.where(room > TIE * total, room, np.nan)


def rand_index_test(
    clusters: Labels, groups: Labels, permutations: int = PERMUTATIONS, draws: int = DRAWS
) -> PermutationTest:
    """Test the adjusted Rand index of clusters and groups.

    Parameters
    ----------
    clusters : sequence
        Labels of the D features by clustering.
    groups : sequence
        Labels of the given partition.
    permutations : int, default PERMUTATIONS
        Number of permutations of the groups.
    draws : int, default DRAWS
        Number of bootstrap draws.

    Returns
    -------
    PermutationTest
        The index with its interval and p.
    """
    labels, communities = _label_numbers(groups), _label_numbers(clusters)
    return _permutation_test(
        rand_index(communities, labels, None)[0],
        lambda w: rand_index(communities, labels, w),
        lambda permuted: adjusted_rand(communities, permuted),
        labels,
        permutations,
        draws,
    )


def contrast(S: np.ndarray, groups: Labels, weights: np.ndarray | None = None) -> np.ndarray:
    """Compute the mean of S within groups minus its mean between groups.

    Parameters
    ----------
    S : numpy.ndarray
        Similarities, `D x D`; pairs that are NaN are left out.
    groups : sequence
        Labels of the D features.
    weights : numpy.ndarray, default None
        As in `rand_index`.

    Returns
    -------
    numpy.ndarray
        W values in [-2, 2]; high where features of one group are more alike.
    """
    w = np.ones((1, len(S))) if weights is None else np.asarray(weights, dtype=np.float64)
    labels = _label_numbers(groups)
    same = np.equal.outer(labels, labels)
    defined = np.isfinite(S) & ~np.eye(len(S), dtype=bool)
    values = np.where(defined, S, 0.0)

    def mean(table: np.ndarray) -> np.ndarray:
        count = ((w @ (defined & table).astype(np.float64)) * w).sum(axis=1)
        total: np.ndarray = ((w @ np.where(table, values, 0.0)) * w).sum(axis=1)
        return total / np.where(count > 0, count, np.nan)

    return mean(same) - mean(~same)


def contrast_test(
    S: np.ndarray, groups: Labels, permutations: int = PERMUTATIONS, draws: int = DRAWS
) -> PermutationTest:
    """Test the `contrast` of S within and between groups.

    Parameters
    ----------
    S : numpy.ndarray
        Similarities, `D x D`.
    groups : sequence
        Labels of the D features.
    permutations : int, default PERMUTATIONS
        Number of permutations of the groups.
    draws : int, default DRAWS
        Number of bootstrap draws.

    Returns
    -------
    PermutationTest
        The contrast with its interval and p.
    """
    labels = _label_numbers(groups)
    return _permutation_test(
        contrast(S, labels)[0],
        lambda w: contrast(S, labels, w),
        lambda permuted: float(contrast(S, permuted)[0]),
        labels,
        permutations,
        draws,
    )


def _permutation_test(
    value: float,
    weighted: Callable[[np.ndarray], np.ndarray],
    of: Callable[[np.ndarray], float],
    groups: np.ndarray,
    permutations: int,
    draws: int,
) -> PermutationTest:
    """Test a statistic: `weighted` gives its bootstrap values, `of` its value for permuted groups."""
    rng = generator("partitions", len(groups), permutations)
    permuted = np.array([of(rng.permutation(groups)) for _ in range(permutations)], dtype=np.float64)
    interval = percentile_interval(weighted(bootstrap_counts(len(groups), draws)))
    if not np.isfinite(value):
        return PermutationTest(Interval(float("nan")), float("nan"), permuted)
    # The tolerance counts permutations as ties whose statistic differs by rounding only.
    p = (1 + int((permuted >= value - TIE).sum())) / (permutations + 1)
    return PermutationTest(Interval(float(value), *interval), p, permuted)


def nearest_in_group(S: np.ndarray, groups: Labels) -> tuple[np.ndarray, np.ndarray]:
    """Check whether the most similar feature of each feature belongs to its own group.

    Parameters
    ----------
    S : numpy.ndarray
        Similarities, `D x D`.
    groups : sequence
        Labels of the D features.

    Returns
    -------
    hits : numpy.ndarray
        D values, 1 or 0; NaN for a feature without any defined similarity. Ties go to the lower position.
    chance : numpy.ndarray
        D values in [0, 1]: the share of the other features that belong to the same group.
    """
    labels = _label_numbers(groups)
    others = np.where(np.isfinite(S) & ~np.eye(len(S), dtype=bool), S, -np.inf)
    defined = np.isfinite(others).any(axis=1)
    hits = (labels[others.argmax(axis=1)] == labels).astype(np.float64)
    own = np.bincount(labels)[labels]
    return np.where(defined, hits, np.nan), (own - 1) / max(len(labels) - 1, 1)


def mean_between_groups(S: np.ndarray, groups: Labels) -> np.ndarray:
    """Compute the mean of S over the pairs of every two groups.

    Parameters
    ----------
    S : numpy.ndarray
        Similarities, `D x D`.
    groups : sequence
        Labels of the D features.

    Returns
    -------
    numpy.ndarray
        `G x G`, by sorted label; NaN where two groups have no defined pair.
    """
    labels = _label_numbers(groups)
    defined = np.isfinite(S) & ~np.eye(len(S), dtype=bool)
    member = np.eye(labels.max(initial=0) + 1)[labels]
    count = member.T @ defined @ member
    means: np.ndarray = (member.T @ np.where(defined, S, 0.0) @ member) / np.where(count > 0, count, np.nan)
    return means
