"""Folders and zips of photographs: what is listed, what is left out and why, and what broken files do."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import stat
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from featmap.errors import FeatmapError
from featmap.optimize import photograph_files
from featmap.optimize.photograph_files import find_photographs
from featmap.optimize.photograph_folder import MAX_RECORDED, open_photographs
from featmap.optimize.photographs import read_photograph


def write(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, size=(12, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, "PNG")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five photographs, in two classes."""
    root = tmp_path / "photographs"
    for k, name in enumerate(("tiger/b.png", "tiger/a.PNG", "cat/10.png", "cat/9.png", "top.png")):
        write(root / name, k)
    return root


LABELS = ["cat/10.png", "cat/9.png", "tiger/a.PNG", "tiger/b.png", "top.png"]


def test_labels_are_sorted_paths_inside_the_folder(folder: Path) -> None:
    found = open_photographs(folder)
    assert found.labels == LABELS and found.left_out == found.broken == found.remarks == {} and found.lines() == []
    lines = "\n".join(f"{n} {hashlib.sha256((folder / n).read_bytes()).hexdigest()}" for n in LABELS)
    assert found.digest == hashlib.sha256(lines.encode()).hexdigest()
    assert found.record() == {"folder": "photographs", "count": 5, "sha256": found.digest}


def test_photographs_are_read_in_any_order_and_in_batches(folder: Path) -> None:
    found = open_photographs(folder)
    alone = torch.stack([read_photograph(folder / label, 8) for label in LABELS])
    assert torch.equal(found.read([4, 0, 2], 8), alone[[4, 0, 2]])
    batches = list(found.batches(8, 2))
    assert [len(b) for b in batches] == [2, 2, 1] and torch.equal(torch.cat(batches), alone)


def test_batches_are_read_when_they_are_asked_for(folder: Path) -> None:
    found, opened = open_photographs(folder), []
    counted = replace(found, open_file=lambda k: opened.append(k) or found.open_file(k))  # type: ignore[func-returns-value]
    batches = counted.batches(8, 2)
    assert opened == []
    next(batches)
    assert sorted(opened) == [0, 1]
    next(batches)
    assert sorted(opened) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("limit", "expected"), [(None, LABELS), (9, LABELS), (2, [LABELS[0], LABELS[2]]), (1, LABELS[:1])]
)
def test_a_limit_chooses_evenly(folder: Path, limit: int | None, expected: list[str]) -> None:
    found = open_photographs(folder, limit=limit)
    assert found.labels == expected
    assert found.left_out == ({} if len(expected) == 5 else {"beyond the limit": 5 - len(expected)})
    with pytest.raises(FeatmapError, match="limit 0: give the number of photographs"):
        open_photographs(folder, limit=0)


def test_everything_left_out_is_counted_by_reason(folder: Path) -> None:
    for name in (
        "notes.txt",
        "cat/more.TXT",
        "drawing.svg",
        "README",
        ".DS_Store",
        ".cache/x.png",
        ".cache/deep/y.png",
    ):
        write(folder / name)
    (folder / "README").write_text("no image")
    write(folder / "__MACOSX" / "._a.png")
    write(folder / "@eaDir" / "a.png")
    os.mkfifo(folder / "pipe.png")
    found = open_photographs(folder)
    assert found.labels == LABELS
    assert found.left_out == {
        ".txt": 2, ".svg": 1, "without a suffix": 1, "hidden": 5, "neither file nor folder": 1,
    }  # fmt: skip
    (line,) = found.lines()
    assert line == (
        "5 photographs of 'photographs'; left out: 5 hidden, 2 .txt, 1 .svg, 1 neither file nor folder, "
        "1 without a suffix"
    )
    assert found.describe() == line.replace("of 'photographs'", "of the folder 'photographs'")
    assert found.record()["left_out"] == found.left_out


def test_files_without_a_suffix_are_told_by_their_first_bytes(folder: Path) -> None:
    for name in ("plain", "IMG.0001", "Mr. and Mrs. X"):
        write(folder / name)
    assert open_photographs(folder).labels == sorted([*LABELS, "plain", "IMG.0001", "Mr. and Mrs. X"])


def test_links_are_followed_and_every_file_read_once(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "far.png", 7)
    (tmp_path / "elsewhere" / "up").symlink_to(tmp_path)  # contains the link
    (folder / "far").symlink_to(tmp_path / "elsewhere")
    (folder / "a-second-far").symlink_to(tmp_path / "elsewhere")
    (folder / "0-first.png").symlink_to(folder / "top.png")  # sorted before the file itself
    (folder / "one.png").symlink_to(write(tmp_path / "one.png", 8))
    (folder / "tiger" / "loop").symlink_to(folder)
    (folder / "cat" / "self").symlink_to(".")
    (folder / "tigers").symlink_to("tiger")
    found = open_photographs(folder)
    assert found.labels == sorted([*LABELS, "a-second-far/far.png", "one.png"])
    assert found.left_out == {"linked in a circle": 3, "linked a second time": 3}
    assert torch.equal(found.read([0], 8)[0], read_photograph(tmp_path / "elsewhere" / "far.png", 8))


