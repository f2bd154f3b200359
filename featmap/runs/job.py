"""Jobs: everything that the results of a run depend on, and the arrays and work units that follow from it."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from featmap.files import digest, safe_file_name, summarise_names
from featmap.image_shape import channel_names
from featmap.network.model import Network
from featmap.network.unit import Unit, parse_channels
from featmap.optimize.objective import Objective
from featmap.optimize.parameterization import frame_steps
from featmap.optimize.recipe import Recipe
from featmap.runs.engine import AnyUnit, WorkUnit, plan_units
from featmap.runs.folder_layout import STATUSES, ArraySpec, facet_arrays, frame_arrays
from featmap.stats import blockwise, facets

J = TypeVar("J", bound="BaseJob")
OWN_FILES = 2_000_000
"""Bytes that every run writes besides its arrays, however small it is."""
TABLE_CELL = 5 * 22
"""Bytes of one pair of features in five tables, Parquet and CSV together, as measured on inception4a."""


@dataclass(frozen=True, kw_only=True)
class BaseJob(ABC):
    """Base class of jobs: settings that all share, and their interface.

    Parameters
    ----------
    network : Network
        Network whose features are maximised.
    recipe : Recipe
        Resolved recipe of all descents.
    seeds : tuple of int
        Seeds of the noise that descents start from.
    responses : tuple of str
        Layers whose features' responses to every image are recorded.
    device : torch.device
        Where the network is computed.
    command : str, optional
        Command that the run belongs to.
    """

    network: Network
    recipe: Recipe
    seeds: tuple[int, ...] = (0,)
    responses: tuple[str, ...] = ()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    command: str | None = None

    @property
    @abstractmethod
    def layers(self) -> list[str]:
        """Layers that are maximised, each once."""

    @property
    @abstractmethod
    def labels(self) -> list[str]:
        """Names of the objectives."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Describe everything that the results of the run depend on.

        Returns
        -------
        dict
            Plain JSON values.
        """

    @abstractmethod
    def arrays(self) -> dict[str, ArraySpec]:
        """Specify the arrays of the run folder.

        Returns
        -------
        dict of ArraySpec
            By name; a chunk holds the results of one batch.
        """

    @abstractmethod
    def coords(self) -> dict[str, np.ndarray]:
        """Return the labels along the arrays' dimensions.

        Returns
        -------
        dict of numpy.ndarray
            By dimension.
        """

    @abstractmethod
    def waves(self) -> list[list[Any]]:
        """Return the work units in waves; a wave begins when the one before it has landed.

        Returns
        -------
        list of list
            Work units, see `featmap.runs.engine.AnyUnit`.
        """

    @abstractmethod
    def cost(self, unit: Any) -> float:
        """Estimate the amount of work of a unit.

        Parameters
        ----------
        unit : AnyUnit
            One of the job's work units.

        Returns
        -------
        float
            Elements computed in its forward passes, one pass for each set of layers.
        """

    @property
    @abstractmethod
    def name_parts(self) -> list[str]:
        """Parts of the default name of the run folder, after the network's name."""

    @property
    @abstractmethod
    def targets(self) -> list[Unit]:
        """Units that are maximised, each once."""

    @abstractmethod
    def resolved(self: J) -> J:
        """Return this job in its canonical form.

        Returns
        -------
        BaseJob
            Class logits are replaced by their layer, duplicates dropped.

        Raises
        ------
        FeatmapError
            If a unit does not exist or the settings contradict each other.
        """

    def check(self) -> None:
        """Check every unit at every size of the recipe, and the recorded layers.

        Raises
        ------
        UnitError
            If a layer or unit does not exist at one of the sizes.
        """
        for size in set(self.recipe.sizes):
            for unit in self.targets:
                unit.check(self.network.layer(unit.layer, size).shape)
        for layer in self.responses:
            self.network.layer(layer, self.recipe.size)

    @property
    def layer_sets(self) -> list[tuple[str, ...]]:
        """Sets of layers that descents maximise together, each sorted and once."""
        return list(dict.fromkeys(tuple(sorted(o.layers)) for o in self.trials))

    @property
    @abstractmethod
    def trials(self) -> tuple[Objective, ...]:
        """Objectives for a trial step that stands for all: one for each set of layers."""

    @property
    @abstractmethod
    def disk_needed(self) -> int:
        """Bytes on disk: arrays before compression, tables and figures."""

    @cached_property
    def columns(self) -> list[str]:
        """Names of the responses, ``layer:channel``."""
        return [f"{la}:{c}" for la in self.responses for c in range(self.network.layer(la, self.recipe.size).channels)]

    def work_units(self) -> list[AnyUnit]:
        """Return the work units of all waves.

        Returns
        -------
        list of AnyUnit
            In the order in which one process computes them.
        """
        return [unit for wave in self.waves() for unit in wave]

    @property
    def steps_per_unit(self) -> int:
        """Steps of a batch."""
        return self.recipe.steps

    @property
    def array_bytes(self) -> int:
        """Bytes of the arrays before compression."""
        return sum(int(np.prod(s.shape)) * np.dtype(s.dtype).itemsize for s in self.arrays().values())

    def default_folder(self) -> Path:
        """Return the run folder for a caller that names none.

        Returns
        -------
        Path
            Its name ends in a hash of everything that the results depend on.
        """
        name = safe_file_name("-".join([self.network.name, *self.name_parts]))
        return Path("runs") / f"{name}-{self.recipe.name}-{digest(self.identity())}"

    def pass_cost(self, sets: Iterable[Iterable[str]]) -> float:
        """Estimate the work of forward passes that each end at the last layer of a set.

        Parameters
        ----------
        sets : iterable of iterable of str
            Names of layers, one set for each pass.

        Returns
        -------
        float
            Elements computed.
        """
        size = self.recipe.size
        return float(sum(max(self.network.layer(la, size).cumulative_elements for la in layers) for layers in sets))


