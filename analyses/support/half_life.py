"""How a descent leaves the image that it started from, and how soon, for `analyses.natural_start`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analyses.formulas.divergence import half_life
from analyses.support.study import Finding, interval, mean_finding, plain_finding, share_finding

FEWEST = 3
"""The fewest features whose mean difference has a say."""


@dataclass(frozen=True)
class Leaving:
    """How one feature's descent (or all at once) leaves its image.

    `own` and `aim` are the profile's correlations by frame: with that image's, and with the noise-started image of
    the same unit (mean over seeds). `floor` is the noise-started image's correlation with that image, `other` the
    final image's correlation with other features' noise-started images, `seeds` that of two seeds of the same feature,
    `blurred` that image's own correlation by frame under the same blur without gradient.
    `reached` is the activation from that image over that from noise, both above the noise's null image.
    """

    unit: str
    layer: str
    steps: np.ndarray
    own: np.ndarray
    aim: np.ndarray
    floor: float
    other: float
    seeds: float
    blurred: np.ndarray
    reached: float

    @property
    def half(self) -> float:
        """Steps until the correlation with that image has fallen half the way to its floor."""
        return half_life(self.steps, self.own, self.floor)

    @property
    def half_blurred(self) -> float:
        """The same under blur alone."""
        return half_life(self.steps, self.blurred, self.floor)


def mean_of(values: np.ndarray) -> float:
    """Return the mean of what is defined; NaN where nothing is."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")


def finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return values with NaN in place of what is infinite."""
    given = np.asarray(values, dtype=float)
    return np.where(np.isfinite(given), given, np.nan)


def early(these: Sequence[Leaving], which: str = "half") -> int:
    """Return how many half-lives lie within the first step, so that they are upper bounds."""
    return sum(getattr(r, which) == r.steps[1] for r in these if len(r.steps) > 1)


def sooner(these: Sequence[Leaving]) -> np.ndarray:
    """Return the blur's half-life less the feature's: two within the first step are 0 apart, never is the last step."""
    return np.array([min(r.half_blurred, r.steps[-1]) - min(r.half, r.steps[-1]) for r in these], dtype=float)


def half_findings(layer: str, these: Sequence[Leaving]) -> list[Finding]:
    """Return one layer's half-lives: how many lie within the first step, their mean, and the blur's less them."""
    found = []
    for which, words in (
        ("half", "half-life of the image's own profile"),
        ("half_blurred", "half-life under the recipe's blur alone (to the same ends)"),
    ):
        values = np.array([getattr(r, which) for r in these], dtype=float)
        known, within = int((~np.isnan(values)).sum()), early(these, which)
        if not known:
            continue
        text = f"{layer}: features whose {words} lies within the first step"
        found.append(share_finding(f"early_{which}:{layer}", within, known, text))
        if np.isfinite(values).any():
            bound = plain_finding(
                f"{which}:{layer}", mean_of(values), known, f"{layer}: {words} (at most)", unit="steps"
            )
            exact = mean_finding(f"{which}:{layer}", finite(values), f"{layer}: {words}", "steps")
            found.append(bound if within else exact)
        never = int(np.isinf(values).sum())
        if never and which == "half":
            words = f"{layer}: features that never left half of the image's own profile"
            found.append(plain_finding(f"never:{layer}", never, len(these), words))
    gained = sooner(these)
    if np.isfinite(gained).any():
        text = f"{layer}: the blur's half-life less the feature's, bounds taken as values"
        found.append(mean_finding(f"sooner:{layer}", gained, text, "steps"))
    return found


def left_behind(leavings: Sequence[Leaving]) -> str:
    """Return what the sentence says of half-lives: those within the first step, and whether they beat the blur's."""
    known = [r for r in leavings if not np.isnan(r.half)]
    if not known:
        return ""
    said = f"; half of the image's own response profile is left behind within the first step by {early(known)} of "
    said += f"{len(known)} features, under the recipe's blur alone by {early(known, 'half_blurred')}"
    gained = sooner(known)
    if np.isfinite(gained).sum() < FEWEST:
        return said
    mean, low, high = interval(gained)
    told = f"the blur's half-life less theirs is {mean:.2f} [{low:.2f}, {high:.2f}] steps, bounds taken as values"
    return f"{said}: sooner ({told})" if low > 0 else f"{said}: not shown to be sooner ({told})"
