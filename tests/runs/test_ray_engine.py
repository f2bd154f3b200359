"""Runs on Ray have the bits of the plain loop, also where workers die."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
import xarray as xr

from featmap.errors import FeatmapError, IncompleteError, StoreError
from featmap.interaction import groups
from featmap.interaction.worker import JointWorker
from featmap.mapping import run as mapping
from featmap.network.loading import load
from featmap.network.model import Network
from featmap.runs import lifecycle, maximise
from featmap.runs.engine import Engine
from featmap.runs.folder_layout import ARRAYS
from featmap.runs.job import Job
from featmap.runs.manifest import UNITS
from featmap.runs.progress import Silent
from featmap.runs.worker import Worker
from tests.helpers import settings, tiny
from tests.helpers.faulty_workers import faulty_worker
from tests.helpers.settings import options

pytest.importorskip("ray", reason="Ray is not installed (pip install 'featmap[ray]')")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]

SIZE, STEPS = 16, 6
TWO, ONE = Engine("ray", workers=2, threads=1), Engine("ray", workers=1, threads=1)
HERE = Engine(threads=1)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One cluster for all tests: starting it takes longer than they do."""
    from featmap.runs import ray_engine

    with ray_engine.connect(Engine("ray", workers=3, threads=1), 1, 3):
        yield


@pytest.fixture(scope="module")
def network() -> Network:
    return load("tests.helpers.tiny:wide")


def job_of(network: Network, rows: int = 2, steps: int = STEPS) -> Job:
    recipe = settings.resolve(network, torch.device("cpu"), "pixels", SIZE, steps, rows=rows)
    return mapping.similarity_job(["second", "first"], network, recipe)


def computed_here(job: Any, folder: Path) -> Path:
    lifecycle.carry_out(job, lifecycle.open_run(job, folder), Worker, Silent(), HERE)
    return folder


def assert_same(one: Path, two: Path) -> None:
    a, b = (xr.open_zarr(folder / ARRAYS) for folder in (one, two))
    assert set(a.variables) == set(b.variables)
    for name in a.variables:
        assert a[name].values.tobytes() == b[name].values.tobytes(), name
    assert {p.name for p in (one / UNITS).iterdir()} == {p.name for p in (two / UNITS).iterdir()}


class Killer(Silent):
    """Kills a worker from outside once some units have landed."""

    def __init__(self, after: int) -> None:
        self.after, self.killed, self.landings = after, 0, 0

    def landed(self) -> None:
        self.landings += 1
        if self.landings == self.after:
            workers = [
                p for p in psutil.Process().children(recursive=True) if "ray::Worker" in " ".join(p.cmdline()[:1])
            ]
            os.kill(workers[0].pid, signal.SIGKILL)
            self.killed = len(workers)


def test_a_killed_worker_changes_no_bit(network: Network, tmp_path: Path) -> None:
    job, killer = job_of(network, steps=20), Killer(after=3)
    run = lifecycle.open_run(job, tmp_path / "ray")
    assert lifecycle.carry_out(job, run, Worker, killer, TWO) == len(job.work_units()) == killer.landings == 16
    assert killer.killed >= 1, "of the two workers one may still be starting"
    assert_same(tmp_path / "ray", computed_here(job, tmp_path / "here"))
    assert run.manifest.environment["threads"] == 1
    assert run.manifest.engines == [{"engine": "ray", "workers": 2, "threads": 1}]
    assert run.manifest.later_environments == []


def test_units_that_always_fail_are_tried_three_times_and_named(network: Network, tmp_path: Path) -> None:
    job, log = job_of(network, rows=6), tmp_path / "log"
    names = [u.name for u in job.work_units()]
    deadly, failing = names[2], names[4]
    run = lifecycle.open_run(job, tmp_path / "ray")
    with pytest.raises(IncompleteError) as caught:
        lifecycle.carry_out(job, run, faulty_worker(log, (deadly,), (failing,)), Silent(), ONE)
    printed = str(caught.value)
    assert printed.startswith("2 of 6 work units were left out after 3 tries each: ")
    assert f"{deadly} (its worker died)" in printed
    assert f"{failing} (ArithmeticError: cannot be done)" in printed
    tried = Counter(log.read_text().split())
    assert tried == {name: 3 if name in (deadly, failing) else 1 for name in names}
    assert {p.stem for p in (run.folder / UNITS).iterdir()} == {*names} - {deadly, failing}
    assert lifecycle.carry_out(job, lifecycle.open_run(job, run.folder), Worker, Silent(), HERE) == 2
    assert_same(run.folder, computed_here(job, tmp_path / "here"))


