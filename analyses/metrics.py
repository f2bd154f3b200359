"""Do L1, L2 and Linf give the same patterns, and does L1 leave the least high-frequency noise?

    python -m analyses.metrics

Every feature is maximised under each metric of its distance to a large constant C, and under L2 with C from far
beyond the activation reached down to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.formulas import spectra
from analyses.support.findings import CLAIM_WORDS as SAID
from analyses.support.findings import (
    SHARE,
    Finding,
    format_interval,
    format_value,
    interval,
    mean_or_undefined,
    share_or_undefined,
    value_finding,
)
from analyses.support.image_sets import (
    ImageSet,
    agreement_ceiling,
    agreement_rows,
    count_compared,
    excess_agreement,
    image_size,
    make_images,
    mean_over_seeds,
    restrict_live,
    set_agreement,
    tidy_rows,
    values_by_feature,
)
from analyses.support.plotting import draw_strips, panels
from analyses.support.study import Context, Outcome, Study, Verdict, run_study
from featmap.optimize.recipe import ARTICLE_NORMALISED, METRICS, Recipe
from featmap.plotting.sheets import contact_sheet
from featmap.plotting.style import FAINT, colour, encode_webp, house_style, thumbnail

L1, L2, LINF, ELEMENT = METRICS
OTHERS = (L2, LINF, ELEMENT)
STEPS, FULL = 36, 299
FACTORS = (1000.0, 10.0, 3.0, 1.0)
"""C as a multiple of the activation a that a layer's features reach under L1: far beyond it, down to it."""
SHOWN, SIDE = 4, 96
FEWEST, MARGIN, TOP = 8, 0.05, "ceiling "
"""Images that are compared at least, how far below the ceiling is still at it, what measures of the ceiling are called.
"""

PLOTTED = "raw correlation of profiles"
CEILING = "ceiling (two seeds of l1, same features)"

STUDY = Study(
    "metrics",
    section="Feature Maps are Metric Invariant",
    claim="L1, L2 and Linf between a feature's activations and a large constant give the same qualitative patterns; L1 "
    "leaves the least high-frequency noise.",
    measured="agreement of response profiles of the same feature (less that of different features) between L1 and "
    "every other metric, with its ceiling beside it: that of L1 with another seed of L1 on the same features, both "
    f"undefined where fewer than {FEWEST} images are compared; for L2 with other C the same and the images' "
    "correlation with "
    "L1's, which leave their ceiling (of images: those with the largest C) where the interval of what is lacking lies "
    f"beyond {MARGIN}; high-frequency power (above half the Nyquist frequency, of the image clipped to [0, 1]) less "
    "that of L1, paired; the gradient is divided by its RMS",
    rule="the patterns are the same if the profiles of l2 and of linf agree with l1's by more than half of the ceiling "
    "(two seeds of l1) on the features that the metric moves: if the interval of agreement less half the ceiling "
    "(paired) lies above 0, a wide margin, so that what is lacking of the whole ceiling is said beside it; l1 has the "
    "least noise if the paired differences of the high-frequency shares of l2 and of linf lie above 0; the claim holds "
    "if both are so, in part if one is",
    full="the article's sizes and steps: octaves of 299, 340 and 380 pixels, 300 steps",
)

ImageSets = dict[str, dict[str, ImageSet]]
"""Layer -> metric, or L2 with a C as `with_C` names it -> its images."""


def label_of_C(factor: float) -> str:
    """Return what L2 with a C of `factor` times the activation reached is called."""
    return f"l2, C = {factor:g} a"


FAR = f"image {label_of_C(FACTORS[0])}"
"""The correlation of L2's images with the largest C with those of L1."""


