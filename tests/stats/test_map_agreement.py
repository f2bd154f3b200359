from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featmap.stats.map_agreement import compare, list_disagreements, row_correlations


def similarity(seed: int, D: int, holes: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    S = np.corrcoef(rng.standard_normal((20, D)), rowvar=False)
    for i, j in rng.integers(0, D, (holes, 2)):
        S[i, j] = S[j, i] = np.nan
    names = [f"f:{k}" for k in range(D)]
    return pd.DataFrame(S, index=names, columns=names)


def row_by_row(one: np.ndarray, two: np.ndarray, j: int, times: np.ndarray) -> float:
    """Repeat each other column as often as it counts, and let numpy correlate."""
    columns = [k for k in range(len(one)) if k != j and np.isfinite(one[j, k] + two[j, k]) for _ in range(times[k])]
    return float(np.corrcoef(one[j, columns], two[j, columns])[0, 1]) if len(set(columns)) >= 3 else float("nan")


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(5, 12), st.integers(0, 6))
def test_rows_are_correlated_as_numpy_does(seed: int, D: int, holes: int) -> None:
    one, two = similarity(seed, D, holes).to_numpy(), similarity(seed + 1, D, holes).to_numpy()
    weights = np.random.default_rng(seed).integers(0, 4, (3, D))
    found = row_correlations(one, two, weights.astype(float))
    expected = [[row_by_row(one, two, j, times) for j in range(D)] for times in weights]
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_a_map_agrees_with_itself_and_parts_nowhere() -> None:
    S = similarity(3, 12)
    found = compare(S, S)
    assert found.overall.value == pytest.approx(1) and found.overall.low == pytest.approx(1)
    np.testing.assert_allclose(found.features[["agreement", "low", "high"]], 1.0)
    assert found.features["pairs"].tolist() == [11] * 12 and found.disagreements.empty


def test_features_that_one_map_lacks_are_left_out_and_order_is_of_no_consequence() -> None:
    one, two = similarity(3, 12), similarity(4, 12)
    order = [f"f:{k}" for k in (7, 3, 0, 9, 5, 11, 1)]
    found, again = compare(one, two.loc[order, order]), compare(one.loc[sorted(order), sorted(order)], two)
    assert set(found.features.index) == set(order)
    np.testing.assert_allclose(found.features.loc[order, "agreement"], again.features.loc[order, "agreement"])
    assert found.overall.value == pytest.approx(again.overall.value)


def test_disagreements_are_the_largest_differences_of_both_signs() -> None:
    one, two = similarity(5, 9), similarity(6, 9)
    names = list(one)
    found = list_disagreements(names, one.to_numpy(), two.to_numpy(), 4)
    pairs = {(a, b): two.loc[a, b] - one.loc[a, b] for k, a in enumerate(names) for b in names[k + 1 :]}
    ranked = sorted(pairs, key=pairs.__getitem__)
    listed = set(zip(found["feature"], found["other"], strict=True))
    assert listed == {*ranked[:4], *ranked[-4:]}
    for row in found.itertuples():
        assert (row.images, row.photographs) == (one.loc[row.feature, row.other], two.loc[row.feature, row.other])
        assert row.difference == pytest.approx(pairs[row.feature, row.other])
    assert found["difference"].abs().is_monotonic_decreasing


def test_intervals_hold_the_value_and_are_undefined_with_it() -> None:
    one, two = similarity(8, 30), similarity(9, 30)
    mixed = 0.7 * one + 0.3 * two
    found = compare(one, mixed).features
    assert ((found["low"] <= found["agreement"]) & (found["agreement"] <= found["high"])).all()
    mixed.iloc[4] = mixed.iloc[:, 4] = np.nan
    found = compare(one, mixed).features
    assert found.iloc[4][["agreement", "low", "high"]].isna().all() and found["pairs"].iloc[4] == 0
    assert found.drop(index="f:4").notna().all().all()
