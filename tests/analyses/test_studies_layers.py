"""Studies of layers and architectures, on tiny networks whose images are known."""

from __future__ import annotations

import json
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

from analyses import architectures, layer_maps
from analyses.support import layer_verdict, network_means, verdicts
from analyses.support.findings import Finding, mean_finding, value_finding
from analyses.support.network_means import Mean
from analyses.support.palette_summary import PaletteSummary, palette_phrase
from analyses.support.records import save_outcome
from analyses.support.study import Context, StoredResult
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


def copies() -> nn.Module:
    """Six features that like one colour, and six classes by the same weights."""
    scales = torch.tensor([1.0, 2, 0.5, 4, 1, 3])
    layers = OrderedDict(features=pointwise(scales[:, None] * torch.tensor([CYAN])), pool=nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(layers | OrderedDict(flat=nn.Flatten(), fc=nn.Linear(6, 3))).eval()


def rivals() -> nn.Module:
    """Three features, each of which likes a colour that the two others dislike."""
    return nn.Sequential(OrderedDict(features=pointwise([[1, -1, -1], [-1, 1, -1], [-1, -1, 1]]))).eval()


def coherence_of(module: nn.Module, tmp_path: Path, **settings: Any) -> Any:
    return architectures.measure(context_of(architectures.STUDY, module, ("features",), tmp_path, 16, **settings))


def test_copies_are_all_excited_by_each_others_images(tmp_path: Path) -> None:
    outcome = coherence_of(copies(), tmp_path)
    assert value_of(outcome, "features:excited") == 1
    assert value_of(outcome, "features:permuted") == 1 and value_of(outcome, "features:beyond") == 0  # one flat colour
    assert value_of(outcome, "features:positions") > 0.99 and value_of(outcome, "features:positions_across") > 0.99
    assert 1 <= value_of(outcome, "features:classes") <= 3
    assert outcome.verdict == "not decided"
    assert "inception_v3 was measured in Mixed_6e and Mixed_7a, which" in outcome.conclusion  # as in its stored result
    assert outcome.conclusion.startswith("The fewer features an image excites beyond chance, the more coherent")
    assert " (images of 16 pixels, 24 steps). In features an image excites 1 of the layer's" in outcome.conclusion
    assert "more than any 1/f image does (n = 4 features, 1 seed), and 1 with its pixels" in outcome.conclusion


def test_rivals_are_excited_alone(tmp_path: Path) -> None:
    outcome = coherence_of(rivals(), tmp_path, features=3, seeds=2)
    assert value_of(outcome, "features:excited") == pytest.approx(1 / 3)
    assert value_of(outcome, "features:positions") > 0.99 > 0 > value_of(outcome, "features:positions_across")
    null = next(f for f in outcome.findings if f.name == "features:excited_null")
    assert null.count == 2, "a null image a seed, not one a feature"
    assert len(outcome.rows) == 6 and set(outcome.rows["seed"]) == {0, 1}
    assert next(f for f in outcome.findings if f.name == "features:classes").value is None  # no vector of logits


def test_a_grid_of_one_position_leaves_positions_undefined(tmp_path: Path) -> None:
    module = nn.Sequential(OrderedDict(start=rivals().features, features=nn.AdaptiveAvgPool2d(1))).eval()
    outcome = coherence_of(module, tmp_path, features=3)
    assert next(f for f in outcome.findings if f.name == "features:positions").value is None
    assert value_of(outcome, "features:excited") == pytest.approx(1 / 3)


def smooth_or_red() -> nn.Module:
    """Feature 0 answers to red, feature 1 to green that does not change from one pixel to the next."""
    steps = nn.Conv2d(3, 3, (1, 2), bias=False)
    with torch.no_grad():
        steps.weight.zero_()
        steps.weight[0, 0, 0, 0] = steps.weight[1, 1, 0, 0] = steps.weight[2, 1, 0, 1] = 1.0
        steps.weight[1, 1, 0, 1] = steps.weight[2, 1, 0, 0] = -1.0
    rough = pointwise([[1.0, 0, 0], [0, -1, -1]])
    return nn.Sequential(OrderedDict(steps=steps, relu=nn.ReLU(), features=rough)).eval()


def test_chance_is_what_the_colours_excite_without_the_pattern(tmp_path: Path) -> None:
    network = context_of(architectures.STUDY, smooth_or_red(), ("features",), tmp_path, SIZE).network
    probe = architectures.Probe(network, 16, torch.device("cpu"))
    reference = architectures.measure_reference(probe, "features", SIZE)
    images = torch.zeros(2, 3, SIZE, SIZE)
    images[:, 0], images[:, 1, :, SIZE // 2 :] = 1.0, 1.0  # all of it red, one edge of green
    shares = architectures.coherence_statistics(probe, images, "features", None, reference)
    assert shares["excited"] == [1.0] and shares["permuted"] == [0.5] and shares["beyond"] == [0.5]


def test_layers_are_not_pooled(tmp_path: Path) -> None:
    """Of `copies` an image excites all features, of `rivals` a third: their mean, two thirds, is neither's."""
    both = nn.Sequential(OrderedDict(rivals=rivals().features, features=pointwise([[1.0, -1, -1]] * 3))).eval()
    context = context_of(architectures.STUDY, both, ("rivals", "features"), tmp_path, 16, features=3)
    outcome = architectures.measure(context)
    assert value_of(outcome, "rivals:excited") == pytest.approx(1 / 3) and value_of(outcome, "features:excited") == 1
    assert "In rivals an image excites 0.333 of the layer's features" in outcome.conclusion
    assert "In features an image excites 1 of the layer's features" in outcome.conclusion


def test_welch_from_stored_intervals_is_scipys_from_values() -> None:
    rng = np.random.Generator(np.random.PCG64(4))
    one, two = rng.normal(0.2, 0.1, 16), rng.normal(0.3, 0.2, 12)
    means = [network_means.mean_and_error(mean_finding("excited", v, "")) for v in (one, two)]
    assert None not in means
    expected = stats.ttest_ind(one, two, equal_var=False).pvalue
    found, back = network_means.compare_means(*means), network_means.compare_means(*means[::-1])  # type: ignore[arg-type]
    assert (found.direction, back.direction) == (-1, 1) and found.p == back.p == pytest.approx(expected)
    assert network_means.mean_and_error(value_finding("excited", 0.2, 16, "")) is None
    ends = stats.ttest_ind(one, two, equal_var=False).confidence_interval(0.95)
    gap = network_means.mean_difference(*means)  # type: ignore[arg-type]
    assert (gap.low, gap.value, gap.high) == pytest.approx((ends.low, one.mean() - two.mean(), ends.high))
    same = network_means.mean_difference(Mean(0.5, 0.0, 3), Mean(0.25, 0.0, 3))
    assert (same.low, same.value, same.high) == (0.25, 0.25, 0.25)


@pytest.mark.parametrize(
    ("one", "two", "said"),
    [
        (Mean(0.1, 0.0, 8), Mean(0.3, 0.0, 8), (-1, 0.0)),  # no spread: any difference is certain
        (Mean(0.3, 0.0, 8), Mean(0.1, 0.0, 8), (1, 0.0)),
        (Mean(0.1, 1e-200, 500), Mean(0.3, 1e-200, 500), (-1, 0.0)),  # too small a p for a float
        (Mean(0.1, 0.0, 8), Mean(0.1, 0.0, 8), (0, 1.0)),
        (Mean(0.1, 0.02, 8), Mean(0.1, 0.01, 8), (0, 1.0)),
    ],
)
def test_means_without_spread_keep_their_direction(one: Mean, two: Mean, said: tuple[int, float]) -> None:
    found = network_means.compare_means(one, two)
    assert (found.direction, found.p) == said
    assert (found.below(0.05), found.above(0.05)) == (said[0] < 0, said[0] > 0)
    word = {-1: "below", 0: "equal to", 1: "above"}[said[0]]
    phrase = network_means.compare_phrase({"x": one}, {"y": two}, ("S", "T"))
    assert phrase == f"S's share in x, {one.value:+.3g}, is {word} T's in y, {two.value:+.3g} (p {said[1]:.2g})"


def test_networks_without_spread_are_judged_as_others_are() -> None:
    for google, inception, expected in ((0.1, 0.3, "holds"), (0.3, 0.1, "does not hold"), (0.2, 0.2, "not decided")):
        given = means(google, inception, 0.2)
        exact = {k: {la: Mean(m.value, 0.0, m.count) for la, m in of.items()} for k, of in given.items()}
        assert architectures.judge(exact)[0] == architectures.judge(given)[0] == expected


def means(google: Any, inception: Any, resnet: Any = None) -> network_means.Means:
    """Headlines of two layers of each network: one value for both, or two."""
    given = {"googlenet": google, "inception_v3": inception, "resnet50": resnet, "reference": 0.5}
    pairs = {k: v if isinstance(v, tuple) else (v, v) for k, v in given.items() if v is not None}
    layers = architectures.STUDY.layers
    return {k: {la: Mean(v, 0.01, 16) for la, v in zip(layers[k], pair, strict=True)} for k, pair in pairs.items()}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (means(0.2, 0.4, 0.3), "holds"),
        (means(0.2, 0.4, 0.2), "holds"),
        (means((0.2, 0.6), (0.4, 0.8), (0.3, 0.7)), "holds"),  # each layer with its like
        (means(0.2, 0.4, 0.5), "holds in part"),
        (means(0.2, 0.4, 0.1), "holds in part"),
        (means(0.2, 0.4), "holds in part"),
        (means((0.2, 0.4), (0.4, 0.2), 0.3), "holds in part"),  # in one of the two layers, pooled in none
        (means((0.2, 0.2), (0.4, 0.2), 0.3), "holds in part"),
        (means((0.2, 0.2), (0.233, 0.2), 0.3), "not decided"),  # p = 0.026: one of two tests
        (means(0.4, 0.2, 0.3), "does not hold"),
        (means(0.2, 0.21, 0.2), "not decided"),
    ],
)
def test_the_verdict_over_networks(given: network_means.Means, expected: str) -> None:
    assert architectures.judge(given)[0] == expected
    assert architectures.judge(given, random="inception_v3")[0] == "not decided"
    other = given | {"inception_v3": {"Mixed_6e": Mean(0.3, 0.01, 16), "Mixed_7a": Mean(0.4, 0.01, 16)}}
    verdict, first, second = architectures.judge(other)
    assert verdict == first.verdict == second.verdict == "not decided"
    assert first.why.startswith(
        "inception_v3 was measured in Mixed_6e and Mixed_7a, which are not the claim's layers. In the layers measured, "
        "GoogLeNet's share in inception5b, "
    )
    assert architectures.judge({"reference": {"layer": Mean(0.5, 0.1, 9)}})[0] == "not decided"


