from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from featmap.errors import FeatmapError
from featmap.interaction import groups
from featmap.interaction.job import JointJob, Solo
from featmap.interaction.statistics import JointArrays
from featmap.interaction.worker import JointWorker
from featmap.network.loading import load
from featmap.network.unit import Unit
from featmap.runs import lifecycle
from featmap.runs.store import open_arrays
from tests.helpers import networks, settings, tiny

pytestmark = pytest.mark.usefixtures("threads")

SMALL: dict[str, Any] = {"size": 12, "steps": 4, "rows": 4}


def job_of(units: Sequence[str], module: nn.Module, seeds: int = 2, first: int = 0, **changes: Any) -> JointJob:
    """Job of one group of units; seeds are counted from `first`."""
    network = load(module)
    options = {k: changes.pop(k) for k in ("balance", "probe_layers") if k in changes}
    recipe = settings.resolve_linear(network, **(SMALL | changes))
    joint = groups.JointSettings(seeds=range(first, first + seeds), **options)
    return groups.group_job(units, network, recipe, joint)


def pairs_of(channels: Sequence[str], module: nn.Module, layers: Sequence[str] = ("second", "second")) -> JointJob:
    """Job of every pair of two layers' features, two seeds."""
    network = load(module)
    recipe = settings.resolve_linear(network, **SMALL)
    sides = list(zip(layers, channels, strict=True))
    return groups.pairs_job(
        groups.pairs_of(sides, network, recipe.size), network, recipe, groups.JointSettings(seeds=2)
    )


def carried_out(job: JointJob, folder: Path, watcher: Any = None) -> JointArrays:
    run = lifecycle.open_run(job, folder)
    lifecycle.carry_out(job, run, JointWorker, watcher)
    return JointArrays(job, run.arrays)


# ---------------------------------------------------------------- rows, work units, arrays


@pytest.mark.parametrize(("channels", "names"), [(1, ["gray"]), (3, ["red", "green", "blue"]), (4, list("0123"))])
def test_arrays_of_networks_of_any_channels_are_labelled(channels: int, names: list[str], tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)).eval()
    network = load(module, mean=[0.5] * channels, std=[0.5] * channels, input_size=12)
    job = groups.group_job(["2:0", "2:1"], network, settings.resolve_linear(network, **SMALL))
    carried_out(replace(job, seeds=(0,)), tmp_path / "run")
    data = open_arrays(tmp_path / "run")
    assert [str(name) for name in data["channel"].values] == names
    assert data["joint_images"].sizes["channel"] == data["null_images"].sizes["channel"] == channels


def test_a_pair_needs_solo_joint_and_control_descents() -> None:
    job = job_of(["second:3", "second:5"], tiny.small(), seeds=3)
    a, b = Unit("second", 3), Unit("second", 5)
    controls = [u for group in job.controls((a, b)) for u in group]
    assert len(controls) == len(set(controls)) == 8 and not {a, b} & set(controls)
    expected = {Solo(u, s) for u in (a, b, *controls) for s in (0, 1, 2)}
    expected |= {Solo(u, s, True) for u in (a, b) for s in (0, 1, 2)}
    assert len(job.solos) == len(expected) == len(set(job.solos)) and set(job.solos) == expected
    assert job.floor_seeds == {0: 1, 1: 2, 2: 0}
    assert job.joints == [(0, 0), (0, 1), (0, 2)]


def test_a_single_seed_takes_the_next_one_for_its_floor() -> None:
    job = job_of(["second:3", "second:5"], tiny.small(), seeds=1, first=7)
    others = [s for s in job.solos if s.seed != 7]
    assert others == [Solo(Unit("second", 3), 8), Solo(Unit("second", 5), 8)]
    assert job.joints == [(0, 7)] and job.starts == [(7, False), (8, False), (7, True)]


def test_each_solo_descent_occurs_once() -> None:
    job = pairs_of(["0-3", "2-5"], tiny.small())
    assert len(job.groups) == 4 * 4 - 2 - 1, "not with itself, and 2 with 3 once"
    assert len(set(job.solos)) == len(job.solos)
    units = [s.unit for s in job.solos if s.seed == 0 and not s.perturbed]
    assert set(units) >= {Unit("second", c) for c in range(6)} and len(units) <= tiny.FEATURES
    assert {s.unit for s in job.solos if s.perturbed} == {Unit("second", c) for c in range(6)}


def test_controls_are_other_channels_and_do_not_depend_on_the_run() -> None:
    alone = job_of(["second:3", "first:2"], tiny.small())
    many = pairs_of(["0-5", "0-4"], tiny.small(), ("second", "first"))
    group = alone.groups[0]
    assert alone.controls(group) == many.controls(group)
    for pair in many.groups:
        controls = many.controls(pair)
        assert len(controls) == 4
        for k, layer in enumerate(("second", "first")):
            assert [u[k].layer for u in controls] == [layer] * 4
            assert len({u[k] for u in controls} | {pair[k]}) == 5


