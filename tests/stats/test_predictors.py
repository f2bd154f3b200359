from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from featmap.stats import predictors
from featmap.stats.correlation import rank_correlation
from featmap.stats.interaction import response_nonlinearity
from featmap.stats.predictors import PREDICTORS, Side


def side(n: int, others: int, seed: int, offset: int = 0, total: int = 9) -> Side:
    rng = np.random.default_rng(seed)
    return Side(
        r=rng.normal(size=(2, n, 40)),  # so many that any two units drive some of them the same way
        fraction=rng.normal(size=(n, 40)),
        d=rng.normal(size=(n, 12)),
        at_null=rng.normal(size=(n, 12)),
        at_solo=rng.normal(size=(n, 12)),
        z=np.abs(rng.normal(size=(n, total))) + 0.5,
        own=np.arange(offset, offset + n),
        reads=rng.normal(size=(n, others)),
    )


A, B = side(4, 5, 1), side(5, 4, 2, offset=4)


def cosine(one: np.ndarray, two: np.ndarray) -> float:
    dot = sum(float(x) * float(y) for x, y in zip(one, two, strict=True))
    return dot / math.sqrt(sum(float(x) ** 2 for x in one) * sum(float(y) ** 2 for y in two))


@pytest.mark.parametrize("name", PREDICTORS)
def test_every_predictor_has_a_finite_value_for_every_pair(name: str) -> None:
    found = PREDICTORS[name](A, B)
    assert found.shape == (4, 5) and np.isfinite(found).all()


@pytest.mark.parametrize("name", [n for n in PREDICTORS if n != "weight overlap"])
def test_predictors_do_not_care_which_side_comes_first(name: str) -> None:
    np.testing.assert_allclose(PREDICTORS[name](A, B), PREDICTORS[name](B, A).T, rtol=1e-9)


@pytest.mark.parametrize("name", PREDICTORS)
def test_predictors_follow_the_order_of_the_units(name: str) -> None:
    order = [2, 0, 3, 1]
    moved = Side(
        A.r[:, order], A.fraction[order], A.d[order], A.at_null[order], A.at_solo[order], A.z[order], A.own[order],
        A.reads[order],
    )  # fmt: skip
    back = replace(B, reads=B.reads[:, order])
    np.testing.assert_allclose(PREDICTORS[name](moved, back), PREDICTORS[name](A, B)[order], rtol=1e-9)


def test_predictors_equal_loops_over_pairs() -> None:
    for i in range(4):
        for j in range(5):
            talk = (A.z[i, 4 + j] / B.z[j, 4 + j] + B.z[j, i] / A.z[i, i]) / 2
            assert predictors.crosstalk(A, B)[i, j] == pytest.approx(talk)
            assert predictors.gradients_at_null(A, B)[i, j] == pytest.approx(cosine(A.at_null[i], B.at_null[j]))
            both = (cosine(A.at_solo[i], B.d[j]) + cosine(A.d[i], B.at_solo[j])) / 2
            assert predictors.first_order_crosstalk(A, B)[i, j] == pytest.approx(both)
            alike = (cosine(A.r[0, i], B.r[0, j]) + cosine(A.r[1, i], B.r[1, j])) / 2
            assert predictors.response_agreement(A, B)[i, j] == pytest.approx(alike)
            floors = [1 - max(0.0, cosine(s.r[0, k], s.r[1, k])) ** 2 for s, k in ((A, i), (B, j))]
            assert predictors.seed_floor(A, B)[i, j] == pytest.approx(sum(floors) / 2)
            share = B.reads[j, i] / math.sqrt(sum(float(v) ** 2 for v in B.reads[j]))
            assert predictors.weight_overlap(A, B)[i, j] == pytest.approx(share)


def test_products_of_responses_equal_loops_over_pairs() -> None:
    for i in range(4):
        for j in range(5):
            one, two = (A.r[0, i] + A.r[1, i]) / 2, (B.r[0, j] + B.r[1, j]) / 2
            roots = [np.array([math.copysign(math.sqrt(abs(v)), v) for v in r]) for r in (one, two)]
            assert predictors.root_agreement(A, B)[i, j] == pytest.approx(cosine(*roots))
            pairs = zip(one, two, strict=True)
            product = np.array([math.copysign(math.sqrt(v * w), v) if v * w > 0 else 0.0 for v, w in pairs])
            expected = response_nonlinearity(product, np.stack([one, two]))
            assert predictors.product_nonlinearity(A, B)[i, j] == pytest.approx(expected, abs=1e-9)


