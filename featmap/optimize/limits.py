"""Whether a layer can be seen in every octave of a recipe, and how large an image has to be for that."""

from __future__ import annotations

import math
from collections.abc import Iterable

from featmap.errors import RecipeError
from featmap.network.model import Network
from featmap.optimize.recipe import RECIPES, Recipe


def check(network: Network, recipe: Recipe, layers: Iterable[str]) -> None:
    """Refuse a recipe that makes steps at a size which is too small for a layer, though its finished image is not.

    Raises
    ------
    RecipeError
        with the size of the image that would do.
    UnitError
        for a layer that is not there at the size of the finished image.
    """
    final, smallest = recipe.size, min(recipe.sizes)
    for layer in layers:
        network.layer(layer, final)
        if layer not in network.trace(smallest).layers:
            size = enough(recipe, network.least(layer, smallest, final))
            raise RecipeError(
                f"recipe {recipe.name} at {final} pixels makes steps at {smallest}, which is too small for layer "
                f"{layer!r} of {network.name}; give --size {size} or more"
            )


def enough(recipe: Recipe, least: int) -> int:
    """Return a size of the finished image at which every octave has at least `least` pixels.

    The smallest such size for a recipe that has a name; for another, whose fractions are not known once it is resolved,
    one that suffices.
    """
    final, smallest = recipe.size, min(recipe.sizes)
    named = RECIPES.get(recipe.name)
    if named is None or named.resolved(final, size=final).sizes != recipe.sizes:
        return math.ceil((least + 0.5) * final / (smallest - 0.5))
    size = final
    while min(named.resolved(final, size=size).sizes) < least:
        size += 1
    return size
