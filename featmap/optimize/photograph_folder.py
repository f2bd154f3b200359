"""Photographs of a folder or zip: checked once, before anything is written, and then read a few at a time."""

from __future__ import annotations

import errno
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from featmap.errors import FeatmapError
from featmap.image_shape import Size
from featmap.optimize.photograph_files import PhotographFiles, count_reasons, escape_name, find_photographs
from featmap.optimize.photographs import decode, explain_failure, fit_image, without_decoder_warnings

SHOWN, MAX_RECORDED = 10, 1000
"""Broken files that a message names, and that a manifest does."""
_THREADS, _CHUNK = min(8, os.cpu_count() or 1), 256
"""Threads that decode at a time, and files that they are given at a time."""
UNIT_PHOTOGRAPHS = 64
"""Photographs of a work unit, which are in memory together."""

Progress = Callable[[int, int], None]
"""Called with the number of files checked, and the number of all."""


@dataclass(frozen=True, eq=False)
class PhotographFolder:
    """Photographs of a folder or zip, each of which was decoded once.

    Parameters
    ----------
    path : Path
        The folder or zip.
    open_file : callable
        Opens the file of a label's index, positioned at its start.
    labels : list of str
        Paths of the files inside it, with "/" between folders, sorted: `tiger/0017.jpg`.
    digest : str
        SHA-256 of the labels and of the files' bytes.
    left_out : dict of int
        Number of files that are not read, by reason; suffixes stand for the files that have them.
    broken : dict of str
        Files that cannot be read, with the reason.
    remarks : dict of int
        Number of files that are read and of which the reader of a result should know, by what this is.
    checksums : list of str, optional
        SHA-256 of each file when it was checked; none are compared without them.
    """

    path: Path
    open_file: Callable[[int], BinaryIO]
    labels: list[str]
    digest: str
    left_out: dict[str, int] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, int] = field(default_factory=dict)
    checksums: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        """Count the photographs."""
        return len(self.labels)

    def __reduce__(self) -> tuple[Any, ...]:
        """Send the names to another process, which lists the folder again and reads the same files."""
        about = (self.digest, self.left_out, self.broken, self.remarks, self.checksums)
        return _list_again, (self.path.resolve(), self.labels, *about)

    @property
    def shown_name(self) -> str:
        """Name of the folder or zip, without its path."""
        return escape_name(self.path.resolve().name)

    def read(self, indices: Sequence[int], size: Size, channels: int = 3) -> Tensor:
        """Read some photographs at a size, in several threads.

        Parameters
        ----------
        indices : sequence of int
            Positions in `labels`.
        size : int or (int, int)
            Side, or height and width, of the images in pixels.
        channels : int, default 3
            A key of `featmap.optimize.photographs.PHOTOGRAPH_CHANNELS`.

        Returns
        -------
        Tensor
            B x C x H x W in [0, 1], float32.

        Raises
        ------
        FeatmapError
            If a file has changed since it was checked, or cannot be read any more.
        """
        with without_decoder_warnings(), ThreadPoolExecutor(_THREADS) as pool:
            return torch.stack(list(pool.map(lambda k: self._read(k, size, channels), indices)))

    def _read(self, k: int, size: Size, channels: int) -> Tensor:
        """Read one photograph."""
        try:
            with self.open_file(k) as file:
                image = fit_image(file, size, channels)
                has_changed = bool(self.checksums) and _checksum(file) != self.checksums[k]
        except Exception as error:
            raise FeatmapError(
                f"image {self.labels[k]!r} of {str(self.path)!r} cannot be read any more ({explain_failure(error)}); "
                "put it back, and repeat the call"
            ) from error
        if has_changed:
            raise FeatmapError(
                f"image {self.labels[k]!r} of {str(self.path)!r} has changed since it was checked; repeat the call"
            )
        return image

    def batches(self, size: Size, rows: int, channels: int = 3) -> Iterator[Tensor]:
        """Generate all photographs in batches, of which one is in memory at a time.

        Parameters
        ----------
        size : int or (int, int)
            Side, or height and width, of the images in pixels.
        rows : int
            Images of a batch.
        channels : int, default 3
            A key of `featmap.optimize.photographs.PHOTOGRAPH_CHANNELS`.

        Yields
        ------
        Tensor
            B x C x H x W in [0, 1], float32.
        """
        for first in range(0, len(self), rows):
            yield self.read(range(first, min(first + rows, len(self))), size, channels)

    def lines(self) -> list[str]:
        """Describe what is not read, and what is to be known of the rest.

        Returns
        -------
        list of str
            A line for each of these; empty where every file is a photograph like any other.
        """
        subject = f"{len(self):,} photographs of {self.shown_name!r}"
        return [f"{subject}; {part}" for part in self._parts()]

    def describe(self) -> str:
        """Describe the photographs in one sentence.

        Returns
        -------
        str
            Such as "960 photographs of the folder 'tigers'; left out: 12 .txt, 3 hidden".
        """
        kind = "folder" if self.path.is_dir() else "zip"
        return "; ".join([f"{len(self):,} photographs of the {kind} {self.shown_name!r}", *self._parts()])

    def _parts(self) -> list[str]:
        """Describe what is not read, and what is to be known of the rest."""
        parts = []
        if self.left_out:
            parts.append(f"left out: {count_reasons(self.left_out)}")
        if self.broken:
            parts.append(f"{len(self.broken):,} skipped that cannot be read: {name_broken(self.broken)}")
        if self.remarks:
            parts.append(f"among them {count_reasons(self.remarks)}")
        return parts

    def record(self) -> dict[str, Any]:
        """Describe the photographs for a manifest.

        Returns
        -------
        dict
            Name of the folder, count, checksum, what is left out, broken and remarkable, as plain JSON values.
        """
        record: dict[str, Any] = {"folder": self.shown_name, "count": len(self), "sha256": self.digest}
        for name in ("left_out", "remarks"):
            if counts := getattr(self, name):
                record[name] = dict(sorted(counts.items()))
        if self.broken:
            record["broken_count"] = len(self.broken)
            record["broken"] = dict(sorted(self.broken.items())[:MAX_RECORDED])
        return record


