"""Life of a run folder: opened, filled by an engine, completed; and the network that it was computed with."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch

from featmap.errors import FeatmapError, StoreError
from featmap.files import translate_os_errors
from featmap.image_shape import smallest
from featmap.network.directions import read_directions, stored_path
from featmap.network.loading import load
from featmap.network.model import Network
from featmap.optimize import limits
from featmap.optimize.batch import Batches, list_chosen_rows
from featmap.optimize.prepare import UNTOUCHED
from featmap.runs import device, ray_engine
from featmap.runs.engine import HERE, AnyUnit, Engine, Task, Worker, background_store, find_remaining, run_here
from featmap.runs.folder_layout import ARRAYS, write_layout
from featmap.runs.job import BaseJob
from featmap.runs.manifest import COMPLETE, MANIFEST, RUNNING, UNITS, is_run, translate_read_errors
from featmap.runs.progress import Silent, Watcher
from featmap.runs.store import Run

MakeWorker = Callable[[Any, Watcher], Worker]
"""Creates the worker of a job; a class or function at the top of a module, so that other processes can load it."""


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
    existing = folder.resolve()
    while not existing.exists():
        existing = existing.parent
    return int(psutil.disk_usage(str(existing)).free)


def open_run(job: BaseJob, folder: str | Path | None = None) -> Run:
    """Open the run folder of a job: a new one, or one that the same settings left.

    Parameters
    ----------
    job : BaseJob
        The checked job.
    folder : path, optional
        Run folder; None takes the job's default folder.

    Returns
    -------
    Run
        The folder, locked by this process.

    Raises
    ------
    StoreError
        If the disk has too little space for the run, the folder holds something else, or another process writes it.
    """
    folder = job.default_folder() if folder is None else Path(folder)
    needed, free = job.disk_needed, free_space(folder)
    # a folder that exists has taken part of its space already, and may be complete
    if needed > free and not (folder / MANIFEST).exists():
        raise StoreError(
            f"run folder {str(folder)!r}: no space: {needed / 1e6:,.0f} MB needed, "
            f"{free / 1e6:,.0f} MB free; free some, or choose another folder"
        )
    about = {
        "network": str(job.network),
        "model_arguments": job.network.arguments,
        "command": job.command,
        "environment": device.describe_environment(job.device),
        "recipe_notes": list(job.recipe.notes),
    }
    return Run(folder, job.identity()).open(job.arrays(), job.coords(), about, direction_files(job.network))


def extend(job: BaseJob, run: Run, without: Collection[str] = ()) -> None:
    """Give the arrays of a run the shapes and labels of a job that has grown.

    Chunks of the job's arrays stay as they are.

    Parameters
    ----------
    job : BaseJob
        The job: the rows that are stored are the first ones of its arrays, in chunks of the same shape.
    run : Run
        Its folder, locked by this process.
    without : collection of str, default ()
        Arrays of the job that the run does without; what the manifest has of them is removed.
    """
    specs = {name: spec for name, spec in job.arrays().items() if name not in without}
    with translate_os_errors(f"run folder {str(run.folder)!r}"):
        layout = write_layout(run.folder, specs, job.coords(), direction_files(job.network))
        for name in without:
            if f"{ARRAYS}/{name}/.zarray" in run.manifest.layout:
                shutil.rmtree(run.folder / ARRAYS / name)
    if layout != run.manifest.layout:
        run.manifest.layout = layout
        run.save()


def carry_out(
    job: BaseJob, run: Run, worker: MakeWorker, watcher: Watcher | None = None, engine: Engine | None = None
) -> int:
    """Compute what is missing of a run's arrays: every run begins and resumes here.

    A work unit whose record or files are missing or damaged (`Run.is_done`) is computed again, the others are kept.

    Parameters
    ----------
    job : BaseJob
        Job of the run.
    run : Run
        Its folder, locked by this process.
    worker : callable
        Creates a worker of the job, such as `featmap.runs.worker.Worker`.
    watcher : Watcher, optional
        Receives the progress.
    engine : Engine, optional
        Where the work units are computed; None is this process.

    Returns
    -------
    int
        Number of work units computed by this call.

    Raises
    ------
    IncompleteError
        If an engine of several processes left units out.
    """
    watcher, engine = watcher or Silent(), engine or Engine()
    lost = [name for name in run.manifest.units if not run.is_done(name)]
    # a second call on an intact, complete run writes nothing at all
    if lost or not run.manifest.is_complete:
        for name in lost:
            run.forget(name)
        _record_environment(run, job, engine, watcher, bool(lost))
    start = time.perf_counter()
    count = _run_units(job, run, worker, watcher, engine)
    if count:
        timings = run.manifest.timings
        timings["descent_and_probe"] = round(timings.get("descent_and_probe", 0.0) + time.perf_counter() - start, 3)
        rows = list_chosen_rows(job.network, job.recipe, [*job.layers, *job.responses])
        known = run.manifest.batch_rows
        run.manifest.batch_rows = [*known, *(r for r in rows if r not in known)]
        run.manifest.status = RUNNING
        run.save()
    return count


def _run_units(job: BaseJob, run: Run, worker: MakeWorker, watcher: Watcher, engine: Engine) -> int:
    """Compute the units that have not landed, wave after wave; return their number."""
    threads = engine.threads_per_worker(torch.get_num_threads())
    task = task_of(job, worker, engine)
    if engine.name == HERE:
        workers: list[Worker] = []

        def work(unit: AnyUnit) -> None:
            if not workers:  # the network is prepared only if there is anything to compute
                _choose_preparations(job, run, watcher)
                workers.append(task.make(watcher))
            workers[0].work(unit, store)

        with task.settings(), device.use_threads(threads), background_store(run, task.gpu) as store:
            return run_here(job.work_units(), run, work, task.steps, watcher)
    open_units = {u.name for u in find_remaining(job.work_units(), run, task.steps, watcher)}
    if not open_units:  # no cluster is started for a run that is complete
        return 0
    with task.settings():
        _choose_preparations(job, run, watcher)
    waves = [[unit for unit in wave if unit.name in open_units] for wave in job.waves()]
    note: Callable[[dict[str, Any]], None] = partial(record_later_environment, run, watcher=watcher)
    return ray_engine.run(task, [wave for wave in waves if wave], run, watcher, engine, threads, note)


def _choose_preparations(job: BaseJob, run: Run, watcher: Watcher) -> None:
    """Choose the copies that descend, record them, and say where a copy differs from the network.

    The job's network keeps the choices, so that all workers of an engine descend on the same copies.
    """
    batches = Batches(job.network, job.device)
    sizes = job.recipe.size, smallest(job.recipe.sizes)
    # layers and their directions share a copy
    choices = list(dict.fromkeys(batches.preparation(layers, *sizes) for layers in job.layer_sets))
    records = [choice.to_json() for choice in choices]
    if run.manifest.preparation != records:
        run.manifest.preparation = records
        run.save()
    differing = [str(choice) for choice in choices if choice.network == UNTOUCHED]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        watcher.note(
            "the copy prepared for descents differs from the network, so the untouched network descends: "
            f"{'; '.join(differing[:3])}{more}"
        )


def task_of(job: BaseJob, worker: MakeWorker, engine: Engine) -> Task:
    """Collect everything that a process needs in order to compute work units of a job.

    Parameters
    ----------
    job : BaseJob
        Any job.
    worker : callable
        Creates a worker of the job.
    engine : Engine
        Where the units are computed.

    Returns
    -------
    Task
        It can be sent to other processes.
    """
    if engine.name != HERE:  # a worker sees one GPU, its own, whatever its number is here
        job = replace(job, device=torch.device(job.device.type))
    return Task(
        partial(worker, job),
        device.deterministic_settings,
        partial(device.describe_environment, job.device),
        job.steps_per_unit,
        job.cost,
        job.device.type == "cuda",
        limits.estimate_memory(job.network, job.recipe, job.layers) if engine.name != HERE else 0,
    )


def record_later_environment(run: Run, environment: dict[str, Any], watcher: Watcher) -> None:
    """Record an environment that differs from the first one, and notify the user.

    Parameters
    ----------
    run : Run
        Run folder.
    environment : dict
        Environment of a worker, see `featmap.runs.device.describe_environment`.
    watcher : Watcher
        Receives the note.
    """
    later = run.manifest.later_environments
    if environment == run.manifest.environment or environment in later:
        return
    run.manifest.later_environments = [*later, environment]
    run.save()
    watcher.note(
        "parts of this run are computed with other library versions or threads: images may differ in the last bits"
    )


def _record_environment(run: Run, job: BaseJob, engine: Engine, watcher: Watcher, changed: bool) -> None:
    """Record the engine and environment of the units to come; save the manifest if it changed."""
    manifest, threads = run.manifest, engine.threads_per_worker(torch.get_num_threads())
    environment = device.describe_environment(job.device) | {"threads": threads}
    used = {"engine": engine.name, "workers": engine.workers, "threads": threads}
    if used not in manifest.engines:
        manifest.engines, changed = [*manifest.engines, used], True
    if any((run.folder / UNITS).glob("[!.]*")):
        record_later_environment(run, environment, watcher)
    elif manifest.environment != environment:  # nothing has landed yet: the run begins in this environment
        manifest.environment, changed = environment, True
    if changed:
        run.save()


def complete(job: BaseJob, run: Run) -> None:
    """Record the checksums of all work units, and mark the run complete.

    Parameters
    ----------
    job : BaseJob
        Job of the run.
    run : Run
        Its folder, in which every unit has landed.
    """
    complete_units(run, [unit.name for unit in job.work_units()])


def complete_units(run: Run, names: list[str]) -> None:
    """Record the checksums of work units, and mark the run complete.

    Parameters
    ----------
    run : Run
        Run folder.
    names : list of str
        Names of all its work units.
    """
    run.manifest.units = {name: run.read_record(name) for name in names}
    run.manifest.status = COMPLETE
    run.save()


def record_photographs(run: Run, record: dict[str, Any]) -> None:
    """Record which photographs a run reads, and what of their folder it does not.

    Parameters
    ----------
    run : Run
        Run folder, locked by this process.
    record : dict
        See `PhotographFolder.record`; empty for other images.
    """
    # a second call on a complete run writes nothing; one after files were removed from the folder says so
    if run.manifest.photographs != record:
        run.manifest.photographs = record
        run.save()


def network_of(folder: Path) -> Network:
    """Load the network that a run was computed with.

    Parameters
    ----------
    folder : Path
        Run folder.

    Returns
    -------
    Network
        The same network with the same weights and directions.

    Raises
    ------
    FeatmapError
        If it cannot be loaded again, or its weights have changed.
    """
    run = Run.read(folder)
    with translate_read_errors(folder):
        arguments, checksum = run.manifest.model_arguments, str(run.identity["model"]["sha256"])
        if not arguments.get("model"):
            raise FeatmapError(f"run {str(folder)!r} was computed with a network of the caller's own; pass the network")
        network = load(**arguments)
    if network.sha256 != checksum:
        raise FeatmapError(
            f"run {str(folder)!r} was computed with weights other than {network.weights} now; "
            "pass the network with those weights"
        )
    return with_run_directions(network, folder)


def direction_files(network: Network) -> dict[str, bytes]:
    """Write a network's directions as files of a run folder.

    Parameters
    ----------
    network : Network
        The network.

    Returns
    -------
    dict of str to bytes
        Content by path in the folder.
    """
    return {stored_path(name, d.identity()): d.to_bytes() for name, d in network.directions.items()}


def with_run_directions(network: Network, folder: Path) -> Network:
    """Add the directions that a run was computed with.

    Parameters
    ----------
    network : Network
        The run's network.
    folder : Path
        Run folder.

    Returns
    -------
    Network
        The network with the directions that it lacks.

    Raises
    ------
    FeatmapError
        If a file of directions is damaged.
    """
    run = Run.read(folder)
    with translate_read_errors(folder):
        recorded: dict[str, dict[str, Any]] = run.identity["model"].get("directions", {})
        sets = {}
        for name, identity in recorded.items():
            if name in network.directions:
                continue
            sets[name] = read_directions(folder / stored_path(name, identity))
            if sets[name].identity() != identity:
                raise StoreError(
                    f"run {str(folder)!r}: the directions {name} have changed since they were written; "
                    "the run's own command writes them again"
                )
        return network.with_directions(sets) if sets else network


def require_network(run: Run, network: Network) -> None:
    """Check that a network is the one that a run was computed with.

    Parameters
    ----------
    run : Run
        The run.
    network : Network
        The network.

    Raises
    ------
    FeatmapError
        If it is another one.
    """
    if json.loads(json.dumps(network.identity())) != run.identity["model"]:
        raise FeatmapError(
            f"run {str(run.folder)!r} was made with a different network than {network.name} ({network.weights}); "
            "give the network and the weights of the run"
        )


@contextmanager
def registered_inside(run_folder: Path, folder: Path) -> Iterator[None]:
    """Register a folder that lies inside a run's as a part, unless its start fails.

    Parameters
    ----------
    run_folder : Path
        Folder of the run.
    folder : Path
        Any folder, which the context makes a run folder; nothing is done where it lies elsewhere.

    Yields
    ------
    None
        For the time in which the folder is started and used.
    """
    root, part = run_folder.resolve(), folder.resolve()
    if not part.is_relative_to(root):
        yield
        return

    def change(register: bool) -> None:
        name = part.relative_to(root).as_posix()
        with Run.read(run_folder).locked() as run:
            run.manifest = Run.read(run_folder).manifest  # as it is now that no other process can write it
            if register:
                run.register_part(run_folder / name)
            elif name in run.manifest.parts:
                run.manifest.parts.remove(name)
                run.save()

    change(register=True)
    try:
        yield
    finally:
        if not is_run(folder):  # removed with the failed start; a part that is missing counts as damage
            change(register=False)
