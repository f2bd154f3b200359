"""The manifest of a run folder on disk: with a checksum of its own, and twice: one flipped byte loses nothing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from featmap.errors import StoreError
from featmap.files import write_atomically

FORMAT = 2
"""Format 1, of earlier versions, had no checksums of the manifest itself and of the arrays' metadata."""
MANIFEST, COPY = "manifest.json", ".copy/manifest.json"
CHECKSUM = "checksum"
NEWER = "update featmap"


def is_run(folder: Path) -> bool:
    """Has this folder a manifest, or has it had one?"""
    return (folder / MANIFEST).is_file() or (folder / COPY).is_file()


def text_of(manifest: dict[str, Any]) -> str:
    """Return the text of a manifest, its checksum last."""
    rest = {k: v for k, v in manifest.items() if k != CHECKSUM}
    checksum = hashlib.sha256(_plain(rest).encode()).hexdigest()
    return _plain(rest | {CHECKSUM: checksum}) + "\n"


def _plain(values: dict[str, Any]) -> str:
    text = json.dumps(values, indent=1, sort_keys=False, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a path that is no UTF-8
        text = json.dumps(values, indent=1, sort_keys=False)
    return text


def write(folder: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest and its copy; the copy first, so that a run whose manifest is complete has two that are."""
    text = text_of(manifest)
    for name in (COPY, MANIFEST):
        write_atomically(folder / name, lambda p: p.write_text(text, encoding="utf-8", newline="\n"))


def parse(path: Path) -> dict[str, Any]:
    """Return the manifest in a file.

    Raises
    ------
    StoreError
        if it cannot be read, a byte of it has changed, or a newer featmap wrote it.
    """
    try:
        text = path.read_text(encoding="utf-8")
        manifest = json.loads(text)
        version, identity = manifest["format"], manifest["identity"]
        if type(version) is not int or not isinstance(identity, dict):
            raise TypeError("format is a number, identity an object")
        if version > FORMAT:
            raise StoreError(f"{str(path.parent)!r} has format {version}, this featmap reads up to {FORMAT}; {NEWER}")
        if (version > 1 or CHECKSUM in manifest) and text != text_of(manifest):
            raise ValueError("it is not what its own checksum says")
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise StoreError(f"{path} is damaged ({what}); the run's own command mends it") from error
    return dict(manifest)


def is_newer(folder: Path, error: StoreError) -> bool:
    """Did a newer featmap write this folder? No if its manifest is its whole copy but for one flipped bit."""
    if NEWER not in str(error):
        return False
    try:
        parse(folder / COPY)
        one, two = ((folder / name).read_bytes() for name in (MANIFEST, COPY))
    except (StoreError, OSError):
        return True
    return len(one) != len(two) or sum((a ^ b).bit_count() for a, b in zip(one, two, strict=True)) != 1


def read(folder: Path) -> dict[str, Any]:
    """Return a run folder's manifest.

    Raises
    ------
    StoreError
        if there is none, it is damaged, or a newer featmap wrote it.
    """
    shown = repr(str(folder))
    if not folder.is_dir():
        raise StoreError(f"run {shown}: there is no such folder; `featmap similarity` makes one")
    if not (folder / MANIFEST).is_file():
        if is_run(folder):
            raise StoreError(f"run {shown} has lost its {MANIFEST}; the run's own command mends it")
        raise StoreError(f"{shown} is no run folder (it has no {MANIFEST}); `featmap similarity` makes one")
    return parse(folder / MANIFEST)


def mended(folder: Path) -> dict[str, Any]:
    """Return a run folder's manifest, from its copy where it is damaged or lost; both are whole afterwards.

    Raises
    ------
    StoreError
        if neither can be read, or a newer featmap wrote them.
    """
    try:
        manifest = read(folder)
    except StoreError as error:
        if is_newer(folder, error):
            raise
        try:
            manifest = parse(folder / COPY)
        except StoreError:
            raise StoreError(
                f"{str(folder / MANIFEST)!r} and its copy {COPY} are damaged; delete the folder, or give another --out"
            ) from error
    if manifest["format"] < FORMAT or not _are_alike(folder):
        write(folder, manifest | {"format": FORMAT})
    return manifest | {"format": FORMAT}


def typed(manifest: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest in which everything is of the kind it should be, as in `about` or left out."""
    kinds = {"layout": dict, "files": dict, "units": dict, "added": dict, "atlas": dict, "view": dict, "parts": list}
    kinds |= {"reliability": dict, "later_environments": list, "summary": dict}
    kept = {k: v for k, v in manifest.items() if k not in kinds or isinstance(v, kinds[k])}
    return kept | {k: v for k, v in about.items() if not isinstance(kept.get(k), type(v))}


def _are_alike(folder: Path) -> bool:
    try:
        return (folder / MANIFEST).read_bytes() == (folder / COPY).read_bytes()
    except OSError:
        return False
