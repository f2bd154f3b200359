"""The display stretch and sheets for print: laws of the stretch, pages, bytes, and what stays untouched."""

from __future__ import annotations

import colorsys
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.text import Text
from PIL import Image

import featmap
from featmap.errors import FeatmapError
from featmap.image_shape import to_rgb
from featmap.optimize.recipe import Recipe
from featmap.plotting import display, pages, sheets
from featmap.runs.engine import Execution
from featmap.runs.maximise import maximise_job, write_images
from featmap.runs.progress import Silent
from featmap.runs.store import Run, open_arrays
from tests.helpers import tiny


def picture(seed: int, mean: float, spread: float, channels: int = 3) -> np.ndarray:
    """An image of normal values, clipped to [0, 1]."""
    values = np.random.default_rng(seed).normal(mean, spread, (channels, 24, 32))
    return values.clip(0, 1).astype(np.float32)


PICTURES = st.builds(
    picture, st.integers(0, 99), st.floats(-0.2, 1.2), st.floats(0, 0.6), st.sampled_from([1, 2, 3, 4, 7])
)


@given(PICTURES)
def test_stretch_only_raises_contrast_within_bounds(image: np.ndarray) -> None:
    before, shown = image.copy(), display.stretch(image)
    gain, offset = display.stretch_factors(image)
    assert 1 <= gain <= display.MAX_GAIN and offset <= 0
    assert shown.shape == (3, 24, 32) and shown.min() >= 0 and shown.max() <= 1
    np.testing.assert_array_equal(image, before)
    assert not np.shares_memory(shown, image)
    np.testing.assert_allclose(shown, (gain * to_rgb(image) + offset).clip(0, 1), atol=1e-6)


@given(PICTURES)
def test_stretch_keeps_the_order_of_values(image: np.ndarray) -> None:
    order = np.argsort(to_rgb(image), axis=None, kind="stable")
    assert (np.diff(display.stretch(image).ravel()[order]) >= 0).all()


@given(PICTURES)
def test_stretch_reaches_the_percentiles_or_the_largest_gain(image: np.ndarray) -> None:
    values = np.sort(to_rgb(image), axis=None)
    low, high = values[int(0.01 * (values.size - 1))], values[-1 - int(0.01 * (values.size - 1))]
    gain, offset = display.stretch_factors(image)
    if high - low > 1 / display.MAX_GAIN:
        assert gain * low + offset == pytest.approx(0, abs=1e-5)
        assert gain * high + offset == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(display.stretch(display.stretch(image)), display.stretch(image), atol=1e-5)
    elif high > low:
        assert gain == display.MAX_GAIN
        assert gain * low + offset > -1e-5 and gain * high + offset < 1 + 1e-5
        # the middle of the range moves only as far as it must
        moved = gain * (low + high) / 2 + offset - (low + high) / 2
        assert moved == pytest.approx(0, abs=1e-5) or min(gain * low + offset, 1 - gain * high - offset) < 1e-5


def test_stretch_leaves_full_range_and_constant_images_alone() -> None:
    full = np.linspace(0, 1, 3 * 20 * 20, dtype=np.float32).reshape(3, 20, 20)
    full[:, :2], full[:, -2:] = 0, 1
    np.testing.assert_array_equal(display.stretch(full), full)
    for value in (0.0, 0.3, 1.0):
        constant = np.full((3, 5, 5), value, np.float32)
        np.testing.assert_array_equal(display.stretch(constant), constant)


def test_stretch_ignores_values_that_are_not_finite() -> None:
    image = picture(1, 0.5, 0.05)
    broken = image.copy()
    broken[:, 3, 3] = np.nan
    assert display.stretch_factors(broken) == pytest.approx(display.stretch_factors(image), rel=0.02)
    shown = display.stretch(broken)
    assert np.isnan(shown[:, 3, 3]).all() and np.isfinite(shown).sum() == shown.size - 3
    assert display.stretch_factors(np.full((3, 4, 4), np.nan)) == (1.0, 0.0)


def test_stretch_keeps_hue_and_grayness() -> None:
    image = picture(2, 0.4, 0.08)
    shown = display.stretch(image)
    inside = ((shown > 0) & (shown < 1)).all(0)
    assert inside.sum() > 500
    for y, x in np.argwhere(inside)[:200]:
        one, two = (colorsys.rgb_to_hsv(*map(float, values[:, y, x]))[0] for values in (image, shown))
        assert abs((one - two + 0.5) % 1 - 0.5) < 1e-3
    gray = display.stretch(picture(3, 0.4, 0.08, channels=1))
    assert np.ptp(gray, axis=0).max() == 0


def sheet_of(n: int, height: int = 16, width: int = 16, channels: int = 3, **settings: object) -> list[Figure]:
    images = np.random.default_rng(0).normal(0.5, 0.05, (n, channels, height, width)).clip(0, 1)
    captions = [f"{k / 7:.3g}" if k % 3 else f"{k} unconverged" for k in range(n)]
    given = {"captions": captions, "title": f"{n} maximising images", "stretched": True} | settings
    labels = given.pop("labels", [f"inception4a:{k}" for k in range(n)])
    return list(pages.sheet_pages(sheets.Sheet(images=images, labels=labels, **given)))  # type: ignore[arg-type]


def words(figure: Figure) -> list[str]:
    return [t.get_text() for t in figure.findobj(Text) if t.get_text()]


def page_count(path: Path) -> int:
    return len(re.findall(rb"/Type /Page\b(?!s)", path.read_bytes()))


