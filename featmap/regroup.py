"""A strided convolution over few channels as one of stride one over many: the same sums, in fewer, fuller pieces."""

from __future__ import annotations

import torch.nn.functional as functional
from torch import Tensor, nn

FEW = 4
"""Input channels up to which it pays: libraries compute 8 or 16 channels at a time and leave the rest idle."""


class Regrouped(nn.Conv2d):
    """A convolution of stride s over C channels, computed as one of stride 1 over C s^2 channels.

    Pixels are put into channels; the kernel is filled up with zeros to a multiple of s on each side. Weight and bias
    stay what they were.

    Parameters
    ----------
    conv : one that `can_be_regrouped`
    """

    grouped: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        count, channels, *sides = conv.weight.shape
        kernel, s = (sides[0], sides[1]), conv.stride[0]
        high, wide = (int(p) for p in conv.padding)
        super().__init__(channels, count, kernel, s, (high, wide), bias=conv.bias is not None, device="meta")
        self.weight, self.bias, self.training = conv.weight, conv.bias, conv.training
        self.filled = tuple(-(-k // s) * s for k in kernel)
        weight = conv.weight.detach().new_zeros(count, channels, *self.filled)
        weight[:, :, : kernel[0], : kernel[1]] = conv.weight.detach()
        high, wide = (k // s for k in self.filled)
        weight = weight.view(count, channels, high, s, wide, s).permute(0, 1, 3, 5, 2, 4)
        self.register_buffer("grouped", weight.reshape(count, channels * s * s, high, wide), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the convolution gives for B x C x H x W."""
        s, edges = self.stride[0], []
        for side, kernel, filled, padding in zip(
            x.shape[-2:], self.kernel_size, self.filled, map(int, self.padding), strict=True
        ):
            steps = (side + 2 * padding - kernel) // s
            edges.append((padding, steps * s + filled - side - padding))
        x = functional.pad(x, (*edges[1], *edges[0]))  # a side that no window reaches is cut off
        return functional.conv2d(functional.pixel_unshuffle(x, s), self.grouped, self.bias)


def can_be_regrouped(module: nn.Module) -> bool:
    """Return whether a module is a plain strided convolution over few channels."""
    return (
        type(module) is nn.Conv2d
        and module.in_channels <= FEW
        and module.groups == 1
        and module.stride[0] == module.stride[1] > 1
        and module.dilation == (1, 1)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and not module._forward_hooks
        and not module._forward_pre_hooks
    )


def regroup(module: nn.Module) -> None:
    """Replace every convolution of a module that can be regrouped, in place."""
    for name, child in list(module.named_modules()):
        if name and can_be_regrouped(child):
            assert isinstance(child, nn.Conv2d)
            module.set_submodule(name, Regrouped(child))
