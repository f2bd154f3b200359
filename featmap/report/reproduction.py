"""Derive from a run's manifest the command and the Python code that reproduce a stored image."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from featmap.errors import FeatmapError
from featmap.image_shape import as_size, format_size
from featmap.network.directions import stored_path
from featmap.optimize.recipe import Recipe
from featmap.optimize.schedule import renamed_recipe
from featmap.runs.manifest import Manifest

COMMAND_LINE_SETTINGS = ("metric", "C", "rows", "precision")
"""Settings of a recipe that options can change, besides size and steps."""
FACTORY = "package.module:factory"
"""Stands for a network of the caller's own."""


class Reproduction:
    """Commands and Python code that reproduce the images of a run.

    The attribute `notes` lists what the reader has to supply: a network of their own, or a photograph.

    Parameters
    ----------
    manifest : Manifest
        Manifest of the run.
    """

    def __init__(self, manifest: Manifest) -> None:
        identity = manifest.identity
        self.recipe = Recipe.from_identity(identity["recipe"])
        if renamed := renamed_recipe(identity["recipe"]):
            self.recipe = replace(self.recipe, name=renamed)
        self.changes = _changes(self.recipe)
        self.seed, self.device = int(identity["seeds"][0]), str(identity.get("device", "cpu"))
        self.notes: list[str] = []
        self.network: dict[str, Any] = {k: v for k, v in manifest.model_arguments.items() if v is not None}
        if not self.network.get("model"):
            self.network["model"] = FACTORY
            self.notes.append(f"the network was the caller's own: replace {FACTORY} by its factory")
        weights = self.network.get("weights")
        if isinstance(weights, str) and PurePath(weights).name != weights:
            self.network["weights"] = PurePath(weights).name  # a page must not show paths of the machine that made it
            self.notes.append(f"{PurePath(weights).name} is a file of the caller's own")
        model = identity.get("model", {})
        self.directions = {n: f"RUN/{stored_path(n, d)}" for n, d in model.get("directions", {}).items()}
        if self.directions:
            self.notes.append("RUN is the folder of this run, which holds its directions")
        if identity.get("start"):
            self.notes.append("the run starts from a photograph: add --start FILE (start=FILE in Python)")

    def command(self, unit: str) -> str | None:
        """Return the command that reproduces the image of a unit.

        Parameters
        ----------
        unit : str
            Label of the unit.

        Returns
        -------
        str or None
            None if no options give the recipe of the run.
        """
        if self.changes is None:
            return None
        return shlex.join(["featmap", "maximise", unit, *self.options()])

    def options(self) -> list[str]:
        """Return the options for network, recipe, seed and device.

        Returns
        -------
        list of str
            Words of the command line.
        """
        words = []
        for name, value in self.network.items():
            if (name, value) != ("model", "reference"):
                is_size = name == "input_size" and isinstance(value, (list, tuple))
                words += [f"--{name.replace('_', '-')}", format_size(as_size(value), "x") if is_size else _text(value)]
        for name, path in self.directions.items():
            words += ["--directions", f"{name}={path}"]
        words += [
            "--recipe",
            self.recipe.name,
            "--size",
            format_size(self.recipe.size, "x"),
            "--steps",
            str(self.recipe.steps),
        ]
        for name, value in (self.changes or {}).items():
            words += [f"--{name}", _text(value)]
        return [*words, "--seed", str(self.seed), "--device", self.device]

    def python(self, unit: str) -> str:
        """Return the Python code that reproduces the image of a unit.

        Parameters
        ----------
        unit : str
            Label of the unit.

        Returns
        -------
        str
            Lines that run as they are, except for what `notes` list.
        """
        network = dict(self.network)
        model = network.pop("model")
        options = "".join(f", {k}={tuple(v) if isinstance(v, list) else v!r}" for k, v in network.items())
        network_code = f"featmap.load({model!r}{options})" if options or self.directions else repr(model)
        network_code += f".with_directions({self.directions!r})" if self.directions else ""
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
        call = f"{unit!r}, {network_code}, recipe=recipe, seeds=[{self.seed}], execution={execution}"
        return "\n".join([*lines, f"images = featmap.maximise({call})"])


def _changes(recipe: Recipe) -> dict[str, Any] | None:
    """Return the changes, besides size and steps, that turn the named recipe into this one; None if none do."""
    try:
        named = Recipe.named(recipe.name).resolved(recipe.size, recipe.size, recipe.steps)
    except FeatmapError:
        return None
    changes = {k: getattr(recipe, k) for k in COMMAND_LINE_SETTINGS if getattr(recipe, k) != getattr(named, k)}
    changed = Recipe.named(recipe.name).resolved(recipe.size, recipe.size, recipe.steps, **changes)
    return changes if changed.identity() == recipe.identity() else None


def _text(value: Any) -> str:
    """Return a value as the command line reads it."""
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