@dataclass(frozen=True)
class Selection:
    """Features that a similarity run shows, and features whose images are its stimuli.

    Parameters
    ----------
    shown : tuple of (str, str)
        Each mapped layer with its channels in short form, such as ``("inception4a", "0-15,42")``.
    stimuli : str, default "layer"
        "layer": the images of all features of the layer; "shown": only those of the features shown.
    """

    shown: tuple[tuple[str, str], ...]
    stimuli: str = "layer"

    def identity(self) -> dict[str, Any]:
        """Format the selection for the identity of a run.

        Returns
        -------
        dict
            Plain JSON values; runs of one layer have `layer`, runs of several `layers`.
        """
        if len(self.shown) == 1:
            ((layer, channels),) = self.shown
            return {"layer": layer, "shown": channels, "stimuli": self.stimuli}
        return {"layers": [layer for layer, _ in self.shown], "shown": dict(self.shown), "stimuli": self.stimuli}

    @staticmethod
    def from_identity(identity: dict[str, Any]) -> Selection | None:
        """Read the selection from the identity of a run.

        Parameters
        ----------
        identity : dict
            Identity of any run.

        Returns
        -------
        Selection or None
            None for a run of another command.
        """
        if "shown" not in identity:
            return None
        shown = identity["shown"]
        channels = shown if isinstance(shown, dict) else {identity["layer"]: shown}
        return Selection(tuple(channels.items()), identity["stimuli"])


