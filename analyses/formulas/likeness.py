"""Whether two sets of images of the same features drive a layer alike: the rows of A, feature by feature. No torch.

The sets differ in how the images were made (recipe, metric, seed); row i of both belongs to feature i. Where
`reliability` asks whether S comes out the same, this asks whether each image does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from featmap.stats.correlation import standardise


@dataclass(frozen=True, eq=False)
class ProfileAgreement:
    """How alike the response profiles of two sets of N images are, feature by feature.

    `same` holds the correlation of each feature's two images' profiles, `different` the mean correlation of its
    profiles with the other features' in the other set; both N values in [-1, 1], NaN where undefined.
    """

    same: np.ndarray
    different: np.ndarray

    @property
    def beyond(self) -> np.ndarray:
        """The same feature's correlation less the different features': N values, 0 by chance."""
        return self.same - self.different


def profile_agreement(first: np.ndarray, second: np.ndarray, fewest: int = 2) -> ProfileAgreement:
    """Return how alike two sets of images of the same N features drive M responses.

    Parameters
    ----------
    first, second : N x M responses, images x features of the probed layer, the same of both in the same order
    fewest : below so many rows to compare everything is undefined, at least 2

    Each set is standardised by column over its own images: a feature's scale, and what all images of one set do
    alike, are neither likeness nor unlikeness. Then rows are correlated (Pearson). Since columns have mean 0 over the
    set, profiles of different features correlate with about -1 / (N - 1) even by chance; with 2 images nothing but
    that is left, so that the agreement of sets of different N does not compare: give each a ceiling on its own rows. A
    row that is not finite is left out, a column that does not vary in either set too; below 3 columns everything is
    undefined.
    """
    sets = [np.asarray(x, dtype=np.float64) for x in (first, second)]
    rows = np.asarray(np.isfinite(sets[0]).all(1) & np.isfinite(sets[1]).all(1))
    r = np.full((len(rows), len(rows)), np.nan)
    if rows.sum() >= max(2, fewest):
        Z = [standardise(x[rows], np.ones(int(rows.sum()), dtype=bool)) for x in sets]
        varies = np.isfinite(Z[0]).all(0) & np.isfinite(Z[1]).all(0)
        if varies.sum() >= 3:
            one, two = (_unit_rows(z[:, varies]) for z in Z)
            r[np.ix_(rows, rows)] = np.clip(one @ two.T, -1, 1)
    others = np.where(np.eye(len(r), dtype=bool), np.nan, (r + r.T) / 2)
    known = np.isfinite(others)
    count = known.sum(1)
    mean = np.where(known, others, 0.0).sum(1) / np.maximum(count, 1)
    return ProfileAgreement(r.diagonal().copy(), np.where(count > 0, mean, np.nan))


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    """Return rows less their mean, of length 1; NaN where they do not vary."""
    held = rows - rows.mean(1, keepdims=True)
    length = np.linalg.norm(held, axis=1, keepdims=True)
    return np.divide(held, length, out=np.full_like(held, np.nan), where=length > 1e-9 * np.sqrt(held.shape[1]))


def pairwise_correlations(rows: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation of every two of N rows (flattened): N x N, NaN for rows that do not vary."""
    held = _unit_rows(np.asarray(rows, dtype=np.float64).reshape(len(rows), -1))
    return np.asarray(np.clip(held @ held.T, -1, 1))


def correlation_clusters(correlations: np.ndarray, alike: float) -> np.ndarray:
    """Return which of N things are of one kind: N labels from 0, by average linkage of 1 - correlation.

    Two kinds are joined as long as their members correlate with more than `alike` on average. What has an undefined
    correlation with itself is of no kind: -1.
    """
    labels = np.full(len(correlations), -1)
    known = np.flatnonzero(np.isfinite(correlations.diagonal()))
    if len(known) == 1:
        labels[known] = 0
    elif len(known):
        apart = np.clip(1 - correlations[np.ix_(known, known)], 0, None)
        np.fill_diagonal(apart, 0.0)
        tree = linkage(squareform((apart + apart.T) / 2, checks=False), "average")
        labels[known] = fcluster(tree, 1 - alike, "distance") - 1
    return labels
