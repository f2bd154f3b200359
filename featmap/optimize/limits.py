"""Limits of a run: image sizes that a layer needs, memory that a batch needs, seeds and recipes that are allowed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import psutil
import torch

from featmap.errors import RecipeError
from featmap.image_shape import Size, area, as_pair, format_size, largest, smallest, with_shorter
from featmap.network.model import Network
from featmap.optimize.recipe import MIN_ROWS, RECIPES, Recipe
from featmap.optimize.schedule import require_integer

BACKWARD_MEMORY_FACTOR = 1.5
"""Bytes held for the backward pass over those of all layers' outputs, as measured on GoogLeNet."""
MAX_SEEDS = 10_000
"""Largest number of seeds of a run: more are a typing error."""


def check_octave_sizes(network: Network, recipe: Recipe, layers: Iterable[str]) -> None:
    """Check that the layers exist at every octave's size.

    Parameters
    ----------
    network : Network
        The network.
    recipe : Recipe
        The resolved recipe.
    layers : iterable of str
        Names of the layers.

    Raises
    ------
    RecipeError
        If a layer has an output at the size of the finished image but not at that of every octave; the message gives
        a size that suffices, or says that the layer exists at one size only.
    UnitError
        If a layer does not exist at the size of the finished image.
    """
    final = recipe.size
    for layer in map(network.first_name, layers):
        network.layer(layer, final)
        for size in sorted(set(recipe.sizes), key=area):
            if layer in network.trace(size).layers:
                continue
            where = f"recipe {recipe.name} at {format_size(final)} pixels makes steps at {format_size(size)}"
            if network.only_size(layer, size) is not None:
                raise RecipeError(
                    f"{where}, and layer {layer!r} of {network.name} does not exist at every size; choose a recipe "
                    "whose steps have one size, such as fast or standard"
                )
            enough = smallest_sufficient_size(recipe, network.find_min_size(layer, size, final))
            raise RecipeError(
                f"{where}, which is too small for layer {layer!r} of {network.name}; choose a size of "
                f"{format_size(enough, 'x')} or more"
            )


def smallest_sufficient_size(recipe: Recipe, min_size: Size) -> Size:
    """Find the smallest finished size at which every octave has `min_size` pixels.

    Parameters
    ----------
    recipe : Recipe
        The resolved recipe.
    min_size : int or (int, int)
        Size in pixels that every octave needs, in the recipe's ratio of height to width.

    Returns
    -------
    int or (int, int)
        Size of the finished image in pixels: the smallest that suffices for a recipe that has a name; for another,
        whose fractions are not known once it is resolved, one that suffices.
    """
    final, needed = recipe.size, min(as_pair(min_size))
    side, least = min(as_pair(final)), min(as_pair(smallest(recipe.sizes)))
    named = RECIPES.get(recipe.name)
    if named is None or named.resolved(final, size=final).sizes != recipe.sizes:
        # An octave's size is a rounded product, so both sizes may be off by half a pixel.
        return with_shorter(final, math.ceil((needed + 0.5) * side / (least - 0.5)))
    while min(min(as_pair(s)) for s in named.resolved(final, size=with_shorter(final, side)).sizes) < needed:
        side += 1
    return with_shorter(final, side)


def estimate_memory(network: Network, recipe: Recipe, layers: Sequence[str], rows: int | None = None) -> int:
    """Estimate the memory that a batch takes at the recipe's largest size.

    Parameters
    ----------
    network : Network
        The network; its own weights are not counted.
    recipe : Recipe
        The resolved recipe.
    layers : sequence of str
        Layers of the objectives.
    rows : int or None, default None
        Number of images in the batch; None takes the recipe's.

    Returns
    -------
    int
        Bytes.
    """
    reach = max(network.layer(la, largest(recipe.sizes)).cumulative_elements for la in layers)
    width = 2 if recipe.precision == "bfloat16" else 4
    return int(width * (recipe.rows if rows is None else rows) * reach * BACKWARD_MEMORY_FACTOR)


