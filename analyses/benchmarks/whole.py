"""What whole commands cost, from their start to their last page: seconds, peak memory, share of the machine's peak.

    python -m analyses.benchmarks.whole                        # the jobs that this machine is meant for
    python -m analyses.benchmarks.whole --job network          # all inception features, on a GPU

Each job is the command of a user in a process of its own, in an empty folder. Its descents' share of the peak is the
floating-point operations of all its images' steps, forward and back to the image, over the seconds of descents and
probe and over what a large matrix product, or a 1 x 1 convolution where that is faster, reaches on the same device in
the same precision. A job that was not run here keeps the row that was stored before, or says "not measured".
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
    """A command, what it shows in words, the device that it is meant for, the aim in words."""

    words: str
    arguments: tuple[str, ...]
    device: str
    aim: str


JOBS = {
    "heatmap": Job(
        "all 512 features of inception4a, start to heatmap and page",
        ("--layer", "inception4a"),
        "cpu",
        "under 5 minutes on two cores",
    ),
    "wide": Job(
        "2,048 features of ResNet50's layer4.2 (random weights; few steps, as memory does not depend on them)",
        ("--model", "resnet50", "--weights", "random", "--layer", "layer4.2", "--steps", "2"),
        "cpu",
        "under 4,295 MB",
    ),
    "network": Job(
        "all 5,488 inception features of GoogLeNet, `standard`, bfloat16, 128 rows",
        ("--layer", "inception*", "--recipe", "standard", "--precision", "bfloat16", "--rows", "128"),
        "cuda",
        "under 60 seconds and 0.30 of the peak on an H100",
    ),
}


COMMAND = (sys.executable, "-c", "from featmap.cli.app import main; main()")
STARTS = {("--help",): 0.5, ("layers",): 4.0}
"""Commands that only start, and the seconds that they are meant to take at most."""


def starting() -> dict[str, float]:
    """Return the seconds of commands that only start, each the best of three."""
    found = {}
    for arguments in STARTS:
        took = []
        for _ in range(3):
            begun = time.perf_counter()
            subprocess.run([*COMMAND, *arguments], stdout=subprocess.DEVNULL, check=True)
            took.append(time.perf_counter() - begun)
        found[" ".join(arguments)] = min(took)
    return found


def carried_out(arguments: tuple[str, ...], device: str, folder: Path) -> tuple[float, float]:
    """Run `featmap similarity` with these arguments; return its seconds and the peak of its resident memory in MB.

    Raises
    ------
    FeatmapError
        if it ends with a status that is not 0.
    """
    command = [*COMMAND, "similarity", *arguments, "--device", device, "--out", str(folder)]
    begun, peak = time.perf_counter(), 0
    with psutil.Popen(command, stdout=sys.stderr) as process:
        while process.poll() is None:
            peak = max(peak, _most_resident(process))
            time.sleep(0.05)
        code = process.returncode
    if code:
        raise FeatmapError(f"featmap {' '.join(arguments)} ended with status {code}; see what it said above")
    return time.perf_counter() - begun, peak / 1e6


def _most_resident(process: psutil.Popen) -> int:
    """Return the peak of a process's resident memory so far as Linux accounts for it; elsewhere what it is now."""
    try:
        status = Path(f"/proc/{process.pid}/status")
        if not status.is_file():
            return int(process.memory_info().rss)
        lines = status.read_text(encoding="utf-8").splitlines()
        return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (psutil.Error, OSError):  # it ended between two looks
        return 0


def operations(network: Network, manifest: dict[str, Any]) -> float:
    """Return the floating-point operations of all steps of a similarity run, forward and back to the image."""
    recipe = Recipe.from_identity(manifest["identity"]["recipe"])
    seeds = len(manifest["identity"]["seeds"])
    layers = selection.select_layers(_layers(manifest["identity"]), network, recipe.size)
    whole = 0.0
    for layer in layers:
        images = seeds * network.layer(layer, recipe.size).channels
        for octave, side in zip(recipe.octaves, recipe.sizes, strict=True):
            whole += images * octave.steps * steps.flops(network, layer, side)
    return whole


