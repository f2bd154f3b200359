"""Run folders on the disk: their locks, and those of starts that failed, which must not refuse the next start."""

from __future__ import annotations

import json
import os
import shutil
import socket
from contextlib import suppress
from pathlib import Path

import filelock

from featmap.errors import IncompleteError, StoreError
from featmap.files import is_leftover, translate_os_errors, write_atomically
from featmap.runs.array_layout import ARRAYS
from featmap.runs.manifest import COPY, MANIFEST, UNITS, Manifest

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
            raise StoreError(f"{str(folder / LOCK)!r} is a folder where the lock lies; move it away") from None
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
