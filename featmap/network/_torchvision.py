"""Loading torchvision without the compiler that it asks for and that nothing here uses."""

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


class _Later(ModuleType):
    """Stands in for a module while torchvision is imported; what is asked of it is the real one's."""

    def __getattr__(self, name: str) -> Any:
        if name == _DEFERRED:
            return _is_compile_supported
        if name.startswith("__"):
            raise AttributeError(name)
        _remove()
        return getattr(importlib.import_module(self.__name__), name)


def _is_compile_supported(*given: Any, **named: Any) -> bool:
    real = importlib.import_module(f"{_COMPILER}.utils")
    return bool(getattr(real, _DEFERRED)(*given, **named))


def _remove() -> None:
    """Take the stand-ins away: from now on whoever imports the compiler gets the real one."""
    for name in (_COMPILER, f"{_COMPILER}.utils"):
        if isinstance(sys.modules.get(name), _Later):
            del sys.modules[name]


def _without_compiler() -> ModuleType | None:
    """Import torchvision beside stand-ins for the compiler; None where it asks for more than they have."""
    package, utils = _Later(_COMPILER), _Later(f"{_COMPILER}.utils")
    for stand_in in (package, utils):
        stand_in.__spec__ = ModuleSpec(stand_in.__name__, None, is_package=stand_in is package)
    package.__path__ = []
    sys.modules |= {package.__name__: package, utils.__name__: utils}
    try:
        return importlib.import_module("torchvision")
    except Exception:  # noqa: BLE001 - of whatever kind: it is imported once more in the plain way, which tells
        return None
    finally:
        _remove()


def load_torchvision() -> ModuleType:
    """Import torchvision.

    Raises
    ------
    ModelError
        where it was built for another torch.

    torchvision (0.29, for one) imports torch's compiler for one function that it calls in object detection only, which
    takes more than half of the time that it needs: three seconds. That function is left to be imported when it is
    called.
    """
    if _COMPILER not in sys.modules and "torchvision" not in sys.modules and (found := _without_compiler()):
        return found
    try:
        return importlib.import_module("torchvision")
    except (ImportError, RuntimeError, AttributeError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"torchvision does not work with the installed torch {torch.__version__} ({said}); "
            "install the two together: pip install --force-reinstall torch torchvision"
        ) from error
