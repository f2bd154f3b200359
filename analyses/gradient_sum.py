"""Compare the gradient of a sum with the sum of separate gradients, and both with one rounding of the start.

    python -m analyses.gradient_sum [--layers inception4a,inception5a]

Pairs of drawn features, one of each of two layers, are maximised together in both ways from the same noise. The floor
is the same descent from a start in which every pixel is raised by one unit in the last place; the ceiling is another
seed. A pair of which one feature stays silent all along is left out: the gradient of its sum is that of the other
feature alone, so that the two ways are one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from analyses.formulas.divergence import GRAY_LEVEL, STILL, growth_factor, rms_distances
from analyses.formulas.likeness import profile_agreement
from analyses.support.decisions import above, below
from analyses.support.findings import (
    CLAIM_WORDS,
    POSITIVE,
    Finding,
    format_interval,
    geometric_findings,
    interval,
    mean_finding,
    median_interval,
    share_finding,
    value_finding,
)
from analyses.support.inputs import initial_noise, smallest_size
from analyses.support.study import Context, Outcome, StoredResult, Study, Verdict
from analyses.support.study_command import run_study
from analyses.support.units import named_findings
from featmap import rng
from featmap.plotting import style
from featmap.runs import folder_layout

RECIPE, STEPS = "article-normalised", 100
MARGIN = 1.25
"""Margin of equivalence, as usual for ratios: within this factor the two ways differ as one rounding does."""
FEWEST, LARGE = 6, 1000
"""Fewest pairs for an interval of the median; ratios from which on powers of ten are written."""
PROFILE_MARGIN = 0.05
"""Margin of equivalence for the correlation of profiles under the two ways minus that after one rounding."""
SILENT = "left out"
"""What the rows say of a pair of which one feature never responded."""
SHADES = {"ways": "#d62728", "rounding": "#0072b2", "seeds": "#9a9a9a"}
LABELS = {
    "ways": "gradient of the sum, separate gradients",
    "rounding": "start raised by one rounding",
    "seeds": "seeds",
}

STUDY = Study(
    "gradient_sum",
    section="Layer and Neuron Interactions",
    claim="To maximise two features of different layers, the gradient of the sum of their losses and the sum of their "
    "separate gradients give nearly identical results.",
    measured="root mean square difference of the two images at every fourth step and correlation of their response "
    "profiles at the end, over pairs of drawn features, compared with those of a start in which every pixel is raised "
    "by one rounding, and of two seeds; recipe `article-normalised`, 100 steps at a small size",
    rule="the claim holds if the interval of the mean final difference is below one gray level (1/255); otherwise it "
    "holds in part if the two ways differ no more than one rounding of the start makes them, in images or in profiles: "
    "if the interval of the median, over pairs, of the final difference of the two ways divided by that after one "
    f"rounding is below {MARGIN}, or if the interval of the mean correlation of profiles of the two ways minus that "
    f"after one rounding (paired) is above -{PROFILE_MARGIN} (a margin set after the value was known); it does not "
    "hold if both intervals are beyond their margin, and is not decided otherwise. The median's interval is exact and "
    "needs six pairs. It counts every pair in which anything differed: 0 where the two ways gave the same images, and "
    "however large where the rounding did not grow; such pairs are named. Pairs of which one feature responded with 0 "
    "in every frame of both ways, with any of the seeds, are left out and named: there their sum has the gradient of "
    "the other feature alone",
    full="300 steps at 299, 340 and 380 pixels",
    pair=True,
)


@dataclass(frozen=True)
class PairDivergence:
    """Divergence of the descents of one pair of features.

    Differences are root mean squares, means over seeds.

    Parameters
    ----------
    pair : str
        Name of the pair.
    ways, rounding : numpy.ndarray
        Difference of the two ways, and of starts one rounding apart, by frame.
    seeds : float
        Difference of the finished images of two seeds; NaN with one seed.
    same, different : float
        Correlation of response profiles under the two ways: of the pair's own images, and of different pairs' images.
    grows : float, default NaN
        Factor per step by which a rounding grows, geometric mean over seeds.
    same_rounding, same_seeds : float, default NaN
        Correlation of the pair's profiles after one rounding, and of two seeds.
    """

    pair: str
    ways: np.ndarray
    rounding: np.ndarray
    seeds: float
    same: float
    different: float
    grows: float = float("nan")
    same_rounding: float = float("nan")
    same_seeds: float = float("nan")

    @property
    def ratio(self) -> float:
        """Final difference of the two ways divided by that of one rounding.

        Infinite where only the rounding left no difference; NaN where neither way did.
        """
        if self.rounding[-1] > 0:
            return float(self.ways[-1] / self.rounding[-1])
        return float("inf") if self.ways[-1] > 0 else float("nan")

    @property
    def still(self) -> bool:
        """Whether the rounding did not grow: it ends at no more than `STILL` times its first difference."""
        return bool(self.rounding[-1] <= STILL * self.rounding[0])

    @property
    def lacking(self) -> float:
        """Correlation of profiles under the two ways minus that after one rounding."""
        return self.same - self.same_rounding


def draw_pairs(context: Context) -> list[str]:
    """Draw pairs of features, one of each of the two layers, as sums."""
    first, last = context.draw_units(context.layers[0]), context.draw_units(context.layers[1])
    order = rng.generator("pairs", *context.layers).permutation(len(last))
    return [f"{a} + {last[k]}" for a, k in zip(first, order, strict=False)]


def measure(context: Context) -> Outcome:
    """Maximise every pair in both ways, and from a start that differs by one rounding."""
    pairs = draw_pairs(context)
    layers = (context.layers[0], context.layers[1])
    settings: dict[str, Any] = {"recipe": RECIPE, "frames": 20 if context.full else 4} | context.sized_changes
    if not context.full:
        settings |= {"size": context.size or smallest_size(context.network, layers, RECIPE), "steps": STEPS}
    settings["responses"] = list(dict.fromkeys(layers))
    runs = []
    for seed in range(context.seeds):
        context.log(f"{len(pairs)} pairs, seed {seed}")
        begin = initial_noise(context, settings, seed)
        separate = context.maximise(pairs, "separate", start=begin, **settings)
        together = context.maximise(pairs, "together", start=begin, gradients="together", **settings)
        raised = np.nextafter(begin, np.float32(np.inf))
        runs.append((separate, together, context.maximise(pairs, "raised", start=raised, **settings)))
    silent = silent_pairs(pairs, runs)
    divergences = [p for p in measure_divergence(pairs, runs) if p.pair not in silent]
    outcome = build_outcome(runs[0][0]["frame"].values, divergences, len(pairs), silent)
    words = "difference of the two ways divided by that of one rounding, of its pair"
    ratios = {unit: [p.ratio] for p in divergences for unit in p.pair.split(" + ")}
    return replace(outcome, findings=[*outcome.findings, *named_findings(context, "ratio", ratios, words)])


def measure_divergence(
    pairs: Sequence[str], runs: Sequence[tuple[xr.Dataset, xr.Dataset, xr.Dataset]]
) -> list[PairDivergence]:
    """Measure how the descents of each pair diverge.

    Pairs that did not rise are left out.
    """
    risen = np.all([np.isin(s["status"].values[0], folder_layout.LIVE_CODES) for s, _, _ in runs], axis=0)
    ways = np.mean([frame_differences(s, t) for s, t, _ in runs], axis=0)
    raised = [frame_differences(s, r) for s, _, r in runs]
    rounding = np.mean(raised, axis=0)
    steps = runs[0][0]["frame"].values
    grows = np.exp(np.mean([[np.log(growth_factor(steps, gap)) for gap in table] for table in raised], axis=0))
    images = [s["images"].values[0] for s, _, _ in runs]
    none = [np.full(len(pairs), np.nan)]
    seeds = np.mean([rms_distances(a, b) for k, a in enumerate(images) for b in images[:k]] or none, 0)
    A = [[way["A"].values[0] for way in ways] for ways in runs]
    alike = [profile_agreement(s, t) for s, t, _ in A]
    same, different = (np.mean([getattr(a, k) for a in alike], axis=0) for k in ("same", "different"))
    rounded = np.mean([profile_agreement(s, r).same for s, _, r in A], axis=0)
    others = np.mean([profile_agreement(a, b).same for k, (a, _, _) in enumerate(A) for b, _, _ in A[:k]] or none, 0)
    return [
        PairDivergence(
            pair, ways[k], rounding[k], *(float(v[k]) for v in (seeds, same, different, grows, rounded, others))
        )
        for k, pair in enumerate(pairs)
        if risen[k]
    ]


def silent_pairs(pairs: Sequence[str], runs: Sequence[tuple[xr.Dataset, xr.Dataset, xr.Dataset]]) -> list[str]:
    """List the pairs of which a feature responds with 0 in every frame of both ways, with one of the seeds."""
    return [
        pair
        for k, pair in enumerate(pairs)
        if any(
            not any(way["frame_A"].sel(response=unit).values[0, k].any() for way in (separate, together))
            for unit in pair.split(" + ")
            for separate, together, _ in runs
        )
    ]


def frame_differences(one: xr.Dataset, two: xr.Dataset) -> np.ndarray:
    """Compute the difference of two runs' frames, `image x frame`."""
    return rms_distances(one["frames"].values[0], two["frames"].values[0])


