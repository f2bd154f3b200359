"""Planted networks: the weights have the planted similarity, and a map recovers it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from featmap.errors import FeatmapError
from featmap.mapping.run import similarity_job
from featmap.network.loading import load
from featmap.runs.worker import Worker
from featmap.stats import clustering, frames, measures, reliability
from featmap.validation import planted
from featmap.validation.planted import DEPTHS, LINEAR, STRUCTURES, plant

pytestmark = pytest.mark.usefixtures("one_thread")


def measured(planted_network: planted.Planted) -> tuple[np.ndarray, np.ndarray]:
    """A, and the responses to the null image."""
    network = load(planted_network.module, input_size=planted_network.size)
    job = similarity_job("features", network, LINEAR.resolved(network.input_size))
    worker = Worker(job)
    results = [worker.make(unit) for unit in job.work_units()]
    A = np.concatenate([r["A"] for r in results if "A" in r]).astype(np.float64)
    return A, results[0]["null"].astype(np.float64)


def mapped(planted_network: planted.Planted) -> np.ndarray:
    return measures.profile_correlations(measured(planted_network)[0])


def order(S: np.ndarray, truth: np.ndarray) -> float:
    upper = np.triu_indices(len(S), 1)
    return float(stats.somersd(truth[upper].round(9), S[upper].round(9)).statistic)


@pytest.mark.parametrize("structure", list(STRUCTURES))
@pytest.mark.parametrize("depth", DEPTHS)
def test_weights_have_the_planted_cosines(structure: str, depth: str) -> None:
    planted_network = plant(structure, features=16, depth=depth)
    np.testing.assert_allclose(planted_network.cosines, planted_network.structure.cosines, atol=1e-9)
    layer = planted_network.module.features if depth == "linear" else planted_network.module.mixing
    rows = layer.weight.detach().double().flatten(1).numpy()
    length = np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(rows @ rows.T / np.outer(length, length), planted_network.cosines, atol=1e-6)
    np.testing.assert_allclose(length, planted_network.structure.factors, rtol=1e-6)


@pytest.mark.parametrize("noise", [0.0, 0.5])
@pytest.mark.parametrize("structure", list(STRUCTURES))
def test_the_map_of_a_linear_network_is_its_closed_form(structure: str, noise: float) -> None:
    planted_network = plant(structure, noise=noise, seed=3)
    A, null = measured(planted_network)
    S, closed = measures.profile_correlations(A), planted_network.closed_form(null, np.diag(A))
    np.testing.assert_allclose(S, closed, atol=1e-4)  # a root near 0 magnifies rounding
    # standardising removes each feature's null response and scale: the linear profile is that of the cosines
    linear = measures.profile_correlations(A, roots=False)
    np.testing.assert_allclose(linear, measures.profile_correlations(planted_network.cosines, roots=False), atol=2e-6)


@pytest.mark.parametrize("structure", ["duplicates", "scaled", "blocks"])
@pytest.mark.parametrize("depth", DEPTHS)
def test_without_noise_order_and_clusters_are_recovered(structure: str, depth: str) -> None:
    planted_network = plant(structure, depth=depth)
    S = mapped(planted_network)
    assert order(S, planted_network.structure.cosines) == pytest.approx(1)
    names = pd.Index([f"f:{k}" for k in range(len(S))])
    frame = frames.to_frame(S, names, names)
    labels = clustering.communities(clustering.neighbour_graph(frame, 5)).labels
    assert reliability.adjusted_rand(planted_network.structure.clusters, labels.to_numpy()) == 1.0


def test_groups_smaller_than_the_neighbourhood_can_be_merged() -> None:
    merged = 0
    for seed in (0, 1, 5, 7):  # which of them are is a matter of roundings
        planted_network = plant("scaled", features=64, depth="deep", seed=seed)  # eight groups of eight
        S = mapped(planted_network)
        names = pd.Index([f"f:{k}" for k in range(len(S))])
        frame = frames.to_frame(S, names, names)
        labels = {k: clustering.communities(clustering.neighbour_graph(frame, k)).labels.to_numpy() for k in (5, 10)}
        assert reliability.adjusted_rand(planted_network.structure.clusters, labels[5]) == 1.0
        merged += (
            reliability.adjusted_rand(planted_network.structure.clusters, labels[10]) < 0.9 and labels[10].max() + 1 < 8
        )
    assert merged


def test_noise_removes_the_planted_similarity() -> None:
    size = [np.abs(plant("blocks", noise=noise).cosines - np.eye(32)).sum() for noise in (0.0, 0.5, 1.0)]
    assert size[0] > size[1] > size[2]
    agreed = [order(mapped(plant("blocks", noise=n)), plant("blocks").structure.cosines) for n in (0.0, 0.9, 1.0)]
    assert agreed[0] == pytest.approx(1) and agreed[0] > agreed[1] > agreed[2] and abs(agreed[2]) < 0.2


def test_the_same_seed_builds_the_same_network() -> None:
    one, two, other = (plant("mixtures", depth="deep", noise=0.3, seed=s).module for s in (1, 1, 2))
    for (a, b), c in zip(zip(one.parameters(), two.parameters(), strict=True), other.parameters(), strict=True):
        assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"structure": "block"}, "nearest: blocks"),
        ({"depth": "shallow"}, "allowed: linear, relu, deep"),
        ({"features": 5}, "give 6 to"),
        ({"features": 97, "depth": "deep"}, "give 6 to 96"),
        ({"noise": 1.1}, "noise from 0 to 1"),
    ],
)
def test_invalid_settings_are_refused_in_one_line(settings: dict[str, object], words: str) -> None:
    with pytest.raises(FeatmapError, match=words):
        plant(**settings)  # type: ignore[arg-type]
    with pytest.raises(FeatmapError, match="no closed form"):
        plant(depth="relu").closed_form(np.zeros(32), np.ones(32))
