"""Joint descents: which rows a question about units together needs.

Everything hangs on rows: a solo descent of each unit (and of a few unrelated features, for the ceiling) for each
seed, the same again from a start perturbed by 2 % (for the floor), and then the joint descents, whose weights come
from the solos. Rows are independent of each other, so a, b and a+b from one noise give what they would give in one
batch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from featmap import rng
from featmap.errors import RecipeError, UnitError
from featmap.network.unit import Shape, Unit
from featmap.optimize.objective import Objective
from featmap.runs.array_layout import STATUSES, ArraySpec
from featmap.runs.job import OWN_FILES, BaseJob
from featmap.stats import interaction

MEMBERS = "abcdefgh"
"""Letters of a group's units in the names of arrays and columns."""
OF_GROUP, OF_LAYERS = "interact", "interact --layers"
"""Commands as identities name them."""
BALANCES = ("solo", "none")
CONTROLS, PINK = 4, 64
Group = tuple[Unit, ...]


@dataclass(frozen=True)
class Solo:
    """One solo descent: the unit, the seed of its noise, and whether the start is perturbed."""

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
        "ground" (what needs no descent), "solo" or "joint".
    first, last : int, default 0
        Rows of the stage, `last` exclusive.
    """

    stage: str
    first: int = 0
    last: int = 0

    @property
    def name(self) -> str:
        """Name of the unit's record in the run folder."""
        return f"{self.stage}-{self.first:06d}-{self.last:06d}" if self.last else self.stage


