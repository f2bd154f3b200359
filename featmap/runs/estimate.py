"""Estimate the time, memory and disk space of a job: descents from a few measured steps, what follows from its size.

Tables, figures and pages cannot be measured before there is anything to draw. What they take was measured once
(`COSTS`), on a machine on which a small piece of similar work (`_rehearse`) was timed as well. That piece is done again
when an estimate is made, so that a slower machine, or a busy one, is foretold longer times.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import torch

from featmap.image_shape import area, smallest
from featmap.optimize import limits
from featmap.optimize.batch import Batches
from featmap.optimize.objective import Objective
from featmap.optimize.parameterization import frame_steps
from featmap.optimize.recipe import Octave
from featmap.optimize.responses import Probe
from featmap.runs import lifecycle
from featmap.runs.device import deterministic_settings
from featmap.runs.engine import AnyUnit, WorkUnit
from featmap.runs.job import BaseJob, Job
from featmap.runs.progress import DESCENTS, Silent
from featmap.runs.worker import Worker
from featmap.stats import blockwise, facets

MAX_GROUPS = 6
"""Sets of layers that are measured; of more sets a sample is measured and extrapolated."""
WARM_UP, MEASURED_STEPS, MOST_STEPS = 2, 5, 40
"""Steps that are not timed, because the first ones allocate memory; the least and the largest number that are."""
MEASURED_SECONDS = 0.5
"""Seconds of steps that are timed, where `MOST_STEPS` take as long: in less, other processes may have come or gone."""
SLOWEST = 0.1
"""Share of the steps, at least one, that is left out as held up. Of the others the mean is taken, not the median: on a
busy machine steps that share their core with another process are as common as those that do not."""
LONGEST_START = 120.0
"""Seconds from the start of a process up to which they count as the start of the command, not of a session."""


@dataclass(frozen=True)
class Cost:
    """Seconds that a part of a run takes at pace 1, see `measure_pace`.

    Parameters
    ----------
    fixed : float
        Seconds whatever the size; imports among them.
    each : float, default 0.0
        Seconds for each item, such as a feature.
    pair : float, default 0.0
        Seconds for each pair of items.
    """

    fixed: float
    each: float = 0.0
    pair: float = 0.0

    def seconds(self, count: int) -> float:
        """Compute the seconds of a number of items.

        Parameters
        ----------
        count : int
            Number of items.

        Returns
        -------
        float
            Seconds at pace 1.
        """
        return self.fixed + count * (self.each + count * self.pair)


REHEARSAL = 0.0065
"""Seconds that `_rehearse` takes at pace 1."""
PACE_SECONDS = 0.5
"""Least seconds that the pace is measured for."""
PASSES = 7
"""Forward passes that a batch takes besides its steps: rescuing rows, responses to images and null image, statuses."""
IMAGES, CLUSTERS, TABLES, ATLAS = "pictures", "clusters and nulls", "tables and figures", "atlas"
"""Parts of several commands, by the names that watchers receive."""
COSTS = {
    IMAGES: Cost(1.56, 0.023),
    CLUSTERS: Cost(0.455, 0.022, 5.5e-05),
    TABLES: Cost(1.49, 0.014, 3.9e-05),
    ATLAS: Cost(0.487, 0.0091),
    "layer pairs and floors": Cost(0.13, 0.13),
    "clusters and nulls of photographs": Cost(0.455, 0.022, 5.5e-05),
    "agreement with photographs, and its ceiling": Cost(0.13, 0.0032),
    "tables and figures of photographs": Cost(1.23, 0.014, 3.9e-05),
    "examples": Cost(1.95, 0.83),
    "cross-layer tables and figures": Cost(0.325, 0.33),
    "statistics": Cost(0.013, 0.042),
    "matrices": Cost(4.03, 0.052),
    "panel": Cost(1.3),
    "gradients": Cost(0.65, 0.17),
    "screening": Cost(0.39),
    "evidence": Cost(0.52, 0.0039, 6.5e-06),
    "evidence with photographs": Cost(1.3, 0.013, 6.5e-06),
    "permuted": Cost(1.43, 0.044, 0.00012),
    "panels": Cost(0.325, 0.065),
}
"""Seconds of what follows the descents, by `python -m analyses.benchmarks.parts` on runs of 1 to 512 features."""


@dataclass(frozen=True)
class Part:
    """A part of a run that is still to come.

    Parameters
    ----------
    name : str
        Name that watchers receive, see `featmap.runs.progress.Watcher.stage`.
    seconds : float, default 0.0
        Seconds that it takes at pace 1.
    work : tuple of float, default ()
        Of descents: the work of each work unit, in a measure that all parts of the run share; they are timed while they
        run.
    """

    name: str
    seconds: float = 0.0
    work: tuple[float, ...] = ()


def part(name: str, count: int) -> Part:
    """Estimate a part from the number of its items.

    Parameters
    ----------
    name : str
        One of `COSTS`.
    count : int
        Items.

    Returns
    -------
    Part
        With its seconds at pace 1.
    """
    seconds = COSTS[name].seconds(count)
    if name.startswith(CLUSTERS):
        from featmap.stats import clustering as nulls  # not for descents alone: it imports networkx

        seconds *= nulls.DRAWS_OF_MANY / nulls.DRAWS if count > nulls.MANY else 1
    return Part(name, seconds)


def descents(job: BaseJob, passes: Callable[[AnyUnit], float] | None = None) -> Part:
    """List the work of a job's descents.

    Parameters
    ----------
    job : BaseJob
        The job.
    passes : callable, optional
        Returns the forward passes that a unit takes besides its steps, of which each takes three. None counts
        `PASSES`.

    Returns
    -------
    Part
        With the work of each unit, as watchers count units; with facets, of each of a unit's descents.
    """
    work, steps = list[float](), job.recipe.steps
    count = job.facets if isinstance(job, Job) else 0
    for unit in job.work_units():
        rest = (PASSES if passes is None else passes(unit)) / 3
        if unit.last and count:
            # the ordinary image, the repeated one, and the others, whose steps are pushed away from the earlier ones;
            # before the first of these, a batch of fewer images is compared with a full one
            images = max(2, (unit.last - 1) % job.recipe.rows + 1)
            check = 2 * (job.recipe.rows + 3 * images + 1) / images if images < job.recipe.rows else 0.0
            each = [steps, steps, 2 * steps + check, *([2 * steps] * (count - 2))]
            work += [job.cost(unit) / facets.count_passes(count) * (one + rest) for one in each]
        elif unit.last:
            work.append(job.cost(unit) * (steps + rest))
    return Part(DESCENTS, work=tuple(work))


def image_parts(job: Job) -> tuple[Part, ...]:
    """List the parts of a run of `maximise`.

    Parameters
    ----------
    job : Job
        The job.

    Returns
    -------
    tuple of Part
        In their order.
    """
    return descents(job), part(IMAGES, len(job.objectives) * max(1, job.facets))


def _rehearse() -> int:
    """Do a small piece of what analysis, tables and figures consist of: the interpreter, arrays and compression."""
    table = {k: (k % 7, str(k)) for k in range(4000)}
    text = ",".join(f"{number + len(name):.3f}" for number, name in table.values())
    values = np.sort(np.arange(60_000.0).reshape(200, 300) * 0.7 % 1.3, axis=1)
    return len(zlib.compress(text.encode() + (values[::4] @ values[::4].T).tobytes()))


def measure_pace() -> float:
    """Measure how long work takes here and now, in multiples of `COSTS`.

    Returns
    -------
    float
        1 on the machine on which the costs were measured while nothing else ran; more on a slower or busier one.
    """
    begun, rounds = time.perf_counter(), 0
    while rounds < 3 or time.perf_counter() - begun < PACE_SECONDS:
        _rehearse()
        rounds += 1
    return (time.perf_counter() - begun) / rounds / REHEARSAL


def later_seconds(parts: Sequence[Part]) -> float:
    """Estimate what the parts take that are not measured.

    Parameters
    ----------
    parts : sequence of Part
        Parts of a run; descents count for nothing.

    Returns
    -------
    float
        Seconds on this machine, as busy as it is.
    """
    return measure_pace() * math.fsum(one.seconds for one in parts)


@dataclass(frozen=True)
class Estimate:
    """Estimate of a job.

    Parameters
    ----------
    seconds : float
        Time of the descents and responses that are still to be computed.
    memory : int
        Largest number of bytes that the process will hold.
    disk : int
        Bytes of the run folder.
    free : int
        Bytes that are free on the disk.
    start : float, default 0.0
        Seconds that the command takes before it computes.
    later : float, default 0.0
        Seconds of the analysis, tables, figures and pages that follow.
    """

    seconds: float
    memory: int
    disk: int
    free: int
    start: float = 0.0
    later: float = 0.0


def estimate(job: Job, folder: Path) -> Estimate:
    """Estimate a job of descents.

    A few steps are measured at each size of the recipe for each set of layers, and extrapolated.

    Parameters
    ----------
    job : Job
        The checked job.
    folder : Path
        Run folder of the job; nothing is written.

    Returns
    -------
    Estimate
        Time, memory and disk.
    """
    started = start_seconds()
    groups: dict[tuple[str, ...], list[Objective]] = {}
    for objective in job.objectives:
        groups.setdefault(tuple(objective.layers), []).append(objective)
    measured = list(groups.values())[:: -(-len(groups) // MAX_GROUPS)]
    share = len(job.objectives) / sum(map(len, measured))
    batches = [(group, len(job.seeds) * -(-len(group) // job.recipe.rows)) for group in measured]
    seconds = share * estimate_seconds(job, batches, job.start) * facets.count_passes(job.facets)
    count = len(job.seeds) * -(-len(job.objectives) // job.recipe.rows)
    seconds += count * _frame_seconds(job)
    seconds += _rest_seconds(job, count)
    memory = estimate_process_memory(job) + _frame_bytes(job)
    if blockwise.is_large([len(group) for group in groups.values()]):
        memory = max(memory, psutil.Process().memory_info().rss + blockwise.memory_needed(len(job.objectives)))
    return Estimate(seconds, memory, job.disk_needed, lifecycle.free_space(folder), started)


def estimate_seconds(
    job: BaseJob, batches: Sequence[tuple[Sequence[Objective], int]], start: torch.Tensor | None = None
) -> float:
    """Measure a few steps of some batches and extrapolate.

    Parameters
    ----------
    job : BaseJob
        Job that the batches belong to.
    batches : sequence of (sequence of Objective, int)
        Objectives of which one batch is measured, and the number of such batches.
    start : Tensor, optional
        Image that the descents start from.

    Returns
    -------
    float
        Seconds of all batches.
    """
    descender, seconds, rows = Batches(job.network, job.device), 0.0, job.recipe.rows
    with deterministic_settings():
        for objectives, count in batches:
            sets: dict[tuple[str, ...], list[Objective]] = {}
            for objective in objectives[:rows]:
                sets.setdefault(tuple(sorted(objective.layers)), []).append(objective)
            for together in sets.values():
                once, each = _batch_seconds(descender, job, together, start)
                seconds += once + count * each
            rest = len(objectives) % rows
            if len(objectives) > rows and rest and len(sets) == 1:
                # the last batch of each seed takes fewer rows
                begun = time.perf_counter()
                needed = descender.rows_needed(objectives[-rest:], job.recipe, job.seeds[0], start)
                last = count / -(-len(objectives) // rows)
                seconds += time.perf_counter() - begun - last * (1 - needed / rows) * each
    return seconds


def _batch_seconds(
    descender: Batches, job: BaseJob, objectives: Sequence[Objective], start: torch.Tensor | None
) -> tuple[float, float]:
    """Measure what the first batch of some layers takes in addition, and what each takes."""
    recipe, begun = job.recipe, time.perf_counter()
    rows = descender.rows_needed(objectives, recipe, job.seeds[0], start)
    layers = tuple(sorted(objectives[0].layers))
    descender.prepared_module(layers, recipe.size, recipe.precision, smallest(recipe.sizes))
    once, each = time.perf_counter() - begun, 0.0
    for octave in recipe.octaves:
        count = MEASURED_STEPS
        took = _time_steps(descender, job, objectives, (octave, rows, count), start)
        if sum(took) < MEASURED_SECONDS:
            count = min(MOST_STEPS, math.ceil(MEASURED_SECONDS / max(_mean(took), MEASURED_SECONDS / MOST_STEPS)))
        if count > MEASURED_STEPS:
            took = _time_steps(descender, job, objectives, (octave, rows, count), start)
        each += octave.steps * _mean(took)
    return once, each


def _time_steps(
    descender: Batches,
    job: BaseJob,
    objectives: Sequence[Objective],
    chosen: tuple[Octave, int, int],
    start: torch.Tensor | None,
) -> list[float]:
    """Measure the seconds of steps of an octave, in a batch of some rows."""
    octave, rows, count = chosen
    short = replace(job.recipe, octaves=(replace(octave, steps=WARM_UP + count),), rows=rows)
    stamps: list[float] = []

    def stamp(_: int, means: torch.Tensor) -> None:
        means.cpu()  # a GPU has finished the step only when its result can be read
        stamps.append(time.perf_counter())

    descender.descend(objectives, short, job.seeds[0], start, stamp)
    return [after - before for before, after in pairwise(stamps[WARM_UP - 1 :])]


def _mean(took: Sequence[float]) -> float:
    """Compute the mean without the slowest steps."""
    kept = sorted(took)[: max(1, len(took) - max(1, round(SLOWEST * len(took))))]
    return math.fsum(kept) / len(kept)


class _Stopwatch(Silent):
    """Watcher that notes when steps end."""

    def __init__(self) -> None:
        self.stamps: list[float] = []

    def step(self, activation: float, count: int = 1) -> None:
        """Note the time.

        Parameters
        ----------
        activation : float
            Mean over the batch.
        count : int, default 1
            Steps since the last call.
        """
        self.stamps.append(time.perf_counter())


def _rest_seconds(job: Job, count: int) -> float:
    """Measure what batches take besides their steps: the noise, the responses, and the status of each image."""
    (*_, last), steps = job.recipe.octaves, 3
    short = replace(job.recipe, octaves=(replace(last, steps=steps),))
    watch, rest = _Stopwatch(), list[float]()
    with deterministic_settings():
        worker = Worker(replace(job, recipe=short, frames=0), watch)
        unit = WorkUnit(job.seeds[0], 0, min(job.recipe.rows, len(job.objectives)))
        for _ in range(min(count, 2)):  # the first batch allocates memory, and computes the null image's responses
            watch.stamps, begun = [], time.perf_counter()
            worker.make(unit)
            # the median: of facets, some of the steps follow descents that watchers hear nothing of
            step = median(after - before for before, after in pairwise(watch.stamps))
            rest.append(max(0.0, time.perf_counter() - begun - len(watch.stamps) * step))
    return rest[0] + (count - 1) * rest[-1]


def estimate_process_memory(job: BaseJob) -> int:
    """Estimate the memory of a process while it descends.

    Parameters
    ----------
    job : BaseJob
        The job.

    Returns
    -------
    int
        Bytes that this process holds now, plus those of a batch.
    """
    return int(psutil.Process().memory_info().rss) + limits.estimate_memory(job.network, job.recipe, job.layers)


def _frame_seconds(job: Job) -> float:
    """Measure the seconds that probing the frames of a batch takes."""
    steps, done, seconds = frame_steps(job.recipe.steps, job.frames), 0, 0.0
    probe = Probe(job.network, job.recipe.rows, job.device)
    for octave in job.recipe.octaves:
        frames = sum(done < step <= done + octave.steps or step == done == 0 for step in steps)
        done += octave.steps
        if frames and job.responses:
            assert isinstance(octave.size, (int, tuple))
            start = time.perf_counter()
            images = torch.zeros(job.recipe.rows, *job.network.image_shape(octave.size))
            probe.responses(images, job.responses)
            seconds += frames * (time.perf_counter() - start)
    return seconds


def start_seconds() -> float:
    """Compute how long this command has taken until now.

    Returns
    -------
    float
        Seconds since the start of the process; 0 in one that has long run, such as a session's.
    """
    seconds = time.time() - psutil.Process().create_time()
    return seconds if 0 < seconds < LONGEST_START else 0.0  # a clock may have been set back


def probe_seconds(job: BaseJob, rows: int) -> float:
    """Measure the seconds that the responses to a batch of images take.

    Parameters
    ----------
    job : BaseJob
        The job.
    rows : int
        Number of images, 1 or more.

    Returns
    -------
    float
        Seconds.
    """
    probe, took = Probe(job.network, job.recipe.rows, job.device), []
    images = torch.zeros(rows, *job.network.image_shape(job.recipe.size))
    for _ in range(2):  # the first pass allocates memory
        begun = time.perf_counter()
        probe.responses(images, list(dict.fromkeys([*job.responses, *job.layers])))
        took.append(time.perf_counter() - begun)
    return took[-1]


def _frame_bytes(job: Job) -> int:
    """Return the bytes of a batch's frames, which are in memory twice."""
    count = len(frame_steps(job.recipe.steps, job.frames))
    return 2 * 4 * count * job.recipe.rows * job.network.channels * max(map(area, job.recipe.sizes))
