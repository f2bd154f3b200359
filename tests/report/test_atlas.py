from __future__ import annotations

import base64
import json
import os
import re
import shlex
import shutil
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
from tests.helpers.run_kinds import run_command
from tests.helpers.settings import options

assert at_home  # the fixture under which every test works in a folder of its own

pytestmark = [
    pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning"),
    pytest.mark.usefixtures("cheap_runs"),
]
MAP = ["similarity", "--layer", "second", *SMALL]
SEVERAL = ["similarity", "--layers", "second,first", *SMALL]


def data_of(page: Path) -> dict[str, Any]:
    """Return the values that a page was given."""
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(encoding="utf-8"))
    assert match is not None
    return dict(json.loads(match[1]))


def blob_of(page: Path, name: str) -> np.ndarray:
    text = page.read_text(encoding="utf-8")
    match = re.search(rf'<script type="text/plain" id="blob-{name}" data-kind="(\w+)Array">(.*?)</script>', text)
    assert match is not None
    return np.frombuffer(base64.b64decode(match[2]), dtype=match[1].lower())


@pytest.fixture(scope="module")
def mapped_folder(cheap_runs: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `MAP` with its atlas, for the tests that only read it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(tmp_path_factory.mktemp("made"))
        assert run_command(*MAP, "--out", "run") == 0
        return Path.cwd() / "run"


@pytest.fixture
def mapped(mapped_folder: Path, at_home: None) -> None:
    """A copy of that run in the folder `run`."""
    shutil.copytree(mapped_folder, "run")


def test_maps_read_from_a_folder_equal_the_result(tmp_path: Path) -> None:
    computed = similarity(
        "second", tiny.small(), **options(features="0-6", out="run", size=16, steps=3, rows=4, device="cpu")
    )
    again = result.read_maps("run")["second"]
    pd.testing.assert_frame_equal(again.activations, computed.activations)
    pd.testing.assert_series_equal(again.null, computed.null)
    for name, frame in computed.measures.items():
        pd.testing.assert_frame_equal(again.measures[name], frame)
    pd.testing.assert_frame_equal(again.features, computed.features.loc[computed.shown])
    assert again.shown == computed.shown
    assert again.clusters.summary() == computed.clusters.summary()
    assert again.lines() == computed.lines()


def test_similarity_writes_the_atlas_only_when_it_is_outdated(capsys: pytest.CaptureFixture[str]) -> None:
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


def test_no_atlas_option_omits_the_atlas(capsys: pytest.CaptureFixture[str]) -> None:
    assert "atlas.html" not in succeed(capsys, *MAP, "--no-atlas", "--out", "run")
    assert not Path("run/atlas.html").exists()
    printed = succeed(capsys, "atlas", "run", "--no-maps", "--out", "elsewhere")
    assert "elsewhere/atlas.html" in printed
    assert data_of(Path("elsewhere/atlas.html"))["maps"]["reason"].startswith("left out")
    assert not Path("run/atlas.html").exists()


@pytest.mark.usefixtures("mapped")
def test_atlas_bytes_are_the_same_in_every_process(mapped_folder: Path) -> None:
    first = Path("run/atlas.html").read_bytes()
    repository = str(Path(__file__).resolve().parent.parent.parent)
    # strings hash by another seed there: this process's own is drawn at its start
    environment = os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": repository}
    code = "from featmap.cli.app import main; main(['atlas', 'run', '--out', 'again'])"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, timeout=120)
    assert Path("again/atlas.html").read_bytes() == first
    assert not any(str(folder).encode() in first for folder in (mapped_folder.parent, Path.cwd()))


@pytest.mark.usefixtures("mapped")
def test_page_makes_no_network_requests() -> None:
    text = Path("run/atlas.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in text and "connect-src" not in text
    ours = re.sub(r"<script>(?!\n).*?</script>", "", text, flags=re.DOTALL)  # without Bokeh's own
    assert re.findall(r"""(?:src|href)=["'](?!data:|#)[^"'{$]+""", ours) == []
    assert "://" not in ours


def test_page_holds_stored_A_and_scales_give_the_measures(capsys: pytest.CaptureFixture[str]) -> None:
    succeed(capsys, *MAP, "--features", "0-7", "--out", "run")
    page, layer_map = Path("run/atlas.html"), result.read_maps("run")["second"]
    data = data_of(page)
    names = data["features"]["name"]
    A = blob_of(page, "A").reshape(len(names), len(names)).astype(float)
    np.testing.assert_array_equal(A, layer_map.activations.loc[names, names].to_numpy())
    s = {k: np.array([np.nan if v is None else v for v in values]) for k, values in data["scales"].items()}
    derived = {
        "coactivation": (A - s["null"]) / s["best"],
        "relative": A / s["own"][:, None],
        "selective": (A - s["mean"]) / s["deviation"],
    }
    for name, values in derived.items():
        expected = frames.to_floats(layer_map.measures[name].loc[names, names], name)
        np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-12)
    S = frames.symmetric_values(layer_map.measures["profile"].loc[names, names])
    np.testing.assert_allclose(blob_of(page, "S"), S[np.triu_indices(len(names))], rtol=1e-6, atol=1e-7)


def test_mean_over_seeds_is_stored_in_float64(capsys: pytest.CaptureFixture[str]) -> None:
    succeed(capsys, *MAP, "--seeds", "2", "--out", "run")
    page, layer_map = Path("run/atlas.html"), result.read_maps("run")["second"]
    names = data_of(page)["features"]["name"]
    A = blob_of(page, "A")
    assert A.dtype == np.float64
    np.testing.assert_array_equal(A.reshape(len(names), -1), layer_map.activations.loc[names, names].to_numpy())
    assert data_of(page)["seeds"] == 2


