"""Measures of similarity between features, computed from A and the null responses.

`A` holds the response of each column's feature to the maximising image of each row's feature; `null` the response of
each column's feature to the null image. Rows and columns carry labels such as ``inception4a:17`` and need not name the
same features. A measure returns a float64 frame that is NaN where the measure is undefined; an entry of A that is not
finite is undefined in every measure.

Source: the article, section "Feature Visualization from First Principles", which plots how all features of a layer
respond to an image that maximises one of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import numpy as np
import pandas as pd

from featmap.errors import FeatmapError, UnitError
from featmap.stats import correlation
from featmap.stats.correlation import DIGITS, FLOOR, floors, largest_magnitude, signed_roots, standardise
from featmap.stats.frames import symmetrise, to_floats, to_frame

FEW_STIMULI = 32
"""Number n of images below which a profile comes with a warning: chance correlations have a standard deviation of
1 / sqrt(n - 1)."""

FORMULA, LINEAR = 2, 1
"""Versions of the formula of S in the records of run folders: since 2 signed square roots of responses are correlated
(`profile`); 1 correlated the responses themselves (`linear_profile`)."""

Correlation = Literal["pearson", "spearman"]


class FewStimuliWarning(UserWarning):
    """A profile was computed over so few images that chance correlations are large."""


class Measure(Protocol):
    """Signature of every entry of `MEASURES`.

    Parameters
    ----------
    *args, **kwargs
        A, null and live, as in `coactivation`.
    """

    def __call__(self, A: pd.DataFrame, null: pd.Series, live: Sequence[str] | None = None) -> pd.DataFrame:
        """Compute the measure from A and null; means and profiles are taken over the features in `live`."""


MEASURES: dict[str, Measure] = {}
_M = TypeVar("_M", bound=Measure)


def register(name: str) -> Callable[[_M], _M]:
    """Enter the decorated function into `MEASURES`.

    Parameters
    ----------
    name : str
        Key of the entry.

    Returns
    -------
    callable
        Decorator that leaves the function as it is.
    """

    def enter(function: _M) -> _M:
        MEASURES[name] = function
        return function

    return enter


@dataclass(frozen=True)
class _Responses:
    """A and null as float64, NaN where not finite; A[j, j] of each column; masks of the live rows and columns."""

    values: np.ndarray
    null: np.ndarray
    own: np.ndarray
    live_rows: np.ndarray
    live_columns: np.ndarray


def _check(A: pd.DataFrame, null: pd.Series, live: Sequence[str] | None) -> _Responses:
    """Check that A, null and live belong together, and return them as arrays."""
    if A.empty:
        raise FeatmapError(f"A is empty ({A.shape[0]} x {A.shape[1]}); it needs an image and a feature")
    for name, index in (("the rows of A", A.index), ("the columns of A", A.columns), ("null", null.index)):
        if not index.is_unique:
            raise UnitError(f"{index[index.duplicated()][0]!r} appears more than once in {name}")
    missing = A.columns[~A.columns.isin(null.index)]
    if len(missing):
        raise UnitError(f"null lacks {missing[0]!r}; it must name every column of A")
    labels = A.index.union(A.columns, sort=False)
    live_labels = labels if live is None else pd.Index(list(live), dtype=object)
    unknown = live_labels[~live_labels.isin(labels)]
    if len(unknown):
        raise UnitError(f"live names {unknown[0]!r}, which is neither a row nor a column of A")
    values, at = to_floats(A, "A"), A.index.get_indexer(A.columns)
    return _Responses(
        values=values,
        null=to_floats(null.reindex(A.columns), "null"),
        own=np.where(at >= 0, values[at, np.arange(len(at))], np.nan),
        live_rows=np.asarray(A.index.isin(live_labels)),
        live_columns=np.asarray(A.columns.isin(live_labels)),
    )


def _divide(numerator: np.ndarray, denominator: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """Divide; the quotient is NaN where the denominator is not above its floor."""
    with np.errstate(over="ignore", invalid="ignore"):
        return numerator / np.where(denominator > floor, denominator, np.nan)


@register("raw")
def raw(A: pd.DataFrame, null: pd.Series, live: Sequence[str] | None = None) -> pd.DataFrame:
    """Return A itself.

    Parameters
    ----------
    A : pandas.DataFrame
        Responses, N images x M features.
    null : pandas.Series
        Response of each feature to the null image.
    live : sequence of str, optional
        Live features and images; checked only.

    Returns
    -------
    pandas.DataFrame
        N x M, in the layer's own units, unbounded; high where image i drives feature j.
    """
    return to_frame(_check(A, null, live).values, A.index, A.columns)


@register("coactivation")
def coactivation(A: pd.DataFrame, null: pd.Series, live: Sequence[str] | None = None) -> pd.DataFrame:
    """Compute co-activation: each feature's response as a share of its own best.

    ``C[i, j] = (A[i, j] - null[j]) / (A[j, j] - null[j])``. A positive factor on a feature's responses changes nothing.

    Parameters
    ----------
    A : pandas.DataFrame
        Responses, N images x M features.
    null : pandas.Series
        Response of each feature to the null image.
    live : sequence of str, optional
        Live features and images; checked only.

    Returns
    -------
    pandas.DataFrame
        N x M, unbounded: 1 on the diagonal, 0 where i's image does no more to j than the null image, high where
        maximising i activates j too. A column is NaN where its own image is not among the rows, or its own response is
        not above that to the null image by the floor.
    """
    data = _check(A, null, live)
    floor = floors(largest_magnitude(np.vstack([data.values, data.null])))
    return to_frame(_divide(data.values - data.null, data.own - data.null, floor), A.index, A.columns)


@register("relative")
def relative(A: pd.DataFrame, null: pd.Series, live: Sequence[str] | None = None) -> pd.DataFrame:
    """Divide each image's responses by that of the feature which it maximises.

    ``R[i, j] = A[i, j] / A[i, i]``: the article's plot.

    Parameters
    ----------
    A : pandas.DataFrame
        Responses, N images x M features.
    null : pandas.Series
        Response of each feature to the null image; checked only.
    live : sequence of str, optional
        Live features and images; checked only.

    Returns
    -------
    pandas.DataFrame
        N x M, unbounded, 1 on the diagonal. Above 1 where j responds more than the target, which a feature of larger
        scale may do to every image. A row is NaN where its feature is not among the columns, or its response to its own
        image is not above the floor.
    """
    data = _check(A, null, live)
    at = A.columns.get_indexer(A.index)
    own, floor = np.where(at >= 0, data.own[at], np.nan), floors(largest_magnitude(data.values))[at]
    return to_frame(_divide(data.values, own[:, None], floor[:, None]), A.index, A.columns)


@register("selective")
def selective(A: pd.DataFrame, null: pd.Series, live: Sequence[str] | None = None) -> pd.DataFrame:
    """Standardise each feature's responses over the live images.

    ``Z[i, j] = (A[i, j] - mean_i A[:, j]) / std_i A[:, j]``.

    Parameters
    ----------
    A : pandas.DataFrame
        Responses, N images x M features.
    null : pandas.Series
        Response of each feature to the null image; checked only.
    live : sequence of str, optional
        Images that mean and standard deviation are taken over; default: all.

    Returns
    -------
    pandas.DataFrame
        N x M, in j's own standard deviations: mean 0 and variance 1 by column over the live images, high where i's
        image drives j more than most images do. Columns that do not vary are NaN.
    """
    data = _check(A, null, live)
    return to_frame(standardise(data.values, data.live_rows), A.index, A.columns)


def select_stimuli(A: pd.DataFrame, null: pd.Series, live: Sequence[str] | None = None) -> pd.DataFrame:
    """Select the part of A that profiles are computed from.

    Parameters
    ----------
    A : pandas.DataFrame
        Responses, N images x M features.
    null : pandas.Series
        Response of each feature to the null image; checked only.
    live : sequence of str, optional
        Live features and images; default: all.

    Returns
    -------
    pandas.DataFrame
        Live images x live features, float64, NaN where not finite; images without any finite response are left out.

    Raises
    ------
    UnitError
        If that leaves live features but no image of any.
    """
    data = _check(A, null, live)
    values = data.values[:, data.live_columns]
    rows = data.live_rows & np.isfinite(values).any(axis=1)
    if values.shape[1] and not rows.any():
        raise UnitError("no live feature has an image with a finite response among the rows of A")
    return pd.DataFrame(values[rows], index=A.index[rows], columns=A.columns[data.live_columns])


def warn_few_stimuli(images: int, stacklevel: int = 2) -> None:
    """Warn if profiles are computed over fewer than `FEW_STIMULI` images.

    Parameters
    ----------
    images : int
        Number of images.
    stacklevel : int, default 2
        Call whose line the warning names, as in `warnings.warn`: 1 is this function, 2 its caller.
    """
    if images < FEW_STIMULI:
        message = f"a profile over {images} images: below {FEW_STIMULI}, chance correlations are large"
        warnings.warn(message, FewStimuliWarning, stacklevel=stacklevel)


def standardise_and_centre(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standardise values by column, then centre by row.

    Centring removes what an image does to all features alike.

    Parameters
    ----------
    values : numpy.ndarray
        N images x M features: for S, the `signed_roots` of responses.

    Returns
    -------
    Z : numpy.ndarray
        N x D, without the columns that are constant or hold an entry that is not finite.
    defined : numpy.ndarray
        M booleans, which mark the D columns left.
    """
    Z = standardise(values, np.ones(len(values), dtype=bool))
    defined = np.isfinite(Z).all(axis=0) & (len(Z) > 0)
    Z = Z[:, defined]
    return Z - Z.sum(axis=1, keepdims=True) / max(Z.shape[1], 1), defined


