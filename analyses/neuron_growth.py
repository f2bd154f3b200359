"""Measure whether one more neuron of a feature changes the whole image, or only its own field.

    python -m analyses.neuron_growth

Reading-order prefixes ``layer:f:..k`` of a feature's grid are maximised from the same noise, each from the start, and
the image of k + 1 neurons is compared with that of k. All steps are plain, without blur or clamp: a step is a constant
times the gradient (the constant gives the first gradient of the whole feature the same size for all features). In a
network that is linear from image to neuron, the added neuron therefore changes nothing outside its receptive field, and
inside it what it changes alone. Such a network is measured as well: the linear twin, without ReLUs and maxima.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analyses.formulas import extents
from analyses.formulas.linear import linear_twin
from analyses.support.findings import (
    ANY,
    POSITIVE,
    SHARE,
    Finding,
    mean_or_undefined,
    value_finding,
)
from analyses.support.growth import OWN_SHARE, Growth, movement_elsewhere, share_beyond_own
from analyses.support.growth_verdict import AREA, LITTLE_FREE, MOVED, NETWORK, case_findings, judge
from analyses.support.image_sets import COLUMNS, image_size, make_images, tidy_rows, values_by_channel
from analyses.support.plotting import draw_layer_legend, draw_strips_by_layer, panels
from analyses.support.study import Context, Outcome, StoredResult, Study, Verdict
from analyses.support.study_command import run_study
from analyses.support.units import named_rows
from featmap import Network
from featmap.optimize.recipe import Octave, Recipe
from featmap.plotting.sheets import Sheet, contact_sheet
from featmap.plotting.style import FAINT, encode_webp, house_style, thumbnail
from featmap.report.encode import encode_animation
from featmap.rng import generator

STEPS, FULL_STEPS, FULL = 24, 300, 299
RATE, BLUR = 0.02, (1.0, 0.3)
ADDED, TWINS = 2, 4
"""Neurons added to each feature; features of the linear twin."""
ENOUGH, CANDIDATES = 2 / 3, 4
"""Least share of drawn features with a gradient; otherwise up to so many times as many are drawn."""
LARGEST_COVERAGE = 1 - LITTLE_FREE
"""Most of the image that an added neuron's field may cover."""
FRAMES, SHOWN, SIDE = 48, 6, 110

STUDY = Study(
    "neuron_growth",
    section="Feature Visualization from First Principles",
    claim="A feature's neurons maximised in reading order, one more at a time, each change the whole image and not "
    "only their own field, to which their change would be confined if they were linearly independent.",
    measured="the share of the energy of the change by one more neuron that is outside the neuron's receptive field, "
    "and outside the pixels that the neuron changes alone; the same for the difference of two seeds (everything "
    "changes; at least two are run, also with `--seeds 1`) and for the network without ReLUs and maxima (nothing "
    "can); two neurons added to each feature, drawn at random among those whose field leaves a fifth of the image "
    "free, where any does. Where over a third of the drawn features have no gradient on noise, others are drawn. An "
    "added neuron that changes nothing has no such share: how many change anything is counted apart",
    rule="in a layer the change reaches the whole image if the interval of the share outside the field (two features "
    "or more) is above that without ReLUs and maxima and, paired by feature, above half of that between two seeds (at "
    "least two are run); it does so in part if the share is only above that without ReLUs and maxima; it does not if "
    "the share is not above that, and its interval, paired, is below half of that between two seeds; otherwise this is "
    "not decided. Since the claim is of each neuron, most added neurons have to change anything: they do if Wilson's "
    "interval of the share of added neurons that change anything, with each feature counted once, is above a half "
    "(which takes four features or more), and do not if it is at or below a half; otherwise this is not decided. In a "
    "layer the claim holds if the change reaches the whole image and most added neurons "
    "change anything; it holds in part if the change reaches the whole image, or does so in part, whatever their "
    "number; it does not hold if the change does not reach it, or if this is not decided and most change nothing; "
    "otherwise it is not decided. The verdict is that of the layers if it is the same in all; if not, the claim holds "
    "in part if it does so in any of them, and is not decided otherwise",
    units={"inception_v3": ("Mixed_6b:654", "Mixed_6b:415")},
    full="299 pixels and 300 steps",
    layers={
        "reference": ("inception3b", "inception4a"),
        "googlenet": ("inception3b", "inception4a"),
        "squeezenet": ("features.4", "features.6"),
        "inception_v3": ("Mixed_5b", "Mixed_6b"),
        "resnet50": ("layer2.0", "layer2.3"),
    },
)
TWIN = "linear twin"
GRADIENT = "has a gradient"
LEFT = {
    "outside the field": "not changed by the added neurons, or covered by their fields",
    "outside the field, two seeds": "covered by the fields of the added neurons",
    "beyond its own pixels": "not changed by the added neurons, alone or after others",
}
"""Why a feature with a gradient has no value, by quantity."""


