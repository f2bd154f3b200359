"""The README's commands and Python lines are those that exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest
import typer

from analyses import showcase
from featmap.cli.app import app

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
BLOCKS = re.findall(r"^    (featmap .*)$", README, flags=re.MULTILINE)


def unknown_options(words: Sequence[str]) -> set[str]:
    """Return the options of a command, its name first, that it does not have."""
    known = {option for p in COMMANDS[words[0]].params for option in (*p.opts, *p.secondary_opts)}
    return {word for word in words if word.startswith("--")} - known


def test_every_command_is_documented() -> None:
    assert set(COMMANDS) == {shlex.split(line)[1] for line in BLOCKS} | set(re.findall(r"`featmap (\w+)`", README))


@pytest.mark.parametrize("line", BLOCKS)
def test_documented_commands_and_options_exist(line: str) -> None:
    assert unknown_options(shlex.split(line.partition("  #")[0])[1:]) == set()


def test_pictures_are_made_by_the_commands_beside_them() -> None:
    for given in showcase.COMMANDS.values():
        assert unknown_options(given) == set()
    assert set(re.findall(r"analyses/pictures/(\w+)\.png", README)) == set(showcase.COMMANDS)
    for name in showcase.PICTURES:
        assert "featmap " + shlex.join(showcase.COMMANDS[name]) in README


def test_the_two_commands_stand_at_the_top() -> None:
    first = re.findall(r"^    (.*)$", README, flags=re.MULTILINE)[:2]
    assert first == ["pip install . && featmap similarity --layer inception4a", "pip install -e '.[test]' && pytest"]


def test_pictures_and_links_exist() -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(targets) >= 5
    assert [t for t in targets if not (Path(__file__).resolve().parent.parent / t).is_file()] == []


@pytest.mark.slow
def test_the_python_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    # fewer steps and smaller images than a reader would take: the lines, not the numbers, are under test
    block = block.replace("steps=20", "steps=2, size=64")
    with pytest.warns(UserWarning, match="below 32"):
        exec(compile(block, "README.md", "exec"), scope := {})
    assert list(scope["found"].features.index) == [f"inception4a:{c}" for c in range(16)]
    assert scope["pair"].crossings["inception4a", "inception4b"].measures["profile"].shape == (16, 16)
    assert scope["A"].sizes["image"] == 2 and scope["both"].sizes["image"] == 1
