from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from featmap.stats import frames, measures
from featmap.stats.correlation import signed_roots
from featmap.stats.frames import count_undefined
from featmap.stats.measures import MEASURES, Measure, coactivation, linear_profile, profile, raw, relative, selective
from tests.helpers import oracles
from tests.helpers.frames import to_masked

pytestmark = pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning")
laws = settings(deadline=None, derandomize=True, max_examples=25)
PROFILES = ("profile", "linear_profile")


def labels(n: int, layer: str = "inception4a") -> list[str]:
    return [f"{layer}:{i}" for i in range(n)]


def frame(values: object) -> pd.DataFrame:
    array = np.asarray(values, dtype=float)
    return pd.DataFrame(array, index=labels(array.shape[0]), columns=labels(array.shape[1]))


def zeros(A: pd.DataFrame) -> pd.Series:
    return pd.Series(0.0, index=A.columns)


def gaussian(n: int, seed: int = 0) -> pd.DataFrame:
    return frame(np.random.Generator(np.random.PCG64(seed)).standard_normal((n, n)))


@st.composite
def responses(draw: st.DrawFn, finite: bool = True) -> tuple[pd.DataFrame, pd.Series, list[str]]:
    """A, null and live; rows and columns overlap only in part. Quarters are exact, and give ties and constants."""
    rows, columns = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    entry = st.integers(-12, 12).map(lambda q: q / 4)
    if not finite:
        entry |= st.sampled_from([np.nan, np.inf, -np.inf])
    values = draw(st.lists(entry, min_size=rows * columns, max_size=rows * columns))
    shift = draw(st.integers(0, 2))
    A = pd.DataFrame(
        np.reshape(values, (rows, columns)), index=labels(9)[shift : shift + rows], columns=labels(columns)
    )
    quarters = st.integers(-12, 12).map(lambda q: q / 4)
    null = pd.Series(draw(st.lists(quarters, min_size=columns, max_size=columns)), index=A.columns)
    known = sorted({*A.index, *A.columns})
    live = [*draw(st.lists(st.sampled_from(known), unique=True)), A.index[0]]
    return A, null, live


@st.composite
def dense(draw: st.DrawFn) -> tuple[pd.DataFrame, pd.Series]:
    """Square Gaussian A without ties and a null below it: everything is defined."""
    n, seed = draw(st.integers(3, 9)), draw(st.integers(0, 2**32 - 1))
    rng = np.random.Generator(np.random.PCG64(seed))
    A = frame(rng.standard_normal((n, n)) + 4 * np.eye(n))
    return A, pd.Series(rng.uniform(-1, 0.5, n) - 1.0, index=A.columns)


def same(found: pd.DataFrame, expected: oracles.Table) -> None:
    assert found.size == len(expected)
    for (i, j), value in expected.items():
        if value is None:
            assert np.isnan(found.loc[i, j]), (i, j)
        else:
            assert found.loc[i, j] == pytest.approx(value, abs=1e-9), (i, j)


# --- the formulas ---------------------------------------------------------------------------------


def test_the_registry_holds_the_six_measures() -> None:
    names = ["raw", "coactivation", "relative", "selective", "profile", "linear_profile"]
    assert list(MEASURES) == names == list(oracles.MEASURES)


@pytest.mark.parametrize("name", MEASURES)
@given(data=responses(finite=False))
@laws
def test_measures_agree_with_plain_loops(name: str, data: tuple[pd.DataFrame, pd.Series, list[str]]) -> None:
    A, null, live = data
    if name in PROFILES:
        columns = [j for j in A.columns if j in live]
        some = [i for i in A.index if i in live and np.isfinite(A.loc[i, columns].astype(float)).any()]
        assume(bool(some) or not columns)
    same(MEASURES[name](A, null, live=live), oracles.MEASURES[name](A, null, live))


@given(data=responses())
@settings(laws, max_examples=10)
def test_live_left_out_means_every_label(data: tuple[pd.DataFrame, pd.Series, list[str]]) -> None:
    A, null, _ = data
    for function in MEASURES.values():
        pd.testing.assert_frame_equal(function(A, null), function(A, null, [*A.index, *A.columns]))


@given(data=responses())
@laws
def test_spearman_profile_agrees_with_scipy(data: tuple[pd.DataFrame, pd.Series, list[str]]) -> None:
    A, null, _ = data
    same(profile(A, null, method="spearman"), oracles.profile(A, null, method="spearman"))
    same(linear_profile(A, null, method="spearman"), oracles.linear_profile(A, null, method="spearman"))