def plain_recipe(size: int, steps: int, rate: float = RATE, sigma: tuple[float, float] = (0.0, 0.0)) -> Recipe:
    """Build the recipe of plain steps: a constant times the gradient."""
    octave = Octave(steps, (rate, rate), sigma, size)
    return Recipe("plain", (octave,), optimiser="gradient", std=0.1, clamp="never", rescue=0.0)


def measure(context: Context, size: int | None = None, steps: int = STEPS) -> Outcome:
    """Add neurons to prefixes and measure where the image changes."""
    size, steps = (context.size or FULL, FULL_STEPS) if context.full else (size or image_size(context), steps)
    networks = (
        (NETWORK, context.network, context.features, max(2, context.seeds)),
        (TWIN, linear_twin(context.network), TWINS, 1),
    )
    parts, grown = [pd.DataFrame(columns=COLUMNS)], []
    for layer in context.layers:
        for name, network, features, seeds in networks:
            drawn, scales = draw_with_gradient(context, network, layer, features, size)
            parts.append(_gradient_rows(layer, drawn, scales, name))
            one = _grow(context, network, layer, scales, size, steps, seeds)
            if one is None:
                context.log(f"{name}, {layer}: undefined at {size} pixels: one neuron per feature, or no gradient")
                continue
            context.log(
                f"{name}, {layer}: {len(one.positions)} neurons added to {len(scales)} features with a gradient"
            )
            parts += _growth_rows(one, name)
            grown += [one] if name == NETWORK else []
    rows = pd.concat([p for p in parts if len(p)] or parts, ignore_index=True)
    findings = _collect_findings(rows, context.layers)
    named = [
        ("outside the field", NETWORK, "", "share of the change outside the added neuron's field", ""),
        ("beyond its own pixels", NETWORK, "", "share of the change outside the pixels that it changes alone", ""),
        (GRADIENT, NETWORK, "", "has a gradient on noise (1: yes, 0: no)", ""),
    ]
    findings |= {f.name: f for f in named_rows(context, rows, named)}
    findings |= {f.name: f for f in case_findings(rows, context.layers, context.units)}
    verdict, conclusion = judge(findings, context.layers, max(2, context.seeds))
    figures: dict[str, Figure | bytes] = {"": draw_figure(rows, context.layers)}
    if grown:
        figures |= _pictures(context, grown[-1], size, steps)
    return Outcome(rows, list(findings.values()), verdict, conclusion, figures)


def draw_with_gradient(
    context: Context, network: Network, layer: str, features: int, size: int
) -> tuple[list[int], dict[int, float]]:
    """Draw features, and further ones where many have no gradient on noise.

    Where fewer than `ENOUGH` of those drawn have a gradient, others are drawn until as many as requested have one, up
    to `CANDIDATES` times their number.

    Parameters
    ----------
    context : Context
        The study.
    network : Network
        The network or its linear twin.
    layer : str
        Name of the layer.
    features : int
        Number of features.
    size : int
        Size of the images, in pixels.

    Returns
    -------
    drawn : list of int
        All channels drawn.
    scales : dict of int to float
        RMS of the gradient of those that have one.
    """
    drawn = context.draw_channels(layer)
    drawn = drawn if features >= context.features else drawn[:features]
    scales = gradient_scales(context, network, layer, drawn, size)
    if len(scales) >= ENOUGH * len(drawn):
        return drawn, scales
    others = [c for c in context.draw_channels(layer, CANDIDATES * features) if c not in drawn]
    found = gradient_scales(context, network, layer, others, size) if others else {}
    for channel in generator("further", layer, size).permutation(others).tolist():
        if len(scales) >= features:
            break
        drawn.append(channel)
        scales |= {channel: found[channel]} if channel in found else {}
    return drawn, scales


