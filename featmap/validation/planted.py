"""Build networks of known feature similarity, to test whether a similarity map recovers it.

Features read disjoint square patches of the image through weights whose cosines are chosen. In a linear network under
the recipe `LINEAR` the maximising image of a feature is then the null image plus its weights in every patch, and S has
a closed form; with ReLUs S should have the order of the cosines.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from featmap.errors import FeatmapError, suggest
from featmap.optimize.recipe import Octave, Recipe
from featmap.rng import generator
from featmap.stats.measures import profile_correlations

SIDE, PATCHES, HIDDEN = 8, 2, 96
"""Side of a patch in pixels, patches along a side of the image, and channels of the hidden layer of a deep network."""
LINEAR = Recipe("planted-linear", (Octave(20, (0.05, 0.02), size=SIDE * PATCHES),), optimiser="rms", clamp="never")
"""Linear steps without blur, under which a planted linear network's S is known exactly (dead ReLUs are rescued)."""
DEPTHS = ("linear", "relu", "deep")
"""One convolution; the same with a ReLU; a hidden layer with a ReLU, a 1x1 convolution and a ReLU."""


@dataclass(frozen=True, eq=False)
class Structure:
    """The planted similarity of D features.

    Parameters
    ----------
    cosines : numpy.ndarray
        Cosines of the features' weights, D x D, 1 on the diagonal.
    clusters : numpy.ndarray or None
        Label of each feature's group, D; None where the structure has no groups.
    factors : numpy.ndarray
        Factor of each feature's weights, D; the similarity must not depend on it.
    """

    cosines: np.ndarray
    clusters: np.ndarray | None
    factors: np.ndarray


STRUCTURES: dict[str, Callable[[int, np.random.Generator], Structure]] = {}


def _structure(name: str) -> Callable[[Callable[..., Structure]], Callable[..., Structure]]:
    """Register the decorated function in `STRUCTURES` under a name."""

    def enter(function: Callable[..., Structure]) -> Callable[..., Structure]:
        STRUCTURES[name] = function
        return function

    return enter


