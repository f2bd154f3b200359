"""Which features rise while one of them is maximised, and how high the highest other one comes.

    python -m analyses.coactivation [--layers inception4a,inception5a] [--feature 5]

The feature that the claim names (of the last layer) is followed step by step; the drawn features of every layer say how
often the like happens. A runner-up is measured in two units: as a share of the target's activation, which is the
article's plot and is ruled by the features' scales, and as a share of its own best, which is not. It is chosen as the
highest of hundreds, so that it is high whatever the target: whether it belongs to the target's image is asked of other
seeds than the one that it was chosen on, and of the other features' images there (`analyses.formulas.runners_up`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib import pyplot as plt
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from analyses.formulas.runners_up import HeldOutRunnersUp
from analyses.support.runners_up import (
    COLUMNS,
    Runner,
    channels,
    judged,
    judged_rows,
    known_best,
    quotient,
    ranked,
    ranking_rows,
    risen,
)
from analyses.support.study import (
    Context,
    Finding,
    Outcome,
    Study,
    Verdict,
    interval,
    mean_finding,
    plain_finding,
    share_finding,
    start,
)
from featmap.plotting import style
from featmap.runs.array_layout import LIVE, RESCUED

ALMOST, RANKED, PROFILE, P = 0.8, 7, 512, 0.05
RED, DARK, SHADES = "#d62728", "#222222", ("#0072b2", "#9a9a9a")

STUDY = Study(
    "coactivation",
    section="Feature Visualization from First Principles",
    claim="While the total activation of one feature is maximised (feature 5 of GoogLeNet's layer 5a), the others do "
    "not stay as they were, and another one ends almost as active as the target.",
    measured="every feature's average activation at every step for the named feature, and how high the highest other "
    "feature ends, for it and for drawn features: as a share of the target's activation and of its own best, beside "
    "what it has on the null image and on other features' images. Each drawn feature's runner-up is also chosen on the "
    "first seed and judged on the others: its activation there over the target's, the same less its mean on the other "
    "drawn features' images, and the share of those images that drive it at least as high (by chance a half)",
    rule=f"the claim holds if the named feature's runner-up rises above its null image and to {ALMOST:g} of the "
    "target's activation, and in every layer fewer than half of the other drawn features' images drive a runner-up at "
    "least as high, on seeds that it was not chosen on (Wilcoxon's signed ranks over features, one-sided, "
    f"p < {P:g}); in part if one of these is so; not decided with one seed",
    full="`article-normalised`: octaves of 299, 340 and 380 pixels, 300 steps",
    feature=5,
)


def measure(context: Context) -> Outcome:
    """Follow the named feature, find every drawn feature's runner-up, and compare each with its own image."""
    settings: dict[str, Any] = {"recipe": "article-normalised" if context.full else "fast", "seeds": context.seeds}
    named_layer, named = context.layers[-1], int(context.feature or 0)
    context.say(f"following {named_layer}:{named}")
    steps = context.maximise([f"{named_layer}:{named}"], "named", frames=5 if context.full else 1, **settings)
    ranking = ranked(steps["A"].values.mean(0)[0], named)[:RANKED]
    runners, of_named = [], []
    made: dict[str, xr.Dataset] = {}
    chosen: dict[str, HeldOutRunnersUp] = {}
    owns: dict[str, dict[int, np.ndarray]] = {}
    for layer in context.layers:
        context.say(f"drawn features of {layer}")
        drawn = context.maximise(context.units(layer), "drawn", responses=layer, **settings)
        made[layer], chosen[layer] = drawn, judged(drawn)
        pairs = [(t, best) for t in risen(drawn) if (best := highest(drawn, t)) is not None]
        extra = list(ranking) if layer == named_layer else []
        own = owns[layer] = own_best(context, layer, [*(c for _, c in pairs), *extra], settings)
        runners += [runner(layer, drawn, drawn, t, c, own) for t, c in pairs]
        if layer == named_layer:
            of_named = [runner(layer, steps, drawn, named, int(c), own) for c in ranking] if len(risen(steps)) else []
    rankings = [row for la, data in made.items() for row in ranking_rows(la, data, known_best(data, owns[la]))]
    rankings += [row for la, data in made.items() for row in judged_rows(la, data, chosen[la])]
    return outcome(steps, f"{named_layer}:{named}", of_named, runners, chosen, rankings)


