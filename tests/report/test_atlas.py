from __future__ import annotations

import base64
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import featmap
from featmap.errors import FeatmapError, StoreError
from featmap.mapping import result
from featmap.mapping.run import similarity
from featmap.optimize.responses import Probe
from featmap.report import html, layer_data
from featmap.report.atlas import atlas
from featmap.runs.store import Run
from featmap.stats import frames
from tests.cli.test_app import SMALL, at_home, fail_with_run, succeed
from tests.helpers import tiny
from tests.helpers.settings import options

assert at_home  # the fixture under which every test works in a folder of its own

pytestmark = pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning")
MAP = ["similarity", "--layer", "second", *SMALL]
SEVERAL = ["similarity", "--layers", "second,first", *SMALL]


def data_of(page: Path) -> dict[str, Any]:
    """Return the values that a page was given."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(encoding="utf-8"))
    assert found is not None
    return dict(json.loads(found[1]))


def blob_of(page: Path, name: str) -> np.ndarray:
    text = page.read_text(encoding="utf-8")
    found = re.search(rf'<script type="text/plain" id="blob-{name}" data-kind="(\w+)Array">(.*?)</script>', text)
    assert found is not None
    return np.frombuffer(base64.b64decode(found[2]), dtype=found[1].lower())


def test_the_map_of_a_folder_is_the_map_that_was_found(tmp_path: Path) -> None:
    found = similarity(
        "second", tiny.small(), **options(features="0-6", out="run", size=16, steps=3, rows=4, device="cpu")
    )
    again = result.read_maps("run")["second"]
    pd.testing.assert_frame_equal(again.activations, found.activations)
    pd.testing.assert_series_equal(again.null, found.null)
    for name, frame in found.measures.items():
        pd.testing.assert_frame_equal(again.measures[name], frame)
    pd.testing.assert_frame_equal(again.features, found.features.loc[found.shown])
    assert again.shown == found.shown
    assert again.clusters.summary() == found.clusters.summary()
    assert again.lines() == found.lines()


def test_similarity_makes_it_and_leaves_it_alone_while_it_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert "(atlas.html, heatmap.png" in succeed(capsys, *MAP, "--out", "run")
    page = Path("run/atlas.html")
    written = page.stat().st_mtime_ns
    succeed(capsys, *MAP, "--out", "run")
    assert page.stat().st_mtime_ns == written
    page.unlink()
    tables = Path("run/features.csv").stat().st_mtime_ns
    succeed(capsys, *MAP, "--out", "run")
    assert page.is_file() and Path("run/features.csv").stat().st_mtime_ns == tables
    succeed(capsys, *MAP, "--measure", "profile", "--out", "run")
    assert data_of(page)["measure"] == "profile"


def test_no_atlas_leaves_it_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert "atlas.html" not in succeed(capsys, *MAP, "--no-atlas", "--out", "run")
    assert not Path("run/atlas.html").exists()
    said = succeed(capsys, "atlas", "run", "--no-maps", "--out", "elsewhere")
    assert "elsewhere/atlas.html" in said
    assert data_of(Path("elsewhere/atlas.html"))["maps"]["reason"].startswith("left out")
    assert not Path("run/atlas.html").exists()


def test_the_same_run_gives_the_same_bytes_in_any_process(capsys: pytest.CaptureFixture[str]) -> None:
    succeed(capsys, *MAP, "--out", "run")
    first = Path("run/atlas.html").read_bytes()
    repository = str(Path(__file__).resolve().parent.parent.parent)
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": repository}
        code = "from featmap.cli.app import main; main(['atlas', 'run', '--out', 'again'])"
        subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, timeout=120)
        assert Path("again/atlas.html").read_bytes() == first
    assert str(Path.cwd()).encode() not in first


def test_a_page_asks_the_network_for_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    succeed(capsys, *MAP, "--out", "run")
    text = Path("run/atlas.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in text and "connect-src" not in text
    ours = re.sub(r"<script>(?!\n).*?</script>", "", text, flags=re.DOTALL)  # without Bokeh's own
    assert re.findall(r"""(?:src|href)=["'](?!data:|#)[^"'{$]+""", ours) == []
    assert "://" not in ours


def test_A_is_sent_as_it_is_stored_and_the_scales_make_the_measures(capsys: pytest.CaptureFixture[str]) -> None:
    succeed(capsys, *MAP, "--features", "0-7", "--out", "run")
    page, found = Path("run/atlas.html"), result.read_maps("run")["second"]
    data = data_of(page)
    names = data["features"]["name"]
    A = blob_of(page, "A").reshape(len(names), len(names)).astype(float)
    np.testing.assert_array_equal(A, found.activations.loc[names, names].to_numpy())
    s = {k: np.array([np.nan if v is None else v for v in values]) for k, values in data["scales"].items()}
    made = {
        "coactivation": (A - s["null"]) / s["best"],
        "relative": A / s["own"][:, None],
        "selective": (A - s["mean"]) / s["deviation"],
    }
    for name, values in made.items():
        expected = frames.to_floats(found.measures[name].loc[names, names], name)
        np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-12)
    S = frames.symmetric_values(found.measures["profile"].loc[names, names])
    np.testing.assert_allclose(blob_of(page, "S"), S[np.triu_indices(len(names))], rtol=1e-6, atol=1e-7)


