"""The panel of one group of units maximised alone and together: images, activation maps, descent and measures.

Everything is drawn from finished images and numbers; nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib import colors as mcolors
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from featmap.errors import FeatmapError
from featmap.plotting.style import (
    DPI,
    FAINT,
    GRAY,
    add_page,
    colour,
    draw_image,
    draw_picture,
    draw_text,
    fit_square,
    fit_text,
    house_style,
    wrap_text,
)

LOW, HIGH = -1.0, 1.5
"""Ends of the axis of the measures; values beyond are drawn at its ends."""
SIDE, GAP, EDGE = 1.75, 0.2, 0.25
"""Side of a picture, distance of two pictures and margin of the figure, in inches."""
DARK, PALE = "#3b3b3b", "#ececec"
"""Colours of positions where several units fire, and where none does."""


@dataclass(frozen=True)
class Strip:
    """One measure's values over the seeds, drawn as a strip.

    Parameters
    ----------
    name : str
        Name of the measure.
    values : tuple of float
        One value for each seed; non-finite ones are left out.
    floor, ceiling : float, default None
        Values expected of the same unit twice, and of unrelated units.
    interval : tuple of float, default None
        Ends of the 95 % interval of the mean.
    """

    name: str
    values: tuple[float, ...]
    floor: float | None = None
    ceiling: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class Panel:
    """Content of a panel.

    Parameters
    ----------
    title : str
        Title of the panel.
    units : tuple of str
        Names of the U units.
    images : tuple of (numpy.ndarray, str, str)
        Images in the order shown, float, `C x H x W`, each with its label and caption; the first U are the units' solo
        images.
    maps : tuple of numpy.ndarray
        Activation map of each unit on the joint image, `y x x`.
    owner : numpy.ndarray
        Which unit alone fires at a position, `y x x`: its index, -1 for no unit, -2 for several.
    curves : numpy.ndarray
        Activation of each unit along the joint descent, `T x U`.
    levels : tuple of float
        Activation that each unit reaches on its solo image.
    strips : tuple of Strip
        Measures.
    sentence : str
        Conclusion, below everything.
    notes : tuple of str, default ()
        Small print below the conclusion.
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


