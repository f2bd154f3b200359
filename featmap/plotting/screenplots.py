"""How well screening predicted: every predictor's rank correlation, and the best one against the exact figure."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from featmap.plotting.style import FAINT, GRAY, colour, fit, house_style, page_of, wrap, write


@house_style
def judgement(table: pd.DataFrame, predicted: pd.Series, exact: pd.Series, best: str) -> Figure:
    """Draw the predictors' rank correlations with their standard errors, and the best one's predictions.

    `table` has a row a predictor (predictor, spearman, error); `predicted` and `exact` are values of the same pairs.
    """
    known = table[table["spearman"].notna()] if table["spearman"].notna().any() else table
    high, wide, figure = max(2.4, 0.3 * len(known) + 0.2), 9.4, Figure()
    page, top = page_of(figure, wide, high + 1.0, f"What solo runs tell of {len(exact)} pairs drawn at random")

    def place(x: float, w: float) -> plt.Axes:
        tall = figure.get_figheight()
        return figure.add_axes((x / wide, 1 - (top + 0.1 + high) / tall, w / wide, high / tall))

    bars = place(2.7, 2.4)
    size, names = fit(known["predictor"], 2.5, 8.5)
    at = np.arange(len(known))
    bars.errorbar(known["spearman"], at, xerr=known["error"], fmt="o", color=colour(0), markersize=4, elinewidth=1.2)
    bars.axvline(0, color=GRAY, linewidth=0.8)
    bars.set(xlim=(-1, 1), ylim=(len(known) - 0.5, -0.5))
    bars.set_yticks(at, names, fontsize=size, parse_math=False)
    bars.set_xlabel("rank correlation with the exact figure", fontsize=8.5)
    cloud = place(6.2, 2.9)
    cloud.plot(predicted, exact, "o", color=colour(0), markersize=3, alpha=0.6, mew=0)
    cloud.axhline(0, color=GRAY, linewidth=0.8)
    cloud.set_xlabel(wrap(best, 2.9, 8.5), fontsize=8.5, parse_math=False)
    cloud.set_ylabel("response nonlinearity less its floor", fontsize=8.5)
    for axes in (bars, cloud):
        axes.tick_params(labelsize=8, width=0.6, length=3)
        axes.spines[["top", "right"]].set_visible(False)
    bars.tick_params(axis="y", labelsize=size)
    write(page, wide / 2, top + high + 0.72, "bars: one standard error", 7.5, color=FAINT)
    return figure
