"""Every file of every kind of run, damaged in turn: it is found, and the run's own command makes just it again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from analyses.benchmarks.faults import contents, differing
from featmap.runs import integrity
from tests.helpers import kinds

REPOSITORY = Path(__file__).resolve().parent.parent.parent
pytestmark = [
    pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning"),
    pytest.mark.usefixtures("one_thread"),
]


Maker = Callable[[str], Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Maker]:
    """Makes a kind of run when it is first asked for; returns the folder that its run lies in."""
    places: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in places:
            with pytest.MonkeyPatch.context() as patched:
                patched.syspath_prepend(REPOSITORY)
                kinds.quick_clusters(patched)
                places[kind] = tmp_path_factory.mktemp(kind.replace(" ", "-"))
                patched.chdir(places[kind])
                kinds.make(kind)
        return places[kind]

    yield make


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_every_flipped_bit_and_every_lost_file_is_found(kind: str, made: Maker) -> None:
    run = made(kind) / "run"
    assert integrity.inspect(run).faults == []
    every = kinds.files(run)
    for path in every[:: 1 if len(every) < 60 else 7]:
        name, before = path.relative_to(run).as_posix(), path.read_bytes()
        kinds.flip(path)
        assert {f.path for f in integrity.inspect(run).faults} >= {name}, f"{name}: a flipped bit"
        path.unlink()
        found = integrity.inspect(run).faults
        assert (integrity.MISSING, name) in {(f.kind, f.path) for f in found}, f"{name}: lost"
        path.write_bytes(before)
    assert integrity.inspect(run).faults == []


def mended(kind: str, place: Path, every: int) -> int:
    """Damage each `every`-th file of a run in turn and give the run's commands again; return how many there were."""
    run = place / "run"
    expected, names = contents(run), [p.relative_to(run) for p in kinds.files(run)]
    for k, name in enumerate(names[::every]):
        times = {p: p.stat().st_mtime_ns for p in kinds.files(run)}
        if k % 2:
            (run / name).unlink()
        else:
            kinds.flip(run / name, k)
        kinds.make(kind)
        assert differing(contents(run), expected) == (), name
        assert integrity.inspect(run).faults == [], name
        again = [p.relative_to(run).as_posix() for p, at in times.items() if p.stat().st_mtime_ns != at]
        units = {n for n in again if "/units/" in f"/{n}" and not n.endswith("manifest.json")}
        assert len(units) <= 1, f"{name}: {units} were made again"
    return len(names)


SLOW = [("similarity", 2), ("several layers", 53), ("probe layer", 41), ("screening", 97), ("validate", 53)]
QUICK = [("optimize", 1), ("probe", 1), ("interact", 13), ("atlas of interact", 41), ("pairs", 53)]


@pytest.mark.parametrize(("kind", "every"), [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)])
def test_the_runs_own_command_makes_just_what_is_damaged_again(
    kind: str, every: int, made: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds.quick_clusters(monkeypatch)
    monkeypatch.syspath_prepend(REPOSITORY)
    shutil.copytree(made(kind), tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    assert mended(kind, tmp_path, every) > 10


def test_a_run_of_two_damages_and_a_lost_folder_is_mended_in_one_go(
    made: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds.quick_clusters(monkeypatch)
    monkeypatch.syspath_prepend(REPOSITORY)
    run = tmp_path / "run"
    shutil.copytree(made("similarity") / "run", run)
    monkeypatch.chdir(tmp_path)
    expected = contents(run)
    shutil.rmtree(run / "arrays.zarr")
    kinds.flip(run / "manifest.json")
    os.truncate(run / "profile.parquet", 7)
    kinds.make("similarity")
    assert differing(contents(run), expected) == ()
    assert integrity.inspect(run).faults == []
