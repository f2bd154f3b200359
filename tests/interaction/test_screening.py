from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch

import featmap
from featmap import rng
from featmap.errors import FeatmapError
from featmap.interaction import groups, screening
from featmap.interaction import run as interaction_run
from featmap.interaction import screening_job as screening_jobs
from featmap.interaction.groups import LayerChannels
from featmap.interaction.screening import Screening
from featmap.interaction.screening_job import Budget, ScreeningJob, random_pairs, screening_job
from featmap.network.loading import load
from featmap.network.model import Network
from featmap.runs import integrity, lifecycle
from featmap.runs.device import use_threads
from featmap.stats.correlation import seed_reliability
from tests.helpers import networks
from tests.helpers.settings import options, resolve_linear
from tests.helpers.tables import check_plain_tables

pytestmark = pytest.mark.usefixtures("cheap_runs", "one_thread")
LAYERS = ("mixed", "narrow")


@pytest.fixture(scope="module")
def network() -> Network:
    return load(networks.small_inception())


def job_of(
    network: Network, layers: Sequence[LayerChannels] = LAYERS, top: int = 3, checks: int = 12, **changes: Any
) -> Any:
    recipe = resolve_linear(network, None, 16, 3, rows=4)
    budget = Budget(top, checks, changes.pop("seeds", 3))
    return screening_job(layers, network, recipe, budget=budget, **changes)


def carried_out(job: ScreeningJob, folder: Path) -> Screening:
    return screening.carry_out(job, lifecycle.open_run(job, folder))


@pytest.fixture(scope="module")
def job(network: Network) -> ScreeningJob:
    return job_of(network)


@pytest.fixture(scope="module")
def result(job: ScreeningJob, tmp_path_factory: pytest.TempPathFactory) -> Screening:
    with use_threads(1):  # a fixture of the module is set up before `one_thread`, and threads decide the last bits
        return carried_out(job, tmp_path_factory.mktemp("screen") / "run")


def test_all_pairs_are_predicted_and_the_top_ones_are_descended(job: ScreeningJob, result: Screening) -> None:
    assert {"predicted.parquet", "predictors.parquet", "top/pairs.parquet"} <= set(check_plain_tables(result.folder))
    predicted = pd.read_parquet(result.folder / "predicted.parquet")
    assert len(predicted) == len(job.sides[0]) * len(job.sides[1])
    assert len(result.check.summary) == 12 and 1 <= len(result.top.summary) <= 3
    table = result.predictors
    sizes = table["spearman"].abs().fillna(-1).to_numpy(dtype=float)
    assert (np.diff(sizes) <= 0).all() and table["predictor"].iloc[0] == result.best
    sign = 1 if table["spearman"].iloc[0] >= 0 else -1
    count = len(result.top.summary)
    order = (sign * predicted[result.best]).sort_values(ascending=False, kind="stable").index[:count]
    expected = list(predicted.loc[order, ["a", "b"]].itertuples(index=False, name=None))
    assert list(result.top.summary[["a", "b"]].itertuples(index=False, name=None)) == expected


def test_reported_correlations_are_those_of_the_stored_tables(result: Screening) -> None:
    predicted = pd.read_parquet(result.folder / "predicted.parquet")
    exact = pd.read_parquet(result.folder / "check" / "pairs.parquet")
    both = predicted.merge(exact[["a", "b", "response_nonlinearity", "response_nonlinearity_floor"]], on=["a", "b"])
    target = both["response_nonlinearity"] - both["response_nonlinearity_floor"]
    reported = pd.read_csv(result.folder / "predictors.csv").set_index("predictor")
    for name in ("crosstalk", "floor", "response agreement", "image agreement"):
        defined = both[name].notna() & target.notna()
        if defined.sum() >= 10:
            rho = both[name][defined].rank().corr(target[defined].rank())
            assert reported.loc[name, "spearman"] == pytest.approx(rho, abs=1e-6)


def test_exact_runs_have_other_seeds_than_the_solo_runs(job: ScreeningJob, result: Screening) -> None:
    assert not set(job.seeds) & set(job.fresh_seeds)
    assert set(result.check.statistics["seed"]) == set(result.top.statistics["seed"]) == set(job.fresh_seeds)


