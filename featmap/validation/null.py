"""What is left of a map's figures when A is permuted within its columns: nothing should be. No torch."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd

from featmap.stats import agreement, clustering
from featmap.stats.measures import FewStimuliWarning
from featmap.stats.reliability import Interval
from featmap.validation.statistics import NULL_RANGE, RANGE, Collector, Evidence, Statistic, photograph_similarity

DRAWS = 20
CLUSTER_DRAWS, CLUSTER_NULL_DRAWS = 5, 39
"""Draws of permuted A whose clusters are looked for, and the null draws that each is held to."""


def permuted_statistics(evidence: Evidence, draws: int = DRAWS) -> dict[str, Statistic]:
    """Return what is left of every correlation with A permuted within its columns, and of its clusters.

    Of correlations mean and range of the draws; of the first `CLUSTERED` of them the modularity, and how many clusters
    the nulls would allow, each the median with least and most: the nulls let one such table in twenty pass.
    """
    taker = Collector(evidence, "columns permuted")
    who = evidence.live
    inside = np.ix_(who, who)
    if who.sum() < 4:
        return {}
    ranks = {}
    others = {"repeatability": evidence.S[inside]}
    if evidence.photographs is not None:
        others["photographs_pearson"] = ranks["photographs_spearman"] = photograph_similarity(
            evidence.photographs, who
        )[inside]
    for name, given in (("incoming_weights", evidence.incoming), ("outgoing_weights", evidence.outgoing)):
        if given is not None:
            others[name] = ranks[f"{name}_spearman"] = given[0][inside]
    A = evidence.own[inside]
    for method, chosen in (("pearson", others), ("spearman", ranks)):
        found = agreement.permutation_agreement(A, list(chosen.values()), draws, method)
        for name, value in zip(chosen, found, strict=True):
            taker.take(name, value, count=draws, interval=NULL_RANGE)
    if evidence.clusters is not None:
        _permuted_clusters(evidence, A, taker)
    return taker.figures


def _permuted_clusters(evidence: Evidence, A: np.ndarray, taker: Collector) -> None:
    names = pd.Index([n for n, w in zip(evidence.names, evidence.live, strict=True) if w])
    counts, modularities = [], []
    for draw in range(CLUSTER_DRAWS):
        frame = pd.DataFrame(agreement.permute_columns(A, draw), index=names, columns=names)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FewStimuliWarning)  # the run has said so
            found = clustering.find_clusters(
                frame, pd.Series(0.0, index=names), k=evidence.neighbours, draws=CLUSTER_NULL_DRAWS
            )
        counts.append(len([s for s in found.communities.sizes if s > 1]) if found.allowed else 0)
        modularities.append(found.communities.mean_modularity)
    for name, values in (("clusters", counts), ("modularity", modularities)):
        spread = Interval(float(np.median(values)), min(values), max(values))
        taker.take(name, spread, count=CLUSTER_DRAWS, interval=RANGE)
