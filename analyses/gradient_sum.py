"""The gradient of a sum against the sum of separate gradients, and how far one rounding leads a descent away.

    python -m analyses.gradient_sum [--layers inception4a,inception5a]

Pairs of drawn features, one of each of two layers, are maximised together in both ways from the same noise. The floor
is the same descent from a start in which every pixel is raised by one unit in its last place; the ceiling another seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from analyses.studies import (
    Context,
    Finding,
    Outcome,
    Study,
    Verdict,
    beginning,
    geometric_findings,
    interval,
    logs,
    mean_finding,
    small_size,
    start,
)
from featmap import drawing, runs, transforms
from featmap.divergence import GRAY_LEVEL, distances, growth
from featmap.likeness import likeness

STEPS = 100
SHADES = {"ways": "#d62728", "rounding": "#0072b2", "seeds": "#9a9a9a"}
SAID = {"ways": "sum's gradient against separate ones", "rounding": "start raised by one rounding", "seeds": "seeds"}

STUDY = Study(
    "gradient_sum",
    section="Layer and Neuron Interactions",
    claim="To maximise two features of different layers, the gradient of the sum of their losses and the sum of their "
    "separate gradients give nearly identical results.",
    measured="root mean square difference of the two images at every fourth step, over pairs of drawn features, beside "
    "that from a start in which every pixel is raised by one rounding, and that between seeds; recipe "
    "`article-normalised`, 100 steps at a small size",
    full="300 steps at 299, 340 and 380 pixels",
    pair=True,
)


@dataclass(frozen=True)
class Parting:
    """How the descents of one pair of features part: root mean square differences, mean over seeds.

    `ways`, `rounding` are by frame; `seeds` is of the finished images, NaN with one seed; `same` and `different` are
    the likenesses of response profiles under the two ways: of the pair's own images, of those of different pairs.
    """

    pair: str
    ways: np.ndarray
    rounding: np.ndarray
    seeds: float
    same: float
    different: float


def pairs_of(context: Context) -> list[str]:
    """Return pairs of drawn features, one of each of the two layers, as sums."""
    first, last = context.units(context.layers[0]), context.units(context.layers[1])
    order = transforms.generator("pairs", *context.layers).permutation(len(last))
    return [f"{a} + {last[k]}" for a, k in zip(first, order, strict=False)]


def measure(context: Context) -> Outcome:
    """Descend every pair in both ways, and from a start that differs by one rounding."""
    pairs = pairs_of(context)
    layers = (context.layers[0], context.layers[1])
    settings: dict[str, Any] = {"recipe": "article-normalised", "frames": 20 if context.full else 4}
    if not context.full:
        settings |= {"size": small_size(context.network, layers), "steps": STEPS}
    settings["responses"] = list(dict.fromkeys(layers))
    found = []
    for seed in range(context.seeds):
        context.say(f"{len(pairs)} pairs, seed {seed}")
        begin = beginning(context, settings, seed)
        separate = context.maximise(pairs, "separate", start=begin, **settings)
        together = context.maximise(pairs, "together", start=begin, gradients="together", **settings)
        raised = np.nextafter(begin, np.float32(np.inf))
        found.append((separate, together, context.maximise(pairs, "raised", start=raised, **settings)))
    partings = parted(pairs, found)
    return outcome(found[0][0]["frame"].values, partings)


def parted(pairs: Sequence[str], found: Sequence[tuple[xr.Dataset, xr.Dataset, xr.Dataset]]) -> list[Parting]:
    """Return how each pair's descents part; pairs that did not rise are left out."""
    good = np.all([np.isin(s["status"].values[0], (runs.LIVE, runs.RESCUED)) for s, _, _ in found], axis=0)
    ways = np.mean([gaps(s, t) for s, t, _ in found], axis=0)
    rounding = np.mean([gaps(s, r) for s, _, r in found], axis=0)
    images = [s["images"].values[0] for s, _, _ in found]
    seeds = np.mean(
        [distances(a, b) for k, a in enumerate(images) for b in images[:k]] or [np.full(len(pairs), np.nan)], 0
    )
    alike = [likeness(s["A"].values[0], t["A"].values[0]) for s, t, _ in found]
    same, different = (np.mean([getattr(a, k) for a in alike], axis=0) for k in ("same", "different"))
    return [
        Parting(pair, ways[k], rounding[k], float(seeds[k]), float(same[k]), float(different[k]))
        for k, pair in enumerate(pairs)
        if good[k]
    ]


def gaps(one: xr.Dataset, two: xr.Dataset) -> np.ndarray:
    """Return the difference of two runs' frames, image x frame."""
    return distances(one["frames"].values[0], two["frames"].values[0])


