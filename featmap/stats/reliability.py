"""Repeatability: statistics of square tables over the same features, and agreement of partitions (Rand index).

Tables are D x D float64, symmetric, NaN where undefined; a pair is two different features. Whatever is drawn (features,
permutations, halves) comes from generators seeded by its purpose, so that a statistic is the same every time. A
statistic whose denominator is not above its floor, or that has fewer than three pairs, is undefined: NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from featmap.errors import FeatmapError
from featmap.rng import generator
from featmap.stats.correlation import DIGITS, FLOOR, TIE, VARIANCE_FLOOR, pearson, rank_correlation, spearman

if TYPE_CHECKING:
    import pandas as pd

DRAWS = 1000
"""Bootstrap draws."""
LEVEL = 0.95
"""Confidence of intervals."""
LEAST_PLACES = 5
"""Fewest places (depths of layers) for which a trend gets an interval."""


@dataclass(frozen=True)
class Interval:
    """A statistic and its bootstrap interval.

    Parameters
    ----------
    value : float
        The statistic; NaN where undefined.
    low, high : float, default NaN
        Ends of the interval; NaN where undefined.
    """

    value: float
    low: float = float("nan")
    high: float = float("nan")


def rank_pairs(table: np.ndarray) -> np.ndarray:
    """Replace each pair's value by its rank among all pairs.

    Parameters
    ----------
    table : numpy.ndarray
        D x D, symmetric.

    Returns
    -------
    numpy.ndarray
        D x D, ranks from 1, ties at their mean rank; NaN where `table` is, and on the diagonal.
    """
    upper = np.triu_indices(len(table), 1)
    full = np.full(table.shape, np.nan)
    full[upper] = stats.rankdata(np.round(table[upper], DIGITS), nan_policy="omit")
    return np.where(np.isfinite(full), full, full.T)


def pair_correlation(one: np.ndarray, two: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Compute Pearson's correlation of two symmetric tables over pairs of features.

    Parameters
    ----------
    one, two : numpy.ndarray
        D x D, in any unit; a pair counts where both are defined, the diagonal never does.
    weights : numpy.ndarray, optional
        W x D, how often each feature counts; default: once. The pair j, k counts ``w_j w_k`` times.

    Returns
    -------
    numpy.ndarray
        W correlations (one without weights), in [-1, 1]. NaN below three pairs, or where the variance of a table is not
        above `VARIANCE_FLOOR` of its mean square.
    """
    w = np.ones((1, len(one))) if weights is None else np.asarray(weights, dtype=np.float64)
    defined = np.isfinite(one) & np.isfinite(two) & ~np.eye(len(one), dtype=bool)
    # Subtracting the means first keeps the differences below from cancelling: mean squares less squared means.
    x, y = (np.where(defined, t - t[defined].mean() if defined.any() else 0.0, 0.0) for t in (one, two))

    def weighted_sum(table: np.ndarray) -> np.ndarray:
        total: np.ndarray = ((w @ table) * w).sum(axis=1)
        return total

    count = weighted_sum(defined.astype(np.float64))
    n = np.maximum(count, 1)
    mean_x, mean_y = weighted_sum(x) / n, weighted_sum(y) / n
    covariance = weighted_sum(x * y) / n - mean_x * mean_y
    variances = []
    for table, raw, mean in ((x, one, mean_x), (y, two, mean_y)):
        square = np.square(raw[defined]).mean() if defined.any() else 0.0
        variance = weighted_sum(table**2) / n - mean**2
        variances.append(np.where(variance > VARIANCE_FLOOR * square, variance, np.nan))
    with np.errstate(invalid="ignore"):
        r = covariance / np.sqrt(variances[0] * variances[1])
    return np.where(count >= 6, np.clip(r, -1, 1), np.nan)  # every pair is counted from both sides


def bootstrap_counts(features: int, draws: int = DRAWS, key: str = "features") -> np.ndarray:
    """Count how often each feature is drawn with replacement, for a bootstrap.

    Parameters
    ----------
    features : int
        Number of features D.
    draws : int, default 1000
        Number of bootstrap draws.
    key : str, default "features"
        Purpose, which seeds the generator.

    Returns
    -------
    numpy.ndarray
        draws x D, float64; each row adds up to D.
    """
    rng = generator("bootstrap", key, features)
    drawn = rng.integers(0, max(features, 1), size=(draws, features))
    return np.stack([np.bincount(row, minlength=features) for row in drawn]).astype(np.float64)


