"""Compute the table of features and the summary of a similarity run, and name the subfolders of its layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from featmap.files import safe_file_name
from featmap.network.trace import Layer
from featmap.runs import folder_layout
from featmap.runs.folder_layout import ARRAYS
from featmap.runs.manifest import MANIFEST, UNITS
from featmap.stats import facets, measures
from featmap.stats.clustering import Clusters
from featmap.stats.frames import count_undefined, distinct_pairs, finite_column, nearest_features

CROSS = "cross"
"""Subfolder of a run folder for tables and figures of pairs of layers."""
RESERVED = ("validation", "atlas.html")
"""Names that other commands use in a run folder."""
NEAREST = 5
"""Most similar features that a table lists for each feature."""
ALONE = "no maximising images: co-activation, identity rate, statuses of descents and sheets of images are left out"
WORDS = ("parted", "reason", "overlap_reason")
"""Entries of a summary of agreement that are no numbers."""
PROFILES = ("profile", "linear_profile")
"""Measures of pairs of features; the rows of others are images."""
LABELS = {
    "coactivation": "co-activation (share of the feature's own best response)",
    "relative": "response relative to the image's own feature",
    "selective": "response, standardised over images",
    "profile": "profile similarity S",
    "linear_profile": "profile similarity of responses without roots",
    "raw": "average activation",
}


def layer_folders(layers: Sequence[str]) -> dict[str, str]:
    """Name the subfolder of a run folder for the tables and figures of each layer.

    Parameters
    ----------
    layers : sequence of str
        Mapped layers of the run.

    Returns
    -------
    dict of str to str
        Relative path by layer with a slash at the end, made unique by numbers on file systems that ignore case; "" for
        a single layer, whose files lie in the run folder itself.
    """
    if len(layers) == 1:
        return {layers[0]: ""}
    taken = {ARRAYS, UNITS, CROSS, MANIFEST, *RESERVED}
    return {layer: f"{unique_name(safe_file_name(layer), taken)}/" for layer in layers}


def unique_name(name: str, taken: set[str]) -> str:
    """Make a name unique by appending a number if necessary.

    Parameters
    ----------
    name : str
        Proposed name.
    taken : set of str
        Names in use, in lower case; the result is added.

    Returns
    -------
    str
        A name that differs from those in use on file systems that ignore case, too.
    """
    number, candidate = 1, name
    while candidate.casefold() in taken:  # macOS and Windows take "Conv" and "conv" for the same name
        number += 1
        candidate = f"{name}-{number}"
    taken.add(candidate.casefold())
    return candidate


def feature_table(
    names: Sequence[str],
    layer: Layer,
    status: np.ndarray,
    activation: np.ndarray,
    A: pd.DataFrame,
    null: pd.Series,
    frames: dict[str, pd.DataFrame],
    clusters: Clusters,
) -> pd.DataFrame:
    """Tabulate the features of a layer.

    Parameters
    ----------
    names : sequence of str
        The N features.
    layer : Layer
        Their layer.
    status : numpy.ndarray
        Code of each feature's status, see `featmap.runs.folder_layout.STATUSES`.
    activation : numpy.ndarray
        Response of each feature to its own image, averaged over seeds.
    A : pandas.DataFrame
        Responses, N images x N features.
    null : pandas.Series
        Response of each feature to the null image.
    frames : dict of str to pandas.DataFrame
        Measures by name; `profile` is used.
    clusters : Clusters
        Clusters of the live features.

    Returns
    -------
    pandas.DataFrame
        One row a feature: channel, branch, status, start, activation, null_activation, identity (1 if no live feature's
        image drives the feature more than its own, else 0), cluster (NaN where the nulls allow no clusters), community
        (the consensus of Louvain, in any case; NaN without an image, as identity is) and, for rank k from 1 to
        `NEAREST`, nearest_k and similarity_k. Directions that have names get a column `name`.
    """
    channels = [int(n.rpartition(":")[2]) for n in names]
    table = pd.DataFrame(
        {
            "channel": channels,
            "branch": [layer.branch(c) for c in channels],
            "status": folder_layout.status_names(status),
            "start": pd.Series(folder_layout.starts(status), dtype=object).to_numpy(),
            "activation": finite_column(activation),
            "null_activation": finite_column(null.to_numpy()),
        },
        index=pd.Index(names, name="feature"),
    )
    if layer.names:
        table.insert(1, "name", [layer.names[c] for c in channels])
    live = list(clusters.labels.index)
    # the image of a dead feature shows nothing, so identity is decided among the images of live features
    best = A.loc[live].max(axis=0) if live else A.max(axis=0)
    own = pd.Series(np.diag(A.to_numpy()), index=names)
    table["identity"] = np.where(table.index.isin(live), own >= best, np.nan)
    add_clusters(table, frames["profile"], clusters)
    return table


def add_clusters(table: pd.DataFrame, S: pd.DataFrame, clusters: Clusters) -> None:
    """Add columns of clusters and nearest features to a table in place.

    Parameters
    ----------
    table : pandas.DataFrame
        Table whose index are features.
    S : pandas.DataFrame
        Profile similarity.
    clusters : Clusters
        Clusters of the features of S; other features get NaN.
    """
    for column, labels in (("cluster", clusters.labels), ("community", clusters.communities.labels)):
        valid = labels if column == "community" or clusters.allowed else labels.iloc[:0]
        table[column] = valid.astype("float64").reindex(table.index)
    closest = nearest_features(S, NEAREST)
    for rank in range(1, NEAREST + 1):
        ranked = closest[closest.groupby("feature", sort=False).cumcount() == rank - 1].set_index("feature")
        table[f"nearest_{rank}"] = ranked["other"].reindex(table.index)
        table[f"similarity_{rank}"] = ranked["similarity"].reindex(table.index)


def tabulate_facets(data: xr.Dataset, names: list[str]) -> tuple[pd.DataFrame, pd.Series]:
    """Tabulate the facets of a layer's features, as made with the first seed.

    Parameters
    ----------
    data : xarray.Dataset
        Arrays of the run.
    names : list of str
        Features whose images are compared.

    Returns
    -------
    table : pandas.DataFrame
        See `featmap.stats.facets.facet_table`.
    counts : pandas.Series
        Number of clearly different facets by feature.
    """
    first = data.isel(seed=0).sel(image=names)
    return facets.facet_table(names, [0] * len(names), *(first[name].values for name in folder_layout.FACET_TABLE))


def split_status(table: pd.DataFrame) -> pd.DataFrame:
    """Split the status of an older run's table into what was reached and how it began.

    Parameters
    ----------
    table : pandas.DataFrame
        Table of features or images, with a column `status`.

    Returns
    -------
    pandas.DataFrame
        A table without the column `start` gets it, and its status "rescued" becomes "live".
    """
    if "start" in table:
        return table
    codes = [folder_layout.STATUSES.index(name) for name in table["status"]]
    table = table.assign(status=folder_layout.status_names(codes))
    start = pd.Series(folder_layout.starts(codes), index=table.index, dtype=object)
    table.insert(table.columns.get_loc("status") + 1, "start", start)
    return table


def summarise(
    table: pd.DataFrame,
    A: pd.DataFrame,
    frames: dict[str, pd.DataFrame],
    clusters: Clusters,
    live: list[str],
    shown: list[str],
) -> dict[str, Any]:
    """Summarise the map of one layer.

    Parameters
    ----------
    table : pandas.DataFrame
        Table of features, see `feature_table`.
    A : pandas.DataFrame
        Responses, N images x N features.
    frames : dict of str to pandas.DataFrame
        Measures by name.
    clusters : Clusters
        Clusters of the live features.
    live : list of str
        Live features.
    shown : list of str
        Features that tables and figures show.

    Returns
    -------
    dict
        Plain JSON values: counts of features, statuses and undefined cells, identity rate (None without live features),
        clusters and the most similar pairs.
    """
    pairs = distinct_pairs(frames["profile"], 5)
    undefined = {name: count_undefined(frame) for name, frame in frames.items()}
    rate = measures.identity_rate(A, live) if live else None
    return {
        "features": len(table),
        "shown": len(shown),
        "statuses": dict(Counter(table["status"])),
        "rescued": int((table["start"] == folder_layout.RESCUED_START).sum()),
        "identity_rate": rate,
        "clusters": summarise_clusters(clusters),
        "most_similar": [[r.feature, r.other, float(r.similarity)] for r in pairs.itertuples()],
        "undefined": undefined,
    }


def summarise_clusters(clusters: Clusters) -> dict[str, Any]:
    """Summarise clusters.

    Parameters
    ----------
    clusters : Clusters
        Clusters of one layer.

    Returns
    -------
    dict
        Plain JSON values: whether the nulls allow clusters, how many there are of two features or more, their sizes
        and the number of features in none, modularity (mean over Louvain runs, which is what p-values are about; and
        of their consensus), p-values and the sentence that the command prints.
    """
    communities = clusters.communities
    sizes = communities.sizes if clusters.allowed else []
    return {
        "allowed": bool(clusters.allowed),
        "count": sum(size > 1 for size in sizes),
        "sizes": [size for size in sizes if size > 1],
        "single": sum(size == 1 for size in sizes),
        "modularity": float(communities.mean_modularity),
        "consensus_modularity": float(communities.modularity),
        "p_permuted": float(clusters.p_permuted),
        "p_one_factor": float(clusters.p_factor),
        "louvain_self_agreement": float(communities.self_agreement),
        "sentence": clusters.summary(),
    }


def photograph_lines(summary: dict[str, Any]) -> list[str]:
    """Describe the summary of a photographs' map in words.

    Parameters
    ----------
    summary : dict
        See `featmap.mapping.photograph_map.summarise`.

    Returns
    -------
    list of str
        One finding a line; none for an empty summary.
    """
    if not summary:
        return []
    statuses = ", ".join(f"{count} {name}" for name, count in summary["statuses"].items())
    count, nulls = summary["photographs"], summary["null_photographs"]
    drawn = f" The nulls are drawn from {nulls:,} evenly spaced photographs." if nulls < count else ""
    lines = [f"{summary['features']} features: {statuses}", summary["clusters"]["sentence"] + drawn]
    pairs = ", ".join(f"{a} and {b} ({s:.3f})" for a, b, s in summary["most_similar"][:3])
    lines += [f"most similar pairs (each feature once): {pairs}"] if pairs else []
    return [f"on {count:,} photographs: {line}" for line in lines] + _agreement_lines(summary.get("agreement", {}))


def _agreement_lines(agreement: dict[str, Any]) -> list[str]:
    """Describe in words how far the maps of images and of photographs agree."""
    if not agreement:
        return []
    text = {k: "undefined" if v is None else f"{v:.2f}" for k, v in agreement.items() if k not in WORDS}
    lines = [
        f"S over images and S over photographs correlate by {text['correlation']} [{text['low']}, {text['high']}] over "
        "pairs of features (interval: bootstrap over features; S over two halves of the photographs: "
        f"{text['correlation_of_halves']}); median correlation of a feature's row {text['median']}; ARI of the "
        f"communities {text['ari']} (of the two halves: {text['ari_of_halves']})"
    ]
    if agreement.get("share") is not None:
        lines.append(
            f"over half of the photographs S correlates by {text['half_correlation']} with S over images, by "
            f"{text['ceiling']} [{text['ceiling_low']}, {text['ceiling_high']}] with S over each feature's best "
            f"photograph of the other half, the ceiling: share {text['share']} [{text['share_low']}, "
            f"{text['share_high']}] (too large with few photographs); shared nearest features "
            f"{text['overlap']} with images, {text['overlap_ceiling']} with best photographs"
            + (f" (share above chance {_overlap_share(agreement)})" if "overlap_reason" in agreement else "")
        )
    elif "share" in agreement:  # not in older runs
        lines.append(f"the share of the ceiling of that agreement is undefined: {agreement['reason']}")
    pairs = [f"{a} and {b} ({x:.2f} and {y:.2f})" for a, b, x, y in agreement["parted"]]
    return lines + [f"pairs that differ most (S over images and S over photographs): {', '.join(pairs)}"] * bool(pairs)


def _overlap_share(agreement: dict[str, Any]) -> str:
    """Format the share of the overlap's ceiling, or say why it is undefined."""
    share = agreement["overlap_share"]
    return f"undefined: {agreement['overlap_reason']}" if share is None else f"{share:.2f}"


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """Describe the summary of one layer in words.

    Parameters
    ----------
    summary : dict
        See `summarise`; of a run of photographs alone only the entry `photographs`, see
        `featmap.mapping.photograph_map.summarise`.

    Returns
    -------
    list of str
        One finding a line.
    """
    if "features" not in summary:
        return [*photograph_lines(summary["photographs"]), ALONE]
    counts = folder_layout.count_statuses(summary["statuses"], summary.get("rescued", 0))
    shown = "" if summary["shown"] == summary["features"] else f"; {summary['shown']} shown"
    lines = [f"{summary['features']} features: {counts}{shown}"]
    if summary["identity_rate"] is not None:
        lines.append(
            f"identity rate {summary['identity_rate']:.3f}: "
            "the share of live features that no other live feature's image drives more than their own image does"
        )
    lines.append(summary["clusters"]["sentence"])
    pairs = ", ".join(f"{a} and {b} ({s:.3f})" for a, b, s in summary["most_similar"][:3])
    if pairs:
        lines.append(f"most similar pairs (each feature once): {pairs}")
    undefined = {name: count for name, count in summary["undefined"].items() if count}
    if undefined:
        lines.append("undefined cells (empty): " + ", ".join(f"{n} of {name}" for name, n in undefined.items()))
    if "seeds" in summary:
        seeds = summary["seeds"]
        agreement = "undefined" if seeds["correlation_of_S"] is None else f"{seeds['correlation_of_S']:.4f}"
        ari = "undefined" if seeds["ari_of_clusters"] is None else f"{seeds['ari_of_clusters']:.2f}"
        lines.append(
            f"{seeds['count']} seeds: correlation of S between single seeds {agreement}; ARI of the clusters between "
            f"single seeds {ari} "
            f"(between Louvain runs on one graph {seeds['ari_of_louvain_with_itself']:.2f})"
        )
    return lines + photograph_lines(summary.get("photographs", {}))


