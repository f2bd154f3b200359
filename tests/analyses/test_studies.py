"""What all studies have in common: figures with intervals, drawn features, run folders, what is stored, bad input."""

from __future__ import annotations

import hashlib
import io
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats
from torch import nn

from analyses import branches, coactivation, gradient_sum, joint_pair, natural_start, neuron_growth, reproducibility
from analyses.support import findings
from analyses.support import study as studies
from analyses.support.findings import Finding, mean_or_undefined, value_finding
from analyses.support.records import describe_descents, describe_left_out, save_outcome
from analyses.support.study import Outcome, Study
from analyses.support.study_command import check_options, run_study
from analyses.support.units import choose_units, named_rows
from featmap import FeatmapError, load
from featmap.cli.console import ProgressBars
from featmap.plotting import style
from tests.helpers import networks
from tests.helpers.studying import context_of

STUDY = Study("some", section="A section", claim="Claims.", measured="a figure", full="more", layers={})
VALUES = np.array([0.2, 0.5, 0.9, 0.4])


def test_the_interval_is_students_t() -> None:
    mean, low, high = findings.interval(VALUES)
    expected = stats.t.interval(0.95, 3, loc=VALUES.mean(), scale=stats.sem(VALUES))
    assert (mean, low, high) == pytest.approx((0.5, *expected))
    assert findings.interval([0.2, math.nan, 0.5, 0.9, math.inf, 0.4]) == pytest.approx((mean, low, high))
    narrow = stats.t.interval(0.5, 3, loc=VALUES.mean(), scale=stats.sem(VALUES))
    assert findings.interval(VALUES, 0.5)[1:] == pytest.approx(narrow)


def test_no_interval_reaches_beyond_what_is_possible() -> None:
    values = np.array([0.9, 1, 1, 0.7])
    mean, low, high = findings.interval(values)
    assert high > 1
    assert findings.interval(values, within=findings.SHARE) == (mean, low, 1.0)
    radii = findings.mean_finding("a", [2.0, 2, 3, 40], "a radius", "pixels", findings.POSITIVE)
    assert radii.low == 0 and radii.high == pytest.approx(findings.interval([2.0, 2, 3, 40])[2])
    assert (findings.mean_finding("a", [2.0, 2, 3, 40], "any").low or 0) < 0


def test_one_value_is_its_own_interval_and_none_is_an_error() -> None:
    assert findings.interval([0.3]) == (0.3, 0.3, 0.3)
    with pytest.raises(FeatmapError, match="no defined value to average; give other --layers or more --features"):
        findings.interval([math.nan])


@pytest.mark.parametrize(("count", "low"), [(6, 1), (8, 1), (9, 2), (10, 2), (15, 4), (20, 6), (25, 8)])
def test_the_interval_of_a_median_is_exact(count: int, low: int) -> None:
    """Ranks of the sign test, as tables of it give them; the interval covers at least 95 %, the next one less."""
    values = np.arange(1.0, count + 1)
    assert findings.median_interval([*values[::-1], math.nan]) == ((count + 1) / 2, low, count + 1 - low)
    below = sum(math.comb(count, k) for k in range(low)) / 2**count
    assert 1 - 2 * below >= 0.95 > 1 - 2 * (below + math.comb(count, low) / 2**count)
    values[-1], values[0] = math.inf, -math.inf
    assert findings.median_interval(values)[0] == (count + 1) / 2


def test_few_values_have_a_median_and_no_interval() -> None:
    median, low, high = findings.median_interval([3.0, math.inf, 1.0, 2.0, 0.5])
    assert median == 2 and math.isnan(low) and math.isnan(high)
    assert np.isnan(findings.median_interval([math.nan])).all()
    assert findings.median_interval([math.inf] * 6)[0] == math.inf


def test_means_count_what_is_defined() -> None:
    found = findings.mean_finding("a", [*VALUES, math.nan], "a thing", "pixels")
    assert (found.value, found.count, found.unit) == (pytest.approx(0.5), 4, "pixels")
    assert mean_or_undefined("a", VALUES, "a thing") == findings.mean_finding("a", VALUES, "a thing")
    assert mean_or_undefined("a", [math.nan], "a thing", "px") == Finding("a", None, None, None, 0, "a thing", "px")
    assert mean_or_undefined("a", [], "a thing").value is None


def test_values_that_are_not_finite_are_undefined() -> None:
    assert value_finding("a", math.nan, 3, "w") == Finding("a", None, None, None, 3, "w")
    assert value_finding("a", 1.0, 3, "w", 0.5, math.inf) == Finding("a", 1.0, 0.5, None, 3, "w")


