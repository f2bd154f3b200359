"""The study of layers, on tiny networks whose images are known."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import nn

from analyses import layer_maps
from analyses.support import layer_verdict
from analyses.support.findings import Finding
from analyses.support.palette_summary import PaletteSummary, palette_phrase
from analyses.support.study import StoredResult
from featmap.optimize.recipe import RECIPES
from featmap.stats.reliability import Interval
from tests.helpers.studying import context_of, value_of

pytestmark = pytest.mark.usefixtures("one_thread")
CYAN, MAGENTA, GREEN = (-1.0, 1.0, 1.0), (1.0, -1.0, 1.0), (-1.0, 1.0, -1.0)
SIZE = 32


def pointwise(rows: Any, bias: Any = 0.0) -> nn.Conv2d:
    """A 1 x 1 convolution of these weights."""
    weight = torch.as_tensor(rows, dtype=torch.float32)
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1)
    with torch.no_grad():
        conv.weight.copy_(weight[:, :, None, None])
        conv.bias.copy_(torch.as_tensor(bias).expand(len(weight)))
    return conv


def stacked() -> nn.Module:
    """Three layers like three flat colours, three patterns about gray; in `relu` every second feature is dead."""
    first = pointwise([CYAN, MAGENTA, GREEN] * 2)
    second = nn.Conv2d(6, 4, 5, padding=2, bias=False)
    with torch.no_grad():
        second.weight.copy_(torch.randn(second.weight.shape, generator=torch.Generator().manual_seed(2)))
        second.weight.sub_(second.weight.mean((2, 3), keepdim=True))
    relu = nn.Sequential(pointwise(torch.eye(4), torch.tensor([0.5, -1e4, 0.5, -1e4])), nn.ReLU())
    colours = OrderedDict(first=first, again=pointwise(torch.eye(6)), anew=pointwise(torch.eye(6)))
    patterns = OrderedDict(second=second, third=pointwise(torch.eye(4)), fourth=pointwise(torch.eye(4)))
    return nn.Sequential(colours | patterns | OrderedDict(relu=relu)).eval()


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> Any:
    layers = ("first", "again", "anew", "second", "third", "fourth", "relu")
    runs = tmp_path_factory.mktemp("runs")
    return layer_maps.measure(context_of(layer_maps.STUDY, stacked(), layers, runs, SIZE, features=8))


def test_colours_become_patterns(mapped: Any) -> None:
    assert value_of(mapped, "flatness_first") > 0.95 and value_of(mapped, "waves_first") < 1.2
    assert value_of(mapped, "flatness_last") < 0.1 and value_of(mapped, "waves_last") > 4
    trend = next(f for f in mapped.findings if f.name == "flatness_trend")
    assert trend.high < 0 and trend.count == 7 and "32 features" in trend.words  # 3 x 6 + 3 x 4 + 2 live ones
    assert value_of(mapped, "frequency_first") < 0.02 < value_of(mapped, "frequency_last")
    assert value_of(mapped, "field_first") == 1 and value_of(mapped, "field_last") == 5


def test_the_first_layers_palette_is_named(mapped: Any) -> None:
    assert value_of(mapped, "palette") == 3 and value_of(mapped, "palette_silhouette") > 0.95
    words = next(f.words for f in mapped.findings if f.name == "palette")
    assert all(colour in words for colour in ("cyan", "magenta", "green"))
    rows = mapped.rows[(mapped.rows["part"] == "first layer") & (mapped.rows["feature"] == "first:0")]
    assert rows[["dominant_r", "dominant_g", "dominant_b"]].to_numpy()[0] == pytest.approx([0, 1, 1], abs=0.1)
    assert value_of(mapped, "hued") == 1
    assert "palette is like CMYK holds: its dominant colours form 3 clusters (features in each: " in mapped.conclusion
    assert all(f"{colour} 2" in mapped.conclusion for colour in ("cyan", "magenta", "green"))
    assert "Not in such a palette: none. The recipe clamps pixels after every step" in mapped.conclusion


def test_the_first_layers_flatness_is_that_of_all_features_whose_colours_were_taken(mapped: Any) -> None:
    own = mapped.rows[mapped.rows["part"] == "first layer"]
    by_feature = [own.loc[own["feature"] == f"first:{k}", "flatness"].to_numpy().mean() for k in range(6)]
    flat = next(f for f in mapped.findings if f.name == "flatness_colours")
    assert flat.value == pytest.approx(np.mean(by_feature)) and flat.count == 6
    assert "That the first layer's images are flat colours holds: their mean flatness is " in mapped.conclusion
    assert "(1: a single colour; n = 6 features, " in mapped.conclusion


def test_what_was_mapped_is_told(mapped: Any) -> None:
    assert "over 7 layers (n = 32 features, 2 to 6 of each layer): flatness -" in mapped.conclusion
    flat = mapped.rows[mapped.rows["part"] == "maps"].query("status == 'live'").groupby("layer")["flatness"].mean()
    text = f"Mean flatness of these features is {flat['first']:.2f} in first and {flat['relu']:.2f} in relu"
    assert text in mapped.conclusion
    assert "That images go on to objects is not measured: these statistics cannot tell" in mapped.conclusion
    assert mapped.verdict == "holds in part", "never more, since objects are not measured"


def as_stored(mapped: Any, **settings: Any) -> StoredResult:
    """The outcome as it is read back."""
    settings = {"layers": ["first", "again", "anew", "second", "third", "fourth", "relu"], "full": False} | settings
    return StoredResult("Sequential", "", settings, {f.name: f for f in mapped.findings}, mapped.rows, Path())


def test_a_stored_result_gives_the_same_verdict_and_conclusion(mapped: Any) -> None:
    stored = as_stored(mapped)
    assert layer_maps.restate(stored) == (mapped.verdict, mapped.conclusion)
    words = stored.findings["palette"].words.replace(" 2", "")  # as they were before sizes were stored
    earlier = stored.findings | {"palette": replace(stored.findings["palette"], words=words)}
    verdict, text = layer_maps.restate(replace(stored, findings=earlier))
    assert verdict == mapped.verdict and "cyan" in text and "cyan 2" not in text


def mapped_rows(values: dict[str, list[float]], first: list[float]) -> pd.DataFrame:
    """Rows of layers whose features have these values of flatness, and of as many colours of the first layer."""
    rows = [("maps", la, f"{la}:{k}", v, "live") for la, own in values.items() for k, v in enumerate(own)]
    rows += [("without rescue", la, f"{la}:{k}", v, "live") for la, own in values.items() for k, v in enumerate(own)]
    rows += [("first layer", "a", f"a:{k}", v, "live") for k, v in enumerate(first)]
    table = pd.DataFrame(rows, columns=["part", "layer", "feature", "flatness", "status"])
    return table.assign(seed=0, waves=2.0, frequency=0.1, bytes=1.0)


def test_a_first_layer_of_patterns_is_not_said_to_be_colours() -> None:
    """As of GoogLeNet: the second layer's images are the flattest."""
    fit = PaletteSummary(["cyan", "red"], [3, 1], 0.005)
    trends = dict.fromkeys(layer_maps.MEASURES, Interval(-0.5, -0.6, -0.4)) | {"waves": Interval(0.5, 0.4, 0.6)}
    rows = mapped_rows({"conv1": [0.1, 0.3], "conv2": [0.4, 0.6], "conv3": [0.0, 0.0]}, [0.1, 0.2, 0.3])
    main = layer_maps.STUDY.layers["googlenet"]
    verdict, text = layer_verdict.conclude(rows, trends, fit, ("conv1", "conv2", "conv3"), main, True, 0.0)
    assert "images are flat colours does not hold: their mean flatness is 0.20 [0.00, 0.45]" in text
    assert "Mean flatness of these features is 0.20 in conv1 and 0.00 in conv3; the flattest images are" in text
    assert "those of conv2, with 0.50." in text and verdict == "holds in part"
    missing = ", ".join(main[3:])
    assert f"over 3 of the 12 main layers (n = 6 features, 2 of each layer; not measured: {missing})" in text
    assert "form 2 clusters (features in each: cyan 3, red 1; p 0.005 against one cloud). Not in such a pa" in text
    assert "palette: red 1. Of 6 features none lacks a gradient at the start." in text
    assert "clamps" not in text and "short" not in text, "in full nothing is clamped, and the descents are long"


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (("a", "b", "c"), "3 layers"),
        (("a", "c"), "2 of the 3 main layers"),
        (("a", "pool"), "2 layers: 1 of the 3 main layers and pool"),
        (("a", "b", "pool", "c"), "4 layers: the 3 main layers and pool"),
        (("pool",), "1 layer besides the 3 main layers: pool"),
    ],
)
def test_only_main_layers_are_counted_as_such(layers: tuple[str, ...], words: str) -> None:
    assert layer_verdict.main_phrase(layers, ("a", "b", "c")) == words
    assert layer_verdict.main_phrase(layers, ()) == f"{len(layers)} layer{'' if len(layers) == 1 else 's'}"