def test_a_mean_over_seeds_is_sent_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    succeed(capsys, *MAP, "--seeds", "2", "--out", "run")
    page, found = Path("run/atlas.html"), result.read_maps("run")["second"]
    names = data_of(page)["features"]["name"]
    A = blob_of(page, "A")
    assert A.dtype == np.float64
    np.testing.assert_array_equal(A.reshape(len(names), -1), found.activations.loc[names, names].to_numpy())
    assert data_of(page)["seeds"] == 2


def test_undefined_is_undefined_in_the_page(tmp_path: Path) -> None:
    similarity("relu", tiny.sick(), **options(out="run", size=16, steps=3, rows=4, device="cpu"))
    (page,) = atlas("run")
    data = data_of(page)
    assert data["features"]["name"][: data["live"]] == ["relu:0"]
    assert set(data["features"]["status"]) >= {"live", "dead"}
    at = data["features"]["name"].index("relu:1")
    assert data["scales"]["best"][at] is None and data["scales"]["deviation"][at] is None
    assert data["features"]["cluster"][at] is None
    assert "NaN" not in json.dumps(data)


def test_activation_maps_are_the_networks_own(capsys: pytest.CaptureFixture[str]) -> None:
    succeed(capsys, *MAP, "--out", "run")
    page = Path("run/atlas.html")
    data, grids = data_of(page), blob_of(page, "maps")
    network, images = featmap.load("tests.helpers.tiny:small"), featmap.open_arrays("run")["images"].isel(seed=0)
    import torch

    outputs = Probe(network, 4).activation_maps(torch.from_numpy(images.values), ["second"])["second"]
    first = 0
    for name, shape, largest in zip(
        data["features"]["name"], data["maps"]["shape"], data["maps"]["largest"], strict=True
    ):
        channel = int(name.rpartition(":")[2])
        values = outputs[channel, channel]
        assert list(values.shape) == shape
        assert largest == pytest.approx(max(0.0, float(values.max())), rel=1e-4)
        shown = grids[first : first + values.size].reshape(shape) / 255 * largest
        np.testing.assert_allclose(shown, values.clip(0), atol=0.003 * largest + 1e-7)
        first += values.size
    assert first == grids.size


