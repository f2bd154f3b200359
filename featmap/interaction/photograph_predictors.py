"""Predictors of interaction from responses to photographs, of all pairs of two layers' features at once.

Photographs are shown to the network once, whatever the number of pairs. See `featmap.stats.predictors` for predictors
from solo runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from featmap.interaction.natural import MOST
from featmap.network.unit import Unit
from featmap.optimize.photograph_folder import UNIT_PHOTOGRAPHS, PhotographStimuli
from featmap.optimize.responses import Probe
from featmap.runs.progress import Watcher
from featmap.stats.correlation import DIFFERENCE_FLOOR, column_moments, cosines
from featmap.stats.top_responses import LEAST_PAIRED, STRONG

PLACES = 49
"""Largest number of places of a photograph: finer grids are averaged down to 7 x 7."""


@dataclass(frozen=True, eq=False)
class PhotographResponses:
    """Responses of two layers' features to P photographs.

    Parameters
    ----------
    first, second : numpy.ndarray
        Responses of the N features of the first and the M of the second layer, P x N and P x M.
    places : numpy.ndarray
        Correlation of the features' activation maps over all places of all photographs, N x M; see `PlaceCorrelation`.
    responses : numpy.ndarray
        Responses of the probed features, P x D.
    """

    first: np.ndarray
    second: np.ndarray
    places: np.ndarray
    responses: np.ndarray


class PlaceCorrelation:
    """Correlation of activation maps that arrive in batches of photographs.

    Parameters
    ----------
    first, second : int
        Numbers N and M of features of the two layers.
    """

    def __init__(self, first: int, second: int) -> None:
        self._count = 0
        self._sums = [np.zeros(first), np.zeros(second)]
        self._squares = [np.zeros(first), np.zeros(second)]
        self._products = np.zeros((first, second))

    def add(self, first: np.ndarray, second: np.ndarray) -> None:
        """Take some photographs into account.

        Parameters
        ----------
        first, second : numpy.ndarray
            Activations of the features at the same places of the same photographs, places x N and places x M.
        """
        maps = [np.asarray(side, dtype=np.float64) for side in (first, second)]
        self._count += len(maps[0])
        for k, side in enumerate(maps):
            self._sums[k] += side.sum(axis=0)
            self._squares[k] += np.square(side).sum(axis=0)
        self._products += maps[0].T @ maps[1]

    def result(self) -> np.ndarray:
        """Compute the correlations.

        Returns
        -------
        numpy.ndarray
            Pearson's correlation over all places, N x M, in [-1, 1]; NaN for a feature whose deviation is not above
            `DIFFERENCE_FLOOR` times its root mean square.
        """
        n = max(self._count, 1)
        means = [total / n for total in self._sums]
        powers = [total / n for total in self._squares]
        deviations = []
        for mean, power in zip(means, powers, strict=True):
            variance = power - np.square(mean)
            varies = np.isfinite(variance) & (variance > DIFFERENCE_FLOOR**2 * power)
            deviations.append(np.sqrt(np.where(varies, variance, np.nan)))
        covariance = self._products / n - np.outer(*means)
        return np.clip(covariance / np.outer(*deviations), -1, 1)


def measure(
    probe: Probe,
    layers: Sequence[str],
    sides: Sequence[Sequence[Unit]],
    photographs: PhotographStimuli,
    watcher: Watcher,
) -> PhotographResponses:
    """Show photographs to the network.

    Parameters
    ----------
    probe : Probe
        Probe of the network.
    layers : sequence of str
        Layers whose features are probed.
    sides : sequence of sequence of Unit
        Features of the two layers.
    photographs : PhotographStimuli
        The photographs, at the size of the images.
    watcher : Watcher
        Receives the progress.

    Returns
    -------
    PhotographResponses
        In one pass for each batch of `UNIT_PHOTOGRAPHS` photographs.
    """
    source, size, channels = photographs.require_source(), photographs.size, probe.network.channels
    names = [side[0].layer for side in sides]
    picks = [torch.tensor([u.channel or 0 for u in side]) for side in sides]
    places = PlaceCorrelation(len(sides[0]), len(sides[1]))
    responses, units = list[torch.Tensor](), ([], [])  # type: tuple[list[torch.Tensor], list[torch.Tensor]]
    for begin in range(0, len(photographs), UNIT_PHOTOGRAPHS):
        stop = min(begin + UNIT_PHOTOGRAPHS, len(photographs))
        images = source.read(range(begin, stop), size, channels)
        for out in probe.outputs(images, list(dict.fromkeys([*layers, *names]))):
            responses.append(torch.cat([out[la].mean((2, 3)) for la in layers], dim=1).cpu())
            chosen = [out[la][:, pick.to(out[la].device)] for la, pick in zip(names, picks, strict=True)]
            for k in (0, 1):
                units[k].append(chosen[k].mean((2, 3)).cpu())
            grid = _common_grid([tuple(maps.shape[2:]) for maps in chosen])
            pooled = [functional.adaptive_avg_pool2d(maps, grid).cpu() for maps in chosen]
            places.add(*(maps.permute(0, 2, 3, 1).flatten(0, 2).numpy() for maps in pooled))
        watcher.stage("photographs", stop, len(photographs))
    first, second = (torch.cat(side).numpy() for side in units)
    return PhotographResponses(first, second, places.result(), torch.cat(responses).numpy())


def _common_grid(shapes: Sequence[tuple[int, ...]]) -> tuple[int, int]:
    """Choose the grid on which maps are compared: the smaller one, with at most `PLACES` places."""
    height, width = (min(shape[k] for shape in shapes) for k in (0, 1))
    side = int(PLACES**0.5)
    return min(height, side), min(width, side)


PhotographPredictor = Callable[[PhotographResponses], np.ndarray]
PHOTOGRAPH_PREDICTORS: dict[str, PhotographPredictor] = {}


def register(name: str) -> Callable[[PhotographPredictor], PhotographPredictor]:
    """Enter the decorated function into `PHOTOGRAPH_PREDICTORS`.

    Parameters
    ----------
    name : str
        Key of the entry, which names a column of the predictions.

    Returns
    -------
    callable
        Decorator that leaves the function as it is.
    """

    def enter(function: PhotographPredictor) -> PhotographPredictor:
        PHOTOGRAPH_PREDICTORS[name] = function
        return function

    return enter


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


@register("photograph correlation")
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


@register("photograph co-activation")
def photograph_coactivation(found: PhotographResponses) -> np.ndarray:
    """Compute the share of a feature's strong photographs on which the other is strong too.

    Parameters
    ----------
    found : PhotographResponses
        Responses to the photographs.

    Returns
    -------
    numpy.ndarray
        N x M, in [0, 1]: photographs on which both are above the `STRONG` percentile of their own responses, over the
        geometric mean of their numbers. By chance about 0.1; NaN as in `photograph_correlation`.
    """
    strong = []
    for side in (found.first, found.second):
        defined = np.isfinite(_z_scores(side)).all(axis=0)
        values = np.where(defined, side, 0.0)
        above = values > np.percentile(values, STRONG, axis=0, keepdims=True)
        strong.append(np.where(defined & above.any(axis=0), above, np.nan))
    return (strong[0].T @ strong[1]) / np.sqrt(np.outer(*(side.sum(axis=0) for side in strong)))


@register("place correlation")
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


@register("response to the partner's photographs")
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


@register("profile of the best photographs")
def profile_agreement(found: PhotographResponses) -> np.ndarray:
    """Compute the cosine of the probed features' mean responses to either feature's best photographs.

    Parameters
    ----------
    found : PhotographResponses
        Responses to the photographs.

    Returns
    -------
    numpy.ndarray
        N x M, in [-1, 1]: mean over the `MOST` best photographs of the probed features' responses, in standard
        deviations. High where the best photographs of both do the same to the layers. NaN as in
        `photograph_correlation`.
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
