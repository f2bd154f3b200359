"""Find what a network takes: the number of channels, the size of images, or something other than images."""

from __future__ import annotations

import functools
import inspect
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from featmap.errors import InputError
from featmap.image_shape import Size, area, as_pair, as_size, format_size
from featmap.network.modules import freeze
from featmap.network.trace import Trace, trace

COMMON_CHANNELS = (3, 1, 4, 2)
"""Numbers of channels that are tried, in this order, where no layer determines the number."""
COMMON_SIZES = (32, 28, 64, 96, 128, 160, 192, 112, 256, 240, 299, 384, 48, 16, 336, 448, 512)
"""Sizes in pixels that are tried, in this order."""
MAX_TRIED_SIZE = 1024
"""Largest size in pixels that is tried."""
COMMON_RECTANGLES = ((66, 200), (32, 100), (32, 128), (256, 128), (128, 64), (240, 320), (120, 160), (480, 640))
"""Heights and widths in pixels that are tried where no square fits: road scenes, lines of text, people, video."""
COMMON_RATIOS = ((1, 2), (3, 4), (2, 3), (9, 16), (1, 3), (1, 4), (4, 5), (5, 8), (1, 6), (1, 8))
"""Ratios of the shorter to the longer side that are tried first, in this order."""
MAX_RECTANGLES = 48
"""Number of heights and widths that are tried for a linear layer or positional embeddings."""
COMMON_PATCHES = (4, 8, 16, 14, 32, 2)
"""Sides of patches in pixels that are tried where no convolution cuts them."""
EXTRA_TOKENS = (0, 1, 2, 5, 4, 3, 6, 8)
"""Numbers of tokens beside a grid for which a positional embedding is tried: class token, distillation, registers."""

_PAIR = r"(?<!\d)(\d{1,4})\s*(?:[x×*,]|by)\s*(\d{1,4})(?!\d)"
_SIZE_WORDS = r"\b(expect|size|resolution|dimension|pixel|must|should|require|need|only)|\bimage"
"""Height and width in an error message, and words that such a message contains."""
_LIBRARY_FOLDERS = tuple(f"{Path(file).parent}{os.sep}" for file in (str(torch.__file__), __file__))
"""Folders of torch, and of the module through which the functions of a traced network are called."""


@dataclass(frozen=True)
class Input:
    """What a network takes.

    Parameters
    ----------
    channels : int
        Channels of the images.
    size : int or (int, int)
        Size of the images in pixels.
    trace : Trace
        A forward pass on such an image; it has failed where nothing fits.
    note : str
        How the size was found; empty where it was not searched for.
    works : int, (int, int) or None, default None
        A size that was found to work, where another one was named.
    """

    channels: int
    size: Size
    trace: Trace
    note: str = ""
    works: Size | None = None


def find_input(
    module: nn.Module, name: str, default: Size, channels: int | None = None, size: Size | None = None
) -> Input:
    """Find the channels and the size that a network takes, by layers and by trying.

    Parameters
    ----------
    module : nn.Module
        The network; it is not changed.
    name : str
        Name of the network, for the message.
    default : int or (int, int)
        Size that is tried first.
    channels : int or None, default None
        Number of channels, where it is known.
    size : int, (int, int) or None, default None
        Size of the images, where it is known.

    Returns
    -------
    Input
        What it takes: the defaults (3 channels) if these work, or if nothing does.

    Raises
    ------
    InputError
        If it takes something other than one batch of images.
    """
    first = try_input(module, size or default, channels or 3)
    if not first.failure:
        return Input(channels or 3, first.size, first)
    _require_images(module, name, first)
    best = first
    for n in [channels] if channels else _channels_to_try(module, first):
        at_size = first if n == (channels or 3) else try_input(module, first.size, n)
        if not at_size.failure:
            return Input(n, first.size, at_size)
        working = search_size(module, n, at_size)
        if working is not None and size is not None:
            return Input(n, size, at_size, works=working.size)
        if working is not None:
            note = (
                f"input size {format_size(working.size)}, found by trying: the network fails at {format_size(default)}"
            )
            if not isinstance(working.size, int):
                note += "; other heights and widths may fit too, so name the one that it was trained for (input_size)"
            return Input(n, working.size, working, note)
        if len(at_size.layers) > len(best.layers):
            best = at_size
    return Input(best.image.shape[1], first.size, best)


