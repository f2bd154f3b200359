"""Batches of descents, and of gradients, on a network prepared once for each set of layers; rows of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from featmap.errors import ModelError
from featmap.image_shape import Size, as_size, smallest
from featmap.network.directions import Directions
from featmap.network.hooks import ActivationHooks
from featmap.network.model import Network
from featmap.optimize.comparison import BatchKind, choose_preparation, choose_rows, chosen_rows
from featmap.optimize.descent import REDUCED_PRECISIONS, Descent, DescentNetwork, PaddedBatch, StepCallback, descend
from featmap.optimize.objective import BatchLoss, Objective, Repulsion
from featmap.optimize.prepare import Preparation, copy_settings, prepare
from featmap.optimize.recipe import Recipe


class Batches:
    """Descents and gradients on one network and device.

    Only rows of the same layers share a pass: how the network is prepared, and what NaN in a deeper layer does to the
    gradients of the layers before it, must not depend on a row's neighbours.

    Parameters
    ----------
    network : Network
        The network; it is copied, not changed.
    device : torch.device
        Device of the descents.
    """

    def __init__(self, network: Network, device: torch.device) -> None:
        self.network, self.device = network, device
        self._modules: dict[tuple[tuple[str, ...], str], nn.Module] = {}

    def preparation(self, layers: tuple[str, ...], size: Size, trial_size: Size | None = None) -> Preparation:
        """Choose how the network is prepared for some layers, and remember it.

        Parameters
        ----------
        layers : tuple of str
            Names of the layers, sorted.
        size : int or (int, int)
            Image size at which the network is traced, in pixels.
        trial_size : int, (int, int) or None, default None
            Image size at which copy and network are compared; None takes `size`.

        Returns
        -------
        Preparation
            The choice, see `featmap.optimize.comparison.choose_preparation`.
        """
        layers = tuple(sorted(self.network.base_layers(layers)))
        key = (layers, self.device.type, self.network.layout)
        if key not in self.network.preparations:
            choice = choose_preparation(self.network, layers, trial_size or size, self.device, size)
            self.network.preparations[key] = choice
        return self.network.preparations[key]

    def prepared_module(
        self, layers: tuple[str, ...], size: Size, precision: str = "float32", trial_size: Size | None = None
    ) -> nn.Module:
        """Prepare the network for descents on some layers; later calls reuse the copy.

        Parameters
        ----------
        layers : tuple of str
            Names of the layers, sorted.
        size : int or (int, int)
            Image size at which the network is traced, in pixels.
        precision : str, default "float32"
            Type of the weights, see `featmap.optimize.recipe.Recipe`.
        trial_size : int, (int, int) or None, default None
            Image size at which copy and network are compared, in float32; None takes `size`.

        Returns
        -------
        nn.Module
            The copy that `preparation` chooses; the network's own module where no copy computes the same.

        Raises
        ------
        ModelError
            If no copy computes the same and the precision is not float32.
        """
        layers = tuple(sorted(self.network.base_layers(layers)))
        if (layers, precision) not in self._modules:
            choice, dtype = self.preparation(layers, size, trial_size), REDUCED_PRECISIONS.get(precision)
            if choice.in_place and dtype is not None:
                raise ModelError(
                    f"network {self.network.name} cannot be computed in {precision}: a copy of it computes something "
                    "else; choose a recipe of float32"
                )
            self._modules[layers, precision] = (
                self.network.module
                if choice.in_place
                else prepare(
                    self.network.module,
                    layers=layers,
                    device=self.device,
                    layout=choice.layout,
                    dtype=dtype,
                    **copy_settings(choice.network, self.network.trace(size).folds),
                )
            )
        return self._modules[layers, precision]

    def descend(
        self,
        objectives: Sequence[Objective],
        recipe: Recipe,
        seed: int | Sequence[int],
        start: Tensor | None = None,
        on_step: StepCallback | None = None,
        frames: int = 0,
        repulsion: Repulsion | None = None,
    ) -> Descent:
        """Maximise a batch of objectives, in one descent for each set of layers.

        Parameters
        ----------
        objectives : sequence of Objective
            1 to `recipe.rows` objectives, one for each row.
        recipe : Recipe
            The resolved recipe.
        seed : int or sequence of int
            Seed of the noise and of the jitter: one for all rows, or one for each objective.
        start : Tensor or None, default None
            Image to start from instead of noise: C x H x W, or one for each objective, N x C x H x W.
        on_step : callable or None, default None
            Called after each step of the last set of layers with the step's number and the activations.
        frames : int, default 0
            Interval, in steps, at which images are kept; 0 keeps none.
        repulsion : Repulsion or None, default None
            Other images made for each objective, from which its image is pushed away; all objectives then have the same
            layers.

        Returns
        -------
        Descent
            Images and records in the order of the objectives.

        Raises
        ------
        RecipeError
            If there are more objectives than `recipe.rows`.
        """
        rows_by_layers: dict[tuple[str, ...], list[int]] = {}
        for row, target in enumerate(objectives):
            rows_by_layers.setdefault(tuple(sorted(target.layers)), []).append(row)
        results: list[Descent] = []
        for layers, rows in rows_by_layers.items():
            prepared, chosen = self._prepared(layers, recipe), [objectives[r] for r in rows]
            seeds = seed if isinstance(seed, int) else [seed[r] for r in rows]
            starts = start[rows] if start is not None and start.dim() == 4 else start
            results.append(
                descend(
                    prepared,
                    chosen,
                    replace(recipe, rows=self.rows_needed(chosen, recipe, seeds, starts, repulsion)),
                    seed=seeds,
                    start=starts,
                    on_step=on_step if len(results) == len(rows_by_layers) - 1 else None,
                    frames=frames,
                    repulsion=repulsion,
                )
            )
        order = torch.argsort(torch.tensor([r for rows in rows_by_layers.values() for r in rows]))
        terms = max(d.curve.shape[2] for d in results)
        curves = [functional.pad(d.curve, (0, terms - d.curve.shape[2]), value=float("nan")) for d in results]
        return Descent(
            torch.cat([d.images for d in results])[order],
            torch.cat(curves)[order],
            torch.cat([d.agreement for d in results])[order],
            torch.cat([d.rescued for d in results])[order],
            torch.cat([d.had_gradient for d in results])[order],
            tuple(torch.cat(same_step)[order] for same_step in zip(*(d.frames for d in results), strict=True)),
        )

    def _prepared(self, layers: tuple[str, ...], recipe: Recipe) -> DescentNetwork:
        """Collect what descents on some layers need of the network."""
        network = self.network
        return DescentNetwork(
            self.prepared_module(layers, recipe.size, recipe.precision, smallest(recipe.sizes)),
            network.normalise,
            {size: {la: network.layer(la, size).shape for la in layers} for size in set(recipe.sizes)},
            self.device,
            network.find_layout,
            network.directions,
            network.channels,
        )

    def rows_needed(
        self,
        objectives: Sequence[Objective],
        recipe: Recipe,
        seed: int | Sequence[int] = 0,
        start: Tensor | None = None,
        repulsion: Repulsion | None = None,
    ) -> int:
        """Find the least number of rows that gives the images of a full batch.

        One step at each size of the recipe is computed and compared, where this pays; see
        `featmap.optimize.comparison.find_least_rows`.

        Parameters
        ----------
        objectives : sequence of Objective
            1 to `recipe.rows` objectives of the same layers.
        recipe : Recipe
            The resolved recipe.
        seed, start, repulsion
            See `descend`.

        Returns
        -------
        int
            Number of rows, at most `recipe.rows`.
        """
        layers = tuple(sorted(objectives[0].layers))
        step = _one_step(recipe)

        def compute(rows: int) -> list[Tensor]:
            few = replace(step, rows=rows)
            return PaddedBatch(self._prepared(layers, recipe), objectives, few, seed, start, repulsion).try_steps()

        settings = _Descents(
            step, max(len(o.terms) for o in objectives), None if repulsion is None else repulsion.layer
        )
        kind = BatchKind(layers, len(objectives), recipe.rows, settings, self.device)
        return choose_rows(self.network, kind, compute, recipe.steps / len(set(recipe.sizes)))

    def channel_gradients(self, objectives: Sequence[Objective], images: Tensor, rows: int, layer: str) -> Tensor:
        """Compute the gradient of each objective with respect to a layer's channels.

        Parameters
        ----------
        objectives : sequence of Objective
            N objectives.
        images : Tensor
            The image of each objective, N x C x H x W.
        rows : int
            Number of images computed together.
        layer : str
            Name of the layer of C channels, or of a layer of K directions.

        Returns
        -------
        Tensor
            Gradients of the activations, summed over the layer's grid, N x C, float32; NaN where the layer does not lie
            before the objective's layers. For directions N x K, see `along_directions`.
        """
        size, network, target = as_size(tuple(images.shape[2:])), self.network, layer
        (layer,) = network.base_layers([layer])
        channels = network.layer(layer, size).channels
        gradients = []
        for first in range(0, len(images), rows):
            chosen = list(objectives[first : first + rows])
            layers = tuple(sorted({la for o in chosen for la in o.layers} | {layer}))
            shapes = {la: network.layer(la, size).shape for la in layers}
            module, leaves = self.prepared_module(layers, size), (layer,)
            with ActivationHooks(module, layers, leaves, network.find_layout, network.directions) as hooks:
                outputs = hooks.run(network.normalise(images[first : first + rows].to(self.device)))
                losses, _ = BatchLoss(chosen, shapes, "l1", 0.0, self.device)(outputs)
            if losses.requires_grad:
                # The l1 loss at C = 0 is the negative sum of the unit's neurons.
                (gradient,) = torch.autograd.grad(losses.sum(), outputs[layer])
                gradients.append(-gradient.sum((2, 3)).float().cpu())
            else:
                gradients.append(torch.full((len(chosen), channels), torch.nan))
        chosen_set = network.directions.get(target)
        return torch.cat(gradients) if chosen_set is None else along_directions(torch.cat(gradients), chosen_set)

    def image_gradients(self, objectives: Sequence[Objective], images: Tensor, rows: int) -> Tensor:
        """Compute the gradient of each objective's activation with respect to its image.

        Parameters
        ----------
        objectives : sequence of Objective
            N objectives.
        images : Tensor
            The image of each objective, N x C x H x W in [0, 1].
        rows : int
            Number of images computed together; the last batch is padded, so that a row depends on itself alone.

        Returns
        -------
        Tensor
            Gradients, N x C x H x W, float32.
        """
        layers, size = tuple(sorted({la for o in objectives for la in o.layers})), as_size(tuple(images.shape[2:]))
        shapes = {la: self.network.layer(la, size).shape for la in layers}
        module, gradients = self.prepared_module(layers, size), []
        layouts, directions = self.network.find_layout, self.network.directions
        with ActivationHooks(module, layers, layouts=layouts, directions=directions) as hooks:
            for first in range(0, len(images), rows):
                chosen = list(objectives[first : first + rows])
                batch = images[first : first + rows]
                padding = rows - len(chosen)
                padded = torch.cat([batch, batch[:1].expand(padding, -1, -1, -1)]).to(self.device).requires_grad_(True)
                loss = BatchLoss(chosen + chosen[:1] * padding, shapes, "l1", 0.0, self.device)
                losses, _ = loss(hooks.run(self.network.normalise(padded), loss.needed))
                (gradient,) = torch.autograd.grad(losses.sum(), padded)
                gradients.append(-gradient[: len(chosen)].detach().float().cpu())
        return torch.cat(gradients)


def list_chosen_rows(network: Network, recipe: Recipe, layers: Sequence[str]) -> list[dict[str, Any]]:
    """List the numbers of rows that this process chose for batches of a run.

    Parameters
    ----------
    network : Network
        The network.
    recipe : Recipe
        The resolved recipe.
    layers : sequence of str
        Layers that the run maximises or measures; choices for others, made for another run, are left out.

    Returns
    -------
    list of dict
        Plain JSON values: `layers`, number of `images`, `rows` of their batch, and the `pass`, which is "descent" or
        "probe"; each once. Batches that were not tried, full ones among them, are not listed.
    """
    records, of_run = list[dict[str, Any]](), {*layers, *network.base_layers(layers)}
    for (kind, *_), rows in chosen_rows(network).items():
        settings, is_descent = kind.settings, isinstance(kind.settings, _Descents)
        if settings.step == _one_step(recipe) if isinstance(settings, _Descents) else settings in recipe.sizes:
            what = "descent" if is_descent else "probe"
            record = {"layers": list(kind.layers), "images": kind.images, "rows": rows, "pass": what}
            if of_run.issuperset(kind.layers) and record not in records:
                records.append(record)
    return records


@dataclass(frozen=True)
class _Descents:
    """Settings that the kernels of descents depend on."""

    step: Recipe
    terms: int
    repulsion: str | None


def _one_step(recipe: Recipe) -> Recipe:
    """Shorten a recipe to one step at each size: numbers of steps change no shapes."""
    return replace(recipe, octaves=tuple(replace(octave, steps=1) for octave in recipe.octaves))


def along_directions(gradients: Tensor, directions: Directions) -> Tensor:
    """Convert gradients with respect to channels to derivatives along directions.

    Parameters
    ----------
    gradients : Tensor
        N x C.
    directions : Directions
        K directions in the space of the C channels.

    Returns
    -------
    Tensor
        N x K: the derivative along the smallest change of the channels that raises the direction, before its ReLU, by
        1.
    """
    vectors = torch.from_numpy(directions.vectors).double()
    return (gradients.double() @ (vectors / vectors.square().sum(1, keepdim=True)).T).float()
