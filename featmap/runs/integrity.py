"""Check a run folder against its manifest, byte by byte: faults are listed, nothing is changed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock

from featmap.errors import StoreError
from featmap.files import hash_file, is_leftover
from featmap.runs.folder_layout import LOCK, OWNER, chunk_names
from featmap.runs.manifest import (
    COPY,
    FORMAT,
    MANIFEST,
    UNITS,
    Manifest,
    is_newer,
    is_run,
    read,
    read_file,
    read_record,
    translate_read_errors,
)
from featmap.runs.store import Run

CHANGED, MISSING, FOREIGN, UNFINISHED = "changed", "missing", "foreign", "unfinished"
KINDS = (CHANGED, MISSING, FOREIGN, UNFINISHED)
PAGE = "`featmap atlas` writes it"


@dataclass(frozen=True)
class Fault:
    """One fault of a run folder.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    path : str
        File or array, relative to the folder.
    detail : str, default ""
        Further explanation.
    """

    kind: str
    path: str
    detail: str = ""

    def __str__(self) -> str:
        line = f"{self.kind}: {self.path}" + (f" ({self.detail})" if self.detail else "")
        return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)


@dataclass
class Inspection:
    """Result of inspecting a run folder.

    Parameters
    ----------
    folder : Path
        The run folder.
    faults : list of Fault
        Everything that is wrong; empty where the run is whole.
    files : int, default 0
        Files that were compared with their checksums.
    size : int, default 0
        Bytes of these files, manifests and records apart.
    units : int, default 0
        Work units that have landed.
    """

    folder: Path
    faults: list[Fault] = field(default_factory=list)
    files: int = 0
    size: int = 0
    units: int = 0

    def compare(self, name: str, checksum: Any, detail: str = "") -> None:
        """Compare one file with its checksum, and add a fault where they differ.

        Parameters
        ----------
        name : str
            File, relative to the folder.
        checksum : str
            Recorded SHA-256.
        detail : str, default ""
            Explanation for the fault.
        """
        path = self.folder / name
        if not path.is_file():
            self.faults.append(Fault(MISSING, name, detail))
            return
        self.files, self.size = self.files + 1, self.size + path.stat().st_size
        if path.is_symlink():
            self.faults.append(Fault(CHANGED, name, "a link where a file was written"))
        elif hash_file(path) != checksum:
            self.faults.append(Fault(CHANGED, name, detail))

    def summary(self) -> str:
        """Summarise the inspection in one line.

        Returns
        -------
        str
            Number of faults of each kind, files, megabytes and work units.
        """
        extent = f"{self.files} files, {self.size / 1e6:,.1f} MB, {self.units} work units"
        if not self.faults:
            return f"whole: {extent}; every checksum matches"
        counts = [(kind, sum(f.kind == kind for f in self.faults)) for kind in KINDS]
        listed = ", ".join(f"{n} {kind}" for kind, n in counts if n)
        count = "1 fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
        return f"{count} ({listed}) in {extent}"


def inspect(folder: Path, inner: bool = True) -> Inspection:
    """Compare a run folder with its manifest.

    Every chunk, table, figure and page is compared with the checksum that was recorded when it was written, the
    manifest with its own. A file that is not recorded is foreign; an array chunk that no work unit has computed yet is
    unfinished.

    Parameters
    ----------
    folder : Path
        Run folder.
    inner : bool, default True
        Inspect the runs inside it that belong to it, too.

    Returns
    -------
    Inspection
        All faults.

    Raises
    ------
    StoreError
        If there is no run folder, another process writes it, or another version of featmap wrote it.
    """
    require_unlocked(folder)
    inspection, manifest = Inspection(folder), None
    try:
        manifest = read(folder)
    except StoreError as error:
        if not is_run(folder) or is_newer(folder, error):
            raise
        kind = CHANGED if (folder / MANIFEST).is_file() else MISSING
        inspection.faults.append(Fault(kind, MANIFEST, f"the files are compared with its copy, {COPY}"))
    try:
        copy = read_file(folder / COPY)
    except StoreError:
        if manifest is None:
            raise StoreError(f"{str(folder / MANIFEST)!r} and its copy {COPY} are damaged; delete the folder") from None
        if manifest.format == FORMAT:  # format 1 has no copy
            inspection.faults.append(Fault(CHANGED if (folder / COPY).is_file() else MISSING, COPY))
    manifest = manifest or copy
    if manifest.format < FORMAT:
        raise StoreError(
            f"run {str(folder)!r} has format {manifest.format}, which lacks some checksums; "
            "the run's own command brings it up to date"
        )
    with translate_read_errors(folder):
        _check_files(inspection, manifest, inner)
    return inspection


def read_finished(folder: Path) -> Run:
    """Read a run that is finished.

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
        If there is none, its manifest is damaged, or it is not finished.
    """
    run = Run.read(folder)
    if not run.manifest.is_complete:
        raise StoreError(f"run {str(folder)!r} is not finished; run its command again to finish it")
    return run


def require_intact(folder: Path, pages: bool = True, parts: bool = True) -> None:
    """Check that a run is intact, before numbers are read from its files.

    Parameters
    ----------
    folder : Path
        Run folder.
    pages : bool, default True
        Whether damaged pages of an atlas count; not for the command that writes them again.
    parts : bool, default True
        Whether runs inside it count; not for the command that completes them.

    Raises
    ------
    StoreError
        If a file is damaged; the message names the first fault. Foreign files do no harm.
    """
    if read(folder).format < FORMAT:
        return  # some of its checksums were never recorded
    faults = [f for f in inspect(folder, parts).faults if f.kind != FOREIGN and (pages or f.detail != PAGE)]
    if faults:
        more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise StoreError(
            f"run {str(folder)!r} is damaged: {faults[0]}{more}; the run's own command repairs it, "
            "`featmap verify` lists all damage"
        )


def require_unlocked(folder: Path) -> None:
    """Check that no other process is writing a folder.

    Parameters
    ----------
    folder : Path
        Run folder.

    Raises
    ------
    StoreError
        If one is; the message names it.
    """
    run = Run(folder, {})
    if run.is_locked() or not (folder / LOCK).is_file():
        return
    try:
        filelock.FileLock(folder / LOCK).acquire(timeout=0).lock.release()
    except filelock.Timeout:
        raise StoreError(
            f"run folder {str(folder)!r} is being written by {run.owner()}; wait for it or stop it, then try again"
        ) from None
    except (OSError, RuntimeError):
        return  # a folder that cannot be locked cannot be written either


def _check_files(inspection: Inspection, manifest: Manifest, inner: bool) -> None:
    """Compare everything in a run folder with its manifest."""
    if not manifest.is_complete:
        detail = f"status {manifest.status}; the run's own command resumes it"
        inspection.faults.append(Fault(UNFINISHED, MANIFEST, detail))
    inspection.files += 2  # the manifest and its copy, compared before
    own_files = {MANIFEST, COPY, LOCK, OWNER}
    for files, detail in (
        (manifest.layout, "metadata, coordinates or directions"),
        (manifest.files, ""),
        (manifest.added, PAGE),
        (manifest.atlas.get("pages", {}), PAGE),
    ):
        own_files |= set(files)
        for name, checksum in files.items():
            inspection.compare(name, checksum, detail)
    chunks = _check_units(inspection, manifest)
    _check_chunks(inspection, manifest.layout, chunks)
    own_files |= chunks | {f"{UNITS}/{name}.json" for name in _own_units(inspection.folder, manifest)}
    parts = list(manifest.parts)
    inspection.faults += [Fault(FOREIGN, *words) for words in _find_foreign(inspection.folder, own_files, parts)]
    for part in parts if inner else ():
        _check_part(inspection, part)


def _recorded_units(folder: Path) -> list[str]:
    """Return the units that have a record."""
    return sorted(p.stem for p in (folder / UNITS).glob("*.json") if not is_leftover(p.name))


def _own_units(folder: Path, manifest: Manifest) -> list[str]:
    """Return the units that belong to a run: those in the manifest; before it is complete, all with a record too."""
    units = manifest.units
    return sorted(units if units and manifest.is_complete else {*units, *_recorded_units(folder)})


def _check_units(inspection: Inspection, manifest: Manifest) -> set[str]:
    """Compare each unit's record with the manifest, and its chunks with the record; return the run's own chunks."""
    chunks: set[str] = set()
    for name in _own_units(inspection.folder, manifest):
        file, recorded = f"{UNITS}/{name}.json", manifest.units.get(name)
        record = read_record(inspection.folder / file)
        if record is None or recorded not in (None, record):
            kind = CHANGED if (inspection.folder / file).is_file() else UNFINISHED if recorded is None else MISSING
            inspection.faults.append(Fault(kind, file, f"record of unit {name}"))
        # the manifest comes first: a changed record must not vouch for a chunk that was changed with it
        for chunk, checksum in (recorded or record or {}).items():
            chunks.add(chunk)
            inspection.compare(chunk, checksum, f"unit {name}")
        inspection.units += record is not None
        inspection.files += record is not None
    return chunks


def _check_chunks(inspection: Inspection, layout: dict[str, str], chunks: set[str]) -> None:
    """Add the arrays that have chunks which no unit has computed."""
    written = chunks | set(layout)
    for meta in sorted(name for name in layout if name.endswith("/.zarray")):
        try:
            spec = json.loads((inspection.folder / meta).read_text(encoding="utf-8"))
            names = list(chunk_names(tuple(spec["shape"]), tuple(spec["chunks"])))
        except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
            continue  # the file is damaged, and listed already
        array = meta.removesuffix("/.zarray")
        missing = [c for c in names if f"{array}/{c}" not in written]
        if missing:
            detail = f"{len(missing)} of {len(names)} chunks are still to be computed, the first {missing[0]}"
            inspection.faults.append(Fault(UNFINISHED, array, detail))


def _find_foreign(folder: Path, own_files: set[str], parts: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the files that are not recorded, with what they seem to be."""
    for place, below, files in os.walk(folder):
        here = Path(place).relative_to(folder)
        for name in list(below):
            inner = (here / name).as_posix()
            if inner in parts:
                below.remove(name)
            elif is_run(folder / inner) and f"{inner}/{MANIFEST}" not in own_files:
                below.remove(name)
                yield inner, "a run folder of its own"
            elif (folder / inner).is_symlink():
                yield inner, "a link"
        for name in sorted(files):
            inner = (here / name).as_posix()
            if inner not in own_files:
                yield inner, "left by an interrupted write; the run's own command removes it" * is_leftover(name)


def _check_part(inspection: Inspection, part: str) -> None:
    """Inspect a run inside a run."""
    if not is_run(inspection.folder / part):
        inspection.faults.append(Fault(MISSING, part, "a run folder that belongs to this run"))
        return
    inner = inspect(inspection.folder / part)
    inspection.faults += [Fault(f.kind, f"{part}/{f.path}", f.detail) for f in inner.faults]
    inspection.files += inner.files
    inspection.size += inner.size
    inspection.units += inner.units
