"""Correlations, cosines, roots, standardising, and the floors below which a denominator counts as rounding.

All statistics, in `featmap` and in `analyses`, take these from here, so that each has one definition and one rule for
what is undefined. Undefined values are NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

FLOOR = 1e-6
"""Share of the largest magnitude at or below which a denominator, a length or a standard deviation counts as 0.

Responses are measured in float32. A millionth is about 16 times its unit roundoff of 2**-24: less is rounding, and a
quotient by it would say nothing. The floor goes by feature (or by row), so that it moves with the feature's own scale.
"""
VARIANCE_FLOOR = FLOOR**2
"""`FLOOR` for a variance or a power, as a share of the mean square or of the largest power."""
DIFFERENCE_FLOOR = 10 * FLOOR
"""`FLOOR` for differences of float32 responses, such as a response less that at the null image.

Both terms are rounded by about 1e-7 of the activations that they average, however small the difference is: a tenfold
floor leaves two correct digits.
"""
TINY = float(np.finfo(np.float32).tiny)
"""Least floor, for a largest magnitude of 0: smaller float32 numbers are subnormal and lose digits."""
TINY_POWER = TINY**2
"""`TINY` for squares and powers."""
RANK_FLOOR = 1e-10
"""Share of the largest singular value at or below which least squares count one as 0.

Less than `FLOOR`: the sums are float64, and directions that differ by more than their rounding may explain something.
"""
DIGITS = 12
"""Decimals to which similarities are ranked and compared: later ones depend on the order in which a sum was taken."""
TIE = 10.0**-DIGITS
"""Difference up to which two statistics count as equal, for the same reason."""


def floors(largest: np.ndarray | float, share: float = FLOOR) -> np.ndarray:
    """Compute the floor of a denominator from the largest magnitude of its kind.

    Parameters
    ----------
    largest : numpy.ndarray or float
        Largest absolute value of each feature (or row), of any shape.
    share : float, default FLOOR
        `FLOOR`, or `DIFFERENCE_FLOOR` for differences of float32 responses.

    Returns
    -------
    numpy.ndarray
        ``share * largest``, at least `TINY`; a denominator is defined above it.
    """
    floor: np.ndarray = np.maximum(share * largest, TINY)
    return floor


def largest_magnitude(values: np.ndarray) -> np.ndarray:
    """Compute the largest finite magnitude in each column.

    Parameters
    ----------
    values : numpy.ndarray
        N x M.

    Returns
    -------
    numpy.ndarray
        M values from 0 on; 0 for a column without finite entries.
    """
    return np.max(np.where(np.isfinite(values), np.abs(values), 0.0), axis=0, initial=0.0)


def column_moments(values: np.ndarray, over: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute scale, mean and standard deviation of each column.

    Parameters
    ----------
    values : numpy.ndarray
        N x M, NaN or infinite where undefined.
    over : numpy.ndarray
        N booleans: the rows that mean and deviation are taken over.

    Returns
    -------
    scale : numpy.ndarray
        Largest magnitude of each column, M; NaN for a column of zeros.
    mean : numpy.ndarray
        Mean of the column divided by its scale, M, in [-1, 1].
    deviation : numpy.ndarray
        Population standard deviation of the same, M, in [0, 1]; NaN where it is not above `FLOOR`.
    """
    use = np.isfinite(values) & over[:, None]
    largest, count = largest_magnitude(np.where(use, values, 0.0)), np.maximum(use.sum(axis=0), 1)
    scale = np.where(largest > TINY, largest, np.nan)
    # Dividing by the scale first turns the floor into FLOOR itself, and no square can overflow.
    with np.errstate(over="ignore"):
        scaled = values / scale
    mean = np.where(use, scaled, 0.0).sum(axis=0) / count
    deviation = np.sqrt((np.where(use, scaled - mean, 0.0) ** 2).sum(axis=0) / count)
    return scale, mean, np.where(deviation > FLOOR, deviation, np.nan)


