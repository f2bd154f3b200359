"""Predictors of which pairs of units interact most, from solo runs alone, and their evaluation on measured pairs.

Each predictor is a table of the first layer's units by the second's, N x M. The number of passes that it takes grows
with the number of features, not of pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from scipy import stats

from featmap.stats.correlation import TINY, cosines, rank_correlation, signed_roots, unexplained_shares, unit_vectors


@dataclass(frozen=True, eq=False)
class Side:
    """Solo runs of one layer's N units.

    Rows of `r` are NaN for units that are not live. M is the number of units of the other layer.

    Parameters
    ----------
    r : numpy.ndarray
        Standardised responses at the solo images, S seeds x N x D.
    fraction : numpy.ndarray
        The same at the null image plus half of d (first seed), N x D.
    d : numpy.ndarray
        Solo image less the null image (first seed), N x P.
    at_null, at_solo : numpy.ndarray
        Gradients of the units' activations at the null image and at their solo images, N x P.
    z : numpy.ndarray
        Activations of all units of both layers at the solo images, less those at the null image, N x (N + M).
    own : numpy.ndarray
        Positions of the units themselves among the columns of z, N.
    reads : numpy.ndarray
        Gradient of each unit's activation at its solo image with respect to the channels of the other layer's units,
        each times that channel's deviation, N x M; NaN where the other layer does not lie before this one.
    """

    r: np.ndarray
    fraction: np.ndarray
    d: np.ndarray
    at_null: np.ndarray
    at_solo: np.ndarray
    z: np.ndarray
    own: np.ndarray
    reads: np.ndarray


Predictor = Callable[[Side, Side], np.ndarray]
PREDICTORS: dict[str, Predictor] = {}
Function = TypeVar("Function", bound=Callable[..., np.ndarray])


def register(name: str, entries: dict[str, Function]) -> Callable[[Function], Function]:
    """Enter the decorated function into a table of predictors.

    Parameters
    ----------
    name : str
        Key of the entry, which names a column of the predictions.
    entries : dict
        The table, such as `PREDICTORS`.

    Returns
    -------
    callable
        Decorator that leaves the function as it is.
    """

    def enter(function: Function) -> Function:
        entries[name] = function
        return function

    return enter


def _pair_mean(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Average a value of each unit over every pair of units, N x M."""
    return (one[:, None] + two[None, :]) / 2


