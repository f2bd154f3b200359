"""Measure whether the image of two features together is far from linear.

The article's pair is compared with pairs drawn at random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from analyses.support.decisions import above, below
from analyses.support.findings import CLAIM_WORDS, Finding, mean_finding, value_finding
from analyses.support.settings import resolved_recipe
from analyses.support.study import Context, Outcome, StoredResult, Study, Verdict
from analyses.support.study_command import run_study
from featmap import rng
from featmap.image_shape import Size
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
HALF = 0.5
"""Share of the way from floor to ceiling from which on a joint image is far from linear."""
FIELD = "field"
LAYERS = ("inception4a", "inception4b")
Part = Literal["holds", "holds in part", "does not hold", "is not decided"]
"""Whether a part of the claim holds, in the words of a sentence."""

STUDY = Study(
    "joint_pair",
    section="Layer and Neuron Interactions",
    claim="The joint image of feature 199 of Mixed 6a and feature 201 of Mixed 6b is far from a linear combination of "
    "the two solo images: the patterns of one fill some regions and are missing from others.",
    measured="the interaction report of features 199 and 201 of two consecutive layers under linear steps, compared "
    "with pairs of the same layers drawn at random",
    rule="two parts are judged. The joint image is far from linear if the 95 % interval, over seeds, of the response "
    "nonlinearity minus its floor is above 0 and the mean is more than half of the way from floor to ceiling; this "
    "part holds in part if only the interval is above 0, does not hold if the interval ends below "
    f"{MARGIN:g} (even if it is above 0), and is not decided otherwise. The two divide the image if the interval of "
    "the correlation of their activation maps on it is below 0 (at 0, where one fires says nothing of the other); this "
    "part does not hold if the interval is above 0, and is not decided otherwise, nor where the larger of the two "
    "receptive fields is larger than the image. The claim holds if both parts hold and the image keeps "
    f"{LOST:.0%} or more of the solo response of each; it holds in part if a part holds, or does so in part, does not "
    "hold if none does and one does not hold, and is not decided otherwise",
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


class PairEvidence(NamedTuple):
    """What the verdict about a pair follows from.

    Parameters
    ----------
    excess : tuple of float
        95 % interval, over seeds, of the response nonlinearity minus its floor; NaN below three seeds.
    maps : tuple of float
        The same of the correlation of the two features' activation maps on the joint image, -1 to 1.
    way : float
        Mean excess as a share of the way from floor to ceiling.
    field : float
        Side of the larger of the two receptive fields, divided by the image's; NaN if unknown.
    """

    excess: tuple[float, float]
    maps: tuple[float, float]
    way: float
    field: float

    @property
    def far(self) -> Part:
        """Whether the joint image is far from linear."""
        if below(*self.excess, MARGIN):
            return "does not hold"
        if not above(*self.excess, 0):
            return "is not decided"
        return "holds" if self.way > HALF else "holds in part"

    @property
    def divided(self) -> Part:
        """Whether the two features divide the image."""
        return CLAIM_WORDS[None if self.field > 1 else below(*self.maps, 0)]


def gather_evidence(pair: pd.DataFrame, row: pd.Series, field: float) -> PairEvidence:
    """Gather the evidence from a pair's table by seed, its row of the summary and the share of its field."""
    low, high = t_interval(pair["territory_correlation"].tolist()) or (np.nan, np.nan)
    maps = (float(np.maximum(low, -1)), float(np.minimum(high, 1)))
    return PairEvidence(excess_interval(pair), maps, share_of_way(row.to_frame().T), field)


def share_of_way(rows: pd.DataFrame) -> float:
    """Compute the mean excess of pairs as a share of their mean way from floor to ceiling; NaN without a way."""
    way = (rows["response_nonlinearity_ceiling"] - rows["response_nonlinearity_floor"]).mean()
    return float(rows["excess"].mean() / way) if way > 0 else float("nan")


def share_of_field(context: Context, group: Group, size: Size) -> float:
    """Compute the side of the larger receptive field of a pair, divided by the shorter side of the image."""
    trace = context.network.trace(size)
    fields = [trace.field(unit.layer, unit.channel).size for unit in group]
    return float(max(max(sides) for sides in fields) / min(np.broadcast_to(size, 2)))


def excess_interval(pair: pd.DataFrame) -> tuple[float, float]:
    """Compute the interval over seeds of the nonlinearity minus its floor.

    NaN below three seeds.
    """
    excess = pair["response_nonlinearity"] - pair["response_nonlinearity_floor"]
    return t_interval(excess.tolist()) or (np.nan, np.nan)


def judge(row: pd.Series, evidence: PairEvidence) -> Verdict:
    """Judge the claim by one pair's row of the summary and its evidence, see the rule of the study."""
    parts = (evidence.far, evidence.divided)
    if all(part == "holds" for part in parts) and not lost_units(row):
        return "holds"
    if any(part.startswith("holds") for part in parts):
        return "holds in part"
    return "does not hold" if "does not hold" in parts else "not decided"


def lost_units(row: pd.Series) -> list[str]:
    """List the units, "a" or "b", that the joint image does not keep."""
    return [c for c in "ab" if row[f"retention_{c}"] < LOST]


