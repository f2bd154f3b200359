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

import featmap
from analyses.formulas import coherence
from analyses.support.findings import (
    Finding,
    format_interval,
    format_value,
    interval,
    mean_or_undefined,
    student_factor,
)
from analyses.support.network_means import (
    UNKNOWN_SIZE,
    Mean,
    Means,
    describe_images,
    describe_networks,
    mean_and_error,
    mean_difference,
)
from analyses.support.network_verdict import GOOGLENET, INCEPTION, RESNET, P, Part, judge_parts
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
HEADLINE = "beyond"
"""Measure that networks are compared by."""
COMPARES = True
"""The verdict is about several networks, and may change when another one is measured."""

STUDY = Study(
    "architectures",
    section="Feature Maps are Metric Invariant",
    claim="The images of GoogLeNet's last two modules are more coherent than those of InceptionV3's, and ResNet "
    'behaves like both (section "Mapping ResNet Features"). Of each network by itself: the '
    "images of its final layer are less coherent than those of the layers before (same section); this stands beside "
    "the verdict.",
    measured="how few features of its layer an image excites: the share that respond more than to any of "
    f"{REFERENCE_IMAGES} images with a 1/f spectrum, minus the same share for the image with its pixels permuted (mean "
    f"of {PERMUTATIONS} permutations), which is what its colours excite by chance; also the participation ratio of the "
    "responses, the similarity of two positions of an image, and the number of classes the network sees; layer by "
    "layer. The fewer features are excited, the more coherent is an image. The images are those of the stated number "
    "of steps, without octaves unless --full is given",
    rule="two parts are judged. That GoogLeNet's images are more coherent than InceptionV3's holds if GoogLeNet's "
    f"share minus chance is below InceptionV3's (p < {P}, Welch) both in the last module and in the one before, and "
    f"holds in part if it is below in one of them alone (p < {P / 2}); otherwise it does not hold if GoogLeNet's is "
    f"above in one of them (p < {P / 2}), and is not decided if it is not, or until both networks are measured, both "
    "in full or both not, of these layers, with their published weights. That ResNet behaves like both is decided "
    "where the first part holds: it does not hold if ResNet's share is in one of the modules below GoogLeNet's or "
    f"above InceptionV3's (p < {P}), and holds otherwise. The claim holds if both parts hold, and holds in part if the "
    "first does alone; otherwise the verdict is that on the first part. Networks other than these three are shown "
    "beside them, and do not count. What is claimed of each network by itself is not in the verdict: it is so on a "
    "network, measured in the layers listed for it here with published weights, if the interval (Welch) of the last "
    "module's share minus chance, less that of the module before, is above 0; it is not if it is below 0, and is not "
    "decided otherwise",
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


def judge(means: Means, random: str | None = None) -> tuple[Verdict, Part, Part]:
    """Judge the claim and its two parts; `random` names a network whose weights are random.

    Networks of which other layers were measured than the claim's are named, and decide nothing.
    """
    published = {m: v for m, v in means.items() if m != random}
    return judge_parts({m: v for m, v in published.items() if of_claim(m, v)}, published)


def of_claim(model: str, means: dict[str, Mean]) -> bool:
    """Check whether the layers are those that the study lists for a network."""
    return model in STUDY.layers and list(means) == list(STUDY.layers[model])


def stored_images(results: Path, full: bool) -> dict[str, str]:
    """Describe the images of every stored network, see `describe_images`."""
    return {
        str(record["model"]): describe_images((d["sizes"], d["steps"]) for d in record.get("descents", []))
        for record in read_stored(STUDY.name, results).values()
        if record["settings"]["full"] == full
    }


def final_phrase(model: str, own: dict[str, Mean], random: bool) -> str:
    """Compare a network's final images with those of the layer before.

    The article says that they are less coherent. This is not in the verdict, and not written as a part of the claim,
    which the page would count.
    """
    if len(own) < 2:
        return ""
    (before, first), (last, second) = list(own.items())[-2:]
    gap = mean_difference(second, first)
    known, these = of_claim(model, own) and not random, "than those of the layer before"
    why = "" if known else "its weights are random; " if random else "these are not the layers listed for it; "
    if known and gap.low > 0:
        found = f"the final images of this network are less coherent {these}"
    elif known and gap.high < 0:
        found = f"the final images of this network are more coherent {these}, and not less"
    else:
        found = f"it is not decided whether the final images of this network are less coherent {these}"
    return (
        f" Outside the verdict, {found}: {why}the share above chance in {last} minus that in {before} is "
        f"{format_interval(gap, '+.3g')} (n = {second.count} and {first.count} features)."
    )


@dataclass(frozen=True)
class Shown:
    """What a conclusion is about.

    Parameters
    ----------
    model : str
        Name of the network.
    layers : sequence of str
        Its layers.
    seeds : int
        Number of seeds.
    means : dict
        Headlines of every network.
    images : dict of str to str
        Size and steps of every network's images.
    random : bool
        Whether the network has random weights.
    """

    model: str
    layers: Sequence[str]
    seeds: int
    means: Means
    images: Mapping[str, str]
    random: bool


def conclude(shown: Shown, by: Mapping[str, Finding]) -> tuple[Verdict, str]:
    """Judge the claim, and write the conclusion from the findings by name."""

    def value(name: str) -> str:
        return format_value(by[name].value, ".3g")

    shares = []
    for layer in shown.layers:
        headline = by[f"{layer}:{HEADLINE}"]
        shares.append(
            f" In {layer} an image excites {value(f'{layer}:excited')} of the layer's features more than any 1/f image "
            f"does (n = {headline.count} features, {shown.seeds} seed{'s' * (shown.seeds != 1)}), and "
            f"{value(f'{layer}:permuted')} with its pixels permuted (chance): {format_interval(headline, '+.3g')} "
            f"above chance. The null image excites {value(f'{layer}:excited_null')}."
        )
    verdict, first, second = judge(shown.means, shown.model if shown.random else None)
    return verdict, (
        "The fewer features an image excites beyond chance, the more coherent it is taken to be (images of "
        f"{shown.images.get(shown.model, UNKNOWN_SIZE)}).{''.join(shares)} Share above chance by network, in the "
        f"layers named: {describe_networks(shown.means, shown.images)}. That GoogLeNet's images are more coherent than "
        f"InceptionV3's {first.verb}: {first.why}. That ResNet behaves like both {second.verb}: {second.why}."
        f"{final_phrase(shown.model, shown.means.get(shown.model, {}), shown.random)}"
    )


def restate(stored: StoredResult) -> tuple[Verdict, str]:
    """Write verdict and conclusion from the stored result."""
    layers, random = stored.settings["layers"], ", weights random:" in stored.network
    own = headline_means(layers, list(stored.findings.values()))
    full = stored.settings["full"]
    means = collect_means(stored.results, full, stored.model, own)
    images = stored_images(stored.results, full)
    return conclude(Shown(stored.model, layers, stored.settings["seeds"], means, images, random), stored.findings)


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
    images = stored_images(context.results, context.full)
    images[context.model] = describe_images((sizes, steps) for _, sizes, steps in context.descents)
    live = table[table["status"] == "live"]
    values = {str(f): one.to_numpy(dtype=float) for f, one in live.groupby("feature")[HEADLINE]}
    findings += named_findings(context, HEADLINE, values, MEASURES[HEADLINE])
    random = context.network.weights.startswith("random:")
    shown = Shown(context.model, context.layers, context.seeds, means, images, random)
    verdict, conclusion = conclude(shown, {f.name: f for f in findings})
    return Outcome(table, findings, verdict, conclusion, {"": draw_figure(context, table, means)})


if __name__ == "__main__":
    run_study(STUDY, measure)
