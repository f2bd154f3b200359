"""The one descent loop: a batch of rows, each with its own objective, from the same noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from featmap import image_ops
from featmap.errors import RecipeError
from featmap.network.hooks import Taps
from featmap.network.unit import Shape
from featmap.optimize import parameterization
from featmap.optimize.objective import BatchLoss, Objective
from featmap.optimize.recipe import Octave, Recipe

ADAM_EPS = 1e-8
LEAK = 0.1
CANCELLED = 1e-5
REDUCED = {"bfloat16": torch.bfloat16}
"""Precisions of a recipe in which the network computes in another type than the image's."""
OnStep = Callable[[int, Tensor], None]


@dataclass
class Descent:
    """What a batch of descents gave, one entry a row.

    `images` R x 3 x H x W, float32, as they are to be stored; `curve` R x steps x terms, the activation of
    each term's unit before every step; `agreement` R x steps, the mean cosine of its terms' gradients at that
    step, NaN where fewer than two of them have one (or where they were taken together); `revived` whether the row
    got its gradient through dead ReLUs; `moved` whether it ever had a gradient at all. `frames` are the images at
    `frame_steps`, as they would be stored, R x 3 x h x w at the size they had then; the last one is `images`.
    """

    images: Tensor
    curve: Tensor
    agreement: Tensor
    revived: Tensor
    moved: Tensor
    frames: tuple[Tensor, ...] = ()


def frame_steps(steps: int, every: int) -> list[int]:
    """Return after how many steps images are kept: at the start, after each `every` steps, and at the end."""
    return [*range(0, steps, every), steps] if every else []


class _Gate:
    """Whether gradients pass, damped, through ReLUs whose input is not above zero."""

    def __init__(self) -> None:
        self.open = False


class _GatedReLU(torch.autograd.Function):
    """A ReLU whose gradient can be taken twice of one pass: as it is, and with the gate open."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: _Gate, in_place: bool) -> Tensor:
        ctx.gate = gate
        ctx.save_for_backward(x <= 0)  # of a NaN neither is true: the gradient passes, as torch has it
        if in_place:
            ctx.mark_dirty(x)
            return x.relu_()
        return x.relu()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (below,) = ctx.saved_tensors
        return torch.where(below, LEAK * grad if ctx.gate.open else torch.zeros_like(grad), grad), None, None


class _GatedReLUs(TorchFunctionMode):
    """Replaces every ReLU that runs inside it by one with a gate."""

    NAMES = frozenset({"relu", "relu_"})

    def __init__(self, gate: _Gate) -> None:
        super().__init__()
        self.gate = gate

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name not in self.NAMES:
            return func(*args, **kwargs)
        x = args[0] if args else kwargs["input"]
        if not x.requires_grad:  # nothing passes back through it
            return func(*args, **kwargs)
        in_place = name == "relu_" or bool(kwargs.get("inplace", args[1] if len(args) > 1 else False))
        if in_place and x._is_view():  # a function of one's own may not overwrite these: what they view would not know
            return x.copy_(_GatedReLU.apply(x, self.gate, False))
        return _GatedReLU.apply(x, self.gate, in_place)


class _Steps:
    """The optimiser's rule; its state is one row's own, so that rows stay independent."""

    def __init__(self, rule: str, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self.rule, self.betas, self.count = rule, betas, 0
        self.first: Tensor | None = None
        self.second: Tensor | None = None

    def __call__(self, gradient: Tensor) -> Tensor:
        """Return the direction to subtract, to be multiplied by the step size."""
        if self.rule == "gradient":
            return gradient
        if self.rule == "rms":
            scale = gradient.flatten(1).square().mean(1).sqrt().view(-1, *[1] * (gradient.dim() - 1))
            return torch.where(scale > 0, gradient / scale, torch.zeros_like(gradient))
        self.count += 1
        if self.first is None or self.second is None:
            self.first, self.second = torch.zeros_like(gradient), torch.zeros_like(gradient)
        one, two = self.betas
        self.first.mul_(one).add_(gradient, alpha=1 - one)
        self.second.mul_(two).addcmul_(gradient, gradient, value=1 - two)
        spread = (self.second / (1 - two**self.count)).sqrt()
        # a gradient of any size gives a step of the same size, so the floor goes by the largest of the image
        floor = spread.flatten(1).amax(1).view(-1, *[1] * (spread.dim() - 1)) * ADAM_EPS
        mean = self.first / (1 - one**self.count)
        return torch.where(spread > 0, mean / (spread + floor), torch.zeros_like(mean))


def joined(gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of each row's gradients and how far they agree.

    Parameters
    ----------
    gradients : T x R x ..., of each row's terms (zero where it has fewer)

    Returns
    -------
    total : R x ...; exactly zero where the terms cancel down to rounding, which points nowhere
    agreement : R, in [-1, 1]: mean cosine over pairs of terms; NaN where fewer than two have a gradient
    """
    terms = len(gradients)
    total, flat = gradients.sum(0), gradients.flatten(2)
    if terms == 1:
        return total, torch.full_like(flat[0, :, 0], float("nan"))
    norms = torch.linalg.vector_norm(flat, dim=2)
    left = torch.linalg.vector_norm(total.flatten(1), dim=1) > CANCELLED * norms.sum(0)
    unit = flat / norms.clamp(min=torch.finfo(flat.dtype).tiny)[..., None]
    cosines = torch.stack([(unit[i] * unit[j]).sum(1) for i in range(terms) for j in range(i)])
    both = torch.stack([(norms[i] > 0) & (norms[j] > 0) for i in range(terms) for j in range(i)])
    agreement = torch.where(both, cosines.clamp(-1, 1), torch.zeros_like(cosines)).sum(0) / both.sum(0)
    return torch.where(left.view(-1, *[1] * (total.dim() - 1)), total, torch.zeros_like(total)), agreement


