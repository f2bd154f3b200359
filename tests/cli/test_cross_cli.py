from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_app import SMALL, at_home, fail, fail_with_run, succeed
from tests.helpers import tiny

assert at_home  # the fixture under which every test works in a folder of its own

pytestmark = pytest.mark.usefixtures("cheap_runs")

SEVERAL = ["similarity", "--layers", "second,first", *SMALL]
PROBING = ["similarity", "--layer", "second", "--probe-layer", "first,relu", *SMALL]

WRONG: list[tuple[str, list[str], str]] = [
    ("layer and layers", ["--layer", "second", "--layers", "second,first"], "either --layer"),
    ("neither", [], "either --layer"),
    ("only a probe layer", ["--probe-layer", "first"], "either --layer"),
    ("layers and probe layer", ["--layers", "second,first", "--probe-layer", "relu"], "exclude each other"),
    ("one of layers and probe layer", ["--layers", "second", "--probe-layer", "relu"], "exclude each other"),
    ("no layers", ["--layers", ","], "--layers names no layer"),
    ("no probe layers", ["--layer", "second", "--probe-layer", " ,"], "--probe-layer names no layer"),
    ("the layer itself", ["--layer", "second", "--probe-layer", "first,second"], "is the layer that is maximised"),
    ("unknown probe layer", ["--layer", "second", "--probe-layer", "frst"], "nearest: first"),
    ("unknown among layers", ["--layers", "second,frst"], "nearest: first"),
    ("a channel that one lacks", ["--layers", "second,first", "--features", "0-8"], "first has 6 channels"),
    ("unknown measure", ["--layers", "second,first", "--measure", "profil"], "nearest: profile"),
]


@pytest.mark.parametrize(("arguments", "words"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_input_ends_in_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in fail(capsys, "similarity", *arguments, *SMALL)


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = succeed(capsys, *SEVERAL, "--dry-run")
    assert "17 images x 1 seed(s)" in printed
    assert "runs/tests.helpers.tiny-small-second-first-fast-" in printed
    assert "11 images" in succeed(capsys, *PROBING, "--dry-run")
    assert list(tmp_path.iterdir()) == []


def test_the_default_folder_depends_on_the_recorded_layers(capsys: pytest.CaptureFixture[str]) -> None:
    folders = [
        succeed(capsys, "similarity", *layers, *SMALL, "--dry-run").splitlines()[-1].split()[-1]
        for layers in (
            ["--layer", "second"],
            ["--layers", "second"],
            ["--layers", "second,second"],
            ["--layer", "second", "--probe-layer", "first"],
            ["--layer", "second", "--probe-layer", "first,relu"],
            ["--layers", "second,first"],
        )
    ]
    assert folders[0] == folders[1] == folders[2]
    assert len(set(folders)) == 4


def test_several_layers_are_resumed_and_list_neighbours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = succeed(capsys, *SEVERAL, "--out", "map")
    assert "second to first: mean S of a feature's best partner" in printed
    assert "first to second: mean S of a feature's best partner" in printed
    assert "second/heatmap.png, first/heatmap.png, cross/layers.png" in printed.splitlines()[-1]
    before = {p: p.stat().st_mtime_ns for p in Path("map").rglob("*") if p.is_file()}
    assert succeed(capsys, *SEVERAL, "--out", "map") == printed
    assert {p: p.stat().st_mtime_ns for p in Path("map").rglob("*") if p.is_file()} == before
    for unit, others in (("first:2", 5), ("second:3", tiny.FEATURES - 1)):
        lines = succeed(capsys, "neighbours", unit, "map", "-n", "20").splitlines()
        assert lines[0] == f"most like {unit}"
        assert lines.index(f"most opposed to {unit}") == others + 2
    line = fail_with_run(capsys, "neighbours", "relu:2", "map")
    assert "no map of layer 'relu'" in line and "it maps second, first" in line
    assert "nearest" in fail_with_run(capsys, "neighbours", "first:22", "map")
    assert "other settings" in fail_with_run(capsys, "similarity", "--layers", "first,second", *SMALL, "--out", "map")


def test_a_probed_layer_has_no_map_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = succeed(capsys, *PROBING, "--out", "map")
    assert "first is probed, not maximised: its co-activation is undefined" in printed
    assert "cross/second-to-first/heatmap.png" in printed.splitlines()[-1]
    assert json.loads(Path("map/manifest.json").read_text())["identity"]["responses"] == ["second", "first", "relu"]
    assert succeed(capsys, "neighbours", "second:1", "map").startswith("most like second:1")
    line = fail_with_run(capsys, "neighbours", "first:1", "map")
    assert "no map of layer 'first'" in line and "only probes first" in line


def test_an_interrupted_run_of_several_layers_is_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from featmap.runs import worker as runs_worker

    real, made = runs_worker.Worker.make, [0]

    def interrupted(self: runs_worker.Worker, unit: object) -> object:
        made[0] += 1
        if made[0] == 4:
            raise KeyboardInterrupt
        return real(self, unit)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(runs_worker.Worker, "make", interrupted)
        with pytest.raises(SystemExit):
            from featmap.cli.app import main

            main([*SEVERAL, "--out", "cut"])
    capsys.readouterr()
    kept = tiny.landed("cut")
    assert len(kept) == 3
    succeed(capsys, *SEVERAL, "--out", "cut")
    succeed(capsys, *SEVERAL, "--out", "whole")
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    for path in Path("whole").rglob("*"):
        if path.is_file() and path.name != "manifest.json":
            assert path.read_bytes() == (Path("cut") / path.relative_to("whole")).read_bytes(), path
