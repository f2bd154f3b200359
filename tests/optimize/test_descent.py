from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from torch import Tensor, nn

from featmap import image_ops
from featmap.network.loading import load
from featmap.network.model import Network
from featmap.optimize.descent import Descent, DescentNetwork, descend
from featmap.optimize.objective import Objective, Repulsion
from featmap.optimize.parameterization import Optimiser, null_image
from featmap.optimize.recipe import ARTICLE, ARTICLE_NORMALISED, INTERACT, PIXELS, Octave, Recipe
from featmap.optimize.responses import Probe
from featmap.runs.job import Job
from featmap.runs.worker import Worker, checked
from featmap.stats import facets
from tests.helpers import networks, tiny

pytestmark = pytest.mark.usefixtures("threads")


def descended(network: Network, units: Sequence[Any], recipe: Recipe, **settings: Any) -> Descent:
    """The maximising images of some units, on the network itself."""
    targets = [Objective.parse(u) for u in units]
    shapes = {s: {la: network.layer(la, s).shape for t in targets for la in t.layers} for s in recipe.sizes}
    return descend(DescentNetwork(network.module, network.normalise, shapes), targets, recipe, **settings)


def maximised_images(network: Network, units: Sequence[Any], recipe: Recipe, seed: int = 0) -> dict[str, np.ndarray]:
    """What a run makes of some units, batch after batch."""
    objectives = tuple(Objective.parse(u) for u in units)
    job = checked(Job(network=network, recipe=recipe, seeds=(seed,), objectives=objectives))
    worker = Worker(job)
    batches = [worker.make(u) for u in job.work_units() if u.last]
    return {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}


def one_octave(recipe: Recipe, size: int, steps: int, **changes: Any) -> Recipe:
    return replace(recipe.resolved(size, size=size, steps=steps), rows=2, **changes)


# ---------------------------------------------------------------- closed forms: planted_1x1

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.5)


def total_rate(recipe: Recipe) -> float:
    return sum(
        o.rate[0] * (o.steps - i) / o.steps + o.rate[1] * i / o.steps for o in recipe.octaves for i in range(o.steps)
    )


@pytest.mark.parametrize("recipe", [ARTICLE, ARTICLE_NORMALISED, INTERACT], ids=lambda r: r.name)
@pytest.mark.parametrize("feature", [0, 1, 2])
def test_a_linear_function_of_the_colour(recipe: Recipe, feature: int) -> None:
    """A 1 x 1 convolution's gradient is its weights over the input's deviations, at every pixel, always.

    So the image is the null image plus that colour times the sum of the step sizes (over its root mean square,
    where the gradient is divided by it): blur and resize keep a constant.
    """
    network = load(networks.planted_1x1(), mean=MEAN, std=STD)
    recipe = replace(recipe.resolved(24, size=19, steps=30), rows=2)
    colour = torch.tensor(networks.DIRECTIONS[feature]) / torch.tensor(STD)
    if recipe.optimiser == "rms":
        colour = colour / colour.square().mean().sqrt()
    expected = null_image(recipe, 7) + total_rate(recipe) * colour[:, None, None]
    found = descended(network, [f"features:{feature}"], recipe, seed=7)
    torch.testing.assert_close(found.images[0], expected, rtol=1e-4, atol=1e-4)


def test_scaled_copies_have_the_same_image_under_linear_steps() -> None:
    network = load(networks.planted_1x1())
    found = descended(network, ["features:0", "features:2"], one_octave(INTERACT, 12, 20)).images
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)


