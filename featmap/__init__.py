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
    "Engine": "runs.engine",
    "Unit": "network.unit",
    "parse_unit": "network.unit",
    "Network": "network.model",
    "load": "network.model",
    "Objective": "optimize.objective",
    "channel": "optimize.objective",
    "objective": "optimize.objective",
    "Recipe": "optimize.recipe",
    "RECIPES": "optimize.recipe",
    "recipe": "optimize.recipe",
    "maximise": "runs.maximise",
    "probe": "runs.maximise",
    "atlas": "report.atlas",
    "similarity": "mapping.run",
    "SimilarityMap": "mapping.result",
    "LayerMaps": "mapping.result",
    "open_arrays": "mapping.result",
    "interact": "interaction.run",
    "interact_layers": "interaction.run",
    "Interaction": "interaction.run",
    "screen": "interaction.screening",
    "Screening": "interaction.screening",
    "MEASURES": "stats.measures",
    "validate": "validation.run",
    "Validation": "validation.figures",
    "plant": "validation.planted",
    "Planted": "validation.planted",
}

__all__ = [*sorted(_HOMES), "__version__"]

if TYPE_CHECKING:
    from featmap.errors import FeatmapError
    from featmap.interaction.run import Interaction, interact, interact_layers
    from featmap.interaction.screening import Screening, screen
    from featmap.mapping.result import LayerMaps, SimilarityMap, open_arrays
    from featmap.mapping.run import similarity
    from featmap.network.model import Network, load
    from featmap.network.unit import Unit, parse_unit
    from featmap.optimize.objective import Objective, channel, objective
    from featmap.optimize.recipe import RECIPES, Recipe, recipe
    from featmap.report.atlas import atlas
    from featmap.runs.engine import Engine
    from featmap.runs.maximise import maximise, probe
    from featmap.stats.measures import MEASURES
    from featmap.validation.figures import Validation
    from featmap.validation.planted import Planted, plant
    from featmap.validation.run import validate


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"featmap.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