@pytest.mark.parametrize(
    ("given", "first", "second", "why"),
    [
        (means(0.2, 0.4, 0.3), "holds", "holds", "ResNet's shares are +0.3 and +0.3 in layer4.1 and layer4.2, in nei"),
        (means(0.2, 0.4), "holds", "not decided", "resnet50 was not measured with published weights"),
        (means(0.2, 0.4, (0.1, 0.5)), "holds", "does not hold", "clearly below GoogLeNet's and above InceptionV3's"),
        (means(0.2, 0.4, (0.3, 0.5)), "holds", "does not hold", "layer4.2, clearly above InceptionV3's in at least"),
        (means((0.2, 0.4), (0.4, 0.2), 0.3), "holds in part", "not decided", "the two others are not the ends of"),
        (means(0.4, 0.2, 0.3), "does not hold", "not decided", "the two others are not the ends of"),
        (means(0.2, None, 0.3), "not decided", "not decided", "the two others are not the ends of"),
    ],
)
def test_the_two_networks_and_resnet_are_judged_apart(
    given: network_means.Means, first: str, second: str, why: str
) -> None:
    """A page counts as many parts as there are, and not what is outside the verdict."""
    _, one, two = architectures.judge(given)
    assert (one.verdict, two.verdict) == (first, second) and why in two.why
    findings = {
        f"features:{n}": value_finding("", 0.1, 9, "") for n in ("excited", "permuted", "beyond", "excited_null")
    }
    shown = architectures.Shown("googlenet", ("features",), 1, given, {}, False)
    text = architectures.conclude(shown, findings)[1]
    words = {"not decided": "is not decided"}
    assert text.count(" Outside the verdict, ") == 1
    assert verdicts.PART.findall(text) == [
        ("GoogLeNet's images are more coherent than InceptionV3's", words.get(first, first)),
        ("ResNet behaves like both", words.get(second, second)),
    ]


