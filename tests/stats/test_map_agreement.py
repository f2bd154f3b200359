from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featmap.stats import top_responses
from featmap.stats.map_agreement import (
    NEAREST,
    CeilingShare,
    compare,
    list_disagreements,
    neighbour_overlaps,
    row_ceilings,
    row_correlations,
    share_of_ceiling,
)
from featmap.stats.measures import profile_correlations
from featmap.stats.reliability import bootstrap_counts
from featmap.stats.top_responses import HalfMaps, halve, halve_blocks, photograph_halves


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


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_equal_differences_are_listed_in_the_order_of_the_names(sign: float) -> None:
    names = list("abcd")
    one, two = np.eye(4), np.full((4, 4), sign * 0.5)
    found = list_disagreements(names, one, two, 2)
    assert list(zip(found["feature"], found["other"], strict=True)) == [("a", "b"), ("a", "c")]


def test_intervals_hold_the_value_and_are_undefined_with_it() -> None:
    one, two = similarity(8, 30), similarity(9, 30)
    mixed = 0.7 * one + 0.3 * two
    found = compare(one, mixed).features
    assert ((found["low"] <= found["agreement"]) & (found["agreement"] <= found["high"])).all()
    mixed.iloc[4] = mixed.iloc[:, 4] = np.nan
    found = compare(one, mixed).features
    assert found.iloc[4][["agreement", "low", "high"]].isna().all() and found["pairs"].iloc[4] == 0
    assert found.drop(index="f:4").notna().all().all()


def in_groups(seed: int, N: int = 120, D: int = 16, noise: float = 0.5) -> np.ndarray:
    """Responses to N photographs of D features in four groups."""
    rng = np.random.default_rng(seed)
    factors = rng.exponential(size=(N, 4))
    return factors[:, np.arange(D) % 4] * rng.uniform(1, 3, D) + noise * rng.exponential(size=(N, D))


def correlate_pairs(one: np.ndarray, two: np.ndarray, times: np.ndarray | None = None) -> float:
    """Correlate over pairs of different features, each as often as both are drawn."""
    D = len(one)
    times = np.ones(D, dtype=int) if times is None else times
    pairs = [(i, j) for i in range(D) for j in range(i) for _ in range(int(times[i] * times[j]))]
    return float(np.corrcoef([one[p] for p in pairs], [two[p] for p in pairs])[0, 1])


def count_common(one: np.ndarray, two: np.ndarray, j: int) -> float:
    """Count the features that are among the nearest of j in both tables."""
    others = [k for k in range(len(one)) if k != j]
    near = [set(sorted(others, key=lambda k: -table[j, k])[:NEAREST]) for table in (one, two)]
    return len(near[0] & near[1]) / NEAREST


def slowly(S: np.ndarray, photographs: np.ndarray, draws: int) -> dict[str, list[float]]:
    """Compute agreement, ceiling, share and overlaps: the value, then that of each bootstrap draw."""
    parts = photograph_halves(len(photographs))
    tables = []
    for half, other in ((0, 1), (1, 0)):
        chosen = []
        for j in range(photographs.shape[1]):
            chosen.append(max(parts[other], key=lambda k: photographs[k, j]))
        assert not set(chosen) & set(parts[half])
        tables.append((profile_correlations(photographs[parts[half]]), profile_correlations(photographs[chosen])))
    found: dict[str, list[float]] = {name: [] for name in ("agreement", "ceiling", "share", "overlap", "highest")}
    D = len(S)
    for times in [np.ones(D), *bootstrap_counts(D, draws)]:
        agreement = np.mean([correlate_pairs(S, half, times) for half, _ in tables])
        ceiling = np.mean([correlate_pairs(best, half, times) for half, best in tables])
        drawn = [j for j in range(D) for _ in range(int(times[j]))]
        for name, value in (("agreement", agreement), ("ceiling", ceiling), ("share", agreement / ceiling)):
            found[name].append(float(value))
        found["overlap"].append(float(np.mean([count_common(S, half, j) for half, _ in tables for j in drawn])))
        found["highest"].append(float(np.mean([count_common(best, half, j) for half, best in tables for j in drawn])))
    return found


def test_ceiling_and_share_are_those_of_plain_loops() -> None:
    photographs, S = in_groups(1), profile_correlations(in_groups(2, 20, noise=1.0))
    found, expected = share_of_ceiling([S], halve(photographs), 40), slowly(S, photographs, 40)
    names = {"agreement": found.agreement, "ceiling": found.ceiling, "share": found.share}
    names |= {"overlap": found.overlap, "highest": found.overlap_ceiling}
    for name, interval in names.items():
        low, high = np.percentile(expected[name][1:], [2.5, 97.5])
        assert (interval.value, interval.low, interval.high) == pytest.approx((expected[name][0], low, high)), name
    chance = NEAREST / 15
    overlaps = np.array([expected["overlap"], expected["highest"]]) - chance
    assert found.chance == pytest.approx(chance)
    assert found.overlap_share.value == pytest.approx(overlaps[0, 0] / overlaps[1, 0])
    one, two = halve(photographs).halves
    assert found.halves.value == pytest.approx(correlate_pairs(one, two))
    assert found.reason == "" and found.features == 16
    assert found.share.low < found.share.value < found.share.high


