"""Does one more neuron of a feature change the whole image, or only its own field?

    python -m analyses.neuron_growth

Reading-order prefixes ``layer:f:..k`` of a feature's grid are maximised from the same noise, each from the start, and
the image of k + 1 neurons is compared with that of k. All steps are plain and without blur or clamp: a step is a
constant times the gradient (the constant brings the first gradient of the whole feature to the same size for all
features). So in a network that is linear from image to neuron the added neuron changes nothing outside its receptive
field, and inside it what it changes alone. That network is put to the same test: the linear twin, without ReLUs and
maxima.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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
    format_interval,
    format_value,
    mean_or_undefined,
    value_finding,
)
from analyses.support.image_sets import COLUMNS, ImageSet, image_size, make_images, tidy_rows, values_by_channel
from analyses.support.plotting import draw_layer_legend, draw_strips_by_layer, panels
from analyses.support.study import Context, Outcome, Study, Verdict, run_study
from featmap import Network
from featmap.network.receptive_field import ReceptiveField
from featmap.optimize.recipe import Octave, Recipe
from featmap.plotting.sheets import contact_sheet
from featmap.plotting.style import FAINT, encode_webp, house_style, thumbnail
from featmap.report.encode import encode_animation
from featmap.rng import generator

STEPS, FULL_STEPS, FULL = 24, 300, 299
RATE, BLUR = 0.02, (1.0, 0.3)
ADDED, TWINS = 2, 4
"""Neurons added to each feature; features of the linear twin."""
LARGEST_COVERAGE, OWN_SHARE = 0.8, 0.95
"""Share of the image that an added neuron's field may cover; share of its own change that makes its own pixels."""
FRAMES, SHOWN, SIDE = 48, 6, 110

STUDY = Study(
    "neuron_growth",
    section="Feature Visualization from First Principles",
    claim="A feature's neurons optimised in reading order, one more at a time, each change the whole image and not "
    "only their own field, to which they would keep if they were linearly independent.",
    measured="the share of the change that one more neuron makes (its energy) which lies outside the neuron's "
    "receptive field, and outside the pixels that the neuron changes alone; beside it the same for the difference of "
    "two seeds (everything changed) and for the network without ReLUs and maxima (nothing may); two neurons added to "
    "each feature, drawn at random among those whose field leaves a fifth of the image",
    rule="the claim holds if in every layer the share outside the field lies above that without ReLUs and maxima and, "
    "paired by feature, above half of that between two seeds (two at least are made), in part if it does so in one of "
    "the layers or only lies above the first",
    full="299 pixels and 300 steps",
    layers={
        "reference": ("inception3b", "inception4a"),
        "googlenet": ("inception3b", "inception4a"),
        "inception_v3": ("Mixed_5b", "Mixed_5d"),
        "resnet50": ("layer2.0", "layer2.3"),
    },
)
NETWORK, TWIN = "network", "linear twin"
GRADIENT = "has a gradient"
LEFT = {
    "outside the field": "changed in nothing by the added neurons, or seen whole by them",
    "outside the field, two seeds": "seen whole by the added neurons",
    "beyond its own pixels": "changed in nothing by the added neurons, alone or after others",
}
"""Why a feature that has a gradient has no value, by what is measured."""


def plain_recipe(size: int, steps: int, rate: float = RATE, sigma: tuple[float, float] = (0.0, 0.0)) -> Recipe:
    """Return the recipe of plain steps: a constant times the gradient."""
    octave = Octave(steps, (rate, rate), sigma, size)
    return Recipe("plain", (octave,), optimiser="gradient", std=0.1, clamp="never", rescue=0.0)


