"""Overlays that show where a feature fires, and sheets of examples."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import AxesImage
from matplotlib.text import Text
from scipy.interpolate import RegularGridInterpolator

from featmap.plotting import examples, overlays, pages
from featmap.plotting.overlays import Example, firing_level


def example(grid: np.ndarray, side: int = 32, level: float = 0.5) -> Example:
    """A photograph of one colour, and a map whose positions are spread evenly over it."""
    step = side / np.array(grid.shape)
    y, x = ((np.arange(n) + 0.5) * s - 0.5 for n, s in zip(grid.shape, step, strict=True))
    image = np.full((3, side, side), level, dtype=np.float32)
    image[0] = 1
    return Example(image, grid.astype(np.float32), y, x)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 99), st.integers(2, 5), st.integers(2, 5))
def test_interpolation_is_that_of_scipy(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    one = example(rng.normal(size=(height, width)))
    rows, columns = rng.uniform(-3, 35, 6), rng.uniform(-3, 35, 7)
    inside = np.clip(rows, one.y[0], one.y[-1]), np.clip(columns, one.x[0], one.x[-1])
    expected = RegularGridInterpolator((one.y, one.x), one.grid.astype(float))(
        np.stack(np.meshgrid(*inside, indexing="ij"), axis=-1)
    )
    np.testing.assert_allclose(one.interpolate(rows, columns), expected, atol=1e-6)


def test_the_region_keeps_its_colours_and_the_rest_is_faded() -> None:
    grid = np.zeros((4, 4))
    grid[1, 2] = 3.0
    drawn = example(grid).draw((0, 32, 0, 32), 64)
    own, rest = drawn[24, 40], drawn[60, 4]  # the centre of position (1, 2), twice as large; a far corner
    np.testing.assert_array_equal(own, [255, 128, 128])
    gray = 0.299 * 255 + 0.701 * 128
    pale = [0.35 * c + 0.65 * gray for c in (255, 128, 128)]
    np.testing.assert_allclose(rest, [0.45 * p + 0.55 * 165 for p in pale], atol=1)
    outline = (drawn == overlays.OUTLINE).all(2)
    assert outline.any() and not outline[48:].any() and not outline[:, :16].any()


def test_nothing_fires_where_no_activation_is_positive() -> None:
    for values in (np.zeros((3, 3)), -np.ones((3, 3)), np.full((3, 3), np.nan), np.full((3, 3), np.inf)):
        drawn = example(values).draw((0, 32, 0, 32), 32)
        assert len(np.unique(drawn.reshape(-1, 3), axis=0)) == 1
        assert firing_level(values) == np.inf
    assert firing_level(np.array([[-4.0, 6.0]])) == 3.0
    whole = example(np.ones((3, 3))).draw((0, 32, 0, 32), 32)
    np.testing.assert_array_equal(whole, np.broadcast_to([255, 128, 128], whole.shape))


def test_a_crop_is_magnified_and_shows_the_same_region() -> None:
    grid = np.zeros((4, 4))
    grid[1, 2] = 3.0
    one = example(grid)
    cut, whole = one.draw((8, 16, 16, 24), 64), one.draw((0, 32, 0, 32), 256)[64:128, 128:192]
    # where a faded pixel lies beside a halo, widths of outlines differ
    same = (np.abs(cut.astype(int) - whole) <= 2).all(2)
    assert cut.shape == (64, 64, 3) and same.mean() > 0.75
    assert one.draw((0, 8, 0, 32), 40).shape == (10, 40, 3)


def row(name: str, count: int, image: bool = True) -> examples.ExampleRow:
    tiles = [np.full((20, 20 - k % 9, 3), 40 + k, np.uint8) for k in range(count)]
    pixels = np.random.default_rng(0).random((3, 16, 16)) if image else None
    return examples.ExampleRow(name, "activation 1.5", pixels, tiles, [f"r{k}" for k in range(count)], range(count))


def test_pages_hold_every_row_once(tmp_path: Path) -> None:
    names = [f"relu:{k}" for k in range(23)]
    sheet = examples.ExampleSheet("Title", "a note", names, 9, ())
    figures = list(examples.example_pages(sheet, (row(name, 9 if name != "relu:4" else 0) for name in names)))
    texts = [t.get_text() for figure in figures for t in figure.findobj(Text)]
    assert len(figures) == 3 and [texts.count(name) for name in names] == [1] * 23
    assert texts.count("r8") == 22 and texts.count("responds to all photographs alike") == 1
    assert sum(len(figure.findobj(AxesImage)) for figure in figures) == 23 + 9 * 22
    path = pages.save_pages(iter(figures), tmp_path / "sheet.pdf")
    assert len(re.findall(rb"/Type /Page\b(?!s)", path.read_bytes())) == 3


def test_a_sheet_without_maximising_images_says_nothing_of_them() -> None:
    sheet = examples.ExampleSheet("Title", "a note", ["relu:0"], 2, (), with_images=False)
    figure = examples.example_figure(sheet, [row("relu:0", 2, image=False)])
    texts = " ".join(t.get_text() for t in figure.findobj(Text))
    assert "maximising" not in texts and "contrast" not in texts and "relu:0" in texts
    assert "contrast" in examples.ExampleSheet("Title", "a note", ["relu:0"], 2, ()).full_note


@pytest.mark.parametrize(("rows", "pixels"), [(1, 200), (64, 200), (256, 131), (512, 93), (4096, 80)])
def test_many_photographs_are_drawn_smaller(rows: int, pixels: int) -> None:
    assert examples.tile_pixels(rows, 9) == pixels


@pytest.mark.parametrize("across", [1, 9, 20])
def test_photographs_at_percentiles_stand_apart_and_on_the_page(across: int) -> None:
    sheet = examples.ExampleSheet("Title", "a note", ["relu:0"], across, (50, 90, 99))
    lefts = [sheet.left(column) for column in range(across + 3)]
    steps = np.diff(lefts)
    np.testing.assert_allclose(np.delete(steps, across - 1), sheet.side + examples.GAP)
    assert steps[across - 1] == pytest.approx(sheet.side + examples.GAP + examples.APART)
    assert lefts[-1] + sheet.side <= examples.WIDTH - examples.LEFT + 1e-9
    figure = examples.example_figure(sheet, [row("relu:0", across + 3)])
    assert examples.tile_pixels(512, across + 3) ** 2 * 512 * (across + 3) <= examples.PIXELS or across == 20
    texts = [t.get_text() for t in figure.findobj(Text)]
    assert "percentiles 50, 90, 99" in texts and f"r{across + 2}" in texts
