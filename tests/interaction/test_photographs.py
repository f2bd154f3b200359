"""Pairs on photographs: planted co-occurrence, quadratic, linear and logical networks, files and refusals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as pyplot
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from scipy import optimize, stats
from torch import nn

import featmap
from featmap.errors import FeatmapError
from featmap.interaction import natural
from featmap.interaction.conclusion import METHODS, NATURAL, PHOTOGRAPH_COLUMNS, compare_methods, describe_photographs
from featmap.interaction.job import BASES, IMAGE_DERIVATIVES, LENGTH, SMALL, JointJob
from featmap.interaction.kinds import summarise
from featmap.interaction.natural import PhotographSets
from featmap.interaction.photographs import (
    GrowingPhotographJob,
    MeasuringUnit,
    PhotographJointJob,
    PhotographJointWorker,
    worker_of,
)
from featmap.interaction.precision import AutoSeeds, GrowingJob
from featmap.interaction.run import Interaction, add_photographs
from featmap.interaction.statistics import JointArrays
from featmap.optimize.photograph_folder import Photographs, open_photographs
from featmap.plotting import heatmaps, sheets
from featmap.report.interaction import build_reports
from featmap.runs import lifecycle
from featmap.runs.store import open_arrays
from featmap.stats.top_responses import LEAST_PAIRED
from tests.helpers import couples, tiny
from tests.helpers.pictures import save_colours, save_noise
from tests.helpers.settings import options
from tests.interaction.test_job import job_of, pairs_of

pytestmark = pytest.mark.usefixtures("threads")

MEASURED = ("photographs-", "alone-", "mixed-", "derivative-", "image_derivative-")
"""Beginnings of the names of work units that measure photographs."""
GRAY = 140
"""Level of photographs just above 0.5, where the gates of `couples.logic` begin."""


@pytest.fixture(scope="module")
def gray(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs that are nearly gray."""
    colours = np.random.default_rng(0).integers(GRAY - 3, GRAY + 4, (24, 3))
    return save_colours(tmp_path_factory.mktemp("photographs") / "gray", colours)


@dataclass
class Measured:
    """Summary, arrays and seeds of a run."""

    summary: pd.DataFrame
    data: xr.Dataset
    seeds: list[int]

    @property
    def middles(self) -> list[int]:
        """Positions of the photographs at which second derivatives are taken among those that are added to."""
        return [self.data["base"].values.tolist().index(name) for name in self.data["middle"].values]

    @property
    def row(self) -> pd.Series:
        """The first pair."""
        return self.summary.iloc[0]


def measure(units: Sequence[str], module: nn.Module, folder: Path | Photographs, out: Path, **changes: Any) -> Measured:
    """Carry out a run of one pair without its figures."""
    return carry_out(job_of(units, module, **({"steps": 3} | changes)), folder, out)


def carry_out(plain: JointJob, folder: Path | Photographs, out: Path) -> Measured:
    """Carry out a run without its figures."""
    job = add_photographs(plain, folder)
    run = lifecycle.open_run(job, out)
    lifecycle.carry_out(job, run, PhotographJointWorker)
    arrays = JointArrays(job, run.arrays)
    summary = natural.add_columns(summarise(arrays.table()), arrays, job.bases, lambda done, total: None)
    return Measured(summary, open_arrays(out).load(), list(job.seeds))


# ---------------------------------------------------------------- responding together


