"""Objectives: weighted sums of units, as values that can be added and scaled."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from featmap.errors import UnitError
from featmap.network.unit import Unit

MAX_TERMS = 256


@dataclass(frozen=True)
class Objective:
    """A weighted sum of units.

    Its loss is the weighted sum of the units' losses; its activation J is the weighted sum of the units' means.
    Objectives can be added, subtracted and multiplied by a number.

    Parameters
    ----------
    terms : tuple of (float, Unit)
        Weight and unit of each term; a unit may occur more than once.

    Examples
    --------
    >>> print(0.2 * channel("inception4a", 20) + 0.8 * channel("inception4b", 21))
    0.2 * inception4a:20 + 0.8 * inception4b:21
    """

    terms: tuple[tuple[float, Unit], ...]

    def __add__(self, other: Objective) -> Objective:
        return Objective(self.terms + other.terms)

    def __radd__(self, other: int) -> Objective:
        return self if other == 0 else NotImplemented  # sum() starts with 0

    def __mul__(self, factor: float) -> Objective:
        return Objective(tuple((factor * w, u) for w, u in self.terms))

    __rmul__ = __mul__

    def __neg__(self) -> Objective:
        return self * -1.0

    def __sub__(self, other: Objective) -> Objective:
        return self + -other

    def __str__(self) -> str:
        return " + ".join(str(u) if w == 1 else f"{_format_weight(w)} * {u}" for w, u in self.terms)

    @property
    def layers(self) -> list[str]:
        """The layers of the terms, each once, in the order of the terms."""
        return list(dict.fromkeys(u.layer for _, u in self.terms))

    @staticmethod
    def parse(value: Objective | Unit | str) -> Objective:
        """Convert a unit or a text to an objective.

        Parameters
        ----------
        value : Objective, Unit or str
            A unit, or a sum of units such as ``0.2 * inception4a:20 + inception4b:21``, of at most `MAX_TERMS`
            terms; an objective is returned as it is.

        Returns
        -------
        Objective
            The objective; a unit alone has the weight 1.

        Raises
        ------
        UnitError
            If the text is not a sum of units, a weight is 0 or not finite, or there are too many terms.
        """
        if isinstance(value, Objective):
            return value
        if isinstance(value, Unit):
            return Objective(((1.0, value),))
        terms = re.split(r"\s+\+\s+", value.strip())
        if len(terms) > MAX_TERMS:
            raise UnitError(
                f"a sum of {len(terms):,} units; write {MAX_TERMS} or fewer, or a set of neurons layer:f:m:n+f:m:n"
            )
        return Objective(tuple(_parse_term(term) for term in terms))


def _format_weight(weight: float) -> str:
    """Format a weight so that parsing gives exactly the same number."""
    return str(int(weight)) if weight == int(weight) and abs(weight) < 1e15 else repr(float(weight))


def _parse_term(text: str) -> tuple[float, Unit]:
    """Parse one term of a sum, ``unit`` or ``weight * unit``."""
    factor, star, unit = text.rpartition("*")
    try:
        weight = float(factor) if star else 1.0
    except ValueError:
        weight = math.nan
    if weight == 0:
        raise UnitError(f"{text!r}: a weight of 0 leaves the unit out; remove the term, or give another weight")
    if not math.isfinite(weight):
        raise UnitError(f"{text!r}: {factor.strip()!r} is not a finite number; write 0.5 * layer:channel")
    return weight, Unit.parse(unit)


def channel(layer: str, index: int) -> Objective:
    """Build the objective of one feature.

    Parameters
    ----------
    layer : str
        Name of the layer.
    index : int
        Index of the channel, from 0.

    Returns
    -------
    Objective
        The feature with weight 1.
    """
    return Objective.parse(Unit(layer, index))
