"""Load a network by name, import path, checkpoint or module."""

from __future__ import annotations

import importlib
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featmap.errors import ModelError, describe_error, first_line, suggest
from featmap.files import hash_file
from featmap.image_shape import Size, as_pair, as_size, describe_colours, format_size
from featmap.network import modules
from featmap.network.inputs import find_input
from featmap.network.libraries import (
    TIMM,
    build_timm,
    cache_path,
    fetch,
    fetch_timm,
    import_timm,
    load_torchvision,
)
from featmap.network.model import MAX_IMAGE_SIZE, Network, Values
from featmap.network.trace import trace
from featmap.network.weights import hash_state, load_state, match_state, read_state, read_states

torchvision = load_torchvision()

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's red, green and blue, which torchvision's weights expect."""
AUXILIARY_HEADS = ("googlenet", "inception_v3")
"""Networks of torchvision that have auxiliary classifiers, which are left out here."""
MAX_CHANNELS = 4096
"""Largest number of input channels."""
REFERENCE_SIZE = 96
"""Image size of the bundled network in pixels."""


def find_data_folder() -> Path:
    """Find the folder of the bundled weights.

    Returns
    -------
    Path
        The folder inside the installed package, or beside it in a checkout.

    Raises
    ------
    ModelError
        If neither exists.
    """
    here = Path(__file__).resolve().parents[1]
    for folder in (here / "_data", here.parent / "data"):
        if (folder / "card.json").is_file():
            return folder
    raise ModelError(
        "the bundled weights are missing from this installation; reinstall featmap or choose another model"
    )


def list_models() -> list[str]:
    """List the names of models that `load` accepts besides import paths.

    Returns
    -------
    list of str
        ``reference`` and torchvision's classification networks.
    """
    return ["reference", *torchvision.models.list_models(module=torchvision.models)]


def load(
    model: str | nn.Module | Network = "reference",
    weights: str | Path | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_size: Size | None = None,
    channels: int | None = None,
    allow_stochastic: bool = False,
) -> Network:
    """Load a network.

    Parameters
    ----------
    model : str, nn.Module or Network, default "reference"
        ``reference`` (the bundled GoogLeNet), the name of a torchvision classification network, ``timm:NAME`` for one
        of timm's, an import path ``package.module:factory``, or a module of your own. A `Network` is returned as it is.
    weights : str, Path or None, default None
        Path of a `.safetensors` file or of a state dict; ``random`` or ``random:7`` (with a seed); the name of a set
        of weights that torchvision publishes. None takes the bundled or published weights, or the module's own.
    mean : sequence of float or None, default None
        Mean of each channel (red, green and blue) that is subtracted from images in [0, 1]. None takes that of the
        weights; a module of your own then takes images in [0, 1].
    std : sequence of float or None, default None
        Standard deviation of each channel by which the images are divided; goes together with `mean`.
    input_size : int, (int, int) or None, default None
        Image size in pixels that the network was trained for, or height and width; None takes that of the weights, and
        searches for one that works with a module of your own.
    channels : int or None, default None
        Number of input channels of a module of your own; None finds it by the first layer, or by trying.
    allow_stochastic : bool, default False
        Go on with a network that gives different results for one image, such as one whose dropout stays active; its
        runs cannot be repeated.

    Returns
    -------
    Network
        The network with its weights, its normalisation and their identity.

    Raises
    ------
    ModelError
        If the model or the weights are unknown, cannot be loaded or do not fit each other, or if the normalisation,
        the size or the number of channels is invalid.
    InputError
        If the network takes something other than one batch of images; the message shows a wrapper.
    """
    if isinstance(model, Network):
        if any(v is not None for v in (weights, mean, std, input_size, channels, allow_stochastic or None)):
            raise ModelError("a Network has its weights and normalisation already; load it again to change them")
        return model
    if not isinstance(model, (str, nn.Module)):
        raise ModelError(f"model of type {type(model).__name__}; allowed: a name, package.module:factory, or a module")
    input_size = None if input_size is None else as_size(input_size)
    _check_input_settings(mean, std, input_size, channels)
    if isinstance(model, nn.Module):
        network = _load_custom(model, type(model).__name__, weights, input_size, channels)
    elif model.startswith(TIMM):
        network = _load_timm(model, weights)
    elif ":" in model:
        network = _load_custom(_call_factory(model), model, weights, input_size, channels)
    elif model == "reference":
        network = _load_reference(weights)
    else:
        network = _load_published(model, weights)
    if channels is not None and channels != network.channels:
        raise ModelError(f"channels {channels}: network {network.name} takes images of {network.channels}")
    if mean is not None and std is not None:
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != network.channels:
                raise ModelError(f"{name} must be {_count_numbers(network.channels)}, not {len(values)}")
        network.mean, network.std = _as_values(mean), _as_values(std)
        network.notes = tuple(n for n in network.notes if "[0, 1]" not in n)
    if input_size is not None and input_size != network.input_size:
        network.input_size, network.working_size = input_size, network.input_size
    network.allow_stochastic = allow_stochastic
    network.notes += modules.not_finite(network.module)
    network.arguments = {
        "model": model if isinstance(model, str) else None,
        "weights": None if weights is None else str(weights),
        "mean": None if mean is None else list(mean),
        "std": None if std is None else list(std),
        "input_size": input_size if input_size is None or isinstance(input_size, int) else list(input_size),
        **({} if channels is None else {"channels": channels}),
        **({"allow_stochastic": True} if allow_stochastic else {}),
    }
    return network


def _count_numbers(channels: int) -> str:
    """Say how many numbers a mean or a standard deviation has."""
    if channels == 3:
        return "three numbers (red, green, blue)"
    return "one number (gray)" if channels == 1 else f"{channels} numbers, one for each input channel"


def _check_input_settings(
    mean: Sequence[float] | None, std: Sequence[float] | None, size: Size | None, channels: int | None
) -> None:
    """Check the normalisation, the input size and the number of channels."""
    if (mean is None) != (std is None):
        raise ModelError("mean and std belong together; give both, a number for each input channel, or neither")
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and not all(math.isfinite(v) for v in values):
            raise ModelError(f"{name} {','.join(map(str, values))}: give finite numbers")
    if std is not None and any(v <= 0 for v in std):
        raise ModelError(f"std {','.join(map(str, std))}: a standard deviation is above 0")
    if size is not None and min(as_pair(size)) < 1:
        raise ModelError(f"input size {format_size(size)}: give 1 pixel or more")
    if size is not None and max(as_pair(size)) > MAX_IMAGE_SIZE:
        raise ModelError(f"input size {format_size(size)}: give at most {MAX_IMAGE_SIZE} pixels")
    if channels is not None and (isinstance(channels, bool) or not isinstance(channels, int) or channels < 1):
        raise ModelError(f"channels {channels!r}: give a whole number, 1 or more")
    if channels is not None and channels > MAX_CHANNELS:
        raise ModelError(f"channels {channels}: give at most {MAX_CHANNELS}")


def _as_values(values: Sequence[float]) -> Values:
    """Convert numbers to a tuple of floats."""
    return tuple(float(v) for v in values)


def _load_reference(weights: str | Path | None) -> Network:
    """Load the bundled network, or its architecture with other weights."""
    folder = find_data_folder()
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    classes = tuple(card["classes"])
    if weights is not None:
        return _load_architecture(
            "reference", lambda n, init: build_googlenet(n or len(classes), init), weights, classes
        )
    path = folder / card["file"]
    digest = hash_file(path)
    if digest != card["sha256"]:
        raise ModelError(
            f"the bundled weights {path} are damaged (SHA-256 {digest[:12]}, not {card['sha256'][:12]}); "
            "reinstall featmap"
        )
    module = build_googlenet(len(classes), init=False)
    load_state(module, read_state(path), "reference", path.name)
    return Network(
        module.eval(), "reference", card["file"], digest, REFERENCE_SIZE, IMAGENET_MEAN, IMAGENET_STD, (), classes
    )


def build_googlenet(classes: int, init: bool) -> nn.Module:
    """Build the bundled network's GoogLeNet, without auxiliary classifiers.

    Parameters
    ----------
    classes : int
        Number of classes.
    init : bool
        Whether to initialise the weights as GoogLeNet does, from torch's global generator.

    Returns
    -------
    nn.Module
        The module.
    """
    return torchvision.models.googlenet(
        weights=None, num_classes=classes, aux_logits=False, transform_input=False, init_weights=init
    )


def _load_published(name: str, weights: str | Path | None) -> Network:
    """Load a torchvision network with published weights, or its architecture with other weights."""
    allowed = list_models()
    if name not in allowed:
        raise ModelError(
            f"model {name!r} is unknown{suggest(name, allowed)}; allowed: reference, a torchvision classification "
            "network, timm:NAME, or package.module:factory"
        )

    def build(classes: int | None, init: bool) -> nn.Module:
        extra: dict[str, Any] = {} if classes is None else {"num_classes": classes}
        if name in AUXILIARY_HEADS:
            extra |= {"aux_logits": False, "init_weights": init}
        return torchvision.models.get_model(name, weights=None, **extra)

    sets = list(torchvision.models.get_model_weights(name))
    published = {w.name: w for w in sets}
    if weights is not None and str(weights) not in published:
        network = _load_architecture(name, build, weights, ())
        _apply_torchvision_preset(network, sets, weights)
        return network
    if not sets:
        raise ModelError(f"torchvision publishes no weights for {name}; choose a weights file or random weights")
    weight_set = published[str(weights)] if weights is not None else _choose_weight_set(sets)
    path = fetch(weight_set.url, name)
    module = build(len(weight_set.meta["categories"]), False)
    load_state(module, read_state(path), name, path.name)
    network = Network(module.eval(), name, f"{weight_set.name} ({path.name})", hash_file(path))
    network.categories = tuple(weight_set.meta["categories"])
    _apply_preset(network, weight_set)
    prefix = path.stem.rpartition("-")[2]
    if len(prefix) == 8 and not network.sha256.startswith(prefix):
        network.notes += (f"NOT torchvision's published file (its SHA-256 begins with {prefix})",)
    return network


def _load_timm(name: str, weights: str | Path | None) -> Network:
    """Load a network of timm with published weights, or its architecture with other weights."""
    timm_name = name.removeprefix(TIMM)

    def build(classes: int | None, init: bool) -> nn.Module:
        return build_timm(timm_name, classes=classes)

    if weights is not None:
        network = _load_architecture(name, build, weights, ())
    else:
        path, label = fetch_timm(timm_name)
        network = Network(build_timm(timm_name, path).eval(), name, label, hash_file(path))
    config = import_timm().data.resolve_model_data_config(network.module)
    network.channels, *sides = map(int, config["input_size"])
    network.mean, network.std = (_repeat(config[name], network.channels) for name in ("mean", "std"))
    network.input_size = as_size(sides)
    network.notes += _describe_channels(network.channels)
    return network


def _repeat(values: Sequence[float], channels: int) -> Values:
    """Take one number for each channel; their mean for each where there are more or fewer numbers."""
    return _as_values(values if len(values) == channels else [sum(values) / len(values)] * channels)


def _describe_channels(channels: int) -> tuple[str, ...]:
    """Note how images are shown that are not red, green and blue."""
    if channels == 3:
        return ()
    if channels == 1:
        return ("1 input channel: images are gray",)
    return (f"{channels} input channels, shown in {describe_colours(channels)}",)


def _choose_weight_set(sets: Sequence[Any]) -> Any:
    """Choose the oldest set in the cache (IMAGENET1K_V1, which the article used), or else the oldest of all."""
    ordered = sorted(sets, key=lambda w: w.name)
    return next((w for w in ordered if cache_path(w.url).is_file()), ordered[0])


def _apply_preset(network: Network, weight_set: Any) -> None:
    """Set the normalisation and the input size that belong to a set of published weights."""
    preset = weight_set.transforms()
    network.mean, network.std = _as_values(preset.mean), _as_values(preset.std)
    network.input_size = int(preset.crop_size[0])
    if hasattr(network.module, "transform_input"):
        network.module.transform_input = True  # type: ignore[assignment]


def _apply_torchvision_preset(network: Network, sets: Sequence[Any], weights: str | Path) -> None:
    """Set the normalisation and the input size of a torchvision network with weights of the user's own."""
    network.mean, network.std = IMAGENET_MEAN, IMAGENET_STD
    file = Path(str(weights)).name
    matches = [w for w in sets if w.url.rsplit("/", 1)[-1] == file or network.sha256.startswith(_hash_prefix(w.url))]
    if matches:
        _apply_preset(network, matches[0])
    elif sets:
        network.input_size = int(sets[0].transforms().crop_size[0])


