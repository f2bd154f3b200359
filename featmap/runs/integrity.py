"""Is a run folder what its manifest says, byte by byte? Faults are found and named; nothing is changed."""

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
from featmap.runs.array_layout import chunk_names
from featmap.runs.manifest import COPY, FORMAT, MANIFEST, UNITS, Manifest, is_newer, is_run, parse
from featmap.runs.store import LOCK, OWNER, Run, readable, text_of_record

CHANGED, MISSING, FOREIGN, UNFINISHED = "changed", "missing", "foreign", "unfinished"
PAGE = "`featmap atlas` makes it"
KINDS = (CHANGED, MISSING, FOREIGN, UNFINISHED)


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a run folder: its kind (see `KINDS`), the file or array, and what more is known."""

    kind: str
    path: str
    detail: str = ""

    def __str__(self) -> str:
        line = f"{self.kind}: {self.path}" + (f" ({self.detail})" if self.detail else "")
        return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)


@dataclass
class Findings:
    """What was found in a run folder.

    Attributes
    ----------
    folder : the run folder
    faults : everything that is wrong; empty where the run is whole
    files, size : how many files were compared with their checksums, and their bytes
    units : how many work units have landed
    """

    folder: Path
    faults: list[Fault] = field(default_factory=list)
    files: int = 0
    size: int = 0
    units: int = 0

    def compare(self, name: str, known: Any, detail: str = "") -> None:
        """Hold one file to its SHA-256."""
        path = self.folder / name
        if not path.is_file():
            self.faults.append(Fault(MISSING, name, detail))
            return
        self.files, self.size = self.files + 1, self.size + path.stat().st_size
        if path.is_symlink():
            self.faults.append(Fault(CHANGED, name, "a link where a file was written"))
        elif hash_file(path) != known:
            self.faults.append(Fault(CHANGED, name, detail))

    def summary(self) -> str:
        """Return what was found in one line."""
        seen = f"{self.files} files, {self.size / 1e6:,.1f} MB, {self.units} work units"
        if not self.faults:
            return f"whole: {seen}; every checksum holds"
        counts = [(kind, sum(f.kind == kind for f in self.faults)) for kind in KINDS]
        said = ", ".join(f"{n} {kind}" for kind, n in counts if n)
        count = "1 fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
        return f"{count} ({said}) in {seen}"


def inspect(folder: Path, inner: bool = True) -> Findings:
    """Return everything that is wrong with a run folder and, if `inner`, with the runs inside it that belong to it.

    Every chunk, table, figure and page is held to the checksum that was noted when it was written, the manifest to
    its own. A file that nobody noted is foreign; an array chunk that no work unit has made yet is unfinished.

    Raises
    ------
    StoreError
        if there is no run folder, another process writes it, or another version of featmap made it.
    """
    refuse_busy(folder)
    found, manifest = Findings(folder), None
    try:
        manifest = Run.read(folder).manifest
    except StoreError as error:
        if not is_run(folder) or is_newer(folder, error):
            raise
        kind = CHANGED if (folder / MANIFEST).is_file() else MISSING
        found.faults.append(Fault(kind, MANIFEST, f"what follows is held to its copy, {COPY}"))
    try:
        copy = parse(folder / COPY)
    except StoreError:
        if manifest is None:
            raise StoreError(f"{str(folder / MANIFEST)!r} and its copy {COPY} are damaged; delete the folder") from None
        if manifest.format == FORMAT:
            found.faults.append(Fault(CHANGED if (folder / COPY).is_file() else MISSING, COPY))
    manifest = manifest or copy
    if manifest.format < FORMAT:
        raise StoreError(
            f"run {str(folder)!r} has format {manifest.format}, without checksums of everything; "
            "its own command brings it up to date"
        )
    with readable(folder):
        _hold(found, manifest, inner)
    return found


def require(folder: Path, pages: bool = True, parts: bool = True) -> None:
    """Refuse a run whose files are not what was written: no number shall be read off a damaged file.

    Atlas pages count only where `pages` is set, runs inside it where `parts` is: the command that makes them again
    shall not stumble over them.

    Raises
    ------
    StoreError
        that names the first fault; foreign files do no harm.
    """
    if Run.read(folder).manifest.format < FORMAT:
        return  # its checksums are not known
    faults = [f for f in inspect(folder, parts).faults if f.kind != FOREIGN and (pages or f.detail != PAGE)]
    if faults:
        more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise StoreError(
            f"run {str(folder)!r} is damaged: {faults[0]}{more}; its own command mends it, `featmap verify` lists all"
        )


def refuse_busy(folder: Path) -> None:
    """Refuse a folder that another process is writing, with its owner."""
    run = Run(folder, {})
    if run.is_held() or not (folder / LOCK).is_file():
        return
    try:
        filelock.FileLock(folder / LOCK).acquire(timeout=0).lock.release()
    except filelock.Timeout:
        raise StoreError(
            f"run folder {str(folder)!r} is being written by {run.owner()}; wait for it or stop it, then try again"
        ) from None
    except (OSError, RuntimeError):
        return  # a folder that cannot be locked cannot be written either


def _hold(found: Findings, manifest: Manifest, inner: bool) -> None:
    """Hold everything in a run folder to its manifest."""
    if not manifest.is_complete:
        found.faults.append(Fault(UNFINISHED, MANIFEST, f"status {manifest.status}; the run's own command goes on"))
    found.files += 2
    layout = manifest.layout
    pages = manifest.atlas.get("pages", {})
    known = {MANIFEST, COPY, LOCK, OWNER}
    for files, detail in (
        (layout, "metadata or coordinates"),
        (manifest.files, ""),
        (manifest.added, PAGE),
        (pages, PAGE),
    ):
        known |= set(files)
        for name, checksum in files.items():
            found.compare(name, checksum, detail)
    chunks = _units(found, manifest)
    _unmade(found, layout, chunks)
    known |= chunks | {f"{UNITS}/{name}.json" for name in _named(found.folder, manifest)}
    parts = list(manifest.parts)
    found.faults += [Fault(FOREIGN, *words) for words in _foreign(found.folder, known, parts)]
    for part in parts if inner else ():
        _part(found, part)


def _recorded(folder: Path) -> list[str]:
    """Return the units that have a record."""
    return sorted(p.stem for p in (folder / UNITS).glob("*.json") if not is_leftover(p.name))


def _named(folder: Path, manifest: Manifest) -> list[str]:
    """Return the units that belong here: those that the manifest notes, and before it is complete all recorded ones."""
    noted = manifest.units
    return sorted(noted if noted and manifest.is_complete else {*noted, *_recorded(folder)})


def _units(found: Findings, manifest: Manifest) -> set[str]:
    """Hold every unit's record to the manifest and its chunks to the record; return the chunks that belong here."""
    noted = manifest.units
    chunks: set[str] = set()
    for name in _named(found.folder, manifest):
        file, known = f"{UNITS}/{name}.json", noted.get(name)
        record = _record(found.folder / file)
        if record is None or known not in (None, record):
            kind = CHANGED if (found.folder / file).is_file() else UNFINISHED if known is None else MISSING
            found.faults.append(Fault(kind, file, f"record of unit {name}"))
        for chunk, checksum in (known or record or {}).items():
            chunks.add(chunk)
            found.compare(chunk, checksum, f"unit {name}")
        found.units += record is not None
        found.files += record is not None
    return chunks


