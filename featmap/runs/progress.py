"""Progress callbacks: their interface, a silent watcher, and the report of a descent's steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

DESCENTS = "maximising"
"""Name of the descents among the parts of a run."""


class Watcher(Protocol):
    """Interface for progress callbacks."""

    def begin(self, total: int, done: int) -> None:
        """Receive the number of steps of the run, and of those that are stored already.

        Parameters
        ----------
        total, done : int
            Steps.
        """

    def step(self, activation: float, count: int = 1) -> None:
        """Receive the activation that a step reached.

        Parameters
        ----------
        activation : float
            Mean over the batch.
        count : int, default 1
            Steps since the last call.
        """

    def landed(self) -> None:
        """Receive the landing of one more work unit."""

    def stage(self, name: str, done: int, total: int) -> None:
        """Receive the progress of a later stage.

        Parameters
        ----------
        name : str
            Name of the stage.
        done, total : int
            Parts of it.
        """

    def note(self, text: str) -> None:
        """Receive a note for the user.

        Parameters
        ----------
        text : str
            One line.
        """


class Silent:
    """Watcher that ignores everything."""

    def begin(self, total: int, done: int) -> None:
        """Ignore the beginning.

        Parameters
        ----------
        total, done : int
            Steps.
        """

    def step(self, activation: float, count: int = 1) -> None:
        """Ignore a step.

        Parameters
        ----------
        activation : float
            Mean over the batch.
        count : int, default 1
            Steps since the last call.
        """

    def landed(self) -> None:
        """Ignore a landing."""

    def stage(self, name: str, done: int, total: int) -> None:
        """Ignore a stage.

        Parameters
        ----------
        name : str
            Name of the stage.
        done, total : int
            Parts of it.
        """

    def note(self, text: str) -> None:
        """Ignore a note.

        Parameters
        ----------
        text : str
            One line.
        """


class SingleBeginning:
    """Watcher that passes everything on, but only the first of several beginnings.

    Parameters
    ----------
    watcher : Watcher
        Receives the progress of a run whose work is computed in several parts.
    total : int
        Steps of all parts; where their number is not known, the largest one.
    """

    def __init__(self, watcher: Watcher, total: int) -> None:
        self.step, self.landed, self.stage, self.note = watcher.step, watcher.landed, watcher.stage, watcher.note
        self._watcher, self._total, self._begun = watcher, total, False

    def begin(self, total: int, done: int) -> None:
        """Pass on the first beginning, with the steps of all parts.

        Parameters
        ----------
        total : int
            Steps of this part and those before it.
        done : int
            Steps that are stored already.
        """
        if not self._begun:
            self._begun = True
            self._watcher.begin(max(total, self._total), done)


PAUSE = 0.25
"""Seconds between two readings of the activation on a GPU."""


def step_callback(watcher: Watcher, device: torch.device) -> Callable[[int, Tensor], None]:
    """Create a function that reports each step of a descent.

    Parameters
    ----------
    watcher : Watcher
        Receives the steps.
    device : torch.device
        Where the descent runs. On a GPU the activation is read only every `PAUSE` seconds: reading it synchronises
        the device.

    Returns
    -------
    callable
        Takes the number of the step and the activations of the batch, rows x terms.
    """
    pause = 0.0 if device.type == "cpu" else PAUSE
    activation, read_at = 0.0, -math.inf

    def on_step(_: int, means: Tensor) -> None:
        nonlocal activation, read_at
        if time.monotonic() - read_at >= pause:
            activation, read_at = float(means[:, 0].mean()), time.monotonic()
        watcher.step(activation)

    return on_step
