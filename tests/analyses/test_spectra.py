"""What images hold: closed forms for waves and noise, planted grids, textures without any."""

from __future__ import annotations

import numpy as np
import pytest

from analyses.formulas import spectra
from analyses.formulas.likeness import correlation_clusters, pairwise_correlations, profile_agreement
from featmap.image_ops import pink_noise

SIZE = 96
Y, X = np.mgrid[:SIZE, :SIZE]


def wave(fy: float, fx: float, amplitude: float = 1.0, phase: float = 0.3) -> np.ndarray:
    return np.tile(amplitude * np.cos(2 * np.pi * (fy * Y + fx * X) + phase), (3, 1, 1))


def natural(k: int, size: int = SIZE) -> np.ndarray:
    return pink_noise(k + 1, size)[k].numpy().astype(np.float64)


def noise(seed: int, size: int = SIZE, slope: float = 0.0) -> np.ndarray:
    falls = np.maximum(spectra.radial_frequencies(size, size), 1 / size) ** -slope
    white = np.random.default_rng(seed).standard_normal((3, size, size))
    return np.fft.ifft2(np.fft.fft2(white) * falls).real


def band(seed: int, f0: float, width: float, angle: float | None = None) -> np.ndarray:
    """A texture: noise through a band of frequencies, of one direction or of all."""
    fy, fx = np.fft.fftfreq(SIZE)[:, None], np.fft.fftfreq(SIZE)[None]
    away = np.hypot(fy, fx) - f0 if angle is None else np.hypot(fy - f0 * np.sin(angle), fx - f0 * np.cos(angle))
    keep = np.exp(-0.5 * (away / width) ** 2) + 1e-3
    white = np.random.default_rng(seed).standard_normal((3, SIZE, SIZE))
    return np.fft.ifft2(np.fft.fft2(white) * keep).real


def by_loop(image: np.ndarray) -> tuple[float, float]:
    """High share and centroid of a small image by the definition of the transform, one frequency after another."""
    _, h, w = image.shape
    window = np.outer(
        0.5 - 0.5 * np.cos(2 * np.pi * np.arange(h) / h), 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(w) / w)
    )
    y, x, powers, radii = np.arange(h)[:, None], np.arange(w)[None], [], []
    for a in range(h):
        for b in range(w):
            fy, fx = (a / h if a < h / 2 else a / h - 1), (b / w if b < w / 2 else b / w - 1)
            total = 0.0
            for plane in image:
                held = (plane - (plane * window).sum() / window.sum()) * window
                total += abs((held * np.exp(-2j * np.pi * (fy * y + fx * x))).sum()) ** 2
            powers.append(total)
            radii.append(np.hypot(fy, fx))
    p, r = np.array(powers), np.array(radii)
    return p[r > 0.25].sum() / p.sum(), (p * r).sum() / p.sum()


def test_share_and_centroid_follow_their_definition() -> None:
    images = np.random.default_rng(3).standard_normal((2, 3, 10, 13))
    expected = np.array([by_loop(image) for image in images])
    np.testing.assert_allclose(spectra.high_frequency_share(images), expected[:, 0], rtol=1e-10)
    np.testing.assert_allclose(spectra.mean_frequency(images), expected[:, 1], rtol=1e-10)


def test_a_wave_has_its_frequency() -> None:
    waves = np.stack([wave(0.1, 0.05), wave(0.0, 0.2), wave(0.3, 0.1), wave(0.25, 0.25)])
    np.testing.assert_allclose(
        spectra.mean_frequency(waves), np.hypot([0.1, 0, 0.3, 0.25], [0.05, 0.2, 0.1, 0.25]), atol=2e-3
    )
    np.testing.assert_allclose(spectra.high_frequency_share(waves), [0, 0, 1, 1], atol=1e-3)


