"""The probe: responses and activations of the untouched network, in float32."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from featmap.image_shape import as_size
from featmap.network.directions import Directions, Projection, split_name
from featmap.network.hooks import ActivationHooks
from featmap.network.model import Network
from featmap.network.modules import copy_module, place_module
from featmap.network.unit import Unit
from featmap.optimize.comparison import BatchKind, choose_rows
from featmap.optimize.objective import BatchLoss, Objective

PASSES = 8.0
"""Passes of one kind that a probe is expected to make: so many have to pay for the choice of the number of rows."""
SMOOTH_WIDTH = 0.3
"""Width of the softplus that second derivatives take a ReLU for, as a share of the root mean square of its input."""
_NO_DERIVATIVE, _WHOLE = re.compile("derivative|differentia"), 1e-3
"""Messages of operations that torch cannot differentiate twice; share by which a sum may differ from the whole."""
_DERIVATIVE_ROWS = 4  # of which the graphs of three passes are kept


class _FloatTypes(TorchFunctionMode):
    """Collect the floating-point types of all tensors that are computed inside this context."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[torch.dtype] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.is_floating_point():
            self.found.add(result.dtype)
        return result


class _SmoothGates(TorchFunctionMode):
    """Give every ReLU and hardtanh (ReLU6) inside this context the derivatives of a softplus; their values stay."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func not in _GATES:
            return func(*args, **named)
        given, options = (args[0], tuple(args[1:])) if args else (named["input"], ())
        edges = _GATES[func]
        if func is functional.hardtanh:
            bounds: list[Any] = list(options[:2]) + list(edges[len(options) :])
            edges, options = (named.get("min_val", bounds[0]), named.get("max_val", bounds[1])), options[2:]
        in_place = func in _IN_PLACE or named.get("inplace", False) or any(options)
        smooth = _smooth_gate(given.clone() if in_place else given, edges)  # what the graph keeps is not overwritten
        return given.copy_(smooth) if in_place else smooth


def _smooth_gate(z: Tensor, edges: tuple[float, ...]) -> Tensor:
    """Clip z below the first edge and above the second, as a parabola at z with the derivatives of softplus."""
    value, shift = z.detach(), z - z.detach()
    rms = value.flatten(1).square().mean(1).sqrt().view(-1, *[1] * (z.dim() - 1))  # of each image alone
    sharpness = torch.where(rms > 0, 1 / (SMOOTH_WIDTH * rms), 0)
    slope, bend = torch.zeros_like(value), torch.zeros_like(value)
    for sign, edge in zip((1, -1), edges, strict=False):
        share = torch.sigmoid((value - edge) * sharpness)
        slope, bend = slope + sign * share, bend + sign * share * (1 - share) * sharpness
    return value.clamp(*edges) + shift * (slope + shift * (bend / 2))


_IN_PLACE = {torch.relu_, Tensor.relu_}
_GATES: dict[Any, tuple[float, ...]] = {
    **dict.fromkeys((functional.relu, torch.relu, Tensor.relu, *_IN_PLACE), (0.0,)),
    functional.relu6: (0.0, 6.0),
    functional.hardtanh: (-1.0, 1.0),
}
"""Functions that `_SmoothGates` replaces, with their kinks."""


class Probe:
    """Measure the untouched network's responses to images.

    Images are taken `rows` at a time and the last batch is padded, so that a response depends on the image alone: a
    batch of another size may round differently. It is padded to fewer rows where these are shown to give the same bits.

    Parameters
    ----------
    network : Network
        The network; a module that lies on another device is copied, not moved.
    rows : int, default 16
        Number of images in a batch.
    device : torch.device or str, default "cpu"
        Device of the forward passes.
    """

    def __init__(self, network: Network, rows: int = 16, device: torch.device | str = "cpu") -> None:
        self.network, self.rows, self.device = network, rows, torch.device(device)
        self.module = place_module(network.module, self.device)
        self._exact: nn.Module | None = None

    def responses(self, images: Tensor, layers: Sequence[str]) -> dict[str, np.ndarray]:
        """Measure the responses of all features of some layers.

        Parameters
        ----------
        images : Tensor
            N x C x H x W in [0, 1]; pixels outside of it are taken as they are.
        layers : sequence of str
            Names of the layers.

        Returns
        -------
        dict of str to ndarray
            For each layer the mean over each feature's grid, N x C, float32.

        References
        ----------
        The article, section "Feature Visualization from First Principles" (its plot of average activations).
        """
        batches = [{k: v.cpu().numpy() for k, v in means.items()} for _, means in self._measure(images, layers)]
        return {k: np.concatenate([b[k] for b in batches]) for k in layers}

    def activation_maps(self, images: Tensor, layers: Sequence[str]) -> dict[str, np.ndarray]:
        """Measure the outputs of some layers.

        Parameters
        ----------
        images : Tensor
            N x C x H x W in [0, 1].
        layers : sequence of str
            Names of the layers.

        Returns
        -------
        dict of str to ndarray
            For each layer N x C x H x W, float32.
        """
        batches = [{k: v.cpu().numpy() for k, v in out.items()} for out in self.outputs(images, layers)]
        return {k: np.concatenate([b[k] for b in batches]) for k in layers}

    def measure_units(
        self, images: Tensor, layers: Sequence[str], units: Sequence[Unit]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Measure layers' responses and units' activations in one pass.

        Parameters
        ----------
        images : Tensor
            N x C x H x W in [0, 1].
        layers : sequence of str
            Names of the layers whose features are measured; may be empty.
        units : sequence of Unit
            U units; may be empty.

        Returns
        -------
        responses : ndarray
            Responses of all features of the layers, N x C over all layers in their order, float32.
        activations : ndarray
            Mean over each unit's own neurons, N x U, float32.
        """
        size = as_size(tuple(images.shape[2:]))
        masks = [unit.mask(self.network.layer(unit.layer, size).shape) for unit in units]
        responses, activations = [], []
        for out, means in self._measure(images, list(dict.fromkeys([*layers, *(u.layer for u in units)]))):
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
        """Compute the outputs of some layers, a batch of images at a time.

        Parameters
        ----------
        images : Tensor
            N x C x H x W in [0, 1].
        layers : sequence of str
            Names of the layers.

        Yields
        ------
        dict of str to Tensor
            Outputs for the next n images, n x C x H x W in float32, on the probe's device.
        """
        layouts, directions = self.network.find_layout, self.network.directions
        with torch.no_grad(), ActivationHooks(self.module, layers, (), layouts, directions) as hooks:
            for first in range(0, len(images), self.rows):
                batch = images[first : first + self.rows].float()
                yield {k: v[: len(batch)].float() for k, v in self._run(hooks, batch).items()}

    def _measure(self, images: Tensor, layers: Sequence[str]) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """Yield, batch by batch, layers' outputs and their means over the grid."""
        directions = self.network.directions
        copies = {la: directions[la].copies for la in layers if la in directions}
        bases = {la: split_name(la)[0] for la, pairs in copies.items() if pairs}
        for out in self.outputs(images, list(dict.fromkeys([*layers, *bases.values()]))):
            means = {la: values.mean((2, 3)) for la, values in out.items()}
            for la, base in bases.items():
                # the rounding of a mean depends on the memory order, and a copy of a channel must have its bits
                which, channels = zip(*copies[la], strict=True)
                means[la][:, list(which)] = means[base][:, list(channels)]
            yield out, means

    def mixed_derivatives(self, images: Tensor, one: Tensor, two: Tensor, layers: Sequence[str]) -> np.ndarray:
        """Compute the second derivative of responses along two directions, at images.

        That is u' H v with the Hessian H of each feature's response. The Hessian-vector product of a feature takes two
        passes backward; of all features together it takes three: the second gives the product H v of a weighted sum
        of the responses, which is linear in the weights, and the third its derivatives with respect to these.

        It is exact for smooth networks. A network of ReLUs and max pooling is linear almost everywhere: its Hessian is
        zero but for normalisations, softmax and the like, and says nothing of the kinks in which it computes. So ReLU,
        ReLU6 and hardtanh keep their values but get the derivatives of a softplus, of sharpness 1 / (`SMOOTH_WIDTH`
        times the root mean square of the gate's inputs, of each image): kinks near this image's activations count. Max
        pooling, hard sigmoids and leaky ReLUs stay piecewise linear and add nothing: for these only a difference of
        finite steps measures the effect, and it is the measure for networks of ReLUs, too.

        Parameters
        ----------
        images : Tensor
            N x C x H x W in [0, 1].
        one, two : Tensor
            Directions at each image, of the same shape.
        layers : sequence of str
            Names of the layers whose features are measured.

        Returns
        -------
        ndarray
            N x D over all layers in their order, float32, in units of the responses; all NaN where an operation of the
            network has no second derivative in torch.

        References
        ----------
        Pearlmutter (1994), Fast exact multiplication by the Hessian, doi 10.1162/neco.1994.6.1.147; Dombrowski et al.
        (2019), Explanations can be manipulated and geometry is to blame, arXiv 1906.07983 (softplus for ReLU).
        """
        layouts, directions, found = self.network.find_layout, self.network.directions, []
        with (
            torch.enable_grad(),
            sdpa_kernel(SDPBackend.MATH),  # the other kernels for attention have one derivative
            ActivationHooks(self.module, layers, (), layouts, directions) as hooks,
        ):
            for first in range(0, len(images), _DERIVATIVE_ROWS):
                rows = (v[first : first + _DERIVATIVE_ROWS].to(self.device).float() for v in (images, one, two))
                found.append(self._mixed_derivative(hooks, *rows).detach().cpu().numpy())
        return np.concatenate(found)

    def _mixed_derivative(self, hooks: ActivationHooks, images: Tensor, one: Tensor, two: Tensor) -> Tensor:
        """Compute the second derivatives of a few images."""
        x = images.detach().requires_grad_(True)
        with _SmoothGates():
            responses = torch.cat(
                [out.float().mean((2, 3)) for out in hooks.run(self.network.normalise(x)).values()], 1
            )
        weights = torch.ones_like(responses).requires_grad_(True)
        nothing = torch.zeros_like(responses)
        try:
            total: Tensor = (weights * responses).sum()
            (slope,) = torch.autograd.grad(total, x, create_graph=True)
            along = (slope * one).sum((1, 2, 3))
            (each,) = torch.autograd.grad(along.sum(), weights, retain_graph=True, allow_unused=True)
            # a backward pass without a derivative drops out of the graph silently: the sum is not the whole then
            if each is None or not ((each.sum(1) - along).abs() <= _WHOLE * each.abs().sum(1)).all():
                return torch.full_like(responses, torch.nan)
            (product,) = torch.autograd.grad(along.sum(), x, create_graph=True, allow_unused=True)
            if product is None or not product.requires_grad:  # linear
                return nothing
            (mixed,) = torch.autograd.grad((product * two).sum(), weights, allow_unused=True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if not _NO_DERIVATIVE.search(str(error)):
                raise
            return torch.full_like(responses, torch.nan)
        return nothing if mixed is None else mixed

    def activations(self, images: Tensor, objectives: Sequence[Objective]) -> np.ndarray:
        """Measure the activation J of each objective on its own image.

        Parameters
        ----------
        images : Tensor
            N x C x H x W in [0, 1].
        objectives : sequence of Objective
            The objective of each image, N.

        Returns
        -------
        ndarray
            Weighted sum of the units' means over their own neurons, N, float32.
        """
        return self.measure_objectives(images, objectives, ())[0]

    def activations_and_scales(self, images: Tensor, objectives: Sequence[Objective]) -> dict[str, np.ndarray]:
        """Measure each objective on its own image, with the scale of its activation.

        Parameters
        ----------
        images : Tensor
            N x C x H x W in [0, 1].
        objectives : sequence of Objective
            The objective of each image, N.

        Returns
        -------
        dict of str to ndarray
            `activation` and `scale` as `measure_objectives` gives them, N each, float32.
        """
        activation, _, scale = self.measure_objectives(images, objectives, ())
        return {"activation": activation, "scale": scale}

    def exact_changes(
        self, nulls: Tensor, images: Tensor, objectives: Sequence[Objective], rows: np.ndarray
    ) -> np.ndarray:
        """Measure in float64 how far objectives rise from null images to images.

        Parameters
        ----------
        nulls, images : Tensor
            N x C x H x W in [0, 1].
        objectives : sequence of Objective
            The objective of each row, N.
        rows : ndarray
            The R rows to measure.

        Returns
        -------
        ndarray
            R differences, float64; NaN where the device has no float64, or the network's code insists on another type
            before the objective's layers.
        """
        module, changes = self._double(), np.full(len(rows), np.nan)
        if module is None:
            return changes
        for k, row in enumerate(rows):  # one at a time: little memory, and a row's difference depends on itself alone
            layers, types = list(objectives[row].layers), _FloatTypes()
            try:
                alone = (each[row : row + 1].to(self.device).double() for each in (nulls, images))
                pair = [self.network.normalise(image) for image in alone]
                with (
                    torch.no_grad(),
                    ActivationHooks(module, layers, (), self.network.find_layout, self.network.directions) as hooks,
                ):
                    with types:
                        outputs = [hooks.run(image) for image in pair]
                    null, last = (self.activations_from_outputs(out, [objectives[row]]) for out in outputs)
            except (MemoryError, torch.OutOfMemoryError):
                raise
            except Exception:  # noqa: BLE001 - a network of the user's own may raise anything
                continue
            # a module that computes in another type inside rounds like float32, and decides nothing
            if types.found <= {torch.float64}:
                changes[k] = (last - null)[0]
        return changes

    def _double(self) -> nn.Module | None:
        """Copy the network in float64, once; None where its modules or the device do not allow it."""
        if self._exact is None:
            try:
                self._exact = copy_module(self.module).double()
            except (MemoryError, torch.OutOfMemoryError):
                raise
            except Exception:  # noqa: BLE001 - a network of the user's own may raise anything
                return None
        return self._exact

    def _magnitudes(self, layer: str, outputs: Mapping[str, Tensor], objectives: Sequence[Objective]) -> Tensor:
        """Compute the absolute values of a layer's outputs; of directions, the sums of their terms' absolute values."""
        out, chosen = outputs[layer].abs(), self.network.directions.get(layer)
        if chosen is None:
            return out
        base, shape = outputs[split_name(layer)[0]], (out.shape[1], out.shape[2], out.shape[3])
        units = [(row, unit) for row, o in enumerate(objectives) for _, unit in o.terms if unit.layer == layer]
        needed = sorted({(row, c) for row, unit in units for c in unit.mask(shape)[0]})
        total = Projection(Directions(np.abs(chosen.vectors)), base)(base.abs(), needed)
        if chosen.bias is not None:
            total = total + torch.from_numpy(np.abs(chosen.bias)).to(total)[:, None, None]
        return torch.where(out > 0, total, 0) if chosen.relu else total

    def measure_objectives(
        self, images: Tensor, objectives: Sequence[Objective], layers: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Measure objectives on their own images and layers' responses in one pass.

        Parameters
        ----------
        images : Tensor
            N x C x H x W in [0, 1].
        objectives : sequence of Objective
            The objective of each image, N.
        layers : sequence of str
            Names of the layers whose features are measured; may be empty.

        Returns
        -------
        activations : ndarray
            Activation J of objective i on image i, N, float32.
        responses : ndarray
            Responses of all features of the layers, N x C over all layers in their order, float32.
        scales : ndarray
            What J would be if no values or weights cancelled: the sum over the units of absolute weight times mean
            absolute value, N, float32; of a direction, of the terms of its sum over the channels. A J that is smaller
            by many orders of magnitude is rounding error.
        """
        activations: list[np.ndarray] = []
        responses: list[np.ndarray] = []
        scales: list[np.ndarray] = []
        absolute = [Objective(tuple((abs(w), unit) for w, unit in o.terms)) for o in objectives]
        needed = list(dict.fromkeys([*layers, *(layer for o in objectives for layer in o.layers)]))
        needed = list(dict.fromkeys([*needed, *(split_name(la)[0] for la in needed if la in self.network.directions)]))
        for out, of_features in self._measure(images, needed):
            first, n = sum(len(a) for a in activations), len(next(iter(out.values())))
            activations.append(self.activations_from_outputs(out, objectives[first : first + n]))
            # not those of layers that are only measured, which may be many
            own = dict.fromkeys(la for o in absolute[first : first + n] for la in o.layers)
            sizes = {la: self._magnitudes(la, out, objectives[first : first + n]) for la in own}
            scales.append(self.activations_from_outputs(sizes, absolute[first : first + n]))
            means = [of_features[la] for la in layers]
            responses.append(torch.cat(means, dim=1).cpu().numpy() if means else np.empty((n, 0), np.float32))
        return np.concatenate(activations), np.concatenate(responses), np.concatenate(scales)

    def activations_from_outputs(self, outputs: Mapping[str, Tensor], objectives: Sequence[Objective]) -> np.ndarray:
        """Compute the activation J of each objective from layers' outputs.

        Parameters
        ----------
        outputs : mapping of str to Tensor
            Outputs of the objectives' layers, N x C x H x W, or 1 x C x H x W for one image that all objectives share.
        objectives : sequence of Objective
            The objective of each row, N.

        Returns
        -------
        ndarray
            Activation J of objective i on row i, N, float32.
        """
        n, padding = len(objectives), [objectives[0]] * max(0, self.rows - len(objectives))
        used = {layer: outputs[layer] for o in objectives for layer in o.layers}
        shapes = {layer: (v.shape[1], v.shape[2], v.shape[3]) for layer, v in used.items()}
        padded = {
            layer: torch.cat([v.expand(n, -1, -1, -1), v[:1].expand(len(padding), -1, -1, -1)])
            for layer, v in used.items()
        }
        _, means = BatchLoss([*objectives, *padding], shapes, "l1", 0.0, self.device)(padded)
        return weighted_activations(means, [*objectives, *padding])[:n].cpu().numpy()

    def _run(self, hooks: ActivationHooks, batch: Tensor) -> dict[str, Tensor]:
        """Compute the outputs for a batch, padded to as many rows as it needs."""
        count, full = len(batch), dict[str, Tensor]()

        def compute(rows: int) -> list[Tensor]:
            padded = torch.cat([batch, batch[:1].expand(rows - count, -1, -1, -1)]) if rows > count else batch
            outputs = hooks.run(self.network.normalise(padded.to(self.device)))
            if rows == self.rows:  # the full batch of a check is the answer, too
                full.update(outputs)
            return list(outputs.values())

        kind = BatchKind(tuple(hooks.layers), count, self.rows, as_size(tuple(batch.shape[2:])), self.device)
        rows = choose_rows(self.network, kind, compute, PASSES)
        if not full:
            full.update(zip(hooks.layers, compute(rows), strict=True))
        return full


def weighted_activations(means: Tensor, objectives: Sequence[Objective]) -> Tensor:
    """Compute the activation J of each row from the activations of its terms.

    Parameters
    ----------
    means : Tensor
        Activations of the rows' terms, R x T; NaN where a row has fewer terms.
    objectives : sequence of Objective
        The objective of each row, R.

    Returns
    -------
    Tensor
        Weighted sum over each row's terms, R.
    """
    weights = torch.zeros_like(means)
    for row, target in enumerate(objectives):
        weights[row, : len(target.terms)] = torch.tensor([w for w, _ in target.terms])
    # With a single column nothing is missing: a NaN there is a unit's own and stays.
    return (torch.nan_to_num(means, nan=0.0) * weights).sum(1) if means.shape[1] > 1 else (means * weights)[:, 0]
