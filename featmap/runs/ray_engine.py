"""Engine on Ray: workers that each hold the network, and the handling of workers that fail or die.

Ray itself is imported only when a run uses it. Results go straight from a worker to the run folder, which all machines
have to share; the driver holds the names of open units and nothing that grows with the results.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from featmap.errors import FeatmapError, IncompleteError, describe_error
from featmap.runs.engine import AnyUnit, Engine, Task
from featmap.runs.progress import Silent, Watcher
from featmap.runs.store import Run

TRIES = 3
POLL = 0.5
"""Seconds between two checks for Ctrl-C."""
LONG_WAIT = 60.0
"""Seconds without any worker after which the user is notified; a multiple of `POLL`."""
STORE_BYTES = 128 * 2**20
WORKER_BYTES = 700_000_000
"""Approximate memory of a process that has loaded torch, a network and a copy of it."""
MAX_NAMED = 10
CONNECT_SECONDS = 10.0
NO_WORKER = f"no worker is left: {TRIES} in a row died while they loaded the network"


@dataclass(frozen=True)
class UnitReport:
    """Answer of a worker about one unit.

    Parameters
    ----------
    activation : float, default 0.0
        Activation that the last step reached, the mean of the batch.
    fault : str, default ""
        One line about the exception that the unit raised; empty where the unit landed.
    error : FeatmapError, optional
        The exception, where the user can correct its cause: it ends the run.
    """

    activation: float = 0.0
    fault: str = ""
    error: FeatmapError | None = None


class _LastActivation(Silent):
    """Watcher that stores the activation of the last step."""

    activation = 0.0

    def step(self, activation: float, count: int = 1) -> None:
        """Store the activation."""
        self.activation = activation


class Worker:
    """Process of the cluster that loads the network once and then computes units."""

    def prepare(self, payload: bytes, folder: str, threads: int, place: str, path: list[str]) -> dict[str, Any]:
        """Load the network.

        Parameters
        ----------
        payload : bytes
            The task, see `_serialise`.
        folder : str
            Run folder, an absolute path.
        threads : int
            Threads of this worker.
        place : str
            Working directory of the driver.
        path : list of str
            Import path of the driver.

        Returns
        -------
        dict
            Environment of this process, see `featmap.runs.device.describe_environment`; or one entry `fault`, a line
            about the reason why it cannot work.
        """
        host = socket.gethostname()
        with suppress(OSError):
            os.chdir(place)  # relative paths of the model and of its files refer to the driver's directory
        sys.path[:] = [*path, *(p for p in sys.path if p not in path)]
        try:
            import ray
            import torch

            # before any computation: the number of threads decides the last bits of the results
            torch.set_num_threads(threads)
            if not Path(folder).is_dir():
                return {
                    "fault": f"a worker on {host} does not see {folder!r}; all machines have to share the run folder"
                }
            make, settings, environment = ray.cloudpickle.loads(payload)
            self._settings = settings()
            self._settings.__enter__()  # for the lifetime of this process
            self._last, self._store = _LastActivation(), Run.read(Path(folder))
            self._worker = make(self._last)
            return dict(environment())
        except Exception as error:  # noqa: BLE001 - a network may raise anything; the driver reports it
            return {"fault": f"a worker on {host} cannot be prepared ({describe_error(error)})"}

    def do(self, unit: Any) -> UnitReport:
        """Compute one unit and land it in the run folder.

        Parameters
        ----------
        unit : AnyUnit
            A unit of the run.

        Returns
        -------
        UnitReport
            Activation, or the exception; none is raised.
        """
        try:
            self._worker.work(unit, self._store)
            return UnitReport(self._last.activation)
        except FeatmapError as error:  # a traceback holds frames, which cannot be sent
            return UnitReport(fault=str(error), error=error.with_traceback(None))
        except Exception as error:  # noqa: BLE001 - counted as a failed try, and named at the end
            return UnitReport(fault=describe_error(error))


@dataclass(eq=False)
class _WorkerPool:
    """Workers of a run: idle ones, and busy ones with their unit, which is None while they load the network."""

    ray: Any
    start: Callable[[], tuple[Any, Any]]
    size: int
    idle: list[Any] = field(default_factory=list)
    busy: dict[Any, tuple[Any, Any]] = field(default_factory=dict)
    deaths_at_start: int = 0
    ready: int = 0
    waited: float = 0.0

    def start_workers(self, count: int) -> None:
        """Start workers until there are `count`, or as many as are allowed."""
        while len(self.idle) + len(self.busy) < min(self.size, count):
            actor, answer = self.start()
            self.busy[answer] = (actor, None)

    def assign(self, queue: deque[Any]) -> None:
        """Assign the next units to the idle workers."""
        while queue and self.idle:
            actor, unit = self.idle.pop(), queue.popleft()
            self.busy[actor.do.remote(unit)] = (actor, unit)

    def answers(self) -> Iterator[tuple[Any, Any, Any]]:
        """Yield (worker, unit, answer) of each worker that has answered; the answer is None if it died."""
        # a short timeout, because Ray's wait does not return at Ctrl-C
        done, _ = self.ray.wait(list(self.busy), num_returns=1, timeout=POLL)
        working = done or any(unit is not None for _, unit in self.busy.values())
        self.waited = 0.0 if working else self.waited + POLL
        for answer in done:
            actor, unit = self.busy.pop(answer)
            try:
                yield actor, unit, self.ray.get(answer)
            except self.ray.exceptions.RayError:
                yield actor, unit, None

    def is_exhausted(self) -> bool:
        """Check whether no worker is left and none may be started."""
        return not self.size and not self.idle and not self.busy

    def stop(self, actor: Any) -> None:
        """End one worker, if it is still alive."""
        self.ray.kill(actor)

    def __enter__(self) -> _WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        for actor in [*self.idle, *(actor for actor, _ in self.busy.values())]:
            self.stop(actor)


def run(
    task: Task,
    waves: Sequence[Sequence[AnyUnit]],
    store: Run,
    watcher: Watcher,
    engine: Engine,
    threads: int,
    note: Callable[[dict[str, Any]], None],
) -> int:
    """Compute units on Ray, each wave after the one before it is complete.

    Parameters
    ----------
    task : Task
        Everything that workers need.
    waves : sequence of sequence of AnyUnit
        Units that have not landed.
    store : Run
        Run folder, on a file system that all workers share.
    watcher : Watcher
        Receives the progress.
    engine : Engine
        Number of workers and address of the cluster.
    threads : int
        Threads of each worker.
    note : callable
        Called with the environment of each worker.

    Returns
    -------
    int
        Number of units that landed.

    Raises
    ------
    IncompleteError
        If units are left out because they failed, or their worker died, `TRIES` times; the message names them.
    FeatmapError
        If there is no cluster, no room in it, or the workers cannot be prepared.
    """
    landed, count = 0, sum(map(len, waves))
    payload = _serialise(task)
    with connect(engine, threads, count, task.gpu) as (ray, size):
        if size < (engine.workers or 0):
            watcher.note(f"{engine.workers} workers requested; the cluster has room for {size}")
        # Ray counts cores and GPUs, not memory: without this limit the operating system would kill workers
        fitting = fit_in_memory(size, task.memory) if _is_local(ray, engine) and not task.gpu else size
        if fitting < size:
            watcher.note(
                f"{size} workers' batches do not fit into this machine's memory at once; {fitting} are started, of "
                f"{threads} threads each ({fitting} workers, if requested, share all cores)"
            )
            size = fitting
        start = _worker_starter(ray, payload, store, threads, task.gpu)
        with _WorkerPool(ray, start, max(1, size)) as pool:
            for wave in waves:
                # the largest first: the last units to end are small ones, and few workers wait for them
                landed += _run_wave(pool, sorted(wave, key=task.cost, reverse=True), task, store, watcher, note, count)
    return landed


def _run_wave(
    pool: _WorkerPool,
    units: Sequence[AnyUnit],
    task: Task,
    store: Run,
    watcher: Watcher,
    note: Callable[[dict[str, Any]], None],
    count: int,
) -> int:
    """Compute the units of one wave; return the number that landed."""
    queue, tries, left_out, landed = deque(units), Counter[str](), dict[str, str](), 0
    while queue or any(unit is not None for _, unit in pool.busy.values()):
        pool.start_workers(len(queue) + sum(unit is not None for _, unit in pool.busy.values()))
        pool.assign(queue)
        if pool.waited == LONG_WAIT:
            watcher.note("still waiting for a first worker: is the cluster busy with other work?")
        for actor, unit, answer in pool.answers():
            if unit is None:
                _admit(pool, actor, answer, note)
            # a worker may die between landing a unit and answering: the record in the folder decides
            elif (answer is not None and not answer.fault) or store.is_done(unit.name):
                landed += 1
                if unit.last:
                    watcher.step(answer.activation if answer is not None else 0.0, task.steps)
                watcher.landed()
                _release(pool, actor, alive=answer is not None)
            elif answer is not None and answer.error is not None:
                raise answer.error
            else:
                # after an exception a GPU may not be usable any more, not even by a process that goes on
                _release(pool, actor, alive=answer is not None and not task.gpu)
                tries[unit.name] += 1
                if tries[unit.name] < TRIES:
                    queue.appendleft(unit)
                else:
                    left_out[unit.name] = "its worker died" if answer is None else answer.fault
                    watcher.note(f"work unit {unit.name} is left out after {TRIES} tries ({left_out[unit.name]})")
        if pool.is_exhausted():
            left_out |= {unit.name: NO_WORKER for unit in queue}
            break
        # where the first units all fail, the others would fail for the same reason
        if len(left_out) >= TRIES and not landed:
            break
    if left_out:
        raise IncompleteError(_describe_failures(left_out, count, bool(queue) and not pool.is_exhausted()))
    return landed


def _admit(
    pool: _WorkerPool, actor: Any, answer: dict[str, Any] | None, note: Callable[[dict[str, Any]], None]
) -> None:
    """Add a new worker to the idle ones; give up where workers die before they can compute."""
    if answer is None:
        pool.stop(actor)
        pool.deaths_at_start += 1
        if pool.deaths_at_start >= TRIES and pool.ready:  # no more are started; the living ones go on
            pool.size = len(pool.idle) + len(pool.busy)
        elif pool.deaths_at_start >= TRIES:
            raise FeatmapError(
                f"engine ray: {TRIES} workers died while they loaded the network; request fewer workers if memory is "
                "short, or use the engine 'here' to see what happens"
            )
        return
    if "fault" in answer:
        raise FeatmapError(f"engine ray: {answer['fault']}")
    note(answer)
    pool.deaths_at_start, pool.ready = 0, pool.ready + 1
    pool.idle.append(actor)


def _release(pool: _WorkerPool, actor: Any, alive: bool) -> None:
    """Add a worker to the idle ones, or end it."""
    if alive:
        pool.idle.append(actor)
    else:
        pool.stop(actor)


def _describe_failures(left_out: dict[str, str], count: int, stopped: bool) -> str:
    """Format the units that were left out and their faults; `stopped` if others were not tried."""
    named = ", ".join(f"{name} ({fault})" for name, fault in list(left_out.items())[:MAX_NAMED])
    more = f" and {len(left_out) - MAX_NAMED} more" if len(left_out) > MAX_NAMED else ""
    tried = "" if NO_WORKER in left_out.values() else f" after {TRIES} tries each"
    rest = "nothing could be computed and the rest was not tried" if stopped else "what is finished is kept"
    return (
        f"{len(left_out)} of {count} work units were left out{tried}: {named}{more}; {rest}; "
        "the same command computes what is missing"
    )


def _is_local(ray: Any, engine: Engine) -> bool:
    """Check whether all workers share the memory of this machine."""
    if engine.address not in (None, "auto", "local"):
        return False
    alive = [node for node in ray.nodes() if node["Alive"]]
    return len(alive) == 1 and alive[0]["NodeManagerAddress"] == ray.util.get_node_ip_address()


def fit_in_memory(workers: int, batch_bytes: int) -> int:
    """Limit a number of workers to those that fit into this machine's free memory.

    Parameters
    ----------
    workers : int
        Number of workers.
    batch_bytes : int
        Bytes of a batch, besides the network.

    Returns
    -------
    int
        From 1 to `workers`.
    """
    free = int(psutil.virtual_memory().available)
    return max(1, min(workers, free // (batch_bytes + WORKER_BYTES)))


def _serialise(task: Task) -> bytes:
    """Pickle what a worker needs of a task."""
    from ray import cloudpickle

    try:
        return bytes(cloudpickle.dumps((task.make, task.settings, task.environment)))
    except Exception as error:
        raise FeatmapError(
            f"engine ray: this network cannot be sent to workers ({describe_error(error)}); name it as "
            "package.module:factory, or use the engine 'here'"
        ) from error


def _worker_starter(ray: Any, payload: bytes, store: Run, threads: int, gpu: bool) -> Callable[[], tuple[Any, Any]]:
    """Create a function that starts one worker; it returns the worker and the future of its answer."""
    shared = ray.put(payload)  # stored once a node: each worker reads the network from there
    # no restarts and retries by Ray: it would repeat a unit that kills its worker without end, uncounted
    kind = ray.remote(num_cpus=threads, num_gpus=1 if gpu else 0, max_restarts=0, max_task_retries=0)(Worker)
    folder, place = str(store.folder.resolve()), str(Path.cwd())

    def start() -> tuple[Any, Any]:
        actor = kind.remote()
        return actor, actor.prepare.remote(shared, folder, threads, place, [p or place for p in sys.path])

    return start


@contextmanager
def connect(engine: Engine, threads: int, units: int, gpu: bool = False) -> Iterator[tuple[Any, int]]:
    """Connect to Ray, and disconnect at the end if it was not connected before.

    Parameters
    ----------
    engine : Engine
        Number of workers and address of the cluster.
    threads : int
        Threads of each worker.
    units : int
        Number of work units; no more workers are needed.
    gpu : bool, default False
        Whether each worker needs a GPU of its own.

    Yields
    ------
    tuple of (module, int)
        The module `ray`, and the number of workers that there is room for.

    Raises
    ------
    FeatmapError
        If there is no cluster, or no room in it for one worker.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage statistics are sent
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except (ImportError, RuntimeError, AttributeError) as error:
        raise FeatmapError(
            f"engine ray: Ray cannot be imported ({describe_error(error)}); pip install 'featmap[ray]'"
        ) from error
    ours = not ray.is_initialized()
    if ours:
        _initialise(ray, engine, threads, units, gpu)
    try:
        yield ray, min(units, _capacity(ray, engine, threads, gpu))
    finally:
        if ours:
            ray.shutdown()


