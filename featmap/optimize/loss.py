"""Losses: the distance of each unit's neurons to the constant C, for a batch of objectives."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from featmap.network.unit import Shape
from featmap.optimize.objective import Objective

Loss = Callable[[Tensor, Tensor | None, float], Tensor]
"""A metric's loss: outputs (K x P x H x W), mask or None, and C, to one loss for each of the K units."""
METRIC_LOSSES: dict[str, Loss] = {}
_VECTOR_KINDS = {"row", "neuron", "neurons"}


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
    contrast : float, default 0.0
        Weight of the mean of all features of the unit's layer, at the unit's positions, that is subtracted from each
        of the unit's neurons.
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        shapes: dict[str, Shape],
        metric: str,
        C: float,
        device: torch.device | str = "cpu",
        contrast: float = 0.0,
    ) -> None:
        self.rows, self.C, self.contrast = len(objectives), C, contrast
        self.max_terms = max(len(o.terms) for o in objectives)
        # Terms of equal shape are computed together; the key holds all that the shape depends on.
        items_by_key: dict[tuple[str, str, int, bool], list[tuple[int, int, float, list[int], Tensor | None]]]
        items_by_key = defaultdict(list)
        for row, target in enumerate(objectives):
            for term, (weight, unit) in enumerate(target.terms):
                channels, mask = unit.mask(shapes[unit.layer])
                unit_metric = "linf-elementwise" if metric == "linf" and unit.kind in _VECTOR_KINDS else metric
                key = (unit.layer, unit_metric, len(channels), mask is None)
                item = (row, term, weight, channels, None if mask is None else torch.from_numpy(mask))
                items_by_key[key].append(item)
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
            if self.contrast:
                # one row at a time: over many rows at once the rounding of a mean depends on their number
                layer_means = torch.stack([outputs[g.layer][row].mean(0, keepdim=True) for row in g.row_numbers])
                contrasted = values - self.contrast * layer_means
            loss = METRIC_LOSSES[g.metric](contrasted, g.mask, self.C) * g.weights
            losses = losses.index_add(0, g.rows * self.max_terms + g.terms, loss)
            inside = values.detach() if g.mask is None else torch.where(g.mask, values.detach(), 0.0)
            means[g.rows, g.terms] = _reduce_rows(torch.sum, inside) / g.counts
        return losses.view(self.rows, self.max_terms), means