def test_measures_equal_those_by_hand() -> None:
    # By hand: null 1 and 2; A[1, 1] - n = 8, A[0, 0] - n = 4.
    A, null = frame([[5.0, 4.0], [3.0, 10.0]]), pd.Series([1.0, 2.0], index=labels(2))
    for function, expected in (
        (coactivation, [[1.0, 0.25], [0.5, 1.0]]),
        (relative, [[1.0, 0.8], [0.3, 1.0]]),
        (selective, [[1.0, -1.0], [-1.0, 1.0]]),
        (raw, A.to_numpy()),
    ):
        assert to_masked(function(A, null)).data == pytest.approx(np.array(expected), abs=1e-12)


@pytest.mark.parametrize("n", [3, 8, 40])
def test_profile_has_a_closed_form_where_features_know_one_image(n: int) -> None:
    # A = identity: the doubly centred identity is 1 - 1/n on its diagonal and -1/n off it, so S = -1 / (n - 1).
    S = to_masked(profile(frame(np.eye(n)), zeros(frame(np.eye(n)))))
    assert np.allclose(S[~np.eye(n, dtype=bool)], -1 / (n - 1), rtol=0, atol=1e-12)


def test_profile_equals_that_of_pandas() -> None:
    A = gaussian(40) ** 3
    Z = A.abs() ** 0.5 * np.sign(A)
    for measure, values in ((profile, Z), (linear_profile, A)):
        z = (values - values.mean()) / values.std()
        expected = z.sub(z.mean(axis=1), axis=0).corr()
        np.testing.assert_allclose(to_masked(measure(A, zeros(A))), expected, rtol=0, atol=1e-12)
    assert np.abs(to_masked(profile(A, zeros(A))) - to_masked(linear_profile(A, zeros(A)))).max() > 0.1


def test_signed_roots_keep_signs_zeros_and_holes() -> None:
    values = np.array([-4.0, -0.25, 0.0, 9.0, np.nan, np.inf, -np.inf, 1e-39])
    np.testing.assert_array_equal(signed_roots(values), [-2, -0.5, 0, 3, np.nan, np.inf, -np.inf, 0])
    A = gaussian(40)
    A["inception4a:7"] *= 1e-40  # subnormal in float32: all digits may be rounding
    for measure in (profile, linear_profile):
        undefined = measure(A, zeros(A)).isna()
        assert undefined["inception4a:7"].all() and undefined.to_numpy().sum() == 2 * 40 - 1


# --- laws -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", [profile, linear_profile])
@pytest.mark.parametrize("method", ["pearson", "spearman"])
@given(data=responses(finite=False))
@laws
def test_profile_is_symmetric_and_in_range(
    method: str, measure: Any, data: tuple[pd.DataFrame, pd.Series, list[str]]
) -> None:
    A, null, _ = data
    assume(np.isfinite(A.to_numpy()).any())
    S = to_masked(measure(A, null, method=method))
    assert (S.data == S.data.T).all() and (S.mask == S.mask.T).all()
    assert (np.abs(S.data) <= 1.0).all()
    assert (S.diagonal().compressed() == 1.0).all()


@given(data=dense())
@laws
def test_distance_from_profile_satisfies_the_triangle_inequality(data: tuple[pd.DataFrame, pd.Series]) -> None:
    d = np.sqrt(2 - 2 * to_masked(profile(*data)).data)
    assert (d[:, None, :] <= d[:, :, None] + d[None, :, :] + 1e-7).all()


