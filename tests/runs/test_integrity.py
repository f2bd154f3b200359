"""`featmap verify`: the faults that it lists, its lines and exit statuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from featmap import files
from featmap.cli import app
from featmap.errors import StoreError
from featmap.runs import integrity
from featmap.runs.folder_layout import ArraySpec
from featmap.runs.integrity import CHANGED, FOREIGN, MISSING, UNFINISHED, Fault
from featmap.runs.manifest import COMPLETE, COPY, FORMAT, MANIFEST
from featmap.runs.store import Run

ARRAYS = {"x": ArraySpec(("row",), (4,), (2,))}
COORDS = {"row": np.arange(4)}
UNITS = {"u0": slice(0, 2), "u2": slice(2, 4)}


def start(folder: Path, units: tuple[str, ...] = ("u0", "u2")) -> Run:
    run = Run(folder, {"command": "test"}).open(ARRAYS, COORDS, {})
    for unit in units:
        run.land(unit, {"x": ((UNITS[unit],), np.arange(2, dtype=np.float32))})
    return run


def finish(folder: Path) -> Run:
    run = start(folder)
    run.write("table.csv", lambda p: p.write_text("a\n1\n"))
    run.manifest.status, run.manifest.units = COMPLETE, {u: run.read_record(u) for u in UNITS}
    run.save()
    run.unlock()
    return run


def faults(folder: Path) -> list[tuple[str, str]]:
    return [(f.kind, f.path) for f in integrity.inspect(folder).faults]


def verify(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        app.main(["verify", *arguments])
    printed = capsys.readouterr()
    return int(end.value.code or 0), printed.out, printed.err


def test_an_undamaged_run_is_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finish(tmp_path / "run")
    status, out, err = verify(capsys, str(tmp_path / "run"))
    assert (status, err) == (0, "")
    # 2 of the group, 2 an array, .zmetadata, a chunk of labels, 2 of x; 2 manifests, 2 records, a table
    assert out.startswith(f"{tmp_path / 'run'}: whole: 15 files, 0.0 MB, 2 work units")
    assert len(out.splitlines()) == 1


def test_faults_are_a_line_each_then_a_summary_and_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = finish(tmp_path / "run").folder
    (folder / "table.csv").write_text("a\n2\n")
    (folder / "arrays.zarr" / "x" / "1").unlink()
    (folder / "notes.txt").touch()
    status, out, err = verify(capsys, str(folder))
    assert (status, err) == (1, "")
    assert out.splitlines() == [
        "changed: table.csv",
        "missing: arrays.zarr/x/1 (unit u2)",
        "foreign: notes.txt",
        f"{folder}: 3 faults (1 changed, 1 missing, 1 foreign) in 14 files, 0.0 MB, 2 work units",
        "repeating the command of the run computes only these again",
    ]


def test_json_lists_the_same_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = finish(tmp_path / "run").folder
    status, out, _ = verify(capsys, str(folder), "--json")
    assert (status, json.loads(out)["whole"], json.loads(out)["files"]) == (0, True, 15)
    (folder / "table.csv").unlink()
    status, out, _ = verify(capsys, "--json", str(folder))
    assert status == 1
    assert json.loads(out)["faults"] == [{"kind": "missing", "path": "table.csv", "detail": ""}]


def test_a_folder_that_is_not_a_run_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, words in ((tmp_path / "nowhere", "no such folder"), (tmp_path, "is not a run folder")):
        status, out, err = verify(capsys, str(folder))
        assert (status, out, len(err.splitlines())) == (2, "", 1)
        assert words in err


def test_an_unfinished_run_says_how_much_is_missing(tmp_path: Path) -> None:
    start(tmp_path, ("u0",)).unlock()
    assert [str(f) for f in integrity.inspect(tmp_path).faults] == [
        "unfinished: manifest.json (status running; the run's own command resumes it)",
        "unfinished: arrays.zarr/x (1 of 2 chunks are still to be computed, the first 1)",
    ]


def test_a_unit_left_out_of_a_finished_run_is_unfinish(tmp_path: Path) -> None:
    run = start(tmp_path, ("u0",))
    run.manifest.status, run.manifest.units = COMPLETE, {"u0": run.read_record("u0"), "u2": None}
    run.save()
    run.unlock()
    assert faults(tmp_path) == [(UNFINISHED, "units/u2.json"), (UNFINISHED, "arrays.zarr/x")]


def test_records_are_compared_with_the_manifest(tmp_path: Path) -> None:
    finish(tmp_path)
    chunk, record = tmp_path / "arrays.zarr" / "x" / "0", tmp_path / "units" / "u0.json"
    before = chunk.read_bytes(), record.read_text()
    chunk.write_bytes(b"other")
    name = "arrays.zarr/x/0"
    record.write_text(before[1].replace(json.loads(before[1])[name], files.hash_file(chunk)))
    assert faults(tmp_path) == [(CHANGED, "units/u0.json"), (CHANGED, name)]


def test_damaged_metadata_and_coordinates_are_faults(tmp_path: Path) -> None:
    finish(tmp_path)
    for name in (".zmetadata", "x/.zarray", "x/.zattrs", "row/0", ".zgroup"):
        path = tmp_path / "arrays.zarr" / name
        before = path.read_bytes()
        path.write_bytes(before + b" ")
        assert (CHANGED, f"arrays.zarr/{name}") in faults(tmp_path)
        path.write_bytes(before)
    assert faults(tmp_path) == []


def test_a_manifest_and_its_copy_replace_each_other(tmp_path: Path) -> None:
    finish(tmp_path)
    for name in (MANIFEST, COPY):
        before = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(before.replace(b"complete", b"Complete"))
        assert faults(tmp_path) == [(CHANGED, name)]
        (tmp_path / name).unlink()
        assert faults(tmp_path) == [(MISSING, name)]
        (tmp_path / name).write_bytes(before)
    for name in (MANIFEST, COPY):
        (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(StoreError, match=r"and its copy .* are damaged"):
        integrity.inspect(tmp_path)


def test_foreign_files_links_and_runs_are_named_in_one_line_each(tmp_path: Path) -> None:
    finish(tmp_path)
    finish(tmp_path / "other")
    (tmp_path / "arrays.zarr" / "x" / "7").touch()
    (tmp_path / ".table.12.part.csv").touch()
    (tmp_path / "two\nlines\u202e.txt").touch()
    (tmp_path / "link").symlink_to(tmp_path.parent)
    listed = integrity.inspect(tmp_path).faults
    assert {f.kind for f in listed} == {FOREIGN}
    details = {f.path: f.detail for f in listed}
    assert details["other"] == "a run folder of its own"
    assert "interrupted write" in details[".table.12.part.csv"]
    assert details["link"] == "a link"
    assert set(details) == {"other", ".table.12.part.csv", "link", "arrays.zarr/x/7", "two\nlines\u202e.txt"}
    assert str(Fault(FOREIGN, "two\nlines\u202e.txt")) == "foreign: two\ufffdlines\ufffd.txt"


def test_a_run_inside_a_run_belongs_to_it_once_it_is_registered(tmp_path: Path) -> None:
    run = finish(tmp_path)
    finish(tmp_path / "part")
    run.register_part(tmp_path / "part")
    assert faults(tmp_path) == []
    (tmp_path / "part" / "table.csv").unlink()
    assert faults(tmp_path) == [(MISSING, "part/table.csv")]
    (tmp_path / "part").rename(tmp_path.parent / f"{tmp_path.name}-away")
    assert faults(tmp_path) == [(MISSING, "part")]


def test_newer_and_older_formats_are_refused_with_different_advice(tmp_path: Path) -> None:
    run = finish(tmp_path)
    for version, words in ((FORMAT + 1, "update featmap"), (1, "brings it up to date")):
        run.manifest.format = version
        run.save()
        with pytest.raises(StoreError, match=words):
            integrity.inspect(tmp_path)
    start(tmp_path).unlock()  # its own command
    assert Run.read(tmp_path).manifest.format == FORMAT
    assert faults(tmp_path) == []


def test_a_run_that_is_being_written_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = finish(tmp_path / "run").folder
    hold = "import sys; from pathlib import Path; from featmap.runs.store import Run; "
    hold += "Run(Path(sys.argv[1]), {}).lock(); print('held', flush=True); sys.stdin.readline()"
    command = [sys.executable, "-c", hold, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        status, _, err = verify(capsys, str(folder))
        assert status == 2
        assert f"is being written by process {other.pid} on" in err
        other.kill()
    assert faults(folder) == []  # what it left behind is no fault


def test_verifying_changes_nothing(tmp_path: Path) -> None:
    finish(tmp_path)
    (tmp_path / "table.csv").unlink()
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in tmp_path.rglob("*") if p.is_file()}
    integrity.inspect(tmp_path)
    after = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in tmp_path.rglob("*") if p.is_file()}
    assert {k: v for k, v in after.items() if k.name != ".lock"} == {
        k: v for k, v in before.items() if k.name != ".lock"
    }


def test_resuming_removes_leftovers_of_writes_and_nothing_else(tmp_path: Path) -> None:
    finish(tmp_path)
    left = [".table.12.part.csv", "arrays.zarr/x/0.0123456789abcdef0123456789abcdef.partial", "units/..u0.7.part.json"]
    for name in [*left, ".partisan", "a.part.txt"]:
        (tmp_path / name).touch()
    os.truncate(tmp_path / MANIFEST, 10)
    start(tmp_path).unlock()
    assert faults(tmp_path) == [(FOREIGN, ".partisan"), (FOREIGN, "a.part.txt")]
