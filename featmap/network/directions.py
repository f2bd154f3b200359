"""Directions: linear readings of a layer's channels, which are features like the channels themselves.

Direction k of a layer with channels g_c is z_k = sum_c w_kc g_c (+ b_k, then a ReLU, where the set has them) at every
position of the grid. The components of NMF and PCA, the rows of a sparse autoencoder's encoder and concept vectors are
directions. A set has a name: direction 7 of the set `nmf` of `inception4a` is the feature ``inception4a/nmf:7``.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from featmap.errors import FeatmapError, first_line

SUFFIXES = (".safetensors", ".npy", ".npz")
"""Endings of the files that hold directions."""
VECTORS = ("directions", "vectors", "components", "weight")
"""Names of the array that holds the vectors; a file with a single matrix may name it otherwise."""
FOLDER = "directions"
"""Folder of a run's directions, inside its run folder."""
CHUNK = 2**19
"""Largest number of products computed at once: so many stay in a processor's cache."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_READ_ERRORS = (
    *(OSError, ValueError, KeyError, EOFError, RuntimeError),
    *(SafetensorError, zipfile.BadZipFile, zlib.error),
)
"""What damaged files raise."""
_TRUE, _FALSE = {"true", "1", "yes"}, {"false", "0", "no", ""}
Pairs = Sequence[tuple[int, int]]
"""Pairs of an image's number in the batch and a direction's number."""


@dataclass(frozen=True, eq=False)
class Directions:
    """A set of K directions in the space of a layer's C channels.

    Parameters
    ----------
    vectors : array
        K x C, the weight of each channel; float32 is kept.
    bias : array or None, default None
        K numbers that are added; None adds nothing.
    relu : bool, default False
        Whether values below 0 become 0 in the end, as in the encoder of a sparse autoencoder.
    names : sequence of str, default ()
        Name of each direction, for tables; empty for none.
    name : str, default ""
        Name of the set; empty where only the file's name or the caller gives one.
    source : str, default "an array"
        Where the directions come from, for messages.

    Raises
    ------
    FeatmapError
        If the shapes do not fit, a number is not finite, a direction is zero in all channels, or names repeat.

    Examples
    --------
    >>> Directions([[1, 0, 0], [0, 1, -1]]).vectors.shape
    (2, 3)
    """

    vectors: np.ndarray
    bias: np.ndarray | None = None
    relu: bool = False
    names: tuple[str, ...] = ()
    name: str = ""
    source: str = "an array"

    def __post_init__(self) -> None:
        vectors = self._as_floats("directions", self.vectors)
        vectors = vectors[None] if vectors.ndim == 1 else vectors
        if vectors.ndim != 2 or 0 in vectors.shape:
            raise self._error(f"of shape {vectors.shape}; allowed: directions x channels, K x C")
        bias = None if self.bias is None else self._as_floats("bias", self.bias).reshape(-1)
        if bias is not None and len(bias) != len(vectors):
            raise self._error(f"{len(vectors)} directions and a bias of {len(bias)}; give one number for each, or none")
        names = tuple(map(str, self.names))
        if names and len(names) != len(vectors):
            raise self._error(f"{len(vectors)} directions and {len(names)} names; give one for each, or none")
        name, count = Counter(names).most_common(1)[0] if names else ("", 1)
        if count > 1:
            raise self._error(f"{count} directions are named {name!r}; give each a name of its own")
        zero = np.flatnonzero(~vectors.any(axis=1))
        if len(zero):
            raise self._error(f"direction {zero[0]} is zero in all channels; leave it out")
        for field, value in (("vectors", vectors), ("bias", bias), ("names", names), ("relu", bool(self.relu))):
            object.__setattr__(self, field, value)

    def _error(self, text: str) -> FeatmapError:
        """Make an error that names the source."""
        return FeatmapError(f"directions {self.source}: {text}")

    def _as_floats(self, what: str, values: ArrayLike) -> np.ndarray:
        """Convert real numbers to float32, and check that they are finite."""
        try:
            array = np.asarray(values.detach().float().cpu() if isinstance(values, Tensor) else values)
        except ValueError as error:  # rows of different lengths
            raise self._error(f"{what} are no array ({error}); give K x C numbers") from None
        if array.dtype.kind not in "fiub":
            raise self._error(f"{what} of type {array.dtype}; allowed: real numbers")
        with np.errstate(over="ignore"):  # what overflows is refused below
            array = np.ascontiguousarray(array, dtype=np.float32)
        bad = np.argwhere(~np.isfinite(array))
        if len(bad):
            place = ", ".join(map(str, bad[0]))
            raise self._error(f"{what}[{place}] is {array[tuple(bad[0])]}; give finite numbers of float32")
        return array

    @property
    def count(self) -> int:
        """Number of directions, K."""
        return len(self.vectors)

    @property
    def width(self) -> int:
        """Number of channels, C."""
        return int(self.vectors.shape[1])

    @property
    def sha256(self) -> str:
        """SHA-256 of everything that the directions are: vectors, bias, ReLU and names."""
        about = json.dumps([self.vectors.shape, self.bias is not None, self.relu, self.names])
        bias = b"" if self.bias is None else self.bias.tobytes()
        return hashlib.sha256(about.encode() + self.vectors.tobytes() + bias).hexdigest()

    @property
    def copies(self) -> list[tuple[int, int]]:
        """Numbers of each direction that equals a single channel, and of that channel."""
        if self.bias is not None or self.relu:
            return []
        single = ((self.vectors != 0).sum(1) == 1) & (self.vectors.max(1) == 1)
        return [(int(k), int(self.vectors[k].argmax())) for k in np.flatnonzero(single)]

    def identity(self) -> dict[str, Any]:
        """Describe the set for the identity of a run.

        Returns
        -------
        dict
            Plain JSON values: numbers of directions and channels, bias, ReLU, SHA-256.
        """
        bias = self.bias is not None
        return {"count": self.count, "channels": self.width, "bias": bias, "relu": self.relu, "sha256": self.sha256}

    def to_bytes(self) -> bytes:
        """Write the set as the content of a file that `read_directions` reads.

        Returns
        -------
        bytes
            The same directions give the same bytes.
        """
        tensors = {"directions": self.vectors} | ({} if self.bias is None else {"bias": self.bias})
        about = {"name": self.name, "relu": self.relu, "names": list(self.names)}
        # one entry: safetensors writes several in a changing order
        return bytes(save(tensors, {"featmap": json.dumps(about)}))


def as_directions(value: Directions | ArrayLike | str | Path, name: str) -> Directions:
    """Convert an array or a file to directions.

    Parameters
    ----------
    value : Directions, array or path
        A set of directions, its K x C vectors, or a file of them.
    name : str
        Name of the set, for messages about an array.

    Returns
    -------
    Directions
        The set.

    Raises
    ------
    FeatmapError
        If the file cannot be read, or the values are no directions.
    """
    if isinstance(value, Directions):
        return value
    if isinstance(value, (str, Path)):
        return read_directions(Path(value))
    return Directions(value, source=repr(name))  # type: ignore[arg-type]


def split_name(name: str) -> tuple[str, str]:
    """Split the name of a layer of directions.

    Parameters
    ----------
    name : str
        Such as ``inception4a/nmf``.

    Returns
    -------
    layer : str
        The layer whose channels they are directions of, such as ``inception4a``.
    set_name : str
        Name of the set, such as ``nmf``; empty where there is none.
    """
    layer, slash, set_name = name.rpartition("/")
    return (layer, set_name) if slash else (name, "")


def check_name(name: str, source: str) -> str:
    """Check the name of a set.

    Parameters
    ----------
    name : str
        Name without the layer.
    source : str
        Where it comes from, for the message.

    Returns
    -------
    str
        The same name.

    Raises
    ------
    FeatmapError
        If it is no name that a unit can be written with.
    """
    if not _NAME.match(name):
        raise FeatmapError(
            f"directions {source}: {name!r} cannot name a set; allowed: up to 64 letters, digits, '.', '_' and '-', "
            "such as inception4a/nmf"
        )
    return name


def stored_path(name: str, identity: Mapping[str, Any]) -> str:
    """Name the file of a run folder that holds a set of directions.

    Parameters
    ----------
    name : str
        Name of its layer, such as ``inception4a/nmf``.
    identity : mapping
        Entry of the set in the identity of the run's network.

    Returns
    -------
    str
        Path in the folder.
    """
    safe = re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip(".")[:80]
    return f"{FOLDER}/{safe}-{str(identity['sha256'])[:10]}.safetensors"


def read_directions(path: Path) -> Directions:
    """Read directions from a file.

    Parameters
    ----------
    path : Path
        `.npy` (the K x C vectors), `.npz` or `.safetensors`: one matrix, or one called ``directions``, ``vectors``,
        ``components`` or ``weight``; and, if wanted, ``bias`` (K), ``relu`` (true or false), ``names`` (K texts) and
        ``name`` (of the set). Text and ``relu`` of a `.safetensors` file are in its metadata, ``names`` as a JSON list.

    Returns
    -------
    Directions
        The set; its name is that in the file, or else the file's own.

    Raises
    ------
    FeatmapError
        If the file is missing or damaged, holds pickled objects, or what it holds is no set of directions.
    """
    shown = repr(str(path))
    if path.suffix.lower() not in SUFFIXES:
        raise FeatmapError(f"directions {shown}: allowed are files that end in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise FeatmapError(f"directions {shown}: there is no such file; give one that ends in {', '.join(SUFFIXES)}")
    try:
        content = _READERS[path.suffix.lower()](path)
    except _READ_ERRORS as error:
        reason = first_line(error, 160)
        if "allow_pickle" in reason:
            reason = "it holds pickled objects, which may run code; store numbers, and names as text"
        raise FeatmapError(f"directions {shown} cannot be read ({reason}); write the file again") from error
    return _from_content(content, shown, path.stem)


def _read_npy(path: Path) -> dict[str, Any]:
    """Read a single array."""
    with path.open("rb") as stream:
        return {VECTORS[0]: np.lib.format.read_array(stream, allow_pickle=False)}


def _read_npz(path: Path) -> dict[str, Any]:
    """Read the arrays of an archive."""
    content = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as stream:
                content[name.removesuffix(".npy")] = np.lib.format.read_array(stream, allow_pickle=False)
    return content


def _read_safetensors(path: Path) -> dict[str, Any]:
    """Read tensors and metadata."""
    content: dict[str, Any] = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a dict
            tensor = file.get_tensor(name)
            content[name] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        metadata = dict(file.metadata() or {})
    own = json.loads(metadata.pop("featmap", "{}"))
    known = {k: v for k, v in metadata.items() if k in ("name", "names", "relu")}  # others belong to other programs
    if known.get("names", "").lstrip().startswith("["):
        known["names"] = json.loads(known["names"])
    return content | known | own


_READERS = {".npy": _read_npy, ".npz": _read_npz, ".safetensors": _read_safetensors}


def _from_content(content: Mapping[str, Any], source: str, stem: str) -> Directions:
    """Make directions of what a file holds."""
    settings = {name: content[name] for name in ("bias", "relu", "names", "name") if name in content}
    others = {name: value for name, value in content.items() if name not in settings}
    named = [name for name in VECTORS if name in others]
    matrices = [name for name, value in others.items() if np.ndim(value) == 2]
    chosen = named if len(named) == 1 else matrices if not named else []
    if len(chosen) != 1 or len(others) > 1:
        raise FeatmapError(
            f"directions {source}: it holds {', '.join(map(repr, content)) or 'nothing'}; allowed: one matrix, K x C "
            f"(called {', '.join(map(repr, VECTORS))} or anything else), and 'bias', 'relu', 'names', 'name'"
        )
    names = settings.get("names", ())
    names = names.split(",") if isinstance(names, str) else np.atleast_1d(np.asarray(names, dtype=str)).tolist()
    return Directions(
        others[chosen[0]],
        settings.get("bias"),
        _as_flag(settings.get("relu", False), source),
        tuple(n.strip() for n in names if n.strip()),
        str(settings.get("name") or "") or stem,
        source,
    )


def _as_flag(value: Any, source: str) -> bool:
    """Convert the value of `relu` to a boolean."""
    text = str(np.asarray(value).reshape(-1)[0] if np.size(value) == 1 else value).strip().lower()
    text = text.removesuffix(".0")
    if text not in _TRUE | _FALSE:
        raise FeatmapError(f"directions {source}: relu is {text[:40]!r}; give true or false")
    return text in _TRUE


class Projection:
    """The linear map of a set of directions, on one device and in one type.

    A value depends on its own position and its own direction alone, whatever else is in the batch or the set: products
    are added in an order that depends on the number of channels only. (The rounding of a matrix product depends on its
    shape.) Channels of weight 0 are left out, so that one that is not finite affects no direction that does not use it.
    A direction of a single channel is read by its index, so that it has the bits of that channel.

    Parameters
    ----------
    directions : Directions
        The set.
    like : Tensor
        Any tensor of the device and type of the grids.
    """

    def __init__(self, directions: Directions, like: Tensor) -> None:
        vectors = torch.from_numpy(directions.vectors)
        self.is_single = ((vectors != 0).sum(1) == 1).tolist()
        self.relu, self.count, self.has_zeros = directions.relu, directions.count, not directions.vectors.all()
        # the channel of the largest weight is the only one of a direction of a single channel
        self.channels = vectors.abs().argmax(1).to(like.device)
        self.vectors = vectors.to(like)
        self.bias = None if directions.bias is None else torch.from_numpy(directions.bias).to(like)

    def __call__(self, grid: Tensor, needed: Pairs | None = None) -> Tensor:
        """Read the directions.

        Parameters
        ----------
        grid : Tensor
            The layer's output, N x C x H x W.
        needed : sequence of (int, int) or None, default None
            Images and directions that are needed, sorted; the others are 0. None computes all.

        Returns
        -------
        Tensor
            N x K x H x W.
        """
        pairs = [(n, k) for n in range(len(grid)) for k in range(self.count)] if needed is None else needed
        result = grid.new_zeros(len(grid), self.count, *grid.shape[2:])
        for single in (True, False):
            chosen = [pair for pair in pairs if self.is_single[pair[1]] is single]
            if not chosen:
                continue
            rows, which = torch.tensor(chosen, device=grid.device).unbind(1)
            if single:
                values = grid[rows, self.channels[which]]
                scales = self.vectors[which, self.channels[which]]
                values = values * scales[:, None, None]
            else:
                values = _WeightedSums.apply(grid, self.vectors, chosen, self.has_zeros)
            if self.bias is not None:
                values = values + self.bias[which][:, None, None]
            # `relu` as a torch function: a rescue of dead ReLUs reaches it as it reaches the network's own
            result = result.index_put((rows, which), values.relu() if self.relu else values)
        return result


class _WeightedSums(torch.autograd.Function):
    """Weighted sums of channels, each rounded independently of the others."""

    @staticmethod
    def forward(ctx: Any, grid: Tensor, vectors: Tensor, pairs: Pairs, has_zeros: bool) -> Tensor:
        ctx.pairs, ctx.shape = pairs, grid.shape
        ctx.save_for_backward(vectors)
        flat = grid.flatten(2)
        sums = [_sums(flat[row], vectors[chosen], has_zeros) for row, chosen in _by_row(pairs, flat[0].numel())]
        return torch.cat(sums).unflatten(1, grid.shape[2:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (vectors,) = ctx.saved_tensors
        result = grad.new_zeros(ctx.shape)
        for place, (row, k) in enumerate(ctx.pairs):  # one by one: a direction that a row does not read adds 0
            weights = vectors[k][:, None, None]
            result[row] += torch.where(weights != 0, weights * grad[place], 0)
        return result, None, None, None


def _by_row(pairs: Pairs, elements: int) -> Iterator[tuple[int, list[int]]]:
    """Group sorted pairs by their image, with at most as many directions as `CHUNK` products allow."""
    most = max(1, CHUNK // max(1, elements))
    for row, group in groupby(pairs, key=lambda pair: pair[0]):
        chosen = [k for _, k in group]
        for first in range(0, len(chosen), most):
            yield row, chosen[first : first + most]


def _sums(channels: Tensor, vectors: Tensor, has_zeros: bool) -> Tensor:
    """Sum channels (C x L) by weights (P x C) in a fixed order, the second half onto the first until one is left."""
    weights = vectors[:, :, None]
    products = weights * channels
    if has_zeros:
        products = torch.where(weights != 0, products, 0)
    count = products.shape[1]
    while count > 1:
        half = count // 2
        products[:, :half] += products[:, count - half : count]
        count -= half
    return products[:, 0]