@pytest.mark.parametrize(("kind", "sign", "lift"), [("always", 1, 10), ("never", -1, 0), ("independent", 0, 1)])
def test_planted_co_occurrence_is_found(kind: str, sign: int, lift: float, tmp_path: Path) -> None:
    """Red and green are always bright together, never, or independently; the features read one colour each."""
    rng, count = np.random.default_rng(4), 500
    red, more = rng.integers(0, 256, (2, count))
    green = {"always": red, "never": 255 - red, "independent": more}[kind]
    folder = save_colours(tmp_path / "photographs", np.stack([red, green, rng.integers(0, 256, count)], axis=1))
    result = measure(["colours:0", "colours:1"], couples.gated(), folder, tmp_path / "run")
    row = result.row
    assert row["photograph_correlation"] == pytest.approx(np.corrcoef(red, green)[0, 1], abs=1e-4)
    strong = (red > np.percentile(red, 90)) & (green > np.percentile(green, 90))
    expected = [(values > np.percentile(values, 90)).mean() for values in (red, green)]
    assert row["photograph_lift"] == pytest.approx(strong.mean() / np.prod(expected), abs=1e-6)
    assert row["photograph_lift"] == pytest.approx(lift, abs=0.9)
    known = row["photograph_correlation_p"], row["photograph_lift_p"], row["place_lift_p"]
    assert all(p < 0.05 for p in known) if sign else all(p > 0.05 for p in known)
    assert np.sign(row["photograph_correlation"]) == sign or not sign
    (line,) = [line for line in describe_photographs(row) if line.startswith("To 500 photographs")]
    assert {1: "respond together", -1: "to different ones", 0: "independently"}[sign] in line


# ---------------------------------------------------------------- photographs on which both are strong


def test_photographs_are_selected_by_rank() -> None:
    one, two = np.random.default_rng(0).random((2, 200))
    sets = natural.select_photographs(one, two)
    a, b = ((stats.rankdata(v) - 0.5) / 200 for v in (one, two))
    assert len(sets.both) == min(natural.MOST, int(((a > 0.75) & (b > 0.75)).sum()))
    assert (np.diff(np.minimum(a, b)[sets.both]) <= 0).all() and (np.minimum(a, b)[sets.both] > 0.75).all()
    left = set(np.flatnonzero((a > 0.75) & (b > 0.75))) - set(sets.both)
    assert all(min(a[k], b[k]) <= min(np.minimum(a, b)[sets.both]) for k in left)
    for own, other, found in ((a, b, sets.alone[0]), (b, a, sets.alone[1])):
        assert len(found) and (own[found] > 0.75).all() and (other[found] <= 0.5).all()
        assert (np.diff(np.minimum(own, 1 - other)[found]) <= 0).all()
    assert set(sets.neither) == set(np.flatnonzero((a <= 0.5) & (b <= 0.5)))
    swapped = natural.select_photographs(two, one)
    assert swapped.both.tolist() == sets.both.tolist() and swapped.alone[0].tolist() == sets.alone[1].tolist()
    monotone = natural.select_photographs(np.exp(5 * one), 3 * two - 1)
    assert monotone.both.tolist() == sets.both.tolist()


def test_too_few_photographs_of_a_kind_are_named() -> None:
    same = np.arange(100.0)
    assert natural.select_photographs(same, same).lack == "only a is strong on 0 photographs, 8 are needed"
    assert natural.select_photographs(same, -same).lack == "both are strong on 0 photographs, 8 are needed"
    assert natural.select_photographs(same, np.full(100, np.nan)).lack.startswith("both are strong on 0")
    few = natural.natural_nonlinearity(np.ones((100, 3)), natural.select_photographs(same, same), "a + b")
    assert set(few) == set(NATURAL) and np.isnan(list(few.values())).all()


def planted(gate: float, noise: float, seed: int = 0) -> tuple[np.ndarray, PhotographSets]:
    """Responses r = u p + v q + gate u v s to 600 photographs, of which u and v are the two features' activations."""
    rng = np.random.default_rng(seed)
    u, v = rng.gamma(1.0, 1.0, (2, 600))
    p, q, s = (x / np.linalg.norm(x) for x in rng.normal(size=(3, 40)))
    r = np.outer(u, p) + np.outer(v, q) + gate * np.outer(u * v, s) + noise * rng.normal(size=(600, 40))
    return r, natural.select_photographs(u, v)


def test_natural_nonlinearity_is_that_of_a_plain_computation() -> None:
    r, sets = planted(0.5, 0.3)
    found = natural.natural_nonlinearity(r, sets, "a + b")
    base = np.mean([r[k] for k in sets.neither], axis=0)
    joint = np.mean([r[k] for k in sets.both], axis=0) - base
    parts = [np.mean([r[k] for k in alone[:16]], axis=0) - base for alone in sets.alone]
    _, rest = optimize.nnls(np.stack(parts, axis=1), joint)
    assert found["natural_nonlinearity"] == pytest.approx(rest**2 / (joint @ joint))
    assert found["natural_excess"] == pytest.approx(found["natural_nonlinearity"] - found["natural_floor"])
    assert natural.natural_nonlinearity(r, sets, "a + b") == found
    assert natural.natural_nonlinearity(r, sets, "a + c")["natural_floor"] != found["natural_floor"]


