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

from featmap.errors import FeatmapError, StoreError
from featmap.mapping import cluster_io, cross_tables, tables
from featmap.runs import job as runs
from featmap.runs.engine import Watcher
from featmap.runs.job import STATUSES, Job
from featmap.runs.store import ARRAYS, Run, readable
from featmap.stats import clustering, cross_layer, measures
from featmap.stats.cross_layer import Crossing

Pair = tuple[str, str]
_K = TypeVar("_K")
_V = TypeVar("_V")


class Later(Mapping[_K, _V]):
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
    crossings: dict[Pair, Crossing] = field(default_factory=dict)

    @property
    def dataset(self) -> xr.Dataset:
        """The run's arrays with their labels: images, A, curves, statuses."""
        return open_arrays(self.folder)

    def lines(self) -> list[str]:
        """Return what was found, in words."""
        return tables.summary_lines(self.summary) + cross_tables.lines(self.summary.get("crossings", []))

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
    told : of a large run, what it found in words; its maps and crossings are read anew when they are asked for
    """

    folder: Path
    maps: Mapping[str, SimilarityMap]
    crossings: Mapping[Pair, Crossing]
    layers: pd.DataFrame
    summary: dict[str, Any]
    told: Sequence[str] = ()

    @property
    def dataset(self) -> xr.Dataset:
        """The run's arrays with their labels: images, A, curves, statuses."""
        return open_arrays(self.folder)

    def lines(self) -> list[str]:
        """Return what was found, in words."""
        if self.told:
            return list(self.told)
        if len(self.maps) == 1:
            return next(iter(self.maps.values())).lines()
        own = [f"{layer}: {line}" for layer, found in self.maps.items() for line in found.lines()]
        return own + cross_tables.lines(self.summary["crossings"])

    def _repr_html_(self) -> str:
        return _html(self.folder, self.lines()) + str(self.layers._repr_html_())


