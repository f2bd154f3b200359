"""The linear twin of a network: the control for which every measure of nonlinearity must be zero."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from featmap.errors import ModelError
from featmap.network.model import Network

ACTIVATIONS = frozenset(
    {
        *("relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "elu", "selu", "celu", "gelu", "silu", "mish"),
        *("hardswish", "hardtanh", "softplus"),
    }
)


class _Linear(TorchFunctionMode):
    """Replace activation functions by the identity and maxima over windows by means."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name in ACTIVATIONS:
            return args[0] if args else kwargs["input"]
        if name == "local_response_norm":
            return args[0] if args else kwargs["input"]
        if name == "max_pool2d":
            return _means(*args, **kwargs)
        if name == "adaptive_max_pool2d":
            return _adaptive_means(*args, **kwargs)
        return func(*args, **kwargs)


def _means(
    input: Tensor,  # the name that torch uses: it may be passed as a keyword
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    """Take means in place of `max_pool2d`."""
    if dilation not in (1, (1, 1)):
        raise ModelError(f"max pooling with dilation {dilation} has no linear counterpart; choose a layer before it")
    return F.avg_pool2d(input, kernel_size, stride=stride, padding=padding, ceil_mode=ceil_mode)


def _adaptive_means(input: Tensor, output_size: Any, return_indices: bool = False) -> Tensor:
    """Take means in place of `adaptive_max_pool2d`."""
    return F.adaptive_avg_pool2d(input, output_size)


def linear_twin(network: Network) -> Network:
    """Copy a network as one that is affine from the image to every unit.

    The weights stay; every ReLU or similar activation function and every local response normalisation becomes the
    identity, and every maximum over a window becomes the mean over it. Layers, units and receptive fields stay the
    same. Products of activations (attention, squeeze and excitation) are left as they are: the twin of such a network
    is not affine.

    Parameters
    ----------
    network : Network
        Network to copy.

    Returns
    -------
    Network
        The copy, with "-linear" added to its name.
    """
    twin = copy.deepcopy(network.module)
    for module in list(twin.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.LocalResponseNorm):  # descents compute it by other functions
                setattr(module, name, nn.Identity())
    kind = type(twin)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with _Linear():
            return kind.forward(self, *args, **kwargs)

    twin.__class__ = type(f"Linear{kind.__name__}", (kind,), {"forward": forward, "__module__": __name__})
    return replace(
        network,
        module=twin,
        name=f"{network.name}-linear",
        weights=f"{network.weights}, without ReLUs and maxima",
        arguments={},
        _traces={},
    )