def test_largest_units_come_first_and_an_error_of_ours_ends_the_run(network: Network, tmp_path: Path) -> None:
    job, log = job_of(network, rows=6), tmp_path / "log"
    run = lifecycle.open_run(job, tmp_path / "ray")
    assert lifecycle.carry_out(job, run, faulty_worker(log), Silent(), ONE) == 6
    null, *deep, flat = (u.name for u in job.work_units())
    assert len(deep) == 4
    assert log.read_text().split() == [*deep, flat, null]
    assert_same(run.folder, computed_here(job, tmp_path / "here"))
    assert lifecycle.carry_out(job, run, faulty_worker(log), Silent(), ONE) == 0

    (run.folder / UNITS / f"{flat}.json").unlink()
    full = StoreError("no space left")
    with pytest.raises(StoreError, match="no space left"):
        lifecycle.carry_out(job, run, faulty_worker(log, (), (flat,), full), Silent(), ONE)
    assert Counter(log.read_text().split())[flat] == 2


def test_pairs_on_two_workers_have_the_bits_of_the_plain_loop(tmp_path: Path) -> None:
    network = load(tiny.small())  # an object: it is sent to the workers
    recipe = settings.resolve_linear(network, None, SIZE, 4, rows=2)
    job = groups.group_job(["second:0", "second:3"], network, recipe, groups.JointSettings(seeds=1))
    for name, engine in (("ray", TWO), ("here", HERE)):
        lifecycle.carry_out(job, lifecycle.open_run(job, tmp_path / name), JointWorker, None, engine)
    assert_same(tmp_path / "ray", tmp_path / "here")


def test_a_network_that_cannot_be_sent_is_refused(tmp_path: Path) -> None:
    module = tiny.small()
    module.lock = threading.Lock()  # type: ignore[assignment]
    job = job_of(load("tests.helpers.tiny:wide"))
    job = Job(network=load(module), objectives=job.objectives, recipe=job.recipe)
    with pytest.raises(FeatmapError, match=r"cannot be sent to workers.*package\.module:factory"):
        lifecycle.carry_out(job, lifecycle.open_run(job, tmp_path / "run"), Worker, Silent(), TWO)


def test_a_run_folder_is_needed(network: Network) -> None:
    with pytest.raises(FeatmapError, match="workers write into a run folder; choose one"):
        maximise.maximise("second:0", network, **options(engine="ray"))


class NoteWatcher(Silent):
    """Stores notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_workers_that_do_not_fit_into_memory_are_not_started(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featmap.runs import ray_engine

    room = SimpleNamespace(available=int(1.5 * ray_engine.WORKER_BYTES))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: room)
    assert [ray_engine.fit_in_memory(4, each) for each in (0, 10**9)] == [1, 1]
    job, watcher = job_of(network), NoteWatcher()
    lifecycle.carry_out(job, lifecycle.open_run(job, tmp_path / "ray"), Worker, watcher, TWO)
    assert [n for n in watcher.notes if n.startswith("2 workers' batches do not fit") and "; 1 are started" in n]
    nodes = [{"Alive": alive, "NodeManagerAddress": where} for alive, where in ((True, "a"), (False, "b"), (True, "c"))]
    for count, address, here in ((1, None, True), (2, "auto", True), (3, None, False), (1, "ray://a:1", False)):
        seen = SimpleNamespace(nodes=lambda n=count: nodes[:n], util=SimpleNamespace(get_node_ip_address=lambda: "a"))
        assert ray_engine._is_local(seen, Engine("ray", address=address)) is here, (count, address)
    nodes[0]["NodeManagerAddress"] = "another"
    assert not ray_engine._is_local(
        SimpleNamespace(nodes=lambda: nodes[:1], util=seen.util), Engine("ray", address="auto")
    )
    room.available = 10**12
    assert ray_engine.fit_in_memory(4, 10**9) == 4
    assert_same(tmp_path / "ray", computed_here(job, tmp_path / "here"))
