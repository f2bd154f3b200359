"""Figures for a paper from finished numbers: the heatmap, sheets of images, their files. Measures nothing."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import colors as mcolors
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image

from featmap.errors import FeatmapError

# Okabe and Ito's colours (no black), then always the farthest next one in OKLab under normal, protan, deutan
# and tritan sight (Machado et al. 2009, doi:10.1109/TVCG.2009.113), in an order in which neighbours differ.
_COLOURS = (
    "0072b2e69f00009e73d55e00cc79a756b4e9f0e442a52d6996b4874b1e969678ff695a0078ffb4004bc3692d2d"
    "785ae1a55a4b87d2ff966987f0c3785a4b96ff78d25a2d6978a55a872d4b96e1a57878d2f0783ca5f0e1a5784b"
)
_INK, _FAINT, _GRAY = "#222222", "#555555", "#c9c9c9"
_DPI, _LARGEST = 150, 5000  # pixels in an inch, in the longer side of a PNG
_EM = 0.61  # DejaVu Sans: the mean width of a character, in font sizes
_NAMED = 64  # features up to which each is named on the heatmap
_STYLE = {
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "svg.fonttype": "none",
    "svg.hashsalt": "featmap",
}
_STYLE |= dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), _INK)
_house_style = matplotlib.style.context(["default", _STYLE])  # draw alike whatever the user's matplotlibrc says
_OPTIONS: dict[str, dict[str, Any]] = {  # no dates in a file; a large PNG in seconds
    "png": {"metadata": {"Software": None}, "pil_kwargs": {"compress_level": 3}},
    "svg": {"metadata": {"Date": None}},
}


@dataclass(frozen=True, eq=False)
class PairRow:
    """One card of `pair_sheet`: two images (float [3, h, w], clipped to [0, 1]), their names, a text."""

    left_image: np.ndarray
    right_image: np.ndarray
    left_label: str
    right_label: str
    text: str


def cluster_colours(k: int) -> list[tuple[float, float, float]]:
    """Return the colours of clusters 0 .. k - 1 as RGB in [0, 1].

    A cluster has the same colour in every figure, whatever k is. The first 30 differ; then they repeat.
    """
    return [_colour(c) for c in range(k)]


def _colour(cluster: int | None) -> tuple[float, float, float]:
    at = 0 if cluster is None else 6 * cluster % len(_COLOURS)
    return mcolors.to_rgb(_GRAY if cluster is None else f"#{_COLOURS[at : at + 6]}")


def _plain(text: object) -> str:
    """Return a text as one line of printable characters: XML forbids some of the others in an SVG."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(str(text).split()))


def _fit(texts: Iterable[str], inches: float, largest: float) -> tuple[float, list[str]]:
    """Return the font size at which all texts fit into a width, and the texts: at the smallest without middles."""
    lines = [_plain(text) for text in texts]
    size = float(np.clip(72 * inches / _EM / max([1, *map(len, lines)]), 5.5, largest))
    half = int(72 * inches / _EM / size) // 2
    return size, [t if len(t) <= 2 * half else f"{t[: half - 1]}…{t[-half:]}" for t in lines]


def _wrap(text: str, inches: float, size: float) -> str:
    """Break a text into lines of at most a width; its own line breaks are kept."""
    room = int(72 * inches / _EM / size)
    return "\n".join(part for line in text.splitlines() for part in textwrap.wrap(_plain(line), room))


def _write(axes: Axes, x: float, y: float, text: str, size: float, **style: Any) -> None:
    """Write a text as it is: `$` is a character, not the start of a formula."""
    axes.text(x, y, text, parse_math=False, fontsize=size, **{"ha": "center", "va": "top"} | style)


def _swatch(page: Axes, x: float, y: float, colour: Any, text: str) -> None:
    page.add_patch(plt.Rectangle((x, y), 0.16, 0.12, facecolor=colour))
    _write(page, x + 0.21, y + 0.06, text, 8, ha="left", va="center")


