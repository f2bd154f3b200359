"""The study of maximised neurons on networks whose answer is known."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from analyses import maximised_unit, neuron_growth
from analyses.support import kinds, neurons, unit_verdict
from analyses.support.findings import Finding, share_finding
from analyses.support.image_sets import ImageSet, make_images
from analyses.support.records import save_outcome
from analyses.support.study import StoredResult
from featmap.network.loading import load
from featmap.optimize.recipe import INTERACT
from tests.helpers.studying import context_of, value_of

pytestmark = pytest.mark.usefixtures("one_thread")


class Windows(nn.Module):
    """A module of four branches of means: windows of 1, 9, 9 and 3 pixels a side, so that interior ones see more."""

    SIDES = (1, 9, 9, 3)

    def __init__(self) -> None:
        super().__init__()
        for k, side in enumerate(self.SIDES):
            conv = nn.Conv2d(3, 4, side, 4, side // 2, bias=False)
            with torch.no_grad():
                colours = torch.randn(4, 3, 1, 1, generator=torch.Generator().manual_seed(k))
                conv.weight.copy_(colours.expand_as(conv.weight) / side**2)
            self.add_module(f"branch{k}", conv)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([getattr(self, f"branch{k}")(x) for k in range(4)], 1)


def windows() -> nn.Module:
    return nn.Sequential(OrderedDict(mixed=Windows())).eval()


class Either(nn.Module):
    """Features 0 to 5 are linear; 6 to 8 are the larger of two of them: the start decides which pattern comes."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Conv2d(3, 6, 5, 2, 2, bias=False)
        with torch.no_grad():
            weight = torch.randn(self.parts.weight.shape, generator=torch.Generator().manual_seed(1))
            weight -= weight.mean((1, 2, 3), keepdim=True)
            self.parts.weight.copy_(
                weight / weight.square().sum((1, 2, 3), keepdim=True).sqrt()
            )  # none is the better one

    def forward(self, x: Tensor) -> Tensor:
        parts = self.parts(x)
        one, two = parts[:, 0::2], parts[:, 1::2]
        return torch.cat([parts, two + torch.relu(one - two)], 1)


def either() -> nn.Module:
    return nn.Sequential(OrderedDict(maximum=Either())).eval()


def test_neurons_change_the_image_within_their_receptive_field(tmp_path: Path) -> None:
    context = context_of(maximised_unit.STUDY, windows(), ("mixed",), tmp_path, size=48, features=8)
    outcome = maximised_unit.measure(context, 48, 4, starts=2)
    # windows are symmetric and lie within the image: the change is centred on the field, but for blur at the border
    assert value_of(outcome, "error") < 0.3
    layer = context.network.layer("mixed", 48)
    apart = []
    for channel in neurons.draw_by_branch(context, layer):
        at = 4.0 * np.array(neurons.draw_positions(layer, channel, (6, 6)))
        apart.append(np.linalg.norm(at[:, None] - at, axis=2).sum() / (8 * 7))
    assert value_of(outcome, "floor") == pytest.approx(np.mean(apart), abs=0.1)
    assert value_of(outcome, "follows") == pytest.approx(1, abs=1e-3)
    narrow, wide = (value_of(outcome, f"radius mixed branch{k}") for k in (0, 1))
    # the energy of a square of 81 pixels within r of its middle: 73 of them, 90 %, lie within the root of 25
    assert wide == pytest.approx(5, abs=0.8)
    assert narrow < 2.5  # one pixel, and what four blurs make of it
    assert value_of(outcome, "wider first") > value_of(outcome, "wider last") > 0.2
    assert value_of(outcome, "field first") == pytest.approx((9 - 1) / 5.5)
    assert value_of(outcome, "field last") == pytest.approx((9 - 3) / 5.5)
    assert value_of(outcome, "more mixed branch1") == pytest.approx(wide - narrow)
    assert value_of(outcome, "truncated") == 0
    assert value_of(outcome, "kinds images") == value_of(outcome, "kinds profiles") == 1  # linear: one pattern each
    assert value_of(outcome, "images starts") < 1e-4
    assert outcome.verdict == "holds in part", "eight neurons with one pattern each leave the third part undecided"
    assert "(n = 8 features at up to 8 positions each, 1 start)" in outcome.conclusion
    assert outcome.conclusion.count("(n = 4 against 2 neurons of mixed)") == 2
    assert [value_of(outcome, f"neurons {which}") for which in ("interior", "first", "last")] == [4, 2, 2]
    assert (
        "images of one neuron is not decided: of 8 neurons with 2 starts each, 0% [0%, 32%] hav" in outcome.conclusion
    )