def test_one_feature_of_one_layer_is_told_in_the_singular() -> None:
    fit = PaletteSummary(["cyan"], [1], 0.5)
    trends = dict.fromkeys(layer_maps.MEASURES, Interval(0.0, -0.1, 0.1))
    _, text = layer_verdict.conclude(mapped_rows({"a": [0.5]}, [0.5]), trends, fit, ("a",), (), True, 0.0)
    assert "n = 1 feature, 1 seed each)" in text and "over 1 layer (n = 1 feature, 1 of each layer)" in text
    assert "form 1 cluster (features in each: cyan 1; p 0.5" in text and text.endswith(
        ". Of 1 feature none lacks a gradient at the start."
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.8, 0.9, 0.85], True), ([0.1, 0.2, 0.3], False), ([0.2, 0.9, 0.6], None), ([0.9], None), ([np.nan], None)],
)
def test_flat_colours_are_judged_by_the_interval(values: list[float], expected: bool | None) -> None:
    flat = layer_verdict.layer_flatness(mapped_rows({}, values))
    trends = dict.fromkeys(layer_maps.MEASURES, Interval(0.0, -0.1, 0.1))
    assert layer_verdict.judge_parts(flat, trends, PaletteSummary([], [], np.nan))["colours"] is expected


def test_dead_features_are_counted_and_are_no_part_of_the_verdict(mapped: Any) -> None:
    assert value_of(mapped, "dead_before") == value_of(mapped, "dead_after") == pytest.approx(2 / 34)
    dead = mapped.rows[mapped.rows["status"] == "dead"]
    assert set(dead["feature"]) == {"relu:1", "relu:3"} and dead["start"].isna().all()
    assert set(mapped.rows.loc[mapped.rows["status"] == "live", "start"]) <= {"gradient", "rescued"}
    assert "Without rescue 2 of 34 features have no gradient at the start: their images stay the " in mapped.conclusion
    assert f"through dead ReLUs, 2 have none (relu:1, relu:3). {layer_verdict.LEFT}." in mapped.conclusion
    assert set(mapped.figures) == {"", "-maps.webp"}
    stored = as_stored(mapped)
    for status, words in (("dead", "Without rescue 34 of 34 features have no"), ("live", "Of 34 features none lacks")):
        status_of = mapped.rows["status"].where(mapped.rows["part"] != "without rescue", status)
        verdict, text = layer_maps.restate(replace(stored, rows=mapped.rows.assign(status=status_of)))
        assert verdict == mapped.verdict and words in text