def measure(context: Context, size: int | None = None, steps: int = STEPS) -> Outcome:
    """Make the images under every metric and C, and compare them with those under L1."""
    reduced = (size or image_size(context), steps)
    base = ARTICLE_NORMALISED.resolved(FULL, *(() if context.full else reduced))
    sets = {layer: _maximise_layer(context, layer, base) for layer in context.layers}
    rows = pd.concat([_image_rows(layer, made) for layer, made in sets.items()], ignore_index=True)
    found = _collect_findings(rows, sets, base.C)
    verdict, conclusion = judge(found)
    figures: dict[str, Figure | bytes] = {
        "": draw_figure(rows, labels_by_C(found)),
        "-images.webp": encode_webp(draw_sheet(sets), dpi=100),
    }
    return Outcome(rows, list(found.values()), verdict, conclusion, figures)


def _maximise_layer(context: Context, layer: str, base: Recipe) -> dict[str, ImageSet]:
    units = context.draw_units(layer)
    context.log(f"{layer}: {len(units)} features, {len(METRICS)} metrics, {len(FACTORS)} other C")

    def under(seeds: int, **settings: Any) -> ImageSet:
        recipe = base.resolved(FULL, None, None, **settings)
        return make_images(context, units, recipe, layer, *settings.values(), probe=layer, seeds=seeds)

    made = {metric: under(context.seeds, metric=metric) for metric in METRICS}
    reached = mean_reached(made[L1])
    for factor in FACTORS if reached else ():
        made[label_of_C(factor)] = under(1, metric=L2, C=float(f"{factor * reached:.3g}"))
    return made


def mean_reached(made: ImageSet) -> float:
    """Return the mean activation that a layer's live features reach, 0 where none is live or the mean is below 0."""
    values = mean_over_seeds(made.activation, made.live)
    known = values[np.isfinite(values)]
    return max(0.0, float(known.mean())) if len(known) else 0.0


def _image_rows(layer: str, made: Mapping[str, ImageSet]) -> pd.DataFrame:
    rows = []
    for label, one in made.items():
        everywhere = np.ones_like(one.live)
        rows += [
            tidy_rows(
                "high share", layer, one, np.stack([spectra.high_frequency_share(i) for i in one.clipped]), label
            ),
            tidy_rows("activation", layer, one, one.activation, label),
            tidy_rows("image correlation", layer, one, change_correlations(one, made[L1]), label, L1),
            tidy_rows("live", layer, one, mean_over_seeds(one.live, everywhere), label),
            compare_with_L1(layer, one, made[L1], label),
        ]
    if len(made[L1].images) > 1:
        values = change_correlations(made[L1], made[L1], turn=1)
        rows.append(tidy_rows("image correlation", layer, made[L1], values, L1, "l1, another seed"))
    return pd.concat(rows)


def compare_with_L1(layer: str, one: ImageSet, two: ImageSet, label: str) -> pd.DataFrame:
    """Return how alike the images of one recipe and of L1 are, and those of L1 and of its other seeds on these rows."""
    if label == L1:
        return agreement_rows(layer, two, two, L1, L1, set_agreement(two, two, FEWEST))
    both = restrict_live(one, two)
    agreement = agreement_rows(layer, both, two, label, L1, set_agreement(both, two, FEWEST))
    return pd.concat(
        [agreement, agreement_rows(layer, both, two, label, L1, agreement_ceiling(both, two, FEWEST), TOP)]
    )


def change_correlations(one: ImageSet, two: ImageSet, turn: int = 0) -> np.ndarray:
    """Return the correlation of each image's change with that of the same seed in another set: S x N, S the fewer.

    Of the seed `turn` places further on, where that is asked for.
    """
    count = min(len(one.images), len(two.images))
    a, b = (m.changes[:count].reshape(count, len(m.units), -1).astype(np.float64) for m in (one, two))
    a, b = (x - x.mean(2, keepdims=True) for x in (a, np.roll(b, -turn, axis=0)))
    length = np.sqrt(np.square(a).sum(2) * np.square(b).sum(2))
    return np.where(length > 0, (a * b).sum(2) / np.where(length > 0, length, 1), np.nan)


