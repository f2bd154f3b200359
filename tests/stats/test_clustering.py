from __future__ import annotations

from collections.abc import Callable

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from featmap.errors import FeatmapError
from featmap.stats import clustering
from featmap.stats.clustering import ClusterSettings, communities, find_clusters, leaf_order, neighbour_graph
from featmap.stats.measures import profile
from featmap.stats.reliability import adjusted_rand
from tests.helpers import oracles

pytestmark = pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning")
laws = settings(deadline=None, derandomize=True, max_examples=25)


def rng(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def labels(n: int) -> list[str]:
    return [f"inception4a:{i}" for i in range(n)]


def frame(values: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(values, index=labels(len(values)), columns=labels(values.shape[1]))


def zeros(A: pd.DataFrame) -> pd.Series:
    return pd.Series(0.0, index=A.columns)


def gaussian(n: int, seed: int = 0) -> pd.DataFrame:
    return frame(rng(seed).standard_normal((n, n)))


def planted(sizes: list[int], seed: int = 0, noise: float = 0.5) -> tuple[pd.DataFrame, np.ndarray]:
    """A in which features of one block, in shuffled order and of any scale, share their images."""
    block = rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    n = len(block)
    A = (block[:, None] == block) + noise * rng(seed + 1).standard_normal((n, n)) + 2 * np.eye(n)
    return frame(A * rng(seed + 2).uniform(0.01, 100, n)), block


def similarity(n: int, seed: int = 0) -> pd.DataFrame:
    A = gaussian(n, seed)
    return profile(A, zeros(A))


def edges(graph: nx.Graph) -> dict[tuple[str, str], float]:
    return {(min(a, b), max(a, b)): w for a, b, w in graph.edges(data="weight")}


# --- the neighbour graph --------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3, 10, 99])
def test_neighbour_graph_agrees_with_plain_loops(k: int) -> None:
    S = similarity(33, k)
    graph = neighbour_graph(S, k)
    assert list(graph) == list(S.columns) and graph.graph == {"k": k}
    expected = oracles.neighbours(S, k)
    assert edges(graph).keys() == expected.keys()
    assert all(w == pytest.approx(expected[e], abs=1e-11) for e, w in edges(graph).items())


def test_edges_come_in_canonical_order_and_as_plain_floats() -> None:
    graph = neighbour_graph(similarity(33))
    at = {node: i for i, node in enumerate(graph)}
    ends = [(at[a], at[b]) for a, b in graph.edges]
    assert ends == sorted(ends) and all(a < b for a, b in ends)
    assert {type(w) for _, _, w in graph.edges(data="weight")} == {float}


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(6, 40), k=st.integers(1, 8), copies=st.integers(0, 5))
@laws
def test_the_order_of_features_does_not_change_the_graph(seed: int, n: int, k: int, copies: int) -> None:
    # Copies are exact ties: which of them is a neighbour must not hang on the order either.
    A = gaussian(n, seed)
    A.iloc[:, :copies] = A.iloc[:, [0] * copies]
    order = list(rng(seed).permutation(A.columns))
    one = neighbour_graph(profile(A, zeros(A)), k)
    two = neighbour_graph(profile(A.loc[order, order], zeros(A)), k)
    assert edges(one).keys() == edges(two).keys()
    assert all(edges(two)[e] == pytest.approx(w, abs=1e-9) for e, w in edges(one).items())
    assert list(two) == order


def test_undefined_and_negative_similarities_join_nothing() -> None:
    S = frame(np.array([[1, 0.5, -0.9, np.nan], [0.5, 1, 0.0, np.nan], [-0.9, 0.0, 1, np.nan], [np.nan] * 4]))
    graph = neighbour_graph(S.convert_dtypes(), 3)
    assert edges(graph) == {("inception4a:0", "inception4a:1"): 0.5}
    assert list(graph) == labels(4)


def test_labels_sort_by_number() -> None:
    # Three exact ties for inception4a:0, of which k = 1 takes the lowest number, not the first text.
    values = np.full((11, 11), -1.0)
    values[0, [2, 9, 10]] = values[[2, 9, 10], 0] = 0.5
    graph = neighbour_graph(frame(values).iloc[::-1, ::-1], 1)
    assert sorted(graph["inception4a:0"]) == ["inception4a:10", "inception4a:2", "inception4a:9"]
    values[2, 0] = values[0, 2] = values[9, 0] = values[0, 9] = 0.4
    values[2, 3] = values[3, 2] = values[9, 3] = values[3, 9] = values[10, 3] = values[3, 10] = 0.9
    assert edges(neighbour_graph(frame(values).iloc[::-1, ::-1], 1)) == {
        ("inception4a:2", "inception4a:3"): 0.9,
        ("inception4a:3", "inception4a:9"): 0.9,
        ("inception4a:10", "inception4a:3"): 0.9,
        ("inception4a:0", "inception4a:10"): 0.5,
    }


def test_bad_settings_are_refused() -> None:
    A = gaussian(40)
    S = profile(A, zeros(A))
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: neighbour_graph(S, 0), "k = 0"),
        (lambda: neighbour_graph(A), "not symmetric"),
        (lambda: communities(neighbour_graph(S), runs=1), "runs = 1"),
        (lambda: communities(neighbour_graph(S), seed=-1), "seed = -1"),
        (lambda: find_clusters(A, zeros(A), settings=ClusterSettings(draws=0)), "draws = 0"),
        (lambda: find_clusters(A, zeros(A), settings=ClusterSettings(alpha=1.0)), "alpha = 1.0"),
        (lambda: adjusted_rand([0], [0, 1]), "1 and 2 things"),
        (lambda: leaf_order(S, [0] * 39), "each of the 40 features"),
        (lambda: leaf_order(S, pd.Series(0, index=S.columns[1:])), "each of the 40 features"),
    ]
    for call, match in calls:
        with pytest.raises(FeatmapError, match=match):
            call()


