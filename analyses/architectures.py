"""Measure how coherent the images of a network's late features are.

One run measures one network, and compares it with the stored results of the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

import featmap
from analyses.formulas import coherence
from analyses.support.findings import Finding, interval, mean_or_undefined, student_factor
from analyses.support.records import read_stored
from analyses.support.settings import changed_recipe
from analyses.support.study import Context, Outcome, StoredResult, Study, Verdict
from analyses.support.study_command import run_study
from analyses.support.units import named_findings
from featmap import image_ops, rng
from featmap.optimize.responses import Probe
from featmap.plotting import style
from featmap.runs import device, folder_layout
from featmap.stats import interaction
from featmap.validation.image_inputs import class_layer

REFERENCE_IMAGES, PERMUTATIONS = 64, 4
"""1/f images that responses are compared with, and permutations of an image's pixels."""
HEADLINE, P = "beyond", 0.05
"""Measure that networks are compared by, and the level of the test."""
GOOGLENET, INCEPTION, RESNET = "googlenet", "inception_v3", "resnet50"
COMPARES = True
"""The verdict is about several networks, and may change when another one is measured."""

STUDY = Study(
    "architectures",
    section="Feature Maps are Metric Invariant",
    claim="The images of GoogLeNet's last two modules are more coherent than those of InceptionV3's, and ResNet "
    'behaves like both (section "Mapping ResNet Features").',
    measured="how few features of its layer an image excites: the share that respond more than to any of "
    f"{REFERENCE_IMAGES} images with a 1/f spectrum, minus the same share for the image with its pixels permuted (mean "
    f"of {PERMUTATIONS} permutations), which is what its colours excite by chance; also the participation ratio of the "
    "responses, the similarity of two positions of an image, and the number of classes the network sees; layer by "
    "layer",
    rule=f"the claim holds if GoogLeNet's share minus chance is below InceptionV3's (p < {P}, Welch) both in the last "
    f"module and in the one before, and ResNet's is in neither of them below GoogLeNet's or above InceptionV3's "
    f"(p < {P}); it holds in part where ResNet's is, or is not measured, or if GoogLeNet's is below in one of the "
    f"modules alone (p < {P / 2}); otherwise it does not hold if GoogLeNet's is above in one of them (p < {P / 2}), "
    "and is not decided if it is not, or until both networks are measured, both in full or both not, of these layers, "
    "with their published weights. Networks other than these three are shown beside them, and do not count",
    full="the article's octaves, 299 to 380 pixels and 300 steps (the recipe `article-normalised`)",
    layers={
        "reference": ("inception5a", "inception5b"),
        GOOGLENET: ("inception5a", "inception5b"),
        "squeezenet": ("features.11", "features.12"),
        INCEPTION: ("Mixed_7b", "Mixed_7c"),
        RESNET: ("layer4.1", "layer4.2"),
    },
)
MEASURES = {
    "excited": "share of its layer's features that an image excites more than any 1/f image does",
    "permuted": "the same with the image's pixels permuted (chance)",
    "beyond": "share of features excited, minus chance (paired)",
    "spread": "participation ratio of the features, relative to 1/f images",
    "positions": "mean cosine of the responses at two positions of an image",
    "positions_across": "the same at positions of two features' images",
    "classes": "number of classes that the network sees in an image",
}
NULLS = {
    "excited_null": "share of features that the null image excites; n seeds",
    "spread_null": "participation ratio of the null image; n seeds",
    "classes_null": "number of classes that the network sees in the null image; n seeds",
}
"""Measures of the null image, of which there is one for each seed, whatever the feature."""


@dataclass(frozen=True, eq=False)
class ReferenceResponses:
    """Responses of a layer to 1/f images.

    Parameters
    ----------
    varies : numpy.ndarray
        Which of the D features vary over these images (D' of them).
    responses : numpy.ndarray
        Responses of these features, `images x D'`.
    centre, spread : numpy.ndarray
        Mean and standard deviation of all D features over positions.
    """

    varies: np.ndarray
    responses: np.ndarray
    centre: np.ndarray
    spread: np.ndarray


