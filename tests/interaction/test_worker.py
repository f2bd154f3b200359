from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import featmap
from featmap import image_ops
from featmap.interaction import groups
from featmap.interaction import run as interaction_run
from featmap.interaction.job import JointUnit
from featmap.interaction.worker import JointWorker
from featmap.network.loading import load
from featmap.network.model import Network
from featmap.network.unit import Unit
from featmap.optimize.descent import DescentNetwork, descend
from featmap.optimize.objective import Objective
from featmap.optimize.parameterization import initial_image, null_image
from featmap.optimize.recipe import INTERACT, Recipe
from featmap.runs import lifecycle
from featmap.runs.engine import Execution
from featmap.runs.progress import Silent
from tests.helpers import couples, tiny
from tests.helpers.settings import options
from tests.interaction.test_job import SMALL, carried_out, job_of, pairs_of

pytestmark = pytest.mark.usefixtures("cheap_runs", "threads")


# ---------------------------------------------------------------- images and responses


def test_a_solo_image_is_that_of_maximise(tmp_path: Path) -> None:
    job = job_of(["second:3", "first:5"], tiny.small())
    result = carried_out(job, tmp_path / "run")
    alone = featmap.maximise(["second:3", "first:5"], tiny.small(), **options(recipe="interact", seeds=2, **SMALL))
    for seed in (0, 1):
        for k, unit in enumerate(job.groups[0]):
            image = result.image("solo_images", result.solo_rows[unit, seed, False])
            assert image.tobytes() == alone["images"].values[seed, k].tobytes()
        null = result.image("null_images", result.start_rows[seed, False])
        assert null.tobytes() == alone["null_images"].values[seed].tobytes()


@pytest.mark.parametrize("units", [["second:3", "second:7"], ["second:3", "first:5"], ["second:1", "second:0:2:2"]])
@pytest.mark.parametrize("balance", ["solo", "none"])
def test_the_joint_image_maximises_the_weighted_objective(units: list[str], balance: str, tmp_path: Path) -> None:
    job = job_of(units, tiny.small(), balance=balance)
    result = carried_out(job, tmp_path / "run")
    network, group = job.network, job.groups[0]
    shapes = {12: {u.layer: network.layer(u.layer, 12).shape for u in group}}
    for row, (_, seed) in enumerate(job.joints):
        counts = [int(np.prod(shapes[12][u.layer][1:])) if u.kind == "feature" else 1 for u in group]
        alpha = [result.solo_activation(u, u, seed) for u in group]
        # the article's plain sum is over neurons
        expected = [1 / a for a in alpha] if balance == "solo" else [c / max(counts) for c in counts]
        np.testing.assert_allclose(result.small_arrays["joint_weight"][row], expected, rtol=1e-9)
        # the loss is a sum over neurons, J a mean: dividing by the count turns one into the other
        weights = np.array(expected) / counts
        target = Objective(tuple(zip((weights / weights.mean()).tolist(), group, strict=True)))
        again = descend(DescentNetwork(network.module, network.normalise, shapes), [target], job.recipe, seed=seed)
        np.testing.assert_allclose(result.image("joint_images", row), again.images[0].numpy(), atol=2e-5)
        np.testing.assert_allclose(result.arrays["joint_curve"][row], again.curve[0].numpy(), atol=2e-5)


def plain(module: nn.Module, image: np.ndarray) -> dict[str, np.ndarray]:
    """Every layer's output for one image, one module after another, in float64."""
    x, result = torch.tensor(image, dtype=torch.float64)[None], {}
    with torch.no_grad():
        for name, child in module.double().named_children():
            x = child(x)
            result[name] = x[0].numpy()
    return result


