"""Collect the values of a layer's page from a finished run; only activation maps are computed anew."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib import colormaps
from matplotlib.colors import to_hex

from featmap.errors import FeatmapError
from featmap.mapping import cross_tables, flags, result, tables
from featmap.mapping.layer_arrays import worst_status
from featmap.mapping.result import SimilarityMap
from featmap.mapping.view import PHOTOGRAPHS, recorded_formula
from featmap.plotting import display, style
from featmap.report import examples, map_data
from featmap.report.encode import ThumbnailSheet, choose_encoding, encode_image
from featmap.report.examples import ExamplePhotographs
from featmap.report.map_data import collect_structure, colour_limit, list_columns, pack, to_list
from featmap.report.page import LayerPage, page_budget
from featmap.report.reproduction import Reproduction
from featmap.runs import folder_layout, store
from featmap.runs.progress import Watcher
from featmap.runs.store import Run, open_arrays
from featmap.stats import frames, measures

if TYPE_CHECKING:
    from featmap.optimize.responses import Probe

BATCH, PROBE_ROWS = 64, 16
"""Images that are read at once, and images in a batch of the network."""
MAX_STEPS, MAX_MAP_SIDE, STRONGEST = 160, 28, 5
"""Most points of a descent curve, rows or columns of an activation map, and features listed for another layer."""
LIBRARY_BYTES = 1_500_000
"""Size of the plotting library in a page."""
EARLIER_FORMULA = (
    "S, neighbours and clusters of this run are those of an earlier version, which took no square roots of responses; "
    "the run's own command computes them anew"
)
"""Note on the page of a run whose S has an earlier formula."""


def build_map_page(
    layer_map: SimilarityMap,
    run: Run,
    probe: Probe | str,
    photographs: ExamplePhotographs | None,
    links: dict[str, str],
    watcher: Watcher,
) -> LayerPage:
    """Collect the values of the page of a layer's map.

    Parameters
    ----------
    layer_map : SimilarityMap
        Map of the layer, see `featmap.mapping.result.read_maps`.
    run : Run
        Run folder.
    probe : Probe or str
        Probe of the run's network, for the activation maps; or the reason why there is none.
    photographs : ExamplePhotographs or None
        Photographs to embed; None leaves them out.
    links : dict of str to str
        Relative links to the pages of other layers, by layer.
    watcher : Watcher
        Receives the progress.

    Returns
    -------
    LayerPage
        Live features come first, in the order of the dendrogram.
    """
    order, linkage, _ = result.order_features(layer_map)
    names = order + [f for f in layer_map.shown if f not in set(order)]
    table, all_live = layer_map.features.loc[names], list(layer_map.clusters.labels.index)
    A = frames.to_floats(layer_map.activations.loc[names, names], "A")
    S = frames.symmetric_values(layer_map.measures["profile"].loc[order, order])
    scales = measures.measure_scales(layer_map.activations, layer_map.null, all_live).loc[names]
    layer = names[0].rpartition(":")[0]
    # A of a single seed is float32 already; only a mean over seeds needs twice the bytes
    exact = np.array_equal(A, A.astype(np.float32).astype(np.float64), equal_nan=True)
    page = LayerPage(layer, {}, {"A": A.astype(np.float32 if exact else np.float64)})
    page.blobs["S"] = pack(S)
    if "linear_profile" in layer_map.measures:
        page.blobs["linear"] = pack(frames.symmetric_values(layer_map.measures["linear_profile"].loc[order, order]))
    page.data = {
        "layer": layer,
        "live": len(order),
        "mapped": len(layer_map.clusters.graph),
        "features": _features(table),
        "scales": {str(name): to_list(column) for name, column in scales.items()},
        "reach": _colour_limits(layer_map, order),
        "labels": {"raw": "average activation A"} | {k: v for k, v in tables.LABELS.items() if k != "raw"},
        "measure": run.manifest.view["measure"],
        **collect_structure(layer_map, order, linkage, S),
        "cross": _crossings(run, names, links),
        "notes": _notes(layer_map, run),
        "unreliable": flags.unreliable_features(run.manifest.reliability),
    }
    if layer_map.photographs is not None:
        map_data.add_photograph_map(page, layer_map, run)
    examples.add_examples(page, run, layer_map.prefix, photographs, watcher)
    _add_rows(page, names, run, probe, watcher)
    return page


def build_photograph_page(
    layer_map: SimilarityMap, run: Run, photographs: ExamplePhotographs | None, watcher: Watcher
) -> LayerPage:
    """Collect the values of the page of a map whose only stimuli are photographs.

    Parameters
    ----------
    layer_map : SimilarityMap
        Map of the layer, see `featmap.mapping.result.map_of_photographs`.
    run : Run
        Run folder.
    photographs : ExamplePhotographs or None
        Photographs to embed; None leaves them out.
    watcher : Watcher
        Receives the progress.

    Returns
    -------
    LayerPage
        Features that have a similarity come first, in the order of the dendrogram. There is neither A nor an image;
        the thumbnails are parts of the best photographs, if these are embedded.
    """
    order, linkage, _ = result.order_features(layer_map)
    names = order + [f for f in layer_map.shown if f not in set(order)]
    S = frames.symmetric_values(layer_map.measures["profile"].loc[order, order])
    layer = names[0].rpartition(":")[0]
    page = LayerPage(layer, {}, {"S": pack(S)})
    page.data = {
        "stimuli": PHOTOGRAPHS,
        "layer": layer,
        "live": len(order),
        "mapped": len(layer_map.clusters.graph),
        "features": _features(layer_map.features.loc[names]),
        "reach": {"profile": colour_limit(S)},
        "labels": {"profile": tables.LABELS["profile"]},
        "measure": "profile",
        **collect_structure(layer_map, order, linkage, S),
        "cross": [],
        "notes": _notes(layer_map, run),
        "network": str(run.manifest.network),
        "thumbnails": None,
        **_colours(),
    }
    sheet = None if photographs is None else ThumbnailSheet(len(names))
    examples.add_examples(page, run, layer_map.prefix, photographs, watcher, sheet)
    if sheet is not None:
        page.data["thumbnails"] = sheet.as_json()
    return page


def build_image_page(run: Run, probe: Probe | str, watcher: Watcher) -> LayerPage:
    """Collect the values of the page of a maximise run, which has no map.

    Parameters
    ----------
    run : Run
        Run folder.
    probe : Probe or str
        Probe of the run's network, for the activation maps; or the reason why there is none.
    watcher : Watcher
        Receives the progress.

    Returns
    -------
    LayerPage
        Units are in the order of the run.
    """
    data = open_arrays(run.folder)
    names = [str(name) for name in data["image"].values]
    status = worst_status(data["status"].values.astype(int))
    columns = {
        "status": folder_layout.status_names(status),
        "start": folder_layout.starts(status),
        "activation": frames.finite_column(data["activation"].values.mean(0)),
        "null_activation": frames.finite_column(data["null_activation"].values.mean(0)),
    }
    page = LayerPage(f"{len(names)} units", {})
    page.data = {
        "layer": "",
        "live": 0,
        "features": _features(pd.DataFrame(columns, index=pd.Index(names))),
        "clusters": {"allowed": False, "sentence": "", "list": []},
        "cross": [],
        "notes": [],
    }
    _add_rows(page, names, run, probe, watcher)
    return page


def _features(table: pd.DataFrame) -> dict[str, Any]:
    """Return the names of features, and the columns of their table that the page shows."""
    return {"name": [str(name) for name in table.index], **list_columns(table)}


def _colour_limits(layer_map: SimilarityMap, order: list[str]) -> dict[str, float]:
    """Return the absolute value at the ends of each measure's colour scale, as in the run's heatmaps."""
    limits = {}
    for name in ("raw", *layer_map.measures):
        frame = layer_map.activations if name == "raw" else layer_map.measures[name]
        limits[name] = colour_limit(frames.to_floats(frame.loc[order, order], name))
    return limits


def _crossings(run: Run, names: list[str], links: dict[str, str]) -> list[dict[str, Any]]:
    """Return the strongest responses of each other layer to each feature's image, and the most similar features."""
    if "network" in run.manifest.summary:  # a large run has no tables of pairs
        return []
    layers = run.identity.get("layers") or [run.identity["layer"]]
    pairs = [(one, other) for one in layers for other in run.identity["responses"] if other != one]
    layer, entries = names[0].rpartition(":")[0], []
    for (one, other), folder in cross_tables.pair_folders(pairs).items():
        if one != layer:
            continue
        Z, A = (store.read_frame(run.folder, f"{folder}{name}") for name in ("selective", "activations"))
        z, a = (frames.to_floats(frame.loc[names], "cross-layer responses") for frame in (Z, A))
        columns = [str(column) for column in Z.columns]
        strongest = []
        for row, best in enumerate(np.argsort(np.where(np.isfinite(z), -z, np.inf), axis=1, kind="stable")):
            top = [k for k in best[:STRONGEST] if np.isfinite(z[row, k])]
            strongest.append([[columns[k], float(z[row, k]), _number(a[row, k])] for k in top])
        partners = store.read_frame(run.folder, f"{folder}partners")
        similar: dict[str, list[list[Any]]] = {name: [] for name in names}
        for name, partner, s in zip(partners.index, partners["partner"], partners["similarity"], strict=True):
            similar[str(name)].append([str(partner), float(s)])
        entry = {"layer": other, "href": links.get(other), "strongest": strongest}
        entries.append(entry | {"similar": [similar[name] for name in names]})
    return entries


