"""Map a whole network: each layer by itself, and the features of all layers compared block by block.

A run of several layers with at least `featmap.stats.blockwise.LARGE` features in total writes no tables and figures of
pairs of layers. It writes instead

- `cross/neighbours` and `cross/graph.graphml`: the most similar features of each feature, in any layer;
- `cross/partners`: the most similar feature of each feature in each other layer;
- `cross/layers`: the table of layers;
- with photographs, the same from S over photographs, in files whose names begin with `photographs_`.

Only one layer's map is held in memory at a time.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from featmap.files import hash_file
from featmap.mapping import analysis, cross_tables, flags, layer_arrays, photograph_map, result, tables, writing
from featmap.mapping.layer_arrays import ComparedFeatures, PhotographLayers
from featmap.mapping.result import LayerMaps, LazyMapping, Pair, SimilarityMap
from featmap.mapping.view import PHOTOGRAPH_RESPONSES, PHOTOGRAPHS, View
from featmap.runs import folder_layout, lifecycle, output, store
from featmap.runs.job import Job
from featmap.runs.progress import Watcher
from featmap.runs.store import Run
from featmap.stats import blockwise, cross_layer, measures
from featmap.stats.blockwise import SimilarityOverview
from featmap.stats.cross_layer import CrossLayerMap

NEIGHBOURS, PARTNERS, GRAPH = f"{tables.CROSS}/neighbours", f"{tables.CROSS}/partners", f"{tables.CROSS}/graph.graphml"
PHOTOGRAPH_FILES = tuple(f"{tables.CROSS}/{PHOTOGRAPHS}_{name}" for name in ("neighbours", "partners", "graph.graphml"))
MAX_DRAWN_LAYERS = 40
"""Largest number of layers for which the layer grid is drawn."""
STRONGEST = 5
"""Number of pairs of layers that the summary names."""


def is_large(job: Job) -> bool:
    """Check whether the layers of a job are compared block by block.

    Parameters
    ----------
    job : Job
        Job of a similarity run.

    Returns
    -------
    bool
        True from `featmap.stats.blockwise.LARGE` features of several layers on.
    """
    return blockwise.is_large([len(job.features_of(layer)) for layer in job.layers])


@dataclass(frozen=True, eq=False)
class LiveFeatures:
    """The live features of a run and their responses to each other's images.

    Parameters
    ----------
    run : Run
        Run folder.
    layers : list of str
        The L mapped layers.
    names : list of str
        The F live features, in the order of the layers.
    starts : list of str
        How each feature's descent started, "gradient" or "rescued".
    rows : numpy.ndarray
        Position of each feature's image among the images of the run, F integers.
    columns : numpy.ndarray
        Position of each feature among the responses of the run, F integers.
    groups : list of slice
        Range of each layer within `names`.
    """

    run: Run
    layers: list[str]
    names: list[str]
    starts: list[str | None]
    rows: np.ndarray
    columns: np.ndarray
    groups: list[slice]

    @property
    def compared(self) -> ComparedFeatures:
        """The features, for tables and the graph."""
        return ComparedFeatures(self.layers, self.names, self.groups, self.starts, self.run.manifest.reliability)

    def response_blocks(self) -> Iterator[np.ndarray]:
        """Yield the responses of the features to their images, block by block.

        Yields
        ------
        numpy.ndarray
            Images x F in float64, averaged over seeds; NaN where not finite.
        """
        array = self.run.arrays["A"]
        live = np.zeros(array.shape[1], dtype=bool)
        live[self.rows] = True
        for first, last, block in _read_blocks(array):
            part = block[live[first:last]][:, self.columns]
            part[~np.isfinite(part)] = np.nan
            yield part


def _read_blocks(array: Any) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield A in blocks of whole chunks: first row, last row, rows x all columns in float64, averaged over seeds."""
    seeds, count, width = array.shape
    step = blockwise.block_rows(width, array.chunks[1])
    for first in range(0, count, step):
        last = min(first + step, count)
        # one seed after another: the memory holds one block in float64, however many seeds there are
        block = np.asarray(array[0, first:last], dtype=np.float64)
        for seed in range(1, seeds):
            block += array[seed, first:last]
        yield first, last, block / seeds


def live_features(job: Job, run: Run) -> LiveFeatures:
    """Find the live features of a run.

    Parameters
    ----------
    job : Job
        Job of the run.
    run : Run
        Run folder, in which all work units are stored.

    Returns
    -------
    LiveFeatures
        Features that are live with every seed.
    """
    status = layer_arrays.worst_status(np.asarray(run.arrays["status"][...]).astype(int))
    row = {label: k for k, label in enumerate(job.labels)}
    column = {label: k for k, label in enumerate(job.columns)}
    names, ends = [], [0]
    for layer in job.layers:
        names += [n for n in job.features_of(layer) if status[row[n]] in folder_layout.LIVE_CODES]
        ends.append(len(names))
    rows, columns = (np.array([positions[n] for n in names], dtype=np.intp) for positions in (row, column))
    groups = [slice(a, b) for a, b in pairwise(ends)]
    return LiveFeatures(run, job.layers, names, folder_layout.starts(status[rows]), rows, columns, groups)


