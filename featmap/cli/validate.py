"""The command `featmap validate`: a finished map put to the test."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featmap.cli.options import InputSize, Mean, Std, Weights, print_estimate, read_network, watched
from featmap.errors import FeatmapError


def validate(
    run: Annotated[Path, typer.Argument(help="The folder of a finished similarity run.")],
    images: Annotated[
        Path | None, typer.Option(help="A folder of photographs (JPEG, PNG) to hold the map to; 1,000 say much.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Seeds in all, those of the run included.")] = 5,
    null_seeds: Annotated[int, typer.Option(help="Maps made with random weights; 0 for none.")] = 2,
    model: Annotated[str | None, typer.Option(help="Default: the run's own network.")] = None,
    weights: Weights = None,
    mean: Mean = None,
    std: Std = None,
    input_size: InputSize = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the validation. Default: RUN/validation.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Measure a few steps; print time, memory and disk; do nothing.")
    ] = False,
) -> None:
    """Put a map to the test: repeat it, hold it to photographs, weights and nulls; one page with a verdict a layer."""
    from featmap.cli import console
    from featmap.validation import run as validation

    network = None
    if model is not None:
        network = read_network(model, weights, mean, std, input_size)
    elif any(v is not None for v in (weights, mean, std, input_size)):
        raise FeatmapError(
            "--weights, --mean, --std and --input-size go with --model; without it the run's own network is used"
        )
    given = validation.plan(run, images=images, seeds=seeds, null_seeds=null_seeds, network=network, out=out)
    if dry_run:
        found, what = validation.estimate(given)
        print_estimate(found, what, given.folder)
        return
    if given.reason and null_seeds:
        console.err().print(f"note: no null with random weights: {given.reason}")
    found_now = watched(lambda watcher: validation.carry_out(given, watcher))
    for line in validation.lines(found_now):
        console.out().print(line)
    console.out().print(f"result: {given.folder} (validation.md, figures.csv, features.csv, agreement.png)")
