"""Runs judged by networks whose answers are known: shared features, renamed classes, dead zones; files and errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import featmap
from featmap.cli import app
from featmap.errors import FeatmapError
from featmap.network.loading import load
from featmap.network.model import Network
from featmap.optimize.photograph_folder import open_photographs
from featmap.runs import integrity
from featmap.runs.store import Run, open_arrays
from featmap.stats import image_quality
from featmap.validation.judgement import Judgement, judge
from tests.helpers import judges, twofold
from tests.helpers.tables import check_plain_tables

pytestmark = [
    pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning"),
    pytest.mark.usefixtures("cheap_runs", "one_thread"),
]
RECIPE = featmap.Recipe.named("pixels", size=judges.SIZE, steps=30, rows=4)


def network(name: str) -> Network:
    return load(f"tests.helpers.judges:{name}", input_size=judges.SIZE)


def maximised(folder: Path, name: str, units: list[str], seeds: int = 1) -> Path:
    execution = featmap.Execution("cpu", out=folder)
    featmap.maximise(units, network(name), recipe=RECIPE, seeds=seeds, execution=execution)
    return folder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return twofold.photographs(tmp_path_factory.mktemp("images") / "photographs", count=80)


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Judgement:
    units = [f"features:{c}" for c in range(judges.FEATURES)]
    folder = maximised(tmp_path_factory.mktemp("hidden") / "run", "original", units, seeds=2)
    return judge(folder, network("half"), photographs=photographs, execution=featmap.Execution("cpu"))


def value(judgement: Judgement, layer: str, of: str, name: str) -> float:
    rows = judgement.statistics.query("layer == @layer and network == @of and name == @name")
    assert len(rows) == 1, (layer, of, name)
    return float(rows["value"].iloc[0])


JUDGE = "tests.helpers.judges:half"


def test_shared_features_transfer_and_the_others_do_not(hidden: Judgement) -> None:
    table = hidden.transfer.loc[hidden.transfer["seed"] == 0]
    assert len(hidden.transfer) == 2 * judges.FEATURES
    for c in range(judges.SHARED):
        row = table.loc[f"features:{c}"]
        assert row["partner"] == f"features:{judges.FEATURES - 1 - c}"
        assert row["partner_held_out"] == pytest.approx(1, abs=1e-4)
        assert row["percentile"] > 0.95 and row["among_images"] > 0.9
    private = table.iloc[judges.SHARED :]
    assert private["partner_held_out"].max() < 0.97
    assert private["among_images"].mean() < table["among_images"].iloc[: judges.SHARED].mean()
    assert value(hidden, "features", JUDGE, "gain") == pytest.approx(
        np.mean(hidden.transfer["percentile"] - hidden.transfer["baseline"])
    )


def test_activation_and_agreement_follow_from_the_responses(hidden: Judgement, photographs: Path) -> None:
    run = hidden.folder.parent
    images = torch.from_numpy(open_arrays(run)["images"].values)
    module = judges.original()
    with torch.no_grad():
        A = np.stack([module.features(seed).mean((2, 3)).numpy() for seed in images]).astype(float)
        natural = torch.cat(list(open_photographs(photographs).batches(judges.SIZE, 16)))
        responses = module.features(natural).mean((2, 3)).numpy().astype(float)
    multiples = np.concatenate([np.diag(a) / responses.max(0) for a in A])
    np.testing.assert_allclose(hidden.images["multiple_of_best_photograph"], multiples, rtol=1e-4)
    expected = image_quality.similarity_agreement(A.mean(0), responses)
    assert value(hidden, "features", "images", "agreement") == pytest.approx(expected.value, abs=1e-5)
    expected = image_quality.similarity_agreement(A.mean(0), responses, roots=False)
    assert value(hidden, "features", "images", "linear_agreement") == pytest.approx(expected.value, abs=1e-5)
    np.testing.assert_allclose(hidden.images["contrast"], images.flatten(0, 1).numpy().std((1, 2, 3)), rtol=1e-5)
    of_photographs = np.median(natural.numpy().std((1, 2, 3)))
    assert value(hidden, "all images", "photographs", "contrast") == pytest.approx(of_photographs, rel=1e-5)
    np.testing.assert_allclose(hidden.images["contrast_ratio"], hidden.images["contrast"] / of_photographs, rtol=1e-5)


def test_results_are_a_part_of_the_run_and_the_run_stays_whole(hidden: Judgement) -> None:
    run = hidden.folder.parent
    assert Run.read(run).manifest.parts == ["judge"]
    assert integrity.inspect(run).faults == []
    assert check_plain_tables(hidden.folder) == ["images.parquet", "statistics.parquet", "transfer.parquet"]
    for name in ("images", "transfer", "statistics"):
        table = pd.read_parquet(hidden.folder / f"{name}.parquet")
        assert len(table) == len(pd.read_csv(hidden.folder / f"{name}.csv"))
    summary = json.loads((hidden.folder / "summary.json").read_text())
    assert "NaN" not in (hidden.folder / "summary.json").read_text()
    assert list(summary["judges"]) == [JUDGE] and len(summary["statistics"]) == len(hidden.statistics)


@pytest.fixture(scope="module")
def logits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logits") / "run"
    return maximised(folder, "colours", ["class:0", "class:1", "class:2", "features:1:2:3", "features:0"])


def test_class_logits_are_ranked_by_every_judge(logits: Path, tmp_path: Path) -> None:
    by = [network("same_colours"), network("mixed_up")]
    found = judge(logits, by, execution=featmap.Execution("cpu", out=tmp_path / "judged"))
    same, wrong = (f"tests.helpers.judges:{name}" for name in ("same_colours", "mixed_up"))
    ranks = found.transfer.set_index("judge", append=True)["rank"].unstack()
    assert list(ranks.index) == ["fc:0", "fc:1", "fc:2"]
    assert (ranks[same] == 0).all() and (ranks[wrong] > 0).all()
    assert value(found, "fc", same, "top1") == 1 and value(found, "fc", wrong, "top1") == 0
    assert value(found, "fc", wrong, "median_rank") == np.median(ranks[wrong])
    assert found.images.loc["features:1:2:3", "layer"] == "" and np.isnan(
        found.images.loc["features:1:2:3", "coverage"]
    )
    assert np.isnan(found.images.loc["fc:0", "coverage"]) and found.images.loc["features:0", "coverage"] > 0
    assert any("by their pixels only" in note for note in found.notes)
    assert Run.read(logits).manifest.parts == [] and integrity.inspect(tmp_path / "judged").faults == []


def test_a_judge_of_other_classes_ranks_nothing(logits: Path, tmp_path: Path) -> None:
    by = [network("half"), network("original")]
    found = judge(logits, by, execution=featmap.Execution("cpu", out=tmp_path / "judged"))
    assert found.transfer.empty and set(found.statistics["network"]) == {"images"}
    assert any("0 classes" in note or "class logits are not judged" in note for note in found.notes)


def test_a_feature_that_fires_in_a_corner_has_its_coverage(tmp_path: Path, photographs: Path) -> None:
    folder = maximised(tmp_path / "run", "cornered", ["corner:0", "corner:1"])
    found = judge(folder, network("half"), photographs=photographs, execution=featmap.Execution("cpu"))
    assert found.images["coverage"].tolist() == [1.0, 4 / 64]
    assert found.images["coverage_of_best_photograph"].tolist() == [1.0, 4 / 64]


def test_pixels_outside_the_range_are_judged_as_a_file_holds_them(tmp_path: Path) -> None:
    recipe = featmap.Recipe.named("interact", size=judges.SIZE, steps=60)
    execution = featmap.Execution("cpu", out=tmp_path / "run")
    data = featmap.maximise(["class:0"], network("colours"), recipe=recipe, execution=execution)
    pixels = data["images"].values[0]
    assert pixels.max() > 1
    found = judge(tmp_path / "run", network("same_colours"), execution=featmap.Execution("cpu"))
    assert found.images["contrast"].iloc[0] == pytest.approx(float(np.clip(pixels, 0, 1).std()), rel=1e-6)


def test_the_command_judges_prints_and_may_be_repeated(
    logits: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["judge", str(logits), "--by", "tests.helpers.judges:same_colours", "--by", JUDGE]
    words += ["--by-input-size", "16", "--by-input-size", "20", "--by-mean", "0.5,0.5,0.5", "--by-mean", "-"]
    words += ["--by-std", "2,2,2", "--by-std", "-", "--device", "cpu"]
    for extra in ([], ["--photographs", str(photographs)]):
        with pytest.raises(SystemExit) as end:
            app.main([*words, *extra])
        printed = capsys.readouterr()
        assert end.value.code == 0, printed.err
        assert any(
            line.split()[:4] == ["fc", "tests.helpers.judges:same_colours", "top1", "1"]
            for line in printed.out.splitlines()
        )
        assert ("partner held out" in printed.out) == bool(extra)
        assert integrity.inspect(logits).faults == []
    manifest = Run.read(logits / "judge").manifest
    assert manifest.is_complete and manifest.images == photographs.name


WRONG: list[tuple[list[str], str]] = [
    ([], "--by is missing"),
    (["--by", "squeezenett"], "nearest: squeezenet"),
    (["--by", JUDGE, "--by", JUDGE], "is given twice"),
    (["--by", JUDGE, "--by-mean", "0,0,0"], "belong together"),
    (["--by", JUDGE, "--by-weights", "-", "--by-weights", "-"], "--by-weights is given 2 times for 1 judges"),
    (["--by", JUDGE, "--by-input-size", "big"], "--by-input-size 'big'"),
    (["--by", JUDGE, "--photographs", "nowhere"], "--photographs 'nowhere': there is no such folder"),
    (["--by", JUDGE, "--by-mean", "0.5,0.5,0.5"], "--by-mean and --by-std belong together"),
    (["--by", JUDGE, "--by-input-size", "0"], "--by-input-size 0: give 1 pixel or more"),
    (["--by", JUDGE, "--photographs", "few"], "1 photographs; give 32 or more"),
    (["--by", JUDGE, "--photographs", "RUN"], "is a run; give a folder of photographs"),
    (["--by", JUDGE, "--model", "tests.helpers.judges:half"], "was made with a different network"),
]


@pytest.mark.parametrize(("given", "words"), WRONG, ids=[w[1][:24] for w in WRONG])
def test_wrong_input_ends_in_one_line(
    given: list[str],
    words: str,
    logits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2]))
    monkeypatch.chdir(tmp_path)
    Path("few").mkdir()
    Image.new("RGB", (20, 20)).save("few/a.png")
    arguments = [str(logits) if word == "RUN" else word for word in given]
    with pytest.raises(SystemExit) as end:
        app.main(["judge", str(logits), *arguments, "--out", "judged"])
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and len(lines) == 1 and words in lines[0]
    assert not Path("judged").exists()


def test_what_cannot_be_judged_is_refused(logits: Path, photographs: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"execution": featmap.Execution("cpu", out=tmp_path / "judged")}
    with pytest.raises(FeatmapError, match="no judge"):
        judge(logits, [], **options)
    featmap.probe(
        photographs, "features", network("half"), size=16, execution=featmap.Execution("cpu", out=tmp_path / "p")
    )
    with pytest.raises(FeatmapError, match="not a complete run of maximise or similarity"):
        judge(tmp_path / "p", network("half"), **options)
    own = judge(logits, network("colours"), **options)
    assert any("no transfer" in note for note in own.notes)
    assert value(own, "fc", "tests.helpers.judges:colours", "top1") == 1


def test_a_network_of_the_callers_own_is_passed_in(tmp_path: Path) -> None:
    module, execution = judges.colours(), featmap.Execution("cpu", out=tmp_path / "run")
    featmap.maximise(["class:1"], load(module, input_size=judges.SIZE), recipe=RECIPE, execution=execution)
    with pytest.raises(FeatmapError, match="a network of the caller's own; pass the network"):
        judge(tmp_path / "run", network("same_colours"))
    found = judge(tmp_path / "run", network("same_colours"), network=module, execution=featmap.Execution("cpu"))
    assert found.transfer["rank"].tolist() == [0]
    assert value(found, "fc", "tests.helpers.judges:same_colours", "top5") == 1


class Channels(torch.nn.Module):
    """One layer that reads images of any number of channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = torch.nn.Sequential(torch.nn.Conv2d(channels, 3, 3, padding=1), torch.nn.ReLU())
        weights = np.random.default_rng(channels).normal(size=(3, channels, 3, 3)).astype(np.float32)
        with torch.no_grad():
            self.block[0].weight.copy_(torch.from_numpy(weights))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x)


