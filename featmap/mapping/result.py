"""What a similarity run finds: the map of each layer, the cross-layer maps between them, from the stored arrays."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import xarray as xr

from featmap.errors import StoreError
from featmap.mapping import cluster_io, tables
from featmap.runs import store
from featmap.runs.array_layout import LIVE, RESCUED
from featmap.runs.manifest import SIMILARITY
from featmap.runs.store import Run, open_arrays
from featmap.stats import clustering, measures
from featmap.stats.cross_layer import CrossLayerMap

Pair = tuple[str, str]
_K = TypeVar("_K")
_V = TypeVar("_V")


class LazyMapping(Mapping[_K, _V]):
    """Values by key that are read anew whenever one is asked for, so that no two need fit into memory."""

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
class SimilarityMap:
    """What a similarity run found of one layer; the same as lies in its folder.

    Attributes
    ----------
    folder : the run folder
    activations : A of the features mapped, rows images, columns responses, averaged over seeds
    null : responses to the null image, averaged over seeds
    measures : frames by name: coactivation, relative, selective, profile; `pd.NA` where undefined
    clusters : consensus clusters of the profile similarity and their nulls
    features : one row a feature: status, activation, branch, cluster, nearest neighbours
    shown : the features that tables and figures show
    summary : the figures that the command prints
    place : where its tables and figures lie in the folder, "" at the top
    crossings : the cross-layer maps to the layers that were probed, by (layer, probed layer)
    """

    folder: Path
    activations: pd.DataFrame
    null: pd.Series
    measures: dict[str, pd.DataFrame]
    clusters: clustering.Clusters
    features: pd.DataFrame
    shown: list[str]
    summary: dict[str, Any]
    place: str = ""
    crossings: dict[Pair, CrossLayerMap] = field(default_factory=dict)

    @property
    def dataset(self) -> xr.Dataset:
        """The run's arrays with their labels: images, A, curves, statuses."""
        return open_arrays(self.folder)

    def lines(self) -> list[str]:
        """Return what was found, in words."""
        return tables.summary_lines(self.summary) + tables.crossing_lines(self.summary.get("crossings", []))

    def _repr_html_(self) -> str:
        head = self.features.head(20)._repr_html_()
        return _html(self.folder, self.lines()) + str(head)


@dataclass(eq=False)
class LayerMaps:
    """What a similarity run found of several layers; the same as lies in its folder.

    Attributes
    ----------
    folder : the run folder
    maps : each listed layer's own map, by name
    crossings : the cross-layer map of every ordered pair (l, k): l maximised, k responding
    layers : one row an ordered pair, see `featmap.stats.cross_layer.layer_table`
    summary : the figures that the command prints
    large_lines : of a large run, its findings in words; its maps and crossings are read anew when they are asked for
    """

    folder: Path
    maps: Mapping[str, SimilarityMap]
    crossings: Mapping[Pair, CrossLayerMap]
    layers: pd.DataFrame
    summary: dict[str, Any]
    large_lines: Sequence[str] = ()

    @property
    def dataset(self) -> xr.Dataset:
        """The run's arrays with their labels: images, A, curves, statuses."""
        return open_arrays(self.folder)

    def lines(self) -> list[str]:
        """Return what was found, in words."""
        if self.large_lines:
            return list(self.large_lines)
        if len(self.maps) == 1:
            return next(iter(self.maps.values())).lines()
        own = [f"{layer}: {line}" for layer, one in self.maps.items() for line in one.lines()]
        return own + tables.crossing_lines(self.summary["crossings"])

    def _repr_html_(self) -> str:
        return _html(self.folder, self.lines()) + str(self.layers._repr_html_())


