"""How work units scale: workers beside the plain loop, the driver's memory, and many GPUs in a simulation.

    python -m analyses.benchmarks.scaling                # about four minutes on two cores
    python -m analyses.benchmarks.scaling --batches 64 --steps 60 --workers 1,2,4,8

Measured: the same descents (features of the bundled network, one thread a worker) by the plain loop and by workers on
Ray, for so many batches and for twice as many. The difference of the two is work alone; what is left of the first is
the start of the workers. Then the driver's resident memory while workers make maps of two sizes.

Simulated: units drawn from the measured times, handed out largest first to 8 and 64 workers, each of which starts and
answers as slowly as was measured. Only the spread of the times and these delays count, so that it stands for GPUs as
far as their times spread alike.

Written: `scaling.json` (beside this file) and its table in `README.md`.
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
import torch
import typer

from analyses.benchmarks import records
from analyses.commands import run
from featmap import Engine, api, cluster, load, mapping
from featmap.engine import Silent
from featmap.errors import FeatmapError
from featmap.runs import Job

ROWS, SIZE, LAYER = 4, 64, "inception4a"
SIMULATED, UNITS = (8, 64), 1660  # ResNet50's 26,560 features in batches of 16

DRIVER = """
import json, sys, psutil, torch
from torch import nn
from featmap import Engine, load, mapping
from featmap.engine import Silent
features, folder = int(sys.argv[1]), sys.argv[2]
rss = lambda: psutil.Process().memory_info().rss
class Look(Silent):
    seen = []
    def landed(self):
        self.seen.append(rss())
torch.manual_seed(0)
network = load(nn.Sequential(nn.Conv2d(3, features, 3)).eval(), input_size=8)
recipe = mapping.resolve(network, torch.device("cpu"), "fast", 8, 1, rows=50)
job, _ = mapping.similarity_job("0", network, recipe)
made, before = mapping.open_run(job, folder), rss()
mapping.carry_out(job, made, Look(), Engine("ray", workers=2, threads=1))
print(json.dumps({"features": features, "units": len(Look.seen), "before_MB": round(before / 1e6, 1),
    "first_unit_MB": round(Look.seen[0] / 1e6, 1), "peak_MB": round(max(Look.seen) / 1e6, 1)}))
"""


class Clock(Silent):
    """Remembers when each unit landed."""

    def __init__(self) -> None:
        self.times: list[float] = [time.perf_counter()]

    def landed(self) -> None:
        """Remember it."""
        self.times.append(time.perf_counter())


def job_of(batches: int, steps: int) -> Job:
    """Return the descents of so many batches of the bundled network's features."""
    network = load()
    recipe = mapping.resolve(network, torch.device("cpu"), "fast", SIZE, steps, rows=ROWS)
    channels = network.layer(LAYER, SIZE).channels
    if batches * ROWS > channels:
        raise FeatmapError(f"batches {batches}: {LAYER} has {channels} features; give at most {channels // ROWS // 2}")
    return api.maximise_job([f"{LAYER}:{c}" for c in range(batches * ROWS)], network, recipe)


def timed(job: Job, engine: Engine) -> tuple[float, list[float]]:
    """Return the seconds that a run takes, and those between the landings of its units."""
    with tempfile.TemporaryDirectory() as folder:
        made, clock = mapping.open_run(job, Path(folder) / "run"), Clock()
        begun = time.perf_counter()
        with made.held():
            mapping.carry_out(job, made, clock, engine)
        return time.perf_counter() - begun, np.diff(clock.times).tolist()


def measure(batches: int, steps: int, workers: list[int]) -> dict[str, Any]:
    """Return the seconds of the plain loop and of every number of workers, for two amounts of the same work."""
    jobs = [job_of(n, steps) for n in (batches, 2 * batches)]
    timed(job_of(1, steps), Engine(threads=1))  # what is loaded once is not measured
    plain = [timed(job, Engine(threads=1)) for job in jobs]
    rows = [{"workers": 0} | _work_and_start(*(seconds for seconds, _ in plain))]
    for n in workers:
        seconds = [timed(job, Engine("ray", workers=n, threads=1))[0] for job in jobs]
        rows.append({"workers": n} | _work_and_start(*seconds))
    for row in rows:
        row["speed_up"] = rows[0]["work"] / row["work"]
    # the first landing of the plain loop is the null image, behind the loading of the network
    return {"batches": batches, "steps": steps, "rows": rows, "unit_seconds": [round(t, 4) for t in plain[1][1][1:]]}