def collect_findings(pair: pd.DataFrame, row: pd.Series, evidence: PairEvidence, random: pd.DataFrame) -> list[Finding]:
    """Collect the findings of the named pair and of the random pairs.

    `pair` is the named pair's table by seed, `row` its row of the summary.
    """
    n = int(row["seeds"])
    low, high = evidence.excess
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
        low, high = evidence.maps if name == "territory_correlation" else (low, high)
        findings.append(value_finding(name, row[name], n, f"the pair: {words}; n seeds", low, high))
    words = "side of the larger receptive field of the two, divided by the image's"
    findings.append(value_finding(FIELD, evidence.field, 1, words))
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
    maps = rows["territory_correlation"]
    words = "random pairs: correlation of the two activation maps on the joint image; n pairs"
    findings.append(mean_finding("random_maps", maps.to_numpy(), words))
    below = float((defined < row["excess"]).mean()) if np.isfinite(row["excess"]) else np.nan
    return [*findings, value_finding("rank", below, count, "share of random pairs that are more linear than the pair")]


def undefined_reasons(random: pd.DataFrame) -> str:
    """List in brackets why random pairs are undefined; empty where all are defined."""
    statuses = sorted({str(s) for s in random.loc[random["excess"].isna(), "status"]})
    return f" ({', '.join(statuses)})" if statuses else ""


def write_conclusion(
    units: Sequence[str], seeds: int, row: pd.Series, evidence: PairEvidence, random: pd.DataFrame
) -> str:
    """Write the conclusion about the pair of these two units."""
    text = _share_sentences(row, seeds)
    rows = random[random["excess"].notna()]
    if np.isfinite(row["excess"]):
        text += f". That the joint image is far from a linear combination {evidence.far}: the share exceeds its floor "
        text += f"by {row['excess']:.3f}{_format_ends(evidence.excess)}{_describe_way(evidence.way)}"
        text += " (far is more than half of it)" if np.isfinite(evidence.way) else ""
        text += _compare_sentences(row, rows, random)
    if np.isfinite([row["territory_divided"], row["territory_correlation"]]).all():
        text += f". That the two divide the image {evidence.divided}"
        too_large = f", since the larger of their receptive fields is {evidence.field:.2g} times as wide as the image"
        text += f"{too_large if evidence.field > 1 else ''}: their activation maps correlate by "
        text += f"{row['territory_correlation']:.2f}{_format_ends(evidence.maps, '.2f')}, and at "
        text += f"{row['territory_divided']:.0%} of the positions where either fires, only one does"
        others = rows["territory_correlation"].mean()
        text += f" (random pairs' maps correlate by {others:.2f} on average)" if np.isfinite(others) else ""
    if np.isfinite([row["retention_a"], row["retention_b"]]).all():
        text += f". The joint image keeps {row['retention_a']:.2f} and {row['retention_b']:.2f} of the solo responses"
        gone = [units["ab".index(c)] for c in lost_units(row)]
        text += f", so it is hardly an image of {' or '.join(gone)}" if gone else ""
    return f"{' + '.join(units)}: {text}."


def _compare_sentences(row: pd.Series, rows: pd.DataFrame, random: pd.DataFrame) -> str:
    """Compare the pair with the random pairs, of which `rows` are defined; "" where none is."""
    if not len(rows):
        return ""
    excess = rows["excess"]
    below, missing = int((excess < row["excess"]).sum()), len(random) - len(rows)
    way = _describe_way(share_of_way(rows))
    if len(rows) == 1:
        text = f". In the one of {len(random)} random pairs that is defined" if missing else ". In the one random pair"
        text += (
            f" it does by {excess.iloc[0]:.3f}{way}, so that it is {'more' if below else 'less'} linear than this pair"
        )
    else:
        text = f". In random pairs ({len(rows)} of {len(random)} defined) it does by {excess.mean():.3f} on average "
        text += f"({excess.min():.3f} to {excess.max():.3f}){way}; {below} of them "
        text += f"{'is' if below == 1 else 'are'} more linear than this pair"
    if missing:
        others = "The other one is" if missing == 1 else "The others are"
        text += f". {others} undefined{undefined_reasons(random)}"
    return text


def _describe_way(way: float) -> str:
    """Say how far an excess is on the way from floor to ceiling; "" where that is unknown."""
    return f", {way:z.0%} of the way from floor to ceiling" if np.isfinite(way) else ""


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
    field = stored.value(FIELD) if FIELD in stored.findings else float("nan")
    evidence = gather_evidence(pair, row, field)
    return judge(row, evidence), write_conclusion(units, stored.settings["seeds"], row, evidence, random)


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
    evidence = gather_evidence(pair, row, share_of_field(context, job.groups[0], job.recipe.size))
    own = [k for k, (g, _) in enumerate(job.joints) if g == 0]
    defined = [k for k in own if arrays.status(k) == OK]
    rows = interaction_report.to_long(table, job)
    rows.insert(0, "named", (rows["a"] + " + " + rows["b"]) == job.labels[0])
    return Outcome(
        rows,
        collect_findings(pair, row, evidence, random),
        judge(row, evidence),
        write_conclusion([str(u) for u in job.groups[0]], len(job.seeds), row, evidence, random),
        {
            ".webp": style.encode_webp(
                interaction_panel.panel(interaction_report.make_panel(arrays, table, row, (defined or own)[0])), dpi=100
            )
        },
    )


if __name__ == "__main__":
    run_study(STUDY, measure)
