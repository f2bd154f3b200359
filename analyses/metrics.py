"""Do L1, L2 and Linf give the same patterns, and does L1 leave the least high-frequency noise?

    python -m analyses.metrics

Every feature is maximised under each metric of its distance to a large constant C, and under L2 with C from far
beyond the activation reached down to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analyses.drawn import panels, strips
from analyses.made import (
    Made,
    beyond,
    by_feature,
    likeness_rows,
    make,
    mean_of,
    over_seeds,
    share_of,
    side,
    tidy,
    written,
)
from analyses.studies import Context, Finding, Outcome, Study, Verdict, start
from featmap import spectra
from featmap.drawing import FAINT, colour, house_style, pixels, webp
from featmap.recipes import ARTICLE_NORMALISED, METRICS, Recipe
from featmap.sheets import contact_sheet

L1, L2, LINF, ELEMENT = METRICS
OTHERS = (L2, LINF, ELEMENT)
STEPS, FULL = 36, 299
FACTORS = (1000.0, 10.0, 3.0, 1.0)
"""C as a multiple of the activation a that a layer's features reach under L1: far beyond it, down to it."""
SHOWN, SIDE = 4, 96

STUDY = Study(
    "metrics",
    section="Feature Maps are Metric Invariant",
    claim="L1, L2 and Linf between a feature's activations and a large constant give the same qualitative patterns; L1 "
    "leaves the least high-frequency noise.",
    measured="agreement of response profiles of the same feature (less that of different features) between L1 and "
    "every other metric, with another seed beside it; the same and the images' correlation for L2 with other C; "
    "high-frequency power (above half the Nyquist frequency, of the image clipped to [0, 1]) less that of L1, paired; "
    "the gradient is divided by its RMS",
    full="the article's sizes and steps: octaves of 299, 340 and 380 pixels, 300 steps",
)

Sets = dict[str, dict[str, Made]]
"""Layer -> metric, or L2 with a C as `with_C` names it -> its images."""


def with_C(factor: float) -> str:
    """Return what L2 with a C of `factor` times the activation reached is called."""
    return f"l2, C = {factor:g} a"


def measure(context: Context, size: int | None = None, steps: int = STEPS) -> Outcome:
    """Make the images under every metric and C, and compare them with those under L1."""
    reduced = (size or side(context), steps)
    base = ARTICLE_NORMALISED.resolved(FULL, *(() if context.full else reduced))
    sets = {layer: _layer(context, layer, base) for layer in context.layers}
    rows = pd.concat([_rows(layer, made) for layer, made in sets.items()], ignore_index=True)
    found = _findings(rows, sets)
    verdict, conclusion = judged(found)
    figures: dict[str, Figure | bytes] = {"": draw(rows), "-images.webp": webp(sheet(sets), dpi=100)}
    return Outcome(rows, list(found.values()), verdict, conclusion, figures)


def _layer(context: Context, layer: str, base: Recipe) -> dict[str, Made]:
    units = context.units(layer)
    context.say(f"{layer}: {len(units)} features, {len(METRICS)} metrics, {len(FACTORS)} other C")

    def under(seeds: int, **settings: Any) -> Made:
        recipe = base.resolved(FULL, None, None, **settings)
        return make(context, units, recipe, layer, *settings.values(), probe=layer, seeds=seeds)

    made = {metric: under(context.seeds, metric=metric) for metric in METRICS}
    reached = reference(made[L1])
    for factor in FACTORS if reached else ():
        made[with_C(factor)] = under(1, metric=L2, C=float(f"{factor * reached:.3g}"))
    return made


def reference(made: Made) -> float:
    """Return the mean activation that a layer's live features reach, 0 where none is live or the mean is below 0."""
    values = over_seeds(made.activation, made.live)
    known = values[np.isfinite(values)]
    return max(0.0, float(known.mean())) if len(known) else 0.0


