"""Workers for tests of engines: they do as the real ones, and note, fail or die where they are told to."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from featmap.runs.engine import Engine, Task, WorkUnit
from featmap.runs.job import Job
from featmap.runs.lifecycle import task_of
from featmap.runs.progress import Watcher
from featmap.runs.store import Run
from featmap.runs.worker import Worker


@dataclass
class Hand:
    """Does units by a real worker; appends each one's name to a file first, dies on some and fails on others."""

    worker: Worker
    diary: Path
    deadly: tuple[str, ...]
    faulty: tuple[str, ...]
    fault: Exception

    def work(self, unit: WorkUnit, store: Run) -> None:
        with self.diary.open("a") as diary:
            diary.write(f"{unit.name}\n")
        if unit.name in self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        if unit.name in self.faulty:
            raise self.fault
        self.worker.work(unit, store)


def hand(
    job: Job, diary: Path, deadly: tuple[str, ...], faulty: tuple[str, ...], fault: Exception, watcher: Watcher
) -> Hand:
    return Hand(Worker(job, watcher), diary, deadly, faulty, fault)


ODD = ArithmeticError("cannot be done\nat all")


def task(
    job: Job, diary: Path, deadly: tuple[str, ...] = (), faulty: tuple[str, ...] = (), fault: Exception = ODD
) -> Task:
    real = task_of(job, Worker, Engine())
    make: Any = partial(hand, job, diary, deadly, faulty, fault)
    return Task(make, real.settings, real.environment, real.steps, real.cost)