def _html(folder: Path, lines: list[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<b>featmap similarity</b> {escape(str(folder))}<ul>{items}</ul>"


@dataclass(frozen=True, eq=False)
class LayerArrays:
    """What the arrays of a run hold of one layer's features on their own images.

    Parameters
    ----------
    names : list of str
        The N features, images and responses alike.
    responses : numpy.ndarray
        A of each seed, S x N x N in float64.
    nulls : numpy.ndarray
        Responses to the null image of each seed, S x N in float64.
    activation : numpy.ndarray
        Response of each feature to its own image, S x N.
    status : numpy.ndarray
        Worst status of each feature over the seeds, an index into `featmap.runs.job.STATUSES`.
    """

    names: list[str]
    responses: np.ndarray
    nulls: np.ndarray
    activation: np.ndarray
    status: np.ndarray

    @staticmethod
    def read(data: xr.Dataset, names: list[str]) -> LayerArrays:
        """Read the arrays of some features.

        Parameters
        ----------
        data : xarray.Dataset
            Arrays of a run.
        names : list of str
            Features of one layer.

        Returns
        -------
        LayerArrays
            In the order of `names`.
        """
        own = data.sel(image=names, response=names)
        return LayerArrays(
            names,
            own["A"].values.astype(np.float64),
            own["null"].values.astype(np.float64),
            own["activation"].values,
            worst_status(own["status"].values.astype(int)),
        )

    @property
    def live(self) -> list[str]:
        """Features that have a maximising image."""
        return [n for n, s in zip(self.names, self.status, strict=True) if s in (LIVE, RESCUED)]

    @property
    def A(self) -> pd.DataFrame:
        """Responses averaged over seeds, N x N."""
        return pd.DataFrame(self.responses.mean(0), index=self.names, columns=self.names)

    @property
    def null(self) -> pd.Series:
        """Responses to the null image averaged over seeds, N."""
        return pd.Series(self.nulls.mean(0), index=self.names)


def read_maps(folder: str | Path, layers: Sequence[str] | None = None) -> dict[str, SimilarityMap]:
    """Read the maps of a finished similarity run from its folder; no network is needed.

    Parameters
    ----------
    folder : path
        Run folder.
    layers : sequence of str, optional
        Layers that are wanted; None reads all.

    Returns
    -------
    dict of SimilarityMap
        By layer. `features` has the rows of the features shown, `crossings` is empty.

    Raises
    ------
    StoreError
        If the run is of another command, not finished, or has lost a file.
    """
    run = Run.read(Path(folder))
    if run.identity.get("command") != SIMILARITY or not run.manifest.is_complete:
        raise StoreError(f"run {str(folder)!r} is not a finished similarity run; its own command finishes it")
    mapped = run.identity.get("layers") or [run.identity["layer"]]
    data, neighbours = open_arrays(folder), int(run.manifest.view["neighbours"])
    summaries = run.manifest.summary.get("layers") or {mapped[0]: run.manifest.summary}
    maps = {}
    for layer, place in tables.places(mapped).items():
        if layers is not None and layer not in layers:
            continue
        names = [n for n in map(str, data["image"].values) if n.rpartition(":")[0] == layer]
        arrays = LayerArrays.read(data, names)
        A, null, live = arrays.A, arrays.null, arrays.live
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", measures.FewStimuliWarning)  # the run has said so
            frames = {name: m(A, null, live) for name, m in measures.MEASURES.items() if name != "raw"}
        clusters = cluster_io.read(run.folder / place / cluster_io.NAME, frames["profile"], neighbours)
        if clusters is None:
            raise StoreError(
                f"run {str(folder)!r} has lost {place}{cluster_io.NAME}; run its command again to repair it"
            )
        features = store.read_frame(run.folder, f"{place}features")
        shown = [str(name) for name in features.index]
        maps[layer] = SimilarityMap(run.folder, A, null, frames, clusters, features, shown, summaries[layer], place)
    return maps


def worst_status(status: np.ndarray) -> np.ndarray:
    """Return one status a feature from those of all seeds (S x N): the worst, as `STATUSES` is ordered."""
    return status.max(axis=0)


LAYER_TABLE = f"{tables.CROSS}/layers"


def read_layer_table(folder: Path) -> pd.DataFrame | None:
    """Return the table of layers that `write` left in a run folder, or None where there is none."""
    path = folder / f"{LAYER_TABLE}.parquet"
    return pd.read_parquet(path).reset_index() if path.is_file() else None


def arranged(found: SimilarityMap) -> tuple[list[str], np.ndarray, pd.Series | None]:
    """Return the live features shown as the heatmap orders them, their linkage, and their clusters where allowed.

    The linkage is that of the features in the order of `found.shown`.
    """
    nodes = [f for f in found.shown if f in found.clusters.graph]
    clusters = found.clusters.labels.loc[nodes] if found.clusters.allowed else None
    grouping = clusters if clusters is not None else pd.Series(0, index=nodes)
    linkage, leaves = clustering.leaf_order(found.measures["profile"].loc[nodes, nodes], grouping)
    return [nodes[i] for i in leaves], linkage, clusters
