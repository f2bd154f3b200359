"""More of `test_clustering`: clusters and their nulls, order of the leaves."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.cluster.hierarchy import is_monotonic, is_valid_linkage, leaves_list, linkage
from scipy.spatial.distance import squareform

from featmap.mapping.tables import summarise_clusters
from featmap.stats import clustering
from featmap.stats.clustering import ClusterSettings, find_clusters, leaf_order, neighbour_graph
from featmap.stats.measures import profile
from featmap.stats.reliability import adjusted_rand
from tests.helpers.frames import to_masked
from tests.stats.test_clustering import frame, gaussian, labels, laws, planted, rng, similarity, zeros

pytestmark = pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning")


@pytest.mark.parametrize("sizes", [[12, 12, 12], [8, 8, 8, 8, 8], [16, 12, 8]])
def test_planted_blocks_are_found(sizes: list[int]) -> None:
    A, block = planted(sizes)
    found = find_clusters(A, zeros(A), settings=ClusterSettings(runs=10, draws=24))
    assert found.allowed and found.labels.index.equals(A.columns)
    assert adjusted_rand(found.labels, block) == 1.0
    assert found.p_permuted == found.p_factor == pytest.approx(1 / 25)
    assert found.summary().startswith(f"{len(sizes)} clusters hold {len(block)} of {len(block)} features: modularity")


def test_many_features_take_fewer_draws_of_which_none_may_reach_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    A, _ = planted([12, 12, 12])
    monkeypatch.setattr(clustering, "MANY", 35)
    found = find_clusters(A, zeros(A), settings=ClusterSettings(runs=2))
    assert len(found.permuted) == len(found.factor) == 20 and found.allowed
    assert found.p_permuted == pytest.approx(1 / 21)  # the least p that 20 draws can give is below the level
    monkeypatch.setattr(clustering, "MANY", 36)
    assert len(find_clusters(A, zeros(A), settings=ClusterSettings(runs=2)).permuted) == 100


def test_scaled_copies_are_clusters() -> None:
    seeds = gaussian(40, 3).iloc[:, :8].to_numpy()
    A = frame(np.repeat(seeds, 5, axis=1) * rng(4).uniform(0.1, 10, 40))
    found = find_clusters(A, zeros(A), settings=ClusterSettings(k=4, runs=10, draws=24))
    assert found.allowed
    assert adjusted_rand(found.labels, np.repeat(np.arange(8), 5)) == 1.0
    assert found.communities.self_agreement == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_unstructured_data_hold_no_clusters(seed: int) -> None:
    A = gaussian(40, seed)
    found = find_clusters(A, zeros(A), settings=ClusterSettings(runs=10, draws=24, seed=seed))
    assert not found.allowed and set(found.labels) == {0}
    assert len(found.communities.sizes) > 1
    assert found.summary() == f"No clusters among 40 features: {found.reason}."
    assert "is within what" in found.reason


def test_one_gradient_is_modular_and_no_cluster() -> None:
    # Features along one axis beat permuted columns; only the second null tells them from clusters.
    axis = rng(0).standard_normal((2, 48))
    A = frame(2 * np.outer(*axis) + rng(1).standard_normal((48, 48)))
    found = find_clusters(A, zeros(A), settings=ClusterSettings(runs=10, draws=24))
    assert found.p_permuted == pytest.approx(1 / 25) and found.p_factor > 0.05
    assert not found.allowed and "one common factor" in found.reason


def test_factor_null_keeps_leading_factor_and_residual_variance() -> None:
    A, _ = planted([10, 10, 10])
    Z, _ = clustering.standardise_and_centre(A.to_numpy())
    u, s, v = np.linalg.svd(Z)
    common = s[0] * np.outer(u[:, 0], v[0])
    null, generator = clustering._one_factor(A.to_numpy()), rng(0)
    noise = np.stack([null(generator) for _ in range(400)]) - common
    assert np.abs(noise.mean(axis=0)).max() < 0.3
    assert noise.std(axis=(0, 1)) == pytest.approx((Z - common).std(axis=0), rel=0.05)


def test_nulls_are_drawn_from_the_roots_that_s_is_computed_from() -> None:
    """Both null models, step by step: they are drawn from the roots of A, and no root is taken of a draw."""
    A, _ = planted([10, 10, 10])
    found = find_clusters(A, zeros(A), settings=ClusterSettings(runs=2, draws=3))
    roots = np.sign(A.to_numpy()) * np.sqrt(np.abs(A.to_numpy()))
    Z = (roots - roots.mean(axis=0)) / roots.std(axis=0)
    u, s, v = np.linalg.svd(Z - Z.mean(axis=1, keepdims=True), full_matrices=False)
    common = s[0] * np.outer(u[:, 0], v[0])
    deviation = (Z - Z.mean(axis=1, keepdims=True) - common).std(axis=0)

    def modularity(draw: np.ndarray, generator: np.random.Generator) -> float:
        z = (draw - draw.mean(axis=0)) / draw.std(axis=0)
        S = pd.DataFrame(np.corrcoef(z - z.mean(axis=1, keepdims=True), rowvar=False), range(30), range(30))
        graph = neighbour_graph(S)
        parts = nx.community.louvain_communities(graph, seed=int(generator.integers(2**32)))
        return float(nx.community.modularity(graph, parts))

    for draw in range(3):
        streams = [np.random.SeedSequence(0, spawn_key=(which, draw)) for which in (0, 1)]
        one, two = (np.random.Generator(np.random.PCG64(stream)) for stream in streams)
        expected = modularity(one.permuted(roots, axis=0), one)
        assert found.permuted[draw] == pytest.approx(expected, abs=0.01)
        expected = modularity(common + deviation * two.standard_normal(common.shape), two)
        assert found.factor[draw] == pytest.approx(expected, abs=0.01)


def test_p_counts_the_draws_that_reach_the_data() -> None:
    A = gaussian(36, 5)
    found = find_clusters(A, zeros(A), settings=ClusterSettings(runs=5, draws=19))
    for p, draws in ((found.p_permuted, found.permuted), (found.p_factor, found.factor)):
        assert len(draws) == 19
        assert p == (1 + sum(q >= found.communities.mean_modularity for q in draws)) / 20


def test_clusters_do_not_depend_on_the_order_of_features() -> None:
    A, _ = planted([12, 12, 12], noise=1.0)
    order = list(rng(9).permutation(A.columns))
    one = find_clusters(A, zeros(A), settings=ClusterSettings(runs=5, draws=9))
    two = find_clusters(A.loc[order, order], zeros(A), settings=ClusterSettings(runs=5, draws=9))
    assert adjusted_rand(one.communities.labels, two.communities.labels.reindex(A.columns)) == 1.0
    for a, b in ((one.permuted, two.permuted), (one.factor, two.factor)):
        assert b == pytest.approx(a, abs=1e-9)


def test_only_live_features_are_clustered() -> None:
    A, block = planted([12, 12, 12])
    dead = list(A.columns[::7])
    A[dead] = 0.0
    live = [x for x in A.columns if x not in dead]
    found = find_clusters(A, zeros(A), live, settings=ClusterSettings(runs=5, draws=24))
    assert list(found.labels.index) == live and found.allowed
    assert adjusted_rand(found.labels, block[A.columns.isin(live)]) == 1.0


def test_a_live_feature_without_a_profile_is_a_cluster_of_its_own() -> None:
    A, _ = planted([12, 12, 12])
    A["inception4a:5"] = 1.0
    found = find_clusters(A, zeros(A), settings=ClusterSettings(runs=5, draws=24))
    assert found.allowed and found.communities.sizes[-1] == 1
    assert found.labels["inception4a:5"] == len(found.communities.sizes) - 1
    assert "hold 35 of 36 features" in found.summary()
    said = summarise_clusters(found)
    assert (said["count"], said["sizes"], said["single"]) == (3, [12, 12, 11], 1), "as the sentence has it"
    assert f"modularity {said['modularity']:.3f}" in said["sentence"]
    assert said["modularity"] == pytest.approx(np.mean(found.communities.run_modularity))


@pytest.mark.parametrize(
    ("n", "live", "reason"),
    [
        (4, 0, "0 images"),
        (4, 1, "1 images"),
        (4, 2, "2 images"),
        (4, 4, "no two features have a similarity above 0"),
    ],
)
def test_too_little_to_cluster_is_an_answer(n: int, live: int, reason: str) -> None:
    A = frame(np.eye(n))
    found = find_clusters(A, zeros(A), labels(live), settings=ClusterSettings(runs=3, draws=5))
    assert not found.allowed and reason in found.reason and set(found.labels) <= {0}
    assert (found.p_permuted, found.p_factor, len(found.permuted)) == (1.0, 1.0, 0)


def test_images_without_a_finite_response_change_nothing() -> None:
    A, _ = planted([8, 8])
    S = profile(A, zeros(A), list(A.columns))
    broken = pd.concat([A, pd.DataFrame(np.nan, index=["black", "gray"], columns=A.columns)])
    settings = ClusterSettings(runs=5, draws=6)
    found, expected = (clustering.cluster_similarity(S, X, settings) for X in (broken, A))
    assert found.labels.equals(expected.labels) and found.p_factor == expected.p_factor
    assert np.array_equal(found.factor, expected.factor)


def test_features_that_do_not_vary_over_the_images_of_the_nulls_are_an_answer() -> None:
    A, _ = planted([8, 8])
    S = profile(A, zeros(A), list(A.columns))
    X = A.copy()
    X.iloc[:, 2:] = 1.0
    found = clustering.cluster_similarity(S, X, ClusterSettings(runs=5, draws=6))
    assert not found.allowed and found.reason.startswith("2 features vary over the images of the null models")


def test_progress_reaches_its_total() -> None:
    seen: list[tuple[int, int]] = []
    A = gaussian(12)
    settings = ClusterSettings(runs=2, draws=4)
    find_clusters(A, zeros(A), settings=settings, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 8) for i in range(1, 9)]


def test_same_input_same_output_in_every_process() -> None:
    script = (
        "import numpy as np, pandas as pd\nfrom featmap.stats.clustering import ClusterSettings, find_clusters\n"
        "names = [f'inception4a:{i}' for i in range(40)]\n"
        "A = pd.DataFrame(np.random.Generator(np.random.PCG64(7)).standard_normal((40, 40)), names, names)\n"
        "c = find_clusters(A, pd.Series(0.0, index=names), settings=ClusterSettings(runs=5, draws=3))\n"
        "print(c.communities.labels.tolist(), c.communities.run_modularity, c.permuted, c.factor)\n"
    )
    here = io.StringIO()
    with contextlib.redirect_stdout(here):
        exec(script, {})
    hashing = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    env = {**os.environ, "PYTHONHASHSEED": hashing}
    there = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert there.stdout == here.getvalue()


# --- the order of leaves --------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 30), clusters=st.integers(1, 6))
@laws
def test_leaf_order_is_a_valid_linkage_with_whole_clusters(seed: int, n: int, clusters: int) -> None:
    S, cluster = similarity(max(n, 3), seed).iloc[:n, :n], rng(seed).integers(0, clusters, n)
    tree, order = leaf_order(S, cluster)
    assert is_valid_linkage(tree) and is_monotonic(tree)
    assert tree[:, 2].min() >= 0 and tree[:, 2].max() <= 2
    assert sorted(order) == list(range(n)) and list(leaves_list(tree)) == list(order)
    changes = sum(a != b for a, b in zip(cluster[order], cluster[order][1:], strict=False))
    assert changes == len(set(cluster)) - 1
    again = leaf_order(S, pd.Series(cluster, index=S.columns).sample(frac=1, random_state=0))
    assert (again[0] == tree).all()


def test_leaf_order_of_one_cluster_is_average_linkage() -> None:
    S = similarity(20)
    distance = np.sqrt(2 - 2 * to_masked(S).data)
    np.fill_diagonal(distance, 0.0)
    expected = linkage(squareform(distance, checks=False), method="average")
    assert leaf_order(S, [0] * 20)[0][:, 2:] == pytest.approx(expected[:, 2:], abs=1e-12)


def test_clusters_join_at_their_mean_distance() -> None:
    # By hand: pairs at S = 1 inside (distance 0); across, distances sqrt(2), sqrt(1), sqrt(2), sqrt(1).
    values = np.array([[1, 1, 0, 0.5], [1, 1, 0, 0.5], [0, 0, 1, 1], [0.5, 0.5, 1, 1]])
    tree, _ = leaf_order(frame(values), [0, 0, 1, 1])
    assert tree[:, 2] == pytest.approx([0, 0, (1 + np.sqrt(2)) / 2], abs=1e-12)


def test_optimal_order_is_no_longer_than_any_other_and_skipped_for_many(monkeypatch: pytest.MonkeyPatch) -> None:
    S, cluster = similarity(24), np.repeat([0, 1, 2], 8)
    distance = np.sqrt(2 - 2 * to_masked(S).data)
    _, best = leaf_order(S, cluster)
    monkeypatch.setattr(clustering, "ORDERED_LEAVES", 23)
    _, plain = leaf_order(S, cluster)
    assert distance[best[:-1], best[1:]].sum() < distance[plain[:-1], plain[1:]].sum()


def test_leaf_order_of_undefined_and_of_few_features() -> None:
    S = similarity(6)
    S.iloc[2, :] = S.iloc[:, 2] = np.nan
    as_zero = S.fillna(0.0)
    as_zero.iloc[2, 2] = 1.0
    assert (leaf_order(S, [0] * 6)[0] == leaf_order(as_zero, [0] * 6)[0]).all()
    tree, order = leaf_order(S.iloc[:1, :1], [0])
    assert tree.shape == (0, 4) and order.tolist() == [0]
