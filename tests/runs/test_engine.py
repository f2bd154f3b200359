"""Engines: their settings, and that nothing about them changes a bit: order, batches, processes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import featmap
from featmap.cli import app as cli
from featmap.cli import entry
from featmap.errors import FeatmapError, IncompleteError
from featmap.mapping import run as mapping
from featmap.network.loading import load
from featmap.runs import engine as engines
from featmap.runs import lifecycle, maximise, store
from featmap.runs.device import use_threads
from featmap.runs.engine import Engine, WorkUnit, run_here
from featmap.runs.job import Job
from featmap.runs.progress import Silent
from featmap.runs.worker import Worker
from tests.helpers import tiny
from tests.helpers.faulty_workers import faulty_worker
from tests.helpers.settings import options, resolve

FAST: dict[str, Any] = {"size": 16, "steps": 6, "rows": 4}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "dask"}, "engine 'dask' is unknown; allowed: here, ray"),
        ({"workers": 2}, "workers 2, address None: the engine 'here' is this one process; choose the engine 'ray'"),
        ({"address": "auto"}, "workers None, address 'auto': .* choose the engine 'ray', or leave both out"),
        ({"threads": 0}, "threads 0: give a whole number"),
        ({"name": "ray", "workers": -1}, "workers -1: give a whole number"),
        ({"threads": 1.5}, "threads 1.5: give a whole number"),
    ],
)
def test_contradicting_engine_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(FeatmapError, match=words):
        Engine(**settings)


def test_a_missing_ray_is_one_line_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(FeatmapError, match=r"pip install 'featmap\[ray\]'"):
        featmap.similarity("second", tiny.small(), **options(engine="ray"))
    for command in (["similarity", "--layer", "x"], ["optimize", "x:1"], ["interact", "x:1", "x:2"]):
        with pytest.raises(SystemExit) as end:
            cli.main([*command, "--engine", "ray"])
        assert end.value.code == 2
        assert capsys.readouterr().err.splitlines() == [
            "featmap: --engine ray: Ray is not installed; pip install 'featmap[ray]', or choose the engine 'here'"
        ]


@pytest.mark.parametrize(
    ("engine", "available", "threads"),
    [
        (("here", None, None), 8, 8),
        (("here", None, 3), 8, 3),
        (("ray", 3, None), 8, 2),
        (("ray", 9, None), 8, 1),
        (("ray", None, None), 8, 1),
        (("ray", 4, 5), 8, 5),
    ],
)
def test_threads_per_worker_worker(
    engine: tuple[str, int | None, int | None], available: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda name: name)
    assert Engine(*engine).threads_per_worker(available) == threads


def test_threads_are_used_recorded_and_restored(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    for threads in (1, 2):
        featmap.maximise(
            "second:1", tiny.small(), **options(engine=Engine(threads=threads), out=tmp_path / str(threads), **FAST)
        )
        manifest = store.Run.read(tmp_path / str(threads)).manifest
        assert manifest.environment["threads"] == threads
        assert manifest.engines == [{"engine": "here", "workers": None, "threads": threads}]
    assert torch.get_num_threads() == before


def test_a_run_resumed_with_other_threads_says_so(tmp_path: Path) -> None:
    network = load(tiny.small())
    recipe = resolve(network, torch.device("cpu"), "pixels", **FAST)
    job = mapping.similarity_job("second", network, recipe)
    run = lifecycle.open_run(job, tmp_path / "run")
    names = [u.name for u in job.work_units()]
    with pytest.raises(ArithmeticError):
        lifecycle.carry_out(job, run, faulty_worker(tmp_path / "log", (), (names[2],)))
    notes: list[str] = []
    watcher = Silent()
    watcher.note = notes.append  # type: ignore[method-assign]
    assert lifecycle.carry_out(job, run, Worker, watcher, Engine(threads=7)) == 2
    assert [e["threads"] for e in run.manifest.later_environments] == [7]
    assert len(notes) == 1 and "may differ in the last bits" in notes[0]


def compute_in_order(job: Job, units: list[WorkUnit], folder: Path) -> None:
    """Compute all units of a job in an order of the caller's."""
    run, task = lifecycle.open_run(job, folder), lifecycle.task_of(job, Worker, Engine())
    with task.settings(), use_threads(torch.get_num_threads()):
        worker = task.make(Silent())
        assert run_here(units, run, lambda unit: worker.work(unit, run), task.steps, Silent()) == len(units)


def test_units_in_any_order_give_the_same_files(tmp_path: Path) -> None:
    network = load(tiny.wide())
    recipe = resolve(network, torch.device("cpu"), "pixels", **FAST)
    job = mapping.similarity_job(["first", "second"], network, recipe, seeds=2)
    (units,) = job.waves()
    for name, order in (("one", units), ("two", random.Random(2).sample(units, len(units)))):
        compute_in_order(job, order, tmp_path / name)
    files = {p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file()}
    of_arrays = {p for p in files if p.parts[0] in ("arrays.zarr", "units")}
    assert len(of_arrays) > 100
    for path in of_arrays:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes(), path


def test_a_feature_alone_has_the_bits_of_one_among_64() -> None:
    torch.manual_seed(3)
    module = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 64, 3))
    settings: dict[str, Any] = {"size": 16, "steps": 4, "rows": 16}
    together = maximise.maximise([f"2:{c}" for c in range(64)], module, **options(**settings))
    for c in (0, 17, 63):
        alone = maximise.maximise(f"2:{c}", module, **options(**settings))
        for name in ("images", "activation", "curve"):
            assert np.array_equal(alone[name].values[:, 0], together[name].values[:, c]), (name, c)


def test_a_unit_costs_a_forward_pass_for_each_set_of_layers() -> None:
    network = load(tiny.wide())
    recipe = resolve(network, torch.device("cpu"), "pixels", **FAST)
    job = mapping.similarity_job(["first", "second"], network, recipe)
    first, second = (network.layer(name, 16).cumulative_elements for name in ("first", "second"))
    assert [job.cost(u) for u in job.waves()[0][:4]] == [0, first, first + second, second]


def test_a_run_with_units_left_out_ends_with_status_3(capsys: pytest.CaptureFixture[str]) -> None:
    import typer

    app = typer.Typer()

    @app.command()
    def broken() -> None:
        raise IncompleteError("1 of 6 work units were left out")

    with pytest.raises(SystemExit) as end:
        entry.run(app, "featmap", [])
    assert end.value.code == 3
    assert capsys.readouterr().err == "featmap: 1 of 6 work units were left out\n"


def test_workers_that_die_while_loading_end_the_run(tmp_path: Path) -> None:
    from featmap.runs import ray_engine

    pool = ray_engine._WorkerPool(ray=None, start=lambda: (None, None), size=1)
    pool.stop = lambda actor: None  # type: ignore[method-assign]
    for _ in range(ray_engine.TRIES - 1):
        ray_engine._admit(pool, None, None, lambda now: None)
    with pytest.raises(FeatmapError, match="3 workers died while they loaded the network"):
        ray_engine._admit(pool, None, None, lambda now: None)