def test_a_sum_is_at_its_floor_and_a_product_above() -> None:
    exact = natural.natural_nonlinearity(*planted(0.0, 0.0), "pair")
    assert exact["natural_nonlinearity"] < 1e-9
    above = 0
    for seed in range(10):
        of_sum, of_product = (natural.natural_nonlinearity(*planted(g, 0.3, seed), "pair") for g in (0.0, 1.0))
        above += of_sum["natural_nonlinearity"] > of_sum["natural_floor_high"]
        assert of_product["natural_nonlinearity"] > of_product["natural_floor_high"]
        assert of_product["natural_excess"] > 0.1 and of_product["natural_ceiling"] > of_product["natural_nonlinearity"]
    assert above <= 2  # 5 % of the splits of a sum are above it


# ---------------------------------------------------------------- mixed differences


def directions(result: Measured, units: Sequence[str]) -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """Photographs to which solo images are added, and what is added, from the run's labelled arrays."""
    data, seeds = result.data, result.seeds
    added = []
    for unit in units:
        rows = []
        for k in range(data.sizes["base"]):
            seed = seeds[k % len(seeds)]
            solo = data["solo_images"].values[data["solo"].values.tolist().index(f"{unit} seed={seed}")]
            d = solo.astype(float) - data["null_images"].values[data["start"].values.tolist().index(f"seed={seed}")]
            rows.append(d * LENGTH / np.sqrt((d**2).mean()))
        added.append(rows)
    names = data["photograph"].values.tolist()
    return np.array([names.index(name) for name in data["base"].values]), added


def test_a_quadratic_network_has_its_closed_form(gray: Path, tmp_path: Path) -> None:
    """F = the mean of x_i x_j: the mixed difference is the mean of d_a,i d_b,j + d_a,j d_b,i, whatever the step."""
    units = ["colours:0", "colours:1"]
    result = measure(units, couples.product(), gray, tmp_path / "run", probe_layers=["colours", "products"])
    data, row = result.data, result.row
    positions, (one, two) = directions(result, units)
    assert len(positions) == BASES and len(set(positions)) == BASES
    deviation = data["deviation"].values
    ratios, means, exact = [], [], []
    for k, at in enumerate(positions):
        x = np.broadcast_to((data["photograph_A"].values[at, :3].astype(float))[:, None, None], one[k].shape)

        def f(image: np.ndarray) -> np.ndarray:
            pairs = [(image[i] * image[j]).mean() for i, j in ((0, 1), (0, 2), (1, 2))]
            return np.array([*image.mean((1, 2)), *pairs]) / deviation

        closed = [(one[k][i] * two[k][j] + one[k][j] * two[k][i]).mean() for i, j in ((0, 1), (0, 2), (1, 2))]
        mixed = np.array([0, 0, 0, *closed]) / deviation
        singles = f(x + one[k]) + f(x + two[k]) - 2 * f(x)
        ratios.append(np.linalg.norm(mixed) / np.linalg.norm(singles))
        means.append(mixed)
        cross = data["cross_A"].values[0, k] / (4 * SMALL**2)
        np.testing.assert_allclose(cross[3:], closed, rtol=2e-3, atol=2e-5)
        if data["base"].values[k] in data["middle"].values:
            exact.append(data["derivative_A"].values[0, len(exact)])
            np.testing.assert_allclose(exact[-1], [0, 0, 0, *closed], rtol=1e-5, atol=1e-7)
    assert row["direct"] == pytest.approx(np.mean(ratios), rel=1e-3) and row["direct"] > 0.01
    assert row["direct_curvature"] == pytest.approx(row["direct"], rel=0.05)  # the slopes differ by the own curvature
    low, high = stats.ttest_1samp(ratios, 0).confidence_interval(0.95)
    assert (row["direct_low"], row["direct_high"]) == pytest.approx((low, high), rel=1e-2)
    largest = int(np.abs(np.mean(means, axis=0)).argmax())
    assert (
        row["direct_at"] == ["colours:0", "colours:1", "colours:2", "products:0", "products:1", "products:2"][largest]
    )
    assert row["direct_sign"] == np.sign(np.mean(means, axis=0)[largest]) == 1
    assert row["direct_images"] == BASES and row["direct_hessian_images"] == len(exact) == BASES // 2
    assert row["direct_hessian"] == pytest.approx(np.mean([ratios[k] for k in result.middles]), rel=1e-3)
    # mixed differences of the three colours are rounding error, which has ranks, too
    rho = stats.spearmanr(np.mean(exact, axis=0) / deviation, np.mean(means, axis=0))[0]
    assert row["direct_agreement"] == pytest.approx(rho, abs=0.3) and row["direct_features"] == 6


