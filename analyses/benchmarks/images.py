"""Compare recipes, and other tools, by how far other networks recognise their images.

    python -m analyses.benchmarks.images --by mypackage.nets:other --photographs FOLDER --recipes fast,standard
    python -m analyses.benchmarks.images --model resnet50 --by squeezenet1_1 --by vgg11 --photographs FOLDER \
        --layers layer2.3,layer3.5 --recipes standard,article-normalised --opponents lucent,dreamlens

Every recipe makes images of the same class logits and hidden features, drawn at random by `--draw`: tune on one draw,
report on another. The measures are those of `featmap judge` (`featmap judge --help` explains them): transfer to each
other network, coverage, contrast, colour, spectrum, activation and similarity beside photographs, and seconds an image.

Everything goes to `--out`: the images of each recipe as a run folder, its statistics as `RECIPE.csv`, all of them as
`images.csv`, and a table as `images.md`. A recipe whose statistics are there with the same settings is not made again;
an interrupted one is resumed. Other tools make hidden features only (their objectives are means over a grid), with
their own defaults; one that is not installed, or fails on this network, is named and left out.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer

import featmap
from analyses.benchmarks import records
from analyses.benchmarks.opponents import OPPONENTS, Opponent
from analyses.benchmarks.speed import draw_features
from analyses.support.commands import run
from featmap import Network
from featmap.cli import console
from featmap.cli.app import expand_options
from featmap.cli.judge import JudgeOptions
from featmap.cli.options import NetworkOptions
from featmap.errors import FeatmapError
from featmap.files import digest, safe_file_name, write_atomically
from featmap.network.modules import copy_module
from featmap.network.unit import parse_channels
from featmap.optimize.photograph_folder import open_photographs
from featmap.optimize.recipe import Recipe
from featmap.runs import device
from featmap.runs.progress import Watcher
from featmap.runs.store import Run
from featmap.stats.frames import finite_column
from featmap.validation.image_evidence import RunImages
from featmap.validation.image_inputs import (
    Judge,
    PhotographEvidence,
    class_layer,
    images_of_pixels,
    images_of_run,
)
from featmap.validation.image_statistics import ALL, IMAGES, PHOTOGRAPHS
from featmap.validation.judgement import Judgement, load_judges, measure_images
from featmap.validation.results import Statistic

CLASSES, FEATURES = 16, 16


@dataclass(frozen=True)
class Comparison:
    """What is compared: a network's units, the networks that judge their images, and photographs.

    Parameters
    ----------
    network : Network
        The network that images are made for.
    logits, hidden : dict
        Channels drawn, by layer.
    judges : tuple of Judge
        The other networks.
    photographs : PhotographEvidence or None
        Photographs.
    folder : Path
        Folder of this comparison, named by its settings.
    seed : int
        Seed of every image.
    """

    network: Network
    logits: dict[str, list[int]]
    hidden: dict[str, list[int]]
    judges: tuple[Judge, ...]
    photographs: PhotographEvidence | None
    folder: Path
    seed: int

    def units(self) -> list[str]:
        """List the units, class logits first."""
        return [f"{layer}:{c}" for layer, channels in (self.logits | self.hidden).items() for c in channels]

    def measure(self, images: RunImages, watcher: Watcher) -> Judgement:
        """Measure images."""
        with device.deterministic_settings():
            return measure_images(images, self.network, self.judges, self.photographs, torch.device("cpu"), watcher)


def seconds_statistic(seconds: float, count: int) -> Statistic:
    """Make the statistic of the seconds that each of `count` images took."""
    return Statistic(ALL, IMAGES, "seconds", seconds, count=count, note="depends on the machine and what else it did")


def try_recipe(comparison: Comparison, recipe: Recipe, watcher: Watcher) -> Judgement:
    """Make the images of a recipe, or resume them, and measure them."""
    folder = comparison.folder / f"{recipe.name}-{digest(recipe.identity())}"
    execution = featmap.Execution("cpu", out=folder, watcher=watcher)
    data = featmap.maximise(
        comparison.units(), comparison.network, recipe=recipe, seeds=[comparison.seed], execution=execution
    )
    images = images_of_run(data)
    judgement = comparison.measure(images, watcher)
    seconds = Run.read(folder).manifest.timings.get("descent_and_probe")
    if seconds is not None:
        judgement.results.append(seconds_statistic(seconds / len(images.labels), len(images.labels)))
    return judgement


def try_opponent(comparison: Comparison, opponent: Opponent, watcher: Watcher) -> Judgement:
    """Make another tool's images of the hidden features, and measure them."""
    opponent.preload()
    labels: list[str] = []
    pixels, start = [], time.perf_counter()
    for layer, channels in comparison.hidden.items():
        for drawn in [channels] if opponent.batched else [[c] for c in channels]:
            copy = copy_network(comparison.network)  # some tools leave hooks behind
            pixels.append(opponent.make(copy, layer, drawn, comparison.seed).float())
            labels += [f"{layer}:{c}" for c in drawn]
            watcher.stage(opponent.name, len(labels), sum(map(len, comparison.hidden.values())))
    seconds = (time.perf_counter() - start) / len(labels)
    judgement = comparison.measure(images_of_pixels(labels, torch.cat(pixels)), watcher)
    judgement.results.append(seconds_statistic(seconds, len(labels)))
    return judgement


