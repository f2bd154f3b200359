"""What a benchmark leaves behind: its numbers as JSON with the machine they are of, and a table in the README."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from featmap.files import write_atomically

FOLDER = Path(__file__).resolve().parent
README = FOLDER / "README.md"


def machine(*packages: str) -> dict[str, Any]:
    """Return what numbers depend on besides the program: processor, cores, memory, versions."""
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_GB": round(psutil.virtual_memory().total / 1e9, 1),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in ("featmap", "torch", *packages)},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def write(path: Path, numbers: dict[str, Any]) -> None:
    """Write a benchmark's numbers as JSON."""
    text = json.dumps(numbers, indent=1, ensure_ascii=False) + "\n"
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def write_table(name: str, text: str, readme: Path = README) -> None:
    """Put a benchmark's text between its marks in the README, which are added at the end where there are none."""
    begin, end = f"<!-- {name}: made by the script -->", f"<!-- end of {name} -->"
    before = readme.read_text(encoding="utf-8") if readme.is_file() else "# Benchmarks\n"
    if begin not in before:
        before = f"{before.rstrip()}\n\n{begin}\n{end}\n"
    head, _, rest = before.partition(begin)
    made = f"{head}{begin}\n{text.strip()}\n{end}{rest.partition(end)[2]}"
    write_atomically(readme, lambda p: p.write_text(made, encoding="utf-8"))
