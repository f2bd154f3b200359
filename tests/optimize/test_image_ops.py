from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st

from featmap import image_ops, rng

NOISE_0_2 = [-0.6581084, 1.0863464, 1.6365795, -1.9298699]
NOISE_999_1 = [1.961418, -0.2176866, -1.2284524]

repeatable = settings(derandomize=True, deadline=None, max_examples=60)


def some_images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.4, 0.8, 1.0, 1.1, 1.5, 2.4, 20.0])
@pytest.mark.parametrize("size", [2, 3, 17])
def test_blur_is_torchvisions(sigma: float, size: int) -> None:
    images = some_images(2, 3, size, size)
    expected = TF.gaussian_blur(images, [3, 3], [sigma, sigma])
    torch.testing.assert_close(image_ops.blur(images, sigma), expected, rtol=0, atol=2e-6)


def test_blur_of_rectangles_and_of_float64() -> None:
    images = some_images(1, 3, 5, 9).double()
    expected = TF.gaussian_blur(images, [3, 3], [0.7, 0.7])
    torch.testing.assert_close(image_ops.blur(images, 0.7), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("sigma", [0.0, -1.0])
def test_a_sigma_of_0_or_less_returns_the_images_themselves(sigma: float) -> None:
    images = some_images(1, 3, 4, 4)
    assert image_ops.blur(images, sigma) is images


def test_blur_keeps_a_constant_and_the_given_images() -> None:
    images = some_images(2, 3, 8, 8)
    before = images.clone()
    image_ops.blur(images, 1.0)
    assert torch.equal(images, before)
    flat = torch.full((1, 3, 6, 6), 0.37)
    torch.testing.assert_close(image_ops.blur(flat, 1.3), flat, rtol=0, atol=1e-7)


@pytest.mark.parametrize("rows", [1, 2, 16])
def test_a_rows_blur_does_not_depend_on_the_others(rows: int) -> None:
    images = some_images(rows, 3, 19, 19)
    together = image_ops.blur(images, 0.9)
    assert all(torch.equal(together[k : k + 1], image_ops.blur(images[k : k + 1], 0.9)) for k in range(rows))


def test_noise_depends_on_seed_and_size_only() -> None:
    first = image_ops.noise(3, 12)
    torch.manual_seed(77)
    np.random.seed(77)  # noqa: NPY002 - the global state must not matter
    random.seed(77)
    assert torch.equal(first, image_ops.noise(3, 12))
    assert first.shape == (3, 12, 12) and first.dtype == torch.float32
    assert not torch.equal(first, image_ops.noise(4, 12))
    assert not torch.equal(first, image_ops.noise(3, 13)[:, :12, :12])
    assert not torch.equal(image_ops.noise(1, 21), image_ops.noise(12, 1).expand(3, 21, 21))


def test_noise_touches_no_global_state() -> None:
    torch_before, numpy_before, python_before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    image_ops.noise(0, 8)
    image_ops.jitter_shift(0, 1, 4)
    assert torch.equal(torch_before, torch.get_rng_state())
    assert np.array_equal(numpy_before[1], np.random.get_state()[1])  # noqa: NPY002
    assert python_before == random.getstate()


def test_noise_is_standard_normal() -> None:
    values = image_ops.noise(0, 128)
    assert abs(float(values.mean())) < 4 / (3 * 128 * 128) ** 0.5
    assert abs(float(values.std()) - 1) < 0.01
    assert 3.5 < float(values.abs().max()) < 7


def test_noise_is_the_same_on_every_machine() -> None:
    # written down from this function (NumPy 2, PCG64, SHA-256 of "noise/0/2" and "noise/999/1"), x86-64
    assert image_ops.noise(0, 2)[0].flatten().tolist() == pytest.approx(NOISE_0_2, abs=1e-6)
    assert image_ops.noise(999, 1).flatten().tolist() == pytest.approx(NOISE_999_1, abs=1e-6)


def test_generators_of_other_keys_are_others() -> None:
    keys = [("noise", 0, 8), ("noise", 0, 9), ("jitter", 0, 8), ("noise", 8, 0), ("noise", "0/8"), ("noise", 1, 8)]
    draws = [float(rng.generator(*k).random()) for k in keys]
    assert draws[0] == draws[4], "the key is its text"
    assert len(set(draws)) == len(keys) - 1


@given(st.integers(0, 2**31 - 1), st.integers(0, 1000), st.integers(1, 30))
@repeatable
def test_jitter_depends_on_seed_and_step_only(seed: int, step: int, most: int) -> None:
    dy, dx = image_ops.jitter_shift(seed, step, most)
    assert -most <= dy <= most and -most <= dx <= most
    assert (dy, dx) == image_ops.jitter_shift(seed, step, most)


def test_every_shift_occurs() -> None:
    seen = {image_ops.jitter_shift(0, step, 1) for step in range(200)}
    assert seen == {(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
    assert [image_ops.jitter_shift(0, s, 9) for s in range(20)] != [image_ops.jitter_shift(1, s, 9) for s in range(20)]


def test_jitter_rolls_every_row_alike() -> None:
    images = some_images(3, 3, 7, 7)
    dy, dx = image_ops.jitter_shift(5, 11, 3)
    moved = image_ops.jitter(images, [5] * len(images), 11, 3)
    for y in range(7):
        for x in range(7):
            assert torch.equal(moved[:, :, (y + dy) % 7, (x + dx) % 7], images[:, :, y, x])
    assert image_ops.jitter(images, [5] * len(images), 11, 0) is images


def test_resize_to_the_same_size_is_nothing() -> None:
    images = some_images(2, 3, 9, 9)
    assert image_ops.resize(images, 9) is images


@pytest.mark.parametrize(("old", "new"), [(9, 12), (299, 340), (5, 31)])
def test_enlarging_is_plain_bilinear(old: int, new: int) -> None:
    images = some_images(1, 3, old, old).double()  # float32 rounds the positions of the taps
    plain = F.interpolate(images, (new, new), mode="bilinear", align_corners=False)
    torch.testing.assert_close(image_ops.resize(images, new), plain, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("old", "new"), [(12, 9), (40, 7), (20, 33)])
def test_resize_is_torchvisions(old: int, new: int) -> None:
    images = some_images(2, 3, old, old)
    expected = TF.resize(images, [new, new], antialias=True)
    torch.testing.assert_close(image_ops.resize(images, new), expected, rtol=0, atol=1e-6)


def test_resize_takes_rectangles_and_keeps_a_constant() -> None:
    assert image_ops.resize(some_images(1, 3, 6, 10), 8).shape == (1, 3, 8, 8)
    flat = torch.full((1, 3, 11, 11), 0.37)
    for size in (5, 11, 17):
        resized = image_ops.resize(flat, size)
        torch.testing.assert_close(resized, torch.full_like(resized, 0.37), rtol=0, atol=1e-6)
