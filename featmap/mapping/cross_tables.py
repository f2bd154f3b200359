"""Write the maps between layers: a folder of tables and figures for each ordered pair, and the table of layers.

S over photographs is written beside S over maximising images: see `PhotographCrossings` and `write_photographs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from featmap.mapping import flags, result, tables
from featmap.mapping.layer_arrays import PhotographLayers
from featmap.mapping.result import LAYER_TABLE, PHOTOGRAPH_LAYER_TABLE, LayerMaps, LazyMapping, Pair
from featmap.mapping.view import View
from featmap.plotting import heatmaps
from featmap.runs import output
from featmap.runs.progress import Watcher
from featmap.runs.store import Run
from featmap.stats import blockwise, clustering, cross_layer, measures
from featmap.stats.blockwise import SimilarityOverview
from featmap.stats.cross_layer import CrossLayerMap
from featmap.stats.frames import finite_column, to_floats, to_frame
from featmap.stats.measures import profile_correlations

LABELS = tables.LABELS | {
    "coactivation": "co-activation (share of the responding feature's own best response)",
    "selective": "response, standardised over the images",
}


def pair_folders(pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Name the subfolder of a run folder for each ordered pair of layers.

    Parameters
    ----------
    pairs : sequence of (str, str)
        Ordered pairs (maximised layer, responding layer).

    Returns
    -------
    dict of str
        Relative path by pair, with a slash at the end; all differ on every file system.
    """
    layers = dict.fromkeys(layer for pair in pairs for layer in pair)
    parts = tables.layer_folders([*layers]) if len(layers) > 1 else {}
    taken: set[str] = set()
    folders = {}
    for one, two in pairs:
        name = tables.unique_name(f"{parts[one][:-1]}-to-{parts[two][:-1]}", taken)
        folders[one, two] = f"{tables.CROSS}/{name}/"
    return folders


def main_files(run: Run, maps: LayerMaps) -> list[str]:
    """List the tables and figures of a finished run to look at first.

    Parameters
    ----------
    run : Run
        Run folder.
    maps : LayerMaps
        Maps of the run.

    Returns
    -------
    list of str
        Paths relative to the run folder, with patterns such as "*/heatmap.png" where there are many.
    """
    if maps.large_lines:
        wanted = [f"{tables.CROSS}/{name}" for name in ("neighbours.parquet", "partners.parquet", "graph.graphml")]
    elif len(maps.maps) > 1:
        wanted = [f"{folder}heatmap.png" for folder in tables.layer_folders(list(maps.maps)).values()]
    else:
        wanted = ["heatmap.png", "features.png", "neighbours.png", "features.csv", "graph.graphml"]
        wanted += ["photographs_heatmap.png", "photographs_features.csv", "examples.png"]
    crossed = maps.crossings or maps.photograph_crossings
    pairs = [f"{folder}heatmap.png" for folder in pair_folders(list(crossed)).values()]
    wanted += [f"{LAYER_TABLE}.png", f"{PHOTOGRAPH_LAYER_TABLE}.png", *(pairs if len(pairs) <= 2 else ())]
    written = [name for name in wanted if name in run.manifest.files]
    has_pair_heatmaps = len(pairs) > 2 and not maps.large_lines
    return written + [f"{tables.CROSS}/*/heatmap.png"] * has_pair_heatmaps + ["*/heatmap.png"] * bool(maps.large_lines)


