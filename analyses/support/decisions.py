"""Three-valued decisions of a study: on which side of a limit an interval is, and whether all parts of a claim hold."""

from __future__ import annotations

import math
from collections.abc import Iterable

from analyses.support.findings import Finding


def above(low: float, high: float, limit: float) -> bool | None:
    """Check whether an interval is above a limit.

    Parameters
    ----------
    low, high : float
        Ends of the interval; NaN where it is undefined.
    limit : float
        The limit.

    Returns
    -------
    bool or None
        True if the whole interval is above the limit, False if none of it is; None where it spans the limit, or is
        undefined.
    """
    if math.isnan(low) or math.isnan(high):
        return None
    return True if low > limit else False if high <= limit else None


def below(low: float, high: float, limit: float) -> bool | None:
    """Check whether an interval is below a limit.

    Parameters
    ----------
    low, high : float
        Ends of the interval; NaN where it is undefined.
    limit : float
        The limit.

    Returns
    -------
    bool or None
        True if the whole interval is below the limit, False if none of it is; None where it spans the limit, or is
        undefined.
    """
    return above(-high, -low, -limit)


def exceeds(finding: Finding, limit: float) -> bool | None:
    """Check whether a finding's interval is above a limit, as `above` does.

    Parameters
    ----------
    finding : Finding
        The finding.
    limit : float
        The limit.

    Returns
    -------
    bool or None
        None where the interval spans the limit, or is undefined.
    """
    if finding.low is None or finding.high is None:
        return None
    return above(finding.low, finding.high, limit)


def all_hold(parts: Iterable[bool | None]) -> bool | None:
    """Check whether all parts of a statement hold.

    Parameters
    ----------
    parts : iterable of bool or None
        Whether each part holds; None where it is not decided.

    Returns
    -------
    bool or None
        False if one does not hold; None if none fails but one is not decided, or there is no part.
    """
    found = list(parts)
    if False in found:
        return False
    return True if found and all(found) else None
