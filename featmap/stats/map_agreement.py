"""Compare two similarity maps of the same features, such as S over maximising images and S over photographs.

The two cannot be expected to agree fully: one image of each feature says less than many photographs. The *ceiling* of
their agreement is what S reaches over one best photograph of each feature. These are chosen on one half of the
photographs and compared with S over the other half, so that no file serves on both sides, and the same with the
halves exchanged. Copies of a photograph count as photographs of their own: a set with many should be cleaned first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from featmap.stats.correlation import DIGITS, VARIANCE_FLOOR
from featmap.stats.frames import symmetric_values
from featmap.stats.reliability import (
    DRAWS,
    LEVEL,
    Interval,
    bootstrap_counts,
    mean_correlation,
    pair_correlation,
    percentile_interval,
)
from featmap.stats.top_responses import LEAST_PHOTOGRAPHS, HalfMaps

LISTED = 50
"""Pairs that are listed in each direction."""
NEAREST = 5
"""Nearest features of each feature whose overlap is counted."""
LEAST_FEATURES = 4
"""Fewest features that a share of the ceiling is computed from."""
CHANCE_ERRORS = 1.96
"""Standard errors of the correlation of unrelated rows, 1 / sqrt(n - 1), that a feature's ceiling must exceed."""
COLUMNS = ("images", "photographs")
"""Names of the two similarities in tables."""


@dataclass(frozen=True, eq=False)
class MapAgreement:
    """Agreement of two similarities over pairs of features.

    Parameters
    ----------
    overall : Interval
        Correlation over all pairs, in [-1, 1], with its bootstrap interval over features.
    features : pandas.DataFrame
        One row a feature: agreement, the correlation of its two rows of S over the other features, in [-1, 1]; low and
        high, the ends of its bootstrap interval over the other features; pairs, how many count. NaN where undefined.
    disagreements : pandas.DataFrame
        The pairs that part most, in either direction: feature, other, images, photographs (both S), difference
        (photographs less images), by falling magnitude of the difference.
    first, second : numpy.ndarray
        Both similarities, D x D, of the features that both maps have.
    halves : HalfMaps, optional
        Maps of either half of the photographs, which the ceiling is computed from.
    attained : CeilingShare, optional
        Agreement with either half of the photographs, its ceiling, and the share that is reached.
    """

    overall: Interval
    features: pd.DataFrame
    disagreements: pd.DataFrame
    first: np.ndarray
    second: np.ndarray
    halves: HalfMaps | None = None
    attained: CeilingShare | None = None


def common_features(images: pd.DataFrame, photographs: pd.DataFrame) -> list[str]:
    """List the features that two similarities have in common.

    Parameters
    ----------
    images, photographs : pandas.DataFrame
        Both similarities, square.

    Returns
    -------
    list of str
        In the order of the first.
    """
    return [name for name in images.columns if name in photographs.columns]


def compare(
    images: pd.DataFrame, photographs: pd.DataFrame, draws: int = DRAWS, halves: HalfMaps | None = None
) -> MapAgreement:
    """Compare S over maximising images with S over photographs.

    Parameters
    ----------
    images, photographs : pandas.DataFrame
        Both similarities, square, NaN where undefined. Features that one of them lacks are left out.
    draws : int, default 1000
        Bootstrap draws.
    halves : HalfMaps, optional
        Maps of either half of the photographs, of the `common_features`.

    Returns
    -------
    MapAgreement
        Overall, for each feature, and the pairs that part most. With halves, the ceiling too; the table of features
        then has the columns ceiling (see `row_ceilings`), share, overlap and overlap_ceiling.
    """
    names = common_features(images, photographs)
    one, two = (symmetric_values(S.loc[names, names]) for S in (images, photographs))
    features = _row_agreements(names, one, two, draws)
    attained = None if halves is None else share_of_ceiling([one], halves, draws)
    if halves is not None:
        features = features.assign(**row_ceilings(one, halves))
    return MapAgreement(
        mean_correlation([(one, two)], draws),
        features,
        list_disagreements(names, one, two),
        one,
        two,
        halves,
        attained,
    )


