"""State what the statistics of one group of units say, in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from featmap.interaction.kinds import describe_kind
from featmap.optimize.recipe import Recipe

SEEDS_FOR_CLAIM = 5
"""Number of seeds below which a group's response nonlinearity is reported with a note."""


def format_percent(share: float) -> str:
    """Format a share as a percentage.

    Parameters
    ----------
    share : float
        Share in [0, 1].

    Returns
    -------
    str
        Without the sign "%"; one decimal below ten.
    """
    return f"{100 * share:.1f}" if abs(share) < 0.0995 else f"{100 * share:.0f}"


def format_number(value: Any, digits: int = 3) -> str:
    """Format a statistic.

    Parameters
    ----------
    value : float
        The value; NaN and missing values are undefined.
    digits : int, default 3
        Decimals.

    Returns
    -------
    str
        The number, or "undefined".
    """
    return "undefined" if pd.isna(value) or not np.isfinite(value) else f"{value:.{digits}f}"


def describe_nonlinearity(row: Mapping[str, Any]) -> str:
    """Describe the response nonlinearity of one group with its floor and ceiling.

    Parameters
    ----------
    row : mapping of str to float
        A row of the summary.

    Returns
    -------
    str
        Part of a sentence.
    """
    floor, ceiling = (format_number(row[f"response_nonlinearity_{limit}"]) for limit in ("floor", "ceiling"))
    return f"response nonlinearity {format_number(row['response_nonlinearity'])}, floor {floor}, ceiling {ceiling}"


def format_seeds(count: int) -> str:
    """Format a number of seeds.

    Parameters
    ----------
    count : int
        Number of seeds.

    Returns
    -------
    str
        Such as "1 seed" or "5 seeds".
    """
    return f"{count} seed" + ("" if count == 1 else "s")


def state_conclusion(row: pd.Series, seeds: int) -> str:
    """State the conclusion about one group.

    Parameters
    ----------
    row : pandas.Series
        Its row of the summary.
    seeds : int
        Number of seeds of the run.

    Returns
    -------
    str
        The kind of interaction in words, and the response nonlinearity with its floor, ceiling and interval; or why
        they are undefined.
    """
    share = row.get("response_nonlinearity", np.nan)
    if not np.isfinite(share):
        reason = "no probed feature responds" if row["seeds"] else row["status"]
        return f"response nonlinearity is undefined: {reason} ({format_seeds(seeds)})."
    floor, ceiling = row["response_nonlinearity_floor"], row["response_nonlinearity_ceiling"]
    limits = [f"{name} {format_percent(v)} %" for name, v in (("floor", floor), ("ceiling", ceiling)) if np.isfinite(v)]
    defined = format_seeds(int(row["seeds"]))
    if np.isfinite(row["low"]):
        low, high = np.clip([row["low"], row["high"]], 0, 1)
        limits.append(f"interval {format_percent(low)} to {format_percent(high)} % ({defined})")
    else:
        limits.append(f"{defined}: no interval")
    sentence = f"{format_percent(share)} % of the joint image's response is not explained by a mixture of the solo "
    sentence += f"images' responses; {', '.join(limits)}"
    if np.isfinite(row["p"]):
        sentence += "; above its floor" if row["p"] < 0.05 else "; not above its floor"
        sentence += f" (p = {row['p']:.2g})"
    kind = describe_kind(row)
    return (f"{kind}. " if kind else "") + sentence + "."


def list_notes(row: pd.Series, seeds: int, recipe: Recipe) -> list[str]:
    """List the limits of a conclusion that a reader has to know.

    Parameters
    ----------
    row : pandas.Series
        The group's row of the summary.
    seeds : int
        Number of seeds of the run.
    recipe : Recipe
        Resolved recipe of the descents.

    Returns
    -------
    list of str
        Empty where there are none.
    """
    notes = []
    if not recipe.linear:
        notes.append(
            f"recipe {recipe.name} has steps that are not linear: under them even a linear network shows interaction"
        )
    if 0 < row["seeds"] < SEEDS_FOR_CLAIM:
        notes.append(f"a claim needs {SEEDS_FOR_CLAIM} seeds or more")
    if 0 < row["seeds"] < seeds:
        undefined = seeds - int(row["seeds"])
        notes.append(f"{undefined} of {seeds} seeds have no statistics (see the column status)")
    return notes
