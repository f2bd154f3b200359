"""How coherent are the images of a network's late features? One network a run, compared with those that are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
from analyses.support.study import LEVEL, Context, Finding, Outcome, Study, Verdict, averaged, interval, start
from analyses.tables import stored
from featmap import FeatmapError, image_ops, rng
from featmap.optimize.responses import Probe
from featmap.plotting import style
from featmap.runs import array_layout, device
from featmap.stats import interaction

YARDSTICK, PERMUTATIONS, HEADLINE = 64, 4, "beyond"
P = 0.05
GOOGLENET, INCEPTION, RESNET = "googlenet", "inception_v3", "resnet50"

STUDY = Study(
    "architectures",
    section="Feature Maps are Metric Invariant",
    claim="The images of GoogLeNet's last two modules are more coherent than those of InceptionV3's, and ResNet "
    'behaves like both (section "Mapping ResNet Features").',
    measured="how few features of its layer an image excites: the share that respond more than to any of "
    f"{YARDSTICK} images with a 1/f spectrum, less the same share of the image with its pixels permuted (mean of "
    f"{PERMUTATIONS} permutations), which is what its colours excite by chance; beside it the participation ratio of "
    "the responses, how alike two positions of an image are, and how many classes the network sees; layer by layer. "
    f"The claim holds if GoogLeNet's share less chance is below InceptionV3's (p < {P}, Welch) in the last module and "
    f"in the one before, each compared with its like, and ResNet's is not outside of both; in part if it is in one of "
    f"them (p < {P / 2}); it is not decided before the published weights of both were measured",
    full="the article's octaves, 299 to 380 pixels and 300 steps (the recipe `article-normalised`)",
    layers={
        "reference": ("inception5a", "inception5b"),
        GOOGLENET: ("inception5a", "inception5b"),
        INCEPTION: ("Mixed_7b", "Mixed_7c"),
        RESNET: ("layer4.1", "layer4.2"),
    },
)
MEASURES = {
    "excited": "features of its layer that an image excites beyond all 1/f images, as a share",
    "permuted": "the same with the image's pixels permuted (chance)",
    "beyond": "share of features excited, less chance (paired)",
    "spread": "participation ratio of the features, relative to 1/f images",
    "positions": "mean cosine of the responses at two positions of an image",
    "positions_across": "the same at positions of two features' images",
    "classes": "classes that the network sees in an image, as a number",
}
NULLS = {
    "excited_null": "features that the null image excites, as a share; n seeds",
    "spread_null": "participation ratio of the null image; n seeds",
    "classes_null": "classes seen in the null image; n seeds",
}
"""There is one null image a seed, whatever the feature."""


@dataclass(frozen=True, eq=False)
class Yardstick:
    """What a layer does on 1/f images.

    `varies` the features that vary over them (D' of D), `responses` theirs (images x D'), `centre` and `spread` mean
    and deviation of all D features over positions.
    """

    varies: np.ndarray
    responses: np.ndarray
    centre: np.ndarray
    spread: np.ndarray


def yardstick(probe: Probe, layer: str, size: int) -> Yardstick:
    """Return what a layer does on images with a 1/f spectrum."""
    maps = probe.activation_maps(image_ops.pink_noise(YARDSTICK, size), [layer])[layer].astype(np.float64)
    responses, flat = maps.mean((2, 3)), maps.transpose(1, 0, 2, 3).reshape(maps.shape[1], -1)
    varies = np.isfinite(interaction.response_deviations(responses))
    return Yardstick(varies, responses[:, varies], flat.mean(1), flat.std(1))


def made(context: Context) -> xr.Dataset:
    """Return the images of the drawn features of all layers."""
    units = [u for layer in context.layers for u in context.units(layer)]
    recipe = "article-normalised" if context.full else "fast"
    return featmap.maximise(
        units,
        context.network,
        recipe=recipe,
        seeds=context.seeds,
        device=context.device,
        out=context.folder("images", units=units, recipe=recipe, seeds=context.seeds),
        watcher=context.watcher,
    )


def class_layer(context: Context, size: int) -> str | None:
    """Return the name of the layer of class logits, None where the network has none."""
    try:
        return context.network.resolve_unit(featmap.Unit.parse("class:0"), size).layer
    except FeatmapError:
        return None


def measured(context: Context, data: xr.Dataset) -> pd.DataFrame:
    """Return a row a feature and seed: status and the figures of `MEASURES` and `NULLS` (empty where undefined)."""
    size, found = data.sizes["y"], []
    probe = Probe(context.network, 16, device.device(context.device))
    logits = class_layer(context, size)
    names = [str(n) for n in data["image"].values]
    for layer in context.layers:
        yard = yardstick(probe, layer, size)
        own = [k for k, n in enumerate(names) if n.rpartition(":")[0] == layer]
        for s, seed in enumerate(data["seed"].values):
            images = np.concatenate([data["images"][s, own].values, data["null_images"][s].values[None]])
            frame = pd.DataFrame(figures(probe, torch.from_numpy(images), layer, logits, yard))
            frame.insert(0, "status", [array_layout.STATUSES[int(c)] for c in data["status"][s, own].values])
            frame.insert(0, "seed", int(seed))
            frame.insert(0, "feature", [names[k] for k in own])
            frame.insert(0, "layer", layer)
            found.append(frame)
    return pd.concat(found, ignore_index=True)


def figures(probe: Probe, images: torch.Tensor, layer: str, logits: str | None, yard: Yardstick) -> dict[str, Any]:
    """Return the figures of N images from N + 1, the last of which is the null image."""
    maps = probe.activation_maps(images, [layer])[layer]
    responses = maps.mean((2, 3)).astype(np.float64)[:, yard.varies]
    excited = coherence.excited_share(responses, yard.responses)
    chance = permuted(probe, images[:-1], layer, yard)
    spread = coherence.relative_effective_number(responses, yard.responses)
    within, across = coherence.position_similarity(coherence.unit_directions(maps[:-1], yard.centre, yard.spread))
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


def permuted(probe: Probe, images: torch.Tensor, layer: str, yard: Yardstick) -> np.ndarray:
    """Return the share of features that N images excite with their pixels permuted: all colours, no pattern.

    The mean over `PERMUTATIONS` permutations, the same ones of all images. The share that one more 1/f image would
    excite (1 in 65) is no chance level: these images have other colours and contrasts.
    """
    found = []
    for k in range(PERMUTATIONS):
        flat = images.flatten(2)
        order = rng.generator("permuted", k, flat.shape[2]).permutation(flat.shape[2])
        moved = flat[:, :, torch.from_numpy(order)].reshape(images.shape)
        responses = probe.responses(moved, [layer])[layer].astype(np.float64)[:, yard.varies]
        found.append(coherence.excited_share(responses, yard.responses))
    return np.asarray(np.mean(found, axis=0))


def findings(context: Context, table: pd.DataFrame) -> list[Finding]:
    """Return every figure of each layer: over features, averaged over seeds before; the null images' over seeds."""
    live = table[table["status"].isin(("live", "rescued"))]
    means = live.groupby(["layer", "feature"], sort=False)[list(MEASURES)].mean()
    nulls = table.groupby(["layer", "seed"], sort=False)[list(NULLS)].first()
    found = []
    for layer in context.layers:
        for held, words in ((means, MEASURES), (nulls, NULLS)):
            own = held[[key[0] == layer for key in held.index]]
            found += [averaged(f"{layer}:{name}", own[name].to_numpy(), f"{layer}: {w}") for name, w in words.items()]
    return found


