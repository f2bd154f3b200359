"""Scatter plots and curves of a validation, and of the predictors of a screening.

A validation compares the similarity S over pairs of features with another similarity, scores the layers along the
processing path, and recovers planted structure at rising noise. Everything is drawn from finished numbers; nothing is
measured here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from featmap.errors import FeatmapError
from featmap.plotting.style import FAINT, GRAY, add_page, colour, draw_text, fit_text, house_style, wrap_text

HEIGHT = 2.6
"""Height of the plotting area of a panel, in inches."""


@dataclass(frozen=True, eq=False)
class PairCloud:
    """Two similarities over the same pairs of features.

    Parameters
    ----------
    x, y : numpy.ndarray
        Values of both similarities, of equal length; pairs with a non-finite value are left out.
    x_label, y_label : str
        Labels of the axes.
    note : str
        Line below the panel.
    same_scale : bool, default True
        Whether both have one scale, so that the line of equality is drawn.
    """

    x: np.ndarray
    y: np.ndarray
    x_label: str
    y_label: str
    note: str
    same_scale: bool = True


@dataclass(frozen=True)
class LayerScore:
    """The score of one layer along the processing path; None stands for undefined.

    Parameters
    ----------
    layer : str
        Name of the layer.
    value : float or None
        The score.
    low, high : float, default None
        Ends of its interval.
    random : float, default None
        The score of the same layer with random weights.
    """

    layer: str
    value: float | None
    low: float | None = None
    high: float | None = None
    random: float | None = None


def _add_axes(figure: Figure, x: float, top: float, wide: float, w: float = HEIGHT) -> plt.Axes:
    """Add the axes of a panel by its upper left corner in inches."""
    tall = figure.get_figheight()
    axes = figure.add_axes((x / wide, 1 - (top + HEIGHT) / tall, w / wide, HEIGHT / tall))
    axes.tick_params(labelsize=8, width=0.6, length=3)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


@house_style
def agreement_panels(clouds: Sequence[PairCloud], steps: Sequence[LayerScore], title: str) -> Figure:
    """Draw the density of pairs, and the scores along the processing path.

    The colour is the number of pairs on a logarithmic scale; a thin line marks equality.

    Parameters
    ----------
    clouds : sequence of PairCloud
        Comparisons, one panel each.
    steps : sequence of LayerScore
        Scores in the order of the path, in a panel of their own; may be empty.
    title : str
        Title of the figure.

    Returns
    -------
    matplotlib.figure.Figure
        The panels side by side.

    Raises
    ------
    FeatmapError
        If there is neither a comparison nor a score.
    """
    if not clouds and not steps:
        raise FeatmapError("nothing to draw: no pairs and no scores")
    panels, pitch, figure = len(clouds) + bool(steps), HEIGHT + 0.95, Figure()
    wide = 0.75 + pitch * panels
    _, top = add_page(figure, wide, HEIGHT + 1.35, title)
    page = figure.axes[0]
    for k, cloud in enumerate(clouds):
        x = 0.75 + pitch * k
        axes = _add_axes(figure, x, top + 0.1, wide)
        defined = np.isfinite(cloud.x) & np.isfinite(cloud.y)
        if defined.any():
            axes.hexbin(
                cloud.x[defined],
                cloud.y[defined],
                gridsize=45,
                norm=LogNorm(0.2),
                cmap="Blues",
                mincnt=1,
                rasterized=True,
            )
        if cloud.same_scale:
            axes.axline((0, 0), slope=1, color=GRAY, linewidth=0.8)
        axes.set_xlabel(cloud.x_label, fontsize=8.5, parse_math=False)
        axes.set_ylabel(cloud.y_label, fontsize=8.5, parse_math=False)
        draw_text(page, x + HEIGHT / 2, top + HEIGHT + 0.62, wrap_text(cloud.note, HEIGHT + 0.5, 8), 8, color=FAINT)
    if steps:
        x = 0.75 + pitch * len(clouds)
        axes, at = _add_axes(figure, x, top + 0.1, wide), np.arange(len(steps))
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
        size, names = fit_text([s.layer for s in steps], 0.85, 8)
        axes.set_xticks(at, names, rotation=90, fontsize=size, parse_math=False)
        axes.set_ylabel("processing path", fontsize=8.5)
        draw_text(page, x + HEIGHT / 2, top - 0.08, "blue: trained, orange: random weights", 7.5, color=FAINT)
    return figure


Curve = tuple[str, Sequence[float], Sequence[float]]
"""Name of a curve, its abscissae and its ordinates."""


@house_style
def recovery_curves(panels: Sequence[tuple[str, str, Sequence[Curve]]], title: str, columns: int = 4) -> Figure:
    """Draw how a planted structure is recovered at rising noise.

    Parameters
    ----------
    panels : sequence of (str, str, sequence of Curve)
        Title, label of the ordinate and curves of each panel. A curve is its name, the shares of noise and the values;
        curves of one name have one colour.
    title : str
        Title of the figure.
    columns : int, default 4
        Most panels in a row.

    Returns
    -------
    matplotlib.figure.Figure
        The panels.

    Raises
    ------
    FeatmapError
        If there is no panel.
    """
    if not panels:
        raise FeatmapError("nothing to draw: no curves")
    across = min(columns, len(panels))
    down, pitch, figure = -(-len(panels) // across), HEIGHT + 0.85, Figure()
    wide = 0.7 + pitch * across
    names = list(dict.fromkeys(name for _, _, lines in panels for name, _, _ in lines))
    page, top = add_page(figure, wide, down * (HEIGHT + 0.95) + 0.35, title)
    for k, name in enumerate(names):
        x = 0.7 + k * (wide - 1.0) / len(names)
        page.plot([x, x + 0.25], [top + 0.12] * 2, color=colour(k), linewidth=2)
        draw_text(page, x + 0.32, top + 0.05, name, 8.5, ha="left")
    for k, (heading, y_label, lines) in enumerate(panels):
        x, y = 0.7 + pitch * (k % across), top + 0.6 + (HEIGHT + 0.95) * (k // across)
        axes = _add_axes(figure, x, y, wide)
        for name, noise, values in lines:
            n = names.index(name)
            axes.plot(noise, values, "o-", color=colour(n), markersize=3, linewidth=1.3, alpha=0.85)
        axes.set(ylim=(-0.08, 1.06))
        axes.set_ylabel(y_label, fontsize=8.5)
        axes.set_xlabel("noise (share of the squared weights)", fontsize=8.5)
        draw_text(page, x + HEIGHT / 2, y - 0.22, heading, 9.5)
    return figure


@house_style
def predictor_scores(table: pd.DataFrame, predicted: pd.Series, exact: pd.Series, best: str) -> Figure:
    """Draw how well predictors rank pairs, and the predictions of the best one.

    Parameters
    ----------
    table : pandas.DataFrame
        One row for each predictor, with the columns `predictor`, `spearman` (rank correlation with the measured value)
        and `error` (its standard error).
    predicted, exact : pandas.Series
        Predicted and measured values of the same pairs.
    best : str
        Name of the best predictor, on the abscissa of the second panel.

    Returns
    -------
    matplotlib.figure.Figure
        Two panels.
    """
    rows = table[table["spearman"].notna()] if table["spearman"].notna().any() else table
    high, wide, figure = max(2.4, 0.3 * len(rows) + 0.2), 9.4, Figure()
    page, top = add_page(
        figure, wide, high + 1.0, f"Interactions of {len(exact)} random pairs, predicted from solo runs"
    )

    def place(x: float, w: float) -> plt.Axes:
        tall = figure.get_figheight()
        return figure.add_axes((x / wide, 1 - (top + 0.1 + high) / tall, w / wide, high / tall))

    bars = place(2.7, 2.4)
    size, names = fit_text(rows["predictor"], 2.5, 8.5)
    at = np.arange(len(rows))
    bars.errorbar(rows["spearman"], at, xerr=rows["error"], fmt="o", color=colour(0), markersize=4, elinewidth=1.2)
    bars.axvline(0, color=GRAY, linewidth=0.8)
    bars.set(xlim=(-1, 1), ylim=(len(rows) - 0.5, -0.5))
    bars.set_yticks(at, names, fontsize=size, parse_math=False)
    bars.set_xlabel("rank correlation with the measured value", fontsize=8.5)
    cloud = place(6.2, 2.9)
    cloud.plot(predicted, exact, "o", color=colour(0), markersize=3, alpha=0.6, mew=0)
    cloud.axhline(0, color=GRAY, linewidth=0.8)
    cloud.set_xlabel(wrap_text(best, 2.9, 8.5), fontsize=8.5, parse_math=False)
    cloud.set_ylabel("response nonlinearity minus its floor", fontsize=8.5)
    for axes in (bars, cloud):
        axes.tick_params(labelsize=8, width=0.6, length=3)
        axes.spines[["top", "right"]].set_visible(False)
    bars.tick_params(axis="y", labelsize=size)
    draw_text(page, wide / 2, top + high + 0.72, "bars: one standard error", 7.5, color=FAINT)
    return figure
