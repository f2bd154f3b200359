"""Which recipe makes more activation of the same work: candidates side by side, winners and losers.

    python -m analyses.benchmarks.search                                       # half an hour on two cores
    python -m analyses.benchmarks.search --model resnet50 --weights random --layers layer1.2,layer2.3,layer3.5
    python -m analyses.benchmarks.search --size 224 --only quick-24-middle,half-then-whole,quick-60-lighter

Every candidate makes the images of the same features, drawn at random, of three layers, with three seeds, all
candidates in turns at each batch; each is one change to a recipe that is named with it. What is told of it:

- its work: steps, each weighted by its image's area over the finished image's, and seconds a feature over those of the
  base in the same turns (median);
- activation over the base's on the same feature, geometric mean over features after that over seeds, with a 95 %
  interval over features (both on the untouched network, images clamped to [0, 1]); and lost: rows that end without
  activation where the base's has some, which no mean counts;
- high frequencies: the share of spectral power above a quarter of the sampling rate over the base's, mean and interval
  as of activation; smoothness turned round;
- identity rate: the share of features whose own image, of all images drawn, excites them most, with an interval over
  features, each the mean over its seeds;
- stopped early: what stopping each row once its activation rises by less than 2 % in three steps (and refilling its
  place) would do: the share of steps that rows would take, and of the activation that they would have.

A winner has more activation a second than the base (the columns' ratio above 1 at the interval's lower end), loses no
more than one row in 200, has no more high frequencies than the base and no lower identity rate by intervals that part.

Candidates may be tried in pieces, each beside the base: rows of the same features that were stored before stay.
What no candidate is: a start from another feature's image. An image depends on model, recipe, seed and unit alone.
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
from analyses.benchmarks.speed import chosen_features
from analyses.formulas import spectra
from analyses.support.commands import run
from analyses.support.findings import interval
from analyses.support.settings import resolved_recipe
from featmap import Network, channel, load
from featmap.cli.console import err
from featmap.errors import FeatmapError
from featmap.optimize.batch import Batches
from featmap.optimize.recipe import FAST, LARGE, SHORT_MEMORY_BETAS, STANDARD, Octave, Recipe
from featmap.optimize.responses import Probe
from featmap.runs import device

LAYERS = ("inception3a", "inception4c", "inception5a")
RISE, STEPS_BACK = 1.02, 3
FEATURES, SEEDS = 64, 3


@dataclass(frozen=True)
class Candidate:
    """A recipe to be tried, and what it tries in words."""

    recipe: Recipe
    words: str


def _of(name: str, words: str, *octaves: Octave, **changes: Any) -> Candidate:
    changes.setdefault("clamp", "every")
    return Candidate(Recipe(name, octaves, max_default_size=128, **changes), words)


def _ours(ours: Recipe, name: str, words: str) -> Candidate:
    return Candidate(replace(ours, name=name, max_default_size=128), f"{words}: `{ours.name}`")


BLUR, HALF = (1.0, 0.4), 0.5
CANDIDATES = (
    _of("adam-40", "Adam, 40 steps", Octave(40, (0.03, 0.02), BLUR)),
    _of("adam-20", "half the steps, twice as long", Octave(20, (0.06, 0.02), BLUR)),
    _of("quick-20", "shorter memory (0.8, 0.99), long steps", Octave(20, (0.08, 0.01), BLUR), betas=SHORT_MEMORY_BETAS),
    _of("quick-24", "the same, 24 steps", Octave(24, (0.08, 0.01), BLUR), betas=SHORT_MEMORY_BETAS),
    _of(
        "quick-28",
        "shorter memory, 28 steps of middling length",
        Octave(28, (0.06, 0.01), BLUR),
        betas=SHORT_MEMORY_BETAS,
    ),
    _of("quick-30", "shorter memory, 30 long steps", Octave(30, (0.08, 0.01), BLUR), betas=SHORT_MEMORY_BETAS),
    _of(
        "quick-weak-blur",
        "quick-20 under a weaker blur",
        Octave(20, (0.08, 0.01), (0.8, 0.3)),
        betas=SHORT_MEMORY_BETAS,
    ),
    _of(
        "quick-24-lighter",
        "quick-24 under a lighter blur",
        Octave(24, (0.08, 0.01), (0.9, 0.35)),
        betas=SHORT_MEMORY_BETAS,
    ),
    _ours(FAST, "quick-24-middle", "quick-24 under a blur between"),
    _of(
        "quick-20-lighter",
        "quick-20 under a lighter blur",
        Octave(20, (0.08, 0.01), (0.9, 0.35)),
        betas=SHORT_MEMORY_BETAS,
    ),
    _of(
        "coarse-to-fine",
        "10 steps at half the size, then 14",
        Octave(10, (0.08, 0.04), (1.0, 0.7), HALF),
        Octave(14, (0.06, 0.01), (0.8, 0.4)),
        betas=SHORT_MEMORY_BETAS,
    ),
    _of(
        "growing",
        "three sizes, 0.7, 0.85 and 1",
        Octave(8, (0.08, 0.06), (1.0, 0.8), 0.7),
        Octave(8, (0.06, 0.04), (0.8, 0.6), 0.85),
        Octave(10, (0.04, 0.01), (0.6, 0.4)),
        betas=SHORT_MEMORY_BETAS,
    ),
    _ours(LARGE, "half-then-whole", "24 steps at half the size, then 24"),
    _of("normalised-24", "gradient over its RMS", Octave(24, (0.1, 0.02), BLUR), optimiser="rms"),
    _of("quiet-start", "adam-40 from a quarter of the noise", Octave(40, (0.03, 0.02), BLUR), std=0.05),
    _of("jitter-40", "adam-40, rolled by up to 4 pixels", Octave(40, (0.03, 0.02), BLUR), jitter=4),
    _of("fourier-40", "Fourier image, no blur", Octave(40, (0.05, 0.05)), parameterisation="fourier", clamp="end"),
    _of(
        "fourier-slow",
        "Fourier image, steps that shrink",
        Octave(40, (0.05, 0.005)),
        parameterisation="fourier",
        clamp="end",
    ),
    _of("adam-120", "Adam, 120 steps", Octave(120, (0.03, 0.01), BLUR)),
    _of("quick-60", "shorter memory, 60 steps", Octave(60, (0.06, 0.005), BLUR), betas=SHORT_MEMORY_BETAS),
    _ours(STANDARD, "quick-60-lighter", "quick-60 under a lighter blur"),
    _of("quick-80", "shorter memory, 80 shorter steps", Octave(80, (0.04, 0.005), BLUR), betas=SHORT_MEMORY_BETAS),
)
BASE = CANDIDATES[0].recipe.name


def chosen(only: str | None) -> list[Candidate]:
    """Return the candidates of those names, the base first; all where none are named.

    Raises
    ------
    FeatmapError
        for a name that no candidate has.
    """
    known = {c.recipe.name: c for c in CANDIDATES}
    names = list(known) if only is None else [n.strip() for n in only.split(",") if n.strip()]
    for name in names:
        if name not in known:
            raise FeatmapError(f"candidate {name!r} is unknown; allowed: {', '.join(known)}")
    return [known[name] for name in dict.fromkeys([BASE, *names])]


def work(recipe: Recipe) -> float:
    """Return the steps of a resolved recipe, each weighted by its image's area over the finished image's."""
    return float(sum(o.steps * (side / recipe.size) ** 2 for o, side in zip(recipe.octaves, recipe.sizes, strict=True)))


def stopped(curve: np.ndarray) -> np.ndarray:
    """Return for N x steps activations where each row would be stopped: N x 2, share of steps and of activation.

    A row stops at the first step that is less than `RISE` times the activation `STEPS_BACK` steps before, and above 0.
    NaN for a row that ends without activation.
    """
    count, steps = curve.shape
    found = np.full((count, 2), np.nan)
    for row, values in enumerate(curve):
        if values[-1] > 0:
            slow = [k for k in range(STEPS_BACK, steps) if 0 < values[k] < RISE * values[k - STEPS_BACK]]
            at = slow[0] if slow else steps - 1
            found[row] = (at + 1) / steps, values[at] / values[-1]
    return found


def over_features(values: np.ndarray, seeds: int) -> tuple[list[float], int]:
    """Return mean and 95 % interval over features, each the mean over its seeds, and how many features count.

    Parameters
    ----------
    values : (layers x seeds) x features, seeds fastest; NaN where undefined
    """
    each = np.ma.masked_invalid(values.reshape(-1, seeds, values.shape[1])).mean(1).compressed()
    return (list(interval(each)) if len(each) else [float("nan")] * 3), len(each)


@dataclass
class Tally:
    """What is known of one candidate: by layer and seed, over the features drawn."""

    activation: list[list[float]]
    high: list[list[float]]
    own: list[list[bool]]
    stopped: list[list[list[float]]]
    seconds: list[float]

    def add(self, found: dict[str, Any]) -> None:
        """Enter one layer and seed."""
        self.seconds += found.pop("seconds")
        for kind, values in found.items():
            getattr(self, kind).append(values)


def tried(network: Network, layer: str, channels: Sequence[int], recipes: Sequence[Recipe], seed: int) -> list[Any]:
    """Return what each recipe made of some features of a layer with one seed, all in turns at each batch."""
    batches, rows = Batches(network, torch.device("cpu")), recipes[0].rows
    parts: list[list[Any]] = [[] for _ in recipes]
    seconds: list[list[float]] = [[] for _ in recipes]
    for recipe in recipes:  # what is made once for a layer and an image size is nobody's time
        short = replace(recipe, octaves=tuple(replace(o, steps=1) for o in recipe.octaves))
        batches.descend([channel(layer, channels[0])], short, seed)
    for turn, first in enumerate(range(0, len(channels), rows)):
        objectives = [channel(layer, c) for c in channels[first : first + rows]]
        for k in range(len(recipes)):
            which = (k + turn) % len(recipes)
            begun = time.perf_counter()
            parts[which].append(batches.descend(objectives, recipes[which], seed))
            seconds[which].append((time.perf_counter() - begun) / len(objectives))
    found = []
    for made, took in zip(parts, seconds, strict=True):
        images = torch.cat([m.images for m in made]).clamp(0, 1)
        responses = Probe(network, rows).responses(images, [layer])[layer][:, list(channels)]
        curve = torch.cat([m.curve for m in made])[:, :, 0].numpy()
        found.append(
            {
                "activation": responses.diagonal().tolist(),
                "high": spectra.high_frequency_share(images.numpy()).tolist(),
                "own": (responses.argmax(0) == np.arange(len(channels))).tolist(),
                "stopped": stopped(curve).tolist(),
                "seconds": took,
            }
        )
    return found


def row(name: str, mine: Tally, base: Tally, seeds: int) -> dict[str, Any]:
    """Return one candidate's figures."""
    ours, theirs = (np.array(t.activation, dtype=float) for t in (mine, base))
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = np.log(np.where((ours > 0) & (theirs > 0), ours / theirs, np.nan))
        high = np.log(np.array(mine.high, dtype=float) / np.array(base.high, dtype=float))
    early = np.array(mine.stopped, dtype=float).reshape(-1, 2)
    found = {
        "name": name,
        "activation": np.exp(over_features(gain, seeds)[0]).tolist(),
        "lost": int(((ours <= 0) & (theirs > 0)).sum()),
        "rows": int(ours.size),
        "high": np.exp(over_features(high, seeds)[0]).tolist(),
        "high_share": float(np.nanmedian(np.array(mine.high, dtype=float))),
        "identity": over_features(np.array(mine.own, dtype=float), seeds)[0],
        "base_identity": over_features(np.array(base.own, dtype=float), seeds)[0],
        "stopped": np.nanmean(early, axis=0).tolist(),
        "seconds": float(np.median(np.array(mine.seconds) / np.array(base.seconds))),
    }
    return found | {"wins": wins(found)}