def free_memory(device: torch.device) -> int:
    """Read how much memory of a device is free.

    Parameters
    ----------
    device : torch.device
        A GPU, or the CPU for the machine's memory.

    Returns
    -------
    int
        Bytes; on a GPU with those that torch holds in reserve.
    """
    if device.type == "cuda":
        # torch keeps what it has freed; the driver counts it as used, but a batch can have it
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + reserve
    return int(psutil.virtual_memory().available)


def check_memory(network: Network, recipe: Recipe, layers: Sequence[str], device: torch.device) -> None:
    """Check that a batch fits into a device's free memory.

    Parameters
    ----------
    network : Network
        The network.
    recipe : Recipe
        The resolved recipe.
    layers : sequence of str
        Layers of the objectives.
    device : torch.device
        Device of the descent.

    Raises
    ------
    RecipeError
        If the batch does not fit; the message gives the number of rows that would.
    """
    needed, free = estimate_memory(network, recipe, layers), free_memory(device)
    if needed <= free:
        return
    max_rows = free // max(1, estimate_memory(network, recipe, layers, 1))
    advice = f"choose {max_rows} rows or fewer" if max_rows >= MIN_ROWS else "choose a smaller size"
    raise RecipeError(
        f"{recipe.rows} rows at {format_size(largest(recipe.sizes))} pixels need about {needed / 1e9:,.1f} GB of "
        f"memory, {free / 1e9:,.1f} GB are free; {advice}"
    )


def seeds_of(seeds: int | Iterable[int], recipe: Recipe) -> tuple[int, ...]:
    """Expand a number of seeds to the seeds of a run, and check them.

    Parameters
    ----------
    seeds : int or iterable of int
        How many consecutive seeds, counted from the recipe's own; or the seeds themselves.
    recipe : Recipe
        Recipe whose `default_seed` the count starts from.

    Returns
    -------
    tuple of int
        Each seed once, in the order given.

    Raises
    ------
    RecipeError
        If there is no seed, too many, or one out of range.
    """
    if isinstance(seeds, (int, bool)):
        require_integer("seeds", seeds)
        count, first = seeds, recipe.default_seed
        values: Sequence[int] = range(first, first + max(0, min(count, MAX_SEEDS + 1)))
    else:
        values = [require_integer("seed", seed) for seed in seeds]
    if not 1 <= len(values) <= MAX_SEEDS or len(set(values)) < len(values) or not all(0 <= s < 2**31 for s in values):
        shown = f"{values[0]} to {values[-1]}" if len(values) else "none"
        raise RecipeError(
            f"{len(values):,} seeds ({shown}): give 1 to {MAX_SEEDS:,} different seeds, each from 0 to 2147483647"
        )
    return tuple(values)


def resolve_recipe(
    recipe: str | Recipe | None, network: Network, device: torch.device, default: str | None = None
) -> Recipe:
    """Resolve a recipe, or the default one, for a network.

    Parameters
    ----------
    recipe : str, Recipe or None
        A recipe or its name; None takes the default.
    network : Network
        Its input size is taken where the recipe leaves the size open.
    device : torch.device
        Device of the descents.
    default : str, optional
        Name of the default. None is "fast" on a CPU and "standard" on an accelerator.

    Returns
    -------
    Recipe
        The resolved recipe.
    """
    if recipe is None:
        recipe = default or ("fast" if device.type == "cpu" else "standard")
    chosen = recipe if isinstance(recipe, Recipe) else Recipe.named(recipe)
    return chosen.resolved(network.input_size, default_size(network, chosen))


def default_size(network: Network, recipe: Recipe) -> Size | None:
    """Find the default size where the recipe's limit does not suit the network.

    Parameters
    ----------
    network : Network
        The network.
    recipe : Recipe
        The recipe, resolved or not.

    Returns
    -------
    int, (int, int) or None
        The network's own input size if the network works at it and fails at the smaller size that the recipe limits
        it to, as one with fixed positional embeddings does. None leaves the choice to the recipe.
    """
    limited = recipe.resolved(network.input_size).size
    if isinstance(recipe.octaves[-1].size, (int, tuple)) or area(limited) >= area(network.input_size):
        return None
    return network.input_size if network.trace(limited).failure and not network.trace().failure else None
