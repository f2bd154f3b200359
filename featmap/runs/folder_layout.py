"""Layout of a run folder: the arrays' metadata, coordinates and chunks, the status of each image, and locks.

It also decides whether a failed start left results, so that its remains do not block the next start.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import zarr
from zarr.storage import MemoryStore

from featmap.errors import IncompleteError, StoreError
from featmap.files import hash_file, is_leftover, translate_os_errors, write_atomically
from featmap.runs.manifest import COPY, MANIFEST, UNITS, Manifest
from featmap.stats.correlation import FLOOR

ARRAYS = "arrays.zarr"


STATUSES = ("live", "rescued", "dead", "unconverged", "not-finite")
LIVE, RESCUED, DEAD, UNCONVERGED, NOT_FINITE = range(5)
"""Codes of the array `status`, and their names as its attributes give them. A code says what a descent reached and how
it started: `RESCUED` is live too, with its first gradient through dead ReLUs. Tables have two columns for it, see
`status_names` and `starts`."""
LIVE_CODES = (LIVE, RESCUED)
GRADIENT_START, RESCUED_START = "gradient", "rescued"
"""How a descent started: with a gradient of its own, or with one through dead ReLUs."""
MIN_RISE = FLOOR
"""A response has risen if it exceeds that to the null image by more than this share of the larger of the two."""
ROUNDING = 1e-4
"""Share of the mean absolute value of a feature's grid up to which its mean is rounding: a normalisation over positions
makes it 0, or its offset, by construction, whatever the image."""
MOVED = 0.01
"""Root-mean-square difference from the null image from which on an image differs enough to compare responses."""
FLAT = 1e-5
"""A rise of no more than this share of the mean absolute value is rounding."""
EXACT = 1e-9
"""The same in float64: what a normalisation fixes differs by 1e-16, a saturated unit that has a gradient by more."""


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


def frame_arrays(images: ArraySpec, count: int, columns: int) -> dict[str, ArraySpec]:
    """Specify the arrays of frames, and of the responses to them.

    Parameters
    ----------
    images : ArraySpec
        Array of the images, (seed, image, channel, y, x).
    count : int
        Number of frames of each image.
    columns : int
        Number of recorded responses; 0 stores none.

    Returns
    -------
    dict of ArraySpec
        `frames` and, with responses, `frame_A`.
    """
    (seeds, units, *image), rows, dims = images.shape, images.chunks[1], ("seed", "image", "frame")
    # a frame is a chunk of its own: it can be read without decompressing the whole descent
    pixels = ArraySpec((*dims, "channel", "y", "x"), (seeds, units, count, *image), (1, rows, 1, *image))
    responses = ArraySpec((*dims, "response"), (seeds, units, count, columns), (1, rows, count, columns))
    return {"frames": pixels} | ({"frame_A": responses} if columns else {})


FACET_TABLE = ("facet_activation", "null_activation", "facet_distance", "facet_repeat", "facet_repeat_activation")
"""Arrays that `featmap.stats.facets.facet_table` takes, in its order."""


def facet_arrays(images: ArraySpec, facets: int) -> dict[str, ArraySpec]:
    """Specify the arrays of facets.

    Parameters
    ----------
    images : ArraySpec
        Array of the images, (seed, image, channel, y, x).
    facets : int
        Number of facets of each unit.

    Returns
    -------
    dict of ArraySpec
        `facets`, the images; `facet_activation`; `facet_distance`, of every two facets of a unit; `facet_repeat`, the
        distance of the ordinary image and another one; `facet_repeat_activation`, the response to that other one. See
        `featmap.stats.facets`.
    """
    (seeds, units, *image), rows, dims = images.shape, images.chunks[1], ("seed", "image", "facet")
    shape, between = (seeds, units, facets), (*dims, "other_facet")
    return {
        "facets": ArraySpec((*dims, "channel", "y", "x"), (*shape, *image), (1, rows, 1, *image)),
        "facet_activation": ArraySpec(dims, shape, (1, rows, facets)),
        "facet_distance": ArraySpec(between, (*shape, facets), (1, rows, facets, facets)),
        "facet_repeat": ArraySpec(dims[:2], shape[:2], (1, rows)),
        "facet_repeat_activation": ArraySpec(dims[:2], shape[:2], (1, rows)),
    }


Inputs = Mapping[str, bytes]
"""Files that the results of a run depend on, such as directions: content by path in the run folder."""


def write_layout(
    folder: Path, arrays: dict[str, ArraySpec], coords: dict[str, np.ndarray], inputs: Inputs
) -> dict[str, str]:
    """Write the metadata and coordinates of a run's arrays, and its inputs.

    Chunks stay as they are.

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


