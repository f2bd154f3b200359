"""Measure which features rise while one of them is maximised, and how high the runner-up ends.

    python -m analyses.coactivation [--layers inception4a,inception5a] [--feature 5]

The feature that the claim names (of the last layer) is followed step by step; the drawn features of every layer show
how common the effect is. The runner-up, the highest other feature, is measured in two units: as a share of the target's
activation, as the article plots it, which depends on the features' scales, and as a share of its own best, which does
not. As the highest of hundreds it is high whatever the target is. Whether it responds to the target's image is
therefore tested on other seeds than the one it was chosen on, against the other features' images there
(`analyses.formulas.held_out`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib import pyplot as plt
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from analyses.formulas.held_out import HeldOutRunnersUp
from analyses.support.decisions import above
from analyses.support.findings import CLAIM_WORDS, Finding, interval, mean_finding, share_finding, value_finding
from analyses.support.runners_up import (
    COLUMNS,
    HELD_OUT,
    RunnerUp,
    best_responses,
    describe_runner_up,
    evaluate_runners_up,
    held_out_rows,
    image_channels,
    mean_ratio,
    rank_others,
    ranking_rows,
    risen_channels,
)
from analyses.support.study import FIRST, Context, Outcome, StoredResult, Study, Verdict
from analyses.support.study_command import run_study
from analyses.support.units import named_findings
from analyses.support.wording import plural
from featmap.plotting import style
from featmap.runs.folder_layout import LIVE_CODES
from featmap.stats.correlation import TIE

ALMOST, P = 0.8, 0.05
"""Share of the target's activation that is almost as active, and the level of the test."""
FEWEST = 1 + int(np.log(1 / P) / np.log(2))
"""Fewest features whose signed ranks can have a p below the level: of n equal signs it is 2 ** -n."""
RANKED, PROFILE = 7, 512
"""Highest other features that are followed, and features whose final activations are stored."""
RED, DARK, SHADES = "#d62728", "#222222", ("#0072b2", "#9a9a9a")

STUDY = Study(
    "coactivation",
    section="Feature Visualization from First Principles",
    claim="While the total activation of one feature is maximised (feature 5 of GoogLeNet's layer 5a), the others do "
    "not stay as they were, and another one ends almost as active as the target.",
    measured="the average activation of every feature at every step for the named feature, and the final activation of "
    "the runner-up (the highest other feature), for the named and for drawn features: as a share of the target's "
    "activation and of its own best, compared with the null image and with other features' images. The runner-up of "
    "each drawn feature is also chosen on the first seed and evaluated on the others: its activation there divided by "
    "the target's, the same minus its mean on the other drawn features' images, and the share of those images that "
    "drive it at least as high (0.5 by chance)",
    rule="a feature ends almost as active if the named feature's runner-up rises above its null image from every seed "
    f"and the 95 % interval, over seeds, of its share of the target's activation is above {ALMOST:g} (not so if it "
    "does not rise or the interval is below; not decided if the interval spans that, or with one seed). Runners-up "
    "respond to their targets if in every layer fewer than half of the other drawn features' images drive a runner-up "
    "at least as high, on seeds that it was not chosen on (Wilcoxon's signed ranks over features, one-sided, p < "
    f"{P:g}). The claim holds if both are true, in part if one is, and does not hold if neither is. It is not decided "
    "if the first is not and the second is not true, if the second is undefined (one seed; fewer than three features "
    "of a layer that rose, or one whose response is not positive), nor where no layer refutes the second and one has "
    "so few features that the test cannot reach its level: the smallest p of n features, ties at 0.5 left out, is 2 to "
    f"the power of -n, so that {FEWEST} are needed",
    units={"inception_v3": (FIRST,)},
    full="`article-normalised`: octaves of 299, 340 and 380 pixels, 300 steps",
    feature=5,
)


