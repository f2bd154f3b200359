"""Networks whose feature similarity is known because it was planted: what a similarity map has to find again.

Features read disjoint square patches of the image through weights whose cosines are chosen. In a linear network under
the recipe `LINEAR` the maximising image of a feature is then the null image plus its weights in every patch, and S has
a closed form; with ReLUs the cosines are the truth that S should be ordered like.
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
LINEAR = Recipe("planted-linear", (Octave(20, (0.05, 0.02), size=SIDE * PATCHES),), optimiser="rms", clamp="never")
"""Linear steps without blur, under which a planted linear network's S is known exactly (dead ReLUs are rescued)."""
DEPTHS = ("linear", "relu", "deep")


@dataclass(frozen=True, eq=False)
class Structure:
    """What was planted.

    Attributes
    ----------
    cosines : D x D, the features' similarity, 1 on the diagonal
    clusters : D labels, or None where the structure has no groups
    factors : D, what each feature's weights are multiplied by, which no similarity may see
    """

    cosines: np.ndarray
    clusters: np.ndarray | None
    factors: np.ndarray


STRUCTURES: dict[str, Callable[[int, np.random.Generator], Structure]] = {}


def _structure(name: str) -> Callable[[Callable[..., Structure]], Callable[..., Structure]]:
    def enter(function: Callable[..., Structure]) -> Callable[..., Structure]:
        STRUCTURES[name] = function
        return function

    return enter


@_structure("duplicates")
def duplicates(features: int, rng: np.random.Generator) -> Structure:
    """Return originals that have nothing in common, and seven exact copies of each (fewer where there is no room)."""
    labels = np.arange(features) % max(2, features // 8)
    return Structure((labels[:, None] == labels).astype(float), labels, np.ones(features))


@_structure("scaled")
def scaled(features: int, rng: np.random.Generator) -> Structure:
    """Return the same with weights times factors from 1/8 to 8."""
    same = duplicates(features, rng)
    return Structure(same.cosines, same.clusters, 2.0 ** rng.integers(-3, 4, size=features))


@_structure("blocks")
def blocks(features: int, rng: np.random.Generator) -> Structure:
    """Return four groups, cosine 0.6 within and 0 between them."""
    labels = np.arange(features) % min(4, features)
    cosines = np.where(labels[:, None] == labels, 0.6, 0.0)
    np.fill_diagonal(cosines, 1.0)
    return Structure(cosines, labels, np.ones(features))


@_structure("mixtures")
def mixtures(features: int, rng: np.random.Generator) -> Structure:
    """Return pairs, the second of each a mixture of the first and something of its own: cosines from -0.9 to 0.9."""
    cosines = np.eye(features)
    for k, r in enumerate(np.linspace(-0.9, 0.9, max(1, features // 2))[: features // 2]):
        cosines[2 * k, 2 * k + 1] = cosines[2 * k + 1, 2 * k] = r
    return Structure(cosines, None, np.ones(features))


@dataclass(frozen=True, eq=False)
class Planted:
    """A network with a layer ``features`` of known similarity.

    Attributes
    ----------
    module : takes images in [0, 1] of `size` pixels
    structure : what was planted, before noise
    cosines : D x D, the cosines of the weights as they are, noise and all
    depth : "linear" (one convolution), "relu" (the same and a ReLU), "deep" (a ReLU, mixtures of its outputs, a ReLU)
    """

    module: nn.Module
    structure: Structure
    cosines: np.ndarray
    depth: str
    size: int = SIDE * PATCHES

    def closed_form(self) -> np.ndarray:
        """Return S of the linear network under `LINEAR`: D x D.

        The maximising image of feature i is the null image plus c w_i / |w_i| in each patch, so that A[i, j] =
        n_j + c |w_j| cos(i, j). Neither n_j nor the factor c |w_j| outlasts the standardisation of columns: S is the
        profile of the cosines themselves. Raises FeatmapError for a network with ReLUs, where it is none.
        """
        if self.depth != "linear":
            raise FeatmapError(f"a {self.depth} network's S has no closed form; only a linear one's has")
        return profile_correlations(self.cosines)


def plant(
    structure: str = "blocks", *, features: int = 32, noise: float = 0.0, depth: str = "linear", seed: int = 0
) -> Planted:
    """Return a network with a chosen feature similarity.

    Parameters
    ----------
    structure : a key of `STRUCTURES`
    features : D, at least 6
    noise : in [0, 1], the share of each feature's squared weights that is noise of its own, in random directions
    depth : one of `DEPTHS`
    seed : of everything drawn; the same network on every machine

    Raises
    ------
    FeatmapError
        for settings out of range.
    """
    if structure not in STRUCTURES:
        raise FeatmapError(
            f"structure {structure!r} is unknown{suggest(structure, STRUCTURES)}; allowed: {', '.join(STRUCTURES)}"
        )
    if depth not in DEPTHS:
        raise FeatmapError(f"depth {depth!r} is unknown{suggest(depth, DEPTHS)}; allowed: {', '.join(DEPTHS)}")
    room = HIDDEN if depth == "deep" else 3 * SIDE**2
    if not 6 <= features <= room or not 0 <= noise <= 1:
        raise FeatmapError(f"{features} features, noise {noise}: give 6 to {room} features and a noise from 0 to 1")
    rng = generator("planted", structure, features, depth, seed)
    found = STRUCTURES[structure](features, rng)
    values, vectors = np.linalg.eigh(found.cosines)
    basis, _ = np.linalg.qr(rng.standard_normal((room, features)))
    signal = (vectors * np.sqrt(np.clip(values, 0, None))) @ basis.T
    private = rng.standard_normal((features, room))
    private /= np.linalg.norm(private, axis=1, keepdims=True)
    rows = np.sqrt(1 - noise) * signal + np.sqrt(noise) * private
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / length
    module = _network(unit * found.factors[:, None], depth, rng)
    return Planted(module, found, unit @ unit.T, depth)


def _network(rows: np.ndarray, depth: str, rng: np.random.Generator) -> nn.Module:
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
    """Return a convolution that takes each row as weights of disjoint patches."""
    conv = nn.Conv2d(3, len(rows), SIDE, SIDE, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.from_numpy(rows.reshape(len(rows), 3, SIDE, SIDE).astype(np.float32)))
    return conv
