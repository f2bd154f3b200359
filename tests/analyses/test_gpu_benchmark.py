"""The benchmark of a GPU, in the small form that a CPU computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from analyses.benchmarks import gpu, steps
from featmap import Recipe, load
from tests.helpers import tiny

CPU = torch.device("cpu")


@pytest.fixture
def small() -> gpu.Plan:
    recipe = Recipe.named("fast", size=16, steps=2, rows=2).resolved(16)
    return gpu.Plan(load(tiny.small(), input_size=16), "second", CPU, 16, (2, 4), 1, 32, recipe)


def test_the_small_form_runs_to_its_end_and_says_that_no_gpu_was_measured(
    small: gpu.Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "ROUNDS", 1)
    monkeypatch.setattr(gpu, "plan", lambda *_: small)
    out, readme = tmp_path / "gpu.json", tmp_path / "README.md"
    gpu.main(device="cpu", model="tests.helpers.tiny:small", layer="second", out=out, readme=readme)
    (found,) = json.loads(out.read_text()).values()
    parts = found["parts"]
    assert list(parts) == ["equality", "rows", "layouts", "job"]
    assert parts["equality"]["gradient"] == parts["equality"]["responses"] == 0.0
    assert [(s["precision"], s["rows"]) for s in parts["rows"]["steps"]] == [
        (name, rows) for name in ("float32", "bfloat16") for rows in (2, 4)
    ]
    assert all(s["ms"] > 0 for s in parts["rows"]["steps"])
    assert "not measured on any GPU" in readme.read_text()


def test_the_whole_job_is_extrapolated_to_all_features(small: gpu.Plan) -> None:
    job = gpu.measure_job(small)
    channels = [small.network.layer(name).channels for name in ("first", "second")]
    assert job["features"] in (sum(channels), channels[1]) and job["seconds"] > 0
    assert job["measured_images"] == 2 * job["layers"]


def test_what_fails_or_comes_too_late_is_not_measured_and_says_why(
    small: gpu.Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: gpu.Plan) -> dict[str, object]:
        raise torch.OutOfMemoryError("no room")

    landed: list[list[str]] = []
    monkeypatch.setattr(gpu, "PARTS", {"rows": broken})
    found = gpu.measure(small, 1.0, lambda parts: landed.append(list(parts)))
    assert "no room" in found["rows"]["reason"] and landed == [["rows"]]
    assert gpu.measure(small, -1.0, lambda parts: None)["rows"]["reason"] == "the -1 minutes were over"


def test_the_page_shows_what_a_gpu_reached() -> None:
    rows = {"steps": [{"precision": "float32", "rows": 16, "ms": 1.5, "share": 0.5, "GB": 2.0}]}
    rows["steps"].append({"precision": "TF32", "rows": 512, "ms": None, "share": None, "GB": None})
    layouts = {"steps": [{"name": "contiguous", "rows": 64, "changed_ms": 2.0, "plain_ms": 1.0}]}
    parts = {
        "equality": {"gradient": 1e-6, "responses": 2e-6},
        "rows": rows,
        "layouts": layouts,
        "job": {"reason": "x"},
    }
    page = gpu.format_page({"A GPU": {"kind": "cuda", "network": "n", "layer": "l", "parts": parts}})
    assert "gradient 1.0e-06, responses 2.0e-06" in page and "| float32 | 16 | 1.50 | 0.50 | 2.00 |" in page
    assert "| TF32 | 512 | does not fit |" in page and "Whole job: not measured (x)" in page
    assert "not measured on any GPU" not in page
