"""Compare the images under L1, L2 and Linf: their patterns and their high-frequency noise.

    python -m analyses.metrics

Every feature is maximised under each metric of its distance to a large constant C, and under L2 with C from far above
the activation reached down to it. C is 200, or so many times the activation reached that it is large in any network.
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
from analyses.support.decisions import all_hold, exceeds
from analyses.support.findings import (
    CLAIM_WORDS,
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
    COLUMNS,
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
from analyses.support.study import FIRST, Context, Outcome, StoredResult, Study, Verdict
from analyses.support.study_command import run_study
from analyses.support.units import named_rows
from featmap.optimize.recipe import ARTICLE_NORMALISED, METRICS, Recipe
from featmap.plotting.sheets import Sheet, contact_sheet
from featmap.plotting.style import FAINT, colour, encode_webp, house_style, thumbnail

L1, L2, LINF, ELEMENT = METRICS
OTHERS = (L2, LINF, ELEMENT)
STEPS, FULL = 36, 299
LARGE = 10.0
"""C is at least so many times the largest a, the mean activation that the features of a layer reach under L1."""
FACTORS = (1000.0, 10.0, 3.0, 1.0)
"""Values of C as multiples of the activation a that a layer's features reach under L1."""
SHOWN, SIDE = 4, 96
FEWEST, MARGIN, TOP = 8, 0.05, "ceiling "
"""Fewest images to compare, largest deficit that counts as at the ceiling, and prefix of the ceiling's measures."""

PLOTTED = "raw correlation of profiles"
CEILING = "ceiling (two seeds of l1, same features)"

STUDY = Study(
    "metrics",
    section="Feature Maps are Metric Invariant",
    units={"inception_v3": (FIRST,)},
    claim="L1, L2 and Linf between a feature's activations and a large constant give the same qualitative patterns; L1 "
    "leaves the least high-frequency noise.",
    measured="l1, l2 and linf as in the article's code (linf is a matrix norm: the largest sum over a row of the "
    "differences; linf-elementwise is the largest difference); agreement of response profiles of the same feature "
    "(minus that of different features) between L1 and every other metric, with its ceiling: the agreement of L1 with "
    f"another seed of L1 on the same features, both undefined where fewer than {FEWEST} images are compared; for L2 "
    "with other values of C the same, and the correlation of the images with L1's; they are no longer at their "
    f"ceiling (for images: the value with the largest C) where the interval of the deficit is beyond {MARGIN}; "
    "high-frequency power (above half the Nyquist frequency, of the image clipped to [0, 1]) minus that of L1, "
    "paired; the gradient is divided by its RMS",
    rule="the patterns are the same if the profiles of l2 and of linf agree with l1's by more than half of the ceiling "
    "(two seeds of l1) on the features that the metric moves: if for both the interval of agreement minus half the "
    "ceiling (paired) is above 0, and not if for one of them it is below; this margin is wide, so the deficit from the "
    "full ceiling is reported as well; l1 has the least noise if for both the interval of the paired difference of the "
    "high-frequency shares is above 0, and not if for one of them it is below; whether linf over elements does either "
    "does not count. The claim holds if both are true, in part if one is, does not hold if none is and one is false, "
    f"and is not decided otherwise. C is the larger of 200 and {LARGE:g} a, a being the largest mean activation that "
    "the features of a layer reach under l1, on which C has no effect",
    full="the article's sizes and steps: octaves of 299, 340 and 380 pixels, 300 steps",
)

ImageSets = dict[str, dict[str, ImageSet]]
"""Images by layer and by metric, or by L2 with a C as `label_of_C` names it."""


def label_of_C(factor: float) -> str:
    """Name L2 with a C of `factor` times the activation reached."""
    return f"l2, C = {factor:g} a"


FAR = f"image {label_of_C(FACTORS[0])}"
"""Name of the correlation of L1's images with L2's at the largest C."""


