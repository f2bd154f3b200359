"""What a similarity run writes beside its arrays: tables, the graph, figures and the summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np
import pandas as pd
import xarray as xr
from PIL import Image

from featmap.errors import FeatmapError, nearest
from featmap.files import file_name
from featmap.mapping import cluster_io, flags
from featmap.network.trace import Layer
from featmap.plotting import heatmaps, sheets, style
from featmap.runs.engine import Watcher
from featmap.runs.store import ARRAYS, MANIFEST, UNITS, Run, clear_faults
from featmap.stats import clustering, measures
from featmap.stats.clustering import Clusters

if TYPE_CHECKING:
    from featmap.mapping.result import SimilarityMap
    from featmap.runs.job import Job

CROSS = "cross"  # the folder of what lies between layers
OWN = ("validation", "atlas.html")  # what other commands add to a run folder
NEAREST = 5
PAIRS = 24
LABELS = {
    "coactivation": "co-activation (share of the feature's own best response)",
    "relative": "response relative to the image's own feature",
    "selective": "response, standardised over images",
    "profile": "profile similarity S",
    "raw": "average activation",
}


def places(layers: Sequence[str]) -> dict[str, str]:
    """Return where each layer's tables and figures lie in a run folder: one layer's at the top, several in folders.

    Names that the file system would take for one another, or for a folder of the run's own, are numbered.
    """
    if len(layers) == 1:
        return {layers[0]: ""}
    taken = {ARRAYS, UNITS, CROSS, MANIFEST, *OWN}
    return {layer: f"{unlike(file_name(layer), taken)}/" for layer in layers}


def unlike(name: str, taken: set[str]) -> str:
    """Return a name that no file system takes for one of those taken, numbered if need be, and take it."""
    number, place = 1, name
    while place.casefold() in taken:
        number += 1
        place = f"{name}-{number}"
    taken.add(place.casefold())
    return place


def check_view(measure: str, neighbours: int) -> None:
    """Refuse a measure that is unknown, or a number of neighbours below 1."""
    if measure not in measures.MEASURES:
        allowed = ", ".join(measures.MEASURES)
        raise FeatmapError(f"measure {measure!r} is unknown{nearest(measure, measures.MEASURES)}; allowed: {allowed}")
    if neighbours < 1:
        raise FeatmapError(f"neighbours {neighbours}: a neighbour graph takes 1 or more; 10 is the default")


def features(
    names: Sequence[str],
    layer: Layer,
    statuses: Sequence[str],
    activation: np.ndarray,
    A: pd.DataFrame,
    null: pd.Series,
    frames: dict[str, pd.DataFrame],
    clusters: Clusters,
) -> pd.DataFrame:
    """Return one row a feature: status, activation, branch, cluster, nearest neighbours.

    `activation` is the response to its own image, `null_activation` that to the null image, `identity`
    whether no other image excites the feature more. `community` is Louvain's answer, `cluster` the same
    where the nulls allow clusters and empty where they do not.
    """
    channels = [int(n.rpartition(":")[2]) for n in names]
    table = pd.DataFrame(
        {
            "channel": channels,
            "branch": [layer.branch(c) for c in channels],
            "status": list(statuses),
            "activation": masked(activation),
            "null_activation": masked(null.to_numpy()),
        },
        index=pd.Index(names, name="feature"),
    )
    live = list(clusters.labels.index)
    # dead features' images show nothing, so identity is judged among the images of the live ones
    best = A.loc[live].max(axis=0) if live else A.max(axis=0)
    own = pd.Series(np.diag(A.to_numpy()), index=names)
    table["identity"] = pd.array(own >= best, dtype="boolean")
    table.loc[~table.index.isin(live), "identity"] = pd.NA
    for column, labels in (("cluster", clusters.labels), ("community", clusters.communities.labels)):
        wanted = labels if column == "community" or clusters.allowed else labels.iloc[:0]
        table[column] = pd.Series(wanted, dtype="Int64").reindex(table.index)
    closest = measures.nearest(frames["profile"], NEAREST)
    for rank in range(1, NEAREST + 1):
        ranked = closest[closest.groupby("feature", sort=False).cumcount() == rank - 1].set_index("feature")
        table[f"nearest_{rank}"] = ranked["other"].reindex(table.index)
        table[f"similarity_{rank}"] = ranked["similarity"].reindex(table.index)
    return table


def distinct_pairs(S: pd.DataFrame, n: int) -> pd.DataFrame:
    """Return the n most similar pairs, no feature in two of them: a clique of near copies is one finding, not n."""
    taken: set[str] = set()
    rows: list[tuple[str, str, float]] = []
    count = len(S.columns)
    for pair in measures.top_pairs(S, count * (count - 1) // 2).itertuples():
        if len(rows) == n:
            break
        if pair.feature not in taken and pair.other not in taken:
            taken |= {pair.feature, pair.other}
            rows.append((str(pair.feature), str(pair.other), float(pair.similarity)))
    return pd.DataFrame(rows, columns=["feature", "other", "similarity"])


def masked(values: np.ndarray) -> Any:
    """Return numbers as a column in which those that are not finite are undefined."""
    return pd.array(np.where(np.isfinite(values), values, np.nan), dtype="Float64")


def summarise(
    table: pd.DataFrame,
    A: pd.DataFrame,
    frames: dict[str, pd.DataFrame],
    clusters: Clusters,
    live: list[str],
    shown: list[str],
) -> dict[str, Any]:
    """Return the run's findings as plain JSON values."""
    pairs = distinct_pairs(frames["profile"], 5)
    undefined = {name: measures.count_undefined(frame) for name, frame in frames.items()}
    rate = measures.identity_rate(A, live) if live else None
    return {
        "features": len(table),
        "shown": len(shown),
        "statuses": dict(Counter(table["status"])),
        "identity_rate": rate,
        "clusters": {
            "allowed": bool(clusters.allowed),
            "count": int(clusters.labels.nunique()) if clusters.allowed else 0,
            "sizes": sorted(Counter(clusters.communities.labels).values(), reverse=True),
            "modularity": float(clusters.communities.modularity),
            "p_permuted": float(clusters.p_permuted),
            "p_one_factor": float(clusters.p_factor),
            "louvain_self_agreement": float(clusters.communities.self_agreement),
            "sentence": clusters.summary(),
        },
        "most_similar": [[r.feature, r.other, float(r.similarity)] for r in pairs.itertuples()],
        "undefined": undefined,
    }


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """Return the summary in words, one line a finding."""
    order = ("live", "rescued", "dead", "unconverged", "not-finite")
    counts = ", ".join(f"{summary['statuses'][s]} {s}" for s in order if s in summary["statuses"])
    shown = "" if summary["shown"] == summary["features"] else f"; {summary['shown']} shown"
    lines = [f"{summary['features']} features: {counts}{shown}"]
    if summary["identity_rate"] is not None:
        lines.append(
            f"identity rate {summary['identity_rate']:.3f}: "
            "the share of live features that no other live feature's image excites more than their own"
        )
    lines.append(summary["clusters"]["sentence"])
    pairs = ", ".join(f"{a} and {b} ({s:.3f})" for a, b, s in summary["most_similar"][:3])
    if pairs:
        lines.append(f"most similar pairs (each feature once): {pairs}")
    masked = {k: v for k, v in summary["undefined"].items() if v}
    if masked:
        lines.append("undefined (left empty): " + ", ".join(f"{n} cells of {k}" for k, n in masked.items()))
    if "seeds" in summary:
        s = summary["seeds"]
        agreement = "undefined" if s["correlation_of_S"] is None else f"{s['correlation_of_S']:.4f}"
        lines.append(
            f"{s['count']} seeds: correlation of S between single seeds {agreement}; clusters agree with "
            f"ARI {s['ari_of_clusters']:.2f} (Louvain with itself {s['ari_of_louvain_with_itself']:.2f})"
        )
    return lines


