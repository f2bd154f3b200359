"""Options that several commands share, in groups, and what the library makes of them."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from featmap.errors import FeatmapError

if TYPE_CHECKING:
    from featmap.network.model import Network
    from featmap.optimize.recipe import Recipe
    from featmap.runs.engine import Execution
    from featmap.runs.estimate import Estimate
    from featmap.runs.job import Job

Mean = Annotated[str | None, typer.Option(help="Input mean of images in [0, 1]: three numbers, joined by commas.")]
Std = Annotated[str | None, typer.Option(help="Input standard deviation: three numbers, joined by commas.")]
InputSize = Annotated[int | None, typer.Option(help="The network's own input size in pixels.")]
Weights = Annotated[
    str | None,
    typer.Option(help="A .safetensors file or state dict, random, random:SEED, or the name of a published set."),
]
Features = Annotated[str, typer.Option(help="Channels such as 0-15,42, or all.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Measure a few steps; print time, memory and disk; do nothing.")
]
Out = Annotated[Path | None, typer.Option(help="Run folder. Default: runs/<name of the settings>.")]


@dataclass
class NetworkOptions:
    """Options that name a network.

    Parameters
    ----------
    model, weights, mean, std, input_size
        See `featmap.load`.
    """

    model: Annotated[
        str, typer.Option(help="reference, a torchvision classification network, or package.module:factory.")
    ] = "reference"
    weights: Weights = None
    mean: Mean = None
    std: Std = None
    input_size: InputSize = None

    def load(self) -> Network:
        """Load the network and print the line that names it.

        Returns
        -------
        Network
            The network.
        """
        return load_network(self.model, self.weights, self.mean, self.std, self.input_size)


@dataclass
class RunNetworkOptions:
    """Options that name a network where a run has one of its own.

    Parameters
    ----------
    model, weights, mean, std, input_size
        See `featmap.load`; without a model the network of the run is used.
    """

    model: Annotated[str | None, typer.Option(help="Default: the network of the run.")] = None
    weights: Weights = None
    mean: Mean = None
    std: Std = None
    input_size: InputSize = None

    def load(self) -> Network | None:
        """Load the network and print the line that names it.

        Returns
        -------
        Network or None
            None where no model is named.

        Raises
        ------
        FeatmapError
            If the other options are given without a model.
        """
        rest = (self.weights, self.mean, self.std, self.input_size)
        if self.model is not None:
            return load_network(self.model, *rest)
        if any(v is not None for v in rest):
            raise FeatmapError(
                "--weights, --mean, --std and --input-size go with --model; without it the run's own network is used"
            )
        return None


@dataclass
class RecipeOptions:
    """Options that change a recipe.

    Parameters
    ----------
    recipe, size, steps, metric, constant, rows, precision
        See `featmap.Recipe`.
    """

    recipe: Annotated[str | None, typer.Option("--recipe", help="See `featmap recipes`. Default: by device.")] = None
    size: Annotated[int | None, typer.Option(help="Size of the finished images in pixels.")] = None
    steps: Annotated[int | None, typer.Option(help="Steps of the descent, all octaves together.")] = None
    metric: Annotated[str | None, typer.Option(help="Distance to C: l1, l2, linf or linf-elementwise.")] = None
    constant: Annotated[float | None, typer.Option("--C", help="The large constant (no effect under l1).")] = None
    rows: Annotated[int | None, typer.Option(help="Images descended together; part of the recipe.")] = None
    precision: Annotated[
        str | None,
        typer.Option(help="Of the descent's arithmetic: float32 or bfloat16. Responses are always float32."),
    ] = None

    def resolve(self, network: Network, device: str) -> Recipe:
        """Return the recipe with the changes asked for; say so where one has no effect.

        Parameters
        ----------
        network : Network
            Its input size is taken where no size is named.
        device : str
            Its kind decides the default recipe.

        Returns
        -------
        Recipe
            The resolved recipe.
        """
        from featmap.cli import console

        changes = {"metric": self.metric, "C": self.constant, "precision": self.precision}
        recipe = changed_recipe(network, device, self.recipe, self.size, self.steps, rows=self.rows, **changes)
        if self.constant is not None and recipe.metric == "l1":
            console.err().print("note: under l1 the distance to C is unsigned, so C has no effect on the images")
        return recipe


@dataclass
class LinearRecipeOptions:
    """Options that change the recipe of an interaction.

    Parameters
    ----------
    recipe, size, steps, rows
        See `featmap.Recipe`.
    """

    recipe: Annotated[str, typer.Option(help="See `featmap recipes`; only linear steps carry a claim.")] = "interact"
    size: Annotated[int | None, typer.Option(help="Size of the finished images in pixels.")] = None
    steps: Annotated[int | None, typer.Option(help="Steps of the descent, all octaves together.")] = None
    rows: Annotated[int | None, typer.Option(help="Images descended together; part of the recipe.")] = None

    def resolve(self, network: Network, device: str) -> Recipe:
        """Return the recipe with the changes asked for.

        Parameters
        ----------
        network : Network
            Its input size is taken where no size is named.
        device : str
            Where the descents run.

        Returns
        -------
        Recipe
            The resolved recipe.
        """
        return changed_recipe(network, device, self.recipe, self.size, self.steps, rows=self.rows)


@dataclass
class SeedOptions:
    """Options that name what descents start from.

    Parameters
    ----------
    seed, seeds
        First seed and number of seeds.
    start
        Photograph to start from.
    """

    seed: Annotated[int | None, typer.Option(help="Seed of the noise. Default: the recipe's.")] = None
    seeds: Annotated[int, typer.Option(help="How many seeds, counted up from --seed.")] = 1
    start: Annotated[Path | None, typer.Option(help="A photograph to start from instead of noise.")] = None

    def values(self) -> int | range:
        """Return the seeds as the library takes them.

        Returns
        -------
        int or range
            A number of seeds, or the seeds themselves.
        """
        return seed_values(self.seed, self.seeds)


@dataclass
class ExecutionOptions:
    """Options that say where and how a command is carried out.

    Parameters
    ----------
    device, engine, workers, threads, address
        See `featmap.Execution` and `featmap.Engine`.
    out
        Run folder.
    """

    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto"
    engine: Annotated[
        str, typer.Option("--engine", help="Where descents run: here, or ray (pip install 'featmap[ray]').")
    ] = "here"
    workers: Annotated[
        int | None,
        typer.Option(help="With --engine ray: processes that hold the network. Default: one a GPU, or a core."),
    ] = None
    threads: Annotated[
        int | None,
        typer.Option(help="Of each worker, or here: bits depend on it. Default: this machine's, shared out."),
    ] = None
    address: Annotated[
        str | None, typer.Option(help="With --engine ray: of a running cluster, or auto. Default: one for this run.")
    ] = None
    out: Out = None

    def execution(self) -> Execution:
        """Check the options, and take the threads of the engine for all that this process does.

        Returns
        -------
        Execution
            Without a watcher.
        """
        import torch

        from featmap.runs.engine import Engine, Execution

        engine = Engine(self.engine, self.workers, self.threads, self.address)
        threads = engine.threads_of_each(torch.get_num_threads())
        torch.set_num_threads(threads)
        execution = Execution(
            self.device, Engine(self.engine, self.workers, torch.get_num_threads(), self.address), self.out
        )
        execution.torch_device()  # a device that does not exist is refused before the network is loaded
        return execution


def expand_options(command: Callable[..., None]) -> Callable[..., None]:
    """Turn parameters that are groups of options into the options themselves, as typer reads them.

    Parameters
    ----------
    command : callable
        Function whose annotations may name dataclasses of options.

    Returns
    -------
    callable
        Function with one parameter an option, which makes the groups and calls `command`.
    """
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if not is_dataclass(kind):
            parameters.append(parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        groups[parameter.name] = kind
        inner = get_type_hints(kind, include_extras=True)
        parameters += [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=inner[f.name])
            for f in fields(kind)
        ]

    @wraps(command)
    def expanded(**values: Any) -> None:
        made = {name: kind(**{f.name: values.pop(f.name) for f in fields(kind)}) for name, kind in groups.items()}
        command(**values, **made)

    expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = {p.name: p.annotation for p in parameters}
    return expanded


def _numbers(text: str | None, option: str) -> list[float] | None:
    """Return numbers joined by commas."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise FeatmapError(f"{option} {text!r}: write three numbers joined by commas, such as 0.5,0.5,0.5") from None