def measure(context: Context, size: int | None = None, steps: int = STEPS) -> Outcome:
    """Maximise features under every metric and C, and compare the images with L1's."""
    sized = (context.size, None) if context.full else (size or image_size(context), steps)
    base = ARTICLE_NORMALISED.resolved(FULL, *sized, **context.changes)
    sets, C = maximise_layers(context, base)
    parts = [_image_rows(layer, by_metric) for layer, by_metric in sets.items()]
    rows = pd.concat([*parts, *(_constant_rows(layer, by_metric, C) for layer, by_metric in sets.items())])
    rows = rows.reset_index(drop=True)
    findings = _collect_findings(rows, sets, C)
    named = [("same", m, L1, f"agreement of the profiles of {m} and l1", "") for m in OTHERS]
    named += [("high share", m, "", f"high-frequency share of the power, {m}", "") for m in METRICS]
    findings |= {f.name: f for f in named_rows(context, rows, named)}
    verdict, conclusion = judge(findings)
    figures: dict[str, Figure | bytes] = {
        "": draw_figure(rows, labels_by_C(findings), C),
        "-images.webp": encode_webp(draw_sheet(sets), dpi=100),
    }
    return Outcome(rows, list(findings.values()), verdict, conclusion, figures)


def maximise_layers(context: Context, base: Recipe) -> tuple[ImageSets, float]:
    """Maximise the features of every layer under every metric, and under L2 with every C; also return the large C."""
    units = {layer: context.draw_units(layer) for layer in context.layers}

    def under(layer: str, seeds: int, **settings: Any) -> ImageSet:
        recipe = base.resolved(FULL, None, None, **settings)
        return make_images(context, units[layer], recipe, layer, *settings.values(), probe=layer, seeds=seeds)

    sets: ImageSets = {layer: {L1: under(layer, context.seeds, metric=L1)} for layer in context.layers}
    reached = {layer: mean_reached(by_metric[L1]) for layer, by_metric in sets.items()}
    C = choose_constant(base.C, list(reached.values()))
    large = {} if C == base.C else {"C": C}  # named only where it is another: images under 200 are found again
    for layer, by_metric in sets.items():
        context.log(f"{layer}: {len(units[layer])} features, {len(METRICS)} metrics, {len(FACTORS)} other values of C")
        by_metric |= {metric: under(layer, context.seeds, metric=metric, **large) for metric in OTHERS}
        for factor in FACTORS if reached[layer] else ():
            value = float(f"{factor * reached[layer]:.3g}")
            by_metric[label_of_C(factor)] = under(layer, 1, metric=L2, C=value)
    return sets, C


def choose_constant(usual: float, reached: Sequence[float]) -> float:
    """Choose a C that is large for every layer: the usual one, or `LARGE` times the largest activation reached."""
    return max(usual, float(f"{LARGE * max(reached, default=0.0):.3g}"))


def _constant_rows(layer: str, by_metric: Mapping[str, ImageSet], C: float) -> pd.DataFrame:
    """Arrange the value of C under each metric as rows; L1, on which it has no effect, has none."""
    reached = mean_reached(by_metric[L1])
    values = dict.fromkeys(OTHERS, C)
    values |= {label_of_C(f): float(f"{f * reached:.3g}") for f in FACTORS if label_of_C(f) in by_metric}
    rows = pd.DataFrame({"measure": "C", "layer": layer, "feature": "", "recipe": list(values), "against": ""})
    return rows.assign(seed=pd.array([pd.NA] * len(values), dtype="Int64"), value=list(values.values()))[list(COLUMNS)]


def mean_reached(image_set: ImageSet) -> float:
    """Compute the mean activation that a layer's live features reach.

    0 where none is live or the mean is negative.
    """
    values = mean_over_seeds(image_set.activation, image_set.live)
    defined = values[np.isfinite(values)]
    return max(0.0, float(defined.mean())) if len(defined) else 0.0


