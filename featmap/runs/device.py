"""Devices, threads, and the settings under which results can be reproduced to the bit."""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from typing import Any

import torch

from featmap.errors import FeatmapError


def select_device(name: str = "auto") -> torch.device:
    """Find the device that a name stands for.

    Parameters
    ----------
    name : str, default "auto"
        "auto" (CUDA where there is one, else the CPU), "cpu", "cuda", "cuda:1" or "mps".

    Returns
    -------
    torch.device
        A device of this machine.

    Raises
    ------
    FeatmapError
        If the machine has none of that name.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise FeatmapError(f"device {name!r} is unknown; allowed: auto, cpu, cuda, cuda:N, mps") from error
    if device.type in ("cpu", "mps") and device.index:
        raise FeatmapError(f"device {name!r}: there is only one; choose {device.type!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise FeatmapError(
            f"device {name!r}: torch finds {torch.cuda.device_count()} CUDA devices here; choose 'cpu' or 'auto'"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise FeatmapError(f"device {name!r}: there is no Metal device here; choose 'cpu' or 'auto'")
    if device.type not in ("cpu", "cuda", "mps"):
        raise FeatmapError(f"device {name!r} is not supported; allowed: auto, cpu, cuda, cuda:N, mps")
    return device


@contextmanager
def use_threads(threads: int) -> Iterator[None]:
    """Let torch use a number of threads, and restore the previous number.

    Parameters
    ----------
    threads : int
        1 or more.

    Yields
    ------
    None
        The number holds until the context is left, also by an exception.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of `mallopt` in the GNU C library: above which sizes freed memory goes back to the system."""


@contextmanager
def keep_memory() -> Iterator[None]:
    """Let the C library keep freed memory, and return it at the end.

    A step frees and allocates the same large blocks again and again; each time the system would clear their pages anew.

    Yields
    ------
    None
        Nothing happens where there is no `mallopt`.

    References
    ----------
    mallopt(3) of the GNU C library: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is None or not hasattr(library, "mallopt"):
        yield
        return
    if not library.mallopt(_MMAP_THRESHOLD, 2**30):  # older versions refuse more than their own maximum
        library.mallopt(_MMAP_THRESHOLD, 32 * 2**20)
    library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        library.mallopt(_MMAP_THRESHOLD, 32 * 2**20)  # the largest value that it adapts to by itself
        library.mallopt(_TRIM_THRESHOLD, 64 * 2**20)
        library.malloc_trim(0)


@contextmanager
def deterministic_settings() -> Iterator[None]:
    """Turn off what changes bits between runs, and restore it.

    That is the choice of algorithms by trial and arithmetic of less than float32 (TF32) on a GPU.

    Yields
    ------
    None
        The settings hold until the context is left, also by an exception.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32
    cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = False, True, False, False
    try:
        with keep_memory():
            yield
    finally:
        cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = before


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Describe everything besides the settings that bits may depend on.

    Parameters
    ----------
    device : torch.device
        Where the network is computed.

    Returns
    -------
    dict
        Versions of libraries, platform, processor, device and number of threads, as plain JSON values.
    """
    return {
        "versions": {"python": platform.python_version()} | _find_versions(),
        "platform": platform.platform(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
    }


@cache
def _find_versions() -> dict[str, str]:
    """Look up the versions of libraries, once in a process: each is read from a file."""
    names = ("featmap", "torch", "torchvision", "numpy", "scipy", "networkx", "zarr", "xarray")
    return {name: version(name) for name in names}


def trim_heap() -> None:
    """Return freed memory to the system, where the C library can.

    glibc places the outputs of batches between small pieces that are kept, and does not find the places again: over
    thousands of batches the process would grow by gigabytes that nothing uses.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)
