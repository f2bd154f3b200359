"""Work units on Ray: workers that each hold the network, and what is done when one of them dies.

Imported only where it is asked for. What a worker makes goes straight from it to the run folder, which all machines
have to share; the driver keeps the names of open units and nothing that grows with what they make.
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

from featmap.errors import FeatmapError, IncompleteError
from featmap.runs.engine import Engine, Landing, Task
from featmap.runs.progress import Silent, Watcher
from featmap.runs.store import Run

TRIES = 3
POLL = 0.5  # seconds between two looks at Ctrl-C
LONG = 60.0  # seconds without any worker, of which the user is told
STORE_BYTES = 128 * 2**20
WORKER_BYTES = 700_000_000
"""About what a process holds that has loaded torch, a network and its copy."""
NAMED = 10
CONNECT_SECONDS = 10.0
NOBODY = f"no worker is left: {TRIES} in a row died while they loaded the network"


@dataclass(frozen=True)
class Report:
    """What a worker says of a unit: the activation it ended at, what went wrong, and that if a user can mend it."""

    activation: float = 0.0
    fault: str = ""
    error: FeatmapError | None = None


class _Last(Silent):
    """Remembers the activation of the last step."""

    activation = 0.0

    def step(self, activation: float, count: int = 1) -> None:
        """Remember it."""
        self.activation = activation


class Worker:
    """A process of the cluster; it loads the network once and then does one unit after another."""

    def prepare(self, payload: bytes, folder: str, threads: int, place: str, path: list[str]) -> dict[str, Any]:
        """Get ready, and return what this process's bits depend on; `fault` in it says why it cannot work."""
        host = socket.gethostname()
        with suppress(OSError):
            os.chdir(place)  # a model's import path and its files are meant from there
        sys.path[:] = [*path, *(p for p in sys.path if p not in path)]
        try:
            import ray
            import torch

            torch.set_num_threads(threads)
            if not Path(folder).is_dir():
                return {
                    "fault": f"a worker on {host} does not see {folder!r}; all machines have to share the run folder"
                }
            make, settings, environment = ray.cloudpickle.loads(payload)
            self._settings = settings()
            self._settings.__enter__()  # for as long as this process lives
            self._last, self._store = _Last(), Run.read(Path(folder))
            self._worker = make(self._last)
            return dict(environment())
        except Exception as error:  # noqa: BLE001 - somebody's network may raise anything; the driver says it
            return {"fault": f"a worker on {host} cannot be made ready ({_brief(error)})"}

    def do(self, unit: Any) -> Report:
        """Do one unit and land it in the run folder."""
        try:
            self._worker.work(unit, self._store)
            return Report(self._last.activation)
        except FeatmapError as error:
            return Report(fault=str(error), error=error.with_traceback(None))
        except Exception as error:  # noqa: BLE001 - counted as a failed try, and named in the end
            return Report(fault=_brief(error))


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"


@dataclass(eq=False)
class _Crew:
    """The workers of a run: those that wait, those at work on a unit, those that get ready (their unit is None)."""

    ray: Any
    start: Callable[[], tuple[Any, Any]]
    size: int
    idle: list[Any] = field(default_factory=list)
    busy: dict[Any, tuple[Any, Any]] = field(default_factory=dict)
    deaths_at_start: int = 0
    ready: int = 0
    waited: float = 0.0

    def staff(self, wanted: int) -> None:
        """Start workers until there are as many as are wanted and allowed."""
        while len(self.idle) + len(self.busy) < min(self.size, wanted):
            actor, answer = self.start()
            self.busy[answer] = (actor, None)

    def hand_out(self, queue: deque[Any]) -> None:
        """Give the next units to those who wait."""
        while queue and self.idle:
            actor, unit = self.idle.pop(), queue.popleft()
            self.busy[actor.do.remote(unit)] = (actor, unit)

    def answers(self) -> Iterator[tuple[Any, Any, Any]]:
        """Yield (worker, unit, what came of it): None where the worker died."""
        done, _ = self.ray.wait(list(self.busy), num_returns=1, timeout=POLL)
        working = done or any(unit is not None for _, unit in self.busy.values())
        self.waited = 0.0 if working else self.waited + POLL
        for answer in done:
            actor, unit = self.busy.pop(answer)
            try:
                yield actor, unit, self.ray.get(answer)
            except self.ray.exceptions.RayError:
                yield actor, unit, None

    def is_gone(self) -> bool:
        """Is nobody left, and will nobody come?"""
        return not self.size and not self.idle and not self.busy

    def dismiss(self, actor: Any) -> None:
        """End one worker, if it still lives."""
        self.ray.kill(actor)

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, *_: object) -> None:
        for actor in [*self.idle, *(actor for actor, _ in self.busy.values())]:
            self.dismiss(actor)