def signed_roots(responses: np.ndarray) -> np.ndarray:
    """Take square roots of magnitudes and keep the signs.

    This is the step that stabilises the variance of responses before profile similarity S is computed: a maximising
    image drives its own feature several times as strongly as other images do, and without it a few large responses
    decide a correlation.

    Parameters
    ----------
    responses : numpy.ndarray
        Responses of any shape.

    Returns
    -------
    numpy.ndarray
        ``sign(x) sqrt(|x|)`` in float64, NaN where `responses` is. A factor c > 0 on x becomes the factor sqrt(c).
        Magnitudes up to `TINY` become 0, so that what counts as 0 among responses does among roots.
    """
    values = np.asarray(responses, dtype=np.float64)
    magnitude = np.abs(values)
    return np.copysign(np.where(magnitude <= TINY, 0.0, np.sqrt(magnitude)), values)


class RunningMoments:
    """Means and deviations of columns that arrive in blocks of rows.

    Parameters
    ----------
    columns : int
        Number M of columns.

    Attributes
    ----------
    count : int
        Number of rows so far.
    mean, squares, largest : numpy.ndarray
        Mean, sum of squares about it, and largest magnitude of each column so far, M each.

    References
    ----------
    Chan, Golub & LeVeque (1979), Updating formulae and a pairwise algorithm for computing sample variances, Stanford
    STAN-CS-79-773.
    """

    def __init__(self, columns: int) -> None:
        self.count = 0
        self.mean, self.squares, self.largest = np.zeros(columns), np.zeros(columns), np.zeros(columns)

    def add(self, block: np.ndarray) -> None:
        """Add rows.

        Parameters
        ----------
        block : numpy.ndarray
            Finite values, one row or more, n x M in float64.
        """
        count, n, centre = self.count, len(block), block.mean(axis=0)
        # Sums of squares about each block's own mean are merged: plain sums of squares would cancel in columns whose
        # mean is large against their deviation.
        self.squares += ((block - centre) ** 2).sum(axis=0) + (centre - self.mean) ** 2 * (count * n / (count + n))
        self.mean += (centre - self.mean) * (n / (count + n))
        self.largest = np.maximum(self.largest, np.abs(block).max(axis=0))
        self.count += n

    @property
    def deviation(self) -> np.ndarray:
        """Population standard deviation of each column, M; 0 without rows."""
        deviation: np.ndarray = np.sqrt(self.squares / max(self.count, 1))
        return deviation


def standardise(values: np.ndarray, over: np.ndarray) -> np.ndarray:
    """Subtract each column's mean and divide by its population standard deviation.

    Parameters
    ----------
    values : numpy.ndarray
        N x M, NaN or infinite where undefined.
    over : numpy.ndarray
        N booleans: the rows whose finite entries mean and deviation are taken over.

    Returns
    -------
    numpy.ndarray
        N x M, of mean 0 and variance 1 over these rows; NaN where `values` is not finite, and in columns that do not
        vary by more than `FLOOR` of their largest magnitude.
    """
    scale, mean, deviation = column_moments(values, over)
    with np.errstate(over="ignore"):
        return (values / scale - mean) / deviation


def unit_vectors(vectors: np.ndarray, axis: int = -1, floor: np.ndarray | float = TINY) -> np.ndarray:
    """Scale vectors to length 1.

    Parameters
    ----------
    vectors : numpy.ndarray
        Vectors along one axis of an array of any shape.
    axis : int, default -1
        That axis.
    floor : numpy.ndarray or float, default TINY
        Length at or below which a vector has no direction.

    Returns
    -------
    numpy.ndarray
        The same shape; NaN for vectors that are no longer than the floor or not finite.
    """
    length = np.linalg.norm(vectors, axis=axis, keepdims=True)
    unit: np.ndarray = vectors / np.where(np.isfinite(length) & (length > floor), length, np.nan)
    return unit


def unit_deviations(rows: np.ndarray) -> np.ndarray:
    """Subtract each row's mean and scale the row to length 1.

    Parameters
    ----------
    rows : numpy.ndarray
        N x D.

    Returns
    -------
    numpy.ndarray
        N x D, whose products are Pearson's correlations of the rows; NaN for rows whose standard deviation is not
        above `FLOOR` of their largest magnitude.
    """
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0)
    return unit_vectors(rows - rows.mean(axis=1, keepdims=True), 1, floors(largest) * np.sqrt(rows.shape[1]))


