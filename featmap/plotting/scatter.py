"""Figures of a map's trial: S against what it is held to, scores along the path, recovery curves. Measures nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from featmap.errors import FeatmapError
from featmap.plotting.style import FAINT, GRAY, colour, fit, house_style, page_of, wrap, write

HIGH = 2.6


@dataclass(frozen=True, eq=False)
class Cloud:
    """One similarity against another over the same pairs (values of equal length), their names, a line below.

    `equal` where the two have one scale, so that the line of equality is drawn.
    """

    x: np.ndarray
    y: np.ndarray
    across: str
    up: str
    note: str
    equal: bool = True


@dataclass(frozen=True)
class Step:
    """A score with its interval at one layer (None: undefined), and the same with random weights."""

    layer: str
    value: float | None
    low: float | None = None
    high: float | None = None
    random: float | None = None


def _place(figure: Figure, x: float, top: float, wide: float, w: float = HIGH) -> plt.Axes:
    tall = figure.get_figheight()
    axes = figure.add_axes((x / wide, 1 - (top + HIGH) / tall, w / wide, HIGH / tall))
    axes.tick_params(labelsize=8, width=0.6, length=3)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


@house_style
def agreements(clouds: Sequence[Cloud], steps: Sequence[Step], title: str) -> Figure:
    """Draw densities of pairs for each cloud, and the scores along the path where there are any.

    The density is of pairs, on a logarithmic scale; a thin line marks equality. Raises FeatmapError if there is
    nothing to draw.
    """
    if not clouds and not steps:
        raise FeatmapError("nothing to draw: no pairs and no scores")
    panels, pitch, figure = len(clouds) + bool(steps), HIGH + 0.95, Figure()
    wide = 0.75 + pitch * panels
    _, top = page_of(figure, wide, HIGH + 1.35, title)
    page = figure.axes[0]
    for k, cloud in enumerate(clouds):
        x = 0.75 + pitch * k
        axes = _place(figure, x, top + 0.1, wide)
        known = np.isfinite(cloud.x) & np.isfinite(cloud.y)
        if known.any():
            axes.hexbin(
                cloud.x[known], cloud.y[known], gridsize=45, norm=LogNorm(0.2), cmap="Blues", mincnt=1, rasterized=True
            )
        if cloud.equal:
            axes.axline((0, 0), slope=1, color=GRAY, linewidth=0.8)
        axes.set_xlabel(cloud.across, fontsize=8.5, parse_math=False)
        axes.set_ylabel(cloud.up, fontsize=8.5, parse_math=False)
        write(page, x + HIGH / 2, top + HIGH + 0.62, wrap(cloud.note, HIGH + 0.5, 8), 8, color=FAINT)
    if steps:
        x = 0.75 + pitch * len(clouds)
        axes, at = _place(figure, x, top + 0.1, wide), np.arange(len(steps))
        values = np.array([np.nan if s.value is None else s.value for s in steps])
        reach = [
            [np.nan if s.value is None or e is None else abs(s.value - e) for s, e in zip(steps, ends, strict=True)]
            for ends in ([s.low for s in steps], [s.high for s in steps])
        ]
        axes.errorbar(at, values, yerr=reach, fmt="o-", color=colour(0), markersize=4, elinewidth=1.2)
        null = [np.nan if s.random is None else s.random for s in steps]
        axes.plot(at, null, "s--", color=colour(1), markersize=3.5, linewidth=0.9)
        for level in (0, 1):
            axes.axhline(level, color=GRAY, linewidth=0.8)
        size, names = fit([s.layer for s in steps], 0.85, 8)
        axes.set_xticks(at, names, rotation=90, fontsize=size, parse_math=False)
        axes.set_ylabel("processing path", fontsize=8.5)
        write(page, x + HIGH / 2, top - 0.08, "blue: trained, orange: random weights", 7.5, color=FAINT)
    return figure


Curve = tuple[str, Sequence[float], Sequence[float]]


@house_style
def curves(panels: Sequence[tuple[str, str, Sequence[Curve]]], title: str, across: int = 4) -> Figure:
    """Draw curves against noise, `across` panels side by side; raises FeatmapError if there is none.

    A panel is its title, the name of its ordinate, and its curves: name, noise, values.
    """
    if not panels:
        raise FeatmapError("nothing to draw: no curves")
    across = min(across, len(panels))
    down, pitch, figure = -(-len(panels) // across), HIGH + 0.85, Figure()
    wide = 0.7 + pitch * across
    names = list(dict.fromkeys(name for _, _, lines in panels for name, _, _ in lines))
    page, top = page_of(figure, wide, down * (HIGH + 0.95) + 0.35, title)
    for k, name in enumerate(names):
        x = 0.7 + k * (wide - 1.0) / len(names)
        page.plot([x, x + 0.25], [top + 0.12] * 2, color=colour(k), linewidth=2)
        write(page, x + 0.32, top + 0.05, name, 8.5, ha="left")
    for k, (head, up, lines) in enumerate(panels):
        x, y = 0.7 + pitch * (k % across), top + 0.6 + (HIGH + 0.95) * (k // across)
        axes = _place(figure, x, y, wide)
        for name, across_values, values in lines:
            n = names.index(name)
            axes.plot(across_values, values, "o-", color=colour(n), markersize=3, linewidth=1.3, alpha=0.85)
        axes.set(ylim=(-0.08, 1.06))
        axes.set_ylabel(up, fontsize=8.5)
        axes.set_xlabel("noise (share of the squared weights)", fontsize=8.5)
        write(page, x + HIGH / 2, y - 0.22, head, 9.5)
    return figure
