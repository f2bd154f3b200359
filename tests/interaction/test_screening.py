from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import featmap
from featmap.errors import FeatmapError
from featmap.interaction import run as pairings
from featmap.interaction import screening
from featmap.network import loading, model
from featmap.runs import integrity, lifecycle
from tests.helpers import networks
from tests.helpers.settings import resolve_linear

pytestmark = pytest.mark.usefixtures("one_thread")
LAYERS = ("mixed", "narrow")


@pytest.fixture(scope="module")
def network() -> model.Network:
    return loading.load(networks.small_inception())


def planned(network: model.Network, **changes: Any) -> screening.Plan:
    recipe = resolve_linear(network, None, 16, 3, rows=4)
    settings: dict[str, Any] = {"layers": LAYERS, "features": ("all", "all"), "top": 3, "checks": 12} | changes
    return screening.plan(settings.pop("layers"), settings.pop("features"), network, recipe, **settings)


@pytest.fixture(scope="module")
def screened(network: model.Network, tmp_path_factory: pytest.TempPathFactory) -> tuple[screening.Plan, Any]:
    given = planned(network)
    return given, screening.carry_out(given, tmp_path_factory.mktemp("screen") / "run")


def test_all_pairs_are_predicted_and_the_top_ones_made(screened: tuple[screening.Plan, Any]) -> None:
    given, found = screened
    predicted = pd.read_parquet(found.folder / "predicted.parquet")
    assert len(predicted) == len(given.sides[0]) * len(given.sides[1])
    assert len(found.check.summary) == 12 and 1 <= len(found.top.summary) <= 3
    table = found.predictors
    sizes = table["spearman"].abs().fillna(-1).to_numpy(dtype=float)
    assert (np.diff(sizes) <= 0).all() and table["predictor"].iloc[0] == found.best
    sign = 1 if table["spearman"].iloc[0] >= 0 else -1
    order = (sign * predicted[found.best]).sort_values(ascending=False, kind="stable").index[: len(found.top.summary)]
    expected = list(predicted.loc[order, ["a", "b"]].itertuples(index=False, name=None))
    assert list(found.top.summary[["a", "b"]].itertuples(index=False, name=None)) == expected


def test_the_reported_correlations_are_those_of_the_files(screened: tuple[screening.Plan, Any]) -> None:
    _, found = screened
    predicted = pd.read_parquet(found.folder / "predicted.parquet")
    exact = pd.read_parquet(found.folder / "check" / "pairs.parquet")
    both = predicted.merge(exact[["a", "b", "response_nonlinearity", "response_nonlinearity_floor"]], on=["a", "b"])
    target = both["response_nonlinearity"] - both["response_nonlinearity_floor"]
    written = pd.read_csv(found.folder / "predictors.csv").set_index("predictor")
    for name in ("crosstalk", "floor", "response agreement", "image agreement"):
        known = both[name].notna() & target.notna()
        if known.sum() >= 10:
            rho = both[name][known].rank().corr(target[known].rank())
            assert written.loc[name, "spearman"] == pytest.approx(rho, abs=1e-6)


def test_exact_figures_have_seeds_that_the_predictions_have_not_seen(screened: tuple[screening.Plan, Any]) -> None:
    given, found = screened
    assert not set(given.job.seeds) & set(given.seeds)
    assert set(found.check.figures["seed"]) == set(found.top.figures["seed"]) == set(given.seeds)


def test_a_pairs_exact_figures_are_those_that_it_has_alone(
    network: model.Network, screened: tuple[screening.Plan, Any], tmp_path: Path
) -> None:
    given, found = screened
    row = found.check.summary.iloc[4]
    recipe, first = given.job.recipe, given.seeds[0]
    job = pairings.group_job(
        [row["a"], row["b"]], network, recipe, seed=first, seeds=len(given.seeds), probe_layers=LAYERS
    )
    alone = pairings.carry_out(job, lifecycle.open_run(job, tmp_path / "alone")).summary.iloc[0]
    for figure in ("response_nonlinearity", "image_nonlinearity", "retention_a", "response_nonlinearity_ceiling"):
        assert (pd.isna(row[figure]) and pd.isna(alone[figure])) or row[figure] == alone[figure]


