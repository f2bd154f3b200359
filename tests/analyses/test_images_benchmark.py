"""The benchmark of images on planted networks: rows of recipes and tools, its table, and what it does not repeat."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from analyses.benchmarks import images, opponents
from analyses.benchmarks.opponents import Opponent
from featmap import Network
from featmap.cli.judge import JudgeOptions
from featmap.cli.options import NetworkOptions
from featmap.errors import FeatmapError
from featmap.image_ops import pink_noise
from tests.helpers import judges, twofold

pytestmark = [
    pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning"),
    pytest.mark.usefixtures("one_thread"),
]


def compare(folder: Path, photographs: Path | None, **changes: Any) -> pd.DataFrame:
    """Run the benchmark on the classifier of colours; return its statistics."""
    settings: dict[str, Any] = {
        "photographs": photographs,
        "recipes": "fast,interact",
        "opponents": "",
        "layers": "features",
        "classes": 3,
        "features": judges.CLASSES,
        "units": None,
        "size": judges.SIZE,
        "draw": 0,
        "seed": 0,
        "out": folder,
    }
    images.main(
        NetworkOptions("tests.helpers.judges:colours", input_size=judges.SIZE),
        JudgeOptions(["tests.helpers.judges:same_colours"], by_input_size=["16"]),
        **settings | changes,
    )
    (table,) = folder.glob("*/images.csv")
    return pd.read_csv(table)


def noisy(network: Network, layer: str, channels: Sequence[int], seed: int) -> Tensor:
    """A tool whose images are noise."""
    return pink_noise(len(channels), 24)


def failing(network: Network, layer: str, channels: Sequence[int], seed: int) -> Tensor:
    """A tool that was not written for this network."""
    raise KeyError("no such layer")


TOOLS = (
    Opponent("noise", 24, "1/f noise", noisy, batched=True),
    Opponent("failing", 24, "fails", failing),
    Opponent("absent", 24, "is not installed", noisy, package="absent"),
)


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "OPPONENTS", TOOLS)
    monkeypatch.setitem(opponents.MODULES, "absent", "no_module_of_this_name")


def test_recipes_and_tools_are_measured_alike(tmp_path: Path, tools: None, capsys: pytest.CaptureFixture[str]) -> None:
    photographs = twofold.photographs(tmp_path / "photographs", count=40)
    found = compare(tmp_path / "out", photographs, opponents="noise,failing,absent")
    printed = capsys.readouterr()
    assert list(found["recipe"].unique()) == ["fast", "interact", "noise"]
    assert (
        "absent is left out" in printed.err and "failing is left out: it fails on this network (KeyError" in printed.err
    )

    def value(recipe: str, layer: str, name: str) -> float:
        return found.query("recipe == @recipe and layer == @layer and name == @name")["value"].item()

    assert value("fast", "fc", "top1") == 1
    assert value("fast", "features", "among_images") > value("noise", "features", "among_images")
    assert set(found.loc[found["name"] == "top1", "recipe"]) == {"fast", "interact"}
    assert (found["name"] == "seconds").sum() == 3
    rows = [line.split(" | ") for line in printed.out.splitlines() if line.startswith("| ")]
    assert [row[0].strip("| ") for row in rows] == ["recipe", "fast", "interact", "noise"]
    assert len({len(row) for row in rows}) == 1 and rows[1][2].startswith("1.00 / 1.00 / 0.00")


def test_what_is_measured_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compare(tmp_path, None, recipes="fast", features=0)
    made: list[str] = []
    real = images.try_recipe

    def counted(comparison: images.Comparison, recipe: Any, watcher: Any) -> Any:
        made.append(recipe.name)
        return real(comparison, recipe, watcher)

    monkeypatch.setattr(images, "try_recipe", counted)
    again = compare(tmp_path, None, recipes="fast,interact", features=0)
    assert made == ["interact"]
    pd.testing.assert_frame_equal(again[again["recipe"] == "fast"], first)
    compare(tmp_path, None, recipes="fast", features=0, size=20)  # another size is another recipe
    assert made == ["interact", "fast"]


def test_classes_may_be_named(tmp_path: Path) -> None:
    found = compare(tmp_path, None, recipes="fast", features=0, units="1,2")
    assert found.loc[found["name"] == "top1", "count"].item() == 2


def test_nothing_to_make_and_unknown_tools_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FeatmapError, match="nothing to make"):
        compare(tmp_path, None, classes=0, features=0)
    with pytest.raises(FeatmapError, match="is unknown; allowed: article"):
        compare(tmp_path, None, opponents="lucid")


def test_a_tool_gets_a_network_of_its_own() -> None:
    network = Network(judges.original(), "original", "its own", "0", mean=(0.5, 0.5, 0.5), std=(2.0, 2.0, 2.0))
    copy = images.copy_network(network)
    assert copy.mean == network.mean and copy.std == network.std and copy.module is not network.module
    with torch.no_grad():
        copy.module.features.conv.weight.zero_()
    assert network.module.features.conv.weight.abs().sum() > 0
