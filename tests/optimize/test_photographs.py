"""Image files of every kind: modes, orientations and frames, and the messages about damaged ones."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featmap.errors import FeatmapError
from featmap.optimize import photographs
from featmap.optimize.photographs import decode, decoded_suffixes, explain_failure


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


def write_deep_png(path: Path, value: int, opacity: int | None = None, colours: int = 3) -> None:
    """Write a PNG of 16-bit colours, or gray with opacity, which Pillow only reads."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    alpha = b"" if opacity is None else struct.pack(">H", opacity)
    rows = b"".join(b"\0" + (struct.pack(">H", value) * colours + alpha) * 4 for _ in range(4))
    header = struct.pack(">IIBBBBB", 4, 4, 16, (2 if colours > 1 else 0) + (4 if alpha else 0), 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def test_sixteen_bits_that_hold_eight_are_refused(tmp_path: Path) -> None:
    gray, colours = tmp_path / "gray.png", tmp_path / "colours.png"
    Image.fromarray(np.arange(16, dtype=np.uint16).reshape(4, 4) * 17).save(gray)
    write_deep_png(colours, 200)
    for path in (gray, colours):
        with pytest.raises(FeatmapError, match=rf"{path.name}.*its 16-bit values use only 8 bits"):
            read(path)
    write_deep_png(colours, 200 * 257)
    np.testing.assert_allclose(read(colours), 200 / 255, atol=0.01)
    Image.fromarray(np.full((4, 4), 4000, np.uint16)).save(gray)
    with gray.open("rb") as file:
        assert decode(file)[1] == ("of 16-bit gray whose values are all below 4,096, which are read as dark",)


def test_deep_gray_with_opacity_is_read_by_its_values(tmp_path: Path) -> None:
    path = tmp_path / "gray.png"
    for opacity in (65535, 255, 0):
        write_deep_png(path, 200, opacity, colours=1)
        with pytest.raises(FeatmapError, match=r"gray\.png.*its 16-bit values use only 8 bits"):
            read(path)
    for value in (0, 200 * 257):
        write_deep_png(path, value, 65535, colours=1)
        np.testing.assert_allclose(read(path), value / 65535, atol=0.01)


def test_deep_colours_that_use_few_bits_are_remarked(tmp_path: Path) -> None:
    for value, opacity in ((4000, None), (1000, None), (1000, 65535)):
        write_deep_png(tmp_path / "colours.png", value, opacity)
        with (tmp_path / "colours.png").open("rb") as file:
            remark = "of 16-bit colours whose values are all below 4,096, which are read as dark"
            assert decode(file)[1] == (remark,)
    write_deep_png(tmp_path / "colours.png", 200, 65535)
    with pytest.raises(FeatmapError, match="its 16-bit values use only 8 bits"):
        read(tmp_path / "colours.png")


def test_images_that_are_black_are_read(tmp_path: Path) -> None:
    write_deep_png(tmp_path / "deep.png", 0)
    # the length of its rows, 1600 bytes, is no number of bits
    Image.new("RGB", (533, 40)).save(tmp_path / "wide.bmp")
    for name in ("deep.png", "wide.bmp"):
        with (tmp_path / name).open("rb") as file:
            picture, remarks = decode(file)
        assert not np.asarray(picture).any() and remarks == ()


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


CORNERS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
"""Red, green, blue and white: no two of their eight orientations are alike."""
UPRIGHT = {  # EXIF 2.32, table of the tag Orientation: where row 0 and column 0 of what is stored belong
    1: CORNERS,
    2: CORNERS[:, ::-1],
    3: CORNERS[::-1, ::-1],
    4: CORNERS[::-1],
    5: CORNERS.transpose(1, 0, 2),
    6: CORNERS[::-1].transpose(1, 0, 2),
    7: CORNERS[::-1, ::-1].transpose(1, 0, 2),
    8: CORNERS[:, ::-1].transpose(1, 0, 2),
}


def write_oriented(path: Path, orientation: int) -> Path:
    picture = Image.fromarray(CORNERS.repeat(8, 0).repeat(8, 1))
    exif = picture.getexif()
    exif[0x112] = orientation
    picture.save(path, exif=exif)
    return path


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_photographs_are_turned_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    found = read(write_oriented(tmp_path / f"turned{suffix}", orientation), 16)
    np.testing.assert_allclose(found[:, 4::8, 4::8], UPRIGHT[orientation].transpose(2, 0, 1) / 255, atol=0.2)


def test_damaged_exif_data_do_no_harm(tmp_path: Path) -> None:
    path = write_oriented(tmp_path / "turned.jpg", 6)
    content = bytearray(path.read_bytes())
    place = content.index(b"Exif\0\0") + 6
    content[place : place + 14] = b"\xff" * 14
    path.write_bytes(content)
    np.testing.assert_allclose(read(path, 16)[:, 4::8, 4::8], CORNERS.transpose(2, 0, 1) / 255, atol=0.2)


SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".tif", ".tiff"),
    *(".gif", ".ppm", ".pgm", ".webp", ".bmp", ".jp2", ".tga", ".ico"),
)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_pillow_reads_is_read(tmp_path: Path, suffix: str) -> None:
    assert suffix in decoded_suffixes()
    path = tmp_path / f"one{suffix}"
    Image.new("RGB", (32, 32), (200, 200, 200)).save(path, **({"sizes": [(32, 32)]} if suffix == ".ico" else {}))
    np.testing.assert_allclose(read(path), 200 / 255, atol=0.01)