def test_recorded_responses_are_those_of_the_plain_network(tmp_path: Path) -> None:
    job = job_of(["second:3", "first:5"], tiny.small(), probe_layers=["second", "first"])
    result, again = carried_out(job, tmp_path / "run"), tiny.small()
    data = result.arrays

    def responses(image: np.ndarray) -> np.ndarray:
        out = plain(again, image)
        return np.concatenate([out["second"].mean((1, 2)), out["first"].mean((1, 2))])

    assert job.columns == [f"second:{c}" for c in range(11)] + [f"first:{c}" for c in range(6)]
    own = [3, 11 + 5]
    for row, (_, seed) in enumerate(job.joints):
        solos = [result.image("solo_images", result.solo_rows[u, seed, False]).astype(float) for u in job.groups[0]]
        null = result.image("null_images", result.start_rows[seed, False]).astype(float)
        joint = result.image("joint_images", row)
        np.testing.assert_allclose(data["joint_A"][row], responses(joint), atol=2e-6)
        np.testing.assert_allclose(data["joint_units"][row], responses(joint)[own], atol=2e-6)
        middle = null + (solos[0] - null) / 2 + (solos[1] - null) / 2
        np.testing.assert_allclose(data["joint_middle"][row], responses(middle), atol=2e-6)
        for k, t in enumerate(np.linspace(0, 1, 21)):
            expected = responses(t * solos[0] + (1 - t) * solos[1])[own]
            np.testing.assert_allclose(data["joint_blend"][row, k], expected, atol=2e-6)
        for unit, image in zip(job.groups[0], solos, strict=True):
            at = result.solo_rows[unit, seed, False]
            np.testing.assert_allclose(data["solo_A"][at], responses(image), atol=2e-6)
            np.testing.assert_allclose(data["solo_fraction"][at], responses(null + (image - null) / 2), atol=2e-6)
        np.testing.assert_allclose(data["joint_map_a"][row], plain(again, joint)["second"][3], atol=2e-6)
        np.testing.assert_allclose(data["joint_map_b"][row], plain(again, joint)["first"][5], atol=2e-6)
    varied = np.array([responses(image) for image in image_ops.pink_noise(64, 12).numpy()])
    np.testing.assert_allclose(data["deviation"], varied.std(0), rtol=1e-4)


def test_a_perturbed_start_differs_by_two_percent_of_the_noise() -> None:
    job = job_of(["second:3", "first:5"], tiny.small())
    worker = JointWorker(job)
    off = (worker.start_image(1, True) - initial_image(job.recipe, 1)).numpy()
    assert off.std() == pytest.approx(0.02 * job.recipe.std, rel=0.1)
    assert abs(np.corrcoef(off.ravel(), initial_image(job.recipe, 1).numpy().ravel())[0, 1]) < 0.2
    torch.testing.assert_close(worker.null_image(1, False), null_image(job.recipe, 1))
    assert not torch.equal(worker.null_image(1, True), worker.null_image(1, False))


def test_one_pass_reaches_both_layers() -> None:
    """Layer k is reached through layer l once, in every step of the joint descent."""
    network = load(couples.counted())
    recipe = replace(INTERACT.resolved(12, size=12, steps=5), rows=2)
    a, b = Unit("first", 1), Unit("second", 2)
    shapes = {12: {layer: network.layer(layer, 12).shape for layer in ("first", "second")}}
    couples.Counted.calls = 0
    descend(DescentNetwork(network.module, network.normalise, shapes), [Objective(((1.0, a), (0.5, b)))], recipe)
    assert couples.Counted.calls == 5
    job = groups.group_job([a, b], network, recipe, groups.JointSettings(seeds=2))
    worker = JointWorker(job)
    couples.Counted.calls = 0
    worker._descend([Objective(((1.0, a), (0.5, b)))] * 2, [(0, False), (1, False)])
    assert couples.Counted.calls == 5


def summed_gradient(network: Network, recipe: Recipe, target: Objective, image: torch.Tensor) -> torch.Tensor:
    """The gradient of the sum of all neurons of all terms, at once."""
    x = image[None].clone().requires_grad_(True)
    out: Any = x
    losses = []
    for name, child in network.module.named_children():
        out = child(out)
        losses += [w * out[0, u.channel].sum() for w, u in target.terms if u.layer == name]
    torch.stack(losses).sum().backward()
    assert x.grad is not None
    return x.grad[0]


