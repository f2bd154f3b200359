from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from analyses import coactivation
from analyses.coactivation import STUDY, measure, rank_others
from analyses.formulas.held_out import evaluate_held_out
from analyses.support.runners_up import RunnerUp
from featmap.errors import FeatmapError
from featmap.optimize.recipe import PIXELS
from tests.helpers import networks, tiny
from tests.helpers.studying import context_of, value_of

pytestmark = pytest.mark.usefixtures("one_thread")


def primaries() -> nn.Module:
    """Three features that have nothing in common: the mean of red, of green and of blue."""
    features = nn.Conv2d(3, 3, 1, bias=False)
    with torch.no_grad():
        features.weight.copy_(torch.eye(3)[:, :, None, None])
    return nn.Sequential(OrderedDict(features=features)).eval()


def test_a_scaled_copy_rises_as_high_as_its_scale_and_to_its_own_best(tmp_path: Path) -> None:
    """`planted_1x1`: the best image of features 0 and 2 is one colour, (1, 0, 1), at which they give 1.5 and 4.5."""
    context = context_of(STUDY, networks.planted_1x1(), ("features",), tmp_path, features=4, seeds=2, feature=0)
    outcome = measure(context)
    assert value_of(outcome, "named_share") == pytest.approx(3.0, abs=1e-3)
    assert value_of(outcome, "named_own") == pytest.approx(1.0, abs=1e-3)
    rows = outcome.rows
    own = rows[(rows.part == "runner-up: own best") & (rows.target.astype(int) == 0)]
    assert set(own.feature) == {1, 2, 3} and own[own.feature == 2].value.to_numpy() == pytest.approx(4.5, abs=0.01)
    curve = rows[(rows.part == "curve") & (rows.seed == 0)].pivot(index="step", columns="feature", values="value")
    assert list(curve.index) == list(range(PIXELS.steps + 1))
    np.testing.assert_allclose(curve[2], 3 * curve[0], rtol=1e-4)
    assert curve[0].iloc[-1] == pytest.approx(1.5, abs=0.01) and "feature 2 reached 3.00" in outcome.conclusion
    profile = rows[rows.part == "profile"].set_index("feature").value
    np.testing.assert_allclose(profile.sort_index(), [1.5, 0.0, 4.5, -(0.2 + 0.2 + 0.4)], atol=0.01)


def test_features_that_have_nothing_in_common_do_not_rise_together(tmp_path: Path) -> None:
    context = context_of(STUDY, primaries(), ("features",), tmp_path, features=3, seeds=2, feature=1)
    outcome = measure(context)
    assert value_of(outcome, "named_share") == pytest.approx(0.5, abs=0.03), "the others stay at the noise's mean"
    assert value_of(outcome, "own:features") == pytest.approx(0, abs=1e-5)
    assert value_of(outcome, "floor:features") == pytest.approx(0, abs=1e-5)
    assert value_of(outcome, "almost:features") == 0
    assert outcome.verdict == "not decided", "three features cannot reach the level of the test"


def test_the_floor_is_the_response_to_other_images(tmp_path: Path) -> None:
    """Feature 3 likes the colour (0.8, 0.2, 0.6), at which feature 2 gives 2.7 of its own 4.5."""
    context = context_of(STUDY, networks.planted_1x1(), ("features",), tmp_path, features=4, feature=0)
    outcome = measure(context)
    rows = outcome.rows[outcome.rows.target.astype(int) == 0]
    by = {
        p: float(rows[(rows.part == f"runner-up: {p}") & (rows.feature == 2)].value.iloc[-1])
        for p in ("null", "on other images")
    }
    # of features 1 and 3: 1 turns the noise's green to 1, 3 makes its colour all over
    assert by["on other images"] == pytest.approx((3 * (0.5 - 1 + 0.25) + 2.7) / 2, abs=0.06)
    assert by["null"] == pytest.approx(3 * 0.25, abs=0.06)


def test_a_layer_of_one_feature_and_of_dead_ones_is_not_decided(tmp_path: Path) -> None:
    alone = measure(context_of(STUDY, tiny.one(), ("features",), tmp_path / "one", feature=0))
    dead = measure(context_of(STUDY, tiny.asleep(), ("relu",), tmp_path / "dead", feature=1))
    assert alone.verdict == dead.verdict == "not decided"
    assert dead.conclusion.startswith("relu:1 did not rise") and dead.findings == []


def test_the_ranking_is_that_of_the_responses(tmp_path: Path) -> None:
    """On feature 0's image, (1, 0, 1): 2 gives 4.5, all of its own best; 1 gives 0; 3 gives -0.8."""
    outcome = measure(context_of(STUDY, networks.planted_1x1(), ("features",), tmp_path, features=4, feature=0))
    rows = outcome.rows[(outcome.rows.target.astype(int) == 0) & outcome.rows.part.str.startswith("ranking")]
    held = rows.pivot(index="rank", columns="part", values="value")
    assert list(rows[rows.part == "ranking: activation"].feature) == [2, 1, 3]
    assert held["ranking: of target"].to_numpy() == pytest.approx([3, 0, -0.8 / 1.5], abs=0.01)
    assert held["ranking: of own best"].to_numpy()[0] == pytest.approx(1, abs=1e-3)
    assert held["ranking: null"].to_numpy()[0] == pytest.approx(0.75, abs=0.06)


