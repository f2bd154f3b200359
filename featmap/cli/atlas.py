"""The command `featmap atlas`: make the pages of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featmap.cli.options import RunNetworkOptions, watched


def atlas(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run: similarity, interact or maximise.")],
    network: RunNetworkOptions,
    interactions: Annotated[
        list[Path] | None, typer.Option(help="An interaction run whose reports the page shall hold; may be repeated.")
    ] = None,
    maps: Annotated[
        bool, typer.Option("--maps/--no-maps", help="Load the network to see where on its image each feature fires.")
    ] = True,
    out: Annotated[Path | None, typer.Option(help="Folder for the pages. Default: the run's own.")] = None,
) -> None:
    """Make the atlas of a finished run: pages to look at, offline, with the numbers behind every picture."""
    from featmap.cli import console
    from featmap.report import atlas as pages

    loaded = network.load()
    paths = watched(
        lambda watcher: pages.atlas(
            run, interactions=interactions or (), activation_maps=maps, network=loaded, out=out, watcher=watcher
        )
    )
    more = f" and {len(paths) - 1} pages of layers" if len(paths) > 1 else ""
    size = sum(path.stat().st_size for path in paths)
    console.out().print(f"result: {paths[0]} ({size / 1e6:.1f} MB{more})")
