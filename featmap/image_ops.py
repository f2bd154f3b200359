"""Blur, resize, jitter and noise; every random number comes from a generator keyed by its purpose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from featmap.image_shape import Size, as_pair, format_size
from featmap.rng import generator


def noise(seed: int, size: Size, purpose: str = "noise", channels: int = 3) -> Tensor:
    """Draw standard normal noise for an image.

    Parameters
    ----------
    seed : int
        Seed of the noise.
    size : int or (int, int)
        Side of the image, or its height and width, in pixels.
    purpose : str, default "noise"
        First part of the generator's key; each purpose has noise of its own.
    channels : int, default 3
        Number of channels C, each with noise of its own.

    Returns
    -------
    Tensor
        C x H x W, float32; channel c depends on (purpose, seed, size, c) only.
    """
    # channels are drawn one after the other, so that the noise of a channel does not depend on how many there are
    draws = generator(purpose, seed, format_size(size)).standard_normal((channels, *as_pair(size)), dtype=np.float32)
    return torch.from_numpy(draws)


def pink_noise(count: int, size: Size, channels: int = 3) -> Tensor:
    """Draw noise images with the 1/f spectrum of natural images.

    The amplitude falls as 1/f, with f in cycles per longer side of the image (frequencies below 1 count as 1, so that
    brightness varies too). The channels are independent; each has values around 0.5 and a standard deviation of 0.2
    about its own mean. The images are the reference for how much a response varies.

    Parameters
    ----------
    count : int
        Number of images.
    size : int or (int, int)
        Side of the images, or height and width, in pixels.
    channels : int, default 3
        Number of channels C.

    Returns
    -------
    Tensor
        count x C x H x W, float32; channel c of image k depends on (size, k, c) only.

    References
    ----------
    Field, D. J. (1987). Relations between the statistics of natural images and the response properties of cortical
    cells. 10.1364/JOSAA.4.002379
    """
    height, width = sides = as_pair(size)
    fy = np.fft.fftfreq(height, 1 / max(sides))[:, None]
    fx = np.fft.rfftfreq(width, 1 / max(sides))[None]
    amplitude = 1 / np.maximum(np.hypot(fy, fx), 1)
    key = format_size(size)
    white = np.stack([generator("pink", key, k).standard_normal((channels, *sides)) for k in range(count)])
    images = np.fft.irfft2(np.fft.rfft2(white) * amplitude, s=sides)
    spread = images.std((2, 3), keepdims=True)
    images = 0.5 + 0.2 * images / np.where(spread > 0, spread, 1)
    return torch.from_numpy(images.astype(np.float32))


def jitter_shift(seed: int, step: int, max_shift: int) -> tuple[int, int]:
    """Draw the shift of an image in one step of a descent.

    Parameters
    ----------
    seed : int
        Seed of the descent.
    step : int
        Number of the step.
    max_shift : int
        Largest shift in pixels, in either direction.

    Returns
    -------
    rows : int
        Shift downwards in pixels, in [-max_shift, max_shift]; depends on (seed, step, max_shift) only.
    columns : int
        Shift to the right, in the same range.
    """
    dy, dx = generator("jitter", seed, step).integers(-max_shift, max_shift + 1, size=2)
    return int(dy), int(dx)


def jitter(images: Tensor, seeds: Sequence[int], step: int, max_shift: int) -> Tensor:
    """Shift each image cyclically by the jitter of its seed and of the step.

    Parameters
    ----------
    images : Tensor
        B x C x H x W.
    seeds : sequence of int
        Seed of each image.
    step : int
        Number of the step.
    max_shift : int
        Largest shift in pixels; 0 leaves the images as they are.

    Returns
    -------
    Tensor
        B x C x H x W; what leaves an image on one side enters it on the other.
    """
    if max_shift == 0:
        return images
    if len(set(seeds)) == 1:
        return torch.roll(images, jitter_shift(seeds[0], step, max_shift), dims=(2, 3))
    shifts = {s: jitter_shift(s, step, max_shift) for s in set(seeds)}
    return torch.stack([torch.roll(image, shifts[s], dims=(1, 2)) for image, s in zip(images, seeds, strict=True)])


@lru_cache(maxsize=64)
def constant_tensor(values: tuple[Any, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Make a constant tensor, copied to its device only once.

    The result is cached: copying it in every step would make the loop wait for the GPU.

    Parameters
    ----------
    values : tuple
        The numbers, nested for more than one axis.
    device : torch.device
        Device of the tensor.
    dtype : torch.dtype
        Type of the tensor.

    Returns
    -------
    Tensor
        The cached tensor; it must not be changed in place.
    """
    with torch.inference_mode(False):  # the cached tensor outlives the caller's inference mode
        return torch.tensor(values, device=device, dtype=dtype)


def blur(images: Tensor, sigma: float) -> Tensor:
    """Blur images with a Gaussian kernel of 3 x 3 pixels and reflected borders.

    The same as torchvision's `gaussian_blur` with a kernel size of 3.

    Parameters
    ----------
    images : Tensor
        B x C x H x W.
    sigma : float
        Standard deviation of the Gaussian in pixels; 0 leaves the images as they are.

    Returns
    -------
    Tensor
        B x C x H x W.

    References
    ----------
    The article, section "Feature Visualization from First Principles" (kernel 3).
    """
    if sigma <= 0:
        return images
    side = math.exp(-0.5 / sigma**2)
    centre, edge = 1 / (1 + 2 * side), side / (1 + 2 * side)
    for dim in (2, 3):
        if images.shape[dim] == 1:  # an axis of one pixel has no neighbour to reflect
            continue
        padded = F.pad(images, (0, 0, 1, 1) if dim == 2 else (1, 1, 0, 0), mode="reflect")
        n = images.shape[dim]
        images = padded.narrow(dim, 1, n) * centre + (padded.narrow(dim, 0, n) + padded.narrow(dim, 2, n)) * edge
    return images


def resize(images: Tensor, size: Size) -> Tensor:
    """Resize images bilinearly, with antialiasing where they shrink.

    Parameters
    ----------
    images : Tensor
        B x C x H x W.
    size : int or (int, int)
        New side, or height and width, in pixels.

    Returns
    -------
    Tensor
        B x C x H x W, on the device of `images`.
    """
    sides = as_pair(size)
    if images.shape[2:] == sides:
        return images
    if images.device.type == "mps":  # Metal has no antialiased resize
        return resize(images.cpu(), size).to(images.device)
    return F.interpolate(images, sides, mode="bilinear", align_corners=False, antialias=True)
