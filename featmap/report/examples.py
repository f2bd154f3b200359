"""Add dataset examples to a layer's page: nothing of the photographs, unless the page is asked to embed them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from featmap.errors import FeatmapError
from featmap.image_shape import Size, as_size
from featmap.mapping import result
from featmap.optimize.photograph_files import PhotographFiles, find_photographs
from featmap.optimize.photograph_folder import PhotographFolder
from featmap.optimize.photographs import pixel_checksum
from featmap.plotting import overlays
from featmap.report.encode import ThumbnailSheet, choose_encoding, encode_image
from featmap.report.page import LayerPage, page_budget
from featmap.runs.manifest import translate_read_errors
from featmap.runs.progress import Watcher
from featmap.runs.store import Run, read_frame

SHARE = 3
"""Photographs take at most one part of a page's bytes in so many."""
SAMPLE, BATCH = 8, 16
"""Pictures that an encoding is tried on, and photographs that are in memory at once."""


@dataclass(frozen=True, eq=False)
class ExamplePhotographs:
    """The photographs of a run, for pages that embed those that are examples.

    Parameters
    ----------
    files : PhotographFiles
        Files of their folder or zip.
    pages : Path
        Folder of the pages, from which links start.
    """

    files: PhotographFiles
    pages: Path

    @staticmethod
    def open(run: Run, pages: Path) -> ExamplePhotographs:
        """Find the photographs of a run.

        Parameters
        ----------
        run : Run
            A finished run.
        pages : Path
            Folder of its pages.

        Returns
        -------
        ExamplePhotographs
            The photographs; none is read yet.

        Raises
        ------
        FeatmapError
            If the run recorded none, or their folder is not where it was.
        """
        folder = run.manifest.photograph_folder
        if folder is None:
            raise FeatmapError(
                f"run {str(run.folder)!r} has no photographs to embed; map the layer with photographs, or make the "
                "page without them"
            )
        return ExamplePhotographs(find_photographs(folder, "photographs"), pages)

    @cached_property
    def _positions(self) -> dict[str, int]:
        """Position of each file by its name."""
        return {label: k for k, label in enumerate(self.files.labels)}

    def read(self, names: Sequence[str], checksums: Mapping[str, str], size: Size, channels: int) -> np.ndarray:
        """Read photographs, and check that they are those of the run.

        Parameters
        ----------
        names : sequence of str
            Their names.
        checksums : mapping of str
            SHA-256 of the pixels of each, by name.
        size : int or (int, int)
            Size in pixels.
        channels : int
            Number C of channels.

        Returns
        -------
        numpy.ndarray
            N x C x H x W in [0, 1].

        Raises
        ------
        FeatmapError
            If one is missing, cannot be read, or has changed.
        """
        missing = [name for name in names if name not in self._positions]
        if missing:
            raise FeatmapError(
                f"photograph {missing[0]!r} is not in {str(self.files.path)!r} any more; put it back, or leave the "
                "photographs out"
            )
        folder = PhotographFolder(self.files.path, self.files.open_file, self.files.labels, "")
        images = folder.read([self._positions[name] for name in names], size, channels).numpy()
        for name, image in zip(names, images, strict=True):
            if pixel_checksum(image) != checksums[name]:
                raise FeatmapError(
                    f"photograph {name!r} of {str(self.files.path)!r} has changed since the run; put it back, or "
                    "repeat the run with these photographs"
                )
        return images

    def link(self, name: str, prefix: str) -> str | None:
        """Write the relative link from a page to a photograph's file.

        Parameters
        ----------
        name : str
            Name of the photograph.
        prefix : str
            Folder of the page inside that of the pages, with a slash at the end.

        Returns
        -------
        str or None
            None where it is inside a zip, or on another drive.
        """
        if not self.files.path.is_dir():
            return None
        try:
            path = os.path.relpath(self.files.path.resolve() / name, (self.pages / prefix).resolve())
        except ValueError:  # another drive of Windows
            return None
        return quote(Path(path).as_posix())


