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


# ---------------------------------------------------------------- contrasts of rows


def contrasted(strength: float, seed: int) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Responses to 60 photographs of which the first ten have a profile, and that profile."""
    rng = np.random.default_rng(seed)
    profile, responses = rng.normal(size=50), rng.normal(size=(60, 50))
    responses[:10] += strength * profile
    return responses, [np.arange(10), np.arange(10, 20), np.arange(20, 35)], profile


def test_a_contrast_is_correlated_as_scipy_does() -> None:
    responses, sets, profile = contrasted(0.3, 0)
    found = reliability.contrast_correlation(responses, sets, profile, "key")
    contrast = responses[:10].mean(0) - (responses[10:20].mean(0) + responses[20:35].mean(0)) / 2
    assert found.value == pytest.approx(stats.spearmanr(contrast, profile).statistic)
    assert -1 < found.low < found.value < found.high < 1
    assert found == reliability.contrast_correlation(responses, sets, profile, "key")
    table = np.random.default_rng(1).integers(0, 9, (4, 50)).astype(float)
    expected = [stats.spearmanr(row, profile).statistic for row in table]
    np.testing.assert_allclose(reliability.rank_correlations(table, profile), expected)


def test_a_planted_contrast_is_found_and_others_have_even_p() -> None:
    planted = [reliability.contrast_correlation(*contrasted(1.0, k), str(k)) for k in range(20)]
    assert all(found.p == pytest.approx(1 / 200) and found.low > 0.5 for found in planted)
    chance = [reliability.contrast_correlation(*contrasted(0.0, k), str(k)) for k in range(60)]
    assert stats.kstest([found.p for found in chance], "uniform").pvalue > 0.01
    opposite = reliability.contrast_correlation(*contrasted(-1.0, 0), "0")
    assert opposite.p == 1 and opposite.high < -0.5


def test_the_interval_of_a_contrast_covers_what_other_photographs_find() -> None:
    """The difference of two draws of photographs has twice the variance of one."""
    held = 0
    for seed in range(60):
        responses, sets, profile = contrasted(0.3, seed)
        found = reliability.contrast_correlation(responses, sets, profile, str(seed))
        other = np.random.default_rng(10**6 + seed).normal(size=responses.shape)
        other[:10] += 0.3 * profile
        fresh = stats.spearmanr(other[:10].mean(0) - (other[10:20].mean(0) + other[20:35].mean(0)) / 2, profile)
        z = [np.arctanh(v) for v in (found.low, found.value, found.high, fresh.statistic)]
        held += abs(z[3] - z[1]) < math.sqrt(2) * (z[2] - z[0]) / 2
    assert 52 <= held <= 60
    assert held < 60, "as wide as that it would say nothing"


def test_the_interval_of_a_contrast_is_the_jackknifes() -> None:
    responses, sets, profile = contrasted(0.5, 3)
    found = reliability.contrast_correlation(responses, sets, profile, "key")
    variance = 0.0
    for k, at in enumerate(sets):
        z = []
        for left in at:
            means = [responses[[i for i in s if not (j == k and i == left)]].mean(0) for j, s in enumerate(sets)]
            z.append(np.arctanh(stats.spearmanr(means[0] - (means[1] + means[2]) / 2, profile).statistic))
        variance += (len(at) - 1) ** 2 / len(at) * np.var(z, ddof=1)
    reach = stats.t.ppf(0.975, 9) * math.sqrt(variance)
    expected = [np.tanh(np.arctanh(found.value) + side * reach) for side in (-1, 1)]
    assert [found.low, found.high] == pytest.approx(expected)


def test_a_contrast_without_variation_is_undefined() -> None:
    responses, sets, profile = contrasted(1.0, 0)
    for values, other in ((responses, np.ones(50)), (np.ones((60, 50)), profile), (responses, np.full(50, np.nan))):
        found = reliability.contrast_correlation(values, sets, other, "key")
        assert all(math.isnan(v) for v in (found.value, found.low, found.high, found.p))
    assert np.isnan(reliability.rank_correlations(np.ones((2, 50)), profile)).all()
    assert len(reliability.rank_correlations(np.empty((0, 50)), profile)) == 0


def test_means_are_drawn_from_the_rows() -> None:
    rows = np.random.default_rng(0).normal(size=(12, 3))
    means = reliability.resample_means(rows, np.random.default_rng(1))
    assert means.shape == (reliability.ROW_DRAWS, 3)
    np.testing.assert_allclose(means.mean(0), rows.mean(0), atol=0.1)
    np.testing.assert_allclose(means.std(0), rows.std(0) / np.sqrt(12), rtol=0.2)
