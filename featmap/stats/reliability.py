"""How far a similarity would come out the same again: statistics of square tables over the same features. No torch.

Tables are D x D float64, symmetric, NaN where undefined; a pair is two different features. Whatever is drawn (features,
permutations, halves) comes from generators seeded by the purpose, so that a figure is the same every time. A figure
whose denominator is below its floor, or that has fewer than three pairs, is undefined: NaN here, empty in tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import ceil

import numpy as np
from scipy import stats

from featmap.rng import generator

EPS = 1e-9
"""Floor of a variance, as a share of the mean square; of 1 + (k - 1) r; of a difference of mean correlations."""
DRAWS = 1000
LEVEL = 0.95
LEAST_PLACES = 5
"""The fewest places (layers) whose trend has an interval."""


@dataclass(frozen=True)
class Interval:
    """A figure and the interval of its bootstrap; NaN where undefined."""

    value: float
    low: float = float("nan")
    high: float = float("nan")


def rank_pairs(table: np.ndarray) -> np.ndarray:
    """Return a symmetric table with each pair's value replaced by its rank among all pairs (mean rank of ties)."""
    upper = np.triu_indices(len(table), 1)
    full = np.full(table.shape, np.nan)
    full[upper] = stats.rankdata(np.round(table[upper], 12), nan_policy="omit")
    return np.where(np.isfinite(full), full, full.T)


