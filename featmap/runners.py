"""Whether the highest other feature on an image belongs to that image, or is only the highest of many. No torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from featmap.reliability import seeded

DRAWS = 999
EPS = 1e-9


@dataclass(frozen=True, eq=False)
class Chosen:
    """How far the runners-up of T targets lie above what they have on the other images, over the target's activation.

    `gap` holds T values, `null` the mean over targets in each draw of permuted responses, `p` the share of draws (and
    the observed one) whose mean is not below the observed; NaN, and no draws, where undefined.
    """

    gap: np.ndarray
    null: np.ndarray
    p: float


def against_permuted(A: np.ndarray, targets: np.ndarray, draws: int = DRAWS, key: str = "runners") -> Chosen:
    """Compare the runners-up of features with those of responses that are permuted among the images.

    Parameters
    ----------
    A : T x M responses, images x features; row t is the image of feature `targets[t]`
    targets : T channels, all different
    draws : of permutations, each within every feature's responses to the images of *other* features

    A target's runner-up is the other feature with the highest response to its image. Its gap is that response less its
    mean on the other targets' images (its own image left out), over the target's own response. Being chosen as the
    highest of M makes a gap large by itself; a draw permutes each feature's responses among the images, which keeps
    every feature's responses and takes away what they have to do with the images, and chooses again. Undefined below
    3 targets or 2 features, or where a response is not finite, or a target's own is not above `EPS`.
    """
    T, M = A.shape
    known = T >= 3 and M >= 2 and np.isfinite(A).all()
    own = A[np.arange(T), targets] if known else np.zeros(T)
    if not known or not (own > EPS).all():
        return Chosen(np.full(T, np.nan), np.empty(0), float("nan"))
    held = A.astype(np.float64)
    held[np.arange(T), targets] = np.nan  # stays where it is
    count = np.isfinite(held).sum(0)
    sums = np.nansum(held, axis=0)

    def gaps(x: np.ndarray) -> np.ndarray:
        best = np.where(np.isfinite(x), x, -np.inf).argmax(1)
        high = x[np.arange(T), best]
        found: np.ndarray = (high - (sums[best] - high) / (count[best] - 1)) / own
        return found

    gap, rng, null = gaps(held), seeded("runners", key, T, M), np.empty(draws)
    for k in range(draws):
        moved = rng.permuted(held, axis=0)
        for t, j in enumerate(targets):  # what came to lie on the feature's own image changes places with the gap
            moved[np.flatnonzero(np.isnan(moved[:, j]))[0], j], moved[t, j] = moved[t, j], np.nan
        null[k] = gaps(moved).mean()
    return Chosen(gap, null, float((1 + (null >= gap.mean() - EPS).sum()) / (1 + draws)))
