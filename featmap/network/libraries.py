"""The libraries that networks come from: torchvision, imported without torch's compiler, and timm, where installed."""

from __future__ import annotations

import importlib
import os
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from featmap.errors import ModelError, describe_error, first_line, suggest

CONNECT_TIMEOUT = 10.0
"""Seconds after which a download that gets no answer fails."""
_COMPILER = "torch._dynamo"
_DEFERRED = "is_compile_supported"


class _StandIn(ModuleType):
    """Stand in for a module while torchvision is imported; attributes are those of the real one."""

    def __getattr__(self, name: str) -> Any:
        if name == _DEFERRED:
            return _is_compile_supported
        if name.startswith("__"):
            raise AttributeError(name)
        _remove_stand_ins()
        return getattr(importlib.import_module(self.__name__), name)


def _is_compile_supported(*args: Any, **kwargs: Any) -> bool:
    """Call the compiler's own function, which imports the compiler."""
    real = importlib.import_module(f"{_COMPILER}.utils")
    return bool(getattr(real, _DEFERRED)(*args, **kwargs))


def _remove_stand_ins() -> None:
    """Remove the stand-ins, so that a later import of the compiler gets the real one."""
    for name in (_COMPILER, f"{_COMPILER}.utils"):
        if isinstance(sys.modules.get(name), _StandIn):
            del sys.modules[name]


def _import_without_compiler() -> ModuleType | None:
    """Import torchvision beside stand-ins for the compiler; None where it needs more than they offer."""
    package, utils = _StandIn(_COMPILER), _StandIn(f"{_COMPILER}.utils")
    for stand_in in (package, utils):
        stand_in.__spec__ = ModuleSpec(stand_in.__name__, None, is_package=stand_in is package)
    package.__path__ = []
    sys.modules |= {package.__name__: package, utils.__name__: utils}
    try:
        return importlib.import_module("torchvision")
    except Exception:  # noqa: BLE001 - any: torchvision is then imported without stand-ins, which reports the error
        return None
    finally:
        _remove_stand_ins()


def load_torchvision() -> ModuleType:
    """Import torchvision without torch's compiler.

    torchvision (version 0.29, for example) imports torch's compiler for one function, which it calls in object
    detection only. That takes more than half of its import time of three seconds, so the function is imported when it
    is first called.

    Returns
    -------
    ModuleType
        torchvision.

    Raises
    ------
    ModelError
        If torchvision was built for another version of torch.
    """
    if _COMPILER not in sys.modules and "torchvision" not in sys.modules and (package := _import_without_compiler()):
        return package
    try:
        return importlib.import_module("torchvision")
    except (ImportError, RuntimeError, AttributeError) as error:
        raise ModelError(
            f"torchvision does not work with the installed torch {torch.__version__} ({first_line(error)}); "
            "install the two together: pip install --force-reinstall torch torchvision"
        ) from error


TIMM = "timm:"
"""Prefix of the names of timm's networks."""
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of weights' files on the Hugging Face hub, in the order in which they are tried."""


def import_timm() -> ModuleType:
    """Import timm.

    Returns
    -------
    ModuleType
        timm.

    Raises
    ------
    ModelError
        If timm is not installed, or does not work with the installed torch.
    """
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise ModelError("timm is not installed; install it: pip install 'featmap[timm]'") from error
    except (ImportError, RuntimeError, AttributeError) as error:
        raise ModelError(
            f"timm does not work with the installed torch {torch.__version__} ({first_line(error)}); "
            "install the two together: pip install --force-reinstall torch torchvision timm"
        ) from error


def _import_timm_with(name: str) -> ModuleType:
    """Import timm and check that it has a network of this name."""
    timm = import_timm()
    if ":" in name or "/" in name:
        raise ModelError(
            f"model {TIMM + name!r}: names of a hub or folder are not followed; give the architecture's name, such as "
            "timm:resnet18, and its weights as a file"
        )
    allowed = [*timm.list_models(), *timm.list_models(pretrained=True)]
    if name not in allowed:
        raise ModelError(
            f"model {TIMM + name!r} is unknown to timm {timm.__version__}{suggest(name, allowed)}; "
            "timm.list_models() lists its networks"
        )
    return timm


