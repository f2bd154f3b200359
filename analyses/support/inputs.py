"""What descents of a study start from, how large their images are, and what responses are standardised with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analyses.support.settings import resolved_recipe
from analyses.support.study import Context
from featmap import FeatmapError, Network, image_ops, probe
from featmap.image_shape import format_size
from featmap.optimize.parameterization import initial_image
from featmap.optimize.recipe import Recipe
from featmap.runs.engine import Execution
from featmap.stats import interaction

REFERENCE_IMAGES = 64
"""Number of 1/f images that responses are standardised with."""
SIZES = (80, 96, 112, 128, 160, 192, 224)
"""Sizes in pixels that are tried for many steps, after the smallest."""


def initial_noise(context: Context, settings: Mapping[str, Any], seed: int) -> np.ndarray:
    """Compute the noise of a seed from which a descent starts.

    Parameters
    ----------
    context : Context
        The study.
    settings : mapping of str to Any
        Settings of the descent; recipe, size and steps matter.
    seed : int
        Seed.

    Returns
    -------
    numpy.ndarray
        `3 x H x H`.
    """
    chosen = {k: settings[k] for k in ("recipe", "size", "steps") if k in settings}
    recipe = resolved_recipe(context.network, **chosen)
    noise: np.ndarray = initial_image(recipe, seed).numpy()
    return noise


def smallest_size(network: Network, layers: Sequence[str], recipe: Recipe | str, smallest: int = 64) -> int:
    """Choose a small image size for many steps.

    Parameters
    ----------
    network : Network
        The network.
    layers : sequence of str
        Layers that must fit.
    recipe : Recipe or str
        Recipe of the descents, whose octaves may be smaller than the finished image.
    smallest : int, default 64
        Smallest size, in pixels.

    Returns
    -------
    int
        The first of a few sizes from `smallest` at which all the layers fit into every octave; at most the network's
        input size, which is the last resort.

    Raises
    ------
    FeatmapError
        If they do not fit there either.
    """
    base = Recipe.named(recipe)
    for size in (*(s for s in (smallest, *SIZES) if smallest <= s < network.input_size), network.input_size):
        octave = min(base.resolved(network.input_size, size).sizes)
        lacking = [layer for layer in layers if layer not in network.trace(octave).layers]
        if not lacking:
            return size
    raise FeatmapError(
        f"input size {format_size(network.input_size)}: layer {lacking[0]!r} does not fit into the smallest octave of "
        f"recipe {base.name}, {octave} pixels; give a larger input size, or other layers"
    )


def reference_statistics(context: Context, layers: Sequence[str], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute features' mean and standard deviation over 64 1/f images.

    Parameters
    ----------
    context : Context
        The study.
    layers : sequence of str
        Layers whose features are measured.
    size : int
        Size of the images, in pixels.

    Returns
    -------
    mean, deviation : numpy.ndarray
        One value for each feature of all layers; the deviation of a feature that does not vary is NaN, see
        `featmap.stats.interaction.response_deviations`.
    """
    images = image_ops.pink_noise(REFERENCE_IMAGES, size)
    responses = [probe(images, layer, context.network, execution=Execution(context.device)).values for layer in layers]
    return np.concatenate([r.mean(0) for r in responses]), np.concatenate(
        [interaction.response_deviations(r) for r in responses]
    )
