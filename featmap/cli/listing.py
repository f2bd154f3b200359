"""The commands `featmap layers`, `recipes` and `neighbours`, which print tables of networks, recipes and runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featmap.cli.console import table_lines
from featmap.cli.options import NetworkOptions
from featmap.errors import FeatmapError, UnitError, suggest
from featmap.image_shape import Size, area, as_pair, format_size, parse_size

if TYPE_CHECKING:
    from featmap.network.model import Network
    from featmap.network.trace import Trace

LAYER_COLUMNS = ("layer", "kind", "layout", "channels", "grid", "receptive field", "branches")


def layer_rows(network: Network, size: Size | None = None, match: str = "*") -> list[tuple[str, ...]]:
    """Build the table of a network's layers.

    Receptive fields that no rule gives are measured, which takes a while for networks with attention in windows.

    Parameters
    ----------
    network : Network
        The network.
    size : int or (int, int), optional
        Size of the images in pixels. None takes the network's own input size.
    match : str, default "*"
        Pattern of the names, such as "inception4*".

    Returns
    -------
    list of tuple of str
        A row for each layer, its cells in the order of `LAYER_COLUMNS`; the grid is height x width, and each branch
        is followed by its number of channels.

    Raises
    ------
    FeatmapError
        If the network has no layer at this size.
    UnitError
        If no name matches.
    """
    from featmap.optimize.measured_fields import find_fields

    trace = network.trace(size)
    if not trace.layers:
        raise FeatmapError(
            f"{network.name} has no layer at {format_size(trace.size)} pixels and {network.channels} channels "
            f"({trace.failure or 'no grid'}); give --size, or --channels"
        )
    names = [name for name in trace.layers if fnmatchcase(name, match)]
    if not names:
        raise UnitError(
            f"no layer matches {match!r}{suggest(match.strip('*'), trace.layers)}; `featmap layers` lists all"
        )
    seen = find_fields(network, names, size)
    return [
        (
            layer.name,
            layer.kind,
            layer.layout.kind,
            str(layer.channels),
            f"{layer.height} x {layer.width}",
            str(seen[layer.name]),
            ", ".join(f"{name} {width}" for name, width in layer.branches),
        )
        for layer in map(trace.layers.__getitem__, names)
    ]


def layer_lines(network: Network, size: Size | None, match: str) -> Iterator[str]:
    """Format the table of layers whose names match a pattern.

    Parameters
    ----------
    network : Network
        The network.
    size : int, (int, int) or None
        Size of the images in pixels. None takes the network's own input size.
    match : str
        Pattern of the names, such as "inception4*".

    Yields
    ------
    str
        One line of the table.

    Raises
    ------
    UnitError
        If no name matches.
    """
    rows, trace = layer_rows(network, size, match), network.trace(size)
    height, width = as_pair(trace.size)
    yield f"layers at {height} x {width} pixels"
    yield from table_lines(LAYER_COLUMNS, rows)
    if left_out := [name for name in modules_left_out(trace) if fnmatchcase(name, match)]:
        outer = [name for name in left_out if not any(name.startswith(f"{other}.") for other in left_out)]
        count = "1 module" if len(left_out) == 1 else f"{len(left_out):,} modules"
        shown = ", ".join(outer[:3]) + (", ..." if len(left_out) > len(outer[:3]) else "")
        yield (
            f"not listed: {count} ({shown}), since the positions of the image in the output are not known, or it is "
            "none of grid, sequence and vector"
        )
    if trace.failure:
        advice = "give another --size"
        if (only := network.only_size("", trace.size)) is not None:
            advice = f"it works at --size {format_size(only, 'x')}"
        elif area(trace.size) < area(network.input_size):
            advice = "give a larger --size"
        yield f"after these layers the network fails at {format_size(trace.size)} pixels ({trace.failure}); {advice}"


def modules_left_out(trace: Trace) -> list[str]:
    """List the modules whose outputs are no layers.

    Parameters
    ----------
    trace : Trace
        A traced pass.

    Returns
    -------
    list of str
        Names of modules that returned a tensor, in the order in which they did.
    """
    from featmap.network.unit import split_call

    listed = {split_call(name)[0] for name in trace.layers}
    return [name for name in trace.calls if name and name not in listed]


DEFAULTS = {"fast": " (default on a CPU)", "standard": " (default on a GPU)", "interact": " (default of interact)"}
"""Recipes that commands take where none is named."""


def recipe_lines(name: str | None) -> Iterator[str]:
    """Format the settings of one recipe, or of all.

    Parameters
    ----------
    name : str or None
        Name of a recipe. None takes all.

    Yields
    ------
    str
        One line.
    """
    from featmap.optimize.recipe import RECIPES, Recipe

    # the defaults first, then in the order of registration: the article's, and those kept for earlier runs
    every = {recipe: RECIPES[recipe] for recipe in ("fast", "standard", "natural", "interact")} | RECIPES
    chosen = list(every.values()) if name is None else [Recipe.named(name)]
    for recipe in chosen:
        yield recipe.name + DEFAULTS.get(recipe.name, "")
        for setting in fields(recipe):
            value = getattr(recipe, setting.name)
            if setting.name in ("name", "octaves", "notes"):
                continue
            yield f"  {setting.name}: {'none' if value is None else value}"
        for k, octave in enumerate(recipe.octaves, 1):
            size = "that of the finished image" if octave.size is None else octave.size
            if isinstance(octave.size, float):
                size = f"{octave.size:g} of the finished image's"
            blur = f"blur sigma {octave.sigma[0]:g} to {octave.sigma[1]:g}" if any(octave.sigma) else "no blur"
            rate = f"step size {octave.rate[0]:g} to {octave.rate[1]:g}"
            yield f"  octave {k}: size {size}, {octave.steps} steps, {rate}, {blur}"
        for note in recipe.notes:
            yield f"  {note}" if note.startswith("deprecated") else f"  choice of featmap: {note}"
        if recipe.metric == "l1":
            yield "  note: under l1 the distance to C is unsigned, so C has no effect"


def neighbour_lines(unit: str, folder: Path, count: int, stimuli: str | None = None) -> Iterator[str]:
    """Format the features most similar to a feature, and those least similar.

    Parameters
    ----------
    unit : str
        A feature, such as "inception4a:17".
    folder : Path
        Folder of a finished similarity run.
    count : int
        Number of features in each of the two tables.
    stimuli : str, optional
        Which map: images or photographs. None is that of images where there is one.

    Yields
    ------
    str
        One line.

    Raises
    ------
    FeatmapError
        If the run has no such feature, or no other one.
    """
    import pandas as pd

    from featmap.mapping import neighbours as finding

    if count < 1:
        raise FeatmapError(f"--count {count}: give 1 or more")
    frame = finding.neighbour_frame(unit, folder, stimuli)
    if frame.empty:
        raise UnitError(f"feature {unit!r} is the only one in this run; map more features")
    shown = frame.astype(object)
    for column in frame.columns.intersection(["S", "coactivation", "coactivated_by"]):
        shown[column] = ["undefined" if pd.isna(v) else f"{v:+.3f}" for v in frame[column]]
    if "reliable" in frame:
        shown["reliable"] = ["" if pd.isna(v) else "yes" if v else "no ?" for v in frame["reliable"]]
    shown["cluster"] = ["" if pd.isna(v) else str(int(v)) for v in frame["cluster"]]
    # a validation measures the reliability of features in the map of images
    marked = "coactivation" in frame and finding.is_unreliable(unit, folder)
    name = f"{unit} (unreliable, marked ?)" if marked else unit
    yield f"most like {name}"
    yield from table_lines(shown.columns, shown.head(count).to_numpy())
    yield f"most opposed to {name}"
    yield from table_lines(shown.columns, shown.iloc[::-1].head(count).to_numpy())


def layers(
    network: NetworkOptions,
    match: Annotated[
        str, typer.Option(help="List only layers whose names match this pattern, such as 'inception4*'.")
    ] = "*",
    size: Annotated[
        str | None,
        typer.Option(
            metavar="PIXELS",
            help="Size of the images, on which grids depend: a side in pixels, or height x width, such as 64x128.",
        ),
    ] = None,
) -> None:
    """List a network's layers: channels, grid, receptive field."""
    from featmap.cli import console

    for line in layer_lines(network.load(), parse_size(size), match):
        console.out().print(line)


def recipes(
    name: Annotated[str | None, typer.Argument(help="Name of a recipe. Default: all recipes.")] = None,
) -> None:
    """Print recipes: the settings by which images are made."""
    from featmap.cli import console

    for line in recipe_lines(name):
        console.out().print(line)


def neighbours(
    unit: Annotated[str, typer.Argument(help="A feature, such as inception4a:17.")],
    run: Annotated[Path, typer.Argument(help="Folder of a finished similarity run.")],
    count: Annotated[int, typer.Option("--count", "-n", help="Number of features to list.")] = 10,
    stimuli: Annotated[
        str | None,
        typer.Option(help="Which map: images or photographs. Default: that of images, where the run has one."),
    ] = None,
) -> None:
    """List the features most and least similar to a feature."""
    from featmap.cli import console

    for line in neighbour_lines(unit, run, count, stimuli):
        console.out().print(line)
