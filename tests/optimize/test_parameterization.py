from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from torch import Tensor

from featmap import image_ops
from featmap.optimize import parameterization
from featmap.optimize.descent import DescentNetwork, descend
from featmap.optimize.objective import channel
from featmap.optimize.parameterization import (
    PARAMETERISATIONS,
    clamp_final,
    frame_steps,
    initial_image,
    null_frames,
    null_image,
)
from featmap.optimize.recipe import ARTICLE, INTERACT, PIXELS, RECIPES, Octave, Recipe
from tests.helpers import networks

pytestmark = pytest.mark.usefixtures("one_thread")


def two_octaves(**changes: Any) -> Recipe:
    octaves = (Octave(4, (0.05, 0.03), (1.2, 0.4), 17), Octave(3, (0.03, 0.01), (0.8, 0.2), 20))
    return replace(PIXELS, octaves=octaves, rows=3, **changes)


def descended(recipe: Recipe, channel_of_relu: int, seed: int, start: Tensor | None = None) -> Tensor:
    shapes = {size: {"relu": (5, size, size)} for size in recipe.sizes}
    made = descend(
        DescentNetwork(networks.dead_network(), lambda x: x, shapes),
        [channel("relu", channel_of_relu)],
        recipe,
        seed=seed,
        start=start,
    )
    assert bool(made.had_gradient[0]) == (channel_of_relu != networks.CONSTANT)
    return made.images[0]


@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS)
@pytest.mark.parametrize("optimiser", ["gradient", "rms", "adam"])
@pytest.mark.parametrize("clamp", ["never", "end", "every"])
def test_the_null_image_is_a_descent_without_gradient(parameterisation: Any, optimiser: Any, clamp: Any) -> None:
    recipe = two_octaves(parameterisation=parameterisation, optimiser=optimiser, clamp=clamp)
    null = null_image(recipe, 3)
    assert torch.equal(descended(recipe, networks.CONSTANT, 3), null)
    assert not torch.equal(descended(recipe, networks.LIVE, 3), null)
    assert null.shape == (3, 20, 20) and null.dtype == torch.float32


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_its_null_image(name: str) -> None:
    own = RECIPES[name].resolved(12, size=12, steps=6, rows=2)
    recipe = replace(own, contrast=0.0)  # less the layer's mean, a constant feature would have a gradient
    assert torch.equal(descended(recipe, networks.CONSTANT, 1), null_image(own, 1))


@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS)
@pytest.mark.parametrize("every", [1, 2, 5])
def test_null_frames_are_those_of_a_descent_without_gradient(parameterisation: Any, every: int) -> None:
    recipe = two_octaves(parameterisation=parameterisation)
    shapes = {size: {"relu": (5, size, size)} for size in recipe.sizes}
    dead = [channel("relu", networks.CONSTANT)]
    made = descend(DescentNetwork(networks.dead_network(), lambda x: x, shapes), dead, recipe, seed=3, frames=every)
    found = null_frames(recipe, 3, every=every)
    assert [f.shape[-1] for f in found] == [17 if step <= 4 else 20 for step in frame_steps(recipe.steps, every)]
    assert all(torch.equal(frame[0], null) for frame, null in zip(made.frames, found, strict=True))


def test_a_null_image_of_a_photograph() -> None:
    photograph = torch.rand(3, 30, 30, generator=torch.Generator().manual_seed(1))
    recipe = two_octaves()
    null = null_image(recipe, 0, photograph)
    assert torch.equal(descended(recipe, networks.CONSTANT, 0, photograph), null)
    assert torch.equal(null, null_image(recipe, 5, photograph)), "no noise, so no seed"
    assert not torch.equal(null, null_image(recipe, 0))


def test_the_null_image_depends_on_the_seed_alone() -> None:
    recipe = two_octaves()
    torch.manual_seed(5)
    assert torch.equal(null_image(recipe, 1), null_image(recipe, 1))
    assert not torch.equal(null_image(recipe, 1), null_image(recipe, 2))