def descend(
    module: nn.Module,
    normalise: Callable[[Tensor], Tensor],
    objectives: Sequence[Objective],
    recipe: Recipe,
    shapes: dict[int, dict[str, Shape]],
    *,
    seed: int | Sequence[int] = 0,
    start: Tensor | None = None,
    device: torch.device | str = "cpu",
    on_step: OnStep | None = None,
    frames: int = 0,
) -> Descent:
    """Make the maximising images of up to `recipe.rows` objectives.

    Where an objective is a sum, each unit's gradient is taken by itself and then they are added: the article's
    other way of writing it, which here tells how far the gradients agree. (`recipe.gradients` has the choice.)

    Parameters
    ----------
    module : the network, usually a prepared copy with weights in the recipe's precision; restored to its state
        afterwards
    normalise : from [0, 1] to what the module takes
    objectives : at most `recipe.rows`; the batch is padded to it with the first one
    recipe : resolved (its sizes in pixels)
    shapes : for each of the recipe's sizes, (channels, height, width) of the layers used
    seed : of the noise and of the jitter; one, or one for each objective
    start : an image to start from instead of noise, 3 x H x W, or one for each objective, N x 3 x H x W
    on_step : called with (step, activations R x T) after each step
    frames : keep the images at the start and after every so many steps; 0 keeps none

    Source: the article, sections "Feature Visualization from First Principles" and "Layer and Neuron Interactions".
    """
    wanted = len(objectives)
    if not 0 < wanted <= recipe.rows:
        raise RecipeError(f"{wanted} objectives in a batch of {recipe.rows} rows; give 1 to {recipe.rows}")
    device = torch.device(device)
    padding = recipe.rows - wanted
    padded = [*objectives, *[objectives[0]] * padding]
    seeds = [seed] * wanted if isinstance(seed, int) else list(seed)
    layers = list(dict.fromkeys(layer for o in padded for layer in o.layers))
    loop = _Loop(
        normalise,
        parameterization.PARAMETERISATIONS[recipe.parameterisation](recipe),
        recipe,
        seeds + seeds[:1] * padding,
        torch.zeros(recipe.rows, dtype=torch.bool, device=device),
        torch.zeros(recipe.rows, dtype=torch.bool, device=device),
        on_step=on_step,
        every=frames,
        wanted=wanted,
        asks=device.type == "cpu",
    )
    image = _first_images(recipe, seeds, start, device)
    image = torch.cat([image, image[:1].expand(padding, -1, -1, -1)]).contiguous()
    with Taps(module, layers) as taps:
        for octave in recipe.octaves:
            assert isinstance(octave.size, int)
            image = image_ops.resize(image, octave.size)
            loss = BatchLoss(padded, shapes[octave.size], recipe.metric, recipe.C, device)
            image = loop.octave(taps, loss, image, octave)
    return Descent(
        parameterization.finished(recipe, image)[:wanted].float().cpu(),
        torch.stack(loop.curve, dim=1)[:wanted].float().cpu(),
        torch.stack(loop.agreement, dim=1)[:wanted].float().cpu(),
        loop.revived[:wanted].cpu(),
        loop.moved[:wanted].cpu(),
        tuple(loop.frames),
    )


def _first_images(recipe: Recipe, seeds: Sequence[int], start: Tensor | None, device: torch.device) -> Tensor:
    """Return where each row starts, N x 3 x H x W; what rows have in common is brought to the device once."""
    if start is not None and start.dim() == 4:
        each = [parameterization.first_image(recipe, s, one) for s, one in zip(seeds, start, strict=True)]
        return torch.stack(each).to(device)
    known = list(dict.fromkeys(seeds))
    images = torch.stack([parameterization.first_image(recipe, s, start) for s in known]).to(device)
    return images[torch.tensor([known.index(s) for s in seeds], device=device)]


