"""What images hold, by their spectrum: high-frequency share, mean spatial frequency, a regular grid. No torch.

An image is 3 x H x W (or any number of channels x H x W), in any unit of brightness. Its spectrum is taken of each
channel less its mean, under a Hann window along both axes (without one, an image whose opposite borders differ has
power at all frequencies along the axes that nobody sees in it), and the power is summed over the channels.
Frequencies are in cycles a pixel, whatever the image's size: a filter is so many pixels wide, so that images of
different sizes compare. Half a cycle a pixel is the Nyquist frequency. An image whose window holds no variation, or
that is not finite, has no spectrum: NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

HIGH = 0.25
"""The frequency above which power counts as high: a quarter of the sampling rate, half the Nyquist frequency."""
FLAT = 1e-12
"""Least variance, as a share of the mean square, that an image needs to have a spectrum: less is rounding of
float32."""
PERIODS = (2, 3, 4, 5, 6, 7, 8)
PROMINENT = 30.0
"""What a peak has to have of its neighbourhood's power to be a grid's: about 15 dB."""
VISIBLE = 0.01
"""And of the image's variance."""
FAINT = 2 / 255
"""And its root mean square, for images whose brightness runs from 0 to 1: two steps of eight bits."""
LEAST_SIDE = 32
RING, LOBE, AROUND = 64, 3.0, 8.0
TINY = float(np.finfo(np.float64).tiny)


def hann(n: int) -> np.ndarray:
    """Return the periodic Hann window of n points, 0 at the first, 1 in the middle; of 1 point: 1."""
    return np.ones(1) if n == 1 else 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n)


def radial_frequencies(height: int, width: int) -> np.ndarray:
    """Return the radial frequency of every bin of `power`, height x width, in cycles a pixel, 0 to 0.71."""
    return np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])


