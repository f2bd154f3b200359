from __future__ import annotations

import importlib.abc
import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
import typer
from PIL import Image

import featmap
from featmap.cli.app import app, main
from featmap.errors import ModelError
from featmap.network.weights import read_state
from featmap.optimize.limits import resolve_recipe
from featmap.optimize.recipe import RECIPES
from tests.helpers import run_kinds, tiny

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SMALL = ["--model", "tests.helpers.tiny:small", "--size", "16", "--steps", "3", "--rows", "4", "--device", "cpu"]
MAP = ["similarity", "--layer", "second", *SMALL]


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test works in a folder of its own; factories are imported from the repository."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(REPOSITORY)
    run_kinds.make_runs_cheap(monkeypatch, runs=10, draws=19)


def succeed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    printed = capsys.readouterr()
    assert end.value.code == 0, printed.err
    return printed.out


def fail(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the one line that a wrong input ends in."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("featmap: ")
    assert "Traceback" not in printed.err
    assert end.value.code == 2, printed.err
    assert not [p for p in Path("runs").rglob("*") if p.is_file()]
    return lines[0]


def photograph(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


WRONG: list[tuple[str, list[str], str]] = [
    ("unknown command", ["similarty"], "similarty"),
    ("unknown option", ["layers", "--colour", "red"], "--colour"),
    ("no number", ["layers", "--size", "big"], "--size 'big': give pixels, such as 96, or height x width"),
    ("a side missing", ["layers", "--size", "64x"], "--size '64x': give pixels, such as 96, or height x width"),
    ("no height", ["layers", "--size", "0x32"], "--size 0 x 32: an image has at least 1 pixel"),
    ("no input size", ["layers", "--input-size", "a"], "--input-size 'a': give pixels"),
    ("other channels", ["layers", "--channels", "1"], "--channels 1: network reference takes images of 3"),
    ("missing layer", ["similarity", *SMALL], "--layer"),
    ("unknown model", ["layers", "--model", "googlenett"], "nearest: googlenet"),
    ("unknown layer", ["similarity", "--layer", "secnd", *SMALL], "nearest: second"),
    ("no layer matches", ["layers", "--model", "tests.helpers.tiny:small", "--match", "secnd*"], "nearest: second"),
    ("channel out of range", ["maximise", "second:11", *SMALL], "0 to 10"),
    ("row out of range", ["maximise", "second:0:8", *SMALL], "0 to 7"),
    ("prefix out of range", ["maximise", "second:0:..65", *SMALL], "1 to 64"),
    ("malformed unit", ["maximise", "second:one", *SMALL], "not a unit"),
    ("too many indices", ["maximise", "second:1:2:3:4", *SMALL], "not a unit"),
    ("unit without layer", ["maximise", ":3", *SMALL], "names no layer"),
    ("bad weight of a sum", ["maximise", "x * second:1", *SMALL], "is not a finite number"),
    ("neither units nor layer", ["maximise", *SMALL], "--layer"),
    ("units and layer", ["maximise", "second:1", "--layer", "second", *SMALL], "either"),
    ("no number in features", [*MAP, "--features", "a"], "is not a number or range"),
    ("features out of range", [*MAP, "--features", "0-11"], "0 to 10"),
    ("features backwards", [*MAP, "--features", "5-2"], "2-5"),
    ("empty features", [*MAP, "--features", ""], "is not a number or range"),
    ("unknown stimuli", [*MAP, "--stimuli", "some"], "layer"),
    ("unknown metric", [*MAP, "--metric", "l3"], "linf"),
    ("unknown recipe", [*MAP, "--recipe", "fats"], "nearest: fast"),
    ("unknown measure", [*MAP, "--measure", "coactivated"], "nearest: coactivation"),
    ("no neighbours", [*MAP, "--neighbours", "0"], "1 or more"),
    ("unknown device", ["similarity", "--layer", "second", *SMALL[:-1], "tpu9"], "allowed: auto"),
    ("a CUDA device too many", ["similarity", "--layer", "second", *SMALL[:-1], "cuda:99"], "CUDA devices"),
    ("size 0", [*MAP, "--size", "0"], "--size 0: an image has at least 1 pixel"),
    ("negative size", [*MAP, "--size", "-3"], "--size -3: an image has at least 1 pixel"),
    (
        "too small",
        ["similarity", "--layer", "last", *SMALL, "--model", "tests.helpers.tiny:shrinking", "--size", "9"],
        "a size of 15 or more",
    ),
    ("no steps", [*MAP, "--steps", "0"], "--steps 0: give 1 to 1,000,000 steps"),
    ("negative steps", [*MAP, "--steps", "-2"], "--steps -2: give 1 to 1,000,000 steps"),
    ("one row", [*MAP, "--rows", "1"], "2 or more"),
    ("no seeds", [*MAP, "--seeds", "0"], "--seeds 1"),
    ("negative seed", [*MAP, "--seed", "-1"], "--seed 0"),
    ("weights missing", [*MAP, "--weights", "none.safetensors"], "no such file"),
    ("random weights of a factory", [*MAP, "--weights", "random"], "set by the factory itself"),
    ("mean without std", [*MAP, "--mean", "0,0,0"], "belong together"),
    ("std 0", [*MAP, "--mean", "0,0,0", "--std", "1,0,1"], "above 0"),
    ("two numbers", [*MAP, "--mean", "0,0", "--std", "1,1,1"], "three numbers"),
    ("words for numbers", [*MAP, "--mean", "a,b,c", "--std", "1,1,1"], "write numbers joined by commas"),
    ("input size 0", [*MAP, "--input-size", "0"], "--input-size 0: give 1 pixel or more"),
    ("factory's module missing", [*MAP, "--model", "nowhere:net"], "cannot be imported"),
    ("factory missing", [*MAP, "--model", "tests.helpers.tiny:nothing"], "cannot be imported"),
    ("factory fails", [*MAP, "--model", "tests.helpers.tiny:failing"], "first line"),
    ("factory makes no module", [*MAP, "--model", "tests.helpers.tiny:not_a_module"], "not a torch.nn.Module"),
    ("start photo missing", [*MAP, "--start", "none.png"], "no such file"),
    ("photographs missing", ["probe", "none", "--layers", "second", *SMALL[:2]], "no such folder"),
    ("no layers", ["probe", "none", "--layers", ",", *SMALL[:2]], "names no layer"),
    ("neighbours without a run", ["neighbours", "second:1", "none"], "no such folder"),
    ("unknown recipe to print", ["recipes", "articel"], "nearest: article"),
]


@pytest.mark.parametrize(("arguments", "words"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_input_ends_in_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in fail(capsys, *arguments)


@pytest.mark.parametrize("size", ["0", "-5"])
def test_layers_refuses_a_size_below_1(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = fail(capsys, "layers", "--model", "tests.helpers.tiny:small", "--size", size)
    assert line.startswith(f"featmap: --size {size}: an image has at least 1 pixel")


@pytest.mark.parametrize("size", ["0", "-5"])
def test_probe_refuses_a_size_below_1(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    photograph(Path("photos/a.png"))
    line = fail(capsys, "probe", "photos", "--layers", "second", *SMALL[:2], "--size", size)
    assert line.startswith(f"featmap: --size {size}: an image has ")


@pytest.mark.parametrize(
    "given",
    [["--C", "nan", "--metric", "l2"], ["--C", "inf", "--metric", "l2"], ["--mean", "0,0,nan", "--std", "1,1,1"]],
)
def test_numbers_that_are_not_finite_are_refused(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    fail(capsys, *MAP, *given, "--dry-run")


class _Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("ran"),)  # type: ignore[return-value]


def test_unusable_weights_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    safetensors.torch.save_file(tiny.two().state_dict(), "other.safetensors")
    assert "do not fit" in fail(capsys, *MAP, "--weights", "other.safetensors")
    (tmp_path / "torn.safetensors").write_bytes((tmp_path / "other.safetensors").read_bytes()[:-9])
    assert "cannot be read" in fail(capsys, *MAP, "--weights", "torn.safetensors")
    (tmp_path / "code.pth").write_bytes(pickle.dumps({"first.weight": _Code()}, protocol=2))
    torch.save({"first.weight": _Code()}, "code2.pth")
    for name in ("code.pth", "code2.pth"):
        assert "pickled code" in fail(capsys, *MAP, "--weights", name)
    assert not (tmp_path / "ran").exists()
    (tmp_path / "empty.pth").write_bytes(b"")
    assert "cannot be read" in fail(capsys, *MAP, "--weights", "empty.pth")
    torch.save([1, 2], "list.pth")
    assert "no state dict" in fail(capsys, *MAP, "--weights", "list.pth")
    assert "no such file" in fail(capsys, *MAP, "--weights", str(tmp_path))


def test_code_pickled_by_any_protocol_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "code.pth").write_bytes(pickle.dumps({"first.weight": _Code()}, protocol=4))
    assert "pickled code" in fail(capsys, *MAP, "--weights", "code.pth")


def test_damaged_checkpoints_never_crash(tmp_path: Path) -> None:
    torch.save(tiny.two().state_dict(), "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    random = np.random.Generator(np.random.PCG64(3))
    refused = 0
    for _ in range(60):
        spoiled = bytearray(whole)
        for at in random.integers(0, min(len(whole), 900), 3):
            spoiled[at] = int(random.integers(256))
        (tmp_path / "spoiled.pth").write_bytes(bytes(spoiled))
        try:
            read_state(tmp_path / "spoiled.pth")
        except ModelError:
            refused += 1
    assert refused > 30


def test_an_old_checkpoint_with_renamed_storages_is_refused(tmp_path: Path) -> None:
    module = tiny.two()
    torch.save(module.state_dict(), "old.pth", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "old.pth").read_bytes()
    key = str(module.features.weight.untyped_storage()._cdata).encode()
    assert whole.count(key) == 2
    (tmp_path / "old.pth").write_bytes(whole.replace(key, b"7" * len(key), 1))
    with pytest.raises(ModelError, match="cannot be read"):
        read_state(tmp_path / "old.pth")


def test_files_that_are_not_images_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.png").write_text("no picture")
    assert "cannot be read" in fail(capsys, *MAP, "--start", "text.png")
    assert "cannot be read" in fail(capsys, *MAP, "--start", str(tmp_path))
    (tmp_path / "empty").mkdir()
    assert "no photographs" in fail(capsys, "probe", "empty", "--layers", "second", *SMALL[:2])
    (tmp_path / "bad").mkdir()
    (tmp_path / "text.png").rename(tmp_path / "bad" / "text.png")
    line = fail_with_run(capsys, "probe", "bad", "--layers", "second", *SMALL[:2], "--out", "probed")
    assert line.startswith("featmap: ") and "text.png" in line and not Path("probed").exists()


def test_out_refuses_files_and_other_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    assert "not a run folder" in fail(capsys, *MAP, "--out", "file")
    assert (tmp_path / "file").read_text() == "mine"
    assert "not a run folder" in fail(capsys, *MAP, "--out", ".")
    succeed(capsys, "maximise", "second:1", *SMALL, "--out", "run")
    assert "seeds" in fail(capsys, "maximise", "second:1", *SMALL, "--seed", "4", "--out", "run")
    assert "model.sha256" in fail(
        capsys, "maximise", "second:1", *SMALL, "--model", "tests.helpers.tiny:other", "--out", "run"
    )


class _Broken(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")


LOADING = "featmap.network.loading"
"""The module that imports torchvision."""


@pytest.fixture
def without_torchvision(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "meta_path", [_Broken(), *sys.meta_path])
    for name in [n for n in sys.modules if n == LOADING or n.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    yield
    sys.modules.pop(LOADING, None)


def test_torchvision_built_for_another_torch_is_reported(
    without_torchvision: None, capsys: pytest.CaptureFixture[str]
) -> None:
    line = fail(capsys, "layers")
    assert "operator torchvision::nms does not exist" in line
    assert "pip install" in line


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--debug", "recipes", "none"], ["recipes", "none", "--debug"]):
        with pytest.raises(featmap.FeatmapError, match="none"):
            main(arguments)
    assert capsys.readouterr().err == ""


def test_a_bug_is_reported_as_unexpected(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from featmap.cli import listing

    def broken(_: object) -> list[str]:
        raise ZeroDivisionError("a\nb")

    monkeypatch.setattr(listing, "recipe_lines", broken)
    with pytest.raises(SystemExit) as end:
        main(["recipes"])
    assert end.value.code == 1
    assert capsys.readouterr().err == "featmap: unexpected ZeroDivisionError: a (--debug shows where)\n"


def test_an_interruption_says_that_finished_work_is_stored(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from featmap.cli import listing

    def interrupted(_: object) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(listing, "recipe_lines", interrupted)
    with pytest.raises(SystemExit) as end:
        main(["recipes"])
    assert end.value.code == 130
    assert capsys.readouterr().err.startswith("featmap: interrupted")


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = succeed(capsys, *MAP, "--dry-run")
    assert "11 images x 1 seed(s), 3 steps, 16 pixels" in printed
    assert "it would go to runs/tests.helpers.tiny-small-second-fast-" in printed
    assert "2 images" in succeed(capsys, "maximise", "second:1", "second:2", *SMALL, "--dry-run", "--out", "there")
    assert list(tmp_path.iterdir()) == []


def test_optimize_is_another_name_of_maximise(capsys: pytest.CaptureFixture[str]) -> None:
    folders = [succeed(capsys, name, "second:1", *SMALL, "--dry-run").split()[-1] for name in ("maximise", "optimize")]
    assert folders[0] == folders[1]


COMMANDS = ["similarity", "maximise", "optimize", "probe", "interact", "neighbours", "atlas", "validate", "verify"]


@pytest.mark.parametrize("command", [*COMMANDS, "judge", "layers", "recipes"])
def test_help_describes_every_option_and_fits_the_terminal(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = succeed(capsys, command, "--help")
    options = typer.main.get_command(app).commands[command].params  # type: ignore[attr-defined]
    assert all(option.help for option in options if option.param_type_name == "option")
    assert max(len(line) for line in printed.splitlines()) <= 80
    assert len(printed[printed.index("--help") :].splitlines()) > 3  # what follows the options: files, terms, examples


def test_layers_and_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    printed = succeed(capsys, "layers", "--model", "tests.helpers.tiny:small", "--size", "16").splitlines()
    assert printed[1] == "layers at 16 x 16 pixels"
    assert [line.split()[0] for line in printed[2:]] == ["layer", "first", "relu", "second"]
    assert printed[-1].split()[2:13] == ["N", "x", "C", "x", "H", "x", "W", "11", "8", "x", "8"]
    matched = succeed(
        capsys, "layers", "--model", "tests.helpers.tiny:small", "--size", "16", "--match", "s*"
    ).splitlines()
    assert [line.split()[0] for line in matched[3:]] == ["second"]
    too_small = succeed(capsys, "layers", "--model", "tests.helpers.tiny:shrinking", "--size", "9")
    assert "give a larger --size" in too_small
    assert "metric: l1" in succeed(capsys, "recipes", "article")
    listed = [line.split()[0] for line in succeed(capsys, "recipes").splitlines() if not line.startswith(" ")]
    assert listed[:4] == ["fast", "standard", "natural", "interact"] and sorted(listed) == sorted(RECIPES)


UNITS = [
    *("second:1", "second:1:2", "second:1:2:3", "second:1:2:3+second:0:0:0", "second:1:..5", "first:all"),
    *("class:2", "0.2 * second:1 + 0.8 * first:3"),
]


def test_maximise_takes_every_kind_of_unit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    units = [u.replace("+second:", "+") for u in UNITS if u != "class:2"]
    printed = succeed(capsys, "maximise", *units, *SMALL, "--seeds", "2", "--out", "run")
    assert f"{2 * len(units)} images: " in printed
    frame = pd.read_csv(tmp_path / "run" / "images.csv")
    assert sorted(set(frame["image"])) == sorted(
        ["second:1", "second:1:2", "second:1:2:3", "second:0:0:0+1:2:3", "second:1:..5", "first:all", units[-1]]
    )
    assert len(list((tmp_path / "run" / "images").glob("*.png"))) == len(units)
    assert (tmp_path / "run" / "features.png").is_file()
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "complete"


def test_maximise_and_probe_resume_and_are_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layer = ["maximise", "--layer", "second", "--features", "0-2,5", *SMALL]
    succeed(capsys, *layer)
    (folder,) = Path("runs").iterdir()
    before = {p: p.stat().st_mtime_ns for p in (folder / "units").iterdir()}
    succeed(capsys, *layer)
    assert {p: p.stat().st_mtime_ns for p in (folder / "units").iterdir()} == before
    printed = succeed(capsys, "probe", str(folder), "--layers", "second,first", "--out", "probed")
    assert "4 images x 17 responses" in printed
    found = pd.read_parquet("probed/responses.parquet")
    activation = featmap.open_arrays(folder)["activation"].values[0]
    own = [found.loc[f"second:{c}", f"second:{c}"] for c in (0, 1, 2, 5)]
    np.testing.assert_allclose(own, activation, rtol=1e-5)
    records = {p: p.stat().st_mtime_ns for p in Path("probed/units").iterdir()}
    succeed(capsys, "probe", str(folder), "--layers", "second,first", "--out", "probed")
    assert {p: p.stat().st_mtime_ns for p in Path("probed/units").iterdir()} == records
    assert "--model" in fail_with_run(capsys, "probe", str(folder), "--layers", "second", "--weights", "x")
    assert "responses" in fail_with_run(capsys, "probe", str(folder), "--layers", "first", "--out", "probed")


def fail_with_run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    *progress, line = capsys.readouterr().err.splitlines()
    assert set(progress) <= {"photographs opened"}
    return line


def test_a_deprecated_recipe_is_noted(capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", "tests.helpers.tiny:small", "--size", "32", "--steps", "2", "--rows", "2"]
    with pytest.raises(SystemExit) as end:
        main(["maximise", "second:1", *model, "--recipe", "large", "--out", "run"])
    assert end.value.code == 0
    assert "note: recipe large is deprecated: take standard, or pixels-long" in capsys.readouterr().err
    assert "deprecated: take standard" in succeed(capsys, "recipes", "large")


def test_recipes_say_which_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    lines = succeed(capsys, "recipes").splitlines()
    assert {"fast (default on a CPU)", "standard (default on a GPU)", "interact (default of interact)"} <= set(lines)
    network = featmap.load("tests.helpers.tiny:small")
    assert [resolve_recipe(None, network, torch.device(d)).name for d in ("cpu", "meta")] == ["fast", "standard"]


def test_probe_lists_responses_by_photograph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k in range(3):
        photograph(tmp_path / "photos" / f"{k}.png", seed=k)
    model = ["--model", "tests.helpers.tiny:small", "--size", "16"]
    assert "3 images x 11 responses" in succeed(capsys, "probe", "photos", "--layers", "second", *model, "--out", "out")
    found = pd.read_csv("out/responses.csv", index_col=0)
    assert list(found.index) == ["0.png", "1.png", "2.png"]
    assert np.isfinite(found.to_numpy()).all()
    assert len({tuple(row) for row in found.to_numpy()}) == 3


def test_a_changed_photograph_is_probed_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probe = ["probe", "photos", "--layers", "second", "--model", "tests.helpers.tiny:small", "--size", "16"]
    photograph(tmp_path / "photos" / "a.bmp", seed=0)
    succeed(capsys, *probe, "--out", "one")
    photograph(tmp_path / "photos" / "a.bmp", seed=1)
    succeed(capsys, *probe, "--out", "two")
    assert "images.sha256" in fail_with_run(capsys, *probe, "--out", "one")


def test_an_unfinished_run_is_not_probed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from featmap.runs import lifecycle
    from featmap.runs.maximise import maximise_job
    from tests.helpers import settings

    network = featmap.load("tests.helpers.tiny:small")
    recipe = settings.resolve(network, torch.device("cpu"), "pixels", 16, 3, rows=4)
    lifecycle.open_run(maximise_job(["second:1"], network, recipe), "begun")
    assert "finish" in fail_with_run(capsys, "probe", "begun", "--layers", "second", "--out", "probed")


def test_a_run_without_a_map_has_no_neighbours(capsys: pytest.CaptureFixture[str]) -> None:
    succeed(capsys, "maximise", "second:1", *SMALL, "--out", "images")
    assert "is not a similarity run" in fail_with_run(capsys, "neighbours", "second:1", "images")


def test_neighbours_are_listed_for_features_of_a_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planted = ["similarity", "--layer", "features", *SMALL, "--model", "tests.helpers.tiny:planted", "--out", "map"]
    succeed(capsys, *planted, "--recipe", "pixels")
    lines = succeed(capsys, "neighbours", "features:7", "map", "-n", "3").splitlines()
    assert lines[0] == "most like features:7"
    assert lines[2].split()[:2] == ["features:1", "+1.000"]
    assert lines.index("most opposed to features:7") == 5
    assert "nearest" in fail_with_run(capsys, "neighbours", "features:77", "map")
    assert "1 or more" in fail_with_run(capsys, "neighbours", "features:1", "map", "--count", "0")
    (tmp_path / "map" / "profile.parquet").unlink()
    assert "run its command again" in fail_with_run(capsys, "neighbours", "features:1", "map")
