"""The command `featmap similarity`: map how alike the features of layers are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from featmap.cli.options import (
    DryRun,
    ExecutionOptions,
    NetworkOptions,
    RecipeOptions,
    SeedOptions,
    parse_layers,
    print_dry_run,
    watched,
)
from featmap.errors import FeatmapError

if TYPE_CHECKING:
    from featmap.mapping.view import View


@dataclass
class ViewOptions:
    """Options that say what a map shows.

    Parameters
    ----------
    features, stimuli, measure, neighbours
        See `featmap.View`.
    """

    features: Annotated[
        str, typer.Option(help="Channels of each layer maximised that are shown, such as 0-15,42, or all.")
    ] = "all"
    stimuli: Annotated[str, typer.Option(help="Images used: of the whole layer, or only of the features shown.")] = (
        "layer"
    )
    measure: Annotated[
        str, typer.Option(help="What the heatmap shows: coactivation, raw, relative, selective, profile.")
    ] = "coactivation"
    neighbours: Annotated[int, typer.Option(help="k of the nearest-neighbour graph.")] = 10

    def view(self) -> View:
        """Return the view.

        Returns
        -------
        View
            The checked options.
        """
        from featmap.mapping.view import View

        return View(self.features, self.stimuli, self.measure, self.neighbours)


@dataclass
class LayerOptions:
    """Options that name layers.

    Parameters
    ----------
    layer, layers, probe_layer
        See `featmap.similarity`.
    """

    layer: Annotated[
        str | None,
        typer.Option(
            help="The layer that is mapped (see `featmap layers`); by commas or patterns several, and every pair of "
            "them; all: the network's blocks; convs: its convolutions."
        ),
    ] = None
    probe_layer: Annotated[
        str | None,
        typer.Option(help="With --layer: other layers, joined by commas, whose responses are recorded too."),
    ] = None
    layers: Annotated[str | None, typer.Option(help="The same as --layer with several.")] = None

    def mapped(self) -> str | list[str]:
        """Return the layers to map.

        Returns
        -------
        str or list of str
            As `featmap.similarity` takes them.

        Raises
        ------
        FeatmapError
            If the options contradict each other.
        """
        if (self.layer is None) == (self.layers is None):
            raise FeatmapError("give either --layer inception4a or --layers inception4a,inception4b")
        if self.layers is not None and self.probe_layer is not None:
            raise FeatmapError(
                "--layers and --probe-layer exclude each other: listed layers are recorded at all images"
            )
        return parse_layers(self.layers, "--layers") if self.layers is not None else str(self.layer)

    def probed(self) -> list[str]:
        """Return the layers to probe beside the one that is mapped.

        Returns
        -------
        list of str
            Each once.
        """
        return [] if self.probe_layer is None else parse_layers(self.probe_layer, "--probe-layer")


def similarity(
    layer: LayerOptions,
    view: ViewOptions,
    network: NetworkOptions,
    recipe: RecipeOptions,
    seed: SeedOptions,
    execution: ExecutionOptions,
    dry_run: DryRun = False,
    atlas: Annotated[bool, typer.Option("--atlas/--no-atlas", help="Make atlas.html, the page of the run.")] = True,
) -> None:
    """Map how alike the features of a layer, or of several, are: images, A, measures, clusters, graph, figures."""
    from featmap.cli import console
    from featmap.mapping import cross_tables
    from featmap.mapping import run as mapping
    from featmap.report import atlas as pages
    from featmap.runs import lifecycle

    mapped, probed, shown = layer.mapped(), layer.probed(), view.view()
    settings = execution.execution()
    loaded = network.load()
    job = mapping.similarity_job(
        mapped,
        loaded,
        recipe.resolve(loaded, settings.device),
        probe_layers=probed,
        view=shown,
        seeds=seed.values(),
        start=seed.start,
        device=settings.torch_device(),
    )
    if [*job.layers] not in (mapped, [mapped]):
        names = ", ".join(job.layers)
        console.out().print(f"{len(job.layers)} layers, {len(job.objectives):,} features: {names}")
    if dry_run:
        print_dry_run(job, settings.out)
        return
    run = lifecycle.open_run(job, settings.out)
    if len(job.shown) < len(job.objectives):
        console.err().print(
            f"note: {len(job.shown)} features are shown; all {len(job.objectives)} of {' and '.join(job.layers)} are "
            "stimuli (--stimuli shown makes only those shown: quicker, another similarity)"
        )
    maps = watched(lambda watcher: mapping.carry_out(job, run, shown, settings.watched_by(watcher)))
    for line in maps.lines():
        console.out().print(line)
    files = cross_tables.main_files(run, maps)
    if atlas and maps.large_lines:
        console.out().print(f"no atlas of a run so large unless it is asked for: featmap atlas {run.folder}")
    elif atlas:
        if not pages.is_current(run):
            watched(lambda watcher: pages.atlas(run.folder, network=loaded, watcher=watcher))
        files = [pages.NAME, *files]
    console.out().print(f"result: {run.folder} ({', '.join([*files, 'arrays.zarr'])})")
