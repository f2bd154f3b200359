"""Labelled images, one folder for each class, in a directory or in zip files like Tiny-ImageNet's."""

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
SET_FOLDERS = {"train", "val", "validation", "test"}
"""Names of folders that hold a whole set of classes instead of one class."""


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Labelled images in memory.

    Parameters
    ----------
    images : torch.Tensor
        `N x 3 x H x W`, uint8.
    labels : torch.Tensor
        N indices into `classes`.
    classes : list of str
        Names of the classes, sorted.
    digest : str
        SHA-256 of the classes and the pixels.
    """

    images: Tensor
    labels: Tensor
    classes: list[str]
    digest: str

    def count_shared(self, other: LabelledImages) -> int:
        """Count the images of another collection that are pixel for pixel among these.

        Parameters
        ----------
        other : LabelledImages
            The other collection.

        Returns
        -------
        int
            Number of images; 0 where the sizes differ.
        """
        if self.images.shape[1:] != other.images.shape[1:]:
            return 0
        own = {hashlib.blake2b(image).digest() for image in self.images.numpy()}
        return sum(hashlib.blake2b(image).digest() in own for image in other.images.numpy())


def labelled_files(source: Path) -> Iterator[tuple[str, bytes]]:
    """Iterate over the pictures of a folder or zip, in the order of their names.

    A folder with zip files and no pictures stands for its zip files. The folder `images` inside a class of
    Tiny-ImageNet is not a class.

    Parameters
    ----------
    source : Path
        Folder or zip.

    Yields
    ------
    label : str
        Class of the picture.
    data : bytes
        Content of its file.

    Raises
    ------
    FeatmapError
        If `source` is neither a folder nor a zip.
    """
    if source.is_dir():
        paths = sorted(p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES)
        for path in paths:
            yield _class_name(path), path.read_bytes()
        if not paths:
            for inner in sorted(source.glob("*.zip")):
                yield from labelled_files(inner)
    elif zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            for name in sorted(n for n in archive.namelist() if Path(n).suffix.lower() in SUFFIXES):
                yield _class_name(Path(name)), archive.read(name)
    else:
        raise FeatmapError(f"images {str(source)!r}: neither a folder nor a zip; give one with a folder for each class")


def _class_name(path: Path) -> str:
    """Find the class of a picture in its path."""
    return path.parent.parent.name if path.parent.name == "images" else path.parent.name


def read_labelled_images(sources: Sequence[Path], classes: Sequence[str] = ()) -> LabelledImages:
    """Read all images of some folders and zip files.

    Parameters
    ----------
    sources : sequence of Path
        Folders and zip files.
    classes : sequence of str, default ()
        Classes allowed; empty: all those that occur.

    Returns
    -------
    LabelledImages
        The images.

    Raises
    ------
    FeatmapError
        If there are no images, they differ in size, a file is not a picture, or a class is not allowed.
    """
    items = [item for source in sources for item in labelled_files(source)]
    if not items:
        raise FeatmapError(f"images {', '.join(map(str, sources))}: no pictures there; give one folder for each class")
    names = sorted(classes or {label for label, _ in items})
    if not classes and (other := SET_FOLDERS & set(names)):
        raise FeatmapError(
            f"images {', '.join(map(str, sources))}: {min(other)!r} is a set of images, not a class; "
            "give the folder of the training images alone"
        )
    index = {name: k for k, name in enumerate(names)}
    unknown = sorted({label for label, _ in items} - index.keys())
    if unknown:
        raise FeatmapError(f"images {', '.join(map(str, sources))}: class {unknown[0]!r} is unknown to the network")
    with ThreadPoolExecutor() as pool:
        first = _decode(items[0][1], None)
        pixels = np.empty((len(items), *first.shape), dtype=np.uint8)

        def read(k: int) -> None:
            pixels[k] = _decode(items[k][1], first.shape)

        list(pool.map(read, range(len(items)), chunksize=256))
    labels = torch.tensor([index[label] for label, _ in items])
    digest = hashlib.sha256(f"{names} {labels.tolist()}".encode())
    digest.update(pixels)
    return LabelledImages(torch.from_numpy(pixels), labels, names, digest.hexdigest())


def _decode(data: bytes, shape: tuple[int, ...] | None) -> np.ndarray:
    """Decode a picture to uint8, `3 x H x W`, and check its shape."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            pixels = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
    except (OSError, ValueError, SyntaxError) as error:  # all that Pillow raises for damaged files
        raise FeatmapError(f"a picture cannot be read ({error}); remove or replace it") from error
    if shape is not None and pixels.shape != shape:
        raise FeatmapError(f"a picture has {pixels.shape[1:]} pixels, others {shape[1:]}; bring all to one size first")
    return pixels
