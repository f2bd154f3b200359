"""Compute the map of photographs: S of each layer's features over photographs, its clusters, and tables of both.

Responses are read from the run folder block by block, so that tens of thousands of photographs need little memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from featmap.mapping import cluster_io, result, tables
from featmap.mapping.layer_arrays import correlate_photographs, photograph_responses
from featmap.mapping.result import LayerMaps, PhotographMap, SimilarityMap
from featmap.mapping.view import PHOTOGRAPHS, View
from featmap.network.trace import Layer
from featmap.runs import folder_layout
from featmap.runs.job import Job
from featmap.runs.progress import Watcher
from featmap.runs.store import Run, open_arrays
from featmap.stats import clustering, cross_layer, measures, reliability
from featmap.stats.clustering import Clusters
from featmap.stats.frames import distinct_pairs, finite_column
from featmap.stats.map_agreement import distinct_disagreements

CONSTANT = "constant"
"""Status of a feature that responds to all photographs alike."""
NULL_CELLS = 2**22
"""Responses that a null model of the clusters is drawn from; of more, evenly spaced photographs are taken."""


def build(job: Job, layer: str, folder: Path, view: View, watcher: Watcher, reuse: bool = False) -> PhotographMap:
    """Compute the map of photographs of one layer.

    Parameters
    ----------
    job : Job
        Job of the run.
    layer : str
        One of its mapped layers.
    folder : Path
        Run folder, in which all work units are stored.
    view : View
        Features and neighbours that tables and figures show.
    watcher : Watcher
        Receives the progress.
    reuse : bool, default False
        Read the stored clusters instead of computing them; allowed only if they were computed from these arrays.

    Returns
    -------
    PhotographMap
        The map.
    """
    responses = photograph_responses(open_arrays(folder), layer)
    profiles, S = correlate_photographs(responses, lambda *at: watcher.stage("S over photographs", *at))
    measures.warn_few_stimuli(profiles.images)
    prefix = result.photograph_prefix(tables.layer_folders(job.layers)[layer], alone=not job.objectives)
    clusters = cluster_io.read(folder / f"{prefix}{cluster_io.FILE_NAME}", S, view.neighbours) if reuse else None
    chosen = null_photographs(len(responses), S.shape[1])
    if clusters is None:
        stimuli = responses.isel(photograph=chosen).sel(response=list(S.columns)).to_pandas().astype(np.float64)
        clusters = clustering.cluster_similarity(
            S,
            stimuli,
            clustering.ClusterSettings(k=view.neighbours),
            progress=lambda done, total: watcher.stage("clusters and nulls of photographs", done, total),
        )
    names = [str(name) for name in responses["response"].values]
    known = job.network.layer(layer, job.recipe.size)
    features = tabulate(names, known, profiles.mean, profiles.deviation, S, clusters)
    own = set(names)
    shown = [f for f in job.shown if f in own]
    summary = summarise(features, S, clusters, shown, (profiles.images, len(chosen)))
    return PhotographMap(folder, layer, {"profile": S}, clusters, features, shown, summary, prefix)


def add(layer_map: SimilarityMap, job: Job, view: View, watcher: Watcher, reuse: bool = False) -> None:
    """Add the map of photographs to the map of a layer's maximising images.

    Parameters
    ----------
    layer_map : SimilarityMap
        Map of the layer; it and its summary are changed in place.
    job, view, watcher, reuse
        See `build`.
    """
    layer = str(layer_map.features.index[0]).rpartition(":")[0]
    found = build(job, layer, layer_map.folder, view, watcher, reuse)
    layer_map.open_photographs = lambda: found
    layer_map.summary[PHOTOGRAPHS] = found.summary
    stored = Run.read(layer_map.folder).manifest.summary if reuse else {}
    stored = stored.get("layers", {layer: stored})[layer] if stored else {}
    agreement = stored.get(PHOTOGRAPHS, {}).get("agreement")
    if not agreement or "overlap_reason" not in agreement:  # else of an earlier version, over other features
        agreement = summarise_agreement(layer_map, found, view.neighbours, watcher)
    found.summary["agreement"] = agreement


def summarise_agreement(
    layer_map: SimilarityMap, found: PhotographMap, neighbours: int, watcher: Watcher
) -> dict[str, Any]:
    """Summarise how far the maps of images and of photographs agree.

    Parameters
    ----------
    layer_map : SimilarityMap
        Map of the layer's maximising images.
    found : PhotographMap
        Its map of photographs.
    neighbours : int
        Nearest neighbours of each feature in the graphs.
    watcher : Watcher
        Receives the progress.

    Returns
    -------
    dict
        Plain JSON values, None where undefined: correlation of S over pairs with low and high (bootstrap over
        features), the median agreement of a feature, ari (of the communities of both maps, over the features that both
        have), and correlation_of_halves and ari_of_halves, the same of the maps of two random halves of the
        photographs, of the same features. Then with either half: half_correlation, ceiling and share, with _low and
        _high, overlap, overlap_ceiling and overlap_share (see `featmap.stats.map_agreement.CeilingShare`), and in
        words why a share is undefined, reason and overlap_reason.
    """
    watcher.stage("agreement with photographs, and its ceiling", 0, 1)
    agreement = layer_map.agreement
    assert agreement is not None and agreement.halves is not None and agreement.attained is not None
    watcher.stage("agreement with photographs, and its ceiling", 1, 1)
    communities = [one.clusters.communities.labels for one in (layer_map, found)]
    names = agreement.features.index
    for k, table in enumerate((agreement.first, agreement.second)):
        if 0 < len(names) < len(communities[k]):  # S of the features compared differs from that of all
            S = pd.DataFrame(table, index=names, columns=names)
            communities[k] = clustering.communities(clustering.neighbour_graph(S, neighbours)).labels
    values, attained, graphs = agreement.overall, agreement.attained, []
    for half in agreement.halves.halves:
        defined = np.isfinite(half.diagonal())
        if not defined.any():
            continue
        names = agreement.features.index[defined]
        S = pd.DataFrame(half[np.ix_(defined, defined)], index=names, columns=names)
        graphs.append(clustering.communities(clustering.neighbour_graph(S, neighbours)).labels)
    numbers = {
        "correlation": values.value,
        "low": values.low,
        "high": values.high,
        "median": agreement.features["agreement"].median(),
        "ari": _adjusted_rand(communities),
        "correlation_of_halves": attained.halves.value,
        "ari_of_halves": _adjusted_rand(graphs),
        "half_correlation": attained.agreement.value,
    }
    for name, one in (("ceiling", attained.ceiling), ("share", attained.share)):
        numbers |= {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}
    overlaps = (attained.overlap, attained.overlap_ceiling, attained.overlap_share)
    for name, one in zip(("overlap", "overlap_ceiling", "overlap_share"), overlaps, strict=True):
        numbers[name] = one.value
    words: dict[str, Any] = {"parted": distinct_disagreements(agreement.disagreements), "reason": attained.reason}
    words["overlap_reason"] = attained.overlap_reason
    return {k: float(v) if np.isfinite(v) else None for k, v in numbers.items()} | words


def _adjusted_rand(labels: list[pd.Series]) -> float:
    """Compute the adjusted Rand index of two partitions over the features that both have.

    NaN without any, or where both partitions are trivial.
    """
    if len(labels) < 2:
        return float("nan")
    common = [name for name in labels[0].index if name in labels[1].index]
    one, two = (labels[k].loc[common].to_numpy() for k in (0, 1))
    if not common or (reliability.is_trivial(one) and reliability.is_trivial(two)):
        return float("nan")
    return reliability.adjusted_rand(one, two)


def null_photographs(count: int, features: int) -> np.ndarray:
    """Choose the photographs that null models are drawn from.

    Parameters
    ----------
    count : int
        Number of photographs.
    features : int
        Number of features.

    Returns
    -------
    numpy.ndarray
        Positions, evenly spaced: all, or as many as make `NULL_CELLS` responses.
    """
    limit = min(count, max(NULL_CELLS // max(features, 1), measures.FEW_STIMULI))
    return np.arange(limit) * count // max(limit, 1)


def tabulate(
    names: Sequence[str], layer: Layer, mean: np.ndarray, deviation: np.ndarray, S: pd.DataFrame, clusters: Clusters
) -> pd.DataFrame:
    """Tabulate the features of a layer by their responses to photographs.

    Parameters
    ----------
    names : sequence of str
        The N features.
    layer : Layer
        Their layer.
    mean, deviation : numpy.ndarray
        Mean and standard deviation of each feature's responses, N; NaN where one is not finite.
    S : pandas.DataFrame
        Profile similarity over the photographs, of the features that have one.
    clusters : Clusters
        Clusters of the same features.

    Returns
    -------
    pandas.DataFrame
        One row a feature: channel, branch, status ("live", "constant" or "not-finite"), mean and deviation of its
        responses, then cluster, community, nearest_k and similarity_k as in
        `featmap.mapping.tables.feature_table`. Directions that have names get a column `name`.
    """
    channels = [int(n.rpartition(":")[2]) for n in names]
    statuses = np.array([CONSTANT, folder_layout.STATUSES[folder_layout.LIVE]], dtype=object)[
        (deviation > 0).astype(int)
    ]
    statuses[~np.isfinite(mean)] = folder_layout.STATUSES[folder_layout.NOT_FINITE]
    columns = {
        "channel": channels,
        "branch": [layer.branch(c) for c in channels],
        "status": statuses,
        "mean": finite_column(mean),
        "deviation": finite_column(deviation),
    }
    table = pd.DataFrame(columns, index=pd.Index(names, name="feature"))
    if layer.names:
        table.insert(1, "name", [layer.names[c] for c in channels])
    tables.add_clusters(table, S, clusters)
    return table


def summarise(
    table: pd.DataFrame, S: pd.DataFrame, clusters: Clusters, shown: list[str], counts: tuple[int, int]
) -> dict[str, Any]:
    """Summarise the photographs' map of one layer.

    Parameters
    ----------
    table : pandas.DataFrame
        Table of features, see `tabulate`.
    S : pandas.DataFrame
        Profile similarity over the photographs.
    clusters : Clusters
        Clusters of its features.
    shown : list of str
        Features that tables and figures show.
    counts : (int, int)
        Number of photographs, and of those that the null models are drawn from.

    Returns
    -------
    dict
        Plain JSON values.
    """
    pairs = distinct_pairs(S, 5)
    return {
        "photographs": counts[0],
        "null_photographs": counts[1],
        "features": len(table),
        "shown": len(shown),
        "statuses": dict(Counter(table["status"])),
        "clusters": tables.summarise_clusters(clusters),
        "most_similar": [[r.feature, r.other, float(r.similarity)] for r in pairs.itertuples()],
    }


def map_alone(job: Job, folder: Path, view: View, watcher: Watcher, reuse: bool = False) -> LayerMaps:
    """Compute the maps of a run whose only stimuli are photographs.

    Parameters
    ----------
    job : Job
        Job without objectives.
    folder : Path
        Run folder, in which all work units are stored.
    view : View
        Features and neighbours that tables and figures show.
    watcher : Watcher
        Receives the progress.
    reuse : bool, default False
        See `build`.

    Returns
    -------
    LayerMaps
        Map of each layer, see `featmap.mapping.result.map_of_photographs`; there are no crossings over images.
    """
    maps: dict[str, SimilarityMap] = {}
    for layer in job.layers:
        maps[layer] = result.map_of_photographs(build(job, layer, folder, view, watcher, reuse))
    summaries = {layer: one.summary for layer, one in maps.items()}
    summary: dict[str, Any] = {"layers": summaries, "crossings": []} if len(maps) > 1 else summaries[job.layers[0]]
    return LayerMaps(folder, maps, {}, cross_layer.layer_table([]), summary)