def measure_reference(probe: Probe, layer: str, size: int) -> ReferenceResponses:
    """Measure the responses of a layer to images with a 1/f spectrum."""
    maps = probe.activation_maps(image_ops.pink_noise(REFERENCE_IMAGES, size), [layer])[layer].astype(np.float64)
    responses, flat = maps.mean((2, 3)), maps.transpose(1, 0, 2, 3).reshape(maps.shape[1], -1)
    varies = np.isfinite(interaction.response_deviations(responses))
    return ReferenceResponses(varies, responses[:, varies], flat.mean(1), flat.std(1))


def maximise_features(context: Context) -> xr.Dataset:
    """Maximise the drawn features of all layers."""
    units = [u for layer in context.layers for u in context.draw_units(layer)]
    recipe = "article-normalised" if context.full else "pixels"
    context.note_recipe(changed_recipe(recipe, **context.sized_changes))
    data = featmap.maximise(
        units,
        context.network,
        recipe=changed_recipe(recipe, **context.sized_changes),
        seeds=context.seeds,
        execution=featmap.Execution(
            context.device,
            out=context.folder("images", units=units, recipe=recipe, seeds=context.seeds, **context.sized_changes),
            watcher=context.watcher,
        ),
    )
    context.count_images(data)
    return data


def measure_coherence(context: Context, data: xr.Dataset) -> pd.DataFrame:
    """Measure every feature with every seed.

    Each has one row with its status, its start, `MEASURES` and `NULLS`.
    """
    size, frames = data.sizes["y"], []
    probe = Probe(context.network, 16, device.select_device(context.device))
    logits = class_layer(context.network, size)
    names = [str(n) for n in data["image"].values]
    for layer in context.layers:
        reference = measure_reference(probe, layer, size)
        own = [k for k, n in enumerate(names) if n.rpartition(":")[0] == layer]
        for s, seed in enumerate(data["seed"].values):
            images = np.concatenate([data["images"][s, own].values, data["null_images"][s].values[None]])
            frame = pd.DataFrame(coherence_statistics(probe, torch.from_numpy(images), layer, logits, reference))
            codes = data["status"][s, own].values
            frame.insert(0, "start", folder_layout.starts(codes))
            frame.insert(0, "status", folder_layout.status_names(codes))
            frame.insert(0, "seed", int(seed))
            frame.insert(0, "feature", [names[k] for k in own])
            frame.insert(0, "layer", layer)
            frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def coherence_statistics(
    probe: Probe, images: torch.Tensor, layer: str, logits: str | None, reference: ReferenceResponses
) -> dict[str, Any]:
    """Compute the measures of N images.

    `images` has N + 1 images, the last of which is the null image.
    """
    maps = probe.activation_maps(images, [layer])[layer]
    responses = maps.mean((2, 3)).astype(np.float64)[:, reference.varies]
    excited = coherence.excited_share(responses, reference.responses)
    chance = permuted_share(probe, images[:-1], layer, reference)
    spread = coherence.relative_effective_number(responses, reference.responses)
    within, across = coherence.position_similarity(
        coherence.unit_directions(maps[:-1], reference.centre, reference.spread)
    )
    if logits is None:
        classes = np.full(len(maps), np.nan)
    else:
        classes = coherence.effective_classes(probe.responses(images, [logits])[logits])
    return {
        "excited": excited[:-1],
        "excited_null": excited[-1],
        "permuted": chance,
        "beyond": excited[:-1] - chance,
        "spread": spread[:-1],
        "spread_null": spread[-1],
        "positions": within,
        "positions_across": across,
        "classes": classes[:-1],
        "classes_null": classes[-1],
    }


