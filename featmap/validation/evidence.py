"""Evidence on which the map of one layer is evaluated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from featmap.stats.clustering import Clusters
from featmap.stats.measures import profile_correlations


@dataclass(eq=False)
class Evidence:
    """Responses, weights and clusters of the D mapped features of one layer.

    Parameters
    ----------
    layer : str
        Name of the layer.
    names : list of str
        Names of the features.
    live : numpy.ndarray
        Features that are live in every seed of the run, D booleans.
    live_in_all_seeds : numpy.ndarray
        Features that are live in every seed of the run and of the validation, D booleans.
    seed_responses : numpy.ndarray
        A of each seed, seeds x D x D; those of the run come first.
    run_seeds : int
        Number of seeds of the run: its map is that of the mean of their A.
    photograph_responses : numpy.ndarray, optional
        Responses to N photographs, N x D.
    path_responses : dict, optional
        For each layer on the processing path, from the earliest on, the responses of its C features to the images of
        the first seed (D x C) and to the photographs (N x C).
    skipped_layers : int, default 0
        Number of layers on the processing path that are not in `path_responses`.
    incoming, outgoing : tuple of (numpy.ndarray, numpy.ndarray), optional
        Cosines of the features' incoming or outgoing weights (D x D), and a label for each feature (D): only cosines of
        equal labels are comparable. None where there are none.
    clusters : Clusters, optional
        Clusters of the run's map.
    neighbours : int, default 10
        Neighbours k of each feature in the map's graph.
    read_image : callable, optional
        Reads a feature's stored image of the first seed, `C x H x W`.
    """

    layer: str
    names: list[str]
    live: np.ndarray
    live_in_all_seeds: np.ndarray
    seed_responses: np.ndarray
    run_seeds: int
    photograph_responses: np.ndarray | None = None
    path_responses: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    skipped_layers: int = 0
    incoming: tuple[np.ndarray, np.ndarray] | None = None
    outgoing: tuple[np.ndarray, np.ndarray] | None = None
    clusters: Clusters | None = None
    neighbours: int = 10
    read_image: Callable[[str], np.ndarray] = lambda name: np.zeros((3, 1, 1))

    @property
    def mean_responses(self) -> np.ndarray:
        """A of the run's map: the mean over the run's seeds, D x D."""
        mean: np.ndarray = self.seed_responses[: self.run_seeds].astype(np.float64).mean(axis=0)
        return mean

    @property
    def S(self) -> np.ndarray:
        """Profile similarity of the run's map, D x D, NaN for features that are not live."""
        return self.similarity_of(self.live)

    def similarity_of(self, features: np.ndarray) -> np.ndarray:
        """Compute the profile similarity of some features over all live images.

        Parameters
        ----------
        features : numpy.ndarray
            Live features that take part as responses, D booleans.

        Returns
        -------
        numpy.ndarray
            S, D x D, in [-1, 1], centred over these features; NaN for the others.
        """
        full = np.full(self.mean_responses.shape, np.nan)
        values = self.mean_responses[np.ix_(self.live, features)].astype(np.float64)
        full[np.ix_(features, features)] = profile_correlations(values)
        return full


def layer_similarity(A: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Compute the profile similarity of some features over their own images.

    Parameters
    ----------
    A : numpy.ndarray
        Responses of D features to their D images, D x D.
    mask : numpy.ndarray
        Features that take part, as stimuli and as responses, D booleans.

    Returns
    -------
    numpy.ndarray
        S, D x D, in [-1, 1]; NaN for the other features.
    """
    full = np.full(A.shape, np.nan)
    block = np.ix_(mask, mask)
    full[block] = profile_correlations(A[block].astype(np.float64))
    return full


def photograph_similarity(responses: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Compute the profile similarity of some features over photographs.

    Parameters
    ----------
    responses : numpy.ndarray
        Responses of D features to N photographs, N x D.
    mask : numpy.ndarray
        Features that take part, D booleans.

    Returns
    -------
    numpy.ndarray
        S, D x D, in [-1, 1]; NaN for the other features.
    """
    full = np.full((responses.shape[1],) * 2, np.nan)
    full[np.ix_(mask, mask)] = profile_correlations(responses[:, mask].astype(np.float64))
    return full
