"""What a validation leaves on a run's tables and figures: each feature's reliability, and a mark on unreliable ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

RELIABLE = 0.9
"""Reliability of a feature in the run's own map below which it is marked."""
MARK = " ?"


def enter(table: pd.DataFrame, reliability: Mapping[str, float | None]) -> None:
    """Give a table of features (its index) the columns `reliability` and `reliable`, if a validation found any.

    A feature of which it found none (dead in one of the seeds) is not reliable; one it does not name is unknown. A
    column `nearest_k` is followed by `nearest_k_reliable`, of the neighbour that it names.
    """
    if not reliability:
        return
    values = [reliability.get(str(f)) for f in table.index]
    table["reliability"] = pd.array([np.nan if v is None else v for v in values], dtype="Float64")
    table["reliable"] = reliable(reliability, table.index)
    for name in [str(c) for c in table.columns]:
        if re.fullmatch(r"nearest_[0-9]+", name):
            marked = reliable(reliability, table[name])
            if f"{name}_reliable" in table:
                table[f"{name}_reliable"] = marked
            else:
                table.insert(int(table.columns.get_loc(name)) + 1, f"{name}_reliable", marked)


def reliable(reliability: Mapping[str, float | None], names: Iterable[object]) -> pd.api.extensions.ExtensionArray:
    """Return of each feature whether it is reliable, as a column; undefined where a validation does not name it."""
    below = set(unreliable(reliability))
    return pd.array([f not in below if f in reliability else pd.NA for f in map(str, names)], dtype="boolean")


def unreliable(reliability: Mapping[str, float | None]) -> list[str]:
    """Return the names of the features that are marked: below `RELIABLE`, or without any reliability."""
    return [name for name, value in reliability.items() if value is None or value < RELIABLE]


def is_marked(table: pd.DataFrame, name: str) -> bool:
    """Did a validation find this feature unreliable?"""
    return (
        "reliable" in table
        and name in table.index
        and table["reliable"][name] is not pd.NA
        and not table["reliable"][name]
    )


def named(table: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """Return features' names as figures write them: followed by a question mark where unreliable."""
    return [f"{name}{MARK}" if is_marked(table, name) else name for name in names]


def note(table: pd.DataFrame, names: Sequence[str]) -> str:
    """Return what a title adds: how many of the features are marked, "" for none."""
    count = sum(is_marked(table, name) for name in names)
    return f", {count} of them unreliable (marked{MARK})" if count else ""
