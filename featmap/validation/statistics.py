"""Evaluate the map of one layer: repeatability, photographs, processing path, weights and clusters.

The formulas are in `featmap.stats`: `reliability` (seeds), `agreement` (photographs, weights, the processing path,
DORA) and `clustering`.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from typing import Protocol

import numpy as np
import pandas as pd

from featmap.mapping.flags import RELIABLE
from featmap.stats import agreement, clustering, reliability
from featmap.stats.clustering import Clusters
from featmap.stats.frames import finite_column
from featmap.stats.map_agreement import share_of_ceiling
from featmap.stats.reliability import Interval
from featmap.stats.top_responses import halve
from featmap.validation.evidence import Evidence, layer_similarity, photograph_similarity
from featmap.validation.results import BOOTSTRAP, FEATURE_RANGE, NULL_RANGE, RANGE, Evaluation, Statistic

BEST_PHOTOGRAPHS = 8
"""Best photographs of each feature on which the processing path is measured."""
TARGET_RELIABILITY = 0.99
"""Reliability of a map from which its single similarities may be quoted."""
MINOR_PERMUTATIONS = 99
"""Permutations of the Mantel tests that no verdict depends on."""


class Collector:
    """Collects the statistics of one layer of one network.

    Parameters
    ----------
    layer : str
        Name of the layer.
    network : str
        Name of the network in the table.
    """

    def __init__(self, layer: str, network: str) -> None:
        self.layer, self.network = layer, network
        self.statistics: dict[str, Statistic] = {}

    def add(
        self,
        name: str,
        value: Interval | float,
        p: float = np.nan,
        count: int | None = None,
        note: str = "",
        interval: str = BOOTSTRAP,
    ) -> None:
        """Add a statistic.

        Parameters
        ----------
        name : str
            Name of the statistic.
        value : Interval or float
            Its value, with or without an interval; NaN where undefined.
        p : float, default NaN
            Its p-value.
        count : int, optional
            Number of pairs, features, seeds or draws that it is computed from.
        note : str, optional
            A remark.
        interval : str, optional
            Kind of the interval.
        """
        result = value if isinstance(value, Interval) else Interval(float(value))
        low, high = _finite_or_none(result.low), _finite_or_none(result.high)
        self.statistics[name] = Statistic(
            self.layer,
            self.network,
            name,
            _finite_or_none(result.value),
            low,
            high,
            _finite_or_none(p),
            count,
            note,
            "" if low is None else interval,
        )


def _finite_or_none(value: float) -> float | None:
    """Replace a value that is not finite by None."""
    return float(value) if np.isfinite(value) else None


class StageWatcher(Protocol):
    """Interface for progress callbacks."""

    def stage(self, name: str, done: int, total: int) -> None:
        """Report the progress of a stage.

        Parameters
        ----------
        name : str
            Name of the stage.
        done, total : int
            Parts that are done, and all parts.
        """


@np.errstate(invalid="ignore")  # features that respond infinitely to any image; `live` leaves them out
def evaluate_layer(evidence: Evidence, network: str = "trained", watcher: StageWatcher | None = None) -> Evaluation:
    """Compute all statistics of a layer's map that its evidence allows.

    Parameters
    ----------
    evidence : Evidence
        Evidence of the layer.
    network : str, default "trained"
        Name of the network in the table.
    watcher : StageWatcher, optional
        Receives progress updates.

    Returns
    -------
    Evaluation
        Statistics of the layer, and of each feature.
    """

    def report(done: int) -> None:
        if watcher is not None:
            watcher.stage(f"statistics of {evidence.layer}, {network}", done, 5)

    collector = Collector(evidence.layer, network)
    table = pd.DataFrame(index=pd.Index(evidence.names, name="feature"))
    add_repeatability(evidence, collector, table)
    report(1)
    responses = evidence.photograph_responses
    best = None if responses is None else add_photographs(evidence, responses.astype(np.float64), collector, table)
    report(2)
    if best is not None:
        add_processing_path(evidence, collector, table, best)
    report(3)
    add_weights(evidence, collector)
    report(4)
    if evidence.clusters is not None:
        add_clusters(evidence.clusters, collector)
    report(5)
    return Evaluation(evidence, collector.statistics, table, best)


def add_repeatability(evidence: Evidence, collector: Collector, table: pd.DataFrame) -> None:
    """Compute the repeatability over seeds: of S, of each feature, of the clusters.

    Parameters
    ----------
    evidence : Evidence
        Evidence of the layer.
    collector : Collector
        Gets the statistics.
    table : pandas.DataFrame
        Gets each feature's reliability: of a single seed, of the run's map, and whether it is high enough.
    """
    live, run_seeds = evidence.live_in_all_seeds, evidence.run_seeds
    similarities = [layer_similarity(A, live) for A in evidence.seed_responses]
    block = np.ix_(live, live)
    seeds, single_seed = len(similarities), reliability.repeatability([S[block] for S in similarities])
    collector.add("repeatability", single_seed, count=int(live.sum() * (live.sum() - 1) // 2))
    collector.add("repeatability_of_map", _prolonged(single_seed, run_seeds), count=run_seeds)
    collector.add("repeatability_of_all", _prolonged(single_seed, seeds), count=seeds)
    needed = reliability.seeds_needed(single_seed.value, TARGET_RELIABILITY)
    collector.add("seeds_needed", np.nan if needed is None else needed)
    live_in_run = np.ix_(evidence.live, evidence.live)
    halves = agreement.split_half(evidence.mean_responses[live_in_run])
    collector.add("stimuli_reliability", halves, count=int(evidence.live.sum()))

    of_single_seed = reliability.feature_reliability(similarities)
    of_map = np.array([reliability.spearman_brown(r, run_seeds) for r in of_single_seed])
    table["reliability_single_seed"] = finite_column(of_single_seed)
    table["reliability"] = finite_column(of_map)
    if seeds < 2 or live.sum() < 4:  # too few to decide: no feature is marked as unreliable
        table["reliable"] = np.nan
        return
    table["reliable"] = (np.nan_to_num(of_map, nan=-1) >= RELIABLE).astype(float)
    defined = of_single_seed[np.isfinite(of_single_seed)]
    collector.add("feature_reliability", _median_and_range(defined), count=len(defined), interval=FEATURE_RANGE)
    collector.add("unreliable_features", int((table["reliable"] == 0).sum()), count=len(of_map))

    names = pd.Index(np.array(evidence.names)[live])
    frames = [pd.DataFrame(S[block], index=names, columns=names) for S in similarities]
    graphs = [clustering.neighbour_graph(frame, evidence.neighbours) for frame in frames]
    labels, again = ([clustering.communities(g, seed=k).labels.to_numpy() for g in graphs] for k in (0, 1))
    collector.add("ari_of_seeds", *_mean_ari(combinations(labels, 2)), interval=RANGE)
    collector.add("ari_of_louvain", *_mean_ari(zip(labels, again, strict=True)), interval=RANGE)


def _prolonged(interval: Interval, seeds: int) -> Interval:
    """Predict the repeatability of a mean of seeds from that of one, by Spearman and Brown's formula."""
    return Interval(*(reliability.spearman_brown(v, seeds) for v in (interval.value, interval.low, interval.high)))


