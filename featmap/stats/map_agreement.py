"""Compare two similarity maps of the same features, such as S over maximising images and S over photographs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from featmap.stats.correlation import DIGITS, VARIANCE_FLOOR
from featmap.stats.frames import symmetric_values
from featmap.stats.reliability import DRAWS, LEVEL, Interval, bootstrap_counts, mean_correlation

LISTED = 50
"""Pairs that are listed in each direction."""
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
    """

    overall: Interval
    features: pd.DataFrame
    disagreements: pd.DataFrame
    first: np.ndarray
    second: np.ndarray


def compare(images: pd.DataFrame, photographs: pd.DataFrame, draws: int = DRAWS) -> MapAgreement:
    """Compare S over maximising images with S over photographs.

    Parameters
    ----------
    images, photographs : pandas.DataFrame
        Both similarities, square, NaN where undefined. Features that one of them lacks are left out.
    draws : int, default 1000
        Bootstrap draws.

    Returns
    -------
    MapAgreement
        Overall, for each feature, and the pairs that part most.
    """
    names = [name for name in images.columns if name in photographs.columns]
    one, two = (symmetric_values(S.loc[names, names]) for S in (images, photographs))
    return MapAgreement(
        mean_correlation([(one, two)], draws),
        _row_agreements(names, one, two, draws),
        list_disagreements(names, one, two),
        one,
        two,
    )


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
    above, below = order[difference[order] > 0][:count], order[::-1][difference[order[::-1]] < 0][:count]
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
