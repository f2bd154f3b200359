"""The README shows commands, options, output and Python lines as they are."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from functools import reduce
from importlib import import_module
from pathlib import Path

import pytest
import typer

from analyses import showcase
from featmap.cli.app import app, main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
COMMAND_LINES = re.findall(r"^(?:    |\$ )(featmap .*)$", README, flags=re.MULTILINE)
(SESSION,) = re.findall(r"```console\n(.*?)```", README, flags=re.DOTALL)


def unknown_options(words: Sequence[str]) -> set[str]:
    """Return the options of a command, its name first, that it does not have."""
    known = {option for p in COMMANDS[words[0]].params for option in (*p.opts, *p.secondary_opts)}
    return {word for word in words if word.startswith("--")} - known


def test_every_command_is_documented() -> None:
    assert set(COMMANDS) == {shlex.split(line)[1] for line in COMMAND_LINES} | set(
        re.findall(r"`featmap (\w+)`", README)
    )


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_documented_commands_and_options_exist(line: str) -> None:
    assert unknown_options(shlex.split(line.partition("  #")[0])[1:]) == set()


def test_pictures_are_made_by_the_commands_beside_them() -> None:
    for command in showcase.COMMANDS.values():
        assert unknown_options(command) == set()
    assert set(re.findall(r"analyses/pictures/(\w+)\.png", README)) == {*showcase.COMMANDS, "googlenet"}
    assert unknown_options(showcase.IMAGENET) == set() and shlex.join(showcase.IMAGENET[1:]) in README
    for name in showcase.PICTURES:
        assert "featmap " + shlex.join(showcase.COMMANDS[name]) in README


def test_the_two_commands_stand_at_the_top() -> None:
    first = re.findall(r"^    (.*)$", README, flags=re.MULTILINE)[:2]
    assert first == ["pip install . && featmap similarity --layer inception4a", "pip install -e '.[test]' && pytest"]


def test_pictures_and_links_exist() -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(targets) >= 5
    assert [t for t in targets if not (ROOT / t).is_file()] == []


def test_formulas_and_decisions_are_where_contributing_says() -> None:
    rows = [line for line in CONTRIBUTING.splitlines() if re.match(r"\| .* \| `[a-z]+\.[a-z_]+\.", line)]
    names = [name for row in rows for name in re.findall(r"`([a-z]+\.[a-z_]+\.[\w.]+)`", row)]
    assert len(rows) >= 15 and len(names) == sum(row.count("`") for row in rows) / 2
    for name in names:
        room, module, *attributes = name.split(".")
        found = reduce(getattr, attributes, import_module(f"featmap.{room}.{module}"))
        assert callable(found) and found.__doc__, name


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


@pytest.mark.slow
@pytest.mark.usefixtures("cheap_runs")
def test_the_first_session_prints_what_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # fewer and smaller images than a reader would make: the lines are compared but for their numbers
    small = ["--features", "0-47", "--stimuli", "shown", "--size", "48", "--steps", "6", "--device", "cpu"]
    commands = [shlex.split(line[2:])[1:] for line in SESSION.splitlines() if line.startswith("$")]
    assert [words[0] for words in commands] == ["similarity", "neighbours"]
    for words in ([*commands[0], *small, "--out", "run"], ["run" if "runs/" in w else w for w in commands[1]]):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 0
    printed = capsys.readouterr().out.splitlines()
    shown = [line for line in SESSION.splitlines() if line != "[...]" and not line.startswith("$")]
    assert [line for line in shown if not any(pattern_of(line).match(other) for other in printed)] == []


def pattern_of(line: str) -> re.Pattern[str]:
    """Build the pattern of a printed line up to its omitted end: its words, with any numbers and alignment."""
    words = line.partition("[...]")[0].partition(" (atlas.html")[0].split()
    return re.compile(r"\s+".join(r"\S+" if re.search(r"[\d/]", word) else re.escape(word) for word in words))


@pytest.mark.slow
@pytest.mark.usefixtures("cheap_runs")
def test_the_python_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    # fewer steps and smaller images than a reader would take: the lines, not the numbers, are under test
    assert block.count("steps=20") == 2
    block = block.replace("steps=20", "steps=2, size=64")
    with pytest.warns(UserWarning, match="below 32"):
        exec(compile(block, "README.md", "exec"), scope := {})
    assert list(scope["result"].features.index) == [f"inception4a:{c}" for c in range(16)]
    assert scope["pair"].crossings["inception4a", "inception4b"].measures["profile"].shape == (16, 16)
    assert scope["A"].sizes["image"] == 2 and scope["both"].sizes["image"] == 1
    assert len(scope["duo"].statistics) == 3 and not scope["trial"].statistics.empty