def wins(found: dict[str, Any]) -> bool:
    """Return whether a candidate wins over the base, by the rule at the script's beginning."""
    return bool(
        found["activation"][1] / found["seconds"] > 1
        and found["lost"] * 200 <= found["rows"]
        and found["high"][0] <= 1
        and found["identity"][2] >= found["base_identity"][1]
    )


def measure(
    network: Network,
    layers: Sequence[str],
    candidates: Sequence[Candidate],
    features: int,
    seeds: int,
    size: int | None = None,
) -> list[dict[str, Any]]:
    """Return the figures of every candidate, at an image size (None: the recipes' own)."""
    recipes = [resolved_recipe(network, c.recipe, size) for c in candidates]
    tallies = [Tally([], [], [], [], []) for _ in candidates]
    for layer in layers:
        channels = chosen_features(network, layer, features, 0)
        for seed in range(seeds):
            err().print(f"{network.name} {layer}, seed {seed}: {len(channels)} features, {len(recipes)} recipes")
            for tally, found in zip(tallies, tried(network, layer, channels, recipes, seed), strict=True):
                tally.add(found)
    rows = [row(r.name, t, tallies[0], seeds) for r, t in zip(recipes, tallies, strict=True)]
    for made, r, c in zip(rows, recipes, candidates, strict=True):
        made |= {"words": c.words, "steps": r.steps, "work": work(r), "size": r.size, "recipe": r.identity()}
    return rows


