"""Networks that judge each other: one whose twin shares half of its features, and classifiers of planted classes."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor, nn

FEATURES, SHARED, CLASSES, SIZE = 12, 6, 4, 16


def _patches(seed: int, count: int) -> Tensor:
    """Smooth patches of 4 x 4 pixels, each of length 1 and mean 0."""
    coarse = torch.from_numpy(np.random.default_rng(seed).normal(size=(count, 3, 2, 2)).astype(np.float32))
    patches = nn.functional.interpolate(coarse, (4, 4), mode="bilinear", align_corners=True)
    patches = patches - patches.mean((1, 2, 3), keepdim=True)
    return patches / patches.flatten(1).norm(dim=1)[:, None, None, None]


def _network(patches: Tensor) -> nn.Module:
    conv = nn.Conv2d(3, len(patches), 4, 2, bias=False)
    with torch.no_grad():
        conv.weight.copy_(patches)
    # one block: without the ReLU a mean over the grid would know little more than the mean colour
    return nn.Sequential(OrderedDict(features=nn.Sequential(OrderedDict(conv=conv, relu=nn.ReLU())))).eval()


def original() -> nn.Module:
    """Layer `features` of `FEATURES` features."""
    return _network(_patches(0, FEATURES))


def half() -> nn.Module:
    """The last `SHARED` features are the first ones of `original`, in reverse order and scaled; the others are new."""
    shared = _patches(0, FEATURES)[:SHARED].flip(0) * torch.linspace(0.5, 4, SHARED)[:, None, None, None]
    return _network(torch.cat([_patches(7, FEATURES - SHARED), shared]))


class Classifier(nn.Module):
    """Class c is how much colour c (red, green, blue, gray) there is; the order of the classes can be changed."""

    def __init__(self, order: tuple[int, ...]) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, CLASSES, 1)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(CLASSES, CLASSES, bias=False)
        rows = torch.tensor([[2.0, -1, -1], [-1, 2, -1], [-1, -1, 2], [-0.5, -0.5, -0.5]])
        with torch.no_grad():
            self.features.weight.copy_(rows[:, :, None, None])
            self.features.bias.copy_(torch.tensor([0.0, 0, 0, 0.5]))
            self.fc.weight.copy_(torch.eye(CLASSES)[list(order)])

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.features(x)).flatten(1))


def colours() -> nn.Module:
    """A classifier of colours with the layer `fc` of logits."""
    return Classifier((0, 1, 2, 3)).eval()


def same_colours() -> nn.Module:
    """The same classes, with weights of another scale."""
    module = Classifier((0, 1, 2, 3))
    with torch.no_grad():
        module.fc.weight.mul_(3.0)
    return module.eval()


def mixed_up() -> nn.Module:
    """A classifier that calls every colour by the next one's name."""
    return Classifier((1, 2, 3, 0)).eval()


class Corner(nn.Module):
    """Gray level of the image; the second feature sees only the upper left corner of its grid."""

    def forward(self, x: Tensor) -> Tensor:
        gray = nn.functional.avg_pool2d(x.mean(1, keepdim=True), 2)
        mask = torch.zeros_like(gray)
        mask[:, :, :2, :2] = 1
        return torch.cat([gray, gray * mask], 1)


class Cornered(nn.Module):
    """Layer `corner` of two features: one fires everywhere, one in a quarter of each axis at 16 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.corner = Corner()

    def forward(self, x: Tensor) -> Tensor:
        return self.corner(x)


def cornered() -> nn.Module:
    """A feature that fires everywhere, and one that fires in one corner."""
    return Cornered().eval()
