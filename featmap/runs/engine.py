"""Work units, where they are done, and doing them in this process: batches that land one by one, never twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from featmap.errors import FeatmapError
from featmap.runs import device as devices
from featmap.runs.progress import Silent, Watcher

HERE, RAY = "here", "ray"
MOST_WORKERS = 4096


@dataclass(frozen=True)
class Engine:
    """Where the work units of a run are done.

    The bits of an image depend on the number of threads and on nothing else of this: any worker makes the image that
    this process would make with as many threads.

    Parameters
    ----------
    name : str, default "here"
        "here": one unit after another in this process; "ray": by workers of a Ray cluster.
    workers : int, optional
        Processes that hold the network, each with a GPU of its own or a share of the cores. None: one for each GPU
        of the cluster; on CPUs as many as have their `threads`, which then are 1 where none are named.
    threads : int, optional
        Threads of each worker, or of this process. None: as many as torch takes here, shared out among the workers.
    address : str, optional
        Address of a running cluster, "auto" for the one that this machine belongs to. None starts one for this run.

    Raises
    ------
    FeatmapError
        If the name is unknown, a number is out of range, or Ray is wanted and not installed.
    """

    name: str = HERE
    workers: int | None = None
    threads: int | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        if self.name not in (HERE, RAY):
            raise FeatmapError(f"engine {self.name!r} is unknown; allowed: {HERE}, {RAY}")
        for what, number in (("workers", self.workers), ("threads", self.threads)):
            if number is not None and (not isinstance(number, int) or not 1 <= number <= MOST_WORKERS):
                raise FeatmapError(f"{what} {number}: give a whole number from 1 to {MOST_WORKERS}")
        if self.name == HERE and (self.workers is not None or self.address is not None):
            raise FeatmapError(
                "workers and an address of a cluster belong to the engine ray; here one process does it all"
            )
        if self.name == RAY and find_spec("ray") is None:
            raise FeatmapError(
                "engine ray: Ray is not installed; pip install 'featmap[ray]', or leave the engine at its default"
            )

    def threads_of_each(self, here: int) -> int:
        """Return the threads of one worker, or of this process.

        Parameters
        ----------
        here : int
            Threads that torch takes in this process.

        Returns
        -------
        int
            1 or more.
        """
        if self.threads is not None:
            return self.threads
        if self.name == HERE:
            return here
        return 1 if self.workers is None else max(1, here // self.workers)


class Execution:
    """How a call of the library is carried out: on which device, by which engine, into which folder.

    None of it changes a number but the kind of device and the number of threads, by which libraries round.

    Parameters
    ----------
    device : str, default "auto"
        "auto" (CUDA where there is one, else the CPU), "cpu", "cuda", "cuda:1" or "mps".
    engine : str or Engine, default "here"
        Where work units are done.
    out : path, optional
        Run folder; the same call with the same folder goes on where it stopped. None takes a name made of the
        settings, or memory where the call needs no folder.
    watcher : Watcher, optional
        Hears of the progress.
    """

    def __init__(
        self,
        device: str = "auto",
        engine: str | Engine = HERE,
        out: str | Path | None = None,
        watcher: Watcher | None = None,
    ) -> None:
        self.device = device
        self.engine = engine if isinstance(engine, Engine) else Engine(engine)
        self.out = None if out is None else Path(out)
        self.watcher: Watcher = watcher or Silent()

    def watched_by(self, watcher: Watcher) -> Execution:
        """Return the same execution with another watcher.

        Parameters
        ----------
        watcher : Watcher
            Hears of the progress.

        Returns
        -------
        Execution
            A copy.
        """
        return Execution(self.device, self.engine, self.out, watcher)

    def torch_device(self) -> torch.device:
        """Return the device by torch's name.

        Returns
        -------
        torch.device
            A device of this machine.

        Raises
        ------
        FeatmapError
            If the machine has none of that name.
        """
        return devices.device(self.device)


@dataclass(frozen=True)
class WorkUnit:
    """A batch of rows of one seed; an empty one makes the null image of the seed.

    Parameters
    ----------
    seed : int
        Seed of the noise.
    first, last : int, default 0
        Images of the batch, `last` exclusive.
    """

    seed: int
    first: int = 0
    last: int = 0

    @property
    def name(self) -> str:
        """Name of the unit's record in the run folder."""
        return f"s{self.seed}-{self.first:06d}-{self.last:06d}" if self.last else f"s{self.seed}-null"


class Landing(Protocol):
    """What an engine knows of a work unit."""

    @property
    def name(self) -> str:
        """Name of the unit's record in the run folder."""

    @property
    def last(self) -> int:
        """End of the unit's rows; 0 where it makes no images."""


U = TypeVar("U", bound=Landing)


class UnitStore(Protocol):
    """What an engine knows of a run folder."""

    def is_done(self, unit: str) -> bool:
        """Check whether a unit has landed and is intact."""

    def land(self, unit: str, parts: Any) -> None:
        """Store what a unit made."""


