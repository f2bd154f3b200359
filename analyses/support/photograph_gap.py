"""Why similarity over maximising images differs from that over photographs: a statistic for each explanation.

Without torch. Every statistic is Pearson's correlation of two `D x D` similarities over pairs of features with its
bootstrap interval over features, unless its description says otherwise. P is S over all photographs, S that of the map.
Statistics of random halves of the photographs are means over `SPLITS` of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from featmap.rng import generator
from featmap.stats import agreement
from featmap.stats.measures import profile_correlations
from featmap.stats.reliability import Interval, mean_correlation

BEST, SPLITS = 8, 20
"""Photographs that stand in for a feature's image, and random halves of the photographs."""
STATISTICS = {
    "raw": "S with P, unchanged",
    "within_branch": "only pairs within a branch",
    "across_branches": "only pairs of two branches",
    "less_branch_means": "S and P minus the mean of each pair of branches: without what branches as a whole contribute",
    "stimuli_reliability": "reliability of S over the choice of stimuli, lower bound (split halves of the images)",
    "corrected_for_stimuli": "S with P, corrected for few stimuli and few photographs: upper bound (the raw interval "
    "divided by the same reliabilities)",
    "other_layers_images": "S over the other layers' maximising images, with P",
    "all_images": "S over all layers' maximising images, with P",
    "own_images_left_out": "S with each feature's response to its own image replaced by its mean, with P",
    "capped": "S with responses capped at that to the best photograph, with P",
    "early": "S over images stopped after a quarter of the steps, with P",
    "early_multiple": "responses to those images as a multiple of that to the best photograph (median)",
    "by_rank": "S and P both by Spearman's instead of Pearson's correlation",
    "favourites_with_P": f"S over each feature's {BEST} best of half the photographs (instead of its image), with P of "
    "the other half",
    "favourites_with_S": "the same, with S: they differ in that images are synthetic and in the choice of photographs",
    "favourites_with_favourites": "the same, with S over the best of the other half: what the choice of photographs "
    "leaves",
    "top_photographs": f"S with P over only those photographs that are among the {BEST} best of some feature",
    "noise_with_P": "S over images of 1/f noise, with P: what any unnatural images reach",
    "dimensions_S": "effective number of dimensions of S (participation ratio of its eigenvalues)",
    "dimensions_P": "the same for P",
    "less_leading_axis": "S with P, both without their leading axis",
}
"""Name and description of each statistic, in the order of the page."""
REMEDIES = {
    "within_branch": "pairs within one branch",
    "less_branch_means": "removing what branches as a whole contribute",
    "corrected_for_stimuli": "correcting for few stimuli",
    "all_images": "all layers' images as stimuli",
    "own_images_left_out": "leaving out own images",
    "capped": "capping responses at those to photographs",
    "early": "stopping descents early",
    "by_rank": "Spearman's correlation",
    "top_photographs": "only photographs that are the best of some feature",
    "less_leading_axis": "removing the leading axis",
}
"""Statistics that an explanation would raise above the raw one, and the change in words."""
_OTHERS = ("P", "S", "favourites")


@dataclass(frozen=True, eq=False)
class LayerEvidence:
    """Responses of the D live features of a layer.

    Parameters
    ----------
    A : numpy.ndarray
        Responses (columns) to the features' maximising images (rows), `D x D`.
    photographs : numpy.ndarray
        Responses to photographs, `N x D`.
    others : numpy.ndarray
        Responses to the maximising images of other layers, `K x D`; K may be 0.
    early : numpy.ndarray or None
        A of descents that were stopped early, `D x D`.
    noise : numpy.ndarray or None
        Responses to images of 1/f noise, `M x D`.
    branches : sequence of str
        Branch of each feature; "" where the layer has none.
    """

    A: np.ndarray
    photographs: np.ndarray
    others: np.ndarray
    early: np.ndarray | None
    noise: np.ndarray | None
    branches: Sequence[str]


