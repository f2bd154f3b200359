"""How coherent are the images of a network's late features? One network a run, compared with those that are stored."""

from __future__ import annotations

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
from analyses.studies import LEVEL, Context, Finding, Outcome, Study, Verdict, averaged, interval, start
from analyses.tables import stored
from featmap import FeatmapError, coherence, drawing, interaction, runs, transforms
from featmap.probing import Probe

YARDSTICK, HEADLINE = 64, "excited"
GOOGLENET, INCEPTION, RESNET = "googlenet", "inception_v3", "resnet50"

STUDY = Study(
    "architectures",
    section="Feature Maps are Metric Invariant",
    claim="The images of GoogLeNet's last two modules are more coherent than those of InceptionV3's, and ResNet "
    'behaves like both (section "Mapping ResNet Features").',
    measured="how few features of its layer an image excites: the share that respond more than to any of "
    f"{YARDSTICK} images with a 1/f spectrum (by chance 1/{YARDSTICK + 1}); beside it the participation ratio of the "
    "responses, how alike two positions of an image are, and how many classes the network sees. The claim holds if "
    "GoogLeNet's share is below InceptionV3's (p < 0.05, Welch) and ResNet's is not outside of both; it is not decided "
    "before the published weights of both were measured",
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
    "excited_null": "the same of the null image",
    "spread": "participation ratio of the features, relative to 1/f images",
    "spread_null": "the same of the null image",
    "positions": "mean cosine of the responses at two positions of an image",
    "positions_across": "the same at positions of two features' images",
    "classes": "classes that the network sees in an image, as a number",
    "classes_null": "the same of the null image",
}


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
    maps = probe.maps(transforms.pink(YARDSTICK, size), [layer])[layer].astype(np.float64)
    responses, flat = maps.mean((2, 3)), maps.transpose(1, 0, 2, 3).reshape(maps.shape[1], -1)
    varies = np.isfinite(interaction.deviations(responses))
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
        return context.network.unit(featmap.parse_unit("class:0"), size).layer
    except FeatmapError:
        return None


def measured(context: Context, data: xr.Dataset) -> pd.DataFrame:
    """Return a row a feature and seed: status and the figures of `MEASURES` (empty where undefined)."""
    size, found = data.sizes["y"], []
    probe = Probe(context.network, 16, runs.device(context.device))
    logits = class_layer(context, size)
    names = [str(n) for n in data["image"].values]
    for layer in context.layers:
        yard = yardstick(probe, layer, size)
        own = [k for k, n in enumerate(names) if n.rpartition(":")[0] == layer]
        for s, seed in enumerate(data["seed"].values):
            images = np.concatenate([data["images"][s, own].values, data["null_images"][s].values[None]])
            frame = pd.DataFrame(figures(probe, torch.from_numpy(images), layer, logits, yard))
            frame.insert(0, "status", [runs.STATUSES[int(c)] for c in data["status"][s, own].values])
            frame.insert(0, "seed", int(seed))
            frame.insert(0, "feature", [names[k] for k in own])
            frame.insert(0, "layer", layer)
            found.append(frame)
    return pd.concat(found, ignore_index=True)


def figures(probe: Probe, images: torch.Tensor, layer: str, logits: str | None, yard: Yardstick) -> dict[str, Any]:
    """Return the figures of N images from N + 1, the last of which is the null image."""
    maps = probe.maps(images, [layer])[layer]
    responses = maps.mean((2, 3)).astype(np.float64)[:, yard.varies]
    excited = coherence.excited_share(responses, yard.responses)
    spread = coherence.relative_spread(responses, yard.responses)
    within, across = coherence.position_likeness(coherence.directions(maps[:-1], yard.centre, yard.spread))
    if logits is None:
        classes = np.full(len(maps), np.nan)
    else:
        classes = coherence.effective_classes(probe.responses(images, [logits])[logits])
    return {
        "excited": excited[:-1],
        "excited_null": excited[-1],
        "spread": spread[:-1],
        "spread_null": spread[-1],
        "positions": within,
        "positions_across": across,
        "classes": classes[:-1],
        "classes_null": classes[-1],
    }


def findings(context: Context, table: pd.DataFrame) -> list[Finding]:
    """Return every figure over all features, averaged over seeds before, then the headline of each layer."""
    live = table[table["status"].isin(("live", "rescued"))]
    means = live.groupby(["layer", "feature"], sort=False)[list(MEASURES)].mean()
    found = [averaged(name, means[name].to_numpy(), words) for name, words in MEASURES.items()]
    for layer in context.layers:
        own = means[HEADLINE].to_numpy()[[key[0] == layer for key in means.index]]
        found.append(averaged(f"{layer}:{HEADLINE}", own, f"{layer}: {MEASURES[HEADLINE]}"))
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


def known(context: Context, headline: Finding) -> dict[str, Mean]:
    """Return the headline of every network: what is stored at the same sizes, and the one just measured.

    Networks with random weights do not count, other than the one just measured.
    """
    found = {}
    for model, record in stored(STUDY.name, context.results).items():
        if record["settings"]["full"] == context.full and ", weights random:" not in record["network"]:
            own = next((mean_of(f) for f in record["findings"] if f["name"] == HEADLINE), None)
            found |= {} if own is None else {model: own}
    found.pop(context.network.name, None)
    own = mean_of(headline)
    return found if own is None else found | {context.network.name: own}


