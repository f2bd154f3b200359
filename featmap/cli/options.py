"""The options that several commands share: their types and help, and the network and recipe that they name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featmap.errors import FeatmapError

if TYPE_CHECKING:
    from featmap.network.model import Network
    from featmap.optimize.recipe import Recipe
    from featmap.runs.engine import Engine
    from featmap.runs.estimate import Estimate
    from featmap.runs.job import Job

Model = Annotated[str, typer.Option(help="reference, a torchvision classification network, or package.module:factory.")]
Weights = Annotated[
    str | None, typer.Option(help="A .safetensors file or state dict, random, random:SEED, or a published set's name.")
]
Mean = Annotated[str | None, typer.Option(help="Input mean of images in [0, 1]: three numbers, joined by commas.")]
Std = Annotated[str | None, typer.Option(help="Input standard deviation: three numbers, joined by commas.")]
InputSize = Annotated[int | None, typer.Option(help="The network's own input size in pixels.")]
RecipeName = Annotated[str | None, typer.Option("--recipe", help="See `featmap recipes`. Default: by device.")]
Size = Annotated[int | None, typer.Option(help="Size of the finished images in pixels.")]
Steps = Annotated[int | None, typer.Option(help="Steps of the descent, all octaves together.")]
Metric = Annotated[str | None, typer.Option(help="Distance to C: l1, l2, linf or linf-elementwise.")]
Constant = Annotated[float | None, typer.Option("--C", help="The large constant (no effect under l1).")]
Rows = Annotated[int | None, typer.Option(help="Images descended together; part of the recipe.")]
Precision = Annotated[
    str | None, typer.Option(help="Of the descent's arithmetic: float32 or bfloat16. Responses are always float32.")
]
Seed = Annotated[int | None, typer.Option(help="Seed of the noise. Default: the recipe's.")]
Seeds = Annotated[int, typer.Option(help="How many seeds, counted up from --seed.")]
Start = Annotated[Path | None, typer.Option(help="A photograph to start from instead of noise.")]
Frames = Annotated[int, typer.Option(help="Keep every image after each so many steps, too; 0 keeps none.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Out = Annotated[Path | None, typer.Option(help="Run folder. Default: runs/<name of the settings>.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Measure a few steps; print time, memory and disk; do nothing.")
]
EngineName = Annotated[
    str, typer.Option("--engine", help="Where descents run: here, or ray (pip install 'featmap[ray]').")
]
Workers = Annotated[
    int | None, typer.Option(help="With --engine ray: processes that hold the network. Default: one a GPU, or a core.")
]
Threads = Annotated[
    int | None, typer.Option(help="Of each worker, or here: bits depend on it. Default: this machine's, shared out.")
]
Address = Annotated[
    str | None, typer.Option(help="With --engine ray: of a running cluster, or auto. Default: one for this run.")
]
Features = Annotated[str, typer.Option(help="Channels such as 0-15,42, or all.")]


def _numbers(text: str | None, option: str) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise FeatmapError(f"{option} {text!r}: write three numbers joined by commas, such as 0.5,0.5,0.5") from None


def read_layers(text: str, option: str) -> list[str]:
    """Return the layers that an option names, joined by commas, each once."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise FeatmapError(f"{option} names no layer; write {option} inception4a,inception4b")
    return names


def read_network(model: str, weights: str | None, mean: str | None, std: str | None, input_size: int | None) -> Network:
    """Load the network and print the line that names it."""
    from featmap.cli import console
    from featmap.network import model as models

    network = models.load(
        model, weights, mean=_numbers(mean, "--mean"), std=_numbers(std, "--std"), input_size=input_size
    )
    console.out().print(str(network))
    return network


def read_recipe(
    network: Network,
    device: str,
    name: str | None,
    size: int | None,
    steps: int | None,
    metric: str | None,
    constant: float | None,
    rows: int | None,
    precision: str | None,
) -> Recipe:
    """Return the recipe with the changes that were asked for; say so where one has no effect."""
    from featmap.cli import console
    from featmap.mapping import run as mapping
    from featmap.runs import device as devices

    changes = {"metric": metric, "C": constant, "rows": rows, "precision": precision}
    recipe = mapping.resolve(network, devices.device(device), name, size, steps, **changes)
    if constant is not None and recipe.metric == "l1":
        console.err().print("note: under l1 the distance to C is unsigned, so C has no effect on the images")
    return recipe


def read_engine(name: str, workers: int | None, threads: int | None, address: str | None) -> Engine:
    """Return the engine that the options name, and take its threads for all that this process does."""
    import torch

    from featmap.runs.engine import Engine

    engine = Engine(name, workers, threads, address)
    torch.set_num_threads(engine.threads_of_each(torch.get_num_threads()))
    return replace(engine, threads=torch.get_num_threads())


def print_estimate(found: Estimate, what: str, folder: Path) -> None:
    """Print how long something would take, in how much memory and on how much disk."""
    from featmap.cli import console

    minutes = f"{found.seconds:.0f} s" if found.seconds < 120 else f"{found.seconds / 60:.1f} minutes"
    console.out().print(
        f"{what}: about {minutes}, {found.memory / 1e9:.1f} GB of memory, {found.disk / 1e6:,.0f} MB on disk "
        f"({found.free / 1e9:,.1f} GB free); it would go to {folder}"
    )


def print_dry_run(job: Job, folder: Path) -> None:
    """Print how long a job would take, in how much memory and on how much disk."""
    from featmap.runs import estimate

    what = (
        f"{len(job.objectives)} images x {len(job.seeds)} seed(s), {job.recipe.steps} steps, {job.recipe.size} pixels"
    )
    print_estimate(estimate.estimate(job, folder), what, folder)


def watched(work: Callable[[Any], Any]) -> Any:
    """Run `work` with progress bars, and print the warnings it raises as notes."""
    from featmap.cli.console import Bars

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        with Bars() as bars:
            result = work(bars)
    for text in dict.fromkeys(str(w.message) for w in caught if w.category.__module__.startswith("featmap")):
        bars.note(f"note: {text}")
    return result
