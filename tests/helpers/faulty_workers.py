"""Workers for tests of engines: real ones that log their work units, and die or fail on some of them."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from featmap.runs.engine import WorkUnit
from featmap.runs.job import Job
from featmap.runs.progress import Watcher
from featmap.runs.store import Run
from featmap.runs.worker import Worker

FAILURE = ArithmeticError("cannot be done\nat all")


@dataclass
class FaultyWorker:
    """A real worker that first appends the name of each unit to a log, dies on some units and fails on others."""

    worker: Worker
    log: Path
    deadly: tuple[str, ...]
    failing: tuple[str, ...]
    error: Exception

    def work(self, unit: WorkUnit, store: Run) -> None:
        with self.log.open("a") as log:
            log.write(f"{unit.name}\n")
        if unit.name in self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        if unit.name in self.failing:
            raise self.error
        self.worker.work(unit, store)


def _start(
    log: Path, deadly: tuple[str, ...], failing: tuple[str, ...], error: Exception, job: Job, watcher: Watcher
) -> FaultyWorker:
    return FaultyWorker(Worker(job, watcher), log, deadly, failing, error)


def faulty_worker(
    log: Path, deadly: tuple[str, ...] = (), failing: tuple[str, ...] = (), error: Exception = FAILURE
) -> Any:
    """What makes such workers, for `featmap.runs.lifecycle.carry_out`; it can be sent to other processes."""
    return partial(_start, log, deadly, failing, error)
