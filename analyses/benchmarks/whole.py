"""Measure whole commands from start to last page: seconds, peak memory and share of the machine's peak.

    python -m analyses.benchmarks.whole                        # the jobs meant for this machine
    python -m analyses.benchmarks.whole --job network          # all inception features, on a GPU

Each job is a user's command in a process of its own, in an empty folder. The share of the peak is the floating-point
operations of all steps, forward and back to the image, divided by the seconds of descents and probe and by the rate
that a large matrix product, or a 1 x 1 convolution where that is faster, reaches on the same device in the same
precision. A job that was not run here keeps the stored row, or is "not measured".
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
import typer

from analyses.benchmarks import records, steps
from analyses.support.commands import run
from featmap import Network, load
from featmap.cli.console import err
from featmap.errors import FeatmapError
from featmap.network import selection
from featmap.optimize.recipe import Recipe
from featmap.runs.device import deterministic_settings, select_device
from featmap.runs.store import Run


@dataclass(frozen=True)
class Job:
    """A command to measure.

    Parameters
    ----------
    words : str
        What it shows.
    arguments : tuple of str
        Arguments of the command.
    device : str
        Device that it is meant for.
    aim : str
        The aim in words.
    command : str, default "similarity"
        Command of `featmap`.
    most : float, default None
        Seconds of the aim; None where it is no time.
    """

    words: str
    arguments: tuple[str, ...]
    device: str
    aim: str
    command: str = "similarity"
    most: float | None = None


JOBS = {
    "heatmap": Job(
        "all 512 features of inception4a, start to heatmap and page",
        ("--layer", "inception4a"),
        "cpu",
        "under 5 minutes on two cores",
        most=300.0,
    ),
    "wide": Job(
        "2,048 features of ResNet50's layer4.2 (random weights; few steps, since memory does not depend on them)",
        ("--model", "resnet50", "--weights", "random", "--layer", "layer4.2", "--steps", "2"),
        "cpu",
        "under 4,295 MB",
    ),
    "network": Job(
        "all 5,488 inception features of GoogLeNet, `pixels-long`, bfloat16, 128 rows",
        ("--layer", "inception*", "--recipe", "pixels-long", "--precision", "bfloat16", "--rows", "128"),
        "cuda",
        "under 60 seconds and 0.30 of the peak on an H100",
    ),
    "screening": Job(
        "all 262,144 pairs of inception4a and inception4b predicted, 250 of them measured with three seeds",
        ("--layers", "inception4a", "inception4b", "--screen", "--size", "64", "--steps", "40"),
        "cpu",
        "under 20 minutes on two cores",
        "interact",
        1200.0,
    ),
}


COMMAND = (sys.executable, "-c", "from featmap.cli.app import main; main()")
STARTS = {("--help",): 0.5, ("layers",): 4.0}
"""Commands that only start, and the most seconds that they should take."""


def time_starts() -> dict[str, float]:
    """Measure the seconds of commands that only start, each the best of three."""
    seconds = {}
    for arguments in STARTS:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            subprocess.run([*COMMAND, *arguments], stdout=subprocess.DEVNULL, check=True)
            times.append(time.perf_counter() - start)
        seconds[" ".join(arguments)] = min(times)
    return seconds


def run_command(arguments: tuple[str, ...], device: str, folder: Path) -> tuple[float, float]:
    """Run a command of `featmap`; return its seconds and peak resident memory in MB.

    Raises
    ------
    FeatmapError
        If it ends with a status other than 0.
    """
    command = [*COMMAND, *arguments, "--device", device, "--out", str(folder)]
    start, peak = time.perf_counter(), 0
    with psutil.Popen(command, stdout=sys.stderr) as process:
        while process.poll() is None:
            peak = max(peak, _most_resident(process))
            time.sleep(0.05)
        code = process.returncode
    if code:
        raise FeatmapError(f"featmap {' '.join(arguments)} ended with status {code}; see its output above")
    return time.perf_counter() - start, peak / 1e6


def _most_resident(process: psutil.Popen) -> int:
    """Read the peak of a process's resident memory from Linux; elsewhere the present value."""
    try:
        status = Path(f"/proc/{process.pid}/status")
        if not status.is_file():
            return int(process.memory_info().rss)
        lines = status.read_text(encoding="utf-8").splitlines()
        return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (psutil.Error, OSError):  # the process has ended meanwhile
        return 0


def count_operations(network: Network, identity: dict[str, Any]) -> float:
    """Count the floating-point operations of all steps of a similarity run.

    Forward, and back to the image.
    """
    recipe = Recipe.from_identity(identity["recipe"])
    seeds = len(identity["seeds"])
    layers = selection.select_layers(_layers(identity), network, recipe.size)
    whole = 0.0
    for layer in layers:
        images = seeds * network.layer(layer, recipe.size).channels
        for octave, side in zip(recipe.octaves, recipe.sizes, strict=True):
            whole += images * octave.steps * steps.count_flops(network, layer, side)
    return whole