def _collect_findings(rows: pd.DataFrame, sets: ImageSets, C: float) -> dict[str, Finding]:
    high = {m: values_by_feature(rows, "high share", m) for m in METRICS}
    found = [
        mean_or_undefined(f"high {m}", high[m], f"high-frequency share of the power, {m}", "", SHARE) for m in METRICS
    ]
    found += [
        mean_or_undefined(f"more {m}", high[m] - high[L1], f"high-frequency share, {m} less l1 (paired)")
        for m in OTHERS
    ]
    for m in METRICS:
        found += _agreement_findings(rows, m)
    for m in OTHERS:
        counts = [n for made in sets.values() for n in count_compared(restrict_live(made[m], made[L1]), made[L1])]
        words = f"images compared at once, {m} and l1 (median of n pairs of seeds); below {FEWEST} none are"
        found.append(value_finding(f"compared {m}", float(np.median(counts)), len(counts), words))
    words = "correlation of l1's image with that of another seed"
    found.append(
        mean_or_undefined("image floor", values_by_feature(rows, "image correlation", L1, "l1, another seed"), words)
    )
    return {finding.name: finding for finding in [*found, *_other_C_findings(rows, sets, C)]}


def _agreement_findings(rows: pd.DataFrame, m: str) -> list[Finding]:
    words = f"{m} and l1" if m != L1 else "l1, two seeds of it"
    agreement, top = excess_agreement(rows, m, L1), excess_agreement(rows, m, L1, TOP)
    found = [mean_or_undefined(f"agreement {m}", agreement, f"agreement beyond chance, {words}")]
    if m != L1:
        found += [
            mean_or_undefined(
                f"ceiling {m}", top, f"its ceiling: l1 and another seed of l1, on the images that {m} has"
            ),
            mean_or_undefined(f"half {m}", agreement - top / 2, f"agreement less half its ceiling (paired), {words}"),
            mean_or_undefined(f"short {m}", agreement - top, f"agreement less its ceiling (paired), {words}"),
        ]
    floor, live = values_by_feature(rows, "different", m, L1), values_by_feature(rows, "live", m)
    found.append(mean_or_undefined(f"floor {m}", floor, f"agreement of different features, {words}"))
    return [*found, share_or_undefined(f"live {m}", live > 0.5, f"share of features that {m} moves and raises")]


def _other_C_findings(rows: pd.DataFrame, sets: ImageSets, C: float) -> list[Finding]:
    """Return agreement and correlation of L2's images with L1's with every C, and what they lack of their ceilings."""
    first = rows[rows["seed"].isna() | (rows["seed"] == 0)]  # other C have one seed
    far = values_by_feature(first, "image correlation", label_of_C(FACTORS[0]), L1)
    found = []
    for label in (L2, *map(label_of_C, FACTORS)):
        name = f"l2, C = {C:g}" if label == L2 else label
        agreement, own = excess_agreement(rows, label, L1), values_by_feature(rows, "image correlation", label, L1)
        if label != L2:
            found.append(mean_or_undefined(f"agreement {label}", agreement, f"agreement beyond chance, {name} and l1"))
            words = f"agreement less its ceiling (paired), {name} and l1"
            found.append(mean_or_undefined(f"short {label}", agreement - excess_agreement(rows, label, L1, TOP), words))
        found.append(mean_or_undefined(f"image {label}", own, f"correlation of the image with l1's, {name}"))
        less = values_by_feature(first, "image correlation", label, L1) - far
        words = f"correlation of the image with l1's, {name} less {label_of_C(FACTORS[0])} (paired)"
        found.append(mean_or_undefined(f"image short {label}", less, words))
    times = [C / a for made in sets.values() if (a := mean_reached(made[L1]))]
    words = f"C = {C:g} over the activation a reached under l1 (mean of n layers)"
    return [*found, value_finding("C over a", float(np.mean(times)) if times else np.nan, len(times), words)]


def same_patterns(found: Mapping[str, Finding]) -> bool | None:
    """Return whether L2 and Linf give L1's patterns: the agreement of both is above half its ceiling, on the same rows.

    None where an interval spans that, or where too few images are there to compare.
    """
    halves = [found[f"half {m}"] for m in (L2, LINF)]
    if any(f.high is not None and f.high < 0 for f in halves):
        return False
    return True if all(f.low is not None and f.low > 0 for f in halves) else None


