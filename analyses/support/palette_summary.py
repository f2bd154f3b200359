"""Clusters of a layer's colours in words, and the verdict on a palette like CMYK."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analyses.formulas.layer_colours import LayerColours
from analyses.formulas.palettes import HUES
from analyses.support.wording import plural

CLAIMED_HUES = ("cyan", "magenta", "green", "yellow")
"""Hues of the claim's palette; black, gray and white have no hue and fit any palette."""
ENOUGH_SURE = 0.05
"""p below which the clusters are more than one cloud."""
CLUSTER = re.compile(r"([a-z]+) ?(\d*)")
"""A cluster in words: the name of its colour, and its number of features where it is known."""


@dataclass(frozen=True)
class PaletteSummary:
    """What verdict and conclusion take from the palette of a layer.

    Parameters
    ----------
    hues : list of str
        Names of the clusters' colours, the largest cluster first.
    sizes : list of int
        Number of features in each cluster; empty where it was not stored.
    p : float
        p of the clusters' silhouette; NaN where there are too few colours.
    """

    hues: list[str]
    sizes: list[int]
    p: float

    @classmethod
    def of(cls, colours: LayerColours) -> PaletteSummary:
        """Summarise the palette of a layer.

        Parameters
        ----------
        colours : LayerColours
            The layer's colours.

        Returns
        -------
        PaletteSummary
            The clusters with their sizes.
        """
        return cls(colours.hues(), colours.sizes(), colours.palette.p)

    @classmethod
    def parse(cls, text: str, p: float) -> PaletteSummary:
        """Read a summary from what `describe` wrote.

        Parameters
        ----------
        text : str
            The clusters in words.
        p : float
            p of their silhouette.

        Returns
        -------
        PaletteSummary
            The summary.
        """
        clusters = CLUSTER.findall(text)
        return cls([hue for hue, _ in clusters], [int(size) for _, size in clusters if size], p)

    def describe(self, hues: tuple[str, ...] | None = None) -> str:
        """Name the clusters' colours, with their numbers of features where known.

        Parameters
        ----------
        hues : tuple of str, optional
            Colours to name; None: all.

        Returns
        -------
        str
            Such as "gray 31, cyan 10, red 1".
        """
        sizes: Sequence[int | None] = self.sizes or [None] * len(self.hues)
        pairs = zip(self.hues, sizes, strict=True)
        named = [hue if size is None else f"{hue} {size}" for hue, size in pairs if hues is None or hue in hues]
        return ", ".join(named)

    def hues_outside(self) -> tuple[str, ...]:
        """List the hues of clusters that are not in the claim's palette.

        Returns
        -------
        tuple of str
            Hues, the largest cluster first.
        """
        return tuple(hue for hue in self.hues if hue in HUES and hue not in CLAIMED_HUES)

    def is_like_cmyk(self) -> bool | None:
        """Judge whether the clusters are those of a palette like CMYK.

        They have to be cyan, magenta and green or yellow, without red and blue, and more than one cloud.

        Returns
        -------
        bool or None
            The judgement; None where there are too few colours.
        """
        if not np.isfinite(self.p):
            return None
        printed = {"cyan", "magenta"} <= set(self.hues) and {"green", "yellow"} & set(self.hues)
        return bool(printed and not self.hues_outside() and self.p < ENOUGH_SURE)


def palette_phrase(fit: PaletteSummary, clamped: bool) -> str:
    """Describe the clusters of the first layer's colours.

    Parameters
    ----------
    fit : PaletteSummary
        The clusters.
    clamped : bool
        Whether the recipe clamps pixels after every step.

    Returns
    -------
    str
        A sentence without its beginning and its full stop.
    """
    if not np.isfinite(fit.p):
        return "the first layer has too few colours for a palette"
    outside = fit.describe(fit.hues_outside()) or "none"
    corners = (
        ". The recipe clamps pixels after every step, which draws strong colours to the corners of the colour cube: "
        "that there are clusters says little, and which corners are taken says more"
    )
    return (
        f"its dominant colours form {plural(len(fit.hues), 'cluster')} ({'features in each: ' if fit.sizes else ''}"
        f"{fit.describe()}; p {fit.p:.2g} against one cloud). Not in such a palette: {outside}"
        f"{corners if clamped else ''}"
    )