def _windowed(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return images less their windowed mean, times the window, N x C x H x W, and the window H x W."""
    given = np.asarray(images, dtype=np.float64)
    window = hann(given.shape[2])[:, None] * hann(given.shape[3])[None]
    mean = (given * window).sum((2, 3), keepdims=True) / max(window.sum(), TINY)
    flat = np.square(given).mean((1, 2, 3))
    held = (given - mean) * window
    varies = np.square(held).mean((1, 2, 3)) > FLAT * flat
    held[~varies] = np.nan
    return held, window


def power_spectra(images: np.ndarray) -> np.ndarray:
    """Return the power spectra of images, N x C x H x W: N x H x W, zero frequency first, channels summed.

    Of each channel less its (windowed) mean, so that the power at frequency zero is 0. NaN for an image without
    variation.
    """
    held, _ = _windowed(images)
    found: np.ndarray = np.square(np.abs(np.fft.fft2(held))).sum(1)
    return found


def high_frequency_share(images: np.ndarray, above: float = HIGH) -> np.ndarray:
    """Return the share of each image's power at radial frequencies above `above` cycles a pixel.

    N values in [0, 1] for images N x C x H x W; 0 for what is smooth, 1 - pi / 16 = 0.80 for white noise at the
    default of a quarter of the sampling rate. NaN for an image without variation.
    """
    spectrum = power_spectra(images)
    high = radial_frequencies(*spectrum.shape[1:]) > above
    found: np.ndarray = spectrum[:, high].sum(1) / spectrum.sum((1, 2))
    return found


def mean_frequency(images: np.ndarray) -> np.ndarray:
    """Return the centroid of each image's spectrum: the mean radial frequency, weighted by power, in cycles a pixel.

    N values in (0, 0.71] for images N x C x H x W; 0.38 for white noise. NaN for an image without variation.
    """
    spectrum = power_spectra(images)
    found: np.ndarray = (spectrum * radial_frequencies(*spectrum.shape[1:])).sum((1, 2)) / spectrum.sum((1, 2))
    return found


@dataclass(frozen=True)
class Grid:
    """A regular grid of an image.

    `period` in pixels and `direction` ("rows" repeat downwards, "columns" sideways, "diagonal", "antidiagonal"), None
    and "" where no frequency of a grid is a peak; `prominence` the peak's power over its neighbourhood's; `share` of
    the image's variance that it holds; `contrast` its root mean square over the channels, in the image's own unit.
    They are 0 without a peak, NaN where there is nothing to tell it by.
    """

    period: int | None
    direction: str
    prominence: float
    share: float
    contrast: float

    @property
    def found(self) -> bool:
        """Whether the image has a grid: a peak that is `PROMINENT`, `VISIBLE` and not `FAINT`."""
        return self.prominence >= PROMINENT and self.share >= VISIBLE and self.contrast >= FAINT


DIRECTIONS = {"rows": (1, 0), "columns": (0, 1), "diagonal": (1, 1), "antidiagonal": (1, -1)}


def find_grid(image: np.ndarray) -> Grid:
    """Return the regular grid of an image, C x H x W: the longest period that is `found`, else the most prominent.

    A grid is a wave that repeats every 2, 3 ... 8 whole pixels along the rows, the columns or a diagonal, with the
    same phase all over the image, as what strides and screens leave does; the waves of a texture have whatever length
    and lose their phase. Its power is taken at that very frequency, and it is a peak where no frequency a bin to the
    side holds more. Its neighbourhood is the larger of two means (from medians, so that other peaks do not count):
    that of the `RING` bins nearest in radial frequency and that of the bins around it, both without the `LOBE` bins
    next to it. `found` asks for `PROMINENT` times that (noise passes it in fewer than one image in a thousand,
    whatever its slope) and for `VISIBLE` of the variance. A coherent grating whose length happens to be a whole
    number of pixels passes too.

    Images that are not finite, and those of fewer than `LEAST_SIDE` pixels a side, which have too few frequencies: NaN.
    """
    given = np.asarray(image, dtype=np.float64)
    height, width = given.shape[1:]
    if min(height, width) < LEAST_SIDE or not np.isfinite(given).all():
        return Grid(None, "", *[float("nan")] * 3)
    held, window = _windowed(given[None])
    if not np.isfinite(held).all():
        return Grid(None, "", 0.0, 0.0, 0.0)
    spectrum, around = np.square(np.abs(np.fft.fft2(held[0]))).sum(0), _power_around(held[0])
    whole = np.square(held).sum() / np.square(window).sum()
    seen = []
    for period in PERIODS:
        for direction, (down, across) in DIRECTIONS.items():
            near = around[WAVES.index(down / period), :, WAVES.index(across / period), :]
            at = near[1, 1]
            if at < near.max() or (period == 2 and direction == "antidiagonal"):
                continue  # at half a cycle a pixel the two diagonals are one
            beside = _neighbourhood(spectrum, down / period, across / period)
            # half a cycle a pixel is its own mirror; any other wave has half of its power there
            variance = (1 if period == 2 else 2) * at / window.sum() ** 2
            contrast = float(np.sqrt(variance / len(given)))
            seen.append(Grid(period, direction, float(at / max(beside, TINY)), min(1.0, variance / whole), contrast))
    ordered = sorted(seen, key=lambda g: (g.found, g.period if g.found else 0, g.prominence))
    return ordered[-1] if seen else Grid(None, "", 0.0, 0.0, 0.0)


WAVES = tuple(sign / p for sign in (0, 1, -1) for p in (PERIODS if sign else (1,)))


def _power_around(held: np.ndarray) -> np.ndarray:
    """Return the power of one windowed image, C x H x W, at each pair of `WAVES` and a bin to each side.

    W x 3 x W x 3 for W waves: the frequencies down and across, which need not be bins' own, each less a bin, as it is,
    plus a bin.
    """

    def waves(n: int) -> np.ndarray:
        wanted = np.add.outer(WAVES, np.array([-1, 0, 1]) / n).ravel()
        return np.exp(-2j * np.pi * np.outer(wanted, np.arange(n)))

    found = waves(held.shape[1]) @ held @ waves(held.shape[2]).T
    count = len(WAVES)
    return np.square(np.abs(found)).sum(0).reshape(count, 3, count, 3)


def _neighbourhood(spectrum: np.ndarray, fy: float, fx: float) -> float:
    """Return the mean power beside a frequency: of the same radial frequency, or around it, whichever is more.

    The median of exponentially distributed power is log 2 of its mean.
    """
    height, width = spectrum.shape
    gy, gx = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]

    def apart(sign: int) -> np.ndarray:
        """Distance in bins, around the edges of the spectrum too."""
        dy, dx = (gy - sign * fy + 0.5) % 1 - 0.5, (gx - sign * fx + 0.5) % 1 - 0.5
        return np.hypot(dy * height, dx * width)

    distance = np.minimum(apart(1), apart(-1))
    away = np.abs(np.hypot(gy, gx) - np.hypot((fy + 0.5) % 1 - 0.5, (fx + 0.5) % 1 - 0.5))
    away[distance <= LOBE] = np.inf
    ring = spectrum[away <= np.partition(away, RING, axis=None)[RING]]
    local = spectrum[(distance > LOBE) & (distance <= AROUND)]
    return float(max(np.median(ring), np.median(local)) / np.log(2))