@pytest.mark.parametrize(("module", "units"), [(couples.halves, "out"), (couples.twins, "features")])
def test_a_linear_network_has_none(module: Any, units: str, gray: Path, tmp_path: Path) -> None:
    row = measure([f"{units}:0", f"{units}:2"], module(), gray, tmp_path / "run", size=32).row
    assert row["direct"] == row["direct_curvature"] == 0 and row["direct_sign"] == 0 and row["direct_at"] == ""
    assert row["direct_low"] == row["direct_high"] == 0 and row["direct_images"] == BASES
    assert row["direct_balance"] == row["direct_balance_low"] == row["direct_balance_high"] == 0
    assert np.isnan(row["direct_hessian"]) and row["direct_hessian_images"] == 0 and np.isnan(row["direct_agreement"])
    assert "the second derivative is 0 on every photograph" in row["photographs_note"]


@pytest.mark.parametrize(
    ("gate", "sign"), [(couples.AND_GATE, 1), (couples.OR_GATE, -1), (couples.XOR_GATE, -1), (couples.PLAIN_GATE, 0)]
)
def test_gates_have_their_sign(gate: int, sign: int, gray: Path, tmp_path: Path) -> None:
    module, probed = couples.logic(*([gate] if sign else [])), ["colours", "gates"]
    result = measure(["colours:0", "colours:1"], module, gray, tmp_path / "run", probe_layers=probed)
    row = result.row
    assert row["direct_sign"] == sign
    assert row["direct_at"] == (f"gates:{gate}" if sign else "")
    assert (row["direct"] > 0.05) == bool(sign)
    assert row["direct_balance"] == pytest.approx(sign, abs=0.3)
    assert row["direct_balance_low"] <= row["direct_balance"] <= row["direct_balance_high"]
    assert (row["direct_balance_low"] > 0 or row["direct_balance_high"] < 0) == bool(sign)


