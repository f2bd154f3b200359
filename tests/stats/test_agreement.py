"""Agreement of a similarity with other sources, against scipy, scikit-learn and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics.pairwise import cosine_similarity

from featmap.errors import FeatmapError
from featmap.rng import generator
from featmap.stats import agreement, reliability
from featmap.stats.measures import profile_correlations
from tests.stats.test_reliability import ONE, TWO, symmetric, upper


@pytest.mark.parametrize(("method", "oracle"), [("pearson", stats.pearsonr), ("spearman", stats.spearmanr)])
def test_mantel_is_scipys_correlation_with_the_share_of_permutations(method: str, oracle: object) -> None:
    found = agreement.mantel(ONE, TWO, method=method, permutations=199)
    assert found.r.value == pytest.approx(oracle(upper(ONE), upper(TWO)).statistic, abs=1e-12)  # type: ignore[operator]
    assert found.p == 1 / 200 and found.pairs == 91
    assert found.r.low < found.r.value < found.r.high


def test_mantels_p_is_even_where_there_is_nothing_to_find() -> None:
    p = [agreement.mantel(symmetric(9, 2 * s), symmetric(9, 2 * s + 1), permutations=99).p for s in range(120)]
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_mantels_p_is_that_of_all_permutations_by_hand() -> None:
    from itertools import permutations

    one, two = symmetric(6, 1), symmetric(6, 2, symmetric(6, 1), 0.35)
    observed = stats.pearsonr(upper(one), upper(two)).statistic
    drawn = [stats.pearsonr(upper(one), upper(two[np.ix_(o, o)])).statistic for o in permutations(range(6))]
    exact = np.mean(np.array(drawn) >= observed - 1e-12)
    assert agreement.mantel(one, two, permutations=2999).p == pytest.approx(exact, abs=0.03)


@pytest.mark.parametrize("holes", [0, 5])
@pytest.mark.parametrize("method", ["pearson", "spearman"])
@pytest.mark.parametrize("grouped", [False, True])
def test_mantels_p_counts_the_permutations_that_reach_the_correlation(holes: int, method: str, grouped: bool) -> None:
    n = 12
    one, two = symmetric(n, 1), symmetric(n, 2, symmetric(n, 1), 0.05)
    for k in range(holes):  # without holes only the sum of products is taken anew for a permutation
        one[k, k + 3] = one[k + 3, k] = np.nan
    groups = np.repeat([0, 1], n // 2) if grouped else None
    labels = np.zeros(n, dtype=int) if groups is None else groups
    known = np.isfinite(one) & np.triu(labels[:, None] == labels, 1)
    x, y = (np.where(known | known.T, t, np.nan) for t in (one, two))
    if method == "spearman":
        x, y = reliability.rank_pairs(x), reliability.rank_pairs(y)
    observed = stats.pearsonr(x[known], y[known]).statistic
    rng, reached = generator("mantel", method, n, 60), 0
    for _ in range(60):
        order = agreement._permute_within(labels, rng)
        moved = y[np.ix_(order, order)]
        both = np.isfinite(x) & np.isfinite(moved) & np.triu(np.ones((n, n), dtype=bool), 1)
        reached += stats.pearsonr(x[both], moved[both]).statistic >= observed - 1e-12
    found = agreement.mantel(one, two, method=method, groups=groups, permutations=60)
    assert found.r.value == pytest.approx(observed, abs=1e-12)
    assert 0 < reached < 60 and found.p == (1 + reached) / 61


def test_groups_are_permuted_within_and_pairs_across_them_do_not_count() -> None:
    groups = np.repeat([0, 1], 7)
    same = groups[:, None] == groups
    one = np.where(same, ONE, ONE + 100.0)
    found = agreement.mantel(one, np.where(same, TWO, TWO + 50.0), groups=groups, permutations=99)
    inside = np.triu(same, 1)
    assert found.pairs == inside.sum() == 42
    assert found.r.value == pytest.approx(stats.pearsonr(ONE[inside], TWO[inside]).statistic, abs=1e-12)
    for _ in range(5):
        order = agreement._permute_within(groups, np.random.default_rng(0))
        assert (groups[order] == groups).all() and sorted(order) == list(range(14))


def test_the_reliability_of_photographs_rises_with_their_number() -> None:
    rng = np.random.default_rng(3)
    mixing = rng.normal(size=(6, 12))
    many = rng.normal(size=(2000, 6)) @ mixing + rng.normal(size=(2000, 12))
    few, all_of_them = (agreement.split_half(many[:n]).value for n in (60, 2000))
    assert 0 < few < all_of_them < 1
    halves = [profile_correlations(many[k::2]) for k in (0, 1)]
    by_hand = stats.pearsonr(*map(upper, halves)).statistic
    assert all_of_them == pytest.approx(reliability.spearman_brown(float(by_hand), 2), abs=0.01)
    assert math.isnan(agreement.split_half(many[:7]).value)


def test_the_interval_of_split_halves_is_the_bootstrap_over_features() -> None:
    rng = np.random.default_rng(4)
    many = rng.normal(size=(60, 4)) @ rng.normal(size=(4, 10)) + rng.normal(size=(60, 10))
    found = agreement.split_half(many, splits=3)
    order, pairs = generator("halves", 60, 10, 3), []
    for _ in range(3):
        drawn = order.permutation(60)
        pairs.append((profile_correlations(many[sorted(drawn[:30])]), profile_correlations(many[sorted(drawn[30:])])))
    whole = reliability.mean_correlation(pairs)
    for ours, theirs in zip(vars(found).values(), vars(whole).values(), strict=True):
        assert ours == pytest.approx(reliability.spearman_brown(theirs, 2), abs=1e-9)
    assert found.low < found.value < found.high


def test_nothing_is_corrected_by_unreliable_tables() -> None:
    assert agreement.disattenuate(0.81, 0.95, 0.9) == pytest.approx(0.81 / math.sqrt(0.855))
    assert agreement.disattenuate(0.99, 0.95, 0.9) == 1.0
    for one, two in ((0.89, 1.0), (1.0, 0.89), (math.nan, 1.0)):
        assert math.isnan(agreement.disattenuate(0.8, one, two))


def test_an_image_is_so_many_times_as_good_as_the_best_photograph() -> None:
    photographs = np.array([[1.0, -1.0, 0.0, 2.0], [4.0, -3.0, 0.0, math.nan]])
    found = agreement.multiples_of_best(np.array([10.0, 1.0, 1.0, 1.0]), photographs)
    assert found[0] == 2.5 and found[3] == 0.5
    assert np.isnan(found[1:3]).all()  # no photograph excites these at all


def test_cosines_are_scikit_learns_within_one_space() -> None:
    vectors = np.random.default_rng(1).normal(size=(7, 5))
    vectors[6] = 0
    groups = np.array([0, 0, 0, 1, 1, -1, 0])
    found, expected = agreement.cosine_table(vectors, groups), cosine_similarity(vectors)
    np.testing.assert_allclose(found[:3, :3], expected[:3, :3], atol=1e-12)
    np.testing.assert_allclose(found[3:5, 3:5], expected[3:5, 3:5], atol=1e-12)
    assert np.isnan(found[:3, 3:]).all() and np.isnan(found[5:]).all()


@pytest.mark.parametrize("kind", ["layer", "pair"])
def test_doras_distance_in_plain_loops(kind: str) -> None:
    rng = np.random.default_rng(2)
    A, mean, deviation = rng.normal(size=(6, 6)), rng.normal(size=6), rng.uniform(0.5, 2, 6)
    found = agreement.extreme_activation_distance(A, mean, deviation, kind)
    a = [[(A[i][j] - mean[j]) / deviation[j] for j in range(6)] for i in range(6)]
    for i in range(6):
        for j in range(6):
            x = [a[k][i] for k in (range(6) if kind == "layer" else (i, j))]
            y = [a[k][j] for k in (range(6) if kind == "layer" else (i, j))]
            cosine = sum(p * q for p, q in zip(x, y, strict=True)) / (math.hypot(*x) * math.hypot(*y))
            expected = 0.0 if i == j else math.sqrt((1 - cosine) / 2)
            assert found[i, j] == pytest.approx(expected, abs=1e-7)
    assert np.isnan(agreement.extreme_activation_distance(A, mean, np.array([0, 1, 1, 1, 1, 1.0]), kind)[0]).all()
    with pytest.raises(FeatmapError, match="layer, pair"):
        agreement.extreme_activation_distance(A, mean, deviation, "other")


def pathless(seed: int = 0, D: int = 6, N: int = 60, C: int = 20) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Photographs of D themes in C responses; for each feature an image of its theme; the best photographs."""
    rng = np.random.default_rng(seed)
    themes = rng.normal(size=(D, C))
    theme = np.arange(N) % D
    photographs = themes[theme] + 0.4 * rng.normal(size=(N, C))
    images = themes + 0.4 * rng.normal(size=(D, C))
    best = np.array([np.flatnonzero(theme == d)[:5] for d in range(D)])
    return images, photographs, best


