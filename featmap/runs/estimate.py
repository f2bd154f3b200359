"""Estimate the time, memory and disk space of a job from a few measured steps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from featmap.image_shape import area
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
MEASURED_STEPS = 3
"""The first step warms up, the others are timed."""


@dataclass(frozen=True)
class Estimate:
    """Estimate of a job.

    Parameters
    ----------
    seconds : float
        Time of the descents that are still to be computed.
    memory : int
        Largest number of bytes that the process will hold.
    disk : int
        Bytes of the run folder.
    free : int
        Bytes that are free on the disk.
    """

    seconds: float
    memory: int
    disk: int
    free: int


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
    groups: dict[tuple[str, ...], list[Objective]] = {}
    for objective in job.objectives:
        groups.setdefault(tuple(objective.layers), []).append(objective)
    measured = list(groups.values())[:: -(-len(groups) // MAX_GROUPS)]
    share = len(job.objectives) / sum(map(len, measured))
    batches = [(group, len(job.seeds) * -(-len(group) // job.recipe.rows)) for group in measured]
    seconds = share * estimate_seconds(job, batches, job.start) * facets.count_passes(job.facets)
    seconds += len(job.seeds) * -(-len(job.objectives) // job.recipe.rows) * _frame_seconds(job)
    memory = estimate_process_memory(job) + _frame_bytes(job)
    if blockwise.is_large([len(group) for group in groups.values()]):
        memory = max(memory, psutil.Process().memory_info().rss + blockwise.memory_needed(len(job.objectives)))
    return Estimate(seconds, memory, job.disk_needed, lifecycle.free_space(folder))


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
    descender, seconds = Batches(job.network, job.device), 0.0
    with deterministic_settings():
        for octave in job.recipe.octaves:
            short = replace(job.recipe, octaves=(replace(octave, steps=MEASURED_STEPS),))
            for objectives, count in batches:
                stamps: list[float] = []

                def stamp(_: int, means: torch.Tensor, into: list[float] = stamps) -> None:
                    means.cpu()  # a GPU has finished the step only when its result can be read
                    into.append(time.perf_counter())

                descender.descend(objectives[: job.recipe.rows], short, job.seeds[0], start, stamp)
                seconds += count * octave.steps * (stamps[-1] - stamps[0]) / (MEASURED_STEPS - 1)
    return seconds


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


def _frame_bytes(job: Job) -> int:
    """Return the bytes of a batch's frames, which are in memory twice."""
    count = len(frame_steps(job.recipe.steps, job.frames))
    return 2 * 4 * count * job.recipe.rows * job.network.channels * max(map(area, job.recipe.sizes))