def test_what_has_nothing_in_common_or_is_dead_has_no_product() -> None:
    one, two = np.eye(40)[None, :2].repeat(2, 0), np.eye(40)[None, 2:4].repeat(2, 0)
    nothing: list[Side] = [replace(A, r=one), replace(B, r=two)]
    assert np.isnan(predictors.product_nonlinearity(*nothing)).all()
    same = predictors.product_nonlinearity(replace(A, r=one), replace(B, r=one))
    np.testing.assert_allclose(np.diag(same), 0, atol=1e-12)


def test_a_dead_unit_has_no_prediction_from_responses() -> None:
    r = A.r.copy()
    r[:, 1] = np.nan
    for name in (
        "response agreement",
        "floor",
        "response imbalance",
        "self-saturation",
        "concentration",
        "agreement of root responses",
    ):
        found = PREDICTORS[name](replace(A, r=r), B)
        assert np.isnan(found[1]).all() and np.isfinite(found[[0, 2, 3]]).all()


def test_no_weight_between_layers_that_do_not_follow_each_other() -> None:
    nothing = [replace(s, reads=np.full_like(s.reads, np.nan)) for s in (A, B)]
    assert np.isnan(predictors.weight_overlap(*nothing)).all()


def test_a_planted_rank_relation_is_found_also_by_pairs_left_out() -> None:
    rng = np.random.default_rng(3)
    X = rng.normal(size=(400, 5))
    y = np.exp(2 * X[:, 1] - X[:, 3])
    y[200:] = np.nan
    everywhere, left_out = predictors.fit_combined(X, y)
    assert np.isnan(left_out[200:]).all() and np.isfinite(everywhere).all()
    assert spearmanr(left_out[:200], y[:200]).statistic > 0.95
    assert spearmanr(everywhere[200:], 2 * X[200:, 1] - X[200:, 3]).statistic > 0.95


def test_the_combination_of_noise_predicts_nothing_left_out() -> None:
    """Fitted and judged on the same pairs it would seem to: that is what leaving out is for."""
    rng = np.random.default_rng(4)
    seen, unseen = [], []
    for _ in range(20):
        X, y = rng.normal(size=(60, 10)), rng.normal(size=60)
        everywhere, left_out = predictors.fit_combined(X, y)
        seen.append(spearmanr(everywhere, y).statistic)
        unseen.append(spearmanr(left_out, y).statistic)
    assert np.mean(seen) > 0.2 and np.mean(unseen) < 0.1


def test_too_few_pairs_are_not_fitted() -> None:
    everywhere, left_out = predictors.fit_combined(np.ones((30, 2)), np.r_[np.arange(19.0), np.full(11, np.nan)])
    assert np.isnan(everywhere).all() and np.isnan(left_out).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_what_one_predictor_leaves_undefined_counts_as_its_middle(seed: int) -> None:
    rng = np.random.default_rng(seed)
    X, y = rng.normal(size=(50, 3)), rng.normal(size=50)
    X[rng.random((50, 3)) < 0.2] = np.nan
    everywhere, left_out = predictors.fit_combined(X, y)
    assert np.isfinite(everywhere).tolist() == np.isfinite(X).any(1).tolist() == np.isfinite(left_out).tolist()


def test_rank_correlation() -> None:
    rng = np.random.default_rng(5)
    one = rng.normal(size=50)
    two = one + rng.normal(size=50)
    rho, error, n = rank_correlation(one, two)
    assert rho == pytest.approx(spearmanr(one, two).statistic) and n == 50
    assert error == pytest.approx((1 - rho**2) * math.sqrt((1 + rho**2 / 2) / 47))
    two[:5] = np.nan
    assert rank_correlation(one, two)[2] == 45
    assert math.isnan(rank_correlation(one[:9], two[:9])[0])
    assert math.isnan(rank_correlation(np.ones(50), one)[0])