@dataclass(frozen=True)
class Photographs:
    """Photographs to open, and how.

    Parameters
    ----------
    folder : path
        Folder, with its sub-folders (such as one for each class), or zip.
    limit : int, optional
        Largest number of photographs, which are evenly spaced in the order of their names: a data set is sorted by
        class. None takes all.
    skip_broken : bool, default False
        Go on without photographs that cannot be read; otherwise all of them are named and nothing is computed.
    """

    folder: str | Path
    limit: int | None = None
    skip_broken: bool = False


AnyPhotographs = str | Path | Photographs | PhotographFolder
"""What `featmap.similarity` and `featmap.interact` take as photographs."""


@dataclass(frozen=True, eq=False)
class PhotographStimuli:
    """The photographs that a run probes.

    Parameters
    ----------
    labels : list of str
        Name of each photograph.
    digest : str
        SHA-256 of names and bytes.
    size : int or (int, int)
        Size that they are resized to, in pixels.
    limit : int or None
        Largest number of photographs, as it was set; None where it leaves none out.
    source : PhotographFolder, optional
        Where they are read from; None for a finished run, which reads them no more.
    """

    labels: list[str]
    digest: str
    size: Size
    limit: int | None = None
    source: PhotographFolder | None = None

    def __len__(self) -> int:
        """Count the photographs."""
        return len(self.labels)

    def identity(self) -> dict[str, Any]:
        """Describe everything that the responses depend on besides the network.

        Returns
        -------
        dict
            Plain JSON values.
        """
        size = list(self.size) if isinstance(self.size, tuple) else self.size
        return {"count": len(self), "sha256": self.digest, "limit": self.limit, "size": size}

    def require_source(self) -> PhotographFolder:
        """Return the photographs, to be read.

        Returns
        -------
        PhotographFolder
            Their folder or zip.

        Raises
        ------
        FeatmapError
            If it is not known.
        """
        if self.source is None:
            raise FeatmapError(
                "responses to photographs are missing or damaged, and the photographs are not at hand; repeat the "
                "command of the run with its photographs"
            )
        return self.source


def open_photographs(
    path: str | Path, *, skip_broken: bool = False, limit: int | None = None, progress: Progress | None = None
) -> PhotographFolder:
    """List a folder or zip of photographs, and decode every file once.

    Parameters
    ----------
    path : path
        Folder, with its sub-folders, or zip.
    skip_broken : bool, default False
        Go on without files that cannot be read.
    limit : int, optional
        Largest number of files, which are evenly spaced in their order. None reads all.
    progress : callable, optional
        Called after each file with the number of files checked and the number of all.

    Returns
    -------
    PhotographFolder
        The photographs.

    Raises
    ------
    FeatmapError
        If there is no such folder or no photograph in it, or files are broken.
    """
    return check_photographs(find_photographs(path).limited(limit), skip_broken=skip_broken, progress=progress)