def _number(value: float) -> float | None:
    """Return a value for JSON, with None for an undefined one."""
    return float(value) if np.isfinite(value) else None


def _notes(layer_map: SimilarityMap, run: Run) -> list[str]:
    """Return the findings in words, and what a reader has to know of an earlier version's S."""
    earlier = recorded_formula(run.manifest.view) != measures.FORMULA
    shown, rows = len(layer_map.shown), len(layer_map.features)
    part = (
        f"this page shows {shown:,} of {rows:,} features, evenly spaced by number; tables and arrays have all of them"
    )
    return layer_map.lines() + [EARLIER_FORMULA] * earlier + [part] * (shown < rows)


def _colours() -> dict[str, Any]:
    """Return the colours of heatmaps, of undefined values and of clusters."""
    return {
        "palette": [to_hex(shade) for shade in colormaps[style.COLOUR_MAP](np.arange(256))],
        "gray": style.GRAY,
        "colours": [to_hex(colour) for colour in style.cluster_colours(30)],
    }


def _add_rows(page: LayerPage, names: list[str], run: Run, probe: Probe | str, watcher: Watcher) -> None:
    """Add each feature's image, thumbnail, descent curve, activation map and reproduction."""
    data = open_arrays(run.folder).isel(seed=0)
    curve = data["curve"].sel(image=names).values.astype(np.float32)
    steps = np.unique(np.linspace(0, curve.shape[1] - 1, min(MAX_STEPS, curve.shape[1])).round().astype(int))
    page.blobs["curve"] = curve[:, steps]
    reproduction = Reproduction(run.manifest)
    page.data |= {
        "network": str(run.manifest.network),
        "steps": (steps + 1).tolist(),
        "seed": reproduction.seed,
        "seeds": len(run.identity["seeds"]),
        **_colours(),
        "command": [reproduction.command(name) for name in names],
        "python": [reproduction.python(name) for name in names],
        "reproduction_notes": reproduction.notes,
    }
    _add_images(page, names, data, probe, watcher)


