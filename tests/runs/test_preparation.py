"""What runs say of the network that descends, of networks that are no function, and of how features started."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import featmap
from featmap.cli.app import main
from featmap.mapping import tables
from featmap.network.loading import load
from featmap.optimize.responses import Probe
from featmap.runs import folder_layout
from featmap.runs.manifest import Manifest
from featmap.stats import clustering
from tests.helpers import kinds, networks
from tests.helpers.settings import options

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SMALL: dict[str, Any] = {"size": 16, "steps": 8, "rows": 4, "device": "cpu"}
OPTIONS = ["--size", "16", "--steps", "8", "--rows", "4", "--device", "cpu"]
pytestmark = [
    pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning"),
    pytest.mark.usefixtures("cheap_runs", "one_thread"),
]


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(REPOSITORY)
    monkeypatch.setattr(clustering, "ClusterSettings", partial(clustering.ClusterSettings, runs=3, draws=5))


def give(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> str:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    printed = capsys.readouterr()
    assert end.value.code == status, printed.err
    return printed.out + printed.err


def manifest(folder: str) -> dict[str, Any]:
    return json.loads(Path(folder, "manifest.json").read_text())


def test_the_manifest_says_which_network_descended(capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", "tests.helpers.kinds:plain"]
    out = give(capsys, "maximise", "3:0", "3:1", "1:0", *model, *OPTIONS, "--out", "run")
    records = manifest("run")["preparation"]
    assert sorted((r["layers"], r["network"]) for r in records) == [(["1"], "folded"), (["3"], "folded")]
    assert all(r["output"] < 1e-5 and r["gradient"] < 1e-2 for r in records)
    assert "untouched" not in out
    again = give(capsys, "maximise", "3:0", "3:1", "1:0", *model, *OPTIONS, "--out", "run")
    assert "2 images" in again or "3 images" in again
    assert manifest("run")["preparation"] == records


def test_output_and_manifest_say_that_the_untouched_network_descended(capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", "tests.helpers.kinds:reusing"]
    out = give(capsys, "similarity", "--layer", "head", *model, *OPTIONS, "--out", "run")
    lines = [line for line in out.splitlines() if "the untouched network descends" in line]
    assert len(lines) == 1 and "head (outputs by" in lines[0]
    (record,) = manifest("run")["preparation"]
    assert record["network"] == "untouched" and record["output"] > 0.01
    data, net = featmap.open_arrays("run"), kinds.reusing()
    assert set(folder_layout.status_names(data["status"].values[0])) == {"live"}
    with torch.no_grad():  # A by plain PyTorch
        expected = net(torch.from_numpy(data["images"].values[0])).mean((2, 3)).numpy()
    np.testing.assert_allclose(data["A"].values[0], expected, rtol=1e-4, atol=1e-6)


def test_interactions_record_solo_and_joint_layers(capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", "tests.helpers.kinds:plain"]
    give(capsys, "interact", "1:0", "3:1", *model, *OPTIONS, "--seeds", "1", "--out", "run")
    records = manifest("run")["preparation"]
    assert sorted(map(tuple, (r["layers"] for r in records))) == [("1",), ("1", "3"), ("3",)]


def test_octaves_may_be_square_where_the_image_is_nearly_square() -> None:
    recipe = featmap.Recipe.named("large", size=(32, 33), steps=4, rows=2)
    assert recipe.sizes == (16, (32, 33))
    images = featmap.maximise("3:0", kinds.plain(), recipe=recipe, execution=featmap.Execution("cpu"))
    assert images["images"].shape[3:] == (32, 33) and np.isfinite(images["images"]).all()


def test_manifests_of_earlier_versions_have_no_preparation() -> None:
    assert Manifest.from_json({"identity": {}, "format": 2}).preparation == []


def test_a_norm_with_its_activation_is_the_function_written_out() -> None:
    runs = {}
    for make in (kinds.norm_with_activation, kinds.norm_and_activation):
        module = make()
        runs[make.__name__] = data = featmap.maximise(
            [f"3:{c}" for c in range(8)], module, **options(responses="3", **SMALL)
        )
        images = torch.from_numpy(data["images"].values[0])
        for other in (kinds.norm_with_activation, kinds.norm_and_activation):
            found = Probe(load(other()), SMALL["rows"]).responses(images, ["3"])["3"]
            assert np.array_equal(found, data["A"].values[0])  # the same bits by either way of writing it
        with torch.no_grad():
            expected = module(images).mean((2, 3)).numpy()
        np.testing.assert_allclose(data["A"].values[0], expected, rtol=1e-4, atol=1e-6)
    inside, apart = runs.values()
    assert np.array_equal(inside["status"].values, apart["status"].values)
    np.testing.assert_allclose(inside["A"].values, apart["A"].values, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("command", ["maximise", "similarity", "probe"])
def test_a_network_with_two_results_is_refused_and_leaves_nothing(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {
        "maximise": ["maximise", "drop:0", *OPTIONS],
        "similarity": ["similarity", "--layer", "drop", *OPTIONS],
        "probe": ["probe", "first", "--layers", "drop"],
    }[command]
    model = ["--model", "tests.helpers.kinds:stochastic", "--out", "run"]
    give(capsys, "maximise", "body.3:0", *model[:2], *OPTIONS, "--out", "first")
    printed = give(capsys, *words, *model, status=2)
    assert "two results for one image" in printed
    assert not Path("run").exists()
    give(capsys, *words, *model, "--allow-stochastic")
    assert manifest("run")["identity"]["model"]["allow_stochastic"] is True


# ---------------------------------------------------------------- statuses and starts


def test_codes_stand_for_a_status_and_a_start() -> None:
    codes = range(len(folder_layout.STATUSES))
    assert folder_layout.STATUSES == (
        "live",
        "rescued",
        "dead",
        "unconverged",
        "not-finite",
    )  # as stored runs have them
    assert folder_layout.status_names(codes) == ["live", "live", "dead", "unconverged", "not-finite"]
    assert folder_layout.starts(codes) == ["gradient", "rescued", None, "gradient", None]


@pytest.mark.parametrize(
    ("statuses", "rescued", "text"),
    [
        ({"live": 512}, 245, "512 live (245 without a gradient at the start)"),
        ({"live": 3}, 0, "3 live"),
        ({"dead": 2, "live": 1}, 0, "1 live, 2 dead"),
        (
            {"live": 267, "rescued": 245, "not-finite": 1},
            0,
            "512 live (245 without a gradient at the start), 1 not-finite",
        ),
        ({"rescued": 2}, 0, "2 live (2 without a gradient at the start)"),
        ({}, 0, ""),
    ],
)
def test_counts_of_statuses_in_words(statuses: dict[str, int], rescued: int, text: str) -> None:
    assert folder_layout.count_statuses(statuses, rescued) == text


def test_a_feature_without_a_gradient_at_the_start_is_live(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = ["--model", "tests.helpers.networks:dead_network", "--size", "16", "--steps", "40", "--rows", "8"]
    out = give(capsys, "similarity", "--layer", "relu", *model, "--recipe", "pixels", "--device", "cpu", "--out", "run")
    assert "5 features: 2 live (1 without a gradient at the start), 2 dead, 1 not-finite" in out
    table = pd.read_parquet("run/features.parquet")
    expected = ["live", "live", "dead", "not-finite", "dead"]
    assert table["status"].tolist() == expected
    assert table["start"].tolist()[:2] == ["gradient", "rescued"] and table["start"][2:].isna().all()
    assert pd.read_csv("run/features.csv")["start"].fillna("").tolist() == ["gradient", "rescued", "", "", ""]
    assert manifest("run")["summary"]["rescued"] == 1
    assert featmap.open_arrays("run")["status"].attrs["flag_meanings"] == "live rescued dead unconverged not-finite"
    out = give(capsys, "maximise", "relu:0", "relu:1", "relu:2", *model, "--recipe", "pixels", "--out", "images")
    assert "3 images: 2 live (1 without a gradient at the start), 1 dead" in out
    assert pd.read_csv("images/images.csv")["start"].fillna("").tolist() == ["gradient", "rescued", ""]
    assert networks.ASLEEP == 1


def test_tables_of_earlier_versions_are_read_as_two_columns() -> None:
    older = pd.DataFrame({"channel": [0, 1, 2], "status": ["live", "rescued", "dead"], "activation": [1.0, 2.0, 0.0]})
    table = tables.split_status(older)
    assert list(table.columns) == ["channel", "status", "start", "activation"]
    assert table["status"].tolist() == ["live", "live", "dead"]
    assert table["start"].tolist()[:2] == ["gradient", "rescued"] and table["start"].isna().tolist() == [
        False,
        False,
        True,
    ]
    assert tables.split_status(table) is table and "start" not in older
