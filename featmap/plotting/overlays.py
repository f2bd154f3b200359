"""Show where in a photograph a feature fires: that region as it is within its outline, the rest pale and faded.

A position fires where its activation is above half of the largest one of the map. Maps have the size of the layer's
grid; they are interpolated linearly between the pixels at the centres of the positions' receptive fields.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from featmap.image_shape import to_8_bit

SHARE = 0.5
"""Share of the largest activation from which on a position fires."""
PALE, FADED, VEIL = 0.35, 0.55, 165
"""Saturation that pixels outside the region keep, how far they are moved towards a gray, and this gray, of 255: white
and black regions both differ from what is faded."""
OUTLINE, HALO = (230, 0, 90), (255, 255, 255)
"""Colours of the outline and of the thin line outside it, which keeps it visible on any photograph."""
NOTE = "outlined: activation above half of its maximum on the photograph"
"""Note of a sheet on what the overlay shows."""


@dataclass(frozen=True, eq=False)
class Example:
    """A photograph, and where a feature fires in it.

    Parameters
    ----------
    image : numpy.ndarray
        C x H x W, values in [0, 1].
    grid : numpy.ndarray
        Activation map, h x w.
    y : numpy.ndarray
        Row of pixels at the centre of each row of the map, h floats; they rise.
    x : numpy.ndarray
        Column of pixels at the centre of each column of the map, w floats.
    """

    image: np.ndarray
    grid: np.ndarray
    y: np.ndarray
    x: np.ndarray

    def interpolate(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Interpolate the map linearly; beyond the outermost centres it is constant.

        Parameters
        ----------
        rows : numpy.ndarray
            R rows of pixels, which may be fractions.
        columns : numpy.ndarray
            K columns of pixels.

        Returns
        -------
        numpy.ndarray
            R x K in float64.
        """
        upper, lower, down = _neighbours(rows, self.y)
        left, right, across = _neighbours(columns, self.x)
        lines = (1 - down[:, None]) * self.grid[upper] + down[:, None] * self.grid[lower]
        return (1 - across) * lines[:, left] + across * lines[:, right]

    def draw(self, box: tuple[int, int, int, int], side: int) -> np.ndarray:
        """Draw a part of the photograph with the region that fires.

        Parameters
        ----------
        box : (int, int, int, int)
            First row, end of the rows, first column and end of the columns in pixels; at least one pixel.
        side : int
            Longer side of the result in pixels; the part is reduced or magnified to it.

        Returns
        -------
        numpy.ndarray
            h x w x 3, uint8. A map that is not positive or not finite anywhere has no region: all is shown faded.
        """
        top, bottom, left, right = box
        scale = side / max(bottom - top, right - left)
        height, width = (max(1, round(scale * n)) for n in (bottom - top, right - left))
        part = Image.fromarray(to_8_bit(self.image[:, top:bottom, left:right]))
        kind = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
        pixels = np.asarray(part.resize((width, height), kind))
        rows = top - 0.5 + (np.arange(height) + 0.5) * (bottom - top) / height
        columns = left - 0.5 + (np.arange(width) + 0.5) * (right - left) / width
        level = firing_level(self.grid)
        # a map that is not finite cannot be interpolated
        fires = self.interpolate(rows, columns) > level if level < np.inf else np.zeros((height, width), dtype=bool)
        return _draw_region(pixels, fires, max(1, round(side / 100)))


def firing_level(grid: np.ndarray) -> float:
    """Compute the activation above which a position of a map fires.

    Parameters
    ----------
    grid : numpy.ndarray
        Activation map.

    Returns
    -------
    float
        `SHARE` of the largest activation; infinity where none is above 0, or one is not finite.
    """
    largest = float(np.max(grid))
    return SHARE * largest if 0 < largest < np.inf else np.inf


def _neighbours(places: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the centres before and after each place, and how far it is from the first to the second."""
    steps = np.interp(places, centres, np.arange(len(centres)))
    first = np.floor(steps).astype(np.int64)
    return first, np.minimum(first + 1, len(centres) - 1), steps - first


def _draw_region(pixels: np.ndarray, fires: np.ndarray, width: int) -> np.ndarray:
    """Fade what does not fire, and outline what does."""
    gray = 0.299 * pixels[:, :, 0] + 0.587 * pixels[:, :, 1] + 0.114 * pixels[:, :, 2]
    fires = fires & ~_shrink(~_shrink(fires, width), width)  # specks have no room inside their outline
    pale = PALE * pixels + (1 - PALE) * gray[:, :, None]
    shown = np.where(fires[:, :, None], pixels, (1 - FADED) * pale + FADED * VEIL)
    inner = fires & ~_shrink(fires, width)
    outer = ~fires & ~_shrink(~fires, width)
    shown[outer], shown[inner] = HALO, OUTLINE
    return np.rint(shown).astype(np.uint8)


def _shrink(region: np.ndarray, width: int) -> np.ndarray:
    """Remove the pixels of a region that are nearer than a width to one outside; the picture's edge is none."""
    height, across = region.shape
    padded = np.pad(region, width, mode="edge")
    rows = np.logical_and.reduce([padded[k : k + height] for k in range(2 * width + 1)])
    return np.logical_and.reduce([rows[:, k : k + across] for k in range(2 * width + 1)])
