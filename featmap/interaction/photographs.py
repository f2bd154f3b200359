"""Photographs in an interaction run: responses to them, and mixed differences along two solo images.

Photographs need no descent. Their responses, the units' activations and the places at which the units fire are measured
beside the solo descents; what happens when solo images are added to photographs is measured after them. All of this is
stored in arrays of its own, which a run without photographs does not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from featmap.errors import UnitError
from featmap.interaction.job import BASES, LENGTH, SMALL, JointJob, Solo
from featmap.interaction.worker import JointWorker
from featmap.network.unit import Unit
from featmap.optimize.photograph_folder import UNIT_PHOTOGRAPHS, PhotographStimuli
from featmap.optimize.responses import Probe
from featmap.runs.folder_layout import LIVE_CODES, ArraySpec
from featmap.runs.progress import Watcher
from featmap.runs.store import Run
from featmap.stats.correlation import RunningCorrelation

PLACES = 49
"""Largest number of places at which features are compared: finer grids are averaged down to 7 x 7."""
ALONE = (1.0, SMALL, -SMALL)
"""Shares of `LENGTH` of the steps along one solo image."""
_UNITS, _GROUPS = 8, 16
"""Units and groups of a work unit."""


@dataclass(frozen=True)
class MeasuringUnit:
    """A work unit without a descent: some photographs, units or groups.

    Parameters
    ----------
    stage : str
        "photographs", "alone" (solo images added to photographs) or "mixed" (the solo images of two units).
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

    def base_seed(self, k: int) -> int:
        """Return the seed of the solo images that are added to a photograph.

        Parameters
        ----------
        k : int
            Position in `bases`.

        Returns
        -------
        int
            The seeds of the run take turns, so that an interval over photographs covers the seeds, too.
        """
        return self.seeds[k % len(self.seeds)]

    @property
    def place_grid(self) -> tuple[int, int]:
        """Height and width of the grid of places: the smaller ones of the units' layers."""
        shapes = [self.shape(layer) for layer in self.layers]
        return min(height for _, height, _ in shapes), min(width for *_, width in shapes)

    @property
    def shown_photographs(self) -> int:
        """Number of images that the network is shown on account of the photographs."""
        return 2 * len(self.photographs) + len(self.bases) * (len(ALONE) * len(self.units) + 5 * len(self.groups))

    def arrays(self) -> dict[str, ArraySpec]:
        """Specify the arrays of the run folder.

        Returns
        -------
        dict of ArraySpec
            Those of `JointJob`, and: `photograph_A` and `photograph_units` (responses), `photograph_places` (activation
            maps on the common grid), `alone_A` (responses to a photograph plus a share `ALONE` of a unit's solo image),
            `mixed_A` (plus the solo images of both units) and `cross_A` (see `PhotographJointWorker.mix`); NaN where a
            solo descent did not rise.
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
        for name in ("mixed_A", "cross_A"):
            own[name] = ArraySpec(("group", "base", "response"), (groups, bases, width), (mixed, bases, width))
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
            [*joint, *parts("alone", len(self.units), _UNITS), *parts("mixed", len(self.groups), _GROUPS)],
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
        self._direction = lru_cache(maxsize=256)(self._read_direction)
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
            arrays = self.add_alone(unit, store) if unit.stage == "alone" else self.mix(unit, store)
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

    def _read_direction(self, unit: Unit, seed: int, store: Run) -> Tensor | None:
        """Read a solo image less its null image, scaled to `LENGTH`; None where the descent did not rise."""
        row = self._solo_rows[Solo(unit, seed)]
        if int(store.arrays["solo_status"][row]) not in LIVE_CODES:
            return None
        image = torch.from_numpy(np.asarray(store.arrays["solo_images"][row]))
        difference = image - self.null_image(seed, False)
        return difference * (LENGTH / difference.square().mean().sqrt())

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


def require_pairs(job: JointJob) -> None:
    """Check that a job is of pairs of units, with a fixed number of seeds.

    Parameters
    ----------
    job : JointJob
        A job of joint descents that is to measure photographs.

    Raises
    ------
    UnitError
        If a group has more than two units, or the job is of another class, whose work the one with photographs would
        not do.
    """
    if type(job) is not JointJob:
        raise UnitError(
            "photographs go with a fixed number of seeds, and are added to a job once; give a number of seeds"
        )
    if job.members != 2:
        raise UnitError(
            f"photographs with {job.members} units: responding together is measured for two; give two units, or leave "
            "the photographs out"
        )


def with_photographs(job: JointJob, stimuli: PhotographStimuli) -> PhotographJointJob:
    """Make the job that also measures photographs.

    Parameters
    ----------
    job : JointJob
        A job of joint descents of pairs.
    stimuli : PhotographStimuli
        The photographs, at the size of the recipe's images.

    Returns
    -------
    PhotographJointJob
        Everything else stays.
    """
    return PhotographJointJob(**{f.name: getattr(job, f.name) for f in fields(JointJob)}, photographs=stimuli)


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


def measure_features(
    probe: Probe,
    layers: Sequence[str],
    sides: Sequence[Sequence[Unit]],
    photographs: PhotographStimuli,
    watcher: Watcher,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Show photographs to the network.

    Parameters
    ----------
    probe : Probe
        Probe of the network.
    layers : sequence of str
        Layers whose features are probed.
    sides : sequence of sequence of Unit
        Features of the two layers.
    photographs : PhotographStimuli
        The photographs, at the size of the images.
    watcher : Watcher
        Receives the progress.

    Returns
    -------
    tuple of numpy.ndarray
        The fields of `featmap.interaction.natural.PhotographResponses`, in their order; one pass for each batch of
        `UNIT_PHOTOGRAPHS` photographs.
    """
    source, size, channels = photographs.require_source(), photographs.size, probe.network.channels
    names = [side[0].layer for side in sides]
    picks = [torch.tensor([u.channel or 0 for u in side]) for side in sides]
    places = RunningCorrelation(len(sides[0]), len(sides[1]))
    responses: list[Tensor] = []
    units: tuple[list[Tensor], list[Tensor]] = ([], [])
    for begin in range(0, len(photographs), UNIT_PHOTOGRAPHS):
        stop = min(begin + UNIT_PHOTOGRAPHS, len(photographs))
        images = source.read(range(begin, stop), size, channels)
        for out in probe.outputs(images, list(dict.fromkeys([*layers, *names]))):
            responses.append(torch.cat([out[la].mean((2, 3)) for la in layers], dim=1).cpu())
            chosen = [out[la][:, pick.to(out[la].device)] for la, pick in zip(names, picks, strict=True)]
            for k in (0, 1):
                units[k].append(chosen[k].mean((2, 3)).cpu())
            grid = _common_grid([tuple(maps.shape[2:]) for maps in chosen])
            pooled = [functional.adaptive_avg_pool2d(maps, grid).cpu() for maps in chosen]
            places.add(*(maps.permute(0, 2, 3, 1).flatten(0, 2).numpy() for maps in pooled))
        watcher.stage("photographs", stop, len(photographs))
    first, second = (torch.cat(side).numpy() for side in units)
    return first, second, places.result(), torch.cat(responses).numpy()


def _common_grid(shapes: Sequence[tuple[int, ...]]) -> tuple[int, int]:
    """Choose the grid on which maps are compared: the smaller one, with at most `PLACES` places."""
    height, width = (min(shape[k] for shape in shapes) for k in (0, 1))
    side = int(PLACES**0.5)
    return min(height, side), min(width, side)