@dataclass(frozen=True, eq=False)
class Growth:
    """What one more neuron did, for N added neurons over S seeds.

    `before`, `after` and `alone` are the images of the prefix without it, with it, and of the neuron by itself;
    `fields` the receptive fields of their channels and `places` where in the grid they lie.
    """

    layer: str
    before: ImageSet
    after: ImageSet
    alone: ImageSet
    fields: list[ReceptiveField]
    places: list[tuple[int, int]]

    @property
    def changes(self) -> np.ndarray:
        """What the added neuron changed: S x N x 3 x H x W."""
        found: np.ndarray = self.after.images - self.before.images
        return found

    @property
    def bounds(self) -> list[tuple[slice, slice]]:
        """The rows and columns that each added neuron sees."""
        size = self.after.images.shape[-1]
        return [f.bounds(*place, size, size) for f, place in zip(self.fields, self.places, strict=True)]


def measure(context: Context, size: int | None = None, steps: int = STEPS) -> Outcome:
    """Add neurons to prefixes and measure where the image changes."""
    size, steps = (FULL, FULL_STEPS) if context.full else (size or image_size(context), steps)
    networks = (
        (NETWORK, context.network, context.features, max(2, context.seeds)),
        (TWIN, linear_twin(context.network), TWINS, 1),
    )
    parts, grown = [pd.DataFrame(columns=COLUMNS)], []
    for layer in context.layers:
        for name, network, features, seeds in networks:
            drawn = context.draw_channels(layer)[:features]
            scales = gradient_scales(context, network, layer, drawn, size)
            parts.append(_gradient_rows(layer, drawn, scales, name))
            one = _grow(context, network, layer, scales, size, steps, seeds)
            if one is None:
                context.log(f"{name}, {layer}: undefined at {size} pixels: one neuron a feature, or no gradient")
                continue
            context.log(f"{name}, {layer}: {len(one.places)} neurons added to {len(scales)} features with a gradient")
            parts += _growth_rows(one, name)
            grown += [one] if name == NETWORK else []
    rows = pd.concat([p for p in parts if len(p)] or parts, ignore_index=True)
    found = _collect_findings(rows, context.layers)
    verdict, conclusion = judge(found, context.layers)
    figures: dict[str, Figure | bytes] = {"": draw_figure(rows, context.layers)}
    if grown:
        figures |= _pictures(context, grown[-1], size, steps)
    return Outcome(rows, list(found.values()), verdict, conclusion, figures)


def gradient_scales(
    context: Context, network: Network, layer: str, channels: Sequence[int], size: int
) -> dict[int, float]:
    """Return the RMS over the image of each feature's gradient on the first seed's noise; not of those that have none.

    A plain step of size 1 is the gradient itself.
    """
    made = make_images(
        context,
        [f"{layer}:{f}" for f in channels],
        plain_recipe(size, 1, 1.0),
        layer,
        "gauge",
        seeds=1,
        network=network,
    )
    rms = np.sqrt(np.square(made.changes[0].astype(np.float64)).mean((1, 2, 3)))
    return {f: float(r) for f, r in zip(channels, rms, strict=True) if np.isfinite(r) and r > 0}


def _gradient_rows(layer: str, drawn: Sequence[int], scales: Mapping[int, float], name: str) -> pd.DataFrame:
    """Return which of the drawn features have a gradient on the first seed's noise, as tidy rows."""
    given = {"measure": GRADIENT, "layer": layer, "feature": [str(f) for f in drawn], "recipe": name, "against": ""}
    rows = pd.DataFrame(given | {"seed": pd.array([pd.NA] * len(drawn), dtype="Int64")})
    return rows.assign(value=[float(f in scales) for f in drawn])[list(COLUMNS)]


