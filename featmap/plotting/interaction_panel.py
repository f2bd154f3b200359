"""The panel of one question about units together: images, maps, the descent, every figure. Measures nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib import colors as mcolors
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from featmap.errors import FeatmapError
from featmap.plotting.style import DPI, FAINT, GRAY, colour, fit, house_style, page_of, pixels, show, wrap, write

LOW, HIGH = -1.0, 1.5
SIDE, GAP, EDGE = 1.75, 0.2, 0.25
DARK, PALE = "#3b3b3b", "#ececec"


@dataclass(frozen=True)
class Strip:
    """One figure over the seeds: its values, and the floor, ceiling and interval where it has them."""

    name: str
    values: tuple[float, ...]
    floor: float | None = None
    ceiling: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class Panel:
    """What a panel shows.

    Parameters
    ----------
    title, sentence : the heading, and the conclusion below everything
    units : the units' names
    images : float [3, h, w] in the order shown, with a label and a caption each
    maps : the units' activation maps on the joint image, [y, x] each
    owner : [y, x], place of the unit that fires there alone; -1 nowhere, -2 where several do
    curves : steps x units, each unit's activation along the joint descent
    levels : the activation that each unit's solo image reached
    strips : the figures
    """

    title: str
    units: tuple[str, ...]
    images: tuple[tuple[np.ndarray, str, str], ...]
    maps: tuple[np.ndarray, ...]
    owner: np.ndarray
    curves: np.ndarray
    levels: tuple[float, ...]
    strips: tuple[Strip, ...]
    sentence: str
    notes: tuple[str, ...] = field(default=())


def contrast(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return images of any range within [0, 1], all by the same factor about 0.5, so that 99 % of pixels fit."""
    finite = [np.nan_to_num(np.asarray(i, dtype=float), nan=0.5) - 0.5 for i in images]
    reach = max(0.5, float(np.percentile(np.abs(np.concatenate([f.ravel() for f in finite])), 99)))
    return [0.5 + f * (0.5 / reach) for f in finite]


@house_style
def panel(given: Panel) -> Figure:
    """Draw a panel. Raises FeatmapError if it has no units or no images."""
    n = len(given.units)
    if not n or not given.images:
        raise FeatmapError("a panel needs units and images")
    across = max(len(given.images), n + 3, 5)
    figure, width = Figure(), 2 * EDGE + across * SIDE + (across - 1) * GAP
    below = wrap(" ".join(given.sentence.split()), width - 2 * EDGE, 10).splitlines()
    notes = [line for note in given.notes for line in wrap(note, width - 2 * EDGE, 8).splitlines()]
    strips = 0.45 + 0.235 * len(given.strips)
    page, top = page_of(
        figure, width, 2 * (SIDE + 0.62) + strips + 0.35 + 0.2 * len(below) + 0.16 * len(notes), given.title
    )
    _images(page, given, top)
    y = top + SIDE + 0.55
    at = _maps(page, given, y)
    _curves(_axes(figure, at + 0.75, y, width - EDGE - at - 0.75, SIDE), given)
    y += SIDE + 0.6
    _strips(page, figure, given, y, width)
    y += strips + 0.2
    for line in below:
        write(page, EDGE, y, line, 10, ha="left")
        y += 0.2
    for line in notes:
        write(page, EDGE, y + 0.04, line, 8, ha="left", color=FAINT)
        y += 0.16
    return figure


def _axes(figure: Figure, x: float, y: float, w: float, h: float) -> plt.Axes:
    """Return an Axes by its upper left corner in inches."""
    wide, high = figure.get_size_inches()
    return figure.add_axes((x / wide, 1 - (y + h) / high, w / wide, h / high))


def _images(page: plt.Axes, given: Panel, top: float) -> None:
    size, labels = fit([label for _, label, _ in given.images], SIDE - 0.05, 9)
    small, captions = fit([caption for *_, caption in given.images], SIDE, 7.5)
    for k, image in enumerate(contrast([image for image, *_ in given.images])):
        x = EDGE + k * (SIDE + GAP)
        show(page, pixels(image, int(2 * DPI * SIDE)), x, top, SIDE, SIDE)
        edge = colour(k) if k < len(given.units) else mcolors.to_rgb(DARK)
        page.add_patch(plt.Rectangle((x, top), SIDE, SIDE, fill=False, edgecolor=edge, linewidth=1.8))
        write(page, x + SIDE / 2, top + SIDE + 0.06, labels[k], size)
        write(page, x + SIDE / 2, top + SIDE + 0.24, captions[k], small, color=FAINT)


def _shade(grid: np.ndarray, rgb: tuple[float, ...]) -> np.ndarray:
    """Return a map from white (0 and below, or not finite) to a colour (its maximum) as float [3, y, x]."""
    values = np.nan_to_num(np.asarray(grid, dtype=float), nan=0, posinf=0, neginf=0)
    high = values.max()
    share = np.clip(values / high, 0, 1) if high > 0 else np.zeros_like(values)
    return np.stack([1 - share * (1 - c) for c in rgb])


