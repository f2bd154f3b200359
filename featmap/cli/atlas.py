"""The command `featmap atlas`: pages of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featmap.cli.options import InputSize, Mean, Std, Weights, read_network, watched
from featmap.errors import FeatmapError


def make_atlas(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run: similarity, interact or optimize.")],
    interactions: Annotated[
        list[Path] | None, typer.Option(help="An interaction run whose reports the page shall hold; may be repeated.")
    ] = None,
    maps: Annotated[
        bool, typer.Option("--maps/--no-maps", help="Load the network to see where on its image each feature fires.")
    ] = True,
    model: Annotated[str | None, typer.Option(help="Default: the run's own network.")] = None,
    weights: Weights = None,
    mean: Mean = None,
    std: Std = None,
    input_size: InputSize = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the pages. Default: the run's own.")] = None,
) -> None:
    """Make the atlas of a finished run: pages to look at, offline, with the numbers behind every picture."""
    from featmap.cli import console
    from featmap.report import atlas

    if model is None and any(v is not None for v in (weights, mean, std, input_size)):
        raise FeatmapError(
            "--weights, --mean, --std and --input-size go with --model; without it the run's own network is used"
        )
    network = None if model is None else read_network(model, weights, mean, std, input_size)
    made = watched(
        lambda watcher: atlas.atlas(
            run, interactions=interactions or (), activation_maps=maps, network=network, out=out, watcher=watcher
        )
    )
    more = f" and {len(made) - 1} pages of layers" if len(made) > 1 else ""
    size = sum(path.stat().st_size for path in made)
    console.out().print(f"result: {made[0]} ({size / 1e6:.1f} MB{more})")