def test_a_sum_of_linear_functions() -> None:
    network, recipe = load(networks.planted_1x1()), one_octave(ARTICLE, 15, 12)
    found = descended(network, ["0.5 * features:0 + -2 * features:1"], recipe).images[0]
    colour = 0.5 * torch.tensor(networks.DIRECTIONS[0]) - 2 * torch.tensor(networks.DIRECTIONS[1])
    expected = null_image(recipe, 0) + total_rate(recipe) * colour[:, None, None]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("unit", "inside"),
    [
        ("features:0:3", (slice(3, 4), slice(None))),
        ("features:0:3:5", (slice(3, 4), slice(5, 6))),
        ("features:0:..16", (slice(0, 2), slice(None))),
    ],
)
def test_without_blur_only_the_units_own_pixels_move(unit: str, inside: tuple[slice, slice]) -> None:
    network, size = load(networks.planted_1x1()), 8
    recipe = replace(INTERACT, rows=2, octaves=(Octave(9, (0.05, 0.02), (0.0, 0.0), size),))
    mask = torch.zeros(size, size)
    mask[inside] = 1
    colour = torch.tensor(networks.DIRECTIONS[0])[:, None, None] * mask
    expected = null_image(recipe, 0) + total_rate(recipe) * colour / colour.square().mean().sqrt()
    torch.testing.assert_close(descended(network, [unit], recipe).images[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("clamp", ["end", "every"])
def test_clamped_images_reach_the_corner_of_the_cube(clamp: str) -> None:
    network, recipe = load(networks.planted_1x1()), one_octave(PIXELS, 16, 60, clamp=clamp)
    found = descended(network, ["features:0", "features:1"], recipe).images
    assert torch.equal(found[0], torch.tensor([1.0, 0.0, 1.0])[:, None, None].expand(3, 16, 16))
    assert torch.equal(found[1][1], torch.ones(16, 16))
    assert torch.equal(found[1][[0, 2]], null_image(recipe, 0)[[0, 2]]), "colours without weight stay"


@pytest.mark.parametrize("parameterisation", ["pixels", "fourier"])
def test_the_colour_that_a_feature_likes_best(parameterisation: str) -> None:
    network = load(networks.planted_1x1())
    rate = 0.03 if parameterisation == "pixels" else 0.3
    recipe = replace(
        PIXELS,
        rows=2,
        clamp="end",
        parameterisation=parameterisation,
        octaves=(Octave(120, (rate, rate / 50), (1.0, 0.3), 12),),
    )
    found = descended(network, ["features:3"], recipe).images[0]
    wrong = (found - torch.tensor(networks.TARGET)[:, None, None]).abs()
    assert float(wrong.median()) < 0.01
    if parameterisation == "pixels":  # through a sigmoid, some pixels are stuck at 0 or 1
        assert float(wrong.max()) < 0.02


# ---------------------------------------------------------------- the article's loop, written down again


def article_loop(network: nn.Module, channel: int, sizes: Sequence[int], iterations: int, C: float) -> Tensor:
    """The article's generate_singleinput, octave and layer_gradient, one image, without any of featmap."""
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    image = (0.5 + 0.1 * image_ops.noise(999, sizes[0]))[None]
    schedule = [([0.4, 0.3], [2.4, 0.8]), ([0.3, 0.2], [1.5, 0.4]), ([0.2, 0.1], [1.1, 0.3])]
    for size, ((start_lr, end_lr), (start_sigma, end_sigma)) in zip(sizes, schedule, strict=True):
        if image.shape[-1] != size:
            image = F.interpolate(image, (size, size), mode="bilinear", align_corners=False)
        for i in range(iterations):
            image = image.detach().requires_grad_(True)
            focus = network((image - mean) / std)[0, channel, :, :]
            target = torch.ones(focus.shape) * C
            torch.sum(target - focus).backward()
            rate = start_lr * (iterations - i) / iterations + end_lr * i / iterations
            sigma = start_sigma * (iterations - i) / iterations + end_sigma * i / iterations
            image = TF.gaussian_blur((image - rate * image.grad).detach(), [3, 3], [sigma, sigma])
    return image[0]


@pytest.mark.parametrize("unit", ["conv3:1", "conv3:4"])
def test_the_article_on_a_linear_network(unit: str) -> None:
    module = networks.linear_network()
    network = load(module, mean=MEAN, std=STD)
    recipe = replace(ARTICLE.resolved(96, size=38), rows=2)
    assert recipe.sizes == (30, 34, 38) and recipe.steps == 300
    expected = article_loop(copy.deepcopy(module), int(unit[-1]), recipe.sizes, 100, 200.0)
    found = descended(network, [unit], recipe, seed=999).images[0]
    assert float(expected.abs().max()) > 5, "far from the noise that it started from"
    assert float((found - expected).norm() / expected.norm()) < 1e-4


def test_the_article_on_a_network_with_relus() -> None:
    module = networks.small_inception()
    network = load(module, mean=MEAN, std=STD)
    recipe = replace(ARTICLE.resolved(96, size=38, steps=15), rows=2)
    reference = copy.deepcopy(module)
    reference.narrow = reference.norm2 = reference.pool = nn.Identity()
    reference.relu = nn.ReLU()  # at the second call, a ReLU of what is positive anyway
    reference.fc = nn.Unflatten(1, (11, 1, -1))
    expected = article_loop(reference, 7, recipe.sizes, 5, 200.0)
    found = descended(network, ["mixed:7"], recipe, seed=999).images[0]
    assert float((found - expected).norm() / expected.norm()) < 1e-3


# ---------------------------------------------------------------- the optimisers' rules


def some_gradients(steps: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(steps, 2, 3, 5, 5, generator=torch.Generator().manual_seed(0))


def test_adam_takes_the_steps_of_torchs_adam() -> None:
    ours, moved = Optimiser("adam"), torch.zeros(2, 3, 5, 5)
    weight = torch.zeros(2, 3, 5, 5, requires_grad=True)
    theirs = torch.optim.Adam([weight], lr=0.03, eps=1e-12)
    for gradient in some_gradients(12):
        moved -= 0.03 * ours(gradient)
        weight.grad = gradient.clone()
        theirs.step()
        torch.testing.assert_close(moved, weight.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rule", ["adam", "rms"])
@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6])
def test_steps_do_not_depend_on_the_gradients_scale(rule: str, scale: float) -> None:
    small, large = Optimiser(rule), Optimiser(rule)
    for gradient in some_gradients(6):
        torch.testing.assert_close(small(scale * gradient), large(gradient), rtol=1e-4, atol=1e-5)


def test_rms_steps_have_a_root_mean_square_of_one() -> None:
    for gradient in some_gradients(2):
        step = Optimiser("rms")(gradient)
        torch.testing.assert_close(step.square().mean((1, 2, 3)), torch.ones(2))
        torch.testing.assert_close(F.cosine_similarity(step.flatten(1), gradient.flatten(1)), torch.ones(2))


def test_plain_steps_are_the_gradient() -> None:
    gradient = some_gradients(1)[0]
    assert torch.equal(Optimiser("gradient")(gradient), gradient)


@pytest.mark.parametrize("rule", ["gradient", "rms", "adam"])
def test_no_gradient_no_step(rule: str) -> None:
    steps = Optimiser(rule)
    half = some_gradients(1)[0]
    assert torch.equal(steps(torch.zeros_like(half)), torch.zeros_like(half))
    half[1] = 0
    step = steps(half)
    assert step[0].any() and not step[1].any() and step.isfinite().all()


@pytest.mark.parametrize("rule", ["gradient", "rms", "adam"])
@pytest.mark.parametrize("parameterisation", ["pixels", "fourier", "spectrum"])
def test_every_optimiser_climbs(rule: str, parameterisation: str) -> None:
    network = load(networks.small_inception())
    rate = 0.5 if rule == "gradient" else 0.03
    octave = Octave(12, (rate, rate), (0.0, 0.0), 20)
    recipe = replace(PIXELS, rows=2, octaves=(octave,), optimiser=rule, parameterisation=parameterisation)
    found = descended(network, ["mixed:2", "narrow:3"], recipe)
    assert found.curve.shape == (2, 12, 1) and (found.curve[:, -1] > found.curve[:, 0]).all()
    assert found.had_gradient.all() and not found.rescued.any()


# ---------------------------------------------------------------- rows are independent, to the bit


# ---------------------------------------------------------------- repulsion


@pytest.mark.parametrize(("change", "pushed"), [(0.0, False), (1e-3, True)])
def test_only_what_differs_beyond_rounding_is_pushed_away(change: float, pushed: bool) -> None:
    network = load(tiny.small())
    recipe = one_octave(ARTICLE_NORMALISED, 16, 1, jitter=0)
    start = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    other = (start + change * torch.randn(start.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    responses = Probe(network, 2, torch.device("cpu")).responses(other[None], ["second"])["second"]
    means, weights = np.linspace(-0.2, 0.3, 11), np.linspace(1.0, 3.0, 11)[None]
    vectors = torch.from_numpy(facets.unit_vectors(responses, means, weights))[:, None]
    others = Repulsion("second", torch.from_numpy(means), torch.from_numpy(weights), vectors)
    plain = descended(network, ["second:1"], recipe, start=start).images
    made = descended(network, ["second:1"], recipe, start=start, repulsion=others).images
    assert torch.equal(plain, made) != pushed and not torch.equal(plain[0], start)


def test_repulsion_and_the_table_of_facets_compare_images_alike() -> None:
    rng = np.random.default_rng(0)
    outputs = torch.from_numpy(rng.normal(1, 1, size=(3, 9, 4, 4))).float()
    outputs[:, 7] = torch.inf
    means, weights = rng.normal(1, 0.2, size=9), rng.random((3, 9)) + 0.5
    weights[:, [2, 7]] = 0
    vectors = facets.unit_vectors(rng.normal(size=(3, 5, 9)), means, weights[:, None])
    others = Repulsion("a", *(torch.from_numpy(part).float() for part in (means, weights, vectors)))
    cosine, remainder = others.similarity(outputs)
    own = facets.unit_vectors(outputs.mean((2, 3)).double().numpy(), means, weights)
    between = facets.distances(np.concatenate([own[:, None], vectors], axis=1))[:, 0, 1:]
    np.testing.assert_allclose(1 - cosine.numpy(), between.min(1), atol=1e-5)
    assert (remainder > 0.01).all() and torch.isfinite(remainder).all()