def measure(context: Context) -> Outcome:
    """Follow the named feature and find every drawn feature's runner-up.

    Each runner-up is compared with its response to its own image.
    """
    recipe = "article-normalised" if context.full else "pixels"
    settings: dict[str, Any] = {"recipe": recipe, "seeds": context.seeds} | context.sized_changes
    named_layer, named = context.layers[-1], int(context.feature or 0)
    context.log(f"following {named_layer}:{named}")
    steps = context.maximise([f"{named_layer}:{named}"], "named", frames=5 if context.full else 1, **settings)
    ranking = rank_others(steps["A"].values.mean(0)[0], named)[:RANKED]
    runners, of_named = [], []
    datasets: dict[str, xr.Dataset] = {}
    chosen: dict[str, HeldOutRunnersUp] = {}
    owns: dict[str, dict[int, np.ndarray]] = {}
    for layer in context.layers:
        context.log(f"drawn features of {layer}")
        data = context.maximise(context.draw_units(layer), "drawn", responses=layer, **settings)
        datasets[layer], chosen[layer] = data, evaluate_runners_up(data)
        pairs = [(t, best) for t in risen_channels(data) if (best := find_runner_up(data, t)) is not None]
        extra = list(ranking) if layer == named_layer else []
        own = owns[layer] = best_own_responses(context, layer, [*(c for _, c in pairs), *extra], settings)
        runners += [describe_runner_up(layer, data, data, t, c, own) for t, c in pairs]
        if layer == named_layer:
            of_named = (
                [describe_runner_up(layer, steps, data, named, int(c), own) for c in ranking]
                if len(risen_channels(steps))
                else []
            )
    rankings = [row for la, data in datasets.items() for row in ranking_rows(la, data, best_responses(data, owns[la]))]
    rankings += [row for la, data in datasets.items() for row in held_out_rows(la, data, chosen[la])]
    outcome = build_outcome(steps, f"{named_layer}:{named}", of_named, runners, chosen, rankings)
    shares = {f"{r.layer}:{r.target}": r.activation / np.where(r.reached > 0, r.reached, np.nan) for r in runners}
    words = "runner-up's activation divided by the target's (n seeds)"
    return replace(outcome, findings=[*outcome.findings, *named_findings(context, "share", shares, words)])


def find_runner_up(data: xr.Dataset, target: int) -> int | None:
    """Find the runner-up of a target by the mean response over seeds.

    None in a layer of one feature.
    """
    others = rank_others(data["A"].values[:, image_channels(data).index(target)].mean(0), target)
    return int(others[0]) if len(others) else None


def best_own_responses(
    context: Context, layer: str, channels: Sequence[int], settings: dict[str, Any]
) -> dict[int, np.ndarray]:
    """Measure each feature's response to its own image, by seed.

    NaN where its descent did not rise.
    """
    channels = sorted({int(c) for c in channels})
    if not channels:
        return {}
    data = context.maximise([f"{layer}:{c}" for c in channels], "own", responses=layer, **settings)
    rose = np.isin(data["status"].values, LIVE_CODES)
    values = np.where(rose, data["activation"].values, np.nan)
    return {c: values[:, k] for k, c in enumerate(channels)}


def any_defined(values: Sequence[float]) -> bool:
    """Check whether there is a value to average."""
    return bool(np.isfinite(np.asarray(values, dtype=float)).any())


def collect_findings(
    named: str, of_named: Sequence[RunnerUp], runners: Sequence[RunnerUp], chosen: Mapping[str, HeldOutRunnersUp]
) -> list[Finding]:
    """Collect the findings that are defined."""
    findings = []
    if of_named:
        first = of_named[0]
        for name, over, under, words in (
            (
                "named_share",
                first.activation,
                first.reached,
                "runner-up's activation divided by the target's (over seeds)",
            ),
            ("named_before", first.null, first.reached, "the same on the null image (over seeds)"),
            (
                "named_own",
                first.activation - first.null,
                first.own - first.null,
                "runner-up's activation as a share of its own best (over seeds)",
            ),
        ):
            if np.isfinite(mean_ratio(over, under)):
                findings.append(mean_finding(name, over / under, f"{named}: {words}"))
    for layer in dict.fromkeys(r.layer for r in runners):
        these = [r for r in runners if r.layer == layer]
        for name, values, words in (
            ("share", [r.share for r in these], "runner-up's activation divided by the target's"),
            ("before", [r.before for r in these], "the same on the null image"),
            ("own", [r.coactivation for r in these], "runner-up's activation as a share of its own best"),
            ("floor", [r.floor for r in these], "the same on other features' images"),
            ("rank", [r.rank for r in these], "its rank among all features on other features' images"),
        ):
            if any_defined(values):
                findings.append(mean_finding(f"{name}:{layer}", values, f"drawn features of {layer}: {words}"))
        shares = np.array([r.share for r in these])
        shares = shares[np.isfinite(shares)]
        if len(shares):
            words = f"share of {layer}'s features whose runner-up reaches {ALMOST:g} of their activation"
            findings.append(share_finding(f"almost:{layer}", int((shares >= ALMOST).sum()), len(shares), words))
        findings += held_out_findings(layer, chosen[layer]) if layer in chosen else []
    return findings


