"""Labelled images: one folder a class, in a directory or in zips, as Tiny-ImageNet comes."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from featmap import FeatmapError

SUFFIXES = {".webp", ".jpg", ".jpeg", ".png"}
SETS = {"train", "val", "validation", "test"}
"""Names of folders that hold no class but a whole set."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images in memory.

    Attributes
    ----------
    images : N x 3 x H x W, uint8
    labels : N, an index into `classes`
    classes : their names, sorted
    digest : SHA-256 of the classes and the pixels
    """

    images: Tensor
    labels: Tensor
    classes: list[str]
    digest: str

    def shared(self, other: Labelled) -> int:
        """Return how many of another collection's images are pixel for pixel among these."""
        if self.images.shape[1:] != other.images.shape[1:]:
            return 0
        mine = {hashlib.blake2b(image).digest() for image in self.images.numpy()}
        return sum(hashlib.blake2b(image).digest() in mine for image in other.images.numpy())


def labelled_files(source: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (class, file's bytes) of every picture in a folder or zip, in the order of their names.

    A folder that holds zips and no pictures stands for its zips; of Tiny-ImageNet's own folders, `images` below a
    class is no class.

    Raises
    ------
    FeatmapError
        if `source` is neither.
    """
    if source.is_dir():
        paths = sorted(p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES)
        for path in paths:
            yield _class(path), path.read_bytes()
        if not paths:
            for inner in sorted(source.glob("*.zip")):
                yield from labelled_files(inner)
    elif zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            for name in sorted(n for n in archive.namelist() if Path(n).suffix.lower() in SUFFIXES):
                yield _class(Path(name)), archive.read(name)
    else:
        raise FeatmapError(f"images {str(source)!r}: neither a folder nor a zip; give one with a folder a class")


def _class(path: Path) -> str:
    return path.parent.parent.name if path.parent.name == "images" else path.parent.name


def read_labelled(sources: Sequence[Path], classes: Sequence[str] = ()) -> Labelled:
    """Return all images of some folders and zips; `classes` are those allowed, or all that there are.

    Raises
    ------
    FeatmapError
        if there are none, they differ in size, a file is no picture, or a class is not allowed.
    """
    items = [item for source in sources for item in labelled_files(source)]
    if not items:
        raise FeatmapError(f"images {', '.join(map(str, sources))}: no pictures there; give a folder a class")
    names = sorted(classes or {label for label, _ in items})
    if not classes and (other := SETS & set(names)):
        raise FeatmapError(
            f"images {', '.join(map(str, sources))}: {min(other)!r} is a set of images, not a class; "
            f"give the folder of the training images alone"
        )
    index = {name: k for k, name in enumerate(names)}
    unknown = sorted({label for label, _ in items} - index.keys())
    if unknown:
        raise FeatmapError(f"images {', '.join(map(str, sources))}: class {unknown[0]!r} is unknown to the network")
    with ThreadPoolExecutor() as pool:
        first = _pixels(items[0][1], None)
        pixels = np.empty((len(items), *first.shape), dtype=np.uint8)

        def read(k: int) -> None:
            pixels[k] = _pixels(items[k][1], first.shape)

        list(pool.map(read, range(len(items)), chunksize=256))
    labels = torch.tensor([index[label] for label, _ in items])
    digest = hashlib.sha256(f"{names} {labels.tolist()}".encode())
    digest.update(pixels)
    return Labelled(torch.from_numpy(pixels), labels, names, digest.hexdigest())


def _pixels(data: bytes, shape: tuple[int, ...] | None) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as picture:
            found = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises on damaged files
        raise FeatmapError(f"a picture cannot be read ({error}); remove or replace it") from error
    if shape is not None and found.shape != shape:
        raise FeatmapError(f"a picture has {found.shape[1:]} pixels, others {shape[1:]}; bring all to one size first")
    return found
