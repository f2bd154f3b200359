"""Decide what kind of interaction a group of units has, by stated rules on its statistics.

Rules, in this order; "surely" means that the 95 % t-interval over seeds excludes the other case, with the level shared
out over the units (Bonferroni):

undecided
    Fewer than `MIN_SEEDS` seeds have statistics.
competing for place, suppressive
    A unit surely keeps less than `LOSS` of what it would keep without interaction, see `additive_retentions` and
    `growth_exponents`. It is competing for place where, on the joint image, at least `DIVIDED` of the responding
    positions have one unit alone, and the activation maps correlate negatively; else it is suppressive.
synergistic
    The response nonlinearity surely exceeds its floor, and every unit surely reaches more on the joint image than on
    its own. The second alone is no sign of interaction: where a blur keeps each solo image from its optimum, units
    that share what the blur leaves reach more together in a linear network too.
synergistic, suppressive
    The response nonlinearity surely exceeds its floor, the second difference is at least `RELEVANT`, and its sign is
    surely above 0 (synergistic: features respond to both parts together by more than the sum of their responses to
    each, in size: an inhibition may be more than the sum, too) or below 0 (suppressive: by less), with a balance of
    `BALANCE` or more.
additive
    The response nonlinearity surely exceeds its floor by no more than `RELEVANT`, each unit surely keeps `LOSS` of what
    it would keep without interaction, and the second difference is at most `RELEVANT` above the units' own
    (self-saturation).
undecided
    No rule is met.

Retention is judged only for joint descents of linear steps under the balance "solo", for which it is known what a
linear network would keep; without it no pair is additive or competing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from featmap.stats import correlation, interaction

OK = "ok"
"""Status of a joint descent that has all statistics."""
ADDITIVE, SUPPRESSIVE, SYNERGISTIC = "additive", "suppressive", "synergistic"
COMPETING, UNDECIDED, UNDEFINED = "competing for place", "undecided", "undefined"
KINDS = (ADDITIVE, SUPPRESSIVE, SYNERGISTIC, COMPETING, UNDECIDED, UNDEFINED)
"""All kinds; "undefined" are groups without statistics."""
MIN_SEEDS = 3
"""Seeds with statistics that a kind takes: an interval needs as many."""
LOSS = 0.8
"""Share of its retention without interaction below which a unit is suppressed, and from which on it is not."""
DIVIDED = 0.7
"""Share of responding positions with one unit alone from which on the units divide the image."""
RELEVANT = 0.1
"""Nonlinearity above the floor, or second difference above self-saturation, that an additive group may have; and least
second difference whose sign decides."""
BALANCE = 0.2
"""Least mean sign of a second difference: below it as many features respond by more as by less."""
STEEPEST = 3.0
"""Largest exponent of a unit's response along its solo image, and inverse of the smallest, at which its retention
without interaction is known."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """Statistics of one group that its kind depends on, with a value for each seed.

    Parameters
    ----------
    excess : numpy.ndarray
        Response nonlinearity less its floor, S seeds.
    second_difference : numpy.ndarray
        Size of the second difference, S, see `featmap.stats.interaction.SecondDifference`.
    signed_difference : numpy.ndarray
        The same times its sign, S; NaN where the sign is unknown.
    self_saturation : numpy.ndarray
        Second difference of each unit with itself, S x U units.
    retention : numpy.ndarray
        Share of its solo response that each unit keeps, S x U.
    additive : numpy.ndarray
        Share that it would keep without interaction, S x U; NaN where unknown.
    divided, correlation : numpy.ndarray
        Territory: share of responding positions with one unit alone, and correlation of the maps, S each; NaN where
        undefined.
    """

    excess: np.ndarray
    second_difference: np.ndarray
    signed_difference: np.ndarray
    self_saturation: np.ndarray
    retention: np.ndarray
    additive: np.ndarray
    divided: np.ndarray
    correlation: np.ndarray

    @staticmethod
    def of(seeds: pd.DataFrame) -> Evidence:
        """Collect the evidence from the statistics of one group's seeds.

        Parameters
        ----------
        seeds : pandas.DataFrame
            Rows of `featmap.interaction.statistics.JointArrays.table`, those that have statistics.

        Returns
        -------
        Evidence
            The evidence; signs and retentions are unknown where the table, of an earlier version, lacks them.
        """
        letters = [c.removeprefix("retention_") for c in seeds.columns if c.startswith("retention_")]

        def each(name: str) -> np.ndarray:
            return seeds.reindex(columns=[f"{name}_{c}" for c in letters]).to_numpy(dtype=float)

        return Evidence(
            (seeds["response_nonlinearity"] - seeds["response_nonlinearity_floor"]).to_numpy(dtype=float),
            seeds["second_difference"].to_numpy(dtype=float),
            (seeds["second_difference"] * seeds.get("second_difference_sign", np.nan)).to_numpy(dtype=float),
            each("self_saturation"),
            each("retention"),
            each("additive_retention"),
            seeds["territory_divided"].to_numpy(dtype=float),
            seeds["territory_correlation"].to_numpy(dtype=float),
        )


def classify(evidence: Evidence) -> str:
    """Decide the kind of one group by the rules of this module.

    Parameters
    ----------
    evidence : Evidence
        Its statistics.

    Returns
    -------
    str
        One of `KINDS`; "undefined" where no seed has a response nonlinearity.
    """
    defined = int(np.isfinite(evidence.excess).sum())
    if not len(evidence.excess) or not np.isfinite(evidence.excess).any():
        return UNDEFINED
    if defined < MIN_SEEDS:
        return UNDECIDED
    kept = _intervals(evidence.retention / np.where(evidence.additive > 0, evidence.additive, np.nan))
    if any(high < LOSS for _, high in kept):
        divides = _mean(evidence.divided) >= DIVIDED and _mean(evidence.correlation) < 0
        return COMPETING if divides else SUPPRESSIVE
    low, high = _interval(evidence.excess)
    if low > interaction.ROUNDING:
        if all(bottom > 1 + interaction.ROUNDING for bottom, _ in _intervals(evidence.retention)):
            return SYNERGISTIC
        below, above = _interval(evidence.signed_difference)
        size, signed = _mean(evidence.second_difference), _mean(evidence.signed_difference)
        if (below > 0 or above < 0) and size >= RELEVANT and abs(signed) >= BALANCE * size:
            return SYNERGISTIC if below > 0 else SUPPRESSIVE
    # the size: features that respond by more and others that respond by less do not make up for each other
    size, own = _mean(evidence.second_difference), _mean(evidence.self_saturation)
    if high <= RELEVANT and all(bottom >= LOSS for bottom, _ in kept) and size <= own + RELEVANT:
        return ADDITIVE
    return UNDECIDED


def growth_exponents(
    arrays: Mapping[str, np.ndarray], start: int, probed: Sequence[tuple[int, int | None]]
) -> np.ndarray:
    """Compute the powers with which units respond to parts of their own images.

    A unit that responds to half of its solo image by a quarter loses more than half of its response where it gets half
    of the image: its retention without interaction is that of a linear unit to this power.

    Parameters
    ----------
    arrays : mapping of str to numpy.ndarray
        Arrays `null`, `solo_A` and `solo_fraction` of the run.
    start : int
        Row of the start in `null`.
    probed : sequence of (int, int or None)
        For each of the n units its row in the solo arrays and its column among the probed features; None where its
        layer is not probed, or it is no feature.

    Returns
    -------
    numpy.ndarray
        ``-log(share) / log(n)`` for each unit, with its share of its whole response at 1/n of its solo image: 1 where
        it responds linearly, and where it is not probed. NaN beyond `STEEPEST`, and where it does not respond to the
        part or not to the whole.
    """
    found = []
    for row, column in probed:
        if column is None:
            found.append(1.0)
            continue
        null = float(arrays["null"][start, column])
        part, whole = (float(arrays[name][row, column]) for name in ("solo_fraction", "solo_A"))
        share = interaction.quotient(part - null, whole - null, max(abs(whole), abs(null)))
        power = -math.log(share) / math.log(len(probed)) if share > 0 else math.nan
        found.append(power if 1 / STEEPEST <= power <= STEEPEST else math.nan)
    return np.array(found)


def describe_kind(row: Mapping[str, Any]) -> str:
    """Describe the kind of a group in plain words.

    Parameters
    ----------
    row : mapping of str to Any
        The group's row of the summary, with its `kind`.

    Returns
    -------
    str
        The kind, a colon and what was measured; "" where there is no kind.
    """
    kind = row.get("kind", UNDEFINED)
    if kind == UNDEFINED:
        return ""
    letters = [str(c).removeprefix("retention_") for c in dict(row) if str(c).startswith("retention_")]
    kept = [float(row[f"retention_{c}"]) for c in letters]
    without = [float(row.get(f"additive_retention_{c}", np.nan)) for c in letters]
    reaches = f"together they reach {_percents(kept)} of what each reaches alone"
    expected = f", {_percents(without)} without interaction" if np.isfinite(without).all() else ""
    if kind == COMPETING:
        alone = f"at {100 * row['territory_divided']:.0f} % of the places where any responds, only one does"
        return f"{kind}: {alone}; {reaches}{expected}"
    lost = any(k < LOSS * w for k, w in zip(kept, without, strict=True))
    where = row.get("second_difference_at", "")
    if (kind == SYNERGISTIC and not min(kept, default=0.0) > 1) or (kind == SUPPRESSIVE and not lost):
        balance = "more" if kind == SYNERGISTIC else "less"
        # the balance is that of all features: of the largest difference alone it may be the other one
        most = f" (the largest difference is at {where})" if where else ""
        response = (
            f"features respond to a mixture of the solo images by {balance} than the sum of their responses to its"
        )
        return f"{kind}: {response} parts{most}; {reaches}{expected}"
    if kind == UNDECIDED:
        reason = "no rule is surely met"
        if not np.isfinite(row["p"]):
            few = row.get("seeds", 0) < MIN_SEEDS
            reason = "too few seeds" if few else f"fewer than {MIN_SEEDS} seeds have a floor"
        return f"{kind} ({reason}): {reaches}{expected}"
    return f"{kind}: {reaches}{expected}"


def _percents(shares: list[float]) -> str:
    """Format one share of each unit, such as "45 and 60 %"."""
    texts = [f"{100 * share:.0f}" if np.isfinite(share) else "an undefined share" for share in shares]
    if len(set(texts)) == 1:
        return f"{texts[0]} %"
    return f"{', '.join(texts[:-1])} and {texts[-1]} %"


def _mean(values: np.ndarray) -> float:
    """Average what is finite; NaN where nothing is."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def _interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Compute the t-interval over seeds; it decides nothing (NaN) where there are too few."""
    return correlation.t_interval(values.tolist(), level) or (float("nan"), float("nan"))


