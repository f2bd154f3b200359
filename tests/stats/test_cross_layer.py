from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from featmap.errors import FeatmapError
from featmap.stats import cross_layer, measures
from tests.helpers import cross_oracles, oracles

pytestmark = pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning")
SEEDS = [0, 1, 2, 3]


def names(layer: str, n: int) -> list[str]:
    return [f"{layer}:{i}" for i in range(n)]


def listed(seed: int, holes: bool = False, n: int = 7, m: int = 5, others: int = 3) -> tuple[pd.DataFrame, pd.Series]:
    """Responses of two layers (a, b) to the images of three (a, b, c), and to the null image."""
    rng = np.random.Generator(np.random.PCG64(seed))
    images, responses = [*names("a", n), *names("b", m), *names("c", others)], [*names("a", n), *names("b", m)]
    A = pd.DataFrame(rng.standard_normal((len(images), len(responses))), index=images, columns=responses)
    for f in responses:
        A.loc[f, f] += 3
    if holes:
        A.loc["a:1", "a:1"] = -2.0  # its own image does less than the null image
        A.loc["b:2", "b:2"] = -2.0
        A["a:3"] = 0.5  # constant
        A["b:4"] = 0.0
        A.loc["a:0", "b:1"] = np.nan
        A.loc["a:2"] = np.inf
    return A, pd.Series(rng.uniform(-1, 0.5, len(responses)), index=responses)


def probed(seed: int, holes: bool = False) -> tuple[pd.DataFrame, pd.Series]:
    A, null = listed(seed, holes)
    return A.loc[names("a", 7)], null


def same(found: pd.DataFrame, expected: oracles.Table) -> None:
    assert found.size == len(expected)
    for (i, j), value in expected.items():
        if value is None:
            assert np.isnan(found.loc[i, j]), (i, j)
        else:
            assert found.loc[i, j] == pytest.approx(value, abs=1e-9), (i, j)


A_NAMES, B_NAMES = names("a", 7), names("b", 5)


@pytest.mark.parametrize("dead", [[], ["a:5", "b:3", "c:0"], A_NAMES, B_NAMES])
@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("source", [listed, probed])
@pytest.mark.parametrize("seed", SEEDS)
def test_measures_agree_with_plain_loops(seed: int, source: Callable[..., tuple], holes: bool, dead: list[str]) -> None:
    A, null = source(seed, holes)
    live = [f for f in dict.fromkeys([*A.index, *A.columns]) if f not in dead]
    found = cross_layer.build_map(A, null, ("a", "b"), A_NAMES, B_NAMES, live)
    for name in ("coactivation", "relative", "selective"):
        if name in found.measures:
            same(found.measures[name], getattr(cross_oracles, name)(A, null, A_NAMES, B_NAMES, live))
    S = cross_oracles.profile(A, A_NAMES, B_NAMES, live)
    same(found.measures["profile"], S)
    assert ("coactivation" in found.measures) == (source is listed)
    best = cross_oracles.best(S, A_NAMES, B_NAMES)
    agreement = cross_layer.layer_agreement(found.first, found.second, draws=2)[0]
    assert (best is None and np.isnan(agreement)) or agreement == pytest.approx(best)


def test_cross_layer_measures_equal_those_by_hand() -> None:
    # By hand: n_b = 1; b's own image gives 5, so C = (3 - 1) / (5 - 1); a's own response is 4, so R = 3 / 4.
    A = pd.DataFrame([[4.0, 3.0], [0.0, 5.0]], index=["a:0", "b:0"], columns=["a:0", "b:0"])
    null = pd.Series([0.0, 1.0], index=A.columns)
    found = cross_layer.build_map(A, null, ("a", "b"), ["a:0"], ["b:0"], list(A.index))
    assert found.measures["coactivation"].loc["a:0", "b:0"] == 0.5
    assert found.measures["relative"].loc["a:0", "b:0"] == 0.75
    assert found.activations.loc["a:0", "b:0"] == 3


def test_a_copy_of_a_layer_has_its_own_profiles() -> None:
    A, null = listed(5, n=6, m=6)
    factors = np.array([1.0, 3.0, 0.25, 10.0, 0.01, 7.0])
    A[names("b", 6)] = A[names("a", 6)].to_numpy() * factors
    S = cross_layer.profile(A[names("a", 6)], A[names("b", 6)])
    own = measures.profile(A[names("a", 6)], null)
    np.testing.assert_allclose(S.to_numpy(float), own.to_numpy(float), atol=1e-12)
    first = cross_layer.partners(S, 1)
    assert list(first["partner"]) == names("b", 6)
    np.testing.assert_allclose(first["similarity"], 1)


