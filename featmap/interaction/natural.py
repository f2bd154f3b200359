"""What photographs say of a pair: whether both respond together, and whether their effects add up.

Formulas of responding together are in `featmap.stats.top_responses`, of nonlinearity in `featmap.stats.interaction`.
All columns are of a pair, not of a seed; what is undefined is NaN, and `photographs_note` says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, cast

import numpy as np
import pandas as pd
from scipy import stats

from featmap.interaction.conclusion import (
    DIFFERENCE,
    JOINT_AGREEMENT,
    NATURAL,
    PHOTOGRAPH_COLUMNS,
    explain_undefined,
)
from featmap.interaction.job import SMALL, Group
from featmap.interaction.kinds import OK
from featmap.interaction.statistics import JointArrays
from featmap.rng import generator
from featmap.stats import correlation, interaction, reliability, top_responses

STRONG, WEAK = 0.75, 0.5
"""Ranks, as shares of all photographs, above which a feature is strong on a photograph and up to which it is weak."""
MOST, LEAST = 16, 8
"""Photographs whose mean response is taken, and fewest of them."""
SPLITS = 99
"""Random splits or draws over which floors are taken, and pairs of other features that a pair is compared with."""


@dataclass(frozen=True, eq=False)
class PhotographSets:
    """Photographs by what two features do on them.

    A feature is strong on the quarter of the photographs with its largest responses, and weak on the half with its
    smallest.

    Parameters
    ----------
    both : numpy.ndarray
        Positions of photographs on which both are strong, the highest minimum of the two ranks first, up to `MOST`.
    alone : tuple of (numpy.ndarray, numpy.ndarray)
        For each feature, those on which it is strong and the other is weak, the highest minimum of its rank and the
        other's reversed rank first, up to twice `MOST`.
    neither : numpy.ndarray
        Those on which both are weak.
    """

    both: np.ndarray
    alone: tuple[np.ndarray, np.ndarray]
    neither: np.ndarray

    @property
    def compared(self) -> list[np.ndarray]:
        """Positions of both, of each alone, up to `MOST`, and of neither."""
        return [self.both, *(alone[:MOST] for alone in self.alone), self.neither]

    @property
    def lack(self) -> str:
        """Why means over the sets say nothing; "" where they do."""
        names = ("both are strong", "only a is strong", "only b is strong", "neither is strong")
        for name, found in zip(names, (self.both, *self.alone, self.neither), strict=True):
            if len(found) < LEAST:
                return f"{name} on {len(found)} photographs, {LEAST} are needed"
        return ""


def select_photographs(one: np.ndarray, two: np.ndarray) -> PhotographSets:
    """Select photographs on which both, one or none of two features are strong.

    Parameters
    ----------
    one, two : numpy.ndarray
        Responses of the two features to N photographs.

    Returns
    -------
    PhotographSets
        Ranks are those of the responses, (rank - 1/2) / N with ties sharing their mean rank; photographs of one rank
        keep their order. Empty sets where a response is not finite.
    """
    if not (np.isfinite(one).all() and np.isfinite(two).all()):
        nothing = np.empty(0, dtype=np.int64)
        return PhotographSets(nothing, (nothing, nothing), nothing)
    a, b = ((stats.rankdata(values) - 0.5) / max(len(values), 1) for values in (one, two))

    def first(chosen: np.ndarray, rank: np.ndarray, most: int) -> np.ndarray:
        order = np.argsort(-rank, kind="stable")
        return order[chosen[order]][:most]

    return PhotographSets(
        first((a > STRONG) & (b > STRONG), np.minimum(a, b), MOST),
        (
            first((a > STRONG) & (b <= WEAK), np.minimum(a, 1 - b), 2 * MOST),
            first((b > STRONG) & (a <= WEAK), np.minimum(b, 1 - a), 2 * MOST),
        ),
        np.flatnonzero((a <= WEAK) & (b <= WEAK)),
    )


def natural_nonlinearity(responses: np.ndarray, sets: PhotographSets, key: str) -> dict[str, float]:
    """Compute the response nonlinearity of photographs on which both are strong.

    With m the mean over photographs less the mean over those on which neither feature is strong, it is the share of
    ``|m_both|^2`` that no non-negative combination of m_a and m_b explains, as in
    `featmap.stats.interaction.response_nonlinearity`. Photographs differ in more than two features, which the limits
    allow for.

    Parameters
    ----------
    responses : numpy.ndarray
        Responses of the probed features to N photographs over their deviations, N x D, of which those without a
        deviation are left out.
    sets : PhotographSets
        Their selection.
    key : str
        Name of the pair, which seeds the generator of splits.

    Returns
    -------
    dict of float
        `natural_nonlinearity` in [0, 1]. `natural_floor`: the same for two random halves of the photographs on which
        one feature alone is strong, one half in the place of the joint response and the other its only part; mean over
        `SPLITS` splits and both features. A half has as many photographs as are taken of both where there are enough,
        and fewer otherwise, which makes the floor too high. `natural_floor_high`: 95th percentile of the splits.
        `natural_ceiling`: the same as the first with random photographs on which neither is strong in the place of both
        parts, mean over draws.
        `natural_excess`: the first less its floor. All NaN where a set has fewer than `LEAST` photographs.
    """
    if sets.lack:
        return dict.fromkeys(NATURAL, float("nan"))
    base = responses[sets.neither].mean(axis=0)

    def mean(positions: np.ndarray) -> np.ndarray:
        found: np.ndarray = responses[positions].mean(axis=0) - base
        return found

    joint, sizes = mean(sets.both), [min(MOST, len(alone)) for alone in sets.alone]
    value = interaction.response_nonlinearity(
        joint, np.stack([mean(alone[:n]) for alone, n in zip(sets.alone, sizes, strict=True)])
    )
    rng = generator("natural nonlinearity", key)
    floors, ceilings = [], []
    for _ in range(SPLITS):
        halves = []
        for alone in sets.alone:
            mixed, half = rng.permutation(alone), min(len(sets.both), len(alone) // 2)
            halves.append(interaction.response_nonlinearity(mean(mixed[:half]), mean(mixed[half : 2 * half])[None]))
        floors.append(np.mean(halves))
        drawn = [mean(rng.permutation(sets.neither)[:n]) for n in sizes]
        ceilings.append(interaction.response_nonlinearity(joint, np.stack(drawn)))
    floor = float(np.mean(floors))
    return dict(
        zip(
            NATURAL,
            (value, floor, float(np.percentile(floors, 95)), float(np.mean(ceilings)), value - floor),
            strict=True,
        )
    )


def natural_difference(
    responses: np.ndarray, activations: np.ndarray, sets: PhotographSets, image: np.ndarray, key: str
) -> dict[str, float]:
    """Compute the second difference of photographs of both, of either and of neither.

    With m the mean over photographs less that over photographs on which neither is strong, it is
    ``m_both - s_a m_a - s_b m_b``. The scales s are those for which the two units' own activations add up, so that
    a unit that is stronger on photographs of both than on its own leaves nothing in a network that adds; near 1.

    Parameters
    ----------
    responses : numpy.ndarray
        Responses of the probed features to N photographs over their deviations, N x D.
    activations : numpy.ndarray
        Activations of the two units, 2 x N.
    sets : PhotographSets
        Selected photographs of the pair.
    image : numpy.ndarray
        Second difference of the responses to the solo images, D.
    key : str
        Name of the pair, which seeds the generator of draws.

    Returns
    -------
    dict of float
        `natural_difference`: its norm over that of m_both, 0 or more. `natural_difference_floor`: the same of the
        deviations of resampled means from their means, beside what follows the units' activations; photographs leave it
        in a network that adds, where those of the four kinds differ in the two units alone. The share of draws with at
        least this norm is `natural_difference_p`, ``(1 + count) / (draws + 1)``: photographs of both that differ in
        something else, too, make it small without any interaction.
        `natural_difference_agreement`: Spearman's correlation over features with `image`. NaN where a set is too
        small, or the activations do not tell the sets apart.
    """
    if sets.lack:
        return dict.fromkeys(DIFFERENCE, float("nan"))
    rows = sets.compared
    levels = np.stack([activations[:, at].mean(axis=1) for at in rows])
    sides = (levels[1:3] - levels[3]).T
    if abs(np.linalg.det(sides)) <= correlation.DIFFERENCE_FLOOR * np.square(sides).max():
        return dict.fromkeys(DIFFERENCE, float("nan"))
    scales = np.linalg.solve(sides, levels[0] - levels[3])
    weights = np.array([1, *-scales, scales.sum() - 1])
    means, rng = [responses[at].mean(axis=0) for at in rows], generator("natural difference", key)
    difference, joint = weights @ np.stack(means), float(np.linalg.norm(means[0] - means[3]))
    value = interaction.quotient(float(np.linalg.norm(difference)), joint, float(np.linalg.norm(means[0])))
    if not np.isfinite(value):
        return dict.fromkeys(DIFFERENCE, float("nan"))
    # what follows the units' own activations cancels by the scales, in draws as in the difference
    slopes = np.linalg.solve(sides.T, np.stack([means[1] - means[3], means[2] - means[3]]))
    drawn = []
    for at in rows:
        rest = responses[at] - activations[:, at].T @ slopes
        # means of n rows drawn from n vary by (n - 1) / n of what means of n photographs do
        drawn.append((reliability.resample_means(rest, rng) - rest.mean(axis=0)) * np.sqrt(len(at) / (len(at) - 1)))
    lengths = np.linalg.norm(np.tensordot(weights, np.stack(drawn), 1), axis=1)
    above = int((lengths >= np.linalg.norm(difference) * (1 - correlation.FLOOR)).sum())
    agreement = correlation.spearman(difference, image) if np.isfinite(image).all() else float("nan")
    found = (value, float(lengths.mean()) / joint, (1 + above) / (len(lengths) + 1), agreement)
    return dict(zip(DIFFERENCE, found, strict=True))


class _AddedTo(Protocol):
    """The part of `featmap.interaction.photographs.PhotographJointJob` that is needed here."""

    @property
    def middles(self) -> list[int]:
        """Positions of the photographs with second derivatives among those that solo images are added to."""

    @property
    def base_seeds(self) -> tuple[int, ...]:
        """Seeds of the solo images that are added, and for which second derivatives are taken at images."""

    def base_seed(self, k: int) -> int:
        """Return the seed of the solo images that are added to a photograph."""


class PhotographStatistics:
    """Statistics of pairs over photographs, computed from a finished run.

    Parameters
    ----------
    arrays : JointArrays
        Arrays of the run.
    bases : sequence of int
        Positions of the photographs to which solo images were added.
    """

    def __init__(self, arrays: JointArrays, bases: Sequence[int]) -> None:
        self.job, self.added = arrays.job, cast(_AddedTo, arrays.job)
        self.columns, self.bases, self.joints = arrays.unit_columns, bases, arrays
        self.deviation = np.asarray(arrays.arrays["deviation"][...])
        self.responses = np.asarray(arrays.arrays["photograph_A"][...])
        self.activations = np.asarray(arrays.arrays["photograph_units"][...])
        self.alone = np.asarray(arrays.arrays["alone_A"][...])
        self._rows = arrays.image  # keeps the chunk, which neighbouring groups share
        nothing = np.zeros(len(self.deviation))
        self.standardised = interaction.standardise_responses(self.responses, nothing, self.deviation)
        self.fires: list[np.ndarray] = []
        places = arrays.arrays["photograph_places"]
        for first in range(0, places.shape[1], places.chunks[1]):  # all maps of a large run would not fit
            block = np.asarray(places[:, first : first + places.chunks[1]])
            self.fires += [top_responses.firing_places(block[:, k]) for k in range(block.shape[1])]

    @cached_property
    def others(self) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of probed features, K x 2, and their photographs' contrasts, K x D'."""
        count, rng = self.standardised.shape[1], generator("other pairs of features", self.standardised.shape[1])
        pairs, profiles = list[np.ndarray](), list[np.ndarray]()
        for _ in range(2 * SPLITS if count > 1 else 0):
            pair = rng.choice(count, 2, replace=False)
            sets = select_photographs(*self.standardised[:, pair].T)
            if not sets.lack and len(pairs) < SPLITS:
                both, *alone = (self.standardised[at].mean(axis=0) for at in sets.compared[:3])
                pairs.append(pair)
                profiles.append(both - np.mean(alone, axis=0))
        return np.array(pairs, dtype=int).reshape(-1, 2), np.array(profiles).reshape(len(pairs), count)

    def of_group(self, g: int) -> dict[str, Any]:
        """Compute all statistics of one pair.

        Parameters
        ----------
        g : int
            Position of the group in the job.

        Returns
        -------
        dict of str to float, int or str
            By the names of the columns; see `add_columns`.
        """
        a, b = (self.columns[unit] for unit in self.job.groups[g])
        one, two = self.activations[:, a].astype(np.float64), self.activations[:, b].astype(np.float64)
        together = {
            "photograph_correlation": top_responses.response_correlation(one, two),
            "photograph_lift": top_responses.strong_lift(one, two),
            "place_lift": top_responses.place_lift(self.fires[a], self.fires[b]),
        }
        sets = select_photographs(one, two)
        row: dict[str, Any] = {name: found.value for name, found in together.items()}
        row |= {f"{name}_p": found.p for name, found in together.items()}
        row |= {
            "photographs": len(one),
            "photographs_both": len(sets.both),
            **self._natural(sets, g),
            **self._together(sets, np.stack([one, two]), g),
            **self._direct(g),
            "second_derivative_agreement": self._agree_at_images(g),
        }
        return row | {"photographs_note": explain_undefined(row, sets.lack, self.fires[a].shape[1])}

    def _natural(self, sets: PhotographSets, g: int) -> dict[str, float]:
        """Compute the natural nonlinearity of a pair with its limits."""
        return natural_nonlinearity(self.standardised, sets, self.job.labels[g])

    def _together(self, sets: PhotographSets, activations: np.ndarray, g: int) -> dict[str, float]:
        """Compare photographs of both with the joint image over features that neither unit reads."""
        job, label = self.job, self.job.labels[g]
        own = {f"{u.layer}:{c}" for u in job.groups[g] for c in u.mask(job.shape(u.layer))[0]}
        varying = [name for name, d in zip(job.columns, self.deviation, strict=True) if np.isfinite(d)]
        kept = np.array([name not in own for name in varying], dtype=bool)
        responses, seeds = self.standardised[:, kept], {self.added.base_seed(k) for k in range(len(self.bases))}
        contrast, second = (profile[kept] for profile in self.joints.joint_profiles(g, sorted(seeds)))
        found, unrelated = reliability.TestedInterval(float("nan")), float("nan")
        if not sets.lack:
            found = reliability.contrast_correlation(responses, sets.compared[:3], contrast, label)
            pairs, profiles = self.others
            foreign = kept[pairs].all(axis=1)
            if np.isfinite(found.value):
                unrelated = _mean(reliability.rank_correlations(profiles[foreign][:, kept], contrast).tolist())
        agreement = (found.value, found.low, found.high, found.p, unrelated, int(kept.sum()))
        difference = natural_difference(responses, activations, sets, second, label)
        return dict(zip(JOINT_AGREEMENT, agreement, strict=True)) | difference

    def _agree_at_images(self, g: int) -> float:
        """Correlate a pair's second derivative with its second difference over features: means over seeds with both."""
        joints, bent = self.joints, dict[int, np.ndarray]()
        for seed in self.added.base_seeds:
            row = joints.joint_rows.get((g, seed))
            if row is not None and joints.status(row) == OK:
                parts = [joints.solo_responses(unit, seed, array="solo_fraction") for unit in self.job.groups[g]]
                derived = joints.second_derivative(row)
                if interaction.curvature(derived, np.stack(parts)) > 0:
                    bent[seed] = derived
        if not bent:
            return float("nan")
        _, difference = joints.joint_profiles(g, list(bent))
        return correlation.spearman(difference, np.mean(list(bent.values()), axis=0))

    def _direct(self, g: int) -> dict[str, Any]:
        """Compute the mixed differences of a pair over the photographs to which its solo images are added."""
        group: Group = self.job.groups[g]
        one, two = (self.alone[self.columns[unit]].astype(np.float64) for unit in group)
        mixed, cross, second = (
            self._rows(name, g).astype(np.float64) for name in ("mixed_A", "cross_A", "derivative_A")
        )
        defined = [int(k) for k in np.flatnonzero(np.isfinite(mixed).all(axis=1))]
        deviation, varies = self.deviation, np.isfinite(self.deviation)
        middles, derived = self.added.middles, dict[int, np.ndarray]()
        differences = dict[int, np.ndarray]()
        sizes, signs, curvatures, hessians = [], [], [], []
        for k in defined:
            base = self.responses[self.bases[k]].astype(np.float64)
            whole, first, last = (
                interaction.standardise_responses(r, base, deviation) for r in (mixed[k], one[k, 0], two[k, 0])
            )
            singles = np.stack([first, last])
            found = interaction.second_difference(whole, singles, singles.sum(0), deviation)
            sizes.append(found.size if found.feature is not None else 0.0 * found.size)
            signs.append(found.sign)
            differences[k] = whole - singles.sum(0)
            slopes = np.stack([(r[k, 1] - r[k, 2])[varies] / deviation[varies] / (2 * SMALL) for r in (one, two)])
            central = cross[k][varies] / deviation[varies] / (2 * SMALL) ** 2
            curvatures.append(interaction.curvature(central, slopes, correlation.DIFFERENCE_FLOOR / SMALL**2))
            if k in middles:
                derived[k] = second[middles.index(k)][varies] / deviation[varies]
                hessians.append(interaction.curvature(derived[k], singles))
        bent = [k for k, size in zip(derived, hessians, strict=True) if size > 0]
        row: dict[str, Any] = {
            **_interval("direct", sizes),
            "direct_images": len(defined),
            "direct_sign": float("nan"),
            "direct_at": "",
            **_interval("direct_balance", signs),
            "direct_curvature": _mean(curvatures),
            "direct_hessian": _mean(hessians) if bent else float("nan"),
            "direct_hessian_images": len(bent),
            "direct_agreement": float("nan"),
            "direct_features": int(varies.sum()),
        }
        if np.isfinite(row["direct"]) and differences:
            row["direct_sign"] = 0.0
            mean = np.mean(list(differences.values()), axis=0)
            if row["direct"] > 0:
                largest = int(np.abs(mean).argmax())
                row["direct_sign"] = float(np.sign(mean[largest]))
                row["direct_at"] = self.job.columns[int(np.flatnonzero(varies)[largest])]
                if bent:
                    same, exact = (np.mean([found[k] for k in bent], axis=0) for found in (differences, derived))
                    row["direct_agreement"] = correlation.spearman(same, exact)
        return row


