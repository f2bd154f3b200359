"""The commands `featmap maximise` and `featmap probe`: make images of units, and record responses to images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from featmap.cli.options import (
    DryRun,
    ExecutionOptions,
    Features,
    NetworkOptions,
    Out,
    RecipeOptions,
    RunNetworkOptions,
    SeedOptions,
    load_network,
    parse_layers,
    print_dry_run,
    watched,
)
from featmap.errors import FeatmapError


def maximise(
    network: NetworkOptions,
    recipe: RecipeOptions,
    seed: SeedOptions,
    execution: ExecutionOptions,
    units: Annotated[list[str] | None, typer.Argument(help="Units such as inception4a:17, sums 'a + b'.")] = None,
    layer: Annotated[str | None, typer.Option(help="Instead of units: a layer, with --features.")] = None,
    features: Features = "all",
    frames: Annotated[int, typer.Option(help="Keep every image after each so many steps, too; 0 keeps none.")] = 0,
    dry_run: DryRun = False,
) -> None:
    """Make maximising images: of features, rows, neurons, sets, prefixes, layers, class logits, sums."""
    from featmap.cli import console
    from featmap.network.unit import parse_channels
    from featmap.runs import lifecycle
    from featmap.runs.maximise import images_line, maximise_job, write_images
    from featmap.runs.worker import Worker

    if bool(units) == bool(layer):
        raise FeatmapError("give either units (inception4a:17 inception4b:3:0:0) or --layer with --features")
    settings = execution.execution()
    loaded = network.load()
    chosen = recipe.resolve(loaded, settings.device)
    if layer:
        count = loaded.layer(layer, chosen.size).channels
        units = [f"{layer}:{c}" for c in parse_channels(features, count, layer)]
    job = maximise_job(
        units or [],
        loaded,
        chosen,
        seeds=seed.values(),
        start=seed.start,
        frames=frames,
        device=settings.torch_device(),
    )
    if dry_run:
        print_dry_run(job, settings.out)
        return
    run = lifecycle.open_run(job, settings.out)

    def work(watcher: Any) -> None:
        with run.held():
            if lifecycle.carry_out(job, run, Worker, watcher, settings.engine) or not run.is_complete():
                write_images(job, run, watcher)
                lifecycle.complete(job, run)

    watched(work)
    console.out().print(images_line(run.folder))
    console.out().print(f"result: {run.folder} (features.png, images.csv, images/, arrays.zarr)")


def probe(
    source: Annotated[Path, typer.Argument(help="A run folder, or a folder of photographs.")],
    layers: Annotated[str, typer.Option(help="Layers whose responses are wanted, joined by commas.")],
    network: RunNetworkOptions,
    size: Annotated[int | None, typer.Option(help="Photographs are brought to this size in pixels.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    out: Out = None,
) -> None:
    """Record the responses of any layers to a run's images or to a folder of photographs."""
    from featmap.cli import console
    from featmap.files import digest
    from featmap.runs import lifecycle
    from featmap.runs import probe as probing
    from featmap.runs.engine import Execution
    from featmap.runs.manifest import is_run

    if network.model is None and is_run(source):
        network.load()  # refuses options that need a model
        loaded = lifecycle.network_of(source)
        console.out().print(str(loaded))
    else:
        loaded = load_network(
            network.model or "reference", network.weights, network.mean, network.std, network.input_size
        )
    names = parse_layers(layers, "--layers")
    settings = {"source": str(source.resolve()), "layers": names, "size": size, "model": loaded.identity()}
    folder = out or Path("runs") / f"probe-{source.resolve().name}-{digest(settings)}"
    responses = watched(
        lambda watcher: probing.probe(
            source, names, loaded, size=size, execution=Execution(device, out=folder, watcher=watcher)
        )
    )
    console.out().print(f"{responses.sizes['image']} images x {responses.sizes['response']} responses")
    console.out().print(f"result: {folder} (responses.parquet, responses.csv, arrays.zarr)")
