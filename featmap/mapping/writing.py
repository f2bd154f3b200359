"""Write tables, graph and figures of one layer's similarity map."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pandas as pd

from featmap.mapping import cluster_io, flags
from featmap.mapping.result import SimilarityMap, arranged
from featmap.mapping.tables import LABELS, distinct_pairs
from featmap.mapping.view import View
from featmap.plotting import heatmaps, sheets
from featmap.runs.output import number_text, save_figure, write_frame
from featmap.runs.progress import Watcher
from featmap.runs.store import Run
from featmap.stats import measures

PAIRS = 24


def write(run: Run, found: SimilarityMap, view: View, watcher: Watcher) -> None:
    """Write the tables, the graph and the figures of a similarity run."""
    names = ("activations", "coactivation", "relative", "selective", "profile")
    total = len(names) + 5
    for k, name in enumerate(names):
        watcher.stage("tables and figures", k, total)
        frame = measures.raw(found.activations, found.null) if name == "activations" else found.measures[name]
        rows = [f for f in found.shown if f in frame.index]
        write_frame(run, found.place + name, frame.loc[rows, [f for f in found.shown if f in frame.columns]])
    write_frame(run, f"{found.place}features", found.features.loc[found.shown], "feature")
    nodes = [f for f in found.shown if f in found.clusters.graph]
    clusters = cluster_io.to_json(found.clusters, view.neighbours)
    run.write(found.place + cluster_io.NAME, lambda p: p.write_text(clusters, encoding="utf-8"))
    run.write(f"{found.place}graph.graphml", lambda p: nx.write_graphml(graphml(found, nodes, view.neighbours), p))
    watcher.stage("tables and figures", len(names) + 2, total)
    draw(run, found, view.measure, nodes)
    watcher.stage("tables and figures", total, total)


def graphml(found: SimilarityMap, nodes: list[str], neighbours: int) -> nx.Graph:
    """Return the neighbour graph of the features shown, with what is known of each on its node."""
    drawn: nx.Graph = nx.Graph(found.clusters.graph.subgraph(nodes))
    drawn.graph = {"k": neighbours, "weight": "profile similarity S"}
    for name, row in found.features.loc[nodes].iterrows():
        drawn.nodes[name].update(
            channel=int(row["channel"]),
            branch=str(row["branch"]),
            status=str(row["status"]),
            activation=float(row["activation"]),
            community=int(row["community"]),
        )
        if found.clusters.allowed:
            drawn.nodes[name]["cluster"] = int(row["cluster"])
        if "reliable" in row and not pd.isna(row["reliable"]):
            drawn.nodes[name]["reliable"] = bool(row["reliable"])
    return drawn


def draw(run: Run, found: SimilarityMap, measure: str, nodes: list[str]) -> None:
    """Write heatmap, contact sheet and pairs of nearest features."""
    order, linkage, clusters = arranged(found)
    if len(nodes) > 1:
        values = measures.raw(found.activations, found.null) if measure == "raw" else found.measures[measure]
        layer = nodes[0].rpartition(":")[0]
        marked, values = flags.named(found.features, nodes), values.loc[nodes, nodes]
        figure = heatmaps.heatmap(
            values.set_axis(marked, axis=0).set_axis(marked, axis=1),
            linkage=linkage,
            clusters=None if clusters is None else clusters.set_axis(marked),
            title=f"{layer}: {len(nodes)} features{flags.note(found.features, nodes)}",
            cbar_label=LABELS[measure],
            centre=0.0,
        )
        save_figure(run, figure, f"{found.place}heatmap", ("png", "svg"))
    order += [f for f in found.shown if f not in set(nodes)]
    # read in the order in which they are drawn: of a large layer a second copy would not fit into memory
    pictures = found.dataset["images"].isel(seed=0).sel(image=order).values
    images = dict(zip(order, pictures, strict=True))
    table = found.features
    captions = [
        number_text(table.activation[f]) + ("" if table.status[f] == "live" else f" {table.status[f]}") for f in order
    ]
    groups = [-1 if pd.isna(table.cluster[f]) else int(table.cluster[f]) for f in order]
    sheet = sheets.contact_sheet(
        pictures,
        flags.named(table, order),
        captions=captions,
        groups=groups if found.clusters.allowed else None,
        title=f"{len(order)} maximising images, in the order of the heatmap{flags.note(table, order)}",
        columns=None,
    )
    save_figure(run, sheet, f"{found.place}features", ("png",))
    rows = _pairs(found, nodes, images)
    if rows:
        pairs = sheets.card_sheet(rows, f"The {len(rows)} most similar pairs (each feature once)")
        save_figure(run, pairs, f"{found.place}neighbours", ("png",))


def _pairs(found: SimilarityMap, nodes: list[str], images: dict[str, np.ndarray]) -> list[sheets.Card]:
    if len(nodes) < 2:
        return []
    C = found.measures["coactivation"]
    rows = []
    for pair in distinct_pairs(found.measures["profile"].loc[nodes, nodes], PAIRS).itertuples():
        a, b = str(pair.feature), str(pair.other)
        both = " / ".join("undefined" if pd.isna(v) else f"{v:.2f}" for v in (C.loc[a, b], C.loc[b, a]))
        labels = tuple(flags.named(found.features, (a, b)))
        rows.append(sheets.Card((images[a], images[b]), labels, f"S {pair.similarity:.3f}, co-activation {both}"))
    return rows