def test_many_folders_linked_to_each_other_are_walked_once(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for k in range(12):
        write(root / f"{k}" / "a.png", k)
    for k in range(12):
        for m in range(12):
            (root / f"{k}" / f"to{m}").symlink_to(root / f"{m}")  # 12! paths
    found = find_photographs(root)
    assert found.labels == sorted(f"{k}/a.png" for k in range(12))
    assert found.left_out == {"linked in a circle": 12, "linked a second time": 132}


def test_a_link_to_nothing_is_broken_if_it_is_called_a_photograph(folder: Path) -> None:
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
    (folder / "self.jpg").symlink_to("self.jpg")
    (folder / "gone").symlink_to("nowhere")
    found = open_photographs(folder, skip_broken=True)
    assert found.broken == {"gone.jpg": "it is linked to nothing", "self.jpg": "it is linked in a circle"}
    assert found.left_out == {"linked to nothing": 1} and found.labels == LABELS


def test_folders_that_cannot_be_opened_are_broken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def guarded(path: str) -> object:
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(FeatmapError, match=r"1 cannot be read: 'cat/' \(permission denied\)"):
        open_photographs(folder)
    assert open_photographs(folder, skip_broken=True).labels == LABELS[2:]


def test_files_that_may_not_be_opened_are_broken(folder: Path) -> None:
    (folder / "top.png").chmod(0)
    if os.access(folder / "top.png", os.R_OK):
        pytest.skip("permissions do not bind this user")
    with pytest.raises(FeatmapError, match=r"'top.png' \(permission denied\)"):
        open_photographs(folder)


def spoil(folder: Path, count: int) -> list[str]:
    names = [f"spoilt/{k:02d}.png" for k in range(count)]
    for k, name in enumerate(names):
        path = write(folder / name, k)
        path.write_bytes((b"", b"no picture", path.read_bytes()[:200])[k % 3])
    return names


def test_all_broken_files_are_named_at_once(folder: Path) -> None:
    names = spoil(folder, 5)
    with pytest.raises(FeatmapError) as caught:
        open_photographs(folder)
    message = str(caught.value)
    assert f"{str(folder)!r}: 5 cannot be read: " in message and "go on without them (skip_broken)" in message
    assert all(f"{name!r} (it is {'empty' if k % 3 == 0 else 'truncated'}" in message for k, name in enumerate(names))
    assert "--" not in message and "Error" not in message


def test_of_many_broken_files_ten_are_named_and_all_counted(folder: Path) -> None:
    names = spoil(folder, 14)
    with pytest.raises(FeatmapError) as caught:
        open_photographs(folder)
    assert "14 cannot be read" in str(caught.value) and " and 4 more; " in str(caught.value)
    assert [n for n in names if n in str(caught.value)] == names[:10]


def test_broken_files_can_be_skipped(folder: Path) -> None:
    before = open_photographs(folder)
    names = spoil(folder, 4)
    seen: list[tuple[int, int]] = []
    found = open_photographs(folder, skip_broken=True, progress=lambda *at: seen.append(at))
    assert found.labels == LABELS and sorted(found.broken) == names and found.digest == before.digest
    assert seen == [(k + 1, 9) for k in range(9)]
    assert torch.equal(found.read(range(5), 8), before.read(range(5), 8))
    assert "4 skipped that cannot be read: 'spoilt/00.png' (it is empty)" in found.lines()[0]
    assert found.record()["broken"] == found.broken and found.record()["broken_count"] == 4
    json.dumps(found.record())
    assert MAX_RECORDED >= 1000


def test_a_folder_of_nothing_but_broken_files_is_refused(tmp_path: Path) -> None:
    spoil(tmp_path, 3)
    with pytest.raises(FeatmapError, match=r"3 cannot be read: .*; give others"):
        open_photographs(tmp_path, skip_broken=True)


def test_a_file_that_is_damaged_later_is_named(folder: Path) -> None:
    found = open_photographs(folder)
    (folder / "top.png").write_bytes(b"")
    with pytest.raises(FeatmapError, match=r"'top.png' of .* cannot be read any more \(it is empty\)"):
        found.read([4], 8)


def test_a_photograph_that_is_replaced_later_is_not_taken_for_the_first_one(folder: Path) -> None:
    """Responses to it would be recorded under the checksum of the earlier pixels."""
    found = open_photographs(folder)
    sent = copy.copy(found)  # as it is sent to a worker
    Image.new("RGB", (8, 8), "red").save(folder / "top.png")
    for one in (found, sent):
        assert one.read([0, 1], 8).shape == (2, 3, 8, 8)
        with pytest.raises(FeatmapError, match=r"'top.png' of .* has changed since it was checked; repeat the call"):
            one.read([4], 8)


def test_names_that_are_no_utf8_are_escaped(folder: Path) -> None:
    content = (folder / "top.png").read_bytes()
    try:
        Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")).write_bytes(content)
    except OSError:
        pytest.skip("names are UTF-8 on this file system")
    long = "n" * 245 + ".png"
    for name in ("new\nline.png", "größe.png", long):
        (folder / name).write_bytes(content)
    found = open_photographs(folder)
    assert found.labels == sorted([*LABELS, r"caf\xe9.png", "new\nline.png", "größe.png", long])
    assert found.read(range(len(found)), 8).shape == (9, 3, 8, 8)
    "\n".join(found.labels).encode()  # raises for what no table can hold


def zipped(path: Path, folder: Path, *more: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*"), reverse=True):
            archive.write(file, file.relative_to(folder).as_posix())
        for name, content in more:
            archive.writestr(name, content)
    return path


def test_a_zip_is_read_as_its_folder_is(folder: Path, tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    more = [
        ("notes.txt", b"t"),
        ("__MACOSX/._a.png", b"m"),
        (".hidden/b.png", b"h"),
        (link, b"top.png"),
        ("LICENSE", b"l"),
    ]
    archive = open_photographs(zipped(tmp_path / "all.zip", folder, *more))
    plain = open_photographs(folder)
    assert archive.labels == plain.labels == LABELS and archive.digest == plain.digest
    assert torch.equal(archive.read([3, 1, 0, 2, 4] * 8, 8), plain.read([3, 1, 0, 2, 4] * 8, 8))
    assert archive.left_out == {"hidden": 2, ".txt": 1, "linked within the zip": 1, "without a suffix": 1}
    assert "5 photographs of the zip 'all.zip'" in archive.describe()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_two_files_of_a_name_in_a_zip_the_last_counts(folder: Path, tmp_path: Path) -> None:
    last = write(tmp_path / "last.png", 9)
    found = open_photographs(zipped(tmp_path / "all.zip", folder, ("top.png", last.read_bytes())))
    assert found.labels == LABELS and found.left_out == {"replaced by a later file of the zip": 1}
    assert torch.equal(found.read([4], 8)[0], read_photograph(last, 8))


def test_damaged_and_encrypted_files_of_a_zip_are_named(folder: Path, tmp_path: Path) -> None:
    path = zipped(tmp_path / "all.zip", folder, ("empty.png", b""))
    with zipfile.ZipFile(path) as archive:
        place = {info.filename: info.header_offset for info in archive.infolist()}
    content = bytearray(path.read_bytes())
    middle = place["cat/9.png"] + 30 + len("cat/9.png") + 100
    content[middle] ^= 0xFF
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flag of encryption, in both headers
        at = -1
        while (at := content.find(signature, at + 1)) >= 0:
            if content[at : at + 100].find(b"tiger/b.png") > 0:
                content[at + offset] |= 1
                break
    path.write_bytes(content)
    found = open_photographs(path, skip_broken=True)
    assert sorted(found.broken) == ["cat/9.png", "empty.png", "tiger/b.png"]
    assert found.broken["tiger/b.png"] == "it is encrypted" and found.broken["empty.png"] == "it is empty"


def test_files_of_a_zip_that_unpack_to_too_much_are_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = zipped(tmp_path / "all.zip", folder, ("bomb.png", b"\0" * 100_000))
    assert path.stat().st_size < 10_000
    monkeypatch.setattr(photograph_files, "MAX_BYTES", 50_000)
    assert open_photographs(path, skip_broken=True).broken == {"bomb.png": "it is larger than 50,000 bytes"}


def make_file(path: Path) -> Path:
    path.write_bytes(b"no zip")
    return path


def make_cut_zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", b"a")
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02")] = 0  # the directory of its files
    path.write_bytes(content)
    return path


def make_texts(path: Path) -> Path:
    path.mkdir()
    (path / "a.txt").write_text("a")
    (path / ".b.png").write_text("b")
    return path


WRONG: list[tuple[Callable[[Path], Path], str]] = [
    (lambda path: path, "there is no such folder"),
    (make_file, "a file, and no zip"),
    (make_cut_zip, "the zip is damaged"),
    (make_texts, r"no photographs in it \(left out: 1 .txt, 1 hidden\)"),
    (lambda path: path.mkdir() or path, "no photographs in it; allowed"),  # type: ignore[func-returns-value]
]


@pytest.mark.parametrize(("make", "words"), WRONG, ids=["nothing", "file", "cut", "texts", "empty"])
def test_what_holds_no_photographs_is_refused(tmp_path: Path, make: Callable[[Path], Path], words: str) -> None:
    with pytest.raises(FeatmapError, match=words):
        open_photographs(make(tmp_path / "given"))


def test_a_file_that_another_process_does_not_find_is_missing(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    there = copy.copy(open_photographs(tmp_path))  # as it is sent to a worker
    (tmp_path / "b.png").unlink()
    assert there.read([0], 8).shape == (1, 3, 8, 8)
    with pytest.raises(FeatmapError, match=r"'b.png' of .* cannot be read any more \(there is no such file\)"):
        there.read([1], 8)