def held_out_findings(layer: str, one: HeldOutRunnersUp) -> list[Finding]:
    """Collect what runners-up chosen on the first seed do on the others.

    Empty where that is undefined.
    """
    if not np.isfinite(one.p):
        return []
    what = f"{layer}: runner-up chosen on the first seed, evaluated on the others: "
    return [
        mean_finding(f"held_share:{layer}", one.share, f"{what}its activation divided by the target's"),
        mean_finding(f"gap:{layer}", one.gap, f"{what}the same minus its mean on the other drawn features' images"),
        mean_finding(
            f"percentile:{layer}",
            one.percentile,
            f"{what}share of those images that drive it at least as high (0.5 by chance)",
        ),
        value_finding(f"p:{layer}", one.p, len(one.gap), f"{layer}: p of that share not being below 0.5"),
    ]


def respond_to_targets(chosen: Mapping[str, HeldOutRunnersUp]) -> bool | None:
    """Check whether the runners-up respond to their targets' images.

    This must be so in every layer, on seeds that they were not chosen on; None where it is undefined, or where so few
    features were drawn that the test cannot reach its level.
    """
    p = [one.p for one in chosen.values()]
    if not p or not np.isfinite(p).all():
        return None
    able = [count_ranked(one) >= FEWEST for one in chosen.values()]
    if any(x >= P for x, enough in zip(p, able, strict=True) if enough):
        return False
    return True if all(able) else None


def count_ranked(one: HeldOutRunnersUp) -> int:
    """Count the features that have a signed rank: a share of exactly a half has none, nor has an undefined one."""
    return int(np.count_nonzero(np.abs(one.percentile - 0.5) > TIE))


def describe_too_few(chosen: Mapping[str, HeldOutRunnersUp], runners: Sequence[RunnerUp]) -> str:
    """Say in which layers the test is undefined or cannot reach its level, and what would be needed."""
    if all(len(r.activation) < 2 for r in runners):
        return ". With one seed no runner-up can be measured on another: two seeds are needed" if runners else ""
    text = ""
    for layer, one in chosen.items():
        drawn = sum(r.layer == layer for r in runners)
        count = count_ranked(one) if np.isfinite(one.p) else drawn
        if count >= FEWEST:
            undefined = f". In {layer} the test is undefined: a feature's response to its own image is not positive"
            text += "" if np.isfinite(one.p) else undefined
            continue
        tied = f" ({drawn - count} of {drawn} have a tie and no rank)" if count < drawn else ""
        text += (
            f". In {layer} the test cannot reach its level: its smallest p with {count} features{tied} is "
            f"{0.5**count:.2g}. At least {FEWEST} with a rank are needed"
        )
    return text


def judge(of_named: Sequence[RunnerUp], chosen: Mapping[str, HeldOutRunnersUp]) -> Verdict:
    """Judge the claim.

    The named feature's runner-up has to rise above its null image from every seed and reach `ALMOST` of the target's
    activation, and runners-up have to pass `respond_to_targets`, that is, not just be the highest of many features that
    are high on some image. If both are so the claim holds, if one of them, in part.
    """
    own = respond_to_targets(chosen)
    if not of_named or not any_defined([of_named[0].share]) or own is None:
        return "not decided"
    almost = ends_almost_as_active(of_named[0])
    if almost or own:
        return "holds" if almost and own else "holds in part"
    return "does not hold" if almost is False else "not decided"