def _add_images(page: LayerPage, names: list[str], data: xr.Dataset, probe: Probe | str, watcher: Watcher) -> None:
    """Add images and thumbnails, and activation maps or the reason why there are none."""
    at = {name: k for k, name in enumerate(names)}
    # in the order of the stored arrays, so that no chunk is read twice
    positions = [k for k, name in enumerate(map(str, data["image"].values)) if name in at]
    sheet, count = ThumbnailSheet(len(names)), len(names)
    sample = data["images"].isel(image=positions[:: -(-count // 16)]).values
    encoding = choose_encoding(list(sample), count, page_budget(count) - _other_bytes(page, count, sheet))
    images, maps = [""] * count, [np.zeros((1, 1), dtype=np.float32)] * count
    largest: list[float | None] = [None] * count
    factors: list[list[float]] = [[1.0, 0.0]] * count
    reason = probe if isinstance(probe, str) else None
    for first, pixels in _batches(data, positions):
        labels = [str(name) for name in data["image"].values[positions[first : first + BATCH]]]
        for name, image in zip(labels, pixels, strict=True):
            images[at[name]] = encode_image(image, encoding)
            factors[at[name]] = [round(v, 5) for v in display.stretch_factors(image)]
            sheet.put(at[name], display.stretch(image))
        if reason is None and not isinstance(probe, str):
            try:
                for name, grid in zip(labels, compute_activation_maps(probe, pixels, labels), strict=True):
                    maps[at[name]] = grid
            except FeatmapError as error:
                reason = str(error)
        watcher.stage("atlas", min(first + BATCH, count), count)
    page.images = images
    page.data |= {
        "sides": [data.sizes["y"], data.sizes["x"]],
        "thumbnails": sheet.as_json(),
        "coding": str(encoding),
        "display": {"note": display.NOTE, "factors": factors},
        "maps": {"reason": reason},
    }
    if reason is None:
        quantised = []  # 8 bits a position, scaled by the largest value of each map; negative values become 0
        for k, grid in enumerate(maps):
            top = float(np.max(np.where(np.isfinite(grid), grid, 0.0), initial=0.0))
            largest[k] = float(f"{top:.6g}")
            quantised.append(np.rint(255 * np.clip(np.nan_to_num(grid) / (top or 1.0), 0, 1)).astype(np.uint8))
        page.data["maps"] |= {"shape": [list(q.shape) for q in quantised], "largest": largest}
        page.blobs["maps"] = np.concatenate([q.ravel() for q in quantised])


def _other_bytes(page: LayerPage, count: int, sheet: ThumbnailSheet) -> int:
    """Estimate the bytes of a page apart from the images in full size."""
    blobs = sum(-(-4 * blob.nbytes // 3) for blob in page.blobs.values()) + sum(map(len, page.photographs))
    return LIBRARY_BYTES + blobs + len(json.dumps(page.data)) + count * (sheet.side**2 // 2 + MAX_MAP_SIDE**2 * 4 // 3)


def _batches(data: xr.Dataset, positions: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the images at some positions in batches, with the number of the first one."""
    for first in range(0, len(positions), BATCH):
        yield first, data["images"].isel(image=positions[first : first + BATCH]).values


def compute_activation_maps(probe: Probe, images: np.ndarray, names: Sequence[str]) -> list[np.ndarray]:
    """Compute the activation map of each feature on its own image.

    Parameters
    ----------
    probe : Probe
        Probe of the network.
    images : numpy.ndarray
        N x C x H x W, values in [0, 1].
    names : sequence of str
        The N features, such as "inception4a:17".

    Returns
    -------
    list of numpy.ndarray
        h x w in float32, averaged down to at most `MAX_MAP_SIDE` rows and columns.

    Raises
    ------
    FeatmapError
        If a name is another unit than a feature.
    """
    import torch
    from torch.nn.functional import adaptive_avg_pool2d

    from featmap.network.unit import Unit

    units = [Unit.parse(name) for name in names if "+" not in name and "*" not in name]
    if len(units) < len(names) or any(unit.kind != "feature" for unit in units):
        raise FeatmapError("activation maps are drawn for runs of features only")
    layers, maps = list(dict.fromkeys(unit.layer for unit in units)), list[np.ndarray]()
    for out in probe.outputs(torch.from_numpy(np.ascontiguousarray(images)), layers):
        for k in range(len(next(iter(out.values())))):
            unit = units[len(maps)]
            grid = out[unit.layer][k, unit.channel]
            side = (min(MAX_MAP_SIDE, grid.shape[0]), min(MAX_MAP_SIDE, grid.shape[1]))
            maps.append(adaptive_avg_pool2d(grid[None], side)[0].cpu().numpy())
    return maps