def test_the_processing_path_in_plain_loops() -> None:
    images, photographs, best = pathless()
    found = agreement.processing_path(images, photographs, best)
    mean, deviation = photographs.mean(0), photographs.std(0)
    x, p = (images - mean) / deviation, (photographs - mean) / deviation

    def c(one: np.ndarray, two: np.ndarray) -> float:
        return float(stats.spearmanr(one, two).statistic)

    own, same, other = [], [], []
    for j, mine in enumerate(best):
        own.append(np.mean([c(x[j], p[k]) for k in mine]))
        same.append(np.mean([c(p[k], p[q]) for k in mine for q in mine if k != q]))
        theirs = [q for i, b in enumerate(best) if i != j for q in b if q not in mine]
        other.append(np.mean([c(p[k], p[q]) for k in mine for q in theirs]))
    assert found.own == pytest.approx(np.mean(own), abs=1e-9)
    assert found.same == pytest.approx(np.mean(same), abs=1e-9)
    assert found.other == pytest.approx(np.mean(other), abs=1e-9)
    expected = (np.mean(own) - np.mean(other)) / (np.mean(same) - np.mean(other))
    assert found.score.value == pytest.approx(expected, abs=1e-9)
    assert found.score.low < expected < found.score.high
    np.testing.assert_allclose(found.scores, (np.array(own) - other) / (np.array(same) - other), atol=1e-9)


