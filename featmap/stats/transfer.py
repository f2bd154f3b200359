"""Transfer: how far another network recognises what a network's maximising images were made for.

Class logits are judged by the rank of the true class. A hidden feature has no counterpart by name, so it is matched to
the other network's feature of the most similar responses over photographs, and judged by that partner's response.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from featmap.rng import generator
from featmap.stats.correlation import DIGITS, unit_deviations
from featmap.stats.reliability import LEVEL, Interval

ROWS = 512
"""Features that are matched at a time."""


def class_ranks(logits: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Compute the rank of each image's class among all classes.

    The rank is the number of other classes whose logit is at least as high: ties count against the image, so that a
    network that answers the same to all classes recognises nothing.

    Parameters
    ----------
    logits : numpy.ndarray
        Another network's logits, R images x K classes; any increasing function of them gives the same ranks.
    classes : numpy.ndarray
        Class that each image was made for, R integers from 0 to K - 1.

    Returns
    -------
    numpy.ndarray
        R ranks, float64, from 0 (first) to K - 1 (last); NaN for an image with a logit that is not finite.
    """
    values = np.asarray(logits, dtype=np.float64)
    own = values[np.arange(len(values)), classes]
    with np.errstate(invalid="ignore"):
        ranks = (values >= own[:, None]).sum(axis=1) - 1.0
    return np.where(np.isfinite(values).all(axis=1), ranks, np.nan)


def top_share(ranks: np.ndarray, n: int, count: int | None = None) -> Interval:
    """Compute the share of images whose class is among the first n.

    Parameters
    ----------
    ranks : numpy.ndarray
        Ranks of the true class, 0 is first; those that are NaN are left out.
    n : int
        1 for top-1, 5 for top-5.
    count : int, optional
        Number of independent observations, such as the number of classes where each has images of several seeds.
        Default: the number of ranks.

    Returns
    -------
    Interval
        Share in [0, 1], where n / K is chance for K classes, with Wilson's interval; NaN without ranks.
    """
    finite = ranks[np.isfinite(ranks)]
    if not len(finite):
        return Interval(float("nan"))
    share = float((finite < n).mean())
    return Interval(share, *wilson_interval(share, len(finite) if count is None else count))


def wilson_interval(share: float, count: int, level: float = LEVEL) -> tuple[float, float]:
    """Compute Wilson's score interval of a share.

    With z the normal quantile of (1 + level) / 2, its ends are
    ``(share + z^2 / 2n -+ z sqrt(share (1 - share) / n + z^2 / 4n^2)) / (1 + z^2 / n)``.

    Parameters
    ----------
    share : float
        Share of successes, in [0, 1].
    count : int
        Number of independent trials n.
    level : float, default 0.95
        Confidence, between 0 and 1.

    Returns
    -------
    low, high : float
        Ends, in [0, 1]; NaN without trials.

    References
    ----------
    Wilson (1927), doi 10.1080/01621459.1927.10502953.
    """
    if count < 1:
        return float("nan"), float("nan")
    z = float(stats.norm.ppf((1 + level) / 2))
    centre, scale = share + z**2 / (2 * count), 1 + z**2 / count
    reach = z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return max(0.0, float((centre - reach) / scale)), min(1.0, float((centre + reach) / scale))


