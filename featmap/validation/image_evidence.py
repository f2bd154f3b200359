"""Evidence on which the images of a run are judged: what they were made for, their pixels, and responses to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from featmap.image_shape import Size
from featmap.network.unit import Unit
from featmap.stats import image_quality


@dataclass(eq=False)
class PixelMeasures:
    """Measures of the pixels of some images.

    Parameters
    ----------
    contrast, slope : numpy.ndarray
        Of each image, N; see `featmap.stats.image_quality`.
    colour : numpy.ndarray
        Correlations of its channels, N x C x C.
    """

    contrast: np.ndarray
    slope: np.ndarray
    colour: np.ndarray

    @staticmethod
    def of(images: np.ndarray) -> PixelMeasures:
        """Measure images.

        Parameters
        ----------
        images : numpy.ndarray
            N x C x H x W in [0, 1].

        Returns
        -------
        PixelMeasures
            Of each image.
        """
        return PixelMeasures(
            image_quality.contrasts(images),
            image_quality.spectrum_slopes(images),
            image_quality.colour_correlations(images),
        )

    @staticmethod
    def join(parts: Sequence[PixelMeasures]) -> PixelMeasures:
        """Join the measures of batches.

        Parameters
        ----------
        parts : sequence of PixelMeasures
            One for each batch.

        Returns
        -------
        PixelMeasures
            Of all images in their order.
        """
        return PixelMeasures(*(np.concatenate([getattr(p, n) for p in parts]) for n in ("contrast", "slope", "colour")))


@dataclass(eq=False)
class RunImages:
    """The images of a run, and what they were made for.

    Parameters
    ----------
    labels : list of str
        What each image was made for, R; those of the first seed come first.
    seeds : numpy.ndarray
        Seed of each image, R.
    live : numpy.ndarray
        Whether its descent reached what it was made for, R booleans.
    activation : numpy.ndarray
        Activation that it reached in its own network, R.
    features : list of Unit
        Features among what the images were made for, D, each once. Neurons, rows and sums are none.
    feature : numpy.ndarray
        Index of each image's feature, R; -1 for one that was made for something else.
    size : int or (int, int)
        Height and width in pixels.
    read : callable
        Returns the images from `first` to `last` (exclusive), B x C x H x W.
    """

    labels: list[str]
    seeds: np.ndarray
    live: np.ndarray
    activation: np.ndarray
    features: list[Unit]
    feature: np.ndarray
    size: Size
    read: Callable[[int, int], Tensor]

    @property
    def layers(self) -> list[str]:
        """Layers of the features, each once."""
        return list(dict.fromkeys(u.layer for u in self.features))

    def features_of(self, layer: str) -> np.ndarray:
        """Find the features of a layer.

        Parameters
        ----------
        layer : str
            Name of the layer.

        Returns
        -------
        numpy.ndarray
            Their indices, in rising order.
        """
        return np.flatnonzero([u.layer == layer for u in self.features])


@dataclass(eq=False)
class OwnEvidence:
    """Pixels of some images, and the responses of the run's own network.

    Parameters
    ----------
    pixels : PixelMeasures
        Of the N images.
    responses : numpy.ndarray
        Mean over each feature's grid, N x D.
    coverage : numpy.ndarray
        Share of each feature's grid that fires, N x D.
    """

    pixels: PixelMeasures
    responses: np.ndarray
    coverage: np.ndarray
