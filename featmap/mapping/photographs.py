"""Photographs as stimuli of a similarity run: their settings, and the job, work units and worker that probe them.

Their responses are stored in the run folder beside those to the maximising images: the array `photograph_A`
(photograph x response), a chunk for each work unit, labelled by the coordinate `photograph`.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from featmap.errors import FeatmapError
from featmap.files import digest, safe_file_name
from featmap.image_shape import as_size, smallest
from featmap.mapping.view import DEFAULT_EXAMPLES, PHOTOGRAPH, PHOTOGRAPH_RESPONSES, PHOTOGRAPHS
from featmap.optimize.comparison import check_repeatable
from featmap.optimize.photograph_folder import UNIT_PHOTOGRAPHS, PhotographStimuli
from featmap.runs.engine import AnyUnit
from featmap.runs.folder_layout import ArraySpec
from featmap.runs.job import TABLE_CELL, Job
from featmap.runs.progress import Watcher
from featmap.runs.store import Run
from featmap.runs.worker import Worker
from featmap.stats import blockwise
from featmap.stats.top_responses import PERCENTILES

BATCH = 16
"""Photographs of a batch, as in `featmap probe`."""


@dataclass(frozen=True)
class PhotographUnit:
    """A work unit: the responses to some photographs.

    Parameters
    ----------
    first, stop : int
        Photographs of the unit, `stop` exclusive.
    """

    first: int
    stop: int

    @property
    def name(self) -> str:
        """Name of the unit's record in the run folder."""
        return f"photographs-{self.first:06d}-{self.stop:06d}"

    @property
    def last(self) -> int:
        """No maximising images: the unit counts for no steps of a descent."""
        return 0


@dataclass(frozen=True, kw_only=True)
class PhotographJob(Job):
    """A similarity job that also, or without objectives only, probes photographs.

    Parameters
    ----------
    network, recipe, seeds, responses, device, command, objectives, start, selection, frames, facets
        See `featmap.runs.job.Job`. Without objectives, only the size of the recipe is used.
    photographs : PhotographStimuli
        The photographs.
    examples : int, default 9
        Best photographs of each feature that are shown; only `disk_needed` depends on it.
    """

    photographs: PhotographStimuli
    examples: int = DEFAULT_EXAMPLES

    @property
    def layers(self) -> list[str]:
        """Layers that are mapped, each once."""
        return [layer for layer, _ in self.selection.shown] if self.selection else super().layers

    @property
    def makes_images(self) -> bool:
        """Whether the run makes maximising images."""
        return bool(self.objectives)

    def identity(self) -> dict[str, Any]:
        """Describe everything that the results of the run depend on.

        Returns
        -------
        dict
            Plain JSON values; of photographs alone without images, recipe and seeds.
        """
        photographs = {"photographs": self.photographs.identity()}
        if self.makes_images:
            return super().identity() | photographs
        return {
            "model": self.network.identity(),
            "responses": list(self.responses),
            "device": self.device.type,
            "command": self.command,
            **(self.selection.identity() if self.selection else {}),
            **photographs,
        }

    def default_folder(self) -> Path:
        """Return the run folder for a caller that names none.

        Returns
        -------
        Path
            Its name ends in a hash of everything that the results depend on.
        """
        if self.makes_images:
            return super().default_folder()
        name = safe_file_name("-".join([self.network.name, *self.name_parts]))
        return Path("runs") / f"{name}-{PHOTOGRAPHS}-{digest(self.identity())}"

    def arrays(self) -> dict[str, ArraySpec]:
        """Specify the arrays of the run folder.

        Returns
        -------
        dict of ArraySpec
            By name; a chunk holds the results of one work unit.
        """
        count, width = len(self.photographs), len(self.columns)
        spec = ArraySpec((PHOTOGRAPH, "response"), (count, width), (min(count, UNIT_PHOTOGRAPHS), width))
        return (super().arrays() if self.makes_images else {}) | {PHOTOGRAPH_RESPONSES: spec}

    def coords(self) -> dict[str, np.ndarray]:
        """Return the labels along the arrays' dimensions.

        Returns
        -------
        dict of numpy.ndarray
            By dimension.
        """
        own = super().coords() if self.makes_images else {"response": np.array(self.columns)}
        return own | {PHOTOGRAPH: np.array(self.photographs.labels)}

    def waves(self) -> list[list[Any]]:
        """Return the work units: one wave, the photographs last.

        Returns
        -------
        list of list of AnyUnit
            Null images and batches of each seed, then the units of photographs.
        """
        count, step = len(self.photographs), UNIT_PHOTOGRAPHS
        own: list[AnyUnit] = [PhotographUnit(first, min(first + step, count)) for first in range(0, count, step)]
        return [[*(super().waves()[0] if self.makes_images else []), *own]]

    def cost(self, unit: Any) -> float:
        """Estimate the amount of work of a unit.

        Parameters
        ----------
        unit : WorkUnit or PhotographUnit
            One of the job's work units.

        Returns
        -------
        float
            Elements computed in its forward passes.
        """
        return self.pass_cost([self.responses]) if isinstance(unit, PhotographUnit) else super().cost(unit)

    @property
    def disk_needed(self) -> int:
        """Bytes on disk: arrays before compression, tables, figures, maps of examples."""
        layers = {name: self.network.layer(name, self.recipe.size) for name in self.responses}
        mapped = [layers[name].channels for name in self.layers]
        # a large run writes tables within layers only
        columns = 0 if blockwise.is_large(mapped) else sum(layer.channels for layer in layers.values())
        cells = sum(max(columns, n) * n for n in mapped)
        shown = Counter(label.rpartition(":")[0] for label in self.shown)
        maps = sum(shown[name] * layers[name].height * layers[name].width for name in self.layers)
        # one of the five tables is of photographs
        return super().disk_needed + TABLE_CELL // 5 * cells + 4 * (self.examples + len(PERCENTILES)) * maps


