"""The study of architectures, on tiny networks whose images are known."""

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

from analyses import architectures
from analyses.support import network_means, verdicts
from analyses.support.findings import mean_finding, value_finding
from analyses.support.network_means import Mean
from analyses.support.records import save_outcome
from analyses.support.study import Context, StoredResult
from tests.analyses.test_studies_layers import CYAN, pointwise
from tests.helpers.studying import context_of, value_of

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE = 32


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
