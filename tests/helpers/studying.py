"""A study put to a tiny network, without its command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from analyses.support.study import Context, Outcome, Study
from featmap.cli.console import ProgressBars
from featmap.network.loading import load
from featmap.network.model import Network


def context_of(
    study: Study, module: nn.Module | str, layers: tuple[str, ...], runs: Path, size: int = 16, **settings: Any
) -> Context:
    """The context of a study of a tiny network that takes images of `size` pixels; few features, one seed."""
    network: Network = load(module, input_size=size)
    given = {
        "full": False,
        "features": 4,
        "seeds": 1,
        "device": "cpu",
        "runs": runs,
        "watcher": ProgressBars(),
    } | settings
    return Context(study, network, layers, **given)


def value_of(outcome: Outcome, name: str) -> float:
    """The value of one finding."""
    (value,) = [f.value for f in outcome.findings if f.name == name]
    assert value is not None
    return value
