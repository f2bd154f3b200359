"""The errors that reach a user: one clear line each, never a traceback unless asked for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FeatmapError(Exception):
    """Something the user can mend. The message says what was given, what is allowed, what to do next."""


class UnitError(FeatmapError):
    """A unit, feature list or layer that cannot be understood or is out of range."""


class ModelError(FeatmapError):
    """A network or weights that cannot be had or do not fit each other."""


class RecipeError(FeatmapError):
    """Settings of a descent that contradict each other or the network."""


class StoreError(FeatmapError):
    """A run folder that cannot be read, written or gone on with."""


class IncompleteError(FeatmapError):
    """A run that ended with work units left out. All others are kept, and the same call makes the rest."""


def nearest(given: str, known: Iterable[str], n: int = 3) -> str:
    """Return `` (nearest: a, b)`` for the known names closest to `given`, or an empty string."""
    close = difflib.get_close_matches(given, list(known), n=n, cutoff=0.4)
    return f" (nearest: {', '.join(close)})" if close else ""
