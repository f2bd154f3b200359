"""Folders of starts that failed: they are removed, or give way; what holds a result stays."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featmap.errors import IncompleteError, StoreError
from featmap.runs import folder_layout
from featmap.runs.folder_layout import ArraySpec
from featmap.runs.store import Run

ONE, OTHER = {"seeds": [0]}, {"seeds": [1]}
COORDS = {"image": np.arange(4)}


def opened(folder: Path, identity: dict[str, Any], length: int = 4) -> Run:
    spec = ArraySpec(("image",), (length,), (2,))
    return Run(folder, identity).open({"values": spec}, {"image": np.arange(length)}, {"command": "test"})


def land(run: Run) -> None:
    run.land("u0", {"values": ((slice(0, 2),), np.ones(2, np.float32))})


def fail(run: Run, error: BaseException, before: Callable[[Run], Any] = lambda run: None) -> None:
    with pytest.raises(type(error)), run.locked():
        before(run)
        raise error


@pytest.mark.parametrize(
    "error", [StoreError("bad"), MemoryError(), KeyboardInterrupt()], ids=lambda e: type(e).__name__
)
def test_a_start_that_fails_before_any_result_leaves_no_folder(tmp_path: Path, error: BaseException) -> None:
    folder = tmp_path / "runs" / "run"
    fail(opened(folder, ONE), error)
    assert not folder.exists() and (tmp_path / "runs").is_dir()
    run = opened(folder, OTHER)
    land(run)
    run.unlock()
    assert Run.read(folder).identity == OTHER


def test_a_folder_that_was_there_is_emptied_and_kept(tmp_path: Path) -> None:
    fail(opened(tmp_path, ONE), StoreError("bad"))
    assert tmp_path.is_dir() and not list(tmp_path.iterdir())


RESULTS: dict[str, Callable[[Run], Any]] = {
    "a work unit": land,
    "a table": lambda run: run.write("table.csv", lambda p: p.write_text("a\n")),
    "an inner run": lambda run: run.register_part(run.folder / "inner"),
    "a file of the user's": lambda run: (run.folder / "notes.txt").write_text("mine"),
}


@pytest.mark.parametrize("make", RESULTS.values(), ids=RESULTS)
def test_whatever_holds_a_result_stays_and_refuses_other_settings(tmp_path: Path, make: Callable[[Run], Any]) -> None:
    folder = tmp_path / "run"
    fail(opened(folder, ONE), StoreError("bad"), make)
    before = {
        p: p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.name not in (folder_layout.LOCK, folder_layout.OWNER)
    }
    with pytest.raises(StoreError, match=r"seeds: .* there, .* here"):
        opened(folder, OTHER)
    Run(folder, OTHER).unlock()
    assert {p: p.read_bytes() for p in before} == before and len(before) > 4
    opened(folder, ONE).unlock()


def test_a_folder_that_was_resumed_is_not_removed(tmp_path: Path) -> None:
    opened(tmp_path / "run", ONE).unlock()
    fail(opened(tmp_path / "run", ONE), StoreError("bad"))
    assert Run.read(tmp_path / "run").identity == ONE


def test_units_of_an_engines_workers_may_still_be_on_their_way(tmp_path: Path) -> None:
    def use_ray(run: Run) -> None:
        run.manifest.engines = [{"engine": "ray", "workers": 2, "threads": 1}]

    fail(opened(tmp_path / "run", ONE), StoreError("bad"), use_ray)
    assert Run.read(tmp_path / "run").identity == ONE
    fail(opened(tmp_path / "other", ONE), IncompleteError("units are missing"))
    assert Run.read(tmp_path / "other").identity == ONE


def test_a_killed_start_gives_way_to_other_settings(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    opened(folder, ONE).unlock()  # as a killed process leaves it: nothing has landed
    (folder / "units" / ".u0.1234.part.json").write_text("{")  # nor has this
    run = opened(folder, OTHER, length=6)
    assert run.arrays["values"].shape == (6,) and run.arrays["image"].shape == (6,)
    land(run)
    run.unlock()
    assert Run.read(folder).identity == OTHER


def test_a_start_in_another_process_does_not_give_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    opened(folder, ONE).unlock()
    monkeypatch.setattr(folder_layout, "acquire_lock", lambda folder: None)  # a file system without locks
    with pytest.raises(StoreError, match="other settings"):
        opened(folder, OTHER)
    assert Run.read(folder).identity == ONE


def test_a_failed_first_write_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_to_write(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("featmap.runs.store.write_layout", fail_to_write)
    with pytest.raises(StoreError, match="no space left"):
        opened(tmp_path / "run", ONE)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_removed_hides_no_other_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    run = opened(tmp_path / "run", ONE)
    monkeypatch.setattr(Path, "rmdir", refuse)
    fail(run, StoreError("the first error"))
    monkeypatch.undo()
    opened(tmp_path / "run", OTHER).unlock()
    shutil.rmtree(tmp_path / "run")
