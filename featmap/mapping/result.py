"""Results of a similarity run: the map of each layer and the cross-layer maps; read from its folder."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from html import escape
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import xarray as xr

from featmap.errors import StoreError
from featmap.mapping import cluster_io, tables
from featmap.mapping.layer_arrays import (
    LayerArrays,
    correlate_photographs,
    halve_photographs,
    photograph_responses,
    select_compared,
)
from featmap.mapping.view import PHOTOGRAPH_RESPONSES, PHOTOGRAPHS, View, recorded_formula
from featmap.runs import store
from featmap.runs.manifest import SIMILARITY
from featmap.runs.store import Run, open_arrays
from featmap.stats import clustering, measures
from featmap.stats.cross_layer import CrossLayerMap
from featmap.stats.frames import plain_columns
from featmap.stats.map_agreement import MapAgreement, common_features, compare
from featmap.stats.measures import FORMULA

Pair = tuple[str, str]
LAYER_TABLE, PHOTOGRAPH_LAYER_TABLE = f"{tables.CROSS}/layers", f"{tables.CROSS}/{PHOTOGRAPHS}_layers"
"""Paths of the tables of layers in a run folder, over images and over photographs beside these, without ending."""
EXAMPLES, EXAMPLE_MAPS = "examples", "examples.nc"
"""Table of the dataset examples in the folder of a layer, without its ending, and the file of their activation maps."""

_K = TypeVar("_K")
_V = TypeVar("_V")


class LazyMapping(Mapping[_K, _V]):
    """A mapping that reads a value each time that it is requested, and keeps none.

    Parameters
    ----------
    keys : sequence
        Keys, in the order of iteration.
    read : callable
        Reads the value of a key.
    """

    def __init__(self, keys: Sequence[_K], read: Callable[[_K], _V]) -> None:
        self._keys, self._read = dict.fromkeys(keys), read

    def __getitem__(self, key: _K) -> _V:
        if key not in self._keys:
            raise KeyError(key)
        return self._read(key)

    def __iter__(self) -> Iterator[_K]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


@dataclass(eq=False)
class PhotographMap:
    """The map of photographs of one layer, as it is stored in the run folder.

    Parameters
    ----------
    folder : Path
        Run folder.
    layer : str
        Name of the layer.
    measures : dict of str to pandas.DataFrame
        `profile`, the similarity S over the photographs: features that respond differently to them, square.
    clusters : Clusters
        Consensus clusters of S, and their nulls.
    features : pandas.DataFrame
        One row a feature: status, mean and deviation of its responses, cluster, nearest neighbours.
    shown : list of str
        Features that tables and figures show.
    summary : dict
        Findings as plain JSON values.
    prefix : str
        Begins the paths of its tables and figures in the run folder, such as "photographs_".
    """

    folder: Path
    layer: str
    measures: dict[str, pd.DataFrame]
    clusters: clustering.Clusters
    features: pd.DataFrame
    shown: list[str]
    summary: dict[str, Any]
    prefix: str

    @property
    def similarity(self) -> pd.DataFrame:
        """Profile similarity S over the photographs."""
        return self.measures["profile"]

    @property
    def responses(self) -> xr.DataArray:
        """Responses to the photographs, photograph x response, read lazily."""
        return photograph_responses(open_arrays(self.folder), self.layer)

    def lines(self) -> list[str]:
        """Return the findings in words.

        Returns
        -------
        list of str
            One finding a line.
        """
        return tables.photograph_lines(self.summary)


@dataclass(eq=False)
class SimilarityMap:
    """The similarity map of one layer, as it is stored in the run folder.

    Parameters
    ----------
    folder : Path
        Run folder.
    activations : pandas.DataFrame
        A of the N mapped features, averaged over seeds: N images x N responses.
    null : pandas.Series
        Responses to the null image, averaged over seeds.
    measures : dict of str to pandas.DataFrame
        Measures by name: coactivation, relative, selective, profile, and linear_profile where the view shows it; NaN
        where undefined.
    clusters : Clusters
        Consensus clusters of the profile similarity, and their nulls.
    features : pandas.DataFrame
        One row a feature: status, activation, branch, cluster, nearest neighbours.
    shown : list of str
        Features that tables and figures show.
    summary : dict
        Findings as plain JSON values.
    prefix : str, default ""
        Subfolder of its tables and figures with a slash at the end; "" for the run folder itself.
    crossings : dict of (str, str) to CrossLayerMap
        Cross-layer maps to the probed layers, by (layer, probed layer).
    open_photographs : callable, optional
        Reads the map of photographs; None where the run has none.
    photograph_crossings : mapping of (str, str) to CrossLayerMap
        The same as `crossings` over photographs, see `LayerMaps`.
    formula : int, default FORMULA
        Formula of S, see `featmap.stats.measures.FORMULA`.
    """

    folder: Path
    activations: pd.DataFrame
    null: pd.Series
    measures: dict[str, pd.DataFrame]
    clusters: clustering.Clusters
    features: pd.DataFrame
    shown: list[str]
    summary: dict[str, Any]
    prefix: str = ""
    crossings: dict[Pair, CrossLayerMap] = field(default_factory=dict)
    open_photographs: Callable[[], PhotographMap] | None = None
    photograph_crossings: Mapping[Pair, CrossLayerMap] = field(default_factory=dict)
    formula: int = FORMULA

    @cached_property
    def photographs(self) -> PhotographMap | None:
        """Map of photographs, read when first requested; None without any."""
        return None if self.open_photographs is None else self.open_photographs()

    @cached_property
    def agreement(self) -> MapAgreement | None:
        """Comparison of S over both kinds of stimuli, with ceiling; None without both."""
        if self.photographs is None or not self.has_images:
            return None
        own, responses, S = self.compared
        return compare(own, S, halves=halve_photographs(responses, common_features(own, S), self.formula))

    @property
    def compared(self) -> tuple[pd.DataFrame, xr.DataArray, pd.DataFrame]:
        """S over images, responses to photographs and S over these, as compared."""
        assert self.photographs is not None
        stimuli = measures.select_stimuli(self.activations, self.null, list(self.clusters.labels.index))
        found = self.photographs
        return select_compared(self.measures["profile"], stimuli, found.responses, found.similarity, self.formula)

    @property
    def has_images(self) -> bool:
        """Whether the map is of images; otherwise photographs are its only stimuli."""
        return not self.activations.empty

    @property
    def dataset(self) -> xr.Dataset:
        """The run's arrays with their labels: images, A, curves, statuses."""
        return open_arrays(self.folder)

    @property
    def examples(self) -> pd.DataFrame:
        """The photographs that excite each feature shown most, of a run with photographs.

        One row an example, see `featmap.mapping.examples.LayerExamples`.
        """
        path = self.folder / f"{self.prefix}{EXAMPLES}.parquet"
        if not path.is_file():
            raise StoreError(
                f"run {str(self.folder)!r} has no dataset examples, as it recorded no responses to photographs; "
                "map the layer with photographs"
            )
        return store.read_frame(self.folder, self.prefix + EXAMPLES)

    def lines(self) -> list[str]:
        """Return the findings in words.

        Returns
        -------
        list of str
            One finding a line.
        """
        return tables.summary_lines(self.summary) + tables.all_crossing_lines(self.summary)

    def _repr_html_(self) -> str:
        head = self.features.head(20)._repr_html_()
        return _html(self.folder, self.lines()) + str(head)