def test_the_scale_of_the_processing_path() -> None:
    images, photographs, best = pathless(D=8, N=160, C=40)
    assert agreement.processing_path(images, photographs, best).score.value == pytest.approx(1, abs=0.1)
    of_another = np.roll(images, 1, axis=0)
    assert agreement.processing_path(of_another, photographs, best).score.value == pytest.approx(0, abs=0.15)
    assert agreement.processing_path(-images, photographs, best).score.value < -0.5
    shuffled = np.random.default_rng(0).normal(size=photographs.shape)
    assert math.isnan(agreement.processing_path(images, shuffled, best).score.value)  # no scale
    assert math.isnan(agreement.processing_path(images[:, :2], photographs[:, :2], best).score.value)


def test_permuted_columns_leave_nothing() -> None:
    rng = np.random.default_rng(0)
    A = rng.normal(size=(40, 3)) @ rng.normal(size=(3, 40))
    S = profile_correlations(A)
    (found,) = agreement.permutation_agreement(A, [S], draws=30)
    assert abs(found.value) < 0.05 and found.low < 0 < found.high
    (ranks,) = agreement.permutation_agreement(A, [S], draws=5, method="spearman")
    by_hand = [
        stats.spearmanr(upper(profile_correlations(agreement.permute_columns(A, k))), upper(S)).statistic
        for k in range(5)
    ]
    assert ranks.value == pytest.approx(np.mean(by_hand), abs=1e-9)
    drawn = agreement.permute_columns(A, 0)
    assert (np.sort(drawn, axis=0) == np.sort(A, axis=0)).all() and (drawn != A).any()


def test_the_best_photographs_come_first() -> None:
    responses = np.array([[1.0, 5.0], [3.0, math.nan], [2.0, 7.0]])
    assert agreement.best_photographs(responses, 2).tolist() == [[1, 2], [2, 0]]