def _hash_prefix(url: str) -> str:
    """Get the start of the SHA-256 that torchvision writes into a file name."""
    return url.rsplit("-", 1)[-1].partition(".")[0]


def _load_architecture(
    name: str,
    build: Callable[[int | None, bool], nn.Module],
    weights: str | Path,
    categories: tuple[str, ...],
) -> Network:
    """Build an architecture with random weights or with those of a file."""
    seed = _parse_random_seed(weights)
    if seed is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # initialisers take no generator; the fork restores the global one
            module = build(None, True)
        network = Network(module.eval(), name, f"random:{seed}", hash_state(module))
    else:
        path = Path(weights)
        states = read_states(path)
        module = build(None, False)
        match = match_state(module, states)
        state = match.state
        # the last weight and bias are the classifier's: the file's number of classes is read from them
        last = [k for k, _ in module.named_parameters()][-2:]
        if isinstance(classifier := getattr(module, "default_cfg", {}).get("classifier"), str):  # timm knows its name
            last = [f"{classifier}.weight"]
        own = module.state_dict()
        if all(k in state and k in own for k in last) and state[last[0]].shape != own[last[0]].shape:
            module = build(int(state[last[0]].shape[0]), False)
        notes = match.notes() + load_state(module, state, name, path.name)
        network = Network(module.eval(), name, path.name, hash_file(path), notes=notes)
    network.mean, network.std, network.categories = IMAGENET_MEAN, IMAGENET_STD, categories
    if name == "reference":
        network.input_size = REFERENCE_SIZE
    return network


