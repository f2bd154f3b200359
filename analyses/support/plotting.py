"""Figures of the studies: panels in a row, values of features with their mean, and findings as bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from analyses.support.findings import ANY, Finding, interval
from featmap.plotting.style import FAINT, GRAY, colour, wrap_text

MIN_FOR_INTERVAL = 4
"""Fewest values that are drawn with an interval."""
FIGURE_WIDTH, FONT_SIZE = 9.0, 8.0
"""Width of a figure in inches (900 pixels as studies store it), and size of its text in points."""


def panels(
    titles: Sequence[str], height: float = 3.3, widths: Sequence[float] | None = None
) -> tuple[Figure, list[plt.Axes]]:
    """Create a figure of panels side by side, each with its title.

    Parameters
    ----------
    titles : sequence of str
        Titles of the panels.
    height : float, default 3.3
        Height of the figure, in inches.
    widths : sequence of float, default None
        Relative widths of the panels; None: equal.

    Returns
    -------
    figure : matplotlib.figure.Figure
        The figure.
    axes : list of matplotlib.axes.Axes
        Axes of the panels.
    """
    figure, axes = plt.subplots(
        1, len(titles), figsize=(FIGURE_WIDTH, height), squeeze=False, layout="constrained", width_ratios=widths
    )
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(wrap_text(title, _axes_width(axis), 9), fontsize=9, parse_math=False, loc="left")
        axis.tick_params(labelsize=FONT_SIZE, width=0.6, length=3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes[0])


def _axes_width(axes: plt.Axes) -> float:
    """Estimate the width of axes, in inches."""
    figure = axes.figure
    return float(axes.get_subplotspec().get_position(figure).width * figure.get_size_inches()[0])  # type: ignore


def label_groups(axes: plt.Axes, names: Sequence[str]) -> None:
    """Write the names of groups below the axes, broken into lines that fit.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Axes with one group at each whole number.
    names : sequence of str
        Names of the groups.
    """
    room = 0.92 * _axes_width(axes) / max(len(names), 1)
    axes.set_xticks(range(len(names)), [wrap_text(name, room, 7) for name in names], fontsize=7, parse_math=False)
    axes.set_xlim(-0.5, len(names) - 0.5)


def draw_strips(
    axes: plt.Axes,
    groups: Sequence[tuple[str, pd.Series]],
    y_label: str,
    legend: bool = True,
    within: tuple[float, float] = ANY,
) -> None:
    """Draw the values of each group in a strip, with their mean and its interval.

    Layers have colours in the order in which they appear.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Axes to draw in.
    groups : sequence of (str, pandas.Series)
        Name and values of each group; values are indexed by layer and feature.
    y_label : str
        Label of the ordinate.
    legend : bool, default True
        Whether to draw a legend where there is more than one layer.
    within : tuple of float, default ANY
        Range of possible values, at which intervals are cut. Below `MIN_FOR_INTERVAL` values there is no interval.
    """
    layers = list(dict.fromkeys(layer for _, values in groups for layer, _ in values.index))
    for at, (_, values) in enumerate(groups):
        if values.empty:
            across = axes.get_xaxis_transform()
            axes.text(at, 0.5, "undefined", fontsize=FONT_SIZE, color=FAINT, ha="center", transform=across)
            continue
        for k, layer in enumerate(layers):
            own = np.sort(values[values.index.get_level_values(0) == layer].to_numpy())
            x = at + 0.28 * ((np.arange(len(own)) * 0.618) % 1 - 0.5) - 0.12
            axes.plot(x, own, "o", color=colour(k), markersize=2.8, alpha=0.55, markeredgewidth=0)
        mean, low, high = interval(values.to_numpy(), within=within)
        if len(values) < MIN_FOR_INTERVAL:
            low = high = mean
        axes.errorbar(
            [at + 0.2], [mean], [[mean - low], [high - mean]], fmt="s", color="black", markersize=3.5, capsize=2
        )
    label_groups(axes, [name for name, _ in groups])
    axes.set_ylabel(y_label, fontsize=FONT_SIZE)
    if len(layers) > 1:
        for k, layer in enumerate(layers):
            axes.plot([], [], "o", color=colour(k), markersize=3, label=layer)
    if legend and len(layers) > 1:
        axes.legend(fontsize=7, frameon=False, loc="best", handletextpad=0.1)


def draw_strips_by_layer(
    axes: plt.Axes,
    groups: Sequence[tuple[str, pd.Series]],
    layers: Sequence[str],
    y_label: str,
    within: tuple[float, float] = ANY,
) -> None:
    """Draw the values of each group layer by layer, each with its mean and interval.

    A layer has the same colour and marker in every group; there is no legend (see `draw_layer_legend`).

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Axes to draw in.
    groups : sequence of (str, pandas.Series)
        Name and values of each group; values are indexed by layer and feature.
    layers : sequence of str
        Layers in the order in which they are drawn.
    y_label : str
        Label of the ordinate.
    within : tuple of float, default ANY
        Range of possible values, at which intervals are cut. Below `MIN_FOR_INTERVAL` values there is no interval.
    """
    room = 0.8 / max(len(layers), 1)
    for at, (_, values) in enumerate(groups):
        for k, layer in enumerate(layers):
            own = np.sort(values[values.index.get_level_values(0) == layer].to_numpy(dtype=float))
            middle = at + (k - (len(layers) - 1) / 2) * room
            if not len(own):
                across = axes.get_xaxis_transform()
                axes.text(middle, 0.5, "undefined", fontsize=6, color=FAINT, ha="center", rotation=90, transform=across)
                continue
            x = middle + room * (0.4 * ((np.arange(len(own)) * 0.618) % 1) - 0.4)
            axes.plot(x, own, "os^Dv"[k % 5], color=colour(k), markersize=2.8, alpha=0.55, markeredgewidth=0)
            mean, low, high = interval(own, within=within)
            reach = [[mean - low], [high - mean]] if len(own) >= MIN_FOR_INTERVAL else None
            axes.errorbar(
                *([middle + 0.2 * room], [mean], reach),
                fmt="os^Dv"[k % 5],
                color="black",
                mfc=colour(k),
                markersize=4,
                capsize=2,
            )
    label_groups(axes, [name for name, _ in groups])
    axes.set_ylabel(y_label, fontsize=FONT_SIZE)


def draw_layer_legend(figure: Figure, layers: Sequence[str]) -> None:
    """Draw the legend of `draw_strips_by_layer` below a figure.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        Figure to draw in.
    layers : sequence of str
        Layers in the order in which they are drawn.
    """
    marks = [plt.Line2D([], [], marker="os^Dv"[k % 5], color=colour(k), ls="", ms=4) for k in range(len(layers))]
    figure.legend(marks, layers, loc="outside lower center", ncols=len(layers), fontsize=7, frameon=False)


def draw_bars(axes: plt.Axes, findings: Mapping[str, Finding], y_label: str) -> None:
    """Draw findings as bars with their intervals.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Axes to draw in.
    findings : mapping of str to Finding
        Findings by their names on the axis; one without a value has no bar.
    y_label : str
        Label of the ordinate.
    """
    for at, finding in enumerate(findings.values()):
        if finding.value is None:
            continue
        axes.bar([at], [finding.value], color=colour(0), width=0.6, alpha=0.8)
        if finding.low is not None and finding.high is not None:
            reach = [[max(0.0, finding.value - finding.low)], [max(0.0, finding.high - finding.value)]]
            axes.errorbar([at], [finding.value], reach, color="black", capsize=2, linewidth=1)
    axes.axhline(0, color=GRAY, linewidth=0.8)
    label_groups(axes, list(findings))
    axes.set_ylabel(y_label, fontsize=FONT_SIZE)