@pytest.mark.parametrize(("n", "count"), [(1, 1), (42, 1), (48, 2), (512, 13)])
def test_pages_hold_every_image_once_in_order(n: int, count: int, tmp_path: Path) -> None:
    figures = sheet_of(n, 4, 4)
    assert len(figures) == count
    shown = [word for figure in figures for word in words(figure) if word.startswith("inception4a:")]
    assert shown == [f"inception4a:{k}" for k in range(n)]
    for number, figure in enumerate(figures, 1):
        assert figure.get_size_inches() == pytest.approx([8.27, 11.69])
        assert {f"{n} maximising images", display.NOTE, f"{number} / {count}"} <= set(words(figure))
    assert any("unconverged" in word for figure in figures for word in words(figure))
    assert page_count(pages.save_pages(figures, tmp_path / "new" / "sheet.pdf")) == count


@pytest.mark.parametrize(
    ("height", "width", "channels", "rows"), [(16, 16, 1, 7), (16, 48, 5, 15), (48, 16, 3, 7), (16, 16, 3, 7)]
)
def test_texts_of_a_page_keep_apart(height: int, width: int, channels: int, rows: int) -> None:
    labels = [f"features.denseblock4.denselayer16.conv2:{k}" for k in range(120)]
    for figure in sheet_of(120, height, width, channels, labels=labels, groups=[k // 5 for k in range(120)])[:1]:
        figure.canvas.draw()
        boxes = [t.get_window_extent().padded(-1) for t in figure.findobj(Text) if t.get_text()]
        assert len({round(b.y0) for b in boxes}) >= 2 * min(rows, 20)
        assert [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)] == []
        w, h = figure.canvas.get_width_height()
        assert all(b.x0 >= 0 and b.y0 >= 0 and b.x1 <= w and b.y1 <= h for b in boxes)


BYTES = """
import hashlib
import numpy as np
from pathlib import Path
from featmap.plotting import pages
from featmap.plotting.sheets import Sheet
labels, images = [f"Straße {chr(945 + k % 20)}:{k}" for k in range(60)], np.linspace(0, 1, 60 * 36).reshape(60, 1, 6, 6)
sheet = Sheet(images=images, labels=labels, captions=labels, groups=[0] * 60, title="a layer", stretched=True)
figures = pages.sheet_pages(sheet)
print(hashlib.sha256(pages.save_pages(figures, Path("a.pdf")).read_bytes()).hexdigest())
"""


def test_pages_have_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    repository = str(Path(__file__).resolve().parent.parent.parent)
    digests = set()
    for seed, epoch in (("1", "0"), ("2", "1700000000")):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": repository, "SOURCE_DATE_EPOCH": epoch}
        done = subprocess.run(
            [sys.executable, "-c", BYTES], cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=120
        )
        digests.add(done.stdout)
    assert len(digests) == 1
    content = (tmp_path / "a.pdf").read_bytes()
    assert b"Date" not in content and b"/Font" in content


def test_a_page_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = pages.save_pages(sheet_of(2), tmp_path / "sheet.pdf")
    before = path.read_bytes()

    def fail() -> object:
        yield from sheet_of(1)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        pages.save_pages(fail(), path)  # type: ignore[arg-type]
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("sheet.pdf", before)]
    with pytest.raises(FeatmapError, match="as many captions"):
        sheet_of(3, captions=["one"])


@pytest.mark.parametrize("channels", [1, 3, 6])
def test_sheets_show_stretched_images_and_say_so(channels: int) -> None:
    images = np.stack([picture(k, 0.5, 0.03, channels) for k in range(4)])
    sheet = sheets.Sheet(images=images, labels=["a", "b", "c", "d"], title="a layer", columns=2)
    shown = {}
    for stretched in (False, True):
        figure = sheets.contact_sheet(replace(sheet, stretched=stretched))
        assert (display.NOTE in " ".join(words(figure)).replace("\n", " ")) == stretched
        pixels = np.asarray(figure.findobj(AxesImage)[0].get_array()).astype(float)
        shown[stretched] = pixels[8:60, 8:90].std()
    assert shown[True] / shown[False] == pytest.approx(display.stretch_factors(images[0])[0], rel=0.15)
    card = sheets.Card((images[0], images[1]), ("a", "b"), "text")
    assert display.NOTE in " ".join(words(sheets.card_sheet([card], "pairs", stretched=True))).replace("\n", " ")
    assert display.NOTE not in " ".join(words(sheets.card_sheet([card], "pairs")))


def test_runs_write_both_sheets_and_keep_stored_pixels(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    network, recipe = featmap.load(tiny.small()), Recipe.named("fast", size=(16, 24), steps=3, rows=4)
    units = ["second:1", "second:2", "second:5"]
    featmap.maximise(units, network, recipe=recipe, execution=Execution("cpu", out=folder))
    job = maximise_job(units, network, recipe)
    run = Run.read(folder)
    with run.locked():
        write_images(job, run, Silent())
    assert {"features.png", "features.pdf"} <= run.manifest.files.keys()
    assert page_count(folder / "features.pdf") == 1
    stored = open_arrays(folder)["images"].values[0]
    for image, path in zip(stored, sorted((folder / "images").iterdir()), strict=True):
        with Image.open(path) as opened:
            written = np.asarray(opened).transpose(2, 0, 1)
        np.testing.assert_array_equal(written, (image.clip(0, 1) * 255).round().astype(np.uint8))
