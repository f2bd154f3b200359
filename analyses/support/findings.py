"""Findings of a study: means, shares, ratios and differences with their intervals, and their words in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from featmap import FeatmapError
from featmap.stats.reliability import Interval

LEVEL = 0.95
"""Level of the intervals."""
ANY, POSITIVE, SHARE = (-np.inf, np.inf), (0.0, np.inf), (0.0, 1.0)
"""Ranges of possible values, at which intervals are cut: any value, a length, a share."""
CLAIM_WORDS = {True: "holds", False: "does not hold", None: "is not decided"}
"""Words of a sentence for whether a part of a claim holds."""


@dataclass(frozen=True)
class Finding:
    """One measured value with its interval.

    Parameters
    ----------
    name : str
        Name of the finding, unique within the study.
    value : float or None
        The value; None: undefined.
    low, high : float or None
        Ends of the interval; None where there is none.
    count : int
        Number of independent cases.
    words : str
        Description that needs no context.
    unit : str, default ""
        Unit; "" for a pure number.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    count: int
    words: str
    unit: str = ""


def interval(
    values: Sequence[float] | np.ndarray, level: float = LEVEL, within: tuple[float, float] = ANY
) -> tuple[float, float, float]:
    """Compute the mean of independent values and its t-interval.

    Give one value for each independent case (a feature, after averaging over seeds), never pairs that share features.

    Parameters
    ----------
    values : array_like
        Values; non-finite ones are left out.
    level : float, default LEVEL
        Level of the interval.
    within : tuple of float, default ANY
        Range of possible values, at which the interval is cut.

    Returns
    -------
    mean, low, high : float
        The mean and the ends of its interval; with one value the interval is that value.

    Raises
    ------
    FeatmapError
        If no value is defined.
    """
    defined = np.asarray(values, dtype=float)
    defined = defined[np.isfinite(defined)]
    if not len(defined):
        raise FeatmapError("a study has no defined value to average; give other --layers or more --features")
    mean = float(defined.mean())
    spread = float(defined.std(ddof=1) / np.sqrt(len(defined))) if len(defined) > 1 else 0.0
    reach = spread * student_factor(len(defined), level)
    return mean, max(mean - reach, within[0]), min(mean + reach, within[1])


def student_factor(count: int, level: float = LEVEL) -> float:
    """Compute the half width of a mean's t-interval in units of its standard error.

    Parameters
    ----------
    count : int
        Number of independent values.
    level : float, default LEVEL
        Level of the interval.

    Returns
    -------
    float
        Quantile of Student's distribution with `count - 1` degrees of freedom, at least one.
    """
    return float(stats.t.ppf((1 + level) / 2, max(1, count - 1)))


def mean_finding(
    name: str, values: Sequence[float] | np.ndarray, words: str, unit: str = "", within: tuple[float, float] = ANY
) -> Finding:
    """Compute the mean of independent values with its t-interval.

    Parameters
    ----------
    name : str
        Name of the finding.
    values : array_like
        Values; non-finite ones are left out.
    words : str
        Description.
    unit : str, default ""
        Unit.
    within : tuple of float, default ANY
        Range of possible values.

    Returns
    -------
    Finding
        The mean.
    """
    array = np.asarray(values, dtype=float)
    mean, low, high = interval(array, within=within)
    return Finding(name, mean, low, high, int(np.isfinite(array).sum()), words, unit)


