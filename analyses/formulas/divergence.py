"""Divergence of two descents step by step, and half-life of the starting image in a descent, without torch."""

from __future__ import annotations

import numpy as np

from featmap.stats.correlation import VARIANCE_FLOOR

GRAY_LEVEL = 1 / 255
"""Smallest difference that a picture of 8 bits can show, for pixels in [0, 1]."""
EARLY = 0.1
"""Share of its largest value up to which a difference grows freely; above, the size of the images may limit it."""
STILL = 2.0
"""A difference has not begun to grow while it is at most this many times its first value."""
LEAST = 3
"""Fewest values for a growth factor or a correlation."""


def rms_distances(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Compute the root mean square difference of images.

    Parameters
    ----------
    one, two : numpy.ndarray
        Images, `... x C x H x W`; they broadcast against each other.

    Returns
    -------
    numpy.ndarray
        `...`, float64, from 0, in the unit of the pixels; NaN where an image is not finite.
    """
    with np.errstate(invalid="ignore"):  # infinity minus infinity has no distance
        gap = np.asarray(one, dtype=np.float64) - np.asarray(two, dtype=np.float64)
    rms: np.ndarray = np.sqrt(np.square(gap).mean(axis=(-3, -2, -1)))
    return np.where(np.isfinite(rms), rms, np.nan)


def growth_factor(steps: np.ndarray, gaps: np.ndarray) -> float:
    """Compute the factor per step by which a difference grows, while it grows.

    This is exp of the slope of a least-squares line through log(gap) over the growing part: from the last gap within
    `STILL` times the first one (a difference may stay small for long) to the first gap that reaches `EARLY` of the
    largest (from there on the size of the images limits it). Where the largest gap is at most the first over `EARLY`,
    the difference never grew, and the line runs through all gaps. Where only some of the steps are known, a difference
    may jump between two of them, and the factor is a lower bound.

    Parameters
    ----------
    steps : numpy.ndarray
        T steps, rising.
    gaps : numpy.ndarray
        T differences from 0, such as `rms_distances`.

    Returns
    -------
    float
        Above 1 where the difference grows; NaN where fewer than `LEAST` gaps are positive and finite.
    """
    at, gap = np.asarray(steps, dtype=np.float64), np.asarray(gaps, dtype=np.float64)
    positive = np.isfinite(gap) & (gap > 0)
    at, gap = at[positive], gap[positive]
    if len(gap) < LEAST:
        return float("nan")
    first, last = 0, len(gap) - 1
    if gap.max() > gap[0] / EARLY:
        last = int(np.argmax(gap >= EARLY * gap.max()))
        first = int(np.flatnonzero(gap[:last] <= STILL * gap[0])[-1])
    part = slice(first, last + 1)
    return float(np.exp(np.polyfit(at[part] - at[first], np.log(gap[part]), 1)[0]))


def first_crossing(steps: np.ndarray, gaps: np.ndarray, level: float) -> float:
    """Find the first step at which a difference exceeds a level.

    Parameters
    ----------
    steps : numpy.ndarray
        T steps, rising.
    gaps : numpy.ndarray
        T differences.
    level : float
        Level to exceed.

    Returns
    -------
    float
        The step; infinity where no difference exceeds the level.
    """
    above = np.flatnonzero(np.asarray(gaps, dtype=np.float64) > level)
    return float(steps[above[0]]) if len(above) else float("inf")


def profile_correlation(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Compute Pearson's correlation of response profiles.

    Only the features that are defined in both profiles enter.

    Parameters
    ----------
    one, two : numpy.ndarray
        `... x D`, responses on comparable scales; NaN for undefined ones.

    Returns
    -------
    numpy.ndarray
        `...`, in [-1, 1]; NaN below three features, or where the variance of a profile is at most `VARIANCE_FLOOR` of
        its mean square.
    """
    x, y = np.broadcast_arrays(np.asarray(one, dtype=np.float64), np.asarray(two, dtype=np.float64))
    defined = np.isfinite(x) & np.isfinite(y)
    count = defined.sum(-1)
    size = np.maximum(count, 1)
    spreads, centred = [], []
    for values in (x, y):
        filled = np.where(defined, values, 0.0)
        deviation = np.where(defined, filled - (filled.sum(-1) / size)[..., None], 0.0)
        spread = np.square(deviation).sum(-1)
        spreads.append(np.where(spread > VARIANCE_FLOOR * np.square(filled).sum(-1), spread, np.nan))
        centred.append(deviation)
    r = (centred[0] * centred[1]).sum(-1) / np.sqrt(spreads[0] * spreads[1])
    return np.where(count >= LEAST, np.clip(r, -1, 1), np.nan)


def half_life(steps: np.ndarray, values: np.ndarray, end: float) -> float:
    """Compute the step at which a value has fallen half way to `end`.

    Steps are interpolated linearly. A value that falls so far within the first step gives that step: an upper bound,
    since nothing is known of how it falls there.

    Parameters
    ----------
    steps : numpy.ndarray
        T steps, rising.
    values : numpy.ndarray
        T values that fall from the first one.
    end : float
        Value at which they would end, below the first one.

    Returns
    -------
    float
        In steps; infinity where the values never fall so far; NaN where an earlier value is undefined or `end` is not
        below the first one.
    """
    at, value = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    half = (value[0] + end) / 2
    if not end < value[0]:  # true of NaN too
        return float("nan")
    below = np.flatnonzero(value <= half)
    last = int(below[0]) if len(below) else len(value) - 1
    if not np.isfinite(value[: last + 1]).all():
        return float("nan")
    if not len(below):
        return float("inf")
    if last == 1:
        return float(at[1])
    share = (value[last - 1] - half) / (value[last - 1] - value[last])
    return float(at[last - 1] + share * (at[last] - at[last - 1]))
