"""What a job will take: measured steps, extrapolated."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from featmap.interaction.job import JointJob
from featmap.network.model import Network
from featmap.optimize import memory
from featmap.optimize.batch import Batches
from featmap.optimize.descent import frame_steps
from featmap.optimize.objective import Objective
from featmap.optimize.recipe import Recipe
from featmap.optimize.responses import Probe
from featmap.runs import lifecycle
from featmap.runs.device import remembered_settings
from featmap.runs.job import Job
from featmap.stats import blockwise

MEASURED = 6


@dataclass(frozen=True)
class Estimate:
    """What a job will take: seconds, bytes of memory, bytes on disk; `free` bytes there are."""

    seconds: float
    memory: int
    disk: int
    free: int


def disk_needed(job: Job) -> int:
    """Return the bytes of the run's arrays before compression, tables and figures included by a tenth."""
    counts, columns = Counter(tuple(o.layers) for o in job.objectives), len(job.columns)
    cells = len(job.labels) * columns
    if blockwise.is_large([*counts.values()]):
        cells = sum(n * n for n in counts.values())
    # five tables as parquet and CSV, 22 bytes a cell together as measured on inception4a
    tables = 5 * 22 * cells
    return int(1.3 * lifecycle.bytes_of(job) + tables) + lifecycle.OWN_FILES


def estimate(job: Job, folder: Path) -> Estimate:
    """Measure three steps of a batch at each of the recipe's sizes, for each layer maximised, and extrapolate.

    Of more than `MEASURED` layers (or sets of layers, for sums) some are measured and stand for the others.
    """
    groups: dict[tuple[str, ...], list[Objective]] = {}
    for target in job.objectives:
        groups.setdefault(tuple(target.layers), []).append(target)
    measured = list(groups.values())[:: -(-len(groups) // MEASURED)]
    share = len(job.objectives) / sum(map(len, measured))
    counted = [(group, len(job.seeds) * -(-len(group) // job.recipe.rows)) for group in measured]
    seconds = share * _seconds(job.network, job.recipe, job.device, job.seeds[0], job.start, counted)
    seconds += len(job.seeds) * -(-len(job.objectives) // job.recipe.rows) * _frame_seconds(job)
    held = _memory(job.network, job.recipe, job.layers) + _frame_bytes(job)
    if blockwise.is_large([len(group) for group in groups.values()]):
        held = max(held, psutil.Process().memory_info().rss + blockwise.memory(len(job.objectives)))
    return Estimate(seconds, held, disk_needed(job), lifecycle.free_space(folder))


def estimate_joint(job: JointJob, folder: Path) -> Estimate:
    """Measure three steps of a batch of solos and of one of joint descents at each size, and extrapolate."""
    rows = job.recipe.rows
    solos: dict[str, list[Objective]] = {}
    for solo in job.solos:
        solos.setdefault(solo.unit.layer, []).append(Objective(((1.0, solo.unit),)))
    joints = [Objective(tuple((1.0, u) for u in job.groups[g])) for g, _ in job.joints]
    counted = [(targets, -(-len(targets) // rows)) for targets in (*solos.values(), joints)]
    seconds = _seconds(job.network, job.recipe, job.device, job.seeds[0], None, counted)
    layers = list(dict.fromkeys(u.layer for u in job.units))
    return Estimate(
        seconds,
        _memory(job.network, job.recipe, layers),
        int(1.1 * lifecycle.bytes_of(job)),
        lifecycle.free_space(folder),
    )


def _seconds(
    network: Network,
    recipe: Recipe,
    device: torch.device,
    seed: int,
    start: torch.Tensor | None,
    counted: Sequence[tuple[Sequence[Objective], int]],
) -> float:
    """Return the seconds of some batches: objectives of which one batch is measured, and how many there are."""
    batches, seconds = Batches(network, device), 0.0
    with remembered_settings():
        for octave in recipe.octaves:
            short = replace(recipe, octaves=(replace(octave, steps=3),))
            for targets, count in counted:
                stamps: list[float] = []

                def stamp(_: int, means: torch.Tensor, into: list[float] = stamps) -> None:
                    means.cpu()  # a GPU has done the step only when it can be asked for
                    into.append(time.perf_counter())

                batches.descend(targets[: recipe.rows], short, seed, start, stamp)
                seconds += count * octave.steps * (stamps[2] - stamps[0]) / 2
    return seconds


def _frame_seconds(job: Job) -> float:
    """Return the seconds that a batch's frames take to be probed."""
    kept, done, seconds = frame_steps(job.recipe.steps, job.frames), 0, 0.0
    probe = Probe(job.network, job.recipe.rows, job.device)
    for octave in job.recipe.octaves:
        frames = sum(done < step <= done + octave.steps or step == done == 0 for step in kept)
        done += octave.steps
        if frames and job.responses:
            assert isinstance(octave.size, int)
            begun = time.perf_counter()
            probe.responses(torch.zeros(job.recipe.rows, 3, octave.size, octave.size), job.responses)
            seconds += frames * (time.perf_counter() - begun)
    return seconds


def _frame_bytes(job: Job) -> int:
    """Return the bytes of a batch's frames, which are held twice."""
    kept = len(frame_steps(job.recipe.steps, job.frames))
    return 2 * 4 * kept * job.recipe.rows * 3 * max(job.recipe.sizes) ** 2


def _memory(network: Network, recipe: Recipe, layers: Sequence[str]) -> int:
    return int(psutil.Process().memory_info().rss) + memory.needed(network, recipe, layers)
