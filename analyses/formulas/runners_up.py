"""Whether the highest other feature on an image belongs to that image, or is only the highest of many. No torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

EPS = 1e-9


@dataclass(frozen=True, eq=False)
class HeldOutRunnersUp:
    """The runners-up of T targets, chosen on the first seed and judged on the others; means over those seeds.

    `channel` holds T features, `share` their responses to the targets' images over the targets' own, `gap` the same
    after their mean on the other targets' images is taken off, `percentile` the share of those images that drive them
    at least as high (by chance a half), `p` that of percentiles no lower than a half. NaN where undefined.
    """

    channel: np.ndarray
    share: np.ndarray
    gap: np.ndarray
    percentile: np.ndarray
    p: float


def evaluate_held_out(A: np.ndarray, targets: np.ndarray) -> HeldOutRunnersUp:
    """Choose each target's runner-up on the first seed and judge it on the others.

    Parameters
    ----------
    A : S x T x M responses, seeds x images x features; image t is that of feature `targets[t]`
    targets : T channels, all different

    A target's runner-up is the other feature with the highest response to its image of seed 0. The highest of many is
    high on the image that it was chosen on; on the images of other seeds it is high only if it answers to the target.
    It is compared with itself on the other targets' images of the same seed, its own image left out. p is one-sided
    by Wilcoxon's signed ranks over the targets, percentile less a half. Undefined below 2 seeds, 3 targets or
    2 features, or where a response is not finite, or a target's own is not above `EPS`.
    """
    S, T, M = A.shape
    at, nothing = np.arange(T), np.full(T, np.nan)
    known = S >= 2 and T >= 3 and M >= 2 and np.isfinite(A).all()
    if not known or not (A[:, at, targets] > EPS).all():
        return HeldOutRunnersUp(nothing, nothing, nothing, nothing, float("nan"))
    first, later = A[0].astype(np.float64), A[1:].astype(np.float64)
    first[at, targets] = -np.inf
    channel = first.argmax(1)
    responses = later[:, :, channel]  # seed x image x target
    high = responses[:, at, at]
    others = ~np.eye(T, dtype=bool) & (targets[:, None] != channel)
    count = others.sum(0)
    own = later[:, at, targets]
    gap = (high - (responses * others).sum(1) / count) / own
    percentile = ((responses >= high[:, None]) & others).sum(1) / count
    return HeldOutRunnersUp(
        channel, (high / own).mean(0), gap.mean(0), percentile.mean(0), p_below_half(percentile.mean(0))
    )


def p_below_half(percentile: np.ndarray) -> float:
    """Return the one-sided p of Wilcoxon's signed ranks that values lie no lower than a half; 1 if all are a half."""
    apart = percentile - 0.5
    return float(stats.wilcoxon(apart, alternative="less").pvalue) if (np.abs(apart) > EPS).any() else 1.0