def percentile_interval(values: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Compute the percentile interval of bootstrap values.

    Parameters
    ----------
    values : numpy.ndarray
        Bootstrap values; those that are not finite are left out.
    level : float, default 0.95
        Confidence.

    Returns
    -------
    low, high : float
        Ends of the interval; NaN below ten finite values.
    """
    finite = values[np.isfinite(values)]
    if len(finite) < 10:
        return float("nan"), float("nan")
    low, high = np.percentile(finite, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def mean_correlation(pairs: Sequence[tuple[np.ndarray, np.ndarray]], draws: int = DRAWS) -> Interval:
    """Compute the mean correlation of pairs of tables, bootstrapped over features.

    Features are drawn with replacement and pairs of a feature with its own copy dropped: pairs of features are not
    independent, so that resampling them would give intervals far too narrow. All tables of a draw share its features.
    Ranks, where the tables are ranks, are those of the whole.

    Parameters
    ----------
    pairs : sequence of tuple of numpy.ndarray
        Tables of the same features, D x D each.
    draws : int, default 1000
        Number of bootstrap draws.

    Returns
    -------
    Interval
        Mean of their `pair_correlation`, in [-1, 1]; without an interval below four features.

    References
    ----------
    Snijders & Borgatti (1999), Non-parametric standard errors and tests for network statistics, Connections 22,
    161-170.
    """
    if not pairs:
        return Interval(float("nan"))
    value = float(np.mean([pair_correlation(a, b)[0] for a, b in pairs]))
    features = len(pairs[0][0])
    if not np.isfinite(value) or features < 4:
        return Interval(value)
    weights = bootstrap_counts(features, draws)
    return Interval(value, *percentile_interval(np.mean([pair_correlation(a, b, weights) for a, b in pairs], axis=0)))


def repeatability(tables: Sequence[np.ndarray], draws: int = DRAWS) -> Interval:
    """Compute the mean pairwise correlation of S over seeds.

    Parameters
    ----------
    tables : sequence of numpy.ndarray
        S of each seed, D x D.
    draws : int, default 1000
        Number of bootstrap draws.

    Returns
    -------
    Interval
        `mean_correlation` over pairs of seeds: in [-1, 1], 1 where every seed gives the same S.
    """
    return mean_correlation(list(combinations(tables, 2)), draws)


def spearman_brown(r: float, k: float) -> float:
    """Compute the reliability of the mean of k repetitions from that of one.

    Parameters
    ----------
    r : float
        Reliability of one repetition, in [-1, 1].
    k : float
        Number of repetitions, above 0; a fraction for fewer than `r` was measured with.

    Returns
    -------
    float
        k r / (1 + (k - 1) r); NaN where the denominator is not above `FLOOR`, as for an r below -1 / (k - 1).

    References
    ----------
    - Spearman (1910), doi 10.1111/j.2044-8295.1910.tb00206.x.
    - Brown (1910), doi 10.1111/j.2044-8295.1910.tb00207.x.
    """
    denominator = 1 + (k - 1) * r
    return float(k * r / denominator) if np.isfinite(r) and denominator > FLOOR else float("nan")


def seeds_needed(r: float, wanted: float = 0.99) -> int | None:
    """Compute how many seeds' mean reaches a reliability, by `spearman_brown`.

    Parameters
    ----------
    r : float
        Reliability of one seed.
    wanted : float, default 0.99
        Reliability to reach, between 0 and 1.

    Returns
    -------
    int or None
        Number of seeds, 1 or more; None if no number reaches it.
    """
    if not np.isfinite(r) or not 0 < wanted < 1 or r <= FLOOR:
        return None
    # Rounding may leave the quotient just above a whole number, which is then the answer.
    return 1 if r >= wanted else ceil(wanted * (1 - r) / (r * (1 - wanted)) * (1 - TIE))


def feature_reliability(tables: Sequence[np.ndarray]) -> np.ndarray:
    """Compute the reliability of each feature's row of S in one seed's map.

    Parameters
    ----------
    tables : sequence of numpy.ndarray
        S of each seed, D x D.

    Returns
    -------
    numpy.ndarray
        D values in [-1, 1]: mean over pairs of seeds of the correlation of row j of the one S with row j of the other,
        over all features but j itself. NaN with fewer than two seeds, for rows with fewer than three entries that both
        define, and for rows that do not vary.
    """
    count = len(tables[0]) if len(tables) else 0
    rows = [[_row_correlation(a, b, j) for j in range(count)] for a, b in combinations(tables, 2)]
    return np.mean(rows, axis=0) if rows else np.full(count, np.nan)


def _row_correlation(one: np.ndarray, two: np.ndarray, j: int) -> float:
    """Correlate row j of two tables over the other features."""
    defined = np.isfinite(one[j]) & np.isfinite(two[j])
    defined[j] = False
    return pearson(one[j, defined], two[j, defined]) if defined.sum() >= 3 else float("nan")


def trend(values: np.ndarray, places: np.ndarray, draws: int = DRAWS) -> Interval:
    """Compute Spearman's correlation of values with the depth of their layer.

    This is a two-stage bootstrap: layers are drawn with replacement, then values within each drawn layer. Values of one
    layer are not independent, so that resampling values alone would give intervals too narrow.

    Parameters
    ----------
    values : numpy.ndarray
        N values; those that are not finite are left out.
    places : numpy.ndarray
        Depth of each value's layer, N numbers; equal numbers are one layer.
    draws : int, default 1000
        Number of bootstrap draws.

    Returns
    -------
    Interval
        Correlation in [-1, 1], high where values rise with depth; NaN below three values, or where all values or all
        depths are equal. The interval is NaN below `LEAST_PLACES` layers: of four, even a perfect order has a two-sided
        p of 2 / 4!, above 0.05.

    References
    ----------
    Davison & Hinkley (1997), Bootstrap Methods and their Application, section 3.8.
    """
    finite = np.isfinite(values)
    y, x = np.asarray(values, dtype=np.float64)[finite], np.asarray(places)[finite]
    value = spearman(y, x)
    groups = [np.flatnonzero(x == place) for place in np.unique(x)]
    if not np.isfinite(value) or len(groups) < LEAST_PLACES:
        return Interval(value)
    rng, correlations = generator("trend", len(y), draws), np.empty(draws)
    for k in range(draws):
        drawn = rng.integers(0, len(groups), len(groups))
        members = np.concatenate([rng.choice(groups[g], len(groups[g])) for g in drawn])
        correlations[k] = spearman(y[members], x[members])
    return Interval(value, *percentile_interval(correlations))


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


def is_trivial(labels: Sequence[object] | np.ndarray) -> bool:
    """Check whether a partition says nothing.

    The adjusted Rand index of two such partitions is 1 by definition and no agreement.

    Parameters
    ----------
    labels : sequence
        A label for each thing.

    Returns
    -------
    bool
        True for one group of all things, and for groups of one thing each.
    """
    return len(np.unique(np.asarray(labels))) in (1, len(labels))


def seed_reliability(statistics: pd.DataFrame) -> float:
    """Compute the mean rank correlation of measured excesses between seeds.

    Parameters
    ----------
    statistics : pandas.DataFrame
        Statistics of every pair and seed; columns group, seed, response_nonlinearity, response_nonlinearity_floor.

    Returns
    -------
    float
        Spearman's correlation of response nonlinearity less its floor, mean over pairs of seeds, in [-1, 1]; NaN for a
        single seed.
    """
    excess = statistics["response_nonlinearity"] - statistics["response_nonlinearity_floor"]
    wide = statistics.assign(excess=excess).pivot(index="group", columns="seed", values="excess")
    values = wide.to_numpy(dtype=float)
    each = [rank_correlation(values[:, i], values[:, j])[0] for i in range(values.shape[1]) for j in range(i)]
    return float(np.mean(each)) if each else float("nan")