@_structure("duplicates")
def duplicates(features: int, rng: np.random.Generator) -> Structure:
    """Plant exact copies of features that have nothing in common.

    Parameters
    ----------
    features : int
        Number D of features.
    rng : numpy.random.Generator
        Source of random numbers.

    Returns
    -------
    Structure
        Groups of eight copies (fewer where D is below 16), cosine 1 within and 0 between them.
    """
    labels = np.arange(features) % max(2, features // 8)
    return Structure((labels[:, None] == labels).astype(float), labels, np.ones(features))


@_structure("scaled")
def scaled(features: int, rng: np.random.Generator) -> Structure:
    """Plant copies of different scale.

    Parameters
    ----------
    features : int
        Number D of features.
    rng : numpy.random.Generator
        Source of random numbers.

    Returns
    -------
    Structure
        That of `duplicates`, with factors from 1/8 to 8.
    """
    same = duplicates(features, rng)
    return Structure(same.cosines, same.clusters, 2.0 ** rng.integers(-3, 4, size=features))


@_structure("blocks")
def blocks(features: int, rng: np.random.Generator) -> Structure:
    """Plant four groups of similar features.

    Parameters
    ----------
    features : int
        Number D of features.
    rng : numpy.random.Generator
        Source of random numbers.

    Returns
    -------
    Structure
        Cosine 0.6 within the groups and 0 between them.
    """
    labels = np.arange(features) % min(4, features)
    cosines = np.where(labels[:, None] == labels, 0.6, 0.0)
    np.fill_diagonal(cosines, 1.0)
    return Structure(cosines, labels, np.ones(features))


@_structure("mixtures")
def mixtures(features: int, rng: np.random.Generator) -> Structure:
    """Plant pairs of which the second is a mixture of the first and a part of its own.

    Parameters
    ----------
    features : int
        Number D of features.
    rng : numpy.random.Generator
        Source of random numbers.

    Returns
    -------
    Structure
        Cosines from -0.9 to 0.9 within the pairs and 0 between them; no groups.
    """
    cosines = np.eye(features)
    for k, r in enumerate(np.linspace(-0.9, 0.9, max(1, features // 2))[: features // 2]):
        cosines[2 * k, 2 * k + 1] = cosines[2 * k + 1, 2 * k] = r
    return Structure(cosines, None, np.ones(features))


@dataclass(frozen=True, eq=False)
class Planted:
    """A network with a layer ``features`` of known similarity.

    Parameters
    ----------
    module : torch.nn.Module
        The network, which takes images in [0, 1].
    structure : Structure
        What was planted, before noise.
    cosines : numpy.ndarray
        Cosines of the weights with their noise, D x D.
    depth : str
        One of `DEPTHS`.
    size : int, default 16
        Image size in pixels.
    """

    module: nn.Module
    structure: Structure
    cosines: np.ndarray
    depth: str
    size: int = SIDE * PATCHES

    def closed_form(self, null: np.ndarray, own: np.ndarray) -> np.ndarray:
        """Compute S of the linear network under the recipe `LINEAR`.

        The maximising image of feature i is the null image plus c w_i / |w_i| in each patch, so that A[i, j] =
        n_j + c |w_j| cos(i, j), with c |w_j| = A[j, j] - n_j.

        Parameters
        ----------
        null : numpy.ndarray
            Response n_j of each feature to the null image, D.
        own : numpy.ndarray
            Response A[j, j] of each feature to its own image, D.

        Returns
        -------
        numpy.ndarray
            S, D x D.

        Raises
        ------
        FeatmapError
            If the network has ReLUs.
        """
        if self.depth != "linear":
            raise FeatmapError(f"S of a {self.depth!r} network has no closed form; only that of a linear one has")
        return profile_correlations(null + (own - null) * self.cosines)


def plant(
    structure: str = "blocks", *, features: int = 32, noise: float = 0.0, depth: str = "linear", seed: int = 0
) -> Planted:
    """Build a network with a chosen feature similarity.

    Parameters
    ----------
    structure : str, default "blocks"
        A key of `STRUCTURES`.
    features : int, default 32
        Number D of features, at least 6.
    noise : float, default 0.0
        Share in [0, 1] of each feature's squared weights that is noise of its own, in random directions.
    depth : str, default "linear"
        One of `DEPTHS`.
    seed : int, default 0
        Seed of all random numbers; it gives the same network on every machine.

    Returns
    -------
    Planted
        The network with its structure.

    Raises
    ------
    FeatmapError
        If a setting is out of range.
    """
    if structure not in STRUCTURES:
        raise FeatmapError(
            f"structure {structure!r} is unknown{suggest(structure, STRUCTURES)}; allowed: {', '.join(STRUCTURES)}"
        )
    if depth not in DEPTHS:
        raise FeatmapError(f"depth {depth!r} is unknown{suggest(depth, DEPTHS)}; allowed: {', '.join(DEPTHS)}")
    dimensions = HIDDEN if depth == "deep" else 3 * SIDE**2
    if not 6 <= features <= dimensions or not 0 <= noise <= 1:
        raise FeatmapError(
            f"{features} features, noise {noise}: give 6 to {dimensions} features and a noise from 0 to 1"
        )
    rng = generator("planted", structure, features, depth, seed)
    planted = STRUCTURES[structure](features, rng)
    # Rows whose Gram matrix is that of the cosines: its square root, in a random orthonormal basis.
    values, vectors = np.linalg.eigh(planted.cosines)
    basis, _ = np.linalg.qr(rng.standard_normal((dimensions, features)))
    signal = (vectors * np.sqrt(np.clip(values, 0, None))) @ basis.T
    private = rng.standard_normal((features, dimensions))
    private /= np.linalg.norm(private, axis=1, keepdims=True)
    rows = np.sqrt(1 - noise) * signal + np.sqrt(noise) * private
    unit_rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    module = _network(unit_rows * planted.factors[:, None], depth, rng)
    return Planted(module, planted, unit_rows @ unit_rows.T, depth)


def _network(rows: np.ndarray, depth: str, rng: np.random.Generator) -> nn.Module:
    """Build the network whose features have the given rows of weights."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if depth == "deep":
        hidden, _ = np.linalg.qr(rng.standard_normal((3 * SIDE**2, HIDDEN)))
        layers["hidden"], layers["rectified"] = _patches(hidden.T), nn.ReLU()
        mixing = nn.Conv2d(HIDDEN, len(rows), 1, bias=False)
        with torch.no_grad():
            mixing.weight.copy_(torch.from_numpy(rows.astype(np.float32))[:, :, None, None])
        layers["mixing"] = mixing
    else:
        layers["mixing"] = _patches(rows)
    if depth == "linear":
        return nn.Sequential(OrderedDict(features=layers["mixing"])).eval()
    layers["features"] = nn.ReLU()
    return nn.Sequential(layers).eval()


def _patches(rows: np.ndarray) -> nn.Conv2d:
    """Build a convolution over disjoint patches, whose channels have the given rows of weights."""
    conv = nn.Conv2d(3, len(rows), SIDE, SIDE, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.from_numpy(rows.reshape(len(rows), 3, SIDE, SIDE).astype(np.float32)))
    return conv
