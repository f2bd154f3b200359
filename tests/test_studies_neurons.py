"""The studies of maximised neurons and of growing prefixes on networks whose answer is known."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from analyses import maximised_unit, neuron_growth
from analyses.studies import Finding
from featmap.models import load
from tests.networks import linear_network, small_inception
from tests.studying import context_of, found

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


def test_neurons_change_the_image_at_their_place_and_as_far_as_their_branch_sees(tmp_path: Path) -> None:
    context = context_of(maximised_unit.STUDY, windows(), ("mixed",), tmp_path, size=48, features=8)
    outcome = maximised_unit.measure(context, 48, 4, starts=2)
    # windows are symmetric and lie within the image: the change is centred on the field
    assert found(outcome, "error") < 0.01
    assert found(outcome, "floor") == pytest.approx(
        (24 + 24 + 24 * np.sqrt(2)) / 3, abs=0.5
    )  # places 6 cells of 4 apart
    assert found(outcome, "follows") == pytest.approx(1, abs=1e-6)
    narrow, wide = (found(outcome, f"radius mixed branch{k}") for k in (0, 1))
    # the energy of a square of 81 pixels within r of its middle: 73 of them, 90 %, lie within the root of 25
    assert wide == pytest.approx(5, abs=0.8)
    assert narrow < 2.5  # one pixel, and what four blurs make of it
    assert found(outcome, "wider") > 0.5
    assert found(outcome, "kinds images") == found(outcome, "kinds profiles") == 1  # linear: one pattern each
    assert found(outcome, "images starts") < 1e-4
    assert outcome.verdict == "holds in part"


def test_a_neuron_that_is_the_larger_of_two_answers_two_patterns(tmp_path: Path) -> None:
    context = context_of(maximised_unit.STUDY, either(), ("maximum",), tmp_path, size=24, features=9)
    outcome = maximised_unit.measure(context, 24, 6, starts=8)
    counts = outcome.rows[outcome.rows["measure"] == "different images"].set_index("feature")["value"]
    kinds = {int(f.split(":")[0]): v for f, v in counts.items()}
    assert {v for f, v in kinds.items() if f < 6} == {1.0}
    assert max(v for f, v in kinds.items() if f >= 6) == 2.0  # where both reach 90 % of the better one
    assert found(outcome, "several images") == pytest.approx(np.mean([v > 1 for v in kinds.values()]))


def test_channels_are_drawn_of_every_branch() -> None:
    context = context_of(maximised_unit.STUDY, windows(), ("mixed",), Path("unused"), size=48, features=8)
    layer = context.network.layer("mixed", 48)
    chosen = maximised_unit.stratified(context, layer)
    assert [sum(layer.branch(c) == f"branch{k}" for c in chosen) for k in range(4)] == [2, 2, 2, 2]
    assert chosen == maximised_unit.stratified(context, layer)
    assert maximised_unit.places(6, 6) == [(1, 1), (1, 4), (4, 1), (4, 4)]
    assert maximised_unit.places(2, 2) == [(0, 0), (0, 1), (1, 0)]
    assert maximised_unit.places(1, 1) == []


def test_in_a_linear_network_one_more_neuron_changes_only_its_own_field(tmp_path: Path) -> None:
    context = context_of(
        neuron_growth.STUDY, linear_network(), ("conv2", "conv3"), tmp_path, size=20, features=3, seeds=2
    )
    outcome = neuron_growth.measure(context, 20, 5)
    assert found(outcome, "outside") < 1e-9
    assert found(outcome, "outside linear") < 1e-9
    assert found(outcome, "elsewhere") < 1e-4
    assert found(outcome, "outside seeds") > 0.3  # another seed changes everything... by its rounding alone
    own = outcome.rows[outcome.rows["measure"] == "beyond its own pixels"]["value"]
    assert own.max() < 0.05 + 1e-6  # what it changes with the others is what it changes alone
    assert found(outcome, "moves") == 1
    assert outcome.verdict == "does not hold"


def test_in_a_network_with_kinks_it_changes_more_and_its_twin_does_not(tmp_path: Path) -> None:
    context = context_of(neuron_growth.STUDY, small_inception(), ("mixed",), tmp_path, size=32, features=4, seeds=2)
    outcome = neuron_growth.measure(context, 32, 8)
    assert found(outcome, "outside") > 1e-3
    assert found(outcome, "outside linear") < 1e-9
    assert found(outcome, "beyond") > 0.07 > found(outcome, "beyond linear")
    film = outcome.figures["-growth.webp"]
    assert isinstance(film, bytes) and film[:4] == b"RIFF"


@pytest.mark.parametrize(
    ("outside", "linear", "seeds", "verdict"),
    [
        ((0.4, 0.3), (0.0, 0.0), 0.5, "holds"),
        ((0.4, 0.2), (0.0, 0.0), 0.5, "holds in part"),
        ((0.1, 0.02, 0.18), (0.04, 0.05), 0.5, "does not hold"),
        ((0.1, -0.02, 0.22), (0.0, 0.0), 0.5, "does not hold"),
        ((0.25, -0.28, 0.78), (0.0, 0.0), 0.5, "not decided"),
        ((0.1, -0.02, 0.22), (0.0, 0.0), None, "not decided"),
        ((None, None), (0.0, 0.0), None, "not decided"),
    ],
)
def test_the_verdict_on_growth_follows_its_rules(outside: tuple, linear: tuple, seeds: float, verdict: str) -> None:
    def finding(value: float | None, low: float | None = None, high: float | None = None) -> Finding:
        return Finding("", value, low, high, 8, "")

    found_ = {k: finding(None) for k in ("beyond", "beyond linear", "elsewhere")}
    found_ |= {"outside": finding(*outside), "outside linear": finding(linear[0], None, linear[1])}
    assert neuron_growth.judged(found_ | {"outside seeds": finding(seeds)})[0] == verdict


def test_the_added_neuron_is_the_last_of_its_prefix_and_leaves_a_fifth_of_the_image() -> None:
    network = load(small_inception(), input_size=32)
    layer, trace = network.layer("mixed", 32), network.trace(32)
    for channel in range(0, layer.channels, 3):
        chosen = neuron_growth.added(network, "mixed", channel, 32)
        assert 0 < len(chosen) <= neuron_growth.ADDED and min(chosen) >= 1
        for k in chosen:
            rows, columns = trace.field("mixed", channel).bounds(k // layer.width, k % layer.width, 32, 32)
            seen = np.zeros((32, 32), dtype=bool)
            seen[rows, columns] = True
            assert seen.mean() <= neuron_growth.LARGEST


def test_grids_of_one_neuron_are_undefined_and_no_error(tmp_path: Path) -> None:
    conv = nn.Conv2d(3, 4, 8)
    with torch.no_grad():
        conv.weight.copy_(torch.randn(conv.weight.shape, generator=torch.Generator().manual_seed(2)))
    network = nn.Sequential(OrderedDict(conv=conv)).eval()
    growth = context_of(neuron_growth.STUDY, network, ("conv",), tmp_path, size=8, features=2)
    outcome = neuron_growth.measure(growth, 8, 2)
    assert outcome.verdict == "not decided"
    assert {f.value for f in outcome.findings} == {None}
    unit = context_of(maximised_unit.STUDY, network, ("conv",), tmp_path, size=8, features=2)
    alone = maximised_unit.measure(unit, 8, 2, starts=2)
    assert [f.value for f in alone.findings if f.name in ("error", "follows", "wider")] == [None, None, None]
    assert alone.verdict == "does not hold"
