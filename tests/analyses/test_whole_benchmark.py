"""The benchmark of whole commands: its operations by hand, its process, its rows."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from analyses.benchmarks import steps, whole
from featmap import load
from featmap.errors import FeatmapError
from featmap.optimize.recipe import Octave, Recipe
from tests.helpers import networks

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.usefixtures("one_thread")


def test_operations_are_images_times_steps_times_those_of_a_step() -> None:
    network = load(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False)).eval(), input_size=16)
    recipe = Recipe("two", (Octave(3, (0.1, 0.1), size=8), Octave(5, (0.1, 0.1), size=16)))
    identity = {"recipe": recipe.identity(), "seeds": [0, 1], "layer": "0"}
    one = 2 * 2 * 8 * 3 * 9  # a multiplication and an addition, forward and back, of each pixel
    assert whole.count_operations(network, identity) == 2 * 8 * one * (3 * 8 * 8 + 5 * 16 * 16)
    both = {"recipe": recipe.identity(), "seeds": [0], "layers": ["mixed", "mixed.branch1"]}
    inception = load(networks.small_inception(), input_size=32)
    each = [whole.count_operations(inception, {**identity, "seeds": [0], "layer": la}) for la in both["layers"]]
    assert whole.count_operations(inception, both) == sum(each) > max(each) > 0


def test_seconds_and_memory_are_those_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys, time; block = b'x' * 300_000_000; time.sleep(0.4); sys.exit(int(len(sys.argv) < 7))"
    monkeypatch.setattr(whole, "COMMAND", (sys.executable, "-c", code))
    seconds, memory = whole.run_command(("similarity", "--layer", "x"), "cpu", tmp_path)
    assert seconds > 0.4 and 300 < memory < 500
    monkeypatch.setattr(whole, "COMMAND", (sys.executable, "-c", "import sys; sys.exit(2)"))
    with pytest.raises(FeatmapError, match="featmap similarity --layer x ended with status 2"):
        whole.run_command(("similarity", "--layer", "x"), "cpu", tmp_path)


def test_the_peak_is_that_of_the_faster_of_product_and_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "MATRIX", 64)
    monkeypatch.setattr(steps, "time_call", lambda work, where: 0.5)
    assert whole.peak_rate(CPU, "float32") == 2 * 64**3 / 0.5
    made = list[tuple[str, int]]()

    def faster(work: Callable[[], object], _: torch.device) -> float:
        made.clear()
        work()
        return 0.5 if made[0][0] == "product" else 0.25

    for kind, name in (("product", "matrix product"), ("pointwise", "1 x 1 convolution")):
        monkeypatch.setitem(steps.PEAKS, name, lambda _, __, side, kind=kind: lambda: made.append((kind, side)))
    monkeypatch.setattr(steps, "time_call", faster)
    assert whole.peak_rate(torch.device("cuda"), "bfloat16") == 10 * 2 * 256**3 / 0.25
    assert made == [("pointwise", 256)] * 10, "larger matrices, ten of them between two questions"


@pytest.mark.slow
def test_a_job_is_measured_and_others_are_marked_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # where the command finds the tiny network
    small = ("--model", "tests.helpers.tiny:wide", "--layer", "second", "--size", "16", "--steps", "2")
    monkeypatch.setitem(whole.JOBS, "heatmap", whole.Job("a small map", small, "cpu", "soon"))
    monkeypatch.setattr(steps, "MATRIX", 64)
    numbers, page = tmp_path / "whole.json", tmp_path / "README.md"
    whole.main(job=["heatmap"], out=numbers, readme=page)
    found = json.loads(numbers.read_text())
    assert list(found) == ["heatmap"] and found["heatmap"]["seconds"] > found["heatmap"]["descents_s"] > 0
    assert (found["heatmap"]["size"], found["heatmap"]["steps"]) == (16, 2)
    rows = [
        line for line in page.read_text().splitlines() if line.startswith("| a small map") or "not measured" in line
    ]
    assert len(rows) == len(whole.JOBS) and rows[0].startswith("| a small map; 16 pixels, 2 steps |")
    assert "soon" in rows[0] and "cuda | not measured" in rows[2]
    with pytest.raises(FeatmapError, match="job 'x' is unknown; allowed: heatmap, wide, network, screening"):
        whole.main(job=["x"], out=numbers, readme=page)


def test_a_job_of_another_command_has_no_share_of_the_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    layers = ("--layers", "second", "first", "--features", "0-1", "0-1", "--screen", "--top", "1", "--checks", "3")
    small = ("--model", "tests.helpers.tiny:small", *layers, "--size", "16", "--steps", "2")
    monkeypatch.setitem(whole.JOBS, "screening", whole.Job("a small screening", small, "cpu", "soon", "interact"))
    found = whole.measure("screening")
    assert found["seconds"] > found["descents_s"] > 0 and found["size"] == 16 and "gflops" not in found
    assert "| a small screening; 16 pixels, 2 steps |" in (page := whole.format_table({"screening": found}))
    assert page.rstrip().splitlines()[-1].endswith("| - | soon |")
    late = whole.Job("a small screening", small, "cpu", "soon", "interact", found["seconds"] / 1.25)
    monkeypatch.setitem(whole.JOBS, "screening", late)
    assert whole.format_table({"screening": found}).rstrip().endswith("| - | soon: missed by 25% |")


def test_starts_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys, time; time.sleep(0.3 if sys.argv[1] == 'layers' else 0)"
    monkeypatch.setattr(whole, "COMMAND", (sys.executable, "-c", code))
    found = whole.time_starts()
    assert list(found) == ["--help", "layers"] and found["layers"] > found["--help"] + 0.2
    written = whole.format_table({"starts": found})
    assert f"`featmap layers` {found['layers']:.2f} s (aim: 4)" in written
