"""Transfer between planted networks: one that shares half of the features, one that knows nothing, ties, constants."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from featmap.stats import transfer


def ranks_by_sorting(logits: np.ndarray, classes: np.ndarray) -> list[int]:
    """The worst place of the true class in a sorted list."""
    places = []
    for row, c in zip(logits.tolist(), classes.tolist(), strict=True):
        ordered = sorted(row, reverse=True)
        places.append(len(ordered) - 1 - ordered[::-1].index(row[c]))
    return places


def test_ranks_count_the_classes_above() -> None:
    logits = np.array([[3.0, 1, 2], [3, 1, 2], [3, 1, 2]])
    assert transfer.class_ranks(logits, np.array([0, 2, 1])).tolist() == [0, 1, 2]


@given(st.lists(st.lists(st.integers(-3, 3), min_size=6, max_size=6), min_size=1, max_size=8), st.integers(0, 5))
def test_ranks_are_the_worst_places_of_ties(rows: list[list[int]], c: int) -> None:
    logits, classes = np.array(rows, dtype=float), np.full(len(rows), c)
    assert transfer.class_ranks(logits, classes).tolist() == ranks_by_sorting(logits, classes)
    np.testing.assert_array_equal(
        transfer.class_ranks(np.exp(logits) - 2, classes), transfer.class_ranks(logits, classes)
    )


def test_a_network_that_answers_the_same_recognises_nothing() -> None:
    assert transfer.class_ranks(np.zeros((2, 10)), np.array([0, 9])).tolist() == [9, 9]
    assert np.isnan(transfer.class_ranks(np.array([[1, np.nan], [np.inf, 0]]), np.array([0, 0]))).all()


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (0, 16), (8, 16), (15, 16), (16, 16), (300, 1000)])
def test_wilson_intervals_are_those_of_scipy(successes: int, trials: int) -> None:
    expected = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    found = transfer.wilson_interval(successes / trials, trials)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_top_shares_leave_undefined_ranks_out() -> None:
    ranks = np.array([0, 0, 3, 7, np.nan])
    one, five = transfer.top_share(ranks, 1), transfer.top_share(ranks, 5)
    assert (one.value, five.value) == (0.5, 0.75)
    assert (one.low, one.high) == pytest.approx(transfer.wilson_interval(0.5, 4))
    fewer = transfer.top_share(ranks, 1, count=2)  # two classes of two seeds each
    assert fewer.value == 0.5 and fewer.low < one.low and fewer.high > one.high
    assert np.isnan(transfer.top_share(np.array([np.nan]), 1).value)
    assert np.isnan(transfer.wilson_interval(0.5, 0)).all()


def test_halves_are_disjoint_and_the_same_every_time() -> None:
    for count in (2, 33, 1000):
        one, two = transfer.split_photographs(count)
        assert sorted([*one, *two]) == list(range(count)) and len(two) - len(one) in (0, 1)
        np.testing.assert_array_equal(one, transfer.split_photographs(count)[0])
    assert transfer.split_photographs(1000)[0].tolist() != list(range(500))


SHARED, PRIVATE, PHOTOGRAPHS = 12, 12, 400


def two_networks() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features of a network, responses of both networks to photographs, and of the other one to the images.

    The other network has the first half of the features, scaled, noisy and in reverse order, and some of its own. An
    image excites what it was made for three times as much as any photograph, if the network has it.
    """
    rng = np.random.default_rng(0)
    causes = rng.exponential(size=(PHOTOGRAPHS, SHARED + 2 * PRIVATE))
    source = causes[:, : SHARED + PRIVATE]
    order = np.r_[np.arange(SHARED)[::-1], np.arange(SHARED + PRIVATE, SHARED + 2 * PRIVATE)]
    scale = rng.uniform(0.1, 10, size=len(order))
    other = scale * (causes[:, order] + 0.05 * rng.standard_normal((PHOTOGRAPHS, len(order))))
    images = scale * rng.exponential(size=(SHARED + PRIVATE, len(order)))
    for f in range(SHARED):
        images[f, SHARED - 1 - f] = 3 * other[:, SHARED - 1 - f].max()
    return np.arange(SHARED + PRIVATE), source, other, images


def test_shared_features_are_matched_and_private_ones_are_told() -> None:
    _, source, other, _ = two_networks()
    partners = transfer.match_features(source, other)
    assert partners.features[:SHARED].tolist() == list(range(SHARED))[::-1]
    assert (partners.held_out[:SHARED] > 0.95).all()
    assert (np.abs(partners.held_out[SHARED:]) < 0.3).all()
    assert (partners.correlation[SHARED:] < 0.4).all()


