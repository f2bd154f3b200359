"""Starts that fail, of every command that writes a folder: the same folder takes the next start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from featmap.cli import app
from featmap.interaction import worker as joint_worker
from featmap.runs import integrity, manifest
from featmap.runs import worker as runs_worker
from tests.cli.test_app import MAP, SMALL, at_home, fail, succeed
from tests.helpers import twofold

assert at_home  # the fixture under which every test works in a folder of its own

pytestmark = pytest.mark.usefixtures("cheap_runs")

MODEL = SMALL[:2]
PROBE = ["probe", "photographs", "--layers", "first", *MODEL, "--size", "16"]
UNITS = ["maximise", "second:1", "second:2", *SMALL]
PAIR = ["interact", "second:3", "first:5", *SMALL, "--seeds", "1"]
BAD: dict[str, tuple[list[str], list[str]]] = {  # a wrong start, and the one that follows it
    "similarity, layer": (["similarity", "--layer", "secnd", *SMALL], MAP),
    "similarity, size": ([*MAP, "--size", "0"], MAP),
    "similarity, start": ([*MAP, "--start", "gone.jpg"], MAP),
    "maximise, unit": (["maximise", "second:99", *SMALL], UNITS),
    "maximise, model": ([*UNITS, "--model", "tests.helpers.tiny:nothing"], UNITS),
    "interact, unit": (["interact", "second:3", "first:99", *SMALL], PAIR),
    "probe, layer": ([*PROBE, "--layers", "frst"], PROBE),
    "probe, size": ([*PROBE, "--size", "0"], PROBE),
}


@pytest.mark.parametrize(("wrong", "right"), BAD.values(), ids=BAD)
def test_wrong_input_leaves_no_folder(wrong: list[str], right: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    twofold.photographs(Path("photographs"), count=3)
    fail(capsys, *wrong, "--out", "run")
    assert not Path("run").exists() and not Path("runs").exists()
    succeed(capsys, *right, "--out", "run")
    assert manifest.read(Path("run")).is_complete


class OutOfMemory:
    """The first work unit of a run needs more memory than there is."""

    def __call__(self, *_: Any, **__: Any) -> None:
        raise MemoryError


LATE: dict[str, tuple[list[str], Callable[[pytest.MonkeyPatch], None]]] = {
    "similarity": (
        MAP,
        lambda patch: patch.setattr(runs_worker.Worker, "make", OutOfMemory()),
    ),
    "maximise": (
        UNITS,
        lambda patch: patch.setattr(runs_worker.Worker, "make", OutOfMemory()),
    ),
    "interact": (
        PAIR,
        lambda patch: patch.setattr(joint_worker.JointWorker, "work", OutOfMemory()),
    ),
    "screening": (
        [
            *("interact", "--layers", "second", "first", "--features", "0-1", "0-1", "--screen", "--seeds", "1"),
            *("--top", "1", "--checks", "2", *SMALL),
        ],
        lambda patch: patch.setattr(runs_worker.Worker, "make", OutOfMemory()),
    ),
    "interact of layers": (
        ["interact", "--layers", "second", "first", "--features", "0-1", "0", *SMALL, "--seeds", "1"],
        lambda patch: patch.setattr(joint_worker.JointWorker, "work", OutOfMemory()),
    ),
}


def end(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run a command; return its status, output and notes."""
    with pytest.raises(SystemExit) as ended:
        app.main(list(arguments))
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


@pytest.mark.parametrize(("command", "spoil"), LATE.values(), ids=LATE)
def test_a_failure_at_the_first_work_unit_blocks_no_other_settings(
    command: list[str],
    spoil: Callable[[pytest.MonkeyPatch], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        spoil(patch)
        status, _, notes = end(capsys, *command, "--out", "run")
        assert status == 2 and "out of memory" in notes.splitlines()[-1]
    assert not Path("run").exists()
    succeed(capsys, *command, "--rows", "2", "--out", "run")
    assert manifest.read(Path("run")).is_complete


def test_a_probe_that_was_refused_starts_again_without_the_broken_files(capsys: pytest.CaptureFixture[str]) -> None:
    folder = twofold.photographs(Path("photographs"), count=5)
    for name, content in (("a.jpg", b""), ("b.png", b"no picture"), (".hidden.jpg", b""), ("notes.txt", b"")):
        (folder / name).write_bytes(content)
    status, _, notes = end(capsys, *PROBE)
    assert (
        status == 2
        and "'a.jpg' (it is empty), 'b.png' (it is truncated or not an image)" in notes
        and not Path("runs").exists()
    )
    status, printed, notes = end(capsys, *PROBE, "--skip-broken")
    assert status == 0 and "5 images x " in printed
    assert "5 photographs of 'photographs'; left out: 1 .txt, 1 hidden" in notes
    assert "2 skipped that cannot be read: 'a.jpg' (it is empty)" in notes
    (run,) = Path("runs").iterdir()
    recorded = manifest.read(run).photographs
    assert recorded["count"] == 5 and recorded["left_out"] == {".txt": 1, "hidden": 1}
    assert recorded["broken"] == {"a.jpg": "it is empty", "b.png": "it is truncated or not an image"}
    for name in ("a.jpg", "b.png"):
        (folder / name).unlink()
    assert succeed(capsys, *PROBE) == printed  # resumed: the photographs are the same
    assert "broken" not in manifest.read(run).photographs
    Image.new("RGB", (8, 8)).save(folder / "new.png")
    assert "6 images x " in succeed(capsys, *PROBE)  # not refused by the folder of the five
    assert len(list(Path("runs").iterdir())) == 2


@pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning")
def test_a_validation_that_fails_leaves_its_run_as_it_was(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = twofold.photographs(Path("photographs"), count=33)
    (folder / "a.jpg").write_bytes(b"")
    (folder / "b.jpg").write_bytes(b"")
    succeed(capsys, *MAP, "--no-atlas", "--out", "run")
    before = {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}
    command = ["validate", "run", "--photographs", "photographs", "--seeds", "2", "--null-seeds", "0"]
    status, _, notes = end(capsys, *command)
    assert status == 2 and "2 cannot be read: 'a.jpg' (it is empty), 'b.jpg' (it is empty)" in notes
    assert {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()} == before
    with monkeypatch.context() as patch:
        patch.setattr(runs_worker.Worker, "make", OutOfMemory())
        status, _, notes = end(capsys, *command, "--skip-broken")
    assert status == 2 and "out of memory" in notes
    assert not Path("run/validation").exists() and integrity.inspect(Path("run")).faults == []
    status, _, notes = end(capsys, *command, "--skip-broken")
    assert status == 0 and "2 skipped that cannot be read: 'a.jpg' (it is empty)" in notes
    assert manifest.read(Path("run/validation")).photographs["broken_count"] == 2
    page = Path("run/validation/validation.md").read_text()
    assert "33 photographs of the folder 'photographs'; 2 skipped that cannot be read: 'a.jpg' (it is empty)" in page
    (folder / "000.jpg").unlink()
    (folder / "001.png").write_bytes(b"")
    status, _, notes = end(capsys, *command, "--skip-broken")
    assert status == 2 and "31 photographs; give 32 or more" in notes