def check_photographs(
    files: PhotographFiles, *, skip_broken: bool = False, progress: Progress | None = None
) -> PhotographFolder:
    """Decode every file of a listing once, and compute the checksum of all.

    Parameters
    ----------
    files : PhotographFiles
        The listing.
    skip_broken : bool, default False
        Go on without files that cannot be read.
    progress : callable, optional
        Called after each file with the number of files checked and the number of all.

    Returns
    -------
    PhotographFolder
        The readable files.

    Raises
    ------
    FeatmapError
        If files cannot be read and are not skipped, or none can be read. It names them, `SHOWN` at most.
    """
    checked = list(_decode_all(files, progress))
    pairs = zip(files.labels, checked, strict=True)
    broken = files.broken | {label: one.problem for label, one in pairs if one.problem}
    good = [k for k, one in enumerate(checked) if not one.problem]
    if broken and not (skip_broken and good):
        advice = "repair or remove them, or go on without them (skip_broken)" if good else "give others"
        raise FeatmapError(
            f"{files.setting} {str(files.path)!r}: {len(broken):,} cannot be read: {name_broken(broken)}; {advice}"
        )
    lines = "\n".join(f"{files.labels[k]} {checked[k].sha256}" for k in good)
    return PhotographFolder(
        files.path,
        lambda k: files.open_file(good[k]),
        [files.labels[k] for k in good],
        hashlib.sha256(lines.encode()).hexdigest(),
        files.left_out,
        broken,
        dict(Counter(remark for k in good for remark in checked[k].remarks)),
        [checked[k].sha256 for k in good],
    )


def _checksum(file: BinaryIO) -> str:
    """Compute the SHA-256 of a file, and return to its start."""
    file.seek(0)
    value = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    file.seek(0)
    return value


def _list_again(path: Path, labels: list[str], *about: Any) -> PhotographFolder:
    """Return photographs that were decoded in another process; their folder is listed when the first one is read."""

    @cache
    def listed() -> tuple[PhotographFiles, dict[str, int]]:
        files = find_photographs(path)
        return files, {label: k for k, label in enumerate(files.labels)}

    def open_file(k: int) -> BinaryIO:
        files, position = listed()
        if labels[k] not in position:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), labels[k])
        return files.open_file(position[labels[k]])

    return PhotographFolder(path, open_file, labels, *about)


@dataclass(frozen=True)
class _Checked:
    """What is found out about a file by decoding it."""

    sha256: str = ""
    problem: str = ""
    remarks: tuple[str, ...] = ()


def _decode_all(files: PhotographFiles, progress: Progress | None) -> Iterator[_Checked]:
    """Generate what is found out about each file, in their order."""
    count = len(files)

    def decode_one(k: int) -> _Checked:
        try:
            with files.open_file(k) as file:
                remarks = decode(file)[1]
                return _Checked(_checksum(file), remarks=remarks)
        except Exception as error:  # noqa: BLE001 - whatever a decoder raises on a damaged file
            return _Checked(problem=explain_failure(error))

    # nothing of a decoded file is kept, and a long list does not become as many waiting tasks
    with without_decoder_warnings(), ThreadPoolExecutor(_THREADS) as pool:
        for first in range(0, count, _CHUNK):
            indices = range(first, min(first + _CHUNK, count))
            for k, one in zip(indices, pool.map(decode_one, indices), strict=True):
                yield one
                if progress is not None:
                    progress(k + 1, count)


def name_broken(broken: dict[str, str]) -> str:
    """Name broken files with the reasons, `SHOWN` at most.

    Parameters
    ----------
    broken : dict of str
        Reason by file.

    Returns
    -------
    str
        Such as "'a.jpg' (it is empty), 'b.jpg' (permission denied)".
    """
    named = [f"{_shorten(label)!r} ({reason})" for label, reason in sorted(broken.items())[:SHOWN]]
    more = len(broken) - len(named)
    return ", ".join(named) + (f" and {more:,} more" if more else "")


def _shorten(label: str) -> str:
    """Shorten a long label in its middle."""
    return label if len(label) <= 48 else f"{label[:22]}...{label[-23:]}"
