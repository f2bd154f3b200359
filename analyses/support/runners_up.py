"""Rank the features of a layer by their responses to each drawn feature's image, for `analyses.coactivation`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from analyses.formulas.held_out import HeldOutRunnersUp, evaluate_held_out
from featmap.runs.folder_layout import LIVE_CODES
from featmap.stats.correlation import TINY

TOP = 10
HELD_OUT = ("of target", "gap", "percentile")
"""What is measured on the seeds that did not choose a runner-up."""
COLUMNS = ["part", "layer", "target", "seed", "step", "feature", "rank", "value"]


@dataclass(frozen=True)
class RunnerUp:
    """The runner-up of one maximised feature: the other feature with the highest response to its image.

    Parameters
    ----------
    layer : str
        Name of the layer.
    target : int
        Channel that is maximised.
    channel : int
        Channel of the runner-up.
    activation, null : numpy.ndarray
        Its activation on the target's image and on the null image, by seed.
    reached : numpy.ndarray
        Activation of the target on its own image, by seed.
    own : numpy.ndarray
        Response of the runner-up to its own image, by seed.
    elsewhere : numpy.ndarray
        Its mean response to other features' images, by seed.
    rank : float
        Its mean rank among all features on those images; 1 is the highest.
    """

    layer: str
    target: int
    channel: int
    activation: np.ndarray
    null: np.ndarray
    reached: np.ndarray
    own: np.ndarray
    elsewhere: np.ndarray
    rank: float

    @property
    def share(self) -> float:
        """Its activation divided by the target's; NaN where that is not positive."""
        return mean_ratio(self.activation, self.reached)

    @property
    def shares(self) -> np.ndarray:
        """Its activation divided by the target's, by seed; NaN where that is not positive."""
        return np.asarray(self.activation / np.where(self.reached > 0, self.reached, np.nan))

    @property
    def before(self) -> float:
        """Its activation on the null image divided by the target's activation."""
        return mean_ratio(self.null, self.reached)

    @property
    def coactivation(self) -> float:
        """Its activation as a share of its own best, both above the null image."""
        return mean_ratio(self.activation - self.null, self.own - self.null)

    @property
    def floor(self) -> float:
        """The same share on other features' images."""
        return mean_ratio(self.elsewhere - self.null, self.own - self.null)


def mean_ratio(over: np.ndarray, under: np.ndarray) -> float:
    """Compute the ratio of two means over seeds, so that a seed whose descent hardly rose counts for little.

    Parameters
    ----------
    over, under : numpy.ndarray
        Numerators and denominators, by seed.

    Returns
    -------
    float
        The ratio; NaN where a value is not finite or a denominator is not above `TINY`.
    """
    defined = np.isfinite(over) & np.isfinite(under) & (under > TINY)
    return float(np.mean(over) / np.mean(under)) if defined.all() and len(defined) else float("nan")


def evaluate_runners_up(data: xr.Dataset) -> HeldOutRunnersUp:
    """Choose runners-up on the first seed and evaluate them on the others.

    Parameters
    ----------
    data : xarray.Dataset
        Result of `featmap.maximise` with recorded responses of the layer.

    Returns
    -------
    HeldOutRunnersUp
        One runner-up for each channel whose descents rose from every seed.
    """
    rows = [image_channels(data).index(c) for c in risen_channels(data)]
    return evaluate_held_out(data["A"].values[:, rows], np.array(risen_channels(data), dtype=int))


def held_out_rows(layer: str, data: xr.Dataset, one: HeldOutRunnersUp) -> list[tuple[Any, ...]]:
    """Arrange the evaluation of the runners-up as rows.

    Parameters
    ----------
    layer : str
        Name of the layer.
    data : xarray.Dataset
        Result of `featmap.maximise`.
    one : HeldOutRunnersUp
        Evaluation of its runners-up.

    Returns
    -------
    list of tuple
        Rows with the columns `COLUMNS`.
    """
    if not np.isfinite(one.p):
        return []
    quantities = dict(zip(HELD_OUT, (one.share, one.gap, one.percentile), strict=True))
    return [
        (f"other seeds: {what}", layer, target, "mean", data.sizes["step"], int(channel), None, value)
        for what, values in quantities.items()
        for target, channel, value in zip(risen_channels(data), one.channel, values, strict=True)
    ]


