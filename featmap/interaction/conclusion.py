"""State what the statistics of groups of units say, in sentences, and how far methods agree over pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from featmap.interaction.kinds import describe_kind
from featmap.optimize.recipe import Recipe
from featmap.stats import correlation, interaction, reliability
from featmap.stats.top_responses import LEAST_PAIRED, STRONG

SEEDS_FOR_CLAIM = 5
"""Number of seeds below which a group's response nonlinearity is reported with a note."""
NATURAL = ("natural_nonlinearity", "natural_floor", "natural_floor_high", "natural_ceiling", "natural_excess")
"""Statistics of `natural_nonlinearity`."""
JOINT_AGREEMENT = (
    "joint_agreement",
    *(f"joint_agreement_{end}" for end in ("low", "high", "p", "others", "features")),
)
"""How far features treat photographs of both as they treat the joint image."""
DIFFERENCE = ("natural_difference", *(f"natural_difference_{end}" for end in ("floor", "p", "agreement")))
"""Statistics of `natural_difference`."""
PHOTOGRAPH_COLUMNS = (
    "photographs",
    *("photograph_correlation", "photograph_correlation_p", "photograph_lift", "photograph_lift_p"),
    *("place_lift", "place_lift_p", "photographs_both"),
    *NATURAL,
    *JOINT_AGREEMENT,
    *DIFFERENCE,
    *("direct", "direct_low", "direct_high", "direct_images", "direct_sign", "direct_at"),
    *("direct_balance", "direct_balance_low", "direct_balance_high", "direct_curvature"),
    *("direct_hessian", "direct_hessian_images", "direct_agreement", "direct_features"),
    "second_derivative_agreement",
    "photographs_note",
)
"""Statistics of a pair over photographs, and of what is measured beside them."""
METHODS = (
    ("direct", "response_nonlinearity"),
    ("direct_curvature", "response_nonlinearity"),
    ("direct_hessian", "direct"),
    ("direct_hessian", "response_nonlinearity"),
    ("second_derivative", "second_difference"),
    ("natural_nonlinearity", "response_nonlinearity"),
    ("natural_excess", "excess"),
    ("direct", "natural_nonlinearity"),
    ("natural_difference", "second_difference"),
    ("natural_difference", "response_nonlinearity"),
    ("photograph_correlation", "response_nonlinearity"),
)
"""Statistics that should agree over pairs where they measure the same."""
AGREEMENTS = {"direct_hessian": "direct_agreement", "second_derivative": "second_derivative_agreement"}
"""Columns of the rank correlations, over features, of second derivatives with differences."""
LEAST_PAIRS = 8
"""Fewest pairs that give an interval."""


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


def photograph_values(row: Mapping[str, Any]) -> dict[str, Any]:
    """Collect what photographs say of one pair as plain JSON values.

    Parameters
    ----------
    row : mapping of str to float, int or str
        Its row of the summary, see `featmap.interaction.natural.add_columns`.

    Returns
    -------
    dict
        Sentences and statistics; None where undefined.
    """
    values = {name: row[name] for name in PHOTOGRAPH_COLUMNS}
    plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in values.items()}
    plain = {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in plain.items()}
    return {"sentences": describe_photographs(row), **plain}