def explain_gap(evidence: LayerEvidence) -> dict[str, Interval]:
    """Compute all statistics that the evidence allows.

    Parameters
    ----------
    evidence : LayerEvidence
        Responses of one layer.

    Returns
    -------
    dict of str to Interval
        Statistics by name, in the order of `STATISTICS`; NaN where undefined.
    """
    A, photographs = evidence.A, evidence.photographs
    S, P = profile_correlations(A), profile_correlations(photographs)
    statistics = {"raw": _correlation(S, P)}
    statistics |= _by_branch(S, P, np.array(evidence.branches, dtype=object))
    # A feature's own image is in one half only, so that the whole is more reliable than its halves predict.
    stimuli, halves = agreement.split_half(A), agreement.split_half(photographs)
    statistics["stimuli_reliability"] = stimuli
    corrected = (agreement.disattenuate(r, stimuli.value, halves.value) for r in vars(statistics["raw"]).values())
    statistics["corrected_for_stimuli"] = Interval(*corrected)
    if len(evidence.others) >= 8:
        statistics["other_layers_images"] = _correlation(profile_correlations(evidence.others), P)
        statistics["all_images"] = _correlation(profile_correlations(np.vstack([A, evidence.others])), P)
    statistics["own_images_left_out"] = _correlation(profile_correlations(replace_own_responses(A)), P)
    statistics["capped"] = _correlation(profile_correlations(np.minimum(A, photographs.max(axis=0))), P)
    if evidence.early is not None:
        statistics["early"] = _correlation(profile_correlations(evidence.early), P)
        statistics["early_multiple"] = Interval(
            float(np.nanmedian(agreement.multiples_of_best(np.diag(evidence.early), photographs)))
        )
    statistics["by_rank"] = _correlation(
        profile_correlations(A, "spearman"), profile_correlations(photographs, "spearman")
    )
    statistics |= _favourites(photographs, S)
    best = agreement.best_photographs(photographs, min(BEST, len(photographs)))
    statistics["top_photographs"] = _correlation(S, profile_correlations(photographs[np.unique(best)]))
    if evidence.noise is not None:
        statistics["noise_with_P"] = _correlation(profile_correlations(evidence.noise), P)
    statistics |= {"dimensions_S": Interval(participation_ratio(S)), "dimensions_P": Interval(participation_ratio(P))}
    statistics["less_leading_axis"] = _correlation(subtract_leading_axis(S), subtract_leading_axis(P))
    return {name: statistics[name] for name in STATISTICS if name in statistics}


def _correlation(one: np.ndarray, two: np.ndarray) -> Interval:
    """Correlate two similarities over pairs of features."""
    return mean_correlation([(one, two)])


def _favourites(photographs: np.ndarray, S: np.ndarray) -> dict[str, Interval]:
    """Correlate S over each feature's best photographs of one half with P, S and the best of the other half."""
    rng, pairs = generator("favourites", len(photographs)), {f"favourites_with_{what}": [] for what in _OTHERS}
    for _ in range(SPLITS):
        halves = [photographs[np.sort(part)] for part in np.array_split(rng.permutation(len(photographs)), 2)]
        favourites = [h[agreement.best_photographs(h, min(BEST, len(h)))].mean(axis=1) for h in halves]
        one, two = (profile_correlations(x) for x in favourites)
        for what, other in zip(_OTHERS, (profile_correlations(halves[1]), S, two), strict=True):
            pairs[f"favourites_with_{what}"].append((one, other))
    return {name: mean_correlation(tables) for name, tables in pairs.items()}


def _by_branch(S: np.ndarray, P: np.ndarray, branches: np.ndarray) -> dict[str, Interval]:
    """Compute the statistics of pairs within and across branches; none where there is one branch."""
    if len(set(branches)) < 2:
        return {}
    same = branches[:, None] == branches[None, :]
    inside, outside = (np.where(part, S, np.nan) for part in (same, ~same))
    return {
        "within_branch": _correlation(inside, P),
        "across_branches": _correlation(outside, P),
        "less_branch_means": _correlation(subtract_block_means(S, branches), subtract_block_means(P, branches)),
    }


def subtract_block_means(table: np.ndarray, branches: np.ndarray) -> np.ndarray:
    """Subtract from each pair of branches the mean over its pairs of features.

    A feature with itself does not enter the mean.

    Parameters
    ----------
    table : numpy.ndarray
        `D x D`, NaN where undefined.
    branches : numpy.ndarray
        D labels.

    Returns
    -------
    numpy.ndarray
        `D x D`.
    """
    centred = table.copy()
    eye = np.eye(len(table), dtype=bool)
    for one in set(branches):
        for two in set(branches):
            block = (branches[:, None] == one) & (branches[None, :] == two)
            values = table[block & ~eye & np.isfinite(table)]
            centred[block] -= values.mean() if len(values) else 0.0
    return centred