@dataclass(frozen=True)
class CeilingShare:
    """Agreement of a map with photographs, its ceiling, and the share reached.

    All are means over both halves of the photographs, over the pairs that all maps define. Intervals are bootstraps
    over features: they cover which features were mapped, not which photographs were taken or how these were halved.

    Parameters
    ----------
    agreement : Interval
        Correlation of S with S over a half, in [-1, 1].
    ceiling : Interval
        The same of S over one best photograph of each feature, chosen in the other half.
    share : Interval
        Agreement over ceiling, both with the same features in each draw; above 1 where S agrees better than S over
        best photographs. NaN where the ceiling is undefined or its interval reaches down to 0.
    halves : Interval
        Correlation of S over one half with S over the other.
    overlap, overlap_ceiling : Interval
        Mean share of a feature's `NEAREST` nearest features that are among the nearest over a half, in [0, 1], and the
        same of S over best photographs.
    chance : float
        Overlap of unrelated maps.
    overlap_share : Interval
        What the overlap exceeds chance by, over what its ceiling does. NaN where the interval of the ceiling reaches
        down to chance.
    features : int
        Number of features that have a pair that all maps define.
    reason, overlap_reason : str
        Why there is no share, of agreement and of overlap, "" where there is one.
    """

    agreement: Interval
    ceiling: Interval
    share: Interval
    halves: Interval
    overlap: Interval
    overlap_ceiling: Interval
    chance: float
    overlap_share: Interval
    features: int
    reason: str = ""
    overlap_reason: str = ""


def share_of_ceiling(maps: Sequence[np.ndarray], halves: HalfMaps, draws: int = DRAWS) -> CeilingShare:
    """Compute the agreement of maps with photographs as a share of its ceiling.

    Parameters
    ----------
    maps : sequence of numpy.ndarray
        S over maximising images, D x D, of one seed or several; agreements are means over them.
    halves : HalfMaps
        Maps of the photographs, of the same features.
    draws : int, default 1000
        Bootstrap draws; 0 for no intervals.

    Returns
    -------
    CeilingShare
        NaN where undefined: below `LEAST_PHOTOGRAPHS` photographs, `LEAST_FEATURES` features (no share and no
        interval) or three pairs.
    """
    tables = [*maps, *halves.halves, *halves.best]
    defined = np.logical_and.reduce([np.isfinite(t) for t in tables]) & ~np.eye(len(tables[0]), dtype=bool)
    keep = np.flatnonzero(defined.any(axis=1))
    tables = [np.where(defined, t, np.nan)[np.ix_(keep, keep)] for t in tables]
    own, half, best = tables[: len(maps)], tables[len(maps) : -2], tables[-2:]
    D, weights = len(keep), np.ones((1, len(keep)))
    if draws and D >= LEAST_FEATURES:
        weights = np.concatenate([weights, bootstrap_counts(D, draws)])
    of_maps, of_best = [(S, h) for S in own for h in half], list(zip(best, half, strict=True))
    between = pair_correlation(half[0], half[1], weights)
    agreement, ceiling = (np.mean([pair_correlation(*p, weights) for p in pairs], 0) for pairs in (of_maps, of_best))
    overlap, highest = (
        _weighted_mean(np.mean([neighbour_overlaps(*p) for p in pairs], 0), weights) for pairs in (of_maps, of_best)
    )
    others = np.isfinite(half[0]).sum(axis=1)
    chance = float(np.mean(NEAREST / others[others > NEAREST])) if (others > NEAREST).any() else np.nan
    share, reason = _share(agreement, ceiling, 0.0, "0")
    overlap_share, overlap_reason = _share(overlap, highest, chance, "chance")
    if halves.photographs < LEAST_PHOTOGRAPHS:
        reason = overlap_reason = f"{halves.photographs} photographs, of which {LEAST_PHOTOGRAPHS} or more are halved"
    elif D < LEAST_FEATURES:
        share, reason = Interval(np.nan), f"{D} features with S in all maps, fewer than {LEAST_FEATURES}"
        overlap_share, overlap_reason = share, reason
    return CeilingShare(
        _interval(agreement),
        _interval(ceiling),
        share,
        _interval(between),
        _interval(overlap),
        _interval(highest),
        chance,
        overlap_share,
        D,
        reason,
        overlap_reason,
    )


def _interval(values: np.ndarray) -> Interval:
    """Make an interval of the value, which comes first, and its bootstrap draws."""
    return Interval(float(values[0]), *percentile_interval(values[1:] if np.isfinite(values[0]) else values[:0]))