def scattered(scale: float, seed: int = 3) -> np.ndarray:
    """Responses of 40 features to the images of the first 12, three seeds: small and drawn anew for each seed.

    Features rise together on half of the images. A partner of each target has 0 on all images but the target's, and
    `scale` there; 0: no partner.
    """
    rng = np.random.default_rng(seed)
    A = 0.5 * rng.random((3, 12, 40)) * np.where(np.arange(12) % 2, 1, 0.2)[:, None]
    if scale:
        A[:, :, 12:24] = 0
        A[:, np.arange(12), 12 + np.arange(12)] = scale
    A[:, np.arange(12), np.arange(12)] = 1.0
    return A


@pytest.mark.parametrize("scale", [1.0, 10.0, 30.0])
def test_a_partner_is_found_whatever_its_scale(scale: float) -> None:
    found = evaluate_held_out(scattered(scale), np.arange(12))
    assert list(found.channel) == list(range(12, 24)) and found.p < 0.001
    for values, expected in ((found.share, scale), (found.gap, scale), (found.percentile, 0)):
        assert values == pytest.approx(np.full(12, expected))


def test_independent_runners_up_respond_to_no_target() -> None:
    """A p below 0.05 in about one of twenty draws of independent responses, a percentile of about a half."""
    rng = np.random.default_rng(5)
    # more than 13 targets: below, scipy tries all signs of tied ranks, for a quarter of a second each
    drawn = [evaluate_held_out(0.1 + rng.random((3, 14, 40)), np.arange(14)) for _ in range(100)]
    assert np.mean([one.p < 0.05 for one in drawn]) <= 0.1
    assert np.mean([one.percentile.mean() for one in drawn]) == pytest.approx(0.5, abs=0.02)
    partner, chance = evaluate_held_out(scattered(1.0), np.arange(12)), sorted(drawn, key=lambda one: one.p)[50]
    assert (
        coactivation.respond_to_targets({"a": partner}) is True
        and coactivation.respond_to_targets({"a": partner, "b": chance}) is False
    )


def test_a_runner_up_is_judged_on_seeds_that_did_not_choose_it() -> None:
    """Feature 4 leads on the first seed; feature 5 would on the second. On it 4 has 1, 3, 0, 1 and the targets 2."""
    A = np.zeros((2, 4, 6))
    A[:, np.arange(4), np.arange(4)] = 2.0
    A[0, :, 4], A[1, :, 5], A[1, :, 4] = 1.0, 5.0, [1, 3, 0, 1]
    found = evaluate_held_out(A, np.arange(4))
    assert list(found.channel) == [4] * 4 and found.share == pytest.approx([0.5, 1.5, 0, 0.5])
    assert found.gap == pytest.approx([(1 - 4 / 3) / 2, (3 - 2 / 3) / 2, -5 / 6, (1 - 4 / 3) / 2])
    assert found.percentile == pytest.approx([2 / 3, 0, 1, 2 / 3])
    A[0, 0, 1], A[1, :, 1] = 7.0, [1, 2, 3, 0]  # a target as runner-up: its own image, the second, is left out
    assert evaluate_held_out(A, np.arange(4)).percentile[0] == 0.5


def test_one_seed_or_two_targets_decide_nothing() -> None:
    A = scattered(10.0)
    for few, targets in ((A[:1], 12), (A[:, :2], 2)):
        found = evaluate_held_out(few, np.arange(targets))
        assert np.isnan(found.p) and np.isnan(found.percentile).all()
        assert (
            coactivation.respond_to_targets({"a": found}) is None and coactivation.held_out_sentence({"a": found}) == ""
        )
        assert coactivation.held_out_findings("a", found) == []