def _work_and_start(one: float, two: float) -> dict[str, float]:
    work = max(two - one, 1e-9)
    return {"seconds": one, "seconds_twice": two, "work": work, "start": max(one - work, 0.0)}


def driver(features: int) -> dict[str, Any]:
    """Return the driver's resident memory while two workers make a map of so many features."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", DRIVER, str(features), f"{folder}/run"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise FeatmapError(f"the driver of {features} features failed: {done.stderr.strip().splitlines()[-1:]}")
        return dict(json.loads(done.stdout.splitlines()[-1]))


def simulate(times: list[float], workers: int, start: float, delay: float, seed: int = 0) -> dict[str, Any]:
    """Return how long `UNITS` units take that are handed out largest first, and the efficiency of that.

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


def table(found: dict[str, Any]) -> str:
    """Return the numbers as Markdown, which says what is measured and what is simulated."""
    machine, measured, cores = found["machine"], found["measured"], found["machine"]["cores"]
    lines = [
        "## Workers",
        "",
        f"`python -m analyses.benchmarks.scaling` on {machine['processor']}, {cores} cores; "
        f"{measured['batches']} and {2 * measured['batches']} batches of {ROWS} features of {LAYER}, {SIZE} pixels, "
        f"{measured['steps']} steps, one thread a worker.",
        "",
        "| | workers | start, s | work, s | speed-up | per worker | per core in use |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in measured["rows"]:
        n, up = row["workers"], row["speed_up"]
        name = f"Ray, {n}" if n else "plain loop"
        shares = f"{100 * up / n:.0f} % | {100 * up / min(n, cores):.0f} %" if n else "100 % | 100 %"
        lines.append(f"| measured | {name} | {row['start']:.1f} | {row['work']:.1f} | {up:.2f} | {shares} |")
    for row in found["simulated"]["rows"]:
        share = f"{100 * row['efficiency']:.0f} %"
        lines.append(
            f"| **simulated** | {row['workers']} | {found['simulated']['start']:.1f} | "
            f"{3600 * row['hours']:.0f} | {row['speed_up']:.1f} | {share} | |"
        )
    lines += [
        "",
        f"Simulated are {UNITS:,} units (ResNet50's convolutions by 16) from the measured distribution of unit times, "
        "handed out largest first, with the measured start of a worker and "
        f"{1000 * found['simulated']['delay']:.0f} ms a unit for handing it out; no GPU was there.",
        "",
        "| features | units | driver's resident memory before, MB | at its peak, MB |",
        "|---|---|---|---|",
    ]
    for row in found["driver"]:
        lines.append(f"| {row['features']:,} | {row['units']} | {row['before_MB']:.0f} | {row['peak_MB']:.0f} |")
    return "\n".join(lines)


def main(
    workers: Annotated[str, typer.Option(help="Numbers of workers, joined by commas.")] = "1,2,4",
    batches: Annotated[int, typer.Option(help="Batches of the smaller amount of work.")] = 8,
    steps: Annotated[int, typer.Option(help="Steps of a descent.")] = 20,
    features: Annotated[str, typer.Option(help="Sizes of the maps that the driver's memory is taken of.")] = "500,5000",
    out: Annotated[Path, typer.Option(help="The numbers, as JSON.")] = records.FOLDER / "scaling.json",
    readme: Annotated[Path, typer.Option(help="The table is written between marks in this file.")] = records.README,
) -> None:
    """Measure workers against the plain loop and the driver's memory; simulate many GPUs."""
    counts, sizes = (_whole(text, name) for text, name in ((workers, "--workers"), (features, "--features")))
    # one cluster for all: each run starts its own workers in it
    with cluster.connected(Engine("ray", workers=max(counts), threads=1), 1, max(counts)):
        measured = measure(batches, steps, counts)
    one = next((r for r in measured["rows"] if r["workers"] == 1), measured["rows"][-1])
    delay = max(0.0, (one["work"] - measured["rows"][0]["work"]) / batches) if one["workers"] == 1 else 0.0
    rows = [simulate(measured["unit_seconds"], n, one["start"], delay) for n in SIMULATED]
    found = {
        "machine": records.machine("ray", "zarr"),
        "measured": measured,
        "driver": [driver(n) for n in sizes],
        "simulated": {"start": one["start"], "delay": delay, "rows": rows},
    }
    records.write(out, found)
    records.write_table("scaling", table(found), readme)
    print(table(found))


def _whole(text: str, option: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise FeatmapError(f"{option} {text!r}: give whole numbers from 1, joined by commas")
    return found


if __name__ == "__main__":
    run(main)
