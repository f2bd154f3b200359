"""The benchmark of power: its simulation beside closed forms, its table, and a network without interaction."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from analyses.benchmarks import power, records
from analyses.benchmarks.power import Measured
from featmap import Execution, load
from featmap.cli.options import NetworkOptions
from featmap.errors import FeatmapError
from featmap.interaction.power import smallest_effect
from featmap.interaction.precision import LEAST_SEEDS, AutoSeeds, interval_width
from featmap.stats import interaction
from tests.helpers import networks, settings

pytestmark = pytest.mark.usefixtures("one_thread")


def normal_pairs(pairs: int = 60, seeds: int = 12, scale: float = 0.1) -> np.ndarray:
    values = np.random.default_rng(2).normal(0, scale, (pairs, seeds))
    return (values - values.mean(1, keepdims=True)) * math.sqrt(seeds / (seeds - 1))


def test_deviations_have_mean_zero_and_the_unbiased_variance() -> None:
    excess = np.random.default_rng(0).normal(0.3, 0.1, (5, 6))
    measured = Measured("net", ["a", "b"], 96, ["p"] * 5, (excess + 0.2).tolist(), [[0.2] * 6] * 5)
    found = power.deviations(measured)
    np.testing.assert_allclose(found.mean(1), 0, atol=1e-12)
    np.testing.assert_allclose((found**2).mean(1), [np.var(row, ddof=1) for row in excess])
    holes: Any = [*measured.nonlinearity[:4], [None, *measured.nonlinearity[4][1:]]]
    assert len(Measured("net", ["a", "b"], 96, ["p"] * 5, holes, [[0.2] * 6] * 5).values()[0]) == 4


def test_drawn_pairs_have_the_spreads_of_the_measured_ones() -> None:
    residuals = normal_pairs() * np.where(np.arange(60) % 2, 1.0, 5.0)[:, None]
    drawn = power.draw(residuals, (40, 50), 200, np.random.default_rng(1))
    assert abs(drawn.mean()) < 0.01
    assert (drawn**2).mean() == pytest.approx((residuals**2).mean(), rel=0.1)
    spreads = drawn.std(2).ravel()
    assert (spreads < 0.2).mean() == pytest.approx(0.5, abs=0.05), "every pair has one spread for all its seeds"


@pytest.mark.parametrize("seeds", [5])
def test_one_planted_group_has_the_power_of_a_t_test(seeds: int) -> None:
    size, _, median = power.plant(normal_pairs(), 1, seeds, planted=200)
    assert median == seeds
    reached = stats.nct.sf(stats.t.ppf(0.95, seeds - 1), seeds - 1, size / 0.1 * math.sqrt(seeds))
    assert reached == pytest.approx(0.8, abs=0.09)


def test_nothing_is_found_in_deviations_that_are_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "p_above_zero", lambda row: float(row.mean() < 10))
    assert power.plant(normal_pairs(), 1, 5, planted=4)[0] == math.inf


def test_every_pair_that_the_test_finds_by_mistake_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that finds everything has the smallest power that there is, and 90 % of what it finds are false."""
    monkeypatch.setattr(power, "p_above_zero", lambda row: 1e-9)
    size, false, _ = power.plant(normal_pairs(), 20, 5, planted=4)
    assert size < 0.005 and false == pytest.approx(0.9)


def test_repeatability_is_the_share_of_variance_between_pairs() -> None:
    generator = np.random.default_rng(4)
    values = generator.normal(size=(4000, 1)) + generator.normal(size=(4000, 6)) * math.sqrt(3)
    assert power.repeatability(values) == pytest.approx(1 / 4, abs=0.03)
    assert power.repeatability(values, 3) == pytest.approx(3 / 4 / (1 + 2 / 4), abs=0.03)  # Spearman-Brown


def test_neighbouring_seeds_of_chance_correlate_as_centring_makes_them() -> None:
    assert power.cyclic_correlation(normal_pairs(3000, 6)) == pytest.approx(-1 / 5, abs=0.02)
    assert power.cyclic_correlation(np.tile([1.0, -1.0], (4, 3))) == -1


def test_automatic_seeds_end_at_once_or_at_the_limit() -> None:
    narrow, wide = (power.end_automatically(normal_pairs(scale=s), 200) for s in (0.001, 1.0))
    assert narrow["seeds"] == 5 and narrow["limit"] == 0 and wide["seeds"] == 20 and wide["limit"] == 1
    assert 0.01 < narrow["positive"] < 0.1 and 0.01 < wide["missed"] < 0.1