def describe_photographs(row: Mapping[str, Any]) -> list[str]:
    """Describe in sentences what photographs say of one pair.

    Parameters
    ----------
    row : mapping of str to float or str
        Its row of the summary, see `featmap.interaction.natural.add_columns`.

    Returns
    -------
    list of str
        Up to seven sentences; what is undefined is named with the reason. None for a run without photographs.
    """
    if "photographs" not in row:
        return []
    lines = [_describe_together(row)]
    if np.isfinite(row["natural_nonlinearity"]):
        shares = {k: format_percent(row[k]) for k in ("natural_nonlinearity", "natural_floor", "natural_ceiling")}
        text = (
            f"On the {row['photographs_both']} photographs where both are strong, {shares['natural_nonlinearity']} % "
        )
        text += f"of the response is not explained by photographs of one of them; floor {shares['natural_floor']} %, "
        text += f"ceiling {shares['natural_ceiling']} %"
        if np.isfinite(row["response_nonlinearity"]):
            text += f" (joint images: {format_percent(row['response_nonlinearity'])} %)"
        lines.append(text + ".")
    lines += _describe_joint_photographs(row)
    if np.isfinite(row["direct"]):
        text = (
            f"Added to {row['direct_images']} photographs, the effect of both solo images differs from the sum of the "
        )
        text += f"effects of each by {format_percent(row['direct'])} % of that sum"
        if np.isfinite(row["direct_low"]):
            text += f" (interval {format_percent(max(row['direct_low'], 0))} to {format_percent(row['direct_high'])} %)"
        if row["direct_sign"]:
            text += (
                f"; most in {row['direct_at']}, which gets {'more' if row['direct_sign'] > 0 else 'less'} than the sum"
            )
        if np.isfinite(row["direct_hessian"]):
            text += f"; by the second derivative, of softplus for ReLUs, on {row['direct_hessian_images']} of them "
            text += f"{format_percent(row['direct_hessian'])} %"
        if np.isfinite(row["direct_agreement"]):
            text += f", whose rank correlation with the difference over {row['direct_features']} features is "
            text += format_number(row["direct_agreement"], 2)
        lines.append(text + ".")
    lines += _describe_derivative(row)
    if row["photographs_note"]:
        lines.append(f"Undefined on photographs: {row['photographs_note']}.")
    return lines


def explain_undefined(row: Mapping[str, Any], lack: str, places: int) -> str:
    """Say why statistics of a pair over photographs are undefined.

    Parameters
    ----------
    row : mapping of str to float or int
        The statistics.
    lack : str
        Why there are too few photographs of a kind, see `featmap.interaction.natural.PhotographSets`; "" where there
        are not.
    places : int
        Number of places in a photograph.

    Returns
    -------
    str
        Reasons, joined by semicolons; "" where nothing is undefined.
    """
    few = row["photographs"] < LEAST_PAIRED
    direct = "the single effects cancel" if row["direct_images"] else "a solo descent did not rise"
    place = "there is one place only" if places < 2 else "no pairing of photographs has both fire at one place"
    reasons = {
        "photograph_correlation": "a unit's responses do not vary or are not finite",
        "photograph_lift": f"a unit is nowhere above its {STRONG}th percentile",
        "place_lift": place,
        "natural_nonlinearity": lack or "the response to photographs of both is that to photographs of neither",
        "joint_agreement": lack or "no seed has statistics, or too few features that neither unit reads vary",
        "natural_difference": lack or "the units' activations on photographs of both, one and neither are alike",
        "direct": direct,
        "direct_hessian": "the second derivative is 0 on every photograph, or torch has none for an operation of the "
        "network"
        if np.isfinite(row["direct"])
        else direct,
    }
    if few:
        together = ("photograph_correlation", "photograph_lift", "place_lift")
        natural = ("natural_nonlinearity", "joint_agreement", "natural_difference")
        reasons |= dict.fromkeys(together + natural, f"{row['photographs']} photographs, {LEAST_PAIRED} are needed")
    return "; ".join(dict.fromkeys(text for name, text in reasons.items() if np.isnan(row[name])))


def _describe_derivative(row: Mapping[str, Any]) -> list[str]:
    """Describe the second derivative between images beside the second difference; nothing where there is neither."""
    if not np.isfinite(row.get("second_difference", np.nan)) or "second_derivative" not in row:
        return []
    if not np.isfinite(row["second_derivative"]):
        reason = "torch has none for an operation of the network, or the seeds that it is taken for have no statistics"
        return [f"The second derivative at images is undefined: {reason}."]
    text = "Along the halves of both solo images the second derivative (of softplus where the network has ReLUs) is "
    text += f"{format_percent(row['second_derivative'])} % of the response to the joint image, the second difference "
    text += f"{format_percent(row['second_difference'])} %"
    if np.isfinite(row["second_derivative_agreement"]):
        text += f"; their rank correlation over {row['direct_features']} features is "
        text += format_number(row["second_derivative_agreement"], 2)
    return [text + "."]


