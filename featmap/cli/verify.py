"""The command `featmap verify`: is a run folder whole?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def verify(
    run: Annotated[Path, typer.Argument(help="A run folder, of any command.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Hold every file of a run to its checksum: exit status 0 if it is whole, 1 if not, 2 if it is no run.

    A line a fault: changed, missing, foreign or unfinished. The run's own command makes just what is damaged again.
    """
    from featmap.cli import console
    from featmap.runs import integrity

    found = integrity.inspect(run)
    if as_json:
        values = {
            "folder": str(run),
            "whole": not found.faults,
            "files": found.files,
            "bytes": found.size,
            "units": found.units,
            "faults": [asdict(fault) for fault in found.faults],
        }
        console.out().print(json.dumps(values, indent=1))
    else:
        for fault in found.faults:
            console.out().print(str(fault))
        console.out().print(f"{run}: {found.summary()}")
        if any(fault.kind != integrity.FOREIGN for fault in found.faults):
            console.out().print("the command that made the run, given again, makes just these again")
    if found.faults:
        raise typer.Exit(1)
