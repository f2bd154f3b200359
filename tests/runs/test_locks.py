"""One process writes a run folder at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from featmap.errors import StoreError
from featmap.runs.folder_layout import LOCK, OWNER, ArraySpec
from featmap.runs.store import Run

ARRAYS = {"x": ArraySpec(("row",), (4,), (2,))}
COORDS = {"row": np.arange(4)}

HOLDER = """
import sys
from pathlib import Path
import numpy as np
from featmap.runs.folder_layout import ArraySpec
from featmap.runs.store import Run
run = Run(Path(sys.argv[1]), {"a": 1}).open({"x": ArraySpec(("row",), (4,), (2,))}, {"row": np.arange(4)}, {})
print("held", flush=True)
sys.stdin.readline()
if sys.argv[2] == "unlock":
    run.unlock()
    print("free", flush=True)
    sys.stdin.readline()
"""


def opened(folder: Path) -> Run:
    return Run(folder, {"a": 1}).open(ARRAYS, COORDS, {})


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "run"
    Run(tmp_path / "run", {}).unlock()


def holder(folder: Path, then: str = "end") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, str(folder), then]
    started = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None and started.stdout.readline() == "held\n"
    return started


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


def test_a_folder_of_another_process_is_refused_and_its_owner_named(folder: Path) -> None:
    other = holder(folder)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(StoreError, match=rf"being written by process {other.pid} on .*choose another folder"):
        opened(folder)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    end(other)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_dead_process_is_taken_over(folder: Path, how: signal.Signals) -> None:
    other = holder(folder)
    os.kill(other.pid, how)
    other.wait()
    assert (folder / OWNER).is_file()  # left behind by the dead
    assert opened(folder).manifest.status == "running"
    assert str(os.getpid()) in (folder / OWNER).read_text()
    end(other)


def test_an_unlocked_folder_can_be_locked(folder: Path) -> None:
    other = holder(folder, "unlock")
    assert other.stdin is not None and other.stdout is not None
    other.stdin.write("\n")
    other.stdin.flush()
    assert other.stdout.readline() == "free\n"
    opened(folder)
    end(other)


def test_a_process_may_open_its_own_folder_again(folder: Path) -> None:
    opened(folder)
    opened(folder)


def test_a_folder_is_unlocked_after_an_exception(folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt), opened(folder).locked():
        raise KeyboardInterrupt
    assert not (folder / OWNER).exists()
    end(holder(folder))


def test_a_folder_with_only_a_lock_is_not_foreign(folder: Path) -> None:
    folder.mkdir()
    (folder / LOCK).touch()
    assert opened(folder).manifest.identity == {"a": 1}


def test_an_unreadable_owner_is_another_process(folder: Path) -> None:
    other = holder(folder)
    (folder / OWNER).write_text("{")
    with pytest.raises(StoreError, match="being written by another process"):
        opened(folder)
    end(other)


def test_runs_work_without_locks_where_there_are_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no locks here")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    assert opened(folder).manifest.status == "running"
