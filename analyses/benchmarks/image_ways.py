"""Ways of making images for the benchmark of images: recipes, other tools, and photographs of the classes themselves.

Each keeps what it made, with the processor's seconds, so that an interrupted benchmark goes on where it stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

import featmap
from analyses.benchmarks import image_records
from analyses.benchmarks.opponents import MACO_OPPONENTS, OPPONENTS, Opponent
from featmap import Network
from featmap.cli import console
from featmap.errors import FeatmapError
from featmap.files import digest, safe_file_name, write_atomically
from featmap.image_ops import resize
from featmap.image_shape import Size, format_size
from featmap.network.modules import copy_module
from featmap.optimize.photograph_folder import PhotographFolder
from featmap.optimize.recipe import Recipe
from featmap.runs.progress import Watcher
from featmap.validation.image_evidence import OwnEvidence, PixelMeasures, RunImages
from featmap.validation.image_inputs import Judge, PhotographEvidence, images_of_pixels, images_of_run

LARGEST = 384
"""Largest side, in pixels, at which a tool's images are measured as they are: photographs are measured at it too."""
SECONDS = "seconds.json"


@dataclass(frozen=True)
class Task:
    """Classes and features of a network that every way makes images of.

    Parameters
    ----------
    network : Network
        The network.
    classes : str
        Layer of the class logits; "" where none are made.
    drawn : dict of list
        Channels by layer, class logits first.
    draw : int
        Number of the draw.
    folder : Path
        Folder of the images.
    """

    network: Network
    classes: str
    drawn: dict[str, list[int]]
    draw: int
    folder: Path

    def units(self) -> list[str]:
        """List the units, class logits first."""
        return [f"{layer}:{c}" for layer, channels in self.drawn.items() for c in channels]

    def folder_of(self, identity: dict[str, Any], name: str) -> Path:
        """Name the folder of the images with an identity."""
        return self.folder / safe_file_name(self.network.name) / f"{safe_file_name(name)}-{digest(identity)}"


@dataclass(frozen=True)
class TimedImages:
    """Images, and the processor's seconds per image; None where making them was interrupted."""

    images: RunImages
    seconds: float | None


class Way(Protocol):
    """A way of making images."""

    name: str
    kind: str
    words: str

    def identity(self) -> dict[str, Any]:
        """Describe the settings that its images depend on."""

    def units(self, task: Task) -> list[str]:
        """List the units that it makes images of."""

    def make(self, task: Task, seed: int, watcher: Watcher) -> TimedImages:
        """Make the images, or read those that are there."""


class RecipeWay:
    """A recipe of featmap.

    Parameters
    ----------
    recipe : Recipe
        The recipe, resolved.
    """

    kind, words = image_records.RECIPE, ""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.name = recipe, recipe.name

    def identity(self) -> dict[str, Any]:
        """Describe the recipe's settings."""
        return self.recipe.identity()

    def units(self, task: Task) -> list[str]:
        """List all units."""
        return task.units()

    def make(self, task: Task, seed: int, watcher: Watcher) -> TimedImages:
        """Make the images in a run folder, or resume it."""
        identity = {"network": task.network.identity(), "units": task.units(), "seed": seed, "recipe": self.identity()}
        folder = task.folder_of(identity, self.name)
        is_new, start = not folder.exists(), time.process_time()
        execution = featmap.Execution("cpu", out=folder, watcher=watcher)
        data = featmap.maximise(task.units(), task.network, recipe=self.recipe, seeds=[seed], execution=execution)
        images, took = images_of_run(data), time.process_time() - start
        path = folder.with_suffix(".json")  # beside the run: a run folder holds nothing that is not its own
        if is_new:
            _write_seconds(path, {"each": took / len(images.labels)})
        return TimedImages(images, _read_seconds(path).get("each"))


def _write_seconds(path: Path, seconds: dict[str, float]) -> None:
    """Write seconds."""
    write_atomically(path, lambda p: p.write_text(json.dumps(seconds, indent=1) + "\n", encoding="utf-8"))