def add_examples(
    page: LayerPage,
    run: Run,
    prefix: str,
    photographs: ExamplePhotographs | None,
    watcher: Watcher,
    sheet: ThumbnailSheet | None = None,
) -> None:
    """Add the examples of a layer's features to its page, or that there are some.

    Parameters
    ----------
    page : LayerPage
        Page of the layer; `data` has its features.
    run : Run
        Run folder.
    prefix : str
        Folder of the layer, with a slash at the end.
    photographs : ExamplePhotographs or None
        Photographs to embed; None leaves out all that is known of them.
    watcher : Watcher
        Receives the progress.
    sheet : ThumbnailSheet, optional
        Sheet onto which the place in each feature's best photograph is put, as its thumbnail.
    """
    if not {f"{prefix}{result.EXAMPLES}.parquet", prefix + result.EXAMPLE_MAPS} <= run.manifest.files.keys():
        return
    if photographs is None:
        page.data["examples"] = {"embedded": False}
        return
    with translate_read_errors(run.folder):
        table = read_frame(run.folder, prefix + result.EXAMPLES)
        maps = result.read_example_maps(run.folder, prefix)
    on_page = table.index.isin(page.data["features"]["name"])
    if not on_page.all():  # a page of a large layer shows some of its features
        table, maps = table[on_page], maps.isel(example=np.flatnonzero(on_page))
    size = (int(maps.attrs["height"]), int(maps.attrs["width"]))
    names = [str(name) for name in dict.fromkeys(table["photograph"])]
    at = {name: k for k, name in enumerate(names)}
    boxes = table[["top", "bottom", "left", "right"]].to_numpy(dtype=np.int64)
    sides = boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]
    # a photograph is embedded once for all features; small crops of each feature take less
    cropped = int((sides[0] * sides[1]).sum()) < len(names) * size[0] * size[1]
    y, x, grids = maps["y"].values, maps["x"].values, maps["activation"].values
    rows: dict[str, list[dict[str, Any]]] = {str(name): [] for name in page.data["features"]["name"]}
    parts: dict[str, list[np.ndarray]] = {name: [] for name in rows}
    for k, row in enumerate(table.itertuples()):
        box = [int(n) for n in boxes[k]]
        place, values = _cut_map(grids[k], y, x, box)
        parts[str(row.Index)].append(values)
        rows[str(row.Index)].append(
            {
                "picture": k if cropped else at[row.photograph],
                "photograph": at[row.photograph],
                "best": row.kind == "best",
                "number": int(row.rank if row.kind == "best" else row.percentile),
                "response": _number(row.response),
                "activation": _number(row.activation),
                "position": [_number(row.y), _number(row.x)],
                "box": box,
                "crop": str(row.crop),
                "part": place,
            }
        )
    frames = boxes if cropped else np.tile([0, size[0], 0, size[1]], (len(names), 1))
    shown = list(table["photograph"]) if cropped else names
    checksums = dict(zip(table["photograph"], maps["pixels"].values, strict=True))
    read = partial(photographs.read, checksums=checksums, size=as_size(size), channels=int(maps.attrs["channels"]))
    page.photographs, coding = _encode(
        shown, frames, read, page_budget(len(rows)) // SHARE, _putter(sheet, rows, frames), watcher
    )
    page.data["examples"] = {
        "embedded": True,
        "coding": coding,
        "names": names,
        "links": [photographs.link(name, prefix) for name in names],
        "frames": frames.tolist(),
        "y": y.tolist(),
        "x": x.tolist(),
        "rows": list(rows.values()),
        "note": overlays.NOTE,
    }
    page.blobs["examples"] = np.concatenate([np.zeros(0, dtype=np.uint8), *(v for own in parts.values() for v in own)])


def _putter(
    sheet: ThumbnailSheet | None, rows: Mapping[str, list[dict[str, Any]]], frames: np.ndarray
) -> Callable[[int, np.ndarray], None]:
    """Return a function of an embedded picture's number and pixels, which puts the best examples in it onto a sheet."""
    places: dict[int, list[tuple[int, list[int]]]] = {}
    for feature, own in enumerate(rows.values()):
        for one in own:
            if one["best"] and one["number"] == 1:
                places.setdefault(one["picture"], []).append((feature, one["box"]))

    def put(picture: int, image: np.ndarray) -> None:
        if sheet is None:
            return
        above, _, before, _ = frames[picture]
        for feature, (top, bottom, left, right) in places.get(picture, []):
            sheet.put(feature, image[:, top - above : bottom - above, left - before : right - before])

    return put


def _number(value: float) -> float | None:
    """Return a value for JSON, with None for an undefined one."""
    return float(f"{value:.6g}") if np.isfinite(value) else None


def _cut_map(grid: np.ndarray, y: np.ndarray, x: np.ndarray, box: Sequence[int]) -> tuple[list[int], np.ndarray]:
    """Cut a map to what is interpolated inside a box, as 8 bits of its largest value: first row, column, sides."""
    place = []
    for centres, first, end in ((y, box[0], box[1]), (x, box[2], box[3])):
        start = max(0, int(np.searchsorted(centres, first)) - 1)
        stop = min(len(centres), int(np.searchsorted(centres, end - 1, side="right")) + 1)
        place += [start, max(stop - start, 1)]
    (top, height, left, width), largest = place, float(np.max(grid))
    part = grid[top : top + height, left : left + width]
    share = part / largest if 0 < largest < np.inf else np.zeros_like(part)
    return [top, left, height, width], np.rint(255 * np.clip(np.nan_to_num(share), 0, 1)).astype(np.uint8).ravel()


def _encode(
    names: Sequence[str],
    frames: np.ndarray,
    read: Callable[[Sequence[str]], np.ndarray],
    budget: int,
    put: Callable[[int, np.ndarray], None],
    watcher: Watcher,
) -> tuple[list[str], str]:
    """Encode a part of each photograph within a budget, and pass it on; return data URIs, and the encoding in words."""
    if not names:
        return [], ""

    def cut(positions: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        parts: dict[str, list[int]] = {}  # by photograph, which is read once for all of them
        for k in positions:
            parts.setdefault(names[k], []).append(k)
        photographs = sorted(parts)
        for first in range(0, len(photographs), BATCH):
            group = photographs[first : first + BATCH]
            for name, image in zip(group, read(group), strict=True):
                for k in parts[name]:
                    top, bottom, left, right = frames[k]
                    yield k, image[:, top:bottom, left:right]

    sample = dict(cut(range(0, len(names), -(-len(names) // SAMPLE))))
    encoding = choose_encoding([sample[k] for k in sorted(sample)], len(names), budget)
    pictures: list[str] = [""] * len(names)
    for done, (k, image) in enumerate(cut(range(len(names))), 1):
        pictures[k] = encode_image(image, encoding)
        put(k, image)
        watcher.stage("photographs of the atlas", done, len(names))
    return pictures, str(encoding)