def _record(path: Path) -> dict[str, str] | None:
    """Return a unit's record, None where there is none or it is not as records are written."""
    try:
        text = path.read_text(encoding="utf-8")
        record = json.loads(text)
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and record and text_of_record(record) == text else None


def _unmade(found: Findings, layout: dict[str, str], chunks: set[str]) -> None:
    """Name the arrays that have chunks which no unit has made."""
    made = chunks | set(layout)
    for meta in sorted(name for name in layout if name.endswith("/.zarray")):
        try:
            spec = json.loads((found.folder / meta).read_text(encoding="utf-8"))
            wanted = list(chunk_names(tuple(spec["shape"]), tuple(spec["chunks"])))
        except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
            continue  # it is damaged, which has been said
        array = meta.removesuffix("/.zarray")
        open_ones = [c for c in wanted if f"{array}/{c}" not in made]
        if open_ones:
            detail = f"{len(open_ones)} of {len(wanted)} chunks are still to be made, the first {open_ones[0]}"
            found.faults.append(Fault(UNFINISHED, array, detail))


def _foreign(folder: Path, known: set[str], parts: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the files that nobody noted, with what they seem to be."""
    for place, below, files in os.walk(folder):
        here = Path(place).relative_to(folder)
        for name in list(below):
            inner = (here / name).as_posix()
            if inner in parts:
                below.remove(name)
            elif is_run(folder / inner) and f"{inner}/{MANIFEST}" not in known:
                below.remove(name)
                yield inner, "a run folder of its own"
            elif (folder / inner).is_symlink():
                yield inner, "a link"
        for name in sorted(files):
            inner = (here / name).as_posix()
            if inner not in known:
                yield inner, "left by a write that was cut off; the run's own command removes it" * is_leftover(name)


def _part(found: Findings, part: str) -> None:
    """Inspect a run inside a run."""
    if not is_run(found.folder / part):
        found.faults.append(Fault(MISSING, part, "a run folder that belongs to this run"))
        return
    inner = inspect(found.folder / part)
    found.faults += [Fault(f.kind, f"{part}/{f.path}", f.detail) for f in inner.faults]
    found.files, found.size, found.units = (
        found.files + inner.files,
        found.size + inner.size,
        found.units + inner.units,
    )
