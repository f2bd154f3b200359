"""Estimate the time, memory and disk space of a job from a few measured steps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

import psutil
import torch

from featmap.image_shape import area, smallest
from featmap.optimize import limits
from featmap.optimize.batch import Batches
from featmap.optimize.objective import Objective
from featmap.optimize.parameterization import frame_steps
from featmap.optimize.responses import Probe
from featmap.runs import lifecycle
from featmap.runs.device import deterministic_settings
from featmap.runs.job import BaseJob, Job
from featmap.stats import blockwise, facets

MAX_GROUPS = 6
"""Sets of layers that are measured; of more sets a sample is measured and extrapolated."""
WARM_UP, MEASURED_STEPS = 2, 5
"""Steps that are not timed, because the first ones allocate memory, and steps whose median is taken."""
LONGEST_START = 120.0
"""Seconds from the start of a process up to which they count as the start of the command, not of a session."""


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
    """

    seconds: float
    memory: int
    disk: int
    free: int
    start: float = 0.0


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
    seconds += (count + len(job.seeds)) * probe_seconds(job, min(job.recipe.rows, len(job.objectives)))
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
        short = replace(recipe, octaves=(replace(octave, steps=WARM_UP + MEASURED_STEPS),), rows=rows)
        stamps: list[float] = []

        def stamp(_: int, means: torch.Tensor, into: list[float] = stamps) -> None:
            means.cpu()  # a GPU has finished the step only when its result can be read
            into.append(time.perf_counter())

        descender.descend(objectives, short, job.seeds[0], start, stamp)
        # the median: other work on the machine may hold up some of the steps
        each += octave.steps * median(after - before for before, after in pairwise(stamps[WARM_UP - 1 :]))
    return once, each


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
