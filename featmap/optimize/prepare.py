"""Graph preparation: a copy of the network that computes the same, faster. Only the descent runs on it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from featmap.optimize.regroup import regroup


def prepared(
    module: nn.Module,
    folds: Iterable[tuple[str, str]],
    layers: Sequence[str],
    device: torch.device,
    layout: torch.memory_format = torch.channels_last,
    dtype: torch.dtype | None = None,
    regrouped: bool | None = None,
) -> nn.Module:
    """Return a frozen copy of `module` for descents on `device`; the module itself is not touched.

    Batch norms are folded into the convolutions before them (`folds`, from `featmap.network.trace`), except where
    the convolution's own output is asked for, and the weights lie in `layout`, in `dtype` (None: as they are). With
    `regrouped` the first convolution is computed as `featmap.optimize.regroup` says (None: where it pays, on a CPU
    with channels
    last). Without a `dtype` the gradient equals the untouched network's to 1e-10 in float64; in float32 units at a
    ReLU's boundary may flip. Weights that are no numbers become 0 in the copy: a zero gradient times NaN is NaN, so
    that one broken feature would spoil the gradients of all others in its layer. Its own response is the untouched
    network's.
    """
    twin = copy.deepcopy(module).eval().requires_grad_(False)
    wanted = {layer.rpartition("@")[0] or layer for layer in layers}
    for conv_name, norm_name in folds:
        if conv_name in wanted:
            continue
        conv, norm = twin.get_submodule(conv_name), twin.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        twin.set_submodule(conv_name, fuse_conv_bn_eval(conv, norm))
        twin.set_submodule(norm_name, nn.Identity())
    for tensor in (*twin.parameters(), *twin.buffers()):
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            tensor.nan_to_num_(0.0, 0.0, 0.0)
    if regrouped is None:
        regrouped = device.type == "cpu" and layout is torch.channels_last
    if regrouped:
        regroup(twin)
    return twin.to(device, dtype).to(memory_format=layout)
