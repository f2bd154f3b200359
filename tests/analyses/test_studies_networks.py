"""The studies of images and neurons on a network of torchvision's: no branches, a class of its own, dead features."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from analyses import maximised_unit, metrics, neuron_growth, octaves
from analyses.support.records import save_outcome
from analyses.support.study import Context
from featmap import Network, load
from featmap.cli.console import ProgressBars

LAYERS, SIZE = ("layer2.0", "layer3.0"), 48


@pytest.fixture(scope="module")
def network() -> Network:
    return load("resnet18", "random")


@pytest.mark.slow
@pytest.mark.parametrize("study", [octaves, metrics, maximised_unit, neuron_growth], ids=lambda m: m.STUDY.name)
def test_a_study_runs_on_any_network(study: ModuleType, network: Network, tmp_path: Path) -> None:
    context = Context(study.STUDY, network, LAYERS, False, 2, 1, "cpu", tmp_path / "runs", ProgressBars())
    outcome = study.measure(context, SIZE, 3)
    assert outcome.verdict in ("holds", "holds in part", "does not hold", "not decided")
    assert np.isfinite(outcome.rows["value"].to_numpy(dtype=float)).all()
    assert all(f.value is None or np.isfinite(f.value) for f in outcome.findings)
    assert len({f.name for f in outcome.findings}) == len(outcome.findings)
    record, table = save_outcome(context, outcome, tmp_path / "results")
    assert record.is_file() and table.stat().st_size < 200_000
