"""Two features over photographs: correlation, lifts and their nulls against plain loops and planted cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featmap.stats.top_responses import (
    LEAST_PAIRED,
    PERMUTATIONS,
    STRONG,
    Association,
    firing_places,
    permute_photographs,
    place_lift,
    response_correlation,
    strong_lift,
)

COUNT = 60


def two_sided(observed: float, drawn: list[float]) -> float:
    """Twice the smaller one-sided share of permutations, the observed order counted as one of them."""
    above = sum(value >= observed - 1e-9 for value in drawn)
    below = sum(value <= observed + 1e-9 for value in drawn)
    return min(1.0, 2 * (1 + min(above, below)) / (len(drawn) + 1))


def planted(kind: str, count: int = COUNT, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Responses of two features that are strong on the same photographs, on different ones, or independently."""
    rng = np.random.default_rng(seed)
    one = rng.gamma(2.0, 1.0, count)
    two = {"always": one**2, "never": one.max() - one, "independent": rng.gamma(2.0, 1.0, count)}[kind]
    return one, two + 1e-6 * rng.random(count)


@pytest.mark.parametrize("kind", ["always", "never", "independent"])
def test_correlation_and_lift_are_those_of_plain_loops(kind: str) -> None:
    one, two = planted(kind)
    orders = permute_photographs(COUNT)
    assert orders.shape == (PERMUTATIONS, COUNT) and all(sorted(order) == list(range(COUNT)) for order in orders[:20])
    found = response_correlation(one, two)
    assert found.value == pytest.approx(np.corrcoef(one, two)[0, 1])
    assert found.p == two_sided(found.value, [np.corrcoef(one, two[order])[0, 1] for order in orders])
    strong = [{k for k in range(COUNT) if values[k] > np.percentile(values, STRONG)} for values in (one, two)]
    assert [len(s) for s in strong] == [6, 6]
    lift = strong_lift(one, two)
    assert lift.value == pytest.approx(len(strong[0] & strong[1]) / (6 * 6 / COUNT))
    drawn = [float(sum(order[k] in strong[1] for k in strong[0])) for order in orders]
    assert lift.p == two_sided(len(strong[0] & strong[1]), drawn)


def test_features_that_are_strong_together_are_told_from_others() -> None:
    together, apart, neither = (planted(kind, 400) for kind in ("always", "never", "independent"))
    assert response_correlation(*together).value > 0.9 and strong_lift(*together).value == pytest.approx(10)
    assert response_correlation(*apart).value < -0.9 and strong_lift(*apart).value == 0
    smallest = 2 / (PERMUTATIONS + 1)
    assert response_correlation(*together).p == strong_lift(*together).p == response_correlation(*apart).p == smallest
    assert strong_lift(*apart).p < 0.05  # four photographs are expected
    assert abs(response_correlation(*neither).value) < 0.15 and response_correlation(*neither).p > 0.05
    assert strong_lift(*neither).value < 2.5 and strong_lift(*neither).p > 0.05


def test_p_is_uniform_for_independent_features() -> None:
    rng = np.random.default_rng(3)
    p = np.array([response_correlation(*rng.normal(size=(2, 30))).p for _ in range(300)])
    assert 0.01 <= (p <= 0.05).mean() <= 0.09
    assert 0.42 <= (p <= 0.5).mean() <= 0.58


def fire_at(places: np.ndarray, seed: int) -> np.ndarray:
    """Where a feature fires whose maps on a grid of 3 x 3 have one bright place each, on a little noise."""
    maps = 0.1 * np.random.default_rng(seed).random((len(places), 3, 3))
    maps.reshape(len(places), -1)[np.arange(len(places)), places] += 1.0
    return firing_places(maps)


def test_place_lift_is_that_of_plain_loops() -> None:
    rng = np.random.default_rng(1)
    one, two = (rng.random((25, 3, 5)) for _ in range(2))
    fires = [firing_places(maps) for maps in (one, two)]
    for found, maps in zip(fires, (one, two), strict=True):
        threshold = sorted(maps.ravel())[-(maps.size // 10) - 1 :][0]
        assert found.sum() == (maps > np.percentile(maps, STRONG)).sum()
        assert maps.reshape(25, -1)[found].min() >= threshold

    def shared(order: np.ndarray) -> int:
        return sum(bool(fires[0][k, x] and fires[1][order[k], x]) for k in range(25) for x in range(15))

    found = place_lift(*fires)
    pairings = [sum(bool(fires[0][k, x] and fires[1][m, x]) for x in range(15)) for k in range(25) for m in range(25)]
    observed = shared(np.arange(25))
    assert found.value == pytest.approx(observed / (sum(pairings) / 25))
    assert found.p == two_sided(observed, [shared(order) for order in permute_photographs(25)])


def test_a_common_preference_for_places_is_chance() -> None:
    """Where both fire in the middle of every photograph, every pairing of photographs has them fire at one place."""
    corner = np.full(80, 4)
    assert place_lift(fire_at(corner, 1), fire_at(corner, 2)).value == pytest.approx(1, abs=0.02)
    moving = np.random.default_rng(2).integers(0, 9, 80)
    same = place_lift(fire_at(moving, 1), fire_at(moving, 2))
    assert same.value > 7 and same.p == 2 / (PERMUTATIONS + 1)
    other = place_lift(fire_at(moving, 1), fire_at((moving + 4) % 9, 2))
    assert other.value < 0.05 and other.p < 0.02
    alone = place_lift(fire_at(moving, 1), fire_at(np.random.default_rng(5).integers(0, 9, 80), 2))
    assert 0.3 < alone.value < 1.8 and alone.p > 0.05


@given(st.integers(0, 2**16), st.floats(0.1, 50), st.floats(-5, 5))
def test_laws(seed: int, scale: float, shift: float) -> None:
    """Symmetric in value; free of each feature's scale and offset; p in (0, 1]."""
    one, two = np.random.default_rng(seed).normal(size=(2, 24))
    for statistic in (response_correlation, strong_lift):
        found = statistic(one, two)
        assert statistic(two, one).value == pytest.approx(found.value)
        assert statistic(one, scale * two + shift).value == pytest.approx(found.value)
        assert 0 < found.p <= 1
    assert response_correlation(one, -two).value == pytest.approx(-response_correlation(one, two).value)


def test_what_has_no_value_is_undefined() -> None:
    one, two = planted("independent", LEAST_PAIRED - 1)
    assert np.isnan([response_correlation(one, two).value, strong_lift(one, two).p]).all()
    one, two = planted("independent", LEAST_PAIRED)
    assert np.isfinite([response_correlation(one, two).value, strong_lift(one, two).p]).all()
    for bad in (np.ones_like(one), np.where(one == one.max(), np.inf, one)):
        assert np.isnan(response_correlation(bad, two).value) and np.isnan(strong_lift(bad, two).value)
    fires = firing_places(np.random.default_rng(0).random((LEAST_PAIRED, 4, 4)))
    assert np.isnan(place_lift(fires[:, :1], fires[:, :1]).value), "a single place"
    assert np.isnan(place_lift(fires, np.zeros_like(fires)).p), "a feature that fires nowhere"
    assert not firing_places(np.full((LEAST_PAIRED, 2, 2), np.nan)).any()
    assert np.isnan([Association().value, Association().p]).all()
