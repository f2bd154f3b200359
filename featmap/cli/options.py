"""Groups of options that several commands share, and the library's values made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featmap.cli.directions import DirectionFiles, attach_directions
from featmap.cli.parsing import parse_numbers, parse_seeds
from featmap.errors import FeatmapError
from featmap.image_shape import Size, parse_size

if TYPE_CHECKING:
    from featmap.network.model import Network
    from featmap.optimize.recipe import Recipe
    from featmap.runs.engine import Execution

Mean = Annotated[
    str | None,
    typer.Option(
        help="Mean that is subtracted from images in [0, 1]: a number for each channel, such as 0.5,0.5,0.5 for red, "
        "green and blue."
    ),
]
Std = Annotated[
    str | None,
    typer.Option(help="Standard deviation that images are divided by, after the mean: a number for each channel."),
]
InputSize = Annotated[
    str | None,
    typer.Option(
        metavar="PIXELS",
        help="Size of the images that the network was trained on: a side in pixels, or height x width, such as 64x128.",
    ),
]
Channels = Annotated[
    int | None,
    typer.Option(help="Number of input channels of your own network, where it cannot be found: 1 is gray."),
]
ImageSize = Annotated[
    str | None,
    typer.Option(
        metavar="PIXELS",
        help="Size of the finished images: a side in pixels, or height x width, such as 64x128.",
    ),
]
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
EmbedPhotographs = Annotated[
    bool,
    typer.Option(
        "--embed-photographs",
        help="Show in the atlas what excites each feature most: parts of photographs and their file names, which are "
        "left out otherwise, so that the page can be shared.",
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
        Normalisation of the input: a number for each channel, joined by commas.
    input_size : str or None, default None
        Size of the network's own input in pixels.
    channels : int or None, default None
        Number of input channels.
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
    channels: Channels = None
    allow_stochastic: AllowStochastic = False
    directions: DirectionFiles = None

    def load(self) -> Network:
        """Load the network and print the line that names it.

        Returns
        -------
        Network
            The loaded network.
        """
        sizes = self.input_size, self.channels
        values = (self.model, self.weights, self.mean, self.std, *sizes, self.allow_stochastic)
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
        Normalisation of the input: a number for each channel, joined by commas.
    input_size : str or None, default None
        Size of the network's own input in pixels.
    channels : int or None, default None
        Number of input channels.
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
    channels: Channels = None
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
        others = (self.weights, self.mean, self.std, self.input_size, self.channels)
        if self.model is not None:
            return load_network(self.model, *others, self.allow_stochastic)
        if self.allow_stochastic or any(v is not None for v in others):
            raise FeatmapError(
                "--weights, --mean, --std, --input-size, --channels and --allow-stochastic go with --model; without it "
                "the run's own network is used"
            )
        return None


@dataclass
class RecipeOptions:
    """Options that choose a recipe and change it.

    Parameters
    ----------
    recipe : str or None, default None
        Name of the recipe. None is the default of the device.
    size : str or None, default None
        Size of the finished images in pixels.
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
    size: ImageSize = None
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

        changes = {"metric": self.metric, "C": self.constant, "precision": self.precision, "rows": self.rows}
        recipe = build_recipe(network, device, self.recipe, parse_size(self.size), self.steps, changes)
        for note in recipe.notes:
            if note.startswith("deprecated"):
                console.err().print(f"note: recipe {recipe.name} is {note}")
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
    size : str or None, default None
        Size of the finished images in pixels.
    steps : int or None, default None
        Steps of all octaves together.
    rows : int or None, default None
        Images in a batch.
    """

    recipe: Annotated[
        str, typer.Option(help="A name that `featmap recipes` lists; claims need linear steps, as interact has them.")
    ] = "interact"
    size: ImageSize = None
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
        return build_recipe(network, device, self.recipe, parse_size(self.size), self.steps, {"rows": self.rows})


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
            "--engine",
            help="Where batches are computed: here (in this process), or ray (in several; pip install 'featmap[ray]').",
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
        torch.set_num_threads(engine.threads_per_worker(torch.get_num_threads()))
        execution = Execution(self.device, replace(engine, threads=torch.get_num_threads()), self.out)
        execution.torch_device()  # a device that does not exist is refused before the network is loaded
        return execution


def load_network(
    model: str,
    weights: str | None,
    mean: str | None,
    std: str | None,
    input_size: str | None,
    channels: int | None = None,
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
        Normalisation of the input: a number for each channel, joined by commas; both or neither.
    input_size : str or None
        Size of the network's own input in pixels.
    channels : int or None, default None
        Number of input channels. None finds it.
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
    from featmap.cli.entry import name_recommended
    from featmap.network.loading import load

    if (mean is None) != (std is None):
        raise FeatmapError("--mean and --std belong together; give both, a number for each channel, or neither")
    network = load(
        model,
        weights,
        mean=parse_numbers(mean, "--mean"),
        std=parse_numbers(std, "--std"),
        input_size=parse_size(input_size, "input size"),
        channels=channels,
        allow_stochastic=allow_stochastic,
    )
    console.out().print(name_recommended(str(network)))
    return network


def build_recipe(
    network: Network, device: str, name: str | None, size: Size | None, steps: int | None, changes: Mapping[str, Any]
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
    size : int, (int, int) or None
        Size of the finished images in pixels. None keeps the recipe's.
    steps : int or None
        Steps of all octaves together. None keeps the recipe's.
    changes : mapping
        Other fields of the recipe by name; None keeps the recipe's.

    Returns
    -------
    Recipe
        The resolved recipe.
    """
    from featmap.optimize.limits import default_size, resolve_recipe
    from featmap.optimize.recipe import Recipe
    from featmap.runs.device import select_device

    # change the recipe before its sizes are resolved: octaves are fractions of the requested size
    unchanged = resolve_recipe(name, network, select_device(device))
    chosen = Recipe.named(unchanged.name, size, steps, **{k: v for k, v in changes.items() if v is not None})
    return chosen if size is not None else chosen.resolved(network.input_size, default_size(network, chosen))
