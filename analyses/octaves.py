"""Compare images by plain descent, at low resolution and with octaves.

High frequencies, patterns, and grids in the first layer are compared.

    python -m analyses.octaves

The three recipes divide the gradient by its root mean square, so that their steps work on any network: plain descent
(no blur, one size), the low-resolution recipe (blur, shrinking sizes) and octaves (blur, growing sizes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analyses.formulas import spectra
from analyses.support.decisions import exceeds
from analyses.support.findings import (
    CLAIM_WORDS,
    SHARE,
    Finding,
    format_interval,
    format_value,
    mean_or_undefined,
    ratio_finding,
    share_or_undefined,
)
from analyses.support.image_sets import (
    ImageSet,
    agreement_rows,
    excess_agreement,
    image_size,
    make_images,
    tidy_rows,
    values_by_feature,
)
from analyses.support.plotting import draw_bars, draw_strips, panels
from analyses.support.study import FIRST as FIRST_FEATURES
from analyses.support.study import Context, Outcome, StoredResult, Study, Verdict
from analyses.support.study_command import run_study
from analyses.support.units import named_rows
from analyses.support.wording import plural
from featmap.optimize.recipe import ARTICLE_LOWRES, ARTICLE_NORMALISED, Octave, Recipe
from featmap.plotting.sheets import Sheet, contact_sheet
from featmap.plotting.style import encode_webp, house_style, thumbnail

FIRST = {
    "reference": "conv1",
    "googlenet": "conv1",
    "squeezenet": "features.1",
    "inception_v3": "Conv2d_1a_3x3",
    "resnet50": "relu",
}
"""First layer, with its ReLU; for other networks, the first layer of their trace."""
STEPS = 45
PLAIN, LOWRES, OCTAVES = "plain descent", "low resolution", "octaves"
PAIRS = ((PLAIN, OCTAVES), (LOWRES, OCTAVES), (PLAIN, LOWRES))
LABELS = (PLAIN, LOWRES, OCTAVES)
AGAIN = ((PLAIN, PLAIN), (OCTAVES, OCTAVES))
SHOWN, SIDE = 3, 96

STUDY = Study(
    "octaves",
    section="Feature Visualization from First Principles",
    claim="Octaves with blur give images that are of higher resolution and generally clearer than with down-sampling "
    "alone, and of qualitatively the same patterns as plain descent's; without octaves a minority of the first layer's "
    'features show a fine grid like that of a CRT (in section "Mapping InceptionV3 Features").',
    measured="high-frequency power (above half the Nyquist frequency), activation reached and agreement of response "
    "profiles of the same features under three recipes, all with the gradient divided by its RMS, and the share of "
    "first-layer features with a regular grid in the spectrum (spectra of the images as shown, clipped to [0, 1])",
    rule="three parts are measured. Octaves give a higher resolution than down-sampling alone (the low-resolution "
    "recipe) if they keep more high frequencies, that is if the interval of the octaves' high-frequency share minus "
    "that recipe's (paired by feature) is above 0; this part does not hold if the interval is below 0, and is not "
    "decided if it spans 0. (The low-resolution recipe ends with the wider blur, which alone leaves fewer.) High "
    "frequencies are detail or noise, which this share cannot tell apart, so whether images are clearer is not "
    "decided. The patterns are those of plain descent if the interval of the agreement of plain descent and octaves is "
    "above 0 and its mean is at least half of that of two seeds of plain descent, whatever activation is reached; they "
    "are not if that mean is below the half, and this is not decided if the interval is not above 0. "
    '"Without octaves" is read as plain descent: a minority shows grids if the share of first-layer features with a '
    "grid in most seeds is below a half for plain descent, and lower with octaves (not decided where it is lower with "
    "octaves and the interval of the first share spans a half). An undefined part, as the agreement of one seed, is "
    "not decided. The claim holds if all three measured parts hold, and in part if one or two do; "
    "otherwise it is not decided where a part is not decided, and does not hold where none is",
    units={"inception_v3": (FIRST_FEATURES,)},
    full="the article's sizes and steps: 299 pixels and 300 steps plain, 299 to 224 and 100 steps at low resolution, "
    "299 to 380 and 300 steps with octaves",
)


def make_recipes(size: int | None, steps: int | None) -> dict[str, Recipe]:
    """Build the three recipes for a finished image of `size` pixels in `steps` steps.

    None: the article's own.
    """
    rates = [(o.rate[0] / 10, o.rate[1] / 10) for o in ARTICLE_LOWRES.octaves]
    octaves = [replace(o, rate=r) for o, r in zip(ARTICLE_LOWRES.octaves, rates, strict=True)]
    lowres = replace(ARTICLE_NORMALISED, name="lowres-normalised", octaves=tuple(octaves))
    ends = (ARTICLE_NORMALISED.octaves[0].rate[0], ARTICLE_NORMALISED.octaves[-1].rate[1])
    plain = replace(ARTICLE_NORMALISED, name="plain-normalised", octaves=(Octave(300, ends, (0.0, 0.0), 299),))
    chosen = {PLAIN: plain, LOWRES: lowres, OCTAVES: ARTICLE_NORMALISED}
    return {name: recipe.resolved(299, size, steps) for name, recipe in chosen.items()}


ImageSets = dict[str, dict[str, ImageSet]]
"""Images by layer and recipe."""


def first_layer_name(context: Context) -> str:
    """Find the network's first layer."""
    return FIRST.get(context.model) or next(iter(context.network.trace().layers))


