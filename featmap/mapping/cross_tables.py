"""What a run writes of the maps between layers: a folder an ordered pair, the table of layers, their summary."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from featmap.mapping import flags, result, tables
from featmap.mapping.result import LAYER_TABLE, LayerMaps
from featmap.mapping.tables import shown_measure
from featmap.mapping.view import View
from featmap.plotting import heatmaps
from featmap.runs import output
from featmap.runs.progress import Watcher
from featmap.runs.store import Run
from featmap.stats import clustering, measures
from featmap.stats.cross_layer import CrossLayerMap
from featmap.stats.measures import profile_correlations, to_floats, to_frame

LABELS = tables.LABELS | {
    "coactivation": "co-activation (share of the responding feature's own best response)",
    "selective": "response, standardised over the images",
}


def pair_folders(pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Return where the tables and figures of each ordered pair of layers lie in a run folder."""
    names = dict.fromkeys(name for pair in pairs for name in pair)
    parts = tables.places([*names]) if len(names) > 1 else {}
    taken: set[str] = set()
    found = {}
    for one, two in pairs:
        place = tables.unlike(f"{parts[one][:-1]}-to-{parts[two][:-1]}", taken)
        found[one, two] = f"{tables.CROSS}/{place}/"
    return found


def main_files(run: Run, found: LayerMaps) -> list[str]:
    """Return what of a finished run's tables and figures is worth looking at first."""
    places = tables.places(list(found.maps)).values()
    if found.large_lines:
        wanted = [f"{tables.CROSS}/{name}" for name in ("neighbours.parquet", "partners.parquet", "graph.graphml")]
    elif len(found.maps) > 1:
        wanted = [f"{place}heatmap.png" for place in places]
    else:
        wanted = ["heatmap.png", "features.png", "neighbours.png", "features.csv", "graph.graphml"]
    pairs = [f"{folder}heatmap.png" for folder in pair_folders(list(found.crossings)).values()]
    wanted += [f"{LAYER_TABLE}.png", *(pairs if len(pairs) <= 2 else ())]
    written = [name for name in wanted if name in run.manifest.files]
    drawn_pairs = len(pairs) > 2 and not found.large_lines
    return written + [f"{tables.CROSS}/*/heatmap.png"] * drawn_pairs + ["*/heatmap.png"] * bool(found.large_lines)


def write(run: Run, found: LayerMaps, view: View, watcher: Watcher) -> None:
    """Write tables, partners and heatmap of every ordered pair of layers, then the table of layers."""
    if not found.crossings:
        return
    orders = {layer: result.arranged(one) for layer, one in found.maps.items()}
    folders, total = pair_folders(list(found.crossings)), len(found.crossings) + 1
    for done, (pair, c) in enumerate(found.crossings.items()):
        watcher.stage("cross-layer tables and figures", done, total)
        rows = found.maps[c.layer].shown
        columns = found.maps[c.other].shown if c.other in found.maps else list(c.activations.columns)
        raw = measures.raw(c.activations, c.null)
        for name, frame in ({"activations": raw} | c.measures).items():
            axis = "feature" if name == "profile" else "image"
            output.write_frame(run, folders[pair] + name, frame.loc[rows, columns], axis)
        partners = c.partners[c.partners["feature"].isin(rows)].set_index("feature")
        known = [found.maps[layer].features if layer in found.maps else pd.DataFrame() for layer in (c.layer, c.other)]
        for name, table, whose in zip(
            ("reliable", "partner_reliable"), known, (partners.index, partners["partner"]), strict=True
        ):
            if "reliable" in table:  # the run has been validated
                partners[name] = table["reliable"].reindex(whose).to_numpy()
        output.write_frame(run, f"{folders[pair]}partners", partners, "feature")
        live, _, clusters = orders[c.layer]
        if live:
            across = (
                _known_order(orders[c.other], columns) if c.other in orders else (_order_of_probed(c, columns), None)
            )
            draw(run, folders[pair], c, shown_measure(c, view.measure), (live, clusters), across, known)
    output.write_frame(run, LAYER_TABLE, found.layers.set_index("layer"), "layer")
    if len(found.maps) > 1:
        draw_layers(run, list(found.maps), found.layers)
    watcher.stage("cross-layer tables and figures", total, total)


def _known_order(
    arranged: tuple[list[str], np.ndarray, pd.Series | None], shown: Sequence[str]
) -> tuple[list[str], pd.Series | None]:
    """Return a mapped layer's features as its own heatmap orders them, those that are not live last."""
    order, _, clusters = arranged
    return order + [f for f in shown if f not in set(order)], clusters


def _order_of_probed(c: CrossLayerMap, columns: Sequence[str]) -> list[str]:
    """Return a probed layer's features by linkage of their profiles on these images, undefined ones last."""
    values = profile_correlations(to_floats(c.second, "A"))
    defined = np.isfinite(values.diagonal())
    names = c.second.columns[defined]
    S = to_frame(values[np.ix_(defined, defined)], names, names)
    _, leaves = clustering.leaf_order(S, np.zeros(len(names), dtype=int))
    order = [str(names[i]) for i in leaves]
    return order + [f for f in columns if f not in set(order)]


def draw(
    run: Run,
    folder: str,
    c: CrossLayerMap,
    measure: str,
    rows: tuple[list[str], pd.Series | None],
    columns: tuple[list[str], pd.Series | None],
    features: Sequence[pd.DataFrame],
) -> None:
    """Write the heatmap of one ordered pair; rows and columns are their order, their clusters and their features."""
    values = measures.raw(c.activations, c.null) if measure == "raw" else c.measures[measure]
    dead = [f for f in columns[0] if f not in c.second.columns]
    table = values.loc[rows[0], columns[0]].copy()
    table[dead] = pd.NA
    numbers_of = [
        None if clusters is None else [None if pd.isna(n) else int(n) for n in clusters.reindex(order)]
        for order, clusters in (rows, columns)
    ]
    profile = measure == "profile"
    figure = heatmaps.cross_heatmap(
        table.set_axis(_channels(flags.named(features[0], list(table.index))), axis=0).set_axis(
            _channels(flags.named(features[1], list(table.columns))), axis=1
        ),
        row_clusters=numbers_of[0],
        column_clusters=numbers_of[1],
        row_name=f"feature of {c.layer}" if profile else f"maximising image of feature of {c.layer}",
        column_name=f"feature of {c.other}" if profile else f"response of feature of {c.other}",
        title=f"{c.layer} maximised, {c.other} probed: {len(rows[0])} x {len(columns[0])} features",
        cbar_label=LABELS[measure],
    )
    output.save_figure(run, figure, f"{folder}heatmap", ("png", "svg"))


def _channels(labels: Sequence[str]) -> list[str]:
    return [str(label).rpartition(":")[2] for label in labels]


def draw_layers(run: Run, layers: list[str], table: pd.DataFrame) -> None:
    """Write the grid of layers: how well the rows' features find partners in the columns' layers."""
    grids = [
        table.pivot(index="layer", columns="other", values=name).reindex(index=layers, columns=layers)
        for name in ("best", "floor")
    ]
    figure = heatmaps.layer_grid(
        *grids,
        title="Best partner's profile similarity S, mean over features (the same by chance)",
        row_name="features of",
        column_name="find their best partners in",
    )
    output.save_figure(run, figure, LAYER_TABLE, ("png", "svg"))
