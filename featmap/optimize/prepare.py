"""Prepare a copy of the network that computes the same, faster; only the descent runs on it.

Batch norms are folded into convolutions, a strided first convolution is computed by the space-to-depth transform, and
local response normalisation by sums over neighbouring channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.fusion import fuse_conv_bn_eval

from featmap.network.modules import copy_module, is_plain
from featmap.network.unit import split_call

FOLDED, UNTOUCHED = "folded", "untouched"
"""Networks that descents use: the copy with folded batch norms and a rearranged first convolution, or a plain copy."""
MAX_INPUT_CHANNELS = 4
"""Input channels up to which space-to-depth pays: libraries compute 8 or 16 at a time and leave the rest idle."""
MAX_PADDING_RATIO = 1.5
"""Largest size of the padded kernel over the kernel's own. Measured on a CPU, the transform takes 0.6 of the time of a
7 x 7 convolution of stride 2, and 1.5 of that of a 3 x 3 convolution of stride 2."""


@dataclass(frozen=True)
class Preparation:
    """How a network is prepared for some layers, and how the copy compares with it.

    Parameters
    ----------
    layers : tuple of str
        Names of the layers, sorted.
    network : str
        "folded" or "untouched".
    output : float
        Largest relative difference of a layer's output between folded copy and network, in float32; infinite where
        the copy fails.
    gradient : float
        Relative difference of the gradient of a loss on all layers.
    layout : torch.memory_format, default torch.channels_last
        Memory format of the weights.
    in_place : bool, default False
        Whether descents use the module itself, because a plain copy computes something else too.
    """

    layers: tuple[str, ...]
    network: str
    output: float
    gradient: float
    layout: torch.memory_format = torch.channels_last
    in_place: bool = False

    def to_json(self) -> dict[str, object]:
        """Convert to plain JSON values for a manifest.

        Returns
        -------
        dict
            The layers, the network that descents use, and the differences to two digits; None for an infinite one.
        """
        output, gradient = (float(f"{v:.2g}") if np.isfinite(v) else None for v in (self.output, self.gradient))
        return {"layers": list(self.layers), "network": self.network, "output": output, "gradient": gradient}

    def __str__(self) -> str:
        if not np.isfinite(self.output):
            return f"{', '.join(self.layers)} (the copy fails)"
        return f"{', '.join(self.layers)} (outputs by {self.output:.2g}, gradients by {self.gradient:.2g})"


def copy_settings(kind: str, folds: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Choose the settings by which a copy of the network is prepared.

    Parameters
    ----------
    kind : str
        "folded" or "untouched".
    folds : sequence of (str, str)
        Pairs that can be folded.

    Returns
    -------
    dict of str to Any
        Arguments of `prepare`.
    """
    return {"folds": folds} if kind == FOLDED else {"folds": (), "space_to_depth": False, "channel_sums": False}


def prepare(
    module: nn.Module,
    folds: Iterable[tuple[str, str]],
    layers: Sequence[str],
    device: torch.device,
    layout: torch.memory_format = torch.channels_last,
    dtype: torch.dtype | None = None,
    space_to_depth: bool | None = None,
    channel_sums: bool = True,
) -> nn.Module:
    """Copy a network for descents: frozen, folded, and in a fast layout.

    Batch norms are folded into the convolutions before them, except where the convolution's own output is requested.
    Without a `dtype` the gradient equals the untouched network's to 1e-10 in float64; in float32 units at a ReLU's
    boundary may flip. Weights that are not finite become 0 in the copy; responses are measured on the untouched
    network.

    Parameters
    ----------
    module : nn.Module
        The network; it is not changed.
    folds : iterable of (str, str)
        Names of the convolutions and of the batch norms after them, from `featmap.network.trace`.
    layers : sequence of str
        Layers whose outputs are requested; ``name@k`` is the k-th call of a module.
    device : torch.device
        Device of the copy.
    layout : torch.memory_format, default torch.channels_last
        Memory format of the weights.
    dtype : torch.dtype or None, default None
        Type of the weights; None keeps their own.
    space_to_depth : bool or None, default None
        Whether suitable convolutions are computed as `SpaceToDepthConv2d`; None uses it where it pays, on a CPU with
        channels last.
    channel_sums : bool, default True
        Whether local response norms are computed as `ChannelSumNorm`.

    Returns
    -------
    nn.Module
        The copy, in evaluation mode and without gradients of its weights.
    """
    copied = copy_module(module).eval().requires_grad_(False)
    requested = {id(copied.get_submodule(split_call(layer)[0])) for layer in layers}
    for conv_name, norm_name in folds:
        conv, norm = copied.get_submodule(conv_name), copied.get_submodule(norm_name)
        # A folded convolution outputs the batch norm's values, so one whose own output is requested stays.
        if id(conv) not in requested:
            _fold(conv, norm)
    # A zero gradient times NaN is NaN: one broken feature would spoil the gradients of all others in its layer.
    for tensor in (*copied.parameters(), *copied.buffers()):
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            tensor.nan_to_num_(0.0, 0.0, 0.0)
    if space_to_depth is None:
        space_to_depth = device.type == "cpu" and layout is torch.channels_last
    if space_to_depth:  # last: the rearranged weights are computed from the folded and finite ones
        use_space_to_depth(copied)
    if channel_sums:
        use_channel_sums(copied)
    return copied.to(device, dtype).to(memory_format=layout)


