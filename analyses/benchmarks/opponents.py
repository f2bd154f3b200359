"""The article's recipe and other tools that featmap is compared with, each with its own defaults.

An opponent makes images as it would for its user: the whole network in float32, its own image size, steps,
parameterisation and robustness transforms; one feature at a time and, where it supports that, all in one batch. Nothing
is tuned for or against it: the network that it gets takes images in [0, 1] and normalises them itself, and is a copy,
since some tools leave hooks behind. The tools come with ``pip install 'featmap[bench]'``; one that is not installed is
left out with a message.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms import functional

from featmap import Network
from featmap.image_ops import noise
from featmap.optimize.recipe import Octave, Recipe
from featmap.optimize.schedule import interpolate_schedule

Make = Callable[[Network, str, Sequence[int], int], Tensor]


@dataclass(frozen=True)
class Opponent:
    """A way of making features' images.

    Parameters
    ----------
    name : str
        Name in the tables.
    size : int
        Size of its finished image, in pixels.
    words : str
        Its settings.
    make : callable
        Function of (network, layer, channels, seed) to the finished images, `N x 3 x size x size` in the network's [0,
        1], as the tool leaves them (not clamped).
    package : str, default None
        Package that it needs.
    batched : bool, default False
        Whether it makes all features at once.
    """

    name: str
    size: int
    words: str
    make: Make
    package: str | None = None
    batched: bool = False

    def preload(self) -> None:
        """Import its package, which is not timed."""
        if self.package is not None:
            importlib.import_module(MODULES[self.package])

    @property
    def installed(self) -> bool:
        """Whether its package is installed."""
        return self.package is None or find_spec(MODULES[self.package]) is not None

    @property
    def version(self) -> str:
        """Version of its package; "" where it needs none."""
        return version(self.package) if self.package is not None and self.installed else ""


MODULES = {"torch-lucent": "lucent", "dreamlens": "dreamlens", "horama": "horama"}
"""Import name of each package."""


@contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """Seed the global generators that other tools draw from, and restore them."""
    before, numpy_before = random.getstate(), np.random.get_state()  # noqa: NPY002 - other tools draw from it
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(before)
            np.random.set_state(numpy_before)  # noqa: NPY002


# ---------------------------------------------------------------- the article


class _LayerReached(Exception):
    """Raised when the layer has its output."""


@contextmanager
def stop_at_layer(module: nn.Module, layer: str) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield a function that computes the network as far as a layer, and returns its output.

    The article's `NewModel` does the same.
    """
    outputs: list[Tensor] = []

    def stop(_: nn.Module, __: object, output: Tensor) -> None:
        outputs.append(output)
        raise _LayerReached

    def run(images: Tensor) -> Tensor:
        try:
            module(images)
        except _LayerReached:
            return outputs.pop()
        raise ValueError(f"layer {layer!r} was not reached")

    handle = module.get_submodule(layer).register_forward_hook(stop)
    try:
        yield run
    finally:
        handle.remove()


def article_loop(
    network: Network, layer: str, channel: int, image: Tensor, octaves: tuple[Octave, ...], *, normalised: bool
) -> Tensor:
    """Run the article's own loop.

    It makes one image, with gradients for the weights and torchvision's blur.

    References
    ----------
    The article, section "Feature Visualization from First Principles" (`octave`, `layer_gradient`).
    """
    with stop_at_layer(network.module, layer) as run:
        for octave in octaves:
            assert isinstance(octave.size, int)
            if image.shape[2] != octave.size:
                image = functional.resize(image, [octave.size, octave.size], antialias=True)
            for i in range(octave.steps):
                image = image.detach().requires_grad_(True)
                focus = run(network.normalise(image))[0, channel]
                loss = torch.sum(200.0 - focus)
                loss.backward()
                assert image.grad is not None
                gradient = image.grad
                if normalised:
                    scale = gradient.square().mean().sqrt()
                    gradient = gradient / scale if scale > 0 else torch.zeros_like(gradient)
                with torch.no_grad():
                    image = image - interpolate_schedule(octave.rate, i, octave.steps) * gradient
                    sigma = interpolate_schedule(octave.sigma, i, octave.steps)
                    image = functional.gaussian_blur(image, [3, 3], [sigma, sigma])
    network.module.zero_grad(set_to_none=True)
    return image.detach()


def _article(name: str) -> Make:
    """Make an opponent of one of the article's recipes."""

    def make(network: Network, layer: str, channels: Sequence[int], seed: int) -> Tensor:
        recipe = Recipe.named(name)
        octaves, normalised = recipe.resolved(network.input_size).octaves, recipe.optimiser == "rms"
        assert isinstance(octaves[0].size, int)
        first = recipe.mean + recipe.std * noise(seed, octaves[0].size)[None]
        return torch.cat([article_loop(network, layer, c, first, octaves, normalised=normalised) for c in channels])

    return make


