"""Collect what a page shows of a similarity map: dendrogram, graph, clusters; and the map of photographs beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd

from featmap.mapping import result
from featmap.mapping.result import PhotographMap, SimilarityMap
from featmap.plotting import heatmaps
from featmap.report import graph_layout
from featmap.report.page import COMPARED_IMAGES_S, COMPARED_S, PHOTOGRAPH_S, LayerPage
from featmap.runs import store
from featmap.runs.store import Run
from featmap.stats import frames


def limit_shown(layer_map: SimilarityMap) -> SimilarityMap:
    """Limit the features that a page shows to as many as a heatmap resolves.

    Parameters
    ----------
    layer_map : SimilarityMap
        Map of the layer.

    Returns
    -------
    SimilarityMap
        The same map where it shows at most `featmap.plotting.heatmaps.MAX_CELLS` features; otherwise the map with so
        many of them, evenly spaced by number. Nothing is computed anew: S, clusters and neighbours are those of all.
    """
    count = len(layer_map.shown)
    if count <= heatmaps.MAX_CELLS:
        return layer_map
    places = np.linspace(0, count - 1, heatmaps.MAX_CELLS).round().astype(int)
    shown = [layer_map.shown[k] for k in places]
    limited = replace(layer_map, shown=shown)
    if layer_map.photographs is not None:
        kept, found = set(shown), layer_map.photographs
        photographs = replace(found, shown=[name for name in found.shown if name in kept])
        limited.open_photographs = lambda: photographs
    return limited


def collect_structure(
    layer_map: SimilarityMap | PhotographMap, order: list[str], linkage: np.ndarray, S: np.ndarray
) -> dict[str, Any]:
    """Collect the dendrogram, the neighbour graph and the clusters of a map.

    Parameters
    ----------
    layer_map : SimilarityMap or PhotographMap
        Map of the layer.
    order : list of str
        Its n live features shown, in the order of the dendrogram.
    linkage : numpy.ndarray
        Linkage of these features, see `featmap.mapping.result.order_features`.
    S : numpy.ndarray
        Profile similarity of the features in this order, n x n.

    Returns
    -------
    dict
        Plain JSON values: tree, graph and clusters; features are positions in the order.
    """
    return {
        "tree": list_joins(linkage, len(order)),
        "graph": _graph(layer_map, order),
        "clusters": _clusters(layer_map, S, order),
    }


def pack(S: np.ndarray) -> np.ndarray:
    """Pack a symmetric similarity for a page.

    Parameters
    ----------
    S : numpy.ndarray
        Similarity, n x n, NaN where undefined.

    Returns
    -------
    numpy.ndarray
        Its upper triangle with the diagonal, row by row, in float32.
    """
    return S[np.triu_indices(len(S))].astype(np.float32)


def add_photograph_map(page: LayerPage, layer_map: SimilarityMap, run: Run) -> None:
    """Add the map of photographs to the page of a map of images.

    Parameters
    ----------
    page : LayerPage
        Page of the layer; `data` has its features.
    layer_map : SimilarityMap
        Map of the layer, with a map of photographs.
    run : Run
        Run folder.
    """
    found, names = layer_map.photographs, page.data["features"]["name"]
    assert found is not None
    at = {name: k for k, name in enumerate(names)}
    found_order, linkage, _ = result.order_features(found)
    order = [name for name in found_order if name in at]
    S = frames.symmetric_values(found.similarity.loc[order, order])
    page.blobs[PHOTOGRAPH_S] = pack(S)
    own, _, compared = layer_map.compared
    for name, S_compared, whole in (
        (COMPARED_S, compared, found.similarity),
        (COMPARED_IMAGES_S, own, layer_map.measures["profile"]),
    ):
        if S_compared is not whole:
            page.blobs[name] = pack(frames.symmetric_values(S_compared.reindex(index=order, columns=order)))
    page.data["photographs"] = {
        "order": [at[name] for name in order],
        "features": list_columns(found.features.reindex(names)),
        "reach": colour_limit(S),
        **collect_structure(found, order, linkage, S),
    }
    table = f"{found.prefix}agreement"
    if f"{table}.parquet" in run.manifest.files:
        agreement = store.read_frame(run.folder, table).reindex(names)
        page.data["photographs"]["agreement"] = {c: to_list(agreement[c]) for c in ("agreement", "low", "high")}


def list_columns(table: pd.DataFrame) -> dict[str, Any]:
    """List the columns of a table of features that a page shows.

    Parameters
    ----------
    table : pandas.DataFrame
        One row a feature, of a map of images or of photographs.

    Returns
    -------
    dict of str to list
        Plain JSON values by column, None where undefined.
    """
    names = (
        *("status", "start", "activation", "null_activation", "mean", "deviation", "branch"),
        *("cluster", "community", "identity", "reliability"),
    )
    shown = frames.spell_flags(table[[c for c in names if c in table]])
    shown = shown.astype({c: "Int64" for c in ("cluster", "community") if c in table})
    return {str(c): to_list(values.astype(object).where(values.notna(), None)) for c, values in shown.items()}


def colour_limit(values: np.ndarray) -> float:
    """Compute where a colour scale ends, as in the run's heatmaps.

    Parameters
    ----------
    values : numpy.ndarray
        Values of all pairs, n x n, NaN where undefined.

    Returns
    -------
    float
        Absolute value at both ends of the scale, which is symmetric about 0.
    """
    magnitudes, eye = np.abs(values), np.eye(len(values), dtype=bool)
    defined = np.isfinite(magnitudes)
    return heatmaps.colour_reach(magnitudes[eye & defined], magnitudes[~eye & defined])


def to_list(values: Any) -> list[Any]:
    """Return values for JSON.

    Parameters
    ----------
    values : array_like
        Any values.

    Returns
    -------
    list
        None in place of undefined values.
    """
    return [None if pd.isna(v) else v for v in np.asarray(values, dtype=object).tolist()]


def list_joins(linkage: np.ndarray, count: int) -> list[list[float]]:
    """List the joins of a dendrogram.

    Parameters
    ----------
    linkage : numpy.ndarray
        Linkage as SciPy writes it, (count - 1) x 4.
    count : int
        Number of leaves; leaf k in the order from left to right lies at k + 0.5.

    Returns
    -------
    list of list of float
        Position and height of the left branch, the same of the right one, and height of the join.
    """
    order = _leaves(linkage, count)
    position, height = dict(zip(order, np.arange(count) + 0.5, strict=True)), dict.fromkeys(range(count), 0.0)
    joins = []
    for k, (one, two, top, _) in enumerate(linkage):
        (a, b), new = sorted((int(one), int(two)), key=position.__getitem__), count + k
        joins.append([round(float(v), 4) for v in (position[a], height[a], position[b], height[b], top)])
        position[new], height[new] = (position[a] + position[b]) / 2, float(top)
    return joins


def _leaves(linkage: np.ndarray, count: int) -> list[int]:
    """Return the leaves from left to right, without recursion: a tree may be as deep as it has leaves."""
    if count < 2:
        return list(range(count))
    stack, leaves = [2 * count - 2], []
    while stack:
        node = stack.pop()
        if node < count:
            leaves.append(node)
        else:
            stack += [int(linkage[node - count, 1]), int(linkage[node - count, 0])]
    return leaves


def _graph(layer_map: SimilarityMap | PhotographMap, order: list[str]) -> dict[str, Any]:
    """Return the neighbour graph of the features shown: node coordinates, and edges by positions in the order."""
    graph: nx.Graph = nx.Graph()
    graph.add_nodes_from(order)
    at = {name: k for k, name in enumerate(order)}
    whole = layer_map.clusters.graph
    inside = [(u, v) for u, v in whole.edges if u in at and v in at]
    edges = sorted((min(at[u], at[v]), max(at[u], at[v]), round(float(whole[u][v]["weight"]), 6)) for u, v in inside)
    graph.add_weighted_edges_from((order[i], order[j], w) for i, j, w in edges)
    communities = {str(k): int(v) for k, v in layer_map.clusters.communities.labels.items()}
    points = graph_layout.lay_out_graph(graph, communities)
    return {
        "k": int(whole.graph["k"]),
        "x": np.round(points[:, 0], 3).tolist(),
        "y": np.round(points[:, 1], 3).tolist(),
        "head": [e[0] for e in edges],
        "tail": [e[1] for e in edges],
        "weight": [e[2] for e in edges],
    }


def _clusters(layer_map: SimilarityMap | PhotographMap, S: np.ndarray, order: list[str]) -> dict[str, Any]:
    """Return the clusters with their members, as positions in the order, and the sentence about clusters."""
    table, entries = layer_map.features.loc[order], list[dict[str, Any]]()
    labels = table["cluster"].to_numpy()
    activations = table["activation" if "activation" in table else "mean"]
    for number in sorted({int(c) for c in labels[np.isfinite(labels)]}):
        inside = labels == number
        members = np.flatnonzero(inside)
        own = np.where(np.eye(len(members), dtype=bool), np.nan, S[np.ix_(members, members)])
        central = members[int(np.argmax(np.nan_to_num(_means(own), nan=-2.0)))] if len(members) > 1 else members[0]
        activation = activations.iloc[members].to_numpy(dtype=float, na_value=np.nan)
        entries.append(
            {
                "number": number,
                "members": members.tolist(),
                "within": _mean(own),
                "outside": _mean(S[np.ix_(members, np.flatnonzero(~inside))]),
                "central": int(central),
                "activation": _mean(activation),
            }
        )
    clusters = layer_map.clusters
    return {"allowed": bool(clusters.allowed), "sentence": clusters.summary(), "list": entries}


def _mean(values: np.ndarray) -> float | None:
    """Return the mean of the finite values; None if there are none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else None


def _means(values: np.ndarray) -> np.ndarray:
    """Return the mean of the finite values of each row; NaN if there are none."""
    return np.array([np.nan if (m := _mean(row)) is None else m for row in values])