def _image_rows(layer: str, by_metric: Mapping[str, ImageSet]) -> pd.DataFrame:
    """Arrange the measures of a layer's images as rows."""
    rows = []
    for label, one in by_metric.items():
        everywhere = np.ones_like(one.live)
        rows += [
            tidy_rows(
                "high share", layer, one, np.stack([spectra.high_frequency_share(i) for i in one.clipped]), label
            ),
            tidy_rows("activation", layer, one, one.activation, label),
            tidy_rows("image correlation", layer, one, change_correlations(one, by_metric[L1]), label, L1),
            tidy_rows("live", layer, one, mean_over_seeds(one.live, everywhere), label),
            compare_with_L1(layer, one, by_metric[L1], label),
        ]
    if len(by_metric[L1].images) > 1:
        values = change_correlations(by_metric[L1], by_metric[L1], shift=1)
        rows.append(tidy_rows("image correlation", layer, by_metric[L1], values, L1, "l1, another seed"))
    return pd.concat(rows)


def compare_with_L1(layer: str, one: ImageSet, two: ImageSet, label: str) -> pd.DataFrame:
    """Arrange the agreement of one set with L1's, and its ceiling, as rows."""
    if label == L1:
        return agreement_rows(layer, two, two, L1, L1, set_agreement(two, two, FEWEST))
    both = restrict_live(one, two)
    agreement = agreement_rows(layer, both, two, label, L1, set_agreement(both, two, FEWEST))
    return pd.concat(
        [agreement, agreement_rows(layer, both, two, label, L1, agreement_ceiling(both, two, FEWEST), TOP)]
    )


def change_correlations(one: ImageSet, two: ImageSet, shift: int = 0) -> np.ndarray:
    """Correlate each image's change with that of the same seed in another set.

    `S x N`, S the smaller number of seeds; with a `shift`, with that of the seed so many places further on.
    """
    count = min(len(one.images), len(two.images))
    a, b = (m.changes[:count].reshape(count, len(m.units), -1).astype(np.float64) for m in (one, two))
    a, b = (x - x.mean(2, keepdims=True) for x in (a, np.roll(b, -shift, axis=0)))
    length = np.sqrt(np.square(a).sum(2) * np.square(b).sum(2))
    return np.where(length > 0, (a * b).sum(2) / np.where(length > 0, length, 1), np.nan)


def _collect_findings(rows: pd.DataFrame, sets: ImageSets, C: float) -> dict[str, Finding]:
    """Collect the findings by name."""
    high = {m: values_by_feature(rows, "high share", m) for m in METRICS}
    findings = [
        mean_or_undefined(f"high {m}", high[m], f"high-frequency share of the power, {m}", "", SHARE) for m in METRICS
    ]
    findings += [
        mean_or_undefined(f"more {m}", high[m] - high[L1], f"high-frequency share, {m} minus l1 (paired)")
        for m in OTHERS
    ]
    for m in METRICS:
        findings += _agreement_findings(rows, m)
    for m in OTHERS:
        counts = [
            n
            for by_metric in sets.values()
            for n in count_compared(restrict_live(by_metric[m], by_metric[L1]), by_metric[L1])
        ]
        words = f"images compared, {m} and l1 (median of n pairs of seeds); none below {FEWEST}"
        findings.append(value_finding(f"compared {m}", float(np.median(counts)), len(counts), words))
    words = "correlation of l1's image with that of another seed"
    findings.append(
        mean_or_undefined("image floor", values_by_feature(rows, "image correlation", L1, "l1, another seed"), words)
    )
    return {finding.name: finding for finding in [*findings, *_other_C_findings(rows, sets, C)]}


