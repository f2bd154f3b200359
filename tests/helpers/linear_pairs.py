"""Networks that are linear from image to unit, generated from a seed, and the interaction of two of their units.

`measure` takes one network of any architecture. `measure_many` takes many networks of one architecture at once: they
are the groups of grouped convolutions, which have no weight between them, so that each is a network of its own, and a
step of all of them costs little more than a step of one.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from featmap.network.loading import load
from featmap.network.unit import Shape, Unit
from featmap.optimize.descent import DescentNetwork, descend
from featmap.optimize.objective import Objective
from featmap.optimize.parameterization import null_image
from featmap.optimize.recipe import INTERACT
from featmap.stats import interaction

SIZE, STEPS = 12, 8
SMALL, FEW = 8, 5
"""Side of the images and steps where many networks are measured."""


def generated(seed: int) -> nn.Sequential:
    """One to three convolutions with biases, of random widths, kernels, strides and scales; some are averaged.

    Every layer has four features or more.
    """
    g = np.random.default_rng(seed)
    layers: list[nn.Module] = []
    channels = 3
    for _ in range(g.integers(1, 4)):
        width, kernel, stride = int(g.integers(4, 9)), int(g.choice([1, 3, 5])), int(g.choice([1, 1, 2]))
        layer = nn.Conv2d(channels, width, kernel, stride, kernel // 2)
        weights = g.normal(size=tuple(layer.weight.shape)) * 10 ** g.uniform(-2, 2)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weights))
            layer.bias.copy_(torch.from_numpy(g.normal(size=width)))  # type: ignore[union-attr]
        layers.append(layer)
        if g.random() < 0.3:
            layers.append(nn.AvgPool2d(3, 1, 1))
        channels = width
    return nn.Sequential(*layers).eval()


def measure(seed: int) -> tuple[float, float, float] | None:
    """Response nonlinearity, image nonlinearity and second difference of two units; None if their gradients cancel.

    The two features are drawn from the layers of the generated network, under the default recipe with fewer steps.
    """
    network, g = load(generated(seed)), np.random.default_rng([seed, 1])
    recipe = replace(INTERACT.resolved(SIZE, size=SIZE, steps=STEPS), rows=2)
    last = len(network.module) - 1  # type: ignore[arg-type]
    layers = [str(int(g.integers(last + 1))), str(last)]
    shapes = {SIZE: {la: network.layer(la, SIZE).shape for la in layers}}
    counts = [shapes[SIZE][la][0] for la in layers]
    channels = [int(g.integers(n)) for n in counts]
    if layers[0] == layers[1] and channels[0] == channels[1]:
        channels[1] = (channels[1] + 1) % counts[1]
    units = [Unit(la, c) for la, c in zip(layers, channels, strict=True)]
    one = DescentNetwork(network.module, network.normalise, shapes)

    def responses(image: torch.Tensor) -> np.ndarray:
        """Mean activations of all features of both layers, in float64."""
        found, x = [], image.double()[None]
        with torch.no_grad():
            for name, layer in network.module.double().named_children():
                x = layer(x)
                found += [x.mean((0, 2, 3)).numpy()] * layers.count(name)
        network.module.float()
        return np.concatenate(found)

    null = null_image(recipe, seed).float()
    base = responses(null)
    d = [descend(one, [Objective(((1.0, u),))], recipe, seed=seed).images[0] - null for u in units]
    r = [responses(null + part) - base for part in d]
    columns = [channels[0], counts[0] + channels[1]]
    sizes = [int(np.prod(shapes[SIZE][la][1:])) for la in layers]
    weights = [1 / float(r[k][c]) / sizes[k] for k, c in enumerate(columns)]
    target = Objective(tuple((w / sum(weights) * 2, u) for w, u in zip(weights, units, strict=True)))
    joint = descend(one, [target], recipe, seed=seed)
    if not joint.had_gradient[0]:
        return None
    d_ab = joint.images[0] - null
    deviation = np.ones(len(base))
    halves = np.stack([responses(null + part / 2) - base for part in d])
    middle = responses(null + d[0] / 2 + d[1] / 2) - base
    r_ab = responses(joint.images[0]) - base
    return (
        interaction.response_nonlinearity(r_ab, np.stack(r)),
        interaction.image_nonlinearity(d_ab.numpy(), np.stack([part.numpy() for part in d])),
        interaction.second_difference(middle, halves, r_ab, deviation).size,
    )


def generated_groups(seed: int, count: int) -> nn.Sequential:
    """Many networks of one random architecture, as groups of convolutions; weights, scales and biases are their own."""
    g = np.random.default_rng([seed, 2])
    layers: list[nn.Module] = []
    channels, groups = 3, 1  # all of them see the same image
    for _ in range(g.integers(1, 4)):
        width, kernel, stride = int(g.integers(4, 9)), int(g.choice([1, 3, 5])), int(g.choice([1, 1, 2]))
        layer = nn.Conv2d(channels, count * width, kernel, stride, kernel // 2, groups=groups)
        scales = np.repeat(10 ** g.uniform(-2, 2, count), width)[:, None, None, None]
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(g.normal(size=tuple(layer.weight.shape)) * scales))
            layer.bias.copy_(torch.from_numpy(g.normal(size=count * width)))  # type: ignore[union-attr]
        layers.append(layer)
        if g.random() < 0.3:
            layers.append(nn.AvgPool2d(3, 1, 1))
        channels, groups = count * width, count
    return nn.Sequential(*layers).eval()


def measure_many(seed: int, count: int) -> np.ndarray:
    """Response, image and mixture nonlinearity and second difference of two units of each of `count` networks.

    A row for each network, of NaN where the gradients of its units cancel. One architecture, and one pair of layers,
    serve all; the features are drawn for each network.
    """
    module, g = generated_groups(seed, count), np.random.default_rng([seed, 3])
    recipe = replace(INTERACT.resolved(SMALL, size=SMALL, steps=FEW), rows=count)
    layers = [int(g.integers(len(module))), len(module) - 1]

    def outputs(images: torch.Tensor) -> list[torch.Tensor]:
        """Activations of both layers, each images x networks x features x height x width."""
        values = [x := images] + [x := layer(x) for layer in module]
        return [values[la + 1].unflatten(1, (count, -1)) for la in layers]

    def responses(images: torch.Tensor) -> np.ndarray:
        """Mean activations of both layers of each image's own network, in float64: images x features."""
        module.double()
        with torch.no_grad():
            means = torch.cat([found.mean((3, 4)) for found in outputs(images.double())], 2)
        module.float()
        return means[range(count), range(count)].numpy()

    with torch.no_grad():
        shapes = [tuple(found.shape[2:]) for found in outputs(torch.zeros(1, 3, SMALL, SMALL))]
    names = [str(la) for la in layers]
    in_all: dict[str, Shape] = {name: (count * n, h, w) for name, (n, h, w) in zip(names, shapes, strict=True)}
    one = DescentNetwork(module, lambda x: x, {SMALL: in_all})
    channels = [g.integers(n, size=count) for n, _, _ in shapes]
    if layers[0] == layers[1]:
        channels[1] = np.where(channels[0] == channels[1], (channels[1] + 1) % shapes[1][0], channels[1])
    units = [
        [Unit(name, k * n + int(c)) for k, c in enumerate(own)]
        for name, own, (n, _, _) in zip(names, channels, shapes, strict=True)
    ]
    null = null_image(recipe, seed).float()
    base = responses(null.expand(count, -1, -1, -1))
    d = [descend(one, [Objective(((1.0, u),)) for u in own], recipe, seed=seed).images - null for own in units]
    r = [responses(null + part) - base for part in d]
    rows = np.arange(count)
    best = np.stack([r[0][rows, channels[0]], r[1][rows, shapes[0][0] + channels[1]]])
    weights = 1 / best / np.array([[h * w] for _, h, w in shapes])
    weights /= weights.mean(0)
    targets = [
        Objective(((float(weights[0, k]), units[0][k]), (float(weights[1, k]), units[1][k]))) for k in range(count)
    ]
    joint = descend(one, targets, recipe, seed=seed)
    d_ab, r_ab = joint.images - null, responses(joint.images) - base
    halves = np.stack([responses(null + part / 2) - base for part in d], 1)
    middle = responses(null + d[0] / 2 + d[1] / 2) - base
    solos, parts = torch.stack(d, 1).numpy(), np.stack(r, 1)
    found = np.full((count, 4), np.nan)
    for k in np.flatnonzero(joint.had_gradient.numpy()):
        found[k] = (
            interaction.response_nonlinearity(r_ab[k], parts[k]),
            interaction.image_nonlinearity(d_ab[k].numpy(), solos[k]),
            interaction.response_nonlinearity(middle[k], halves[k]),
            interaction.second_difference(middle[k], halves[k], r_ab[k], np.ones(len(base[k]))).size,
        )
    return found
