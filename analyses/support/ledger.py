"""Remember what pictures, pages and benchmarks were made of: `analyses/made.json`.

The records of studies hold this themselves; everything else that `python -m analyses.all` makes has an entry here, with
the code, recipes and weights that it rests on (see `analyses.support.provenance`) and the SHA-256 of its files. A
command enters itself when it ends (`analyses.support.commands.run`), whether `analyses.all` started it or its user. The
file belongs to the checkout, and is committed with what was made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analyses.support import provenance
from featmap.files import hash_file, write_atomically

HERE = Path(__file__).resolve().parent.parent
LEDGER = HERE / "made.json"
BENCHMARKS = ("speed", "search", "scaling", "whole", "faults")
"""Benchmarks of the bundled network, which their command makes again."""
KEPT = {"showcase": ("googlenet.png",)}
"""Files of a step that are of another network, and are kept where its user does not name it."""
WHOLE = {"--photographs", "--imagenet", "--runs", "--out", "--debug"}
"""Options of a command that leave it to make all of its files as by default. With `--out`, files that are written
elsewhere are none of its step's."""
FLAGS = {"--debug"}
"""Those of them without a value."""


def files_of(name: str) -> tuple[Path, ...]:
    """List the files that a step writes.

    Parameters
    ----------
    name : str
        Its module below `analyses`.

    Returns
    -------
    tuple of Path
        The files; empty for a module that has no entry here.
    """
    if name.removeprefix("benchmarks.") in BENCHMARKS:
        return (HERE / "benchmarks" / f"{name.removeprefix('benchmarks.')}.json",)
    pages = {"directions": "directions.md", "trial": "validation.md"}
    if name in pages:
        return (HERE / pages[name], *sorted(p for p in (HERE / "results" / name).glob("*") if p.is_file()))
    if name == "planted_truth":
        return tuple(HERE / f"planted_truth.{kind}" for kind in ("csv", "png", "svg"))
    if name == "showcase":
        return (*sorted((HERE / "pictures").glob("*.png")), HERE / "pictures" / "pictures.json")
    return tuple(sorted((HERE / "tour").glob("*.ipynb"))) if name == "tour" else ()


def read_ledger(path: Path = LEDGER) -> dict[str, Any]:
    """Read the entries.

    Parameters
    ----------
    path : Path, default LEDGER
        The file.

    Returns
    -------
    dict of str to Any
        Entries by the name of the step; empty without a file.
    """
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def hash_files(files: Sequence[Path]) -> dict[str, str]:
    """Hash the files of a step.

    Parameters
    ----------
    files : sequence of Path
        The files; those that do not exist are left out.

    Returns
    -------
    dict of str to str
        SHA-256 by path relative to `analyses`.
    """
    there = [f for f in files if f.is_file()]
    return {f.relative_to(HERE).as_posix() if f.is_relative_to(HERE) else f.name: hash_file(f) for f in there}


def remember(name: str, files: Sequence[Path], weights: str, path: Path = LEDGER) -> None:
    """Write the entry of a step that was just carried out.

    Parameters
    ----------
    name : str
        Its module below `analyses`.
    files : sequence of Path
        Files that it wrote.
    weights : str
        SHA-256 of the bundled weights.
    path : Path, default LEDGER
        The file.
    """
    entry = {"weights_sha256": weights, "rests_on": provenance.identities(name), "files": hash_files(files)}
    _write(read_ledger(path) | {name: entry}, path)


def times_of(files: Sequence[Path]) -> dict[Path, int]:
    """Look up when files were written.

    Parameters
    ----------
    files : sequence of Path
        The files.

    Returns
    -------
    dict of Path to int
        Nanoseconds, of those that exist.
    """
    return {f: f.stat().st_mtime_ns for f in files if f.is_file()}


def _names_of(options: Sequence[str]) -> set[str]:
    """Find the names among the words of options: the value of an option of `WHOLE` may begin with -- itself."""
    names, words = set(), iter(options)
    for word in words:
        if word.startswith("--"):
            names.add(word.partition("=")[0])
            if word in WHOLE - FLAGS:
                next(words, None)
    return names


def enter(name: str, options: Sequence[str], before: Mapping[Path, int], weights: str, path: Path = LEDGER) -> None:
    """Enter a command that has ended, if it wrote files of its step.

    A command that made all of them with its default settings gets a new entry. One that made some of them, or with
    other settings, changes the SHA-256 of what it wrote in an entry that is there already: what the whole rests on is
    then still what it was.

    Parameters
    ----------
    name : str
        Its module below `analyses`.
    options : sequence of str
        Words of its command after the module.
    before : mapping of Path to int
        Result of `times_of` before the command.
    weights : str
        SHA-256 of the bundled weights.
    path : Path, default LEDGER
        The file.
    """
    files = files_of(name)
    written = [f for f, time in times_of(files).items() if before.get(f) != time]
    needed = {f for f in files if f.name not in KEPT.get(name, ())}
    entries = read_ledger(path)
    if written and needed <= set(written) and _names_of(options) <= WHOLE:
        remember(name, files, weights, path)
    elif written and name in entries:
        entries[name]["files"] |= hash_files(written)
        _write(entries, path)


def _write(entries: Mapping[str, Any], path: Path) -> None:
    """Write all entries, sorted by name."""
    text = json.dumps(dict(sorted(entries.items())), indent=1)
    write_atomically(path, lambda p: p.write_text(text + "\n", encoding="utf-8"))


def changes_of(name: str, files: Sequence[Path], weights: str, path: Path = LEDGER) -> list[str]:
    """Name what changed since a step was carried out.

    Parameters
    ----------
    name : str
        Its module below `analyses`.
    files : sequence of Path
        Files that it writes.
    weights : str
        SHA-256 of the bundled weights.
    path : Path, default LEDGER
        The file.

    Returns
    -------
    list of str
        Empty where nothing changed.
    """
    missing = [f.name for f in files if not f.is_file()]
    if missing:
        return [f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"]
    entry = read_ledger(path).get(name)
    if entry is None:
        return [provenance.UNRECORDED]
    found = provenance.changes(entry["rests_on"], provenance.identities(name))
    if entry["weights_sha256"] != weights:
        found.insert(0, "the weights changed")
    now = hash_files(files)
    return found + [f"{f} was changed by hand, or by its own command" for f in now if now[f] != entry["files"].get(f)]
