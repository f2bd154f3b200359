"""Convert the single settings that studies list, and name run folders by, to the values that the library takes."""

from __future__ import annotations

from typing import Any

from featmap.mapping.view import View
from featmap.network.model import Network
from featmap.optimize.recipe import Recipe
from featmap.runs.engine import Execution
from featmap.runs.maximise import Extras
from featmap.stats.measures import FORMULA, LINEAR

EARLIER_S = (
    "The numbers that S enters were computed from S of versions up to 0.2, without square roots of responses "
    "(`linear_profile`)."
)
"""Note on a page whose results were stored before S took roots."""

CHANGES = (
    "metric",
    "C",
    "rows",
    "jitter",
    "parameterisation",
    "optimiser",
    "clamp",
    "rescue",
    "gradients",
    "precision",
)
VIEW = {
    "features": "shown",
    "stimuli": "stimuli",
    "measure": "measure",
    "neighbours": "neighbours",
    "probe_layers": "probe_layers",
}
EXTRAS = ("frames", "responses", "facets")
EXECUTION = ("device", "engine", "out", "watcher")


def library_keywords(default: str = "pixels", **settings: Any) -> dict[str, Any]:
    """Group single settings into the keywords of `featmap.similarity`, `featmap.maximise` and their like.

    Parameters
    ----------
    default : str, default "pixels"
        Recipe that changes apply to where no recipe is named.
    **settings : Any
        `recipe`, `size`, `steps` and other fields of a recipe; `features`, `stimuli`, `measure`, `neighbours` and
        `probe_layers` of a map; `frames`, `responses`, `facets`; `device`, `engine`, `out`, `watcher`; `seed`, `seeds`.
        All others are passed on as they are.

    Returns
    -------
    dict
        `recipe`, `view`, `extras`, `execution` and `seeds`, each only if one of its settings is given, and the others.
    """
    keywords = dict(settings)
    changes = {name: keywords.pop(name) for name in ("size", "steps", *CHANGES) if name in keywords}
    recipe = keywords.pop("recipe", None)
    if changes or recipe is not None:
        keywords["recipe"] = changed_recipe(default if recipe is None else recipe, **changes)
    view = {field: keywords.pop(name) for name, field in VIEW.items() if name in keywords}
    if view:
        keywords["view"] = View(**view)
    extras = {name: keywords.pop(name) for name in EXTRAS if name in keywords}
    if extras:
        keywords["extras"] = Extras(**extras)
    execution = {name: keywords.pop(name) for name in EXECUTION if name in keywords}
    if execution:
        keywords["execution"] = Execution(**execution)
    seed, seeds = keywords.pop("seed", None), keywords.pop("seeds", None)
    if seed is not None:
        keywords["seeds"] = range(seed, seed + (seeds or 1))
    elif seeds is not None:
        keywords["seeds"] = seeds
    return keywords


def changed_recipe(recipe: str | Recipe, size: int | None = None, steps: int | None = None, **changes: Any) -> Recipe:
    """Change settings of a recipe.

    Parameters
    ----------
    recipe : str or Recipe
        A recipe or its name.
    size, steps : int, optional
        Size of the finished image in pixels; steps of all octaves together.
    **changes : Any
        Other fields of the recipe.

    Returns
    -------
    Recipe
        Resolved if a size is given.
    """
    if isinstance(recipe, str):
        return Recipe.named(recipe, size, steps, **changes)
    return recipe.resolved(size or recipe.size, size, steps, **changes)


def resolved_recipe(
    network: Network, recipe: str | Recipe = "pixels", size: int | None = None, steps: int | None = None, **changes: Any
) -> Recipe:
    """Resolve a recipe for a network.

    Parameters
    ----------
    network : Network
        Its input size is taken where no size is given.
    recipe : str or Recipe, default "pixels"
        A recipe or its name.
    size, steps : int, optional
        Size of the finished image in pixels; steps of all octaves together.
    **changes : Any
        Other fields of the recipe.

    Returns
    -------
    Recipe
        With every size in pixels.
    """
    base = recipe if isinstance(recipe, Recipe) else Recipe.named(recipe)
    return base.resolved(network.input_size, size, steps, **changes)


def formula_note(record: dict[str, Any]) -> str:
    """Say by which formula of S results were computed, if it is an earlier one.

    Parameters
    ----------
    record : dict
        Stored settings of the results; results of earlier versions have no entry `formula`.

    Returns
    -------
    str
        A sentence with a space before it, or "".
    """
    return "" if record.get("formula", LINEAR) == FORMULA else f" {EARLIER_S}"
