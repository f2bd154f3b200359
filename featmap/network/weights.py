"""Weights: read tensors (and nothing but tensors) from files, load them into a module, and hash them."""

from __future__ import annotations

import codecs
import hashlib
import inspect
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from featmap.errors import ModelError

AUXILIARY_PREFIXES = ("aux1.", "aux2.", "AuxLogits.")
"""Prefixes of the names of auxiliary classifiers' tensors, which are skipped."""
WRAPPER_KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "ema", "model_ema")
"""Keys under which checkpoints store the state dict, in the order in which they are tried; others come after them."""
WRAPPER_NAMES = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts that wrappers put into names: ``torch.compile``, ``DataParallel``, FSDP and activation checkpointing."""
DAMAGED = "it is damaged or cut short"
SIGNATURES = (
    (b"version https://git-lfs", "it is a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`"),
    (b"<!doctype html", "it is a web page, as a failed download leaves"),
    (b"<html", "it is a web page, as a failed download leaves"),
    (b"<?xml", "it is XML, as a failed download leaves"),
    (b"\x93numpy", "it is a NumPy array (.npy)"),
    (b"\x89hdf", "it is an HDF5 file, as Keras writes"),
    (b"\x89png", "it is a picture"),
    (b"\x1f\x8b", "it is compressed by gzip; unpack it"),
    (b"pk\x03\x04", DAMAGED),
)
"""First bytes of files that are mistaken for weights, and what such files are."""
MAX_DEPTH = 4
"""How many mappings deep a file is searched for state dicts."""


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


class _Setting:
    """Stand in for an object beside the tensors of a checkpoint: it accepts any arguments and does nothing."""

    def __new__(cls, *args: Any) -> _Setting:
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        """Ignore the arguments."""

    def __setstate__(self, state: Any) -> None:
        """Ignore the state."""


def _plain_mapping(*args: Any) -> dict[Any, Any]:
    """Stand in for ``defaultdict``: ignore its factory."""
    return {}


SETTINGS = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    "datetime.datetime",
    "datetime.timedelta",
    *(f"builtins.{kind}" for kind in ("dict", "float", "int", "list", "set", "slice")),
    *(f"{module}.{system}Path" for module in ("pathlib", "pathlib._local") for system in ("Posix", "Windows")),
    *(f"numpy.{name}" for name in ("dtype", "ndarray")),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
)
"""Classes and functions that checkpoints use for arguments and numbers. Reading a file calls stand-ins for them."""


def read_states(path: Path) -> dict[str, dict[str, Tensor]]:
    """Read all state dicts in a `.safetensors` file or a PyTorch checkpoint.

    Checkpoints are read with ``weights_only=True``: a file that holds pickled code is refused, not run. Arguments,
    numbers and optimiser states beside the tensors are ignored.

    Parameters
    ----------
    path : Path
        Path of the file.

    Returns
    -------
    dict of str to dict
        Tensors by name, on the CPU, of every mapping of names to tensors in the file. The key is the place in the
        file, such as ``state_dict`` or ``checkpoint.model``; that of the whole file is empty and comes first, then
        those of `WRAPPER_KEYS`.

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
            stand_ins: list[Any] = [(_Setting, name) for name in SETTINGS]
            stand_ins.append((_plain_mapping, "collections.defaultdict"))
            with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
                warnings.simplefilter("ignore")  # torch warns about files that it then refuses
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelError(
            f"weights {str(path)!r} cannot be read ({_recognise(path) or _explain(error)}); "
            "give a .safetensors file or a state dict saved with torch.save"
        ) from error
    states = dict(_find_states(content))
    if not states:
        raise ModelError(
            f"weights {str(path)!r} hold no state dict (names to tensors){_describe(content)}; save model.state_dict()"
        )
    return states


