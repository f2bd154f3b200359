"""The manifest of a run folder, with a checksum and a copy, and the records of its work units."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from featmap.errors import FeatmapError, StoreError
from featmap.files import write_atomically
from featmap.optimize.schedule import renamed_recipe

FORMAT = 2
"""Format 1, of earlier versions, had no checksums of the manifest itself and of the arrays' metadata."""
MANIFEST, COPY = "manifest.json", ".copy/manifest.json"
UNITS = "units"
"""Folder of the records of work units, inside a run folder."""
CHECKSUM = "checksum"
UPDATE = "update featmap"
COMPLETE, RUNNING, PREPARING = "complete", "running", "laying"
"""Statuses of a run, as manifests write them."""
MAXIMISE, SIMILARITY = "optimize", "similarity"
"""Commands, as identities name them; `maximise` was called `optimize` when the format was fixed."""


@dataclass
class Manifest:
    """Description of a run folder: settings, status and checksums of the files.

    Parameters
    ----------
    identity : dict
        Everything that the results depend on, as plain JSON values.
    status : str, default "laying"
        "laying" while the folder is prepared, "running" while it is filled, "complete" at the end.
    format : int, default 2
        Version of the folder's format.
    network : str, optional
        One line that names the network and its weights.
    model_arguments : dict
        Arguments of `featmap.load` that load the network again; empty for a module of the caller's own.
    command : str, optional
        Command that the run belongs to.
    environment : dict
        Versions, threads and device that the run began with.
    recipe_notes : list of str
        Choices of the recipe that its source leaves open.
    preparation : list of dict
        For each set of layers, the network that descends ("folded" or "untouched") and how far the folded copy differs
        from the network, see `featmap.optimize.prepare.Preparation`.
    batch_rows : list of dict
        Rows of batches of fewer images, see `featmap.optimize.batch.list_chosen_rows`; not those of Ray's workers.
    timings : dict of float
        Seconds of each stage.
    engines : list of dict
        Engines, workers and threads that were used.
    later_environments : list of dict
        Other environments in which work units were computed later.
    layout : dict of str
        SHA-256 of the arrays' metadata and coordinates, and of directions, by file name.
    files : dict of str
        SHA-256 of tables and figures, by file name.
    units : dict
        Work units of a complete run: SHA-256 of the chunks of each, by file name.
    added : dict of str
        SHA-256 of pages that other commands added, by file name.
    parts : list of str
        Run folders inside this one that belong to it.
    atlas : dict
        SHA-256 of the pages of the atlas, and a digest of the files that they show.
    view : dict
        Of a similarity run: settings of its tables and figures.
    mapping : dict
        Of a large run: the view that is being written.
    mapped : dict
        Of a large run: summaries of the layers that are written already.
    reliability : dict of float
        Reliability of each feature, from a validation; None where it is undefined.
    summary : dict
        Main results, and numbers of automatic seeds.
    seeds, null_seeds : list of int
        Of a validation: seeds of the maps of the network, and of those of random weights.
    images : str, optional
        Of a validation: name of the folder of photographs.
    photographs : dict
        Of photographs that are probed: their folder and count, and what was left out, see `PhotographFolder.record`.
    photograph_folder : str, optional
        Of photographs that a page may embed: path of their folder or zip.
    other : dict
        Entries of unknown names; they are written back unchanged.
    """

    identity: dict[str, Any]
    status: str = PREPARING
    format: int = FORMAT
    network: str | None = None
    model_arguments: dict[str, Any] = field(default_factory=dict)
    command: str | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    recipe_notes: list[str] = field(default_factory=list)
    preparation: list[dict[str, Any]] = field(default_factory=list)
    batch_rows: list[dict[str, Any]] = field(default_factory=list)
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
    photographs: dict[str, Any] = field(default_factory=dict)
    photograph_folder: str | None = None
    other: dict[str, Any] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether every work unit has landed and everything has been written."""
        return self.status == COMPLETE

    def to_json(self) -> dict[str, Any]:
        """Convert the manifest to plain JSON values.

        Returns
        -------
        dict
            Fields by name, those without a value left out, then the entries of `other`.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "other"}
        return {name: value for name, value in values.items() if value not in (None, {}, [])} | self.other

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Manifest:
        """Create a manifest from plain JSON values.

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
        types = {f.name: _allowed_types(getattr(defaults, f.name)) for f in fields(Manifest) if f.name != "other"}
        # a manifest that was edited and signed again must not make its readers stumble over a value of another type
        entries: dict[str, Any] = {n: v for n, v in values.items() if n in types and isinstance(v, types[n])}
        unknown = {n: v for n, v in values.items() if n not in types and n != CHECKSUM}
        return Manifest(**entries, other=unknown)

    def with_defaults(self, defaults: Mapping[str, Any]) -> Manifest:
        """Return a copy in which defaults replace fields without a value.

        Parameters
        ----------
        defaults : mapping
            Values by field name.

        Returns
        -------
        Manifest
            Fields that have a value keep it.
        """
        return replace(self, **{n: v for n, v in defaults.items() if getattr(self, n) in (None, {}, [])})


def _allowed_types(default: object) -> tuple[type, ...]:
    """Return the types that a field accepts; one whose default is None holds a text or None."""
    return (str, type(None)) if default is None else (type(default),)


def is_run(folder: Path) -> bool:
    """Check whether a folder has a manifest, or the copy of a lost one.

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


