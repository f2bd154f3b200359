"""Heatmaps of one layer's features, of two layers, and of layers by layers.

Everything is drawn from finished numbers; nothing is measured here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import leaves_list

from featmap.errors import FeatmapError
from featmap.plotting.bands import BAND, GAP, Axis, draw_band, list_notes, number_groups
from featmap.plotting.style import (
    COLOUR_MAP,
    FAINT,
    GRAY,
    MAX_LABELS,
    add_page,
    cell_size,
    colour,
    draw_notes,
    draw_text,
    fit_text,
    house_style,
    label_runs,
    label_step,
    text_width,
    wrap_text,
)

MAX_CELLS = 2500
"""Most rows of a square heatmap; of more features, neighbours in its order share a row: there is no room for each."""
SAME_COLOUR = 1e-6
"""Range of the values on a diagonal below which one note stands for all of them."""
EDGE = 0.15
"""Margin of a figure, in inches."""


@house_style
def heatmap(
    values: pd.DataFrame,
    *,
    linkage: np.ndarray,
    clusters: pd.Series | None,
    title: str,
    cbar_label: str,
    centre: float = 0.0,
    is_symmetric: bool = False,
) -> Figure:
    """Draw a square similarity matrix with dendrograms and bands of cluster colours.

    The colours extend equally far on both sides of `centre`, see `colour_reach`; arrows on the colour bar stand for
    cells beyond it. Where the diagonal lies beyond, a note states its value. Of more than `MAX_CELLS` features, cells
    are means over blocks of features that lie side by side, and there are no dendrograms.

    Parameters
    ----------
    values : pandas.DataFrame
        Similarities, `n x n`: rows are maximising images, columns are responses, with the same labels in the same order
        and without dead features. Missing and non-finite cells are undefined: gray, and counted in a note.
    linkage : numpy.ndarray
        SciPy's linkage of the features in that order, `(n - 1) x 4`; it sets the order of rows and columns.
    clusters : pandas.Series or None
        Cluster number by label; features without a number, or with a negative one, are gray. None: no bands.
    title : str
        Title of the figure.
    cbar_label : str
        Label of the colour bar.
    centre : float, default 0.0
        Value drawn in white; for co-activation 0 means "as on the null image".
    is_symmetric : bool, default False
        Whether rows are features like columns, as in S, and no maximising images.

    Returns
    -------
    matplotlib.figure.Figure
        The heatmap.

    Raises
    ------
    FeatmapError
        If `values` is empty or not square, or `linkage` has another shape.
    """
    names, n = list(values.index), len(values)
    if n == 0 or names != list(values.columns):
        raise FeatmapError(
            f"a heatmap needs one or more features, the same labels on rows and columns; the table is {values.shape}"
        )
    if n > 1 and np.shape(linkage) != (n - 1, 4):
        raise FeatmapError(f"the linkage of {n} features must have the shape {(n - 1, 4)}, not {np.shape(linkage)}")
    numbers = number_groups(None if clusters is None else clusters.reindex(names).to_list(), n, "features")
    table = values.to_numpy(dtype=float, na_value=np.nan)
    notes: list[tuple[Any, str]] = []
    step = -(-n // MAX_CELLS)
    if step > 1:
        leaves = leaves_list(linkage)
        table, firsts = block_means(table, leaves, step), leaves[::step]
        names, numbers = [names[k] for k in firsts], [numbers[k] for k in firsts if numbers]
        notes.append((None, f"cells: means over {step} × {step} pairs"))
    table, eye = np.where(np.isfinite(table), table, np.nan), np.eye(len(table), dtype=bool)
    own, middle = table[eye & np.isfinite(table) & (step == 1)], float(centre)
    span = colour_reach(np.abs(own - middle), np.abs(table[~eye & np.isfinite(table)] - middle))
    shown = linkage if step == 1 and n > 1 else None
    grid = _cluster_grid(table, shown, [colour(c) for c in numbers] or None, middle - span, middle + span)
    diagonal_beyond = own.size > 0 and np.ptp(own) < SAME_COLOUR and own[0] > middle + span
    if diagonal_beyond:
        notes.append((plt.colormaps[COLOUR_MAP](1.0), f"diagonal: {own[0]:.3g}"))
    notes += [(GRAY, f"undefined ({np.isnan(table).sum():,} cells)")] * bool(np.isnan(table).any())
    notes += [(GRAY, "in no cluster")] * (-1 in numbers)
    order = list(range(len(names))) if shown is None else list(grid.dendrogram_row.reordered_ind)
    _arrange(grid, [names[i] for i in order], title, cbar_label, notes)
    if is_symmetric:
        grid.ax_heatmap.set(xlabel="feature", ylabel="feature")
    side = grid.ax_heatmap.get_position().height * grid.figure.get_figheight()
    for axes, upright in ((grid.ax_row_colors, True), (grid.ax_col_colors, False)):
        label_runs(axes, [numbers[i] for i in order if numbers], side, upright)
    return grid.figure


def block_means(table: np.ndarray, order: np.ndarray, step: int) -> np.ndarray:
    """Average a square table over blocks of neighbours in an order.

    Parameters
    ----------
    table : numpy.ndarray
        n x n; what is not finite is undefined.
    order : numpy.ndarray
        The n positions in their order.
    step : int
        Side of a block; the last ones may be shorter.

    Returns
    -------
    numpy.ndarray
        b x b, with b = ceil(n / step): means over the defined cells of each block, NaN where none is.
    """
    starts = np.arange(0, len(order), step)
    sums, counts = np.empty((2, len(starts), len(starts)))
    for k, first in enumerate(starts):
        rows = table[order[first : first + step]][:, order]
        finite = np.isfinite(rows)
        sums[k] = np.add.reduceat(np.where(finite, rows, 0.0).sum(axis=0), starts)
        counts[k] = np.add.reduceat(finite.sum(axis=0), starts)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def colour_reach(own: np.ndarray, other: np.ndarray) -> float:
    """Compute how far from its centre value a heatmap's colours extend.

    They extend to the diagonal (1 for co-activation), unless 99 % of the other cells stay within 40 % of that: then to
    these cells only, so that they can be told apart.

    Parameters
    ----------
    own : numpy.ndarray
        Distances of the diagonal's cells from the centre value, from 0.
    other : numpy.ndarray
        Distances of all other cells.

    Returns
    -------
    float
        Distance at which the colours end; 1 where all cells lie at the centre.
    """
    most = np.percentile(np.append(other, 0), 99)
    top = np.median(own) if own.size else most
    return float(max(top, most) if top <= 2.5 * most or most == 0 else most) or 1.0


@contextmanager
def _no_forced_draws() -> Iterator[None]:
    """Keep seaborn from drawing the figure after each part to see whether tick labels overlap: there are none yet."""
    draw = getattr(sns.matrix, "_draw_figure", None)
    if draw is None:
        yield
        return
    sns.matrix._draw_figure = lambda figure: None
    try:
        yield
    finally:
        sns.matrix._draw_figure = draw


def _cluster_grid(
    table: np.ndarray, linkage: np.ndarray | None, band: list[Any] | None, low: float, high: float
) -> Any:
    """Draw seaborn's ClusterGrid without text, and take its figure out of pyplot's list of open figures."""
    n = len(table)
    tree = None if linkage is None else np.asarray(linkage, dtype=float)
    for_both_axes = {"linkage": tree, "cluster": tree is not None, "colors": band}
    limit, open_figures = sys.getrecursionlimit(), set(plt.get_fignums())
    # SciPy draws a dendrogram by recursion, and the tree may be one long chain as deep as there are features.
    sys.setrecursionlimit(max(limit, 1000 + 4 * n))
    try:
        with plt.ioff(), _no_forced_draws():
            return sns.clustermap(
                pd.DataFrame(table),
                mask=np.isnan(table),
                **{f"{axis}_{key}": value for axis in ("row", "col") for key, value in for_both_axes.items()},
                **dict.fromkeys(("xticklabels", "yticklabels"), False),
                **{"cmap": COLOUR_MAP, "vmin": low, "vmax": high, "rasterized": True},
                cbar_kws={"extend": _arrows(table, low, high)},
                tree_kws={"linewidths": 0.9 if n <= MAX_LABELS else 0.5},
            )
    finally:
        sys.setrecursionlimit(limit)
        for number in set(plt.get_fignums()) - open_figures:
            plt.close(number)


def _arrange(grid: Any, names: list[str], title: str, cbar_label: str, notes: list[tuple[Any, str]]) -> None:
    """Place all parts in inches: dendrograms and bands, the cells with their labels, the colour bar and the notes."""
    cell = cell_size(len(names))
    mesh, side = grid.ax_heatmap, min(24.0, cell * len(names))
    step = label_step(len(names))
    size, lines = fit_text(names[::step], 2.2, min(9.0, 58 * cell * step))
    room = max(map(text_width, lines)) * size + 0.08
    tree = float(np.clip(0.11 * side, 0.6, 1.0)) if grid.dendrogram_row is not None else 0.0
    before = tree + (0 if grid.ax_row_colors is None else BAND + 0.03)
    left, bar_at, bar = EDGE + before, EDGE + before + side + room + 0.42, float(np.clip(0.45 * side, 2, 4))
    width = bar_at + max([1.3, *(text_width(note) * 8 + 0.4 for _, note in notes)])
    page, top = add_page(grid.figure, width, before + side + room + 0.4, title)
    top, height = top + before, grid.figure.get_figheight()
    for axes, x, y, w, h in (
        (mesh, left, top, side, side),
        (grid.ax_row_colors, left - 0.03 - BAND, top, BAND, side),
        (grid.ax_col_colors, left, top - 0.03 - BAND, side, BAND),
        (grid.ax_row_dendrogram, EDGE, top, tree, side),
        (grid.ax_col_dendrogram, left, top - before, side, tree),
        (grid.ax_cbar, bar_at, top, 0.16, bar),
    ):
        if axes is not None:
            axes.set_position((x / width, 1 - (y + h) / height, w / width, h / height))
            axes.set_visible(w > 0 and h > 0)
    for axis, angle in ((mesh.xaxis, 90), (mesh.yaxis, 0)):
        axis.set_ticks(np.arange(0, len(names), step) + 0.5, lines, rotation=angle, fontsize=size, parse_math=False)
    mesh.tick_params(length=2, width=0.6, pad=2)
    mesh.set_xlabel("response of feature", fontsize=9.5, labelpad=5)
    mesh.set_ylabel("maximising image of feature", fontsize=9.5, labelpad=5)
    mesh.set_facecolor(GRAY)
    grid.ax_cbar.tick_params(labelsize=8, width=0.6, length=3)
    grid.ax_cbar.set_ylabel(wrap_text(cbar_label, bar, 9), fontsize=9, labelpad=6, parse_math=False)
    if grid.ax_row_colors is not None:
        draw_text(page, left - 0.03 - BAND / 2, top + side + 0.06, "cluster", 8, rotation=90)
    draw_notes(page, bar_at, top + bar + 0.3, notes)


def _arrows(table: np.ndarray, low: float, high: float) -> str:
    """Name the ends of the colour bar that get an arrow, because cells lie beyond them."""
    return ("neither", "min", "max", "both")[int(np.any(table < low)) + 2 * int(np.any(table > high))]


def category_colours(count: int) -> list[tuple[float, float, float, float]]:
    """Choose the colours of categories, the same in every figure.

    Parameters
    ----------
    count : int
        Number of categories, 8 at most.

    Returns
    -------
    list of tuple of float
        RGBA in [0, 1], one for each.
    """
    return [plt.colormaps["Set2"](k) for k in range(count)]


@house_style
def cross_heatmap(
    values: pd.DataFrame,
    *,
    rows: Axis,
    columns: Axis,
    title: str,
    cbar_label: str,
    centre: float = 0.0,
    categories: Sequence[str] | None = None,
) -> Figure:
    """Draw a rectangular matrix in the given order, with bands of its groups.

    The colours extend equally far on both sides of `centre`, to the distance within which 99 % of the cells lie; arrows
    on the colour bar stand for cells beyond it.

    Parameters
    ----------
    values : pandas.DataFrame
        Values, `n x m`. Its labels are written on the axes, all of them for up to 64. Missing and non-finite cells are
        undefined: gray, and counted in a note.
    rows, columns : Axis
        Names of the axes, and clusters and communities of what stands on them.
    title : str
        Title of the figure.
    cbar_label : str
        Label of the colour bar.
    centre : float, default 0.0
        Value drawn in white.
    categories : sequence of str, optional
        Names of categories that the values are numbers of, from 0: each has a colour of its own, and a list of those
        that occur, under the label, takes the place of the colour bar.

    Returns
    -------
    matplotlib.figure.Figure
        The heatmap.

    Raises
    ------
    FeatmapError
        If `values` is empty, or a list of clusters has another length than its axis.
    """
    n, m = values.shape
    if n == 0 or m == 0:
        raise FeatmapError(f"a heatmap needs rows and columns; the table is {values.shape}")
    bands = rows.bands(n, "rows"), columns.bands(m, "columns")
    table = values.to_numpy(dtype=float, na_value=np.nan)
    table = np.where(np.isfinite(table), table, np.nan)
    finite = table[np.isfinite(table)]
    span = float(np.percentile(np.append(np.abs(finite - centre), 0), 99)) or 1.0
    notes: list[tuple[Any, str]] = [(GRAY, f"undefined ({np.isnan(table).sum():,} cells)")] * bool(finite.size < n * m)
    notes += list_notes(*bands)
    colours: dict[str, Any] = {"cmap": COLOUR_MAP, "vmin": centre - span, "vmax": centre + span}
    if categories is not None:
        shades = category_colours(len(categories))
        counts = [int((table == k).sum()) for k in range(len(categories))]
        found = [(shades[k], f"{name} ({counts[k]:,})") for k, name in enumerate(categories) if counts[k]]
        notes = [(None, cbar_label), *found, *notes]
        colours = {"cmap": ListedColormap(shades), "vmin": -0.5, "vmax": len(categories) - 0.5}

    # Sizes of all parts in inches, from left to right and from top to bottom.
    figure = Figure()
    cells = cell_size(n), cell_size(m)
    tall, wide = n * cells[0], m * cells[1]
    ticks = [_tick_labels(list(axis), cell) for axis, cell in zip((values.index, values.columns), cells, strict=True)]
    room = [max(map(text_width, lines)) * size + 0.08 for _, size, lines in ticks]
    left, above = (EDGE + (BAND + GAP) * len(groups) for groups in bands)
    names = wrap_text(rows.name, max(tall, 2.0), 9.5), wrap_text(columns.name, max(wide, 2.0), 9.5)
    lengths = [max(map(text_width, name.splitlines())) * 9.5 for name in names]
    thick = [0.17 * len(name.splitlines()) for name in names]
    bar_at = left + max(wide + room[0] + thick[0] + 0.15, lengths[1]) + 0.25
    bar = float(np.clip(0.45 * tall, 2, 4)) if categories is None else 0.0
    label = wrap_text(cbar_label, max(bar, 2.0), 9)
    right = max([0.75 + 0.16 * len(label.splitlines()), *(text_width(note) * 8 + 0.4 for _, note in notes)])
    words = max((text_width(word) * 8 + 0.12 for word in list(bands[0])[1:]), default=0.0)
    below = above + max(tall + max(room[1] + thick[1] + 0.15, words), lengths[0] + 0.1, bar + 0.4 + 0.2 * len(notes))
    page, top = add_page(figure, bar_at + right, below, title)
    width, height = figure.get_size_inches()
    y = top + above

    def place(x: float, y: float, w: float, h: float) -> plt.Axes:
        return figure.add_axes((x / width, 1 - (y + h) / height, w / width, h / height))

    axes = place(left, y, wide, tall)
    mesh = axes.pcolormesh(np.ma.masked_invalid(table), rasterized=True, **colours)
    axes.set(xlim=(0, m), ylim=(n, 0), facecolor=GRAY)
    axes.yaxis.tick_right()
    for axis, (at, size, lines), angle in zip((axes.yaxis, axes.xaxis), ticks, (0, 90), strict=True):
        axis.set_ticks(at + 0.5, lines, rotation=angle, fontsize=size, parse_math=False)
    axes.tick_params(length=2, width=0.6, pad=2)
    axes.spines[:].set_visible(False)
    at = left + wide + room[0] + 0.12
    middle = y + (tall / 2 if lengths[0] <= tall else lengths[0] / 2)
    draw_text(page, at, middle, names[0], 9.5, rotation=90, ha="left", va="center")
    middle = left + (wide / 2 if lengths[1] <= wide else lengths[1] / 2)
    draw_text(page, middle, y + tall + room[1] + 0.1, names[1], 9.5)
    for k, (word, numbers) in enumerate(bands[0].items()):
        x = left - (k + 1) * (BAND + GAP)
        draw_band(place(x, y, BAND, tall), numbers, tall, upright=True)
        # Beside the band's middle the word would touch the first column's label.
        draw_text(page, x + GAP, y + tall + 0.06, word, 8, rotation=90)
    for k, (word, numbers) in enumerate(bands[1].items()):
        x, upper = left + wide + 0.06, y - (k + 1) * (BAND + GAP)
        draw_band(place(left, upper, wide, BAND), numbers, wide, upright=False)
        draw_text(page, x, upper + BAND / 2, word, 8, ha="left", va="center")
    if categories is not None:
        draw_notes(page, bar_at, y, notes)
        return figure
    bar_axes = place(bar_at, y, 0.16, bar)
    figure.colorbar(mesh, cax=bar_axes, extend=_arrows(finite, centre - span, centre + span))
    bar_axes.tick_params(labelsize=8, width=0.6, length=3)
    bar_axes.set_ylabel(label, fontsize=9, labelpad=6, parse_math=False)
    draw_notes(page, bar_at, y + bar + 0.3, notes)
    return figure


def _tick_labels(names: list[Any], cell: float) -> tuple[np.ndarray, float, list[str]]:
    """Choose the labelled positions of an axis, the font size and the labels."""
    step = label_step(len(names))
    size, lines = fit_text([str(name) for name in names[::step]], 2.2, min(9.0, 58 * cell * step))
    return np.arange(0, len(names), step), size, lines


@house_style
def layer_grid(values: pd.DataFrame, floor: pd.DataFrame, *, title: str, row_name: str, column_name: str) -> Figure:
    """Draw a matrix of layers by layers, with values and floors in its cells.

    Undefined cells are gray; the diagonal, where a layer meets itself, stays white.

    Parameters
    ----------
    values : pandas.DataFrame
        Values in [-1, 1], with the same layers as rows and columns.
    floor : pandas.DataFrame
        The values expected by chance, with the same labels; written in brackets below the values.
    title : str
        Title of the figure.
    row_name, column_name : str
        Names of the axes.

    Returns
    -------
    matplotlib.figure.Figure
        The matrix.

    Raises
    ------
    FeatmapError
        If there is no layer, or the tables differ in their labels.
    """
    names = [str(name) for name in values.index]
    if not names or any(list(axis) != names for axis in (values.columns, floor.index, floor.columns)):
        raise FeatmapError("a grid of layers needs the same layers in rows and columns of both tables")
    n, cell, shades, figure = len(names), 0.72, plt.colormaps[COLOUR_MAP], Figure()
    size, lines = fit_text(names, 2.2, 9)
    room = max(map(text_width, lines)) * size + 0.1
    row_text, column_text = (wrap_text(text, max(n * cell, 2.2), 9) for text in (row_name, column_name))
    rows_long, columns_long = (max(map(text_width, t.splitlines())) * 9 for t in (row_text, column_text))
    left = EDGE + 0.16 * len(row_text.splitlines()) + 0.1 + room
    needed = left + max(n * cell, columns_long) + EDGE
    width = max(needed, 4.2)
    edge, left = EDGE + (width - needed) / 2, left + (width - needed) / 2
    under = 0.16 * len(column_text.splitlines())
    below = max(n * cell + room + under + 0.3, rows_long + 0.3)
    page, top = add_page(figure, width, below, title)
    for i, j in np.ndindex(n, n):
        x, y = left + j * cell, top + 0.05 + i * cell
        # 0 is added because a rounded -0.001 would be written -0.00.
        value, chance = (None if pd.isna(t.iloc[i, j]) else round(float(t.iloc[i, j]), 2) + 0 for t in (values, floor))
        shade = "white" if i == j else GRAY if value is None else shades(0.5 + value / 2)[:3]
        page.add_patch(plt.Rectangle((x, y), cell, cell, facecolor=shade, edgecolor="white", linewidth=1))
        if i != j:
            style: dict[str, Any] = {"background": shade, "va": "center"}
            text, points = ("undefined", 7) if value is None else (f"{value:.2f}", 10)
            draw_text(page, x + cell / 2, y + cell / 2 - 0.06, text, points, **style)
            if chance is not None:
                draw_text(page, x + cell / 2, y + cell / 2 + 0.14, f"({chance:.2f})", 8, **style)
    for i, line in enumerate(lines):
        draw_text(page, left - 0.06, top + 0.05 + (i + 0.5) * cell, line, size, ha="right", va="center")
        draw_text(page, left + (i + 0.5) * cell, top + 0.11 + n * cell, line, size, rotation=90)
    middle = top + 0.05 + (n * cell / 2 if rows_long <= n * cell else rows_long / 2)
    draw_text(page, edge, middle, row_text, 9, rotation=90, ha="left", va="center", color=FAINT)
    middle = left + (n * cell / 2 if columns_long <= n * cell else columns_long / 2)
    draw_text(page, middle, top + 0.15 + n * cell + room, column_text, 9, color=FAINT)
    return figure
