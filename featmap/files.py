"""Atomic writes, checksums, safe file names, and the removal of what interrupted writes leave behind."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from featmap.errors import StoreError

# temporary names: ours (`.name.PROCESS.part.suffix`) and zarr's
_LEFTOVER = re.compile(r"\..*\.\d+\.part(\..*)?|.*\.[0-9a-f]{32}\.partial", re.DOTALL)
MAX_NAME_BYTES = 80
"""Longest file name that `safe_file_name` makes, in bytes of UTF-8."""


@contextmanager
def translate_os_errors(target: str) -> Iterator[None]:
    """Translate the operating system's errors on writing into messages of one line.

    Parameters
    ----------
    target : str
        What is being written, as the message names it.

    Yields
    ------
    None
        Nothing; the context writes.

    Raises
    ------
    StoreError
        In place of an `OSError` inside the context; the message says what to do.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(f"{target}: no space left; free some, then repeat the call to resume") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StoreError(f"{target}: not writable ({error.strerror}); choose another folder") from error
        if error.errno in (errno.EISDIR, errno.EEXIST, errno.ENOTDIR) and error.filename is not None:
            path = os.fsdecode(error.filename2 or error.filename)
            raise StoreError(
                f"{target}: {path!r} is in the way ({error.strerror}); move it, or choose another folder"
            ) from error
        if error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.EINVAL):
            raise StoreError(f"{target}: cannot be created ({error.strerror}); choose another folder") from error
        raise StoreError(f"{target}: {error.strerror or error}; correct this and repeat the call to resume") from error


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file so that it exists completely or not at all.

    `write` gets a temporary path in the same folder; its file is moved to `path` in one step.

    Parameters
    ----------
    path : Path
        Path of the file; its folder is created if it does not exist.
    write : callable
        Function of one path that writes the content there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def hash_file(path: Path) -> str:
    """Compute the SHA-256 of a file.

    Parameters
    ----------
    path : Path
        Path of the file.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def summarise_names(names: Sequence[str]) -> dict[str, Any]:
    """Summarise a long list of names, so that a change of any of them is seen.

    Parameters
    ----------
    names : sequence of str
        One name or more.

    Returns
    -------
    dict
        Their `count`, the `first`, the `last` and the `sha256` of all, joined by line breaks.
    """
    text = "\n".join(names)
    return {
        "count": len(names),
        "first": names[0],
        "last": names[-1],
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


def safe_file_name(label: str) -> str:
    """Make a file name from a label, valid on every file system.

    Parameters
    ----------
    label : str
        Any text, such as a layer's name.

    Returns
    -------
    str
        Letters, digits, ``.``, ``_`` and ``-`` only, at most `MAX_NAME_BYTES` bytes; never a hidden file's name, and
        never a path.
    """
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in label).lstrip(".")
    return name.encode()[:MAX_NAME_BYTES].decode(errors="ignore") or "-"


def is_leftover(name: str) -> bool:
    """Check whether a name is that of an interrupted write's temporary file.

    Parameters
    ----------
    name : str
        Name of a file or folder, without its path.

    Returns
    -------
    bool
        True for the temporary names of `write_atomically` and of zarr.
    """
    return _LEFTOVER.fullmatch(name) is not None


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that interrupted writes left in a folder.

    Only the process that holds the folder's lock may do this: another's temporary files may be in use.

    Parameters
    ----------
    folder : Path
        The folder, with all folders in it.
    """
    for path in [p for p in folder.rglob("*") if is_leftover(p.name)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def digest(identity: dict[str, Any]) -> str:
    """Compute a short hash of plain JSON values, independent of the order of keys.

    Parameters
    ----------
    identity : dict
        Values that JSON can hold.

    Returns
    -------
    str
        The first 10 hexadecimal digits of the SHA-256.
    """
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
