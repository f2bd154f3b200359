"""Layout of the arrays of a run: metadata, coordinates, names of chunks, and the status of each image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import MemoryStore

from featmap.files import hash_file, write_atomically

ARRAYS = "arrays.zarr"


STATUSES = ("live", "rescued", "dead", "unconverged", "not-finite")
LIVE, RESCUED, DEAD, UNCONVERGED, NOT_FINITE = range(5)
"""Codes of the array `status`, and their names as its attributes give them. A code says what a descent reached and how
it started: `RESCUED` is live too, with its first gradient through dead ReLUs. Tables have two columns for it, see
`status_names` and `starts`."""
LIVE_CODES = (LIVE, RESCUED)
GRADIENT_START, RESCUED_START = "gradient", "rescued"
"""How a descent started: with a gradient of its own, or with one through dead ReLUs."""
MIN_RISE = 1e-6
"""A response has risen if it exceeds that to the null image by more than this share of the larger of the two."""


@dataclass(frozen=True)
class ArraySpec:
    """Specification of one array of a run.

    Parameters
    ----------
    dims : tuple of str
        Name of each dimension.
    shape : tuple of int
        Length of each dimension.
    chunks : tuple of int
        Shape of a chunk, which is one file.
    dtype : str, default "float32"
        NumPy's name of the type.
    attrs : tuple of (str, object), default ()
        Attributes as plain JSON values.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str = "float32"
    attrs: tuple[tuple[str, Any], ...] = ()


Inputs = Mapping[str, bytes]
"""Files that the results of a run depend on, such as directions: content by path in the run folder."""


def write_layout(
    folder: Path, arrays: dict[str, ArraySpec], coords: dict[str, np.ndarray], inputs: Inputs
) -> dict[str, str]:
    """Write metadata and coordinates of a run's arrays, and its inputs.

    Chunks of arrays stay as they are.

    Parameters
    ----------
    folder : Path
        Run folder.
    arrays : dict of ArraySpec
        Arrays by name.
    coords : dict of numpy.ndarray
        Labels along the arrays' dimensions, by dimension.
    inputs : mapping of bytes
        Files that the results depend on, by path in the folder.

    Returns
    -------
    dict of str
        SHA-256 by file name, relative to the folder.
    """
    checksums = {}
    # made in memory first: only files that are missing or differ are replaced, and zarr never sees the chunks
    files = {f"{ARRAYS}/{name}": content for name, content in sorted(_layout_files(arrays, coords).items())}
    for name, content in (files | dict(inputs)).items():
        path, checksum = folder / name, hashlib.sha256(content).hexdigest()
        checksums[path.relative_to(folder).as_posix()] = checksum
        if not path.is_file() or hash_file(path) != checksum:
            write_atomically(path, partial(Path.write_bytes, data=content))
    return checksums


def _layout_files(arrays: dict[str, ArraySpec], coords: dict[str, np.ndarray]) -> dict[str, bytes]:
    """Return the content of the metadata and coordinate files by name."""
    files: dict[str, Any] = {}
    store = MemoryStore(files)
    root: Any = zarr.open_group(store, mode="a", zarr_format=2, use_consolidated=False)
    with zarr.config.set({"array.write_empty_chunks": True}):
        for name, labels in coords.items():
            values = np.asarray(labels)
            # without a fill value: xarray would take a 0 that equals it for a missing number
            array = root.create_array(
                name,
                shape=values.shape,
                dtype=values.dtype,
                chunks=values.shape or "auto",
                fill_value=None,
                attributes={"_ARRAY_DIMENSIONS": [name]},
            )
            array[...] = values
    for name, spec in arrays.items():
        root.create_array(
            name,
            shape=spec.shape,
            dtype=spec.dtype,
            chunks=spec.chunks,
            fill_value=float("nan") if spec.dtype.startswith("float") else None,
            attributes={"_ARRAY_DIMENSIONS": list(spec.dims)} | dict(spec.attrs),
        )
    zarr.consolidate_metadata(store, zarr_format=2)
    return {name: content.to_bytes() for name, content in files.items()}