@pytest.mark.parametrize(("hits", "count"), [(3, 10), (0, 16), (16, 16)])
def test_shares_have_wilsons_interval(hits: int, count: int) -> None:
    z, p = stats.norm.ppf(0.975), hits / count
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    reach = z / (1 + z * z / count) * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    found = findings.share_finding("a", hits, count, "w")
    assert (found.value, found.low, found.high) == pytest.approx((p, middle - reach, middle + reach), abs=1e-12)


def context(tmp_path: Path, **settings: Any) -> studies.Context:
    return context_of(STUDY, networks.linear_network(), ("conv2",), tmp_path, **settings)


def test_the_same_features_are_drawn_every_time(tmp_path: Path) -> None:
    drawn = context(tmp_path).draw_channels("conv2")
    assert drawn == context(tmp_path).draw_channels("conv2") == sorted(set(drawn))
    assert len(drawn) == 4 and set(drawn) <= set(range(8))
    assert context(tmp_path, features=99).draw_channels("conv2") == list(range(8))
    assert (
        context(tmp_path).draw_channels("conv2", 6) != drawn and len(context(tmp_path).draw_channels("conv2", 6)) == 6
    )
    assert context(tmp_path).draw_units("conv2") == [f"conv2:{c}" for c in drawn]


def test_named_features_come_first_and_the_rest_is_drawn(tmp_path: Path) -> None:
    drawn, everything = context(tmp_path).draw_channels("conv2"), set(range(8))
    other = min(everything - set(drawn))
    named = context(tmp_path, units=(f"conv2:{other}", f"conv2:{drawn[1]}", "conv3:0"))
    chosen = named.draw_channels("conv2")
    assert chosen[:2] == [other, drawn[1]] and chosen[2:] == [c for c in drawn if c != drawn[1]][:2]
    assert named.draw_channels("conv2", 1) == [other, drawn[1]], "never fewer than are named"
    assert named.draw_units("conv3")[0] == "conv3:0" and named.draw_channels("conv1") == context(
        tmp_path
    ).draw_channels("conv1")
    first = context(tmp_path, units=(studies.FIRST,))
    assert first.draw_channels("conv2") == [0, 1, 2, 3] and first.draw_channels("conv2", 99) == list(range(8))


def test_units_are_checked_and_default_to_those_of_the_article() -> None:
    network = load(networks.linear_network(), input_size=16)
    own = replace(STUDY, units={"mine": ("conv2:3", "conv9:1", "conv2:99"), "other": (studies.FIRST,)})

    def choose(text: str | None, study: Study = own, model: str = "mine") -> tuple[str, ...]:
        return choose_units(text, study, model, ("conv2",), network)

    assert choose(None) == ("conv2:3",), "of the layers and channels that there are"
    assert choose(None, model="other") == choose("first") == (studies.FIRST,) and choose(None, model="third") == ()
    assert choose("conv2:1, conv2:0,conv2:1") == ("conv2:1", "conv2:0") and choose("drawn") == ()
    for text, message in (
        ("conv3:1", r"--units 'conv3:1': give LAYER:CHANNEL,\.\.\. of conv2; or first, or drawn"),
        ("conv2", "--units 'conv2'"),
        ("conv2:-1", "--units 'conv2:-1'"),
        ("conv2:8", "layer 'conv2' has 8 features; give 0 to 7"),
        (" , ", "--units names no feature"),
    ):
        with pytest.raises(FeatmapError, match=message):
            choose(text)
    with pytest.raises(FeatmapError, match="study some draws no features; leave out --units"):
        choose("conv2:1", replace(own, takes_units=False))


def test_each_named_feature_has_a_row_of_its_own(tmp_path: Path) -> None:
    named = context(tmp_path, units=("conv2:3", "conv2:5", studies.FIRST))
    rows = pd.DataFrame({"feature": ["3:1:2", "3:4:4", "30:1:1", "3:1:1"], "value": [1.0, 3, 100, 50]})
    rows = rows.assign(layer=["conv2"] * 3 + ["conv1"], measure="radius", recipe="r", against="")
    one, other = named_rows(named, rows, [("radius", "r", "", "the radius", "pixels")])
    assert one == Finding("radius r of conv2:3", 2.0, None, None, 2, "conv2:3, named: the radius", "pixels")
    assert (other.value, other.count, other.words) == (None, 0, "conv2:5, named: the radius"), "dead, and not silent"