def _interval(name: str, values: list[float]) -> dict[str, float]:
    """Average values over photographs, with the t-interval of the mean."""
    low, high = correlation.t_interval(values) or (float("nan"), float("nan"))
    return {name: _mean(values), f"{name}_low": low, f"{name}_high": high}


def _mean(values: list[float]) -> float:
    """Average the finite values; NaN without one."""
    finite = [v for v in values if np.isfinite(v)]
    return float(np.mean(finite)) if finite else float("nan")


def add_columns(
    summary: pd.DataFrame, arrays: JointArrays, bases: Sequence[int], watch: Callable[[int, int], None]
) -> pd.DataFrame:
    """Add the statistics over photographs to the summary of a run.

    Parameters
    ----------
    summary : pandas.DataFrame
        A row for each group, see `featmap.interaction.kinds.summarise`.
    arrays : JointArrays
        Arrays of the run.
    bases : sequence of int
        Positions of the photographs to which solo images were added.
    watch : callable
        Called with the groups done and their total.

    Returns
    -------
    pandas.DataFrame
        The summary with the columns

        - `photographs`: their number;
        - `photograph_correlation`, `photograph_lift`, `place_lift`, each with `_p`: responding together, see
          `featmap.stats.top_responses`; and `photograph_correlation_q`, p adjusted for the false discovery rate;
        - `photographs_both` (photographs on which both are strong, at most `MOST`), and the values of
          `natural_nonlinearity`;
        - `joint_agreement`: over probed features that neither unit reads, the rank correlation of their responses to
          photographs of both, less those to photographs of either one, with their responses to the joint image, less
          those to the solo images; with interval and p, see `featmap.stats.reliability.contrast_correlation`;
          `joint_agreement_others`, the mean of the same for the photographs of other pairs of probed features, up to
          `SPLITS`, which is what any pair would share; `joint_agreement_features`, their number;
        - the values of `natural_difference`;
        - `direct`: ``|f(x + d_a + d_b) - f(x + d_a) - f(x + d_b) + f(x)|`` over the norm of the sum of the single
          effects f(x + d) - f(x), f the probed features' responses in standard deviations, x a photograph and d a solo
          image less its null image, of `LENGTH`; the mean over `direct_images` photographs, with the 95 % t-interval
          `direct_low` to `direct_high`. 0 where the effects add up. `direct_at` is the feature whose mean difference is
          largest and `direct_sign` that difference's sign. `direct_balance`, with the t-interval over photographs: the
          balance of more against less over all features, see `featmap.stats.interaction.SecondDifference`.
          `direct_curvature`: the second derivative at x by central differences, over the derivatives along both.
          `direct_hessian`: as `direct`, with the second derivative by automatic differentiation, at
          x + (d_a + d_b) / 2, in the place of the difference, see
          `featmap.optimize.responses.Probe.mixed_derivatives`; equal where responses are quadratic. Undefined unless
          it is above rounding error on a photograph (on `direct_hessian_images` of half of them).
          `direct_agreement`: the rank correlation of the two, means over photographs, over all `direct_features`;
        - `second_derivative_agreement`: the same between images: the rank correlation, over all features, of the
          second derivative with the second difference, means over the seeds with a second derivative above rounding
          error. `second_derivative`, its norm over that of r_ab as that of the second difference, is a statistic of
          each seed, see `featmap.interaction.statistics.JointArrays`;
        - `photographs_note`: why something is undefined.
    """
    found, count = PhotographStatistics(arrays, bases), len(arrays.job.groups)
    rows = []
    for g in range(count):
        rows.append(found.of_group(g))
        if g % 16 == 0:
            watch(g, count)
    columns = pd.DataFrame(rows, index=summary.index, columns=list(PHOTOGRAPH_COLUMNS))
    columns["photograph_correlation_q"] = interaction.q_values(
        columns["photograph_correlation_p"].to_numpy(dtype=float)
    )
    return pd.concat([summary, columns], axis=1)
