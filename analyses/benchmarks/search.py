"""Compare candidate recipes by the activation that they reach for the same work.

    python -m analyses.benchmarks.search                                       # half an hour on two cores
    python -m analyses.benchmarks.search --model resnet50 --weights random --layers layer1.2,layer2.3,layer3.5
    python -m analyses.benchmarks.search --size 224 --only quick-24-middle,half-then-whole,quick-60-lighter

Every candidate makes the images of the same features, drawn at random, of three layers with three seeds; candidates
take turns at each batch. Each is one change of a recipe that it names. The columns of its row:

- work: its steps, each weighted by the area of its image relative to the finished image, and seconds per feature
  relative to the base in the same turns (median);
- activation relative to the base's on the same feature, geometric mean over features after that over seeds, with a
  95 % interval over features (on the untouched network, images clamped to [0, 1]); lost: rows that end without
  activation where the base's have some, which enter no mean;
- high frequencies: the share of spectral power above a quarter of the sampling rate relative to the base's, mean and
  interval as for activation; the inverse of smoothness;
- identity rate: the share of features whose own image, of all images drawn, excites them most, with an interval over
  features, each the mean over its seeds;
- stopped early: what stopping each row once its activation rises by less than 2 % in three steps (and refilling its
  place) would give: the share of steps that rows would take, and of the activation that they would reach.

A winner has more activation per second than the base (ratio above 1 at the lower end of the interval), loses no more
than one row in 200, has no more high frequencies than the base, and has no clearly lower identity rate (intervals).

Candidates may be tried in several runs, each together with the base: stored rows of the same features are kept.
Starting from another feature's image is no candidate: an image depends on model, recipe, seed and unit alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from analyses.benchmarks import records
from analyses.benchmarks.speed import draw_features
from analyses.formulas import spectra
from analyses.support.commands import run
from analyses.support.findings import interval
from analyses.support.settings import resolved_recipe
from featmap import Network, channel, load
from featmap.cli.console import err
from featmap.errors import FeatmapError
from featmap.optimize.batch import Batches
from featmap.optimize.recipe import LARGE, PIXELS, PIXELS_LONG, SHORT_MEMORY_BETAS, Octave, Recipe
from featmap.optimize.responses import Probe
from featmap.runs import device

LAYERS = ("inception3a", "inception4c", "inception5a")
RISE, STEPS_BACK = 1.02, 3
FEATURES, SEEDS = 64, 3


@dataclass(frozen=True)
class Candidate:
    """A recipe to try.

    Parameters
    ----------
    recipe : Recipe
        The recipe.
    words : str
        Its description.
    """

    recipe: Recipe
    words: str


def _candidate(name: str, words: str, *octaves: Octave, **changes: Any) -> Candidate:
    """Make a candidate from octaves and other settings."""
    changes.setdefault("clamp", "every")
    return Candidate(Recipe(name, octaves, max_default_size=128, **changes), words)


def _own_recipe(ours: Recipe, name: str, words: str) -> Candidate:
    """Make a candidate from one of featmap's recipes."""
    return Candidate(replace(ours, name=name, max_default_size=128), f"{words}: `{ours.name}`")


