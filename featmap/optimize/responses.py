"""The probe: responses of the untouched network, in float32, to exactly the images it is given."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from featmap.network.hooks import Taps
from featmap.network.model import Network
from featmap.network.unit import Unit
from featmap.optimize.objective import BatchLoss, Objective


class Probe:
    """The untouched network on a device, ready to tell its layers' responses.

    Images are taken `rows` at a time, the last batch padded, so that a response depends on the image alone:
    a batch of another size may round differently. A module that lies on another device is copied, not moved.
    """

    def __init__(self, network: Network, rows: int = 16, device: torch.device | str = "cpu") -> None:
        self.network, self.rows, self.device = network, rows, torch.device(device)
        home = next((p.device for p in network.module.parameters()), self.device)
        there = home.type == self.device.type and self.device.index in (None, home.index)
        self.module = network.module if there else copy.deepcopy(network.module).to(self.device)

    def responses(self, images: Tensor, layers: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the mean over the grid of each layer's features: N x C, float32.

        Parameters
        ----------
        images : N x 3 x H x W in [0, 1] (pixels beyond it are taken as they are)
        layers : names of the layers

        Source: the article, section "Feature Visualization from First Principles" (its plot of average activations).
        """
        batches = [{k: v.mean((2, 3)).cpu().numpy() for k, v in out.items()} for out in self.outputs(images, layers)]
        return {k: np.concatenate([b[k] for b in batches]) for k in layers}

    def maps(self, images: Tensor, layers: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the layers' outputs themselves: N x C x H x W, float32."""
        batches = [{k: v.cpu().numpy() for k, v in out.items()} for out in self.outputs(images, layers)]
        return {k: np.concatenate([b[k] for b in batches]) for k in layers}

    def measure(self, images: Tensor, layers: Sequence[str], units: Sequence[Unit]) -> tuple[np.ndarray, np.ndarray]:
        """Return the responses of all features of some layers, N x C, and some units' activations, N x U: one pass."""
        size = int(images.shape[2])
        masks = [unit.mask(self.network.layer(unit.layer, size).shape) for unit in units]
        responses, activations = [], []
        for out in self.outputs(images, list(dict.fromkeys([*layers, *(u.layer for u in units)]))):
            means = {layer: values.mean((2, 3)) for layer, values in out.items()}
            n = len(next(iter(means.values())))
            responses.append(torch.cat([means[la] for la in layers], dim=1) if layers else torch.empty(n, 0))
            of_units = torch.empty(n, len(units))
            for k, (unit, (channels, mask)) in enumerate(zip(units, masks, strict=True)):
                if mask is None:
                    of_units[:, k] = means[unit.layer][:, channels].mean(1)
                else:
                    of_units[:, k] = out[unit.layer][:, channels][:, torch.from_numpy(mask)].mean(1)
            activations.append(of_units)
        return torch.cat(responses).cpu().numpy(), torch.cat(activations).numpy()

    def outputs(self, images: Tensor, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """Yield the layers' outputs, n x C x H x W in float32, a batch of images at a time."""
        with torch.no_grad(), Taps(self.module, layers) as taps:
            for batch, n in self._batches(images):
                yield {k: v[:n].float() for k, v in taps.run(batch).items()}

    def activations(self, images: Tensor, objectives: Sequence[Objective]) -> np.ndarray:
        """Return J of objective i on image i: its units' means over their own neurons, weighted; N, float32."""
        return self.look(images, objectives, ())[0]

    def look(
        self, images: Tensor, objectives: Sequence[Objective], layers: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return J of objective i on image i (N), and the responses of all features of some layers, N x C: one pass."""
        reached: list[np.ndarray] = []
        responses: list[np.ndarray] = []
        wanted = list(dict.fromkeys([*layers, *(layer for o in objectives for layer in o.layers)]))
        for out in self.outputs(images, wanted):
            done, n = sum(len(r) for r in reached), len(next(iter(out.values())))
            reached.append(self.reached(out, objectives[done : done + n]))
            means = [out[la].mean((2, 3)) for la in layers]
            responses.append(torch.cat(means, dim=1).cpu().numpy() if means else np.empty((n, 0), np.float32))
        return np.concatenate(reached), np.concatenate(responses)

    def reached(self, outputs: Mapping[str, Tensor], objectives: Sequence[Objective]) -> np.ndarray:
        """Return J of objective i on row i of some outputs, or on the one row that they have."""
        n, padding = len(objectives), [objectives[0]] * max(0, self.rows - len(objectives))
        used = {layer: outputs[layer] for o in objectives for layer in o.layers}
        shapes = {layer: (v.shape[1], v.shape[2], v.shape[3]) for layer, v in used.items()}
        given = {
            layer: torch.cat([v.expand(n, -1, -1, -1), v[:1].expand(len(padding), -1, -1, -1)])
            for layer, v in used.items()
        }
        _, means = BatchLoss([*objectives, *padding], shapes, "l1", 0.0, self.device)(given)
        return joint(means, [*objectives, *padding])[:n].cpu().numpy()

    def _batches(self, images: Tensor) -> Iterator[tuple[Tensor, int]]:
        for first in range(0, len(images), self.rows):
            batch = images[first : first + self.rows].float()
            n = len(batch)
            if n < self.rows:
                batch = torch.cat([batch, batch[:1].expand(self.rows - n, -1, -1, -1)])
            yield self.network.normalise(batch.to(self.device)), n


def joint(means: Tensor, objectives: Sequence[Objective]) -> Tensor:
    """Return the weighted sum of each row's term activations (R x T, NaN beyond a row's terms): R."""
    weights = torch.zeros_like(means)
    for row, target in enumerate(objectives):
        weights[row, : len(target.terms)] = torch.tensor([w for w, _ in target.terms])
    return (torch.nan_to_num(means, nan=0.0) * weights).sum(1) if means.shape[1] > 1 else (means * weights)[:, 0]