@pytest.mark.parametrize(
    ("units", "module", "count"),
    [
        (["fc:0", "fc:1"], networks.logits_network, 0),
        (["fc:0", "conv:1"], networks.logits_network, 2),
        (["features:0", "features:1"], tiny.two, 0),
        (["features:0:1", "features:0:2"], tiny.planted, 4),
        (["features:all", "features:3"], tiny.planted, 4),
        (["second:1", "second:2", "second:3"], tiny.small, 2),
    ],
)
def test_the_channels_of_a_layer_limit_its_controls(units: list[str], module: Any, count: int) -> None:
    job = job_of(units, module())
    controls = job.controls(job.groups[0])
    used = {(u.layer, u.channel) for u in job.groups[0]}
    assert len(controls) == count
    assert not used & {(u.layer, u.channel) for group in controls for u in group}


def test_work_units_cover_every_row_once_and_joints_come_last() -> None:
    job = pairs_of(["0-3", "4-5"], tiny.small())
    work_units = job.work_units()
    stages = [unit.stage for unit in work_units]
    assert stages == sorted(stages, key=["ground", "solo", "joint"].index)
    assert len({unit.name for unit in work_units}) == len(work_units)
    for stage, count in (("solo", len(job.solos)), ("joint", len(job.joints))):
        rows = [r for unit in work_units if unit.stage == stage for r in range(unit.first, unit.last)]
        assert rows == list(range(count))


def test_every_array_is_filled_by_whole_chunks(tmp_path: Path) -> None:
    for job in (
        job_of(["second:0", "first:1"], tiny.small(), seeds=1),
        pairs_of(["0", "1"], tiny.small()),
        pairs_of(["0-2", "3-4"], tiny.small()),
    ):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        result, coords = carried_out(job, folder), job.coords()
        assert lifecycle.open_run(job, folder).arrays is not None
        for name, spec in job.arrays().items():
            values = np.asarray(result.arrays[name])
            assert values.shape == spec.shape and str(values.dtype) == spec.dtype
            agreement = name == "joint_agreement"
            assert np.isfinite(values).all() or agreement, f"{name}: a row was left out"
            for dim, length in zip(spec.dims, spec.shape, strict=True):
                assert dim not in coords or len(coords[dim]) == length, (name, dim)


def test_identity_holds_everything_that_the_numbers_depend_on() -> None:
    base = job_of(["second:1", "second:2"], tiny.small())
    others = [
        job_of(["second:1", "second:3"], tiny.small()),
        job_of(["second:2", "second:1"], tiny.small()),
        job_of(["second:1", "second:2"], tiny.other()),
        job_of(["second:1", "second:2"], tiny.small(), seeds=3),
        job_of(["second:1", "second:2"], tiny.small(), first=1),
        job_of(["second:1", "second:2"], tiny.small(), balance="none"),
        job_of(["second:1", "second:2"], tiny.small(), probe_layers=["first"]),
        job_of(["second:1", "second:2"], tiny.small(), rows=2),
        job_of(["second:1", "second:2"], tiny.small(), recipe="pixels"),
        pairs_of(["1", "2"], tiny.small()),
    ]
    texts = {json.dumps(job.identity(), sort_keys=True) for job in (base, *others)}
    assert len(texts) == len(others) + 1
    assert base.identity() == job_of(["second:1", "second:2"], tiny.small()).identity()


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("one unit", {"units": ["second:1"]}, "two units or more"),
    ("no unit", {"units": []}, "two units or more"),
    ("a unit with itself", {"units": ["second:1", "second:1"]}, "each once"),
    ("nine units", {"units": [f"second:{k}" for k in range(9)]}, "2 to 8 units"),
    ("an unknown layer", {"units": ["second:1", "secnd:1"]}, "nearest: second"),
    ("a channel too far", {"units": ["second:1", "second:11"]}, "0 to 10"),
    ("an unknown balance", {"units": ["second:1", "second:2"], "balance": "both"}, "allowed: solo, none"),
    ("an unknown probed layer", {"units": ["second:1", "second:2"], "probe_layers": ["frst"]}, "nearest: first"),
    ("a metric", {"units": ["second:1", "second:2"], "metric": "l2"}, "use metric 'l1'"),
    ("no seeds", {"units": ["second:1", "second:2"], "seeds": 0}, "give 1 to 10,000 different seeds"),
    ("a sum of units", {"units": ["second:1 + second:2", "second:3"]}, "not a unit"),
]


@pytest.mark.parametrize(("changes", "words"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_invalid_input_is_refused_in_one_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(FeatmapError) as error:
        job_of(module=tiny.small(), **changes)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("sides", "words"),
    [
        ([("second", "0-3")], "give two"),
        ([("second", "0-3"), ("first", "all"), "first"], "give two"),
        ([("second", "4"), ("second", "4")], "make no pair"),
        ([("second", "0-3"), ("first", "0-6")], "first has 6 channels"),
        ([("second", "0-3"), ("frst", "0")], "nearest: first"),
    ],
)
def test_invalid_pairs_are_refused_in_one_line(sides: list[Any], words: str) -> None:
    with pytest.raises(FeatmapError) as error:
        groups.pairs_of(sides, load(tiny.small()), 12)
    assert words in str(error.value) and "\n" not in str(error.value)