BLUR, HALF = (1.0, 0.4), 0.5
CANDIDATES = (
    _candidate("adam-40", "Adam, 40 steps", Octave(40, (0.03, 0.02), BLUR)),
    _candidate("adam-20", "half the steps, each twice as long", Octave(20, (0.06, 0.02), BLUR)),
    _candidate(
        "quick-20", "shorter memory (0.8, 0.99), long steps", Octave(20, (0.08, 0.01), BLUR), betas=SHORT_MEMORY_BETAS
    ),
    _candidate("quick-24", "the same, 24 steps", Octave(24, (0.08, 0.01), BLUR), betas=SHORT_MEMORY_BETAS),
    _candidate(
        "quick-28",
        "shorter memory, 28 steps of medium length",
        Octave(28, (0.06, 0.01), BLUR),
        betas=SHORT_MEMORY_BETAS,
    ),
    _candidate("quick-30", "shorter memory, 30 long steps", Octave(30, (0.08, 0.01), BLUR), betas=SHORT_MEMORY_BETAS),
    _candidate(
        "quick-weak-blur",
        "quick-20 with a weaker blur",
        Octave(20, (0.08, 0.01), (0.8, 0.3)),
        betas=SHORT_MEMORY_BETAS,
    ),
    _candidate(
        "quick-24-lighter",
        "quick-24 with a lighter blur",
        Octave(24, (0.08, 0.01), (0.9, 0.35)),
        betas=SHORT_MEMORY_BETAS,
    ),
    _own_recipe(PIXELS, "quick-24-middle", "quick-24 with a blur between these"),
    _candidate(
        "quick-20-lighter",
        "quick-20 with a lighter blur",
        Octave(20, (0.08, 0.01), (0.9, 0.35)),
        betas=SHORT_MEMORY_BETAS,
    ),
    _candidate(
        "coarse-to-fine",
        "10 steps at half the size, then 14",
        Octave(10, (0.08, 0.04), (1.0, 0.7), HALF),
        Octave(14, (0.06, 0.01), (0.8, 0.4)),
        betas=SHORT_MEMORY_BETAS,
    ),
    _candidate(
        "growing",
        "three sizes, 0.7, 0.85 and 1",
        Octave(8, (0.08, 0.06), (1.0, 0.8), 0.7),
        Octave(8, (0.06, 0.04), (0.8, 0.6), 0.85),
        Octave(10, (0.04, 0.01), (0.6, 0.4)),
        betas=SHORT_MEMORY_BETAS,
    ),
    _own_recipe(LARGE, "half-then-whole", "24 steps at half the size, then 24"),
    _candidate("normalised-24", "gradient over its RMS", Octave(24, (0.1, 0.02), BLUR), optimiser="rms"),
    _candidate("quiet-start", "adam-40 from a quarter of the noise", Octave(40, (0.03, 0.02), BLUR), std=0.05),
    _candidate("jitter-40", "adam-40, jittered by up to 4 pixels", Octave(40, (0.03, 0.02), BLUR), jitter=4),
    _candidate(
        "fourier-40", "Fourier image, no blur", Octave(40, (0.05, 0.05)), parameterisation="fourier", clamp="end"
    ),
    _candidate(
        "fourier-slow",
        "Fourier image, shrinking steps",
        Octave(40, (0.05, 0.005)),
        parameterisation="fourier",
        clamp="end",
    ),
    _candidate("adam-120", "Adam, 120 steps", Octave(120, (0.03, 0.01), BLUR)),
    _candidate("quick-60", "shorter memory, 60 steps", Octave(60, (0.06, 0.005), BLUR), betas=SHORT_MEMORY_BETAS),
    _own_recipe(PIXELS_LONG, "quick-60-lighter", "quick-60 with a lighter blur"),
    _candidate(
        "quick-80", "shorter memory, 80 shorter steps", Octave(80, (0.04, 0.005), BLUR), betas=SHORT_MEMORY_BETAS
    ),
)
BASE = CANDIDATES[0].recipe.name


def choose_candidates(only: str | None) -> list[Candidate]:
    """Choose candidates by name, the base first; all without names.

    Raises
    ------
    FeatmapError
        For an unknown name.
    """
    by_name = {c.recipe.name: c for c in CANDIDATES}
    names = list(by_name) if only is None else [n.strip() for n in only.split(",") if n.strip()]
    for name in names:
        if name not in by_name:
            raise FeatmapError(f"candidate {name!r} is unknown; allowed: {', '.join(by_name)}")
    return [by_name[name] for name in dict.fromkeys([BASE, *names])]


