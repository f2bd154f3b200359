"""How well predictors of interaction do, by pairs whose exact figures are known. No torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from featmap.stats.predictors import combined, rank_correlation


def judged(predicted: pd.DataFrame, exact: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the predictors by falling rank correlation, and the predictions with the combined one added.

    `predicted` has columns a, b and one a predictor, `exact` is the summary of the pairs drawn at random.
    The combined predictor is fitted to the checked pairs, so it is judged by those left out of each fit.
    """
    names = [c for c in predicted.columns if c not in ("a", "b", "combined")]
    X = predicted[names].to_numpy(dtype=float, na_value=np.nan)
    figures = exact[["a", "b", "excess", "response_nonlinearity"]]
    known = predicted[["a", "b"]].merge(figures, on=["a", "b"], how="left")
    y, whole = (known[c].to_numpy(dtype=float, na_value=np.nan) for c in ("excess", "response_nonlinearity"))
    everywhere, left_out = combined(X, y)
    rows = [{"predictor": n} | _judge(X[:, k], y, X[:, k], whole) for k, n in enumerate(names)]
    rows.append({"predictor": "combined"} | _judge(left_out, y, combined(X, whole)[1], whole))
    table = pd.DataFrame(rows)
    order = np.argsort(-np.nan_to_num(np.abs(table["spearman"].to_numpy(dtype=float)), nan=-1), kind="stable")
    return table.iloc[order].reset_index(drop=True), predicted.assign(combined=everywhere)


def reliability(figures: pd.DataFrame) -> float:
    """Return Spearman's correlation of response nonlinearity less its floor between seeds, mean over pairs of seeds."""
    excess = figures["response_nonlinearity"] - figures["response_nonlinearity_floor"]
    wide = figures.assign(excess=excess.astype("Float64")).pivot(index="group", columns="seed", values="excess")
    values = wide.to_numpy(dtype=float, na_value=np.nan)
    each = [rank_correlation(values[:, i], values[:, j])[0] for i in range(values.shape[1]) for j in range(i)]
    return float(np.mean(each)) if each else float("nan")


def _judge(values: np.ndarray, excess: np.ndarray, again: np.ndarray, whole: np.ndarray) -> dict[str, Any]:
    rho, error, n = rank_correlation(values, excess)
    return {"spearman": rho, "error": error, "spearman_with_floor": rank_correlation(again, whole)[0], "pairs": n}
