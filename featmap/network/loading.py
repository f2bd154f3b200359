"""Load a network by name, import path, checkpoint or module."""

from __future__ import annotations

import copy
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

from featmap.errors import ModelError, suggest
from featmap.network import weights as files
from featmap.network._torchvision import load_torchvision
from featmap.network.model import MAX_IMAGE_SIZE, Network, Triple
from featmap.network.weights import fetch, hash_file, hash_state, load_state

torchvision = load_torchvision()


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


AUXILIARY_HEADS = ("googlenet", "inception_v3")


def find_data_folder() -> Path:
    """Return the folder of the bundled weights: inside the installed package, or beside it in a checkout."""
    here = Path(__file__).resolve().parents[1]
    for folder in (here / "_data", here.parent / "data"):
        if (folder / "card.json").is_file():
            return folder
    raise ModelError(
        "the bundled weights are missing from this installation; reinstall featmap or give --model and --weights"
    )


def list_models() -> list[str]:
    """Return the names that `load` takes besides import paths."""
    return ["reference", *torchvision.models.list_models(module=torchvision.models)]


def load(
    model: str | nn.Module | Network = "reference",
    weights: str | Path | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_size: int | None = None,
) -> Network:
    """Return a network that can be mapped.

    Parameters
    ----------
    model : "reference" (the bundled GoogLeNet), the name of a torchvision classification network, an import
        path ``package.module:factory``, or a module of one's own
    weights : a `.safetensors` file or a state dict; "random" or "random:7" (a seed); the name of a set that
        torchvision publishes; None for the bundled or published ones
    mean, std : of the module's input, for images in [0, 1]; a module of one's own without them takes [0, 1]
    input_size : in pixels, the size the network was trained for

    Raises
    ------
    ModelError
        in one line that says what was given, what is allowed and what to do.
    """
    if isinstance(model, Network):
        if any(v is not None for v in (weights, mean, std, input_size)):
            raise ModelError("a Network has its weights and normalisation already; load it anew to change them")
        return model
    if not isinstance(model, (str, nn.Module)):
        raise ModelError(f"model of type {type(model).__name__}; allowed: a name, package.module:factory, or a module")
    _check_normalisation(mean, std, input_size)
    if isinstance(model, nn.Module):
        network = _own(model, type(model).__name__, weights)
    elif ":" in model:
        network = _own(_factory(model), model, weights)
    elif model == "reference":
        network = _reference(weights)
    else:
        network = _torchvision(model, weights)
    if mean is not None and std is not None:
        network.mean, network.std = _triple(mean), _triple(std)
        network.notes = tuple(n for n in network.notes if "[0, 1]" not in n)
    network.input_size = input_size or network.input_size
    network.arguments = {
        "model": model if isinstance(model, str) else None,
        "weights": None if weights is None else str(weights),
        "mean": None if mean is None else list(mean),
        "std": None if std is None else list(std),
        "input_size": input_size,
    }
    return network


def _check_normalisation(mean: Sequence[float] | None, std: Sequence[float] | None, size: int | None) -> None:
    if (mean is None) != (std is None):
        raise ModelError("--mean and --std belong together; give both, three numbers each, or neither")
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != 3:
            raise ModelError(f"--{name} takes three numbers (red, green, blue), not {len(values)}")
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and not all(math.isfinite(v) for v in values):
            raise ModelError(f"--{name} {','.join(map(str, values))}: give three finite numbers")
    if std is not None and any(v <= 0 for v in std):
        raise ModelError(f"--std {','.join(map(str, std))}: a standard deviation is above 0")
    if size is not None and size < 1:
        raise ModelError(f"--input-size {size}: give 1 or more pixels")
    if size is not None and size > MAX_IMAGE_SIZE:
        raise ModelError(f"--input-size {size}: give {MAX_IMAGE_SIZE} pixels at most")


def _triple(values: Sequence[float]) -> Triple:
    red, green, blue = (float(v) for v in values)
    return red, green, blue


def _reference(weights: str | Path | None) -> Network:
    folder = find_data_folder()
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    classes = tuple(card["classes"])
    if weights is not None:
        return _filled("reference", lambda n, init: build_googlenet(n or len(classes), init), weights, classes)
    path = folder / card["file"]
    digest = hash_file(path)
    if digest != card["sha256"]:
        raise ModelError(
            f"the bundled weights {path} are damaged (SHA-256 {digest[:12]}, not {card['sha256'][:12]}); "
            "reinstall featmap"
        )
    module = build_googlenet(len(classes), init=False)
    load_state(module, files.read_state(path), "reference", path.name)
    return Network(module.eval(), "reference", card["file"], digest, 96, IMAGENET_MEAN, IMAGENET_STD, (), classes)


def build_googlenet(classes: int, init: bool) -> nn.Module:
    """Return the bundled network's architecture; `init` draws its weights from torch's global generator."""
    return torchvision.models.googlenet(
        weights=None, num_classes=classes, aux_logits=False, transform_input=False, init_weights=init
    )