def _describe_joint_photographs(row: Mapping[str, Any]) -> list[str]:
    """Describe whether photographs of both are treated as the joint image is, and whether their effects add up."""
    lines = []
    if np.isfinite(row["joint_agreement"]):
        others = row["joint_agreement_others"]
        how = "not surely as they treat the joint image"
        if row["joint_agreement_high"] < 0:
            how = "otherwise than they treat the joint image"
        elif row["joint_agreement_p"] < 0.05 and (np.isnan(others) or row["joint_agreement_low"] > others):
            how = "as they treat the joint image"
        elif row["joint_agreement_p"] < 0.05:
            how = "more than random ones, but not surely more than those of other pairs, as they treat the joint image"
        low, high = (format_number(row[f"joint_agreement_{end}"], 2) for end in ("low", "high"))
        text = (
            f"Compared with photographs of one, {row['joint_agreement_features']} probed features treat photographs of "
        )
        text += f"both {how}: rank correlation {format_number(row['joint_agreement'], 2)} "
        text += f"(interval {low} to {high}; p = {row['joint_agreement_p']:.2g} against random photographs)"
        if np.isfinite(others):
            text += f", {format_number(others, 2)} for photographs of other pairs"
        lines.append(text + ".")
    if np.isfinite(row["natural_difference"]):
        text = f"The second difference on photographs is {format_percent(row['natural_difference'])} % of the response "
        text += f"(floor {format_percent(row['natural_difference_floor'])} %, p = {row['natural_difference_p']:.2g}; "
        text += "photographs of both may differ in other things, too)"
        if np.isfinite(row["second_difference"]):
            text += f"; that of the solo images is {format_percent(row['second_difference'])} %"
        if np.isfinite(row["natural_difference_agreement"]):
            text += ", and their rank correlation over features is "
            text += format_number(row["natural_difference_agreement"], 2)
        lines.append(text + ".")
    return lines


def _describe_together(row: Mapping[str, Any]) -> str:
    """Describe whether two features respond to the same photographs and at the same places."""
    count, value, p = row["photographs"], row["photograph_correlation"], row["photograph_correlation_p"]
    if not np.isfinite(value):
        return f"On {count:,} photographs, responding together is undefined."
    verdict = "independently"
    if p < 0.05:
        verdict = "together" if value > 0 else "to different ones"
    text = f"To {count:,} photographs the two respond {verdict}: correlation {format_number(value, 2)} (p = {p:.2g})"
    for name, words in (
        ("photograph_lift", "strong on the same photograph"),
        ("place_lift", "firing at the same place"),
    ):
        if np.isfinite(row[name]):
            text += f", {words} {row[name]:.2g} times as often as by chance (p = {row[f'{name}_p']:.2g})"
    return text + "."


def compare_methods(summary: pd.DataFrame) -> pd.DataFrame:
    """Correlate statistics that measure interaction in different ways, over pairs.

    Parameters
    ----------
    summary : pandas.DataFrame
        Result of `featmap.interaction.natural.add_columns`.

    Returns
    -------
    pandas.DataFrame
        A row for each of `METHODS`: `one`, `other`, `pairs` (that define both), `spearman`, and `low` and `high`, its
        95 % interval under a bootstrap of the units, which pairs share. NaN for fewer than three pairs; no interval for
        fewer than `LEAST_PAIRS`.

    References
    ----------
    Owen (2007), The pigeonhole bootstrap, doi 10.1214/07-AOAS122.
    """
    units = [label.split(" + ") for label in summary["group"]]
    names = list(dict.fromkeys(name for pair in units for name in pair))
    positions = np.array([[names.index(name) for name in pair] for pair in units])
    counts = reliability.bootstrap_counts(len(names), key="units of pairs")
    rows = []
    for one, other in METHODS:
        x, y = (summary[name].to_numpy(dtype=float) for name in (one, other))
        defined = np.isfinite(x) & np.isfinite(y)
        x, y = x[defined], y[defined]
        rho, low, high = correlation.spearman(x, y), float("nan"), float("nan")
        if np.isfinite(rho) and len(x) >= LEAST_PAIRS:
            weights = counts[:, positions[defined, 0]] * counts[:, positions[defined, 1]]
            drawn = _weighted_correlations(rankdata(x), rankdata(y), weights)
            low, high = reliability.percentile_interval(drawn)
        rows.append({"one": one, "other": other, "pairs": len(x), "spearman": rho, "low": low, "high": high})
    return pd.DataFrame(rows)


