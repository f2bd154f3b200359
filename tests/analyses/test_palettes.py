"""Colours: OKLab's published values, images whose colours are known, clusters that are there or not."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import silhouette_score

from analyses.formulas import palettes

RNG = np.random.Generator(np.random.PCG64(8))
# of sRGB's primaries, as CSS Color 4 (and culori) give them
KNOWN = {
    (1.0, 1.0, 1.0): (1.0, 0.0, 0.0),
    (1.0, 0.0, 0.0): (0.62796, 0.22486, 0.12585),
    (0.0, 1.0, 0.0): (0.86644, -0.23389, 0.17950),
    (0.0, 0.0, 1.0): (0.45201, -0.03246, -0.31153),
    (0.0, 0.0, 0.0): (0.0, 0.0, 0.0),
}


@pytest.mark.parametrize("rgb", KNOWN)
def test_oklab_is_as_published(rgb: tuple[float, ...]) -> None:
    assert palettes.oklab(np.array(rgb)) == pytest.approx(KNOWN[rgb], abs=2e-4)


def test_grays_have_no_colour() -> None:
    assert palettes.oklab(np.full((5, 3), np.linspace(0, 1, 5)[:, None]))[:, 1:] == pytest.approx(0, abs=1e-4)


def test_the_commonest_colour_is_found_below_noise() -> None:
    image = np.full((3, 10, 10), 0.95)
    image[:, :7] = np.array([0.1, 0.8, 0.3])[:, None, None] + RNG.uniform(-0.02, 0.02, (3, 7, 10))
    assert palettes.dominant_colour(image) == pytest.approx([0.1, 0.8, 0.3], abs=0.02)
    image[:, :4] = np.nan  # middle gray
    assert palettes.dominant_colour(image) == pytest.approx([0.5] * 3)


def test_flatness_of_colours_and_patterns() -> None:
    flat = np.broadcast_to(np.array([0.9, 0.5, 0.2])[:, None, None], (3, 8, 8))
    stripes = np.broadcast_to(np.where(np.arange(8) % 2, 0.9, 0.1), (3, 8, 8))
    half = np.broadcast_to(np.where(np.arange(8) % 2, 0.9, 0.5), (3, 8, 8))  # mean 0.7: 0.04 of 0.08
    gray, broken = np.full((3, 8, 8), 0.5), np.full((3, 8, 8), np.inf)
    with np.errstate(invalid="ignore"):
        found = palettes.flatness(np.stack([flat, stripes, half, gray, broken]))
    assert found[:3] == pytest.approx([1, 0, 0.5]) and np.isnan(found[3:]).all()


def test_colours_are_named_by_hue() -> None:
    names = {name: palettes.hue_name(palettes.oklab(0.2 + 0.6 * np.array(rgb))) for name, rgb in palettes.HUES.items()}
    assert names == {name: name for name in palettes.HUES}
    assert [palettes.hue_name(palettes.oklab(np.full(3, v))) for v in (0.05, 0.5, 1.0)] == ["black", "gray", "white"]


def test_silhouette_is_scikit_learns() -> None:
    points, labels = RNG.normal(size=(15, 2)), np.array([0] * 5 + [1] * 9 + [2])
    distances = np.linalg.norm(points[:, None] - points, axis=2)
    assert palettes.mean_silhouette(distances, labels) == pytest.approx(silhouette_score(points, labels), abs=1e-12)
    assert np.isnan(palettes.mean_silhouette(distances, np.zeros(15)))


def test_three_colours_are_a_palette() -> None:
    centres = np.array([[0.2, 0.1], [-0.2, 0.15], [0.0, -0.2]])
    truth = np.repeat([0, 1, 2], [9, 7, 5])
    found = palettes.fit_palette(centres[truth] + 0.01 * RNG.normal(size=(21, 2)), draws=99)
    assert found.count == 3 and found.p == 0.01 and found.silhouette > 0.9
    assert found.labels.tolist() == truth.tolist()  # the largest is 0


def test_one_cloud_is_no_palette() -> None:
    assert palettes.fit_palette(0.1 * RNG.normal(size=(40, 2)), draws=99).p > 0.05


def test_two_exact_colours_are_two_clusters() -> None:
    found = palettes.fit_palette(np.repeat(np.eye(2), [3, 4], axis=0), draws=99)
    assert (found.count, found.silhouette, found.p) == (2, 1, 0.01)
    assert found.labels.tolist() == [1, 1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("points", [np.zeros((5, 2)), np.array([[0.0, 0.1]]), np.eye(3)[:, :2], np.empty((0, 2))])
def test_too_few_colours_are_no_palette(points: np.ndarray) -> None:
    found = palettes.fit_palette(points)
    assert found.count == 1 and np.isnan(found.p) and len(found.labels) == len(points)