def _median_and_range(values: np.ndarray) -> Interval:
    """Compute the median and the range of 90 % of the values; NaN for none."""
    return Interval(*(map(float, np.percentile(values, [50, 5, 95])) if len(values) else [np.nan] * 3))


def _mean_ari(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[Interval, float, int]:
    """Compute the mean adjusted Rand index of pairs of partitions: value with range, no p-value, number of pairs.

    Two trivial partitions (one cluster, or single features only) agree by definition; such pairs are left out.
    """
    ari = [
        reliability.adjusted_rand(a, b)
        for a, b in pairs
        if not (reliability.is_trivial(a) and reliability.is_trivial(b))
    ]
    if not ari:
        return Interval(float("nan")), float("nan"), 0
    ends = (min(ari), max(ari)) if len(ari) > 1 else (float("nan"), float("nan"))
    return Interval(float(np.mean(ari)), *ends), float("nan"), len(ari)


def add_photographs(evidence: Evidence, responses: np.ndarray, collector: Collector, table: pd.DataFrame) -> np.ndarray:
    """Compare S, and the images, with photographs.

    Parameters
    ----------
    evidence : Evidence
        Evidence of the layer.
    responses : numpy.ndarray
        Responses to N photographs, N x D, float64.
    collector : Collector
        Gets the statistics; the repeatability is among them already.
    table : pandas.DataFrame
        Gets each feature's best photograph, and the response to the image in multiples of that to the photograph.

    Returns
    -------
    numpy.ndarray
        Indices of each feature's best photographs, D x `BEST_PHOTOGRAPHS`.
    """
    live = evidence.live
    P = photograph_similarity(responses, live)
    # both maps over the features that both have, as centring depends on the features that take part
    compared = np.isfinite(P.diagonal()) & np.isfinite(evidence.S.diagonal())
    S, P = evidence.similarity_of(compared), photograph_similarity(responses, compared)
    pearson = agreement.mantel(S, P)
    collector.add("photographs_pearson", pearson.r, pearson.p, pearson.pairs)
    spearman = agreement.mantel(S, P, method="spearman")
    collector.add("photographs_spearman", spearman.r, spearman.p, spearman.pairs)
    halves = agreement.split_half(responses[:, live])
    collector.add("photographs_reliability", halves, count=len(responses))
    of_map = collector.statistics["repeatability_of_map"].value
    corrected = agreement.disattenuate(pearson.r.value, np.nan if of_map is None else of_map, halves.value)
    collector.add("photographs_corrected", corrected, note=_why_uncorrected(of_map, halves.value))
    _add_ceiling(S[np.ix_(compared, compared)], responses[:, compared], collector)
    block = np.ix_(live, live)

    mean, deviation = responses.mean(axis=0), responses.std(axis=0)
    for kind in ("layer", "pair"):
        distance = np.full(S.shape, np.nan)
        A = evidence.mean_responses[block]
        distance[block] = agreement.extreme_activation_distance(A, mean[live], deviation[live], kind)
        dora = agreement.mantel(1 - 2 * distance**2, P, method="spearman", permutations=MINOR_PERMUTATIONS)
        collector.add(f"dora_{kind}_spearman", dora.r, dora.p, dora.pairs)

    ratio = agreement.multiples_of_best(np.diag(evidence.mean_responses), responses)
    table["multiple_of_best_photograph"] = finite_column(np.where(live, ratio, np.nan))
    defined = ratio[live & np.isfinite(ratio)]
    collector.add("multiple", _median_and_range(defined), count=len(defined), interval=FEATURE_RANGE)
    below = float((defined < 1).mean()) if len(defined) else np.nan
    collector.add("below_best_photograph", below, count=len(defined))
    best = agreement.best_photographs(responses, min(BEST_PHOTOGRAPHS, len(responses)))
    table["best_photograph"] = np.where(live, best[:, 0], np.nan)
    return best


def _add_ceiling(S: np.ndarray, responses: np.ndarray, collector: Collector) -> None:
    """Add the agreement with either half of the photographs, its ceiling, and the share of the ceiling reached."""
    found = share_of_ceiling([S], halve(responses))
    values = {
        "photographs_agreement": found.agreement,
        "photographs_ceiling": found.ceiling,
        "photographs_share": found.share,
        "photographs_halves": found.halves,
        "photographs_overlap": found.overlap,
        "photographs_overlap_ceiling": found.overlap_ceiling,
        "photographs_overlap_share": found.overlap_share,
    }
    for name, value in values.items():
        notes = {"photographs_share": found.reason, "photographs_overlap_share": found.overlap_reason}
        collector.add(name, value, count=found.features, note=notes.get(name, ""))


def _why_uncorrected(of_map: float | None, of_photographs: float) -> str:
    """State which reliability is too low for a correction for attenuation; "" where none is."""
    least = agreement.CORRECTABLE
    reliabilities = (("the map's own", of_map), ("the photographs'", of_photographs))
    low = [f"{name} reliability is {v:.3f}" for name, v in reliabilities if v is not None and v < least]
    return f"{' and '.join(low)}, below {least}" if low else ""


def add_processing_path(evidence: Evidence, collector: Collector, table: pd.DataFrame, best: np.ndarray) -> None:
    """Compute the processing-path scores at every layer up to the features' own.

    Parameters
    ----------
    evidence : Evidence
        Evidence of the layer.
    collector : Collector
        Gets the statistics.
    table : pandas.DataFrame
        Gets each feature's score at its own layer.
    best : numpy.ndarray
        Indices of each feature's best photographs, D x k.
    """
    live, skipped = evidence.live, evidence.skipped_layers
    collector.add("path_passed_over", skipped, count=len(evidence.path_responses) + skipped)
    for layer, (images, photographs) in evidence.path_responses.items():
        path = agreement.processing_path(images[live].astype(np.float64), photographs.astype(np.float64), best[live])
        note = f"own {path.own:.3f}, same {path.same:.3f}, other {path.other:.3f}"
        collector.add(f"path:{layer}", path.score, count=path.features, note=note)
        if layer == evidence.layer:
            scores = np.full(len(live), np.nan)
            scores[live] = path.scores
            table["path_score"] = finite_column(scores)


def add_weights(evidence: Evidence, collector: Collector) -> None:
    """Compute the agreement of S with the cosines of incoming and outgoing weights.

    Parameters
    ----------
    evidence : Evidence
        Evidence of the layer.
    collector : Collector
        Gets the statistics.
    """
    for name, weights in (("incoming", evidence.incoming), ("outgoing", evidence.outgoing)):
        if weights is not None:
            cosines, groups = weights
            pearson = agreement.mantel(evidence.S, cosines, groups=groups)
            collector.add(f"{name}_weights", pearson.r, pearson.p, pearson.pairs)
            spearman = agreement.mantel(
                evidence.S, cosines, groups=groups, method="spearman", permutations=MINOR_PERMUTATIONS
            )
            collector.add(f"{name}_weights_spearman", spearman.r, spearman.p, spearman.pairs)


def count_clusters(clusters: Clusters) -> int:
    """Count the clusters of two or more features.

    Parameters
    ----------
    clusters : Clusters
        Clusters of a map.

    Returns
    -------
    int
        0 where the nulls allow no clusters.
    """
    return len([size for size in clusters.communities.sizes if size > 1]) if clusters.allowed else 0


def add_clusters(clusters: Clusters, collector: Collector) -> None:
    """Add the clusters of the run's map and their modularity.

    The modularity is compared with that of A permuted within its columns.

    Parameters
    ----------
    clusters : Clusters
        Clusters of the run's map.
    collector : Collector
        Gets the statistics.
    """
    collector.add("clusters", count_clusters(clusters))
    p = max(clusters.p_permuted, clusters.p_factor)
    collector.add("modularity", clusters.communities.mean_modularity, p)
    if len(clusters.permuted):
        low, high = np.percentile(clusters.permuted, [2.5, 97.5])
        null = Interval(float(clusters.permuted.mean()), float(low), float(high))
        collector.add("modularity_permuted", null, count=len(clusters.permuted), interval=NULL_RANGE)