def try_input(module: nn.Module, size: Size, channels: int) -> Trace:
    """Trace a forward pass without its warnings, which are for a run that works.

    Parameters
    ----------
    module : nn.Module
        The network.
    size : int or (int, int)
        Size of the image in pixels.
    channels : int
        Number of its channels.

    Returns
    -------
    Trace
        The pass, see `featmap.network.trace.trace`.
    """
    with warnings.catch_warnings(), freeze(module):
        warnings.simplefilter("ignore")
        return trace(module, size, channels)


def search_size(module: nn.Module, channels: int, failed: Trace) -> Trace | None:
    """Search for a size at which a network works.

    Sizes of its settings and of positional embeddings are tried first, then common ones, those that fit a linear layer,
    and those that the network's own error names.

    Parameters
    ----------
    module : nn.Module
        The network.
    channels : int
        Number of channels of its images.
    failed : Trace
        A pass that failed at another size.

    Returns
    -------
    Trace or None
        A pass that works; None where no size was found, or the failure does not depend on the size.
    """
    failures = {format_size(failed.size): failed.failure}
    for size in _sizes_to_try(module):
        if format_size(size) in failures:
            continue
        tried = try_input(module, size, channels)
        if not tried.failure:
            return tried
        failures[format_size(size)] = tried.failure
        # a missing argument is missing at every size; another message may be the same for every wrong size
        if len(failures) >= 4 and len(set(failures.values())) == 1 and "TypeError" in str(tried.failure):
            return None
    working = _bisect_linear(module, channels)
    if working is not None:
        return working
    for rectangle in (*_sizes_of_message(failed), *COMMON_RECTANGLES, *_rectangles_of_linear(module, channels)):
        if not (tried := try_input(module, rectangle, channels)).failure:
            return tried
    return None


def _sizes_of_message(failed: Trace) -> Iterator[Size]:
    """Generate the sizes that a network's own error message names, such as "expected 48x96"."""
    text, own = failed.failure, {area(failed.size), *as_pair(failed.size)}
    # torch's errors name shapes of matrices, kernels and weights
    is_own = text.startswith("AssertionError") or not failed.failed_in.startswith(_LIBRARY_FOLDERS)
    for pair in (
        re.findall(_PAIR, text, re.IGNORECASE) if is_own and re.search(_SIZE_WORDS, text, re.IGNORECASE) else ()
    ):
        sides = [int(side) for side in pair]
        if all(8 <= side <= MAX_TRIED_SIZE and side not in own for side in sides):
            yield as_size(sides)


def _sizes_to_try(module: nn.Module) -> Iterator[Size]:
    """Generate sizes: those of settings, of positional embeddings, common ones."""
    for part in (module, *module.children()):
        settings = [getattr(part, name, None) for name in ("config", "pretrained_cfg", "default_cfg")]
        for holder in (part, *settings):
            for name in ("image_size", "img_size", "input_size"):
                value = holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)
                if isinstance(value, (tuple, list)):
                    value = list(value)[-2:]
                sides = value if isinstance(value, list) else [value]
                if all(isinstance(s, int) and 0 < s <= MAX_TRIED_SIZE for s in sides):
                    yield as_size(value)
    yield from _sizes_of_embeddings(module)
    yield from COMMON_SIZES


def _sizes_of_embeddings(module: nn.Module) -> Iterator[Size]:
    """Generate the sizes that fit the positional embeddings of a network that cuts images into patches."""
    convolutions = (m for m in module.modules() if isinstance(m, nn.Conv2d))
    patch = next((m.stride for m in convolutions if m.stride == m.kernel_size and m.stride[0] > 1), None)
    for step in COMMON_PATCHES if patch is None else ():
        yield from _sizes_of_grids(module, (step, step))
    if patch is not None:
        yield from _sizes_of_grids(module, patch)


def _sizes_of_grids(module: nn.Module, patch: tuple[int, ...]) -> Iterator[Size]:
    """Generate the sizes at which patches of some height and width fit the positional embeddings."""
    for name, values in (*module.named_parameters(), *module.named_buffers()):
        if "pos" not in name.lower() or values.dim() < 2:
            continue
        if values.dim() == 4:  # 1 x C x H x W or 1 x H x W x C
            for grid in (values.shape[2:], values.shape[1:3]):
                yield as_size([side * step for side, step in zip(grid, patch, strict=True)])
            continue
        for extra in EXTRA_TOKENS:
            side = math.isqrt(max(0, values.shape[-2] - extra))
            if side and side**2 == values.shape[-2] - extra:
                yield as_size([side * step for step in patch])
        for extra in EXTRA_TOKENS[:3]:
            grids = _rectangles(values.shape[-2] - extra)
            yield from _sort_rectangles((rows * patch[0], columns * patch[1]) for rows, columns in grids)[:4]


