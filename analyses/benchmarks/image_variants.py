"""Descents with priors that no recipe has: what they would add to a recipe is measured before they become settings.

A variant is the descent of a recipe, written out as a plain loop over one batch, with one change: total variation,
gradients that are blurred or averaged over noise, MACO's spectrum of fixed magnitudes, statistics of layers as those of
photographs, or another objective for class logits. Without a change it gives the recipe's own images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from analyses.benchmarks import image_records
from analyses.benchmarks.image_ways import Task, TimedImages
from featmap import Network, image_ops
from featmap.errors import FeatmapError
from featmap.files import write_atomically
from featmap.image_shape import Size
from featmap.network.hooks import ActivationHooks
from featmap.network.selection import select_layers
from featmap.optimize.batch import Batches
from featmap.optimize.objective import BatchLoss, Objective
from featmap.optimize.parameterization import Optimiser, Spectrum
from featmap.optimize.photograph_folder import PhotographFolder
from featmap.optimize.recipe import Recipe
from featmap.optimize.schedule import interpolate_schedule
from featmap.optimize.transforms import apply_transform
from featmap.runs.progress import Watcher
from featmap.validation.image_inputs import images_of_pixels

SILENT = 1e-12
"""Added to a channel's variance, so that its root has a finite gradient where the channel is silent."""
STATISTICS_PHOTOGRAPHS = 256
"""Photographs that statistics of layers are measured on."""
PHOTOGRAPHS_CONTRAST = 0.22
"""Standard deviation of the pixels of photographs, which MACO's images get at their start."""


@dataclass(frozen=True)
class Change:
    """What a variant does otherwise than its recipe.

    Parameters
    ----------
    variation : float, default 0.0
        Length of the gradient of total variation that is added to each image's gradient, as a share of that one's own.
    blur : float, default 0.0
        Standard deviation, in pixels, of a Gaussian that blurs the gradient for the image at the first step; it falls
        to a quarter until the last.
    noise : float, default 0.0
        Standard deviation of noise that is added to the image at each step.
    copies : int, default 1
        Number of noisy copies whose gradients are averaged.
    phases : bool, default False
        Whether the spectrum's magnitudes are fixed at the decay of the recipe and only its phases are descended.
    log_probability : bool, default False
        Whether the objective is the logarithm of the class's softmax probability.
    statistics : float, default 0.0
        Length of the gradient of `LayerStatistics.distance` that is added to each image's gradient, as a share of that
        one's own.
    """

    variation: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    copies: int = 1
    phases: bool = False
    log_probability: bool = False
    statistics: float = 0.0


class Phases:
    """Parameterise an image by the phases of a spectrum whose magnitudes are fixed.

    Parameters
    ----------
    spectrum : Spectrum
        Parameterisation with the decay of the magnitudes.
    size : int or (int, int)
        Size of the images in pixels.

    References
    ----------
    T. Fel et al., "Unlocking Feature Visualization for Deeper Networks with MAgnitude Constrained Optimization",
    NeurIPS 2023, arXiv:2306.06805
    """

    def __init__(self, spectrum: Spectrum) -> None:
        self.spectrum, self._gain = spectrum, 1.0

    def to_parameters(self, images: Tensor) -> Tensor:
        """Take the phases of images, and fit the magnitudes' factor so that the first image has photographs' contrast.

        Parameters
        ----------
        images : Tensor
            B x C x H x W.

        Returns
        -------
        Tensor
            Phases in radians, B x C x H x (W // 2 + 1).
        """
        phases = torch.view_as_complex(self.spectrum.to_parameters(images)).angle()
        low, high = 1e-3, 1e3
        for _ in range(40):
            self._gain = math.sqrt(low * high)
            contrast = float(self.to_images(phases[:1]).std())
            low, high = (self._gain, high) if contrast < PHOTOGRAPHS_CONTRAST else (low, self._gain)
        return phases

    def to_images(self, parameters: Tensor) -> Tensor:
        """Make images of phases.

        Parameters
        ----------
        parameters : Tensor
            Phases in radians, B x C x H x (W // 2 + 1).

        Returns
        -------
        Tensor
            B x C x H x W in (0, 1).
        """
        magnitudes = torch.full_like(parameters, self._gain)
        return self.spectrum.to_images(torch.view_as_real(torch.polar(magnitudes, parameters)))


