"""Kills made by a process of its own, which has loaded torch and can fork: prints a JSON list of outcomes.

python -m tests.faults.driver random PLACE RUN KILLS SEED
python -m tests.faults.driver moves PLACE RUN FIRST STEP
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from analyses.benchmarks import faults


def at_moves(name: str, first: int, step: int, place: Path) -> Iterator[faults.Outcome]:
    """Kill a run before every `step`-th move of a file into place, until it has none left."""
    expected, _ = faults.undisturbed(name, place / "undisturbed")
    number = first
    while True:
        folder = place / f"move-{number}"
        killed = faults.kill_at_move([*faults.RUNS[name], "--out", str(folder)], number)
        yield faults.outcome(name, folder, number, killed, expected)
        shutil.rmtree(folder)
        if not killed:
            return
        number += step


def main(how: str, place: str, name: str, *numbers: str) -> None:
    torch.set_num_threads(1)
    one, two = map(int, numbers)
    made = at_moves(name, one, two, Path(place))
    found = faults.random_kills(name, one, two, Path(place)) if how == "random" else made
    print(json.dumps([asdict(o) for o in found]))


if __name__ == "__main__":
    main(*sys.argv[1:])
