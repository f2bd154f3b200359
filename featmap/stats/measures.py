"""Measures of similarity between features, all taken from A and the null responses.

`A` holds the response of each column's feature to the maximising image of each row's feature; `null` the
response of each column's feature to the null image. Rows and columns carry labels such as ``inception4a:17``
and need not name the same features. A measure returns a frame of pandas' ``Float64`` in which everything that
cannot be computed is ``pd.NA``, never NaN; an entry of A that is not finite is undefined in every measure.

Source: the article, section "Feature Visualization from First Principles", which plots how all features of a
layer respond to an image that maximises one of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, Protocol, TypeVar

import numpy as np
import pandas as pd

from featmap.errors import FeatmapError, UnitError

EPS = 1e-6  # the floor of a denominator, as a share of its feature's largest response
TINY = float(np.finfo(np.float32).tiny)  # the floor where that largest response is 0
DIGITS = 12  # ranks and ties are decided on these decimals: later ones depend on the order of a sum
FEW_STIMULI = 32

Correlation = Literal["pearson", "spearman"]


class FewStimuliWarning(UserWarning):
    """A profile was taken over so few images that chance correlations are large."""


class Measure(Protocol):
    """What every entry of `MEASURES` is called as."""

    def __call__(self, A: pd.DataFrame, null: pd.Series, live: Sequence[str] | None = None) -> pd.DataFrame:
        """Return the measure of A and null; means and profiles are taken over the features in `live`."""


MEASURES: dict[str, Measure] = {}
_M = TypeVar("_M", bound=Measure)


def measure(name: str) -> Callable[[_M], _M]:
    """Enter the decorated function into `MEASURES` under `name`."""

    def enter(function: _M) -> _M:
        MEASURES[name] = function
        return function

    return enter


@dataclass(frozen=True)
class _Responses:
    """A and null as float64, NaN where not finite; A[j, j] of each column; who is live."""

    values: np.ndarray
    null: np.ndarray
    own: np.ndarray
    live_rows: np.ndarray
    live_columns: np.ndarray


def numbers(data: pd.DataFrame | pd.Series, what: str) -> np.ndarray:
    """Return a float64 copy of `data` with NaN for everything that is not a finite number."""
    try:
        values = data.to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise FeatmapError(f"{what} must hold numbers only ({error})") from error
    return np.where(np.isfinite(values), values, np.nan)


def _read(A: pd.DataFrame, null: pd.Series, live: Sequence[str] | None) -> _Responses:
    """Return A, null and live as checked arrays; raise FeatmapError or UnitError where they do not fit."""
    if A.empty:
        raise FeatmapError(f"A is empty ({A.shape[0]} x {A.shape[1]}); it needs an image and a feature")
    for what, index in (("the rows of A", A.index), ("the columns of A", A.columns), ("null", null.index)):
        if not index.is_unique:
            raise UnitError(f"{index[index.duplicated()][0]!r} appears more than once in {what}")
    missing = A.columns[~A.columns.isin(null.index)]
    if len(missing):
        raise UnitError(f"null lacks {missing[0]!r}; it must name every column of A")
    known = A.index.union(A.columns, sort=False)
    chosen = known if live is None else pd.Index(list(live), dtype=object)
    unknown = chosen[~chosen.isin(known)]
    if len(unknown):
        raise UnitError(f"live names {unknown[0]!r}, which is neither a row nor a column of A")
    values, at = numbers(A, "A"), A.index.get_indexer(A.columns)
    return _Responses(
        values=values,
        null=numbers(null.reindex(A.columns), "null"),
        own=np.where(at >= 0, values[at, np.arange(len(at))], np.nan),
        live_rows=np.asarray(A.index.isin(chosen)),
        live_columns=np.asarray(A.columns.isin(chosen)),
    )


def framed(values: np.ndarray, rows: pd.Index, columns: pd.Index) -> pd.DataFrame:
    """Return `values` as a Float64 frame in which everything not finite is pd.NA."""
    mask = ~np.isfinite(values)
    filled = np.where(mask, 0.0, values)
    arrays = [pd.arrays.FloatingArray(filled[:, j].copy(), mask[:, j].copy()) for j in range(len(columns))]
    frame = pd.DataFrame(dict(enumerate(arrays)), index=rows)
    frame.columns = columns
    return frame


def _largest(values: np.ndarray) -> np.ndarray:
    """Return the largest finite magnitude in each column, 0 where there is none."""
    return np.max(np.where(np.isfinite(values), np.abs(values), 0.0), axis=0, initial=0.0)


def floors(largest: np.ndarray) -> np.ndarray:
    """Return the floor for each feature: EPS times its largest absolute response, at least TINY.

    It goes by feature, not by the whole of A, so that it moves with the feature's own scale. A millionth is
    about 16 units in the last place of the float32 that responses are measured in: less is rounding.
    """
    return np.maximum(EPS * largest, TINY)


def _divide(numerator: np.ndarray, denominator: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """Return the quotient, NaN where the denominator is not above its floor."""
    with np.errstate(over="ignore", invalid="ignore"):
        return numerator / np.where(denominator > floor, denominator, np.nan)


@measure("raw")
def raw(A: pd.DataFrame, null: pd.Series, live: Sequence[str] | None = None) -> pd.DataFrame:
    """Return A itself: N x M, the layer's own units, unbounded; high where image i drives feature j."""
    return framed(_read(A, null, live).values, A.index, A.columns)


