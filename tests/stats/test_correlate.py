"""Similarity of one layer in two passes over blocks, against the formula for all images at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featmap.stats import blockwise
from featmap.stats.measures import profile


def responses(seed: int, images: int, features: int) -> np.ndarray:
    """Skewed responses of very different scales and offsets, with common factors, as float32 stores them."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((images, 3)) @ rng.standard_normal((3, features))
    values = np.exp(0.5 * common + rng.standard_normal((images, features)))
    scales = 10.0 ** rng.uniform(-4, 4, features)
    return np.asarray(values * scales + 50 * scales * rng.integers(0, 2, features), dtype=np.float32)


def in_blocks(values: np.ndarray, rows: int) -> Iterator[np.ndarray]:
    for first in range(0, len(values), rows):
        yield values[first : first + rows].astype(np.float64)


def at_once(values: np.ndarray) -> np.ndarray:
    names = [f"f:{k}" for k in range(values.shape[1])]
    frame = pd.DataFrame(values.astype(np.float64), columns=names, index=[f"p{k}" for k in range(len(values))])
    return profile(frame, pd.Series(0.0, index=names)).to_numpy()


def by_hand(values: np.ndarray) -> np.ndarray:
    """Take roots, standardise, centre by row, correlate: each step as numpy has it."""
    Z = np.sqrt(values.astype(np.float64))
    Z = (Z - Z.mean(0)) / Z.std(0)
    return np.corrcoef(Z - Z.mean(1, keepdims=True), rowvar=False)


@pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning")
@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31), st.integers(3, 60), st.integers(2, 20), st.integers(1, 70), st.integers(1, 400), st.data()
)
def test_blocks_of_any_size_give_the_formula(
    seed: int, images: int, features: int, rows: int, cells: int, data: st.DataObject
) -> None:
    values = responses(seed, images, features)
    if data.draw(st.booleans(), label="constant"):
        values[:, data.draw(st.integers(0, features - 1))] = 7.0
    if data.draw(st.booleans(), label="hole"):
        values[data.draw(st.integers(0, images - 1)), data.draw(st.integers(0, features - 1))] = np.nan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockwise, "SLICE_CELLS", cells)  # panels of any width, too
        found = blockwise.correlate(lambda: in_blocks(values, rows), features)
    np.testing.assert_allclose(found.similarity, at_once(values), rtol=0, atol=1e-10)
    np.testing.assert_array_equal(found.similarity, found.similarity.T)
    assert found.images == images


def test_blocks_give_what_numpy_gives() -> None:
    values = responses(5, 200, 30)
    found = blockwise.correlate(lambda: in_blocks(values, 17), 30)
    np.testing.assert_allclose(found.similarity, by_hand(values), rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.mean, values.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.deviation, values.astype(np.float64).std(0), rtol=1e-9)


def test_constant_features_and_holes_have_no_similarity_and_do_not_centre() -> None:
    values = responses(6, 50, 8)
    spoilt = np.insert(values, [2, 5], 1.0, axis=1)
    spoilt[7, 6] = np.inf  # the second inserted column
    found = blockwise.correlate(lambda: in_blocks(np.where(np.isfinite(spoilt), spoilt, np.nan), 9), 10)
    rest = np.delete(np.arange(10), [2, 6])
    np.testing.assert_allclose(found.similarity[np.ix_(rest, rest)], by_hand(values), rtol=0, atol=1e-10)
    assert np.isnan(found.similarity[[2, 6]]).all() and np.isnan(found.similarity[:, [2, 6]]).all()
    assert found.mean[2] == 1.0 and found.deviation[2] == 0.0 and np.isnan(found.mean[6])


def test_two_features_alone_are_opposite_and_one_has_no_similarity() -> None:
    """Centring by image leaves two standardised columns each other's negative, and a single one nothing."""
    values = responses(7, 40, 2)
    np.testing.assert_allclose(blockwise.correlate(lambda: in_blocks(values, 8), 2).similarity, [[1, -1], [-1, 1]])
    assert np.isnan(blockwise.correlate(lambda: in_blocks(values[:, :1], 8), 1).similarity).all()


def test_without_roots_the_responses_themselves_are_correlated() -> None:
    values = responses(9, 60, 12)
    values[:, ::2] *= -1
    found = blockwise.correlate(lambda: in_blocks(values, 13), 12, roots=False)
    Z = (values - values.astype(np.float64).mean(0)) / values.astype(np.float64).std(0)
    expected = np.corrcoef(Z - Z.mean(1, keepdims=True), rowvar=False)
    np.testing.assert_allclose(found.similarity, expected, rtol=0, atol=1e-10)
    rooted = blockwise.correlate(lambda: in_blocks(values, 13), 12)
    np.testing.assert_allclose(rooted.similarity, at_once(values), rtol=0, atol=1e-10)
    assert np.abs(rooted.similarity - expected).max() > 0.05
    np.testing.assert_array_equal(rooted.mean, found.mean)
    np.testing.assert_array_equal(rooted.deviation, found.deviation)


def test_progress_counts_the_blocks_of_both_passes() -> None:
    seen: list[tuple[int, int]] = []
    blockwise.correlate(lambda: in_blocks(responses(8, 40, 4), 10), 4, lambda done, total: seen.append((done, total)))
    assert seen == [(4, 8), (5, 8), (6, 8), (7, 8), (8, 8)]