@pytest.mark.parametrize("name", MEASURES)
@given(data=dense(), seed=st.integers(0, 99))
@laws
def test_measures_follow_a_permutation(name: str, data: tuple[pd.DataFrame, pd.Series], seed: int) -> None:
    A, null = data
    order = list(np.random.Generator(np.random.PCG64(seed)).permutation(A.columns))
    found = MEASURES[name](A.loc[order, order], null[order[::-1]]).loc[A.index, A.columns]
    assert np.allclose(to_masked(found), to_masked(MEASURES[name](A, null)), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", PROFILES)
@given(data=dense(), seed=st.integers(0, 99))
@laws
def test_order_of_images_does_not_matter(name: str, data: tuple[pd.DataFrame, pd.Series], seed: int) -> None:
    A, null = data
    images = A.sample(frac=1, random_state=seed)
    assert np.allclose(to_masked(MEASURES[name](images, null)), to_masked(MEASURES[name](A, null)), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", PROFILES)
@given(data=dense())
@laws
def test_sign_of_all_responses_does_not_matter(name: str, data: tuple[pd.DataFrame, pd.Series]) -> None:
    A, null = data
    assert np.allclose(to_masked(MEASURES[name](-A, null)), to_masked(MEASURES[name](A, null)), rtol=0, atol=1e-12)


@given(data=dense(), shift=st.floats(0.5, 50))
@laws
def test_an_added_constant_matters_to_roots_only(data: tuple[pd.DataFrame, pd.Series], shift: float) -> None:
    A, null = data
    moved = A.copy()
    moved.iloc[:, 0] += shift
    differences = [np.abs(to_masked(m(moved, null)) - to_masked(m(A, null))).max() for m in (linear_profile, profile)]
    assert differences[0] < 1e-9 and differences[1] > 1e-6


@pytest.mark.parametrize("name", ["coactivation", "selective", *PROFILES])
@given(data=dense(), powers=st.lists(st.floats(-12, 12), min_size=9, max_size=9))
@laws
def test_scale_of_a_feature_does_not_matter(
    name: str, data: tuple[pd.DataFrame, pd.Series], powers: list[float]
) -> None:
    A, null = data
    scale = 10.0 ** np.array(powers[: len(null)])
    found = MEASURES[name](A * scale, null * scale)
    assert count_undefined(found) == 0
    assert np.allclose(to_masked(found), to_masked(MEASURES[name](A, null)), rtol=0, atol=1e-8)


@given(data=dense(), scale=st.floats(1e-6, 1e6))
@laws
def test_scale_of_an_image_does_not_matter_to_relative(data: tuple[pd.DataFrame, pd.Series], scale: float) -> None:
    A, null = data
    A = A.abs()
    scaled = A.mul(np.linspace(1.0, scale, len(A)), axis=0)
    one, two = to_masked(relative(A, null)), to_masked(relative(scaled, null))
    both = ~(one.mask | two.mask)
    assert np.allclose(one[both], two[both], rtol=1e-9)


@pytest.mark.parametrize(("measure", "responses"), [(profile, lambda x: x * np.abs(x)), (linear_profile, lambda x: x)])
@given(data=dense(), seed=st.integers(0, 99), strength=st.floats(0, 100))
@laws
def test_what_is_common_to_an_image_is_no_similarity(
    measure: Measure, responses: Any, data: tuple[pd.DataFrame, pd.Series], seed: int, strength: float
) -> None:
    # Columns of standard deviation 1 that keep it when the common part, made orthogonal to them, is added alike: to
    # responses, or to the roots of responses.
    A, null = data
    Z = to_masked(selective(A, null)).data
    rng = np.random.Generator(np.random.PCG64(seed))
    wide = np.vstack([Z, Z])
    common = strength * np.concatenate([noise := rng.standard_normal(len(Z)), -noise])
    common -= np.linalg.pinv(wide.T) @ (wide.T @ common)
    index = labels(len(wide), "image")
    X = pd.DataFrame(wide, index=index, columns=A.columns)
    plain, with_common = (to_masked(measure(responses(x), null)) for x in (X, X.add(common, axis=0)))
    assert np.allclose(plain.data, with_common.data, rtol=0, atol=1e-7)


def test_planted_copies_have_profile_one() -> None:
    A = gaussian(40)
    A["inception4a:1"] = A["inception4a:0"]
    A["inception4a:2"] = 250.0 * A["inception4a:0"]
    A["inception4a:3"] = A["inception4a:0"] + 3.0
    for measure, copies in ((profile, 3), (linear_profile, 4)):
        S = measure(A, zeros(A))
        assert np.allclose(to_masked(S.iloc[:copies, :copies]).data, 1.0, rtol=0, atol=1e-12)
        assert (to_masked(S.iloc[:copies, 4:]).data < 0.9).all()


def test_profile_uses_live_rows_and_columns_only() -> None:
    A = gaussian(40)
    live = [label for i, label in enumerate(A.columns) if i % 3]
    before = profile(A, zeros(A), live)
    A.loc[[x for x in A.index if x not in live]] = 1e9
    A.loc[:, [x for x in A.columns if x not in live]] = np.nan
    pd.testing.assert_frame_equal(profile(A, zeros(A), live), before)
    assert list(before.columns) == list(before.index) == live


def test_correlations_are_symmetrised_in_panels_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(9, 23))
    whole = measures.profile_correlations(values)
    Z, _ = measures.unit_profiles(values)
    product = np.clip(Z.T @ Z, -1.0, 1.0)
    expected = (product + product.T) / 2  # all at once
    np.fill_diagonal(expected, 1.0)
    assert np.array_equal(whole, expected)
    monkeypatch.setattr(frames, "PANEL", 5)
    assert np.array_equal(measures.profile_correlations(values), expected)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.booleans(), min_size=1, max_size=30).map(np.array),
    st.integers(0, 2**32 - 1),
)
def test_undefined_columns_are_spread_among_the_others(defined: np.ndarray, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(9, len(defined)))
    values[:, ~defined] = 3.0  # constant
    S = measures.profile_correlations(values)
    expected = np.full((len(defined), len(defined)), np.nan)
    Z, found = measures.unit_profiles(values)
    product = np.clip(Z.T @ Z, -1.0, 1.0)
    np.fill_diagonal(product, np.where(np.isfinite(product.diagonal()), 1.0, np.nan))
    expected[np.ix_(defined, defined)] = (product + product.T) / 2
    assert np.array_equal(found, defined) and np.array_equal(S, expected, equal_nan=True)
