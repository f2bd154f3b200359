"""The command line and the Python lines that make a stored image again, from a run's manifest."""

from __future__ import annotations

import shlex
from pathlib import PurePath
from typing import Any

from featmap.errors import FeatmapError
from featmap.optimize import recipe as recipes
from featmap.optimize.recipe import Recipe

ON_THE_LINE = ("metric", "C", "rows")
FACTORY = "package.module:factory"


class Reproduction:
    """How the images of one run are made again.

    Parameters
    ----------
    manifest : of the run folder, as `featmap.runs.store.Run.manifest` has it

    `notes` say what the reader has to put in: a network of their own, a start photograph.
    """

    def __init__(self, manifest: dict[str, Any]) -> None:
        identity, given = manifest["identity"], manifest.get("model_arguments") or {}
        self.recipe = Recipe.from_identity(identity["recipe"])
        self.changes = _changes(self.recipe)
        self.seed, self.device = int(identity["seeds"][0]), str(identity.get("device", "cpu"))
        self.notes: list[str] = []
        self.network: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
        if not self.network.get("model"):
            self.network["model"] = FACTORY
            self.notes.append(f"the network was the caller's own: put its factory in place of {FACTORY}")
        weights = self.network.get("weights")
        if isinstance(weights, str) and PurePath(weights).name != weights:
            self.network["weights"] = PurePath(weights).name  # where it lay is nobody else's concern
            self.notes.append(f"{PurePath(weights).name} is a file of the caller's own")
        if identity.get("start"):
            self.notes.append("the run starts from a photograph: add --start FILE (start=FILE in Python)")

    def command(self, unit: str) -> str | None:
        """Return the command that makes the image of a unit; None where no option gives the run's recipe."""
        if self.changes is None:
            return None
        return shlex.join(["featmap", "optimize", unit, *self.options()])

    def options(self) -> list[str]:
        """Return the words that name network, recipe, seed and device on the command line."""
        words = []
        for name, value in self.network.items():
            if (name, value) != ("model", "reference"):
                words += [f"--{name.replace('_', '-')}", _text(value)]
        words += ["--recipe", self.recipe.name, "--size", str(self.recipe.size), "--steps", str(self.recipe.steps)]
        for name, value in (self.changes or {}).items():
            words += [f"--{name}", _text(value)]
        return [*words, "--seed", str(self.seed), "--device", self.device]

    def python(self, unit: str) -> str:
        """Return the Python lines that do the same."""
        network = dict(self.network)
        model = network.pop("model")
        said = {k: tuple(v) if isinstance(v, list) else v for k, v in network.items()}
        if self.changes is None:
            lines = [
                "import json, featmap",
                'manifest = json.load(open("RUN/manifest.json"))',
                'recipe = featmap.Recipe.from_identity(manifest["identity"]["recipe"])',
            ]
            made = "recipe=recipe"
        else:
            lines = ["import featmap"]
            settings = {"recipe": self.recipe.name, "size": self.recipe.size, "steps": self.recipe.steps}
            made = ", ".join(f"{k}={v!r}" for k, v in (settings | self.changes).items())
        options = "".join(f"{k}={v!r}, " for k, v in said.items())
        where = f"seed={self.seed}, device={self.device!r}"
        return "\n".join([*lines, f"found = featmap.maximise({unit!r}, {model!r}, {options}{made}, {where})"])


def _changes(recipe: Recipe) -> dict[str, Any] | None:
    """Return the options beside size and steps that make a named recipe into this one; None if there are none."""
    try:
        named = recipes.recipe(recipe.name).resolved(recipe.size, recipe.size, recipe.steps)
    except FeatmapError:
        return None
    changes = {k: getattr(recipe, k) for k in ON_THE_LINE if getattr(recipe, k) != getattr(named, k)}
    again = recipes.recipe(recipe.name).resolved(recipe.size, recipe.size, recipe.steps, **changes)
    return changes if again.identity() == recipe.identity() else None


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