def _recognise(path: Path) -> str:
    """Identify a file that holds no weights by its first bytes; empty where they do not suffice."""
    try:
        with path.open("rb") as stream:
            start = stream.read(512)
    except OSError as error:
        return f"{error.strerror or error}"
    if not start:
        return "it is empty"
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError):
            return DAMAGED
        if names and all(name.endswith(".npy") for name in names):
            return "it is an archive of NumPy arrays (.npz)"
        is_torch = any(name.endswith("data.pkl") for name in names)
        return "" if is_torch else f"it is a zip archive of {', '.join(map(repr, names[:2])) or 'nothing'}"
    start = start.removeprefix(codecs.BOM_UTF8)
    for signature, what in SIGNATURES:
        if start.lstrip().lower().startswith(signature):
            return what
    return "it is text, not tensors" if all(32 <= b < 127 or b in b"\t\r\n" for b in start) else ""


def _describe(content: Any) -> str:
    """Describe what a file holds that has no state dict."""
    if not isinstance(content, Mapping):
        return f", but {'a single tensor' if isinstance(content, Tensor) else type(content).__name__}"
    keys = [repr(key)[:80] for key in content]
    holders = [content, *(value for value in content.values() if isinstance(value, Mapping))]
    if any({"state", "param_groups"} <= holder.keys() for holder in holders):
        return ", only the state of an optimiser"
    return f", only {', '.join(keys[:4])}{' and more' if len(keys) > 4 else ''}" if keys else ": nothing"


def _explain(error: Exception) -> str:
    """Explain in words why a file of weights cannot be read."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, pickle.UnpicklingError):
        match = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({match.group(1)[:80]})" if match else ""
        return f"it holds pickled code or is damaged, and featmap reads nothing but tensors{what}"
    if "TorchScript" in reason:
        return "it is a TorchScript archive"
    if "zip archive" in reason or "incomplete metadata" in reason:
        return DAMAGED
    if isinstance(error, SafetensorError):
        return "it is damaged, or no safetensors file"
    if "legacy .tar format" in reason:
        return "it is damaged, or in the format of torch before 0.1.10"
    # a bare number is the byte at which torch stopped
    return reason[:160] if re.search("[A-Za-z]", reason) else "it is damaged, or no file of torch"


def _find_states(content: Any, place: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Generate the places and the tensors of all mappings of names to tensors, outer ones first."""
    if not isinstance(content, Mapping) or depth > MAX_DEPTH:
        return
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if tensors:
        yield place, tensors
    inner = [k for k, v in content.items() if isinstance(k, str) and isinstance(v, Mapping)]
    for key in [*(k for k in WRAPPER_KEYS if k in inner), *(k for k in inner if k not in WRAPPER_KEYS)]:
        yield from _find_states(content[key], f"{place}.{key}".lstrip("."), depth + 1)


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the first state dict in a file.

    Parameters
    ----------
    path : Path
        Path of a `.safetensors` file or a PyTorch checkpoint.

    Returns
    -------
    dict of str to Tensor
        The tensors by name, on the CPU.

    Raises
    ------
    ModelError
        If the file is missing, unreadable or holds no state dict.
    """
    return next(iter(read_states(path).values()))


@dataclass(frozen=True)
class Match:
    """A state dict of a file under the names of a module.

    Parameters
    ----------
    state : dict of str to Tensor
        Tensors by the module's names.
    place : str
        Place of the state dict in the file; empty for the whole file.
    renamed : str, default ""
        Description of what was removed from or added to the file's names; empty where they are the module's.
    unused : int, default 0
        Number of tensors of the state dict that belong to something else.
    """

    state: dict[str, Tensor]
    place: str
    renamed: str = ""
    unused: int = 0

    def notes(self) -> tuple[str, ...]:
        """Describe what was done to the file's names.

        Returns
        -------
        tuple of str
            At most one note.
        """
        parts = [f"found in {self.place!r}"] if self.place else []
        parts += [self.renamed] if self.renamed else []
        parts += [f"{self.unused:,} tensors of something else are left out"] if self.unused else []
        return (f"weights {', '.join(parts)}",) if parts else ()


def match_state(module: nn.Module, states: Mapping[str, Mapping[str, Tensor]]) -> Match:
    """Find the state dict of a file that fits a module, and the prefix of its names.

    Names are tried as they are, then without what wrappers put into them (`WRAPPER_NAMES`), then without any common
    prefix. Where nothing fits completely, names count before shapes.

    Parameters
    ----------
    module : nn.Module
        The module.
    states : mapping of str to mapping
        Result of `read_states`.

    Returns
    -------
    Match
        The first that fits, or else the one of which most tensors do.
    """
    own = module.state_dict()
    matches = [match for place, state in states.items() for match in _rename(own, dict(state), place)]
    # a larger count wins; of equal ones the first, which is the simplest
    best = max(matches, key=lambda m: _rank(own, m.state))
    rank = _rank(own, best.state)
    rivals = [
        m for m in matches if _rank(own, m.state) == rank and any(m.state[k] is not best.state[k] for k in best.state)
    ]
    if rivals and rank[0]:
        others = " or ".join(dict.fromkeys(f"in {m.place!r}" if m.place != best.place else m.renamed for m in rivals))
        chosen = f"{best.renamed}, " if best.renamed else ""
        return replace(best, renamed=f"{chosen}not those {others}, which fit too")
    return best


def _rank(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> tuple[bool, bool, int, int]:
    """Rank a state dict: all names and shapes fit, all names fit, how many tensors fit, minus those that do not."""
    shared = [k for k in own if k in state]
    fitting = sum(state[k].shape == own[k].shape for k in shared)
    complete = not _missing(own, state) and len(shared) == len(state)
    return complete and fitting == len(shared), complete, fitting, len(shared) - len(state)


def _missing(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """List the module's tensors that a state dict lacks; counters of batches are not needed."""
    return [k for k in own if k not in state and not k.endswith("num_batches_tracked")]