def labels_by_C(found: Mapping[str, Finding]) -> list[str]:
    """Return L2's labels by C, the largest first."""
    times = found["C over a"].value or np.inf
    factors = {L2: times} | {label_of_C(f): f for f in FACTORS}
    return sorted(factors, key=lambda label: -factors[label])


def ceiling_span(found: Mapping[str, Finding], what: str, labels: Sequence[str]) -> tuple[str | None, str | None]:
    """Return the last of L2's C, going down, at which something is at its ceiling, and the first that has left it.

    At it: the interval of what is lacking lies above -`MARGIN`. Left: it lies below that. Between: neither.
    """
    at, lacking = None, [found[f"{what} {label}"] for label in labels]
    for label, f in zip(labels, lacking, strict=True):
        if f.high is not None and f.high < -MARGIN:
            return at, label
        if f.low is not None and f.low > -MARGIN:
            at = label
    return at, None


def least_noise(found: Mapping[str, Finding]) -> bool | None:
    """Return whether L1 has less high-frequency power than L2 and Linf; None where an interval spans 0."""
    more = [found[f"more {m}"] for m in (L2, LINF)]
    if any(f.low is None or f.high is None for f in more):
        return None
    if any(f.high < 0 for f in more):  # type: ignore[operator]
        return False
    return True if all(f.low > 0 for f in more) else None  # type: ignore[operator]


def judge(found: Mapping[str, Finding]) -> tuple[Verdict, str]:
    """Return verdict and conclusion; the two halves of the claim are judged apart, see the functions above."""
    halves = (same_patterns(found), least_noise(found))
    verdict: Verdict = "not decided"
    if all(halves):
        verdict = "holds"
    elif True in halves:
        verdict = "holds in part"
    elif False in halves:
        verdict = "does not hold"
    more = {m: format_interval(found[f"more {m}"], "+.4f") for m in OTHERS}
    return verdict, (
        f"That the patterns are the same (more than half of the ceiling, two seeds of l1) {SAID[halves[0]]} on the "
        f"features that a metric moves: profiles agree with l1's beyond different features' by "
        f"{'; '.join(map(partial(agreement_phrase, found), OTHERS))}. That l1 has the least high-frequency noise "
        f"{SAID[halves[1]]}: l2 has {more[L2]}, linf {more[LINF]} of the power more. l2's profiles {range_phrase(found)}, "
        f"though even these correlate with l1's images by {format_value(found[FAR].value)} only in pixels (a is the "
        f"activation reached; C = 200 is {format_value(found['C over a'].value, '.0f')} a)."
    )


def agreement_phrase(found: Mapping[str, Finding], m: str) -> str:
    """Return one metric's agreement and what it lacks of its ceiling, or why there is none."""
    agreement, short = found[f"agreement {m}"].value, found[f"short {m}"]
    live = format_value(found[f"live {m}"].value, ".0%")
    if agreement is None:
        return f"undefined ({m}, which moves {live} of the features: too few to compare)"
    below = short.high is not None and short.high < 0
    against = (
        f"{'clearly below' if below else 'against'} the ceiling: {format_interval(short, '+.3f')}, n = {short.count}"
    )
    return f"{format_value(agreement)} ({m}, which moves {live} of the features; {against})"


def range_phrase(found: Mapping[str, Finding]) -> str:
    """Return where L2 with C going down ceases to be like L1, for a sentence."""
    told = []
    for what, other in (
        ("short", "agree as two seeds of l1 do"),
        ("image short", "its images are as with the largest C"),
    ):
        at, left = ceiling_span(found, what, labels_by_C(found))
        ends = "for no C" if at is None else f"down to C = {C_text(at)}"
        told.append(f"{other} {ends}" + (f" and no more at {C_text(left)}" if left else ""))
    return ", ".join(told)


def C_text(label: str) -> str:
    """Return a C without the metric."""
    return "200" if label == L2 else label.rpartition("= ")[2]