def twice(module: nn.Module, image: torch.Tensor, one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Compute d_a' H d_b of one feature after the other by two passes backward."""
    x, values = image[None].requires_grad_(True), []
    for mean in module(x).mean((2, 3))[0]:
        (gradient,) = torch.autograd.grad(mean, x, create_graph=True)
        (product,) = torch.autograd.grad((gradient * torch.tensor(one)).sum(), x, retain_graph=True)
        values.append(float((product * torch.tensor(two)).sum()))
    return np.array(values)


def test_the_curvature_is_the_hessian_of_a_smooth_network(gray: Path, tmp_path: Path) -> None:
    """Central differences against d_a' H d_b of each feature, by two passes backward in float64."""
    units, module = ["second:0", "second:3"], couples.smooth()
    result = measure(units, module, gray, tmp_path / "run", size=10)
    data, exact = result.data, couples.smooth().double()
    positions, (one, two) = directions(result, units)
    images = open_photographs(gray).read(positions.tolist(), 10).double()
    for k in (0, 5):
        expected = twice(exact, images[k], one[k], two[k])
        found = data["cross_A"].values[0, k] / (4 * SMALL**2)
        np.testing.assert_allclose(found, expected, rtol=0.02, atol=0.01 * np.abs(expected).max())
        middle = images[k] + torch.tensor(one[k] + two[k]) / 2
        derived, expected = (
            data["derivative_A"].values[0, result.middles.index(k)],
            twice(exact, middle, one[k], two[k]),
        )
        np.testing.assert_allclose(derived, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert result.row["direct_curvature"] > 0.01
    assert result.row["direct_hessian"] == pytest.approx(result.row["direct"], rel=0.1)
    assert result.row["direct_agreement"] > 0.9


@pytest.mark.parametrize("seeds", [1, 2, 3, 5, 16, 20])
def test_second_derivatives_take_every_seed_as_often(seeds: int, gray: Path) -> None:
    job = add_photographs(job_of(["second:3", "second:5"], tiny.small(), seeds=seeds), gray)
    counts = np.bincount([job.base_seed(k) for k in job.middles], minlength=min(seeds, BASES))
    assert len(job.middles) == len(set(job.middles)) and np.ptp(counts) <= 1
    assert 7 <= len(job.middles) <= (10 if seeds < 16 else BASES)


# ---------------------------------------------------------------- runs and their files


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_noise(tmp_path_factory.mktemp("photographs") / "noise", 70)


@pytest.fixture(scope="module")
def layers(noise: Path, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    job = pairs_of(["0-2", "0,2,5"], tiny.small(), ("second", "first"))
    return carry_out(job, Photographs(noise, 40), tmp_path_factory.mktemp("layers") / "run")


def test_responses_to_photographs_are_those_of_the_plain_network(layers: Measured, noise: Path) -> None:
    data, module = layers.data, tiny.small()
    labels = data["photograph"].values.tolist()
    assert len(labels) == 40
    images = open_photographs(noise, limit=40).read(range(40), 12)
    with torch.no_grad():
        first = module.first(images)
        second = module.second(module.relu(first))
    expected = torch.cat([second.mean((2, 3)), first.mean((2, 3))], dim=1).numpy()
    np.testing.assert_allclose(data["photograph_A"].values, expected, atol=2e-6)
    units = data["unit"].values.tolist()
    np.testing.assert_allclose(
        data["photograph_units"].values[:, units.index("first:2")], first[:, 2].mean((1, 2)), atol=2e-6
    )
    assert data["photograph_places"].shape == (40, 6, *second.shape[2:])
    np.testing.assert_allclose(data["photograph_places"].values[:, units.index("second:1")], second[:, 1], atol=2e-6)


def test_maps_are_compared_on_the_coarser_grid(noise: Path, tmp_path: Path) -> None:
    class Coarse(nn.Sequential):
        pass

    module = Coarse()
    module.add_module("fine", nn.Conv2d(3, 6, 1))
    module.add_module("coarse", nn.Conv2d(6, 6, 2, 2))
    for k, tensor in enumerate(module.parameters()):
        nn.init.normal_(tensor, generator=torch.Generator().manual_seed(k))
    result = measure(["fine:0", "coarse:1"], module.eval(), noise, tmp_path / "run")
    data = result.data
    assert data["photograph_places"].shape == (70, 2, 6, 6)
    images = open_photographs(noise).read(range(70), 12)
    with torch.no_grad():
        fine = module.fine(images)[:, 0].numpy()
    np.testing.assert_allclose(
        data["photograph_places"].values[:, 0], fine.reshape(70, 6, 2, 6, 2).mean((2, 4)), atol=2e-6
    )


def test_methods_are_compared_over_pairs(layers: Measured) -> None:
    pairs = layers.summary
    assert len(pairs) == 9 and set(PHOTOGRAPH_COLUMNS) | {"photograph_correlation_q"} <= set(pairs.columns)
    methods = compare_methods(pairs)
    assert methods[["one", "other"]].to_numpy().tolist() == [list(m) for m in METHODS]
    for row in methods.to_dict("records"):
        x, y = pairs[row["one"]], pairs[row["other"]]
        assert row["pairs"] == (x.notna() & y.notna()).sum()
        if row["pairs"] == 9:
            assert row["spearman"] == pytest.approx(stats.spearmanr(x, y)[0])
            assert row["low"] <= row["spearman"] <= row["high"]
    assert methods["pairs"].max() == 9


@pytest.mark.parametrize("noise_share", [0.0, 100.0])
def test_methods_that_agree_are_told_from_methods_that_do_not(noise_share: float) -> None:
    rng = np.random.default_rng(0)
    groups = [f"a:{i} + b:{j}" for i in range(8) for j in range(8)]
    values = rng.random(64)
    table = pd.DataFrame({name: rng.random(64) for pair in METHODS for name in pair})
    table["direct"], table["response_nonlinearity"] = values, values**2 + noise_share * rng.random(64)
    row = compare_methods(table.assign(group=groups)).iloc[0]
    if noise_share:
        assert row["low"] < 0 < row["high"] and abs(row["spearman"]) < 0.3
    else:
        assert row["spearman"] == pytest.approx(1) and row["low"] == pytest.approx(1)


def test_a_pair_is_the_same_alone_as_among_others(layers: Measured, noise: Path, tmp_path: Path) -> None:
    keywords = options("interact", out=tmp_path / "run", size=12, steps=4, rows=4, seeds=2)
    units = ["second:1", "first:5"]
    alone = featmap.interact(units, tiny.small(), photographs=Photographs(noise, 40), **keywords).summary.iloc[0]
    among = layers.summary[layers.summary["group"] == "second:1 + first:5"].iloc[0]
    for name in PHOTOGRAPH_COLUMNS:
        assert alone[name] == among[name] or (np.isnan(alone[name]) and np.isnan(among[name])), name
    known = json.loads((tmp_path / "run" / "interaction.json").read_text())["photographs"]
    assert known["photographs"] == 40 and known["sentences"] == describe_photographs(alone)
    assert known["direct"] == alone["direct"]
    (report,) = build_reports(tmp_path / "run")
    assert set(known["sentences"]) <= set(report.lines) and "--photographs FOLDER --limit 40" in report.command


def test_a_run_with_photographs_resumes_and_is_another_run(noise: Path, tmp_path: Path) -> None:
    plain = job_of(["second:3", "first:5"], tiny.small())
    job = add_photographs(plain, noise)
    assert isinstance(job, PhotographJointJob) and "photographs" not in plain.identity()
    assert plain.identity() == {k: v for k, v in job.identity().items() if k != "photographs"}
    assert set(plain.arrays()) < set(job.arrays()) and plain.default_folder() != job.default_folder()
    run = lifecycle.open_run(job, tmp_path / "run")
    assert lifecycle.carry_out(job, run, PhotographJointWorker) == len(job.work_units())
    copies = {name: np.asarray(run.arrays[name]) for name in job.arrays()}
    for name in ("photograph_A", "alone_A", "mixed_A", "derivative_A", IMAGE_DERIVATIVES):
        (next(p for p in (tmp_path / "run" / "arrays.zarr" / name).rglob("*.0") if p.is_file())).write_bytes(b"rubbish")
    again = lifecycle.open_run(job, tmp_path / "run")
    assert lifecycle.carry_out(job, again, PhotographJointWorker) == 5
    for name, values in copies.items():
        assert values.tobytes() == np.asarray(again.arrays[name]).tobytes(), name
    without = lifecycle.open_run(plain, tmp_path / "plain")
    lifecycle.carry_out(plain, without, worker_of(plain))
    for name in plain.arrays():
        assert copies[name].tobytes() == np.asarray(without.arrays[name]).tobytes(), name


def test_automatic_seeds_measure_photographs_once(noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Photographs see the solo images of the seeds that every group gets: the numbers are those of five seeds."""
    for module, figure in ((heatmaps, "cross_heatmap"), (sheets, "card_sheet")):
        monkeypatch.setattr(module, figure, lambda *_, **__: pyplot.figure(figsize=(1, 1)))
    photographs, kept = Photographs(noise, 24), {"size": 12, "steps": 3, "rows": 4}
    sides = [("second", "0-1"), ("first", "5")]

    def measured(name: str, seeds: Any) -> Interaction:
        chosen = options("interact", out=tmp_path / name, seeds=seeds, **kept)
        return featmap.interact(network=tiny.small(), layers=sides, photographs=photographs, **chosen)

    auto, five = measured("auto", AutoSeeds(1e-6, 6)), measured("five", 5)
    assert auto.statistics.groupby("group")["seed"].count().tolist() == [6, 6]
    columns = [*PHOTOGRAPH_COLUMNS, "photograph_correlation_q"]
    pd.testing.assert_frame_equal(auto.summary[columns], five.summary[columns])
    records = [p.name for p in (tmp_path / "auto" / "units").iterdir() if p.name.startswith(MEASURED)]
    assert sorted(records) == sorted(p.name for p in (tmp_path / "five" / "units").iterdir() if p.name in records)
    once = ("photograph_A", "photograph_places", "alone_A", "mixed_A", "cross_A", "derivative_A", IMAGE_DERIVATIVES)
    for name in once:
        one, two = (open_arrays(tmp_path / run)[name].values for run in ("auto", "five"))
        assert one.tobytes() == two.tobytes(), name
    page = build_reports(tmp_path / "auto")[0]
    ends = "--seeds auto --width 1e-06 --most-seeds 6 --photographs FOLDER --limit 24"
    assert page.command.endswith(ends) and any("seeds were made of each pair" in line for line in page.lines)


def test_a_job_that_grows_keeps_its_work_on_photographs(noise: Path) -> None:
    plain = job_of(["second:3", "second:5"], tiny.small(), seeds=5)
    small = add_photographs(GrowingJob.of(plain, AutoSeeds()), noise)
    assert isinstance(small, GrowingPhotographJob) and isinstance(small, GrowingJob)
    large = small.with_counts((9,))
    for few, many in zip(small.waves(), large.waves(), strict=True):
        measuring = [[unit.name for unit in wave if isinstance(unit, MeasuringUnit)] for wave in (few, many)]
        assert measuring[0] == measuring[1] and {unit.name for unit in few} < {unit.name for unit in many}
    assert small.base_seeds == large.base_seeds == tuple(range(5)) and len(large.seeds) == 9
    assert {large.base_seed(k) for k in range(BASES)} == set(range(5))
    assert small.identity() == large.identity() and small.identity()["auto"] and small.identity()["photographs"]
    assert set(small.arrays()) == set(large.arrays()) and worker_of(large) is PhotographJointWorker
    fixed = add_photographs(plain, noise)
    assert fixed.base_seeds == small.base_seeds and fixed.identity() != small.identity()


def test_what_is_undefined_has_a_reason(gray: Path, tmp_path: Path) -> None:
    few = measure(["second:3", "first:5"], tiny.small(), Photographs(gray, 8), tmp_path / "few")
    row = few.row
    assert np.isnan(
        row[["photograph_correlation", "photograph_lift", "place_lift", "natural_nonlinearity"]].astype(float)
    ).all()
    assert row["photographs_note"] == f"8 photographs, {LEAST_PAIRED} are needed" and row["direct_images"] == 8
    gates = measure(["colours:0", "gates:0"], couples.gated(), gray, tmp_path / "gates").row
    assert gates["photographs_note"].startswith(("both are", "only", "neither")), (
        "enough photographs, too few of a kind"
    )
    single = measure(["out:0", "out:2"], couples.rivals(single=True), gray, tmp_path / "single").row
    assert "there is one place only" in single["photographs_note"] and np.isnan(single["place_lift"])
    dead = measure(["relu:0", "relu:1"], tiny.sick(), gray, tmp_path / "dead").row
    assert "a unit's responses do not vary" in dead["photographs_note"], "one is dead"
    assert dead["direct_images"] == 0 and np.isnan(dead["direct"]) and "did not rise" in dead["photographs_note"]


def test_photographs_of_three_units_are_refused(gray: Path) -> None:
    with pytest.raises(FeatmapError, match="photographs with 3 units"):
        add_photographs(job_of(["second:1", "second:2", "first:0"], tiny.small()), gray)
    with pytest.raises(FeatmapError, match="photographs are added once"):
        add_photographs(add_photographs(job_of(["second:1", "second:2"], tiny.small()), gray), gray)
    with pytest.raises(FeatmapError, match="no such"):
        add_photographs(pairs_of(["0-1", "2"], tiny.small()), gray / "nowhere")
