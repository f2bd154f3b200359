"""Facets: how different several images of one unit are, and how many of them are clearly different.

Images are compared by the responses of a layer's features: less their mean over reference images, in units of their
standard deviation over these. The distance is one minus the cosine of two such vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from featmap.errors import FeatmapError
from featmap.rng import generator
from featmap.stats import correlation
from featmap.stats.frames import finite_column

if TYPE_CHECKING:  # a descent starts without pandas
    import pandas as pd

MAX_FACETS = 16
KEPT = 0.9
"""A facet counts if it keeps at least this share of the unit's response, see `kept_share`."""
NULL_PERCENTILE = 95.0
"""Facets are clearly different if their distance is above this percentile of those between repeated images."""
MIN_DISTANCE = 0.1
"""Facets that are nearer than this are never clearly different. Repeated images may agree almost exactly: then every
facet is farther from the others than they are from each other, however little it differs."""
MIN_NULL = 20
"""Fewest units whose repeated images make a null; with fewer, the 95th percentile would be their maximum."""
MIN_SHARE = 0.05
"""Features that vary by less than this share of the layer's median over the reference images do not count."""
MIN_OTHERS = 4
"""The unit's own features do not count if at least so many others do: all facets excite the unit, by design."""


def check_facets(count: int, start: bool = False) -> int:
    """Check a number of facets.

    Parameters
    ----------
    count : int
        Number of images of each unit; 0 makes no facets.
    start : bool, default False
        Whether descents start from a given image. Repeated images of a unit then hardly differ, or not at all, so that
        they cannot say which distances between facets are large.

    Returns
    -------
    int
        The number.

    Raises
    ------
    FeatmapError
        If it is not 0 and not in 2 to `MAX_FACETS`, or there are facets and a start image.
    """
    if isinstance(count, bool) or count not in (0, *range(2, MAX_FACETS + 1)):
        raise FeatmapError(f"facets {count}: give the number of images of each unit, 2 to {MAX_FACETS}, or 0 for none")
    if count and start:
        raise FeatmapError(
            f"facets {count} from a start image: facets are compared with images from different noise; "
            "leave out the start image or the facets"
        )
    return int(count)


def count_descents(count: int) -> int:
    """Count the descents of each unit.

    Parameters
    ----------
    count : int
        Number of facets, see `check_facets`.

    Returns
    -------
    int
        1 without facets; else one for each facet (the ordinary image is the first) and one for the repeated image.
    """
    return 1 + count


def count_passes(count: int) -> int:
    """Count the descents that the facets of a unit cost, in ordinary descents.

    Parameters
    ----------
    count : int
        Number of facets, see `check_facets`.

    Returns
    -------
    int
        1 without facets; else 1 for the ordinary image, 1 for the repeated one, and 2 for each other facet, each step
        of which takes a pass for its unit and a pass that pushes it away from the facets before it. Further attempts
        at facets that lost too much of the response are not counted: how many there are is not known before.
    """
    return 2 * count if count else 1


def facet_seed(seed: int, number: int) -> int:
    """Draw the seed of the noise and of the transforms of one facet.

    Parameters
    ----------
    seed : int
        Seed of the ordinary image, which is facet 0.
    number : int
        Number of the facet, from 1; 0 is the repeated image that the null is made of.

    Returns
    -------
    int
        At least 0; it depends on (seed, number) only.
    """
    return int(generator("facet", seed, number).integers(1 << 31))


def feature_weights(deviations: np.ndarray, own: Sequence[int]) -> np.ndarray:
    """Weigh the features of a layer for the comparison of a unit's images.

    Parameters
    ----------
    deviations : numpy.ndarray
        Standard deviation of each feature's response over reference images, C.
    own : sequence of int
        Features that the unit consists of.

    Returns
    -------
    numpy.ndarray
        Weight of each feature, C: one over its deviation; 0 for one that hardly varies (by less than `MIN_SHARE` of the
        median) or is not finite, and for the unit's own ones if at least `MIN_OTHERS` others have a weight.
    """
    finite = np.where(np.isfinite(deviations), deviations, 0.0).astype(float)
    varying = finite[finite > 0]
    counts = finite > (MIN_SHARE * np.median(varying) if varying.size else np.inf)
    weights = np.divide(1.0, finite, out=np.zeros_like(finite), where=counts)
    others = weights.copy()
    others[list(own)] = 0.0
    return others if np.count_nonzero(others) >= MIN_OTHERS else weights


