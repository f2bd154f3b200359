from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from featmap.stats import correlation, interaction
from featmap.stats.interaction import NOWHERE, SHARED
from tests.helpers import interaction_oracles as oracles

SEEDED = settings(max_examples=40, deadline=None, derandomize=True)


def random(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


seeds = st.integers(0, 2**32 - 1)


# ---------------------------------------------------------------- response nonlinearity


@SEEDED
@given(seeds, st.integers(2, 4), st.integers(3, 12))
def test_response_nonlinearity_is_what_the_best_set_of_parts_leaves(seed: int, n: int, features: int) -> None:
    rng = random(seed)
    joint, parts = rng.normal(size=features), rng.normal(size=(n, features)) * rng.lognormal(sigma=2, size=(n, 1))
    expected = oracles.non_negative_share(joint.tolist(), parts.tolist())
    assert interaction.response_nonlinearity(joint, parts) == pytest.approx(expected, abs=1e-9)


@SEEDED
@given(seeds, st.integers(2, 4), st.floats(1e-3, 1e3))
def test_response_nonlinearity_keeps_its_laws(seed: int, n: int, factor: float) -> None:
    rng = random(seed)
    joint, parts = rng.normal(size=9), rng.normal(size=(n, 9))
    found = interaction.response_nonlinearity(joint, parts)
    assert 0 <= found <= 1
    order, turn = rng.permutation(9), rng.permutation(n)
    again = interaction.response_nonlinearity
    assert again(factor * joint, parts) == pytest.approx(found, abs=1e-9)
    assert again(joint[order], parts[:, order]) == pytest.approx(found, abs=1e-9)
    assert again(joint, parts[turn]) == pytest.approx(found, abs=1e-9)
    assert again(joint, parts * rng.uniform(0.1, 10, (n, 1))) == pytest.approx(found, abs=1e-9)
    assert again(joint, np.vstack([parts, rng.normal(size=9)])) <= found + 1e-9, "a part more explains no less"
    mixture = rng.uniform(0, 3, n) @ parts
    if np.linalg.norm(mixture) > 1e-3:
        assert again(mixture, parts) < 1e-12


def test_a_negative_mixture_is_not_a_mixture() -> None:
    parts = np.array([[1.0, 0, 0], [0, 1, 0]])
    assert interaction.response_nonlinearity(np.array([1.0, -1, 0]), parts) == pytest.approx(0.5)
    assert interaction.response_nonlinearity(-parts.sum(0), parts) == pytest.approx(1.0)
    assert interaction.response_nonlinearity(np.array([0, 0, 2.0]), parts) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("joint", "parts"),
    [
        ([0.0, 0.0], [[1.0, 0], [0, 1]]),
        ([9e-6, 0.0], [[1.0, 0], [0, 1]]),
        ([math.nan, 1.0], [[1.0, 0], [0, 1]]),
        ([1.0, 1.0], [[math.inf, 0], [0, 1]]),
        ([0.0, 0.0], [[0.0, 0], [0, 0]]),
        ([], [[], []]),
    ],
)
def test_response_nonlinearity_of_nothing_is_undefined(joint: list[float], parts: list[list[float]]) -> None:
    assert math.isnan(interaction.response_nonlinearity(np.array(joint), np.array(parts)))


def test_the_floor_of_the_response_is_a_share_of_the_largest_part() -> None:
    parts = np.array([[1.0, 0], [0, 1e-9]])
    assert interaction.response_nonlinearity(np.array([1.1e-5, 0]), parts) == pytest.approx(0, abs=1e-12)
    assert interaction.response_nonlinearity(np.array([1.0, 1.0]), 0 * parts) == pytest.approx(1), (
        "parts that do nothing"
    )


# ---------------------------------------------------------------- image nonlinearity


@SEEDED
@given(seeds, st.integers(1, 4))
def test_image_nonlinearity_is_what_least_squares_with_a_constant_leaves(seed: int, n: int) -> None:
    rng = random(seed)
    parts = rng.normal(size=(n, 3, 2, 3))
    joint = rng.normal(size=(3, 2, 3)) + np.tensordot(rng.normal(size=n), parts, 1) + 7
    expected = oracles.variance_share(joint.ravel().tolist(), parts.reshape(n, -1).tolist())
    assert interaction.image_nonlinearity(joint, parts) == pytest.approx(expected, abs=1e-9)