def findings(steps: np.ndarray, partings: Sequence[Parting]) -> list[Finding]:
    """Return the study's figures."""
    found = []
    for name, values, words in (
        ("ways", [p.ways[-1] for p in partings], f"the two ways: difference after {steps[-1]} steps (pixels 0 to 1)"),
        ("rounding", [p.rounding[-1] for p in partings], "a start raised by one rounding: difference at the end"),
        ("seeds", [p.seeds for p in partings], "two seeds: difference at the end"),
        ("same", [p.same for p in partings], "the two ways: likeness of response profiles"),
        ("different", [p.different for p in partings], "different pairs: likeness of response profiles"),
    ):
        if np.isfinite(values).any():
            found.append(mean_finding(name, values, words))
    words = f"the two ways: difference after {steps[1]} steps (geometric mean)"
    found += geometric_findings("first", [p.ways[1] for p in partings], words)
    found += geometric_findings(
        "growth",
        [growth(steps, p.rounding) for p in partings],
        "factor a step by which one rounding grows (geometric mean)",
    )
    ratio = [p.ways[-1] / p.rounding[-1] if p.rounding[-1] > 0 else np.nan for p in partings]
    return found + geometric_findings("ratio", ratio, "the two ways over one rounding, at the end (geometric mean)")


def judge(partings: Sequence[Parting]) -> Verdict:
    """Return the verdict.

    It holds where the interval of the final difference lies below one gray level of a picture; in part where it does
    not, but the two ways differ no more than one rounding of the start makes them (the interval of the ratio's
    logarithm reaches down to zero): then the ways are the same and the descent amplifies rounding.
    """
    final = np.array([p.ways[-1] for p in partings], dtype=float)
    if not np.isfinite(final).any():
        return "not decided"
    if interval(final)[2] < GRAY_LEVEL:
        return "holds"
    ratio = logs([p.ways[-1] for p in partings]) - logs([p.rounding[-1] for p in partings])
    same = np.isfinite(ratio).any() and interval(ratio)[1] <= 0
    return "holds in part" if same else "does not hold"


def outcome(steps: np.ndarray, partings: Sequence[Parting]) -> Outcome:
    """Return rows, figures, verdict and conclusion."""
    rows = pd.DataFrame(
        [
            (p.pair, what, step, value)
            for p in partings
            for what, values in (("ways", p.ways), ("rounding", p.rounding))
            for step, value in zip(steps, values, strict=True)
        ]
        + [(p.pair, "seeds", steps[-1], p.seeds) for p in partings],
        columns=["pair", "difference", "step", "rms"],
    )
    made = findings(steps, partings)
    value = {f.name: f.value for f in made}
    said = "no pair of features rose"
    if "ways" in value:
        said = (
            f"Over {len(partings)} pairs the images of the two ways differ by {value.get('first', 0):.1e} after "
            f"{steps[1]} steps and by {value['ways']:.2g} after {steps[-1]} (root mean square, pixels 0 to 1), where "
            f"one rounding of the start makes {value['rounding']:.2g}"
        )
        said += f" and another seed {value['seeds']:.2g}" if "seeds" in value else ""
        said += f"; a rounding grows by {value['growth']:.2f} a step" if "growth" in value else ""
        said += f", and profiles agree with r {value['same']:.3f}" if "same" in value else ""
    return Outcome(rows, made, judge(partings), said + ".", {"": draw(steps, partings)})


@drawing.house_style
def draw(steps: np.ndarray, partings: Sequence[Parting]) -> Figure:
    """Draw the differences over the steps: a line a pair, the geometric mean thick."""
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for what, shade in SHADES.items():
        lines = np.array([getattr(p, what) for p in partings], dtype=float)
        if what == "seeds":
            shown = lines[np.isfinite(lines)]
            if len(shown):
                axes.plot(np.full(len(shown), steps[-1]), shown, "_", color=shade, ms=14, label=SAID[what])
            continue
        for line in lines:
            axes.plot(steps, np.where(line > 0, line, np.nan), color=shade, lw=0.6, alpha=0.35)
        known = np.where(lines > 0, lines, np.nan) if len(lines) else np.full((1, len(steps)), np.nan)
        defined = np.isfinite(known).any(0)
        middle = np.exp(np.nanmean(np.log(known[:, defined]), axis=0)) if defined.any() else []
        axes.plot(steps[defined], middle, color=shade, lw=2.5, label=SAID[what])
    axes.axhline(GRAY_LEVEL, color="#222222", lw=0.8, ls=":", label="one gray level of a picture, 1/255")
    axes.set(
        yscale="log", xlabel="step", ylabel="root mean square difference (pixels 0 to 1)", xlim=(0, steps[-1] * 1.02)
    )
    axes.legend(fontsize=8, loc="lower right")
    axes.set_title("two ways to take the gradient of a sum, and one rounding (thin: a pair of features)", fontsize=10)
    return figure


if __name__ == "__main__":
    start(STUDY, measure)
