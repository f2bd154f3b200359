"""Validations of tiny networks whose answers are known: descents, photographs, page, marks, resuming."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from featmap.cli import app
from featmap.errors import FeatmapError
from featmap.mapping.run import similarity
from featmap.network.loading import load
from featmap.runs import integrity
from featmap.runs import worker as runs_worker
from featmap.runs.store import Run, open_arrays
from featmap.stats import measures, reliability
from featmap.validation import planted, verdict
from featmap.validation import run as validation
from featmap.validation.inputs import layers_on_path
from featmap.validation.planted import LINEAR
from featmap.validation.results import Validation
from featmap.validation.run import plan_validation
from tests.helpers import networks, tiny, twofold
from tests.helpers.settings import options

pytestmark = [
    pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning"),
    pytest.mark.usefixtures("one_thread"),
]
FEW: dict[str, Any] = {"recipe": LINEAR, "device": "cpu"}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return twofold.photographs(tmp_path_factory.mktemp("images") / "photographs")


@pytest.fixture(scope="module")
def two_networks(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> dict[str, Validation]:
    result = {}
    for name in ("trap", "honest"):
        network, folder = load(getattr(twofold, name)(), input_size=16), tmp_path_factory.mktemp("runs") / name
        similarity("features", network, **options(out=folder, **FEW))
        result[name] = validation.validate(folder, images=photographs, seeds=3, null_seeds=1, network=network)
    return result


def test_the_processing_path_detects_a_network_of_two_branches(two_networks: dict[str, Validation]) -> None:
    trap, honest = (two_networks[name].trained["features"] for name in ("trap", "honest"))
    score = trap.statistics["path:branches"]
    assert score.value is not None and score.high is not None and score.value < 0.2 and score.high < 0.5
    assert honest.value("path:branches") > 0.8  # type: ignore[operator]
    assert honest.value("path:features") > 0.8  # type: ignore[operator]
    conclusions = verdict.reach_verdict(trap)
    assert any(
        "assume at all that the images are processed as photographs are" in line and "lowest at branches: -0.0" in line
        for line in conclusions.may_not
    )
    assert any("typical preferred stimuli" in line for line in verdict.reach_verdict(honest).may)
    assert trap.p("photographs_pearson") > 0.05 > honest.p("photographs_pearson")  # type: ignore[operator]
    assert any("carry any of it over" in line for line in conclusions.may_not)


@pytest.mark.parametrize("layer", ["features", "block"])
def test_two_branches_within_a_block_are_detected(tmp_path: Path, photographs: Path, layer: str) -> None:
    network = load(twofold.hidden(), input_size=16)
    similarity(layer, network, **options(out=tmp_path / "run", **FEW))
    result = validation.validate(tmp_path / "run", images=photographs, seeds=2, null_seeds=0, network=network)
    score = result.trained[layer].statistics["path:block.branches"]
    assert score.value is not None and score.high is not None and score.value < 0.2 and score.high < 0.5
    assert any(
        "lowest at block.branches: -0.0" in line for line in verdict.reach_verdict(result.trained[layer]).may_not
    )
    assert result.trained[layer].value("path_passed_over") == 0


def test_statistics_follow_from_the_stored_arrays(two_networks: dict[str, Validation]) -> None:
    result = two_networks["honest"]
    evaluation, run = result.trained["features"], result.folder.parent
    sets = [open_arrays(f) for f in (run, result.folder / "seed-1", result.folder / "seed-2")]
    A = np.concatenate([d["A"].values for d in sets]).astype(float)
    S = [measures.profile_correlations(a) for a in A]
    upper = np.triu_indices(len(S[0]), 1)
    pairs = [stats.pearsonr(S[i][upper], S[j][upper]).statistic for i, j in ((0, 1), (0, 2), (1, 2))]
    assert evaluation.value("repeatability") == pytest.approx(np.mean(pairs), abs=1e-9)
    (folder,) = result.folder.glob("photographs-*")
    natural = open_arrays(folder)["A"]
    P = natural.sel(response=evaluation.evidence.names).values.astype(float)
    by_hand = stats.pearsonr(S[0][upper], measures.profile_correlations(P)[upper]).statistic
    assert evaluation.value("photographs_pearson") == pytest.approx(by_hand, abs=1e-9)
    ranks = stats.spearmanr(S[0][upper], measures.profile_correlations(P)[upper]).statistic
    assert evaluation.value("photographs_spearman") == pytest.approx(ranks, abs=1e-9)
    ratio = np.median(np.diag(A[0]) / P.max(0))
    assert evaluation.value("multiple") == pytest.approx(ratio, abs=1e-9)
    assert evaluation.value("incoming_weights") is None  # they have nothing in common: all cosines are 0


def test_a_planted_networks_map_agrees_with_its_weights_and_repeats(tmp_path: Path) -> None:
    network_with_blocks = planted.plant("blocks", noise=0.3)
    network = load(network_with_blocks.module, input_size=network_with_blocks.size)
    similarity("features", network, **options(out=tmp_path / "run", **FEW))
    result = validation.validate(tmp_path / "run", seeds=2, null_seeds=2, network=network)
    evaluation, null = result.trained["features"], result.random["features"]
    assert evaluation.value("repeatability") == pytest.approx(1, abs=1e-6)
    upper = np.triu_indices(32, 1)
    closed = stats.pearsonr(network_with_blocks.closed_form()[upper], network_with_blocks.cosines[upper]).statistic
    assert evaluation.value("incoming_weights") == pytest.approx(closed, abs=1e-5)
    assert evaluation.value("clusters") == 4 and evaluation.value("ari_of_seeds") == 1
    assert evaluation.p("incoming_weights") == 0.001
    assert null.value("clusters") == 0
    assert result.permuted["features"]["clusters"].value == 0
    assert evaluation.statistics["modularity"].value > 1.2 * result.permuted["features"]["modularity"].value  # type: ignore[operator]
    assert evaluation.statistics["ari_of_louvain"].value == 1 and evaluation.statistics["ari_of_seeds"].low is None
    assert "one draw of them, 2 seed(s) of noise" in (tmp_path / "run" / "validation" / "validation.md").read_text()
    left = result.permuted["features"]["incoming_weights_spearman"]
    assert left.low < 0 < left.high and abs(left.value) < 0.2  # type: ignore[operator]
    left = result.permuted["features"]["incoming_weights"]
    assert left.low < 0 < left.high and abs(left.value) < 0.2  # type: ignore[operator]
    assert "photographs_pearson" not in evaluation.statistics
    assert any("none were given" in line for line in verdict.reach_verdict(evaluation).may_not)
    assert not list((tmp_path / "run" / "validation").glob("photographs*"))


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Path:
    folder = tmp_path_factory.mktemp("validated") / "run"
    similarity(
        ["second", "first"],
        "tests.helpers.tiny:wide",
        **options(size=16, steps=6, rows=4, device="cpu", out=folder, neighbours=4),
    )
    validation.validate(folder, images=photographs, seeds=3, null_seeds=1)
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
        validation.validate(run, images=photographs, seeds=4, null_seeds=1)
    result = validation.validate(run, images=photographs, seeds=4, null_seeds=1)
    assert {seed for seed, _ in seen} == {3}
    assert len(seen) == len(set(seen)) + 1 == 10
    assert result.trained["second"].statistics["repeatability_of_all"].count == 4
    before = (run / "validation" / "validation.md").read_bytes()
    validation.validate(run, images=photographs, seeds=4, null_seeds=1)
    assert len(seen) == 10 and (run / "validation" / "validation.md").read_bytes() == before


def test_a_network_without_random_weights_has_no_such_null(tmp_path: Path, photographs: Path) -> None:
    network = load(twofold.bare(), input_size=16)
    similarity("features", network, **options(out=tmp_path / "run", **FEW))
    result = validation.validate(tmp_path / "run", seeds=2, network=network)
    assert result.random == {} and "is reparametrised" in result.reason
    assert "is reparametrised" in (tmp_path / "run" / "validation" / "validation.md").read_text()


WRONG = [
    ("too few seeds", {"seeds": 1}, "2 seeds or more"),
    ("fewer than no null", {"null_seeds": -1}, "0 null seeds or more"),
    ("no such images", {"images": "nowhere"}, "no such folder"),
    ("a file for a folder", {"images": __file__}, "that is a file"),
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
    with pytest.raises(FeatmapError, match="another network"):
        plan_validation(validated, network=load(tiny.other()))
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(photographs.iterdir())[:5]:
        shutil.copy(path, few)
    with pytest.raises(FeatmapError, match="5 photographs; give 32 or more"):
        plan_validation(validated, images=few)
    with pytest.raises(FeatmapError, match="is a run; give a folder of photographs"):
        plan_validation(validated, images=validated)
    with pytest.raises(FeatmapError, match="not a complete similarity run"):
        plan_validation(validated / "validation")


def test_the_path_leads_through_outer_layers_and_some_inside_them() -> None:
    network = load(networks.small_inception(), input_size=16)
    names = list(network.trace(16).layers)
    inside = [n for n in names if n.startswith("mixed.")]
    assert len(inside) == 10
    assert layers_on_path(network, "mixed", 16, 10) == (["stem", "norm", "relu@1", *inside, "mixed"], 0)
    assert layers_on_path(network, "narrow", 16, 10) == (["stem", "norm", "relu@1", *inside, "mixed", "narrow"], 0)
    way = layers_on_path(network, "mixed.branch2.1", 16)[0]
    assert "mixed.branch2.0" in way and way[-1] == "mixed.branch2.1" and "mixed" not in way
    few, over = layers_on_path(network, "narrow", 16, 2)
    assert few == ["stem", inside[0], inside[-1], "mixed", "narrow"] and over == names.index("narrow") - 4
    reference = load("reference")
    way, over = layers_on_path(reference, "inception5b", 96)
    outer = [n for n in way if "." not in n]
    assert outer[-2:] == ["inception5a", "inception5b"] and len(outer) == 9 and len(way) == 17
    assert over == list(reference.trace(96).layers).index("inception5b") - 16 > 30


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
        validation.validate(run, images=broken, seeds=4, null_seeds=1)
    assert state(run) == before
    bare = tmp_path / "bare"
    shutil.copytree(validated, bare, ignore=shutil.ignore_patterns("validation"))
    stored = Run.read(bare)
    stored.manifest.parts = []
    stored.save()
    with pytest.raises(FeatmapError, match="truncated"):
        validation.validate(bare, images=broken, seeds=2, null_seeds=0)
    assert not (bare / "validation").exists() and integrity.inspect(bare).faults == []
    validation.validate(bare, images=photographs, seeds=2, null_seeds=0)
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
        if "photographs-" in self.folder.name:
            raise KeyboardInterrupt
        real(self, unit, pieces)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "land", stopped)
        with pytest.raises(KeyboardInterrupt):
            validation.validate(run, images=fewer, seeds=3, null_seeds=1)
    assert len(list((run / "validation").glob("photographs-*"))) == 2
    validation.validate(run, images=photographs, seeds=3, null_seeds=1)
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

    status, out, _ = run("--images", str(photographs), "--seeds", "3", "--null-seeds", "1")
    assert status == 0 and "second: may" in out and "validation.md" in out.splitlines()[-1]
    status, out, _ = run("--seeds", "6", "--dry-run")
    assert status == 0 and "4 maps of 30 images to make" in out
    assert not (validated / "validation" / "seed-5").exists()
    for arguments, words in ((["--seeds", "1"], "2 seeds or more"), (["--mean", "0,0,0"], "go with --model")):
        status, out, err = run(*arguments)
        assert status == 2 and words in err and len(err.splitlines()) == 1
