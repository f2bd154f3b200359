"""Second derivatives at images: linear, quadratic, smooth and gated networks, and runs of earlier versions."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from scipy import stats
from torch import nn

import featmap
from featmap.interaction import run as joint
from featmap.interaction.conclusion import compare_methods, describe_photographs, describe_photographs_of_pairs
from featmap.interaction.groups import JointSettings
from featmap.interaction.job import IMAGE_DERIVATIVES, JointJob
from featmap.interaction.photographs import (
    DERIVATIVE_PASSES,
    GrowingPhotographJob,
    PhotographJointJob,
    PhotographJointWorker,
)
from featmap.interaction.precision import AutoSeeds, GrowingJob
from featmap.interaction.run import Interaction, add_photographs
from featmap.plotting import heatmaps, interaction_panel, sheets
from featmap.plotting.labels import statistic_label
from featmap.report.interaction import build_reports
from featmap.runs import integrity, lifecycle, store
from tests.helpers import couples, tiny
from tests.helpers.pictures import save_noise
from tests.helpers.settings import options
from tests.interaction.test_job import job_of, pairs_of
from tests.interaction.test_photographs import twice

pytestmark = pytest.mark.usefixtures("threads")

SIDE = 12
SMALL = {"size": SIDE, "steps": 3, "rows": 4, "seeds": 1}


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_noise(tmp_path_factory.mktemp("photographs") / "noise", 24)


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take most of the time of a small run."""
    for module, figure in ((heatmaps, "cross_heatmap"), (sheets, "card_sheet"), (interaction_panel, "panel")):
        monkeypatch.setattr(module, figure, lambda *_, **__: pyplot.figure(figsize=(1, 1)))


def carried_out(job: JointJob, folder: Path) -> Interaction:
    """Carry out a run, or what it lacks, and let go of its folder."""
    run = lifecycle.open_run(job, folder)
    result = joint.carry_out(job, run)
    run.unlock()
    return result


class Run:
    """A run of one pair, and what is computed plainly from its labelled arrays."""

    def __init__(self, result: Interaction, units: list[str]) -> None:
        self.result, self.units, self.data = result, units, store.open_arrays(result.folder).load()
        self.row, self.deviation = result.summary.iloc[0], self.data["deviation"].values

    def null(self, seed: int) -> np.ndarray:
        found: np.ndarray = self.data["null_images"].sel(start=f"seed={seed}").values.astype(float)
        return found

    def halves(self, seed: int) -> list[np.ndarray]:
        """Half of what each solo image differs by from the null image."""
        solos = [self.data["solo_images"].sel(solo=f"{u} seed={seed}").values.astype(float) for u in self.units]
        return [(solo - self.null(seed)) / 2 for solo in solos]

    def derived(self, seed: int) -> np.ndarray:
        found: np.ndarray = self.data[IMAGE_DERIVATIVES].isel(group=0).sel(seed=seed).values.astype(float)
        return found

    def difference(self, seed: int) -> np.ndarray:
        """Second difference of the stored responses, in their own units."""
        label = f"{' + '.join(self.units)} seed={seed}"
        parts = [self.data["solo_fraction"].sel(solo=f"{u} seed={seed}").values.astype(float) for u in self.units]
        middle = self.data["joint_middle"].sel(joint=label).values.astype(float)
        found: np.ndarray = middle - sum(parts) + self.data["null"].sel(start=f"seed={seed}").values
        return found

    def joint_size(self, seed: int) -> float:
        """Norm of r_ab."""
        joint = self.data["joint_A"].sel(joint=f"{' + '.join(self.units)} seed={seed}").values.astype(float)
        return float(np.sqrt(np.nansum(((joint - self.data["null"].sel(start=f"seed={seed}")) / self.deviation) ** 2)))

    def agreement(self) -> float:
        seeds, varies = self.data["seed"].values.tolist(), np.isfinite(self.deviation)
        one, two = (np.mean([of(s) for s in seeds], axis=0) / self.deviation for of in (self.derived, self.difference))
        return float(stats.spearmanr(one[varies], two[varies])[0])


def measure(units: list[str], module: nn.Module, noise: Path, out: Path, **changes: object) -> Run:
    return Run(carried_out(add_photographs(job_of(units, module, **changes), noise), out), units)


# ---------------------------------------------------------------- networks whose second derivative is known


@pytest.mark.parametrize(("module", "units"), [(couples.halves, "out"), (couples.twins, "features")])
def test_a_linear_network_has_none(module: type[nn.Module], units: str, noise: Path, tmp_path: Path) -> None:
    run = measure([f"{units}:0", f"{units}:2"], module(), noise, tmp_path / "run", size=32)
    assert (run.result.statistics["second_derivative"] == 0).all() and run.row["second_derivative"] == 0
    assert run.row["second_difference"] < 1e-4 and np.isnan(run.row["second_derivative_agreement"])
    line = "Along the halves of both solo images the second derivative (of softplus where the network has ReLUs) is 0.0"
    (found,) = [text for text in describe_photographs(run.row) if text.startswith(line)]
    assert "rank correlation" not in found