def _initialise(ray: Any, engine: Engine, threads: int, units: int, gpu: bool) -> None:
    """Connect to the cluster at the engine's address, or start one on this machine."""
    _check_address(engine.address)
    settings: dict[str, Any] = {"address": engine.address}
    if engine.address is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        # requested workers are started, even where the machine has fewer cores than they have threads
        settings |= {"num_cpus": max(cores, min(engine.workers or 1, units) * threads)}
        settings |= {"include_dashboard": False, "object_store_memory": STORE_BYTES}
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **settings)
    except Exception as error:  # Ray raises many kinds, some of them plain
        if engine.address is not None:
            raise _no_cluster(engine.address, error) from error
        raise FeatmapError(
            f"engine ray: Ray did not start here ({describe_error(error)}); try again when the machine is less busy, "
            "or use the engine 'here'"
        ) from error


def _no_cluster(address: str, error: Exception) -> FeatmapError:
    """Create the error for an address without a cluster."""
    return FeatmapError(
        f"engine ray: no cluster at {address!r} ({describe_error(error)}); start one with `ray start --head`, or "
        "leave the address out"
    )


def _check_address(address: str | None) -> None:
    """Check that an address is one, and that something answers there."""
    if address in (None, "auto", "local"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise FeatmapError(f"engine ray: address {address!r}: give host:port, ray://host:port or auto")
    try:  # Ray itself would try for many minutes
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise _no_cluster(address, error) from error


def _capacity(ray: Any, engine: Engine, threads: int, gpu: bool) -> int:
    """Return the number of workers that the cluster has room for, at most as many as are requested."""
    total = ray.cluster_resources()
    room = int(total.get("CPU", 0) // threads)
    if gpu:
        room = min(room, int(total.get("GPU", 0)))
    if not room:
        needed = f"a GPU and {threads} CPUs" if gpu else f"{threads} CPUs"
        raise FeatmapError(f"engine ray: no room in the cluster for a worker of {needed}; choose fewer threads")
    return min(engine.workers or room, room)