@house_style
def draw_figure(rows: pd.DataFrame, labels: Sequence[str]) -> Figure:
    """Draw agreements, high-frequency power against L1, and what another C does to L2; `labels` by C."""
    figure, (left, middle, right) = panels(
        (
            "Profiles of the same feature under a metric and under l1",
            "High-frequency share of the power less that under l1",
            "l2 with other C (a: activation reached under l1)",
        ),
        widths=(1.2, 1.0, 1.2),
        height=3.7,
    )
    names = {L1: "l1, other seeds", L2: "l2", LINF: "linf", ELEMENT: "linf, element"}
    draw_strips(left, [(names[m], values_by_feature(rows, "same", m, L1)) for m in METRICS], PLOTTED, legend=False)
    for measure, colour_, words in (("different", "#888888", "different features"), (TOP + "same", "black", CEILING)):
        for at, m in enumerate(METRICS):
            level = values_by_feature(rows, measure, m, L1)
            if len(level):
                left.plot([at - 0.32, at + 0.32], [level.mean()] * 2, color=colour_, linewidth=1.6, alpha=0.8)
        left.plot([], [], color=colour_, linewidth=1.6, label=words)
    base = values_by_feature(rows, "high share", L1)
    groups = [(names[m], (values_by_feature(rows, "high share", m) - base).dropna()) for m in OTHERS]
    draw_strips(middle, groups, "difference", legend=False)
    middle.axhline(0, color=FAINT, linewidth=0.8)
    _draw_by_C(right, rows, labels)
    for axes in (left, middle, right):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), handletextpad=0.4)
    return figure


def _draw_by_C(axes: Axes, rows: pd.DataFrame, labels: Sequence[str]) -> None:
    lines = {
        "profile, with l1's of another seed": ("same", L1),
        f"the same of l1: {CEILING}": (TOP + "same", L1),
        "image, with l1's image": ("image correlation", L1),
    }
    for (name, (measure, against)), style in zip(lines.items(), ("s-", ":", "o-"), strict=True):
        values = [values_by_feature(rows, measure, label, against) for label in labels]
        means, lows, highs = np.array([interval(v) if len(v) else (np.nan,) * 3 for v in values]).T
        shade = "black" if style == ":" else colour(len(measure) % 2)
        axes.plot(range(len(labels)), means, style, color=shade, markersize=4, label=name)
        if style == ":":
            axes.fill_between(range(len(labels)), lows, highs, color=shade, alpha=0.12, linewidth=0)
        else:
            reach = [means - lows, highs - means]
            axes.errorbar(range(len(labels)), means, reach, fmt="none", ecolor=shade, capsize=2, linewidth=1)
    floor = values_by_feature(rows, "image correlation", L1, "l1, another seed")
    if len(floor):
        mean, low, high = interval(floor)
        axes.axhline(mean, color=FAINT, linestyle="--", linewidth=1, label="l1's images of two seeds")
        axes.axhspan(low, high, color=FAINT, alpha=0.15, linewidth=0)
    axes.set_xticks(range(len(labels)), [f"C = {C_text(la)}" if la == L2 else C_text(la) for la in labels], fontsize=8)
    axes.set_ylabel("correlation (raw), 95 % interval", fontsize=8)
    axes.set_ylim(top=1.05)


@house_style
def draw_sheet(sets: ImageSets) -> Figure:
    """Draw the same features under each metric, a row a metric."""
    chosen = [(layer, k) for layer, made in sets.items() for k in range(min(SHOWN, len(made[L1].units)))]
    images, labels, captions = [], [], []
    for metric in METRICS:
        for layer, k in chosen:
            images.append(thumbnail(sets[layer][metric].images[0, k], SIDE).transpose(2, 0, 1) / 255)
            labels.append(sets[layer][metric].units[k])
            captions.append(metric if sets[layer][metric].live[0, k] else "not moved")
    title = f"The same features under {', '.join(METRICS[:-1])} and (bottom) {METRICS[-1]}"
    return contact_sheet(np.stack(images), labels, captions=captions, groups=None, title=title, columns=len(chosen))


if __name__ == "__main__":
    run_study(STUDY, measure)
