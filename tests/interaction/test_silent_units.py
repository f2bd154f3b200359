"""Units that are silent on the noise wake in solo and joint descents; what is not silent, or linear, is left alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import featmap
from featmap.interaction.statistics import DEAD_PARTNER, OK
from featmap.network.loading import load
from featmap.optimize.descent import Descent
from featmap.optimize.parameterization import initial_image
from featmap.optimize.recipe import INTERACT, INTERACT_UNRESCUED, Recipe
from tests.helpers import linear_pairs, networks
from tests.helpers.settings import options
from tests.optimize.test_descent import descended

pytestmark = pytest.mark.usefixtures("cheap_runs", "threads")

LIVE, ASLEEP, BURIED = (f"relu:{c}" for c in (networks.LIVE, networks.ASLEEP, networks.BURIED))


def made(pairs: list[str], recipe: Recipe, **changes: object) -> Descent:
    """Images of sums of the units of `dead_network`, in 20 steps."""
    small = replace(recipe.resolved(16, size=16, steps=20), rows=4, **changes)  # type: ignore[arg-type]
    return descended(load(networks.dead_network()), pairs, small)


@pytest.mark.parametrize(("recipe", "status"), [("interact", OK), ("interact-unrescued", DEAD_PARTNER)])
def test_a_pair_with_a_silent_unit_is_defined(recipe: str, status: str, tmp_path: Path) -> None:
    settings = options(recipe=recipe, size=16, rows=4, seeds=2, out=tmp_path / "run")
    table = featmap.interact([LIVE, ASLEEP], networks.dead_network(), **settings).statistics
    assert (table["status"] == status).all()
    assert table["response_nonlinearity"].notna().all() == table["retention_b"].notna().all() == (status == OK)
    assert status != OK or (table["retention_b"] > 0.3).all(), "the silent unit wakes beside one that is not"


def test_a_silent_term_gets_a_gradient_as_long_as_the_other() -> None:
    """One plain step: the gradient before the ReLU, whose scale does not matter, at the length of the living one."""
    recipe = replace(INTERACT.resolved(16, size=16, steps=1), optimiser="gradient", rows=2)
    recipe = replace(recipe, octaves=(replace(recipe.octaves[0], rate=(1.0, 1.0), sigma=(0.0, 0.0)),))
    found = descended(load(networks.dead_network()), [f"{LIVE} + 3 * {ASLEEP}"], recipe)
    start = initial_image(recipe, 0)
    x = start.clone()[None].requires_grad_(True)
    before = networks.dead_network().features(x)[0]  # type: ignore[operator]
    assert before[networks.LIVE].max() > 0 >= before[networks.ASLEEP].max()
    (own,) = torch.autograd.grad(before[networks.LIVE].relu().sum(), x, retain_graph=True)
    (silent,) = torch.autograd.grad(before[networks.ASLEEP].sum(), x)
    expected = own + silent * own.norm() / silent.norm()
    torch.testing.assert_close(found.images[0] - start, expected[0], atol=1e-5, rtol=1e-4)
    assert found.rescued.tolist() == [True] and torch.isnan(found.agreement[0, 0])


def test_two_silent_terms_count_alike() -> None:
    """Behind two ReLUs the gradient is a tenth of that behind one; both get the longer one's length."""
    module = torch.nn.Sequential(*networks.dead_network().children(), torch.nn.Conv2d(5, 1, 1), torch.nn.ReLU())
    with torch.no_grad():
        module[0].weight[networks.BROKEN], module[0].bias[networks.BROKEN] = 0.0, 0.0  # type: ignore[index, operator]
        module[2].weight.zero_()  # type: ignore[operator]
        module[2].weight[0, networks.BURIED] = 1.0  # type: ignore[index]
        module[2].bias.fill_(-1.0)  # type: ignore[operator]
    recipe = replace(INTERACT.resolved(16, size=16, steps=1), optimiser="gradient", rows=2)
    recipe = replace(recipe, octaves=(replace(recipe.octaves[0], rate=(1.0, 1.0), sigma=(0.0, 0.0)),))
    network = load(module.eval())
    one, two, both = (descended(network, [units], recipe) for units in ("1:1", "3:0", "1:1 + 3:0"))
    start = initial_image(recipe, 0)
    moved = [d.images[0] - start for d in (one, two)]
    assert float(moved[1].norm()) == pytest.approx(0.1 * float(moved[0].norm()), rel=1e-3)
    torch.testing.assert_close(both.images[0] - start, 2 * moved[0], atol=1e-5, rtol=1e-4)


def test_living_sums_keep_their_bits_beside_silent_ones() -> None:
    before = made([f"{LIVE} + 2 * {LIVE}"], INTERACT_UNRESCUED)
    beside = made([f"{LIVE} + 2 * {LIVE}", f"{LIVE} + {ASLEEP}", f"{ASLEEP} + {BURIED}"], INTERACT)
    assert torch.equal(beside.images[0], before.images[0])
    assert beside.rescued.tolist() == [False, True, True]


def test_a_silent_term_is_rescued_only_where_the_recipe_says_so() -> None:
    """Other recipes rescue a sum only if none of its terms has a gradient: their images do not change."""
    pair = [f"{LIVE} + {ASLEEP}"]
    without, rows = made(pair, INTERACT, rescue=0.0), made(pair, INTERACT, rescue=0.75, rescue_terms=False)
    terms = made(pair, INTERACT, rescue=0.75)
    assert torch.equal(without.images, rows.images) and not torch.equal(rows.images, terms.images)
    assert (rows.curve[0, :, 1] == 0).all() and terms.curve[0, -1, 1] > 0


def test_generated_linear_networks_have_no_interaction() -> None:
    """Under the default recipe with fewer steps, whatever the widths, strides, scales and biases."""
    found = [linear_pairs.measure(seed) for seed in range(25)]
    defined = np.array([values for values in found if values is not None])
    assert len(defined) >= 22
    assert defined[:, :2].max() <= 1e-4 and defined[:, 2].max() <= 1e-5


def test_a_thousand_generated_linear_networks_have_no_interaction() -> None:
    """Ten networks of each of a hundred architectures, on small images."""
    found = np.concatenate([linear_pairs.measure_many(seed, 10) for seed in range(100)])
    defined = found[np.isfinite(found).all(1)]
    assert len(found) == 1000 and len(defined) >= 950
    assert defined[:, :3].max() <= 1e-4 and defined[:, 3].max() <= 1e-5


def test_networks_measured_together_are_measured_as_one_by_one() -> None:
    """The groups have no weight between them: a network of its own with one group's weights gives its numbers."""
    together = linear_pairs.generated_groups(4, 3)
    image = torch.rand(2, 3, 8, 8)
    x = image
    for layer in together:
        x = layer(x)
    y = image
    for layer in together:
        if isinstance(layer, torch.nn.Conv2d):
            own = layer.weight.unflatten(0, (3, -1))[1], layer.bias.unflatten(0, (3, -1))[1]  # type: ignore[union-attr]
            y = torch.nn.functional.conv2d(y, *own, layer.stride, layer.padding)
        else:
            y = layer(y)
    torch.testing.assert_close(x.unflatten(1, (3, -1))[:, 1], y)