def placed(rows: np.ndarray) -> np.ndarray:
    """Put the same rows into either half, in two orders."""
    one, two = photograph_halves(2 * len(rows))
    photographs = np.empty((2 * len(rows), rows.shape[1]))
    photographs[one], photographs[two] = rows, rows[::-1]
    return photographs


def test_best_photographs_that_give_the_photographs_own_map_make_a_ceiling_of_one() -> None:
    """Each half is one best photograph of each feature, and nothing else."""
    rows = in_groups(3, 12, 12) + np.diag(np.full(12, 20.0))
    S = profile_correlations(in_groups(4, 40, 12))
    found = share_of_ceiling([S], halve(placed(rows)))
    for interval in (found.ceiling, found.halves, found.overlap_ceiling):
        assert (interval.value, interval.low, interval.high) == pytest.approx((1, 1, 1))
    share, agreement = found.share, found.agreement
    assert (share.value, share.low, share.high) == pytest.approx((agreement.value, agreement.low, agreement.high))
    reached = share_of_ceiling([profile_correlations(rows)], halve(placed(rows)))
    assert (reached.share.value, reached.share.low, reached.share.high) == pytest.approx((1, 1, 1))
    assert reached.overlap_share.value == pytest.approx(1)


def test_a_ceiling_in_closed_form() -> None:
    """S over best photographs is a mixture of S over the half with a table that is orthogonal to it over pairs."""
    rng = np.random.default_rng(6)
    upper = np.triu_indices(14, 1)
    x, y, z = np.linalg.qr(np.column_stack([np.ones(91), rng.normal(size=(91, 3))]))[0].T[1:]

    def table(values: np.ndarray) -> np.ndarray:
        full = np.eye(14) / 2
        full[upper] = values
        return full + full.T

    half, best, S = table(x), table(0.6 * x + 0.8 * y), table(0.3 * x + np.sqrt(0.91) * z)
    found = share_of_ceiling([S], HalfMaps(100, (half, half), (best, best)))
    values = (found.agreement.value, found.ceiling.value, found.share.value, found.halves.value)
    assert values == pytest.approx((0.3, 0.6, 0.5, 1.0))
    assert found.share.low < 0.5 < found.share.high


def test_random_maps_reach_no_share_and_random_photographs_have_no_ceiling() -> None:
    rng = np.random.default_rng(7)
    unrelated = share_of_ceiling([profile_correlations(rng.normal(size=(40, 16)))], halve(in_groups(8)))
    assert unrelated.share.low < 0 < unrelated.share.high and abs(unrelated.share.value) < 0.25
    assert unrelated.overlap_share.low < 0 < unrelated.overlap_share.high
    structureless = share_of_ceiling([profile_correlations(in_groups(9))], halve(rng.normal(size=(200, 16))))
    assert np.isnan(structureless.share.value) and "reaches down to 0" in structureless.reason
    assert np.isnan(structureless.overlap_share.value) and "reaches down to chance" in structureless.overlap_reason
    assert unrelated.reason == unrelated.overlap_reason == ""


def undefined(found: CeilingShare) -> bool:
    return bool(np.isnan([found.share.value, found.share.low, found.overlap_share.value]).all())


def test_too_few_photographs_or_features_have_no_share_and_are_named() -> None:
    S = profile_correlations(in_groups(2))
    found = share_of_ceiling([S], halve(in_groups(1, 7)))
    assert undefined(found) and np.isnan(found.ceiling.value) and "7 photographs" in found.reason
    found = share_of_ceiling([S[:3, :3]], halve(in_groups(1)[:, :3]))
    assert undefined(found) and "3 features" in found.reason
    responses = in_groups(1)
    responses[:, 12:] = 1.0  # features that respond to all photographs alike have no S and no best photograph
    found = share_of_ceiling([S], halve(responses))
    assert found.features == 12 and np.isfinite([found.share.value, found.overlap_share.value]).all()
    for with_constant, without in zip(halve(responses).best, halve(responses[:, :12]).best, strict=True):
        np.testing.assert_allclose(with_constant[:12, :12], without, atol=1e-12)
    assert undefined(share_of_ceiling([S[:2, :2]], halve(in_groups(1)[:, :2])))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.integers(8, 40), st.integers(1, 9))
