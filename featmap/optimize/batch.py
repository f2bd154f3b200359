"""Batches of descents on a network that is prepared once for each set of layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from featmap.network.hooks import Taps
from featmap.network.model import Network
from featmap.optimize.descent import REDUCED, Descent, OnStep, descend
from featmap.optimize.objective import BatchLoss, Objective
from featmap.optimize.prepare import prepared
from featmap.optimize.recipe import Recipe


class Batches:
    """Descents on one network and device.

    Only rows of the same layers share a pass: how the network is prepared, and what NaN in a deeper layer does
    to the gradients behind it, must not depend on a row's neighbours.
    """

    def __init__(self, network: Network, device: torch.device) -> None:
        self.network, self.device = network, device
        self._modules: dict[tuple[tuple[str, ...], str], nn.Module] = {}

    def module(self, layers: tuple[str, ...], size: int, precision: str = "float32") -> nn.Module:
        """Return the network prepared for descents on these layers, with weights in that precision."""
        if (layers, precision) not in self._modules:
            folds, dtype = self.network.trace(size).folds, REDUCED.get(precision)
            made = prepared(self.network.module, folds, layers, self.device, self.network.layout, dtype)
            self._modules[layers, precision] = made
        return self._modules[layers, precision]

    def descend(
        self,
        objectives: Sequence[Objective],
        recipe: Recipe,
        seed: int | Sequence[int],
        start: Tensor | None = None,
        on_step: OnStep | None = None,
        frames: int = 0,
    ) -> Descent:
        """Return the descents of a batch; see `featmap.optimize.descent.descend` for what is given and returned."""
        groups: dict[tuple[str, ...], list[int]] = {}
        for row, target in enumerate(objectives):
            groups.setdefault(tuple(sorted(target.layers)), []).append(row)
        found: list[Descent] = []
        for layers, rows in groups.items():
            shapes = {size: {la: self.network.layer(la, size).shape for la in layers} for size in set(recipe.sizes)}
            found.append(
                descend(
                    self.module(layers, recipe.size, recipe.precision),
                    self.network.normalise,
                    [objectives[r] for r in rows],
                    recipe,
                    shapes,
                    seed=seed if isinstance(seed, int) else [seed[r] for r in rows],
                    start=start[rows] if start is not None and start.dim() == 4 else start,
                    device=self.device,
                    on_step=on_step if len(found) == len(groups) - 1 else None,
                    frames=frames,
                )
            )
        back = torch.argsort(torch.tensor([r for rows in groups.values() for r in rows]))
        terms = max(f.curve.shape[2] for f in found)
        curves = [functional.pad(f.curve, (0, terms - f.curve.shape[2]), value=float("nan")) for f in found]
        return Descent(
            torch.cat([f.images for f in found])[back],
            torch.cat(curves)[back],
            torch.cat([f.agreement for f in found])[back],
            torch.cat([f.revived for f in found])[back],
            torch.cat([f.moved for f in found])[back],
            tuple(torch.cat(same_step)[back] for same_step in zip(*(f.frames for f in found), strict=True)),
        )

    def influence(self, objectives: Sequence[Objective], images: Tensor, rows: int, layer: str) -> Tensor:
        """Return the gradient of each objective's activation by the channels of `layer`, N x C, summed over their grid.

        At its own image (N x 3 x H x W). NaN where the layer does not lie before the objective's.
        """
        size = int(images.shape[2])
        channels = self.network.layer(layer, size).channels
        found = []
        for first in range(0, len(images), rows):
            chosen = list(objectives[first : first + rows])
            layers = tuple(sorted({la for o in chosen for la in o.layers} | {layer}))
            shapes = {la: self.network.layer(la, size).shape for la in layers}
            with Taps(self.module(layers, size), layers, leaves=(layer,)) as taps:
                outputs = taps.run(self.network.normalise(images[first : first + rows].to(self.device)))
                losses, _ = BatchLoss(chosen, shapes, "l1", 0.0, self.device)(outputs)
            if losses.requires_grad:
                (g,) = torch.autograd.grad(losses.sum(), outputs[layer])
                found.append(-g.sum((2, 3)).float().cpu())
            else:
                found.append(torch.full((len(chosen), channels), torch.nan))
        return torch.cat(found)

    def gradients(self, objectives: Sequence[Objective], images: Tensor, rows: int) -> Tensor:
        """Return the gradient of each objective's activation at its own image, N x 3 x H x W, `rows` at a time.

        `images` is N x 3 x H x W in [0, 1]; the last batch is padded, so that a row depends on itself alone.
        """
        layers, size = tuple(sorted({la for o in objectives for la in o.layers})), int(images.shape[2])
        shapes = {la: self.network.layer(la, size).shape for la in layers}
        module, found = self.module(layers, size), []
        with Taps(module, layers) as taps:
            for first in range(0, len(images), rows):
                chosen = list(objectives[first : first + rows])
                batch = images[first : first + rows]
                short = rows - len(chosen)
                padded = torch.cat([batch, batch[:1].expand(short, -1, -1, -1)]).to(self.device).requires_grad_(True)
                loss = BatchLoss(chosen + chosen[:1] * short, shapes, "l1", 0.0, self.device)
                losses, _ = loss(taps.run(self.network.normalise(padded)))
                (g,) = torch.autograd.grad(losses.sum(), padded)
                found.append(-g[: len(chosen)].detach().float().cpu())
        return torch.cat(found)
