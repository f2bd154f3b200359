"""Verdict and conclusion of `analyses.layer_maps`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from analyses.support.decisions import above, all_hold, below, exceeds
from analyses.support.findings import (
    CLAIM_WORDS,
    SHARE,
    Finding,
    format_interval,
    format_value,
    mean_or_undefined,
    value_finding,
)
from analyses.support.palette_summary import PaletteSummary, palette_phrase
from analyses.support.study import Verdict
from analyses.support.wording import plural
from featmap.stats.reliability import Interval

FLAT = 0.5
"""Flatness above which the images of a layer are colours: one colour explains more of them than all patterns do."""
LEFT = "The image shown for a dead feature is what the rescue left: the feature has no activation"
SHORT = {"flatness": "flatness", "waves": "waves", "frequency": "spatial frequency", "bytes": "bytes as PNG"}
"""Names of the measures in a conclusion."""
Trends = dict[str, Interval]
"""Rank correlations with depth by measure."""
Count = tuple[int, int]
"""Number of hits, and of all cases."""


def layer_flatness(rows: pd.DataFrame) -> Finding:
    """Compute the mean flatness of the first layer's features.

    Each is averaged over its seeds first.

    Parameters
    ----------
    rows : pandas.DataFrame
        Rows of the study, as measured or as stored.

    Returns
    -------
    Finding
        The mean, of the features that were measured for their colours.
    """
    live = rows[(rows["part"] == "first layer") & (rows["status"] == "live")]
    values = live.groupby("feature")["flatness"].mean()
    words = f"flatness of an image, all {len(values)} features of the first layer that were measured for its colours"
    return mean_or_undefined("flatness_colours", values, words, within=SHARE)


def count_dead(table: pd.DataFrame) -> Count:
    """Count the features that have no gradient for some seed, and all features.

    Parameters
    ----------
    table : pandas.DataFrame
        Rows of one part of the study.

    Returns
    -------
    dead, count : int
        Numbers of features.
    """
    dead = table.assign(dead=table["status"] == "dead").groupby("feature")["dead"].any()
    return int(dead.sum()), len(dead)


def judge_parts(flat: Finding, by_depth: Trends, fit: PaletteSummary) -> dict[str, bool | None]:
    """Judge the measured parts of the claim by the rule of the study.

    Parameters
    ----------
    flat : Finding
        Mean flatness of the first layer.
    by_depth : dict of str to Interval
        Rank correlations with depth.
    fit : PaletteSummary
        Palette of the first layer.

    Returns
    -------
    dict of str to bool or None
        Parts by name; None where a part is not decided.
    """
    colours = exceeds(flat, FLAT) if flat.count > 1 else None
    falls, rises = by_depth["flatness"], by_depth["waves"]
    depth = all_hold((below(falls.low, falls.high, 0), above(rises.low, rises.high, 0)))
    return {"colours": colours, "depth": depth, "palette": fit.is_like_cmyk()}


def judge(parts: Mapping[str, bool | None]) -> Verdict:
    """Combine the measured parts into a verdict.

    Objects are not measured, so that the claim holds in part at most.

    Parameters
    ----------
    parts : mapping of str to bool or None
        Parts by name, see `judge_parts`.

    Returns
    -------
    str
        The verdict.
    """
    if parts["depth"] is None:
        return "not decided"
    return "holds in part" if any(parts.values()) else "does not hold"


def conclude(
    rows: pd.DataFrame,
    by_depth: Trends,
    fit: PaletteSummary,
    layers: Sequence[str],
    main: Sequence[str],
    full: bool,
    rescue: float,
) -> tuple[Verdict, str]:
    """Judge the claim, and write the conclusion.

    Parameters
    ----------
    rows : pandas.DataFrame
        Rows of the study, as measured or as stored.
    by_depth : dict of str to Interval
        Rank correlations with depth.
    fit : PaletteSummary
        Palette of the first layer.
    layers, main : sequence of str
        Layers that were mapped, and the network's main layers; the latter are empty where the study names none.
    full : bool
        Whether the article's own recipe was used, whose descents are long and do not clamp.
    rescue : float
        Share of the steps in which the recipe of the images rescues features without a gradient.

    Returns
    -------
    verdict, conclusion : str
        The verdict, and sentences.
    """
    flat = layer_flatness(rows)
    parts = judge_parts(flat, by_depth, fit)
    seeds = rows.loc[rows["part"] == "maps", "seed"].nunique()
    n = f"{plural(flat.count, 'feature')}, {plural(seeds, 'seed')} each"
    return judge(parts), (
        f"That the first layer's images are flat colours {CLAIM_WORDS[parts['colours']]}: their mean flatness is "
        f"{format_interval(flat)} (1: a single colour; n = {n}). That flatness falls and the number of waves rises "
        f"with depth {CLAIM_WORDS[parts['depth']]}, by rank correlations {layers_phrase(rows, layers, main)}: "
        f"{trends_phrase(by_depth)}. {flatness_phrase(rows, layers)} That images go on to objects is not measured: "
        f"these statistics cannot tell an object from a texture"
        f"{'' if full else ', and descents as short as these hardly show any'}. That the first layer's palette is like "
        f"CMYK {CLAIM_WORDS[parts['palette']]}: {palette_phrase(fit, not full)}. {dead_phrase(rows, rescue)}"
    )


def layers_phrase(rows: pd.DataFrame, layers: Sequence[str], main: Sequence[str]) -> str:
    """Say how many layers and features were mapped, and which main layers were not.

    Parameters
    ----------
    rows : pandas.DataFrame
        Rows of the study.
    layers, main : sequence of str
        Layers that were mapped, and the network's main layers.

    Returns
    -------
    str
        Such as "over 2 of the 3 main layers (n = 6 features, 3 of each layer; not measured: conv3)".
    """
    live = rows[(rows["part"] == "maps") & (rows["status"] == "live")].drop_duplicates("feature")
    counts = live.groupby("layer").size().reindex(layers, fill_value=0)
    each = " to ".join(dict.fromkeys((str(counts.min()), str(counts.max()))))
    missing = [layer for layer in main if layer not in layers]
    without = f"; not measured: {', '.join(missing)}" if missing else ""
    n = plural(len(live), "feature")
    return f"over {main_phrase(layers, main)} (n = {n}, {each} of each layer{without})"


def main_phrase(layers: Sequence[str], main: Sequence[str]) -> str:
    """Say how many of the main layers were mapped, and which other layers.

    Parameters
    ----------
    layers, main : sequence of str
        Layers that were mapped, and the network's main layers.

    Returns
    -------
    str
        Such as "3 layers", "2 of the 3 main layers", or "2 layers: 1 of the 3 main layers and maxpool1".
    """
    others = [layer for layer in layers if layer not in main]
    mapped = len(layers) - len(others)
    if not main or mapped == len(layers) == len(main):
        return plural(len(layers), "layer")
    every = f"the {len(main)} main layers"
    if not mapped:
        return f"{plural(len(layers), 'layer')} besides {every}: {', '.join(others)}"
    of = every if mapped == len(main) else f"{mapped} of {every}"
    return f"{plural(len(layers), 'layer')}: {of} and {', '.join(others)}" if others else of


def trends_phrase(by_depth: Trends) -> str:
    """List the rank correlations with depth.

    Parameters
    ----------
    by_depth : dict of str to Interval
        Rank correlations by measure.

    Returns
    -------
    str
        Each with its interval.
    """
    values = {name: value_finding("", trend.value, 0, "", trend.low, trend.high) for name, trend in by_depth.items()}
    return ", ".join(f"{SHORT[name]} {format_interval(value)}" for name, value in values.items())


def flatness_phrase(rows: pd.DataFrame, layers: Sequence[str]) -> str:
    """Say how flat the images of the first layer and of the last are.

    The flattest layer is named too where it is another.

    Parameters
    ----------
    rows : pandas.DataFrame
        Rows of the study.
    layers : sequence of str
        Layers that were mapped.

    Returns
    -------
    str
        A sentence.
    """
    live = rows[(rows["part"] == "maps") & (rows["status"] == "live")]
    means = live.groupby(["layer", "feature"])["flatness"].mean().groupby("layer").mean().dropna()
    ends = list(dict.fromkeys((layers[0], layers[-1])))
    text = "Mean flatness of these features is " + " and ".join(f"{format_value(means.get(la))} in {la}" for la in ends)
    if means.empty or means.idxmax() in ends:
        return f"{text}."
    return f"{text}; the flattest images are those of {means.idxmax()}, with {means.max():.2f}."


def dead_phrase(rows: pd.DataFrame, rescue: float) -> str:
    """Count the features that have no gradient at the start.

    Parameters
    ----------
    rows : pandas.DataFrame
        Rows of the study.
    rescue : float
        Share of the steps in which the recipe of the images rescues such features.

    Returns
    -------
    str
        Sentences: without rescue and, where the recipe has one, with it, in the same seed.
    """
    maps, without = (rows[rows["part"] == part] for part in ("maps", "without rescue"))
    same = maps[maps["seed"] == without["seed"].iloc[0]]
    before, after = count_dead(without), count_dead(same)
    of = plural(before[1], "feature")
    if not before[0]:
        return f"Of {of} none lacks a gradient at the start."
    has, stay = ("has", "its image stays") if before[0] == 1 else ("have", "their images stay")
    text = f"Without rescue {before[0]} of {of} {has} no gradient at the start: {stay} the null image."
    if not rescue:
        return text
    names = ", ".join(same.loc[same["status"] == "dead", "feature"])
    rescued = f"{after[0]} {'has' if after[0] == 1 else 'have'} none ({names}). {LEFT}" if names else "all have one"
    return f"{text} With the recipe's rescue, which passes a gradient through dead ReLUs, {rescued}."