def permuted_share(probe: Probe, images: torch.Tensor, layer: str, reference: ReferenceResponses) -> np.ndarray:
    """Compute the share of features that images excite with their pixels permuted.

    Permuted images have all the colours and no pattern. The share is the mean over `PERMUTATIONS` permutations, the
    same for all images. The share that one more 1/f image would excite (1 in 65) is not the level of chance, since
    these images have other colours and contrasts.
    """
    shares = []
    for k in range(PERMUTATIONS):
        flat = images.flatten(2)
        order = rng.generator("permuted", k, flat.shape[2]).permutation(flat.shape[2])
        shuffled = flat[:, :, torch.from_numpy(order)].reshape(images.shape)
        responses = probe.responses(shuffled, [layer])[layer].astype(np.float64)[:, reference.varies]
        shares.append(coherence.excited_share(responses, reference.responses))
    return np.asarray(np.mean(shares, axis=0))


def collect_findings(context: Context, table: pd.DataFrame) -> list[Finding]:
    """Summarise the measures of each layer.

    They are means over features, averaged over seeds before; those of null images are means over seeds.
    """
    live = table[table["status"] == "live"]
    means = live.groupby(["layer", "feature"], sort=False)[list(MEASURES)].mean()
    nulls = table.groupby(["layer", "seed"], sort=False)[list(NULLS)].first()
    findings = []
    for layer in context.layers:
        for frame, words in ((means, MEASURES), (nulls, NULLS)):
            own = frame[[key[0] == layer for key in frame.index]]
            findings += [
                mean_or_undefined(f"{layer}:{name}", own[name].to_numpy(), f"{layer}: {w}") for name, w in words.items()
            ]
    return findings


@dataclass(frozen=True)
class Mean:
    """A mean with its standard error.

    Parameters
    ----------
    value, error : float
        Mean and standard error.
    count : int
        Number of features.
    """

    value: float
    error: float
    count: int


def mean_and_error(finding: Finding | dict[str, Any]) -> Mean | None:
    """Recover mean and standard error from a finding or its stored form.

    None without an interval.
    """
    record = finding if isinstance(finding, dict) else vars(finding)
    if record["value"] is None or record["low"] is None or record["count"] < 2:
        return None
    error = (record["high"] - record["low"]) / 2 / student_factor(record["count"])
    return Mean(float(record["value"]), error, int(record["count"]))


def signed_p(one: Mean, two: Mean) -> float:
    """Compute Welch's two-sided p of two means.

    It is negative unless the first mean is below the second.
    """
    spread = [m.error * np.sqrt(m.count) for m in (one, two)]
    p = float(
        stats.ttest_ind_from_stats(
            one.value, spread[0], one.count, two.value, spread[1], two.count, equal_var=False
        ).pvalue
    )
    return p if one.value < two.value else -p


Means = dict[str, dict[str, Mean]]
"""Headline by network and layer, layers in order, so that the last layers of two networks are compared."""


def headline_means(layers: Sequence[str], findings: Sequence[Finding] | Sequence[dict[str, Any]]) -> dict[str, Mean]:
    """Look up the headline of each layer.

    Empty where one is missing, as in older stored results.
    """
    by = {(f["name"] if isinstance(f, dict) else f.name): mean_and_error(f) for f in findings}
    own = {layer: by.get(f"{layer}:{HEADLINE}") for layer in layers}
    return {} if None in own.values() else {layer: mean for layer, mean in own.items() if mean is not None}


def collect_means(results: Path, full: bool, model: str, own: dict[str, Mean]) -> Means:
    """Collect the headlines of every network.

    These are the networks stored with or without `full`, as given, but for those with random weights, and the one just
    measured, of which `own` are the headlines.
    """
    means = {}
    for record in read_stored(STUDY.name, results).values():
        settings = record["settings"]
        if settings["full"] == full and ", weights random:" not in record["network"]:
            means[str(record["model"])] = headline_means(settings["layers"], record["findings"])
    means.pop(model, None)
    means[model] = own
    return {name: headlines for name, headlines in means.items() if headlines}


