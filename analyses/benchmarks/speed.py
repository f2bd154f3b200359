"""Measure how fast maximising images are made, compared with the article's recipe and other tools.

    python -m analyses.benchmarks.speed                       # about half an hour on two cores; pip install '.[bench]'
    python -m analyses.benchmarks.speed --features 3 --layer inception5a

In one run, on the same features of one layer, taken in turns, every opponent (`analyses.benchmarks.opponents`) makes a
feature's image with its own defaults and is timed, without imports; those that can make all features in one batch are
timed once more so, in the first turn. In each turn a descent of featmap is timed at each size and in each precision
that is needed, in a batch of the recipe's rows, as a map makes them: its beginning and end, its steps with the rescue
of dead rows (the recipe's first quarter), and its other steps. The preparation that a map makes once, the folded copy
of the network, is listed separately. All final images are evaluated by one protocol: clamped to [0, 1], resized to the
size named, and passed to the untouched network in float32 without jitter; the activation is the mean of the feature's
grid, the high-frequency share is the power above a quarter of the sampling rate.

The headline is the opponent's seconds divided by the seconds per feature that featmap needs, in the same turn, to
reach the opponent's activation at the opponent's image size with no larger high-frequency share than the opponent's
image. A feature for which that is never reached has ratio 0. A second table has the same at featmap's default size, to
which the opponent's image is resized.

Then the chain of improvements of one step at 224 pixels (`analyses.benchmarks.steps`) is measured, with its share of
the peak in the same run. Written are `speed.json`, `speed.png` and a table in `README.md`.
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
OURS = (
    ("pixels", FLOAT32),
    ("pixels-long", FLOAT32),
    ("large", FLOAT32),
    ("pixels-long", BFLOAT16),
    ("large", BFLOAT16),
)
"""Recipes of featmap that are compared with the opponents, each with the precision of its descent."""
SHADES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9")
SIZES = (64, 96, 128, 160, 224)
"""Image sizes whose cost is listed."""
TIMED = 8
"""Steps of featmap that are timed in each turn; half of them rescue dead rows."""


@dataclass(frozen=True)
class Final:
    """An opponent's image of one feature.

    Parameters
    ----------
    opponent, feature : str
        Opponent and feature.
    turn : int
        Turn in which it was made.
    seconds : float
        Seconds that it took.
    activation, high : dict of int to float
        Activation and high-frequency share by size.
    """

    opponent: str
    feature: str
    turn: int
    seconds: float
    activation: dict[int, float]
    high: dict[int, float]


@dataclass(frozen=True)
class Course:
    """Course of one of featmap's recipes at one size.

    Only steps at that size count, not those of octaves at smaller sizes.

    Parameters
    ----------
    recipe, precision : str
        Recipe and precision of the descent.
    size : int
        Image size in pixels.
    steps : list of int
        Steps at which images were evaluated.
    activation, high : list of list of float
        Activation and high-frequency share by feature (rows) and step (columns).
    """

    recipe: str
    precision: str
    size: int
    steps: list[int]
    activation: list[list[float]]
    high: list[list[float]]


def judge_images(
    network: Network, layer: str, channels: Sequence[int], images: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Evaluate features' images by the protocol: activation and high-frequency share."""
    clamped = images.float().clamp(0, 1)
    responses = Probe(network, max(2, min(16, len(clamped)))).responses(clamped, [layer])[layer]
    return responses[np.arange(len(channels)), list(channels)], spectra.high_frequency_share(clamped.numpy())


def judge_at_sizes(network: Network, layer: str, feature: int, image: Tensor, sizes: Sequence[int]) -> dict[int, Any]:
    """Evaluate one image at several sizes."""
    values = {}
    for size in sizes:
        activation, high = judge_images(network, layer, [feature], image_ops.resize(image.float().clamp(0, 1), size))
        values[size] = float(activation[0]), float(high[0])
    return values


