"""Facets of units: planted numbers of them, rows that depend on nothing else, and what a run folder holds."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

import featmap
from featmap.cli.app import main
from featmap.errors import FeatmapError
from featmap.mapping.view import View
from featmap.optimize.objective import Objective
from featmap.optimize.recipe import Recipe
from featmap.runs import estimate
from featmap.runs import worker as worker_module
from featmap.runs.engine import Execution
from featmap.runs.job import Job
from featmap.runs.maximise import Extras
from featmap.runs.progress import Silent
from featmap.runs.store import open_arrays
from featmap.runs.worker import Worker, checked
from featmap.stats.facets import facet_seed
from tests.helpers import networks, tiny

pytestmark = pytest.mark.usefixtures("cheap_runs")
RECIPE = Recipe.named("fast", size=16, steps=6, rows=4)
NAMES = ("facets", "facet_activation", "facet_distance", "facet_repeat", "facet_repeat_activation")


def run_command(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        main([*words])
    return int(end.value.code or 0)


def test_planted_units_have_the_facets_they_are_built_with(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = ["--model", "tests.helpers.networks:two_faced", "--layer", "features", "--facets", "5", "--device", "cpu"]
    assert (
        run_command(
            "maximise",
            *words,
            "--recipe",
            "pixels",
            "--size",
            "8",
            "--steps",
            "40",
            "--rows",
            "8",
            "--out",
            str(folder),
        )
        == 0
    )
    table = pd.read_csv(folder / "images.csv")
    assert list(table["facets"]) == [1] * 30 + [2]
    shown = pd.read_csv(folder / "facets.csv")
    two = shown[shown["image"] == "features:30"]
    assert two["different"].sum() == 2 and (two["kept"] > 0.9).all()
    data = open_arrays(folder).isel(seed=0)
    first, other = data["facets"].values[30][two["different"].to_numpy(dtype=bool)]
    assert np.corrcoef(first.ravel(), other.ravel())[0, 1] < -0.9, "a pattern and its negative"
    pattern = networks.two_faced().match.weight[30].detach().numpy()
    assert abs(np.corrcoef(first.ravel(), pattern.ravel())[0, 1]) > 0.6
    assert {"facets.csv", "facets.png", "facets.pdf", "facets/00030-features-30-4.png"} <= {
        p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()
    }


def test_facets_depend_on_their_own_unit_only() -> None:
    network, units = featmap.load(tiny.small()), [f"second:{k}" for k in range(6)]
    plain = featmap.maximise(units, network, recipe=RECIPE)
    whole = featmap.maximise(units, network, recipe=RECIPE, extras=Extras(facets=3))
    np.testing.assert_array_equal(whole["images"], plain["images"])
    np.testing.assert_array_equal(whole["facets"].isel(facet=0), plain["images"])
    np.testing.assert_array_equal(whole["facet_activation"].isel(facet=0), plain["activation"])
    assert (np.ptp(whole["facets"].values, axis=2).max((2, 3, 4)) > 0.01).all()
    few = featmap.maximise([units[5], units[1]], network, recipe=RECIPE, extras=Extras(facets=3))
    again = featmap.maximise(units, network, recipe=RECIPE, seeds=[facet_seed(0, 0)])
    np.testing.assert_array_equal(whole["facet_repeat_activation"].values, again["activation"].values)
    fewer = featmap.maximise(units[1], network, recipe=RECIPE, extras=Extras(facets=2))
    for name in NAMES:
        np.testing.assert_array_equal(few[name].values[:, 1], whole[name].values[:, 1])
        np.testing.assert_array_equal(few[name].values[:, 0], whole[name].values[:, 5])
    np.testing.assert_array_equal(fewer["facets"].values[:, 0], whole["facets"].values[:, 1, :2])


def test_facets_of_mixed_layers_and_sums_equal_those_alone() -> None:
    network = featmap.load(tiny.small())
    units = ["second:1", "first:2 + second:3", "first:0", "second:4:1:1"]
    mixed = featmap.maximise(units, network, recipe=RECIPE, extras=Extras(facets=2))
    for k, unit in enumerate(units):
        alone = featmap.maximise(unit, network, recipe=RECIPE, extras=Extras(facets=2))
        for name in NAMES:
            np.testing.assert_array_equal(alone[name].values[:, 0], mixed[name].values[:, k])


class Steps(Silent):
    """Counts the steps that it is told of."""

    total = 0

    def step(self, activation: float, count: int = 1) -> None:
        self.total += count


class Counted(nn.Module):
    """`tiny.small`, with the number of passes that a gradient flows through."""

    passes = 0

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny.small()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        Counted.passes += images.requires_grad
        return self.inner(images)


@pytest.mark.parametrize("facets", [2, 4])
def test_cost_and_progress_of_facets_are_those_of_the_work(facets: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "GENTLER", ())  # further attempts are not foreseen
    units = tuple(Objective.parse(f"{layer}:{k}") for layer in ("inner.first", "inner.second") for k in range(2))
    recipe, passes = Recipe.named("fast", size=16, steps=6, rows=4, rescue=0.0).resolved(16), []
    plain = checked(Job(network=featmap.load(Counted().eval()), objectives=units, recipe=recipe))
    for job in (plain, replace(plain, facets=facets)):
        steps, (unit,) = Steps(), [u for u in job.work_units() if u.last]
        worker, Counted.passes = Worker(job, steps), 0
        worker.make(unit)
        passes.append(Counted.passes)
        assert steps.total == job.steps_per_unit
    assert passes[0] == 2 * recipe.steps, "one descent for each layer"
    assert passes[1] / passes[0] == job.cost(unit) / plain.cost(unit) == 2 * facets


def test_a_dry_run_counts_the_work_of_facets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = checked(
        Job(network=featmap.load(tiny.small()), objectives=(Objective.parse("second:1"),), recipe=RECIPE.resolved(16))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimate, "estimate_seconds", lambda *_: 1.0)
        patch.setattr(estimate, "_rest_seconds", lambda *_: 0.0)
        seconds = [estimate.estimate(replace(job, facets=n), tmp_path).seconds for n in (0, 2, 5)]
    assert seconds == [1, 4, 10]
    words = ["second:1", "--model", "tests.helpers.tiny:small", "--size", "16", "--steps", "2", "--dry-run"]
    assert run_command("maximise", *words, "--facets", "3") == 0
    assert "3 facets of each" in " ".join(capsys.readouterr().out.split())


def test_repulsion_makes_facets_more_different_than_repeats() -> None:
    network = featmap.load(tiny.small())
    data = featmap.maximise([f"second:{k}" for k in range(6)], network, recipe=RECIPE, extras=Extras(facets=2), seeds=3)
    apart, repeated = data["facet_distance"].values[:, :, 0, 1], data["facet_repeat"].values
    assert np.median(apart) > 1.2 * np.median(repeated)
    np.testing.assert_allclose(data["facet_distance"].values, data["facet_distance"].values.swapaxes(2, 3), atol=1e-6)


def test_facets_that_lose_too_much_of_the_response_are_made_again_more_gently(monkeypatch: pytest.MonkeyPatch) -> None:
    network, units = featmap.load(tiny.small()), [f"second:{k}" for k in range(6)]
    after = featmap.maximise(units, network, recipe=RECIPE, extras=Extras(facets=3))
    monkeypatch.setattr(worker_module, "GENTLER", ())
    before = featmap.maximise(units, network, recipe=RECIPE, extras=Extras(facets=3))
    shares = []
    for data in (before, after):
        response, null = data["facet_activation"].values[0], data["null_activation"].values[0]
        best = np.maximum(data["activation"].values[0], data["facet_repeat_activation"].values[0]) - null
        shares.append((response - null[:, None]) / best[:, None])
    low = shares[0][:, 1] < 0.9  # the second facet is pushed from the same image in both
    assert 0 < low.sum() < len(units)
    images = [data["facets"].values[0, :, 1] for data in (before, after)]
    np.testing.assert_array_equal(images[0][~low], images[1][~low])
    assert (shares[1][low, 1] > shares[0][low, 1]).all()
    assert (shares[1][:, 1:] >= 0.9).mean() > (shares[0][:, 1:] >= 0.9).mean()


def test_a_run_with_facets_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    network, folder = featmap.load(tiny.small()), tmp_path / "run"
    units = [f"second:{k}" for k in range(6)]
    featmap.maximise(units, network, recipe=RECIPE, extras=Extras(facets=3), execution=Execution("cpu", out=folder))
    before = {p: p.read_bytes() for p in (folder / "arrays.zarr").rglob("*") if p.is_file()}
    lost = sorted((folder / "arrays.zarr" / "facets").rglob("0*"))[0]
    shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    featmap.maximise(units, network, recipe=RECIPE, extras=Extras(facets=3), execution=Execution("cpu", out=folder))
    assert {p: p.read_bytes() for p in (folder / "arrays.zarr").rglob("*") if p.is_file()} == before
    memory = featmap.maximise(units, network, recipe=RECIPE, extras=Extras(facets=3))
    for name in NAMES:
        np.testing.assert_array_equal(open_arrays(folder)[name].values, memory[name].values)
    with pytest.raises(FeatmapError, match="other settings"):
        featmap.maximise(units, network, recipe=RECIPE, extras=Extras(facets=2), execution=Execution("cpu", out=folder))


@pytest.mark.parametrize("count", [1, -2, 17])
def test_a_wrong_number_of_facets_is_refused_in_one_line(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FeatmapError, match=f"facets {count}: give the number of images of each unit, 2 to 16"):
        featmap.maximise("second:1", tiny.small(), recipe=RECIPE, extras=Extras(facets=count))
    words = ["maximise", "second:1", "--model", "tests.helpers.tiny:small", "--facets", str(count)]
    assert run_command(*words) == 2
    assert f"--facets {count}: give" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", ["fast", "pixels"])
def test_facets_from_a_start_image_are_refused_in_one_line(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start, short = np.full((3, 16, 16), 0.5, np.float32), Recipe.named(recipe, size=16, steps=2, rows=2)
    with pytest.raises(FeatmapError, match=r"facets 2 from a start image: .*leave out the start image or the facets"):
        featmap.maximise("second:1", tiny.small(), recipe=short, start=start, extras=Extras(facets=2))
    with pytest.raises(FeatmapError, match="facets 3 from a start image:"):
        featmap.similarity("second", network=tiny.small(), recipe=short, start=start, view=View(facets=3))
    Image.new("RGB", (16, 16)).save(tmp_path / "start.png")
    words = ["--model", "tests.helpers.tiny:small", "--facets", "2", "--out", str(tmp_path / "run")]
    assert run_command("maximise", "second:1", *words, "--start", str(tmp_path / "start.png")) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1 and not (tmp_path / "run").exists()
    assert featmap.maximise("second:1", tiny.small(), recipe=short, start=start)["images"].shape[1] == 1


@pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning")
def test_maps_have_a_column_of_facets_and_the_same_facets(tmp_path: Path) -> None:
    folder, again = tmp_path / "map", tmp_path / "plain"
    words = ["similarity", "--model", "tests.helpers.networks:two_faced", "--layer", "features", "--device", "cpu"]
    words += ["--size", "8", "--steps", "6", "--rows", "8", "--no-atlas"]
    assert run_command(*words, "--features", "28-30", "--facets", "3", "--out", str(folder)) == 0
    table = pd.read_csv(folder / "features.csv").set_index("feature")
    assert list(table.index) == ["features:28", "features:29", "features:30"]
    assert (table["facets"] >= 1).all() and list(table["facets"][:2]) == [1, 1]
    shown = pd.read_csv(folder / "facets.csv")
    assert len(shown) == 9 and (folder / "facets.pdf").is_file()
    units = [f"features:{k}" for k in range(31)]
    recipe = Recipe.named("fast", size=8, steps=6, rows=8)
    data = featmap.maximise(units, networks.two_faced(), recipe=recipe, extras=Extras(facets=3))
    np.testing.assert_array_equal(open_arrays(folder)["facets"].values, data["facets"].values)
    assert run_command(*words, "--features", "28-30", "--out", str(again)) == 0
    pd.testing.assert_frame_equal(
        pd.read_csv(again / "features.csv").set_index("feature"), table.drop(columns="facets")
    )
    assert run_command(*words, "--facets", "1", "--out", str(tmp_path / "no")) == 2


def test_facets_of_directions_are_compared_by_the_channels_of_their_layer() -> None:
    # a recipe without contrast, which directions do not have
    network, recipe = featmap.load(tiny.small()), Recipe.named("pixels", size=16, steps=6, rows=4)
    channels = network.layer("second", 16).channels
    plain = featmap.maximise("second:1", network, recipe=recipe, extras=Extras(facets=2))
    made = featmap.maximise(
        "second/d:0",
        network.with_directions({"second/d": np.eye(channels)[[1]]}),
        recipe=recipe,
        extras=Extras(facets=2),
    )
    np.testing.assert_array_equal(made["facets"].isel(facet=0), plain["facets"].isel(facet=0))
    assert np.isfinite(made["facet_distance"].values).all() and made["facet_distance"].values[0, 0, 0, 1] > 0
