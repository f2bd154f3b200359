"""Why similarity over maximising images and over photographs differ: each explanation as a number. No torch.

Every figure is Pearson's correlation of two D x D similarities over pairs of features with its bootstrap interval
over features, unless its words say otherwise. P is S over all photographs, S that of the map. What rests on random
halves of the photographs is the mean over `SPLITS` of them.
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
FIGURES = {
    "raw": "S with P, as the map is",
    "within_branch": "pairs of one branch alone",
    "across_branches": "pairs of two branches alone",
    "less_branch_means": "each pair of branches less its mean: what is left if branches differed only as wholes",
    "stimuli_reliability": "reliability of S over the choice of stimuli, at least (split halves of the images)",
    "corrected_for_stimuli": "S with P, corrected for few stimuli and few photographs: at most this (the raw interval "
    "over the same reliabilities)",
    "other_layers_images": "S taken over the other layers' maximising images, with P",
    "all_images": "S taken over all layers' maximising images, with P",
    "own_images_left_out": "S without each feature's response to its own image (its mean instead), with P",
    "capped": "S with no response above that to the best photograph, with P",
    "early": "S over images stopped after a quarter of the steps, with P",
    "early_multiple": "those images' responses as a multiple of the best photograph's (median)",
    "by_rank": "S and P both by Spearman's correlation in place of Pearson's",
    "favourites_with_P": f"S over each feature's {BEST} best of half the photographs (in place of its maximising "
    "image), with P of the other half",
    "favourites_with_S": "the same with S: that images are synthetic, and the choice of photographs, is between them",
    "favourites_with_favourites": "the same with S over the best of the other half: what the choice of "
    "photographs leaves",
    "top_photographs": f"S with P over those photographs alone that are among some feature's {BEST} best",
    "noise_with_P": "S over images of 1/f noise, with P: what any unnatural images reach",
    "dimensions_S": "effective number of dimensions of S (participation ratio of its eigenvalues)",
    "dimensions_P": "the same of P",
    "less_leading_axis": "S with P, both less their leading axis",
}
"""Name of a figure -> what it is, in the order of the page."""
GAINS = {
    "within_branch": "pairs within one branch",
    "less_branch_means": "taking out what branches differ by as wholes",
    "corrected_for_stimuli": "correcting for few stimuli",
    "all_images": "all layers' images as stimuli",
    "own_images_left_out": "leaving own images out",
    "capped": "capping responses at those to photographs",
    "early": "stopping descents early",
    "by_rank": "Spearman's correlation",
    "top_photographs": "photographs that are some feature's best alone",
    "less_leading_axis": "taking the leading axis out",
}
"""Figures that an explanation would raise above the raw one, and the explanation in words."""


_WHAT = ("P", "S", "favourites")


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of D live features of a layer.

    Attributes
    ----------
    A : D x D, responses (columns) to the features' maximising images (rows)
    photographs : N x D
    others : K x D, responses to the maximising images of other layers; K may be 0
    early : D x D, A of descents that were stopped early, or None
    noise : M x D, responses to images of 1/f noise, or None
    branches : D names, "" where the layer has none
    """

    A: np.ndarray
    photographs: np.ndarray
    others: np.ndarray
    early: np.ndarray | None
    noise: np.ndarray | None
    branches: Sequence[str]


def explained(known: Known) -> dict[str, Interval]:
    """Return every figure of `FIGURES` that can be had; NaN where it is undefined."""
    A, photographs = known.A, known.photographs
    S, P = profile_correlations(A), profile_correlations(photographs)
    found = {"raw": _r(S, P)}
    found |= _by_branch(S, P, np.array(known.branches, dtype=object))
    # a feature's own image falls into one half only, so that the whole is more reliable than its halves foretell
    stimuli, halves = agreement.split_half(A), agreement.split_half(photographs)
    found["stimuli_reliability"] = stimuli
    corrected = (agreement.disattenuate(r, stimuli.value, halves.value) for r in vars(found["raw"]).values())
    found["corrected_for_stimuli"] = Interval(*corrected)
    if len(known.others) >= 8:
        found["other_layers_images"] = _r(profile_correlations(known.others), P)
        found["all_images"] = _r(profile_correlations(np.vstack([A, known.others])), P)
    found["own_images_left_out"] = _r(profile_correlations(without_own(A)), P)
    found["capped"] = _r(profile_correlations(np.minimum(A, photographs.max(axis=0))), P)
    if known.early is not None:
        found["early"] = _r(profile_correlations(known.early), P)
        found["early_multiple"] = Interval(
            float(np.nanmedian(agreement.multiples_of_best(np.diag(known.early), photographs)))
        )
    found["by_rank"] = _r(profile_correlations(A, "spearman"), profile_correlations(photographs, "spearman"))
    found |= _favourites(photographs, S)
    best = agreement.best_photographs(photographs, min(BEST, len(photographs)))
    found["top_photographs"] = _r(S, profile_correlations(photographs[np.unique(best)]))
    if known.noise is not None:
        found["noise_with_P"] = _r(profile_correlations(known.noise), P)
    found |= {"dimensions_S": Interval(dimensions(S)), "dimensions_P": Interval(dimensions(P))}
    found["less_leading_axis"] = _r(less_leading(S), less_leading(P))
    return {name: found[name] for name in FIGURES if name in found}


def _r(one: np.ndarray, two: np.ndarray) -> Interval:
    return mean_correlation([(one, two)])


