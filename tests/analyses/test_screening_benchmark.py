"""The benchmark of the predictors of a screening: planted networks, a run, its table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

import featmap
from analyses.benchmarks import records, screening
from analyses.benchmarks.screening import Screened
from featmap.errors import FeatmapError
from featmap.interaction.screening_job import Budget
from tests.helpers import networks
from tests.helpers.settings import options

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ["one", "two", "noise"]


def planted(source: str, seed: int, weights: tuple[float, ...] = (1.0, -0.5, 0.0), pairs: int = 200) -> Screened:
    """A network whose statistic is a weighted sum of the predictors' ranks, with noise in each seed."""
    rng = np.random.default_rng(seed)
    ranks = rng.uniform(-0.5, 0.5, size=(pairs, 3))
    excess = (ranks @ weights)[:, None] + rng.normal(0, 0.2, size=(pairs, 3))
    return Screened(
        source, "hash", ["a", "b"], 64, 40, 0, [20, 20], [f"p{k}" for k in range(pairs)],
        dict(zip(NAMES, ranks.T.tolist(), strict=True)), excess.tolist(),
    )  # fmt: skip


def test_weights_learnt_on_other_networks_beat_every_predictor_alone() -> None:
    results = [planted("x", 1), planted("y", 2), planted("z", 3)]
    weights = screening.learn(results[:2], NAMES)
    assert weights[0] > 0 > weights[1] and abs(weights[2]) < 0.1 * weights[0]
    assert weights[1] / weights[0] == pytest.approx(-0.5, abs=0.1)
    judged = screening.judge(results, 2)
    expected = spearmanr(results[2].table(NAMES) @ weights, results[2].exact).statistic
    assert judged.learnt == pytest.approx(expected)
    assert judged.chosen == judged.best == "one" and judged.learnt > judged.best_value == judged.chosen_value
    assert "of the network itself on 3 of 3 networks" in screening.format_page(results)


def test_a_network_of_the_opposite_rule_is_predicted_wrongly() -> None:
    results = [planted("x", 1), planted("y", 2, (-1.0, 0.5, 0.0))]
    judged = screening.judge(results, 1)
    assert judged.learnt < -0.5 and judged.chosen_value < -0.5 < 0.5 < judged.best_value and judged.within > 0.5


def test_a_missing_predictor_is_read_as_its_middle_rank() -> None:
    one = planted("x", 1)
    less = replace(one, ranks={"one": one.ranks["one"], "two": [None] * 200})
    np.testing.assert_array_equal(less.table(NAMES)[:, 1:], 0)
    assert np.isnan(screening.correlation(less, "two")) and np.isnan(screening.correlation(less, "noise"))
    assert "| two | -0." in screening.format_page([one]) and "| two | - |" in screening.format_page([less])


def test_the_ceiling_is_that_of_the_repeatability() -> None:
    one = planted("x", 5, pairs=3000)
    signal = (np.array([1.0, -0.5]) ** 2).sum() / 12
    single = signal / (signal + 0.04)
    assert one.reliability[0] == pytest.approx(single, abs=0.04)
    assert one.reliability[1] == pytest.approx(3 * single / (1 + 2 * single), abs=0.04)
    assert screening.repeated(one) == pytest.approx(np.sqrt(single * 2 * single / (1 + single)), abs=0.04)


def test_a_seed_without_a_value_leaves_the_mean_of_the_others() -> None:
    one = replace(planted("x", 1), excess=[[0.1, None, 0.3], *planted("x", 1).excess[1:-1], [None] * 3])
    assert one.exact[0] == pytest.approx(0.2) and np.isnan(one.exact[-1])


def test_a_run_is_collected(tmp_path: Path, cheap_runs: None) -> None:
    featmap.screen(
        [("mixed", "0-7"), ("narrow", "0-5")],
        networks.small_inception(),
        budget=Budget(top=1, checks=30, seeds=2),
        **options("interact", size=16, steps=3, rows=4, out=tmp_path / "run"),
    )
    found = screening.collect(tmp_path / "run")
    assert found.layers == ["mixed", "narrow"] and found.size == 16 and found.steps == 3 and found.features == [8, 6]
    assert len(found.pairs) == 30 and len(found.excess[0]) == 2 and found.photographs == 0
    reported = pd.read_csv(tmp_path / "run" / "predictors.csv").set_index("predictor")["spearman"]
    compared = [name for name in found.ranks if np.isfinite(reported[name])]
    assert compared
    for name in compared:
        assert screening.correlation(found, name) == pytest.approx(reported[name], abs=0.02)
    summary = pd.read_parquet(tmp_path / "run" / "check" / "pairs.parquet")
    np.testing.assert_allclose(found.exact, summary["excess"].astype(float), atol=1e-5)


def test_another_kind_of_folder_is_refused(tmp_path: Path) -> None:
    featmap.interact(
        ["mixed:0", "narrow:1"],
        networks.small_inception(),
        **options("interact", out=tmp_path / "run", size=16, steps=2, seeds=1, rows=4),
    )
    with pytest.raises(FeatmapError, match="is no finished run of featmap interact --screen"):
        screening.collect(tmp_path / "run")


def test_the_table_in_the_readme_is_that_of_the_stored_values() -> None:
    stored = screening.read(screening.STORE)
    assert {one.source for one in stored} == {"reference", "squeezenet", "googlenet"}
    assert screening.format_page(stored) in records.README.read_text(encoding="utf-8")
