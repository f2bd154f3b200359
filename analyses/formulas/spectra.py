"""Spectra of images: share of high frequencies, mean spatial frequency and regular grids, without torch.

An image is `C x H x W`, in any unit of brightness. The spectrum is that of each channel minus its mean under a Hann
window along both axes (without a window, an image whose opposite borders differ has invisible power at all frequencies
along the axes), and the power is summed over the channels. Frequencies are in cycles per pixel whatever the image's
size: filters have a size in pixels, so that images of different sizes compare. 0.5 is the Nyquist frequency. An image
without variation inside the window, or with non-finite values, has no spectrum: NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from featmap.stats.correlation import TINY_POWER
from featmap.stats.image_quality import apply_window, power_spectra, radial_frequencies

HIGH = 0.25
"""Frequency above which power counts as high, in cycles per pixel: half the Nyquist frequency."""
PERIODS = (2, 3, 4, 5, 6, 7, 8)
"""Periods of a grid, in pixels."""
PROMINENT = 30.0
"""Least power of a grid's peak, divided by that of its neighbourhood: about 15 dB."""
VISIBLE = 0.01
"""Least share of the image's variance in a visible grid."""
FAINT = 2 / 255
"""Least root mean square of a visible grid in an image in [0, 1]: two steps of 8 bits."""
LEAST_SIDE = 32
"""Least height and width of an image, in pixels."""
RING, LOBE, AROUND = 64, 3.0, 8.0
"""Bins of the ring; radius of the peak itself and of its surroundings, in bins."""


def high_frequency_share(images: np.ndarray, above: float = HIGH) -> np.ndarray:
    """Compute the share of each image's power at high radial frequencies.

    Parameters
    ----------
    images : numpy.ndarray
        Images, `N x C x H x W`.
    above : float, default HIGH
        Frequency above which power counts, in cycles per pixel.

    Returns
    -------
    numpy.ndarray
        N values in [0, 1]: 0 for a smooth image, 1 - pi / 16 = 0.80 for white noise at the default; NaN for an image
        without variation.
    """
    spectrum = power_spectra(images)
    high = radial_frequencies(*spectrum.shape[1:]) > above
    share: np.ndarray = spectrum[:, high].sum(1) / spectrum.sum((1, 2))
    return share


def mean_frequency(images: np.ndarray) -> np.ndarray:
    """Compute the centroid of each image's spectrum: the mean radial frequency.

    Parameters
    ----------
    images : numpy.ndarray
        Images, `N x C x H x W`.

    Returns
    -------
    numpy.ndarray
        N values in (0, 0.71], weighted by power, in cycles per pixel; 0.38 for white noise. NaN for an image without
        variation.
    """
    spectrum = power_spectra(images)
    mean: np.ndarray = (spectrum * radial_frequencies(*spectrum.shape[1:])).sum((1, 2)) / spectrum.sum((1, 2))
    return mean


@dataclass(frozen=True)
class Grid:
    """The regular grid of an image.

    The numbers are 0 where no frequency of a grid is a peak, NaN where the image has no usable spectrum.

    Parameters
    ----------
    period : int or None
        Period in pixels; None without a peak.
    direction : str
        "rows" repeats downwards, "columns" sideways, or "diagonal" or "antidiagonal"; "" without a peak.
    prominence : float
        Power of the peak divided by that of its neighbourhood.
    share : float
        Share of the image's variance in the peak.
    contrast : float
        Root mean square of the wave over the channels, in the unit of the image.
    """

    period: int | None
    direction: str
    prominence: float
    share: float
    contrast: float

    @property
    def is_grid(self) -> bool:
        """Whether the peak is a visible grid: at least `PROMINENT`, `VISIBLE` and `FAINT`."""
        return self.prominence >= PROMINENT and self.share >= VISIBLE and self.contrast >= FAINT


DIRECTIONS = {"rows": (1, 0), "columns": (0, 1), "diagonal": (1, 1), "antidiagonal": (1, -1)}