def collect_findings(
    steps: np.ndarray, divergences: Sequence[PairDivergence], silent: Sequence[str] = ()
) -> list[Finding]:
    """Collect the findings; `silent` are the pairs left out because one feature was silent."""
    findings = []
    for name, values, words, *within in (
        (
            "ways",
            [p.ways[-1] for p in divergences],
            f"the two ways: difference after {steps[-1]} steps (pixels 0 to 1)",
            POSITIVE,
        ),
        ("rounding", [p.rounding[-1] for p in divergences], "a start raised by one rounding: the same", POSITIVE),
        ("seeds", [p.seeds for p in divergences], "two seeds: the same", POSITIVE),
        ("same", [p.same for p in divergences], "the two ways: correlation of response profiles"),
        ("same rounding", [p.same_rounding for p in divergences], "one rounding: correlation of response profiles"),
        ("same seeds", [p.same_seeds for p in divergences], "two seeds: correlation of response profiles"),
        (
            "lacking",
            [p.lacking for p in divergences],
            "correlation of profiles, the two ways minus one rounding (paired)",
        ),
        ("different", [p.different for p in divergences], "different pairs: correlation of response profiles"),
    ):
        if np.isfinite(values).any():
            findings.append(mean_finding(name, values, words, "", *within))
    words = f"pairs left out, of which one feature never responded with one of the seeds{_in_brackets(silent)}"
    findings += [value_finding("silent", len(silent), len(divergences) + len(silent), words)] if silent else []
    if not divergences:
        return findings
    apart = np.array([p.ways[1] > 0 for p in divergences])
    words = f"share of pairs whose two ways have the same bits after {steps[1]} steps"
    findings.append(share_finding("bits", int((~apart).sum()), len(apart), words))
    words = f"the two ways: difference after {steps[1]} steps, of the other pairs (geometric mean)"
    findings += geometric_findings("first", [p.ways[1] for p in divergences], words)
    words = "factor per step by which one rounding grows while it grows "
    words += f"(mean over the {steps[1]} steps between two frames)"
    grown = [p for p in divergences if not p.still] or divergences
    left = len(divergences) - len(grown)
    words += f"; without {left} pair{'s' * (left > 1)} in which it did not" if left else ""
    findings += geometric_findings("growth", [p.grows for p in grown], words)
    return findings + ratio_findings(divergences)