def _fold(conv: nn.Module, norm: nn.Module) -> None:
    """Move a batch norm into the convolution before it, in place; what is not exactly such a pair stays as it is.

    Both objects keep their identity, so that every other reference to them (a second name, a list of their parent's)
    sees the change too.
    """
    if not (is_plain(conv, nn.Conv2d) and is_plain(norm, nn.BatchNorm2d)) or conv.training or norm.training:
        return
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    folded = fuse_conv_bn_eval(conv, norm)
    conv.weight, conv.bias = folded.weight, folded.bias
    norm.__class__ = nn.Identity  # type: ignore[assignment]


def use_space_to_depth(module: nn.Module) -> None:
    """Replace every convolution that `supports_space_to_depth`, in place.

    Parameters
    ----------
    module : nn.Module
        The network to change.
    """
    for child in list(module.modules()):
        if supports_space_to_depth(child):
            # Changing the class keeps the object's identity, so that every other reference to the convolution (a second
            # name, a list of its parent's) uses the new forward pass too.
            child.__class__ = SpaceToDepthConv2d
            assert isinstance(child, SpaceToDepthConv2d)
            child.rearrange_weight()


def supports_space_to_depth(module: nn.Module) -> bool:
    """Check whether a module is a strided convolution that the transform speeds up.

    It has at most `MAX_INPUT_CHANNELS` input channels, pads with zeros and has no hooks, and padding its kernel to a
    multiple of the stride enlarges the kernel by a factor of at most `MAX_PADDING_RATIO`.

    Parameters
    ----------
    module : nn.Module
        Any module.

    Returns
    -------
    bool
        True if the module can be replaced and is the faster for it.
    """
    return (
        is_plain(module, nn.Conv2d)
        and isinstance(module, nn.Conv2d)
        and module.in_channels <= MAX_INPUT_CHANNELS
        and module.groups == 1
        and module.stride[0] == module.stride[1] > 1
        and module.dilation == (1, 1)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and math.prod(_padded_kernel_size(module)) <= MAX_PADDING_RATIO * math.prod(module.kernel_size)
    )


