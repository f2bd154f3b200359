"""The descent loop: a batch of images, each with its own objective, from the same noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from featmap import image_ops
from featmap.errors import ModelError, RecipeError
from featmap.image_shape import Size
from featmap.network.directions import Directions, split_name
from featmap.network.hooks import ActivationHooks, Gate, GatedActivations, Layouts
from featmap.network.unit import Shape
from featmap.optimize import parameterization
from featmap.optimize.objective import BatchLoss, Objective, Repulsion
from featmap.optimize.recipe import Octave, Recipe
from featmap.optimize.schedule import interpolate_schedule
from featmap.optimize.transforms import apply_transform

CANCELLATION_TOLERANCE = 1e-5
"""Ratio of the norm of a sum to the sum of its terms' norms, up to which the sum is rounding error and counts as 0."""
REDUCED_PRECISIONS = {"bfloat16": torch.bfloat16}
"""Precisions of a recipe in which the network computes in another type than the image's."""
StepCallback = Callable[[int, Tensor], None]


@dataclass
class Descent:
    """The result of a batch of descents, one entry for each of its R rows.

    Parameters
    ----------
    images : Tensor
        Images as they are to be stored, R x C x H x W, float32.
    curve : Tensor
        Activation of each term's unit before every step, R x steps x terms; NaN where a row has fewer terms.
    agreement : Tensor
        Mean cosine of the terms' own gradients at each step, R x steps, in [-1, 1]; NaN where fewer than two terms have
        one, or where the gradient of the sum was taken in one pass.
    rescued : Tensor
        Whether the row, or one of its terms under `Recipe.rescue_terms`, ever got its gradient through dead ReLUs,
        R booleans.
    had_gradient : Tensor
        Whether the row ever had a gradient, R booleans.
    frames : tuple of Tensor, default ()
        Images at the steps of `frame_steps` as they would be stored, R x C x h x w at the size of their octave; the
        last one is `images`.
    """

    images: Tensor
    curve: Tensor
    agreement: Tensor
    rescued: Tensor
    had_gradient: Tensor
    frames: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class DescentNetwork:
    """A network as the descent loop needs it.

    Parameters
    ----------
    module : nn.Module
        The network, usually a prepared copy with weights in the recipe's precision; its state is restored afterwards.
    normalise : callable
        Maps images in [0, 1] to the module's input.
    shapes : dict of int or (int, int) to dict of str to Shape
        For each size of the recipe, channels, height and width of the objectives' layers.
    device : torch.device or str, default "cpu"
        Device of the module and of the descent.
    layouts : callable, optional
        Finds the layout of a layer's output, see `featmap.network.hooks.ActivationHooks`.
    directions : mapping of str to Directions, optional
        Sets of directions by the names of their layers.
    channels : int, default 3
        Number C of channels of the images.
    """

    module: nn.Module
    normalise: Callable[[Tensor], Tensor]
    shapes: dict[Size, dict[str, Shape]]
    device: torch.device | str = "cpu"
    layouts: Layouts | None = None
    directions: Mapping[str, Directions] | None = None
    channels: int = 3


