"""Settings of the test run that must be made before torch is loaded, and what several files share."""

from __future__ import annotations

import gc
import os
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # other work beside the tests would slow them down severalfold
# each core has a process of the tests, whose threads would wait for each other; tests of threads set their number
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that have slow tests, then those with most tests.

    Files are shared out to processes in this order: one that takes a minute must not be the last, with the other
    processes idle.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    counts = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path not in slow, -counts[item.path], item.path))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Search for garbage less often, and not among what thousands of collected tests keep: figures leave a lot of it.

    By Python's own thresholds, a test that draws spends a quarter of its time on this.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def pytest_sessionfinish(session: pytest.Session) -> None:
    gc.unfreeze()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Run tiny networks on one thread: on busy cores two wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[1], ids=["1 thread"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Run on one thread where a test does not ask for two (by indirect parameters)."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cheap_runs() -> Iterator[None]:
    """Cluster with few draws (19 still reject at 5 %) and draw small figures, for tests of something else."""
    from tests.helpers import run_kinds

    with pytest.MonkeyPatch.context() as patched:
        run_kinds.make_runs_cheap(patched, runs=10, draws=19)
        yield


@pytest.fixture(scope="module")
def few_draws() -> Iterator[None]:
    """Cluster with few draws, but draw figures as they are."""
    from tests.helpers import run_kinds

    with pytest.MonkeyPatch.context() as patched:
        run_kinds.cluster_with_few_draws(patched, runs=10, draws=19)
        yield


@pytest.fixture(autouse=True)
def _estimates_are_rough() -> None:
    """Let commands measure the machine's pace and their steps briefly, not for half a second each."""
    if (estimate := sys.modules.get("featmap.runs.estimate")) is not None:
        estimate.PACE_SECONDS = estimate.MEASURED_SECONDS = 0.0  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def _no_figure_stays_open() -> Iterator[None]:
    """Close what a test drew and did not save: pyplot warns once too many figures are open in a process."""
    yield
    if (pyplot := sys.modules.get("matplotlib.pyplot")) is not None:
        pyplot.close("all")