def test_a_neuron_that_is_the_larger_of_two_answers_two_patterns(tmp_path: Path) -> None:
    context = context_of(maximised_unit.STUDY, either(), ("maximum",), tmp_path, size=24, features=9)
    outcome = maximised_unit.measure(context, 24, 6, starts=8)
    counts = outcome.rows[outcome.rows["measure"] == "different images"].set_index("feature")["value"]
    kinds = {int(f.split(":")[0]): v for f, v in counts.items()}
    assert {v for f, v in kinds.items() if f < 6} == {1.0}
    assert max(v for f, v in kinds.items() if f >= 6) == 2.0  # where both reach 90 % of the better one
    assert value_of(outcome, "several images") == pytest.approx(np.mean([v > 1 for v in kinds.values()]))


def test_channels_are_drawn_of_every_branch() -> None:
    context = context_of(maximised_unit.STUDY, windows(), ("mixed",), Path("unused"), size=48, features=8)
    layer = context.network.layer("mixed", 48)
    chosen = neurons.draw_by_branch(context, layer)
    assert [sum(layer.branch(c) == f"branch{k}" for c in chosen) for k in range(4)] == [2, 2, 2, 2]
    assert chosen == neurons.draw_by_branch(context, layer)
    named = replace(context, units=("mixed:7", "mixed:0", "mixed:5"))
    again = neurons.draw_by_branch(named, layer)
    assert again[:3] == [7, 0, 5] and len(set(again)) == len(again) == 8
    assert [sum(layer.branch(c) == f"branch{k}" for c in again) for k in range(4)] == [2, 2, 2, 2]
    assert neurons.draw_by_branch(replace(context, units=("first",)), layer) == list(range(8))
    ends = [neurons.Neurons(layer, [], [], [], None, None, [], True).branch_position(c) for c in range(16)]  # type: ignore[arg-type]
    assert ends == [-1] * 4 + [0] * 8 + [1] * 4


def test_places_are_drawn_for_each_channel_and_leave_out_the_border() -> None:
    layer = load(windows(), input_size=48).layer("mixed", 48)
    every = set()
    for channel in range(16):
        chosen = neurons.draw_positions(layer, channel, (6, 6))
        assert len(set(chosen)) == neurons.POSITIONS and (6, 6) not in chosen and chosen == sorted(chosen)
        assert chosen == neurons.draw_positions(layer, channel, (6, 6))
        every |= set(chosen)
    assert {m for m, _ in every} == {n for _, n in every} == set(range(1, 11)) and len(every) > 60
    assert neurons.draw_positions(replace(layer, height=2, width=2), 0, (1, 1)) == [(0, 0), (0, 1), (1, 0)]
    assert neurons.draw_positions(replace(layer, height=1, width=1), 0, (0, 0)) == []


