"""Families of networks as libraries build them, with random weights, and what plain PyTorch says of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from featmap.mapping.run import similarity
from featmap.network.loading import load
from featmap.network.model import Network
from featmap.optimize.comparison import FOLDED, OUTPUT_TOLERANCE, ROUNDING_LIMIT
from featmap.optimize.measured_fields import measure_fields
from tests.helpers.settings import options

MEAN, STD = (0.4, 0.45, 0.5), (0.2, 0.25, 0.3)
FEATURES = 3
GRID, LAST, TOKENS, VECTOR, WINDOWS = "N x C x H x W", "N x H x W x C", "N x L x C", "N x C", "windows x C"
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Family:
    """A network of a family.

    Parameters
    ----------
    name : str
        Name in its library.
    size : int
        Image size in pixels, as small as the network takes.
    layers : mapping of str to (str, tuple of int)
        Layout, and channels, height and width, of some layers, from the architecture's description.
    mapped : str
        Layer that is mapped.
    skipped : int, default 0
        Tokens before the grid.
    fields : tuple of str, default ()
        Layers whose receptive fields are measured, beside `mapped`.
    settings : mapping, optional
        Settings of the library's builder.
    """

    name: str
    size: int
    layers: Mapping[str, tuple[str, Shape]]
    mapped: str
    skipped: int = 0
    fields: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Build a network with the library's own random weights, moved as training leaves them.

    Biases, scales and batch statistics are no longer all 0 or 1, so that what acts on them shows.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        module = build()
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is not None:
                part.running_mean.normal_(0, 0.3)
                part.running_var.uniform_(1, 2)
            for tensor in part.parameters(recurse=False):
                if tensor.dim() < 2:
                    tensor.add_(0.1 * torch.randn(tensor.shape))
    return module.eval()


def load_family(family: Family, build: Callable[[], nn.Module]) -> Network:
    """Load a network of a family."""
    return load(seeded(build), input_size=family.size, mean=MEAN, std=STD)


def assert_layers(network: Network, family: Family) -> None:
    """Hold the layers that are found to those of the architecture's description."""
    found = network.trace()
    assert found.failure == ""
    for name, (layout, shape) in family.layers.items():
        assert (found.layers[name].layout.kind, found.layers[name].shape) == (layout, shape), name
    assert all(la.layout.kind in (GRID, LAST, TOKENS, VECTOR, WINDOWS) for la in found.layers.values())


def plain_responses(module: nn.Module, family: Family, layout: str, images: Tensor) -> np.ndarray:
    """The mean of each channel of the mapped layer over its grid, by a hook of torch's own."""
    outputs: list[Tensor] = []

    def keep(_: nn.Module, __: Any, out: Any) -> None:
        outputs.append((out[0] if isinstance(out, tuple) else out).detach().clone())

    handle = module.get_submodule(family.mapped).register_forward_hook(keep)
    with torch.no_grad():
        for image in images:  # one by one: whatever shares a dimension with the batch is the image's own
            module(((image - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1))[None])
    handle.remove()
    out = torch.stack(outputs)
    if layout == WINDOWS:
        return out.flatten(1, -2).mean(1).numpy()
    out = out[:, 0]
    if layout == TOKENS:
        return out[:, family.skipped :].mean(1).numpy()
    return (out if layout == VECTOR else out.mean((2, 3) if layout == GRID else (1, 2))).numpy()


def assert_map_is_plain_pytorchs(network: Network, family: Family, folder: Path) -> None:
    """Hold the responses in a small map to those that plain PyTorch computes on the images that are stored."""
    state = {k: v.clone() for k, v in network.module.state_dict().items()}
    settings: dict[str, Any] = options(
        features=f"0-{FEATURES - 1}", stimuli="shown", size=family.size, steps=3, rows=FEATURES, out=folder
    )
    data = similarity(family.mapped, network, **settings).dataset
    (choice,) = network.preparations.values()
    assert choice.network == FOLDED and not choice.in_place
    assert choice.output < OUTPUT_TOLERANCE / 10 and choice.gradient < ROUNDING_LIMIT, str(choice)
    images = torch.from_numpy(data["images"].values[0])
    assert images.shape == (FEATURES, 3, family.size, family.size) and images.isfinite().all()
    expected = plain_responses(network.module, family, family.layers[family.mapped][0], images.float())
    found = data["A"].values[0]
    assert found.shape == expected.shape == (FEATURES, family.layers[family.mapped][1][0])
    assert np.linalg.norm(expected) > 0
    assert np.linalg.norm(found - expected) <= 1e-4 * np.linalg.norm(expected)
    assert all(torch.equal(v, state[k]) for k, v in network.module.state_dict().items()), "the network is as it was"


def assert_fields_are_measured(network: Network, family: Family) -> None:
    """Hold receptive fields by rule to the pixels that a gradient reaches."""
    layers = {name: network.layer(name) for name in family.fields}
    assert not any(la.field.unknown for la in layers.values()), "each has a rule"
    measured = measure_fields(
        network.module,
        {name: (la.height, la.width) for name, la in layers.items()},
        network.trace().image,
        network.find_layout,
    )
    for name, layer in layers.items():
        centre = layer.height // 2, layer.width // 2, network.input_size, network.input_size
        found = measured[name]
        assert layer.field.bounds(*centre) == found.bounds(*centre), f"{name}: {layer.field}, measured {found}"
