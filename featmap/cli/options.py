"""Groups of options that several commands share, and the library's values made of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featmap.cli.directions import DirectionFiles, attach_directions
from featmap.errors import FeatmapError

if TYPE_CHECKING:
    from featmap.network.model import Network
    from featmap.optimize.recipe import Recipe
    from featmap.runs.engine import Execution

Mean = Annotated[
    str | None,
    typer.Option(help="Mean that is subtracted from images in [0, 1], for red, green and blue: such as 0.5,0.5,0.5."),
]
Std = Annotated[
    str | None, typer.Option(help="Standard deviation that images are divided by, after the mean: three numbers.")
]
InputSize = Annotated[int | None, typer.Option(help="Side of the images that the network was trained on, in pixels.")]
Weights = Annotated[
    str | None,
    typer.Option(
        help="A .safetensors file, a state dict, the name of a published set of weights, random, or random:SEED."
    ),
]
AllowStochastic = Annotated[
    bool,
    typer.Option(
        "--allow-stochastic",
        help="Go on with a network that gives different results for one image; its runs cannot be repeated.",
    ),
]
Features = Annotated[str, typer.Option(help="Channels of the layer, such as 0-15,42, or all.")]
Device = Annotated[str, typer.Option(help="Where to compute: auto (a GPU if there is one), cpu, cuda, cuda:N or mps.")]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Time a few steps, print the time, memory and disk space needed, and stop."),
]
SkipBroken = Annotated[
    bool,
    typer.Option(
        "--skip-broken", help="Go on without photographs that cannot be read. Without it, they are named and it stops."
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(help="Run folder; a folder with the same settings is resumed. Default: runs/NAME-OF-THE-SETTINGS."),
]


@dataclass
class NetworkOptions:
    """Options that name a network.

    Parameters
    ----------
    model : str, default "reference"
        Name of the network, or an import path.
    weights : str or None, default None
        File or name of the weights. None is the network's default.
    mean, std : str or None, default None
        Normalisation of the input: three numbers joined by commas each.
    input_size : int or None, default None
        Side of the network's own input in pixels.
    allow_stochastic : bool, default False
        Go on with a network that gives different results for one image.
    directions : list of str or None, default None
        Files of directions, as ``LAYER/NAME=FILE``.
    """

    model: Annotated[
        str,
        typer.Option(
            help="The network: reference (bundled with featmap), the name of a torchvision classification network, "
            "timm:NAME for one of timm's (pip install 'featmap[timm]'), or package.module:factory for one of your own."
        ),
    ] = "reference"
    weights: Weights = None
    mean: Mean = None
    std: Std = None
    input_size: InputSize = None
    allow_stochastic: AllowStochastic = False
    directions: DirectionFiles = None

    def load(self) -> Network:
        """Load the network and print the line that names it.

        Returns
        -------
        Network
            The loaded network.
        """
        values = (self.model, self.weights, self.mean, self.std, self.input_size, self.allow_stochastic)
        return attach_directions(load_network(*values), self.directions)


@dataclass
class RunNetworkOptions:
    """Options that name a network, for commands that read it from a run.

    Parameters
    ----------
    model : str or None, default None
        Name of the network, or an import path. None is the network of the run.
    weights : str or None, default None
        File or name of the weights. None is the network's default.
    mean, std : str or None, default None
        Normalisation of the input: three numbers joined by commas each.
    input_size : int or None, default None
        Side of the network's own input in pixels.
    allow_stochastic : bool, default False
        Go on with a network that gives different results for one image.
    """

    model: Annotated[
        str | None, typer.Option(help="The network, where it cannot be loaded by its name. Default: that of the run.")
    ] = None
    weights: Weights = None
    mean: Mean = None
    std: Std = None
    input_size: InputSize = None
    allow_stochastic: AllowStochastic = False

    def load(self) -> Network | None:
        """Load the network and print the line that names it.

        Returns
        -------
        Network or None
            None where no model is named.

        Raises
        ------
        FeatmapError
            If another option is used without ``--model``.
        """
        others = (self.weights, self.mean, self.std, self.input_size)
        if self.model is not None:
            return load_network(self.model, *others, self.allow_stochastic)
        if self.allow_stochastic or any(v is not None for v in others):
            raise FeatmapError(
                "--weights, --mean, --std, --input-size and --allow-stochastic go with --model; without it the run's "
                "own network is used"
            )
        return None


@dataclass
class RecipeOptions:
    """Options that choose a recipe and change it.

    Parameters
    ----------
    recipe : str or None, default None
        Name of the recipe. None is the default of the device.
    size : int or None, default None
        Side of the finished images in pixels.
    steps : int or None, default None
        Steps of all octaves together.
    metric : str or None, default None
        Distance of the activation to `constant`.
    constant : float or None, default None
        The constant C of the loss.
    rows : int or None, default None
        Images in a batch.
    precision : str or None, default None
        Arithmetic of the descent.
    """

    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            help="How images are made: a name that `featmap recipes` lists. Default: fast on a CPU, standard on a GPU.",
        ),
    ] = None
    size: Annotated[int | None, typer.Option(help="Side of the finished images in pixels.")] = None
    steps: Annotated[int | None, typer.Option(help="Steps of the descent, all octaves together.")] = None
    metric: Annotated[
        str | None, typer.Option(help="Distance of the activation to C: l1, l2, linf or linf-elementwise.")
    ] = None
    constant: Annotated[
        float | None, typer.Option("--C", help="The large constant that activations are pulled towards; unused by l1.")
    ] = None
    rows: Annotated[
        int | None, typer.Option(help="Images in a batch; part of the run's identity. On a GPU, try 128.")
    ] = None
    precision: Annotated[
        str | None,
        typer.Option(help="Arithmetic of the descent: float32 or bfloat16. Responses are always in float32."),
    ] = None

    def resolve(self, network: Network, device: str) -> Recipe:
        """Build the recipe, and print a note where an option has no effect.

        Parameters
        ----------
        network : Network
            Its input size is the default size.
        device : str
            Its kind decides the default recipe.

        Returns
        -------
        Recipe
            The resolved recipe.
        """
        from featmap.cli import console

        changes = {"metric": self.metric, "C": self.constant, "precision": self.precision}
        recipe = build_recipe(network, device, self.recipe, self.size, self.steps, rows=self.rows, **changes)
        if self.constant is not None and recipe.metric == "l1":
            console.err().print("note: under l1 the distance to C is unsigned, so C has no effect on the images")
        return recipe


@dataclass
class LinearRecipeOptions:
    """Options that choose and change the recipe of an interaction.

    Parameters
    ----------
    recipe : str, default "interact"
        Name of the recipe.
    size : int or None, default None
        Side of the finished images in pixels.
    steps : int or None, default None
        Steps of all octaves together.
    rows : int or None, default None
        Images in a batch.
    """

    recipe: Annotated[
        str, typer.Option(help="A name that `featmap recipes` lists; claims need linear steps, as interact has them.")
    ] = "interact"
    size: Annotated[int | None, typer.Option(help="Side of the finished images in pixels.")] = None
    steps: Annotated[int | None, typer.Option(help="Steps of the descent, all octaves together.")] = None
    rows: Annotated[
        int | None, typer.Option(help="Images in a batch; part of the run's identity. On a GPU, try 128.")
    ] = None

    def resolve(self, network: Network, device: str) -> Recipe:
        """Build the recipe.

        Parameters
        ----------
        network : Network
            Its input size is the default size.
        device : str
            Where the descents run.

        Returns
        -------
        Recipe
            The resolved recipe.
        """
        return build_recipe(network, device, self.recipe, self.size, self.steps, rows=self.rows)


@dataclass
class SeedOptions:
    """Options that say what descents start from.

    Parameters
    ----------
    seed : int or None, default None
        First seed. None is the recipe's own.
    seeds : int, default 1
        Number of seeds.
    start : Path or None, default None
        Photograph to start from.
    """

    seed: Annotated[int | None, typer.Option(help="Seed of the noise that descents start from.")] = None
    seeds: Annotated[int, typer.Option(help="Number of seeds, counted up from --seed.")] = 1
    start: Annotated[Path | None, typer.Option(help="A photograph to start from instead of noise.")] = None

    def parse(self) -> int | range:
        """Parse the seeds.

        Returns
        -------
        int or range
            A number of seeds, or the seeds themselves.
        """
        return parse_seeds(self.seed, self.seeds)


@dataclass
class ExecutionOptions:
    """Options that say where and how a command is carried out.

    Parameters
    ----------
    device : str, default "auto"
        Device of the descents.
    engine : str, default "here"
        Where work units are computed.
    workers, threads : int or None, default None
        Processes of the engine, and threads of each.
    address : str or None, default None
        Address of a running Ray cluster.
    out : Path or None, default None
        Run folder. None is a name made of the settings.
    """

    device: Device = "auto"
    engine: Annotated[
        str,
        typer.Option(
            "--engine", help="Who computes: here (this process), or ray (several; pip install 'featmap[ray]')."
        ),
    ] = "here"
    workers: Annotated[
        int | None,
        typer.Option(help="With --engine ray: number of worker processes. Default: one for each GPU, or each core."),
    ] = None
    threads: Annotated[
        int | None,
        typer.Option(help="CPU threads of each worker, or of this process. Images depend on it in their last bits."),
    ] = None
    address: Annotated[
        str | None,
        typer.Option(help="With --engine ray: a running cluster, or auto. Default: one started for this run."),
    ] = None
    out: Out = None

    def build(self) -> Execution:
        """Check the options, and set the number of threads of this process.

        Returns
        -------
        Execution
            Without a watcher.
        """
        import torch

        from featmap.runs.engine import Engine, Execution

        engine = Engine(self.engine, self.workers, self.threads, self.address)
        threads = engine.threads_per_worker(torch.get_num_threads())
        torch.set_num_threads(threads)
        execution = Execution(
            self.device, Engine(self.engine, self.workers, torch.get_num_threads(), self.address), self.out
        )
        execution.torch_device()  # a device that does not exist is refused before the network is loaded
        return execution


def _parse_numbers(text: str | None, option: str) -> list[float] | None:
    """Parse numbers joined by commas; None stays None."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise FeatmapError(f"{option} {text!r}: write three numbers joined by commas, such as 0.5,0.5,0.5") from None


