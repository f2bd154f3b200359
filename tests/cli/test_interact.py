from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as pyplot
import pytest

from featmap.cli.app import main
from featmap.interaction import worker as jointwork
from featmap.plotting import interaction_panel
from featmap.report.interaction import build_reports
from tests.cli.test_app import SMALL, at_home, fail, fail_with_run, succeed
from tests.helpers import pictures, tiny
from tests.helpers.tables import check_plain_tables

assert at_home  # the fixture under which every test works in a folder of its own

PAIR = ["interact", "second:3", "first:5", *SMALL, "--seeds", "2"]
LAYERS = ["interact", "--layers", "second", "first", "--features", "0-1", "2,4", *SMALL, "--seeds", "2"]

SCREEN = ["--layers", "second", "first", "--screen"]
WRONG: list[tuple[str, list[str], str]] = [
    ("neither units nor layers", [], "either units"),
    ("units and layers", ["second:1", "second:2", "--layers", "second", "first"], "either units"),
    ("layers without features", ["--layers", "second", "first"], "--features 0-15 0-15"),
    ("features without layers", ["second:1", "second:2", "--features", "0", "1"], "goes with --layers"),
    ("one unit", ["second:1"], "two units or more"),
    ("one unit twice", ["second:1", "second:1"], "each once"),
    ("nine units", [f"second:{k}" for k in range(9)], "2 to 8 units"),
    ("an unknown layer", ["second:1", "secnd:1"], "nearest: second"),
    ("a channel out of range", ["second:1", "second:11"], "0 to 10"),
    ("a row out of range", ["second:1", "second:2:8"], "0 to 7"),
    ("a malformed unit", ["second:1", "second:x"], "not a unit"),
    ("one layer", ["--layers", "second"], "--layers"),
    ("an unknown layer of two", ["--layers", "second", "frst", "--features", "0", "0"], "nearest: first"),
    ("a feature too far", ["--layers", "second", "first", "--features", "0", "0-6"], "first has 6 channels"),
    ("no number of a feature", ["--layers", "second", "first", "--features", "a", "0"], "is not a number or range"),
    ("no pair", ["--layers", "second", "second", "--features", "3", "3"], "make no pair"),
    ("an unknown balance", ["second:1", "second:2", "--balance", "both"], "allowed: solo, none"),
    ("an unknown probed layer", ["second:1", "second:2", "--probe-layers", "frst"], "nearest: first"),
    ("no probed layer", ["second:1", "second:2", "--probe-layers", ","], "--probe-layers names no layer"),
    ("an unknown recipe", ["second:1", "second:2", "--recipe", "intract"], "nearest: interact"),
    ("no seeds", ["second:1", "second:2", "--seeds", "0"], "--seeds 1"),
    ("a negative seed", ["second:1", "second:2", "--seed", "-1"], "--seed 0"),
    ("one row", ["second:1", "second:2", "--rows", "1"], "2 or more"),
    ("no steps", ["second:1", "second:2", "--steps", "0"], "--steps 0: give 1 to 1,000,000 steps"),
    ("size 0", ["second:1", "second:2", "--size", "0"], "--size 0: an image has at least 1 pixel"),
    ("an unknown device", ["second:1", "second:2", "--device", "tpu9"], "allowed: auto"),
    ("class logits that there are not", ["class:1", "second:2"], "no layer of class logits"),
    ("a limit of no photographs", ["second:1", "second:2", "--limit", "3"], "go with --photographs FOLDER"),
    ("no such photographs", ["second:1", "second:2", "--photographs", "nowhere"], "--photographs 'nowhere'"),
    ("a screening without its photographs", [*SCREEN, "--photographs", "nowhere"], "--photographs 'nowhere'"),
]


