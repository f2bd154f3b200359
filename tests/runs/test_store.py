"""The run folder: what lands in it, how it is resumed, and what a full disk or a damaged file does to it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from featmap.errors import StoreError
from featmap.files import digest, hash_file, translate_os_errors, write_atomically
from featmap.runs.folder_layout import ArraySpec
from featmap.runs.manifest import COPY, FORMAT, MANIFEST
from featmap.runs.store import Run

IDENTITY = {"model": {"name": "m", "sha256": "ab"}, "recipe": {"steps": 3, "octaves": [{"size": 16}]}, "seeds": [0]}
ARRAYS = {
    "values": ArraySpec(("image", "x"), (5, 3), (2, 3)),
    "status": ArraySpec(("image",), (5,), (2,), "uint8", (("flag_meanings", "live dead"),)),
}
COORDS = {"image": np.array([f"a:{k}" for k in range(5)]), "x": np.arange(3)}
UNITS = ((0, 2), (2, 4), (4, 5))


def batch(first: int, last: int) -> dict[str, np.ndarray]:
    values = np.random.Generator(np.random.PCG64(first)).random((last - first, 3)).astype(np.float32)
    return {"values": values, "status": np.zeros(last - first, dtype=np.uint8)}


def opened(folder: Path, identity: dict | None = None) -> Run:
    return Run(folder, IDENTITY if identity is None else identity).open(ARRAYS, COORDS, {"command": "test"})


def land(run: Run, first: int, last: int) -> str:
    name = f"u{first}"
    run.land(name, {k: ((slice(first, last), *[slice(None)] * (v.ndim - 1)), v) for k, v in batch(first, last).items()})
    return name


def finish(folder: Path) -> list[str]:
    """Do all that is left of the job in `folder`; return the units that were computed now."""
    run = opened(folder)
    computed = [land(run, first, last) for first, last in UNITS if not run.is_done(f"u{first}")]
    run.write("table.csv", lambda p: p.write_text("a,b\n1,2\n", encoding="utf-8"))
    run.manifest.status = "complete"
    with translate_os_errors("manifest"):
        run.save()
    return computed


def contents(folder: Path) -> dict[str, np.ndarray]:
    group = zarr.open_group(folder / "arrays.zarr", mode="r")
    return {name: group[name][...] for name in (*ARRAYS, *COORDS)}


def parts(folder: Path) -> list[str]:
    # zarr leaves a `.partial` of its own where its last move fails; no reader takes it for a chunk
    return [p.name for p in folder.rglob("*") if ".part" in p.name and not p.name.endswith(".partial")]


def test_a_run_holds_what_landed_and_reads_back(tmp_path: Path) -> None:
    assert finish(tmp_path / "run") == ["u0", "u2", "u4"]
    values = contents(tmp_path / "run")
    for first, last in UNITS:
        np.testing.assert_array_equal(values["values"][first:last], batch(first, last)["values"])
    assert list(values["image"]) == list(COORDS["image"])
    run = Run.read(tmp_path / "run")
    assert (run.identity, run.manifest.format, run.is_complete()) == (IDENTITY, FORMAT, True)
    assert run.arrays["status"].attrs["flag_meanings"] == "live dead"


def test_the_same_settings_resume_a_run(tmp_path: Path) -> None:
    run = opened(tmp_path)
    land(run, 2, 4)
    assert finish(tmp_path) == ["u0", "u4"]
    assert finish(tmp_path) == []


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seeds": [1]}, "seeds"),
        ({"recipe": {"steps": 4, "octaves": [{"size": 16}]}}, "recipe.steps"),
        ({"model": {"name": "n", "sha256": "cd"}}, "model.name"),
        ({"layer": "extra"}, "layer"),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path: Path, changed: dict, named: str) -> None:
    land(opened(tmp_path), 0, 2)
    before = (tmp_path / MANIFEST).read_bytes()
    with pytest.raises(StoreError, match=f"{named}: .* there, .* here"):
        opened(tmp_path, IDENTITY | changed)
    assert (tmp_path / MANIFEST).read_bytes() == before


def test_a_difference_deep_in_a_list_can_be_seen(tmp_path: Path) -> None:
    octave = {"steps": 3, "rate": [0.03, 0.03], "sigma": [1.0, 0.3], "size": 16}
    land(opened(tmp_path, {"recipe": {"octaves": [octave]}}), 0, 2)
    with pytest.raises(StoreError) as caught:
        opened(tmp_path, {"recipe": {"octaves": [octave | {"size": 32}]}})
    assert "16" in str(caught.value)
    assert "32" in str(caught.value)


def test_foreign_folders_and_files_are_refused_unchanged(tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("mine")
    with pytest.raises(StoreError, match="not a run folder; choose another folder"):
        opened(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["diary.txt"]
    with pytest.raises(StoreError, match="not a run folder; choose another folder"):
        opened(tmp_path / "diary.txt")
    assert (tmp_path / "diary.txt").read_text() == "mine"
    with pytest.raises(StoreError, match=r"choose another folder|correct this"):
        opened(tmp_path / "diary.txt" / "below")


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert finish(tmp_path / "run") == ["u0", "u2", "u4"]


def test_reading_a_folder_that_is_not_a_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such folder"):
        Run.read(tmp_path / "nowhere")
    with pytest.raises(StoreError, match=f"has no {MANIFEST}"):
        Run.read(tmp_path)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    run = opened(tmp_path)
    run.manifest.format = FORMAT + 1
    run.save()
    with pytest.raises(StoreError, match=f"format {FORMAT + 1}.*update featmap"):
        Run.read(tmp_path)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"format": 1}', b'{"format": "x", "identity": {}}']
)
def test_a_damaged_manifest_is_an_error_and_repaired_from_its_copy(tmp_path: Path, text: bytes) -> None:
    opened(tmp_path)
    before = (tmp_path / MANIFEST).read_bytes()
    (tmp_path / MANIFEST).write_bytes(text)
    with pytest.raises(StoreError, match="is damaged"):
        Run.read(tmp_path)
    opened(tmp_path)
    assert (tmp_path / MANIFEST).read_bytes() == before
    for name in (MANIFEST, COPY):
        (tmp_path / name).write_bytes(text)
    with pytest.raises(StoreError, match=r"and its copy .* are damaged"):
        opened(tmp_path)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[]", b"null", b"{}"])
def test_the_unit_of_a_damaged_record_is_computed_again(tmp_path: Path, text: bytes) -> None:
    finish(tmp_path)
    (tmp_path / "units" / "u2.json").write_bytes(text)
    assert finish(tmp_path) == ["u2"]


def test_a_flipped_byte_is_detected_and_only_its_unit_repeated(tmp_path: Path) -> None:
    finish(tmp_path)
    before = contents(tmp_path)
    chunk = tmp_path / "arrays.zarr" / "values" / "1.0"
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(bytes(content))
    run = opened(tmp_path)
    assert [run.is_done(f"u{first}") for first, _ in UNITS] == [True, False, True]
    assert finish(tmp_path) == ["u2"]
    for name, values in contents(tmp_path).items():
        np.testing.assert_array_equal(values, before[name])


def test_a_lost_chunk_of_zeros_is_detected(tmp_path: Path) -> None:
    finish(tmp_path)
    (tmp_path / "arrays.zarr" / "status" / "0").unlink()
    assert finish(tmp_path) == ["u0"]


def test_lost_arrays_are_written_again(tmp_path: Path) -> None:
    finish(tmp_path)
    before = contents(tmp_path)
    shutil.rmtree(tmp_path / "arrays.zarr")
    assert finish(tmp_path) == ["u0", "u2", "u4"]
    for name, values in contents(tmp_path).items():
        np.testing.assert_array_equal(values, before[name])


def test_a_damaged_table_makes_the_run_incomplete(tmp_path: Path) -> None:
    finish(tmp_path)
    (tmp_path / "table.csv").write_text("a,b\n1,3\n")
    assert not Run.read(tmp_path).is_complete()
    (tmp_path / "table.csv").unlink()
    assert not Run.read(tmp_path).is_complete()


def test_a_failed_atomic_write_leaves_the_old_file_alone(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "table.csv"
    write_atomically(target, lambda p: p.write_text("old"))

    def half(part: Path) -> None:
        part.write_text("ne")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomically(target, half)
    assert target.read_text() == "old"
    assert [p.name for p in target.parent.iterdir()] == ["table.csv"]


class Full:
    """Moves of finished files into place fail with ENOSPC at the k-th of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.count, self.at, self.real, self.folder = 0, 0, os.replace, str(folder)
        monkeypatch.setattr(os, "replace", self)

    def __call__(self, source: str, target: str, **more: object) -> None:
        if str(target).startswith(self.folder):
            self.count += 1
            if self.count == self.at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.real(source, target)

    def arm(self, at: int) -> None:
        self.count, self.at = 0, at


