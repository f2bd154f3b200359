"""Job of a screening: its solo runs, the pairs measured exactly, and what photographs predict of all pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from featmap import rng
from featmap.errors import UnitError
from featmap.interaction.groups import JointSettings, LayerChannels, pairs_job, select_two_layers
from featmap.interaction.job import Group, JointJob
from featmap.interaction.natural import MOST
from featmap.network.model import Network
from featmap.network.unit import Unit
from featmap.optimize.limits import seeds_of
from featmap.optimize.objective import channel
from featmap.optimize.photograph_folder import PhotographStimuli
from featmap.optimize.recipe import Recipe
from featmap.runs.job import Job
from featmap.runs.worker import checked
from featmap.stats.correlation import column_moments, cosines
from featmap.stats.predictors import register
from featmap.stats.top_responses import LEAST_PAIRED

SEEDS, SOLO_SEEDS = 3, 2
"""Default number of seeds of the exact runs, and seeds of the solo runs."""
CHECK_FEATURES = 32
"""Features of a layer that random pairs are drawn from: a feature costs two solo descents for each seed, a pair one.
The pair decides the statistic rather than its features, so that pairs that share them say almost as much."""


@dataclass(frozen=True)
class Budget:
    """Numbers of pairs that a screening measures exactly, and of their seeds.

    Parameters
    ----------
    top : int, default 50
        Pairs that are predicted to be the most nonlinear.
    checks : int, default 200
        Random pairs, on which the predictors are evaluated.
    seeds : int or iterable of int, default 3
        Number of seeds of the exact runs, which follow the two of the solo runs; or all seeds, of which the first two
        are those of the solo runs.

    Raises
    ------
    UnitError
        If a number of pairs is below 1.
    """

    top: int = 50
    checks: int = 200
    seeds: int | Iterable[int] = SEEDS

    def __post_init__(self) -> None:
        for name, value in (("top", self.top), ("checks", self.checks)):
            if value < 1:
                raise UnitError(f"{name} {value}: give 1 or more")


@dataclass(frozen=True, kw_only=True)
class ScreeningJob(Job):
    """The job of a screening: its solo runs, and settings of the exact runs.

    Parameters
    ----------
    network, recipe, seeds, responses, device, command, objectives, start, selection, frames, facets
        Those of the solo runs, see `featmap.runs.job.Job`.
    sides : tuple of (tuple of Unit, tuple of Unit)
        Features of the two layers.
    balance : str, default "solo"
        See `featmap.interaction.run.interact`.
    budget : Budget
        Numbers of pairs that are measured exactly; no more than there are.
    fresh_seeds : tuple of int
        Seeds of the exact runs; none of them is one of the solo runs.
    photographs : PhotographStimuli, optional
        Photographs that pairs are predicted from too, at the size of the images.
    """

    sides: tuple[tuple[Unit, ...], tuple[Unit, ...]]
    balance: str = "solo"
    budget: Budget = Budget()
    fresh_seeds: tuple[int, ...] = ()
    photographs: PhotographStimuli | None = None

    @property
    def name_parts(self) -> list[str]:
        """Name of the command and the two layers."""
        return ["screen", *(side[0].layer for side in self.sides)]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """All pairs of different units, each once, as indices into the two sides."""
        return _pairs(*self.sides)

    @property
    def top(self) -> int:
        """Number of predicted pairs that are measured exactly."""
        return min(self.budget.top, len(self.pairs))

    @property
    def checks(self) -> int:
        """Number of random pairs."""
        return min(self.budget.checks, len(self.pairs))

    @property
    def check_features(self) -> int:
        """Largest number of features of a layer that random pairs are drawn from.

        It leaves about twice as many pairs as are drawn, also within one layer.
        """
        return max(CHECK_FEATURES, math.ceil(2 * math.sqrt(self.checks)))

    def identity(self) -> dict[str, Any]:
        """Collect everything that the screening's numbers depend on.

        Returns
        -------
        dict
            Plain JSON values.
        """
        own = {
            "balance": self.balance,
            "fresh_seeds": list(self.fresh_seeds),
            "top": self.budget.top,
            "checks": self.budget.checks,
            "sides": [len(side) for side in self.sides],
        }
        if any(len(side) > self.check_features for side in self.sides):  # otherwise as before there was a limit
            own["check_features"] = self.check_features
        shown = {} if self.photographs is None else {"photographs": self.photographs.identity()}
        return super().identity() | own | shown

    @property
    def disk_needed(self) -> int:
        """Bytes that the solo runs and the predictions take on disk."""
        return int(1.1 * self.array_bytes + 100e6)


def screening_job(
    layers: Sequence[LayerChannels],
    network: Network,
    recipe: Recipe,
    *,
    budget: Budget,
    balance: str = "solo",
    probe_layers: Sequence[str] = (),
    device: torch.device | None = None,
) -> ScreeningJob:
    """Set up the job of a screening.

    Parameters
    ----------
    layers : sequence of str or (str, channels)
        Two layers, each with the channels that take part.
    network : Network
        Network that they belong to.
    recipe : Recipe
        Resolved recipe.
    budget : Budget
        Numbers of pairs that are measured exactly, and of their seeds.
    balance : str, default "solo"
        See `featmap.interaction.run.interact`.
    probe_layers : sequence of str, optional
        Layers whose features' responses are compared. Default: the two layers.
    device : torch.device, optional
        Where the network is computed; None is the CPU.

    Returns
    -------
    ScreeningJob
        The checked job.

    Raises
    ------
    FeatmapError
        If a layer or feature does not exist, there are fewer than two pairs, or a setting is out of range.
    """
    first, second = select_two_layers(layers, network, recipe.size)
    names = (first[0].layer, second[0].layer)
    count = len(_pairs(first, second))
    if count < 2:
        raise UnitError(f"{' with '.join(names)}: {count} pairs are too few to screen; choose more features")
    seeds = budget.seeds
    all_seeds = seeds_of(SOLO_SEEDS + seeds if isinstance(seeds, int) and seeds > 0 else seeds, recipe)
    if len(all_seeds) <= SOLO_SEEDS:
        raise UnitError(
            f"{len(all_seeds)} seeds: a screening takes {SOLO_SEEDS} for its solo runs and others for its pairs; "
            f"give {SOLO_SEEDS + 1} or more"
        )
    units = dict.fromkeys([*first, *second])
    job = ScreeningJob(
        network=network,
        objectives=tuple(channel(u.layer, u.channel) for u in units if u.channel is not None),
        recipe=recipe,
        seeds=all_seeds[:SOLO_SEEDS],
        responses=tuple(dict.fromkeys(probe_layers or names)),
        device=device or torch.device("cpu"),
        command="interact --screen",
        sides=(first, second),
        balance=balance,
        budget=budget,
        fresh_seeds=all_seeds[SOLO_SEEDS:],
    )
    job = checked(job)
    exact_job(job, random_pairs(job)[:1])  # settings that the exact runs would refuse are refused before the solo runs
    return job


def _pairs(first: Sequence[Unit], second: Sequence[Unit]) -> list[tuple[int, int]]:
    """List the indices of all pairs of different units, each pair once."""
    if first and second and first[0].layer == second[0].layer:
        index = {u: k for k, u in enumerate(second)}
        both = set(first) & set(second)
        return [
            (i, j)
            for i, a in enumerate(first)
            for j, b in enumerate(second)
            if a != b and not (a in both and b in both and index[a] > j)
        ]
    return [(i, j) for i in range(len(first)) for j in range(len(second))]


def random_pairs(job: ScreeningJob) -> tuple[Group, ...]:
    """Draw the random pairs of a screening.

    Parameters
    ----------
    job : ScreeningJob
        The job; the generator is keyed by the layers, their numbers of features and the fresh seeds.

    Returns
    -------
    tuple of (Unit, Unit)
        `job.checks` pairs, in the order of all pairs: of `job.check_features` random features of each layer that has
        more, as far as these make enough pairs.
    """
    drawn = [_draw_features(side, job.check_features) for side in job.sides]
    within = [(i, j) for i, j in job.pairs if i in drawn[0] and j in drawn[1]]
    pairs = within if len(within) >= job.checks else job.pairs
    key = [f"{side[0].layer}:{len(side)}" for side in job.sides]
    sample = rng.generator("screen", *key, *job.fresh_seeds).choice(len(pairs), job.checks, replace=False)
    return tuple((job.sides[0][pairs[k][0]], job.sides[1][pairs[k][1]]) for k in sorted(sample))


def _draw_features(side: Sequence[Unit], most: int) -> set[int]:
    """Draw the features of a side that random pairs are made of, as indices; a layer's are the same on both sides."""
    order = rng.generator("screen features", side[0].layer, len(side)).permutation(len(side))
    return {int(k) for k in order[:most]}


