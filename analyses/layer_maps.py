"""Measure how the images of features change from the first layer to the last.

Objects cannot be recognised, but it can be measured how much of an image a single flat colour explains, and of how
many waves it consists. A recipe that clamps pixels draws strong colours to the corners of the colour cube, so that it
is not the clusters of colours that matter but the corners where they lie.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

import featmap
from analyses.formulas import coherence, palettes, spectra
from analyses.formulas.layer_colours import LayerColours
from analyses.support.findings import (
    Finding,
    interval,
    share_finding,
    value_finding,
)
from analyses.support.layer_verdict import (
    FLAT,
    LEFT,
    SHORT,
    Count,
    Trends,
    conclude,
    count_dead,
    layer_flatness,
)
from analyses.support.palette_summary import PaletteSummary
from analyses.support.settings import changed_recipe
from analyses.support.study import Context, Outcome, StoredResult, Study, Verdict
from analyses.support.study_command import run_study
from featmap.optimize.recipe import Recipe
from featmap.plotting import sheets, style
from featmap.report import encode
from featmap.runs import folder_layout
from featmap.stats import reliability

SHOWN, FULL_SHOWN, COLOURS = 8, 16, 64
BESIDE = 0.065
"""Distance of a hue's name from its corner of the opponent plane."""
GOOGLENET = (
    *("conv1", "conv2", "conv3", "inception3a", "inception3b"),
    *("inception4a", "inception4b", "inception4c", "inception4d", "inception4e", "inception5a", "inception5b"),
)
INCEPTION = (
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3"),
    *("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    *("Mixed_7a", "Mixed_7b", "Mixed_7c"),
)
SQUEEZENET = ("features.1", *(f"features.{k}" for k in (3, 4, 6, 7, 9, 10, 11, 12)))
RESNET = ("relu", "layer1.0", "layer1.2", "layer2.0", "layer2.3", "layer3.0", "layer3.5", "layer4.0", "layer4.2")

STUDY = Study(
    "layer_maps",
    section="Mapping InceptionV3 Features",
    claim="From the first layer to the last, images go from colours (in InceptionV3's first layer a palette like CMYK "
    "with green for yellow) through patterns to objects; a gray square is a feature without a gradient. ResNet's "
    'images do the same (section "Mapping ResNet Features").',
    measured="the images of the first features of main layers: the share of the deviation from gray that one colour "
    "explains (flatness), the number of waves that make up the image, its mean spatial frequency and its bytes as PNG, "
    "each as a rank correlation with depth (interval: bootstrap of the layers, and of the features in each, for "
    f"{reliability.LEAST_PLACES} or more layers); flatness and clusters of the dominant colours of up to {COLOURS} "
    "features of the first layer, in the opponent plane of OKLab and compared with one Gaussian cloud; features "
    "without a gradient, without the recipe's rescue and, if it has one, with it. Objects are not measured",
    rule="three parts are measured. The first layer's images are colours if the interval of their mean flatness is "
    f"above {FLAT:g} (not if it is below; not decided if it spans that). Patterns follow if flatness falls and the "
    "number of waves rises with depth, both intervals beyond 0 (not if one of them is beyond 0 on the wrong side; "
    "otherwise not decided, also with too few layers). The palette is like CMYK if its clusters have p < 0.05 and are "
    "cyan, magenta and green or yellow without red and blue. The claim holds in part if one of these parts holds, and "
    "never more than in part, since objects are not measured; it does not hold if none does. Parts that cannot be "
    "judged do not count, but the claim is not decided where the change with depth is not. That features without a "
    "gradient keep the null image is so by construction, and is no part of the verdict",
    takes_units=False,
    features=SHOWN,
    full_features=FULL_SHOWN,
    full=f"the first {FULL_SHOWN} features, 299 to 380 pixels and 300 steps (the recipe `article-normalised`)",
    layers={
        "reference": GOOGLENET,
        "googlenet": GOOGLENET,
        "squeezenet": SQUEEZENET,
        "inception_v3": INCEPTION,
        "resnet50": RESNET,
    },
)
MEASURES = {
    "flatness": "flatness of an image (1: a single colour, 0: a pattern around gray)",
    "waves": "waves that make up an image (effective number)",
    "frequency": "mean spatial frequency (cycles per pixel; a flat colour counts as 0)",
    "bytes": "bytes per pixel as PNG",
}
LIMITS = {"flatness": (0.0, 1.0), "waves": (1.0, np.inf), "frequency": (0.0, np.inf), "bytes": (0.0, np.inf)}
"""Range of possible values of each measure, at which intervals are cut."""
LOGGED = ("waves", "bytes")
"""Measures averaged as logarithms: a few images have many times the waves of the others."""
HUED = "share of first-layer features whose dominant colour is not gray"


def recipe_name(full: bool) -> str:
    """Choose the recipe of the images."""
    return "article-normalised" if full else "pixels"


def recipe_rescue(full: bool, given: float | None) -> float:
    """Look up the share of the steps with a rescue; `given`: by the command line."""
    return Recipe.named(recipe_name(full)).rescue if given is None else given


def maximise_features(context: Context, units: list[str], part: str, seeds: int, **changes: float) -> xr.Dataset:
    """Maximise units."""
    recipe = recipe_name(context.full)
    changes = context.sized_changes | changes
    context.note_recipe(changed_recipe(recipe, **changes))
    return featmap.maximise(
        units,
        context.network,
        recipe=changed_recipe(recipe, **changes),
        seeds=seeds,
        execution=featmap.Execution(
            context.device,
            out=context.folder(part, units=units, recipe=recipe, seeds=seeds, **changes),
            watcher=context.watcher,
        ),
    )


def first_features(context: Context) -> list[str]:
    """List the first features of every layer as units."""
    count, size = context.features, context.network.input_size
    return [f"{la}:{c}" for la in context.layers for c in range(min(count, context.network.layer(la, size).channels))]


def image_rows(data: xr.Dataset, part: str) -> pd.DataFrame:
    """Arrange images as rows with their status, their start and `MEASURES`."""
    frames = []
    names = [str(n) for n in data["image"].values]
    for s, seed in enumerate(data["seed"].values):
        images = np.asarray(data["images"][s].values)
        clipped = images.clip(0, 1)
        about = {
            "part": part,
            "layer": [n.rpartition(":")[0] for n in names],
            "feature": names,
            "seed": int(seed),
            "status": folder_layout.status_names(data["status"][s].values),
            "start": folder_layout.starts(data["status"][s].values),
        }
        frames.append(pd.DataFrame(about | image_statistics(clipped)))
    return pd.concat(frames, ignore_index=True)


def image_statistics(images: np.ndarray) -> dict[str, np.ndarray]:
    """Compute `MEASURES` and the dominant colour of images `N x 3 x H x W` in [0, 1]."""
    flat = palettes.flatness(images)
    pattern = spectra.mean_frequency(images)
    pattern[np.isnan(pattern) & np.isfinite(flat)] = 0  # a flat colour has no pattern
    measures = {
        "flatness": flat,
        "waves": coherence.effective_waves(images),
        "frequency": pattern * (1 - flat),
        "bytes": np.array([encode.png_bytes_per_pixel(image) for image in images]),
    }
    colours = np.stack([palettes.dominant_colour(image) for image in images])
    return measures | {f"dominant_{c}": v for c, v in zip("rgb", colours.T, strict=True)}


def dominant_colours(data: xr.Dataset) -> LayerColours:
    """Find the dominant colours of the first layer's live features.

    The pixels of all seeds are taken together.
    """
    status = data["status"].values.max(axis=0)
    live = np.flatnonzero(np.isin(status, folder_layout.LIVE_CODES))
    images = data["images"].values
    rgb = np.array([palettes.dominant_colour(np.concatenate(images[:, k], axis=2)) for k in live]).reshape(-1, 3)
    lab = palettes.oklab(rgb)
    return LayerColours([str(data["image"].values[k]) for k in live], rgb, lab, palettes.fit_palette(lab[:, 1:]))


def feature_means(table: pd.DataFrame, layers: tuple[str, ...]) -> pd.DataFrame:
    """Average the measures of live features over seeds, and add their layer's depth."""
    live = table[table["status"] == "live"]
    means = live.groupby(["layer", "feature"], sort=False)[list(MEASURES)].mean().reset_index()
    means["depth"] = [layers.index(la) for la in means["layer"]]
    return means


def summarise(name: str, values: np.ndarray) -> tuple[float, float, float]:
    """Compute a measure's mean over features and its interval within `LIMITS`.

    The mean of `LOGGED` measures is geometric.
    """
    mean, low, high = np.exp(interval(np.log(values))) if name in LOGGED else interval(values)
    return float(mean), float(max(low, LIMITS[name][0])), float(min(high, LIMITS[name][1]))


def summary_finding(name: str, end: str, layer: str, values: np.ndarray) -> Finding:
    """Wrap the summary of one layer as a finding; undefined where no value is defined."""
    defined = values[np.isfinite(values)]
    words = f"{layer}: {MEASURES[name]}{', geometric mean' if name in LOGGED else ''}"
    mean, low, high = summarise(name, defined) if len(defined) else (np.nan,) * 3
    return value_finding(f"{name}_{end}", mean, len(defined), words, low, high)


def field_sizes(context: Context, size: int) -> list[float]:
    """Look up the side of each layer's receptive field in pixels.

    NaN for the whole image.
    """
    fields = [context.network.layer(la, size).field for la in context.layers]
    return [np.nan if f.whole else float(max(f.size)) for f in fields]


def depth_trends(means: pd.DataFrame) -> Trends:
    """Compute the rank correlation of every measure with depth."""
    return {name: reliability.trend(means[name].to_numpy(), means["depth"].to_numpy()) for name in MEASURES}


def collect_findings(
    context: Context,
    means: pd.DataFrame,
    by_depth: Trends,
    colours: LayerColours,
    before: Count,
    after: Count | None,
    size: int,
) -> list[Finding]:
    """Collect the findings; `after`: the counts with rescue, None without one."""
    palette, n = colours.palette, len(colours.names)
    first, last = (means[means["layer"] == la] for la in (context.layers[0], context.layers[-1]))
    clusters = PaletteSummary.of(colours).describe()
    words = f"clusters of the first layer's dominant colours, with their features ({clusters})"
    rows = [
        value_finding("palette", palette.count if np.isfinite(palette.p) else np.nan, n, words),
        value_finding("palette_silhouette", palette.silhouette, n, "mean silhouette of these clusters"),
        value_finding("palette_p", palette.p, n, "p of that silhouette under one Gaussian cloud"),
        share_finding("hued", int(colours.hued.sum()), n, HUED) if n else value_finding("hued", np.nan, 0, HUED),
        share_finding("dead_before", *before, "share of features without a gradient, without rescue"),
    ]
    if after is not None:
        words = f"share of features without a gradient, with the recipe's rescue; {LEFT}"
        rows.append(share_finding("dead_after", *after, words))
    for name, trend in by_depth.items():
        words = f"rank correlation with depth: {SHORT[name]} ({len(means)} features; n layers)"
        rows.append(value_finding(f"{name}_trend", trend.value, means["depth"].nunique(), words, trend.low, trend.high))
    for name in MEASURES:
        rows += [
            summary_finding(name, end, layer, own[name].to_numpy())
            for end, own, layer in (("first", first, context.layers[0]), ("last", last, context.layers[-1]))
        ]
    sides = np.array(field_sizes(context, size))
    growth = reliability.trend(sides, np.arange(len(sides)), draws=0).value
    words = "rank correlation with depth: receptive field (n layers)"
    rows.append(value_finding("field_trend", growth, len(sides), words))
    for end, k in (("first", 0), ("last", -1)):
        rows.append(value_finding(f"field_{end}", sides[k], 1, f"{context.layers[k]}: receptive field", unit="pixels"))
    return rows


def restate(stored: StoredResult) -> tuple[Verdict, str]:
    """Write verdict and conclusion from the stored result."""
    by_depth = {name: stored.interval(f"{name}_trend") for name in MEASURES}
    clusters = stored.findings["palette"].words.rpartition("(")[2].rstrip(")")
    fit = PaletteSummary.parse(clusters, stored.value("palette_p"))
    full, layers = bool(stored.settings.get("full")), stored.settings["layers"]
    rescue = recipe_rescue(full, stored.settings.get("rescue"))
    return conclude(stored.rows, by_depth, fit, layers, STUDY.layers.get(stored.model, ()), full, rescue)


def draw_sheet(context: Context, data: xr.Dataset) -> Figure:
    """Draw the first features of every layer, one row for each layer."""
    names = [str(n) for n in data["image"].values]
    odd = [s if s != "live" else "" for s in folder_layout.status_names(data["status"][0].values)]
    count = context.features
    sheet = sheets.Sheet(
        images=data["images"][0].values,
        labels=names,
        captions=odd if any(odd) else None,
        title=f"{context.model}: the first {count} features of every main layer",
        columns=count,
    )
    return sheets.contact_sheet(sheet)


@style.house_style
def draw_figure(context: Context, means: pd.DataFrame, colours: LayerColours, size: int) -> Figure:
    """Draw the first layer's colours, and every measure by layer."""
    drawn, layers = Figure(figsize=(10.5, 9), layout="constrained"), context.layers
    grid = drawn.add_gridspec(3, 6, height_ratios=(1.5, 1, 1))
    _draw_plane(drawn.add_subplot(grid[0, :3]), colours)
    places = [(0, slice(3, 6)), *((row, slice(first, first + 3)) for row in (1, 2) for first in (0, 3))]
    axes = [drawn.add_subplot(grid[place]) for place in places]
    axes[0].plot(field_sizes(context, size), "o-", color=style.colour(0), markersize=4)
    axes[0].set_title(f"side of the receptive field, pixels (line: the image's {size})", fontsize=9.5)
    axes[0].set_yscale("log")
    axes[0].axhline(size, color=style.GRAY, linewidth=0.8)
    for ax, (name, words) in zip(axes[1:], MEASURES.items(), strict=True):
        _draw_by_layer(ax, means, name, len(layers))
        ax.set_title(words + (", geometric means" if name in LOGGED else ""), fontsize=9.5)
    for k, ax in enumerate(axes):
        ax.set_xlim(-0.6, len(layers) - 0.4)
        ax.set_xticks(range(len(layers)), layers if k not in (1, 2) else [""] * len(layers), rotation=90)
        ax.tick_params(labelsize=7.5)
        ax.spines[["top", "right"]].set_visible(False)
    return drawn


def _draw_plane(axes: Axes, colours: LayerColours) -> None:
    """Draw the first layer's colours in the opponent plane, framed by cluster."""
    corners = palettes.oklab(np.array(list(palettes.HUES.values())))
    for name, (_, a, b) in zip(palettes.HUES, corners, strict=True):
        out = BESIDE / np.hypot(a, b)  # markers lie on the corner itself
        axes.text(a * (1 + out), b * (1 + out), name, ha="center", va="center", fontsize=8, color=style.FAINT)
    axes.add_patch(Circle((0, 0), palettes.GRAY_CHROMA, fill=False, edgecolor=style.GRAY, linewidth=0.8))
    for k in range(colours.palette.count):
        own = colours.palette.labels == k
        label = f"{colours.hues()[k]}: {int(own.sum())}" if own.any() else None
        axes.scatter(
            colours.lab[own, 1],
            colours.lab[own, 2],
            c=colours.rgb[own],
            edgecolors=[style.colour(k)],
            linewidths=1.6,
            s=52,
            label=label,
        )
    axes.set(xlim=(-0.42, 0.42), ylim=(-0.42, 0.42), aspect="equal")
    axes.set_xlabel("OKLab a: green to red", fontsize=9)
    axes.set_ylabel("OKLab b: blue to yellow", fontsize=9)
    p = colours.palette.p
    axes.set_title(
        f"first layer: dominant colours of {len(colours.names)} features,\nframed by cluster"
        + (f" (p = {p:.2g} against one cloud)" if np.isfinite(p) else ""),
        fontsize=9.5,
    )
    if colours.names:
        axes.legend(fontsize=8, title="cluster: features", title_fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    axes.tick_params(labelsize=8)


def _draw_by_layer(axes: Axes, means: pd.DataFrame, name: str, layers: int) -> None:
    """Draw one measure of every feature, by layer, with its mean and interval."""
    axes.plot(means["depth"], means[name], "o", color=style.colour(0), alpha=0.35, markersize=3.5, mew=0)
    if name == "waves":
        axes.set_yscale("log")
    for k in range(layers):
        values = means[means["depth"] == k][name].to_numpy()
        if np.isfinite(values).any():
            mean, low, high = summarise(name, values[np.isfinite(values)])
            axes.errorbar(k, mean, [[mean - low], [high - mean]], fmt="_", color="black", capsize=2, linewidth=1)


def measure(context: Context) -> Outcome:
    """Map every main layer, and measure how its images change with depth."""
    units = first_features(context)
    data = maximise_features(context, units, "maps", context.seeds)
    context.count_images(data)
    plain = maximise_features(context, units, "without-rescue", 1, rescue=0.0)
    size = int(data.sizes["y"])
    first = context.layers[0]
    channels = min(COLOURS, context.network.layer(first, size).channels)
    palette_data = maximise_features(context, [f"{first}:{c}" for c in range(channels)], "first-layer", context.seeds)
    table, without_rescue = image_rows(data, "maps"), image_rows(plain, "without rescue")
    rows = pd.concat([table, without_rescue, image_rows(palette_data, "first layer")], ignore_index=True)
    means, colours = feature_means(table, context.layers), dominant_colours(palette_data)
    rescue = recipe_rescue(context.full, context.rescue)
    before, same = count_dead(without_rescue), table[table["seed"] == int(plain["seed"].values[0])]
    after = count_dead(same) if rescue else None
    by_depth = depth_trends(means)
    findings = collect_findings(context, means, by_depth, colours, before, after, size)
    fit = PaletteSummary.of(colours)
    main = STUDY.layers.get(context.model, ())
    verdict, conclusion = conclude(rows, by_depth, fit, context.layers, main, context.full, rescue)
    maps = style.encode_webp(draw_sheet(context, data), dpi=80 if context.full else 120, quality=80)
    figures: dict[str, Figure | bytes] = {"": draw_figure(context, means, colours, size), "-maps.webp": maps}
    return Outcome(rows, [*findings, layer_flatness(rows)], verdict, conclusion, figures)


if __name__ == "__main__":
    run_study(STUDY, measure)
