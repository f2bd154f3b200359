"""Write tables, graph and figures of one layer's similarity map, and of its map of photographs."""

from __future__ import annotations

from functools import partial

import networkx as nx
import numpy as np
import pandas as pd

from featmap.image_shape import colour_note
from featmap.mapping import cluster_io, flags
from featmap.mapping.layer_arrays import correlate_photographs
from featmap.mapping.result import PhotographMap, SimilarityMap, order_features
from featmap.mapping.tables import LABELS, PROFILES, tabulate_facets
from featmap.mapping.view import View
from featmap.plotting import heatmaps, scatter, sheets
from featmap.runs.output import format_number, save_facets, save_figure, save_sheet, write_frame
from featmap.runs.progress import Watcher
from featmap.runs.store import Run
from featmap.stats import measures
from featmap.stats.frames import distinct_pairs, spell_flags
from featmap.stats.map_agreement import MapAgreement, list_disagreements

MAX_PAIRS = 24
"""Largest number of pairs in the figure of nearest neighbours."""


def write(run: Run, layer_map: SimilarityMap, view: View, watcher: Watcher) -> None:
    """Write the tables, the clusters, the graph and the figures of one layer.

    Parameters
    ----------
    run : Run
        Run folder, held by this process.
    layer_map : SimilarityMap
        Map of the layer; its map of photographs is written too.
    view : View
        Measure of the heatmap, and neighbours of the graph.
    watcher : Watcher
        Receives the progress.
    """
    if layer_map.photographs is not None:
        _write_photographs(run, layer_map.photographs, view, watcher)
    if layer_map.photographs is not None and layer_map.agreement is not None:
        own = int(np.isfinite(np.diag(layer_map.measures["profile"].to_numpy())).sum())
        _write_agreement(run, layer_map.photographs, layer_map.agreement, own)
    if not layer_map.has_images:
        return
    names = ["activations", *(name for name in measures.MEASURES if name in layer_map.measures)]
    total, prefix, shown = len(names) + 5, layer_map.prefix, layer_map.shown
    frames = {"activations": measures.raw(layer_map.activations, layer_map.null)} | layer_map.measures
    for k, name in enumerate(names):
        watcher.stage("tables and figures", k, total)
        frame = frames[name]
        rows, columns = ([f for f in shown if f in labels] for labels in (frame.index, frame.columns))
        write_frame(run, prefix + name, frame.loc[rows, columns])
    write_frame(run, f"{prefix}features", layer_map.features.loc[shown], "feature")
    nodes = _write_clusters(run, layer_map, view.neighbours)
    watcher.stage("tables and figures", len(names) + 2, total)
    draw(run, layer_map, view.measure, nodes)
    watcher.stage("tables and figures", total, total)


def _write_clusters(run: Run, layer_map: SimilarityMap | PhotographMap, neighbours: int) -> list[str]:
    """Write the clusters and the graph of a map; return the features of the graph that are shown."""
    prefix, nodes = layer_map.prefix, [f for f in layer_map.shown if f in layer_map.clusters.graph]
    clusters = cluster_io.to_json(layer_map.clusters, neighbours)
    run.write(prefix + cluster_io.FILE_NAME, lambda p: p.write_text(clusters, encoding="utf-8"))
    graph = build_graph(layer_map, nodes, neighbours)
    run.write(f"{prefix}graph.graphml", lambda p: nx.write_graphml(graph, p))
    return nodes


def _write_photographs(run: Run, found: PhotographMap, view: View, watcher: Watcher) -> None:
    """Write the tables, the clusters, the graph and the heatmap of a map of photographs."""
    watcher.stage("tables and figures of photographs", 0, 2)
    shown = [f for f in found.shown if f in found.similarity.columns]
    write_frame(run, f"{found.prefix}profile", _among(found.similarity, shown), "feature")
    if view.measure == "linear_profile":  # the heatmap of photographs shows S all the same
        linear = correlate_photographs(found.responses, formula=measures.LINEAR)[1]
        own = [f for f in shown if f in linear.columns]
        write_frame(run, f"{found.prefix}linear_profile", linear.loc[own, own], "feature")
    write_frame(run, f"{found.prefix}features", found.features.loc[found.shown], "feature")
    nodes = _write_clusters(run, found, view.neighbours)
    watcher.stage("tables and figures of photographs", 1, 2)
    if len(nodes) > 1:
        _, linkage, clusters = order_features(found)
        figure = heatmaps.heatmap(
            _among(found.similarity, nodes),
            linkage=linkage,
            clusters=clusters,
            title=f"{found.layer}: {len(nodes)} features, {found.summary['photographs']:,} photographs",
            cbar_label=LABELS["profile"],
            centre=0.0,
            is_symmetric=True,
        )
        save_figure(run, figure, f"{found.prefix}heatmap", ("png", "svg"))
    watcher.stage("tables and figures of photographs", 2, 2)


