"""Every figure of a map's trial, layer by layer, from finished numbers. No torch; the formulas are elsewhere.

Formulas: `reliability` (seeds), `agreement` (photographs, weights, the processing path, DORA), `graph` (clusters).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd

from featmap.mapping.flags import RELIABLE
from featmap.stats import agreement, clustering, correlation, reliability
from featmap.stats.agreement import PathCheck
from featmap.stats.clustering import Clusters
from featmap.stats.frames import finite_column
from featmap.stats.measures import profile_correlations
from featmap.stats.reliability import Interval

BEST_PHOTOGRAPHS = 8
"""How many best photographs of a feature the processing path is measured on."""
TARGET_RELIABILITY = 0.99
BOOTSTRAP = "95 %, bootstrap over features"
FEATURE_RANGE, RANGE, NULL_RANGE = "90 % of features", "least and most", "95 % of draws"
"""What an interval is."""


@dataclass(eq=False)
class Evidence:
    """What is known of one layer of one network.

    Attributes
    ----------
    layer, names : the layer, its D features mapped
    live : D booleans, live in every seed of the run
    alive : D booleans, live in all seeds, further ones included
    seeds : S x D x D, A of each seed, the run's own first
    kept : how many of them are the run's own: its map is that of their mean
    photographs : N x D responses to photographs, or None
    paths : by layer, from the earliest: its C features' responses to the images of the first seed (D x C) and to the
        photographs (N x C)
    passed_over : how many layers on the way are not among them
    incoming, outgoing : tables of weight cosines and D labels of the features' spaces, or None
    clusters : those of the run's own map, or None
    neighbours : k of the neighbour graph
    image_of : returns a feature's stored image of the first seed, 3 x H x W
    """

    layer: str
    names: list[str]
    live: np.ndarray
    alive: np.ndarray
    seeds: np.ndarray
    kept: int
    photographs: np.ndarray | None = None
    add_processing_path: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    passed_over: int = 0
    incoming: tuple[np.ndarray, np.ndarray] | None = None
    outgoing: tuple[np.ndarray, np.ndarray] | None = None
    clusters: Clusters | None = None
    neighbours: int = 10
    image_of: Callable[[str], np.ndarray] = lambda name: np.zeros((3, 1, 1))

    def profile(self, A: np.ndarray, who: np.ndarray) -> np.ndarray:
        """Return S of D x D responses, taken over the features in `who`, as D x D with NaN for the others."""
        full = np.full(A.shape, np.nan)
        inside = np.ix_(who, who)
        full[inside] = profile_correlations(A[inside].astype(np.float64))
        return full

    @property
    def own(self) -> np.ndarray:
        """The map's own A: the mean over the run's seeds, D x D."""
        mean: np.ndarray = self.seeds[: self.kept].astype(np.float64).mean(axis=0)
        return mean

    @property
    def S(self) -> np.ndarray:
        """The map's own profile similarity, D x D."""
        return self.profile(self.own, self.live)


@dataclass(frozen=True)
class Statistic:
    """One figure of the page: what, its value and interval, a p-value, how many it rests on (each None: undefined).

    `interval` says what `low` to `high` is; `note` what else is to be known, or why there is no value.
    """

    layer: str
    network: str
    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    count: int | None = None
    note: str = ""
    interval: str = ""


@dataclass(eq=False)
class Evaluation:
    """What was found of one layer of one network: its figures by name, and a row a feature."""

    evidence: Evidence
    figures: dict[str, Statistic]
    features: pd.DataFrame
    best: np.ndarray | None = None

    def value(self, name: str) -> float | None:
        """Return a figure's value, None where it is undefined or was not taken."""
        found = self.figures.get(name)
        return None if found is None else found.value

    def p(self, name: str) -> float | None:
        """Return a figure's p-value, None where there is none."""
        found = self.figures.get(name)
        return None if found is None else found.p

    def low(self, name: str) -> float | None:
        """Return the lower end of a figure's interval, None where there is none."""
        found = self.figures.get(name)
        return None if found is None else found.low


