"""Write the examples of a layer's features into a run folder, as table, activation maps and sheets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from featmap.files import translate_os_errors
from featmap.image_shape import colour_note
from featmap.mapping import flags
from featmap.mapping.examples import Box, ExampleSource, LayerExamples, find_examples
from featmap.mapping.result import EXAMPLE_MAPS, EXAMPLES, SimilarityMap, order_features
from featmap.plotting import examples as sheets
from featmap.plotting import overlays, pages
from featmap.plotting.examples import PAGE_ROWS, PICTURE_ROWS, ExampleRow, ExampleSheet
from featmap.plotting.overlays import Example
from featmap.runs.output import format_number, save_figure, write_frame
from featmap.runs.progress import Watcher
from featmap.runs.store import Run, open_arrays
from featmap.stats.top_responses import BEST

RESPONSES = "photograph_A"
"""Array of the responses to photographs."""
TABLE, CROPS = EXAMPLES, "example-crops"
"""Table and sheets of photographs, and sheets of crops, in the folder of a layer."""


def write_examples(
    run: Run,
    source: ExampleSource | None,
    layer_map: SimilarityMap,
    earlier: Mapping[str, str],
    watcher: Watcher,
) -> None:
    """Find the examples of the features of a layer that are shown, and write them.

    Parameters
    ----------
    run : Run
        Run folder, held by this process.
    source : ExampleSource or None
        Photographs of the run; None where they are not at hand, or there are none: what the run has is kept.
    layer_map : SimilarityMap
        Map of the layer.
    earlier : mapping of str
        SHA-256 of the files that the run had before, by name.
    watcher : Watcher
        Receives the progress.
    """
    if source is not None:
        _find_and_write(run, source, layer_map, watcher)
        return
    own = {name: earlier[name] for name in _file_names(layer_map.prefix) if name in earlier}
    run.manifest.files |= own if run.are_intact(own) else {}


def _file_names(prefix: str) -> list[str]:
    """List the files of a layer's examples."""
    sheets_ = [f"{prefix}{name}.{suffix}" for name in (TABLE, CROPS) for suffix in ("png", "pdf")]
    return [*(f"{prefix}{TABLE}.{suffix}" for suffix in ("parquet", "csv")), prefix + EXAMPLE_MAPS, *sheets_]


def record_folder(run: Run, folder: Path) -> None:
    """Record where a run's photographs are, for pages that embed some of them.

    Parameters
    ----------
    run : Run
        Run folder, held by this process.
    folder : Path
        Folder or zip of the photographs.
    """
    path = str(folder.resolve())
    if run.manifest.photograph_folder != path:
        run.manifest.photograph_folder = path
        run.save()


def _find_and_write(run: Run, source: ExampleSource, layer_map: SimilarityMap, watcher: Watcher) -> None:
    """Find the examples of a layer in the stored responses, and write table, maps and sheets."""
    data, order = open_arrays(run.folder), order_features(layer_map)[0]
    order += [name for name in layer_map.shown if name not in set(order)]
    order, whole = order[:PAGE_ROWS], len(order)
    tiles = _Tiles(order)
    found = find_examples(source, data[RESPONSES].sel(response=layer_map.shown), watcher, tiles.draw)
    write_frame(run, layer_map.prefix + TABLE, found.table, "feature")
    run.write(layer_map.prefix + EXAMPLE_MAPS, partial(_write_maps, maps=found.maps))
    images = data["images"].isel(seed=0).sel(image=order).values if "images" in data else None
    marked = flags.marked_names(layer_map.features, order)
    rows = [
        ExampleRow(marked[k], _describe(layer_map.features, name), None if images is None else images[k], [], [])
        for k, name in enumerate(order)
    ]
    captions = {str(name): list(map(format_number, part["response"])) for name, part in found.table.groupby(level=0)}
    for name, (title, note) in _texts(source, found, order[0].rpartition(":")[0]).items():
        pictures = tiles.crops if name == CROPS else tiles.photographs
        if name == CROPS and not tiles.has_parts:
            continue
        sheet = ExampleSheet(title, note, marked, BEST, images is not None)
        drawn = []
        for name_, row in zip(order, rows, strict=True):
            own = [pictures[name_, k] for k in range(BEST) if (name_, k) in pictures]
            drawn.append(replace(row, tiles=own, captions=captions.get(name_, [])[: len(own)]))
        _save_sheets(run, layer_map.prefix + name, sheet, drawn, whole)


def _texts(source: ExampleSource, found: LayerExamples, layer: str) -> dict[str, tuple[str, str]]:
    """Write title and note of each sheet."""
    count, colours = len(source.photographs) - found.duplicates, colour_note(source.network.channels)
    doubles = f"; {found.duplicates:,} with the pixels of another one are left out" if found.duplicates else ""
    best = f"the {min(BEST, count)} of {count:,} photographs"
    return {
        TABLE: (
            f"{layer}: {best} that excite each feature most{colours}",
            f"{overlays.NOTE}; below a photograph: mean activation over the grid{doubles}",
        ),
        CROPS: (
            f"{layer}: where each feature is most active in {best} that excite it most{colours}",
            "crops: receptive field of the position of the largest activation, clipped at the border, magnified to one "
            f"size; {overlays.NOTE}{doubles}",
        ),
    }


def _describe(features: pd.DataFrame, name: str) -> str:
    """Describe the maximising image of a feature in a few words."""
    parts = [f"activation {format_number(features.activation[name])}"] if "activation" in features else []
    status = str(features.status[name]) if "status" in features else "live"
    return ", ".join([*parts, *([status] if status != "live" else [])])


class _Tiles:
    """The best photographs of some features as they are drawn on sheets: whole, and cropped to their boxes."""

    def __init__(self, names: Sequence[str]) -> None:
        self.photographs: dict[tuple[str, int], np.ndarray] = {}
        self.crops: dict[tuple[str, int], np.ndarray] = {}
        self.has_parts = False
        self._names, self._side = frozenset(names), sheets.tile_pixels(len(names), BEST)

    def draw(self, feature: str, number: int, example: Example, box: Box) -> None:
        """Draw an example; those at percentiles are on no sheet."""
        if number >= BEST or feature not in self._names:
            return
        whole = (0, example.image.shape[1], 0, example.image.shape[2])
        self.photographs[feature, number] = example.draw(whole, self._side)
        self.crops[feature, number] = example.draw(box, self._side)
        self.has_parts = self.has_parts or box != whole


def _save_sheets(run: Run, name: str, sheet: ExampleSheet, rows: list[ExampleRow], whole: int) -> None:
    """Write a sheet as one PNG of its first rows, and as pages of A4."""

    def limited(shown: int) -> ExampleSheet:
        note = f"{sheet.note}; the first {shown:,} of {whole:,} features" if shown < whole else sheet.note
        return replace(sheet, note=note, names=sheet.names[:shown])

    first = rows[:PICTURE_ROWS]
    save_figure(run, sheets.example_figure(limited(len(first)), first), name, ("png",))
    with translate_os_errors(f"run folder {str(run.folder)!r}"):
        path = pages.save_pages(sheets.example_pages(limited(len(rows)), rows), run.folder / f"{name}.pdf")
    run.register_file(path)


def _write_maps(path: Path, maps: xr.Dataset) -> None:
    """Write activation maps as netCDF 3, which scipy writes with the same bytes each time."""
    maps.to_netcdf(path, engine="scipy", format="NETCDF3_64BIT")
