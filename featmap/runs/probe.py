"""Probe images: compute the responses of layers to the images of a run, to photographs or to an array."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from featmap.errors import FeatmapError
from featmap.image_shape import Size, as_pair, as_size, format_size
from featmap.network.loading import load
from featmap.network.model import Network
from featmap.optimize.comparison import check_repeatable
from featmap.optimize.photograph_files import PhotographFiles, find_photographs
from featmap.optimize.photograph_folder import (
    AnyPhotographs,
    PhotographFolder,
    Photographs,
    PhotographStimuli,
    check_photographs,
)
from featmap.optimize.photographs import check_photograph_channels
from featmap.optimize.responses import Probe
from featmap.runs import device, integrity, lifecycle
from featmap.runs.engine import Execution, WorkUnit, plan_units, run_here
from featmap.runs.folder_layout import ArraySpec
from featmap.runs.manifest import is_run
from featmap.runs.output import write_frame
from featmap.runs.progress import Silent, Watcher
from featmap.runs.store import Run, open_arrays

ROWS = 16
"""Images of a batch."""
SMALL_SIZE = "an image has 1 pixel or more; choose a size of 32 or more"


@dataclass(frozen=True, eq=False)
class Source:
    """Images to probe, which are read in batches.

    Parameters
    ----------
    labels : list of str
        Name of each image.
    size : int or (int, int)
        Size in pixels.
    digest : str
        SHA-256 of the files or values that the images are read from.
    read : callable
        Returns the images from `first` to `last` (exclusive), B x C x H x W.
    photographs : dict, default {}
        Of photographs: what a manifest says of them.
    """

    labels: list[str]
    size: Size
    digest: str
    read: Callable[[int, int], Tensor]
    photographs: dict[str, Any] = field(default_factory=dict)

    def batches(self, rows: int) -> Iterator[Tensor]:
        """Generate the images in batches.

        Parameters
        ----------
        rows : int
            Images of a batch.

        Yields
        ------
        Tensor
            B x C x H x W.
        """
        for first in range(0, len(self.labels), rows):
            yield self.read(first, min(first + rows, len(self.labels)))


def open_source(images: Any, size: Size | None, network_size: Size, channels: int = 3) -> Source:
    """Open the images of a run folder, a folder of photographs, a dataset or an array.

    Parameters
    ----------
    images : path, Run, PhotographFolder, xarray.Dataset or array
        A run folder; photographs; the result of `maximise`; or N x C x H x W values in [0, 1].
    size : int, (int, int) or None
        Size that photographs are resized to, in pixels; None takes `network_size`.
    network_size : int or (int, int)
        Input size of the network in pixels.
    channels : int, default 3
        Number C of the network's input channels.

    Returns
    -------
    Source
        The images.

    Raises
    ------
    FeatmapError
        If there are no images, a run is not finished or damaged, or size or channels are not those of its images.
    """
    if size is not None and min(as_pair(size)) < 1:
        raise FeatmapError(f"size {format_size(size)}: {SMALL_SIZE}")
    if isinstance(images, (str, Path)):
        images = open_images(images)
    if isinstance(images, PhotographFolder):
        return _from_photographs(images, size or network_size, channels)
    if isinstance(images, Run):
        if not images.manifest.is_complete:
            raise FeatmapError(f"run {str(images.folder)!r} is not finished; complete it by its own command first")
        integrity.require_intact(images.folder)
        images = open_arrays(images.folder)
        if size is not None and "y" in images.sizes and size != _size_of(images):
            raise FeatmapError(
                f"size {format_size(size)}: the images of the run are stored at {format_size(_size_of(images))} "
                "pixels; leave the size out"
            )
    if isinstance(images, xr.Dataset):
        return _from_dataset(images, channels)
    array = torch.as_tensor(np.asarray(images), dtype=torch.float32)
    if array.dim() != 4 or array.shape[1] != channels or not array.numel():
        raise FeatmapError(
            f"images of shape {tuple(array.shape)}; allowed: N x {channels} x H x W, with N of 1 or more"
        )
    digest = hashlib.sha256(array.numpy().tobytes()).hexdigest()
    size = as_size(tuple(array.shape[2:]))
    return Source([str(k) for k in range(len(array))], size, digest, lambda a, b: array[a:b])


def open_images(path: str | Path, skip_broken: bool = False, watcher: Watcher | None = None) -> Run | PhotographFolder:
    """Open a run folder, or photographs, every one of which is decoded once.

    Parameters
    ----------
    path : path
        The folder or zip.
    skip_broken : bool, default False
        Go on without photographs that cannot be read.
    watcher : Watcher, optional
        Receives the progress, and what is left out.

    Returns
    -------
    Run or PhotographFolder
        The run, or the photographs.

    Raises
    ------
    FeatmapError
        If it is neither, or photographs are broken.
    """
    if is_run(Path(path)):
        return Run.read(Path(path))
    return decode_photographs(find_photographs(path), skip_broken, watcher)


def decode_photographs(
    files: PhotographFiles, skip_broken: bool = False, watcher: Watcher | None = None
) -> PhotographFolder:
    """Decode every photograph once, with progress and notes.

    Parameters
    ----------
    files : PhotographFiles
        Files of a folder or zip.
    skip_broken : bool, default False
        Go on without photographs that cannot be read.
    watcher : Watcher, optional
        Receives the progress, and what is left out.

    Returns
    -------
    PhotographFolder
        The readable photographs.

    Raises
    ------
    FeatmapError
        If photographs are broken and not skipped, or none is left.
    """
    observer = watcher or Silent()
    photographs = check_photographs(
        files,
        skip_broken=skip_broken,
        progress=lambda done, total: observer.stage("photographs opened", done, total),
    )
    for line in photographs.lines():
        observer.note(line)
    return photographs


def open_stimuli(
    photographs: AnyPhotographs, size: Size, channels: int = 3, watcher: Watcher | None = None
) -> PhotographStimuli:
    """Open the photographs that a run shows beside its images.

    Parameters
    ----------
    photographs : path, Photographs or PhotographFolder
        The photographs; every one that is not open yet is decoded once.
    size : int or (int, int)
        Size of the run's images in pixels.
    channels : int, default 3
        Number of the network's input channels.
    watcher : Watcher, optional
        Receives the progress, and what is left out.

    Returns
    -------
    PhotographStimuli
        The photographs at that size.

    Raises
    ------
    FeatmapError
        If the network does not take photographs, there are none, some are broken and not skipped, or the limit is
        below 1.
    """
    check_photograph_channels(channels)
    limit = None
    if not isinstance(photographs, PhotographFolder):
        chosen = photographs if isinstance(photographs, Photographs) else Photographs(photographs)
        if is_run(Path(chosen.folder)):
            raise FeatmapError(f"photographs {str(chosen.folder)!r} is a run; give a folder or zip of photographs")
        found = find_photographs(chosen.folder, "photographs")
        files = found.limited(chosen.limit)
        limit = chosen.limit if len(files) < len(found) else None  # a limit that leaves none out makes no other run
        photographs = decode_photographs(files, chosen.skip_broken, watcher)
    return PhotographStimuli(photographs.labels, photographs.digest, size, limit, photographs)


def _size_of(data: xr.Dataset) -> Size:
    """Get the size of a run's images."""
    return as_size((data.sizes["y"], data.sizes["x"]))