def _agreement_findings(rows: pd.DataFrame, m: str) -> list[Finding]:
    """Collect the agreement of one metric with L1 and its limits."""
    words = f"{m} and l1" if m != L1 else "two seeds of l1"
    agreement, top = excess_agreement(rows, m, L1), excess_agreement(rows, m, L1, TOP)
    findings = [mean_or_undefined(f"agreement {m}", agreement, f"agreement beyond chance, {words}")]
    if m != L1:
        findings += [
            mean_or_undefined(
                f"ceiling {m}", top, f"ceiling of that agreement: two seeds of l1, on the images that {m} has"
            ),
            mean_or_undefined(f"half {m}", agreement - top / 2, f"agreement minus half its ceiling (paired), {words}"),
            mean_or_undefined(f"short {m}", agreement - top, f"agreement minus its ceiling (paired), {words}"),
        ]
    floor, live = values_by_feature(rows, "different", m, L1), values_by_feature(rows, "live", m)
    findings.append(mean_or_undefined(f"floor {m}", floor, f"agreement of different features, {words}"))
    return [
        *findings,
        share_or_undefined(f"live {m}", live > 0.5, f"share of features that {m} moves and whose activation rises"),
    ]


def _other_C_findings(rows: pd.DataFrame, sets: ImageSets, C: float) -> list[Finding]:
    """Collect agreement and correlation with L1 for every C, and their deficits."""
    first = rows[rows["seed"].isna() | (rows["seed"] == 0)]  # other values of C have one seed
    far = values_by_feature(first, "image correlation", label_of_C(FACTORS[0]), L1)
    findings = []
    for label in (L2, *map(label_of_C, FACTORS)):
        name = f"l2, C = {C:g}" if label == L2 else label
        agreement, own = excess_agreement(rows, label, L1), values_by_feature(rows, "image correlation", label, L1)
        if label != L2:
            findings.append(
                mean_or_undefined(f"agreement {label}", agreement, f"agreement beyond chance, {name} and l1")
            )
            words = f"agreement minus its ceiling (paired), {name} and l1"
            findings.append(
                mean_or_undefined(f"short {label}", agreement - excess_agreement(rows, label, L1, TOP), words)
            )
        findings.append(mean_or_undefined(f"image {label}", own, f"correlation of the image with l1's, {name}"))
        deficit = values_by_feature(first, "image correlation", label, L1) - far
        words = f"correlation of the image with l1's, {name} minus {label_of_C(FACTORS[0])} (paired)"
        findings.append(mean_or_undefined(f"image short {label}", deficit, words))
    times = [C / a for by_metric in sets.values() if (a := mean_reached(by_metric[L1]))]
    words = f"C = {C:g} divided by the activation a reached under l1 (mean of n layers)"
    findings.append(value_finding("C over a", float(np.mean(times)) if times else np.nan, len(times), words))
    words = f"C of l2 and linf: the larger of 200 and {LARGE:g} times the largest a of n layers"
    return [*findings, value_finding("C", C, len(times), words)]


def same_patterns(findings: Mapping[str, Finding]) -> bool | None:
    """Check whether L2 and Linf give L1's patterns.

    The agreement of both has to be above half its ceiling; None where an interval spans that, or too few images are
    compared.
    """
    return all_hold(exceeds(findings[f"half {m}"], 0) for m in (L2, LINF))


def labels_by_C(findings: Mapping[str, Finding]) -> list[str]:
    """Sort L2's labels by C, the largest first."""
    times = findings["C over a"].value or np.inf
    factors = {L2: times} | {label_of_C(f): f for f in FACTORS}
    return sorted(factors, key=lambda label: -factors[label])


def ceiling_span(findings: Mapping[str, Finding], what: str, labels: Sequence[str]) -> tuple[str | None, str | None]:
    """Find the last C at which a quantity is at its ceiling, and the first below.

    C falls from label to label.

    The quantity is at the ceiling where the interval of its deficit is above -`MARGIN`, and has left it where the
    interval is below that.
    """
    at, deficits = None, [findings[f"{what} {label}"] for label in labels]
    for label, f in zip(labels, deficits, strict=True):
        full = exceeds(f, -MARGIN)
        if full is False:
            return at, label
        if full:
            at = label
    return at, None


def least_noise(findings: Mapping[str, Finding]) -> bool | None:
    """Check whether L1 has less high-frequency power than L2 and Linf.

    None where an interval spans 0.
    """
    return all_hold(exceeds(findings[f"more {m}"], 0) for m in (L2, LINF))