@pytest.mark.parametrize("method", ["pearson", "spearman"])
@pytest.mark.parametrize("seed", SEEDS)
def test_laws_of_the_profile(seed: int, method: measures.Correlation) -> None:
    A, _ = listed(seed)
    a, b = A[A_NAMES], A[B_NAMES]
    S = cross_layer.profile(a, b, method).to_numpy(float)
    assert np.abs(S).max() <= 1
    np.testing.assert_allclose(cross_layer.profile(b, a, method).to_numpy(float), S.T, atol=1e-12)
    rng = np.random.Generator(np.random.PCG64(seed))
    rows, columns, images = rng.permutation(7), rng.permutation(5), rng.permutation(len(A))
    moved = cross_layer.profile(a.iloc[images, rows], b.iloc[images, columns], method)
    assert list(moved.index) == [A_NAMES[i] for i in rows]
    np.testing.assert_allclose(moved.to_numpy(float), S[np.ix_(rows, columns)], atol=1e-12)
    factors = rng.uniform(0.1, 9, 7), rng.uniform(0.1, 9, 5)
    scaled = cross_layer.profile(-a * factors[0], -b * factors[1], method)
    np.testing.assert_allclose(scaled.to_numpy(float), S, atol=1e-9)
    linear = cross_layer.profile(a, b, method, roots=False).to_numpy(float)
    moved = cross_layer.profile(a * factors[0], b * factors[1] + 1, method, roots=False)
    np.testing.assert_allclose(moved.to_numpy(float), linear, atol=1e-9)
    assert np.abs(linear - S).max() > 0.01


@pytest.mark.parametrize("name", ["coactivation", "selective"])
@pytest.mark.parametrize("seed", SEEDS)
def test_laws_of_the_other_measures(seed: int, name: str) -> None:
    A, null = listed(seed)
    measure, live = getattr(cross_layer, name), list(A.index)
    plain = measure(A, null, A_NAMES, B_NAMES, live)
    factors = pd.Series(np.random.Generator(np.random.PCG64(seed)).uniform(0.1, 9, 12), index=A.columns)
    scaled = measure(A * factors, null * factors, A_NAMES, B_NAMES, live)
    np.testing.assert_allclose(scaled.to_numpy(float), plain.to_numpy(float), atol=1e-9)
    rows, columns = A_NAMES[::-1], B_NAMES[::-1]
    pd.testing.assert_frame_equal(measure(A.iloc[::-1], null, rows, columns, live), plain.loc[rows, columns])


def test_everything_undefined_is_nan_in_float64() -> None:
    A, null = listed(1, holes=True)
    live = [f for f in A.index if f not in ("a:5", "b:3")]
    found = cross_layer.build_map(A, null, ("a", "b"), A_NAMES, B_NAMES, live)
    for name, frame in found.measures.items():
        assert all(str(kind) == "float64" for kind in frame.dtypes)
        assert not frame.isna().to_numpy().all()
        assert frame["b:3"].isna().all(), name
        assert not np.isinf(frame.to_numpy()).any()
    assert found.measures["profile"].loc["a:5"].isna().all()
    assert not {"a:5", "a:3"} & set(found.partners["feature"])


def test_a_profile_takes_the_same_images_of_both() -> None:
    A, _ = listed(0)
    with pytest.raises(FeatmapError, match="same images"):
        cross_layer.profile(A[A_NAMES], A[B_NAMES].iloc[::-1])


def test_few_images_are_warned_of() -> None:
    A, null = listed(0)
    with pytest.warns(measures.FewStimuliWarning, match="15 images"):
        cross_layer.build_map(A, null, ("a", "b"), A_NAMES, B_NAMES, list(A.index))


def test_partners_are_ranked_and_ties_go_by_the_order_of_the_columns() -> None:
    S = pd.DataFrame([[0.5, np.nan, 0.5, 0.9], [np.nan] * 4], index=["a:0", "a:1"], columns=names("b", 4))
    found = cross_layer.partners(S, 3)
    assert list(found.itertuples(index=False, name=None)) == [
        *(("a:0", 1, "b:3", 0.9), ("a:0", 2, "b:0", 0.5), ("a:0", 3, "b:2", 0.5)),
    ]


def test_the_floor_is_what_unrelated_layers_reach_and_copies_exceed() -> None:
    rng = np.random.Generator(np.random.PCG64(8))
    images = names("x", 400)
    a = pd.DataFrame(rng.standard_normal((400, 20)), index=images, columns=names("a", 20))
    b = pd.DataFrame(rng.standard_normal((400, 20)), index=images, columns=names("b", 20))
    found, floor, highest = cross_layer.layer_agreement(a, b)
    assert found == pytest.approx(floor, abs=0.02)
    assert floor <= highest
    copies, floor, highest = cross_layer.layer_agreement(a, (2 * a).set_axis(names("b", 20), axis=1))
    assert copies == pytest.approx(1)
    assert highest < 0.2
    assert cross_layer.layer_agreement(a, b) == cross_layer.layer_agreement(a, b)
