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

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import colors as mcolors
from matplotlib import pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image, ImageFont

from featmap.errors import FeatmapError

# Okabe and Ito's colours (no black), then always the farthest next one in OKLab under normal, protan, deutan and
# tritan sight (Machado et al. 2009, doi:10.1109/TVCG.2009.113), in an order in which neighbours differ.
_COLOURS = (
    "0072b2e69f00009e73d55e00cc79a756b4e9f0e442a52d6996b4874b1e969678ff695a0078ffb4004bc3692d2d"
    "785ae1a55a4b87d2ff966987f0c3785a4b96ff78d25a2d6978a55a872d4b96e1a57878d2f0783ca5f0e1a5784b"
)
_FAINT, _GRAY, _SHADES = "#555555", "#c9c9c9", "RdBu_r"
_DPI, _LARGEST, _NAMED = 150, 5000, 64  # pixels an inch; a PNG's longer side; features with a name each on the heatmap
_STYLE = {"font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"], "text.hinting": "none"}
_STYLE |= {"svg.fonttype": "none", "svg.hashsalt": "featmap"}
_FONT = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), 100)
_house_style = plt.style.context(["default", _STYLE])  # draw alike whatever the user's matplotlibrc says
_OPTIONS: dict[str, dict[str, Any]] = {  # no dates; zlib's Z_RLE (3): half the seconds for pictures, and no larger
    "png": {"metadata": {"Software": None}, "pil_kwargs": {"compress_level": 1, "compress_type": 3}},
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
    """Return the colours of clusters 0 .. k - 1 as RGB in [0, 1]: the same in every figure; 30, then again."""
    return [_colour(c) for c in range(k)]


def _colour(cluster: int) -> tuple[float, float, float]:
    return mcolors.to_rgb(f"#{_COLOURS[6 * cluster % len(_COLOURS) :][:6]}" if cluster >= 0 else _GRAY)


def _plain(text: object) -> str:
    """Return a text as one line of printable characters: XML forbids some of the others in an SVG."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(str(text).split()))


def _inches(text: str) -> float:
    """Return the width of a text set in one point."""
    return _FONT.getlength(text) / 7200


def _fit(texts: Iterable[str], inches: float, largest: float) -> tuple[float, list[str]]:
    """Return the font size at which all texts fit into a width, and the texts: at the smallest without middles."""
    lines = [_plain(text) for text in texts]
    widths = [_inches(line) for line in lines]
    size = float(np.clip(inches / max([1e-6, *widths]), 5.5, largest))
    halves = [int(len(t) * inches / max(w * size, 1e-6)) // 2 for t, w in zip(lines, widths, strict=True)]
    pairs = zip(lines, halves, strict=True)
    return size, [t if len(t) <= 2 * k + 1 else f"{t[: k - 1]}…{t[len(t) - k :]}" for t, k in pairs]


def _wrap(text: str, inches: float, size: float) -> str:
    """Break a text into lines of about a width; its own line breaks are kept."""
    lines: list[str] = []
    for line in map(_plain, text.splitlines()):
        room = int(len(line) * inches / max(_inches(line) * size, inches)) + 1
        lines += textwrap.wrap(line, room, break_on_hyphens=False)
    return "\n".join(lines)


def _write(axes: plt.Axes, x: float, y: float, text: str, size: float, on: Any = "white", **style: Any) -> None:
    """Write a text as it is (`$` is a character, not the start of a formula), black or white for a background."""
    style.setdefault("color", "black" if np.dot(mcolors.to_rgb(on), (0.299, 0.587, 0.114)) > 0.55 else "white")
    axes.text(x, y, text, parse_math=False, fontsize=size, **{"ha": "center", "va": "top"} | style)


def _page(figure: Figure, width: float, below: float, title: str) -> tuple[plt.Axes, float]:
    """Size a figure for a title and what is below it; return an Axes in inches behind it all, the title's end."""
    size = max(11.0, 0.65 * width)
    heading = _wrap(title, width - 0.4, size)
    top = 0.2 + size / 55 * len(heading.splitlines())
    FigureCanvasAgg(figure).figure.set_size_inches(width, top + below)
    page = figure.add_axes((0, 0, 1, 1), zorder=-1)
    page.set(xlim=(0, width), ylim=(top + below, 0), autoscale_on=False)
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

    `values` is [n, n], rows maximising images, columns responses, with equal labels in equal order, without dead
    features; cells missing or not finite are undefined: drawn gray, counted in a note. `linkage` is scipy's
    [n - 1, 4] of the features in that order and orders rows and columns. `clusters` holds a number by label; a
    feature without one, or with one < 0, is gray. `centre` is drawn white (None: 0, for co-activation "as the null
    image"). Colours reach equally far on both sides, to the diagonal (1 for co-activation); if 99 % of the other
    cells keep to 40 % of that, to these only, and a note names the diagonal. Arrows on the colour bar: cells beyond.
    Raises FeatmapError if `values` is empty or not square, or `linkage` does not belong to it.
    """
    names, n = list(values.index), len(values)
    if n == 0 or names != list(values.columns):
        raise FeatmapError(f"a heatmap needs features, and rows named as its columns; the table is {values.shape}")
    if n > 1 and np.shape(linkage) != (n - 1, 4):
        raise FeatmapError(f"a linkage of {n} features has the shape {(n - 1, 4)}, not {np.shape(linkage)}")
    table = values.astype("Float64").to_numpy(dtype=float, na_value=np.nan)
    table, eye = np.where(np.isfinite(table), table, np.nan), np.eye(n, dtype=bool)
    own, middle = table[eye & np.isfinite(table)], float(centre or 0)
    reach = _reach(np.abs(own - middle), np.abs(table[~eye & np.isfinite(table)] - middle))
    numbers = [] if clusters is None else [-1 if pd.isna(c) else max(-1, int(c)) for c in clusters.reindex(names)]
    grid = _cluster_grid(table, linkage, [_colour(c) for c in numbers] or None, middle - reach, middle + reach)
    alike = own.size > 0 and np.ptp(own) < 1e-6 and own[0] > middle + reach
    notes: list[tuple[Any, str]] = [(plt.colormaps[_SHADES](1.0), f"diagonal: {own[0]:.3g}")] if alike else []
    notes += [(_GRAY, f"undefined ({np.isnan(table).sum():,} cells)")] * bool(np.isnan(table).any())
    notes += [(_GRAY, "in no cluster")] * (-1 in numbers)
    order = list(grid.dendrogram_row.reordered_ind) if n > 1 else [0]
    _arrange(grid, [names[i] for i in order], title, cbar_label, notes)
    _number_bands(grid, [numbers[i] for i in order if numbers])
    return grid.figure


def _reach(own: np.ndarray, other: np.ndarray) -> float:
    """Return how far from its centre the heatmap's colours reach, given how far the cells (diagonal, others) lie."""
    reach = np.percentile(np.append(other, 0), 99)
    top = np.median(own) if own.size else reach
    return float(max(top, reach) if top <= 2.5 * reach or reach == 0 else reach) or 1.0


def _cluster_grid(table: np.ndarray, linkage: np.ndarray, band: list[Any] | None, low: float, high: float) -> Any:
    """Return seaborn's ClusterGrid without any text in it, its figure taken out of pyplot's hands."""
    n, beyond = len(table), int(np.any(table < low)) + 2 * int(np.any(table > high))
    twice = {"linkage": np.asarray(linkage, dtype=float) if n > 1 else None, "cluster": n > 1, "colors": band}
    limit, known = sys.getrecursionlimit(), set(plt.get_fignums())
    sys.setrecursionlimit(max(limit, 1000 + 4 * n))  # scipy walks a tree by recursion, be it one long chain
    try:
        with plt.ioff():
            return sns.clustermap(
                pd.DataFrame(table),
                mask=np.isnan(table),
                **{f"{axis}_{key}": value for axis in ("row", "col") for key, value in twice.items()},
                **dict.fromkeys(("xticklabels", "yticklabels"), False),
                **{"cmap": _SHADES, "vmin": low, "vmax": high, "rasterized": True},
                cbar_kws={"extend": ("neither", "min", "max", "both")[beyond]},
                tree_kws={"linewidths": 0.9 if n <= _NAMED else 0.5},
            )
    finally:
        sys.setrecursionlimit(limit)
        for number in set(plt.get_fignums()) - known:
            plt.close(number)


def _arrange(grid: Any, names: list[str], title: str, cbar_label: str, notes: list[tuple[Any, str]]) -> None:
    """Place all parts by inches: trees and bands, the mesh, its names, then the colour bar and the notes."""
    cell = max(2, round(_DPI * np.clip(0.16, 3.6 / len(names), 9.6 / len(names)))) / _DPI  # whole pixels: all alike
    mesh, side = grid.ax_heatmap, min(24.0, cell * len(names))
    step = 1 if len(names) <= _NAMED else -(-len(names) // 32)
    size, lines = _fit(names[::step], 2.2, min(9.0, 58 * cell * step))
    room = max(map(_inches, lines)) * size + 0.08
    tree, band, edge = float(np.clip(0.11 * side, 0.6, 1.0)), 0.19, 0.15
    before = tree + (0 if grid.ax_row_colors is None else band + 0.03)
    left, bar_at, bar = edge + before, edge + before + side + room + 0.42, float(np.clip(0.45 * side, 2, 4))
    width = bar_at + max([1.3, *(_inches(note) * 8 + 0.4 for _, note in notes)])
    page, top = _page(grid.figure, width, before + side + room + 0.4, title)
    top, height = top + before, grid.figure.get_figheight()
    for axes, x, y, w, h in (
        (mesh, left, top, side, side),
        (grid.ax_row_colors, left - 0.03 - band, top, band, side),
        (grid.ax_col_colors, left, top - 0.03 - band, side, band),
        (grid.ax_row_dendrogram, edge, top, tree, side),
        (grid.ax_col_dendrogram, left, top - before, side, tree),
        (grid.ax_cbar, bar_at, top, 0.16, bar),
    ):
        if axes is not None:
            axes.set_position((x / width, 1 - (y + h) / height, w / width, h / height))
    for axis, angle in ((mesh.xaxis, 90), (mesh.yaxis, 0)):
        axis.set_ticks(np.arange(0, len(names), step) + 0.5, lines, rotation=angle, fontsize=size, parse_math=False)
    mesh.tick_params(length=2, width=0.6, pad=2)
    mesh.set_xlabel("response of feature", fontsize=9.5, labelpad=5)
    mesh.set_ylabel("maximising image of feature", fontsize=9.5, labelpad=5)
    mesh.set_facecolor(_GRAY)
    grid.ax_cbar.tick_params(labelsize=8, width=0.6, length=3)
    grid.ax_cbar.set_ylabel(_wrap(cbar_label, bar, 9), fontsize=9, labelpad=6, parse_math=False)
    if grid.ax_row_colors is not None:
        _write(page, left - 0.03 - band / 2, top + side + 0.06, "cluster", 8, rotation=90)
    for i, (colour, note) in enumerate(notes):
        page.add_patch(plt.Rectangle((bar_at, top + bar + 0.3 + 0.2 * i), 0.16, 0.12, facecolor=colour))
        _write(page, bar_at + 0.21, top + bar + 0.36 + 0.2 * i, note, 8, ha="left", va="center")


def _number_bands(grid: Any, numbers: list[int]) -> None:
    """Write each cluster's number on those of its stretches of the two bands that are long enough."""
    side, end = grid.ax_heatmap.get_position().height * grid.figure.get_figheight(), 0.0
    for number, stretch in groupby(numbers):
        end += (length := len(list(stretch)))
        if number >= 0 and length * side / len(numbers) >= 0.07 * len(str(number)) + 0.03:
            at, style = end - length / 2, {"on": _colour(number), "va": "center_baseline"}
            _write(grid.ax_row_colors, 0.5, at, str(number), 7.5, **style)
            _write(grid.ax_col_colors, at, 0.5, str(number), 7.5, **style)


class _Picture(AxesImage):
    """An image scaled by Pillow in a PNG (matplotlib takes seconds for a large sheet), not at all in an SVG."""

    def make_image(self, renderer: Any, magnification: float = 1.0, unsampled: bool = False) -> Any:
        if unsampled:
            return super().make_image(renderer, magnification, unsampled)
        x0, y0, x1, y1 = np.rint(np.multiply(self.get_window_extent().extents, magnification)).astype(int)
        image = Image.fromarray(np.asarray(self.get_array()))
        image = image.resize((max(1, x1 - x0), max(1, y1 - y0)), Image.Resampling.BICUBIC).convert("RGBA")
        return np.array(image)[::-1], x0 / magnification, y0 / magnification, None


def _show(page: plt.Axes, pixels: np.ndarray, x: float, y: float, w: float, h: float) -> None:
    picture = _Picture(page, extent=(x, x + w, y + h, y), interpolation="none", origin="upper")
    picture.set_data(pixels)
    page.add_image(picture)


def _pixels(image: np.ndarray, longest: int) -> np.ndarray:
    """Return float [3, h, w] as uint8 [h, w, 3], clipped to [0, 1], its longer side at most `longest`, not tiny."""
    finite = np.nan_to_num(np.asarray(image, dtype=np.float32), nan=0.5, posinf=1, neginf=0).clip(0, 1)
    zoom = max(1, longest // (3 * max(finite.shape)))  # a thumbnail's frame would be as coarse as its pixels
    tile = Image.fromarray(np.rint(255 * finite.transpose(1, 2, 0)).astype(np.uint8).repeat(zoom, 0).repeat(zoom, 1))
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

    `images` is float [n, 3, h, w], clipped to [0, 1] (NaN gray). `groups` holds cluster numbers (None or negative: in
    no cluster): frames in the heatmap's colours, numbered where a cluster begins. `columns` None chooses. Raises
    FeatmapError if there is no image, or a list has another length than the images.
    """
    n = len(images)
    if n == 0 or np.shape(images)[1:2] != (3,) or np.ndim(images) != 4:
        raise FeatmapError(f"a contact sheet needs n > 0 images [n, 3, h, w], not {np.shape(images)}")
    for name, given in (("labels", labels), ("captions", captions), ("groups", groups)):
        if given is not None and len(given) != n:
            raise FeatmapError(f"a contact sheet of {n} images needs as many {name}, not {len(given)}")
    across = min(n, max(1, columns or int(np.ceil(np.sqrt(1.5 * n)))))
    down, side = -(-n // across), float(np.clip(7 / across, 0.78, 1.6))
    tiles = np.stack([_pixels(image, int(1.5 * _DPI * side)) for image in images])
    (h, w), inch = tiles.shape[1:3], max(tiles.shape[1:3]) / side  # in pixels of the mosaic
    frame, under = max(1, round(0.035 * inch)), 0.22 if captions is None else 0.34
    rise, pitch = h + 2 * frame + round(under * inch), w + 2 * frame + round(0.07 * inch)
    cells = np.full((down * across, rise, pitch, 3), 255, np.uint8)
    numbers = [] if groups is None else [-1 if g is None else max(-1, int(g)) for g in groups]
    if numbers:
        cells[:n, : h + 2 * frame, : w + 2 * frame] = np.multiply([[[_colour(c)]] for c in numbers], 255).round()
    cells[:n, frame : frame + h, frame : frame + w] = tiles
    mosaic = cells.reshape(down, across, rise, pitch, 3).swapaxes(1, 2).reshape(down * rise, across * pitch, 3)
    wide, tall, figure = across * pitch / inch, down * rise / inch, Figure()
    page, top = _page(figure, max(wide + 0.2, 3.4), tall + 0.12, title)
    top, left = top + 0.04, (max(wide + 0.2, 3.4) - wide + 0.07) / 2
    _show(page, mosaic, left, top, wide, tall)
    (size, names), (small, notes) = _fit(labels, side, 8), _fit(captions or [""] * n, side, 7)
    for i in range(n):
        x, y = left + i % across * pitch / inch, top + i // across * rise / inch  # of the frame's upper left corner
        middle, bottom = x + (frame + w / 2) / inch, y + (2 * frame + h) / inch
        _write(page, middle, bottom + 0.03, names[i], size)
        _write(page, middle, bottom + 0.16, notes[i], small, color=_FAINT)
        if numbers and (i == 0 or numbers[i] != numbers[i - 1]):
            text = "no cluster" if numbers[i] < 0 else f"cluster {numbers[i]}" if i == 0 else str(numbers[i])
            box = {"facecolor": _colour(numbers[i]), "edgecolor": "none", "pad": 2}
            _write(page, x + 0.04, y + 0.03, text, 7.5, on=_colour(numbers[i]), ha="left", bbox=box)
    return figure


@_house_style
def pair_sheet(pairs: Sequence[PairRow], title: str) -> Figure:
    """Draw pairs of images as cards in the order given, row by row; raises FeatmapError if there is none."""
    if not pairs:
        raise FeatmapError("a sheet of pairs needs at least one pair")
    across, side, pitch, figure = min(len(pairs), 4), 1.2, 2.78, Figure()
    texts = [_wrap(pair.text, 2 * side, 7.5) for pair in pairs]
    size, names = _fit([label for p in pairs for label in (p.left_label, p.right_label)], side, 8)
    rise = side + 0.55 + 0.15 * max(text.count("\n") for text in texts)
    page, top = _page(figure, across * pitch + 0.1, -(-len(pairs) // across) * rise, title)
    for i, pair in enumerate(pairs):
        x, y = 0.2 + i % across * pitch, top + i // across * rise
        for k, image in enumerate((pair.left_image, pair.right_image)):
            _show(page, _pixels(image, 2 * _DPI), x + 1.28 * k, y, side, side)
            _write(page, x + 1.28 * k + side / 2, y + side + 0.04, names[2 * i + k], size)
        _write(page, x + 1.24, y + side + 0.2, texts[i], 7.5, color=_FAINT)
    return figure


@_house_style
def save(
    figure: Figure, path_without_suffix: str | Path, formats: Sequence[str] = ("png", "svg"), dpi: int = _DPI
) -> list[Path]:
    """Write a figure to `path_without_suffix` + "." + each format (png, svg), close it, return the paths.

    Files appear whole or not at all, the same bytes every time. A PNG's side has at most 5000 pixels, whatever `dpi`.
    """
    base, dots = Path(path_without_suffix), min(dpi, _LARGEST / max(figure.get_size_inches()))
    paths = [base.with_name(f"{base.name}.{suffix}") for suffix in formats]
    base.parent.mkdir(parents=True, exist_ok=True)
    for path, suffix in zip(paths, formats, strict=True):
        part = base.with_name(f".{base.name}.{os.getpid()}.part.{suffix}")
        try:
            figure.savefig(part, dpi=dots, **_OPTIONS[suffix])
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    plt.close(figure)
    return paths
