"""Collect what a run's images are judged by: pixels, and the responses of its own and of other networks to them.

A judge sees an image as a picture file holds it: clamped to [0, 1] and resized to the judge's own input size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from featmap.errors import UnitError
from featmap.image_ops import resize
from featmap.image_shape import Size, format_size
from featmap.network.model import Network
from featmap.network.selection import find_blocks
from featmap.network.unit import CLASS, Unit
from featmap.optimize.comparison import check_repeatable
from featmap.optimize.objective import Objective
from featmap.optimize.photograph_folder import PhotographFolder
from featmap.optimize.responses import Probe
from featmap.runs import probe
from featmap.runs.folder_layout import LIVE_CODES
from featmap.runs.probe import ROWS, Source
from featmap.runs.progress import Watcher
from featmap.stats import image_quality
from featmap.validation.image_evidence import OwnEvidence, PixelMeasures, RunImages


def images_of_run(data: xr.Dataset) -> RunImages:
    """Read the labels of a run's images.

    Parameters
    ----------
    data : xarray.Dataset
        Arrays of a run of `maximise` or `similarity`.

    Returns
    -------
    RunImages
        All its images.
    """
    source = probe.open_source(data, None, 1, data.sizes.get("channel", 3))
    labels, seeds = [str(n) for n in data["image"].values], data["seed"].values
    features, index = _find_features(labels)
    return RunImages(
        labels * len(seeds),
        np.repeat(seeds, len(labels)),
        np.isin(data["status"].values.ravel(), LIVE_CODES),
        data["activation"].values.ravel().astype(np.float64),
        features,
        np.tile(index, len(seeds)),
        source.size,
        source.read,
    )


def images_of_pixels(labels: Sequence[str], pixels: Tensor) -> RunImages:
    """Describe images of any origin, such as those of another tool.

    Parameters
    ----------
    labels : sequence of str
        What each image was made for, R.
    pixels : Tensor
        R x C x H x W.

    Returns
    -------
    RunImages
        All live, of one seed, of unknown activation.
    """
    features, index = _find_features(labels)
    count, source = len(labels), probe.open_source(pixels, None, 1, pixels.shape[1])
    live, unknown = np.ones(count, dtype=bool), np.full(count, np.nan)
    return RunImages(list(labels), np.zeros(count, dtype=int), live, unknown, features, index, source.size, source.read)


def _find_features(labels: Sequence[str]) -> tuple[list[Unit], np.ndarray]:
    """Find the features among what images were made for, and the index of each image's feature, -1 for others."""
    units = [_feature_of(label) for label in labels]
    index: dict[Unit, int] = {}
    for unit in units:
        if unit is not None:
            index.setdefault(unit, len(index))
    return list(index), np.array([-1 if unit is None else index[unit] for unit in units], dtype=int)


def _feature_of(label: str) -> Unit | None:
    """Parse the feature that an image was made for; None for anything else."""
    terms = Objective.parse(label).terms
    if len(terms) > 1 or terms[0][0] <= 0 or terms[0][1].kind != "feature":
        return None
    return terms[0][1]


def image_batches(images: RunImages, watcher: Watcher, name: str) -> Iterator[Tensor]:
    """Generate the images of a run in batches, clamped to [0, 1].

    Parameters
    ----------
    images : RunImages
        The images.
    watcher : Watcher
        Receives progress updates.
    name : str
        Label shown with the progress.

    Yields
    ------
    Tensor
        B x C x H x W.
    """
    for batch in _read(Source(images.labels, images.size, "", images.read), watcher, name):
        yield batch.clamp(0, 1)


def _read(source: Source, watcher: Watcher, name: str) -> Iterator[Tensor]:
    """Generate images in batches and report the progress."""
    done = 0
    for batch in source.batches(ROWS):
        yield batch
        done += len(batch)
        watcher.stage(name, done, len(source.labels))


def measure_own(
    network: Network, images: RunImages, batches: Iterator[Tensor], size: Size, device: torch.device
) -> OwnEvidence:
    """Measure images by their pixels and by the run's own network.

    Parameters
    ----------
    network : Network
        Network of the run.
    images : RunImages
        Its features are measured.
    batches : iterator of Tensor
        The run's own images or photographs of the same size, B x C x H x W each.
    size : int or (int, int)
        Their size in pixels.
    device : torch.device
        Where the network is computed.

    Returns
    -------
    OwnEvidence
        Of all images in their order.
    """
    layers, count = images.layers, len(images.features)
    if layers:
        check_repeatable(network, layers, size, device)
    own_probe = Probe(network, ROWS, device)
    columns = {layer: images.features_of(layer) for layer in layers}
    pixels, responses, coverage = [], [], []
    for batch in batches:
        pixels.append(PixelMeasures.of(batch.numpy()))
        means, covered = (np.full((len(batch), count), np.nan) for _ in range(2))
        for out in own_probe.outputs(batch, layers) if layers else ():
            for layer, at in columns.items():
                maps = out[layer][:, [images.features[k].channel for k in at]]
                means[:, at] = maps.mean((2, 3)).cpu().numpy()
                covered[:, at] = image_quality.coverages(maps.cpu().numpy())
        responses.append(means)
        coverage.append(covered)
    return OwnEvidence(PixelMeasures.join(pixels), np.concatenate(responses), np.concatenate(coverage))