# ---------------------------------------------------------------- other tools


class Normalised(nn.Module):
    """A network that takes images in [0, 1] and normalises them itself, whatever its own mean and deviation.

    Parameters
    ----------
    network : Network
        The network; its module is `inner`.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.inner, self._normalise = network.module, network.normalise

    def forward(self, images: Tensor) -> Tensor:
        """Compute the network's output.

        Parameters
        ----------
        images : Tensor
            N x C x H x W in [0, 1].

        Returns
        -------
        Tensor
            The output.
        """
        output: Tensor = self.inner(self._normalise(images))
        return output


def _lucent(network: Network, layer: str, channels: Sequence[int], seed: int) -> Tensor:
    """Make images with Lucent."""
    from lucent.optvis import objectives, param, render

    name, count = f"inner.{layer}".replace(".", "_"), len(channels)
    options: dict[str, Any] = {}
    goal = objectives.channel(name, channels[0])
    if count > 1:
        goal = objectives.Objective.sum([objectives.channel(name, c, batch=k) for k, c in enumerate(channels)])
        options["param_f"] = lambda: param.image(128, batch=count)
    module = Normalised(network).eval()
    with seeded_globals(seed):
        images = render.render_vis(module, goal, preprocess=False, show_image=False, progress=False, **options)
    return torch.from_numpy(images[-1]).permute(0, 3, 1, 2).contiguous()


def _dreamlens(network: Network, layer: str, channels: Sequence[int], seed: int) -> Tensor:
    """Make images with Dreamlens."""
    from dreamlens import FeatureVisualizer

    with seeded_globals(seed):
        tool, layer = FeatureVisualizer(Normalised(network), quiet=True, normalize=False), f"inner.{layer}"
        result = (
            tool.maximize_channels(layer, channels) if len(channels) > 1 else tool.maximize_channel(layer, *channels)
        )
        with torch.no_grad():
            return result.image().detach().float().cpu()


SPECTRUM = Path("data", "clean_decorrelated.npy")
"""ImageNet's mean spectrum inside Dreamlens's package, which spares Horama a download."""
REACH = 5.0
"""Length of the range of values of Horama's images, -2.5 to 2.5, which the network's [0, 1] is mapped to."""


def _horama_spectrum() -> str:
    """Find a file of ImageNet's mean spectrum; Horama downloads its own where Dreamlens has none."""
    found = find_spec("dreamlens")
    path = Path(found.origin).parent / SPECTRUM if found is not None and found.origin else SPECTRUM
    return str(path) if path.is_file() else "spectrum_decorrelated.npy"


def _horama(**options: Any) -> Make:
    """Make an opponent of Horama's MACO with some options."""

    def make(network: Network, layer: str, channels: Sequence[int], seed: int) -> Tensor:
        from horama import maco, maco_fv

        images = []
        for channel in channels:
            with (
                stop_at_layer(network.module, layer) as run,
                seeded_globals(seed),
                mock.patch.object(maco_fv, "MACO_SPECTRUM_FILENAME", _horama_spectrum()),
                mock.patch.object(maco_fv, "tqdm", lambda steps: steps),
            ):
                image, _ = maco(
                    lambda crops, c=channel, run=run: run(network.normalise(crops / REACH + 0.5))[:, c].mean(),
                    device="cpu",
                    **options,
                )
            images.append(image.detach() / REACH + 0.5)
        return torch.stack(images)

    return make


ARTICLE = "300 steps at 299, 340 and 380 pixels, blur, one image, weights with gradients, stopped at the layer"
LUCENT = "512 Adam steps on a 128-pixel Fourier image, padded, jittered, scaled, turned, enlarged to 224 pixels"
DREAMLENS = "120 steps on a 256-pixel Fourier image, scaled and turned at random"
MACO = "1,000 steps on the phase of a 1280-pixel image, six crops a step"
OPPONENTS = (
    Opponent("article", 380, f"the article's recipe: {ARTICLE}", _article("article")),
    Opponent(
        "article-normalised",
        380,
        f"the same with the gradient over its root mean square, step sizes / 10: {ARTICLE}",
        _article("article-normalised"),
    ),
    Opponent("lucent", 128, LUCENT, _lucent, "torch-lucent"),
    Opponent("lucent, batched", 128, f"{LUCENT}; all features in one batch", _lucent, "torch-lucent", True),
    Opponent("dreamlens", 256, DREAMLENS, _dreamlens, "dreamlens"),
    Opponent("dreamlens, batched", 256, f"{DREAMLENS}; all features in one batch", _dreamlens, "dreamlens", True),
)
MACO_OPPONENTS = (
    Opponent("horama", 1280, MACO, _horama(), "horama"),
    Opponent("horama, 128 steps", 1280, f"{MACO}, stopped after 128", _horama(total_steps=128), "horama"),
)
"""Too slow for the benchmark of speed: a feature takes a quarter of an hour of one core."""
