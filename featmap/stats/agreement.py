"""Agreement of a similarity with other sources on the same features: photographs, weights, DORA.

Tables are D x D float64, symmetric, NaN where undefined.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from featmap.errors import FeatmapError
from featmap.rng import generator
from featmap.stats.correlation import TIE, floors, unit_deviations, unit_vectors
from featmap.stats.measures import profile_correlations
from featmap.stats.reliability import (
    DRAWS,
    Interval,
    bootstrap_counts,
    mean_correlation,
    pair_correlation,
    percentile_interval,
    rank_pairs,
    spearman_brown,
)

PERMUTATIONS = 999
"""Permutations of a Mantel test."""
SPLITS = 20
"""Random halves of a split-half reliability."""
CORRECTABLE = 0.9
"""Split-half reliability of the photographs below which nothing is corrected for attenuation."""
WIDTH = 0.02
"""Smallest difference of mean correlations, between photographs of one feature and of different ones, that makes a
scale for the processing path."""


@dataclass(frozen=True)
class Mantel:
    """The correlation of two tables over pairs of features.

    Parameters
    ----------
    r : Interval
        The correlation, with its bootstrap interval over features.
    p : float
        One-sided p-value, (1 + b) / (permutations + 1), with b the number of permutations of the features whose
        correlation reaches `r`.
    pairs : int
        Number of pairs that both tables define.
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
    """Compute Mantel's correlation of two tables of the same features.

    Parameters
    ----------
    one, two : numpy.ndarray
        D x D, symmetric. Features without any defined pair are left out first.
    method : {"pearson", "spearman"}, default "pearson"
        Correlation of the values or of the pairs' ranks.
    groups : numpy.ndarray, optional
        D labels; features are then permuted within groups only, and pairs across groups do not count.
    permutations : int, default 999
        Permutations of the features.

    Returns
    -------
    Mantel
        Correlation in [-1, 1], p-value and number of pairs; NaN where the correlation is undefined.

    References
    ----------
    Mantel (1967), The detection of disease clustering and a generalized regression approach, Cancer Research 27,
    209-220; PMID 6018555.
    """
    inside = np.ones(one.shape, dtype=bool) if groups is None else groups[:, None] == groups[None, :]
    defined = np.isfinite(one) & np.isfinite(two) & inside & ~np.eye(len(one), dtype=bool)
    keep = defined.any(axis=1)
    x, y = (np.where(defined, t, np.nan)[np.ix_(keep, keep)] for t in (one, two))
    if method == "spearman" and keep.any():
        x, y = rank_pairs(x), rank_pairs(y)
    r = mean_correlation([(x, y)])
    pairs = int(defined.sum()) // 2
    if not np.isfinite(r.value):
        return Mantel(r, float("nan"), pairs)
    labels = np.zeros(len(x), dtype=int) if groups is None else np.unique(groups[keep], return_inverse=True)[1]
    rng = generator("mantel", method, len(x), permutations)
    counted = defined[np.ix_(keep, keep)]
    correlate = _permuted_correlation(x, y, counted, bool(counted.sum() == _pairs_within(labels)))
    # written as "not below", so that a permutation that leaves the correlation undefined counts against the finding
    reached = sum(not correlate(_permute_within(labels, rng)) < r.value - TIE for _ in range(permutations))
    return Mantel(r, (1 + reached) / (permutations + 1), pairs)


def _pairs_within(labels: np.ndarray) -> int:
    """Count the ordered pairs of different features of one label."""
    sizes = np.bincount(labels)
    return int((sizes * (sizes - 1)).sum())


def _permuted_correlation(
    x: np.ndarray, y: np.ndarray, defined: np.ndarray, whole: bool
) -> Callable[[np.ndarray], float]:
    """Build the function that correlates x with y permuted; `whole`: no pair within a label is missing.

    Where none is missing, a permutation leaves means and variances as they are, and only the sum of products changes.
    """
    if not whole:
        return lambda order: float(pair_correlation(x, y[np.ix_(order, order)])[0])
    a, b = (np.where(defined, t - t[defined].mean(), 0.0) for t in (x, y))
    scale = float(np.sqrt(np.square(a).sum() * np.square(b).sum()))
    return lambda order: float(np.vdot(a, b[order][:, order])) / scale