def ends_almost_as_active(first: RunnerUp) -> bool | None:
    """Check whether a runner-up rises above its null image from every seed, and to `ALMOST` of the target.

    None where the interval over seeds spans that, or is undefined.
    """
    shares = first.shares
    if not any_defined(shares):
        return None
    if not (first.activation > first.null).all():
        return False
    _, low, high = interval(shares)
    if np.isfinite(shares).sum() < 2:
        return None
    return above(low, high, ALMOST)


def build_outcome(
    steps: xr.Dataset,
    named: str,
    of_named: Sequence[RunnerUp],
    runners: Sequence[RunnerUp],
    chosen: Mapping[str, HeldOutRunnersUp],
    rankings: Sequence[tuple[Any, ...]],
) -> Outcome:
    """Build rows, findings, verdict, conclusion and figure."""
    return Outcome(
        pd.DataFrame([*tidy_table(steps, named, of_named, runners), *rankings], columns=COLUMNS),
        collect_findings(named, of_named, runners, chosen),
        judge(of_named, chosen),
        write_conclusion(named, of_named, runners, chosen),
        {"": draw_figure(steps, named, of_named, runners, chosen)},
    )


def write_conclusion(
    named: str, of_named: Sequence[RunnerUp], runners: Sequence[RunnerUp], chosen: Mapping[str, HeldOutRunnersUp]
) -> str:
    """Write the conclusion."""
    if of_named:
        first = of_named[0]
        count, almost = int(np.isfinite(first.shares).sum()), CLAIM_WORDS[ends_almost_as_active(first)]
        mean, low, high = interval(first.shares) if count else (np.nan,) * 3
        text = (
            f"That another feature ends almost as active {almost}: while {named} was maximised, feature "
            f"{first.channel} reached {mean:.2f}{f' [{low:.2f}, {high:.2f}]' * (count > 1)} of its activation (limit "
            f"{ALMOST:g}; n = {plural(count, 'seed')}; {first.before:.2f} on the null image)"
        )
        own = first.coactivation
        text += f" and {own:.2f} of its own best" if np.isfinite(own) else "; its own descent did not rise"
    else:
        text = f"{named} did not rise"
    shares = [r.share for r in runners]
    if any_defined(shares):
        mean, low, high = interval(shares)
        text += (
            f". Over {int(np.isfinite(shares).sum())} drawn features the runner-up reaches {mean:.2f} "
            f"[{low:.2f}, {high:.2f}] of the target's activation"
        )
        text += held_out_sentence(chosen)
    return text + describe_too_few(chosen, runners) + "."


def held_out_sentence(chosen: Mapping[str, HeldOutRunnersUp]) -> str:
    """Describe runners-up on seeds that they were not chosen on."""
    defined = {layer: one for layer, one in chosen.items() if np.isfinite(one.p)}
    if not defined:
        return ""
    parts = []
    for layer, one in defined.items():
        mean, low, high = interval(one.share)
        parts.append(
            f"In {layer} they reach {mean:.2f} [{low:.2f}, {high:.2f}] of the target's activation, "
            f"{one.gap.mean():.2f} above their mean on the other features' images (p {one.p:.2g}); "
            f"{one.percentile.mean():.0%} of those images drive them as high"
        )
    words = f"That runners-up respond to their targets' images {CLAIM_WORDS[respond_to_targets(chosen)]}: they were "
    return ". " + ". ".join([f"{words}chosen on one seed and measured on the others", *parts])


