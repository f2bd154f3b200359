"""Which pairs interact most, guessed from solo runs alone: each predictor is a table of the first layer's units by the
second's, from passes whose number grows with the features, not with the pairs. No torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from featmap.stats.correlation import DIFFERENCE_FLOOR, TINY


@dataclass(frozen=True, eq=False)
class Side:
    """What is known of one layer's N units from their solo runs; rows are NaN where a unit's descent found nothing.

    Parameters
    ----------
    r : S x N x D, standardised responses at the solo images, for S seeds
    fraction : N x D, the same at the null image plus half of d (first seed)
    d : N x P, solo image less the null image (first seed)
    at_null, at_solo : N x P, gradients of the units' activations at the null image and at their solo images
    z : N x (units of both sides), activations of all units at the solo images, less those at the null image
    own : N, places of the units themselves among the columns of z
    reads : N x M, gradient of each unit's activation at its solo image by the channels of the M units of the other
        side, each times that channel's deviation; NaN where the other side's layer does not lie before this one's
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


def register(name: str) -> Callable[[Predictor], Predictor]:
    """Enter the decorated function into `PREDICTORS` under `name`."""

    def enter(function: Predictor) -> Predictor:
        PREDICTORS[name] = function
        return function

    return enter


def cosines(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Return the cosines of the rows of N x P and M x P, N x M; NaN for rows that are zero or not finite."""

    def unit(rows: np.ndarray) -> np.ndarray:
        norm = np.linalg.norm(rows, axis=1, keepdims=True)
        found: np.ndarray = rows / np.where(norm > TINY, norm, np.nan)
        return found

    with np.errstate(invalid="ignore"):
        return np.clip(unit(one) @ unit(two).T, -1, 1)


def _outer_mean(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    return (one[:, None] + two[None, :]) / 2


@register("crosstalk")
def crosstalk(a: Side, b: Side) -> np.ndarray:
    """Return the mean of z_b(x_a) / beta and z_a(x_b) / alpha, read off A."""
    best_a, best_b = a.z[np.arange(len(a.z)), a.own], b.z[np.arange(len(b.z)), b.own]
    best_a, best_b = (np.where(v > TINY, v, np.nan) for v in (best_a, best_b))
    return (a.z[:, b.own] / best_b[None] + (b.z[:, a.own] / best_a[None]).T) / 2


@register("gradient agreement at the null image")
def gradients_at_null(a: Side, b: Side) -> np.ndarray:
    """Return the cosine of the units' gradients at the null image."""
    return cosines(a.at_null, b.at_null)


@register("gradient agreement at the solo images")
def gradients_at_solo(a: Side, b: Side) -> np.ndarray:
    """Return the cosine of each unit's gradient at its own solo image."""
    return cosines(a.at_solo, b.at_solo)


@register("first-order cross-talk")
def first_order_crosstalk(a: Side, b: Side) -> np.ndarray:
    """Return the mean cosine of one unit's gradient at its solo image with the other's d: what a's image owes to b."""
    return (cosines(a.at_solo, b.d) + cosines(a.d, b.at_solo)) / 2


@register("image agreement")
def image_agreement(a: Side, b: Side) -> np.ndarray:
    """Return the cosine of d_a and d_b."""
    return cosines(a.d, b.d)


@register("response agreement")
def response_agreement(a: Side, b: Side) -> np.ndarray:
    """Return the cosine of r_a and r_b, mean over seeds: whether one image already does what the other does."""
    return np.mean([cosines(x, y) for x, y in zip(a.r, b.r, strict=True)], axis=0)


@register("response imbalance")
def response_imbalance(a: Side, b: Side) -> np.ndarray:
    """Return | log |r_a| - log |r_b| |: whether one of the two drowns the other."""
    one, two = (np.log(np.maximum(np.linalg.norm(s.r[0], axis=1), TINY)) for s in (a, b))
    return np.abs(one[:, None] - two[None, :])


@register("response size")
def response_size(a: Side, b: Side) -> np.ndarray:
    """Return the mean of log |r_a| and log |r_b|."""
    return _outer_mean(*(np.log(np.maximum(np.linalg.norm(s.r[0], axis=1), TINY)) for s in (a, b)))


@register("common response")
def common_response(a: Side, b: Side) -> np.ndarray:
    """Return the smaller of the units' cosines with what all units' solo images do on average.

    High where both images do what any image of that strength does; then a mixture of them does so too.
    """
    both = np.concatenate([a.r[0], b.r[0]])
    norm = np.linalg.norm(both, axis=1, keepdims=True)
    units = (both / np.where(norm > TINY, norm, np.nan))[np.isfinite(norm[:, 0])]
    mean = np.nan_to_num(units).mean(0) if len(units) else np.full(both.shape[1], np.nan)
    one, two = (cosines(s.r[0], mean[None])[:, 0] for s in (a, b))
    return np.minimum(one[:, None], two[None, :])


@register("half-way response")
def half_way_response(a: Side, b: Side) -> np.ndarray:
    """Return the smaller of the cosines of r half-way to a solo image with r at it."""

    def own(side: Side) -> np.ndarray:
        dot = (side.fraction * side.r[0]).sum(1)
        size = np.linalg.norm(side.fraction, axis=1) * np.linalg.norm(side.r[0], axis=1)
        found: np.ndarray = dot / np.where(size > TINY, size, np.nan)
        return found

    return np.minimum(own(a)[:, None], own(b)[None, :])


@register("self-saturation")
def self_saturation(a: Side, b: Side) -> np.ndarray:
    """Return the mean second difference of each unit with itself."""

    def own(side: Side) -> np.ndarray:
        size = np.linalg.norm(side.r[0], axis=1)
        rest = np.linalg.norm(side.r[0] - 2 * side.fraction, axis=1)
        found: np.ndarray = rest / np.where(size > TINY, size, np.nan)
        return found

    return _outer_mean(own(a), own(b))


@register("concentration")
def concentration(a: Side, b: Side) -> np.ndarray:
    """Return the mean share of |r|^2 that each solo image's strongest feature has."""

    def own(side: Side) -> np.ndarray:
        square = side.r[0] ** 2
        total = square.sum(1)
        found: np.ndarray = square.max(1, initial=0) / np.where(total > TINY, total, np.nan)
        return found

    return _outer_mean(own(a), own(b))


@register("weight overlap")
def weight_overlap(a: Side, b: Side) -> np.ndarray:
    """Return how much of what one unit reads of the other's layer is the other unit: in [-1, 1].

    First-order weight of the one on the other over the norm of all such weights. Undefined within one layer, and
    where neither layer lies before the other.
    """
    for reader, flip in ((b, True), (a, False)):
        if np.isfinite(reader.reads).any():
            norm = np.linalg.norm(np.nan_to_num(reader.reads), axis=1, keepdims=True)
            share = reader.reads / np.where(norm > TINY, norm, np.nan)
            return share.T if flip else share
    return np.full((len(a.r[0]), len(b.r[0])), np.nan)


@register("floor")
def seed_floor(a: Side, b: Side) -> np.ndarray:
    """Return the mean floor of the units between two seeds: the share of r that a new start changes."""

    def own(side: Side) -> np.ndarray:
        once, again = side.r[0], side.r[-1]
        with np.errstate(invalid="ignore", divide="ignore"):
            dot = (once * again).sum(1) / (np.linalg.norm(once, axis=1) * np.linalg.norm(again, axis=1))
        found: np.ndarray = 1 - np.clip(dot, 0, 1) ** 2
        return found

    return _outer_mean(own(a), own(b))


def fit_combined(X: np.ndarray, y: np.ndarray, folds: int = 10, ridge: float = 100.0) -> tuple[np.ndarray, np.ndarray]:
    """Return a combination of predictors fitted to the pairs whose exact figure is known: ridge regression on ranks.

    Parameters
    ----------
    X : pairs x predictors; what one predictor leaves undefined counts as its middle rank
    y : exact figure, NaN where it was not measured

    Returns
    -------
    everywhere : its value for every pair, NaN where no predictor is defined
    left_out : for the measured pairs, its value when the fit had not seen them (k-fold), NaN elsewhere
    """
    usable = np.isfinite(X).any(1)
    everywhere, left_out = np.full(len(X), np.nan), np.full(len(X), np.nan)
    known = np.flatnonzero(usable & np.isfinite(y))
    if len(known) < 2 * folds:
        return everywhere, left_out
    ranks = np.nan_to_num(stats.rankdata(X, axis=0, nan_policy="omit") / np.maximum(np.isfinite(X).sum(0), 1) - 0.5)
    target = stats.rankdata(y[known]) / len(known) - 0.5

    def fitted(rows: np.ndarray) -> np.ndarray:
        Z, t = ranks[known[rows]], target[rows]
        centre = Z.mean(0)
        Z = Z - centre
        weight_overlap = np.linalg.solve(Z.T @ Z + ridge / 12 * np.eye(Z.shape[1]), Z.T @ (t - t.mean()))
        found: np.ndarray = (ranks - centre) @ weight_overlap
        return found

    for k in range(folds):
        out = np.arange(len(known)) % folds == k
        left_out[known[out]] = fitted(np.flatnonzero(~out))[known[out]]
    everywhere[usable] = fitted(np.arange(len(known)))[usable]
    return everywhere, left_out


def rank_correlation(predicted: np.ndarray, exact: np.ndarray) -> tuple[float, float, int]:
    """Return Spearman's correlation over pairs that have both, its standard error, and how many there are.

    NaN for fewer than 10 pairs or values that do not vary. The error is Bonett and Wright's (2000,
    10.1007/BF02294183).
    """
    known = np.isfinite(predicted) & np.isfinite(exact)
    n = int(known.sum())
    if (
        n < 10
        or np.ptp(predicted[known]) <= DIFFERENCE_FLOOR * np.abs(predicted[known]).max()
        or np.ptp(exact[known]) <= TINY
    ):
        return float("nan"), float("nan"), n
    rho = float(stats.spearmanr(predicted[known], exact[known]).statistic)
    return rho, float((1 - rho**2) * np.sqrt((1 + rho**2 / 2) / (n - 3))), n


def evaluate(predicted: pd.DataFrame, exact: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the predictors by falling rank correlation, and the predictions with the combined one added.

    `predicted` has columns a, b and one a predictor, `exact` is the summary of the pairs drawn at random.
    The combined predictor is fitted to the checked pairs, so it is judged by those left out of each fit.
    """
    names = [c for c in predicted.columns if c not in ("a", "b", "combined")]
    X = predicted[names].to_numpy(dtype=float, na_value=np.nan)
    figures = exact[["a", "b", "excess", "response_nonlinearity"]]
    known = predicted[["a", "b"]].merge(figures, on=["a", "b"], how="left")
    y, whole = (known[c].to_numpy(dtype=float, na_value=np.nan) for c in ("excess", "response_nonlinearity"))
    everywhere, left_out = fit_combined(X, y)
    rows = [{"predictor": n} | _judge_one(X[:, k], y, X[:, k], whole) for k, n in enumerate(names)]
    rows.append({"predictor": "combined"} | _judge_one(left_out, y, fit_combined(X, whole)[1], whole))
    table = pd.DataFrame(rows)
    order = np.argsort(-np.nan_to_num(np.abs(table["spearman"].to_numpy(dtype=float)), nan=-1), kind="stable")
    return table.iloc[order].reset_index(drop=True), predicted.assign(combined=everywhere)


def seed_reliability(figures: pd.DataFrame) -> float:
    """Return Spearman's correlation of response nonlinearity less its floor between seeds, mean over pairs of seeds."""
    excess = figures["response_nonlinearity"] - figures["response_nonlinearity_floor"]
    wide = figures.assign(excess=excess.astype("Float64")).pivot(index="group", columns="seed", values="excess")
    values = wide.to_numpy(dtype=float, na_value=np.nan)
    each = [rank_correlation(values[:, i], values[:, j])[0] for i in range(values.shape[1]) for j in range(i)]
    return float(np.mean(each)) if each else float("nan")


def _judge_one(values: np.ndarray, excess: np.ndarray, again: np.ndarray, whole: np.ndarray) -> dict[str, Any]:
    rho, error, n = rank_correlation(values, excess)
    return {"spearman": rho, "error": error, "spearman_with_floor": rank_correlation(again, whole)[0], "pairs": n}