def _page(figure: Figure, width: float, below: float, title: str) -> tuple[Axes, float]:
    """Size a figure for a title and what lies below it, all in inches.

    Returns an Axes behind all of it, in inches from the upper left corner, and where the title ends.
    """
    size = max(11.0, 0.65 * width)
    heading = _wrap(title, width - 0.3, size)
    top = 0.2 + size / 55 * len(heading.splitlines())
    FigureCanvasAgg(figure)
    figure.set_size_inches(width, top + below)
    limits: dict[str, Any] = {"xlim": (0, width), "ylim": (top + below, 0), "autoscale_on": False}
    page = figure.add_axes((0, 0, 1, 1), zorder=-1, **limits)
    page.set_axis_off()
    _write(page, width / 2, 0.13, heading, size)
    return page, top


@_house_style
def heatmap(
    values: pd.DataFrame,
    *,
    linkage: np.ndarray,
    clusters: pd.Series | None,
    title: str,
    cbar_label: str,
    centre: float | None = None,
) -> Figure:
    """Draw a square table of similarities with dendrograms and bands of cluster colours.

    `values` is [n, n], rows maximising images, columns responses, with equal labels in equal order, without
    dead features; cells missing or not finite are undefined: drawn gray, counted in a note. `linkage` is scipy's
    [n - 1, 4] of the features in that order and orders rows and columns. `clusters` holds a number >= 0 by
    label; a feature without one is gray. `centre` is the value drawn white (None: 0, for co-activation "as the
    null image"); equal distances from it are equally strong. Colours run from the 1st to the 99th percentile off
    the diagonal, and on to the diagonal's value (1 for co-activation) unless that takes most of the contrast;
    an arrow on the colour bar says that cells lie beyond its end.

    Raises FeatmapError if `values` is empty or not square, or `linkage` or `clusters` do not belong to it.
    """
    names, n = list(values.index), len(values)
    if n == 0 or names != list(values.columns):
        raise FeatmapError(f"A heatmap needs equal row and column labels; the table is {values.shape}.")
    if n > 1 and np.shape(linkage) != (n - 1, 4):
        raise FeatmapError(f"A linkage of {n} features is {(n - 1, 4)}, not {np.shape(linkage)}.")
    if clusters is not None and not set(names) & set(clusters.index):
        raise FeatmapError("The clusters name none of the features of the table.")
    table = values.astype("Float64").to_numpy(dtype=float, na_value=np.nan)
    table = np.where(np.isfinite(table), table, np.nan)
    numbers = _numbers([] if clusters is None else clusters.reindex(names))
    grid = _cluster_grid(table, linkage, [_colour(c) for c in numbers] or None, float(centre or 0))
    order = list(grid.dendrogram_row.reordered_ind) if n > 1 else [0]
    notes = [f"undefined ({np.isnan(table).sum():,} cells)"] * bool(np.isnan(table).any())
    notes += ["in no cluster"] * (None in numbers)
    _arrange(grid, [names[i] for i in order], title, cbar_label, notes)
    _number_bands(grid, [numbers[i] for i in order if numbers])
    return grid.figure


def _numbers(clusters: Iterable[Any]) -> list[int | None]:
    return [None if c is None or pd.isna(c) or c < 0 else int(c) for c in clusters]


def _colour_range(table: np.ndarray, centre: float) -> tuple[float, float]:
    """Return the values at which the colours of `heatmap` end."""
    own, other = np.diagonal(table), table[~np.eye(len(table), dtype=bool)]
    own, other = own[np.isfinite(own)], np.append(other[np.isfinite(other)], centre)
    low, high = min(np.percentile(other, 1), centre), max(np.percentile(other, 99), centre)
    top, reach = max([np.median(own), high] if own.size else [high]), max(high - centre, centre - low)
    high = top if reach == 0 or top - centre <= 2.5 * reach else max(high, centre + reach)
    return float(low), float(high if high > low else low + 1)