def test_a_recipe_without_rescue_is_not_said_to_rescue(mapped: Any, tmp_path: Path) -> None:
    """`article-normalised`, the recipe in full, has none, and neither has one with ``--rescue 0``."""
    assert RECIPES["article-normalised"].rescue == 0 < RECIPES["pixels"].rescue
    for settings in ({"full": True}, {"rescue": 0.0}):
        text = layer_maps.restate(as_stored(mapped, **settings))[1]
        assert text.endswith(
            "Without rescue 2 of 34 features have no gradient at the start: their images stay the null image."
        )
    rescued = layer_maps.restate(as_stored(mapped, full=True, rescue=0.5))[1]
    assert (
        "With the recipe's rescue, which passes a gradient through dead ReLUs, 2 have none (relu:1, relu:3)" in rescued
    )
    context = context_of(layer_maps.STUDY, stacked(), ("first", "relu"), tmp_path, SIZE, features=2, rescue=0.0)
    outcome = layer_maps.measure(context)
    assert "dead_before" in {f.name for f in outcome.findings} and not any(
        "rescue;" in f.words for f in outcome.findings
    )
    assert outcome.conclusion.endswith(
        "Without rescue 1 of 4 features has no gradient at the start: its image stays the null image."
    )
    settings = {"layers": ["first", "relu"], "rescue": 0.0}
    assert layer_maps.restate(as_stored(outcome, **settings)) == (outcome.verdict, outcome.conclusion)