def judged(means: dict[str, Mean], random: str | None = None) -> tuple[Verdict, str]:
    """Return the verdict and why, from the headline of each network; `random` names one whose weights are random."""
    counted = {m: v for m, v in means.items() if m != random}
    missing = [m for m in (GOOGLENET, INCEPTION) if m not in counted]
    if missing:
        return "not decided", f"{' and '.join(missing)} with published weights not measured"
    p = below(counted[GOOGLENET], counted[INCEPTION])
    said = f"GoogLeNet {counted[GOOGLENET].value:.3g}, InceptionV3 {counted[INCEPTION].value:.3g}, p {abs(p):.2g}"
    if not 0 < p < 0.05:
        return ("not decided" if abs(p) >= 0.05 else "does not hold"), said
    if RESNET not in counted:
        return "holds in part", f"{said}; ResNet not measured"
    third = counted[RESNET]
    outside = 0 < below(third, counted[GOOGLENET]) < 0.05 or 0 < below(counted[INCEPTION], third) < 0.05
    where = "outside of both" if outside else "not outside of both"
    return ("holds in part" if outside else "holds"), f"{said}; ResNet {third.value:.3g}, {where}"


def conclusion(context: Context, found: list[Finding], why: str) -> str:
    """Return the sentence."""
    by = {f.name: f for f in found}

    def said(name: str) -> str:
        value = by[name].value
        return "undefined" if value is None else f"{value:.3g}"

    ends = by[HEADLINE]
    reach = "" if ends.low is None else f" [{ends.low:.3g}, {ends.high:.3g}]"
    return (
        f"{context.network.name}: an image of a late feature excites a share of {said(HEADLINE)}{reach} of its layer's "
        f"features beyond all 1/f images (the null image {said('excited_null')}); its positions have a cosine of "
        f"{said('positions')}, those of two images {said('positions_across')}; between networks: {why}."
    )


@drawing.house_style
def figure(context: Context, table: pd.DataFrame, means: dict[str, Mean]) -> Figure:
    """Draw each feature's three figures by layer beside the null image's, and the headline of every network."""
    made = Figure(figsize=(10.5, 3.7), layout="constrained")
    axes = made.subplots(1, 4, gridspec_kw={"width_ratios": (1, 1, 1, 1.15)})
    live = table[table["status"].isin(("live", "rescued"))]
    for ax, (name, other, title) in zip(
        axes,
        (
            ("excited", "excited_null", "share of features excited\nbeyond all 1/f images"),
            ("positions", "positions_across", "cosine of two positions\nof an image"),
            ("classes", "classes_null", "classes seen\nin an image"),
        ),
        strict=False,
    ):
        _dots(ax, context, live, name, other, title)
    _networks(axes[3], means)
    return made


def _dots(axes: Axes, context: Context, live: pd.DataFrame, name: str, other: str, title: str) -> None:
    label = "two features' images" if name == "positions" else "null image"
    for k, layer in enumerate(context.layers):
        own = live[live["layer"] == layer].groupby("feature", sort=False)[[name, other]].mean()
        values = own[name].to_numpy()
        spread = np.linspace(-0.22, 0.22, len(values)) if len(values) > 1 else np.zeros(len(values))
        axes.plot(k + spread, values, "o", color=drawing.colour(0), alpha=0.6, markersize=4, mew=0)
        if np.isfinite(values).any():
            mean, low, high = interval(values)
            axes.errorbar(k + 0.33, mean, [[mean - low], [high - mean]], fmt="_", color="black", capsize=2.5)
        floor = own[other].mean()
        if np.isfinite(floor):
            axes.plot([k - 0.35, k + 0.35], [floor] * 2, ":", color="black", label=label if k == 0 else None)
    axes.set_xticks(range(len(context.layers)), context.layers, rotation=20, ha="right", fontsize=8)
    axes.set_xlim(-0.6, len(context.layers) - 0.4)
    axes.set_title(title, fontsize=10)
    if name != "positions":
        axes.set_ylim(bottom=0)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7.5)
    axes.spines[["top", "right"]].set_visible(False)


def _networks(axes: Axes, means: dict[str, Mean]) -> None:
    for k, one in enumerate(means.values()):
        reach = one.error * float(stats.t.ppf((1 + LEVEL) / 2, one.count - 1))
        axes.errorbar(one.value, k, xerr=reach, fmt="o", color=drawing.colour(k), capsize=3)
    axes.set_yticks(range(len(means)), list(means), fontsize=8.5)
    axes.set_ylim(max(len(means), 1) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_title("share excited: networks\nmeasured so far, 95 %", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def measure(context: Context) -> Outcome:
    """Measure the coherence of one network's late images, and compare it with what is stored of the others."""
    table = measured(context, made(context))
    found = findings(context, table)
    means = known(context, found[0])
    random = context.network.name if context.network.weights.startswith("random:") else None
    verdict, why = judged(means, random)
    return Outcome(table, found, verdict, conclusion(context, found, why), {"": figure(context, table, means)})


if __name__ == "__main__":
    start(STUDY, measure)