def test_what_descents_really_used_is_stored_and_said(tmp_path: Path) -> None:
    given = context(tmp_path)
    given.maximise(["conv2:0"], "some", recipe="article-normalised", size=38, steps=6)
    given.maximise(["conv2:1"], "again", recipe="article-normalised", size=38, steps=6, seeds=2)
    given.note_recipe("pixels-long")
    outcome = Outcome(pd.DataFrame({"x": [1]}), [], "holds", "It is 0.5.", {})
    held = json.loads(save_outcome(given, outcome, tmp_path / "results")[0].read_text(encoding="utf-8"))
    assert held["descents"] == [
        {"recipe": "article-normalised", "sizes": [30, 34, 38], "steps": 6},
        {"recipe": "pixels-long", "sizes": [16], "steps": 60},
    ], "a size that is left open is the network's"
    assert describe_descents(held) == (
        "article-normalised: octaves of 30, 34 and 38 pixels, 6 steps; pixels-long: 16 pixels, 60 steps; "
    )
    assert describe_descents({}) == "", "earlier records do not name them"


def test_a_run_folder_is_named_by_all_that_its_runs_depend_on(tmp_path: Path) -> None:
    given = context(tmp_path)
    folder = given.folder("a layer/../x", steps=4)
    assert folder == given.folder("a layer/../x", steps=4)
    assert folder.parent == tmp_path / "some" and ".." not in folder.parts
    others = [given.folder("a layer/../x", steps=5), given.folder("b", steps=4)]
    others.append(context(tmp_path, full=True).folder("a layer/../x", steps=4))
    given.network.sha256 = "other"
    assert len({folder, *others, given.folder("a layer/../x", steps=4)}) == 5


def test_networks_of_sizes_that_are_not_square_are_refused_by_studies() -> None:
    network = load(nn.Conv2d(3, 4, 3), input_size=(48, 96))
    with pytest.raises(FeatmapError, match=r"takes images of 48 x 96 pixels, and studies make square ones"):
        check_options(STUDY, network, ("",), None, "cpu", None)


def test_an_outcome_is_stored_as_record_table_and_figures(tmp_path: Path) -> None:
    given = context(tmp_path)
    given.network.name = "tests.helpers.networks:linear"
    figures: dict[str, Figure | bytes] = {"": Figure(figsize=(1, 1)), "-film.webp": b"RIFF"}
    rows = pd.DataFrame({"x": [1 / 3, np.nan], "name": ["a,b", "c"]})
    outcome = Outcome(rows, [findings.mean_finding("a", VALUES, "w")], "holds", "It is 0.5.", figures)
    record, table = save_outcome(given, outcome, tmp_path / "results")
    held = json.loads(record.read_text(encoding="utf-8"))
    assert record.name == "tests.helpers.networks-linear.json" and held["stem"] == "tests.helpers.networks-linear"
    assert held["figures"] == ["tests.helpers.networks-linear.png", "tests.helpers.networks-linear-film.webp"]
    assert all((record.parent / name).stat().st_size for name in held["figures"])
    assert table.read_bytes() == b'x,name\n0.333333,"a,b"\n,c\n'
    assert "rule" not in held
    ruled = replace(given, study=replace(STUDY, rule="the claim holds if so"))
    (record, _) = save_outcome(ruled, outcome, tmp_path / "other")
    assert json.loads(record.read_text(encoding="utf-8"))["rule"] == "the claim holds if so"
    assert held["csv_sha256"] == hashlib.sha256(table.read_bytes()).hexdigest()
    assert held["findings"][0]["count"] == 4 and held["settings"]["features"] == 4
    broken = Outcome(rows, [Finding("a", math.nan, None, None, 1, "w")], "holds", "", {})
    with pytest.raises(ValueError, match="JSON"):
        save_outcome(given, broken, tmp_path / "results")


def run(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any, measure: Any = None, study: Study | None = None
) -> tuple[Any, str, str]:
    monkeypatch.setattr(sys, "argv", ["study", *arguments])
    with pytest.raises(SystemExit) as end:
        run_study(study or branches.STUDY, measure or (lambda context: pytest.fail("measured")))
    message = capsys.readouterr()
    return end.value.code, message.out, message.err