def _share(values: np.ndarray, ceilings: np.ndarray, level: float, name: str) -> tuple[Interval, str]:
    """Divide what values and ceilings exceed a level by, draw by draw; and say why that is undefined."""
    ceiling = _interval(ceilings)
    if not np.isfinite(ceiling.value):
        return Interval(np.nan), "too few features or pairs that vary over best photographs"
    if ceiling.value <= level or ceiling.low <= level:
        return Interval(np.nan), f"the interval of the ceiling reaches down to {name}"
    above = np.where(ceilings > level, ceilings - level, np.nan)
    return _interval((values - level) / above), ""


def _weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average the defined ones of D values with W x D weights; NaN where none counts."""
    finite = np.isfinite(values)
    total = weights @ finite.astype(np.float64)
    return np.where(total > 0, weights @ np.where(finite, values, 0.0) / np.maximum(total, 1), np.nan)


def neighbour_overlaps(one: np.ndarray, two: np.ndarray, count: int = NEAREST) -> np.ndarray:
    """Compute the share of nearest features that two similarities have in common.

    Parameters
    ----------
    one, two : numpy.ndarray
        D x D, NaN where undefined; a pair counts where both are defined, the diagonal never does.
    count : int, default 5
        Nearest features; ties by position.

    Returns
    -------
    numpy.ndarray
        D values in [0, 1]; NaN for features with no more than `count` others.
    """
    defined = np.isfinite(one) & np.isfinite(two) & ~np.eye(len(one), dtype=bool)
    rows = np.arange(len(one))[:, None]
    nearest = []
    for table in (one, two):
        order = np.argsort(np.where(defined, -np.round(table, DIGITS), np.inf), axis=1, kind="stable")
        is_near = np.zeros(table.shape, dtype=bool)
        is_near[rows, order[:, :count]] = True
        nearest.append(is_near)
    return np.where(defined.sum(axis=1) > count, (nearest[0] & nearest[1]).sum(axis=1) / count, np.nan)


def row_ceilings(S: np.ndarray, halves: HalfMaps) -> dict[str, np.ndarray]:
    """Compute the ceiling of each feature's agreement, and the share reached.

    Parameters
    ----------
    S : numpy.ndarray
        S over maximising images, D x D.
    halves : HalfMaps
        Maps of the photographs, of the same features.

    Returns
    -------
    dict of numpy.ndarray
        D values each, means over both halves: ceiling, the correlation of the feature's row of S over best photographs
        with that over a half; share, the correlation of its row of S with that over a half, over the ceiling; overlap
        and overlap_ceiling, see `CeilingShare`. NaN where undefined; the share also where the ceiling is not above
        what unrelated rows reach in 2.5 % of cases, `CHANCE_ERRORS` standard errors.
    """
    once = np.ones((1, len(S)))
    own, ceiling = (
        np.mean([row_correlations(t, half, once)[0] for t, half in zip(tables, halves.halves, strict=True)], 0)
        for tables in ((S, S), halves.best)
    )
    overlaps = [
        np.mean([neighbour_overlaps(t, half) for t, half in zip(tables, halves.halves, strict=True)], 0)
        for tables in ((S, S), halves.best)
    ]
    tables = [S, *halves.halves, *halves.best]
    others = (np.logical_and.reduce([np.isfinite(t) for t in tables]) & ~np.eye(len(S), dtype=bool)).sum(axis=1)
    floor = CHANCE_ERRORS / np.sqrt(np.maximum(others - 1, 1))
    share = own / np.where(ceiling > floor, ceiling, np.nan)
    return {"ceiling": ceiling, "share": share, "overlap": overlaps[0], "overlap_ceiling": overlaps[1]}


def row_correlations(one: np.ndarray, two: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Correlate the rows of two tables, over weighted columns.

    Parameters
    ----------
    one, two : numpy.ndarray
        D x D, symmetric; an entry counts where both are defined, the diagonal never does.
    weights : numpy.ndarray
        W x D, how often each column counts.

    Returns
    -------
    numpy.ndarray
        W x D correlations, in [-1, 1]. NaN where fewer than three columns count, or where the variance of a row is not
        above `VARIANCE_FLOOR` of its mean square.
    """
    defined = np.isfinite(one) & np.isfinite(two) & ~np.eye(len(one), dtype=bool)
    n = weights @ defined.astype(np.float64)
    count = np.maximum(n, 1)
    rows, variances = [], []
    for table in (one, two):
        whole = np.where(defined, table, 0.0)
        square = (whole**2).sum(0) / np.maximum(defined.sum(0), 1)
        # less the mean of all columns, so that the differences below do not cancel
        x = np.where(defined, table - whole.sum(0) / np.maximum(defined.sum(0), 1), 0.0)
        mean = weights @ x / count
        variance = weights @ x**2 / count - mean**2
        rows.append((x, mean))
        variances.append(np.where(variance > VARIANCE_FLOOR * square, variance, np.nan))
    (x, mean_x), (y, mean_y) = rows
    covariance = weights @ (x * y) / count - mean_x * mean_y
    different = (weights > 0).astype(np.float64) @ defined.astype(np.float64)
    r = covariance / np.sqrt(variances[0] * variances[1])
    return np.where(different >= 3, np.clip(r, -1, 1), np.nan)


