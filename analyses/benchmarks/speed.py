"""How fast a maximising image is made: beside the article's recipe and other tools, and step by step.

    python -m analyses.benchmarks.speed                       # about half an hour on two cores; pip install '.[bench]'
    python -m analyses.benchmarks.speed --features 3 --layer inception5a

In one run, on the same features of one layer, taken in turns: every opponent (`analyses.benchmarks.opponents`) makes a
feature's image with its own defaults and is timed, imports left out; those that can make all features in one batch are
timed once more so, in the first turn. In each turn a descent of ours is timed at each size and in each precision that
counts, in a batch of the recipe's rows, as a map makes them: what it begins and ends with, its steps while dead rows
are looked for (the recipe's first quarter), and its other steps. What a map prepares once, the folded copy of the
network, is told apart. Everyone's final image goes through one protocol: clamped to [0, 1], resized to the size named,
put to the untouched network in float32, without jitter; its activation is the mean of the feature's grid, its
high-frequency share the power above a quarter of the sampling rate.

The headline: the seconds a feature that ours needs to reach the opponent's activation at the opponent's image size with
no more high-frequency share than the opponent's image has, as a ratio of the opponent's seconds of the same turn. A
feature for which that is never reached counts as ratio 0. In a second table the same at our default size, to which the
opponent's image is brought.

Then the chain of improvements of one step at 224 pixels (`analyses.benchmarks.steps`), in turns too, with its share of
the peak measured in the same run. Written: `speed.json`, `speed.png` and a table in `README.md`.
"""

from __future__ import annotations

import copy
import math
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from analyses.benchmarks import records, steps
from analyses.benchmarks.opponents import OPPONENTS, Opponent
from analyses.formulas import spectra
from analyses.support.commands import run
from analyses.support.settings import resolved_recipe
from featmap import Network, channel, image_ops, load, rng
from featmap.cli.console import err
from featmap.errors import FeatmapError
from featmap.optimize.batch import Batches
from featmap.optimize.objective import Objective
from featmap.optimize.parameterization import frame_steps
from featmap.optimize.recipe import Recipe
from featmap.optimize.responses import Probe
from featmap.plotting import style
from featmap.runs import device

FLOAT32, BFLOAT16 = "float32", "bfloat16"
OURS = (("fast", FLOAT32), ("standard", FLOAT32), ("large", FLOAT32), ("standard", BFLOAT16), ("large", BFLOAT16))
"""Recipes of ours that are held against the opponents, each with the precision of its descent."""
SHADES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9")
SIZES = (64, 96, 128, 160, 224)
"""Image sizes whose cost is told."""
TIMED = 8
"""Steps of ours that are timed in each turn; in half of them dead rows are looked for."""


@dataclass(frozen=True)
class Final:
    """An opponent's image of one feature: its turn and seconds, and by size its activation and high-frequency share."""

    opponent: str
    feature: str
    turn: int
    seconds: float
    activation: dict[int, float]
    high: dict[int, float]


@dataclass(frozen=True)
class Course:
    """What one of our recipes reaches at one size, by feature (rows) and number of steps (columns).

    Only steps at that size count, not those of octaves at smaller ones.
    """

    recipe: str
    precision: str
    size: int
    steps: list[int]
    activation: list[list[float]]
    high: list[list[float]]