def carry_out(
    job: Job, run: Run, view: View, new_units: int, watcher: Watcher, also: Callable[[SimilarityMap], None]
) -> LayerMaps:
    """Write the missing tables and figures of a large run, and open its maps.

    Parameters
    ----------
    job : Job
        Job of the run.
    run : Run
        Run folder, held by this process, in which all work units are stored.
    view : View
        Features, measure and neighbours that tables and figures show.
    new_units : int
        Number of work units that were computed since the manifest was read. If there are any, everything is written
        again; if there are none, finished layers of an interrupted run stay as they are.
    watcher : Watcher
        Receives the progress.
    also : callable
        Called with the map of each layer after its files are written, to write more.

    Returns
    -------
    LayerMaps
        Maps that are read from the folder when they are requested.
    """
    record = view.record(run.manifest.reliability)
    if new_units or run.manifest.view != record or not run.is_complete():
        begun = time.perf_counter()
        if new_units or run.manifest.mapping != record:  # what is written belongs to other images or another view
            run.manifest.files, run.manifest.mapped, run.manifest.mapping = {}, {}, record
            run.save()
        _map_layers(job, run, view, watcher, also)
        live = live_features(job, run)
        overview = blockwise.compare(
            live.response_blocks,
            live.groups,
            view.neighbours,
            progress=lambda done, total: watcher.stage("profiles over all layers", done, total),
        )
        table = cross_tables.overview_table(live.layers, live.groups, overview)
        _write(run, live.compared, overview, table)
        timings = run.manifest.timings
        timings["tables_and_figures"] = round(timings.get("tables_and_figures", 0.0) + time.perf_counter() - begun, 3)
        network = summarise(live.compared, overview, table)
        summary = {"layers": run.manifest.mapped, "crossings": [], "network": network}
        data = store.open_arrays(run.folder)
        if PHOTOGRAPH_RESPONSES in data:
            found = PhotographLayers.read(data, job.layers)
            summary["photograph_network"] = write_photographs(run, found, view, f"{PHOTOGRAPHS}_", watcher)
        run.manifest.view, run.manifest.summary = record, summary
        lifecycle.complete(job, run)
    return open_maps(job, run)


def _map_layers(job: Job, run: Run, view: View, watcher: Watcher, also: Callable[[SimilarityMap], None]) -> None:
    """Write the maps of the layers that are not written yet: those without a summary in the manifest."""
    written: dict[str, Any] = run.manifest.mapped
    folders = tables.layer_folders(job.layers)
    for layer in job.layers:
        if layer in written and _is_intact(run, folders[layer]):
            continue
        watcher.note(f"{layer}: {len(job.features_of(layer))} features")
        data = store.open_arrays(run.folder)
        layer_map = analysis.map_layer(job, layer, data, view, watcher, run.folder)
        flags.add_reliability(layer_map.features, run.manifest.reliability)
        if PHOTOGRAPH_RESPONSES in data:
            photograph_map.add(layer_map, job, view, watcher)
        writing.write(run, layer_map, view, watcher)
        also(layer_map)
        written[layer] = layer_map.summary
        run.save()  # an interrupted run continues after this layer


def _is_intact(run: Run, folder: str) -> bool:
    """Check whether all files of a layer's folder have the checksums of the manifest."""
    files = {name: checksum for name, checksum in run.manifest.files.items() if name.startswith(folder)}
    return all((run.folder / name).is_file() and hash_file(run.folder / name) == sha for name, sha in files.items())


def write_photographs(run: Run, found: PhotographLayers, view: View, prefix: str, watcher: Watcher) -> dict[str, Any]:
    """Compare features of all layers over photographs; write tables and graph.

    Parameters
    ----------
    run : Run
        Run folder, held by this process.
    found : PhotographLayers
        Responses of the mapped layers.
    view : View
        Neighbours that are kept of each feature.
    prefix : str
        Begins the names of the files: "photographs_", or "" where photographs are the only stimuli.
    watcher : Watcher
        Receives the progress.

    Returns
    -------
    dict
        See `summarise`.
    """
    overview = found.overview(view.neighbours, lambda *at: watcher.stage("photographs over all layers", *at))
    table = cross_tables.overview_table(found.layers, found.groups, overview)
    compared = ComparedFeatures(found.layers, found.names, found.groups)
    _write(run, compared, overview, table, prefix)
    return summarise(compared, overview, table)