def exact_job(job: ScreeningJob, groups: tuple[Group, ...]) -> JointJob:
    """Set up the job that measures pairs exactly, with the fresh seeds.

    Parameters
    ----------
    job : ScreeningJob
        Job of the screening.
    groups : tuple of (Unit, Unit)
        The pairs.

    Returns
    -------
    JointJob
        The checked job.
    """
    return pairs_job(
        groups,
        job.network,
        job.recipe,
        JointSettings(job.balance, job.responses, job.fresh_seeds, job.device),
    )


def representative_pairs(job: ScreeningJob) -> list[tuple[Group, ...]]:
    """Choose pairs that stand for those of the exact runs in an estimate.

    Parameters
    ----------
    job : ScreeningJob
        Job of the screening.

    Returns
    -------
    list of tuple of (Unit, Unit)
        The random pairs, and as many evenly spaced pairs as there will be top ones, which are not known beforehand.
    """
    pairs = job.pairs
    step = max(1, len(pairs) // job.top)
    spaced = [(job.sides[0][i], job.sides[1][j]) for i, j in pairs[::step][: job.top]]
    return [random_pairs(job), tuple(spaced)]


@dataclass(frozen=True, eq=False)
class PhotographResponses:
    """Responses of two layers' features to P photographs.

    Parameters
    ----------
    first, second : numpy.ndarray
        Responses of the N features of the first and the M of the second layer, P x N and P x M.
    places : numpy.ndarray
        Correlation of the features' activation maps over all places of all photographs, N x M.
    responses : numpy.ndarray
        Responses of the probed features, P x D.
    """

    first: np.ndarray
    second: np.ndarray
    places: np.ndarray
    responses: np.ndarray


PhotographPredictor = Callable[[PhotographResponses], np.ndarray]
PHOTOGRAPH_PREDICTORS: dict[str, PhotographPredictor] = {}


def _z_scores(responses: np.ndarray) -> np.ndarray:
    """Standardise responses over photographs; NaN for features that do not vary, and for all below `LEAST_PAIRED`."""
    values = np.asarray(responses, dtype=np.float64)
    if len(values) < LEAST_PAIRED:
        return np.full(values.shape, np.nan)
    scale, mean, deviation = column_moments(values, np.ones(len(values), dtype=bool))
    with np.errstate(invalid="ignore"):  # infinite responses
        z: np.ndarray = (values / scale - mean) / deviation
    z[:, ~np.isfinite(values).all(axis=0)] = np.nan
    return z


def _best(responses: np.ndarray) -> np.ndarray:
    """Mark the `MOST` photographs that each feature responds to most, P x N; of equal responses the earlier ones."""
    order = np.argsort(-np.asarray(responses, dtype=np.float64), axis=0, kind="stable")[:MOST]
    marked = np.zeros(responses.shape)
    np.put_along_axis(marked, order, 1.0, axis=0)
    return marked


@register("photograph correlation", PHOTOGRAPH_PREDICTORS)
def photograph_correlation(found: PhotographResponses) -> np.ndarray:
    """Correlate the features' responses over photographs.

    Parameters
    ----------
    found : PhotographResponses
        Responses to the photographs.

    Returns
    -------
    numpy.ndarray
        N x M, in [-1, 1]; NaN for features that do not vary, and for fewer than `LEAST_PAIRED` photographs.
    """
    one, two = _z_scores(found.first), _z_scores(found.second)
    return np.clip(one.T @ two / max(len(one), 1), -1, 1)


@register("place correlation", PHOTOGRAPH_PREDICTORS)
def place_correlation(found: PhotographResponses) -> np.ndarray:
    """Correlate the features' activations over the places of photographs.

    Parameters
    ----------
    found : PhotographResponses
        Responses to the photographs.

    Returns
    -------
    numpy.ndarray
        N x M, in [-1, 1]; high where both fire at the same places. NaN for features that do not vary, and for fewer
        than `LEAST_PAIRED` photographs.
    """
    return found.places if len(found.first) >= LEAST_PAIRED else np.full_like(found.places, np.nan)


@register("response to the partner's photographs", PHOTOGRAPH_PREDICTORS)
def partner_response(found: PhotographResponses) -> np.ndarray:
    """Average each feature's standardised response over the other's best photographs.

    Parameters
    ----------
    found : PhotographResponses
        Responses to the photographs.

    Returns
    -------
    numpy.ndarray
        N x M, in standard deviations, mean of both directions over the `MOST` best photographs; 0 by chance. NaN as in
        `photograph_correlation`.
    """
    one, two = _z_scores(found.first), _z_scores(found.second)
    return (_best(found.first).T @ two + (_best(found.second).T @ one).T) / (2 * min(MOST, max(len(one), 1)))


@register("profile of the best photographs", PHOTOGRAPH_PREDICTORS)
def profile_agreement(found: PhotographResponses) -> np.ndarray:
    """Compute the cosine of the probed features' responses to best photographs.

    Parameters
    ----------
    found : PhotographResponses
        Responses to the photographs.

    Returns
    -------
    numpy.ndarray
        N x M, in [-1, 1], of means over the `MOST` best photographs, in standard deviations. High where those of both
        do the same to the layers. NaN as in `photograph_correlation`.
    """
    probed = _z_scores(found.responses)
    probed = probed[:, np.isfinite(probed).all(axis=0)]
    if not probed.shape[1]:
        return np.full((found.first.shape[1], found.second.shape[1]), np.nan)
    profiles = []
    for side in (found.first, found.second):
        defined = np.isfinite(_z_scores(side)).all(axis=0)
        mean = _best(side).T @ probed / min(MOST, max(len(probed), 1))
        profiles.append(np.where(defined[:, None], mean, np.nan))
    return cosines(*profiles)