@measure("coactivation")
def coactivation(A: pd.DataFrame, null: pd.Series, live: Sequence[str] | None = None) -> pd.DataFrame:
    """Return C[i, j] = (A[i, j] - n_j) / (A[j, j] - n_j), the share of its best that j gives to i's image.

    N x M, unbounded: 1 on the diagonal, 0 where i's image does no more to j than the null image; high where
    maximising i activates j too. A positive factor on a feature's responses changes nothing. A column is
    undefined where its own image is not among the rows, or does not beat the null image by the floor.
    """
    data = _read(A, null, live)
    floor = floors(_largest(np.vstack([data.values, data.null])))
    return framed(_divide(data.values - data.null, data.own - data.null, floor), A.index, A.columns)


@measure("relative")
def relative(A: pd.DataFrame, null: pd.Series, live: Sequence[str] | None = None) -> pd.DataFrame:
    """Return R[i, j] = A[i, j] / A[i, i], each image's responses over that of the feature it was made for.

    N x M, unbounded, 1 on the diagonal: the article's plot. Above 1 where j responds more than the target,
    which a feature of larger scale may do to every image. A row is undefined where its feature is not among
    the columns, or answers its own image with no more than the floor.
    """
    data = _read(A, null, live)
    at = A.columns.get_indexer(A.index)
    own, floor = np.where(at >= 0, data.own[at], np.nan), floors(_largest(data.values))[at]
    return framed(_divide(data.values, own[:, None], floor[:, None]), A.index, A.columns)


