"""Interaction of units: how far their joint image is from the sum of its parts.

Notation: x images, d = x less the null image, r standardised responses less those at the null image, z a unit's
activation less that at the null image. A statistic whose denominator is not above its floor is undefined: NaN.

Source: the article, section "Layer and Neuron Interactions", which looks at such images; the statistics are this
library's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import comb

import numpy as np
from scipy import ndimage, optimize, stats

from featmap.stats.correlation import DIFFERENCE_FLOOR, RANK_FLOOR, floors, pearson

FIRING_SHARE = 0.1
"""Share of its map's maximum above which a position fires."""
BALANCE = "solo"
"""Default balance of joint descents: each unit's activation is divided by that of its solo image."""
ROUNDING = 1e-4
"""Excess of a statistic over its floor that a linear network may have by rounding."""
WEAK_SHARE = 0.05
"""Share of the layer's median deviation below which a feature counts as not varying."""
NOWHERE, SHARED = -1, -2
"""Marks of `Territory.owner`: no unit fires, several do."""


def response_deviations(responses: np.ndarray, sizes: np.ndarray | None = None) -> np.ndarray:
    """Compute each feature's standard deviation over images.

    A feature whose deviation is below `WEAK_SHARE` times the layer's median counts as not varying: divided by so small
    a deviation, features that are almost dead on these images (two or three of a thousand in the bundled network) would
    make up nearly all of r.

    Parameters
    ----------
    responses : numpy.ndarray
        Responses of one layer, N images x D features.
    sizes : numpy.ndarray, optional
        Mean absolute activation of each feature, N x D; default: absolute responses. The rounding error of a mean
        depends on these, even where positive and negative activations cancel.

    Returns
    -------
    numpy.ndarray
        Population standard deviations, D, in the layer's own units; NaN for features that do not vary by more than
        `DIFFERENCE_FLOOR` times their largest size.
    """
    values = responses.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinite responses, which leave no deviation
        deviation, largest = values.std(axis=0), np.abs(values if sizes is None else sizes).max(axis=0, initial=0)
    varies = np.isfinite(deviation) & (deviation > floors(largest, DIFFERENCE_FLOOR))
    median = np.median(deviation[varies]) if varies.any() else 0.0
    return np.where(varies & (deviation >= WEAK_SHARE * median), deviation, np.nan)