def write(run: Run, maps: LayerMaps, view: View, watcher: Watcher) -> None:
    """Write tables and heatmap of every ordered pair, and the table of layers.

    Parameters
    ----------
    run : Run
        Run folder, held by this process.
    maps : LayerMaps
        Maps of the run; nothing is written if they have no `crossings`.
    view : View
        Measure that the heatmaps show.
    watcher : Watcher
        Receives the progress.
    """
    if not maps.crossings:
        return
    orders = {layer: result.order_features(one) for layer, one in maps.maps.items()}
    folders, total = pair_folders(list(maps.crossings)), len(maps.crossings) + 1
    for done, (pair, crossing) in enumerate(maps.crossings.items()):
        watcher.stage("cross-layer tables and figures", done, total)
        ends = (crossing.layer, crossing.other)
        rows = maps.maps[crossing.layer].shown
        columns = maps.maps[crossing.other].shown if crossing.other in maps.maps else list(crossing.activations.columns)
        features = [maps.maps[layer].features if layer in maps.maps else pd.DataFrame() for layer in ends]
        _write_tables(run, folders[pair], crossing, rows, columns, features)
        live, _, clusters = orders[crossing.layer]
        if live:
            column_order = (
                _mapped_order(orders[crossing.other], columns)
                if crossing.other in orders
                else (_probed_order(_second_similarity(crossing), columns), None)
            )
            measure = cross_layer.shown_measure(crossing, view.measure)
            draw_pair(run, folders[pair], crossing, measure, (live, clusters), column_order, features)
    output.write_frame(run, LAYER_TABLE, maps.layers.set_index("layer"), "layer")
    if len(maps.maps) > 1:
        draw_layers(run, list(maps.maps), maps.layers)
    watcher.stage("cross-layer tables and figures", total, total)


def _write_tables(
    run: Run,
    folder: str,
    crossing: CrossLayerMap,
    rows: Sequence[str],
    columns: Sequence[str],
    features: Sequence[pd.DataFrame],
) -> None:
    """Write the measures of one ordered pair, restricted to the features shown, and its table of partners."""
    raw = measures.raw(crossing.activations, crossing.null)
    for name, frame in ({"activations": raw} | crossing.measures).items():
        axis = "feature" if name in tables.PROFILES else "image"
        output.write_frame(run, folder + name, frame.loc[rows, columns], axis)
    partners = crossing.partners[crossing.partners["feature"].isin(rows)].set_index("feature")
    for name, table, labels in zip(
        ("reliable", "partner_reliable"), features, (partners.index, partners["partner"]), strict=True
    ):
        if "reliable" in table:  # only after a validation
            partners[name] = table["reliable"].reindex(labels).to_numpy()
    output.write_frame(run, f"{folder}partners", partners, "feature")


def _mapped_order(
    own_order: tuple[list[str], np.ndarray, pd.Series | None], shown: Sequence[str]
) -> tuple[list[str], pd.Series | None]:
    """Order a mapped layer's features as its own heatmap does, those that are not live last."""
    order, _, clusters = own_order
    return order + [f for f in shown if f not in set(order)], clusters


def _second_similarity(crossing: CrossLayerMap) -> pd.DataFrame:
    """Compute S of the responding layer's features over the images of a pair."""
    names = crossing.second.columns
    return to_frame(profile_correlations(to_floats(crossing.second, "A")), names, names)


