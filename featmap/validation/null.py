"""Statistics of a map whose A is permuted within its columns, where no similarity should be left."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd

from featmap.stats import agreement, clustering
from featmap.stats.measures import FewStimuliWarning
from featmap.stats.reliability import Interval
from featmap.validation.evidence import Evidence, photograph_similarity
from featmap.validation.results import NULL_RANGE, RANGE, Statistic
from featmap.validation.statistics import Collector, count_clusters

DRAWS = 20
"""Draws of permuted A whose correlations are computed."""
CLUSTER_DRAWS, CLUSTER_NULL_DRAWS = 5, 39
"""Draws of permuted A that are clustered, and null draws that each clustering is compared with."""


def permuted_statistics(evidence: Evidence, draws: int = DRAWS) -> dict[str, Statistic]:
    """Compute correlations and clusters of a map with A permuted within its columns.

    Parameters
    ----------
    evidence : Evidence
        Evidence of the layer.
    draws : int, default 20
        Number of permutations.

    Returns
    -------
    dict of Statistic
        By name; empty with fewer than four live features. Correlations: mean and range of the draws. Modularity and
        number of clusters that the nulls allow: median, least and most of the first `CLUSTER_DRAWS` draws; at a level
        of 5 % the nulls allow clusters in one such table of twenty.
    """
    collector = Collector(evidence.layer, "columns permuted")
    live = evidence.live
    block = np.ix_(live, live)
    if live.sum() < 4:
        return {}
    for_ranks = {}
    similarities = {"repeatability": evidence.S[block]}
    if evidence.photograph_responses is not None:
        P = photograph_similarity(evidence.photograph_responses, live)[block]
        similarities["photographs_pearson"] = for_ranks["photographs_spearman"] = P
    for name, weights in (("incoming_weights", evidence.incoming), ("outgoing_weights", evidence.outgoing)):
        if weights is not None:
            similarities[name] = for_ranks[f"{name}_spearman"] = weights[0][block]
    A = evidence.mean_responses[block]
    for method, tables in (("pearson", similarities), ("spearman", for_ranks)):
        correlations = agreement.permutation_agreement(A, list(tables.values()), draws, method)
        for name, value in zip(tables, correlations, strict=True):
            collector.add(name, value, count=draws, interval=NULL_RANGE)
    if evidence.clusters is not None:
        _add_permuted_clusters(evidence, A, collector)
    return collector.statistics


def _add_permuted_clusters(evidence: Evidence, A: np.ndarray, collector: Collector) -> None:
    """Cluster the first draws; add the number of clusters that the nulls allow, and the modularity."""
    names = pd.Index([name for name, is_live in zip(evidence.names, evidence.live, strict=True) if is_live])
    counts, modularities = [], []
    for draw in range(CLUSTER_DRAWS):
        frame = pd.DataFrame(agreement.permute_columns(A, draw), index=names, columns=names)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FewStimuliWarning)  # the run has warned already
            clusters = clustering.find_clusters(
                frame,
                pd.Series(0.0, index=names),
                settings=clustering.ClusterSettings(k=evidence.neighbours, draws=CLUSTER_NULL_DRAWS),
            )
        counts.append(count_clusters(clusters))
        modularities.append(clusters.communities.mean_modularity)
    for name, values in (("clusters", counts), ("modularity", modularities)):
        spread = Interval(float(np.median(values)), min(values), max(values))
        collector.add(name, spread, count=CLUSTER_DRAWS, interval=RANGE)