def quadratic() -> nn.Module:
    """Layers `parts`, three weighted sums of the whole image, and `products` of two of them."""
    weight = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(8)) / SIDE
    parts = nn.Conv2d(3, 3, SIDE, bias=False)
    with torch.no_grad():
        parts.weight.copy_(weight)
    return nn.Sequential(OrderedDict(parts=parts, products=couples.Product())).eval()


def test_a_quadratic_network_has_its_closed_form(noise: Path, tmp_path: Path) -> None:
    """F = (w_i.x)(w_j.x): both are (w_i.u)(w_j.v) + (w_i.v)(w_j.u), whatever the length of u and v."""
    module, units = quadratic(), ["parts:0", "parts:1"]
    run = measure(units, module, noise, tmp_path / "run", probe_layers=["parts", "products"])
    weight = module.get_submodule("parts").weight.detach().numpy().astype(float)
    for k, seed in enumerate(run.data["seed"].values.tolist()):
        u, v = (np.einsum("kchw,chw->k", weight, half) for half in run.halves(seed))
        closed = np.array([0, 0, 0, *(u[i] * v[j] + v[i] * u[j] for i, j in ((0, 1), (0, 2), (1, 2)))])
        np.testing.assert_allclose(run.derived(seed), closed, rtol=1e-4, atol=1e-5 * np.abs(closed).max())
        np.testing.assert_allclose(run.difference(seed), closed, rtol=1e-3, atol=1e-3 * np.abs(closed).max())
        size = np.sqrt(np.nansum((closed / run.deviation) ** 2)) / run.joint_size(seed)
        row = run.result.statistics.iloc[k]
        assert row["seed"] == seed and row["second_derivative"] == pytest.approx(size, rel=1e-3) and size > 0.01
        assert row["second_difference"] == pytest.approx(size, rel=2e-3)
    mean = run.result.statistics["second_derivative"].mean()
    assert run.row["second_derivative"] == pytest.approx(mean)