def merged(
    before: dict[str, Any], what: dict[str, Any], recipes: dict[str, Any], rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the rows of candidates tried now, and of those tried before with the same features and recipe, in order.

    Parameters
    ----------
    before : what was stored of the network
    what : what rows have to have in common
    recipes : each candidate's recipe, as `Recipe.identity` has it
    """
    same = {k: before.get(k) for k in what} == what
    known = {r["name"]: r for r in before.get("rows", []) if same and recipes.get(r["name"]) == r["recipe"]}
    known |= {r["name"]: r for r in rows}
    return [known[name] for name in recipes if name in known]


def table(found: dict[str, Any]) -> str:
    """Return all networks' figures as Markdown."""
    lines = ["## Recipes", ""]
    for known in found["networks"].values():
        lines += [
            f"`{command(known)}` on {known['network']}, {', '.join(known['layers'])}: "
            f"{known['features']} features of each, {known['seeds']} seeds, {known['rows'][0]['size']} pixels.",
            "",
            "| recipe | what it is | work, steps at full size | seconds | activation | a second | lost | "
            "high frequencies | own image excites most | stopped early: steps, activation | wins |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for r in known["rows"]:
            early = ", ".join(f"{100 * v:.0f} %" for v in r["stopped"])
            lines.append(
                f"| {r['name']} | {r['words']} | {r['work']:.0f} | {r['seconds']:.2f} | {_bracket(r['activation'])} | "
                f"{r['activation'][0] / r['seconds']:.2f} | {r['lost']} of {r['rows']} | {_bracket(r['high'])} | "
                f"{_bracket(r['identity'])} | {early} | {'yes' if r['wins'] else ''} |"
            )
        lines.append("")
    lines.append(
        f"Seconds, activation and high frequencies are over those of {BASE}; brackets hold 95 % intervals over "
        "features. What the columns and winning mean says the script's beginning."
    )
    return "\n".join(lines)


def command(known: dict[str, Any]) -> str:
    """Return what makes the rows of a network again; they may have been made in pieces."""
    names = [r["name"] for r in known["rows"]]
    options = {
        "model": (known["model"], "reference"),
        "weights": (known["weights"], None),
        "layers": (",".join(known["layers"]), ",".join(LAYERS)),
        "features": (known["features"], FEATURES),
        "seeds": (known["seeds"], SEEDS),
        "size": (known["asked"], None),
        "only": (",".join(names[1:] or names), ",".join(c.recipe.name for c in CANDIDATES[1:])),
    }
    given = [f"--{name} {value}" for name, (value, usual) in options.items() if value != usual]
    return " ".join(["python -m analyses.benchmarks.search", *given])


def _bracket(values: Sequence[float]) -> str:
    return f"{values[0]:.3f} [{values[1]:.3f}, {values[2]:.3f}]"


def main(
    model: Annotated[str, typer.Option(help="As for `featmap similarity`.")] = "reference",
    weights: Annotated[str | None, typer.Option(help="As for `featmap similarity`.")] = None,
    layers: Annotated[str, typer.Option(help="Joined by commas.")] = ",".join(LAYERS),
    features: Annotated[int, typer.Option(help="Features drawn of each layer.")] = FEATURES,
    seeds: Annotated[int, typer.Option(help="Seeds of the noise.")] = SEEDS,
    size: Annotated[int | None, typer.Option(help="Image size in pixels; as `featmap similarity` has it.")] = None,
    only: Annotated[str | None, typer.Option(help="Names of candidates, joined by commas.")] = None,
    out: Annotated[Path, typer.Option(help="The numbers, as JSON.")] = records.FOLDER / "search.json",
    readme: Annotated[Path, typer.Option(help="The table is written between marks in this file.")] = records.README,
) -> None:
    """Try recipes side by side, and tell which make more activation of the same work."""
    if seeds < 1:
        raise FeatmapError(f"--seeds {seeds}: give 1 or more")
    network, candidates = load(model, weights), chosen(only)
    names = [n.strip() for n in layers.split(",") if n.strip()]
    with device.deterministic_settings():
        rows = measure(network, names, candidates, features, seeds, size)
    found = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {"networks": {}}
    key = f"{network.name} {weights or ''}".strip() + ("" if size is None else f" {size}")
    what = {"network": str(network), "sha256": network.sha256, "layers": names, "features": features}
    what |= {"seeds": seeds, "asked": size, "model": model, "weights": weights}
    recipes = {c.recipe.name: resolved_recipe(network, c.recipe, size) for c in CANDIDATES}
    now = {name: r.identity() for name, r in recipes.items()}
    machine = records.machine("torchvision")
    rows = merged(found["networks"].get(key, {}), what, now, [r | {"machine": machine} for r in rows])
    found["networks"][key] = {**what, "rows": rows}
    records.write(out, found)
    records.write_table("search", table(found), readme)
    print(table(found))


if __name__ == "__main__":
    run(main)