def _weighted_correlations(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Compute Pearson's correlation under each row of weights; NaN for draws of fewer than three pairs."""
    total = weights.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = weights / total
        mean_x, mean_y = share @ x, share @ y
        covariance = share @ (x * y) - mean_x * mean_y
        spread = (share @ (x * x) - mean_x**2) * (share @ (y * y) - mean_y**2)
        drawn: np.ndarray = covariance / np.sqrt(spread)
    return np.where((weights > 0).sum(axis=1) < 3, np.nan, drawn)


def describe_photographs_of_pairs(summary: pd.DataFrame, methods: pd.DataFrame) -> list[str]:
    """Describe in sentences what photographs say of many pairs.

    Parameters
    ----------
    summary : pandas.DataFrame
        Summary of the run, see `featmap.interaction.natural.add_columns`.
    methods : pandas.DataFrame
        Agreement of its statistics, see `compare_methods`.

    Returns
    -------
    list of str
        How many pairs respond together or apart, in how many photographs of both are treated as the joint image is,
        and how far statistics agree over pairs.
    """
    count, r, q = summary["photographs"].max(), summary["photograph_correlation"], summary["photograph_correlation_q"]
    together, apart = int(((q < 0.05) & (r > 0)).sum()), int(((q < 0.05) & (r < 0)).sum())
    rate = "at a false discovery rate of 5 %"
    lines = [f"on {count:,} photographs {together} of {len(summary)} pairs respond together, {apart} apart, {rate}"]
    agreement = summary["joint_agreement"]
    if agreement.notna().any():
        q = interaction.q_values(summary["joint_agreement_p"].to_numpy(dtype=float))
        above, defined = int((q < 0.05).sum()), int(agreement.notna().sum())
        text = f"photographs of both are treated more as the joint image is than random photographs in {above} of "
        text += f"{defined} pairs, {rate}: rank correlation {agreement.mean():.2f} on average, "
        lines.append(
            f"{text}{format_number(summary['joint_agreement_others'].mean(), 2)} with other pairs' photographs"
        )
    words = {
        ("direct", "response_nonlinearity"): "mixed difference at photographs against response nonlinearity of joint "
        "images",
        ("direct_hessian", "direct"): "second derivative at photographs against mixed difference there",
        ("second_derivative", "second_difference"): "second derivative at images against second difference there",
        ("natural_nonlinearity", "response_nonlinearity"): "nonlinearity on photographs of both against response "
        "nonlinearity of joint images",
        ("natural_difference", "second_difference"): "second difference on photographs against that of solo images",
    }
    for row in methods.to_dict("records"):
        if (row["one"], row["other"]) in words:
            interval = f" ({row['low']:.2f} to {row['high']:.2f})" if np.isfinite(row["low"]) else ""
            text = f"{format_number(row['spearman'], 2)}{interval}, {row['pairs']} pairs"
            over_features = summary.get(AGREEMENTS.get(row["one"], ""))  # pairs of earlier versions lack it
            if over_features is not None and over_features.notna().any():
                text += f"; over features {over_features.mean():.2f} on average"
            lines.append(f"{words[row['one'], row['other']]}: Spearman {text}")
    return lines