@dataclass(frozen=True)
class Mean:
    """A mean of `count` features with its standard error."""

    value: float
    error: float
    count: int


def mean_of(finding: Finding | dict[str, Any]) -> Mean | None:
    """Return mean and standard error of a finding (or of its stored form), None if it has no interval."""
    held = finding if isinstance(finding, dict) else vars(finding)
    if held["value"] is None or held["low"] is None or held["count"] < 2:
        return None
    reach = float(stats.t.ppf((1 + LEVEL) / 2, held["count"] - 1))
    return Mean(float(held["value"]), (held["high"] - held["low"]) / 2 / reach, int(held["count"]))


def below(one: Mean, two: Mean) -> float:
    """Return Welch's two-sided p of two means, negative where the first is not below the second."""
    spread = [m.error * np.sqrt(m.count) for m in (one, two)]
    p = float(
        stats.ttest_ind_from_stats(
            one.value, spread[0], one.count, two.value, spread[1], two.count, equal_var=False
        ).pvalue
    )
    return p if one.value < two.value else -p


Means = dict[str, dict[str, Mean]]
"""Network -> layer -> its headline; layers in order, so that the last ones are each other's like."""


def headlines(layers: Sequence[str], found: Sequence[Finding] | Sequence[dict[str, Any]]) -> dict[str, Mean]:
    """Return the headline of each layer; empty where one lacks it, as in what older versions stored."""
    by = {(f["name"] if isinstance(f, dict) else f.name): mean_of(f) for f in found}
    own = {layer: by.get(f"{layer}:{HEADLINE}") for layer in layers}
    return {} if None in own.values() else {layer: mean for layer, mean in own.items() if mean is not None}


def known(context: Context, found: Sequence[Finding]) -> Means:
    """Return the headlines of every network: what is stored at the same sizes, and the one just measured.

    Networks with random weights do not count, other than the one just measured.
    """
    means = {}
    for model, record in stored(STUDY.name, context.results).items():
        if record["settings"]["full"] == context.full and ", weights random:" not in record["network"]:
            means[model] = headlines(record["settings"]["layers"], record["findings"])
    means.pop(context.network.name, None)
    means[context.network.name] = headlines(context.layers, found)
    return {model: own for model, own in means.items() if own}


