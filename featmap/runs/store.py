"""The run folder: arrays, tables, figures and the manifest of one command; complete, resumable, self-describing.

A work unit lands in two steps: its array chunks, each replaced atomically, then a small record with their SHA-256. A
unit without a record, or whose chunks differ from it, is computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import numpy as np
import zarr

from featmap.errors import FeatmapError, StoreError
from featmap.files import hash_file, remove_leftovers, translate_os_errors, write_atomically
from featmap.runs import folder_layout
from featmap.runs import manifest as manifests
from featmap.runs.folder_layout import ARRAYS, OWNER, ArraySpec, Inputs, region_chunks, write_layout
from featmap.runs.manifest import PREPARING, RUNNING, UNITS, Manifest, translate_read_errors
from featmap.stats.frames import read_table

if TYPE_CHECKING:  # a descent starts without them
    import pandas as pd
    import xarray as xr

_locks: dict[Path, filelock.BaseFileLock] = {}
"""Locks of this process by folder: all `Run` objects of a folder share one."""


class Run:
    """A run folder; what cannot be written raises a StoreError that says why.

    Parameters
    ----------
    folder : Path
        The folder.
    identity : dict
        Everything that the results depend on, as plain JSON values; a folder of another identity is refused.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder, self.identity = folder, identity
        self.manifest = Manifest(identity)
        self._started = self._created = False  # whether this object began the run, and made its folder

    @staticmethod
    def read(folder: Path) -> Run:
        """Read the run in a folder.

        Parameters
        ----------
        folder : Path
            Run folder.

        Returns
        -------
        Run
            Not locked.

        Raises
        ------
        StoreError
            If there is none, its manifest is damaged, or a newer featmap wrote it.
        """
        return Run._from_manifest(folder, manifests.read(folder))

    @staticmethod
    def _from_manifest(folder: Path, manifest: Manifest) -> Run:
        """Return the run that a manifest describes."""
        run = Run(folder, dict(manifest.identity))
        run.manifest = manifest
        return run

    def open(
        self,
        arrays: dict[str, ArraySpec],
        coords: dict[str, np.ndarray],
        about: dict[str, Any],
        inputs: Inputs | None = None,
    ) -> Run:
        """Create the folder, or resume the one that the same settings left.

        Parameters
        ----------
        arrays : dict of ArraySpec
            Arrays by name.
        coords : dict of numpy.ndarray
            Labels along the arrays' dimensions, by dimension.
        about : dict
            Fields of the manifest by name; a run that is resumed keeps the values that it has.
        inputs : mapping of bytes, optional
            Files that the results depend on, by path in the folder, such as directions.

        Returns
        -------
        Run
            This run, locked by this process.

        Raises
        ------
        StoreError
            If the folder holds something else, cannot be written, or another process writes it.
        """
        was_locked = self.is_locked()
        try:
            self._open(about)
            with translate_os_errors(f"run folder {str(self.folder)!r}"):
                self._write_layout(arrays, coords, inputs or {})
        except BaseException as error:
            self._withdraw(error)
            if not was_locked:  # an outer caller that holds the lock goes on holding it
                self.unlock()
            raise
        return self

    def _open(self, about: dict[str, Any]) -> None:
        """Lock the folder, and read or create its manifest."""
        with translate_os_errors(f"run folder {str(self.folder)!r}"):
            if manifests.is_run(self.folder):
                self.lock()
                if not self._resume(about):
                    self._begin(about)
                return
            is_new = not self.folder.exists()
            if not is_new and (not self.folder.is_dir() or any(map(folder_layout.is_foreign, self.folder.iterdir()))):
                raise StoreError(f"{str(self.folder)!r} exists and is not a run folder; choose another folder")
            self.folder.mkdir(parents=True, exist_ok=True)
            self._created = is_new
            self.lock()
            if self.is_locked():  # see `_resume`
                remove_leftovers(self.folder)
            self._begin(about)

    def _begin(self, about: dict[str, Any]) -> None:
        """Write the first manifest."""
        self._started = True
        # the manifest comes first, so that a folder of which only a part was written is known as a run folder
        self.manifest = Manifest(self.identity, PREPARING, **about)
        self.save()

    def _resume(self, about: dict[str, Any]) -> bool:
        """Read the manifest of an earlier run with the same identity; False where one of another was never used."""
        earlier = Run._from_manifest(self.folder, manifests.repair(self.folder))
        differences = manifests.compare_identities(earlier.identity, self.identity)
        if differences and self.is_locked() and folder_layout.is_unused(self.folder, earlier.manifest):
            folder_layout.clear(self.folder)  # of a start that was killed, or failed under an earlier version
            return False
        if differences:
            raise StoreError(
                f"{str(self.folder)!r} holds a run with other settings ({differences}); choose another folder, or the "
                "settings of that run"
            )
        self.identity = earlier.identity  # of a recipe that has been renamed since: the folder keeps its own name
        self.manifest = earlier.manifest.with_defaults({"status": RUNNING} | about)
        if self.is_locked():  # without a lock, what looks like a leftover may be a write of another process
            remove_leftovers(self.folder)
        return True

    def _withdraw(self, error: BaseException) -> None:
        """Remove the folder after an error, if this object began it and nothing has been computed in it."""
        if self._started and self.is_locked():
            folder_layout.withdraw(self.folder, self.manifest, error, keep_folder=not self._created)

    def lock(self) -> None:
        """Lock the folder for this process.

        The lock is the operating system's: it lasts until `unlock` or the end of the process, however it ends. File
        systems without locks are used without.

        Raises
        ------
        StoreError
            If another process writes the folder; the message names the process.
        """
        folder = self.folder.resolve()
        if folder in _locks:  # a second lock of this process on the same file would be refused
            return
        lock = folder_layout.acquire_lock(self.folder)
        if lock is not None:
            _locks[folder] = lock
            folder_layout.write_owner(self.folder)

    def unlock(self) -> None:
        """Release the lock of this process, if it holds one."""
        lock = _locks.pop(self.folder.resolve(), None)
        if lock is not None:
            # before the release: afterwards the file may be the next owner's
            (self.folder / OWNER).unlink(missing_ok=True)
            lock.release()

    @contextmanager
    def locked(self) -> Iterator[Run]:
        """Lock the folder, and unlock it when the context is left, also by an exception.

        A folder that `open` began is removed by an exception before anything was computed: it would refuse other
        settings.

        Yields
        ------
        Run
            This run.

        Raises
        ------
        StoreError
            If another process writes the folder.
        """
        self.lock()
        try:
            yield self
        except BaseException as error:
            self._withdraw(error)
            raise
        finally:
            self.unlock()

    def is_locked(self) -> bool:
        """Check whether this process holds the lock.

        Returns
        -------
        bool
            False where another process holds it.
        """
        return self.folder.resolve() in _locks

    def owner(self) -> str:
        """Name the process that holds the lock.

        Returns
        -------
        str
            Such as "process 17 on node3"; "another process" where that was not recorded.
        """
        return folder_layout.lock_owner(self.folder)

    def _write_layout(self, arrays: dict[str, ArraySpec], coords: dict[str, np.ndarray], inputs: Inputs) -> None:
        """Write the arrays' metadata, coordinates and inputs where they are missing or damaged; chunks stay."""
        (self.folder / UNITS).mkdir(parents=True, exist_ok=True)
        before = self.manifest.layout
        # only what is missing or damaged is written: a second call must leave every byte and time as it is
        if not before or not self.are_intact(before):
            self.manifest.layout = write_layout(self.folder, arrays, coords, inputs)
        if self.manifest.layout != before or self.manifest.status == PREPARING:
            if self.manifest.status == PREPARING:
                self.manifest.status = RUNNING
            self.save()

    def save(self) -> None:
        """Write the manifest and its copy."""
        with translate_os_errors(f"run folder {str(self.folder)!r}"):
            manifests.write(self.folder, self.manifest)

    @property
    def arrays(self) -> Any:
        """The zarr group of arrays."""
        return zarr.open_group(self.folder / ARRAYS, mode="r+", zarr_format=2, use_consolidated=False)

    def land(self, unit: str, results: dict[str, tuple[tuple[slice | int, ...], np.ndarray]]) -> None:
        """Store the results of one work unit.

        Parameters
        ----------
        unit : str
            Name of the unit.
        results : dict of (tuple of slice or int, numpy.ndarray)
            By array: the region, which consists of whole chunks, and its values.
        """
        record: dict[str, str] = {}
        # a chunk of zeros is written as well: its file is the proof that it was computed
        every_chunk = zarr.config.set({"array.write_empty_chunks": True})
        with translate_os_errors(f"run folder {str(self.folder)!r}"), every_chunk:
            root = self.arrays
            for name, (region, values) in results.items():
                array = root[name]
                # zarr moves each finished chunk into place, so a killed process leaves old or new chunks, no half ones
                array[region] = values
                for chunk in region_chunks(region, array.shape, array.chunks):
                    record[f"{ARRAYS}/{name}/{chunk}"] = hash_file(self.folder / ARRAYS / name / chunk)
            # the record comes last: it exists only if every chunk that it names is on disk
            text = manifests.record_text(record)
            write_atomically(self._record_path(unit), lambda p: p.write_text(text, encoding="utf-8"))

    def _record_path(self, unit: str) -> Path:
        """Return the file of a unit's record."""
        return self.folder / UNITS / f"{unit}.json"

    def is_done(self, unit: str) -> bool:
        """Check whether a unit has landed and every byte of it is still there.

        Parameters
        ----------
        unit : str
            Name of the unit.

        Returns
        -------
        bool
            False where it has to be computed (again).
        """
        return self.read_record(unit) is not None

    def read_record(self, unit: str) -> dict[str, str] | None:
        """Read the record of a unit, and check its files.

        Parameters
        ----------
        unit : str
            Name of the unit.

        Returns
        -------
        dict of str or None
            SHA-256 by file name. None where the unit has not landed, a file of it is damaged, or the record is not the
            text that `land` writes or not the one in the manifest of a complete run.
        """
        path, recorded = self._record_path(unit), self.manifest.units.get(unit)
        with suppress(OSError, ValueError):
            record = manifests.read_record(path)
            # a complete run knows its records: one that was replaced together with its chunks does not count
            if record and not path.is_symlink() and recorded in (None, record) and self.are_intact(record):
                return record
        return None

    def forget(self, unit: str) -> None:
        """Delete the record of a unit, so that the unit is computed again.

        Parameters
        ----------
        unit : str
            Name of the unit.
        """
        self.manifest.units.pop(unit, None)
        with translate_os_errors(f"run folder {str(self.folder)!r}"):
            self._record_path(unit).unlink(missing_ok=True)

    def are_intact(self, files: dict[str, Any]) -> bool:
        """Check that files are as they were written.

        Parameters
        ----------
        files : dict of str
            SHA-256 by file name.

        Returns
        -------
        bool
            False where a file is missing, has changed or is a link.
        """
        with suppress(OSError, ValueError):  # an unreadable file is not intact; a name may hold a null byte
            return all(
                not (path := self.folder / name).is_symlink() and hash_file(path) == checksum
                for name, checksum in files.items()
            )
        return False

    def write(self, name: str, write: Callable[[Path], Any]) -> Path:
        """Write one table or figure atomically, and register it.

        Parameters
        ----------
        name : str
            Path in the folder.
        write : callable
            Writes the file to the path that it is called with.

        Returns
        -------
        Path
            The file.
        """
        path = self.folder / name
        with translate_os_errors(f"run folder {str(self.folder)!r}"):
            write_atomically(path, write)
        return self.register_file(path)

    def register_file(self, path: Path) -> Path:
        """Add the checksum of a file to the manifest, without writing the manifest.

        Parameters
        ----------
        path : Path
            A file in the folder.

        Returns
        -------
        Path
            The same file.
        """
        self.manifest.files[path.relative_to(self.folder).as_posix()] = hash_file(path)
        return path

    def is_complete(self) -> bool:
        """Check whether the run has ended and its tables and figures are intact.

        Returns
        -------
        bool
            False also for a run without tables and figures.
        """
        return self.manifest.is_complete and bool(self.manifest.files) and self.are_intact(self.manifest.files)

    def check(self, names: Iterable[str]) -> None:
        """Check that files of the run are as they were written.

        Parameters
        ----------
        names : iterable of str
            Paths in the folder.

        Raises
        ------
        StoreError
            If a file is missing or has changed; the message names it.
        """
        files = self.manifest.files
        for name in names:
            if not (self.folder / name).is_file():
                raise StoreError(
                    f"run {str(self.folder)!r} has no {Path(name).name} yet; run its command again to finish it"
                )
            if name in files and not self.are_intact({name: files[name]}):
                raise StoreError(
                    f"run {str(self.folder)!r}: {name} has changed since it was written; "
                    "the run's own command writes it again, `featmap verify` lists all damage"
                )

    def register_part(self, folder: Path) -> None:
        """Add a run folder inside this one to the manifest, and write the manifest.

        Parameters
        ----------
        folder : Path
            The inner folder; it need not exist yet.
        """
        name = folder.relative_to(self.folder).as_posix()
        if name not in self.manifest.parts:
            self.manifest.parts.append(name)
            self.save()


def open_arrays(folder: str | Path) -> xr.Dataset:
    """Open the labelled arrays of a run folder.

    Parameters
    ----------
    folder : path
        Run folder of any command.

    Returns
    -------
    xarray.Dataset
        Read lazily, chunk by chunk.

    Raises
    ------
    StoreError
        If there is no run, or its manifest or metadata are damaged.
    """
    import xarray as xr

    run = Run.read(Path(folder))
    with translate_read_errors(run.folder):
        # before zarr reads them: damaged metadata may describe another array that can be read as well
        if not run.are_intact(run.manifest.layout):
            raise StoreError(
                f"run {str(folder)!r}: the metadata of its arrays, or its directions, are damaged; the run's own "
                "command repairs them, `featmap verify` lists all damage"
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
        With the labels of its rows as index; nullable columns of earlier versions are float64 too.

    Raises
    ------
    FeatmapError
        If the run has not written it.
    """
    path = folder / f"{name}.parquet"
    if not path.is_file():
        raise FeatmapError(f"run {str(folder)!r} has no {path.name} yet; run its command again to finish it")
    return read_table(path)