def judge(findings: Mapping[str, Finding]) -> tuple[Verdict, str]:
    """Judge both halves of the claim, and write the conclusion."""
    halves = (same_patterns(findings), least_noise(findings))
    verdict: Verdict = "not decided"
    if all(halves):
        verdict = "holds"
    elif True in halves:
        verdict = "holds in part"
    elif False in halves:
        verdict = "does not hold"
    more, C = {m: format_interval(findings[f"more {m}"], "+.4f") for m in OTHERS}, used_C(findings)
    patterns, noise = (CLAIM_WORDS[half] for half in halves)
    return verdict, (
        f"That the patterns are the same {patterns}, on the features that a metric moves: profiles under l2 and linf "
        "have to agree with l1's, beyond those of different features, by more than half as much as two seeds of l1 do "
        "(the ceiling). "
        f"{' '.join(map(partial(agreement_phrase, findings), OTHERS))} That l1 has the least high-frequency noise "
        f"{noise}: {format_value(findings['high l1'].value, '.3f')} of the power is there under l1, {more[L2]} is "
        f"added under l2 and {more[LINF]} under linf. C = {C:g} is {format_value(findings['C over a'].value, '.0f')} "
        f"times the activation a that features reach under l1. {range_phrase(findings)} With the largest C, l2's "
        f"images correlate with l1's by only {format_value(findings[FAR].value)} in pixels."
    )


def agreement_phrase(findings: Mapping[str, Finding], m: str) -> str:
    """Describe one metric's agreement as a share of its ceiling, or why it is undefined."""
    agreement, top, half = (findings[f"{name} {m}"] for name in ("agreement", "ceiling", "half"))
    text = f"{m} moves {format_value(findings[f'live {m}'].value, '.0%')} of the features"
    if agreement.value is None:
        return f"{text}: too few to compare, for which it takes {FEWEST} of one layer and seed."
    if top.value is None:
        return f"{text} and agrees by {agreement.value:.2f}; the ceiling takes two seeds."
    share = f"{agreement.value:.2f}, with a ceiling of {top.value:.2f}"
    if top.value > 0:
        share = f"{agreement.value / top.value:.0%} of the ceiling, {top.value:.2f}"
    words = {True: "more than half", False: "less than half", None: "not clearly more or less than half"}
    return (
        f"{text} and agrees by {share}: {words[exceeds(half, 0)]} of it ({format_interval(half, '+.3f')} from half; "
        f"n = {half.count})."
    )


def range_phrase(findings: Mapping[str, Finding]) -> str:
    """Describe down to which C the images under L2 are like those under L1."""
    parts, C = [], used_C(findings)
    for what, words in (
        ("short", "l2's profiles agree like two seeds of l1"),
        ("image short", "l2's images are as with the largest C"),
    ):
        at, left = ceiling_span(findings, what, labels_by_C(findings))
        known = any(findings[f"{what} {label}"].low is not None for label in labels_by_C(findings))
        ends = (
            f"down to C = {C_text(at, C)}" if at is not None else "for no C" if known else "for a C that is undefined"
        )
        parts.append(f"{words} {ends}" + (f" and no longer at {C_text(left, C)}." if left else "."))
    return " ".join(parts)


def C_text(label: str, C: float) -> str:
    """Write a C without the metric; `C` is the large one."""
    return f"{C:g}" if label == L2 else label.rpartition("= ")[2]


def used_C(findings: Mapping[str, Finding]) -> float:
    """Look up the large C; earlier results, which do not name it, have 200."""
    found = findings.get("C")
    return 200.0 if found is None or found.value is None else found.value


def restate(stored: StoredResult) -> tuple[Verdict, str]:
    """Write verdict and conclusion from the stored result."""
    return judge(stored.findings)


