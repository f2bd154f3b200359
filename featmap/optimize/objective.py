"""Objectives: weighted sums of units, as values that can be added and scaled, and their losses in a batch."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from featmap.errors import UnitError
from featmap.network.directions import Directions, split_name
from featmap.network.unit import Shape, Unit

MAX_TERMS = 256
LEAST_LENGTH = 1e-12
"""Smallest divisor of standardised responses: responses equal to their means then have a cosine of 0, not NaN."""
REPULSION = 0.15
"""Length of the gradient that pushes an image away from others, as a share of the objective's own gradient."""
Loss = Callable[[Tensor, Tensor | None, float], Tensor]
"""A metric's loss: outputs (K x P x H x W), mask or None, and C, to one loss for each of the K units."""
METRIC_LOSSES: dict[str, Loss] = {}
_VECTOR_KINDS = {"row", "neuron", "neurons"}


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


def _register_metric(name: str) -> Callable[[Loss], Loss]:
    """Build a decorator that adds a loss to `METRIC_LOSSES`."""

    def register(loss: Loss) -> Loss:
        METRIC_LOSSES[name] = loss
        return loss

    return register


def _reduce_rows(reduce: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """Apply `reduce` to each row alone: over many rows at once its rounding depends on their number."""
    return torch.stack([reduce(row) for row in values])


def _difference(values: Tensor, mask: Tensor | None, C: float) -> Tensor:
    """Compute C - z, and 0 outside the unit."""
    difference = C - values
    # not a product with the mask: 0 times NaN is NaN
    return difference if mask is None else torch.where(mask, difference, torch.zeros_like(difference))


@_register_metric("l1")
def l1(values: Tensor, mask: Tensor | None, C: float) -> Tensor:
    """Compute sum(C - z) over the unit, as the article's code does.

    The distance is unsigned there, so its gradient is the same for every C.

    Parameters
    ----------
    values : Tensor
        Outputs z of each unit's channels, K x P x H x W.
    mask : Tensor or None
        Neurons that belong to the unit, K x P x H x W of booleans; None where all do.
    C : float
        The constant that the neurons are compared with.

    Returns
    -------
    Tensor
        Loss of each unit, K.
    """
    return _reduce_rows(torch.sum, _difference(values, mask, C))


@_register_metric("l2")
def l2(values: Tensor, mask: Tensor | None, C: float) -> Tensor:
    """Compute 5 * sqrt(sum((C - z)^2)), with the article's factor.

    Parameters
    ----------
    values : Tensor
        Outputs z of each unit's channels, K x P x H x W.
    mask : Tensor or None
        Neurons that belong to the unit, K x P x H x W of booleans; None where all do.
    C : float
        The constant that the neurons are compared with.

    Returns
    -------
    Tensor
        Loss of each unit, K.

    References
    ----------
    The article, section "Feature Maps are Metric Invariant".
    """
    return 5 * _reduce_rows(torch.linalg.vector_norm, _difference(values, mask, C))


@_register_metric("linf")
def linf(values: Tensor, mask: Tensor | None, C: float) -> Tensor:
    """Compute the largest row sum of |C - z|.

    That is what the article's ``torch.linalg.norm(target - focus, ord=inf)`` computes for a grid. For a row or a
    neuron, which are vectors there, it computes the largest element: `BatchLoss` uses `linf_elementwise` for them.

    Parameters
    ----------
    values : Tensor
        Outputs z of each unit's channels, K x P x H x W.
    mask : Tensor or None
        Neurons that belong to the unit, K x P x H x W of booleans; None where all do.
    C : float
        The constant that the neurons are compared with.

    Returns
    -------
    Tensor
        Loss of each unit, K.
    """
    return _reduce_rows(lambda difference: difference.abs().sum(2).amax(), _difference(values, mask, C))


@_register_metric("linf-elementwise")
def linf_elementwise(values: Tensor, mask: Tensor | None, C: float) -> Tensor:
    """Compute the largest |C - z| over the unit's neurons.

    Parameters
    ----------
    values : Tensor
        Outputs z of each unit's channels, K x P x H x W.
    mask : Tensor or None
        Neurons that belong to the unit, K x P x H x W of booleans; None where all do.
    C : float
        The constant that the neurons are compared with.

    Returns
    -------
    Tensor
        Loss of each unit, K.
    """
    return _difference(values, mask, C).abs().flatten(1).amax(1)


@dataclass(frozen=True, eq=False)
class Repulsion:
    """Other images made for each row's unit, from which a descent is pushed away.

    Images are compared by the responses of a layer's features, as by `featmap.stats.facets.unit_vectors` and
    `distances`, but with gradients.

    Parameters
    ----------
    layer : str
        Name of the layer, of C features.
    means : Tensor
        Mean of each feature's response over reference images, C.
    weights : Tensor
        Weight of each feature in each row, R x C.
    vectors : Tensor
        Unit vectors of the K other images of each row's unit, R x K x C.
    strength : float, default 0.15
        Length of the gradient that pushes the image away, as a share of the objective's own.
    """

    layer: str
    means: Tensor
    weights: Tensor
    vectors: Tensor
    strength: float = REPULSION

    def rows(self, rows: Sequence[int], padding: int, device: torch.device) -> Repulsion:
        """Select rows, and pad them with copies of the first.

        Parameters
        ----------
        rows : sequence of int
            Rows to select.
        padding : int
            Number of copies.
        device : torch.device
            Device of the result.

        Returns
        -------
        Repulsion
            For these rows.
        """
        chosen = [*rows, *[rows[0]] * padding]
        parts = (self.means, self.weights[chosen], self.vectors[chosen])
        means, weights, vectors = (part.float().to(device) for part in parts)
        return Repulsion(self.layer, means, weights, vectors, self.strength)

    def similarity(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the similarity of each row's image to the most similar of the others.

        Parameters
        ----------
        outputs : Tensor
            Output of the layer, R x C x H x W.

        Returns
        -------
        cosine : Tensor
            Largest cosine, R, in [-1, 1]; each row depends on itself alone.
        remainder : Tensor
            Norm of the part of a row's standardised responses that is orthogonal to those of that other image, divided
            by the sum of the norms of the responses and of the means, all in the same units; R, without gradient. Where
            it is as small as rounding error, the responses are proportional, and the gradient of the cosine is rounding
            error too.
        """
        responses = torch.nan_to_num(outputs.mean((2, 3)), 0.0, 0.0, 0.0)
        standardised = (responses - self.means) * self.weights
        # one row at a time: over many rows at once the rounding of a product depends on their number
        cosines = [
            (vectors * row).sum(1).amax() / torch.linalg.vector_norm(row).clamp(min=LEAST_LENGTH)
            for row, vectors in zip(standardised, self.vectors, strict=True)
        ]
        return torch.stack(cosines), self._remainders(responses.detach())

    def _remainders(self, responses: Tensor) -> Tensor:
        """Compute each row's remainder, see `similarity`, from its responses, R x C."""
        norm, remainders = torch.linalg.vector_norm, []
        for row, weights, vectors in zip(responses, self.weights, self.vectors, strict=True):
            standardised = (row - self.means) * weights
            products = (vectors * standardised).sum(1)
            rest = standardised - products.amax() * vectors[products.argmax()]
            scale = norm(row * weights) + norm(self.means * weights)
            remainders.append(norm(rest) / scale.clamp(min=LEAST_LENGTH))
        return torch.stack(remainders)


def _typical_response(values: Tensor, spread: float) -> Tensor:
    """Compute mean plus `spread` standard deviations over a row's channels, C x H x W, to 1 x H x W."""
    mean = values.mean(0, True)
    if not spread:
        return mean
    difference = values - mean
    # divided by the largest difference first, so that squares of large and small responses stay in range; where all
    # channels are equal, the root has no derivative and none is taken
    largest = difference.detach().abs().amax(0, True)
    differ = largest > 0
    squares = (difference / torch.where(differ, largest, 1.0)).square()
    return mean + spread * largest * torch.where(differ, squares, 1.0).mean(0, True).sqrt()


@dataclass
class _TermGroup:
    """Terms that are computed together: one layer, one number of channels."""

    layer: str
    metric: str
    rows: Tensor
    channels: Tensor
    mask: Tensor | None
    weights: Tensor
    counts: Tensor
    terms: Tensor
    row_numbers: tuple[int, ...]


class BatchLoss:
    """Losses and activations of a batch in which every row has its own objective.

    Parameters
    ----------
    objectives : sequence of Objective
        One for each of the R rows.
    shapes : dict of str to Shape
        Channels, height and width of every layer of the objectives, at the batch's image size.
    metric : str
        A key of `METRIC_LOSSES`.
    C : float
        The constant that the units' neurons are compared with.
    device : torch.device or str, default "cpu"
        Device of the layers' outputs.
    contrast : float or (float, float), default 0.0
        How much of the layer's typical response is subtracted from each of the unit's neurons that is not exactly 0:
        ``contrast * (mean + spread * deviation)``, mean and standard deviation over all channels at the neuron's
        position; a pair is contrast and spread, a number has spread 0. None is subtracted in a layer of one channel.
        For a direction it is multiplied by the sum of the direction's components: the direction is then read from
        channels less what is typical, and a direction that is a single channel gives what the channel gives.
    directions : mapping of str to Directions, optional
        Sets of directions by the names of their layers; for contrast the outputs hold their base layers too.
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        shapes: dict[str, Shape],
        metric: str,
        C: float,
        device: torch.device | str = "cpu",
        contrast: float | tuple[float, float] = 0.0,
        directions: Mapping[str, Directions] | None = None,
    ) -> None:
        self.rows, self.C = len(objectives), C
        self.contrast, self.spread = contrast if isinstance(contrast, tuple) else (contrast, 0.0)
        known = {la: directions[la] for o in objectives for la in o.layers if directions and la in directions}
        self.sums = {la: torch.from_numpy(d.vectors).sum(1).to(device) for la, d in known.items()}
        self.max_terms = max(len(o.terms) for o in objectives)
        needed: dict[str, set[tuple[int, int]]] = defaultdict(set)
        # Terms of equal shape are computed together; the key holds all that the shape depends on.
        items_by_key: dict[tuple[str, str, int, bool], list[tuple[int, int, float, list[int], Tensor | None]]]
        items_by_key = defaultdict(list)
        for row, target in enumerate(objectives):
            for term, (weight, unit) in enumerate(target.terms):
                channels, mask = unit.mask(shapes[unit.layer])
                needed[unit.layer].update((row, c) for c in channels)
                unit_metric = "linf-elementwise" if metric == "linf" and unit.kind in _VECTOR_KINDS else metric
                key = (unit.layer, unit_metric, len(channels), mask is None)
                item = (row, term, weight, channels, None if mask is None else torch.from_numpy(mask))
                items_by_key[key].append(item)
        # The rows and channels that the losses read, sorted: of directions only these are computed.
        self.needed = {layer: sorted(pairs) for layer, pairs in needed.items()}
        self.groups = [
            self._group(layer, unit_metric, items, shapes[layer], device)
            for (layer, unit_metric, _, _), items in items_by_key.items()
        ]

    @staticmethod
    def _group(
        layer: str,
        metric: str,
        items: list[tuple[int, int, float, list[int], Tensor | None]],
        shape: Shape,
        device: torch.device | str,
    ) -> _TermGroup:
        """Put the terms of one key into tensors."""
        rows, terms, weights, channels, masks = zip(*items, strict=True)
        mask = None if masks[0] is None else torch.stack([m for m in masks if m is not None])
        size = len(channels[0]) * shape[1] * shape[2]
        counts = torch.full((len(items),), float(size)) if mask is None else mask.flatten(1).sum(1).float()
        return _TermGroup(
            layer,
            metric,
            torch.tensor(rows, device=device),
            torch.tensor(channels, device=device),
            None if mask is None else mask.to(device),
            torch.tensor(weights, device=device, dtype=torch.float32),
            counts.to(device),
            torch.tensor(terms, device=device),
            rows,
        )

    def __call__(self, outputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Compute the loss of each row and the activation of each of its terms."""
        losses, means = self.compute_terms(outputs)
        return losses.sum(1), means

    def compute_terms(self, outputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Compute loss and activation of each row's terms.

        Parameters
        ----------
        outputs : dict of str to Tensor
            Outputs of the objectives' layers, R x C x H x W.

        Returns
        -------
        losses : Tensor
            Weighted loss of each term, R x T; 0 where a row has fewer terms.
        means : Tensor
            Activation of each term's unit, R x T, without gradient; NaN where a row has fewer terms.
        """
        first = next(iter(outputs.values()))
        losses = first.new_zeros(self.rows * self.max_terms)
        means = first.new_full((self.rows, self.max_terms), float("nan"))
        for g in self.groups:
            values = outputs[g.layer][g.rows[:, None], g.channels]
            contrasted = values
            base = split_name(g.layer)[0] if g.layer in self.sums else g.layer
            if self.contrast and outputs[base].shape[1] > 1:  # a single channel less the mean of all would be 0
                # one row at a time: over many rows at once the rounding of a mean depends on their number;
                # a feature that is not finite must not spoil the others
                rows = (torch.nan_to_num(outputs[base][row], 0.0, 0.0, 0.0) for row in g.row_numbers)
                typical = torch.stack([_typical_response(row, self.spread) for row in rows])
                if g.layer in self.sums:
                    typical = typical * self.sums[g.layer][g.channels][..., None, None]
                # A silent neuron (exactly 0 behind a ReLU) gets no contrast: its gradient would hide that the row has
                # none of its own, so that it would never be rescued.
                contrasted = values - self.contrast * torch.where(values.detach() != 0, typical, 0.0)
            loss = METRIC_LOSSES[g.metric](contrasted, g.mask, self.C) * g.weights
            losses = losses.index_add(0, g.rows * self.max_terms + g.terms, loss)
            inside = values.detach() if g.mask is None else torch.where(g.mask, values.detach(), 0.0)
            means[g.rows, g.terms] = _reduce_rows(torch.sum, inside) / g.counts
        return losses.view(self.rows, self.max_terms), means