def _finite_or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


class Collector:
    """Collects figures of one layer."""

    def __init__(self, evidence: Evidence, network: str) -> None:
        self.layer, self.network = evidence.layer, network
        self.figures: dict[str, Statistic] = {}

    def take(
        self,
        name: str,
        found: Interval | float,
        p: float = np.nan,
        count: int | None = None,
        note: str = "",
        interval: str = BOOTSTRAP,
    ) -> None:
        """Take a figure; `interval` says what the ends of `found` are."""
        value = found if isinstance(found, Interval) else Interval(float(found))
        low, high = _finite_or_none(value.low), _finite_or_none(value.high)
        self.figures[name] = Statistic(
            self.layer,
            self.network,
            name,
            _finite_or_none(value.value),
            low,
            high,
            _finite_or_none(p),
            count,
            note,
            "" if low is None else interval,
        )


class StageWatcher(Protocol):
    """What is told of the progress."""

    def stage(self, name: str, done: int, total: int) -> None:
        """`done` of `total` parts of a stage are made."""


@np.errstate(invalid="ignore")  # features that are infinite whatever the image; `live` leaves them out
def evaluate_layer(evidence: Evidence, network: str = "trained", watcher: StageWatcher | None = None) -> Evaluation:
    """Return all figures of a layer's map that its evidence allows."""

    def report(done: int, total: int) -> None:
        if watcher is not None:
            watcher.stage(f"figures of {evidence.layer}, {network}", done, total)

    taker = Collector(evidence, network)
    table = pd.DataFrame(index=pd.Index(evidence.names, name="feature"))
    add_repeatability(evidence, taker, table)
    report(1, 5)
    given = evidence.photographs
    best = None if given is None else add_photographs(evidence, given.astype(np.float64), taker, table)
    report(2, 5)
    if best is not None:
        add_processing_path(evidence, taker, table, best)
    report(3, 5)
    add_weights(evidence, taker)
    report(4, 5)
    if evidence.clusters is not None:
        add_clusters(evidence, evidence.clusters, taker)
    report(5, 5)
    return Evaluation(evidence, taker.figures, table, best)


