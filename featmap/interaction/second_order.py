"""Predictors of interaction from second-order terms of the solo runs: products of responses, changes of gradients.

Each is a table of the first layer's units by the second's, N x M, made by products of matrices: all pairs of two layers
of 512 features take seconds. `featmap.stats.predictors` has those of first order.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from featmap.stats.correlation import DIFFERENCE_FLOOR, RANK_FLOOR, TINY, TINY_POWER, cosines, signed_roots
from featmap.stats.predictors import Predictor, Side

SECOND_ORDER_PREDICTORS: dict[str, Predictor] = {}


def register(name: str) -> Callable[[Predictor], Predictor]:
    """Enter the decorated function into `SECOND_ORDER_PREDICTORS`.

    Parameters
    ----------
    name : str
        Key of the entry, which names a column of the predictions.

    Returns
    -------
    callable
        Decorator that leaves the function as it is.
    """

    def enter(function: Predictor) -> Predictor:
        SECOND_ORDER_PREDICTORS[name] = function
        return function

    return enter


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
        `featmap.stats.interaction.response_nonlinearity`; NaN where q is zero or an argument is not finite.
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


def _responses(side: Side) -> np.ndarray:
    """Average r of each unit over seeds."""
    mean: np.ndarray = side.r.mean(axis=0)
    return mean


@register("agreement of root responses")
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
    return cosines(signed_roots(_responses(a)), signed_roots(_responses(b)))


@register("nonlinearity of the product")
def product_nonlinearity(a: Side, b: Side) -> np.ndarray:
    """Compute the response nonlinearity that a joint response to what both images have in common would have.

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
    sides = _responses(a), _responses(b)
    parts = [[np.maximum(sign * r, 0.0) for sign in (1, -1)] for r in sides]

    def products(one: float, two: float) -> np.ndarray:
        total: np.ndarray = sum(first**one @ (second**two).T for first, second in zip(*parts, strict=True))
        return total

    squares = [np.square(r).sum(axis=1) for r in sides]
    gram = (squares[0][:, None], squares[1][None, :], sides[0] @ sides[1].T)
    return unexplained_shares(products(1.0, 1.0), (products(1.5, 0.5), products(0.5, 1.5)), gram)


@register("gradient change along the partner")
def gradient_change(a: Side, b: Side) -> np.ndarray:
    """Compute how much a unit's own image changes its gradient along the other's.

    Parameters
    ----------
    a, b : Side
        Units of the first and of the second layer.

    Returns
    -------
    numpy.ndarray
        N x M: ``(g_a(x_a) - g_a(null)) d_b`` over ``|d_b|`` and the larger of both gradients, mean of both directions,
        in [-2, 2]. It is a finite difference of the mixed second derivative of the unit's activation along both
        images: 0 in a linear network, negative where one image makes the unit insensitive to the other. NaN for units
        without gradients.
    """

    def one_way(unit: Side, partner: Side) -> np.ndarray:
        solo, null = (np.asarray(g, dtype=np.float64) for g in (unit.at_solo, unit.at_null))
        size = np.maximum(np.linalg.norm(solo, axis=1), np.linalg.norm(null, axis=1))
        images = np.asarray(partner.d, dtype=np.float64)
        scale = np.outer(size, np.linalg.norm(images, axis=1))
        change: np.ndarray = (solo - null) @ images.T / np.where(scale > TINY, scale, np.nan)
        return change

    return (one_way(a, b) + one_way(b, a).T) / 2
