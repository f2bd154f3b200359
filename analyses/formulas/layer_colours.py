"""Dominant colours of a layer's features, their clusters, and how these compare with a palette like CMYK."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from analyses.formulas.palettes import GRAY_CHROMA, HUES, Palette, hue_name

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
        """Name the clusters' colours, each with its number of features where that is known.

        Parameters
        ----------
        hues : tuple of str, optional
            Colours to name; None: all.

        Returns
        -------
        str
            Such as "gray 31, cyan 10, red 1".
        """
        sizes = self.sizes or [None] * len(self.hues)
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
        """Judge whether the colours form clusters of cyan, magenta and green or yellow, without red and blue.

        Returns
        -------
        bool or None
            The judgement; None where there are too few colours.
        """
        if not np.isfinite(self.p):
            return None
        printed = {"cyan", "magenta"} <= set(self.hues) and {"green", "yellow"} & set(self.hues)
        return bool(printed and not self.hues_outside() and self.p < ENOUGH_SURE)


@dataclass(frozen=True, eq=False)
class LayerColours:
    """Dominant colours of a layer's features.

    Parameters
    ----------
    names : list of str
        Names of the features.
    rgb, lab : numpy.ndarray
        Their dominant colours in sRGB and in OKLab, `n x 3`.
    palette : Palette
        Clusters of these colours.
    """

    names: list[str]
    rgb: np.ndarray
    lab: np.ndarray
    palette: Palette

    def hues(self) -> list[str]:
        """Name the clusters' colours.

        Returns
        -------
        list of str
            Names, the largest cluster first.
        """
        if not self.names:
            return []
        return [hue_name(self.lab[self.palette.labels == k].mean(0)) for k in range(self.palette.count)]

    @property
    def hued(self) -> np.ndarray:
        """Whether each feature's dominant colour is not gray."""
        coloured: np.ndarray = np.hypot(self.lab[:, 1], self.lab[:, 2]) >= GRAY_CHROMA
        return coloured

    def summarise(self) -> PaletteSummary:
        """Summarise the palette for verdict and conclusion.

        Returns
        -------
        PaletteSummary
            The clusters with their sizes.
        """
        hues = self.hues()
        sizes = [int((self.palette.labels == k).sum()) for k in range(len(hues))]
        return PaletteSummary(hues, sizes, self.palette.p)
