"""Figures of what lies between layers, from finished numbers: the rectangular heatmap, the table of layers.

Measures nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from featmap.errors import FeatmapError
from featmap.plotting.style import (
    FAINT,
    GRAY,
    SHADES,
    cell_of,
    colour,
    fit,
    house_style,
    list_notes,
    name_step,
    number_stretches,
    page_of,
    width_of,
    wrap,
    write,
)

BAND, EDGE = 0.19, 0.15


@house_style
def rectangle(
    values: pd.DataFrame,
    *,
    row_clusters: Sequence[int | None] | None,
    column_clusters: Sequence[int | None] | None,
    row_name: str,
    column_name: str,
    title: str,
    cbar_label: str,
    centre: float = 0.0,
) -> Figure:
    """Draw a table of rows by columns in the order given, with bands of cluster colours.

    `values` is [n, m]; its labels are written on the axes as they are, every one of up to 64. Cells missing or
    not finite are undefined: drawn gray, counted in a note. Clusters are numbers in the order of rows and
    columns (None or negative: in none; None for all: no band). `row_name` and `column_name` name the axes.
    Colours reach equally far on both sides of `centre`, to what 99 % of the cells keep to; arrows on the colour
    bar tell of cells beyond. Raises FeatmapError if `values` is empty or clusters have another length.
    """
    n, m = values.shape
    if n == 0 or m == 0:
        raise FeatmapError(f"a heatmap needs rows and columns; the table is {values.shape}")
    numbers = [_numbers(row_clusters, n, "rows"), _numbers(column_clusters, m, "columns")]
    table = values.astype("Float64").to_numpy(dtype=float, na_value=np.nan)
    table = np.where(np.isfinite(table), table, np.nan)
    finite = table[np.isfinite(table)]
    reach = float(np.percentile(np.append(np.abs(finite - centre), 0), 99)) or 1.0
    notes: list[tuple[Any, str]] = [(GRAY, f"undefined ({np.isnan(table).sum():,} cells)")] * bool(finite.size < n * m)
    notes += [(GRAY, "in no cluster")] * any(-1 in found for found in numbers)
    notes += [(None, "clusters are each layer's own")] * bool(numbers[0] and numbers[1])

    figure = Figure()
    cells = cell_of(n), cell_of(m)
    tall, wide = n * cells[0], m * cells[1]
    ticks = [_tick_texts(list(axis), cell) for axis, cell in zip((values.index, values.columns), cells, strict=True)]
    room = [max(map(width_of, lines)) * size + 0.08 for _, size, lines in ticks]
    left, above = (EDGE + (BAND + 0.03 if found else 0) for found in numbers)
    names = wrap(row_name, max(tall, 2.0), 9.5), wrap(column_name, max(wide, 2.0), 9.5)
    lengths = [max(map(width_of, name.splitlines())) * 9.5 for name in names]
    thick = [0.17 * len(name.splitlines()) for name in names]
    bar_at = left + max(wide + room[0] + thick[0] + 0.15, lengths[1]) + 0.25
    bar = float(np.clip(0.45 * tall, 2, 4))
    label = wrap(cbar_label, bar, 9)
    right = max([0.75 + 0.16 * len(label.splitlines()), *(width_of(note) * 8 + 0.4 for _, note in notes)])
    below = above + max(tall + room[1] + thick[1] + 0.15, lengths[0] + 0.1, bar + 0.4 + 0.2 * len(notes))
    page, top = page_of(figure, bar_at + right, below, title)
    width, height = figure.get_size_inches()
    y = top + above

    def place(x: float, y: float, w: float, h: float) -> plt.Axes:
        return figure.add_axes((x / width, 1 - (y + h) / height, w / width, h / height))

    mesh = place(left, y, wide, tall)
    drawn = mesh.pcolormesh(
        np.ma.masked_invalid(table), cmap=SHADES, vmin=centre - reach, vmax=centre + reach, rasterized=True
    )
    mesh.set(xlim=(0, m), ylim=(n, 0), facecolor=GRAY)
    mesh.yaxis.tick_right()
    for axis, (at, size, lines), angle in zip((mesh.yaxis, mesh.xaxis), ticks, (0, 90), strict=True):
        axis.set_ticks(at + 0.5, lines, rotation=angle, fontsize=size, parse_math=False)
    mesh.tick_params(length=2, width=0.6, pad=2)
    mesh.spines[:].set_visible(False)
    at = left + wide + room[0] + 0.12
    middle = y + (tall / 2 if lengths[0] <= tall else lengths[0] / 2)
    write(page, at, middle, names[0], 9.5, rotation=90, ha="left", va="center")
    middle = left + (wide / 2 if lengths[1] <= wide else lengths[1] / 2)
    write(page, middle, y + tall + room[1] + 0.1, names[1], 9.5)
    if numbers[0]:
        _band(place(left - 0.03 - BAND, y, BAND, tall), numbers[0], tall, upright=True)
        write(page, left - BAND, y + tall + 0.06, "cluster", 8, rotation=90)  # clear of the first column's name
    if numbers[1]:
        _band(place(left, y - 0.03 - BAND, wide, BAND), numbers[1], wide, upright=False)
        write(page, left + wide + 0.06, y - 0.03 - BAND / 2, "cluster", 8, ha="left", va="center")
    beyond = int(np.any(finite < centre - reach)) + 2 * int(np.any(finite > centre + reach))
    scale = place(bar_at, y, 0.16, bar)
    figure.colorbar(drawn, cax=scale, extend=("neither", "min", "max", "both")[beyond])
    scale.tick_params(labelsize=8, width=0.6, length=3)
    scale.set_ylabel(label, fontsize=9, labelpad=6, parse_math=False)
    list_notes(page, bar_at, y + bar + 0.3, notes)
    return figure


def _numbers(clusters: Sequence[int | None] | None, n: int, what: str) -> list[int]:
    if clusters is None:
        return []
    if len(clusters) != n:
        raise FeatmapError(f"a heatmap of {n} {what} needs as many clusters, not {len(clusters)}")
    return [-1 if c is None or pd.isna(c) else max(-1, int(c)) for c in clusters]


def _tick_texts(names: list[Any], cell: float) -> tuple[np.ndarray, float, list[str]]:
    """Return which of an axis' names are written, at what size, and as what."""
    step = name_step(len(names))
    size, lines = fit([str(name) for name in names[::step]], 2.2, min(9.0, 58 * cell * step))
    return np.arange(0, len(names), step), size, lines