def test_white_noise_has_the_share_of_the_area_beyond_the_circle() -> None:
    found = spectra.high_frequency_share(np.stack([noise(k) for k in range(20)]))
    assert found.mean() == pytest.approx(1 - np.pi / 16, abs=5 * found.std() / np.sqrt(20))


def test_nothing_depends_on_brightness_contrast_or_the_order_of_channels() -> None:
    images = np.stack([natural(0), noise(1)])
    for changed in (3 * images - 7, images[:, ::-1], images.transpose(0, 1, 3, 2)):
        np.testing.assert_allclose(spectra.mean_frequency(changed), spectra.mean_frequency(images), rtol=1e-9)
    np.testing.assert_allclose(
        spectra.high_frequency_share(3 * images - 7), spectra.high_frequency_share(images), rtol=1e-9
    )


def test_a_ramp_has_no_high_frequencies_though_its_borders_differ() -> None:
    ramp = np.tile((Y + X) / SIZE, (1, 3, 1, 1))
    assert spectra.high_frequency_share(ramp)[0] < 1e-6
    bare = np.square(np.abs(np.fft.fft2(ramp[0, 0] - ramp.mean())))
    assert bare[spectra.radial_frequencies(SIZE, SIZE) > 0.25].sum() / bare.sum() > 1e-3  # without a window


def test_an_image_without_variation_has_no_spectrum() -> None:
    images = np.stack([np.full((3, 40, 40), 0.7), np.full((3, 40, 40), np.nan), noise(0, 40)])
    assert np.isfinite(spectra.high_frequency_share(images)).tolist() == [False, False, True]
    assert np.isfinite(spectra.mean_frequency(images)).tolist() == [False, False, True]
    assert [spectra.find_grid(image).is_grid for image in images] == [False, False, False]
    assert spectra.find_grid(images[0]).prominence == 0
    assert np.isnan(spectra.find_grid(images[1]).prominence)
    assert np.isnan(spectra.find_grid(noise(0, 31)).prominence)  # too small to tell


@pytest.mark.parametrize("period", spectra.PERIODS)
@pytest.mark.parametrize("direction", list(spectra.DIRECTIONS))
def test_a_planted_grid_is_found(period: int, direction: str) -> None:
    down, across = spectra.DIRECTIONS[direction]
    found = spectra.find_grid(natural(period) + wave(down / period, across / period, 0.15, phase=0.0))
    assert found.is_grid
    assert found.period == period
    assert found.direction == (direction if period > 2 else direction.removeprefix("anti"))
    total = natural(period).var((1, 2)).mean()
    power = 0.15**2 if period == 2 else 0.15**2 / 2
    assert found.share == pytest.approx(power / (total + power), rel=0.5)  # the image's own variance under the window


def test_lines_are_known_by_their_longest_period() -> None:
    for period in (2, 3, 4, 5, 6):
        image = 0.5 * natural(1)
        image[:, ::period] -= 0.12
        assert (spectra.find_grid(image).period, spectra.find_grid(image).direction) == (period, "rows")


def test_noise_of_any_slope_has_no_grid() -> None:
    for slope in (0.0, 1.0, 2.0, 3.0):
        images = [noise(k, 64, slope) for k in range(40)]
        gray = [np.tile(image[:1], (3, 1, 1)) for image in images]
        assert not any(spectra.find_grid(image).is_grid for image in (*images, *gray))
    assert not any(spectra.find_grid(image).is_grid for image in pink_noise(24, 64).numpy())


def test_textures_have_no_grid() -> None:
    found = []
    for k in range(150):
        rng = np.random.default_rng(k)
        angle = None if k % 3 == 0 else float(rng.uniform(0, np.pi))
        found.append(spectra.find_grid(band(k, rng.uniform(0.1, 0.45), rng.choice([0.02, 0.04]), angle)).is_grid)
    assert np.mean(found) <= 0.02
    assert not spectra.find_grid(natural(0) + wave(1 / 4.5, 0.0, 0.15)).is_grid  # as strong, but of no whole period


