"""Slow and obvious second implementations of what is measured between two layers; undefined is None throughout.

Layers are told apart by the names of their features, rows of A that are no feature of either are further images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from tests.helpers import oracles
from tests.helpers.oracles import EPS, TINY, Table, pearson


def coactivation(
    A: pd.DataFrame, null: pd.Series, rows: Sequence[str], columns: Sequence[str], live: Sequence[str]
) -> Table:
    found: Table = {}
    images = [i for i in A.index if i in rows or i in columns]
    for j in columns:
        seen = [float(A.loc[i, j]) for i in images]
        floor = max(EPS * max(abs(v) for v in [*seen, float(null[j])] if math.isfinite(v)), TINY)
        own = float(A.loc[j, j]) - float(null[j]) if j in A.index and j in live else math.nan
        for i in rows:
            value = float(A.loc[i, j])
            defined = math.isfinite(value) and math.isfinite(own) and own > floor
            found[i, j] = (value - float(null[j])) / own if defined else None
    return found


def relative(
    A: pd.DataFrame, null: pd.Series, rows: Sequence[str], columns: Sequence[str], live: Sequence[str]
) -> Table:
    found: Table = {}
    for i in rows:
        own = float(A.loc[i, i])
        floor = max(EPS * max((abs(v) for v in A.loc[list(rows), i] if math.isfinite(v)), default=0.0), TINY)
        for j in columns:
            value = float(A.loc[i, j])
            defined = math.isfinite(value) and math.isfinite(own) and own > floor and j in live
            found[i, j] = value / own if defined else None
    return found


def selective(
    A: pd.DataFrame, null: pd.Series, rows: Sequence[str], columns: Sequence[str], live: Sequence[str]
) -> Table:
    table = oracles.selective(A.loc[list(rows), list(columns)], null, [i for i in rows if i in live])
    return {(i, j): value if j in live else None for (i, j), value in table.items()}


def profile(A: pd.DataFrame, rows: Sequence[str], columns: Sequence[str], live: Sequence[str]) -> Table:
    images = [i for i in A.index if i in live]
    one, two = ([f for f in names if f in live] for names in (rows, columns))
    images = [i for i in images if all(any(math.isfinite(A.loc[i, f]) for f in names) for names in (one, two))]
    A = oracles.roots(A)
    a, b = _centred(A.loc[images, one]), _centred(A.loc[images, two])
    found: Table = dict.fromkeys([(i, j) for i in rows for j in columns])
    for i, x in a.items():
        for j, y in b.items():
            flat = min(oracles._deviation(x), oracles._deviation(y)) <= EPS
            found[i, j] = None if flat else pearson(x, y)
    return found


def _centred(block: pd.DataFrame) -> dict[str, list[float]]:
    """Columns that vary and are finite throughout, standardised, less each image's mean over them."""
    Z = oracles.selective(block, pd.Series(0.0, index=block.columns))
    whole = [j for j in block.columns if len(block) and all(Z[i, j] is not None for i in block.index)]
    mean = {i: oracles._mean([Z[i, j] for j in whole]) for i in block.index} if whole else {}
    return {j: [round(Z[i, j] - mean[i], 12) for i in block.index] for j in whole}


def best(S: Table, rows: Sequence[str], columns: Sequence[str]) -> float | None:
    tops = [max(seen) for i in rows if (seen := [v for j in columns if (v := S[i, j]) is not None])]
    return oracles._mean(tops) if tops else None