def crossing_lines(summary: Sequence[dict[str, Any]]) -> list[str]:
    """Describe the summary of the maps between layers in words.

    Parameters
    ----------
    summary : sequence of dict
        See `featmap.stats.cross_layer.summarise_crossings`.

    Returns
    -------
    list of str
        One pair a line, then a note for each pair that lacks the requested measure.
    """
    lines = []
    for entry in summary:
        best = "undefined" if entry["best"] is None else f"{entry['best']:.3f}"
        floor = "" if entry["floor"] is None else f" ({entry['floor']:.3f} by chance, with permuted columns)"
        pairs = ", ".join(f"{a} and {b} ({s:.3f})" for a, b, s in entry["strongest"][:3])
        lines.append(
            f"{entry['layer']} to {entry['other']}: mean S of a feature's best partner {best}{floor}"
            + (f"; most similar: {pairs}" if pairs else "")
        )
    for entry in summary:
        if (entry["requested"] if "requested" in entry else entry["asked"]) != entry["heatmap"]:  # "asked" until 0.2
            lines.append(
                f"{entry['other']} is probed, not maximised: its co-activation is undefined without images of its "
                f"features, so the heatmap shows {entry['heatmap']}; "
                f"map the layers {entry['layer']} and {entry['other']} to get co-activation"
            )
    return lines


