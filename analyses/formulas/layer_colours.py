"""Dominant colours of a layer's features, and the clusters of these colours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analyses.formulas.palettes import GRAY_CHROMA, Palette, hue_name


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

    def sizes(self) -> list[int]:
        """Count the features of each cluster.

        Returns
        -------
        list of int
            Numbers of features, in the order of `hues`.
        """
        return [int((self.palette.labels == k).sum()) for k in range(self.palette.count)] if self.names else []

    @property
    def hued(self) -> np.ndarray:
        """Whether each feature's dominant colour is not gray."""
        coloured: np.ndarray = np.hypot(self.lab[:, 1], self.lab[:, 2]) >= GRAY_CHROMA
        return coloured
