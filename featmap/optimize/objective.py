"""Objectives: units with weights, as values that add and scale, and the metrics that turn them into a loss."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from featmap.errors import UnitError
from featmap.network.unit import Shape, Unit, parse_unit

Loss = Callable[[Tensor, Tensor | None, float], Tensor]


@dataclass(frozen=True)
class Objective:
    """A weighted sum of units: ``0.2 * channel("inception4a", 20) + 0.8 * channel("inception4b", 21)``.

    Its loss is the weighted sum of the units' losses; its activation J the weighted sum of the units' means.
    """

    terms: tuple[tuple[float, Unit], ...]

    def __add__(self, other: Objective) -> Objective:
        return Objective(self.terms + other.terms)

    def __radd__(self, other: int) -> Objective:
        return self if other == 0 else NotImplemented  # sum() begins with 0

    def __mul__(self, factor: float) -> Objective:
        return Objective(tuple((factor * w, u) for w, u in self.terms))

    __rmul__ = __mul__

    def __neg__(self) -> Objective:
        return self * -1.0

    def __sub__(self, other: Objective) -> Objective:
        return self + -other

    def __str__(self) -> str:
        return " + ".join(str(u) if w == 1 else f"{_written(w)} * {u}" for w, u in self.terms)

    @property
    def layers(self) -> list[str]:
        """The layers that the terms lie in, each once."""
        return list(dict.fromkeys(u.layer for _, u in self.terms))


MOST_TERMS = 256


def _written(weight: float) -> str:
    """Return a weight so that no other weight is written alike."""
    return str(int(weight)) if weight == int(weight) and abs(weight) < 1e15 else repr(float(weight))


def objective(given: Objective | Unit | str) -> Objective:
    """Return the objective of a unit, or of a written sum such as ``0.2 * inception4a:20 + inception4b:21``.

    Raises
    ------
    UnitError
        if the text is no sum of units.
    """
    if isinstance(given, Objective):
        return given
    if isinstance(given, Unit):
        return Objective(((1.0, given),))
    parts = re.split(r"\s+\+\s+", given.strip())
    if len(parts) > MOST_TERMS:
        raise UnitError(f"a sum of {len(parts):,} units; write {MOST_TERMS} at most, or a set layer:f:m:n+f:m:n")
    return Objective(tuple(_term(part) for part in parts))


def _term(text: str) -> tuple[float, Unit]:
    factor, star, unit = text.rpartition("*")
    try:
        weight = float(factor) if star else 1.0
    except ValueError:
        weight = math.nan
    if weight == 0:
        raise UnitError(f"{text!r}: a weight of 0 leaves the unit out; write it without, or another weight")
    if not math.isfinite(weight):
        raise UnitError(f"{text!r}: {factor.strip()!r} is no number; write 0.5 * layer:channel")
    return weight, parse_unit(unit)


def channel(layer: str, index: int) -> Objective:
    """Return the objective that maximises one feature."""
    return objective(Unit(layer, index))


METRIC_LOSSES: dict[str, Loss] = {}


def _metric(name: str) -> Callable[[Loss], Loss]:
    def register(loss: Loss) -> Loss:
        METRIC_LOSSES[name] = loss
        return loss

    return register


def _by_row(reduce: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """Return `reduce` of each row by itself: over many rows at once its rounding depends on how many there are."""
    return torch.stack([reduce(row) for row in values])


def _gap(values: Tensor, mask: Tensor | None, C: float) -> Tensor:
    """Return C - z, and 0 outside the unit whatever lies there (0 times NaN would be NaN)."""
    gap = C - values
    return gap if mask is None else torch.where(mask, gap, torch.zeros_like(gap))


@_metric("l1")
def l1(values: Tensor, mask: Tensor | None, C: float) -> Tensor:
    """Return sum(C - z) over the unit, as the article's code has it.

    The distance is unsigned there, so its gradient is the same for every C. `values` is K x P x H x W, the
    result K.
    """
    return _by_row(torch.sum, _gap(values, mask, C))


@_metric("l2")
def l2(values: Tensor, mask: Tensor | None, C: float) -> Tensor:
    """Return 5 * sqrt(sum((C - z)^2)), with the article's factor (its section "Feature Maps are Metric Invariant")."""
    return 5 * _by_row(torch.linalg.vector_norm, _gap(values, mask, C))


