"""The command `featmap verify`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def verify(
    run: Annotated[Path, typer.Argument(help="A run folder of any command.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Check every file of a run against its checksum.

    Prints a line for each fault: a file that is changed, missing, foreign or unfinished. The exit status is 0 if
    there is none, 1 if there are some, and 2 if the folder is not a run.
    """
    from featmap.cli import console
    from featmap.runs import integrity

    inspection = integrity.inspect(run)
    if as_json:
        values = {
            "folder": str(run),
            "whole": not inspection.faults,
            "files": inspection.files,
            "bytes": inspection.size,
            "units": inspection.units,
            "faults": [asdict(fault) for fault in inspection.faults],
        }
        console.out().print(json.dumps(values, indent=1))
    else:
        for fault in inspection.faults:
            console.out().print(str(fault))
        console.out().print(f"{run}: {inspection.summary()}")
        if any(fault.kind != integrity.FOREIGN for fault in inspection.faults):
            console.out().print("repeating the command of the run computes only these again")
    if inspection.faults:
        raise typer.Exit(1)
