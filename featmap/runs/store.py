"""The run folder: arrays, tables, figures and the manifest of one command; complete, resumable, self-describing.

What a work unit makes lands in two moves: its array chunks, each replaced atomically, then a small record
with their SHA-256. A unit without a record, or whose chunks differ from it, is made again.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pandas as pd
import xarray as xr
import zarr

from featmap.errors import FeatmapError, StoreError
from featmap.files import hash_file, is_leftover, remove_leftovers, translate_os_errors, write_atomically
from featmap.runs import manifest as manifests
from featmap.runs.array_layout import ARRAYS, ArraySpec, lay
from featmap.runs.manifest import LAYING, RUNNING, UNITS, Manifest

LOCK, OWNER = ".lock", ".owner.json"
_held: dict[Path, filelock.BaseFileLock] = {}


class Run:
    """One run folder.

    Parameters
    ----------
    folder : where it lies
    identity : everything that its numbers depend on; a folder made with another identity is refused
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder, self.identity = folder, identity
        self.manifest = Manifest(identity)

    @staticmethod
    def read(folder: Path) -> Run:
        """Return the run in `folder`.

        Raises
        ------
        StoreError
            if there is none, its manifest is damaged, or a newer featmap wrote it.
        """
        return Run._of(folder, manifests.read(folder))

    @staticmethod
    def _of(folder: Path, manifest: Manifest) -> Run:
        run = Run(folder, dict(manifest.identity))
        run.manifest = manifest
        return run

    def open(self, arrays: dict[str, ArraySpec], coords: dict[str, np.ndarray], about: dict[str, Any]) -> Run:
        """Make the folder, or take up the one that the same settings left.

        Raises
        ------
        StoreError
            if the folder holds something else or cannot be written.
        """
        fresh = not self.is_held()
        try:
            self._open(about)
            with translate_os_errors(f"run folder {str(self.folder)!r}"):
                self._lay(arrays, coords)
        except BaseException:
            if fresh:
                self.unlock()
            raise
        return self

    def _open(self, about: dict[str, Any]) -> None:
        """Take the folder, and its manifest or a new one."""
        with translate_os_errors(f"run folder {str(self.folder)!r}"):
            if manifests.is_run(self.folder):
                self.lock()
                self._take_up(about)
                return
            if self.folder.exists() and (not self.folder.is_dir() or any(map(_is_foreign, self.folder.iterdir()))):
                raise StoreError(f"{str(self.folder)!r} exists and is no run folder; give another --out")
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock()
            if self.is_held():
                remove_leftovers(self.folder)
            # first of all, so that a folder that is left half made is known for what it is
            self.manifest = Manifest(self.identity, LAYING, **about)
            self.save()

    def _take_up(self, about: dict[str, Any]) -> None:
        """Go on with the run that lies in this folder, if it is this one."""
        earlier = Run._of(self.folder, manifests.repair(self.folder))
        different = _differences(earlier.identity, self.identity)
        if different:
            raise StoreError(
                f"{str(self.folder)!r} holds a run made with other settings ({different}); "
                "give another --out, or the settings it was made with"
            )
        self.manifest = earlier.manifest.completed_by({"status": RUNNING} | about)
        if self.is_held():
            remove_leftovers(self.folder)

    def lock(self) -> None:
        """Take this folder for this process, until `unlock` or its end, however it ends.

        The lock is the operating system's, so that none is left behind by a process that was killed. File systems
        that know no locks are used without.

        Raises
        ------
        StoreError
            if another process writes the folder; its owner is named.
        """
        place = self.folder.resolve()
        if place in _held:
            return
        lock = filelock.FileLock(self.folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise StoreError(
                f"run folder {str(self.folder)!r} is being written by {self.owner()}; wait for it, stop it, "
                "or give another --out"
            ) from None
        except (OSError, RuntimeError):  # no locks here, or nothing can be written: that shows by itself
            if (self.folder / LOCK).is_dir():
                raise StoreError(f"{str(self.folder / LOCK)!r} is a folder where the lock lies; move it away") from None
            return
        _held[place] = lock
        owner = json.dumps({"host": socket.gethostname(), "process": os.getpid()})
        with translate_os_errors(f"run folder {str(self.folder)!r}"):
            write_atomically(self.folder / OWNER, lambda p: p.write_text(owner, encoding="utf-8"))

    def unlock(self) -> None:
        """Let other processes write this folder."""
        lock = _held.pop(self.folder.resolve(), None)
        if lock is not None:
            (self.folder / OWNER).unlink(missing_ok=True)
            lock.release()

    @contextmanager
    def held(self) -> Iterator[Run]:
        """Lend this folder, locked; let it go in the end, also after an exception."""
        self.lock()
        try:
            yield self
        finally:
            self.unlock()

    def is_held(self) -> bool:
        """Does this process hold the lock?"""
        return self.folder.resolve() in _held

    def owner(self) -> str:
        """Return in words who holds the lock, as far as that was written down."""
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            owner = json.loads((self.folder / OWNER).read_text(encoding="utf-8"))
            return f"process {owner['process']} on {owner['host']}"
        return "another process"

    def _lay(self, arrays: dict[str, ArraySpec], coords: dict[str, np.ndarray]) -> None:
        """Write what is missing of the arrays' metadata and coordinates; chunks that lie there stay."""
        (self.folder / UNITS).mkdir(parents=True, exist_ok=True)
        known = self.manifest.layout
        if not known or not self.holds(known):
            self.manifest.layout = lay(self.folder, arrays, coords)
        if self.manifest.layout != known or self.manifest.status == LAYING:
            if self.manifest.status == LAYING:
                self.manifest.status = RUNNING
            self.save()

    def save(self) -> None:
        """Write the manifest."""
        with translate_os_errors(f"run folder {str(self.folder)!r}"):
            manifests.write(self.folder, self.manifest)

    @property
    def arrays(self) -> Any:
        """The zarr group of arrays."""
        return zarr.open_group(self.folder / ARRAYS, mode="r+", zarr_format=2, use_consolidated=False)

    def land(self, unit: str, pieces: dict[str, tuple[tuple[slice | int, ...], np.ndarray]]) -> None:
        """Store what one work unit made; `pieces` maps an array to a whole-chunk region and its values."""
        record: dict[str, str] = {}
        # a chunk of zeros is written as well: its file is the proof that it was made
        whole = zarr.config.set({"array.write_empty_chunks": True})
        with translate_os_errors(f"run folder {str(self.folder)!r}"), whole:
            root = self.arrays
            for name, (region, values) in pieces.items():
                array = root[name]
                array[region] = values
                for path in self._chunks(name, array, region):
                    record[path.relative_to(self.folder).as_posix()] = hash_file(path)
            text = text_of_record(record)
            write_atomically(self._record(unit), lambda p: p.write_text(text, encoding="utf-8"))

    def _chunks(self, name: str, array: Any, region: Sequence[slice | int]) -> Iterator[Path]:
        axes = []
        for part, length, chunk in zip(region, array.shape, array.chunks, strict=True):
            start, stop, _ = part.indices(length) if isinstance(part, slice) else (part, part + 1, 1)
            axes.append(range(start // chunk, (stop - 1) // chunk + 1))
        for index in product(*axes):
            yield self.folder / ARRAYS / name / ".".join(map(str, index))

    def _record(self, unit: str) -> Path:
        return self.folder / UNITS / f"{unit}.json"

    def is_done(self, unit: str) -> bool:
        """Has this unit landed, and is every byte of it still there?"""
        return self.record(unit) is not None

    def record(self, unit: str) -> dict[str, str] | None:
        """Return the files of a landed unit with their SHA-256, or None where it has to be made (again).

        It has where the record is not as records are written, or not the one that a complete run noted.
        """
        noted = self.manifest.units.get(unit)
        with suppress(OSError, ValueError, RecursionError):
            path = self._record(unit)
            text = path.read_text(encoding="utf-8")
            record = json.loads(text)
            is_ours = isinstance(record, dict) and text_of_record(record) == text and not path.is_symlink()
            if is_ours and record and noted in (None, record) and self.holds(record):
                return dict(record)
        return None

    def forget(self, unit: str) -> None:
        """Forget that a unit has landed: it is to be made again."""
        self.manifest.units.pop(unit, None)
        with translate_os_errors(f"run folder {str(self.folder)!r}"):
            self._record(unit).unlink(missing_ok=True)

    def holds(self, files: dict[str, Any]) -> bool:
        """Are all these files (with their SHA-256) here, every byte of them, and no link in their place?"""
        with suppress(OSError, ValueError):
            paths = {self.folder / file: known for file, known in files.items()}
            return all(not path.is_symlink() and hash_file(path) == known for path, known in paths.items())
        return False

    def write(self, name: str, write: Callable[[Path], Any]) -> Path:
        """Write one table or figure atomically and note its checksum for the manifest."""
        path = self.folder / name
        with translate_os_errors(f"run folder {str(self.folder)!r}"):
            write_atomically(path, write)
        return self.note_file(path)

    def note_file(self, path: Path) -> Path:
        """Note the checksum of a file that was written to the folder."""
        self.manifest.files[path.relative_to(self.folder).as_posix()] = hash_file(path)
        return path

    def is_complete(self) -> bool:
        """Has the run ended, and are all its tables and figures as they were written?"""
        files = self.manifest.files
        return self.manifest.is_complete and bool(files) and self.holds(files)

    def check(self, names: Iterable[str]) -> None:
        """Refuse to go on where one of these files is not what was written.

        Raises
        ------
        StoreError
            that names the file.
        """
        files = self.manifest.files
        for name in names:
            if not (self.folder / name).is_file():
                raise StoreError(
                    f"run {str(self.folder)!r} has no {Path(name).name} yet; run its command again to finish it"
                )
            if name in files and not self.holds({name: files[name]}):
                raise StoreError(
                    f"run {str(self.folder)!r}: {name} has changed since it was written; "
                    "its own command makes it again, `featmap verify` lists all that is damaged"
                )

    def note_part(self, folder: Path) -> None:
        """Note a run folder that lies, or is about to lie, inside this one and belongs to it."""
        name = folder.relative_to(self.folder).as_posix()
        if name not in self.manifest.parts:
            self.manifest.parts.append(name)
            self.save()


def text_of_record(record: dict[str, str]) -> str:
    """Return the text of a work unit's record."""
    return json.dumps(record, indent=0)


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Turn whatever a damaged run folder makes a reader stumble over into one line; errors of ours pass."""
    try:
        yield
    except (FeatmapError, MemoryError):
        raise
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise StoreError(
            f"run {str(folder)!r} cannot be read ({what}); `featmap verify` names what is damaged in it, "
            "its own command mends that"
        ) from error


def _is_foreign(path: Path) -> bool:
    """Is this anything but what a write that was cut off leaves behind?"""
    if path.name == Path(manifests.COPY).parent.name and path.is_dir():  # a first manifest is moved to there
        return any(map(_is_foreign, path.iterdir()))
    return path.name not in (LOCK, OWNER) and not is_leftover(path.name)


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Name the first settings in which two identities differ."""
    flat_old, flat_new = dict(_flat(old)), dict(_flat(new))
    keys = [k for k in (*flat_new, *flat_old) if flat_old.get(k) != flat_new.get(k)]
    shown = [f"{k}: {_brief(flat_old.get(k))} there, {_brief(flat_new.get(k))} here" for k in dict.fromkeys(keys)]
    return "; ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")


def _brief(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, dict):
        for key, value in values.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(values, list) and any(isinstance(v, (dict, list)) for v in values):
        for k, value in enumerate(values, 1):
            yield from _flat(value, f"{prefix}.{k}")
    else:
        yield prefix, values


def open_arrays(folder: str | Path) -> xr.Dataset:
    """Return the labelled arrays of a run folder, read lazily."""
    run = Run.read(Path(folder))
    with readable(run.folder):
        if not run.holds(run.manifest.layout):
            raise StoreError(
                f"run {str(folder)!r}: the metadata of its arrays are damaged; its own command mends them, "
                "`featmap verify` names them"
            )
        return xr.open_zarr(run.folder / ARRAYS, consolidated=True)


def read_frame(folder: Path, name: str) -> pd.DataFrame:
    """Read a table of a finished run.

    Parameters
    ----------
    folder : Path
        Run folder, or a folder inside it.
    name : str
        Path of the table without its ending.

    Returns
    -------
    pandas.DataFrame
        With the labels of its rows as index.

    Raises
    ------
    FeatmapError
        If the run has not written it.
    """
    path = folder / f"{name}.parquet"
    if not path.is_file():
        raise FeatmapError(f"run {str(folder)!r} has no {path.name} yet; run its command again to finish it")
    return pd.read_parquet(path)
