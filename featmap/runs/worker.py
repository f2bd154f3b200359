"""Compute the work units of a run: from objectives to stored images and responses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from featmap import image_ops
from featmap.errors import FeatmapError, ModelError, describe_error
from featmap.image_shape import format_size, smallest
from featmap.optimize import limits, parameterization
from featmap.optimize.batch import Batches
from featmap.optimize.comparison import check_repeatable
from featmap.optimize.descent import Descent, StepCallback
from featmap.optimize.objective import Objective, Repulsion
from featmap.optimize.recipe import MIN_ROWS, Recipe
from featmap.optimize.responses import Probe, weighted_activations
from featmap.runs.engine import WorkUnit
from featmap.runs.folder_layout import row_statuses
from featmap.runs.job import BaseJob, Job
from featmap.runs.progress import Silent, Watcher, step_callback
from featmap.runs.store import Run
from featmap.stats import facets

PINK_IMAGES = 64
"""Reference images for the comparison of facets."""
GENTLER = ((0.5, "noise"), (0.25, "noise"), (0.5, "ordinary"))
"""Further attempts at a facet that keeps too little of its unit's response: share of the usual repulsion, and whether
the descent starts from the facet's own noise again, or from the better one of the two ordinary images."""
AnyJob = TypeVar("AnyJob", bound=BaseJob)


@dataclass(frozen=True, eq=False)
class _Facet:
    """One image of each of R units: images R x C x H x W, unit vectors R x K of the responses, activations R."""

    images: Tensor
    vectors: np.ndarray
    activation: np.ndarray

    def improved(self, rows: np.ndarray, other: _Facet) -> _Facet:
        """Take those rows of another attempt, made for `rows`, that excite their units more."""
        better = other.activation > self.activation[rows]
        images, vectors, activation = self.images.clone(), self.vectors.copy(), self.activation.copy()
        images[rows[better]], vectors[rows[better]] = other.images[better], other.vectors[better]
        activation[rows[better]] = other.activation[better]
        return _Facet(images, vectors, activation)


@dataclass(frozen=True, eq=False)
class _FacetBatch:
    """The descents of the facets of R objectives that are compared by one layer."""

    objectives: list[Objective]
    layer: str
    seed: int
    means: np.ndarray
    weights: np.ndarray
    probe: Probe
    descend: Callable[..., Descent]

    def make(
        self,
        number: int,
        others: Repulsion | None = None,
        rows: Sequence[int] | np.ndarray | None = None,
        start: Tensor | None = None,
    ) -> _Facet:
        """Make one facet of each objective, or of those of some rows; `start` holds images of all rows."""
        if rows is None:
            made = self.descend(self.objectives, seed=facets.facet_seed(self.seed, number), repulsion=others)
            return self.measure(made.images, range(len(self.objectives)))
        made = self.descend(
            [self.objectives[row] for row in rows],
            seed=facets.facet_seed(self.seed, number),
            repulsion=None if others is None else others.rows(list(rows), 0, torch.device("cpu")),
            start=None if start is None else start[rows],
            on_step=None,  # progress counts the steps of whole batches
        )
        return self.measure(made.images, rows)

    def measure(self, images: Tensor, rows: Iterable[int]) -> _Facet:
        """Measure images made for the objectives of some rows."""
        responses = self.probe.responses(images, [self.layer])[self.layer]
        chosen = [self.objectives[row] for row in rows]
        vectors = facets.unit_vectors(responses, self.means, self.weights[list(rows)])
        return _Facet(images, vectors, self.probe.activations(images, chosen))