def _band(axes: plt.Axes, numbers: list[int], inches: float, upright: bool) -> None:
    """Fill a band with the colours of clusters and number its stretches."""
    n, start = len(numbers), 0
    axes.set(xlim=(0, 1) if upright else (0, n), ylim=(n, 0) if upright else (0, 1))
    axes.set_axis_off()
    for number, stretch in groupby(numbers):
        length = len(list(stretch))
        corner, sides = ((0, start), (1, length)) if upright else ((start, 0), (length, 1))
        axes.add_patch(plt.Rectangle(corner, *sides, facecolor=colour(number), linewidth=0))
        start += length
    number_stretches(axes, numbers, inches, upright)


@house_style
def layer_grid(best: pd.DataFrame, floor: pd.DataFrame, *, title: str, row_name: str, column_name: str) -> Figure:
    """Draw a square table of layers by layers: a number in [-1, 1] in each cell, its floor in brackets below.

    Undefined cells are gray; the diagonal, where a layer meets itself, is left white. Raises FeatmapError if
    the tables differ in their labels.
    """
    names = [str(name) for name in best.index]
    if not names or any(list(axis) != names for axis in (best.columns, floor.index, floor.columns)):
        raise FeatmapError("a grid of layers needs the same layers in rows and columns of both tables")
    n, cell, shades, figure = len(names), 0.72, plt.colormaps[SHADES], Figure()
    size, lines = fit(names, 2.2, 9)
    room = max(map(width_of, lines)) * size + 0.1
    row_text, column_text = (wrap(text, max(n * cell, 2.2), 9) for text in (row_name, column_name))
    rows_long, columns_long = (max(map(width_of, t.splitlines())) * 9 for t in (row_text, column_text))
    left = EDGE + 0.16 * len(row_text.splitlines()) + 0.1 + room
    needed = left + max(n * cell, columns_long) + EDGE
    width = max(needed, 4.2)
    edge, left = EDGE + (width - needed) / 2, left + (width - needed) / 2
    under = 0.16 * len(column_text.splitlines())
    below = max(n * cell + room + under + 0.3, rows_long + 0.3)
    page, top = page_of(figure, width, below, title)
    for i, j in np.ndindex(n, n):
        x, y = left + j * cell, top + 0.05 + i * cell
        # 0 is added because a rounded -0.001 would be written -0.00
        value, least = (None if pd.isna(t.iloc[i, j]) else round(float(t.iloc[i, j]), 2) + 0 for t in (best, floor))
        shade = "white" if i == j else GRAY if value is None else shades(0.5 + value / 2)[:3]
        page.add_patch(plt.Rectangle((x, y), cell, cell, facecolor=shade, edgecolor="white", linewidth=1))
        if i != j:
            text = "undefined" if value is None else f"{value:.2f}"
            write(page, x + cell / 2, y + cell / 2 - 0.06, text, 10 if value is not None else 7, on=shade, va="center")
            if least is not None:
                write(page, x + cell / 2, y + cell / 2 + 0.14, f"({least:.2f})", 8, on=shade, va="center")
    for i, line in enumerate(lines):
        write(page, left - 0.06, top + 0.05 + (i + 0.5) * cell, line, size, ha="right", va="center")
        write(page, left + (i + 0.5) * cell, top + 0.11 + n * cell, line, size, rotation=90)
    middle = top + 0.05 + (n * cell / 2 if rows_long <= n * cell else rows_long / 2)
    write(page, edge, middle, row_text, 9, rotation=90, ha="left", va="center", color=FAINT)
    middle = left + (n * cell / 2 if columns_long <= n * cell else columns_long / 2)
    write(page, middle, top + 0.15 + n * cell + room, column_text, 9, color=FAINT)
    return figure