@dataclass(frozen=True, eq=False)
class Judge:
    """Another network that judges images.

    Parameters
    ----------
    name : str
        Name in tables.
    network : Network
        The network.
    classes : str or None
        Its layer of class logits; None where it has none.
    layers : tuple of str
        Layers whose features the run's features are matched to: its blocks.
    """

    name: str
    network: Network
    classes: str | None
    layers: tuple[str, ...]

    @staticmethod
    def of(network: Network, name: str) -> Judge:
        """Find the layers that a network judges by, at its own input size.

        Parameters
        ----------
        network : Network
            The network.
        name : str
            Name in tables.

        Returns
        -------
        Judge
            The judge.
        """
        blocks = find_blocks(network.module, network.trace())
        return Judge(name, network, class_layer(network, network.input_size), tuple(blocks))

    def class_count(self) -> int:
        """Count the classes.

        Returns
        -------
        int
            0 for a network without class logits.
        """
        return 0 if self.classes is None else self.network.layer(self.classes).channels

    def columns(self) -> list[str]:
        """Name the features of the judge's layers.

        Returns
        -------
        list of str
            ``layer:channel``, G.
        """
        return [f"{la}:{c}" for la in self.layers for c in range(self.network.layer(la).channels)]

    def measure(
        self, batches: Iterator[Tensor], device: torch.device, *, logits: bool, hidden: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Measure the judge's responses to images of any size.

        Parameters
        ----------
        batches : iterator of Tensor
            Images in [0, 1], B x C x H x W; they are resized to the judge's input size.
        device : torch.device
            Where it is computed.
        logits, hidden : bool
            Whether the class logits, and the features of its layers, are measured.

        Returns
        -------
        logits : numpy.ndarray
            N x K; N x 0 where they are not measured, 0 x 0 where nothing is.
        features : numpy.ndarray
            Mean over each feature's grid, N x G, or N x 0.
        """
        layers = list(dict.fromkeys([*([self.classes] if logits and self.classes else []), *(self.layers * hidden)]))
        if not layers:
            return np.empty((0, 0), np.float32), np.empty((0, 0), np.float32)
        size = self.network.input_size
        check_repeatable(self.network, layers, size, device)
        judge_probe = Probe(self.network, ROWS, device)
        parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        for batch in batches:
            means = judge_probe.responses(resize(batch, size), layers)
            none = np.empty((len(batch), 0), np.float32)
            parts[0].append(means[self.classes] if logits and self.classes else none)
            parts[1].append(np.concatenate([means[la] for la in self.layers], axis=1) if hidden else none)
        return np.concatenate(parts[0]), np.concatenate(parts[1])


def class_layer(network: Network, size: Size) -> str | None:
    """Find a network's layer of class logits.

    Parameters
    ----------
    network : Network
        The network.
    size : int or (int, int)
        Image size in pixels.

    Returns
    -------
    str or None
        Its last layer that is a vector; None where there is none.
    """
    try:
        return network.resolve_unit(Unit(CLASS, 0), size).layer
    except UnitError:
        return None


class PhotographEvidence:
    """Measures of photographs, each made once for all runs beside them.

    Parameters
    ----------
    folder : PhotographFolder
        The photographs.
    device : torch.device
        Where networks are computed.
    watcher : Watcher
        Receives progress updates.
    """

    def __init__(self, folder: PhotographFolder, device: torch.device, watcher: Watcher) -> None:
        self.folder, self.device, self.watcher = folder, device, watcher
        self._own: dict[tuple[Size, tuple[Unit, ...]], OwnEvidence] = {}
        self._by: dict[str, np.ndarray] = {}

    def _batches(self, network: Network, size: Size, name: str) -> Iterator[Tensor]:
        """Generate the photographs at a size, with the channels that a network takes."""
        source = probe.open_source(self.folder, size, size, network.channels)
        return _read(source, self.watcher, f"photographs by {name}")

    def own(self, network: Network, images: RunImages, size: Size) -> OwnEvidence:
        """Measure the photographs as a run's images are measured.

        Parameters
        ----------
        network : Network
            Network of the run; always the same one.
        images : RunImages
            Images of the run, which name its features.
        size : int or (int, int)
            Their size in pixels.

        Returns
        -------
        OwnEvidence
            Of the P photographs at that size.
        """
        key = size, tuple(images.features)
        if key not in self._own:
            batches = self._batches(network, size, f"{network.name}, {format_size(size)} pixels")
            self._own[key] = measure_own(network, images, batches, size, self.device)
        return self._own[key]

    def by(self, judge: Judge) -> np.ndarray:
        """Measure a judge's responses to the photographs.

        Parameters
        ----------
        judge : Judge
            The judge.

        Returns
        -------
        numpy.ndarray
            Responses of its features, P x G.
        """
        if judge.name not in self._by:
            batches = self._batches(judge.network, judge.network.input_size, judge.name)
            self._by[judge.name] = judge.measure(batches, self.device, logits=False, hidden=True)[1]
        return self._by[judge.name]
