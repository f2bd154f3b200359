"""The command line: parse, make one library call, print where the result lies."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from featmap.cli import entry
from featmap.cli.atlas import make_atlas
from featmap.cli.interact import interact
from featmap.cli.options import (
    Address,
    Constant,
    Device,
    DryRun,
    EngineName,
    Features,
    Frames,
    InputSize,
    Mean,
    Metric,
    Model,
    Out,
    Precision,
    RecipeName,
    Rows,
    Seed,
    Seeds,
    Size,
    Start,
    Std,
    Steps,
    Threads,
    Weights,
    Workers,
    print_dry_run,
    read_engine,
    read_layers,
    read_network,
    read_recipe,
    watched,
)
from featmap.cli.validate import validate
from featmap.cli.verify import verify
from featmap.errors import FeatmapError

app = typer.Typer(
    name="featmap",
    help="Feature similarity and interaction mapping in convolutional networks.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

app.command()(interact)
app.command(name="atlas")(make_atlas)
app.command()(validate)
app.command()(verify)


def _version(wanted: bool) -> None:
    if wanted:
        from featmap import __version__

        print(f"featmap {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version and stop.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (anywhere on the line).")
    ] = False,
) -> None:
    """Feature similarity and interaction mapping in convolutional networks."""


@app.command()
def similarity(
    layer: Annotated[
        str | None,
        typer.Option(
            help="The layer that is mapped (see `featmap layers`); by commas or patterns several, and every pair of "
            "them; all: the network's blocks; convs: its convolutions."
        ),
    ] = None,
    probe_layer: Annotated[
        str | None,
        typer.Option(help="With --layer: other layers, joined by commas, whose responses are recorded too."),
    ] = None,
    layers: Annotated[str | None, typer.Option(help="The same as --layer with several.")] = None,
    features: Annotated[
        str, typer.Option(help="Channels of each layer maximised that are shown, such as 0-15,42, or all.")
    ] = "all",
    stimuli: Annotated[
        str, typer.Option(help="Images used: of the whole layer, or only of the features shown.")
    ] = "layer",
    measure: Annotated[
        str, typer.Option(help="What the heatmap shows: coactivation, raw, relative, selective, profile.")
    ] = "coactivation",
    neighbours: Annotated[int, typer.Option(help="k of the nearest-neighbour graph.")] = 10,
    model: Model = "reference",
    weights: Weights = None,
    mean: Mean = None,
    std: Std = None,
    input_size: InputSize = None,
    recipe: RecipeName = None,
    size: Size = None,
    steps: Steps = None,
    metric: Metric = None,
    constant: Constant = None,
    rows: Rows = None,
    precision: Precision = None,
    seed: Seed = None,
    seeds: Seeds = 1,
    start: Start = None,
    device: Device = "auto",
    engine: EngineName = "here",
    workers: Workers = None,
    threads: Threads = None,
    address: Address = None,
    out: Out = None,
    dry_run: DryRun = False,
    atlas: Annotated[bool, typer.Option("--atlas/--no-atlas", help="Make atlas.html, the page of the run.")] = True,
) -> None:
    """Map how alike the features of a layer, or of several, are: images, A, measures, clusters, graph, figures."""
    from featmap.cli import console
    from featmap.mapping import cross_tables, tables
    from featmap.mapping import run as mapping
    from featmap.report import atlas as atlases
    from featmap.runs import device as devices

    if (layer is None) == (layers is None):
        raise FeatmapError("give either --layer inception4a or --layers inception4a,inception4b")
    if layers is not None and probe_layer is not None:
        raise FeatmapError("--layers and --probe-layer exclude each other: listed layers are recorded at all images")
    wanted: Any = read_layers(layers, "--layers") if layers is not None else layer
    probed = [] if probe_layer is None else read_layers(probe_layer, "--probe-layer")
    tables.check_view(measure, neighbours)
    where, runner = devices.device(device), read_engine(engine, workers, threads, address)
    network = read_network(model, weights, mean, std, input_size)
    chosen = read_recipe(network, device, recipe, size, steps, metric, constant, rows, precision)
    job, shown = mapping.similarity_job(
        wanted,
        network,
        chosen,
        probe_layers=probed,
        features=features,
        stimuli=stimuli,
        seed=seed,
        seeds=seeds,
        where=where,
        start=start,
    )
    if [*job.layers] not in (wanted, [wanted]):
        names = ", ".join(job.layers)
        console.out().print(f"{len(job.layers)} layers, {len(job.objectives):,} features: {names}")
    if dry_run:
        print_dry_run(job, out or mapping.default_folder(job))
        return
    run = mapping.open_run(job, out)
    if len(shown) < len(job.objectives):
        console.err().print(
            f"note: {len(shown)} features are shown; all {len(job.objectives)} of {' and '.join(job.layers)} are "
            "stimuli (--stimuli shown makes only those shown: quicker, another similarity)"
        )
    found = watched(
        lambda watcher: mapping.run_similarity(
            job, shown, run, measure=measure, neighbours=neighbours, engine=runner, watcher=watcher
        )
    )
    for line in found.lines():
        console.out().print(line)
    written = cross_tables.main_files(run, found)
    if atlas and found.told:
        console.out().print(f"no atlas of a run so large unless it is asked for: featmap atlas {run.folder}")
    elif atlas:
        if not atlases.is_current(run):
            watched(lambda watcher: atlases.atlas(run.folder, network=network, watcher=watcher))
        written = [atlases.NAME, *written]
    console.out().print(f"result: {run.folder} ({', '.join([*written, 'arrays.zarr'])})")


@app.command()
def optimize(
    units: Annotated[list[str] | None, typer.Argument(help="Units such as inception4a:17, sums 'a + b'.")] = None,
    layer: Annotated[str | None, typer.Option(help="Instead of units: a layer, with --features.")] = None,
    features: Features = "all",
    model: Model = "reference",
    weights: Weights = None,
    mean: Mean = None,
    std: Std = None,
    input_size: InputSize = None,
    recipe: RecipeName = None,
    size: Size = None,
    steps: Steps = None,
    metric: Metric = None,
    constant: Constant = None,
    rows: Rows = None,
    precision: Precision = None,
    seed: Seed = None,
    seeds: Seeds = 1,
    start: Start = None,
    frames: Frames = 0,
    device: Device = "auto",
    engine: EngineName = "here",
    workers: Workers = None,
    threads: Threads = None,
    address: Address = None,
    out: Out = None,
    dry_run: DryRun = False,
) -> None:
    """Make maximising images only: of features, rows, neurons, sets, prefixes, layers, class logits, sums."""
    from featmap.cli import console
    from featmap.mapping import run as mapping
    from featmap.mapping import tables
    from featmap.network.unit import parse_channels
    from featmap.runs import device as devices
    from featmap.runs import maximise

    if bool(units) == bool(layer):
        raise FeatmapError("give either units (inception4a:17 inception4b:3:0:0) or --layer with --features")
    where, runner = devices.device(device), read_engine(engine, workers, threads, address)
    network = read_network(model, weights, mean, std, input_size)
    chosen = read_recipe(network, device, recipe, size, steps, metric, constant, rows, precision)
    if layer:
        count = network.layer(layer, chosen.size).channels
        units = [f"{layer}:{c}" for c in parse_channels(features, count, layer)]
    job = maximise.maximise_job(
        units or [], network, chosen, seed=seed, seeds=seeds, where=where, start=start, frames=frames
    )
    if dry_run:
        print_dry_run(job, out or mapping.default_folder(job))
        return
    run = mapping.open_run(job, out)

    def work(watcher: Any) -> None:
        with run.held():
            if mapping.carry_out(job, run, watcher, runner) or not run.is_complete():
                tables.write_images(job, run, watcher)
                mapping.complete(job, run)

    watched(work)
    console.out().print(tables.image_line(run.folder))
    console.out().print(f"result: {run.folder} (features.png, images.csv, images/, arrays.zarr)")


@app.command()
def probe(
    source: Annotated[Path, typer.Argument(help="A run folder, or a folder of photographs.")],
    layers: Annotated[str, typer.Option(help="Layers whose responses are wanted, joined by commas.")],
    model: Annotated[str | None, typer.Option(help="Default: the run's own network, or reference.")] = None,
    weights: Weights = None,
    mean: Mean = None,
    std: Std = None,
    input_size: InputSize = None,
    size: Annotated[int | None, typer.Option(help="Photographs are brought to this size in pixels.")] = None,
    device: Device = "auto",
    out: Out = None,
) -> None:
    """Record the responses of any layers to a run's images or to a folder of photographs."""
    from featmap.cli import console
    from featmap.runs import maximise
    from featmap.runs.manifest import is_run
    from featmap.runs.store import digest

    if model is None and is_run(source):
        if any(v is not None for v in (weights, mean, std, input_size)):
            raise FeatmapError(
                "--weights, --mean, --std and --input-size go with --model; without it the run's own network is used"
            )
        network = maximise.network_of(source)
        console.out().print(str(network))
    else:
        network = read_network(model or "reference", weights, mean, std, input_size)
    wanted = read_layers(layers, "--layers")
    settings = {"source": str(source.resolve()), "layers": wanted, "size": size, "model": network.identity()}
    folder = out or Path("runs") / f"probe-{source.resolve().name}-{digest(settings)}"
    found = watched(lambda w: maximise.probe(source, wanted, network, size=size, device=device, out=folder, watcher=w))
    console.out().print(f"{found.sizes['image']} images x {found.sizes['response']} responses")
    console.out().print(f"result: {folder} (responses.parquet, responses.csv, arrays.zarr)")