def test_the_articles_schedule_of_blur() -> None:
    # the article's octave(): at step i, sigma = start * (n - i) / n + end * i / n, kernel 3; between octaves a resize
    recipe = replace(ARTICLE.resolved(96, size=38, steps=60), rows=2)
    image = (0.5 + 0.1 * image_ops.noise(999, 30))[None]
    for (start, end), size in zip([(2.4, 0.8), (1.5, 0.4), (1.1, 0.3)], (30, 34, 38), strict=True):
        if image.shape[2] != size:
            image = F.interpolate(image, (size, size), mode="bilinear", align_corners=False)
        for i in range(20):
            sigma = start * (20 - i) / 20 + end * i / 20
            image = TF.gaussian_blur(image, [3, 3], [sigma, sigma])
    torch.testing.assert_close(null_image(recipe, 999), image[0], rtol=0, atol=2e-6)


def test_the_first_image_is_noise_of_the_recipes_mean_and_deviation() -> None:
    recipe = two_octaves(mean=0.3, std=0.05)
    assert torch.equal(initial_image(recipe, 4), 0.3 + 0.05 * image_ops.noise(4, 17))
    large = initial_image(replace(PIXELS, std=0.2).resolved(96, size=96), 0)
    assert float(large.mean()) == pytest.approx(0.5, abs=0.01) and float(large.std()) == pytest.approx(0.2, abs=0.01)


def test_a_photograph_is_brought_to_the_first_octaves_size() -> None:
    photograph = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    first = initial_image(two_octaves(), 0, photograph)
    assert first.shape == (3, 17, 17) and first.dtype == torch.float32
    same = torch.rand(3, 17, 17, generator=torch.Generator().manual_seed(2))
    assert torch.equal(initial_image(two_octaves(), 0, same), same)


def test_what_is_stored_is_clamped_unless_the_recipe_says_never() -> None:
    pixels = torch.tensor([-0.5, 0.2, 1.5])
    assert clamp_final(two_octaves(clamp="never"), pixels).tolist() == pixels.tolist()
    for clamp in ("end", "every"):
        assert clamp_final(two_octaves(clamp=clamp), pixels).tolist() == pytest.approx([0, 0.2, 1])


def test_only_a_clamp_at_every_step_acts_at_every_step() -> None:
    pixels = torch.full((1, 3, 4, 4), 1.5)
    assert parameterization.blur_and_clamp(two_octaves(clamp="every"), pixels, 0.0).max() == 1
    assert parameterization.blur_and_clamp(two_octaves(clamp="end"), pixels, 0.0).max() == 1.5
    spectrum = torch.randn(1, 3, 4, 3, 2, generator=torch.Generator().manual_seed(0))
    assert parameterization.blur_and_clamp(two_octaves(parameterisation="fourier"), spectrum, 1.0) is spectrum


# ---------------------------------------------------------------- parameterisations


def test_pixels_are_the_image() -> None:
    form, pixels = PARAMETERISATIONS["pixels"](INTERACT), torch.rand(2, 3, 5, 5)
    assert form.to_parameters(pixels) is pixels and form.to_images(pixels) is pixels