@pytest.mark.parametrize("suffix", [".eps", ".pdf", ".h5", ".mpg", ".svg", ".txt", ".zip"])
def test_formats_without_a_decoder_are_no_photographs(suffix: str) -> None:
    assert suffix not in decoded_suffixes()


def test_no_other_program_is_started_on_a_file(tmp_path: Path) -> None:
    path = tmp_path / "drawing.png"  # EPS is drawn by Ghostscript, whatever the file's name
    Image.new("RGB", (8, 8)).save(path, "EPS")
    with pytest.raises(FeatmapError, match="truncated or not an image"):
        photographs.read_photograph(path, 4)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "one.tif"
    Image.new("RGB", (4, 4), (255, 255, 255)).convert(mode).save(path)
    np.testing.assert_allclose(read(path), 1, atol=0.01)


def test_gray_values_of_an_unknown_scale_are_not_guessed(tmp_path: Path) -> None:
    path = tmp_path / "float.tif"
    Image.fromarray(np.full((4, 4), 0.4, np.float32)).save(path)
    np.testing.assert_allclose(read(path), 102 / 255, atol=1e-6)
    for value, words in ((200.0, "not all from 0 to 1"), (np.nan, "not all from 0 to 1")):
        Image.fromarray(np.full((4, 4), value, np.float32)).save(path)
        with pytest.raises(FeatmapError, match=words):
            read(path)
    Image.fromarray(np.full((4, 4), 70000, np.int32)).save(path)
    with pytest.raises(FeatmapError, match="not all from 0 to 65535"):
        read(path)


def test_of_several_frames_the_first_is_read(tmp_path: Path) -> None:
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ((255, 255, 255), (0, 0, 0)))
    for name in ("frames.gif", "pages.tif", "frames.png", "frames.webp"):
        first.save(tmp_path / name, save_all=True, append_images=[second])
        np.testing.assert_allclose(read(tmp_path / name), 1)
        with (tmp_path / name).open("rb") as file:
            assert decode(file)[1] == ("of several frames or pages, of which the first is read",)
    first.save(tmp_path / "one.png")
    with (tmp_path / "one.png").open("rb") as file:
        assert decode(file)[1] == ()


def test_many_pixels_are_said_and_too_many_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (20, 10)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150)
    assert read(tmp_path / "large.png").shape == (3, 4, 4)  # warnings are errors here
    with photographs.without_decoder_warnings(), (tmp_path / "large.png").open("rb") as file:
        assert decode(file)[1] == ("of more than 150 pixels",)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 90)
    with pytest.raises(FeatmapError, match="too many pixels, over 180"):
        read(tmp_path / "large.png")


def test_messages_say_what_is_wrong_with_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "one.jpg"
    with pytest.raises(FeatmapError, match="there is no such file"):
        read(path)
    path.write_bytes(b"")
    with pytest.raises(FeatmapError, match="it is empty"):
        read(path)
    path.write_bytes(b"GIF89a" + b"\0" * 50)
    with pytest.raises(FeatmapError, match="truncated or not an image"):
        read(path)
    monkeypatch.setattr(photographs, "MAX_BYTES", 20)
    with pytest.raises(FeatmapError, match="larger than 20 bytes"):
        read(path)
    assert explain_failure(PermissionError(13, "Permission denied")) == "permission denied"
    assert explain_failure(OSError(5, "Input/output error")) == "Input/output error"
    assert explain_failure(MemoryError()) == "it needs more memory than there is"


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".gif", ".tif"])
def test_a_file_cut_anywhere_is_read_or_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut{suffix}"
    noise = np.random.default_rng(0).integers(0, 255, size=(24, 24, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    content, whole, named = path.read_bytes(), read(path), 0
    for length in range(0, len(content), max(1, len(content) // 40)):
        path.write_bytes(content[:length])
        try:
            # the last bytes of some formats hold no pixels
            np.testing.assert_array_equal(read(path), whole)
        except FeatmapError as error:
            named += 1
            assert "cannot be read" in str(error) and "Error" not in str(error)
    assert named >= 30


def test_a_fourth_channel_is_the_files_own_opacity(tmp_path: Path) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "clear.png")
    Image.fromarray(pixels[:, :, :3].copy(), "RGB").save(tmp_path / "opaque.png")
    read = photographs.read_photograph(tmp_path / "clear.png", 8, channels=4)
    np.testing.assert_allclose(read.numpy(), pixels.transpose(2, 0, 1) / np.float32(255), atol=1e-7)
    opaque = photographs.read_photograph(tmp_path / "opaque.png", 8, channels=4).numpy()
    np.testing.assert_allclose(opaque[:3], pixels[:, :, :3].transpose(2, 0, 1) / np.float32(255), atol=1e-7)
    assert (opaque[3] == 1).all()
