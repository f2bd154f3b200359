"""Look up the neighbours of a feature in a finished similarity run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from featmap.errors import FeatmapError, StoreError, UnitError, suggest
from featmap.mapping import flags, tables
from featmap.mapping.result import photograph_prefix
from featmap.mapping.view import PHOTOGRAPHS
from featmap.network.unit import normalise_label
from featmap.runs import store
from featmap.runs.manifest import SIMILARITY, translate_read_errors
from featmap.runs.store import Run

IMAGES = "images"
"""Name of the map of maximising images."""


def _folder_of(unit: str, folder: Path, identity: dict[str, Any]) -> Path:
    """Find the folder that holds the tables of a feature's layer."""
    layers = identity.get("layers") or [identity["layer"]] if "layer" in identity or "layers" in identity else []
    layer = unit.partition(":")[0]
    if not layers or not layer:  # a run of another command, or not a feature: reading the tables fails with a message
        return folder
    if layer in layers:
        return folder / tables.layer_folders(layers)[layer]
    has = f"it maps {', '.join(layers)}{suggest(layer, layers)}"
    if layer in identity.get("responses", []):
        has = f"it maps {', '.join(layers)} and only probes {layer}: see {tables.CROSS}/, or map both layers"
    raise UnitError(f"run {str(folder)!r} has no map of layer {layer!r}; {has}")


def _label_of(unit: str, features: pd.DataFrame) -> str:
    """Find the label of a feature that may be given by the name of its direction."""
    if unit in features.index or "name" not in features:
        return unit
    # a name may hold colons, and a layer holds none
    layer, _, name = unit.partition(":")
    names = features["name"].astype(str)
    if name and name not in names.array and not name.replace(":", "").isdecimal():
        raise UnitError(f"{unit!r}: {layer} has no direction {name!r}{suggest(name, names)}; give a name or a number")
    return str(next(iter(features.index[(layer + ":" + names) == unit]), unit))


def _file_prefix(folder: Path, identity: dict[str, Any], stimuli: str | None) -> tuple[str, bool]:
    """Find what the names of a map's tables begin with, and whether it is the map of photographs."""
    alone = identity.get("stimuli") == PHOTOGRAPHS
    if stimuli not in (None, IMAGES, PHOTOGRAPHS):
        raise FeatmapError(f"stimuli {stimuli!r} is unknown; allowed: {IMAGES} or {PHOTOGRAPHS}")
    if alone and stimuli == IMAGES:
        raise FeatmapError(f"stimuli {IMAGES}: run {str(folder)!r} has a map of photographs only")
    if stimuli == PHOTOGRAPHS and "photographs" not in identity:
        raise FeatmapError(
            f"stimuli {PHOTOGRAPHS}: run {str(folder)!r} has no photographs; map the layer with photographs"
        )
    is_of_photographs = alone or stimuli == PHOTOGRAPHS
    return photograph_prefix("", alone) if is_of_photographs else "", is_of_photographs


def neighbour_frame(unit: str, folder: Path, stimuli: str | None = None) -> pd.DataFrame:
    """List all other features of a run by their similarity to one feature.

    Parameters
    ----------
    unit : str
        A feature, such as "inception4a:17", or "inception4a/nmf:eyes" for a direction that has a name.
    folder : Path
        Folder of a finished similarity run.
    stimuli : str, optional
        Which map: "images", of maximising images, or "photographs"; None is that of images where there is one.

    Returns
    -------
    pandas.DataFrame
        Columns other, S, coactivation (of the other by this feature's image), coactivated_by (of this feature by the
        other's image), cluster (of the other) and, after a validation, reliable (of the other); name (of the other)
        for directions that have names. A map of photographs has neither coactivation nor reliable. Features with
        undefined S are left out; the most similar feature comes first.

    Raises
    ------
    UnitError
        If the run does not show the feature, or the feature has no similarity to others.
    FeatmapError
        If the run has no map of these stimuli.
    StoreError
        If the folder is no similarity run, or a table is damaged.
    """
    unit = normalise_label(unit)
    with translate_read_errors(folder):
        run = Run.read(folder)
        if run.identity.get("command") != SIMILARITY:
            raise StoreError(f"run {str(folder)!r} is not a similarity run; give the folder of one")
        prefix, of_photographs = _file_prefix(folder, run.identity, stimuli)
        folder = _folder_of(unit, folder, run.identity)
        names = [f"{prefix}{name}" for name in ("profile", "features", *(() if of_photographs else ("coactivation",)))]
        run.check((folder / f"{name}.parquet").relative_to(run.folder).as_posix() for name in names)
        S, features, *others = (store.read_frame(folder, name) for name in names)
    unit = _label_of(unit, features)
    if unit not in features.index:
        raise UnitError(
            f"feature {unit!r} is not in this run{suggest(unit, features.index)}; "
            f"it shows {features.index[0]} to {features.index[-1]}"
        )
    if unit not in S.index:
        raise UnitError(f"feature {unit!r} is {features.status[unit]} in this run and has no similarity to others")
    table = pd.DataFrame({"other": S.columns, "S": S.loc[unit].to_numpy()})
    for C in others:  # of maximising images only
        table["coactivation"] = C.loc[unit, S.columns].to_numpy()
        table["coactivated_by"] = C.loc[S.columns, unit].to_numpy()
    table["cluster"] = features["cluster"].reindex(S.columns).to_numpy()
    if "name" in features:  # directions may have names
        table.insert(1, "name", features["name"].reindex(S.columns).to_numpy())
    if "reliable" in features:  # only after a validation
        table["reliable"] = features["reliable"].reindex(S.columns).to_numpy()
    table = table[(table["other"] != unit) & table["S"].notna()]
    return table.sort_values("S", ascending=False, kind="stable").reset_index(drop=True)


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
    unit = normalise_label(unit)
    features = store.read_frame(_folder_of(unit, folder, Run.read(folder).identity), "features")
    return flags.is_marked(features, _label_of(unit, features))
