"""Ways to turn the responses to joint and solo images into a number for each pair and seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.stats import rankdata

from analyses.benchmarks.pair_descents import Descents
from featmap.stats import interaction

CLIPPED = 0.95
"""Quantile of the size of responses at which `clip` cuts them off."""
Transform = Callable[[np.ndarray], np.ndarray]


def keep(r: np.ndarray) -> np.ndarray:
    """Return responses as they are."""
    return r


def signed_root(r: np.ndarray) -> np.ndarray:
    """Take the square root of a size, with its sign."""
    root: np.ndarray = np.sign(r) * np.sqrt(np.abs(r))
    return root


def signed_logarithm(r: np.ndarray) -> np.ndarray:
    """Take the logarithm of one more than a size, with its sign."""
    logarithm: np.ndarray = np.sign(r) * np.log1p(np.abs(r))
    return logarithm


def ranks(r: np.ndarray) -> np.ndarray:
    """Rank responses, from -1/2 to 1/2."""
    ranked: np.ndarray = rankdata(r) / len(r) - 0.5
    return ranked


def clip(r: np.ndarray) -> np.ndarray:
    """Clip responses at a quantile of their size."""
    limit = np.quantile(np.abs(r), CLIPPED)
    return np.clip(r, -limit, limit)


@dataclass(frozen=True)
class Yardstick:
    """How the responses to joint and solo images become a number.

    Parameters
    ----------
    layers : tuple of str
        Layers whose features count.
    starts : tuple of int, default (0,)
        Starts of the solo images that may explain the joint one.
    joint : int, default 0
        Start of the joint image.
    kind : str, default "responses"
        "responses", or "shifted" for means over several places.
    transform : callable, default `keep`
        Applied to responses.
    share : float, default 1
        Share of the features that counts: those of the largest response to any of the images.
    """

    layers: tuple[str, ...]
    starts: tuple[int, ...] = (0,)
    joint: int = 0
    kind: str = "responses"
    transform: Transform = keep
    share: float = 1.0

    def measure(self, descents: Descents, seeds: int) -> np.ndarray:
        """Measure all pairs, pairs x seeds."""
        own = descents.columns(self.layers)
        joints = descents.joints(self.joint, seeds)[self.kind]
        solos = {k: descents.solos(k)[self.kind] for k in self.starts}

        def r(responses: np.ndarray, seed: int, start: int) -> np.ndarray:
            return self.transform(descents.standardised(responses, seed, start, self.kind)[own])

        table = np.empty((len(descents.pairs), seeds))
        for seed in range(seeds):
            parts = {(u, k): r(solos[k][u, seed], seed, k) for u in range(len(descents.units)) for k in self.starts}
            for p, pair in enumerate(descents.pairs):
                explaining = np.stack([parts[u, k] for u in pair for k in self.starts])
                table[p, seed] = self._compare(r(joints[seed, p], seed, self.joint), explaining)
        return table

    def _compare(self, joint: np.ndarray, parts: np.ndarray) -> float:
        """Compute the nonlinearity over the features that count."""
        largest = np.abs(np.vstack([joint, parts])).max(0)
        counts = largest >= np.quantile(largest, 1 - self.share)
        return interaction.response_nonlinearity(joint[counts], parts[:, counts])


def measure_mixtures(descents: Descents, layers: Sequence[str], perturbed: int, seeds: int) -> np.ndarray:
    """Measure the nonlinearity of the mixtures of all pairs, pairs x seeds: `mixture_nonlinearity` of a run."""
    own, found = descents.columns(layers), descents.mixtures(perturbed)
    table = np.empty((len(descents.pairs), seeds))
    for seed in range(seeds):
        halves, mixed = (descents.standardised(found[k][seed], seed, perturbed)[:, own] for k in ("halves", "mixed"))
        for p, pair in enumerate(descents.pairs):
            table[p, seed] = interaction.response_nonlinearity(mixed[p], halves[list(pair)])
    return table


def measure_floors(descents: Descents, layers: Sequence[str], seeds: int) -> np.ndarray:
    """Measure the floor of the response nonlinearity of all pairs as a run does, pairs x seeds."""
    own, solos = descents.columns(layers), [descents.solos(k)["responses"] for k in (0, 1)]

    def r(unit: int, seed: int, perturbed: int = 0) -> np.ndarray:
        return descents.standardised(solos[perturbed][unit, seed], seed, perturbed)[own]

    floors = np.empty((2, len(descents.units), seeds))
    for u, seed in product(range(len(descents.units)), range(seeds)):
        plain, others = r(u, seed)[None], (r(u, seed, 1), r(u, (seed + 1) % descents.seeds))
        floors[:, u, seed] = [interaction.response_nonlinearity(other, plain) for other in others]
    return np.stack([floors[:, list(pair)].mean(1).max(0) for pair in descents.pairs])


def average_joints(descents: Descents, layers: Sequence[str], seeds: int) -> np.ndarray:
    """Measure the nonlinearity of the mean response to the joint images of both starts, beside the mean solo ones."""
    own, table = descents.columns(layers), np.empty((len(descents.pairs), seeds))
    joints = [descents.joints(0, max(seeds, descents.seeds)), descents.joints(1, seeds)]
    for seed in range(seeds):

        def mean(responses: Sequence[np.ndarray], at: int = seed) -> np.ndarray:
            each = [descents.standardised(found, at, k)[own] for k, found in enumerate(responses)]
            averaged: np.ndarray = np.mean(each, axis=0)
            return averaged

        parts = [mean([descents.solos(k)["responses"][u, seed] for k in (0, 1)]) for u in range(len(descents.units))]
        for p, pair in enumerate(descents.pairs):
            joint = mean([found["responses"][seed, p] for found in joints])
            table[p, seed] = interaction.response_nonlinearity(joint, np.stack([parts[u] for u in pair]))
    return table