def work(recipe: Recipe) -> float:
    """Sum the steps of a resolved recipe, weighted by their images' relative area."""
    return float(sum(o.steps * (side / recipe.size) ** 2 for o, side in zip(recipe.octaves, recipe.sizes, strict=True)))


def early_stops(curve: np.ndarray) -> np.ndarray:
    """Find where each row would be stopped.

    A row stops at the first step whose activation is positive and less than `RISE` times that of `STEPS_BACK` steps
    before.

    Parameters
    ----------
    curve : numpy.ndarray
        Activations, `N x steps`.

    Returns
    -------
    numpy.ndarray
        `N x 2`, share of steps and of activation; NaN for a row that ends without activation.
    """
    count, steps = curve.shape
    stops = np.full((count, 2), np.nan)
    for row, values in enumerate(curve):
        if values[-1] > 0:
            slow = [k for k in range(STEPS_BACK, steps) if 0 < values[k] < RISE * values[k - STEPS_BACK]]
            at = slow[0] if slow else steps - 1
            stops[row] = (at + 1) / steps, values[at] / values[-1]
    return stops


def interval_over_features(values: np.ndarray, seeds: int) -> tuple[list[float], int]:
    """Compute mean and 95 % interval over features, each averaged over its seeds.

    Parameters
    ----------
    values : numpy.ndarray
        `(layers x seeds) x features`, seeds fastest; NaN where undefined.
    seeds : int
        Number of seeds.

    Returns
    -------
    interval : list of float
        Mean and ends of the interval.
    count : int
        Number of features that count.
    """
    each = np.ma.masked_invalid(values.reshape(-1, seeds, values.shape[1])).mean(1).compressed()
    return (list(interval(each)) if len(each) else [float("nan")] * 3), len(each)


@dataclass
class Tally:
    """Results of one candidate by layer and seed, over the features drawn."""

    activation: list[list[float]]
    high: list[list[float]]
    own: list[list[bool]]
    stopped: list[list[list[float]]]
    seconds: list[float]

    def add(self, result: dict[str, Any]) -> None:
        """Add the result of one layer and seed."""
        self.seconds += result.pop("seconds")
        for kind, values in result.items():
            getattr(self, kind).append(values)


def try_recipes(
    network: Network, layer: str, channels: Sequence[int], recipes: Sequence[Recipe], seed: int
) -> list[Any]:
    """Maximise features of a layer under each recipe, in turns at each batch."""
    batches, rows = Batches(network, torch.device("cpu")), recipes[0].rows
    parts: list[list[Any]] = [[] for _ in recipes]
    seconds: list[list[float]] = [[] for _ in recipes]
    for recipe in recipes:  # one-time work for a layer and an image size is not timed
        short = replace(recipe, octaves=tuple(replace(o, steps=1) for o in recipe.octaves))
        batches.descend([channel(layer, channels[0])], short, seed)
    for turn, first in enumerate(range(0, len(channels), rows)):
        objectives = [channel(layer, c) for c in channels[first : first + rows]]
        for k in range(len(recipes)):
            which = (k + turn) % len(recipes)
            start = time.perf_counter()
            parts[which].append(batches.descend(objectives, recipes[which], seed))
            seconds[which].append((time.perf_counter() - start) / len(objectives))
    results = []
    for batches_made, took in zip(parts, seconds, strict=True):
        images = torch.cat([m.images for m in batches_made]).clamp(0, 1)
        responses = Probe(network, rows).responses(images, [layer])[layer][:, list(channels)]
        curve = torch.cat([m.curve for m in batches_made])[:, :, 0].numpy()
        results.append(
            {
                "activation": responses.diagonal().tolist(),
                "high": spectra.high_frequency_share(images.numpy()).tolist(),
                "own": (responses.argmax(0) == np.arange(len(channels))).tolist(),
                "stopped": early_stops(curve).tolist(),
                "seconds": took,
            }
        )
    return results