def _maps(page: plt.Axes, given: Panel, y: float) -> float:
    """Draw the maps and the territories; return where they end."""
    n = len(given.units)
    size, names = fit([f"where {u} fires" for u in given.units], SIDE - 0.05, 8.5)
    tiles = [(_shade(grid, colour(k)), name) for k, (grid, name) in enumerate(zip(given.maps, names, strict=True))]
    shades = {k: colour(k) for k in range(n)} | {-1: mcolors.to_rgb(PALE), -2: mcolors.to_rgb(DARK)}
    land = np.stack([[shades[int(v)] for v in row] for row in given.owner]).transpose(2, 0, 1)
    tiles.append((land, "territory (dark: shared, pale: none)"))
    _, (last,) = fit([tiles[-1][1]], SIDE, size)
    for k, (tile, name) in enumerate(tiles):
        x = EDGE + k * (SIDE + GAP)
        fine = np.kron(tile, np.ones((1, *[-(-int(2 * DPI * SIDE) // s) for s in tile.shape[1:]])))
        show(page, np.rint(255 * fine).astype(np.uint8).transpose(1, 2, 0), x, y, SIDE, SIDE)
        page.add_patch(plt.Rectangle((x, y), SIDE, SIDE, fill=False, edgecolor=GRAY, linewidth=0.8))
        write(page, x + SIDE / 2, y + SIDE + 0.06, last if k == len(tiles) - 1 else name, min(size, 8))
    return EDGE + len(tiles) * (SIDE + GAP) - GAP


def spread(places: Sequence[float] | np.ndarray, gap: float, top: float) -> list[float]:
    """Return sorted places moved apart to at least `gap`, none above `top` if there is room."""
    found = list(places)
    for k in range(1, len(found)):
        found[k] = max(found[k], found[k - 1] + gap)
    for k in range(len(found) - 1, -1, -1):
        found[k] = min(found[k], top if k == len(found) - 1 else found[k + 1] - gap)
    return found


def _curves(axes: plt.Axes, given: Panel) -> None:
    """Draw each unit's activation along the joint descent, as a share of what its solo image reached."""
    levels = [v if np.isfinite(v) and v > 0 else 1.0 for v in given.levels]
    curves, last = given.curves / np.array(levels), len(given.curves) - 1
    for k in range(len(given.units)):
        axes.plot(curves[:, k], color=colour(k), linewidth=1.6)
    axes.axhline(1, color=GRAY, linewidth=0.8, zorder=0)
    axes.axhline(0, color=GRAY, linewidth=0.8, zorder=0)
    size, names = fit(given.units, 1.2, 7.5)
    inches = axes.get_window_extent().width / axes.figure.dpi
    axes.set_xlim(0, max(1, last) * inches / max(inches - 1.3, 0.3))
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    shown = sorted(np.flatnonzero(np.isfinite(curves[-1])).tolist(), key=curves[-1].__getitem__)
    for k, y in zip(shown, spread(curves[-1][shown], 0.13 * (high - low) / SIDE, high), strict=True):
        style: dict[str, Any] = {"ha": "left", "va": "center", "color": colour(k), "clip_on": False}
        write(axes, last + 0.03 * max(1, last), y, names[k], size, **style)
    axes.set_xticks([0, last])
    axes.set_xlabel("step of the joint descent", fontsize=8.5)
    axes.set_ylabel("activation / solo maximum", fontsize=8.5)
    axes.tick_params(labelsize=8, width=0.6, length=3)
    axes.spines[["top", "right"]].set_visible(False)


def _strips(page: plt.Axes, figure: Figure, given: Panel, y: float, width: float) -> None:
    """Draw a line a figure: every seed's value, the mean, floor, ceiling and interval, and the numbers beside it."""
    left, right, h = 2.75, 2.3, 0.235
    inside = width - EDGE - left - right
    axes = _axes(figure, EDGE + left, y, inside, h * len(given.strips))
    axes.set(xlim=(LOW, HIGH), ylim=(len(given.strips) - 0.5, -0.5), yticks=[], facecolor="none")
    size, names = fit([strip.name for strip in given.strips], left - 0.15, 8.5)
    axes.axvline(0, color=GRAY, linewidth=0.8)
    axes.axvline(1, color=GRAY, linewidth=0.8)
    for k, strip in enumerate(given.strips):
        values = np.array([v for v in strip.values if np.isfinite(v)])
        middle = y + h * (k + 0.5)
        write(page, EDGE + left - 0.12, middle, names[k], size, ha="right", va="center")
        if strip.floor is not None and np.isfinite(strip.floor):
            axes.plot([max(LOW, 0), min(strip.floor, HIGH)], [k, k], color=GRAY, linewidth=7, solid_capstyle="butt")
        if strip.ceiling is not None and np.isfinite(strip.ceiling):
            axes.plot([strip.ceiling] * 2, [k - 0.36, k + 0.36], color=DARK, linewidth=1.4, linestyle=":")
        if strip.interval is not None:
            axes.plot(np.clip(strip.interval, LOW, HIGH), [k, k], color=colour(0), linewidth=1.6)
        clipped = np.clip(values, LOW + 0.02, HIGH - 0.02)
        axes.plot(clipped, np.full(len(values), k), "o", color=colour(0), markersize=3.6, alpha=0.55, mew=0)
        if len(values):
            axes.plot([np.clip(values.mean(), LOW + 0.02, HIGH - 0.02)], [k], "|", color="black", markersize=9, mew=1.6)
        text = "undefined" if not len(values) else f"{values.mean():.3g}"
        if len(values) > 1:
            text += f"  ({values.min():.3g} to {values.max():.3g})"
        write(page, width - right + 0.15, middle, text, 8.5, ha="left", va="center")
    axes.tick_params(labelsize=8, width=0.6, length=3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    legend: dict[str, Any] = {"ha": "left", "color": FAINT}
    text = (
        "dots: seeds; black: mean; line: 95 % interval; gray bar: floor; dotted: ceiling; beyond the axis: at its end"
    )
    write(page, EDGE + left, y + h * len(given.strips) + 0.24, text, 7.5, **legend)
    if any(len(strip.values) > 1 for strip in given.strips):
        below = y + h * len(given.strips) + 0.04
        write(page, width - right + 0.15, below, "mean (lowest to highest seed)", 7.5, **legend)
