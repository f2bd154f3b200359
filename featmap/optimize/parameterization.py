"""Image parameterisations, the optimisers that change them, and the initial, null and stored images of a recipe."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from featmap import image_ops
from featmap.image_shape import Size, as_pair
from featmap.optimize.recipe import Recipe
from featmap.optimize.schedule import interpolate_schedule

ADAM_EPS = 1e-8
"""Floor of Adam's denominator, as a share of the image's largest: the constant of Kingma & Ba (2015), made relative."""
# Square root of the colour covariance of natural images, normalised and applied as in Olah et al., "Feature
# Visualization", Distill, 2017, doi:10.23915/distill.00007
_COLOUR = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
_COLOUR = _COLOUR / torch.linalg.vector_norm(_COLOUR, dim=0).max()
_COLOURS = tuple(map(tuple, _COLOUR.tolist()))


class Pixels:
    """Parameterise an image by its own pixels.

    Parameters
    ----------
    recipe : Recipe
        The resolved recipe.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def to_parameters(self, images: Tensor) -> Tensor:
        """Convert images to parameters.

        Parameters
        ----------
        images : Tensor
            B x C x H x W.

        Returns
        -------
        Tensor
            The images themselves.
        """
        return images

    def to_images(self, parameters: Tensor) -> Tensor:
        """Convert parameters to images.

        Parameters
        ----------
        parameters : Tensor
            B x C x H x W.

        Returns
        -------
        Tensor
            The parameters themselves.
        """
        return parameters


