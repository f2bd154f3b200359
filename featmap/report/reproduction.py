"""The command line and the Python lines that make a stored image again, from a run's manifest."""

from __future__ import annotations

import shlex
from pathlib import PurePath
from typing import Any

from featmap.errors import FeatmapError
from featmap.optimize.recipe import Recipe
from featmap.runs.manifest import Manifest

COMMAND_LINE_SETTINGS = ("metric", "C", "rows")
FACTORY = "package.module:factory"


class Reproduction:
    """How the images of one run are made again.

    Parameters
    ----------
    manifest : of the run folder, as `featmap.runs.store.Run.manifest` has it

    `notes` say what the reader has to put in: a network of their own, a start photograph.
    """

    def __init__(self, manifest: Manifest) -> None:
        identity, given = manifest.identity, manifest.model_arguments
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
        return shlex.join(["featmap", "maximise", unit, *self.options()])

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
        """Return the Python lines that make the image of a unit.

        Parameters
        ----------
        unit : str
            Label of the unit.

        Returns
        -------
        str
            Lines that run as they stand, except for what `notes` ask for.
        """
        network = dict(self.network)
        model = network.pop("model")
        options = "".join(f", {k}={tuple(v) if isinstance(v, list) else v!r}" for k, v in network.items())
        loaded = f"featmap.load({model!r}{options})" if options else repr(model)
        if self.changes is None:
            lines = [
                "import json, featmap",
                'manifest = json.load(open("RUN/manifest.json"))',
                'recipe = featmap.Recipe.from_identity(manifest["identity"]["recipe"])',
            ]
        else:
            settings = {"size": self.recipe.size, "steps": self.recipe.steps} | self.changes
            changes = ", ".join(f"{k}={v!r}" for k, v in settings.items())
            lines = ["import featmap", f"recipe = featmap.Recipe.named({self.recipe.name!r}, {changes})"]
        execution = f"featmap.Execution({self.device!r})"
        call = f"{unit!r}, {loaded}, recipe=recipe, seeds=[{self.seed}], execution={execution}"
        return "\n".join([*lines, f"images = featmap.maximise({call})"])


def _changes(recipe: Recipe) -> dict[str, Any] | None:
    """Return the options beside size and steps that make a named recipe into this one; None if there are none."""
    try:
        named = Recipe.named(recipe.name).resolved(recipe.size, recipe.size, recipe.steps)
    except FeatmapError:
        return None
    changes = {k: getattr(recipe, k) for k in COMMAND_LINE_SETTINGS if getattr(recipe, k) != getattr(named, k)}
    again = Recipe.named(recipe.name).resolved(recipe.size, recipe.size, recipe.steps, **changes)
    return changes if again.identity() == recipe.identity() else None


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
