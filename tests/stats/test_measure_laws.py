"""More of `test_measures`: live features, undefined numbers, tables."""

from __future__ import annotations

import ast
import inspect
from itertools import combinations
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featmap.errors import FeatmapError, UnitError
from featmap.stats import frames, measures
from featmap.stats.frames import count_undefined, distinct_pairs, nearest_features, seed_agreement
from featmap.stats.measures import (
    MEASURES,
    FewStimuliWarning,
    coactivation,
    identity_rate,
    profile,
    relative,
    selective,
)
from tests.helpers import oracles
from tests.helpers.frames import to_masked
from tests.stats.test_measures import dense, frame, gaussian, labels, laws, zeros

pytestmark = pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning")


def test_live_keeps_the_order_of_the_columns() -> None:
    A = gaussian(35)
    pd.testing.assert_frame_equal(profile(A, zeros(A), labels(35)[::-1]), profile(A, zeros(A)))


# --- undefined ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MEASURES)
def test_results_are_float64_with_nan_where_undefined(name: str) -> None:
    A = gaussian(6)
    A.iloc[:, 2], A.iloc[1, 4], A.iloc[5, 0] = 0.0, np.nan, -np.inf
    found = MEASURES[name](A, zeros(A))
    assert {str(t) for t in found.dtypes} == {"float64"}
    values = found.to_numpy()
    assert not np.isinf(values).any()
    assert count_undefined(found) == found.size - np.isfinite(values).sum() == to_masked(found).mask.sum() > 0


def test_a_dead_feature_is_undefined_and_harms_no_other() -> None:
    A, dead = gaussian(33) + 5 * np.eye(33), "inception4a:7"
    A[dead] = 0.0
    for name in ("coactivation", "selective"):
        found = MEASURES[name](A, zeros(A) - 1.0 if name == "selective" else zeros(A))
        assert count_undefined(found) == count_undefined(found[[dead]]) == 33
    assert count_undefined(relative(A, zeros(A))) == count_undefined(relative(A, zeros(A)).loc[[dead]]) == 33
    S = profile(A, zeros(A))
    assert count_undefined(S) == 2 * 33 - 1
    rest = [x for x in A.columns if x != dead]
    alone = A[rest]
    assert np.allclose(to_masked(S.loc[rest, rest]), to_masked(profile(alone, zeros(alone))), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("gain", "defined"), [(2e-6, True), (0.5e-6, False), (0.0, False), (-1.0, False)])
def test_coactivation_is_undefined_below_its_floor(gain: float, defined: bool) -> None:
    A, null = frame([[1.0 + gain, 0.0], [0.0, 1.0]]), pd.Series([1.0, 0.0], index=labels(2))
    assert count_undefined(coactivation(A, null)) == (0 if defined else 2)


def test_rows_and_columns_of_different_layers() -> None:
    A = pd.DataFrame(np.arange(6.0).reshape(2, 3), index=labels(2, "a"), columns=labels(3, "b"))
    assert count_undefined(coactivation(A, zeros(A))) == 6
    assert count_undefined(relative(A, zeros(A))) == 6
    assert count_undefined(selective(A, zeros(A))) == 0
    assert profile(A, zeros(A), [*A.index, *A.columns[:2]]).shape == (2, 2)
    with pytest.raises(UnitError, match="own image"):
        identity_rate(A)
    with pytest.raises(UnitError, match="no live feature has an image"):
        profile(A, zeros(A), list(A.columns))


def test_nothing_live_gives_an_empty_profile() -> None:
    S = profile(gaussian(4), zeros(gaussian(4)), [])
    assert S.shape == (0, 0)
    assert count_undefined(S) == 0 and nearest_features(S).empty and distinct_pairs(S, 3).empty


def test_an_image_without_finite_responses_is_left_out() -> None:
    A = gaussian(40)
    without = profile(A.iloc[1:], zeros(A))
    A.iloc[0] = np.nan
    pd.testing.assert_frame_equal(profile(A, zeros(A)), without)


@pytest.mark.filterwarnings("error")
def test_few_stimuli_warn() -> None:
    A = gaussian(32)
    profile(A, zeros(A))
    with pytest.warns(FewStimuliWarning, match="31 images"):
        profile(A.iloc[:31], zeros(A))


# --- one number for a map --------------------------------------------------------------------------


@given(data=dense(), drop=st.integers(0, 2))
@laws
def test_identity_rate_agrees_with_plain_loops(data: tuple[pd.DataFrame, pd.Series], drop: int) -> None:
    A = data[0] - 3 * np.eye(len(data[0]))
    live = list(A.columns[drop:])
    assert identity_rate(A, live) == pytest.approx(oracles.identity_rate(A, live))


def test_identity_rate_compares_live_images_where_they_are_finite() -> None:
    A = frame([[2.0, 0.0, 7.0], [1.0, 3.0, 8.0], [9.0, 9.0, 7.0]])
    assert identity_rate(A) == 0.0
    assert identity_rate(A, labels(2)) == 1.0
    A.iloc[1, 0] = np.nan
    assert identity_rate(A, labels(2)) == 1.0
    A.iloc[0, 0] = np.inf
    assert identity_rate(A, labels(2)) == 0.5


