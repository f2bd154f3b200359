"""Dataset examples: the photographs that excite each feature of a layer most, where they do, and files of both."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from featmap.files import translate_os_errors
from featmap.image_shape import Size, as_pair, colour_note
from featmap.mapping import flags
from featmap.mapping.layer_arrays import photograph_responses
from featmap.mapping.result import EXAMPLE_MAPS, EXAMPLES, SimilarityMap, order_features
from featmap.mapping.view import DEFAULT_EXAMPLES
from featmap.network.model import Network
from featmap.network.receptive_field import ReceptiveField
from featmap.optimize.measured_fields import find_fields
from featmap.optimize.photograph_folder import PhotographFolder
from featmap.optimize.photographs import pixel_checksum
from featmap.optimize.responses import Probe
from featmap.plotting import examples as sheets
from featmap.plotting import overlays, pages
from featmap.plotting.examples import PAGE_ROWS, PICTURE_ROWS, ExampleRow, ExampleSheet
from featmap.plotting.overlays import Example
from featmap.runs.device import deterministic_settings, trim_heap
from featmap.runs.output import format_number, save_figure, write_frame
from featmap.runs.progress import Watcher
from featmap.runs.store import Run, open_arrays
from featmap.stats.top_responses import NONE, PERCENTILES, TopResponses, at_percentiles, equal_rows

TABLE, CROPS = EXAMPLES, "example-crops"
"""Table and sheets of photographs, and sheets of crops, in the folder of a layer."""
IS_BEST, IS_PERCENTILE = "best", "percentile"
"""Kinds of examples: the photographs of the largest responses, and those at percentiles of all."""
BOX = ("top", "bottom", "left", "right")
"""Columns of an example's box, in pixels; `bottom` and `right` are outside it."""
FIELD = "receptive field"
COVERED, UNKNOWN, FLAT, PADDING = (
    f"whole image: {reason}"
    for reason in ("covered by the field", "field not known", "activation flat", "field in the padding")
)
"""What the box of an example is: the field of the position of the largest activation, or the whole image and why."""
BATCH, STEP, TRIM = 16, 64, 512
"""Photographs in memory at a time, whose responses are read at least (those of a work unit), and after which freed
memory is returned."""
_BLOCK_BYTES = 1 << 25
"""Largest block of responses that is read at a time, in bytes; ranking it takes about four times as much."""

Box = tuple[int, int, int, int]
"""First row, end of the rows, first column and end of the columns, in pixels."""
Drawing = Callable[[str, int, Example, Box], None]
"""Called with a feature, the number of an example (0 is the best, percentiles follow the last of these), its photograph
with the activation map, and its box."""


@dataclass(frozen=True, eq=False)
class ExampleSource:
    """The photographs of a map, and the network that sees them.

    Parameters
    ----------
    network : Network
        The network.
    photographs : PhotographFolder
        The photographs.
    size : int or (int, int)
        Size that they are resized to, in pixels.
    device : torch.device
        Where the network is computed.
    """

    network: Network
    photographs: PhotographFolder
    size: Size
    device: torch.device

    def batches(self, positions: Sequence[int]) -> Iterator[tuple[Sequence[int], Tensor]]:
        """Read some of the photographs, a few at a time.

        Parameters
        ----------
        positions : sequence of int
            Positions in their order.

        Yields
        ------
        positions : sequence of int
            The next ones.
        images : Tensor
            Their photographs, B x C x H x W in [0, 1].
        """
        for first in range(0, len(positions), BATCH):
            indices = positions[first : first + BATCH]
            yield indices, self.photographs.read(indices, self.size, self.network.channels)


@dataclass(frozen=True)
class Place:
    """Where in a photograph a feature is most active.

    Parameters
    ----------
    activation : float
        Largest activation of the map; NaN if one is not finite.
    y, x : float
        Its position in the grid, the first of several; NaN where all positions are equally active.
    box : (int, int, int, int)
        The part of the photograph that this position sees, clipped at the border; else the whole photograph.
    crop : str
        What the box is: `FIELD`, or one of the reasons why it is the whole image.
    """

    activation: float
    y: float
    x: float
    box: Box
    crop: str

    @staticmethod
    def find(grid: np.ndarray, field: ReceptiveField, size: tuple[int, int]) -> Place:
        """Find the place of the largest activation.

        Parameters
        ----------
        grid : numpy.ndarray
            Activation map, h x w.
        field : ReceptiveField
            Receptive field of its positions.
        size : (int, int)
            Height and width of the photograph in pixels.

        Returns
        -------
        Place
            The place.
        """
        whole = (0, size[0], 0, size[1])
        if not np.isfinite(grid).all():
            return Place(np.nan, np.nan, np.nan, whole, FLAT)
        activation = float(grid.max())
        if activation == float(grid.min()) and grid.size > 1:
            return Place(activation, np.nan, np.nan, whole, FLAT)
        y, x = divmod(int(grid.argmax()), grid.shape[1])
        if field.whole:
            return Place(activation, y, x, whole, UNKNOWN if field.unknown else COVERED)
        rows, columns = field.bounds(y, x, *size)
        box = (rows.start, rows.stop, columns.start, columns.stop)
        if box[0] == box[1] or box[2] == box[3]:
            return Place(activation, y, x, whole, PADDING)
        return Place(activation, y, x, box, COVERED if box == whole else FIELD)


