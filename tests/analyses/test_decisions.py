"""Decisions of studies: intervals beside limits, and parts of a claim."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyses.support.decisions import above, all_hold, below, exceeds
from analyses.support.findings import Finding
from analyses.support.growth import Growth, movement_elsewhere
from analyses.support.image_sets import ImageSet
from featmap.network.receptive_field import ReceptiveField

FINITE = st.floats(-1e6, 1e6)


@given(FINITE, FINITE, FINITE)
def test_an_interval_is_above_a_limit_where_every_value_of_it_is(one: float, other: float, limit: float) -> None:
    low, high = min(one, other), max(one, other)
    beyond = [value > limit for value in np.linspace(low, high, 9)] + [high > limit]
    expected = True if all(beyond) else None if any(beyond) else False
    assert above(low, high, limit) is expected
    assert below(-high, -low, -limit) is expected
    assert exceeds(Finding("x", low, low, high, 2, ""), limit) is expected


@pytest.mark.parametrize(("low", "high"), [(math.nan, 1.0), (1.0, math.nan), (math.nan, math.nan)])
def test_an_undefined_interval_decides_nothing(low: float, high: float) -> None:
    assert above(low, high, 0) is None and below(low, high, 2) is None
    assert exceeds(Finding("x", 1.0, None, None, 1, ""), 0) is None


@pytest.mark.parametrize(
    ("parts", "expected"),
    [([True, True], True), ([True, None], None), ([None, False], False), ([True, False], False), ([], None)],
)
def test_parts_hold_together_only_if_each_does(parts: list[bool | None], expected: bool | None) -> None:
    assert all_hold(parts) is expected and all_hold(iter(parts)) is expected


@pytest.mark.parametrize(("step", "defined"), [(6e-8, False), (1e-3, True)])
def test_a_change_relative_to_roundings_alone_is_undefined(step: float, defined: bool) -> None:
    start = np.full((1, 3, 8, 8), 0.5, dtype=np.float32)
    before, after = (np.tile(start[:, None], (1, 1, 1, 1, 1)) for _ in range(2))
    before[..., :2, :2] += 0.25  # in the field, whose change is not counted
    before[..., 7, 7] += np.float32(step)
    after[..., 7, 7] += np.float32(2 * step)
    units, ones = ("a:0:0,0",), np.ones((1, 1))
    sets = [ImageSet(units, images, start, ones, ones > 0) for images in (before, after, after)]
    grown = Growth("a", *sets, [ReceptiveField((2, 2), (2, 2), (0, 0))], [(0, 0)])
    assert grown.bounds == [(slice(0, 2), slice(0, 2))]
    found = movement_elsewhere(grown, np.array([1 - 4 / 64]))
    assert np.isfinite(found[0, 0]) == defined
    if defined:
        assert found[0, 0] == pytest.approx(1, rel=1e-3)