def test_a_repeated_screening_makes_nothing_anew(screened: tuple[screening.Plan, Any]) -> None:
    given, found = screened
    before = {p: p.read_bytes() for p in sorted(found.folder.rglob("*")) if p.is_file()}
    again = screening.carry_out(given, found.folder)
    assert {p: p.read_bytes() for p in sorted(found.folder.rglob("*")) if p.is_file()} == before
    pd.testing.assert_frame_equal(again.predictors, found.predictors)
    assert again.best == found.best and json.loads((found.folder / "screening.json").read_text())["best"] == found.best


def test_an_interrupted_screening_goes_on(
    network: model.Network, screened: tuple[screening.Plan, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, found = screened

    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(screening, "predict", stop)
        with pytest.raises(KeyboardInterrupt):
            screening.carry_out(given, tmp_path / "run")
    again = screening.carry_out(given, tmp_path / "run")
    pd.testing.assert_frame_equal(again.predictors, found.predictors)
    pd.testing.assert_frame_equal(again.top.summary, found.top.summary)


def test_within_one_layer_each_pair_stands_once(network: model.Network) -> None:
    given = planned(network, layers=("narrow", "narrow"), features=("0-3", "2-4"))
    pairs = {
        frozenset((a, b))
        for a, b in ((given.sides[0][i], given.sides[1][j]) for i, j in screening._pairs(*given.sides))
    }
    assert len(pairs) == len(screening._pairs(*given.sides)) == 4 * 3 - 2 - 1
    assert all(len(pair) == 2 for pair in pairs)


def test_the_pairs_drawn_depend_on_the_settings_alone(network: model.Network) -> None:
    assert screening._drawn(planned(network)) == screening._drawn(planned(network))
    assert screening._drawn(planned(network)) != screening._drawn(planned(network, seed=5))
    assert len(set(screening._drawn(planned(network, checks=10_000)))) == len(screening._pairs(*planned(network).sides))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "some"}, "allowed: all"),
        ({"top": 0}, "top 0"),
        ({"checks": 0}, "checks 0"),
        ({"layers": ("mixed",)}, "1 layers"),
        ({"layers": ("mixed", "nowhere")}, "nowhere"),
        ({"features": ("0-99", "all")}, "out of range"),
        ({"features": ("0", "0")}, "nothing to screen"),
        ({"seeds": 0}, "seeds"),
        ({"balance": "both"}, "allowed: solo, none"),
    ],
)
def test_bad_input_gets_one_line(network: model.Network, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(FeatmapError, match=said):
        planned(network, **changes)


def test_a_screening_of_units_that_are_all_dead_ends_and_says_so(tmp_path: Path) -> None:
    network = loading.load(networks.dead_network())
    recipe = resolve_linear(network, None, 8, 2, rows=4)
    given = screening.plan(("relu", "relu"), ("1-2", "2,4"), network, recipe, checks=3, top=1)
    found = screening.carry_out(given, tmp_path / "run")
    assert set(found.top.summary["status"]) == set(found.check.summary["status"]) == {"dead partner"}
    assert found.lines()[0].startswith("no predictor could be judged")
    assert integrity.inspect(tmp_path / "run").faults == []


def test_from_python(tmp_path: Path) -> None:
    found = featmap.screen(
        LAYERS, ("0-3", "0-2"), networks.small_inception(), size=16, steps=2, rows=4, top=2, checks=11, seeds=1,
        out=tmp_path / "run",
    )  # fmt: skip
    assert found.lines()[-1].startswith("kept: ") and torch.get_num_threads() == 1


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
    assert screening.reliability(pd.DataFrame(rows)) == pytest.approx(ranks[np.triu_indices(3, 1)].mean())
    one = pd.DataFrame(rows)[lambda t: t["seed"] == 1]
    assert np.isnan(screening.reliability(one))
