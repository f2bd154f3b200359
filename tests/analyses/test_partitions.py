"""A given partition against clusters and similarities: scikit-learn and plain loops as oracles, known answers."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from analyses.formulas import partitions

RNG = np.random.Generator(np.random.PCG64(5))


@pytest.mark.parametrize("seed", range(5))
def test_rand_index_is_scikit_learns(seed: int) -> None:
    rng = np.random.Generator(np.random.PCG64(seed))
    one, two = rng.integers(0, 3, 20), rng.choice(["a", "b", "c", "d"], 20)
    assert partitions.rand_index(one, two) == pytest.approx([adjusted_rand_score(one, two)], abs=1e-12)


def slow_rand(one: np.ndarray, two: np.ndarray, w: np.ndarray) -> float:
    """The same by a loop over pairs of different things."""
    both = in_a = in_b = total = 0.0
    for j, k in combinations(range(len(one)), 2):
        count = w[j] * w[k]
        a, b = one[j] == one[k], two[j] == two[k]
        both, in_a, in_b, total = both + count * (a and b), in_a + count * a, in_b + count * b, total + count
    chance = in_a * in_b / total
    return (both - chance) / ((in_a + in_b) / 2 - chance)


def test_weights_count_pairs_and_never_a_copy_with_itself() -> None:
    one, two = RNG.integers(0, 3, 12), RNG.integers(0, 2, 12)
    weights = RNG.integers(0, 4, (6, 12)).astype(float)
    expected = [slow_rand(one, two, w) for w in weights]
    assert partitions.rand_index(one, two, weights) == pytest.approx(expected, abs=1e-12)


def test_partitions_that_leave_no_room_are_undefined() -> None:
    assert np.isnan(partitions.rand_index([0, 0, 0], [1, 1, 1])[0])
    assert np.isnan(partitions.rand_index([0, 1, 2], [0, 1, 2])[0])
    assert partitions.rand_index([0, 0, 0, 0], [0, 0, 1, 1])[0] == pytest.approx(0)


def test_equal_partitions_agree_under_other_names() -> None:
    labels = np.repeat([0, 1, 2], 6)
    found = partitions.rand_index_test(labels, [f"branch{k}" for k in labels], permutations=199, draws=50)
    assert (found.statistic.value, found.statistic.low, found.statistic.high) == (1, 1, 1)
    assert found.p == 1 / 200
    assert abs(found.chance) < 0.05


def test_p_of_unrelated_partitions_is_uniform() -> None:
    rng = np.random.Generator(np.random.PCG64(1))
    p = [partitions.rand_index_test(*rng.integers(0, 3, (2, 40)), permutations=99, draws=2).p for _ in range(100)]
    assert 0.4 < np.mean(p) < 0.6 and np.mean(np.array(p) <= 0.1) < 0.2


def block(size: int = 8, inside: float = 0.7, outside: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    groups = np.repeat(["x", "y", "z"], size)
    S = np.where(groups[:, None] == groups, inside, outside)
    np.fill_diagonal(S, 1)
    return S, groups


def test_contrast_of_blocks_is_their_difference() -> None:
    S, groups = block()
    found = partitions.contrast_test(S, groups, permutations=199, draws=50)
    assert [found.statistic.value, found.statistic.low, found.statistic.high] == pytest.approx([0.6] * 3)
    assert found.p == 1 / 200


def test_contrast_leaves_out_what_is_undefined_and_counts_weights() -> None:
    S, groups = block(3)
    S[0, 1] = S[1, 0] = np.nan
    S[0, 2] = S[2, 0] = 0.4
    weights = np.array([[2.0, 1, 1, 0, 1, 1, 1, 1, 1]])
    inside, outside = [], []
    for j, k in combinations(range(9), 2):
        if np.isfinite(S[j, k]):
            (inside if groups[j] == groups[k] else outside).extend([S[j, k]] * int(weights[0, j] * weights[0, k]))
    assert partitions.contrast(S, groups, weights) == pytest.approx([np.mean(inside) - np.mean(outside)])


def test_unrelated_similarities_show_no_contrast() -> None:
    noise = RNG.normal(size=(30, 30))
    found = partitions.contrast_test(noise + noise.T, np.repeat([0, 1], 15), permutations=199, draws=100)
    assert found.statistic.low < 0 < found.statistic.high and found.p > 0.01


def test_nearest_neighbours_in_the_own_group_and_chance() -> None:
    S, groups = block(4)
    S[0, 4] = S[4, 0] = 0.9  # each other's nearest, of two groups
    S[8] = S[:, 8] = np.nan
    hits, chance = partitions.nearest_in_group(S, groups)
    assert hits[:8].tolist() == [0, 1, 1, 1, 0, 1, 1, 1]
    assert np.isnan(hits[8]) and chance == pytest.approx(np.full(12, 3 / 11))


def test_means_between_groups_leave_the_diagonal_out() -> None:
    S, groups = block(2)
    found = partitions.mean_between_groups(S, groups)
    assert found == pytest.approx(np.full((3, 3), 0.1) + 0.6 * np.eye(3))
    assert np.isnan(partitions.mean_between_groups(np.eye(2), ["a", "b"])[0, 0])