def ratio_findings(divergences: Sequence[PairDivergence]) -> list[Finding]:
    """Compute the median ratio of the two differences, and name the pairs in which one of them is nothing."""
    ratios = np.array([p.ratio for p in divergences], dtype=float)
    words = "difference of the two ways divided by that of one rounding, at the end (median; interval exact, n pairs)"
    median, *ends = median_interval(ratios)
    ends = ends if np.isfinite(ends).all() else [np.nan, np.nan]
    found = [value_finding("ratio", median, int((~np.isnan(ratios)).sum()), words, *ends)]
    for name, chosen, what in (
        (
            "still",
            [p.pair for p in divergences if p.still],
            "whose rounding did not grow, so that their ratio may be very large",
        ),
        ("equal", [p.pair for p in divergences if p.ways[-1] == 0], "whose two ways gave the same images: ratio 0"),
        ("no ratio", [p.pair for p in divergences if np.isnan(p.ratio)], "with no difference at all, left out"),
    ):
        found.append(value_finding(name, len(chosen), len(divergences), f"pairs {what}{_in_brackets(chosen)}"))
    return found


def _in_brackets(names: Sequence[str]) -> str:
    """List names in brackets after a space; empty without names."""
    return f" ({', '.join(names)})" if names else ""


def within_rounding(divergences: Sequence[PairDivergence]) -> tuple[bool | None, bool | None]:
    """Check whether the two ways differ no more than one rounding makes them.

    Images and profiles are checked separately. The intervals of the median ratio and of the mean paired difference are
    compared with `MARGIN` and `PROFILE_MARGIN`; None where one spans its margin, or is undefined.
    """
    lacking = np.array([p.lacking for p in divergences], dtype=float)
    _, low, high = median_interval([p.ratio for p in divergences])
    images, profiles = below(low, high, MARGIN), None
    if np.isfinite(lacking).sum() > 1:
        _, low, high = interval(lacking)
        profiles = above(low, high, -PROFILE_MARGIN)
    return images, profiles


