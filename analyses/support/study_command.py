"""The command line of every study: its options, their checks, and the order of the work."""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from analyses.support import provenance
from analyses.support.commands import run
from analyses.support.records import FULL_SUFFIX, describe_left_out, save_outcome
from analyses.support.study import RESULTS, Context, Given, Outcome, Study
from analyses.support.units import choose_units
from featmap import FeatmapError, Network, load
from featmap.cli.console import ProgressBars, out
from featmap.cli.options import InputSize, Mean, Std
from featmap.cli.parsing import parse_numbers
from featmap.image_shape import format_size, parse_size
from featmap.optimize.photographs import read_photograph
from featmap.runs.device import select_device


def check_options(
    study: Study,
    network: Network,
    layers: Sequence[str],
    feature: int | None,
    device: str,
    image: Path | None,
    size: int | None = None,
) -> None:
    """Check a study's options before any work is done.

    Parameters
    ----------
    study : Study
        The study.
    network : Network
        The network.
    layers : sequence of str
        Layers to measure.
    feature : int or None
        Channel that the claim names.
    device : str
        Device of the descents.
    image : Path or None
        Photograph to start from.
    size : int, default None
        Side of the finished images in pixels.

    Raises
    ------
    FeatmapError
        If an option does not fit the study or the network.
    """
    if study.pair and len(layers) != 2:
        raise FeatmapError(f"study {study.name} needs two layers, not {len(layers)}; give --layers FIRST,SECOND")
    if not isinstance(network.input_size, int):
        raise FeatmapError(
            f"network {network.name} takes images of {format_size(network.input_size)} pixels, and studies make square "
            "ones; give a network of a square size"
        )
    channels = [network.layer(layer, network.input_size).channels for layer in layers]
    if size is not None and (lacking := [layer for layer in layers if layer not in network.trace(size).layers]):
        raise FeatmapError(
            f"--size {size}: layer {lacking[0]!r} does not fit into an image of that size; give a larger one"
        )
    if feature is not None and not 0 <= feature < channels[-1]:
        raise FeatmapError(
            f"layer {layers[-1]!r} has {channels[-1]} features and none numbered {feature}; "
            f"give --feature 0 to {channels[-1] - 1}"
        )
    select_device(device)
    if image is not None:
        read_photograph(image, 8)