@dataclass
class _Loop:
    """The steps of one batch, and what is noted of each."""

    normalise: Callable[[Tensor], Tensor]
    form: Any
    recipe: Recipe
    seeds: list[int]
    revived: Tensor
    moved: Tensor
    on_step: OnStep | None
    every: int = 0
    wanted: int = 0
    asks: bool = True
    """Whether it waits for the answer if any row is without a gradient; a GPU goes on without."""
    dead: bool = True
    """Was a row without a gradient at the last step? Then the next pass is made so that it can be taken back twice."""
    curve: list[Tensor] = field(default_factory=list)
    agreement: list[Tensor] = field(default_factory=list)
    frames: list[Tensor] = field(default_factory=list)

    def octave(self, taps: Taps, loss: BatchLoss, image: Tensor, octave: Octave) -> Tensor:
        """Return the images after one octave."""
        recipe, parameters = self.recipe, self.form.start(image)
        direction = _Steps(recipe.optimiser, recipe.betas)
        if not self.curve:
            self._keep(parameters)
        for i in range(octave.steps):
            step = len(self.curve)
            g, agreement, means = self._gradient(taps, loss, parameters, step)
            alive = g.flatten(1).any(1)
            self.moved |= alive
            parameters = parameters - parameterization.between(octave.rate, i, octave.steps) * direction(g)
            parameters = parameterization.after_step(
                recipe, parameters, parameterization.between(octave.sigma, i, octave.steps)
            )
            self.curve.append(means)
            self.agreement.append(agreement)
            if self.on_step is not None:
                self.on_step(step, means)
            self._keep(parameters)
        return self.form.image(parameters).detach()

    def _keep(self, parameters: Tensor) -> None:
        """Keep the images as they are now, if it is time."""
        done = len(self.curve)
        if self.every and (done % self.every == 0 or done == self.recipe.steps):
            image = parameterization.finished(self.recipe, self.form.image(parameters).detach())
            self.frames.append(image[: self.wanted].float().cpu())

    def _gradient(self, taps: Taps, loss: BatchLoss, parameters: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradient, the agreement of its terms, and the terms' activations.

        In the first steps a row without a gradient gets the one through dead ReLUs, by a second backward pass.
        """
        p, gate = parameters.detach().requires_grad_(True), _Gate()
        rescued = step < self.recipe.rescue * self.recipe.steps
        gated = rescued and (self.dead or not self.asks)
        losses, means = self._losses(taps, loss, p, step, gate if gated else None)
        g, agreement = self._backward(losses, p, keep=gated)
        if not rescued:
            return g, agreement, means
        alive = g.flatten(1).any(1)
        if self.asks:
            self.dead = dead = not bool(alive.all())
            if not dead:
                return g, agreement, means
        if not gated:
            losses, _ = self._losses(taps, loss, p, step, gate)
        gate.open = True
        through, _ = self._backward(losses, p)
        through = torch.where(alive.view(-1, *[1] * (g.dim() - 1)), g, through)
        self.revived |= ~alive & through.flatten(1).any(1)
        return through, agreement, means

    def _losses(self, taps: Taps, loss: BatchLoss, p: Tensor, step: int, gate: _Gate | None) -> tuple[Tensor, Tensor]:
        """Return the losses and activations of the rows' terms, R x T each; a gate is put into every ReLU."""
        moving = image_ops.jitter(self.form.image(p), self.seeds, step, self.recipe.jitter)
        with nullcontext() if gate is None else _GatedReLUs(gate):
            return loss.by_term(self._outputs(taps, self.normalise(moving)))

    def _backward(self, losses: Tensor, p: Tensor, keep: bool = False) -> tuple[Tensor, Tensor]:
        """Return the gradient of the terms' losses (R x T) by the parameters, and the agreement of the terms."""
        terms = losses.shape[1]
        if self.recipe.gradients == "together":
            (g,) = torch.autograd.grad(losses.sum(), p, retain_graph=keep)
            return g, torch.full_like(losses[:, 0].detach(), float("nan"))
        each = [torch.autograd.grad(losses[:, k].sum(), p, retain_graph=keep or k < terms - 1)[0] for k in range(terms)]
        return joined(torch.stack(each))

    def _outputs(self, taps: Taps, images: Tensor) -> dict[str, Tensor]:
        """Return the layers' outputs for images as the module takes them, in the images' own type."""
        reduced = REDUCED.get(self.recipe.precision)
        if reduced is None:
            return taps.run(images)
        return {layer: values.to(images.dtype) for layer, values in taps.run(images.to(reduced)).items()}