def _cluster_grid(table: np.ndarray, linkage: np.ndarray, band: list[Any] | None, centre: float) -> Any:
    """Return seaborn's ClusterGrid without any text in it, its figure taken out of pyplot's hands."""
    n, (low, high) = len(table), _colour_range(table, centre)
    beyond = int(np.nanmin(table, initial=low) < low) + 2 * int(np.nanmax(table, initial=high) > high)
    reach = 2 * max(high - centre, centre - low)
    shades = np.linspace((low - centre) / reach + 0.5, (high - centre) / reach + 0.5, 256)
    colours = mcolors.ListedColormap(matplotlib.colormaps["RdBu_r"](shades))
    limit, known = sys.getrecursionlimit(), set(plt.get_fignums())
    sys.setrecursionlimit(max(limit, 1000 + 4 * n))  # scipy walks a tree by recursion, be it one long chain
    try:
        with plt.ioff():
            return sns.clustermap(
                pd.DataFrame(table),
                mask=np.isnan(table),
                **dict.fromkeys(("row_linkage", "col_linkage"), linkage if n > 1 else None),
                **dict.fromkeys(("row_cluster", "col_cluster"), n > 1),
                **dict.fromkeys(("row_colors", "col_colors"), band),
                **dict.fromkeys(("xticklabels", "yticklabels"), False),
                **{"cmap": colours, "vmin": low, "vmax": high, "rasterized": True},
                cbar_kws={"extend": ("neither", "min", "max", "both")[beyond]},
                tree_kws={"linewidths": 0.9 if n <= _NAMED else 0.5, "colors": [_INK]},
            )
    finally:
        sys.setrecursionlimit(limit)
        for number in set(plt.get_fignums()) - known:
            plt.close(number)


def _arrange(grid: Any, names: list[str], title: str, cbar_label: str, notes: list[str]) -> None:
    """Place all parts by inches: trees and bands, the mesh, its names, then the colour bar and the notes."""
    # Whole pixels a cell at _DPI, or some would be drawn wider than others.
    cell = max(2, round(_DPI * np.clip(0.16, 3.6 / len(names), 9.6 / len(names)))) / _DPI
    side = min(24.0, cell * len(names))
    room = _name_ticks(grid.ax_heatmap, names, cell)
    tree, band, edge = float(np.clip(0.11 * side, 0.6, 1.0)), 0.19, 0.15
    before = tree + (0 if grid.ax_row_colors is None else band + 0.03)
    left, bar_at, bar = edge + before, edge + before + side + room + 0.42, float(np.clip(0.45 * side, 2, 4))
    width = bar_at + max([1.3, *(_EM * len(note) * 8 / 72 + 0.36 for note in notes)])
    page, top = _page(grid.figure, width, before + side + room + 0.45, title)
    top, height = top + before, grid.figure.get_figheight()
    for axes, x, y, w, h in (
        (grid.ax_heatmap, left, top, side, side),
        (grid.ax_row_colors, left - 0.03 - band, top, band, side),
        (grid.ax_col_colors, left, top - 0.03 - band, side, band),
        (grid.ax_row_dendrogram, edge, top, tree, side),
        (grid.ax_col_dendrogram, left, top - before, side, tree),
        (grid.ax_cbar, bar_at, top, 0.16, bar),
    ):
        if axes is not None:
            axes.set_position((x / width, 1 - (y + h) / height, w / width, h / height))
    grid.ax_cbar.tick_params(labelsize=8, width=0.6, length=3)
    grid.ax_cbar.set_ylabel(_wrap(cbar_label, bar, 9), fontsize=9, labelpad=6, parse_math=False)
    if grid.ax_row_colors is not None:
        _write(page, left - 0.03 - band / 2, top + side + 0.06, "cluster", 8, rotation=90)
    for i, note in enumerate(notes):
        _swatch(page, bar_at, top + bar + 0.3 + 0.2 * i, _GRAY, note)


