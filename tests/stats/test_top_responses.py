"""The largest responses of each feature against a full sort, and percentiles against numpy and their definition."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from featmap.errors import FeatmapError
from featmap.stats.top_responses import NONE, TopResponses, at_percentiles, equal_rows

FEW = st.sampled_from([-np.inf, -2.5, -1.0, 0.0, 0.5, 3.0, np.inf, np.nan])
"""Few values, so that there are many ties."""
RESPONSES = st.tuples(st.integers(1, 40), st.integers(1, 5)).flatmap(
    lambda shape: arrays.arrays(np.float32, shape, elements=FEW | st.floats(-9, 9, width=32))
)


def kept(responses: np.ndarray, k: int, cuts: list[int]) -> TopResponses:
    """Add responses in parts that end at the cuts."""
    top, ends = TopResponses(responses.shape[1], k), sorted({0, *(c for c in cuts if c < len(responses))})
    for first, last in zip(ends, [*ends[1:], len(responses)], strict=True):
        top.add(np.arange(first, last), responses[first:last])
    return top


@settings(deadline=None)
@given(RESPONSES, st.integers(1, 12), st.lists(st.integers(0, 40)))
def test_the_best_are_those_of_a_full_sort(responses: np.ndarray, k: int, cuts: list[int]) -> None:
    top = kept(responses, k, cuts)
    for f, column in enumerate(responses.T.tolist()):
        ranked = sorted((i for i, v in enumerate(column) if np.isfinite(v)), key=lambda i: (-column[i], i))[:k]
        assert top.positions[f].tolist() == ranked + [NONE] * (k - len(ranked))
        np.testing.assert_array_equal(top.values[f, : len(ranked)], [column[i] for i in ranked])
        assert np.isnan(top.values[f, len(ranked) :]).all()
        finite = {column[i] for i in range(len(column)) if np.isfinite(column[i])}
        spread, largest = max(finite, default=0) - min(finite, default=0), max(map(abs, finite), default=0)
        assert top.varies[f] == (spread > max(1e-6 * largest, np.finfo(np.float32).tiny))


@settings(deadline=None)
@given(RESPONSES, st.lists(st.integers(1, 100), min_size=1, max_size=4))
def test_percentiles_are_those_of_the_definition(responses: np.ndarray, percentiles: list[int]) -> None:
    rows, values = at_percentiles(responses, percentiles)
    for f, column in enumerate(responses.T.tolist()):
        finite = [v for v in column if np.isfinite(v)]
        for p, q in enumerate(percentiles):
            if not finite:
                assert rows[f, p] == NONE and np.isnan(values[f, p])
                continue
            value = min(v for v in finite if 100 * sum(w <= v for w in finite) >= q * len(finite))
            assert values[f, p] == value and rows[f, p] == column.index(value)


@pytest.mark.parametrize("count", [1, 2, 9, 64, 300])
def test_percentiles_are_those_of_numpy(count: int) -> None:
    responses = np.random.default_rng(count).normal(size=(count, 7)).astype(np.float32)
    rows, values = at_percentiles(responses)
    expected = np.percentile(responses.astype(np.float64), (50, 90, 99), axis=0, method="inverted_cdf").T
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(np.take_along_axis(responses, rows.T, 0).T, values)


def test_features_that_vary_by_rounding_alone_do_not_vary() -> None:
    """A normalisation over positions fixes the mean of a feature but for its last bits."""
    fixed = np.full((40, 3), 0.25, dtype=np.float32)
    fixed[7, 0] = np.nextafter(np.float32(0.25), np.float32(1))
    fixed[7, 1] = 0.2501
    assert kept(fixed, 3, [11]).varies.tolist() == [False, True, False]


def test_many_responses_at_once_are_not_sorted_at_once() -> None:
    """Before any is kept, every response is a candidate: 80 MB of them would take ten times that."""
    responses = np.random.default_rng(0).random((20_000, 1000), dtype=np.float32)
    top = TopResponses(1000, 9)
    tracemalloc.start()
    top.add(np.arange(len(responses)), responses)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(top.values[:, 0], responses.max(axis=0))
    assert peak < responses.nbytes, f"{peak / 2**20:.0f} MiB"


def test_photographs_out_of_order_are_refused() -> None:
    top = TopResponses(2, 9)
    top.add(np.array([0, 3]), np.zeros((2, 2)))
    top.add(np.array([], dtype=int), np.zeros((0, 2)))
    for positions in ([3], [5, 5]):
        with pytest.raises(FeatmapError, match="out of order"):
            top.add(np.array(positions), np.zeros((len(positions), 2)))
    with pytest.raises(FeatmapError, match="count 0"):
        TopResponses(2, 0)


def test_equal_rows_are_found_across_parts() -> None:
    rows = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    rows[7], rows[5], rows[3] = rows[1], rows[0], rows[0]
    rows[8] = np.nextafter(rows[1], np.float32(9))
    assert equal_rows([rows[:2], rows[2:6], rows[6:]]) == [[0, 3, 5], [1, 7]]
    assert equal_rows([rows[6:]]) == []
