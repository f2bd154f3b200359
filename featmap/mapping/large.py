"""The map of a whole network: each layer by itself, and all features compared block by block.

From `featmap.stats.blockwise.LARGE` features in several layers on, a run writes this in place of tables and figures
of every pair
of layers: `cross/neighbours` and `cross/graph.graphml` (the nearest features of each, in any layer), `cross/partners`
(the most similar one in each other layer) and `cross/layers`. One layer is held in memory at a time.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
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
from featmap.mapping import analysis, cross_tables, flags, result, tables, writing
from featmap.mapping.result import LayerMaps, LazyMapping, Pair
from featmap.mapping.view import View
from featmap.runs import array_layout, lifecycle, output, store
from featmap.runs.array_layout import STATUSES
from featmap.runs.job import Job
from featmap.runs.progress import Watcher
from featmap.runs.store import Run
from featmap.stats import blockwise, cross_layer, measures
from featmap.stats.blockwise import SimilarityOverview
from featmap.stats.cross_layer import CrossLayerMap

NEIGHBOURS, PARTNERS, GRAPH = f"{tables.CROSS}/neighbours", f"{tables.CROSS}/partners", f"{tables.CROSS}/graph.graphml"
DRAWN_LAYERS = 40
STRONGEST = 5


def is_large(job: Job) -> bool:
    """Is this job's map made block by block?"""
    return blockwise.is_large([len(job.features_of(layer)) for layer in job.layers])


@dataclass(frozen=True, eq=False)
class Stimuli:
    """The live features of a run, in the order of their layers, and their responses to one another's images.

    `places` are theirs among the images of the run, `columns` among its responses; `groups` are each layer's of them.
    """

    run: Run
    layers: list[str]
    names: list[str]
    statuses: list[str]
    places: np.ndarray
    columns: np.ndarray
    groups: list[slice]

    def rows(self) -> Iterator[np.ndarray]:
        """Yield blocks of the responses, images x features in float64, means over seeds, NaN where not finite."""
        array = self.run.arrays["A"]
        live = np.zeros(array.shape[1], dtype=bool)
        live[self.places] = True
        for first, last, block in _blocks(array):
            part = block[live[first:last]][:, self.columns]
            part[~np.isfinite(part)] = np.nan
            yield part


def _blocks(array: Any) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield A as (first row, last row, rows x all columns in float64, averaged over seeds): whole chunks."""
    seeds, count, width = array.shape
    step = blockwise.block_rows(width, array.chunks[1])
    for first in range(0, count, step):
        last = min(first + step, count)
        block = np.asarray(array[0, first:last], dtype=np.float64)
        for seed in range(1, seeds):
            block += array[seed, first:last]
        yield first, last, block / seeds


def stimuli(job: Job, run: Run) -> Stimuli:
    """Return the live features of a run."""
    status = result.worst_status(np.asarray(run.arrays["status"][...]).astype(int))
    at = {label: k for k, label in enumerate(job.labels)}
    column = {label: k for k, label in enumerate(job.columns)}
    names, ends = [], [0]
    for layer in job.layers:
        names += [n for n in job.features_of(layer) if status[at[n]] in (array_layout.LIVE, array_layout.RESCUED)]
        ends.append(len(names))
    places, columns = (np.array([known[n] for n in names], dtype=np.intp) for known in (at, column))
    groups = [slice(a, b) for a, b in pairwise(ends)]
    return Stimuli(run, job.layers, names, [STATUSES[status[k]] for k in places], places, columns, groups)


def carry_out(job: Job, run: Run, view: View, made: int, watcher: Watcher) -> LayerMaps:
    """Write what is missing of a large run's tables and figures and return what it found.

    `made` counts the work units that were made since the manifest was read: with none, what it calls written stays.
    """
    record = view.record(run.manifest.reliability)
    if made or run.manifest.view != record or not run.is_complete():
        begun = time.perf_counter()
        if made or run.manifest.mapping != record:
            run.manifest.files, run.manifest.mapped, run.manifest.mapping = {}, {}, record
            run.save()
        _map_layers(job, run, view, watcher)
        live = stimuli(job, run)
        found = blockwise.compare(
            live.rows,
            live.groups,
            view.neighbours,
            progress=lambda done, total: watcher.stage("profiles over all layers", done, total),
        )
        table = layer_table(live, found)
        _write(run, live, found, table)
        timings = run.manifest.timings
        timings["tables_and_figures"] = round(timings.get("tables_and_figures", 0.0) + time.perf_counter() - begun, 3)
        summary = {"layers": run.manifest.mapped, "crossings": [], "network": summarise(live, found, table)}
        run.manifest.view, run.manifest.summary = record, summary
        lifecycle.complete(job, run)
    return opened(job, run)


def _map_layers(job: Job, run: Run, view: View, watcher: Watcher) -> None:
    """Write the map of each layer that has none yet; a layer's summary in the manifest says that it has."""
    done: dict[str, Any] = run.manifest.mapped
    places = tables.places(job.layers)
    for layer in job.layers:
        if layer in done and _lie_there(run, places[layer]):
            continue
        watcher.note(f"{layer}: {len(job.features_of(layer))} features")
        data = store.open_arrays(run.folder)
        found = analysis.map_layer(job, layer, data, view, watcher, run.folder)
        flags.enter(found.features, run.manifest.reliability)
        writing.write(run, found, view, watcher)
        done[layer] = found.summary
        run.save()


