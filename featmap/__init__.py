"""featmap: feature similarity and interaction mapping in convolutional networks.

Public names are imported on first use, so that ``import featmap`` and ``featmap --help`` do not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

_HOMES = {
    "FeatmapError": "errors",
    "Unit": "network.unit",
    "Network": "network.model",
    "load": "network.loading",
    "Objective": "optimize.objective",
    "channel": "optimize.objective",
    "Recipe": "optimize.recipe",
    "Engine": "runs.engine",
    "Execution": "runs.engine",
    "maximise": "runs.maximise",
    "probe": "runs.probe",
    "open_arrays": "runs.store",
    "View": "mapping.view",
    "similarity": "mapping.run",
    "interact": "interaction.run",
    "screen": "interaction.screening",
    "atlas": "report.atlas",
    "validate": "validation.run",
    "judge": "validation.judgement",
}

__all__ = [*sorted(_HOMES), "__version__"]

if TYPE_CHECKING:
    from featmap.errors import FeatmapError
    from featmap.interaction.run import interact
    from featmap.interaction.screening import screen
    from featmap.mapping.run import similarity
    from featmap.mapping.view import View
    from featmap.network.loading import load
    from featmap.network.model import Network
    from featmap.network.unit import Unit
    from featmap.optimize.objective import Objective, channel
    from featmap.optimize.recipe import Recipe
    from featmap.report.atlas import atlas
    from featmap.runs.engine import Engine, Execution
    from featmap.runs.maximise import maximise
    from featmap.runs.probe import probe
    from featmap.runs.store import open_arrays
    from featmap.validation.judgement import judge
    from featmap.validation.run import validate


def __getattr__(name: str) -> Any:
    """Import a public name on its first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"featmap.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, also those that are not imported yet."""
    return list(__all__)
