"""The benchmark that counts the pairs whose interaction is defined."""

from __future__ import annotations

from pathlib import Path

import pytest

import featmap
from analyses.benchmarks import defined, records
from featmap.errors import FeatmapError
from tests.helpers import tiny
from tests.helpers.settings import options


def test_a_run_is_counted_by_status(tmp_path: Path) -> None:
    featmap.interact(
        network=tiny.small(),
        layers=[("second", "0-2"), ("first", "0-1")],
        **options("interact", out=tmp_path / "run", size=16, steps=3, seeds=1),
    )
    found = defined.count(tmp_path / "run")
    table = (tmp_path / "run" / "pairs.csv").read_text().splitlines()[1:]
    assert found["layers"] == ["second", "first"] and found["pairs"] == len(table) == 6
    assert found["statuses"].get("ok", 0) == sum(line.split(",")[2] == "ok" for line in table)
    assert found["features"] == [[0, 1, 2], [0, 1]]
    assert found["size"] == 16 and found["seeds"] == 1 and found["recipe"] == "interact"


def test_other_statuses_are_named() -> None:
    one = {
        "source": "net",
        "features": [[0, 1], [4, 5]],
        "layers": ["a", "b"],
        "size": 8,
        "seeds": 1,
        "pairs": 4,
        "nonlinearity": None,
        "floor": None,
    }
    page = defined.format_page([one | {"statuses": {"ok": 3, "dead partner": 1}, "above_floor": 0}])
    assert "| 2 x 2 | 8 | 1 | 4 | 3 | dead partner: 1 | undefined | undefined | 0 |" in page


def test_the_table_is_made_from_the_stored_counts() -> None:
    assert defined.format_page(records.read_results(defined.STORE)) in records.README.read_text(encoding="utf-8")


def test_another_kind_of_folder_is_refused(tmp_path: Path) -> None:
    featmap.interact(
        ["first:0", "first:1"],
        network=tiny.small(),
        **options("interact", out=tmp_path / "run", size=16, steps=3, seeds=1),
    )
    with pytest.raises(FeatmapError, match="is no finished run of featmap interact --layers A B"):
        defined.count(tmp_path / "run")