def test_the_sums_gradient_is_the_sum_of_the_gradients() -> None:
    """One plain step moves by the gradient of the whole sum; the agreement is the cosine of its parts."""
    network = load(tiny.small())
    recipe = replace(INTERACT.resolved(12, size=12, steps=1), rows=2, optimiser="gradient")
    recipe = replace(recipe, octaves=(replace(recipe.octaves[0], rate=(1.0, 1.0), sigma=(0.0, 0.0)),))
    a, b = Objective(((1.0, Unit("second", 3)),)), Objective(((-0.7, Unit("first", 1)),))
    shapes = {12: {layer: network.layer(layer, 12).shape for layer in ("first", "second")}}
    result = descend(DescentNetwork(network.module, network.normalise, shapes), [a + b], recipe)
    start = initial_image(recipe, 0)
    one, two = (summed_gradient(network, recipe, t, start) for t in (a, b))
    moved = result.images[0] - start
    torch.testing.assert_close(moved, summed_gradient(network, recipe, a + b, start), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(moved, one + two, atol=1e-5, rtol=1e-4)
    cosine = float((one * two).sum() / one.norm() / two.norm())
    assert float(result.agreement[0, 0]) == pytest.approx(cosine, abs=1e-5)


# ---------------------------------------------------------------- resuming, other rows in the batch


def same(one: Any, two: Any, names: Sequence[str]) -> None:
    for name in names:
        assert np.asarray(one[name]).tobytes() == np.asarray(two[name]).tobytes(), name


@pytest.mark.parametrize("stop", [0, 1, 3, 6])
def test_an_interrupted_run_gives_the_same_bits(stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = pairs_of(["0-2", "3-4"], tiny.small())
    whole = carried_out(job, tmp_path / "whole")
    real, done = JointWorker.work, []

    def cut(self: JointWorker, unit: JointUnit, store: Any) -> None:
        if len(done) == stop:
            raise KeyboardInterrupt
        done.append(unit)
        real(self, unit, store)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(JointWorker, "work", cut)
        carried_out(job, tmp_path / "cut")
    run = lifecycle.open_run(job, tmp_path / "cut")
    assert lifecycle.carry_out(job, run, JointWorker) == len(job.work_units()) - stop
    same(whole.arrays, run.arrays, list(job.arrays()))
    assert lifecycle.carry_out(job, run, JointWorker) == 0


def test_a_damaged_chunk_is_computed_again(tmp_path: Path) -> None:
    job = job_of(["second:3", "first:5"], tiny.small())
    before = carried_out(job, tmp_path / "run")
    copies = {name: np.asarray(before.arrays[name]) for name in job.arrays()}
    chunk = tmp_path / "run" / "arrays.zarr" / "solo_A" / "1.0"
    chunk.write_bytes(b"rubbish")
    run = lifecycle.open_run(job, tmp_path / "run")
    assert lifecycle.carry_out(job, run, JointWorker) == 1
    same(copies, run.arrays, list(copies))


def test_a_pair_is_the_same_alone_as_among_others(tmp_path: Path) -> None:
    many = pairs_of(["0-3", "4-7"], tiny.small())
    among = carried_out(many, tmp_path / "many")
    for group in (many.groups[0], many.groups[6]):
        job = job_of([str(u) for u in group], tiny.small())
        alone = carried_out(job, tmp_path / str(group[1].channel))
        for row, (_, seed) in enumerate(job.joints):
            there = many.joints.index((many.groups.index(group), seed))
            for name in (n for n in job.arrays() if n.startswith("joint_") and n != "joint_units"):
                assert np.asarray(alone.arrays[name][row]).tobytes() == among.arrays[name][there].tobytes(), name
            one, two = alone.statistics(row), among.statistics(there)
            assert one.keys() == two.keys()
            assert np.array(list(one.values())).tobytes() == np.array(list(two.values())).tobytes()


class RecordingWatcher(Silent):
    """A watcher that records its calls."""

    def __init__(self) -> None:
        self.total = self.steps = self.units = 0
        self.stages: list[tuple[str, int, int]] = []

    def begin(self, total: int, done: int) -> None:
        self.total, self.done = total, done

    def step(self, activation: float, count: int = 1) -> None:
        assert np.isfinite(activation)
        self.steps += 1

    def landed(self) -> None:
        self.units += 1

    def stage(self, name: str, done: int, total: int) -> None:
        assert 0 <= done <= total
        self.stages.append((name, done, total))


def test_progress_is_reported(tmp_path: Path) -> None:
    job, watcher = pairs_of(["0-2", "0-4"], tiny.small(), ("second", "first")), RecordingWatcher()
    interaction_run.carry_out(job, lifecycle.open_run(job, tmp_path / "run"), Execution(watcher=watcher))
    batches = sum(1 for p in job.work_units() if p.last)
    assert watcher.total == watcher.steps == batches * job.recipe.steps and watcher.done == 0
    assert watcher.units == batches + 1
    assert {name for name, *_ in watcher.stages} == {"statistics", "matrices"}
    again = RecordingWatcher()
    interaction_run.carry_out(job, lifecycle.open_run(job, tmp_path / "run"), Execution(watcher=again))
    assert again.steps == again.units == 0 and again.done == again.total


def test_a_dead_partner_has_weight_zero() -> None:
    job = job_of(["second:3", "second:5"], tiny.small())
    result = JointWorker(job).joint_weights(job.groups[0], np.array([0.5, -1.0]), np.array([True, False]))
    assert result.tolist() == [2.0, 0.0]
