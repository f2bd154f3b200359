"""A batch is padded to the least number of rows that gives the bits of a full one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from featmap.network.hooks import ElementwiseCalls, has_bits_of
from featmap.network.loading import load
from featmap.network.model import Network
from featmap.optimize import comparison
from featmap.optimize.batch import Batches, list_chosen_rows
from featmap.optimize.comparison import BatchKind, choose_rows, find_least_rows
from featmap.optimize.objective import Objective
from featmap.optimize.recipe import RECIPES, Octave, Recipe
from featmap.optimize.responses import Probe
from tests.helpers import networks
from tests.optimize.test_descent import maximised_images

pytestmark = pytest.mark.usefixtures("threads")
CPU = torch.device("cpu")
UNITS = ["mixed:0", "mixed:3:1", "mixed:1 + 2 * mixed:2", "mixed:4", "mixed:5", "mixed:6:1:1", "mixed:7"]


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """The candidates of each check; a check is made whatever it saves."""
    found, real = [], comparison.find_least_rows

    def noted(compute: Any, candidates: Any, rows: int, device: torch.device) -> int:
        found.append((*candidates, real(compute, candidates, rows, device)))
        return found[-1][-1]

    monkeypatch.setattr(comparison, "find_least_rows", noted)
    monkeypatch.setattr(comparison, "CHECK_SHARE", float("inf"))
    return found


def full_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "find_least_rows", lambda _, __, rows, ___: rows)


def short(recipe: Recipe) -> Recipe:
    """A recipe in few steps of small images, with the same octaves."""
    recipe = recipe.resolved(20, size=20, steps=2 * len(recipe.octaves))
    return replace(recipe, rows=8, rescue=0.5 if recipe.rescue else 0.0)


QUICK = ("article", "interact", "pixels", "fast")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in RECIPES])
def test_few_units_have_the_bits_of_a_full_batch(
    name: str, tried: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, network = short(RECIPES[name]), load(networks.small_inception())
    found = {n: maximised_images(network, UNITS[:n], recipe) for n in (1, 2, 3, 7)}
    full_batches(monkeypatch)
    other = load(networks.small_inception())
    for n in found:
        full = maximised_images(other, UNITS[:n], recipe)
        assert all(np.array_equal(found[n][k], full[k], equal_nan=True) for k in full), n
    records = list_chosen_rows(network, recipe, ["mixed"])
    assert list_chosen_rows(network, recipe, ["norm"]) == [], "choices of another run"
    assert {r["pass"] for r in records} == {"descent", "probe"}
    assert any(r["rows"] < recipe.rows for r in records), "or nothing was tried"


@pytest.mark.parametrize("changes", [{"precision": "bfloat16"}, {"gradients": "together"}, {"metric": "l2"}])
def test_other_settings_have_the_bits_too(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(short(RECIPES["pixels"]), jitter=2, **changes)
    monkeypatch.setattr(comparison, "CHECK_SHARE", float("inf"))
    units = ["norm:1 + mixed:5", *UNITS[:3]]
    found = maximised_images(load(networks.small_inception()), units, recipe)
    full_batches(monkeypatch)
    full = maximised_images(load(networks.small_inception()), units, recipe)
    assert all(np.array_equal(found[k], full[k], equal_nan=True) for k in full)


def test_rescued_units_have_the_bits_too(tried: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = RECIPES["fast"].resolved(16, size=16, steps=8, rows=8)
    units = [f"relu:{networks.ASLEEP}", f"relu:{networks.LIVE}"]
    found = maximised_images(load(networks.dead_network()), units, recipe)
    assert tried and tried[0][-1] == 2
    full_batches(monkeypatch)
    full = maximised_images(load(networks.dead_network()), units, recipe)
    assert all(np.array_equal(found[k], full[k], equal_nan=True) for k in full)


class Counting(nn.Module):
    """A convolution whose last bits depend on the number of images, from `least` images on not any more."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.conv, self.least = nn.Conv2d(3, 4, 3), least

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * (1.0 if len(x) >= self.least else 1.0 + 2**-23)


@pytest.mark.parametrize(("least", "chosen"), [(1, 2), (2, 2), (3, 4), (5, 8), (9, 16), (16, 16)])
def test_the_least_number_with_the_bits_is_chosen(least: int, chosen: int, tried: list[tuple[int, ...]]) -> None:
    network, recipe = load(Counting(least)), short(RECIPES["pixels"])
    recipe = replace(recipe, rows=16)
    assert Batches(network, CPU).rows_needed([Objective.parse("conv:0")], recipe) == 2  # the layer before the product
    network = load(nn.Sequential(Counting(least)))
    assert Batches(network, CPU).rows_needed([Objective.parse("0:0")], recipe) == chosen


def test_a_network_that_takes_full_batches_only_gets_them(tried: list[tuple[int, ...]]) -> None:
    class Picky(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) not in (1, 3, 16):  # those of the trace and of the comparison with the copy
                raise ValueError("16 images, please")
            return super().forward(x)

    recipe = replace(short(RECIPES["pixels"]), rows=16)
    batches = Batches(load(nn.Sequential(Picky(3, 4, 3))), CPU)
    assert batches.rows_needed([Objective.parse("0:0")], recipe) == 16


