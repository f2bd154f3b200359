"""The frame of a run's arrays: their metadata and coordinates, written without touching a chunk that lies there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
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


@dataclass(frozen=True)
class ArraySpec:
    """One array of a run: its dimensions, shape, chunk shape and type."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str = "float32"
    attrs: tuple[tuple[str, Any], ...] = ()


def lay(folder: Path, arrays: dict[str, ArraySpec], coords: dict[str, np.ndarray]) -> dict[str, str]:
    """Make a run folder's metadata and coordinates what they should be; return their files with SHA-256.

    They are made in memory and replace what differs: chunks of the arrays stay as they are.
    """
    found = {}
    for name, content in sorted(_made(arrays, coords).items()):
        home, known = folder / ARRAYS / name, hashlib.sha256(content).hexdigest()
        found[home.relative_to(folder).as_posix()] = known
        if not home.is_file() or hash_file(home) != known:
            write_atomically(home, partial(Path.write_bytes, data=content))
    return found


def _made(arrays: dict[str, ArraySpec], coords: dict[str, np.ndarray]) -> dict[str, bytes]:
    """Return the files by name."""
    files: dict[str, Any] = {}
    store = MemoryStore(files)
    root: Any = zarr.open_group(store, mode="a", zarr_format=2, use_consolidated=False)
    with zarr.config.set({"array.write_empty_chunks": True}):
        for name, given in coords.items():
            values = np.asarray(given)
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
    """Yield the names of the files that an array's chunks lie in."""
    for index in product(*(range(-(-n // c)) for n, c in zip(shape, chunks, strict=True))):
        yield ".".join(map(str, index)) or "0"


STATUSES = ("live", "rescued", "dead", "unconverged", "not-finite")


LIVE, RESCUED, DEAD, UNCONVERGED, NOT_FINITE = range(5)


RISE = 1e-6
"""A response has risen if it exceeds that to the null image by more than this share of the larger of the two."""


def row_statuses(made: dict[str, np.ndarray], moved: np.ndarray, revived: np.ndarray) -> np.ndarray:
    """Return each row's status as an index into `STATUSES`.

    dead: it never had a gradient, or none without help and did not rise with it; unconverged: it had one and
    did not rise above the null image; not-finite: NaN or infinity in its image or in its own response.
    """
    with np.errstate(invalid="ignore"):
        floor = RISE * np.maximum(np.abs(made["activation"]), np.abs(made["null_activation"]))
        rose = made["activation"] - made["null_activation"] > floor
    finite = np.isfinite(made["activation"]) & np.isfinite(made["images"]).all((1, 2, 3))
    found = np.where(rose, np.where(revived, RESCUED, LIVE), np.where(revived | ~moved, DEAD, UNCONVERGED))
    return np.where(finite, found, NOT_FINITE).astype(np.uint8)
