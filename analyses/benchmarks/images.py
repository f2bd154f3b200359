"""Compare recipes, and other tools, by how far other networks recognise their images.

    python -m analyses.benchmarks.images --by mypackage.nets:other --photographs FOLDER --recipes fast,standard
    python -m analyses.benchmarks.images --model mypackage.nets:mine --by mypackage.nets:other --photographs FOLDER \
        --layers layer2.3 --recipes standard,article-normalised --opponents lucent,dreamlens,horama --few 8 --seeds 2
    python -m analyses.benchmarks.images --check

Every way makes images of the same class logits and hidden features, drawn at random by `--draw`: tune on one draw,
report on another. The measures are those of `featmap judge` (`featmap judge --help` explains them): transfer to each
other network, coverage, contrast, colour, spectrum, activation and similarity beside photographs, and seconds an image.
A judge with other classes than the network judges hidden features only.

The images go to `--out`, the values to a JSON file after each way, and from there to the README: a call for each
network adds its rows. What is there with the same settings (a recipe's digest among them) is not made again, and an
interrupted call goes on where it stopped. Other tools run with their own defaults, on `--few` of the classes and
features if they are slow; their images of more than 384 pixels are measured at the network's own size. A tool that is
not installed, or fails on this network, is named and left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

from analyses.benchmarks import records
from analyses.benchmarks.image_records import (
    SECTION,
    STORE,
    Record,
    RecordFile,
    format_page,
    page_is_fresh,
    short_name,
)
from analyses.benchmarks.image_strip import draw_strip
from analyses.benchmarks.image_ways import (
    ClassPhotographs,
    RecipeWay,
    StoredPhotographs,
    Task,
    TimedImages,
    ToolWay,
    Way,
    choose_opponents,
    split_names,
)
from analyses.benchmarks.speed import draw_features
from analyses.support.commands import run
from featmap import Network
from featmap.cli import console
from featmap.cli.app import expand_options
from featmap.cli.judge import JudgeOptions
from featmap.cli.options import NetworkOptions
from featmap.errors import FeatmapError
from featmap.files import digest
from featmap.image_shape import format_size
from featmap.network.unit import parse_channels
from featmap.optimize.photograph_folder import open_photographs
from featmap.optimize.recipe import Recipe
from featmap.runs import device
from featmap.runs.progress import Watcher
from featmap.validation.image_inputs import Judge, PhotographEvidence, class_layer
from featmap.validation.judgement import load_judges, measure_images

CLASSES, FEATURES = 16, 16


@dataclass(frozen=True)
class Comparison:
    """What is compared: a network's units, the networks that judge their images, and photographs.

    Parameters
    ----------
    task : Task
        The network and its units.
    judges : tuple of Judge
        The other networks.
    photographs : PhotographEvidence or None
        Photographs.
    store : RecordFile
        File of the records.
    """

    task: Task
    judges: tuple[Judge, ...]
    photographs: PhotographEvidence | None
    store: RecordFile

    def settings(self, way: Way, seed: int) -> str:
        """Compute a digest of everything that the record of a way depends on."""
        judges = [j.network.identity() | {"input_size": j.network.input_size} for j in self.judges]
        photographs = None if self.photographs is None else self.photographs.folder.digest
        images = {"network": self.task.network.identity(), "units": way.units(self.task), "seed": seed}
        return digest(images | {"judges": judges, "photographs": photographs, "way": way.identity()})

    def record(self, way: Way, seed: int, watcher: Watcher) -> Record | None:
        """Read the record of a way, or make and measure its images; None for a tool that fails."""
        task, settings, source = self.task, self.settings(way, seed), short_name(self.task.network.name)
        found = self.store.find(source, way.name, seed, settings)
        if found is not None:
            return found
        watcher.note(f"{way.name}, seed {seed}")
        made = self.make(way, seed, watcher)
        if made is None:
            return None
        record = Record(
            source=source,
            weights=task.network.sha256,
            way=way.name,
            kind=way.kind,
            words=way.words,
            seed=seed,
            draw=task.draw,
            settings=settings,
            size=format_size(made.images.size),
            classes=task.classes,
            units=list(made.images.labels),
            seconds=made.seconds,
        )
        with device.deterministic_settings():
            cpu = torch.device("cpu")
            record.fill(measure_images(made.images, task.network, self.judges, self.photographs, cpu, watcher))
        self.store.add(record)
        return record

    def make(self, way: Way, seed: int, watcher: Watcher) -> TimedImages | None:
        """Make images, or read those that are there; None for a tool that fails."""
        if not isinstance(way, ToolWay):
            return way.make(self.task, seed, watcher)
        try:
            return way.make(self.task, seed, watcher)
        except Exception as error:  # noqa: BLE001 - a tool may fail in any way on a network of others
            watcher.note(f"{way.name} is left out: it fails on this network ({type(error).__name__}: {error})")
            return None


def draw_units(
    network: Network, layers: Sequence[str], classes: int, features: int, units: str | None, draw: int
) -> tuple[str, dict[str, list[int]]]:
    """Draw class logits and hidden features.

    Returns
    -------
    layer : str
        Layer of the class logits; "" where none are drawn.
    channels : dict of list
        Channels by layer, class logits first.

    Raises
    ------
    FeatmapError
        If nothing is left to make.
    """
    layer, drawn = class_layer(network, network.input_size), {}
    if (units or classes) and layer is not None:
        count = network.layer(layer).channels
        drawn[layer] = parse_channels(units, count, layer) if units else draw_features(network, layer, classes, draw)
    found = layer if layer in drawn and layer is not None else ""
    drawn |= {name: draw_features(network, name, features, draw) for name in layers if features}
    if not drawn:
        raise FeatmapError("nothing to make: give classes or features of 1 or more")
    return found, drawn


def main(
    network: NetworkOptions,
    judges: JudgeOptions,
    photographs: Annotated[Path | None, typer.Option(help="A folder of photographs, about 1,000.")] = None,
    class_order: Annotated[
        bool,
        typer.Option(
            "--class-order",
            help="The photographs are one of each class, in the order of the classes: judge those of the drawn ones.",
        ),
    ] = False,
    recipes: Annotated[str, typer.Option(help="Names of recipes, joined by commas.")] = "fast,standard",
    opponents: Annotated[str, typer.Option(help="Names of other tools, joined by semicolons or commas.")] = "",
    layers: Annotated[str, typer.Option(help="Layers of the hidden features, joined by commas.")] = "inception4a",
    classes: Annotated[int, typer.Option(help="Class logits drawn; 0 for none.")] = CLASSES,
    features: Annotated[int, typer.Option(help="Hidden features drawn of each layer; 0 for none.")] = FEATURES,
    few: Annotated[
        str | None,
        typer.Option(
            help="Classes, and features of a layer, that other tools make, such as 8, or 8+0 for no features; with a "
            "number for one tool alone: 8+8;horama=2+0."
        ),
    ] = None,
    units: Annotated[str | None, typer.Option(help="Instead of drawing classes: their numbers, such as 1,77.")] = None,
    size: Annotated[int | None, typer.Option(help="Image size in pixels; default: each recipe's own.")] = None,
    draw: Annotated[int, typer.Option(help="Number of the draw of classes and features.")] = 0,
    seed: Annotated[int, typer.Option(help="First seed of every image.")] = 0,
    seeds: Annotated[int, typer.Option(help="Number of seeds.")] = 1,
    strip: Annotated[Path | None, typer.Option(help="Draw the images of each way as a row of this picture.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of images.")] = Path("runs/images"),
    store: Annotated[Path, typer.Option(help="The values, as JSON.")] = STORE,
    readme: Annotated[Path, typer.Option(help="The table is written between marks in this file.")] = records.README,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; check that table and values agree.")] = False,
) -> None:
    """Compare recipes and other tools by how far other networks recognise their images."""
    if check:
        if not page_is_fresh(store, readme):
            raise FeatmapError(f"{readme.name} and {store.name} disagree; make the table again")
        return
    if seeds < 1:
        raise FeatmapError(f"--seeds {seeds}: give 1 or more")
    loaded, by = network.load(), load_judges(judges.load())
    chosen = [Recipe.named(name, size).resolved(loaded.input_size) for name in split_names(recipes)]
    tools = choose_opponents(opponents)
    found, drawn = draw_units(loaded, split_names(layers), classes, features, units, draw)
    natural = None if photographs is None else open_photographs(photographs)
    ways: list[Way] = [RecipeWay(recipe) for recipe in chosen] + [ToolWay(tool, few) for tool in tools]
    if class_order and natural is not None and found:
        ways.insert(0, ClassPhotographs(natural))
    task = Task(loaded, found, drawn, draw, out)
    with console.ProgressBars() as watcher:
        evidence = None if natural is None else StoredPhotographs(natural, task, watcher)
        comparison = Comparison(task, by, evidence, RecordFile(store))
        numbers = range(seed, seed + seeds)
        # photographs have no seed
        made = [(way, 0) for way in ways if isinstance(way, ClassPhotographs)]
        made += [(way, number) for number in numbers for way in ways if not isinstance(way, ClassPhotographs)]
        done = [r for way, number in made if (r := comparison.record(way, number, watcher)) is not None]
        if not done:
            raise FeatmapError("no recipe and no tool made any image; give recipes, such as fast,standard")
        records.write_table(SECTION, format_page(comparison.store.read()), readme)
        if strip is not None:
            rows = [(w.name, comparison.make(w, seed, watcher)) for w in ways]
            draw_strip([(name, made.images) for name, made in rows if made is not None], strip)
    console.out().print(format_page(done), soft_wrap=True)
    console.out().print(f"result: {store} and {readme}")


if __name__ == "__main__":
    run(expand_options(main))