def run(
    task: Task,
    waves: Sequence[Sequence[Landing]],
    store: Run,
    watcher: Watcher,
    engine: Engine,
    threads: int,
    note: Callable[[dict[str, Any]], None],
) -> int:
    """Do the units of each wave, a wave after the one before it is complete; return how many landed.

    Parameters
    ----------
    threads : of each worker
    note : is told of each environment that a worker has

    Raises
    ------
    IncompleteError
        naming the units that were left out because their worker died, or failed, `TRIES` times.
    FeatmapError
        where there is no cluster, no room in it, or the workers cannot be made ready.
    """
    landed, count = 0, sum(map(len, waves))
    payload = _packed(task)
    with connected(engine, threads, count, task.gpu) as (ray, size):
        if size < (engine.workers or 0):
            watcher.note(f"{engine.workers} workers asked for; the cluster has room for {size}")
        fits = fitting(size, task.memory) if _is_here(ray, engine) and not task.gpu else size
        if fits < size:
            watcher.note(
                f"{size} workers' batches do not fit into this machine's memory at once; {fits} are started, of "
                f"{threads} threads each (--workers {fits} gives each a share of all cores)"
            )
            size = fits
        start = _starter(ray, payload, store, threads, task.gpu)
        with _Crew(ray, start, max(1, size)) as crew:
            for wave in waves:
                landed += _wave(crew, sorted(wave, key=task.cost, reverse=True), task, store, watcher, note, count)
    return landed


def _wave(
    crew: _Crew,
    units: Sequence[Landing],
    task: Task,
    store: Run,
    watcher: Watcher,
    note: Callable[[dict[str, Any]], None],
    count: int,
) -> int:
    queue, tries, left_out, landed = deque(units), Counter[str](), dict[str, str](), 0
    while queue or any(unit is not None for _, unit in crew.busy.values()):
        crew.staff(len(queue) + sum(unit is not None for _, unit in crew.busy.values()))
        crew.hand_out(queue)
        if crew.waited == LONG:
            watcher.note("still waiting for a first worker: is the cluster busy with other work?")
        for actor, unit, answer in crew.answers():
            if unit is None:
                _welcome(crew, actor, answer, note)
            elif (answer is not None and not answer.fault) or store.is_done(unit.name):
                landed += 1
                if unit.last:
                    watcher.step(answer.activation if answer is not None else 0.0, task.steps)
                watcher.landed()
                _release(crew, actor, alive=answer is not None)
            elif answer is not None and answer.error is not None:
                raise answer.error
            else:
                # after an exception a GPU may not be usable any more, not even by a process that goes on
                _release(crew, actor, alive=answer is not None and not task.gpu)
                tries[unit.name] += 1
                if tries[unit.name] < TRIES:
                    queue.appendleft(unit)
                else:
                    left_out[unit.name] = "its worker died" if answer is None else answer.fault
                    watcher.note(f"work unit {unit.name} is left out after {TRIES} tries ({left_out[unit.name]})")
        if crew.is_gone():
            left_out |= {unit.name: NOBODY for unit in queue}
            break
        if len(left_out) >= TRIES and not landed:
            break
    if left_out:
        raise IncompleteError(_told(left_out, count, bool(queue) and not crew.is_gone()))
    return landed


def _welcome(crew: _Crew, actor: Any, answer: dict[str, Any] | None, note: Callable[[dict[str, Any]], None]) -> None:
    """Take a new worker in; give up where they die before they can work."""
    if answer is None:
        crew.dismiss(actor)
        crew.deaths_at_start += 1
        if crew.deaths_at_start >= TRIES and crew.ready:  # those that live go on by themselves
            crew.size = len(crew.idle) + len(crew.busy)
        elif crew.deaths_at_start >= TRIES:
            raise FeatmapError(
                f"engine ray: {TRIES} workers died while they loaded the network; give fewer --workers if memory is "
                "short, or leave out --engine to see what happens"
            )
        return
    if "fault" in answer:
        raise FeatmapError(f"engine ray: {answer['fault']}")
    note(answer)
    crew.deaths_at_start, crew.ready = 0, crew.ready + 1
    crew.idle.append(actor)


def _release(crew: _Crew, actor: Any, alive: bool) -> None:
    """Let a worker wait for its next unit, or end it."""
    if alive:
        crew.idle.append(actor)
    else:
        crew.dismiss(actor)