class Worker(Protocol):
    """Does work units: a network that is loaded and prepared once."""

    def work(self, unit: Any, store: Any) -> None:
        """Do one unit and land it in the run folder."""


@dataclass(frozen=True)
class Task:
    """What any process has to know to do work units of a run; it can be sent to other processes.

    Parameters
    ----------
    make : callable
        Makes the worker, which reports its steps to a watcher.
    settings : callable
        Makes the context that holds while it works.
    environment : callable
        Returns what the bits depend on besides the settings, as plain JSON values.
    steps : int
        What a unit that makes images counts for in the progress.
    cost : callable
        Returns how much work a unit is, in any measure; the largest are handed out first.
    gpu : bool, default False
        Whether a worker needs a GPU of its own.
    memory : int, default 0
        Bytes that a worker's batch takes, besides the network.
    """

    make: Callable[[Watcher], Worker]
    settings: Callable[[], AbstractContextManager[None]]
    environment: Callable[[], dict[str, Any]]
    steps: int
    cost: Callable[[Any], float]
    gpu: bool = False
    memory: int = 0


class BackgroundLanding:
    """A run folder whose units land in a thread while the next unit is made.

    Every other access waits until what was handed over has landed.

    Parameters
    ----------
    store : UnitStore
        Run folder.
    thread : ThreadPoolExecutor
        Executor of one thread: units land in the order in which they were made.
    """

    def __init__(self, store: UnitStore, thread: ThreadPoolExecutor) -> None:
        self._store, self._thread = store, thread
        self._landing: Future[None] | None = None

    def land(self, name: str, parts: Any) -> None:
        """Land a unit as soon as the one before it has landed.

        Parameters
        ----------
        name : str
            Name of the unit.
        parts : dict
            Regions of the arrays and their values, see `featmap.runs.store.Run.land`.

        Raises
        ------
        StoreError
            If the unit before could not be written.
        """
        self.wait()
        self._landing = self._thread.submit(self._store.land, name, parts)

    def wait(self) -> None:
        """Wait until everything has landed."""
        landing, self._landing = self._landing, None
        if landing is not None:
            landing.result()

    def __getattr__(self, name: str) -> Any:
        self.wait()  # a reader of the folder must see everything that was handed over
        return getattr(self._store, name)


@contextmanager
def landing(store: UnitStore, background: bool) -> Iterator[Any]:
    """Lend a run folder to a worker.

    Parameters
    ----------
    store : UnitStore
        Run folder.
    background : bool
        Land units in a thread while the device makes the next one.

    Yields
    ------
    UnitStore
        When the context is left, also by Ctrl-C, everything has landed.
    """
    if not background:
        yield store
        return
    with ThreadPoolExecutor(1) as thread:
        delayed = BackgroundLanding(store, thread)
        yield delayed
        delayed.wait()


def plan(count: int, rows: int, seeds: Iterable[int]) -> list[WorkUnit]:
    """Return the work units of a run.

    Parameters
    ----------
    count : int
        Images of each seed.
    rows : int
        Images of a batch.
    seeds : iterable of int
        Seeds of the noise.

    Returns
    -------
    list of WorkUnit
        The null images first, then the batches of each seed.
    """
    seeds = list(seeds)
    batches = [WorkUnit(seed, first, min(first + rows, count)) for seed in seeds for first in range(0, count, rows)]
    return [WorkUnit(seed) for seed in seeds] + batches


def run_here(units: Iterable[U], store: UnitStore, work: Callable[[U], None], steps: int, watcher: Watcher) -> int:
    """Do the units that have not landed yet, one after another.

    Parameters
    ----------
    units : iterable of Landing
        All units of the run, in order.
    store : UnitStore
        Run folder, which knows what has landed.
    work : callable
        Does one unit and lands it.
    steps : int
        What a batch counts for in the progress; a null image counts for nothing.
    watcher : Watcher
        Hears of the progress.

    Returns
    -------
    int
        Units that were done now.
    """
    open_units = remaining(list(units), store, steps, watcher)
    for unit in open_units:
        # a unit counts only once its record is on disk: Ctrl-C at any moment before that repeats just this unit
        work(unit)
        watcher.landed()
    return len(open_units)


def remaining(units: Sequence[U], store: UnitStore, steps: int, watcher: Watcher) -> list[U]:
    """Return the units that have not landed yet, and report how many steps are stored already.

    Parameters
    ----------
    units : sequence of Landing
        All units of the run.
    store : UnitStore
        Run folder.
    steps : int
        What a batch counts for in the progress.
    watcher : Watcher
        Hears where the run begins.

    Returns
    -------
    list of Landing
        In the same order.
    """
    # being done means that every byte is still there, so that a damaged unit is made again
    open_units = [u for u in units if not store.is_done(u.name)]
    total = steps * sum(1 for u in units if u.last)
    watcher.begin(total, total - steps * sum(1 for u in open_units if u.last))
    return open_units