@SEEDED
@given(seeds, st.floats(-100, 100), st.floats(0.01, 100), st.booleans())
def test_image_nonlinearity_keeps_its_laws(seed: int, shift: float, scale: float, flip: bool) -> None:
    rng = random(seed)
    joint, parts = rng.normal(size=(3, 4, 4)), rng.normal(size=(2, 3, 4, 4))
    found = interaction.image_nonlinearity(joint, parts)
    assert 0 <= found <= 1
    assert interaction.image_nonlinearity((-scale if flip else scale) * joint + shift, parts) == pytest.approx(
        found, abs=1e-7
    )
    assert interaction.image_nonlinearity(joint, parts[::-1] * scale - shift) == pytest.approx(found, abs=1e-7)
    mixed = 2 * parts[0] - 3 * parts[1] + shift
    assert interaction.image_nonlinearity(mixed, parts) < 1e-12, "least squares may be negative, and knows a constant"


def test_image_nonlinearity_of_alike_or_flat_parts() -> None:
    rng = random(1)
    joint, part = rng.normal(size=(3, 4, 4)), rng.normal(size=(3, 4, 4))
    once = interaction.image_nonlinearity(joint, part[None])
    assert interaction.image_nonlinearity(joint, np.stack([part, 2 * part])) == pytest.approx(once, abs=1e-9)
    assert interaction.image_nonlinearity(joint, np.zeros((2, 3, 4, 4))) == pytest.approx(1)
    assert math.isnan(interaction.image_nonlinearity(np.full((3, 4, 4), 0.7), part[None]))
    assert math.isnan(interaction.image_nonlinearity(1e-6 * joint, part[None]))
    joint[0, 0, 0] = np.nan
    assert math.isnan(interaction.image_nonlinearity(joint, part[None]))


# ---------------------------------------------------------------- second differences, blends


@SEEDED
@given(seeds, st.integers(2, 4))
def test_the_second_difference_and_where_it_is_largest(seed: int, n: int) -> None:
    rng = random(seed)
    kept = rng.random(9) > 0.3
    kept[0] = True
    D = int(kept.sum())
    middle, fractions, joint = rng.normal(size=D), rng.normal(size=(n, D)), rng.normal(size=D)
    found = interaction.second_difference(middle, fractions, joint, np.where(kept, 1.0, np.nan))
    size, where = oracles.second_difference(middle.tolist(), fractions.tolist(), joint.tolist())
    assert found.size == pytest.approx(size, rel=1e-9)
    assert found.feature == np.flatnonzero(kept)[where], "its place among all probed features, dropped ones too"


def test_a_second_difference_of_rounding_has_no_feature() -> None:
    fractions, deviation = np.array([[1.0, 0], [0, 1]]), np.ones(2)
    found = interaction.second_difference(np.array([1, 1 + 1e-7]), fractions, np.array([2.0, 2]), deviation)
    assert found.size < 1e-6 and found.feature is None
    found = interaction.second_difference(np.array([3.0, 1]), fractions, np.zeros(2), deviation)
    assert math.isnan(found.size) and found.feature == 0
    found = interaction.second_difference(np.array([np.nan, 1]), fractions, np.ones(2), deviation)
    assert math.isnan(found.size) and found.feature is None


def test_self_saturation_is_0_for_linear_responses() -> None:
    whole = np.array([2.0, 4.0])
    assert interaction.self_saturation(whole, whole / 2, 2) == 0
    assert interaction.self_saturation(whole, whole / 3, 3) == pytest.approx(0, abs=1e-12)
    assert interaction.self_saturation(whole, whole, 2) == pytest.approx(1), "all of it at half the way"
    assert math.isnan(interaction.self_saturation(np.zeros(2), whole, 2))


@pytest.mark.parametrize(("parts", "steps"), [(2, 20), (3, 12), (4, 6), (5, 4), (8, 2)])
def test_the_lattice_is_the_finest_even_one(parts: int, steps: int) -> None:
    found = interaction.simplex_lattice(parts)
    assert {tuple(np.round(row, 9)) for row in found} == {
        tuple(round(v, 9) for v in row) for row in oracles.lattice(parts, steps)
    }
    assert len(found) == len({tuple(row) for row in found}) <= 100
    np.testing.assert_allclose(found.sum(1), 1)
    assert math.comb(steps + parts, parts - 1) > 100 or steps == 20
    for row in np.eye(parts):
        assert (found == row).all(1).any(), "the solo images themselves are blends"


