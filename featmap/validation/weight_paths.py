"""Incoming and outgoing weights of a layer's features, found by tracking channels through one forward pass.

Channels are tracked through everything that treats each channel by itself (activation functions, batch norm, pooling,
dropout), and through concatenation. Whatever mixes channels or branches (a sum of two branches, a reshape of channels)
ends the tracking: features after it have no weights of their own, and are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from featmap.image_shape import Size, as_pair
from featmap.network.directions import split_name
from featmap.network.model import Network
from featmap.network.modules import freeze
from featmap.network.unit import split_call

_CHANNELWISE = {
    *("relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "hardtanh", "hardtanh_", "elu", "elu_", "selu", "celu"),
    *("silu", "gelu", "hardswish", "hardsigmoid", "mish", "softplus", "sigmoid", "tanh", "prelu", "clamp", "clamp_"),
    *("clamp_min", "clamp_min_", "dropout", "dropout2d", "feature_dropout", "contiguous", "clone", "to", "float"),
    *("max_pool2d", "boolean_dispatch", "fn", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "lp_pool2d"),
    *("interpolate", "pad", "instance_norm", "detach"),
}
_CONVOLUTIONS = {"conv2d", "linear"}


@dataclass(frozen=True)
class _Channel:
    """Origin of one channel of a tensor: a row of a convolution, a feature of the requested layer, or both."""

    convolution: int = -1  # number of the convolution call that computed it, -1 unknown
    row: int = -1  # output channel of that convolution
    sign: float = 1.0  # of the batch norms' scales since the convolution
    feature: int = -1  # feature of the requested layer, -1 for none
    scale: float = 1.0  # of the batch norms since the requested layer


@dataclass(frozen=True, eq=False)
class FeatureWeights:
    """The incoming or outgoing weights of a layer's features.

    Parameters
    ----------
    vectors : np.ndarray
        D x V, float64, one row per feature; padded with zeros where a feature has fewer weights than others.
    groups : np.ndarray
        D labels of the space that a feature's weights live in (one convolution, and one of its groups); weights of
        different spaces cannot be compared. -1 for features without weights.
    names : tuple of str
        Names of the convolutions: for incoming weights by label of `groups`, for outgoing ones all that read the layer.
    """

    vectors: np.ndarray
    groups: np.ndarray
    names: tuple[str, ...]


@dataclass
class _ConvolutionCall:
    """One call of a convolution or linear map: its weight (O x I/groups x ...), number of groups and name."""

    weight: Tensor
    groups: int
    name: str


@dataclass
class _ChannelTracker(TorchFunctionMode):
    """Tracks channels through the torch functions of a forward pass."""

    names: dict[int, str]
    channels: dict[int, list[_Channel]] = field(default_factory=dict)
    alive: list[Any] = field(default_factory=list)
    calls: list[_ConvolutionCall] = field(default_factory=list)
    readers: list[tuple[_ConvolutionCall, list[_Channel]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if not isinstance(out, Tensor) or name == "__get__" or out.dim() < 2:
            return out
        channels = self._track(name, out, args, kwargs)
        if channels is None:
            self.channels.pop(id(out), None)
        else:
            self.channels[id(out)] = channels
        self.alive.append(out)  # an id is only unique while its tensor lives
        return out

    def _track(self, name: str, out: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> list[_Channel] | None:
        """Find the origins of the channels of a function's output; None where they are unknown."""
        if name in _CONVOLUTIONS:
            return self._convolution(name, args, kwargs)
        if name in {"cat", "concat", "concatenate"}:
            return self._concatenation(args, kwargs)
        before = self.channels.get(id(args[0])) if args else None
        if before is None:
            return None
        if name == "batch_norm":
            return self._batch_norm(before, args, kwargs)
        if name in {"flatten", "reshape", "view", "squeeze", "mean"}:
            return before if out.dim() >= 2 and out.shape[1] == len(before) and _keeps_channels(args[0], name) else None
        keeps = name in _CHANNELWISE and out.shape[1] == len(before)
        return before if keeps and not any(isinstance(a, Tensor) and a.dim() > 1 for a in args[1:]) else None

    def _convolution(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> list[_Channel]:
        """Record a convolution, and whether it reads the requested layer; its outputs are new channels."""
        inputs = [*args, *[None] * 7]
        weight = kwargs.get("weight", inputs[1])
        groups = 1 if name == "linear" else int(kwargs.get("groups", inputs[6]) or 1)
        call = _ConvolutionCall(weight, groups, self.names.get(id(weight), f"{name} {len(self.calls)}"))
        channels = self.channels.get(id(inputs[0]), [])
        if any(c.feature >= 0 for c in channels) and len(channels) == weight.shape[1] * groups:
            self.readers.append((call, channels))
        self.calls.append(call)
        return [_Channel(convolution=len(self.calls) - 1, row=k) for k in range(weight.shape[0])]

    def _concatenation(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[_Channel] | None:
        """Join the channels of concatenated tensors; None where another axis is concatenated."""
        tensors = kwargs.get("tensors", args[0] if args else ())
        if int(kwargs.get("dim", args[1] if len(args) > 1 else 0)) != 1:
            return None
        parts = [self.channels.get(id(t), [_Channel()] * t.shape[1]) for t in tensors]
        return [c for part in parts for c in part]

    def _batch_norm(self, before: list[_Channel], args: Sequence[Any], kwargs: dict[str, Any]) -> list[_Channel]:
        """Fold a batch norm's scale and its sign into the channels."""
        names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
        arguments = dict(zip(names, args, strict=False)) | kwargs
        variance, gamma = arguments.get("running_var"), arguments.get("weight")
        scale = torch.ones(len(before), dtype=torch.float64)
        if gamma is not None:
            scale = scale * gamma.detach().double().cpu()
        if variance is not None:
            scale = scale / torch.sqrt(variance.detach().double().cpu() + float(arguments.get("eps", 1e-5)))
        return [
            _Channel(c.convolution, c.row, c.sign * float(np.sign(s)), c.feature, c.scale * float(s))
            for c, s in zip(before, scale.tolist(), strict=True)
        ]

    def mark(self, tensor: Tensor, count: int) -> list[_Channel]:
        """Mark a tensor's `count` channels as the features of the requested layer; return their origins."""
        origins = self.channels.get(id(tensor), [_Channel()] * count)
        self.channels[id(tensor)] = [_Channel(c.convolution, c.row, c.sign, k) for k, c in enumerate(origins)]
        self.alive.append(tensor)
        return origins


def _keeps_channels(tensor: Any, name: str) -> bool:
    """Check whether a reshape keeps the channels: the grid is a single position, or it is averaged."""
    return name == "mean" or (isinstance(tensor, Tensor) and all(side == 1 for side in tensor.shape[2:]))


def find_weights(network: Network, layer: str, size: Size) -> tuple[FeatureWeights, FeatureWeights]:
    """Find the incoming and the outgoing weights of a layer's features.

    Incoming: the row of the convolution (or linear map) that computes the feature, negated where a batch norm after
    it has a negative scale. Only features of one convolution, and of one of its groups, share an input space.

    The incoming weights of directions are the weights of the channels that they are read from.

    Outgoing: the weights by which all convolutions that read the layer directly (through functions of each channel
    alone, pooling, and batch norm, whose scale is folded in) read the feature, one after the other. Features are
    comparable where the same convolutions, in the same groups, read them. Nothing reads directions.

    Parameters
    ----------
    network : Network
        The network.
    layer : str
        Name of the layer.
    size : int or (int, int)
        Image size in pixels.

    Returns
    -------
    incoming : FeatureWeights
        The incoming weights.
    outgoing : FeatureWeights
        The outgoing weights.

    Raises
    ------
    UnitError
        If the layer is unknown.
    """
    channels = network.layer(layer, size).channels
    if layer in network.directions:
        vectors, base = network.directions[layer].vectors.astype(np.float64), split_name(layer)[0]
        nothing = FeatureWeights(np.zeros((channels, 0)), np.full(channels, -1), ())
        return FeatureWeights(vectors, np.zeros(channels, dtype=int), (base,)), nothing
    path, call = split_call(layer)
    module = network.module
    parameter = next(module.parameters(), None)
    device = parameter.device if parameter is not None else "cpu"
    image = torch.full((1, network.channels, *as_pair(size)), 0.5, device=device)
    tracker = _ChannelTracker({id(p): n.removesuffix(".weight") for n, p in module.named_parameters()})
    origins: list[list[_Channel]] = []
    call_count = 0

    def mark_layer(_: nn.Module, __: Any, output: Any) -> None:
        nonlocal call_count
        call_count += 1
        if call_count == call and isinstance(output, Tensor):
            origins.append(tracker.mark(output, channels))

    handle = module.get_submodule(path).register_forward_hook(mark_layer)
    try:
        with freeze(module), torch.no_grad(), tracker:
            module(image)
    finally:
        handle.remove()
    return _incoming_weights(tracker, origins[0] if origins else [], channels), _outgoing_weights(tracker, channels)


def _incoming_weights(tracker: _ChannelTracker, origins: list[_Channel], count: int) -> FeatureWeights:
    """Collect the rows of the convolutions that compute the features."""
    rows: list[np.ndarray] = []
    groups = np.full(count, -1)
    names: list[str] = []
    labels: dict[tuple[int, int], int] = {}
    weights = {k: c.weight.detach().double().cpu().flatten(1).numpy() for k, c in enumerate(tracker.calls)}
    for k in range(count):
        channel = origins[k] if k < len(origins) else _Channel()
        if channel.convolution < 0:
            rows.append(np.zeros(0))
            continue
        call = tracker.calls[channel.convolution]
        group = channel.row // max(1, call.weight.shape[0] // call.groups)
        key = (channel.convolution, group)
        if key not in labels:
            labels[key] = len(labels)
            names.append(call.name if call.groups == 1 else f"{call.name}, group {group}")
        groups[k] = labels[key]
        rows.append(channel.sign * weights[channel.convolution][channel.row])
    return FeatureWeights(_pad_rows(rows), groups, tuple(names))


def _outgoing_weights(tracker: _ChannelTracker, count: int) -> FeatureWeights:
    """Collect the weights by which the convolutions after the layer read its features."""
    blocks: list[list[np.ndarray]] = [[] for _ in range(count)]
    keys: list[list[tuple[int, int]]] = [[] for _ in range(count)]
    for number, (call, channels) in enumerate(tracker.readers):
        weight = call.weight.detach().double().cpu().flatten(2) if call.weight.dim() > 2 else call.weight[:, :, None]
        values = weight.detach().double().cpu().numpy()
        # a grouped convolution's group g reads `inputs` channels from g * inputs on and writes `outputs` rows
        inputs, outputs = values.shape[1], values.shape[0] // call.groups
        for position, channel in enumerate(channels):
            if channel.feature < 0:
                continue
            group = position // inputs
            block = values[group * outputs : (group + 1) * outputs, position % inputs]
            blocks[channel.feature].append(channel.scale * block.ravel())
            keys[channel.feature].append((number, group))
    labels: dict[tuple[tuple[int, int], ...], int] = {}
    groups = np.array([labels.setdefault(tuple(key), len(labels)) if key else -1 for key in keys], dtype=int)
    rows = [np.concatenate(b) if b else np.zeros(0) for b in blocks]
    return FeatureWeights(_pad_rows(rows), groups, tuple(dict.fromkeys(call.name for call, _ in tracker.readers)))


def _pad_rows(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Stack rows of different lengths into a matrix, padded with zeros."""
    width = max((len(r) for r in rows), default=0)
    full = np.zeros((len(rows), width))
    for k, row in enumerate(rows):
        full[k, : len(row)] = row
    return full