def find_grid(image: np.ndarray) -> Grid:
    """Find the regular grid of an image.

    A grid is a wave that repeats every 2, 3 ... 8 whole pixels along the rows, the columns or a diagonal with the same
    phase all over the image, as strides and screens produce it; the waves of a texture have any length and lose their
    phase. Its power is taken at that very frequency, and it is a peak where no frequency one bin to the side has more.
    The power of its neighbourhood is the larger of two means (from medians, so that other peaks do not count): that of
    the `RING` bins nearest in radial frequency, and that of the bins around it, both without the `LOBE` bins next to
    it. A visible grid has `PROMINENT` times that power (noise reaches it in fewer than one image in a thousand,
    whatever its slope) and `VISIBLE` of the variance. A coherent grating whose length happens to be a whole number of
    pixels counts too.

    Parameters
    ----------
    image : numpy.ndarray
        Image, `C x H x W`.

    Returns
    -------
    Grid
        The visible grid of the longest period, otherwise the most prominent peak. NaN for images that are not finite,
        and for those below `LEAST_SIDE` pixels a side, which have too few frequencies.
    """
    values = np.asarray(image, dtype=np.float64)
    height, width = values.shape[1:]
    if min(height, width) < LEAST_SIDE or not np.isfinite(values).all():
        return Grid(None, "", *[float("nan")] * 3)
    windowed, window = apply_window(values[None])
    if not np.isfinite(windowed).all():
        return Grid(None, "", 0.0, 0.0, 0.0)
    spectrum, around = np.square(np.abs(np.fft.fft2(windowed[0]))).sum(0), _power_around(windowed[0])
    total = np.square(windowed).sum() / np.square(window).sum()
    peaks = []
    for period in PERIODS:
        for direction, (down, across) in DIRECTIONS.items():
            near = around[WAVES.index(down / period), :, WAVES.index(across / period), :]
            power = near[1, 1]
            if power < near.max() or (period == 2 and direction == "antidiagonal"):
                continue  # at half a cycle per pixel the two diagonals are the same
            neighbourhood = _neighbourhood(spectrum, down / period, across / period)
            # A wave has half of its power at the mirrored frequency; half a cycle per pixel is its own mirror.
            variance = (1 if period == 2 else 2) * power / window.sum() ** 2
            contrast = float(np.sqrt(variance / len(values)))
            prominence = float(power / max(neighbourhood, TINY_POWER))
            peaks.append(Grid(period, direction, prominence, min(1.0, variance / total), contrast))
    ordered = sorted(peaks, key=lambda g: (g.is_grid, g.period if g.is_grid else 0, g.prominence))
    return ordered[-1] if peaks else Grid(None, "", 0.0, 0.0, 0.0)


WAVES = tuple(sign / p for sign in (0, 1, -1) for p in (PERIODS if sign else (1,)))
"""Frequencies of a grid along one axis, in cycles per pixel."""


def _power_around(windowed: np.ndarray) -> np.ndarray:
    """Compute the power of one windowed image, `C x H x W`, at each pair of `WAVES` and one bin to each side.

    The result is `W x 3 x W x 3` for W waves: frequencies down and across, which need not lie on bins, each minus one
    bin, itself, and plus one bin.
    """

    def waves(n: int) -> np.ndarray:
        frequencies = np.add.outer(WAVES, np.array([-1, 0, 1]) / n).ravel()
        return np.exp(-2j * np.pi * np.outer(frequencies, np.arange(n)))

    coefficients = waves(windowed.shape[1]) @ windowed @ waves(windowed.shape[2]).T
    count = len(WAVES)
    return np.square(np.abs(coefficients)).sum(0).reshape(count, 3, count, 3)


def _neighbourhood(spectrum: np.ndarray, fy: float, fx: float) -> float:
    """Compute the mean power near a frequency: at the same radial frequency or around it, whichever is more.

    The median of exponentially distributed power is log 2 of its mean.
    """
    height, width = spectrum.shape
    gy, gx = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]

    def bins_from(sign: int) -> np.ndarray:
        """Distance in bins, wrapped around the edges of the spectrum."""
        dy, dx = (gy - sign * fy + 0.5) % 1 - 0.5, (gx - sign * fx + 0.5) % 1 - 0.5
        return np.hypot(dy * height, dx * width)

    distance = np.minimum(bins_from(1), bins_from(-1))
    away = np.abs(np.hypot(gy, gx) - np.hypot((fy + 0.5) % 1 - 0.5, (fx + 0.5) % 1 - 0.5))
    away[distance <= LOBE] = np.inf
    ring = spectrum[away <= np.partition(away, RING, axis=None)[RING]]
    local = spectrum[(distance > LOBE) & (distance <= AROUND)]
    return float(max(np.median(ring), np.median(local)) / np.log(2))
