"""Estimates of the time a run takes, before it and while it runs."""

from __future__ import annotations

import io
from itertools import count
from typing import Any

import pytest
import torch
from rich.console import Console

from featmap.cli import console
from featmap.network.loading import load
from featmap.optimize.batch import Batches
from featmap.optimize.objective import Objective
from featmap.optimize.recipe import PIXELS
from featmap.runs import estimate
from featmap.runs.job import Job
from tests.helpers import networks

pytestmark = pytest.mark.usefixtures("one_thread")


class Clock:
    """A clock that the steps of a descent move."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_slow_first_steps_and_held_up_ones_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, made = Clock(), []
    took = {0: 50.0, 1: 9.0, 4: 30.0}

    def descend(_: Any, objectives: Any, recipe: Any, seed: int, start: Any, on_step: Any) -> None:
        made.append((len(objectives), recipe.rows))
        for step in range(recipe.steps):
            clock.now += took.get(step, 0.25 * recipe.rows)
            on_step(step, torch.zeros(1))

    monkeypatch.setattr(estimate.time, "perf_counter", clock)
    monkeypatch.setattr(Batches, "descend", descend)
    monkeypatch.setattr(Batches, "rows_needed", lambda _, objectives, recipe, *__: {1: 2}.get(len(objectives), 16))
    objectives = [Objective.parse(f"mixed:{k % 11}") for k in range(33)]
    job = Job(
        network=load(networks.small_inception()),
        objectives=tuple(objectives[:11]),
        recipe=PIXELS.resolved(16, size=16, steps=100),
    )
    # two full batches of 16 rows, and a last one of a single image, which takes 2 rows
    assert estimate.estimate_seconds(job, [(objectives, 3)]) == pytest.approx(100 * 0.25 * (16 + 16 + 2))
    assert made == [(16, 16)]
    assert estimate.estimate_seconds(job, [(objectives[:1], 3)]) == pytest.approx(3 * 100 * 0.25 * 2)
    mixed = [Objective.parse("mixed:0"), Objective.parse("norm:1")]  # a pass for each layer
    assert estimate.estimate_seconds(job, [(mixed, 1)]) == pytest.approx(2 * 100 * 0.25 * 2)


@pytest.mark.parametrize(("age", "seconds"), [(7.0, 7.0), (-3.0, 0.0), (1000.0, 0.0)])
def test_the_start_counts_in_a_young_process(age: float, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    created = estimate.psutil.Process().create_time()
    monkeypatch.setattr(estimate.time, "time", lambda: created + age)
    assert estimate.start_seconds() == pytest.approx(seconds)


def test_the_time_left_is_that_of_the_later_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, text = Clock(), io.StringIO()
    monkeypatch.setattr(console.time, "monotonic", clock)
    bars = console.ProgressBars(Console(file=text, width=200))
    bars.begin(1000, 0)
    clock.now += 300  # the network is prepared, memory is allocated
    for _ in range(100):
        clock.now += 3.0
        bars.step(1.0)
    lines = text.getvalue().splitlines()
    left = [float(line.split("about ")[1].split()[0]) for line in lines]
    assert lines[-1].startswith("maximising 10 %") or lines[-1].startswith("maximising 9 %")
    assert left[-1] == pytest.approx(3.0 * 900 / 60, rel=0.03), "not (300 + 300) / 100 seconds a step"


def test_steps_that_are_stored_already_took_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, text = Clock(), io.StringIO()
    monkeypatch.setattr(console.time, "monotonic", clock)
    bars = console.ProgressBars(Console(file=text, width=200))
    bars.begin(1000, 900)
    for _ in range(20):
        clock.now += 2.0
        bars.step(1.0)
    (line,) = [line for line in text.getvalue().splitlines() if "minutes left" in line]
    done = next(n for n in count(1) if 2.0 * n > console.REPORT_INTERVAL)
    assert f"about {2.0 * (100 - done) / 60:.1f} minutes left" in line


def test_a_stage_that_begins_again_is_timed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters are found for one layer after the other, under one name."""
    clock, text = Clock(), io.StringIO()
    monkeypatch.setattr(console.time, "monotonic", clock)
    bars = console.ProgressBars(Console(file=text, width=200))
    for _ in range(4):
        for done in range(11):
            clock.now += 10.0
            bars.stage("clusters", done, 10)
    left = [float(line.split("about ")[1].split()[0]) for line in text.getvalue().splitlines() if "about" in line]
    assert left and max(left) <= 100 / 60