def test_a_smooth_network_has_its_hessian(noise: Path, tmp_path: Path) -> None:
    """Against u' H v of each feature, by two passes backward in float64."""
    units = ["second:0", "second:3"]
    run = measure(units, couples.smooth(), noise, tmp_path / "run", size=10, probe_layers=["first", "second"])
    for seed in run.data["seed"].values.tolist():
        one, two = run.halves(seed)
        middle = torch.tensor(run.null(seed) + (one + two) / 2)
        expected = twice(couples.smooth().double(), middle, one, two)
        found = run.derived(seed)
        np.testing.assert_allclose(found[-5:], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
        assert (found[:-5] == 0).all() and np.abs(expected).max() > 0
    assert run.row["second_derivative_agreement"] == pytest.approx(run.agreement())


def test_a_planted_and_is_found_by_both(noise: Path, tmp_path: Path) -> None:
    """Twelve features read a conjunction with weights of their own, so that each has a second difference of its own."""
    module, probed = couples.conjunctions("and"), ["next"]
    run = measure(["colours:0", "colours:1"], module, noise, tmp_path / "run", probe_layers=probed, steps=12)
    assert run.row["second_difference"] > 0.01 and run.row["second_derivative"] > 0.01
    assert run.row["second_derivative_agreement"] > 0.9
    assert run.row["second_derivative_agreement"] == pytest.approx(run.agreement())
    (line,) = [text for text in describe_photographs(run.row) if text.startswith("Along the halves")]
    assert "their rank correlation over 12 features is" in line
    content = json.loads((run.result.folder / "interaction.json").read_text())
    assert content["figures"]["second_derivative"]["seeds"] == pytest.approx(run.result.statistics["second_derivative"])
    assert content["photographs"]["second_derivative_agreement"] == run.row["second_derivative_agreement"]
    (report,) = build_reports(run.result.folder)
    assert statistic_label("second_derivative") in set(report.tables[0][1]["statistic"]) and line in report.lines


def test_a_network_without_second_derivative_says_so(noise: Path, tmp_path: Path) -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return x * 2

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * 2

    class Doubled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = Once.apply(x)
            return found

    first = nn.Conv2d(3, 4, 3)
    nn.init.normal_(first.weight, generator=torch.Generator().manual_seed(0))
    module = nn.Sequential(OrderedDict(first=first, out=Doubled())).eval()
    run = measure(["out:0", "out:1"], module, noise, tmp_path / "run")
    assert np.isfinite(run.row["second_difference"]) and np.isnan(run.row["second_derivative"])
    assert any(
        line.startswith("The second derivative at images is undefined") for line in describe_photographs(run.row)
    )


# ---------------------------------------------------------------- runs and their files


def test_dead_units_have_none(noise: Path, tmp_path: Path) -> None:
    run = measure(["relu:0", "relu:1"], tiny.sick(), noise, tmp_path / "dead")
    assert run.result.statistics["second_derivative"].isna().all() and np.isnan(run.data[IMAGE_DERIVATIVES]).all()
    assert not any("second derivative at images" in line for line in describe_photographs(run.row))


def test_estimates_count_them(noise: Path) -> None:
    job = add_photographs(pairs_of(["0-2", "5"], tiny.small(), ("second", "first")), noise)
    others = 2 * 24 + 16 * (3 * 4 + 5 * 3)
    assert job.shown_photographs == others + DERIVATIVE_PASSES * 3 * (len(job.middles) + len(job.seeds))
    grown = add_photographs(GrowingJob.of(job_of(["second:3", "second:5"], tiny.small(), seeds=5), AutoSeeds()), noise)
    assert grown.with_counts((9,)).shown_photographs == grown.shown_photographs


def test_runs_without_photographs_have_no_such_column(tmp_path: Path) -> None:
    result = carried_out(job_of(["second:3", "first:5"], tiny.small()), tmp_path / "run")
    assert "second_derivative" not in result.statistics and IMAGE_DERIVATIVES not in result.dataset


@pytest.mark.parametrize("grows", [False, True])
def test_a_run_without_them_gets_them(
    grows: bool, noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A complete run of a version that had no such array is completed; nothing else is computed again."""
    plain = job_of(["second:3", "first:5"], tiny.small(), seeds=5 if grows else 2)
    job = add_photographs(GrowingJob.of(plain, AutoSeeds(1e-6, 6)) if grows else plain, noise)
    arrays, waves = PhotographJointJob.arrays, PhotographJointJob.waves
    with monkeypatch.context() as earlier:
        earlier.setattr(
            PhotographJointJob,
            "arrays",
            lambda self: {name: spec for name, spec in arrays(self).items() if name != IMAGE_DERIVATIVES},
        )
        earlier.setattr(
            PhotographJointJob,
            "waves",
            lambda self: [[u for u in wave if u.stage != "image_derivative"] for wave in waves(self)],
        )
        run = lifecycle.open_run(job, tmp_path / "run")
        kind = PhotographJointWorker
        lifecycle.carry_out(job, run, kind)
        larger = job
        if isinstance(job, GrowingPhotographJob):
            larger = job.with_counts((6,))
            run.manifest.summary |= {joint.COUNTS: [6]}
            run.save()
            lifecycle.extend(larger, run)
            lifecycle.carry_out(larger, run, kind)
        lifecycle.complete(larger, run)
        run.unlock()
        kept = {name: np.asarray(run.arrays[name]).tobytes() for name in job.arrays()}
    records = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "units").iterdir()}
    assert integrity.inspect(tmp_path / "run").faults == []
    result = carried_out(job, tmp_path / "run")
    assert integrity.inspect(tmp_path / "run").faults == []
    again = lifecycle.open_run(job, tmp_path / "run")
    for name, values in kept.items():
        assert np.asarray(again.arrays[name]).tobytes() == values, name
    again.unlock()
    later = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "units").iterdir()}
    assert set(later) - set(records) == {"image_derivative-000000-000001.json"} and records.items() <= later.items()
    derived = result.statistics["second_derivative"]
    assert derived[:5].notna().all() and derived[5:].isna().all() and result.summary["second_derivative"].notna().all()
    assert len(derived) == (6 if grows else 2)


def test_tables_and_the_page_of_pairs_state_them(noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = featmap.interact(
        network=couples.smooth(),
        layers=[("second", "0-1"), ("first", "1-2")],
        photographs=noise,
        settings=JointSettings(),
        **options("interact", out=tmp_path / "run", **SMALL),
    )
    methods = (
        compare_methods(result.summary).set_index(["one", "other"]).loc[("second_derivative", "second_difference")]
    )
    lines = describe_photographs_of_pairs(result.summary, compare_methods(result.summary))
    (line,) = [text for text in lines if text.startswith("second derivative at images against second difference there")]
    average = result.summary["second_derivative_agreement"].mean()
    assert methods["pairs"] == 4 and line.endswith(f", 4 pairs; over features {average:.2f} on average")
    (page,) = build_reports(tmp_path / "run")
    assert line in page.lines and statistic_label("second_derivative") in {p.caption for p in page.pictures}
    (table,) = [frame for caption, frame in page.tables if caption.startswith("Rank correlations")]
    assert statistic_label("second_derivative") in set(table["one"])
    for name in ("pairs", "ranking"):
        assert {"second_derivative", "second_derivative_agreement"} <= set(store.read_frame(result.folder, name))
    read, lost = store.read_frame, {"columns": ["second_derivative_agreement", "second_derivative"], "errors": "ignore"}
    monkeypatch.setattr(store, "read_frame", lambda folder, name: read(folder, name).drop(**lost))
    (earlier,) = build_reports(tmp_path / "run")
    assert [text.partition(";")[0] for text in earlier.lines] == [text.partition(";")[0] for text in page.lines]
    assert line not in earlier.lines, "an earlier version has no agreement over features"