@house_style
def draw_figure(rows: pd.DataFrame, labels: Sequence[str], C: float) -> Figure:
    """Draw agreements, high-frequency power and the effect of C on L2."""
    figure, (left, middle, right) = panels(
        (
            "Profiles of the same feature under a metric and under l1",
            "High-frequency share of the power minus that under l1",
            "l2 with other values of C (a: activation reached under l1)",
        ),
        widths=(1.2, 1.0, 1.2),
        height=3.7,
    )
    names = {L1: "l1, other seeds", L2: "l2", LINF: "linf", ELEMENT: "linf, element"}
    draw_strips(left, [(names[m], values_by_feature(rows, "same", m, L1)) for m in METRICS], PLOTTED, legend=False)
    for name, shade, words in (("different", "#888888", "different features"), (TOP + "same", "black", CEILING)):
        for at, m in enumerate(METRICS):
            level = values_by_feature(rows, name, m, L1)
            if len(level):
                left.plot([at - 0.32, at + 0.32], [level.mean()] * 2, color=shade, linewidth=1.6, alpha=0.8)
        left.plot([], [], color=shade, linewidth=1.6, label=words)
    base = values_by_feature(rows, "high share", L1)
    groups = [(names[m], (values_by_feature(rows, "high share", m) - base).dropna()) for m in OTHERS]
    draw_strips(middle, groups, "difference", legend=False)
    middle.axhline(0, color=FAINT, linewidth=0.8)
    _draw_by_C(right, rows, labels, C)
    for axes in (left, middle, right):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), handletextpad=0.4)
    return figure


def _draw_by_C(axes: Axes, rows: pd.DataFrame, labels: Sequence[str], C: float) -> None:
    """Draw the correlations with L1 by C."""
    lines = {
        "profile, with another seed of l1": ("same", L1),
        f"the same for l1: {CEILING}": (TOP + "same", L1),
        "image, with l1's image": ("image correlation", L1),
    }
    for (name, (quantity, against)), style in zip(lines.items(), ("s-", ":", "o-"), strict=True):
        values = [values_by_feature(rows, quantity, label, against) for label in labels]
        means, lows, highs = np.array([interval(v) if len(v) else (np.nan,) * 3 for v in values]).T
        shade = "black" if style == ":" else colour(len(quantity) % 2)
        axes.plot(range(len(labels)), means, style, color=shade, markersize=4, label=name)
        if style == ":":
            axes.fill_between(range(len(labels)), lows, highs, color=shade, alpha=0.12, linewidth=0)
        else:
            reach = [means - lows, highs - means]
            axes.errorbar(range(len(labels)), means, reach, fmt="none", ecolor=shade, capsize=2, linewidth=1)
    floor = values_by_feature(rows, "image correlation", L1, "l1, another seed")
    if len(floor):
        mean, low, high = interval(floor)
        axes.axhline(mean, color=FAINT, linestyle="--", linewidth=1, label="l1's images, two seeds")
        axes.axhspan(low, high, color=FAINT, alpha=0.15, linewidth=0)
    words = [f"C = {C:g}" if la == L2 else C_text(la, C) for la in labels]
    axes.set_xticks(range(len(labels)), words, fontsize=8)
    axes.set_ylabel("correlation (raw), 95 % interval", fontsize=8)
    axes.set_ylim(top=1.05)


@house_style
def draw_sheet(sets: ImageSets) -> Figure:
    """Draw the same features under each metric, one row for each metric."""
    chosen = [(layer, k) for layer, by_metric in sets.items() for k in range(min(SHOWN, len(by_metric[L1].units)))]
    images, labels, captions = [], [], []
    for metric in METRICS:
        for layer, k in chosen:
            images.append(thumbnail(sets[layer][metric].images[0, k], SIDE).transpose(2, 0, 1) / 255)
            labels.append(sets[layer][metric].units[k])
            captions.append(metric if sets[layer][metric].live[0, k] else "not moved")
    title = f"The same features under {', '.join(METRICS[:-1])} and (bottom) {METRICS[-1]}"
    return contact_sheet(
        Sheet(images=np.stack(images), labels=labels, captions=captions, title=title, columns=len(chosen))
    )


if __name__ == "__main__":
    run_study(STUDY, measure)
