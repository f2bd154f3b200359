"""Damage that looks intact: detected by `featmap verify`, and repaired by the run's own command."""

from __future__ import annotations

import json
import shutil
import socket
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from torch import nn

import featmap
from featmap.cli import app
from featmap.errors import FeatmapError, IncompleteError, ModelError, RecipeError, StoreError, UnitError
from featmap.files import hash_file, translate_os_errors, write_atomically
from featmap.network import weights
from featmap.optimize.objective import Objective
from featmap.runs import device, integrity, ray_engine
from featmap.runs.engine import WorkUnit
from featmap.runs.manifest import COPY, MANIFEST, record_text
from featmap.runs.progress import Silent
from featmap.runs.store import Run
from tests.helpers import networks
from tests.helpers.settings import options

UNITS = [f"mixed:{k}" for k in range(5)]
pytestmark = pytest.mark.usefixtures("cheap_runs", "one_thread")


def make(folder: Path, threads: int = 1) -> Run:
    network = "--model tests.helpers.networks:small_inception --input-size 32 --device cpu"
    settings = f"--size 24 --steps 3 --rows 2 --threads {threads}"
    arguments = ["optimize", *UNITS, *network.split(), *settings.split(), "--out", str(folder)]
    with device.use_threads(threads):
        typer.main.get_command(app.app).main(args=arguments, standalone_mode=False)
    return Run.read(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make(tmp_path_factory.mktemp("whole") / "run").folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A finished run, to be damaged."""
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def chunks(folder: Path) -> dict[str, bytes]:
    return {p.name + p.parent.name: p.read_bytes() for p in sorted((folder / "arrays.zarr").rglob("*")) if p.is_file()}


def faults(folder: Path) -> list[tuple[str, str]]:
    return [(f.kind, f.path) for f in integrity.inspect(folder).faults]


def test_a_flipped_bit_of_the_format_is_damage_not_a_newer_version(run: Path) -> None:
    text = (run / MANIFEST).read_text()
    assert '"format": 2' in text
    (run / MANIFEST).write_text(text.replace('"format": 2', '"format": 3', 1))
    assert faults(run) == [("changed", MANIFEST)]
    make(run)
    assert (faults(run), (run / MANIFEST).read_text()) == ([], text)


@pytest.mark.parametrize("both", [True, False])
def test_a_newer_version_is_refused_also_without_a_newer_copy(run: Path, both: bool) -> None:
    for name in (MANIFEST, COPY)[: 1 + both]:
        (run / name).write_text((run / name).read_text().replace('"format": 2', '"format": 12', 1))
    before = chunks(run)
    with pytest.raises(StoreError, match="has format 12, this featmap reads up to 2; update featmap"):
        make(run)
    with pytest.raises(StoreError, match="update featmap"):
        integrity.inspect(run)
    assert chunks(run) == before


def test_a_repair_with_other_threads_is_recorded(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    victim = next((run / "arrays.zarr" / "images").glob("0.*"))
    victim.write_bytes(victim.read_bytes()[:-1])
    manifest = make(run, threads=2).manifest
    assert manifest.environment["threads"] == 1
    assert [e["threads"] for e in manifest.later_environments] == [2]
    assert [e["threads"] for e in manifest.engines] == [1, 2]
    assert faults(run) == []


@pytest.mark.parametrize("damage", ["space", "dropped", "emptied"])
def test_a_damaged_record_that_still_parses_is_repaired(run: Path, whole: Path, damage: str) -> None:
    path = next((run / "units").glob("s0-000000-*.json"))
    text = path.read_text()
    record = json.loads(text)
    record.pop(next(iter(record)))
    path.write_text({"space": text.replace("\n", " ", 1), "dropped": record_text(record), "emptied": "{}"}[damage])
    assert faults(run) == [("changed", f"units/{path.name}")]
    make(run)
    assert faults(run) == [] and path.read_text() == text and chunks(run) == chunks(whole)


def test_a_foreign_record_does_not_vouch_for_its_chunks(run: Path) -> None:
    stray = run / "arrays.zarr" / "images" / "7.7.7.7.7"
    stray.write_bytes(b"x")
    record = {stray.relative_to(run).as_posix(): hash_file(stray)}
    (run / "units" / "zz.json").write_text(record_text(record))
    assert sorted(faults(run)) == [("foreign", "arrays.zarr/images/7.7.7.7.7"), ("foreign", "units/zz.json")]


@pytest.mark.parametrize("name", ["images.csv", "arrays.zarr/images/0.0.0.0.0", "units/s0-null.json"])
def test_a_link_in_place_of_a_file_is_replaced(run: Path, whole: Path, name: str) -> None:
    (run / name).rename(run.parent / "elsewhere")
    (run / name).symlink_to(run.parent / "elsewhere")
    assert ("changed", name) in faults(run) or name.startswith("units/")
    make(run)
    assert not (run / name).is_symlink() and (run / name).read_bytes() == (whole / name).read_bytes()
    assert faults(run) == []


def test_a_folder_in_place_of_a_file_is_named(run: Path) -> None:
    (run / "images.csv").unlink()
    (run / "images.csv").mkdir()
    with pytest.raises(StoreError, match=r"images\.csv' is in the way \(.*\); move it, or choose another folder"):
        make(run)
    (run / "images.csv").rmdir()
    make(run)
    assert faults(run) == []
    (run / ".lock").unlink()
    (run / ".lock").mkdir()
    with pytest.raises(StoreError, match="is a folder, but the lock file belongs there"):
        make(run)


def test_errors_name_the_target_and_not_its_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "table.csv").mkdir()
    with pytest.raises(StoreError, match=r"/table\.csv' is in the way"), translate_os_errors("run"):
        write_atomically(tmp_path / "table.csv", lambda p: p.write_text("a"))
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


def test_a_small_run_needs_little_disk_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from featmap.runs import lifecycle

    monkeypatch.setattr(lifecycle, "free_space", lambda _: 3_000_000)
    make(tmp_path / "run")
    monkeypatch.setattr(lifecycle, "free_space", lambda _: 1_000_000)
    with pytest.raises(StoreError, match="no space"):
        make(tmp_path / "other")


# ---------------------------------------------------------------- broken weights


def broken() -> nn.Module:
    """Eight features behind one convolution: 0 has NaN weights, 1 an infinite bias, 2 is dead, 3 overflows."""
    stem, last = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 8, 3, 1, 1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for tensor in (*stem.parameters(), *last.parameters()):
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
        last.weight[0], last.bias[1], last.weight[2], last.bias[2] = float("nan"), float("inf"), 0.0, -5.0
        last.weight[3] = 1e38
        last.bias[4:] = 0.5
    return nn.Sequential(OrderedDict(stem=stem, first=nn.ReLU(), last=last, relu=nn.ReLU())).eval()


def test_a_broken_feature_changes_no_other(tmp_path: Path) -> None:
    network = featmap.load(broken(), input_size=24)
    settings: dict[str, Any] = {"size": 24, "steps": 8, "rows": 8, "device": "cpu"}
    data = featmap.maximise([f"relu:{k}" for k in range(8)], network, **options(out=tmp_path / "run", **settings))
    words = data["status"].attrs["flag_meanings"].split()
    assert [words[int(v)] for v in data["status"].values[0][:4]] == ["not-finite", "not-finite", "dead", "not-finite"]
    assert {words[int(v)] for v in data["status"].values[0][4:]} <= {"live", "rescued"}
    healthy = broken()
    with torch.no_grad():
        healthy.last.weight[0], healthy.last.bias[1] = 0.0, 0.0
    alone = featmap.maximise(
        ["relu:5"], featmap.load(healthy, input_size=24), **options(out=tmp_path / "alone", **settings)
    )
    assert data["images"].values[0, 5].tobytes() == alone["images"].values[0, 0].tobytes()


@pytest.mark.parametrize("kind", ["without values (meta)", "sparse", "complex64"])
def test_tensors_of_unsupported_kinds_are_named(kind: str) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3))
    state = dict(module.state_dict())
    plain = state["0.weight"]
    state["0.weight"] = {
        "without values (meta)": lambda: plain.to("meta"),
        "quantized": lambda: torch.quantize_per_tensor(plain, 0.1, 0, torch.qint8),
        "sparse": plain.to_sparse,
        "complex64": lambda: plain.to(torch.complex64),
    }[kind]()
    with pytest.raises(
        ModelError, match=r"of another kind: 0\.weight is " + kind.replace("(", r"\(").replace(")", r"\)")
    ):
        weights.load_state(module, state, "it", "file.pth")
    assert np.array_equal(module[0].weight.detach(), plain)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: Objective.parse("0 * mixed:1"), UnitError, "a weight of 0 leaves the unit out"),
        (lambda: Objective.parse("mixed:0 + 1e-400 * mixed:1"), UnitError, "a weight of 0 leaves the unit out"),
        (lambda: device.select_device("cpu:7"), FeatmapError, "there is only one; choose 'cpu'"),
        (
            lambda: featmap.maximise(UNITS, networks.small_inception(), **options(recipe="")),
            RecipeError,
            "recipe '' is unknown",
        ),
    ],
)
def test_meaningless_settings_are_refused(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words.replace("(", r"\(")):
        call()


# ---------------------------------------------------------------- clusters


def test_an_address_where_nothing_answers_is_refused_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        with pytest.raises(FeatmapError, match=rf"no cluster at '{address}' \(.*\); start one with `ray start --head`"):
            ray_engine._check_address(address)
    for address in ("nowhere", "host:", ":1", "host:port"):
        with pytest.raises(FeatmapError, match="give host:port, ray://host:port or auto"):
            ray_engine._check_address(address)
    for address in (None, "auto", "local"):
        ray_engine._check_address(address)


class FakeRay:
    """A cluster in this process: workers live or die while they load, as listed, and die of every unit."""

    class exceptions:
        class RayError(Exception):
            pass

    def __init__(self, lives: list[bool]) -> None:
        self.lives, self.results, self.tried = lives, dict[object, Any](), list[str]()

    def start(self) -> tuple[Any, Any]:
        return self, self._answer({"threads": 1} if self.lives.pop(0) else None)

    def _answer(self, value: Any) -> object:
        token = object()
        self.results[token] = value
        return token

    @property
    def do(self) -> Any:
        class Remote:
            @staticmethod
            def remote(unit: Any) -> object:
                self.tried.append(unit.name)
                return self._answer(None)  # the worker dies

        return Remote

    def wait(self, answers: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        assert answers
        return answers[:1], answers[1:]

    def get(self, token: object) -> Any:
        value = self.results.pop(token)
        if value is None:
            raise self.exceptions.RayError
        return value

    def kill(self, actor: Any) -> None:
        pass


class EmptyStore:
    def is_done(self, name: str) -> bool:
        return False


def run_wave(fake: FakeRay, size: int) -> None:
    units, store = [WorkUnit(0, k, k + 1) for k in range(2)], EmptyStore()
    task: Any = type("T", (), {"gpu": False, "steps": 1, "cost": lambda _: 1.0})
    with ray_engine._WorkerPool(fake, fake.start, size) as pool:
        ray_engine._run_wave(pool, units, task, store, Silent(), lambda _: None, 2)  # type: ignore[arg-type]


def test_workers_that_die_at_the_start_end_a_run_only_if_none_is_left() -> None:
    with pytest.raises(FeatmapError, match="3 workers died while they loaded the network") as end:
        run_wave(FakeRay([False] * 9), 1)
    assert not isinstance(end.value, IncompleteError)
    fake = FakeRay([True, False, False, False, *[True] * 9])
    with pytest.raises(IncompleteError, match=r"^2 of 2 .* were left out: .*\(no worker is left: 3 in a row died"):
        run_wave(fake, 1)
    assert fake.tried == ["s0-000000-000001"]
    fake = FakeRay([True, False, False, True, False, False, True, *[True] * 9])
    with pytest.raises(IncompleteError, match="left out after 3 tries each"):
        run_wave(fake, 1)
    assert len(fake.tried) == 6
