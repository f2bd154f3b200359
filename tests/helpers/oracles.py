"""Slow and obvious second implementations, in plain loops over Python numbers, that tests compare against.

Undefined is None throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations

import pandas as pd
from scipy.stats import spearmanr

EPS = 1e-6
TINY = 2.0**-126

Table = dict[tuple[str, str], float | None]


def _cells(A: pd.DataFrame) -> Table:
    cells: Table = {}
    for i in A.index:
        for j in A.columns:
            value = float(A.loc[i, j])
            cells[i, j] = value if math.isfinite(value) else None
    return cells


def _largest(values: Sequence[float | None]) -> float:
    return max((abs(v) for v in values if v is not None), default=0.0)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _deviation(values: Sequence[float]) -> float:
    mean = _mean(values)
    return math.sqrt(_mean([(v - mean) ** 2 for v in values]))


def _quotient(over: float, under: float, largest: float) -> float | None:
    return over / under if under > max(EPS * largest, TINY) else None


def raw(A: pd.DataFrame, null: pd.Series, live: Sequence[str] | None = None) -> Table:
    return _cells(A)


def coactivation(A: pd.DataFrame, null: pd.Series, live: Sequence[str] | None = None) -> Table:
    cells = _cells(A)
    found: Table = {}
    for i, j in cells:
        own, n, here = cells.get((j, j)), float(null[j]), cells[i, j]
        largest = _largest([n] + [cells[r, j] for r in A.index])
        found[i, j] = None if own is None or here is None else _quotient(here - n, own - n, largest)
    return found


def relative(A: pd.DataFrame, null: pd.Series, live: Sequence[str] | None = None) -> Table:
    cells = _cells(A)
    found: Table = {}
    for i, j in cells:
        own, here = cells.get((i, i)), cells[i, j]
        if own is None or here is None:
            found[i, j] = None
        else:
            found[i, j] = _quotient(here, own, _largest([cells[r, i] for r in A.index]))
    return found


def selective(A: pd.DataFrame, null: pd.Series, live: Sequence[str] | None = None) -> Table:
    cells = _cells(A)
    found: Table = {}
    for j in A.columns:
        seen = [cells[i, j] for i in A.index if live is None or i in live]
        numbers = [v for v in seen if v is not None]
        spread = _deviation(numbers) if numbers else 0.0
        for i in A.index:
            here = cells[i, j]
            defined = here is not None and spread > max(EPS * _largest(numbers), TINY)
            found[i, j] = (here - _mean(numbers)) / spread if defined and here is not None else None
    return found


def roots(A: pd.DataFrame) -> pd.DataFrame:
    """Square roots of the magnitudes of all cells, each with the sign of its cell."""
    rooted = {j: [(1 if v > 0 else -1) * math.sqrt(abs(v)) for v in map(float, A[j])] for j in A.columns}
    return pd.DataFrame(rooted, index=A.index, columns=A.columns)


def profile(A: pd.DataFrame, null: pd.Series, live: Sequence[str] | None = None, method: str = "pearson") -> Table:
    return linear_profile(roots(A), null, live, method)


def linear_profile(
    A: pd.DataFrame, null: pd.Series, live: Sequence[str] | None = None, method: str = "pearson"
) -> Table:
    rows = [i for i in A.index if live is None or i in live]
    columns = [j for j in A.columns if live is None or j in live]
    cells = _cells(A)
    rows = [i for i in rows if any(cells[i, j] is not None for j in columns)]
    Z = selective(A.loc[rows, columns], null)
    whole = [j for j in columns if all(Z[i, j] is not None for i in rows)]
    centred = {i: {j: Z[i, j] - _mean([Z[i, c] for c in whole]) for j in whole} for i in rows}
    found: Table = {}
    for j in columns:
        for k in columns:
            if j not in whole or k not in whole:
                found[j, k] = None
                continue
            a, b = ([round(centred[i][x], 12) for i in rows] for x in (j, k))
            flat = min(_deviation(a), _deviation(b)) <= EPS
            found[j, k] = None if flat else (pearson if method == "pearson" else _spearman)(a, b)
    return found


def pearson(a: Sequence[float], b: Sequence[float]) -> float:
    top = _mean([(x - _mean(a)) * (y - _mean(b)) for x, y in zip(a, b, strict=True)])
    return top / (_deviation(a) * _deviation(b))


def _spearman(a: Sequence[float], b: Sequence[float]) -> float:
    return float(spearmanr(a, b).statistic)


MEASURES: dict[str, Callable[..., Table]] = {
    "raw": raw,
    "coactivation": coactivation,
    "relative": relative,
    "selective": selective,
    "profile": profile,
    "linear_profile": linear_profile,
}


def identity_rate(A: pd.DataFrame, live: Sequence[str]) -> float:
    """Share of live features whose own image has the largest response; finite, varying A only."""
    images = [i for i in A.index if i in live]
    found = [j for j in A.columns if j in live and j in A.index]
    return _mean([float(A.loc[j, j] == max(A.loc[i, j] for i in images)) for j in found])


def neighbours(S: pd.DataFrame, k: int) -> dict[tuple[str, str], float]:
    """Edges of the union k-nearest-neighbour graph; no two similarities of a feature may be equal."""
    edges = {}
    for a in S.columns:
        others = sorted((b for b in S.columns if b != a and S.loc[a, b] > 0), key=lambda b: -S.loc[a, b])
        for b in others[:k]:
            edges[min(a, b), max(a, b)] = float(S.loc[a, b])
    return edges


def adjusted_rand(one: Sequence[int], two: Sequence[int]) -> float:
    """Adjusted Rand index by counting pairs of things one at a time."""
    both = only_one = only_two = pairs = 0
    for i, j in combinations(range(len(one)), 2):
        pairs += 1
        both += one[i] == one[j] and two[i] == two[j]
        only_one += one[i] == one[j]
        only_two += two[i] == two[j]
    if both == only_one == only_two:
        return 1.0
    chance = only_one * only_two / pairs
    return (both - chance) / ((only_one + only_two) / 2 - chance)


def consensus(runs: Sequence[Sequence[int]]) -> list[set[int]]:
    """Evidence accumulation: join the two groups closest on average until none are within 0.5."""
    n = len(runs[0])
    apart = [[1 - _mean([float(r[i] == r[j]) for r in runs]) for j in range(n)] for i in range(n)]
    groups = [{i} for i in range(n)]
    while len(groups) > 1:
        distance, a, b = min(
            (_mean([apart[i][j] for i in one for j in two]), x, y)
            for (x, one), (y, two) in combinations(enumerate(groups), 2)
        )
        if distance > 0.5:
            break
        groups[a] |= groups.pop(b)
    return groups
