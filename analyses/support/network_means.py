"""Means of several networks, compared by Welch's test from what is stored: values, intervals and numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from analyses.support.findings import LEVEL, Finding, student_factor
from analyses.support.study import NETWORKS
from featmap.image_shape import format_size
from featmap.stats.reliability import Interval

UNKNOWN_SIZE = "size not recorded"
"""In place of the size of a network's images, where it is not known."""


@dataclass(frozen=True)
class Mean:
    """A mean with its standard error.

    Parameters
    ----------
    value, error : float
        Mean and standard error.
    count : int
        Number of features.
    """

    value: float
    error: float
    count: int


Means = dict[str, dict[str, Mean]]
"""Headline by network and layer, layers in order, so that the last layers of two networks are compared."""


def mean_and_error(finding: Finding | dict[str, Any]) -> Mean | None:
    """Recover mean and standard error from a finding or its stored form.

    Parameters
    ----------
    finding : Finding or dict
        A mean with a t-interval that is not cut.

    Returns
    -------
    Mean or None
        None without an interval.
    """
    record = finding if isinstance(finding, dict) else vars(finding)
    if record["value"] is None or record["low"] is None or record["count"] < 2:
        return None
    error = (record["high"] - record["low"]) / 2 / student_factor(record["count"])
    return Mean(float(record["value"]), error, int(record["count"]))


@dataclass(frozen=True)
class Comparison:
    """Two means compared.

    Parameters
    ----------
    direction : int
        -1 if the first mean is below the second, 1 if it is above, 0 if they are equal.
    p : float
        Welch's two-sided p.
    """

    direction: int
    p: float

    def below(self, level: float) -> bool:
        """Check whether the first mean is below the second, with p under a level."""
        return self.direction < 0 and self.p < level

    def above(self, level: float) -> bool:
        """Check whether the first mean is above the second, with p under a level."""
        return self.direction > 0 and self.p < level


def compare_means(one: Mean, two: Mean) -> Comparison:
    """Compare two means by Welch's test.

    Parameters
    ----------
    one, two : Mean
        The means.

    Returns
    -------
    Comparison
        Where neither mean has an error, p is 0 if they differ and 1 if they do not, as for `mean_difference`.
    """
    direction = int(np.sign(one.value - two.value))
    if not direction or one.error == two.error == 0:
        return Comparison(direction, 0.0 if direction else 1.0)
    spread = [m.error * np.sqrt(m.count) for m in (one, two)]
    test = stats.ttest_ind_from_stats(one.value, spread[0], one.count, two.value, spread[1], two.count, equal_var=False)
    return Comparison(direction, float(test.pvalue))


def mean_difference(one: Mean, two: Mean, level: float = LEVEL) -> Interval:
    """Compute the difference of two means with Welch's interval.

    Parameters
    ----------
    one, two : Mean
        The means.
    level : float, default LEVEL
        Level of the interval.

    Returns
    -------
    Interval
        The first mean minus the second.

    References
    ----------
    B. L. Welch, "The generalization of 'Student's' problem when several different population variances are involved",
    Biometrika 34, 1947.
    """
    gap, variances = one.value - two.value, (one.error**2, two.error**2)
    total = sum(variances)
    if total == 0:
        return Interval(gap, gap, gap)
    freedom = total**2 / sum(v**2 / (m.count - 1) for v, m in zip(variances, (one, two), strict=True))
    reach = float(stats.t.ppf((1 + level) / 2, freedom) * np.sqrt(total))
    return Interval(gap, gap - reach, gap + reach)


def compare_modules(one: Mapping[str, Mean], two: Mapping[str, Mean]) -> list[Comparison]:
    """Compare two networks layer by layer.

    Parameters
    ----------
    one, two : mapping of str to Mean
        Means by layer.

    Returns
    -------
    list of Comparison
        The last layer of the first network with the last of the second, and so on.
    """
    return [compare_means(a, b) for a, b in zip(reversed(one.values()), reversed(two.values()), strict=False)]


def compare_phrase(one: Mapping[str, Mean], two: Mapping[str, Mean], names: tuple[str, str]) -> str:
    """Say which of two networks' shares is the lower one, layer by layer.

    Parameters
    ----------
    one, two : mapping of str to Mean
        Means by layer.
    names : tuple of str
        Names of the networks.

    Returns
    -------
    str
        Part of a sentence, the last layers first.
    """
    parts = []
    pairs = zip(reversed(one.items()), reversed(two.items()), compare_modules(one, two), strict=False)
    words = {-1: "below", 0: "equal to", 1: "above"}
    for (here, a), (there, b), found in pairs:
        parts.append(
            f"{names[0]}'s share in {here}, {a.value:+.3g}, is {words[found.direction]} {names[1]}'s in {there}, "
            f"{b.value:+.3g} (p {found.p:.2g})"
        )
    return ", and ".join(parts)


def format_means(means: Mapping[str, Mean]) -> str:
    """Format a network's means for a sentence.

    Parameters
    ----------
    means : mapping of str to Mean
        Means by layer.

    Returns
    -------
    str
        Such as "+0.295 and +0.108".
    """
    return " and ".join(f"{m.value:+.3g}" for m in means.values())


def describe_images(descents: Iterable[tuple[Sequence[Any], int]]) -> str:
    """Say how large images are and after how many steps.

    Parameters
    ----------
    descents : iterable of (sequence, int)
        Sizes and number of steps of each recipe used.

    Returns
    -------
    str
        Those of the last, such as "224 pixels, 24 steps"; `UNKNOWN_SIZE` where there is none.
    """
    texts = [f"{format_size(sizes[-1])} pixels, {steps} steps" for sizes, steps in descents]
    return texts[-1] if texts else UNKNOWN_SIZE


def describe_networks(means: Means, images: Mapping[str, str]) -> str:
    """List the means of every network, with numbers of features and the images that they are of.

    Parameters
    ----------
    means : dict
        Means by network and layer.
    images : mapping of str to str
        Description of each network's images.

    Returns
    -------
    str
        Part of a sentence; networks of the article first.
    """
    ordered = [*(m for m in NETWORKS if m in means), *sorted(set(means) - set(NETWORKS))]
    return "; ".join(
        f"{m} {format_means(means[m])} ({' and '.join(means[m])}, "
        f"n = {' and '.join(dict.fromkeys(str(v.count) for v in means[m].values()))}, {images.get(m, UNKNOWN_SIZE)})"
        for m in ordered
    )