class Worker:
    """Network that is loaded and prepared once, and computes work units of a job.

    Parameters
    ----------
    job : Job
        The checked job.
    watcher : Watcher, optional
        Receives the progress.
    """

    def __init__(self, job: Job, watcher: Watcher | None = None) -> None:
        self.job, self.watcher = job, watcher or Silent()
        network, recipe = job.network, job.recipe
        self.batches = Batches(network, job.device)
        self.probe = Probe(network, recipe.rows, job.device)
        self._nulls: dict[int, Tensor] = {}
        self._null_outputs: dict[int, dict[str, Tensor]] = {}
        self._spaces: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def descend(self, objectives: Sequence[Objective], recipe: Recipe, seed: int, on_step: StepCallback) -> Descent:
        """Run the descents of a batch.

        Parameters
        ----------
        objectives : sequence of Objective
            One for each row, at most as many as the recipe has rows.
        recipe : Recipe
            Resolved recipe.
        seed : int
            Seed of the noise.
        on_step : callable
            Called after each step, see `featmap.optimize.descent.StepCallback`.

        Returns
        -------
        Descent
            Images, curves and frames of the batch.
        """
        return self.batches.descend(objectives, recipe, seed, self.job.start, on_step, self.job.frames)

    def null_image(self, seed: int) -> Tensor:
        """Compute the null image of a seed.

        Parameters
        ----------
        seed : int
            Seed of the noise.

        Returns
        -------
        Tensor
            C x H x W, float32.
        """
        if seed not in self._nulls:
            self._nulls[seed] = parameterization.null_image(
                self.job.recipe, seed, self.job.start, self.job.network.channels
            ).float()
        return self._nulls[seed]

    def null_activation(self, seed: int, objectives: Sequence[Objective]) -> np.ndarray:
        """Compute the activation of objectives on the null image of a seed.

        Parameters
        ----------
        seed : int
            Seed of the noise.
        objectives : sequence of Objective
            B objectives of the job.

        Returns
        -------
        numpy.ndarray
            Activation of each objective, B.
        """
        if seed not in self._null_outputs:  # one forward pass of each seed serves all batches
            (self._null_outputs[seed],) = self.probe.outputs(self.null_image(seed)[None], self.job.layers)
        return self.probe.activations_from_outputs(self._null_outputs[seed], objectives)

    def make(self, unit: WorkUnit) -> dict[str, np.ndarray]:
        """Compute the results of one work unit.

        Parameters
        ----------
        unit : WorkUnit
            A unit of the job.

        Returns
        -------
        dict of numpy.ndarray
            Values by the names of the run's arrays, without their dimension `seed`.
        """
        return self._batch(unit) if unit.last else self._null(unit.seed)

    def work(self, unit: WorkUnit, store: Run) -> None:
        """Compute one work unit and land it in the run folder.

        Parameters
        ----------
        unit : WorkUnit
            A unit of the job.
        store : Run
            Run folder.
        """
        at = self.job.seeds.index(unit.seed)
        region = (at, slice(unit.first, unit.last)) if unit.last else (at,)
        store.land(
            unit.name,
            {
                name: ((*region, *[slice(None)] * (values.ndim - len(region) + 1)), values)
                for name, values in self.make(unit).items()
            },
        )

    def _null(self, seed: int) -> dict[str, np.ndarray]:
        """Compute the null image of a seed and the responses to it."""
        image = self.null_image(seed)
        arrays = {"null_images": image.numpy()}
        if self.job.responses:
            arrays["null"] = self._responses(image[None])[0]
        return arrays

    def _responses(self, images: Tensor) -> np.ndarray:
        """Compute the responses of the recorded layers, image x response."""
        responses = self.probe.responses(images, self.job.responses)
        return np.concatenate([responses[la] for la in self.job.responses], axis=1)

    def _frames(self, frames: Sequence[Tensor]) -> dict[str, np.ndarray]:
        """Return the frames at the final size, and the responses to them at the size that each had."""
        if not frames:
            return {}
        arrays = {"frames": np.stack([image_ops.resize(f, self.job.recipe.size).numpy() for f in frames], axis=1)}
        if self.job.responses:
            arrays["frame_A"] = np.stack([self._responses(f) for f in frames], axis=1)
        return arrays

    def _space(self, layer: str) -> tuple[np.ndarray, np.ndarray]:
        """Compute mean and deviation of the responses of a layer's features over images with a 1/f spectrum."""
        if layer not in self._spaces:
            images = image_ops.pink_noise(PINK_IMAGES, self.job.recipe.size, self.job.network.channels)
            responses = self.probe.responses(images, [layer])[layer].astype(float)
            self._spaces[layer] = np.nan_to_num(responses.mean(0), posinf=0, neginf=0), responses.std(0)
        return self._spaces[layer]

    def _facets(
        self, objectives: Sequence[Objective], seed: int, images: Tensor, activation: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Make the other facets of a batch's images one after the other, and compare all of them.

        The rows stay independent: a facet depends on the earlier facets of its own row alone.
        """
        rows_by_layers: dict[tuple[str, ...], list[int]] = {}
        for row, objective in enumerate(objectives):
            rows_by_layers.setdefault(tuple(sorted(objective.layers)), []).append(row)
        arrays: dict[str, np.ndarray] = {}
        for k, (layers, rows) in enumerate(rows_by_layers.items(), 1):
            # progress is counted in steps of whole batches
            on_step = step_callback(self.watcher, self.job.device) if k == len(rows_by_layers) else None
            (layer, *_) = self.job.network.base_layers(layers)
            chosen = [objectives[row] for row in rows]
            descend = partial(self.batches.descend, recipe=self.job.recipe, on_step=on_step)
            compared = self._compare(chosen, layer, seed, images[rows], activation[rows], descend)
            for name, values in compared.items():
                arrays.setdefault(name, np.empty((len(objectives), *values.shape[1:]), np.float32))[rows] = values
        return arrays

    def _compare(
        self,
        objectives: Sequence[Objective],
        layer: str,
        seed: int,
        images: Tensor,
        activation: np.ndarray,
        descend: Callable[..., Descent],
    ) -> dict[str, np.ndarray]:
        """Make and compare the facets of objectives of the same layers by the responses of one layer."""
        means, deviations = self._space(layer)
        shape = self.job.network.layer(layer, self.job.recipe.size).shape
        own = [[c for _, u in o.terms if u.layer == layer for c in u.mask(shape)[0]] for o in objectives]
        weights = np.stack([facets.feature_weights(deviations, channels) for channels in own])
        batch = _FacetBatch(list(objectives), layer, seed, means, weights, self.probe, descend)
        ordinary, repeated = batch.measure(images, range(len(objectives))), batch.make(0)
        ordinary = replace(ordinary, activation=activation)
        repeated_is_better = torch.from_numpy(repeated.activation > activation)[:, None, None, None]
        best = torch.where(repeated_is_better, repeated.images, images)
        made, null = [ordinary], self.null_activation(seed, objectives)
        for number in range(1, self.job.facets):
            earlier = torch.from_numpy(np.nan_to_num(np.stack([m.vectors for m in made], axis=1)))
            others = Repulsion(layer, torch.from_numpy(means), torch.from_numpy(weights), earlier)
            facet = batch.make(number, others)
            for share, start in GENTLER:
                kept = facets.kept_share(np.stack([activation, facet.activation], 1), null, repeated.activation)[:, 1]
                rows = np.flatnonzero(kept < facets.KEPT)
                if not rows.size:
                    break
                weaker = replace(others, strength=share * others.strength)
                facet = facet.improved(rows, batch.make(number, weaker, rows, best if start == "ordinary" else None))
            made.append(facet)
        return {
            "facets": torch.stack([m.images for m in made], dim=1).numpy(),
            "facet_activation": np.stack([m.activation for m in made], axis=1),
            "facet_distance": facets.distances(np.stack([m.vectors for m in made], axis=1)),
            "facet_repeat": facets.distances(np.stack([ordinary.vectors, repeated.vectors], axis=1))[:, 0, 1],
            "facet_repeat_activation": repeated.activation,
        }

    def _batch(self, unit: WorkUnit) -> dict[str, np.ndarray]:
        """Descend on a batch and measure its images as they are stored."""
        job = self.job
        objectives = job.objectives[unit.first : unit.last]
        result = self.descend(objectives, job.recipe, unit.seed, step_callback(self.watcher, job.device))
        activation, responses, scale = self.probe.measure_objectives(result.images, objectives, job.responses)
        curve = torch.stack(
            [weighted_activations(result.curve[:, k], objectives) for k in range(result.curve.shape[1])], dim=1
        ).numpy()
        arrays = {
            "images": result.images.numpy(),
            "activation": activation,
            "null_activation": self.null_activation(unit.seed, objectives),
            "curve": curve,
        }
        if job.responses:
            arrays["A"] = responses
        arrays |= self._frames(result.frames)
        arrays |= self._facets(objectives, unit.seed, result.images, activation) if job.facets else {}
        measured = arrays | {"scale": scale, "null_images": self.null_image(unit.seed)[None].numpy()}
        nulls = self.null_image(unit.seed)[None].expand_as(result.images)
        exact = partial(self.probe.exact_changes, nulls, result.images, objectives)
        arrays["status"] = row_statuses(measured, result.had_gradient.numpy(), result.rescued.numpy(), exact)
        return arrays


def checked(job: AnyJob) -> AnyJob:
    """Check a job; on a network of the caller's own, try one step.

    It is called before a run folder is created, so that a wrong setting leaves nothing behind.

    Parameters
    ----------
    job : BaseJob
        Any job.

    Returns
    -------
    BaseJob
        The job in its canonical form. Where the network cannot be computed with channels last in memory,
        `job.network.layout` is set to the contiguous layout.

    Raises
    ------
    FeatmapError
        If a unit, size or recipe does not fit the network, or settings contradict each other.
    ModelError
        If the network gives two results for one image, or fails in the trial step.
    """
    job = job.resolved()
    if isinstance(job, Job):
        facets.check_facets(job.facets, start=job.start is not None)
    # first the octaves: this error advises a size, while the layer's own error would not
    limits.check_octave_sizes(job.network, job.recipe, job.layers)
    job.check()
    limits.check_memory(job.network, job.recipe, job.layers, job.device)
    check_repeatable(
        job.network, list(dict.fromkeys([*job.layers, *job.responses])), smallest(job.recipe.sizes), job.device
    )
    name = job.network.arguments.get("model")
    if name is None or ":" in name:
        _try_step(job)
    return job


def _try_step(job: BaseJob) -> None:
    """Try one step on each set of layers, and choose the memory layout of the descents."""
    objectives = job.trials[: job.recipe.rows]
    # two rows show as well as a full batch that the network takes several images, in less time
    rows = max(MIN_ROWS, *Counter(tuple(sorted(o.layers)) for o in objectives).values())
    octave = replace(job.recipe.octaves[-1], steps=1)
    short = replace(job.recipe, octaves=(octave,), rows=min(rows, job.recipe.rows))
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
            worker = Worker(trial)
            for layers in job.layer_sets:  # compared at the recipe's smallest size, where it costs least
                worker.batches.preparation(layers, job.recipe.size, smallest(job.recipe.sizes))
            worker.descend(objectives, short, job.seeds[0], lambda _, __: None)
            return
        except (FeatmapError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - a network of the caller's own may raise anything
            failure = error
    raise ModelError(
        f"images cannot be optimised through network {job.network.name} in a batch of {short.rows} at "
        f"{format_size(short.size)} pixels, on {', '.join(job.layers)} ({describe_error(failure)}); its forward method "
        "has to accept any batch size and pass gradients"
    ) from failure