def test_a_faint_grid_is_not_visible() -> None:
    smooth = noise(0, SIZE, 3.0)
    smooth /= smooth.std()
    found = spectra.find_grid(smooth + wave(0.5, 0.0, 0.03, phase=0.0))
    assert found.prominence > spectra.PROMINENT
    assert found.share < spectra.VISIBLE
    assert found.contrast == pytest.approx(0.03, rel=0.1)
    assert not found.is_grid
    flat = spectra.find_grid(
        np.full((3, SIZE, SIZE), 0.5) + wave(0.25, 0.0, 0.01)
    )  # all that there is, but nobody sees it
    assert flat.share == pytest.approx(1, abs=0.01)
    assert flat.contrast == pytest.approx(0.01 / np.sqrt(2), rel=0.01)
    assert not flat.is_grid


def likeness_by_loop(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    zs = [(x - x.mean(0)) / x.std(0) for x in (first, second)]
    n = len(first)
    r = np.array([[np.corrcoef(zs[0][i], zs[1][j])[0, 1] for j in range(n)] for i in range(n)])
    different = [np.mean([(r[i, j] + r[j, i]) / 2 for j in range(n) if j != i]) for i in range(n)]
    return np.stack([r.diagonal(), different])


def test_likeness_follows_its_definition_and_its_laws() -> None:
    rng = np.random.default_rng(0)
    pattern = rng.standard_normal((7, 30))
    first, second = (pattern + 0.4 * rng.standard_normal((7, 30)) for _ in range(2))
    found = profile_agreement(first, second)
    np.testing.assert_allclose([found.same, found.different], likeness_by_loop(first, second), atol=1e-12)
    turned = profile_agreement(second, 5 * first + np.arange(30))  # symmetric; free of each response's scale and zero
    np.testing.assert_allclose(turned.excess, found.excess, atol=1e-12)
    order = rng.permutation(7)
    np.testing.assert_allclose(profile_agreement(first[order], second[order]).same, found.same[order], atol=1e-12)
    assert profile_agreement(first, first).same == pytest.approx(np.ones(7))
    assert found.excess.min() > 0.5
    assert abs(profile_agreement(first, rng.standard_normal((7, 30))).excess.mean()) < 0.25


def test_likeness_leaves_out_what_is_undefined() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.standard_normal((2, 6, 20))
    whole = profile_agreement(np.delete(first, 2, 0)[:, 1:], np.delete(second, 2, 0)[:, 1:])
    first[:, 0] = 4.0  # never varies
    second[2, 5] = np.nan  # an image that is not finite
    found = profile_agreement(first, second)
    assert np.isnan(found.same[2]) and np.isnan(found.different[2])
    np.testing.assert_allclose(np.delete(found.excess, 2), whole.excess, atol=1e-12)
    assert np.isnan(profile_agreement(first[:1], second[:1]).same).all()


def test_kinds_are_what_correlates() -> None:
    rng = np.random.default_rng(2)
    patterns = rng.standard_normal((3, 400))
    which = np.array([0, 1, 0, 2, 2, 0, 1])
    things = patterns[which] + 0.3 * rng.standard_normal((7, 400))
    r = pairwise_correlations(things)
    np.testing.assert_allclose(r, np.corrcoef(things), atol=1e-12)
    labels = correlation_clusters(r, 0.5)
    assert [[bool(a == b) for b in labels] for a in labels] == (which[:, None] == which).tolist()
    assert len(set(correlation_clusters(r, 0.999))) == 7  # nothing is as alike as that
    assert set(correlation_clusters(r, -1.1)) == {0}
    things[3] = 1.0  # does not vary
    assert correlation_clusters(pairwise_correlations(things), 0.5)[3] == -1
    assert correlation_clusters(pairwise_correlations(things[:1]), 0.5).tolist() == [0]
