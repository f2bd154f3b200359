"""Errors that the library raises for its user, each with a message of one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FeatmapError(Exception):
    """An error that the user can correct.

    The message says in one line what was given, what is allowed and what to do next.
    """


class UnitError(FeatmapError):
    """A unit, feature list or layer that is malformed, unknown or out of range."""


class ModelError(FeatmapError):
    """A network or weights that cannot be loaded or do not fit each other."""


class InputError(ModelError):
    """A network that takes something other than one batch of images.

    Parameters
    ----------
    message : str
        What the network takes, in one line.
    example : str
        Code of a wrapper, in a few lines.
    """

    def __init__(self, message: str, example: str) -> None:
        super().__init__(message, example)
        self.message, self.example = message, example

    def __str__(self) -> str:
        return f"{self.message}\n{self.example}"


class RecipeError(FeatmapError):
    """Settings of a descent that contradict each other or the network."""


class StoreError(FeatmapError):
    """A run folder that cannot be read, written or resumed."""


class IncompleteError(FeatmapError):
    """A run that ended with work units missing.

    The others are stored, and the same call computes the rest.
    """


def first_line(error: BaseException, limit: int = 200) -> str:
    """Get the first line of an error's message, to quote it in a message of one line.

    Parameters
    ----------
    error : BaseException
        The error.
    limit : int, default 200
        Largest number of characters.

    Returns
    -------
    str
        The line; the error's type where it has no message.
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:limit]


def describe_error(error: BaseException, limit: int = 160) -> str:
    """Format an error in one short line.

    Parameters
    ----------
    error : BaseException
        The error.
    limit : int, default 160
        Largest number of characters of its message.

    Returns
    -------
    str
        ``Type: first line of the message``; the type alone where there is no message.
    """
    name = type(error).__name__
    return f"{name}: {first_line(error, limit)}" if str(error).strip() else name


def suggest(name: str, allowed: Iterable[str], count: int = 3) -> str:
    """Format the allowed names closest to an unknown one, for an error message.

    Parameters
    ----------
    name : str
        The unknown name.
    allowed : iterable of str
        The names that exist.
    count : int, default 3
        Largest number of suggestions.

    Returns
    -------
    str
        `` (nearest: a, b)``, or an empty string if no name is close.
    """
    matches = difflib.get_close_matches(name, list(allowed), n=count, cutoff=0.4)
    return f" (nearest: {', '.join(matches)})" if matches else ""