@dataclass(frozen=True, eq=False)
class LayerExamples:
    """The examples of a layer's features.

    Parameters
    ----------
    table : pandas.DataFrame
        One row an example, by feature and then from the best to the last percentile: kind, rank (1 is the best; NaN at
        percentiles), percentile (NaN for the best), photograph, response (mean over the grid), activation (the largest
        of the grid), y and x (its position, NaN if all are equal), top, bottom, left and right of the box in pixels
        (`bottom` and `right` are outside it) and `crop`, what the box is, see `Place`.
    maps : xarray.Dataset
        `activation` (example, row, column), in the order of the table, with the pixel at the centre of each row (`y`)
        and column (`x`), and the SHA-256 of the photograph's pixels (`pixels`); height, width and channels of the
        photographs are attributes.
    constant : list of str
        Features without examples: they respond to all photographs alike, or with no finite number.
    duplicates : int
        Photographs that do not count because an earlier one has the same pixels.
    """

    table: pd.DataFrame
    maps: xr.Dataset
    constant: list[str]
    duplicates: int

    def keys(self, k: int) -> list[tuple[str, int]]:
        """List feature and number of each example, numbered as `Drawing` does.

        Parameters
        ----------
        k : int
            Best photographs of each feature.

        Returns
        -------
        list of (str, int)
            In the order of the table.
        """
        of_percentiles = self.table["percentile"].map({p: k + at for at, p in enumerate(PERCENTILES)})
        numbers = (self.table["rank"] - 1).fillna(of_percentiles).astype(int)
        return list(zip(map(str, self.table.index), numbers, strict=True))


def find_examples(
    source: ExampleSource,
    responses: xr.DataArray,
    watcher: Watcher,
    draw: Drawing | None = None,
    k: int = DEFAULT_EXAMPLES,
    shown: Sequence[str] | None = None,
) -> LayerExamples:
    """Find the examples of features in the stored responses of a run.

    Only the photographs that are examples are read again, and those whose responses are equal to others'.

    Parameters
    ----------
    source : ExampleSource
        The photographs.
    responses : xarray.DataArray
        Responses to the photographs, photograph x response, of features of one layer.
    watcher : Watcher
        Receives the progress.
    draw : callable, optional
        Called with each example while its photograph is at hand.
    k : int, default `DEFAULT_EXAMPLES`
        Photographs of the largest responses.
    shown : sequence of str, optional
        Features whose examples are found. None takes all of `responses`; those of the others still tell photographs
        apart, of which fewer are then read again.

    Returns
    -------
    LayerExamples
        The examples.

    Raises
    ------
    FeatmapError
        If a photograph cannot be read any more.
    """
    whole = [str(name) for name in responses["response"].values]
    names = whole if shown is None else list(shown)
    reader = _Reader(source, responses if names == whole else responses.sel(response=names), watcher)
    distinct = reader.distinct(responses)
    kept = np.flatnonzero(distinct)
    top = TopResponses(len(names), k)
    for first, part in reader.parts(reader.stored):
        rows = np.flatnonzero(distinct[first : first + len(part)])
        top.add(first + rows, part[rows])
    at, values = reader.percentiles(kept)
    positions = np.concatenate([top.positions, at], axis=1)
    found = np.concatenate([top.values, values], axis=1)
    features, columns = np.nonzero((positions != NONE) & top.varies[:, None])
    wanted = positions[features, columns]
    numbers = np.array([*range(1, k + 1), *PERCENTILES], dtype=np.float64)
    table = pd.DataFrame(
        {
            "kind": np.where(columns < k, IS_BEST, IS_PERCENTILE).astype(object),
            "rank": np.where(columns < k, numbers[columns], np.nan),
            "percentile": np.where(columns < k, np.nan, numbers[columns]),
            "photograph": np.array(source.photographs.labels, dtype=object)[wanted],
            "response": found[features, columns].astype(np.float64),
        },
        index=pd.Index(np.array(names, dtype=object)[features], name="feature"),
    )
    keys = [(names[f], int(c)) for f, c in zip(features, columns, strict=True)]
    places, maps = reader.measure(wanted, keys, draw)
    boxes = np.array([p.box for p in places], dtype=np.int64).reshape(-1, 4)
    columns_ = {
        **{name: np.array([getattr(p, name) for p in places], float) for name in ("activation", "y", "x")},
        **dict(zip(BOX, boxes.T, strict=True)),
    }
    table = table.assign(**columns_, crop=np.array([p.crop for p in places], dtype=object))
    constant = [name for name, varies in zip(names, top.varies, strict=True) if not varies]
    return LayerExamples(table, maps, constant, len(distinct) - len(kept))


