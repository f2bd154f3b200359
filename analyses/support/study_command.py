"""The command line of every study: its options, their checks, and the order of the work."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from analyses.support.commands import run
from analyses.support.study import RESULTS, Context, Outcome, Study, save_outcome
from featmap import FeatmapError, Network, load
from featmap.cli.console import ProgressBars, out
from featmap.image_shape import format_size
from featmap.optimize.photographs import read_photograph
from featmap.runs.device import select_device


def check_options(
    study: Study, network: Network, layers: Sequence[str], feature: int | None, device: str, image: Path | None
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
        model: Annotated[str, typer.Option(help="reference, googlenet, inception_v3, resnet50 or another.")] = (
            "reference"
        ),
        weights: Annotated[str | None, typer.Option(help="As for `featmap similarity`.")] = None,
        layers: Annotated[str | None, typer.Option(help="Layers instead of the study's own, joined by commas.")] = None,
        features: Annotated[
            int | None, typer.Option(help="Features drawn of each layer; by default the study's own number.")
        ] = None,
        seeds: Annotated[int, typer.Option(help="Seeds of the noise.")] = study.seeds,
        feature: Annotated[int | None, typer.Option(help="Channel instead of the one that the claim names.")] = None,
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
        network = load(model, weights)
        chosen = tuple(n.strip() for n in layers.split(",") if n.strip()) if layers else study.layers.get(model, ())
        if not chosen:
            raise FeatmapError(
                f"study {study.name}: no layers are known for {model!r}; give --layers, as `featmap layers` prints them"
            )
        named = study.feature if feature is None else feature
        check_options(study, network, chosen, named, device, image)
        for option, folder in (("runs", runs), ("results", results)):
            make_writable(option, folder / study.name)
        with ProgressBars() as bars:
            context = Context(study, network, chosen, full, features, seeds, device, runs, bars, image, results, named)
            outcome = measure(context)
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