def median_interval(values: Sequence[float] | np.ndarray, level: float = LEVEL) -> tuple[float, float, float]:
    """Compute the median of independent values and its exact interval between two of them.

    The interval holds whatever the distribution is, and infinite values count as any other: below the median of the
    population lies each value with a chance of a half, and the two ends are the narrowest pair of ranks, symmetric,
    between which it lies with at least this chance.

    Parameters
    ----------
    values : array_like
        Values; NaN is left out.
    level : float, default LEVEL
        Level of the interval.

    Returns
    -------
    median, low, high : float
        The median and the ends of its interval, which are NaN where the values are too few (at 95 %, below six); all
        NaN without a value.

    References
    ----------
    H. A. David and H. N. Nagaraja, "Order Statistics", 3rd edition, 2003, section 7.1.
    """
    ranked = np.sort(np.asarray(values, dtype=float))
    ranked = ranked[~np.isnan(ranked)]
    if not len(ranked):
        return np.nan, np.nan, np.nan
    middle = ranked[[(len(ranked) - 1) // 2, len(ranked) // 2]]
    median = float(middle[0] if middle[0] == middle[1] else middle.mean())
    outside = int(stats.binom.ppf((1 - level) / 2, len(ranked), 0.5))  # values beyond each end
    outside -= stats.binom.cdf(outside, len(ranked), 0.5) > (1 - level) / 2
    if outside < 0:
        return median, np.nan, np.nan
    return median, float(ranked[outside]), float(ranked[-1 - outside])


def mean_or_undefined(
    name: str, values: Sequence[float] | np.ndarray, words: str, unit: str = "", within: tuple[float, float] = ANY
) -> Finding:
    """Compute `mean_finding`, or an undefined finding where no value is defined.

    Parameters
    ----------
    name : str
        Name of the finding.
    values : array_like
        Values; non-finite ones are left out.
    words : str
        Description.
    unit : str, default ""
        Unit.
    within : tuple of float, default ANY
        Range of possible values.

    Returns
    -------
    Finding
        The mean.
    """
    if np.isfinite(np.asarray(values, dtype=float)).any():
        return mean_finding(name, values, words, unit, within)
    return value_finding(name, np.nan, 0, words, unit=unit)


def value_finding(
    name: str, value: float, count: int, words: str, low: float = np.nan, high: float = np.nan, unit: str = ""
) -> Finding:
    """Wrap a value, with or without an interval, as a finding.

    Parameters
    ----------
    name : str
        Name of the finding.
    value : float
        The value; non-finite ones are undefined.
    count : int
        Number of independent cases.
    words : str
        Description.
    low, high : float, default NaN
        Ends of the interval.
    unit : str, default ""
        Unit.

    Returns
    -------
    Finding
        The value.
    """
    numbers = [float(v) if np.isfinite(v) else None for v in (value, low, high)]
    return Finding(name, *numbers, count, words, unit)


def positive_logs(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Compute natural logarithms, with NaN for values that are not positive.

    Parameters
    ----------
    values : array_like
        Values.

    Returns
    -------
    numpy.ndarray
        Logarithms.
    """
    array = np.asarray(values, dtype=float)
    return np.log(np.where(array > 0, array, np.nan))


def geometric_findings(name: str, values: Sequence[float] | np.ndarray, words: str) -> list[Finding]:
    """Compute the geometric mean of independent positive values with its interval.

    Parameters
    ----------
    name : str
        Name of the finding.
    values : array_like
        Values; those that are not positive are left out.
    words : str
        Description.

    Returns
    -------
    list of Finding
        The mean; empty where no value is left.
    """
    logs = positive_logs(values)
    if not np.isfinite(logs).any():
        return []
    mean, low, high = np.exp(interval(logs))
    return [Finding(name, float(mean), float(low), float(high), int(np.isfinite(logs).sum()), words)]


def ratio_finding(name: str, values: pd.Series, words: str) -> Finding:
    """Compute the geometric mean of features' ratios with its interval.

    Parameters
    ----------
    name : str
        Name of the finding.
    values : pandas.Series
        Ratios; those not above 0 are left out.
    words : str
        Description.

    Returns
    -------
    Finding
        The mean; undefined where no ratio is left.
    """
    return next(iter(geometric_findings(name, values, words)), value_finding(name, np.nan, 0, words))


def difference_finding(name: str, first: pd.Series, second: pd.Series, words: str) -> Finding:
    """Compute the difference of two groups' means, with Welch's interval.

    Parameters
    ----------
    name : str
        Name of the finding.
    first, second : pandas.Series
        Values of the two groups.
    words : str
        Description.

    Returns
    -------
    Finding
        Mean of the first minus mean of the second; undefined below 2 values in either.
    """
    a, b = (v[np.isfinite(v)].to_numpy(dtype=float) for v in (first, second))
    if len(a) < 2 or len(b) < 2:
        return value_finding(name, np.nan, len(a) + len(b), words)
    ends = stats.ttest_ind(a, b, equal_var=False).confidence_interval(LEVEL)
    return value_finding(name, float(a.mean() - b.mean()), len(a) + len(b), words, float(ends.low), float(ends.high))


def share_finding(name: str, hits: int, count: int, words: str) -> Finding:
    """Compute a share with Wilson's interval.

    Parameters
    ----------
    name : str
        Name of the finding.
    hits, count : int
        Number of hits, and of all cases.
    words : str
        Description.

    Returns
    -------
    Finding
        The share.
    """
    ends = stats.binomtest(hits, count).proportion_ci(LEVEL, "wilson")
    return Finding(name, hits / count, float(ends.low), float(ends.high), count, words)


def share_or_undefined(name: str, hits: pd.Series, words: str) -> Finding:
    """Compute the share of features that are hits, with Wilson's interval.

    Parameters
    ----------
    name : str
        Name of the finding.
    hits : pandas.Series
        Booleans by feature.
    words : str
        Description.

    Returns
    -------
    Finding
        The share; undefined where there is no feature.
    """
    return (
        share_finding(name, int(hits.sum()), len(hits), words) if len(hits) else value_finding(name, np.nan, 0, words)
    )


def format_value(value: float | None, form: str = ".2f") -> str:
    """Format a number for a sentence.

    Parameters
    ----------
    value : float or None
        Number; None: undefined.
    form : str, default ".2f"
        Format specification.

    Returns
    -------
    str
        The number.
    """
    return "undefined" if value is None else format(value, form)


def format_interval(finding: Finding | Interval, form: str = ".2f") -> str:
    """Format a finding for a sentence, with its interval where it has one.

    Parameters
    ----------
    finding : Finding or Interval
        Value with or without an interval.
    form : str, default ".2f"
        Format specification.

    Returns
    -------
    str
        Such as "0.52 [0.40, 0.64]".
    """
    if finding.low is None or finding.high is None:
        return format_value(finding.value, form)
    return (
        f"{format_value(finding.value, form)} [{format_value(finding.low, form)}, {format_value(finding.high, form)}]"
    )