def invisible(divergences: Sequence[PairDivergence]) -> bool | None:
    """Check whether the final difference is below one gray level of a picture.

    None where its interval spans that.
    """
    final = np.array([p.ways[-1] for p in divergences], dtype=float)
    if not np.isfinite(final).any():
        return None
    _, low, high = interval(final)
    return below(low, high, GRAY_LEVEL)


def judge(divergences: Sequence[PairDivergence]) -> Verdict:
    """Judge the claim, see the rule of the study."""
    unseen, parts = invisible(divergences), within_rounding(divergences)
    if unseen:
        return "holds"
    if unseen is None and not np.isfinite([p.ways[-1] for p in divergences]).any():
        return "not decided"
    return "holds in part" if True in parts else "does not hold" if parts == (False, False) else "not decided"


def build_outcome(
    steps: np.ndarray, divergences: Sequence[PairDivergence], drawn: int, silent: Sequence[str] = ()
) -> Outcome:
    """Build the outcome.

    `drawn` is the number of pairs drawn, `divergences` those that are compared, `silent` those of which one feature
    was silent.
    """
    rows = pd.DataFrame(
        [
            (p.pair, what, step, value, same if step == steps[-1] else np.nan)
            for p in divergences
            for what, values, same in (("ways", p.ways, p.same), ("rounding", p.rounding, p.same_rounding))
            for step, value in zip(steps, values, strict=True)
        ]
        + [(p.pair, "seeds", steps[-1], p.seeds, p.same_seeds) for p in divergences]
        + [(pair, SILENT, steps[-1], np.nan, np.nan) for pair in silent],
        columns=["pair", "difference", "step", "rms", "likeness"],
    )
    findings = collect_findings(steps, divergences, silent)
    text = write_conclusion(steps, {f.name: f for f in findings}, divergences, (drawn, silent))
    return Outcome(rows, findings, judge(divergences), text, {"": draw_figure(steps, divergences)})


def write_conclusion(
    steps: np.ndarray,
    findings: Mapping[str, Finding],
    divergences: Sequence[PairDivergence],
    drawn: tuple[int, Sequence[str]],
) -> str:
    """Write the conclusion; `drawn` is the number of pairs drawn and those of which one feature was silent."""
    count, silent = drawn
    left = (
        ". Left out, because with one of the seeds a feature never responded, so that the sum has the gradient of the "
    )
    left += "other alone: "
    left = f"{left}{', '.join(silent)}" if silent else ""
    if "ways" not in findings:
        return f"In none of {count} pairs did the sum rise and both features respond{left}."
    images, profiles = within_rounding(divergences)
    text = (
        f"That the two ways are nearly identical {CLAIM_WORDS[invisible(divergences)]}: over {len(divergences)} of "
        f"{count} pairs (those that rose, of features that both responded), their images differ by "
        f"{format_interval(findings['ways'], '.2g')} after {steps[-1]} steps (root mean square, pixels 0 to 1). A gray "
        f"level is {GRAY_LEVEL:.2g}"
    )
    text += f"; two seeds differ by {findings['seeds'].value:.2g}" if "seeds" in findings else ""
    text += ratio_sentences(divergences, images)
    if "lacking" in findings:
        text += (
            f". That profiles correlate as after one rounding {CLAIM_WORDS[profiles]}: r {findings['same'].value:.3f} "
            f"compared with {findings['same rounding'].value:.3f}. The difference is "
            f"{format_interval(findings['lacking'], '+.4f')} (margin -{PROFILE_MARGIN}"
        )
        text += f"; two seeds: {findings['same seeds'].value:.3f})" if "same seeds" in findings else ")"
    if "growth" in findings:
        text += f". A rounding grows {format_interval(findings['growth'], '.1f')} times per step while it grows"
    return f"{text}{left}."


