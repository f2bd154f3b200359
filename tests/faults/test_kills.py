"""A process killed at any moment loses nothing: the same command completes the run, bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analyses.benchmarks import faults, records
from tests.helpers.kill_outcomes import KILLS, kill_in_process, losses, needs_fork

pytestmark = needs_fork


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """The outcomes of kills of commands at random moments."""
    return kill_in_process("tests.helpers.kill_commands", tmp_path_factory.mktemp("kills"), "random")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["similarity", "interact"])
def test_a_kill_at_any_moment_loses_nothing(name: str, outcomes: dict[str, list[dict[str, Any]]]) -> None:
    kills = outcomes[name]
    assert sum(o["killed"] for o in kills) == KILLS
    assert losses(kills) == []


def test_a_kill_between_any_two_moves_loses_nothing(tmp_path: Path) -> None:
    """Of a run of the store alone, which takes milliseconds: every move can be tried."""
    kills = kill_in_process("tests.helpers.kill_store", tmp_path)
    assert [o["moment"] for o in kills] == list(range(1, len(kills) + 1))
    assert [o["killed"] for o in kills] == [True] * (len(kills) - 1) + [False]
    assert len(kills) > 20  # owner, two manifests thrice, metadata and coordinates, chunks and records, a table
    assert [o for o in kills if o["differing"] or o["redone"] or o["faults"]] == []


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