def parse_layers(text: str, option: str) -> list[str]:
    """Return the layers that an option names.

    Parameters
    ----------
    text : str
        Names joined by commas.
    option : str
        Name of the option, for the error.

    Returns
    -------
    list of str
        Each once.

    Raises
    ------
    FeatmapError
        If there is none.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise FeatmapError(f"{option} names no layer; write {option} inception4a,inception4b")
    return names


def seed_values(seed: int | None, seeds: int) -> int | range:
    """Return seeds as the library takes them.

    Parameters
    ----------
    seed : int or None
        First seed; None counts from the recipe's own.
    seeds : int
        How many.

    Returns
    -------
    int or range
        A number of seeds, or the seeds themselves.

    Raises
    ------
    FeatmapError
        If a number is out of range.
    """
    from featmap.optimize.limits import MOST_SEEDS

    if seed is None:
        return seeds
    if not 1 <= seeds <= MOST_SEEDS or not 0 <= seed < 2**31:
        raise FeatmapError(
            f"--seed {seed}, --seeds {seeds}: give --seed 0 to 2147483647 and --seeds 1 or more, {MOST_SEEDS:,} at most"
        )
    return range(seed, seed + seeds)


def load_network(model: str, weights: str | None, mean: str | None, std: str | None, input_size: int | None) -> Network:
    """Load a network and print the line that names it.

    Parameters
    ----------
    model, weights, mean, std, input_size
        As the command line has them; see `featmap.load`.

    Returns
    -------
    Network
        The network.
    """
    from featmap.cli import console
    from featmap.network.loading import load

    network = load(model, weights, mean=_numbers(mean, "--mean"), std=_numbers(std, "--std"), input_size=input_size)
    console.out().print(str(network))
    return network


def changed_recipe(
    network: Network, device: str, name: str | None, size: int | None, steps: int | None, **changes: Any
) -> Recipe:
    """Return a named recipe with changes.

    Parameters
    ----------
    network : Network
        Its input size is taken where no size is named.
    device : str
        Its kind decides the default recipe.
    name : str or None
        Name of the recipe; None takes the default.
    size, steps : int or None
        Size of the finished images in pixels; steps of all octaves together.
    **changes : Any
        Other fields; None leaves one as it is.

    Returns
    -------
    Recipe
        The resolved recipe.
    """
    from featmap.optimize.limits import resolve_recipe
    from featmap.optimize.recipe import Recipe
    from featmap.runs import device as devices

    # the changes come before the sizes are fixed, so that fractions of a size follow the size asked for
    unchanged = resolve_recipe(name, network, devices.device(device))
    kept = {k: v for k, v in changes.items() if v is not None}
    return Recipe.named(unchanged.name, size, steps, **kept).resolved(network.input_size)


def print_estimate(estimate: Estimate, what: str, folder: Path) -> None:
    """Print how long something would take, in how much memory and on how much disk.

    Parameters
    ----------
    estimate : Estimate
        Time, memory and disk.
    what : str
        What is estimated.
    folder : Path
        Run folder that it would get.
    """
    from featmap.cli import console

    minutes = f"{estimate.seconds:.0f} s" if estimate.seconds < 120 else f"{estimate.seconds / 60:.1f} minutes"
    console.out().print(
        f"{what}: about {minutes}, {estimate.memory / 1e9:.1f} GB of memory, {estimate.disk / 1e6:,.0f} MB on disk "
        f"({estimate.free / 1e9:,.1f} GB free); it would go to {folder}"
    )


def print_dry_run(job: Job, out: Path | None) -> None:
    """Print how long a job would take, in how much memory and on how much disk.

    Parameters
    ----------
    job : Job
        The checked job.
    out : Path or None
        Run folder; None is the job's own.
    """
    from featmap.runs.estimate import estimate

    what = (
        f"{len(job.objectives)} images x {len(job.seeds)} seed(s), {job.recipe.steps} steps, {job.recipe.size} pixels"
    )
    folder = out or job.default_folder()
    print_estimate(estimate(job, folder), what, folder)


def watched(work: Callable[[Any], Any]) -> Any:
    """Run something with progress bars, and print the warnings it raises as notes.

    Parameters
    ----------
    work : callable
        Takes the watcher.

    Returns
    -------
    Any
        What `work` returned.
    """
    from featmap.cli.console import Bars

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        with Bars() as bars:
            result = work(bars)
    for text in dict.fromkeys(str(w.message) for w in caught if w.category.__module__.startswith("featmap")):
        bars.note(f"note: {text}")
    return result
