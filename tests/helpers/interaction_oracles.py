"""The statistics of interaction again, slowly and obviously: plain loops over Python numbers.

Undefined is None throughout. Norms, least squares and quantiles are written out; no scipy, no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain, combinations

Vector = Sequence[float]
Grid = Sequence[Sequence[float]]

NOWHERE, SHARED = -1, -2


def dot(a: Vector, b: Vector) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def solve(matrix: list[list[float]], right: list[float]) -> list[float] | None:
    """Gauss with pivots; None for a singular matrix."""
    n = len(right)
    rows = [[*matrix[i], right[i]] for i in range(n)]
    largest = max((abs(v) for row in matrix for v in row), default=0.0)
    for k in range(n):
        pivot = max(range(k, n), key=lambda i: abs(rows[i][k]))
        if abs(rows[pivot][k]) <= 1e-12 * largest:
            return None
        rows[k], rows[pivot] = rows[pivot], rows[k]
        for i in range(n):
            if i != k:
                factor = rows[i][k] / rows[k][k]
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[k], strict=True)]
    return [rows[k][n] / rows[k][k] for k in range(n)]


def left_over(target: Vector, parts: Sequence[Vector], weights: Vector) -> float:
    """The share of |target|^2 that a mixture leaves."""
    rest = list(target)
    for weight, part in zip(weights, parts, strict=True):
        rest = [r - weight * p for r, p in zip(rest, part, strict=True)]
    return dot(rest, rest) / dot(target, target)


def non_negative_share(target: Vector, parts: Sequence[Vector]) -> float:
    """Non-negative least squares by trying every set of parts that are not zero; the best feasible one is it."""
    best = 1.0
    places = range(len(parts))
    for chosen in chain.from_iterable(combinations(places, k) for k in range(1, len(parts) + 1)):
        used = [parts[k] for k in chosen]
        weights = solve([[dot(p, q) for q in used] for p in used], [dot(p, target) for p in used])
        if weights is not None and all(w >= 0 for w in weights):
            best = min(best, left_over(target, used, weights))
    return best


def variance_share(target: Vector, parts: Sequence[Vector]) -> float:
    """Least squares with an intercept, as a column of ones; collinear parts are left out one at a time."""
    mean = math.fsum(target) / len(target)
    variance = math.fsum((t - mean) ** 2 for t in target)
    columns: list[Vector] = [[1.0] * len(target)]
    for part in parts:
        tried = [*columns, part]
        if solve([[dot(p, q) for q in tried] for p in tried], [0.0] * len(tried)) is not None:
            columns = tried
    weights = solve([[dot(p, q) for q in columns] for p in columns], [dot(p, target) for p in columns])
    assert weights is not None
    return left_over(target, columns, weights) * dot(target, target) / variance


def second_difference(middle: Vector, fractions: Sequence[Vector], joint: Vector) -> tuple[float, int]:
    """Its norm over that of the joint response, and where it is largest."""
    difference = [m - math.fsum(f[k] for f in fractions) for k, m in enumerate(middle)]
    where = max(range(len(difference)), key=lambda k: abs(difference[k]))
    return math.sqrt(dot(difference, difference) / dot(joint, joint)), where


def lattice(parts: int, steps: int) -> set[tuple[float, ...]]:
    """All weights that are multiples of 1/steps and add up to 1, one unit after another."""
    if parts == 1:
        return {(1.0,)}
    points = set()
    for first in range(steps + 1):
        left = steps - first
        if left == 0:
            points.add((1.0, *[0.0] * (parts - 1)))
            continue
        for rest in lattice(parts - 1, left):
            points.add((first / steps, *(round(r * left) / steps for r in rest)))
    return points


def resampled(grid: Grid, height: int, width: int) -> list[list[float]]:
    """Bilinear between the centres of the cells; the outermost ones go on to the edge."""
    rows, columns = len(grid), len(grid[0])

    def between(at: int, there: int, here: int) -> tuple[int, int, float]:
        place = min(max((at + 0.5) * here / there - 0.5, 0.0), here - 1.0)
        low = min(int(place), here - 1)
        return low, min(low + 1, here - 1), place - low

    out = []
    for y in range(height):
        top, bottom, v = between(y, height, rows)
        line = []
        for x in range(width):
            left, right, u = between(x, width, columns)
            above = grid[top][left] * (1 - u) + grid[top][right] * u
            below = grid[bottom][left] * (1 - u) + grid[bottom][right] * u
            line.append(above * (1 - v) + below * v)
        out.append(line)
    return out


def territory(maps: Sequence[Grid]) -> tuple[list[list[int]], float | None]:
    """The owner of every position, and the share of those that fire where one fires alone."""
    height, width = max(len(m) for m in maps), max(len(m[0]) for m in maps)
    grids = [resampled(m, height, width) for m in maps]
    tops = [max(max(line) for line in grid) for grid in grids]
    owners, alone, firing = [], 0, 0
    for y in range(height):
        line = []
        for x in range(width):
            fires = [k for k, g in enumerate(grids) if tops[k] > 0 and g[y][x] > 0.1 * tops[k]]
            firing += bool(fires)
            alone += len(fires) == 1
            line.append(NOWHERE if not fires else fires[0] if len(fires) == 1 else SHARED)
        owners.append(line)
    return owners, alone / firing if firing else None


T975 = {2: 4.30265273, 3: 3.18244631, 4: 2.77644511, 9: 2.26215716}
"""The 97.5 % points of Student's t by degrees of freedom, from a printed table."""


def interval(values: Vector) -> tuple[float, float]:
    n = len(values)
    mean = math.fsum(values) / n
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    reach = T975[n - 1] * deviation / math.sqrt(n)
    return mean - reach, mean + reach


def benjamini_hochberg(p: Vector) -> list[float]:
    """The q-value of a hypothesis: the smallest level at which it would be rejected."""
    n, q = len(p), []
    for one in p:
        levels = []
        for other in p:
            if other >= one:
                rank = sum(v <= other for v in p)
                levels.append(other * n / rank)
        q.append(min(1.0, *levels))
    return q