def unit_vectors(responses: np.ndarray, means: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Standardise responses and scale them to length one.

    Parameters
    ----------
    responses : numpy.ndarray
        Responses of the layer's features to each image, ... x C.
    means : numpy.ndarray
        Mean of each feature's response over reference images, C.
    weights : numpy.ndarray
        See `feature_weights`, ... x C.

    Returns
    -------
    numpy.ndarray
        ... x C, of length 1; NaN where no feature that counts deviates from its mean, or one is not finite.
    """
    # 0 times infinity is NaN
    standardised = np.where(weights > 0, np.asarray(responses, dtype=float) - means, 0.0) * weights
    return correlation.unit_vectors(standardised, floor=0.0)


def distances(vectors: np.ndarray) -> np.ndarray:
    """Compute the distance of every two facets.

    Parameters
    ----------
    vectors : numpy.ndarray
        Unit vectors, see `unit_vectors`, ... x n x C.

    Returns
    -------
    numpy.ndarray
        One minus the cosine, ... x n x n, in [0, 2]: symmetric, 0 on the diagonal; 0 for images whose standardised
        responses are proportional, 1 for unrelated ones. NaN where a vector is undefined.
    """
    cosines = np.einsum("...ic,...jc->...ij", vectors, vectors)
    result = (1 - cosines).clip(0, 2)
    n = result.shape[-1]
    return np.where(np.eye(n, dtype=bool) & np.isfinite(result), 0.0, result)


def null_threshold(repeats: np.ndarray) -> float:
    """Compute the distance beyond which two facets are clearly different.

    Parameters
    ----------
    repeats : numpy.ndarray
        For each unit, the distance of two ordinary images of it, from different starts.

    Returns
    -------
    float
        The `NULL_PERCENTILE` of the finite ones, at least `MIN_DISTANCE`; NaN if there are fewer than `MIN_NULL`.
    """
    finite = repeats[np.isfinite(repeats)]
    return max(MIN_DISTANCE, float(np.percentile(finite, NULL_PERCENTILE))) if finite.size >= MIN_NULL else float("nan")


def kept_share(activation: np.ndarray, null: np.ndarray, repeated: np.ndarray) -> np.ndarray:
    """Compute how much of the better of two ordinary responses each facet keeps.

    One ordinary image alone would not do: from another start the response often is higher or lower by a third.

    Parameters
    ----------
    activation : numpy.ndarray
        Response of the unit to its facets, N x n; the first one is the ordinary image.
    null : numpy.ndarray
        Response of the unit to the null image, N.
    repeated : numpy.ndarray
        Response of the unit to another ordinary image, from another start, N; NaN where there is none.

    Returns
    -------
    numpy.ndarray
        (a_k - null) / (max(a_0, repeated) - null), N x n; the ordinary image's own share may be below 1. NaN where the
        ordinary image does not exceed the null image.
    """
    rise = np.asarray(activation, dtype=float) - np.asarray(null, dtype=float)[:, None]
    other = np.asarray(repeated, dtype=float) - np.asarray(null, dtype=float)
    best = np.maximum(rise[:, 0], np.where(np.isfinite(other), other, -np.inf))[:, None]
    return np.divide(rise, best, out=np.full_like(rise, np.nan), where=rise[:, :1] > 0)


def clearly_different(between: np.ndarray, kept: np.ndarray, threshold: float) -> np.ndarray:
    """Select the facets that are clearly different from all selected before them.

    Parameters
    ----------
    between : numpy.ndarray
        Distances of the n facets of a unit, n x n.
    kept : numpy.ndarray
        Share of the ordinary response that each keeps, see `kept_share`, n.
    threshold : float
        See `null_threshold`.

    Returns
    -------
    numpy.ndarray
        n booleans. The ordinary image is selected; then, in turn, the facet that is farthest from the selected ones,
        as long as it is farther than `threshold` and keeps at least `KEPT` of the response.
    """
    selected = np.zeros(len(between), dtype=bool)
    selected[0] = True
    allowed = np.asarray(kept) >= KEPT
    while True:
        nearest = np.where(allowed & ~selected, np.nan_to_num(between[:, selected].min(axis=1), nan=-1.0), -1.0)
        best = int(np.argmax(nearest))
        if not nearest[best] > threshold:
            return selected
        selected[best] = True


def facet_table(
    names: Sequence[str],
    groups: Sequence[object],
    activation: np.ndarray,
    null: np.ndarray,
    between: np.ndarray,
    repeats: np.ndarray,
    repeated: np.ndarray,
) -> tuple[pd.DataFrame, pd.Series]:
    """Tabulate the facets of all units, and count the clearly different ones of each.

    Parameters
    ----------
    names : sequence of str
        The N units.
    groups : sequence
        What each unit shares its null with, such as its layer, N.
    activation : numpy.ndarray
        Response of each unit to its n facets, N x n; the first one is the ordinary image.
    null : numpy.ndarray
        Response of each unit to the null image, N.
    between : numpy.ndarray
        Distances of each unit's facets, N x n x n.
    repeats : numpy.ndarray
        Distance of each unit's ordinary image and another one from another start, N.
    repeated : numpy.ndarray
        Response of each unit to that other one, N.

    Returns
    -------
    table : pandas.DataFrame
        N n rows: image, facet (its number), activation, kept (see `kept_share`), nearest (distance to the nearest other
        facet), different (1 if it is among the clearly different ones, else 0; NaN where that is not decided).
    counts : pandas.Series
        Number of clearly different facets by unit, at least 1, float64; NaN where fewer than `MIN_NULL` units of the
        group have repeated images, or the unit's ordinary image does not exceed the null image.
    """
    import pandas as pd

    kept, n = kept_share(activation, null, repeated), activation.shape[1]
    different = np.full((len(names), n), np.nan)
    for group in dict.fromkeys(groups):
        rows = [k for k, other in enumerate(groups) if other == group]
        threshold = null_threshold(np.asarray(repeats, dtype=float)[rows])
        for k in rows:
            if np.isfinite(threshold) and np.isfinite(kept[k, 0]):
                different[k] = clearly_different(between[k], kept[k], threshold)
    others = np.where(np.eye(n, dtype=bool), np.nan, between)
    nearest = np.where(np.isnan(others).all(2), np.nan, np.nanmin(np.nan_to_num(others, nan=np.inf), axis=2))
    table = pd.DataFrame(
        {
            "image": np.repeat(np.asarray(names, dtype=object), n),
            "facet": np.tile(np.arange(n), len(names)),
            "activation": finite_column(np.asarray(activation, dtype=float).ravel()),
            "kept": finite_column(kept.ravel()),
            "nearest": finite_column(nearest.ravel()),
            "different": different.ravel(),
        }
    )
    return table, pd.Series(different.sum(axis=1), index=pd.Index(names, name="image"), name="facets")
