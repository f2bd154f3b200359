"""Every study makes images of the size that its command line gives, with and without the article's own recipes."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import featmap
from analyses import tables
from analyses.support.study import Context
from featmap.optimize.recipe import Recipe
from tests.helpers.networks import linear_network
from tests.helpers.studying import context_of

LAYERS = ("conv2", "conv3")


class FirstDescentError(Exception):
    """Ends a study at its first descent."""


@pytest.fixture
def first_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A function that carries out a study up to its first descent, and returns the recipe of that."""
    used: list[Recipe] = []

    def end(context: Any, recipe: Recipe | str) -> None:
        used.append(Recipe.named(recipe).resolved(24))
        raise FirstDescentError

    monkeypatch.setattr(Context, "note_recipe", end)
    monkeypatch.setattr(featmap, "similarity", lambda *args, **settings: end(None, settings["recipe"]))

    def carry_out(name: str, full: bool, size: int | None = None) -> Recipe:
        module = import_module(f"analyses.{name}")
        context = context_of(module.STUDY, mixed_or_linear(name), layers_of(name), tmp_path, 24, full=full)
        with pytest.raises(FirstDescentError):
            module.measure(replace(context, size=size))
        return used[-1]

    return carry_out


def mixed_or_linear(name: str) -> Any:
    """The bundled network's architecture for the study of branches, which needs some; otherwise a linear network."""
    return "reference" if name == "branches" else linear_network()


def layers_of(name: str) -> tuple[str, ...]:
    """Layers that the study measures."""
    return ("inception3a",) if name == "branches" else LAYERS


@pytest.mark.parametrize("name", tables.ORDER)
def test_a_study_makes_images_of_the_size_given(name: str, first_recipe: Any) -> None:
    given, free, full = first_recipe(name, False, 32), first_recipe(name, False), first_recipe(name, True, 32)
    assert given.sizes[-1] == full.sizes[-1] == 32 and free.sizes[-1] != 32
    assert (given.name, given.steps) == (free.name, free.steps)
