"""The one descent loop: a batch of rows, each with its own objective, from the same noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from featmap import images as forms
from featmap import transforms
from featmap.errors import RecipeError
from featmap.objectives import BatchLoss, Objective
from featmap.recipes import Octave, Recipe
from featmap.taps import Taps
from featmap.units import Shape

BETA1, BETA2, ADAM_EPS = 0.9, 0.999, 1e-8
LEAK = 0.1
OnStep = Callable[[int, Tensor], None]


@dataclass
class Descent:
    """What a batch of descents gave, one entry a row.

    `images` R x 3 x H x W, float32, as they are to be stored; `curve` R x steps x terms, the activation of
    each term's unit before every step; `revived` whether the row got its gradient through dead ReLUs;
    `moved` whether it ever had a gradient at all.
    """

    images: Tensor
    curve: Tensor
    revived: Tensor
    moved: Tensor


class _LeakyGradient(torch.autograd.Function):
    """A ReLU whose gradient also passes, damped, where its input is negative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.where(x > 0, grad, LEAK * grad)


class _ThroughDeadReLUs(TorchFunctionMode):
    """Replaces every ReLU that runs inside it by one whose gradient does not die."""

    NAMES = frozenset({"relu", "relu_"})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self.NAMES:
            return _LeakyGradient.apply(args[0] if args else (kwargs or {})["input"])
        return func(*args, **(kwargs or {}))


class _Steps:
    """The optimiser's rule; its state is one row's own, so that rows stay independent."""

    def __init__(self, rule: str) -> None:
        self.rule, self.count = rule, 0
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
        self.first.mul_(BETA1).add_(gradient, alpha=1 - BETA1)
        self.second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        spread = (self.second / (1 - BETA2**self.count)).sqrt()
        # a gradient of any size gives a step of the same size, so the floor goes by the largest of the image
        floor = spread.flatten(1).amax(1).view(-1, *[1] * (spread.dim() - 1)) * ADAM_EPS
        mean = self.first / (1 - BETA1**self.count)
        return torch.where(spread > 0, mean / (spread + floor), torch.zeros_like(mean))


def descend(
    module: nn.Module,
    normalise: Callable[[Tensor], Tensor],
    objectives: Sequence[Objective],
    recipe: Recipe,
    shapes: dict[int, dict[str, Shape]],
    *,
    seed: int = 0,
    start: Tensor | None = None,
    device: torch.device | str = "cpu",
    on_step: OnStep | None = None,
) -> Descent:
    """Make the maximising images of up to `recipe.rows` objectives.

    Parameters
    ----------
    module : the network, usually a prepared copy; restored to its state afterwards
    normalise : from [0, 1] to what the module takes
    objectives : at most `recipe.rows`; the batch is padded to it with the first one
    recipe : resolved (its sizes in pixels)
    shapes : for each of the recipe's sizes, (channels, height, width) of the layers used
    seed : of the noise and of the jitter
    start : a photograph to start from instead, 3 x H x W in [0, 1]
    on_step : called with (step, activations R x T) after each step

    Source: the article, section "Feature Visualization from First Principles".
    """
    if not 0 < len(objectives) <= recipe.rows:
        raise RecipeError(f"{len(objectives)} objectives in a batch of {recipe.rows} rows; give 1 to {recipe.rows}")
    device = torch.device(device)
    wanted = len(objectives)
    padded = [*objectives, *[objectives[0]] * (recipe.rows - wanted)]
    layers = list(dict.fromkeys(layer for o in padded for layer in o.layers))
    form = forms.PARAMETERISATIONS[recipe.parameterisation](recipe)
    image = forms.first_image(recipe, seed, start).to(device).expand(recipe.rows, -1, -1, -1).contiguous()
    revived = torch.zeros(recipe.rows, dtype=torch.bool, device=device)
    moved = torch.zeros_like(revived)
    curve: list[Tensor] = []
    with Taps(module, layers) as taps:
        for octave in recipe.octaves:
            assert isinstance(octave.size, int)
            image = transforms.resize(image, octave.size)
            loss = BatchLoss(padded, shapes[octave.size], recipe.metric, recipe.C, device)
            image = _octave(taps, normalise, loss, form, image, octave, recipe, seed, curve, revived, moved, on_step)
    final = forms.finished(recipe, image)[:wanted].float().cpu()
    stacked = torch.stack(curve, dim=1)[:wanted].float().cpu()
    return Descent(final, stacked, revived[:wanted].cpu(), moved[:wanted].cpu())


def _octave(
    taps: Taps,
    normalise: Callable[[Tensor], Tensor],
    loss: BatchLoss,
    form: Any,
    image: Tensor,
    octave: Octave,
    recipe: Recipe,
    seed: int,
    curve: list[Tensor],
    revived: Tensor,
    moved: Tensor,
    on_step: OnStep | None,
) -> Tensor:
    """Return the image after one octave; append to `curve` and mark `revived` and `moved` on the way."""
    parameters = form.start(image)
    direction = _Steps(recipe.optimiser)

    def gradient(p: Tensor, step: int) -> tuple[Tensor, Tensor]:
        p = p.detach().requires_grad_(True)
        moving = transforms.jitter(form.image(p), seed, step, recipe.jitter)
        losses, means = loss(taps.run(normalise(moving)))
        (g,) = torch.autograd.grad(losses.sum(), p)
        return g, means

    for i in range(octave.steps):
        step = len(curve)
        g, means = gradient(parameters, step)
        alive = g.flatten(1).any(1)
        if step < recipe.rescue * recipe.steps and not bool(alive.all()):
            with _ThroughDeadReLUs():
                through, _ = gradient(parameters, step)
            through = torch.where(alive.view(-1, *[1] * (g.dim() - 1)), g, through)
            revived |= ~alive & through.flatten(1).any(1)
            g, alive = through, through.flatten(1).any(1)
        moved |= alive
        parameters = parameters - forms.between(octave.rate, i, octave.steps) * direction(g)
        parameters = forms.after_step(recipe, parameters, forms.between(octave.sigma, i, octave.steps))
        curve.append(means)
        if on_step is not None:
            on_step(step, means)
    return form.image(parameters).detach()
