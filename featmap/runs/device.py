"""Where and how a network is computed: the device, threads, what is switched off so that bits can be had again."""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch

from featmap.errors import FeatmapError


def device(name: str = "auto") -> torch.device:
    """Return the device of that name: auto (CUDA where there is one, else the CPU), cpu, cuda, cuda:1, mps.

    Raises
    ------
    FeatmapError
        if the machine has none of that name.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        wanted = torch.device(name)
    except RuntimeError as error:
        raise FeatmapError(f"device {name!r} is unknown; allowed: auto, cpu, cuda, cuda:N, mps") from error
    if wanted.type in ("cpu", "mps") and wanted.index:
        raise FeatmapError(f"device {name!r}: there is one of these; give --device {wanted.type}")
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise FeatmapError(
            f"device {name!r}: torch sees {torch.cuda.device_count()} CUDA devices here; give --device cpu"
        )
    if wanted.type == "mps" and not torch.backends.mps.is_available():
        raise FeatmapError(f"device {name!r}: there is no Metal device here; give --device cpu")
    if wanted.type not in ("cpu", "cuda", "mps"):
        raise FeatmapError(f"device {name!r} is not supported; allowed: auto, cpu, cuda, cuda:N, mps")
    return wanted


@contextmanager
def thread_count(threads: int) -> Iterator[None]:
    """Let torch take so many threads; restore their number afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_TRIM, _MMAP = -1, -3
"""What `mallopt` of the GNU C library calls its thresholds for giving memory back."""


@contextmanager
def kept_memory() -> Iterator[None]:
    """Let the C library keep what is freed, and give it back in the end; where there is no `mallopt`, nothing happens.

    A step frees and asks for the same large blocks again and again; each time the system would clear their pages anew.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is None or not hasattr(library, "mallopt"):
        yield
        return
    if not library.mallopt(_MMAP, 2**30):  # older ones take no more than their own largest
        library.mallopt(_MMAP, 32 * 2**20)
    library.mallopt(_TRIM, 2**31 - 1)
    try:
        yield
    finally:
        library.mallopt(_MMAP, 32 * 2**20)  # the largest that it comes to by itself
        library.mallopt(_TRIM, 64 * 2**20)
        library.malloc_trim(0)


@contextmanager
def remembered_settings() -> Iterator[None]:
    """Turn off what would change bits between runs or round to less than float32 on a GPU; restore it afterwards."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32
    cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = False, True, False, False
    try:
        with kept_memory():
            yield
    finally:
        cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = before


def environment(where: torch.device) -> dict[str, Any]:
    """Return what bits may depend on besides the settings: versions, threads, processor."""
    names = ("featmap", "torch", "torchvision", "numpy", "scipy", "networkx", "zarr", "xarray")
    return {
        "versions": {"python": platform.python_version()} | {n: version(n) for n in names},
        "platform": platform.platform(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else where.type,
        "threads": torch.get_num_threads(),
    }
