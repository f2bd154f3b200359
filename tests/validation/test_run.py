"""Runs of validations: page, tables and panels, marks, resuming, and wrong input."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from featmap.cli import app
from featmap.errors import FeatmapError
from featmap.mapping.run import similarity
from featmap.network.loading import load
from featmap.runs import integrity
from featmap.runs import worker as runs_worker
from featmap.runs.engine import Execution
from featmap.runs.store import Run
from featmap.stats import reliability
from featmap.validation import run as validation
from featmap.validation.planted import LINEAR
from featmap.validation.run import plan_validation
from tests.helpers import tiny, twofold
from tests.helpers.settings import options
from tests.helpers.tables import check_plain_tables

pytestmark = [
    pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning"),
    pytest.mark.usefixtures("cheap_runs", "one_thread"),
]
FEW: dict[str, Any] = {"recipe": LINEAR, "device": "cpu"}


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Path:
    folder = tmp_path_factory.mktemp("validated") / "run"
    similarity(
        ["second", "first"],
        "tests.helpers.tiny:wide",
        **options(size=16, steps=6, rows=4, device="cpu", out=folder, neighbours=4),
    )
    validation.validate(folder, photographs=photographs, seeds=3, null_seeds=1)
    return folder


def test_the_folder_holds_a_page_tables_and_panels(validated: Path) -> None:
    folder = validated / "validation"
    page = (folder / "validation.md").read_text()
    for words in ("## second", "## first", "**What may be concluded**", "**What may not**", "| repeatability |"):
        assert words in page
    figures = pd.read_parquet(folder / "figures.parquet")
    assert set(figures["network"]) == {"trained", "random weights", "columns permuted"}
    assert set(figures["layer"]) == {"second", "first"}
    numbers = figures[["value", "low", "high", "p"]]
    assert not np.isinf(numbers.to_numpy(float, na_value=0)).any() and str(numbers.dtypes["value"]) == "float64"
    assert "NaN" not in (folder / "validation.json").read_text() and "nan" not in page
    tables = check_plain_tables(validated)
    assert {"features.parquet", "figures.parquet", "partners.parquet"} <= {Path(name).name for name in tables}
    features = pd.read_parquet(folder / "second" / "features.parquet")
    assert list(features.index) == [f"second:{c}" for c in range(24)]
    assert features["best_photograph"].str.endswith((".jpg", ".png")).all()
    assert len(list((folder / "second" / "panels").glob("*.png"))) == 3
    assert Run.read(folder).is_complete() and Run.read(validated).is_complete()


def test_unreliable_features_are_marked_in_the_runs_tables_and_figures(
    validated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(validated, run)
    table = pd.read_parquet(run / "second" / "features.parquet")
    single = pd.read_parquet(run / "validation" / "second" / "features.parquet")
    assert table["reliability"].to_list() == pytest.approx(single["reliability"].to_list(), abs=1e-6)
    assert (table["reliable"] == (table["reliability"] >= 0.9)).all()
    stored = Run.read(run)
    stored.manifest.reliability |= {"second:3": 0.5, "second:5": None}
    stored.save()
    again = {"size": 16, "steps": 6, "rows": 4, "device": "cpu", "out": run, "neighbours": 4}
    result = similarity(["second", "first"], "tests.helpers.tiny:wide", **options(**again)).maps["second"]
    assert not result.features["reliable"]["second:3"] and not result.features["reliable"]["second:5"]
    assert "second:3 ?" in (run / "second" / "heatmap.svg").read_text()
    assert "24 features, 2 of them unreliable (marked ?)" in (run / "second" / "heatmap.svg").read_text()
    assert ">3 ?<" in (run / "cross" / "second-to-first" / "heatmap.svg").read_text()
    partners = pd.read_parquet(run / "cross" / "first-to-second" / "partners.parquet")
    assert not partners.loc[partners["partner"] == "second:3", "partner_reliable"].any()
    assert '<data key="' in (run / "second" / "graph.graphml").read_text()
    with pytest.raises(SystemExit):
        app.main(["neighbours", "second:1", str(run), "-n", "24"])
    assert capsys.readouterr().out.count("no ?") == 4  # two features, in both lists
    assert Run.read(run).is_complete()


def test_more_seeds_compute_only_what_is_new_also_after_a_stop(
    validated: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(validated, run)
    seen: list[tuple[int, int]] = []
    real = runs_worker.Worker.make

    def counted(self: runs_worker.Worker, unit: Any) -> Any:
        seen.append((unit.seed, unit.last))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(self, unit)

    monkeypatch.setattr(runs_worker.Worker, "make", counted)
    with pytest.raises(KeyboardInterrupt):
        validation.validate(run, photographs=photographs, seeds=4, null_seeds=1)
    result = validation.validate(run, photographs=photographs, seeds=4, null_seeds=1)
    assert {seed for seed, _ in seen} == {3}
    assert len(seen) == len(set(seen)) + 1 == 10
    assert result.trained["second"].statistics["repeatability_of_all"].count == 4
    before = (run / "validation" / "validation.md").read_bytes()
    validation.validate(run, photographs=photographs, seeds=4, null_seeds=1)
    assert len(seen) == 10 and (run / "validation" / "validation.md").read_bytes() == before


WRONG = [
    ("too few seeds", {"seeds": 1}, "2 seeds or more"),
    ("fewer than no null", {"null_seeds": -1}, "0 null seeds or more"),
    ("no such photographs", {"photographs": "nowhere"}, "no such folder"),
    ("a file for a folder", {"photographs": __file__}, "that is a file"),
]


@pytest.mark.parametrize(("settings", "words"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_settings_end_in_one_line(validated: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(FeatmapError, match=words):
        plan_validation(validated, **settings)


def test_further_seeds_follow_the_largest_of_the_run(tmp_path: Path) -> None:
    network = load(twofold.honest(), input_size=16)
    similarity("features", network, **options(out=tmp_path / "run", **FEW) | {"seeds": (4, 1)})
    plan = plan_validation(tmp_path / "run", seeds=5, null_seeds=1, network=network)
    assert plan.seeds == (4, 1, 5, 6, 7) and plan.null_seeds == (4,)
    assert [folder.name for _, folder in validation.similarity_jobs(plan)] == ["seed-5", "seed-6", "seed-7", "seed-4"]


def test_a_run_of_another_kind_or_network_is_refused(validated: Path, tmp_path: Path, photographs: Path) -> None:
    with pytest.raises(FeatmapError, match="a different network"):
        plan_validation(validated, network=load(tiny.other()))
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(photographs.iterdir())[:5]:
        shutil.copy(path, few)
    with pytest.raises(FeatmapError, match="5 photographs; give 32 or more"):
        plan_validation(validated, photographs=few)
    with pytest.raises(FeatmapError, match="is a run; give a folder of photographs"):
        plan_validation(validated, photographs=validated)
    with pytest.raises(FeatmapError, match="not a complete similarity run"):
        plan_validation(validated / "validation")


def test_a_validation_stays_on_the_device_of_its_run(validated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = Execution("cuda")
    monkeypatch.setattr(elsewhere, "torch_device", lambda: torch.device("meta"))
    with pytest.raises(FeatmapError, match=r"device cuda: run .* was computed on cpu, .*; use 'cpu' or 'auto'"):
        validation.validate(validated, seeds=3, null_seeds=1, execution=elsewhere)
    monkeypatch.setattr(elsewhere, "engine", SimpleNamespace(name="ray"))
    with pytest.raises(FeatmapError, match="engine ray: a validation is computed in this process; use 'here'"):
        validation.validate(validated, seeds=3, null_seeds=1, execution=elsewhere)


def state(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_an_unreadable_photograph_leaves_the_run_as_it_was(validated: Path, photographs: Path, tmp_path: Path) -> None:
    run, broken = tmp_path / "run", tmp_path / "broken"
    shutil.copytree(validated, run)
    shutil.copytree(photographs, broken)
    cut = sorted(broken.iterdir())[40]
    cut.write_bytes(cut.read_bytes()[:200])
    before = state(run)
    with pytest.raises(FeatmapError, match=rf"{cut.name}.*truncated"):
        validation.validate(run, photographs=broken, seeds=4, null_seeds=1)
    assert state(run) == before
    bare = tmp_path / "bare"
    shutil.copytree(validated, bare, ignore=shutil.ignore_patterns("validation"))
    stored = Run.read(bare)
    stored.manifest.parts = []
    stored.save()
    with pytest.raises(FeatmapError, match="truncated"):
        validation.validate(bare, photographs=broken, seeds=2, null_seeds=0)
    assert not (bare / "validation").exists() and integrity.inspect(bare).faults == []
    validation.validate(bare, photographs=photographs, seeds=2, null_seeds=0)
    assert integrity.inspect(bare).faults == []


def test_abandoned_parts_are_removed(
    validated: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, fewer = tmp_path / "run", tmp_path / "fewer"
    shutil.copytree(validated, run)
    shutil.copytree(photographs, fewer)
    sorted(fewer.iterdir())[0].unlink()
    real = Run.land

    def stopped(self: Run, unit: str, pieces: Any) -> None:
        if "photographs-" in self.folder.name and list(self.folder.glob("units/*")):  # the first unit lands
            raise KeyboardInterrupt
        real(self, unit, pieces)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "land", stopped)
        with pytest.raises(KeyboardInterrupt):
            validation.validate(run, photographs=fewer, seeds=3, null_seeds=1)
    assert len(list((run / "validation").glob("photographs-*"))) == 2
    validation.validate(run, photographs=photographs, seeds=3, null_seeds=1)
    assert len(list((run / "validation").glob("photographs-*"))) == 1
    assert integrity.inspect(run).faults == []


def test_panels_are_removed_without_photographs(validated: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(validated, run)
    assert integrity.inspect(run).faults == [] and list(run.glob("validation/*/panels/*.png"))
    validation.validate(run, seeds=3, null_seeds=1)
    assert not list(run.glob("validation/*/panels")) and integrity.inspect(run).faults == []


def test_reliability_of_the_run_is_that_of_its_seeds(validated: Path) -> None:
    features = pd.read_parquet(validated / "validation" / "second" / "features.parquet")
    assert features["reliability"].to_list() == features["reliability_single_seed"].to_list()
    assert reliability.spearman_brown(0.8, 3) > 0.8


def test_the_command_line_ends_in_verdicts_or_one_line(
    validated: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            app.main(["validate", str(validated), *arguments])
        output = capsys.readouterr()
        return int(end.value.code or 0), output.out, output.err

    status, out, _ = run("--photographs", str(photographs), "--seeds", "3", "--null-seeds", "1")
    assert status == 0 and "second: may" in out and "validation.md" in out.splitlines()[-1]
    status, out, _ = run("--seeds", "6", "--dry-run")
    assert status == 0 and "4 maps of 30 images to make" in out
    assert not (validated / "validation" / "seed-5").exists()
    few = ["--photographs", str(photographs), "--limit", "5"]
    for arguments, words in (
        (["--seeds", "1"], "2 seeds or more"),
        (["--mean", "0,0,0"], "go with --model"),
        (few, "5 photographs; give 32 or more"),
        (["--limit", "5"], "limit 5 of no photographs"),
    ):
        status, out, err = run(*arguments)
        assert status == 2 and words in err and len(err.splitlines()) == 1
