"""How far a similarity agrees with other sources on the same features: photographs, weights, DORA. No torch.

Tables are D x D float64, symmetric, NaN where undefined. Undefined figures are NaN here and empty cells in tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from featmap.rng import generator
from featmap.stats.measures import profile_correlations
from featmap.stats.reliability import (
    DRAWS,
    EPS,
    Interval,
    bootstrap_counts,
    mean_correlation,
    pair_correlation,
    percentile_interval,
    rank_pairs,
    spearman_brown,
)

PERMUTATIONS = 999
SPLITS = 20
CORRECTABLE = 0.9
"""Split-half reliability of the photographs below which nothing is corrected for attenuation."""
WIDTH = 0.02
"""Least difference of mean correlations that makes a scale for the processing path."""


@dataclass(frozen=True)
class Mantel:
    """The correlation of two tables over pairs of features.

    `r` its value with the bootstrap interval over features; `p` the share of permutations of the features that reach
    it, (1 + b) / (permutations + 1), one-sided; `pairs` how many pairs both tables define.
    """

    r: Interval
    p: float
    pairs: int


def mantel(
    one: np.ndarray,
    two: np.ndarray,
    *,
    method: str = "pearson",
    groups: np.ndarray | None = None,
    permutations: int = PERMUTATIONS,
) -> Mantel:
    """Return Mantel's correlation of two tables of the same D features, Pearson's or Spearman's, with its p-value.

    Parameters
    ----------
    method : "pearson" or "spearman" (of the pairs' ranks)
    groups : D labels; features are then permuted within groups only, and pairs across groups do not count

    Features without any defined pair are left out first. Mantel (1967, Cancer Research 27, 209-220; PMID 6018555).
    """
    inside = np.ones(one.shape, dtype=bool) if groups is None else groups[:, None] == groups[None, :]
    known = np.isfinite(one) & np.isfinite(two) & inside & ~np.eye(len(one), dtype=bool)
    kept = known.any(axis=1)
    x, y = (np.where(known, t, np.nan)[np.ix_(kept, kept)] for t in (one, two))
    if method == "spearman" and kept.any():
        x, y = rank_pairs(x), rank_pairs(y)
    r = mean_correlation([(x, y)])
    pairs = int(known.sum()) // 2
    if not np.isfinite(r.value):
        return Mantel(r, float("nan"), pairs)
    labels = np.zeros(len(x), dtype=int) if groups is None else np.unique(groups[kept], return_inverse=True)[1]
    rng = generator("mantel", method, len(x), permutations)
    counted = known[np.ix_(kept, kept)]
    drawn = _drawer(x, y, counted, bool(counted.sum() == _pairs_within(labels)))
    reached = sum(not drawn(_shuffled(labels, rng)) < r.value - 1e-12 for _ in range(permutations))
    return Mantel(r, (1 + reached) / (permutations + 1), pairs)


def _pairs_within(labels: np.ndarray) -> int:
    """Return the number of ordered pairs of different features of one label."""
    sizes = np.bincount(labels)
    return int((sizes * (sizes - 1)).sum())


def _drawer(x: np.ndarray, y: np.ndarray, known: np.ndarray, whole: bool) -> Callable[[np.ndarray], float]:
    """Return what gives the correlation of x with y permuted; `whole` says that no pair within a label is missing.

    A permutation then moves values about and leaves every mean and variance: only the sum of products is taken anew.
    """
    if not whole:
        return lambda order: float(pair_correlation(x, y[np.ix_(order, order)])[0])
    a, b = (np.where(known, t - t[known].mean(), 0.0) for t in (x, y))
    scale = float(np.sqrt(np.square(a).sum() * np.square(b).sum()))
    return lambda order: float(np.vdot(a, b[order][:, order])) / scale


def _shuffled(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a permutation of positions in which each goes to one of its own label."""
    target = np.argsort(labels, kind="stable")
    source = np.lexsort((rng.random(len(labels)), labels))
    order = np.empty(len(labels), dtype=np.intp)
    order[target] = source
    return order


def split_half(responses: np.ndarray, splits: int = SPLITS, draws: int = DRAWS) -> Interval:
    """Return the reliability of S over the choice of images: halves of the images, correlated, for the whole.

    `responses` is N images (photographs, or maximising ones) x D features. N is split at random into halves, S is
    taken from each (by the formula of `measures.profile`) and correlated over pairs; the mean over `splits` is brought
    to the full number by `spearman_brown` with k = 2. The interval is the bootstrap over features of that mean, as in
    `mean_correlation`. Undefined below eight images.
    """
    if len(responses) < 8:
        return Interval(float("nan"))
    rng, found, drawn = generator("halves", *responses.shape, splits), [], []
    features = responses.shape[1]
    weights = bootstrap_counts(features, draws) if features >= 4 else None
    for _ in range(splits):
        order = rng.permutation(len(responses))
        half = len(order) // 2
        one, two = (profile_correlations(responses[np.sort(part)]) for part in (order[:half], order[half : 2 * half]))
        r = float(pair_correlation(one, two)[0])
        if np.isfinite(r):
            found.append(r)
            drawn.append(pair_correlation(one, two, weights) if weights is not None else np.full(draws, np.nan))
    if not found:
        return Interval(float("nan"))
    low, high = percentile_interval(np.mean(drawn, axis=0))
    return Interval(*(spearman_brown(float(r), 2) for r in (np.mean(found), low, high)))


def disattenuate(r: float, one: float, two: float) -> float:
    """Return r / sqrt(one two), what the correlation would be without noise in the two tables, at most 1.

    `one` and `two` are their reliabilities. Undefined unless both are at least `CORRECTABLE`: a correction by less
    reliable tables says more of the correction than of the data. Spearman (1904, 10.2307/1412159).
    """
    if not (one >= CORRECTABLE and two >= CORRECTABLE):
        return float("nan")
    return float(min(r / np.sqrt(one * two), 1.0))


def multiples_of_best(own: np.ndarray, responses: np.ndarray) -> np.ndarray:
    """Return each feature's response to its maximising image over that to its best photograph: D, unbounded.

    `own` holds D responses, `responses` N photographs x D. Undefined where the best photograph's response is not above
    a millionth of the larger of the two: then no photograph excites the feature at all. Borowski et al. (2021,
    arXiv 2010.12606) compare how well such images and photographs explain a feature.
    """
    best = np.max(np.where(np.isfinite(responses), responses, -np.inf), axis=0, initial=-np.inf)
    floor = 1e-6 * np.maximum(np.abs(best), np.abs(own))
    with np.errstate(invalid="ignore"):
        defined = np.isfinite(own) & np.isfinite(best) & (best > floor)
    quotient: np.ndarray = np.where(defined, own, np.nan) / np.where(defined, best, 1.0)
    return quotient


def cosine_table(vectors: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the cosine of every two features' weight vectors: D x D in [-1, 1].

    `vectors` is D x V (in float64, zeros where a feature's own convolution is narrower); `groups` D labels of what
    lives in one space, below 0 for features without weights. Undefined across groups and for vectors of no length.
    """
    length = np.sqrt((vectors**2).sum(axis=1))
    unit = vectors / np.where(length > EPS * max(float(length.max(initial=0.0)), EPS), length, np.nan)[:, None]
    table = np.clip(unit @ unit.T, -1.0, 1.0)
    same = (groups[:, None] == groups[None, :]) & (groups[:, None] >= 0)
    return np.where(same, (table + table.T) / 2, np.nan)


def extreme_activation_distance(
    A: np.ndarray, mean: np.ndarray, deviation: np.ndarray, kind: str = "layer"
) -> np.ndarray:
    """Return DORA's extreme-activation distance of every two features: D x D in [0, 1], 0 for alike ones.

    a[i, j] = (A[i, j] - mean_j) / deviation_j is the standardised response of feature j to the activation-maximising
    signal of feature i; representation activation vectors are the columns of a ("layer": over all features' signals),
    or, for the pair i, j, (a[i, i], a[j, i]) and (a[i, j], a[j, j]) ("pair": over the two's own). The distance is
    sqrt((1 - cos) / 2) of the two vectors.

    Parameters
    ----------
    A : D x D, rows signals, columns responses; here one synthetic signal a feature (n = 1 of the paper's n), the same
        maximising images that featmap's own measures are taken from
    mean, deviation : D, each feature's over natural images (as in the paper) or, where there are none, over A's rows
    kind : "layer" or "pair"

    Undefined for features without deviation. Bykov et al. (2023, TMLR; arXiv 2206.04530), sections 3.1 and 3.2.
    """
    scale = np.where(deviation > EPS * np.maximum(np.abs(mean), 1e-30), deviation, np.nan)
    a = (A - mean) / scale
    if kind == "layer":
        length = np.sqrt((a**2).sum(axis=0))
        cosine = (a.T @ a) / (length[:, None] * length[None, :])
    elif kind == "pair":
        own = np.diag(a)
        over = own[:, None] * a + a.T * own[None, :]  # (a_ii, a_ji) . (a_ij, a_jj)
        length = np.sqrt(own[:, None] ** 2 + a.T**2)  # of i's vector in the pair i, j
        cosine = over / (length * length.T)
    else:
        raise ValueError(f"kind {kind!r}; allowed: layer, pair")
    distance = np.sqrt(np.clip(1 - cosine, 0, 2) / 2)
    np.fill_diagonal(distance, np.where(np.isfinite(scale), 0.0, np.nan))
    return (distance + distance.T) / 2


@dataclass(frozen=True, eq=False)
class PathCheck:
    """The processing-path check of one layer.

    `score` on the scale from photographs of other features (0) to other photographs of the same feature (1), with its
    bootstrap interval over features; `own`, `same`, `other` the three mean correlations that it is made of; `scores`
    each feature's own score (NaN where its scale is no wider than `WIDTH`); `features` how many count.
    """

    score: Interval
    own: float
    same: float
    other: float
    scores: np.ndarray
    features: int


def best_photographs(responses: np.ndarray, count: int) -> np.ndarray:
    """Return the places of each feature's `count` best photographs, best first, ties by place: D x count.

    `responses` is N photographs x D features.
    """
    return np.argsort(-np.nan_to_num(responses, nan=-np.inf), axis=0, kind="stable")[:count].T


def _unit_ranks(values: np.ndarray) -> np.ndarray:
    """Return the rows' ranks less their mean, of length 1; NaN for rows that do not vary."""
    ranks = stats.rankdata(values, axis=1)
    ranks = ranks - ranks.mean(axis=1, keepdims=True)
    length = np.sqrt((ranks**2).sum(axis=1, keepdims=True))
    found: np.ndarray = ranks / np.where(length > 0, length, np.nan)
    return found


def processing_path(images: np.ndarray, photographs: np.ndarray, best: np.ndarray) -> PathCheck:
    """Return how alike a layer processes features' maximising images and their best photographs.

    For feature j with maximising image x_j and its m best photographs B_j, and c(x, y) Spearman's correlation of the
    responses of all features of a layer to two images, each feature's responses first standardised over the
    photographs:

        own_j   = mean of c(x_j, p) over p in B_j
        same_j  = mean of c(p, q) over p, q in B_j, p other than q
        other_j = mean of c(p, q) over p in B_j and q in the B_k of other features k, q not in B_j
        score   = (mean_j own_j - mean_j other_j) / (mean_j same_j - mean_j other_j)

    1: the layer cannot tell the maximising image from one more photograph that the feature likes; 0: it is as far
    from them as photographs that other features like; below 0: farther.

    Parameters
    ----------
    images : D x C, responses of the layer's C features to the maximising images
    photographs : N x C, its responses to the photographs
    best : D x m places of each feature's best photographs, m of 2 or more

    The score is undefined where the interval of mean same - mean other reaches down to `WIDTH` (photographs of one
    feature are then no more alike than any), fewer than two features count, or the layer has fewer than three features
    that vary.
    Source: Geirhos et al. (ICML 2024, arXiv 2306.04719), section 4: Spearman's similarity of layers' activations to
    natural and synthetic images, scaled by natural images of the same and of other classes. Ours differs in three
    ways: a feature's best photographs stand for a class, so that any layer can be judged; a layer's responses are the
    means over its grid, so that places need not match; they are standardised, so that no feature's scale decides.
    """
    nothing = PathCheck(
        Interval(float("nan")), float("nan"), float("nan"), float("nan"), np.full(len(images), np.nan), 0
    )
    mean, deviation = photographs.mean(axis=0), photographs.std(axis=0)
    varies = np.isfinite(deviation) & (deviation > 1e-6 * np.abs(photographs).max(axis=0, initial=0))
    if varies.sum() < 3 or best.shape[1] < 2 or len(images) < 2:
        return nothing
    z, y = (_unit_ranks((v[:, varies] - mean[varies]) / deviation[varies]) for v in (photographs, images))
    member = np.zeros((len(best), len(z)))
    np.put_along_axis(member, best, 1.0, axis=1)
    between = z @ z.T
    m = best.shape[1]
    own = ((y @ z.T) * member).sum(axis=1) / m
    inside = ((member @ between) * member).sum(axis=1)
    same = (inside - (np.diag(between) * member).sum(axis=1)) / (m * (m - 1))
    popular = member.sum(axis=0)  # how many features like each photograph
    weight = popular * (1 - member)
    other = ((member @ between) * weight).sum(axis=1) / np.where(weight.sum(axis=1) > 0, weight.sum(axis=1), np.nan) / m
    known = np.isfinite(own) & np.isfinite(same) & np.isfinite(other)
    if known.sum() < 2:
        return nothing
    parts = np.stack([own, same, other])[:, known]
    width = same - other
    scores = np.where(known & (width > WIDTH), (own - other) / np.where(width > WIDTH, width, 1), np.nan)
    rng = generator("path", int(known.sum()))
    drawn = parts[:, rng.integers(0, parts.shape[1], size=(1000, parts.shape[1]))].mean(axis=2)
    values = _score(drawn)
    known_scale = np.percentile(drawn[1] - drawn[2], 2.5) > WIDTH
    value = float(_score(parts.mean(axis=1))) if known_scale else float("nan")
    a, b, c = (float(v) for v in parts.mean(axis=1))
    interval = Interval(value, *percentile_interval(values)) if known_scale else Interval(value)
    return PathCheck(interval, a, b, c, scores, int(known.sum()))


def _score(parts: np.ndarray) -> np.ndarray:
    own, same, other = parts
    width = same - other
    found: np.ndarray = np.where(width > WIDTH, (own - other) / np.where(width > WIDTH, width, 1), np.nan)
    return found


def permute_columns(A: np.ndarray, draw: int) -> np.ndarray:
    """Return A with the entries of each column permuted, each column by itself: what no similarity is left in."""
    return generator("permuted", draw, *A.shape).permuted(A, axis=0)


def permutation_agreement(
    A: np.ndarray, others: Sequence[np.ndarray], draws: int = 20, method: str = "pearson"
) -> list[Interval]:
    """Return the correlation of S with other tables when A is permuted within columns: mean and range of the draws.

    `A` is D x D (no NaN), `others` D x D tables; `method` as in `mantel`; the interval holds 95 % of the draws.
    """
    found: list[list[float]] = [[] for _ in others]
    given = [rank_pairs(t) if method == "spearman" else t for t in others]
    for draw in range(draws):
        S = profile_correlations(permute_columns(A, draw))
        for values, other in zip(found, given, strict=True):
            own = rank_pairs(np.where(np.isfinite(other), S, np.nan)) if method == "spearman" else S
            values.append(float(pair_correlation(own, other)[0]))
    intervals = []
    for values in found:
        known = [v for v in values if np.isfinite(v)]
        low, high = np.percentile(known, [2.5, 97.5]) if known else (np.nan, np.nan)
        intervals.append(Interval(float(np.mean(known)) if known else float("nan"), float(low), float(high)))
    return intervals
