"""Measure whether the image of two features together is far from linear.

The article's pair is compared with pairs drawn at random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from analyses.support.findings import CLAIM_WORDS, Finding, mean_finding, value_finding
from analyses.support.settings import resolved_recipe
from analyses.support.study import Context, Outcome, StoredResult, Study, Verdict
from analyses.support.study_command import run_study
from featmap import rng
from featmap.interaction import groups
from featmap.interaction import report as interaction_report
from featmap.interaction import run as pairings
from featmap.interaction.conclusion import format_percent, format_seeds, state_conclusion
from featmap.interaction.job import Group, JointJob
from featmap.interaction.kinds import summarise
from featmap.interaction.statistics import OK, JointArrays
from featmap.network.unit import Unit
from featmap.plotting import interaction_panel, style
from featmap.runs import device, lifecycle
from featmap.runs.engine import Execution
from featmap.stats.correlation import t_interval

CHANNELS = (199, 201)
"""The article's pair."""
SIZE, FULL_SIZE, FULL_STEPS = 96, 299, 300
LOST = 0.1
"""A unit is lost below this share of its solo response: the joint image is that of the other unit."""
MARGIN = 0.02
"""Least excess of the response nonlinearity over its floor that counts as far from linear."""
LAYERS = ("inception4a", "inception4b")

STUDY = Study(
    "joint_pair",
    section="Layer and Neuron Interactions",
    claim="The joint image of feature 199 of Mixed 6a and feature 201 of Mixed 6b is far from a linear combination of "
    "the two solo images: the patterns of one fill some regions and are missing from others.",
    measured="the interaction report of features 199 and 201 of two consecutive layers under linear steps, compared "
    "with pairs of the same layers drawn at random",
    rule="linearity: the joint image is not linear if the 95 % interval, over seeds, of the response nonlinearity "
    f"minus its floor is above 0, but for differences below {MARGIN:g} (linear if it ends below that). Division: the "
    "two divide the image if the interval of the correlation of their activation maps on it is below 0 (they share it "
    "if it is above 0). The claim holds if the image is not linear, the nonlinearity is nearer to its ceiling than to "
    f"its floor, the two divide the image, and it keeps {LOST:.0%} or more of the solo response of each; it holds in "
    "part if one of the two parts holds, does not hold if none does and one is not so, and is not decided otherwise",
    full=f"{FULL_SIZE} pixels and {FULL_STEPS} steps instead of {SIZE} and 60",
    layers={
        "reference": LAYERS,
        "googlenet": LAYERS,
        "squeezenet": ("features.9", "features.10"),
        "inception_v3": ("Mixed_6a", "Mixed_6b"),
        "resnet50": ("layer3.2", "layer3.3"),
    },
    seeds=5,
    pair=True,
)
STATISTICS = {
    "image_nonlinearity": "share of the joint image's pixel variance that the solo images do not explain",
    "image_nonlinearity_floor": "floor of that share",
    "retention_a": "share of its solo response that the first feature keeps on the joint image",
    "retention_b": "share of its solo response that the second feature keeps on the joint image",
    "crosstalk_a_on_b": "share of its solo response that the first feature gives to the image of the second",
    "crosstalk_b_on_a": "share of its solo response that the second feature gives to the image of the first",
    "second_difference": "second difference divided by the joint image's response",
    "joint_gain": "joint gain over the best blend of the solo images",
    "territory_divided": "share of firing positions where only one of the two fires",
    "territory_correlation": "correlation of the two activation maps on the joint image",
    "gradient_agreement": "mean cosine of the two gradients along the joint descent",
}


def article_pair(context: Context) -> Group:
    """Choose the article's pair, or the feature of each layer that ``--units`` names first.

    In layers with fewer channels, the channel numbers are taken modulo their number.
    """
    size = context.network.input_size
    return tuple(
        Unit(layer, next(iter(context.named_channels(layer)), channel % context.network.layer(layer, size).channels))
        for layer, channel in zip(context.layers, CHANNELS, strict=True)
    )