def split_photographs(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Split photographs into a half to match features on and a half to score them on.

    Parameters
    ----------
    count : int
        Number of photographs.

    Returns
    -------
    matching, scoring : numpy.ndarray
        Indices in rising order, ``count // 2`` and the rest. The split depends on the count alone.
    """
    order = generator("transfer", count).permutation(count)
    return np.sort(order[: count // 2]), np.sort(order[count // 2 :])


@dataclass(frozen=True, eq=False)
class Partners:
    """Features of another network with the most similar responses to features.

    Parameters
    ----------
    features : numpy.ndarray
        Index of the partner, D; -1 where there is none.
    correlation : numpy.ndarray
        Pearson's correlation with it over the matching half, D, above 0; as the highest of many it is biased upwards.
    held_out : numpy.ndarray
        The same over the scoring half, D, in [-1, 1]: unbiased. A low one means that the other network has no such
        feature, and the transfer says little. Both are NaN without a partner, `held_out` also where either is constant.
    """

    features: np.ndarray
    correlation: np.ndarray
    held_out: np.ndarray


def match_features(source: np.ndarray, other: np.ndarray) -> Partners:
    """Match each feature of a network to the most similar feature of another one.

    Features are matched over one half of the photographs (`split_photographs`) by Pearson's correlation; the first one
    of equal correlations is taken.

    Parameters
    ----------
    source : numpy.ndarray
        Responses of D features to P photographs, P x D.
    other : numpy.ndarray
        Responses of the other network's G features to the same photographs, P x G.

    Returns
    -------
    Partners
        A feature whose responses are constant or not finite over the matching half has no partner, and is the partner
        of no other. A feature that correlates positively with no feature of the other network has no partner either.

    References
    ----------
    Li et al. (2016), Convergent learning, arXiv 1511.07543, section 3 (matching by the highest correlation).
    """
    matching, scoring = split_photographs(len(source))
    one, two = (_unit_columns(t[matching]) for t in (source, other))
    count = source.shape[1]
    features, correlation = np.full(count, -1), np.full(count, np.nan)
    for first in range(0, count if other.shape[1] else 0, ROWS):
        rows = slice(first, first + ROWS)
        # rounded: equal features must tie, whatever the order of the sums
        table = np.round(np.nan_to_num(one[rows] @ two.T, nan=-1.0), DIGITS)
        best = table.argmax(axis=1)
        highest = np.minimum(table[np.arange(len(best)), best], 1.0)
        features[rows] = np.where(highest > 0, best, -1)
        correlation[rows] = np.where(highest > 0, highest, np.nan)
    has_partner = features >= 0
    held_out = np.full(count, np.nan)
    if has_partner.any():
        pairs = source[scoring][:, has_partner], other[scoring][:, features[has_partner]]
        held_out[has_partner] = np.clip((_unit_columns(pairs[0]) * _unit_columns(pairs[1])).sum(axis=1), -1, 1)
    return Partners(features, correlation, held_out)


def _unit_columns(responses: np.ndarray) -> np.ndarray:
    """Transpose, and scale each row to mean 0 and length 1; NaN where it is constant or not finite."""
    rows = np.asarray(responses, dtype=np.float64).T
    finite = np.isfinite(rows).all(axis=1, keepdims=True)
    return np.where(finite, unit_deviations(np.where(finite, rows, 0.0)), np.nan)


def percentiles(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Compute the percentile of values among reference values.

    Parameters
    ----------
    values : numpy.ndarray
        Values of any shape.
    reference : numpy.ndarray
        T reference values, T of 1 or more.

    Returns
    -------
    numpy.ndarray
        Share of the reference that is lower, and half of the share that is equal; in [0, 1], 1 above all of it. NaN for
        values that are not finite.
    """
    ordered = np.sort(reference)
    count = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
    return np.where(np.isfinite(values), count / (2 * len(ordered)), np.nan)


@dataclass(frozen=True, eq=False)
class FeatureTransfer:
    """Transfer of hidden features to their partners, a value for each image.

    Parameters
    ----------
    own : numpy.ndarray
        Percentile of the partner's response to the image among its responses to the scoring half of the photographs, R.
    baseline : numpy.ndarray
        The same, averaged over the images of all other features, R. Images of any kind may excite a network more than
        photographs do; only the difference of `own` and this is due to the feature.
    among_images : numpy.ndarray
        Share of the other features' images that excite the partner less than the image does, ties half, R; 0.5 by
        chance. It does not saturate where all images excite more than photographs.
    ceiling : numpy.ndarray
        Percentile of the partner's response to the photograph of the scoring half that the feature itself responds to
        most strongly, R.
    """

    own: np.ndarray
    baseline: np.ndarray
    among_images: np.ndarray
    ceiling: np.ndarray


def feature_transfer(
    features: np.ndarray, partners: Partners, images: np.ndarray, source: np.ndarray, other: np.ndarray
) -> FeatureTransfer:
    """Compute how strongly features' partners respond to the features' images.

    Parameters
    ----------
    features : numpy.ndarray
        Feature that each image was made for, R integers from 0 to D - 1; with several seeds it has several images.
    partners : Partners
        Partners of the D features.
    images : numpy.ndarray
        Responses of the other network's G features to the images, R x G.
    source : numpy.ndarray
        Responses of the D features to P photographs, P x D.
    other : numpy.ndarray
        Responses of the other network's features to the photographs, P x G.

    Returns
    -------
    FeatureTransfer
        NaN for features without a partner and images whose responses are not finite; `baseline` and `among_images` also
        without images of other features.
    """
    _, scoring = split_photographs(len(other))
    result = np.full((4, len(features)), np.nan)
    for r, feature in enumerate(features):
        partner = partners.features[feature]
        if partner < 0 or not np.isfinite(images[r, partner]):
            continue
        reference = other[scoring, partner]
        result[0, r] = percentiles(images[r, partner], reference)
        result[3, r] = percentiles(reference[np.argmax(source[scoring, feature])], reference)
        others = images[features != feature, partner]
        others = others[np.isfinite(others)]
        if len(others):
            result[1, r] = percentiles(others, reference).mean()
            result[2, r] = percentiles(images[r, partner], others)
    return FeatureTransfer(*result)
