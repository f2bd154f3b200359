"""Descents in bfloat16, whose responses stay those of the untouched network in float32; batches that do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import featmap
from featmap.cli import app
from featmap.errors import RecipeError
from featmap.network.model import Network
from featmap.optimize import limits
from featmap.optimize.recipe import Recipe
from featmap.runs.engine import Execution
from tests.helpers import networks
from tests.helpers.settings import options

CPU = torch.device("cpu")
UNITS = [f"mixed:{k}" for k in range(7)]
pytestmark = [
    pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning"),
    pytest.mark.usefixtures("one_thread"),
]


def inception() -> Network:
    return featmap.load(networks.small_inception(), input_size=32)


def recipe_of(**changes: object) -> Recipe:
    return Recipe.named("pixels", size=32, steps=20, **changes)


def maximised_images(tmp_path: Path, name: str, units: list[str], **changes: object) -> dict[str, np.ndarray]:
    execution = Execution("cpu", out=tmp_path / name)
    found = featmap.maximise(units, inception(), **options(recipe=recipe_of(**changes), execution=execution))
    return {str(u): found["images"].values[0, k] for k, u in enumerate(found["image"].values)}


def test_images_of_both_precisions_are_alike_but_not_the_same(tmp_path: Path) -> None:
    full, half = maximised_images(tmp_path, "a", UNITS), maximised_images(tmp_path, "b", UNITS, precision="bfloat16")
    for unit in UNITS:
        one, two = full[unit] - full[unit].mean(), half[unit] - half[unit].mean()
        assert (one * two).sum() / np.sqrt((one**2).sum() * (two**2).sum()) > 0.9
        assert not np.array_equal(full[unit], half[unit])
        assert half[unit].dtype == np.float32


def test_a_features_image_in_bfloat16_depends_on_nothing_else(tmp_path: Path) -> None:
    every = maximised_images(tmp_path, "all", UNITS, precision="bfloat16", rows=4)
    for name, units in (("alone", UNITS[5:6]), ("backwards", UNITS[::-1])):
        for unit, image in maximised_images(tmp_path, name, units, precision="bfloat16", rows=4).items():
            assert image.tobytes() == every[unit].tobytes(), (name, unit)


def test_responses_are_the_untouched_networks_in_float32(tmp_path: Path) -> None:
    network = inception()
    recipe, execution = recipe_of(precision="bfloat16"), Execution("cpu", out=tmp_path / "run")
    found = featmap.maximise(UNITS, network, **options(recipe=recipe, responses="mixed", execution=execution))
    with torch.no_grad():
        kept: list[torch.Tensor] = []
        handle = network.module.get_submodule("mixed").register_forward_hook(lambda _, __, out: kept.append(out))
        network.module(network.normalise(torch.from_numpy(found["images"].values[0])))
        handle.remove()
    assert kept[0].dtype == torch.float32
    assert np.allclose(found["A"].values[0], kept[0].mean((2, 3)).numpy(), rtol=1e-5, atol=1e-6)


def test_precision_is_identity_and_earlier_runs_keep_theirs() -> None:
    plain = Recipe.named("pixels", size=32)
    half = Recipe.named("pixels", size=32, precision="bfloat16")
    assert "precision" not in plain.identity() and half.identity()["precision"] == "bfloat16"
    assert plain.digest != half.digest
    assert featmap.Recipe.from_identity(half.identity()).identity() == half.identity()


def test_the_command_takes_it_and_refuses_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["optimize", "mixed:1", "--model", "tests.helpers.networks:small_inception", "--size", "32", "--steps", "2"]
    with pytest.raises(SystemExit) as end:
        app.main([*given, "--precision", "bfloat16", "--out", str(tmp_path / "run")])
    assert not end.value.code
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        app.main([*given, "--precision", "half", "--out", str(tmp_path / "other")])
    assert end.value.code == 2
    assert capsys.readouterr().err.strip().endswith("precision 'half' is unknown; allowed: float32, bfloat16")
    assert not (tmp_path / "other").exists()


# ---------------------------------------------------------------- memory


def test_a_batch_that_does_not_fit_is_refused_with_the_number_that_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = inception()
    recipe = Recipe.named("pixels", size=32, rows=64)
    monkeypatch.setattr(limits, "free_memory", lambda _: limits.estimate_memory(network, recipe, ["mixed"], 10) + 3)
    with pytest.raises(RecipeError, match=r"^64 rows at 32 pixels need about .* GB are free; choose 10 rows or fewer$"):
        featmap.maximise(
            UNITS, network, **options(recipe=recipe_of(rows=64), execution=Execution("cpu", out=tmp_path / "run"))
        )
    assert not (tmp_path / "run").exists()
    assert len(maximised_images(tmp_path, "fits", UNITS, rows=10)) == len(UNITS)
    monkeypatch.setattr(limits, "free_memory", lambda _: limits.estimate_memory(network, recipe, ["mixed"], 1))
    with pytest.raises(RecipeError, match="choose a smaller size"):
        featmap.maximise(
            UNITS, network, **options(recipe=recipe_of(rows=2), execution=Execution("cpu", out=tmp_path / "run"))
        )


def test_what_a_batch_needs_grows_with_rows_size_and_depth() -> None:
    network = inception()
    recipe = Recipe.named("pixels", size=32, rows=8)
    larger = Recipe.named("pixels", size=64, rows=8)
    first, last = next(iter(network.trace(32).layers)), "mixed"
    assert limits.estimate_memory(network, recipe, [first]) < limits.estimate_memory(network, recipe, [last])
    assert limits.estimate_memory(network, recipe, [last], 16) == pytest.approx(
        2 * limits.estimate_memory(network, recipe, [last]), abs=2
    )
    assert limits.estimate_memory(network, larger, [last]) > 3.5 * limits.estimate_memory(network, recipe, [last])
    assert limits.free_memory(CPU) > 0