def _read_seconds(path: Path) -> dict[str, float]:
    """Read seconds; empty where there are none."""
    found: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def spread(channels: Sequence[int], count: int) -> list[int]:
    """Choose some of the channels drawn, evenly spaced.

    Parameters
    ----------
    channels : sequence of int
        Channels drawn, in rising order.
    count : int
        How many are wanted; with as many or more, all are chosen.

    Returns
    -------
    list of int
        In their order.
    """
    chosen = min(count, len(channels))
    return [channels[k * len(channels) // chosen] for k in range(chosen)]


def parse_few(text: str | None, tool: str) -> list[int]:
    """Read how many classes, and features of a layer, a tool makes.

    Parameters
    ----------
    text : str or None
        Such as "8", "8+0" or "8+4;horama=2+0", where what names a tool holds for this one alone; None for all.
    tool : str
        Name of the tool.

    Returns
    -------
    list of int
        Classes and features, or one number for both; empty for all.

    Raises
    ------
    FeatmapError
        If it is neither, or there is no tool of a name.
    """
    chosen: list[int] = []
    for part in [] if text is None else text.split(";"):
        name, _, numbers = part.strip().rpartition("=")
        counts = numbers.split("+")
        if len(counts) > 2 or not all(p.isdecimal() for p in counts):
            raise FeatmapError(
                f"--few {text}: give a number, or classes+features, such as 8 or 8+4, and of one tool alone, such as "
                "8+4;horama=2+0"
            )
        if name and name not in known_opponents():
            raise FeatmapError(f"--few {text}: opponent {name!r} is unknown; allowed: {'; '.join(known_opponents())}")
        if name == tool or not (name or chosen):
            chosen = [int(p) for p in counts]
    return chosen


class ToolWay:
    """Another tool, which makes images of classes and features one at a time, or of a layer at once.

    Parameters
    ----------
    tool : Opponent
        The tool.
    few : str or None
        Classes and features of a layer that it makes, as `parse_few` reads them; None for all.
    """

    kind = image_records.TOOL

    def __init__(self, tool: Opponent, few: str | None) -> None:
        self.tool, self.name, self.words = tool, tool.name, tool.words
        self._few = parse_few(few, tool.name)

    def identity(self) -> dict[str, Any]:
        """Describe the tool, its version and its settings."""
        return {"tool": self.tool.name, "version": self.tool.version, "words": self.tool.words}

    def chosen(self, task: Task) -> dict[str, list[int]]:
        """Choose channels by layer."""
        if not self._few:
            return task.drawn
        counts = {layer: self._few[0 if layer == task.classes else -1] for layer in task.drawn}
        return {layer: spread(c, counts[layer]) for layer, c in task.drawn.items() if counts[layer]}

    def units(self, task: Task) -> list[str]:
        """List the units chosen."""
        return [f"{layer}:{c}" for layer, channels in self.chosen(task).items() for c in channels]

    def make(self, task: Task, seed: int, watcher: Watcher) -> TimedImages:
        """Make the images that are not there yet; each is kept, as it is measured."""
        identity = self.identity() | {"network": task.network.identity(), "seed": seed}
        folder, units = task.folder_of(identity, self.name), self.units(task)
        self.tool.preload()
        for layer, channels in self.chosen(task).items():
            missing = [c for c in channels if not _image_path(folder, f"{layer}:{c}").is_file()]
            for some in [channels] * bool(missing) if self.tool.batched else [[c] for c in missing]:
                watcher.stage(f"{self.name}, {layer}", channels.index(some[0]), len(channels))
                self._make_some(task, layer, some, seed, folder)
        pixels = [torch.from_numpy(np.load(_image_path(folder, u), allow_pickle=False)) for u in units]
        seconds = _read_seconds(folder / SECONDS)
        return TimedImages(images_of_pixels(units, torch.stack(pixels)), float(np.mean([seconds[u] for u in units])))

    def _make_some(self, task: Task, layer: str, channels: list[int], seed: int, folder: Path) -> None:
        """Make images and store them with their seconds."""
        copy, start = copy_network(task.network), time.process_time()
        images = self.tool.make(copy, layer, channels, seed).float()
        each = (time.process_time() - start) / len(channels)
        images = reduce_images(images.clamp(0, 1), task.network.input_size)
        for channel, image in zip(channels, images, strict=True):
            path = _image_path(folder, f"{layer}:{channel}")
            write_atomically(path, lambda p, image=image: np.save(p, image.numpy()))
            _write_seconds(folder / SECONDS, _read_seconds(folder / SECONDS) | {f"{layer}:{channel}": each})


def _image_path(folder: Path, unit: str) -> Path:
    """Name the file of a unit's image."""
    return folder / f"{safe_file_name(unit)}.npy"


def reduce_images(images: Tensor, size: Size) -> Tensor:
    """Reduce images of more than `LARGEST` pixels a side.

    Parameters
    ----------
    images : Tensor
        N x C x H x W.
    size : int or (int, int)
        Size that they are reduced to.

    Returns
    -------
    Tensor
        N x C x H x W.
    """
    return resize(images, size) if max(images.shape[2:]) > LARGEST else images


def copy_network(network: Network) -> Network:
    """Copy a network for a tool: with its module, whose weights need no gradients.

    Gradients for weights change no image; a tool that computes them is slower.
    """
    copy = Network(copy_module(network.module), network.name, network.weights, network.sha256, network.input_size)
    copy.mean, copy.std = network.mean, network.std
    copy.module.requires_grad_(False)
    return copy


class ClassPhotographs:
    """Photographs of the classes themselves, to which the others are compared.

    Parameters
    ----------
    photographs : PhotographFolder
        One of each class, in the order of the classes.
    """

    name, kind, words = "photographs of the classes", image_records.PHOTOGRAPHS, "one of each class"

    def __init__(self, photographs: PhotographFolder) -> None:
        self._photographs = photographs

    def identity(self) -> dict[str, Any]:
        """Describe the photographs."""
        return {"photographs": self._photographs.digest}

    def units(self, task: Task) -> list[str]:
        """List the class logits."""
        return [f"{task.classes}:{c}" for c in task.drawn[task.classes]]

    def make(self, task: Task, seed: int, watcher: Watcher) -> TimedImages:
        """Read the photographs at the network's own size.

        Raises
        ------
        FeatmapError
            If there are more or fewer photographs than classes.
        """
        classes = task.network.layer(task.classes).channels
        if len(self._photographs) != classes:
            raise FeatmapError(
                f"{len(self._photographs):,} photographs for {classes:,} classes; give one of each, or leave out "
                "--class-order"
            )
        pixels = self._photographs.read(task.drawn[task.classes], task.network.input_size, task.network.channels)
        return TimedImages(images_of_pixels(self.units(task), pixels), None)


class StoredPhotographs(PhotographEvidence):
    """Measures of photographs that are kept in a folder: a later call, or another way, need not make them again.

    Parameters
    ----------
    photographs : PhotographFolder
        The photographs.
    task : Task
        All its units are measured at once, at each size.
    watcher : Watcher
        Receives progress updates.
    """

    def __init__(self, photographs: PhotographFolder, task: Task, watcher: Watcher) -> None:
        super().__init__(photographs, torch.device("cpu"), watcher)
        self._task = task
        blank = torch.zeros(len(task.units()), task.network.channels, 2, 2)
        self._whole = images_of_pixels(task.units(), blank)

    def _path(self, **identity: Any) -> Path:
        """Name the file of some measures."""
        return self._task.folder / "photographs" / f"{digest(identity | {'photographs': self.folder.digest})}.npz"

    def own(self, network: Network, images: RunImages, size: Size) -> OwnEvidence:
        """Measure the photographs as a way's images are measured.

        Parameters
        ----------
        network : Network
            Network of the task.
        images : RunImages
            Images of some of the task's units.
        size : int or (int, int)
            Their size in pixels.

        Returns
        -------
        OwnEvidence
            Of the P photographs at that size, with the columns of the images' features.
        """
        path = self._path(network=network.identity(), units=self._task.units(), size=format_size(size))
        if not path.is_file():
            whole = super().own(network, self._whole, size)
            pixels = {f"pixels_{name}": values for name, values in vars(whole.pixels).items()}
            _save(path, responses=whole.responses, coverage=whole.coverage, **pixels)
        with np.load(path, allow_pickle=False) as found:
            at = [self._whole.features.index(unit) for unit in images.features]
            pixels = PixelMeasures(*(found[f"pixels_{name}"] for name in ("contrast", "slope", "colour")))
            return OwnEvidence(pixels, found["responses"][:, at], found["coverage"][:, at])

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
        size = format_size(judge.network.input_size)
        path = self._path(judge=judge.network.identity(), size=size, layers=list(judge.layers))
        if not path.is_file():
            _save(path, responses=super().by(judge))
        with np.load(path, allow_pickle=False) as found:
            responses: np.ndarray = found["responses"]
        return responses


def _save(path: Path, **arrays: np.ndarray) -> None:
    """Write arrays."""
    write_atomically(path, lambda p: np.savez(p, **arrays))


def known_opponents() -> dict[str, Opponent]:
    """List all other tools by name."""
    return {o.name: o for o in (*OPPONENTS, *MACO_OPPONENTS)}


def choose_opponents(text: str) -> list[Opponent]:
    """Choose other tools by name; those that are not installed are named and left out.

    Parameters
    ----------
    text : str
        Names, joined by semicolons, or by commas where no name has one.

    Returns
    -------
    list of Opponent
        Those that are installed.

    Raises
    ------
    FeatmapError
        For an unknown name.
    """
    by_name = known_opponents()
    chosen = []
    for name in split_names(text):
        if name not in by_name:
            raise FeatmapError(f"opponent {name!r} is unknown; allowed: {'; '.join(by_name)}")
        if by_name[name].installed:
            chosen.append(by_name[name])
        else:
            console.err().print(f"{name} is left out: pip install 'featmap[bench]' installs it")
    return chosen


def split_names(text: str) -> list[str]:
    """Split names that are joined by semicolons or, without any, by commas."""
    return [n.strip() for n in text.split(";" if ";" in text else ",") if n.strip()]
