"""The heatmap of a similarity, from finished numbers. Measures nothing."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from featmap.errors import FeatmapError
from featmap.plotting.style import (
    GRAY,
    NAMED,
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


@house_style
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
    span = reach(np.abs(own - middle), np.abs(table[~eye & np.isfinite(table)] - middle))
    numbers = [] if clusters is None else [-1 if pd.isna(c) else max(-1, int(c)) for c in clusters.reindex(names)]
    grid = _cluster_grid(table, linkage, [colour(c) for c in numbers] or None, middle - span, middle + span)
    alike = own.size > 0 and np.ptp(own) < 1e-6 and own[0] > middle + span
    notes: list[tuple[Any, str]] = [(plt.colormaps[SHADES](1.0), f"diagonal: {own[0]:.3g}")] if alike else []
    notes += [(GRAY, f"undefined ({np.isnan(table).sum():,} cells)")] * bool(np.isnan(table).any())
    notes += [(GRAY, "in no cluster")] * (-1 in numbers)
    order = list(grid.dendrogram_row.reordered_ind) if n > 1 else [0]
    _arrange(grid, [names[i] for i in order], title, cbar_label, notes)
    side = grid.ax_heatmap.get_position().height * grid.figure.get_figheight()
    for axes, upright in ((grid.ax_row_colors, True), (grid.ax_col_colors, False)):
        number_stretches(axes, [numbers[i] for i in order if numbers], side, upright)
    return grid.figure


def reach(own: np.ndarray, other: np.ndarray) -> float:
    """Return how far from its centre the heatmap's colours reach, given how far the cells (diagonal, others) lie."""
    most = np.percentile(np.append(other, 0), 99)
    top = np.median(own) if own.size else most
    return float(max(top, most) if top <= 2.5 * most or most == 0 else most) or 1.0


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
                **{"cmap": SHADES, "vmin": low, "vmax": high, "rasterized": True},
                cbar_kws={"extend": ("neither", "min", "max", "both")[beyond]},
                tree_kws={"linewidths": 0.9 if n <= NAMED else 0.5},
            )
    finally:
        sys.setrecursionlimit(limit)
        for number in set(plt.get_fignums()) - known:
            plt.close(number)


def _arrange(grid: Any, names: list[str], title: str, cbar_label: str, notes: list[tuple[Any, str]]) -> None:
    """Place all parts by inches: trees and bands, the mesh, its names, then the colour bar and the notes."""
    cell = cell_of(len(names))
    mesh, side = grid.ax_heatmap, min(24.0, cell * len(names))
    step = name_step(len(names))
    size, lines = fit(names[::step], 2.2, min(9.0, 58 * cell * step))
    room = max(map(width_of, lines)) * size + 0.08
    tree, band, edge = float(np.clip(0.11 * side, 0.6, 1.0)), 0.19, 0.15
    before = tree + (0 if grid.ax_row_colors is None else band + 0.03)
    left, bar_at, bar = edge + before, edge + before + side + room + 0.42, float(np.clip(0.45 * side, 2, 4))
    width = bar_at + max([1.3, *(width_of(note) * 8 + 0.4 for _, note in notes)])
    page, top = page_of(grid.figure, width, before + side + room + 0.4, title)
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
    mesh.set_facecolor(GRAY)
    grid.ax_cbar.tick_params(labelsize=8, width=0.6, length=3)
    grid.ax_cbar.set_ylabel(wrap(cbar_label, bar, 9), fontsize=9, labelpad=6, parse_math=False)
    if grid.ax_row_colors is not None:
        write(page, left - 0.03 - band / 2, top + side + 0.06, "cluster", 8, rotation=90)
    list_notes(page, bar_at, top + bar + 0.3, notes)
