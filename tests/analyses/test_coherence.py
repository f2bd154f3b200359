"""Coherence: counts with closed forms, cosines against plain loops; a trend against scipy."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from analyses.formulas import coherence
from featmap.report import encode
from featmap.stats import reliability

RNG = np.random.Generator(np.random.PCG64(3))


def test_effective_number_counts_equal_responses() -> None:
    rows = np.array([[3.0, 0, 0, 0], [2, -2, 0, 0], [1e-20, 1e-20, 1e-20, 1e-20], [0, 0, 0, 0], [np.inf, 1, 1, 1]])
    found = coherence.effective_number(rows)
    assert found[:3] == pytest.approx([1, 2, 4]) and np.isnan(found[3:]).all()


def test_effective_number_is_free_of_scale_and_between_one_and_all() -> None:
    rows = RNG.normal(size=(6, 9))
    found = coherence.effective_number(rows)
    expected = (rows**2).sum(1) ** 2 / (rows**4).sum(1)
    assert found == pytest.approx(expected) and coherence.effective_number(1e8 * rows) == pytest.approx(expected)
    assert ((found >= 1) & (found <= 9)).all()


def test_waves_of_colours_gratings_and_noise() -> None:
    y = np.arange(16)
    grating = np.broadcast_to(0.4 * np.cos(2 * np.pi * 3 * y / 16), (3, 16, 16))
    flat = np.full((3, 16, 16), 0.3) * np.array([1, -1, 0.5])[:, None, None]
    both, noise = grating + np.swapaxes(grating, 1, 2), 0.1 * RNG.normal(size=(3, 16, 16))
    found = coherence.effective_waves(
        0.5 + np.stack([grating, 0.01 * grating, flat, both, noise, np.zeros((3, 16, 16))])
    )
    assert found[:4] == pytest.approx([2, 2, 1, 4])
    assert 128 < found[4] < 256 and np.isnan(found[5])


def test_excited_means_above_every_reference_image() -> None:
    reference = np.array([[0.0, 1, 2, 3], [1, 0, 3, 2]])
    rows = np.array([[1.0, 1, 3, 3], [2, 0, 4, 0], [9, 9, 9, 9], [np.nan, 9, 9, 9]])
    found = coherence.excited_share(rows, reference)
    assert found[:3].tolist() == [0, 0.5, 1] and np.isnan(found[3])
    assert np.isnan(coherence.excited_share(np.ones((2, 0)), np.ones((3, 0)))).all()


def test_one_more_reference_image_excites_the_chance_share() -> None:
    images = RNG.normal(size=(20, 4000))
    assert coherence.excited_share(images[:1], images[1:]) == pytest.approx([1 / 20], abs=0.01)


def test_spread_is_relative_and_free_of_each_features_scale() -> None:
    reference = np.eye(6)[[0, 1, 2, 3]] + np.eye(6)[[1, 2, 3, 0]]  # each excites two of four
    rows = np.array([[0.9, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0]])
    found = coherence.relative_effective_number(rows, reference)
    scaled = coherence.relative_effective_number(rows * [1, 1e6, 3, 1e-6, 1, 1], reference * [1, 1e6, 3, 1e-6, 1, 1])
    assert found == pytest.approx([0.5, 2]) and scaled == pytest.approx(found)
    assert np.isnan(coherence.relative_effective_number(np.zeros((2, 3)), np.zeros((4, 3)))).all()


def test_effective_classes_count_the_likely_classes() -> None:
    logits = np.array([[0.0, 0, 0, 0], [1000, 0, 0, 0], [5, 5, -1000, -1000], [np.nan, 0, 0, 0]])
    found = coherence.effective_classes(logits)
    assert found[:3] == pytest.approx([4, 1, 2]) and np.isnan(found[3])
    p = stats.norm.pdf(RNG.normal(size=5))
    assert coherence.effective_classes(np.log(p / p.sum())[None]) == pytest.approx([np.exp(stats.entropy(p))])


def test_likeness_is_the_mean_cosine_over_pairs_of_positions() -> None:
    vectors = RNG.normal(size=(3, 4, 5))
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    vectors[1, 2] = np.nan
    within, across = coherence.position_similarity(vectors)
    for i in range(3):
        own = [v for v in vectors[i] if np.isfinite(v).all()]
        rest = [v for k in range(3) if k != i for v in vectors[k] if np.isfinite(v).all()]
        assert within[i] == pytest.approx(np.mean([u @ v for u, v in combinations(own, 2)]))
        assert across[i] == pytest.approx(np.mean([u @ v for u in own for v in rest]))


def test_one_position_has_no_likeness_of_its_own() -> None:
    within, across = coherence.position_similarity(np.array([[[1.0, 0.0]], [[0.0, 1.0]]]))
    assert np.isnan(within).all() and across.tolist() == [0, 0]
    assert np.isnan(coherence.position_similarity(np.ones((1, 2, 1)))[1]).all()


def test_directions_standardise_and_drop_what_does_not_vary() -> None:
    maps = np.array([[[[3.0, 1.0]], [[5.0, 5.0]], [[0.0, 4.0]]]])
    found = coherence.unit_directions(maps, np.array([1.0, 5.0, 0.0]), np.array([2.0, 0.0, 4.0]))
    assert found[0] == pytest.approx(np.array([[1.0, 0.0], [0.0, 1.0]]))  # positions x (first, third feature)
    still = coherence.unit_directions(np.ones((1, 2, 1, 1)), np.ones(2), np.ones(2))
    assert np.isnan(still).all()


def test_trend_is_spearmans_and_its_interval_holds_it() -> None:
    places = np.repeat(np.arange(5), 8)
    values = places + RNG.normal(size=40)
    found = reliability.trend(values, places, draws=200)
    assert found.value == pytest.approx(stats.spearmanr(values, places).statistic)
    assert 0 < found.low < found.value < found.high <= 1
    gap = np.where(np.arange(40) % 7 == 0, np.nan, values)
    known = np.isfinite(gap)
    assert reliability.trend(gap, places, 20).value == pytest.approx(
        stats.spearmanr(gap[known], places[known]).statistic
    )


def test_trend_intervals_are_over_places_not_values() -> None:
    """Twelve places whose levels have no trend: the interval holds 0 about 19 times in 20, not now and then."""
    places, hits = np.repeat(np.arange(12), 4), 0
    for k in range(40):
        rng = np.random.default_rng(k)
        values = rng.normal(size=12)[places] + 0.05 * rng.normal(size=48)
        found = reliability.trend(values, places, draws=80)
        hits += found.low <= 0 <= found.high
    assert hits >= 34


def test_few_places_have_no_interval() -> None:
    places = np.repeat(np.arange(4), 8)
    found = reliability.trend(places + 0.1 * RNG.normal(size=32), places, draws=50)
    assert found.value > 0.9 and np.isnan([found.low, found.high]).all()


def test_what_does_not_vary_has_no_trend() -> None:
    assert np.isnan(reliability.trend(np.ones(6), np.arange(6)).value)
    assert np.isnan(reliability.trend(np.arange(6.0), np.zeros(6)).value)
    assert np.isnan(reliability.trend(np.array([1.0, np.nan, 2.0]), np.arange(3)).value)


def test_noise_is_compressed_less_than_colour() -> None:
    flat, noise = np.full((3, 64, 64), 0.3), RNG.uniform(size=(3, 64, 64))
    assert encode.png_bytes_per_pixel(flat) < 0.1 < 2.9 < encode.png_bytes_per_pixel(noise) < 3.2
