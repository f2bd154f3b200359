"""Analyse the arrays of a similarity run: measures, clusters and tables, within each layer and between layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from featmap.errors import FeatmapError
from featmap.mapping import cluster_io, result, tables
from featmap.mapping.layer_arrays import LayerArrays
from featmap.mapping.result import LayerMaps, Pair, SimilarityMap
from featmap.mapping.view import View
from featmap.runs.job import Job
from featmap.runs.progress import Watcher
from featmap.runs.store import open_arrays
from featmap.stats import clustering, cross_layer, measures, reliability
from featmap.stats.cross_layer import CrossLayerMap
from featmap.stats.frames import seed_agreement


def analyse(job: Job, folder: Path, view: View, watcher: Watcher, reuse: bool = False) -> LayerMaps:
    """Analyse the arrays of a run.

    Parameters
    ----------
    job : Job
        Job of the run.
    folder : Path
        Run folder, in which all work units are stored.
    view : View
        Features, measure and neighbours that tables and figures show.
    watcher : Watcher
        Receives the progress.
    reuse : bool, default False
        Read the stored clusters and the stored table of layers instead of computing them; allowed only if they were
        computed from these arrays.

    Returns
    -------
    LayerMaps
        Similarity map of each layer and cross-layer map of every ordered pair.
    """
    data = open_arrays(folder)
    maps = {layer: map_layer(job, layer, data, view, watcher, folder, reuse) for layer in job.layers}
    crossings = _build_crossings(job, maps, data, view.measure)
    table = result.read_layer_table(folder) if reuse and crossings else None
    if table is None:
        table = cross_layer.layer_table(
            list(crossings.values()), lambda done, total: watcher.stage("layer pairs and floors", done, total)
        )
    pairs = cross_layer.summarise_crossings(list(crossings.values()), table, view.measure)
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
    """Compute the similarity map of one layer from the responses to its own images.

    Parameters
    ----------
    job : Job
        Job of the run.
    layer : str
        One of its mapped layers.
    data : xarray.Dataset
        Arrays of the run.
    view : View
        Features, measure and neighbours that tables and figures show.
    watcher : Watcher
        Receives the progress.
    folder : Path
        Run folder.
    reuse : bool, default False
        Read the stored clusters instead of computing them; allowed only if they were computed from these arrays.

    Returns
    -------
    SimilarityMap
        The map; its `crossings` are empty.
    """
    names, prefix = job.features_of(layer), tables.layer_folders(job.layers)[layer]
    arrays = LayerArrays.read(data, names)
    A, null, live = arrays.A, arrays.null, arrays.live
    frames = arrays.compute_measures(view.measure)
    stored = folder / prefix / cluster_io.FILE_NAME
    clusters = cluster_io.read(stored, frames["profile"], view.neighbours) if reuse else None
    if clusters is None:
        clusters = clustering.find_clusters(
            A,
            null,
            live,
            clustering.ClusterSettings(k=view.neighbours),
            progress=lambda done, total: watcher.stage("clusters and nulls", done, total),
        )
    features = tables.feature_table(
        names,
        job.network.layer(layer, job.recipe.size),
        arrays.status,
        arrays.activation.mean(0),
        A,
        null,
        frames,
        clusters,
    )
    if job.facets:
        features["facets"] = tables.tabulate_facets(data, names)[1]
    own = set(names)
    shown = [f for f in job.shown if f in own]
    summary = tables.summarise(features, A, frames, clusters, live, shown)
    if len(job.seeds) > 1:
        summary["seeds"] = _compare_seeds(arrays, clusters, view.neighbours)
    return SimilarityMap(folder, A, null, frames, clusters, features, shown, summary, prefix)


def _build_crossings(
    job: Job, maps: dict[str, SimilarityMap], data: xr.Dataset, shown: str
) -> dict[Pair, CrossLayerMap]:
    """Compute the cross-layer maps from every maximised layer to every other recorded layer."""
    pairs = [(one, other) for one in maps for other in job.responses if other != one]
    if not pairs:
        return {}
    A = pd.DataFrame(data["A"].values.astype(np.float64).mean(0), index=job.labels, columns=job.columns)
    null = pd.Series(data["null"].values.astype(np.float64).mean(0), index=job.columns)
    columns = {layer: list(one.activations.columns) for layer, one in maps.items()}
    live = [f for one in maps.values() for f in one.clusters.labels.index]
    for layer in job.responses:
        if layer not in maps:  # a probed layer has no images and so no statuses: all its features count as live
            columns[layer] = [f"{layer}:{c}" for c in range(job.network.layer(layer, job.recipe.size).channels)]
            live += columns[layer]
    crossings: dict[Pair, CrossLayerMap] = {}
    for one, other in pairs:
        # S of the reverse pair is the transpose: half the work, and both directions agree exactly
        reverse = crossings.get((other, one))
        S = None if reverse is None else reverse.measures["profile"].T
        crossings[one, other] = cross_layer.build_map(
            A, null, (one, other), columns[one], columns[other], live, tables.NEAREST, S
        )
        if shown == "linear_profile":
            made = crossings[one, other]
            linear = cross_layer.profile(made.first, made.second, roots=False)
            made.measures[shown] = cross_layer.expand(linear, columns[one], columns[other])
    return crossings


def _compare_seeds(arrays: LayerArrays, clusters: clustering.Clusters, neighbours: int) -> dict[str, Any]:
    """Compute the agreement of the maps of single seeds: correlation of S, and ARI of the communities."""
    frames, partitions = [], []
    for responses, nulls in zip(arrays.responses, arrays.nulls, strict=True):
        A = pd.DataFrame(responses, index=arrays.names, columns=arrays.names)
        S = measures.profile(A, pd.Series(nulls, index=arrays.names), arrays.live)
        frames.append(S)
        partitions.append(clustering.communities(clustering.neighbour_graph(S, neighbours)).labels.to_numpy())
    pairs = [(one, two) for k, one in enumerate(partitions) for two in partitions[:k]]
    found = [reliability.adjusted_rand(*pair) for pair in pairs if not all(map(reliability.is_trivial, pair))]
    try:
        agreement: float | None = float(seed_agreement(frames))
    except FeatmapError:  # fewer than two similarities that vary: nothing to correlate
        agreement = None
    return {
        "count": len(arrays.responses),
        "correlation_of_S": agreement,
        "ari_of_clusters": float(np.mean(found)) if found else None,  # one group each agrees by definition
        "ari_of_louvain_with_itself": float(clusters.communities.self_agreement),
    }