def _permute_within(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a permutation of positions in which each goes to one of its own label."""
    target = np.argsort(labels, kind="stable")
    source = np.lexsort((rng.random(len(labels)), labels))
    order = np.empty(len(labels), dtype=np.intp)
    order[target] = source
    return order


def split_half(responses: np.ndarray, splits: int = SPLITS, draws: int = DRAWS) -> Interval:
    """Compute the split-half reliability of S over the choice of images.

    The images are split at random into halves, S is computed from each (by the formula of `measures.profile`) and
    correlated over pairs; the mean over `splits` is brought to the full number by `spearman_brown` with k = 2.

    Parameters
    ----------
    responses : numpy.ndarray
        N images (photographs, or maximising images) x D features.
    splits : int, default 20
        Random halves.
    draws : int, default 1000
        Bootstrap draws.

    Returns
    -------
    Interval
        At most 1, where S does not depend on the choice of images, with the bootstrap interval over features as in
        `mean_correlation`. NaN below eight images.
    """
    if len(responses) < 8:
        return Interval(float("nan"))
    rng, correlations, resampled = generator("halves", *responses.shape, splits), [], []
    features = responses.shape[1]
    weights = bootstrap_counts(features, draws) if features >= 4 else None
    for _ in range(splits):
        order = rng.permutation(len(responses))
        half = len(order) // 2
        one, two = (profile_correlations(responses[np.sort(part)]) for part in (order[:half], order[half : 2 * half]))
        r = float(pair_correlation(one, two)[0])
        if np.isfinite(r):
            correlations.append(r)
            resampled.append(pair_correlation(one, two, weights) if weights is not None else np.full(draws, np.nan))
    if not correlations:
        return Interval(float("nan"))
    low, high = percentile_interval(np.mean(resampled, axis=0))
    return Interval(*(spearman_brown(float(r), 2) for r in (np.mean(correlations), low, high)))


def disattenuate(r: float, one: float, two: float) -> float:
    """Correct a correlation for the noise in the two tables.

    Parameters
    ----------
    r : float
        Correlation of the two tables.
    one, two : float
        Their reliabilities.

    Returns
    -------
    float
        r / sqrt(one * two), at most 1. NaN unless both reliabilities are at least `CORRECTABLE`: a correction by a low
        reliability would be dominated by the error of that reliability.

    References
    ----------
    Spearman (1904), The proof and measurement of association between two things, doi 10.2307/1412159.
    """
    if not (one >= CORRECTABLE and two >= CORRECTABLE):
        return float("nan")
    return float(min(r / np.sqrt(one * two), 1.0))


def multiples_of_best(own: np.ndarray, responses: np.ndarray) -> np.ndarray:
    """Divide each feature's response to its own image by that to its best photograph.

    Parameters
    ----------
    own : numpy.ndarray
        Response of each feature to its maximising image, D.
    responses : numpy.ndarray
        N photographs x D.

    Returns
    -------
    numpy.ndarray
        D values, unbounded, above 1 where the image excites the feature more than any photograph. NaN where the best
        photograph's response is not above `FLOOR` times the larger of the two: then no photograph excites the feature.

    References
    ----------
    Borowski et al. (2021), arXiv 2010.12606, compare how well such images and photographs explain a feature.
    """
    best = np.max(np.where(np.isfinite(responses), responses, -np.inf), axis=0, initial=-np.inf)
    floor = floors(np.maximum(np.abs(best), np.abs(own)))
    with np.errstate(invalid="ignore"):
        defined = np.isfinite(own) & np.isfinite(best) & (best > floor)
    quotient: np.ndarray = np.where(defined, own, np.nan) / np.where(defined, best, 1.0)
    return quotient


def cosine_table(vectors: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Compute the cosine of every two features' weight vectors.

    Parameters
    ----------
    vectors : numpy.ndarray
        D x V, float64, zeros where a feature's own convolution is narrower.
    groups : numpy.ndarray
        D labels of the space that each vector lies in, below 0 for features without weights.

    Returns
    -------
    numpy.ndarray
        D x D in [-1, 1], 1 for parallel weights; NaN across groups and for vectors no longer than `FLOOR` times the
        longest.
    """
    longest = float(np.linalg.norm(vectors, axis=1).max(initial=0.0))
    unit = unit_vectors(vectors, floor=floors(longest))
    table = np.clip(unit @ unit.T, -1.0, 1.0)
    same = (groups[:, None] == groups[None, :]) & (groups[:, None] >= 0)
    return np.where(same, (table + table.T) / 2, np.nan)


def extreme_activation_distance(
    A: np.ndarray, mean: np.ndarray, deviation: np.ndarray, kind: str = "layer"
) -> np.ndarray:
    """Compute DORA's extreme-activation distance of every two features.

    a[i, j] = (A[i, j] - mean_j) / deviation_j is the standardised response of feature j to the activation-maximising
    signal of feature i; representation activation vectors are the columns of a ("layer": over all features' signals),
    or, for the pair i, j, (a[i, i], a[j, i]) and (a[i, j], a[j, j]) ("pair": over the two's own). The distance is
    sqrt((1 - cos) / 2) of the two vectors.

    Parameters
    ----------
    A : numpy.ndarray
        D x D, rows signals, columns responses. There is one synthetic signal for each feature (n = 1 in the paper's
        notation): the maximising image that featmap's own measures are computed from.
    mean, deviation : numpy.ndarray
        Mean and standard deviation of each feature's response over natural images (as in the paper) or, where there are
        none, over A's rows: D each.
    kind : {"layer", "pair"}, default "layer"
        Signals that the vectors are taken over.

    Returns
    -------
    numpy.ndarray
        D x D in [0, 1], 0 for features that respond alike; NaN for features without deviation.

    Raises
    ------
    FeatmapError
        For another kind.

    References
    ----------
    Bykov et al. (2023), DORA, TMLR; arXiv 2206.04530, sections 3.1 and 3.2.
    """
    scale = np.where(deviation > floors(np.abs(mean)), deviation, np.nan)
    a = (A - mean) / scale
    if kind == "layer":
        length = np.sqrt((a**2).sum(axis=0))
        cosine = (a.T @ a) / (length[:, None] * length[None, :])
    elif kind == "pair":
        own = np.diag(a)
        product = own[:, None] * a + a.T * own[None, :]  # (a_ii, a_ji) . (a_ij, a_jj)
        length = np.sqrt(own[:, None] ** 2 + a.T**2)  # of i's vector in the pair i, j
        cosine = product / (length * length.T)
    else:
        raise FeatmapError(f"kind {kind!r} is unknown; allowed: layer, pair")
    distance = np.sqrt(np.clip(1 - cosine, 0, 2) / 2)
    np.fill_diagonal(distance, np.where(np.isfinite(scale), 0.0, np.nan))
    return (distance + distance.T) / 2


@dataclass(frozen=True, eq=False)
class PathCheck:
    """The processing-path check of one layer.

    Parameters
    ----------
    score : Interval
        Mean score on the scale from photographs of other features (0) to other photographs of the same feature (1),
        with its bootstrap interval over features.
    own, same, other : float
        The three mean correlations that it is computed from.
    scores : numpy.ndarray
        Each feature's own score, D; NaN where its scale is no wider than `WIDTH`.
    features : int
        Number of features that count.
    """

    score: Interval
    own: float
    same: float
    other: float
    scores: np.ndarray
    features: int


def best_photographs(responses: np.ndarray, count: int) -> np.ndarray:
    """Find each feature's best photographs.

    Parameters
    ----------
    responses : numpy.ndarray
        N photographs x D features.
    count : int
        Photographs of each feature.

    Returns
    -------
    numpy.ndarray
        Positions of the photographs, D x count, the highest response first, ties by position.
    """
    return np.argsort(-np.nan_to_num(responses, nan=-np.inf), axis=0, kind="stable")[:count].T


def processing_path(images: np.ndarray, photographs: np.ndarray, best: np.ndarray) -> PathCheck:
    """Compare how a layer processes features' maximising images and photographs.

    For feature j with maximising image x_j and its m best photographs B_j, and c(x, y) Spearman's correlation of the
    responses of all features of a layer to two images, each feature's responses first standardised over the
    photographs::

        own_j   = mean of c(x_j, p) over p in B_j
        same_j  = mean of c(p, q) over p, q in B_j, p other than q
        other_j = mean of c(p, q) over p in B_j and q in the B_k of other features k, q not in B_j
        score   = (mean_j own_j - mean_j other_j) / (mean_j same_j - mean_j other_j)

    Parameters
    ----------
    images : numpy.ndarray
        Responses of the layer's C features to the maximising images, D x C.
    photographs : numpy.ndarray
        Its responses to the photographs, N x C.
    best : numpy.ndarray
        Positions of each feature's best photographs, D x m, m of 2 or more.

    Returns
    -------
    PathCheck
        Score 1: to the layer, the maximising image is as similar to the feature's best photographs as these are to each
        other; 0: no more similar than photographs that excite other features; below 0: less. NaN where the interval of
        mean same - mean other reaches down to `WIDTH` (photographs of one feature are then no more alike than those of
        different ones), fewer than two features count, or fewer than three features of the layer vary.

    References
    ----------
    Geirhos et al. (ICML 2024), arXiv 2306.04719, section 4: Spearman's similarity of layers' activations to natural and
    synthetic images, scaled by natural images of the same and of other classes. This differs in three ways: a feature's
    best photographs stand for a class, so that any layer can be judged; a layer's responses are means over its grid, so
    that positions need not match; they are standardised, so that no feature of large scale dominates.
    """
    undefined = PathCheck(
        Interval(float("nan")), float("nan"), float("nan"), float("nan"), np.full(len(images), np.nan), 0
    )
    mean, deviation = photographs.mean(axis=0), photographs.std(axis=0)
    varies = np.isfinite(deviation) & (deviation > floors(np.abs(photographs).max(axis=0, initial=0)))
    if varies.sum() < 3 or best.shape[1] < 2 or len(images) < 2:
        return undefined
    z, y = (
        unit_deviations(stats.rankdata((v[:, varies] - mean[varies]) / deviation[varies], axis=1))
        for v in (photographs, images)
    )
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
    defined = np.isfinite(own) & np.isfinite(same) & np.isfinite(other)
    if defined.sum() < 2:
        return undefined
    parts = np.stack([own, same, other])
    scores = np.where(defined, _score(parts), np.nan)
    parts = parts[:, defined]
    rng = generator("path", int(defined.sum()))
    drawn = parts[:, rng.integers(0, parts.shape[1], size=(DRAWS, parts.shape[1]))].mean(axis=2)
    values = _score(drawn)
    # a scale whose width may be 0 would turn noise into scores of any size
    has_scale = np.percentile(drawn[1] - drawn[2], 2.5) > WIDTH
    value = float(_score(parts.mean(axis=1))) if has_scale else float("nan")
    a, b, c = (float(v) for v in parts.mean(axis=1))
    interval = Interval(value, *percentile_interval(values)) if has_scale else Interval(value)
    return PathCheck(interval, a, b, c, scores, int(defined.sum()))


def _score(parts: np.ndarray) -> np.ndarray:
    """Compute the score from the means own, same and other along the first axis; NaN on a scale within `WIDTH`."""
    own, same, other = parts
    width = same - other
    score: np.ndarray = np.where(width > WIDTH, (own - other) / np.where(width > WIDTH, width, 1), np.nan)
    return score


def permute_columns(A: np.ndarray, draw: int) -> np.ndarray:
    """Permute the entries of each column by itself, which leaves no similarity.

    Parameters
    ----------
    A : numpy.ndarray
        Responses, N x D.
    draw : int
        Number of the draw, which seeds the generator.

    Returns
    -------
    numpy.ndarray
        N x D.
    """
    return generator("permuted", draw, *A.shape).permuted(A, axis=0)


def permutation_agreement(
    A: np.ndarray, others: Sequence[np.ndarray], draws: int = 20, method: str = "pearson"
) -> list[Interval]:
    """Correlate S with other tables when A is permuted within columns.

    Parameters
    ----------
    A : numpy.ndarray
        Responses, D x D, without NaN.
    others : sequence of numpy.ndarray
        Tables of the same features, D x D.
    draws : int, default 20
        Permutations.
    method : {"pearson", "spearman"}, default "pearson"
        As in `mantel`.

    Returns
    -------
    list of Interval
        For each table the mean over the draws, about 0, and the interval that holds 95 % of them.
    """
    correlations: list[list[float]] = [[] for _ in others]
    tables = [rank_pairs(t) if method == "spearman" else t for t in others]
    for draw in range(draws):
        S = profile_correlations(permute_columns(A, draw))
        for values, other in zip(correlations, tables, strict=True):
            own = rank_pairs(np.where(np.isfinite(other), S, np.nan)) if method == "spearman" else S
            values.append(float(pair_correlation(own, other)[0]))
    intervals = []
    for values in correlations:
        finite = [v for v in values if np.isfinite(v)]
        low, high = np.percentile(finite, [2.5, 97.5]) if finite else (np.nan, np.nan)
        intervals.append(Interval(float(np.mean(finite)) if finite else float("nan"), float(low), float(high)))
    return intervals
