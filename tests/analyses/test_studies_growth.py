"""The study of growing prefixes, one more neuron at a time, on networks whose answer is known."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import optimize, stats
from torch import nn

from analyses import neuron_growth
from analyses.support import growth_verdict
from analyses.support.findings import Finding
from analyses.support.records import save_outcome
from analyses.support.study import StoredResult
from featmap.network.loading import load
from tests.helpers.networks import linear_network, small_inception
from tests.helpers.studying import context_of, value_of

pytestmark = pytest.mark.usefixtures("one_thread")


def test_in_a_linear_network_one_more_neuron_changes_only_its_own_field(tmp_path: Path) -> None:
    context = context_of(
        neuron_growth.STUDY, linear_network(), ("conv2", "conv3"), tmp_path, size=20, features=3, seeds=1
    )
    outcome = neuron_growth.measure(context, 20, 5)
    for layer in ("conv2", "conv3"):
        assert value_of(outcome, f"outside:{layer}") < 1e-9
        assert value_of(outcome, f"outside linear:{layer}") < 1e-9
        assert value_of(outcome, f"elsewhere:{layer}") < 1e-4
        # another seed changes everything... by its rounding alone; with one seed asked for, a second is made for that
        assert value_of(outcome, f"outside seeds:{layer}") > 0.3
        assert value_of(outcome, f"most:{layer}") == 1
    own = outcome.rows[outcome.rows["measure"] == "beyond its own pixels"]["value"]
    assert own.max() < 0.05 + 1e-6  # what it changes with the others is what it changes alone
    assert outcome.verdict == "does not hold"
    shares = [f for f in outcome.findings if f.name.split(":")[0] not in ("excess", "dead")]
    assert all((f.low or 0) >= 0 for f in shares)
    assert all((f.high or 0) <= 1 for f in shares if not f.name.startswith("elsewhere"))


def half_asleep(channels: int = 12) -> nn.Module:
    """A convolution whose every third channel alone responds to the noise that descents start from, and a ReLU."""
    conv = nn.Conv2d(3, channels, 3)
    with torch.no_grad():
        conv.weight.copy_(torch.randn(conv.weight.shape, generator=torch.Generator().manual_seed(0)) / 9)
        conv.bias.copy_(torch.where(torch.arange(channels) % 3 == 0, 5.0, -50.0))
    return nn.Sequential(OrderedDict(conv=conv, relu=nn.ReLU())).eval()


def test_further_features_are_drawn_where_many_have_no_gradient(tmp_path: Path) -> None:
    context = context_of(neuron_growth.STUDY, half_asleep(), ("relu",), tmp_path, size=12, features=4)
    drawn, scales = neuron_growth.draw_with_gradient(context, context.network, "relu", 4, 12)
    first = context.draw_channels("relu")
    assert drawn[:4] == first and sum(c % 3 == 0 for c in first) < 3, "otherwise the drawn features suffice"
    assert len(scales) == 4 and set(scales) == {c for c in drawn if c % 3 == 0} and len(set(drawn)) == len(drawn)
    assert (drawn, scales) == neuron_growth.draw_with_gradient(context, context.network, "relu", 4, 12)
    rows = neuron_growth._gradient_rows("relu", drawn, scales, neuron_growth.NETWORK)
    counted = neuron_growth._count_phrase(rows, "relu", "outside the field")
    assert f"; of {len(drawn)} drawn ({len(drawn) - 4} without a gradient on noise" in counted


def test_named_features_are_reported_also_where_they_have_no_gradient(tmp_path: Path) -> None:
    units = ("relu:1", "relu:3")
    context = context_of(neuron_growth.STUDY, half_asleep(), ("relu",), tmp_path, size=12, features=2, units=units)
    outcome = neuron_growth.measure(context, 12, 2)
    found = {f.name: f for f in outcome.findings if ", named: " in f.words}
    assert found["has a gradient network of relu:1"].value == 0 and found["has a gradient network of relu:3"].value == 1
    assert found["outside the field network of relu:1"].value is None
    assert found["outside the field network of relu:3"].value is not None


def test_a_layer_without_a_share_is_named_with_its_reason() -> None:
    rows = grown("b", 0.5)
    rows.loc[rows["measure"] == "has a gradient", "value"] = 0.0
    rows = rows[rows["measure"] == "has a gradient"]
    held = neuron_growth._collect_findings(pd.concat([grown("a", 0.5), rows]), ("a", "b"))
    held |= {f.name: f for f in growth_verdict.case_findings(pd.concat([grown("a", 0.5), rows]), ("a", "b"))}
    conclusion = growth_verdict.judge(held, ("a", "b"), 2)[1]
    assert conclusion.endswith(
        "what it was, is undefined. In b no such share is defined: of 6 drawn (6 without a gradient on noise)."
    )
    assert "In b the claim is not decided, since the share is undefined." in conclusion
    assert "In a and b the share outside the pixels that the neuron changes alone is undefined, since no" in conclusion


def test_layers_without_a_value_are_named_beside_those_with_one() -> None:
    held = {
        "beyond:a": Finding("beyond:a", 0.5, 0.25, 0.75, 3, ""),
        "beyond:b": Finding("beyond:b", None, None, None, 0, ""),
        "elsewhere:a": Finding("elsewhere:a", 0.1, 0.0, 0.2, 3, ""),
        "elsewhere:b": Finding("elsewhere:b", None, None, None, 0, ""),
    }
    assert growth_verdict.own_pixels_phrase(held, ("a", "b")) == (
        "Of the change, 50% [25%, 75%] in a (n = 3 features) are outside the pixels that the neuron changes alone. In "
        "b the share outside the pixels that the neuron changes alone is undefined, since no added neuron changes "
        "anything both alone and after others. "
    )
    assert growth_verdict.elsewhere_phrase(held, ("a", "b")) == (
        "Outside its field the image changes by 10% [0%, 20%] in a of what it was (undefined in b)."
    )


def test_fields_that_leave_little_of_the_image_free_are_named() -> None:
    def said(area: float) -> str:
        rows = pd.concat(
            [grown("a", 0.5), grown("a", 0.5).tail(1).assign(measure="area outside the field", value=area)]
        )
        return growth_verdict.limits_of(neuron_growth._collect_findings(rows, ("a",)), "a")

    assert (
        said(0.2) == ""
        and growth_verdict.limits_of(neuron_growth._collect_findings(grown("a", 0.5), ("a",)), "a") == ""
    )
    assert said(0.12) == " In a the fields of the added neurons leave 12% of the image free, which is little."


def test_one_neuron_is_not_many(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(neuron_growth, "contact_sheet", lambda sheet: drawn.extend(sheet.captions))
    pair = (np.zeros((3, 8, 8)), np.zeros((3, 8, 8)))
    neuron_growth._draw_strip("a:0", [pair] * 2, [1, 7])
    assert drawn[:2] == ["1 neuron", "7 neurons"]


def test_in_a_network_with_kinks_it_changes_more_and_its_twin_does_not(tmp_path: Path) -> None:
    context = context_of(neuron_growth.STUDY, small_inception(), ("mixed",), tmp_path, size=32, features=4, seeds=2)
    outcome = neuron_growth.measure(context, 32, 8)
    assert value_of(outcome, "outside:mixed") > 1e-3
    assert value_of(outcome, "outside linear:mixed") < 1e-9
    assert value_of(outcome, "beyond:mixed") > 0.07 > value_of(outcome, "beyond linear:mixed")
    film = outcome.figures["-growth.webp"]
    assert isinstance(film, bytes) and film[:4] == b"RIFF"


def grown(layer: str, share: float, moved: tuple[float, ...] = (1, 1, 1, 1, 1)) -> pd.DataFrame:
    """Rows of a layer of which one more neuron changes `share` of what two seeds differ by, feature by feature.

    Of six features one has no gradient, and one no share; `moved`: whether a neuron of each of the others changes any.
    """
    seeds = {"0": 0.2, "1": 0.9, "2": 0.5, "3": 0.6}
    values = [("has a gradient", f, float(f != "5")) for f in "012345"]
    values += [("outside the field, two seeds", f"{f}:1:1", v) for f, v in (seeds | {"4": 0.5}).items()]
    values += [("outside the field", f"{f}:1:1", share * v) for f, v in seeds.items()]
    values += [("changes something", f"{f}:1:1", v) for f, v in zip("01234", moved, strict=True)]
    rows = pd.DataFrame(values, columns=["measure", "feature", "value"])
    return rows.assign(layer=layer, recipe=neuron_growth.NETWORK, against="", seed=0)


def judged(*layers: pd.DataFrame) -> tuple[dict[str, Finding], str, str]:
    """Findings, verdict and conclusion of rows of layers a, b, ..."""
    rows, names = pd.concat(layers), tuple("abc"[: len(layers)])
    held = neuron_growth._collect_findings(rows, names)
    held |= {f.name: f for f in growth_verdict.case_findings(rows, names)}
    return held, *growth_verdict.judge(held, names, 2)


def test_the_floor_of_two_seeds_is_paired_by_feature_in_each_layer() -> None:
    def say(first: float, second: float) -> tuple[dict[str, Finding], str]:
        return judged(grown("a", first), grown("b", second))[:2]

    held, verdict = say(0.55, 0.55)
    # shares from 0.11 to 0.495 beside halves from 0.1 to 0.45: only feature by feature is one above the other
    assert held["excess:a"].value == pytest.approx(0.05 * 0.55) and (held["excess:a"].low or 0) > 0
    assert held["outside:a"].low < 0.5 * held["outside seeds:a"].value  # type: ignore[operator]
    assert verdict == "holds"
    assert held["outside:a"].words.endswith(
        "; of 6 drawn (1 without a gradient on noise; 1 not changed by the added neurons, or covered by their fields)"
    )
    assert held["outside:a"].count == 4 and held["outside seeds:a"].count == 5 and held["dead:a"].value == 1
    assert say(0.55, 0.2)[1] == "holds in part", "not in both layers"
    assert say(0.0, 0.0)[1] == "does not hold"


@pytest.mark.parametrize(
    ("moved", "said", "verdict"),
    [
        ((1, 1, 1, 1, 1), "holds", "holds"),  # Wilson of 5 of 5: from 5 / (5 + 1.96 x 1.96) = 0.57
        ((1, 1, 1, 1, 0.0), "is not decided", "holds in part"),  # of 4 of 5: from 0.38
        ((0.1, 0, 0.1, 0, 0.1), "does not hold", "holds in part"),  # of 0.3 of 5: to 0.48
    ],
)
def test_the_claim_is_of_each_neuron_and_not_only_of_those_that_change_anything(
    moved: tuple[float, ...], said: str, verdict: str
) -> None:
    held, found, conclusion = judged(grown("a", 0.55, moved))
    assert found == verdict and f"That most added neurons change anything {said}:" in conclusion
    hits = sum(v > 0 for v in moved)
    assert (held["moved:a"].value, held["moved:a"].count) == (hits, 5)
    assert f": of 5 cases (an added neuron and a seed) in a, {hits} changed the image (" in conclusion
    still = f"In {1 - hits / 5:.0%} of the cases in a nothing changed at all, since the added neuron has no gradient."
    assert (still in conclusion) is (hits < 5) and ("not in the shares given here" in conclusion) is (hits < 5)
    assert judged(grown("a", 0.0, moved))[1] == "does not hold"


@pytest.mark.parametrize(
    "shares", [(1.0,) * 2, (1.0,) * 3, (1.0,) * 4, (0.0,) * 2, (0.0,) * 4, (0.5, 0.75, 1.0, 1.0), (0.3, 0.1)]
)
def test_the_share_of_neurons_that_change_anything_has_wilsons_interval(shares: tuple[float, ...]) -> None:
    """Its ends are the means m at which the mean found is 1.96 standard errors, of m (1 - m), away."""
    found = growth_verdict.mean_share_finding("most:a", np.array(shares), "")
    mean, n, z = sum(shares) / len(shares), len(shares), stats.norm.ppf(0.975)

    def excess(m: float) -> float:
        return (mean - m) ** 2 - z**2 * m * (1 - m) / n

    low = optimize.brentq(excess, -1e-12, mean) if mean else 0.0
    high = optimize.brentq(excess, mean, 1 + 1e-12) if mean < 1 else 1.0
    if mean in (0, 1):  # the other root is at the mean itself
        low, high = (n / (n + z**2), 1.0) if mean else (0.0, z**2 / (n + z**2))
    assert (found.value, found.low, found.high, found.count) == pytest.approx((mean, low, high, n), abs=1e-9)
    if float(sum(shares)).is_integer():
        hits = stats.binomtest(int(sum(shares)), n).proportion_ci(0.95, "wilson")
        assert (found.low, found.high) == pytest.approx((hits.low, hits.high))
    decided = {(1.0, 4): True, (0.0, 4): False}.get((mean, n))
    assert growth_verdict.most_change({"most:a": found}, "a") is decided


def test_only_layers_in_which_neurons_change_nothing_are_said_to_have_such() -> None:
    def said(*moved: tuple[float, ...]) -> str:
        names = "abc"[: len(moved)]
        held = judged(*(grown(layer, 0.55, one) for layer, one in zip(names, moved, strict=True)))[0]
        return growth_verdict.still_phrase(held, names)

    every, none = (1, 1, 1, 1, 1), (0, 0, 0, 0, 0)
    assert said(every) == (
        "That most added neurons change anything holds: of 5 cases (an added neuron and a seed) in a, 5 changed the "
        "image (100% [57%, 100%], n = 5 features). "
    )
    assert said(every, none, every).endswith(
        ", and of 5 cases in b, 0 changed the image (0% [0%, 43%], n = 5 features), and of 5 cases in c, 5 changed the "
        "image (100% [57%, 100%], n = 5 features). In 100% of the cases in b nothing changed at all, since the added "
        "neuron has no gradient. These cases are not in the shares given here, although the claim is of each neuron. "
    )
    beyond = grown("a", 0.55).tail(1).assign(measure="beyond its own pixels", value=0.5)
    assert (
        "Of the change, 50% in a (n = 1 feature) are outside the pixels"
        in judged(pd.concat([grown("a", 0.55), beyond]))[2]
    )


def test_neurons_that_change_nothing_refute_what_is_otherwise_open() -> None:
    open_, none = grown("a", 0.55), grown("a", 0.55, (0, 0, 0, 0, 0))
    first = pd.DataFrame([open_.iloc[11]])  # a share of one feature decides nothing
    assert first["measure"].tolist() == ["outside the field"]
    kept = [rows[rows["measure"] != "outside the field"] for rows in (open_, none)]
    assert judged(pd.concat([kept[0], first]))[1] == "not decided"
    assert judged(pd.concat([kept[1], first]))[1] == "does not hold"


def test_the_layer_that_differs_is_named_with_its_reason() -> None:
    conclusion = judged(grown("a", 0.55), grown("b", 0.5), grown("c", 0.55, (1, 1, 1, 1, 0)))[2]
    assert "In a the claim holds. In b the claim holds in part, since the share is not clearly above half" in conclusion
    assert "In c the claim holds in part, since those neurons that change anything change the whole" in conclusion
    assert conclusion.startswith("Of the change by one more neuron that changes anything, 30% [")
    assert " in a (n = 4 of 6 features, 2 seeds)" in conclusion


def test_a_named_feature_without_a_share_has_a_reason() -> None:
    """Feature 4 of layer a has no share; its neuron changed nothing, and its field leaves 3 % free."""
    rows = grown("a", 0.55, (1, 1, 1, 1, 0))
    area = rows.tail(1).assign(measure="area outside the field", value=0.03)
    rows, units = pd.concat([rows, area, rows.tail(1).assign(seed=1)]), ("a:0", "a:4", "a:5")
    held = {f.name: f for f in growth_verdict.case_findings(rows, ("a",), units)}
    assert (held["moved of a:4"].value, held["moved of a:4"].count) == (0, 2)
    assert held["moved:a"].words.startswith("a: cases") and held["moved of a:4"].words.startswith("a:4, named: cases")
    for unit, value, gradient in (("a:0", 0.11, 1.0), ("a:4", None, 1.0), ("a:5", None, 0.0)):
        held[f"outside the field network of {unit}"] = Finding("", value, None, None, 2 if value else 0, "")
        held[f"has a gradient network of {unit}"] = Finding("", gradient, None, None, 1, "")
    assert growth_verdict.named_phrase(held) == (
        " Of a:0's change 11% are outside the field (n = 2 cases). a:4 has no value: its fields leave 3% of the image "
        "free, and in none of its 2 cases (added neuron and seed) the image changed at all. a:5 has no value: it has "
        "no gradient on noise."
    )


@pytest.mark.parametrize(
    ("outside", "linear", "excess", "verdict"),
    [
        ((0.3, 0.5), 0.0, (0.05, 0.2), "holds"),
        ((0.3, 0.5), 0.0, (-0.05, 0.2), "holds in part"),
        ((0.3, 0.5), 0.0, (None, None), "holds in part"),
        ((0.02, 0.18), 0.05, (-0.3, -0.1), "does not hold"),
        ((-0.02, 0.22), 0.0, (-0.3, -0.1), "does not hold"),
        ((-0.28, 0.78), 0.0, (-0.3, 0.2), "not decided"),
        ((-0.02, 0.22), 0.0, (None, None), "not decided"),
        ((None, None), 0.0, (None, None), "not decided"),
    ],
)
def test_the_verdict_on_growth_follows_its_rules(outside: tuple, linear: float, excess: tuple, verdict: str) -> None:
    def finding(low: float | None, high: float | None) -> Finding:
        return Finding("", low, low, high, 0 if low is None else 8, "")

    held = {"outside:a": finding(*outside), "outside linear:a": finding(0, linear), "excess:a": finding(*excess)}
    assert growth_verdict.judge_layer(held | {"most:a": finding(0.6, 1.0)}, "a") == verdict


def test_growth_is_restated_from_stored_rows_without_the_counts(tmp_path: Path) -> None:
    context = context_of(
        neuron_growth.STUDY, half_asleep(), ("relu",), tmp_path, size=12, features=2, units=("relu:1", "relu:3")
    )
    context = replace(context, results=tmp_path / "results")
    outcome = neuron_growth.measure(context, 12, 2)
    path = save_outcome(context, outcome, context.results)[0]
    assert neuron_growth.restate(StoredResult.read(path)) == (outcome.verdict, outcome.conclusion)
    assert "relu:1 has no value: it has no gradient on noise." in outcome.conclusion
    record = json.loads(path.read_text(encoding="utf-8"))
    record["findings"] = [f for f in record["findings"] if not f["name"].startswith(("moved", "most:", "area of"))]
    path.write_text(json.dumps(record), encoding="utf-8")
    assert neuron_growth.restate(StoredResult.read(path)) == (outcome.verdict, outcome.conclusion)


def test_the_added_neuron_is_the_last_of_its_prefix() -> None:
    network = load(small_inception(), input_size=32)
    layer, trace = network.layer("mixed", 32), network.trace(32)
    for channel in range(0, layer.channels, 3):
        chosen = neuron_growth.choose_added(network, "mixed", channel, 32)
        assert 0 < len(chosen) <= neuron_growth.ADDED and min(chosen) >= 1
        for k in chosen:
            rows, columns = trace.field("mixed", channel).bounds(k // layer.width, k % layer.width, 32, 32)
            seen = np.zeros((32, 32), dtype=bool)
            seen[rows, columns] = True
            assert seen.mean() <= neuron_growth.LARGEST_COVERAGE