def gradient_scales(
    context: Context, network: Network, layer: str, channels: Sequence[int], size: int
) -> dict[int, float]:
    """Measure the RMS of each feature's gradient on the first seed's noise.

    A plain step of size 1 is the gradient itself. Features without a gradient are left out.
    """
    image_set = make_images(
        context,
        [f"{layer}:{f}" for f in channels],
        plain_recipe(size, 1, 1.0),
        layer,
        "gauge",
        seeds=1,
        network=network,
    )
    rms = np.sqrt(np.square(image_set.changes[0].astype(np.float64)).mean((1, 2, 3)))
    return {f: float(r) for f, r in zip(channels, rms, strict=True) if np.isfinite(r) and r > 0}


def _gradient_rows(layer: str, drawn: Sequence[int], scales: Mapping[int, float], name: str) -> pd.DataFrame:
    """Arrange which drawn features have a gradient on the first seed's noise as rows."""
    columns = {"measure": GRADIENT, "layer": layer, "feature": [str(f) for f in drawn], "recipe": name, "against": ""}
    rows = pd.DataFrame(columns | {"seed": pd.array([pd.NA] * len(drawn), dtype="Int64")})
    return rows.assign(value=[float(f in scales) for f in drawn])[list(COLUMNS)]


def choose_added(network: Network, layer: str, channel: int, size: int) -> list[int]:
    """Choose the neurons added to a feature, in reading order from 0.

    The first neuron, which has no prefix, is never chosen.
    """
    shape, seen = network.layer(layer, size), network.trace(size).field(layer, channel)
    every = range(1, shape.height * shape.width)
    narrow = [
        k
        for k in every
        if extents.field_coverage(seen, k // shape.width, k % shape.width, size, size) <= LARGEST_COVERAGE
    ]
    chosen = narrow or list(every)
    rng = generator("growth", layer, channel, size)
    return sorted(rng.choice(chosen, min(ADDED, len(chosen)), replace=False).tolist()) if chosen else []


def _grow(
    context: Context, network: Network, layer: str, scales: Mapping[int, float], size: int, steps: int, seeds: int
) -> Growth | None:
    """Add the chosen neurons to prefixes of each feature; None where there is nothing to add."""
    width, trace = network.layer(layer, size).width, network.trace(size)
    chosen = [(f, k) for f in scales for k in choose_added(network, layer, f, size)]
    if not chosen:
        return None
    weight = {f: f"{1 / scale:.6g} * {layer}:{f}" for f, scale in scales.items()}
    units = [
        *(f"{weight[f]}:..{k}" for f, k in chosen),
        *(f"{weight[f]}:..{k + 1}" for f, k in chosen),
        *(f"{weight[f]}:{k // width}:{k % width}" for f, k in chosen),
    ]
    unique = list(dict.fromkeys(units))
    image_set = make_images(context, unique, plain_recipe(size, steps), layer, "growth", seeds=seeds, network=network)
    n, at = len(chosen), np.array([unique.index(u) for u in units])
    every = replace(
        image_set, **{k: getattr(image_set, k)[:, at] for k in ("images", "activation", "live")}, units=tuple(units)
    )
    before, after, alone = (every.subset(slice(k * n, (k + 1) * n)) for k in range(3))
    fields = [trace.field(layer, f) for f, _ in chosen]
    return Growth(layer, before, after, alone, fields, [(k // width, k % width) for _, k in chosen])


def _growth_rows(grown: Growth, name: str) -> list[pd.DataFrame]:
    """Measure the change by each added neuron; a neuron that changes nothing has no shares."""
    alone = replace(grown.alone, live=np.ones_like(grown.alone.live))
    size = grown.after.images.shape[-1]
    rest = np.array(
        [1 - extents.field_coverage(f, *p, size, size) for f, p in zip(grown.fields, grown.positions, strict=True)]
    )
    outside = np.stack([extents.outside_share(c, grown.bounds) for c in grown.changes])
    outside[:, rest <= 0] = np.nan
    beyond = np.stack([share_beyond_own(c, own) for c, own in zip(grown.changes, grown.alone.changes, strict=True)])
    moved = (extents.change_energy(grown.changes.reshape(-1, *grown.changes.shape[2:])).sum((1, 2)) > 0).astype(float)
    quantities = {
        "outside the field": outside,
        "beyond its own pixels": beyond,
        "change elsewhere": movement_elsewhere(grown, rest),
        MOVED: moved.reshape(outside.shape),
        AREA: rest,
    }
    if len(grown.changes) > 1:
        seeds = np.roll(grown.after.changes, 1, axis=0) - grown.after.changes
        share = np.stack([extents.outside_share(c, grown.bounds) for c in seeds])
        share[:, rest <= 0] = np.nan
        quantities["outside the field, two seeds"] = share
    return [tidy_rows(what, grown.layer, alone, values, name) for what, values in quantities.items()]


def _count_phrase(rows: pd.DataFrame, layer: str, what: str) -> str:
    """Describe of how many drawn features a finding is, and why others are left out."""
    drawn = _values_of(rows, GRADIENT, layer)
    dead = int((drawn == 0).sum())
    left = len(drawn) - dead - len(_values_of(rows, what, layer))
    reasons = [f"{dead} without a gradient on noise"] * (dead > 0) + [f"{left} {LEFT[what]}"] * (left > 0)
    return f"; of {len(drawn)} drawn" + (f" ({'; '.join(reasons)})" if reasons else "")


def _values_of(rows: pd.DataFrame, what: str, layer: str, network: str = NETWORK) -> pd.Series:
    """Look up one quantity of a layer's features, averaged over neurons and seeds."""
    values = values_by_channel(rows, what, network)
    return values[values.index.get_level_values(0) == layer]


def _collect_findings(rows: pd.DataFrame, layers: Sequence[str]) -> dict[str, Finding]:
    """Collect the findings by name."""
    findings, linear = [], "the same without ReLUs and maxima"
    for layer in layers:
        outside, seeds = (_values_of(rows, f"outside the field{w}", layer) for w in ("", ", two seeds"))
        beyond, area = (
            _values_of(rows, "beyond its own pixels", layer),
            _values_of(rows, AREA, layer),
        )

        def add(name: str, values: pd.Series, words: str, of: str = "", layer: str = layer) -> None:
            count = _count_phrase(rows, layer, of) if of else ""
            within = ANY if name == "excess" else POSITIVE if name.startswith("elsewhere") else SHARE
            findings.append(mean_or_undefined(f"{name}:{layer}", values, f"{layer}: {words}{count}", "", within))

        add("outside", outside, "share of the added neuron's change outside its receptive field", "outside the field")
        add("outside linear", _values_of(rows, "outside the field", layer, TWIN), linear)
        add("outside seeds", seeds, "the same for the difference of two seeds", "outside the field, two seeds")
        add("excess", (outside - seeds / 2).dropna(), "the first minus half of that between seeds (paired by feature)")
        add("area", area, "share of the image outside the field")
        words = f"share of the change outside the pixels with {OWN_SHARE:.0%} of the neuron's change alone"
        add("beyond", beyond, words, "beyond its own pixels")
        add("beyond linear", _values_of(rows, "beyond its own pixels", layer, TWIN), linear)
        words = "change outside the field relative to what the image was there, minus the null image"
        add("elsewhere", _values_of(rows, "change elsewhere", layer), words)
        add("elsewhere linear", _values_of(rows, "change elsewhere", layer, TWIN), linear)
        drawn = _values_of(rows, GRADIENT, layer)
        words = f"{layer}: drawn features without a gradient on noise, left out"
        findings.append(value_finding(f"dead:{layer}", float((drawn == 0).sum()), len(drawn), words))
    return {finding.name: finding for finding in findings}


def restate(stored: StoredResult) -> tuple[Verdict, str]:
    """Write verdict and conclusion from the stored result; what earlier results lack is counted in their rows."""
    layers, units = stored.settings["layers"], stored.settings.get("units", [])
    counted = {f.name: f for f in case_findings(stored.rows, layers, units)}
    return judge(counted | stored.findings, layers, max(2, stored.settings["seeds"]))


@house_style
def draw_figure(rows: pd.DataFrame, layers: Sequence[str]) -> Figure:
    """Draw the shares outside the field and the own pixels, and the relative change."""
    figure, (left, middle, right) = panels(
        (
            "Share of the change outside the added neuron's receptive field",
            "Share outside the pixels that it changes alone (line: 5 %)",
            "Change outside the field, relative to the image there",
        ),
        height=3.6,
        widths=(1.3, 1.0, 1.0),
    )
    both = (("network", NETWORK), ("without ReLUs and maxima", TWIN))
    groups = [(words, values_by_channel(rows, "outside the field", name)) for words, name in both]
    groups.insert(1, ("two seeds", values_by_channel(rows, "outside the field, two seeds", NETWORK)))
    draw_strips_by_layer(left, groups, layers, "share of energy", SHARE)
    for axes, what, y_label, within in (
        (middle, "beyond its own pixels", "share of energy", SHARE),
        (right, "change elsewhere", "ratio of lengths", POSITIVE),
    ):
        draw_strips_by_layer(
            axes, [(w, values_by_channel(rows, what, name)) for w, name in both], layers, y_label, within
        )
    middle.axhline(1 - OWN_SHARE, color=FAINT, linewidth=0.8)
    for axes in (left, middle, right):
        axes.set_ylim(bottom=-0.02)
    draw_layer_legend(figure, layers)
    return figure


def _pictures(context: Context, grown: Growth, size: int, steps: int) -> dict[str, bytes]:
    """Draw the strip and the animation of one feature's prefixes.

    These images are made with blur so that patterns can be seen.
    """
    layer = context.network.layer(grown.layer, size)
    unit = grown.alone.units[0]
    weighted, channel = unit.rsplit(":", 2)[0], int(unit.rsplit(":", 3)[1])
    total = layer.height * layer.width
    counts = np.unique(np.linspace(1, total, min(total, FRAMES)).round().astype(int)).tolist()
    recipe = plain_recipe(size, steps, sigma=BLUR)
    prefixes = [f"{weighted}:..{k}" for k in counts]
    image_set = make_images(context, prefixes, recipe, grown.layer, "frames", seeds=1, network=context.network)
    seen = context.network.trace(size).field(grown.layer, channel)
    images = image_set.images[0]
    change = np.diff(images, axis=0, prepend=image_set.nulls)
    strength = np.sqrt(extents.change_energy(change))
    top = float(np.quantile(strength, 0.995)) or 1.0
    pairs = []
    for image, energy, k in zip(images, strength, counts, strict=True):
        shade = np.repeat(1 - np.clip(energy / top, 0, 1)[None], 3, axis=0)
        last = ((k - 1) // layer.width, (k - 1) % layer.width)
        pairs.append((np.clip(image, 0, 1), draw_frame(shade, seen.bounds(*last, size, size))))
    frames = [np.concatenate([image, np.ones((3, size, 4)), shade], axis=2) for image, shade in pairs]
    name = f"{grown.layer}:{channel}"
    chosen = np.unique(np.linspace(0, len(counts) - 1, SHOWN).round().astype(int)).tolist()
    return {
        "-strip.webp": encode_webp(_draw_strip(name, [pairs[i] for i in chosen], [counts[i] for i in chosen]), dpi=100),
        "-growth.webp": encode_animation(frames, 250, 2 * 150, quality=55),
    }


def draw_frame(image: np.ndarray, bounds: tuple[slice, slice]) -> np.ndarray:
    """Draw an orange frame around some rows and columns of an image, `3 x H x W`."""
    framed, colour = image.copy(), np.array([0.9, 0.5, 0.0])[:, None]
    rows, columns = bounds
    for edge in (rows.start, rows.stop - 1):
        framed[:, edge, columns] = colour
    for edge in (columns.start, columns.stop - 1):
        framed[:, rows, edge] = colour
    return framed


@house_style
def _draw_strip(name: str, pairs: Sequence[tuple[np.ndarray, np.ndarray]], counts: Sequence[int]) -> Figure:
    """Draw prefixes and the changes by their last neurons."""
    images = [thumbnail(pair[k], SIDE).transpose(2, 0, 1) / 255 for k in (0, 1) for pair in pairs]
    labels = [f"{name}:..{k}" for k in counts] + [f"neuron {k}" for k in counts]
    captions = [f"{k} neuron{'s' * (k > 1)}" for k in counts] + ["change by one more frame"] * len(counts)
    title = "Neurons in reading order; below, the change (frame: the last neuron's field)"
    return contact_sheet(
        Sheet(images=np.stack(images), labels=labels, captions=captions, title=title, columns=len(counts))
    )


if __name__ == "__main__":
    run_study(STUDY, measure)
