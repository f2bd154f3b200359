"""Parts of a recipe: octaves and random transforms."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Octave:
    """A part of the descent at one image size.

    Step size and blur sigma change linearly from their first to their last value: at step i of n they are
    ``first * (n - i) / n + last * i / n``, as in the article.

    Parameters
    ----------
    steps : int
        Number of steps, 1 or more.
    rate : tuple of float
        Step size at the first and at the last step.
    sigma : tuple of float, default (0.0, 0.0)
        Standard deviation of the blur in pixels at the first and at the last step; 0 means no blur.
    size : int, float or None, default None
        Side of the image: an int is in pixels, a float is a fraction of the finished image's size, None is that
        size itself.
    """

    steps: int
    rate: tuple[float, float]
    sigma: tuple[float, float] = (0.0, 0.0)
    size: int | float | None = None


@dataclass(frozen=True)
class Transform:
    """Ranges of the random transform that the image undergoes before each step.

    Parameters
    ----------
    rotation : float, default 0.0
        Largest rotation in degrees, in either direction.
    scale : tuple of float, default (1.0, 1.0)
        Smallest and largest size of the transformed image relative to the image; its logarithm is uniform. Below 1
        the image shrinks and its mirror image fills the margin.
    shift : float, default 0.0
        Largest shift as a share of the side, in either direction.
    flip : bool, default False
        Whether left and right are exchanged in half of the steps.

    References
    ----------
    C. Olah, A. Mordvintsev and L. Schubert, "Feature Visualization", Distill, 2017, doi:10.23915/distill.00007
    """

    rotation: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    shift: float = 0.0
    flip: bool = False