def _layers(identity: dict[str, Any]) -> list[str]:
    return list(identity["layers"]) if "layers" in identity else [identity["layer"]]


def peak(where: torch.device, precision: str) -> float:
    """Return the operations a second that a device reaches, the better of `steps.PEAKS`."""
    # a GPU is done with a matrix of a CPU's size before it is asked for the next one
    side = steps.MATRIX if where.type == "cpu" else 4 * steps.MATRIX
    with deterministic_settings():
        return max(steps.peaks(precision, where, side).values())


def measure(name: str, device: str | None = None) -> dict[str, Any]:
    """Return what one job costs."""
    job = JOBS[name]
    where = select_device(device or job.device)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        seconds, memory = carried_out(job.arguments, where.type, out)
        manifest = Run.read(out).manifest
        given = dict(zip(job.arguments[::2], job.arguments[1::2], strict=True))
        network = load(given.get("--model", "reference"), given.get("--weights"))
        descents = manifest["timings"]["descent_and_probe"]
        recipe = Recipe.from_identity(manifest["identity"]["recipe"])
        rate = operations(network, manifest) / descents
    top = peak(where, recipe.precision)
    return {
        "machine": records.machine("torchvision"),
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu",
        "seconds": seconds,
        "descents_s": descents,
        "memory_MB": memory,
        "size": recipe.size,
        "steps": recipe.steps,
        "gflops": rate / 1e9,
        "peak_gflops": top / 1e9,
        "sha256": network.sha256,
    }


def table(found: dict[str, Any]) -> str:
    """Return all jobs as Markdown."""
    lines = [
        "## Whole commands",
        "",
        "`python -m analyses.benchmarks.whole`: `featmap similarity` in a process of its own, from its start to its "
        "page.",
        "",
        "| job | device | seconds | of these descents and probe | peak memory, MB | share of the peak | aim |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, job in JOBS.items():
        known = found.get(name)
        if known is None:
            lines.append(f"| {job.words} | {job.device} | not measured | | | | {job.aim} |")
            continue
        device = known["device"]
        if device == "cpu":
            device = f"{known['machine']['processor']}, {known['machine']['cores']} cores"
        lines.append(
            f"| {job.words}; {known['size']} pixels, {known['steps']} steps | {device} | {known['seconds']:.0f} | "
            f"{known['descents_s']:.0f} | {known['memory_MB']:,.0f} | {known['gflops'] / known['peak_gflops']:.2f} | "
            f"{job.aim} |"
        )
    if "starts" in found:
        parts = [
            f"`featmap {' '.join(a)}` {found['starts'][' '.join(a)]:.2f} s (aim: {aim:g})" for a, aim in STARTS.items()
        ]
        lines += ["", f"From start to end: {', '.join(parts)}."]
    return "\n".join(lines)


def main(
    job: Annotated[list[str] | None, typer.Option(help=f"One or more of {', '.join(JOBS)}.")] = None,
    device: Annotated[str | None, typer.Option(help="In place of the one that the job is meant for.")] = None,
    out: Annotated[Path, typer.Option(help="The numbers, as JSON.")] = records.FOLDER / "whole.json",
    readme: Annotated[Path, typer.Option(help="The table is written between marks in this file.")] = records.README,
) -> None:
    """Measure what whole commands cost on this machine."""
    for name in job or []:
        if name not in JOBS:
            raise FeatmapError(f"job {name!r} is unknown; allowed: {', '.join(JOBS)}")
    here = [name for name, j in JOBS.items() if torch.cuda.is_available() == (j.device == "cuda")]
    found = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    for name in job or here:
        err().print(f"{name}: featmap similarity {' '.join(JOBS[name].arguments)}")
        found[name] = measure(name, device)
        records.write(out, found)
    if not job:
        found["starts"] = starting()
        records.write(out, found)
    records.write_table("whole", table(found), readme)
    print(table(found))


if __name__ == "__main__":
    run(main)
