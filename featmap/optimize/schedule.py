"""Parts of a recipe: its name, octaves with their schedules of step size and blur, and random transforms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from featmap.errors import RecipeError

MAX_STEPS = 1_000_000
RENAMED_RECIPES = {"fast": "pixels", "standard": "pixels-long", "interact": "interact-unrescued"}
"""Recipes up to version 0.2 whose settings have another name now."""


def require_integer(name: str, value: Any) -> int:
    """Check that a setting is an integer.

    Parameters
    ----------
    name : str
        Name of the setting, for the message.
    value : Any
        Value to check; a bool is not an integer.

    Returns
    -------
    int
        The value itself.

    Raises
    ------
    RecipeError
        If `value` is not an integer.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise RecipeError(f"{name} {value!r}: give a whole number")
    return value


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
        Step size at step 0, and the one that step n would have.
    sigma : tuple of float, default (0.0, 0.0)
        Standard deviation of the blur in pixels, likewise; 0 means no blur.
    size : int, (int, int), float or None, default None
        Side of the image, or height and width: whole numbers are in pixels, a float is a fraction of both sides of the
        finished image, None is its size itself.
    """

    steps: int
    rate: tuple[float, float]
    sigma: tuple[float, float] = (0.0, 0.0)
    size: int | tuple[int, int] | float | None = None


def interpolate_schedule(ends: tuple[float, float], i: int, steps: int) -> float:
    """Interpolate a schedule linearly at step i.

    Parameters
    ----------
    ends : tuple of float
        First and last value; the last one would be reached at i = steps.
    i : int
        Step, from 0 to steps - 1.
    steps : int
        Number of steps.

    Returns
    -------
    float
        ``ends[0] * (steps - i) / steps + ends[1] * i / steps``
    """
    return ends[0] * (steps - i) / steps + ends[1] * i / steps


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

    def __str__(self) -> str:
        low, high = self.scale
        flip = ", flip" if self.flip else ""
        return f"rotation {self.rotation:g} degrees, scale {low:g} to {high:g}, shift {self.shift:g}{flip}"


def check_transform(transform: Transform) -> None:
    """Check that the ranges of a transform can be drawn from.

    Parameters
    ----------
    transform : Transform
        The ranges.

    Raises
    ------
    RecipeError
        If one is empty or too wide.
    """
    low, high = transform.scale
    if not (0 <= transform.rotation <= 180 and 0.1 <= low <= high <= 10 and 0 <= transform.shift <= 0.5):
        raise RecipeError(
            f"{transform}: give a rotation from 0 to 180 degrees, a scale from 0.1 to 10, and a shift from 0 to 0.5"
        )


def share_steps(octaves: Sequence[Octave], steps: int) -> list[Octave]:
    """Share out a number of steps over octaves, in the proportions of their own steps.

    Parameters
    ----------
    octaves : sequence of Octave
        The octaves.
    steps : int
        Steps of all together, 1 to `MAX_STEPS`.

    Returns
    -------
    list of Octave
        The octaves with their new numbers of steps, without those that are left with none; the last one always keeps
        one.

    Raises
    ------
    RecipeError
        If there are too few or too many steps.
    """
    if not 1 <= steps <= MAX_STEPS:
        raise RecipeError(f"steps {steps}: give 1 to {MAX_STEPS:,} steps; every octave takes at least 1 step")
    # Rounding the cumulative sum, not each share, makes the shares add up to `steps` exactly.
    total, own_steps, assigned, shared = sum(o.steps for o in octaves), 0, 0, list[Octave]()
    for octave in octaves:
        own_steps += octave.steps
        cumulative = round(steps * own_steps / total)
        shared.append(replace(octave, steps=cumulative - assigned))
        assigned = cumulative
    if shared[-1].steps == 0:  # the last octave makes the requested size, so it takes a step from the longest one
        longest = max(range(len(shared)), key=lambda k: shared[k].steps)
        shared[longest] = replace(shared[longest], steps=shared[longest].steps - 1)
        shared[-1] = replace(shared[-1], steps=1)
    return [o for o in shared if o.steps > 0]


def renamed_recipe(settings: Mapping[str, Any]) -> str | None:
    """Find the name that the recipe of an older run has now.

    Parameters
    ----------
    settings : mapping
        Settings of the recipe in the run's identity: `name`, `parameterisation` and `rescue` are read.

    Returns
    -------
    str or None
        The new name; None where the recipe is still called what the run says.
    """
    name, is_pixels = str(settings.get("name")), settings.get("parameterisation") == "pixels"
    return RENAMED_RECIPES.get(name) if is_pixels and (name != "interact" or settings.get("rescue") == 0) else None
