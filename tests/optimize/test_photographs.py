"""Photographs of every kind that PNG and JPEG allow, and what is said of those that are none."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featmap.errors import FeatmapError
from featmap.optimize import photographs


def read(path: Path, size: int = 4) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found: np.ndarray = photographs.read_photograph(path, size).numpy()
    return found


def test_sixteen_bits_of_gray_are_brought_to_eight_by_scale(tmp_path: Path) -> None:
    for value in (0, 257 * 100, 65535):
        Image.fromarray(np.full((4, 4), value, dtype=np.uint16)).save(tmp_path / "gray.png")
        np.testing.assert_allclose(read(tmp_path / "gray.png"), value / 65535, atol=1e-6)
    ramp = np.linspace(0, 65535, 16).astype(np.uint16).reshape(4, 4)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    np.testing.assert_allclose(read(tmp_path / "ramp.png"), np.tile(ramp / 65535, (3, 1, 1)), atol=1 / 255)


def test_what_is_transparent_lies_on_white(tmp_path: Path) -> None:
    colour = np.zeros((4, 4, 4), dtype=np.uint8)
    colour[..., 0], colour[..., 3] = 255, [0, 0, 128, 255]
    Image.fromarray(colour).save(tmp_path / "alpha.png")
    found = read(tmp_path / "alpha.png")[:, 0]
    np.testing.assert_allclose(found[:, 0], 1, atol=1e-6)  # not the red that is hidden there
    np.testing.assert_allclose(found[:, 2], [1, 127 / 255, 127 / 255], atol=0.01)
    np.testing.assert_allclose(found[:, 3], [1, 0, 0], atol=1e-6)


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path: Path) -> None:
    picture = Image.fromarray(np.repeat([[0, 1]], 4, axis=0).repeat(2, axis=1).astype(np.uint8), mode=None).convert("P")
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.save(tmp_path / "palette.png", transparency=bytes([0, 255]))
    found = read(tmp_path / "palette.png")
    np.testing.assert_allclose(found[:, 0, 0], 1)
    np.testing.assert_allclose(found[:, 0, 3], [0, 0, 1])


def spoilt(folder: Path, count: int) -> Path:
    """Six pictures, of which the last `count` are cut short or none at all."""
    folder.mkdir()
    for k in range(6):
        noise = np.random.default_rng(k).integers(0, 255, size=(32, 32, 3), dtype=np.uint8)
        path = folder / f"{k}.jpg"
        Image.fromarray(noise).save(path)
        if k >= 6 - count:
            path.write_bytes(path.read_bytes()[:400] if k % 2 else b"no picture")
    return folder


@pytest.mark.parametrize(
    ("count", "words"),
    [(1, r"5\.jpg.*truncated"), (2, r"4\.jpg.*nor can 1 other file;"), (3, r"3\.jpg.*nor can 2 other files;")],
)
def test_unreadable_files_are_found_before_and_counted(tmp_path: Path, count: int, words: str) -> None:
    paths = photographs.find_photographs(spoilt(tmp_path / "spoilt", count))
    with pytest.raises(FeatmapError, match=words) as caught:
        photographs.check_readable(paths)
    assert "Error" not in str(caught.value) and "is truncated or not an image" in str(caught.value)
    seen: list[tuple[int, int]] = []
    photographs.check_readable(paths[: 6 - count], lambda done, total: seen.append((done, total)))
    assert seen[-1] == (6 - count, 6 - count)


def test_a_file_in_place_of_a_folder_is_called_a_file(tmp_path: Path) -> None:
    (tmp_path / "all.zip").write_bytes(b"")
    with pytest.raises(FeatmapError, match="that is a file; give a folder"):
        photographs.find_photographs(tmp_path / "all.zip")
    with pytest.raises(FeatmapError, match="no such folder"):
        photographs.find_photographs(tmp_path / "nowhere")
