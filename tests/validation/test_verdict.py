"""Verdicts by fixed thresholds, and the page of a validation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from featmap.errors import FeatmapError
from featmap.mapping import flags
from featmap.plotting import scatter
from featmap.validation.evidence import Evidence
from featmap.validation.results import (
    BOOTSTRAP,
    FEATURE_RANGE,
    RANGE,
    Evaluation,
    Statistic,
    Validation,
    statistics_frame,
)
from featmap.validation.statistics import _mean_ari
from featmap.validation.verdict import SENTENCES, format_interval, format_page, format_value, reach_verdict

NAMES = [f"a:{k}" for k in range(4)]


def evaluate(values: dict[str, tuple[float | None, ...]], reliable: list[bool] | None = None) -> Evaluation:
    """An evaluation with statistics (value, low, p) and features that are reliable or not."""
    statistics = {
        name: Statistic("a", "trained", name, *(list(v) + [None] * 4)[:2], None, (list(v) + [None] * 4)[2], 3)
        for name, v in values.items()
    }
    live = np.ones(4, dtype=bool)
    evidence = Evidence("a", NAMES, live, live, np.zeros((2, 4, 4)), 1)
    table = pd.DataFrame({"reliable": np.array(reliable or [True] * 4, dtype=float)}, index=NAMES)
    return Evaluation(evidence, statistics, table)


def verdict_text(evaluation: Evaluation, random: Evaluation | None = None) -> str:
    return "\n".join(reach_verdict(evaluation, random).lines())


@pytest.mark.parametrize(
    ("r", "words"),
    [
        (0.995, "may: quote single"),
        (0.95, "may not: quote single"),
        (0.5, "base any conclusion on this map"),
        (None, "undefined"),
    ],
)
def test_repeatability_decides_what_may_be_quoted(r: float | None, words: str) -> None:
    text = verdict_text(evaluate({"repeatability_of_map": (r,), "seeds_needed": (4.0,)}))
    assert words in text
    assert ("a run of 4 seeds" in text) == (r is not None and r < 0.99)


def test_unreliable_features_are_named() -> None:
    values = {"repeatability_of_map": (0.995,), "unreliable_features": (2.0,)}
    assert "the 2 features marked as unreliable (a:1, a:3)" in verdict_text(
        evaluate(values, [True, False, True, False])
    )


def test_single_similarities_are_limited_to_their_stimuli() -> None:
    values = {"repeatability_of_map": (0.995,), "stimuli_reliability": (0.86,)}
    assert "of these 4 features over their 4 images" in verdict_text(evaluate(values))
    assert "to other stimuli: over the choice of the 4 images their reliability is at least 0.860" in verdict_text(
        evaluate(values)
    )
    assert "other stimuli" not in verdict_text(evaluate(values | {"stimuli_reliability": (0.995,)}))


@pytest.mark.parametrize(
    ("clusters", "ari", "itself", "words"),
    [
        (0, 0.9, 0.92, "may not: speak of clusters"),
        (5, 0.9, 0.92, "may: name the 5 clusters"),
        (5, 0.4, 0.92, "may not: assign single features"),
        (5, 0.85, 0.99, "may not: assign single features"),
        (5, 0.85, 0.9, "may: name the 5 clusters"),
        (5, None, None, "may not: assign single features"),
    ],
)
def test_clusters_need_nulls_and_seeds(clusters: float, ari: float | None, itself: float | None, words: str) -> None:
    text = verdict_text(evaluate({"clusters": (clusters,), "ari_of_seeds": (ari,), "ari_of_louvain": (itself,)}))
    assert words in text
    assert ("fewer than 11 features" in text) == (clusters > 0)  # k is 10


def with_photographs(
    share: float | None,
    low: float | None,
    r: tuple[float | None, ...] = (0.6, 0.5, 0.001),
    reliability: float | None = 0.95,
) -> Evaluation:
    """An evaluation with photographs, whose agreement reaches a share of its ceiling."""
    values: dict[str, tuple[float | None, ...]] = {"photographs_pearson": r, "photographs_reliability": (reliability,)}
    return evaluate(values | {"photographs_share": (share, low), "photographs_ceiling": (0.7, 0.6)})


def test_the_share_of_the_ceiling_decides_what_may_be_carried_over() -> None:
    for share, low, p, words in (
        (0.95, 0.91, 0.001, "may: read S as similarity over photographs"),
        (0.95, 0.7, 0.001, "may not: carry single similarities over to photographs (this needs the lower end"),
        (1.05, 0.95, 0.001, "may: read S as similarity over photographs"),
        (0.8, 0.7, 0.001, "may not: carry single similarities over"),
        (0.1, 0.05, 0.001, "may not: carry any of it over"),
        (0.95, 0.7, 0.2, "may not: carry any of it over"),
        (0.6, -0.4, 0.03, "may not: carry any of it over to photographs: the interval reaches down to 0.4"),
        (0.8, None, 0.03, "may not: carry any of it over to photographs: the ceiling is undefined"),
        (None, None, 0.001, "may not: carry any of it over to photographs: the ceiling is undefined"),
        (None, None, None, "may not: carry any of it over"),
    ):
        text = verdict_text(with_photographs(share, low, (None if p is None else 0.6, 0.5, p)))
        assert words in text
        assert ("as a rule" in text) == (low == 0.7 and p == 0.001)
        assert ("may: read S" in text) == (p == 0.001 and low is not None and low > 0.9)
    assert "may not: carry any of it over" in verdict_text(with_photographs(0.95, 0.91, (0.12, 0.1, 0.001)))
    for reliability in (0.9, None):  # with few photographs the share is too large: it decides nothing
        few = verdict_text(with_photographs(1.12, 0.95, reliability=reliability))
        assert "may: read S" not in few and "as a rule" in few and "remedy: more photographs" in few.lower()
        assert "photographs of a reliability of 0.95" in few
    assert "more photographs" not in verdict_text(with_photographs(0.95, 0.7))
    assert "ceiling 0.700" in verdict_text(with_photographs(0.95, 0.91))
    one, null = with_photographs(0.8, 0.7), evaluate({"photographs_pearson": (0.55, 0.5, 0.001)})
    assert "may not: credit training" in verdict_text(one, null)
    assert "credit training" not in verdict_text(one, evaluate({"photographs_pearson": (0.2, 0.1, 0.01)}))
    assert "none were given" in verdict_text(evaluate({}))


def test_a_ceiling_that_is_undefined_says_why() -> None:
    one = with_photographs(None, None)
    one.statistics["photographs_share"] = replace(one.statistics["photographs_share"], note="5 photographs")
    assert "the ceiling is undefined (5 photographs; " in verdict_text(one)
    text = format_page("T", "n", Validation(Path("x"), {"a": one}, {}, {"a": {}}), [])
    assert "Undefined: 5 photographs." in text
    del one.statistics["photographs_share"]  # a validation of an earlier version
    assert "the ceiling is undefined" in verdict_text(one)


def test_weight_claims_exceed_zero_and_random_weights() -> None:
    for r, low, null, may in (
        (0.6, 0.5, None, True),
        (0.6, 0.5, 0.3, True),
        (0.6, 0.5, 0.55, False),
        (0.265, -0.138, 0.241, False),
        (0.265, -0.138, None, False),
        (0.6, None, None, False),
    ):
        other = None if null is None else evaluate({"incoming_weights": (null, 0.0, 0.01)})
        text = verdict_text(evaluate({"incoming_weights": (r, low, 0.001)}), other)
        assert ("may: say that features of similar incoming weights" in text) == may
        assert ("may not: say that features of similar incoming weights" in text) != may
    assert "may not: say that features" in verdict_text(evaluate({"incoming_weights": (0.6, 0.5, 0.2)}))


def test_images_that_photographs_outdo_are_not_called_maximising() -> None:
    for multiple, better, outdone in ((0.853, 0.1, True), (1.5, 0.3, True), (1.5, 0.25, False), (2.0, 0.0, False)):
        text = verdict_text(evaluate({"multiple": (multiple,), "below_best_photograph": (better,)}))
        assert ("may not: call the images maximising" in text) == outdone


def test_the_path_is_judged_by_its_worst_layer_at_the_lower_end() -> None:
    typical = "may: regard the images as typical preferred stimuli"
    good = evaluate({"path:b": (0.9, 0.85), "path:a": (0.95, 0.9), "path_passed_over": (3.0,)})
    assert f"{typical} at the 2 layers measured, of 5 on the path" in verdict_text(
        good
    ) and "all along" not in verdict_text(good)
    worse = verdict_text(evaluate({"path:b": (0.3, 0.2), "path:a": (0.85, 0.81)}))
    assert (
        f"{typical} at a itself" in worse
        and "may not: assume that they are processed as photographs are" in worse
        and "lowest at b: 0.300" in worse
    )
    assert "assume at all that the images are processed as photographs are" in verdict_text(
        evaluate({"path:b": (0.9, 0.85), "path:a": (0.2, 0.1)})
    )
    for reaches_below in ((0.849, 0.754), (0.9,)):
        text = verdict_text(evaluate({"path:b": (0.95, 0.9), "path:a": reaches_below}))
        assert typical not in text and "may not: assume without reserve" in text
    assert "no more similar than others" in verdict_text(evaluate({"path:a": (None,)}))
    wide = evaluate({"path:b": (0.45, 0.1), "path:a": (0.85, 0.75)})
    wide.statistics["path:b"] = replace(wide.statistics["path:b"], high=0.7)
    assert "without reserve" in verdict_text(
        wide
    ) and "lowest at b: 0.450 [0.100, 0.700]; a itself: 0.850" in verdict_text(wide)


def test_a_path_that_random_weights_reach_too_proves_nothing() -> None:
    one = evaluate({"path:b": (0.9, 0.85), "path:a": (0.95, 0.9)})
    assert "may: regard the images" in verdict_text(one, evaluate({"path:b": (1.0, 0.9), "path:a": (0.5, 0.4)}))
    text = verdict_text(one, evaluate({"path:b": (0.1, 0.0), "path:a": (0.92, 0.8)}))
    assert "may: regard the images" not in text and "with random weights their path scores 0.920 at a too" in text


def test_empty_intervals_are_not_printed_and_others_are_named() -> None:
    assert (
        format_interval(0.4, 0.4) == format_interval(None, None) == ""
        and format_interval(0.4, 0.5) == " [0.400, 0.500]"
    )
    statistics = {
        "repeatability": Statistic("a", "trained", "repeatability", 0.5, 0.4, 0.6, interval=BOOTSTRAP),
        "multiple": Statistic("a", "trained", "multiple", 2.0, 1.0, 3.0, interval=FEATURE_RANGE),
        "ari_of_seeds": Statistic("a", "trained", "ari_of_seeds", 0.4, 0.4, 0.4, interval=RANGE),
        "ari_of_louvain": Statistic("a", "trained", "ari_of_louvain", None),
        "photographs_corrected": Statistic("a", "trained", "photographs_corrected", None, note="what is too low"),
    }
    one = evaluate({})
    one.statistics = statistics
    text = format_page("T", "n", Validation(Path("x"), {"a": one}, {}, {"a": {}}), [])
    assert (
        "| 0.400 to 0.600 | 95 %, bootstrap over features |" in text and "| 1.000 to 3.000 | 90 % of features |" in text
    )
    assert "| ari of seeds | 0.400 | – | – |" in text and "Undefined: every partition is one cluster" in text
    assert "Undefined: what is too low." in text


def test_every_statistic_has_a_sentence_on_the_page() -> None:
    values = dict.fromkeys([*SENTENCES, "path:a"], (0.5, 0.4, 0.01))
    validation = Validation(Path("x"), {"a": evaluate(values)}, {}, {"a": {}}, "no reason")
    text = format_page("Title", "network", validation, ["a note"])
    assert text.count("\n| ") == len(values) + 1
    assert "nan" not in text and "{" not in text and "With random weights: none (no reason)." in text
    undefined = Validation(Path("x"), {"a": evaluate(dict.fromkeys(values, (None,)))}, {}, {"a": {}})
    assert format_page("T", "n", undefined, []).count("Undefined:") == len(values)
    assert statistics_frame(list(validation.trained["a"].statistics.values()))["value"].dtype == "float64"


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
def test_number_format_of_the_page(value: float | None, text: str) -> None:
    assert format_value(value) == text


def test_only_unreliable_features_are_marked() -> None:
    table = pd.DataFrame(index=pd.Index(NAMES))
    flags.add_reliability(table, {})
    assert (
        "reliable" not in table and flags.marked_names(table, NAMES) == NAMES and flags.title_note(table, NAMES) == ""
    )
    flags.add_reliability(table, {"a:0": 0.95, "a:1": 0.89, "a:2": None})
    np.testing.assert_array_equal(table["reliable"], [1, 0, 0, np.nan])
    assert flags.marked_names(table, NAMES) == ["a:0", "a:1 ?", "a:2 ?", "a:3"]
    assert "2 of them unreliable" in flags.title_note(table, NAMES)
    table = pd.DataFrame({"nearest_1": ["a:1", "a:0", None, "a:3"], "similarity_1": 0.5}, index=pd.Index(NAMES))
    for _ in range(2):
        flags.add_reliability(table, {"a:0": 0.95, "a:1": 0.89})
        columns = ["nearest_1", "nearest_1_reliable", "similarity_1", "reliability", "reliable"]
        assert list(table.columns) == columns
        np.testing.assert_array_equal(table["nearest_1_reliable"], [0, 1, np.nan, np.nan])


def test_figures_are_drawn_of_the_data_that_exist() -> None:
    values = np.linspace(-1, 1, 50)
    cloud = scatter.PairCloud(values, values, "x", "y", "a note with $ in it")
    steps = [scatter.LayerScore("first", 0.5, 0.4, 0.6, 0.2), scatter.LayerScore("second", None)]
    for clouds, path in (([cloud], steps), ([], steps), ([cloud], [])):
        plt.close(scatter.agreement_panels(clouds, path, "title"))
    plt.close(scatter.recovery_curves([("a", "order", [("S", [0, 1], [1, 0])])], "title"))
    with pytest.raises(FeatmapError, match="nothing to draw"):
        scatter.agreement_panels([], [], "title")
    with pytest.raises(FeatmapError, match="nothing to draw"):
        scatter.recovery_curves([], "title")


def test_trivial_partitions_do_not_count_as_agreement() -> None:
    one, single, two = np.zeros(4, dtype=int), np.arange(4), np.array([0, 0, 1, 1])
    mean, _, count = _mean_ari([(one, one), (single, single)])
    assert np.isnan(mean.value) and count == 0
    mean, _, count = _mean_ari([(one, one), (two, two)])
    assert (mean.value, count) == (1.0, 1) and np.isnan(mean.low)
    mean, _, count = _mean_ari([(two, two), (two, one)])
    assert (mean.value, mean.low, mean.high, count) == (0.5, 0.0, 1.0, 2)
