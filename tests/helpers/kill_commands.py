"""Kills of commands, made by a process of its own that has loaded torch once and can fork: prints outcomes as JSON.

python -m tests.helpers.kill_commands FOLDER random|moves
"""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from analyses.benchmarks import faults
from tests.helpers import run_kinds
from tests.helpers.kill_outcomes import KILLS


def kills_at_moves(name: str, first: int, step: int, place: Path) -> Iterator[faults.Outcome]:
    """Kill a run before every `step`-th move of a file into place, until no moves are left."""
    expected, _ = faults.run_undisturbed(name, place / "undisturbed")
    number = first
    while True:
        folder = place / f"move-{number}"
        killed = faults.kill_at_move([*faults.RUNS[name], "--out", str(folder)], number)
        yield faults.rerun(name, folder, number, killed, expected)
        shutil.rmtree(folder)
        if not killed:
            return
        number += step


def main(place: Path, kind: str) -> None:
    torch.set_num_threads(1)
    faults.load_commands()
    # forked children inherit it, and the parser of the command line that a command has loaded
    run_kinds.make_runs_cheap(pytest.MonkeyPatch())
    with redirect_stdout(io.StringIO()):
        assert run_kinds.run_command("recipes") == 0
    for words in faults.RUNS.values():
        words[words.index("--steps") + 1] = "12"
    if kind == "random":
        outcomes = {name: faults.kill_at_random(name, KILLS, 20, place / name) for name in ("similarity", "interact")}
    else:
        outcomes = {
            "optimize": kills_at_moves("optimize", 2, 24, place / "optimize"),
            "similarity": kills_at_moves("similarity", 54, 17, place / "similarity"),
        }
    print(json.dumps({name: [asdict(o) for o in listed] for name, listed in outcomes.items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