def build_timm(name: str, weights: Path | None = None, classes: int | None = None) -> nn.Module:
    """Build a network of timm.

    Parameters
    ----------
    name : str
        Name as timm has it, with or without the tag of a set of weights: ``resnet50`` or ``resnet50.a1_in1k``.
    weights : Path or None, default None
        Path of the published weights. None initialises them from torch's global generator.
    classes : int or None, default None
        Number of classes. None is timm's own.

    Returns
    -------
    nn.Module
        The module.

    Raises
    ------
    ModelError
        If timm is not installed, does not know the name or cannot load the weights.
    """
    timm = _import_timm_with(name)
    settings: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    if weights is not None:
        hub = find_timm_set(name).hf_hub_id
        # timm would read files of its own formats from elsewhere; those of the hub are plain state dicts
        settings["pretrained_cfg_overlay"] = {"file": str(weights), **({"custom_load": False} if hub else {})}
    try:
        module: nn.Module = timm.create_model(name, pretrained=weights is not None, **settings)
    except Exception as error:
        raise ModelError(f"timm cannot build {name} ({describe_error(error, 200)})") from error
    return module


def find_timm_set(name: str) -> Any:
    """Find the published set of weights that a name of timm stands for.

    Parameters
    ----------
    name : str
        Name as timm has it, with or without a tag.

    Returns
    -------
    timm.models.PretrainedCfg
        timm's description of the set.

    Raises
    ------
    ModelError
        If no weights are published.
    """
    published = _import_timm_with(name).models.get_pretrained_cfg(name, allow_unregistered=True)
    if published is None or not (published.hf_hub_id or published.url):
        raise ModelError(f"timm publishes no weights for {name}; choose a weights file or random weights")
    return published


def fetch_timm(name: str) -> tuple[Path, str]:
    """Get the published weights of a network of timm, from the cache or the hub.

    Parameters
    ----------
    name : str
        Name as timm has it, with or without a tag.

    Returns
    -------
    path : Path
        Path of the file.
    label : str
        The tag and the place that it was published at.

    Raises
    ------
    ModelError
        If no weights are published, or they are not in the cache and cannot be downloaded.
    """
    published = find_timm_set(name)
    if not published.hf_hub_id:
        path = fetch(published.url, f"{TIMM}{name}")
        return path, f"{published.tag or 'default'} ({path.name})"
    hub = importlib.import_module("huggingface_hub")
    repository, _, revision = published.hf_hub_id.partition("@")
    files = [published.hf_hub_filename] if published.hf_hub_filename else list(_HUB_FILES)
    label = f"{published.tag or 'default'} ({published.hf_hub_id})"
    for file in files:
        cached = hub.try_to_load_from_cache(repository, file, revision=revision or None)
        if isinstance(cached, str):
            return Path(cached), label
    try:
        _require_connection(hub.constants.ENDPOINT)
        with _progress_shown(hub):
            return Path(_download(hub, repository, files, revision or None)), label
    except Exception as error:
        raise ModelError(
            f"the pretrained weights of {TIMM}{name} are not in the cache {hub.constants.HF_HUB_CACHE} and cannot be "
            f"downloaded from {hub.constants.ENDPOINT}/{repository} ({first_line(error)}); choose a weights file or "
            "random weights, or copy the cache from a machine that has them"
        ) from error


def _require_connection(address: str) -> None:
    """Check that a server answers at all, before the hub's client tries six times."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise OSError("HF_HUB_OFFLINE is set")
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=CONNECT_TIMEOUT).close()
    except urllib.error.HTTPError:
        return  # an answer, whatever it says
    except urllib.error.URLError as error:
        raise OSError(str(error.reason)) from error


def _download(hub: ModuleType, repository: str, files: list[str], revision: str | None) -> str:
    """Download the first of some files that a repository of the hub has."""
    for file in files[:-1]:
        try:
            return str(hub.hf_hub_download(repository, file, revision=revision))
        except hub.errors.EntryNotFoundError:
            continue
    return str(hub.hf_hub_download(repository, files[-1], revision=revision))


@contextmanager
def _progress_shown(hub: ModuleType) -> Iterator[None]:
    """Let the hub's client show the progress of downloads."""
    hidden = hub.utils.are_progress_bars_disabled()
    hub.utils.enable_progress_bars()
    try:
        yield
    finally:
        if hidden:
            hub.utils.disable_progress_bars()


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
    return first_line(reason if isinstance(reason, BaseException) else OSError(reason), 120)
