"""State which response nonlinearity a number of seeds can find, from simulation with planted effects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from featmap import rng
from featmap.interaction.conclusion import format_number, format_seeds
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
    """What a run could find.

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

    def __str__(self) -> str:
        rate = "p < 0.05" if self.pairs == 1 else "a false discovery rate of 5 %"
        planted = _count_planted(self.pairs)
        have = f"{planted:,} of which {'has' if planted == 1 else 'have'} one"
        among = "" if self.pairs == 1 else f" among {self.pairs:,} pairs, {have}"
        if self.seeds < 3:
            return f"power: unknown with statistics of {format_seeds(self.seeds)}; 3 seeds are needed"
        if np.isnan(self.effect):
            return "power: unknown, since no group has statistics of two seeds or more"
        size = format_number(max(self.effect, 0.01), 2)  # a smaller one would be printed as 0.00
        found = f"an excess over the floor of {size} is found with 80 % power at {rate}{among}"
        if self.effect >= 1:
            found = f"no excess over the floor is found with 80 % power at {rate}{among}; give more seeds"
        return f"power: with {format_seeds(self.seeds)} {found}"


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


def state_power(table: pd.DataFrame, seeds: int) -> Power:
    """State what a run could find, from how much its statistics differ between seeds.

    Parameters
    ----------
    table : pandas.DataFrame
        Statistics of every group and seed, see `featmap.interaction.statistics.JointArrays.table`.
    seeds : int
        Number of seeds of the run.

    Returns
    -------
    Power
        Its effect is NaN where no group has two seeds with statistics, and at least the excess that counts as 0.
    """
    excess = table["response_nonlinearity"] - table["response_nonlinearity_floor"]
    variances = excess.groupby(table["group"], sort=False).var(ddof=1).dropna()
    counts = excess.groupby(table["group"], sort=False).count()
    pairs = max(1, int((counts >= 3).sum()))
    deviation = float(np.sqrt(variances.mean())) if len(variances) else float("nan")
    # without any spread, as in a linear network, the test still takes an excess of rounding error for 0
    effect = float(np.maximum(deviation * smallest_effect(pairs, seeds), interaction.ROUNDING))
    return Power(pairs, seeds, effect, deviation)


def _count_planted(pairs: int) -> int:
    """Count the pairs of a simulated run that have an effect."""
    return max(1, round(PLANTED_SHARE * pairs))
