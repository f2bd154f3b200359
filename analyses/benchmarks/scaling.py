"""Measure how work units scale: workers compared with the plain loop, the driver's memory, and a simulation.

    python -m analyses.benchmarks.scaling                # about five minutes on two cores
    python -m analyses.benchmarks.scaling --workers 1,2,4,8

Measured are the same descents (features of the bundled network, one thread per worker) by the plain loop and by workers
on Ray. Efficiency is the work of the plain loop divided by the seconds for which all workers together were ready, each
from the moment it had loaded the network to the end of the last batch. The start, until the last worker was ready, is
listed separately. The driver's resident memory is measured while workers make maps of two sizes.

Simulated are units drawn from the measured times and assigned largest first to 8 and 64 workers with the measured start
and delay. Only the spread of the times and these delays matter, so that the result applies to GPUs as far as the spread
of their times is similar.

Written are `scaling.json` (beside this file) and its table in `README.md`.
"""

from __future__ import annotations

import heapq
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from analyses.benchmarks import records
from analyses.support.commands import run
from analyses.support.settings import resolved_recipe
from featmap import Engine, load
from featmap.errors import FeatmapError
from featmap.runs import lifecycle, maximise, ray_engine
from featmap.runs import worker as runs_worker
from featmap.runs.job import Job
from featmap.runs.progress import Silent

ROWS, SIZE, LAYER = 4, 64, "inception4a"
SIMULATED, UNITS = (8, 64), 1660  # ResNet50's 26,560 features in batches of 16

DRIVER = """
import json, sys, psutil, torch
from torch import nn
from featmap import Engine, Recipe, load
from featmap.mapping import run as mapping
from featmap.runs import lifecycle
from featmap.runs.progress import Silent
from featmap.runs.worker import Worker
features, folder = int(sys.argv[1]), sys.argv[2]
rss = lambda: psutil.Process().memory_info().rss
class Look(Silent):
    seen = []
    def landed(self):
        self.seen.append(rss())
torch.manual_seed(0)
network = load(nn.Sequential(nn.Conv2d(3, features, 3)).eval(), input_size=8)
recipe = Recipe.named("pixels", 8, 1, rows=50).resolved(8)
job = mapping.similarity_job("0", network, recipe)
run, before = lifecycle.open_run(job, folder), rss()
lifecycle.carry_out(job, run, Worker, Look(), Engine("ray", workers=2, threads=1))
print(json.dumps({"features": features, "units": len(Look.seen), "before_MB": round(before / 1e6, 1),
    "first_unit_MB": round(Look.seen[0] / 1e6, 1), "peak_MB": round(max(Look.seen) / 1e6, 1)}))
"""


class Clock(Silent):
    """Record when each unit is stored."""

    def __init__(self) -> None:
        self.times: list[float] = [time.perf_counter()]

    def landed(self) -> None:
        """Record a unit."""
        self.times.append(time.perf_counter())


def make_job(batches: int, steps: int) -> Job:
    """Make the descents of a number of batches of the bundled network's features."""
    network = load()
    recipe = resolved_recipe(network, "pixels", SIZE, steps, rows=ROWS)
    channels = network.layer(LAYER, SIZE).channels
    if batches * ROWS > channels:
        raise FeatmapError(f"batches {batches}: {LAYER} has {channels} features; give at most {channels // ROWS}")
    return maximise.maximise_job([f"{LAYER}:{c}" for c in range(batches * ROWS)], network, recipe)


def time_plain_loop(job: Job) -> list[float]:
    """Measure the seconds of each batch in the plain loop."""
    with tempfile.TemporaryDirectory() as folder:
        opened, clock = lifecycle.open_run(job, Path(folder) / "run"), Clock()
        with opened.locked():
            lifecycle.carry_out(job, opened, runs_worker.Worker, clock, Engine(threads=1))
    return np.diff(clock.times)[1:].tolist()  # the first unit is the null image, after loading the network


def time_workers(job: Job, workers: int, work: float) -> dict[str, Any]:
    """Measure workers on a job that takes the plain loop `work` seconds."""
    engine, ready = Engine("ray", workers=workers, threads=1), list[float]()
    with tempfile.TemporaryDirectory() as folder:
        opened, task = lifecycle.open_run(job, Path(folder) / "run"), lifecycle.task_of(job, runs_worker.Worker, engine)
        with opened.locked():
            start = time.perf_counter()
            ray_engine.run(task, job.waves(), opened, Silent(), engine, 1, lambda _: ready.append(time.perf_counter()))
            end = time.perf_counter()
    available = sum(end - moment for moment in ready)
    return {
        "workers": workers,
        "ready": len(ready),
        "start": max(ready) - start,
        "seconds": end - start,
        "worker_seconds": available,
        "efficiency": work / available,
    }


def measure(job: Job, workers: list[int]) -> dict[str, Any]:
    """Measure the plain loop and every number of workers on the same work."""
    time_plain_loop(make_job(1, job.recipe.steps))  # one-time loading is not measured
    times = time_plain_loop(job)
    # One cluster for all runs; each starts its own workers in it.
    with ray_engine.connect(Engine("ray", workers=max(workers), threads=1), 1, max(workers)):
        rows = [time_workers(job, n, sum(times)) for n in workers]
    result = {"batches": len(times), "steps": job.recipe.steps, "work": sum(times)}
    return result | {"unit_seconds": [round(t, 4) for t in times], "rows": rows}


