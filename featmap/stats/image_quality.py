"""Quality of maximising images: contrast, colour, spectrum, coverage of the grid, agreement with photographs.

Images are N x C x H x W of floats, usually in [0, 1]; of the measures only the contrast depends on the pixels' unit.
Photographs are measured by the same functions at the same size, for comparison: a single number says little.
"""

from __future__ import annotations

import numpy as np
from scipy.signal import windows

from featmap.stats.correlation import TINY_POWER, VARIANCE_FLOOR, floors, unit_vectors
from featmap.stats.interaction import FIRING_SHARE
from featmap.stats.measures import profile_correlations
from featmap.stats.reliability import Interval, mean_correlation

LOWEST_RING = 2
"""Lowest frequency that a spectrum's slope is fitted to, in cycles per image: the window mixes frequencies 0 and 1."""
FEWEST_RINGS = 4
"""Fewest rings of frequencies that a slope is fitted to."""


def radial_frequencies(height: int, width: int) -> np.ndarray:
    """Compute the radial frequency of every bin of `power_spectra`.

    Parameters
    ----------
    height, width : int
        Size of the image, in pixels.

    Returns
    -------
    numpy.ndarray
        `height x width`, in cycles per pixel, 0 to 0.71.
    """
    return np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])


def apply_window(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Subtract each channel's windowed mean and multiply by the Hann window.

    Without a window, the step between opposite borders of an image adds power at all frequencies along the axes.

    Parameters
    ----------
    images : numpy.ndarray
        Images, `N x C x H x W`.

    Returns
    -------
    windowed : numpy.ndarray
        The same shape, float64; NaN for an image whose variance inside the window is at most `VARIANCE_FLOOR` of its
        mean square.
    window : numpy.ndarray
        `H x W`.
    """
    values = np.asarray(images, dtype=np.float64)
    down, across = (windows.hann(n, sym=False) for n in values.shape[2:])
    window = down[:, None] * across
    mean = (values * window).sum((2, 3), keepdims=True) / max(window.sum(), TINY_POWER)
    mean_square = np.square(values).mean((1, 2, 3))
    windowed = (values - mean) * window
    varies = np.square(windowed).mean((1, 2, 3)) > VARIANCE_FLOOR * mean_square
    windowed[~varies] = np.nan
    return windowed, window


def power_spectra(images: np.ndarray) -> np.ndarray:
    """Compute the power spectra of images, summed over channels.

    The mean of each channel under the window is subtracted, so that the power at frequency zero is 0.

    Parameters
    ----------
    images : numpy.ndarray
        Images, `N x C x H x W`.

    Returns
    -------
    numpy.ndarray
        `N x H x W`, zero frequency first; NaN for an image without variation.
    """
    windowed, _ = apply_window(images)
    power: np.ndarray = np.square(np.abs(np.fft.fft2(windowed))).sum(1)
    return power


def spectrum_slopes(images: np.ndarray) -> np.ndarray:
    """Fit the slope of each image's power spectrum on logarithmic axes.

    The power (`power_spectra`, under a Hann window) is averaged over rings of one cycle per image, k = 2, 3 ... up to
    half a cycle per pixel, and the line ``log P(k) = a + slope log k`` is fitted by least squares with weights 1 / k,
    which give every octave the same weight.

    Parameters
    ----------
    images : numpy.ndarray
        Images, `N x C x H x W`; frequencies count cycles along the shorter side.

    Returns
    -------
    numpy.ndarray
        N slopes: 0 for white noise, about -2 for photographs, less (steeper) for smooth images, more for images with
        too much fine detail. Rings at or below `VARIANCE_FLOOR` of the largest one's power are left out. NaN for an
        image without variation or with values that are not finite, and below `FEWEST_RINGS` rings.

    References
    ----------
    Field (1987), doi 10.1364/JOSAA.4.002379; van der Schaaf & van Hateren (1996), doi 10.1016/0042-6989(96)00002-8.
    """
    count, _, height, width = images.shape
    side = min(height, width)
    rings = np.round(radial_frequencies(height, width) * side).astype(int)
    k = np.arange(LOWEST_RING, side // 2 + 1)
    slopes = np.full(count, np.nan)
    if len(k) < FEWEST_RINGS:
        return slopes
    sizes = np.bincount(rings.ravel())
    for n, spectrum in enumerate(power_spectra(images)):
        power = (np.bincount(rings.ravel(), weights=spectrum.ravel()) / sizes)[k]
        if not np.isfinite(power).all():
            continue
        use = power > max(VARIANCE_FLOOR * power.max(), TINY_POWER)
        if use.sum() >= FEWEST_RINGS:
            x, y, w = np.log(k[use]), np.log(power[use]), 1 / k[use]
            x, y = x - np.average(x, weights=w), y - np.average(y, weights=w)
            slopes[n] = (w * x * y).sum() / (w * x * x).sum()
    return slopes


def contrasts(images: np.ndarray) -> np.ndarray:
    """Compute the contrast of each image: the standard deviation of its pixels.

    Parameters
    ----------
    images : numpy.ndarray
        Images, `N x C x H x W`.

    Returns
    -------
    numpy.ndarray
        N population standard deviations over all pixels and channels, in the unit of the pixels: 0 for a flat image, at
        most 0.5 in [0, 1], about 0.2 for photographs. NaN for an image with values that are not finite.

    References
    ----------
    Peli (1990), doi 10.1364/JOSAA.7.002032 (root mean square contrast).
    """
    values = np.asarray(images, dtype=np.float64)
    finite = np.isfinite(values).all((1, 2, 3))
    deviations: np.ndarray = np.where(np.isfinite(values), values, 0.0).std((1, 2, 3))
    return np.where(finite, deviations, np.nan)


def colour_correlations(images: np.ndarray) -> np.ndarray:
    """Correlate the channels of each image over its pixels.

    Parameters
    ----------
    images : numpy.ndarray
        Images, `N x C x H x W`.

    Returns
    -------
    numpy.ndarray
        N x C x C Pearson correlations in [-1, 1], 1 on the diagonal: near 1 between all channels for gray images and
        most photographs, lower or negative for saturated colours. NaN for a channel whose standard deviation is not
        above `FLOOR` of its largest magnitude, or that is not finite.

    References
    ----------
    Ruderman, Cronin & Chiao (1998), doi 10.1364/JOSAA.15.002036.
    """
    pixels = np.asarray(images, dtype=np.float64).reshape(*images.shape[:2], -1)
    finite = np.isfinite(pixels).all(2, keepdims=True)
    pixels = np.where(finite, pixels, 0.0)
    largest = np.abs(pixels).max(2, keepdims=True)
    unit = unit_vectors(pixels - pixels.mean(2, keepdims=True), 2, floors(largest) * np.sqrt(pixels.shape[2]))
    unit = np.where(finite, unit, np.nan)
    correlations: np.ndarray = np.clip(unit @ unit.transpose(0, 2, 1), -1, 1)
    return correlations


def colour_distance(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Compute the distance of colour correlations.

    Parameters
    ----------
    one, two : numpy.ndarray
        Correlation matrices of the channels, ... x C x C, such as N of images and the mean of photographs'.

    Returns
    -------
    numpy.ndarray
        Root mean square difference over the pairs of different channels, in [0, 2]: 0 for the same correlations, 2 for
        channels that go together in one and are opposites in the other. NaN where a correlation is undefined, and for
        images of a single channel.
    """
    if one.shape[-1] < 2:
        return np.full(np.broadcast_shapes(one.shape, two.shape)[:-2], np.nan)
    upper = np.triu_indices(one.shape[-1], 1)
    difference = (one - two)[..., upper[0], upper[1]]
    distance: np.ndarray = np.sqrt(np.square(difference).mean(-1))
    return distance


def coverages(maps: np.ndarray, share: float = FIRING_SHARE) -> np.ndarray:
    """Compute the share of each activation map's grid that fires.

    A position fires where its activation is above `share` times the map's own maximum.

    Parameters
    ----------
    maps : numpy.ndarray
        Activation maps, ... x H x W, in the layer's own unit.
    share : float, default 0.1
        Share of the maximum, in [0, 1).

    Returns
    -------
    numpy.ndarray
        The leading shape; in [0, 1]: 1 where the feature fires everywhere, low where its image has dead zones, 0 where
        the map has no activation above 0. NaN for grids of 1 x 1, where there is nothing to cover, and for maps that
        are not finite.
    """
    values = np.asarray(maps, dtype=np.float64)
    if values.shape[-2:] == (1, 1):
        return np.full(values.shape[:-2], np.nan)
    peak = values.max((-2, -1), keepdims=True)
    covered = ((values > share * peak) & (peak > 0)).mean((-2, -1))
    return np.where(np.isfinite(values).all((-2, -1)), covered, np.nan)


def similarity_agreement(images: np.ndarray, photographs: np.ndarray, roots: bool = True) -> Interval:
    """Correlate profile similarity over maximising images with that over photographs.

    S is computed from both tables by the formula of `featmap.stats.measures.profile`, and the two are correlated
    (Pearson) over pairs of different features. S over photographs is the yardstick.

    Parameters
    ----------
    images : numpy.ndarray
        Responses of D features to their maximising images, D x D (or N x D).
    photographs : numpy.ndarray
        Their responses to P photographs, P x D.
    roots : bool, default True
        False compares the linear profiles of both (`featmap.stats.measures.linear_profile`).

    Returns
    -------
    Interval
        In [-1, 1], with its bootstrap interval over features: 1 where both kinds of stimuli give the same map. NaN
        below three pairs of features whose responses vary.
    """
    one, two = (profile_correlations(table, roots=roots) for table in (images, photographs))
    return mean_correlation([(one, two)])