def _lie_there(run: Run, place: str) -> bool:
    """Are all files of a layer's folder as they were written?"""
    files = {name: known for name, known in run.manifest.files.items() if name.startswith(place)}
    return all((run.folder / name).is_file() and hash_file(run.folder / name) == known for name, known in files.items())


def layer_table(live: Stimuli, found: SimilarityOverview) -> pd.DataFrame:
    """Return one row an ordered pair of layers, with the columns of `featmap.stats.cross_layer.layer_table`.

    `floor` and `highest_floor` are those of `featmap.stats.blockwise.compare`.
    """
    rows = []
    for i, one in enumerate(live.layers):
        best, defined = found.best[live.groups[i]], int(found.defined[live.groups[i]].sum())
        for k, other in enumerate(live.layers):
            if i != k:
                known = best[:, k][np.isfinite(best[:, k])]
                floors = found.floors[:, i, k][np.isfinite(found.floors[:, i, k])]
                least = (floors.mean(), floors.max()) if len(floors) else (np.nan, np.nan)
                mean = known.mean() if len(known) else np.nan
                rows.append((one, other, defined, found.images, mean, *least, len(found.floors)))
    names = ["layer", "other", "features", "images", "best", "floor", "highest_floor", "draws"]
    table = pd.DataFrame(rows, columns=names)
    for name in ("best", "floor", "highest_floor"):
        table[name] = measures.finite_column(table[name].to_numpy(dtype=float))
    return table


def _write(run: Run, live: Stimuli, found: SimilarityOverview, table: pd.DataFrame) -> None:
    output.write_frame(run, result.LAYER_TABLE, table.set_index("layer"), "layer")
    if len(live.layers) <= DRAWN_LAYERS:
        cross_tables.draw_layers(run, live.layers, table)
    run.write(f"{NEIGHBOURS}.parquet", partial(_write_parquet, parts=partial(_neighbours, live, found)))
    run.write(f"{PARTNERS}.parquet", partial(_write_parquet, parts=partial(_partners, live, found)))
    run.write(GRAPH, partial(_write_graph, live=live, found=found))


def _write_parquet(path: Path, parts: Any) -> None:
    """Write a table that comes in parts, one row group each."""
    writer = None
    try:
        for frame in parts():
            part = pa.Table.from_pandas(frame, preserve_index=False)
            writer = writer or pq.ParquetWriter(path, part.schema)
            writer.write_table(part)
    finally:
        if writer is not None:
            writer.close()


def _neighbours(live: Stimuli, found: SimilarityOverview) -> Iterator[pd.DataFrame]:
    """Yield for each layer's features the nearest others in any layer: feature, rank, neighbour, similarity."""
    names = np.array(live.names, dtype=object)
    for group in live.groups:
        at, rank = np.nonzero(found.nearest[group] >= 0)
        near, S = found.nearest[group][at, rank], found.similarity[group][at, rank]
        columns = {"feature": names[group][at], "rank": rank + 1, "neighbour": names[near], "similarity": S}
        yield _marked(live, pd.DataFrame(columns).astype({"feature": "string", "neighbour": "string"}), "neighbour")


def _partners(live: Stimuli, found: SimilarityOverview) -> Iterator[pd.DataFrame]:
    """Yield for each layer's features the most similar one of each other layer: feature, layer, partner, similarity."""
    names, layers = np.array(live.names, dtype=object), np.array(live.layers, dtype=object)
    for group in live.groups:
        at, other = np.nonzero(found.partner[group] >= 0)
        columns = {"feature": names[group][at], "layer": layers[other]}
        columns |= {"partner": names[found.partner[group][at, other]], "similarity": found.best[group][at, other]}
        frame = pd.DataFrame(columns).astype(dict.fromkeys(("feature", "layer", "partner"), "string"))
        yield _marked(live, frame, "partner")


def _marked(live: Stimuli, frame: pd.DataFrame, other: str) -> pd.DataFrame:
    """Return a table of features and others with `reliable` and OTHER_reliable, if a validation found any."""
    known = live.run.manifest.reliability
    if known:
        frame["reliable"] = flags.reliable(known, frame["feature"])
        frame[f"{other}_reliable"] = flags.reliable(known, frame[other])
    return frame


def edges(found: SimilarityOverview) -> Iterator[tuple[int, int, float]]:
    """Yield the edges of the neighbour graph, each once: two features are joined if either is among the other's k."""
    for i, row in enumerate(found.nearest):
        for j, S in zip(row[row >= 0], found.similarity[i], strict=False):
            if i < j or i not in found.nearest[j]:
                yield min(i, int(j)), max(i, int(j)), float(S)


