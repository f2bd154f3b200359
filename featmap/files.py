"""How files get onto the disk: whole or not at all, with a checksum; and what is left of writes that were cut off."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from featmap.errors import StoreError

# ours (`.name.PROCESS.part.suffix`) and zarr's own
_LEFTOVER = re.compile(r"\..*\.\d+\.part(\..*)?|.*\.[0-9a-f]{32}\.partial", re.DOTALL)
LONGEST = 80


@contextmanager
def clear_faults(what: str) -> Iterator[None]:
    """Turn the operating system's refusals to write into one line for the user."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(f"{what}: no space left; free some, then the same command goes on from here") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StoreError(f"{what}: not writable ({error.strerror}); give another folder with --out") from error
        if error.errno in (errno.EISDIR, errno.EEXIST, errno.ENOTDIR) and error.filename is not None:
            there = os.fsdecode(error.filename2 or error.filename)
            raise StoreError(
                f"{what}: {there!r} is in the way ({error.strerror}); move it away, or give another --out"
            ) from error
        if error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.EINVAL):
            raise StoreError(f"{what}: cannot be made ({error.strerror}); give another folder with --out") from error
        raise StoreError(f"{what}: {error.strerror or error}; the same command goes on once that is mended") from error


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` make a file beside `path`, then move it there in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_name(label: str) -> str:
    """Return a name as every file system takes it, at most `LONGEST` bytes, never hidden and never a way out."""
    plain = "".join(c if c.isalnum() or c in "._-" else "-" for c in label).lstrip(".")
    return plain.encode()[:LONGEST].decode(errors="ignore") or "-"


def is_leftover(name: str) -> bool:
    """Is this the name of what a write that was cut off leaves behind?"""
    return _LEFTOVER.fullmatch(name) is not None


def sweep(folder: Path) -> None:
    """Remove what writes that were cut off left in a folder; only for who holds its lock."""
    for path in [p for p in folder.rglob("*") if is_leftover(p.name)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
