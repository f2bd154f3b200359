"""Correlations, cosines and their floors, beside scipy, scikit-learn and plain loops."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics.pairwise import cosine_similarity

from featmap.stats import correlation, reliability
from featmap.stats.correlation import DIFFERENCE_FLOOR, FLOOR, TIE, TINY, VARIANCE_FLOOR

SEEDED = settings(max_examples=40, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)


def random(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def test_all_floors_derive_from_one() -> None:
    assert VARIANCE_FLOOR == FLOOR**2
    assert pytest.approx(10 * FLOOR) == DIFFERENCE_FLOOR
    unit_roundoff = np.finfo(np.float32).eps / 2
    assert 16 < FLOOR / unit_roundoff < 17
    assert 0 < TIE < VARIANCE_FLOOR * 1.01
    assert correlation.floors(np.array([0.0, 2.0])).tolist() == [TINY, 2 * FLOOR]
    assert correlation.floors(3.0, DIFFERENCE_FLOOR) == 3 * DIFFERENCE_FLOOR


@SEEDED
@given(seeds, st.floats(1e-6, 1e6))
def test_cosines_are_scikit_learns_at_any_scale(seed: int, scale: float) -> None:
    one, two = random(seed).normal(size=(4, 6)), random(seed + 1).normal(size=(3, 6))
    np.testing.assert_allclose(correlation.cosines(scale * one, two), cosine_similarity(one, two), atol=1e-12)


def test_vectors_without_a_direction_are_undefined() -> None:
    rows = np.array([[3.0, 4.0], [0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0]])
    found = correlation.unit_vectors(rows)
    assert found[0] == pytest.approx([0.6, 0.8]) and np.isnan(found[1:]).all()
    assert np.isnan(correlation.unit_vectors(rows, floor=5.0)[0]).all()
    np.testing.assert_array_equal(correlation.unit_vectors(rows.T, axis=0), found.T)
    assert np.isnan(correlation.cosines(rows[1:], rows)).all()


@SEEDED
@given(seeds)
def test_products_of_unit_deviations_are_pearsons_correlations(seed: int) -> None:
    rows = random(seed).normal(size=(5, 8)) + 3
    unit = correlation.unit_deviations(rows)
    np.testing.assert_allclose(unit @ unit.T, np.corrcoef(rows), atol=1e-12)
    for i, j in combinations(range(5), 2):
        expected = stats.pearsonr(rows[i], rows[j]).statistic
        assert correlation.pearson(rows[i], rows[j]) == pytest.approx(expected, abs=1e-12)


@SEEDED
@given(seeds, st.integers(3, 40))
def test_rank_correlation_is_scipys_to_the_bit(seed: int, n: int) -> None:
    one, two = (np.round(random(seed + k).normal(size=n), 1) for k in (0, 1))
    if np.ptp(one) and np.ptp(two):
        assert correlation.spearman(two, one) == stats.spearmanr(one, two).statistic


@pytest.mark.parametrize("value", [0.0, 1.0, -1e30])
def test_what_varies_by_rounding_only_does_not_vary(value: float) -> None:
    line = np.linspace(0, 1, 50)
    rounded = value + 1e-8 * abs(value) * np.sin(np.arange(50))
    assert math.isnan(correlation.pearson(rounded, line)) and math.isnan(correlation.pearson(line, rounded))
    assert np.isnan(correlation.unit_deviations(np.stack([rounded, line]))[0]).all()
    columns = np.stack([rounded, line], axis=1)
    found = correlation.standardise(columns, np.ones(50, dtype=bool))
    assert np.isnan(found[:, 0]).all() and found[:, 1] == pytest.approx((line - line.mean()) / line.std())


def test_too_few_values_have_no_correlation() -> None:
    assert math.isnan(correlation.pearson(np.array([1.0]), np.array([2.0])))
    assert math.isnan(correlation.spearman(np.arange(2.0), np.arange(2.0)))
    assert math.isnan(correlation.spearman(np.ones(4), np.arange(4.0)))


def test_standardising_takes_moments_over_the_rows_that_are_marked() -> None:
    values = np.array([[1.0, np.inf], [3.0, 2.0], [100.0, 4.0]])
    found = correlation.standardise(values, np.array([True, True, False]))
    assert found[:, 0] == pytest.approx([-1.0, 1.0, 98.0]) and np.isnan(found[:, 1]).all()
    scale, mean, deviation = correlation.column_moments(values, np.ones(3, dtype=bool))
    assert scale.tolist() == [100.0, 4.0]
    assert mean * scale == pytest.approx([104 / 3, 3.0]) and deviation * scale == pytest.approx([values[:, 0].std(), 1])


@SEEDED
@given(seeds, st.integers(3, 12), st.floats(0.5, 0.99))
def test_the_interval_is_scipys(seed: int, n: int, level: float) -> None:
    values = random(seed).normal(size=n)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(level)
    assert correlation.t_interval(values.tolist(), level) == pytest.approx((expected.low, expected.high), abs=1e-12)


@SEEDED
@given(seeds, st.integers(0, 12))
def test_pairs_are_counted_as_in_loops(seed: int, n: int) -> None:
    rng = random(seed)
    one, two = (rng.integers(0, 3, n) for _ in range(2))
    weights = rng.integers(0, 4, (2, n)).astype(float)
    for w, row in ((None, np.ones(n)), (weights, weights[1])):
        found = [int(c[-1]) for c in reliability.count_pairs(one, [f"name {k}" for k in two], w)]
        expected = [0, 0, 0, 0]
        for j, k in combinations(range(n), 2):
            together = (one[j] == one[k] and two[j] == two[k], one[j] == one[k], two[j] == two[k], True)
            expected = [e + row[j] * row[k] * t for e, t in zip(expected, together, strict=True)]
        assert found == expected
