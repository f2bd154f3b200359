"""A process killed at any moment loses nothing: the same command completes the run, bit by bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from analyses.benchmarks import faults, records

REPOSITORY = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """The outcomes of kills of commands."""
    return process("tests.helpers.kill_commands", tmp_path_factory.mktemp("kills"))


def process(*arguments: object) -> Any:
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
    return [o for o in outcomes if o["redone"] or o["status"] or o["differing"] or o["faults"]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["similarity", "interact"])
def test_a_kill_at_any_moment_loses_nothing(name: str, outcomes: dict[str, list[dict[str, Any]]]) -> None:
    kills = outcomes[f"random {name}"]
    assert sum(o["killed"] for o in kills) == 8
    assert losses(kills) == []


def test_a_kill_between_any_two_moves_loses_nothing(tmp_path: Path) -> None:
    """Of a run of the store alone, which takes milliseconds: every move can be tried."""
    kills = process("tests.helpers.kill_store", tmp_path)
    assert [o["moment"] for o in kills] == list(range(1, len(kills) + 1))
    assert [o["killed"] for o in kills] == [True] * (len(kills) - 1) + [False]
    assert len(kills) > 20  # owner, two manifests thrice, metadata and coordinates, chunks and records, a table
    assert [o for o in kills if o["differing"] or o["redone"] or o["faults"]] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["optimize", "similarity"])
def test_a_kill_before_a_move_of_a_command_loses_nothing(name: str, outcomes: dict[str, list[dict[str, Any]]]) -> None:
    kills = outcomes[f"moves of {name}"]
    assert len(kills) > 3 and kills[0]["killed"]
    assert len({o["landed"] for o in kills}) > 2  # moves are counted: these kills fall into several stages
    assert losses(kills) == []


def test_the_comparison_of_runs_detects_differences(tmp_path: Path) -> None:
    one, two = {"a": b"1", "b": b"2"}, {"a": b"1", "b": b"3", "c": b""}
    assert faults.differing_files(one, two) == ("b", "c")
    assert faults.differing_files(one, dict(one)) == ()
    (tmp_path / "manifest.json").write_text('{"identity": 1, "timings": 2, "checksum": "3"}')
    (tmp_path / ".lock").touch()
    assert faults.read_contents(tmp_path) == {"manifest.json": b'{"identity": 1}'}


def test_the_table_goes_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("# Page\n")
    records.write_table("faults", "table", page)
    new = page.read_text()
    assert new.startswith("# Page\n\n<!-- faults") and "-->\ntable\n<!--" in new
    page.write_text(new + "after\n")
    records.write_table("faults", "other", page)
    assert page.read_text() == new.replace("table", "other") + "after\n"
    one = {"killed": True, "landed": 2, "redone": [], "differing": ["x"], "faults": [], "lost_nothing": False}
    text = faults.format_table([one | {"run": name} for name in faults.RUNS])
    assert "| similarity | 1 | 0 | 2 | 0 | 1 | 0 | 0 |" in text