def restate(stored: StoredResult) -> tuple[Verdict, str]:
    """Write verdict and conclusion from the stored result."""
    rows = stored.rows
    curve = rows[rows["part"] == "curve"].iloc[0]
    named = (str(curve["layer"]), int(curve["target"]))
    of_named, runners = [], []
    found = rows[rows["part"].str.startswith("runner-up: ")]
    # the named feature's come first; where it was also drawn, its own runner-up is listed again at the end
    for (layer, target, channel), own in found.groupby(["layer", "target", "feature"], sort=False):
        by = {str(part).partition(": ")[2]: one["value"].to_numpy() for part, one in own.groupby("part")}
        names = ("activation", "null", "target", "own best", "on other images")
        count = stored.settings["seeds"]
        for first in range(0, len(by["activation"]), count):
            values = [by[name][first : first + count] for name in names]
            one = RunnerUp(str(layer), int(target), int(channel), *values, rank=float("nan"))
            (of_named if (layer, target) == named and not first else runners).append(one)
    chosen = {}
    for layer in stored.settings["layers"]:
        parts = [rows[(rows["part"] == f"other seeds: {what}") & (rows["layer"] == layer)] for what in HELD_OUT]
        p = stored.value(f"p:{layer}") if f"p:{layer}" in stored.findings else np.nan
        chosen[layer] = HeldOutRunnersUp(parts[0]["feature"].to_numpy(), *(v["value"].to_numpy() for v in parts), p)
    return judge(of_named, chosen), write_conclusion(":".join(map(str, named)), of_named, runners, chosen)


def tidy_table(
    steps: xr.Dataset, named: str, of_named: Sequence[RunnerUp], runners: Sequence[RunnerUp]
) -> list[tuple[Any, ...]]:
    """Arrange the named feature's curves and profile, and all runners-up, as rows.

    The profile holds the `PROFILE` highest features.
    """
    layer, _, target = named.rpartition(":")
    channels = [int(target), *(r.channel for r in of_named)]
    rows: list[tuple[Any, ...]] = []
    for s, seed in enumerate(steps["seed"].values):
        for f, step in enumerate(steps["frame"].values):
            rows += [
                ("curve", layer, target, seed, step, c, None, steps["frame_A"].values[s, 0, f, c]) for c in channels
            ]
    final, null = steps["A"].values.mean(0)[0], steps["null"].values.mean(0)
    for c in [int(target), *rank_others(final, int(target))[: PROFILE - 1]]:
        rows.append(("profile", layer, target, "mean", len(steps["step"]), c, None, final[c]))
        rows.append(("null", layer, target, "mean", 0, c, None, null[c]))
    for r in (*of_named, *runners):
        quantities = (("activation", r.activation), ("null", r.null), ("target", r.reached), ("own best", r.own))
        for what, values in (*quantities, ("on other images", r.elsewhere)):
            pairs = zip(steps["seed"].values, values, strict=True)
            last = len(steps["step"])
            rows += [(f"runner-up: {what}", r.layer, r.target, s, last, r.channel, None, v) for s, v in pairs]
    return rows


@style.house_style
def draw_figure(
    steps: xr.Dataset,
    named: str,
    of_named: Sequence[RunnerUp],
    runners: Sequence[RunnerUp],
    chosen: Mapping[str, HeldOutRunnersUp],
) -> Figure:
    """Draw the curves, the final profile, and the runners-up."""
    figure, axes = plt.subplot_mosaic(
        [["curves"] * 3 + ["profile"] * 3, ["shares"] * 2 + ["own"] * 2 + ["judged"] * 2],
        figsize=(9, 7),
        layout="constrained",
        height_ratios=(1.25, 1),
    )
    target = int(named.rpartition(":")[2])
    first = of_named[0].channel if of_named else None
    draw_curves(axes["curves"], steps, named, target, first)
    draw_profile(axes["profile"], steps, target, first)
    draw_dots(axes["shares"], runners, ("share", "before"), ("on the target's image", "on the null image"))
    axes["shares"].set_title("runner-up's activation\ndivided by the target's", fontsize=9)
    draw_dots(axes["own"], runners, ("coactivation", "floor"), ("on the target's image", "on other features' images"))
    axes["own"].set_title("runner-up's share\nof its own best", fontsize=9)
    draw_held_out(axes["judged"], chosen)
    return figure


