"""The command `featmap validate`: put a finished map to the test."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featmap.cli.options import DryRun, RunNetworkOptions, print_estimate, watched


def validate(
    run: Annotated[Path, typer.Argument(help="The folder of a finished similarity run.")],
    network: RunNetworkOptions,
    images: Annotated[
        Path | None, typer.Option(help="A folder of photographs (JPEG, PNG) to compare the map with; 1,000 say much.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Seeds in all, those of the run included.")] = 5,
    null_seeds: Annotated[int, typer.Option(help="Maps made with random weights; 0 for none.")] = 2,
    out: Annotated[Path | None, typer.Option(help="Folder of the validation. Default: RUN/validation.")] = None,
    dry_run: DryRun = False,
) -> None:
    """Put a map to the test: repeat it, compare it with photographs, weights and nulls; one page with the verdicts."""
    from featmap.cli import console
    from featmap.validation import run as validation

    plan = validation.plan(run, images=images, seeds=seeds, null_seeds=null_seeds, network=network.load(), out=out)
    if dry_run:
        estimate, what = validation.estimate(plan)
        print_estimate(estimate, what, plan.folder)
        return
    if plan.reason and null_seeds:
        console.err().print(f"note: no null with random weights: {plan.reason}")
    result = watched(lambda watcher: validation.carry_out(plan, watcher))
    for line in validation.lines(result):
        console.out().print(line)
    console.out().print(f"result: {plan.folder} (validation.md, figures.csv, features.csv, agreement.png)")
