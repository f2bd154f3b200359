"""Add seeds until the excess of a response nonlinearity over its floor is known as precisely as asked for.

The job of such a run grows: its rows are ordered by seed, every seed begins a batch and a chunk, and those of a further
seed are appended to what is stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import pandas as pd

from featmap.errors import RecipeError
from featmap.interaction.job import JointJob, JointUnit, Solo
from featmap.optimize.limits import MAX_SEEDS, seeds_of
from featmap.optimize.recipe import Recipe
from featmap.optimize.schedule import require_integer
from featmap.stats.correlation import t_interval

AUTO = "auto"
"""Value of the setting `seeds` that stands for the defaults of `AutoSeeds`."""
LEAST_SEEDS = 5
"""Seeds that every group gets. With fewer, a spread that is small by chance ends a run too easily: of groups without an
excess 8 % then have a p-value below 0.05, with five 7 % (`tests/interaction/test_precision.py`)."""


@dataclass(frozen=True)
class AutoSeeds:
    """Rule by which seeds are added to a run of joint descents.

    Every group gets `LEAST_SEEDS` seeds, then one seed after another until the 95 % confidence interval of its excess,
    the response nonlinearity less its floor, is at most `width` wide, or `most` seeds are made. Of many pairs each ends
    by itself. The rule looks at the width alone, never at the excess or its sign.

    Parameters
    ----------
    width : float, default 0.05
        Full width of the interval, high less low: ``2 t(0.975, n - 1) s / sqrt(n)`` for n seeds with a standard
        deviation s of the excess. A share of the joint response, so that 0.05 is plus or minus 2.5 percentage points.
    most : int, default 20
        Largest number of seeds, `LEAST_SEEDS` or more.
    first : int, optional
        First seed. Default: the recipe's own.
    """

    width: float = 0.05
    most: int = 20
    first: int | None = None

    @staticmethod
    def parse(seeds: str | AutoSeeds) -> AutoSeeds:
        """Read a setting `seeds` that is neither seeds nor a number of them.

        Parameters
        ----------
        seeds : str or AutoSeeds
            "auto" or a rule.

        Returns
        -------
        AutoSeeds
            The checked rule.

        Raises
        ------
        RecipeError
            If it is another text than "auto", or the rule is out of range.
        """
        if isinstance(seeds, AutoSeeds):
            return seeds.checked()
        if seeds != AUTO:
            raise RecipeError(f"seeds {seeds!r}: give a number of seeds, the seeds themselves, or {AUTO!r}")
        return AutoSeeds()

    def start(self, recipe: Recipe) -> tuple[int, ...]:
        """Return the seeds that every group gets.

        Parameters
        ----------
        recipe : Recipe
            Recipe of the descents.

        Returns
        -------
        tuple of int
            `LEAST_SEEDS` of them.

        Raises
        ------
        RecipeError
            If one of the seeds that may follow is out of range.
        """
        first = recipe.default_seed if self.first is None else require_integer("seed", self.first)
        return seeds_of(range(first, first + self.most), recipe)[:LEAST_SEEDS]

    def checked(self) -> AutoSeeds:
        """Check the settings.

        Returns
        -------
        AutoSeeds
            The same.

        Raises
        ------
        RecipeError
            If one is out of range.
        """
        if isinstance(self.width, bool) or not isinstance(self.width, (int, float)) or not 0 < self.width < 1:
            raise RecipeError(
                f"width {self.width!r}: the interval's width is a share of the response; give a number between 0 and 1"
            )
        if not LEAST_SEEDS <= require_integer("most seeds", self.most) <= MAX_SEEDS:
            raise RecipeError(
                f"most seeds {self.most}: automatic seeds begin with {LEAST_SEEDS}; "
                f"give {LEAST_SEEDS} to {MAX_SEEDS:,}, or a number of seeds instead of {AUTO}"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """Describe the rule for the identity of a run.

        Returns
        -------
        dict
            Plain JSON values; the number of seeds that are made is a result and no part of it.
        """
        return {"width": float(self.width), "least": LEAST_SEEDS, "most": self.most}

    def choose(self, counts: Sequence[int], excess: np.ndarray, batch: int) -> tuple[int, ...] | None:
        """Choose the groups that get one more seed.

        Parameters
        ----------
        counts : sequence of int
            Number of seeds of each group; those that have not ended have the largest one.
        excess : numpy.ndarray
            Excess of the response nonlinearity over its floor, groups x seeds; NaN where undefined or not made.
        batch : int
            Groups are chosen in multiples of this number: a batch is filled with those groups that, among the ones made
            last, have the widest intervals.

        Returns
        -------
        tuple of int or None
            The new numbers; None where every group has ended.
        """
        n = max(counts)
        widths = np.array([interval_width(row) for row in excess])
        defined = np.isfinite(excess).any(1)
        last = np.array([count == n for count in counts])
        wide = last & defined & ~(widths <= self.width)
        if n >= self.most or not wide.any():
            return None
        # the widest first; groups whose width is unknown before all, those without statistics last
        order = np.argsort(np.where(defined, -np.nan_to_num(widths, nan=np.inf), np.inf), kind="stable")
        allowed = [int(g) for g in order if last[g]]
        chosen = set(allowed[: -(-int(wide.sum()) // batch) * batch])
        return tuple(count + (g in chosen) for g, count in enumerate(counts))

    def describe_end(self, counts: Sequence[int], summary: pd.DataFrame) -> str:
        """Say how many seeds were made, and why no more.

        Parameters
        ----------
        counts : sequence of int
            Number of seeds of each group.
        summary : pandas.DataFrame
            A row for each group, see `featmap.interaction.kinds.summarise`.

        Returns
        -------
        str
            One line.
        """
        widths = (summary["excess_high"] - summary["excess_low"]).to_numpy(dtype=float)
        defined = summary["excess"].notna().to_numpy()
        narrow = widths <= self.width
        what = "the 95 % interval of the excess over the floor"
        if len(summary) == 1:
            made = f"{counts[0]} seeds were made"
            if not defined[0]:
                return f"{made}, none with statistics, so that no more were added"
            size = f"{what} is {widths[0]:.2g} wide" if np.isfinite(widths[0]) else f"{what} is undefined"
            reason = f"at most {self.width:g} was asked for" if narrow[0] else f"{self.width:g} was asked for"
            return f"{made}, {'' if narrow[0] else 'the largest number allowed: '}{size} ({reason})"
        text = f"{_format_range(counts)} seeds were made of each pair: in {int(narrow.sum())} of {len(summary)} pairs "
        text += f"{what} is at most {self.width:g} wide"
        parts = [
            (int((defined & ~narrow).sum()), f"wider after {self.most} seeds, the largest number allowed"),
            (int((~defined).sum()), "without statistics"),
        ]
        return text + "".join(f"; {count} {words}" for count, words in parts if count)


def interval_width(excess: Sequence[float] | np.ndarray) -> float:
    """Compute the full width of the 95 % t-interval of a mean.

    Parameters
    ----------
    excess : sequence of float
        One value for each seed; those that are not finite are left out.

    Returns
    -------
    float
        High less low, 0 or more; NaN below three values.
    """
    interval = t_interval([float(v) for v in excess])
    return interval[1] - interval[0] if interval else float("nan")


@dataclass(frozen=True, kw_only=True)
class GrowingJob(JointJob):
    """A job of joint descents whose seeds are added one by one.

    Its images and responses are those of a job with a fixed number of seeds, bit by bit; only the order of the rows in
    the arrays differs.

    Parameters
    ----------
    network, recipe, seeds, responses, device, command, groups, balance
        See `featmap.interaction.job.JointJob`; `seeds` are those so far, one after another.
    auto : AutoSeeds
        Rule by which seeds are added.
    counts : tuple of int
        Number of seeds of each group, the first ones of `seeds`.
    """

    auto: AutoSeeds
    counts: tuple[int, ...] = ()

    @staticmethod
    def of(job: JointJob, auto: AutoSeeds) -> GrowingJob:
        """Let a job grow.

        Parameters
        ----------
        job : JointJob
            The checked job, with the seeds that every group gets.
        auto : AutoSeeds
            Rule by which seeds are added.

        Returns
        -------
        GrowingJob
            At its start.
        """
        return GrowingJob(**{f.name: getattr(job, f.name) for f in fields(job)}, auto=auto).least

    def with_counts(self, counts: tuple[int, ...]) -> GrowingJob:
        """Return this job with other numbers of seeds.

        Parameters
        ----------
        counts : tuple of int
            Number of seeds of each group.

        Returns
        -------
        GrowingJob
            With as many seeds as the largest of them.
        """
        first = self.seeds[0]
        return replace(self, seeds=tuple(range(first, first + max(counts))), counts=counts)

    def with_recorded(self, recorded: Any) -> GrowingJob:
        """Return this job as an earlier call has left it.

        Parameters
        ----------
        recorded : list of int or None
            Numbers of seeds in the manifest of its run.

        Returns
        -------
        GrowingJob
            With these numbers, or at its start where they are missing or not possible.
        """
        counts = tuple(recorded) if isinstance(recorded, list) else ()
        possible = all(isinstance(n, int) and LEAST_SEEDS <= n <= self.auto.most for n in counts)
        return self.with_counts(counts) if possible and len(counts) == len(self.groups) else self.least

    @property
    def least(self) -> GrowingJob:
        """The job at its start, with the seeds that every group gets."""
        return self.with_counts((LEAST_SEEDS,) * len(self.groups))

    @property
    def most(self) -> GrowingJob:
        """The job at its largest, if no group ends before."""
        return self.with_counts((self.auto.most,) * len(self.groups))

    def seeds_of(self, group: int) -> tuple[int, ...]:
        """Return the seeds of one group's joint descents.

        Parameters
        ----------
        group : int
            Index of the group.

        Returns
        -------
        tuple of int
            The first ones of the job.
        """
        return self.seeds[: self.counts[group]]

    @cached_property
    def starts(self) -> list[tuple[int, bool]]:
        """Starts of the descents, (seed, perturbed), by seed."""
        return [(s, perturbed) for s in self.seeds for perturbed in (False, True)]

    @cached_property
    def solos(self) -> list[Solo]:
        """Solo descents, by seed, and of each seed by layer."""
        # sorting is stable
        return sorted(super().solos, key=lambda solo: self.seeds.index(solo.seed))

    @cached_property
    def joints(self) -> list[tuple[int, int]]:
        """Joint descents, by seed; each is (index of the group, seed)."""
        return [(g, s) for g, s in super().joints if s in self.seeds_of(g)]

    @cached_property
    def chunk_rows(self) -> dict[str, int]:
        """Rows of a chunk of each stage's arrays: every seed begins a chunk."""

        def divisor(count: int) -> int:
            return max(d for d in range(1, self.recipe.rows + 1) if count % d == 0)

        return {"start": 2, "solo": divisor(len(self.solos) // len(self.seeds)), "joint": divisor(len(self.groups))}

    def identity(self) -> dict[str, Any]:
        """Collect everything that the run's numbers depend on.

        Returns
        -------
        dict
            Plain JSON values. Under "seeds" the first one, under "auto" the rule: the number of seeds is a result.
        """
        return super().identity() | {"seeds": [self.seeds[0]], "auto": self.auto.identity()}

    def waves(self) -> list[list[JointUnit]]:
        """List the work units in two waves.

        Returns
        -------
        list of list of JointUnit
            As in `JointJob.waves`; no unit has rows of two seeds, and a job with more seeds begins with the same units.
        """

        def batches(stage: str, seeds: Counter[int]) -> list[JointUnit]:
            rows = self.recipe.rows // self.chunk_rows[stage] * self.chunk_rows[stage]
            bounds = accumulate((seeds[s] for s in self.seeds), initial=0)
            return [
                JointUnit(stage, first, min(first + rows, end))
                for begin, end in pairwise(bounds)
                for first in range(begin, end, rows)
            ]

        ground = [JointUnit("ground", k) for k in range(0, len(self.starts), self.chunk_rows["start"])]
        solos = batches("solo", Counter(solo.seed for solo in self.solos))
        return [[*ground, *solos], batches("joint", Counter(seed for _, seed in self.joints))]

    @property
    def disk_needed(self) -> int:
        """Bytes of the run on disk, at its largest."""
        return super(GrowingJob, self.most).disk_needed

    def grown(self, excess: np.ndarray) -> GrowingJob | None:
        """Add a seed for the groups that are not known precisely enough.

        Parameters
        ----------
        excess : numpy.ndarray
            Excess of the response nonlinearity over its floor, groups x seeds, see
            `featmap.interaction.statistics.JointArrays.excess`.

        Returns
        -------
        GrowingJob or None
            None where every group has ended.
        """
        counts = self.auto.choose(self.counts, excess, self.chunk_rows["joint"])
        return self.with_counts(counts) if counts else None


def end_notes(job: JointJob, summary: pd.DataFrame) -> list[str]:
    """Say how a run with automatic seeds ended.

    Parameters
    ----------
    job : JointJob
        Job of any run.
    summary : pandas.DataFrame
        Summary of its groups.

    Returns
    -------
    list of str
        One line, or none where the number of seeds was given.
    """
    return [job.auto.describe_end(job.counts, summary)] if isinstance(job, GrowingJob) else []


def seed_range(job: JointJob) -> str:
    """Format how many seeds the groups of a job have.

    Parameters
    ----------
    job : JointJob
        Job of any run.

    Returns
    -------
    str
        Such as "5" or "5 to 9".
    """
    return _format_range([len(job.seeds_of(g)) for g in range(len(job.groups))])


def _format_range(counts: Sequence[int]) -> str:
    """Format the smallest and the largest of some numbers."""
    return " to ".join(str(n) for n in dict.fromkeys((min(counts), max(counts))))


def estimated_jobs(job: JointJob) -> list[tuple[str, JointJob]]:
    """List the jobs whose estimates say how long a run may take.

    Parameters
    ----------
    job : JointJob
        Job of any run.

    Returns
    -------
    list of (str, JointJob)
        Words before the estimate, and the job: of automatic seeds at its start and at its largest.
    """
    if not isinstance(job, GrowingJob):
        return [("", job)]
    return [(f"at {words} {len(j.seeds)} seeds, ", j) for words, j in (("least", job.least), ("most", job.most))]
