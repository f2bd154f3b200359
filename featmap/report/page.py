"""Plain values that pages are rendered from: figures, interaction reports and the data of a layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

SMALL_PAGE, LARGE_PAGE = (512, 23_000_000), (2048, 76_000_000)
"""Number of features and maximum bytes of two pages; the maximum is linear in between."""
PHOTOGRAPH_S = "photograph_S"
"""Name of S over photographs among the arrays of a page that also has S over images."""
COMPARED_S = "compared_S"
"""Name of S over photographs that is centred over the features that both maps have, where these are fewer."""
COMPARED_IMAGES_S = "compared_images_S"
"""The same of S over images; both are in the order of the map of photographs."""


@dataclass(frozen=True)
class Picture:
    """A figure of a run, ready for a page.

    Parameters
    ----------
    uri : str
        Data URI of the image.
    width, height : int
        Size in pixels.
    caption : str
        Caption.
    alt : str
        Alternative text, which states the figure's numbers.
    """

    uri: str
    width: int
    height: int
    caption: str
    alt: str


@dataclass
class Report:
    """An interaction report.

    Parameters
    ----------
    title : str
        Title.
    lines : list of str
        Findings, a paragraph each.
    tables : list of (str, pandas.DataFrame)
        Captions and tables.
    folded : list of (str, pandas.DataFrame)
        Captions and tables of which a page shows the captions until they are opened.
    pictures : list of Picture
        Figures.
    command : str, default ""
        Command that repeats the run; "" if there is none.
    """

    title: str
    lines: list[str] = field(default_factory=list)
    tables: list[tuple[str, pd.DataFrame]] = field(default_factory=list)
    folded: list[tuple[str, pd.DataFrame]] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    command: str = ""


@dataclass
class LayerPage:
    """The values of a layer's page; features are in the same order everywhere.

    Parameters
    ----------
    title : str
        Title.
    data : dict
        Plain JSON values.
    blobs : dict of str to numpy.ndarray
        Arrays by name, which the page holds as binary data.
    images : list of str
        Data URI of each feature's image.
    photographs : list of str
        Data URI of each embedded photograph, or part of one.
    """

    title: str
    data: dict[str, Any]
    blobs: dict[str, np.ndarray] = field(default_factory=dict)
    images: list[str] = field(default_factory=list)
    photographs: list[str] = field(default_factory=list)


def page_budget(count: int) -> int:
    """Return the maximum size of a page.

    Parameters
    ----------
    count : int
        Number of features.

    Returns
    -------
    int
        Bytes.
    """
    (few, low), (many, high) = SMALL_PAGE, LARGE_PAGE
    return int(low + max(0, count - few) * (high - low) / (many - few))