@app.command()
def neighbours(
    unit: Annotated[str, typer.Argument(help="A feature, such as inception4a:17.")],
    run: Annotated[Path, typer.Argument(help="The folder of a finished similarity run.")],
    count: Annotated[int, typer.Option("--count", "-n", help="How many to list.")] = 10,
) -> None:
    """List the features most like one feature, and those most opposed to it."""
    from featmap.cli import console
    from featmap.mapping.neighbours import neighbour_lines

    for line in neighbour_lines(unit, run, count):
        console.out().print(line)


@app.command()
def layers(
    match: Annotated[str, typer.Option(help="Only names that match this pattern, such as 'inception4*'.")] = "*",
    model: Model = "reference",
    weights: Weights = None,
    mean: Mean = None,
    std: Std = None,
    input_size: InputSize = None,
    size: Annotated[int | None, typer.Option(help="Image size that the grids are for.")] = None,
) -> None:
    """List every layer that can be asked for: channels and their branches, grid, receptive field."""
    from featmap.cli import console, listing

    network = read_network(model, weights, mean, std, input_size)
    for line in listing.layer_lines(network, size, match):
        console.out().print(line)


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="A recipe; without it all are listed.")] = None,
) -> None:
    """Print recipes: all their settings, and what was chosen where the article says nothing."""
    from featmap.cli import console, listing

    for line in listing.recipe_lines(name):
        console.out().print(line)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; see `featmap.cli.entry.run`."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    entry.run(app, "featmap", arguments if [a for a in given if a != "--debug"] else ["--help"])