def summarise(name: str, candidate: Tally, base: Tally, seeds: int) -> dict[str, Any]:
    """Summarise one candidate relative to the base."""
    values, reference = (np.array(t.activation, dtype=float) for t in (candidate, base))
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = np.log(np.where((values > 0) & (reference > 0), values / reference, np.nan))
        high = np.log(np.array(candidate.high, dtype=float) / np.array(base.high, dtype=float))
    early = np.array(candidate.stopped, dtype=float).reshape(-1, 2)
    summary = {
        "name": name,
        "activation": np.exp(interval_over_features(gain, seeds)[0]).tolist(),
        "lost": int(((values <= 0) & (reference > 0)).sum()),
        "rows": int(values.size),
        "high": np.exp(interval_over_features(high, seeds)[0]).tolist(),
        "high_share": float(np.nanmedian(np.array(candidate.high, dtype=float))),
        "identity": interval_over_features(np.array(candidate.own, dtype=float), seeds)[0],
        "base_identity": interval_over_features(np.array(base.own, dtype=float), seeds)[0],
        "stopped": np.nanmean(early, axis=0).tolist(),
        "seconds": float(np.median(np.array(candidate.seconds) / np.array(base.seconds))),
    }
    return summary | {"wins": is_winner(summary)}


def is_winner(summary: dict[str, Any]) -> bool:
    """Check whether a candidate wins, by the rule at the beginning of the script."""
    return bool(
        summary["activation"][1] / summary["seconds"] > 1
        and summary["lost"] * 200 <= summary["rows"]
        and summary["high"][0] <= 1
        and summary["identity"][2] >= summary["base_identity"][1]
    )


def measure(
    network: Network,
    layers: Sequence[str],
    candidates: Sequence[Candidate],
    features: int,
    seeds: int,
    size: int | None = None,
) -> list[dict[str, Any]]:
    """Measure every candidate at an image size (None: the recipes' own)."""
    recipes = [resolved_recipe(network, c.recipe, size) for c in candidates]
    tallies = [Tally([], [], [], [], []) for _ in candidates]
    for layer in layers:
        channels = draw_features(network, layer, features, 0)
        for seed in range(seeds):
            err().print(f"{network.name} {layer}, seed {seed}: {len(channels)} features, {len(recipes)} recipes")
            for tally, result in zip(tallies, try_recipes(network, layer, channels, recipes, seed), strict=True):
                tally.add(result)
    rows = [summarise(r.name, t, tallies[0], seeds) for r, t in zip(recipes, tallies, strict=True)]
    for one, r, c in zip(rows, recipes, candidates, strict=True):
        one |= {"words": c.words, "steps": r.steps, "work": work(r), "size": r.size, "recipe": r.identity()}
    return rows


