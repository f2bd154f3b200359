"""Run folders of jobs of any kind: where they lie, opening them, the time and environment of what is done in them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil
import torch

from featmap.errors import StoreError
from featmap.files import file_name
from featmap.network.model import Network
from featmap.optimize.recipe import Recipe
from featmap.runs import device as devices
from featmap.runs import job as runs
from featmap.runs.engine import Engine, Watcher
from featmap.runs.store import MANIFEST, UNITS, ArraySpec, Run, digest

OWN_FILES = 2_000_000
"""Bytes of what any run writes, however small; pictures of the images come to at most a fifth of their arrays."""


class AnyJob(Protocol):
    """What a run folder has to know of the job that it belongs to."""

    @property
    def network(self) -> Network:
        """The network."""

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""

    @property
    def about(self) -> tuple[tuple[str, Any], ...]:
        """Further settings; "command" names the command."""

    def identity(self) -> dict[str, Any]:
        """Everything that the numbers depend on, as plain JSON values."""

    def arrays(self) -> dict[str, ArraySpec]:
        """The arrays of the folder."""

    def coords(self) -> dict[str, np.ndarray]:
        """The labels along their dimensions."""


def default_folder(job: AnyJob, named: Iterable[str]) -> Path:
    """Return where a job's run goes if nobody says: its name ends in a hash of all that its numbers depend on."""
    name = file_name("-".join([job.network.name, *named]))
    return Path("runs") / f"{name}-{job.recipe.name}-{digest(job.identity())}"


def bytes_of(job: AnyJob) -> int:
    """Return the bytes of a job's arrays before compression."""
    return sum(int(np.prod(s.shape)) * np.dtype(s.dtype).itemsize for s in job.arrays().values())


def free_space(folder: Path) -> int:
    """Return the free bytes on the file system that `folder` lies or will lie on."""
    there = folder.resolve()
    while not there.exists():
        there = there.parent
    return int(psutil.disk_usage(str(there)).free)


def open_run(job: AnyJob, folder: Path, need: int) -> Run:
    """Return the job's run folder, new or taken up, with room for the `need` bytes that are to come.

    Raises
    ------
    StoreError
        if there is no room, or the folder holds something else.
    """
    free = free_space(folder)
    if need > free and not (folder / MANIFEST).exists():
        raise StoreError(
            f"run folder {str(folder)!r}: no space: {need / 1e6:,.0f} MB needed, "
            f"{free / 1e6:,.0f} MB free; give another --out"
        )
    about = {
        "network": str(job.network),
        "model_arguments": job.network.arguments,
        "command": dict(job.about).get("command"),
        "environment": devices.environment(job.device),
        "recipe_notes": list(job.recipe.notes),
        "timings": {},
    }
    return Run(folder, job.identity()).open(job.arrays(), job.coords(), about)


def carry_out(job: AnyJob, run: Run, watcher: Watcher, execute: Callable[[], int], engine: Engine | None = None) -> int:
    """Make what is missing of the run's arrays by `execute`; return how many work units it made now."""
    noted = run.manifest.get("units") or {}
    lost = [name for name in noted if not run.is_done(name)]
    if lost or run.manifest["status"] != "complete":
        for name in lost:
            run.forget(name)
        _enter(run, job, engine or Engine(), watcher, bool(lost))
    begun = time.perf_counter()
    made = execute()
    if made:
        timings = run.manifest["timings"]
        timings["descent_and_probe"] = round(timings.get("descent_and_probe", 0.0) + time.perf_counter() - begun, 3)
        run.manifest["status"] = "running"
        run.save()
    return made


def _enter(run: Run, job: AnyJob, engine: Engine, watcher: Watcher, changed: bool) -> None:
    """Note in the manifest what the units will be made with and where."""
    now = devices.environment(job.device) | {"threads": engine.threads_of_each(torch.get_num_threads())}
    used = {"engine": engine.name, "workers": engine.workers, "threads": now["threads"]}
    known = run.manifest.get("engines", [])
    noted = {"engines": known if used in known else [*known, used]}
    if any((run.folder / UNITS).glob("[!.]*")):
        runs.enter_environment(run, now, watcher)
    else:  # nothing is made yet: the run begins in this environment
        noted["environment"] = now
    if changed or any(run.manifest.get(name) != value for name, value in noted.items()):
        run.manifest |= noted
        run.save()


def complete(run: Run, names: Iterable[str]) -> None:
    """Note the checksums of all work units in the manifest and call the run complete."""
    run.manifest["units"] = {name: run.record(name) for name in names}
    run.manifest["status"] = "complete"
    run.save()
