"""Every file of every kind of run, damaged in turn: it is detected, and the run's own command repairs just it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from analyses.benchmarks.faults import differing_files, read_contents
from featmap.runs import integrity
from tests.helpers import run_kinds

REPOSITORY = Path(__file__).resolve().parent.parent.parent
pytestmark = [
    pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning"),
    pytest.mark.usefixtures("one_thread"),
]


Maker = Callable[[str], Path]


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Maker]:
    """Makes a kind of run when it is first requested; returns the folder that its run lies in."""
    places: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in places:
            with pytest.MonkeyPatch.context() as patched:
                patched.syspath_prepend(REPOSITORY)
                run_kinds.make_runs_cheap(patched)
                places[kind] = tmp_path_factory.mktemp(kind.replace(" ", "-"))
                patched.chdir(places[kind])
                run_kinds.make_run(kind)
        return places[kind]

    yield make


@pytest.mark.parametrize("kind", run_kinds.KINDS)
def test_every_flipped_bit_and_every_lost_file_is_detected(kind: str, maker: Maker) -> None:
    run = maker(kind) / "run"
    assert integrity.inspect(run).faults == []
    every = run_kinds.files_of(run)
    for path in every[:: 1 if len(every) < 60 else 7]:
        name, before = path.relative_to(run).as_posix(), path.read_bytes()
        run_kinds.flip_bit(path)
        assert {f.path for f in integrity.inspect(run).faults} >= {name}, f"{name}: a flipped bit"
        path.unlink()
        listed = integrity.inspect(run).faults
        assert (integrity.MISSING, name) in {(f.kind, f.path) for f in listed}, f"{name}: lost"
        path.write_bytes(before)
    assert integrity.inspect(run).faults == []


def damage_and_repair(kind: str, place: Path, every: int) -> int:
    """Damage each `every`-th file of a run in turn and run its commands again; return the number of files."""
    run = place / "run"
    expected, names = read_contents(run), [p.relative_to(run) for p in run_kinds.files_of(run)]
    for k, name in enumerate(names[::every]):
        times = {p: p.stat().st_mtime_ns for p in run_kinds.files_of(run)}
        if k % 2:
            (run / name).unlink()
        else:
            run_kinds.flip_bit(run / name, k)
        run_kinds.make_run(kind)
        assert differing_files(read_contents(run), expected) == (), name
        assert integrity.inspect(run).faults == [], name
        again = [p.relative_to(run).as_posix() for p, at in times.items() if p.stat().st_mtime_ns != at]
        units = {n for n in again if "/units/" in f"/{n}" and not n.endswith("manifest.json")}
        assert len(units) <= 1, f"{name}: {units} were computed again"
    return len(names)


SLOW = [("similarity", 3), ("several layers", 53), ("probe layer", 41), ("screening", 97), ("validate", 53)]
QUICK = [("optimize", 1), ("probe", 1), ("judge", 3), ("interact", 13), ("atlas of interact", 41), ("pairs", 53)]


@pytest.mark.parametrize(("kind", "every"), [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)])
def test_the_runs_own_command_repairs_just_the_damage(
    kind: str, every: int, maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_kinds.make_runs_cheap(monkeypatch)
    monkeypatch.syspath_prepend(REPOSITORY)
    shutil.copytree(maker(kind), tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    assert damage_and_repair(kind, tmp_path, every) > 10


def test_two_damaged_files_and_a_lost_folder_are_repaired_at_once(
    maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_kinds.make_runs_cheap(monkeypatch)
    monkeypatch.syspath_prepend(REPOSITORY)
    run = tmp_path / "run"
    shutil.copytree(maker("similarity") / "run", run)
    monkeypatch.chdir(tmp_path)
    expected = read_contents(run)
    shutil.rmtree(run / "arrays.zarr")
    run_kinds.flip_bit(run / "manifest.json")
    os.truncate(run / "profile.parquet", 7)
    run_kinds.make_run("similarity")
    assert differing_files(read_contents(run), expected) == ()
    assert integrity.inspect(run).faults == []
