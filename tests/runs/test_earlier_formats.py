"""Run folders of earlier versions: their manifests, of format 1 and 2, are read, verified and resumed."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

import featmap
from featmap.cli.app import main
from featmap.errors import StoreError
from featmap.optimize.recipe import Recipe
from featmap.runs import integrity
from featmap.runs.engine import Engine
from featmap.runs.manifest import COPY, FORMAT, MANIFEST
from featmap.runs.store import Run
from tests.helpers import tiny
from tests.helpers.settings import options

UNITS = [f"second:{k}" for k in range(5)]
SETTINGS: dict[str, Any] = {"size": 12, "steps": 3, "rows": 2, "device": "cpu", "engine": Engine(threads=1)}
LAST = "s0-000004-000005"
"""Name of the last work unit."""


def earlier_manifest(run: Run, version: int, status: str) -> dict[str, Any]:
    """The entries that earlier versions wrote of a run, as the dict that they had in memory, in their order."""
    manifest = run.manifest
    entries: dict[str, Any] = {
        "format": version,
        "status": status,
        "identity": manifest.identity,
        "network": manifest.network,
        "model_arguments": {},
        "command": None,
        "environment": manifest.environment,
        "recipe_notes": [],
        "timings": {},
    }
    if version == 2:
        entries |= {"layout": manifest.layout, "engines": manifest.engines}
    if status == "complete":
        entries |= {"files": manifest.files, "units": manifest.units, "view": None, "images": None}
    return entries | {"remark": "of another version"}


def earlier_text(entries: dict[str, Any]) -> str:
    """The text of a manifest file of an earlier version; format 1 had no checksum."""
    if entries["format"] == 2:
        text = json.dumps(entries, indent=1, ensure_ascii=False)
        entries = entries | {"checksum": hashlib.sha256(text.encode()).hexdigest()}
    return json.dumps(entries, indent=1, ensure_ascii=False) + "\n"


def write_earlier(folder: Path, version: int, status: str) -> None:
    """Replace the manifest of a run by that of an earlier version; format 1 had no copy and no file `seed/0`."""
    text = earlier_text(earlier_manifest(Run.read(folder), version, status))
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    (folder / COPY).write_text(text, encoding="utf-8")
    if version == 1:
        shutil.rmtree((folder / COPY).parent)
        (folder / "arrays.zarr" / "seed" / "0").unlink()
    if status == "running":
        (folder / "units" / f"{LAST}.json").unlink()


def compute(folder: Path) -> xr.Dataset:
    return featmap.maximise(UNITS, tiny.small(), **options(out=folder, **SETTINGS)).load()


def contents(folder: Path) -> dict[Path, tuple[int, bytes]]:
    files = (p for p in folder.rglob("*") if p.is_file() and p.name not in (".lock", ".owner.json"))
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in files}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, xr.Dataset]:
    folder = tmp_path_factory.mktemp("finished") / "run"
    data = compute(folder)
    run = Run.read(folder)
    run.write("table.csv", lambda p: p.write_text("a\n1\n"))
    run.save()
    return folder, data


@pytest.fixture
def folder(finished: tuple[Path, xr.Dataset], tmp_path: Path) -> Path:
    """A finished run, whose manifest a test replaces."""
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("status", ["running", "complete"])
@pytest.mark.parametrize("version", [1, 2])
def test_a_manifest_of_an_earlier_version_is_read(folder: Path, version: int, status: str) -> None:
    write_earlier(folder, version, status)
    manifest = Run.read(folder).manifest
    assert (manifest.format, manifest.status, manifest.is_complete) == (version, status, status == "complete")
    assert (manifest.command, manifest.timings, manifest.view, manifest.images) == (None, {}, {}, None)
    assert manifest.environment["threads"] == 1 and manifest.network is not None
    assert bool(manifest.layout) == bool(manifest.engines) == (version == 2)
    assert manifest.other == {"remark": "of another version"}
    if status == "complete":
        assert LAST in manifest.units and list(manifest.files) == ["table.csv"]


@pytest.mark.parametrize("status", ["running", "complete"])
@pytest.mark.parametrize("version", [1, 2])
def test_a_run_of_an_earlier_version_is_resumed(
    folder: Path, version: int, status: str, finished: tuple[Path, xr.Dataset]
) -> None:
    write_earlier(folder, version, status)
    before = contents(folder)
    data = compute(folder)
    for name in data.variables:
        assert data[name].values.tobytes() == finished[1][name].values.tobytes(), name
    changed = {p.relative_to(folder).as_posix() for p, seen in before.items() if contents(folder)[p] != seen}
    chunks = {name for name in changed if name.startswith("arrays.zarr/") and not Path(name).name.startswith(".z")}
    assert chunks <= json.loads((folder / "units" / f"{LAST}.json").read_text()).keys()
    assert not any(name.startswith("units/") for name in changed), "a unit that had landed is not computed again"
    assert bool(chunks) == (status == "running")
    manifest = Run.read(folder).manifest
    assert (manifest.format, manifest.status) == (FORMAT, "complete")
    assert (manifest.command, manifest.other) == ("optimize", {"remark": "of another version"})
    assert manifest.environment == Run.read(finished[0]).manifest.environment
    assert [f.path for f in integrity.inspect(folder).faults] == ([] if status == "complete" else ["table.csv"])


def test_verify_accepts_format_2_and_asks_to_update_format_1(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_earlier(folder, 2, "complete")
    assert integrity.inspect(folder).faults == []
    write_earlier(folder, 1, "complete")
    with pytest.raises(StoreError, match=r"has format 1, .*; the run's own command brings it up to date"):
        integrity.inspect(folder)
    integrity.require_intact(folder)  # what has no checksum is not refused
    with pytest.raises(SystemExit) as end:
        main(["verify", str(folder)])
    assert end.value.code == 2 and "brings it up to date" in capsys.readouterr().err


def test_a_changed_byte_of_an_earlier_manifest_is_damage(folder: Path) -> None:
    write_earlier(folder, 2, "complete")
    text = (folder / MANIFEST).read_text(encoding="utf-8")
    for changed in (text.replace("another", "Another"), text.replace('"timings": {}', '"timings": { }')):
        assert changed != text
        (folder / MANIFEST).write_text(changed, encoding="utf-8")
        with pytest.raises(StoreError, match="is damaged"):
            Run.read(folder)
        assert [(f.kind, f.path) for f in integrity.inspect(folder).faults] == [("changed", MANIFEST)]
    compute(folder)
    assert (folder / MANIFEST).read_bytes() == (folder / COPY).read_bytes()
    assert integrity.inspect(folder).faults == []


@pytest.mark.parametrize(
    ("now", "then"), [("pixels", "fast"), ("pixels-long", "standard"), ("interact-unrescued", "interact")]
)
def test_a_run_of_a_renamed_recipe_is_resumed_by_its_new_name(now: str, then: str, tmp_path: Path) -> None:
    folder, named = tmp_path / "run", Recipe.named(now, 12, 3, rows=2)
    execution = featmap.Execution("cpu", engine=Engine(threads=1), out=folder)
    earlier = replace(named, name=then)
    data = featmap.maximise(UNITS, tiny.small(), recipe=earlier, execution=execution).load()
    write_earlier(folder, 2, "running")
    again = featmap.maximise(UNITS, tiny.small(), recipe=named, execution=execution).load()
    xr.testing.assert_equal(again, data)
    run = Run.read(folder)
    assert run.manifest.is_complete and run.identity["recipe"]["name"] == then
    assert Recipe.from_identity(run.identity["recipe"]) == replace(earlier, max_default_size=None, notes=())


def test_a_recipe_of_an_old_name_and_new_settings_is_another_recipe(tmp_path: Path) -> None:
    folder, earlier = tmp_path / "run", replace(Recipe.named("pixels", 12, 3, rows=2), name="fast")
    execution = featmap.Execution("cpu", engine=Engine(threads=1), out=folder)
    featmap.maximise(UNITS, tiny.small(), recipe=earlier, execution=execution)
    for other in (Recipe.named("fast", 12, 3, rows=2), Recipe.named("pixels", 12, 4, rows=2)):
        with pytest.raises(StoreError, match=r"other settings.*recipe 'pixels' is now what 'fast' was then"):
            featmap.maximise(UNITS, tiny.small(), recipe=other, execution=execution)
