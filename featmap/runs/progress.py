"""Interface for progress callbacks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class Watcher(Protocol):
    """Interface for progress callbacks."""

    def begin(self, total: int, done: int) -> None:
        """Hear that `done` of `total` steps are stored already."""

    def step(self, activation: float, count: int = 1) -> None:
        """Hear that `count` steps were made; `activation` is the mean of the batch."""

    def landed(self) -> None:
        """Hear that one more work unit is on disk."""

    def stage(self, name: str, done: int, total: int) -> None:
        """Hear that `done` of `total` parts of a later stage are done."""

    def note(self, text: str) -> None:
        """Hear something that the user should know."""


class Silent:
    """A watcher that ignores everything."""

    def begin(self, total: int, done: int) -> None:
        """Ignore the beginning."""

    def step(self, activation: float, count: int = 1) -> None:
        """Ignore a step."""

    def landed(self) -> None:
        """Ignore a landing."""

    def stage(self, name: str, done: int, total: int) -> None:
        """Ignore a stage."""

    def note(self, text: str) -> None:
        """Ignore a note."""


PAUSE = 0.25
"""Seconds between two readings of the activation on a GPU."""


def step_callback(watcher: Watcher, device: torch.device) -> Callable[[int, Tensor], None]:
    """Return a function that reports each step of a descent.

    Parameters
    ----------
    watcher : Watcher
        Hears of the steps.
    device : torch.device
        Where the descent runs. On a GPU the activation is read only every `PAUSE` seconds: reading it synchronises
        the device.

    Returns
    -------
    callable
        Takes the number of the step and the activations of the batch, rows x terms.
    """
    pause = 0.0 if device.type == "cpu" else PAUSE
    last, read = 0.0, -math.inf

    def on_step(_: int, means: Tensor) -> None:
        nonlocal last, read
        if time.monotonic() - read >= pause:
            last, read = float(means[:, 0].mean()), time.monotonic()
        watcher.step(last)

    return on_step
