"""What photographs say of a pair: whether both respond together, and whether their effects add up.

Formulas of responding together are in `featmap.stats.top_responses`, of nonlinearity in `featmap.stats.interaction`.
All columns are of a pair, not of a seed; what is undefined is NaN, and `photographs_note` says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from featmap.interaction.conclusion import NATURAL, PHOTOGRAPH_COLUMNS
from featmap.interaction.job import SMALL, Group
from featmap.interaction.statistics import JointArrays
from featmap.rng import generator
from featmap.stats import correlation, interaction, top_responses
from featmap.stats.correlation import column_moments, cosines
from featmap.stats.top_responses import LEAST_PAIRED

STRONG, WEAK = 0.75, 0.5
"""Ranks, as shares of all photographs, above which a feature is strong on a photograph and up to which it is weak."""
MOST, LEAST = 16, 8
"""Photographs whose mean response is taken, and fewest of them."""
SPLITS = 99
"""Random splits or draws over which floors are taken."""


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
    def lack(self) -> str:
        """Why there is no natural nonlinearity; "" where there is one."""
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
        self.job, self.columns, self.bases = arrays.job, arrays.unit_columns, bases
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
            **self._direct(g),
        }
        return row | {"photographs_note": _explain(row, sets, self.fires[a].shape[1])}

    def _natural(self, sets: PhotographSets, g: int) -> dict[str, float]:
        """Compute the natural nonlinearity of a pair with its limits."""
        return natural_nonlinearity(self.standardised, sets, self.job.labels[g])

    def _direct(self, g: int) -> dict[str, Any]:
        """Compute the mixed differences of a pair over the photographs to which its solo images are added."""
        group: Group = self.job.groups[g]
        one, two = (self.alone[self.columns[unit]].astype(np.float64) for unit in group)
        mixed, cross = (self._rows(name, g).astype(np.float64) for name in ("mixed_A", "cross_A"))
        defined = [int(k) for k in np.flatnonzero(np.isfinite(mixed).all(axis=1))]
        deviation, varies = self.deviation, np.isfinite(self.deviation)
        sizes, curvatures, differences = [], [], []
        for k in defined:
            base = self.responses[self.bases[k]].astype(np.float64)
            whole, first, second = (
                interaction.standardise_responses(r, base, deviation) for r in (mixed[k], one[k, 0], two[k, 0])
            )
            singles = np.stack([first, second])
            found = interaction.second_difference(whole, singles, singles.sum(0), deviation)
            sizes.append(found.size if found.feature is not None else 0.0 * found.size)
            differences.append(whole - singles.sum(0))
            slopes = np.stack([(r[k, 1] - r[k, 2])[varies] / deviation[varies] / (2 * SMALL) for r in (one, two)])
            curvatures.append(curvature(cross[k][varies] / deviation[varies] / (2 * SMALL) ** 2, slopes))
        interval = correlation.t_interval(sizes) or (float("nan"), float("nan"))
        row: dict[str, Any] = {
            "direct": _mean(sizes),
            "direct_low": interval[0],
            "direct_high": interval[1],
            "direct_images": len(defined),
            "direct_sign": float("nan"),
            "direct_at": "",
            "direct_curvature": _mean(curvatures),
        }
        if np.isfinite(row["direct"]) and differences:
            row["direct_sign"] = 0.0
            mean = np.mean(differences, axis=0)
            if row["direct"] > 0:
                largest = int(np.abs(mean).argmax())
                row["direct_sign"] = float(np.sign(mean[largest]))
                row["direct_at"] = self.job.columns[int(np.flatnonzero(varies)[largest])]
        return row


def _explain(row: dict[str, Any], sets: PhotographSets, places: int) -> str:
    """Say why statistics of a pair are undefined; "" where none is."""
    few = row["photographs"] < LEAST_PAIRED
    place = "there is one place only" if places < 2 else "no pairing of photographs has both fire at one place"
    reasons = {
        "photograph_correlation": "a unit's responses do not vary or are not finite",
        "photograph_lift": f"a unit is nowhere above its {top_responses.STRONG}th percentile",
        "place_lift": place,
        "natural_nonlinearity": sets.lack or "the response to photographs of both is that to photographs of neither",
        "direct": "the single effects cancel" if row["direct_images"] else "a solo descent did not rise",
    }
    if few:
        together = ("photograph_correlation", "photograph_lift", "place_lift", "natural_nonlinearity")
        reasons |= dict.fromkeys(together, f"{row['photographs']} photographs, {LEAST_PAIRED} are needed")
    return "; ".join(dict.fromkeys(text for name, text in reasons.items() if np.isnan(row[name])))


def _mean(values: list[float]) -> float:
    """Average the finite values; NaN without one."""
    finite = [v for v in values if np.isfinite(v)]
    return float(np.mean(finite)) if finite else float("nan")


def curvature(cross: np.ndarray, slopes: np.ndarray) -> float:
    """Compute the size of the mixed second derivative along two directions.

    For a function with a second derivative the central difference is d_a' H d_b, the Hessian between the two
    directions, but for the fourth order in the step. A network of ReLUs and max pooling is linear almost everywhere and
    its Hessian zero; the central difference is the mean of the mixed derivative over the square of the four points, in
    which the kinks between linear pieces count.

    Parameters
    ----------
    cross : numpy.ndarray
        Central mixed difference of each probed feature, over the squared step: D.
    slopes : numpy.ndarray
        Central difference along each direction, over the step: 2 x D.

    Returns
    -------
    float
        ``|cross| / |slopes_a + slopes_b|``, 0 or more; 0 where no feature's difference is above rounding error. NaN
        where the slopes cancel.
    """
    if not (np.isfinite(cross).all() and np.isfinite(slopes).all()) or not cross.size:
        return float("nan")
    largest = max(float(np.linalg.norm(part)) for part in slopes)
    size = interaction.quotient(float(np.linalg.norm(cross)), float(np.linalg.norm(slopes.sum(0))), largest)
    return size if np.abs(cross).max() > correlation.DIFFERENCE_FLOOR / SMALL**2 * largest else 0.0 * size


def add_columns(
    summary: pd.DataFrame, arrays: JointArrays, bases: Sequence[int], watch: Callable[[int, int], None]
) -> pd.DataFrame:
    """Add the statistics over photographs to the summary of a run.

    Parameters
    ----------
    summary : pandas.DataFrame
        A row for each group, see `featmap.interaction.statistics.summarise`.
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
        - `direct`: ``|f(x + d_a + d_b) - f(x + d_a) - f(x + d_b) + f(x)|`` over the norm of the sum of the single
          effects f(x + d) - f(x), f the probed features' responses in standard deviations, x a photograph and d a solo
          image less its null image, of `LENGTH`; the mean over `direct_images` photographs, with the 95 % t-interval
          `direct_low` to `direct_high`. 0 where the effects add up. `direct_at` is the feature whose mean difference is
          largest and `direct_sign` that difference's sign; `direct_curvature` the same ratio for `curvature`;
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