def test_joint_gain_compares_with_the_best_blend() -> None:
    blends = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 2.0]])
    weights, best = np.array([1.0, 0.5]), np.array([1.0, 2.0])
    assert interaction.joint_gain(np.array([1.0, 1.0]), blends, weights, best) == pytest.approx((1.5 - 1) / 2)
    assert interaction.joint_gain(np.array([0.0, 0.0]), blends, weights, best) == pytest.approx(-0.5)
    assert math.isnan(interaction.joint_gain(np.ones(2), blends, 0 * weights, best))


@pytest.mark.parametrize("share", [interaction.retention, interaction.crosstalk])
def test_retention_and_crosstalk_are_shares_of_the_solo_response(share: Any) -> None:
    assert share(3.0, 4.0) == 0.75 and share(4.0, 4.0) == 1 and share(0.0, 4.0) == 0 and share(-2.0, 4.0) == -0.5
    assert math.isnan(share(1.0, 0.0)) and math.isnan(share(1.0, -4.0)), "a unit that its own image does not drive"


def test_quotients_at_their_floors() -> None:
    assert interaction.quotient(1.0, 2.0, 5.0) == 0.5
    assert math.isnan(interaction.quotient(1.0, 4.9e-5, 5.0))
    assert interaction.quotient(1.0, 5.1e-5, 5.0) == pytest.approx(1 / 5.1e-5)
    assert math.isnan(interaction.quotient(1.0, -2.0, 0.0)), "a maximum below the null image is none"
    assert math.isnan(interaction.quotient(1.0, 0.0, 0.0))
    for odd in (math.nan, math.inf):
        assert math.isnan(interaction.quotient(odd, 1.0, 0.0))
    assert math.isnan(interaction.quotient(1.0, math.nan, 0.0))
    assert math.isnan(interaction.quotient(1.0, 1.0, math.nan))


def test_deviations_and_what_is_dropped() -> None:
    rng = random(2)
    responses = rng.normal(size=(64, 5)).astype(np.float32)
    responses[:, 1] = 3
    responses[:, 2] = 1000 + 1e-3 * responses[:, 2]
    responses[3, 4] = np.inf
    found = interaction.response_deviations(responses)
    assert np.isnan(found).tolist() == [False, True, True, False, True]
    assert found[0] == pytest.approx(math.sqrt(np.mean((responses[:, 0] - responses[:, 0].mean()) ** 2)), rel=1e-5)
    image, null = np.arange(5.0), np.ones(5)
    np.testing.assert_allclose(interaction.standardise_responses(image, null, found), [-1 / found[0], 2 / found[3]])
    image[4] = null[4] = np.inf
    assert np.isfinite(interaction.standardise_responses(image, null, found)).all(), "a dropped feature may be anything"


# ---------------------------------------------------------------- territory


@SEEDED
@given(seeds, st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=2, max_size=4))
def test_territories_agree_with_slow_loops(seed: int, shapes: list[tuple[int, int]]) -> None:
    rng = random(seed)
    maps = [rng.normal(size=shape) for shape in shapes]
    found = interaction.territory(maps)
    owner, divided = oracles.territory([m.tolist() for m in maps])
    assert found.owner.tolist() == owner
    assert found.divided == pytest.approx(divided) if divided is not None else math.isnan(found.divided)


def test_maps_are_resampled_as_torch_does() -> None:
    grid = random(3).normal(size=(3, 4))
    given = torch.from_numpy(grid)[None, None]
    expected = torch.nn.functional.interpolate(given, (7, 9), mode="bilinear", align_corners=False)[0, 0].numpy()
    np.testing.assert_allclose(interaction._resample(grid, (7, 9)), expected, atol=1e-12)
    np.testing.assert_allclose(oracles.resampled(grid.tolist(), 7, 9), expected, atol=1e-12)


def test_territories_of_two_halves_and_of_one_place() -> None:
    left = np.zeros((4, 4))
    left[:, :2] = 1
    found = interaction.territory([left, 5 * (1 - left)])
    assert found.divided == 1 and found.correlation == pytest.approx(-1)
    assert found.owner.tolist() == [[0, 0, 1, 1]] * 4
    found = interaction.territory([left, 3 * left + 1e-9])
    assert found.divided == 0 and found.correlation == pytest.approx(1)
    assert set(found.owner.ravel()) == {SHARED, NOWHERE}


