"""Weights: read tensors (and nothing but tensors) from a file, fit them to a network, name them by their hash."""

from __future__ import annotations

import hashlib
import inspect
import pickle
import socket
import urllib.error
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from featmap.errors import ModelError

AUXILIARY_PREFIXES = ("aux1.", "aux2.", "AuxLogits.")
WRAPPER_KEYS = ("state_dict", "model_state_dict", "model")
CONNECT_TIMEOUT = 10.0


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_state(module: nn.Module) -> str:
    """Return the SHA-256 of a module's state: names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def hash_architecture(module: nn.Module) -> str:
    """Return a short hash of what a network is besides its weights: its modules, and the code of those not torch's."""
    digest = hashlib.sha256(repr(module).encode())
    for kind in sorted({type(m) for m in module.modules()}, key=lambda k: (k.__module__, k.__qualname__)):
        if not kind.__module__.startswith(("torch.", "torchvision.")):
            with suppress(OSError, TypeError):
                digest.update(inspect.getsource(kind).encode())
    return digest.hexdigest()[:16]


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a `.safetensors` file or a PyTorch checkpoint.

    Checkpoints are read with ``weights_only=True``: a file that holds pickled code is refused, not run.

    Raises
    ------
    ModelError
        if the file is missing, unreadable or holds no state dict.
    """
    if not path.is_file():
        raise ModelError(
            f"weights {str(path)!r}: there is no such file; give a .safetensors file or a state dict (.pth)"
        )
    try:
        found: Any
        if path.suffix == ".safetensors":
            found = load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns of what it is about to refuse
                found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):
            reason = "it holds pickled code or is damaged, and featmap reads nothing but tensors"
        raise ModelError(
            f"weights {str(path)!r} cannot be read ({reason[:160]}); "
            "give a .safetensors file or a state dict saved with torch.save"
        ) from error
    return _unwrapped(found, path)


def _unwrapped(found: Any, path: Path) -> dict[str, Tensor]:
    for key in WRAPPER_KEYS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()) or not found:
        raise ModelError(f"weights {str(path)!r} hold no state dict (names to tensors); save model.state_dict()")
    state = {str(k): v.float() if v.is_floating_point() else v for k, v in found.items()}
    if all(k.startswith("module.") for k in state):
        state = {k.removeprefix("module."): v for k, v in state.items()}
    return state


def load_state(module: nn.Module, state: Mapping[str, Tensor], network: str, source: str) -> None:
    """Load `state` into `module`; auxiliary heads that the module does not have are left out.

    Raises
    ------
    ModelError
        naming the first tensors that are missing, unknown or of another shape.
    """
    own = module.state_dict()
    state = {k: v for k, v in state.items() if k in own or not k.startswith(AUXILIARY_PREFIXES)}
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unknown = [k for k in state if k not in own]
    wrong = [
        f"{k} is {_shape(state[k])}, not {_shape(own[k])}" for k in own if k in state and state[k].shape != own[k].shape
    ]
    kinds = [f"{k} is {kind}" for k in own if k in state and (kind := _other_kind(state[k]))]
    faults = []
    for words, names in (
        ("missing", missing),
        ("unknown", unknown),
        ("of another shape", wrong),
        ("of another kind", kinds),
    ):
        if names:
            more = f" and {len(names) - 2} more" if len(names) > 2 else ""
            faults.append(f"{words}: {', '.join(names[:2])}{more}")
    if faults:
        raise ModelError(
            f"weights {source} do not fit {network} ({'; '.join(faults)}); give the network they were trained for"
        )
    module.load_state_dict(state, strict=False)


def _other_kind(given: Tensor) -> str:
    """Return what kind of tensor was given in place of plain numbers; "" for these."""
    if given.is_meta:
        return "without values (meta)"
    if given.is_quantized:
        return "quantized"
    if given.layout != torch.strided:
        return "sparse" if given.is_sparse else str(given.layout).removeprefix("torch.")
    return str(given.dtype).removeprefix("torch.") if given.is_complex() else ""


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def fetch(url: str, name: str) -> Path:
    """Return the file of torchvision's weights at `url` in torch.hub's cache, downloading it if need be.

    Raises
    ------
    ModelError
        if it is neither cached nor to be had; the line says what to do.
    """
    path = cache_path(url)
    if path.is_file():
        return path
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(CONNECT_TIMEOUT)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        prefix = path.stem.rpartition("-")[2]
        torch.hub.download_url_to_file(url, str(path), prefix if len(prefix) == 8 else None, progress=True)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise ModelError(
            f"the pretrained weights of {name} are not at {path} and cannot be downloaded ({_reason(error)}); "
            f"copy {url} to that place, or give --weights FILE, --weights random or --model reference"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    return path


def cache_path(url: str) -> Path:
    """Return where torch.hub keeps the file of `url`."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return str(reason).splitlines()[0][:120] or type(error).__name__