def test_the_command_and_the_lines_of_a_card_make_the_image_again(capsys: pytest.CaptureFixture[str]) -> None:
    succeed(capsys, *MAP, "--out", "run")
    data = data_of(Path("run/atlas.html"))
    at = data["features"]["name"].index("second:5")
    stored = featmap.open_arrays("run")["images"].isel(seed=0).sel(image="second:5").values
    words = shlex.split(data["command"][at])
    assert words[0] == "featmap"
    succeed(capsys, *words[1:], "--out", "again")
    np.testing.assert_array_equal(featmap.open_arrays("again")["images"].values[0, 0], stored)
    scope: dict[str, Any] = {}
    exec(data["python"][at], scope)
    np.testing.assert_array_equal(scope["images"]["images"].values[0, 0], stored)


def test_a_recipe_that_no_option_gives_is_said_to_be_one(tmp_path: Path) -> None:
    similarity("second", tiny.small(), **options(out="RUN", size=16, steps=3, rows=4, jitter=2, device="cpu"))
    (page,) = atlas("RUN", activation_maps=False)
    data = data_of(page)
    assert data["command"] == [None] * tiny.FEATURES
    assert "Recipe.from_identity" in data["python"][0]
    assert "caller's own" in data["again"][0]
    recipe = featmap.Recipe.from_identity(json.loads(Path("RUN/manifest.json").read_text())["identity"]["recipe"])
    at = data["features"]["name"].index("second:2")
    made = featmap.maximise("second:2", tiny.small(), **options(recipe=recipe, seed=0, device="cpu"))
    stored = featmap.open_arrays("RUN")["images"].isel(seed=0).sel(image="second:2").values
    assert "featmap.maximise('second:2'" in data["python"][at]
    np.testing.assert_array_equal(made["images"].values[0, 0], stored)


def test_several_layers_have_an_index_over_their_pages(capsys: pytest.CaptureFixture[str]) -> None:
    said = succeed(capsys, *SEVERAL, "--out", "run")
    assert "(atlas.html, second/heatmap.png" in said
    index = Path("run/atlas.html").read_text(encoding="utf-8")
    table = pd.read_parquet("run/cross/layers.parquet").reset_index()
    assert len(table) == 2
    for row in table.itertuples():
        assert f"{row.layer} to {row.other}: best partner" in index and f"S {row.best:.3f}" in index
    assert data_of(Path("run/atlas.html")) == {"second": "second/atlas.html", "first": "first/atlas.html"}
    page = Path("run/second/atlas.html")
    assert 'href="../atlas.html"' in page.read_text(encoding="utf-8")
    (across,) = data_of(page)["cross"]
    assert (across["layer"], across["href"]) == ("first", "../first/atlas.html")
    Z = pd.read_parquet("run/cross/second-to-first/selective.parquet").astype(float)
    for name, found in zip(data_of(page)["features"]["name"], across["strongest"], strict=True):
        best = Z.loc[name].sort_values(ascending=False, kind="stable")
        assert [k for k, *_ in found] == list(best.index[: len(found)])
        assert [v for _, v, _ in found] == pytest.approx(best.iloc[: len(found)].tolist())


