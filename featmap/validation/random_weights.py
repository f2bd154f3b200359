"""The same architecture with random weights: the control for what a map owes to learning."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from featmap.errors import ModelError
from featmap.image_ops import pink_noise
from featmap.network.loading import list_models, load
from featmap.network.model import Network
from featmap.network.modules import copy_module, freeze, is_reparametrised
from featmap.network.weights import hash_state
from featmap.rng import generator

CALIBRATION_IMAGES = 64
"""Number of images over which the statistics of batch norms are measured."""
_BatchNorm = nn.modules.batchnorm._BatchNorm


def randomise_weights(network: Network, seed: int = 0) -> Network:
    """Make the same architecture with random weights.

    Networks known by name are built again with their own initialisation. A network of the user's own is copied, and
    every module is initialised again by its `reset_parameters`; parameters of modules that have none, such as class
    tokens, positional embeddings and layer scales, are drawn from a normal distribution of their own mean and standard
    deviation. The running statistics of batch norms are then measured on `CALIBRATION_IMAGES` images with a 1/f
    spectrum (`image_ops.pink_noise`): with the initial ones (mean 0, variance 1) activations shrink by orders of
    magnitude from layer to layer, and no gradient arrives at the image.

    Parameters
    ----------
    network : Network
        The trained network; it is not changed.
    seed : int, default 0
        Seed of the initialisation.

    Returns
    -------
    Network
        A network with the same architecture and normalisation; its `weights` are described as ``random:SEED``.

    Raises
    ------
    ModelError
        If a module's weights are reparametrised.
    """
    model = network.arguments.get("model")
    if model in list_models():
        module = load(model, f"random:{seed}").module
        shapes = [{k: p.shape for k, p in m.named_parameters()} for m in (network.module, module)]
        if shapes[0] != shapes[1]:  # for example another number of classes
            module = _reset_parameters(network, seed)
    else:
        module = _reset_parameters(network, seed)
    if hasattr(network.module, "transform_input"):
        module.transform_input = network.module.transform_input
    module = module.eval()
    random_network = replace(network, module=module, weights=f"random:{seed}", notes=(), arguments={}, _traces={})
    if any(isinstance(m, _BatchNorm) for m in module.modules()):
        _calibrate_batch_norms(random_network)
        random_network.weights += ", batch norms on 1/f images"
    random_network.sha256 = hash_state(module)
    return random_network


def _reset_parameters(network: Network, seed: int) -> nn.Module:
    """Copy a network's module and initialise every part of it again."""
    module = copy_module(network.module)
    reparametrised = [name for name, part in module.named_modules() if is_reparametrised(part)]
    if reparametrised:  # its own initialisation would set a weight that is computed anew from other parameters
        raise ModelError(
            f"network {network.name} cannot be initialised: the weight of {reparametrised[0]} is reparametrised "
            "(weight norm, spectral norm); pass a network without it"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # initialisers take no generator; the fork restores the global one
        for part in module.modules():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset) and next(part.parameters(recurse=False), None) is not None:
                reset()
    for name, part in module.named_modules():
        if not callable(getattr(part, "reset_parameters", None)):
            _draw_parameters(part, name, seed)
    return module


def _draw_parameters(part: nn.Module, name: str, seed: int) -> None:
    """Draw a module's own parameters from normal distributions of their mean and standard deviation, in place."""
    for label, parameter in part.named_parameters(recurse=False):
        values = parameter.detach().double()
        draws = generator("weights", seed, f"{name}.{label}").standard_normal(tuple(parameter.shape))
        with torch.no_grad():
            parameter.copy_(values.mean() + values.std(correction=0) * torch.from_numpy(np.asarray(draws)))


def _calibrate_batch_norms(network: Network) -> None:
    """Set the batch norms' running statistics to those of their inputs over 1/f images.

    All are set in one forward pass: each batch norm is set before it is applied, so that the next one's inputs are
    already normalised.
    """
    norms = [m for m in network.module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    device = next(network.module.parameters()).device
    images = network.normalise(pink_noise(CALIBRATION_IMAGES, network.input_size, network.channels).to(device))
    handles = [m.register_forward_pre_hook(_set_statistics) for m in norms]
    try:
        with freeze(network.module), torch.no_grad():
            network.module(images)
            statistics = {name: value.clone() for name, value in network.module.named_buffers()}
    finally:
        for handle in handles:
            handle.remove()
    for name, value in network.module.named_buffers():  # the end of freezing has restored the buffers
        value.copy_(statistics[name])


def _set_statistics(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Set a batch norm's running mean and variance to those of its input, computed in float64."""
    axes = [a for a in range(inputs[0].dim()) if a != 1]
    values = inputs[0].double()
    assert isinstance(norm.running_mean, Tensor) and isinstance(norm.running_var, Tensor)
    norm.running_mean.copy_(values.mean(axes))
    norm.running_var.copy_(values.var(axes, correction=0))
