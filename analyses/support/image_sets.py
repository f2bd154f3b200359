"""Images that a study made of one layer's units under one recipe, and what the layer answers to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

import featmap
from analyses.formulas.likeness import ProfileAgreement, profile_agreement
from analyses.support.study import ANY, LEVEL, Context, Finding, interval, mean_finding, plain_finding, share_finding
from featmap.optimize.recipe import Recipe
from featmap.runs.array_layout import LIVE, RESCUED
from featmap.stats.reliability import Interval

COLUMNS = ("measure", "layer", "feature", "seed", "recipe", "against", "value")


@dataclass(frozen=True, eq=False)
class Made:
    """The images of N units under one recipe over S seeds.

    Attributes
    ----------
    units : N names
    images, nulls : S x N x 3 x H x W, and the seeds' null images S x 3 x H x W
    activation : S x N, of each unit on its own image
    live : S x N booleans: the descent found a gradient and rose
    A : S x N x M, the responses of the layer's M features; None where they were not asked for
    """

    units: tuple[str, ...]
    images: np.ndarray
    nulls: np.ndarray
    activation: np.ndarray
    live: np.ndarray
    A: np.ndarray | None = None

    def only(self, at: slice) -> Made:
        """Return the same of some of the units."""
        A = None if self.A is None else self.A[:, at]
        return Made(self.units[at], self.images[:, at], self.nulls, self.activation[:, at], self.live[:, at], A)

    @property
    def responses(self) -> np.ndarray:
        """A, where it was asked for."""
        assert self.A is not None
        return self.A

    @property
    def shown(self) -> np.ndarray:
        """The images as they are shown: clipped to [0, 1], S x N x 3 x H x W."""
        return np.clip(self.images, 0, 1)

    @property
    def changes(self) -> np.ndarray:
        """What each image is beyond its seed's null image: S x N x 3 x H x W."""
        found: np.ndarray = self.images - self.nulls[:, None]
        return found


def make(
    context: Context,
    units: Sequence[str],
    recipe: Recipe,
    *parts: Any,
    probe: str | None = None,
    seeds: int | None = None,
    network: featmap.Network | None = None,
) -> Made:
    """Make the images of units in the run folder named by `parts`; `probe` is a layer to record the responses of."""
    network, count = network or context.network, seeds or context.seeds
    folder = context.folder(*parts, units=list(units), recipe=recipe.identity(), seeds=count, network=network.name)
    data = featmap.maximise(
        units,
        network,
        recipe=recipe,
        seeds=count,
        device=context.device,
        responses=probe,
        out=folder,
        watcher=context.watcher,
    )
    return Made(
        tuple(units),
        data["images"].values,
        data["null_images"].values,
        data["activation"].values.astype(np.float64),
        np.isin(data["status"].values, (LIVE, RESCUED)),
        None if probe is None else data["A"].values.astype(np.float64),
    )


def over_seeds(values: np.ndarray, live: np.ndarray) -> np.ndarray:
    """Return each unit's mean over its live seeds: S x N values to N; NaN where no seed is live."""
    known = live & np.isfinite(values)
    count = known.sum(0)
    found: np.ndarray = np.where(count > 0, np.where(known, values, 0).sum(0) / np.maximum(count, 1), np.nan)
    return found


def alike(one: Made, two: Made, fewest: int = 2) -> ProfileAgreement:
    """Return how alike two sets of images of the same features drive the layer, over pairs of different seeds.

    Different seeds, so that a rest of the same noise is no likeness; with a single seed that one. `one` and `two` may
    be the same: that is the agreement over seeds, undefined with one. So it is where fewer than `fewest` are live.
    """
    A = [np.where(m.live[..., None], m.responses, np.nan) for m in (one, two)]
    pairs = [(s, t) for s in range(len(A[0])) for t in range(len(A[1])) if s != t]
    if not pairs and one is not two:
        pairs = [(0, 0)]
    return _mean([profile_agreement(A[0][s], A[1][t], fewest) for s, t in pairs], len(one.units))


def common(one: Made, two: Made) -> Made:
    """Return `one`, live where `two` is live from the same seed too."""
    return replace(one, live=one.live & two.live[: len(one.live)])


def ceiling(one: Made, two: Made, fewest: int = 2) -> ProfileAgreement:
    """Return what `alike` would be of `one` and `two` if both recipes did the same: `two` against its other seeds.

    Over the same pairs of seeds and the same rows: those that are live in `one`. Undefined with one seed of `two`.
    """
    count = len(one.images)
    if len(two.images) < 2:
        return ProfileAgreement(*np.full((2, len(two.units)), np.nan))
    first = replace(two, images=two.images[:count], live=common(one, two).live, A=two.responses[:count])
    return alike(first, two, fewest)


def compared(one: Made, two: Made) -> list[int]:
    """Return how many images `alike` compares for each pair of seeds."""
    pairs = [(s, t) for s in range(len(one.live)) for t in range(len(two.live)) if s != t]
    return [int((one.live[s] & two.live[t]).sum()) for s, t in pairs or [(0, 0)]]


