"""Do octaves and blur give clearer images of the same patterns, and a first layer without grids?

    python -m analyses.octaves

Three recipes, all with the gradient divided by its root mean square, so that their steps work on any network: plain
descent (no blur, one size), the low-resolution recipe (blur, sizes that shrink) and octaves (blur, sizes that grow).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analyses.formulas import spectra
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
from analyses.support.study import Context, Outcome, Study, Verdict, run_study
from featmap.optimize.recipe import ARTICLE_LOWRES, ARTICLE_NORMALISED, Octave, Recipe
from featmap.plotting.sheets import contact_sheet
from featmap.plotting.style import encode_webp, house_style, thumbnail

FIRST = {"reference": "conv1", "googlenet": "conv1", "inception_v3": "Conv2d_1a_3x3", "resnet50": "relu"}
"""The first layer with its ReLU; of other networks, the first that there is."""
STEPS = 45
PLAIN, LOWRES, OCTAVES = "plain descent", "low resolution", "octaves"
PAIRS = ((PLAIN, OCTAVES), (LOWRES, OCTAVES), (PLAIN, LOWRES))
LABELS = (PLAIN, LOWRES, OCTAVES)
AGAIN = ((PLAIN, PLAIN), (OCTAVES, OCTAVES))
SHOWN, SIDE = 3, 96

STUDY = Study(
    "octaves",
    section="Feature Visualization from First Principles",
    claim="Octaves with blur give clearer images than plain descent, of qualitatively the same patterns; without "
    "octaves a minority of the first layer's features show a fine grid like a CRT's (this in section "
    '"Mapping InceptionV3 Features").',
    measured="high-frequency power (above half the Nyquist frequency), activation reached and agreement of response "
    "profiles of the same features under three recipes, all with the gradient divided by its RMS, and the share of "
    "first-layer features with a regular grid in the spectrum (spectra of the images as shown, clipped to [0, 1])",
    rule="octaves are clearer if the high-frequency share of plain descent less theirs (paired) lies above 0; the "
    "patterns are the same if the agreement of plain descent and octaves lies above 0 and its mean is at least half of "
    "that of two seeds of plain descent; grids are a minority's if the share of first-layer features that show one by "
    "plain descent is below a half and that with octaves lower still; the claim holds if all three are so, in part if "
    "one is",
    full="the article's sizes and steps: 299 pixels and 300 steps plain, 299 to 224 and 100 steps at low resolution, "
    "299 to 380 and 300 steps with octaves",
)


def make_recipes(size: int | None, steps: int | None) -> dict[str, Recipe]:
    """Return the three recipes for a finished image of `size` pixels in `steps` steps; None: the article's own."""
    rates = [(o.rate[0] / 10, o.rate[1] / 10) for o in ARTICLE_LOWRES.octaves]
    octaves = [replace(o, rate=r) for o, r in zip(ARTICLE_LOWRES.octaves, rates, strict=True)]
    lowres = replace(ARTICLE_NORMALISED, name="lowres-normalised", octaves=tuple(octaves))
    ends = (ARTICLE_NORMALISED.octaves[0].rate[0], ARTICLE_NORMALISED.octaves[-1].rate[1])
    plain = replace(ARTICLE_NORMALISED, name="plain-normalised", octaves=(Octave(300, ends, (0.0, 0.0), 299),))
    chosen = {PLAIN: plain, LOWRES: lowres, OCTAVES: ARTICLE_NORMALISED}
    return {name: recipe.resolved(299, size, steps) for name, recipe in chosen.items()}


ImageSets = dict[str, dict[str, ImageSet]]
"""Layer -> recipe -> its images."""


def first_layer_name(context: Context) -> str:
    """Return the name of the network's first layer."""
    return FIRST.get(context.network.name) or next(iter(context.network.trace().layers))


def measure(context: Context, size: int | None = None, steps: int = STEPS) -> Outcome:
    """Make every feature's images under the three recipes and compare them."""
    chosen = make_recipes(None, None) if context.full else make_recipes(size or image_size(context), steps)
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
    found = _collect_findings(late) | {f"grid {label}": _grid_share(rows, first, label) for label in chosen}
    verdict, conclusion = judge(found)
    figures: dict[str, Figure | bytes] = {
        "": draw_figure(late, found),
        "-images.webp": encode_webp(draw_sheet(sets), dpi=100),
    }
    return Outcome(rows, list(found.values()), verdict, conclusion, figures)


def _spectral_rows(sets: ImageSets) -> list[pd.DataFrame]:
    rows = []
    for layer, by_recipe in sets.items():
        for label, made in by_recipe.items():
            for name, function in (
                ("high share", spectra.high_frequency_share),
                ("mean frequency", spectra.mean_frequency),
            ):
                values = np.stack([function(images) for images in made.clipped])
                rows.append(tidy_rows(name, layer, made, values, label))
            rows.append(tidy_rows("activation", layer, made, made.activation, label))
    return rows


def _recipe_agreement_rows(sets: ImageSets) -> list[pd.DataFrame]:
    return [
        agreement_rows(layer, by_recipe[one], by_recipe[two], one, two)
        for layer, by_recipe in sets.items()
        for one, two in (*PAIRS, *AGAIN)
    ]


def _grid_rows(layer: str, by_recipe: dict[str, ImageSet]) -> list[pd.DataFrame]:
    rows = []
    for label, made in by_recipe.items():
        found = [[spectra.find_grid(image) for image in images] for images in made.clipped]
        values = {
            "grid": [[float(g.is_grid) if np.isfinite(g.prominence) else np.nan for g in row] for row in found],
            "grid contrast": [[g.contrast for g in row] for row in found],
            "grid prominence": [[g.prominence for g in row] for row in found],
            "grid period": [[float(g.period or np.nan) if g.is_grid else np.nan for g in row] for row in found],
        }
        rows += [tidy_rows(name, layer, made, np.array(table), label) for name, table in values.items()]
    return rows