def row_statuses(
    arrays: dict[str, np.ndarray],
    had_gradient: np.ndarray,
    rescued: np.ndarray,
    exact: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Classify the rows of a batch by what their descents reached.

    Parameters
    ----------
    arrays : dict of numpy.ndarray
        `images` (B x C x H x W), `null_images` (as many, or 1 x C x H x W), `activation`, `null_activation` and `scale`
        (B) of the batch, see `featmap.optimize.responses.Probe.measure_objectives`.
    had_gradient : numpy.ndarray
        Whether each row ever had a gradient, bool, B.
    rescued : numpy.ndarray
        Whether it had one only with the help of the rescue, bool, B.
    exact : callable or None, default None
        Measures rises of rows in float64, where float32 shows next to none; NaN where a row cannot be computed so.

    Returns
    -------
    numpy.ndarray
        Index into `STATUSES` of each row, uint8, B. dead: it never had a gradient, or none without help and did not
        rise with it, or its response to different images is the same but for rounding; unconverged: it had one and did
        not rise above the null image; not-finite: NaN or infinity in its image or in its own response.
    """
    activation, null, scale = arrays["activation"], arrays["null_activation"], arrays["scale"]
    with np.errstate(invalid="ignore", over="ignore"):
        is_zero = (scale > 0) & (np.maximum(np.abs(activation), np.abs(null)) <= ROUNDING * scale)
        rise = MIN_RISE * np.maximum(np.abs(activation), np.abs(null))
        rose = activation - null > np.maximum(rise, FLAT * scale)
        # a mean that a normalisation fixes need not be 0: its offset is added
        has_moved = np.sqrt(np.square(arrays["images"] - arrays["null_images"]).mean((1, 2, 3))) >= MOVED
        difference = np.where(scale > 0, np.abs(activation - null), np.inf) / np.where(scale > 0, scale, 1)
        is_constant = is_zero | (has_moved & ~rose & (difference <= ROUNDING))
    finite = np.isfinite(activation) & np.isfinite(arrays["images"]).all((1, 2, 3))
    doubtful = np.flatnonzero(finite & has_moved & ~is_zero & (difference <= 10 * ROUNDING))
    if exact is not None and len(doubtful):
        changes = np.abs(exact(doubtful))
        is_constant[doubtful] = np.where(np.isnan(changes), is_constant[doubtful], changes <= EXACT * scale[doubtful])
    status = np.where(rose, np.where(rescued, RESCUED, LIVE), np.where(rescued | ~had_gradient, DEAD, UNCONVERGED))
    return np.where(finite, np.where(is_constant, DEAD, status), NOT_FINITE).astype(np.uint8)


LOCK, OWNER = ".lock", ".owner.json"
LOCAL = "here"
"""Engine of this process, as manifests name it."""
_COPY_FOLDER = Path(COPY).parent.name


def acquire_lock(folder: Path) -> filelock.BaseFileLock | None:
    """Lock a folder for this process, and write down which process that is.

    Parameters
    ----------
    folder : Path
        Run folder, not locked by this process.

    Returns
    -------
    filelock.BaseFileLock or None
        None on file systems without locks, and where nothing can be written.

    Raises
    ------
    StoreError
        If another process writes the folder; the message names the process.
    """
    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise StoreError(
            f"run folder {str(folder)!r} is being written by {lock_owner(folder)}; wait for it, stop it, "
            "or choose another folder"
        ) from None
    except (OSError, RuntimeError):  # no locks here, or nothing can be written: then the first write fails
        if (folder / LOCK).is_dir():
            raise StoreError(
                f"{str(folder / LOCK)!r} is a folder, but the lock file belongs there; move it away"
            ) from None
        return None
    return lock


def write_owner(folder: Path) -> None:
    """Write down that this process holds the lock of a folder.

    Parameters
    ----------
    folder : Path
        Run folder.
    """
    owner = json.dumps({"host": socket.gethostname(), "process": os.getpid()})
    with translate_os_errors(f"run folder {str(folder)!r}"):
        write_atomically(folder / OWNER, lambda p: p.write_text(owner, encoding="utf-8"))


def lock_owner(folder: Path) -> str:
    """Name the process that holds the lock of a folder.

    Parameters
    ----------
    folder : Path
        Run folder.

    Returns
    -------
    str
        Such as "process 17 on node3"; "another process" where that was not recorded.
    """
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        owner = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        return f"process {owner['process']} on {owner['host']}"
    return "another process"


def is_foreign(path: Path) -> bool:
    """Check whether a file is anything but the leftover of an interrupted first write.

    Parameters
    ----------
    path : Path
        A file or folder inside a folder that is no run folder.

    Returns
    -------
    bool
        True for files that another program, or the user, put there.
    """
    if path.name == _COPY_FOLDER and path.is_dir():  # the first manifest is written to there
        return any(map(is_foreign, path.iterdir()))
    return path.name not in (LOCK, OWNER) and not is_leftover(path.name)


def is_unused(folder: Path, manifest: Manifest) -> bool:
    """Check whether nothing has been computed in a run folder yet.

    Parameters
    ----------
    folder : Path
        The folder.
    manifest : Manifest
        Its manifest.

    Returns
    -------
    bool
        False where a work unit has landed, a table, page or inner run was written, or there is any other file.
    """
    recorded = (manifest.units, manifest.files, manifest.added, manifest.parts, manifest.mapped, manifest.atlas)
    if manifest.is_complete or any(recorded):
        return False
    prepared = (MANIFEST, _COPY_FOLDER, LOCK, OWNER, ARRAYS, UNITS)
    units = folder / UNITS
    landed = units.is_dir() and not all(is_leftover(path.name) for path in units.iterdir())
    return not landed and all(path.name in prepared or is_leftover(path.name) for path in folder.iterdir())


def clear(folder: Path) -> None:
    """Remove what a start has prepared in a run folder, all but its lock.

    Parameters
    ----------
    folder : Path
        A folder that `is_unused`, locked by this process.
    """
    for name in (ARRAYS, UNITS, _COPY_FOLDER):
        shutil.rmtree(folder / name, ignore_errors=True)
    # the manifest last: without it, what is left after an interruption would not be known as a run folder
    (folder / MANIFEST).unlink(missing_ok=True)


def withdraw(folder: Path, manifest: Manifest, error: BaseException, keep_folder: bool) -> None:
    """Remove the run folder of a failed start, unless it holds any result.

    Parameters
    ----------
    folder : Path
        Run folder that this process has begun, and holds the lock of.
    manifest : Manifest
        Its manifest.
    error : BaseException
        What ended the start.
    keep_folder : bool
        Keep the folder itself, which was there before the start.
    """
    # workers of another engine may still be writing, and their units belong to the run
    is_local = all(used.get("engine") == LOCAL for used in manifest.engines)
    with suppress(OSError):  # `clear` or the next start removes what cannot be removed now; it hides no other error
        if is_local and not isinstance(error, IncompleteError) and is_unused(folder, manifest):
            clear(folder)
            for name in (OWNER, LOCK):
                (folder / name).unlink(missing_ok=True)
            if not keep_folder:
                folder.rmdir()
