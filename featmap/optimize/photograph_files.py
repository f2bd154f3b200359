"""List the photographs of a folder or zip: which files are read, and which are left out, by reason."""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import zipfile
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import BinaryIO

from featmap.errors import FeatmapError
from featmap.optimize.photographs import (
    MAX_BYTES,
    UnreadableError,
    decoded_suffixes,
    explain_failure,
    has_image_header,
)

SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"})
"""Folders of operating systems and file servers; some hold small copies of photographs."""
HIDDEN, NO_SUFFIX, SPECIAL = "hidden", "without a suffix", "neither file nor folder"
AGAIN, CIRCLE, DANGLING = "linked a second time", "linked in a circle", "linked to nothing"
REPLACED, ZIP_LINK, LIMIT = "replaced by a later file of the zip", "linked within the zip", "beyond the limit"
REASONS = 10
"""Reasons that a line counts; the others are summed up."""
_SUFFIX = re.compile(r"\.[a-z0-9_-]{1,12}")


@dataclass(eq=False)
class PhotographFiles:
    """Files of a folder or zip that are to be read as photographs, not opened yet.

    Parameters
    ----------
    path : Path
        The folder or zip.
    open_file : callable
        Opens the file of a label's index, positioned at its start.
    labels : list of str
        Paths of the files inside it, with "/" between folders, sorted. Bytes that are no UTF-8 are escaped.
    left_out : dict of int
        Number of other files, by reason; suffixes stand for the files that have them.
    broken : dict of str
        Folders and links that cannot be followed, with the reason.
    setting : str, default "images"
        Name of the setting that gave the path, for messages.
    """

    path: Path
    open_file: Callable[[int], BinaryIO]
    labels: list[str]
    left_out: dict[str, int] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    setting: str = "images"

    def __len__(self) -> int:
        """Count the files."""
        return len(self.labels)

    def limited(self, limit: int | None) -> PhotographFiles:
        """Select some files, evenly spaced in their order.

        A data set is sorted by class: its first files would be of one class.

        Parameters
        ----------
        limit : int or None
            Largest number of files; None for all.

        Returns
        -------
        PhotographFiles
            The selected files; the others are counted as left out.

        Raises
        ------
        FeatmapError
            If the limit is below 1.
        """
        if limit is not None and limit < 1:
            raise FeatmapError(f"limit {limit}: give the number of photographs to read, 1 or more")
        count, open_file = len(self), self.open_file
        if limit is None or limit >= count:
            return self
        chosen = [k * count // limit for k in range(limit)]
        return PhotographFiles(
            self.path,
            lambda k: open_file(chosen[k]),
            [self.labels[k] for k in chosen],
            self.left_out | {LIMIT: count - limit},
            self.broken,
            self.setting,
        )


def find_photographs(path: str | Path, setting: str = "images") -> PhotographFiles:
    """List the photographs of a folder or zip without decoding them.

    Parameters
    ----------
    path : path
        Folder, with its sub-folders, or zip. Links are followed, and every file is listed once, by a path without
        links if there is one. What is hidden is left out, as are files whose suffix is that of no format that Pillow
        reads; those without a suffix are listed if they begin as an image does.
    setting : str, default "images"
        Name of the setting that gave the path, for messages.

    Returns
    -------
    PhotographFiles
        The files, sorted by their paths.

    Raises
    ------
    FeatmapError
        If there is no such folder, or nothing in it that could be a photograph.
    """
    path = Path(path)
    if path.is_file():
        found = _list_zip(path, setting)
    elif path.is_dir():
        found = _FolderListing(path).files()
    else:
        raise FeatmapError(f"{setting} {str(path)!r}: there is no such folder; give a folder or zip of photographs")
    if not found.labels:
        reasons = {**Counter(found.broken.values()), **found.left_out}
        seen = f" (left out: {count_reasons(reasons)})" if reasons else ""
        raise FeatmapError(
            f"{setting} {str(path)!r}: no photographs in it{seen}; allowed: what Pillow reads, such as .jpg, .png, .tif"
        )
    return replace(found, setting=setting)


def count_reasons(reasons: dict[str, int]) -> str:
    """Format counts by reason, the most frequent first.

    Parameters
    ----------
    reasons : dict of int
        Count by reason.

    Returns
    -------
    str
        Such as "12 .txt, 3 hidden"; `REASONS` reasons at most.
    """
    order = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{count:,} {reason}" for reason, count in order[:REASONS]]
    rest = sum(count for _, count in order[REASONS:])
    return ", ".join(named) + (f" and {rest:,} others" if rest else "")


class _FolderListing:
    """A walk through a folder and what its links lead to, each folder and file once."""

    def __init__(self, root: Path) -> None:
        self.root, self.real = root, os.path.realpath(root)
        self.left_out: Counter[str] = Counter()
        self.broken: dict[str, str] = {}
        self.label_of: dict[str, str] = {}  # by real path
        self.entered: set[str] = set()
        self.links: list[tuple[str, str, str]] = []  # label, path and real path of the folder that it is in

    def files(self) -> PhotographFiles:
        """Walk, links last, so that a file is known by a path without links where it has one."""
        self._walk("", self.real)
        while self.links:
            links, self.links = sorted(self.links), []
            for label, path, inside in links:
                self._follow(label, path, inside)
        by_label: dict[str, str] = {}
        for path, label in self.label_of.items():
            shown = escape_name(label)
            if shown in by_label:
                self.broken[f"{shown} (2)"] = "its name reads like that of another file"
            else:
                by_label[shown] = path
        labels = sorted(by_label)
        paths = [by_label[label] for label in labels]
        broken = {escape_name(label): reason for label, reason in self.broken.items()}
        return PhotographFiles(self.root, lambda k: Path(paths[k]).open("rb"), labels, dict(self.left_out), broken)

    def _walk(self, label: str, real: str) -> None:
        """List a folder and those inside it; `real` has no links in it."""
        waiting = deque([(label, real)])
        while waiting:
            label, real = waiting.popleft()
            self.entered.add(real)
            try:
                with os.scandir(real) as entries:
                    for entry in sorted(entries, key=lambda e: e.name):
                        inner = f"{label}{entry.name}"
                        if _is_hidden(entry.name):
                            self.left_out[HIDDEN] += _count_files(entry)
                        elif entry.is_symlink():
                            self.links.append((inner, entry.path, real))
                        elif entry.is_dir(follow_symlinks=False):
                            if entry.path in self.entered:
                                self.left_out[AGAIN] += 1
                            else:
                                waiting.append((f"{inner}/", entry.path))
                        elif entry.is_file(follow_symlinks=False):
                            self._add(inner, entry.path)
                        else:
                            self.left_out[SPECIAL] += 1
            except OSError as error:
                self.broken[label or "."] = explain_failure(error)

    def _follow(self, label: str, path: str, inside: str) -> None:
        """List what a link leads to, unless it is listed already or contains the link."""
        try:
            mode = Path(path).stat().st_mode
        except OSError as error:
            reason = DANGLING if isinstance(error, FileNotFoundError) else CIRCLE if _is_circle(path) else ""
            if _suffix(label) in decoded_suffixes() or not reason:
                self.broken[label] = f"it is {reason}" if reason else explain_failure(error)
            else:
                self.left_out[reason] += 1
            return
        real = os.path.realpath(path)
        if stat.S_ISREG(mode):
            self._add(label, real)
        elif not stat.S_ISDIR(mode):
            self.left_out[SPECIAL] += 1
        elif _contains(real, inside) or _contains(real, self.real):
            self.left_out[CIRCLE] += 1
        elif real in self.entered:
            self.left_out[AGAIN] += 1
        else:
            self._walk(f"{label}/", real)

    def _add(self, label: str, real: str) -> None:
        """Add a file if it is a photograph by its name, or by its first bytes where it has no suffix."""

        def is_image() -> bool:
            with Path(real).open("rb") as file:
                return has_image_header(file)

        reason = _reason_to_leave_out(label, is_image)
        if reason:
            self.left_out[reason] += 1
        elif real in self.label_of:
            self.left_out[AGAIN] += 1
        else:
            self.label_of[real] = label


def _list_zip(path: Path, setting: str) -> PhotographFiles:
    """List the photographs of a zip, which is read in place."""
    if not zipfile.is_zipfile(path):
        raise FeatmapError(f"{setting} {str(path)!r}: that is a file, and no zip; give a folder or zip of photographs")
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # a damaged directory of files is found in many ways
        raise FeatmapError(f"{setting} {str(path)!r}: the zip is damaged ({error}); give another copy of it") from error
    left_out: Counter[str] = Counter()
    members = {info.filename: info for info in archive.infolist() if not info.is_dir()}  # the last of a name counts
    left_out[REPLACED] = sum(not info.is_dir() for info in archive.infolist()) - len(members)
    chosen: dict[str, zipfile.ZipInfo] = {}
    for name, info in members.items():

        def is_image(member: zipfile.ZipInfo = info) -> bool:
            with archive.open(member) as file:
                return has_image_header(file)

        if any(map(_is_hidden, name.split("/"))):
            left_out[HIDDEN] += 1
        elif stat.S_ISLNK(info.external_attr >> 16):
            left_out[ZIP_LINK] += 1
        elif reason := _reason_to_leave_out(name, is_image):
            left_out[reason] += 1
        else:
            chosen[name] = info
    labels = sorted(chosen)
    infos = [chosen[label] for label in labels]
    lock = Lock()

    def open_member(k: int) -> BinaryIO:
        """Unpack one file into memory; `zipfile` checks its length and checksum."""
        if infos[k].file_size > MAX_BYTES:
            raise UnreadableError(f"it is larger than {MAX_BYTES:,} bytes")
        with lock:  # an archive counts its open files without one of its own
            return io.BytesIO(archive.read(infos[k]))

    return PhotographFiles(path, open_member, labels, dict(+left_out))


def _reason_to_leave_out(label: str, is_image: Callable[[], bool]) -> str:
    """Name the reason for which a file is no photograph, "" where there is none."""
    suffix = _suffix(label)
    if suffix:
        return "" if suffix in decoded_suffixes() else suffix
    try:
        return "" if is_image() else NO_SUFFIX
    except Exception:  # noqa: BLE001 - a file that cannot be opened, or whose place in a zip is damaged
        return NO_SUFFIX


def _suffix(label: str) -> str:
    """Return the suffix of a file in lower case; what follows a dot in a title or before a number is none."""
    suffix = Path(label).suffix.lower()
    return suffix if _SUFFIX.fullmatch(suffix) and not suffix[1:].isdigit() else ""


def _is_hidden(name: str) -> bool:
    """Check whether a file or folder is hidden, or one of an operating system's."""
    return name in SYSTEM_FOLDERS or (name.startswith(".") and name not in (".", ".."))


def _count_files(entry: os.DirEntry[str]) -> int:
    """Count the files of a hidden entry: itself, or what is inside it."""
    if not entry.is_dir(follow_symlinks=False):
        return 1
    return sum(len(files) for _, _, files in os.walk(entry.path))


def _contains(folder: str, path: str) -> bool:
    """Check whether a folder is a path, or one that contains it; both are real paths."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _is_circle(path: str) -> bool:
    """Check whether following a link leads back to it."""
    try:
        os.path.realpath(path, strict=True)
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def escape_name(name: str) -> str:
    r"""Escape the bytes of a file name that are no UTF-8, which no table could hold.

    Parameters
    ----------
    name : str
        Name as the operating system gives it.

    Returns
    -------
    str
        Such as ``caf\xe9.jpg``; a name in UTF-8 is unchanged.
    """
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