def draw_held_out(axes: plt.Axes, chosen: Mapping[str, HeldOutRunnersUp]) -> None:
    """Draw the share of other features' images that drive a runner-up as high."""
    rng = np.random.default_rng(0)
    for k, one in enumerate(chosen.values()):
        if not np.isfinite(one.p):
            continue
        axes.plot(k + rng.uniform(-0.15, 0.15, len(one.percentile)), one.percentile, ".", color=SHADES[0], alpha=0.7)
        mean, low, high = interval(one.percentile)
        axes.errorbar(k + 0.3, mean, [[mean - low], [high - mean]], fmt="o", color=DARK, ms=4, capsize=3)
        axes.text(k, 0.95, f"gap {one.gap.mean():.2f}\np {one.p:.2g}", ha="center", va="top", fontsize=8)
    axes.axhline(0.5, color=RED, lw=0.8, ls="--")
    axes.text(len(chosen) - 0.5, 0.51, "by chance", ha="right", va="bottom", fontsize=7.5, color=RED)
    axes.set_xticks(range(len(chosen)), list(chosen), fontsize=9)
    axes.set(xlim=(-0.5, len(chosen) - 0.5), ylim=(-0.03, 1))
    axes.set_title("share of other features' images that\ndrive it as high (on the other seeds)", fontsize=9)


def draw_curves(axes: plt.Axes, steps: xr.Dataset, named: str, target: int, first: int | None) -> None:
    """Draw every feature's average activation over the steps of the first seed."""
    at, curves = steps["frame"].values, steps["frame_A"].values[0, 0].T
    axes.add_collection(
        LineCollection([np.column_stack([at, c]) for c in curves], colors="#9a9a9a", linewidths=0.4, alpha=0.5)
    )
    axes.plot(at, curves[target], color=RED, lw=2, label=f"{target}, maximised")
    if first is not None:
        axes.plot(at, curves[first], color=DARK, lw=1.5, label=f"{first}, runner-up")
    axes.legend(fontsize=8, loc="upper left")
    axes.set(xlabel="step", ylabel="average activation", xlim=(0, at[-1]))
    axes.set_title(f"{named.rpartition(':')[0]} while feature {target} is maximised", fontsize=10)


def draw_profile(axes: plt.Axes, steps: xr.Dataset, target: int, first: int | None) -> None:
    """Draw every feature's final activation, mean over seeds, as the article does."""
    final, null = steps["A"].values.mean(0)[0], steps["null"].values.mean(0)
    at = np.arange(len(final))
    axes.vlines(at, np.minimum(final, 0), np.maximum(final, 0), color="#9a9a9a", lw=0.8)
    axes.plot(at, null, ".", color="#0072b2", ms=1.5, label="null image")
    axes.vlines(target, 0, final[target], color=RED, lw=2)
    axes.plot(target, final[target], "o", color=RED, ms=4, label=f"{target}, maximised")
    if first is not None:
        axes.plot(first, final[first], "o", color=DARK, ms=4, label=f"{first}, runner-up")
    axes.legend(fontsize=8)
    axes.set(xlabel="feature", ylabel="average activation", xlim=(-1, len(final)))
    axes.set_title("final image, mean over seeds", fontsize=10)


def draw_dots(axes: plt.Axes, runners: Sequence[RunnerUp], names: tuple[str, str], words: tuple[str, str]) -> None:
    """Draw one dot for each drawn feature, and the mean with its interval."""
    rng = np.random.default_rng(0)
    layers = list(dict.fromkeys(r.layer for r in runners))
    for k, layer in enumerate(layers):
        for m, name in enumerate(names):
            values = np.array([getattr(r, name) for r in runners if r.layer == layer], dtype=float)
            values, at = values[np.isfinite(values)], 3 * k + m
            if not len(values):
                continue
            axes.plot(at + rng.uniform(-0.15, 0.15, len(values)), values, ".", color=SHADES[m], alpha=0.7)
            mean, low, high = interval(values)
            axes.errorbar(at + 0.3, mean, [[mean - low], [high - mean]], fmt="o", color=DARK, ms=4, capsize=3)
    axes.set_xticks([3 * k + 0.5 for k in range(len(layers))], layers, fontsize=9)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.2 * (high - low))  # room for the legend
    shown = [axes.plot([], [], "o", color=shade, ms=4)[0] for shade in SHADES]
    axes.legend(shown, words, fontsize=7.5)
    axes.axhline(0, color="#cccccc", lw=0.8, zorder=0)


if __name__ == "__main__":
    run_study(STUDY, measure)