def _html(folder: Path, lines: list[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<b>featmap similarity</b> {escape(str(folder))}<ul>{items}</ul>"


def open_arrays(folder: str | Path) -> xr.Dataset:
    """Return the labelled arrays of a run folder, read lazily."""
    run = Run.read(Path(folder))
    with readable(run.folder):
        if not run.holds(run.manifest.get("layout", {})):
            raise StoreError(
                f"run {str(folder)!r}: the metadata of its arrays are damaged; its own command mends them, "
                "`featmap verify` names them"
            )
        return xr.open_zarr(run.folder / ARRAYS, consolidated=True)


def combined_status(status: np.ndarray) -> np.ndarray:
    """Return one status a feature from those of all seeds (S x N): the worst, as `STATUSES` is ordered."""
    return status.max(axis=0)


def analyse(
    job: Job,
    shown: list[str],
    folder: Path,
    neighbours: int,
    watcher: Watcher,
    read_findings: bool = False,
    measure: str = "coactivation",
) -> LayerMaps:
    """Return measures, clusters and tables of the arrays in a run folder.

    `read_findings` says that clusters and layer table in the folder belong to these arrays, so that they need
    not be found again; `measure` is what the figures are to show.
    """
    data = open_arrays(folder)
    places = tables.places(job.layers)
    maps = {
        layer: map_of(job, layer, shown, folder, places[layer], data, neighbours, watcher, read_findings)
        for layer in job.layers
    }
    crossed = _crossings(job, maps, data)
    table = cross_tables.read(folder) if read_findings and crossed else None
    if table is None:
        table = cross_layer.layer_table(
            list(crossed.values()), lambda done, total: watcher.stage("layer pairs and floors", done, total)
        )
    pairs = cross_tables.summarise(list(crossed.values()), table, measure)
    if len(maps) > 1:
        summary = {"layers": {layer: found.summary for layer, found in maps.items()}, "crossings": pairs}
        return LayerMaps(folder, maps, crossed, table, summary)
    (found,) = maps.values()
    found.crossings = crossed
    found.summary |= {"crossings": pairs} if pairs else {}
    return LayerMaps(folder, maps, crossed, table, found.summary)


def map_of(
    job: Job,
    layer: str,
    shown: list[str],
    folder: Path,
    place: str,
    data: xr.Dataset,
    neighbours: int,
    watcher: Watcher,
    read_clusters: bool,
) -> SimilarityMap:
    """Return the map of one layer's features on their own images."""
    names = features_of(job, layer)
    own = data.sel(image=names, response=names)
    responses, nulls = own["A"].values.astype(np.float64), own["null"].values.astype(np.float64)
    status = combined_status(own["status"].values.astype(int))
    live = [n for n, s in zip(names, status, strict=True) if s in (runs.LIVE, runs.RESCUED)]
    A = pd.DataFrame(responses.mean(0), index=names, columns=names)
    null = pd.Series(nulls.mean(0), index=names)
    frames = {name: m(A, null, live) for name, m in measures.MEASURES.items() if name != "raw"}
    written = folder / place / cluster_io.NAME
    clusters = cluster_io.read(written, frames["profile"], neighbours) if read_clusters else None
    if clusters is None:
        clusters = clustering.find_clusters(
            A, null, live, k=neighbours, progress=lambda done, total: watcher.stage("clusters and nulls", done, total)
        )
    features = tables.features(
        names,
        job.network.layer(layer, job.recipe.size),
        [STATUSES[s] for s in status],
        own["activation"].values.mean(0),
        A,
        null,
        frames,
        clusters,
    )
    chosen = [f for f in shown if f in set(names)]
    summary = tables.summarise(features, A, frames, clusters, live, chosen)
    if len(job.seeds) > 1:
        summary["seeds"] = _over_seeds(names, responses, nulls, live, clusters, neighbours)
    return SimilarityMap(folder, A, null, frames, clusters, features, chosen, summary, place)


def features_of(job: Job, layer: str) -> list[str]:
    """Return the labels of the job's images that are features of a layer."""
    return [str(o) for o in job.objectives if list(o.layers) == [layer]]


def stored(folder: str | Path, wanted: Sequence[str] | None = None) -> dict[str, SimilarityMap]:
    """Return the maps of a finished similarity run by layer (those `wanted`), from its folder: no network is needed.

    `features` has the rows of the features shown; `crossings` is empty.

    Raises
    ------
    StoreError
        if the run is of another command, not finished, or has lost a file.
    """
    run = Run.read(Path(folder))
    if run.identity.get("command") != "similarity" or run.manifest.get("status") != "complete":
        raise StoreError(f"run {str(folder)!r} is no finished similarity run; its own command finishes it")
    layers = run.identity.get("layers") or [run.identity["layer"]]
    data, neighbours = open_arrays(folder), int(run.manifest["view"]["neighbours"])
    summaries = run.manifest["summary"].get("layers") or {layers[0]: run.manifest["summary"]}
    found = {}
    for layer, place in tables.places(layers).items():
        if wanted is not None and layer not in wanted:
            continue
        names = [n for n in map(str, data["image"].values) if n.rpartition(":")[0] == layer]
        own = data.sel(image=names, response=names)
        status = combined_status(own["status"].values.astype(int))
        live = [n for n, s in zip(names, status, strict=True) if s in (runs.LIVE, runs.RESCUED)]
        A = pd.DataFrame(own["A"].values.astype(np.float64).mean(0), index=names, columns=names)
        null = pd.Series(own["null"].values.astype(np.float64).mean(0), index=names)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", measures.FewStimuliWarning)  # the run has said so
            frames = {name: m(A, null, live) for name, m in measures.MEASURES.items() if name != "raw"}
        clusters = cluster_io.read(run.folder / place / cluster_io.NAME, frames["profile"], neighbours)
        if clusters is None:
            raise StoreError(f"run {str(folder)!r} has lost {place}{cluster_io.NAME}; run its command again to mend it")
        features = tables.read_frame(run.folder, f"{place}features")
        shown = [str(name) for name in features.index]
        found[layer] = SimilarityMap(run.folder, A, null, frames, clusters, features, shown, summaries[layer], place)
    return found


def _crossings(job: Job, maps: dict[str, SimilarityMap], data: xr.Dataset) -> dict[Pair, Crossing]:
    """Return the cross-layer map of every layer that was maximised to every other that was recorded."""
    pairs = [(one, other) for one in maps for other in job.responses if other != one]
    if not pairs:
        return {}
    A = pd.DataFrame(data["A"].values.astype(np.float64).mean(0), index=job.labels, columns=job.columns)
    null = pd.Series(data["null"].values.astype(np.float64).mean(0), index=job.columns)
    columns = {layer: list(found.activations.columns) for layer, found in maps.items()}
    live = [f for found in maps.values() for f in found.clusters.labels.index]
    for layer in job.responses:
        if layer not in maps:  # nothing is known against the features of a probed layer
            columns[layer] = [f"{layer}:{c}" for c in range(job.network.layer(layer, job.recipe.size).channels)]
            live += columns[layer]
    found: dict[Pair, Crossing] = {}
    for one, other in pairs:
        back = found.get((other, one))
        S = None if back is None else back.measures["profile"].T
        found[one, other] = cross_layer.cross(
            A, null, (one, other), columns[one], columns[other], live, tables.NEAREST, S
        )
    return found


def _over_seeds(
    names: list[str],
    responses: np.ndarray,
    nulls: np.ndarray,
    live: list[str],
    clusters: clustering.Clusters,
    neighbours: int,
) -> dict[str, Any]:
    """Return how far the maps of single seeds agree: correlation of S, and ARI of the communities."""
    frames, parts = [], []
    for one, none in zip(responses, nulls, strict=True):
        A = pd.DataFrame(one, index=names, columns=names)
        S = measures.profile(A, pd.Series(none, index=names), live)
        frames.append(S)
        parts.append(clustering.communities(clustering.neighbour_graph(S, neighbours)).labels.to_numpy())
    pairs = [(i, j) for i in range(len(parts)) for j in range(i)]
    try:
        agreement: float | None = float(measures.seed_agreement(frames))
    except FeatmapError:  # fewer than two similarities that vary: nothing to correlate
        agreement = None
    return {
        "count": len(responses),
        "correlation_of_S": agreement,
        "ari_of_clusters": float(np.mean([clustering.adjusted_rand(parts[i], parts[j]) for i, j in pairs])),
        "ari_of_louvain_with_itself": float(clusters.communities.self_agreement),
    }
