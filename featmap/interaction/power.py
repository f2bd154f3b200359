"""State which response nonlinearity a number of seeds can find, from simulation with planted effects."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from featmap import rng
from featmap.interaction.conclusion import SEEDS_FOR_CLAIM, format_number, format_seeds
from featmap.interaction.kinds import MIN_SEEDS
from featmap.stats import interaction

POWER, LEVEL = 0.8, 0.05
"""Power that is asked for, and the false discovery rate (of one group: the p-value) up to which an effect counts."""
PLANTED_SHARE = 0.1
"""Share of the pairs of a simulated run that have an effect; one pair at least."""
PLANTED_PAIRS = 2000
"""Number of planted pairs that are simulated, over repetitions of the run."""
MAX_EFFECT, TOLERANCE = 1000.0, 1e-3
"""Largest effect that is tried, and the relative accuracy of the result, both in standard deviations over seeds."""


@dataclass(frozen=True)
class Power:
    """What a run could find with one number of seeds.

    Parameters
    ----------
    pairs, seeds : int
        Number of groups, and of seeds that have statistics.
    effect : float
        Smallest excess of the response nonlinearity over its floor that is found with a power of `POWER` at a false
        discovery rate of `LEVEL`; NaN where seeds are too few or undefined.
    deviation : float
        Standard deviation of the excess over seeds, pooled over the groups.
    """

    pairs: int
    seeds: int
    effect: float
    deviation: float

    @property
    def size(self) -> str:
        """The excess in words; one below 0.01 would be printed as 0.00."""
        return "none" if self.effect >= 1 else format_number(max(self.effect, 0.01), 2)

    def __str__(self) -> str:
        return f"power: {self.describe(format_seeds(self.seeds))}"

    def describe(self, seeds: str) -> str:
        """Describe what is found.

        Parameters
        ----------
        seeds : str
            The number of seeds in words.

        Returns
        -------
        str
            Part of a sentence.
        """
        rate = "p < 0.05" if self.pairs == 1 else "a false discovery rate of 5 %"
        planted = _count_planted(self.pairs)
        have = f"{planted:,} of which {'has' if planted == 1 else 'have'} one"
        among = "" if self.pairs == 1 else f" among {self.pairs:,} pairs, {have}"
        if self.seeds < MIN_SEEDS:
            return f"unknown with statistics of {seeds}; {MIN_SEEDS} seeds are needed"
        if np.isnan(self.effect):
            return "unknown, since no group has statistics of two seeds or more"
        if self.effect >= 1:
            return f"with {seeds} no excess over the floor is found with 80 % power at {rate}{among}; give more seeds"
        return f"with {seeds} an excess over the floor of {self.size} is found with 80 % power at {rate}{among}"


@dataclass(frozen=True)
class RunPower:
    """What a run could find with the seeds of its groups, and what that rests on.

    Parameters
    ----------
    least, median : Power
        With the smallest and the median number of seeds with statistics, among the groups that are tested; of a run
        with a fixed number of seeds both are the same unless statistics are undefined. With the largest number among
        all groups where none is tested.
    network : str
        Name of the network.
    groups, freedom : int
        Number of groups whose deviations over seeds are pooled, and their degrees of freedom: seeds less one, summed
        over groups.
    enough : Power, optional
        With `SEEDS_FOR_CLAIM` seeds, of a run with fewer.
    """

    least: Power
    median: Power
    network: str
    groups: int
    freedom: int
    enough: Power | None = None

    def __str__(self) -> str:
        if self.median.seeds == self.least.seeds:
            more = f"; with {format_seeds(SEEDS_FOR_CLAIM)} one of {self.enough.size}" if self.enough else ""
            return f"{self.least}{more}"
        least = self.least.describe(f"{format_seeds(self.least.seeds)}, the fewest of a pair,")
        return f"power: {least}; with {format_seeds(self.median.seeds)}, the median, {self.median.size}"

    @property
    def basis(self) -> str:
        """The deviations that the power rests on, in a sentence; "" where there are none."""
        if not self.groups:
            return ""
        own = "this group alone" if self.groups == 1 else f"this run's {self.groups:,} groups"
        deviation = f"{self.least.deviation:.2g}"
        return (
            f"It rests on the seeds of {own} on network {self.network}: the excess deviates by {deviation} between "
            f"them ({self.freedom:,} degrees of freedom)."
        )

    def record(self) -> dict[str, Any]:
        """Collect the power as plain JSON values.

        Returns
        -------
        dict
            `sentence` and `basis` in words; `excess`, the smallest that is found with `power` at a false discovery rate
            of `rate` (of one group: p below it), None where none up to 1 is found or it is unknown; `pairs`, of which
            `planted` have the excess; `seeds`, their least number; `enough`, the excess with `SEEDS_FOR_CLAIM` seeds,
            of a run with fewer; `median` with `seeds` and `excess` at the median;
            and `deviations`: the `network`, the number of `groups` of this run, their `degrees_of_freedom` and the
            standard deviation over seeds (`size`).
        """
        size = self.least.deviation
        return {
            "sentence": str(self),
            "basis": self.basis,
            "excess": _plain(self.least.effect),
            "power": POWER,
            "rate": LEVEL,
            "pairs": self.least.pairs,
            "planted": _count_planted(self.least.pairs),
            "seeds": self.least.seeds,
            **({"enough": {"seeds": SEEDS_FOR_CLAIM, "excess": _plain(self.enough.effect)}} if self.enough else {}),
            "median": {"seeds": self.median.seeds, "excess": _plain(self.median.effect)},
            "deviations": {
                "network": self.network,
                "groups": self.groups,
                "degrees_of_freedom": self.freedom,
                "size": float(size) if np.isfinite(size) else None,
            },
        }


@lru_cache(maxsize=64)
def smallest_effect(pairs: int, seeds: int) -> float:
    """Compute the smallest effect that is found with a power of `POWER`.

    Simulated runs of `pairs` pairs, a tenth of which (at least one) have the effect, are tested as the summary tests
    its pairs: by a one-sided t-test over seeds, and over pairs by the false discovery rate of Benjamini and Hochberg.
    The excess of pairs without an effect is normal about 0, which is the hardest case.

    Parameters
    ----------
    pairs : int
        Number of pairs, 1 or more.
    seeds : int
        Number of seeds of each pair.

    Returns
    -------
    float
        In standard deviations of the excess over seeds; the same each time. NaN below three seeds, inf above
        `MAX_EFFECT`.
    """
    if seeds < 3:
        return float("nan")
    planted = _count_planted(pairs)
    runs = -(-PLANTED_PAIRS // planted)
    generator = rng.generator("power", pairs, seeds)
    # The same draws for every effect: power then grows with the effect, and bisection finds one crossing.
    mean = generator.normal(size=(runs, pairs))
    spread = np.sqrt(generator.chisquare(seeds - 1, size=(runs, pairs)) / (seeds - 1))
    shift = np.where(np.arange(pairs) < planted, np.sqrt(seeds), 0.0)

    def power(effect: float) -> float:
        p = stats.t.sf((mean + effect * shift) / spread, seeds - 1)
        q = stats.false_discovery_control(p, axis=1)
        return float((q[:, :planted] < LEVEL).mean())

    low, high = 0.0, 1.0
    while power(high) < POWER:
        low, high = high, 2 * high
        if high > MAX_EFFECT:
            return float("inf")
    while high - low > TOLERANCE * high:
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high


def state_power(table: pd.DataFrame, network: str = "") -> RunPower:
    """State what a run could find, from how much its statistics differ between seeds.

    Parameters
    ----------
    table : pandas.DataFrame
        Statistics of every group and seed, see `featmap.interaction.statistics.JointArrays.table`.
    network : str, default ""
        Name of the network.

    Returns
    -------
    RunPower
        Effects are NaN where no group has two seeds with statistics, and at least the excess that counts as 0. Of
        automatic seeds, groups with few are those that differ little between them: for these the power with the least
        number, which is that of all groups' pooled deviation, is a lower limit.
    """
    excess = (table["response_nonlinearity"] - table["response_nonlinearity_floor"]).groupby(table["group"], sort=False)
    variances, counts = excess.var(ddof=1).dropna(), excess.count()
    tested = counts[counts >= MIN_SEEDS]
    seeds = (int(tested.min()), int(tested.median())) if len(tested) else (int(counts.max()),) * 2
    pairs = max(1, len(tested))
    deviation = float(np.sqrt(variances.mean())) if len(variances) else float("nan")

    def power(n: int) -> Power:
        # without any spread, as in a linear network, the test still takes an excess of rounding error for 0
        return Power(
            pairs, n, float(np.maximum(deviation * smallest_effect(pairs, n), interaction.ROUNDING)), deviation
        )

    freedom = int((counts[variances.index] - 1).sum())
    enough = power(SEEDS_FOR_CLAIM) if MIN_SEEDS <= seeds[0] < SEEDS_FOR_CLAIM and np.isfinite(deviation) else None
    return RunPower(power(seeds[0]), power(seeds[1]), network, len(variances), freedom, enough)


def _plain(effect: float) -> float | None:
    """Return an excess that can occur, and None for any other."""
    return float(effect) if effect < 1 else None


def _count_planted(pairs: int) -> int:
    """Count the pairs of a simulated run that have an effect."""
    return max(1, round(PLANTED_SHARE * pairs))