@pytest.mark.parametrize(("arguments", "words"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_input_ends_in_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in fail(capsys, "interact", *SMALL, *arguments)


def test_too_many_pairs_are_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featmap.interaction.groups.MAX_PAIRS", 65)
    arguments = ["--layers", "second", "first", "--features", "all", "all"]
    assert "66 pairs" in fail(capsys, "interact", *SMALL, *arguments)


def files_of(folder: str) -> dict[Path, tuple[int, bytes]]:
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in Path(folder).rglob("*") if p.is_file()}


@pytest.mark.parametrize("arguments", [PAIR, LAYERS], ids=["pair", "layers"])
def test_a_dry_run_writes_nothing(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = succeed(capsys, *arguments, "--dry-run")
    assert "solo and" in printed and "joint descents, 3 steps, 16 pixels" in printed
    assert f"{8 if arguments is LAYERS else 2} joint" in printed
    assert "runs/tests.helpers.tiny-small-interact-second" in printed
    assert list(tmp_path.iterdir()) == []


def test_a_pair_is_summarised_and_repeating_it_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    printed = succeed(capsys, *PAIR, "--out", "run")
    lines = printed.splitlines()[1:]  # the first one names the network
    assert "of the joint image's response is not explained by a mixture of the solo" in lines[0]
    assert lines[1].startswith("second:3: ") and " alone, " in lines[1] and lines[2].startswith("first:5: ")
    assert "note: a claim needs 5 seeds or more" in lines
    assert lines[-1].startswith("result: run (")
    before = files_of("run")
    assert succeed(capsys, *PAIR, "--out", "run") == printed
    assert files_of("run") == before
    assert json.loads(Path("run/manifest.json").read_text())["status"] == "complete"


@pytest.mark.parametrize("arguments", [PAIR, LAYERS], ids=["pair", "layers"])
def test_photographs_are_measured_too(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    pictures.save_noise(Path("photographs"), 30)
    more = ["--photographs", "photographs", "--limit", "24", "--out", "run"]
    estimated = succeed(capsys, *arguments, *more, "--dry-run")
    assert "joint descents" in estimated and not Path("run").exists()
    printed = succeed(capsys, *arguments, *more)
    if arguments is PAIR:
        assert "To 24 photographs the two respond " in printed and "times as often as by chance" in printed
        assert (
            "Added to 16 photographs, the effect of both solo images differs from the sum of the effects of " in printed
        )
        assert "Undefined on photographs: both are strong on " in printed
    else:
        assert "on 24 photographs " in printed and "mixed difference at photographs against response" in printed
        assert "methods.csv" in printed.splitlines()[-1] and check_plain_tables(Path("run"))
        with Path("run/pairs.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        (page,) = build_reports(Path("run"))
        assert (
            page.pairs is not None and len(page.pairs.table) == 4 and "--photographs FOLDER --limit 24" in page.command
        )
        methods = page.tables[-1][1]
        assert len(methods) == 11 and "mixed difference at photographs" in methods["one"].tolist()
        assert len(rows) == 4 and all(r["direct"] and r["place_lift_p"] and r["direct_at"] for r in rows)
        assert all(r["second_derivative"] for r in rows) and "second derivative at images against" in printed
    manifest = json.loads(Path("run/manifest.json").read_text())
    assert manifest["identity"]["photographs"]["count"] == manifest["photographs"]["count"] == 24
    assert manifest["identity"]["photographs"]["limit"] == 24
    before = files_of("run")
    assert succeed(capsys, *arguments, *more) == printed and files_of("run") == before
    assert "other settings" in fail_with_run(capsys, *arguments, "--out", "run")
    three = ["interact", "second:1", "second:2", "first:0", *SMALL]
    assert "photographs with 3 units" in fail(capsys, *three, "--photographs", "photographs")


def test_photographs_go_with_automatic_seeds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interaction_panel, "panel", lambda *_: pyplot.figure(figsize=(1, 1)))
    pictures.save_noise(Path("photographs"), 24)
    auto = ["--seeds", "auto", "--width", "0.00001", "--most-seeds", "6"]
    command = ["interact", "second:3", "first:5", *SMALL, *auto, "--photographs", "photographs"]
    estimated = succeed(capsys, *command, "--dry-run")
    assert "at least 5 seeds" in estimated and "at most 6 seeds" in estimated and not Path("run").exists()
    printed = succeed(capsys, *command, "--out", "run")
    assert "To 24 photographs the two respond " in printed and "note: 6 seeds were made" in printed
    known = json.loads(Path("run/interaction.json").read_text())
    assert known["seeds"] == list(range(6)) and known["photographs"]["photographs"] == 24
    before = files_of("run")
    assert succeed(capsys, *command, "--out", "run") == printed and files_of("run") == before
    assert "other settings" in fail_with_run(capsys, *command[:-2], "--out", "run")


def test_every_file_named_in_the_last_line_exists(capsys: pytest.CaptureFixture[str]) -> None:
    one = ["interact", "--layers", "second", "first", "--features", "3", "5", *SMALL, "--seeds", "1"]
    for k, arguments in enumerate((PAIR, LAYERS, one)):
        last = succeed(capsys, *arguments, "--out", f"run{k}").splitlines()[-1]
        for name in last.partition("(")[2].rstrip(")").split(", "):
            assert (Path(f"run{k}") / name).exists(), name


def test_a_file_that_is_missing_is_written_again(capsys: pytest.CaptureFixture[str]) -> None:
    succeed(capsys, *PAIR, "--out", "run")
    before = files_of("run")
    Path("run/panel.png").unlink()
    Path("run/figures.csv").write_text("rubbish")
    succeed(capsys, *PAIR, "--out", "run")
    after = files_of("run")
    assert {p: b for p, (_, b) in after.items() if p.name != "manifest.json"} == {
        p: b for p, (_, b) in before.items() if p.name != "manifest.json"
    }


def test_other_settings_are_refused_in_the_same_folder(capsys: pytest.CaptureFixture[str]) -> None:
    succeed(capsys, *PAIR, "--out", "run")
    for change in (["--seeds", "1"], ["--balance", "none"], ["--probe-layers", "first"]):
        assert "other settings" in fail_with_run(capsys, *PAIR, *change, "--out", "run")


def test_the_default_folder_depends_on_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    changes: list[list[str]] = [
        [],
        ["--balance", "none"],
        ["--probe-layers", "first"],
        ["--seed", "3"],
        ["--rows", "2"],
    ]
    folders = [succeed(capsys, *PAIR, *c, "--dry-run").splitlines()[-1].split()[-1] for c in changes]
    assert len(set(folders)) == len(changes)


@pytest.mark.parametrize("arguments", [PAIR, LAYERS], ids=["pair", "layers"])
@pytest.mark.parametrize("stop", [1, 4])
def test_an_interrupted_run_is_resumed(
    arguments: list[str], stop: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, made = jointwork.JointWorker.work, [0]

    def interrupted(self: jointwork.JointWorker, *given: Any) -> None:
        made[0] += 1
        if made[0] > stop:
            raise KeyboardInterrupt
        real(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(jointwork.JointWorker, "work", interrupted)
        with pytest.raises(SystemExit) as end:
            main([*arguments, "--out", "cut"])
    assert end.value.code == 130
    assert "Traceback" not in capsys.readouterr().err
    kept = tiny.landed("cut")
    assert len(kept) == stop
    succeed(capsys, *arguments, "--out", "cut")
    succeed(capsys, *arguments, "--out", "whole")
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    for path in Path("whole").rglob("*"):
        if path.is_file() and path.name != "manifest.json":
            assert path.read_bytes() == (Path("cut") / path.relative_to("whole")).read_bytes(), path


@pytest.mark.parametrize(
    "units",
    [
        ["second:1", "second:2", "first:3"],
        ["second:1:2", "second:2:3:3"],
        ["second:1:0:0+2:1:1", "second:3:..9"],
        ["second:all", "first:1"],
    ],
)
def test_units_of_every_kind_can_be_grouped(units: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    printed = succeed(capsys, "interact", *units, *SMALL, "--seeds", "1", "--out", "run")
    known = json.loads(Path("run/interaction.json").read_text())
    assert known["units"] == units and known["status"] == ["ok"]
    assert all(f"{u}: " in printed for u in units)
    assert {f"retention_{c}" for c in "abc"[: len(units)]} <= set(known["figures"])


def test_class_logits_and_an_earlier_layer_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", "tests.helpers.networks:logits_network", *SMALL[2:], "--seeds", "1", "--out", "run"]
    succeed(capsys, "interact", "class:0", "conv:2", "--probe-layers", "conv,fc", *model)
    known = json.loads(Path("run/interaction.json").read_text())
    assert known["units"] == ["fc:0", "conv:2"] and known["probed_layers"] == ["conv", "fc"]


def test_pairs_of_layers_are_counted_and_ranked(capsys: pytest.CaptureFixture[str]) -> None:
    lines = succeed(capsys, *LAYERS, "--out", "run").splitlines()[1:]
    assert lines[0] == "4 pairs: 4 ok"
    named = [line.split(": ")[0] for line in lines if "; response nonlinearity" in line]
    assert len(named) == 4 and all(
        name in {f"second:{a} + first:{b}" for a in (0, 1) for b in (2, 4)} for name in named
    )


def test_dead_partners_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", "tests.helpers.tiny:asleep", *SMALL[2:], "--seeds", "1"]
    printed = succeed(capsys, "interact", "relu:0", "relu:1", *model, "--out", "one")
    assert printed.splitlines()[1] == "response nonlinearity is undefined: dead partner (1 seed)."
    printed = succeed(
        capsys, "interact", "--layers", "relu", "relu", "--features", "all", "all", *model, "--out", "all"
    )
    assert printed.splitlines()[1] == "3 pairs: 3 dead partner"
    assert printed.splitlines()[2] == "kinds, each pair judged by itself: 3 undefined"
    assert printed.splitlines()[3].startswith("0 of 0 are above their floor")


def test_a_recipe_without_linear_steps_is_noted(capsys: pytest.CaptureFixture[str]) -> None:
    printed = succeed(capsys, *PAIR, "--recipe", "pixels", "--seeds", "1", "--out", "run")
    assert "note: recipe pixels has steps that are not linear" in printed