@_metric("linf")
def linf(values: Tensor, mask: Tensor | None, C: float) -> Tensor:
    """Return the largest row sum of |C - z|.

    That is what the article's ``torch.linalg.norm(target - focus, ord=inf)`` computes of a grid. A row or a
    neuron is a vector there, of which it computes the largest element; `BatchLoss` sees to it.
    """
    return _by_row(lambda gap: gap.abs().sum(2).amax(), _gap(values, mask, C))


@_metric("linf-elementwise")
def linf_elementwise(values: Tensor, mask: Tensor | None, C: float) -> Tensor:
    """Return the largest |C - z| over the unit's neurons."""
    return _gap(values, mask, C).abs().flatten(1).amax(1)


_VECTORS = {"row", "neuron", "neurons"}


@dataclass
class _Group:
    """Terms that are computed together: one layer, one number of channels."""

    layer: str
    metric: str
    rows: Tensor
    channels: Tensor
    mask: Tensor | None
    weights: Tensor
    counts: Tensor
    terms: Tensor


class BatchLoss:
    """The losses and activations of a batch in which every row has its own objective.

    Parameters
    ----------
    objectives : one a row
    shapes : (channels, height, width) of every layer they name, at this image size
    metric, C : see `featmap.optimize.recipe.Recipe`
    device : where the layers' outputs lie
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        shapes: dict[str, Shape],
        metric: str,
        C: float,
        device: torch.device | str = "cpu",
    ) -> None:
        self.rows, self.C = len(objectives), C
        self.most_terms = max(len(o.terms) for o in objectives)
        gathered: dict[tuple[str, str, int, bool], list[tuple[int, int, float, list[int], Tensor | None]]]
        gathered = defaultdict(list)
        for row, target in enumerate(objectives):
            for term, (weight, unit) in enumerate(target.terms):
                used, mask = unit.mask(shapes[unit.layer])
                named = "linf-elementwise" if metric == "linf" and unit.kind in _VECTORS else metric
                key = (unit.layer, named, len(used), mask is None)
                gathered[key].append((row, term, weight, used, None if mask is None else torch.from_numpy(mask)))
        self.groups = [
            self._group(layer, named, items, shapes[layer], device) for (layer, named, _, _), items in gathered.items()
        ]

    @staticmethod
    def _group(
        layer: str,
        metric: str,
        items: list[tuple[int, int, float, list[int], Tensor | None]],
        shape: Shape,
        device: torch.device | str,
    ) -> _Group:
        rows, terms, weights, used, masks = zip(*items, strict=True)
        mask = None if masks[0] is None else torch.stack([m for m in masks if m is not None])
        each = len(used[0]) * shape[1] * shape[2]
        counts = torch.full((len(items),), float(each)) if mask is None else mask.flatten(1).sum(1).float()
        return _Group(
            layer,
            metric,
            torch.tensor(rows, device=device),
            torch.tensor(used, device=device),
            None if mask is None else mask.to(device),
            torch.tensor(weights, device=device, dtype=torch.float32),
            counts.to(device),
            torch.tensor(terms, device=device),
        )

    def __call__(self, outputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the loss of each row (R) and the activation of each of its terms (R x T, NaN where it has fewer)."""
        losses, means = self.by_term(outputs)
        return losses.sum(1), means

    def by_term(self, outputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return loss and activation of each row's terms, both R x T; where a row has fewer, 0 and NaN."""
        first = next(iter(outputs.values()))
        losses = first.new_zeros(self.rows * self.most_terms)
        means = first.new_full((self.rows, self.most_terms), float("nan"))
        for g in self.groups:
            values = outputs[g.layer][g.rows[:, None], g.channels]
            loss = METRIC_LOSSES[g.metric](values, g.mask, self.C) * g.weights
            losses = losses.index_add(0, g.rows * self.most_terms + g.terms, loss)
            kept = values.detach() if g.mask is None else torch.where(g.mask, values.detach(), 0.0)
            means[g.rows, g.terms] = _by_row(torch.sum, kept) / g.counts
        return losses.view(self.rows, self.most_terms), means
