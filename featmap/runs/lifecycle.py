"""Life of a run folder: opened, filled by an engine, completed; and the network that it was made with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch

from featmap.errors import FeatmapError, StoreError
from featmap.network.loading import load
from featmap.network.model import Network
from featmap.optimize import limits
from featmap.runs import device as devices
from featmap.runs import ray_engine
from featmap.runs.engine import HERE, Engine, Landing, Task, Worker, landing, remaining, run_here
from featmap.runs.job import BaseJob
from featmap.runs.manifest import COMPLETE, MANIFEST, RUNNING, UNITS
from featmap.runs.progress import Silent, Watcher
from featmap.runs.store import Run, readable

MakeWorker = Callable[[Any, Watcher], Worker]
"""Makes the worker of a job; a class or function at the top of a module, so that it can be sent to other processes."""


def free_space(folder: Path) -> int:
    """Return the free space of a file system.

    Parameters
    ----------
    folder : Path
        Any path on it; it need not exist yet.

    Returns
    -------
    int
        Bytes.
    """
    there = folder.resolve()
    while not there.exists():
        there = there.parent
    return int(psutil.disk_usage(str(there)).free)


def open_run(job: BaseJob, folder: str | Path | None = None) -> Run:
    """Open the run folder of a job, new or left by the same settings, with room for what is to come.

    Parameters
    ----------
    job : BaseJob
        The checked job.
    folder : path, optional
        Run folder; None takes the job's own.

    Returns
    -------
    Run
        The folder, locked by this process.

    Raises
    ------
    StoreError
        If there is no room, the folder holds something else, or another process writes it.
    """
    folder = job.default_folder() if folder is None else Path(folder)
    needed, free = job.disk_needed, free_space(folder)
    if needed > free and not (folder / MANIFEST).exists():
        raise StoreError(
            f"run folder {str(folder)!r}: no space: {needed / 1e6:,.0f} MB needed, "
            f"{free / 1e6:,.0f} MB free; free some, or choose another folder"
        )
    about = {
        "network": str(job.network),
        "model_arguments": job.network.arguments,
        "command": job.command,
        "environment": devices.environment(job.device),
        "recipe_notes": list(job.recipe.notes),
    }
    return Run(folder, job.identity()).open(job.arrays(), job.coords(), about)


def carry_out(
    job: BaseJob, run: Run, worker: MakeWorker, watcher: Watcher | None = None, engine: Engine | None = None
) -> int:
    """Make what is missing of a run's arrays.

    Parameters
    ----------
    job : BaseJob
        Job of the run.
    run : Run
        Its folder, held by this process.
    worker : callable
        Makes a worker of the job, such as `featmap.runs.worker.Worker`.
    watcher : Watcher, optional
        Hears of the progress.
    engine : Engine, optional
        Where the work units are done; None is this process.

    Returns
    -------
    int
        Work units that were made now.

    Raises
    ------
    IncompleteError
        If an engine of several processes left units out.
    """
    watcher, engine = watcher or Silent(), engine or Engine()
    lost = [name for name in run.manifest.units if not run.is_done(name)]
    if lost or not run.manifest.is_complete:
        for name in lost:
            run.forget(name)
        _note_environment(run, job, engine, watcher, bool(lost))
    begun = time.perf_counter()
    count = _perform(job, run, worker, watcher, engine)
    if count:
        timings = run.manifest.timings
        timings["descent_and_probe"] = round(timings.get("descent_and_probe", 0.0) + time.perf_counter() - begun, 3)
        run.manifest.status = RUNNING
        run.save()
    return count


def _perform(job: BaseJob, run: Run, worker: MakeWorker, watcher: Watcher, engine: Engine) -> int:
    """Do the units that have not landed, wave after wave; return their number."""
    threads = engine.threads_of_each(torch.get_num_threads())
    task = task_of(job, worker, engine)
    if engine.name == HERE:
        workers: list[Worker] = []

        def work(unit: Landing) -> None:
            if not workers:  # the network is prepared only if there is anything to do
                workers.append(task.make(watcher))
            workers[0].work(unit, store)

        with task.settings(), devices.thread_count(threads), landing(run, task.gpu) as store:
            return run_here(job.work_units(), run, work, task.steps, watcher)
    names = {u.name for u in remaining(job.work_units(), run, task.steps, watcher)}
    if not names:
        return 0
    waves = [[unit for unit in wave if unit.name in names] for wave in job.waves()]
    note: Callable[[dict[str, Any]], None] = partial(note_later_environment, run, watcher=watcher)
    return ray_engine.run(task, [wave for wave in waves if wave], run, watcher, engine, threads, note)


def task_of(job: BaseJob, worker: MakeWorker, engine: Engine) -> Task:
    """Return what any process has to know to do work units of a job.

    Parameters
    ----------
    job : BaseJob
        Any job.
    worker : callable
        Makes a worker of the job.
    engine : Engine
        Where the units are done.

    Returns
    -------
    Task
        It can be sent to other processes.
    """
    if engine.name != HERE:  # a worker sees one GPU, its own, whatever number that has here
        job = replace(job, device=torch.device(job.device.type))
    return Task(
        partial(worker, job),
        devices.remembered_settings,
        partial(devices.environment, job.device),
        job.recipe.steps,
        job.cost,
        job.device.type == "cuda",
        limits.estimate_memory(job.network, job.recipe, job.layers) if engine.name != HERE else 0,
    )


def note_later_environment(run: Run, now: dict[str, Any], watcher: Watcher) -> None:
    """Note in the manifest, and say, that units are made in another environment than the run began in.

    Parameters
    ----------
    run : Run
        Run folder.
    now : dict
        The environment, see `featmap.runs.device.environment`.
    watcher : Watcher
        Hears the note.
    """
    later = run.manifest.later_environments
    if now == run.manifest.environment or now in later:
        return
    run.manifest.later_environments = [*later, now]
    run.save()
    watcher.note(
        "parts of this run are made with other library versions or threads: images may differ in the last bits"
    )


def _note_environment(run: Run, job: BaseJob, engine: Engine, watcher: Watcher, changed: bool) -> None:
    """Note in the manifest what the units will be made with and where."""
    manifest = run.manifest
    now = devices.environment(job.device) | {"threads": engine.threads_of_each(torch.get_num_threads())}
    used = {"engine": engine.name, "workers": engine.workers, "threads": now["threads"]}
    if used not in manifest.engines:
        manifest.engines, changed = [*manifest.engines, used], True
    if any((run.folder / UNITS).glob("[!.]*")):
        note_later_environment(run, now, watcher)
    elif manifest.environment != now:  # nothing is made yet: the run begins in this environment
        manifest.environment, changed = now, True
    if changed:
        run.save()


def complete(job: BaseJob, run: Run) -> None:
    """Note the checksums of all work units in the manifest and call the run complete.

    Parameters
    ----------
    job : BaseJob
        Job of the run.
    run : Run
        Its folder, in which every unit has landed.
    """
    complete_units(run, [unit.name for unit in job.work_units()])


def complete_units(run: Run, names: list[str]) -> None:
    """Note the checksums of work units in the manifest and call the run complete.

    Parameters
    ----------
    run : Run
        Run folder.
    names : list of str
        Names of all its work units.
    """
    run.manifest.units = {name: run.record(name) for name in names}
    run.manifest.status = COMPLETE
    run.save()


def network_of(folder: Path) -> Network:
    """Load the network that a run was made with.

    Parameters
    ----------
    folder : Path
        Run folder.

    Returns
    -------
    Network
        The same network with the same weights.

    Raises
    ------
    FeatmapError
        If it cannot be loaded again, or its weights have changed.
    """
    run = Run.read(folder)
    with readable(folder):
        arguments, known = run.manifest.model_arguments, str(run.identity["model"]["sha256"])
        if not arguments.get("model"):
            raise FeatmapError(f"run {str(folder)!r} was made with a network of the caller's own; name it")
        network = load(**arguments)
    if network.sha256 != known:
        raise FeatmapError(
            f"run {str(folder)!r} was made with other weights than {network.weights} now; "
            "name the network and the weights"
        )
    return network
