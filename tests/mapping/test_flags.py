"""What a validation leaves behind: marks in the atlas and the answers, of networks named on the command line too."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from featmap.cli import app
from featmap.errors import UnitError
from featmap.mapping import flags
from featmap.mapping.run import similarity, similarity_job
from featmap.mapping.view import View
from featmap.network.loading import load
from featmap.optimize.recipe import Recipe
from featmap.report import atlas
from featmap.runs import store
from featmap.runs.store import Run
from featmap.validation import run as validation
from tests.helpers import twofold
from tests.helpers.browser import Tab, chromium, needs_chromium
from tests.helpers.settings import options as settings
from tests.report.test_atlas import data_of

pytestmark = [
    pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning"),
    pytest.mark.usefixtures("cheap_runs", "one_thread"),
]
FEW: dict[str, Any] = {"size": 16, "steps": 6, "rows": 4, "device": "cpu"}
LOOSE = {"second:3": 0.5, "second:5": None, "first:2": 0.1}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two layers whose atlas was there before its validation; the network is named by its factory."""
    folder = tmp_path_factory.mktemp("marked") / "run"
    photographs = twofold.photographs(folder.parent / "photographs", count=40)
    similarity(
        ["second", "first"], "tests.helpers.tiny:wide", **settings(features="0-5", out=folder, neighbours=4, **FEW)
    )
    atlas.atlas(folder)
    options = [
        "--photographs",
        str(photographs),
        "--seeds",
        "2",
        "--null-seeds",
        "1",
        "--model",
        "tests.helpers.tiny:wide",
    ]
    with pytest.raises(SystemExit) as end:
        app.main(["validate", str(folder), *options])
    assert not end.value.code
    return folder


@pytest.fixture(scope="module")
def loose(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with three features that a validation found unreliable."""
    folder = tmp_path_factory.mktemp("loose") / "run"
    shutil.copytree(run, folder)
    stored = Run.read(folder)
    stored.manifest.reliability |= LOOSE
    stored.save()
    similarity(
        ["second", "first"], "tests.helpers.tiny:wide", **settings(features="0-5", out=folder, neighbours=4, **FEW)
    )
    atlas.atlas(folder)
    return folder


def test_atlas_shows_the_reliability_of_the_validation(run: Path) -> None:
    assert atlas.is_current(Run.read(run))
    for layer, count in (("second", 6), ("first", 6)):
        data, table = data_of(run / layer / "atlas.html"), pd.read_parquet(run / layer / "features.parquet")
        reliability = dict(zip(data["features"]["name"], data["features"]["reliability"], strict=True))
        expected = {name: None if np.isnan(value) else value for name, value in table["reliability"].items()}
        assert len(reliability) == count and reliability == pytest.approx(expected)
        stored = Run.read(run).manifest.reliability
        assert set(data["unreliable"]) == {n for n, v in stored.items() if v is None or v < flags.RELIABLE}


def test_atlas_lists_unreliable_features(loose: Path) -> None:
    data = data_of(loose / "second" / "atlas.html")
    assert set(LOOSE) <= set(data["unreliable"])
    assert dict(zip(data["features"]["name"], data["features"]["reliability"], strict=True))["second:5"] is None


def test_neighbours_command_marks_unreliable_features(loose: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for unit, marked in (("second:3", 2), ("second:0", 0)):
        with pytest.raises(SystemExit):
            app.main(["neighbours", unit, str(loose)])
        assert capsys.readouterr().out.count(f"{unit} (unreliable, marked ?)") == marked


@needs_chromium
def test_browser_shows_the_marks(loose: Path) -> None:
    with chromium() as browser:
        tab = Tab(browser, loose / "second" / "atlas.html", "#second:3")
        page = tab.ready()
        assert page.locator("#card h2").inner_text() == "second:3 ?"
        assert "unreliable" in page.locator("#card dl").inner_text()
        mosaic = page.evaluate("[...document.querySelectorAll('#clusters span')].map((e) => e.textContent)")
        assert {"3 ?", "5 ?", "1"} <= set(mosaic) and "3" not in mosaic
        across = page.locator("#card details").first.evaluate("(e) => e.textContent")
        assert "first:2 ?" in across
        assert page.locator("#card details a").first.evaluate("(e) => e.hash").find("?") < 0
        tab.close()


def test_locks_are_released_after_a_validation(run: Path) -> None:
    held = store._locks
    assert run.resolve() not in held and (run / validation.FOLDER).resolve() not in held


def test_shown_features_may_differ_between_layers() -> None:
    network, chosen = load("tests.helpers.tiny:wide"), Recipe.named("pixels").resolved(16, 16, 6)
    wanted = {"second": "3,5-6", "first": [0, 2]}
    job = similarity_job(["second", "first"], network, chosen, view=View(wanted, stimuli="shown"))
    assert job.shown == job.labels == ["second:3", "second:5", "second:6", "first:0", "first:2"]
    assert job.identity()["shown"] == {"second": "3,5-6", "first": "0,2"}
    with pytest.raises(UnitError, match="name the same layers"):
        similarity_job(["second", "first"], network, chosen, view=View({"second": "all"}))


def test_validation_page_names_layers_not_tested_on_weights(tmp_path: Path) -> None:
    module = twofold.honest()
    similarity("features", load(module, input_size=16), **settings(out=tmp_path / "run", **FEW))
    result = validation.validate(tmp_path / "run", seeds=2, null_seeds=0, network=module)
    lacks = "outgoing_weights" not in result.trained["features"].statistics
    text = (tmp_path / "run" / "validation" / "validation.md").read_text()
    assert lacks and "features is not compared with its outgoing weights" in text
    assert np.isfinite(result.statistics["value"].to_numpy(float, na_value=0)).all()