def _torchvision(name: str, weights: str | Path | None) -> Network:
    known = list_models()
    if name not in known:
        raise ModelError(
            f"model {name!r} is unknown{suggest(name, known)}; allowed: reference, a torchvision classification "
            "network, or package.module:factory"
        )

    def build(classes: int | None, init: bool) -> nn.Module:
        extra: dict[str, Any] = {} if classes is None else {"num_classes": classes}
        if name in AUXILIARY_HEADS:
            extra |= {"aux_logits": False, "init_weights": init}
        return torchvision.models.get_model(name, weights=None, **extra)

    sets = list(torchvision.models.get_model_weights(name))
    published = {w.name: w for w in sets}
    if weights is not None and str(weights) not in published:
        network = _filled(name, build, weights, ())
        _as_published(network, sets, weights)
        return network
    if not sets:
        raise ModelError(f"torchvision publishes no weights for {name}; give --weights FILE or --weights random")
    chosen = published[str(weights)] if weights is not None else _first_cached(sets)
    path = fetch(chosen.url, name)
    module = build(len(chosen.meta["categories"]), False)
    load_state(module, files.read_state(path), name, path.name)
    network = Network(module.eval(), name, f"{chosen.name} ({path.name})", hash_file(path))
    network.categories = tuple(chosen.meta["categories"])
    _published_input(network, chosen)
    prefix = path.stem.rpartition("-")[2]
    if len(prefix) == 8 and not network.sha256.startswith(prefix):
        network.notes += (f"NOT torchvision's published file (its SHA-256 begins with {prefix})",)
    return network


def _first_cached(sets: Sequence[Any]) -> Any:
    """Return the set in the cache, the oldest first (IMAGENET1K_V1, which the article used), else that one."""
    ordered = sorted(sets, key=lambda w: w.name)
    return next((w for w in ordered if files.cache_path(w.url).is_file()), ordered[0])


def _published_input(network: Network, chosen: Any) -> None:
    preset = chosen.transforms()
    network.mean, network.std = _triple(preset.mean), _triple(preset.std)
    network.input_size = int(preset.crop_size[0])
    if hasattr(network.module, "transform_input"):
        network.module.transform_input = True  # type: ignore[assignment]


def _as_published(network: Network, sets: Sequence[Any], weights: str | Path) -> None:
    """Give a torchvision network the input treatment that its weights need."""
    network.mean, network.std = IMAGENET_MEAN, IMAGENET_STD
    file = Path(str(weights)).name
    same = [w for w in sets if w.url.rsplit("/", 1)[-1] == file or network.sha256.startswith(_tag(w.url))]
    if same:
        _published_input(network, same[0])
    elif sets:
        network.input_size = int(sets[0].transforms().crop_size[0])


def _tag(url: str) -> str:
    return url.rsplit("-", 1)[-1].partition(".")[0]


def _filled(
    name: str,
    build: Callable[[int | None, bool], nn.Module],
    weights: str | Path,
    categories: tuple[str, ...],
) -> Network:
    """Return a network of a known architecture with random weights or those of a file."""
    seed = _random_seed(weights)
    if seed is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # initialisers know no explicit generator; the fork keeps it ours
            module = build(None, True)
        network = Network(module.eval(), name, f"random:{seed}", hash_state(module))
    else:
        path = Path(weights)
        state = files.read_state(path)
        module = build(None, False)
        last = [k for k, _ in module.named_parameters()][-2:]
        own = module.state_dict()
        if all(k in state for k in last) and state[last[0]].shape != own[last[0]].shape:
            module = build(int(state[last[0]].shape[0]), False)
        load_state(module, state, name, path.name)
        network = Network(module.eval(), name, path.name, hash_file(path))
    network.mean, network.std, network.categories = IMAGENET_MEAN, IMAGENET_STD, categories
    if name == "reference":
        network.input_size = 96
    return network


def _random_seed(weights: str | Path) -> int | None:
    match = re.fullmatch(r"random(?::(\d{1,9}))?", str(weights))
    return None if match is None else int(match.group(1) or 0)


def _factory(path: str) -> nn.Module:
    """Return the module that ``package.module:factory`` makes."""
    where, _, name = path.partition(":")
    before = list(sys.path)
    sys.path.insert(0, "")
    try:
        made = getattr(importlib.import_module(where), name)()
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"model {path!r} cannot be imported ({_first_line(error)}); "
            "give package.module:factory, importable from here"
        ) from error
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"model {path!r}: the factory failed ({type(error).__name__}: {_first_line(error)})"
        ) from error
    finally:
        sys.path[:] = before
    if not isinstance(made, nn.Module):
        raise ModelError(f"model {path!r}: the factory returned {type(made).__name__}, not a torch.nn.Module")
    return made


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


def _own(module: nn.Module, name: str, weights: str | Path | None) -> Network:
    if weights is not None and _random_seed(weights) is not None:
        raise ModelError(
            f"model {name}: random weights are the factory's own business; leave out --weights or give a file"
        )
    label, digest = "its own", ""
    if weights is not None:
        path = Path(weights)
        module = copy.deepcopy(module)  # the caller's own keeps its weights
        load_state(module, files.read_state(path), name, path.name)
        label, digest = path.name, hash_file(path)
    digest = digest or hash_state(module)
    return Network(module, name, label, digest, notes=("no --mean and --std: the network takes images in [0, 1]",))