def _rename(own: Mapping[str, Tensor], state: dict[str, Tensor], place: str) -> Iterator[Match]:
    """Generate a state dict under all names that it may have in a module, the unchanged ones first."""
    yield Match(_drop_auxiliary(state, own), place)
    bare = {_unwrap(k): k for k in own}
    unwrapped = {_unwrap(k): v for k, v in state.items()}
    words = [
        f"{'without' if _holds(w, state) else 'with'} {w + '.'!r}"
        for w in WRAPPER_NAMES
        if _holds(w, state) != _holds(w, own)
    ]
    if len(bare) < len(own) or len(unwrapped) < len(state):  # two names become one: a wrapper's name means something
        bare, unwrapped, words = {k: k for k in own}, state, []
    anchors = [k for k in bare if not k.endswith("num_batches_tracked")]
    if not anchors:
        return
    anchor = max(anchors, key=lambda k: k.count("."))
    segments = anchor.split(".")
    common = _common_prefix(list(bare))
    for outer in dict.fromkeys(["", *(".".join(segments[:n]) + "." for n in range(1, common.count(".") + 1))]):
        target = anchor.removeprefix(outer)
        for prefix in [k[: len(k) - len(target)] for k in unwrapped if f".{k}".endswith(f".{target}")]:
            names = {outer + k.removeprefix(prefix): k for k in unwrapped if k.startswith(prefix)}
            renamed = {bare.get(name, name): unwrapped[k] for name, k in names.items()}
            changes = [
                *words,
                *([f"without the prefix {prefix!r}"] if prefix else []),
                *([f"with the prefix {outer!r}"] if outer else []),
            ]
            unused = len(unwrapped) - len(names)
            # a prefix may hold one part of several; names of a network with a prefix of its own must fit completely
            if changes and prefix != (outer or None) and not (outer and unused):
                yield Match(_drop_auxiliary(renamed, own), place, ", ".join(changes), unused)


def _holds(wrapper: str, names: Iterable[str]) -> bool:
    """Check whether a wrapper's name is part of any name."""
    return any(wrapper in name.split(".") for name in names)


