"""Agreement of sets of images beside its ceiling on the same rows, on planted responses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from analyses import metrics
from analyses.formulas.likeness import profile_agreement
from analyses.support.findings import Finding
from analyses.support.image_sets import ImageSet, agreement_ceiling, count_compared, restrict_live, set_agreement

N, M, SEEDS = 16, 40, 3


def planted(noise: float, key: int, seeds: int = SEEDS) -> ImageSet:
    """Images whose profiles are those of N features and what all of them share, with noise by seed."""
    profiles = np.random.default_rng(1).normal(size=(N, M))
    A = profiles + noise * np.random.default_rng(key).normal(size=(seeds, N, M))
    images, live = np.zeros((seeds, N, 3, 2, 2)), np.ones((seeds, N), dtype=bool)
    return ImageSet(tuple(f"x:{k}" for k in range(N)), images, images[:, 0], A[:, :, 0], live, A)


def keep(made: ImageSet, count: int) -> ImageSet:
    """The same with only the first `count` features live."""
    return replace(made, live=made.live & (np.arange(N) < count))


def test_fewer_images_agree_more_and_so_does_their_ceiling() -> None:
    one, two = planted(0.5, 2), planted(0.5, 3)
    whole, few = np.nanmean(set_agreement(one, two).excess), np.nanmean(set_agreement(keep(one, 4), two).excess)
    assert few > whole + 0.05, "an effect of the number of images alone"
    top = agreement_ceiling(keep(one, 4), two).excess
    assert np.isfinite(top).sum() == 4 and np.nanmean(top) == pytest.approx(few, abs=0.1)
    # two's own agreement over its seeds, of the same rows in one of them
    rows = [
        profile_agreement(two.responses[s, :4], two.responses[t, :4]).excess
        for s in range(3)
        for t in range(3)
        if s != t
    ]
    np.testing.assert_allclose(top[:4], np.mean(rows, axis=0))


def test_a_worse_recipe_lies_below_the_ceiling_of_its_rows() -> None:
    one, two = keep(planted(2.0, 2), 9), planted(0.5, 3)
    lacking = set_agreement(one, two, metrics.FEWEST).excess - agreement_ceiling(one, two, metrics.FEWEST).excess
    assert np.isfinite(lacking).sum() == 9 and np.nanmean(lacking) < -0.2


def test_too_few_images_are_undefined() -> None:
    one, two = planted(0.5, 2), planted(0.5, 3)
    for count, defined in ((7, 0), (8, 8)):
        both = restrict_live(keep(one, count), two)
        assert count_compared(both, two) == [count] * 6
        assert np.isfinite(set_agreement(both, two, metrics.FEWEST).same).sum() == defined
        rows = metrics.compare_with_L1("x", keep(one, count), two, "linf")
        assert set(rows["measure"]) == (
            {"same", "different", "ceiling same", "ceiling different"} if defined else set()
        )


def test_one_seed_has_no_ceiling() -> None:
    one = planted(0.5, 2, seeds=1)
    assert np.isnan(agreement_ceiling(one, one).same).all()
    assert np.isfinite(
        agreement_ceiling(one, planted(0.5, 3)).same
    ).all()  # one seed of a recipe against three of another


def test_the_C_at_which_the_ceiling_is_left() -> None:
    def finding(low: float | None, high: float | None) -> Finding:
        return Finding("", low, low, high, 16, "")

    found = dict(
        zip(("w a", "w b", "w c", "w d"), map(finding, (-0.04, -0.2, -0.2, -0.3), (0, 0, -0.06, -0.1)), strict=True)
    )
    assert metrics.ceiling_span(found, "w", ["a", "b", "c", "d"]) == ("a", "c")  # b is neither at it nor below
    assert metrics.ceiling_span(found, "w", ["a", "b"]) == ("a", None)
    assert metrics.ceiling_span(found, "w", ["c", "a"]) == (None, "c")
    assert metrics.ceiling_span({"w a": finding(None, None)}, "w", ["a"]) == (None, None)


def test_the_largest_C_comes_first() -> None:
    near, far = ({"C over a": Finding("", v, None, None, 2, "")} for v in (2.0, 5000.0))
    assert metrics.labels_by_C(near).index(metrics.L2) == 3 and metrics.labels_by_C(far)[0] == metrics.L2