@pytest.mark.parametrize(("scale", "seeds"), [(0.001, 5), (1.0, 20)])
def test_automatic_seeds_find_what_the_number_at_which_they_end_finds(scale: float, seeds: int) -> None:
    residuals, pairs = normal_pairs(scale=scale), 4
    size, _, median = power.plant(residuals, pairs, AutoSeeds(), planted=40)
    fixed, *_ = power.plant(residuals, pairs, seeds, planted=40)
    assert median == seeds and size == pytest.approx(fixed, rel=0.3, abs=0.004)


def test_each_group_ends_by_its_own_width() -> None:
    rule, excess = AutoSeeds(width=0.1, most=9), np.random.default_rng(7).normal(0, 0.04, (30, 9))
    ends = power.end_seeds(rule, excess)
    narrow = [[interval_width(row[:n]) <= rule.width for n in range(LEAST_SEEDS, 10)] for row in excess]
    assert ends.tolist() == [LEAST_SEEDS + (row.index(True) if True in row else 4) for row in narrow]
    assert power.end_seeds(rule, excess + 3).tolist() == ends.tolist(), "an excess changes no width"


def test_every_form_has_its_numbers_and_a_screening_no_automatic_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def plant(residuals: np.ndarray, pairs: int, seeds: Any, planted: int) -> tuple[float, float, float]:
        asked.append((pairs, seeds))
        return 0.25, 0.04, 11.0 if isinstance(seeds, AutoSeeds) else seeds

    monkeypatch.setattr(power, "plant", plant)
    monkeypatch.setattr(
        power, "end_automatically", lambda _: dict.fromkeys(("positive", "missed", "seeds", "limit"), 0.1)
    )
    excess = np.random.default_rng(0).normal(0.3, 0.1, (5, 6))
    found = power.analyse(Measured("net", ["a", "b"], 96, ["p"] * 5, (excess + 0.2).tolist(), [[0.2] * 6] * 5))
    spread = float(np.sqrt((power.deviations(found) ** 2).mean()))
    assert {pairs for pairs, seeds in asked if isinstance(seeds, AutoSeeds)} == {1, 120, 256}
    assert {pairs for pairs, _ in asked} == {1, 50, 120, 200, 256} == set(power.FORMS.values())
    whole = found.normal["16 x 16 features of two layers"]["auto"]
    assert whole == pytest.approx(spread * smallest_effect(256, 11), rel=1e-3)
    (row,) = [line for line in power.format_page([found]).splitlines() if "256 pairs |" in line]
    assert f"| {whole:.2f} / 0.25 (11) | 4 % |" in row
    (row,) = [line for line in power.format_page([found]).splitlines() if "its top pairs: 50 pairs |" in line]
    assert row.endswith("|  | 4 % |")


def test_stored_deviations_are_simulated_again_without_a_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power, "analyse", lambda measured: measured)
    for name in ("measure", "draw_pairs"):
        monkeypatch.delattr(power, name)
    store, readme = tmp_path / "power.json", tmp_path / "README.md"
    store.write_bytes(power.STORE.read_bytes())
    readme.write_bytes(records.README.read_bytes())
    settings_ = {"network": NetworkOptions(), "store": store, "readme": readme}
    power.main(**settings_, restate=True)  # type: ignore[arg-type]
    power.main(**settings_, check=True)  # type: ignore[arg-type]
    assert store.read_bytes() == power.STORE.read_bytes() and readme.read_bytes() == records.README.read_bytes()


def test_a_network_without_interaction_has_none(tmp_path: Path) -> None:
    network = load(networks.linear_network(), input_size=16)
    recipe = settings.resolve_linear(network, size=16, steps=4, rows=8)
    pairs = power.draw_pairs(network, ["conv3", "conv3"], 3, 9)
    kept = [pair for pair in pairs if pair[0] != pair[1]][:3]
    found = power.measure(network, kept, recipe, 2, Execution("cpu", out=tmp_path / "run"))
    assert len(found.pairs) == 3 and found.layers == ["conv3", "conv3"] and found.size == 16
    values = np.array(found.nonlinearity, dtype=float)
    assert values.shape == (3, 2) and np.nanmax(values) <= interaction.ROUNDING


@pytest.mark.parametrize(
    ("given", "words"),
    [({"seeds": 5}, "seeds 5"), ({"layers": "second"}, "layers second"), ({"features": 2, "pairs": 9}, "make 4")],
)
def test_settings_that_leave_a_measure_undefined_are_refused(given: dict[str, Any], words: str) -> None:
    network = NetworkOptions(model="tests.helpers.tiny:small")
    with pytest.raises(FeatmapError, match=words):
        power.main(network, **({"layers": "second,first"} | given))


def test_the_table_in_the_readme_is_that_of_the_stored_values() -> None:
    stored = power.read(power.STORE)
    assert [m.source for m in stored] == ["squeezenet", "reference"]
    assert power.format_page(stored) in records.README.read_text(encoding="utf-8")