@pytest.mark.parametrize(
    ("last", "said"),
    [
        (0.5, "the final images of this network are less coherent than those of the layer before: the"),
        (0.3, "the final images of this network are more coherent than those of the layer before, and not less: the"),
        (0.41, "it is not decided whether the final images of this network are less coherent than those of the layer"),
        (0.39, "it is not decided whether the final images of this network are less coherent than those of the layer"),
    ],
)
def test_final_images_are_compared_with_those_of_the_layer_before(last: float, said: str) -> None:
    """Standard errors of 0.01 in both layers: that of the difference is 0.014, its interval reaches 0.029."""
    own = {"inception5a": Mean(0.4, 0.01, 16), "inception5b": Mean(last, 0.01, 16)}
    text = architectures.final_phrase("googlenet", own, False)
    reach = stats.t.ppf(0.975, 30) * np.sqrt(2) * 0.01
    ends = f"{last - 0.4:+.3g} [{last - 0.4 - reach:+.3g}, {last - 0.4 + reach:+.3g}]"
    assert text.startswith(f" Outside the verdict, {said}")
    assert f"in inception5b minus that in inception5a is {ends} (n = 16 and 16 features)." in text
    early = {"early1": own["inception5a"], "early2": own["inception5b"]}
    for model, means_of in (("inception_v3", own), ("googlenet", early), ("own", early), ("own", own)):
        other = architectures.final_phrase(model, means_of, False)
        assert other.startswith(" Outside the verdict, it is not decided whether the final")
        assert "layer before: these are not the layers listed for it; the share" in other
    assert "layer before: its weights are random; " in architectures.final_phrase("googlenet", own, True)
    assert architectures.final_phrase("googlenet", {"inception5b": own["inception5b"]}, False) == ""