def total_variation(images: Tensor) -> Tensor:
    """Compute each image's total variation.

    Parameters
    ----------
    images : Tensor
        B x C x H x W.

    Returns
    -------
    Tensor
        Mean absolute difference of neighbouring pixels, of rows and of columns, added; B.
    """
    rows, columns = images.diff(dim=2).abs(), images.diff(dim=3).abs()
    return rows.flatten(1).mean(1) + columns.flatten(1).mean(1)


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """Means and deviations of the channels of layers over photographs.

    Parameters
    ----------
    mean, spread : dict of Tensor
        By layer, of each channel's mean over positions and then its standard deviation over positions, 2 x channels:
        mean and standard deviation over the photographs.

    References
    ----------
    DeepInversion, which takes the running moments of batch normalisation over a batch: Yin et al. (2020), doi
    10.1109/CVPR42600.2020.00874. Here each image is compared by itself.
    """

    mean: dict[str, Tensor]
    spread: dict[str, Tensor]

    @staticmethod
    def measure(network: Network, layers: Sequence[str], photographs: Tensor) -> LayerStatistics:
        """Measure the statistics of layers on photographs.

        Parameters
        ----------
        network : Network
            The network.
        layers : sequence of str
            Names of layers with a grid.
        photographs : Tensor
            P x C x H x W in [0, 1].

        Returns
        -------
        LayerStatistics
            A channel that never varies has a spread of 1.
        """
        found: dict[str, list[Tensor]] = {layer: [] for layer in layers}
        with torch.no_grad(), ActivationHooks(network.module, layers, (), network.find_layout) as hooks:
            for batch in photographs.split(16):
                outputs = hooks.run(network.normalise(batch))
                for layer in layers:
                    found[layer].append(channel_moments(outputs[layer]))
        moments = {layer: torch.cat(values) for layer, values in found.items()}
        spread = {layer: values.std(0) for layer, values in moments.items()}
        return LayerStatistics(
            {layer: values.mean(0) for layer, values in moments.items()},
            {layer: torch.where(values > 0, values, torch.ones_like(values)) for layer, values in spread.items()},
        )

    def distance(self, outputs: dict[str, Tensor]) -> Tensor:
        """Compute how far the statistics of images are from those of photographs.

        Parameters
        ----------
        outputs : dict of Tensor
            Outputs of the layers, B x channels x h x w.

        Returns
        -------
        Tensor
            Mean over channels, both moments and layers of the squared distance in spreads, B.
        """
        squares = [
            (((channel_moments(outputs[layer]) - self.mean[layer]) / self.spread[layer]) ** 2).flatten(1).mean(1)
            for layer in self.mean
        ]
        return torch.stack(squares).mean(0)


def channel_moments(output: Tensor) -> Tensor:
    """Compute mean and standard deviation over positions, B x channels x h x w to B x 2 x channels."""
    values = output.flatten(2)
    deviation = (values.var(2, correction=0) + SILENT).sqrt()
    return torch.stack([values.mean(2), deviation], dim=1)


def lengthen(gradient: Tensor, other: Tensor, share: float) -> Tensor:
    """Add another gradient to each image's, with a length that is a share of that one's own; B x ... each."""
    one, two = (torch.linalg.vector_norm(g.flatten(1), dim=1) for g in (gradient, other))
    factor = share * one / two.clamp(min=torch.finfo(two.dtype).tiny)
    return gradient + factor.view(-1, *[1] * (gradient.dim() - 1)) * other


def descend(
    task: Task, layer: str, recipe: Recipe, change: Change, seed: int, photographs: Tensor | None = None
) -> Tensor:
    """Make the images of a layer's drawn features in one batch.

    Parameters
    ----------
    task : Task
        Network and channels.
    layer : str
        A layer of the task.
    recipe : Recipe
        A resolved recipe of a spectrum.
    change : Change
        What is done otherwise.
    seed : int
        Seed of the noise and of the transforms.
    photographs : Tensor, optional
        Photographs whose statistics the layers up to this one shall have, P x C x H x W.

    Returns
    -------
    Tensor
        N x C x H x W in (0, 1).

    Raises
    ------
    FeatmapError
        If the recipe descends on pixels, or photographs are missing.
    """
    if recipe.parameterisation != "spectrum":
        raise FeatmapError(f"recipe {recipe.name}: variants are made of recipes of a spectrum; name such a one")
    network, channels = task.network, task.drawn[layer]
    statistics = None
    if change.statistics:
        if photographs is None:
            raise FeatmapError(f"{recipe.name}: statistics are those of photographs; give a folder of them")
        statistics = LayerStatistics.measure(network, list_layers(network, layer, recipe.size), photographs)
    hooked = (layer,) if statistics is None else tuple(sorted({layer, *statistics.mean}))
    module = Batches(network, torch.device("cpu")).prepared_module(hooked, recipe.size)
    count = len(channels)
    spectrum = Spectrum(recipe)
    image = spectrum.noise_image(seed, recipe.sizes[0], network.channels).repeat(count, 1, 1, 1)
    step = 0
    for octave in recipe.octaves:
        assert isinstance(octave.size, (int, tuple))
        size: Size = octave.size
        way: Spectrum | Phases = Phases(spectrum) if change.phases else spectrum
        objective = _Shown(network, module, layer, channels, recipe, size, change, statistics)
        parameters, optimiser = way.to_parameters(image_ops.resize(image, size)), Optimiser("adam", recipe.betas)
        for i in range(octave.steps):
            p = parameters.detach().requires_grad_(True)
            made = way.to_images(p)
            if change.blur:
                sigma = interpolate_schedule((change.blur, change.blur / 4), i, octave.steps)
                made.register_hook(lambda gradient, sigma=sigma: image_ops.blur(gradient, sigma))
            gradient = objective.gradient(p, made, seed, step)
            if change.variation:
                (smoother,) = torch.autograd.grad(total_variation(way.to_images(p)).sum(), p)
                gradient = lengthen(gradient, smoother, change.variation)
            parameters = parameters - interpolate_schedule(octave.rate, i, octave.steps) * optimiser(gradient)
            step += 1
        image = way.to_images(parameters).detach()
    return image