def copy_network(network: Network) -> Network:
    """Copy a network with its module."""
    copy = Network(copy_module(network.module), network.name, network.weights, network.sha256, network.input_size)
    copy.mean, copy.std = network.mean, network.std
    return copy


def choose_opponents(names: Sequence[str]) -> list[Opponent]:
    """Choose other tools by name; those that are not installed are named and left out.

    Raises
    ------
    FeatmapError
        For an unknown name.
    """
    by_name = {o.name: o for o in OPPONENTS}
    chosen = []
    for name in names:
        if name not in by_name:
            raise FeatmapError(f"opponent {name!r} is unknown; allowed: {', '.join(by_name)}")
        if by_name[name].installed:
            chosen.append(by_name[name])
        else:
            console.err().print(f"{name} is left out: pip install 'featmap[bench]' installs it")
    return chosen


def compare_one(comparison: Comparison, one: Recipe | Opponent, settings: str, watcher: Watcher) -> pd.DataFrame | None:
    """Read the statistics of a recipe or tool, or make and measure its images; None for a tool that fails."""
    path = comparison.folder / f"{safe_file_name(one.name)}-{settings}.csv"
    frame = stored_statistics(path, settings)
    if frame is not None:
        return frame
    watcher.note(one.name)
    if isinstance(one, Recipe):
        judgement = try_recipe(comparison, one, watcher)
    else:
        try:
            judgement = try_opponent(comparison, one, watcher)
        except Exception as error:  # noqa: BLE001 - a tool may fail in any way on a network of others
            watcher.note(f"{one.name} is left out: it fails on this network ({type(error).__name__}: {error})")
            return None
    frame = judgement.statistics.assign(recipe=one.name, settings=settings)
    write_csv(path, frame)
    return frame


def stored_statistics(path: Path, settings: str) -> pd.DataFrame | None:
    """Read the statistics of a recipe; None where there are none of the same settings."""
    if not path.is_file():
        return None
    frame = pd.read_csv(path, keep_default_na=False, na_values=[""])
    return frame if not frame.empty and (frame["settings"] == settings).all() else None


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a table as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda p: frame.to_csv(p, index=False, float_format="%.6g", lineterminator="\n"))


def _value(rows: pd.DataFrame, layer: str | None, of: str, name: str) -> str:
    """Format one statistic; the mean over layers where none is named; "" where there is none."""
    found = rows[(rows["network"] == of) & (rows["name"] == name)]
    if layer is not None:
        found = found[found["layer"] == layer]
    values = finite_column(found["value"].to_numpy())
    return f"{np.nanmean(values):.2f}" if np.isfinite(values).any() else ""


