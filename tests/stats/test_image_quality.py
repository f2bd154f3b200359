"""Measures of images against planted spectra, colours, contrasts and dead zones, and slow second implementations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from featmap.stats import image_quality as quality


def sloped(seed: int, slope: float, size: int = 96) -> np.ndarray:
    """Noise whose power falls as frequency to the power of `slope`."""
    falls = np.maximum(quality.radial_frequencies(size, size), 1 / size) ** (slope / 2)
    white = np.random.default_rng(seed).standard_normal((3, size, size))
    return np.fft.ifft2(np.fft.fft2(white) * falls).real


def slope_by_loop(image: np.ndarray) -> float:
    """The fit by its definition: every bin is put into its ring, and polyfit draws the line."""
    _, h, w = image.shape
    window = np.outer(*(np.sin(np.pi * np.arange(n) / n) ** 2 for n in (h, w)))
    power = np.zeros((h, w))
    for plane in image:
        held = (plane - (plane * window).sum() / window.sum()) * window
        power += np.abs(np.fft.fft2(held)) ** 2
    rings: dict[int, list[float]] = {}
    for a in range(h):
        for b in range(w):
            fy, fx = min(a, h - a) / h, min(b, w - b) / w
            rings.setdefault(round(np.hypot(fy, fx) * min(h, w)), []).append(power[a, b])
    k = np.arange(2, min(h, w) // 2 + 1)
    means = np.array([np.mean(rings[n]) for n in k])
    return float(np.polyfit(np.log(k), np.log(means), 1, w=1 / np.sqrt(k))[0])  # polyfit squares its weights


@pytest.mark.parametrize("slope", [0.0, -1.0, -2.0, -3.0])
@pytest.mark.parametrize("size", [64, 96])
def test_a_planted_slope_of_the_spectrum_is_found(slope: float, size: int) -> None:
    found = quality.spectrum_slopes(np.stack([sloped(k, slope, size) for k in range(16)]))
    assert found.mean() == pytest.approx(slope, abs=0.12)
    assert found.std() < 0.15


@pytest.mark.parametrize("shape", [(40, 40), (33, 47)])
def test_slopes_follow_their_definition(shape: tuple[int, int]) -> None:
    images = np.random.default_rng(4).standard_normal((3, 3, *shape)).cumsum(2)
    expected = [slope_by_loop(image) for image in images]
    np.testing.assert_allclose(quality.spectrum_slopes(images), expected, rtol=1e-9)


def test_slopes_depend_on_neither_brightness_nor_contrast_nor_turning() -> None:
    images = np.stack([sloped(0, -2), sloped(1, -1)])
    expected = quality.spectrum_slopes(images)
    for changed in (5 * images - 2, images[:, ::-1], images.transpose(0, 1, 3, 2)):
        np.testing.assert_allclose(quality.spectrum_slopes(changed), expected, rtol=1e-8)


def test_images_without_a_spectrum_have_no_slope() -> None:
    nan = sloped(0, -2)
    nan[0, 3, 4] = np.nan
    assert np.isnan(quality.spectrum_slopes(np.stack([np.full((3, 96, 96), 0.5), nan]))).all()
    assert np.isnan(quality.spectrum_slopes(np.random.default_rng(0).uniform(size=(1, 3, 8, 8)))).all()  # too small


def test_empty_rings_do_not_tilt_the_slope() -> None:
    smooth = sloped(3, -2)
    spectrum = np.fft.fft2(smooth)
    spectrum[:, quality.radial_frequencies(96, 96) > 0.25] = 0
    cut = np.fft.ifft2(spectrum).real
    whole, low = quality.spectrum_slopes(np.stack([smooth, cut]))
    assert low < whole < -1.5  # steeper, but not by the rounding of what is not there
    assert low > -8


def test_contrast_is_the_deviation_of_all_pixels() -> None:
    images = np.zeros((3, 3, 4, 4))
    images[1, :, :2] = 1  # half black, half white
    images[2] = np.random.default_rng(0).uniform(size=(3, 4, 4))
    expected = [0, 0.5, np.sqrt(np.mean((images[2] - images[2].mean()) ** 2))]
    np.testing.assert_allclose(quality.contrasts(images), expected, atol=1e-12)
    images[0, 0, 0, 0] = np.inf
    assert np.isnan(quality.contrasts(images)).tolist() == [True, False, False]


def test_planted_colour_covariance_is_found() -> None:
    planted = np.array([[1.0, 0.8, -0.3], [0.8, 1.0, 0.1], [-0.3, 0.1, 1.0]])
    mixing = np.diag([0.1, 0.3, 2.0]) @ np.linalg.cholesky(planted)
    white = np.random.default_rng(1).standard_normal((4, 3, 200 * 200))
    images = (mixing @ white + 0.4).reshape(4, 3, 200, 200)
    found = quality.colour_correlations(images)
    np.testing.assert_allclose(found, np.tile(planted, (4, 1, 1)), atol=0.02)
    by_numpy = np.stack([np.corrcoef(image.reshape(3, -1)) for image in images])
    np.testing.assert_allclose(found, by_numpy, atol=1e-12)
    gray = np.ones((3, 3))
    expected = np.sqrt(np.mean([0.2**2, 1.3**2, 0.9**2]))
    np.testing.assert_allclose(quality.colour_distance(found, gray), expected, atol=0.02)


def test_colour_distance_is_a_distance() -> None:
    one, two, three = quality.colour_correlations(np.random.default_rng(2).uniform(size=(3, 3, 3, 3)))
    distance = quality.colour_distance
    assert distance(one, one) == 0
    assert distance(one, two) == distance(two, one) > 0
    assert distance(one, three) <= distance(one, two) + distance(two, three)
    sign = np.array([1, 1, 1])
    assert distance(np.outer(sign, sign), 2 * np.eye(3) - np.outer(sign, sign)) == pytest.approx(2)


def test_a_constant_channel_has_no_colour_correlation() -> None:
    image = np.random.default_rng(0).uniform(size=(1, 3, 8, 8))
    image[0, 1] = 0.25
    found = quality.colour_correlations(image)[0]
    assert np.isnan(found[1]).all() and np.isnan(found[:, 1]).all() and np.isfinite(found[0, 2])
    assert np.isnan(quality.colour_distance(found, np.eye(3)))


def test_coverage_is_the_share_of_the_grid_that_fires() -> None:
    corner = np.zeros((8, 8))
    corner[:2, :2] = 3.0
    ramp = np.arange(1, 11).reshape(2, 5) / 10  # 0.1 is not above a tenth of the maximum
    assert quality.coverages(corner) == 4 / 64
    assert quality.coverages(ramp) == 0.9
    maps = np.stack([corner, 100 * corner, np.zeros((8, 8)), -np.ones((8, 8)), np.ones((8, 8)), corner - 1])
    np.testing.assert_allclose(quality.coverages(maps), [4 / 64, 4 / 64, 0, 0, 1, 4 / 64])


def test_coverage_is_undefined_for_single_positions_and_bad_numbers() -> None:
    assert np.isnan(quality.coverages(np.ones((2, 3, 1, 1)))).all()
    assert quality.coverages(np.ones((2, 3, 1, 1))).shape == (2, 3)
    assert np.isfinite(quality.coverages(np.ones((2, 1, 2)))).all()
    for bad in (np.nan, np.inf, -np.inf):
        maps = np.ones((2, 4, 4))
        maps[0, 1, 1] = bad
        assert np.isnan(quality.coverages(maps)).tolist() == [True, False]


def test_agreement_correlates_the_similarities_of_both_stimuli() -> None:
    rng = np.random.default_rng(5)
    mixing = rng.uniform(size=(4, 12))
    photographs, images = rng.exponential(size=(80, 4)) @ mixing, rng.exponential(size=(12, 4)) @ mixing
    found, linear = (quality.similarity_agreement(images, photographs, roots) for roots in (True, False))
    upper = np.triu_indices(12, 1)
    for agreement, power in ((found, 0.5), (linear, 1.0)):
        tables = []
        for responses in (images**power, photographs**power):
            Z = (responses - responses.mean(axis=0)) / responses.std(axis=0)
            tables.append(np.corrcoef(Z - Z.mean(axis=1, keepdims=True), rowvar=False)[upper])
        assert agreement.value == pytest.approx(stats.pearsonr(*tables).statistic, abs=1e-12)
    assert quality.similarity_agreement(images, photographs) == found != linear
    assert found.low < found.value < found.high
    assert quality.similarity_agreement(photographs, photographs).value == pytest.approx(1)


def test_agreement_needs_three_pairs() -> None:
    responses = np.random.default_rng(0).uniform(size=(20, 2))
    assert np.isnan(quality.similarity_agreement(responses[:2], responses).value)