def _write(
    run: Run, features: ComparedFeatures, overview: SimilarityOverview, table: pd.DataFrame, prefix: str = ""
) -> None:
    """Write the table of layers, the neighbours, the partners and the graph."""
    path = result.PHOTOGRAPH_LAYER_TABLE if prefix else result.LAYER_TABLE
    neighbours, partners, graph = PHOTOGRAPH_FILES if prefix else (NEIGHBOURS, PARTNERS, GRAPH)
    output.write_frame(run, path, table.set_index("layer"), "layer")
    if len(features.layers) <= MAX_DRAWN_LAYERS:
        cross_tables.draw_layers(run, features.layers, table, path)
    run.write(f"{neighbours}.parquet", partial(_write_parquet, parts=partial(_neighbours, features, overview)))
    run.write(f"{partners}.parquet", partial(_write_parquet, parts=partial(_partners, features, overview)))
    run.write(graph, partial(_write_graph, features=features, overview=overview))


def _write_parquet(path: Path, parts: Any) -> None:
    """Write a table from an iterator of parts, one row group each."""
    writer = None
    try:
        for frame in parts():
            part = pa.Table.from_pandas(frame, preserve_index=False)
            writer = writer or pq.ParquetWriter(path, part.schema)
            writer.write_table(part)
    finally:
        if writer is not None:
            writer.close()


def _neighbours(live: ComparedFeatures, overview: SimilarityOverview) -> Iterator[pd.DataFrame]:
    """Yield the nearest features in any layer, layer by layer: feature, rank, neighbour, similarity."""
    names = np.array(live.names, dtype=object)
    for group in live.groups:
        at, rank = np.nonzero(overview.nearest[group] >= 0)
        near, S = overview.nearest[group][at, rank], overview.similarity[group][at, rank]
        columns = {"feature": names[group][at], "rank": rank + 1, "neighbour": names[near], "similarity": S}
        yield _marked(live, pd.DataFrame(columns).astype({"feature": "string", "neighbour": "string"}), "neighbour")


def _partners(live: ComparedFeatures, overview: SimilarityOverview) -> Iterator[pd.DataFrame]:
    """Yield the most similar feature in each other layer, layer by layer: feature, layer, partner, similarity."""
    names, layers = np.array(live.names, dtype=object), np.array(live.layers, dtype=object)
    for group in live.groups:
        at, other = np.nonzero(overview.partner[group] >= 0)
        columns = {"feature": names[group][at], "layer": layers[other]}
        columns |= {"partner": names[overview.partner[group][at, other]], "similarity": overview.best[group][at, other]}
        frame = pd.DataFrame(columns).astype(dict.fromkeys(("feature", "layer", "partner"), "string"))
        yield _marked(live, frame, "partner")


def _marked(live: ComparedFeatures, frame: pd.DataFrame, other: str) -> pd.DataFrame:
    """Add the columns `reliable` and OTHER_reliable to a table in place, after a validation; return it."""
    if live.reliability:
        frame["reliable"] = flags.reliable_column(live.reliability, frame["feature"])
        frame[f"{other}_reliable"] = flags.reliable_column(live.reliability, frame[other])
    return frame


def graph_edges(overview: SimilarityOverview) -> Iterator[tuple[int, int, float]]:
    """Yield the edges of the neighbour graph, each once.

    Two features are joined if either is among the k nearest of the other.

    Parameters
    ----------
    overview : SimilarityOverview
        Comparison of all features.

    Yields
    ------
    (int, int, float)
        Positions of the two features, the lower one first, and their similarity S.
    """
    for i, row in enumerate(overview.nearest):
        for j, S in zip(row[row >= 0], overview.similarity[i], strict=False):
            # an edge between mutual neighbours is met twice and yielded from its lower end
            if i < j or i not in overview.nearest[j]:
                yield min(i, int(j)), max(i, int(j)), float(S)


def _write_graph(path: Path, features: ComparedFeatures, overview: SimilarityOverview) -> None:
    """Write the neighbour graph as GraphML, line by line: networkx would hold all of it in memory."""
    reliability, starts, names = features.reliability, features.starts, features.names
    unreliable = set(flags.unreliable_features(reliability))
    keys = [("layer", "node", "string"), ("status", "node", "string")]
    keys += [("start", "node", "string")] if starts else []
    keys += [("weight", "edge", "double")]
    keys += [("reliable", "node", "boolean")] if reliability else []
    with path.open("w", encoding="utf-8", newline="\n") as out:
        out.write('<?xml version="1.0" encoding="utf-8"?>\n<graphml xmlns="http://graphml.graphdrawing.org/xmlns">\n')
        for name, element, kind in keys:
            out.write(f'<key id="{name}" for="{element}" attr.name="{name}" attr.type="{kind}"/>\n')
        out.write('<graph edgedefault="undirected">\n')
        for layer, group in zip(features.layers, features.groups, strict=True):
            for k in range(group.start, group.stop):
                if starts is None and not overview.defined[k]:
                    continue  # it responds to all photographs alike
                data = f'<data key="layer">{escape(layer)}</data><data key="status">live</data>'
                data += f'<data key="start">{starts[k]}</data>' if starts else ""
                if names[k] in reliability:
                    data += f'<data key="reliable">{str(names[k] not in unreliable).lower()}</data>'
                out.write(f"<node id={quoteattr(names[k])}>{data}</node>\n")
        for i, j, S in graph_edges(overview):
            ends = f"source={quoteattr(names[i])} target={quoteattr(names[j])}"
            out.write(f'<edge {ends}><data key="weight">{S!r}</data></edge>\n')
        out.write("</graph>\n</graphml>\n")


