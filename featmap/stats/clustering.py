"""From S to clusters: neighbour graph, communities, modularity against two null models, and order of leaves.

The map that is clustered is that of the article's section "Feature Visualization from First Principles".

References
----------
- Louvain: Blondel et al. (2008), doi 10.1088/1742-5468/2008/10/P10008.
- Consensus by evidence accumulation: Fred & Jain (2005), doi 10.1109/TPAMI.2005.113.
- Adjusted Rand index: Hubert & Arabie (1985), doi 10.1007/BF01908075.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import networkx as nx
import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import fcluster, leaves_list, linkage, optimal_leaf_ordering

from featmap.errors import FeatmapError
from featmap.stats.correlation import DIGITS, TIE, signed_roots
from featmap.stats.frames import PANEL, natural_order, symmetric_values
from featmap.stats.measures import profile, profile_correlations, select_stimuli, standardise_and_centre
from featmap.stats.reliability import adjusted_rand

ORDERED_LEAVES = 1200
"""Number of features up to which leaves are ordered optimally: the time grows with the cube of this number."""
MANY, DRAWS, DRAWS_OF_MANY = 4000, 100, 20
"""Draws of each null model by default: fewer for more than `MANY` features, of which each draw takes half a minute."""

Progress = Callable[[int, int], None]
_Null = Callable[[np.random.Generator], np.ndarray]


@dataclass(frozen=True, eq=False)
class _Edges:
    """A weighted graph on the nodes 0 to n - 1, each edge once."""

    n: int
    head: np.ndarray
    tail: np.ndarray
    weight: np.ndarray

    def modularity(self, labels: np.ndarray) -> float:
        """Compute the weighted modularity of n labels, in [-1/2, 1]; 0 for a graph without edges."""
        # networkx.community.modularity is the same but for the order of sums, on which last digits on record depend
        total = self.weight.sum()
        if not total > 0:
            return 0.0
        inside = self.weight[labels[self.head] == labels[self.tail]].sum() / total
        ends = np.concatenate([labels[self.head], labels[self.tail]])
        return float(inside - ((np.bincount(ends, np.tile(self.weight, 2)) / (2 * total)) ** 2).sum())

    def louvain(self, seeds: Iterable[int]) -> np.ndarray:
        """Run Louvain once for each seed; return len(seeds) x n labels."""
        # On integer nodes, the sets inside networkx have the same order in every process.
        graph: nx.Graph = nx.Graph()
        graph.add_nodes_from(range(self.n))
        ends = zip(self.head.tolist(), self.tail.tolist(), self.weight.tolist(), strict=True)
        graph.add_weighted_edges_from(ends)
        runs = []
        for seed in seeds:
            labels = np.zeros(self.n, dtype=np.int64)
            for number, members in enumerate(nx.community.louvain_communities(graph, seed=int(seed))):
                labels[list(members)] = number
            runs.append(labels)
        return np.array(runs)


def _nearest_neighbours(S: np.ndarray, k: int) -> _Edges:
    """Build the k-nearest-neighbour graph of symmetric similarities, overwriting S; ties go to the lower position."""
    weight = np.round(S, DIGITS, out=S)
    weight[~(weight > 0)] = 0.0
    np.fill_diagonal(weight, 0.0)
    is_neighbour = np.zeros(weight.shape, dtype=bool)
    for first in range(0, len(weight), PANEL):  # a sort of all rows at once takes three times the memory of S
        rows = slice(first, first + PANEL)
        np.put_along_axis(is_neighbour[rows], np.argsort(-weight[rows], axis=1, kind="stable")[:, :k], True, axis=1)
    head, tail = np.nonzero(np.triu((is_neighbour | is_neighbour.T) & (weight > 0)))
    return _Edges(len(weight), head, tail, weight[head, tail])


def neighbour_graph(S: pd.DataFrame, k: int = 10) -> nx.Graph:
    """Build the k-nearest-neighbour graph of a symmetric frame.

    Two features are joined if either is among the `k` most similar ones of the other. Similarities that are undefined
    or not above 0 join nothing; they count to 12 decimals and ties go by label ("a:9" before "a:10"), so that the order
    of S decides nothing but the order of the nodes.

    Parameters
    ----------
    S : pandas.DataFrame
        Similarity, M x M; NaN where undefined.
    k : int, default 10
        Neighbours, 1 or more.

    Returns
    -------
    networkx.Graph
        Nodes in S's order (some have more than k neighbours, some may have none); edge attribute `weight`, in (0, 1]
        for a profile and high where features are alike; graph attribute `k`.

    Raises
    ------
    FeatmapError
        If `k` is below 1 or S is not square and symmetric.
    """
    if k < 1:
        raise FeatmapError(f"k = {k} neighbours; at least 1 is needed")
    labels, order, values = list(S.columns), natural_order(S.columns), symmetric_values(S)
    if (np.diff(order) != 1).any():  # else in order already: the copy would take as much memory as S
        values = values[np.ix_(order, order)]
    edges = _nearest_neighbours(values, k)
    one, two = np.sort([order[edges.head], order[edges.tail]], axis=0)
    graph: nx.Graph = nx.Graph(k=k)
    graph.add_nodes_from(labels)
    for e in np.lexsort((two, one)):
        graph.add_edge(labels[one[e]], labels[two[e]], weight=float(edges.weight[e]))
    return graph


def _consensus(runs: np.ndarray) -> np.ndarray:
    """Compute the partition that R x n runs agree on, by evidence accumulation (doi 10.1109/TPAMI.2005.113).

    Average linkage on 1 - (the share of runs that put two things together), cut at 0.5.
    """
    if runs.shape[1] < 2:
        return np.zeros(runs.shape[1], dtype=np.int64)
    n, first = runs.shape[1], 0
    apart = np.empty(n * (n - 1) // 2)  # condensed as in SciPy: a square table takes as much memory as S
    for k in range(1, n):
        apart[first : first + n - k] = 1.0 - (runs[:, k - 1 : k] == runs[:, k:]).mean(axis=0)
        first += n - k
    tree = linkage(apart, method="average")
    return np.asarray(fcluster(tree, t=0.5, criterion="distance"), dtype=np.int64)


def _by_size(labels: np.ndarray) -> np.ndarray:
    """Rename labels 0, 1, ... by falling size, then by first member."""
    _, first, inverse, size = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.lexsort((first, -size))] = np.arange(len(first))
    return rank[inverse]


@dataclass(frozen=True, eq=False)
class Communities:
    """Consensus communities of a graph.

    Parameters
    ----------
    labels : pandas.Series
        Community of each node, 0 the largest, in the order of the graph's nodes.
    modularity : float
        Modularity of the consensus, in [-1/2, 1]; high where edges stay within communities.
    run_modularity : tuple of float
        Modularity of each Louvain run.
    mean_modularity : float
        Mean of these.
    self_agreement : float
        Mean adjusted Rand index over pairs of runs; 1 where the runs' seeds do not matter.
    """

    labels: pd.Series
    modularity: float
    run_modularity: tuple[float, ...]
    mean_modularity: float
    self_agreement: float

    @property
    def sizes(self) -> list[int]:
        """Number of nodes in communities 0, 1, and so on."""
        return np.bincount(self.labels.to_numpy(dtype=np.int64)).tolist()


def communities(graph: nx.Graph, runs: int = 50, seed: int = 0) -> Communities:
    """Compute the consensus of several Louvain partitions of a weighted graph.

    Louvain visits nodes in the order of their labels, so that the order in which the graph was built is of no
    consequence. Nodes without edges are communities of one.

    Parameters
    ----------
    graph : networkx.Graph
        Graph; edge attribute `weight`, 1 where it is missing.
    runs : int, default 50
        Louvain runs, each with its own seed; 2 or more.
    seed : int, default 0
        Seed that the runs' seeds derive from.

    Returns
    -------
    Communities
        Consensus, and how far the runs agree.

    Raises
    ------
    FeatmapError
        For fewer than 2 runs or a negative seed.
    """
    if runs < 2 or seed < 0:
        raise FeatmapError(f"runs = {runs}, seed = {seed}; allowed: runs from 2, seeds from 0")
    nodes = list(graph)
    position = np.argsort(natural_order(nodes))
    at = dict(zip(nodes, position.tolist(), strict=True))
    ends = sorted((*sorted((at[u], at[v])), w) for u, v, w in graph.edges(data="weight", default=1.0))
    head, tail, weight = np.array(ends, dtype=float).reshape(-1, 3).T
    edges = _Edges(len(nodes), head.astype(int), tail.astype(int), weight)
    partitions = edges.louvain(np.random.SeedSequence(seed).generate_state(runs).tolist())
    consensus = _consensus(partitions)
    modularity = tuple(edges.modularity(labels) for labels in partitions)
    return Communities(
        labels=pd.Series(_by_size(consensus[position]), index=nodes, name="cluster"),
        modularity=edges.modularity(consensus),
        run_modularity=modularity,
        mean_modularity=float(np.mean(modularity)),
        self_agreement=_self_agreement(partitions),
    )


def _self_agreement(partitions: np.ndarray) -> float:
    """Compute the mean adjusted Rand index of all pairs of runs, once for each two partitions that differ."""
    distinct, which = np.unique(partitions, axis=0, return_inverse=True)
    index = np.ones((len(distinct), len(distinct)))
    for i, j in combinations(range(len(distinct)), 2):
        index[i, j] = index[j, i] = adjusted_rand(distinct[i], distinct[j])
    one, two = np.triu_indices(len(partitions), 1)
    return float(np.mean(index[which.ravel()[one], which.ravel()[two]]))


@dataclass(frozen=True, eq=False)
class Clusters:
    """Clusters of features, or the answer that there are none.

    Parameters
    ----------
    labels : pandas.Series
        Cluster of each live feature, 0 the largest; all 0 where no clusters are allowed.
    allowed : bool
        Whether the data reject both null models and fall into two or more groups.
    reason : str
        Why clusters are allowed, or why not.
    p_permuted, p_factor : float
        p-values of both nulls, (1 + b) / (draws + 1) with b the draws that reach the data's modularity; 1 without any.
    permuted, factor : numpy.ndarray
        Modularity of each null model's draws, to be compared to `communities.mean_modularity`.
    communities : Communities
        Consensus, whether clusters are allowed or not.
    similarity : pandas.DataFrame
        Profile similarity S that was clustered.
    graph : networkx.Graph
        Its neighbour graph.
    """

    labels: pd.Series
    allowed: bool
    reason: str
    p_permuted: float
    p_factor: float
    permuted: np.ndarray
    factor: np.ndarray
    communities: Communities
    similarity: pd.DataFrame
    graph: nx.Graph

    def summary(self) -> str:
        """Say in one sentence whether there are clusters.

        Returns
        -------
        str
            Number of clusters and of features in them, or the reason why there are none.
        """
        if not self.allowed:
            return f"No clusters among {len(self.labels)} features: {self.reason}."
        sizes = [size for size in self.communities.sizes if size > 1]
        count = f"{len(sizes)} clusters hold {sum(sizes)} of {len(self.labels)} features"
        return f"{count}: {self.reason}; Louvain runs agree by ARI {self.communities.self_agreement:.2f}."


def _one_factor(X: np.ndarray) -> _Null:
    """Build the Gaussian null model that keeps the leading factor of X, roots of responses, and nothing else.

    Z, the column-standardised and row-centred X, is s u v' + E with s u v' its leading singular component. A
    draw is s u v' + N, N independent Gaussian with the population variance that E has in each column. The
    loadings v stay as they are: where they fall into two groups, so do the features of every draw.
    """
    Z, _ = standardise_and_centre(X)
    u, s, v = np.linalg.svd(Z, full_matrices=False)
    common = s[0] * np.outer(u[:, 0], v[0])
    deviation = (Z - common).std(axis=0)
    return lambda rng: common + deviation * rng.standard_normal(common.shape)


def _draw(null: _Null, k: int, *key: int) -> float:
    """Compute the modularity of one Louvain run on the neighbour graph of one draw, seeded by `key`."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(key[0], spawn_key=key[1:])))
    # The null models draw what S correlates, roots of responses: no second root is taken.
    edges = _nearest_neighbours(profile_correlations(null(rng), roots=False), k)
    return edges.modularity(edges.louvain([int(rng.integers(2**32))])[0])