def highest(data: xr.Dataset, target: int) -> int | None:
    """Return the runner-up of a target, by the mean response over seeds; None in a layer of one feature."""
    others = ranked(data["A"].values[:, channels(data).index(target)].mean(0), target)
    return int(others[0]) if len(others) else None


def own_best(context: Context, layer: str, wanted: Sequence[int], settings: dict[str, Any]) -> dict[int, np.ndarray]:
    """Return each wanted feature's response to its own image, by seed; NaN where its descent did not rise."""
    listed = sorted({int(c) for c in wanted})
    if not listed:
        return {}
    data = context.maximise([f"{layer}:{c}" for c in listed], "own", responses=layer, **settings)
    rose = np.isin(data["status"].values, (LIVE, RESCUED))
    values = np.where(rose, data["activation"].values, np.nan)
    return {c: values[:, k] for k, c in enumerate(listed)}


def runner(
    layer: str, data: xr.Dataset, drawn: xr.Dataset, target: int, channel: int, own: dict[int, np.ndarray]
) -> Runner:
    """Return what is known of one runner-up; `drawn` holds the other features' images."""
    responses, row = data["A"].values, channels(data).index(target)
    others = [k for k, c in enumerate(channels(drawn)) if c not in (target, channel) and c in risen(drawn)]
    images = drawn["A"].values[:, others]
    elsewhere, ranks = images[:, :, channel], 1 + (images > images[:, :, [channel]]).sum(2)
    return Runner(
        layer,
        target,
        channel,
        responses[:, row, channel],
        data["null"].values[:, channel],
        responses[:, row, target],
        own.get(channel, np.full(len(responses), np.nan)),
        elsewhere.mean(1) if others else np.full(len(responses), np.nan),
        float(ranks.mean()) if others else float("nan"),
    )


def defined(values: Sequence[float]) -> bool:
    """Say whether there is a value to average."""
    return bool(np.isfinite(np.asarray(values, dtype=float)).any())


def findings(
    named: str, of_named: Sequence[Runner], runners: Sequence[Runner], chosen: Mapping[str, HeldOutRunnersUp]
) -> list[Finding]:
    """Return the study's figures; those that are undefined are left out."""
    found = []
    if of_named:
        first = of_named[0]
        for name, over, under, words in (
            ("named_share", first.activation, first.reached, "activation of its runner-up over its own (over seeds)"),
            ("named_before", first.null, first.reached, "the same of the null image (over seeds)"),
            (
                "named_own",
                first.activation - first.null,
                first.own - first.null,
                "share of the runner-up's own best (over seeds)",
            ),
        ):
            if np.isfinite(quotient(over, under)):
                found.append(mean_finding(name, over / under, f"{named}: {words}"))
    for layer in dict.fromkeys(r.layer for r in runners):
        these = [r for r in runners if r.layer == layer]
        for name, values, words in (
            ("share", [r.share for r in these], "activation of the runner-up over the target's"),
            ("before", [r.before for r in these], "the same of the null image"),
            ("own", [r.coactivation for r in these], "share of the runner-up's own best"),
            ("floor", [r.floor for r in these], "the same on other features' images"),
            ("rank", [r.rank for r in these], "its rank among all features on other features' images"),
        ):
            if defined(values):
                found.append(mean_finding(f"{name}:{layer}", values, f"drawn features of {layer}: {words}"))
        shares = np.array([r.share for r in these])
        shares = shares[np.isfinite(shares)]
        if len(shares):
            words = f"features of {layer} whose runner-up reaches {ALMOST:g} of their activation"
            found.append(share_finding(f"almost:{layer}", int((shares >= ALMOST).sum()), len(shares), words))
        found += judged_findings(layer, chosen[layer]) if layer in chosen else []
    return found


