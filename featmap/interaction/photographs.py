"""Photographs in an interaction run: responses to them, and second-order effects along two solo images.

Photographs need no descent. Their responses, the units' activations and the places at which the units fire are measured
beside the solo descents; what happens when solo images are added to photographs is measured after them, and so are
second derivatives, at photographs and between the solo images themselves. All of this is stored in arrays of its own,
which a run without photographs does not have.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from featmap.interaction.job import BASES, IMAGE_DERIVATIVES, LENGTH, SMALL, JointJob, Solo
from featmap.interaction.precision import LEAST_SEEDS, GrowingJob
from featmap.interaction.worker import JointWorker
from featmap.network.unit import Unit
from featmap.optimize.photograph_folder import UNIT_PHOTOGRAPHS, PhotographStimuli
from featmap.runs.folder_layout import LIVE_CODES, ArraySpec
from featmap.runs.progress import Watcher
from featmap.runs.store import Run

ALONE = (1.0, SMALL, -SMALL)
"""Shares of `LENGTH` of the steps along one solo image."""
DERIVATIVE_PASSES = 15
"""Images that take the time of one second derivative."""
_UNITS, _GROUPS = 8, 16
"""Units and groups of a work unit."""
_OF_GROUPS = ("mixed", "derivative", "image_derivative")
"""Stages whose work units are of groups."""


@dataclass(frozen=True)
class MeasuringUnit:
    """A work unit without a descent: some photographs, units or groups.

    Parameters
    ----------
    stage : str
        "photographs", "alone" (solo images added to photographs), "mixed" (the solo images of two units),
        "derivative" (the second derivative along these) or "image_derivative" (the same at images).
    first, stop : int
        Photographs, units or groups of the job, `stop` exclusive.
    """

    stage: str
    first: int
    stop: int

    @property
    def name(self) -> str:
        """Name of the unit's record in the run folder."""
        return f"{self.stage}-{self.first:06d}-{self.stop:06d}"

    @property
    def last(self) -> int:
        """No descent: the unit counts for no steps."""
        return 0