def measure(context: Context, size: int | None = None, steps: int = STEPS) -> Outcome:
    """Maximise features under the three recipes and compare the images."""
    chosen = make_recipes(context.size, None) if context.full else make_recipes(size or image_size(context), steps)
    chosen = {label: replace(recipe, **context.changes) for label, recipe in chosen.items()}
    first = first_layer_name(context)
    sets: ImageSets = {}
    for layer in dict.fromkeys((*context.layers, first)):
        units = context.draw_units(layer, 2 * context.features if layer == first else None)
        context.log(f"{layer}: {len(units)} features, {len(chosen)} recipes, {context.seeds} seeds")
        probe = layer if layer in context.layers else None
        sets[layer] = {
            label: make_images(context, units, recipe, layer, recipe.name, probe=probe)
            for label, recipe in chosen.items()
        }
    probed = {layer: sets[layer] for layer in context.layers}
    rows = pd.concat(
        [*_spectral_rows(sets), *_recipe_agreement_rows(probed), *_grid_rows(first, sets[first])], ignore_index=True
    )
    late = rows[rows["layer"].isin(context.layers)]
    findings = _collect_findings(late) | {f"grid {label}": _grid_share(rows, first, label) for label in chosen}
    named = [("high share", label, "", f"high-frequency share of the power, {label}", "") for label in LABELS]
    named.append(("same", PLAIN, OCTAVES, f"correlation of profiles, {PLAIN} and octaves", ""))
    findings |= {f.name: f for f in named_rows(context, rows, named)}
    verdict, conclusion = judge(findings, rows, context.layers)
    figures: dict[str, Figure | bytes] = {
        "": draw_figure(late, findings),
        "-images.webp": encode_webp(draw_sheet(sets), dpi=100),
    }
    return Outcome(rows, list(findings.values()), verdict, conclusion, figures)


def _spectral_rows(sets: ImageSets) -> list[pd.DataFrame]:
    """Measure high frequencies and activation."""
    rows = []
    for layer, by_recipe in sets.items():
        for label, image_set in by_recipe.items():
            for name, function in (
                ("high share", spectra.high_frequency_share),
                ("mean frequency", spectra.mean_frequency),
            ):
                values = np.stack([function(images) for images in image_set.clipped])
                rows.append(tidy_rows(name, layer, image_set, values, label))
            rows.append(tidy_rows("activation", layer, image_set, image_set.activation, label))
    return rows