def random_pairs(context: Context, named: Group) -> list[Group]:
    """Draw pairs at random, a third as many as `features`.

    No feature is in two pairs or in the named one; within one layer, a feature may be in two of them.
    """
    count, unnamed = max(1, context.features // 3), replace(context, units=())
    drawn = []
    for k, unit in enumerate(named):
        named_here = {unit.channel, *context.named_channels(unit.layer)}
        free = [c for c in unnamed.draw_channels(unit.layer, count + len(named_here)) if c not in named_here][:count]
        order = rng.generator("pairs", unit.layer, k).permutation(len(free))
        drawn.append([Unit(unit.layer, free[i]) for i in order])
    return [(a, b) for a, b in zip(*drawn, strict=False) if a != b]


def make_job(context: Context) -> JointJob:
    """Combine the named pair and the random ones in one job.

    Solo images shared by several pairs are then made once.
    """
    size, steps = (FULL_SIZE, FULL_STEPS) if context.full else (min(SIZE, context.network.input_size), None)
    named = article_pair(context)
    recipe = "interact" if context.rescue else "interact-unrescued"
    return groups.pairs_job(
        (named, *random_pairs(context, named)),
        context.network,
        resolved_recipe(context.network, recipe, context.size or size, steps, **context.changes),
        groups.JointSettings(seeds=context.seeds, device=device.select_device(context.device)),
    )


class PairIntervals(NamedTuple):
    """95 % intervals of a pair over its seeds; NaN below three seeds.

    Parameters
    ----------
    excess : tuple of float
        Of the response nonlinearity minus its floor.
    maps : tuple of float
        Of the correlation of the two features' activation maps on the joint image, -1 to 1.
    """

    excess: tuple[float, float]
    maps: tuple[float, float]

    @property
    def nonlinear(self) -> bool | None:
        """Whether the joint image is not linear; None where the interval decides nothing."""
        low, high = self.excess
        return False if high < MARGIN else True if low > 0 else None

    @property
    def divided(self) -> bool | None:
        """Whether the two features divide the image; None where the interval decides nothing."""
        low, high = self.maps
        return True if high < 0 else False if low > 0 else None


def pair_intervals(pair: pd.DataFrame) -> PairIntervals:
    """Compute the intervals of a pair from its table by seed."""
    low, high = t_interval(pair["territory_correlation"].tolist()) or (np.nan, np.nan)
    return PairIntervals(excess_interval(pair), (float(np.maximum(low, -1)), float(np.minimum(high, 1))))


def excess_interval(pair: pd.DataFrame) -> tuple[float, float]:
    """Compute the interval over seeds of the nonlinearity minus its floor.

    NaN below three seeds.
    """
    excess = pair["response_nonlinearity"] - pair["response_nonlinearity_floor"]
    return t_interval(excess.tolist()) or (np.nan, np.nan)


def judge(row: pd.Series, intervals: PairIntervals) -> Verdict:
    """Judge the claim by one pair's row of the summary and its intervals, see the rule of the study."""
    parts = (intervals.nonlinear, intervals.divided)
    middle = (row["response_nonlinearity_floor"] + row["response_nonlinearity_ceiling"]) / 2
    if all(parts) and row["response_nonlinearity"] > middle and not lost_units(row):
        return "holds"
    return "holds in part" if True in parts else "does not hold" if False in parts else "not decided"


def lost_units(row: pd.Series) -> list[str]:
    """List the units, "a" or "b", that the joint image does not keep."""
    return [c for c in "ab" if row[f"retention_{c}"] < LOST]


def collect_findings(pair: pd.DataFrame, row: pd.Series, random: pd.DataFrame) -> list[Finding]:
    """Collect the findings of the named pair and of the random pairs.

    `pair` is the named pair's table by seed, `row` its row of the summary.
    """
    n = int(row["seeds"])
    low, high = excess_interval(pair)
    share = "of the joint image's response not explained by a mixture of the solo images' responses"
    findings = [
        value_finding(
            "headline", row["response_nonlinearity"], n, f"the pair: share {share}; n seeds", row["low"], row["high"]
        ),
        value_finding("floor", row["response_nonlinearity_floor"], n, "floor of that share (a feature against itself)"),
        value_finding(
            "ceiling", row["response_nonlinearity_ceiling"], n, "ceiling of that share (images of unrelated features)"
        ),
        value_finding("excess", row["excess"], n, "the pair's share minus its floor; n seeds", low, high),
        value_finding("p", row["p"], n, "one-sided p of that share not being above its floor; n seeds"),
    ]
    for name, words in STATISTICS.items():
        low, high = t_interval(pair[name].tolist()) or (np.nan, np.nan)
        findings.append(value_finding(name, row[name], n, f"the pair: {words}; n seeds", low, high))
    return findings + compare_with_random(row, random)


def compare_with_random(row: pd.Series, random: pd.DataFrame) -> list[Finding]:
    """Summarise the random pairs, and rank the named pair among them."""
    defined = random["excess"].dropna()
    count, words = len(defined), f"random pairs: the share minus its floor; n pairs of {len(random)} drawn"
    gaps = f"random pairs that are undefined{undefined_reasons(random)}"
    undefined = value_finding("random_undefined", len(random) - count, len(random), gaps)
    if not count:
        return [value_finding("random_excess", np.nan, 0, words), undefined]
    findings = [mean_finding("random_excess", defined.to_numpy(), words), undefined]
    above = float((random["q"] < 0.05).sum() / count) if random["q"].notna().any() else np.nan
    findings.append(value_finding("random_above", above, count, "share of random pairs above their floor (FDR 5 %)"))
    rows = random.loc[defined.index]
    losing = float(np.mean([bool(lost_units(one)) for _, one in rows.iterrows()]))
    words = f"share of random pairs that lose one unit (less than {LOST:.0%} of its solo response)"
    findings.append(value_finding("random_lost", losing, count, words))
    below = float((defined < row["excess"]).mean()) if np.isfinite(row["excess"]) else np.nan
    return [*findings, value_finding("rank", below, count, "share of random pairs that are more linear than the pair")]


def undefined_reasons(random: pd.DataFrame) -> str:
    """List in brackets why random pairs are undefined; empty where all are defined."""
    statuses = sorted({str(s) for s in random.loc[random["excess"].isna(), "status"]})
    return f" ({', '.join(statuses)})" if statuses else ""


def write_conclusion(
    units: Sequence[str], seeds: int, row: pd.Series, intervals: PairIntervals, random: pd.DataFrame
) -> str:
    """Write the conclusion about the pair of these two units."""
    text = _share_sentences(row, seeds)
    if np.isfinite(row["excess"]):
        text += f". That the joint image is not a linear combination {CLAIM_WORDS[intervals.nonlinear]}: "
        text += f"the share exceeds its floor by {row['excess']:.3f}{_format_ends(intervals.excess)}"
        text += _describe_way(row.to_frame().T)
    defined = random["excess"].dropna()
    if len(defined) and np.isfinite(row["excess"]):
        text += f". In random pairs ({len(defined)} of {len(random)} defined) it does by {defined.mean():.3f} on "
        text += f"average{_describe_way(random.loc[defined.index])} ({defined.min():.3f} to {defined.max():.3f}"
        text += f"); {(defined < row['excess']).sum()} of them are more linear than this pair"
        text += f". The others are undefined{undefined_reasons(random)}" if len(defined) < len(random) else ""
    if np.isfinite([row["territory_divided"], row["territory_correlation"]]).all():
        text += f". That the two divide the image {CLAIM_WORDS[intervals.divided]}: their activation maps correlate by "
        text += f"{row['territory_correlation']:.2f}{_format_ends(intervals.maps, '.2f')}, and at "
        text += f"{row['territory_divided']:.0%} of the positions where either fires, only one does"
    if np.isfinite([row["retention_a"], row["retention_b"]]).all():
        text += f". The joint image keeps {row['retention_a']:.2f} and {row['retention_b']:.2f} of the solo responses"
        gone = [units["ab".index(c)] for c in lost_units(row)]
        text += f", so it is hardly an image of {' or '.join(gone)}" if gone else ""
    return f"{' + '.join(units)}: {text}."


def _describe_way(rows: pd.DataFrame) -> str:
    """Say how far pairs are on the way from their floors to their ceilings; "" where these are not apart."""
    way = (rows["response_nonlinearity_ceiling"] - rows["response_nonlinearity_floor"]).mean()
    return f", {rows['excess'].mean() / way:.0%} of the way from floor to ceiling" if way > 0 else ""


def _format_ends(ends: tuple[float, float], form: str = ".3f") -> str:
    """Format the ends of an interval in brackets after a space; "" where they are undefined."""
    return f" [{ends[0]:{form}}, {ends[1]:{form}}]" if np.isfinite(ends).all() else ""


def _share_sentences(row: pd.Series, seeds: int) -> str:
    """State the share that a mixture does not explain, its floor and its ceiling."""
    share, low, high = (row[name] for name in ("response_nonlinearity", "low", "high"))
    if not np.isfinite(share):
        return state_conclusion(row, seeds).rstrip(".")
    text = f"{format_percent(share)} % of the joint image's response is not explained by a mixture of the solo images' "
    text += f"responses ({format_seeds(int(row['seeds']))}"
    if np.isfinite(low):
        text += f"; interval {format_percent(max(low, 0.0))} to {format_percent(min(high, 1.0))} %"
    limits = {end: row[f"response_nonlinearity_{end}"] for end in ("floor", "ceiling")}
    ends = [f"{end} is {format_percent(value)} %" for end, value in limits.items() if np.isfinite(value)]
    return text + (f"). Its {' and its '.join(ends)}" if ends else ")")


def restate(stored: StoredResult) -> tuple[Verdict, str]:
    """Write verdict and conclusion from the stored result."""
    rows = stored.rows.assign(group=stored.rows["a"] + " + " + stored.rows["b"])
    wide = rows.pivot(index=["group", "seed", "status"], columns="figure", values="value").reset_index()
    order = {group: k for k, group in enumerate(rows["group"].unique())}
    table = wide.sort_values(["group", "seed"], key=lambda v: v.map(order) if v.name == "group" else v)
    summary = summarise(table.assign(second_difference_at=""))
    named = rows[rows["named"]].iloc[0]
    pair, row = table[table["group"] == named["group"]], summary.set_index("group").loc[named["group"]]
    units, random = [named["a"], named["b"]], summary[summary["group"] != named["group"]]
    intervals = pair_intervals(pair)
    return judge(row, intervals), write_conclusion(units, stored.settings["seeds"], row, intervals, random)


def measure(context: Context) -> Outcome:
    """Measure the article's pair and random ones."""
    job = make_job(context)
    context.note_recipe(job.recipe)
    folder = context.folder("pairs", recipe=job.recipe.digest, pairs=job.labels, seeds=job.seeds)
    run = lifecycle.open_run(job, folder)
    pairings.carry_out(job, run, Execution(watcher=context.watcher))
    arrays = JointArrays(job, run.arrays)
    table = arrays.table()
    summary = summarise(table)
    row, random = summary.iloc[0], summary.iloc[1:]
    pair = table[table["group"] == job.labels[0]]
    intervals = pair_intervals(pair)
    own = [k for k, (g, _) in enumerate(job.joints) if g == 0]
    defined = [k for k in own if arrays.status(k) == OK]
    rows = interaction_report.to_long(table, job)
    rows.insert(0, "named", (rows["a"] + " + " + rows["b"]) == job.labels[0])
    return Outcome(
        rows,
        collect_findings(pair, row, random),
        judge(row, intervals),
        write_conclusion([str(u) for u in job.groups[0]], len(job.seeds), row, intervals, random),
        {
            ".webp": style.encode_webp(
                interaction_panel.panel(interaction_report.make_panel(arrays, table, row, (defined or own)[0])), dpi=100
            )
        },
    )


if __name__ == "__main__":
    run_study(STUDY, measure)
