"""How far the joint image of several units is from the sum of its parts: the formulas. No torch.

Notation: x images, d = x less the null image, r standardised responses less those at the null image, z a unit's
activation less that at the null image. A figure whose denominator is below its floor is undefined: NaN here, an
empty cell in every table. Source: the article, section "Layer and Neuron Interactions", which looks at such images;
the figures are this library's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import comb

import numpy as np
from scipy import ndimage, optimize, stats

EPS = 1e-5
TINY = float(np.finfo(np.float32).tiny)
FIRING_SHARE = 0.1
ROUNDING = 1e-4
WEAK_SHARE = 0.05
NOWHERE, SHARED = -1, -2


def response_deviations(responses: np.ndarray, sizes: np.ndarray | None = None) -> np.ndarray:
    """Return each feature's standard deviation over images (N x D), NaN for features that do not vary.

    `sizes` is the mean of a feature's absolute activations where `responses` has their mean (default: the same but
    for the sign). The floor is `EPS` times the largest: float32 means are rounded by about a hundredth of it, also
    those of a feature whose activations cancel.

    `responses` are those of one layer: a feature also counts as not varying where its deviation is below `WEAK` times
    the layer's median. Features that are all but dead on such images would otherwise be all that r is made of: on
    the bundled network two or three of a thousand.
    """
    values = responses.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinite responses, which leave no spread
        spread, largest = values.std(axis=0), np.abs(values if sizes is None else sizes).max(axis=0, initial=0)
    varies = np.isfinite(spread) & (spread > np.maximum(EPS * largest, TINY))
    median = np.median(spread[varies]) if varies.any() else 0.0
    return np.where(varies & (spread >= WEAK_SHARE * median), spread, np.nan)


def standardise_responses(responses: np.ndarray, null: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Return r: responses (... x D) less those at the null image, over `deviations`; features without one dropped."""
    kept = np.isfinite(deviation)
    return (responses[..., kept].astype(np.float64) - null[kept]) / deviation[kept]


def quotient(over: float, under: float, largest: float) -> float:
    """Return over / under, NaN where `under` is not above `EPS` times `largest`."""
    return float(over / under) if np.isfinite(over) and under > max(EPS * abs(largest), TINY) else float("nan")


def response_nonlinearity(joint: np.ndarray, parts: np.ndarray) -> float:
    """Return the share of |r_ab|^2 that non-negative least squares on the parts' r does not explain.

    Parameters
    ----------
    joint : D
    parts : n x D

    Returns
    -------
    float
        in [0, 1]: 0 where the joint image does what a mixture of its parts does. Undefined where |r_ab| is
        within `EPS` of 0, measured by the largest of the parts.
    """
    if not (np.isfinite(joint).all() and np.isfinite(parts).all()) or not joint.size:
        return float("nan")
    size = float(np.linalg.norm(joint))
    largest = max(float(np.linalg.norm(p)) for p in parts)
    if size <= max(EPS * largest, TINY):
        return float("nan")
    _, rest = optimize.nnls(parts.T / (largest or 1.0), joint / size)
    return float(min(rest**2, 1.0))


def image_nonlinearity(joint: np.ndarray, parts: np.ndarray) -> float:
    """Return the share of the variance of d_ab that least squares on the parts' d, with a constant, does not explain.

    `joint` is an image less the null image, of any shape; `parts` n of them. In [0, 1]; undefined where d_ab varies
    by less than `EPS` of the most varying part.
    """
    target = joint.astype(np.float64).ravel() - joint.mean(dtype=np.float64)
    others = parts.astype(np.float64).reshape(len(parts), -1)
    others = others - others.mean(1, keepdims=True)
    size, largest = float(np.linalg.norm(target)), float(np.linalg.norm(others, axis=1).max())
    if not (np.isfinite(size) and np.isfinite(largest)) or size <= max(EPS * largest, TINY):
        return float("nan")
    weights, *_ = np.linalg.lstsq(others.T / (largest or 1.0), target / size, rcond=1e-10)
    rest = target / size - weights @ others / (largest or 1.0)
    return float(min(rest @ rest, 1.0))


@dataclass(frozen=True)
class SecondDifference:
    """Its norm over that of r_ab, and the feature (its place among all D probed ones) where it is largest."""

    size: float
    feature: int | None


def second_difference(
    middle: np.ndarray, fractions: np.ndarray, joint: np.ndarray, deviation: np.ndarray
) -> SecondDifference:
    """Return which features compute with the units together.

    r(null + d_a/2 + d_b/2) - r(null + d_a/2) - r(null + d_b/2), for n units with d/n of each.

    Parameters
    ----------
    middle : D', r at the null image plus all d/n
    fractions : n x D', r at the null image plus d_i/n
    joint : D', r_ab
    deviation : D, from `deviations`; the D' features with one are those in the other arrays
    """
    difference = middle - fractions.sum(0)
    largest = max(float(np.linalg.norm(part)) for part in fractions)
    size = quotient(float(np.linalg.norm(difference)), float(np.linalg.norm(joint)), largest)
    if not difference.size or not np.abs(difference).max() > EPS * largest:  # rounding, or not finite
        return SecondDifference(size, None)
    return SecondDifference(size, int(np.flatnonzero(np.isfinite(deviation))[np.abs(difference).argmax()]))