def pair_correlation(one: np.ndarray, two: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Return Pearson's correlation of two symmetric tables over pairs of features.

    Parameters
    ----------
    one, two : D x D, in any unit; a pair counts where both are defined, the diagonal never does
    weights : W x D, how often each feature is there (None: once); the pair j, k then counts w_j w_k times

    Returns
    -------
    W correlations (of one row of ones: a single one), in [-1, 1]. NaN below three pairs, or where one of the tables
    varies by no more than `EPS` of its mean square.
    """
    w = np.ones((1, len(one))) if weights is None else np.asarray(weights, dtype=np.float64)
    known = np.isfinite(one) & np.isfinite(two) & ~np.eye(len(one), dtype=bool)
    # less their means first: what is subtracted below is then small against what it is subtracted from
    x, y = (np.where(known, t - t[known].mean() if known.any() else 0.0, 0.0) for t in (one, two))

    def summed(table: np.ndarray) -> np.ndarray:
        found: np.ndarray = ((w @ table) * w).sum(axis=1)
        return found

    count = summed(known.astype(np.float64))
    n = np.maximum(count, 1)
    mean_x, mean_y = summed(x) / n, summed(y) / n
    over = summed(x * y) / n - mean_x * mean_y
    spreads = []
    for table, raw, mean in ((x, one, mean_x), (y, two, mean_y)):
        square = np.square(raw[known]).mean() if known.any() else 0.0
        variance = summed(table**2) / n - mean**2
        spreads.append(np.where(variance > EPS * square, variance, np.nan))
    with np.errstate(invalid="ignore"):
        found = over / np.sqrt(spreads[0] * spreads[1])
    return np.where(count >= 6, np.clip(found, -1, 1), np.nan)  # every pair is counted from both sides


def bootstrap_counts(features: int, draws: int = DRAWS, key: str = "features") -> np.ndarray:
    """Return how often each feature is drawn when as many as there are are drawn with replacement: draws x features."""
    rng = generator("bootstrap", key, features)
    chosen = rng.integers(0, max(features, 1), size=(draws, features))
    return np.stack([np.bincount(row, minlength=features) for row in chosen]).astype(np.float64)


def percentile_interval(values: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Return the percentile interval of bootstrap values; NaN, NaN below ten defined ones."""
    known = values[np.isfinite(values)]
    if len(known) < 10:
        return float("nan"), float("nan")
    low, high = np.percentile(known, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def mean_correlation(pairs: Sequence[tuple[np.ndarray, np.ndarray]], draws: int = DRAWS) -> Interval:
    """Return the mean over pairs of tables of their `pair_correlation`, with the bootstrap over features.

    Features are drawn with replacement and pairs of a feature with its own copy dropped: pairs of features are not
    independent, so that resampling them would give intervals far too narrow (Snijders & Borgatti, 1999, Connections
    22, 161-170). All tables of a draw share its features. Ranks, where the tables are ranks, are those of the whole.
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
    """Return the mean pairwise correlation of S over seeds, each seed's S a D x D table, see `mean_correlation`."""
    return mean_correlation(list(combinations(tables, 2)), draws)


def spearman_brown(r: float, k: float) -> float:
    """Return k r / (1 + (k - 1) r), the reliability of the mean of k repetitions from that of one.

    r in [-1, 1], k above 0; undefined where 1 + (k - 1) r is not above `EPS`, as for an r below -1 / (k - 1).
    Sources: Spearman (1910, 10.1111/j.2044-8295.1910.tb00206.x), Brown (1910, 10.1111/j.2044-8295.1910.tb00207.x).
    """
    under = 1 + (k - 1) * r
    return float(k * r / under) if np.isfinite(r) and under > EPS else float("nan")


def seeds_needed(r: float, wanted: float = 0.99) -> int | None:
    """Return how many seeds' mean would reach the reliability `wanted`, by `spearman_brown`; None if none would."""
    if not np.isfinite(r) or not 0 < wanted < 1 or r <= EPS:
        return None
    return 1 if r >= wanted else ceil(wanted * (1 - r) / (r * (1 - wanted)) - 1e-9)


def feature_reliability(tables: Sequence[np.ndarray]) -> np.ndarray:
    """Return each feature's reliability: the mean over pairs of seeds of the correlation of its row of S.

    D values in [-1, 1], of one seed's map: row j of the one S with row j of the other over all features but j itself.
    NaN with fewer than two seeds, for rows with fewer than three entries that both define, and for rows that do not
    vary (variance within `EPS` of their mean square).
    """
    count = len(tables[0]) if len(tables) else 0
    found = [[_row(a, b, j) for j in range(count)] for a, b in combinations(tables, 2)]
    return np.mean(found, axis=0) if found else np.full(count, np.nan)


def _row(one: np.ndarray, two: np.ndarray, j: int) -> float:
    known = np.isfinite(one[j]) & np.isfinite(two[j])
    known[j] = False
    x, y = one[j, known], two[j, known]
    if len(x) < 3 or any(v.var() <= EPS * np.square(v).mean() for v in (x, y)):
        return float("nan")
    return float(np.clip(np.corrcoef(x, y)[0, 1], -1, 1))


def trend(values: np.ndarray, places: np.ndarray, draws: int = DRAWS) -> Interval:
    """Return Spearman's correlation of values with places (the depth of their layer), with its bootstrap.

    N values and N places. Places are drawn with replacement, and within each drawn place its values: values of one
    place share what the place is, so that resampling values alone would count a place as many times as it has values
    (Davison & Hinkley, 1997, Bootstrap Methods, 3.8). The interval is undefined (NaN) below `PLACES` places, of which
    not even a perfect order would be beyond chance (2 / 4! > 0.05). Values that are not finite are left out. All is
    undefined below three values, or where all values or all places are one.
    """
    known = np.isfinite(values)
    given, at = np.asarray(values, dtype=np.float64)[known], np.asarray(places)[known]
    value = _spearman(given, at)
    groups = [np.flatnonzero(at == place) for place in np.unique(at)]
    if not np.isfinite(value) or len(groups) < LEAST_PLACES:
        return Interval(value)
    rng, found = generator("trend", len(given), draws), np.empty(draws)
    for k in range(draws):
        drawn = rng.integers(0, len(groups), len(groups))
        chosen = np.concatenate([rng.choice(groups[g], len(groups[g])) for g in drawn])
        found[k] = _spearman(given[chosen], at[chosen])
    return Interval(value, *percentile_interval(found))


def _spearman(one: np.ndarray, two: np.ndarray) -> float:
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(two) == 0:
        return float("nan")
    return float(np.clip(np.corrcoef(stats.rankdata(one), stats.rankdata(two))[0, 1], -1, 1))
