"""A run of the store alone, killed before each of its moves: prints a JSON list of the outcomes.

python -m tests.helpers.kill_store FOLDER
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from analyses.benchmarks.faults import die_at_move, wait_for
from featmap.runs import integrity
from featmap.runs.folder_layout import ArraySpec
from featmap.runs.manifest import COMPLETE
from featmap.runs.store import Run

ARRAYS = {
    "values": ArraySpec(("image", "column"), (4, 3), (2, 3)),
    "status": ArraySpec(("image",), (4,), (2,), "uint8"),
}
COORDS = {"image": np.array(["a", "b", "c", "d"]), "column": np.arange(3)}


def finish(folder: Path) -> list[str]:
    """Do all that is left of the run; return the units that were computed now."""
    computed = []
    with Run(folder, {"command": "test"}).open(ARRAYS, COORDS, {}).locked() as run:
        for first in (0, 2):
            if not run.is_done(f"u{first}"):
                values = np.arange(6, dtype=np.float32).reshape(2, 3) + first
                status = np.zeros(2, dtype=np.uint8)
                rows = slice(first, first + 2)
                run.land(f"u{first}", {"values": ((rows, slice(None)), values), "status": ((rows,), status)})
                computed.append(f"u{first}")
        run.write("table.csv", lambda p: p.write_text("a,b\n", encoding="utf-8"))
        run.manifest.units = {f"u{k}": run.read_record(f"u{k}") for k in (0, 2)}
        run.manifest.status = COMPLETE
        run.save()
    return computed


def fork(work: Callable[[], object]) -> int:
    """Do something in a forked child; return its exit status, below 0 for a signal."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return wait_for(pid)


def die_at(folder: Path, number: int) -> None:
    """Make the run, and die before its `number`-th move."""
    die_at_move(number)
    finish(folder)


def contents(folder: Path) -> dict[str, bytes]:
    every = (p for p in folder.rglob("*") if p.is_file() and p.name not in (".lock", ".owner.json"))
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in every}


def outcome(place: Path, number: int, expected: dict[str, bytes]) -> dict[str, Any]:
    """Kill at one move and resume by the same call; what had landed must not be computed again."""
    folder, answer = place / str(number), place / "computed.json"
    killed = fork(lambda: die_at(folder, number)) == -signal.SIGKILL
    landed = [u for u in ("u0", "u2") if Run(folder, {}).is_done(u)]
    status = fork(lambda: answer.write_text(json.dumps(finish(folder))))
    computed = json.loads(answer.read_text()) if status == 0 else []
    now = contents(folder)
    return {
        "moment": number,
        "killed": killed,
        "redone": sorted({*computed} & {*landed}),
        "differing": sorted(n for n in now.keys() | expected.keys() if now.get(n) != expected.get(n)),
        "faults": [str(f) for f in integrity.inspect(folder).faults] + [f"status {status}"] * (status != 0),
    }


def main(place: Path) -> None:
    assert fork(lambda: finish(place / "undisturbed")) == 0
    expected, outcomes = contents(place / "undisturbed"), [{"killed": True}]
    while outcomes[-1]["killed"]:
        outcomes.append(outcome(place, len(outcomes), expected))
    print(json.dumps(outcomes[1:]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