def sum_gradients(gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Add the gradients of each row's terms and measure how far they agree.

    Parameters
    ----------
    gradients : Tensor
        Gradient of each term, T x R x ...; zero where a row has fewer terms.

    Returns
    -------
    total : Tensor
        Sum over the terms, R x ...; exactly zero where the terms cancel down to rounding, whose direction is
        meaningless.
    agreement : Tensor
        Mean cosine over pairs of terms that both have a gradient, R, in [-1, 1]; NaN where there is no such pair.
    """
    terms = len(gradients)
    total, flat = gradients.sum(0), gradients.flatten(2)
    if terms == 1:
        return total, torch.full_like(flat[0, :, 0], float("nan"))
    norms = torch.linalg.vector_norm(flat, dim=2)
    remains = torch.linalg.vector_norm(total.flatten(1), dim=1) > CANCELLATION_TOLERANCE * norms.sum(0)
    unit = flat / norms.clamp(min=torch.finfo(flat.dtype).tiny)[..., None]
    cosines = torch.stack([(unit[i] * unit[j]).sum(1) for i in range(terms) for j in range(i)])
    both = torch.stack([(norms[i] > 0) & (norms[j] > 0) for i in range(terms) for j in range(i)])
    # 0 / 0 gives the NaN of a row without a pair
    agreement = torch.where(both, cosines.clamp(-1, 1), torch.zeros_like(cosines)).sum(0) / both.sum(0)
    return torch.where(remains.view(-1, *[1] * (total.dim() - 1)), total, torch.zeros_like(total)), agreement


def _rescue(own: Tensor, through_relus: Tensor, alive: Tensor) -> Tensor:
    """Give terms without a gradient the one through dead ReLUs, T x R x ...

    In a row of several terms it gets the mean length of the others' own gradients, or of the longest one through ReLUs
    where all terms are dead: how short it is says how many ReLUs are dead, not how much the term counts.
    """
    combined = torch.where(alive.view(*alive.shape, *[1] * (own.dim() - 2)), own, through_relus)
    if len(own) == 1:
        return combined
    length = torch.linalg.vector_norm(combined.flatten(2), dim=2)
    living = (length * alive).sum(0) / alive.sum(0)  # NaN where no term of the row is alive
    target = torch.where(alive.any(0), living, length.amax(0))
    factor = torch.where(alive | (length == 0), 1.0, target / length)
    return combined * factor.view(*factor.shape, *[1] * (own.dim() - 2))


def descend(
    network: DescentNetwork,
    objectives: Sequence[Objective],
    recipe: Recipe,
    *,
    seed: int | Sequence[int] = 0,
    start: Tensor | None = None,
    on_step: StepCallback | None = None,
    frames: int = 0,
    repulsion: Repulsion | None = None,
) -> Descent:
    """Maximise a batch of objectives by gradient descent on their losses.

    For a sum of units, `Recipe.gradients` selects whether each unit's gradient is computed alone and then added to the
    others, which also measures how far they agree, or the gradient of the summed loss is computed in one pass. The
    article describes both ways.

    Parameters
    ----------
    network : DescentNetwork
        The network, its input and the shapes of the objectives' layers.
    objectives : sequence of Objective
        1 to `recipe.rows` objectives, one for each row; the batch is padded to `recipe.rows` with the first one.
    recipe : Recipe
        The resolved recipe.
    seed : int or sequence of int, default 0
        Seed of the noise and of the jitter: one for all rows, or one for each objective.
    start : Tensor or None, default None
        Image to start from instead of noise: C x H x W, or one for each objective, N x C x H x W.
    on_step : callable or None, default None
        Called after each step with the step's number and the activations of all rows' terms, R x T.
    frames : int, default 0
        Interval, in steps, at which images are kept, beside the first and the last; 0 keeps none.
    repulsion : Repulsion or None, default None
        Other images made for each objective, from which its image is pushed away.

    Returns
    -------
    Descent
        Images and records of the objectives' rows, without the padding, on the CPU.

    Raises
    ------
    RecipeError
        If there are no objectives or more than `recipe.rows`.
    ModelError
        If no gradient flows from the objectives' layers to the image.

    References
    ----------
    The article, sections "Feature Visualization from First Principles" and "Layer and Neuron Interactions".
    """
    batch = PaddedBatch(network, objectives, recipe, seed, start, repulsion)
    loop, image, count = batch.loop, batch.image, len(objectives)
    loop.on_step, loop.every = on_step, frames
    with batch.hooks() as hooks:
        for octave in recipe.octaves:
            image = image_ops.resize(image, _size(octave))
            image = loop.run_octave(hooks, batch.loss(octave), image, octave)
    return Descent(
        parameterization.clamp_final(recipe, image)[:count].float().cpu(),
        torch.stack(loop.curve, dim=1)[:count].float().cpu(),
        torch.stack(loop.agreement, dim=1)[:count].float().cpu(),
        loop.rescued[:count].cpu(),
        loop.had_gradient[:count].cpu(),
        tuple(loop.frames),
    )


def _size(octave: Octave) -> Size:
    """Get the size of an octave of a resolved recipe."""
    assert isinstance(octave.size, (int, tuple))
    return octave.size


class PaddedBatch:
    """A batch padded to the recipe's rows, with its loop and initial images.

    Parameters
    ----------
    network, objectives, recipe, seed, start, repulsion
        See `descend`.

    Raises
    ------
    RecipeError
        If there are no objectives or more than `recipe.rows`.
    """

    def __init__(
        self,
        network: DescentNetwork,
        objectives: Sequence[Objective],
        recipe: Recipe,
        seed: int | Sequence[int],
        start: Tensor | None,
        repulsion: Repulsion | None,
    ) -> None:
        count, device = len(objectives), torch.device(network.device)
        if not 0 < count <= recipe.rows:
            raise RecipeError(f"{count} objectives in a batch of {recipe.rows} rows; give 1 to {recipe.rows}")
        padding = recipe.rows - count  # the caller chooses the rows: another batch size may round differently
        self.network, self.recipe, self.device = network, recipe, device
        self.objectives = [*objectives, *[objectives[0]] * padding]
        seeds = [seed] * count if isinstance(seed, int) else list(seed)
        layers = [layer for o in self.objectives for layer in o.layers]
        if repulsion is not None:
            layers.append(repulsion.layer)
        if recipe.contrast and network.directions:  # directions are contrasted with the channels of their layers
            layers += [split_name(la)[0] for la in layers if la in network.directions]
        self.layers = list(dict.fromkeys(layers))
        self.loop = _Loop(
            network.normalise,
            parameterization.PARAMETERISATIONS[recipe.parameterisation](recipe),
            recipe,
            seeds + seeds[:1] * padding,
            torch.zeros(recipe.rows, dtype=torch.bool, device=device),
            torch.zeros(recipe.rows, dtype=torch.bool, device=device),
            count=count,
            reads_device=device.type == "cpu",
            repulsion=None if repulsion is None else repulsion.rows(range(count), padding, device),
        )
        image = _initial_images(recipe, seeds, start, network.channels, device)
        self.image = torch.cat([image, image[:1].expand(padding, -1, -1, -1)]).contiguous()

    def hooks(self) -> ActivationHooks:
        """Make the hooks that read the batch's layers.

        Returns
        -------
        ActivationHooks
            They are open inside a `with` statement.
        """
        network = self.network
        return ActivationHooks(network.module, self.layers, (), network.layouts, network.directions)

    def loss(self, octave: Octave) -> BatchLoss:
        """Build the loss of the rows.

        Parameters
        ----------
        octave : Octave
            Part of the recipe, whose size counts.

        Returns
        -------
        BatchLoss
            Loss at the size of the octave.
        """
        network, recipe = self.network, self.recipe
        return BatchLoss(
            self.objectives,
            network.shapes[_size(octave)],
            recipe.metric,
            recipe.C,
            self.device,
            (recipe.contrast, recipe.spread),
            network.directions,
        )

    def try_steps(self) -> list[Tensor]:
        """Compute one step at each size of the recipe, from the initial images.

        It serves to compare batches of different numbers of rows, see `featmap.optimize.comparison.find_least_rows`.

        Returns
        -------
        list of Tensor
            Outputs of the layers, losses, activations, gradients and images, R x ... each, with the padding.
        """
        results, image = list[Tensor](), self.image
        with self.hooks() as hooks:
            for octave in {_size(o): o for o in self.recipe.octaves}.values():
                image = image_ops.resize(image, _size(octave))  # from the size before, as in the descent
                results += self.loop.try_step(hooks, self.loss(octave), image, octave)
        return results


def _initial_images(
    recipe: Recipe, seeds: Sequence[int], start: Tensor | None, channels: int, device: torch.device
) -> Tensor:
    """Compute each row's initial image, N x C x H x W; an image that rows share is moved to the device once."""
    if start is not None and start.dim() == 4:
        each = [parameterization.initial_image(recipe, s, one) for s, one in zip(seeds, start, strict=True)]
        return torch.stack(each).to(device)
    distinct = list(dict.fromkeys(seeds))
    images = torch.stack([parameterization.initial_image(recipe, s, start, channels) for s in distinct]).to(device)
    return images[torch.tensor([distinct.index(s) for s in seeds], device=device)]


@dataclass
class _Loop:
    """The steps of one batch, and their records."""

    normalise: Callable[[Tensor], Tensor]
    parameterisation: parameterization.Parameterisation
    recipe: Recipe
    seeds: list[int]
    rescued: Tensor
    had_gradient: Tensor
    on_step: StepCallback | None = None
    every: int = 0
    count: int = 0
    """Rows of the batch that are not padding."""
    reads_device: bool = True
    """Whether to read back if any row lacks a gradient: on a GPU that would synchronise the device at every step."""
    repulsion: Repulsion | None = None
    any_dead: bool = True
    """Whether a row lacked a gradient at the last step; the next forward pass then runs with gates from the start."""
    curve: list[Tensor] = field(default_factory=list)
    agreement: list[Tensor] = field(default_factory=list)
    frames: list[Tensor] = field(default_factory=list)

    def run_octave(self, hooks: ActivationHooks, loss: BatchLoss, image: Tensor, octave: Octave) -> Tensor:
        """Run one octave's steps and return the images."""
        recipe, parameters = self.recipe, self.parameterisation.to_parameters(image)
        # a new optimiser for each octave: Adam's averages have the shape of the parameters at one size
        optimiser = parameterization.Optimiser(recipe.optimiser, recipe.betas)
        if not self.curve:
            self._record_frame(parameters)
        for i in range(octave.steps):
            step = len(self.curve)
            gradient, agreement, means = self._gradient(hooks, loss, parameters, step)
            self.had_gradient |= gradient.flatten(1).any(1)
            if self.repulsion is not None:
                gradient = self._repel(hooks, loss, parameters, gradient, step)
            rate = interpolate_schedule(octave.rate, i, octave.steps)
            sigma = interpolate_schedule(octave.sigma, i, octave.steps)
            parameters = parameters - rate * optimiser(gradient)
            parameters = parameterization.blur_and_clamp(recipe, parameters, sigma)
            self.curve.append(means)
            self.agreement.append(agreement)
            if self.on_step is not None:
                self.on_step(step, means)
            self._record_frame(parameters)
        return self.parameterisation.to_images(parameters).detach()

    def try_step(self, hooks: ActivationHooks, loss: BatchLoss, image: Tensor, octave: Octave) -> list[Tensor]:
        """Compute one step and return the results of all its parts, R x ... each.

        Every part of the network gets a gradient in every row: all of the layers' outputs count, with random weights,
        and the gates of flat activations are open. Zeros would hide differences: a sum with one term that is not 0
        rounds alike in any order.
        """
        recipe, parameters, gate = self.recipe, self.parameterisation.to_parameters(image), Gate()
        gate.open, p = True, parameters.detach().requires_grad_(True)
        with GatedActivations(gate) if recipe.rescue else nullcontext():
            outputs = self._outputs(hooks, loss, self.normalise(self._shown(p, 0)))
            losses, means = loss.compute_terms(outputs)
        generator, total = torch.Generator().manual_seed(0), losses.sum()
        for output in outputs.values():
            weights = torch.randn(output.shape[1:], generator=generator).to(output)
            total = total + (torch.where(output.isfinite(), output, 0.0) * weights).sum()
        (gradient,) = torch.autograd.grad(total, p)
        added, agreement = sum_gradients(torch.stack([gradient.roll(k, -1) for k in range(losses.shape[1])]))
        if self.repulsion is not None:
            added = self._repel(hooks, loss, parameters, added, 0)
        optimiser = parameterization.Optimiser(recipe.optimiser, recipe.betas)
        optimiser(gradient.flip(-1))  # Adam's first step is a sign, in which differences vanish
        moved = parameters - octave.rate[0] * optimiser(added)
        moved = parameterization.blur_and_clamp(recipe, moved, octave.sigma[0])
        images = self.parameterisation.to_images(moved)
        parts = [*outputs.values(), losses, means, gradient, added, agreement, moved, images]
        return [part.detach() for part in parts]

    def _record_frame(self, parameters: Tensor) -> None:
        """Keep the current images if this is one of the frame steps."""
        step = len(self.curve)
        if self.every and (step % self.every == 0 or step == self.recipe.steps):
            image = self.parameterisation.to_images(parameters).detach()
            self.frames.append(parameterization.clamp_final(self.recipe, image)[: self.count].float().cpu())

    def _gradient(
        self, hooks: ActivationHooks, loss: BatchLoss, parameters: Tensor, step: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the gradient, the agreement of its terms, and the terms' activations.

        In the first steps a row or term without a gradient gets the one through dead ReLUs, by a second backward pass.
        """
        p, gate = parameters.detach().requires_grad_(True), Gate()
        rescues = step < self.recipe.rescue * self.recipe.steps
        # A gated pass keeps its graph for a second backward pass, so it is used only if one is likely: a row that was
        # dead at the last step mostly still is. A device that is not read back always takes both backward passes.
        gated = rescues and (self.any_dead or not self.reads_device)
        losses, means = self._losses(hooks, loss, p, step, gate if gated else None)
        terms = self._backward(losses, p, keep=gated)
        gradient, agreement = sum_gradients(terms)
        if not rescues:
            return gradient, agreement, means
        # what needs a gradient: each term of a row, or the row
        parts = terms if self.recipe.rescue_terms else gradient[None]
        alive = parts.flatten(2).any(2)
        if self.reads_device:
            self.any_dead = any_dead = not bool(alive.all())
            if not any_dead:
                return gradient, agreement, means
        if not gated:
            losses, _ = self._losses(hooks, loss, p, step, gate)
        gate.open = True
        through_relus = self._backward(losses, p)
        if not self.recipe.rescue_terms:
            through_relus = sum_gradients(through_relus)[0][None]
        combined = _rescue(parts, through_relus, alive)
        self.rescued |= (~alive & combined.flatten(2).any(2)).any(0)
        # Living rows keep their own gradient to the bit: a row must not depend on whether its neighbours are dead.
        all_alive = alive.all(0).view(-1, *[1] * (gradient.dim() - 1))
        return torch.where(all_alive, gradient, sum_gradients(combined)[0]), agreement, means

    def _repel(
        self, hooks: ActivationHooks, loss: BatchLoss, parameters: Tensor, gradient: Tensor, step: int
    ) -> Tensor:
        """Add to each row's gradient one away from other images, unless either is 0 or rounding error."""
        assert self.repulsion is not None
        p = parameters.detach().requires_grad_(True)
        outputs = self._outputs(hooks, loss, self.normalise(self._shown(p, step)))
        cosine, remainder = self.repulsion.similarity(outputs[self.repulsion.layer])
        (away,) = torch.autograd.grad(cosine.sum(), p)
        one, two = (torch.linalg.vector_norm(g.flatten(1), dim=1) for g in (gradient, away))
        # where the responses are proportional to those of another image, the gradient of the cosine is rounding error
        pushed = (remainder > CANCELLATION_TOLERANCE) & (two > 0) & two.isfinite()
        factor = torch.where(pushed, self.repulsion.strength * one / two, torch.zeros_like(one))
        return gradient + factor.view(-1, *[1] * (gradient.dim() - 1)) * torch.nan_to_num(away)

    def _shown(self, p: Tensor, step: int) -> Tensor:
        """Compute the images that the network sees in a step."""
        images = apply_transform(self.parameterisation.to_images(p), self.seeds, step, self.recipe.transform)
        return image_ops.jitter(images, self.seeds, step, self.recipe.jitter)

    def _losses(
        self, hooks: ActivationHooks, loss: BatchLoss, p: Tensor, step: int, gate: Gate | None
    ) -> tuple[Tensor, Tensor]:
        """Compute losses and activations of the rows' terms, R x T each, with `gate` in every flat activation."""
        shown = self._shown(p, step)
        with nullcontext() if gate is None else GatedActivations(gate):
            losses, means = loss.compute_terms(self._outputs(hooks, loss, self.normalise(shown)))
        if not losses.requires_grad:
            raise ModelError(
                f"no gradient flows from {' or '.join(map(repr, hooks.layers))} to the image, so that no image can be "
                "optimised for it: the forward method computes under torch.no_grad or torch.inference_mode, detaches, "
                "or leaves torch; change that, or choose a layer before it"
            )
        return losses, means

    def _backward(self, losses: Tensor, p: Tensor, keep: bool = False) -> Tensor:
        """Compute the gradient of each term's losses, T x R x ..., or of their sum, 1 x R x ...; `keep` the graph."""
        # The sum over rows gives each row its own gradient: no row's loss depends on another row's image.
        if self.recipe.gradients == "together":
            totals = [losses.sum()]
        else:
            totals = [losses[:, k].sum() for k in range(losses.shape[1])]
        kept = [keep or k < len(totals) - 1 for k in range(len(totals))]
        return torch.stack(
            [torch.autograd.grad(t, p, retain_graph=again)[0] for t, again in zip(totals, kept, strict=True)]
        )

    def _outputs(self, hooks: ActivationHooks, loss: BatchLoss, images: Tensor) -> dict[str, Tensor]:
        """Run the module on normalised images and return the layers' outputs in the images' own type."""
        dtype = REDUCED_PRECISIONS.get(self.recipe.precision)
        if dtype is None:
            return hooks.run(images, loss.needed)
        outputs = hooks.run(images.to(dtype), loss.needed)
        return {layer: values.to(images.dtype) for layer, values in outputs.items()}