class PhotographWorker(Worker):
    """Worker that also probes photographs, as `featmap.probe` does.

    Parameters
    ----------
    job : PhotographJob
        The checked job.
    watcher : Watcher, optional
        Receives the progress.
    """

    job: PhotographJob

    def __init__(self, job: PhotographJob, watcher: Watcher | None = None) -> None:
        super().__init__(job, watcher)
        # the bits of a response depend on the rows of its batch: these are those of `featmap probe`
        self.photograph_probe = copy.copy(self.probe)
        self.photograph_probe.rows = BATCH

    def work(self, unit: Any, store: Run) -> None:
        """Compute one work unit and land it in the run folder.

        Parameters
        ----------
        unit : WorkUnit or PhotographUnit
            A unit of the job.
        store : Run
            Run folder.
        """
        if not isinstance(unit, PhotographUnit):
            super().work(unit, store)
            return
        values = self.measure(unit)
        store.land(unit.name, {PHOTOGRAPH_RESPONSES: ((slice(unit.first, unit.stop), slice(None)), values)})
        self.watcher.stage(PHOTOGRAPHS, unit.stop, len(self.job.photographs))

    def measure(self, unit: PhotographUnit) -> np.ndarray:
        """Read the photographs of a unit and measure the responses to them.

        Parameters
        ----------
        unit : PhotographUnit
            A unit of the job.

        Returns
        -------
        numpy.ndarray
            Photograph x response, float32.
        """
        job = self.job
        source = job.photographs.require_source()
        images = source.read(range(unit.first, unit.stop), job.photographs.size, job.network.channels)
        responses = self.photograph_probe.responses(images, job.responses)
        return np.concatenate([responses[layer] for layer in job.responses], axis=1)


def check_alone(job: Job) -> Job:
    """Check a job of photographs alone, which makes no images.

    Parameters
    ----------
    job : Job
        Job without objectives.

    Returns
    -------
    Job
        The same job.

    Raises
    ------
    FeatmapError
        If a layer does not exist at the size, a setting needs images, or the network gives two results for one image.
    """
    settings = {"start": job.start is not None, "facets": bool(job.facets), "seeds": len(job.seeds) > 1}
    given = [name for name, is_given in settings.items() if is_given]
    if given:
        raise FeatmapError(f"{', '.join(given)}: photographs alone make no images; leave out, or take other stimuli")
    for layer in job.responses:
        job.network.layer(layer, job.recipe.size)
    check_repeatable(job.network, list(job.responses), smallest(job.recipe.sizes), job.device)
    return job


def require_images(job: Job) -> None:
    """Check that a job without photographs makes images.

    Parameters
    ----------
    job : Job
        Similarity job to which no photographs were added.

    Raises
    ------
    FeatmapError
        If photographs are its only stimuli.
    """
    if not job.objectives:
        raise FeatmapError(f"stimuli {PHOTOGRAPHS}: no photographs are given; give a folder or zip of photographs")


def with_photographs(job: Job, stimuli: PhotographStimuli, examples: int = DEFAULT_EXAMPLES) -> PhotographJob:
    """Make the job that also probes photographs.

    Parameters
    ----------
    job : Job
        A similarity job.
    stimuli : PhotographStimuli
        The photographs.
    examples : int, default 9
        Best photographs of each feature that are shown.

    Returns
    -------
    PhotographJob
        Everything else stays.
    """
    own = {f.name: getattr(job, f.name) for f in fields(Job)}
    return PhotographJob(**own, photographs=stimuli, examples=examples)


def with_stored_photographs(job: Job, identity: dict[str, Any], data: xr.Dataset) -> Job:
    """Add the photographs of a finished run to its job, without opening them.

    Parameters
    ----------
    job : Job
        Job of the run without its photographs.
    identity : dict
        Identity of the run.
    data : xarray.Dataset
        Its arrays.

    Returns
    -------
    Job
        A `PhotographJob`, or the given one for a run without photographs.
    """
    stored = identity.get("photographs")
    if not stored:
        return job
    size = as_size(tuple(stored["size"])) if isinstance(stored["size"], list) else int(stored["size"])
    labels = [str(name) for name in data[PHOTOGRAPH].values]
    return with_photographs(job, PhotographStimuli(labels, stored["sha256"], size, stored["limit"]))


def without_photographs(job: Job) -> Job:
    """Return a similarity job that probes no photographs.

    Parameters
    ----------
    job : Job
        Job of any similarity run that makes images.

    Returns
    -------
    Job
        The same descents.
    """
    return Job(**{f.name: getattr(job, f.name) for f in fields(Job)})


def worker_of(job: Job) -> type[Worker]:
    """Choose the worker of a similarity job.

    Parameters
    ----------
    job : Job
        Any similarity job.

    Returns
    -------
    type
        `PhotographWorker` for a job with photographs.
    """
    return PhotographWorker if isinstance(job, PhotographJob) else Worker