def list_layers(network: Network, layer: str, size: Size) -> list[str]:
    """List the blocks of a network that lie before a layer, and the layer itself if it has a grid."""
    blocks = select_layers("all", network, size)
    order = list(network.trace(size).layers)
    return [b for b in blocks if order.index(b) <= order.index(layer) and network.layer(b, size).height > 1]


class _Shown:
    """The objective of a batch at one size."""

    def __init__(
        self,
        network: Network,
        module: nn.Module,
        layer: str,
        channels: list[int],
        recipe: Recipe,
        size: Size,
        change: Change,
        statistics: LayerStatistics | None,
    ) -> None:
        self._network, self._module, self._layer = network, module, layer
        self._recipe, self._size, self._change, self._statistics = recipe, size, change, statistics
        self._channels = torch.tensor(channels)
        shapes = {layer: network.layer(layer, size).shape}
        objectives = [Objective.parse(f"{layer}:{c}") for c in channels]
        typical = (recipe.contrast, recipe.spread)
        self._loss = BatchLoss(objectives, shapes, recipe.metric, recipe.C, "cpu", typical)

    def gradient(self, p: Tensor, made: Tensor, seed: int, step: int) -> Tensor:
        """Compute the gradient for the parameters, averaged over noisy copies."""
        change, count, total = self._change, len(made), made.new_zeros(())
        statistics, distance = self._statistics, made.new_zeros(())
        layers = [self._layer, *(statistics.mean if statistics else ())]
        with ActivationHooks(self._module, layers, (), self._network.find_layout) as hooks:
            for copy in range(change.copies):
                shown = apply_transform(made, [seed] * count, step, self._recipe.transform)
                if change.noise:
                    key = f"variant noise {step} {copy}"
                    shown = shown + change.noise * image_ops.noise(seed, self._size, key, shown.shape[1])
                outputs = hooks.run(self._network.normalise(shown), {} if statistics else self._loss.needed)
                if statistics is not None:
                    distance = distance + statistics.distance(outputs).sum() / change.copies
                if change.log_probability:
                    chances = outputs[self._layer].flatten(1).log_softmax(1)
                    total = total - chances[torch.arange(count), self._channels].sum() / change.copies
                else:
                    total = total + self._loss(outputs)[0].sum() / change.copies
            (gradient,) = torch.autograd.grad(total, p, retain_graph=statistics is not None)
            if statistics is not None:
                gradient = lengthen(gradient, torch.autograd.grad(distance, p)[0], change.statistics)
        return gradient


class VariantWay:
    """A recipe with a change, as a way of making images; a plain loop's seconds say nothing of a recipe's.

    Parameters
    ----------
    recipe : Recipe
        The resolved recipe, named after the variant.
    change : Change
        What is done otherwise.
    photographs : PhotographFolder, optional
        Photographs for statistics, of which `STATISTICS_PHOTOGRAPHS` evenly spaced ones are taken.
    """

    kind, words = image_records.RECIPE, ""

    def __init__(self, recipe: Recipe, change: Change, photographs: PhotographFolder | None = None) -> None:
        self.recipe, self.change, self.name = recipe, change, recipe.name
        self.photographs = photographs if change.statistics else None

    def identity(self) -> dict[str, Any]:
        """Describe the recipe's settings and the change."""
        change = {name: value for name, value in asdict(self.change).items() if name != "statistics" or value}
        statistics = {} if self.photographs is None else {"photographs": self.photographs.digest}
        return {"recipe": self.recipe.identity(), "change": change} | statistics

    def units(self, task: Task) -> list[str]:
        """List all units."""
        return task.units()

    def make(self, task: Task, seed: int, watcher: Watcher) -> TimedImages:
        """Make the images, or read those that are there."""
        identity = {"network": task.network.identity(), "units": task.units(), "seed": seed} | self.identity()
        path = task.folder_of(identity, self.name).with_suffix(".npy")
        if not path.is_file():
            watcher.note(f"{self.name}: one batch a layer")
            shown = self._statistics_photographs(task.network)
            pixels = torch.cat([descend(task, layer, self.recipe, self.change, seed, shown) for layer in task.drawn])
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda p: np.save(p, pixels.numpy()))
        made = torch.from_numpy(np.load(path, allow_pickle=False))
        return TimedImages(images_of_pixels(self.units(task), made), None)

    def _statistics_photographs(self, network: Network) -> Tensor | None:
        """Read evenly spaced photographs at the size of the images; None without any."""
        if self.photographs is None:
            return None
        count = min(len(self.photographs), STATISTICS_PHOTOGRAPHS)
        chosen = [k * len(self.photographs) // count for k in range(count)]
        return self.photographs.read(chosen, self.recipe.size, network.channels)