def _write_graph(path: Path, live: Stimuli, found: SimilarityOverview) -> None:
    """Write the neighbour graph as GraphML, line by line."""
    known = live.run.manifest.reliability
    below = set(flags.unreliable(known))
    keys = [("layer", "node", "string"), ("status", "node", "string"), ("weight", "edge", "double")]
    keys += [("reliable", "node", "boolean")] if known else []
    layer = np.repeat(np.array(live.layers, dtype=object), [g.stop - g.start for g in live.groups])
    with path.open("w", encoding="utf-8", newline="\n") as out:
        out.write('<?xml version="1.0" encoding="utf-8"?>\n<graphml xmlns="http://graphml.graphdrawing.org/xmlns">\n')
        for name, of, kind in keys:
            out.write(f'<key id="{name}" for="{of}" attr.name="{name}" attr.type="{kind}"/>\n')
        out.write('<graph edgedefault="undirected">\n')
        for name, where, status in zip(live.names, layer, live.statuses, strict=True):
            data = f'<data key="layer">{escape(where)}</data><data key="status">{status}</data>'
            data += f'<data key="reliable">{str(name not in below).lower()}</data>' if name in known else ""
            out.write(f"<node id={quoteattr(name)}>{data}</node>\n")
        for i, j, S in edges(found):
            ends = f"source={quoteattr(live.names[i])} target={quoteattr(live.names[j])}"
            out.write(f'<edge {ends}><data key="weight">{S!r}</data></edge>\n')
        out.write("</graph>\n</graphml>\n")


def summarise(live: Stimuli, found: SimilarityOverview, table: pd.DataFrame) -> dict[str, Any]:
    """Return what was found over all layers as plain JSON values."""
    layer = np.repeat(np.arange(len(live.groups)), [g.stop - g.start for g in live.groups])
    ends = np.array([(i, j) for i, j, _ in edges(found)], dtype=int).reshape(-1, 2)
    over = table.assign(excess=table["best"] - table["floor"]).dropna(subset=["excess"])
    strongest = over.sort_values("excess", ascending=False, kind="stable").head(STRONGEST)
    return {
        "layers": len(live.layers),
        "live": len(live.names),
        "profiles": int(found.defined.sum()),
        "images": found.images,
        "neighbours": int(found.nearest.shape[1]),
        "edges": len(ends),
        "edges_between_layers": int((layer[ends[:, 0]] != layer[ends[:, 1]]).sum()),
        "closest_layers": [[r.layer, r.other, float(r.best), float(r.floor)] for r in strongest.itertuples()],
    }


def _lines(found: dict[str, Any]) -> list[str]:
    """Return what was found in words: a line a layer, then that over all layers."""
    said = [f"{layer}: {tables.summary_lines(one)[0]}" for layer, one in found["layers"].items()]
    summary = found["network"]
    between = summary["edges_between_layers"] / summary["edges"] if summary["edges"] else 0.0
    said += [
        f"{summary['layers']} layers, {summary['live']:,} live features, {summary['profiles']:,} with a profile over "
        f"{summary['images']:,} images: {summary['edges']:,} edges to the {summary['neighbours']} nearest, "
        f"{100 * between:.0f} % of them between layers"
    ]
    for one, other, best, floor in summary["closest_layers"]:
        said.append(f"{one} to {other}: a feature's best partner has on average S {best:.3f} ({floor:.3f} by chance)")
    return said


def opened(job: Job, run: Run) -> LayerMaps:
    """Return what a large run found; the maps of layers and of pairs are read when they are asked for."""
    pairs = [(one, other) for one in job.layers for other in job.layers if one != other]
    table = result.read_layer_table(run.folder)
    assert table is not None
    summary = run.manifest.summary
    return LayerMaps(
        run.folder,
        LazyMapping(job.layers, lambda layer: result.read_maps(run.folder, [layer])[layer]),
        LazyMapping(pairs, lambda pair: crossing(job, run, pair)),
        table,
        summary,
        _lines(summary),
    )


def crossing(job: Job, run: Run, pair: Pair) -> CrossLayerMap:
    """Return the cross-layer map of one pair, from A: all images, two layers' columns."""
    live, both = set(stimuli(job, run).names), [job.features_of(layer) for layer in pair]
    at = {label: k for k, label in enumerate(job.columns)}
    columns = [name for names in both for name in names]
    places = [at[name] for name in columns]
    A = np.concatenate([block[:, places] for _, _, block in _blocks(run.arrays["A"])])
    null = np.asarray(run.arrays["null"][...], dtype=np.float64).mean(0)[places]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", measures.FewStimuliWarning)  # the run has said so
        return cross_layer.build_map(
            pd.DataFrame(A, index=job.labels, columns=columns),
            pd.Series(null, index=columns),
            pair,
            both[0],
            both[1],
            [name for name in job.labels if name in live],
            tables.NEAREST,
        )
