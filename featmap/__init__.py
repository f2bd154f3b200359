"""featmap: feature similarity and interaction mapping in convolutional networks.

The public names are loaded when they are first used, so that ``import featmap`` and ``featmap --help``
do not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "FeatmapError": "errors",
    "Engine": "engine",
    "Unit": "units",
    "parse_unit": "units",
    "Network": "models",
    "load": "models",
    "Objective": "objectives",
    "channel": "objectives",
    "objective": "objectives",
    "Recipe": "recipes",
    "RECIPES": "recipes",
    "recipe": "recipes",
    "maximise": "api",
    "probe": "api",
    "atlas": "atlases",
    "similarity": "mapping",
    "SimilarityMap": "maps",
    "LayerMaps": "maps",
    "open_arrays": "maps",
    "interact": "pairings",
    "interact_layers": "pairings",
    "Interaction": "pairings",
    "screen": "screening",
    "Screening": "screening",
    "MEASURES": "measures",
    "validate": "validation",
    "Validation": "trials",
    "plant": "planted",
    "Planted": "planted",
}

__all__ = [*sorted(_HOMES), "__version__"]

if TYPE_CHECKING:
    from featmap.api import maximise, probe
    from featmap.atlases import atlas
    from featmap.engine import Engine
    from featmap.errors import FeatmapError
    from featmap.mapping import similarity
    from featmap.maps import LayerMaps, SimilarityMap, open_arrays
    from featmap.measures import MEASURES
    from featmap.models import Network, load
    from featmap.objectives import Objective, channel, objective
    from featmap.pairings import Interaction, interact, interact_layers
    from featmap.planted import Planted, plant
    from featmap.recipes import RECIPES, Recipe, recipe
    from featmap.screening import Screening, screen
    from featmap.trials import Validation
    from featmap.units import Unit, parse_unit
    from featmap.validation import validate


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"featmap.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