# --- agreement, modularity, consensus -------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=30))
@settings(deadline=None, derandomize=True, max_examples=100)
def test_adjusted_rand_agrees_with_scikit_learn_and_plain_loops(pairs: list[tuple[int, int]]) -> None:
    one, two = (list(x) for x in zip(*pairs, strict=True))
    found = adjusted_rand(one, two)
    assert found == pytest.approx(adjusted_rand_score(one, two), abs=1e-12)
    assert found == pytest.approx(oracles.adjusted_rand(one, two), abs=1e-12)
    assert found == pytest.approx(adjusted_rand(two, one), abs=1e-12)
    assert adjusted_rand(one, [9 - x for x in one]) == 1.0


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        # scikit-learn's documentation of adjusted_rand_score gives 0.57 (here exactly 4/7) and -0.5.
        ([0, 0, 1, 2], [0, 0, 1, 1], 4 / 7),
        ([0, 0, 1, 1], [0, 1, 0, 1], -0.5),
        ([0, 0, 0, 0], [0, 1, 2, 3], 0.0),
        ([0, 1, 2], [2, 0, 1], 1.0),
        ([], [], 1.0),
    ],
)
def test_adjusted_rand_of_known_cases(one: list[int], two: list[int], expected: float) -> None:
    assert adjusted_rand(one, two) == pytest.approx(expected, abs=1e-12)


def test_modularities_agree_with_networkx() -> None:
    graph = neighbour_graph(similarity(40), 5)
    found = communities(graph, runs=8)
    parts = [set(found.labels.index[found.labels == c]) for c in found.labels.unique()]
    assert found.modularity == pytest.approx(nx.community.modularity(graph, parts), abs=1e-12)
    numbers = nx.convert_node_labels_to_integers(graph)  # labels are in natural order already
    for seed, modularity in zip(np.random.SeedSequence(0).generate_state(8), found.run_modularity, strict=True):
        run = nx.community.louvain_communities(numbers, seed=int(seed))
        assert modularity == pytest.approx(nx.community.modularity(numbers, run), abs=1e-12)
    assert found.mean_modularity == pytest.approx(sum(found.run_modularity) / 8)


def test_consensus_agrees_with_plain_loops() -> None:
    compared = 0
    for seed in range(40):
        n = 3 + seed % 4
        runs = np.where(rng(seed).random((300, n)) < 0.7, np.arange(n) // 2, rng(seed + 1).integers(0, 3, (300, n)))
        share = (runs[:, :, None] == runs[:, None, :]).mean(axis=0)[np.triu_indices(n, 1)]
        if len(np.unique(share)) < len(share):
            continue  # equal distances may be joined in either order
        compared += 1
        found = clustering._consensus(runs)
        groups = {frozenset(np.flatnonzero(found == c).tolist()) for c in found}
        assert groups == {frozenset(g) for g in oracles.consensus(runs.tolist())}
    assert compared >= 10


def test_consensus_of_runs_that_split_differently() -> None:
    # By hand: 0 and 1 together in 2 of 3 runs (distance 1/3), 2 and 3 always; across never or once.
    runs = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1]])
    assert clustering._by_size(clustering._consensus(runs)).tolist() == [0, 0, 1, 1]


def test_two_cliques_are_two_communities_of_modularity_one_half() -> None:
    # Equal disjoint cliques: all weight inside, half of all ends in each, so Q = 1 - 2 / 4.
    found = communities(nx.disjoint_union(nx.complete_graph(5), nx.complete_graph(5)), runs=5)
    assert found.labels.tolist() == [0] * 5 + [1] * 5
    assert found.modularity == found.mean_modularity == pytest.approx(0.5)
    assert found.self_agreement == 1.0


def test_labels_go_by_falling_size_then_by_first_member() -> None:
    graph = nx.Graph()
    graph.add_nodes_from(labels(9))
    graph.add_edges_from((f"inception4a:{a}", f"inception4a:{b}") for a, b in [(1, 2), (3, 4), (5, 6), (6, 7), (5, 7)])
    found = communities(graph, runs=3)
    assert found.labels.tolist() == [3, 1, 1, 2, 2, 0, 0, 0, 4]
    assert found.sizes == [3, 2, 2, 1, 1]


def test_communities_do_not_depend_on_how_the_graph_was_built() -> None:
    graph, turned = neighbour_graph(similarity(40)), nx.Graph()
    turned.add_nodes_from(reversed(list(graph)))
    turned.add_weighted_edges_from((b, a, w) for a, b, w in reversed(list(graph.edges(data="weight"))))
    one, two = communities(graph, runs=10), communities(turned, runs=10)
    assert one.run_modularity == two.run_modularity
    assert adjusted_rand(one.labels, two.labels.reindex(one.labels.index)) == 1.0
    assert communities(graph, runs=10, seed=1).run_modularity != one.run_modularity


def test_graphs_without_edges_or_nodes() -> None:
    lonely = nx.Graph()
    lonely.add_nodes_from(labels(3))
    found = communities(lonely, runs=3)
    assert (found.labels.tolist(), found.modularity, found.self_agreement) == ([0, 1, 2], 0.0, 1.0)
    empty = communities(nx.Graph(), runs=3)
    assert len(empty.labels) == 0 and empty.sizes == []


# --- clusters against the nulls -------------------------------------------------------------------