def compare_modules(one: dict[str, Mean], two: dict[str, Mean]) -> list[float]:
    """Compute `signed_p` of two networks' layers: the last with the last, and so on."""
    return [signed_p(a, b) for a, b in zip(reversed(one.values()), reversed(two.values()), strict=False)]


def judge(means: Means, random: str | None = None) -> tuple[Verdict, str]:
    """Judge the claim and say why; `random` names a network whose weights are random.

    Networks of which other layers were measured than the claim's are named, and decide nothing.
    """
    published = {m: v for m, v in means.items() if m != random}
    counted = {m: v for m, v in published.items() if list(v) == list(STUDY.layers.get(m, v))}
    missing = [m for m in (GOOGLENET, INCEPTION) if m not in counted]
    if missing:
        return "not decided", "; ".join(describe_missing(m, published) for m in missing)
    google, inception = counted[GOOGLENET], counted[INCEPTION]
    p = compare_modules(google, inception)
    values = " and ".join(f"{abs(x):.2g}" for x in p[::-1])
    text = f"GoogLeNet {format_means(google)}, InceptionV3 {format_means(inception)}, p {values}"
    if not all(0 < x < P for x in p):
        part = any(0 < x < P / len(p) for x in p)
        against = any(-P / len(p) < x < 0 for x in p)
        return ("holds in part" if part else "does not hold" if against else "not decided"), text
    if RESNET not in counted:
        return "holds in part", f"{text}; ResNet not measured"
    third = counted[RESNET]
    outside = any(0 < x < P for x in (*compare_modules(third, google), *compare_modules(inception, third)))
    where = "outside the range of the two" if outside else "not outside the range of the two"
    return ("holds in part" if outside else "holds"), f"{text}; ResNet {format_means(third)}, {where}"


def describe_missing(model: str, published: Means) -> str:
    """Say why a network decides nothing: it was not measured, or in other layers than the claim's."""
    if model not in published:
        return f"{model} not measured with published weights"
    layers = " and ".join(published[model])
    return f"{model} measured in {layers} ({format_means(published[model])}), which are not the claim's layers"


def format_means(means: dict[str, Mean]) -> str:
    """Format a network's headlines for a sentence."""
    return " and ".join(f"{m.value:+.3g}" for m in means.values())


def write_conclusion(model: str, layers: Sequence[str], by: Mapping[str, Finding], why: str) -> str:
    """Write the conclusion from the findings by name."""

    def value(name: str) -> str:
        number = by[name].value
        return "undefined" if number is None else f"{number:.3g}"

    shares = []
    for layer in layers:
        headline = by[f"{layer}:{HEADLINE}"]
        ends = "" if headline.low is None else f" [{headline.low:.3g}, {headline.high:.3g}]"
        shares.append(
            f"{value(f'{layer}:excited')} of {layer}'s features. With its pixels permuted it excites "
            f"{value(f'{layer}:permuted')} (difference {value(f'{layer}:{HEADLINE}')}{ends}). The null image excites "
            f"{value(f'{layer}:excited_null')}."
        )
    return (
        f"{model}: the image of a late feature excites, more than any 1/f image does, "
        f"{' The image of a late feature excites '.join(shares)} Between networks: {why}."
    )


def restate(stored: StoredResult) -> tuple[Verdict, str]:
    """Write verdict and conclusion from the stored result."""
    layers, random = stored.settings["layers"], ", weights random:" in stored.network
    own = headline_means(layers, list(stored.findings.values()))
    means = collect_means(stored.results, stored.settings["full"], stored.model, own)
    verdict, why = judge(means, stored.model if random else None)
    return verdict, write_conclusion(stored.model, layers, stored.findings, why)