def _among(S: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Select rows and columns of a similarity; all of them are not copied, as they may take most of the memory."""
    return S if names == list(S.columns) else S.loc[names, names]


def _write_agreement(run: Run, found: PhotographMap, agreement: MapAgreement, images: int) -> None:
    """Write how far the maps agree: by feature, by pair, and as a figure; `images` features have S over images."""
    shown = [f for f in found.shown if f in agreement.features.index]
    write_frame(run, f"{found.prefix}agreement", agreement.features.loc[shown], "feature")
    own = np.ix_(*[agreement.features.index.get_indexer(shown)] * 2)
    for name, S, whole in (
        ("compared_profile", agreement.second, len(found.similarity)),
        ("compared_profile_of_images", agreement.first, images),
    ):
        if 0 < len(agreement.features) < whole:
            write_frame(run, found.prefix + name, pd.DataFrame(S[own], index=shown, columns=shown), "feature")
    pairs = list_disagreements(shown, agreement.first[own], agreement.second[own])
    write_frame(run, f"{found.prefix}disagreements", pairs.set_index("feature"), "feature")
    upper = np.triu_indices(len(agreement.first), 1)
    x, y = agreement.first[upper], agreement.second[upper]
    r = format_number(agreement.overall.value)
    note = f"{np.isfinite(x + y).sum():,} pairs of {len(agreement.first)} features, correlation {r}"
    cloud = scatter.PairCloud(x, y, "S over maximising images", "S over photographs", note)
    figure = scatter.agreement_panels([cloud], [], f"{found.layer}: two kinds of stimuli")
    save_figure(run, figure, f"{found.prefix}agreement", ("png", "svg"))


NODE_ATTRIBUTES = {"channel": int, "branch": str, "status": str, "start": str, "activation": float, "community": int}
"""Columns of the table of features that nodes of the graph have, and their types."""


def build_graph(layer_map: SimilarityMap | PhotographMap, nodes: list[str], neighbours: int) -> nx.Graph:
    """Build the neighbour graph of the features shown, with node attributes.

    Parameters
    ----------
    layer_map : SimilarityMap or PhotographMap
        Map of the layer.
    nodes : list of str
        Live features to keep.
    neighbours : int
        Nearest neighbours of each feature in the graph; it becomes an attribute of the graph.

    Returns
    -------
    networkx.Graph
        Nodes have channel, branch, status, start, activation, community, and where known cluster and reliable (those of
        a map of photographs no start and activation); edges have the profile similarity S as weight.
    """
    # the subgraph of networkx lists a minority of nodes in the order of a set, another one in every process
    kept, whole = set(nodes), layer_map.clusters.graph
    graph: nx.Graph = nx.Graph(k=neighbours, weight="profile similarity S")
    graph.add_nodes_from((name, data) for name, data in whole.nodes(data=True) if name in kept)
    graph.add_edges_from(edge for edge in whole.edges(data=True) if kept.issuperset(edge[:2]))
    for name, row in layer_map.features.loc[nodes].iterrows():
        graph.nodes[name].update({key: kind(row[key]) for key, kind in NODE_ATTRIBUTES.items() if key in row})
        if layer_map.clusters.allowed:
            graph.nodes[name]["cluster"] = int(row["cluster"])
        if "reliable" in row and not pd.isna(row["reliable"]):
            graph.nodes[name]["reliable"] = bool(row["reliable"])
    return graph


def draw(run: Run, layer_map: SimilarityMap, measure: str, nodes: list[str]) -> None:
    """Write the heatmap, the contact sheet of images and the most similar pairs.

    Parameters
    ----------
    run : Run
        Run folder, held by this process.
    layer_map : SimilarityMap
        Map of the layer.
    measure : str
        Measure of the heatmap.
    nodes : list of str
        Live features among those shown; fewer than two give no heatmap.
    """
    order, linkage, clusters = order_features(layer_map)
    if len(nodes) > 1:
        raw = measures.raw(layer_map.activations, layer_map.null)
        values = raw if measure == "raw" else layer_map.measures[measure]
        layer = nodes[0].rpartition(":")[0]
        marked, values = flags.marked_names(layer_map.features, nodes), values.loc[nodes, nodes]
        figure = heatmaps.heatmap(
            values.set_axis(marked, axis=0).set_axis(marked, axis=1),
            linkage=linkage,
            clusters=None if clusters is None else clusters.set_axis(marked),
            title=f"{layer}: {len(nodes)} features{flags.title_note(layer_map.features, nodes)}",
            cbar_label=LABELS[measure],
            centre=0.0,
            is_symmetric=measure in PROFILES,
        )
        save_figure(run, figure, f"{layer_map.prefix}heatmap", ("png", "svg"))
    order += [f for f in layer_map.shown if f not in set(nodes)]
    # read in the order of drawing: the images of a large layer would not fit into memory twice
    pictures = layer_map.dataset["images"].isel(seed=0).sel(image=order).values
    images = dict(zip(order, pictures, strict=True))
    table = layer_map.features
    captions = [
        format_number(table.activation[f]) + ("" if table.status[f] == "live" else f" {table.status[f]}") for f in order
    ]
    groups = [-1 if pd.isna(table.cluster[f]) else int(table.cluster[f]) for f in order]
    sheet = sheets.Sheet(
        images=pictures,
        labels=flags.marked_names(table, order),
        captions=captions,
        groups=groups if layer_map.clusters.allowed else None,
        title=f"{len(order)} maximising images, in the order of the heatmap{flags.title_note(table, order)}"
        + colour_note(pictures.shape[1]),
    )
    save_sheet(run, f"{layer_map.prefix}features", sheet)
    if "facets" in layer_map.features:
        _write_facets(run, layer_map, order)
    rows = _pair_cards(layer_map, nodes, images)
    if rows:
        note = colour_note(pictures.shape[1])
        pairs = sheets.card_sheet(rows, f"The {len(rows)} most similar pairs (each feature once){note}", stretched=True)
        save_figure(run, pairs, f"{layer_map.prefix}neighbours", ("png",))


def _write_facets(run: Run, layer_map: SimilarityMap, order: list[str]) -> None:
    """Write the table, the pictures and the sheets of the facets of the features shown."""
    # the null is made of all images of the layer, shown or not
    table, _ = tabulate_facets(layer_map.dataset, list(layer_map.features.index))
    kept = table[table["image"].isin(order)]
    write = partial(spell_flags(kept).to_csv, index=False, float_format="%.9g", lineterminator="\n")
    run.write(f"{layer_map.prefix}facets.csv", write)
    at = {name: k for k, name in enumerate(order)}
    drawn = kept.sort_values(["image", "facet"], key=lambda c: c.map(at) if c.name == "image" else c, kind="stable")
    pixels = layer_map.dataset["facets"].isel(seed=0).sel(image=order).values
    save_facets(run, layer_map.prefix, pixels, drawn)


def _pair_cards(layer_map: SimilarityMap, nodes: list[str], images: dict[str, np.ndarray]) -> list[sheets.Card]:
    """Make the cards of the most similar pairs, with each feature on one card at most."""
    if len(nodes) < 2:
        return []
    C = layer_map.measures["coactivation"]
    rows = []
    for pair in distinct_pairs(layer_map.measures["profile"].loc[nodes, nodes], MAX_PAIRS).itertuples():
        a, b = str(pair.feature), str(pair.other)
        both = " / ".join("undefined" if pd.isna(v) else f"{v:.2f}" for v in (C.loc[a, b], C.loc[b, a]))
        labels = tuple(flags.marked_names(layer_map.features, (a, b)))
        rows.append(sheets.Card((images[a], images[b]), labels, f"S {pair.similarity:.3f}, co-activation {both}"))
    return rows