@dataclass(frozen=True, kw_only=True)
class JointJob(BaseJob):
    """A job of joint descents: groups of units maximised alone and together.

    Parameters
    ----------
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
        """Whether the job is about pairs of two layers, be it one pair, rather than about one group of units."""
        return self.command == OF_LAYERS

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
            Class logits are replaced by their layer; each group stands once.

        Raises
        ------
        FeatmapError
            If a unit does not exist or stands twice in a group, or the metric of the recipe is not "l1".
        """
        if self.balance not in BALANCES:
            raise RecipeError(f"balance {self.balance!r} is unknown; allowed: {', '.join(BALANCES)}")
        if self.recipe.metric != "l1":
            raise RecipeError(f"metric {self.recipe.metric!r}: interaction is defined for sums of activations; take l1")
        groups = tuple(tuple(self.network.resolve_unit(u, self.recipe.size) for u in group) for group in self.groups)
        for group in groups:
            if not 2 <= len(set(group)) == len(group) <= len(MEMBERS):
                raise UnitError(f"{' '.join(map(str, group))}: interaction takes 2 to {len(MEMBERS)} units, each once")
        return replace(self, groups=tuple(dict.fromkeys(groups)))

    @property
    def trials(self) -> tuple[Objective, ...]:
        """Plain sum of the first group: all groups have the same layers."""
        return tuple(Objective(tuple((1.0, u) for u in group)) for group in self.groups[:1])

    @property
    def members(self) -> int:
        """How many units are maximised together."""
        return len(self.groups[0])

    @cached_property
    def labels(self) -> list[str]:
        """The names of the groups."""
        return [" + ".join(map(str, group)) for group in self.groups]

    @cached_property
    def units(self) -> list[Unit]:
        """All units of all groups, each once."""
        return list(dict.fromkeys(u for group in self.groups for u in group))

    def controls(self, group: Group) -> list[Group]:
        """Return up to `CONTROLS` groups of unrelated features, one of each member's layer.

        They are the first ones of a fixed random order of the layer's channels that the group has not got, so
        that a pair's ceiling does not depend on what else is in the run.
        """
        drawn: dict[str, list[Unit]] = {}
        for layer in dict.fromkeys(u.layer for u in group):
            channels = self.network.layer(layer, self.recipe.size).channels
            taken = {c for u in group if u.layer == layer for c in u.mask(self.shape(layer))[0] if u.kind != "layer"}
            order = rng.generator("controls", layer, channels).permutation(channels)
            drawn[layer] = [Unit(layer, int(c)) for c in order if int(c) not in taken]
        found: list[Group] = []
        for _ in range(CONTROLS):
            if any(len(drawn[la]) < sum(u.layer == la for u in group) for la in drawn):
                break
            found.append(tuple(drawn[u.layer].pop(0) for u in group))
        return found

    def shape(self, layer: str) -> Shape:
        """Return (channels, height, width) of a layer's output on the finished images."""
        return self.network.layer(layer, self.recipe.size).shape

    @cached_property
    def floor_seeds(self) -> dict[int, int]:
        """Return for each seed the other one that its floor compares it with."""
        if len(self.seeds) == 1:
            return {self.seeds[0]: self.seeds[0] + 1}
        return dict(pairwise((*self.seeds, self.seeds[0])))

    @cached_property
    def starts(self) -> list[tuple[int, bool]]:
        """The starts that descents are made from: (seed, perturbed)."""
        every = dict.fromkeys([*self.seeds, *self.floor_seeds.values()])
        return [(s, False) for s in every] + [(s, True) for s in self.seeds]

    @cached_property
    def solos(self) -> list[Solo]:
        """The solo descents, rows of the arrays whose names begin with `solo_`."""
        controls = dict.fromkeys(c for group in self.groups for control in self.controls(group) for c in control)
        both = list(dict.fromkeys([*self.units, *controls]))
        rows = [Solo(u, s) for s in self.seeds for u in both]
        rows += [Solo(u, s) for s in self.floor_seeds.values() if s not in self.seeds for u in self.units]
        rows += [Solo(u, s, True) for s in self.seeds for u in self.units]
        # rows of one layer side by side: a batch takes a pass for each set of layers in it
        order = {la: k for k, la in enumerate(dict.fromkeys(r.unit.layer for r in rows))}
        return sorted(rows, key=lambda r: order[r.unit.layer])

    @cached_property
    def joints(self) -> list[tuple[int, int]]:
        """The joint descents, (place of the group, seed): rows of the arrays whose names begin with `joint_`."""
        return [(g, s) for s in self.seeds for g in range(len(self.groups))]

    def identity(self) -> dict[str, Any]:
        """Return what tells this run from any other, as plain JSON values."""
        names = "\n".join(self.labels)
        return {
            "model": self.network.identity(),
            "groups": {
                "count": len(self.groups),
                "first": self.labels[0],
                "last": self.labels[-1],
                "sha256": hashlib.sha256(names.encode()).hexdigest(),
            },
            "responses": list(self.responses),
            "balance": self.balance,
            "recipe": self.recipe.identity(),
            "seeds": list(self.seeds),
            "device": self.device.type,
            **({"command": self.command} if self.command else {}),
        }

    def waves(self) -> list[list[JointUnit]]:
        """Return the work units in two waves.

        Returns
        -------
        list of list of JointUnit
            The ground and the solo descents; then the joint descents, whose weights come from the solos.
        """
        rows = self.recipe.rows

        def batches(stage: str, count: int) -> list[JointUnit]:
            return [JointUnit(stage, first, min(first + rows, count)) for first in range(0, count, rows)]

        return [[JointUnit("ground"), *batches("solo", len(self.solos))], batches("joint", len(self.joints))]

    def cost(self, unit: JointUnit) -> float:
        """Return how much work a unit is.

        Parameters
        ----------
        unit : JointUnit
            One of the job's work units.

        Returns
        -------
        float
            Numbers computed in its forward passes, one pass for each set of layers.
        """
        if unit.stage == "ground":
            return 0.0
        rows = slice(unit.first, unit.last)
        if unit.stage == "solo":
            return self.pass_cost({(solo.unit.layer,) for solo in self.solos[rows]})
        return self.pass_cost({tuple(u.layer for u in self.groups[g]) for g, _ in self.joints[rows]})

    @property
    def disk_needed(self) -> int:
        """Bytes that the run will take on disk: arrays before compression, tables and figures."""
        return int(1.1 * self.array_bytes) + 400 * len(self.joints) + OWN_FILES

    def arrays(self) -> dict[str, ArraySpec]:
        """Return the arrays of the run folder; a chunk is what one batch makes."""
        rows, size, steps = self.recipe.rows, self.recipe.size, self.recipe.steps
        columns, units, members = len(self.columns), len(self.units), self.members
        solos, joints, starts = len(self.solos), len(self.joints), len(self.starts)
        points = len(interaction.simplex_lattice(members))
        pixels = ("channel", "y", "x")
        meanings = (("flag_values", list(range(len(STATUSES)))), ("flag_meanings", " ".join(STATUSES)))

        def spec(dims: str, *shape: int, chunk: int | None = None, dtype: str = "float32") -> ArraySpec:
            names = tuple(p for d in dims.split() for p in (pixels if d == "pixels" else (d,)))
            return ArraySpec(names, shape, (min(chunk or shape[0], shape[0]), *shape[1:]), dtype)

        def status(stage: str, count: int) -> ArraySpec:
            return ArraySpec((stage,), (count,), (min(rows, count),), "uint8", meanings)

        image = (3, size, size)
        found = {
            "null_images": spec("start pixels", starts, *image),
            "null": spec("start response", starts, columns),
            "null_units": spec("start unit", starts, units),
            "pink_images": spec("pink pixels", PINK, *image),
            "deviation": spec("response", columns, dtype="float64"),
            "solo_images": spec("solo pixels", solos, *image, chunk=rows),
            "solo_A": spec("solo response", solos, columns, chunk=rows),
            "solo_units": spec("solo unit", solos, units, chunk=rows),
            "solo_fraction": spec("solo response", solos, columns, chunk=rows),
            "solo_activation": spec("solo", solos, chunk=rows),
            "solo_curve": spec("solo step", solos, steps, chunk=rows),
            "solo_status": status("solo", solos),
            "joint_images": spec("joint pixels", joints, *image, chunk=rows),
            "joint_A": spec("joint response", joints, columns, chunk=rows),
            "joint_units": spec("joint unit", joints, units, chunk=rows),
            "joint_middle": spec("joint response", joints, columns, chunk=rows),
            "joint_weight": spec("joint member", joints, members, chunk=rows, dtype="float64"),
            "joint_blend": spec("joint point member", joints, points, members, chunk=rows),
            "joint_curve": spec("joint step member", joints, steps, members, chunk=rows),
            "joint_agreement": spec("joint step", joints, steps, chunk=rows),
            "joint_status": status("joint", joints),
        }
        for k, unit in enumerate(self.groups[0]):
            _, height, width = self.shape(unit.layer)
            letter = MEMBERS[k]
            found[f"joint_map_{letter}"] = spec(f"joint y_{letter} x_{letter}", joints, height, width, chunk=rows)
        return found

    def coords(self) -> dict[str, np.ndarray]:
        """Return the labels along the arrays' dimensions."""
        return {
            "start": np.array([f"seed={s}" + (" perturbed" if p else "") for s, p in self.starts]),
            "solo": np.array([str(s) for s in self.solos]),
            "joint": np.array([f"{self.labels[g]} seed={s}" for g, s in self.joints]),
            "unit": np.array([str(u) for u in self.units]),
            "member": np.array(list(MEMBERS[: self.members])),
            "response": np.array(self.columns),
            "step": np.arange(self.recipe.steps, dtype=np.int64),
            "channel": np.array(["red", "green", "blue"]),
        }


def neurons(unit: Unit, shape: Shape) -> int:
    """Return how many neurons a unit reads in a layer of `shape` (channels, height, width)."""
    channels, mask = unit.mask(shape)
    return len(channels) * shape[1] * shape[2] if mask is None else int(mask.sum())