def _recipe_agreement_rows(sets: ImageSets) -> list[pd.DataFrame]:
    """Measure the agreement of every two recipes, and of two seeds."""
    return [
        agreement_rows(layer, by_recipe[one], by_recipe[two], one, two)
        for layer, by_recipe in sets.items()
        for one, two in (*PAIRS, *AGAIN)
    ]


def _grid_rows(layer: str, by_recipe: dict[str, ImageSet]) -> list[pd.DataFrame]:
    """Find the grids of a layer's images."""
    rows = []
    for label, image_set in by_recipe.items():
        grids = [[spectra.find_grid(image) for image in images] for images in image_set.clipped]
        values = {
            "grid": [[float(g.is_grid) if np.isfinite(g.prominence) else np.nan for g in row] for row in grids],
            "grid contrast": [[g.contrast for g in row] for row in grids],
            "grid prominence": [[g.prominence for g in row] for row in grids],
            "grid period": [[float(g.period or np.nan) if g.is_grid else np.nan for g in row] for row in grids],
        }
        rows += [tidy_rows(name, layer, image_set, np.array(table), label) for name, table in values.items()]
    return rows


def _grid_share(rows: pd.DataFrame, layer: str, label: str) -> Finding:
    """Compute the share of the first layer's live features with a grid in most seeds."""
    shown = values_by_feature(rows[rows["layer"] == layer], "grid", label)
    return share_or_undefined(
        f"grid {label}", shown > 0.5, f"share of {layer}'s features with a grid in the spectrum, {label}"
    )


def _collect_findings(rows: pd.DataFrame) -> dict[str, Finding]:
    """Collect the findings by name."""
    high = {label: values_by_feature(rows, "high share", label) for label in LABELS}
    reached = {label: values_by_feature(rows, "activation", label) for label in LABELS}
    difference = high[PLAIN] - high[OCTAVES]
    findings = [
        *(
            mean_or_undefined(f"high {la}", high[la], f"high-frequency share of the power, {la}", "", SHARE)
            for la in LABELS
        ),
        mean_or_undefined("less", difference, f"high-frequency share, {PLAIN} minus octaves (paired)"),
        mean_or_undefined(
            "less low", high[LOWRES] - high[OCTAVES], f"high-frequency share, {LOWRES} minus octaves (paired)"
        ),
        *(
            ratio_finding(
                f"ratio {la}", reached[la] / reached[PLAIN], f"activation, {la} divided by {PLAIN} (geometric mean)"
            )
            for la in (LOWRES, OCTAVES)
        ),
    ]
    for one, two in (*PAIRS, *AGAIN):
        words = f"{one} and {two}" if one != two else f"two seeds of {one}"
        findings.append(
            mean_or_undefined(f"{one}, {two}", excess_agreement(rows, one, two), f"agreement beyond chance, {words}")
        )
        floor = values_by_feature(rows, "different", one, two)
        findings.append(mean_or_undefined(f"floor {one}, {two}", floor, f"agreement of different features, {words}"))
    return {finding.name: finding for finding in findings}


def judge_parts(findings: dict[str, Finding]) -> dict[str, bool | None]:
    """Judge the measured parts of the claim by the rule of the study.

    None where a part is not decided: where it is undefined, or an interval spans its limit.
    """
    across, again = findings[f"{PLAIN}, {OCTAVES}"], findings[f"{PLAIN}, {PLAIN}"]
    return {
        "finer": exceeds(more_than_lowres(findings), 0),
        "same": same_patterns(across, again),
        "grids": minority_with_grids(findings[f"grid {PLAIN}"], findings[f"grid {OCTAVES}"]),
    }


def same_patterns(across: Finding, again: Finding) -> bool | None:
    """Check whether plain descent and octaves agree at least half as much as two seeds do; None if undecided."""
    if across.value is None or across.low is None or again.value is None:
        return None
    if across.value < again.value / 2:
        return False
    return True if exceeds(across, 0) else None