@contextmanager
def _record_inputs(module: nn.Module) -> Iterator[list[tuple[nn.Module, Sequence[int]]]]:
    """Record the shapes of what convolutions and linear layers get, in their order."""
    calls: list[tuple[nn.Module, Sequence[int]]] = []

    def record(part: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            calls.append((part, tuple(args[0].shape)))

    parts = [m for m in module.modules() if isinstance(m, (_ConvNd, nn.Linear))]
    handles = [m.register_forward_pre_hook(record) for m in parts]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _bisect_linear(module: nn.Module, channels: int) -> Trace | None:
    """Search for the size that fits a linear layer after a flattened grid, whose width grows with the size."""
    low, high, working = 0, MAX_TRIED_SIZE + 1, None
    while high - low > 1:
        size = (low + high) // 2
        with _record_inputs(module) as calls:
            tried = try_input(module, size, channels)
        if not tried.failure:
            working, high = tried, size
            continue
        last, shape = calls[-1] if calls else (None, ())
        # a pass that fails before the linear layer has too few pixels for its pooling
        too_wide = isinstance(last, nn.Linear) and shape[-1] > last.in_features
        low, high = (low, size) if too_wide else (size, high)
    return working


def _rectangles(count: int) -> Iterator[tuple[int, int]]:
    """Generate the rows and columns of all grids of so many positions that are not square."""
    for rows in range(1, max(0, count) + 1):
        if count % rows == 0 and rows**2 != count:
            yield rows, count // rows


def _sort_rectangles(sizes: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sort heights and widths, of at most `MAX_TRIED_SIZE` pixels: common ratios first, then round numbers."""

    def rank(size: tuple[int, int]) -> tuple[int, int, bool, int]:
        low, high = sorted(size)
        ratio = low // math.gcd(low, high), high // math.gcd(low, high)
        place = COMMON_RATIOS.index(ratio) if ratio in COMMON_RATIOS else len(COMMON_RATIOS) + sum(ratio)
        roundness = min(side & -side for side in size)  # the largest power of two in both sides
        return place, -roundness, size[0] > size[1], low

    return sorted((s for s in set(sizes) if max(s) <= MAX_TRIED_SIZE), key=rank)


def _rectangles_of_linear(module: nn.Module, channels: int) -> list[tuple[int, int]]:
    """List heights and widths that fit a linear layer after a flattened grid, by how its input grows with them."""

    @functools.cache
    def width(height: int, length: int) -> tuple[int, int]:
        """Numbers that the last linear layer gets and expects; 0 where the pass fails before it."""
        with _record_inputs(module) as calls:
            try_input(module, (height, length), channels)
        last, shape = calls[-1] if calls else (None, ())
        return (shape[-1], last.in_features) if isinstance(last, nn.Linear) else (0, 0)

    start = next((s for s in (8, 16, 32, 64, 128, 256) if width(s, s)[0]), 0)
    if not start:
        return []
    along = (lambda h: width(h, start)[0]), (lambda w: width(start, w)[0])
    steps = [[_next_step(grow, start), _next_step(grow, _next_step(grow, start))] for grow in along]
    if not all(second for _, second in steps):
        return []
    seen, expected = width(start, start)
    # the input has a part for each of rows x columns positions: one row more adds columns x depth numbers
    rows, columns = (max(1, seen // (grow(first) - seen)) for grow, (first, _) in zip(along, steps, strict=True))
    depth = max(1, seen // (rows * columns))
    sizes: list[tuple[int, int]] = []
    for grid in _rectangles(expected // depth if expected % depth == 0 else 0):
        sides = []
        for count, known, (first, second) in zip(grid, (rows, columns), steps, strict=True):
            low = first + (count - known - 1) * (second - first)
            sides.append(range(max(1, low), low + second - first))
        # sides that leave no pixels over at the edge come first: networks are seldom built for others
        strides = [second - first for first, second in steps]
        whole = [[s for s in side if s % stride == 0] or side for side, stride in zip(sides, strides, strict=True)]
        sizes.extend(_sort_rectangles((h, w) for h in whole[0] for w in whole[1])[:1])
    return _sort_rectangles(sizes)[:MAX_RECTANGLES]


def _next_step(grow: Callable[[int], int], start: int) -> int:
    """Find the smallest side above another at which the input of a linear layer grows; 0 if none is near."""
    low, high = start, 4 * max(start, 32)
    if not start or grow(high) <= grow(start):
        return 0
    while high - low > 1:
        side = (low + high) // 2
        low, high = (low, side) if grow(side) > grow(start) else (side, high)
    return high


def _channels_to_try(module: nn.Module, failed: Trace) -> list[int]:
    """List numbers of channels: what the first layer takes, or else common ones."""
    tried = failed.image.shape[1]
    with _record_inputs(module) as calls:
        try_input(module, failed.size, tried)
    if calls:
        first, shape = calls[0]
        seen, expected = (
            (shape[-1], first.in_features)
            if isinstance(first, nn.Linear)
            else (shape[1] if len(shape) > 1 else 0, getattr(first, "in_channels", 0))
        )
        if seen == tried * area(failed.size):  # a linear layer after a flattened image, square by assumption
            whole = [expected // area(failed.size)] if expected % area(failed.size) == 0 else []
            square = [n for n in COMMON_CHANNELS if n * math.isqrt(expected // n) ** 2 == expected]
            return [*dict.fromkeys((*whole, *square, *(n for n in COMMON_CHANNELS if expected % n == 0)))]
        if seen and tried * expected % seen == 0:
            return [tried * expected // seen]
    return list(COMMON_CHANNELS)


class _Recorder(dict[Any, Any]):
    """A dictionary or object of any keys and attributes, all of which are the same image; it records what is read."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.image = image
        self.keys_read: list[Any] = []
        self.attributes_read: list[str] = []

    def __missing__(self, key: Any) -> Tensor:
        self.keys_read.append(key)
        return self.image

    def get(self, key: Any, default: Any = None) -> Any:
        return self[key]

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("_") or hasattr(Tensor, name):
            raise AttributeError(name)
        self.attributes_read.append(name)
        return self.image


def _require_images(module: nn.Module, name: str, failed: Trace) -> None:
    """Raise an error with the code of a wrapper if a network takes something other than one batch of images."""
    arguments, by_name = _list_arguments(module.forward)
    first = f"{arguments[0]}=images" if by_name and arguments else "...=images" if by_name else "images"
    if arguments[1:]:
        what = f"{len(arguments)} inputs ({', '.join(arguments)})"
        call = ", ".join([first, *(f"{name}=..." for name in arguments[1:])])
    elif by_name:
        what, call = f"its input by name ({', '.join(arguments) or 'any'})", first
    else:
        with _record_inputs(module) as calls:
            again = try_input(module, failed.size, failed.image.shape[1])
        if calls:  # its layers got the image: it is their shapes that do not fit
            return
        what, call = _describe_reading(module, failed.image, again.failure)
    if what:
        raise InputError(
            f"network {name} takes {what}, and featmap gives one batch of images, N x C x H x W; "
            "wrap it, and give the wrapper as the model, such as package.module:OnImages",
            "class OnImages(torch.nn.Module):\n"
            "    def __init__(self): super().__init__(); self.network = make()\n"
            f"    def forward(self, images): return self.network({call})",
        )


def _list_arguments(forward: Callable[..., Any]) -> tuple[list[str], bool]:
    """List the arguments that a call needs, and tell if it takes all by name; none where they cannot be read."""
    try:
        parameters = inspect.signature(forward).parameters.values()
    except (TypeError, ValueError):
        return [], False
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    by_name = bool(parameters) and all(p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for p in parameters)
    return [p.name for p in named if p.default is p.empty] or [p.name for p in named[:1] if by_name], by_name


def _describe_reading(module: nn.Module, image: Tensor, failure: str) -> tuple[str, str]:
    """Describe how a network reads its input, and the argument that a wrapper passes; empty for images."""
    recorder = _Recorder(image)
    with warnings.catch_warnings(), freeze(module), torch.no_grad():
        warnings.simplefilter("ignore")
        with suppress(Exception):  # only what was read before it failed is of interest
            module(recorder)
    for read, kind in ((recorder.keys_read, "a dictionary"), (recorder.attributes_read, "an object")):
        keys = list(dict.fromkeys(k for k in read if isinstance(k, str)))
        if keys:
            values = ["images", *["..."] * (len(keys) - 1)]
            if kind == "an object":
                parts = ", ".join(f"{k}={v}" for k, v in zip(keys, values, strict=True))
                return f"{kind} with {', '.join(keys)}", f"types.SimpleNamespace({parts})"
            parts = ", ".join(f"{k!r}: {v}" for k, v in zip(keys, values, strict=True))
            return f"{kind} with {', '.join(map(repr, keys))}", f"{{{parts}}}"
    if "mapping" in failure:
        return "a dictionary", "{...: images}"
    if re.search(r"values to unpack|out of bounds for dimension 0 with size 1", failure):
        return "a list of inputs", "[images, ...]"
    return "", ""