def test_so_few_targets_that_the_test_cannot_reach_its_level_decide_nothing() -> None:
    """Of n equal signs, Wilcoxon's p is 2 ** -n: 0.0625 for four targets, 0.031 for five."""
    four, five = (evaluate_held_out(scattered(1.0)[:, :n], np.arange(n)) for n in (4, 5))
    assert [four.p, five.p] == pytest.approx([1 / 16, 1 / 32])
    assert coactivation.respond_to_targets({"a": four}) is None
    assert coactivation.respond_to_targets({"a": five}) is True
    assert coactivation.respond_to_targets({"a": five, "b": four}) is None
    tied = replace(five, percentile=np.array([0, 0, 0, 0, 0.5]), p=1 / 16)
    assert coactivation.respond_to_targets({"a": tied}) is None, "a tie has no rank"
    against = replace(five, p=0.5)
    assert coactivation.respond_to_targets({"a": against, "b": four}) is False, "one layer is enough to refute it"
    low = RunnerUp("a", 0, 4, *np.array([[0.2] * 2, [0.1] * 2, [1.0] * 2, [1.0] * 2, [0.1] * 2]), rank=2.0)
    cases = ((five, "holds in part"), (against, "does not hold"), (four, "not decided"))
    assert [coactivation.judge([low], {"a": one}) for one, _ in cases] == [verdict for _, verdict in cases]


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([0.9, 0.91], True),  # 0.905 and 12.7 times 0.005: 0.84 to 0.97
        ([0.802, 0.801, 0.803], None),  # 0.802 and 4.30 times 0.00058: from 0.7995 on
        ([0.806, 0.799], None),
        ([0.9], None),  # one seed
        ([0.3, 0.31], False),
        ([0.9, 0.05], False),  # with the second seed it does not rise above its null image
        ([np.nan, np.nan], None),
    ],
)
def test_almost_is_judged_by_the_interval_over_seeds(shares: list[float], expected: bool | None) -> None:
    reached = np.where(np.isnan(shares), 0.0, 2.0)
    activation = np.nan_to_num(shares) * 2
    first = RunnerUp("a", 5, 4, activation, np.full(len(shares), 0.1), reached, reached, reached, rank=1.0)
    assert coactivation.ends_almost_as_active(first) is expected
    text = coactivation.write_conclusion("a:5", [first], [], {})
    word = {True: "holds", False: "does not hold", None: "is not decided"}[expected]
    assert text.startswith(f"That another feature ends almost as active {word}: while a:5 was maximised, feature 4 ")


def test_too_few_features_for_the_test_are_named_with_the_number_needed() -> None:
    def rows_of(layer: str, count: int, seeds: int = 3) -> list[RunnerUp]:
        return [RunnerUp(layer, k, 40, *np.full((5, seeds), 0.5), rank=2.0) for k in range(count)]

    four, five = (evaluate_held_out(scattered(1.0)[:, :n], np.arange(n)) for n in (4, 5))
    say = coactivation.describe_too_few
    assert say({"a": five}, rows_of("a", 5)) == ""
    assert say({"a": five, "b": four}, [*rows_of("a", 5), *rows_of("b", 4)]) == (
        ". In b the test cannot reach its level: its smallest p with 4 features is 0.062. At least 5 with a rank are "
        "needed"
    )
    tied = replace(five, percentile=np.array([0, 0, 0, 0, 0.5]), p=1 / 16)
    assert "smallest p with 4 features (1 of 5 have a tie and no rank) is 0.062" in say({"a": tied}, rows_of("a", 5))
    two = evaluate_held_out(scattered(1.0)[:, :2], np.arange(2))
    assert "smallest p with 2 features is 0.25" in say({"a": two}, rows_of("a", 2))
    assert say({"a": two}, rows_of("a", 6)).endswith("a feature's response to its own image is not positive")
    assert say({"a": two}, rows_of("a", 6, 1)).startswith(". With one seed") and say({}, []) == ""
    assert coactivation.FEWEST == 5 and 0.5**5 < coactivation.P <= 0.5**4


def test_named_features_are_targets_with_rows_of_their_own(tmp_path: Path) -> None:
    context = context_of(
        STUDY, networks.planted_1x1(), ("features",), tmp_path, features=2, feature=0, units=("features:2",)
    )
    outcome = measure(context)
    assert value_of(outcome, "share of features:2") == pytest.approx(1.5 / 4.5, abs=1e-3), "feature 0 on its image"
    assert 2 in set(outcome.rows[outcome.rows.part == "ranking: activation"].target.astype(int))
    assert outcome.conclusion.endswith("With one seed no runner-up can be measured on another: two seeds are needed.")


def test_a_named_feature_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FeatmapError, match="channel"):
        measure(context_of(STUDY, tiny.two(), ("features",), tmp_path, feature=5))


def test_a_repeated_study_computes_nothing_again(tmp_path: Path) -> None:
    context = context_of(STUDY, networks.small_inception(), ("mixed", "pool"), tmp_path, features=2, feature=1)
    first = measure(context)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("units/*.json")}
    again = measure(context)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("units/*.json")} == before
    assert first.conclusion == again.conclusion and first.rows.equals(again.rows)
    assert {f.name for f in first.findings} >= {"share:mixed", "named_share"}


def test_ranks_leave_out_the_target_and_what_is_not_finite() -> None:
    profile = np.array([2.0, np.nan, 5.0, 3.0, np.inf, 3.0])
    assert list(rank_others(profile, 2)) == [3, 5, 0]
    assert np.isnan(coactivation.mean_ratio(np.ones(2), np.array([1.0, 0.0])))
    # a seed whose descent hardly rose does not decide: (2 + 10) / (0.1 + 20), not the mean of 20 and 0.5
    assert coactivation.mean_ratio(np.array([2.0, 10.0]), np.array([0.1, 20.0])) == pytest.approx(12 / 20.1)
