"""Predictors of a screening from photographs: loops over pairs, planted features, and a screening with photographs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

import featmap
from featmap.interaction import screening
from featmap.interaction import screening_job as predictors
from featmap.interaction.natural import MOST
from featmap.interaction.screening import measure_features
from featmap.interaction.screening_job import PHOTOGRAPH_PREDICTORS, Budget, PhotographResponses, screening_job
from featmap.network.loading import load
from featmap.network.unit import Unit
from featmap.optimize.photograph_folder import PhotographStimuli, open_photographs
from featmap.optimize.responses import Probe
from featmap.report.interaction import build_reports
from featmap.runs import lifecycle
from featmap.runs.progress import Silent
from featmap.stats.correlation import RunningCorrelation
from featmap.stats.top_responses import LEAST_PAIRED, response_correlation
from tests.helpers import networks
from tests.helpers.pictures import save_noise
from tests.helpers.settings import options, resolve_linear

pytestmark = pytest.mark.usefixtures("cheap_runs", "threads")


def drawn(photographs: int = 60, seed: int = 3) -> PhotographResponses:
    rng = np.random.default_rng(seed)
    return PhotographResponses(
        rng.normal(size=(photographs, 4)),
        rng.normal(size=(photographs, 5)),
        rng.uniform(-1, 1, size=(4, 5)),
        rng.normal(size=(photographs, 6)),
    )


def swapped(found: PhotographResponses) -> PhotographResponses:
    return replace(found, first=found.second, second=found.first, places=found.places.T)


def test_predictors_equal_loops_over_pairs() -> None:
    found = drawn()
    z = [(side - side.mean(0)) / side.std(0) for side in (found.first, found.second, found.responses)]
    for i in range(4):
        for j in range(5):
            one, two = found.first[:, i], found.second[:, j]
            assert predictors.photograph_correlation(found)[i, j] == pytest.approx(response_correlation(one, two).value)
            best = sorted(range(60), key=lambda p: -one[p])[:MOST], sorted(range(60), key=lambda p: -two[p])[:MOST]
            both = (np.mean([z[1][p, j] for p in best[0]]) + np.mean([z[0][p, i] for p in best[1]])) / 2
            assert predictors.partner_response(found)[i, j] == pytest.approx(both)
            means = [np.mean([z[2][p] for p in each], axis=0) for each in best]
            cosine = means[0] @ means[1] / np.linalg.norm(means[0]) / np.linalg.norm(means[1])
            assert predictors.profile_agreement(found)[i, j] == pytest.approx(cosine)


@pytest.mark.parametrize("name", PHOTOGRAPH_PREDICTORS)
def test_predictors_do_not_care_which_layer_comes_first(name: str) -> None:
    found = drawn()
    table = PHOTOGRAPH_PREDICTORS[name](found)
    assert table.shape == (4, 5) and np.isfinite(table).all()
    np.testing.assert_allclose(PHOTOGRAPH_PREDICTORS[name](swapped(found)), table.T, rtol=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(sorted(PHOTOGRAPH_PREDICTORS)))
def test_scales_and_levels_of_features_change_nothing(seed: int, name: str) -> None:
    found = drawn(40, seed)
    moved = replace(found, first=3 * found.first + 2, second=0.5 * found.second - 7, responses=4 * found.responses + 1)
    np.testing.assert_allclose(PHOTOGRAPH_PREDICTORS[name](moved), PHOTOGRAPH_PREDICTORS[name](found), atol=1e-9)


@pytest.mark.parametrize("name", PHOTOGRAPH_PREDICTORS)
def test_a_copy_of_a_feature_is_at_the_top(name: str) -> None:
    found = drawn(200)
    second = found.second.copy()
    second[:, 2] = found.first[:, 1]
    places = found.places.copy()
    places[1, 2] = 1.0
    table = PHOTOGRAPH_PREDICTORS[name](replace(found, second=second, places=places))
    assert table.argmax() == 1 * 5 + 2


@pytest.mark.parametrize("name", PHOTOGRAPH_PREDICTORS)
def test_nothing_is_predicted_of_constant_features_or_from_few_photographs(name: str) -> None:
    found = drawn()
    first = found.first.copy()
    first[:, 1] = 2.0
    places = found.places.copy()
    places[1] = np.nan
    table = PHOTOGRAPH_PREDICTORS[name](replace(found, first=first, places=places))
    assert np.isnan(table[1]).all() and np.isfinite(table[[0, 2, 3]]).all()
    assert np.isnan(PHOTOGRAPH_PREDICTORS[name](drawn(LEAST_PAIRED - 1))).all()


def test_place_correlation_does_not_depend_on_the_batches() -> None:
    rng = np.random.default_rng(8)
    one, two = rng.normal(5, 1, size=(90, 3)).astype(np.float32), rng.normal(size=(90, 2)).astype(np.float32)
    two[:, 1] = 4.0  # constant
    parts = RunningCorrelation(3, 2)
    for begin in range(0, 90, 40):
        parts.add(one[begin : begin + 40], two[begin : begin + 40])
    expected = np.corrcoef(one[:, 2].astype(float), two[:, 0].astype(float))[0, 1]
    assert parts.result()[2, 0] == pytest.approx(expected) and np.isnan(parts.result()[:, 1]).all()


def test_measured_responses_are_those_of_the_network(tmp_path: Path) -> None:
    network = load(networks.small_inception())
    folder = open_photographs(save_noise(tmp_path / "photographs", 5))
    stimuli = PhotographStimuli(folder.labels, folder.digest, 16, None, folder)
    sides = [[Unit("mixed", c) for c in (2, 0)], [Unit("narrow", c) for c in (1, 3, 4)]]
    found = PhotographResponses(*measure_features(Probe(network, 4), ("narrow",), sides, stimuli, Silent()))
    images = folder.read(range(5), 16, 3)
    outputs = Probe(network, 4).activation_maps(images, ["mixed", "narrow"])
    np.testing.assert_allclose(found.first, outputs["mixed"][:, [2, 0]].mean((2, 3)), rtol=1e-5)
    np.testing.assert_allclose(found.responses, outputs["narrow"].mean((2, 3)), rtol=1e-5, atol=1e-7)
    grid = tuple(min(7, *(outputs[la].shape[k] for la in outputs)) for k in (2, 3))
    maps = [
        functional.adaptive_avg_pool2d(torch.from_numpy(outputs[la][:, [c]]), grid).numpy().ravel()
        for la, c in (("mixed", 0), ("narrow", 4))
    ]
    assert found.places[1, 2] == pytest.approx(np.corrcoef(*maps)[0, 1], abs=1e-5)


def test_a_screening_predicts_from_photographs_too(tmp_path: Path, cheap_runs: None) -> None:
    network = load(networks.small_inception())
    photographs = save_noise(tmp_path / "photographs", LEAST_PAIRED)
    recipe = resolve_linear(network, None, 16, 2, rows=4)
    plain = screening_job([("mixed", "0-3"), ("narrow", "0-2")], network, recipe, budget=Budget(2, 11, 1))
    job = screening.add_photographs(plain, photographs)
    assert "photographs" not in plain.identity() and job.identity()["photographs"]["count"] == LEAST_PAIRED
    result = screening.carry_out(job, lifecycle.open_run(job, tmp_path / "run"))
    predicted = pd.read_parquet(tmp_path / "run" / "predicted.parquet")
    assert set(PHOTOGRAPH_PREDICTORS) <= set(predicted.columns) <= {"a", "b", *result.predictors["predictor"]}
    assert predicted["photograph correlation"].notna().any()
    (report,) = [r for r in build_reports(tmp_path / "run") if r.title.startswith("Screening")]
    assert "--photographs FOLDER" in report.command and str(tmp_path) not in report.command


def test_screen_takes_photographs(tmp_path: Path, cheap_runs: None) -> None:
    folder = save_noise(tmp_path / "photographs", LEAST_PAIRED)
    result = featmap.screen(
        [("mixed", "0-2"), ("narrow", "0-1")],
        networks.small_inception(),
        photographs=folder,
        budget=Budget(top=1, checks=2, seeds=1),
        **options("interact", size=16, steps=2, rows=4, out=tmp_path / "run"),
    )
    assert "place correlation" in set(result.predictors["predictor"])
