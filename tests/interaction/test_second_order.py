"""Second-order predictors of a screening: loops over pairs, closed forms, laws."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featmap.interaction import second_order
from featmap.interaction.second_order import SECOND_ORDER_PREDICTORS, unexplained_shares
from featmap.stats.interaction import response_nonlinearity
from featmap.stats.predictors import Side
from tests.stats.test_predictors import A as FEW_FEATURES
from tests.stats.test_predictors import B as FEW_FEATURES_TOO
from tests.stats.test_predictors import cosine

# so many probed features that any two units drive some of them the same way
A = replace(FEW_FEATURES, r=np.random.default_rng(11).normal(size=(2, 4, 40)))
B = replace(FEW_FEATURES_TOO, r=np.random.default_rng(12).normal(size=(2, 5, 40)))


@pytest.mark.parametrize("name", SECOND_ORDER_PREDICTORS)
def test_predictors_do_not_care_which_side_comes_first(name: str) -> None:
    table = SECOND_ORDER_PREDICTORS[name](A, B)
    assert table.shape == (4, 5) and np.isfinite(table).all()
    np.testing.assert_allclose(table, SECOND_ORDER_PREDICTORS[name](B, A).T, rtol=1e-9, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(sorted(SECOND_ORDER_PREDICTORS)), st.floats(0.01, 100), st.floats(0.01, 100))
def test_scales_of_units_change_nothing(name: str, one: float, two: float) -> None:
    scaled = replace(A, r=one * A.r, at_null=two * A.at_null, at_solo=two * A.at_solo, d=one * A.d)
    expected = SECOND_ORDER_PREDICTORS[name](A, B)
    np.testing.assert_allclose(SECOND_ORDER_PREDICTORS[name](scaled, B), expected, rtol=1e-7, atol=1e-9)


def test_predictors_equal_loops_over_pairs() -> None:
    for i in range(4):
        for j in range(5):
            one, two = (A.r[0, i] + A.r[1, i]) / 2, (B.r[0, j] + B.r[1, j]) / 2
            roots = [np.array([math.copysign(math.sqrt(abs(v)), v) for v in r]) for r in (one, two)]
            assert second_order.root_agreement(A, B)[i, j] == pytest.approx(cosine(*roots))
            pairs = zip(one, two, strict=True)
            product = np.array([math.copysign(math.sqrt(v * w), v) if v * w > 0 else 0.0 for v, w in pairs])
            expected = response_nonlinearity(product, np.stack([one, two]))
            assert second_order.product_nonlinearity(A, B)[i, j] == pytest.approx(expected, abs=1e-9)
            changes = [
                (u.at_solo[k] - u.at_null[k])
                @ v.d[m]
                / np.linalg.norm(v.d[m])
                / max(np.linalg.norm(u.at_solo[k]), np.linalg.norm(u.at_null[k]))
                for u, k, v, m in ((A, i, B, j), (B, j, A, i))
            ]
            assert second_order.gradient_change(A, B)[i, j] == pytest.approx(np.mean(changes))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["any", "opposed", "equal"]))
def test_shares_are_those_of_non_negative_least_squares(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    joint, parts = rng.normal(size=5), rng.normal(size=(2, 5))
    if kind != "any":
        parts[1] = parts[0] if kind == "equal" else -parts[0] + 0.1 * parts[1]
    inner = parts @ parts.T
    found = unexplained_shares(
        np.array(joint @ joint),
        (np.array(parts[0] @ joint), np.array(parts[1] @ joint)),
        (np.array(inner[0, 0]), np.array(inner[1, 1]), np.array(inner[0, 1])),
    )
    assert float(found) == pytest.approx(response_nonlinearity(joint, parts), abs=1e-7)


def test_a_quadratic_unit_changes_its_gradient_by_its_hessian() -> None:
    """Z = x' Q x / 2 has the gradient Q x: its change from 0 to d_a, along d_b, is d_b' Q d_a."""
    rng = np.random.default_rng(9)
    Q = rng.normal(size=(12, 12))
    Q = Q + Q.T
    quadratic = replace(A, at_null=np.zeros_like(A.d), at_solo=A.d @ Q)
    linear = replace(B, at_null=B.at_solo)
    expected = A.d @ Q @ B.d.T / np.outer(np.linalg.norm(A.d @ Q, axis=1), np.linalg.norm(B.d, axis=1)) / 2
    np.testing.assert_allclose(second_order.gradient_change(quadratic, linear), expected, rtol=1e-10)
    np.testing.assert_array_equal(second_order.gradient_change(replace(A, at_null=A.at_solo), linear), 0)


def test_what_has_nothing_in_common_or_is_dead_has_no_product() -> None:
    one, two = np.eye(40)[None, :2].repeat(2, 0), np.eye(40)[None, 2:4].repeat(2, 0)
    nothing: list[Side] = [replace(A, r=one), replace(B, r=two)]
    assert np.isnan(second_order.product_nonlinearity(*nothing)).all()
    same = second_order.product_nonlinearity(replace(A, r=one), replace(B, r=one))
    np.testing.assert_allclose(np.diag(same), 0, atol=1e-12)
    dead = A.r.copy()
    dead[:, 1] = np.nan
    for name in ("agreement of root responses", "nonlinearity of the product"):
        table = SECOND_ORDER_PREDICTORS[name](replace(A, r=dead), B)
        assert np.isnan(table[1]).all() and np.isfinite(table[[0, 2, 3]]).all()