def ratio_sentences(divergences: Sequence[PairDivergence], images: bool | None) -> str:
    """State the median ratio, of how many pairs it is, and in which pairs one of the differences is nothing."""
    found = {f.name: f for f in ratio_findings(divergences)}
    ratio, count = found["ratio"], len(divergences)
    if not ratio.count:
        return ". In no pair did the two ways, or one rounding, make a difference"
    text = (
        f". That the two ways differ no more than after one rounding of the start {CLAIM_WORDS[images]}: by the median "
        f"of {ratio.count} pairs, {_format_ratio(ratio)} times as much (margin {MARGIN}"
    )
    text += ")" if ratio.count >= FEWEST else f"; {FEWEST} pairs are needed for an interval)"
    for name, words in (
        ("still", "the rounding did not grow"),
        ("equal", "the two ways gave the same images, to the bit"),
        ("no ratio", "nothing differed, and no ratio is defined"),
    ):
        if found[name].value:
            text += f". In {found[name].value:.0f} of {count} {words} ({found[name].words.rpartition(' (')[2]}"
    return text


def _format_ratio(ratio: Finding) -> str:
    """Format a median ratio that may be very large, or infinite."""
    form = ".2f" if ratio.value is not None and ratio.value < LARGE else ".1e"
    return "infinitely many" if ratio.value is None else format_interval(ratio, form)


def restate(stored: StoredResult) -> tuple[Verdict, str]:
    """Write verdict and conclusion from the stored result."""
    rows = stored.rows
    steps = np.sort(rows["step"].unique())
    divergences = []
    silent = rows.loc[rows["difference"] == SILENT, "pair"].tolist()
    for pair, own in rows[rows["difference"] != SILENT].groupby("pair", sort=False):
        by = {str(name): one.sort_values("step") for name, one in own.groupby("difference")}
        ends = {name: one.iloc[-1] for name, one in by.items()}
        divergences.append(
            PairDivergence(
                str(pair),
                by["ways"]["rms"].to_numpy(),
                by["rounding"]["rms"].to_numpy(),
                ends["seeds"]["rms"],
                ends["ways"]["likeness"],
                np.nan,
                same_rounding=ends["rounding"]["likeness"],
                same_seeds=ends["seeds"]["likeness"],
            )
        )
    text = write_conclusion(steps, stored.findings, divergences, (stored.settings["features"], silent))
    return judge(divergences), text


@style.house_style
def draw_figure(steps: np.ndarray, divergences: Sequence[PairDivergence]) -> Figure:
    """Draw the differences over the steps: one line for each pair, the median thick."""
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for what, shade in SHADES.items():
        lines = np.array([getattr(p, what) for p in divergences], dtype=float)
        if what == "seeds":
            shown = lines[np.isfinite(lines)]
            if len(shown):
                axes.plot(np.full(len(shown), steps[-1]), shown, "_", color=shade, ms=14, label=LABELS[what])
            continue
        for line in lines:
            axes.plot(steps, np.where(line > 0, line, np.nan), color=shade, lw=0.6, alpha=0.35)
        middle = np.median(lines, axis=0) if len(lines) else np.zeros(len(steps))
        axes.plot(steps, np.where(middle > 0, middle, np.nan), color=shade, lw=2.5, label=LABELS[what])
    axes.axhline(GRAY_LEVEL, color="#222222", lw=0.8, ls=":", label="one gray level, 1/255")
    axes.set(
        yscale="log", xlabel="step", ylabel="root mean square difference (pixels 0 to 1)", xlim=(0, steps[-1] * 1.02)
    )
    axes.legend(fontsize=8, loc="lower right")
    axes.set_title(
        "two ways to take the gradient of a sum, and one rounding (thin: pairs of features, thick: median)",
        fontsize=10,
    )
    return figure


if __name__ == "__main__":
    run_study(STUDY, measure)