def test_a_figure_as_webp_has_its_size_and_the_same_bytes() -> None:
    def drawn() -> bytes:
        figure = Figure(figsize=(3, 2))
        figure.add_axes((0.1, 0.1, 0.8, 0.8)).plot([0, 1])
        return style.encode_webp(figure, dpi=100)

    found = drawn()
    with Image.open(io.BytesIO(found)) as picture:
        assert (picture.format, picture.size) == ("WEBP", (300, 200))
        colours = np.asarray(picture.convert("L"))
    assert colours.max() > 250 > 150 > colours.min()
    assert drawn() == found


RANDOM = ["--weights", "random"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--features", "0"], "--features 0, --seeds 3: give 1 or more of each"),
        (["--seeds", "-1"], "--seeds -1"),
        (["--model", "googlnet"], "model 'googlnet' is unknown"),
        (["--model", "alexnet", *RANDOM], "no layers are known for 'alexnet'; give --layers"),
        (["--layers", "inception9z", *RANDOM], "no layer 'inception9z'"),
        (["--layers", " , ", *RANDOM], "no layers are known"),
        (["--image", "x.png"], "starts from noise only; leave out --image"),
        (["--weights", "nothing.safetensors"], "nothing.safetensors"),
        (["--colour", "red"], "--colour"),
        (["--name", "../other"], "--name '../other': give letters, digits"),
        (["--model", "alexnet", "--name", "reference"], "--name reference is the bundled network, not 'alexnet'"),
        (["--name", "own-full"], "--name 'own-full' is how results with --full are stored"),
        (["--size", "0"], "--size"),
        (["--rescue", "2"], "--rescue 2: give a share of the steps, from 0 to 1"),
        (["--units", "inception3a:1"], "study branches draws no features; leave out --units"),
        (["--input-size", "big"], "--input-size"),
        (["--mean", "0.5,0.5,0.5"], "--mean"),
    ],
)
def test_bad_input_ends_in_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    code, out, err = run(arguments, monkeypatch, capsys)
    assert code == 2 and out == ""
    (line,) = err.strip().splitlines()
    assert message in line and "Traceback" not in line


