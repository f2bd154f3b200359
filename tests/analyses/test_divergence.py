from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analyses.formulas.divergence import first_crossing, growth_factor, half_life, profile_correlation, rms_distances

repeatable = settings(derandomize=True, deadline=None, max_examples=50)
STEPS = np.arange(0, 61, 4)


def test_distances_are_in_units_of_pixels() -> None:
    one = np.random.default_rng(0).normal(size=(2, 4, 3, 8, 8))
    two = one.copy()
    two[1, 2] += 0.25
    two[0, 1, :, 0, 0] -= 0.8
    two[1, 3, 0, 0, 0] = np.inf
    found = rms_distances(one, two)
    assert found.shape == (2, 4)
    assert found[1, 2] == pytest.approx(0.25) and found[0, 1] == pytest.approx(0.8 / 8)
    assert np.isnan(found[1, 3]) and found[0, 0] == 0
    np.testing.assert_allclose(rms_distances(one, one[:, :1])[:, 0], 0)
    assert np.isnan(rms_distances(two[1, 3], two[1, 3])), "infinity less infinity"


@pytest.mark.parametrize("factor", [1.5, 1.02, 1.0, 0.9])
def test_growth_of_what_grows_evenly(factor: float) -> None:
    assert growth_factor(STEPS, 1e-8 * factor**STEPS) == pytest.approx(factor)


def test_growth_stops_where_the_difference_saturates() -> None:
    """Grows by 1.5 a step up to 0.3 and stays: the plateau takes no part, however long."""
    gaps = np.minimum(1e-8 * 1.5**STEPS, 0.3)
    assert growth_factor(STEPS, gaps) == pytest.approx(1.5, rel=0.02)
    long = np.concatenate([gaps, np.full(40, 0.3)])
    assert growth_factor(4 * np.arange(len(long)), long) == growth_factor(STEPS, gaps)


def test_growth_ignores_the_time_in_which_a_difference_is_constant() -> None:
    grown = np.minimum(1e-8 * 1.5**STEPS, 0.3)
    still = 1e-8 * np.linspace(1, 1.9, 30)
    gaps = np.concatenate([still, 1.9 * grown])
    assert growth_factor(4 * np.arange(len(gaps)), gaps) == pytest.approx(1.5, rel=0.02)
    late = np.concatenate([np.full(30, 1e-8), [0.2, 0.3]])
    assert growth_factor(np.arange(32), late) == pytest.approx(2e7), "between two steps"


def test_growth_leaves_out_what_is_equal_and_says_undefined() -> None:
    gaps = 1e-8 * 1.2**STEPS
    gaps[[0, 1]] = 0, np.nan
    assert growth_factor(STEPS, gaps) == pytest.approx(1.2)
    assert np.isnan(growth_factor(STEPS, np.zeros(len(STEPS))))
    assert np.isnan(growth_factor(STEPS[:2], gaps[3:5]))


def test_growth_that_is_over_at_once_is_that_of_the_first_steps() -> None:
    gaps = np.array([1e-8, 1e-4, 1e-1, 0.2, 0.3, 0.3])
    assert growth_factor(np.arange(6), gaps) == pytest.approx(np.exp(np.log(1e-1 / 1e-8) / 2))


def test_the_step_at_which_a_level_is_crossed() -> None:
    gaps = np.array([0.0, 0.1, np.nan, 0.3, 0.2])
    assert first_crossing(np.arange(0, 50, 10), gaps, 0.2) == 30 and first_crossing(np.arange(5), gaps, 0.05) == 1
    assert first_crossing(np.arange(5), gaps, 0.3) == np.inf


@repeatable
@given(st.integers(0, 1000))
def test_profile_correlation_is_pearsons(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, two = rng.normal(size=(2, 3, 4, 9)) + 5
    one[0, 0, 2] = two[0, 0, 5] = np.nan
    found = profile_correlation(one, two)
    assert found.shape == (3, 4)
    assert found[1, 2] == pytest.approx(stats.pearsonr(one[1, 2], two[1, 2])[0], abs=1e-12)
    kept = [0, 1, 3, 4, 6, 7, 8]
    assert found[0, 0] == pytest.approx(stats.pearsonr(one[0, 0, kept], two[0, 0, kept])[0], abs=1e-12)
    np.testing.assert_allclose(profile_correlation(3 * one - 7, two), found, atol=1e-10)
    np.testing.assert_allclose(profile_correlation(one, -one), -1)
    np.testing.assert_allclose(
        profile_correlation(one[:, :1], two),
        [[profile_correlation(a[0], b) for b in bs] for a, bs in zip(one, two, strict=True)],
    )


def test_a_profile_correlation_that_is_undefined() -> None:
    flat, rising = np.full(5, 0.1), np.arange(5.0)
    assert np.isnan(profile_correlation(flat, rising)) and np.isnan(profile_correlation(rising[:2], rising[:2]))
    assert np.isnan(profile_correlation(np.full(5, np.nan), rising))


def test_half_life_is_interpolated_between_steps() -> None:
    steps = np.array([0, 2, 4, 8])
    values = np.array([1.0, 0.8, 0.2, 0.0])
    assert half_life(steps, values, 0.0) == pytest.approx(3.0), "halfway between 0.8 and 0.2"
    assert half_life(steps, values, 0.6) == pytest.approx(2.0)
    assert half_life(np.arange(400) / 10, 0.2 + 0.8 * 0.5 ** (np.arange(400) / 100), 0.2) == pytest.approx(10.0)
    assert half_life(steps, values, -2.0) == np.inf
    assert np.isnan(half_life(steps, values, 1.0)) and np.isnan(half_life(steps, values, np.nan))
    assert np.isnan(half_life(steps, np.array([1.0, np.nan, 0.2, 0.0]), 0.0))
    within = half_life(steps, np.array([1.0, 0.4, np.nan, 0.0]), 0.0)
    assert within == 2, "within the first step no more is known"
    assert np.isnan(half_life(steps, np.full(4, np.nan), 0.0))