def wide(side: int) -> nn.Module:
    conv = nn.Conv2d(3, 4, side, 4, side // 2, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.randn(conv.weight.shape, generator=torch.Generator().manual_seed(0)))
    return nn.Sequential(OrderedDict(conv=conv)).eval()


def test_images_are_so_large_that_the_middle_neurons_fields_fit_into_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window of 31 every 4 pixels, centred on 4 m: in 32 pixels that on 16 sees 1 to 31, in 16 none fits."""
    monkeypatch.setattr(neurons, "LARGEST_SIZE", 64)
    network = load(wide(31), input_size=16)
    layer, field = network.layer("conv", 32), network.trace(32).field("conv", 0)
    assert neurons.central_position(layer, [field], 32) == (4, 4)
    assert neurons.field_inside(field, (4, 4), 32) and not neurons.field_inside(field, (3, 4), 32)
    assert not neurons.field_inside(field, (4, 5), 32)
    assert neurons.fitting_size(network, ["conv"], 16) == 32
    assert neurons.fitting_size(load(wide(67), input_size=16), ["conv"], 16) == 16, "none does up to the limit"


def test_layers_with_fields_beyond_the_image_have_no_radius(tmp_path: Path) -> None:
    context = context_of(maximised_unit.STUDY, wide(31), ("conv",), tmp_path, size=16, features=4)
    outcome = maximised_unit.measure(context, 16, 2, starts=1)
    assert value_of(outcome, "truncated") == 1
    assert [f.value for f in outcome.findings if f.name.startswith(("wider", "field"))] == [None] * 6


def test_one_branch_cannot_carry_the_claim() -> None:
    def finding(name: str, low: float, high: float) -> Finding:
        return Finding(name, (low + high) / 2, low, high, 8, "")

    good = {"error": (2, 3), "floor": (20, 30), "wider first": (0.2, 0.4), "several profiles": (0.2, 0.4)}
    good |= dict.fromkeys(("follows", "several images", "field first", "field last"), (0.5, 0.6))
    good |= {"profiles starts": (0.4, 0.5), "profiles neurons": (0.9, 1.1)}
    for last, field, verdict in (
        ((0.1, 0.2), 0.5, "holds"),
        ((-0.1, 0.2), 0.5, "holds in part"),
        ((-0.2, -0.1), 0.5, "holds in part"),
        ((-0.1, 0.2), 0.0, "holds in part"),  # the same analytic field: one of two comparisons is left out
    ):
        ends = good | {"wider last": last, "field last": (field, field)}
        given = {name: finding(name, *of) for name, of in ends.items()}
        assert unit_verdict.judge(given)[0] == verdict
        conclusion = unit_verdict.judge(given)[1]
        assert ("With the last branch they are not compared" in conclusion) == (field == 0)
        assert ("interior channels extend further holds in part: " in conclusion) == (field == 0)
        assert "0.45 apart (1 - r, n = 8 neurons), and has to be more than 0.50 apart to differ" in conclusion
    spanning = good | {"wider last": (-0.1, 0.2), "field last": (0.5, 0.5), "several profiles": (0.01, 0.3)}
    held = {name: finding(name, *of) for name, of in spanning.items()}
    assert unit_verdict.interior_wider(held) is None, "an interval that spans 0 decides nothing"
    assert "images of one neuron is not decided" in unit_verdict.judge(held)[1], "nor do few neurons"
    below = held | {"wider last": finding("", -0.2, -0.1), "several profiles": finding("", 0.0, 0.04)}
    assert unit_verdict.interior_wider(below) is False
    assert "images of one neuron does not hold" in unit_verdict.judge(below)[1]
    overlapping, elsewhere = below | {"error": finding("", 20, 40)}, below | {"error": finding("", 31, 40)}
    assert unit_verdict.judge(overlapping)[0] == unit_verdict.judge(elsewhere)[0] == "does not hold"
    assert "neuron's position is not decided" in unit_verdict.judge(overlapping)[1]
    assert "neuron's position does not hold" in unit_verdict.judge(elsewhere)[1]
    undecided = held | {"error": finding("", 20, 40)}
    assert unit_verdict.judge(undecided)[0] == "not decided", "no part is decided"
    none = {name: finding(name, 0, 0) for name in (*good, "wider last")}
    assert unit_verdict.interior_wider(none) is None and "extend further is not decided" in unit_verdict.judge(none)[1]


def test_few_neurons_cannot_refute_variety() -> None:
    """Wilson's interval of no hit, as scipy computes it, ends above 5 % for 72 and below for 73."""
    ends = [stats.binomtest(0, n).proportion_ci(0.95, "wilson").high for n in (72, 73)]
    assert ends[0] > unit_verdict.MANY >= ends[1] and unit_verdict.NEEDED == 73
    assert str(unit_verdict.NEEDED) in maximised_unit.STUDY.rule

    def say(hits: int, count: int) -> str:
        held = dict.fromkeys(
            ("profiles starts", "profiles neurons", "several images"), Finding("", 0.5, 0.4, 0.6, 9, "")
        )
        return unit_verdict.variety_phrase(held | {"several profiles": share_finding("", hits, count, "")})

    for count in (1, 16, 72):
        assert "To refute this part it takes at least 73 neurons: with fewer the interval ends above 5%" in say(
            0, count
        )
    assert "refute" not in say(0, 73)
    low, high = stats.binomtest(1, 8).proportion_ci(0.95, "wilson")
    assert low < unit_verdict.MANY < high, "not decided, although one of the neurons has several"
    assert "12% [2%, 47%]" in say(1, 8) and "refute" not in say(1, 8)
    assert stats.binomtest(2, 300).proportion_ci(0.95, "wilson").high < unit_verdict.MANY, "a few of many refute it too"
    assert say(0, 1).startswith("of 1 neuron with several starts each, 0% [0%, 79%] have")


def test_a_share_of_neurons_that_is_undefined_is_said_to_be(tmp_path: Path) -> None:
    """One neuron has no other whose images its own could be compared with."""
    context = context_of(maximised_unit.STUDY, wide(7), ("conv",), tmp_path, size=24, features=1)
    outcome = maximised_unit.measure(context, 24, 2, starts=2)
    assert next(f for f in outcome.findings if f.name == "several profiles").value is None
    words = "images of one neuron is not decided: the share of neurons with two or more clearly different images is un"
    assert words in outcome.conclusion and "of 0 neurons" not in outcome.conclusion
    assert "refute" not in outcome.conclusion


def test_profiles_are_less_the_null_image_of_their_start() -> None:
    """Two neurons from three starts; all responses follow the start as well, by an offset of its own."""
    rng = np.random.default_rng(7)
    own, offset = rng.normal(size=(2, 20)), 30 * rng.normal(size=(3, 20))
    made = ImageSet(
        ("a:0:0:0", "a:1:0:0"),
        np.zeros((3, 2, 3, 4, 4)),
        np.zeros((3, 3, 4, 4)),
        np.ones((3, 2)),
        np.ones((3, 2), dtype=bool),
        own + offset[:, None],
        offset,
    )
    Z = kinds.standardised_profiles(made)
    assert np.ptp(Z, axis=0).max() < 1e-9, "what is left is the neuron's alone, whatever the start"
    apart = kinds.median_distance(Z, made.live)
    counts, between = kinds.count_kinds(Z, made, 1 - unit_verdict.HALF * apart)
    assert counts.tolist() == [1, 1] and between == pytest.approx([0, 0], abs=1e-9) and apart > 1
    with_null = kinds.standardised_profiles(replace(made, null_A=np.zeros((3, 20))))
    apart = kinds.median_distance(with_null, made.live)
    assert kinds.count_kinds(with_null, made, 1 - unit_verdict.HALF * apart)[0].tolist() == [3, 3]


def test_neurons_keep_the_responses_of_their_null_images(tmp_path: Path) -> None:
    context = context_of(maximised_unit.STUDY, either(), ("maximum",), tmp_path, size=16, seeds=2)
    recipe = INTERACT.resolved(16, 16, 2)
    made = make_images(context, ["maximum:0:3:3", "maximum:4:3:3"], recipe, "some", probe="maximum")
    with torch.no_grad():
        null = context.network.module(torch.from_numpy(made.nulls)).mean((2, 3)).numpy()
    np.testing.assert_allclose(made.null_A, null, atol=1e-4)
    assert made.subset(slice(1, 2)).risen.shape == (2, 1, 9)
    np.testing.assert_allclose(made.risen[1, 0], made.responses[1, 0] - made.null_A[1])  # type: ignore[index]


def test_layers_whose_fields_do_not_fit_are_named_and_named_neurons_reported(tmp_path: Path) -> None:
    context = context_of(
        maximised_unit.STUDY, wide(31), ("conv",), tmp_path, size=16, features=2, units=("conv:3", "conv:0")
    )
    outcome = maximised_unit.measure(context, 16, 2, starts=2)
    assert (
        "The radius is not compared in conv: not all branches there have neurons whose fields fit into the 16 pix"
        in outcome.conclusion
    )
    named = {f.name: f for f in outcome.findings if ", named: " in f.words}
    assert {name.rpartition(" of ")[2] for name in named} == {"conv:3", "conv:0"} and len(named) == 8
    own = outcome.rows[(outcome.rows["measure"] == "radius") & (outcome.rows["feature"].str.split(":").str[0] == "3")]
    assert named["radius interact of conv:3"].value == pytest.approx(own["value"].mean())
    assert set(outcome.rows["feature"].str.split(":").str[0]) == {"0", "3"}
    radii = [f"{named[f'radius interact of conv:{k}'].value:.1f} pixels for conv:{k} (n = 2 starts)" for k in (3, 0)]
    assert f"named features, in images of 16 pixels, are {' and '.join(radii)}." in outcome.conclusion


def test_a_neuron_is_restated_from_stored_rows_without_the_counts(tmp_path: Path) -> None:
    context = context_of(maximised_unit.STUDY, windows(), ("mixed",), tmp_path, size=24, features=8)
    outcome = maximised_unit.measure(context, 24, 2, starts=2)
    path = save_outcome(context, outcome, tmp_path / "results")[0]
    assert maximised_unit.restate(StoredResult.read(path)) == (outcome.verdict, outcome.conclusion)
    record = json.loads(path.read_text(encoding="utf-8"))
    record["findings"] = [f for f in record["findings"] if not f["name"].startswith(("neurons", "positions"))]
    path.write_text(json.dumps(record), encoding="utf-8")
    assert maximised_unit.restate(StoredResult.read(path)) == (outcome.verdict, outcome.conclusion)


def test_layers_that_are_left_out_are_not_counted() -> None:
    values = [("radius", "interact", layer, f"{k}:1:1", 1.0) for layer in ("a", "b") for k in range(4)]
    values += [("end", "", layer, f"{k}:1:1", end) for layer in ("a", "b") for k, end in enumerate((-1, 0, 0, 1))]
    values += [("error", "interact", "b", f"{k}:{at}:2", 1.0) for k in range(2) for at in range(1, 3 + k)]
    rows = pd.DataFrame(values, columns=["measure", "recipe", "layer", "feature", "value"]).assign(against=None)
    left = Finding("truncated", 1, None, None, 2, "layers ... beyond the 9 pixels, not in this comparison (a)")
    found = unit_verdict.count_findings(rows, left)
    assert {k: f.value for k, f in found.items()} == {
        "neurons interior": 2,
        "neurons first": 1,
        "neurons last": 1,
        "positions": 3,  # feature 0 has two, feature 1 three
    }
    assert found["neurons first"].words.endswith("(b)") and found["positions"].count == 2
    assert unit_verdict.group_layers(found) == " of b"


class Expand(nn.Module):
    """A module of two branches, as SqueezeNet's: means over windows of 1 and of 9 pixels a side."""

    def __init__(self) -> None:
        super().__init__()
        for k, side in enumerate((1, 9)):
            conv = nn.Conv2d(3, 4, side, 4, side // 2, bias=False)
            with torch.no_grad():
                colours = torch.randn(4, 3, 1, 1, generator=torch.Generator().manual_seed(k))
                conv.weight.copy_(colours.expand_as(conv.weight) / side**2)
            self.add_module(f"branch{k}", conv)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch0(x), self.branch1(x)], 1)