@dataclass(frozen=True, eq=False)
class PhotographResponses:
    """Responses of two layers' features to P photographs.

    Parameters
    ----------
    first, second : numpy.ndarray
        Responses of the N features of the first and the M of the second layer, P x N and P x M.
    places : numpy.ndarray
        Correlation of the features' activation maps over all places of all photographs, N x M.
    responses : numpy.ndarray
        Responses of the probed features, P x D.
    """

    first: np.ndarray
    second: np.ndarray
    places: np.ndarray
    responses: np.ndarray


PhotographPredictor = Callable[[PhotographResponses], np.ndarray]
PHOTOGRAPH_PREDICTORS: dict[str, PhotographPredictor] = {}


def register(name: str) -> Callable[[PhotographPredictor], PhotographPredictor]:
    """Enter the decorated function into `PHOTOGRAPH_PREDICTORS`.

    Parameters
    ----------
    name : str
        Key of the entry, which names a column of the predictions.

    Returns
    -------
    callable
        Decorator that leaves the function as it is.
    """

    def enter(function: PhotographPredictor) -> PhotographPredictor:
        PHOTOGRAPH_PREDICTORS[name] = function
        return function

    return enter


def _z_scores(responses: np.ndarray) -> np.ndarray:
    """Standardise responses over photographs; NaN for features that do not vary, and for all below `LEAST_PAIRED`."""
    values = np.asarray(responses, dtype=np.float64)
    if len(values) < LEAST_PAIRED:
        return np.full(values.shape, np.nan)
    scale, mean, deviation = column_moments(values, np.ones(len(values), dtype=bool))
    with np.errstate(invalid="ignore"):  # infinite responses
        z: np.ndarray = (values / scale - mean) / deviation
    z[:, ~np.isfinite(values).all(axis=0)] = np.nan
    return z