def _grid_share(rows: pd.DataFrame, layer: str, label: str) -> Finding:
    """Return the share of the first layer's live features that show a grid with most of their seeds."""
    shown = values_by_feature(rows[rows["layer"] == layer], "grid", label)
    return share_or_undefined(
        f"grid {label}", shown > 0.5, f"share of {layer}'s features with a grid in the spectrum, {label}"
    )


def _collect_findings(rows: pd.DataFrame) -> dict[str, Finding]:
    high = {label: values_by_feature(rows, "high share", label) for label in LABELS}
    reached = {label: values_by_feature(rows, "activation", label) for label in LABELS}
    less = high[PLAIN] - high[OCTAVES]
    found = [
        *(
            mean_or_undefined(f"high {la}", high[la], f"high-frequency share of the power, {la}", "", SHARE)
            for la in LABELS
        ),
        mean_or_undefined("less", less, f"high-frequency share, {PLAIN} less octaves (paired)"),
        mean_or_undefined(
            "less low", high[LOWRES] - high[OCTAVES], f"high-frequency share, {LOWRES} less octaves (paired)"
        ),
        *(
            ratio_finding(
                f"ratio {la}", reached[la] / reached[PLAIN], f"activation, {la} over {PLAIN} (geometric mean)"
            )
            for la in (LOWRES, OCTAVES)
        ),
    ]
    for one, two in (*PAIRS, *AGAIN):
        words = f"{one} and {two}" if one != two else f"{one}, two seeds of it"
        found.append(
            mean_or_undefined(f"{one}, {two}", excess_agreement(rows, one, two), f"agreement beyond chance, {words}")
        )
        floor = values_by_feature(rows, "different", one, two)
        found.append(mean_or_undefined(f"floor {one}, {two}", floor, f"agreement of different features, {words}"))
    return {finding.name: finding for finding in found}


def judge(found: dict[str, Finding]) -> tuple[Verdict, str]:
    """Return verdict and conclusion, by the rule of the study; parts that are undefined are not so."""
    less, across, again = found["less"], found[f"{PLAIN}, {OCTAVES}"], found[f"{PLAIN}, {PLAIN}"]
    plain, octaves = found[f"grid {PLAIN}"].value, found[f"grid {OCTAVES}"].value
    held = [
        (less.low or 0) > 0,
        None not in (across.value, again.value) and (across.low or 0) > 0 and across.value >= again.value / 2,
        plain is not None and octaves is not None and octaves < plain < 0.5,
    ]
    verdict: Verdict = "holds" if all(held) else "holds in part" if any(held) else "does not hold"
    clearer, same, minority = (CLAIM_WORDS[bool(part)] for part in held)
    return verdict, (
        f"That octaves are clearer {clearer}: they leave {format_value(found[f'high {OCTAVES}'].value, '.3f')} of the power "
        f"at high frequencies, plain descent {format_value(found[f'high {PLAIN}'].value, '.3f')}. That the patterns are the "
        f"same {same}: images of a feature by both agree {format_value(across.value)} beyond different features' (two seeds "
        f"of plain descent: {format_value(again.value)}). That a minority of the first layer's features shows a grid "
        f"without octaves, and fewer with them, {minority}: {format_interval(found[f'grid {PLAIN}'], '.0%')} do by plain "
        f"descent, {format_value(octaves, '.0%')} with octaves{low_resolution_phrase(found)}."
    )


def low_resolution_phrase(found: dict[str, Finding]) -> str:
    """Return what the low-resolution recipe, which has blur and no octaves that grow, leaves; and what that says."""
    less, grid, octaves = found["less low"], found[f"grid {LOWRES}"], found[f"grid {OCTAVES}"]
    fewer = None not in (grid.value, octaves.value, less.high) and less.high < 0 and grid.value <= octaves.value  # type: ignore[operator]
    return (
        f"; the low-resolution recipe, with blur and without octaves, leaves "
        f"{format_value(found[f'high {LOWRES}'].value, '.3f')} of the power there and grids in {format_value(grid.value, '.0%')}"
        + (", less than octaves do: it is blur that clears, not octaves alone" if fewer else "")
    )


@house_style
def draw_figure(rows: pd.DataFrame, found: dict[str, Finding]) -> Figure:
    """Draw high-frequency shares, agreements with their floor and ceiling, and the shares of grids."""
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
    draw_bars(right, {label: found[f"grid {label}"] for label in LABELS}, "share of features with a grid")
    right.set_ylim(0, 1)
    return figure


@house_style
def draw_sheet(sets: ImageSets) -> Figure:
    """Draw the same features by each recipe, a row a recipe."""
    images, labels, captions = [], [], []
    chosen = [(layer, k) for layer, made in sets.items() for k in range(min(SHOWN, len(made[PLAIN].units)))]
    for label in LABELS:
        for layer, k in chosen:
            made = sets[layer][label]
            images.append(thumbnail(made.images[0, k], SIDE).transpose(2, 0, 1) / 255)
            labels.append(made.units[k])
            captions.append(label if made.live[0, k] else "no gradient")
    return contact_sheet(
        np.stack(images),
        labels,
        captions=captions,
        groups=None,
        title="The same features by plain descent (top), at low resolution, and with octaves (bottom)",
        columns=len(chosen),
    )


if __name__ == "__main__":
    run_study(STUDY, measure)
