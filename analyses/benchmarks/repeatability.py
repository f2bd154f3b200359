"""Measure how well the interaction of pairs repeats from seed to seed, and what raises that.

    python -m analyses.benchmarks.repeatability
    python -m analyses.benchmarks.repeatability --model mypackage.nets:mine --layers layer2.1,layer3.0
    python -m analyses.benchmarks.repeatability --check

Features of two layers are drawn at random, and each of the first layer is paired with each of the second. The solo and
joint descents are those of `featmap interact --layers`, seed by seed; of some seeds there are joint descents from the
perturbed start too. *Repeatability* is the correlation, over pairs, of a statistic from one seed with the same one from
another, mean over all choices of two seeds. Every second feature of the first layer, with all its pairs, is the half on
which ways may be chosen; the other half is the test.

Compared are other yardsticks (other scales, other features, other layers, images shown at several places), floors,
solo images of two starts, two joint images of one seed, means over seeds, the mixture of the solo images, which needs
no joint descent, and shrinkage. Shrinkage towards the grand mean changes no correlation; therefore the squared error
against the mean of the other seeds stands beside it, in units of that mean's variance over pairs. A pair can also be
shrunk towards what its two features have on average in their other pairs.

Descents are kept in the folder `--out`, so that a later call goes on from there.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from scipy.stats import rankdata

from analyses.benchmarks import records
from analyses.benchmarks.image_records import short_name
from analyses.benchmarks.image_ways import split_names
from analyses.benchmarks.pair_descents import SHIFTS, Descents
from analyses.benchmarks.pair_statistics import (
    CLIPPED,
    Yardstick,
    average_joints,
    clip,
    measure_floors,
    measure_mixtures,
    ranks,
    signed_logarithm,
    signed_root,
)
from analyses.benchmarks.power import AIM, AIMS, repeatability
from analyses.benchmarks.speed import draw_features
from analyses.support.commands import run
from featmap.cli import console
from featmap.cli.app import expand_options
from featmap.cli.options import NetworkOptions
from featmap.errors import FeatmapError
from featmap.network.unit import Unit
from featmap.optimize.recipe import Recipe
from featmap.stats import interaction
from featmap.stats.reliability import spearman_brown

STORE, SECTION = records.FOLDER / "repeatability.json", "repeatability"
STRONGEST = 0.2
"""Share of the features, those that respond most, that one of the ways keeps."""
MARGIN = 0.05
"""Difference of repeatabilities that counts as better."""
PROBED = "inception3a,inception3b,inception4a,inception4b,inception4c,inception4d,inception5b"
SAME = "of these pairs and seeds alone: one joint image"
"""Way that those with two joint images are compared with."""
RAW, MIXTURE, TWO_MIXTURES = "response nonlinearity", "mixture", "mixture, mean of both starts"
SHRUNK = (RAW, MIXTURE, TWO_MIXTURES)
LESS_FLOOR = "less its floor"


@dataclass(frozen=True)
class Way:
    """A way to turn one seed into a number for each pair.

    Parameters
    ----------
    name : str
        What is done.
    cost : str
        Descents of a pair, and of each unit, that a seed takes.
    chosen, tested, whole : float
        Repeatability of single seeds over the half for choosing, over the other, and over all pairs.
    agreement : float
        Correlation over pairs of its mean over seeds with that of the response nonlinearity.
    mean : float
        Mean over pairs and seeds.
    seeds, pairs : int
        Seeds that were compared, and pairs that have the number with all of them.
    """

    name: str
    cost: str
    chosen: float
    tested: float
    whole: float
    agreement: float
    mean: float
    seeds: int
    pairs: int


@dataclass(frozen=True)
class Result:
    """What was measured of one network.

    Parameters
    ----------
    source : str
        Network.
    layers : list of str
        The two layers.
    features : list of list of int
        Channels drawn of each.
    size, steps : int
        Side of the images in pixels, and steps of the descents.
    ways : list of dict
        See `Way`.
    shrinkage : dict
        Of some ways, see `shrink`; none where a pair is undefined.
    """

    source: str
    layers: list[str]
    features: list[list[int]]
    size: int
    steps: int
    ways: list[dict[str, str | float | int]] = field(default_factory=list)
    shrinkage: dict[str, dict[str, float]] = field(default_factory=dict)


def measure_ways(descents: Descents, seeds: int, again: int) -> dict[str, tuple[str, np.ndarray]]:
    """Measure all ways: by name their cost in descents, and a value for each pair and seed.

    Parameters
    ----------
    descents : Descents
        Descents of one network.
    seeds, again : int
        Seeds of the joint descents, and of those from the perturbed start: two or more, or 0.

    Returns
    -------
    dict of (str, numpy.ndarray)
        Values of every pair, pairs x seeds.
    """
    layers = tuple(dict.fromkeys(u.layer for u in descents.units))
    one, two, none = "1 joint, 1 solo", "1 joint, 2 solos", "no joint, 1 solo"
    plain, floor = Yardstick(layers).measure(descents, seeds), measure_floors(descents, layers, seeds)
    both = Yardstick(layers, starts=(0, 1)).measure(descents, seeds)
    mixtures = [measure_mixtures(descents, layers, k, seeds) for k in (0, 1)]
    solos, mean = "no joint, 2 solos", (mixtures[0] + mixtures[1]) / 2
    repeated = repeat_joints(descents, layers, plain, again) if again else {}

    def by(**changes: object) -> np.ndarray:
        return Yardstick(**({"layers": layers} | changes)).measure(descents, seeds)  # type: ignore[arg-type]

    return {
        RAW: (one, plain),
        "its square root": (one, np.sqrt(plain)),
        "its logarithm": (one, np.log(np.maximum(plain, interaction.ROUNDING))),
        "its rank": (one, np.apply_along_axis(rankdata, 0, plain)),
        LESS_FLOOR: (two, plain - floor),
        "less its floor's mean over seeds": (two, plain - floor.mean(1, keepdims=True)),
        "over its floor": (two, plain / floor),
        "over its floor's mean over seeds": (two, plain / floor.mean(1, keepdims=True)),
        "less the mean floor of all pairs": (two, plain - floor.mean(0)),
        "roots of responses": (one, by(transform=signed_root)),
        "logarithms of responses": (one, by(transform=signed_logarithm)),
        "ranks of responses": (one, by(transform=ranks)),
        f"responses clipped at their {CLIPPED:.0%} quantile": (one, by(transform=clip)),
        f"the strongest {STRONGEST:.0%} of the features": (one, by(share=STRONGEST)),
        f"images shown at {1 + len(SHIFTS)} places": (one, by(kind="shifted")),
        **{f"features of {layer} alone": (one, by(layers=(layer,))) for layer in descents.probed},
        f"features of all {len(descents.probed)} layers": (one, by(layers=tuple(descents.probed))),
        "beside the solo images of both starts": (two, both),
        **repeated,
        MIXTURE: (none, mixtures[0]),
        TWO_MIXTURES: (solos, mean),
        f"{TWO_MIXTURES}, its square root": (solos, np.sqrt(mean)),
        f"{TWO_MIXTURES}, its logarithm": (solos, np.log(np.maximum(mean, interaction.ROUNDING))),
    }


def repeat_joints(
    descents: Descents, layers: tuple[str, ...], plain: np.ndarray, again: int
) -> dict[str, tuple[str, np.ndarray]]:
    """Measure the ways that need joint descents from the perturbed start too, see `measure_ways`."""
    perturbed, both = Yardstick(layers, starts=(1,), joint=1).measure(descents, again), "2 joints, 2 solos"
    same = np.where(np.isfinite(perturbed), plain[:, :again], np.nan)
    return {
        SAME: ("1 joint, 1 solo", same),
        "the one from the perturbed start": ("1 joint, 1 solo", perturbed),
        "two joint images, mean of their statistics": (both, (same + perturbed) / 2),
        "two joint images, mean of their responses": (both, average_joints(descents, layers, again)),
    }


def split(shape: tuple[int, int]) -> np.ndarray:
    """Mark the pairs for choosing: those of every second feature of the first layer."""
    marked: np.ndarray = np.repeat(np.arange(shape[0]) % 2 == 0, shape[1])
    return marked


def shrink(values: np.ndarray, chosen: np.ndarray, shape: tuple[int, int]) -> dict[str, float]:
    """Shrink single seeds, and compare them with the mean of the other seeds of the tested half.

    Parameters
    ----------
    values : numpy.ndarray
        Pairs x seeds, all defined.
    chosen : numpy.ndarray
        Pairs of the half on which the factors are estimated.
    shape : tuple of int
        Numbers of features of the two layers.

    Returns
    -------
    dict of float
        Factors of the deviation from the grand mean (the repeatability) and of the deviation from the features' means
        (share of the variance of deviations that seeds have in common); and of the single seed, of both and of the
        features' means alone the squared error against the mean of the other seeds, over the variance of that mean, and
        the repeatability.
    """
    factor = repeatability(values[chosen])
    within = common_share(values[chosen].reshape(-1, shape[1], values.shape[1]))
    tested = values[~chosen].reshape(-1, shape[1], values.shape[1])
    mean = tested.mean((0, 1))
    features = tested.mean(1, keepdims=True) + tested.mean(0, keepdims=True) - mean
    estimates = {
        "single seed": tested,
        "towards the grand mean": mean + factor * (tested - mean),
        "towards the features' means": features + within * (tested - features),
        "the features' means alone": features,
    }
    found = {"factor": factor, "factor of features": within}
    for name, estimate in estimates.items():
        errors = []
        for seed in range(values.shape[1]):
            others = np.delete(tested, seed, 2).mean(2)
            errors.append(((estimate[..., seed] - others) ** 2).mean() / others.var())
        found[f"error, {name}"] = float(np.mean(errors))
        found[f"r, {name}"] = repeatability(estimate.reshape(-1, values.shape[1]))
    return {name: round(value, 4) for name, value in found.items()}


def common_share(values: np.ndarray) -> float:
    """Estimate the share of seeds in common of what is left of a pair after its features' means.

    Parameters
    ----------
    values : numpy.ndarray
        Features x features x seeds.

    Returns
    -------
    float
        Variance components of a two-way layout with repetition, in [0, 1]: that of pairs over that of pairs and noise.
    """
    rows, columns, seeds = values.shape
    left = values - values.mean(1, keepdims=True) - values.mean(0, keepdims=True) + values.mean((0, 1), keepdims=True)
    pair = left.mean(2, keepdims=True)
    freedom = (rows - 1) * (columns - 1)
    noise = float(((left - pair) ** 2).sum() / freedom / (seeds - 1))
    signal = max(float((pair**2).sum() / freedom) - noise / seeds, 0.0)
    return signal / (signal + noise) if signal + noise > 0 else 0.0


def judge(values: dict[str, tuple[str, np.ndarray]], shape: tuple[int, int]) -> list[Way]:
    """Compute the repeatability of each way over the pairs that it defines."""
    chosen, plain = split(shape), values[RAW][1].mean(1)
    ways = []
    for name, (cost, v) in values.items():
        defined = np.isfinite(v).all(1) & np.isfinite(plain)
        parts = [round(repeatability(v[defined & rows]), 4) for rows in (chosen, ~chosen, np.ones_like(chosen))]
        agreement = float(np.corrcoef(v[defined].mean(1), plain[defined])[0, 1])
        ways.append(
            Way(
                name,
                cost,
                *parts,
                round(agreement, 4),
                round(float(v[defined].mean()), 4),
                v.shape[1],
                int(defined.sum()),
            )
        )
    return ways


def analyse(descents: Descents, seeds: int, again: int) -> Result:
    """Measure all ways of one network, and shrink the plain ones."""
    values, shape = measure_ways(descents, seeds, again), descents.shape
    whole = [name for name in SHRUNK if np.isfinite(values[name][1]).all()]
    shrunk = {name: shrink(values[name][1], split(shape), shape) for name in whole}
    names = [u.layer for u in descents.units]
    layers = list(dict.fromkeys(names))
    channels = [[int(u.channel) for u in descents.units if u.layer == layer] for layer in layers]
    recipe, source = descents.recipe, short_name(descents.network.name)
    ways = [asdict(w) for w in judge(values, shape)]
    return Result(source, layers, channels, int(recipe.size), recipe.steps, ways, shrunk)


def read(store: Path) -> list[Result]:
    """Read the results of a file; none where there is no file."""
    return [Result(**r) for r in json.loads(store.read_text())["results"]] if store.exists() else []


def count_seeds(r: float, aim: float) -> int:
    """Compute how many seeds' mean repeats as aimed at, by Spearman and Brown; at least 1.

    Raises
    ------
    FeatmapError
        If r is not above 0.
    """
    if not r > 0:
        raise FeatmapError(f"repeatability {r:g}: no number of seeds raises one that is not above 0")
    # rounding must not ask for a seed more
    return next(n for n in itertools.count(1) if spearman_brown(r, n) >= aim or np.isclose(spearman_brown(r, n), aim))


def format_page(results: list[Result]) -> str:
    """Format the results as tables, for the README.

    Parameters
    ----------
    results : list of Result
        Results of all networks.

    Returns
    -------
    str
        Markdown.
    """
    lines = [
        "## Repeatability of interaction",
        "",
        "Correlation, over pairs, of a statistic from one seed with the same from another. Every second feature of the "
        "first layer, with its pairs, is the half on which a way may be chosen; the other half is the test. Cost: "
        "descents of a pair and of each unit that one seed takes. Agreement: correlation of the mean over seeds with "
        "that of the response nonlinearity; where it is low, the way measures something else.",
        "",
    ]
    for result in results:
        a, b = result.features
        lines += [
            f"**{result.source}**, {' with '.join(result.layers)}: {len(a)} x {len(b)} features, {len(a) * len(b)} "
            f"pairs; {result.size} pixels, {result.steps} steps.",
            "",
            "| way | cost | seeds, pairs | r, half for choosing | r, other half | r, all pairs | agreement | mean |",
            "|---" * 8 + "|",
        ]
        for w in (Way(**way) for way in result.ways):  # type: ignore[arg-type]
            numbers = [f"{v:.2f}" for v in (w.chosen, w.tested, w.whole, w.agreement)]
            lines.append(f"| {w.name} | {w.cost} | {w.seeds}, {w.pairs} | {' | '.join(numbers)} | {w.mean:.3g} |")
        lines.append("")
    lines += [
        "Shrinkage, with factors estimated on one half; on the other half the squared error of a single seed against "
        "the mean of the other seeds, over that variance (1: no better than the grand mean), and r between seeds:",
        "",
        "| network | way | single seed: error, r | towards the grand mean | towards the features' means | "
        "the features' means alone |",
        "|---" * 6 + "|",
    ]
    ends = ("single seed", "towards the grand mean", "towards the features' means", "the features' means alone")
    for result in results:
        for name, found in result.shrinkage.items():
            cells = [f"{found[f'error, {end}']:.2f}, {found[f'r, {end}']:.2f}" for end in ends]
            lines.append(f"| {result.source} | {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *conclude(results)])


def conclude(results: list[Result]) -> list[str]:
    """State, in words computed from the numbers, what reaches the aim, and what does not help."""
    lines = []
    for result in results:
        aim = AIMS.get(result.source, AIM)
        ways = {str(w["name"]): Way(**w) for w in result.ways}  # type: ignore[arg-type]
        raw = ways[RAW]
        predicted = ", ".join(f"{spearman_brown(raw.whole, k):.2f} of {k}" for k in (2, 3, 5))
        reached = [f"{w.name} ({w.tested:.2f})" for w in ways.values() if min(w.chosen, w.tested) >= aim]
        beside = {name: ways[SAME] if w.seeds < raw.seeds else raw for name, w in ways.items()}
        helps = [f"{w.name} ({w.tested:.2f})" for name, w in ways.items() if is_better(w, beside[name])]
        lines += [
            f"- {result.source}: single seeds of the response nonlinearity repeat with {raw.whole:.2f}; the aim of "
            f"{aim:g} is {'reached' if raw.whole >= aim else f'missed by {aim - raw.whole:.2f}'}. Less its own floor, "
            f"which tests and rankings take, it repeats with {ways[LESS_FLOOR].whole:.2f}. By Spearman and "
            f"Brown means repeat with {predicted} seeds, and {count_seeds(raw.whole, aim)} reach the aim",
            f"- {result.source}: in both halves the aim is reached by: {', '.join(reached) or 'none'}",
            f"- {result.source}: better than the response nonlinearity by 0.05 or more in both halves (r of the tested "
            f"one): {', '.join(helps) or 'none'}; all other ways do not help",
        ]
    return lines


def is_better(way: Way, than: Way) -> bool:
    """Check whether a way repeats better in both halves, by `MARGIN` or more."""
    return min(way.chosen - than.chosen, way.tested - than.tested) >= MARGIN


def main(
    network: NetworkOptions,
    layers: Annotated[str, typer.Option(help="Two layers, joined by a comma.")] = "inception4a,inception4b",
    probe: Annotated[str, typer.Option(help="All layers whose features are looked at.")] = PROBED,
    features: Annotated[str, typer.Option(help="Features drawn of each layer.")] = "15,14",
    seeds: Annotated[int, typer.Option(help="Seeds.")] = 3,
    again: Annotated[int, typer.Option(help="Seeds with joint descents from the perturbed start too; or 0.")] = 2,
    size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 64,
    steps: Annotated[int, typer.Option(help="Steps of a descent.")] = 60,
    out: Annotated[Path, typer.Option(help="Folder of the descents.")] = Path("runs/repeatability"),
    store: Annotated[Path, typer.Option(help="The values, as JSON.")] = STORE,
    readme: Annotated[Path, typer.Option(help="The table is written between marks in this file.")] = records.README,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; check that table and values agree.")] = False,
) -> None:
    """Measure how well the interaction of pairs repeats from seed to seed, and what raises that."""
    if check:
        if format_page(read(store)) not in readme.read_text():
            raise FeatmapError(f"{readme.name} and {store.name} disagree; make the table again")
        return
    names, counts = split_names(layers), [int(n) for n in features.split(",") if n.strip().isdigit()]
    if len(names) != 2 or len(counts) != 2:
        raise FeatmapError(f"layers {layers}, features {features}: give two of both, joined by a comma")
    if seeds < 3 or again == 1 or not 0 <= again <= seeds:
        raise FeatmapError(f"seeds {seeds}, again {again}: give 3 seeds or more, and 2 or more of them again, or 0")
    loaded = network.load()
    recipe = Recipe.named("interact", size=size, steps=steps).resolved(loaded.input_size)
    units = [[Unit(la, c) for c in draw_features(loaded, la, n, 0)] for la, n in zip(names, counts, strict=True)]
    probed = list(dict.fromkeys([*split_names(probe), *names]))
    folder = out / f"{short_name(loaded.name)}-{size}-{steps}"
    found = analyse(Descents(loaded, units, recipe, seeds, probed, folder), seeds, again)
    kept = [r for r in read(store) if r.source != found.source] + [found]
    records.write_json(store, {"results": [asdict(r) for r in kept]})
    records.write_table(SECTION, format_page(kept), readme)
    console.out().print(format_page(kept), soft_wrap=True)


if __name__ == "__main__":
    run(expand_options(main))