class _Reader:
    """Reads the responses of some features of a layer, and photographs."""

    def __init__(self, source: ExampleSource, responses: xr.DataArray, watcher: Watcher) -> None:
        self.source, self.stored, self.watcher = source, responses, watcher
        self.layer = str(responses["response"].values[0]).rpartition(":")[0]

    def parts(self, responses: xr.DataArray) -> Iterator[tuple[int, np.ndarray]]:
        """Yield responses in parts of whole chunks, with the position of the first photograph."""
        count, width = responses.shape
        step = max(1, _BLOCK_BYTES // (4 * width) // STEP) * STEP
        for first in range(0, count, step):
            yield first, responses[first : first + step].values
            self.watcher.stage("responses to photographs", min(first + step, count), count)

    def distinct(self, responses: xr.DataArray) -> np.ndarray:
        """Mark the photographs whose pixels no earlier one has, N booleans."""
        distinct = np.ones(self.stored.shape[0], dtype=bool)
        # equal pixels give equal responses, so only photographs of equal responses are read and compared; of one
        # feature alone, which may be silent on most photographs, most would be
        for group in equal_rows(part for _, part in self.parts(responses)):
            seen: set[str] = set()
            for indices, images in self.source.batches(group):
                for index, image in zip(indices, images.numpy(), strict=True):
                    distinct[index] = (checksum := pixel_checksum(image)) not in seen
                    seen.add(checksum)
        return distinct

    def percentiles(self, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Find the photographs at percentiles among those kept, some features at a time."""
        count, width = self.stored.shape
        step = max(1, _BLOCK_BYTES // (4 * count))
        rows, values = [], []
        for first in range(0, width, step):
            block = self.stored[:, first : first + step].values
            found, value = at_percentiles(block if len(kept) == count else block[kept])
            rows.append(np.where(found == NONE, NONE, kept[found]))
            values.append(value)
            self.watcher.stage("percentiles", min(first + step, width), width)
        return np.concatenate(rows), np.concatenate(values)

    def measure(
        self, wanted: np.ndarray, keys: Sequence[tuple[str, int]], draw: Drawing | None
    ) -> tuple[list[Place], xr.Dataset]:
        """Compute the activation maps of features on the photographs wanted for them, each photograph once."""
        source, size = self.source, self.source.size
        _, *grid = source.network.layer(self.layer, size).shape
        field = find_fields(source.network, [self.layer], size)[self.layer]
        y, x = (np.array(c) for c in field.centres((grid[0], grid[1]), as_pair(size)))
        maps = np.full((len(wanted), *grid), np.nan, dtype=np.float32)
        pixels, places = np.full(len(wanted), "", dtype="<U64"), dict[int, Place]()
        rows: dict[int, list[int]] = defaultdict(list)
        for row, index in enumerate(wanted):
            rows[int(index)].append(row)
        probe, done = Probe(source.network, BATCH, source.device), 0
        with deterministic_settings():
            for indices, images in self.source.batches(sorted(rows)):
                outputs = probe.activation_maps(images, [self.layer])[self.layer]
                for index, image, output in zip(indices, images.numpy(), outputs, strict=True):
                    checksum = pixel_checksum(image)
                    for row in rows[index]:
                        maps[row], pixels[row] = output[int(keys[row][0].rpartition(":")[2])], checksum
                        places[row] = Place.find(maps[row], field, as_pair(size))
                        if draw is not None:
                            draw(*keys[row], Example(image, maps[row], y, x), places[row].box)
                self.watcher.stage("examples", done := done + len(indices), len(rows))
                if done // TRIM > (done - len(indices)) // TRIM:
                    trim_heap()
        data = {"activation": (("example", "row", "column"), maps), "pixels": ("example", pixels)}
        coords = {"y": ("row", y), "x": ("column", x)}
        attrs = dict(zip(("height", "width"), as_pair(size), strict=True)) | {"channels": source.network.channels}
        return [places[row] for row in range(len(wanted))], xr.Dataset(data, coords, attrs)


def write_examples(
    run: Run,
    source: ExampleSource | None,
    layer_map: SimilarityMap,
    earlier: Mapping[str, str],
    watcher: Watcher,
    k: int = DEFAULT_EXAMPLES,
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
    k : int, default `DEFAULT_EXAMPLES`
        Photographs of the largest responses.
    """
    if source is not None:
        _find_and_write(run, source, layer_map, watcher, k)
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


def _find_and_write(run: Run, source: ExampleSource, layer_map: SimilarityMap, watcher: Watcher, k: int) -> None:
    """Find the examples of a layer in the stored responses, and write table, maps and sheets."""
    data, order = open_arrays(run.folder), order_features(layer_map)[0]
    layer = layer_map.shown[0].rpartition(":")[0]
    order += [name for name in layer_map.shown if name not in set(order)]
    order, whole = order[:PAGE_ROWS], len(order)
    tiles = _Tiles(order, k)
    found = find_examples(source, photograph_responses(data, layer), watcher, tiles.draw, k, layer_map.shown)
    write_frame(run, layer_map.prefix + TABLE, found.table, "feature")
    run.write(layer_map.prefix + EXAMPLE_MAPS, partial(_write_maps, maps=found.maps))
    images = data["images"].isel(seed=0).sel(image=order).values if "images" in data else None
    marked = flags.marked_names(layer_map.features, order)
    rows = [
        ExampleRow(marked[at], _describe(layer_map.features, name), None if images is None else images[at], [], [], [])
        for at, name in enumerate(order)
    ]
    captions = {key: format_number(value) for key, value in zip(found.keys(k), found.table["response"], strict=True)}
    for name, (title, note) in _texts(source, found, layer, k).items():
        pictures = tiles.crops if name == CROPS else tiles.photographs
        if name == CROPS and not tiles.has_parts:
            continue
        sheet = ExampleSheet(title, note, marked, k, PERCENTILES, images is not None)
        drawn = []
        for name_, row in zip(order, rows, strict=True):
            columns = [at for at in range(k + len(PERCENTILES)) if (name_, at) in pictures]
            own, texts = [pictures[name_, at] for at in columns], [captions[name_, at] for at in columns]
            drawn.append(replace(row, tiles=own, captions=texts, columns=columns))
        _save_sheets(run, layer_map.prefix + name, sheet, drawn, whole)


def _texts(source: ExampleSource, found: LayerExamples, layer: str, k: int) -> dict[str, tuple[str, str]]:
    """Write title and note of each sheet."""
    count, colours = len(source.photographs) - found.duplicates, colour_note(source.network.channels)
    doubles = f"; {found.duplicates:,} with the pixels of another one are left out" if found.duplicates else ""
    best, right = f"the {min(k, count)} of {count:,} photographs", "on the right: photographs at percentiles of all"
    return {
        TABLE: (
            f"{layer}: {best} that excite each feature most{colours}",
            f"{overlays.NOTE}; below a photograph: mean activation over the grid; {right}{doubles}",
        ),
        CROPS: (
            f"{layer}: where each feature is most active in {best} that excite it most{colours}",
            "crops: receptive field of the position of the largest activation, clipped at the border, magnified to one "
            f"size; {overlays.NOTE}; {right}{doubles}",
        ),
    }


def _describe(features: pd.DataFrame, name: str) -> str:
    """Describe the maximising image of a feature in a few words."""
    parts = [f"activation {format_number(features.activation[name])}"] if "activation" in features else []
    status = str(features.status[name]) if "status" in features else "live"
    return ", ".join([*parts, *([status] if status != "live" else [])])


class _Tiles:
    """The examples of some features as they are drawn on sheets: whole, and cropped to their boxes."""

    def __init__(self, names: Sequence[str], k: int) -> None:
        self.photographs: dict[tuple[str, int], np.ndarray] = {}
        self.crops: dict[tuple[str, int], np.ndarray] = {}
        self.has_parts = False
        self._names, self._side = frozenset(names), sheets.tile_pixels(len(names), k + len(PERCENTILES))

    def draw(self, feature: str, number: int, example: Example, box: Box) -> None:
        """Draw an example."""
        if feature not in self._names:
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
