"""The gradient of a sum against the sum of separate gradients, and how far one rounding leads a descent away.

    python -m analyses.gradient_sum [--layers inception4a,inception5a]

Pairs of drawn features, one of each of two layers, are maximised together in both ways from the same noise. The floor
is the same descent from a start in which every pixel is raised by one unit in its last place; the ceiling another seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from analyses.formulas.divergence import GRAY_LEVEL, growth_factor, rms_distances
from analyses.formulas.likeness import profile_agreement
from analyses.support.findings import (
    CLAIM_WORDS,
    POSITIVE,
    Finding,
    format_interval,
    geometric_findings,
    interval,
    mean_finding,
    positive_logs,
    share_finding,
)
from analyses.support.study import Context, Outcome, Study, Verdict, initial_noise, run_study, smallest_size
from featmap import rng
from featmap.plotting import style
from featmap.runs import array_layout

STEPS = 100
MARGIN = 1.25
"""Of equivalence, as is usual for ratios: the two ways are as far apart as one rounding up to this factor."""
PROFILE_MARGIN = 0.05
"""Profiles agree as they do after one rounding where they lack less than this of it."""
SHADES = {"ways": "#d62728", "rounding": "#0072b2", "seeds": "#9a9a9a"}
LABELS = {"ways": "sum's gradient against separate ones", "rounding": "start raised by one rounding", "seeds": "seeds"}

STUDY = Study(
    "gradient_sum",
    section="Layer and Neuron Interactions",
    claim="To maximise two features of different layers, the gradient of the sum of their losses and the sum of their "
    "separate gradients give nearly identical results.",
    measured="root mean square difference of the two images at every fourth step and likeness of their response "
    "profiles at the end, over pairs of drawn features, beside those of a start in which every pixel is raised by one "
    "rounding, and of two seeds; recipe `article-normalised`, 100 steps at a small size",
    rule="the claim holds if the interval of the final difference lies below one gray level (1/255), in part if "
    "the two ways part no further than one rounding of the start makes them, in images or in profiles: if the interval "
    f"of the ratio of the two differences lies below {MARGIN}, or that of the likeness of profiles of the two ways "
    f"less that of one rounding (paired) above -{PROFILE_MARGIN} (a margin set when that figure was known); it does not hold if "
    "both lie beyond",
    full="300 steps at 299, 340 and 380 pixels",
    pair=True,
)


@dataclass(frozen=True)
class PairDivergence:
    """How the descents of one pair of features part: root mean square differences, mean over seeds.

    `ways`, `rounding` are by frame; `seeds` is of the finished images, NaN with one seed; `same` and `different` are
    the likenesses of response profiles under the two ways: of the pair's own images, of those of different pairs;
    `same_rounding` and `same_seeds` are the first of these after one rounding and of two seeds, or NaN.
    `grows` is the factor a step by which a rounding grows, geometric mean over seeds.
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
        """The final difference of the two ways over that of one rounding; NaN where that is none."""
        return float(self.ways[-1] / self.rounding[-1]) if self.rounding[-1] > 0 else float("nan")

    @property
    def lacking(self) -> float:
        """The likeness of profiles under the two ways less that after one rounding."""
        return self.same - self.same_rounding


def draw_pairs(context: Context) -> list[str]:
    """Return pairs of drawn features, one of each of the two layers, as sums."""
    first, last = context.draw_units(context.layers[0]), context.draw_units(context.layers[1])
    order = rng.generator("pairs", *context.layers).permutation(len(last))
    return [f"{a} + {last[k]}" for a, k in zip(first, order, strict=False)]


def measure(context: Context) -> Outcome:
    """Descend every pair in both ways, and from a start that differs by one rounding."""
    pairs = draw_pairs(context)
    layers = (context.layers[0], context.layers[1])
    settings: dict[str, Any] = {"recipe": "article-normalised", "frames": 20 if context.full else 4}
    if not context.full:
        settings |= {"size": smallest_size(context.network, layers), "steps": STEPS}
    settings["responses"] = list(dict.fromkeys(layers))
    found = []
    for seed in range(context.seeds):
        context.log(f"{len(pairs)} pairs, seed {seed}")
        begin = initial_noise(context, settings, seed)
        separate = context.maximise(pairs, "separate", start=begin, **settings)
        together = context.maximise(pairs, "together", start=begin, gradients="together", **settings)
        raised = np.nextafter(begin, np.float32(np.inf))
        found.append((separate, together, context.maximise(pairs, "raised", start=raised, **settings)))
    partings = measure_divergence(pairs, found)
    return build_outcome(found[0][0]["frame"].values, partings, len(pairs))


