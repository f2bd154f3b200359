"""Answers read off a finished run: a feature's neighbours, as a frame and as lines of text."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from featmap.errors import UnitError, suggest
from featmap.mapping import flags, tables
from featmap.runs import store
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
    has = f"it maps {', '.join(layers)}{suggest(layer, layers)}"
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
        S, C, features = (store.read_frame(folder, name) for name in names)
    if unit not in features.index:
        raise UnitError(
            f"feature {unit!r} is not in this run{suggest(unit, features.index)}; "
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


def is_unreliable(unit: str, folder: Path) -> bool:
    """Check whether a validation found a feature unreliable.

    Parameters
    ----------
    unit : str
        A feature of the run.
    folder : Path
        Folder of a finished similarity run.

    Returns
    -------
    bool
        False where the run has not been validated.
    """
    return flags.is_marked(store.read_frame(_folder_of(unit, folder), "features"), unit)