def _too_little(table: np.ndarray, graph: nx.Graph) -> str:
    """Say why images x features cannot be clustered at all, "" where they can."""
    for count, what in zip(table.shape, ("images", "live features with a profile"), strict=True):
        if count < 3:
            return f"{count} {what} where at least 3 are needed"
    varying = int((table != table[:1]).any(axis=0).sum())  # features may vary only on images beyond those chosen
    if varying < 3:
        return f"{varying} features vary over the images of the null models, where at least 3 are needed"
    return "" if graph.number_of_edges() else "no two features have a similarity above 0"


def _decide(consensus: Communities, p: list[float], alpha: float) -> tuple[bool, str]:
    """Decide whether there are clusters, and say why."""
    Q = f"modularity {consensus.mean_modularity:.3f}"
    if max(p) > alpha:
        null = "permuted columns" if p[0] > alpha else "one common factor"
        return False, f"{Q} is within what {null} would give (p = {max(p):.3g})"
    if sum(size > 1 for size in consensus.sizes) < 2:
        return False, "the Louvain runs agree on fewer than two groups of two or more"
    return True, f"{Q}, p = {p[0]:.3g} against permuted columns and {p[1]:.3g} against one common factor"


@dataclass(frozen=True)
class ClusterSettings:
    """Settings of `find_clusters`.

    Parameters
    ----------
    k : int, default 10
        Neighbours, as in `neighbour_graph`.
    runs : int, default 50
        Louvain runs on the data.
    draws : int or None, default None
        Draws of each null model; None takes `DRAWS`, or `DRAWS_OF_MANY` above `MANY` features. Fewer than
        1 / alpha - 1 can reject no null.
    seed : int, default 0
        Seed that all randomness derives from.
    alpha : float, default 0.05
        Level that neither p may exceed.

    Raises
    ------
    FeatmapError
        If `draws` or `alpha` is out of range.
    """

    k: int = 10
    runs: int = 50
    draws: int | None = None
    seed: int = 0
    alpha: float = 0.05

    def __post_init__(self) -> None:
        if (self.draws is not None and self.draws < 1) or not 0 < self.alpha < 1:
            given = f"draws = {self.draws}, alpha = {self.alpha}"
            raise FeatmapError(f"{given}; allowed: draws from 1, alpha between 0 and 1")


