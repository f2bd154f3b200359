"""Every command that reads a run, on runs damaged at random: one line and status 2, or the right answer."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import featmap
from featmap.errors import FeatmapError
from featmap.runs.manifest import CHECKSUM, COPY, MANIFEST, signed_text
from tests.helpers import run_kinds

REPOSITORY = Path(__file__).resolve().parent.parent.parent
READERS = {
    "neighbours": ["neighbours", "second:1", "run"],
    "probe": ["probe", "run", "--layers", "first", "--out", "probed"],
    "atlas": ["atlas", "run", "--no-maps", "--out", "pages"],
    "validate": ["validate", "run", "--seeds", "2", "--null-seeds", "0", "--dry-run"],
    "judge": ["judge", "run", "--by", "tests.helpers.tiny:other", "--by-input-size", "16", "--out", "judged"],
    "verify": ["verify", "run"],
}
FEW = settings(
    max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
pytestmark = [
    pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning"),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a finished run in it, in which the tests of this file work."""
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(REPOSITORY)
        run_kinds.make_runs_cheap(patched)
        folder = tmp_path_factory.mktemp("damaged")
        patched.chdir(folder)
        assert run_kinds.run_command(*run_kinds.MAP, "--no-atlas") == 0
        yield folder


def read(name: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run one reading command; whatever happens, the outcome is one line or an answer."""
    capsys.readouterr()
    status = run_kinds.run_command(*READERS[name])
    printed = capsys.readouterr()
    for folder in ("probed", "pages", "judged"):
        shutil.rmtree(folder, ignore_errors=True)
    if name == "verify" and status == 1:
        return status, printed.out
    assert status in (0, 2), (name, printed.err)
    if status == 2:
        lines = printed.err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("featmap: "), printed.err
        assert "unexpected" not in lines[0] and "Traceback" not in printed.err
    return status, printed.out


@pytest.fixture(scope="module")
def answers(place: Path) -> dict[str, Any]:
    data = featmap.open_arrays("run").load()
    return {"A": data["A"].values.tobytes(), "files": run_kinds.files_of(Path("run"))}


def damage(path: Path, how: str, dice: random.Random) -> None:
    if how == "flip":
        run_kinds.flip_bit(path, dice.random())
    elif how == "cut":
        os.truncate(path, dice.randrange(path.stat().st_size or 1))
    elif how == "grow":
        path.write_bytes(path.read_bytes() + bytes(dice.randrange(256) for _ in range(9)))
    elif how == "noise":
        path.write_bytes(bytes(dice.randrange(256) for _ in range(dice.randrange(200))))
    else:
        path.unlink()


@FEW
@given(number=st.integers(0, 2**20), how=st.sampled_from(["flip", "cut", "grow", "noise", "lose"]))
def test_a_damaged_file_is_refused_or_does_no_harm(
    number: int, how: str, place: Path, answers: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = answers["files"][number % len(answers["files"])]
    before, dice = path.read_bytes(), random.Random(number)
    right = {name: read(name, capsys) for name in ("neighbours",)}
    damage(path, how, dice)
    try:
        changed = not path.is_file() or path.read_bytes() != before
        assert read("verify", capsys)[0] == (1 if changed else 0)
        status, printed = read("neighbours", capsys)
        assert status == 2 or (status, printed) == right["neighbours"]
        name = dice.choice(["probe", "atlas", "validate"])
        assert read(name, capsys)[0] == (2 if changed and path != Path("run", COPY) else 0) or path == Path("run", COPY)
        try:
            featmap.open_arrays("run")
        except FeatmapError as error:
            assert "run" in str(error)
    finally:
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(before)


def mutated(values: Any, dice: random.Random) -> Any:
    """JSON values with one of them lost, renamed or replaced, somewhere."""
    junk: list[Any] = [None, 0, -1, 1e308, "", "x" * 50, [], {}, [[]], True, "../../x", {"a": [1]}]
    if isinstance(values, dict) and values and dice.random() < 0.85:
        key = dice.choice(list(values))
        if dice.random() < 0.3:
            return {k if k != key or dice.random() < 0.5 else "other": v for k, v in values.items() if k != key}
        return values | {key: mutated(values[key], dice)}
    if isinstance(values, list) and values and dice.random() < 0.6:
        at = dice.randrange(len(values))
        return [*values[:at], mutated(values[at], dice), *values[at + 1 :]]
    return dice.choice(junk)


@FEW
@given(seed=st.integers(0, 2**32), reader=st.sampled_from(sorted(READERS)), signed=st.booleans())
def test_a_mutated_manifest_is_refused_or_does_no_harm(
    seed: int, reader: str, signed: bool, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the checksum was computed again after the change."""
    path, dice = Path("run", MANIFEST), random.Random(seed)
    before = path.read_bytes()
    values = json.loads(before)
    values.pop(CHECKSUM)
    changed = mutated(values, dice)
    text = signed_text(changed) if signed and isinstance(changed, dict) else json.dumps(changed)
    path.write_text(text, encoding="utf-8")
    try:
        read(reader, capsys)
        status = run_kinds.run_command(*run_kinds.MAP, "--no-atlas", "--dry-run")
        assert status == 0
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("reader", sorted(READERS))
def test_a_newer_format_is_refused_by_every_reader(
    reader: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("run", MANIFEST)
    before = path.read_bytes()
    path.write_text(signed_text(json.loads(before) | {"format": 99}), encoding="utf-8")
    try:
        commands = [READERS[reader], [*run_kinds.MAP], ["validate", "run"], ["atlas", "run", "--interactions", "run"]]
        for command in commands:
            capsys.readouterr()
            assert run_kinds.run_command(*command) == 2
            assert "has format 99" in (printed := capsys.readouterr().err) and "update featmap" in printed
    finally:
        path.write_bytes(before)
