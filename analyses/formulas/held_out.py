"""Test whether the runner-up on an image responds to it or is only the highest of many features, without torch.

The runner-up on the maximising image of a target is the other feature with the highest response to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from featmap.stats.correlation import TIE, TINY


@dataclass(frozen=True, eq=False)
class HeldOutRunnersUp:
    """Runners-up of T targets, chosen on the first seed and evaluated on the others.

    All values are means over the other seeds, NaN where undefined.

    Parameters
    ----------
    channel : numpy.ndarray
        T features, the runners-up.
    share : numpy.ndarray
        Their responses to the targets' images, divided by the targets' own responses.
    gap : numpy.ndarray
        The same after subtracting their mean response to the other targets' images.
    percentile : numpy.ndarray
        Share of the other targets' images that drive them at least as high; 0.5 by chance.
    p : float
        p of the hypothesis that the percentiles are 0.5 or more.
    """

    channel: np.ndarray
    share: np.ndarray
    gap: np.ndarray
    percentile: np.ndarray
    p: float


def evaluate_held_out(A: np.ndarray, targets: np.ndarray) -> HeldOutRunnersUp:
    """Choose each target's runner-up on the first seed and evaluate it on the others.

    The highest of many features is high on the image that it was chosen on; on the images of other seeds it is high
    only if it responds to the target. It is compared with itself on the other targets' images of the same seed, its own
    image left out. p is one-sided by Wilcoxon's signed-rank test over the targets, percentile minus 0.5.

    Parameters
    ----------
    A : numpy.ndarray
        Responses, `S x T x M`: seeds x images x features; image t is that of feature `targets[t]`.
    targets : numpy.ndarray
        T channels, all different.

    Returns
    -------
    HeldOutRunnersUp
        T values each. Undefined below 2 seeds, 3 targets or 2 features, or where a response is not finite, or a
        target's own response is not above `TINY`.
    """
    S, T, M = A.shape
    at, undefined = np.arange(T), np.full(T, np.nan)
    enough = S >= 2 and T >= 3 and M >= 2 and np.isfinite(A).all()
    if not enough or not (A[:, at, targets] > TINY).all():
        return HeldOutRunnersUp(undefined, undefined, undefined, undefined, float("nan"))
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
    """Test by Wilcoxon's signed ranks whether values lie below a half.

    Parameters
    ----------
    percentile : numpy.ndarray
        Values in [0, 1].

    Returns
    -------
    float
        One-sided p of the hypothesis that they lie at a half or above; 1 if all are a half.
    """
    deviation = percentile - 0.5
    if not (np.abs(deviation) > TIE).any():
        return 1.0
    return float(stats.wilcoxon(deviation, alternative="less").pvalue)