def find_clusters(
    A: pd.DataFrame,
    null: pd.Series,
    live: Sequence[str] | None = None,
    settings: ClusterSettings | None = None,
    progress: Progress | None = None,
) -> Clusters:
    """Find clusters of the live features, and test their modularity against two nulls.

    The statistic is the modularity of a Louvain run on the neighbour graph: the mean over `runs` for the data, one run
    for each draw of a null model. The null models are drawn from the signed roots of A (live x live), which S is
    computed from: the first permutes the columns independently; the second is Gaussian with the leading factor of the
    standardised and centred roots, because features along a single continuous gradient are modular too, without forming
    clusters. p = (1 + b) / (draws + 1), with b the number of draws that reach the data's statistic.

    Parameters
    ----------
    A : pandas.DataFrame
        Responses, N images x M features.
    null : pandas.Series
        Response of each feature to the null image.
    live : sequence of str, optional
        Live features; default: all.
    settings : ClusterSettings, optional
        Neighbours, runs, draws, seed and level.
    progress : callable, optional
        Called with (done, total) after each draw.

    Returns
    -------
    Clusters
        Clusters, or the reason why there are none. Too few features, or a graph without edges, is no error: there are
        then no clusters.

    Raises
    ------
    FeatmapError
        For what `profile` rejects.
    """
    return cluster_similarity(profile(A, null, live), select_stimuli(A, null, live), settings, progress)


