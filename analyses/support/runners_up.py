"""The features of a layer ranked by what they answer to each drawn feature's image, for `analyses.coactivation`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from analyses.formulas.runners_up import HeldOutRunnersUp, evaluate_held_out
from featmap.runs.array_layout import LIVE, RESCUED

TOP = 10
COLUMNS = ["part", "layer", "target", "seed", "step", "feature", "rank", "value"]


@dataclass(frozen=True)
class Runner:
    """The highest other feature of one maximised feature; every array is by seed.

    `own` is the runner-up's response to its own image, `elsewhere` its mean response to other features' images and
    `rank` its mean rank among all features there (1: the highest).
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
        """Its activation over the target's, mean over seeds; NaN where the target's is not above zero."""
        return quotient(self.activation, self.reached)

    @property
    def before(self) -> float:
        """What it has on the null image, over the target's activation."""
        return quotient(self.null, self.reached)

    @property
    def coactivation(self) -> float:
        """The share of its own best, above the null image, that it gives to the target's image."""
        return quotient(self.activation - self.null, self.own - self.null)

    @property
    def floor(self) -> float:
        """The same on other features' images."""
        return quotient(self.elsewhere - self.null, self.own - self.null)


def quotient(over: np.ndarray, under: np.ndarray) -> float:
    """Return the mean over seeds of a quotient; NaN where a denominator is not above zero."""
    good = np.isfinite(over) & np.isfinite(under) & (under > 1e-9)
    return float(np.mean(over[good] / under[good])) if good.all() and len(good) else float("nan")


def judged(drawn: xr.Dataset) -> HeldOutRunnersUp:
    """Return the drawn features' runners-up, chosen on the first seed and judged on the others."""
    rose = [channels(drawn).index(c) for c in risen(drawn)]
    return evaluate_held_out(drawn["A"].values[:, rose], np.array(risen(drawn), dtype=int))


def judged_rows(layer: str, drawn: xr.Dataset, one: HeldOutRunnersUp) -> list[tuple[Any, ...]]:
    """Return rows (see `COLUMNS`) of what the runners-up chosen on the first seed do on the others."""
    if not np.isfinite(one.p):
        return []
    quantities = {"of target": one.share, "gap": one.gap, "percentile": one.percentile}
    return [
        (f"other seeds: {what}", layer, target, "mean", drawn.sizes["step"], int(channel), None, value)
        for what, values in quantities.items()
        for target, channel, value in zip(risen(drawn), one.channel, values, strict=True)
    ]


def known_best(drawn: xr.Dataset, own: Mapping[int, np.ndarray]) -> dict[int, float]:
    """Return the response to its own image, mean over seeds, of every feature whose image was made."""
    A = drawn["A"].values
    at = {c: float(A[:, channels(drawn).index(c), c].mean()) for c in risen(drawn)}
    return at | {c: float(v.mean()) for c, v in own.items() if np.isfinite(v).all()}


def ranking_rows(layer: str, drawn: xr.Dataset, best: Mapping[int, float]) -> list[tuple[Any, ...]]:
    """Return rows (see `COLUMNS`) of the `TOP` highest others on every drawn feature's image, means over seeds.

    A share of its own best, above the null image, is there where the study made the image of that feature.
    """
    null, rows = drawn["null"].values.mean(0), []
    for target in risen(drawn):
        profile = drawn["A"].values[:, channels(drawn).index(target)].mean(0)
        for rank, c in enumerate(ranked(profile, target)[:TOP], 1):
            reached, own = profile[target], best.get(int(c), np.nan) - null[c]
            quantities = {
                "activation": profile[c],
                "null": null[c],
                "of target": profile[c] / reached if reached > 1e-9 else np.nan,
                "of own best": (profile[c] - null[c]) / own if own > 1e-9 else np.nan,
            }
            rows += [
                (f"ranking: {what}", layer, target, "mean", drawn.sizes["step"], c, rank, value)
                for what, value in quantities.items()
                if np.isfinite(value)
            ]
    return rows


def channels(data: xr.Dataset) -> list[int]:
    """Return the channels whose images a dataset holds."""
    return [int(str(name).rpartition(":")[2]) for name in data["image"].values]


def risen(data: xr.Dataset) -> list[int]:
    """Return the channels whose descents rose from every seed."""
    good = np.isin(data["status"].values, (LIVE, RESCUED)).all(0)
    return [c for c, rose in zip(channels(data), good, strict=True) if rose]


def ranked(profile: np.ndarray, target: int) -> np.ndarray:
    """Return the other channels by their response, the highest first; those that are not finite are left out."""
    order = np.argsort(-np.nan_to_num(profile, nan=-np.inf, posinf=-np.inf, neginf=-np.inf), kind="stable")
    return np.array([c for c in order if c != target and np.isfinite(profile[c])], dtype=int)
