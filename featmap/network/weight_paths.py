"""Which weights make a layer's features and which read them, found by following channels through one forward pass.

A tensor's channels are followed through everything that treats each channel by itself (activation functions, batch
norm, pooling, dropout), and through concatenation. Whatever mixes channels or branches (a sum of two branches, a
reshape of channels) ends the trail: features behind it have no weights of their own, and are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from featmap.network.hooks import freeze
from featmap.network.model import Network

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
    """Where one channel of a tensor comes from: a convolution's output, a feature of the layer asked for."""

    maker: int = -1  # which convolution call made it, -1 unknown
    row: int = -1
    sign: float = 1.0  # of the batch norms' scales since
    feature: int = -1  # of the layer, -1 where it is none
    scale: float = 1.0  # of the batch norms since the layer


@dataclass(frozen=True, eq=False)
class FeatureWeights:
    """The weights of a layer's features.

    Attributes
    ----------
    vectors : D x V float64, a feature a row, zeros where its own convolution is narrower
    groups : D labels of what lives in one space (one convolution, one of its groups); -1 for features without weights
    names : the convolutions' names, by label of `groups` (or of those that read, all together)
    """

    vectors: np.ndarray
    groups: np.ndarray
    names: tuple[str, ...]


@dataclass
class _Call:
    """One call of a convolution: its weight (O x I/groups x ...), its groups, its name."""

    weight: Tensor
    groups: int
    name: str


