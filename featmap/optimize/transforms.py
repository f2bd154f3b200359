"""Random rotation, scale, shift and flip of the images of one step, in one resampling whose gradient is repeatable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from featmap.optimize.schedule import Transform
from featmap.rng import generator


@dataclass(frozen=True)
class Affine:
    """The map from a position of the transformed image to the position it reads.

    Positions run from -1 to 1 over the image, from the outer edge of the first pixel to that of the last.

    Parameters
    ----------
    matrix : tuple of tuple of float
        2 x 2; row 0 gives x (to the right), row 1 gives y (downwards).
    offset : tuple of float
        x and y that the centre of the transformed image reads.
    """

    matrix: tuple[tuple[float, float], tuple[float, float]]
    offset: tuple[float, float]


def draw_affine(transform: Transform, seed: int, step: int) -> Affine:
    """Draw the transform of one step.

    Parameters
    ----------
    transform : Transform
        Ranges to draw from; every range is uniform, but the scale, whose logarithm is.
    seed : int
        Seed of the descent.
    step : int
        Number of the step.

    Returns
    -------
    Affine
        The map; it depends on (transform, seed, step) only.
    """
    rng = generator("transform", seed, step)
    # All numbers are drawn always, so that changing one range leaves the others' draws as they are.
    angle, scale, flip = rng.uniform(-1, 1), rng.uniform(0, 1), rng.uniform(0, 1)
    shift = rng.uniform(-1, 1, size=2)
    low, high = transform.scale
    radians = math.radians(transform.rotation) * angle
    size = low * (high / low) ** scale
    mirror = -1.0 if transform.flip and flip < 0.5 else 1.0
    cos, sin = math.cos(radians) / size, math.sin(radians) / size
    # a shift by the whole side is 2 in these coordinates
    offset = 2 * transform.shift * shift
    return Affine(((mirror * cos, -mirror * sin), (sin, cos)), (float(offset[0]), float(offset[1])))


def apply_transform(images: Tensor, seeds: Sequence[int], step: int, transform: Transform | None) -> Tensor:
    """Transform each image by the draw of its seed and of the step.

    Parameters
    ----------
    images : Tensor
        B x C x H x W.
    seeds : sequence of int
        Seed of each image.
    step : int
        Number of the step.
    transform : Transform or None
        Ranges of the transform; None leaves the images as they are.

    Returns
    -------
    Tensor
        B x C x H x W; read bilinearly, and beyond the edges in the mirror image.
    """
    if transform is None:
        return images
    affines = [draw_affine(transform, seed, step) for seed in seeds]
    if images.device.type == "cpu":
        height, width = images.shape[2:]
        grids = {affine: _sampling_grid(affine, height, width) for affine in set(affines)}
        grid = torch.stack([grids[a] for a in affines]).to(images.dtype)
        return functional.grid_sample(images, grid, "bilinear", "reflection", align_corners=False)
    return resample_by_table(images, affines)


def resample_by_table(images: Tensor, affines: Sequence[Affine]) -> Tensor:
    """Resample images by tables of positions and weights.

    The same as `torch.nn.functional.grid_sample` with bilinear interpolation and reflection, but for rounding. That
    function's backward pass adds in an arbitrary order on a GPU; this one's order is fixed.

    Parameters
    ----------
    images : Tensor
        B x C x H x W.
    affines : sequence of Affine
        Map of each image.

    Returns
    -------
    Tensor
        B x C x H x W.
    """
    height, width = images.shape[2:]
    if len(set(affines)) == 1:
        resampled: Tensor = _TableResample.apply(images, *_device_tables(affines[0], height, width, images.device))
        return resampled
    rows = [
        _TableResample.apply(image[None], *_device_tables(affine, height, width, images.device))
        for image, affine in zip(images, affines, strict=True)
    ]
    return torch.cat(rows)


class _TableResample(torch.autograd.Function):
    """A sparse linear map of an image's pixels, and its transpose, as sums over tables."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, taps: Tensor, weights: Tensor, back_taps: Tensor, back_weights: Tensor
    ) -> Tensor:
        ctx.save_for_backward(back_taps, back_weights)
        return _gather_sum(images, taps, weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        return _gather_sum(grad, *ctx.saved_tensors), None, None, None, None


def _gather_sum(images: Tensor, taps: Tensor, weights: Tensor) -> Tensor:
    """Sum weighted pixels: entry k of the tables (K x HW) is the k-th summand of each pixel."""
    flat = images.flatten(2)
    total = torch.zeros_like(flat)
    for tap, weight in zip(taps, weights, strict=True):  # one summand after the other: a fixed order, little memory
        total = total + flat[:, :, tap] * weight.to(flat.dtype)
    return total.view(images.shape)


def _sampling_grid(affine: Affine, height: int, width: int) -> Tensor:
    """Compute the positions (x, y) that the pixels of a transformed image read, H x W x 2, in [-1, 1] inside."""
    y = ((np.arange(height) + 0.5) * 2 / height - 1)[:, None]
    x = ((np.arange(width) + 0.5) * 2 / width - 1)[None]
    (a, b), (c, d) = affine.matrix
    grid = np.stack([a * x + b * y + affine.offset[0], c * x + d * y + affine.offset[1]], axis=2)
    return torch.from_numpy(grid.astype(np.float32))


def _reflect(position: np.ndarray, count: int) -> np.ndarray:
    """Mirror pixel positions at the outer edges of the image, then clip them to the centres of the last pixels."""
    position = np.mod(position + 0.5, 2 * count)
    return np.clip(np.minimum(position, 2 * count - position) - 0.5, 0, count - 1)


@lru_cache(maxsize=256)
def _tables(affine: Affine, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the tables of the resampling (4 x HW) and of its transpose (K x HW) on the CPU."""
    grid = _sampling_grid(affine, height, width).numpy().astype(np.float64).reshape(-1, 2)
    x = _reflect((grid[:, 0] + 1) * width / 2 - 0.5, width)
    y = _reflect((grid[:, 1] + 1) * height / 2 - 0.5, height)
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    fx, fy = x - left, y - top
    taps = np.stack([top * width + left, top * width + right, bottom * width + left, bottom * width + right])
    weights = np.stack([(1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx])
    back_taps, back_weights = _transpose(taps, weights, height * width)
    with torch.inference_mode(False):  # the cached tensors outlive the context of the first call
        return (
            torch.from_numpy(taps),
            torch.from_numpy(weights.astype(np.float32)),
            torch.from_numpy(back_taps),
            torch.from_numpy(back_weights.astype(np.float32)),
        )


def _transpose(taps: np.ndarray, weights: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute the tables of the transposed map; pixels that are read less often get entries of weight 0."""
    target = np.broadcast_to(np.arange(taps.shape[1]), taps.shape).ravel()
    source, weight = taps.ravel(), weights.ravel()
    order = np.argsort(source, kind="stable")
    source, target, weight = source[order], target[order], weight[order]
    starts = np.searchsorted(source, np.arange(count))
    rank = np.arange(len(source)) - starts[source]
    back_taps = np.zeros((int(rank.max()) + 1, count), dtype=np.int64)
    back_weights = np.zeros(back_taps.shape)
    back_taps[rank, source], back_weights[rank, source] = target, weight
    return back_taps, back_weights


@lru_cache(maxsize=16)
def _device_tables(affine: Affine, height: int, width: int, device: torch.device) -> tuple[Tensor, ...]:
    """Put the tables of a resampling on a device."""
    return tuple(table.to(device) for table in _tables(affine, height, width))
