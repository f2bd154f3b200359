"""Short forms for settings of library calls: what a test says in keywords, as the values that the library takes."""

from __future__ import annotations

from typing import Any

from analyses.support.settings import library_keywords, resolved_recipe
from featmap.network.model import Network
from featmap.optimize.recipe import Recipe

options = library_keywords


def resolve(
    network: Network, device: object = None, recipe: str | Recipe | None = None, *more: Any, **changes: Any
) -> Recipe:
    """A resolved recipe for a network, `fast` where none is named; size and steps may follow."""
    return resolved_recipe(network, "pixels" if recipe is None else recipe, *more, **changes)


def resolve_linear(network: Network, recipe: str | Recipe | None = None, *more: Any, **changes: Any) -> Recipe:
    """A resolved recipe for a network, `interact` where none is named; size and steps may follow."""
    return resolved_recipe(network, "interact" if recipe is None else recipe, *more, **changes)