def standardise_responses(responses: np.ndarray, null: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Compute r: responses less those at the null image, over their deviations.

    Parameters
    ----------
    responses : numpy.ndarray
        ... x D.
    null : numpy.ndarray
        Responses at the null image, D.
    deviation : numpy.ndarray
        Deviations from `response_deviations`, D; NaN for features that do not vary.

    Returns
    -------
    numpy.ndarray
        ... x D', float64, in standard deviations; features without a deviation are dropped.
    """
    varies = np.isfinite(deviation)
    return (responses[..., varies].astype(np.float64) - null[varies]) / deviation[varies]


def quotient(numerator: float, denominator: float, largest: float) -> float:
    """Divide, where the denominator is above its floor.

    Parameters
    ----------
    numerator, denominator : float
        Numbers; the denominator is a difference of responses.
    largest : float
        Larger magnitude of the two responses whose difference the denominator is; 0 if rounding is no concern.

    Returns
    -------
    float
        The quotient; NaN where the denominator is not above the larger of `TINY` and `DIFFERENCE_FLOOR` times
        `largest`.
    """
    above = denominator > floors(abs(largest), DIFFERENCE_FLOOR)
    return float(numerator / denominator) if np.isfinite(numerator) and above else float("nan")


def retention(joint: float, solo: float) -> float:
    """Compute the retention of a unit: the share of its solo response that it keeps.

    Parameters
    ----------
    joint : float
        z of the unit on the joint image.
    solo : float
        Its z on its solo image.

    Returns
    -------
    float
        ``z_a(x_ab) / z_a(x_a)``, unbounded: 1 where the unit responds to the joint image as to its own, 0 where it does
        no more than on the null image. NaN where the solo z is not above `TINY`.
    """
    return quotient(joint, solo, 0.0)


def additive_retentions(crosstalk: np.ndarray, lengths: np.ndarray, agreement: float) -> np.ndarray:
    """Compute the retentions of units that do not interact.

    In a linear network, under steps of one length and solo balance, a unit gets its own share of the joint gradient and
    the others' cross-talk, and the sum is scaled to one step. A unit whose gradient is shortened by the blur has a
    shorter solo image and therefore a larger weight.

    Parameters
    ----------
    crosstalk : numpy.ndarray
        Share of its own best response that each unit (row) gives to each unit's solo image (column), n x n; 1 on the
        diagonal.
    lengths : numpy.ndarray
        Root mean square of each solo image less the null image, n.
    agreement : float
        Mean cosine of the units' gradients.

    Returns
    -------
    numpy.ndarray
        ``sum_j crosstalk[i, j] q_j / sqrt(sum_j q_j^2 + agreement sum_(j != k) q_j q_k)`` with q = 1 / lengths, at most
        1: ``1 / sqrt(2)`` for two units that have nothing in common, 1 for duplicates. It is exact in a linear network
        whose gradients have one spectrum, and within some percent in others. NaN where an argument is undefined or the
        gradients cancel.
    """
    n = len(lengths)
    with np.errstate(divide="ignore", invalid="ignore"):
        q = np.min(lengths) / lengths
        squared = np.square(q).sum() + agreement * (q.sum() ** 2 - np.square(q).sum())
        # a cross-talk that a ReLU cuts off is too high, and with it the quotient
        kept = np.minimum(crosstalk @ q / np.sqrt(squared), 1.0)
    defined = np.isfinite(kept) & (squared > RANK_FLOOR * n)
    return np.where(defined, kept, np.nan)


def crosstalk(on_other: float, solo: float) -> float:
    """Compute the cross-talk of a unit: its share of response to another's solo image.

    Parameters
    ----------
    on_other : float
        z of the unit on the solo image of another unit.
    solo : float
        Its z on its own solo image.

    Returns
    -------
    float
        ``z_b(x_a) / z_b(x_b)``, unbounded: 1 where another unit's image drives the unit as strongly as its own, 0 where
        it does no more than the null image. NaN where the solo z is not above `TINY`.
    """
    return quotient(on_other, solo, 0.0)


def response_nonlinearity(joint: np.ndarray, parts: np.ndarray) -> float:
    """Compute the share of the joint response that no mixture of the parts explains.

    That is the share of ``|r_ab|^2`` left unexplained by non-negative least squares on the parts' r.

    Parameters
    ----------
    joint : numpy.ndarray
        r at the joint image, D.
    parts : numpy.ndarray
        r at the solo images, n x D.

    Returns
    -------
    float
        In [0, 1]: 0 where the joint image does what a mixture of its parts does. NaN where ``|r_ab|`` is not above
        `DIFFERENCE_FLOOR` times the largest of the parts.
    """
    if not (np.isfinite(joint).all() and np.isfinite(parts).all()) or not joint.size:
        return float("nan")
    size = float(np.linalg.norm(joint))
    largest = max(float(np.linalg.norm(p)) for p in parts)
    if size <= floors(largest, DIFFERENCE_FLOOR):
        return float("nan")
    # Both sides are scaled to about 1: the solver's tolerance is absolute.
    _, residual = optimize.nnls(parts.T / (largest or 1.0), joint / size)
    return float(min(residual**2, 1.0))


def image_nonlinearity(joint: np.ndarray, parts: np.ndarray) -> float:
    """Compute the share of the joint image's variance that its parts do not explain.

    That is the share of the variance of d_ab left unexplained by least squares on the parts' d and a constant.

    Parameters
    ----------
    joint : numpy.ndarray
        d of the joint image, of any shape.
    parts : numpy.ndarray
        d of the n solo images, n of that shape.

    Returns
    -------
    float
        In [0, 1]: 0 where the joint image is a linear combination of its parts. NaN where the variation of d_ab is not
        above `DIFFERENCE_FLOOR` times that of the part that varies most.
    """
    target = joint.astype(np.float64).ravel() - joint.mean(dtype=np.float64)
    others = parts.astype(np.float64).reshape(len(parts), -1)
    others = others - others.mean(1, keepdims=True)
    size, largest = float(np.linalg.norm(target)), float(np.linalg.norm(others, axis=1).max())
    if not (np.isfinite(size) and np.isfinite(largest)) or size <= floors(largest, DIFFERENCE_FLOOR):
        return float("nan")
    # The cut-off drops directions in which equal parts differ by rounding, such as those of a unit with itself.
    weights, *_ = np.linalg.lstsq(others.T / (largest or 1.0), target / size, rcond=RANK_FLOOR)
    residual = target / size - weights @ others / (largest or 1.0)
    return float(min(residual @ residual, 1.0))


@dataclass(frozen=True)
class SecondDifference:
    """Second difference of the responses to several units.

    Parameters
    ----------
    size : float
        Its norm divided by that of r_ab, 0 or more; NaN where undefined.
    feature : int or None
        Position among all D probed features where it is largest; None where it is no more than rounding error.
    sign : float
        Share of its square in features whose response to all parts together is larger than the sum of their responses
        to each, less the share in those where it is smaller, in [-1, 1]: 1 for an AND of the parts, -1 for an OR or
        XOR, and the same for the negatives of these: size counts, not direction. 0 where it is no more than rounding
        error.
    """

    size: float
    feature: int | None
    sign: float


def second_difference(
    middle: np.ndarray, fractions: np.ndarray, joint: np.ndarray, deviation: np.ndarray
) -> SecondDifference:
    """Compute how far the response to all parts is from the sum of the responses.

    For two units ``r(null + d_a/2 + d_b/2) - r(null + d_a/2) - r(null + d_b/2)``; for n units with d/n of each.

    Parameters
    ----------
    middle : numpy.ndarray
        r at the null image plus all d/n, D'.
    fractions : numpy.ndarray
        r at the null image plus d_i/n, n x D'.
    joint : numpy.ndarray
        r_ab, D'.
    deviation : numpy.ndarray
        Deviations from `response_deviations`, D; the D' features with one are those in the other arrays.

    Returns
    -------
    SecondDifference
        Size, 0 where the network is linear between these images, and the feature where it is largest.
    """
    difference = middle - fractions.sum(0)
    largest = max(float(np.linalg.norm(part)) for part in fractions)
    size = quotient(float(np.linalg.norm(difference)), float(np.linalg.norm(joint)), largest)
    if not difference.size or not np.abs(difference).max() > DIFFERENCE_FLOOR * largest:  # rounding, or not finite
        return SecondDifference(size, None, 0.0)
    feature = int(np.flatnonzero(np.isfinite(deviation))[np.abs(difference).argmax()])
    squares = np.square(difference / np.abs(difference).max())
    grows = np.sign(np.abs(middle) - np.abs(fractions.sum(0)))
    return SecondDifference(size, feature, float((grows * squares).sum() / squares.sum()))


def curvature(mixed: np.ndarray, slopes: np.ndarray, noise: float = DIFFERENCE_FLOOR) -> float:
    """Compute the size of the mixed second derivative along two directions.

    For a function with a second derivative it is d_a' H d_b, the Hessian between the two directions, and the central
    difference is the same but for the fourth order in the step. A network of ReLUs and max pooling is linear almost
    everywhere and its Hessian zero; the central difference is the mean of the mixed derivative over the square of the
    four points, in which the kinks between linear pieces count.

    Parameters
    ----------
    mixed : numpy.ndarray
        Mixed derivative of each feature, D, or its central difference over the squared step.
    slopes : numpy.ndarray
        Derivative, or central difference over the step, along each direction: 2 x D.
    noise : float, default DIFFERENCE_FLOOR
        Share of the larger slope's norm up to which a mixed derivative is rounding error.

    Returns
    -------
    float
        ``|mixed| / |slopes_a + slopes_b|``, 0 or more; 0 where no feature's derivative is above rounding error. NaN
        where the slopes cancel.
    """
    if not (np.isfinite(mixed).all() and np.isfinite(slopes).all()) or not mixed.size:
        return float("nan")
    largest = max(float(np.linalg.norm(part)) for part in slopes)
    size = quotient(float(np.linalg.norm(mixed)), float(np.linalg.norm(slopes.sum(0))), largest)
    return size if np.abs(mixed).max() > noise * largest else 0.0 * size


def self_saturation(whole: np.ndarray, fraction: np.ndarray, parts: int) -> float:
    """Compute the second difference of a unit with itself.

    Parameters
    ----------
    whole : numpy.ndarray
        r at the unit's solo image, D.
    fraction : numpy.ndarray
        r at the null image plus d/n, D.
    parts : int
        n.

    Returns
    -------
    float
        ``|r(x_a) - n r(null + d_a/n)|`` divided by ``|r(x_a)|``, 0 or more: 0 where responses grow linearly.
    """
    size = float(np.linalg.norm(whole))
    return quotient(float(np.linalg.norm(whole - parts * fraction)), size, float(np.linalg.norm(fraction)))


def simplex_lattice(parts: int, most: int = 100) -> np.ndarray:
    """List the weights of blends of several images.

    Parameters
    ----------
    parts : int
        Number of images n.
    most : int, default 100
        Largest number of blends.

    Returns
    -------
    numpy.ndarray
        P x n, each row adding up to 1: the finest even lattice on the simplex, in steps of 1/20 or wider, that has at
        most `most` points. For two units: 0, 0.05, ... 1.
    """
    steps = 20
    while steps > 1 and comb(steps + parts - 1, parts - 1) > most:
        steps -= 1
    rows = [c for c in product(range(steps + 1), repeat=parts - 1) if sum(c) <= steps]
    return np.array([[*c, steps - sum(c)] for c in rows], dtype=float) / steps


def joint_gain(joint: np.ndarray, blends: np.ndarray, weights: np.ndarray, best: np.ndarray) -> float:
    """Compute the gain of the joint descent over the best blend of the solo images.

    Parameters
    ----------
    joint : numpy.ndarray
        Each unit's z on the joint image, n.
    blends : numpy.ndarray
        Its z on the blends of the solo images, P x n.
    weights : numpy.ndarray
        Weights w of the units in the joint objective J, n.
    best : numpy.ndarray
        z_i(x_i), n.

    Returns
    -------
    float
        ``(J(x_ab) - max J(blend)) / sum_i w_i z_i(x_i)``; the divisor is n under `solo` balance. High where the joint
        descent reaches what no blend does, below 0 where a blend is better; NaN where the divisor is not above `TINY`.
    """
    top = float((blends @ weights).max())
    scale = float(weights @ best)
    return quotient(float(joint @ weights) - top, scale, 0.0)


@dataclass(frozen=True, eq=False)
class Territory:
    """Which unit fires where on an image.

    Parameters
    ----------
    owner : numpy.ndarray
        y x x: the unit that fires there alone, `SHARED` where several do, `NOWHERE` where none does.
    divided : float
        Share of firing positions where only one fires, in [0, 1]; NaN where none fires.
    correlation : float
        Pearson's correlation of the maps, mean over pairs, in [-1, 1]; NaN for constant maps and a single position.
    """

    owner: np.ndarray
    divided: float
    correlation: float


def territory(maps: Sequence[np.ndarray]) -> Territory:
    """Compute the territories of units from their activation maps.

    Maps are resampled (bilinear) to the larger grid; a position fires above `FIRING_SHARE` of its map's maximum, and a
    map without a positive value fires nowhere.

    Parameters
    ----------
    maps : sequence of numpy.ndarray
        Activation map of each unit, each y x x, of any grid.

    Returns
    -------
    Territory
        Undefined where a map is not finite.
    """
    shape = tuple(max(m.shape[k] for m in maps) for k in (0, 1))
    grids = np.stack([_resample(np.asarray(m, dtype=np.float64), shape) for m in maps])
    if not np.isfinite(grids).all():
        return Territory(np.full(shape, NOWHERE), float("nan"), float("nan"))
    top = grids.max((1, 2), keepdims=True)
    fires = (grids > FIRING_SHARE * top) & (top > 0)
    count = fires.sum(0)
    owner = np.where(count == 0, NOWHERE, np.where(count == 1, fires.argmax(0), SHARED))
    divided = float((count == 1).sum() / (count > 0).sum()) if (count > 0).any() else float("nan")
    flat = grids.reshape(len(grids), -1)
    pairs = [pearson(one, two, DIFFERENCE_FLOOR) for one, two in combinations(flat, 2)]
    return Territory(owner, divided, float(np.mean(pairs)))


def _resample(grid: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Resample a map bilinearly, as torch's `interpolate` does without aligned corners."""
    if grid.shape == shape:
        return grid
    zoom = [s / g for s, g in zip(shape, grid.shape, strict=True)]
    resampled: np.ndarray = ndimage.zoom(grid, zoom, order=1, mode="nearest", grid_mode=True)
    return resampled


def p_above_zero(excess: Sequence[float]) -> float:
    """Test by a one-sided t-test whether the mean excess over seeds is above 0.

    Parameters
    ----------
    excess : sequence of float
        Excess of a statistic over its floor for each seed; values that are not finite are left out. A mean of at most
        `ROUNDING` counts as 0, since a linear network may reach it by rounding.

    Returns
    -------
    float
        p, low where the excess is above 0; 1 where the mean counts as 0, and 0 where all seeds have the same excess
        above that; NaN below three seeds.
    """
    finite = np.array([v for v in excess if np.isfinite(v)])
    if len(finite) < 3:
        return float("nan")
    if finite.mean() <= ROUNDING or np.ptp(finite) == 0:
        return 0.0 if finite.mean() > ROUNDING else 1.0
    return float(stats.ttest_1samp(finite, 0.0, alternative="greater").pvalue)


def q_values(p: np.ndarray) -> np.ndarray:
    """Adjust p-values for the false discovery rate.

    Parameters
    ----------
    p : numpy.ndarray
        p-values, NaN where undefined.

    Returns
    -------
    numpy.ndarray
        q-values, in [0, 1], of the same length; NaN stays NaN.

    References
    ----------
    Benjamini & Hochberg (1995), doi 10.1111/j.2517-6161.1995.tb02031.x.
    """
    q, defined = np.full(len(p), np.nan), np.isfinite(p)
    if defined.any():
        q[defined] = stats.false_discovery_control(p[defined])
    return q
