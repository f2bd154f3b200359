"""Jobs of joint descents: their rows, work units and arrays.

For each seed a job has a solo descent of each unit and of a few unrelated features (for the ceiling), solo descents of
the units from a start perturbed by 2 % (for the floor), and then the joint descents, whose weights come from the solo
descents. Each descent is one row of a batch. Rows are independent of each other, so a, b and a+b from the same noise
give the same images whichever batches they are in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from featmap import rng
from featmap.errors import RecipeError, UnitError
from featmap.files import summarise_names
from featmap.image_shape import channel_names
from featmap.network.unit import Shape, Unit
from featmap.optimize.objective import Objective
from featmap.runs.folder_layout import STATUSES, ArraySpec
from featmap.runs.job import OWN_FILES, BaseJob
from featmap.stats import interaction

MEMBERS = "abcdefgh"
"""Letters of a group's units in the names of arrays and columns."""
GROUP_COMMAND, LAYERS_COMMAND = "interact", "interact --layers"
"""Commands in the identity of a run: one group of units, or pairs of two layers' features."""
BALANCES = ("solo", "none")
MAX_CONTROLS = 4
"""Control groups whose mean is a group's ceiling."""
PINK_IMAGES = 64
"""Images of 1/f noise over which a feature's standard deviation is taken."""
BASES = 16
"""Photographs, evenly spaced among all, to which solo images are added."""
LENGTH = 0.1
"""Root mean square over pixels and channels of what is added, in units of an image's range from 0 to 1."""
SMALL = 0.25
"""Share of `LENGTH` of the steps of the central mixed difference."""
LATER_ARRAYS = ("joint_middle_perturbed",)
"""Arrays of joint descents that runs of an earlier version lack, and are finished without."""
IMAGE_DERIVATIVES = "image_derivative_A"
"""Array of second derivatives at images, which runs with photographs have."""
Group = tuple[Unit, ...]
"""Units that are maximised together."""


@dataclass(frozen=True)
class Solo:
    """A solo descent.

    Parameters
    ----------
    unit : Unit
        Unit that is maximised.
    seed : int
        Seed of the noise that the descent starts from.
    perturbed : bool, default False
        Whether that noise is perturbed by 2 %.
    """

    unit: Unit
    seed: int
    perturbed: bool = False

    def __str__(self) -> str:
        return f"{self.unit} seed={self.seed}" + (" perturbed" if self.perturbed else "")


@dataclass(frozen=True)
class JointUnit:
    """A work unit: rows of one stage.

    Parameters
    ----------
    stage : str
        "ground" (the baseline: what needs no descent), "solo" or "joint".
    first, last : int, default 0
        Rows of the stage, `last` exclusive. Of the baseline `last` is 0, and `first` the first start of a job that
        grows.
    """

    stage: str
    first: int = 0
    last: int = 0

    @property
    def name(self) -> str:
        """Name of the unit's record in the run folder."""
        if self.stage == "ground":
            return f"{self.stage}-{self.first:06d}" if self.first else self.stage
        return f"{self.stage}-{self.first:06d}-{self.last:06d}"


