"""The power of a run, beside the noncentral t-distribution and a plain simulation of the summary's own test."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from featmap.interaction.power import Power, RunPower, smallest_effect, state_power
from featmap.stats.interaction import ROUNDING, p_above_zero
from tests.helpers.interaction_oracles import benjamini_hochberg


@pytest.mark.parametrize("seeds", [3, 5, 12])
def test_one_group_has_the_power_of_a_t_test(seeds: int) -> None:
    critical = stats.t.ppf(0.95, seeds - 1)
    reached = stats.nct.sf(critical, seeds - 1, smallest_effect(1, seeds) * math.sqrt(seeds))
    assert reached == pytest.approx(0.8, abs=0.03)


def test_pairs_have_the_power_that_the_summarys_test_has() -> None:
    """40 pairs, four with an effect, five seeds, tested one by one and by the plain loops of the oracle."""
    effect, generator, found = smallest_effect(40, 5), np.random.default_rng(5), []
    for _ in range(60):
        excess = generator.normal(size=(40, 5)) * 0.1
        excess[:4] += 0.1 * effect
        q = benjamini_hochberg([p_above_zero(list(row)) for row in excess])
        found += [value < 0.05 for value in q[:4]]
    assert np.mean(found) == pytest.approx(0.8, abs=0.08)


def test_more_seeds_find_smaller_effects_and_more_pairs_need_larger_ones() -> None:
    by_seeds = [smallest_effect(64, n) for n in (3, 5, 10, 20)]
    assert by_seeds == sorted(by_seeds, reverse=True) and by_seeds[0] > 5 * by_seeds[-1]
    assert smallest_effect(1, 5) < smallest_effect(64, 5) == smallest_effect(64, 5)
    assert math.isnan(smallest_effect(64, 2))


def seeds_of(counts: dict[int, int], deviation: float = 0.05) -> pd.DataFrame:
    """Statistics of groups: how many have which number of seeds."""
    generator = np.random.default_rng(1)
    sizes = [seeds for seeds, groups in counts.items() for _ in range(groups)]
    rows = [(f"pair {k}", k / 10 + deviation * generator.normal()) for k, n in enumerate(sizes) for _ in range(n)]
    return pd.DataFrame(rows, columns=["group", "response_nonlinearity"]).assign(response_nonlinearity_floor=0.01)


def test_the_effect_is_in_units_of_the_spread_over_seeds() -> None:
    found = state_power(seeds_of({5: 30}), "net")
    power = found.least
    assert found.median == power and power.pairs == found.groups == 30 and found.freedom == 30 * 4
    assert power.deviation == pytest.approx(0.05, rel=0.2)
    assert power.effect == pytest.approx(power.deviation * smallest_effect(30, 5))
    assert f"with 5 seeds an excess over the floor of {power.effect:.2f} is found" in str(found)
    assert "among 30 pairs" in str(found) and "false discovery rate of 5 %" in str(found)
    assert "this run's 30 groups on network net" in found.basis and "120 degrees of freedom" in found.basis


def test_different_numbers_of_seeds_are_stated_at_the_least_and_at_the_median() -> None:
    found = state_power(seeds_of({2: 3, 5: 4, 12: 3, 20: 3}), "net")
    assert (found.least.seeds, found.median.seeds) == (5, 12) and found.least.pairs == 10, "two seeds are not tested"
    assert found.groups == 13 and found.freedom == 3 + 4 * 4 + 3 * 11 + 3 * 19
    for power in (found.least, found.median):
        assert power.effect == pytest.approx(power.deviation * smallest_effect(10, power.seeds))
    least, median = (f"{power.effect:.2f}" for power in (found.least, found.median))
    assert f"with 5 seeds, the fewest of a pair, an excess over the floor of {least} is found" in str(found)
    assert str(found).endswith(f"1 of which has one; with 12 seeds, the median, {median}") and median < least
    untested = state_power(seeds_of({1: 2, 2: 3}))
    assert untested.least.seeds == untested.median.seeds == 2 and math.isnan(untested.least.effect)


@pytest.mark.parametrize("deviation", [0.05, 5.0])
def test_the_record_holds_plain_numbers_or_none(deviation: float) -> None:
    found = state_power(seeds_of({5: 4, 9: 4}, deviation), "net")
    known = json.loads(json.dumps(found.record(), allow_nan=False))
    assert (known["power"], known["rate"], known["pairs"], known["planted"], known["seeds"]) == (0.8, 0.05, 8, 1, 5)
    large = deviation > 1
    assert known["excess"] == (None if large else found.least.effect), "no excess is above 1"
    assert known["median"] == {"seeds": 7, "excess": None if large else found.median.effect}
    deviations = {"network": "net", "groups": 8, "degrees_of_freedom": 4 * 4 + 4 * 8, "size": found.least.deviation}
    assert known["deviations"] == deviations
    assert known["sentence"] == str(found) and known["basis"] == found.basis
    assert ("no excess over the floor is found" in known["sentence"]) == large
    nothing = state_power(seeds_of({1: 2})).record()
    assert nothing["excess"] is nothing["deviations"]["size"] is None and nothing["basis"] == ""


@pytest.mark.parametrize(("excess", "effect"), [(0.0, ROUNDING), (math.nan, math.nan)])
def test_equal_seeds_find_what_exceeds_rounding_and_undefined_ones_nothing(excess: float, effect: float) -> None:
    table = pd.DataFrame({"group": ["a"] * 5, "response_nonlinearity": excess, "response_nonlinearity_floor": 0.0})
    assert state_power(table).least.effect == pytest.approx(effect, nan_ok=True)


def test_a_run_with_few_seeds_says_what_five_would_find() -> None:
    rng = np.random.default_rng(0)
    excess = rng.normal(0, 0.1, (40, 3))
    table = pd.DataFrame({"group": np.repeat(np.arange(40), 3), "response_nonlinearity": excess.ravel()})
    found = state_power(table.assign(response_nonlinearity_floor=0.0))
    assert found.enough is not None and found.enough.seeds == 5
    assert found.enough.effect == pytest.approx(found.least.deviation * smallest_effect(40, 5))
    assert str(found).endswith(f"4 of which have one; with 5 seeds one of {found.enough.effect:.2f}")
    assert found.record()["enough"] == {"seeds": 5, "excess": found.enough.effect}
    more = pd.DataFrame({"group": np.repeat(np.arange(24), 5), "response_nonlinearity": excess.ravel()})
    five = state_power(more.assign(response_nonlinearity_floor=0.0))
    assert five.enough is None and "enough" not in five.record()


@pytest.mark.parametrize(
    ("power", "words"),
    [
        (
            Power(1, 5, 0.12, 0.1),
            "power: with 5 seeds an excess over the floor of 0.12 is found with 80 % power at p <",
        ),
        (Power(1, 1, math.nan, math.nan), "power: unknown with statistics of 1 seed; 3 seeds are needed"),
        (Power(1, 5, math.nan, math.nan), "power: unknown, since no group has statistics of two seeds or more"),
        (Power(1, 5, 1e-4, 0.0), "an excess over the floor of 0.01 is found"),
        (Power(4, 5, 0.12, 0.1), "among 4 pairs, 1 of which has one"),
        (Power(30, 5, 0.12, 0.1), "among 30 pairs, 3 of which have one"),
        (Power(9, 3, 1.4, 0.3), "no excess over the floor is found"),
    ],
)
def test_power_in_words(power: Power, words: str) -> None:
    assert words in str(power) and words in str(RunPower(power, power, "net", power.pairs, 4))