def _unwrap(name: str) -> str:
    """Remove what wrappers put into the name of a tensor."""
    return ".".join(part for part in name.split(".") if part not in WRAPPER_NAMES)


def _drop_auxiliary(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out auxiliary classifiers that a module does not have."""
    return {k: v for k, v in state.items() if k in own or not k.startswith(AUXILIARY_PREFIXES)}


def _common_prefix(names: Sequence[str]) -> str:
    """Get the path of modules that all names of tensors share, with its final dot; an empty string if there is none."""
    first, last = (name.split(".")[:-1] for name in (min(names), max(names)))
    shared = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "".join(f"{part}." for part, _ in shared)


def load_state(module: nn.Module, state: Mapping[str, Tensor], network: str, source: str) -> tuple[str, ...]:
    """Load a state dict into a module, in place.

    Auxiliary classifiers that the module does not have are skipped. Values are converted to the module's types.

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

    Returns
    -------
    tuple of str
        A note if values of other types were converted.

    Raises
    ------
    ModelError
        If the state does not fit; the message says how many tensors do, and names the first that are missing, unknown,
        of another shape or of another kind, with the part of the network that they are in.
    """
    own = module.state_dict()
    state = _drop_counters(_drop_auxiliary(dict(state), own), own)
    shared = [k for k in own if k in state]
    wrong = [k for k in shared if state[k].shape != own[k].shape]
    kinds = {k: kind for k in shared if (kind := _unsupported_kind(state[k], own[k]))}
    faults = [
        _list_names(words, names, {k: detail(k) for k in names[:2]})
        for words, names, detail in (
            ("missing", _missing(own, state), lambda k: k),
            ("unknown", [k for k in state if k not in own], lambda k: k),
            ("of another shape", wrong, lambda k: f"{k} is {_format_shape(state[k])}, not {_format_shape(own[k])}"),
            ("of another kind", list(kinds), lambda k: f"{k} is {kinds[k]}"),
        )
        if names
    ]
    if faults:
        fitting = len([k for k in shared if k not in wrong and k not in kinds])
        raise ModelError(
            f"weights {source} do not fit {network}: {fitting:,} of its {len(own):,} tensors fit "
            f"({'; '.join(faults)}); give the network they were trained for"
        )
    module.load_state_dict(state, strict=False)
    return _note_conversions(own, state)


def _drop_counters(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out single whole numbers that the module lacks, such as the `n_averaged` of torch's averaged models."""
    return {k: v for k, v in state.items() if k in own or v.dim() > 0 or v.is_floating_point()}


def _list_names(words: str, names: list[str], details: dict[str, str]) -> str:
    """Name the first of some tensors, the number of the others, and the part of the network that all are in."""
    text = f"{words}: {', '.join(details.values())}"
    if len(names) <= 2:
        return text
    parts = list(dict.fromkeys(k.partition(".")[0] for k in names))
    if common := _common_prefix(names).rstrip("."):
        where = f"all in {common}"
    else:
        where = f"in {', '.join(parts[:3])}" + (f" and {len(parts) - 3} other parts" if len(parts) > 3 else "")
    return f"{text} and {len(names) - 2:,} more, {where}"


def _note_conversions(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Describe which types of numbers were converted to which; counters of batches are not mentioned."""
    pairs = sorted(
        {
            (str(state[k].dtype).removeprefix("torch."), str(own[k].dtype).removeprefix("torch."))
            for k in own
            if k in state and state[k].dtype != own[k].dtype and not k.endswith("num_batches_tracked")
        }
    )
    return (f"weights converted from {', '.join(f'{a} to {b}' for a, b in pairs)}",) if pairs else ()


def _unsupported_kind(tensor: Tensor, own: Tensor) -> str:
    """Describe a tensor whose values cannot become those of the module's; an empty string where they can."""
    if tensor.dtype in (torch.int8, torch.uint8) and own.is_floating_point():
        return f"{str(tensor.dtype).removeprefix('torch.')}, not {str(own.dtype).removeprefix('torch.')} (quantized)"
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
