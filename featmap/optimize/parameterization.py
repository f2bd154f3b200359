"""Image parameterisations: what the descent moves, and the B x 3 x H x W image that it stands for."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from featmap import image_ops
from featmap.optimize.recipe import Recipe

# square root of the colour covariance of natural images, and its use, as in Olah et al. 2017 (10.23915/distill.00007)
_COLOUR = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
_COLOUR = _COLOUR / torch.linalg.vector_norm(_COLOUR, dim=0).max()
_COLOURS = tuple(map(tuple, _COLOUR.tolist()))


class Pixels:
    """The image itself."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def start(self, images: Tensor) -> Tensor:
        """Return the parameters of these images (B x 3 x H x W)."""
        return images

    def image(self, parameters: Tensor) -> Tensor:
        """Return the images of these parameters."""
        return parameters


class Fourier:
    """A decorrelated spectrum, divided by frequency, through a sigmoid: the image always lies in [0, 1]."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def start(self, images: Tensor) -> Tensor:
        """Return the real spectrum parameters, B x 3 x H x (W // 2 + 1) x 2, of these images."""
        logit = torch.logit(images.clamp(0.02, 0.98))
        mixed = torch.einsum("ij,bjhw->bihw", torch.linalg.inv(_COLOUR).to(images), logit)
        spectrum = torch.fft.rfft2(mixed, norm="ortho")
        return torch.view_as_real(spectrum / _scale(images.shape[2], images.device)).contiguous()

    def image(self, parameters: Tensor) -> Tensor:
        """Return the images of these parameters, B x 3 x H x W in (0, 1)."""
        size = parameters.shape[2]
        spectrum = torch.view_as_complex(parameters) * _scale(size, parameters.device)
        mixed = torch.fft.irfft2(spectrum, s=(size, size), norm="ortho")
        logits = torch.einsum("ij,bjhw->bihw", image_ops.on_device(_COLOURS, mixed.device, mixed.dtype), mixed)
        # row by row: the last elements of a batch are rounded otherwise than those that fill a vector register
        return torch.stack([torch.sigmoid(row) for row in logits])


@lru_cache(maxsize=16)
def _scale(size: int, device: torch.device) -> Tensor:
    """Return what each frequency of a spectrum is multiplied by, computed on the CPU and put on its device once."""
    with torch.inference_mode(False):
        fy, fx = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None]
        frequency = torch.sqrt(fx * fx + fy * fy).clamp(min=1 / size)
        return (1 / frequency / math.sqrt(size)).to(device)


PARAMETERISATIONS: dict[str, type[Pixels] | type[Fourier]] = {"pixels": Pixels, "fourier": Fourier}


def null_images(recipe: Recipe, seed: int, start: Tensor | None = None) -> Tensor:
    """Return the image (3 x H x W) that the recipe makes when the gradient is zero.

    No network is needed: without a gradient the steps move nothing, so only blur, resize and clamp act.
    """
    return null_frames(recipe, seed, start, every=recipe.steps)[-1]


def null_frames(recipe: Recipe, seed: int, start: Tensor | None = None, every: int = 1) -> list[Tensor]:
    """Return the frames (3 x h x w, at the size they have then) of a descent whose gradient is zero.

    As `featmap.optimize.descent.Descent.frames`: at the start, after every so many steps, and at the end
    (`null_images`).
    """
    image, found, done = first_image(recipe, seed, start)[None], list[Tensor](), 0
    form = PARAMETERISATIONS[recipe.parameterisation](recipe)
    for octave in recipe.octaves:
        assert isinstance(octave.size, int)
        parameters = form.start(image_ops.resize(image, octave.size))
        if not found:
            found.append(finished(recipe, form.image(parameters))[0])
        for i in range(octave.steps):
            parameters = after_step(recipe, parameters, between(octave.sigma, i, octave.steps))
            done += 1
            if done % every == 0 or done == recipe.steps:
                found.append(finished(recipe, form.image(parameters))[0])
        image = form.image(parameters)
    return found


def first_image(recipe: Recipe, seed: int, start: Tensor | None = None) -> Tensor:
    """Return where the descent starts: the noise of (seed, size), or a photograph (3 x H x W in [0, 1])."""
    size = recipe.sizes[0]
    if start is not None:
        return image_ops.resize(start[None].float(), size)[0]
    return recipe.mean + recipe.std * image_ops.noise(seed, size)


def perturbed_image(recipe: Recipe, seed: int, share: float = 0.02) -> Tensor:
    """Return the noise that a descent starts from plus other noise of `share` times its deviation."""
    return first_image(recipe, seed) + share * recipe.std * image_ops.noise(seed, recipe.sizes[0], "perturbation")


def after_step(recipe: Recipe, parameters: Tensor, sigma: float) -> Tensor:
    """Return the parameters after what follows each step: blur and, if the recipe says so, the clamp."""
    if recipe.parameterisation != "pixels":
        return parameters
    parameters = image_ops.blur(parameters, sigma)
    return parameters.clamp(0, 1) if recipe.clamp == "every" else parameters


def finished(recipe: Recipe, images: Tensor) -> Tensor:
    """Return the images as they are stored."""
    return images if recipe.clamp == "never" else images.clamp(0, 1)


def between(ends: tuple[float, float], i: int, steps: int) -> float:
    """Return the value of a schedule at step i of `steps`."""
    return ends[0] * (steps - i) / steps + ends[1] * i / steps
