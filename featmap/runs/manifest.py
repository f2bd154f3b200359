"""The manifest of a run folder: its fields, and reading and writing it with a checksum and a copy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from featmap.errors import StoreError
from featmap.files import write_atomically

FORMAT = 2
"""Format 1, of earlier versions, had no checksums of the manifest itself and of the arrays' metadata."""
MANIFEST, COPY = "manifest.json", ".copy/manifest.json"
CHECKSUM = "checksum"
NEWER = "update featmap"
COMPLETE, RUNNING, LAYING = "complete", "running", "laying"


@dataclass
class Manifest:
    """What a run folder says of itself.

    Parameters
    ----------
    identity : dict
        Everything that the run's numbers depend on, as plain JSON values.
    status : str, default "laying"
        "laying" while the folder is set up, "running" while it is filled, "complete" at the end.
    format : int
        Version of the folder's format.
    network : str, optional
        One line that names the network and its weights.
    model_arguments : dict
        Arguments of `featmap.load` that load the network again; empty for a module of the caller's.
    command : str, optional
        Command that made the run.
    environment, later_environments : dict, list of dict
        Versions, threads and device that the run began with, and others that work units were made with later.
    recipe_notes : list of str
        Choices of the recipe that its source leaves open.
    timings : dict
        Seconds of each stage.
    engines : list of dict
        Engines, workers and threads that were used.
    layout, files, added : dict of str
        SHA-256 by file name: of the arrays' metadata, of tables and figures, of pages that other commands added.
    units : dict
        Work units of a complete run with the SHA-256 of their chunks.
    parts : list of str
        Run folders inside this one that belong to it.
    atlas : dict
        SHA-256 of the pages of the atlas, and of what they were made of.
    view : dict
        What the tables and figures of a similarity run show.
    mapping, mapped : dict
        Of a large run: the view that is being written, and the summaries of the layers that are written.
    reliability : dict
        Reliability of each feature, from a validation.
    summary : dict
        Findings as plain JSON values.
    seeds, null_seeds : list of int
        Of a validation: seeds of the trained and of the random maps.
    images : str, optional
        Of a validation: name of the folder of photographs.
    other : dict
        Entries that this version does not know; they are written back unchanged.
    """

    identity: dict[str, Any]
    status: str = LAYING
    format: int = FORMAT
    network: str | None = None
    model_arguments: dict[str, Any] = field(default_factory=dict)
    command: str | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    recipe_notes: list[str] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    engines: list[dict[str, Any]] = field(default_factory=list)
    later_environments: list[dict[str, Any]] = field(default_factory=list)
    layout: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    units: dict[str, Any] = field(default_factory=dict)
    added: dict[str, str] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)
    atlas: dict[str, Any] = field(default_factory=dict)
    view: dict[str, Any] = field(default_factory=dict)
    mapping: dict[str, Any] = field(default_factory=dict)
    mapped: dict[str, Any] = field(default_factory=dict)
    reliability: dict[str, float | None] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)
    null_seeds: list[int] = field(default_factory=list)
    images: str | None = None
    other: dict[str, Any] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether the run has ended."""
        return self.status == COMPLETE

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as plain JSON values; fields without a value are left out.

        Returns
        -------
        dict
            Fields by name, then the entries of `other`.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "other"}
        return {name: value for name, value in values.items() if value not in (None, {}, [])} | self.other

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Manifest:
        """Return the manifest that these values describe.

        Parameters
        ----------
        values : mapping
            Entries by name. One whose type is not its field's counts as missing.

        Returns
        -------
        Manifest
            Unknown entries are kept in `other`.
        """
        defaults = Manifest(identity={})
        known = {f.name: type(getattr(defaults, f.name)) for f in fields(Manifest) if f.name != "other"}
        fitting: dict[str, Any] = {n: v for n, v in values.items() if n in known and isinstance(v, _allowed(known[n]))}
        unknown = {n: v for n, v in values.items() if n not in known and n != CHECKSUM}
        return Manifest(**fitting, other=unknown)

    def completed_by(self, defaults: Mapping[str, Any]) -> Manifest:
        """Return this manifest with empty fields taken from elsewhere.

        Parameters
        ----------
        defaults : mapping
            Values by field name.

        Returns
        -------
        Manifest
            A copy; fields that have a value keep it.
        """
        return replace(self, **{n: v for n, v in defaults.items() if getattr(self, n) in (None, {}, [])})


def _allowed(default: type) -> type | tuple[type, ...]:
    """Return the types that a field takes; a field without a default value is a text or nothing."""
    return (str, type(None)) if default is type(None) else default


def is_run(folder: Path) -> bool:
    """Check whether a folder has a manifest, or a copy of one that it had.

    Parameters
    ----------
    folder : Path
        Any folder; it need not exist.

    Returns
    -------
    bool
        True for a run folder.
    """
    return (folder / MANIFEST).is_file() or (folder / COPY).is_file()


def text_of(manifest: Mapping[str, Any]) -> str:
    """Return the text of a manifest file, its checksum last.

    Parameters
    ----------
    manifest : mapping
        Entries of the file; a checksum among them is replaced.

    Returns
    -------
    str
        JSON whose last entry is the SHA-256 of the rest.
    """
    rest = {k: v for k, v in manifest.items() if k != CHECKSUM}
    checksum = hashlib.sha256(_plain(rest).encode()).hexdigest()
    return _plain(rest | {CHECKSUM: checksum}) + "\n"


def _plain(values: Mapping[str, Any]) -> str:
    """Return JSON text that can be encoded as UTF-8."""
    text = json.dumps(values, indent=1, sort_keys=False, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a path whose name is not UTF-8
        text = json.dumps(values, indent=1, sort_keys=False)
    return text


def write(folder: Path, manifest: Manifest) -> None:
    """Write a manifest and its copy.

    Parameters
    ----------
    folder : Path
        Run folder.
    manifest : Manifest
        What to write.
    """
    _write_text(folder, text_of(manifest.to_json()))


def _write_text(folder: Path, text: str) -> None:
    """Write the copy first: where the manifest is complete, its copy is complete too."""
    for name in (COPY, MANIFEST):
        write_atomically(folder / name, lambda p: p.write_text(text, encoding="utf-8", newline="\n"))


def parse(path: Path) -> Manifest:
    """Read a manifest file.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    Manifest
        Its content.

    Raises
    ------
    StoreError
        If it cannot be read, a byte of it has changed, or a newer featmap wrote it.
    """
    return Manifest.from_json(_parse(path))


def _parse(path: Path) -> dict[str, Any]:
    """Return the entries of a manifest file after the checks of `parse`."""
    try:
        text = path.read_text(encoding="utf-8")
        manifest = json.loads(text)
        version, identity = manifest["format"], manifest["identity"]
        if type(version) is not int or not isinstance(identity, dict):
            raise TypeError("format is a number, identity an object")
        if version > FORMAT:
            raise StoreError(f"{str(path.parent)!r} has format {version}, this featmap reads up to {FORMAT}; {NEWER}")
        # the text is compared, not only the values: a changed blank is a changed byte
        if (version > 1 or CHECKSUM in manifest) and text != text_of(manifest):
            raise ValueError("it is not what its own checksum says")
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise StoreError(f"{path} is damaged ({what}); the run's own command repairs it") from error
    return dict(manifest)


def is_newer(folder: Path, error: StoreError) -> bool:
    """Check whether a newer featmap wrote a folder.

    Parameters
    ----------
    folder : Path
        Run folder whose manifest was refused.
    error : StoreError
        The refusal.

    Returns
    -------
    bool
        False where the manifest is its whole copy but for one flipped bit: that is damage.
    """
    if NEWER not in str(error):
        return False
    try:
        parse(folder / COPY)
        one, two = ((folder / name).read_bytes() for name in (MANIFEST, COPY))
    except (StoreError, OSError):
        return True
    return len(one) != len(two) or sum((a ^ b).bit_count() for a, b in zip(one, two, strict=True)) != 1


def read(folder: Path) -> Manifest:
    """Read the manifest of a run folder.

    Parameters
    ----------
    folder : Path
        Run folder.

    Returns
    -------
    Manifest
        Its content.

    Raises
    ------
    StoreError
        If there is none, it is damaged, or a newer featmap wrote it.
    """
    return Manifest.from_json(_read(folder))


def _read(folder: Path) -> dict[str, Any]:
    shown = repr(str(folder))
    if not folder.is_dir():
        raise StoreError(f"run {shown}: there is no such folder; `featmap similarity` makes one")
    if not (folder / MANIFEST).is_file():
        if is_run(folder):
            raise StoreError(f"run {shown} has lost its {MANIFEST}; the run's own command repairs it")
        raise StoreError(f"{shown} is not a run folder (it has no {MANIFEST}); `featmap similarity` makes one")
    return _parse(folder / MANIFEST)


def repair(folder: Path) -> Manifest:
    """Read the manifest of a run folder, from its copy where it is damaged or lost; leave both intact.

    Parameters
    ----------
    folder : Path
        Run folder.

    Returns
    -------
    Manifest
        Its content, in today's format.

    Raises
    ------
    StoreError
        If neither can be read, or a newer featmap wrote them.
    """
    try:
        manifest = _read(folder)
    except StoreError as error:
        if is_newer(folder, error):
            raise
        try:
            manifest = _parse(folder / COPY)
        except StoreError:
            raise StoreError(
                f"{str(folder / MANIFEST)!r} and its copy {COPY} are damaged; delete the folder, or choose another one"
            ) from error
    if manifest["format"] < FORMAT or not _are_alike(folder):
        _write_text(folder, text_of(manifest | {"format": FORMAT}))
    return Manifest.from_json(manifest | {"format": FORMAT})


def _are_alike(folder: Path) -> bool:
    """Check whether the manifest and its copy have the same bytes."""
    try:
        return (folder / MANIFEST).read_bytes() == (folder / COPY).read_bytes()
    except OSError:
        return False


MAXIMISE, SIMILARITY = "optimize", "similarity"
"""Commands as identities name them; `maximise` was called `optimize` when the format was fixed."""


UNITS = "units"
