"""Short forms for settings of library calls: what a test says in keywords, as the values that the library takes."""

from __future__ import annotations

from typing import Any

from featmap.mapping.view import View
from featmap.network.model import Network
from featmap.optimize.recipe import Recipe
from featmap.runs.engine import Execution

RECIPE = ("metric", "C", "rows", "jitter", "parameterisation", "optimiser", "clamp", "rescue", "gradients", "precision")
VIEW = {"features": "shown", "stimuli": "stimuli", "measure": "measure", "neighbours": "neighbours"}
EXECUTION = ("device", "engine", "out", "watcher")


def options(default: str = "fast", **given: Any) -> dict[str, Any]:
    """Keywords of `similarity`, `maximise` and the like: recipe, view, seeds and execution, of single settings."""
    result = dict(given)
    changes = {name: result.pop(name) for name in ("size", "steps", *RECIPE) if name in result}
    recipe = result.pop("recipe", None)
    if changes or recipe is not None:
        result["recipe"] = changed(recipe or default, **changes)
    view = {field: result.pop(name) for name, field in VIEW.items() if name in result}
    if view:
        result["view"] = View(**view)
    execution = {name: result.pop(name) for name in EXECUTION if name in result}
    if execution:
        result["execution"] = Execution(**execution)
    seed, seeds = result.pop("seed", None), result.pop("seeds", None)
    if seed is not None:
        result["seeds"] = range(seed, seed + (seeds or 1))
    elif seeds is not None:
        result["seeds"] = seeds
    return result


def changed(recipe: str | Recipe, size: int | None = None, steps: int | None = None, **changes: Any) -> Recipe:
    """A recipe with changes, of its name or of itself."""
    if isinstance(recipe, str):
        return Recipe.named(recipe, size, steps, **changes)
    return recipe.resolved(size or recipe.size, size, steps, **changes)


def resolve(
    network: Network,
    device: object = None,
    recipe: str | Recipe | None = None,
    size: int | None = None,
    steps: int | None = None,
    **changes: Any,
) -> Recipe:
    """A resolved recipe for a network, `fast` where none is named."""
    base = recipe if isinstance(recipe, Recipe) else Recipe.named(recipe or "fast")
    return base.resolved(network.input_size, size, steps, **changes)


def resolve_linear(
    network: Network,
    recipe: str | Recipe | None = None,
    size: int | None = None,
    steps: int | None = None,
    **changes: Any,
) -> Recipe:
    """A resolved recipe for a network, `interact` where none is named."""
    return resolve(network, None, recipe or "interact", size, steps, **changes)