def signed_text(manifest: Mapping[str, Any]) -> str:
    """Format a manifest file, its checksum last.

    Parameters
    ----------
    manifest : mapping
        Entries of the file; a checksum among them is replaced.

    Returns
    -------
    str
        JSON whose last entry is the SHA-256 of the rest. The rest is formatted once: that takes a while.
    """
    text = _to_text({k: v for k, v in manifest.items() if k != CHECKSUM})
    last = f'"{CHECKSUM}": "{hashlib.sha256(text.encode()).hexdigest()}"\n}}\n'
    return text.removesuffix("}").removesuffix("\n") + ("\n " if text == "{}" else ",\n ") + last


def _to_text(values: Mapping[str, Any]) -> str:
    """Format values as JSON that can be encoded as UTF-8."""
    text = json.dumps(values, indent=1, sort_keys=False, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # the name of a path is not valid UTF-8
        text = json.dumps(values, indent=1, sort_keys=False)
    return text


def write(folder: Path, manifest: Manifest) -> None:
    """Write a manifest and its copy.

    Parameters
    ----------
    folder : Path
        Run folder.
    manifest : Manifest
        The manifest.
    """
    _write_text(folder, signed_text(manifest.to_json()))


def _write_text(folder: Path, text: str) -> None:
    """Write the text of a manifest to both files."""
    # the copy first: a process killed in between leaves one whole file, and a whole manifest implies a whole copy
    for name in (COPY, MANIFEST):
        write_atomically(folder / name, lambda p: p.write_text(text, encoding="utf-8", newline="\n"))


def read_file(path: Path) -> Manifest:
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
    """Return the entries of a manifest file after the checks of `read_file`."""
    try:
        text = path.read_text(encoding="utf-8")
        manifest = json.loads(text)
        version, identity = manifest["format"], manifest["identity"]
        if type(version) is not int or not isinstance(identity, dict):
            raise TypeError("format is a number, identity an object")
        if version > FORMAT:
            raise StoreError(f"{str(path.parent)!r} has format {version}, this featmap reads up to {FORMAT}; {UPDATE}")
        # the text is compared, not only the values: a changed blank is a changed byte
        if (version > 1 or CHECKSUM in manifest) and text != signed_text(manifest):
            raise ValueError("its checksum differs")
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise StoreError(f"{path} is damaged ({what}); the run's own command repairs it") from error
    return dict(manifest)


def is_newer(folder: Path, error: StoreError) -> bool:
    """Check whether a newer featmap wrote a folder.

    Parameters
    ----------
    folder : Path
        Run folder whose manifest could not be read.
    error : StoreError
        Error of the attempt.

    Returns
    -------
    bool
        False where the manifest differs from its intact copy in a single bit: that is damage.
    """
    if UPDATE not in str(error):
        return False
    try:
        _parse(folder / COPY)
        manifest, copy = ((folder / name).read_bytes() for name in (MANIFEST, COPY))
    except (StoreError, OSError):
        return True
    # one flipped bit can turn format 2 into format 3
    return len(manifest) != len(copy) or sum((a ^ b).bit_count() for a, b in zip(manifest, copy, strict=True)) != 1


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
    """Return the entries of a folder's manifest after the checks of `read`."""
    shown = repr(str(folder))
    if not folder.is_dir():
        raise StoreError(f"run {shown}: there is no such folder; `featmap similarity` makes one")
    if not (folder / MANIFEST).is_file():
        if is_run(folder):
            raise StoreError(f"run {shown} has lost its {MANIFEST}; the run's own command repairs it")
        raise StoreError(f"{shown} is not a run folder (it has no {MANIFEST}); `featmap similarity` makes one")
    return _parse(folder / MANIFEST)


def repair(folder: Path) -> Manifest:
    """Read the manifest of a run folder, or its copy, and restore both files.

    Parameters
    ----------
    folder : Path
        Run folder.

    Returns
    -------
    Manifest
        Its content, in the current format.

    Raises
    ------
    StoreError
        If neither file can be read, or a newer featmap wrote them.
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
    if manifest["format"] < FORMAT or not _copy_is_equal(folder):
        _write_text(folder, signed_text(manifest | {"format": FORMAT}))
    return Manifest.from_json(manifest | {"format": FORMAT})


def _copy_is_equal(folder: Path) -> bool:
    """Check whether the manifest and its copy have the same bytes."""
    try:
        return (folder / MANIFEST).read_bytes() == (folder / COPY).read_bytes()
    except OSError:
        return False


@contextmanager
def translate_read_errors(folder: Path) -> Iterator[None]:
    """Turn any error of reading a damaged run folder into one of one line.

    Parameters
    ----------
    folder : Path
        Run folder.

    Yields
    ------
    None
        Errors of featmap, and a lack of memory, pass unchanged.

    Raises
    ------
    StoreError
        If anything else is raised in the context.
    """
    try:
        yield
    except (FeatmapError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise StoreError(
            f"run {str(folder)!r} cannot be read ({reason}); `featmap verify` lists what is damaged in it, "
            "the run's own command repairs it"
        ) from error


def record_text(record: Mapping[str, str]) -> str:
    """Format the record of a work unit.

    Parameters
    ----------
    record : mapping of str
        SHA-256 by file name.

    Returns
    -------
    str
        JSON.
    """
    return json.dumps(record, indent=0)


def read_record(path: Path) -> dict[str, str] | None:
    """Read the record of a work unit.

    Parameters
    ----------
    path : Path
        Its file.

    Returns
    -------
    dict of str or None
        SHA-256 by file name. None where there is no record, or its text is not the one that `record_text` formats.
    """
    try:
        text = path.read_text(encoding="utf-8")
        record = json.loads(text)
    except (OSError, ValueError, RecursionError):
        return None
    # the text is compared, not only the values: a changed blank is a changed byte
    return record if isinstance(record, dict) and record and record_text(record) == text else None


def compare_identities(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Name the first settings in which two identities differ.

    Parameters
    ----------
    old, new : mapping
        Identity of the run in a folder, and of the run to be written there. Equal settings of a recipe that has been
        renamed since do not differ.

    Returns
    -------
    str
        Three settings at most, with both values; empty where the identities are equal.
    """
    flat_old, flat_new = dict(_flatten(old)), dict(_flatten(new))
    recipe = old.get("recipe")
    renamed = renamed_recipe(recipe) if isinstance(recipe, Mapping) else None
    if renamed is not None and flat_old | {"recipe.name": renamed} == flat_new:
        return ""
    keys = [k for k in (*flat_new, *flat_old) if flat_old.get(k) != flat_new.get(k)]
    shown = [f"{k}: {_shorten(flat_old.get(k))} there, {_shorten(flat_new.get(k))} here" for k in dict.fromkeys(keys)]
    was = f"; recipe {renamed!r} is now what {flat_old['recipe.name']!r} was then" if renamed is not None else ""
    return "; ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "") + (was if shown else "")


def _shorten(value: Any) -> str:
    """Format a setting in at most 40 characters."""
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _flatten(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested settings by dotted names; a list of plain values is a leaf."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield from _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(values, list) and any(isinstance(v, (dict, list)) for v in values):
        for k, value in enumerate(values, 1):
            yield from _flatten(value, f"{prefix}.{k}")
    else:
        yield prefix, values
