"""Store what a benchmark measured: numbers as JSON with a description of the machine, and a table in the README."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from featmap.cli import console
from featmap.errors import FeatmapError
from featmap.files import write_atomically

FOLDER = Path(__file__).resolve().parent
README = FOLDER / "README.md"


def describe_machine(*packages: str) -> dict[str, Any]:
    """Describe the machine and the versions that numbers depend on."""
    return {
        "platform": platform.platform(),
        "processor": _processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_GB": round(psutil.virtual_memory().total / 1e9, 1),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in ("featmap", "torch", *packages)},
    }


def _processor_name() -> str:
    """Find the name of the processor."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def write_json(path: Path, numbers: dict[str, Any]) -> None:
    """Write a benchmark's numbers as JSON."""
    text = json.dumps(numbers, indent=1, ensure_ascii=False) + "\n"
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def marks(name: str) -> tuple[str, str]:
    """Name the marks around a benchmark's text in the README."""
    return f"<!-- {name}: made by the script -->", f"<!-- end of {name} -->"


def write_table(name: str, text: str, readme: Path = README) -> None:
    """Write a benchmark's text between its marks in the README.

    The marks are added at the end if they are missing.
    """
    begin, end = marks(name)
    before = readme.read_text(encoding="utf-8") if readme.is_file() else "# Benchmarks\n"
    if begin not in before:
        before = f"{before.rstrip()}\n\n{begin}\n{end}\n"
    head, _, rest = before.partition(begin)
    page = f"{head}{begin}\n{text.strip()}\n{end}{rest.partition(end)[2]}"
    write_atomically(readme, lambda p: p.write_text(page, encoding="utf-8"))


def read_results(store: Path) -> list[dict[str, Any]]:
    """Read the stored results of networks and layers; none without the file."""
    return json.loads(store.read_text(encoding="utf-8"))["results"] if store.is_file() else []


def merge_results(stored: list[dict[str, Any]], found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put new results in the place of those of the same network and layers."""
    new = {(r["source"], *r["layers"]) for r in found}
    return [r for r in stored if (r["source"], *r["layers"]) not in new] + found


def check_section(page: str, store: Path, readme: Path) -> None:
    """Check that the README holds a section as it is made from the stored results.

    Raises
    ------
    FeatmapError
        If it does not.
    """
    if page not in readme.read_text(encoding="utf-8"):
        raise FeatmapError(f"{readme.name} and {store.name} disagree; make the table again")


def update_section(
    name: str,
    found: list[dict[str, Any]],
    format_page: Callable[[list[dict[str, Any]]], str],
    paths: tuple[Path, Path],
    check: bool,
) -> None:
    """Store new results, and write and print the section of all; or only check that the section is that of the stored.

    Parameters
    ----------
    name : str
        Name of the section.
    found : list of dict
        New results of networks and layers.
    format_page : callable
        Writes the section from results.
    paths : tuple of (Path, Path)
        The stored results, and the README.
    check : bool
        Whether nothing is written.

    Raises
    ------
    FeatmapError
        With `check`, if section and stored results disagree.
    """
    store, readme = paths
    stored = read_results(store)
    if check:
        check_section(format_page(stored), store, readme)
        return
    kept = merge_results(stored, found)
    write_json(store, {"results": kept})
    write_table(name, format_page(kept), readme)
    console.out().print(format_page(kept), soft_wrap=True)
