"""Answers read off a network or a recipe, as lines of text; they wait for nothing that reads runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from featmap.errors import FeatmapError, UnitError, nearest
from featmap.optimize import recipe as recipes

if TYPE_CHECKING:
    from featmap.network.model import Network

LAYER_COLUMNS = ("layer", "kind", "channels", "grid", "receptive field", "branches")


def table(columns: Iterable[object], rows: Iterable[Iterable[object]]) -> list[str]:
    """Return rows as aligned lines of text, the columns' names first."""
    texts = [[str(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in texts]


def layer_rows(network: Network, size: int | None = None) -> list[tuple[str, ...]]:
    """Return a row for every layer, in `LAYER_COLUMNS`: the grid is height x width, the branches have widths."""
    trace = network.trace(size)
    if not trace.layers:
        raise FeatmapError(
            f"{network.name} has no layer at {trace.size} pixels "
            f"({trace.failure or 'no convolutional grid'}); give --size"
        )
    return [
        (
            layer.name,
            layer.kind,
            str(layer.channels),
            f"{layer.height} x {layer.width}",
            str(layer.field),
            ", ".join(f"{name} {width}" for name, width in layer.branches),
        )
        for layer in trace.layers.values()
    ]


def layer_lines(network: Network, size: int | None, match: str) -> Iterator[str]:
    """Yield the table of layers whose names match a pattern."""
    rows = layer_rows(network, size)
    chosen = [row for row in rows if fnmatchcase(row[0], match)]
    if not chosen:
        near = nearest(match.strip("*"), [name for name, *_ in rows])
        raise UnitError(f"no layer matches {match!r}{near}; `featmap layers` lists all")
    trace = network.trace(size)
    yield f"layers at {trace.size} x {trace.size} pixels"
    yield from table(LAYER_COLUMNS, chosen)
    if trace.failure:
        yield f"the network fails behind these at {trace.size} pixels ({trace.failure}); give a larger --size"


def recipe_lines(name: str | None) -> Iterator[str]:
    """Yield the settings of one recipe, or of all."""
    chosen = list(recipes.RECIPES.values()) if name is None else [recipes.recipe(name)]
    for recipe in chosen:
        yield recipe.name
        for setting in fields(recipe):
            value = getattr(recipe, setting.name)
            if setting.name in ("name", "octaves", "notes"):
                continue
            yield f"  {setting.name}: {value}"
        for k, octave in enumerate(recipe.octaves, 1):
            size = "the size asked for" if octave.size is None else octave.size
            if isinstance(octave.size, float):
                size = f"{octave.size:g} of the size asked for"
            yield (
                f"  octave {k}: size {size}, {octave.steps} steps, step size {octave.rate[0]:g} to {octave.rate[1]:g}, "
                f"blur sigma {octave.sigma[0]:g} to {octave.sigma[1]:g}"
            )
        for note in recipe.notes:
            yield f"  our choice: {note}"
        if recipe.metric == "l1":
            yield "  note: under l1 the distance to C is unsigned, so C has no effect"
