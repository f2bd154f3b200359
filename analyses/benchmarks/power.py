"""Measure how much interaction differs between seeds, and which nonlinearity a number of seeds finds.

    python -m analyses.benchmarks.power
    python -m analyses.benchmarks.power --model mypackage.nets:mine --layers layer2.1,layer3.0
    python -m analyses.benchmarks.power --check

Random pairs of two layers' features are measured with several seeds, as `featmap interact --layers` does. From the
excess of the response nonlinearity over its floor, one value for each pair and seed, follow

- the *spread*: standard deviation over seeds, pooled over pairs;
- the smallest excess that is found with 80 % power, for one group of units (p below 0.05) and for many pairs (false
  discovery rate below 5 %, a tenth of the pairs have it), twice: *normal*, spread times
  `featmap.interaction.power.smallest_effect`; and *planted*, where runs are put together from the measured pairs: each
  pair takes the deviations over seeds of one of them, drawn again with replacement and smoothed, so that pairs differ
  in spread and seeds are not normal; a tenth gets the excess added; and the summary's own test decides
  (`p_above_zero`, `q_values`). Beside it the share of false ones among what is found;
- how `--seeds auto` ends on the same deviations without any excess: false positives, seeds, and intervals that miss 0;
- *repeatability*: correlation, over pairs, of the nonlinearity from one seed with that from another, and of means of
  three seeds; with and without the floor, and with a floor averaged over seeds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from analyses.benchmarks import records
from analyses.benchmarks.image_records import short_name
from analyses.benchmarks.image_ways import split_names
from analyses.benchmarks.speed import draw_features
from analyses.support.commands import run
from featmap import rng
from featmap.cli import console
from featmap.cli.app import expand_options
from featmap.cli.options import NetworkOptions
from featmap.errors import FeatmapError
from featmap.interaction import groups
from featmap.interaction import run as joint
from featmap.interaction.power import LEVEL, PLANTED_SHARE, POWER, smallest_effect
from featmap.network.model import Network
from featmap.network.unit import Unit
from featmap.optimize.recipe import Recipe
from featmap.runs import lifecycle
from featmap.runs.engine import Execution
from featmap.stats.correlation import pearson
from featmap.stats.interaction import p_above_zero, q_values

STORE, SECTION = records.FOLDER / "power.json", "power"
FORMS = {"one group": 1, "16 features of one layer": 120, "16 x 16 features of two layers": 256}
"""Forms of the command, and their numbers of pairs."""
SEEDS = (3, 5, 10, 20)
PLANTED = 1000
"""Planted pairs of each form and number of seeds, over repetitions of the run."""
SMOOTHING = 0.3
"""Standard deviation of the noise that is added to a drawn deviation, in those of its pair."""
AIMS = {"reference": 0.7}
"""Repeatability of single seeds that is aimed at, by network."""
AIM = 0.8
"""The same for other networks."""


@dataclass(frozen=True)
class Measured:
    """What was measured of one network.

    Parameters
    ----------
    source : str
        Network.
    layers : list of str
        The two layers.
    size : int
        Side of the images in pixels.
    pairs : list of str
        Names of the pairs.
    nonlinearity, floor : list of list of float
        Response nonlinearity and its floor, a row for each pair, a column for each seed; None where undefined.
    normal, planted, false : dict
        Smallest excess by both simulations, and the share of false discoveries, by form and number of seeds.
    auto : dict of float
        What `--seeds auto` does without any excess.
    """

    source: str
    layers: list[str]
    size: int
    pairs: list[str]
    nonlinearity: list[list[float | None]]
    floor: list[list[float | None]]
    normal: dict[str, dict[str, float]] = field(default_factory=dict)
    planted: dict[str, dict[str, float]] = field(default_factory=dict)
    false: dict[str, dict[str, float]] = field(default_factory=dict)
    auto: dict[str, float] = field(default_factory=dict)

    def values(self) -> tuple[np.ndarray, np.ndarray]:
        """Return nonlinearity and floor of the pairs that every seed defines, pairs x seeds."""
        raw, floor = np.array(self.nonlinearity, dtype=float), np.array(self.floor, dtype=float)
        defined = np.isfinite(raw - floor).all(1)
        return raw[defined], floor[defined]


def draw_pairs(network: Network, layers: Sequence[str], features: int, count: int) -> list[tuple[Unit, Unit]]:
    """Draw features of two layers, and pairs of them, at random."""
    first, second = ([Unit(la, c) for c in draw_features(network, la, features, 0)] for la in layers)
    every = [(a, b) for a in first for b in second]
    if not 3 <= count <= len(every):
        raise FeatmapError(f"pairs {count}: {features} features of each layer make {len(every)}; give 3 or more")
    chosen = rng.generator("power pairs", network.name, *layers).choice(len(every), count, replace=False)
    return [every[k] for k in sorted(chosen)]


def measure(
    network: Network, pairs: Sequence[tuple[Unit, Unit]], recipe: Recipe, seeds: int, place: Execution
) -> Measured:
    """Measure pairs with several seeds."""
    job = groups.pairs_job(tuple(pairs), network, recipe, groups.JointSettings(seeds=seeds))
    table = joint.carry_out(job, lifecycle.open_run(job, place.out), place).statistics

    def rows(name: str) -> list[list[float | None]]:
        grid = table.pivot(index="group", columns="seed", values=name).loc[job.labels].to_numpy(dtype=float)
        return [[round(float(v), 6) if np.isfinite(v) else None for v in row] for row in grid]

    layers = [u.layer for u in job.groups[0]]
    found = rows("response_nonlinearity"), rows("response_nonlinearity_floor")
    return Measured(short_name(network.name), layers, int(recipe.size), job.labels, *found)