def test_three_layers_are_too_few_for_a_trend(tmp_path: Path) -> None:
    few = context_of(layer_maps.STUDY, stacked(), ("first", "second", "relu"), tmp_path, SIZE, features=3)
    outcome = layer_maps.measure(few)
    assert (outcome.rows["part"] == "maps").sum() == 9, "as many features of each layer as the record says"
    trend = next(f for f in outcome.findings if f.name == "flatness_trend")
    assert trend.value is not None and trend.value < -0.5 and trend.low is trend.high is None
    assert outcome.verdict == "not decided"


def test_a_skewed_measure_has_its_interval_on_its_own_scale() -> None:
    values = np.array([1.0, 1, 1, 2, 2, 3, 5, 140])
    mean, low, high = layer_maps.summarise("waves", values)
    assert mean == pytest.approx(stats.gmean(values))
    reach = stats.t.ppf(0.975, 7) * np.log(values).std(ddof=1) / np.sqrt(8)
    assert 1 <= low < mean < high == pytest.approx(mean * np.exp(reach))
    assert layer_maps.summarise("flatness", np.array([0.9, 1, 1, 0.2]))[2] == 1


def test_a_palette_with_red_fails_the_claim() -> None:
    points = np.array([[0.9, 0, 0], [0, 0.9, 0.9], [0.9, 0, 0.9], [0, 0.9, 0]]).repeat(3, 0)
    lab = layer_maps.palettes.oklab(points)
    colours = layer_maps.LayerColours(
        [str(k) for k in range(12)], points, lab, layer_maps.palettes.fit_palette(lab[:, 1:])
    )
    fit = PaletteSummary.of(colours)
    assert fit.hues_outside() == ("red",) and colours.hued.all()
    assert (fit.describe(), fit.is_like_cmyk()) == ("red 3, cyan 3, magenta 3, green 3", False)
    assert palette_phrase(fit, False).endswith("Not in such a palette: red 3")
    assert "The recipe clamps pixels" in palette_phrase(fit, True)
    assert PaletteSummary.parse("gray, cyan 3", 0.5).hues == ["gray", "cyan"]
    for hues, p, like in (
        (["cyan", "magenta", "yellow", "black"], 0.01, True),
        (["cyan", "magenta", "green"], 0.2, False),
        (["cyan", "green"], 0.01, False),
        (["cyan", "magenta", "green", "blue"], 0.01, False),
        ([], np.nan, None),
    ):
        assert PaletteSummary(hues, [], p).is_like_cmyk() is like


def test_the_verdict_on_layers_is_never_more_than_in_part() -> None:
    colours = finding_of_flatness(0.8)
    fit = PaletteSummary(["cyan", "magenta", "green"], [1, 1, 1], 0.005)
    flat, rising = (Interval(v, v - 0.1, v + 0.1) for v in (-0.5, 0.5))
    by_depth = {"flatness": flat, "waves": rising}
    parts = layer_verdict.judge_parts(colours, by_depth, fit)
    assert parts == {"colours": True, "depth": True, "palette": True} and layer_verdict.judge(parts) == "holds in part"
    for waves, depth in (((-0.5, 0.9), None), ((-0.9, -0.5), False), ((0.1, 0.9), True)):
        trends = by_depth | {"waves": Interval(sum(waves) / 2, *waves)}
        assert layer_verdict.judge_parts(colours, trends, fit)["depth"] is depth
    assert layer_verdict.judge({"colours": None, "depth": True, "palette": False}) == "holds in part"
    assert layer_verdict.judge({"colours": False, "depth": False, "palette": False}) == "does not hold"
    assert layer_verdict.judge({"colours": None, "depth": False, "palette": None}) == "does not hold"
    assert layer_verdict.judge({"colours": True, "depth": None, "palette": True}) == "not decided"


def finding_of_flatness(value: float) -> Finding:
    return Finding("flatness_colours", value, value - 0.1, value + 0.1, 9, "")
