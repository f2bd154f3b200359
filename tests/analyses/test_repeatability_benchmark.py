"""The benchmark of repeatability: its descents are those of a run, its estimates those of known variances."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analyses.benchmarks import pair_statistics, records, repeatability
from analyses.benchmarks.pair_descents import Descents
from analyses.benchmarks.pair_statistics import Yardstick
from featmap import load
from featmap.cli.options import NetworkOptions
from featmap.errors import FeatmapError
from featmap.interaction import groups
from featmap.network.unit import Unit
from featmap.stats import interaction
from featmap.stats.reliability import spearman_brown
from tests.helpers import networks, settings, tiny
from tests.interaction.test_job import carried_out

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def descents(tmp_path_factory: pytest.TempPathFactory) -> Descents:
    network = load(tiny.small(), input_size=16)
    recipe = settings.resolve_linear(network, size=12, steps=6, rows=4)
    units = [[Unit("second", c) for c in (3, 7)], [Unit("first", c) for c in (1, 5)]]
    return Descents(network, units, recipe, 3, ["first", "second"], tmp_path_factory.mktemp("descents"))


def test_the_ways_are_statistics_of_a_run(descents: Descents, tmp_path: Path) -> None:
    """Response nonlinearity, floor and mixture nonlinearity of the same pairs, from the arrays of a run."""
    pairs = tuple((descents.units[a], descents.units[b]) for a, b in descents.pairs)
    chosen = groups.JointSettings(seeds=3, probe_layers=("first", "second"))
    job = groups.pairs_job(pairs, descents.network, descents.recipe, chosen)
    table = carried_out(job, tmp_path / "run").table()
    ways = repeatability.measure_ways(descents, 3, 2)
    floor = pair_statistics.measure_floors(descents, ["first", "second"], 3)
    for name, found in (
        ("response_nonlinearity", ways[repeatability.RAW][1]),
        ("mixture_nonlinearity", ways[repeatability.MIXTURE][1]),
        ("response_nonlinearity_floor", floor),
    ):
        own = table.pivot(index="group", columns="seed", values=name).loc[job.labels].to_numpy(dtype=float)
        np.testing.assert_allclose(found, own, rtol=1e-4, atol=1e-6)
    judged = {w.name: w for w in repeatability.judge(ways, descents.shape)}
    assert judged[repeatability.RAW].agreement == pytest.approx(1)
    assert judged["less the mean floor of all pairs"].whole == judged[repeatability.RAW].whole
    assert {(w.seeds, w.pairs) for w in judged.values()} == {(3, 4), (2, 2)}


def test_descents_are_kept(descents: Descents, monkeypatch: pytest.MonkeyPatch) -> None:
    before = descents.solos(0)
    monkeypatch.setattr(descents.batches, "descend", None)
    for name, values in descents.solos(0).items():
        np.testing.assert_array_equal(values, before[name])


def test_a_linear_network_has_no_nonlinearity_by_any_number_of_images(tmp_path: Path) -> None:
    network = load(networks.linear_network(), input_size=16)
    recipe = settings.resolve_linear(network, size=16, steps=4, rows=4)
    units = [[Unit("conv3", 0), Unit("conv3", 1)], [Unit("conv2", 4)]]
    linear, layers = Descents(network, units, recipe, 2, ["conv2", "conv3"], tmp_path), ("conv2", "conv3")
    for way in (
        Yardstick(layers).measure(linear, 2),
        Yardstick(layers, starts=(0, 1), joint=1).measure(linear, 2),
        pair_statistics.average_joints(linear, layers, 2),
        pair_statistics.measure_mixtures(linear, layers, 1, 2),
    ):
        assert way.shape == (2, 2) and np.isfinite(way).all() and way.max() <= interaction.ROUNDING


def two_way(pairs: float, noise: float, shape: tuple[int, int, int] = (60, 50, 3)) -> np.ndarray:
    """Features' means, variances of the pairs' own part and of seeds."""
    g = np.random.default_rng(1)
    own = g.normal(size=(shape[0], 1, 1)) + g.normal(size=(1, shape[1], 1))
    values = own + math.sqrt(pairs) * g.normal(size=(*shape[:2], 1)) + math.sqrt(noise) * g.normal(size=shape)
    return values + g.normal(size=(1, 1, shape[2]))


@pytest.mark.parametrize(("pairs", "noise"), [(0.0, 1.0), (0.5, 1.5), (1.0, 0.0)])
def test_the_common_share_is_that_of_the_variances(pairs: float, noise: float) -> None:
    assert repeatability.common_share(two_way(pairs, noise)) == pytest.approx(pairs / (pairs + noise), abs=0.04)


def test_shrinkage_has_the_errors_of_its_variances() -> None:
    """Features' means 2, pairs' own part 1, noise 3: errors of one seed against the mean of two others."""
    values = two_way(1.0, 3.0)
    found = repeatability.shrink(values.reshape(-1, 3), repeatability.split((60, 50)), (60, 50))
    centred = values - values.mean((0, 1))
    features = float(centred.mean((1, 2)).var() + centred[1::2].mean((0, 2)).var())
    signal, target = features + 1.0, features + 1.0 + 3.0 / 2
    assert found["factor of features"] == pytest.approx(0.25, abs=0.06)
    assert found["factor"] == pytest.approx(signal / (signal + 3), abs=0.05)
    # the seeds' own offsets add to the errors of all alike
    offsets = np.mean([(values[..., s].mean() - np.delete(values, s, 2).mean()) ** 2 for s in range(3)])
    assert found["error, single seed"] == pytest.approx((3 + 1.5 + offsets) / target, rel=0.12)
    best = (0.75**2 + 0.25**2 * 3 + 1.5 + offsets) / target
    assert found["error, towards the features' means"] == pytest.approx(best, rel=0.12)
    order = ["towards the features' means", "the features' means alone", "single seed"]
    assert sorted(order, key=lambda end: found[f"error, {end}"]) == order
    assert found["r, towards the features' means"] > found["r, single seed"] + 0.2
    assert found["r, towards the grand mean"] == found["r, single seed"]


@pytest.mark.parametrize(("r", "aim"), [(0.5, 0.8), (0.64, 0.7), (0.9, 0.8)])
def test_the_number_of_seeds_is_the_least_that_reaches_the_aim(r: float, aim: float) -> None:
    n = repeatability.count_seeds(r, aim)
    assert spearman_brown(r, n) >= aim and (n == 1 or spearman_brown(r, n - 1) < aim)
    with pytest.raises(FeatmapError, match="not above 0"):
        repeatability.count_seeds(-0.1, aim)


def test_transforms_keep_the_sign_and_the_order() -> None:
    r = np.random.default_rng(3).normal(size=200) ** 3
    for transform in (pair_statistics.signed_root, pair_statistics.signed_logarithm, pair_statistics.clip):
        np.testing.assert_allclose(transform(-r), -transform(r))
        assert (np.diff(transform(np.sort(r))) >= 0).all()
    assert np.abs(pair_statistics.clip(r)).max() == pytest.approx(np.quantile(np.abs(r), 0.95))
    assert pair_statistics.ranks(r).max() == 0.5


@pytest.mark.parametrize(
    ("given", "words"),
    [({"layers": "second"}, "layers second"), ({"features": "3"}, "features 3"), ({"again": 1}, "again 1")],
)
def test_settings_that_leave_a_measure_undefined_are_refused(given: dict[str, Any], words: str) -> None:
    network = NetworkOptions(model="tests.helpers.tiny:small")
    with pytest.raises(FeatmapError, match=words):
        repeatability.main(network, **({"layers": "second,first"} | given))


def test_the_table_in_the_readme_is_that_of_the_stored_values() -> None:
    stored = repeatability.read(repeatability.STORE)
    assert {r.source for r in stored} == {"squeezenet", "reference"}
    assert all(len(r.features[0]) * len(r.features[1]) >= 200 for r in stored)
    assert repeatability.format_page(stored) in records.README.read_text(encoding="utf-8")