def test_interaction_runs_have_pages_and_can_be_brought_in(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--seeds", "2", *SMALL]
    succeed(capsys, "interact", "second:1", "second:4", *options, "--out", "duo")
    succeed(capsys, "interact", "--layers", "first", "second", "--features", "0-2", "1-2", *options, "--out", "pairs")
    for name, words in (("duo", "second:1 + second:4"), ("pairs", "first with second: 6 pairs")):
        succeed(capsys, "atlas", name)
        text = Path(name, "atlas.html").read_text(encoding="utf-8")
        assert words in text and "<img" in text and "<script" not in text
        command = re.search(r"<pre>featmap (.*?)</pre>", text)
        assert command is not None
        assert "other settings" not in succeed(capsys, *shlex.split(command[1]), "--dry-run")
    succeed(capsys, *MAP, "--no-atlas", "--out", "run")
    succeed(capsys, "atlas", "run", "--interactions", "duo", "--interactions", "pairs")
    text = Path("run/atlas.html").read_text(encoding="utf-8")
    assert "second:1 + second:4" in text and "first with second: 6 pairs" in text
    figures = json.loads(Path("duo/interaction.json").read_text())["figures"]
    assert f"{figures['response_nonlinearity']['mean']:.3g}" in text


def test_a_screening_has_a_page_of_all_its_parts(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--layers",
        "first",
        "second",
        "--features",
        "0-3",
        "1-5",
        "--screen",
        "--top",
        "3",
        "--checks",
        "4",
    ]
    succeed(capsys, "interact", *words, *SMALL, "--out", "screening")
    succeed(capsys, "atlas", "screening")
    text = Path("screening/atlas.html").read_text(encoding="utf-8")
    titles = re.findall("<h2>(.*?)</h2>", text)
    assert titles == ["Screening of first with second", "first with second: 3 pairs", "first with second: 4 pairs"]
    (command,) = re.findall(r"<pre>featmap (.*?)</pre>", text)
    assert shlex.join(words) in command
    before = sorted(p for p in Path("screening").rglob("*") if p.is_file())
    succeed(capsys, *shlex.split(command), "--out", "screening")  # the same run: nothing is made anew
    assert sorted(p for p in Path("screening").rglob("*") if p.is_file()) == before


def test_a_run_of_images_only_has_cards(capsys: pytest.CaptureFixture[str]) -> None:
    succeed(capsys, "optimize", "second:1", "second:2:3", "second:1 + 0.5 * first:2", *SMALL, "--out", "run")
    succeed(capsys, "atlas", "run")
    data = data_of(Path("run/atlas.html"))
    assert data["live"] == 0 and len(data["features"]["name"]) == 3
    assert "runs of features only" in data["maps"]["reason"]


def test_what_has_no_atlas_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "no such folder" in fail_with_run(capsys, "atlas", "nowhere")
    succeed(capsys, *MAP, "--no-atlas", "--out", "run")
    succeed(capsys, "probe", "run", "--layers", "first", "--out", "probed")
    assert "makes no images" in fail_with_run(capsys, "atlas", "probed")
    assert "is no interaction run" in fail_with_run(capsys, "atlas", "run", "--interactions", "run")
    assert "go with --model" in fail_with_run(capsys, "atlas", "run", "--weights", "random")
    assert "run's own --model" in fail_with_run(capsys, "atlas", "run", "--model", "tests.helpers.tiny:other")
    begun = Run.read(Path("run"))
    begun.manifest.status = "running"
    begun.save()
    assert "is not finished" in fail_with_run(capsys, "atlas", "run")
    with pytest.raises(StoreError, match="not a finished similarity run"):
        result.read_maps("run")


def test_texts_cannot_leave_their_place() -> None:
    text = "</script><script>alert(1)</script>\u2028<!--&"
    inside = html.to_json_text({"name": text})
    assert not set("<>&\u2028") & set(inside)
    assert json.loads(inside) == {"name": text}


@pytest.mark.parametrize("page", ["layer.html", "index.html", "reports.html"])
def test_frames_are_filled_once(page: str) -> None:
    names = set(re.findall(r"\{\{(\w+)\}\}", html.read_asset(page)))
    filled = html.fill_template(page, **dict.fromkeys(names, "{{title}}"))
    assert filled.count("{{title}}") == len(re.findall(r"\{\{\w+\}\}", html.read_asset(page)))


def test_a_page_stays_within_what_it_may_take() -> None:
    assert [layer_data.page_budget(n) for n in (1, 512, 2048)] == [23_000_000, 23_000_000, 76_000_000]


def test_a_network_that_is_given_must_be_the_runs(tmp_path: Path) -> None:
    similarity("second", tiny.small(), **options(out="run", size=16, steps=3, rows=4, device="cpu"))
    with pytest.raises(FeatmapError, match="made with weights"):
        atlas("run", network=featmap.load(tiny.other()))
    (page,) = atlas("run", network=featmap.load(tiny.small()))
    assert data_of(page)["maps"]["reason"] is None
    assert Run.read(Path("run")).manifest.atlas["pages"].keys() == {"atlas.html"}
