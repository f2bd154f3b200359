"""What a similarity run writes beside its arrays: tables, the graph, figures and the summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from featmap.files import safe_file_name
from featmap.network.trace import Layer
from featmap.runs.array_layout import ARRAYS
from featmap.runs.manifest import MANIFEST, UNITS
from featmap.stats import measures, similarity_frame
from featmap.stats.clustering import Clusters
from featmap.stats.cross_layer import CrossLayerMap
from featmap.stats.measures import finite_column

CROSS = "cross"  # the folder of what lies between layers
OWN = ("validation", "atlas.html")  # what other commands add to a run folder
NEAREST = 5
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
    return {layer: f"{unlike(safe_file_name(layer), taken)}/" for layer in layers}


def unlike(name: str, taken: set[str]) -> str:
    """Return a name that no file system takes for one of those taken, numbered if need be, and take it."""
    number, place = 1, name
    while place.casefold() in taken:
        number += 1
        place = f"{name}-{number}"
    taken.add(place.casefold())
    return place


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
            "activation": finite_column(activation),
            "null_activation": finite_column(null.to_numpy()),
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
    closest = similarity_frame.nearest_features(frames["profile"], NEAREST)
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
    for pair in similarity_frame.most_similar_pairs(S, count * (count - 1) // 2).itertuples():
        if len(rows) == n:
            break
        if pair.feature not in taken and pair.other not in taken:
            taken |= {pair.feature, pair.other}
            rows.append((str(pair.feature), str(pair.other), float(pair.similarity)))
    return pd.DataFrame(rows, columns=["feature", "other", "similarity"])


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


def shown_measure(crossing: CrossLayerMap, measure: str) -> str:
    """Return the measure that a crossing's heatmap shows: the one asked for, `selective` where it has none."""
    return measure if measure == "raw" or measure in crossing.measures else "selective"


def summarise_crossings(crossings: Sequence[CrossLayerMap], table: pd.DataFrame, measure: str) -> list[dict[str, Any]]:
    """Return what was found between layers as plain JSON values, one entry an ordered pair."""
    found = []
    for c, row in zip(crossings, table.to_dict("records"), strict=True):
        undefined = {name: measures.count_undefined(frame) for name, frame in c.measures.items()}
        strongest = [[r.feature, r.partner, float(r.similarity)] for r in distinct_partners(c.partners, 5).itertuples()]
        entry = {"layer": c.layer, "other": c.other, "features": int(row["features"]), "images": int(row["images"])}
        entry |= {k: None if pd.isna(row[k]) else float(row[k]) for k in ("best", "floor", "highest_floor")}
        shows = shown_measure(c, measure)
        found.append(entry | {"strongest": strongest, "undefined": undefined, "asked": measure, "heatmap": shows})
    return found


def distinct_partners(partners: pd.DataFrame, n: int) -> pd.DataFrame:
    """Return the n most similar pairs of first partners, no feature of either layer in two of them."""
    first = partners[partners["rank"] == 1].sort_values("similarity", ascending=False, kind="stable")
    return first.drop_duplicates("partner").head(n)


def crossing_lines(summary: Sequence[dict[str, Any]]) -> list[str]:
    """Return what was found between layers in words, a line a pair, and what could not be."""
    found = []
    for entry in summary:
        best = "undefined" if entry["best"] is None else f"{entry['best']:.3f}"
        floor = "" if entry["floor"] is None else f" ({entry['floor']:.3f} by chance, permuted columns)"
        pairs = ", ".join(f"{a} and {b} ({s:.3f})" for a, b, s in entry["strongest"][:3])
        found.append(
            f"{entry['layer']} to {entry['other']}: a feature's best partner has on average S {best}{floor}"
            + (f"; most alike: {pairs}" if pairs else "")
        )
    for entry in summary:
        if entry["asked"] != entry["heatmap"]:
            found.append(
                f"{entry['other']} is probed, not maximised: its co-activation is undefined without images of its "
                f"features, so the heatmap shows {entry['heatmap']}; "
                f"--layers {entry['layer']},{entry['other']} makes them"
            )
    return found
