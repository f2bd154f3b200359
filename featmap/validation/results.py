"""Results of a validation: statistics with their intervals, of each layer and network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from featmap.stats.frames import finite_column
from featmap.validation.evidence import Evidence

BOOTSTRAP = "95 %, bootstrap over features"
FEATURE_RANGE, RANGE, NULL_RANGE = "90 % of features", "least and most", "95 % of draws"
"""Kinds of intervals."""


@dataclass(frozen=True)
class Statistic:
    """A statistic of one layer of one network.

    Parameters
    ----------
    layer : str
        Name of the layer.
    network : str
        "trained", "random weights" or "columns permuted".
    name : str
        Name of the statistic.
    value : float or None
        The statistic; None where undefined.
    low, high : float, optional
        Ends of its interval.
    p : float, optional
        Its p-value.
    count : int, optional
        Number of pairs, features, seeds or draws that it is computed from.
    note : str, optional
        A remark, or why the value is undefined.
    interval : str, optional
        Kind of the interval.
    """

    layer: str
    network: str
    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    count: int | None = None
    note: str = ""
    interval: str = ""


@dataclass(eq=False)
class Evaluation:
    """Evaluation of one layer of one network.

    Parameters
    ----------
    evidence : Evidence
        What it is computed from.
    statistics : dict of Statistic
        By name.
    features : pandas.DataFrame
        A row for each feature: reliability, ratio to the best photograph, path score.
    best_photographs : numpy.ndarray, optional
        Indices of each feature's best photographs, D x `featmap.validation.statistics.BEST_PHOTOGRAPHS`.
    """

    evidence: Evidence
    statistics: dict[str, Statistic]
    features: pd.DataFrame
    best_photographs: np.ndarray | None = None

    def value(self, name: str) -> float | None:
        """Look up the value of a statistic.

        Parameters
        ----------
        name : str
            Name of the statistic.

        Returns
        -------
        float or None
            None where it is undefined or was not computed.
        """
        statistic = self.statistics.get(name)
        return None if statistic is None else statistic.value

    def p(self, name: str) -> float | None:
        """Look up the p-value of a statistic.

        Parameters
        ----------
        name : str
            Name of the statistic.

        Returns
        -------
        float or None
            None where there is none.
        """
        statistic = self.statistics.get(name)
        return None if statistic is None else statistic.p

    def low(self, name: str) -> float | None:
        """Look up the lower end of a statistic's interval.

        Parameters
        ----------
        name : str
            Name of the statistic.

        Returns
        -------
        float or None
            None where there is no interval.
        """
        statistic = self.statistics.get(name)
        return None if statistic is None else statistic.low


@dataclass(eq=False)
class Validation:
    """Results of a validation, by layer.

    Parameters
    ----------
    folder : Path
        Folder of the validation.
    trained : dict of Evaluation
        Evaluations of the network itself.
    random : dict of Evaluation
        Evaluations of the same network with random weights; empty where there are none.
    permuted : dict of dict of Statistic
        Statistics with A permuted within its columns, by layer and name.
    reason : str, optional
        Why there are no random weights, "" where there are.
    """

    folder: Path
    trained: dict[str, Evaluation]
    random: dict[str, Evaluation]
    permuted: dict[str, dict[str, Statistic]]
    reason: str = ""

    @property
    def statistics(self) -> pd.DataFrame:
        """All statistics, a row each; the columns are the fields of `Statistic`."""
        rows: list[Statistic] = []
        for layer, evaluation in self.trained.items():
            rows += evaluation.statistics.values()
            rows += self.random[layer].statistics.values() if layer in self.random else []
            rows += self.permuted[layer].values()
        return statistics_frame(rows)


def statistics_records(statistics: pd.DataFrame) -> list[dict[str, Any]]:
    """Convert a table of statistics to values for JSON.

    Parameters
    ----------
    statistics : pandas.DataFrame
        See `statistics_frame`.

    Returns
    -------
    list of dict
        A row each; counts are whole numbers, and what is undefined is None.
    """
    records: list[dict[str, Any]] = json.loads(statistics.astype({"count": "Int64"}).to_json(orient="records"))
    return records


def statistics_frame(statistics: Sequence[Statistic]) -> pd.DataFrame:
    """Arrange statistics in a table.

    Parameters
    ----------
    statistics : sequence of Statistic
        The statistics.

    Returns
    -------
    pandas.DataFrame
        A row each; numbers are float64, NaN where undefined.
    """
    frame = pd.DataFrame([vars(s) for s in statistics])
    for column in ("value", "low", "high", "p", "count"):
        frame[column] = finite_column(frame[column].to_numpy())
    return frame
