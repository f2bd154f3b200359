"""Agreement of sets of images beside its ceiling on the same rows, on planted responses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from analyses import metrics
from analyses.formulas.likeness import profile_agreement
from analyses.support.image_sets import Made, alike, ceiling, common, compared
from analyses.support.study import Finding

N, M, SEEDS = 16, 40, 3


def planted(noise: float, key: int, seeds: int = SEEDS) -> Made:
    """Images whose profiles are those of N features and what all of them share, with noise by seed."""
    profiles = np.random.default_rng(1).normal(size=(N, M))
    A = profiles + noise * np.random.default_rng(key).normal(size=(seeds, N, M))
    images, live = np.zeros((seeds, N, 3, 2, 2)), np.ones((seeds, N), dtype=bool)
    return Made(tuple(f"x:{k}" for k in range(N)), images, images[:, 0], A[:, :, 0], live, A)


def keep(made: Made, count: int) -> Made:
    """The same with only the first `count` features live."""
    return replace(made, live=made.live & (np.arange(N) < count))


def test_fewer_images_agree_more_and_so_does_their_ceiling() -> None:
    one, two = planted(0.5, 2), planted(0.5, 3)
    whole, few = np.nanmean(alike(one, two).beyond), np.nanmean(alike(keep(one, 4), two).beyond)
    assert few > whole + 0.05, "an effect of the number of images alone"
    top = ceiling(keep(one, 4), two).beyond
    assert np.isfinite(top).sum() == 4 and np.nanmean(top) == pytest.approx(few, abs=0.1)
    # two's own agreement over its seeds, of the same rows in one of them
    rows = [
        profile_agreement(two.responses[s, :4], two.responses[t, :4]).beyond
        for s in range(3)
        for t in range(3)
        if s != t
    ]
    np.testing.assert_allclose(top[:4], np.mean(rows, axis=0))


def test_a_worse_recipe_lies_below_the_ceiling_of_its_rows() -> None:
    one, two = keep(planted(2.0, 2), 9), planted(0.5, 3)
    lacking = alike(one, two, metrics.FEWEST).beyond - ceiling(one, two, metrics.FEWEST).beyond
    assert np.isfinite(lacking).sum() == 9 and np.nanmean(lacking) < -0.2


def test_below_the_fewest_images_nothing_is_said() -> None:
    one, two = planted(0.5, 2), planted(0.5, 3)
    for count, defined in ((7, 0), (8, 8)):
        both = common(keep(one, count), two)
        assert compared(both, two) == [count] * 6
        assert np.isfinite(alike(both, two, metrics.FEWEST).same).sum() == defined
        rows = metrics.likenesses("x", keep(one, count), two, "linf")
        assert set(rows["measure"]) == (
            {"same", "different", "ceiling same", "ceiling different"} if defined else set()
        )


def test_one_seed_has_no_ceiling() -> None:
    one = planted(0.5, 2, seeds=1)
    assert np.isnan(ceiling(one, one).same).all()
    assert np.isfinite(ceiling(one, planted(0.5, 3)).same).all()  # one seed of a recipe against three of another


def test_where_a_ceiling_is_left() -> None:
    def finding(low: float | None, high: float | None) -> Finding:
        return Finding("", low, low, high, 16, "")

    found = dict(
        zip(("w a", "w b", "w c", "w d"), map(finding, (-0.04, -0.2, -0.2, -0.3), (0, 0, -0.06, -0.1)), strict=True)
    )
    assert metrics.span(found, "w", ["a", "b", "c", "d"]) == ("a", "c")  # b is neither at it nor below
    assert metrics.span(found, "w", ["a", "b"]) == ("a", None)
    assert metrics.span(found, "w", ["c", "a"]) == (None, "c")
    assert metrics.span({"w a": finding(None, None)}, "w", ["a"]) == (None, None)


def test_the_largest_C_comes_first() -> None:
    near, far = ({"C over a": Finding("", v, None, None, 2, "")} for v in (2.0, 5000.0))
    assert metrics.by_C(near).index(metrics.L2) == 3 and metrics.by_C(far)[0] == metrics.L2
