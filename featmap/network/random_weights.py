"""The same network with random weights: what a map owes to the architecture alone."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from featmap.errors import ModelError
from featmap.image_ops import pink_noise
from featmap.network.hooks import freeze
from featmap.network.loading import list_models, load
from featmap.network.model import Network
from featmap.network.weights import hash_state

CALIBRATION_IMAGES = 64
_Norm = nn.modules.batchnorm._BatchNorm


def randomise_weights(network: Network, seed: int = 0) -> Network:
    """Return the same architecture with random weights.

    Networks known by name are built anew with their own initialisation; one of the caller's own is copied and every
    module initialised again by its `reset_parameters`. The running statistics of batch norms are then taken over the
    `IMAGES` images with a 1/f spectrum of `transforms.pink`: with those of initialisation (0 and 1) activations shrink
    by orders of magnitude from layer to layer, and descents find no gradient.

    Raises
    ------
    ModelError
        if a module of the caller's own holds parameters that it cannot initialise again.
    """
    model = network.arguments.get("model")
    if model in list_models():
        module = load(model, f"random:{seed}").module
        own = dict(network.module.named_parameters())
        made = dict(module.named_parameters())
        if {k: p.shape for k, p in own.items()} != {k: p.shape for k, p in made.items()}:
            module = _reset(network, seed)
    else:
        module = _reset(network, seed)
    if hasattr(network.module, "transform_input"):
        module.transform_input = network.module.transform_input
    module = module.eval()
    found = replace(network, module=module, weights=f"random:{seed}", notes=(), arguments={}, _traces={})
    if any(isinstance(m, _Norm) for m in module.modules()):
        _calibrate(found)
        found.weights += ", batch norms on 1/f images"
    found.sha256 = hash_state(module)
    return found


def _reset(network: Network, seed: int) -> nn.Module:
    module = copy.deepcopy(network.module)
    stuck = [
        name or type(part).__name__
        for name, part in module.named_modules()
        if next(part.parameters(recurse=False), None) is not None and not hasattr(part, "reset_parameters")
    ]
    if stuck:
        raise ModelError(
            f"network {network.name} cannot be given random weights: {stuck[0]} has parameters but no reset_parameters"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # initialisers know no explicit generator; the fork keeps it ours
        for part in module.modules():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset) and next(part.parameters(recurse=False), None) is not None:
                reset()
    return module


def _calibrate(network: Network) -> None:
    """Set the batch norms' running statistics to those over 1/f images, each norm's behind the ones before it."""
    norms = [m for m in network.module.modules() if isinstance(m, _Norm) and m.track_running_stats]
    device = next(network.module.parameters()).device
    images = network.normalise(pink_noise(CALIBRATION_IMAGES, network.input_size).to(device))
    handles = [m.register_forward_pre_hook(_take) for m in norms]
    try:
        with freeze(network.module), torch.no_grad():
            network.module(images)
    finally:
        for handle in handles:
            handle.remove()


def _take(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
    """Take the mean and variance of what goes into a batch norm, in float64, before it is used."""
    axes = [a for a in range(given[0].dim()) if a != 1]
    values = given[0].double()
    assert isinstance(norm.running_mean, Tensor) and isinstance(norm.running_var, Tensor)
    norm.running_mean.copy_(values.mean(axes))
    norm.running_var.copy_(values.var(axes, correction=0))