def _parse_random_seed(weights: str | Path) -> int | None:
    """Parse ``random`` or ``random:SEED``; None for any other text."""
    match = re.fullmatch(r"random(?::(\d{1,9}))?", str(weights))
    return None if match is None else int(match.group(1) or 0)


def _call_factory(path: str) -> nn.Module:
    """Import ``package.module:factory`` and call it, with the current folder on the import path."""
    package, _, name = path.partition(":")
    search_path = list(sys.path)
    sys.path.insert(0, "")
    try:
        module = getattr(importlib.import_module(package), name)()
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"model {path!r} cannot be imported ({first_line(error)}); "
            "give package.module:factory, importable from here"
        ) from error
    except (Exception, SystemExit) as error:
        raise ModelError(f"model {path!r}: the factory failed ({describe_error(error, 200)})") from error
    finally:
        sys.path[:] = search_path
    if not isinstance(module, nn.Module):
        raise ModelError(f"model {path!r}: the factory returned {type(module).__name__}, not a torch.nn.Module")
    return module


def _adapt(module: nn.Module, name: str, size: Size, channels: int) -> tuple[nn.Module, tuple[str, ...]]:
    """Prepare a module for hooks and for float32 without changing it, and note what was done."""
    modules.check_supported(module, name)
    module, notes = modules.without_compiler(module), []
    if modules.is_uninitialised(module):
        try:
            module = modules.initialise_lazy(module, torch.full((1, channels, *as_pair(size)), 0.5))
        except Exception as error:
            raise ModelError(
                f"network {name}: a first pass at {format_size(size)} pixels cannot initialise its lazy modules "
                f"({describe_error(error, 200)}); name the input size and the number of channels, or "
                "give a module that has seen an image"
            ) from error
        notes.append(f"lazy modules initialised by a first pass at {format_size(size)} pixels")
    types = modules.other_types(module)
    if types:
        copied = modules.copy_module(module).float()
        # a network that converts its input itself fails with other weights; it is left as it is
        with modules.plain_execution():
            both = copied, modules.copy_module(module)
            fails, failed = (trace(m.eval(), size, channels).failure for m in both)
        if not fails or failed:
            for part, original in zip(copied.modules(), module.modules(), strict=True):
                part.training = original.training
            module = copied
            notes.append(f"parameters in {' and '.join(types)} are converted to float32")
    return module, tuple(notes)


def _load_custom(
    module: nn.Module, name: str, weights: str | Path | None, size: Size | None, channels: int | None
) -> Network:
    """Load a module of the user's own, with its own weights or those of a file."""
    if weights is not None and _parse_random_seed(weights) is not None:
        raise ModelError(
            f"model {name}: random weights are set by the factory itself; leave the weights out or name a file"
        )
    module, notes = _adapt(module, name, size or Network.input_size, channels or 3)
    label, digest = "its own", ""
    if weights is not None:
        path = Path(weights)
        module = modules.copy_module(module)  # the caller's module keeps its weights
        match = match_state(module, read_states(path))
        notes += match.notes() + load_state(module, match.state, name, path.name)
        label, digest = path.name, hash_file(path)
    digest = digest or hash_state(module)
    takes = find_input(module, name, Network.input_size, channels, size)
    notes += (*_describe_channels(takes.channels), *([takes.note] if takes.note else []))
    return Network(
        module,
        name,
        label,
        digest,
        takes.size,
        notes=("no mean and std given: the network takes images in [0, 1]", *notes),
        channels=takes.channels,
        working_size=takes.works,
        _traces={takes.size: takes.trace},
    )