def _probed_order(similarity: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """Order a probed layer's features by linkage of their similarity, undefined ones last."""
    defined = np.isfinite(similarity.to_numpy().diagonal())
    names = similarity.columns[defined]
    S = similarity.loc[names, names]
    _, leaves = clustering.leaf_order(S, np.zeros(len(names), dtype=int))
    order = [str(names[i]) for i in leaves]
    return order + [f for f in columns if f not in set(order)]


def draw_pair(
    run: Run,
    folder: str,
    crossing: CrossLayerMap,
    measure: str,
    rows: tuple[list[str], pd.Series | None],
    columns: tuple[list[str], pd.Series | None],
    features: Sequence[pd.DataFrame],
    photographs: int = 0,
) -> None:
    """Write the heatmap of one ordered pair of layers.

    Parameters
    ----------
    run : Run
        Run folder, held by this process.
    folder : str
        Subfolder of the pair, see `pair_folders`, and the beginning of the file's name.
    crossing : CrossLayerMap
        Map of the pair.
    measure : str
        Measure to draw.
    rows, columns : (list of str, pandas.Series or None)
        Features of each layer in the order in which they are drawn, and their clusters.
    features : sequence of pandas.DataFrame
        Feature tables of both layers, which mark unreliable features; empty for a probed layer.
    photographs : int, default 0
        Number of photographs of a map over photographs, which the title then names.
    """
    values = measures.raw(crossing.activations, crossing.null) if measure == "raw" else crossing.measures[measure]
    dead = [f for f in columns[0] if f not in crossing.second.columns]
    table = values.loc[rows[0], columns[0]].copy()
    table[dead] = np.nan
    numbers = [
        None if clusters is None else [None if pd.isna(n) else int(n) for n in clusters.reindex(order)]
        for order, clusters in (rows, columns)
    ]
    one, two, profile = crossing.layer, crossing.other, measure in tables.PROFILES
    size = f"{len(rows[0])} x {len(columns[0])} features"
    title = f"{one} maximised, {two} probed: {size}"
    figure = heatmaps.cross_heatmap(
        table.set_axis(_channels(flags.marked_names(features[0], list(table.index))), axis=0).set_axis(
            _channels(flags.marked_names(features[1], list(table.columns))), axis=1
        ),
        rows=heatmaps.Axis(f"feature of {one}" if profile else f"maximising image of feature of {one}", numbers[0]),
        columns=heatmaps.Axis(f"feature of {two}" if profile else f"response of feature of {two}", numbers[1]),
        title=f"{one} and {two}: {size}, {photographs:,} photographs" if photographs else title,
        cbar_label=LABELS[measure],
    )
    output.save_figure(run, figure, f"{folder}heatmap", ("png", "svg"))


def _channels(labels: Sequence[str]) -> list[str]:
    """Shorten labels of features to their channels, with their marks."""
    return [str(label).rpartition(":")[2] for label in labels]


def draw_layers(run: Run, layers: list[str], table: pd.DataFrame, path: str = LAYER_TABLE) -> None:
    """Write the layer grid as a figure.

    A cell shows the mean similarity of the features of the row's layer to their best partners in the column's layer.

    Parameters
    ----------
    run : Run
        Run folder, held by this process.
    layers : list of str
        Layers in the order of rows and columns.
    table : pandas.DataFrame
        One row an ordered pair, see `featmap.stats.cross_layer.layer_table`.
    path : str, optional
        Path of the figure in the run folder, without its ending.
    """
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
    output.save_figure(run, figure, path, ("png", "svg"))


def overview_table(layers: Sequence[str], groups: Sequence[slice], overview: SimilarityOverview) -> pd.DataFrame:
    """Tabulate the agreement of every ordered pair of layers.

    Parameters
    ----------
    layers : sequence of str
        The L layers.
    groups : sequence of slice
        Range of each layer among the features.
    overview : SimilarityOverview
        Comparison of all features.

    Returns
    -------
    pandas.DataFrame
        One row a pair, with the columns of `featmap.stats.cross_layer.layer_table`. `floor` and `highest_floor` are
        those of `featmap.stats.blockwise.compare`; NaN where undefined.
    """
    rows = []
    for i, one in enumerate(layers):
        best, defined = overview.best[groups[i]], int(overview.defined[groups[i]].sum())
        for k, other in enumerate(layers):
            if i != k:
                similarities = best[:, k][np.isfinite(best[:, k])]
                floors = overview.floors[:, i, k][np.isfinite(overview.floors[:, i, k])]
                chance = (floors.mean(), floors.max()) if len(floors) else (np.nan, np.nan)
                mean = similarities.mean() if len(similarities) else np.nan
                rows.append((one, other, defined, overview.images, mean, *chance, len(overview.floors)))
    names = ["layer", "other", "features", "images", "best", "floor", "highest_floor", "draws"]
    table = pd.DataFrame(rows, columns=names)
    for name in ("best", "floor", "highest_floor"):
        table[name] = finite_column(table[name].to_numpy(dtype=float))
    return table


class PhotographCrossings(LazyMapping[Pair, CrossLayerMap]):
    """S over photographs between the features of two layers, by ordered pair.

    Below `featmap.stats.blockwise.LARGE` features, S of all of them is computed when one pair is first requested, and
    kept; from there on each pair is computed when it is requested.

    Parameters
    ----------
    data : xarray.Dataset
        Arrays of a run with photographs.
    pairs : sequence of (str, str)
        Ordered pairs of recorded layers.
    """

    def __init__(self, data: xr.Dataset, pairs: Sequence[Pair]) -> None:
        super().__init__(pairs, self._read_pair)
        self._data, self._layers = data, list(dict.fromkeys(layer for pair in pairs for layer in pair))

    @cached_property
    def all_layers(self) -> PhotographLayers:
        """Responses of the layers of all pairs."""
        return PhotographLayers.read(self._data, self._layers)

    @cached_property
    def _kept(self) -> np.ndarray:
        """S of all features of all layers."""
        return self.all_layers.similarity()

    def similarity(self, one: str, other: str) -> pd.DataFrame:
        """Compute S between two layers, or within one.

        Parameters
        ----------
        one, other : str
            Layers of rows and of columns.

        Returns
        -------
        pandas.DataFrame
            Features of `one` x features of `other`, in [-1, 1]; NaN where undefined. Exchanged layers give the
            transpose.
        """
        if len(self.all_layers.names) < blockwise.LARGE:
            source, S = self.all_layers, self._kept
        else:  # in the order of the run, so that both directions of a pair agree exactly
            source = PhotographLayers.read(self._data, [la for la in self._layers if la in (one, other)])
            S = source.similarity()
        rows, columns = (source.groups[source.layers.index(layer)] for layer in (one, other))
        return to_frame(S[rows, columns], pd.Index(source.names[rows]), pd.Index(source.names[columns]))

    def _read_pair(self, pair: Pair) -> CrossLayerMap:
        """Make the map of one ordered pair, without responses."""
        S = self.similarity(*pair)
        defined = S.columns[S.notna().any(axis=0)]
        return CrossLayerMap(
            *pair,
            activations=pd.DataFrame(np.empty((0, len(S.columns))), columns=S.columns),
            null=pd.Series(np.nan, index=S.columns),
            measures={"profile": S},
            partners=cross_layer.partners(S, tables.NEAREST),
            first=pd.DataFrame(columns=S.index[S.notna().any(axis=1)], dtype=np.float64),
            second=pd.DataFrame(columns=defined, dtype=np.float64),
        )


def write_photographs(
    run: Run, maps: LayerMaps, crossings: PhotographCrossings, prefix: str, watcher: Watcher
) -> list[dict[str, Any]]:
    """Write S over photographs of every pair of layers, and the table of layers.

    Parameters
    ----------
    run : Run
        Run folder, held by this process.
    maps : LayerMaps
        Maps of the run.
    crossings : PhotographCrossings
        S between the layers; nothing is written without pairs.
    prefix : str
        Begins the names of the files: "photographs_", or "" where photographs are the only stimuli.
    watcher : Watcher
        Receives the progress.

    Returns
    -------
    list of dict
        Plain JSON values, one entry for each pair, see `featmap.stats.cross_layer.summarise_crossings`.
    """
    if not crossings:
        return []
    found, name = crossings.all_layers, "photographs over all layers"
    overview = found.overview(1, lambda *at: watcher.stage(name, *at))
    table = overview_table(found.layers, found.groups, overview).set_index(["layer", "other"])
    table = table.loc[list(crossings)].reset_index()
    orders = {la: result.order_features(one.photographs) for la, one in maps.maps.items() if one.photographs}
    folders, entries = pair_folders(list(crossings)), []
    for done, (pair, crossing) in enumerate(crossings.items()):
        watcher.stage("cross-layer tables and figures of photographs", done, len(crossings))
        folder, S = folders[pair] + prefix, crossing.measures["profile"]
        rows = maps.maps[pair[0]].shown
        columns = maps.maps[pair[1]].shown if pair[1] in maps.maps else list(S.columns)
        output.write_frame(run, f"{folder}profile", S.loc[rows, columns], "feature")
        partners = crossing.partners[crossing.partners["feature"].isin(rows)].set_index("feature")
        output.write_frame(run, f"{folder}partners", partners, "feature")
        live, _, clusters = orders[pair[0]]
        if live:
            order = (
                _mapped_order(orders[pair[1]], columns)
                if pair[1] in orders
                else (_probed_order(crossings.similarity(pair[1], pair[1]), columns), None)
            )
            unmarked = [pd.DataFrame()] * 2
            draw_pair(run, folder, crossing, "profile", (live, clusters), order, unmarked, overview.images)
        entries += cross_layer.summarise_crossings([crossing], table.iloc[[done]], "profile")
    path = PHOTOGRAPH_LAYER_TABLE if prefix else LAYER_TABLE
    output.write_frame(run, path, table.set_index("layer"), "layer")
    if len(maps.maps) > 1:
        draw_layers(run, list(maps.maps), table, path)
    watcher.stage("cross-layer tables and figures of photographs", len(crossings), len(crossings))
    return entries