def _writes(full: Full, folder: Path, work: Callable[[Path], object]) -> int:
    full.arm(0)
    work(folder)
    return full.count


def test_a_full_disk_at_any_write_is_one_error_and_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Full(monkeypatch, tmp_path)
    total = _writes(full, tmp_path / "undisturbed", finish)
    expected = contents(tmp_path / "undisturbed")
    assert total > len(UNITS) * len(ARRAYS)
    refused = []
    for k in range(1, total + 1):
        folder = tmp_path / f"full-{k}"
        full.arm(k)
        with pytest.raises(StoreError, match="no space left"):
            finish(folder)
        full.arm(0)
        assert not parts(folder)
        try:
            finish(folder)
        except StoreError as error:
            refused.append((k, str(error)))
            continue
        for name, values in contents(folder).items():
            np.testing.assert_array_equal(values, expected[name])
    assert not refused


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "no space left"), (errno.EROFS, "not writable"), (errno.EIO, "repeat the call")],
)
def test_errors_of_the_system_become_one_line(number: int, words: str) -> None:
    with pytest.raises(StoreError, match=words), translate_os_errors("run folder 'x'"):
        raise OSError(number, os.strerror(number))


def test_a_read_only_folder_is_refused_with_advice(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        if os.access(folder, os.W_OK):
            pytest.skip("permissions do not bind this user")
        with pytest.raises(StoreError, match=r"not writable.*choose another folder"):
            opened(folder / "run")
    finally:
        folder.chmod(stat.S_IRWXU)


def test_hashes_are_sha256_and_ignore_the_order_of_keys(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    # SHA-256 of nothing: FIPS 180-4's well-known value
    assert hash_file(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})


def test_records_name_every_chunk_of_their_unit(tmp_path: Path) -> None:
    finish(tmp_path)
    record = json.loads((tmp_path / "units" / "u2.json").read_text())
    assert sorted(record) == ["arrays.zarr/status/1", "arrays.zarr/values/1.0"]
    assert all(hash_file(tmp_path / file) == known for file, known in record.items())
