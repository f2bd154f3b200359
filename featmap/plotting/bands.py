"""Bands of colours along an axis of a heatmap: which group each row or column is in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from matplotlib import pyplot as plt

from featmap.errors import FeatmapError
from featmap.plotting.sheets import cluster_numbers
from featmap.plotting.style import GRAY, colour, label_runs

BAND, GAP = 0.19, 0.03
"""Thickness of a band of colours, and the distance of its neighbours, in inches."""
CLUSTER, COMMUNITY = "cluster", "community"
"""Words beside the bands."""


@dataclass(frozen=True)
class Axis:
    """One axis of a rectangular heatmap.

    Parameters
    ----------
    name : str
        Label of the axis.
    clusters : sequence of int or None, optional
        Cluster number of every row or column; None or negative: in no cluster. None for the whole draws no band.
    communities : sequence of int or None, optional
        The same of communities, which rows and columns share: a second band, beyond that of the clusters.
    """

    name: str
    clusters: Sequence[int | None] | None = None
    communities: Sequence[int | None] | None = None

    def bands(self, n: int, what: str) -> dict[str, list[int]]:
        """Collect the bands of the axis.

        Parameters
        ----------
        n : int
            Number of rows or columns.
        what : str
            "rows" or "columns".

        Returns
        -------
        dict of str to list of int
            Group of each row or column by the word beside the band, -1 for none; from the cells outwards.

        Raises
        ------
        FeatmapError
            If a list of groups has another length than the axis.
        """
        given = {CLUSTER: self.clusters, COMMUNITY: self.communities}
        return {word: found for word, groups in given.items() if (found := number_groups(groups, n, what))}


def number_groups(groups: Sequence[int | None] | None, n: int, what: str) -> list[int]:
    """Convert the group numbers of an axis, and check how many there are.

    Parameters
    ----------
    groups : sequence of int or None
        Group of every row or column; None, NaN or negative: in no group.
    n : int
        Number of rows or columns.
    what : str
        What they are, such as "rows".

    Returns
    -------
    list of int
        -1 for no group; empty for None.

    Raises
    ------
    FeatmapError
        If there are more or fewer.
    """
    if groups is not None and len(groups) != n:
        raise FeatmapError(f"a heatmap of {n} {what} needs as many clusters, not {len(groups)}")
    return cluster_numbers(groups)


def list_notes(*axes: dict[str, list[int]]) -> list[tuple[str | None, str]]:
    """List what the bands of a heatmap's axes need to be read.

    Parameters
    ----------
    *axes : dict of str to list of int
        Bands of the rows and of the columns, see `Axis.bands`.

    Returns
    -------
    list of (colour or None, str)
        Notes with their swatches.
    """
    words = [word for word in (CLUSTER, COMMUNITY) if any(-1 in bands.get(word, []) for bands in axes)]
    notes: list[tuple[str | None, str]] = [(GRAY, f"in no {word}") for word in words]
    notes += [(None, "clusters are each layer's own")] * all(CLUSTER in bands for bands in axes)
    return notes + [(None, "communities join rows and columns")] * all(COMMUNITY in bands for bands in axes)


def draw_band(axes: plt.Axes, numbers: list[int], inches: float, upright: bool) -> None:
    """Fill a band with the colours of groups and write their numbers on it.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Axes that the band fills.
    numbers : list of int
        Group of each row or column; -1 for none.
    inches : float
        Length of the band.
    upright : bool
        Whether the band runs downwards.
    """
    n, start = len(numbers), 0
    axes.set(xlim=(0, 1) if upright else (0, n), ylim=(n, 0) if upright else (0, 1))
    axes.set_axis_off()
    for number, run in groupby(numbers):
        length = len(list(run))
        corner, sides = ((0, start), (1, length)) if upright else ((start, 0), (length, 1))
        axes.add_patch(plt.Rectangle(corner, *sides, facecolor=colour(number), linewidth=0))
        start += length
    label_runs(axes, numbers, inches, upright)