def replace_own_responses(A: np.ndarray) -> np.ndarray:
    """Replace responses to own images by the mean over the others' images.

    Parameters
    ----------
    A : numpy.ndarray
        Responses, `D x D`.

    Returns
    -------
    numpy.ndarray
        `D x D`, float64.
    """
    replaced = A.astype(np.float64).copy()
    np.fill_diagonal(replaced, (A.sum(axis=0) - np.diag(A)) / (len(A) - 1))
    return replaced


def participation_ratio(table: np.ndarray) -> float:
    """Compute the participation ratio of a correlation matrix's eigenvalues.

    Parameters
    ----------
    table : numpy.ndarray
        `D x D`; features whose diagonal is NaN are left out.

    Returns
    -------
    float
        Effective number of dimensions: 1 for a single axis, D for uncorrelated features.
    """
    defined = np.isfinite(np.diag(table))
    if not defined.any():
        return float("nan")
    values = np.clip(np.linalg.eigvalsh(np.nan_to_num(table[np.ix_(defined, defined)])), 0, None)
    return float(values.sum() ** 2 / np.square(values).sum())


def subtract_leading_axis(table: np.ndarray) -> np.ndarray:
    """Subtract the axis of the largest eigenvalue from a symmetric matrix.

    Parameters
    ----------
    table : numpy.ndarray
        `D x D`; undefined entries stay NaN.

    Returns
    -------
    numpy.ndarray
        `D x D`.
    """
    values, axes = np.linalg.eigh(np.nan_to_num(table))
    return table - values[-1] * np.outer(axes[:, -1], axes[:, -1])


def gap_sentences(statistic: Callable[[str], Interval | None], target: float) -> list[str]:
    """Describe what the statistics say about a raw correlation below the target.

    Parameters
    ----------
    statistic : callable
        Function from a name to its statistic; None where there is none.
    target : float
        Raw correlation to reach: what best photographs in place of images reach.

    Returns
    -------
    list of str
        Which change raises the correlation, and the likely cause; empty where the raw correlation suffices.
    """

    def value(name: str) -> float | None:
        interval = statistic(name)
        return None if interval is None or not np.isfinite(interval.value) else interval.value

    raw = value("raw")
    if raw is None or raw >= target:
        return []
    changed = {name: v for name in REMEDIES if (v := value(name)) is not None}
    best = max(changed, key=lambda name: changed[name])
    sentences = []
    if changed[best] >= raw + 0.02:
        reached = "enough" if changed[best] >= target else f"still below the {target:.3f} to reach"
        sentences.append(
            f"the largest gain is by {REMEDIES[best]}: {changed[best]:.3f} instead of {raw:.3f}, {reached}"
        )
    else:
        sentences.append(f"none of the changes tried raises {raw:.3f} by 0.02 or more")
    sentences += _cause(*(statistic(f"favourites_with_{other}") for other in _OTHERS))
    few = value("stimuli_reliability")
    if few is not None and few < 0.95:
        sentences.append(
            f"S may depend on the choice of few stimuli (reliability over their choice at least {few:.3f}): try more "
            "features"
        )
    noise = value("noise_with_P")
    if noise is not None:
        sentences.append(f"images of 1/f noise reach {noise:.3f}" + ("" if noise < raw else ", no less than the map"))
    return sentences


def _cause(natural: Interval | None, synthetic: Interval | None, ceiling: Interval | None) -> list[str]:
    """Decide whether synthetic images or the choice of strong stimuli cause the gap, as far as intervals allow.

    `natural` is the correlation with P of strong photographs in place of images, `synthetic` theirs with S, `ceiling`
    theirs with other strong photographs.
    """
    if natural is None or synthetic is None or ceiling is None:
        return []
    if synthetic.high < natural.low:
        cause = "the gap is mostly due to the images being synthetic, not to the choice of strong stimuli"
    elif natural.high < synthetic.low:
        cause = "the gap is mostly due to the choice of strong stimuli, not to the images being synthetic"
    elif max(natural.high, synthetic.high) < ceiling.low:
        cause = "the gap is due both to the choice of strong stimuli and to the images being synthetic"
    else:
        cause = "the data do not separate the choice of strong stimuli from the images being synthetic"
    r = [f"{i.value:.3f} [{i.low:.3f}, {i.high:.3f}]" for i in (natural, synthetic, ceiling)]
    return [
        f"{cause}: S over each feature's best photographs correlates {r[0]} with P, {r[1]} with S over images, and "
        f"{r[2]} with S over other such photographs, which is the ceiling of the second"
    ]