def format_table(frame: pd.DataFrame, judges: Sequence[str], heading: Sequence[str]) -> str:
    """Write the statistics of all recipes as Markdown.

    Parameters
    ----------
    frame : pandas.DataFrame
        Statistics of all recipes, with a column `recipe`.
    judges : sequence of str
        Names of the judges.
    heading : sequence of str
        Lines before the table.

    Returns
    -------
    str
        A row for each recipe; coverage, multiples and agreement are means over the hidden layers.
    """
    columns = ["recipe", "s an image"]
    columns += [f"{j}: top-1 / top-5 / median rank" for j in judges]
    columns += [f"{j}: percentile / baseline / among images" for j in judges]
    columns += ["coverage", "contrast over photographs'", "slope less photographs'", "colour distance"]
    columns += ["multiple of best photograph", "agreement of S", "of roots"]
    lines = [*heading, "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for recipe, every in frame.groupby("recipe", sort=False):
        hidden = every[~every["layer"].isin(every.loc[every["name"] == "top1", "layer"])]
        cells = [str(recipe), _value(every, ALL, IMAGES, "seconds")]
        cells += [" / ".join(_value(every, None, j, n) for n in ("top1", "top5", "median_rank")) for j in judges]
        three = ("percentile", "baseline", "among_images")
        cells += [" / ".join(_value(every, None, j, n) for n in three) for j in judges]
        cells.append(_value(hidden, None, IMAGES, "coverage"))
        cells += [_value(every, ALL, IMAGES, n) for n in ("contrast_ratio", "slope_difference", "colour_distance")]
        names = ("multiple_of_best_photograph", "agreement", "agreement_of_roots")
        cells += [_value(hidden, None, IMAGES, n) for n in names]
        lines.append(f"| {' | '.join(cells)} |")
    contrast, slope = (_value(frame, ALL, PHOTOGRAPHS, n) for n in ("contrast", "slope"))
    if contrast:
        lines += ["", f"Photographs: contrast {contrast}, slope of the power spectrum {slope}."]
    return "\n".join(lines) + "\n"


def main(
    network: NetworkOptions,
    judges: JudgeOptions,
    photographs: Annotated[Path | None, typer.Option(help="A folder of photographs, about 1,000.")] = None,
    recipes: Annotated[str, typer.Option(help="Names of recipes, joined by commas.")] = "fast,standard",
    opponents: Annotated[str, typer.Option(help="Names of other tools, joined by commas.")] = "",
    layers: Annotated[str, typer.Option(help="Layers of the hidden features, joined by commas.")] = "inception4a",
    classes: Annotated[int, typer.Option(help="Class logits drawn; 0 for none.")] = CLASSES,
    features: Annotated[int, typer.Option(help="Hidden features drawn of each layer; 0 for none.")] = FEATURES,
    units: Annotated[str | None, typer.Option(help="Instead of drawing classes: their numbers, such as 1,77.")] = None,
    size: Annotated[int | None, typer.Option(help="Image size in pixels; default: each recipe's own.")] = None,
    draw: Annotated[int, typer.Option(help="Number of the draw of classes and features.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of every image.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of images and results.")] = Path("runs/images"),
) -> None:
    """Compare recipes by how far other networks recognise their images."""
    loaded, by = network.load(), load_judges(judges.load())
    names = [n.strip() for n in recipes.split(",") if n.strip()]
    chosen = [Recipe.named(name, size).resolved(loaded.input_size) for name in names]
    tools = choose_opponents([n.strip() for n in opponents.split(",") if n.strip()])
    logits, layer = {}, class_layer(loaded, loaded.input_size)
    if (units or classes) and layer is not None:
        count = loaded.layer(layer).channels
        logits = {layer: parse_channels(units, count, layer) if units else draw_features(loaded, layer, classes, draw)}
    listed = [n.strip() for n in layers.split(",") if n.strip()] if features else []
    hidden = {name: draw_features(loaded, name, features, draw) for name in listed}
    if not logits and not hidden:
        raise FeatmapError("nothing to make: give classes or features of 1 or more")
    made = {
        "network": loaded.identity(),
        "units": {k: list(v) for k, v in (logits | hidden).items()},
        "seed": seed,
    }
    natural = None if photographs is None else open_photographs(photographs)
    measured = {
        "judges": [j.network.identity() | {"input_size": j.network.input_size} for j in by],
        "photographs": None if natural is None else natural.digest,
    }
    folder, frames = out / f"{safe_file_name(loaded.name)}-{digest(made)}", []
    with console.ProgressBars() as watcher:
        evidence = None if natural is None else PhotographEvidence(natural, torch.device("cpu"), watcher)
        comparison = Comparison(loaded, logits, hidden, by, evidence, folder, seed)
        for one in [*chosen, *(tools if hidden else [])]:
            identity = one.identity() if isinstance(one, Recipe) else {"tool": one.name, "version": one.version}
            settings = digest(measured | {"made": made, "recipe": identity})
            frame = compare_one(comparison, one, settings, watcher)
            if frame is not None:
                frames.append(frame)
    if not frames:
        raise FeatmapError("no recipe and no tool made any image; give recipes, such as fast,standard")
    whole = pd.concat(frames, ignore_index=True)
    write_csv(folder / "images.csv", whole)
    heading = [
        f"{loaded}; {', '.join(f'{len(c)} of {la}' for la, c in (logits | hidden).items())}, draw {draw}, seed {seed}.",
        f"Judges: {', '.join(str(j.network) for j in by)}.",
    ]
    text = format_table(whole, [j.name for j in by], heading)
    write_atomically(folder / "images.md", lambda p: p.write_text(text, encoding="utf-8"))
    about = json.dumps(made | measured | {"machine": records.describe_machine()}, indent=1) + "\n"
    write_atomically(folder / "settings.json", lambda p: p.write_text(about, encoding="utf-8"))
    console.out().print(text)
    console.out().print(f"result: {folder} (images.md, images.csv, settings.json)")


if __name__ == "__main__":
    run(expand_options(main))