def _best(responses: np.ndarray) -> np.ndarray:
    """Mark the `MOST` photographs that each feature responds to most, P x N; of equal responses the earlier ones."""
    order = np.argsort(-np.asarray(responses, dtype=np.float64), axis=0, kind="stable")[:MOST]
    marked = np.zeros(responses.shape)
    np.put_along_axis(marked, order, 1.0, axis=0)
    return marked


@register("photograph correlation")
def photograph_correlation(found: PhotographResponses) -> np.ndarray:
    """Correlate the features' responses over photographs.

    Parameters
    ----------
    found : PhotographResponses
        Responses to the photographs.

    Returns
    -------
    numpy.ndarray
        N x M, in [-1, 1]; NaN for features that do not vary, and for fewer than `LEAST_PAIRED` photographs.
    """
    one, two = _z_scores(found.first), _z_scores(found.second)
    return np.clip(one.T @ two / max(len(one), 1), -1, 1)


@register("place correlation")
def place_correlation(found: PhotographResponses) -> np.ndarray:
    """Correlate the features' activations over the places of photographs.

    Parameters
    ----------
    found : PhotographResponses
        Responses to the photographs.

    Returns
    -------
    numpy.ndarray
        N x M, in [-1, 1]; high where both fire at the same places. NaN for features that do not vary, and for fewer
        than `LEAST_PAIRED` photographs.
    """
    return found.places if len(found.first) >= LEAST_PAIRED else np.full_like(found.places, np.nan)


@register("response to the partner's photographs")
def partner_response(found: PhotographResponses) -> np.ndarray:
    """Average each feature's standardised response over the other's best photographs.

    Parameters
    ----------
    found : PhotographResponses
        Responses to the photographs.

    Returns
    -------
    numpy.ndarray
        N x M, in standard deviations, mean of both directions over the `MOST` best photographs; 0 by chance. NaN as in
        `photograph_correlation`.
    """
    one, two = _z_scores(found.first), _z_scores(found.second)
    return (_best(found.first).T @ two + (_best(found.second).T @ one).T) / (2 * min(MOST, max(len(one), 1)))


@register("profile of the best photographs")
def profile_agreement(found: PhotographResponses) -> np.ndarray:
    """Compute the cosine of the probed features' responses to best photographs.

    Parameters
    ----------
    found : PhotographResponses
        Responses to the photographs.

    Returns
    -------
    numpy.ndarray
        N x M, in [-1, 1], of means over the `MOST` best photographs, in standard deviations. High where those of both
        do the same to the layers. NaN as in `photograph_correlation`.
    """
    probed = _z_scores(found.responses)
    probed = probed[:, np.isfinite(probed).all(axis=0)]
    if not probed.shape[1]:
        return np.full((found.first.shape[1], found.second.shape[1]), np.nan)
    profiles = []
    for side in (found.first, found.second):
        defined = np.isfinite(_z_scores(side)).all(axis=0)
        mean = _best(side).T @ probed / min(MOST, max(len(probed), 1))
        profiles.append(np.where(defined[:, None], mean, np.nan))
    return cosines(*profiles)
