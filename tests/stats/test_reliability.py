"""Repeatability and its kin against scipy, and against resampling written out in loops."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from featmap.stats import reliability
from featmap.stats.reliability import pair_correlation, spearman_brown


def symmetric(n: int, seed: int, shared: np.ndarray | None = None, weight: float = 0.0) -> np.ndarray:
    X = np.random.default_rng(seed).normal(size=(n, n))
    X = (X + X.T) / 2
    return X if shared is None else weight * shared + (1 - weight) * X


def upper(X: np.ndarray) -> np.ndarray:
    return X[np.triu_indices(len(X), 1)]


ONE = symmetric(14, 0)
TWO = symmetric(14, 1, ONE, 0.6)


def test_the_correlation_of_pairs_is_scipys() -> None:
    assert pair_correlation(ONE, TWO)[0] == pytest.approx(stats.pearsonr(upper(ONE), upper(TWO)).statistic, abs=1e-12)
    ranks = pair_correlation(reliability.rank_pairs(ONE), reliability.rank_pairs(TWO))[0]
    assert ranks == pytest.approx(stats.spearmanr(upper(ONE), upper(TWO)).statistic, abs=1e-12)


def test_undefined_pairs_and_the_diagonal_do_not_count() -> None:
    holed = ONE.copy()
    holed[2, :] = holed[:, 2] = np.nan
    np.fill_diagonal(holed, 1e6)
    kept = [k for k in range(14) if k != 2]
    inside = np.ix_(kept, kept)
    expected = stats.pearsonr(upper(ONE[inside]), upper(TWO[inside])).statistic
    assert pair_correlation(holed, TWO)[0] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("shift", [0.0, 1e3])
def test_what_does_not_vary_has_no_correlation(shift: float) -> None:
    assert math.isnan(pair_correlation(np.full((5, 5), 0.3), symmetric(5, 3))[0])
    assert math.isnan(pair_correlation(symmetric(2, 1), symmetric(2, 2))[0])
    assert pair_correlation(ONE + shift, TWO)[0] == pytest.approx(pair_correlation(ONE, TWO)[0], abs=1e-9)


def test_bootstrap_draws_features_and_drops_pairs_with_own_copies() -> None:
    weights = reliability.bootstrap_counts(14, 5)
    assert (weights.sum(1) == 14).all()
    for row, found in zip(weights, pair_correlation(ONE, TWO, weights), strict=True):
        drawn = [k for k, times in enumerate(row) for _ in range(int(times))]
        pairs = [(i, j) for i, j in combinations(drawn, 2) if i != j]
        x, y = ([table[i, j] for i, j in pairs] for table in (ONE, TWO))
        assert found == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)


def test_the_interval_over_features_is_wider_than_one_over_pairs() -> None:
    n = 30
    rng = np.random.default_rng(5)
    low = rng.normal(size=(n, 2))
    one, two = (low @ low.T + 0.5 * symmetric(n, s) for s in (1, 2))
    found = reliability.repeatability([one, two])
    x, y = upper(one), upper(two)
    over_pairs = []
    for _ in range(300):
        k = rng.integers(0, len(x), len(x))
        over_pairs.append(np.corrcoef(x[k], y[k])[0, 1])
    assert found.low < found.value < found.high
    assert found.high - found.low > 1.5 * np.ptp(np.percentile(over_pairs, [2.5, 97.5]))


def test_repeatability_is_a_reproducible_mean_over_pairs_of_seeds() -> None:
    tables = [symmetric(14, s, ONE, 0.7) for s in range(4)]
    expected = np.mean([stats.pearsonr(upper(a), upper(b)).statistic for a, b in combinations(tables, 2)])
    found = reliability.repeatability(tables)
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert found == reliability.repeatability(tables)
    assert math.isnan(reliability.repeatability(tables[:1]).value)


def test_spearman_brown_foretells_the_reliability_of_a_mean() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=200_000)
    repeats = [truth + rng.normal(size=truth.size) for _ in range(8)]
    single = np.corrcoef(repeats[0], repeats[1])[0, 1]
    of_four = np.corrcoef(np.mean(repeats[:4], axis=0), np.mean(repeats[4:], axis=0))[0, 1]
    assert spearman_brown(float(single), 4) == pytest.approx(of_four, abs=0.01)
    assert spearman_brown(0.5, 2) == pytest.approx(2 / 3)
    assert spearman_brown(0.7, 1) == pytest.approx(0.7)
    assert spearman_brown(spearman_brown(0.8, 4), 0.25) == pytest.approx(0.8)
    assert math.isnan(spearman_brown(-1.0, 2)) and math.isnan(spearman_brown(-0.9, 3))


@pytest.mark.parametrize("r", [0.3, 0.9, 0.95, 0.989, 0.99, 1.0])
def test_the_seeds_needed_are_the_fewest_that_reach_what_is_wanted(r: float) -> None:
    k = reliability.seeds_needed(r, 0.99)
    assert k is not None and spearman_brown(r, k) >= 0.99 - 1e-9
    assert k == 1 or spearman_brown(r, k - 1) < 0.99
    assert reliability.seeds_needed(-0.1) is None and reliability.seeds_needed(float("nan")) is None


def test_a_features_reliability_is_that_of_its_row_without_itself() -> None:
    tables = [symmetric(14, s, ONE, 0.7) for s in range(3)]
    tables[0][4] = tables[0][:, 4] = symmetric(14, 99)[4]
    found = reliability.feature_reliability(tables)
    for j in range(14):
        others = [k for k in range(14) if k != j]
        expected = np.mean([stats.pearsonr(a[j, others], b[j, others]).statistic for a, b in combinations(tables, 2)])
        assert found[j] == pytest.approx(expected, abs=1e-12)
    assert found.argmin() == 4
    assert np.isnan(reliability.feature_reliability(tables[:1])).all()
    assert np.isnan(reliability.feature_reliability([np.full((4, 4), 0.2)] * 2)).all()
