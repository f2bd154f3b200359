"""Disks that fill up or cannot be written: one line, and the same command resumes once that is corrected."""

from __future__ import annotations

import errno
import io
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from analyses.benchmarks.faults import differing_files, read_contents
from featmap.errors import StoreError
from featmap.runs import integrity, lifecycle
from tests.helpers import kill_store, run_kinds

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PAGE = 4096
RUN = ["optimize", "features:0", "features:1:2", "features:1", *run_kinds.TWO[:-1]]
pytestmark = pytest.mark.usefixtures("one_thread")


class Full:
    """Files opened for writing take half of what is written to the k-th of them, then there is no space left."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.count, self.at, self.real, self.folder = 0, 0, io.open, str(folder)
        monkeypatch.setattr(io, "open", self)

    def __call__(self, file: Any, mode: str = "r", *more: Any, **named: Any) -> IO[Any]:
        stream: Any = self.real(file, mode, *more, **named)
        if str(file).startswith(self.folder) and "r" not in mode:
            self.count += 1
            if self.count == self.at:
                real = stream.write

                def write(data: Any) -> int:
                    real(bytes(data)[: len(data) // 2] if "b" in mode else data[: len(data) // 2])
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

                stream.write = write
        return stream


def test_a_disk_that_fills_within_any_write_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = Full(monkeypatch, tmp_path)
    kill_store.finish(tmp_path / "undisturbed")
    expected, total = kill_store.contents(tmp_path / "undisturbed"), full.count
    assert total > 20
    for k in range(1, total + 1):
        folder = tmp_path / f"full-{k}"
        full.count, full.at = 0, k
        with pytest.raises(StoreError, match="no space left"):
            kill_store.finish(folder)
        full.at = 0
        kill_store.finish(folder)
        assert kill_store.contents(folder) == expected
        assert integrity.inspect(folder).faults == []


def mount(place: Path, *options: str) -> None:
    subprocess.run(["mount", *options, str(place)], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A tiny disk in memory of one page, which can be enlarged."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        mount(place, "-t", "tmpfs", "-o", f"size={PAGE}", "tmpfs")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user may not mount a file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(REPOSITORY)
    # the estimate would refuse so small a disk before the first write
    monkeypatch.setattr(lifecycle, "free_space", lambda folder: 10**12)


MAP = ["similarity", "--layer", "features", *run_kinds.TWO[:-1]]


@pytest.mark.usefixtures("in_own_folder")
@pytest.mark.parametrize(
    ("command", "sizes"), [(RUN, range(1, 100, 7)), (MAP, range(90, 600, 61))], ids=["images", "map"]
)
@pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning")
def test_a_run_on_a_full_disk_is_resumed_once_there_is_space(
    command: list[str],
    sizes: range,
    disk: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_kinds.make_runs_cheap(monkeypatch)
    assert run_kinds.run_command(*command, "undisturbed") == 0
    expected, refused = read_contents(Path("undisturbed")), 0
    capsys.readouterr()
    for pages in sizes:
        mount(disk, "-o", f"remount,size={pages * PAGE}")
        status, printed = run_kinds.run_command(*command, "disk/run"), capsys.readouterr().err.splitlines()
        refused += status == 2
        assert status in (0, 2), printed
        assert status == 0 or printed[-1].endswith("no space left; free some, then repeat the call to resume")
        mount(disk, "-o", f"remount,size={1000 * PAGE}")
        assert run_kinds.run_command(*command, "disk/run") == 0
        capsys.readouterr()
        assert differing_files(read_contents(disk / "run"), expected) == ()
        assert integrity.inspect(disk / "run").faults == []
        subprocess.run(["rm", "-r", str(disk / "run")], check=True)
    assert 5 < refused < len(sizes)


@pytest.mark.usefixtures("in_own_folder")
def test_a_disk_that_fills_step_by_step_keeps_what_is_finished(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_kinds.run_command(*RUN, "undisturbed") == 0
    status, pages = 2, 20
    while status:
        pages += 5
        mount(disk, "-o", f"remount,size={pages * PAGE}")
        before = {p: p.stat().st_mtime_ns for p in (disk / "run").glob("units/[!.]*")}
        status = run_kinds.run_command(*RUN, "disk/run")
        assert {p: p.stat().st_mtime_ns for p in before} == before
    assert differing_files(read_contents(disk / "run"), read_contents(Path("undisturbed"))) == ()


@pytest.mark.usefixtures("in_own_folder")
def test_a_read_only_disk_can_be_read_and_refuses_writes_in_one_line(
    disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mount(disk, "-o", f"remount,size={1000 * PAGE}")
    assert run_kinds.run_command(*RUN, "disk/run") == 0
    assert run_kinds.run_command(*RUN, "disk/damaged") == 0
    run_kinds.flip_bit(disk / "damaged" / "images.csv")
    mount(disk, "-o", "remount,ro")
    capsys.readouterr()
    for words in (["verify", "disk/run"], [*RUN, "disk/run"], ["atlas", "disk/run", "--out", "elsewhere"]):
        assert run_kinds.run_command(*words) == 0, capsys.readouterr().err
    for words in (["atlas", "disk/run"], [*RUN, "disk/damaged"], [*RUN, "disk/new"]):
        capsys.readouterr()
        assert run_kinds.run_command(*words) == 2
        printed = capsys.readouterr().err.splitlines()[-1]
        assert "not writable (Read-only file system); choose another folder" in printed
    assert run_kinds.run_command("verify", "disk/damaged") == 1
