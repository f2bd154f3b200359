"""Figures: the order drawn, the words written, the files' bytes; looks are judged by eye, overlaps by arithmetic."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from scipy.cluster import hierarchy

from featmap.errors import FeatmapError
from featmap.plotting import heatmaps, sheets, style

HOSTILE = [r"a$\frac{:1", "b<b>&amp;:2", r"c_\alpha^{:3", "d$x$'\":4", "e\x00\x1b\n]]>:5", "ü-Straße %s {0}:6"]


def planted(n: int, k: int = 3, names: list[str] | None = None) -> tuple[pd.DataFrame, np.ndarray, pd.Series]:
    """Return a table of co-activation with k planted clusters, its linkage, its clusters."""
    rng = np.random.default_rng(0)
    clusters = rng.integers(0, k, n)
    values = 0.5 * (clusters[:, None] == clusters) + rng.normal(0, 0.1, (n, n))
    np.fill_diagonal(values, 1)
    names = names or [f"inception4a:{i}" for i in range(n)]
    linkage = hierarchy.linkage(values, "average", optimal_ordering=n < 100) if n > 1 else np.empty((0, 4))
    frame = pd.DataFrame(values, index=names, columns=names)
    return frame, linkage, pd.Series(clusters, index=names)


def heat(n: int = 8, **given: object) -> Figure:
    values, linkage, clusters = planted(n, names=given.pop("names", None))  # type: ignore[arg-type]
    settings = {"linkage": linkage, "clusters": clusters, "title": "a layer", "cbar_label": "co-activation"} | given
    return heatmaps.heatmap(settings.pop("values", values), **settings)  # type: ignore[arg-type]


def sheet(n: int = 8, **given: object) -> Figure:
    """Return a sheet of n plain images, the i-th of red i / n."""
    images = np.zeros((n, 3, 12, 12), np.float32)
    images[:, 0] = np.arange(n)[:, None, None] / n
    settings = {"images": images, "labels": [f"conv:{i}" for i in range(n)], "title": "a layer"} | given
    return sheets.contact_sheet(sheets.Sheet(**settings))  # type: ignore[arg-type]


def pairs(m: int = 3) -> Figure:
    image = np.full((3, 9, 9), 0.5)
    return sheets.card_sheet(
        [sheets.Card((image, image), (f"a:{i}", f"b:{i}"), f"S 0.9{i}") for i in range(m)], "pairs"
    )


def read(png: Path) -> np.ndarray:
    with Image.open(png) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def words(figure: Figure) -> list[str]:
    return [t.get_text() for t in figure.findobj(Text) if t.get_visible() and t.get_text()]


def ticks(figure: Figure) -> tuple[list[str], list[str]]:
    mesh = next(a for a in figure.axes if a.get_xlabel() == "response of feature")
    return [t.get_text() for t in mesh.get_xticklabels()], [t.get_text() for t in mesh.get_yticklabels()]


def mesh_of(figure: Figure) -> matplotlib.collections.QuadMesh:
    return next(a for a in figure.axes if a.get_xlabel() == "response of feature").collections[0]


def test_colours_do_not_depend_on_how_many_are_asked_for() -> None:
    assert style.cluster_colours(0) == []
    assert style.cluster_colours(7) == style.cluster_colours(60)[:7]
    assert len(set(style.cluster_colours(30))) == 30
    assert min(np.linalg.norm(np.subtract(a, b)) for a, b in pairwise(style.cluster_colours(60))) > 0.3


@pytest.mark.parametrize("n", [1, 2, 64, 70])
def test_heatmap_orders_both_axes_by_the_linkage(n: int) -> None:
    values, linkage, _ = planted(n)
    figure = heat(n)
    leaves = hierarchy.leaves_list(linkage) if n > 1 else [0]
    wanted = [values.index[i] for i in leaves][:: 1 if n <= 64 else 3]
    assert ticks(figure) == (wanted, wanted)
    drawn = np.asarray(mesh_of(figure).get_array()).reshape(n, n)
    np.testing.assert_array_equal(drawn, values.to_numpy(float)[np.ix_(leaves, leaves)])
    assert {"a layer", "co-activation", "maximising image of feature"} <= set(words(figure))
    similar = words(heat(n, is_symmetric=True))
    assert similar.count("feature") == 2 and "maximising image of feature" not in similar


@pytest.mark.parametrize("n", [9, 10, 11])
def test_cells_of_many_features_are_means_over_blocks(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heatmaps, "MAX_CELLS", 4)
    values, linkage, _ = planted(n)
    values.iloc[0, 1] = np.nan
    figure, order = heat(n, values=values), hierarchy.leaves_list(linkage)
    ordered = values.iloc[order, order].to_numpy()
    blocks = [np.nanmean(ordered[r : r + 3, c : c + 3]) for r in range(0, n, 3) for c in range(0, n, 3)]
    np.testing.assert_allclose(np.asarray(mesh_of(figure).get_array()).ravel(), blocks, rtol=1e-12)
    firsts = [values.index[k] for k in order[::3]]
    assert ticks(figure) == (firsts, firsts) and "cells: means over 3 × 3 pairs" in words(figure)
    whole = heat(n, values=values)
    monkeypatch.undo()
    assert len(figure.axes) == len(whole.axes) and "cells: means over 3 × 3 pairs" not in words(heat(n))


@pytest.mark.parametrize("figure", [heat, sheet, pairs])
def test_same_data_same_bytes(figure, tmp_path: Path) -> None:
    drawn = figure()
    first = style.save(drawn, tmp_path / "one")
    assert style.save(drawn, tmp_path / "again", ("svg",))[0].read_bytes() == first[1].read_bytes()
    second = style.save(figure(), tmp_path / "two")
    assert [p.name for p in first] == ["one.png", "one.svg"]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    assert b"<dc:date>" not in first[1].read_bytes()


def test_nothing_is_left_behind_in_pyplot() -> None:
    mine = plt.figure()
    before = dict(matplotlib.rcParams)
    heat(), sheet(), pairs()
    assert plt.get_fignums() == [mine.number]
    assert dict(matplotlib.rcParams) == before
    plt.close(mine)
    broken = planted(8)[1].copy()
    broken[:, :2] = -3
    with pytest.raises(ValueError, match=r"[Ll]inkage|negative"):
        heat(linkage=broken)
    assert plt.get_fignums() == []


def test_figures_do_not_depend_on_the_users_style(tmp_path: Path) -> None:
    plain = style.save(pairs(), tmp_path / "plain")
    with plt.style.context(["dark_background", {"font.size": 30, "svg.fonttype": "path"}]):
        styled = style.save(pairs(), tmp_path / "styled")
    assert [p.read_bytes() for p in plain] == [p.read_bytes() for p in styled]


def test_hostile_words_are_written_as_they_are(tmp_path: Path) -> None:
    title, shown = r"$\frac{ <script>", [label.replace("\x00\x1b\n", "\ufffd\ufffd ") for label in HOSTILE]
    image = np.zeros((3, 4, 4))
    rows = [sheets.Card((image, image), (a, a), f"{a} $y$") for a in HOSTILE]
    figures = {
        "heat": heat(6, names=HOSTILE, title=title, cbar_label="$z$ <i>"),
        "sheet": sheet(6, labels=HOSTILE, captions=["$u$"] * 6, title=title),
        "pairs": sheets.card_sheet(rows, title),
    }
    for name, figure in figures.items():
        png, svg = style.save(figure, tmp_path / name)
        assert read(png).shape[1] > 300
        written = {"".join(e.itertext()) for e in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")}
        assert {title, *shown} <= written
    assert "$z$ <i>" in words(figures["heat"])
    assert "$u$" in words(figures["sheet"])


def test_undefined_cells_are_gray_and_counted(tmp_path: Path) -> None:
    values = planted(8)[0]
    values.iloc[0, 3] = np.nan
    values.iloc[2, 2] = np.nan
    values.iloc[5, 1] = np.inf
    figure = heat(values=values)
    assert "undefined (3 cells)" in words(figure)
    array = mesh_of(figure).get_array()
    assert np.ma.count_masked(array) == 3
    row, column = np.argwhere(np.ma.getmaskarray(array).reshape(8, 8))[0]
    (png,) = style.save(figure, tmp_path / "x", ("png",))
    pixels = read(png)
    x, y = mesh_of(figure).axes.transData.transform((column + 0.5, row + 0.5)) / figure.dpi * 150
    assert tuple(pixels[pixels.shape[0] - 1 - round(y), round(x)]) == (0xC9, 0xC9, 0xC9)
    everything = heat(2, values=values.iloc[:2, :2].mask(values.iloc[:2, :2].notna(), np.nan))
    assert "undefined (4 cells)" in words(everything)


def test_bands_show_and_number_the_clusters() -> None:
    clusters = pd.Series(range(8), index=planted(8)[0].index)
    figure = heat(clusters=clusters)
    assert all(words(figure).count(str(c)) == 2 for c in range(8)) and "cluster" in words(figure)
    partly = heat(clusters=clusters.iloc[:6].astype("Int64").replace(3, -1))
    assert words(partly).count("5") == 2 and "3" not in words(partly) and "in no cluster" in words(partly)
    assert "cluster" not in words(heat(2, clusters=None))


def test_colours_reach_the_diagonal_unless_that_hides_the_rest() -> None:
    plain = heat()
    assert mesh_of(plain).get_clim() == (-1, 1)
    assert not any(word.startswith(("diagonal", "undefined")) for word in words(plain))
    values = planted(8)[0] * 0.2 + 0.8 * np.eye(8)
    faint = heat(values=values)
    low, high = mesh_of(faint).get_clim()
    assert -low == high < 0.2
    assert "diagonal: 1" in words(faint)
    low, high = mesh_of(heat(2, centre=3.0)).get_clim()
    assert (low + high) / 2 == pytest.approx(3) and low < 0.2
    negative = pd.DataFrame([[1.0, -0.3], [-0.9, 1.0]], index=["a:0", "a:1"], columns=["a:0", "a:1"])
    assert mesh_of(heat(2, values=negative, clusters=None, linkage=np.array([[0, 1, 1, 2]]))).get_clim() == (-1, 1)


def test_a_chain_of_features_does_not_exhaust_the_stack() -> None:
    n, limit = 1000, sys.getrecursionlimit()
    chain = np.array([[0 if i == 0 else n + i - 1, i + 1, i + 1, i + 2] for i in range(n - 1)], float)
    names = [f"c:{i}" for i in range(n)]
    heat(2, values=pd.DataFrame(np.eye(n), index=names, columns=names), linkage=chain, clusters=None)
    assert sys.getrecursionlimit() == limit


def test_heatmap_of_a_whole_layer_is_small(tmp_path: Path) -> None:
    figure = heat(512)
    assert len(ticks(figure)[0]) == 32
    png, svg = style.save(figure, tmp_path / "x")
    assert svg.stat().st_size < 3e6
    assert max(read(png).shape) < 3000


def overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Return pairs of texts whose boxes meet, and texts that leave the figure."""
    figure.canvas.draw()
    shown = [t for axes in figure.axes for t in [*axes.texts, axes.xaxis.label, axes.yaxis.label] if t.get_text()]
    for axis in (axis for axes in figure.axes if axes.axison for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        shown += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
        shown += [tick.label2 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    shown = [t for t in shown if t.get_visible() and t.get_text()]
    boxes = [t.get_window_extent().padded(-1) for t in shown]
    found = [
        (shown[i].get_text(), shown[k].get_text())
        for i, a in enumerate(boxes)
        for k, b in enumerate(boxes[:i])
        if a.overlaps(b)
    ]
    w, h = figure.canvas.get_width_height()
    inside = [b.x0 >= 0 and b.y0 >= 0 and b.x1 <= w and b.y1 <= h for b in boxes]
    return found + [(t.get_text(), "edge") for t, fits in zip(shown, inside, strict=True) if not fits]


LONG = "features.denseblock4.denselayer16.conv2.some.more"


@pytest.mark.parametrize(("n", "layer"), [(1, "c"), (2, "conv"), (8, LONG), (64, "inception4a"), (100, LONG)])
def test_texts_of_a_heatmap_keep_apart(n: int, layer: str) -> None:
    names = [f"{layer}:{i}" for i in range(n)]
    values, _, clusters = planted(n, 5, names)
    values.iloc[0, 0] = np.nan
    figure = heat(
        n,
        values=values,
        names=names,
        clusters=clusters.iloc[: max(1, n - 1)],
        title=f"{layer}: {n} features, and a title that says a good deal more than fits on one line of it, twice over",
        cbar_label="co-activation (share of the feature's own best response)",
    )
    assert overlaps(figure) == []


@pytest.mark.parametrize("n", [1, 3, 40])
def test_texts_of_a_sheet_keep_apart(n: int) -> None:
    labels = [f"features.denseblock4.denselayer16.conv2:{i}" for i in range(n)]
    groups = [i // 4 for i in range(n)]
    title = f"{n} maximising images, in the order of the heatmap"
    figure = sheet(n, labels=labels, captions=["1.23e+04 unconverged"] * n, groups=groups, title=title)
    assert overlaps(figure) == []
    assert all(any(w.endswith(f":{i}") for w in words(figure)) for i in range(n))


def test_texts_of_pairs_keep_apart() -> None:
    image = np.zeros((3, 9, 9))
    text = "profile 0.987, co-activation 0.71 / undefined, in clusters 3 and 12, both rescued"
    rows = [sheets.Card((image, image), (f"inception4a:{i}", f"inception4a:{i + 100}"), text) for i in range(24)]
    assert overlaps(sheets.card_sheet(rows, "the 24 most similar pairs")) == []
    assert overlaps(pairs(1)) == []
    assert sum("".join(w.split()) == "".join(text.split()) for w in words(sheets.card_sheet(rows, ""))) == 24


def test_sheet_puts_each_image_above_its_label(tmp_path: Path) -> None:
    n, groups = 5, [0, 0, 4, None, -1]
    figure = sheet(n, columns=2, groups=groups, captions=[f"caption {i}" for i in range(n)])
    (png,) = style.save(figure, tmp_path / "x", ("png",))
    pixels = read(png)
    labels = [t for t in figure.findobj(Text) if t.get_text().startswith("conv:")]
    places = [t.get_position() for t in labels]
    assert [t.get_text() for t in labels] == [f"conv:{i}" for i in range(n)]
    assert sorted(range(n), key=lambda i: (places[i][1], places[i][0])) == list(range(n))
    frames = [*np.array(style.cluster_colours(5))[[0, 0, 4]], *[[0xC9 / 255] * 3] * 2]
    for i, (x, y) in enumerate(places):
        inside = pixels[round((y - 0.8) * 150), round(x * 150)]
        np.testing.assert_allclose(inside, [255 * i / n, 0, 0], atol=1)
        frame = pixels[round((y - 0.03) * 150) - 3, round(x * 150)]
        np.testing.assert_allclose(frame, 255 * np.array(frames[i]), atol=30)
    assert {"cluster 0", "4", "no cluster"} <= set(words(figure))


def test_sheet_clips_and_bears_what_is_not_finite(tmp_path: Path) -> None:
    images = np.stack([np.full((3, 8, 8), v) for v in (-5.0, 7.0, np.nan, np.inf, -np.inf)])
    figure = sheet(5, images=images, columns=5)
    pixels = figure.findobj(matplotlib.image.AxesImage)[0].get_array()
    assert [int(pixels[5, 5 + i * (pixels.shape[1] // 5), 0]) for i in range(5)] == [0, 255, 128, 255, 0]


@pytest.mark.slow
def test_sheet_of_a_whole_layer_fits_and_is_legible(tmp_path: Path) -> None:
    n = 512
    images = np.random.default_rng(0).random((n, 3, 1, 96), np.float32).repeat(96, axis=2)
    labels = [f"inception4a:{i}" for i in range(n)]
    figure = sheet(n, images=images, labels=labels, captions=["4.21 live"] * n, groups=[i // 20 for i in range(n)])
    (png,) = style.save(figure, tmp_path / "x", ("png",))
    assert min(read(png).shape[:2]) > 3000 and max(read(png).shape) <= 5000
    assert set(labels) <= set(words(figure))
    assert min(t.get_fontsize() for t in figure.findobj(Text) if t.get_text() in labels) >= 5.5


def test_a_sheet_that_is_too_tall_is_written_at_fewer_dots(tmp_path: Path) -> None:
    (png,) = style.save(sheet(60, columns=1), tmp_path / "x", ("png",))
    assert 4900 < max(read(png).shape) <= 5000


def test_large_images_are_scaled_down_and_oblong_ones_kept_oblong() -> None:
    figure = sheet(2, images=np.zeros((2, 3, 500, 1000)), columns=1)
    h, w = figure.findobj(matplotlib.image.AxesImage)[0].get_array().shape[:2]
    assert w < 500 and h < w * 1.6


def test_saving_replaces_whole_files_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "new" / "inception4a.maps"
    assert [p.name for p in style.save(pairs(), target)] == ["inception4a.maps.png", "inception4a.maps.svg"]
    before = {p.name: p.read_bytes() for p in target.parent.iterdir()}
    assert len(before) == 2

    def fail(self: Figure, path: Path, **options: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        style.save(pairs(), target)
    assert {p.name: p.read_bytes() for p in target.parent.iterdir()} == before


def test_what_cannot_be_drawn_is_said() -> None:
    values, linkage, _ = planted(4)
    with pytest.raises(FeatmapError, match="needs one or more features"):
        heat(values=values.iloc[:0, :0])
    with pytest.raises(FeatmapError, match="same labels on rows and columns"):
        heat(values=values.iloc[:, :3])
    with pytest.raises(FeatmapError, match="same labels on rows and columns"):
        heat(values=values.iloc[:, ::-1])
    with pytest.raises(FeatmapError, match=r"must have the shape \(3, 4\)"):
        heat(values=values, linkage=linkage[:2])
    with pytest.raises(FeatmapError, match="needs one or more images"):
        sheet(3, images=np.zeros((0, 3, 4, 4)))
    with pytest.raises(FeatmapError, match="as many captions"):
        sheet(3, captions=["one"])
    with pytest.raises(FeatmapError, match="at least one card"):
        sheets.card_sheet([], "none")
