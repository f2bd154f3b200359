"""Remember what pictures, pages and benchmarks were made of: `analyses/made.json`.

The records of studies hold this themselves; everything else that `python -m analyses.all` makes has an entry here, with
the code, recipes and weights that it rests on (see `analyses.support.provenance`) and the SHA-256 of its files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analyses.support import provenance
from featmap.files import hash_file, write_atomically

LEDGER = Path(__file__).resolve().parent.parent / "made.json"


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
    folder = LEDGER.parent
    return {f.relative_to(folder).as_posix() if f.is_relative_to(folder) else f.name: hash_file(f) for f in files}


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
    text = json.dumps(dict(sorted((read_ledger(path) | {name: entry}).items())), indent=1)
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