@pytest.mark.parametrize(("channels", "pairs"), [(1, []), (2, [(0, 1)]), (4, [(0, 1), (0, 3), (2, 3)])])
def test_images_of_other_channels_are_judged(
    channels: int, pairs: list[tuple[int, int]], photographs: Path, tmp_path: Path
) -> None:
    own = load(Channels(channels).eval(), input_size=judges.SIZE)
    execution = featmap.Execution("cpu", out=tmp_path / "run")
    data = featmap.maximise(["block:0", "block:1"], own, recipe=RECIPE, execution=execution)
    natural = photographs if channels in (1, 4) else None
    found = judge(tmp_path / "run", Channels(channels).eval(), photographs=natural, network=own)
    columns = [c for c in found.images if c.startswith("correlation_")]
    assert len(columns) == channels * (channels - 1) // 2
    pixels = data["images"].values[0].astype(float).clip(0, 1).reshape(2, channels, -1)
    for a, b in pairs:
        expected = [np.corrcoef(image)[a, b] for image in pixels]
        np.testing.assert_allclose(found.images[f"correlation_{a}_{b}"], expected, atol=1e-6)
    if channels == 1:
        assert found.images["colour_distance"].isna().all()


def test_a_judge_of_other_channels_is_refused(tmp_path: Path) -> None:
    own, execution = load(Channels(1).eval(), input_size=judges.SIZE), featmap.Execution("cpu", out=tmp_path / "run")
    featmap.maximise("block:0", own, recipe=RECIPE, execution=execution)
    with pytest.raises(FeatmapError, match="takes images of 3 channels, and those of the run have 1"):
        judge(tmp_path / "run", network("half"), network=own)