def _mean(found: Sequence[ProfileAgreement], units: int) -> ProfileAgreement:
    """Return the mean of several agreements over those that define a feature's."""
    pick: tuple[Callable[[ProfileAgreement], np.ndarray], ...] = (lambda r: r.same, lambda r: r.different)
    tables = [np.array([p(r) for r in found]).reshape(-1, units) for p in pick]
    return ProfileAgreement(*(over_seeds(t, np.isfinite(t)) for t in tables))


def tidy(measure: str, layer: str, made: Made, values: np.ndarray, recipe: str, against: str = "") -> pd.DataFrame:
    """Return one observation a row: values S x N (or N, over all seeds: no seed) of a layer's units.

    Undefined values, and those of images that are not live, are left out.
    """
    table = np.asarray(values, dtype=float)
    over = table.ndim == 1
    table = table[None] if over else np.where(made.live, table, np.nan)
    seed, at = np.nonzero(np.isfinite(table))
    return pd.DataFrame(
        {
            "measure": measure,
            "layer": layer,
            "feature": [made.units[i].split(":", 1)[1] for i in at],
            "seed": pd.array([pd.NA] * len(at) if over else seed, dtype="Int64"),
            "recipe": recipe,
            "against": against,
            "value": table[seed, at],
        }
    )


def by_feature(rows: pd.DataFrame, measure: str, recipe: str, against: str = "") -> pd.Series:
    """Return one measure of every feature, over its seeds, with (layer, feature) as its index."""
    chosen = rows[(rows["measure"] == measure) & (rows["recipe"] == recipe) & (rows["against"] == against)]
    return chosen.groupby(["layer", "feature"])["value"].mean().astype(float)


def by_channel(rows: pd.DataFrame, measure: str, recipe: str) -> pd.Series:
    """Return one measure of every channel, over the seeds and then over the neurons of it: (layer, channel) as
    index."""
    values = by_feature(rows, measure, recipe).reset_index()
    values["feature"] = values["feature"].astype(str).str.split(":").str[0]
    return values.groupby(["layer", "feature"])["value"].mean().astype(float)


def likeness_rows(
    layer: str, one: Made, two: Made, recipe: str, against: str, found: ProfileAgreement | None = None, prefix: str = ""
) -> pd.DataFrame:
    """Return how alike the same and different features of two sets are, as rows `same` and `different`.

    Or what was `found` of them, each name after a `prefix`.
    """
    found = found or alike(one, two)
    return pd.concat(
        [
            tidy(f"{prefix}same", layer, one, found.same, recipe, against),
            tidy(f"{prefix}different", layer, one, found.different, recipe, against),
        ]
    )


def beyond(rows: pd.DataFrame, recipe: str, against: str, prefix: str = "") -> pd.Series:
    """Return the agreement of each feature's response profiles between two recipes less that of different features.

    With a `prefix` what was stored under it, see `likeness_rows`.
    """
    same, different = (by_feature(rows, f"{prefix}{what}", recipe, against) for what in ("same", "different"))
    return same - different


def mean_of(name: str, values: pd.Series, words: str, unit: str = "", within: tuple[float, float] = ANY) -> Finding:
    """Return the mean of features' values with its interval, cut at what is possible; undefined where there is none."""
    known = values[np.isfinite(values)]
    if known.empty:
        return plain_finding(name, np.nan, 0, words, unit=unit)
    return mean_finding(name, known, words, unit, within)


def ratio_of(name: str, values: pd.Series, words: str) -> Finding:
    """Return the geometric mean of features' ratios with its interval; those not above 0 are left out."""
    known = values[(values > 0) & np.isfinite(values)]
    if known.empty:
        return plain_finding(name, np.nan, 0, words)
    mean, low, high = np.exp(interval(np.log(known)))
    return Finding(name, float(mean), float(low), float(high), len(known), words)


def share_of(name: str, hits: pd.Series, words: str) -> Finding:
    """Return the share of features of which something is true, with Wilson's interval; undefined where there is
    none."""
    return (
        share_finding(name, int(hits.sum()), len(hits), words) if len(hits) else plain_finding(name, np.nan, 0, words)
    )


def written(value: float | None, form: str = ".2f") -> str:
    """Return a number for a sentence."""
    return "undefined" if value is None else format(value, form)


def spanned(finding: Finding | Interval, form: str = ".2f") -> str:
    """Return a finding or figure for a sentence, with its interval where it has one."""
    if finding.low is None or finding.high is None:
        return written(finding.value, form)
    return f"{written(finding.value, form)} [{written(finding.low, form)}, {written(finding.high, form)}]"


WORDS = {True: "holds", False: "does not hold", None: "is not decided"}
"""What a sentence says of a part of a claim."""


def difference_of(name: str, more: pd.Series, less: pd.Series, words: str) -> Finding:
    """Return the difference of the means of two groups of features, with Welch's interval; undefined below 2 in
    each."""
    a, b = (v[np.isfinite(v)].to_numpy(dtype=float) for v in (more, less))
    if len(a) < 2 or len(b) < 2:
        return plain_finding(name, np.nan, len(a) + len(b), words)
    found = stats.ttest_ind(a, b, equal_var=False).confidence_interval(LEVEL)
    return plain_finding(name, float(a.mean() - b.mean()), len(a) + len(b), words, float(found.low), float(found.high))


def side(context: Context) -> int:
    """Return the size of a study's images where it is not asked for all: the network's own, up to 128 pixels."""
    return min(context.network.input_size, 128)
