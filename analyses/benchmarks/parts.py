"""Measure what the parts of a run take at pace 1, from which `featmap.runs.estimate.COSTS` was filled.

    python -m analyses.benchmarks.parts similarity --layer inception4a --features 0-95 --stimuli shown --steps 2

The command after the name is run in this process. Printed are, for each part that it reports, the processor's seconds
at pace 1: those that it took, divided by those that the rehearsal of `featmap.runs.estimate` took beside it. A part
ends when the next one is reported, so that what a command does without reporting counts for the part after it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from featmap.cli import app, console
from featmap.runs import estimate

SHORT = 0.05
"""Seconds of a part from which on the rehearsal is timed after it."""


class Parts:
    """Processor's seconds of parts, and of the rehearsals between them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.paces: dict[str, list[float]] = {}
        self.latest = time.process_time()

    def end(self, name: str) -> None:
        """Count the time since the last call for a part."""
        took = time.process_time() - self.latest
        self.seconds[name] = self.seconds.get(name, 0.0) + took
        if took > SHORT or name not in self.paces:
            begun = time.process_time()
            estimate._rehearse()
            self.paces.setdefault(name, []).append((time.process_time() - begun) / estimate.REHEARSAL)
        self.latest = time.process_time()

    def at_pace_one(self) -> dict[str, float]:
        """Divide the seconds of each part by the mean pace beside it."""
        return {name: s / (sum(self.paces[name]) / len(self.paces[name])) for name, s in self.seconds.items()}


class WatchedBars(console.ProgressBars):
    """Progress bars that count the time of parts."""

    counted: Parts

    def begin(self, total: int, done: int) -> None:
        """Count the time before the descents."""
        self.counted.end("start")
        super().begin(total, done)

    def landed(self) -> None:
        """Count the time of a work unit."""
        self.counted.end("work units")
        super().landed()

    def stage(self, name: str, done: int, total: int) -> None:
        """Count the time of a part."""
        self.counted.end(name)
        super().stage(name, done, total)


def measure(arguments: Sequence[str]) -> Parts:
    """Run a command in this process, and count the time of its parts.

    Parameters
    ----------
    arguments : sequence of str
        Words of the command line.

    Returns
    -------
    Parts
        The last one, `end`, is what follows the last report.
    """
    counted = Parts()
    kind = type("Bars", (WatchedBars,), {"counted": counted})
    usual: Any = console.ProgressBars
    console.ProgressBars = kind  # type: ignore[misc]
    try:
        app.main(arguments)
    except SystemExit as end:
        if end.code:
            raise
    finally:
        console.ProgressBars = usual  # type: ignore[misc]
    counted.end("end")
    return counted


if __name__ == "__main__":
    for part, seconds in measure(sys.argv[1:]).at_pace_one().items():
        print(f"{seconds:8.2f} s  {part}")