def test_no_check_is_made_where_it_costs_more_than_it_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    checks: list[tuple[int, ...]] = []
    monkeypatch.setattr(comparison, "find_least_rows", lambda _, tried, rows, __: checks.append(tried) or rows)
    network, kind = load(networks.small_inception()), BatchKind(("mixed",), 1, 16, "any", CPU)
    for savings, tried in ((2, []), (8, [(2,)]), (100, [(2,), (2, 4, 8)])):
        assert choose_rows(network, kind, lambda _: [], savings) == 16 and checks == tried
        choose_rows(network, kind, lambda _: [], savings)
        assert checks == tried, "one check in a process"
    full = replace(kind, images=16)
    assert choose_rows(network, full, lambda _: []) == 16 and len(checks) == 2
    stochastic = replace(network, allow_stochastic=True)
    assert choose_rows(stochastic, kind, lambda _: []) == 16 and len(checks) == 2


# ---------------------------------------------------------------- what one step does not show


def sigmoid_in_rows(rows: int, columns: int, values: Tensor) -> Tensor:
    return torch.sigmoid(values[:1].expand(rows, columns).contiguous())


@pytest.mark.parametrize(("columns", "alike"), [(64, True), (37, False)])
def test_a_sigmoid_that_rounds_by_its_place_is_found_by_any_values(columns: int, alike: bool) -> None:
    """The end of a tensor that does not fill a vector register; the values here do not show it."""
    numbers = torch.randn(1024, generator=torch.Generator().manual_seed(0))
    differing = torch.sigmoid(numbers) != torch.cat([torch.sigmoid(part.clone()) for part in numbers.split(15)])
    if not differing.any():
        pytest.skip("the sigmoid rounds alike everywhere on this machine")
    zeros = torch.zeros(1, columns)  # its value at 0 is 0.5, whoever computes it
    with ElementwiseCalls() as seen:
        two = sigmoid_in_rows(2, columns, zeros)
    with ElementwiseCalls() as larger:
        sigmoid_in_rows(3, columns, zeros)
    assert has_bits_of(two, sigmoid_in_rows(16, columns, zeros)[:2])
    assert seen.round_alike(larger, 14) == alike
    assert find_least_rows(lambda n: [sigmoid_in_rows(n, columns, zeros)], [2], 16, CPU) == (2 if alike else 16)
    # where it is found, there are values that differ
    values = numbers[differing][:1].expand(1, columns)
    assert has_bits_of(sigmoid_in_rows(2, columns, values), sigmoid_in_rows(16, columns, values)[:2]) == alike


def merged_with_frames(values: Tensor) -> Tensor:
    return torch.sigmoid(values.flatten(0, 1)).view_as(values)


def after_the_frames(values: Tensor) -> Tensor:
    return torch.sigmoid(values.transpose(0, 1).contiguous()).transpose(0, 1).contiguous()


def row_by_row(values: Tensor) -> Tensor:
    return torch.stack([torch.sigmoid(row) for row in values])


@pytest.mark.parametrize(
    ("sigmoid", "depends"), [(merged_with_frames, True), (after_the_frames, True), (row_by_row, 0)]
)
def test_rows_are_found_wherever_a_network_moves_them(sigmoid: Any, depends: bool) -> None:
    """Frames of a video, or a sequence whose second dimension is the batch."""
    numbers = torch.randn(1024, generator=torch.Generator().manual_seed(0))
    if torch.equal(torch.sigmoid(numbers), torch.cat([torch.sigmoid(part.clone()) for part in numbers.split(15)])):
        pytest.skip("the sigmoid rounds alike everywhere on this machine")
    for columns, alike in ((64, True), (37, not depends)):
        chosen = find_least_rows(lambda n, c=columns: [sigmoid(torch.zeros(n, 3, c))], [2], 16, CPU)
        assert chosen == (2 if alike else 16), columns


@pytest.mark.parametrize("activation", [nn.SiLU(), nn.GELU(), nn.Hardswish(), nn.ELU(), nn.Softplus()])
def test_smooth_activations_at_odd_sizes_keep_their_bits(
    activation: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "CHECK_SHARE", float("inf"))
    octaves = (Octave(12, (0.05, 0.03), (1.0, 0.3), 17),)
    recipe = replace(RECIPES["pixels"], rows=16, clamp="never", octaves=octaves)
    made = []
    for _ in range(2):
        module = nn.Sequential(nn.Conv2d(3, 5, 3), activation, nn.Conv2d(5, 6, 3))
        made.append(maximised_images(load(networks.randomised(module, 1).eval()), ["2:0", "2:1"], recipe))
        full_batches(monkeypatch)
    assert all(np.array_equal(made[0][k], made[1][k]) for k in made[0])


def test_bits_tell_apart_what_values_do_not() -> None:
    nan, zero = torch.tensor([torch.nan]), torch.tensor([0.0])
    assert has_bits_of(nan, nan.clone()) and not has_bits_of(zero, -zero) and not has_bits_of(zero, zero.double())
    assert has_bits_of(torch.complex(zero, nan), torch.complex(zero, nan))
    assert not has_bits_of(torch.complex(zero, zero), torch.complex(zero, -zero))


@pytest.mark.parametrize("count", [1, 5])
def test_a_probe_of_few_images_has_the_bits_of_a_full_one(
    count: int, tried: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.rand(count, 3, 24, 24, generator=torch.Generator().manual_seed(count))

    def outputs(network: Network) -> list[Tensor]:
        probe = Probe(network, 16)
        return [out["mixed"] for _ in range(2) for out in probe.outputs(images, ["mixed", "norm"])]

    found = outputs(load(networks.small_inception()))
    assert len(tried) == 1 and tried[0][-1] < 16, "the first pass tries, the second uses"
    full_batches(monkeypatch)
    full = outputs(load(networks.small_inception()))
    assert all(torch.equal(a, b) for a, b in zip(found, full, strict=True)) and len(found) == 2
