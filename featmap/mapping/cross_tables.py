"""What a run writes of the maps between layers: a folder an ordered pair, the table of layers, their summary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from featmap.mapping import flags, tables
from featmap.plotting import crossplots
from featmap.runs.engine import Watcher
from featmap.runs.store import Run
from featmap.stats import clustering, measures
from featmap.stats.cross_layer import Crossing
from featmap.stats.measures import correlations, framed, numbers

if TYPE_CHECKING:
    from featmap.mapping.result import LayerMaps

LAYERS = f"{tables.CROSS}/layers"
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


def drawn(crossing: Crossing, measure: str) -> str:
    """Return the measure that a crossing's heatmap shows: the one asked for, `selective` where it has none."""
    return measure if measure == "raw" or measure in crossing.measures else "selective"


def summarise(crossings: Sequence[Crossing], table: pd.DataFrame, measure: str) -> list[dict[str, Any]]:
    """Return what was found between layers as plain JSON values, one entry an ordered pair."""
    found = []
    for c, row in zip(crossings, table.to_dict("records"), strict=True):
        undefined = {name: measures.count_undefined(frame) for name, frame in c.measures.items()}
        strongest = [[r.feature, r.partner, float(r.similarity)] for r in distinct(c.partners, 5).itertuples()]
        entry = {"layer": c.layer, "other": c.other, "features": int(row["features"]), "images": int(row["images"])}
        entry |= {k: None if pd.isna(row[k]) else float(row[k]) for k in ("best", "floor", "highest_floor")}
        shows = drawn(c, measure)
        found.append(entry | {"strongest": strongest, "undefined": undefined, "asked": measure, "heatmap": shows})
    return found


def distinct(partners: pd.DataFrame, n: int) -> pd.DataFrame:
    """Return the n most similar pairs of first partners, no feature of either layer in two of them."""
    first = partners[partners["rank"] == 1].sort_values("similarity", ascending=False, kind="stable")
    return first.drop_duplicates("partner").head(n)


def lines(summary: Sequence[dict[str, Any]]) -> list[str]:
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


def main_files(run: Run, found: LayerMaps) -> list[str]:
    """Return what of a finished run's tables and figures is worth looking at first."""
    places = tables.places(list(found.maps)).values()
    if found.told:
        wanted = [f"{tables.CROSS}/{name}" for name in ("neighbours.parquet", "partners.parquet", "graph.graphml")]
    elif len(found.maps) > 1:
        wanted = [f"{place}heatmap.png" for place in places]
    else:
        wanted = ["heatmap.png", "features.png", "neighbours.png", "features.csv", "graph.graphml"]
    pairs = [f"{folder}heatmap.png" for folder in pair_folders(list(found.crossings)).values()]
    wanted += [f"{LAYERS}.png", *(pairs if len(pairs) <= 2 else ())]
    written = [name for name in wanted if name in run.manifest["files"]]
    drawn_pairs = len(pairs) > 2 and not found.told
    return written + [f"{tables.CROSS}/*/heatmap.png"] * drawn_pairs + ["*/heatmap.png"] * bool(found.told)


def read(folder: Path) -> pd.DataFrame | None:
    """Return the table of layers that `write` left in a run folder, or None where there is none."""
    path = folder / f"{LAYERS}.parquet"
    return pd.read_parquet(path).reset_index() if path.is_file() else None


def write(run: Run, found: LayerMaps, measure: str, watcher: Watcher) -> None:
    """Write tables, partners and heatmap of every ordered pair of layers, then the table of layers."""
    if not found.crossings:
        return
    orders = {layer: tables.arranged(one) for layer, one in found.maps.items()}
    folders, total = pair_folders(list(found.crossings)), len(found.crossings) + 1
    for done, (pair, c) in enumerate(found.crossings.items()):
        watcher.stage("cross-layer tables and figures", done, total)
        rows = found.maps[c.layer].shown
        columns = found.maps[c.other].shown if c.other in found.maps else list(c.activations.columns)
        raw = measures.raw(c.activations, c.null)
        for name, frame in ({"activations": raw} | c.measures).items():
            axis = "feature" if name == "profile" else "image"
            tables.write_frame(run, folders[pair] + name, frame.loc[rows, columns], axis)
        partners = c.partners[c.partners["feature"].isin(rows)].set_index("feature")
        known = [found.maps[layer].features if layer in found.maps else pd.DataFrame() for layer in (c.layer, c.other)]
        for name, table, whose in zip(
            ("reliable", "partner_reliable"), known, (partners.index, partners["partner"]), strict=True
        ):
            if "reliable" in table:  # the run has been validated
                partners[name] = table["reliable"].reindex(whose).to_numpy()
        tables.write_frame(run, f"{folders[pair]}partners", partners, "feature")
        live, _, clusters = orders[c.layer]
        if live:
            across = (
                _known_order(orders[c.other], columns) if c.other in orders else (_order_of_probed(c, columns), None)
            )
            draw(run, folders[pair], c, drawn(c, measure), (live, clusters), across, known)
    tables.write_frame(run, LAYERS, found.layers.set_index("layer"), "layer")
    if len(found.maps) > 1:
        draw_layers(run, list(found.maps), found.layers)
    watcher.stage("cross-layer tables and figures", total, total)


def _known_order(
    arranged: tuple[list[str], np.ndarray, pd.Series | None], shown: Sequence[str]
) -> tuple[list[str], pd.Series | None]:
    """Return a mapped layer's features as its own heatmap orders them, those that are not live last."""
    order, _, clusters = arranged
    return order + [f for f in shown if f not in set(order)], clusters


def _order_of_probed(c: Crossing, columns: Sequence[str]) -> list[str]:
    """Return a probed layer's features by linkage of their profiles on these images, undefined ones last."""
    values = correlations(numbers(c.second, "A"))
    defined = np.isfinite(values.diagonal())
    names = c.second.columns[defined]
    S = framed(values[np.ix_(defined, defined)], names, names)
    _, leaves = clustering.leaf_order(S, np.zeros(len(names), dtype=int))
    order = [str(names[i]) for i in leaves]
    return order + [f for f in columns if f not in set(order)]


def draw(
    run: Run,
    folder: str,
    c: Crossing,
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
    figure = crossplots.rectangle(
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
    tables.save(run, figure, f"{folder}heatmap", ("png", "svg"))


def _channels(labels: Sequence[str]) -> list[str]:
    return [str(label).rpartition(":")[2] for label in labels]


def draw_layers(run: Run, layers: list[str], table: pd.DataFrame) -> None:
    """Write the grid of layers: how well the rows' features find partners in the columns' layers."""
    grids = [
        table.pivot(index="layer", columns="other", values=name).reindex(index=layers, columns=layers)
        for name in ("best", "floor")
    ]
    figure = crossplots.layer_grid(
        *grids,
        title="Best partner's profile similarity S, mean over features (the same by chance)",
        row_name="features of",
        column_name="find their best partners in",
    )
    tables.save(run, figure, LAYERS, ("png", "svg"))
