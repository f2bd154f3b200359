"""Estimate the time, memory and disk space of a similarity job with photographs."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil

from featmap.mapping.photographs import BATCH, UNIT_PHOTOGRAPHS, PhotographJob, PhotographUnit, PhotographWorker
from featmap.optimize.limits import estimate_memory
from featmap.runs import estimate as estimates
from featmap.runs import lifecycle
from featmap.runs.device import deterministic_settings
from featmap.runs.estimate import Estimate
from featmap.runs.job import Job
from featmap.stats import blockwise


def estimate(job: Job, folder: Path) -> Estimate:
    """Estimate a similarity job, with its photographs.

    One batch of photographs is read and measured, and extrapolated.

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
    if not isinstance(job, PhotographJob):
        return estimates.estimate(job, folder)
    of_images = (
        estimates.estimate(job, folder)
        if job.makes_images
        else Estimate(0.0, psutil.Process().memory_info().rss, job.disk_needed, lifecycle.free_space(folder))
    )
    count = min(len(job.photographs), BATCH)
    with deterministic_settings():
        worker = PhotographWorker(job)
        worker.measure(PhotographUnit(0, 1))  # the first pass warms up
        start = time.perf_counter()
        worker.measure(PhotographUnit(0, count))
        # a batch is padded: a short one takes the time of a full one
        seconds = (time.perf_counter() - start) / count * len(job.photographs)
    memory = psutil.Process().memory_info().rss + memory_needed(job)
    return replace(of_images, seconds=of_images.seconds + seconds, memory=max(of_images.memory, memory))


def memory_needed(job: PhotographJob) -> int:
    """Estimate the memory that photographs take beside what the process holds.

    Parameters
    ----------
    job : PhotographJob
        The job.

    Returns
    -------
    int
        Bytes: the larger one of a work unit's and of those that the widest layer's similarity takes.
    """
    network, size = job.network, job.recipe.size
    pixels = 4 * int(np.prod(network.image_shape(size))) * UNIT_PHOTOGRAPHS
    unit = pixels + estimate_memory(network, job.recipe, job.responses, BATCH)
    widest = max(network.layer(layer, size).channels for layer in job.layers)
    # S and two arrays of its size in the neighbour graph, and eight of a block
    return max(unit, 8 * (3 * widest**2 + 8 * blockwise.SLICE_CELLS))
