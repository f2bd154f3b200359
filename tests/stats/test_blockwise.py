"""S of a whole network, block by block, beside the dense formulas; and what memory that takes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from featmap.stats import blockwise, cross_layer

SIZES = (9, 1, 14, 6)
F, L, K = sum(SIZES), len(SIZES), 5
ENDS = np.cumsum([0, *SIZES])
GROUPS = [slice(int(a), int(b)) for a, b in pairwise(ENDS)]
LAYER = np.repeat(np.arange(L), SIZES)


def responses(seed: int, holes: bool = False, images: int = F) -> np.ndarray:
    rng = np.random.Generator(np.random.PCG64(seed))
    A = rng.standard_normal((images, F)) + 3 * np.eye(images, F) + rng.standard_normal((images, 1))
    A = A * rng.uniform(0.01, 100, F) + rng.uniform(-5, 5, F)
    A[:, 20] = 3 * A[:, 2]  # a copy in another layer
    A[:, 12], A[:, 13] = A[:, 11], 0.5 * A[:, 11]  # copies within a layer: ties
    if holes:
        A[:, 4] = 0.25  # constant
        A[3, 17], A[8, 26] = np.nan, np.inf
        A[5, GROUPS[2]] = np.nan  # an image to which a layer says nothing
        A[:, GROUPS[1]] = 7.0  # a layer without a profile
    return A.astype(np.float32).astype(np.float64)


def in_blocks(A: np.ndarray, size: int) -> Callable[[], Iterator[np.ndarray]]:
    clean = np.where(np.isfinite(A), A, np.nan)
    return lambda: (clean[a : a + size] for a in range(0, len(clean), size))


def kept(A: np.ndarray) -> np.ndarray:
    finite = np.isfinite(A)
    return A[np.all([finite[:, g].any(axis=1) for g in GROUPS], axis=0)]


def of_layers(A: np.ndarray) -> list[pd.DataFrame]:
    return [pd.DataFrame(A[:, g], columns=[f"{k}:{c}" for c in range(SIZES[k])]) for k, g in enumerate(GROUPS)]


def dense(A: np.ndarray) -> np.ndarray:
    """S by the formula for two layers, for every two of them; NaN where undefined and on the diagonal."""
    frames = of_layers(kept(A))
    S = np.block([[cross_layer.profile(a, b).to_numpy() for b in frames] for a in frames])
    np.fill_diagonal(S, np.nan)
    return S


@pytest.mark.parametrize("budget", [1, 8 * F * 4, 8 * F * F])
@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("holes", [False, True])
def test_blocks_find_what_the_dense_formula_says(holes: bool, size: int, budget: int) -> None:
    A = responses(size, holes)
    S = dense(A)
    found = blockwise.compare(in_blocks(A, size), GROUPS, K, chance=blockwise.ChanceSettings(draws=1), budget=budget)
    assert found.images == F - holes
    assert np.array_equal(found.defined, np.isfinite(S).any(axis=1))
    for i in range(F):
        order = sorted((-round(S[i, j], 12), j) for j in range(F) if S[i, j] > 1e-9)[:K]
        assert list(found.nearest[i]) == [j for _, j in order] + [-1] * (K - len(order)), i
        np.testing.assert_allclose(found.similarity[i, : len(order)], [-s for s, _ in order], atol=1e-10)
        assert np.isnan(found.similarity[i, len(order) :]).all()
        for k, group in enumerate(GROUPS):
            row = S[i, group]
            if k == LAYER[i] or not np.isfinite(row).any():
                assert found.partner[i, k] == -1 and np.isnan(found.best[i, k])
            else:
                assert found.best[i, k] == pytest.approx(np.nanmax(row), abs=1e-10)
                assert row[found.partner[i, k] - group.start] == pytest.approx(np.nanmax(row), abs=1e-10)
    assert found.nearest[11, 0] == 12 and found.nearest[13, 0] == 11  # ties go to the lower place


def test_the_mean_of_best_partners_is_that_of_the_dense_table() -> None:
    A = responses(3)
    found = blockwise.compare(in_blocks(A, 5), GROUPS, K, chance=blockwise.ChanceSettings(draws=8))
    frames = of_layers(A)
    for one in (0, 2, 3):
        for two in (0, 2, 3):
            if one != two:
                best, floor, _ = cross_layer.layer_agreement(frames[one], frames[two], draws=60)
                assert np.mean(found.best[GROUPS[one], two]) == pytest.approx(best, abs=1e-10)
                # permuted before or after the centring, by other permutations: the same but for the draw
                assert np.mean(found.floors[:, one, two]) == pytest.approx(floor, abs=0.05)


@pytest.mark.parametrize("budget", [1, 8 * F * 11, 8 * F * F])
def test_floors_are_those_of_permuted_profiles(budget: int) -> None:
    A, draws, seed = responses(5, holes=True), 3, 4
    found = blockwise.compare(
        in_blocks(A, 8), GROUPS, K, chance=blockwise.ChanceSettings(draws=draws, seed=seed), budget=budget
    )
    rows = np.where(np.isfinite(kept(A)), kept(A), np.nan)
    rows, W = np.sign(rows) * np.sqrt(np.abs(rows)), np.full(rows.shape, np.nan)
    for g in GROUPS:
        block = rows[:, g]
        Z = (block - block.mean(0)) / np.where(block.std(0) > 1e-9, block.std(0), np.nan)
        Z = Z - np.nanmean(Z, axis=1, keepdims=True) if np.isfinite(Z).any() else Z
        W[:, g] = Z / np.sqrt((Z**2).sum(0))
    for draw in range(draws):
        moved = np.array(
            [np.random.Generator(np.random.PCG64([seed, 1 + draw, j])).permutation(W[:, j]) for j in range(F)]
        )
        S = moved @ W  # features whose profile was permuted x features
        for one in range(L):
            for two in range(L):
                floor = found.floors[draw, one, two]
                if one == two or 1 in (one, two):
                    assert np.isnan(floor)
                else:
                    cells = S[GROUPS[two]][:, GROUPS[one]]
                    cells = cells[np.isfinite(cells).any(axis=1)][:, np.isfinite(cells).any(axis=0)]
                    assert floor == pytest.approx(cells.max(axis=0).mean(), abs=1e-9)


def test_a_smaller_sample_changes_the_floors_only() -> None:
    A = responses(6)
    some = blockwise.compare(in_blocks(A, 8), GROUPS, K, chance=blockwise.ChanceSettings(draws=2, sample=8))
    whole = blockwise.compare(in_blocks(A, 8), GROUPS, K, chance=blockwise.ChanceSettings(draws=2))
    assert np.array_equal(some.best, whole.best, equal_nan=True)
    assert not np.array_equal(some.floors, whole.floors, equal_nan=True)
    assert np.nanmax(np.abs(some.floors - whole.floors)) < 0.4


@pytest.mark.parametrize("value", [np.nan, 2.0])
def test_undefined_profiles_have_no_nearest_and_no_floor(value: float) -> None:
    found = blockwise.compare(in_blocks(np.full((4, F), value), 2), GROUPS, K)
    assert not found.defined.any() and (found.nearest == -1).all() and np.isnan(found.floors).all()


@pytest.mark.parametrize(("channels", "large"), [([5000], False), ([1500, 1499], False), ([1500, 1500], True)])
def test_from_how_many_features_on(channels: list[int], large: bool) -> None:
    assert blockwise.is_large(channels) == large


PEAK = """
import json, resource, sys
import numpy as np, zarr
from featmap.stats import blockwise
array = zarr.open_array(sys.argv[1], mode="r")
N, F = array.shape
groups = [slice(a, a + F // 4) for a in range(0, F, F // 4)]
def rows():
    for a in range(0, N, 64):
        yield array[a : a + 64].astype(np.float64)
blockwise.SLICE_CELLS = 2**18
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
found = blockwise.compare(rows, groups, 10, chance=blockwise.ChanceSettings(draws=1, sample=64), budget=8 * 2**20)
print(json.dumps([before, peak(), int(found.defined.sum())]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell the peak of a process this way")
def test_memory_stays_far_below_the_dense_matrix(tmp_path: Path) -> None:
    import zarr

    n, rng = 3072, np.random.Generator(np.random.PCG64(1))
    array: Any = zarr.create_array(tmp_path / "A", shape=(n, n), chunks=(16, n), dtype="float32", zarr_format=2)
    for a in range(0, n, 512):
        array[a : a + 512] = rng.standard_normal((512, n), dtype=np.float32)
    command = [sys.executable, "-c", PEAK, str(tmp_path / "A")]
    before, after, defined = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    dense_bytes = 8 * n * n
    assert defined == n
    assert (after - before) * (1024 if sys.platform != "darwin" else 1) < dense_bytes / 2