def paired(one: dict[str, Mean], two: dict[str, Mean]) -> list[float]:
    """Return `below` of two networks' layers, the last with the last, and so on."""
    return [below(a, b) for a, b in zip(reversed(one.values()), reversed(two.values()), strict=False)]


def judged(means: Means, random: str | None = None) -> tuple[Verdict, str]:
    """Return the verdict and why, from the headlines of each network; `random` names one whose weights are random."""
    counted = {m: v for m, v in means.items() if m != random}
    missing = [m for m in (GOOGLENET, INCEPTION) if m not in counted]
    if missing:
        return "not decided", f"{' and '.join(missing)} with published weights not measured"
    google, inception = counted[GOOGLENET], counted[INCEPTION]
    p = paired(google, inception)
    said = (
        f"GoogLeNet {told(google)}, InceptionV3 {told(inception)}, p {' and '.join(f'{abs(x):.2g}' for x in p[::-1])}"
    )
    if not all(0 < x < P for x in p):
        part = any(0 < x < P / len(p) for x in p)
        against = any(-P / len(p) < x < 0 for x in p)
        return ("holds in part" if part else "does not hold" if against else "not decided"), said
    if RESNET not in counted:
        return "holds in part", f"{said}; ResNet not measured"
    third = counted[RESNET]
    outside = any(0 < x < P for x in (*paired(third, google), *paired(inception, third)))
    where = "outside of both" if outside else "not outside of both"
    return ("holds in part" if outside else "holds"), f"{said}; ResNet {told(third)}, {where}"


def told(means: dict[str, Mean]) -> str:
    """Return a network's headlines for a sentence."""
    return " and ".join(f"{m.value:+.3g}" for m in means.values())


def conclusion(context: Context, found: list[Finding], why: str) -> str:
    """Return the sentence."""
    by = {f.name: f for f in found}

    def said(name: str) -> str:
        value = by[name].value
        return "undefined" if value is None else f"{value:.3g}"

    shares = []
    for layer in context.layers:
        ends = by[f"{layer}:{HEADLINE}"]
        reach = "" if ends.low is None else f" [{ends.low:.3g}, {ends.high:.3g}]"
        shares.append(
            f"{said(f'{layer}:excited')} of {layer}'s features ({said(f'{layer}:permuted')} with its pixels permuted, "
            f"{said(f'{layer}:excited_null')} the null image; less chance {said(f'{layer}:{HEADLINE}')}{reach})"
        )
    return (
        f"{context.network.name}: an image of a late feature excites, beyond all 1/f images, {' and '.join(shares)}; "
        f"between networks: {why}."
    )


@style.house_style
def figure(context: Context, table: pd.DataFrame, means: Means) -> Figure:
    """Draw each feature's figures by layer beside their floors, and the headlines of every network."""
    made = Figure(figsize=(10.5, 4), layout="constrained")
    axes = made.subplots(1, 4, gridspec_kw={"width_ratios": (1.15, 1, 1, 1.15)})
    live = table[table["status"].isin(("live", "rescued"))]
    null, chance, across = "null image", "pixels permuted", "two features' images"
    panels: tuple[tuple[str, dict[str, str], str], ...] = (
        ("excited", {"permuted": chance, "excited_null": null}, "share of features excited\nbeyond all 1/f images"),
        ("positions", {"positions_across": across}, "cosine of two positions\nof an image"),
        ("classes", {"classes_null": null}, "classes seen\nin an image"),
    )
    for ax, (name, floors, title) in zip(axes, panels, strict=False):
        _dots(ax, context, live, name, floors)
        ax.set_title(title, fontsize=10)
    _networks(axes[3], means)
    return made


def _dots(axes: Axes, context: Context, live: pd.DataFrame, name: str, floors: dict[str, str]) -> None:
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
    if axes.get_legend_handles_labels()[0]:  # below the axes: above them there are points everywhere
        axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    axes.spines[["top", "right"]].set_visible(False)


def _networks(axes: Axes, means: Means) -> None:
    names = [(model, layer) for model, own in means.items() for layer in own]
    for k, (model, layer) in enumerate(names):
        one = means[model][layer]
        reach = one.error * float(stats.t.ppf((1 + LEVEL) / 2, one.count - 1))
        axes.errorbar(one.value, k, xerr=reach, fmt="o", color=style.colour(list(means).index(model)), capsize=3)
    axes.axvline(0, color=style.FAINT, linewidth=0.8)
    axes.set_yticks(range(len(names)), [f"{model}\n{layer}" for model, layer in names], fontsize=8)
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
    axes.set_title("share excited less chance:\nnetworks measured so far, 95 %", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def measure(context: Context) -> Outcome:
    """Measure the coherence of one network's late images, and compare it with what is stored of the others."""
    table = measured(context, made(context))
    found = findings(context, table)
    means = known(context, found)
    random = context.network.name if context.network.weights.startswith("random:") else None
    verdict, why = judged(means, random)
    return Outcome(table, found, verdict, conclusion(context, found, why), {"": figure(context, table, means)})


if __name__ == "__main__":
    start(STUDY, measure)
