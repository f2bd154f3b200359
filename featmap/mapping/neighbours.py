"""Answers read off a finished run: a feature's neighbours, as a frame and as lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from featmap.cli.listing import table
from featmap.errors import FeatmapError, UnitError, nearest
from featmap.mapping import flags, tables
from featmap.runs.store import Run, readable


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
    return flags.is_marked(tables.read_frame(_folder_of(unit, folder), "features"), unit)


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
    yield from table(shown.columns, shown.head(count).to_numpy())
    yield f"most opposed to {name}"
    yield from table(shown.columns, shown.iloc[::-1].head(count).to_numpy())
