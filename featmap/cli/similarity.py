"""The command `featmap similarity`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featmap.cli.options import (
    DryRun,
    EmbedPhotographs,
    ExecutionOptions,
    NetworkOptions,
    RecipeOptions,
    SeedOptions,
)
from featmap.cli.parsing import Limit, SkipBroken, parse_layers
from featmap.errors import FeatmapError

if TYPE_CHECKING:
    from featmap.mapping.view import View
    from featmap.optimize.photograph_folder import Photographs


@dataclass
class ViewOptions:
    """Options that say what a map shows.

    Parameters
    ----------
    features : str, default "all"
        Channels that tables and figures show.
    stimuli : str, default "layer"
        Images that the similarity is computed from.
    measure : str, default "coactivation"
        Measure of the heatmap.
    neighbours : int, default 10
        Nearest neighbours of each feature in the graph.
    facets : int, default 0
        Images of each feature that differ.
    photographs : Path or None, default None
        Folder or zip of photographs.
    examples : int, default 9
        Photographs that excite a feature most.
    limit : int or None, default None
        Largest number of photographs.
    skip_broken : bool, default False
        Go on without photographs that cannot be read.
    embed_photographs : bool, default False
        Show photographs in the atlas.
    """

    features: Annotated[
        str, typer.Option(help="Channels of each layer that tables and figures show, such as 0-15,42, or all.")
    ] = "all"
    stimuli: Annotated[
        str,
        typer.Option(
            help="Images that the similarity is computed from: layer (those of all its features), shown (only those "
            "of --features: quicker, but another similarity), or photographs (only --photographs: no image is made)."
        ),
    ] = "layer"
    measure: Annotated[
        str,
        typer.Option(help="Measure of the heatmap: coactivation, raw, relative, selective, profile or linear_profile."),
    ] = "coactivation"
    neighbours: Annotated[int, typer.Option(help="Nearest neighbours of each feature in the graph.")] = 10
    facets: Annotated[
        int, typer.Option(help="Also make FACETS images of each feature, 2 to 16, that differ; 0 makes only its image.")
    ] = 0
    photographs: Annotated[
        Path | None,
        typer.Option(
            help="A folder, with its sub-folders, or zip of photographs. Responses to them are recorded too, and make "
            "a map of their own."
        ),
    ] = None
    examples: Annotated[
        int, typer.Option(help="Photographs that excite a feature most, 1 to 20, shown on sheets and in the atlas.")
    ] = 9
    limit: Limit = None
    skip_broken: SkipBroken = False
    embed_photographs: EmbedPhotographs = False

    def build_photographs(self) -> Photographs | None:
        """Build the settings of the photographs.

        Returns
        -------
        Photographs or None
            None where no folder is given.

        Raises
        ------
        FeatmapError
            If an option needs ``--photographs``.
        """
        from featmap.optimize.photograph_folder import Photographs

        if self.photographs is not None:
            return Photographs(self.photographs, self.limit, self.skip_broken)
        if (
            self.limit is not None
            or self.examples != ViewOptions.examples
            or self.skip_broken
            or self.embed_photographs
            or self.stimuli == "photographs"
        ):
            raise FeatmapError(
                "--limit, --examples, --skip-broken, --embed-photographs and --stimuli photographs go with "
                "--photographs FOLDER"
            )
        return None

    def build(self, probe_layers: list[str]) -> View:
        """Build the view.

        Parameters
        ----------
        probe_layers : list of str
            Layers to record beside the one that is mapped.

        Returns
        -------
        View
            The checked options.
        """
        from featmap.mapping.view import View

        shown = self.features, self.stimuli, self.measure, self.neighbours, self.facets
        return View(*shown, probe_layers, self.examples)


@dataclass
class LayerOptions:
    """Options that name layers.

    Parameters
    ----------
    layer : list of str or None, default None
        Layers to map, or patterns.
    probe_layer : str or None, default None
        Layers to record beside it, joined by commas.
    layers : str or None, default None
        Layers to map, joined by commas.
    """

    layer: Annotated[
        list[str] | None,
        typer.Option(
            help="Layer to map, as `featmap layers` prints it. Several (the option repeated, names joined by commas, "
            "or a pattern such as 'inception4*') are compared with each other; all takes the network's blocks, convs "
            "its convolutions."
        ),
    ] = None
    probe_layer: Annotated[
        str | None,
        typer.Option(help="With one layer: other layers, joined by commas, whose responses are recorded too."),
    ] = None
    layers: Annotated[str | None, typer.Option(help="Another spelling of --layer, for several layers.")] = None

    def parse_layers(self) -> str | list[str]:
        """Parse the layers to map.

        Returns
        -------
        str or list of str
            As `featmap.similarity` takes them.

        Raises
        ------
        FeatmapError
            If the options contradict each other.
        """
        if bool(self.layer) == (self.layers is not None):
            raise FeatmapError("give either --layer inception4a or --layers inception4a,inception4b")
        if self.layers is not None and self.probe_layer is not None:
            raise FeatmapError(
                "--layers and --probe-layer exclude each other: listed layers are recorded at all images"
            )
        return parse_layers(self.layers, "--layers") if self.layers is not None else ",".join(self.layer or ())

    def parse_probe_layers(self) -> list[str]:
        """Parse the layers to record beside the one that is mapped.

        Returns
        -------
        list of str
            The names in their order, each once.
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
    atlas: Annotated[
        bool, typer.Option("--atlas/--no-atlas", help="Write atlas.html, a page to explore the map in.")
    ] = True,
) -> None:
    """Map how similar the features of one or more layers are.

    Makes the maximising image of every feature, records how every feature responds to every image, and computes
    similarities, clusters, a neighbour graph and figures from these responses.
    """
    from featmap.cli import console
    from featmap.mapping import cross_tables
    from featmap.mapping import run as mapping
    from featmap.mapping.photographs import PhotographJob
    from featmap.report import atlas as pages
    from featmap.report.atlas import FILE_NAME
    from featmap.runs import lifecycle

    layers, chosen = layer.parse_layers(), view.build_photographs()
    if view.embed_photographs and not atlas:
        raise FeatmapError("--embed-photographs and --no-atlas exclude each other: photographs are shown in the atlas")
    shown = view.build(layer.parse_probe_layers())
    settings = execution.build()
    loaded = network.load()
    job = mapping.similarity_job(
        layers,
        loaded,
        recipe.resolve(loaded, settings.device),
        view=shown,
        seeds=seed.parse(),
        start=seed.start,
        device=settings.torch_device(),
    )
    if chosen is not None:
        job = console.run_with_progress(partial(mapping.add_photographs, job, chosen, examples=shown.examples))
    if [*job.layers] not in (layers, [layers]):  # a pattern: say which layers it matches
        names, count = ", ".join(job.layers), len(job.objectives or job.columns)
        console.out().print(f"{len(job.layers)} layers, {count:,} features: {names}")
    if dry_run:
        folder, words = settings.out or job.default_folder(), [console.describe_job(job)] if job.objectives else []
        if isinstance(job, PhotographJob):
            words.append(f"{len(job.photographs):,} photographs")
        console.print_estimate(mapping.estimate(job, folder, atlas), ", ".join(words), folder)
        return
    run = lifecycle.open_run(job, settings.out)
    if len(job.shown) < len(job.objectives):
        console.err().print(
            f"note: {len(job.shown)} features are shown; the images of all {len(job.objectives)} of "
            f"{' and '.join(job.layers)} are stimuli (--stimuli shown: fewer images, quicker, another similarity)"
        )
    maps = console.run_with_progress(
        lambda watcher: mapping.carry_out(job, run, shown, settings.with_watcher(watcher)),
        mapping.list_parts(job, atlas),
    )
    for line in maps.lines():
        console.out().print(line)
    files = cross_tables.main_files(run, maps)
    if atlas and maps.large_lines:
        more = " --embed-photographs" if view.embed_photographs else ""
        console.out().print(f"a run this large gets an atlas only on request: featmap atlas {run.folder}{more}")
    elif atlas:
        embed = view.embed_photographs
        if not pages.is_current(run, embed):
            console.run_with_progress(
                lambda watcher: pages.atlas(run.folder, network=loaded, embed_photographs=embed, watcher=watcher)
            )
        files = [FILE_NAME, *files]
    console.out().print(f"result: {run.folder} ({', '.join([*files, 'arrays.zarr'])})")