def judged(network: Network, layer: str, channels: Sequence[int], images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return activation and high-frequency share of some features' images, N x 3 x H x H, by the protocol."""
    clamped = images.float().clamp(0, 1)
    found = Probe(network, max(2, min(16, len(clamped)))).responses(clamped, [layer])[layer]
    return found[np.arange(len(channels)), list(channels)], spectra.high_frequency_share(clamped.numpy())


def judge(network: Network, layer: str, feature: int, image: Tensor, sizes: Sequence[int]) -> dict[int, Any]:
    """Return (activation, high-frequency share) of one image, 1 x 3 x H x H, by the size that it is brought to."""
    found = {}
    for size in sizes:
        activation, high = judged(network, layer, [feature], image_ops.resize(image.float().clamp(0, 1), size))
        found[size] = float(activation[0]), float(high[0])
    return found


def resolved(network: Network, name: str, size: int | None = None, rows: int | None = None, **more: Any) -> Recipe:
    """Return one of our recipes at a size (None: its default), on the CPU."""
    return resolved_recipe(network, name, size, rows=rows, **more)


def course(
    network: Network, layer: str, channels: Sequence[int], name: str, precision: str, size: int, seed: int
) -> Course:
    """Follow one of our recipes to its end, and judge its images at every second step."""
    recipe = resolved(network, name, size, max(2, len(channels)), precision=precision)
    made = Batches(network, torch.device("cpu")).descend(_objectives(layer, channels), recipe, seed, frames=2)
    kept = [
        (step, *judged(network, layer, channels, images))
        for step, images in zip(frame_steps(recipe.steps, 2), made.frames, strict=True)
        if images.shape[2] == size
    ]
    steps_made, activation, high = zip(*kept, strict=True)
    return Course(name, precision, size, list(steps_made), np.array(activation).T.tolist(), np.array(high).T.tolist())


def _objectives(layer: str, channels: Sequence[int]) -> list[Objective]:
    return [channel(layer, c) for c in channels]


@dataclass(frozen=True)
class Pace:
    """Seconds a feature of ours at one size, in a full batch.

    Attributes
    ----------
    ends : what comes before the first step and after the last
    looking : a step while dead rows are looked for
    step : any other
    """

    ends: float
    looking: float
    step: float


def seconds(paces: Mapping[int, Pace], steps_made: int, recipe: Recipe) -> float:
    """Return the seconds a feature of so many steps of a resolved recipe.

    Parameters
    ----------
    paces : in the recipe's precision, by image size; of every octave's size
    """
    looking, whole = math.ceil(recipe.rescue * recipe.steps), paces[recipe.size].ends
    done = 0
    for octave, size in zip(recipe.octaves, recipe.sizes, strict=True):
        here = min(octave.steps, steps_made - done)
        looked = min(here, max(0, looking - done))
        whole += looked * paces[size].looking + (here - looked) * paces[size].step
        done += here
    return whole


def pace(
    batches: Batches,
    layer: str,
    size: int,
    channels: Sequence[int] = (),
    rows: int | None = None,
    precision: str = FLOAT32,
) -> Pace:
    """Time one descent of ours, of these channels and the layer's first ones, in a full batch."""
    recipe = replace(resolved(batches.network, "fast", size, rows, steps=TIMED, precision=precision), rescue=0.5)
    count = batches.network.layer(layer, size).channels
    chosen = [*channels, *(k % count for k in range(recipe.rows))][: recipe.rows]
    stamps = [time.perf_counter()]
    batches.descend(_objectives(layer, chosen), recipe, 0, on_step=lambda *_: stamps.append(time.perf_counter()))
    stamps.append(time.perf_counter())
    took = np.diff(stamps) / recipe.rows  # what comes before and the first step, the others, what comes after
    looking, step = float(np.median(took[1 : TIMED // 2])), float(np.median(took[TIMED // 2 : TIMED]))
    return Pace(max(0.0, float(took[0] - looking)) + float(took[-1]), looking, step)


def first_reached(found: Course, row: int, activation: float, high: float) -> int | None:
    """Return after how many steps ours has an activation and at most a high-frequency share; None if never."""
    for k, step in enumerate(found.steps):
        if step and found.activation[row][k] >= activation and found.high[row][k] <= high:
            return step
    return None


def ratios(
    finals: Sequence[Final],
    found: Course,
    features: Sequence[str],
    paces: Sequence[Mapping[int, Pace]],
    recipe: Recipe,
) -> list[float]:
    """Return each feature's seconds of an opponent over ours, of the same turn, to reach it; 0 where it is not reached.

    Parameters
    ----------
    paces : ours in the course's precision, by turn and image size
    recipe : the course's, at its size
    """
    values = []
    for final in finals:
        size = found.size
        step = first_reached(found, features.index(final.feature), final.activation[size], final.high[size])
        values.append(0.0 if step is None else final.seconds / seconds(paces[final.turn], step, recipe))
    return values


def made(
    opponent: Opponent, network: Network, layer: str, channels: Sequence[int], seed: int, turn: int, own: int
) -> list[Final]:
    """Let an opponent make some features' images on a copy of the network, time it, and judge them."""
    lent = replace(network, module=copy.deepcopy(network.module))
    begun = time.perf_counter()
    images = opponent.make(lent, layer, channels, seed)
    took = (time.perf_counter() - begun) / len(channels)
    finals = []
    for feature, image in zip(channels, images, strict=True):
        values = judge(network, layer, feature, image[None], sorted({own, opponent.size}))
        activation, high = ({s: v[j] for s, v in values.items()} for j in (0, 1))
        finals.append(Final(opponent.name, f"{layer}:{feature}", turn, took, activation, high))
    return finals


def compare(
    network: Network, layer: str, channels: Sequence[int], opponents: Sequence[Opponent], seed: int
) -> dict[str, Any]:
    """Return what all made of the same features: finals, our courses, seconds of a step by size, ratios."""
    own = resolved(network, "fast").size
    batches, features = Batches(network, torch.device("cpu")), [f"{layer}:{c}" for c in channels]
    sizes = sorted({own, *(o.size for o in opponents)})
    known = {(*mine, size): resolved(network, mine[0], size, precision=mine[1]) for mine in OURS for size in sizes}
    needed = sorted({(r.precision, side) for r in known.values() for side in r.sizes})
    finals: list[Final] = []
    paces: dict[str, list[dict[int, Pace]]] = {precision: [] for precision, _ in needed}
    for _, side in needed:  # what is too small is told before anything is made
        network.layer(layer, side)
    for opponent in opponents:
        opponent.warm()
    stamps = [time.perf_counter()]
    for _ in range(2):  # the first prepares the network
        pace(batches, layer, sizes[0])
        stamps.append(time.perf_counter())
    first, second = np.diff(stamps)
    for precision in paces:
        pace(batches, layer, sizes[0], precision=precision)
    for turn, feature in enumerate(channels):
        for k in range(len(opponents)):
            opponent = opponents[(k + turn) % len(opponents)]
            if not (opponent.batched and turn):
                err().print(f"{'all features' if opponent.batched else features[turn]}: {opponent.name}")
                chosen = channels if opponent.batched else [feature]
                finals += made(opponent, network, layer, chosen, seed, turn, own)
        for by_turn in paces.values():
            by_turn.append({})
        for precision, side in needed:
            paces[precision][-1][side] = pace(batches, layer, side, channels, precision=precision)
    courses = []
    for name, kind, size in known:
        err().print(f"ours, {name}, {kind}, {size} pixels")
        courses.append(course(network, layer, channels, name, kind, size, seed))
    rows = []
    for opponent in opponents:
        mine = [f for f in finals if f.opponent == opponent.name]
        for found in courses:
            if found.size in (own, opponent.size):
                which = {"recipe": found.recipe, "precision": found.precision, "size": found.size}
                recipe = known[found.recipe, found.precision, found.size]
                values = ratios(mine, found, features, paces[found.precision], recipe)
                rows.append({"opponent": opponent.name, **which, "ratios": values})
    return {
        "features": features,
        "own_size": own,
        "opponents": [{"name": o.name, "size": o.size, "words": o.words, "version": o.version} for o in opponents],
        "finals": [asdict(f) for f in finals],
        "courses": [asdict(c) | {"identity": known[c.recipe, c.precision, c.size].identity()} for c in courses],
        "paces": {
            precision: [{str(size): asdict(p) for size, p in turn.items()} for turn in turns]
            for precision, turns in paces.items()
        },
        "preparation_s": max(0.0, float(first - second)),
        "rows": rows,
    }


def costs(network: Network, layer: str) -> dict[str, Any]:
    """Return what a step costs by image size, and three steps of so many features at the smallest size."""
    batches = Batches(network, torch.device("cpu"))
    sizes = {size: min((pace(batches, layer, size) for _ in range(2)), key=lambda p: p.step) for size in SIZES}
    count, counts = network.layer(layer, SIZES[0]).channels, {}
    recipe = resolved(network, "fast", SIZES[0], steps=3)
    for features in (n for n in (64, 128, 256, 512) if n <= count):
        begun = time.perf_counter()
        for first in range(0, features, recipe.rows):
            batches.descend(_objectives(layer, range(first, min(features, first + recipe.rows))), recipe, 0)
        counts[features] = time.perf_counter() - begun
    return {
        "by_size": {str(k): asdict(v) for k, v in sizes.items()},
        "by_features": {str(k): v for k, v in counts.items()},
    }


# ---------------------------------------------------------------- what is written


def spread(values: Sequence[float]) -> str:
    """Return the median and the range of some ratios, and how many of them were reached."""
    reached = [v for v in values if v > 0]
    middle = f"**{_times(float(np.median(values)))}**" if len(reached) * 2 > len(values) else "not reached"
    return f"{middle} ({_times(min(values))} to {_times(max(values))}), {len(reached)} of {len(values)}"


def _times(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def table(found: dict[str, Any]) -> str:
    """Return all numbers as Markdown."""
    machine, compared = found["machine"], found["compared"]
    lines = [
        "## Speed",
        "",
        f"`python -m analyses.benchmarks.speed` on {machine['processor']}, {machine['cores']} cores, torch "
        f"{machine['versions']['torch']}; {len(compared['features'])} features of {found['layer']} of "
        f"{found['network']}: {', '.join(compared['features'])}. {found['words']}",
        "",
        "| opponent | image | seconds a feature (median) | what it does |",
        "|---|---|---|---|",
    ]
    for o in compared["opponents"]:
        seconds = np.median([f["seconds"] for f in compared["finals"] if f["opponent"] == o["name"]])
        name = f"{o['name']} {o['version']}".strip()
        lines.append(f"| {name} | {o['size']} px | {seconds:.1f} | {o['words']} |")
    for title, chosen in (
        ("At the opponent's image size", lambda row, o: row["size"] == o["size"]),
        (f"At our default size, {compared['own_size']} pixels", lambda row, o: row["size"] == compared["own_size"]),
    ):
        lines += [
            "",
            f"{title}: the opponent's seconds over ours to reach its activation with no more high frequencies; median "
            "(range), features that reach it.",
            "",
            "| opponent | " + " | ".join(_named(*mine) for mine in OURS) + " |",
            "|---|" + "---|" * len(OURS),
        ]
        for o in compared["opponents"]:
            cells = [
                spread(row["ratios"])
                for mine in OURS
                for row in compared["rows"]
                if row["opponent"] == o["name"] and (row["recipe"], row["precision"]) == mine and chosen(row, o)
            ]
            lines.append(f"| {o['name']} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *_aim_lines(found), "", steps.table(found["steps"]), "", *_cost_lines(found)])


AIMS = {"lucent": (30, 100), "dreamlens": (10, 30), "article-normalised": (15, 50)}
"""How many times sooner ours is meant to be: at the opponent's size, at our own."""
STEP_AIMS = {"float32": (2.7, 3.9, 0.88), "bfloat16": (5.0, 7.0, 0.65)}
"""A step's aims: times faster than the article's and than the whole network's, share of the peak."""


def _values(compared: dict[str, Any], opponent: str, size: int, kind: tuple[str, str]) -> list[float]:
    """Return the ratios of one of our recipes to an opponent at a size."""
    (found,) = (
        r["ratios"]
        for r in compared["rows"]
        if (r["opponent"], r["size"], r["recipe"], r["precision"]) == (opponent, size, *kind)
    )
    return list(found)


def _middle(compared: dict[str, Any], opponent: str, size: int, kind: tuple[str, str]) -> float:
    return float(np.median(_values(compared, opponent, size, kind)))


def _aim_lines(found: dict[str, Any]) -> list[str]:
    """Return what is aimed at beside what is measured, as Markdown."""
    compared, rows = found["compared"], found["steps"]["rows"]
    lines = ["| aim | | measured | |", "|---|---|---|---|"]

    def enter(words: str, aim: float, value: float, text: str = "") -> None:
        verdict = "reached" if value >= aim else "**not reached**"
        lines.append(f"| {words} | {aim:g} | {text or f'{value:.2f}'} | {verdict} |")

    ran = [kind for kind in OURS if any((r["recipe"], r["precision"]) == kind for r in compared["rows"])]
    for o in compared["opponents"]:
        for aim, size in zip(AIMS.get(o["name"], ()), (o["size"], compared["own_size"]), strict=False):
            # our best way against the opponent's best: alone or in its own batches
            names = {o["name"], f"{o['name']}, batched"} & {r["opponent"] for r in compared["rows"]}
            value, kind = max((min(_middle(compared, n, size, k) for n in names), k) for k in ran)
            hardest = min(sorted(names), key=lambda n: _middle(compared, n, size, kind))
            values = _values(compared, hardest, size, kind)
            text = f"{_times(value)} ({_named(*kind)}; {sum(v > 0 for v in values)} of {len(values)} features)"
            enter(f"times sooner than {hardest}, {size} px", aim, value, text)
    whole, article = (rows[k]["ms"] for k in (0, 1))
    for precision, (over_article, over_whole, share) in STEP_AIMS.items():
        row = [r for r in rows if r["in_use"] and r["precision"] == precision][-1]
        enter(f"a step in {precision}, times faster than the article's", over_article, article / row["ms"])
        enter(f"a step in {precision}, times faster than the whole network's", over_whole, whole / row["ms"])
        enter(f"a step in {precision}, share of the peak", share, row["share"])
    return lines


def _named(name: str, precision: str) -> str:
    return f"`{name}`" + ("" if precision == FLOAT32 else f", {precision}")


def _cost_lines(found: dict[str, Any]) -> list[str]:
    sizes, counts = found["costs"]["by_size"], found["costs"]["by_features"]
    steps_of = ", ".join(f"{1000 * v['step']:.1f} ms ({1000 * v['looking']:.1f}) at {k} px" for k, v in sizes.items())
    largest, most = list(sizes.items())[-1]
    return [
        "The whole step of ours as a descent makes it (gradient, optimiser, blur, clamp), a feature in a full batch of "
        "the layer's first ones, and in brackets a step in which dead rows are looked for, as these have it: "
        f"{steps_of}; what a "
        "descent begins and ends with: "
        f"{1000 * most['ends']:.1f} ms a feature at {largest} px; three steps at {next(iter(sizes))} px of "
        + ", ".join(f"{k} features {v:.1f} s" for k, v in counts.items())
        + f". What a map prepares once: {found['compared']['preparation_s']:.1f} s. Peak memory of the comparison, "
        f"opponents included: {found['peak_MB']:,.0f} MB.",
    ]


@style.house_style
def draw(found: dict[str, Any]) -> Figure:
    """Draw what ours has after so many seconds over the opponent's activation, a line a feature; a dot the opponent."""
    compared = found["compared"]
    opponents = compared["opponents"]
    figure, axes = plt.subplots(
        1, len(opponents), figsize=(3 * len(opponents), 3.2), layout="constrained", squeeze=False
    )
    paces = {
        precision: {
            int(size): Pace(*(float(np.median([turn[size][k] for turn in turns])) for k in ("ends", "looking", "step")))
            for size in turns[0]
        }
        for precision, turns in compared["paces"].items()
    }
    for pane, o in zip(axes[0], opponents, strict=True):
        finals = [f for f in compared["finals"] if f["opponent"] == o["name"]]
        for c in (c for c in compared["courses"] if c["size"] == o["size"]):
            mine = (c["recipe"], c["precision"])
            recipe = Recipe.from_identity(c["identity"])
            times = [seconds(paces[c["precision"]], step, recipe) for step in c["steps"]]
            label: str | None = f"ours, {_named(*mine).replace('`', '')}"
            for final in finals:
                reached = final["activation"][o["size"]]
                row = compared["features"].index(final["feature"])
                if reached > 0:
                    values = np.array(c["activation"][row]) / reached
                    pane.plot(times, values, color=SHADES[OURS.index(mine)], lw=0.9, alpha=0.8, label=label)
                    label = None
        median = float(np.median([f["seconds"] for f in finals]))
        pane.plot([median], [1], "o", color="#222222", label=o["name"])
        pane.axhline(1, color=style.FAINT, lw=0.8)
        pane.set(xscale="log", yscale="log", xlabel="seconds a feature", title=f"{o['name']}, {o['size']} px")
        pane.legend(fontsize=6)
    axes[0][0].set_ylabel("activation over the opponent's")
    return figure


def chosen_features(network: Network, layer: str, count: int, seed: int) -> list[int]:
    """Return some channels of a layer drawn at random, in order."""
    channels = network.layer(layer, network.input_size).channels
    if not 1 <= count <= channels:
        raise FeatmapError(f"--features {count}: {layer} has {channels}; give 1 to {channels}")
    drawn = rng.generator("speed", network.name, layer, seed).choice(channels, count, replace=False)
    return sorted(int(c) for c in drawn)


def main(
    layer: Annotated[str, typer.Option(help="The layer whose features are made.")] = "inception4a",
    features: Annotated[int, typer.Option(help="How many, drawn at random.")] = 5,
    model: Annotated[str, typer.Option(help="As for `featmap similarity`.")] = "reference",
    weights: Annotated[str | None, typer.Option(help="As for `featmap similarity`.")] = None,
    seed: Annotated[int, typer.Option(help="Of the features drawn and of every image.")] = 0,
    out: Annotated[Path, typer.Option(help="The numbers, as JSON; the figure lies beside it.")] = records.FOLDER
    / "speed.json",
    readme: Annotated[Path, typer.Option(help="The table is written between marks in this file.")] = records.README,
) -> None:
    """Measure seconds a feature beside the article's recipe and other tools, and what speeds up a step."""
    network = load(model, weights)
    err().print(str(network))
    channels = chosen_features(network, layer, features, seed)
    opponents = [o for o in OPPONENTS if o.here]
    for o in OPPONENTS:
        if not o.here:
            err().print(f"{o.name} is left out: pip install 'featmap[bench]' brings it")
    with device.deterministic_settings():
        compared = compare(network, layer, channels, opponents, seed)
        cost = costs(network, layer)
        scale = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e6
        found = {
            "machine": records.machine("torchvision"),
            "network": network.name,
            "sha256": network.sha256,
            "layer": layer,
            "seed": seed,
            "threads": torch.get_num_threads(),
            "words": WORDS,
            "compared": compared,
            "costs": cost,
            "peak_MB": peak,
            "steps": steps.measure(network, layer),
        }
    records.write(out, found)
    style.save(draw(found), out.with_suffix(""), ("png",), dpi=150)
    records.write_table("speed", table(found), readme)
    print(table(found))


WORDS = (
    "Everyone's final image is clamped to [0, 1], brought to the size named and put to the untouched network in "
    "float32; ours is made in batches of 16 features, as a map makes them, the opponents' batches hold those that are "
    "compared. Ours is judged at every second step, so that what is reached in two of them says no more than that."
)


if __name__ == "__main__":
    run(main)
