"""Recipes: the frozen settings of a descent, and the named ones that featmap offers."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from featmap.errors import RecipeError, nearest

METRICS = ("l1", "l2", "linf", "linf-elementwise")
LEAST_ROWS = 2
MOST_ROWS, MOST_STEPS = 65_536, 1_000_000
CHOICES = {
    "parameterisation": ("pixels", "fourier"),
    "optimiser": ("gradient", "rms", "adam"),
    "clamp": ("never", "end", "every"),
    "gradients": ("separate", "together"),
    "precision": ("float32", "bfloat16"),
}


def whole(name: str, value: Any) -> int:
    """Return `value` if it is a whole number, and refuse it in one line if not."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise RecipeError(f"{name} {value!r}: give a whole number")
    return value


@dataclass(frozen=True)
class Octave:
    """A stretch of the descent at one image size.

    Step size and blur sigma run linearly from their first to their last value: at step i of n they are
    ``first * (n - i) / n + last * i / n``, as in the article. `size` is in pixels; None is the size that the
    recipe is asked for, and a fraction of it is a float.
    """

    steps: int
    rate: tuple[float, float]
    sigma: tuple[float, float] = (0.0, 0.0)
    size: int | float | None = None


@dataclass(frozen=True)
class Recipe:
    """How an image is made from noise. A feature's image depends on (model, recipe, seed, unit) alone.

    Parameters
    ----------
    parameterisation : "pixels", or "fourier" (decorrelated spectrum through a sigmoid; Olah et al., 2017,
        10.23915/distill.00007)
    optimiser : "gradient" (plain), "rms" (gradient over its root mean square over the whole image) or "adam"
    betas : how much of the past Adam's two means keep at each step, both in [0, 1)
    octaves : stretches of the descent; the image is resized between them
    mean, std : of the noise that every unit starts from
    clamp : pixels are kept in [0, 1] "never", at the "end", or after "every" step
    jitter : the image is rolled by up to this many pixels before each step
    metric : distance of the unit's neurons to C: "l1" (the article's, unsigned: C has no effect), "l2",
        "linf" (as the article's code computes it: the largest row sum), "linf-elementwise"
    C : the large constant
    rescue : share of the steps in which a row without gradient gets it through dead ReLUs
    gradients : of a sum: each term's gradient taken by itself and then added, "separate"; or the gradient of the
        sum of losses in one pass, "together" (the article's code). They differ by rounding; only the first tells
        how far the terms agree and whether they cancel. One term has the same bits either way
    precision : of the network's arithmetic in the descent, "float32" or "bfloat16" (eight bits of mantissa); the image,
        the loss and the step stay in float32, and responses are always those of the untouched network in float32
    rows : number of images descended together; batches are padded to it
    largest : where no size is asked for, the network's own input size up to this one is taken
    default_seed : the seed where none is asked for
    notes : what the article leaves out and was chosen here
    """

    name: str
    octaves: tuple[Octave, ...]
    parameterisation: Literal["pixels", "fourier"] = "pixels"
    optimiser: Literal["gradient", "rms", "adam"] = "adam"
    betas: tuple[float, float] = (0.9, 0.999)
    mean: float = 0.5
    std: float = 0.2
    clamp: Literal["never", "end", "every"] = "end"
    jitter: int = 0
    metric: str = "l1"
    C: float = 200.0
    rescue: float = 0.25
    gradients: Literal["separate", "together"] = "separate"
    precision: Literal["float32", "bfloat16"] = "float32"
    rows: int = 16
    largest: int | None = None
    default_seed: int = 0
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        whole("rows", self.rows)
        whole("jitter", self.jitter)
        for number in ("C", "rescue", "mean", "std"):
            if isinstance(getattr(self, number), bool) or not isinstance(getattr(self, number), (int, float)):
                raise RecipeError(f"{number} {getattr(self, number)!r}: give a number")
        if self.metric not in METRICS:
            raise RecipeError(
                f"metric {self.metric!r} is unknown{nearest(self.metric, METRICS)}; allowed: {', '.join(METRICS)}"
            )
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise RecipeError(f"{name} {getattr(self, name)!r} is unknown; allowed: {', '.join(allowed)}")
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std >= 0):
            raise RecipeError(
                f"noise of mean {self.mean}, standard deviation {self.std}: give finite numbers, std from 0"
            )
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise RecipeError(f"betas {self.betas}: give two numbers from 0 to less than 1, such as (0.9, 0.999)")
        if self.jitter < 0 or not 0 <= self.rescue <= 1:
            raise RecipeError(f"jitter {self.jitter}, rescue {self.rescue}: jitter is from 0, rescue from 0 to 1")
        if not math.isfinite(self.C):
            raise RecipeError(f"C {self.C}: give a finite number; the article's is 200")
        if self.rows < LEAST_ROWS:
            raise RecipeError(
                f"rows {self.rows}: a batch of one image rounds differently from the same image in a batch; "
                f"give {LEAST_ROWS} or more"
            )
        if self.rows > MOST_ROWS:
            raise RecipeError(f"rows {self.rows}: {MOST_ROWS:,} at most; 16 is the default")
        if not self.octaves or any(o.steps < 1 for o in self.octaves):
            raise RecipeError(f"recipe {self.name}: every octave takes at least 1 step; give --steps 1 or more")

    @property
    def steps(self) -> int:
        """Steps of all octaves together."""
        return sum(o.steps for o in self.octaves)

    @property
    def size(self) -> int:
        """Size of the finished image in pixels (of a resolved recipe)."""
        size = self.octaves[-1].size
        if not isinstance(size, int):
            raise RecipeError(f"recipe {self.name} has no size yet; give one")
        return size

    @property
    def sizes(self) -> tuple[int, ...]:
        """The octaves' sizes in pixels (of a resolved recipe)."""
        return tuple(o.size for o in self.octaves if isinstance(o.size, int))

    def resolved(self, natural: int, size: int | None = None, steps: int | None = None, **changes: Any) -> Recipe:
        """Return the recipe with every size in pixels.

        Parameters
        ----------
        natural : the network's own input size
        size : of the finished image; None takes the recipe's own or, where it leaves that open, `natural`
        steps : of all octaves together, shared out in the recipe's proportions
        changes : other fields to replace

        Raises
        ------
        RecipeError
            for sizes or steps that cannot be had.
        """
        last = self.octaves[-1].size
        for name, value in (("size", size), ("steps", steps)):
            if value is not None:
                whole(name, value)
        own = natural if self.largest is None else min(natural, self.largest)
        final = size if size is not None else last if isinstance(last, int) else own
        if final < 1:
            raise RecipeError(f"size {final}: an image has at least 1 pixel; give --size 32 or more")
        octaves = []
        for octave in self.octaves:
            side = _side(octave.size, final, last)
            octaves.append(replace(octave, size=side))
        if steps is not None:
            octaves = _share(octaves, steps)
        return replace(self, octaves=tuple(octaves), **{k: v for k, v in changes.items() if v is not None})

    def identity(self) -> dict[str, Any]:
        """Return everything that the images depend on, as plain JSON values."""
        known = asdict(self)
        known.pop("notes")
        known.pop("default_seed")
        known.pop("largest")
        for setting, first in (("gradients", "separate"), ("precision", "float32"), ("betas", (0.9, 0.999))):
            if known[setting] == first:  # runs that were made before there was a choice stay what they are
                known.pop(setting)
        return json.loads(json.dumps(known))

    @property
    def digest(self) -> str:
        """Short hash of `identity`."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:12]

    @staticmethod
    def from_identity(values: dict[str, Any]) -> Recipe:
        """Return the recipe that `identity` described."""
        names = {f.name for f in fields(Recipe)}
        known = {k: v for k, v in values.items() if k in names}
        known["octaves"] = tuple(
            Octave(o["steps"], tuple(o["rate"]), tuple(o["sigma"]), o["size"]) for o in values["octaves"]
        )
        if "betas" in known:
            known["betas"] = tuple(known["betas"])
        return Recipe(**known)


def _side(size: int | float | None, final: int, last: int | float | None) -> int:
    if size is None:
        return final
    if isinstance(size, float):
        return max(1, round(size * final))
    return size if not isinstance(last, int) else max(1, round(size * final / last))


def _share(octaves: list[Octave], steps: int) -> list[Octave]:
    """Share out `steps` over the octaves in their own proportions; drop those that get none."""
    if not 1 <= steps <= MOST_STEPS:
        raise RecipeError(
            f"steps {steps}: every octave takes at least 1 step; give --steps 1 or more, {MOST_STEPS:,} at most"
        )
    total, done, shared, given = sum(o.steps for o in octaves), 0, [], 0
    for octave in octaves:
        done += octave.steps
        upto = round(steps * done / total)
        shared.append(replace(octave, steps=upto - given))
        given = upto
    if shared[-1].steps == 0:  # the last octave makes the size that was asked for
        most = max(range(len(shared)), key=lambda k: shared[k].steps)
        shared[most] = replace(shared[most], steps=shared[most].steps - 1)
        shared[-1] = replace(shared[-1], steps=1)
    return [o for o in shared if o.steps > 0]


RECIPES: dict[str, Recipe] = {}


def register(recipe: Recipe) -> Recipe:
    """Add a recipe to those that can be asked for by name."""
    RECIPES[recipe.name] = recipe
    return recipe


def recipe(name: str | Recipe) -> Recipe:
    """Return the recipe of that name (a recipe is returned as it is)."""
    if isinstance(name, Recipe):
        return name
    if name not in RECIPES:
        raise RecipeError(f"recipe {name!r} is unknown{nearest(name, RECIPES)}; allowed: {', '.join(RECIPES)}")
    return RECIPES[name]


_START = "start: noise of mean 0.5 and standard deviation 0.1 in [0, 1] (the article: random, not specified)"
_NORMALISED = "the network's own input normalisation is applied (the article: not said)"
_UNCLAMPED = "pixels are never clamped (the article: not said)"
_OCTAVES = (
    Octave(100, (0.4, 0.3), (2.4, 0.8), 299),
    Octave(100, (0.3, 0.2), (1.5, 0.4), 340),
    Octave(100, (0.2, 0.1), (1.1, 0.3), 380),
)

ARTICLE = register(
    Recipe(
        "article",
        _OCTAVES,
        optimiser="gradient",
        std=0.1,
        clamp="never",
        rescue=0.0,
        default_seed=999,
        notes=(
            "first octave at 299 pixels (InceptionV3's input; the article: `without upscaling`)",
            "each step: gradient, step, blur (the article prints the blur only)",
            _START,
            _NORMALISED,
            _UNCLAMPED,
        ),
    )
)
ARTICLE_LOWRES = register(
    replace(
        ARTICLE,
        name="article-lowres",
        octaves=(
            Octave(40, (0.4, 0.35), (2.4, 1.6), 299),
            Octave(30, (0.35, 0.32), (1.6, 1.2), 260),
            Octave(30, (0.32, 0.3), (1.2, 0.8), 224),
        ),
        notes=(
            "the first form, with resizing downwards only: 299, 260, 224 pixels, the first octave's schedule over "
            "100 steps (the article names the idea, not the numbers)",
            *ARTICLE.notes[1:],
        ),
    )
)
ARTICLE_NORMALISED = register(
    replace(
        ARTICLE,
        name="article-normalised",
        optimiser="rms",
        octaves=tuple(replace(o, rate=(o.rate[0] / 10, o.rate[1] / 10)) for o in _OCTAVES),
        notes=(
            "the gradient is divided by its root mean square over the image and the step sizes by 10, "
            "so that a step moves a pixel by 0.04 to 0.01 whatever the network's scale",
            *ARTICLE.notes,
        ),
    )
)
INTERACT = register(
    Recipe(
        "interact",
        (Octave(60, (0.05, 0.02), (1.0, 0.3)),),
        optimiser="rms",
        clamp="never",
        rescue=0.0,
        notes=("linear steps only: under them a linear network shows no interaction",),
    )
)
# Chosen by `analyses.benchmarks.search`, whose table shows the losers too: Adam with a shorter memory (betas) bears
# longer steps that shrink to almost nothing. A weaker blur makes rougher images for about as much activation; Fourier
# images of the bundled network reach less of it with twenty times the high frequencies.
QUICK = (0.8, 0.99)
FAST = register(Recipe("fast", (Octave(24, (0.08, 0.01), (0.95, 0.38)),), betas=QUICK, clamp="every", largest=128))
STANDARD = register(Recipe("standard", (Octave(60, (0.06, 0.005), (0.92, 0.36)),), betas=QUICK, clamp="every"))
# For images of 200 pixels and more: its first steps are made at half their size, where one costs a quarter. It lost no
# feature of the bundled network at 96 pixels either, but half of a small image is too small for some layers, and a
# shorter recipe of its kind lost one in sixty features of ResNet50 with random weights there.
LARGE = register(
    Recipe(
        "large",
        (Octave(24, (0.1, 0.04), (0.92, 0.5), 0.5), Octave(24, (0.1, 0.004), (0.75, 0.345))),
        betas=QUICK,
        clamp="every",
    )
)
