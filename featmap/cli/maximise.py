"""The commands `featmap maximise` and `featmap probe`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featmap.cli.directions import DirectionFiles, attach_directions
from featmap.cli.options import (
    Device,
    DryRun,
    ExecutionOptions,
    Features,
    NetworkOptions,
    Out,
    RecipeOptions,
    RunNetworkOptions,
    SeedOptions,
    load_network,
)
from featmap.cli.parsing import SkipBroken, parse_layers
from featmap.errors import FeatmapError
from featmap.image_shape import Size, parse_size

if TYPE_CHECKING:
    from featmap.network.model import Network


@dataclass
class TargetOptions:
    """Options that say what is maximised.

    Parameters
    ----------
    units
        Units and sums of units.
    layer, features
        Instead of units: a layer and its channels.
    """

    units: Annotated[
        list[str] | None,
        typer.Argument(help="Units, such as inception4a:17, or sums, such as 'inception4a:17 + inception4b:3'."),
    ] = None
    layer: Annotated[str | None, typer.Option(help="Instead of units: a layer, whose --features are maximised.")] = None
    features: Features = "all"

    def check(self) -> None:
        """Refuse units beside a layer, or neither.

        Raises
        ------
        FeatmapError
            That names the options.
        """
        if bool(self.units) == bool(self.layer):
            raise FeatmapError("give either units (inception4a:17 inception4b:3:0:0) or --layer with --features")

    def names(self, network: Network, size: Size) -> list[str]:
        """List the units.

        Parameters
        ----------
        network : Network
            Network that they belong to.
        size : int or (int, int)
            Image size in pixels.

        Returns
        -------
        list of str
            As they are written, or the features of the layer.
        """
        from featmap.network.unit import parse_channels

        if not self.layer:
            return self.units or []
        layer = network.layer(self.layer, size)
        return [f"{self.layer}:{c}" for c in parse_channels(self.features, layer.channels, self.layer, layer.names)]


def maximise(
    target: TargetOptions,
    network: NetworkOptions,
    recipe: RecipeOptions,
    seed: SeedOptions,
    execution: ExecutionOptions,
    frames: Annotated[int, typer.Option(help="Also keep every image after each FRAMES steps; 0 keeps none.")] = 0,
    facets: Annotated[
        int,
        typer.Option(help="Make FACETS images of each unit, 2 to 16, that differ; 0 makes only its image."),
    ] = 0,
    dry_run: DryRun = False,
) -> None:
    """Make maximising images of features, neurons, layers or sums."""
    from featmap.cli import console
    from featmap.runs import lifecycle
    from featmap.runs.estimate import image_parts
    from featmap.runs.maximise import Extras, maximise_job, summarise_images, write_images
    from featmap.runs.worker import Worker

    target.check()
    settings = execution.build()
    loaded = network.load()
    chosen = recipe.resolve(loaded, settings.device)
    job = maximise_job(
        target.names(loaded, chosen.size),
        loaded,
        chosen,
        extras=Extras(frames=frames, facets=facets),
        seeds=seed.parse(),
        start=seed.start,
        device=settings.torch_device(),
    )
    if dry_run:
        console.print_dry_run(job, settings.out)
        return
    run = lifecycle.open_run(job, settings.out)

    def work(watcher: Any) -> None:
        with run.locked():
            if lifecycle.carry_out(job, run, Worker, watcher, settings.engine) or not run.is_complete():
                write_images(job, run, watcher)
                lifecycle.complete(job, run)

    console.run_with_progress(work, image_parts(job))
    console.out().print(summarise_images(run.folder))
    more = ["facets.png", "facets.pdf", "facets.csv", "facets/"] if facets else []
    files = ["features.png", "features.pdf", "images.csv", "images/", *more, "arrays.zarr"]
    console.out().print(f"result: {run.folder} ({', '.join(files)})")


def probe(
    source: Annotated[Path, typer.Argument(help="A run folder, or a folder or zip of photographs.")],
    layers: Annotated[str, typer.Option(help="Layers whose responses are recorded, joined by commas.")],
    network: RunNetworkOptions,
    directions: DirectionFiles = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="PIXELS",
            help="Size that photographs are resized to: a side in pixels, or height x width as 64x128.",
        ),
    ] = None,
    skip_broken: SkipBroken = False,
    device: Device = "auto",
    out: Out = None,
) -> None:
    """Record responses of layers to a run's images or photographs."""
    from featmap.cli import console
    from featmap.files import digest
    from featmap.optimize.photograph_folder import PhotographFolder
    from featmap.runs import lifecycle
    from featmap.runs import probe as probing
    from featmap.runs.engine import Execution
    from featmap.runs.manifest import is_run

    if network.model is None and is_run(source):
        network.load()  # refuse options that need --model
        loaded = lifecycle.network_of(source)
        console.out().print(str(loaded))
    else:
        loaded = load_network(
            network.model or "reference",
            network.weights,
            network.mean,
            network.std,
            network.input_size,
            network.channels,
            network.allow_stochastic,
        )
    loaded = attach_directions(loaded, directions)
    names, pixels = parse_layers(layers, "--layers"), parse_size(size)
    settings = {"source": str(source.resolve()), "layers": names, "size": pixels, "model": loaded.identity()}
    if not is_run(source):
        probing.require_layers(loaded, names, pixels)

    def work(watcher: Any) -> Any:
        images = probing.open_images(source, skip_broken, watcher)
        if isinstance(images, PhotographFolder):  # a folder that has changed since is another run
            settings["photographs"] = images.digest
        folder = out or Path("runs") / f"probe-{source.resolve().name}-{digest(settings)}"
        execution = Execution(device, out=folder, watcher=watcher)
        return folder, probing.probe(images, names, loaded, size=pixels, execution=execution)

    folder, responses = console.run_with_progress(work)
    console.out().print(f"{responses.sizes['image']} images x {responses.sizes['response']} responses")
    files = [name for name in ("responses.parquet", "responses.csv", "arrays.zarr") if (folder / name).exists()]
    console.out().print(f"result: {folder} ({', '.join(files)})")
