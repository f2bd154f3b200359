"""Engines and work units: where the batches of a run are computed, and computing them in this process.

A unit *lands* when its results are stored in the run folder; a unit that has landed is never computed again.
"""

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
from featmap.runs.device import select_device
from featmap.runs.progress import Silent, Watcher

HERE, RAY = "here", "ray"
MAX_WORKERS = 4096


@dataclass(frozen=True)
class Engine:
    """Where the work units of a run are computed.

    The bits of an image depend on the number of threads and on nothing else here: any worker computes the image that
    this process would compute with as many threads.

    Parameters
    ----------
    name : str, default "here"
        "here": one unit after another in this process; "ray": by workers of a Ray cluster.
    workers : int, optional
        Processes that hold the network, 1 to 4096, each with a GPU of its own or a share of the cores. None: one for
        each GPU of the cluster; on CPUs as many as there is room for with `threads` each.
    threads : int, optional
        Threads of each worker, or of this process, 1 to 4096. None: as many as torch uses here, divided among the
        workers; with Ray, 1 if `workers` is None too.
    address : str, optional
        Address of a running cluster; "auto" for the one that this machine belongs to. None starts one for this run.

    Raises
    ------
    FeatmapError
        If the name is unknown, a number is out of range, or Ray is requested but not installed.
    """

    name: str = HERE
    workers: int | None = None
    threads: int | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        if self.name not in (HERE, RAY):
            raise FeatmapError(f"engine {self.name!r} is unknown; allowed: {HERE}, {RAY}")
        for setting, number in (("workers", self.workers), ("threads", self.threads)):
            if number is not None and (not isinstance(number, int) or not 1 <= number <= MAX_WORKERS):
                raise FeatmapError(f"{setting} {number}: give a whole number from 1 to {MAX_WORKERS}")
        if self.name == HERE and (self.workers is not None or self.address is not None):
            raise FeatmapError(
                f"workers {self.workers}, address {self.address!r}: the engine {HERE!r} is this one process; "
                "choose the engine 'ray', or leave both out"
            )
        # looked up, not imported: importing Ray takes a second, and checking an engine should cost nothing
        if self.name == RAY and find_spec("ray") is None:
            raise FeatmapError(
                f"engine ray: Ray is not installed; pip install 'featmap[ray]', or choose the engine {HERE!r}"
            )

    def threads_per_worker(self, available: int) -> int:
        """Return the number of threads of one worker, or of this process.

        Parameters
        ----------
        available : int
            Threads that torch uses in this process.

        Returns
        -------
        int
            1 or more.
        """
        if self.threads is not None:
            return self.threads
        # never derived from the machine of a worker: the number of threads decides the last bits of the results
        if self.name == HERE:
            return available
        return 1 if self.workers is None else max(1, available // self.workers)


class Execution:
    """Device, engine, run folder and progress of a call of the library.

    Only the kind of device and the number of threads affect the results, in their last bits.

    Parameters
    ----------
    device : str, default "auto"
        "auto" (CUDA where there is one, else the CPU), "cpu", "cuda", "cuda:1" or "mps".
    engine : str or Engine, default "here"
        Where work units are computed.
    out : path, optional
        Run folder; the same call with the same folder resumes where it stopped. None takes a name derived from the
        settings, or memory where the call needs no folder.
    watcher : Watcher, optional
        Receives the progress.
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

    def with_watcher(self, watcher: Watcher) -> Execution:
        """Return a copy with another watcher.

        Parameters
        ----------
        watcher : Watcher
            Receives the progress.

        Returns
        -------
        Execution
            Everything else stays.
        """
        return Execution(self.device, self.engine, self.out, watcher)

    def torch_device(self) -> torch.device:
        """Return the device as torch names it.

        Returns
        -------
        torch.device
            A device of this machine.

        Raises
        ------
        FeatmapError
            If the machine has none of that name.
        """
        return select_device(self.device)


@dataclass(frozen=True)
class WorkUnit:
    """A batch of images of one seed; an empty one is the null image of the seed.

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
        # part of the folder's format: a run of an earlier version is resumed by these names
        return f"s{self.seed}-{self.first:06d}-{self.last:06d}" if self.last else f"s{self.seed}-null"


class AnyUnit(Protocol):
    """Interface of a work unit of any job."""

    @property
    def name(self) -> str:
        """Name of the unit's record in the run folder."""

    @property
    def last(self) -> int:
        """End of the unit's images; 0 where it has none."""


U = TypeVar("U", bound=AnyUnit)


class UnitStore(Protocol):
    """Interface of a run folder, as engines use it."""

    def is_done(self, unit: str) -> bool:
        """Check whether a unit has landed and is intact.

        Parameters
        ----------
        unit : str
            Name of the unit.

        Returns
        -------
        bool
            False where it has to be computed.
        """

    def land(self, unit: str, results: Any) -> None:
        """Store the results of a unit.

        Parameters
        ----------
        unit : str
            Name of the unit.
        results : dict
            Regions of the arrays and their values.
        """


class Worker(Protocol):
    """Interface of workers: a network that is prepared once and computes units."""

    def work(self, unit: Any, store: Any) -> None:
        """Compute one unit and land it in the run folder.

        Parameters
        ----------
        unit : AnyUnit
            A unit of the job.
        store : UnitStore
            Run folder.
        """


@dataclass(frozen=True)
class Task:
    """Everything that a process needs to compute work units; it can be pickled.

    Parameters
    ----------
    make : callable
        Creates the worker, which reports its steps to the watcher that it is called with.
    settings : callable
        Returns the context in which the worker computes.
    environment : callable
        Returns everything that the bits depend on besides the settings, as plain JSON values.
    steps : int
        Steps of progress that a unit with images counts for.
    cost : callable
        Returns the amount of work of a unit, in any measure; the largest are handed out first.
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


class BackgroundStore:
    """A run folder whose units land in a thread while the next unit is computed.

    Every other access waits until everything submitted has landed.

    Parameters
    ----------
    store : UnitStore
        Run folder.
    thread : ThreadPoolExecutor
        Executor of one thread: units land in the order in which they were computed.
    """

    def __init__(self, store: UnitStore, thread: ThreadPoolExecutor) -> None:
        self._store, self._thread = store, thread
        self._pending: Future[None] | None = None

    def land(self, unit: str, results: Any) -> None:
        """Land a unit as soon as the one before it has landed.

        Parameters
        ----------
        unit : str
            Name of the unit.
        results : dict
            Regions of the arrays and their values, see `featmap.runs.store.Run.land`.

        Raises
        ------
        StoreError
            If the unit before could not be written.
        """
        # one unit at a time: memory holds two units at most, and an error of a write surfaces with the next unit
        self.wait()
        self._pending = self._thread.submit(self._store.land, unit, results)

    def wait(self) -> None:
        """Wait until everything has landed.

        Raises
        ------
        StoreError
            If the last unit could not be written.
        """
        pending, self._pending = self._pending, None  # cleared first, so that an error is raised once
        if pending is not None:
            pending.result()

    def __getattr__(self, name: str) -> Any:
        self.wait()  # a reader of the folder must see everything that was submitted
        return getattr(self._store, name)


@contextmanager
def background_store(store: UnitStore, background: bool) -> Iterator[Any]:
    """Open a run folder for a worker, with landing in the background if requested.

    Parameters
    ----------
    store : UnitStore
        Run folder.
    background : bool
        Land units in a thread while the device computes the next one.

    Yields
    ------
    UnitStore
        When the context is left, also by Ctrl-C, everything has landed.
    """
    if not background:
        yield store
        return
    # one thread: units land in the order in which they are computed, as they do without it
    with ThreadPoolExecutor(1) as thread:
        delayed = BackgroundStore(store, thread)
        yield delayed
        # after an exception the executor itself waits; here the wait raises the error of the last write
        delayed.wait()


def plan_units(count: int, rows: int, seeds: Iterable[int]) -> list[WorkUnit]:
    """Divide the images of a run into work units.

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
    # a batch never mixes seeds: all its rows start from the same noise and share one null image
    seeds = list(seeds)
    batches = [WorkUnit(seed, first, min(first + rows, count)) for seed in seeds for first in range(0, count, rows)]
    # null images first: they take one forward pass each, so a fault of network or disk shows at once
    return [WorkUnit(seed) for seed in seeds] + batches


def run_here(units: Iterable[U], store: UnitStore, work: Callable[[U], None], steps: int, watcher: Watcher) -> int:
    """Compute the units that have not landed yet in this process, one after another.

    Parameters
    ----------
    units : iterable of AnyUnit
        All units of the run, in order.
    store : UnitStore
        Run folder, which knows the units that have landed.
    work : callable
        Computes one unit and lands it.
    steps : int
        Steps of progress that a unit with images counts for; a null image counts for none.
    watcher : Watcher
        Receives the progress.

    Returns
    -------
    int
        Number of units computed by this call.
    """
    open_units = find_remaining(list(units), store, steps, watcher)
    for unit in open_units:
        # a unit counts only once its record is on disk: Ctrl-C at any moment before that repeats just this unit
        work(unit)
        watcher.landed()
    return len(open_units)


def find_remaining(units: Sequence[U], store: UnitStore, steps: int, watcher: Watcher) -> list[U]:
    """Find the units that have not landed yet, and report the steps already stored.

    Parameters
    ----------
    units : sequence of AnyUnit
        All units of the run.
    store : UnitStore
        Run folder.
    steps : int
        Steps of progress that a unit with images counts for.
    watcher : Watcher
        Receives the total and the number of steps stored.

    Returns
    -------
    list of AnyUnit
        In the same order.
    """
    # a unit is done only if every byte of it is still there: a damaged one is computed again
    open_units = [u for u in units if not store.is_done(u.name)]
    # null images count for no steps: their `last` is 0
    total = steps * sum(1 for u in units if u.last)
    watcher.begin(total, total - steps * sum(1 for u in open_units if u.last))
    return open_units
