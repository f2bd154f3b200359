"""Work units, where they are run, and running them here: idempotent batches that land one by one, never twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol, TypeVar

from featmap.errors import FeatmapError
from featmap.runs.store import Run

HERE, RAY = "here", "ray"


@dataclass(frozen=True)
class Engine:
    """Where a run's work units are done.

    Bits depend on the number of threads and on nothing else of this: an image made by any worker is that of the
    plain loop at as many threads.

    Parameters
    ----------
    name : "here", one unit after another in this process; "ray", by workers of a Ray cluster
    workers : processes that hold the network, each with a GPU of its own or a share of the cores. None: one for
        each GPU of the cluster; on CPUs as many as have their `threads`, which then are 1 where nothing is said
    threads : of one worker, or of this process. None: as many as torch takes here, shared out among the workers
    address : of a running cluster, "auto" for the one that this machine belongs to; None starts one for this run

    Raises
    ------
    FeatmapError
        for an unknown name or numbers out of range, and where Ray is wanted and not installed.
    """

    name: str = HERE
    workers: int | None = None
    threads: int | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        if self.name not in (HERE, RAY):
            raise FeatmapError(f"engine {self.name!r} is unknown; allowed: {HERE}, {RAY}")
        for what, number in (("workers", self.workers), ("threads", self.threads)):
            if number is not None and (not isinstance(number, int) or not 1 <= number <= 4096):
                raise FeatmapError(f"{what} {number}: give a whole number from 1 to 4096")
        if self.name == HERE and (self.workers is not None or self.address is not None):
            raise FeatmapError("--workers and --address go with --engine ray; here one process does it all")
        if self.name == RAY and find_spec("ray") is None:
            raise FeatmapError("engine ray: Ray is not installed; pip install 'featmap[ray]', or leave out --engine")

    @staticmethod
    def of(given: str | Engine) -> Engine:
        """Return the engine that a caller named or made."""
        return given if isinstance(given, Engine) else Engine(given)

    def threads_of_each(self, here: int) -> int:
        """Return the threads of one worker (or of this process), where torch takes `here` of them in this process."""
        if self.threads is not None:
            return self.threads
        if self.name == HERE:
            return here
        return 1 if self.workers is None else max(1, here // self.workers)


@dataclass(frozen=True)
class WorkUnit:
    """A batch of rows of one seed: the images from `first` to `last` (exclusive). An empty one is the null image."""

    seed: int
    first: int = 0
    last: int = 0

    @property
    def name(self) -> str:
        """The name of its record in the run folder."""
        return f"s{self.seed}-{self.first:06d}-{self.last:06d}" if self.last else f"s{self.seed}-null"


class Landing(Protocol):
    """What the engine knows of a work unit: the name of its record, and whether it makes images (`last` above 0)."""

    @property
    def name(self) -> str:
        """The name of its record in the run folder."""

    @property
    def last(self) -> int:
        """The end of its rows; 0 where it makes none."""


_U = TypeVar("_U", bound=Landing)


class Hand(Protocol):
    """What does work units: a network that is loaded and prepared once."""

    def work(self, unit: Any, store: Run) -> None:
        """Do one unit and land it in the run folder."""


@dataclass(frozen=True)
class Task:
    """What any process has to know to do units of a run; it can be sent to another.

    Parameters
    ----------
    make : makes the worker, which tells the watcher of its steps
    settings : what holds while it works
    environment : what its bits depend on besides the settings, as plain JSON values
    steps : what a unit that makes images counts for in the progress
    cost : how much work a unit is, in any measure; the largest are handed out first
    gpu : does a worker need a GPU of its own?
    memory : bytes that a worker's batch takes, besides the network
    """

    make: Callable[[Watcher], Hand]
    settings: Callable[[], AbstractContextManager[None]]
    environment: Callable[[], dict[str, Any]]
    steps: int
    cost: Callable[[Any], float]
    gpu: bool = False
    memory: int = 0


class Behind:
    """A run folder whose units land while the next one is made. Whoever asks it for anything else waits for that."""

    def __init__(self, store: Run, thread: ThreadPoolExecutor) -> None:
        self._store, self._thread = store, thread
        self._landing: Future[None] | None = None

    def land(self, name: str, parts: Any) -> None:
        """Land a unit as soon as the one before it has landed; what went wrong with that one is raised here."""
        self.wait()
        self._landing = self._thread.submit(self._store.land, name, parts)

    def wait(self) -> None:
        """Wait until everything has landed."""
        landing, self._landing = self._landing, None
        if landing is not None:
            landing.result()

    def __getattr__(self, name: str) -> Any:
        self.wait()
        return getattr(self._store, name)


@contextmanager
def landing(store: Run, behind: bool) -> Iterator[Any]:
    """Lend the run folder; with `behind`, one whose units land in a thread while the device makes the next.

    Everything has landed when the context is left, by Ctrl-C too.
    """
    if not behind:
        yield store
        return
    with ThreadPoolExecutor(1) as thread:
        kept = Behind(store, thread)
        yield kept
        kept.wait()


class Watcher(Protocol):
    """What is told of the work's progress."""

    def begin(self, total: int, done: int) -> None:
        """`done` of `total` steps lie in the store already."""

    def step(self, activation: float, count: int = 1) -> None:
        """One more step was made, or `count`; `activation` is the batch's mean."""

    def landed(self) -> None:
        """One more work unit is safe."""

    def stage(self, name: str, done: int, total: int) -> None:
        """`done` of `total` parts of a later stage are made."""

    def note(self, text: str) -> None:
        """Something that the user should know."""


class Silent:
    """Watches nothing."""

    def begin(self, total: int, done: int) -> None:
        """Take no notice."""

    def step(self, activation: float, count: int = 1) -> None:
        """Take no notice."""

    def landed(self) -> None:
        """Take no notice."""

    def stage(self, name: str, done: int, total: int) -> None:
        """Take no notice."""

    def note(self, text: str) -> None:
        """Take no notice."""


def plan(count: int, rows: int, seeds: Iterable[int]) -> list[WorkUnit]:
    """Return the work units of `count` images a seed, in batches of `rows`; the null images come first."""
    seeds = list(seeds)
    batches = [WorkUnit(seed, first, min(first + rows, count)) for seed in seeds for first in range(0, count, rows)]
    return [WorkUnit(seed) for seed in seeds] + batches


def run_here(units: Iterable[_U], store: Run, work: Callable[[_U], None], steps: int, watcher: Watcher) -> int:
    """Do the units that have not landed yet, one after another; return how many were done now.

    `steps` is what one batch counts for in the progress; a null image counts for none.
    """
    units = list(units)
    open_units = begin(units, store, steps, watcher)
    for unit in open_units:
        work(unit)
        watcher.landed()
    return len(open_units)


def begin(units: Sequence[_U], store: Run, steps: int, watcher: Watcher) -> list[_U]:
    """Return the units that have not landed yet, and tell the watcher how many steps lie in the store already."""
    open_units = [u for u in units if not store.is_done(u.name)]
    total = steps * sum(1 for u in units if u.last)
    watcher.begin(total, total - steps * sum(1 for u in open_units if u.last))
    return open_units