def _from_photographs(photographs: PhotographFolder, size: Size, channels: int) -> Source:
    """Make a source of photographs; its digest is that of their names and bytes."""
    check_photograph_channels(channels)
    return Source(
        photographs.labels,
        size,
        photographs.digest,
        lambda a, b: photographs.read(range(a, b), size, channels),
        photographs.record(),
    )


def _from_dataset(data: xr.Dataset, channels: int) -> Source:
    """Open the images of a run's arrays; those of several seeds are labelled ``unit@seed``."""
    if "images" not in data:
        raise FeatmapError("this run has no images to probe; runs of `similarity` and `maximise` have some")
    if data.sizes["channel"] != channels:
        raise FeatmapError(
            f"the images of the run have {data.sizes['channel']} channels, and the network takes {channels}; choose "
            "another network or another run"
        )
    seeds, count = data.sizes["seed"], data.sizes["image"]
    names = [str(n) for n in data["image"].values]
    labels = names if seeds == 1 else [f"{n}@{s}" for s in data["seed"].values for n in names]

    def read(first: int, last: int) -> Tensor:
        places = [divmod(k, count) for k in range(first, last)]
        return torch.from_numpy(np.stack([data["images"][s, i].values for s, i in places]))

    identity = f"{data.attrs} {labels} {float(data['activation'].sum())!r}"
    return Source(labels, _size_of(data), hashlib.sha256(identity.encode()).hexdigest(), read)


