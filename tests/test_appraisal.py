"""Verdicts by fixed thresholds, and the page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from featmap import appraisal, marks, trialplots, trials
from featmap.appraisal import verdict
from featmap.errors import FeatmapError
from featmap.trials import Evidence, Figure, Trial, Validation

NAMES = [f"a:{k}" for k in range(4)]


def trial(figures: dict[str, tuple[float | None, ...]], reliable: list[bool] | None = None) -> Trial:
    """A trial with figures (value, low, p) and features of given reliability."""
    made = {
        name: Figure("a", "trained", name, *(list(v) + [None] * 4)[:2], None, (list(v) + [None] * 4)[2], 3)
        for name, v in figures.items()
    }
    everyone = np.ones(4, dtype=bool)
    evidence = Evidence("a", NAMES, everyone, everyone, np.zeros((2, 4, 4)), 1)
    table = pd.DataFrame({"reliable": pd.array(reliable or [True] * 4, dtype="boolean")}, index=NAMES)
    return Trial(evidence, made, table)


def said(of: Trial, random: Trial | None = None) -> str:
    return "\n".join(verdict(of, random).lines())


@pytest.mark.parametrize(
    ("r", "words"),
    [
        (0.995, "may: quote single"),
        (0.95, "may not: quote single"),
        (0.5, "rest anything on this map"),
        (None, "undefined"),
    ],
)
def test_repeatability_decides_what_may_be_quoted(r: float | None, words: str) -> None:
    text = said(trial({"repeatability_of_map": (r,), "seeds_needed": (4.0,)}))
    assert words in text
    assert ("--seeds 4" in text) == (r is not None and r < 0.99)


def test_unreliable_features_are_named() -> None:
    figures = {"repeatability_of_map": (0.995,), "unreliable_features": (2.0,)}
    assert "the 2 features marked as unreliable (a:1, a:3)" in said(trial(figures, [True, False, True, False]))


@pytest.mark.parametrize(
    ("clusters", "ari", "words"),
    [
        (0, 0.9, "may not: speak of clusters"),
        (5, 0.9, "may: name the 5 clusters"),
        (5, 0.4, "may not: assign single features"),
    ],
)
def test_clusters_need_nulls_and_seeds(clusters: float, ari: float, words: str) -> None:
    figures = {"clusters": (clusters,), "ari_of_seeds": (ari,), "ari_of_louvain": (0.92,)}
    assert words in said(trial(figures))


def test_photographs_decide_what_may_be_carried_over() -> None:
    for r, p, words in (
        (0.9, 0.001, "may: read S as similarity over photographs"),
        (0.6, 0.001, "may not: carry single similarities over"),
        (0.1, 0.001, "may not: carry any of it over"),
        (0.9, 0.2, "may not: carry any of it over"),
        (None, None, "may not: carry any of it over"),
    ):
        assert words in said(trial({"photographs_pearson": (r, 0.5, p), "photographs_reliability": (0.95,)}))
    one, null = trial({"photographs_pearson": (0.6, 0.5, 0.001)}), trial({"photographs_pearson": (0.55, 0.5, 0.001)})
    assert "may not: credit training" in said(one, null)
    assert "credit training" not in said(one, trial({"photographs_pearson": (0.2, 0.1, 0.01)}))
    assert "none were shown" in said(trial({}))


def test_the_path_is_judged_by_its_worst_layer() -> None:
    assert "all along the path" in said(trial({"path:b": (0.9,), "path:a": (0.85,)}))
    assert "at b the score is 0.300" in said(trial({"path:b": (0.3,), "path:a": (0.85,)}))
    assert "take the images at all" in said(trial({"path:b": (0.9,), "path:a": (0.2,)}))
    assert "no more alike than any" in said(trial({"path:a": (None,)}))


def test_every_figure_has_a_sentence_and_the_page_shows_it() -> None:
    figures = dict.fromkeys([*appraisal.SENTENCES, "path:a"], (0.5, 0.4, 0.01))
    found = Validation(Path("x"), {"a": trial(figures)}, {}, {"a": {}}, "no reason")
    text = appraisal.page("Title", "network", found, ["a note"])
    assert text.count("\n| ") == len(figures) + 1
    assert "nan" not in text and "{" not in text and "With random weights: none (no reason)." in text
    undefined = Validation(Path("x"), {"a": trial(dict.fromkeys(figures, (None,)))}, {}, {"a": {}})
    assert appraisal.page("T", "n", undefined, []).count("Undefined:") == len(figures)
    assert trials.figures_frame(list(found.trained["a"].figures.values()))["value"].dtype == "Float64"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.99871, "0.9987"),
        (0.98996, "0.9900"),
        (0.98991, "0.9899"),
        (0.5, "0.500"),
        (12.34, "12.3"),
        (1, "1.000"),
    ],
)
def test_numbers_as_the_page_writes_them(value: float | None, text: str) -> None:
    assert appraisal.written(value) == text


def test_marks_go_on_names_and_only_where_something_is_known() -> None:
    table = pd.DataFrame(index=pd.Index(NAMES))
    marks.enter(table, {})
    assert "reliable" not in table and marks.named(table, NAMES) == NAMES and marks.note(table, NAMES) == ""
    marks.enter(table, {"a:0": 0.95, "a:1": 0.89, "a:2": None})
    assert table["reliable"].to_list() == [True, False, False, pd.NA]
    assert marks.named(table, NAMES) == ["a:0", "a:1 ?", "a:2 ?", "a:3"]
    assert "2 of them unreliable" in marks.note(table, NAMES)


def test_figures_are_drawn_of_what_there_is() -> None:
    values = np.linspace(-1, 1, 50)
    cloud = trialplots.Cloud(values, values, "x", "y", "a note with $ in it")
    steps = [trialplots.Step("first", 0.5, 0.4, 0.6, 0.2), trialplots.Step("second", None)]
    for clouds, path in (([cloud], steps), ([], steps), ([cloud], [])):
        plt.close(trialplots.agreements(clouds, path, "title"))
    plt.close(trialplots.curves([("a", "order", [("S", [0, 1], [1, 0])])], "title"))
    with pytest.raises(FeatmapError, match="nothing to draw"):
        trialplots.agreements([], [], "title")
    with pytest.raises(FeatmapError, match="nothing to draw"):
        trialplots.curves([], "title")
