"""Import torchvision without torch's compiler, which it imports and which nothing here uses."""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

from featmap.errors import ModelError

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
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"torchvision does not work with the installed torch {torch.__version__} ({reason}); "
            "install the two together: pip install --force-reinstall torch torchvision"
        ) from error