def judged_findings(layer: str, one: HeldOutRunnersUp) -> list[Finding]:
    """Return what the runners-up chosen on the first seed do on the others; nothing where that is undefined."""
    if not np.isfinite(one.p):
        return []
    what = f"{layer}: runner-up chosen on the first seed, on the others: "
    return [
        mean_finding(f"held_share:{layer}", one.share, f"{what}its activation over the target's"),
        mean_finding(f"gap:{layer}", one.gap, f"{what}the same less its mean on the other drawn features' images"),
        mean_finding(
            f"percentile:{layer}",
            one.percentile,
            f"{what}share of those images that drive it at least as high (by chance 0.5)",
        ),
        plain_finding(f"p:{layer}", one.p, len(one.gap), f"{layer}: p of a share that is no lower than a half"),
    ]


def belong(chosen: Mapping[str, HeldOutRunnersUp]) -> bool | None:
    """Say whether the runners-up belong to their targets' images, in every layer and on seeds that did not choose."""
    p = [one.p for one in chosen.values()]
    return all(x < P for x in p) if p and np.isfinite(p).all() else None


def judge(of_named: Sequence[Runner], chosen: Mapping[str, HeldOutRunnersUp]) -> Verdict:
    """Return the verdict.

    Almost: the named feature's runner-up rises above its null image from every seed and reaches `ALMOST` of the
    target's activation. Its own: `belong`, it is not just the highest of many features that are high on some image.
    Both: the claim holds; one of them: in part.
    """
    own = belong(chosen)
    if not of_named or not defined([of_named[0].share]) or own is None:
        return "not decided"
    first = of_named[0]
    almost = bool((first.activation > first.null).all()) and first.share >= ALMOST
    return "holds" if almost and own else "holds in part" if almost or own else "does not hold"


def outcome(
    steps: xr.Dataset,
    named: str,
    of_named: Sequence[Runner],
    runners: Sequence[Runner],
    chosen: Mapping[str, HeldOutRunnersUp],
    rankings: Sequence[tuple[Any, ...]],
) -> Outcome:
    """Return rows, figures, verdict and conclusion."""
    if of_named:
        first = of_named[0]
        said = (
            f"While {named} was maximised, feature {first.channel} ended at {first.share:.2f} of its activation "
            f"({first.before:.2f} on the null image) and {first.coactivation:.2f} of its own best"
        )
    else:
        said = f"{named} did not rise"
    shares = [r.share for r in runners]
    if defined(shares):
        mean, low, high = interval(shares)
        said += (
            f"; over {int(np.isfinite(shares).sum())} drawn features the highest other one ends at {mean:.2f} "
            f"[{low:.2f}, {high:.2f}] of the target's activation"
        )
        said += belonging(chosen)
    return Outcome(
        pd.DataFrame([*table(steps, named, of_named, runners), *rankings], columns=COLUMNS),
        findings(named, of_named, runners, chosen),
        judge(of_named, chosen),
        said + ".",
        {"": draw(steps, named, of_named, runners, chosen)},
    )


def belonging(chosen: Mapping[str, HeldOutRunnersUp]) -> str:
    """Return what the sentence says of runners-up on seeds that they were not chosen on."""
    known = {layer: one for layer, one in chosen.items() if np.isfinite(one.p)}
    if not known:
        return ""
    told = []
    for layer, one in known.items():
        mean, low, high = interval(one.share)
        told.append(
            f"{mean:.2f} [{low:.2f}, {high:.2f}] of it ({layer}; {one.gap.mean():.2f} above its mean on the other "
            f"features' images, {one.percentile.mean():.0%} of which drive it as high; p {one.p:.2g})"
        )
    return "; chosen on one seed, it has on the others " + " and ".join(told)


