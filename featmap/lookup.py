"""Answers read off a network, a recipe or a finished run, as lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from fnmatch import fnmatchcase
from pathlib import Path

import pandas as pd

from featmap import marks, recipes, tables
from featmap.errors import FeatmapError, UnitError, nearest
from featmap.models import Network
from featmap.store import Run, readable


def table(frame: pd.DataFrame) -> list[str]:
    """Return a frame of texts as aligned lines, its column names first."""
    rows = [list(map(str, frame.columns)), *[[str(v) for v in row] for row in frame.to_numpy()]]
    widths = [max(len(row[k]) for row in rows) for k in range(len(frame.columns))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def layer_frame(network: Network, size: int | None = None) -> pd.DataFrame:
    """Return every layer: name, kind, channels, branches, grid (height x width), receptive field."""
    trace = network.trace(size)
    if not trace.layers:
        raise FeatmapError(
            f"{network.name} has no layer at {trace.size} pixels "
            f"({trace.failure or 'no convolutional grid'}); give --size"
        )
    rows = [
        (
            layer.name,
            layer.kind,
            layer.channels,
            f"{layer.height} x {layer.width}",
            str(layer.field),
            ", ".join(f"{name} {width}" for name, width in layer.branches),
        )
        for layer in trace.layers.values()
    ]
    return pd.DataFrame(rows, columns=["layer", "kind", "channels", "grid", "receptive field", "branches"])


def layer_lines(network: Network, size: int | None, match: str) -> Iterator[str]:
    """Yield the table of layers whose names match a pattern."""
    frame = layer_frame(network, size)
    chosen = frame[[fnmatchcase(name, match) for name in frame["layer"]]]
    if chosen.empty:
        raise UnitError(
            f"no layer matches {match!r}{nearest(match.strip('*'), frame['layer'])}; `featmap layers` lists all"
        )
    trace = network.trace(size)
    yield f"layers at {trace.size} x {trace.size} pixels"
    yield from table(chosen)
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


def _folder_of(unit: str, folder: Path) -> Path:
    """Return where in a run the map of a feature's layer lies."""
    identity = Run.read(folder).identity
    layers = identity.get("layers") or [identity["layer"]] if "layer" in identity or "layers" in identity else []
    layer = unit.rpartition(":")[0]
    if not layers or not layer:  # a run of another command, or no feature: what reads the tables says so
        return folder
    if layer in layers:
        return folder / tables.places(layers)[layer]
    has = f"it maps {', '.join(layers)}{nearest(layer, layers)}"
    if layer in identity.get("responses", []):
        has = f"it maps {', '.join(layers)} and only probes {layer}: see {tables.CROSS}/, or map both by --layers"
    raise UnitError(f"run {str(folder)!r} has no map of layer {layer!r}; {has}")


def neighbour_frame(unit: str, folder: Path) -> pd.DataFrame:
    """Return what a finished run says of one feature and every other, the most similar first.

    Columns: other, S, coactivation (the other's response to this feature's image), coactivated_by (this
    feature's response to the other's image), cluster, and in a validated run `reliable`, of the other.
    """
    with readable(folder):
        run, folder = Run.read(folder), _folder_of(unit, folder)
        names = ("profile", "coactivation", "features")
        run.check((folder / f"{name}.parquet").relative_to(run.folder).as_posix() for name in names)
        S, C, features = (tables.read_frame(folder, name) for name in names)
    if unit not in features.index:
        raise UnitError(
            f"feature {unit!r} is not in this run{nearest(unit, features.index)}; "
            f"it shows {features.index[0]} to {features.index[-1]}"
        )
    if unit not in S.index:
        raise UnitError(f"feature {unit!r} is {features.status[unit]} in this run and has no similarity to others")
    found = pd.DataFrame(
        {
            "other": S.columns,
            "S": S.loc[unit].to_numpy(),
            "coactivation": C.loc[unit, S.columns].to_numpy(),
            "coactivated_by": C.loc[S.columns, unit].to_numpy(),
            "cluster": features["cluster"].reindex(S.columns).to_numpy(),
        }
    )
    if "reliable" in features:  # the run has been validated
        found["reliable"] = features["reliable"].reindex(S.columns).to_numpy()
    found = found[(found["other"] != unit) & found["S"].notna()]
    return found.sort_values("S", ascending=False, kind="stable").reset_index(drop=True)


def _is_marked(unit: str, folder: Path) -> bool:
    return marks.is_marked(tables.read_frame(_folder_of(unit, folder), "features"), unit)


def neighbour_lines(unit: str, folder: Path, count: int) -> Iterator[str]:
    """Yield the features most like `unit` and those most opposed to it."""
    if count < 1:
        raise FeatmapError(f"count {count}: give 1 or more")
    frame = neighbour_frame(unit, folder)
    if frame.empty:
        raise UnitError(f"feature {unit!r} is the only one in this run; map more features")
    shown = frame.copy()
    for column in ("S", "coactivation", "coactivated_by"):
        shown[column] = ["undefined" if pd.isna(v) else f"{v:+.3f}" for v in frame[column]]
    if "reliable" in frame:
        shown["reliable"] = ["" if pd.isna(v) else "yes" if v else "no ?" for v in frame["reliable"]]
    shown["cluster"] = ["" if pd.isna(v) else str(int(v)) for v in frame["cluster"]]
    name = f"{unit} (unreliable, marked ?)" if _is_marked(unit, folder) else unit
    yield f"most like {name}"
    yield from table(shown.head(count))
    yield f"most opposed to {name}"
    yield from table(shown.iloc[::-1].head(count))