class SpaceToDepthConv2d(nn.Conv2d):
    """A strided convolution, computed with stride 1 over more channels.

    A convolution of stride s over C channels equals one of stride 1 over C s^2 channels: each s x s block of pixels
    becomes channels (the space-to-depth transform), and the kernel is padded with zeros to a multiple of s on each
    side. Weight and bias keep their values and names. `use_space_to_depth` turns a convolution into one of these; the
    constructor is not used.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype : Any
        As for `torch.nn.Conv2d`.
    """

    rearranged_weight: Tensor

    def rearrange_weight(self) -> None:
        """Compute `rearranged_weight` from the weight."""
        out_channels, in_channels, *sides = self.weight.shape
        s, padded = self.stride[0], _padded_kernel_size(self)
        weight = self.weight.detach().new_zeros(out_channels, in_channels, *padded)
        weight[:, :, : sides[0], : sides[1]] = self.weight.detach()
        height, width = (k // s for k in padded)
        # The order of channels is that of `pixel_unshuffle`: channel, then row and column within the block.
        weight = weight.view(out_channels, in_channels, height, s, width, s).permute(0, 1, 3, 5, 2, 4)
        weight = weight.reshape(out_channels, in_channels * s * s, height, width)
        # not persistent: the state dict stays the original network's
        self.register_buffer("rearranged_weight", weight, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve.

        Parameters
        ----------
        x : Tensor
            Input, B x C x H x W.

        Returns
        -------
        Tensor
            The output of the original convolution, up to rounding.
        """
        s, edges = self.stride[0], []
        for side, kernel, padded, padding in zip(
            x.shape[-2:], self.kernel_size, _padded_kernel_size(self), map(int, self.padding), strict=True
        ):
            steps = (side + 2 * padding - kernel) // s
            edges.append((padding, steps * s + padded - side - padding))
        x = functional.pad(x, (*edges[1], *edges[0]))  # a negative edge cuts off pixels that no window reaches
        return functional.conv2d(functional.pixel_unshuffle(x, s), self.rearranged_weight, self.bias)


def _padded_kernel_size(conv: nn.Conv2d) -> tuple[int, ...]:
    """Compute the kernel's sides, rounded up to multiples of the stride."""
    return tuple(-(-k // conv.stride[0]) * conv.stride[0] for k in conv.kernel_size)


def use_channel_sums(module: nn.Module) -> None:
    """Compute every plain local response norm as `ChannelSumNorm`, in place.

    Parameters
    ----------
    module : nn.Module
        The network to change.
    """
    for child in list(module.modules()):
        if is_plain(child, nn.LocalResponseNorm):
            child.__class__ = ChannelSumNorm  # keeps the object, to which others may refer


class ChannelSumNorm(nn.LocalResponseNorm):
    """Local response normalisation by sums over neighbouring channels.

    Channel c of the input x becomes ``x[c] / (k + alpha / size * sum(x[j]**2 for j in window(c))) ** beta``, as
    `torch.nn.functional.local_response_norm` defines it. torch sums by a three-dimensional average pooling, which takes
    longer than the convolutions around it: with it, half of the time of a step on the original GoogLeNet goes into two
    norms. `use_channel_sums` turns a norm into one of these.

    Parameters
    ----------
    size, alpha, beta, k : Any
        As for `torch.nn.LocalResponseNorm`.

    References
    ----------
    Krizhevsky, Sutskever and Hinton (2012), section 3.3, doi 10.1145/3065386.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise.

        Parameters
        ----------
        input : Tensor
            Input, B x C or B x C x ... .

        Returns
        -------
        Tensor
            The output of the original norm, up to rounding; of the input's shape.
        """
        out: Tensor = _ChannelSums.apply(input, self.size, self.alpha / self.size, self.beta, self.k)
        return out


class _ChannelSums(torch.autograd.Function):
    """``y = x / d**beta`` with ``d = k + weight * sum of x**2 over neighbouring channels``, and its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, weight: float, beta: float, k: float) -> Tensor:
        """Compute y."""
        before = size // 2
        base = sum_neighbours(x * x, before, size - 1 - before).mul_(weight).add_(k)
        if beta == 0.75:  # the usual one: roots and quotients round alike in every batch, and are faster than powers
            root = base.sqrt()
            factor = root.sqrt().mul_(root).reciprocal_()
        else:
            factor = base.pow(-beta)
        ctx.save_for_backward(x, base, factor)
        ctx.settings = size, weight, beta
        return x * factor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Compute ``g / d**beta - 2 weight beta x * sum of g x / d**(beta + 1)``, summed over neighbours."""
        x, base, factor = ctx.saved_tensors
        size, weight, beta = ctx.settings
        before = size // 2
        direct = gradient * factor
        # where channel c counts for channel j, j lies as far after c as c lies before j: an even window is mirrored
        shared = sum_neighbours((direct * x).div_(base), size - 1 - before, before)
        return direct.sub_(shared.mul_(x).mul_(2 * weight * beta)), None, None, None, None


def sum_neighbours(x: Tensor, before: int, after: int) -> Tensor:
    """Sum each channel with those around it.

    Parameters
    ----------
    x : Tensor
        B x C or B x C x ... .
    before, after : int
        Number of channels before and after each that are added; fewer at the ends.

    Returns
    -------
    Tensor
        The sums, of the same shape.
    """
    total, channels = x.clone(), x.shape[1]
    for shift in range(1, min(before, channels - 1) + 1):
        total.narrow(1, shift, channels - shift).add_(x.narrow(1, 0, channels - shift))
    for shift in range(1, min(after, channels - 1) + 1):
        total.narrow(1, 0, channels - shift).add_(x.narrow(1, shift, channels - shift))
    return total