def write(run: Run, found: SimilarityMap, measure: str, neighbours: int, watcher: Watcher) -> None:
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
    clusters = cluster_io.to_json(found.clusters, neighbours)
    run.write(found.place + cluster_io.NAME, lambda p: p.write_text(clusters, encoding="utf-8"))
    run.write(f"{found.place}graph.graphml", lambda p: nx.write_graphml(graphml(found, nodes, neighbours), p))
    watcher.stage("tables and figures", len(names) + 2, total)
    draw(run, found, measure, nodes)
    watcher.stage("tables and figures", total, total)


def write_frame(run: Run, name: str, frame: pd.DataFrame, rows: str = "image") -> None:
    """Write a table as parquet and CSV, both with the labels of its rows, which are called `rows`."""
    frame = frame.rename_axis(index=rows)
    run.write(f"{name}.parquet", frame.to_parquet)
    run.write(f"{name}.csv", lambda p: frame.to_csv(p, float_format="%.9g", lineterminator="\n"))


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


def arranged(found: SimilarityMap) -> tuple[list[str], np.ndarray, pd.Series | None]:
    """Return the live features shown as the heatmap orders them, their linkage, and their clusters where allowed.

    The linkage is that of the features in the order of `found.shown`.
    """
    nodes = [f for f in found.shown if f in found.clusters.graph]
    clusters = found.clusters.labels.loc[nodes] if found.clusters.allowed else None
    grouping = clusters if clusters is not None else pd.Series(0, index=nodes)
    linkage, leaves = clustering.leaf_order(found.measures["profile"].loc[nodes, nodes], grouping)
    return [nodes[i] for i in leaves], linkage, clusters


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
        save(run, figure, f"{found.place}heatmap", ("png", "svg"))
    order += [f for f in found.shown if f not in set(nodes)]
    # read in the order in which they are drawn: of a large layer a second copy would not fit into memory
    pictures = found.dataset["images"].isel(seed=0).sel(image=order).values
    images = dict(zip(order, pictures, strict=True))
    table = found.features
    captions = [
        _number(table.activation[f]) + ("" if table.status[f] == "live" else f" {table.status[f]}") for f in order
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
    save(run, sheet, f"{found.place}features", ("png",))
    rows = _pairs(found, nodes, images)
    if rows:
        pairs = sheets.card_sheet(rows, f"The {len(rows)} most similar pairs (each feature once)")
        save(run, pairs, f"{found.place}neighbours", ("png",))


def save(run: Run, figure: Any, name: str, formats: tuple[str, ...]) -> None:
    """Write a figure into the run folder and note its files' checksums."""
    with clear_faults(f"run folder {str(run.folder)!r}"):
        paths = style.save(figure, run.folder / name, formats)
    for path in paths:
        run.note_file(path)


def _number(value: Any) -> str:
    return "undefined" if pd.isna(value) else f"{value:.3g}"


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


def write_images(job: Job, run: Run, watcher: Watcher) -> None:
    """Write the table, a picture a unit and the contact sheet of an optimisation run."""
    from featmap.runs.job import STATUSES

    data = xr.open_zarr(run.folder / ARRAYS, consolidated=True)
    frame = data[["activation", "null_activation", "status"]].to_dataframe().reset_index()
    for column in ("activation", "null_activation"):
        frame[column] = masked(frame[column].to_numpy())
    frame["status"] = [STATUSES[int(s)] for s in frame["status"]]
    run.manifest["files"] = {}
    run.write("images.csv", lambda p: frame.to_csv(p, index=False, float_format="%.9g", lineterminator="\n"))
    labels = job.labels
    for k, label in enumerate(labels):
        pixels = data["images"].isel(seed=0, image=k).values
        picture = Image.fromarray((np.clip(pixels, 0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0))
        run.write(f"images/{k:05d}-{file_name(label)}.png", picture.save)
        watcher.stage("pictures", k + 1, len(labels))
    first = frame[frame["seed"] == job.seeds[0]]
    captions = [
        _number(a) + ("" if s == "live" else f" {s}") for a, s in zip(first["activation"], first["status"], strict=True)
    ]
    sheet = sheets.contact_sheet(
        data["images"].isel(seed=0).values,
        labels,
        captions=captions,
        groups=None,
        title=f"{len(labels)} maximising images",
        columns=None,
    )
    save(run, sheet, "features", ("png",))


def image_line(folder: Path) -> str:
    """Return what an optimisation run reached, in one line."""
    frame = pd.read_csv(folder / "images.csv")
    counts = ", ".join(f"{n} {status}" for status, n in Counter(frame["status"]).items())
    best = frame.loc[frame["activation"].idxmax()] if frame["activation"].notna().any() else None
    reached = "" if best is None else f"; highest activation {best['activation']:.4g} ({best['image']})"
    return f"{len(frame)} images: {counts}{reached}"


def read_frame(folder: Path, name: str) -> pd.DataFrame:
    """Return a table of a finished run.

    Raises
    ------
    FeatmapError
        if the run has not written it.
    """
    path = folder / f"{name}.parquet"
    if not path.is_file():
        raise FeatmapError(f"run {str(folder)!r} has no {path.name} yet; run its command again to finish it")
    return pd.read_parquet(path)