def cluster_similarity(
    S: pd.DataFrame, stimuli: pd.DataFrame, settings: ClusterSettings | None = None, progress: Progress | None = None
) -> Clusters:
    """Find the clusters of a profile similarity as `find_clusters` does.

    Parameters
    ----------
    S : pandas.DataFrame
        Profile similarity, M x M.
    stimuli : pandas.DataFrame
        Responses that the null models are drawn from, N images x M features: those of S, or of a part of its images.
    settings : ClusterSettings, optional
        Neighbours, runs, draws, seed and level.
    progress : callable, optional
        Called with (done, total) after each draw.

    Returns
    -------
    Clusters
        Clusters, or the reason why there are none.
    """
    settings = settings or ClusterSettings()
    k, seed, draws = settings.k, settings.seed, settings.draws or (DRAWS if len(S) <= MANY else DRAWS_OF_MANY)
    graph = neighbour_graph(S, k)
    consensus = communities(graph, settings.runs, seed)
    # as in S, images that no feature responds to finitely are left out
    X = stimuli.loc[np.isfinite(stimuli.to_numpy()).any(axis=1), np.isfinite(symmetric_values(S).diagonal())]
    # in natural order, so that the draws do not depend on the order in which features were given
    table = signed_roots(X.to_numpy()[np.ix_(natural_order(X.index), natural_order(X.columns))])
    report = progress or (lambda done, total: None)
    values, reason = np.empty((2, 0)), _too_little(table, graph)
    if not reason:
        nulls: tuple[_Null, _Null] = (lambda rng: rng.permuted(table, axis=0), _one_factor(table))
        values = np.empty((2, draws))
        for which, draw in np.ndindex(2, draws):
            values[which, draw] = _draw(nulls[which], k, seed, which, draw)
            report(1 + which * draws + draw, 2 * draws)
    # Equal modularities may differ by the rounding of a sum; they count against the data.
    reached = (values >= consensus.mean_modularity - TIE).sum(axis=1)
    p = [float(p) for p in (1 + reached) / (1 + values.shape[1])]
    allowed, reason = (False, reason) if reason else _decide(consensus, p, settings.alpha)
    labels = consensus.labels if allowed else consensus.labels * 0
    return Clusters(labels, allowed, reason, p[0], p[1], values[0], values[1], consensus, S, graph)