def _told(left_out: dict[str, str], count: int, rest: bool) -> str:
    named = ", ".join(f"{name} ({why})" for name, why in list(left_out.items())[:NAMED])
    more = f" and {len(left_out) - NAMED} more" if len(left_out) > NAMED else ""
    tried = "" if NOBODY in left_out.values() else f" after {TRIES} tries each"
    which = "nothing could be made and the rest was not tried" if rest else "what is finished is kept"
    return (
        f"{len(left_out)} of {count} work units were left out{tried}: {named}{more}; {which}; "
        "the same command makes what is missing"
    )


def _is_here(ray: Any, engine: Engine) -> bool:
    """Return whether all workers share the memory of this machine."""
    if engine.address not in (None, "auto", "local"):
        return False
    living = [node for node in ray.nodes() if node["Alive"]]
    return len(living) == 1 and living[0]["NodeManagerAddress"] == ray.util.get_node_ip_address()


def fitting(workers: int, each: int) -> int:
    """Return how many of some workers fit into this machine's free memory with their batches: at least 1."""
    free = int(psutil.virtual_memory().available)
    return max(1, min(workers, free // (each + WORKER_BYTES)))


def _packed(task: Task) -> bytes:
    """Return what a worker needs, as bytes."""
    from ray import cloudpickle

    try:
        return bytes(cloudpickle.dumps((task.make, task.settings, task.environment)))
    except Exception as error:
        raise FeatmapError(
            f"engine ray: this network cannot be sent to workers ({_brief(error)}); give it as "
            "package.module:factory, or use engine here"
        ) from error


def _starter(ray: Any, payload: bytes, store: Run, threads: int, gpu: bool) -> Callable[[], tuple[Any, Any]]:
    """Return a function that starts one worker and returns it with the answer that is to come."""
    kept = ray.put(payload)
    kind = ray.remote(num_cpus=threads, num_gpus=1 if gpu else 0, max_restarts=0, max_task_retries=0)(Worker)
    folder, place = str(store.folder.resolve()), str(Path.cwd())

    def start() -> tuple[Any, Any]:
        actor = kind.remote()
        return actor, actor.prepare.remote(kept, folder, threads, place, [p or place for p in sys.path])

    return start


@contextmanager
def connected(engine: Engine, threads: int, units: int, gpu: bool = False) -> Iterator[tuple[Any, int]]:
    """Lend Ray, connected, with the number of workers that there is room for; disconnect if it was not before."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing here tells anybody of itself
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except (ImportError, RuntimeError, AttributeError) as error:
        raise FeatmapError(f"engine ray: Ray does not load ({_brief(error)}); pip install 'featmap[ray]'") from error
    ours = not ray.is_initialized()
    if ours:
        _begin(ray, engine, threads, units, gpu)
    try:
        yield ray, min(units, _room(ray, engine, threads, gpu))
    finally:
        if ours:
            ray.shutdown()


def _begin(ray: Any, engine: Engine, threads: int, units: int, gpu: bool) -> None:
    """Connect to the cluster at the engine's address, or start one on this machine."""
    _knock(engine.address)
    given: dict[str, Any] = {"address": engine.address}
    if engine.address is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        # workers that were asked for are started, also on fewer cores than they would like
        given |= {"num_cpus": max(cores, min(engine.workers or 1, units) * threads)}
        given |= {"include_dashboard": False, "object_store_memory": STORE_BYTES}
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **given)
    except Exception as error:  # of which Ray raises many kinds, some of them plain
        if engine.address is None:
            what = f"Ray did not start here ({_brief(error)}); try again when it is less busy, or --engine here"
        else:
            what = (
                f"no cluster at {engine.address!r} ({_brief(error)}); start one with `ray start --head`, or leave out "
                "--address"
            )
        raise FeatmapError(f"engine ray: {what}") from error


def _knock(address: str | None) -> None:
    """Refuse an address at which nobody answers: Ray itself would try for many minutes.

    Raises
    ------
    FeatmapError
        if it is no address, or there is nobody.
    """
    if address in (None, "auto", "local"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise FeatmapError(f"engine ray: --address {address!r}: give host:port, ray://host:port or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise FeatmapError(
            f"engine ray: no cluster at {address!r} ({_brief(error)}); start one with `ray start --head`, or leave "
            "out --address"
        ) from error


def _room(ray: Any, engine: Engine, threads: int, gpu: bool) -> int:
    """Return how many workers the cluster has room for, at most as many as are wanted."""
    total = ray.cluster_resources()
    room = int(total.get("CPU", 0) // threads)
    if gpu:
        room = min(room, int(total.get("GPU", 0)))
    if not room:
        what = f"a GPU and {threads} CPUs" if gpu else f"{threads} CPUs"
        raise FeatmapError(f"engine ray: no room in the cluster for a worker of {what}; give fewer --threads")
    return min(engine.workers or room, room)