def test_a_pair_has_the_same_exact_statistics_alone(job: ScreeningJob, result: Screening, tmp_path: Path) -> None:
    row = result.check.summary.iloc[4]
    alone_job = groups.group_job(
        [row["a"], row["b"]], job.network, job.recipe, groups.JointSettings("solo", LAYERS, job.fresh_seeds)
    )
    alone = interaction_run.carry_out(alone_job, lifecycle.open_run(alone_job, tmp_path / "alone")).summary.iloc[0]
    for figure in ("response_nonlinearity", "image_nonlinearity", "retention_a", "response_nonlinearity_ceiling"):
        assert (pd.isna(row[figure]) and pd.isna(alone[figure])) or row[figure] == alone[figure]


def test_a_repeated_screening_computes_nothing_again(job: ScreeningJob, result: Screening) -> None:
    before = {p: p.read_bytes() for p in sorted(result.folder.rglob("*")) if p.is_file()}
    again = carried_out(job, result.folder)
    assert {p: p.read_bytes() for p in sorted(result.folder.rglob("*")) if p.is_file()} == before
    pd.testing.assert_frame_equal(again.predictors, result.predictors)
    stored = json.loads((result.folder / "screening.json").read_text())
    assert again.best == result.best and stored["best"] == result.best
    for name, part in (("check", result.check), ("top", result.top)):
        own = json.loads((result.folder / name / "interaction.json").read_text())["power"]
        assert stored["power"][name] == own == part.power.record()
        assert own["pairs"] == (part.summary["seeds"] >= 3).sum() > 1
    assert result.lines()[-2:] == [f"top pairs: {result.top.power}", f"random pairs: {result.check.power}"]


