"""What several studies' figures are drawn with: panels of a row, values of features beside their mean, findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from analyses.support.study import ANY, Finding, interval
from featmap.plotting.style import FAINT, GRAY, colour, wrap_text

FEW = 4
WIDE, SIZE = 9.0, 8.0
"""Inches of a figure (900 pixels as studies store it), points of its texts."""


def panels(
    titles: Sequence[str], tall: float = 3.3, widths: Sequence[float] | None = None
) -> tuple[Figure, list[plt.Axes]]:
    """Return a figure of panels side by side, each with its title."""
    figure, axes = plt.subplots(
        1, len(titles), figsize=(WIDE, tall), squeeze=False, layout="constrained", width_ratios=widths
    )
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(wrap_text(title, _inches(axis), 9), fontsize=9, parse_math=False, loc="left")
        axis.tick_params(labelsize=SIZE, width=0.6, length=3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes[0])


def _inches(axes: plt.Axes) -> float:
    """Return about how wide the axes are."""
    figure = axes.figure
    return float(axes.get_subplotspec().get_position(figure).width * figure.get_size_inches()[0])  # type: ignore


def name_groups(axes: plt.Axes, names: Sequence[str]) -> None:
    """Write the names of groups below the axes, broken into lines that fit."""
    room = 0.92 * _inches(axes) / max(len(names), 1)
    axes.set_xticks(range(len(names)), [wrap_text(name, room, 7) for name in names], fontsize=7, parse_math=False)
    axes.set_xlim(-0.5, len(names) - 0.5)


def strips(
    axes: plt.Axes,
    groups: Sequence[tuple[str, pd.Series]],
    up: str,
    legend: bool = True,
    within: tuple[float, float] = ANY,
) -> None:
    """Draw the values of each group (indexed by layer and feature) beside one another, with mean and interval.

    The interval is cut at what is possible, `within`, and left out below `FEW` values. Layers have their colours in
    the order in which they come, and a legend, if wanted, where there is more than one.
    """
    layers = list(dict.fromkeys(layer for _, values in groups for layer, _ in values.index))
    for at, (_, values) in enumerate(groups):
        if values.empty:
            across = axes.get_xaxis_transform()
            axes.text(at, 0.5, "undefined", fontsize=SIZE, color=FAINT, ha="center", transform=across)
            continue
        for k, layer in enumerate(layers):
            own = np.sort(values[values.index.get_level_values(0) == layer].to_numpy())
            x = at + 0.28 * ((np.arange(len(own)) * 0.618) % 1 - 0.5) - 0.12
            axes.plot(x, own, "o", color=colour(k), markersize=2.8, alpha=0.55, markeredgewidth=0)
        mean, low, high = interval(values.to_numpy(), within=within)
        if len(values) < FEW:
            low = high = mean
        axes.errorbar(
            [at + 0.2], [mean], [[mean - low], [high - mean]], fmt="s", color="black", markersize=3.5, capsize=2
        )
    name_groups(axes, [name for name, _ in groups])
    axes.set_ylabel(up, fontsize=SIZE)
    if len(layers) > 1:
        for k, layer in enumerate(layers):
            axes.plot([], [], "o", color=colour(k), markersize=3, label=layer)
    if legend and len(layers) > 1:
        axes.legend(fontsize=7, frameon=False, loc="best", handletextpad=0.1)


def layered(
    axes: plt.Axes,
    groups: Sequence[tuple[str, pd.Series]],
    layers: Sequence[str],
    up: str,
    within: tuple[float, float] = ANY,
) -> None:
    """Draw the values of each group (indexed by layer and feature) layer by layer, each with its mean and interval.

    A layer has its colour and mark in every group, its mean too; the intervals are cut at what is possible, `within`,
    and left out below `FEW` values. No legend.
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
            reach = [[mean - low], [high - mean]] if len(own) >= FEW else None
            axes.errorbar(
                *([middle + 0.2 * room], [mean], reach),
                fmt="os^Dv"[k % 5],
                color="black",
                mfc=colour(k),
                markersize=4,
                capsize=2,
            )
    name_groups(axes, [name for name, _ in groups])
    axes.set_ylabel(up, fontsize=SIZE)


def layer_legend(figure: Figure, layers: Sequence[str]) -> None:
    """Write below a figure which colour and mark is which layer's in `layered`."""
    marks = [plt.Line2D([], [], marker="os^Dv"[k % 5], color=colour(k), ls="", ms=4) for k in range(len(layers))]
    figure.legend(marks, layers, loc="outside lower center", ncols=len(layers), fontsize=7, frameon=False)


def bars(axes: plt.Axes, findings: Mapping[str, Finding], up: str) -> None:
    """Draw findings as bars with their intervals, named by the keys; one without a value has none."""
    for at, finding in enumerate(findings.values()):
        if finding.value is None:
            continue
        axes.bar([at], [finding.value], color=colour(0), width=0.6, alpha=0.8)
        if finding.low is not None and finding.high is not None:
            reach = [[max(0.0, finding.value - finding.low)], [max(0.0, finding.high - finding.value)]]
            axes.errorbar([at], [finding.value], reach, color="black", capsize=2, linewidth=1)
    axes.axhline(0, color=GRAY, linewidth=0.8)
    name_groups(axes, list(findings))
    axes.set_ylabel(up, fontsize=SIZE)