def test_images_of_shared_features_transfer_and_others_do_not() -> None:
    features, source, other, images = two_networks()
    found = transfer.feature_transfer(features, transfer.match_features(source, other), images, source, other)
    assert (found.own[:SHARED] == 1).all() and (found.among_images[:SHARED] == 1).all()
    assert found.baseline[:SHARED].mean() == pytest.approx(0.5, abs=0.1)
    assert found.own[SHARED:].mean() == pytest.approx(0.5, abs=0.2)
    assert found.among_images[SHARED:].mean() == pytest.approx(0.5, abs=0.2)
    assert (found.ceiling[:SHARED] > 0.95).all()


def slow_transfer(
    features: np.ndarray, images: np.ndarray, source: np.ndarray, other: np.ndarray
) -> list[tuple[float, float, float, float]]:
    """The definitions, one photograph and one image at a time."""
    matching, scoring = transfer.split_photographs(len(source))

    def percentile(value: float, values: list[float]) -> float:
        return sum(1.0 if v < value else 0.5 if v == value else 0.0 for v in values) / len(values)

    rows = []
    for r, f in enumerate(features):
        found = [stats.pearsonr(source[matching, f], other[matching, g]).statistic for g in range(other.shape[1])]
        g = int(np.argmax(found))
        reference = [float(other[p, g]) for p in scoring]
        foreign = [float(images[s, g]) for s in range(len(features)) if features[s] != f]
        best = max(scoring, key=lambda p: source[p, f])
        rows.append(
            (
                percentile(float(images[r, g]), reference),
                float(np.mean([percentile(v, reference) for v in foreign])),
                percentile(float(images[r, g]), foreign),
                percentile(float(other[best, g]), reference),
            )
        )
    return rows


def test_transfer_follows_its_definition_with_several_seeds() -> None:
    rng = np.random.default_rng(3)
    source, other = rng.integers(0, 9, (41, 5)).astype(float), rng.integers(0, 9, (41, 7)).astype(float)
    features, images = np.tile(np.arange(5), 2), rng.integers(0, 12, (10, 7)).astype(float)
    found = transfer.feature_transfer(features, transfer.match_features(source, other), images, source, other)
    fast = np.stack([found.own, found.baseline, found.among_images, found.ceiling], axis=1)
    np.testing.assert_allclose(fast, slow_transfer(features, images, source, other), atol=1e-12)


def test_constant_responses_have_no_partner_and_are_none() -> None:
    rng = np.random.default_rng(6)
    source, other = rng.uniform(size=(40, 3)), rng.uniform(size=(40, 4))
    source[:, 1], other[:, 2], other[0, 3] = 0.25, 0.0, np.nan
    other[:, 1] = source[:, 0]
    partners = transfer.match_features(source, other)
    assert partners.features[0] == 1 and partners.features[1] == -1
    assert 2 not in partners.features
    assert np.isnan(partners.correlation[1]) and np.isnan(partners.held_out[1])
    found = transfer.feature_transfer(np.arange(3), partners, np.ones((3, 4)), source, other)
    assert np.isnan([found.own[1], found.baseline[1], found.among_images[1], found.ceiling[1]]).all()
    nothing = transfer.match_features(source, np.empty((40, 0)))
    assert (nothing.features == -1).all()
    opposite = transfer.match_features(source[:, :1], -source[:, :1])
    assert opposite.features.tolist() == [-1]


def test_equal_features_tie_to_the_first() -> None:
    source = np.random.default_rng(1).uniform(size=(60, 2))
    other = np.stack([source[:, 1], 7 * source[:, 0], source[:, 0] / 3, 5 * source[:, 1] + 1], axis=1)
    assert transfer.match_features(source, other).features.tolist() == [1, 0]


def test_images_that_are_not_finite_take_no_part() -> None:
    features, source, other, images = two_networks()
    images[3] = np.nan
    found = transfer.feature_transfer(features, transfer.match_features(source, other), images, source, other)
    assert np.isnan(found.own[3]) and np.isfinite(np.delete(found.own, 3)).all()
    assert np.isfinite(np.delete(found.baseline, 3)).all()
    alone = transfer.feature_transfer(features[:1], transfer.match_features(source, other), images[:1], source, other)
    assert alone.own[0] == 1 and np.isnan(alone.baseline[0]) and np.isnan(alone.among_images[0])