def fit_range(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Bring images of any range into [0, 1] by one common factor, at most 1.

    Parameters
    ----------
    images : sequence of numpy.ndarray
        Images, of any shape; NaN becomes 0.5.

    Returns
    -------
    list of numpy.ndarray
        The images scaled about 0.5 by the same factor, so that 99 % of all values lie in [0, 1].
    """
    finite = [np.nan_to_num(np.asarray(i, dtype=float), nan=0.5) - 0.5 for i in images]
    reach = max(0.5, float(np.percentile(np.abs(np.concatenate([f.ravel() for f in finite])), 99)))
    return [0.5 + f * (0.5 / reach) for f in finite]


@house_style
def panel(content: Panel) -> Figure:
    """Draw a panel.

    Parameters
    ----------
    content : Panel
        What the panel shows.

    Returns
    -------
    matplotlib.figure.Figure
        The panel.

    Raises
    ------
    FeatmapError
        If it has no units or no images.
    """
    n = len(content.units)
    if not n or not content.images:
        raise FeatmapError("a panel needs units and images")
    across = max(len(content.images), n + 3, 5)
    figure, width = Figure(), 2 * EDGE + across * SIDE + (across - 1) * GAP
    below = wrap_text(" ".join(content.sentence.split()), width - 2 * EDGE, 10).splitlines()
    notes = [line for note in content.notes for line in wrap_text(note, width - 2 * EDGE, 8).splitlines()]
    strips = 0.45 + 0.235 * len(content.strips)
    page, top = add_page(
        figure, width, 2 * (SIDE + 0.62) + strips + 0.35 + 0.2 * len(below) + 0.16 * len(notes), content.title
    )
    _images(page, content, top)
    y = top + SIDE + 0.55
    at = _maps(page, content, y)
    _curves(_axes(figure, at + 0.75, y, width - EDGE - at - 0.75, SIDE), content)
    y += SIDE + 0.6
    _strips(page, figure, content, y, width)
    y += strips + 0.2
    for line in below:
        draw_text(page, EDGE, y, line, 10, ha="left")
        y += 0.2
    for line in notes:
        draw_text(page, EDGE, y + 0.04, line, 8, ha="left", color=FAINT)
        y += 0.16
    return figure


def _axes(figure: Figure, x: float, y: float, w: float, h: float) -> plt.Axes:
    """Add axes by their upper left corner in inches."""
    wide, high = figure.get_size_inches()
    return figure.add_axes((x / wide, 1 - (y + h) / high, w / wide, h / high))


def _images(page: plt.Axes, content: Panel, top: float) -> None:
    """Draw the images with their labels and captions; solo images have frames in their units' colours."""
    size, labels = fit_text([label for _, label, _ in content.images], SIDE - 0.05, 9)
    small, captions = fit_text([caption for *_, caption in content.images], SIDE, 7.5)
    for k, image in enumerate(fit_range([image for image, *_ in content.images])):
        x = EDGE + k * (SIDE + GAP)
        wide, tall = draw_image(page, image, x, top, SIDE, int(2 * DPI * SIDE))
        edge = colour(k) if k < len(content.units) else mcolors.to_rgb(DARK)
        corner = (x + (SIDE - wide) / 2, top + (SIDE - tall) / 2)
        page.add_patch(plt.Rectangle(corner, wide, tall, fill=False, edgecolor=edge, linewidth=1.8))
        draw_text(page, x + SIDE / 2, top + SIDE + 0.06, labels[k], size)
        draw_text(page, x + SIDE / 2, top + SIDE + 0.24, captions[k], small, color=FAINT)


def _shade(grid: np.ndarray, rgb: tuple[float, ...]) -> np.ndarray:
    """Colour a map from white (0 and below, or not finite) to a colour (its maximum): `3 x y x x`."""
    values = np.nan_to_num(np.asarray(grid, dtype=float), nan=0, posinf=0, neginf=0)
    high = values.max()
    share = np.clip(values / high, 0, 1) if high > 0 else np.zeros_like(values)
    return np.stack([1 - share * (1 - c) for c in rgb])


def _maps(page: plt.Axes, content: Panel, y: float) -> float:
    """Draw the activation maps and the territories; return where they end, in inches."""
    n = len(content.units)
    size, names = fit_text([f"where {u} fires" for u in content.units], SIDE - 0.05, 8.5)
    tiles = [(_shade(grid, colour(k)), name) for k, (grid, name) in enumerate(zip(content.maps, names, strict=True))]
    shades = {k: colour(k) for k in range(n)} | {-1: mcolors.to_rgb(PALE), -2: mcolors.to_rgb(DARK)}
    land = np.stack([[shades[int(v)] for v in row] for row in content.owner]).transpose(2, 0, 1)
    tiles.append((land, "territory (dark: shared, pale: none)"))
    _, (last,) = fit_text([tiles[-1][1]], SIDE, size)
    for k, (tile, name) in enumerate(tiles):
        x = EDGE + k * (SIDE + GAP)
        fine = np.kron(tile, np.ones((1, *[-(-int(2 * DPI * SIDE) // s) for s in tile.shape[1:]])))
        height, width = np.shape(content.images[0][0])[1:]
        wide, tall = fit_square(height, width, SIDE)  # a map covers its image
        corner = x + (SIDE - wide) / 2, y + (SIDE - tall) / 2
        draw_picture(page, np.rint(255 * fine).astype(np.uint8).transpose(1, 2, 0), *corner, wide, tall)
        page.add_patch(plt.Rectangle(corner, wide, tall, fill=False, edgecolor=GRAY, linewidth=0.8))
        draw_text(page, x + SIDE / 2, y + SIDE + 0.06, last if k == len(tiles) - 1 else name, min(size, 8))
    return EDGE + len(tiles) * (SIDE + GAP) - GAP


def spread_labels(places: Sequence[float] | np.ndarray, gap: float, top: float) -> list[float]:
    """Move the positions of labels apart so that the labels do not overlap.

    Parameters
    ----------
    places : sequence of float
        Positions, rising.
    gap : float
        Least distance of two labels.
    top : float
        Highest position, kept to where there is room.

    Returns
    -------
    list of float
        Positions at least `gap` apart, in the same order.
    """
    moved = list(places)
    for k in range(1, len(moved)):
        moved[k] = max(moved[k], moved[k - 1] + gap)
    for k in range(len(moved) - 1, -1, -1):
        moved[k] = min(moved[k], top if k == len(moved) - 1 else moved[k + 1] - gap)
    return moved


def _curves(axes: plt.Axes, content: Panel) -> None:
    """Draw each unit's activation along the joint descent, divided by what its solo image reaches."""
    levels = [v if np.isfinite(v) and v > 0 else 1.0 for v in content.levels]
    curves, last = content.curves / np.array(levels), len(content.curves) - 1
    for k in range(len(content.units)):
        axes.plot(curves[:, k], color=colour(k), linewidth=1.6)
    axes.axhline(1, color=GRAY, linewidth=0.8, zorder=0)
    axes.axhline(0, color=GRAY, linewidth=0.8, zorder=0)
    size, names = fit_text(content.units, 1.2, 7.5)
    inches = axes.get_window_extent().width / axes.figure.dpi
    axes.set_xlim(0, max(1, last) * inches / max(inches - 1.3, 0.3))
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    shown = sorted(np.flatnonzero(np.isfinite(curves[-1])).tolist(), key=curves[-1].__getitem__)
    for k, y in zip(shown, spread_labels(curves[-1][shown], 0.13 * (high - low) / SIDE, high), strict=True):
        style: dict[str, Any] = {"ha": "left", "va": "center", "color": colour(k), "clip_on": False}
        draw_text(axes, last + 0.03 * max(1, last), y, names[k], size, **style)
    axes.set_xticks([0, last])
    axes.set_xlabel("step of the joint descent", fontsize=8.5)
    axes.set_ylabel("activation / solo maximum", fontsize=8.5)
    axes.tick_params(labelsize=8, width=0.6, length=3)
    axes.spines[["top", "right"]].set_visible(False)


def _strips(page: plt.Axes, figure: Figure, content: Panel, y: float, width: float) -> None:
    """Draw one strip for each measure: all seeds, mean, floor, ceiling and interval, with the numbers beside it."""
    left, right, h = 2.75, 2.3, 0.235
    inside = width - EDGE - left - right
    axes = _axes(figure, EDGE + left, y, inside, h * len(content.strips))
    axes.set(xlim=(LOW, HIGH), ylim=(len(content.strips) - 0.5, -0.5), yticks=[], facecolor="none")
    size, names = fit_text([strip.name for strip in content.strips], left - 0.15, 8.5)
    axes.axvline(0, color=GRAY, linewidth=0.8)
    axes.axvline(1, color=GRAY, linewidth=0.8)
    for k, strip in enumerate(content.strips):
        values = np.array([v for v in strip.values if np.isfinite(v)])
        middle = y + h * (k + 0.5)
        draw_text(page, EDGE + left - 0.12, middle, names[k], size, ha="right", va="center")
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
        draw_text(page, width - right + 0.15, middle, text, 8.5, ha="left", va="center")
    axes.tick_params(labelsize=8, width=0.6, length=3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    legend: dict[str, Any] = {"ha": "left", "color": FAINT}
    text = (
        "dots: seeds; black: mean; line: 95 % interval; gray bar: floor; dotted: ceiling; beyond the axis: at its end"
    )
    draw_text(page, EDGE + left, y + h * len(content.strips) + 0.24, text, 7.5, **legend)
    if any(len(strip.values) > 1 for strip in content.strips):
        below = y + h * len(content.strips) + 0.04
        draw_text(page, width - right + 0.15, below, "mean (lowest to highest seed)", 7.5, **legend)