def follow_course(
    network: Network, layer: str, channels: Sequence[int], name: str, precision: str, size: int, seed: int
) -> Course:
    """Run one of featmap's recipes, and evaluate its images at every second step."""
    recipe = resolved_recipe(network, name, size, rows=max(2, len(channels)), precision=precision)
    result = Batches(network, torch.device("cpu")).descend(_objectives(layer, channels), recipe, seed, frames=2)
    judged = [
        (step, *judge_images(network, layer, channels, images))
        for step, images in zip(frame_steps(recipe.steps, 2), result.frames, strict=True)
        if images.shape[2] == size
    ]
    steps_made, activation, high = zip(*judged, strict=True)
    return Course(name, precision, size, list(steps_made), np.array(activation).T.tolist(), np.array(high).T.tolist())


def _objectives(layer: str, channels: Sequence[int]) -> list[Objective]:
    """Make the objectives of channels."""
    return [channel(layer, c) for c in channels]


@dataclass(frozen=True)
class Pace:
    """Seconds per feature of featmap's descent at one size, in a full batch.

    Parameters
    ----------
    ends : float
        Before the first step and after the last.
    looking : float
        A step that rescues dead rows.
    step : float
        Any other step.
    """

    ends: float
    looking: float
    step: float


def predict_seconds(paces: Mapping[int, Pace], steps_made: int, recipe: Recipe) -> float:
    """Predict the seconds per feature for a number of steps of a resolved recipe.

    Parameters
    ----------
    paces : mapping of int to Pace
        Paces in the recipe's precision, by image size, for every octave's size.
    steps_made : int
        Number of steps.
    recipe : Recipe
        Resolved recipe.

    Returns
    -------
    float
        Seconds.
    """
    looking, whole = math.ceil(recipe.rescue * recipe.steps), paces[recipe.size].ends
    done = 0
    for octave, size in zip(recipe.octaves, recipe.sizes, strict=True):
        here = min(octave.steps, steps_made - done)
        looked = min(here, max(0, looking - done))
        whole += looked * paces[size].looking + (here - looked) * paces[size].step
        done += here
    return whole


