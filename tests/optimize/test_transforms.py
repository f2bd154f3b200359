"""Random transforms: what they read, what they depend on, and their gradients."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featmap.errors import RecipeError
from featmap.optimize.recipe import PIXELS, Recipe
from featmap.optimize.schedule import Octave, Transform
from featmap.optimize.transforms import Affine, apply_transform, draw_affine, resample_by_table

WIDE = Transform(rotation=15, scale=(0.8, 1.6), shift=0.1, flip=True)
IDENTITY = Affine(((1.0, 0.0), (0.0, 1.0)), (0.0, 0.0))
ANGLES = st.floats(-3.2, 3.2)
SIDES = st.integers(2, 12)


def images(count: int = 3, height: int = 9, width: int = 9, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((count, 3, height, width), dtype=np.float32))


def slow_resample(image: np.ndarray, affine: Affine) -> np.ndarray:
    """Read every pixel by hand: mirror the position at the outer edges, then interpolate bilinearly."""
    channels, height, width = image.shape
    made = np.zeros(image.shape)
    for i, j in itertools.product(range(height), range(width)):
        x, y = 2 * (j + 0.5) / width - 1, 2 * (i + 0.5) / height - 1
        (a, b), (c, d) = affine.matrix
        u, v = a * x + b * y + affine.offset[0], c * x + d * y + affine.offset[1]
        column, row = (u + 1) * width / 2, (v + 1) * height / 2
        while not 0 <= column <= width:
            column = -column if column < 0 else 2 * width - column
        while not 0 <= row <= height:
            row = -row if row < 0 else 2 * height - row
        column, row = np.clip(column - 0.5, 0, width - 1), np.clip(row - 0.5, 0, height - 1)
        left, top = int(column), int(row)
        right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
        fx, fy = column - left, row - top
        for k in range(channels):
            above = (1 - fx) * image[k, top, left] + fx * image[k, top, right]
            below = (1 - fx) * image[k, bottom, left] + fx * image[k, bottom, right]
            made[k, i, j] = (1 - fy) * above + fy * below
    return made


def affine_of(angle: float, size: float, dx: float, dy: float) -> Affine:
    cos, sin = np.cos(angle) / size, np.sin(angle) / size
    return Affine(((float(cos), float(-sin)), (float(sin), float(cos))), (dx, dy))


@settings(max_examples=30, deadline=None)
@given(ANGLES, st.floats(0.4, 2.5), st.floats(-1, 1), st.floats(-1, 1), SIDES, SIDES)
def test_the_table_reads_what_a_loop_over_pixels_reads(
    angle: float, size: float, dx: float, dy: float, height: int, width: int
) -> None:
    batch, affine = images(2, height, width).double(), affine_of(angle, size, dx, dy)
    expected = np.stack([slow_resample(image, affine) for image in batch.numpy()])
    np.testing.assert_allclose(resample_by_table(batch, [affine] * 2), expected, atol=2e-5)


@pytest.mark.parametrize("step", range(4))
def test_the_table_equals_the_grid_of_torch_by_norm(step: int) -> None:
    batch = images(2, 32, 32)
    by_grid = apply_transform(batch, [5, 6], step, WIDE)
    by_table = resample_by_table(batch, [draw_affine(WIDE, seed, step) for seed in (5, 6)])
    assert torch.linalg.vector_norm(by_grid - by_table) < 1e-5 * torch.linalg.vector_norm(by_grid)


def test_the_tables_gradient_is_that_of_finite_differences() -> None:
    batch = images(1, 5, 6).double().requires_grad_(True)
    affine = affine_of(0.4, 0.7, 0.3, -0.2)
    # the tables hold float32 weights, so the map itself is exact and only the differences are rounded
    assert torch.autograd.gradcheck(lambda x: resample_by_table(x, [affine]), (batch,), eps=1e-3, atol=1e-6)


def test_the_identity_leaves_every_pixel_as_it_is() -> None:
    batch = images()
    torch.testing.assert_close(resample_by_table(batch, [IDENTITY] * 3), batch, atol=1e-6, rtol=0)
    torch.testing.assert_close(apply_transform(batch, [0, 1, 2], 0, Transform()), batch, atol=1e-6, rtol=0)
    assert apply_transform(batch, [0, 1, 2], 0, None) is batch


def test_a_flip_exchanges_left_and_right_in_about_half_of_the_steps() -> None:
    batch = images(1)
    flipped = 0
    for step in range(60):
        made = apply_transform(batch, [3], step, Transform(flip=True))
        same, mirrored = torch.allclose(made, batch, atol=1e-5), torch.allclose(made, batch.flip(3), atol=1e-5)
        assert same != mirrored
        flipped += mirrored
    assert 15 <= flipped <= 45


def test_a_quarter_turn_is_a_rotation_of_the_array() -> None:
    batch = images(1)
    turned = resample_by_table(batch, [affine_of(np.pi / 2, 1, 0, 0)])
    assert torch.allclose(turned, torch.rot90(batch, 1, (2, 3)), atol=1e-5)


def test_draws_stay_in_their_ranges_and_fill_them() -> None:
    drawn = [draw_affine(WIDE, 0, step) for step in range(300)]
    sizes = np.array([1 / np.hypot(*a.matrix[1]) for a in drawn])
    angles = np.array([np.degrees(np.arctan2(a.matrix[1][0], a.matrix[1][1])) for a in drawn])
    shifts = np.array([a.offset for a in drawn])
    assert 0.8 <= sizes.min() < 0.82 and 1.55 < sizes.max() <= 1.6
    assert -15 <= angles.min() < -14 and 14 < angles.max() <= 15
    assert np.abs(shifts).max() <= 0.2 and np.abs(shifts).max() > 0.19  # a tenth of the side is 0.2 here
    assert np.median(np.log(sizes)) == pytest.approx(np.log(0.8 * 1.6) / 2, abs=0.05)


def test_a_draw_depends_on_seed_and_step_only_and_ranges_are_independent() -> None:
    assert draw_affine(WIDE, 1, 2) == draw_affine(WIDE, 1, 2)
    assert len({draw_affine(WIDE, seed, step) for seed in range(3) for step in range(3)}) == 9
    still = draw_affine(Transform(rotation=15), 1, 2)
    assert still.matrix[1][0] == pytest.approx(draw_affine(Transform(15, shift=0.3, flip=True), 1, 2).matrix[1][0])


def test_an_images_bits_do_not_depend_on_its_neighbours() -> None:
    batch, seeds = images(7, 31, 31), [4, 9, 4, 4, 1, 9, 4]
    together = apply_transform(batch, seeds, 3, WIDE)
    for k, seed in enumerate(seeds):
        pair = apply_transform(torch.stack([batch[k], batch[0]]), [seed, 4], 3, WIDE)
        assert torch.equal(pair[0], together[k])


@pytest.mark.parametrize(
    "transform",
    [
        Transform(rotation=-1),
        Transform(rotation=181),
        Transform(scale=(0.0, 1.0)),
        Transform(scale=(1.2, 1.0)),
        Transform(scale=(1.0, 11.0)),
        Transform(shift=0.6),
        Transform(shift=float("nan")),
    ],
)
def test_ranges_that_cannot_be_drawn_from_are_refused(transform: Transform) -> None:
    with pytest.raises(RecipeError, match="give a rotation from 0 to 180"):
        Recipe("x", (Octave(1, (0.1, 0.1)),), transform=transform)


def test_a_recipe_with_a_transform_is_rebuilt_from_its_identity() -> None:
    recipe = Recipe(
        "x", (Octave(3, (0.1, 0.1)),), transform=WIDE, decay=1.2, contrast=0.5, spread=1.0, parameterisation="spectrum"
    ).resolved(32)
    assert Recipe.from_identity(recipe.identity()) == recipe
    assert not {"transform", "decay", "contrast", "spread"} & set(PIXELS.resolved(32).identity())
