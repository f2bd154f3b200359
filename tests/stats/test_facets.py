"""Facets of a unit: laws of the distance, the null and the count, beside slower definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featmap.stats import facets
from featmap.stats.frames import spell_flags

RNG = np.random.default_rng(0)


def vectors(n: int, channels: int = 12, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return facets.unit_vectors(rng.normal(size=(n, channels)), rng.normal(size=channels), rng.random(channels) + 0.1)


@given(st.integers(2, 6), st.integers(0, 99))
def test_distance_is_symmetric_bounded_and_zero_for_itself(n: int, seed: int) -> None:
    found = facets.distances(vectors(n, seed=seed))
    np.testing.assert_allclose(found, found.T, atol=1e-12)
    assert (found >= 0).all() and (found <= 2).all() and (np.diag(found) == 0).all()
    order = np.random.default_rng(seed).permutation(n)
    np.testing.assert_allclose(facets.distances(vectors(n, seed=seed)[order]), found[np.ix_(order, order)], atol=1e-12)


def test_distance_agrees_with_the_cosine_of_standardised_responses() -> None:
    responses, means, deviations = RNG.normal(size=(4, 9)), RNG.normal(size=9), RNG.random(9) + 0.5
    weights = facets.feature_weights(deviations, [2])
    found = facets.distances(facets.unit_vectors(responses, means, weights))
    kept = [c for c in range(9) if c != 2]
    for i in range(4):
        for j in range(4):
            a, b = (((responses[k] - means) / deviations)[kept] for k in (i, j))
            cosine = sum(a * b) / np.sqrt(sum(a * a) * sum(b * b))
            assert found[i, j] == pytest.approx(1 - cosine, abs=1e-12)


def test_distance_does_not_depend_on_the_scale_of_a_feature() -> None:
    responses, means, deviations, scales = (RNG.random(s) + 0.1 for s in ((3, 8), 8, 8, 8))
    one = facets.unit_vectors(responses, means, facets.feature_weights(deviations, [0]))
    two = facets.unit_vectors(responses * scales, means * scales, 1 / scales * facets.feature_weights(deviations, [0]))
    np.testing.assert_allclose(facets.distances(one), facets.distances(two), atol=1e-12)


def test_silent_and_own_features_have_no_weight() -> None:
    deviations = np.array([1.0, 0.0, 2.0, 1e-3, np.nan, 1.5, 1.0, 1.2])
    weights = facets.feature_weights(deviations, [0])
    assert weights.tolist() == [0, 0, 0.5, 0, 0, pytest.approx(1 / 1.5), 1, pytest.approx(1 / 1.2)]
    # with fewer others than that, the unit's own features have to count
    assert facets.feature_weights(np.ones(4), [0]).tolist() == [1, 1, 1, 1]
    assert not facets.feature_weights(np.zeros(5), [0]).any()
    assert np.isnan(facets.unit_vectors(np.ones(5), np.zeros(5), np.zeros(5))).all()
    assert np.isnan(facets.distances(np.full((2, 5), np.nan))).all()


def test_vectors_of_responses_that_are_not_finite_are_undefined() -> None:
    responses = np.array([[1.0, np.inf, 3.0], [np.inf, 1.0, 1.0], [np.nan, 1.0, 1.0]])
    found = facets.unit_vectors(responses, np.zeros(3), np.array([1.0, 0.0, 1.0]))
    np.testing.assert_allclose(found[0], np.array([1, 0, 3]) / np.sqrt(10))
    assert np.isnan(found[1:]).all()


def test_threshold_is_the_percentile_of_enough_repeats() -> None:
    repeats = RNG.random(40)
    assert facets.null_threshold(repeats) == pytest.approx(np.sort(repeats)[[37, 38]] @ [0.95, 0.05])
    assert facets.null_threshold(np.append(repeats, np.nan)) == facets.null_threshold(repeats)
    assert facets.null_threshold(repeats / 1e6) == facets.MIN_DISTANCE
    assert np.isnan(facets.null_threshold(repeats[: facets.MIN_NULL - 1]))


def test_under_the_null_one_facet_in_twenty_is_called_different() -> None:
    rng = np.random.default_rng(1)
    null, other = rng.random(4000), rng.random(4000)
    threshold = facets.null_threshold(null)
    found = [facets.clearly_different(np.array([[0, d], [d, 0]]), np.ones(2), threshold)[1] for d in other]
    assert np.mean(found) == pytest.approx(0.05, abs=0.015)


def test_different_facets_are_farther_apart_than_the_threshold() -> None:
    places = np.array([0.0, 0.1, 1.0, 1.05, 2.0, 5.0])
    between = np.abs(places[:, None] - places)
    kept = np.array([1, 1, 1, 1, 0.9, 0.89])
    found = facets.clearly_different(between, kept, 0.5)
    assert found.tolist() == [True, False, True, False, True, False], "5.0 lost its response, 1.05 is close to 1.0"
    chosen = between[np.ix_(found, found)]
    assert (chosen[~np.eye(3, dtype=bool)] > 0.5).all()
    assert facets.clearly_different(between, kept, np.inf).tolist() == [True] + [False] * 5
    assert facets.clearly_different(np.full((2, 2), np.nan), np.ones(2), 0.5).tolist() == [True, False]


def test_kept_share_refers_to_the_better_of_two_ordinary_images() -> None:
    activation = np.array([[3.0, 2.0, 1.0], [3.0, 5.0, 4.0], [3.0, 3.0, 2.0], [1.0, 5.0, 5.0]])
    found = facets.kept_share(activation, np.ones(4), np.array([2.0, 5.0, np.nan, 9.0]))
    assert found[:3].tolist() == [[1, 0.5, 0], [0.5, 1, 0.75], [1, 1, 0.5]] and np.isnan(found[3]).all()
    # two images from one distribution keep the same share, whichever of them is called the ordinary one
    pair = np.random.default_rng(0).uniform(2, 4, size=(500, 2))
    share = facets.kept_share(pair, np.ones(500), pair[:, 1])
    assert (share.max(1) == 1).all() and 0.4 < (share[:, 0] == 1).mean() < 0.6


def test_table_has_a_row_for_each_facet_and_a_count_for_each_unit() -> None:
    n, count = 22, 3
    names = [f"a:{k}" for k in range(20)] + ["b:0", "b:1"]
    activation = np.ones((n, count)) * 2
    activation[1, 2] = 1.5
    between = np.full((n, count, count), 0.1) * (1 - np.eye(count))
    between[0, 0, 2] = between[0, 2, 0] = between[0, 1, 2] = between[0, 2, 1] = 0.9
    between[1] = between[0]
    groups = ["a"] * 20 + ["b"] * 2
    table, counts = facets.facet_table(names, groups, activation, np.ones(n), between, np.full(n, 0.2), np.full(n, 1.5))
    assert len(table) == n * count and list(table["image"][:3]) == ["a:0"] * 3
    assert list(table["facet"][:3]) == [0, 1, 2]
    assert list(counts[:3]) == [2, 1, 1], "a:1 lost half of its response on the facet that differs"
    assert counts[["b:0", "b:1"]].isna().all(), "two units make no null"
    assert table.loc[table["image"] == "b:0", "different"].isna().all()
    assert table.loc[2, "nearest"] == pytest.approx(0.9) and table.loc[2, "kept"] == 1
    assert counts.dtype == table["different"].dtype == np.float64
    lines = spell_flags(table).to_csv(index=False, float_format="%.9g", lineterminator="\n").splitlines()
    assert [line.rpartition(",")[2] for line in (*lines[1:4], lines[-1])] == ["True", "False", "True", ""]


def test_seeds_of_facets_differ_and_are_reproducible() -> None:
    seeds = [facets.facet_seed(seed, number) for seed in range(5) for number in range(8)]
    assert len(set(seeds)) == len(seeds) and min(seeds) >= 0
    assert facets.facet_seed(3, 2) == facets.facet_seed(3, 2)
