"""Tiny networks with known answers.

Every one is seeded, needs no file, and can be named on the command line: ``tests.helpers.networks:planted_1x1``.
"""

from __future__ import annotations

import copy
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Fill a module, also one built on the meta device, with seeded weights and nontrivial batch statistics."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(like.shape, generator=generator)

    if any(p.is_meta for p in module.parameters()):
        module = module.to_empty(device="cpu")
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                if part.affine:
                    part.weight.copy_(uniform(part.weight, 0.5, 1.5))
                    part.bias.copy_(uniform(part.bias, -0.3, 0.3))
                if part.running_mean is not None:
                    part.running_mean.copy_(uniform(part.running_mean, -0.3, 0.3))
                    part.running_var.copy_(uniform(part.running_var, 0.5, 2.0))
                    part.num_batches_tracked.fill_(7)
            else:
                for tensor in part.parameters(recurse=False):
                    inputs = tensor[0].numel() if tensor.dim() > 1 else 1
                    spread = (2.0 / inputs) ** 0.5 if tensor.dim() > 1 else 0.1
                    tensor.copy_(torch.randn(tensor.shape, generator=generator) * spread)
    return module


def linear_network() -> nn.Module:
    """Convolutions without bias or ReLU: linear from the image to every unit."""
    layers = OrderedDict(
        conv1=nn.Conv2d(3, 6, 3, padding=1, bias=False),
        conv2=nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False),
        conv3=nn.Conv2d(8, 5, 3, padding=1, bias=False),
    )
    return randomised(nn.Sequential(layers), seed=11).eval()


TARGET = (0.8, 0.2, 0.6)
"""The colour that feature 3 of `planted_1x1` is built to like best."""

DIRECTIONS = ((1.0, -1.0, 0.5), (0.0, 1.0, 0.0), (3.0, -3.0, 1.5))
"""What features 0 to 2 of `planted_1x1` are: a weighted sum of red, green and blue; 2 is three times 0."""


def planted_1x1() -> nn.Module:
    """Hand-set 1 x 1 convolutions with a ReLU between them.

    ``features`` 0 to 2 are the linear functions `DIRECTIONS` of each pixel's colour, so that their gradient is the
    same everywhere and always; feature 3 is minus the L1 distance of the colour to `TARGET`, so that the image that
    maximises it is that colour all over.
    """
    hidden, features = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 4, 1)
    eye, target = torch.eye(3), torch.tensor(TARGET)
    with torch.no_grad():
        # x = relu(x) - relu(-x) and |x - t| = relu(x - t) + relu(t - x)
        hidden.weight.copy_(torch.cat([eye, -eye, eye, -eye])[:, :, None, None])
        hidden.bias.copy_(torch.cat([torch.zeros(6), -target, target]))
        features.weight.zero_()
        features.bias.zero_()
        for k, direction in enumerate(DIRECTIONS):
            features.weight[k, 0:3, 0, 0] = torch.tensor(direction)
            features.weight[k, 3:6, 0, 0] = -torch.tensor(direction)
        features.weight[3, 6:12] = -1.0
    return nn.Sequential(OrderedDict(hidden=hidden, relu=nn.ReLU(), features=features)).eval()


class ConvNorm(nn.Module):
    """Convolution, batch norm and an in-place ReLU, as torchvision's BasicConv2d."""

    def __init__(self, inputs: int, outputs: int, kernel: int, padding: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Mixed(nn.Module):
    """Two branches, 5 and 6 channels, joined."""

    def __init__(self) -> None:
        super().__init__()
        self.branch1 = ConvNorm(8, 5, 1)
        self.branch2 = nn.Sequential(ConvNorm(8, 4, 1), ConvNorm(4, 6, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x)], 1)


class SmallInception(nn.Module):
    """Stem, a concatenation, a tail whose ReLU is the stem's own module, logits.

    At size 16: stem, norm, relu@1 8 x 8 x 8; mixed 11 x 8 x 8; narrow, norm2, relu@2 7 x 6 x 6; pool 7 x 1 x 1; fc 4.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.mixed = Mixed()
        self.narrow = nn.Conv2d(11, 7, 3)
        self.norm2 = nn.BatchNorm2d(7)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mixed(self.relu(self.norm(self.stem(x))))
        x = self.relu(self.norm2(self.narrow(x)))
        return self.fc(torch.flatten(self.pool(x), 1))


def small_inception() -> nn.Module:
    """`SmallInception` with seeded weights and batch statistics."""
    return randomised(SmallInception(), seed=5).eval()


LIVE, ASLEEP, CONSTANT, BROKEN, BURIED = range(5)
"""The channels of `dead_network`."""


def dead_network() -> nn.Module:
    """A convolution and an in-place ReLU, one channel for each way in which a descent can fail.

    LIVE has a gradient; ASLEEP is the mean colour - 0.8, dead on the starting noise (mean 0.5) until the gradient is
    let through; CONSTANT is 0.3 whatever the image; BROKEN is NaN whatever the image, with a finite gradient; BURIED
    lies so deep that no image in [0, 1] revives it.
    """
    features = nn.Conv2d(3, 5, 3, padding=1)
    with torch.no_grad():
        features.weight.fill_(1 / 27)
        features.weight[LIVE] = torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(3)) / 5
        features.weight[CONSTANT] = 0.0
        features.bias.copy_(torch.tensor([0.5, -0.8, 0.3, float("nan"), -50.0]))
    return nn.Sequential(OrderedDict(features=features, relu=nn.ReLU(inplace=True))).eval()


def logits_network() -> nn.Module:
    """A convolution, a ReLU, a global mean and three class logits (``fc``, N x 3)."""
    layers = OrderedDict(
        conv=nn.Conv2d(3, 6, 3, padding=1),
        relu=nn.ReLU(),
        pool=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        fc=nn.Linear(6, 3),
    )
    return randomised(nn.Sequential(layers), seed=2).eval()


def positive(module: nn.Module) -> nn.Module:
    """Return a copy in float64 through which every path from a pixel to a unit carries a positive gradient.

    Weights are positive, and maxima are replaced by means over the same windows.
    """
    twin = copy.deepcopy(module).double().eval()
    with torch.no_grad():
        for part in twin.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.reset_running_stats()
            for tensor in part.parameters(recurse=False):
                tensor.fill_(1 / tensor[0].numel() if tensor.dim() > 1 else 1.0)
    for name, part in list(twin.named_modules()):
        if isinstance(part, nn.MaxPool2d):
            mean = nn.AvgPool2d(part.kernel_size, part.stride, part.padding, part.ceil_mode)
            twin.set_submodule(name, mean)
    return twin


def failing() -> nn.Module:
    """A factory that fails, with a message of two lines."""
    raise RuntimeError("no such thing\nreally not")


def not_a_module() -> str:
    """A factory that returns something else."""
    return "a network"


def two_faced() -> nn.Module:
    """Thirty features that like one pattern of 8 x 8 pixels each; number 30 likes a pattern or its negative.

    No two patterns overlap by more than chance, so that the image of a feature is known: its pattern.
    """
    generator = torch.Generator().manual_seed(3)
    blocks = (torch.rand(31, 3, 4, 4, generator=generator) > 0.5).float() * 2 - 1
    patterns = blocks.repeat_interleave(2, 2).repeat_interleave(2, 3)

    class TwoFaced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.match = nn.Conv2d(3, 31, 8, bias=False)
            self.match.weight = nn.Parameter(patterns / patterns[0].numel())
            self.features = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            z = self.match(x - 0.5)
            return self.features(torch.cat([z[:, :30], z[:, 30:].abs()], 1))

    return TwoFaced().eval()