def all_crossing_lines(summary: dict[str, Any]) -> list[str]:
    """Describe the maps between layers, over images and over photographs, in words.

    Parameters
    ----------
    summary : dict
        Summary of a run, with entries `crossings`, `photograph_crossings` and `photograph_network` where it has them.

    Returns
    -------
    list of str
        One pair a line.
    """
    network = summary.get("photograph_network")
    lines = crossing_lines(summary.get("crossings", [])) + (network_lines(network, "photographs") if network else [])
    found = summary.get("photograph_crossings", [])
    over = [f"on {e['images']:,} photographs: {line}" for e in found for line in crossing_lines([e])]
    return lines + over


def network_lines(network: dict[str, Any], stimuli: str) -> list[str]:
    """Describe the comparison of all layers of a large run in words.

    Parameters
    ----------
    network : dict
        See `featmap.mapping.large.summarise`.
    stimuli : str
        "images" or "photographs".

    Returns
    -------
    list of str
        The counts, then a pair of layers a line.
    """
    between = network["edges_between_layers"] / network["edges"] if network["edges"] else 0.0
    counted = f"{network['live']:,} {'live ' if stimuli == 'images' else ''}features"
    lines = [
        f"{network['layers']} layers, {counted}, {network['profiles']:,} with a profile over "
        f"{network['images']:,} {stimuli}: {network['edges']:,} edges to the {network['neighbours']} nearest "
        f"neighbours, {100 * between:.0f} % of them between layers"
    ]
    over = "" if stimuli == "images" else f"on {network['images']:,} {stimuli}: "
    return lines + [
        f"{over}{one} to {other}: mean S of a feature's best partner {best:.3f} (by chance {floor:.3f})"
        for one, other, best, floor in network["closest_layers"]
    ]