@dataclass(frozen=True, kw_only=True)
class JointJob(BaseJob):
    """A job of joint descents: groups of units maximised alone and together.

    Parameters
    ----------
    network, recipe, seeds, responses, device, command
        See `featmap.runs.job.BaseJob`.
    groups : tuple of tuple of Unit
        Units that are maximised together; all groups have one length, with the same layer at the same place.
    balance : str, default "solo"
        "solo": each unit divided by its solo maximum; "none": the article's plain sum.
    """

    groups: tuple[Group, ...]
    balance: str = "solo"

    @cached_property
    def layers(self) -> list[str]:
        """Layers that are maximised, each once."""
        return list(dict.fromkeys(unit.layer for group in self.groups for unit in group))

    @property
    def is_pairs(self) -> bool:
        """Whether the job is about pairs of two layers rather than one group of units."""
        return self.command == LAYERS_COMMAND

    @property
    def name_parts(self) -> list[str]:
        """The layers of pairs, or the units of a group."""
        return ["interact", *([u.layer for u in self.groups[0]] if self.is_pairs else map(str, self.groups[0]))]

    @property
    def targets(self) -> list[Unit]:
        """Units that are maximised, each once."""
        return self.units

    def resolved(self) -> JointJob:
        """Return this job in its canonical form.

        Returns
        -------
        JointJob
            Class logits are replaced by units of their layer; each group occurs once.

        Raises
        ------
        UnitError
            If a unit does not exist or occurs twice in a group, or a group has fewer than 2 or more than 8 units.
        RecipeError
            If the balance is unknown, or the metric of the recipe is not "l1".
        """
        if self.balance not in BALANCES:
            raise RecipeError(f"balance {self.balance!r} is unknown; allowed: {', '.join(BALANCES)}")
        if self.recipe.metric != "l1":
            raise RecipeError(
                f"metric {self.recipe.metric!r}: interaction is defined for sums of activations; use metric 'l1'"
            )
        groups = tuple(tuple(self.network.resolve_unit(u, self.recipe.size) for u in group) for group in self.groups)
        for group in groups:
            if not 2 <= len(set(group)) == len(group) <= len(MEMBERS):
                raise UnitError(f"{' '.join(map(str, group))}: interaction takes 2 to {len(MEMBERS)} units, each once")
        return replace(self, groups=tuple(dict.fromkeys(groups)))

    @property
    def layer_sets(self) -> list[tuple[str, ...]]:
        """Sets of layers maximised together: those of the groups, and each layer alone."""
        return list(dict.fromkeys([*super().layer_sets, *((layer,) for layer in self.layers)]))

    @property
    def trials(self) -> tuple[Objective, ...]:
        """Plain sum of the units of the first group; all groups have the same layers."""
        return tuple(Objective(tuple((1.0, u) for u in group)) for group in self.groups[:1])

    @property
    def members(self) -> int:
        """Number of units in a group."""
        return len(self.groups[0])

    @cached_property
    def labels(self) -> list[str]:
        """Names of the groups, such as "inception4a:17 + inception4a:42"."""
        return [" + ".join(map(str, group)) for group in self.groups]

    @cached_property
    def units(self) -> list[Unit]:
        """Units of all groups, each once."""
        return list(dict.fromkeys(u for group in self.groups for u in group))

    def controls(self, group: Group) -> list[Group]:
        """Choose unrelated features, whose solo images give the group's ceiling.

        Parameters
        ----------
        group : tuple of Unit
            One of the job's groups.

        Returns
        -------
        list of tuple of Unit
            Up to `MAX_CONTROLS` groups, each with a feature of every unit's layer; fewer where a layer has too few
            other channels. A fixed random order of each layer's channels decides, so that a pair's ceiling does not
            depend on the other pairs of the run.
        """
        candidates: dict[str, list[Unit]] = {}
        for layer in dict.fromkeys(u.layer for u in group):
            channels = self.network.layer(layer, self.recipe.size).channels
            used = {c for u in group if u.layer == layer for c in u.mask(self.shape(layer))[0] if u.kind != "layer"}
            order = rng.generator("controls", layer, channels).permutation(channels)
            candidates[layer] = [Unit(layer, int(c)) for c in order if int(c) not in used]
        controls: list[Group] = []
        for _ in range(MAX_CONTROLS):
            if any(len(candidates[la]) < sum(u.layer == la for u in group) for la in candidates):
                break
            controls.append(tuple(candidates[u.layer].pop(0) for u in group))
        return controls

    def shape(self, layer: str) -> Shape:
        """Return the shape of a layer's output on the finished images.

        Parameters
        ----------
        layer : str
            Name of the layer.

        Returns
        -------
        tuple of int
            Channels, height, width.
        """
        return self.network.layer(layer, self.recipe.size).shape

    @cached_property
    def floor_seeds(self) -> dict[int, int]:
        """For each seed the next one of the run, cyclically: its floor compares the two."""
        if len(self.seeds) == 1:
            return {self.seeds[0]: self.seeds[0] + 1}
        return dict(pairwise((*self.seeds, self.seeds[0])))

    def seeds_of(self, group: int) -> tuple[int, ...]:
        """Return the seeds of one group's joint descents.

        Parameters
        ----------
        group : int
            Index of the group.

        Returns
        -------
        tuple of int
            All seeds of the job.
        """
        return self.seeds

    def floor_seed(self, group: int, seed: int) -> int:
        """Return the seed that the floor of a group's seed compares it with.

        Parameters
        ----------
        group : int
            Index of the group.
        seed : int
            One of its seeds.

        Returns
        -------
        int
            The next of its seeds, cyclically: the same as in a job of these seeds alone.
        """
        seeds = self.seeds_of(group)
        return self.floor_seeds[seed] if seeds == self.seeds or seed != seeds[-1] else seeds[0]

    @cached_property
    def starts(self) -> list[tuple[int, bool]]:
        """Starts of the descents, (seed, perturbed)."""
        every_seed = dict.fromkeys([*self.seeds, *self.floor_seeds.values()])
        return [(s, False) for s in every_seed] + [(s, True) for s in self.seeds]

    @cached_property
    def solos(self) -> list[Solo]:
        """Solo descents, rows of the arrays whose names begin with `solo_`."""
        controls = dict.fromkeys(c for group in self.groups for control in self.controls(group) for c in control)
        units_and_controls = list(dict.fromkeys([*self.units, *controls]))
        rows = [Solo(u, s) for s in self.seeds for u in units_and_controls]
        rows += [Solo(u, s) for s in self.floor_seeds.values() if s not in self.seeds for u in self.units]
        rows += [Solo(u, s, True) for s in self.seeds for u in self.units]
        # Rows of one layer are neighbours: a batch takes one forward pass for each layer in it.
        order = {la: k for k, la in enumerate(dict.fromkeys(r.unit.layer for r in rows))}
        return sorted(rows, key=lambda r: order[r.unit.layer])

    @cached_property
    def joints(self) -> list[tuple[int, int]]:
        """Joint descents, rows of the arrays whose names begin with `joint_`.

        Each is (index of the group, seed).
        """
        return [(g, s) for s in self.seeds for g in range(len(self.groups))]

    @cached_property
    def chunk_rows(self) -> dict[str, int]:
        """Rows of a chunk of each stage's arrays; all starts are one chunk."""
        return {"start": len(self.starts), "solo": self.recipe.rows, "joint": self.recipe.rows}

    def identity(self) -> dict[str, Any]:
        """Collect everything that the run's numbers depend on.

        Returns
        -------
        dict
            Plain JSON values; of the groups their number, the first, the last and a hash of all.
        """
        return {
            "model": self.network.identity(),
            "groups": summarise_names(self.labels),
            "responses": list(self.responses),
            "balance": self.balance,
            "recipe": self.recipe.identity(),
            "seeds": list(self.seeds),
            "device": self.device.type,
            **({"command": self.command} if self.command else {}),
        }

    def waves(self) -> list[list[JointUnit]]:
        """List the work units in two waves.

        Returns
        -------
        list of list of JointUnit
            The baseline (stage "ground") and the solo descents; then the joint descents, whose weights come from the
            solo descents.
        """
        rows = self.recipe.rows

        def batches(stage: str, count: int) -> list[JointUnit]:
            return [JointUnit(stage, first, min(first + rows, count)) for first in range(0, count, rows)]

        return [[JointUnit("ground"), *batches("solo", len(self.solos))], batches("joint", len(self.joints))]

    def ground_starts(self, unit: JointUnit) -> slice:
        """Return the starts whose null images a unit of the baseline computes.

        Parameters
        ----------
        unit : JointUnit
            A work unit of the stage "ground".

        Returns
        -------
        slice
            Positions in `starts`.
        """
        return slice(unit.first, unit.first + self.chunk_rows["start"])

    def cost(self, unit: JointUnit) -> float:
        """Estimate the amount of work of a unit.

        Parameters
        ----------
        unit : JointUnit
            One of the job's work units.

        Returns
        -------
        float
            Elements computed in its forward passes, one pass for each set of layers; 0 for the baseline.
        """
        if unit.stage == "ground":
            return 0.0
        rows = slice(unit.first, unit.last)
        if unit.stage == "solo":
            return self.pass_cost({(solo.unit.layer,) for solo in self.solos[rows]})
        return self.pass_cost({tuple(u.layer for u in self.groups[g]) for g, _ in self.joints[rows]})

    @property
    def disk_needed(self) -> int:
        """Bytes of the run on disk: arrays before compression, tables and figures."""
        return int(1.1 * self.array_bytes) + 400 * len(self.joints) + OWN_FILES

    def arrays(self) -> dict[str, ArraySpec]:
        """Return the arrays of the run folder.

        Returns
        -------
        dict of ArraySpec
            By name; a chunk holds the rows of one batch. Dimensions: `solo` and `joint` are descents, `start` the
            noises, `response` the probed features, `unit` the units of all groups, `member` those of one group,
            `point` the blends.
        """
        steps, chunks = self.recipe.steps, self.chunk_rows
        columns, units, members = len(self.columns), len(self.units), self.members
        solos, joints, starts = len(self.solos), len(self.joints), len(self.starts)
        points = len(interaction.simplex_lattice(members))
        pixels = ("channel", "y", "x")
        meanings = (("flag_values", list(range(len(STATUSES)))), ("flag_meanings", " ".join(STATUSES)))

        def spec(dims: str, *shape: int, chunk: int | None = None, dtype: str = "float32") -> ArraySpec:
            names = tuple(p for d in dims.split() for p in (pixels if d == "pixels" else (d,)))
            return ArraySpec(names, shape, (min(chunk or shape[0], shape[0]), *shape[1:]), dtype)

        def status(stage: str, count: int) -> ArraySpec:
            return ArraySpec((stage,), (count,), (min(chunks[stage], count),), "uint8", meanings)

        image = self.network.image_shape(self.recipe.size)
        specs = {
            "null_images": spec("start pixels", starts, *image, chunk=chunks["start"]),
            "null": spec("start response", starts, columns, chunk=chunks["start"]),
            "null_units": spec("start unit", starts, units, chunk=chunks["start"]),
            "pink_images": spec("pink pixels", PINK_IMAGES, *image),
            "deviation": spec("response", columns, dtype="float64"),
            "solo_images": spec("solo pixels", solos, *image, chunk=chunks["solo"]),
            "solo_A": spec("solo response", solos, columns, chunk=chunks["solo"]),
            "solo_units": spec("solo unit", solos, units, chunk=chunks["solo"]),
            "solo_fraction": spec("solo response", solos, columns, chunk=chunks["solo"]),
            "solo_activation": spec("solo", solos, chunk=chunks["solo"]),
            "solo_curve": spec("solo step", solos, steps, chunk=chunks["solo"]),
            "solo_status": status("solo", solos),
            "joint_images": spec("joint pixels", joints, *image, chunk=chunks["joint"]),
            "joint_A": spec("joint response", joints, columns, chunk=chunks["joint"]),
            "joint_units": spec("joint unit", joints, units, chunk=chunks["joint"]),
            "joint_middle": spec("joint response", joints, columns, chunk=chunks["joint"]),
            "joint_middle_perturbed": spec("joint response", joints, columns, chunk=chunks["joint"]),
            "joint_weight": spec("joint member", joints, members, chunk=chunks["joint"], dtype="float64"),
            "joint_blend": spec("joint point member", joints, points, members, chunk=chunks["joint"]),
            "joint_curve": spec("joint step member", joints, steps, members, chunk=chunks["joint"]),
            "joint_agreement": spec("joint step", joints, steps, chunk=chunks["joint"]),
            "joint_status": status("joint", joints),
        }
        for k, unit in enumerate(self.groups[0]):
            _, height, width = self.shape(unit.layer)
            letter = MEMBERS[k]
            dims = f"joint y_{letter} x_{letter}"
            specs[f"joint_map_{letter}"] = spec(dims, joints, height, width, chunk=chunks["joint"])
        return specs

    def coords(self) -> dict[str, np.ndarray]:
        """Return the labels along the arrays' dimensions.

        Returns
        -------
        dict of numpy.ndarray
            By dimension.
        """
        return {
            "start": np.array([f"seed={s}" + (" perturbed" if p else "") for s, p in self.starts]),
            "solo": np.array([str(s) for s in self.solos]),
            "joint": np.array([f"{self.labels[g]} seed={s}" for g, s in self.joints]),
            "unit": np.array([str(u) for u in self.units]),
            "member": np.array(list(MEMBERS[: self.members])),
            "response": np.array(self.columns),
            "step": np.arange(self.recipe.steps, dtype=np.int64),
            "channel": np.array(channel_names(self.network.channels)),
        }


def count_neurons(unit: Unit, shape: Shape) -> int:
    """Count the neurons that a unit reads.

    Parameters
    ----------
    unit : Unit
        The unit.
    shape : tuple of int
        Channels, height and width of its layer's output.

    Returns
    -------
    int
        Number of neurons.
    """
    channels, mask = unit.mask(shape)
    return len(channels) * shape[1] * shape[2] if mask is None else int(mask.sum())
