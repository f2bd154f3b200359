"""A recipe whose octaves are too small for a layer, and the size that is advised."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from torch import nn

from featmap import channel, load
from featmap.errors import RecipeError, UnitError
from featmap.interaction.job import JointJob
from featmap.network.unit import Unit
from featmap.optimize.recipe import RECIPES, Octave, Recipe
from featmap.runs.job import Job
from featmap.runs.worker import checked

LEAST = 7


def job(recipe: Recipe) -> Job:
    network = load(nn.Sequential(nn.Conv2d(3, 4, LEAST), nn.ReLU()).eval(), input_size=16)
    return Job(network=network, recipe=recipe, objectives=(channel("0", 1),))


@pytest.mark.parametrize("name", ["large", "article", "pixels"])
@pytest.mark.parametrize("size", [*range(LEAST, 3 * LEAST), 40])
def test_the_size_that_is_advised_is_the_least_that_would_do(name: str, size: int) -> None:
    recipe = RECIPES[name]
    try:
        checked(job(recipe.resolved(16, size=size)))
        advised = size
    except RecipeError as error:
        found = re.fullmatch(
            rf"recipe {name} at {size} pixels makes steps at (\d+), .*; choose a size of (\d+) or more", str(error)
        )
        assert found, str(error)
        assert int(found[1]) < LEAST
        advised = int(found[2])
        assert checked(job(recipe.resolved(16, size=advised)))
        with pytest.raises(RecipeError, match=f"choose a size of {advised} or more"):
            checked(job(recipe.resolved(16, size=advised - 1)))
    assert min(recipe.resolved(16, size=advised).sizes) >= LEAST


def test_a_recipe_of_ones_own_is_told_a_size_that_suffices() -> None:
    own = Recipe("mine", (Octave(2, (0.1, 0.1), size=0.4), Octave(2, (0.1, 0.1))))
    for size in range(LEAST, 17):
        with pytest.raises(RecipeError, match="choose a size") as caught:
            checked(job(own.resolved(16, size=size)))
        advised = int(str(caught.value).split("a size of ")[1].split()[0])
        assert checked(job(own.resolved(16, size=advised))) and advised <= 27


def test_an_image_that_is_itself_too_small_is_told_so() -> None:
    with pytest.raises(UnitError, match=r"size 6 is too small for layer '0' .* choose a size of 7 or more"):
        checked(job(RECIPES["large"].resolved(16, size=6)))


def test_pairs_get_the_same_advice_about_sizes() -> None:
    single = job(RECIPES["large"].resolved(16, size=10))
    pair = JointJob(network=single.network, recipe=single.recipe, groups=((Unit("0", 1), Unit("0", 2)),))
    for given in (single, pair):
        with pytest.raises(
            RecipeError, match=r"^recipe large at 10 pixels makes steps at 5, .* choose a size of 14 or more$"
        ):
            checked(given)
    assert checked(replace(pair, recipe=RECIPES["large"].resolved(16, size=14)))