def _rows(layer: str, made: Mapping[str, Made]) -> pd.DataFrame:
    rows = []
    for label, one in made.items():
        everywhere = np.ones_like(one.live)
        rows += [
            tidy("high share", layer, one, np.stack([spectra.high_share(i) for i in one.shown]), label),
            tidy("activation", layer, one, one.activation, label),
            tidy("image correlation", layer, one, correlations(one, made[L1]), label, L1),
            tidy("live", layer, one, over_seeds(one.live, everywhere), label),
            likeness_rows(layer, one, made[L1], label, L1),
        ]
    if len(made[L1].images) > 1:
        values = correlations(made[L1], made[L1], turn=1)
        rows.append(tidy("image correlation", layer, made[L1], values, L1, "l1, another seed"))
    return pd.concat(rows)


def correlations(one: Made, two: Made, turn: int = 0) -> np.ndarray:
    """Return the correlation of each image's change with that of the same seed in another set: S x N, S the fewer.

    Of the seed `turn` places further on, where that is asked for.
    """
    count = min(len(one.images), len(two.images))
    a, b = (m.changes[:count].reshape(count, len(m.units), -1).astype(np.float64) for m in (one, two))
    a, b = (x - x.mean(2, keepdims=True) for x in (a, np.roll(b, -turn, axis=0)))
    length = np.sqrt(np.square(a).sum(2) * np.square(b).sum(2))
    return np.where(length > 0, (a * b).sum(2) / np.where(length > 0, length, 1), np.nan)


def _findings(rows: pd.DataFrame, sets: Sets) -> dict[str, Finding]:
    high = {m: by_feature(rows, "high share", m) for m in METRICS}
    found = [mean_of(f"high {m}", high[m], f"high-frequency share of the power, {m}") for m in METRICS]
    found += [mean_of(f"more {m}", high[m] - high[L1], f"high-frequency share, {m} less l1 (paired)") for m in OTHERS]
    for m in METRICS:
        words = f"{m} and l1" if m != L1 else "l1, two seeds of it"
        found.append(mean_of(f"agreement {m}", beyond(rows, m, L1), f"agreement beyond chance, {words}"))
        floor = by_feature(rows, "different", m, L1)
        found.append(mean_of(f"floor {m}", floor, f"agreement of different features, {words}"))
        live = by_feature(rows, "live", m)
        found.append(share_of(f"live {m}", live > 0.5, f"share of features that {m} moves and raises"))
    for label in (L2, *map(with_C, FACTORS)):
        words = f"correlation of the image with l1's, {'l2, C = 200' if label == L2 else label}"
        found.append(mean_of(f"image {label}", by_feature(rows, "image correlation", label, L1), words))
    words = "correlation of l1's image with that of another seed"
    found.append(mean_of("image floor", by_feature(rows, "image correlation", L1, "l1, another seed"), words))
    for factor in FACTORS:
        words = f"agreement beyond chance, {with_C(factor)} and l1"
        found.append(mean_of(f"agreement {with_C(factor)}", beyond(rows, with_C(factor), L1), words))
    return {finding.name: finding for finding in found}


def same_patterns(found: Mapping[str, Finding]) -> bool | None:
    """Return whether L2 and Linf give L1's patterns: agreement above 0, and at least half of what two seeds reach."""
    ceiling = found[f"agreement {L1}"].value
    pairs = [found[f"agreement {m}"] for m in (L2, LINF)]
    if ceiling is None or any(f.value is None or f.low is None for f in pairs):
        return None
    return all(f.low > 0 and f.value >= ceiling / 2 for f in pairs)  # type: ignore[operator]


def least_noise(found: Mapping[str, Finding]) -> bool | None:
    """Return whether L1 has less high-frequency power than L2 and Linf; None where an interval spans 0."""
    more = [found[f"more {m}"] for m in (L2, LINF)]
    if any(f.low is None or f.high is None for f in more):
        return None
    if any(f.high < 0 for f in more):  # type: ignore[operator]
        return False
    return True if all(f.low > 0 for f in more) else None  # type: ignore[operator]


