"""Run the kills of a helper module in a process of its own, and read their outcomes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent
KILLS = 5
"""Kills of each command at random moments; `analyses.benchmarks.faults` makes two hundred."""
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


def kill_in_process(*arguments: object) -> Any:
    """The outcomes of kills, printed by a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def losses(outcomes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those outcomes in which something was lost, computed again or left damaged."""
    return [o for o in outcomes if o["redone"] or o["status"] or o["differing"] or o["faults"]]