def _layers(identity: dict[str, Any]) -> list[str]:
    """List the layers of a run."""
    return list(identity["layers"]) if "layers" in identity else [identity["layer"]]


def peak_rate(where: torch.device, precision: str) -> float:
    """Measure the operations per second of a device, the best of `steps.PEAKS`."""
    # A GPU finishes a matrix of a CPU's size before the next one is requested.
    side = steps.MATRIX if where.type == "cpu" else 4 * steps.MATRIX
    with deterministic_settings():
        return max(steps.measure_peaks(precision, where, side).values())


def measure(name: str, device: str | None = None) -> dict[str, Any]:
    """Measure one job."""
    job = JOBS[name]
    where = select_device(device or job.device)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        seconds, memory = run_command((job.command, *job.arguments), where.type, out)
        manifest = Run.read(out).manifest
    recipe = Recipe.from_identity(manifest.identity["recipe"])
    found = {
        "machine": records.describe_machine("torchvision"),
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu",
        "seconds": seconds,
        "descents_s": manifest.timings["descent_and_probe"],
        "memory_MB": memory,
        "size": recipe.size,
        "steps": recipe.steps,
        "sha256": manifest.identity["model"]["sha256"],
    }
    if job.command != "similarity":  # the runs inside a screening have steps of their own
        return found
    options = dict(zip(job.arguments[::2], job.arguments[1::2], strict=True))
    network = load(options.get("--model", "reference"), options.get("--weights"))
    rate = count_operations(network, manifest.identity) / found["descents_s"]
    return found | {"gflops": rate / 1e9, "peak_gflops": peak_rate(where, recipe.precision) / 1e9}


def format_table(jobs: dict[str, Any]) -> str:
    """Write all jobs as Markdown."""
    lines = [
        "## Whole commands",
        "",
        "`python -m analyses.benchmarks.whole`: a command in a process of its own, from its start to its page. Of a "
        "screening, the descents are the solo runs that predictions are made from; the rest is nearly all exact "
        "measurements.",
        "",
        "| job | device | seconds | of these, descents and probe | peak memory, MB | share of the peak | aim |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, job in JOBS.items():
        stored = jobs.get(name)
        if stored is None:
            lines.append(f"| {job.words} | {job.device} | not measured | | | | {job.aim} |")
            continue
        device = stored["device"]
        if device == "cpu":
            device = f"{stored['machine']['processor']}, {stored['machine']['cores']} cores"
        over = 0.0 if job.most is None else stored["seconds"] / job.most - 1
        aim = job.aim + (f": missed by {over:.0%}" if over > 0 else "")
        share = f"{stored['gflops'] / stored['peak_gflops']:.2f}" if "gflops" in stored else "-"
        lines.append(
            f"| {job.words}; {stored['size']} pixels, {stored['steps']} steps | {device} | {stored['seconds']:.0f} | "
            f"{stored['descents_s']:.0f} | {stored['memory_MB']:,.0f} | "
            f"{share} | {aim} |"
        )
    if "starts" in jobs:
        parts = [
            f"`featmap {' '.join(a)}` {jobs['starts'][' '.join(a)]:.2f} s (aim: {aim:g})" for a, aim in STARTS.items()
        ]
        lines += ["", f"From start to end: {', '.join(parts)}."]
    return "\n".join(lines)


def main(
    job: Annotated[list[str] | None, typer.Option(help=f"One or more of {', '.join(JOBS)}.")] = None,
    device: Annotated[str | None, typer.Option(help="Device instead of the job's own.")] = None,
    out: Annotated[Path, typer.Option(help="The numbers, as JSON.")] = records.FOLDER / "whole.json",
    readme: Annotated[Path, typer.Option(help="The table is written between marks in this file.")] = records.README,
) -> None:
    """Measure whole commands on this machine."""
    for name in job or []:
        if name not in JOBS:
            raise FeatmapError(f"job {name!r} is unknown; allowed: {', '.join(JOBS)}")
    here = [name for name, j in JOBS.items() if torch.cuda.is_available() == (j.device == "cuda")]
    jobs = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    for name in job or here:
        err().print(f"{name}: featmap {JOBS[name].command} {' '.join(JOBS[name].arguments)}")
        jobs[name] = measure(name, device)
        records.write_json(out, jobs)
    if not job:
        jobs["starts"] = time_starts()
        records.write_json(out, jobs)
    records.write_table("whole", format_table(jobs), readme)
    print(format_table(jobs))


if __name__ == "__main__":
    run(main)