@style.house_style
def draw_figure(context: Context, table: pd.DataFrame, means: Means) -> Figure:
    """Draw the measures by layer, and the headlines of every network."""
    drawing = Figure(figsize=(10.5, 4), layout="constrained")
    axes = drawing.subplots(1, 4, gridspec_kw={"width_ratios": (1.15, 1, 1, 1.15)})
    live = table[table["status"] == "live"]
    null, chance, across = "null image", "pixels permuted", "two features' images"
    panels: tuple[tuple[str, dict[str, str], str], ...] = (
        (
            "excited",
            {"permuted": chance, "excited_null": null},
            "share of features excited\nmore than by any 1/f image",
        ),
        ("positions", {"positions_across": across}, "cosine of two positions\nof an image"),
        ("classes", {"classes_null": null}, "classes seen\nin an image"),
    )
    for ax, (name, floors, title) in zip(axes, panels, strict=False):
        _draw_dots(ax, context, live, name, floors)
        ax.set_title(title, fontsize=10)
    _draw_networks(axes[3], means)
    return drawing


def _draw_dots(axes: Axes, context: Context, live: pd.DataFrame, name: str, floors: dict[str, str]) -> None:
    """Draw one measure of every feature, by layer, with its mean, interval and levels of chance."""
    for k, layer in enumerate(context.layers):
        own = live[live["layer"] == layer].groupby("feature", sort=False)[[name, *floors]].mean()
        values = own[name].to_numpy()
        spread = np.linspace(-0.22, 0.22, len(values)) if len(values) > 1 else np.zeros(len(values))
        axes.plot(k + spread, values, "o", color=style.colour(0), alpha=0.6, markersize=4, mew=0)
        if np.isfinite(values).any():
            mean, low, high = interval(values)
            axes.errorbar(k + 0.33, mean, [[mean - low], [high - mean]], fmt="_", color="black", capsize=2.5)
        for (floor, words), dashes in zip(floors.items(), (":", "--"), strict=False):
            height = own[floor].mean()
            if np.isfinite(height):
                label = words if k == 0 else None
                axes.plot([k - 0.35, k + 0.35], [height] * 2, dashes, color="black", linewidth=1.2, label=label)
    axes.set_xticks(range(len(context.layers)), context.layers, fontsize=8.5)
    axes.set_xlim(-0.6, len(context.layers) - 0.4)
    if name != "positions":
        axes.set_ylim(bottom=0)
    if axes.get_legend_handles_labels()[0]:  # below the axes, where no points are
        axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    axes.spines[["top", "right"]].set_visible(False)


def _draw_networks(axes: Axes, means: Means) -> None:
    """Draw the headlines of every network with their intervals."""
    names = [(model, layer) for model, own in means.items() for layer in own]
    for k, (model, layer) in enumerate(names):
        one = means[model][layer]
        reach = one.error * student_factor(one.count)
        axes.errorbar(one.value, k, xerr=reach, fmt="o", color=style.colour(list(means).index(model)), capsize=3)
    axes.axvline(0, color=style.FAINT, linewidth=0.8)
    axes.set_yticks(range(len(names)), [f"{model}\n{layer}" for model, layer in names], fontsize=8)
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
    axes.set_title("share excited minus chance:\nnetworks measured so far, 95 %", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def measure(context: Context) -> Outcome:
    """Measure the coherence of one network's late images.

    The stored results of other networks are compared with it.
    """
    table = measure_coherence(context, maximise_features(context))
    findings = collect_findings(context, table)
    own = headline_means(context.layers, findings)
    means = collect_means(context.results, context.full, context.model, own)
    random = context.model if context.network.weights.startswith("random:") else None
    verdict, why = judge(means, random)
    live = table[table["status"] == "live"]
    values = {str(f): one.to_numpy(dtype=float) for f, one in live.groupby("feature")[HEADLINE]}
    findings += named_findings(context, HEADLINE, values, MEASURES[HEADLINE])
    return Outcome(
        table,
        findings,
        verdict,
        write_conclusion(context.model, context.layers, {f.name: f for f in findings}, why),
        {"": draw_figure(context, table, means)},
    )


if __name__ == "__main__":
    run_study(STUDY, measure)
