"""Blur, resize, jitter and noise. Every random number comes from a generator made here, for its purpose."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def generator(*key: object) -> np.random.Generator:
    """Return the random generator that belongs to `key`, the same on every machine.

    NumPy's rather than torch's: its normal deviates do not depend on the processor's vector width.
    """
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


def noise(seed: int, size: int, purpose: str = "noise") -> Tensor:
    """Return standard normal noise, 3 x size x size, that depends on (seed, size) and its purpose only."""
    return torch.from_numpy(generator(purpose, seed, size).standard_normal((3, size, size), dtype=np.float32))


def pink(count: int, size: int) -> Tensor:
    """Return `count` images with the spectrum of natural ones, count x 3 x size x size; depends on size only.

    Their amplitude falls as 1/f (f in cycles an image, 1 below 1, so that brightness varies too), the three channels
    are drawn apart, each about 0.5 and with a standard deviation of 0.2 about its own mean. They are the yardstick
    of what varies by how much (Field, 1987, 10.1364/JOSAA.4.002379).
    """
    fy = np.fft.fftfreq(size, 1 / size)[:, None]
    fx = np.fft.rfftfreq(size, 1 / size)[None]
    amplitude = 1 / np.maximum(np.hypot(fy, fx), 1)
    white = np.stack([generator("pink", size, k).standard_normal((3, size, size)) for k in range(count)])
    images = np.fft.irfft2(np.fft.rfft2(white) * amplitude, s=(size, size))
    spread = images.std((2, 3), keepdims=True)
    images = 0.5 + 0.2 * images / np.where(spread > 0, spread, 1)
    return torch.from_numpy(images.astype(np.float32))


def shift(seed: int, step: int, most: int) -> tuple[int, int]:
    """Return the jitter of a step, rows and columns in [-most, most]; depends on (seed, step) only."""
    dy, dx = generator("jitter", seed, step).integers(-most, most + 1, size=2)
    return int(dy), int(dx)


def jitter(images: Tensor, seeds: Sequence[int], step: int, most: int) -> Tensor:
    """Return the images (B x 3 x H x W), each rolled by the jitter of its seed and of the step."""
    if most == 0:
        return images
    if len(set(seeds)) == 1:
        return torch.roll(images, shift(seeds[0], step, most), dims=(2, 3))
    shifts = {s: shift(s, step, most) for s in set(seeds)}
    return torch.stack([torch.roll(image, shifts[s], dims=(1, 2)) for image, s in zip(images, seeds, strict=True)])


@lru_cache(maxsize=64)
def on_device(values: tuple[Any, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return numbers as a tensor that is put on its device once: each time would let a GPU's loop wait."""
    with torch.inference_mode(False):  # the tensor outlives the context that asked first
        return torch.tensor(values, device=device, dtype=dtype)


def blur(images: Tensor, sigma: float) -> Tensor:
    """Return the images under a 3-tap Gaussian with reflected borders, as torchvision's `gaussian_blur` has it.

    Parameters
    ----------
    images : B x 3 x H x W
    sigma : in pixels; 0 leaves the images as they are

    Source: the article, section "Feature Visualization from First Principles" (kernel 3).
    """
    if sigma <= 0:
        return images
    side = math.exp(-0.5 / sigma**2)
    centre, edge = 1 / (1 + 2 * side), side / (1 + 2 * side)
    for dim in (2, 3):
        if images.shape[dim] == 1:  # a single pixel has nothing to be reflected
            continue
        padded = F.pad(images, (0, 0, 1, 1) if dim == 2 else (1, 1, 0, 0), mode="reflect")
        n = images.shape[dim]
        images = padded.narrow(dim, 1, n) * centre + (padded.narrow(dim, 0, n) + padded.narrow(dim, 2, n)) * edge
    return images


def resize(images: Tensor, size: int) -> Tensor:
    """Return the images at size x size (bilinear, antialiased when made smaller)."""
    if images.shape[2:] == (size, size):
        return images
    if images.device.type == "mps":  # Metal has no antialiased resize
        return resize(images.cpu(), size).to(images.device)
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)