@dataclass(frozen=True, kw_only=True)
class Job(BaseJob):
    """A job of descents: one maximising image for each objective and seed.

    Parameters
    ----------
    network, recipe, seeds, responses, device, command
        See `BaseJob`.
    objectives : tuple of Objective
        One for each image; `labels` are their names.
    start : Tensor, optional
        Image to start from instead of noise, C x H x W; a photograph lies in [0, 1].
    selection : Selection, optional
        Of a similarity run: features and stimuli.
    frames : int, default 0
        Store the image at the start and after every this many steps, and the responses to it; 0 stores none.
    facets : int, default 0
        Images of each unit, the ordinary one included, that differ; 0 makes no others.
    """

    objectives: tuple[Objective, ...]
    start: Tensor | None = None
    selection: Selection | None = None
    frames: int = 0
    facets: int = 0

    @cached_property
    def labels(self) -> list[str]:
        """Names of the images."""
        return [str(o) for o in self.objectives]

    @cached_property
    def layers(self) -> list[str]:
        """Layers that are maximised, each once."""
        return list(dict.fromkeys(layer for o in self.objectives for layer in o.layers))

    def features_of(self, layer: str) -> list[str]:
        """Return the labels of the images that maximise one layer alone.

        Parameters
        ----------
        layer : str
            Name of a layer.

        Returns
        -------
        list of str
            In the order of the job.
        """
        return [str(o) for o in self.objectives if list(o.layers) == [layer]]

    @property
    def shown(self) -> list[str]:
        """Labels of the features that a similarity run shows; empty for other runs."""
        size = self.recipe.size
        return [
            f"{layer}:{c}"
            for layer, text in (self.selection.shown if self.selection else ())
            for c in parse_channels(text, self.network.layer(layer, size).channels, layer)
        ]

    @property
    def name_parts(self) -> list[str]:
        """Mapped layers of a similarity run, else the first layer."""
        return [layer for layer, _ in self.selection.shown] if self.selection else self.layers[:1]

    @cached_property
    def targets(self) -> list[Unit]:
        """Units that are maximised, each once."""
        return list(dict.fromkeys(u for o in self.objectives for _, u in o.terms))

    def resolved(self) -> Job:
        """Return this job in its canonical form.

        Returns
        -------
        Job
            Class logits are replaced by their layer; duplicate objectives are dropped.

        Raises
        ------
        UnitError
            If a unit does not exist.
        """
        objectives = [
            Objective(tuple((w, self.network.resolve_unit(u, self.recipe.size)) for w, u in o.terms))
            for o in self.objectives
        ]
        return replace(self, objectives=tuple(dict.fromkeys(objectives)))

    def check(self) -> None:
        """Check every unit and recorded layer at every size at which it is seen.

        Raises
        ------
        UnitError
            If a layer or unit does not exist at one of the sizes.
        """
        super().check()
        for size in self.recipe.sizes if self.frames else ():
            for layer in self.responses:
                self.network.layer(layer, size)

    def identity(self) -> dict[str, Any]:
        """Describe everything that the results of the run depend on.

        Returns
        -------
        dict
            Plain JSON values.
        """
        start = None if self.start is None else hashlib.sha256(self.start.numpy().tobytes()).hexdigest()
        return {
            "model": self.network.identity(),
            "images": summarise_names(self.labels),
            "responses": list(self.responses),
            "recipe": self.recipe.identity(),
            "seeds": list(self.seeds),
            "start": start,
            "device": self.device.type,
            **({"frames": self.frames} if self.frames else {}),
            **({"facets": self.facets} if self.facets else {}),
            **({"command": self.command} if self.command else {}),
            **(self.selection.identity() if self.selection else {}),
        }

    def arrays(self) -> dict[str, ArraySpec]:
        """Specify the arrays of the run folder.

        Returns
        -------
        dict of ArraySpec
            By name; a chunk holds the results of one batch.
        """
        # a chunk never spans two batches: workers write at the same time, without locks
        seeds, count, rows = len(self.seeds), len(self.objectives), self.recipe.rows
        steps, columns, image = self.recipe.steps, len(self.columns), self.network.image_shape(self.recipe.size)
        frames, pixels = len(frame_steps(steps, self.frames)), ("channel", "y", "x")
        meanings = (("flag_values", list(range(len(STATUSES)))), ("flag_meanings", " ".join(STATUSES)))
        specs = {
            "images": ArraySpec(("seed", "image", *pixels), (seeds, count, *image), (1, rows, *image)),
            "null_images": ArraySpec(("seed", *pixels), (seeds, *image), (1, *image)),
            "activation": ArraySpec(("seed", "image"), (seeds, count), (1, rows)),
            "null_activation": ArraySpec(("seed", "image"), (seeds, count), (1, rows)),
            "curve": ArraySpec(("seed", "image", "step"), (seeds, count, steps), (1, rows, steps)),
            "status": ArraySpec(("seed", "image"), (seeds, count), (1, rows), "uint8", meanings),
        }
        if columns:
            specs["A"] = ArraySpec(("seed", "image", "response"), (seeds, count, columns), (1, rows, columns))
            specs["null"] = ArraySpec(("seed", "response"), (seeds, columns), (1, columns))
        specs |= frame_arrays(specs["images"], frames, columns) if frames else {}
        return specs | (facet_arrays(specs["images"], self.facets) if self.facets else {})

    def coords(self) -> dict[str, np.ndarray]:
        """Return the labels along the arrays' dimensions.

        Returns
        -------
        dict of numpy.ndarray
            By dimension.
        """
        coords = {
            "seed": np.array(self.seeds, dtype=np.int64),
            "image": np.array(self.labels),
            "step": np.arange(self.recipe.steps, dtype=np.int64),
            "channel": np.array(channel_names(self.network.channels)),
        }
        if self.facets:
            coords |= {name: np.arange(self.facets, dtype=np.int64) for name in ("facet", "other_facet")}
        if self.frames:
            coords["frame"] = np.array(frame_steps(self.recipe.steps, self.frames), dtype=np.int64)
        return coords | ({"response": np.array(self.columns)} if self.responses else {})

    def waves(self) -> list[list[WorkUnit]]:
        """Return the work units: one wave, the null images first.

        Returns
        -------
        list of list of WorkUnit
            Batches of each seed.
        """
        return [plan_units(len(self.objectives), self.recipe.rows, self.seeds)]

    def cost(self, unit: WorkUnit) -> float:
        """Estimate the amount of work of a unit.

        Parameters
        ----------
        unit : WorkUnit
            A batch of one seed.

        Returns
        -------
        float
            Elements computed in its forward passes, one pass for each set of layers.
        """
        sets = {tuple(sorted(o.layers)) for o in self.objectives[unit.first : unit.last]}
        return self.pass_cost(sets) * facets.count_passes(self.facets)

    @property
    def steps_per_unit(self) -> int:
        """Steps of a batch, with those of facets and repeated images."""
        return self.recipe.steps * facets.count_descents(self.facets)

    @property
    def trials(self) -> tuple[Objective, ...]:
        """First objective of each set of layers."""
        return tuple({tuple(o.layers): o for o in reversed(self.objectives)}.values())

    @property
    def disk_needed(self) -> int:
        """Bytes on disk: arrays before compression, tables and figures."""
        counts = Counter(tuple(o.layers) for o in self.objectives)
        cells = len(self.labels) * len(self.columns)
        if blockwise.is_large([*counts.values()]):  # a large run writes tables within layers only
            cells = sum(n * n for n in counts.values())
        return int(1.3 * self.array_bytes + TABLE_CELL * cells) + OWN_FILES
