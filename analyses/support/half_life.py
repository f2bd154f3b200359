"""Departure of a descent from its starting image, for `analyses.natural_start`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analyses.formulas.divergence import half_life
from analyses.support.findings import Finding, interval, mean_finding, share_finding, value_finding

MIN_FEATURES = 3
"""Fewest features whose mean difference is judged."""


@dataclass(frozen=True)
class Departure:
    """Departure of one descent, of a feature or of all at once, from its start.

    Parameters
    ----------
    unit, layer : str
        Unit that is maximised, and the layer whose response profile is compared.
    steps : numpy.ndarray
        T steps at which the image was kept.
    with_start : numpy.ndarray
        Correlation of the profile with that of the starting image, at each step.
    with_target : numpy.ndarray
        Correlation with the profile of the noise-started image of the same unit, at each step; mean over seeds.
    floor : float
        Correlation of the noise-started image's profile with that of the starting image.
    other : float
        Correlation of the final image's profile with other features' noise-started images.
    seeds : float
        Correlation of the profiles of two seeds of the same feature.
    blurred : numpy.ndarray
        Correlation with the starting image under the same blur without any gradient, at each step.
    reached : float
        Activation reached from that image divided by that from noise, both above the null image of the noise.
    """

    unit: str
    layer: str
    steps: np.ndarray
    with_start: np.ndarray
    with_target: np.ndarray
    floor: float
    other: float
    seeds: float
    blurred: np.ndarray
    reached: float

    @property
    def half(self) -> float:
        """Steps until the correlation with the start has fallen half way to its floor."""
        return half_life(self.steps, self.with_start, self.floor)

    @property
    def half_blurred(self) -> float:
        """Steps until the same under blur alone."""
        return half_life(self.steps, self.blurred, self.floor)


def mean_defined(values: np.ndarray) -> float:
    """Compute the mean of the finite values.

    Parameters
    ----------
    values : numpy.ndarray
        Values; non-finite ones are undefined.

    Returns
    -------
    float
        The mean; NaN where nothing is defined.
    """
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def finite_or_nan(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Replace infinite values by NaN.

    Parameters
    ----------
    values : array_like
        Values.

    Returns
    -------
    numpy.ndarray
        Values, float64.
    """
    array = np.asarray(values, dtype=float)
    return np.where(np.isfinite(array), array, np.nan)


def count_early(departures: Sequence[Departure], which: str = "half") -> int:
    """Count the half-lives within the first step, which are upper bounds.

    Parameters
    ----------
    departures : sequence of Departure
        Descents.
    which : str, default "half"
        "half" or "half_blurred".

    Returns
    -------
    int
        Number of descents.
    """
    return sum(getattr(d, which) == d.steps[1] for d in departures if len(d.steps) > 1)


def lead_over_blur(departures: Sequence[Departure]) -> np.ndarray:
    """Compute the half-life under blur alone minus that of the descent.

    Parameters
    ----------
    departures : sequence of Departure
        Descents.

    Returns
    -------
    numpy.ndarray
        One value for each descent, in steps; two half-lives within the first step differ by 0, and "never" counts as
        the last step.
    """
    return np.array([min(d.half_blurred, d.steps[-1]) - min(d.half, d.steps[-1]) for d in departures], dtype=float)


def half_life_findings(layer: str, departures: Sequence[Departure]) -> list[Finding]:
    """Summarise the half-lives of one layer.

    Parameters
    ----------
    layer : str
        Name of the layer.
    departures : sequence of Departure
        Descents of its features.

    Returns
    -------
    list of Finding
        Number of half-lives within the first step, their mean, and the lead over blur alone.
    """
    findings = []
    for which, words in (
        ("half", "half-life of the profile's correlation with the starting image"),
        ("half_blurred", "half-life under the recipe's blur alone (to the same end values)"),
    ):
        values = np.array([getattr(d, which) for d in departures], dtype=float)
        count, within = int((~np.isnan(values)).sum()), count_early(departures, which)
        if not count:
            continue
        text = f"{layer}: share of features whose {words} is within the first step"
        findings.append(share_finding(f"early_{which}:{layer}", within, count, text))
        if np.isfinite(values).any():
            bound = value_finding(
                f"{which}:{layer}", mean_defined(values), count, f"{layer}: {words} (at most)", unit="steps"
            )
            exact = mean_finding(f"{which}:{layer}", finite_or_nan(values), f"{layer}: {words}", "steps")
            findings.append(bound if within else exact)
        never = int(np.isinf(values).sum())
        if never and which == "half":
            words = f"{layer}: features whose correlation with the starting image never fell half way to its floor"
            findings.append(value_finding(f"never:{layer}", never, len(departures), words))
    lead = lead_over_blur(departures)
    if np.isfinite(lead).any():
        text = f"{layer}: half-life under blur alone minus the feature's half-life (within the first step: 1)"
        findings.append(mean_finding(f"sooner:{layer}", lead, text, "steps"))
    return findings


def half_life_sentence(departures: Sequence[Departure]) -> str:
    """Describe half-lives for the conclusion.

    Parameters
    ----------
    departures : sequence of Departure
        Descents.

    Returns
    -------
    str
        How many half-lives lie within the first step, and whether descents are faster than blur alone; empty where
        nothing is defined.
    """
    defined = [d for d in departures if not np.isnan(d.half)]
    if not defined:
        return ""
    text = (
        ". The profile's correlation with the starting image falls half way to its floor within the first step in "
        f"{count_early(defined)} of {len(defined)} features, under the recipe's blur alone in "
        f"{count_early(defined, 'half_blurred')}"
    )
    lead = lead_over_blur(defined)
    if np.isfinite(lead).sum() < MIN_FEATURES:
        return text
    mean, low, high = interval(lead)
    faster = "The descent is faster" if low > 0 else "The descent is not shown to be faster"
    return (
        f"{text}. {faster}: the half-life under blur alone is longer by {mean:.2f} [{low:.2f}, {high:.2f}] steps, "
        "where a half-life within the first step counts as one step, and one that is never reached as the last"
    )
