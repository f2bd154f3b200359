"""The command `featmap atlas`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featmap.cli.options import EmbedPhotographs, RunNetworkOptions


def atlas(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run of similarity, interact or maximise.")],
    network: RunNetworkOptions,
    interactions: Annotated[
        list[Path] | None, typer.Option(help="An interaction run whose reports the page includes; may be repeated.")
    ] = None,
    maps: Annotated[
        bool,
        typer.Option(
            "--maps/--no-maps", help="Show where on its image each feature responds, which needs the network."
        ),
    ] = True,
    embed_photographs: EmbedPhotographs = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the pages. Default: the run folder.")] = None,
) -> None:
    """Write the atlas of a finished run: pages to explore it in."""
    from featmap.cli import console
    from featmap.report import atlas as pages

    loaded = network.load()
    paths = console.run_with_progress(
        lambda watcher: pages.atlas(
            run,
            interactions=interactions or (),
            activation_maps=maps,
            network=loaded,
            out=out,
            embed_photographs=embed_photographs,
            watcher=watcher,
        )
    )
    more = f" and {len(paths) - 1} pages of layers" if len(paths) > 1 else ""
    size = sum(path.stat().st_size for path in paths)
    console.out().print(f"result: {paths[0]} ({size / 1e6:.1f} MB{more})")