def measure_divergence(
    pairs: Sequence[str], found: Sequence[tuple[xr.Dataset, xr.Dataset, xr.Dataset]]
) -> list[PairDivergence]:
    """Return how each pair's descents part; pairs that did not rise are left out."""
    good = np.all(
        [np.isin(s["status"].values[0], (array_layout.LIVE, array_layout.RESCUED)) for s, _, _ in found], axis=0
    )
    ways = np.mean([frame_differences(s, t) for s, t, _ in found], axis=0)
    raised = [frame_differences(s, r) for s, _, r in found]
    rounding = np.mean(raised, axis=0)
    steps = found[0][0]["frame"].values
    grows = np.exp(np.mean([[np.log(growth_factor(steps, gap)) for gap in table] for table in raised], axis=0))
    images = [s["images"].values[0] for s, _, _ in found]
    none = [np.full(len(pairs), np.nan)]
    seeds = np.mean([rms_distances(a, b) for k, a in enumerate(images) for b in images[:k]] or none, 0)
    A = [[way["A"].values[0] for way in ways] for ways in found]
    alike = [profile_agreement(s, t) for s, t, _ in A]
    same, different = (np.mean([getattr(a, k) for a in alike], axis=0) for k in ("same", "different"))
    rounded = np.mean([profile_agreement(s, r).same for s, _, r in A], axis=0)
    others = np.mean([profile_agreement(a, b).same for k, (a, _, _) in enumerate(A) for b, _, _ in A[:k]] or none, 0)
    return [
        PairDivergence(
            pair, ways[k], rounding[k], *(float(v[k]) for v in (seeds, same, different, grows, rounded, others))
        )
        for k, pair in enumerate(pairs)
        if good[k]
    ]


def frame_differences(one: xr.Dataset, two: xr.Dataset) -> np.ndarray:
    """Return the difference of two runs' frames, image x frame."""
    return rms_distances(one["frames"].values[0], two["frames"].values[0])


def collect_findings(steps: np.ndarray, partings: Sequence[PairDivergence]) -> list[Finding]:
    """Return the study's figures."""
    found = []
    for name, values, words, *within in (
        (
            "ways",
            [p.ways[-1] for p in partings],
            f"the two ways: difference after {steps[-1]} steps (pixels 0 to 1)",
            POSITIVE,
        ),
        ("rounding", [p.rounding[-1] for p in partings], "a start raised by one rounding: the same", POSITIVE),
        ("seeds", [p.seeds for p in partings], "two seeds: the same", POSITIVE),
        ("same", [p.same for p in partings], "the two ways: likeness of response profiles"),
        ("same rounding", [p.same_rounding for p in partings], "one rounding: likeness of response profiles"),
        ("same seeds", [p.same_seeds for p in partings], "two seeds: likeness of response profiles"),
        ("lacking", [p.lacking for p in partings], "likeness, the two ways less one rounding (paired)"),
        ("different", [p.different for p in partings], "different pairs: likeness of response profiles"),
    ):
        if np.isfinite(values).any():
            found.append(mean_finding(name, values, words, "", *within))
    if not partings:
        return found
    apart = np.array([p.ways[1] > 0 for p in partings])
    words = f"pairs whose two ways have the same bits after {steps[1]} steps, as a share"
    found.append(share_finding("bits", int((~apart).sum()), len(apart), words))
    words = f"the two ways: difference after {steps[1]} steps, of the other pairs (geometric mean)"
    found += geometric_findings("first", [p.ways[1] for p in partings], words)
    words = (
        f"factor a step by which one rounding grows while it grows (mean over the {steps[1]} steps between two looks)"
    )
    found += geometric_findings("growth", [p.grows for p in partings], words)
    words = "the two ways over one rounding, at the end (geometric mean)"
    return found + geometric_findings("ratio", [p.ratio for p in partings], words)


def within_rounding(partings: Sequence[PairDivergence]) -> tuple[bool | None, bool | None]:
    """Return whether the two ways part no further than one rounding makes them: in images, in profiles.

    By the intervals of ratio and paired difference beside `MARGIN` and `LESS`; None where one spans its margin.
    """
    ratio, lacking = positive_logs([p.ratio for p in partings]), np.array([p.lacking for p in partings], dtype=float)
    images = profiles = None
    if np.isfinite(ratio).sum() > 1:
        low, high = np.exp(interval(ratio)[1:])
        images = True if high < MARGIN else False if low > MARGIN else None
    if np.isfinite(lacking).sum() > 1:
        _, low, high = interval(lacking)
        profiles = True if low > -PROFILE_MARGIN else False if high < -PROFILE_MARGIN else None
    return images, profiles