def make_writable(option: str, folder: Path) -> None:
    """Create a folder to write into.

    Parameters
    ----------
    option : str
        Name of the option that chooses the folder.
    folder : Path
        Folder.

    Raises
    ------
    FeatmapError
        If it cannot be written into; names the option.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise FeatmapError(
            f"--{option}: cannot write into {str(folder)!r} ({error.strerror}); give another --{option}"
        ) from error


def check_name(name: str | None, model: str, rescue: float | None) -> None:
    """Check the name of a network's column, and the share of rescued steps.

    Parameters
    ----------
    name : str or None
        Name of the column.
    model : str
        The network as it was named.
    rescue : float or None
        Share of the steps.

    Raises
    ------
    FeatmapError
        If the name cannot be that of a file, or is that of another network, or if the share is none.
    """
    if name is not None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
        raise FeatmapError(f"--name {name!r}: give letters, digits, dots, hyphens and underscores")
    if name is not None and name.endswith(FULL_SUFFIX):
        raise FeatmapError(f"--name {name!r} is how results with --full are stored; give another name")
    if name == "reference" and model != "reference":
        raise FeatmapError(f"--name reference is the bundled network, not {model!r}; give another name")
    if rescue is not None and not 0 <= rescue <= 1:
        raise FeatmapError(f"--rescue {rescue:g}: give a share of the steps, from 0 to 1")


def load_network(model: str, weights: str | None, mean: str | None, std: str | None, input_size: str | None) -> Network:
    """Load the network that the options name.

    Parameters
    ----------
    model, weights : str or None
        The network and its weights.
    mean, std : str or None
        Normalisation: a number for each channel, joined by commas.
    input_size : str or None
        Size of the images in pixels.

    Returns
    -------
    Network
        The network.
    """
    return load(
        model,
        weights,
        mean=parse_numbers(mean, "--mean"),
        std=parse_numbers(std, "--std"),
        input_size=parse_size(input_size, "input size"),
    )


def command_line(study: str, options: Mapping[str, Any]) -> str:
    """Write the command of a study as anyone would give it.

    Folders are left out; of an import path, the module is called ``package.module``.

    Parameters
    ----------
    study : str
        Name of the study.
    options : mapping of str to Any
        Options and their values; those that were not given are None, False or empty.

    Returns
    -------
    str
        The command.
    """
    words = ["python", "-m", f"analyses.{study}"]
    for option, value in options.items():
        if value in (None, False, "") or (option, value) == ("model", "reference"):
            continue
        if option == "model" and ":" in str(value) and not str(value).startswith("timm:"):
            value = f"package.module:{str(value).rpartition(':')[2]}"
        elif option in ("weights", "image"):
            value = Path(str(value)).name
        elif isinstance(value, float):
            value = f"{value:g}"
        words += [f"--{option}"] if value is True else [f"--{option}", str(value)]
    return shlex.join(words)


def study_command(study: Study, measure: Callable[[Context], Outcome]) -> Callable[..., Outcome]:
    """Build the command-line function of a study.

    Parameters
    ----------
    study : Study
        The study.
    measure : callable
        Function from the context to the outcome.

    Returns
    -------
    callable
        Function for `analyses.support.commands.run`.
    """

    def main(
        model: Annotated[
            str, typer.Option(help="reference, googlenet, inception_v3, resnet50, package.module:factory or another.")
        ] = "reference",
        weights: Annotated[str | None, typer.Option(help="As for `featmap similarity`.")] = None,
        mean: Mean = None,
        std: Std = None,
        input_size: InputSize = None,
        name: Annotated[
            str | None,
            typer.Option(help="Column of the results, whose layers are taken too; by default the model's name."),
        ] = None,
        origin: Annotated[str, typer.Option(help="Where the weights come from, in words, for the tables.")] = "",
        layers: Annotated[str | None, typer.Option(help="Layers instead of the study's own, joined by commas.")] = None,
        features: Annotated[
            int | None, typer.Option(help="Features drawn of each layer; by default the study's own number.")
        ] = None,
        seeds: Annotated[int, typer.Option(help="Seeds of the noise.")] = study.seeds,
        feature: Annotated[int | None, typer.Option(help="Channel instead of the one that the claim names.")] = None,
        units: Annotated[
            str | None,
            typer.Option(
                help="Features to measure before any is drawn, LAYER:CHANNEL,...; first: the first ones of each layer; "
                "drawn: none; by default those that the article names for the network."
            ),
        ] = None,
        rescue: Annotated[
            float | None,
            typer.Option(
                help="Share of the steps in which features without a gradient get one through dead ReLUs, from 0 to 1; "
                "by default that of the recipe, which may have none."
            ),
        ] = None,
        size: Annotated[
            int | None,
            typer.Option(
                metavar="PIXELS",
                min=1,
                help="Side of the finished images instead of the study's own, also with --full.",
            ),
        ] = None,
        full: Annotated[bool, typer.Option("--full", help="The article's own sizes.")] = False,
        device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
        image: Annotated[Path | None, typer.Option(help="A photograph, for a study that starts from one.")] = None,
        runs: Annotated[Path, typer.Option(help="Folder of the runs, which are resumed.")] = Path("runs/studies"),
        results: Annotated[Path, typer.Option(help="Folder for the table and the figures.")] = RESULTS,
    ) -> Outcome:
        if features is None:
            features = study.full_features if full and study.full_features else study.features
        if features < 1 or seeds < 1:
            raise FeatmapError(f"--features {features}, --seeds {seeds}: give 1 or more of each")
        if image is not None and not study.takes_image:
            raise FeatmapError(f"study {study.name} starts from noise only; leave out --image")
        if feature is not None and study.feature is None:
            raise FeatmapError(f"the claim of study {study.name} names no feature; leave out --feature")
        check_name(name, model, rescue)
        network = load_network(model, weights, mean, std, input_size)
        listed = study.layers.get(name or model, ())
        chosen = tuple(n.strip() for n in layers.split(",") if n.strip()) if layers else listed
        if not chosen:
            raise FeatmapError(
                f"study {study.name}: no layers are known for {name or model!r}; give --layers, as `featmap layers` "
                "prints them"
            )
        named = study.feature if feature is None else feature
        check_options(study, network, chosen, named, device, image, size)
        first = choose_units(units, study, name or model, chosen, network)
        for option, folder in (("runs", runs), ("results", results)):
            make_writable(option, folder / study.name)
        options = {"model": model, "weights": weights, "mean": mean, "std": std, "input-size": input_size}
        options |= {"name": name, "origin": origin, "layers": layers, "features": features, "seeds": seeds}
        options |= {"feature": feature, "units": units or ",".join(first), "rescue": rescue, "size": size}
        options |= {"full": full, "image": image}
        given = Given(name or "", origin, command_line(study.name, options), provenance.identities(study.name))
        with ProgressBars() as bars:
            settings = (study, network, chosen, full, features, seeds, device, runs, bars, image, results, named)
            context = Context(*settings, given, rescue, units=first, size=size)
            outcome = measure(context)
        for sentence in describe_left_out(context.images):
            context.log(sentence)
        for path in save_outcome(context, outcome, results):
            context.log(str(path))
        out().print(outcome.conclusion)
        return outcome

    main.__doc__ = f"{study.claim}\n\nMeasured: {study.measured}.\n\nWith --full: {study.full}."
    return main


def run_study(study: Study, measure: Callable[[Context], Outcome]) -> None:
    """Run a study as a command.

    The last lines of its module are ``if __name__ == "__main__": run_study(STUDY, measure)``.

    Parameters
    ----------
    study : Study
        The study.
    measure : callable
        Function from the context to the outcome.
    """
    run(study_command(study, measure))