def self_saturation(whole: np.ndarray, fraction: np.ndarray, parts: int) -> float:
    """Return the second difference of a unit with itself: |r(x_a) - n r(null + d_a/n)| over |r(x_a)|."""
    size = float(np.linalg.norm(whole))
    return quotient(float(np.linalg.norm(whole - parts * fraction)), size, float(np.linalg.norm(fraction)))


def simplex_lattice(parts: int, most: int = 100) -> np.ndarray:
    """Return the weights of blends, P x n, each row adding up to 1: the finest even lattice of at most `most` points.

    For two units: 0, 0.05, ... 1.
    """
    steps = 20
    while steps > 1 and comb(steps + parts - 1, parts - 1) > most:
        steps -= 1
    rows = [c for c in product(range(steps + 1), repeat=parts - 1) if sum(c) <= steps]
    return np.array([[*c, steps - sum(c)] for c in rows], dtype=float) / steps


def joint_gain(joint: np.ndarray, blends: np.ndarray, weights: np.ndarray, best: np.ndarray) -> float:
    """Return (J(x_ab) - max J(blend)) over sum_i w_i z_i(x_i), which is n under `solo` balance.

    Parameters
    ----------
    joint : n, each unit's z on the joint image
    blends : P x n, its z on the blends of the solo images
    weights : n
    best : n, z_i(x_i)
    """
    top = float((blends @ weights).max())
    scale = float(weights @ best)
    return quotient(float(joint @ weights) - top, scale, 0.0)


@dataclass(frozen=True, eq=False)
class Territory:
    """Who fires where on an image.

    `owner` y x x: the unit that fires there alone, `SHARED` where several do, `NOWHERE`; `divided` the share of
    firing positions where only one fires, in [0, 1]; `correlation` of the maps, mean over pairs, undefined for
    constant maps and a single position.
    """

    owner: np.ndarray
    divided: float
    correlation: float


def territory(maps: Sequence[np.ndarray]) -> Territory:
    """Return the territories of units from their activation maps (each y x x, of any grid).

    Maps are resampled (bilinear) to the larger grid; a position fires above a tenth of its map's maximum, and
    a map without a positive value fires nowhere.
    """
    shape = tuple(max(m.shape[k] for m in maps) for k in (0, 1))
    grids = np.stack([_resampled(np.asarray(m, dtype=np.float64), shape) for m in maps])
    if not np.isfinite(grids).all():
        return Territory(np.full(shape, NOWHERE), float("nan"), float("nan"))
    top = grids.max((1, 2), keepdims=True)
    fires = (grids > FIRING_SHARE * top) & (top > 0)
    count = fires.sum(0)
    owner = np.where(count == 0, NOWHERE, np.where(count == 1, fires.argmax(0), SHARED))
    divided = float((count == 1).sum() / (count > 0).sum()) if (count > 0).any() else float("nan")
    pairs = [_correlation(grids[i].ravel(), grids[j].ravel()) for i, j in combinations(range(len(grids)), 2)]
    return Territory(owner, divided, float(np.mean(pairs)))


def _resampled(grid: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if grid.shape == shape:
        return grid
    zoom = [s / g for s, g in zip(shape, grid.shape, strict=True)]
    found: np.ndarray = ndimage.zoom(grid, zoom, order=1, mode="nearest", grid_mode=True)
    return found


def _correlation(one: np.ndarray, two: np.ndarray) -> float:
    for values in (one, two):
        if values.std() <= max(EPS * np.abs(values).max(), TINY):
            return float("nan")
    return float(np.clip(np.corrcoef(one, two)[0, 1], -1, 1))


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Return the interval of the mean over seeds by Student's t; None for fewer than three defined values."""
    given = np.array([v for v in values if np.isfinite(v)])
    if len(given) < 3:
        return None
    reach = stats.t.ppf((1 + level) / 2, len(given) - 1) * given.std(ddof=1) / np.sqrt(len(given))
    return float(given.mean() - reach), float(given.mean() + reach)


def p_above_zero(excess: Sequence[float]) -> float:
    """Return the p-value of "the mean excess over seeds is not above 0" (one-sided t-test); NaN below three seeds.

    An excess below `ROUNDING` is none: a linear network has as much.
    """
    given = np.array([v for v in excess if np.isfinite(v)])
    if len(given) < 3:
        return float("nan")
    if given.mean() <= ROUNDING or np.ptp(given) == 0:
        return 0.0 if given.mean() > ROUNDING else 1.0
    return float(stats.ttest_1samp(given, 0.0, alternative="greater").pvalue)


def q_values(p: np.ndarray) -> np.ndarray:
    """Return q-values after Benjamini and Hochberg (1995, 10.1111/j.2517-6161.1995.tb02031.x); NaN stays NaN."""
    q, known = np.full(len(p), np.nan), np.isfinite(p)
    if known.any():
        q[known] = stats.false_discovery_control(p[known])
    return q