def _moments(values: np.ndarray, over: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each column's scale, and the mean and spread of the column divided by it; NaN where it does not vary."""
    use = np.isfinite(values) & over[:, None]
    largest, count = _largest(np.where(use, values, 0.0)), np.maximum(use.sum(axis=0), 1)
    scale = np.where(largest > TINY, largest, np.nan)
    # Dividing by the scale first turns the floor into EPS itself, and no square can overflow.
    with np.errstate(over="ignore"):
        scaled = values / scale
    mean = np.where(use, scaled, 0.0).sum(axis=0) / count
    spread = np.sqrt((np.where(use, scaled - mean, 0.0) ** 2).sum(axis=0) / count)
    return scale, mean, np.where(spread > EPS, spread, np.nan)


def standardise(values: np.ndarray, over: np.ndarray) -> np.ndarray:
    """Return the columns of N x M `values` less their mean, over their population standard deviation.

    Mean and deviation are taken over the finite entries of the rows that the N booleans `over` mark. The
    result is NaN where the input is, and in columns that do not vary by more than the floor.
    """
    scale, mean, spread = _moments(values, over)
    with np.errstate(over="ignore"):
        return (values / scale - mean) / spread


@measure("selective")
def selective(A: pd.DataFrame, null: pd.Series, live: Sequence[str] | None = None) -> pd.DataFrame:
    """Return Z[i, j] = (A[i, j] - mean_i A[:, j]) / std_i A[:, j], in j's own standard deviations.

    N x M, mean 0 and variance 1 by column over the live images; high where i's image drives j more than most
    images do. Columns that do not vary are undefined.
    """
    data = _read(A, null, live)
    return framed(standardise(data.values, data.live_rows), A.index, A.columns)


def stimuli(A: pd.DataFrame, null: pd.Series, live: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the part of A that profiles are taken over: live images x live features, NaN where not finite.

    Images without any finite response are left out. Raises UnitError if that leaves live features but no
    image of any.
    """
    data = _read(A, null, live)
    values = data.values[:, data.live_columns]
    rows = data.live_rows & np.isfinite(values).any(axis=1)
    if values.shape[1] and not rows.any():
        raise UnitError("no live feature has an image with a finite response among the rows of A")
    return pd.DataFrame(values[rows], index=A.index[rows], columns=A.columns[data.live_columns])


def warn_of_few(images: int, stacklevel: int = 2) -> None:
    """Warn of a profile over fewer than `FEW_STIMULI` images."""
    if images < FEW_STIMULI:
        message = f"a profile over {images} images: below {FEW_STIMULI}, chance correlations are large"
        warnings.warn(message, FewStimuliWarning, stacklevel=stacklevel)


def centred(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standardise N x M responses by column, then centre by row: what an image does to all features goes.

    Returns Z, N x D, without the columns that are constant or hold an entry that is not finite, and M
    booleans, which mark the D columns left.
    """
    Z = standardise(values, np.ones(len(values), dtype=bool))
    defined = np.isfinite(Z).all(axis=0) & (len(Z) > 0)
    Z = Z[:, defined]
    return Z - Z.sum(axis=1, keepdims=True) / max(Z.shape[1], 1), defined


def directions(values: np.ndarray, method: Correlation = "pearson") -> tuple[np.ndarray, np.ndarray]:
    """Return the profiles of bare N x M responses as vectors whose products are correlations.

    The D defined columns of `centred` (of their ranks for "spearman"), each less its mean and of length 1, NaN
    where it does not vary: N x D; and the M booleans that mark them.
    """
    Z, defined = centred(values)
    N = max(len(Z), 1)
    varies = np.sqrt((Z**2).sum(axis=0) / N) > EPS
    if method == "spearman" and Z.size:
        Z = pd.DataFrame(np.round(Z, DIGITS)).rank().to_numpy()
    Z = Z - Z.sum(axis=0) / N
    norm = np.sqrt((Z**2).sum(axis=0))
    return Z / np.where(varies & (norm > 0), norm, np.nan), defined


def correlations(values: np.ndarray, method: Correlation = "pearson") -> np.ndarray:
    """Return `profile` of bare N x M responses: M x M with NaN for undefined."""
    Z, defined = directions(values, method)
    S = np.clip(Z.T @ Z, -1.0, 1.0)
    S = (S + S.T) / 2
    np.fill_diagonal(S, np.where(np.isfinite(S.diagonal()), 1.0, np.nan))
    full = np.full((len(defined), len(defined)), np.nan)
    full[np.ix_(defined, defined)] = S
    return full


@measure("profile")
def profile(
    A: pd.DataFrame, null: pd.Series, live: Sequence[str] | None = None, method: Correlation = "pearson"
) -> pd.DataFrame:
    """Return S[j, k], how alike features j and k respond over the images of all live features.

    Columns of live x live A, standardised, centred by row, then correlated by `method`. M x M in the order of
    A's columns; exactly symmetric, in [-1, 1], 1 on the diagonal; high where the same images drive both.
    sqrt(2 - 2 S) is a distance. Constant columns are undefined and take no part in the centring.

    Raises
    ------
    UnitError
        for a live label that A lacks, or if no image of a live feature is among the rows.

    Warns
    -----
    FewStimuliWarning
        below `FEW_STIMULI` images.
    """
    if method not in ("pearson", "spearman"):
        raise FeatmapError(f"method {method!r} is unknown; allowed: pearson, spearman")
    X = stimuli(A, null, live)
    warn_of_few(len(X), stacklevel=3)
    return framed(correlations(X.to_numpy(), method), X.columns, X.columns)


def to_masked(frame: pd.DataFrame) -> np.ma.MaskedArray:
    """Return the frame's values as float64 with everything undefined masked (0 lies under the mask)."""
    values = numbers(frame, "the frame")
    return np.ma.masked_array(np.nan_to_num(values), mask=np.isnan(values))


def count_undefined(frame: pd.DataFrame) -> int:
    """Return how many entries of the frame are undefined."""
    return int(np.isnan(numbers(frame, "the frame")).sum())


def identity_rate(A: pd.DataFrame, live: Sequence[str] | None = None) -> float:
    """Return the share of live features that no live image drives more than their own image does.

    In [0, 1]; 1 where every descent found its feature. Images are compared where their response is finite.
    Raises UnitError if no live feature is both a row and a column of A.
    """
    data = _read(A, pd.Series(0.0, index=A.columns), live)
    has = data.live_columns & np.asarray(A.columns.isin(A.index))
    if not has.any():
        raise UnitError("no live feature is both a row and a column of A, so none has its own image")
    values = data.values[data.live_rows][:, has]
    high = np.where(np.isfinite(values), values, -np.inf).max(axis=0)
    return float(np.mean(data.own[has] >= high))


def square(S: pd.DataFrame) -> np.ndarray:
    """Return a symmetric frame's values, NaN for undefined; raise FeatmapError for any other frame."""
    values = numbers(S, "the similarity frame")
    if list(S.index) != list(S.columns) or not S.columns.is_unique:
        raise FeatmapError("a similarity frame needs the same labels, each once, in its rows and columns")
    if not np.allclose(values, values.T, rtol=0, atol=1e-9, equal_nan=True):
        raise FeatmapError("this frame is not symmetric; take neighbours and clusters from `profile`")
    return values


def seed_agreement(frames: Sequence[pd.DataFrame]) -> float:
    """Return how alike the profiles of several seeds are: their mean Pearson correlation over pairs of seeds.

    Correlated are the similarities of different features that both seeds define, each pair once, matched by
    label. In [-1, 1]; 1 where all seeds draw the same map. Raises FeatmapError for fewer than two frames, or
    two that share no similarities that vary.
    """
    if len(frames) < 2:
        raise FeatmapError(f"agreement over seeds needs at least 2 maps; {len(frames)} given")
    found = []
    for one, two in combinations(frames, 2):
        shared = one.columns[one.columns.isin(two.columns)]
        upper = np.triu_indices(len(shared), 1)
        pair = np.array([square(frame.loc[shared, shared])[upper] for frame in (one, two)])
        pair = pair[:, np.isfinite(pair).all(axis=0)]
        if pair.shape[1] < 2 or (np.ptp(pair, axis=1) <= EPS).any():
            raise FeatmapError("two of the maps share too few similarities that vary to be correlated")
        found.append(np.clip(np.corrcoef(pair)[0, 1], -1.0, 1.0))
    return float(np.mean(found))


def _pairs(S: pd.DataFrame, values: np.ndarray, one: np.ndarray, two: np.ndarray) -> pd.DataFrame:
    """Return the defined ones of the pairs at positions `one`, `two` as feature, other, similarity."""
    similarity = values[one, two]
    keep = np.isfinite(similarity)
    columns = {"feature": S.columns[one[keep]], "other": S.columns[two[keep]], "similarity": similarity[keep]}
    return pd.DataFrame(columns)


def nearest(S: pd.DataFrame, n: int = 5) -> pd.DataFrame:
    """Return the `n` most similar others of each feature, fewer where fewer are defined.

    Columns feature (in the order of S), other (by falling similarity, ties in the order of S), similarity.
    """
    values = square(S)
    np.fill_diagonal(values, np.nan)
    best = np.argsort(-np.round(values, DIGITS), axis=1, kind="stable")[:, : max(n, 0)]
    return _pairs(S, values, np.repeat(np.arange(len(best)), best.shape[1]), best.ravel())


def top_pairs(S: pd.DataFrame, n: int) -> pd.DataFrame:
    """Return the `n` most similar pairs of different features as feature, other, similarity; ties as in S."""
    values = square(S)
    one, two = np.triu_indices(len(values), 1)
    best = np.argsort(-np.round(values[one, two], DIGITS), kind="stable")[: max(n, 0)]
    return _pairs(S, values, one[best], two[best])


def scales(A: pd.DataFrame, null: pd.Series, live: Sequence[str] | None = None) -> pd.DataFrame:
    """Return what makes `coactivation`, `relative` and `selective` of any cell of A, a row a column of A.

    Columns `null`, `best`, `own`, `mean`, `deviation`, NaN where the measure is undefined: with them
    C[i, j] = (A[i, j] - null[j]) / best[j], R[i, j] = A[i, j] / own[i], Z[i, j] = (A[i, j] - mean[j]) / deviation[j].
    """
    data = _read(A, null, live)
    best, floor = data.own - data.null, floors(_largest(np.vstack([data.values, data.null])))
    scale, mean, spread = _moments(data.values, data.live_rows)
    columns = {
        "null": data.null,
        "best": np.where(best > floor, best, np.nan),
        "own": np.where(data.own > floors(_largest(data.values)), data.own, np.nan),
        "mean": mean * scale,
        "deviation": spread * scale,
    }
    return pd.DataFrame(columns, index=A.columns)