def driver_memory(features: int) -> dict[str, Any]:
    """Measure the driver's resident memory while two workers make a map."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", DRIVER, str(features), f"{folder}/run"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise FeatmapError(f"the driver of {features} features failed: {done.stderr.strip().splitlines()[-1:]}")
        return dict(json.loads(done.stdout.splitlines()[-1]))


def simulate(times: list[float], workers: int, start: float, delay: float, seed: int = 0) -> dict[str, Any]:
    """Simulate `UNITS` units assigned largest first.

    Unit times are drawn from `times`; every worker begins after `start` seconds and waits `delay` between two units.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    drawn = np.sort(rng.choice(times, UNITS))[::-1]
    free = [start] * workers
    for seconds in drawn:
        heapq.heapreplace(free, free[0] + float(seconds) + delay)
    whole, work = max(free), float(drawn.sum())
    return {
        "workers": workers,
        "units": UNITS,
        "hours": whole / 3600,
        "speed_up": work / whole,
        "efficiency": work / whole / workers,
    }


def format_table(result: dict[str, Any]) -> str:
    """Write the numbers as Markdown, with measured and simulated ones marked."""
    machine, measured, cores = result["machine"], result["measured"], result["machine"]["cores"]
    lines = [
        "## Workers",
        "",
        f"`python -m analyses.benchmarks.scaling` on {machine['processor']}, {cores} cores; "
        f"{measured['batches']} batches of {ROWS} features of {LAYER}, {SIZE} pixels, {measured['steps']} steps, "
        "one thread per worker: "
        f"{measured['work']:.1f} s of work for the plain loop.",
        "",
        "| | workers | start, s | total, s | speed-up without the start | efficiency per worker | per core in use |",
        "|---|---|---|---|---|---|---|",
        f"| measured | plain loop | | {measured['work']:.1f} | 1.00 | 100 % | 100 % |",
    ]
    for row in measured["rows"]:
        n, share = row["ready"], row["efficiency"]
        lines.append(
            f"| measured | Ray, {n} | {row['start']:.1f} | {row['seconds']:.1f} | "
            f"{n * share:.2f} | {100 * share:.0f} % | {100 * share * n / min(n, cores):.0f} % |"
        )
    for row in result["simulated"]["rows"]:
        lines.append(
            f"| **simulated** | {row['workers']} | {result['simulated']['start']:.1f} | {3600 * row['hours']:.1f} | "
            f"{row['speed_up']:.1f} (with the start) | {100 * row['efficiency']:.0f} % | |"
        )
    lines += [
        "",
        f"Simulated are {UNITS:,} units (ResNet50's convolutions by 16) with the measured distribution of unit times, "
        "assigned largest first, with the measured start of a worker and "
        f"{1000 * result['simulated']['delay']:.0f} ms per unit for assigning it; no GPU was used.",
        "",
        "| features | units | driver's resident memory before, MB | at its peak, MB |",
        "|---|---|---|---|",
    ]
    for row in result["driver"]:
        lines.append(f"| {row['features']:,} | {row['units']} | {row['before_MB']:.0f} | {row['peak_MB']:.0f} |")
    return "\n".join(lines)


def main(
    workers: Annotated[str, typer.Option(help="Numbers of workers, joined by commas.")] = "1,2,4",
    batches: Annotated[int, typer.Option(help="Number of batches.")] = 64,
    steps: Annotated[int, typer.Option(help="Steps of a descent.")] = 40,
    features: Annotated[str, typer.Option(help="Sizes of the maps for the driver's memory.")] = "500,5000",
    out: Annotated[Path, typer.Option(help="The numbers, as JSON.")] = records.FOLDER / "scaling.json",
    readme: Annotated[Path, typer.Option(help="The table is written between marks in this file.")] = records.README,
) -> None:
    """Measure workers and the driver's memory; simulate many GPUs."""
    counts, sizes = (_whole_numbers(text, name) for text, name in ((workers, "--workers"), (features, "--features")))
    if batches < 1 or steps < 1:
        raise FeatmapError(f"batches {batches}, steps {steps}: give 1 or more")
    measured = measure(make_job(batches, steps), counts)
    one = min(measured["rows"], key=lambda row: int(row["workers"]))
    delay = max(0.0, (one["worker_seconds"] - measured["work"]) / batches)
    rows = [simulate(measured["unit_seconds"], n, one["start"], delay) for n in SIMULATED]
    result = {
        "machine": records.describe_machine("ray", "zarr"),
        "measured": measured,
        "driver": [driver_memory(n) for n in sizes],
        "simulated": {"start": one["start"], "delay": delay, "rows": rows},
    }
    records.write_json(out, result)
    records.write_table("scaling", format_table(result), readme)
    print(format_table(result))


def _whole_numbers(text: str, option: str) -> list[int]:
    """Read whole numbers from an option."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise FeatmapError(f"{option} {text!r}: give whole numbers from 1, joined by commas")
    return numbers


if __name__ == "__main__":
    run(main)