def unit_profiles(
    values: np.ndarray, method: Correlation = "pearson", roots: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Compute profiles as unit vectors, whose products are correlations.

    Parameters
    ----------
    values : numpy.ndarray
        Responses, N images x M features.
    method : {"pearson", "spearman"}, default "pearson"
        Whether values or ranks are correlated.
    roots : bool, default True
        Take the `signed_roots` of responses first, as S does. False for the linear profile, and for values that are no
        responses: draws of a null model, cosines, roots that are taken already.

    Returns
    -------
    profiles : numpy.ndarray
        N x D: the defined columns of `standardise_and_centre` (their ranks for "spearman"), each less its mean and of
        length 1; NaN where the column does not vary.
    defined : numpy.ndarray
        M booleans, which mark the D columns.
    """
    Z, defined = standardise_and_centre(signed_roots(values) if roots else values)
    N = max(len(Z), 1)
    varies = np.sqrt((Z**2).sum(axis=0) / N) > FLOOR
    if method == "spearman" and Z.size:
        Z = pd.DataFrame(np.round(Z, DIGITS)).rank().to_numpy()
    Z = Z - Z.sum(axis=0) / N
    return correlation.unit_vectors(np.where(varies, Z, np.nan), axis=0, floor=0.0), defined


def profile_correlations(values: np.ndarray, method: Correlation = "pearson", roots: bool = True) -> np.ndarray:
    """Compute the similarity S of the columns of an array of responses.

    The formula is that of `profile`, or without roots that of `linear_profile`.

    Parameters
    ----------
    values : numpy.ndarray
        N images x M features.
    method : {"pearson", "spearman"}, default "pearson"
        As in `profile`.
    roots : bool, default True
        As in `unit_profiles`.

    Returns
    -------
    numpy.ndarray
        S, M x M, exactly symmetric, in [-1, 1]; NaN where undefined.
    """
    Z, defined = unit_profiles(values, method, roots)
    D, at = Z.shape[1], np.flatnonzero(defined)
    full = np.full((len(defined), len(defined)), np.nan)
    S = full.reshape(-1)[: D * D].reshape(D, D)  # at the front of the table that is returned, not beside it
    np.matmul(Z.T, Z, out=S)
    symmetrise(np.clip(S, -1.0, 1.0, out=S))
    np.fill_diagonal(S, np.where(np.isfinite(S.diagonal()), 1.0, np.nan))
    for k in range(D - 1, -1, -1) if len(defined) > D else ():  # from the last row on: none is overwritten unread
        row, S[k] = S[k].copy(), np.nan
        full[at[k], at] = row
    return full


@register("profile")
def profile(
    A: pd.DataFrame, null: pd.Series, live: Sequence[str] | None = None, method: Correlation = "pearson"
) -> pd.DataFrame:
    """Compute profile similarity S: correlate the columns of A over all live images.

    The `signed_roots` of A (live images x live features) are standardised by column, centred by row (see
    `standardise_and_centre`) and correlated. Constant columns are undefined and take no part in the centring. The same
    formula holds for S over photographs, so that the two maps are compared like with like.

    A positive factor on a feature's responses changes nothing, nor does the sign of all responses of all features. A
    constant that is added to a feature's responses does change S, as it does not change `linear_profile`: 0 is where a
    feature is silent.

    Parameters
    ----------
    A : pandas.DataFrame
        Responses, N images x M features.
    null : pandas.Series
        Response of each feature to the null image; checked only.
    live : sequence of str, optional
        Live features and images; default: all.
    method : {"pearson", "spearman"}, default "pearson"
        Correlation of values or of ranks.

    Returns
    -------
    pandas.DataFrame
        S, live x live in the order of A's columns; exactly symmetric, in [-1, 1], 1 on the diagonal; high where the
        same images drive both features. ``sqrt(2 - 2 S)`` is a distance.

    Raises
    ------
    FeatmapError
        For an unknown method.
    UnitError
        For a live label that A lacks, or if no image of a live feature is among the rows.

    Warns
    -----
    FewStimuliWarning
        Below `FEW_STIMULI` images.

    References
    ----------
    Bartlett (1936), The square root transformation in analysis of variance, doi 10.2307/2983678; measured in
    `analyses/benchmarks/README.md`, "Variance of responses, and profile similarity".
    """
    return _profile(A, null, live, method, roots=True)


@register("linear_profile")
def linear_profile(
    A: pd.DataFrame, null: pd.Series, live: Sequence[str] | None = None, method: Correlation = "pearson"
) -> pd.DataFrame:
    """Compute the profile similarity of responses without roots.

    This was S in versions up to 0.2.

    Parameters
    ----------
    A, null, live, method
        As in `profile`, which raises and warns alike.

    Returns
    -------
    pandas.DataFrame
        Live x live, in [-1, 1], as in `profile`. Nothing is changed by a positive factor on a feature's responses, nor
        by a constant that is added to them.
    """
    return _profile(A, null, live, method, roots=False)


def _profile(
    A: pd.DataFrame, null: pd.Series, live: Sequence[str] | None, method: Correlation, roots: bool
) -> pd.DataFrame:
    """Compute `profile`, or `linear_profile` without roots."""
    if method not in ("pearson", "spearman"):
        raise FeatmapError(f"method {method!r} is unknown; allowed: pearson, spearman")
    X = select_stimuli(A, null, live)
    warn_few_stimuli(len(X), stacklevel=4)
    return to_frame(profile_correlations(X.to_numpy(), method, roots), X.columns, X.columns)


def identity_rate(A: pd.DataFrame, live: Sequence[str] | None = None) -> float:
    """Compute the share of live features driven most by their own image.

    Parameters
    ----------
    A : pandas.DataFrame
        Responses, N images x M features.
    live : sequence of str, optional
        Live features and images; default: all.

    Returns
    -------
    float
        In [0, 1]; 1 where no live feature responds more to another feature's image than to its own. Responses that are
        not finite are left out.

    Raises
    ------
    UnitError
        If no live feature is both a row and a column of A.
    """
    data = _check(A, pd.Series(0.0, index=A.columns), live)
    has_image = data.live_columns & np.asarray(A.columns.isin(A.index))
    if not has_image.any():
        raise UnitError("no live feature is both a row and a column of A, so none has its own image")
    values = data.values[data.live_rows][:, has_image]
    high = np.where(np.isfinite(values), values, -np.inf).max(axis=0)
    return float(np.mean(data.own[has_image] >= high))


def measure_scales(A: pd.DataFrame, null: pd.Series, live: Sequence[str] | None = None) -> pd.DataFrame:
    """Compute the offsets and divisors that turn any cell of A into any measure.

    With them ``C[i, j] = (A[i, j] - null[j]) / best[j]``, ``R[i, j] = A[i, j] / own[i]`` and
    ``Z[i, j] = (A[i, j] - mean[j]) / deviation[j]``.

    Parameters
    ----------
    A : pandas.DataFrame
        Responses, N images x M features.
    null : pandas.Series
        Response of each feature to the null image.
    live : sequence of str, optional
        Live features and images; default: all.

    Returns
    -------
    pandas.DataFrame
        A row for each column of A; columns `null`, `best`, `own`, `mean`, `deviation`, in the layer's own units; NaN
        where the measure is undefined.
    """
    data = _check(A, null, live)
    best, floor = data.own - data.null, floors(largest_magnitude(np.vstack([data.values, data.null])))
    scale, mean, deviation = correlation.column_moments(data.values, data.live_rows)
    columns = {
        "null": data.null,
        "best": np.where(best > floor, best, np.nan),
        "own": np.where(data.own > floors(largest_magnitude(data.values)), data.own, np.nan),
        "mean": mean * scale,
        "deviation": deviation * scale,
    }
    return pd.DataFrame(columns, index=A.columns)
