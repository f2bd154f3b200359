"""Add the reliability that a validation measured to tables, and mark unreliable features in figures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

RELIABLE = 0.9
"""Reliability in the run's own map below which a feature is marked as unreliable."""
MARK = " ?"
"""Follows the name of an unreliable feature."""


def add_reliability(table: pd.DataFrame, reliability: Mapping[str, float | None]) -> None:
    """Add the columns `reliability` and `reliable` to a table of features.

    A column `nearest_k` is followed by `nearest_k_reliable`, for the neighbour that it names.

    Parameters
    ----------
    table : pandas.DataFrame
        Table whose index are features; it is changed in place.
    reliability : mapping of str to float or None
        Reliability by feature; None where it is undefined, as for a feature that is dead in one of the seeds. Such
        features are not reliable; features that are missing here are undefined. Empty before a validation: the table
        stays as it is.
    """
    if not reliability:
        return
    values = [reliability.get(str(f)) for f in table.index]
    table["reliability"] = np.array([np.nan if v is None else v for v in values], dtype=np.float64)
    table["reliable"] = reliable_column(reliability, table.index)
    for name in [str(c) for c in table.columns]:
        if re.fullmatch(r"nearest_[0-9]+", name):
            marked = reliable_column(reliability, table[name])
            if f"{name}_reliable" in table:  # the table was read from a run that had been validated before
                table[f"{name}_reliable"] = marked
            else:
                table.insert(int(table.columns.get_loc(name)) + 1, f"{name}_reliable", marked)


def reliable_column(reliability: Mapping[str, float | None], names: Iterable[object]) -> np.ndarray:
    """Make the column that tells reliable features from unreliable ones.

    Parameters
    ----------
    reliability : mapping of str to float or None
        Reliability by feature, see `add_reliability`.
    names : iterable
        Features.

    Returns
    -------
    numpy.ndarray
        In the order of `names`: 1 for reliable, 0 for unreliable; NaN where `reliability` lacks the feature.
    """
    unreliable = set(unreliable_features(reliability))
    return np.array([float(f not in unreliable) if f in reliability else np.nan for f in map(str, names)])


def unreliable_features(reliability: Mapping[str, float | None]) -> list[str]:
    """List the features whose reliability is undefined or below `RELIABLE`.

    Parameters
    ----------
    reliability : mapping of str to float or None
        Reliability by feature, see `add_reliability`.

    Returns
    -------
    list of str
        In the order of `reliability`.
    """
    return [name for name, value in reliability.items() if value is None or value < RELIABLE]


def is_marked(table: pd.DataFrame, name: str) -> bool:
    """Check whether a feature is unreliable according to a table of features.

    Parameters
    ----------
    table : pandas.DataFrame
        Table of features.
    name : str
        A feature; the table need not hold it.

    Returns
    -------
    bool
        False where the reliability is unknown.
    """
    return "reliable" in table and name in table.index and bool(table["reliable"][name] == 0)


def marked_names(table: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """Append `MARK` to the names of unreliable features.

    Parameters
    ----------
    table : pandas.DataFrame
        Table of features.
    names : sequence of str
        Features.

    Returns
    -------
    list of str
        In the order of `names`.
    """
    return [f"{name}{MARK}" if is_marked(table, name) else name for name in names]


def title_note(table: pd.DataFrame, names: Sequence[str]) -> str:
    """Format what a figure's title says about unreliable features.

    Parameters
    ----------
    table : pandas.DataFrame
        Table of features.
    names : sequence of str
        Features in the figure.

    Returns
    -------
    str
        Their number; "" if there are none.
    """
    count = sum(is_marked(table, name) for name in names)
    return f", {count} of them unreliable (marked{MARK})" if count else ""