@dataclass(frozen=True, kw_only=True)
class PhotographJointJob(JointJob):
    """A job of joint descents of pairs that also measures them on photographs.

    Parameters
    ----------
    network, recipe, seeds, responses, device, command, groups, balance
        See `featmap.interaction.job.JointJob`.
    photographs : PhotographStimuli
        The photographs, at the size of the recipe's images.
    """

    photographs: PhotographStimuli

    def identity(self) -> dict[str, Any]:
        """Collect everything that the run's numbers depend on.

        Returns
        -------
        dict
            Plain JSON values, with the count, checksum, limit and size of the photographs.
        """
        return super().identity() | {"photographs": self.photographs.identity()}

    @cached_property
    def bases(self) -> list[int]:
        """Positions of the photographs to which solo images are added."""
        count = len(self.photographs)
        return [int(k) for k in np.unique(np.linspace(0, count - 1, min(BASES, count)).round())]

    @property
    def base_seeds(self) -> tuple[int, ...]:
        """Seeds of solo images added to photographs and of second derivatives."""
        return self.seeds

    def base_seed(self, k: int) -> int:
        """Return the seed of the solo images that are added to a photograph.

        Parameters
        ----------
        k : int
            Position in `bases`.

        Returns
        -------
        int
            The base seeds take turns, so that an interval over photographs covers the seeds, too.
        """
        return self.base_seeds[k % len(self.base_seeds)]

    @cached_property
    def middles(self) -> list[int]:
        """Positions in `bases` where second derivatives are taken: every other per seed."""
        bases = range(len(self.bases))
        turn = len({self.base_seed(k) for k in bases})
        return [k for k in bases if k // turn % 2 == 0]

    @property
    def place_grid(self) -> tuple[int, int]:
        """Height and width of the grid of places: the smaller ones of the units' layers."""
        shapes = [self.shape(layer) for layer in self.layers]
        return min(height for _, height, _ in shapes), min(width for *_, width in shapes)

    @property
    def shown_photographs(self) -> int:
        """Number of images that the network is shown on account of the photographs."""
        added = len(self.bases) * (len(ALONE) * len(self.units) + 5 * len(self.groups))
        derivatives = (len(self.middles) + len(self.base_seeds)) * len(self.groups)
        return 2 * len(self.photographs) + added + DERIVATIVE_PASSES * derivatives

    def arrays(self) -> dict[str, ArraySpec]:
        """Specify the arrays of the run folder.

        Returns
        -------
        dict of ArraySpec
            Those of `JointJob`, and: `photograph_A` and `photograph_units` (responses), `photograph_places` (activation
            maps on the common grid), `alone_A` (responses to a photograph plus a share `ALONE` of a unit's solo image),
            `mixed_A` (plus the solo images of both units), `cross_A`, `derivative_A` and `image_derivative_A` (see
            `PhotographJointWorker`, `mix`, `derive` and `derive_images`); NaN where a solo descent did not rise.
        """
        count, width, units, groups = len(self.photographs), len(self.columns), len(self.units), len(self.groups)
        rows, at, mixed = min(count, UNIT_PHOTOGRAPHS), min(units, _UNITS), min(groups, _GROUPS)
        bases, grid = len(self.bases), self.place_grid
        own = {
            "photograph_A": ArraySpec(("photograph", "response"), (count, width), (rows, width)),
            "photograph_units": ArraySpec(("photograph", "unit"), (count, units), (rows, units)),
            "photograph_places": ArraySpec(
                ("photograph", "unit", "place_y", "place_x"), (count, units, *grid), (rows, at, *grid)
            ),
            "alone_A": ArraySpec(
                ("unit", "base", "share", "response"),
                (units, bases, len(ALONE), width),
                (at, bases, len(ALONE), width),
            ),
        }
        lengths = {"base": bases, "middle": len(self.middles), "seed": len(self.base_seeds)}
        of_groups = {"mixed_A": "base", "cross_A": "base", "derivative_A": "middle", IMAGE_DERIVATIVES: "seed"}
        for name, of in of_groups.items():
            own[name] = ArraySpec(("group", of, "response"), (groups, lengths[of], width), (mixed, lengths[of], width))
        return super().arrays() | own

    def coords(self) -> dict[str, np.ndarray]:
        """Return the labels along the arrays' dimensions.

        Returns
        -------
        dict of numpy.ndarray
            By dimension.
        """
        return super().coords() | {
            "photograph": np.array(self.photographs.labels),
            "base": np.array([self.photographs.labels[k] for k in self.bases]),
            "middle": np.array([self.photographs.labels[self.bases[k]] for k in self.middles]),
            "seed": np.array(self.base_seeds, dtype=np.int64),
            "share": np.array(ALONE),
            "group": np.array(self.labels),
        }

    def waves(self) -> list[list[Any]]:
        """List the work units in two waves.

        Returns
        -------
        list of list of JointUnit or MeasuringUnit
            The photographs beside the solo descents, what is added to photographs after these.
        """

        def parts(stage: str, count: int, step: int) -> list[Any]:
            return [MeasuringUnit(stage, first, min(first + step, count)) for first in range(0, count, step)]

        solo, joint = super().waves()
        return [
            [*solo, *parts("photographs", len(self.photographs), UNIT_PHOTOGRAPHS)],
            [
                *joint,
                *parts("alone", len(self.units), _UNITS),
                *(unit for stage in _OF_GROUPS for unit in parts(stage, len(self.groups), _GROUPS)),
            ],
        ]

    def cost(self, unit: Any) -> float:
        """Estimate the amount of work of a unit.

        Parameters
        ----------
        unit : JointUnit or MeasuringUnit
            One of the job's work units.

        Returns
        -------
        float
            Elements computed in its forward passes.
        """
        return self.pass_cost([self.responses]) if isinstance(unit, MeasuringUnit) else super().cost(unit)


@dataclass(frozen=True, kw_only=True)
class GrowingPhotographJob(PhotographJointJob, GrowingJob):
    """A job of pairs that grows by seeds, and also measures them on photographs.

    Photographs are measured once, whatever the number of seeds: what is added to them are the solo images of the seeds
    that every group gets, as in a job of these seeds alone.

    Parameters
    ----------
    network, recipe, seeds, responses, device, command, groups, balance, auto, counts
        See `featmap.interaction.precision.GrowingJob`.
    photographs : PhotographStimuli
        The photographs, at the size of the recipe's images.
    """

    @property
    def base_seeds(self) -> tuple[int, ...]:
        """Seeds of the images added to photographs, which stay when the job grows."""
        return self.seeds[:LEAST_SEEDS]


class PhotographJointWorker(JointWorker):
    """Worker that also measures photographs, also with solo images added to them.

    Parameters
    ----------
    job : PhotographJointJob
        The checked job.
    watcher : Watcher, optional
        Receives the progress.
    """

    job: PhotographJointJob

    def __init__(self, job: PhotographJointJob, watcher: Watcher | None = None) -> None:
        super().__init__(job, watcher)
        self._difference = lru_cache(maxsize=256)(self._read_difference)
        self._solo_rows = {solo: k for k, solo in enumerate(job.solos)}

    def work(self, unit: Any, store: Run) -> None:
        """Compute one work unit and write its arrays to the run folder.

        Parameters
        ----------
        unit : JointUnit or MeasuringUnit
            One of the job's work units.
        store : Run
            The run folder, from which solo images are read.
        """
        if not isinstance(unit, MeasuringUnit):
            super().work(unit, store)
            return
        if unit.stage == "photographs":
            arrays = self.measure_photographs(unit)
            self.watcher.stage("photographs", unit.stop, len(self.job.photographs))
        else:
            measures = (self.add_alone, self.mix, self.derive, self.derive_images)
            arrays = dict(zip(("alone", *_OF_GROUPS), measures, strict=True))[unit.stage](unit, store)
        rows = slice(unit.first, unit.stop)
        store.land(unit.name, {k: ((rows, *[slice(None)] * (v.ndim - 1)), v) for k, v in arrays.items()})

    def measure_photographs(self, unit: MeasuringUnit) -> dict[str, np.ndarray]:
        """Measure responses to photographs, and the units' maps on the common grid.

        Parameters
        ----------
        unit : MeasuringUnit
            A work unit of the stage "photographs".

        Returns
        -------
        dict of numpy.ndarray
            By the names of the run's arrays. A map is the mean over the channels that the unit reads, averaged over the
            cells of the common grid.
        """
        job = self.job
        images = self._read(range(unit.first, unit.stop))
        responses, units = self.probe.measure_units(images, job.responses, job.units)
        reads = [(u.layer, u.mask(job.shape(u.layer))[0]) for u in job.units]
        maps = []
        for out in self.probe.outputs(images, job.layers):
            fine = [out[layer][:, channels].mean(1) for layer, channels in reads]
            maps.append(torch.stack([functional.adaptive_avg_pool2d(m, job.place_grid) for m in fine], dim=1).cpu())
        return {"photograph_A": responses, "photograph_units": units, "photograph_places": torch.cat(maps).numpy()}

    def _read(self, indices: Any) -> Tensor:
        """Read some photographs at the size of the images."""
        stimuli = self.job.photographs
        return stimuli.require_source().read(indices, stimuli.size, self.job.network.channels)

    @cached_property
    def _bases(self) -> Tensor:
        """Photographs to which solo images are added, B x C x H x W."""
        return self._read(self.job.bases)

    def _read_difference(self, unit: Unit, seed: int, store: Run) -> Tensor | None:
        """Read a solo image less its null image; None where the descent did not rise."""
        row = self._solo_rows[Solo(unit, seed)]
        if int(store.arrays["solo_status"][row]) not in LIVE_CODES:
            return None
        return torch.from_numpy(np.asarray(store.arrays["solo_images"][row])) - self.null_image(seed, False)

    def _direction(self, unit: Unit, seed: int, store: Run) -> Tensor | None:
        """Scale the same to `LENGTH`."""
        difference = self._difference(unit, seed, store)
        return None if difference is None else difference * (LENGTH / difference.square().mean().sqrt())

    def _respond(self, images: list[Tensor | None]) -> np.ndarray:
        """Measure the responses to images, N x D; NaN for those that there are not."""
        found = np.full((len(images), len(self.job.columns)), np.nan, dtype=np.float32)
        shown = [k for k, image in enumerate(images) if image is not None]
        if shown:
            stack = torch.stack([image for image in images if image is not None])
            found[shown] = self.probe.measure_units(stack, self.job.responses, ())[0]
        return found

    def add_alone(self, unit: MeasuringUnit, store: Run) -> dict[str, np.ndarray]:
        """Measure photographs to which one unit's solo image is added.

        Parameters
        ----------
        unit : MeasuringUnit
            A work unit of the stage "alone".
        store : Run
            The run folder, in which the solo descents are complete.

        Returns
        -------
        dict of numpy.ndarray
            By the names of the run's arrays.
        """
        found = []
        for member in self.job.units[unit.first : unit.stop]:
            images: list[Tensor | None] = []
            for k, base in enumerate(self._bases):
                d = self._direction(member, self.job.base_seed(k), store)
                images += [None if d is None else base + share * d for share in ALONE]
            found.append(self._respond(images).reshape(len(self._bases), len(ALONE), -1))
        return {"alone_A": np.stack(found)}

    def mix(self, unit: MeasuringUnit, store: Run) -> dict[str, np.ndarray]:
        """Measure photographs to which the solo images of both units of a pair are added.

        Parameters
        ----------
        unit : MeasuringUnit
            A work unit of the stage "mixed".
        store : Run
            The run folder, in which the solo descents are complete.

        Returns
        -------
        dict of numpy.ndarray
            `mixed_A`: f(x + d_a + d_b); `cross_A`: the central difference f(x + h_a + h_b) - f(x + h_a - h_b) -
            f(x - h_a + h_b) + f(x - h_a - h_b) with h = `SMALL` d; group x base x response.
        """
        mixed, cross = [], []
        for a, b in self.job.groups[unit.first : unit.stop]:
            images: list[Tensor | None] = []
            for k, base in enumerate(self._bases):
                one, two = (self._direction(member, self.job.base_seed(k), store) for member in (a, b))
                if one is None or two is None:
                    images += [None] * 5
                    continue
                images.append(base + one + two)
                images += [base + SMALL * (s * one + t * two) for s in (1, -1) for t in (1, -1)]
            found = self._respond(images).reshape(len(self._bases), 5, -1).astype(np.float64)
            mixed.append(found[:, 0])
            cross.append(found[:, 1] - found[:, 2] - found[:, 3] + found[:, 4])
        return {"mixed_A": np.stack(mixed).astype(np.float32), "cross_A": np.stack(cross).astype(np.float32)}

    def derive(self, unit: MeasuringUnit, store: Run) -> dict[str, np.ndarray]:
        """Compute second derivatives along the solo images of both units of a pair.

        Parameters
        ----------
        unit : MeasuringUnit
            A work unit of the stage "derivative".
        store : Run
            The run folder, in which the solo descents are complete.

        Returns
        -------
        dict of numpy.ndarray
            `derivative_A`: d_a' H d_b at a photograph of `PhotographJointJob.middles` plus half of both, the middle of
            the four points of the mixed difference, which it equals where responses are quadratic; group x middle x
            response. See `featmap.optimize.responses.Probe.mixed_derivatives`.
        """
        job = self.job
        origins = self._bases[job.middles]
        found = [
            self._derive(origins, [[self._direction(u, job.base_seed(k), store) for u in pair] for k in job.middles])
            for pair in job.groups[unit.first : unit.stop]
        ]
        return {"derivative_A": np.stack(found)}

    def derive_images(self, unit: MeasuringUnit, store: Run) -> dict[str, np.ndarray]:
        """Compute second derivatives along the halves of both solo images.

        Parameters
        ----------
        unit : MeasuringUnit
            A work unit of the stage "image_derivative".
        store : Run
            The run folder, in which the solo descents are complete.

        Returns
        -------
        dict of numpy.ndarray
            `image_derivative_A`: u' H v at the null image plus (u + v) / 2, with u and v half of each solo image's
            difference from the null image: the middle of the four points of the second difference, which it equals
            where responses are quadratic; group x seed x response.
        """
        seeds, found = self.job.base_seeds, []
        origins = torch.stack([self.null_image(seed, False) for seed in seeds])
        for pair in self.job.groups[unit.first : unit.stop]:
            whole = [[self._difference(u, seed, store) for u in pair] for seed in seeds]
            found.append(self._derive(origins, [[None if d is None else d / 2 for d in steps] for steps in whole]))
        return {IMAGE_DERIVATIVES: np.stack(found)}

    def _derive(self, origins: Tensor, steps: list[list[Tensor | None]]) -> np.ndarray:
        """Compute u' H v at each origin plus half of both steps u and v, N x D; NaN where a step is missing."""
        found = np.full((len(steps), len(self.job.columns)), np.nan, dtype=np.float32)
        live = [k for k, pair in enumerate(steps) if all(step is not None for step in pair)]
        if live:
            one, two = (
                torch.stack([d for d in side if d is not None]) for side in zip(*(steps[k] for k in live), strict=True)
            )
            found[live] = self.probe.mixed_derivatives(origins[live] + (one + two) / 2, one, two, self.job.responses)
        return found


def with_photographs(job: JointJob, stimuli: PhotographStimuli) -> PhotographJointJob:
    """Make the job that also measures photographs.

    Parameters
    ----------
    job : JointJob
        A job of joint descents of pairs, with a fixed number of seeds or one that grows.
    stimuli : PhotographStimuli
        The photographs, at the size of the recipe's images.

    Returns
    -------
    PhotographJointJob
        Everything else stays.
    """
    kind = GrowingPhotographJob if isinstance(job, GrowingJob) else PhotographJointJob
    return kind(**{f.name: getattr(job, f.name) for f in fields(job)}, photographs=stimuli)


def worker_of(job: JointJob) -> type[JointWorker]:
    """Choose the worker of a job of joint descents.

    Parameters
    ----------
    job : JointJob
        Any such job.

    Returns
    -------
    type
        `PhotographJointWorker` for a job with photographs.
    """
    return PhotographJointWorker if isinstance(job, PhotographJointJob) else JointWorker