def _condense(table: np.ndarray) -> np.ndarray:
    """Return the part of a square table above its diagonal, row by row."""
    return np.concatenate([row[k:] for k, row in enumerate(table, 1)]) if len(table) else table.ravel()


def leaf_order(S: pd.DataFrame, labels: pd.Series | Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Compute a linkage in which every cluster is a subtree, and order its leaves.

    Average linkage on the distance sqrt(2 - 2 S), with S = 0 where it is undefined, is computed first within clusters,
    then between them. A join of clusters is drawn at least as high as the highest join within any cluster. Up to
    `ORDERED_LEAVES` leaves are then ordered optimally.

    Parameters
    ----------
    S : pandas.DataFrame
        Profile similarity, M x M; NaN where undefined.
    labels : pandas.Series or sequence of int
        Cluster of each feature, by label or in the order of S.

    Returns
    -------
    tree : numpy.ndarray
        Linkage, (M - 1) x 4 as in scipy, heights in [0, 2]; 0 x 4 for fewer than two features.
    order : numpy.ndarray
        M positions in S, from one end of the heatmap to the other.

    Raises
    ------
    FeatmapError
        For labels that miss a feature, or if S is not square and symmetric.
    """
    # condensed as in SciPy and in place: each square table takes as much memory as S
    distance, M = _condense(symmetric_values(S)), len(S)
    cluster = np.asarray(labels.reindex(S.columns) if isinstance(labels, pd.Series) else labels)
    if len(cluster) != M or pd.isna(cluster).any():
        raise FeatmapError(f"the labels do not name a cluster for each of the {M} features")
    if M < 2:
        return np.zeros((0, 4)), np.arange(M)
    np.subtract(2.0, np.multiply(np.nan_to_num(distance, copy=False), 2.0, out=distance), out=distance)
    np.sqrt(np.maximum(distance, 0.0, out=distance), out=distance)
    apart = distance.copy() if M <= ORDERED_LEAVES else distance
    # No distance exceeds 2: set 4 further apart, clusters are joined only when each is complete.
    apart[_condense(cluster[:, None] != cluster)] += 4.0
    tree = linkage(apart, method="average")
    tree[:, 2] = np.maximum.accumulate(np.where(tree[:, 2] >= 4.0, tree[:, 2] - 4.0, tree[:, 2]))
    if M <= ORDERED_LEAVES:
        tree = optimal_leaf_ordering(tree, distance)
    return tree, np.asarray(leaves_list(tree), dtype=np.intp)