def test_undefined_values_stay_undefined_in_the_page(tmp_path: Path) -> None:
    similarity("relu", tiny.sick(), **options(out="run", size=16, steps=3, rows=4, device="cpu"))
    (page,) = atlas("run")
    data = data_of(page)
    assert data["features"]["name"][: data["live"]] == ["relu:0"]
    assert set(data["features"]["status"]) >= {"live", "dead"}
    at = data["features"]["name"].index("relu:1")
    assert data["scales"]["best"][at] is None and data["scales"]["deviation"][at] is None
    assert data["features"]["cluster"][at] is None
    json.dumps(data, allow_nan=False)  # raises at a NaN


@pytest.mark.usefixtures("mapped")
def test_activation_maps_match_the_network() -> None:
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


@pytest.mark.usefixtures("mapped")
def test_command_and_python_of_a_card_reproduce_the_image(capsys: pytest.CaptureFixture[str]) -> None:
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


def test_recipe_without_options_is_given_in_python_only(tmp_path: Path) -> None:
    similarity("second", tiny.small(), **options(out="RUN", size=16, steps=3, rows=4, jitter=2, device="cpu"))
    (page,) = atlas("RUN", activation_maps=False)
    data = data_of(page)
    assert data["command"] == [None] * tiny.FEATURES
    assert "Recipe.from_identity" in data["python"][0]
    assert "caller's own" in data["reproduction_notes"][0]
    recipe = featmap.Recipe.from_identity(json.loads(Path("RUN/manifest.json").read_text())["identity"]["recipe"])
    at = data["features"]["name"].index("second:2")
    images = featmap.maximise("second:2", tiny.small(), **options(recipe=recipe, seed=0, device="cpu"))
    stored = featmap.open_arrays("RUN")["images"].isel(seed=0).sel(image="second:2").values
    assert "featmap.maximise('second:2'" in data["python"][at]
    np.testing.assert_array_equal(images["images"].values[0, 0], stored)


def test_several_layers_get_an_index_page(capsys: pytest.CaptureFixture[str]) -> None:
    printed = succeed(capsys, *SEVERAL, "--out", "run")
    assert "(atlas.html, second/heatmap.png" in printed
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
    for name, strongest in zip(data_of(page)["features"]["name"], across["strongest"], strict=True):
        best = Z.loc[name].sort_values(ascending=False, kind="stable")
        assert [k for k, *_ in strongest] == list(best.index[: len(strongest)])
        assert [v for _, v, _ in strongest] == pytest.approx(best.iloc[: len(strongest)].tolist())


def test_interaction_runs_get_pages_and_can_be_included(capsys: pytest.CaptureFixture[str]) -> None:
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


def test_screening_page_contains_all_its_parts(capsys: pytest.CaptureFixture[str]) -> None:
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


def test_maximise_run_gets_cards_without_a_map(capsys: pytest.CaptureFixture[str]) -> None:
    succeed(capsys, "optimize", "second:1", "second:2:3", "second:1 + 0.5 * first:2", *SMALL, "--out", "run")
    succeed(capsys, "atlas", "run")
    data = data_of(Path("run/atlas.html"))
    assert data["live"] == 0 and len(data["features"]["name"]) == 3
    assert "runs of features only" in data["maps"]["reason"]


def test_runs_without_atlas_give_clear_errors(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "no such folder" in fail_with_run(capsys, "atlas", "nowhere")
    succeed(capsys, *MAP, "--no-atlas", "--out", "run")
    succeed(capsys, "probe", "run", "--layers", "first", "--out", "probed")
    assert "makes no images" in fail_with_run(capsys, "atlas", "probed")
    assert "is not an interaction run" in fail_with_run(capsys, "atlas", "run", "--interactions", "run")
    assert "go with --model" in fail_with_run(capsys, "atlas", "run", "--weights", "random")
    assert "run's own network and weights" in fail_with_run(
        capsys, "atlas", "run", "--model", "tests.helpers.tiny:other"
    )
    begun = Run.read(Path("run"))
    begun.manifest.status = "running"
    begun.save()
    assert "is not finished" in fail_with_run(capsys, "atlas", "run")
    with pytest.raises(StoreError, match="not a finished similarity run"):
        result.read_maps("run")


def test_json_text_cannot_close_its_script_element() -> None:
    text = "</script><script>alert(1)</script>\u2028<!--&"
    inside = html.to_json_text({"name": text})
    assert not set("<>&\u2028") & set(inside)
    assert json.loads(inside) == {"name": text}


@pytest.mark.parametrize("page", ["layer.html", "index.html", "reports.html"])
def test_templates_are_filled_only_once(page: str) -> None:
    names = set(re.findall(r"\{\{(\w+)\}\}", html.read_asset(page)))
    filled = html.fill_template(page, **dict.fromkeys(names, "{{title}}"))
    assert filled.count("{{title}}") == len(re.findall(r"\{\{\w+\}\}", html.read_asset(page)))


def test_page_budget_depends_on_the_number_of_features() -> None:
    assert [layer_data.page_budget(n) for n in (1, 512, 2048)] == [23_000_000, 23_000_000, 76_000_000]


def test_network_must_have_the_weights_of_the_run(tmp_path: Path) -> None:
    similarity("second", tiny.small(), **options(out="run", size=16, steps=3, rows=4, device="cpu"))
    with pytest.raises(FeatmapError, match="made with weights"):
        atlas("run", network=featmap.load(tiny.other()))
    (page,) = atlas("run", network=featmap.load(tiny.small()))
    assert data_of(page)["maps"]["reason"] is None
    assert Run.read(Path("run")).manifest.atlas["pages"].keys() == {"atlas.html"}
