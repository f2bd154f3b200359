"""Whether a batch of descents fits into memory: told before anything is begun."""

from __future__ import annotations

from collections.abc import Sequence

import psutil
import torch

from featmap.errors import RecipeError
from featmap.network.model import Network
from featmap.optimize.recipe import LEAST_ROWS, Recipe

KEPT = 1.5
"""Bytes held for the backward pass over those of all layers' outputs, as measured on GoogLeNet."""


def needed(network: Network, recipe: Recipe, layers: Sequence[str], rows: int | None = None) -> int:
    """Return about how many bytes a batch takes at the recipe's largest size, besides the network's own."""
    reach = max(network.layer(la, max(recipe.sizes)).reach for la in layers)
    width = 2 if recipe.precision == "bfloat16" else 4
    return int(width * (recipe.rows if rows is None else rows) * reach * KEPT)


def free(device: torch.device) -> int:
    """Return the bytes of memory that are free on a device."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's own, free to use
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    return int(psutil.virtual_memory().available)


def check(network: Network, recipe: Recipe, layers: Sequence[str], device: torch.device) -> None:
    """Refuse a batch that does not fit.

    Raises
    ------
    RecipeError
        with the number of rows that would.
    """
    wanted, there = needed(network, recipe, layers), free(device)
    if wanted <= there:
        return
    most = there // max(1, needed(network, recipe, layers, 1))
    instead = f"give --rows {most} or fewer" if most >= LEAST_ROWS else "give a smaller --size"
    raise RecipeError(
        f"{recipe.rows} rows at {max(recipe.sizes)} pixels need about {wanted / 1e9:,.1f} GB of memory, "
        f"{there / 1e9:,.1f} GB are free; {instead}"
    )
