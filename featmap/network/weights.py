"""Weights: read tensors (and nothing but tensors) from files, load them into a module, and hash them."""

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
"""Prefixes of the names of auxiliary classifiers' tensors, which are skipped."""
WRAPPER_KEYS = ("state_dict", "model_state_dict", "model")
"""Keys under which checkpoints store the state dict."""
CONNECT_TIMEOUT = 10.0
"""Seconds after which a download that gets no answer fails."""


def hash_state(module: nn.Module) -> str:
    """Compute the SHA-256 of a module's state.

    Parameters
    ----------
    module : nn.Module
        The module.

    Returns
    -------
    str
        64 hexadecimal digits, of the names, types, shapes and bytes of all tensors, sorted by name.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def hash_architecture(module: nn.Module) -> str:
    """Compute a short hash of a network's architecture, apart from its weights.

    Parameters
    ----------
    module : nn.Module
        The network.

    Returns
    -------
    str
        16 hexadecimal digits, of the printed module and of the source code of all classes that are not torch's or
        torchvision's.
    """
    digest = hashlib.sha256(repr(module).encode())
    for kind in sorted({type(m) for m in module.modules()}, key=lambda k: (k.__module__, k.__qualname__)):
        if not kind.__module__.startswith(("torch.", "torchvision.")):
            with suppress(OSError, TypeError):
                digest.update(inspect.getsource(kind).encode())
    return digest.hexdigest()[:16]


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the state dict in a `.safetensors` file or a PyTorch checkpoint.

    Checkpoints are read with ``weights_only=True``: a file that holds pickled code is refused, not run.

    Parameters
    ----------
    path : Path
        Path of the file.

    Returns
    -------
    dict of str to Tensor
        The tensors by name, on the CPU, floating-point ones as float32; a common prefix ``module.`` is removed.

    Raises
    ------
    ModelError
        If the file is missing, unreadable or holds no state dict.
    """
    if not path.is_file():
        raise ModelError(
            f"weights {str(path)!r}: there is no such file; give a .safetensors file or a state dict (.pth)"
        )
    try:
        content: Any
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns about files that it then refuses
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):
            reason = "it holds pickled code or is damaged, and featmap reads nothing but tensors"
        raise ModelError(
            f"weights {str(path)!r} cannot be read ({reason[:160]}); "
            "give a .safetensors file or a state dict saved with torch.save"
        ) from error
    return _unwrap_state(content, path)


def _unwrap_state(content: Any, path: Path) -> dict[str, Tensor]:
    """Find the state dict in what a file holds, and convert it to plain names and float32."""
    for key in WRAPPER_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()) or not content:
        raise ModelError(f"weights {str(path)!r} hold no state dict (names to tensors); save model.state_dict()")
    state = {str(k): v.float() if v.is_floating_point() else v for k, v in content.items()}
    if all(k.startswith("module.") for k in state):
        state = {k.removeprefix("module."): v for k, v in state.items()}
    return state


def load_state(module: nn.Module, state: Mapping[str, Tensor], network: str, source: str) -> None:
    """Load a state dict into a module, in place.

    Auxiliary classifiers that the module does not have are skipped.

    Parameters
    ----------
    module : nn.Module
        The module; it is unchanged if the state does not fit.
    state : mapping of str to Tensor
        The tensors by name.
    network : str
        Name of the network, for messages.
    source : str
        Name of the weights' file, for messages.

    Raises
    ------
    ModelError
        If the state does not fit; the message names the first tensors that are missing, unknown, of another shape or
        of another kind.
    """
    own = module.state_dict()
    state = {k: v for k, v in state.items() if k in own or not k.startswith(AUXILIARY_PREFIXES)}
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unknown = [k for k in state if k not in own]
    wrong = [
        f"{k} is {_format_shape(state[k])}, not {_format_shape(own[k])}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    kinds = [f"{k} is {kind}" for k in own if k in state and (kind := _unsupported_kind(state[k]))]
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


def _unsupported_kind(tensor: Tensor) -> str:
    """Describe a tensor that does not hold plain numbers; an empty string for one that does."""
    if tensor.is_meta:
        return "without values (meta)"
    if tensor.is_quantized:
        return "quantized"
    if tensor.layout != torch.strided:
        return "sparse" if tensor.is_sparse else str(tensor.layout).removeprefix("torch.")
    return str(tensor.dtype).removeprefix("torch.") if tensor.is_complex() else ""


def _format_shape(tensor: Tensor) -> str:
    """Format a tensor's shape for a message."""
    return "x".join(map(str, tensor.shape)) or "a number"


def fetch(url: str, name: str) -> Path:
    """Get a file of published weights, from torch.hub's cache or by downloading it.

    Parameters
    ----------
    url : str
        Address of the file.
    name : str
        Name of the network, for messages.

    Returns
    -------
    Path
        Path of the file in the cache.

    Raises
    ------
    ModelError
        If the file is not in the cache and cannot be downloaded; the message says what to do.
    """
    path = cache_path(url)
    if path.is_file():
        return path
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(CONNECT_TIMEOUT)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        prefix = path.stem.rpartition("-")[2]
        torch.hub.download_url_to_file(url, str(path), prefix if len(prefix) == 8 else None, progress=True)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise ModelError(
            f"the pretrained weights of {name} are not at {path} and cannot be downloaded ({_summarise(error)}); "
            f"copy {url} to that place, or choose a weights file, random weights or the model reference"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
    return path


def cache_path(url: str) -> Path:
    """Build the path of a file in torch.hub's cache.

    Parameters
    ----------
    url : str
        Address of the file.

    Returns
    -------
    Path
        Path of the file, whether or not it exists.
    """
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


def _summarise(error: Exception) -> str:
    """Get the reason of a failed download in one line."""
    reason = getattr(error, "reason", None) or error
    return str(reason).splitlines()[0][:120] or type(error).__name__
