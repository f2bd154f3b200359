"""Do the work units of a run: from objectives to stored images and responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from featmap import image_ops
from featmap.errors import FeatmapError, ModelError
from featmap.optimize import limits, parameterization
from featmap.optimize.batch import Batches
from featmap.optimize.descent import Descent, StepCallback
from featmap.optimize.objective import Objective
from featmap.optimize.recipe import Recipe
from featmap.optimize.responses import Probe, weighted_activations
from featmap.runs.array_layout import row_statuses
from featmap.runs.engine import WorkUnit
from featmap.runs.job import BaseJob, Job
from featmap.runs.progress import Silent, Watcher, step_callback
from featmap.runs.store import Run

AnyJob = TypeVar("AnyJob", bound=BaseJob)


class Worker:
    """A network that is loaded and prepared once, and does work units of a job."""

    def __init__(self, job: Job, watcher: Watcher | None = None) -> None:
        self.job, self.watcher = job, watcher or Silent()
        network, recipe = job.network, job.recipe
        self.batches = Batches(network, job.device)
        self.probe = Probe(network, recipe.rows, job.device)
        self._nulls: dict[int, Tensor] = {}
        self._null_outputs: dict[int, dict[str, Tensor]] = {}

    def descend(self, objectives: Sequence[Objective], recipe: Recipe, seed: int, on_step: StepCallback) -> Descent:
        """Return the descents of a batch."""
        return self.batches.descend(objectives, recipe, seed, self.job.start, on_step, self.job.frames)

    def null_image(self, seed: int) -> Tensor:
        """Return the null image of a seed, 3 x H x W."""
        if seed not in self._nulls:
            self._nulls[seed] = parameterization.null_image(self.job.recipe, seed, self.job.start).float()
        return self._nulls[seed]

    def null_activation(self, seed: int, objectives: Sequence[Objective]) -> np.ndarray:
        """Return each objective's activation on the null image of a seed, which the network sees once."""
        if seed not in self._null_outputs:
            (self._null_outputs[seed],) = self.probe.outputs(self.null_image(seed)[None], self.job.layers)
        return self.probe.activations_from_outputs(self._null_outputs[seed], objectives)

    def make(self, unit: WorkUnit) -> dict[str, np.ndarray]:
        """Return what one work unit gives, by the names of the run's arrays."""
        return self._batch(unit) if unit.last else self._null(unit.seed)

    def work(self, unit: WorkUnit, store: Run) -> None:
        """Do one work unit and land it in the run folder."""
        at = self.job.seeds.index(unit.seed)
        region = (at, slice(unit.first, unit.last)) if unit.last else (at,)
        made = self.make(unit)
        store.land(
            unit.name,
            {k: ((*region, *[slice(None)] * (v.ndim - len(region) + 1)), v) for k, v in made.items()},
        )

    def _null(self, seed: int) -> dict[str, np.ndarray]:
        image = self.null_image(seed)
        made = {"null_images": image.numpy()}
        if self.job.responses:
            made["null"] = self._responses(image[None])[0]
        return made

    def _responses(self, images: Tensor) -> np.ndarray:
        found = self.probe.responses(images, self.job.responses)
        return np.concatenate([found[la] for la in self.job.responses], axis=1)

    def _frames(self, frames: Sequence[Tensor]) -> dict[str, np.ndarray]:
        """Return the frames at the final size, and the responses to them at the size that each had."""
        if not frames:
            return {}
        made = {"frames": np.stack([image_ops.resize(f, self.job.recipe.size).numpy() for f in frames], axis=1)}
        if self.job.responses:
            made["frame_A"] = np.stack([self._responses(f) for f in frames], axis=1)
        return made

    def _batch(self, unit: WorkUnit) -> dict[str, np.ndarray]:
        job = self.job
        chosen = job.objectives[unit.first : unit.last]
        result = self.descend(chosen, job.recipe, unit.seed, step_callback(self.watcher, job.device))
        reached, responses = self.probe.measure_objectives(result.images, chosen, job.responses)
        curve = torch.stack(
            [weighted_activations(result.curve[:, k], chosen) for k in range(result.curve.shape[1])], dim=1
        ).numpy()
        made = {
            "images": result.images.numpy(),
            "activation": reached,
            "null_activation": self.null_activation(unit.seed, chosen),
            "curve": curve,
        }
        if job.responses:
            made["A"] = responses
        made |= self._frames(result.frames)
        made["status"] = row_statuses(made, result.had_gradient.numpy(), result.rescued.numpy())
        return made


def checked(job: AnyJob) -> AnyJob:
    """Check a job, and on a network of the caller's own try one step before there is a run folder.

    Parameters
    ----------
    job : BaseJob
        Any job.

    Returns
    -------
    BaseJob
        The checked job. Where the network does not take memory laid out with channels last, `job.network.layout` is
        set to the plain layout.

    Raises
    ------
    FeatmapError
        If a unit, size or recipe does not fit the network.
    ModelError
        If a step cannot be made.
    """
    job = job.resolved()
    # the advice on an octave that is too small is better than what its layer would say of itself
    limits.check_octave_sizes(job.network, job.recipe, job.layers)
    job.check()
    limits.check_memory(job.network, job.recipe, job.layers, job.device)
    name = job.network.arguments.get("model")
    if name is None or ":" in name:
        _try_step(job)
    return job


def _try_step(job: BaseJob) -> None:
    """Make one step on each set of layers, in the layout that the descents will use."""
    objectives = job.trials
    short = replace(job.recipe, octaves=(replace(job.recipe.octaves[-1], steps=1),))
    trial = Job(
        network=job.network,
        objectives=objectives,
        recipe=short,
        seeds=job.seeds,
        device=job.device,
        start=getattr(job, "start", None),
    )
    for layout in (torch.channels_last, torch.contiguous_format):
        job.network.layout = layout
        try:
            Worker(trial).descend(objectives, short, job.seeds[0], lambda _, __: None)
            return
        except (FeatmapError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - somebody else's network may raise anything
            fault = error
    raise ModelError(
        f"network {job.network.name} cannot be descended in a batch of {short.rows} at {short.size} pixels, on "
        f"{', '.join(job.layers)} ({type(fault).__name__}: {(str(fault).splitlines() or [''])[0][:160]}); "
        "its forward has to take any batch and pass gradients"
    ) from fault