def merge_rows(
    before: dict[str, Any], what: dict[str, Any], recipes: dict[str, Any], rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Merge new rows with stored rows of the same features and recipes, in order.

    Parameters
    ----------
    before : dict
        Stored record of the network.
    what : dict
        Settings that rows have to have in common.
    recipes : dict
        Each candidate's recipe, as `Recipe.identity` returns it.
    rows : list of dict
        New rows.

    Returns
    -------
    list of dict
        Rows.
    """
    same = {k: before.get(k) for k in what} == what
    merged = {r["name"]: r for r in before.get("rows", []) if same and recipes.get(r["name"]) == r["recipe"]}
    merged |= {r["name"]: r for r in rows}
    return [merged[name] for name in recipes if name in merged]


def format_table(stored: dict[str, Any]) -> str:
    """Write the rows of all networks as Markdown."""
    lines = ["## Recipes", ""]
    for network in stored["networks"].values():
        lines += [
            f"`{command_line(network)}` on {network['network']}, {', '.join(network['layers'])}: "
            f"{network['features']} features of each, {network['seeds']} seeds, {network['rows'][0]['size']} pixels.",
            "",
            "| recipe | description | work, steps at full size | seconds | activation | per second | lost | "
            "high frequencies | identity rate | stopped early: steps, activation | wins |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for r in network["rows"]:
            early = ", ".join(f"{100 * v:.0f} %" for v in r["stopped"])
            activation, high, identity = (_format_interval(r[k]) for k in ("activation", "high", "identity"))
            lines.append(
                f"| {r['name']} | {r['words']} | {r['work']:.0f} | {r['seconds']:.2f} | {activation} | "
                f"{r['activation'][0] / r['seconds']:.2f} | {r['lost']} of {r['rows']} | {high} | {identity} | "
                f"{early} | {'yes' if r['wins'] else ''} |"
            )
        lines.append("")
    lines.append(
        f"Seconds, activation and high frequencies are relative to those of {BASE}; brackets are 95 % intervals over "
        "features. The columns and the rule for winners are described at the beginning of the script."
    )
    return "\n".join(lines)


def command_line(network: dict[str, Any]) -> str:
    """Write the command that makes the rows of a network again."""
    names = [r["name"] for r in network["rows"]]
    options = {
        "model": (network["model"], "reference"),
        "weights": (network["weights"], None),
        "layers": (",".join(network["layers"]), ",".join(LAYERS)),
        "features": (network["features"], FEATURES),
        "seeds": (network["seeds"], SEEDS),
        "size": (network["asked"], None),
        "only": (",".join(names[1:] or names), ",".join(c.recipe.name for c in CANDIDATES[1:])),
    }
    arguments = [f"--{name} {value}" for name, (value, usual) in options.items() if value != usual]
    return " ".join(["python -m analyses.benchmarks.search", *arguments])


def _format_interval(values: Sequence[float]) -> str:
    """Format a value with its interval."""
    return f"{values[0]:.3f} [{values[1]:.3f}, {values[2]:.3f}]"


def main(
    model: Annotated[str, typer.Option(help="As for `featmap similarity`.")] = "reference",
    weights: Annotated[str | None, typer.Option(help="As for `featmap similarity`.")] = None,
    layers: Annotated[str, typer.Option(help="Joined by commas.")] = ",".join(LAYERS),
    features: Annotated[int, typer.Option(help="Features drawn of each layer.")] = FEATURES,
    seeds: Annotated[int, typer.Option(help="Seeds of the noise.")] = SEEDS,
    size: Annotated[int | None, typer.Option(help="Image size in pixels, as for `featmap similarity`.")] = None,
    only: Annotated[str | None, typer.Option(help="Names of candidates, joined by commas.")] = None,
    out: Annotated[Path, typer.Option(help="The numbers, as JSON.")] = records.FOLDER / "search.json",
    readme: Annotated[Path, typer.Option(help="The table is written between marks in this file.")] = records.README,
) -> None:
    """Compare recipes and store the result."""
    if seeds < 1:
        raise FeatmapError(f"--seeds {seeds}: give 1 or more")
    network, candidates = load(model, weights), choose_candidates(only)
    names = [n.strip() for n in layers.split(",") if n.strip()]
    with device.deterministic_settings():
        rows = measure(network, names, candidates, features, seeds, size)
    stored = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {"networks": {}}
    key = f"{network.name} {weights or ''}".strip() + ("" if size is None else f" {size}")
    what = {"network": str(network), "sha256": network.sha256, "layers": names, "features": features}
    what |= {"seeds": seeds, "asked": size, "model": model, "weights": weights}
    recipes = {c.recipe.name: resolved_recipe(network, c.recipe, size) for c in CANDIDATES}
    now = {name: r.identity() for name, r in recipes.items()}
    machine = records.describe_machine("torchvision")
    rows = merge_rows(stored["networks"].get(key, {}), what, now, [r | {"machine": machine} for r in rows])
    stored["networks"][key] = {**what, "rows": rows}
    records.write_json(out, stored)
    records.write_table("search", format_table(stored), readme)
    print(format_table(stored))


if __name__ == "__main__":
    run(main)