def _norm_ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide; NaN where the denominator, a norm, is 0."""
    ratio: np.ndarray = numerator / np.where(denominator > TINY, denominator, np.nan)
    return ratio


@register("crosstalk", PREDICTORS)
def crosstalk(a: Side, b: Side) -> np.ndarray:
    """Average z_b(x_a) / beta and z_a(x_b) / alpha, which A holds.

    Parameters
    ----------
    a, b : Side
        Units of the first and of the second layer.

    Returns
    -------
    numpy.ndarray
        N x M, unbounded; high where one unit comes free with the other.
    """
    best_a, best_b = a.z[np.arange(len(a.z)), a.own], b.z[np.arange(len(b.z)), b.own]
    best_a, best_b = (np.where(v > TINY, v, np.nan) for v in (best_a, best_b))
    return (a.z[:, b.own] / best_b[None] + (b.z[:, a.own] / best_a[None]).T) / 2


@register("gradient agreement at the null image", PREDICTORS)
def gradients_at_null(a: Side, b: Side) -> np.ndarray:
    """Compute the cosine of the units' gradients at the null image.

    Parameters
    ----------
    a, b : Side
        Units of the first and of the second layer.

    Returns
    -------
    numpy.ndarray
        N x M, in [-1, 1].
    """
    return cosines(a.at_null, b.at_null)


@register("gradient agreement at the solo images", PREDICTORS)
def gradients_at_solo(a: Side, b: Side) -> np.ndarray:
    """Compute the cosine of each unit's gradient at its own solo image.

    Parameters
    ----------
    a, b : Side
        Units of the first and of the second layer.

    Returns
    -------
    numpy.ndarray
        N x M, in [-1, 1].
    """
    return cosines(a.at_solo, b.at_solo)


@register("first-order cross-talk", PREDICTORS)
def first_order_crosstalk(a: Side, b: Side) -> np.ndarray:
    """Compute the mean cosine of one unit's gradient and the other unit's d.

    Parameters
    ----------
    a, b : Side
        Units of the first and of the second layer.

    Returns
    -------
    numpy.ndarray
        N x M, in [-1, 1], gradients at solo images; high where, to first order, one unit's image drives the other.
    """
    return (cosines(a.at_solo, b.d) + cosines(a.d, b.at_solo)) / 2


@register("image agreement", PREDICTORS)
def image_agreement(a: Side, b: Side) -> np.ndarray:
    """Compute the cosine of d_a and d_b.

    Parameters
    ----------
    a, b : Side
        Units of the first and of the second layer.

    Returns
    -------
    numpy.ndarray
        N x M, in [-1, 1]; 1 for solo images that differ from the null image alike.
    """
    return cosines(a.d, b.d)


@register("response agreement", PREDICTORS)
def response_agreement(a: Side, b: Side) -> np.ndarray:
    """Compute the cosine of r_a and r_b, mean over seeds.

    Parameters
    ----------
    a, b : Side
        Units of the first and of the second layer.

    Returns
    -------
    numpy.ndarray
        N x M, in [-1, 1]; high where one image already does what the other does.
    """
    return np.mean([cosines(x, y) for x, y in zip(a.r, b.r, strict=True)], axis=0)


def _log_size(side: Side) -> np.ndarray:
    """Compute log ``|r|`` of each unit (first seed)."""
    return np.log(np.maximum(np.linalg.norm(side.r[0], axis=1), TINY))


@register("response imbalance", PREDICTORS)
def response_imbalance(a: Side, b: Side) -> np.ndarray:
    """Compute the absolute difference of ``log |r_a|`` and ``log |r_b|``.

    Parameters
    ----------
    a, b : Side
        Units of the first and of the second layer.

    Returns
    -------
    numpy.ndarray
        N x M, from 0 on; high where the response to one image is far stronger than to the other.
    """
    return np.abs(_log_size(a)[:, None] - _log_size(b)[None, :])


@register("response size", PREDICTORS)
def response_size(a: Side, b: Side) -> np.ndarray:
    """Compute the mean of ``log |r_a|`` and ``log |r_b|``.

    Parameters
    ----------
    a, b : Side
        Units of the first and of the second layer.

    Returns
    -------
    numpy.ndarray
        N x M, unbounded.
    """
    return _pair_mean(_log_size(a), _log_size(b))


@register("common response", PREDICTORS)
def common_response(a: Side, b: Side) -> np.ndarray:
    """Compute the smaller cosine of the units' responses with their overall mean.

    Parameters
    ----------
    a, b : Side
        Units of the first and of the second layer.

    Returns
    -------
    numpy.ndarray
        N x M, in [-1, 1]; the mean is that of the responses to all solo images, each scaled to length 1. High where
        both images have the effect that any strong image has; then a mixture of them has it too.
    """
    both = np.concatenate([a.r[0], b.r[0]])
    units = unit_vectors(both)[np.isfinite(both).all(axis=1)]
    mean = np.nan_to_num(units).mean(0) if len(units) else np.full(both.shape[1], np.nan)
    one, two = (cosines(s.r[0], mean[None])[:, 0] for s in (a, b))
    return np.minimum(one[:, None], two[None, :])


@register("half-way response", PREDICTORS)
def half_way_response(a: Side, b: Side) -> np.ndarray:
    """Compute the smaller cosine of r half-way to a solo image and r at it.

    Parameters
    ----------
    a, b : Side
        Units of the first and of the second layer.

    Returns
    -------
    numpy.ndarray
        N x M, in [-1, 1]; 1 where responses grow in a straight line.
    """

    def own(side: Side) -> np.ndarray:
        product = (side.fraction * side.r[0]).sum(1)
        return _norm_ratio(product, np.linalg.norm(side.fraction, axis=1) * np.linalg.norm(side.r[0], axis=1))

    return np.minimum(own(a)[:, None], own(b)[None, :])


@register("self-saturation", PREDICTORS)
def self_saturation(a: Side, b: Side) -> np.ndarray:
    """Compute the mean second difference of each unit with itself.

    Parameters
    ----------
    a, b : Side
        Units of the first and of the second layer.

    Returns
    -------
    numpy.ndarray
        N x M, from 0 on; 0 where responses grow linearly.
    """

    def own(side: Side) -> np.ndarray:
        residual = np.linalg.norm(side.r[0] - 2 * side.fraction, axis=1)
        return _norm_ratio(residual, np.linalg.norm(side.r[0], axis=1))

    return _pair_mean(own(a), own(b))


@register("concentration", PREDICTORS)
def concentration(a: Side, b: Side) -> np.ndarray:
    """Compute the mean share of ``|r|^2`` that the strongest feature has.

    Parameters
    ----------
    a, b : Side
        Units of the first and of the second layer.

    Returns
    -------
    numpy.ndarray
        N x M, in (0, 1]; 1 where each image drives a single feature.
    """

    def own(side: Side) -> np.ndarray:
        energy = side.r[0] ** 2
        return _norm_ratio(energy.max(1, initial=0), energy.sum(1))

    return _pair_mean(own(a), own(b))


@register("weight overlap", PREDICTORS)
def weight_overlap(a: Side, b: Side) -> np.ndarray:
    """Compute how much of what one unit reads of the other's layer is the other unit.

    Parameters
    ----------
    a, b : Side
        Units of the first and of the second layer.

    Returns
    -------
    numpy.ndarray
        N x M, in [-1, 1]: the entry of `Side.reads` for the pair, divided by the norm of the reading unit's entries.
        NaN within one layer, and where neither layer lies before the other.
    """
    for reader, flip in ((b, True), (a, False)):
        if np.isfinite(reader.reads).any():
            norm = np.linalg.norm(np.nan_to_num(reader.reads), axis=1, keepdims=True)
            share = _norm_ratio(reader.reads, norm)
            return share.T if flip else share
    return np.full((len(a.r[0]), len(b.r[0])), np.nan)


@register("floor", PREDICTORS)
def seed_floor(a: Side, b: Side) -> np.ndarray:
    """Compute the mean share of r that changes with the seed.

    Parameters
    ----------
    a, b : Side
        Units of the first and of the second layer.

    Returns
    -------
    numpy.ndarray
        N x M, in [0, 1]: one less the squared cosine of r between two seeds (0 if negative), mean of the two units.
    """

    def own(side: Side) -> np.ndarray:
        once, again = side.r[0], side.r[-1]
        norms = np.linalg.norm(once, axis=1) * np.linalg.norm(again, axis=1)
        changed: np.ndarray = 1 - np.clip(_norm_ratio((once * again).sum(1), norms), 0, 1) ** 2
        return changed

    return _pair_mean(own(a), own(b))


@register("agreement of root responses", PREDICTORS)
def root_agreement(a: Side, b: Side) -> np.ndarray:
    """Compute the cosine of the signed roots of r_a and r_b.

    Parameters
    ----------
    a, b : Side
        Units of the first and of the second layer.

    Returns
    -------
    numpy.ndarray
        N x M, in [-1, 1], of the means over seeds: the sum, over probed features, of the geometric means of r_a and
        r_b, with the product's sign. High where both images drive the same features the same way.
    """
    return cosines(signed_roots(a.r.mean(axis=0)), signed_roots(b.r.mean(axis=0)))


@register("nonlinearity of the product", PREDICTORS)
def product_nonlinearity(a: Side, b: Side) -> np.ndarray:
    """Compute the response nonlinearity of what both images have in common.

    Parameters
    ----------
    a, b : Side
        Units of the first and of the second layer.

    Returns
    -------
    numpy.ndarray
        N x M, in [0, 1]: the joint response is taken to be the geometric mean of r_a and r_b (means over seeds) in
        features where both have one sign, and 0 elsewhere. High where a conjunction of both images is far from their
        mixtures; NaN where they have no sign in common.
    """
    sides = a.r.mean(axis=0), b.r.mean(axis=0)
    parts = [[np.maximum(sign * r, 0.0) for sign in (1, -1)] for r in sides]

    def products(one: float, two: float) -> np.ndarray:
        total: np.ndarray = sum(first**one @ (second**two).T for first, second in zip(*parts, strict=True))
        return total

    squares = [np.square(r).sum(axis=1) for r in sides]
    gram = (squares[0][:, None], squares[1][None, :], sides[0] @ sides[1].T)
    return unexplained_shares(products(1.0, 1.0), (products(1.5, 0.5), products(0.5, 1.5)), gram)


def fit_combined(X: np.ndarray, y: np.ndarray, folds: int = 10, ridge: float = 100.0) -> tuple[np.ndarray, np.ndarray]:
    """Fit a ridge regression on the predictors' ranks to the measured pairs.

    Parameters
    ----------
    X : numpy.ndarray
        Pairs x predictors; NaN counts as the predictor's middle rank.
    y : numpy.ndarray
        Measured value of each pair, NaN where it was not measured.
    folds : int, default 10
        Folds of the cross-validation.
    ridge : float, default 100
        Penalty, as a number of pairs: it shrinks the weights as so many unrelated pairs would.

    Returns
    -------
    everywhere : numpy.ndarray
        Predicted rank of each pair, about -0.5 to 0.5; NaN without predictors or with fewer than 2 pairs a fold.
    left_out : numpy.ndarray
        Prediction for each measured pair from the fit without its fold, NaN elsewhere.
    """
    usable = np.isfinite(X).any(1)
    everywhere, left_out = np.full(len(X), np.nan), np.full(len(X), np.nan)
    measured = np.flatnonzero(usable & np.isfinite(y))
    if len(measured) < 2 * folds:
        return everywhere, left_out
    ranks = np.nan_to_num(stats.rankdata(X, axis=0, nan_policy="omit") / np.maximum(np.isfinite(X).sum(0), 1) - 0.5)
    target = stats.rankdata(y[measured]) / len(measured) - 0.5

    def predict(rows: np.ndarray) -> np.ndarray:
        Z, t = ranks[measured[rows]], target[rows]
        centre = Z.mean(0)
        Z = Z - centre
        # ranks over their number have variance 1 / 12
        weights = np.linalg.solve(Z.T @ Z + ridge / 12 * np.eye(Z.shape[1]), Z.T @ (t - t.mean()))
        prediction: np.ndarray = (ranks - centre) @ weights
        return prediction

    for k in range(folds):
        out = np.arange(len(measured)) % folds == k
        left_out[measured[out]] = predict(np.flatnonzero(~out))[measured[out]]
    everywhere[usable] = predict(np.arange(len(measured)))[usable]
    return everywhere, left_out


def evaluate(predicted: pd.DataFrame, measured: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rank the predictors by their correlation with measured pairs.

    Parameters
    ----------
    predicted : pandas.DataFrame
        Columns a, b and one a predictor, a row for every pair.
    measured : pandas.DataFrame
        Summary of the pairs drawn at random; columns a, b, excess, response_nonlinearity.

    Returns
    -------
    table : pandas.DataFrame
        One row a predictor, by falling absolute value of `spearman`: predictor, spearman, error, spearman_with_floor,
        pairs.
    predicted : pandas.DataFrame
        The predictions with a column `combined`. It is fitted to the measured pairs, so in `table` it is judged by
        those left out of each fit.
    """
    names = [c for c in predicted.columns if c not in ("a", "b", "combined")]
    X = predicted[names].to_numpy(dtype=float, na_value=np.nan)
    values = measured[["a", "b", "excess", "response_nonlinearity"]]
    pairs = predicted[["a", "b"]].merge(values, on=["a", "b"], how="left")
    y, whole = (pairs[c].to_numpy(dtype=float, na_value=np.nan) for c in ("excess", "response_nonlinearity"))
    everywhere, left_out = fit_combined(X, y)
    rows = [{"predictor": n} | _score(X[:, k], y, X[:, k], whole) for k, n in enumerate(names)]
    rows.append({"predictor": "combined"} | _score(left_out, y, fit_combined(X, whole)[1], whole))
    table = pd.DataFrame(rows)
    order = np.argsort(-np.nan_to_num(np.abs(table["spearman"].to_numpy(dtype=float)), nan=-1), kind="stable")
    return table.iloc[order].reset_index(drop=True), predicted.assign(combined=everywhere)


def _score(predicted: np.ndarray, excess: np.ndarray, predicted_whole: np.ndarray, whole: np.ndarray) -> dict[str, Any]:
    """Compute a predictor's row of the table."""
    rho, error, n = rank_correlation(predicted, excess)
    with_floor = rank_correlation(predicted_whole, whole)[0]
    return {"spearman": rho, "error": error, "spearman_with_floor": with_floor, "pairs": n}
