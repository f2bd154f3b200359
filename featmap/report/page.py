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


@dataclass(frozen=True)
class UnitMark:
    """A row or a column of a map of pairs.

    Parameters
    ----------
    name : str
        Name of the unit.
    cluster, community : int or None
        Numbers of its cluster and of its community; None for none.
    """

    name: str
    cluster: int | None = None
    community: int | None = None


@dataclass
class PairKinds:
    """Pairs by their kind of interaction: a map and a table with one control.

    Parameters
    ----------
    kinds : list of (str, str, int)
        Name, colour (hexadecimal) and number of pairs of each kind that occurs.
    rows, columns : list of UnitMark
        Units of the map, in the order of their clusters; empty for no map.
    cells : dict of (int, int) to (int, str)
        Position in `kinds`, and description, of the pair at a row and a column of the map.
    caption : str
        Caption of the table.
    table : pandas.DataFrame
        Pairs that are listed.
    kind_of_row : list of int
        Position in `kinds` of each row of the table.
    beyond : list of bool
        Whether a row of the table is shown only where its kind is chosen.
    """

    kinds: list[tuple[str, str, int]]
    rows: list[UnitMark]
    columns: list[UnitMark]
    cells: dict[tuple[int, int], tuple[int, str]]
    caption: str
    table: pd.DataFrame
    kind_of_row: list[int]
    beyond: list[bool]


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
    pairs : PairKinds, optional
        Pairs by their kind.
    pictures : list of Picture
        Figures.
    command : str, default ""
        Command that repeats the run; "" if there is none.
    """

    title: str
    lines: list[str] = field(default_factory=list)
    tables: list[tuple[str, pd.DataFrame]] = field(default_factory=list)
    pairs: PairKinds | None = None
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