@dataclass
class _Trail(TorchFunctionMode):
    """Follows channels through the functions of a forward pass."""

    names: dict[int, str]
    channels: dict[int, list[_Channel]] = field(default_factory=dict)
    kept: list[Any] = field(default_factory=list)
    calls: list[_Call] = field(default_factory=list)
    readers: list[tuple[_Call, list[_Channel]]] = field(default_factory=list)

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
        found = self._follow(name, out, args, kwargs)
        if found is None:
            self.channels.pop(id(out), None)
        else:
            self.channels[id(out)] = found
        self.kept.append(out)  # an id is only unique while its tensor lives
        return out

    def _follow(self, name: str, out: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> list[_Channel] | None:
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
            return before if out.dim() >= 2 and out.shape[1] == len(before) and _one_wide(args[0], name) else None
        keeps = name in _CHANNELWISE and out.shape[1] == len(before)
        return before if keeps and not any(isinstance(a, Tensor) and a.dim() > 1 for a in args[1:]) else None

    def _convolution(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> list[_Channel]:
        given = [*args, *[None] * 7]
        weight = kwargs.get("weight", given[1])
        groups = 1 if name == "linear" else int(kwargs.get("groups", given[6]) or 1)
        call = _Call(weight, groups, self.names.get(id(weight), f"{name} {len(self.calls)}"))
        read = self.channels.get(id(given[0]), [])
        if any(c.feature >= 0 for c in read) and len(read) == weight.shape[1] * groups:
            self.readers.append((call, read))
        self.calls.append(call)
        return [_Channel(maker=len(self.calls) - 1, row=k) for k in range(weight.shape[0])]

    def _concatenation(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[_Channel] | None:
        tensors = kwargs.get("tensors", args[0] if args else ())
        if int(kwargs.get("dim", args[1] if len(args) > 1 else 0)) != 1:
            return None
        pieces = [self.channels.get(id(t), [_Channel()] * t.shape[1]) for t in tensors]
        return [c for piece in pieces for c in piece]

    def _batch_norm(self, before: list[_Channel], args: Sequence[Any], kwargs: dict[str, Any]) -> list[_Channel]:
        names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
        given = dict(zip(names, args, strict=False)) | kwargs
        variance, gamma = given.get("running_var"), given.get("weight")
        scale = torch.ones(len(before), dtype=torch.float64)
        if gamma is not None:
            scale = scale * gamma.detach().double().cpu()
        if variance is not None:
            scale = scale / torch.sqrt(variance.detach().double().cpu() + float(given.get("eps", 1e-5)))
        return [
            _Channel(c.maker, c.row, c.sign * float(np.sign(s)), c.feature, c.scale * float(s))
            for c, s in zip(before, scale.tolist(), strict=True)
        ]

    def mark(self, tensor: Tensor) -> list[_Channel]:
        """Call the channels of a tensor the features of the layer; return what is known of them."""
        known = self.channels.get(id(tensor), [_Channel()] * tensor.shape[1])
        self.channels[id(tensor)] = [_Channel(c.maker, c.row, c.sign, k) for k, c in enumerate(known)]
        self.kept.append(tensor)
        return known


def _one_wide(tensor: Any, name: str) -> bool:
    """Does a change of shape leave each channel where it is? So it does where the grid is one position, or averaged."""
    return name == "mean" or (isinstance(tensor, Tensor) and all(side == 1 for side in tensor.shape[2:]))


def find_weights(network: Network, layer: str, size: int) -> tuple[FeatureWeights, FeatureWeights]:
    """Return the incoming and the outgoing weights of a layer's features.

    Incoming: the row of the convolution (or linear map) that makes the feature, turned over where a batch norm behind
    it has a negative scale. Only features of one convolution, and of one of its groups, have one input space.
    Outgoing: how all convolutions that read the layer directly (through functions of each channel alone, pooling and
    batch norm, whose scale is folded in) read the feature, one after the other. Features are comparable where the
    same convolutions, by the same groups, read them.

    Raises
    ------
    UnitError
        for an unknown layer.
    """
    place = network.layer(layer, size)
    path, at, call = layer.rpartition("@")
    path, wanted = (path, int(call)) if at and call.isdigit() else (layer, 1)
    module = network.module
    parameter = next(module.parameters(), None)
    image = torch.full((1, 3, size, size), 0.5, device=parameter.device if parameter is not None else "cpu")
    trail = _Trail({id(p): n.removesuffix(".weight") for n, p in module.named_parameters()})
    made: list[list[_Channel]] = []
    seen = [0]

    def after(_: nn.Module, __: Any, out: Any) -> None:
        seen[0] += 1
        if seen[0] == wanted and isinstance(out, Tensor):
            made.append(trail.mark(out))

    handle = module.get_submodule(path).register_forward_hook(after)
    try:
        with freeze(module), torch.no_grad(), trail:
            module(image)
    finally:
        handle.remove()
    return _incoming(trail, made[0] if made else [], place.channels), _outgoing(trail, place.channels)


def _incoming(trail: _Trail, made: list[_Channel], count: int) -> FeatureWeights:
    rows: list[np.ndarray] = []
    groups = np.full(count, -1)
    names: list[str] = []
    labels: dict[tuple[int, int], int] = {}
    flat = {k: c.weight.detach().double().cpu().flatten(1).numpy() for k, c in enumerate(trail.calls)}
    for k in range(count):
        channel = made[k] if k < len(made) else _Channel()
        if channel.maker < 0:
            rows.append(np.zeros(0))
            continue
        call = trail.calls[channel.maker]
        part = channel.row // max(1, call.weight.shape[0] // call.groups)
        key = (channel.maker, part)
        if key not in labels:
            labels[key] = len(labels)
            names.append(call.name if call.groups == 1 else f"{call.name}, group {part}")
        groups[k] = labels[key]
        rows.append(channel.sign * flat[channel.maker][channel.row])
    return FeatureWeights(_padded(rows), groups, tuple(names))


def _outgoing(trail: _Trail, count: int) -> FeatureWeights:
    pieces: list[list[np.ndarray]] = [[] for _ in range(count)]
    keys: list[list[tuple[int, int]]] = [[] for _ in range(count)]
    for number, (call, read) in enumerate(trail.readers):
        weight = call.weight.detach().double().cpu().flatten(2) if call.weight.dim() > 2 else call.weight[:, :, None]
        values = weight.detach().double().cpu().numpy()
        inputs, outputs = values.shape[1], values.shape[0] // call.groups
        for place, channel in enumerate(read):
            if channel.feature < 0:
                continue
            part = place // inputs
            block = values[part * outputs : (part + 1) * outputs, place % inputs]
            pieces[channel.feature].append(channel.scale * block.ravel())
            keys[channel.feature].append((number, part))
    labels: dict[tuple[tuple[int, int], ...], int] = {}
    groups = np.array([labels.setdefault(tuple(key), len(labels)) if key else -1 for key in keys], dtype=int)
    rows = [np.concatenate(p) if p else np.zeros(0) for p in pieces]
    return FeatureWeights(_padded(rows), groups, tuple(dict.fromkeys(call.name for call, _ in trail.readers)))


def _padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    width = max((len(r) for r in rows), default=0)
    full = np.zeros((len(rows), width))
    for k, row in enumerate(rows):
        full[k, : len(row)] = row
    return full
