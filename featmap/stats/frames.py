"""Data frames of measures: conversion, checks, nearest features, most similar pairs, agreement over seeds.

A frame is float64 and NaN where undefined. So is every column of a table that can be undefined, such as the number of a
cluster; a flag that can be is 1, 0 or NaN, and is written to CSV as True, False or an empty cell.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featmap.errors import FeatmapError
from featmap.stats.correlation import DIGITS, FLOOR

if TYPE_CHECKING:  # a descent starts without pandas
    import pandas as pd

PANEL = 1024
"""Rows of a square table that are worked on at once where all of them would take several times its memory."""
_FLAG = re.compile(r"identity|different|(.+_)?reliable")


def to_floats(data: pd.DataFrame | pd.Series, name: str) -> np.ndarray:
    """Copy a table's values as float64.

    Parameters
    ----------
    data : pandas.DataFrame or pandas.Series
        Numbers of any kind.
    name : str
        Name of the table in the error message.

    Returns
    -------
    numpy.ndarray
        The same shape; NaN for everything that is not a finite number.

    Raises
    ------
    FeatmapError
        If the table holds anything but numbers and missing values.
    """
    try:
        values = data.to_numpy(dtype=np.float64, na_value=np.nan, copy=True)
    except (TypeError, ValueError) as error:
        raise FeatmapError(f"{name} must hold numbers only ({error})") from error
    values[~np.isfinite(values)] = np.nan  # in place: a table of 10,000 features takes 0.8 GB
    return values


def finite_column(values: np.ndarray) -> np.ndarray:
    """Convert numbers to a column of a table.

    Parameters
    ----------
    values : numpy.ndarray
        Numbers of any kind and shape; None counts as undefined.

    Returns
    -------
    numpy.ndarray
        float64, NaN for everything that is not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def plain_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Convert pandas' nullable columns to float64.

    Tables of earlier versions hold them.

    Parameters
    ----------
    table : pandas.DataFrame
        Any table.

    Returns
    -------
    pandas.DataFrame
        A copy; numbers and flags that were nullable are float64, NaN where they are missing.
    """
    nullable = [column for column, kind in table.dtypes.items() if str(kind) in ("Float64", "Int64", "boolean")]
    return table.astype(dict.fromkeys(nullable, "float64"))


def read_table(path: Path) -> pd.DataFrame:
    """Read a stored table.

    Parameters
    ----------
    path : Path
        A Parquet file.

    Returns
    -------
    pandas.DataFrame
        With the labels of its rows as index; see `plain_columns`.
    """
    import pandas as pd

    return plain_columns(pd.read_parquet(path))


def spell_flags(table: pd.DataFrame) -> pd.DataFrame:
    """Convert flags to True, False and missing, as CSV files and pages have them.

    Parameters
    ----------
    table : pandas.DataFrame
        Any table.

    Returns
    -------
    pandas.DataFrame
        A copy; `identity`, `different` and the columns about reliability are pandas' nullable booleans.
    """
    return table.astype({c: "boolean" for c in table.columns if _FLAG.fullmatch(str(c))})


def natural_order(labels: Iterable[object]) -> np.ndarray:
    """Find the order of labels in which numbers are read as numbers.

    Parameters
    ----------
    labels : iterable
        Labels.

    Returns
    -------
    numpy.ndarray
        Positions that sort them: "a:9" before "a:10".
    """
    texts = [str(label) for label in labels]
    keys = [([int(p) if i % 2 else p for i, p in enumerate(re.split(r"([0-9]+)", t))], t) for t in texts]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.intp)


def to_frame(values: np.ndarray, rows: pd.Index, columns: pd.Index) -> pd.DataFrame:
    """Label the values of a measure.

    Parameters
    ----------
    values : numpy.ndarray
        N x M; the table may be a view of it.
    rows, columns : pandas.Index
        Labels.

    Returns
    -------
    pandas.DataFrame
        float64, NaN for everything that is not finite.
    """
    import pandas as pd

    # S of 10,000 features takes 0.8 GB: it is not copied where nothing in it is replaced
    plain = values if values.dtype == np.float64 and np.isfinite(values).all() else finite_column(values)
    return pd.DataFrame(plain, index=rows, columns=columns, copy=False)


def count_undefined(frame: pd.DataFrame) -> int:
    """Count the undefined entries of a measure.

    Parameters
    ----------
    frame : pandas.DataFrame
        Measure.

    Returns
    -------
    int
        Number of entries that are not finite.
    """
    return int(np.isnan(to_floats(frame, "the frame")).sum())


def symmetric_values(S: pd.DataFrame) -> np.ndarray:
    """Check that a similarity frame is symmetric, and return its values.

    Parameters
    ----------
    S : pandas.DataFrame
        Similarity, M x M, the same labels in rows and columns.

    Returns
    -------
    numpy.ndarray
        M x M float64, NaN where undefined.

    Raises
    ------
    FeatmapError
        For any other frame.
    """
    values = to_floats(S, "the similarity frame")
    if list(S.index) != list(S.columns) or not S.columns.is_unique:
        raise FeatmapError("a similarity frame needs the same labels, each once, in its rows and columns")
    panels = [slice(first, first + PANEL) for first in range(0, len(values), PANEL)]
    if not all(np.allclose(values[p], values[:, p].T, rtol=0, atol=FLOOR, equal_nan=True) for p in panels):
        raise FeatmapError("this frame is not symmetric; take neighbours and clusters from `profile`")
    return values


def symmetrise(S: np.ndarray) -> None:
    """Replace a square array by its mean with its transpose, in place.

    The work is done in panels: S of 10,000 features takes 0.8 GB, and each copy as much.

    Parameters
    ----------
    S : numpy.ndarray
        M x M; afterwards exactly symmetric.
    """
    for first in range(0, len(S), PANEL):
        rows, rest = slice(first, first + PANEL), slice(first, None)
        S[rows, rest] = (S[rows, rest] + S[rest, rows].T) / 2
        S[rest, rows] = S[rows, rest].T


def seed_agreement(frames: Sequence[pd.DataFrame]) -> float:
    """Compute the mean correlation of S between single seeds.

    Parameters
    ----------
    frames : sequence of pandas.DataFrame
        S of each seed (`profile`); features are matched by label.

    Returns
    -------
    float
        Mean, over pairs of seeds, of Pearson's correlation of their similarities of different features, where both are
        defined. In [-1, 1]; 1 where all seeds give the same map. `featmap.stats.reliability.repeatability` is the same
        with a bootstrap interval, but for rounding.

    Raises
    ------
    FeatmapError
        For fewer than two frames, or two that share no similarities that vary.
    """
    if len(frames) < 2:
        raise FeatmapError(f"agreement over seeds needs at least 2 maps; {len(frames)} given")
    correlations = []
    for one, two in combinations(frames, 2):
        shared = one.columns[one.columns.isin(two.columns)]
        upper = np.triu_indices(len(shared), 1)
        pair = np.array([symmetric_values(frame.loc[shared, shared])[upper] for frame in (one, two)])
        pair = pair[:, np.isfinite(pair).all(axis=0)]
        if pair.shape[1] < 2 or (np.ptp(pair, axis=1) <= FLOOR).any():
            raise FeatmapError("two of the maps share too few similarities that vary to be correlated")
        # not `correlation.pearson`: from another memory layout the last digit of results on record would differ
        correlations.append(np.clip(np.corrcoef(pair)[0, 1], -1.0, 1.0))
    return float(np.mean(correlations))


def _list_pairs(S: pd.DataFrame, values: np.ndarray, one: np.ndarray, two: np.ndarray) -> pd.DataFrame:
    """List the defined ones of the pairs at positions `one`, `two` as feature, other, similarity."""
    import pandas as pd

    similarity = values[one, two]
    keep = np.isfinite(similarity)
    columns = {"feature": S.columns[one[keep]], "other": S.columns[two[keep]], "similarity": similarity[keep]}
    return pd.DataFrame(columns)


def largest_in_rows(values: np.ndarray, n: int) -> np.ndarray:
    """Find the largest values of each row, undefined ones last.

    Parameters
    ----------
    values : numpy.ndarray
        M x K.
    n : int
        Values of each row; fewer where there are fewer columns.

    Returns
    -------
    numpy.ndarray
        Columns by falling value, rounded so that ties keep their order, M x n.
    """
    best = np.empty((len(values), min(max(n, 0), values.shape[1])), dtype=np.intp)
    for first in range(0, len(values), PANEL):  # a sort of all rows at once takes three times their memory
        rows = slice(first, first + PANEL)
        best[rows] = np.argsort(-np.round(values[rows], DIGITS), axis=1, kind="stable")[:, : best.shape[1]]
    return best


def nearest_features(S: pd.DataFrame, n: int = 5) -> pd.DataFrame:
    """List the most similar others of each feature.

    Parameters
    ----------
    S : pandas.DataFrame
        Similarity, M x M.
    n : int, default 5
        Others of each feature; fewer where fewer are defined.

    Returns
    -------
    pandas.DataFrame
        Columns feature (in the order of S), other (by falling similarity, ties in the order of S), similarity.
    """
    values = symmetric_values(S)
    np.fill_diagonal(values, np.nan)
    best = largest_in_rows(values, n)
    return _list_pairs(S, values, np.repeat(np.arange(len(best)), best.shape[1]), best.ravel())


def distinct_pairs(S: pd.DataFrame, n: int) -> pd.DataFrame:
    """List the most similar pairs of features, each feature in at most one pair.

    Otherwise a group of near copies would fill the list.

    Parameters
    ----------
    S : pandas.DataFrame
        Similarity, M x M.
    n : int
        Number of pairs; fewer where fewer are defined.

    Returns
    -------
    pandas.DataFrame
        Columns feature, other, similarity, by falling similarity, ties in the order of S.
    """
    import pandas as pd

    values = symmetric_values(S)
    pairs: list[tuple[str, str, float]] = []
    best, other = np.full(len(values), -np.inf), np.zeros(len(values), dtype=np.intp)

    def search(rows: np.ndarray) -> None:
        """Find the most similar later feature of some rows."""
        for first in range(0, len(rows), PANEL):
            at = rows[first : first + PANEL]
            later = np.arange(len(values)) > at[:, None]
            panel = np.where(later & np.isfinite(values[at]), np.round(values[at], DIGITS), -np.inf)
            other[at] = panel.argmax(axis=1)
            best[at] = panel[np.arange(len(at)), other[at]]

    search(np.arange(len(values)))
    while len(pairs) < n and np.isfinite(best).any():
        one = int(best.argmax())
        taken = [one, int(other[one])]
        pairs.append((str(S.columns[one]), str(S.columns[taken[1]]), float(values[one, taken[1]])))
        values[taken] = values[:, taken] = np.nan
        best[taken] = -np.inf
        search(np.flatnonzero(np.isin(other, taken) & np.isfinite(best)))
    return pd.DataFrame(pairs, columns=["feature", "other", "similarity"])