def best_responses(data: xr.Dataset, own: Mapping[int, np.ndarray]) -> dict[int, float]:
    """Look up the response of every feature to its own image, averaged over seeds.

    Parameters
    ----------
    data : xarray.Dataset
        Result of `featmap.maximise` for the drawn features.
    own : mapping of int to numpy.ndarray
        Responses of further features to their own images, by seed.

    Returns
    -------
    dict of int to float
        Responses by channel.
    """
    A = data["A"].values
    at = {c: float(A[:, image_channels(data).index(c), c].mean()) for c in risen_channels(data)}
    return at | {c: float(v.mean()) for c, v in own.items() if np.isfinite(v).all()}


def ranking_rows(layer: str, data: xr.Dataset, best: Mapping[int, float]) -> list[tuple[Any, ...]]:
    """Arrange the highest other features on every drawn feature's image as rows.

    Parameters
    ----------
    layer : str
        Name of the layer.
    data : xarray.Dataset
        Result of `featmap.maximise`.
    best : mapping of int to float
        Best response of each feature, as `best_responses` returns them.

    Returns
    -------
    list of tuple
        Rows with the columns `COLUMNS`: the `TOP` highest, means over seeds; the share of its own best for features
        whose own image was made.
    """
    null, rows = data["null"].values.mean(0), []
    for target in risen_channels(data):
        profile = data["A"].values[:, image_channels(data).index(target)].mean(0)
        for rank, c in enumerate(rank_others(profile, target)[:TOP], 1):
            reached, own = profile[target], best.get(int(c), np.nan) - null[c]
            quantities = {
                "activation": profile[c],
                "null": null[c],
                "of target": profile[c] / reached if reached > TINY else np.nan,
                "of own best": (profile[c] - null[c]) / own if own > TINY else np.nan,
            }
            rows += [
                (f"ranking: {what}", layer, target, "mean", data.sizes["step"], c, rank, value)
                for what, value in quantities.items()
                if np.isfinite(value)
            ]
    return rows


def image_channels(data: xr.Dataset) -> list[int]:
    """List the channels whose images a dataset holds.

    Parameters
    ----------
    data : xarray.Dataset
        Result of `featmap.maximise`.

    Returns
    -------
    list of int
        Channels.
    """
    return [int(str(name).rpartition(":")[2]) for name in data["image"].values]


def risen_channels(data: xr.Dataset) -> list[int]:
    """List the channels whose activation rose from every seed.

    Parameters
    ----------
    data : xarray.Dataset
        Result of `featmap.maximise`.

    Returns
    -------
    list of int
        Channels.
    """
    rising = np.isin(data["status"].values, LIVE_CODES).all(0)
    return [c for c, rose in zip(image_channels(data), rising, strict=True) if rose]


def rank_others(profile: np.ndarray, target: int) -> np.ndarray:
    """Rank the other channels by their response, the highest first.

    Parameters
    ----------
    profile : numpy.ndarray
        Responses of all channels; non-finite ones are left out.
    target : int
        Channel to leave out.

    Returns
    -------
    numpy.ndarray
        Channels.
    """
    order = np.argsort(-np.nan_to_num(profile, nan=-np.inf, posinf=-np.inf, neginf=-np.inf), kind="stable")
    return np.array([c for c in order if c != target and np.isfinite(profile[c])], dtype=int)


def describe_runner_up(
    layer: str, data: xr.Dataset, other: xr.Dataset, target: int, channel: int, own: dict[int, np.ndarray]
) -> RunnerUp:
    """Describe one runner-up.

    Parameters
    ----------
    layer : str
        Name of the layer.
    data : xarray.Dataset
        Result of `featmap.maximise` with the target's images.
    other : xarray.Dataset
        The same with the images of other features.
    target, channel : int
        Channels of the target and of the runner-up.
    own : dict of int to numpy.ndarray
        Responses of channels to their own images, by seed.

    Returns
    -------
    RunnerUp
        The runner-up.
    """
    responses, row = data["A"].values, image_channels(data).index(target)
    others = [
        k for k, c in enumerate(image_channels(other)) if c not in (target, channel) and c in risen_channels(other)
    ]
    images = other["A"].values[:, others]
    elsewhere, ranks = images[:, :, channel], 1 + (images > images[:, :, [channel]]).sum(2)
    return RunnerUp(
        layer,
        target,
        channel,
        responses[:, row, channel],
        data["null"].values[:, channel],
        responses[:, row, target],
        own.get(channel, np.full(len(responses), np.nan)),
        elsewhere.mean(1) if others else np.full(len(responses), np.nan),
        float(ranks.mean()) if others else float("nan"),
    )