def choose_added(network: Network, layer: str, channel: int, size: int) -> list[int]:
    """Return which neurons, in reading order from 0, are added to a feature: never the first, which has no prefix."""
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
    made = make_images(context, unique, plain_recipe(size, steps), layer, "growth", seeds=seeds, network=network)
    n, at = len(chosen), np.array([unique.index(u) for u in units])
    every = replace(made, **{k: getattr(made, k)[:, at] for k in ("images", "activation", "live")}, units=tuple(units))
    before, after, alone = (every.subset(slice(k * n, (k + 1) * n)) for k in range(3))
    fields = [trace.field(layer, f) for f, _ in chosen]
    return Growth(layer, before, after, alone, fields, [(k // width, k % width) for _, k in chosen])


def _growth_rows(grown: Growth, name: str) -> list[pd.DataFrame]:
    """Return what each added neuron changed, as tidy rows; neurons that changed nothing have no shares."""
    alone = replace(grown.alone, live=np.ones_like(grown.alone.live))
    size = grown.after.images.shape[-1]
    rest = np.array(
        [1 - extents.field_coverage(f, *p, size, size) for f, p in zip(grown.fields, grown.places, strict=True)]
    )
    outside = np.stack([extents.outside_share(c, grown.bounds) for c in grown.changes])
    outside[:, rest <= 0] = np.nan
    beyond = np.stack([_share_beyond_own(c, own) for c, own in zip(grown.changes, grown.alone.changes, strict=True)])
    moved = (extents.change_energy(grown.changes.reshape(-1, *grown.changes.shape[2:])).sum((1, 2)) > 0).astype(float)
    found = {
        "outside the field": outside,
        "beyond its own pixels": beyond,
        "change elsewhere": _movement_elsewhere(grown, rest),
        "changes something": moved.reshape(outside.shape),
        "area outside the field": rest,
    }
    if len(grown.changes) > 1:
        seeds = np.roll(grown.after.changes, 1, axis=0) - grown.after.changes
        share = np.stack([extents.outside_share(c, grown.bounds) for c in seeds])
        share[:, rest <= 0] = np.nan
        found["outside the field, two seeds"] = share
    return [tidy_rows(what, grown.layer, alone, values, name) for what, values in found.items()]


def _share_beyond_own(changes: np.ndarray, alone: np.ndarray) -> np.ndarray:
    """Return the share of each change's energy outside the pixels that hold `OWN` of what the neuron changes alone."""
    held = extents.change_energy(changes)
    found = np.full(len(held), np.nan)
    for k, (one, own) in enumerate(zip(held, alone, strict=True)):
        pixels_ = extents.energy_region(own, OWN_SHARE)
        if one.sum() > 0 and pixels_.any():
            found[k] = one[~pixels_].sum() / one.sum()
    return found


def _movement_elsewhere(grown: Growth, rest: np.ndarray) -> np.ndarray:
    """Return how far the image outside the field moved: its change over what was there before, root of energies."""
    found = np.full(grown.changes.shape[:2], np.nan)
    for s, (change, before) in enumerate(zip(grown.changes, grown.before.changes, strict=True)):
        now, then = (extents.change_energy(x) for x in (change, before))
        for k, bounds in enumerate(grown.bounds):
            total = then[k].sum() - then[k][bounds].sum()
            if rest[k] > 0 and total > 0:
                found[s, k] = np.sqrt(max(0.0, now[k].sum() - now[k][bounds].sum()) / total)
    return found


def _count_phrase(rows: pd.DataFrame, layer: str, what: str) -> str:
    """Return of how many drawn features a figure is, and why the others are left out."""
    drawn = _values_of(rows, GRADIENT, layer)
    dead = int((drawn == 0).sum())
    left = len(drawn) - dead - len(_values_of(rows, what, layer))
    why = [f"{dead} without a gradient on noise"] * (dead > 0) + [f"{left} {LEFT[what]}"] * (left > 0)
    return f"; of {len(drawn)} drawn" + (f" ({'; '.join(why)})" if why else "")


def _values_of(rows: pd.DataFrame, what: str, layer: str, network: str = NETWORK) -> pd.Series:
    """Return one figure of a layer's features, over their neurons and seeds."""
    values = values_by_channel(rows, what, network)
    return values[values.index.get_level_values(0) == layer]


def _collect_findings(rows: pd.DataFrame, layers: Sequence[str]) -> dict[str, Finding]:
    found, linear = [], "the same without ReLUs and maxima"
    for layer in layers:
        outside, seeds = (_values_of(rows, f"outside the field{w}", layer) for w in ("", ", two seeds"))
        beyond, area = (
            _values_of(rows, "beyond its own pixels", layer),
            _values_of(rows, "area outside the field", layer),
        )

        def add(name: str, values: pd.Series, words: str, of: str = "", layer: str = layer) -> None:
            said = _count_phrase(rows, layer, of) if of else ""
            within = ANY if name == "excess" else POSITIVE if name.startswith("elsewhere") else SHARE
            found.append(mean_or_undefined(f"{name}:{layer}", values, f"{layer}: {words}{said}", "", within))

        add("outside", outside, "share of the added neuron's change outside its receptive field", "outside the field")
        add("outside linear", _values_of(rows, "outside the field", layer, TWIN), linear)
        add("outside seeds", seeds, "the same for the difference of two seeds", "outside the field, two seeds")
        add("excess", (outside - seeds / 2).dropna(), "the first less half of that between seeds (paired by feature)")
        add("area", area, "share of the image outside the field")
        words = f"share of the change outside the pixels with {OWN_SHARE:.0%} of its change alone"
        add("beyond", beyond, words, "beyond its own pixels")
        add("beyond linear", _values_of(rows, "beyond its own pixels", layer, TWIN), linear)
        words = "change outside the field over what the image was there, less the null image"
        add("elsewhere", _values_of(rows, "change elsewhere", layer), words)
        add("elsewhere linear", _values_of(rows, "change elsewhere", layer, TWIN), linear)
        add("moves", _values_of(rows, "changes something", layer), "share of added neurons that change anything")
        drawn = _values_of(rows, GRADIENT, layer)
        words = f"{layer}: drawn features without a gradient on noise, left out"
        found.append(value_finding(f"dead:{layer}", float((drawn == 0).sum()), len(drawn), words))
    return {finding.name: finding for finding in found}


def judge_layer(found: Mapping[str, Finding], layer: str) -> Verdict:
    """Return what one layer says.

    It holds if the share outside the field lies above the linear twin's and, paired by feature, above half of what it
    is between two seeds (the whole image changed); in part if only above the twin's; not if it lies below that half.
    """
    outside, linear, excess = (found[f"{k}:{layer}"] for k in ("outside", "outside linear", "excess"))
    if outside.low is None or outside.count < 2:
        return "not decided"
    if outside.low > max(linear.high or 0.0, 1e-6):
        return "holds" if excess.count > 1 and (excess.low or 0) > 0 else "holds in part"
    return "does not hold" if excess.count > 1 and (excess.high or 0) < 0 else "not decided"


def judge(found: Mapping[str, Finding], layers: Sequence[str]) -> tuple[Verdict, str]:
    """Return verdict and conclusion: of all layers if they agree, else in part if any holds or does so in part."""
    said = {layer: judge_layer(found, layer) for layer in layers}
    some = any(v in ("holds", "holds in part") for v in said.values())
    alike = next(iter(said.values())) if len(set(said.values())) == 1 else None
    verdict: Verdict = alike or ("holds in part" if some else "not decided")

    def of(name: str, form: str) -> str:
        return " and ".join(_format(found[f"{name}:{layer}"], form) for layer in layers)

    return verdict, (
        f"In {' and '.join(layers)} one more neuron makes {of('outside', '.0%')} of its change outside its receptive "
        f"field (without ReLUs and maxima {of('outside linear', '.0e')}), which lies {of('excess', '+.0%')} above half "
        f"of what it is between two seeds, and {of('beyond', '.0%')} outside the pixels that it changes alone; outside "
        f"its field the image moves by {of('elsewhere', '.0%')} of what it was."
    )


def _format(finding: Finding, form: str) -> str:
    """Return a finding for a sentence, with its interval if it is of several features and no power of ten."""
    return (
        format_value(finding.value, form) if finding.count < 2 or form.endswith("e") else format_interval(finding, form)
    )


@house_style
def draw_figure(rows: pd.DataFrame, layers: Sequence[str]) -> Figure:
    """Draw the shares outside the field and outside a neuron's own pixels, and how far the rest of the image moves."""
    figure, (left, middle, right) = panels(
        (
            "Share of the change outside the added neuron's receptive field",
            "Share outside the pixels that it changes alone (line: 5 %)",
            "Change outside the field, over what the image was there",
        ),
        height=3.6,
        widths=(1.3, 1.0, 1.0),
    )
    both = (("network", NETWORK), ("without ReLUs and maxima", TWIN))
    groups = [(words, values_by_channel(rows, "outside the field", name)) for words, name in both]
    groups.insert(1, ("two seeds", values_by_channel(rows, "outside the field, two seeds", NETWORK)))
    draw_strips_by_layer(left, groups, layers, "share of energy", SHARE)
    for axes, what, up, within in (
        (middle, "beyond its own pixels", "share of energy", SHARE),
        (right, "change elsewhere", "ratio of lengths", POSITIVE),
    ):
        draw_strips_by_layer(axes, [(w, values_by_channel(rows, what, name)) for w, name in both], layers, up, within)
    middle.axhline(1 - OWN_SHARE, color=FAINT, linewidth=0.8)
    for axes in (left, middle, right):
        axes.set_ylim(bottom=-0.02)
    draw_layer_legend(figure, layers)
    return figure


def _pictures(context: Context, grown: Growth, size: int, steps: int) -> dict[str, bytes]:
    """Return the strip and the animation of one feature's prefixes, made with blur so that patterns can be seen."""
    layer = context.network.layer(grown.layer, size)
    unit = grown.alone.units[0]
    weighted, channel = unit.rsplit(":", 2)[0], int(unit.rsplit(":", 3)[1])
    total = layer.height * layer.width
    counts = np.unique(np.linspace(1, total, min(total, FRAMES)).round().astype(int)).tolist()
    recipe = plain_recipe(size, steps, sigma=BLUR)
    made = make_images(context, [f"{weighted}:..{k}" for k in counts], recipe, grown.layer, "frames", seeds=1)
    seen = context.network.trace(size).field(grown.layer, channel)
    images = made.images[0]
    change = np.diff(images, axis=0, prepend=made.nulls)
    strength = np.sqrt(extents.change_energy(change))
    top = float(np.quantile(strength, 0.995)) or 1.0
    pairs = []
    for image, held, k in zip(images, strength, counts, strict=True):
        shade = np.repeat(1 - np.clip(held / top, 0, 1)[None], 3, axis=0)
        place = ((k - 1) // layer.width, (k - 1) % layer.width)
        pairs.append((np.clip(image, 0, 1), draw_frame(shade, seen.bounds(*place, size, size))))
    frames = [np.concatenate([image, np.ones((3, size, 4)), shade], axis=2) for image, shade in pairs]
    name = f"{grown.layer}:{channel}"
    chosen = np.unique(np.linspace(0, len(counts) - 1, SHOWN).round().astype(int)).tolist()
    return {
        "-strip.webp": encode_webp(_draw_strip(name, [pairs[i] for i in chosen], [counts[i] for i in chosen]), dpi=100),
        "-growth.webp": encode_animation(frames, 250, 2 * 150, quality=55),
    }


def draw_frame(image: np.ndarray, bounds: tuple[slice, slice]) -> np.ndarray:
    """Return an image, 3 x H x W, with an orange frame around some rows and columns."""
    found, colour = image.copy(), np.array([0.9, 0.5, 0.0])[:, None]
    rows, columns = bounds
    for edge in (rows.start, rows.stop - 1):
        found[:, edge, columns] = colour
    for edge in (columns.start, columns.stop - 1):
        found[:, rows, edge] = colour
    return found


@house_style
def _draw_strip(name: str, pairs: Sequence[tuple[np.ndarray, np.ndarray]], counts: Sequence[int]) -> Figure:
    images = [thumbnail(pair[k], SIDE).transpose(2, 0, 1) / 255 for k in (0, 1) for pair in pairs]
    labels = [f"{name}:..{k}" for k in counts] + [f"neuron {k}" for k in counts]
    captions = [f"{k} neuron{'s' * (k > 1)}" for k in counts] + ["change by one more frame"] * len(counts)
    title = "Neurons in reading order; below, what changed (frame: the last one's field)"
    return contact_sheet(np.stack(images), labels, captions=captions, groups=None, title=title, columns=len(counts))


if __name__ == "__main__":
    run_study(STUDY, measure)