def _name_ticks(mesh: Axes, names: list[str], cell: float) -> float:
    """Name the features (above _NAMED: every so many) on both axes; return the inches that the names take."""
    step = 1 if len(names) <= _NAMED else -(-len(names) // 32)
    size, lines = _fit(names[::step], 2.2, min(9.0, 58 * cell * step))
    for axis, angle in ((mesh.xaxis, 90), (mesh.yaxis, 0)):
        at = np.arange(0, len(names), step) + 0.5
        axis.set_ticks(at, lines, rotation=angle, fontsize=size, parse_math=False)
    mesh.tick_params(length=2, width=0.6, pad=2)
    mesh.set_xlabel("response of feature", fontsize=9.5, labelpad=5)
    mesh.set_ylabel("maximising image of feature", fontsize=9.5, labelpad=5)
    mesh.set_facecolor(_GRAY)
    return max(map(len, lines)) * _EM * size / 72 + 0.08


def _number_bands(grid: Any, numbers: list[int | None]) -> None:
    """Write each cluster's number on those of its stretches of the two bands that are long enough."""
    side, end = grid.ax_heatmap.get_position().height * grid.figure.get_figheight(), 0.0
    for number, stretch in groupby(numbers):
        length = len(list(stretch))
        end += length
        if number is not None and length * side / len(numbers) >= 0.07 * len(str(number)) + 0.03:
            ink = "black" if np.dot(_colour(number), (0.299, 0.587, 0.114)) > 0.55 else "white"
            style: dict[str, Any] = {"size": 7.5, "color": ink, "va": "center_baseline"}
            _write(grid.ax_row_colors, 0.5, end - length / 2, str(number), **style)
            _write(grid.ax_col_colors, end - length / 2, 0.5, str(number), **style)


class _Picture(AxesImage):
    """An image scaled by Pillow in a PNG (matplotlib takes seconds for a large sheet), not at all in an SVG."""

    def make_image(self, renderer: Any, magnification: float = 1.0, unsampled: bool = False) -> Any:
        if unsampled:
            return super().make_image(renderer, magnification, unsampled)
        x0, y0, x1, y1 = np.rint(magnification * np.asarray(self.get_window_extent().extents)).astype(int)
        size = max(1, x1 - x0), max(1, y1 - y0)
        image = Image.fromarray(np.asarray(self.get_array())).resize(size, Image.Resampling.BICUBIC)
        return np.array(image.convert("RGBA")), x0 / magnification, y0 / magnification, None


def _show(page: Axes, pixels: np.ndarray, x: float, y: float, w: float, h: float) -> None:
    picture = _Picture(page, extent=(x, x + w, y + h, y), interpolation="none", origin="upper")
    picture.set_data(pixels)
    page.add_image(picture)


def _pixels(image: np.ndarray, longest: int) -> np.ndarray:
    """Return float [3, h, w] as uint8 [h, w, 3], clipped to [0, 1], its longer side at most `longest`."""
    finite = np.nan_to_num(np.asarray(image, dtype=np.float32), nan=0.5, posinf=1, neginf=0)
    tile = Image.fromarray(np.rint(255 * finite.clip(0, 1)).astype(np.uint8).transpose(1, 2, 0).copy())
    tile.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return np.asarray(tile)


@_house_style
def contact_sheet(
    images: np.ndarray,
    labels: Sequence[str],
    *,
    captions: Sequence[str] | None,
    groups: Sequence[int | None] | None,
    title: str,
    columns: int | None,
) -> Figure:
    """Draw all images, in the order given, row by row, each with its label and caption below.

    `images` is float [n, 3, h, w], clipped to [0, 1] (NaN gray). `groups` holds cluster numbers (None or
    negative: in no cluster), drawn as frames in the heatmap's colours. `columns` is the number of images in a
    row; None chooses.

    Raises FeatmapError if there is no image, or a list has another length than the images.
    """
    n = len(images)
    if n == 0 or np.shape(images)[1:2] != (3,) or np.ndim(images) != 4:
        raise FeatmapError(f"A contact sheet needs n > 0 images [n, 3, h, w], not {np.shape(images)}.")
    for name, given in (("labels", labels), ("captions", captions), ("groups", groups)):
        if given is not None and len(given) != n:
            raise FeatmapError(f"A contact sheet of {n} images needs as many {name}, not {len(given)}.")
    across = min(n, max(1, columns or int(np.ceil(np.sqrt(1.5 * n)))))
    down, side = -(-n // across), float(np.clip(7 / across, 0.9, 1.6))
    tiles = np.stack([_pixels(image, int(1.5 * _DPI * side)) for image in images])
    h, w = tiles.shape[1:3]
    inch = max(h, w) / side  # in pixels of the mosaic
    frame, under = max(1, round(0.035 * inch)), 0.22 if captions is None else 0.34
    rise, pitch = h + 2 * frame + round(under * inch), w + 2 * frame + round(0.07 * inch)
    cells = np.full((down * across, rise, pitch, 3), 255, np.uint8)
    numbers = _numbers([] if groups is None else groups)
    if numbers:
        colours = np.array([_colour(c) for c in numbers])[:, None, None]
        cells[:n, : h + 2 * frame, : w + 2 * frame] = np.rint(255 * colours)
    cells[:n, frame : frame + h, frame : frame + w] = tiles
    mosaic = cells.reshape(down, across, rise, pitch, 3).swapaxes(1, 2).reshape(down * rise, across * pitch, 3)
    wide, tall = across * pitch / inch, down * rise / inch
    width = max(wide + 0.2, 3.4)
    key = sorted(set(numbers), key=lambda c: (c is None, c))
    a_row = int((width - 1.1) / 0.42)
    lines = -(-len(key) // a_row)
    page, top = _page(Figure(), width, 0.2 * lines + tall + 0.12, title)
    for i, c in enumerate(key):
        _swatch(
            page,
            0.78 + 0.42 * (i % a_row),
            top + 0.2 * (i // a_row),
            _colour(c),
            "none" if c is None else str(c),
        )
    _write(page, 0.14, top + 0.06, "cluster" if key else "", 8, ha="left", va="center")
    top, left = top + 0.2 * lines + 0.04, (width - wide + 0.07) / 2
    _show(page, mosaic, left, top, wide, tall)
    (size, names), (small, notes) = _fit(labels, side, 8), _fit(captions or [""] * n, side, 7)
    for i in range(n):
        x, y = (
            left + (i % across * pitch + frame + w / 2) / inch,
            top + (i // across * rise + h + 2 * frame) / inch,
        )
        _write(page, x, y + 0.03, names[i], size)
        _write(page, x, y + 0.16, notes[i], small, color=_FAINT)
    return page.figure


@_house_style
def pair_sheet(pairs: Sequence[PairRow], title: str) -> Figure:
    """Draw pairs of images as cards in the order given, row by row: two images, their names, their text.

    Raises FeatmapError if there is no pair.
    """
    if not pairs:
        raise FeatmapError("A sheet of pairs needs at least one pair.")
    across = min(len(pairs), 4)
    side, pitch = 1.2, 2.78
    texts = [_wrap(pair.text, 2.48, 7.5) for pair in pairs]
    size, names = _fit([label for p in pairs for label in (p.left_label, p.right_label)], side, 8)
    rise = side + 0.4 + 0.15 * max(text.count("\n") + 1 for text in texts)
    page, top = _page(Figure(), across * pitch + 0.1, -(-len(pairs) // across) * rise, title)
    for i, pair in enumerate(pairs):
        x, y = 0.2 + i % across * pitch, top + i // across * rise
        for k, image in enumerate((pair.left_image, pair.right_image)):
            _show(page, _pixels(image, 2 * _DPI), x + k * (side + 0.08), y, side, side)
            _write(page, x + k * (side + 0.08) + side / 2, y + side + 0.04, names[2 * i + k], size)
        _write(page, x + 1.24, y + side + 0.2, texts[i], 7.5, color=_FAINT)
    return page.figure


@_house_style
def save(
    figure: Figure, path_without_suffix: str | Path, formats: Sequence[str] = ("png", "svg"), dpi: int = _DPI
) -> list[Path]:
    """Write a figure to `path_without_suffix` + "." + format, close it, return the paths.

    Each file appears whole or not at all; the same figure gives the same bytes. A PNG has at most 5000 pixels a
    side: a larger figure is written at fewer dots per inch. Raises FeatmapError if a format is not png or svg.
    """
    if unknown := set(formats) - set(_OPTIONS):
        raise FeatmapError(f"Figures are saved as png and svg, not as {', '.join(sorted(unknown))}.")
    base, paths = Path(path_without_suffix), []
    base.parent.mkdir(parents=True, exist_ok=True)
    for suffix in formats:
        part = base.with_name(f".{base.name}.{os.getpid()}.part.{suffix}")
        paths.append(base.with_name(f"{base.name}.{suffix}"))
        options: dict[str, Any] = {"dpi": min(dpi, _LARGEST / max(figure.get_size_inches()))}
        try:
            figure.savefig(part, **options, **_OPTIONS[suffix])
            part.replace(paths[-1])
        finally:
            part.unlink(missing_ok=True)
    plt.close(figure)
    return paths
