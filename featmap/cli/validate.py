"""The command `featmap validate`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from featmap.cli.options import DryRun, RunNetworkOptions
from featmap.cli.parsing import PhotographOptions


def validate(
    run: Annotated[Path, typer.Argument(help="Folder of a finished similarity run.")],
    network: RunNetworkOptions,
    photographs: PhotographOptions,
    seeds: Annotated[int, typer.Option(help="Number of seeds, including those of the run.")] = 5,
    null_seeds: Annotated[int, typer.Option(help="Number of maps with random weights, as a null; 0 for none.")] = 2,
    out: Annotated[Path | None, typer.Option(help="Folder of the results. Default: RUN/validation.")] = None,
    dry_run: DryRun = False,
) -> None:
    """Test what may be concluded from a map.

    Repeats the map with other seeds, compares it with photographs, with the network's weights and with nulls, and
    writes one page of verdicts.

    The agreement with photographs is judged by the share of its ceiling that it reaches, which is what S over one best
    photograph of each feature reaches: the photographs are chosen in one half and compared with S over the other half.
    From 0.9 of the ceiling on, S may be read as similarity over photographs; up to 0.4 nothing is carried over.
    """
    from featmap.cli import console
    from featmap.validation import inputs
    from featmap.validation import run as validation

    loaded, listed = network.load(), inputs.list_photographs(photographs.photographs, photographs.limit)
    plan = validation.plan_validation(run, photographs=listed, seeds=seeds, null_seeds=null_seeds, network=loaded)
    plan = replace(plan, skip_broken=photographs.skip_broken, folder=out or plan.folder)
    if dry_run:
        estimate, work = validation.estimate_validation(plan)
        console.print_estimate(estimate, work, plan.folder)
        return
    if plan.reason and null_seeds:
        console.err().print(f"note: no null model with random weights: {plan.reason}")
    result = console.run_with_progress(lambda watcher: validation.carry_out(plan, watcher), validation.list_parts(plan))
    for line in validation.describe(result):
        console.out().print(line)
    console.out().print(f"result: {plan.folder} (validation.md, figures.csv, features.csv, agreement.png)")