def measure_pace(
    batches: Batches,
    layer: str,
    size: int,
    channels: Sequence[int] = (),
    rows: int | None = None,
    precision: str = FLOAT32,
) -> Pace:
    """Time one descent of channels and the layer's first ones in a full batch."""
    recipe = replace(
        resolved_recipe(batches.network, "pixels", size, TIMED, rows=rows, precision=precision), rescue=0.5
    )
    count = batches.network.layer(layer, size).channels
    chosen = [*channels, *(k % count for k in range(recipe.rows))][: recipe.rows]
    stamps = [time.perf_counter()]
    batches.descend(_objectives(layer, chosen), recipe, 0, on_step=lambda *_: stamps.append(time.perf_counter()))
    stamps.append(time.perf_counter())
    took = np.diff(stamps) / recipe.rows  # preparation and first step, other steps, end
    looking, step = float(np.median(took[1 : TIMED // 2])), float(np.median(took[TIMED // 2 : TIMED]))
    return Pace(max(0.0, float(took[0] - looking)) + float(took[-1]), looking, step)


def first_reached(course: Course, row: int, activation: float, high: float) -> int | None:
    """Find the first step with an activation and at most a high-frequency share.

    None if it is never reached.
    """
    for k, step in enumerate(course.steps):
        if step and course.activation[row][k] >= activation and course.high[row][k] <= high:
            return step
    return None


def time_ratios(
    finals: Sequence[Final],
    course: Course,
    features: Sequence[str],
    paces: Sequence[Mapping[int, Pace]],
    recipe: Recipe,
) -> list[float]:
    """Divide an opponent's seconds by featmap's, feature by feature.

    Both are of the same turn.

    Parameters
    ----------
    finals : sequence of Final
        The opponent's images.
    course : Course
        The course of featmap's recipe.
    features : sequence of str
        Features in the order of the course.
    paces : sequence of mapping of int to Pace
        featmap's paces in the course's precision, by turn and image size.
    recipe : Recipe
        The course's recipe at its size.

    Returns
    -------
    list of float
        Ratios; 0 where the opponent's activation is not reached.
    """
    values = []
    for final in finals:
        size = course.size
        step = first_reached(course, features.index(final.feature), final.activation[size], final.high[size])
        values.append(0.0 if step is None else final.seconds / predict_seconds(paces[final.turn], step, recipe))
    return values


def make_finals(
    opponent: Opponent, network: Network, layer: str, channels: Sequence[int], seed: int, turn: int, own: int
) -> list[Final]:
    """Time an opponent on a copy of the network, and evaluate its images."""
    borrowed = replace(network, module=copy.deepcopy(network.module))
    start = time.perf_counter()
    images = opponent.make(borrowed, layer, channels, seed)
    took = (time.perf_counter() - start) / len(channels)
    finals = []
    for feature, image in zip(channels, images, strict=True):
        values = judge_at_sizes(network, layer, feature, image[None], sorted({own, opponent.size}))
        activation, high = ({s: v[j] for s, v in values.items()} for j in (0, 1))
        finals.append(Final(opponent.name, f"{layer}:{feature}", turn, took, activation, high))
    return finals


def compare(
    network: Network, layer: str, channels: Sequence[int], opponents: Sequence[Opponent], seed: int
) -> dict[str, Any]:
    """Compare all opponents with featmap's recipes on the same features."""
    own = resolved_recipe(network, "pixels").size
    batches, features = Batches(network, torch.device("cpu")), [f"{layer}:{c}" for c in channels]
    sizes = sorted({own, *(o.size for o in opponents)})
    recipes = {
        (*kind, size): resolved_recipe(network, kind[0], size, precision=kind[1]) for kind in OURS for size in sizes
    }
    needed = sorted({(r.precision, side) for r in recipes.values() for side in r.sizes})
    finals: list[Final] = []
    paces: dict[str, list[dict[int, Pace]]] = {precision: [] for precision, _ in needed}
    for _, side in needed:  # a size that is too small is an error before any work
        network.layer(layer, side)
    for opponent in opponents:
        opponent.preload()
    stamps = [time.perf_counter()]
    for _ in range(2):  # the first prepares the network
        measure_pace(batches, layer, sizes[0])
        stamps.append(time.perf_counter())
    first, second = np.diff(stamps)
    for precision in paces:
        measure_pace(batches, layer, sizes[0], precision=precision)
    for turn, feature in enumerate(channels):
        for k in range(len(opponents)):
            opponent = opponents[(k + turn) % len(opponents)]
            if not (opponent.batched and turn):
                err().print(f"{'all features' if opponent.batched else features[turn]}: {opponent.name}")
                chosen = channels if opponent.batched else [feature]
                finals += make_finals(opponent, network, layer, chosen, seed, turn, own)
        for by_turn in paces.values():
            by_turn.append({})
        for precision, side in needed:
            paces[precision][-1][side] = measure_pace(batches, layer, side, channels, precision=precision)
    courses = []
    for name, kind, size in recipes:
        err().print(f"featmap, {name}, {kind}, {size} pixels")
        courses.append(follow_course(network, layer, channels, name, kind, size, seed))
    rows = []
    for opponent in opponents:
        images = [f for f in finals if f.opponent == opponent.name]
        for one in courses:
            if one.size in (own, opponent.size):
                which = {"recipe": one.recipe, "precision": one.precision, "size": one.size}
                recipe = recipes[one.recipe, one.precision, one.size]
                values = time_ratios(images, one, features, paces[one.precision], recipe)
                rows.append({"opponent": opponent.name, **which, "ratios": values})
    return {
        "features": features,
        "own_size": own,
        "opponents": [{"name": o.name, "size": o.size, "words": o.words, "version": o.version} for o in opponents],
        "finals": [asdict(f) for f in finals],
        "courses": [asdict(c) | {"identity": recipes[c.recipe, c.precision, c.size].identity()} for c in courses],
        "paces": {
            precision: [{str(size): asdict(p) for size, p in turn.items()} for turn in turns]
            for precision, turns in paces.items()
        },
        "preparation_s": max(0.0, float(first - second)),
        "rows": rows,
    }


def measure_costs(network: Network, layer: str) -> dict[str, Any]:
    """Measure the cost of a step by image size and by number of features."""
    batches = Batches(network, torch.device("cpu"))
    sizes = {size: min((measure_pace(batches, layer, size) for _ in range(2)), key=lambda p: p.step) for size in SIZES}
    count, counts = network.layer(layer, SIZES[0]).channels, {}
    recipe = resolved_recipe(network, "pixels", SIZES[0], steps=3)
    for features in (n for n in (64, 128, 256, 512) if n <= count):
        start = time.perf_counter()
        for first in range(0, features, recipe.rows):
            batches.descend(_objectives(layer, range(first, min(features, first + recipe.rows))), recipe, 0)
        counts[features] = time.perf_counter() - start
    return {
        "by_size": {str(k): asdict(v) for k, v in sizes.items()},
        "by_features": {str(k): v for k, v in counts.items()},
    }


# ---------------------------------------------------------------- what is written


def format_ratios(values: Sequence[float]) -> str:
    """Format the median and range of ratios, and how many were reached."""
    reached = [v for v in values if v > 0]
    middle = f"**{_format_ratio(float(np.median(values)))}**" if len(reached) * 2 > len(values) else "not reached"
    return f"{middle} ({_format_ratio(min(values))} to {_format_ratio(max(values))}), {len(reached)} of {len(values)}"


def _format_ratio(value: float) -> str:
    """Format a ratio."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def format_table(result: dict[str, Any]) -> str:
    """Write all numbers as Markdown."""
    machine, compared = result["machine"], result["compared"]
    lines = [
        "## Activation table: seconds to an opponent's activation",
        "",
        NOT_TRANSFER,
        "",
        f"`python -m analyses.benchmarks.speed` on {machine['processor']}, {machine['cores']} cores, torch "
        f"{machine['versions']['torch']}; {len(compared['features'])} features of {result['layer']} of "
        f"{result['network']}: {', '.join(compared['features'])}. {result['words']}",
        "",
        "| opponent | image | seconds per feature (median) | settings |",
        "|---|---|---|---|",
    ]
    for o in compared["opponents"]:
        seconds = np.median([f["seconds"] for f in compared["finals"] if f["opponent"] == o["name"]])
        name = f"{o['name']} {o['version']}".strip()
        lines.append(f"| {name} | {o['size']} px | {seconds:.1f} | {o['words']} |")
    for title, chosen in (
        ("At the opponent's image size", lambda row, o: row["size"] == o["size"]),
        (
            f"At featmap's default size, {compared['own_size']} pixels",
            lambda row, o: row["size"] == compared["own_size"],
        ),
    ):
        lines += [
            "",
            f"{title}: the opponent's seconds divided by featmap's to reach its activation with no more high "
            "frequencies; median (range), features that reach it.",
            "",
            "| opponent | " + " | ".join(_recipe_name(*own) for own in OURS) + " |",
            "|---|" + "---|" * len(OURS),
        ]
        for o in compared["opponents"]:
            cells = [
                format_ratios(row["ratios"])
                for own in OURS
                for row in compared["rows"]
                if row["opponent"] == o["name"] and (row["recipe"], row["precision"]) == own and chosen(row, o)
            ]
            lines.append(f"| {o['name']} | " + " | ".join(cells) + " |")
    return "\n".join(
        [*lines, "", *_aim_lines(result), "", steps.format_table(result["steps"]), "", *_cost_lines(result)]
    )


NOT_TRANSFER = (
    "A high activation is not yet an image that another network recognises: the recipes of this table are those of "
    "versions up to 0.2, which climb fastest and are rarely recognised. The section on seconds to an image that "
    "another network recognises has the race of today's recipes."
)
AIMS = {"lucent": (30, 100), "dreamlens": (10, 30), "article-normalised": (15, 50)}
"""Aimed ratios of seconds, at the opponent's size and at featmap's own."""
STEP_AIMS = {"float32": (2.7, 3.9, 0.88), "bfloat16": (5.0, 7.0, 0.65)}
"""Aims of a step: times faster than the article's and than the whole network's, share of the peak."""


def _ratios_of(compared: dict[str, Any], opponent: str, size: int, kind: tuple[str, str]) -> list[float]:
    """Look up the ratios of one of featmap's recipes to an opponent at a size."""
    (ratios,) = (
        r["ratios"]
        for r in compared["rows"]
        if (r["opponent"], r["size"], r["recipe"], r["precision"]) == (opponent, size, *kind)
    )
    return list(ratios)


def _median_ratio(compared: dict[str, Any], opponent: str, size: int, kind: tuple[str, str]) -> float:
    """Compute the median ratio to an opponent."""
    return float(np.median(_ratios_of(compared, opponent, size, kind)))


def _aim_lines(result: dict[str, Any]) -> list[str]:
    """Write the aims and what was measured as Markdown."""
    compared, rows = result["compared"], result["steps"]["rows"]
    lines = ["| aim | | measured | |", "|---|---|---|---|"]

    def enter(words: str, aim: float, value: float, text: str = "") -> None:
        verdict = "reached" if value >= aim else "**not reached**"
        lines.append(f"| {words} | {aim:g} | {text or f'{value:.2f}'} | {verdict} |")

    ran = [kind for kind in OURS if any((r["recipe"], r["precision"]) == kind for r in compared["rows"])]
    for o in compared["opponents"]:
        for aim, size in zip(AIMS.get(o["name"], ()), (o["size"], compared["own_size"]), strict=False):
            # featmap's best recipe and precision against the opponent's best: alone or batched
            names = {o["name"], f"{o['name']}, batched"} & {r["opponent"] for r in compared["rows"]}
            value, kind = max((min(_median_ratio(compared, n, size, k) for n in names), k) for k in ran)
            hardest = min(sorted(names), key=lambda n: _median_ratio(compared, n, size, kind))
            values = _ratios_of(compared, hardest, size, kind)
            count = f"{sum(v > 0 for v in values)} of {len(values)} features"
            text = f"{_format_ratio(value)} ({_recipe_name(*kind)}; {count})"
            enter(f"times faster than {hardest}, {size} px", aim, value, text)
    whole, article = (rows[k]["ms"] for k in (0, 1))
    for precision, (over_article, over_whole, share) in STEP_AIMS.items():
        row = [r for r in rows if r["in_use"] and r["precision"] == precision][-1]
        enter(f"a step in {precision}, times faster than the article's", over_article, article / row["ms"])
        enter(f"a step in {precision}, times faster than the whole network's", over_whole, whole / row["ms"])
        enter(f"a step in {precision}, share of the peak", share, row["share"])
    return lines


def _recipe_name(name: str, precision: str) -> str:
    """Name a recipe with its precision."""
    return f"`{name}`" + ("" if precision == FLOAT32 else f", {precision}")


def _cost_lines(result: dict[str, Any]) -> list[str]:
    """Describe the costs of steps."""
    sizes, counts = result["costs"]["by_size"], result["costs"]["by_features"]
    steps_of = ", ".join(f"{1000 * v['step']:.1f} ms ({1000 * v['looking']:.1f}) at {k} px" for k, v in sizes.items())
    largest, most = list(sizes.items())[-1]
    return [
        "A whole step of featmap's descent (gradient, optimiser, blur, clamp), per feature in a full batch of the "
        "layer's first features, and in brackets a step that rescues dead rows: "
        f"{steps_of}; beginning and end of a descent: {1000 * most['ends']:.1f} ms per feature at {largest} px; three "
        f"steps at {next(iter(sizes))} px of "
        + ", ".join(f"{k} features {v:.1f} s" for k, v in counts.items())
        + f". Preparation of a map, once: {result['compared']['preparation_s']:.1f} s. Peak memory of the comparison "
        f"with opponents: {result['peak_MB']:,.0f} MB.",
    ]


@style.house_style
def draw_figure(result: dict[str, Any]) -> Figure:
    """Draw activation relative to the opponent's over seconds.

    One line for each feature, and a dot for the opponent.
    """
    compared = result["compared"]
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
            own = (c["recipe"], c["precision"])
            recipe = Recipe.from_identity(c["identity"])
            times = [predict_seconds(paces[c["precision"]], step, recipe) for step in c["steps"]]
            label: str | None = f"featmap, {_recipe_name(*own).replace('`', '')}"
            for final in finals:
                reached = final["activation"][o["size"]]
                row = compared["features"].index(final["feature"])
                if reached > 0:
                    values = np.array(c["activation"][row]) / reached
                    pane.plot(times, values, color=SHADES[OURS.index(own)], lw=0.9, alpha=0.8, label=label)
                    label = None
        median = float(np.median([f["seconds"] for f in finals]))
        pane.plot([median], [1], "o", color="#222222", label=o["name"])
        pane.axhline(1, color=style.FAINT, lw=0.8)
        pane.set(xscale="log", yscale="log", xlabel="seconds per feature", title=f"{o['name']}, {o['size']} px")
        pane.legend(fontsize=6)
    axes[0][0].set_ylabel("activation relative to the opponent's")
    return figure


def draw_features(network: Network, layer: str, count: int, seed: int) -> list[int]:
    """Draw channels of a layer at random, in order."""
    channels = network.layer(layer, network.input_size).channels
    if not 1 <= count <= channels:
        raise FeatmapError(f"--features {count}: {layer} has {channels}; give 1 to {channels}")
    drawn = rng.generator("speed", network.name, layer, seed).choice(channels, count, replace=False)
    return sorted(int(c) for c in drawn)


def main(
    layer: Annotated[str, typer.Option(help="Layer of the features.")] = "inception4a",
    features: Annotated[int, typer.Option(help="Number of features, drawn at random.")] = 5,
    model: Annotated[str, typer.Option(help="As for `featmap similarity`.")] = "reference",
    weights: Annotated[str | None, typer.Option(help="As for `featmap similarity`.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the features drawn and of every image.")] = 0,
    out: Annotated[Path, typer.Option(help="The numbers, as JSON; the figure is beside it.")] = records.FOLDER
    / "speed.json",
    readme: Annotated[Path, typer.Option(help="The table is written between marks in this file.")] = records.README,
) -> None:
    """Compare seconds per feature with other tools, and measure steps."""
    network = load(model, weights)
    err().print(str(network))
    channels = draw_features(network, layer, features, seed)
    opponents = [o for o in OPPONENTS if o.installed]
    for o in OPPONENTS:
        if not o.installed:
            err().print(f"{o.name} is left out: pip install 'featmap[bench]' installs it")
    with device.deterministic_settings():
        compared = compare(network, layer, channels, opponents, seed)
        cost = measure_costs(network, layer)
        scale = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e6
        result = {
            "machine": records.describe_machine("torchvision"),
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
    records.write_json(out, result)
    style.save(draw_figure(result), out.with_suffix(""), ("png",), dpi=150)
    records.write_table("speed", format_table(result), readme)
    print(format_table(result))


WORDS = (
    "All final images are clamped to [0, 1], resized to the size named and passed to the untouched network in float32; "
    "featmap makes batches of 16 features, as for a map, and the opponents' batches contain the features compared. "
    "featmap's images are evaluated at every second step, which limits the precision of results reached in two steps."
)


if __name__ == "__main__":
    run(main)