def chunk_names(shape: tuple[int, ...], chunks: tuple[int, ...]) -> Iterator[str]:
    """Generate the names of the files that hold an array's chunks.

    Parameters
    ----------
    shape : tuple of int
        Length of each dimension.
    chunks : tuple of int
        Shape of a chunk.

    Yields
    ------
    str
        Such as "0.2.0"; "0" for an array without dimensions.
    """
    for index in product(*(range(-(-n // c)) for n, c in zip(shape, chunks, strict=True))):
        yield ".".join(map(str, index)) or "0"


def region_chunks(region: Sequence[slice | int], shape: tuple[int, ...], chunks: tuple[int, ...]) -> Iterator[str]:
    """Generate the names of the files that hold the chunks of a region of an array.

    Parameters
    ----------
    region : sequence of slice or int
        Indices along each dimension; a region is not empty.
    shape : tuple of int
        Length of each dimension.
    chunks : tuple of int
        Shape of a chunk.

    Yields
    ------
    str
        Such as "0.2.0".
    """
    axes = []
    for part, length, chunk in zip(region, shape, chunks, strict=True):
        start, stop, _ = part.indices(length) if isinstance(part, slice) else (part, part + 1, 1)
        axes.append(range(start // chunk, (stop - 1) // chunk + 1))
    for index in product(*axes):
        yield ".".join(map(str, index))


def status_names(codes: Iterable[int]) -> list[str]:
    """Name what descents reached.

    Parameters
    ----------
    codes : iterable of int
        Codes of the array `status`.

    Returns
    -------
    list of str
        "live", "dead", "unconverged" or "not-finite".
    """
    return [STATUSES[LIVE if code == RESCUED else code] for code in map(int, codes)]


def starts(codes: Iterable[int]) -> list[str | None]:
    """Name how descents started.

    Parameters
    ----------
    codes : iterable of int
        Codes of the array `status`.

    Returns
    -------
    list of str or None
        "gradient", or "rescued" where the first gradient went through dead ReLUs; None for dead and not-finite ones.
    """
    known = {LIVE: GRADIENT_START, UNCONVERGED: GRADIENT_START, RESCUED: RESCUED_START}
    return [known.get(int(code)) for code in codes]


def count_statuses(statuses: Mapping[str, int], rescued: int) -> str:
    """Say how many features or images have each status.

    Parameters
    ----------
    statuses : mapping of str to int
        Counts by status. "rescued", which older runs have, counts as live.
    rescued : int
        How many of the live ones had no gradient at the start, in addition to those.

    Returns
    -------
    str
        Such as "512 live (245 without a gradient at the start), 3 dead".
    """
    older = statuses.get(STATUSES[RESCUED], 0)
    counts = dict(statuses) | {STATUSES[LIVE]: statuses.get(STATUSES[LIVE], 0) + older}
    note = f" ({older + rescued} without a gradient at the start)" if older + rescued else ""
    order = [name for name in STATUSES if name != STATUSES[RESCUED] and counts.get(name)]
    return ", ".join(f"{counts[name]} {name}{note if name == STATUSES[LIVE] else ''}" for name in order)


def row_statuses(arrays: dict[str, np.ndarray], had_gradient: np.ndarray, rescued: np.ndarray) -> np.ndarray:
    """Classify the rows of a batch by what their descents reached.

    Parameters
    ----------
    arrays : dict of numpy.ndarray
        `images` (B x 3 x H x W), `activation` and `null_activation` (B) of the batch.
    had_gradient : numpy.ndarray
        Whether each row ever had a gradient, bool, B.
    rescued : numpy.ndarray
        Whether it had one only with the help of the rescue, bool, B.

    Returns
    -------
    numpy.ndarray
        Index into `STATUSES` of each row, uint8, B. dead: it never had a gradient, or none without help and did not
        rise with it; unconverged: it had one and did not rise above the null image; not-finite: NaN or infinity in its
        image or in its own response.
    """
    activation, null = arrays["activation"], arrays["null_activation"]
    with np.errstate(invalid="ignore"):
        rose = activation - null > MIN_RISE * np.maximum(np.abs(activation), np.abs(null))
    finite = np.isfinite(activation) & np.isfinite(arrays["images"]).all((1, 2, 3))
    status = np.where(rose, np.where(rescued, RESCUED, LIVE), np.where(rescued | ~had_gradient, DEAD, UNCONVERGED))
    return np.where(finite, status, NOT_FINITE).astype(np.uint8)