def more_than_lowres(findings: dict[str, Finding]) -> Finding:
    """Look up the high-frequency share of octaves minus that at low resolution."""
    less = findings["less low"]
    value, low, high = (None if v is None else -v for v in (less.value, less.high, less.low))
    return Finding("more", value, low, high, less.count, f"high-frequency share, {OCTAVES} minus {LOWRES} (paired)")


def combine(parts: dict[str, bool | None]) -> Verdict:
    """Combine the measured parts into a verdict."""
    held = list(parts.values())
    if any(held):
        return "holds" if all(held) else "holds in part"
    return "not decided" if None in held else "does not hold"


def judge(findings: dict[str, Finding], rows: pd.DataFrame, layers: Sequence[str]) -> tuple[Verdict, str]:
    """Judge the claim, and write the conclusion.

    `layers`: those whose response profiles were compared, without the first one.
    """
    parts = judge_parts(findings)
    finer, same, minority = (CLAIM_WORDS[parts[part]] for part in ("finer", "same", "grids"))
    high = [format_value(findings[f"high {recipe}"].value, ".3f") for recipe in (OCTAVES, LOWRES, PLAIN)]
    more, across, again = more_than_lowres(findings), findings[f"{PLAIN}, {OCTAVES}"], findings[f"{PLAIN}, {PLAIN}"]
    features, seeds = plural(more.count, "feature"), plural(rows["seed"].nunique(), "seed")
    profiles = (
        f"response profiles of a feature's two images agree by {format_value(across.value)} more than those of "
        f"different features (n = {across.count}){ceiling_share(across, again)}"
    )
    reached = [format_share(findings[f"ratio {recipe}"]) for recipe in (OCTAVES, LOWRES)]
    grids = [findings[f"grid {recipe}"] for recipe in (PLAIN, OCTAVES, LOWRES)]
    shares = [format_interval(grids[0], ".0%"), *(format_value(grid.value, ".0%") for grid in grids[1:])]
    return combine(parts), (
        f"That octaves give a higher resolution than down-sampling alone {finer}: they leave {high[0]} of the power at "
        f"high frequencies and the low-resolution recipe {high[1]}, a difference of {format_interval(more, '.3f')} "
        f"(paired; n = {features} of {' and '.join(layers)}, {seeds} each). Whether "
        "their images are also clearer is not decided: this share cannot tell detail from noise, and the noisy images "
        f"of plain descent, which has no blur, have {high[2]}. "
        f"That the patterns are those of plain descent {same}: {profiles}. Similar patterns do not mean similar "
        f"activation: octaves reach {reached[0]} of plain descent's activation, and the low-resolution recipe "
        f"{reached[1]} (geometric means, n = {findings[f'ratio {OCTAVES}'].count}). "
        f"That a minority of the first layer's features shows a grid without octaves, and fewer with them, {minority}: "
        f"the share is {shares[0]} with plain descent (n = {plural(grids[0].count, 'feature')}), and {shares[1]} with "
        f'octaves. Here "without octaves" is read as plain descent; with the low-resolution recipe, the other reading, '
        f"it is {shares[2]}.{describe_periods(rows)}"
    )


def ceiling_share(across: Finding, again: Finding) -> str:
    """Express the agreement of two recipes as a share of that of two seeds, or say why it has none."""
    if again.value is None:
        return "; how much two seeds of plain descent agree was not measured"
    ceiling = f"of what two seeds of plain descent reach ({format_value(again.value)})"
    if across.value is None or again.value <= 0:
        return f", an undefined share {ceiling}"
    return f", which is {across.value / again.value:.0%} {ceiling}"