def test_seed_agreement_agrees_with_plain_loops() -> None:
    rng = np.random.Generator(np.random.PCG64(1))
    base, maps = gaussian(34, 1), []
    for dead in ("inception4a:3", "inception4a:30", "inception4a:30"):
        A = base + 0.3 * rng.standard_normal(base.shape)
        A[dead] = 0.0
        maps.append(profile(A, zeros(A)))
    maps[2] = maps[2].iloc[::-1, ::-1]
    found = []
    for one, two in ((0, 1), (0, 2), (1, 2)):
        pairs = [(a, b) for i, a in enumerate(base.columns) for b in base.columns[i + 1 :]]
        both = [p for p in pairs if np.isfinite([maps[one].loc[p], maps[two].loc[p]]).all()]
        found.append(oracles.pearson(*([float(maps[m].loc[p]) for p in both] for m in (one, two))))
    assert seed_agreement(maps) == pytest.approx(sum(found) / 3, abs=1e-9)
    assert seed_agreement([maps[0], maps[0]]) == pytest.approx(1.0)


def test_seed_agreement_needs_maps_that_can_be_correlated() -> None:
    S = profile(gaussian(33), zeros(gaussian(33)))
    with pytest.raises(FeatmapError, match="at least 2 maps; 1 given"):
        seed_agreement([S])
    with pytest.raises(FeatmapError, match="too few similarities"):
        seed_agreement([S.iloc[:2, :2], S])


# --- neighbours -----------------------------------------------------------------------------------


def test_nearest_and_top_pairs_agree_with_plain_loops() -> None:
    A = gaussian(33)
    S = profile(A, zeros(A))
    found = nearest_features(S, 4)
    for feature, rows in found.groupby("feature", sort=False):
        others = sorted((x for x in S.columns if x != feature), key=lambda x: -S.loc[feature, x])[:4]
        assert list(rows["other"]) == others
        assert list(rows["similarity"]) == [S.loc[feature, x] for x in others]
    assert list(found["feature"].unique()) == list(S.columns)


@given(seed=st.integers(0, 10**6), size=st.integers(0, 12), panel=st.integers(1, 5), n=st.integers(0, 8))
def test_distinct_pairs_are_those_of_a_sort_of_all_pairs(seed: int, size: int, panel: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 6, (size, size)) / 5  # with ties
    values = np.triu(np.where(rng.random((size, size)) < 0.2, np.nan, values), 1)
    S = frame(values + values.T)
    pairs = sorted((p for p in combinations(S.columns, 2) if np.isfinite(S.loc[p])), key=lambda p: -S.loc[p])
    taken: set[str] = set()
    expected = []
    for one, two in pairs:
        if len(expected) < n and not {one, two} & taken:
            taken |= {one, two}
            expected.append((one, two, S.loc[one, two]))
    with mock.patch.object(frames, "PANEL", panel):
        found = distinct_pairs(S, n)
    assert list(found.columns) == ["feature", "other", "similarity"]
    assert list(found.itertuples(index=False, name=None)) == expected


def test_ties_go_by_the_order_of_columns_and_undefined_ones_are_left_out() -> None:
    values = np.array(
        [[1, 0.5, 0.5, np.nan], [0.5, 1, 0.5 + 1e-15, 0.1], [0.5, 0.5 + 1e-15, 1, 0.1], [np.nan, 0.1, 0.1, 1]]
    )
    S = frame(values).convert_dtypes()
    assert list(nearest_features(S, 1)["other"]) == [f"inception4a:{i}" for i in (1, 0, 0, 1)]
    assert len(nearest_features(S, 99)) == 10 and len(distinct_pairs(S, 99)) == 2
    turned = S.iloc[::-1, ::-1]
    assert list(nearest_features(turned, 1)["other"]) == [f"inception4a:{i}" for i in (2, 1, 2, 2)]
    assert list(distinct_pairs(turned, 1).iloc[0, :2]) == ["inception4a:2", "inception4a:1"]


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MEASURES)
def test_bad_input_is_refused_with_one_line(name: str) -> None:
    A = gaussian(3)
    function = MEASURES[name]
    cases: list[tuple[tuple[object, ...], type[Exception], str]] = [
        ((A.iloc[:0], zeros(A)), FeatmapError, "A is empty"),
        ((A, zeros(A)[:2]), UnitError, "null lacks 'inception4a:2'"),
        ((A, zeros(A), ["inception4a:9"]), UnitError, "live names 'inception4a:9'"),
        ((A.iloc[:, [0, 0]], zeros(A)), UnitError, "more than once in the columns of A"),
        ((A.astype(object).replace(A.iloc[0, 0], "x"), zeros(A)), FeatmapError, "numbers only"),
    ]
    for arguments, error, match in cases:
        with pytest.raises(error, match=match) as caught:
            function(*arguments)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_unknown_correlations_and_other_frames_are_refused() -> None:
    A = gaussian(3)
    with pytest.raises(FeatmapError, match="allowed: pearson, spearman"):
        profile(A, zeros(A), method="kendall")  # type: ignore[arg-type]
    with pytest.raises(FeatmapError, match="not symmetric"):
        nearest_features(A)
    with pytest.raises(FeatmapError, match="same labels"):
        distinct_pairs(A.iloc[:2], 1)


@pytest.mark.parametrize("path", sorted(Path(inspect.getfile(measures)).parent.glob("*.py")), ids=lambda p: p.stem)
def test_statistics_need_no_torch_and_no_other_room(path: Path) -> None:
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    names = [getattr(n, "module", None) or n.names[0].name for n in tree if isinstance(n, ast.Import | ast.ImportFrom)]
    ours = {n for n in names if n.startswith("featmap") and not n.startswith("featmap.stats")}
    assert ours <= {"featmap.errors", "featmap.rng"}
    assert not any(n.startswith("torch") for n in names)
