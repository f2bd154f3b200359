"""What pages show, as plain values: pictures, reports, the data of a layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Picture:
    """A figure of a run as a data URI, its size in pixels, its caption, and its alt text with its numbers."""

    uri: str
    width: int
    height: int
    caption: str
    alt: str


@dataclass
class Report:
    """One interaction report: a title, sentences, tables with captions, figures, the command that made it."""

    title: str
    lines: list[str] = field(default_factory=list)
    tables: list[tuple[str, pd.DataFrame]] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    command: str = ""


@dataclass
class LayerPage:
    """The values that a page shows: `data` as JSON, `blobs` as bare arrays, `images` as data URIs, in one order."""

    title: str
    data: dict[str, Any]
    blobs: dict[str, np.ndarray] = field(default_factory=dict)
    images: list[str] = field(default_factory=list)
