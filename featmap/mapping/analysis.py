"""Analyse the arrays of a similarity run: measures, clusters and tables of each layer and between layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from featmap.errors import FeatmapError
from featmap.mapping import cluster_io, result, tables
from featmap.mapping.result import LayerArrays, LayerMaps, Pair, SimilarityMap
from featmap.mapping.view import View
from featmap.runs.array_layout import STATUSES
from featmap.runs.job import Job
from featmap.runs.progress import Watcher
from featmap.runs.store import open_arrays
from featmap.stats import clustering, correlation, cross_layer, measures, similarity_frame
from featmap.stats.cross_layer import CrossLayerMap


def analyse(job: Job, folder: Path, view: View, watcher: Watcher, reuse: bool = False) -> LayerMaps:
    """Analyse the arrays of a run.

    Parameters
    ----------
    job : Job
        Job of the run.
    folder : Path
        Its folder, in which every unit has landed.
    view : View
        What tables and figures are to show.
    watcher : Watcher
        Hears of the progress.
    reuse : bool, default False
        Read the clusters and the table of layers that are stored in the folder: they belong to these arrays.

    Returns
    -------
    LayerMaps
        Map of each layer and between every two.
    """
    data = open_arrays(folder)
    maps = {layer: map_layer(job, layer, data, view, watcher, folder, reuse) for layer in job.layers}
    crossings = _cross_layers(job, maps, data)
    table = result.read_layer_table(folder) if reuse and crossings else None
    if table is None:
        table = cross_layer.layer_table(
            list(crossings.values()), lambda done, total: watcher.stage("layer pairs and floors", done, total)
        )
    pairs = tables.summarise_crossings(list(crossings.values()), table, view.measure)
    if len(maps) > 1:
        summary = {"layers": {layer: one.summary for layer, one in maps.items()}, "crossings": pairs}
        return LayerMaps(folder, maps, crossings, table, summary)
    (only,) = maps.values()
    only.crossings = crossings
    only.summary |= {"crossings": pairs} if pairs else {}
    return LayerMaps(folder, maps, crossings, table, only.summary)


def map_layer(
    job: Job, layer: str, data: xr.Dataset, view: View, watcher: Watcher, folder: Path, reuse: bool = False
) -> SimilarityMap:
    """Map the features of one layer on their own images.

    Parameters
    ----------
    job : Job
        Job of the run.
    layer : str
        One of its mapped layers.
    data : xarray.Dataset
        Arrays of the run.
    view : View
        What tables and figures are to show.
    watcher : Watcher
        Hears of the progress.
    folder : Path
        Run folder.
    reuse : bool, default False
        Read the clusters that are stored in the folder: they belong to these arrays.

    Returns
    -------
    SimilarityMap
        The map of the layer.
    """
    names, place = job.features_of(layer), tables.places(job.layers)[layer]
    arrays = LayerArrays.read(data, names)
    A, null, live = arrays.A, arrays.null, arrays.live
    frames = {name: m(A, null, live) for name, m in measures.MEASURES.items() if name != "raw"}
    stored = folder / place / cluster_io.NAME
    clusters = cluster_io.read(stored, frames["profile"], view.neighbours) if reuse else None
    if clusters is None:
        clusters = clustering.find_clusters(
            A,
            null,
            live,
            k=view.neighbours,
            progress=lambda done, total: watcher.stage("clusters and nulls", done, total),
        )
    features = tables.features(
        names,
        job.network.layer(layer, job.recipe.size),
        [STATUSES[s] for s in arrays.status],
        arrays.activation.mean(0),
        A,
        null,
        frames,
        clusters,
    )
    own = set(names)
    shown = [f for f in job.shown if f in own]
    summary = tables.summarise(features, A, frames, clusters, live, shown)
    if len(job.seeds) > 1:
        summary["seeds"] = _compare_seeds(arrays, clusters, view.neighbours)
    return SimilarityMap(folder, A, null, frames, clusters, features, shown, summary, place)


def _cross_layers(job: Job, maps: dict[str, SimilarityMap], data: xr.Dataset) -> dict[Pair, CrossLayerMap]:
    """Return the cross-layer map of every layer that was maximised to every other that was recorded."""
    pairs = [(one, other) for one in maps for other in job.responses if other != one]
    if not pairs:
        return {}
    A = pd.DataFrame(data["A"].values.astype(np.float64).mean(0), index=job.labels, columns=job.columns)
    null = pd.Series(data["null"].values.astype(np.float64).mean(0), index=job.columns)
    columns = {layer: list(one.activations.columns) for layer, one in maps.items()}
    live = [f for one in maps.values() for f in one.clusters.labels.index]
    for layer in job.responses:
        if layer not in maps:  # nothing is known against the features of a probed layer
            columns[layer] = [f"{layer}:{c}" for c in range(job.network.layer(layer, job.recipe.size).channels)]
            live += columns[layer]
    crossings: dict[Pair, CrossLayerMap] = {}
    for one, other in pairs:
        back = crossings.get((other, one))
        S = None if back is None else back.measures["profile"].T
        crossings[one, other] = cross_layer.build_map(
            A, null, (one, other), columns[one], columns[other], live, tables.NEAREST, S
        )
    return crossings


def _compare_seeds(arrays: LayerArrays, clusters: clustering.Clusters, neighbours: int) -> dict[str, Any]:
    """Return how far the maps of single seeds agree: correlation of S, and ARI of the communities."""
    frames, parts = [], []
    for responses, nulls in zip(arrays.responses, arrays.nulls, strict=True):
        A = pd.DataFrame(responses, index=arrays.names, columns=arrays.names)
        S = measures.profile(A, pd.Series(nulls, index=arrays.names), arrays.live)
        frames.append(S)
        parts.append(clustering.communities(clustering.neighbour_graph(S, neighbours)).labels.to_numpy())
    pairs = [(i, j) for i in range(len(parts)) for j in range(i)]
    try:
        agreement: float | None = float(similarity_frame.seed_agreement(frames))
    except FeatmapError:  # fewer than two similarities that vary: nothing to correlate
        agreement = None
    return {
        "count": len(arrays.responses),
        "correlation_of_S": agreement,
        "ari_of_clusters": float(np.mean([correlation.adjusted_rand(parts[i], parts[j]) for i, j in pairs])),
        "ari_of_louvain_with_itself": float(clusters.communities.self_agreement),
    }
