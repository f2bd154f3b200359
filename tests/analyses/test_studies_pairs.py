"""Studies of the article's pair and of branches, on tiny networks whose answers are known."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from operator import itemgetter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from analyses import branches, joint_pair
from analyses.formulas.partitions import PermutationTest
from analyses.support.records import save_outcome
from analyses.support.study import StoredResult
from featmap.plotting import interaction_panel
from featmap.plotting.interaction_panel import Panel
from featmap.stats.interaction import ROUNDING
from featmap.stats.reliability import Interval
from tests.helpers.couples import gated
from tests.helpers.networks import linear_network
from tests.helpers.studying import context_of, value_of

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_linear_network_has_no_interaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, draw = list[Panel](), interaction_panel.panel
    monkeypatch.setattr(interaction_panel, "panel", lambda given: (shown.append(given), draw(given))[1])
    context = context_of(joint_pair.STUDY, linear_network(), ("conv2", "conv3"), tmp_path, seeds=3, features=6)
    outcome = joint_pair.measure(context)
    assert value_of(outcome, "headline") < ROUNDING and value_of(outcome, "p") == 1
    assert abs(value_of(outcome, "random_excess")) < ROUNDING
    assert outcome.verdict == "does not hold"
    assert outcome.conclusion.startswith("conv2:7 + conv3:1: 0.0 %")  # channels 199 and 201 of 8 and 5, counted round
    pairs = outcome.rows.groupby(["a", "b"])["named"].first()
    assert len(pairs) == 3 and pairs.sum() == 1 and pairs["conv2:7", "conv3:1"]
    assert [p.title for p in shown] == ["conv2:7 + conv3:1: additive"]  # of three pairs in the run, its own seeds only
    assert {len(strip.values) for strip in shown[0].strips} == {3}
    used = [name for pair in pairs.index for name in pair]
    assert len(set(used)) == len(used)


def test_one_seed_decides_nothing(tmp_path: Path) -> None:
    outcome = joint_pair.measure(context_of(joint_pair.STUDY, gated(), ("colours", "gates"), tmp_path, features=1))
    assert outcome.verdict == "not decided"
    assert outcome.figures[".webp"][:4] == b"RIFF"


def test_the_articles_size_is_299_pixels_and_300_steps(tmp_path: Path) -> None:
    job = joint_pair.make_job(context_of(joint_pair.STUDY, linear_network(), ("conv2", "conv3"), tmp_path, full=True))
    assert (job.recipe.size, job.recipe.steps, job.recipe.name) == (299, 300, "interact-unrescued")


def test_a_pair_can_be_named_and_the_others_are_drawn_all_the_same(tmp_path: Path) -> None:
    units = ("conv3:4", "conv2:0", "conv2:1")
    context = context_of(
        joint_pair.STUDY, linear_network(), ("conv2", "conv3"), tmp_path, features=9, seeds=2, units=units
    )
    (first, second), *random = joint_pair.make_job(context).groups
    assert (str(first), str(second)) == ("conv2:0", "conv3:4")
    assert len(random) == 3 and not {str(u) for pair in random for u in pair} & set(units)


def evidence(
    excess: tuple[float, float] = (np.nan, np.nan),
    maps: tuple[float, float] = (np.nan, np.nan),
    way: float = np.nan,
    field: float = 0.5,
) -> joint_pair.PairEvidence:
    return joint_pair.PairEvidence(excess, maps, way, field)


@pytest.mark.parametrize(
    ("excess", "maps", "way", "expected"),
    [
        ((np.nan, np.nan), (np.nan, np.nan), 0.9, "not decided"),
        ((-0.02, 0.067), (-0.1, 0.2), 0.9, "not decided"),
        ((-0.02, 0.067), (0.1, 0.2), 0.9, "does not hold"),
        ((-0.02, 0.019), (-0.1, 0.2), 0.9, "does not hold"),
        ((0.001, 0.019), (-0.1, 0.2), 0.9, "does not hold"),
        ((-0.02, 0.019), (-0.2, -0.1), 0.9, "holds in part"),
        ((0.1, 0.4), (-0.2, -0.1), 0.51, "holds"),
        ((0.1, 0.4), (-0.2, 0.1), 0.51, "holds in part"),
        ((0.1, 0.4), (0.1, 0.2), 0.51, "holds in part"),
        ((0.1, 0.4), (-0.2, -0.1), 0.49, "holds in part"),
    ],
)
def test_the_pair_is_judged_by_its_linearity_and_by_where_each_fires(
    excess: tuple[float, float], maps: tuple[float, float], way: float, expected: str
) -> None:
    row = {"retention_a": 0.4, "retention_b": 0.9}
    found = evidence(excess, maps, way)
    assert joint_pair.judge(pd.Series(row), found) == expected
    lost = joint_pair.judge(pd.Series(row | {"retention_a": 0.05}), found)
    assert lost == ("holds in part" if expected == "holds" else expected), "an image of one unit is none of two"


def test_where_two_fire_is_not_judged_in_images_smaller_than_their_fields(tmp_path: Path) -> None:
    assert evidence(maps=(-0.2, -0.1), field=1.0).divided == "holds"
    assert evidence(maps=(-0.2, -0.1), field=1.01).divided == "is not decided"
    assert evidence(maps=(-0.2, -0.1), field=np.nan).divided == "holds"
    # three 3 x 3 convolutions, the second with a stride of 2: fields of 5 and, with two steps of 2 more, 9 pixels
    context = context_of(joint_pair.STUDY, linear_network(), ("conv2", "conv3"), tmp_path)
    group = joint_pair.article_pair(context)
    assert joint_pair.share_of_field(context, group, 14) == pytest.approx(9 / 14)


def test_lost_units_and_undefined_pairs_are_reported(tmp_path: Path) -> None:
    job = joint_pair.make_job(context_of(joint_pair.STUDY, linear_network(), ("conv2", "conv3"), tmp_path, seeds=3))
    units = [str(unit) for unit in job.groups[0]]
    named = {
        "status": "ok",
        "seeds": 3,
        "response_nonlinearity": 0.2,
        "low": 0.1,
        "high": 0.3,
        "p": 0.01,
        "excess": 0.1,
    }
    named |= {"response_nonlinearity_floor": 0.1, "response_nonlinearity_ceiling": 0.5}
    named |= {"territory_divided": 0.75, "territory_correlation": -0.354}
    row = pd.Series(named | {"retention_a": 0.04, "retention_b": 1.0})
    values = {"excess": [0.1, 0.2, np.nan], "q": [0.01, 0.5, np.nan], "status": ["ok", "ok", "dead partner"]}
    values |= {"territory_correlation": [0.1, 0.2, np.nan]}
    values |= {"response_nonlinearity_floor": [0.1, 0.2, np.nan], "response_nonlinearity_ceiling": [0.5, 0.8, np.nan]}
    random = pd.DataFrame(values | {"retention_a": [0.5, 0.5, np.nan], "retention_b": [0.09, 0.5, np.nan]})
    found = evidence((0.05, 0.15), (-0.5, -0.2), 0.25)
    conclusion = joint_pair.write_conclusion(units, 3, row, found, random)
    assert (
        "That the two divide the image holds: their activation maps correlate by -0.35 [-0.50, -0.20], and at 75% of "
        "the positions where either fires, only one does (random pairs' maps correlate by 0.15 on average)."
    ) in conclusion
    assert (
        "That the joint image is far from a linear combination holds in part: the share exceeds its floor by 0.100 "
        "[0.050, 0.150], 25% of the way from floor to ceiling (far is more than half of it)."
    ) in conclusion
    assert (
        "The joint image keeps 0.04 and 1.00 of the solo responses, so it is hardly an image of conv2:7." in conclusion
    )
    assert (
        "In random pairs (2 of 3 defined) it does by 0.150 on average (0.100 to 0.200), 30% of the way from floor to "
        "ceiling; 0 of them are more linear than this pair. The other one is undefined (dead partner)."
    ) in conclusion
    figures = {f.name: f for f in joint_pair.compare_with_random(row, random)}
    assert (figures["random_undefined"].value, figures["random_undefined"].count) == (1, 3)
    assert "dead partner" in figures["random_undefined"].words and "of 3 drawn" in figures["random_excess"].words
    assert figures["random_lost"].value == figures["random_above"].value == 0.5
    whole = joint_pair.write_conclusion(units, 3, row.replace(0.04, 0.4), evidence(), random[:2])
    assert "hardly" not in whole and "undefined" not in whole and "In random pairs (2 of 2 defined)" in whole
    for excess, words in ((0.2, "it is less linear"), (0.05, "it is more linear")):
        alone = joint_pair.write_conclusion(units, 3, row, evidence(), random[1:2].assign(excess=excess))
        assert f"In the one random pair it does by {excess:.3f}, " in alone and f"so that {words} than this" in alone
    some = joint_pair.write_conclusion(units, 3, row, evidence(), random[1:])
    assert "In the one of 2 random pairs that is defined it does by 0.200, " in some
    assert "so that it is less linear than this pair. The other one is undefined (dead partner)." in some


def test_the_interval_of_the_excess_is_over_seeds() -> None:
    """Excesses of 0.01, 0.02 and 0.03: a standard error of 0.01 / sqrt(3), times 4.303."""
    pair = pd.DataFrame({"response_nonlinearity": [0.11, 0.22, 0.33], "response_nonlinearity_floor": [0.1, 0.2, 0.3]})
    reach = 4.30265 * 0.01 / np.sqrt(3)
    assert joint_pair.excess_interval(pair) == pytest.approx((0.02 - reach, 0.02 + reach), abs=1e-6)
    assert np.isnan(joint_pair.excess_interval(pair[:2])).all()


def test_the_interval_of_the_maps_is_over_seeds() -> None:
    """Correlations of -0.1, -0.2 and -0.3: a mean of -0.2 and a standard error of 0.1 / sqrt(3), times 4.303."""
    values = {"response_nonlinearity": [0.1] * 3, "response_nonlinearity_floor": [0.1] * 3}
    row = pd.Series({"excess": 0.1, "response_nonlinearity_floor": 0.1, "response_nonlinearity_ceiling": 0.6})
    pair = pd.DataFrame(values | {"territory_correlation": [-0.1, -0.2, -0.3]})
    found = joint_pair.gather_evidence(pair, row, 0.5)
    reach = 4.30265 * 0.1 / np.sqrt(3)
    assert found.maps == pytest.approx((-0.2 - reach, -0.2 + reach), abs=1e-6) and found.way == pytest.approx(0.2)
    assert (found.far, found.divided) == ("does not hold", "is not decided")
    wide = joint_pair.gather_evidence(pair.assign(territory_correlation=[-0.9, 0.0, 0.9]), row, 0.5)
    assert wide.maps == (-1, 1)


WIDTH = 6


class Module(nn.Module):
    """Twelve 1 x 1 features of two kinds, near copies of one another; `apart`: a branch has those of one kind."""

    def __init__(self, apart: bool) -> None:
        super().__init__()
        kinds = torch.tensor([[1.0, -1.0, 0.2], [-0.2, 0.3, 1.0]]).repeat_interleave(WIDTH, 0)
        kinds = kinds + 0.1 * torch.randn(kinds.shape, generator=torch.Generator().manual_seed(3))
        order = torch.arange(2 * WIDTH) if apart else torch.arange(2 * WIDTH).view(2, -1).T.flatten()
        for k, weight in enumerate(kinds[order].view(2, WIDTH, 3)):
            conv = nn.Conv2d(3, WIDTH, 1, bias=False)
            conv.weight.data = weight[:, :, None, None]
            self.add_module(f"branch{k + 1}", conv)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x)], 1)


def module(apart: bool) -> nn.Module:
    return nn.Sequential(OrderedDict(mixed=Module(apart))).eval()


def test_branches_of_one_kind_each_are_the_clusters(tmp_path: Path) -> None:
    outcome = branches.measure(context_of(branches.STUDY, module(True), ("mixed",), tmp_path, seeds=2))
    assert value_of(outcome, "mixed:ari") == 1 and value_of(outcome, "mixed:ari_seed") == 1
    assert value_of(outcome, "mixed:ari_p") < 0.01  # two of 924 ways to halve twelve
    assert value_of(outcome, "mixed:own_neighbour") == 1
    assert value_of(outcome, "mixed:own_chance") == pytest.approx(5 / 11)
    rows = outcome.rows
    assert value_of(outcome, "mixed:contrast") == pytest.approx((rows["S_within"] - rows["S_across"]).mean())
    assert (rows["S_within"] > 0.5).all() and (rows["S_across"] < -0.5).all()
    assert outcome.verdict == "holds" and "ARI of 1.000" in outcome.conclusion


def test_branches_that_share_both_kinds_are_not(tmp_path: Path) -> None:
    outcome = branches.measure(context_of(branches.STUDY, module(False), ("mixed",), tmp_path))
    assert value_of(outcome, "mixed:ari") < 0 and value_of(outcome, "mixed:ari_p") > 0.5
    assert value_of(outcome, "mixed:contrast") < 0
    assert outcome.verdict == "does not hold"
    with_other = outcome.rows.query("feature == 'mixed:0'").iloc[0]
    assert with_other["branch"].endswith("branch1") and outcome.rows["branch"].nunique() == 2


def layer_of(p: float, low: float, contrast: float = 1.0, value: float = 0.15) -> branches.LayerTests:
    """A layer with an ARI of `value` from `low` to 0.2 and these p; two clusters of two features, two branches."""
    given = np.array([-0.0004])
    rand = PermutationTest(Interval(value, low, 0.2), p, given)
    beside = PermutationTest(Interval(0.02, 0.01, 0.03), contrast, given)
    return branches.LayerTests("mixed", rand, beside, np.array([1, 1, 2, 2]), np.array(list("abab"), dtype=object))


def test_the_claim_needs_the_lower_bound_in_every_layer() -> None:
    above, across, below, no = layer_of(0.001, 0.11), layer_of(0.001, 0.07), layer_of(0.001, -0.01), layer_of(0.3, 0.11)
    assert branches.judge([above, above]) == "holds"
    assert branches.judge([above, across]) == branches.judge([across]) == "holds in part"
    assert branches.judge([above, no]) == "holds in part", "chance in one of two layers"
    assert branches.judge([below]) == branches.judge([layer_of(0.3, 0.11, 0.01)]) == "not decided"
    assert branches.judge([no]) == "does not hold"
    conclusion = branches.write_conclusion([across], ("mixed",), 3)
    assert conclusion == (
        "In mixed, clusters and branches agree by an ARI of 0.150 [0.070, 0.200] (n = 4 features of 2 branches, 3 "
        "seeds; chance 0.000, p 0.001), which is above chance, but not clearly above 0.1. The 2 clusters would reach "
        "about 1.000 if they followed the 2 branches as closely as their sizes allow. S within a branch is 0.020 "
        "[0.010, 0.030] above S across branches (p 1)."
    )
    found = [branches.describe_agreement(layer) for layer in (above, below, no)]
    assert found == [
        "which is above chance and above 0.1",
        "which is above chance, but whose interval includes 0",
        "which is not above chance",
    ]


def test_what_is_undefined_is_no_result() -> None:
    """An undefined interval does not include 0, and an undefined test is not one that found nothing."""
    without_interval = layer_of(0.001, np.nan)
    assert branches.describe_agreement(without_interval) == "which is above chance, but has no interval"
    assert "ARI of 0.150 (no interval) (n = " in branches.write_conclusion([without_interval], ("mixed",), 1)
    assert branches.judge([without_interval]) == "not decided"
    undefined = layer_of(np.nan, np.nan, value=np.nan)
    assert branches.describe_agreement(undefined) == "which is undefined"
    assert branches.judge([undefined]) == branches.judge([layer_of(0.3, 0.11, np.nan)]) == "not decided"
    assert branches.judge([undefined, layer_of(0.001, 0.11)]) == "holds in part"
    alone = replace(undefined, clusters=np.arange(4), branches=np.array(list("abcd"), dtype=object))
    assert branches.describe_attainable(alone) == ""


def sized(*sizes: int) -> list[int]:
    """Labels of groups of these sizes."""
    return [k for k, size in enumerate(sizes) for _ in range(size)]


def pair_index(one: Sequence[object], two: Sequence[object]) -> float:
    """The adjusted Rand index, counted pair by pair."""
    pairs = [(one[i] == one[j], two[i] == two[j]) for i in range(len(one)) for j in range(i)]
    both, first, second = (np.mean([f(p) for p in pairs]) for f in (all, itemgetter(0), itemgetter(1)))
    return float((both - first * second) / ((first + second) / 2 - first * second))


@pytest.mark.parametrize(
    ("clusters", "parts"),
    [
        ((2, 2, 2, 2), (4, 4)),
        ((3, 3), (2, 2, 2)),  # no cluster fits
        ((4, 2, 1), (4, 3)),
        ((5, 2), (4, 3)),  # one is cut
        ((2, 1, 1, 1, 1, 2), (4, 4)),
        ((3, 2, 2), (4, 3)),
        ((6, 1), (2, 2, 3)),
    ],
)
def test_the_attainable_index_is_the_best_of_all_arrangements(
    clusters: tuple[int, ...], parts: tuple[int, ...]
) -> None:
    labels, groups = sized(*clusters), sized(*parts)
    best = max(pair_index(order, groups) for order in set(permutations(labels)))
    for seed in range(3):  # whatever the arrangement that is given
        given = np.random.Generator(np.random.PCG64(seed)).permutation(labels).tolist()
        assert branches.attainable_index(given, [f"b{g}" for g in groups]) == pytest.approx(best)


def test_an_arrangement_that_is_better_than_the_packing_is_attainable() -> None:
    """The packing puts 4 and 3 into one branch of 8 and has to cut a cluster of 2; the given arrangement cuts none."""
    labels, groups = sized(4, 3, 3, 2, 2, 2), sized(8, 8)
    given = [0, 0, 0, 0, 3, 3, 4, 4, 1, 1, 1, 2, 2, 2, 5, 5]  # 4 + 2 + 2 and 3 + 3 + 2
    assert sorted(given) == labels
    assert branches.attainable_index(given, groups) == pytest.approx(pair_index(given, groups))
    # two branches and single features: of the pairs only those within branches are together, and none within clusters
    assert branches.attainable_index(range(8), sized(4, 4)) == pytest.approx(0)


def test_branches_are_restated_as_they_were_measured(tmp_path: Path) -> None:
    context = context_of(branches.STUDY, module(False), ("mixed",), tmp_path, seeds=2)
    outcome = branches.measure(context)
    path = save_outcome(context, outcome, tmp_path / "results")[0]
    assert branches.restate(StoredResult.read(path)) == (outcome.verdict, outcome.conclusion)


def test_a_layer_without_branches_is_undefined(tmp_path: Path) -> None:
    outcome = branches.measure(context_of(branches.STUDY, linear_network(), ("conv2",), tmp_path))
    assert outcome.verdict == "not decided" and outcome.findings[0].value is None
    assert "no branches in conv2" in outcome.conclusion and not outcome.figures


def test_a_large_layer_is_sampled_equally_by_branch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branches, "WHOLE_LAYER", 8)
    context = context_of(branches.STUDY, module(True), ("mixed",), tmp_path, features=2)
    chosen = branches.choose_channels(context, context.network.layer("mixed", 16))
    assert len(chosen) == 8 and sum(c < WIDTH for c in chosen) == 4 and chosen == sorted(set(chosen))
    whole = context_of(branches.STUDY, module(True), ("mixed",), tmp_path, features=2, full=True)
    assert branches.choose_channels(whole, whole.network.layer("mixed", 16)) == list(range(12))