@pytest.mark.parametrize("flat", [0.0, -3.0, 0.7])
def test_a_constant_map_correlates_with_nothing(flat: float) -> None:
    found = interaction.territory([np.full((3, 3), flat), np.eye(3)])
    assert math.isnan(found.correlation)
    assert (found.owner[~np.eye(3, dtype=bool)] == (0 if flat > 0 else NOWHERE)).all()
    assert (np.diag(found.owner) == (SHARED if flat > 0 else 1)).all()


def test_a_single_position_and_no_position_at_all() -> None:
    one = interaction.territory([np.array([[2.0]]), np.array([[-1.0]])])
    assert one.owner.tolist() == [[0]] and one.divided == 1 and math.isnan(one.correlation)
    none = interaction.territory([-np.ones((2, 2)), np.zeros((2, 2))])
    assert (none.owner == NOWHERE).all() and math.isnan(none.divided)
    odd = interaction.territory([np.array([[np.nan, 1.0]]), np.ones((1, 2))])
    assert (odd.owner == NOWHERE).all() and math.isnan(odd.divided) and math.isnan(odd.correlation)


# ---------------------------------------------------------------- over seeds


@SEEDED
@given(seeds, st.sampled_from([3, 4, 5, 10]))
def test_the_interval_is_students(seed: int, n: int) -> None:
    values = random(seed).normal(size=n)
    low, high = oracles.interval(values.tolist())
    assert correlation.t_interval(values.tolist()) == pytest.approx((low, high), rel=1e-6)
    assert correlation.t_interval([*values, np.nan]) == pytest.approx((low, high), rel=1e-6)


def test_an_interval_takes_three_seeds() -> None:
    assert correlation.t_interval([0.1, 0.2]) is None
    assert correlation.t_interval([0.1, math.nan, 0.2, math.nan]) is None
    assert correlation.t_interval([0.5, 0.5, 0.5]) == pytest.approx((0.5, 0.5))


def test_p_of_an_excess_is_students_one_sided_p() -> None:
    values = [0.1, 0.2, 0.15, 0.05]
    t = np.mean(values) / (np.std(values, ddof=1) / 2)
    assert interaction.p_above_zero(values) == pytest.approx(stats.t.sf(t, 3))
    assert interaction.p_above_zero([*values, math.nan]) == pytest.approx(stats.t.sf(t, 3))
    assert interaction.p_above_zero([-v for v in values]) == 1
    assert interaction.p_above_zero([1e-5, 1.01e-5, 1.02e-5]) == 1, "what a linear network has by rounding"
    assert interaction.p_above_zero([0.2, 0.2, 0.2]) == 0
    assert interaction.p_above_zero([0.0, 0.0, 0.0]) == 1
    assert math.isnan(interaction.p_above_zero([0.2, math.nan, 0.3]))


@SEEDED
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_false_discovery_is_benjamini_and_hochbergs(p: list[float]) -> None:
    np.testing.assert_allclose(interaction.q_values(np.array(p)), oracles.benjamini_hochberg(p), atol=1e-12)


def test_false_discovery_leaves_the_undefined_out() -> None:
    p = np.array([0.01, np.nan, 0.04, np.nan])
    q = interaction.q_values(p)
    assert np.isnan(q).tolist() == [False, True, False, True]
    assert q[[0, 2]].tolist() == pytest.approx(oracles.benjamini_hochberg([0.01, 0.04]))
    assert np.isnan(interaction.q_values(np.full(3, np.nan))).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["any", "opposed", "equal"]))
def test_shares_of_many_pairs_are_those_of_non_negative_least_squares(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    joint, parts = rng.normal(size=5), rng.normal(size=(2, 5))
    if kind != "any":
        parts[1] = parts[0] if kind == "equal" else -parts[0] + 0.1 * parts[1]
    inner = parts @ parts.T
    found = correlation.unexplained_shares(
        np.array(joint @ joint),
        (np.array(parts[0] @ joint), np.array(parts[1] @ joint)),
        (np.array(inner[0, 0]), np.array(inner[1, 1]), np.array(inner[0, 1])),
    )
    assert float(found) == pytest.approx(interaction.response_nonlinearity(joint, parts), abs=1e-7)