def format_share(finding: Finding) -> str:
    """Format a share with its interval, in percent with two digits where it is small."""

    def percent(value: float | None) -> str:
        return format_value(value, ".0%" if value is None or value >= 0.0995 else ".1%" if value >= 0.00995 else ".2%")

    if finding.low is None or finding.high is None:
        return percent(finding.value)
    return f"{percent(finding.value)} [{percent(finding.low)}, {percent(finding.high)}]"


def describe_periods(rows: pd.DataFrame) -> str:
    """Say at which period the grids of plain descent repeat.

    Empty where there are none.
    """
    periods = rows.loc[(rows["measure"] == "grid period") & (rows["recipe"] == PLAIN), "value"].astype(int)
    if periods.empty:
        return ""
    common, count = int(periods.mode()[0]), int((periods == periods.mode()[0]).sum())
    total = len(periods)
    images = (
        "the one image" if total == 1 else f"all {total} images" if count == total else f"{count} of {total} images"
    )
    return (
        f" In {images} of plain descent with a grid, it repeats every {common} pixels, as a "
        f"convolution with a stride of {common} would leave it."
    )


def minority_with_grids(plain: Finding, octaves: Finding) -> bool | None:
    """Check whether a minority has grids under plain descent, and fewer with octaves.

    A minority is fewer than half of the features. None where a share is undefined, or the interval of the first one
    spans a half.
    """
    if plain.value is None or octaves.value is None:
        return None
    if octaves.value >= plain.value:
        return False
    most = exceeds(plain, 0.5)
    return None if most is None else not most


def restate(stored: StoredResult) -> tuple[Verdict, str]:
    """Write verdict and conclusion from the stored result."""
    return judge(stored.findings, stored.rows, stored.settings["layers"])


@house_style
def draw_figure(rows: pd.DataFrame, findings: dict[str, Finding]) -> Figure:
    """Draw high-frequency shares, agreements with their limits, and shares of grids."""
    figure, (left, middle, right) = panels(
        (
            "Power at high frequencies",
            "Response profiles by two recipes: the same feature (dots), different features (gray)",
            "Grids in the first layer",
        ),
        widths=(1.1, 1.6, 0.9),
    )
    draw_strips(
        left,
        [(label, values_by_feature(rows, "high share", label)) for label in LABELS],
        "share above half of Nyquist",
        within=SHARE,
    )
    left.set_ylim(bottom=0)
    pairs = (*PAIRS, *AGAIN)
    names = [f"{a}, {b}" if a != b else f"{a}, other seeds" for a, b in pairs]
    groups = [(name, values_by_feature(rows, "same", a, b)) for name, (a, b) in zip(names, pairs, strict=True)]
    draw_strips(middle, groups, "correlation")
    for at, (a, b) in enumerate(pairs):
        floor = values_by_feature(rows, "different", a, b)
        if len(floor):
            middle.plot([at - 0.3, at + 0.3], [floor.mean()] * 2, color="#888888", linewidth=2.5)
    draw_bars(right, {label: findings[f"grid {label}"] for label in LABELS}, "share of features with a grid")
    right.set_ylim(0, 1)
    return figure


@house_style
def draw_sheet(sets: ImageSets) -> Figure:
    """Draw the same features by each recipe, one row for each recipe."""
    images, labels, captions = [], [], []
    chosen = [(layer, k) for layer, image_set in sets.items() for k in range(min(SHOWN, len(image_set[PLAIN].units)))]
    for label in LABELS:
        for layer, k in chosen:
            image_set = sets[layer][label]
            images.append(thumbnail(image_set.images[0, k], SIDE).transpose(2, 0, 1) / 255)
            labels.append(image_set.units[k])
            captions.append(label if image_set.live[0, k] else "no gradient")
    return contact_sheet(
        Sheet(
            images=np.stack(images),
            labels=labels,
            captions=captions,
            title="The same features by plain descent (top), at low resolution, and with octaves (bottom)",
            columns=len(chosen),
        )
    )


if __name__ == "__main__":
    run_study(STUDY, measure)