def test_blocks_give_the_maps_of_responses_in_memory(seed: int, N: int, size: int) -> None:
    responses = in_groups(seed, N, 7).astype(np.float32).astype(np.float64)
    responses[:, 3] = np.maximum(responses[:, 3] - 1, 0)
    compared = [0, 3, 6, 2]

    def blocks() -> object:
        return (responses[k : k + size] for k in range(0, N, size))

    streamed, dense = halve_blocks(blocks, responses.shape, range(7)), halve(responses)  # type: ignore[arg-type]
    for one, two in zip((*streamed.halves, *streamed.best), (*dense.halves, *dense.best), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-9)
    part = halve_blocks(blocks, responses.shape, compared)  # type: ignore[arg-type]
    np.testing.assert_allclose(part.halves[1], dense.halves[1][np.ix_(compared, compared)], atol=1e-9)
    assert part.best[0].shape == (4, 4) and part.photographs == N


def test_halves_share_no_photograph_and_best_ones_come_from_the_other() -> None:
    seen: list[np.ndarray] = []

    def similarity(values: np.ndarray) -> np.ndarray:
        seen.append(values[:, 0])
        return profile_correlations(values)

    responses = in_groups(1, 31)
    responses[:, 0] = np.arange(31)  # names the photograph
    halve(responses, similarity)
    one, best_of_two, two, best_of_one = (set(values) for values in seen)
    assert one | two == set(range(31)) and not one & two and len(one) == 16
    assert best_of_two <= two and best_of_one <= one and len(seen[1]) == 16


def test_each_feature_has_a_ceiling_of_its_own() -> None:
    photographs, names = in_groups(1), [f"f:{k}" for k in range(16)]
    S, P = (pd.DataFrame(profile_correlations(x), names, names) for x in (in_groups(2, 20), photographs))
    halves = halve(photographs)
    found = compare(S, P, 20, halves)
    table = found.features
    for j in (0, 5):
        rows = [[np.delete(t[j], j) for t in tables] for tables in (halves.halves, halves.best)]
        ceiling = np.mean([np.corrcoef(half, best)[0, 1] for half, best in zip(*rows, strict=True)])
        own = np.mean([np.corrcoef(half, np.delete(S.iloc[j].to_numpy(), j))[0, 1] for half in rows[0]])
        assert table["ceiling"].iloc[j] == pytest.approx(ceiling)
        assert table["share"].iloc[j] == pytest.approx(own / ceiling)
        shared = np.mean([count_common(best, half, j) for half, best in zip(halves.halves, halves.best, strict=True)])
        assert table["overlap_ceiling"].iloc[j] == pytest.approx(shared)
    assert found.attained == share_of_ceiling([S.to_numpy()], halves, 20)
    assert found.attained is not None and table["overlap"].mean() == pytest.approx(found.attained.overlap.value)
    plain = compare(S, P, 20)
    assert plain.attained is None and "ceiling" not in plain.features
    pd.testing.assert_frame_equal(table[list(plain.features)], plain.features)


def test_a_feature_whose_ceiling_chance_could_give_has_no_share() -> None:
    """Of 402 features, rows of S correlate by chance with a standard error of 1 / 20: the floor is 0.098."""
    rng, D = np.random.default_rng(3), 402
    axes = np.linalg.qr(np.column_stack([np.ones(D), rng.normal(size=(D, 2))]))[0]
    common, noise = axes[:, 1], axes[:, 2]  # unrelated, both with a mean of 0
    half, r = np.outer(common, common), np.linspace(0.02, 0.2, D)
    best = r * common[:, None] + np.sqrt(1 - r**2) * noise[:, None]
    found = row_ceilings(half, HalfMaps(100, (half, half), (best, best)))
    floor = 1.96 / 20
    ceiling, share = found["ceiling"], found["share"]
    assert (ceiling > floor).any() and (ceiling < floor).any()
    np.testing.assert_array_equal(np.isfinite(share), ceiling > floor)
    np.testing.assert_allclose(share[ceiling > floor], 1 / ceiling[ceiling > floor], rtol=1e-9)
    np.testing.assert_allclose(np.abs(ceiling), r, atol=0.02)


def test_overlap_is_that_of_nearest_features() -> None:
    S = similarity(5, 12).to_numpy()
    np.testing.assert_array_equal(neighbour_overlaps(S, S), 1.0)
    other = similarity(6, 12).to_numpy()
    np.testing.assert_allclose(neighbour_overlaps(S, other), [count_common(S, other, j) for j in range(12)])
    np.testing.assert_array_equal(neighbour_overlaps(S, other), neighbour_overlaps(other, S))
    assert np.isnan(neighbour_overlaps(S[:6, :6], S[:6, :6])).all()  # all five others would be among the nearest five


def test_the_fewest_photographs_make_halves() -> None:
    assert np.isfinite(halve(in_groups(1, top_responses.LEAST_PHOTOGRAPHS)).halves[0]).all()
