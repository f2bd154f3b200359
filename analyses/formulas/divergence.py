"""How two descents part step by step, and how long what one started from is still to be seen in it. No torch."""

from __future__ import annotations

import numpy as np

EPS = 1e-12
GRAY_LEVEL = 1 / 255
"""What a picture of 8 bits can show at least, in pixels from 0 to 1."""
EARLY = 0.1
"""A difference grows freely up to this share of its largest value; nearer to it images themselves may hold it."""
STILL = 2.0
"""A difference lies still while it is at most so many times its first value."""
LEAST = 3


def rms_distances(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Return the root mean square difference of images, in units of their pixels.

    Parameters
    ----------
    one, two : ... x 3 x H x W; they are stretched against each other as NumPy does

    Returns
    -------
    ..., float64, from 0; NaN where an image is not finite
    """
    with np.errstate(invalid="ignore"):  # infinity less infinity is no distance
        gap = np.asarray(one, dtype=np.float64) - np.asarray(two, dtype=np.float64)
    found: np.ndarray = np.sqrt(np.square(gap).mean(axis=(-3, -2, -1)))
    return np.where(np.isfinite(found), found, np.nan)


def growth_factor(steps: np.ndarray, gaps: np.ndarray) -> float:
    """Return the factor a step by which a difference grows while it grows.

    exp of the slope of a least-squares line through log(gap) over the growing part: from the last gap within `STILL`
    times the first one (a difference may lie still for long) to the first that reaches `EARLY` of the largest (there
    the images hold it). Over all gaps where the largest is not above the first over `EARLY`: such a one never grew.
    Where a part of the steps is known only, it jumps between two of them, and the factor is a lower bound.

    Parameters
    ----------
    steps : T, rising
    gaps : T, from 0, such as `distances`

    Returns
    -------
    above 1 where it grows; NaN where fewer than `LEAST` gaps are above zero and finite
    """
    at, gap = np.asarray(steps, dtype=np.float64), np.asarray(gaps, dtype=np.float64)
    known = np.isfinite(gap) & (gap > 0)
    at, gap = at[known], gap[known]
    if len(gap) < LEAST:
        return float("nan")
    first, last = 0, len(gap) - 1
    if gap.max() > gap[0] / EARLY:
        last = int(np.argmax(gap >= EARLY * gap.max()))
        first = int(np.flatnonzero(gap[:last] <= STILL * gap[0])[-1])
    part = slice(first, last + 1)
    return float(np.exp(np.polyfit(at[part] - at[first], np.log(gap[part]), 1)[0]))


def first_crossing(steps: np.ndarray, gaps: np.ndarray, level: float) -> float:
    """Return the first of the steps at which a gap is above a level; infinity where none is."""
    above = np.flatnonzero(np.asarray(gaps, dtype=np.float64) > level)
    return float(steps[above[0]]) if len(above) else float("inf")


def profile_correlation(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation of response profiles over the features that both define.

    Parameters
    ----------
    one, two : ... x D, each feature's response in a unit in which features compare; NaN for one that has none

    Returns
    -------
    ..., in [-1, 1]; NaN below three features, or where a profile varies by no more than `EPS` of its mean square
    """
    x, y = np.broadcast_arrays(np.asarray(one, dtype=np.float64), np.asarray(two, dtype=np.float64))
    known = np.isfinite(x) & np.isfinite(y)
    count = known.sum(-1)
    size = np.maximum(count, 1)
    spreads, centred = [], []
    for values in (x, y):
        given = np.where(known, values, 0.0)
        less = np.where(known, given - (given.sum(-1) / size)[..., None], 0.0)
        spread = np.square(less).sum(-1)
        spreads.append(np.where(spread > EPS * np.square(given).sum(-1), spread, np.nan))
        centred.append(less)
    found = (centred[0] * centred[1]).sum(-1) / np.sqrt(spreads[0] * spreads[1])
    return np.where(count >= LEAST, np.clip(found, -1, 1), np.nan)


def half_life(steps: np.ndarray, values: np.ndarray, end: float) -> float:
    """Return the step at which a value has fallen half the way from its first to `end`, between two steps linearly.

    Within the first step there is nothing to tell by how it falls: then that step, an upper bound.

    Parameters
    ----------
    steps, values : T; the values fall from values[0]
    end : where they would end, below values[0]

    Returns
    -------
    in steps; infinity where they never fall so far; NaN where a value before that is undefined or `end` lies no lower
    """
    at, given = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    half = (given[0] + end) / 2
    if not end < given[0]:  # NaN as well
        return float("nan")
    below = np.flatnonzero(given <= half)
    last = int(below[0]) if len(below) else len(given) - 1
    if not np.isfinite(given[: last + 1]).all():
        return float("nan")
    if not len(below):
        return float("inf")
    if last == 1:
        return float(at[1])
    share = (given[last - 1] - half) / (given[last - 1] - given[last])
    return float(at[last - 1] + share * (at[last] - at[last - 1]))
