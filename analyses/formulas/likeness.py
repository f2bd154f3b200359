"""Agreement of two sets of images of the same features in how they drive a layer, without torch.

The sets differ in how the images were made (recipe, metric, seed); row i of both matrices of responses belongs to
feature i. `featmap.stats.reliability` asks whether S comes out the same; this module asks whether each image does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from featmap.stats.correlation import standardise, unit_deviations


@dataclass(frozen=True, eq=False)
class ProfileAgreement:
    """Agreement of the response profiles of two sets of N images, feature by feature.

    Parameters
    ----------
    same : numpy.ndarray
        Correlation of the profiles of each feature's two images: N values in [-1, 1], NaN where undefined.
    different : numpy.ndarray
        Mean correlation of each feature's profiles with those of the other features in the other set: N values.
    """

    same: np.ndarray
    different: np.ndarray

    @property
    def excess(self) -> np.ndarray:
        """The correlation `same` minus `different`: N values, 0 by chance."""
        return self.same - self.different


def profile_agreement(first: np.ndarray, second: np.ndarray, fewest: int = 2) -> ProfileAgreement:
    """Compute how well the profiles of two sets of images of the same features agree.

    Each set is standardised by column over its own images: neither a feature's scale nor what all images of a set have
    in common counts as agreement or disagreement. Then rows are correlated (Pearson). As columns have mean 0 over the
    set, profiles of different features correlate by about -1 / (N - 1) even by chance; of 2 images nothing else is
    left. Agreements of sets of different N therefore do not compare: give each a ceiling computed on its own rows. A
    row that is not finite is left out, as is a column that does not vary in both sets.

    Parameters
    ----------
    first, second : numpy.ndarray
        Responses, `N x M`: images x features of the probed layer, in the same order in both.
    fewest : int, default 2
        Fewest rows to compare, at least 2; below, everything is undefined.

    Returns
    -------
    ProfileAgreement
        N values each; all NaN below 3 columns.
    """
    sets = [np.asarray(x, dtype=np.float64) for x in (first, second)]
    rows = np.asarray(np.isfinite(sets[0]).all(1) & np.isfinite(sets[1]).all(1))
    r = np.full((len(rows), len(rows)), np.nan)
    if rows.sum() >= max(2, fewest):
        Z = [standardise(x[rows], np.ones(int(rows.sum()), dtype=bool)) for x in sets]
        varies = np.isfinite(Z[0]).all(0) & np.isfinite(Z[1]).all(0)
        if varies.sum() >= 3:
            one, two = (unit_deviations(z[:, varies]) for z in Z)
            r[np.ix_(rows, rows)] = np.clip(one @ two.T, -1, 1)
    others = np.where(np.eye(len(r), dtype=bool), np.nan, (r + r.T) / 2)
    defined = np.isfinite(others)
    count = defined.sum(1)
    mean = np.where(defined, others, 0.0).sum(1) / np.maximum(count, 1)
    return ProfileAgreement(r.diagonal().copy(), np.where(count > 0, mean, np.nan))


def pairwise_correlations(rows: np.ndarray) -> np.ndarray:
    """Compute Pearson's correlation of every two rows.

    Parameters
    ----------
    rows : numpy.ndarray
        `N x ...`; each row is flattened.

    Returns
    -------
    numpy.ndarray
        `N x N`, in [-1, 1]; NaN for rows that do not vary.
    """
    unit = unit_deviations(np.asarray(rows, dtype=np.float64).reshape(len(rows), -1))
    return np.asarray(np.clip(unit @ unit.T, -1, 1))


def correlation_clusters(correlations: np.ndarray, alike: float) -> np.ndarray:
    """Cluster items by average linkage of 1 - correlation.

    Two clusters are joined as long as their members correlate by more than `alike` on average.

    Parameters
    ----------
    correlations : numpy.ndarray
        `N x N`, symmetric.
    alike : float
        Least mean correlation within a cluster.

    Returns
    -------
    numpy.ndarray
        N labels from 0; -1 for an item whose correlation with itself is undefined.
    """
    labels = np.full(len(correlations), -1)
    defined = np.flatnonzero(np.isfinite(correlations.diagonal()))
    if len(defined) == 1:
        labels[defined] = 0
    elif len(defined):
        apart = np.clip(1 - correlations[np.ix_(defined, defined)], 0, None)
        np.fill_diagonal(apart, 0.0)
        tree = linkage(squareform((apart + apart.T) / 2, checks=False), "average")
        labels[defined] = fcluster(tree, 1 - alike, "distance") - 1
    return labels