def probe(
    images: Any,
    layers: str | Sequence[str],
    network: str | nn.Module | Network = "reference",
    *,
    size: Size | None = None,
    skip_broken: bool = False,
    execution: Execution | None = None,
) -> xr.DataArray:
    """Compute the responses of layers' features to images.

    A response is the mean over the grid of the feature.

    Parameters
    ----------
    images : path, Run, PhotographFolder, xarray.Dataset or array
        A run folder; a folder or zip of photographs; the result of `maximise`; or N x C x H x W values in [0, 1].
    layers : str or sequence of str
        Names as `featmap layers` prints them.
    network : str, torch.nn.Module or Network, default "reference"
        A name that `featmap.load` takes, a module that takes images in [0, 1], or a loaded network.
    size : int or (int, int), optional
        Size that photographs are resized to, in pixels. None takes the network's own input size.
    skip_broken : bool, default False
        Go on without photographs that cannot be read; otherwise all of them are named and nothing is computed.
    execution : Execution, optional
        Device, run folder and progress. Without a run folder the responses are computed in memory.

    Returns
    -------
    xarray.DataArray
        Image x response, float32, responses labelled ``layer:channel``, of the unmodified network in evaluation mode,
        without jitter.

    Raises
    ------
    FeatmapError
        If there are no images, a layer does not exist, a run is not finished or damaged, or photographs are broken.
    """
    execution = execution or Execution()
    loaded = load(network)
    names = list(dict.fromkeys([layers] if isinstance(layers, str) else layers))
    if isinstance(images, (str, Path)):
        if not is_run(Path(images)):
            require_layers(loaded, names, size)
        images = open_images(images, skip_broken, execution.watcher)
    source = open_source(images, size, loaded.input_size, loaded.channels)
    probing = _Probing(loaded, source, names, execution)
    return probing.in_memory() if execution.out is None else probing.to_folder(execution.out)


def require_layers(network: Network, layers: Sequence[str], size: Size | None = None) -> None:
    """Check that layers exist, before many photographs are opened for them.

    Parameters
    ----------
    network : Network
        The network.
    layers : sequence of str
        Names of the layers.
    size : int or (int, int), optional
        Size that photographs are resized to, in pixels. None takes the network's own input size.

    Raises
    ------
    FeatmapError
        If one does not exist, or the size does not fit the network.
    """
    if size is not None and min(as_pair(size)) < 1:
        raise FeatmapError(f"size {format_size(size)}: {SMALL_SIZE}")
    for layer in layers:
        network.layer(layer, network.input_size if size is None else size)


class _Probing:
    """The responses of some layers to some images, in memory or in a run folder."""

    def __init__(self, network: Network, source: Source, layers: list[str], execution: Execution) -> None:
        self.network, self.source, self.layers, self.watcher = network, source, layers, execution.watcher
        self.device = execution.torch_device()
        self.columns = [f"{la}:{c}" for la in layers for c in range(network.layer(la, source.size).channels)]
        check_repeatable(network, layers, source.size, self.device)
        self.probe = Probe(network, ROWS, self.device)

    def responses(self, images: Tensor) -> np.ndarray:
        """Return the responses to a batch, image x response."""
        responses = self.probe.responses(images, self.layers)
        return np.concatenate([responses[la] for la in self.layers], axis=1)

    def in_memory(self) -> xr.DataArray:
        """Return all responses."""
        with device.deterministic_settings():
            parts = [self.responses(batch) for batch in self.source.batches(ROWS)]
        return xr.DataArray(
            np.concatenate(parts),
            dims=("image", "response"),
            coords={"image": self.source.labels, "response": self.columns},
            name="A",
            attrs={"network": str(self.network)},
        )

    def identity(self) -> dict[str, Any]:
        """Return everything that the responses depend on, as plain JSON values."""
        images = {"count": len(self.source.labels), "size": self.source.size, "sha256": self.source.digest}
        return {
            "command": "probe",
            "model": self.network.identity(),
            "images": images,
            "responses": self.layers,
            "device": self.device.type,
        }

    def to_folder(self, folder: Path) -> xr.DataArray:
        """Compute what is missing of the responses in a run folder, and return them."""
        count, width = len(self.source.labels), len(self.columns)
        spec = ArraySpec(("image", "response"), (count, width), (ROWS, width))
        about = {
            "network": str(self.network),
            "model_arguments": self.network.arguments,
            "environment": device.describe_environment(self.device),
            "photographs": self.source.photographs,
        }
        coords = {"image": np.array(self.source.labels), "response": np.array(self.columns)}
        files = lifecycle.direction_files(self.network)
        run = Run(folder, self.identity()).open({"A": spec}, coords, about, files)
        with run.locked():
            lifecycle.record_photographs(run, self.source.photographs)

            def work(unit: WorkUnit) -> None:
                values = self.responses(self.source.read(unit.first, unit.last))
                run.land(unit.name, {"A": ((slice(unit.first, unit.last), slice(None)), values)})
                self.watcher.step(float(values.mean()))

            units = [u for u in plan_units(count, ROWS, (0,)) if u.last]
            with device.deterministic_settings():
                done = run_here(units, run, work, 1, self.watcher)
            data = open_arrays(folder)["A"]
            if done or not run.is_complete():
                write_frame(run, "responses", data.to_pandas())
                lifecycle.complete_units(run, [u.name for u in units])
            return data
