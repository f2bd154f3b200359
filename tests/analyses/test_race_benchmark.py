"""The race: which recipe reaches a tool on the same classes and features, and how many times faster."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analyses.benchmarks import race, records
from analyses.benchmarks.image_records import RECIPE, STORE, TOOL, Record, RecordFile
from featmap.errors import FeatmapError

CLASSES, HIDDEN = [f"fc:{k}" for k in range(4)], [f"conv:{k}" for k in range(2)]


def record(way: str, ranks: list[float], percentiles: list[float], seconds: float, kind: str = RECIPE) -> Record:
    units = CLASSES[: len(ranks)] + HIDDEN[: len(percentiles)]
    values = {"rank": [*ranks, *[None] * len(percentiles)], "percentile": [0.5] * len(ranks) + percentiles}
    return Record(
        source="mine",
        weights="0",
        way=way,
        kind=kind,
        words="",
        seed=0,
        draw=1,
        settings=way,
        size="8",
        classes="fc",
        units=units,
        seconds=seconds,
        transfer={"other": values},
    )


FAST, NATURAL = record("fast", [0, 3, 0, 9], [0.8, 0.6], 1.0), record("natural", [0, 0, 0, 5], [0.9, 0.7], 10.0)
TOOLS = [record("slow tool", [0, 1, 2, 3], [0.9, 0.6], 60.0, TOOL), record("sharp tool", [0, 0], [0.99], 30.0, TOOL)]


def test_the_quickest_recipe_that_reaches_a_tool_wins() -> None:
    heats = {(h.tool, h.measure): h for h in race.run_heats([FAST, NATURAL, *TOOLS], 1)}
    # top-1 of the slow tool is 1 of 4: fast has 2 of 4 at 1 s; its percentile 0.75 is reached by natural's 0.8 alone
    one = heats["slow tool", "top-1"]
    assert (one.winner, one.ratio, one.reached, one.count) == ("fast", 60.0, 0.25, 4)
    assert one.ours == {"fast": (0.5, 1.0), "natural": (0.75, 10.0)}
    two = heats["slow tool", "percentile"]
    assert (two.winner, two.ratio, two.reached) == ("natural", 6.0, 0.75)
    # the sharp tool made two classes and one feature, and the recipes are compared on these
    three = heats["sharp tool", "top-1"]
    assert (three.winner, three.ratio, three.count) == ("natural", 3.0, 2) and three.ours["fast"][0] == 0.5
    four = heats["sharp tool", "percentile"]
    assert four.winner is None and np.isnan(four.ratio) and four.count == 1
    page = race.format_page([FAST, NATURAL, *TOOLS], 1)
    assert "| slow tool | 4 | 0.25 | 60 |" in page and "| none | not reached |" in page


def test_a_tool_that_is_never_ranked_first_sets_no_mark() -> None:
    blind = record("blind tool", [7, 1], [0.5], 90.0, TOOL)
    classes, hidden = race.run_heats([FAST, NATURAL, blind], 1)
    assert classes.reached == 0 and classes.winner is None and np.isnan(classes.ratio)
    assert (hidden.winner, hidden.ratio) == ("fast", 90.0)
    (line,) = [x for x in race.format_page([FAST, NATURAL, blind], 1).splitlines() if "| blind tool | 2 |" in x]
    assert line.endswith("|  | no mark to reach |")


def test_seeds_are_averaged_and_the_articles_recipes_are_opponents() -> None:
    again = replace(FAST, seed=1, transfer={"other": {"rank": [5, 5, 5, 5, None, None]}}, seconds=3.0)
    article = record("article-normalised", [7, 7, 7, 0], [], 100.0)
    (one,) = race.run_heats([FAST, again, article], 1)
    assert (one.tool, one.ours["fast"], one.winner, one.ratio) == ("article-normalised", (0.25, 2.0), "fast", 50.0)


def test_a_draw_without_tools_is_refused(tmp_path: Path) -> None:
    store = RecordFile(tmp_path / "images.json")
    store.add(FAST)
    with pytest.raises(FeatmapError, match=r"draw 1: no tool has images in images\.json"):
        race.main(draw=1, store=store.path, readme=tmp_path / "README.md")
    for tool in (NATURAL, *TOOLS):
        store.add(tool)
    race.main(draw=1, store=store.path, readme=tmp_path / "README.md")
    assert (tmp_path / "race.png").is_file() and "times faster" in (tmp_path / "README.md").read_text()
    race.main(draw=1, store=store.path, readme=tmp_path / "README.md", check=True)
    store.add(replace(TOOLS[0], seconds=61.0))
    with pytest.raises(FeatmapError, match="disagree"):
        race.main(draw=1, store=store.path, readme=tmp_path / "README.md", check=True)


def test_the_table_in_the_readme_is_that_of_the_stored_values() -> None:
    race.main(draw=1, store=STORE, readme=records.README, check=True)
