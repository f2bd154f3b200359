"""Estimates of the time a run takes, before it and while it runs."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
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
from featmap.runs.engine import WorkUnit
from featmap.runs.job import Job
from featmap.runs.worker import Worker
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


def descents_of(clock: Clock, took: Callable[[int], float], made: list[int]) -> Callable[..., None]:
    """Descents whose steps move a clock."""

    def descend(_: Any, objectives: Any, recipe: Any, seed: int, start: Any, on_step: Any) -> None:
        made.append(recipe.steps)
        for step in range(recipe.steps):
            clock.now += took(step)
            on_step(step, torch.zeros(1))

    return descend


@pytest.mark.parametrize(
    ("took", "mean", "made"),
    [
        # on a busy machine every other step shares its core: the median would foretell half of what the run takes
        (lambda step: 0.2 if step % 2 else 1.0, 0.6, [7]),
        # steps of a millisecond say nothing about the next minute: more of them are measured
        (lambda _: 0.001, 0.001, [7, 2 + estimate.MOST_STEPS]),
        (lambda _: 0.03, 0.03, [7, 2 + 17]),
    ],
)
def test_steps_are_measured_as_the_machine_is(
    took: Callable[[int], float], mean: float, made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, found = Clock(), list[int]()
    monkeypatch.setattr(estimate.time, "perf_counter", clock)
    monkeypatch.setattr(estimate, "MEASURED_SECONDS", 0.5)
    monkeypatch.setattr(Batches, "descend", descents_of(clock, took, found))
    monkeypatch.setattr(Batches, "rows_needed", lambda *_: 2)
    job = Job(
        network=load(networks.small_inception()),
        objectives=(Objective.parse("mixed:0"),),
        recipe=PIXELS.resolved(16, size=16, steps=100),
    )
    assert estimate.estimate_seconds(job, [(job.objectives, 1)]) == pytest.approx(100 * mean, rel=0.2)
    assert found == made


def test_a_batch_is_its_steps_and_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest is what a work unit takes beyond its steps; the first batch takes longer."""
    clock, first = Clock(), [30.0]

    def make(self: Worker, unit: WorkUnit) -> None:
        assert (unit.first, unit.last) == (0, 4) and self.job.facets == 0
        clock.now += 5.0 + (first.pop() if first else 0.0)
        for _ in range(self.job.recipe.steps):
            clock.now += 2.0
            self.watcher.step(1.0)
        clock.now += 1.0

    monkeypatch.setattr(estimate.time, "perf_counter", clock)
    monkeypatch.setattr(estimate, "estimate_seconds", lambda *_: 1000.0)
    monkeypatch.setattr(Worker, "make", make)
    objectives = tuple(Objective.parse(f"mixed:{k}") for k in range(11))
    recipe = PIXELS.resolved(16, size=16, steps=100, rows=4)
    job = Job(network=load(networks.small_inception()), objectives=objectives, recipe=recipe, seeds=(0, 1))
    assert estimate.estimate(job, Path()).seconds == pytest.approx(1000.0 + 30.0 + 6 * (5.0 + 1.0))


def test_work_is_listed_for_each_descent_of_a_unit() -> None:
    recipe = PIXELS.resolved(16, size=16, steps=9, rows=4)
    objectives = tuple(Objective.parse(f"mixed:{k}") for k in range(6))
    job = Job(network=load(networks.small_inception()), objectives=objectives, recipe=recipe)
    rest = estimate.PASSES / 3
    plain = estimate.descents(job).work
    assert len(plain) == 2 and plain[0] == plain[1] > 0
    facets = replace(job, facets=3)
    work = estimate.descents(facets).work
    assert len(work) == len(plain) * facets.steps_per_unit / job.steps_per_unit == 8, "as the watcher counts steps"
    one = plain[0] / (9 + rest)
    assert work[:4] == pytest.approx([one * (9 + rest)] * 2 + [one * (18 + rest)] * 2)
    # the two images of the last batch are compared: a full batch, two of theirs and one of a row more, in two passes
    assert work[6] == pytest.approx(one * (18 + rest + 2 * (4 + 2 * 2 + 3) / 2))