def summarise(live: ComparedFeatures, overview: SimilarityOverview, table: pd.DataFrame) -> dict[str, Any]:
    """Summarise the comparison of all layers.

    Parameters
    ----------
    live : ComparedFeatures
        The features: those that are live, or all over photographs.
    overview : SimilarityOverview
        Comparison of all features.
    table : pandas.DataFrame
        Table of layers, see `featmap.mapping.cross_tables.overview_table`.

    Returns
    -------
    dict
        Plain JSON values: numbers of layers, features, profiles, images and edges, and the pairs of layers whose best
        similarity is farthest above chance.
    """
    layer = live.layer_numbers
    ends = np.array([(i, j) for i, j, _ in graph_edges(overview)], dtype=int).reshape(-1, 2)
    above_chance = table.assign(excess=table["best"] - table["floor"]).dropna(subset=["excess"])
    strongest = above_chance.sort_values("excess", ascending=False, kind="stable").head(STRONGEST)
    return {
        "layers": len(live.layers),
        "live": len(live.names),
        "profiles": int(overview.defined.sum()),
        "images": overview.images,
        "neighbours": int(overview.nearest.shape[1]),
        "edges": len(ends),
        "edges_between_layers": int((layer[ends[:, 0]] != layer[ends[:, 1]]).sum()),
        "closest_layers": [[r.layer, r.other, float(r.best), float(r.floor)] for r in strongest.itertuples()],
    }


def _summary_lines(summary: dict[str, Any]) -> list[str]:
    """Describe the findings in words: one line for each layer, then those over all layers."""
    lines = [f"{layer}: {tables.summary_lines(one)[0]}" for layer, one in summary["layers"].items()]
    lines += tables.network_lines(summary["network"], "images")
    return lines + tables.all_crossing_lines(summary)


def open_maps(job: Job, run: Run) -> LayerMaps:
    """Open the maps of a large run.

    Parameters
    ----------
    job : Job
        Job of the run.
    run : Run
        Folder of a complete run.

    Returns
    -------
    LayerMaps
        The maps of layers and of pairs are read, or computed from A, each time that one is requested.
    """
    pairs = [(one, other) for one in job.layers for other in job.layers if one != other]
    data = store.open_arrays(run.folder)
    table = result.read_layer_table(run.folder)
    assert table is not None
    summary = run.manifest.summary
    return LayerMaps(
        run.folder,
        LazyMapping(job.layers, lambda layer: result.read_maps(run.folder, [layer])[layer]),
        LazyMapping(pairs, lambda pair: build_crossing(job, run, pair)),
        table,
        summary,
        _summary_lines(summary),
        cross_tables.PhotographCrossings(data, pairs) if PHOTOGRAPH_RESPONSES in data else {},
    )


def build_crossing(job: Job, run: Run, pair: Pair) -> CrossLayerMap:
    """Compute the cross-layer map of one pair from A.

    Parameters
    ----------
    job : Job
        Job of the run.
    run : Run
        Run folder.
    pair : (str, str)
        Maximised layer and responding layer.

    Returns
    -------
    CrossLayerMap
        Map of the ordered pair: all live images are its stimuli.
    """
    live, features = set(live_features(job, run).names), [job.features_of(layer) for layer in pair]
    column = {label: k for k, label in enumerate(job.columns)}
    columns = [name for names in features for name in names]
    positions = [column[name] for name in columns]
    A = np.concatenate([block[:, positions] for _, _, block in _read_blocks(run.arrays["A"])])
    null = np.asarray(run.arrays["null"][...], dtype=np.float64).mean(0)[positions]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", measures.FewStimuliWarning)  # the run warned already
        return cross_layer.build_map(
            pd.DataFrame(A, index=job.labels, columns=columns),
            pd.Series(null, index=columns),
            pair,
            features[0],
            features[1],
            [name for name in job.labels if name in live],
            tables.NEAREST,
        )
