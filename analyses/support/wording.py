"""Words that conclusions of several studies share."""

from __future__ import annotations


def plural(count: int, noun: str) -> str:
    """Write a number with its noun.

    Parameters
    ----------
    count : int
        The number.
    noun : str
        The noun in the singular; its plural ends in an s.

    Returns
    -------
    str
        Such as "1 seed", or "3 seeds".
    """
    return f"{count} {noun}{'s' * (count != 1)}"