@pytest.mark.parametrize("name", ["fourier", "spectrum"])
@pytest.mark.parametrize("size", [1, 2, 7, 16, 33])
def test_a_spectrum_gives_its_image_back(size: int, name: str) -> None:
    form = PARAMETERISATIONS[name](PIXELS)
    given = 0.05 + 0.9 * torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(size))
    parameters = form.to_parameters(given)
    assert parameters.shape == (3, 3, size, size // 2 + 1, 2) and parameters.dtype == torch.float32
    torch.testing.assert_close(form.to_images(parameters), given, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("name", "least"), [("fourier", 0.02), ("spectrum", 0.002)])
def test_images_of_a_spectrum_lie_between_0_and_1(name: str, least: float) -> None:
    form = PARAMETERISATIONS[name](PIXELS)
    beyond = torch.tensor([-3.0, 0.0, 0.4, 1.0, 7.0]).view(1, 1, 1, 5).expand(1, 3, 5, 5)
    made = form.to_images(form.to_parameters(beyond))
    torch.testing.assert_close(made, beyond.clamp(least, 1 - least), rtol=0, atol=1e-4)
    wild = form.to_images(100 * torch.randn(2, 3, 8, 5, 2, generator=torch.Generator().manual_seed(0)))
    assert wild.min() >= 0 and wild.max() <= 1 and wild.isfinite().all()


@pytest.mark.parametrize(("name", "decay"), [("fourier", 1.0), ("spectrum", 1.0), ("spectrum", 1.5), ("spectrum", 0.0)])
def test_steps_of_one_size_fall_with_a_power_of_frequency(name: str, decay: float) -> None:
    form, size = PARAMETERISATIONS[name](replace(PIXELS, decay=decay)), 16
    heights = []
    for frequency in (1, 2, 4):
        parameters = torch.zeros(1, 3, size, size // 2 + 1, 2)
        parameters[0, :, 0, frequency, 0] = 0.001
        heights.append(float((form.to_images(parameters) - 0.5).abs().max()))
    assert heights[0] / heights[1] == pytest.approx(2**decay, rel=0.02)
    assert heights[1] / heights[2] == pytest.approx(2**decay, rel=0.02)


@pytest.mark.parametrize("name", ["fourier", "spectrum"])
def test_a_spectrum_is_differentiable_everywhere(name: str) -> None:
    form = PARAMETERISATIONS[name](PIXELS)
    parameters = form.to_parameters(torch.full((1, 3, 6, 6), 0.5)).requires_grad_(True)
    (gradient,) = torch.autograd.grad(form.to_images(parameters).square().sum(), parameters)
    assert gradient.isfinite().all() and gradient.any()


def test_a_spectrum_has_the_scale_of_the_formula() -> None:
    """One coefficient against the sum of cosines that it stands for, written out."""
    size, form = 8, PARAMETERISATIONS["spectrum"](replace(PIXELS, decay=1.2))
    parameters = torch.zeros(1, 3, size, size // 2 + 1, 2)
    parameters[0, 1, 3, 2, 0] = 0.7
    y, x = np.mgrid[:size, :size]
    frequency = np.hypot(3 / size, 2 / size)
    amplitude = 0.7 * size / (frequency * size) ** 1.2
    wave = 2 * amplitude / size * np.cos(2 * np.pi * (3 * y + 2 * x) / size) / 4
    colour = np.array([0.09, 0.0, -0.09]) / np.sqrt(0.26**2 + 0.27**2 + 0.27**2)
    expected = 1 / (1 + np.exp(-colour[:, None, None] * wave))
    np.testing.assert_allclose(form.to_images(parameters)[0], expected, atol=1e-6)


def test_the_noise_of_a_spectrum_has_the_slope_and_colours_of_photographs() -> None:
    recipe = Recipe("x", (Octave(1, (0.1, 0.1)),), parameterisation="spectrum", std=0.4).resolved(64)
    noise = np.stack([parameterization.initial_image(recipe, seed).numpy() for seed in range(24)]).astype(float)
    assert noise.min() > 0 and noise.max() < 1 and 0.02 < noise.std() < 0.2
    power = (np.abs(np.fft.fft2(noise - noise.mean((2, 3), keepdims=True))) ** 2).mean((0, 1))
    frequency = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64)[None])
    band = (frequency > 0.05) & (frequency < 0.4)
    slope = np.polyfit(np.log(frequency[band]), np.log(power[band]), 1)[0]
    assert slope == pytest.approx(-2, abs=0.15)
    correlations = np.corrcoef(noise.transpose(1, 0, 2, 3).reshape(3, -1))
    assert correlations[0, 1] > 0.8 and correlations[1, 2] > 0.8, "red, green and blue vary together"
    assert torch.equal(parameterization.initial_image(recipe, 3), parameterization.initial_image(recipe, 3))