def test_modules_of_two_branches_have_no_interior_and_compare_the_two(tmp_path: Path) -> None:
    module = nn.Sequential(OrderedDict(fire=Expand())).eval()
    context = context_of(maximised_unit.STUDY, module, ("fire",), tmp_path, size=24, features=8)
    outcome = maximised_unit.measure(context, 24, 2, starts=1)
    assert [f.value for f in outcome.findings if f.name in ("wider first", "wider last")] == [None, None]
    # Sides of 1 and 9 pixels, relative to their mean of 5: they differ by 8 / 5.
    assert value_of(outcome, "field outer") == pytest.approx(1.6)
    assert next(f.low for f in outcome.findings if f.name == "wider outer") > 0
    assert (
        "interior channels extend further is not decided: no channel is interior, as in modules of two branches. "
        in outcome.conclusion
    )
    assert "by +1.60." in outcome.conclusion and outcome.verdict != "holds"


@pytest.mark.parametrize(("module", "count"), [(Expand, 2), (Windows, 4)])
def test_one_neuron_of_a_branch_is_not_compared_and_the_branch_is_not_denied(
    module: type[nn.Module], count: int, tmp_path: Path
) -> None:
    network = nn.Sequential(OrderedDict(mixed=module())).eval()
    context = context_of(maximised_unit.STUDY, network, ("mixed",), tmp_path, size=24, features=count)
    outcome = maximised_unit.measure(context, 24, 2, starts=1)
    assert {f.value for f in outcome.findings if f.name in ("wider first", "wider last", "wider outer")} == {None}
    assert "there is no" not in outcome.conclusion.lower() and "undefined of" not in outcome.conclusion
    if module is Expand:
        # sides of 1 and 9 pixels, relative to their mean of 5
        assert "no channel is interior, as in modules of two branches. The radii of the last br" in outcome.conclusion
        assert "(n = 1 and 1 neurons of mixed); their fields' sides differ by +1.60 of their" in outcome.conclusion
    else:
        words = "h the {} branch they are not compared, for which it takes two neurons of each (n = 2 against 1 neurons"
        assert all(words.format(which) in outcome.conclusion for which in ("first", "last"))
    path = save_outcome(context, outcome, tmp_path / "results")[0]
    assert maximised_unit.restate(StoredResult.read(path)) == (outcome.verdict, outcome.conclusion)