def parse_layers(text: str, option: str) -> list[str]:
    """Parse names of layers joined by commas.

    Parameters
    ----------
    text : str
        The value of the option.
    option : str
        Name of the option, for the error.

    Returns
    -------
    list of str
        The names in their order, each once.

    Raises
    ------
    FeatmapError
        If the text names no layer.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise FeatmapError(f"{option} names no layer; write {option} inception4a,inception4b")
    return names


def parse_seeds(seed: int | None, seeds: int) -> int | range:
    """Parse ``--seed`` and ``--seeds``.

    Parameters
    ----------
    seed : int or None
        First seed, from 0 to 2**31 - 1. None leaves it to the recipe.
    seeds : int
        Number of seeds.

    Returns
    -------
    int or range
        A number of seeds, or the seeds themselves, as the library takes them.

    Raises
    ------
    FeatmapError
        If a number is out of range.
    """
    from featmap.optimize.limits import MAX_SEEDS

    if not 1 <= seeds <= MAX_SEEDS:
        raise FeatmapError(f"--seeds {seeds}: give --seeds 1 or more, {MAX_SEEDS:,} at most")
    if seed is None:
        return seeds
    if not 0 <= seed < 2**31:
        raise FeatmapError(f"--seed {seed}: give --seed 0 or more, 2147483647 at most")
    return range(seed, seed + seeds)


def load_network(
    model: str,
    weights: str | None,
    mean: str | None,
    std: str | None,
    input_size: int | None,
    allow_stochastic: bool = False,
) -> Network:
    """Load a network and print the line that names it.

    Parameters
    ----------
    model : str
        Name of the network, or an import path.
    weights : str or None
        File or name of the weights. None is the network's default.
    mean, std : str or None
        Normalisation of the input: three numbers joined by commas each, both or neither.
    input_size : int or None
        Side of the network's own input in pixels.
    allow_stochastic : bool, default False
        Go on with a network that gives different results for one image.

    Returns
    -------
    Network
        The loaded network.

    Raises
    ------
    FeatmapError
        If the network cannot be loaded or a value is out of range.
    """
    from featmap.cli import console
    from featmap.network.loading import load

    if (mean is None) != (std is None):
        raise FeatmapError("--mean and --std belong together; give both, three numbers each, or neither")
    normalisation = {"mean": _parse_numbers(mean, "--mean"), "std": _parse_numbers(std, "--std")}
    network = load(model, weights, **normalisation, input_size=input_size, allow_stochastic=allow_stochastic)
    console.out().print(str(network))
    return network


def build_recipe(
    network: Network, device: str, name: str | None, size: int | None, steps: int | None, **changes: Any
) -> Recipe:
    """Build a named recipe with changes.

    Parameters
    ----------
    network : Network
        Its input size is the default size.
    device : str
        Its kind decides the default recipe.
    name : str or None
        Name of the recipe. None is the default of the device.
    size, steps : int or None
        Side of the finished images in pixels; steps of all octaves together. None keeps the recipe's.
    **changes : Any
        Other fields of the recipe; None keeps the recipe's.

    Returns
    -------
    Recipe
        The resolved recipe.
    """
    from featmap.optimize.limits import resolve_recipe
    from featmap.optimize.recipe import Recipe
    from featmap.runs.device import select_device

    # change the recipe before its sizes are resolved: octaves are fractions of the requested size
    unchanged = resolve_recipe(name, network, select_device(device))
    changes = {k: v for k, v in changes.items() if v is not None}
    return Recipe.named(unchanged.name, size, steps, **changes).resolved(network.input_size)