class Fourier:
    """Parameterise an image by its spectrum.

    The spectrum, in decorrelated colours for an image of three channels, is divided by frequency and transformed to an
    image, which a sigmoid maps to (0, 1).

    Parameters
    ----------
    recipe : Recipe
        The resolved recipe.

    References
    ----------
    C. Olah, A. Mordvintsev and L. Schubert, "Feature Visualization", Distill, 2017, doi:10.23915/distill.00007
    """

    margin, gain = 0.02, 1.0
    """Pixels are clamped to [margin, 1 - margin] before the sigmoid is inverted; its argument is divided by `gain`."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def scale(self, height: int, width: int, device: torch.device) -> Tensor:
        """Compute the factor of each frequency of a spectrum.

        Parameters
        ----------
        height, width : int
            Size of the image in pixels.
        device : torch.device
            Device of the result.

        Returns
        -------
        Tensor
            H x (W // 2 + 1).
        """
        return _frequency_scale(height, width, device)

    def to_parameters(self, images: Tensor) -> Tensor:
        """Convert images to the parameters of their spectrum.

        Parameters
        ----------
        images : Tensor
            B x C x H x W; clamped to [margin, 1 - margin], where the sigmoid can be inverted.

        Returns
        -------
        Tensor
            Real and imaginary parts, B x C x H x (W // 2 + 1) x 2.
        """
        # row by row: the last elements of a batch, which do not fill a vector register, are rounded differently
        inside = images.clamp(self.margin, 1 - self.margin)
        logit = self.gain * torch.stack([torch.logit(row.contiguous()) for row in inside])
        if images.shape[1] == 3:
            logit = torch.einsum("ij,bjhw->bihw", torch.linalg.inv(_COLOUR).to(images), logit)
        scale = self.scale(images.shape[2], images.shape[3], images.device)
        return torch.view_as_real(torch.fft.rfft2(logit, norm="ortho") / scale).contiguous()

    def to_images(self, parameters: Tensor) -> Tensor:
        """Convert the parameters of a spectrum to images.

        Parameters
        ----------
        parameters : Tensor
            Real and imaginary parts, B x C x H x (W // 2 + 1) x 2.

        Returns
        -------
        Tensor
            B x C x H x W in (0, 1).
        """
        height, width = image_sides(self.recipe, parameters)
        spectrum = torch.view_as_complex(parameters) * self.scale(height, width, parameters.device)
        logits = torch.fft.irfft2(spectrum, s=(height, width), norm="ortho") / self.gain
        if logits.shape[1] == 3:
            colours = image_ops.constant_tensor(_COLOURS, logits.device, logits.dtype)
            logits = torch.einsum("ij,bjhw->bihw", colours, logits)
        # row by row, as above; the strides of a row depend on the size of the batch, and the last elements on these
        return torch.stack([torch.sigmoid(row.contiguous()) for row in logits])


class Spectrum(Fourier):
    """Parameterise an image by a spectrum of the scale of natural images.

    The image is ``sigmoid(colour @ x / 4)``, where x is the inverse orthonormal transform of ``parameters * s /
    f**decay``, with s the geometric mean of height and width, and f the frequency in cycles per s pixels, at least s
    over the longer side (1 in a square). For an image of three channels, ``colour`` turns decorrelated colours into
    red, green and blue.

    Parameters
    ----------
    recipe : Recipe
        The resolved recipe.

    References
    ----------
    C. Olah, A. Mordvintsev and L. Schubert, "Feature Visualization", Distill, 2017, doi:10.23915/distill.00007
    """

    margin, gain = 0.002, 4.0

    def scale(self, height: int, width: int, device: torch.device) -> Tensor:
        """Compute the factor s / f**decay of each frequency.

        Parameters
        ----------
        height, width : int
            Size of the image in pixels.
        device : torch.device
            Device of the result.

        Returns
        -------
        Tensor
            H x (W // 2 + 1).
        """
        return _decay_scale(height, width, self.recipe.decay, device)

    def noise_image(self, seed: int, size: Size, channels: int = 3) -> Tensor:
        """Make the image of a random spectrum of the recipe's standard deviation.

        Parameters
        ----------
        seed : int
            Seed of the noise.
        size : int or (int, int)
            Side, or height and width, of the image in pixels.
        channels : int, default 3
            Number C of channels.

        Returns
        -------
        Tensor
            C x H x W in (0, 1).
        """
        noise = image_ops.noise(seed, size, channels=channels)
        spectrum = torch.view_as_real(torch.fft.rfft2(self.recipe.std * noise, norm="ortho"))
        return self.to_images(spectrum[None])[0]


def image_sides(recipe: Recipe, parameters: Tensor) -> tuple[int, int]:
    """Find height and width of the images that a spectrum belongs to.

    The spectrum of a real image is stored without half of its columns, so that an even and an odd width look alike: the
    recipe's sizes decide.

    Parameters
    ----------
    recipe : Recipe
        The resolved recipe.
    parameters : Tensor
        Real and imaginary parts, B x C x H x (W // 2 + 1) x 2.

    Returns
    -------
    (int, int)
        Height and width in pixels: of one of the recipe's sizes, or those of a square.
    """
    height, columns = parameters.shape[2:4]
    sides = [s for s in map(as_pair, recipe.sizes) if s[0] == height and s[1] // 2 + 1 == columns]
    return sides[0] if sides else (height, height)


@lru_cache(maxsize=16)
def _frequency_scale(height: int, width: int, device: torch.device) -> Tensor:
    """Compute the factor of each frequency of a spectrum, on the CPU, and put it on its device once."""
    with torch.inference_mode(False):  # the cached tensor outlives the context of the first call
        fy, fx = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
        frequency = torch.sqrt(fx * fx + fy * fy).clamp(min=1 / max(height, width))
        return (1 / frequency / math.sqrt(math.sqrt(height * width))).to(device)


@lru_cache(maxsize=16)
def _decay_scale(height: int, width: int, decay: float, device: torch.device) -> Tensor:
    """Compute the factor s / f**decay of each frequency on the CPU, and put it on its device once."""
    with torch.inference_mode(False):  # the cached tensor outlives the context of the first call
        side = math.sqrt(height * width)
        fy, fx = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
        cycles = side * torch.sqrt(fx * fx + fy * fy).clamp(min=1 / max(height, width))
        return (side * cycles**-decay).to(device)


Parameterisation = Pixels | Fourier
PARAMETERISATIONS: dict[str, type[Parameterisation]] = {"pixels": Pixels, "fourier": Fourier, "spectrum": Spectrum}


def null_image(recipe: Recipe, seed: int, start: Tensor | None = None, channels: int = 3) -> Tensor:
    """Compute the null image: the result of the recipe where the gradient is zero.

    No network is needed: without a gradient the steps change nothing, so only blur, resize and clamp act.

    Parameters
    ----------
    recipe : Recipe
        The resolved recipe.
    seed : int
        Seed of the noise.
    start : Tensor or None, default None
        Image to start from instead of noise, C x H x W.
    channels : int, default 3
        Number C of channels of the noise.

    Returns
    -------
    Tensor
        C x H x W, float32, as stored.
    """
    return null_frames(recipe, seed, start, every=recipe.steps, channels=channels)[-1]


def null_frames(
    recipe: Recipe, seed: int, start: Tensor | None = None, every: int = 1, channels: int = 3
) -> list[Tensor]:
    """Compute the frames of a descent whose gradient is zero.

    They are taken as in `featmap.optimize.descent.Descent`: at the start, after each `every` steps, and at the end.

    Parameters
    ----------
    recipe : Recipe
        The resolved recipe.
    seed : int
        Seed of the noise.
    start : Tensor or None, default None
        Image to start from instead of noise, C x H x W.
    every : int, default 1
        Interval between frames in steps.
    channels : int, default 3
        Number C of channels of the noise.

    Returns
    -------
    list of Tensor
        Frames, C x h x w at the size of their octave; the last one is the null image.
    """
    image, frames, step = initial_image(recipe, seed, start, channels)[None], list[Tensor](), 0
    parameterisation = PARAMETERISATIONS[recipe.parameterisation](recipe)
    for octave in recipe.octaves:
        assert isinstance(octave.size, (int, tuple))
        parameters = parameterisation.to_parameters(image_ops.resize(image, octave.size))
        if not frames:
            frames.append(clamp_final(recipe, parameterisation.to_images(parameters))[0])
        for i in range(octave.steps):
            sigma = interpolate_schedule(octave.sigma, i, octave.steps)
            parameters = blur_and_clamp(recipe, parameters, sigma)
            step += 1
            if step % every == 0 or step == recipe.steps:
                frames.append(clamp_final(recipe, parameterisation.to_images(parameters))[0])
        image = parameterisation.to_images(parameters)
    return frames


def initial_image(recipe: Recipe, seed: int, start: Tensor | None = None, channels: int = 3) -> Tensor:
    """Compute the image that a descent starts from.

    Parameters
    ----------
    recipe : Recipe
        The resolved recipe.
    seed : int
        Seed of the noise, which depends on (seed, size) only.
    start : Tensor or None, default None
        Image to start from instead of noise, C x H x W; a photograph lies in [0, 1].
    channels : int, default 3
        Number C of channels of the noise.

    Returns
    -------
    Tensor
        C x H x W at the size of the first octave.
    """
    size = recipe.sizes[0]
    if start is not None:
        return image_ops.resize(start[None].float(), size)[0]
    if recipe.parameterisation == "spectrum":
        return Spectrum(recipe).noise_image(seed, size, channels)
    return recipe.mean + recipe.std * image_ops.noise(seed, size, channels=channels)


def perturbed_initial_image(recipe: Recipe, seed: int, share: float = 0.02, channels: int = 3) -> Tensor:
    """Compute the initial image of a descent, perturbed by a little other noise.

    Parameters
    ----------
    recipe : Recipe
        The resolved recipe.
    seed : int
        Seed of both noises.
    share : float, default 0.02
        Standard deviation of the added noise over that of the recipe's own.
    channels : int, default 3
        Number C of channels.

    Returns
    -------
    Tensor
        C x H x W at the size of the first octave.
    """
    added = image_ops.noise(seed, recipe.sizes[0], "perturbation", channels)
    return initial_image(recipe, seed, channels=channels) + share * recipe.std * added


def blur_and_clamp(recipe: Recipe, parameters: Tensor, sigma: float) -> Tensor:
    """Blur the image after a step and, if the recipe clamps every step, clamp it.

    Parameters
    ----------
    recipe : Recipe
        The resolved recipe.
    parameters : Tensor
        Parameters after the step; those of a spectrum are returned as they are.
    sigma : float
        Standard deviation of the blur in pixels.

    Returns
    -------
    Tensor
        Parameters of the same shape.
    """
    if recipe.parameterisation != "pixels":
        return parameters
    parameters = image_ops.blur(parameters, sigma)
    return parameters.clamp(0, 1) if recipe.clamp == "every" else parameters


def clamp_final(recipe: Recipe, images: Tensor) -> Tensor:
    """Clamp images to [0, 1] as they are stored, unless the recipe never clamps.

    Parameters
    ----------
    recipe : Recipe
        The resolved recipe.
    images : Tensor
        Images of any shape.

    Returns
    -------
    Tensor
        Images of the same shape.
    """
    return images if recipe.clamp == "never" else images.clamp(0, 1)


def frame_steps(steps: int, every: int) -> list[int]:
    """List the numbers of steps after which frames are kept.

    Parameters
    ----------
    steps : int
        Steps of the descent.
    every : int
        Interval between frames in steps; 0 keeps none.

    Returns
    -------
    list of int
        0, every multiple of `every` below `steps`, and `steps`.
    """
    return [*range(0, steps, every), steps] if every else []


class Optimiser:
    """Update rule of an optimiser.

    All statistics are taken per row, so that rows stay independent.

    Parameters
    ----------
    rule : {"gradient", "rms", "adam"}
        The plain gradient, the gradient over its root mean square, or Adam.
    betas : tuple of float, default (0.9, 0.999)
        Decay rates of Adam's two moving averages.

    References
    ----------
    D. P. Kingma and J. Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, arXiv:1412.6980
    """

    def __init__(self, rule: str, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self.rule, self.betas, self.count = rule, betas, 0
        self.first: Tensor | None = None
        self.second: Tensor | None = None

    def __call__(self, gradient: Tensor) -> Tensor:
        """Compute the direction to subtract, before the step size is applied."""
        if self.rule == "gradient":
            return gradient
        if self.rule == "rms":
            # where a row has no gradient, 0 / 0 would make its image NaN
            scale = gradient.flatten(1).square().mean(1).sqrt().view(-1, *[1] * (gradient.dim() - 1))
            return torch.where(scale > 0, gradient / scale, torch.zeros_like(gradient))
        self.count += 1
        if self.first is None or self.second is None:
            self.first, self.second = torch.zeros_like(gradient), torch.zeros_like(gradient)
        beta1, beta2 = self.betas
        self.first.mul_(beta1).add_(gradient, alpha=1 - beta1)
        self.second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = (self.second / (1 - beta2**self.count)).sqrt()
        # Adam's constant epsilon would shorten the steps of small gradients; a floor relative to the image's largest
        # value keeps the steps independent of the gradient's scale.
        floor = root.flatten(1).amax(1).view(-1, *[1] * (root.dim() - 1)) * ADAM_EPS
        mean = self.first / (1 - beta1**self.count)
        return torch.where(root > 0, mean / (root + floor), torch.zeros_like(mean))