def _row_agreements(names: list[str], one: np.ndarray, two: np.ndarray, draws: int) -> pd.DataFrame:
    """Tabulate the agreement of each feature's rows."""
    D = len(names)
    value = row_correlations(one, two, np.ones((1, D)))[0]
    low = high = np.full(D, np.nan)
    if D >= 4:
        resampled = row_correlations(one, two, bootstrap_counts(D, draws, "rows"))
        enough = np.isfinite(resampled).sum(0) >= 10
        resampled = np.where(enough & np.isfinite(value), resampled, 0.0)
        ends = np.nanpercentile(resampled, [50 * (1 - LEVEL), 50 * (1 + LEVEL)], axis=0)
        low, high = np.where(enough & np.isfinite(value), ends, np.nan)
    pairs = (np.isfinite(one) & np.isfinite(two) & ~np.eye(D, dtype=bool)).sum(0)
    columns = {"agreement": value, "low": low, "high": high, "pairs": pairs}
    return pd.DataFrame(columns, index=pd.Index(names, name="feature"))


def list_disagreements(names: list[str], one: np.ndarray, two: np.ndarray, count: int = LISTED) -> pd.DataFrame:
    """List the pairs of features whose two similarities differ most.

    Parameters
    ----------
    names : list of str
        The D features.
    one, two : numpy.ndarray
        Both similarities, D x D.
    count : int, default 50
        Pairs that are listed in each direction.

    Returns
    -------
    pandas.DataFrame
        Columns feature, other, images (S of the first), photographs (S of the second), difference (second less first),
        by falling magnitude of the difference, ties in the order of the names; pairs of equal similarity are left out.
    """
    row, column = np.triu_indices(len(names), 1)
    difference = np.round(two[row, column] - one[row, column], DIGITS)
    row, column = row[np.isfinite(difference)], column[np.isfinite(difference)]
    difference = difference[np.isfinite(difference)]
    order = np.argsort(-difference, kind="stable")
    rising = np.argsort(difference, kind="stable")
    above, below = order[difference[order] > 0][:count], rising[difference[rising] < 0][:count]
    chosen = np.concatenate([above, below])
    chosen = chosen[np.lexsort((chosen, -np.abs(difference[chosen])))]
    labels = np.array(names, dtype=object)
    first, second = row[chosen], column[chosen]
    return pd.DataFrame(
        {
            "feature": labels[first],
            "other": labels[second],
            COLUMNS[0]: one[first, second],
            COLUMNS[1]: two[first, second],
            "difference": two[first, second] - one[first, second],
        }
    )


def distinct_disagreements(table: pd.DataFrame, count: int = 3) -> list[list[Any]]:
    """List the pairs that part most, each feature once.

    Parameters
    ----------
    table : pandas.DataFrame
        Pairs, see `list_disagreements`.
    count : int, default 3
        Most pairs.

    Returns
    -------
    list of list
        Feature, other, S over images and S over photographs of each.
    """
    taken: set[str] = set()
    rows: list[list[Any]] = []
    for row in table.itertuples():
        if len(rows) < count and not {row.feature, row.other} & taken:
            taken |= {str(row.feature), str(row.other)}
            rows.append([row.feature, row.other, float(row.images), float(row.photographs)])
    return rows