def _intervals(values: np.ndarray) -> list[tuple[float, float]]:
    """Compute the interval of each unit, S x U, with the level shared out over the units."""
    return [_interval(column, 1 - 0.05 / values.shape[1]) for column in values.T]


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Average each group's statistics over seeds and test them against the floor.

    Parameters
    ----------
    table : pandas.DataFrame
        Result of `JointArrays.table`.

    Returns
    -------
    pandas.DataFrame
        A row for each group: the mean of each statistic over the seeds that define it, and `status` ("ok" where any
        seed has statistics), `seeds` (their number), `low` and `high` (95 % t-interval of the response nonlinearity
        over seeds; three or more), `excess` (response nonlinearity less its floor, mean over seeds) with its own
        interval `excess_low` and `excess_high`, `p` (one-sided t-test that the excess is above 0), `kind` (see
        `classify`) and `q` (p adjusted for the false discovery rate over the groups);
        `second_difference_at` is the feature that most seeds name.
    """
    rows = []
    for label, seeds in table.groupby("group", sort=False):
        ok = seeds[seeds["status"] == OK]
        means = seeds.drop(columns=["group", "seed", "status", "second_difference_at"]).mean()
        status = OK if len(ok) else str(seeds["status"].mode().iloc[0])
        row: dict[str, Any] = {"group": label, "status": status, "seeds": len(ok)} | means.to_dict()
        features = seeds["second_difference_at"][seeds["second_difference_at"] != ""].mode()
        row["second_difference_at"] = str(features.iloc[0]) if len(features) else ""
        shares = seeds["response_nonlinearity"]
        excess = shares - seeds["response_nonlinearity_floor"]
        row["low"], row["high"] = correlation.t_interval(shares.tolist()) or (np.nan, np.nan)
        low, high = correlation.t_interval(excess.tolist()) or (np.nan, np.nan)
        row |= {"excess": excess.mean(), "excess_low": low, "excess_high": high}
        row |= {"p": interaction.p_above_zero(excess.tolist())}
        row["kind"] = classify(Evidence.of(ok))
        rows.append(row)
    summary = pd.DataFrame(rows)
    summary["q"] = interaction.q_values(summary["p"].to_numpy(dtype=float))
    return summary
