"""The frame of every study of an experiment of the article: claim, options, findings and stored results.

A study is a module with a `STUDY` (claim, layers, what is measured) and a function `measure(context)` that returns an
`Outcome`: tidy rows, findings with intervals, a verdict, one sentence with a number, and figures. Its function
`restate(stored)` writes verdict and conclusion again from the stored findings and rows, so that the words of a study
can change without its descents.
`analyses.support.study_command` runs it from the command line. Descents run in the library with `context.folder(...)`
as their run folder, so that an interrupted study resumes where it stopped.

`analyses.support.records` stores the results, and `python -m analyses.tables` writes analyses/README.md from them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import xarray as xr
from matplotlib.figure import Figure

from analyses.support.findings import Finding
from analyses.support.settings import library_keywords
from featmap import Network, maximise
from featmap.cli.console import ProgressBars, err
from featmap.files import digest
from featmap.optimize.recipe import Recipe
from featmap.rng import generator
from featmap.runs.folder_layout import status_names
from featmap.stats.reliability import Interval

RESULTS = Path(__file__).resolve().parent.parent / "results"
FEATURES, SEEDS = 16, 3
"""Features of each layer and seeds of the noise, unless a study says otherwise."""
LAYER_OF_UNIT = re.compile(r"([A-Za-z_][\w./]*):")
"""Layers in the name of a unit or of a sum of units."""
FIRST = "first"
"""In place of named features: the first ones of each layer, in order."""
NETWORKS = ("reference", "googlenet", "squeezenet", "inception_v3", "resnet50")
LATE = {
    "reference": ("inception4a", "inception5a"),
    "googlenet": ("inception4a", "inception5a"),
    "squeezenet": ("features.9", "features.12"),
    "inception_v3": ("Mixed_6b", "Mixed_7a"),
    "resnet50": ("layer3.2", "layer4.2"),
}
"""A middle and a late layer of each network of the article, and of a small one."""

Verdict = Literal["holds", "holds in part", "does not hold", "not decided"]


@dataclass(frozen=True)
class Study:
    """One experiment of the article.

    Parameters
    ----------
    name : str
        Name of the study, its module and its folder of results.
    section : str
        Section of the article that makes the claim.
    claim : str
        Our paraphrase of the claim.
    measured : str
        What the study measures, in one line.
    full : str
        What ``--full`` changes, in words.
    layers : mapping of str to tuple of str, default LATE
        Layers of each network; other networks need ``--layers``.
    takes_image : bool, default False
        Whether ``--image`` may name a photograph to start from.
    seeds : int, default SEEDS
        Number of seeds without ``--seeds``; a claim about named units needs five.
    features : int, default FEATURES
        Number of features of each layer without ``--features``.
    full_features : int, default None
        The same with ``--full``; None: no other number.
    feature : int, default None
        Channel of the last layer that the claim names, without ``--feature``; None where it names none.
    pair : bool, default False
        Whether the study takes exactly two layers.
    rule : str, default ""
        How the claim is judged, in words; stored with the verdict.
    units : mapping of str to tuple of str, default {}
        Features that the article names, by network, as for ``--units``: ``layer:channel``, or `FIRST`.
    takes_units : bool, default True
        Whether ``--units`` may name features; a study that does not draw features takes none.
    """

    name: str
    section: str
    claim: str
    measured: str
    full: str
    layers: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: LATE)
    takes_image: bool = False
    seeds: int = SEEDS
    features: int = FEATURES
    full_features: int | None = None
    feature: int | None = None
    pair: bool = False
    rule: str = ""
    units: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    takes_units: bool = True


@dataclass(frozen=True)
class Outcome:
    """Result of a study.

    Parameters
    ----------
    rows : pandas.DataFrame
        Observations, one per row.
    findings : sequence of Finding
        Findings.
    verdict : str
        Whether the claim holds, see `Verdict`.
    conclusion : str
        One sentence with a number.
    figures : mapping of str to Figure or bytes
        Figures by what follows MODEL in the file's name: "" or "-detail" for a matplotlib figure, "-growth.webp" for
        bytes.
    """

    rows: pd.DataFrame
    findings: Sequence[Finding]
    verdict: Verdict
    conclusion: str
    figures: Mapping[str, Figure | bytes]


@dataclass(frozen=True, eq=False)
class StoredResult:
    """Stored result of a study on one network, from which its verdict and conclusion are written again.

    Parameters
    ----------
    model : str
        Name of the network.
    network : str
        The network with its weights.
    settings : dict
        Settings of the study, see `save_outcome`.
    findings : dict of str to Finding
        Findings by name.
    rows : pandas.DataFrame
        Observations, as the CSV holds them: six significant digits.
    results : Path
        Folder of the results of all studies.
    """

    model: str
    network: str
    settings: dict[str, Any]
    findings: dict[str, Finding]
    rows: pd.DataFrame
    results: Path

    @classmethod
    def read(cls, path: Path) -> StoredResult:
        """Read a record and the table beside it.

        Parameters
        ----------
        path : Path
            The record, MODEL.json.

        Returns
        -------
        StoredResult
            Both.
        """
        record = json.loads(path.read_text(encoding="utf-8"))
        findings = {f["name"]: Finding(**f) for f in record["findings"]}
        rows = pd.read_csv(path.with_suffix(".csv"))
        return cls(record["model"], record["network"], record["settings"], findings, rows, path.parent.parent)

    def interval(self, name: str) -> Interval:
        """Look up a finding as an interval.

        Parameters
        ----------
        name : str
            Name of the finding.

        Returns
        -------
        Interval
            NaN for what is undefined.
        """
        found = self.findings[name]
        return Interval(*(np.nan if v is None else v for v in (found.value, found.low, found.high)))

    def value(self, name: str) -> float:
        """Look up the value of a finding.

        Parameters
        ----------
        name : str
            Name of the finding.

        Returns
        -------
        float
            NaN where it is undefined.
        """
        return float(self.interval(name).value)


@dataclass(frozen=True)
class Given:
    """How the command line named the network.

    Parameters
    ----------
    name : str, default ""
        Name of the network's column in the tables; "" takes the network's own.
    origin : str, default ""
        Where its weights come from, in words.
    command : str, default ""
        The command, without folders.
    rests_on : dict, optional
        What the result rests on, see `analyses.support.provenance`, when the command began.
    """

    name: str = ""
    origin: str = ""
    command: str = ""
    rests_on: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """Everything that a study works with.

    Parameters
    ----------
    study : Study
        The study.
    network : Network
        The network.
    layers : tuple of str
        Layers to measure.
    full : bool
        Whether the article's own sizes are used.
    features : int
        Number of features drawn of each layer.
    seeds : int
        Number of seeds of the noise.
    device : str
        Device of the descents.
    runs : Path
        Folder of the runs.
    watcher : ProgressBars
        Display of progress.
    image : Path, default None
        Photograph to start from.
    results : Path, default RESULTS
        Folder of the results, also those of other networks to compare with.
    feature : int, default None
        Channel that the claim names, or the one chosen in its place.
    given : Given, default Given()
        How the network was named, and the command.
    rescue : float, default None
        Share of the steps in which features without a gradient are rescued, for recipes without rescue; None: the
        recipe's own.
    images : dict, default {}
        Numbers of images by layer and status, which `count_images` fills.
    units : tuple of str, default ()
        Features that are measured before any is drawn: ``layer:channel``, or `FIRST`.
    size : int, default None
        Side of the finished images in pixels; None: the study's own.
    descents : dict, default {}
        Name, sizes and steps of the recipes that were used, in their order, which `note_recipe` fills.
    """

    study: Study
    network: Network
    layers: tuple[str, ...]
    full: bool
    features: int
    seeds: int
    device: str
    runs: Path
    watcher: ProgressBars
    image: Path | None = None
    results: Path = RESULTS
    feature: int | None = None
    given: Given = field(default_factory=Given)
    rescue: float | None = None
    images: dict[str, Counter[str]] = field(default_factory=dict)
    units: tuple[str, ...] = ()
    size: int | None = None
    descents: dict[tuple[str, tuple[Any, ...], int], None] = field(default_factory=dict)

    @property
    def model(self) -> str:
        """Name of the network in tables and pictures, and of its stored results."""
        return self.given.name or self.network.name

    @property
    def changes(self) -> dict[str, Any]:
        """Settings of the command line that change the recipe, as `maximise` takes them."""
        return {} if self.rescue is None else {"rescue": self.rescue}

    @property
    def sized_changes(self) -> dict[str, Any]:
        """The same with the size of the images, where the command line gives one."""
        return self.changes | ({} if self.size is None else {"size": self.size})

    def count_images(self, data: xr.Dataset) -> None:
        """Count the images of a descent that are left out, by layer and status.

        Parameters
        ----------
        data : xarray.Dataset
            Result of `featmap.maximise`.
        """
        for name, codes in zip(data["image"].values, data["status"].values.T, strict=True):
            layers = dict.fromkeys(LAYER_OF_UNIT.findall(str(name)))
            self.images.setdefault(" + ".join(layers), Counter()).update(status_names(codes))

    def note_recipe(self, recipe: Recipe | str) -> None:
        """Note with which recipe, sizes and number of steps images are made.

        Parameters
        ----------
        recipe : Recipe or str
            A recipe or its name; sizes that it leaves open are those of the network.
        """
        used = Recipe.named(recipe).resolved(self.network.input_size)
        self.descents.setdefault((used.name, used.sizes, used.steps))

    def named_channels(self, layer: str) -> list[int]:
        """List the channels of a layer that `units` names, in their order.

        Parameters
        ----------
        layer : str
            Name of the layer.

        Returns
        -------
        list of int
            Channels; empty where none is named one by one.
        """
        named = [unit.rpartition(":") for unit in self.units if unit != FIRST]
        return [int(channel) for of, _, channel in named if of == layer]

    def draw_channels(self, layer: str, count: int | None = None) -> list[int]:
        """Choose channels of a layer: those that are named, and others drawn at random, always the same.

        Parameters
        ----------
        layer : str
            Name of the layer.
        count : int, default None
            Number of channels; None: `features`. All where the layer has fewer, and never fewer than are named.

        Returns
        -------
        list of int
            The named channels, then those drawn, in order; the first channels where `units` is `FIRST`.
        """
        channels = self.network.layer(layer, self.network.input_size).channels
        number = min(count or self.features, channels)
        if FIRST in self.units:
            return list(range(number))
        rng = generator("study", self.model, layer)
        named, drawn = self.named_channels(layer), sorted(rng.choice(channels, number, replace=False).tolist())
        return [*named, *(c for c in drawn if c not in named)][: max(number, len(named))]

    def draw_units(self, layer: str, count: int | None = None) -> list[str]:
        """Choose features of a layer as units, see `draw_channels`.

        Parameters
        ----------
        layer : str
            Name of the layer.
        count : int, default None
            As for `draw_channels`.

        Returns
        -------
        list of str
            Units, ``layer:channel``.
        """
        return [f"{layer}:{c}" for c in self.draw_channels(layer, count)]

    def folder(self, *parts: Any, **settings: Any) -> Path:
        """Name the run folder of one part of the work.

        Parameters
        ----------
        *parts : Any
            Parts of the name.
        **settings : Any
            Settings; a hash of them, of the weights and of the network's input ends the name.

        Returns
        -------
        Path
            The folder.
        """
        identity = {"sha256": self.network.sha256, "parts": parts, "settings": settings, "full": self.full}
        named = {k: self.network.arguments.get(k) for k in ("mean", "std", "input_size")}
        identity |= {k: v for k, v in named.items() if v is not None}
        name = re.sub(r"[^A-Za-z0-9._-]", "-", "-".join(map(str, (self.model, *parts))))
        return (
            self.runs
            / self.study.name
            / f"{name[:80]}-{digest(json.loads(json.dumps(identity, default=_identifying_text)))}"
        )

    def maximise(self, units: Sequence[str], *parts: Any, **settings: Any) -> xr.Dataset:
        """Maximise units in a run folder of their own, which is resumed.

        Parameters
        ----------
        units : sequence of str
            Units.
        *parts : Any
            Parts of the folder's name.
        **settings : Any
            Settings, as `analyses.support.settings.library_keywords` takes them.

        Returns
        -------
        xarray.Dataset
            Result of `featmap.maximise`.
        """
        folder = self.folder(*parts, units=list(units), **settings)
        keywords = library_keywords(device=self.device, out=folder, watcher=self.watcher, **settings)
        if "recipe" in keywords:
            self.note_recipe(keywords["recipe"])
        data = maximise(units, self.network, **keywords)
        self.count_images(data)
        return data

    def log(self, text: str) -> None:
        """Print what is being done.

        Parameters
        ----------
        text : str
            One line.
        """
        err().print(f"{self.study.name}: {text}")


def _identifying_text(value: Any) -> str:
    """Identify a setting that is not a plain value: an array by the SHA-256 of its bytes."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    return str(value)
