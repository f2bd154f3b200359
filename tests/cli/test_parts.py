"""The parts that a command lists are those that it reports, in that order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from featmap.cli import console
from featmap.runs import estimate
from featmap.runs.estimate import Part
from tests.helpers import planted_photographs, run_kinds
from tests.helpers.run_kinds import KINDS, MAP, SMALL

pytestmark = pytest.mark.usefixtures("one_thread")
SILENT = {"panel", "screening"}
"""Parts that watchers hear nothing of."""
PICTURED = ["similarity", "--layers", "second,first", "--features", "0-3", "--photographs", "photographs", *SMALL]
STANDARD = ["--mean", "0,0,0", "--std", "1,1,1", "--input-size", "16"]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[list[Part], list[str]]]:
    """Of each piece of work with progress: the parts that were listed, and the names that were reported."""
    monkeypatch.chdir(tmp_path)
    run_kinds.make_runs_cheap(monkeypatch)
    seen: list[tuple[list[Part], list[str]]] = []
    usual = console.run_with_progress

    def watched(work: Callable[[Any], Any], parts: Sequence[Part] = ()) -> Any:
        seen.append((list(parts), []))
        return usual(work, parts)

    def reporting(name: str) -> None:
        original = getattr(console.ProgressBars, name)

        def report(self: Any, *arguments: Any) -> None:
            told = "maximising" if name == "begin" else arguments[0]
            latest = self.stages.get(told, (0, 0, -1))[2]
            again = name == "begin" or arguments[1] < latest or arguments[2] == latest
            if again or seen[-1][1][-1:] != [told]:
                seen[-1][1].append(told)
            original(self, *arguments)

        monkeypatch.setattr(console.ProgressBars, name, report)

    monkeypatch.setattr(console, "run_with_progress", watched)
    reporting("begin")
    reporting("stage")
    return seen


def check(seen: list[tuple[list[Part], list[str]]]) -> None:
    """Every part that is listed is reported after those before it."""
    listed = [part.name for parts, _ in seen for part in parts if part.name not in SILENT]
    reported = [name for _, names in seen for name in names]
    assert listed
    at = -1
    for name in listed:
        assert name in reported[at + 1 :], f"{name} is not reported after {listed[: listed.index(name)]}: {reported}"
        at = reported.index(name, at + 1)
    seen.clear()


@pytest.mark.parametrize("kind", ["optimize", "pairs", pytest.param("screening", marks=pytest.mark.slow)])
def test_parts_are_those_that_are_reported(kind: str, commands: list[tuple[list[Part], list[str]]]) -> None:
    (command,) = KINDS[kind]
    assert run_kinds.run_command(*command) == 0
    check(commands)


@pytest.mark.slow
def test_parts_with_photographs_and_of_a_validation(
    commands: list[tuple[list[Part], list[str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted_photographs.save_photographs(tmp_path / "photographs")
    assert run_kinds.run_command(*PICTURED, *STANDARD) == 0
    check(commands)
    assert run_kinds.run_command(*MAP[:-1], "map") == 0
    commands.clear()
    assert run_kinds.run_command("validate", "map", "--seeds", "2", "--null-seeds", "1") == 0
    check(commands)


def test_the_atlas_is_counted_where_one_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    later: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimate, "measure_pace", lambda: 1.0)
        patch.setattr(console, "print_estimate", lambda found, *_: later.append(found.later))
        for more in ([], ["--no-atlas"]):
            assert run_kinds.run_command(*MAP, *more, "--dry-run") == 0
    assert later[0] - later[1] == pytest.approx(estimate.part(estimate.ATLAS, 11).seconds)
    assert later[1] > estimate.part(estimate.CLUSTERS, 11).seconds