def invisible(partings: Sequence[PairDivergence]) -> bool | None:
    """Return whether the interval of the final difference lies below one gray level of a picture: nobody sees it."""
    final = np.array([p.ways[-1] for p in partings], dtype=float)
    if not np.isfinite(final).any():
        return None
    _, low, high = interval(final)
    return True if high < GRAY_LEVEL else False if low > GRAY_LEVEL else None


def judge(partings: Sequence[PairDivergence]) -> Verdict:
    """Return the verdict, see the rule and the functions above."""
    hidden, parts = invisible(partings), within_rounding(partings)
    if hidden:
        return "holds"
    if hidden is None and not np.isfinite([p.ways[-1] for p in partings]).any():
        return "not decided"
    return "holds in part" if True in parts else "does not hold" if parts == (False, False) else "not decided"


def build_outcome(steps: np.ndarray, partings: Sequence[PairDivergence], drawn: int) -> Outcome:
    """Return rows, figures, verdict and conclusion; `drawn` pairs were to be made, `partings` are those that rose."""
    rows = pd.DataFrame(
        [
            (p.pair, what, step, value, same if step == steps[-1] else np.nan)
            for p in partings
            for what, values, same in (("ways", p.ways, p.same), ("rounding", p.rounding, p.same_rounding))
            for step, value in zip(steps, values, strict=True)
        ]
        + [(p.pair, "seeds", steps[-1], p.seeds, p.same_seeds) for p in partings],
        columns=["pair", "difference", "step", "rms", "likeness"],
    )
    made = collect_findings(steps, partings)
    said = write_conclusion(steps, {f.name: f for f in made}, partings, drawn)
    return Outcome(rows, made, judge(partings), said, {"": draw_figure(steps, partings)})


def write_conclusion(
    steps: np.ndarray, found: Mapping[str, Finding], partings: Sequence[PairDivergence], drawn: int
) -> str:
    """Return the sentence."""
    if "ways" not in found:
        return f"None of {drawn} pairs of features rose."
    images, profiles = within_rounding(partings)
    said = (
        f"In {len(partings)} of {drawn} pairs (those that rose), that nobody sees a difference "
        f"{CLAIM_WORDS[invisible(partings)]}: the images of the two ways differ by "
        f"{format_interval(found['ways'], '.2g')} after {steps[-1]} steps (root mean square, pixels 0 to 1; a gray "
        f"level is {GRAY_LEVEL:.2g}"
    )
    said += f", another seed makes {found['seeds'].value:.2g})" if "seeds" in found else ")"
    if "ratio" in found:
        said += (
            f"; that they are no further apart than one rounding of the start makes them {CLAIM_WORDS[images]}: "
            f"{format_interval(found['ratio'])} times as far (margin {MARGIN})"
        )
    if "lacking" in found:
        said += (
            f"; that profiles agree as after one rounding {CLAIM_WORDS[profiles]}: r {found['same'].value:.3f} against "
            f"{found['same rounding'].value:.3f}, {format_interval(found['lacking'], '+.4f')} (margin -{PROFILE_MARGIN}"
        )
        said += f"; two seeds agree by {found['same seeds'].value:.3f})" if "same seeds" in found else ")"
    if "growth" in found:
        said += f"; a rounding grows {format_interval(found['growth'], '.1f')} times a step while it grows"
    return said + "."


@style.house_style
def draw_figure(steps: np.ndarray, partings: Sequence[PairDivergence]) -> Figure:
    """Draw the differences over the steps: a line a pair, the median thick (where it is above 0)."""
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for what, shade in SHADES.items():
        lines = np.array([getattr(p, what) for p in partings], dtype=float)
        if what == "seeds":
            shown = lines[np.isfinite(lines)]
            if len(shown):
                axes.plot(np.full(len(shown), steps[-1]), shown, "_", color=shade, ms=14, label=LABELS[what])
            continue
        for line in lines:
            axes.plot(steps, np.where(line > 0, line, np.nan), color=shade, lw=0.6, alpha=0.35)
        middle = np.median(lines, axis=0) if len(lines) else np.zeros(len(steps))
        axes.plot(steps, np.where(middle > 0, middle, np.nan), color=shade, lw=2.5, label=LABELS[what])
    axes.axhline(GRAY_LEVEL, color="#222222", lw=0.8, ls=":", label="one gray level of a picture, 1/255")
    axes.set(
        yscale="log", xlabel="step", ylabel="root mean square difference (pixels 0 to 1)", xlim=(0, steps[-1] * 1.02)
    )
    axes.legend(fontsize=8, loc="lower right")
    axes.set_title(
        "two ways to take the gradient of a sum, and one rounding (thin: a pair of features, thick: the median)",
        fontsize=10,
    )
    return figure


if __name__ == "__main__":
    run_study(STUDY, measure)