@dataclass(eq=False)
class LayerMaps:
    """The maps of several layers, as they are stored in the run folder.

    Parameters
    ----------
    folder : Path
        Run folder.
    maps : mapping of str to SimilarityMap
        Map of each layer, by name.
    crossings : mapping of (str, str) to CrossLayerMap
        Cross-layer map of every ordered pair (l, k): l is maximised, k responds.
    layers : pandas.DataFrame
        One row an ordered pair, see `featmap.stats.cross_layer.layer_table`.
    summary : dict
        Findings as plain JSON values.
    large_lines : sequence of str, default ()
        Findings in words of a large run, whose maps and crossings are read each time that one is requested; empty for
        other runs.
    photograph_crossings : mapping of (str, str) to CrossLayerMap
        S over photographs between the features of two layers, computed when one is first requested; `profile` is the
        only measure, and `activations` has no rows. Empty for a run without photographs.
    """

    folder: Path
    maps: Mapping[str, SimilarityMap]
    crossings: Mapping[Pair, CrossLayerMap]
    layers: pd.DataFrame
    summary: dict[str, Any]
    large_lines: Sequence[str] = ()
    photograph_crossings: Mapping[Pair, CrossLayerMap] = field(default_factory=dict)

    @property
    def dataset(self) -> xr.Dataset:
        """The run's arrays with their labels: images, A, curves, statuses."""
        return open_arrays(self.folder)

    def lines(self) -> list[str]:
        """Return the findings in words.

        Returns
        -------
        list of str
            One finding a line.
        """
        if self.large_lines:
            return list(self.large_lines)
        if len(self.maps) == 1:
            return next(iter(self.maps.values())).lines()
        lines = [f"{layer}: {line}" for layer, one in self.maps.items() for line in one.lines()]
        return lines + tables.all_crossing_lines(self.summary)

    def _repr_html_(self) -> str:
        return _html(self.folder, self.lines()) + str(self.layers._repr_html_())