def test_the_pace_is_the_time_of_a_rehearsal_here_and_now(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, rounds = Clock(), list[float]()

    def rehearse() -> int:
        # every other round is held up
        rounds.append(estimate.REHEARSAL * (5 if len(rounds) % 2 else 1))
        clock.now += rounds[-1]
        return 0

    monkeypatch.setattr(estimate.time, "perf_counter", clock)
    monkeypatch.setattr(estimate, "_rehearse", rehearse)
    monkeypatch.setattr(estimate, "PACE_SECONDS", 0.5)
    assert estimate.measure_pace() == pytest.approx(3.0, rel=0.1)
    assert sum(rounds) == pytest.approx(estimate.PACE_SECONDS, abs=5 * estimate.REHEARSAL)
    monkeypatch.setattr(estimate, "measure_pace", lambda: 3.0)
    parts = [estimate.Part("a", 2.0), estimate.Part("b", 5.0), estimate.Part("maximising", work=(100.0,))]
    assert estimate.later_seconds(parts) == 3.0 * 7.0
    monkeypatch.setitem(estimate.COSTS, "b", estimate.Cost(1.0, 0.5, 0.25))
    assert estimate.part("b", 4) == estimate.Part("b", 1.0 + 4 * 0.5 + 16 * 0.25)
    # of more than 4,000 features a fifth of the draws of the null models is made
    many, few = (estimate.part(name, 5000).seconds for name in (estimate.CLUSTERS, "clusters and nulls of photographs"))
    assert many == few == pytest.approx(estimate.COSTS[estimate.CLUSTERS].seconds(5000) / 5)
    assert console.DESCENTS == estimate.DESCENTS, "the console does not load torch, and so has the name a second time"


def test_the_rehearsal_is_real_work() -> None:
    assert estimate._rehearse() > 1000 and estimate.measure_pace() > 0
    assert all(cost.seconds(1) > 0 and cost.seconds(512) >= cost.seconds(1) for cost in estimate.COSTS.values())


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
    first, later = (line for line in text.getvalue().splitlines() if " left" in line)
    done = next(n for n in count(1) if 2.0 * (n - 1) >= console.FIRST_REPORT)
    assert f"about {2.0 * (100 - done) / 60:.1f} minutes left" in first, "the first line comes soon"
    assert "about 60 s left" in later or "about 1.1 minutes" in later or float(later.split("about ")[1].split()[0]) < 70


def test_a_stage_that_begins_again_is_timed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters are found for one layer after the other, under one name."""
    clock, text = Clock(), io.StringIO()
    monkeypatch.setattr(console.time, "monotonic", clock)
    bars = console.ProgressBars(Console(file=text, width=200))
    for _ in range(4):
        for done in range(11):
            clock.now += 10.0
            bars.stage("clusters", done, 10)
    left = [seconds for _, seconds in lines_left(text.getvalue())]
    assert left and max(left) <= 100


def lines_left(text: str) -> list[tuple[str, float]]:
    """Name and seconds of each line that says what is left."""
    found = []
    for line in text.splitlines():
        if match := re.search(r"^(\w+).*about ([\d.]+) (s|minutes) left", line):
            found.append((match[1], float(match[2]) * (60 if match[3] == "minutes" else 1)))
    return found


@pytest.mark.parametrize("slower", [1.0, 3.0])
@pytest.mark.parametrize("pace", [1.0, 2.5])
def test_the_time_left_is_that_of_the_whole_run_and_is_corrected(
    pace: float, slower: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run of planted durations, every line is compared with what was left when it was printed."""
    clock, text = Clock(), io.StringIO()
    monkeypatch.setattr(console.time, "monotonic", clock)
    monkeypatch.setattr(estimate, "measure_pace", lambda: pace)
    parts = [
        estimate.Part("maximising", work=(10.0, 10.0, 10.0, 30.0, 10.0)),
        estimate.Part("clusters", 20.0),
        estimate.Part("silent", 6.0),
        estimate.Part("figures", 40.0),
        estimate.Part("maximising", work=(10.0, 10.0, 10.0)),
        estimate.Part("atlas", 10.0),
    ]
    took = pace * slower
    whole = 100 * 2.0 + took * 76.0 + 5.0
    bars, ends = console.ProgressBars(Console(file=text, width=200), parts), []

    def note(line: str) -> None:
        text.write(line + "\n")
        ends.append(whole - clock.now)

    monkeypatch.setattr(bars, "note", note)

    def descend(*seconds: float) -> None:
        bars.begin(10 * len(seconds), 0)
        for each in seconds:
            for _ in range(10):
                clock.now += each
                bars.step(1.0)

    def stage(name: str, seconds: float, count: int) -> None:
        for done in range(count):
            clock.now += took * seconds / count
            bars.stage(name, done + 1, count)

    clock.now = 5.0
    descend(2.0, 2.0, 2.0, 6.0, 2.0)  # a unit of two sets of layers takes longer
    stage("clusters", 20.0, 40)
    clock.now += took * 6.0
    stage("figures", 40.0, 8)
    descend(2.0, 2.0, 2.0)
    stage("atlas", 10.0, 3)
    assert clock.now == pytest.approx(whole)
    printed = [
        (*found, left)
        for line, left in zip(text.getvalue().splitlines(), ends, strict=True)
        for found in lines_left(line)
    ]
    assert len(printed) >= 5
    foretold = printed[0][1]
    assert foretold == pytest.approx(70 * 2.0 - 6.0 + 30 * 2.0 + pace * 76.0, abs=4.0)
    if slower == 1.0:
        assert all(f == pytest.approx(left, rel=0.3, abs=3.0) for _, f, left in printed)
    # what the clusters took corrects what is said of the figures
    later = [(f, left) for name, f, left in printed if name == "figures"]
    assert later and all(f == pytest.approx(left, rel=0.3) for f, left in later)


def test_a_part_that_takes_longer_than_foretold_goes_by_its_own_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, text = Clock(), io.StringIO()
    monkeypatch.setattr(console.time, "monotonic", clock)
    monkeypatch.setattr(estimate, "measure_pace", lambda: 1.0)
    bars = console.ProgressBars(Console(file=text, width=200), [estimate.Part("clusters", 1.0)])
    bars.begin(0, 0)
    for done in range(200):
        clock.now += 1.0
        bars.stage("clusters", done, 200)
    (*_, last) = lines_left(text.getvalue())
    assert last[1] < 30
    assert all(f > 5 for _, f in lines_left(text.getvalue())[1:-1]), "not 0 s left for most of the time"