@pytest.mark.parametrize(
    ("study", "arguments", "message"),
    [
        (
            gradient_sum,
            ["--layers", "inception4a"],
            "needs two layers, not 1; give --layers FIRST,SECOND",
        ),
        (coactivation, ["--size", "8"], "--size 8: layer 'inception4a' does not fit into an image of that size"),
        (joint_pair, ["--layers", "conv1,conv2,conv3"], "study joint_pair needs two layers, not 3"),
        (coactivation, ["--feature", "99999"], "none numbered 99999; give --feature 0 to "),
        (coactivation, ["--feature", "-1"], "none numbered -1"),
        (reproducibility, ["--device", "abacus"], "device 'abacus' is unknown"),
        (natural_start, ["--image", "nowhere.jpg"], "there is no such file"),
        (neuron_growth, ["--results", "FILE"], "--results: "),
        (neuron_growth, ["--results", "FILE/below"], "--results: "),
        (neuron_growth, ["--runs", "FILE"], "--runs: "),
    ],
)
def test_bad_input_is_found_before_any_work(
    study: ModuleType,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    taken = tmp_path / "file"
    taken.write_text("kept", encoding="utf-8")
    free = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    given = [*RANDOM, *free, *(a.replace("FILE", str(taken)) for a in arguments)]
    code, out, err = run(given, monkeypatch, capsys, study=study.STUDY)
    assert code == 2 and out == ""
    (line,) = err.strip().splitlines()
    assert message in line and "Traceback" not in line
    assert taken.read_text(encoding="utf-8") == "kept"


def test_a_study_prints_its_sentence_and_stores_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def measure(context: studies.Context) -> Outcome:
        assert (context.features, context.seeds, context.full) == (2, 3, True)
        assert context.results == tmp_path / "results" and context.layers == ("conv1",)
        return Outcome(pd.DataFrame({"x": [1]}), [], "holds", "It is [bold]0.5[/bold].", {})

    given = ["--features", "2", "--full", "--layers", "conv1", *RANDOM, "--results", str(tmp_path / "results")]
    code, out, err = run(given, monkeypatch, capsys, measure)
    assert (code, out) == (0, "It is [bold]0.5[/bold].\n")
    record = tmp_path / "results" / "branches" / "reference-full.json"
    assert str(record) in err and json.loads(record.read_text(encoding="utf-8"))["verdict"] == "holds"


def linear_factory() -> nn.Module:
    """A network of one's own, as `--model package.module:factory` names it."""
    return networks.linear_network()


def test_a_network_of_ones_own_has_a_column_and_a_command_without_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    seen: list[studies.Context] = []

    def measure(context: studies.Context) -> Outcome:
        seen.append(context)
        data = context.maximise(["conv2:0", "conv2:1"], "some", size=16, steps=2, **context.changes)
        assert data.sizes["image"] == 2
        return Outcome(pd.DataFrame({"x": [1]}), [], "holds", "It is 0.5.", {"": Figure(figsize=(1, 1))})

    own = replace(STUDY, layers={"mine": ("conv2",)})
    named = ["--model", f"{__name__}:linear_factory", "--name", "mine", "--origin", "a drawn one"]
    values = ["--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25", "--input-size", "16", "--rescue", "1", "--size", "24"]
    folders = ["--results", str(tmp_path / "results"), "--runs", str(tmp_path / "runs")]
    assert run([*named, *values, *folders], monkeypatch, capsys, measure, own)[0] == 0
    (context,) = seen
    assert context.layers == ("conv2",) and context.network.input_size == 16 and context.changes == {"rescue": 1.0}
    assert context.sized_changes == {"rescue": 1.0, "size": 24} and context.size == 24
    assert context.model == "mine" and context.network.std == (0.25,) * 3
    held = json.loads((tmp_path / "results" / "some" / "mine.json").read_text(encoding="utf-8"))
    assert held["command"] == (
        "python -m analyses.some --model package.module:linear_factory --mean 0.5,0.5,0.5 --std 0.25,0.25,0.25 "
        "--input-size 16 --name mine --origin 'a drawn one' --features 16 --seeds 3 --rescue 1 --size 24"
    )
    assert (held["model"], held["stem"], held["origin"]) == ("mine", "mine", "a drawn one")
    assert held["figures"] == ["mine.png"] and held["settings"]["input_size"] == 16 and held["settings"]["rescue"] == 1
    assert held["settings"]["size"] == 24
    assert held["weights_sha256"] == context.network.sha256 and held["network"].startswith("network mine, weights ")
    assert held["images"] == {"conv2": {"live": 2}} and held["rests_on"]["formula"] == 2
    assert str(tmp_path) not in json.dumps(held) and __name__ not in json.dumps(held)


def test_folders_depend_on_the_size_and_the_normalisation_that_were_given(tmp_path: Path) -> None:
    def folder(**settings: Any) -> Path:
        network = load(networks.linear_network(), **settings)
        return studies.Context(STUDY, network, ("conv2",), False, 4, 1, "cpu", tmp_path, ProgressBars()).folder("a")

    grey: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    assert len({folder(), folder(input_size=16), folder(input_size=24), folder(input_size=24, **grey)}) == 4


def test_images_are_counted_by_layer_and_status(tmp_path: Path) -> None:
    given = context(tmp_path)
    codes = np.array([[0, 2, 1], [3, 2, 0]], dtype=np.uint8)
    names = ["0.5 * conv2:1", "conv2:..4", "conv1:2 + conv2:3"]
    given.count_images(xr.Dataset({"status": (("seed", "image"), codes)}, coords={"image": names}))
    assert given.images == {"conv2": {"live": 1, "unconverged": 1, "dead": 2}, "conv1 + conv2": {"live": 2}}
    assert describe_left_out(given.images) == [
        "3 of 4 images of conv2 are left out (more than a third, 1 whose response did not rise, 2 without a gradient)"
    ]


def test_a_study_may_have_seeds_of_its_own(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    own = Study("some", section="", claim="", measured="", full="", layers={}, seeds=5)
    monkeypatch.setattr(sys, "argv", ["study", "--features", "0"])
    with pytest.raises(SystemExit):
        run_study(own, lambda context: pytest.fail("measured"))
    assert "--seeds 5" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "expected"), [([], 8), (["--full"], 12), (["--full", "--features", "3"], 3)])
def test_a_study_may_have_more_features_where_it_is_full(
    given: list[str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    own, seen = replace(STUDY, features=8, full_features=12), list[int]()

    def measure(context: studies.Context) -> Outcome:
        seen.append(context.features)
        return Outcome(pd.DataFrame({"x": [1]}), [], "holds", "It is 0.5.", {})

    asked = ["--layers", "conv1", *RANDOM, "--results", str(tmp_path), *given]
    assert run(asked, monkeypatch, capsys, measure, own)[0] == 0
    (record,) = tmp_path.rglob("reference*.json")
    assert seen == [expected] and json.loads(record.read_text(encoding="utf-8"))["settings"]["features"] == expected
