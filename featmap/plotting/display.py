"""The display stretch: raise the contrast of an image for the eye; stored pixels are never changed.

How much contrast maximising images have depends on the recipe: those of `pixels` have a third of that of photographs,
those of `fast` and `standard` about nine tenths. Sheets and pages show them stretched, and say so with `NOTE`.
"""

from __future__ import annotations

import numpy as np

from featmap.image_shape import to_rgb

LOW, HIGH = 1.0, 99.0
"""Percentiles of an image that the stretch brings to 0 and 1."""
MAX_GAIN = 4.0
"""Largest factor of the contrast, so that faint traces in a flat image are not shown as a pattern."""
NOTE = f"display: 1st to 99th percentile of each image, contrast raised by a factor of at most {MAX_GAIN:g}"
"""Note below the title of a figure, and on a page, on how images are shown."""


def stretch_factors(image: np.ndarray) -> tuple[float, float]:
    """Compute gain and offset of the display stretch of an image.

    The range from the 1st to the 99th percentile, over all pixels and shown channels together, becomes [0, 1]. Where
    that would take a gain above `MAX_GAIN`, the gain is `MAX_GAIN`, and the range is moved no further than it takes to
    lie in [0, 1]. One gain and one offset for all channels keep the hue of every pixel that is not clipped.

    Parameters
    ----------
    image : numpy.ndarray
        C x H x W; values are clipped to [0, 1] first, those that are not finite do not count. Other than three channels
        are shown as `featmap.image_shape.to_rgb` shows them.

    Returns
    -------
    gain : float
        In [1, `MAX_GAIN`]: contrast is only ever raised. 1 for an image that covers [0, 1] already.
    offset : float
        At most 0; the image is shown as ``gain * value + offset``. A constant image is shown as it is.
    """
    shown = to_rgb(np.asarray(image, dtype=np.float32).clip(0, 1))
    finite = shown[np.isfinite(shown)]
    # values that occur, not interpolated ones: an image that was stretched to the full range then stays as it is
    low = float(np.percentile(finite, LOW, method="lower")) if finite.size else 0.0
    high = float(np.percentile(finite, HIGH, method="higher")) if finite.size else 0.0
    if high == low:
        return 1.0, 0.0
    gain = min(MAX_GAIN, 1 / (high - low))
    middle, reach = (low + high) / 2, gain * (high - low) / 2
    # [reach, 1 - reach] is the single point 0.5 where the gain is not limited, up to rounding
    shown_middle = min(max(middle, reach), max(0.5, 1 - reach))
    return gain, min(0.0, shown_middle - gain * middle)


def stretch(image: np.ndarray) -> np.ndarray:
    """Apply the display stretch to an image.

    Parameters
    ----------
    image : numpy.ndarray
        C x H x W, clipped to [0, 1]; it is not changed.

    Returns
    -------
    numpy.ndarray
        3 x H x W in [0, 1], float32, see `stretch_factors`; NaN stays NaN. Larger values stay larger. An image of full
        range is returned as it is, and so is one that was stretched to the full range before.
    """
    gain, offset = stretch_factors(image)
    shown = to_rgb(np.asarray(image, dtype=np.float32).clip(0, 1))
    return (np.float32(gain) * shown + np.float32(offset)).clip(0, 1)