def test_networks_are_compared_in_one_order_with_their_images() -> None:
    given = {"own": {"x": Mean(0.5, 0.1, 9)}, "squeezenet": {"a": Mean(0.25, 0.1, 8), "b": Mean(-0.125, 0.1, 6)}}
    images = {"own": network_means.describe_images([((76, 96), 100)]), "squeezenet": network_means.describe_images([])}
    assert network_means.describe_networks(given, images) == (
        "squeezenet +0.25 and -0.125 (a and b, n = 8 and 6, size not recorded); own +0.5 (x, n = 9, 96 pixels, 100 "
        "steps)"
    )
    pair = network_means.compare_phrase(
        given["squeezenet"], {"y": Mean(0.5, 0.01, 9), "z": Mean(-0.5, 0.01, 9)}, ("S", "T")
    )
    assert pair.startswith("S's share in b, -0.125, is above T's in z, -0.5 (p 0.0")
    assert ", and S's share in a, +0.25, is below T's in y, +0.5 (p 0.0" in pair


def stored(context: Context, name: str, value: float, weights: str = "published") -> None:
    """Store an outcome of a network of that name."""
    context.network.name, context.network.weights = name, weights
    headline = mean_finding("features:beyond", [value - 0.01, value, value + 0.01], "")
    outcome = architectures.Outcome(pd.DataFrame({"x": [1]}), [headline], "not decided", "", {})
    save_outcome(context, outcome, context.results)


def test_other_networks_are_read_from_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "results"
    claimed = {"googlenet": ("features",), "inception_v3": ("features",), "squeezenet": ("later",)}
    monkeypatch.setattr(architectures, "STUDY", replace(architectures.STUDY, layers=claimed))

    def context(**settings: Any) -> Context:
        return context_of(architectures.STUDY, rivals(), ("features",), tmp_path, results=results, **settings)

    stored(context(), "googlenet", 0.2)
    stored(context(), "inception_v3", 0.4)
    stored(context(), "resnet50", 0.3, "random:0")
    stored(context(full=True), "vgg", 0.3)
    stored(context(), "squeezenet", 0.3)  # of another layer than the claim's: shown
    own = architectures.headline_means(["features"], [mean_finding("features:beyond", [0.4, 0.6], "")])
    known = architectures.collect_means(results, False, "Sequential", own)
    assert {name: round(m["features"].value, 6) for name, m in known.items()} == {
        "googlenet": 0.2,
        "inception_v3": 0.4,
        "squeezenet": 0.3,
        "Sequential": 0.5,
    }
    assert architectures.judge(known)[0] == "holds in part"  # without ResNet
    record = json.loads((results / "architectures" / "vgg-full.json").read_text(encoding="utf-8"))
    assert record["settings"]["full"] is True


def test_architectures_are_restated_as_they_were_measured(tmp_path: Path) -> None:
    both = nn.Sequential(OrderedDict(rivals=rivals().features, features=pointwise([[1.0, -1, -1]] * 3))).eval()
    results = tmp_path / "results"
    context = context_of(
        architectures.STUDY, both, ("rivals", "features"), tmp_path, 16, features=3, results=results, seeds=2
    )
    outcome = architectures.measure(context)
    path = save_outcome(context, outcome, results)[0]
    assert architectures.restate(StoredResult.read(path)) == (outcome.verdict, outcome.conclusion)
    assert "Sequential" in outcome.conclusion and "n = 3, 16 pixels, 24 steps)" in outcome.conclusion