def add_repeatability(evidence: Evidence, taker: Collector, table: pd.DataFrame) -> None:
    """Take repeatability over seeds: of S, of clusters, of each feature."""
    who, kept = evidence.alive, evidence.kept
    tables = [evidence.profile(A, who) for A in evidence.seeds]
    inside = np.ix_(who, who)
    seeds, found = len(tables), reliability.repeatability([t[inside] for t in tables])
    pairs = int(who.sum() * (who.sum() - 1) // 2)
    taker.take("repeatability", found, count=pairs)
    of_map = Interval(*(reliability.spearman_brown(v, kept) for v in (found.value, found.low, found.high)))
    taker.take("repeatability_of_map", of_map, count=kept)
    of_all = Interval(*(reliability.spearman_brown(v, seeds) for v in (found.value, found.low, found.high)))
    taker.take("repeatability_of_all", of_all, count=seeds)
    needed = reliability.seeds_needed(found.value, TARGET_RELIABILITY)
    taker.take("seeds_needed", np.nan if needed is None else needed)
    live = np.ix_(evidence.live, evidence.live)
    taker.take("stimuli_reliability", agreement.split_half(evidence.own[live]), count=int(evidence.live.sum()))
    single = reliability.feature_reliability(tables)
    own = np.array([reliability.spearman_brown(r, kept) for r in single])
    table["reliability_single_seed"] = finite_column(single)
    table["reliability"] = finite_column(own)
    table["reliable"] = pd.array(np.nan_to_num(own, nan=-1) >= RELIABLE, dtype="boolean")
    if seeds < 2 or who.sum() < 4:  # too little to tell: nothing is said against any feature
        table["reliable"] = pd.array([pd.NA] * len(own), dtype="boolean")
        return
    known = single[np.isfinite(single)]
    quartiles = np.percentile(known, [50, 5, 95]) if len(known) else [np.nan] * 3
    taker.take("feature_reliability", Interval(*map(float, quartiles)), count=len(known), interval=FEATURE_RANGE)
    marked = int((~table["reliable"]).sum())
    taker.take("unreliable_features", marked, count=len(own))
    names = pd.Index(np.array(evidence.names)[who])
    frames = [pd.DataFrame(t[inside], index=names, columns=names) for t in tables]
    graphs = [clustering.neighbour_graph(f, evidence.neighbours) for f in frames]
    labels, again = ([clustering.communities(g, seed=k).labels.to_numpy() for g in graphs] for k in (0, 1))
    taker.take("ari_of_seeds", *_mean_ari(combinations(labels, 2)), interval=RANGE)
    taker.take("ari_of_louvain", *_mean_ari(zip(labels, again, strict=True)), interval=RANGE)


def _mean_ari(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[Interval, float, int]:
    """Return the mean ARI of pairs of partitions with the least and most, no p-value, and their number.

    A pair of which both put all features into one cluster, or each into one of its own, agrees on nothing: it does
    not count.
    """
    ari = [correlation.adjusted_rand(a, b) for a, b in pairs if not (_is_trivial(a) and _is_trivial(b))]
    if not ari:
        return Interval(float("nan")), float("nan"), 0
    ends = (min(ari), max(ari)) if len(ari) > 1 else (float("nan"), float("nan"))
    return Interval(float(np.mean(ari)), *ends), float("nan"), len(ari)


def _is_trivial(labels: np.ndarray) -> bool:
    return len(np.unique(labels)) in (1, len(labels))


def add_photographs(evidence: Evidence, photographs: np.ndarray, taker: Collector, table: pd.DataFrame) -> np.ndarray:
    """Take agreement with photographs; return each feature's best ones (D x `BEST`)."""
    S, who = evidence.S, evidence.live
    P = photograph_similarity(photographs, who)
    raw = agreement.mantel(S, P)
    taker.take("photographs_pearson", raw.r, raw.p, raw.pairs)
    by_rank = agreement.mantel(S, P, method="spearman")
    taker.take("photographs_spearman", by_rank.r, by_rank.p, by_rank.pairs)
    halves = agreement.split_half(photographs[:, who])
    taker.take("photographs_reliability", halves, count=len(photographs))
    mine = taker.figures["repeatability_of_map"].value
    corrected = agreement.disattenuate(raw.r.value, np.nan if mine is None else mine, halves.value)
    taker.take("photographs_corrected", corrected, note=_why_uncorrected(mine, halves.value))
    mean, deviation = photographs.mean(axis=0), photographs.std(axis=0)
    for kind in ("layer", "pair"):
        distance = np.full(S.shape, np.nan)
        inside = np.ix_(who, who)
        distance[inside] = agreement.extreme_activation_distance(evidence.own[inside], mean[who], deviation[who], kind)
        found = agreement.mantel(1 - 2 * distance**2, P, method="spearman", permutations=99)
        taker.take(f"dora_{kind}_spearman", found.r, found.p, found.pairs)
    ratio = agreement.multiples_of_best(np.diag(evidence.own), photographs)
    table["multiple_of_best_photograph"] = finite_column(np.where(who, ratio, np.nan))
    known = ratio[who & np.isfinite(ratio)]
    spread = np.percentile(known, [50, 5, 95]) if len(known) else [np.nan] * 3
    taker.take("multiple", Interval(*map(float, spread)), count=len(known), interval=FEATURE_RANGE)
    below = float((known < 1).mean()) if len(known) else np.nan
    taker.take("below_best_photograph", below, count=len(known))
    best = agreement.best_photographs(photographs, min(BEST_PHOTOGRAPHS, len(photographs)))
    table["best_photograph"] = pd.array([k if w else pd.NA for k, w in zip(best[:, 0], who, strict=True)], "Int64")
    return best


def _why_uncorrected(mine: float | None, photographs: float) -> str:
    """Return which reliability is too low for a correction, "" where none is."""
    least = agreement.CORRECTABLE
    named = (("the map's own", mine), ("the photographs'", photographs))
    low = [f"{what} reliability is {v:.3f}" for what, v in named if v is not None and np.isfinite(v) and v < least]
    return f"{' and '.join(low)}, below {least}" if low else ""


def photograph_similarity(photographs: np.ndarray, who: np.ndarray) -> np.ndarray:
    """Return S from photographs (N x D), taken over the features in `who`: D x D with NaN for the others."""
    full = np.full((photographs.shape[1],) * 2, np.nan)
    full[np.ix_(who, who)] = profile_correlations(photographs[:, who].astype(np.float64))
    return full


def add_processing_path(evidence: Evidence, taker: Collector, table: pd.DataFrame, best: np.ndarray) -> None:
    """Take the processing-path check at every layer from the first to the features' own."""
    who, passed = evidence.live, evidence.passed_over
    taker.take("path_passed_over", passed, count=len(evidence.paths) + passed)
    for layer, (images, photographs) in evidence.paths.items():
        found: PathCheck = agreement.processing_path(
            images[who].astype(np.float64), photographs.astype(np.float64), best[who]
        )
        note = f"own {found.own:.3f}, same {found.same:.3f}, other {found.other:.3f}"
        taker.take(f"path:{layer}", found.score, count=found.features, note=note)
        if layer == evidence.layer:
            scores = np.full(len(who), np.nan)
            scores[who] = found.scores
            table["path_score"] = finite_column(scores)


def add_weights(evidence: Evidence, taker: Collector) -> None:
    """Take the agreement of S with the cosines of incoming and outgoing weights."""
    for name, given in (("incoming", evidence.incoming), ("outgoing", evidence.outgoing)):
        if given is not None:
            cosines, groups = given
            found = agreement.mantel(evidence.S, cosines, groups=groups)
            taker.take(f"{name}_weights", found.r, found.p, found.pairs)
            by_rank = agreement.mantel(evidence.S, cosines, groups=groups, method="spearman", permutations=99)
            taker.take(f"{name}_weights_spearman", by_rank.r, by_rank.p, by_rank.pairs)


def add_clusters(evidence: Evidence, clusters: Clusters, taker: Collector) -> None:
    """Take what the run's clusters are, and what is left of modularity with A permuted within columns."""
    taker.take("clusters", len([s for s in clusters.communities.sizes if s > 1]) if clusters.allowed else 0)
    p = max(clusters.p_permuted, clusters.p_factor)
    taker.take("modularity", clusters.communities.mean_modularity, p)
    if len(clusters.permuted):
        low, high = np.percentile(clusters.permuted, [2.5, 97.5])
        null = Interval(float(clusters.permuted.mean()), float(low), float(high))
        taker.take("modularity_permuted", null, count=len(clusters.permuted), interval=NULL_RANGE)


def statistics_frame(figures: list[Statistic]) -> pd.DataFrame:
    """Return figures as a table, undefined cells empty."""
    frame = pd.DataFrame([vars(f) for f in figures])
    for column in ("value", "low", "high", "p"):
        frame[column] = finite_column(frame[column].to_numpy())
    frame["count"] = pd.array(frame["count"].to_list(), dtype="Int64")
    return frame


@dataclass(eq=False)
class Validation:
    """What a validation found, by layer.

    Attributes
    ----------
    folder : where it lies
    trained, random : the trials of the network itself, and of the same with random weights (empty where there is none)
    permuted : figures with A permuted within columns
    reason : why there are none with random weights, "" where there are
    """

    folder: Path
    trained: dict[str, Evaluation]
    random: dict[str, Evaluation]
    permuted: dict[str, dict[str, Statistic]]
    reason: str = ""

    @property
    def figures(self) -> pd.DataFrame:
        """A row a figure: layer, network, name, value, low, high, p, count, note, interval (what low to high is)."""
        rows: list[Statistic] = []
        for layer, trial in self.trained.items():
            rows += trial.figures.values()
            rows += self.random[layer].figures.values() if layer in self.random else []
            rows += self.permuted[layer].values()
        return statistics_frame(rows)