def _html(folder: Path, lines: list[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<b>featmap similarity</b> {escape(str(folder))}<ul>{items}</ul>"


def photograph_prefix(folder: str, alone: bool) -> str:
    """Name the beginning of the paths of a photographs' map.

    Parameters
    ----------
    folder : str
        Subfolder of the layer with a slash at the end, or "", see `featmap.mapping.tables.layer_folders`.
    alone : bool
        Whether photographs are the only stimuli of the run: their files then have the plain names.

    Returns
    -------
    str
        Such as "photographs_" or "conv1/photographs_".
    """
    return folder if alone else f"{folder}{PHOTOGRAPHS}_"


def map_of_photographs(found: PhotographMap) -> SimilarityMap:
    """Make the similarity map of a layer whose only stimuli are photographs.

    Parameters
    ----------
    found : PhotographMap
        Map of the photographs.

    Returns
    -------
    SimilarityMap
        Its S, clusters and features; there are no images, so that `activations` has no rows, the responses to the null
        image are NaN, and `profile` is the only measure.
    """
    names = [str(name) for name in found.responses["response"].values]
    return SimilarityMap(
        found.folder,
        pd.DataFrame(np.empty((0, len(names))), columns=names),
        pd.Series(np.nan, index=names),
        found.measures,
        found.clusters,
        found.features,
        found.shown,
        {PHOTOGRAPHS: found.summary},
        found.prefix,
        open_photographs=lambda: found,
    )


def _read_photographs(run: Run, layer: str, prefix: str, summary: dict[str, Any]) -> PhotographMap:
    """Read the map of photographs of one layer of a finished run; S is computed from the responses again."""
    formula = recorded_formula(run.manifest.view)
    _, S = correlate_photographs(photograph_responses(open_arrays(run.folder), layer), formula=formula)
    features = store.read_frame(run.folder, f"{prefix}features")
    clusters = _read_clusters(run, prefix, S)
    shown = [str(name) for name in features.index]
    return PhotographMap(run.folder, layer, {"profile": S}, clusters, features, shown, summary, prefix)


def _read_clusters(run: Run, prefix: str, S: pd.DataFrame) -> clustering.Clusters:
    """Read the stored clusters of a map of a finished run."""
    path, view = run.folder / f"{prefix}{cluster_io.FILE_NAME}", run.manifest.view
    clusters = cluster_io.read(path, S, int(view["neighbours"]), recorded_formula(view))
    if clusters is None:
        raise StoreError(
            f"run {str(run.folder)!r} has lost {prefix}{cluster_io.FILE_NAME}; run its command again to repair it"
        )
    return clusters


def read_maps(folder: str | Path, layers: Sequence[str] | None = None) -> dict[str, SimilarityMap]:
    """Read the maps of a finished similarity run from its folder, without its network.

    Parameters
    ----------
    folder : path
        Run folder.
    layers : sequence of str, optional
        Layers to read; None reads all.

    Returns
    -------
    dict of str to SimilarityMap
        By layer. `features` has only rows of the features shown, `crossings` is empty. S of a run of an earlier version
        is that of its clusters and tables, see `featmap.stats.measures.linear_profile`; the run's own command computes
        it anew.

    Raises
    ------
    StoreError
        If the run is of another command, not finished, or has lost a file.
    """
    run = Run.read(Path(folder))
    if run.identity.get("command") != SIMILARITY or not run.manifest.is_complete:
        raise StoreError(f"run {str(folder)!r} is not a finished similarity run; its own command finishes it")
    mapped = run.identity.get("layers") or [run.identity["layer"]]
    data, alone = open_arrays(folder), run.identity.get("stimuli") == PHOTOGRAPHS
    summaries = run.manifest.summary.get("layers") or {mapped[0]: run.manifest.summary}
    maps = {}
    for layer, prefix in tables.layer_folders(mapped).items():
        if layers is not None and layer not in layers:
            continue
        own = photograph_prefix(prefix, alone), summaries[layer].get(PHOTOGRAPHS, {})
        if alone:
            maps[layer] = map_of_photographs(_read_photographs(run, layer, *own))
            continue
        names = [n for n in map(str, data["image"].values) if n.rpartition(":")[0] == layer]
        arrays = LayerArrays.read(data, names)
        A, null = arrays.A, arrays.null
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", measures.FewStimuliWarning)  # the run warned already
            view = run.manifest.view
            frames = arrays.compute_measures(View.from_record(view).measure, recorded_formula(view))
        clusters = _read_clusters(run, prefix, frames["profile"])
        features = tables.split_status(store.read_frame(run.folder, f"{prefix}features"))
        shown = [str(name) for name in features.index]
        one = SimilarityMap(run.folder, A, null, frames, clusters, features, shown, summaries[layer], prefix)
        one.formula = recorded_formula(view)
        if PHOTOGRAPH_RESPONSES in data:
            one.open_photographs = partial(_read_photographs, run, layer, *own)
        maps[layer] = one
    return maps


def read_layer_table(folder: Path, name: str = LAYER_TABLE) -> pd.DataFrame | None:
    """Read a table of layers from a run folder.

    Parameters
    ----------
    folder : Path
        Run folder.
    name : str, optional
        Its path without ending: `LAYER_TABLE` or `PHOTOGRAPH_LAYER_TABLE`.

    Returns
    -------
    pandas.DataFrame or None
        One row an ordered pair, see `featmap.stats.cross_layer.layer_table`; None if the folder has no such table.
    """
    path = folder / f"{name}.parquet"
    return plain_columns(pd.read_parquet(path)).reset_index() if path.is_file() else None


def order_features(layer_map: SimilarityMap | PhotographMap) -> tuple[list[str], np.ndarray, pd.Series | None]:
    """Order the live features shown by hierarchical clustering, as in the heatmap.

    Parameters
    ----------
    layer_map : SimilarityMap or PhotographMap
        Map of the layer.

    Returns
    -------
    order : list of str
        The n live features shown, in the order of the leaves.
    linkage : numpy.ndarray
        Linkage of these features as SciPy writes it, (n - 1) x 4; it numbers them in the order of `layer_map.shown`.
    clusters : pandas.Series or None
        Cluster of each in the order of `layer_map.shown`; None where the nulls do not allow clusters.
    """
    nodes = [f for f in layer_map.shown if f in layer_map.clusters.graph]
    clusters = layer_map.clusters.labels.loc[nodes] if layer_map.clusters.allowed else None
    grouping = clusters if clusters is not None else pd.Series(0, index=nodes)
    S = layer_map.measures["profile"]
    linkage, leaves = clustering.leaf_order(S if nodes == list(S.columns) else S.loc[nodes, nodes], grouping)
    return [nodes[i] for i in leaves], linkage, clusters


def read_example_maps(folder: Path, prefix: str = "") -> xr.Dataset:
    """Read the activation maps of the examples of a layer.

    Parameters
    ----------
    folder : Path
        Run folder.
    prefix : str, default ""
        Folder of the layer with a slash at the end.

    Returns
    -------
    xarray.Dataset
        See `featmap.mapping.examples.LayerExamples`.

    Raises
    ------
    StoreError
        If the file is missing or damaged.
    """
    try:
        return xr.load_dataset(folder / f"{prefix}{EXAMPLE_MAPS}", engine="scipy")
    except (OSError, ValueError, TypeError) as error:
        raise StoreError(
            f"run {str(folder)!r}: {prefix}{EXAMPLE_MAPS} is missing or damaged; the run's own command writes it again"
        ) from error