def test_layers_without_two_branches_have_nothing_to_compare() -> None:
    names = ("field first", "field last", "field outer", "wider first", "wider last", "wider outer")
    held = dict.fromkeys(names, Finding("", None, None, None, 0, ""))
    left = Finding("truncated", 2, None, None, 2, "layers ... beyond the 9 pixels, not in this comparison (a, b)")
    assert unit_verdict.extent_phrase(held | {"truncated": left}) == (
        "there are no two branches to compare. The radius is not compared in a and b: not all branches there have "
        "neurons whose fields fit into the 9 "
        "pixels."
    )
    field = Finding("", 0.5, None, None, 3, "")
    text = unit_verdict.extent_phrase(held | {"field last": field, "wider last": Finding("", 0.2, 0.1, 0.3, 4, "")})
    assert text.startswith("there is no first branch to compare with. The radius of their change is larger than the la")


def test_a_radius_of_few_channels_has_no_interval_below_0(tmp_path: Path) -> None:
    context = context_of(maximised_unit.STUDY, windows(), ("mixed",), tmp_path, size=24, features=8)
    held = maximised_unit.measure(context, 24, 2, starts=1).findings
    assert [f.low for f in held if f.name.startswith("radius") and (f.low or 0) < 0] == []


def test_grids_of_one_neuron_are_undefined_and_no_error(tmp_path: Path) -> None:
    conv = nn.Conv2d(3, 4, 8)
    with torch.no_grad():
        conv.weight.copy_(torch.randn(conv.weight.shape, generator=torch.Generator().manual_seed(2)))
    network = nn.Sequential(OrderedDict(conv=conv)).eval()
    growth = context_of(neuron_growth.STUDY, network, ("conv",), tmp_path, size=8, features=2)
    outcome = neuron_growth.measure(growth, 8, 2)
    assert outcome.verdict == "not decided"
    assert {f.value for f in outcome.findings if not f.name.startswith("dead")} == {None}
    unit = context_of(maximised_unit.STUDY, network, ("conv",), tmp_path, size=8, features=2)
    alone = maximised_unit.measure(unit, 8, 2, starts=2)
    assert [f.value for f in alone.findings if f.name in ("error", "follows", "wider last")] == [None, None, None]
    assert alone.verdict == "not decided", "one position, no branches and two neurons decide nothing"
