"""How far a partition that is given (a module's branches) goes with the similarity of features. No torch.

Tables S are D x D float64, symmetric, NaN where undefined; a pair is two different features; groups are D labels.
p is one-sided, (1 + b) / (permutations + 1) with b the permutations of the groups that reach the figure; intervals are
bootstraps over features in which pairs of a feature with its own copy are dropped (see `featmap.stats.reliability`).
A figure
that has no pair to stand on is undefined: NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from featmap.rng import generator
from featmap.stats.correlation import adjusted_rand
from featmap.stats.reliability import DRAWS, Interval, bootstrap_counts, percentile_interval

PERMUTATIONS = 1999
Labels = Sequence[object] | np.ndarray


@dataclass(frozen=True, eq=False)
class PermutationTest:
    """A figure of similarity and groups: its value with the interval, p, and its value under each permutation."""

    figure: Interval
    p: float
    permuted: np.ndarray

    @property
    def chance(self) -> float:
        """The mean over permutations."""
        return float(self.permuted.mean())


def _label_numbers(labels: Labels) -> np.ndarray:
    return np.unique(np.asarray(labels), return_inverse=True)[1]


def rand_index(one: Labels, two: Labels, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the adjusted Rand index of two partitions of D things from their pairs.

    Parameters
    ----------
    weights : W x D, how often each thing is there (None: once); the pair j, k then counts w_j w_k times, and a thing
        with its own copy never

    Returns
    -------
    W values (of no weights: a single one), at most 1, about 0 for unrelated partitions; NaN where both put all
    pairs together or all apart. Source: Hubert & Arabie (1985, 10.1007/BF01908075).
    """
    w = np.ones((1, len(one))) if weights is None else np.asarray(weights, dtype=np.float64)
    a, b = (np.equal.outer(n, n) for n in (_label_numbers(one), _label_numbers(two)))
    others = ~np.eye(len(a), dtype=bool)

    def pairs(table: np.ndarray) -> np.ndarray:
        found: np.ndarray = ((w @ (table & others).astype(np.float64)) * w).sum(axis=1) / 2
        return found

    both, in_a, in_b, total = pairs(a & b), pairs(a), pairs(b), pairs(others)
    chance = in_a * in_b / np.where(total > 0, total, np.nan)
    room = (in_a + in_b) / 2 - chance
    return (both - chance) / np.where(room > 1e-9 * total, room, np.nan)


def rand_index_test(
    clusters: Labels, groups: Labels, permutations: int = PERMUTATIONS, draws: int = DRAWS
) -> PermutationTest:
    """Return the adjusted Rand index of clusters found and groups given, D labels each."""
    given, found = _label_numbers(groups), _label_numbers(clusters)
    return _permutation_test(
        rand_index(found, given, None)[0],
        lambda w: rand_index(found, given, w),
        lambda labels: adjusted_rand(found, labels),
        given,
        permutations,
        draws,
    )


def contrast(S: np.ndarray, groups: Labels, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the mean of S over pairs within a group less that over pairs of two groups: W values in [-2, 2].

    `weights` are as in `rand_index`; pairs that S does not define are left out.
    """
    w = np.ones((1, len(S))) if weights is None else np.asarray(weights, dtype=np.float64)
    labels = _label_numbers(groups)
    same = np.equal.outer(labels, labels)
    known = np.isfinite(S) & ~np.eye(len(S), dtype=bool)
    values = np.where(known, S, 0.0)

    def mean(table: np.ndarray) -> np.ndarray:
        count = ((w @ (known & table).astype(np.float64)) * w).sum(axis=1)
        found: np.ndarray = ((w @ np.where(table, values, 0.0)) * w).sum(axis=1) / np.where(count > 0, count, np.nan)
        return found

    return mean(same) - mean(~same)


def contrast_test(
    S: np.ndarray, groups: Labels, permutations: int = PERMUTATIONS, draws: int = DRAWS
) -> PermutationTest:
    """Return `contrast` with its interval and p."""
    given = _label_numbers(groups)
    return _permutation_test(
        contrast(S, given)[0],
        lambda w: contrast(S, given, w),
        lambda labels: float(contrast(S, labels)[0]),
        given,
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
    rng = generator("partitions", len(groups), permutations)
    permuted = np.array([of(rng.permutation(groups)) for _ in range(permutations)], dtype=np.float64)
    interval = percentile_interval(weighted(bootstrap_counts(len(groups), draws)))
    if not np.isfinite(value):
        return PermutationTest(Interval(float("nan")), float("nan"), permuted)
    p = (1 + int((permuted >= value - 1e-12).sum())) / (permutations + 1)
    return PermutationTest(Interval(float(value), *interval), p, permuted)


def nearest_in_group(S: np.ndarray, groups: Labels) -> tuple[np.ndarray, np.ndarray]:
    """Return whether each feature's most similar one is of its own group (1 or 0), and the chance of that.

    D values each; chance is the share of the other features that are of the own group. NaN for a feature without any
    defined similarity. Ties go to the lower position.
    """
    labels = _label_numbers(groups)
    others = np.where(np.isfinite(S) & ~np.eye(len(S), dtype=bool), S, -np.inf)
    known = np.isfinite(others).any(axis=1)
    hits = (labels[others.argmax(axis=1)] == labels).astype(np.float64)
    own = np.bincount(labels)[labels]
    return np.where(known, hits, np.nan), (own - 1) / max(len(labels) - 1, 1)


def mean_between_groups(S: np.ndarray, groups: Labels) -> np.ndarray:
    """Return the mean of S over pairs of every two groups, G x G by sorted label; NaN without pairs."""
    labels = _label_numbers(groups)
    known = np.isfinite(S) & ~np.eye(len(S), dtype=bool)
    member = np.eye(labels.max(initial=0) + 1)[labels]
    count = member.T @ known @ member
    found: np.ndarray = (member.T @ np.where(known, S, 0.0) @ member) / np.where(count > 0, count, np.nan)
    return found