def cosines(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Compute the cosine of every row of one table with every row of another.

    Parameters
    ----------
    one, two : numpy.ndarray
        N x P and M x P.

    Returns
    -------
    numpy.ndarray
        N x M, in [-1, 1], 1 for parallel rows; NaN for rows that are zero or not finite.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return np.clip(unit_vectors(one) @ unit_vectors(two).T, -1, 1)


def pearson(one: np.ndarray, two: np.ndarray, share: float = FLOOR) -> float:
    """Compute Pearson's correlation of two series.

    Parameters
    ----------
    one, two : numpy.ndarray
        N finite values each.
    share : float, default FLOOR
        A series does not vary if its standard deviation is not above this share of its largest magnitude.

    Returns
    -------
    float
        In [-1, 1]; NaN for fewer than two values or a series that does not vary.
    """
    if len(one) < 2 or any(values.std() <= floors(np.abs(values).max(), share) for values in (one, two)):
        return float("nan")
    return float(np.clip(np.corrcoef(one, two)[0, 1], -1, 1))


def spearman(one: np.ndarray, two: np.ndarray) -> float:
    """Compute Spearman's rank correlation of two series.

    Parameters
    ----------
    one, two : numpy.ndarray
        N finite values each; ties share their mean rank.

    Returns
    -------
    float
        In [-1, 1]; NaN for fewer than three values or a constant series.
    """
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(two) == 0:
        return float("nan")
    from scipy import stats  # imported here: it takes longer to import than anything but torch

    return float(np.clip(np.corrcoef(stats.rankdata(one), stats.rankdata(two))[0, 1], -1, 1))


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Compute Student's confidence interval of a mean.

    Parameters
    ----------
    values : sequence of float
        Independent values, such as one for each seed; those that are not finite are left out.
    level : float, default 0.95
        Confidence, between 0 and 1.

    Returns
    -------
    tuple of float or None
        Lower and upper end; None for fewer than three finite values.

    Notes
    -----
    The same as ``scipy.stats.ttest_1samp(values, 0).confidence_interval(level)`` but for the rounding of the last
    digit, which tables written by earlier versions hold.
    """
    finite = np.array([v for v in values if np.isfinite(v)])
    if len(finite) < 3:
        return None
    from scipy import stats

    reach = stats.t.ppf((1 + level) / 2, len(finite) - 1) * finite.std(ddof=1) / np.sqrt(len(finite))
    return float(finite.mean() - reach), float(finite.mean() + reach)


@dataclass(frozen=True, eq=False)
class ColumnSimilarity:
    """Profile similarity of the features of one layer, computed block by block.

    Parameters
    ----------
    used : numpy.ndarray
        Positions of the D features whose responses are all finite and not constant.
    among_used : numpy.ndarray
        S of these, D x D, exactly symmetric, in [-1, 1]; NaN where undefined.
    images : int
        Number of images that it is computed from.
    mean, deviation : numpy.ndarray
        Mean and population standard deviation of each feature's responses (not of their roots), F; NaN where a response
        is not finite. The deviation of a feature without a profile, whose responses vary by rounding only, is 0.
    """

    used: np.ndarray
    among_used: np.ndarray
    images: int
    mean: np.ndarray
    deviation: np.ndarray

    @property
    def similarity(self) -> np.ndarray:
        """S of all features, F x F; NaN where undefined."""
        S = np.full((len(self.mean), len(self.mean)), np.nan)
        S[np.ix_(self.used, self.used)] = self.among_used
        return S


class RunningCorrelation:
    """Correlations between two sets of columns that arrive in blocks of rows.

    Parameters
    ----------
    first, second : int
        Numbers N and M of columns of the two sets.
    """

    def __init__(self, first: int, second: int) -> None:
        self._count = 0
        self._sums = [np.zeros(first), np.zeros(second)]
        self._squares = [np.zeros(first), np.zeros(second)]
        self._products = np.zeros((first, second))

    def add(self, first: np.ndarray, second: np.ndarray) -> None:
        """Take some rows into account.

        Parameters
        ----------
        first, second : numpy.ndarray
            The same rows of both sets, rows x N and rows x M.
        """
        maps = [np.asarray(side, dtype=np.float64) for side in (first, second)]
        self._count += len(maps[0])
        for k, side in enumerate(maps):
            self._sums[k] += side.sum(axis=0)
            self._squares[k] += np.square(side).sum(axis=0)
        self._products += maps[0].T @ maps[1]

    def result(self) -> np.ndarray:
        """Compute the correlations.

        Returns
        -------
        numpy.ndarray
            Pearson's correlation over all rows, N x M, in [-1, 1]; NaN for a column whose deviation is not above
            `DIFFERENCE_FLOOR` times its root mean square.
        """
        n = max(self._count, 1)
        means = [total / n for total in self._sums]
        powers = [total / n for total in self._squares]
        deviations = []
        for mean, power in zip(means, powers, strict=True):
            variance = power - np.square(mean)
            varies = np.isfinite(variance) & (variance > DIFFERENCE_FLOOR**2 * power)
            deviations.append(np.sqrt(np.where(varies, variance, np.nan)))
        covariance = self._products / n - np.outer(*means)
        return np.clip(covariance / np.outer(*deviations), -1, 1)


def rank_correlation(predicted: np.ndarray, measured: np.ndarray) -> tuple[float, float, int]:
    """Compute Spearman's correlation of predictions with measured values.

    Parameters
    ----------
    predicted, measured : numpy.ndarray
        Values of the same pairs, NaN where undefined.

    Returns
    -------
    rho : float
        Correlation over the pairs that have both, in [-1, 1]; NaN for fewer than 10 pairs or values that do not vary.
    error : float
        Standard error.
    n : int
        Number of pairs.

    References
    ----------
    Standard error: Bonett & Wright (2000), doi 10.1007/BF02294183.
    """
    both = np.isfinite(predicted) & np.isfinite(measured)
    n, x, y = int(both.sum()), predicted[both], measured[both]
    if n < 10 or np.ptp(x) <= DIFFERENCE_FLOOR * np.abs(x).max() or np.ptp(y) <= TINY:
        return float("nan"), float("nan"), n
    rho = spearman(y, x)  # in this order the last digit is that of scipy.stats.spearmanr(x, y)
    return rho, float((1 - rho**2) * np.sqrt((1 + rho**2 / 2) / (n - 3))), n


def seed_reliability(statistics: pd.DataFrame) -> float:
    """Compute the mean rank correlation of measured excesses between seeds.

    Parameters
    ----------
    statistics : pandas.DataFrame
        Statistics of every pair and seed; columns group, seed, response_nonlinearity, response_nonlinearity_floor.

    Returns
    -------
    float
        Spearman's correlation of response nonlinearity less its floor, mean over pairs of seeds, in [-1, 1]; NaN for a
        single seed.
    """
    excess = statistics["response_nonlinearity"] - statistics["response_nonlinearity_floor"]
    wide = statistics.assign(excess=excess).pivot(index="group", columns="seed", values="excess")
    values = wide.to_numpy(dtype=float)
    each = [rank_correlation(values[:, i], values[:, j])[0] for i in range(values.shape[1]) for j in range(i)]
    return float(np.mean(each)) if each else float("nan")


def unexplained_shares(
    power: np.ndarray, products: tuple[np.ndarray, np.ndarray], gram: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> np.ndarray:
    """Compute the response nonlinearity of many pairs from inner products.

    Parameters
    ----------
    power : numpy.ndarray
        ``|q|^2`` of the joint response q of each pair, of any shape.
    products : tuple of numpy.ndarray
        Inner products of q with the responses p_a and p_b to the parts.
    gram : tuple of numpy.ndarray
        ``|p_a|^2``, ``|p_b|^2`` and the inner product of p_a and p_b.

    Returns
    -------
    numpy.ndarray
        Share of ``|q|^2`` that no non-negative combination of p_a and p_b explains, in [0, 1], as in
        `response_nonlinearity`; NaN where q is zero or an argument is not finite.
    """
    (one, two), (first, second, both) = products, gram
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        determinant = first * second - both**2
        weights = (one * second - two * both) / determinant, (two * first - one * both) / determinant
        inside = (determinant > RANK_FLOOR * first * second) & (weights[0] >= 0) & (weights[1] >= 0)
        # of two parts, the best combination without negative weights has both, or the better one alone
        alone = np.maximum(np.maximum(one, 0) ** 2 / first, np.maximum(two, 0) ** 2 / second)
        explained = np.where(inside, weights[0] * one + weights[1] * two, alone)
        defined = power > np.maximum(DIFFERENCE_FLOOR**2 * np.sqrt(first * second), TINY_POWER)
        share: np.ndarray = np.clip(1 - explained / np.where(defined, power, np.nan), 0, 1)
    return share