def judged(found: Mapping[str, Finding]) -> tuple[Verdict, str]:
    """Return verdict and conclusion; the two halves of the claim are judged apart, see the functions above."""
    halves = (same_patterns(found), least_noise(found))
    verdict: Verdict = "not decided"
    if all(halves):
        verdict = "holds"
    elif True in halves:
        verdict = "holds in part"
    elif False in halves:
        verdict = "does not hold"
    words = {True: "holds", False: "does not hold", None: "is not decided"}
    agree, live = ({m: found[f"{what} {m}"].value for m in OTHERS} for what in ("agreement", "live"))
    more = {m: written(found[f"more {m}"].value, "+.4f") for m in OTHERS}
    image = {label: written(found[f"image {label}"].value) for label in (L2, with_C(FACTORS[-1]))}
    return verdict, (
        f"That the patterns are the same {words[halves[0]]}: profiles agree with l1's by {written(agree[L2])} (l2), "
        f"{written(agree[LINF])} (linf) and {written(agree[ELEMENT])} (linf-elementwise) beyond different features' "
        f"(two seeds of l1: {written(found[f'agreement {L1}'].value)}), where there is a gradient (linf: "
        f"{written(live[LINF], '.0%')} of the features, elementwise: {written(live[ELEMENT], '.0%')}); that l1 has the "
        f"least high-frequency noise {words[halves[1]]}: l2 has {more[L2]}, linf {more[LINF]} and linf-elementwise "
        f"{more[ELEMENT]} of the power more; l2's images correlate with l1's by {image[L2]} with C = 200 and by "
        f"{image[with_C(FACTORS[-1])]} with C at {FACTORS[-1]:g} times the activation reached."
    )


@house_style
def draw(rows: pd.DataFrame) -> Figure:
    """Draw agreements, high-frequency power against L1, and what a other C does to L2."""
    figure, (left, middle, right) = panels(
        (
            "Response profiles: the same feature under a metric and under l1; gray: different features",
            "High-frequency share of the power less that under l1",
            "l2 with other C (a: activation reached under l1; dotted: images of two seeds of l1)",
        ),
        widths=(1.2, 1.0, 1.2),
    )
    names = {L1: "l1, other seeds", L2: "l2", LINF: "linf", ELEMENT: "linf, element"}
    strips(left, [(names[m], by_feature(rows, "same", m, L1)) for m in METRICS], "correlation")
    for at, m in enumerate(METRICS):
        floor = by_feature(rows, "different", m, L1)
        if len(floor):
            left.plot([at - 0.3, at + 0.3], [floor.mean()] * 2, color="#888888", linewidth=2.5)
    base = by_feature(rows, "high share", L1)
    strips(middle, [(names[m], (by_feature(rows, "high share", m) - base).dropna()) for m in OTHERS], "difference")
    middle.axhline(0, color=FAINT, linewidth=0.8)
    labels = [with_C(FACTORS[0]), L2, *map(with_C, FACTORS[1:])]
    for k, (name, values) in enumerate(
        {
            "image, with l1's image": [by_feature(rows, "image correlation", la, L1) for la in labels],
            "profile, with l1's of another seed": [by_feature(rows, "same", la, L1) for la in labels],
        }.items()
    ):
        means = [v.mean() if len(v) else np.nan for v in values]
        right.plot(range(len(labels)), means, "os"[k] + "-", color=colour(k), markersize=4, label=name)
    right.set_xticks(
        range(len(labels)), ["C = 200" if la == L2 else la.rpartition("= ")[2] for la in labels], fontsize=8
    )
    floor = by_feature(rows, "image correlation", L1, "l1, another seed")
    if len(floor):
        right.axhline(floor.mean(), color=colour(0), linestyle=":", linewidth=1)
    right.set_ylabel("correlation", fontsize=8)
    right.legend(fontsize=7, frameon=False)
    right.set_ylim(top=1.05)
    return figure


@house_style
def sheet(sets: Sets) -> Figure:
    """Draw the same features under each metric, a row a metric."""
    chosen = [(layer, k) for layer, made in sets.items() for k in range(min(SHOWN, len(made[L1].units)))]
    images, labels, captions = [], [], []
    for metric in METRICS:
        for layer, k in chosen:
            images.append(pixels(sets[layer][metric].images[0, k], SIDE).transpose(2, 0, 1) / 255)
            labels.append(sets[layer][metric].units[k])
            captions.append(metric if sets[layer][metric].live[0, k] else f"{metric}: not moved")
    title = "The same features under four metrics"
    return contact_sheet(np.stack(images), labels, captions=captions, groups=None, title=title, columns=len(chosen))


if __name__ == "__main__":
    start(STUDY, measure)