def test_an_interrupted_screening_is_resumed(
    job: ScreeningJob, result: Screening, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(screening, "predict", stop)
        with pytest.raises(KeyboardInterrupt):
            carried_out(job, tmp_path / "run")
    again = carried_out(job, tmp_path / "run")
    pd.testing.assert_frame_equal(again.predictors, result.predictors)
    pd.testing.assert_frame_equal(again.top.summary, result.top.summary)


def test_within_one_layer_each_pair_occurs_once(network: Network) -> None:
    job = job_of(network, layers=[("narrow", "0-3"), ("narrow", "2-4")])
    pairs = {frozenset((a, b)) for a, b in ((job.sides[0][i], job.sides[1][j]) for i, j in job.pairs)}
    assert len(pairs) == len(job.pairs) == 4 * 3 - 2 - 1
    assert all(len(pair) == 2 for pair in pairs)


def test_random_pairs_depend_on_the_settings_alone(network: Network) -> None:
    pairs = [random_pairs(job_of(network, **s)) for s in ({}, {}, {"seeds": range(5, 10)})]
    assert pairs[0] == pairs[1] != pairs[2]
    every = job_of(network, checks=10_000)
    assert len(set(random_pairs(every))) == every.checks == len(job_of(network).pairs)


@pytest.mark.parametrize("layers", [LAYERS, ("mixed", "mixed")])
def test_random_pairs_of_a_wide_layer_share_its_features(
    network: Network, monkeypatch: pytest.MonkeyPatch, layers: Sequence[LayerChannels]
) -> None:
    """Every feature costs descents of its own, so few of them make the pairs."""
    monkeypatch.setattr(screening_jobs, "CHECK_FEATURES", 3)
    job = job_of(network, layers=layers, checks=4)
    assert job.check_features == 4 < min(len(side) for side in job.sides)
    pairs = random_pairs(job)
    assert len(set(pairs)) == 4 and set(pairs) <= set(product(*job.sides))
    assert all(len({pair[k] for pair in pairs}) <= 4 for k in (0, 1))
    assert layers == LAYERS or len({unit for pair in pairs for unit in pair}) <= 4
    assert job.identity()["check_features"] == 4


def test_as_many_pairs_as_there_are_come_from_all_features(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screening_jobs, "CHECK_FEATURES", 3)
    job = job_of(network, checks=10_000)
    assert set(random_pairs(job)) == set(product(*job.sides))


def test_narrow_layers_keep_their_random_pairs_and_identity(network: Network) -> None:
    job = job_of(network)
    assert "check_features" not in job.identity()
    key = [f"{side[0].layer}:{len(side)}" for side in job.sides]
    chosen = rng.generator("screen", *key, *job.fresh_seeds).choice(len(job.pairs), job.checks, replace=False)
    expected = [(job.sides[0][i], job.sides[1][j]) for i, j in (job.pairs[k] for k in sorted(chosen))]
    assert list(random_pairs(job)) == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": (*LAYERS, "mixed")}, "3 layers"),
        ({"top": 0}, "top 0"),
        ({"checks": 0}, "checks 0"),
        ({"layers": ("mixed",)}, "1 layers"),
        ({"layers": ("mixed", "nowhere")}, "nowhere"),
        ({"layers": (("mixed", "0-99"), "narrow")}, "out of range"),
        ({"layers": (("mixed", "0"), ("narrow", "0"))}, "too few to screen"),
        ({"seeds": 0}, "seeds"),
        ({"seeds": [3, 4]}, "2 seeds: a screening takes 2 for its solo runs"),
        ({"balance": "both"}, "allowed: solo, none"),
    ],
)
def test_invalid_settings_are_refused_in_one_line(network: Network, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(FeatmapError, match=words) as error:
        job_of(network, **changes)
    assert "\n" not in str(error.value)


def test_a_screening_of_dead_units_ends_and_says_so(tmp_path: Path) -> None:
    network = load(networks.dead_network())
    recipe = resolve_linear(network, None, 8, 2, rows=4)
    job = screening_job([("relu", "1-2"), ("relu", "2,4")], network, recipe, budget=Budget(top=1, checks=3))
    result = carried_out(job, tmp_path / "run")
    assert set(result.top.summary["status"]) == set(result.check.summary["status"]) == {"dead partner"}
    assert result.lines()[0].startswith("no predictor could be evaluated")
    assert integrity.inspect(tmp_path / "run").faults == []


def test_screen_keeps_the_callers_threads(tmp_path: Path) -> None:
    result = featmap.screen(
        [("mixed", "0-3"), ("narrow", "0-2")],
        networks.small_inception(),
        budget=Budget(top=2, checks=11, seeds=1),
        **options("interact", size=16, steps=2, rows=4, out=tmp_path / "run"),
    )
    assert result.lines()[-3].startswith("selected by ") and torch.get_num_threads() == 1


def test_reliability_is_the_mean_correlation_between_single_seeds() -> None:
    rng = np.random.default_rng(6)
    own = rng.normal(size=40)
    noisy = {s: own + rng.normal(size=40) for s in (1, 2, 3)}
    rows = [
        {"group": f"g{k}", "seed": s, "response_nonlinearity": v[k] + 1.0, "response_nonlinearity_floor": 1.0}
        for s, v in noisy.items()
        for k in range(40)
    ]
    ranks = pd.DataFrame(noisy).rank().corr().to_numpy()
    assert seed_reliability(pd.DataFrame(rows)) == pytest.approx(ranks[np.triu_indices(3, 1)].mean())
    one = pd.DataFrame(rows)[lambda t: t["seed"] == 1]
    assert np.isnan(seed_reliability(one))


def test_lines_give_the_ceiling_of_rank_correlations_or_none() -> None:
    measured = SimpleNamespace(
        statistics=pd.DataFrame({"seed": [1, 2, 3]}), summary=pd.DataFrame({"excess": [0.1, 0.3]}), power="power: x"
    )
    table = pd.DataFrame(columns=["predictor", "spearman", "error", "spearman_with_floor", "pairs"])

    def lines(reliability: float) -> str:
        check = cast(Any, measured)
        return "\n".join(Screening(Path(), table, "crosstalk", reliability, check, check).lines())

    assert lines(0.5).endswith("top pairs: power: x\nrandom pairs: power: x")
    assert "one of 0.75: no predictor can reach a rank correlation above 0.87" in lines(0.5)
    for undefined in (math.nan, -0.6):  # below -1/2, three seeds' mean would have a reliability above 1 or below 0
        assert "no predictor can reach" not in lines(undefined)