def table(
    steps: xr.Dataset, named: str, of_named: Sequence[Runner], runners: Sequence[Runner]
) -> list[tuple[Any, ...]]:
    """Return tidy rows: the named feature's curves and final profile, and every drawn feature's runner-up.

    The profile holds the `PROFILE` highest features, or all if there are fewer.
    """
    layer, _, target = named.rpartition(":")
    kept = [int(target), *(r.channel for r in of_named)]
    rows: list[tuple[Any, ...]] = []
    for s, seed in enumerate(steps["seed"].values):
        for f, step in enumerate(steps["frame"].values):
            rows += [("curve", layer, target, seed, step, c, None, steps["frame_A"].values[s, 0, f, c]) for c in kept]
    final, null = steps["A"].values.mean(0)[0], steps["null"].values.mean(0)
    for c in [int(target), *ranked(final, int(target))[: PROFILE - 1]]:
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
def draw(
    steps: xr.Dataset,
    named: str,
    of_named: Sequence[Runner],
    runners: Sequence[Runner],
    chosen: Mapping[str, HeldOutRunnersUp],
) -> Figure:
    """Draw the curves of all features, the final profile, and the drawn features' runners-up beside their floors."""
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
    axes["shares"].set_title("runner-up's activation\nover the target's", fontsize=9)
    draw_dots(axes["own"], runners, ("coactivation", "floor"), ("on the target's image", "on other features' images"))
    axes["own"].set_title("runner-up's share\nof its own best", fontsize=9)
    draw_judged(axes["judged"], chosen)
    return figure


def draw_judged(axes: plt.Axes, chosen: Mapping[str, HeldOutRunnersUp]) -> None:
    """Draw the share of other features' images that drive a runner-up as high: a dot a feature, mean and interval."""
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
    axes.set_title("share of other features' images that\ndrive it as high (seeds not chosen on)", fontsize=9)


def draw_curves(axes: plt.Axes, steps: xr.Dataset, named: str, target: int, first: int | None) -> None:
    """Draw every feature's average activation over the steps of the first seed: gray, the target red."""
    at, curves = steps["frame"].values, steps["frame_A"].values[0, 0].T
    axes.add_collection(
        LineCollection([np.column_stack([at, c]) for c in curves], colors="#9a9a9a", linewidths=0.4, alpha=0.5)
    )
    axes.plot(at, curves[target], color=RED, lw=2, label=f"{target}, maximised")
    if first is not None:
        axes.plot(at, curves[first], color=DARK, lw=1.5, label=f"{first}, the highest other")
    axes.legend(fontsize=8, loc="upper left")
    axes.set(xlabel="step", ylabel="average activation", xlim=(0, at[-1]))
    axes.set_title(f"{named.rpartition(':')[0]} while feature {target} is maximised", fontsize=10)


def draw_profile(axes: plt.Axes, steps: xr.Dataset, target: int, first: int | None) -> None:
    """Draw the final activation of every feature, mean over seeds, as the article does."""
    final, null = steps["A"].values.mean(0)[0], steps["null"].values.mean(0)
    at = np.arange(len(final))
    axes.vlines(at, np.minimum(final, 0), np.maximum(final, 0), color="#9a9a9a", lw=0.8)
    axes.plot(at, null, ".", color="#0072b2", ms=1.5, label="null image")
    axes.vlines(target, 0, final[target], color=RED, lw=2)
    axes.plot(target, final[target], "o", color=RED, ms=4, label=f"{target}, maximised")
    if first is not None:
        axes.plot(first, final[first], "o", color=DARK, ms=4, label=f"{first}, the highest other")
    axes.legend(fontsize=8)
    axes.set(xlabel="feature", ylabel="average activation", xlim=(-1, len(final)))
    axes.set_title("final image, mean over seeds", fontsize=10)


def draw_dots(axes: plt.Axes, runners: Sequence[Runner], names: tuple[str, str], words: tuple[str, str]) -> None:
    """Draw a dot a drawn feature and the mean with its interval, by layer and by what is compared."""
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
    start(STUDY, measure)