def _favourites(photographs: np.ndarray, S: np.ndarray) -> dict[str, Interval]:
    """Return how S over each feature's best photographs of a half goes with P, S and such favourites of the other."""
    rng, pairs = generator("favourites", len(photographs)), {f"favourites_with_{what}": [] for what in _WHAT}
    for _ in range(SPLITS):
        halves = [photographs[np.sort(part)] for part in np.array_split(rng.permutation(len(photographs)), 2)]
        liked = [h[agreement.best_photographs(h, min(BEST, len(h)))].mean(axis=1) for h in halves]
        one, two = (profile_correlations(x) for x in liked)
        for what, other in zip(_WHAT, (profile_correlations(halves[1]), S, two), strict=True):
            pairs[f"favourites_with_{what}"].append((one, other))
    return {name: mean_correlation(given) for name, given in pairs.items()}


def _by_branch(S: np.ndarray, P: np.ndarray, branches: np.ndarray) -> dict[str, Interval]:
    if len(set(branches)) < 2:
        return {}
    same = branches[:, None] == branches[None, :]
    inside, outside = (np.where(part, S, np.nan) for part in (same, ~same))
    return {
        "within_branch": _r(inside, P),
        "across_branches": _r(outside, P),
        "less_branch_means": _r(less_block_means(S, branches), less_block_means(P, branches)),
    }


def less_block_means(table: np.ndarray, branches: np.ndarray) -> np.ndarray:
    """Return a D x D table in which each pair of branches has lost the mean over its pairs of different features."""
    found = table.copy()
    eye = np.eye(len(table), dtype=bool)
    for one in set(branches):
        for two in set(branches):
            block = (branches[:, None] == one) & (branches[None, :] == two)
            values = table[block & ~eye & np.isfinite(table)]
            found[block] -= values.mean() if len(values) else 0.0
    return found


def without_own(A: np.ndarray) -> np.ndarray:
    """Return A with each feature's response to its own image replaced by its mean over the others' images."""
    found = A.astype(np.float64).copy()
    np.fill_diagonal(found, (A.sum(axis=0) - np.diag(A)) / (len(A) - 1))
    return found


def dimensions(table: np.ndarray) -> float:
    """Return the participation ratio of a correlation table's eigenvalues: 1 for one axis, D for none in common."""
    known = np.isfinite(np.diag(table))
    if not known.any():
        return float("nan")
    values = np.clip(np.linalg.eigvalsh(np.nan_to_num(table[np.ix_(known, known)])), 0, None)
    return float(values.sum() ** 2 / np.square(values).sum())


def less_leading(table: np.ndarray) -> np.ndarray:
    """Return a symmetric table less the axis of its largest eigenvalue; undefined entries stay so."""
    values, axes = np.linalg.eigh(np.nan_to_num(table))
    return table - values[-1] * np.outer(axes[:, -1], axes[:, -1])


def reason(figure: Callable[[str], Interval | None], wanted: float) -> list[str]:
    """Return, in sentences, what the figures say of a raw correlation below `wanted`: what mends it, what does not.

    `figure` gives a figure by name, None where there is none.
    """

    def found(name: str) -> float | None:
        given = figure(name)
        return None if given is None or not np.isfinite(given.value) else given.value

    raw = found("raw")
    if raw is None or raw >= wanted:
        return []
    known = {name: v for name in GAINS if (v := found(name)) is not None}
    best = max(known, key=lambda name: known[name])
    said = []
    if known[best] >= raw + 0.02:
        reached = "enough" if known[best] >= wanted else f"short of {wanted} still"
        said.append(f"most is gained by {GAINS[best]}: {known[best]:.3f} in place of {raw:.3f}, {reached}")
    else:
        said.append(f"none of the changes tried raises {raw:.3f} by 0.02 or more")
    said += _cause(*(figure(f"favourites_with_{what}") for what in _WHAT))
    few = found("stimuli_reliability")
    if few is not None and few < 0.95:
        said.append(f"S may rest on few stimuli (reliability over their choice at least {few:.3f}): try more features")
    noise = found("noise_with_P")
    if noise is not None:
        said.append(f"images of 1/f noise reach {noise:.3f}" + ("" if noise < raw else ", no less than the map"))
    return said


def _cause(natural: Interval | None, synthetic: Interval | None, ceiling: Interval | None) -> list[str]:
    """Return whether images' being synthetic or the choice of strong stimuli makes the shortfall, as intervals allow.

    `natural` is what strong photographs in place of images reach with P, `synthetic` with S, `ceiling` with other
    strong photographs.
    """
    if natural is None or synthetic is None or ceiling is None:
        return []
    if synthetic.high < natural.low:
        lies = "the shortfall lies mostly in the images' being synthetic, not in the choice of strong stimuli"
    elif natural.high < synthetic.low:
        lies = "the shortfall lies mostly in the choice of strong stimuli, not in the images' being synthetic"
    elif max(natural.high, synthetic.high) < ceiling.low:
        lies = "both the choice of strong stimuli and the images' being synthetic make the shortfall"
    else:
        lies = "the choice of strong stimuli and the images' being synthetic are not told apart"
    held = [f"{i.value:.3f} [{i.low:.3f}, {i.high:.3f}]" for i in (natural, synthetic, ceiling)]
    return [
        f"{lies}: each feature's best photographs in place of its image give an S that correlates {held[0]} with P and "
        f"{held[1]} with S, and {held[2]} with that of other such photographs, to which the second is to be held"
    ]
