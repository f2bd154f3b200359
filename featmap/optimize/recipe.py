"""Recipes: the frozen settings of a descent, and the registry of named recipes."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from featmap.errors import RecipeError, suggest
from featmap.image_shape import Size, area, as_pair, as_size, format_size, octave_size, scale
from featmap.optimize.schedule import Octave, Transform, check_transform, require_integer, share_steps

METRICS = ("l1", "l2", "linf", "linf-elementwise")
MIN_ROWS = 2
MAX_ROWS = 65_536
CHOICES = {
    "parameterisation": ("pixels", "fourier", "spectrum"),
    "optimiser": ("gradient", "rms", "adam"),
    "clamp": ("never", "end", "every"),
    "gradients": ("separate", "together"),
    "precision": ("float32", "bfloat16"),
}
CHANGEABLE = ("metric", "C", "rows", "jitter", "rescue", *CHOICES)
"""Fields that `Recipe.named` changes, beside the size and the steps, which are parameters of their own."""


@dataclass(frozen=True)
class Recipe:
    """The settings of a descent from noise to a maximising image.

    A feature's image depends on (network, recipe, seed, unit) and on nothing else.

    Parameters
    ----------
    name : str
        Name of the recipe.
    octaves : tuple of Octave
        Parts of the descent, in their order; the image is resized between them.
    parameterisation : {"pixels", "fourier", "spectrum"}, default "pixels"
        What the descent changes: the pixels, or a spectrum in decorrelated colours that a sigmoid maps to [0, 1]
        [1]_. "fourier" is the spectrum of version 0.1; "spectrum" has the scale of [1]_, starts from noise with the
        spectrum of natural images, and has the exponent `decay`.
    optimiser : {"gradient", "rms", "adam"}, default "adam"
        "gradient" takes the plain gradient; "rms" divides it by its root mean square over the whole image.
    betas : tuple of float, default (0.9, 0.999)
        Decay rates of Adam's two moving averages, both in [0, 1).
    mean, std : float, default 0.5 and 0.2
        Mean and standard deviation of the noise that every unit starts from.
    clamp : {"never", "end", "every"}, default "end"
        When pixels are clamped to [0, 1]: never, at the end, or after every step.
    jitter : int, default 0
        Largest number of pixels by which the image is rolled before each step.
    transform : Transform or None, default None
        Ranges of a random rotation, scale, shift and flip before each step, which depend on (seed, step) only.
    decay : float, default 1.0
        Exponent p: "spectrum" divides the amplitude at frequency f by f**p; natural images have about 1.
    contrast : float, default 0.0
        How much of the layer's typical response (over all features, at the unit's positions) is subtracted in the loss
        from each of the unit's neurons whose response is not 0. With 1, the image shows what sets the feature apart
        from its layer. A layer of a single channel has nothing to be set apart from, and no contrast.
    spread : float, default 0.0
        The typical response is the mean over the layer's features plus this many of their standard deviations. Above 0,
        the features that respond most to the image are subtracted most.
    metric : {"l1", "l2", "linf", "linf-elementwise"}, default "l1"
        Distance of the unit's neurons to `C`. "l1" is unsigned, as in the article's code, so that `C` has no effect;
        "linf" is what the article's code computes: the largest row sum.
    C : float, default 200.0
        The large constant that the unit's neurons are pulled towards.
    rescue : float, default 0.25
        Share of the steps, from the first, in which a row without a gradient gets one through dead ReLUs.
    rescue_terms : bool, default False
        Whether a unit of a sum that has no gradient is rescued although others of the sum have one. Its gradient gets
        their mean length: through dead ReLUs it is so much shorter that the unit would stay silent. It takes effect
        where gradients are "separate".
    gradients : {"separate", "together"}, default "separate"
        How the gradient of a sum is computed: "separate" takes each term's gradient and adds them; "together" takes
        the gradient of the summed loss in one pass (the article's code). They differ by rounding; only "separate"
        measures how far the terms agree and whether they cancel. One term has the same bits either way.
    precision : {"float32", "bfloat16"}, default "float32"
        Type of the network's arithmetic in the descent; bfloat16 has eight bits of mantissa. Image, loss and step
        stay in float32, and responses are always those of the untouched network in float32.
    rows : int, default 16
        Number of images in a batch; smaller batches are padded to it.
    max_default_size : int or None, default None
        Where no size is requested, the network's own input size is used, up to this limit in pixels. For an image that
        is not square, the limit is on the square root of its area.
    default_seed : int, default 0
        The seed that is used where none is requested.
    notes : tuple of str, default ()
        Choices that were made here because the article leaves them open.

    Raises
    ------
    RecipeError
        If a setting is unknown or out of range.

    References
    ----------
    .. [1] C. Olah, A. Mordvintsev and L. Schubert, "Feature Visualization", Distill, 2017,
       doi:10.23915/distill.00007
    """

    name: str
    octaves: tuple[Octave, ...]
    parameterisation: Literal["pixels", "fourier", "spectrum"] = "pixels"
    optimiser: Literal["gradient", "rms", "adam"] = "adam"
    betas: tuple[float, float] = (0.9, 0.999)
    mean: float = 0.5
    std: float = 0.2
    clamp: Literal["never", "end", "every"] = "end"
    jitter: int = 0
    transform: Transform | None = None
    decay: float = 1.0
    contrast: float = 0.0
    spread: float = 0.0
    metric: str = "l1"
    C: float = 200.0
    rescue: float = 0.25
    rescue_terms: bool = False
    gradients: Literal["separate", "together"] = "separate"
    precision: Literal["float32", "bfloat16"] = "float32"
    rows: int = 16
    max_default_size: int | None = None
    default_seed: int = 0
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_integer("rows", self.rows)
        require_integer("jitter", self.jitter)
        for number in ("C", "rescue", "mean", "std", "decay", "contrast", "spread"):
            if isinstance(getattr(self, number), bool) or not isinstance(getattr(self, number), (int, float)):
                raise RecipeError(f"{number} {getattr(self, number)!r}: give a number")
        if self.metric not in METRICS:
            raise RecipeError(
                f"metric {self.metric!r} is unknown{suggest(self.metric, METRICS)}; allowed: {', '.join(METRICS)}"
            )
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise RecipeError(f"{name} {getattr(self, name)!r} is unknown; allowed: {', '.join(allowed)}")
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std >= 0):
            raise RecipeError(
                f"noise of mean {self.mean}, standard deviation {self.std}: give finite numbers, std 0 or more"
            )
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise RecipeError(f"betas {self.betas}: give two numbers from 0 to less than 1, such as (0.9, 0.999)")
        if not 0 <= self.decay <= 4:
            raise RecipeError(f"decay {self.decay}: give an exponent from 0 to 4; natural images have about 1")
        if not math.isfinite(self.contrast):
            raise RecipeError(f"contrast {self.contrast}: give a finite number; 0 leaves the response as it is")
        if not 0 <= self.spread <= 10:
            raise RecipeError(f"spread {self.spread}: give a number from 0 to 10; 0 subtracts the mean alone")
        if self.transform is not None:
            check_transform(self.transform)
        if self.jitter < 0 or not 0 <= self.rescue <= 1:
            raise RecipeError(f"jitter {self.jitter}, rescue {self.rescue}: give a jitter from 0, a rescue from 0 to 1")
        if not math.isfinite(self.C):
            raise RecipeError(f"C {self.C}: give a finite number; the article uses 200")
        if self.rows < MIN_ROWS:
            raise RecipeError(
                f"rows {self.rows}: a batch of one image rounds differently from the same image in a batch; "
                f"give {MIN_ROWS} or more"
            )
        if self.rows > MAX_ROWS:
            raise RecipeError(f"rows {self.rows}: give {MAX_ROWS:,} or fewer; the default is 16")
        if not self.octaves or any(o.steps < 1 for o in self.octaves):
            raise RecipeError(f"recipe {self.name}: every octave takes at least 1 step; give each 1 or more")

    @property
    def steps(self) -> int:
        """Total number of steps of all octaves."""
        return sum(o.steps for o in self.octaves)

    @property
    def size(self) -> Size:
        """Size of the finished image in pixels; defined for a resolved recipe only."""
        size = self.octaves[-1].size
        if not isinstance(size, (int, tuple)):
            raise RecipeError(f"recipe {self.name} has no size yet; choose one, or resolve it for a network")
        return size

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Sizes of the octaves' images in pixels; complete for a resolved recipe only."""
        return tuple(o.size for o in self.octaves if isinstance(o.size, (int, tuple)))

    @property
    def linear(self) -> bool:
        """Whether all steps are linear: then a linear network shows no interaction.

        Defined for a resolved recipe.
        """
        # A gradient divided by its RMS has a constant length at one size. From size to size the lengths of two units'
        # gradients change differently, and their sum is no longer linear.
        proportional = self.optimiser == "gradient" or (self.optimiser == "rms" and len(set(self.sizes)) == 1)
        return self.parameterisation == "pixels" and self.clamp == "never" and proportional

    @staticmethod
    def named(name: str | Recipe, size: Size | None = None, steps: int | None = None, **changes: Any) -> Recipe:
        """Look up a named recipe and change its settings.

        Parameters
        ----------
        name : str or Recipe
            A key of `RECIPES`, or a recipe to take in place of a named one.
        size : int, (int, int) or None, default None
            Side of the finished image, or its height and width, in pixels, for which all octave sizes are resolved;
            None leaves them open, to be resolved for a network later.
        steps : int or None, default None
            Steps of all octaves together, shared out in the recipe's proportions; None keeps the recipe's own.
        **changes : Any
            Other fields to replace, of those in `CHANGEABLE`; None keeps the recipe's own value.

        Returns
        -------
        Recipe
            The recipe; without changes, the registered object itself.

        Raises
        ------
        RecipeError
            If the name or a setting is unknown, or a value is out of range.
        """
        unknown = [setting for setting in changes if setting not in CHANGEABLE]
        if unknown:
            raise RecipeError(f"setting {unknown[0]!r} is unknown; allowed: {', '.join(CHANGEABLE)}")
        if not isinstance(name, Recipe) and name not in RECIPES:
            raise RecipeError(f"recipe {name!r} is unknown{suggest(name, RECIPES)}; allowed: {', '.join(RECIPES)}")
        recipe = name if isinstance(name, Recipe) else RECIPES[name]
        if size is not None:
            return recipe.resolved(size, size=size, steps=steps, **changes)
        settings = {field: value for field, value in changes.items() if value is not None}
        if steps is not None:
            settings["octaves"] = tuple(share_steps(recipe.octaves, require_integer("steps", steps)))
        return replace(recipe, **settings) if settings else recipe

    def resolved(self, input_size: Size, size: Size | None = None, steps: int | None = None, **changes: Any) -> Recipe:
        """Resolve every octave's size to pixels.

        A resolved recipe stays as it is, unless another size, other steps or changes are requested.

        Parameters
        ----------
        input_size : int or (int, int)
            The network's own input size in pixels.
        size : int, (int, int) or None, default None
            Side of the finished image, or its height and width, in pixels; None takes the recipe's own or, where that
            is open, `input_size` up to `max_default_size`.
        steps : int or None, default None
            Steps of all octaves together, shared out in the recipe's proportions; None keeps the recipe's own.
        **changes : Any
            Other fields to replace; None keeps the recipe's own value.

        Returns
        -------
        Recipe
            The resolved recipe.

        Raises
        ------
        RecipeError
            If a size, the steps or a changed field is out of range.
        """
        last = self.octaves[-1].size
        if steps is not None:
            require_integer("steps", steps)
        if isinstance(size, (tuple, list)):
            size = as_size([require_integer("size", side) for side in size])
        elif size is not None:
            require_integer("size", size)
        final = size if size is not None else last if isinstance(last, (int, tuple)) else self._default(input_size)
        if min(as_pair(final)) < 1:
            raise RecipeError(f"size {format_size(final)}: an image has at least 1 pixel; choose a size of 32 or more")
        octaves = [replace(octave, size=octave_size(octave.size, final, last)) for octave in self.octaves]
        if steps is not None:
            octaves = share_steps(octaves, steps)
        return replace(self, octaves=tuple(octaves), **{k: v for k, v in changes.items() if v is not None})

    def _default(self, input_size: Size) -> Size:
        """Compute the size of the finished image where none is requested."""
        limit = self.max_default_size
        if limit is None or area(input_size) <= limit**2:
            return input_size
        return scale(input_size, limit / math.sqrt(area(input_size)))

    def identity(self) -> dict[str, Any]:
        """Collect the settings that the images depend on.

        Returns
        -------
        dict of str to Any
            Plain JSON values, without `notes`, `default_seed` and `max_default_size`.
        """
        settings = asdict(self)
        for setting in ("notes", "default_seed", "max_default_size"):
            settings.pop(setting)
        # Fields that were added later are left out at their first value: runs from before they existed keep their
        # identity and can still be resumed.
        for setting, first in _LATER_SETTINGS.items():
            if settings[setting] == first:
                settings.pop(setting)
        return json.loads(json.dumps(settings))

    @property
    def digest(self) -> str:
        """First 12 hexadecimal digits of the SHA-256 of `identity`."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:12]

    @staticmethod
    def from_identity(values: dict[str, Any]) -> Recipe:
        """Rebuild the recipe that `identity` describes.

        Parameters
        ----------
        values : dict of str to Any
            The result of `identity`; fields that this version does not know are ignored.

        Returns
        -------
        Recipe
            The resolved recipe, without notes and with the default `default_seed`.
        """
        names = {f.name for f in fields(Recipe)}
        settings = {k: v for k, v in values.items() if k in names}
        settings["octaves"] = tuple(
            Octave(
                o["steps"],
                tuple(o["rate"]),
                tuple(o["sigma"]),
                tuple(o["size"]) if isinstance(o["size"], list) else o["size"],
            )
            for o in values["octaves"]
        )
        if "betas" in settings:
            settings["betas"] = tuple(settings["betas"])
        if settings.get("transform"):
            transform = settings["transform"]
            settings["transform"] = Transform(**{**transform, "scale": tuple(transform["scale"])})
        return Recipe(**settings)


_LATER_SETTINGS = {
    "rescue_terms": False,
    "gradients": "separate",
    "precision": "float32",
    "betas": (0.9, 0.999),
    "transform": None,
    "decay": 1.0,
    "contrast": 0.0,
    "spread": 0.0,
}


RECIPES: dict[str, Recipe] = {}


def register(recipe: Recipe) -> Recipe:
    """Add a recipe to `RECIPES`, so that its name can be requested.

    Parameters
    ----------
    recipe : Recipe
        The recipe; it replaces an earlier one of the same name.

    Returns
    -------
    Recipe
        The recipe itself.
    """
    RECIPES[recipe.name] = recipe
    return recipe


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
# Silent units are woken by gradients through dead ReLUs. Tried and rejected, with GoogLeNet and SqueezeNet trained on
# ImageNet at 96 pixels, where 15 to 68 % of a layer's features are silent on one noise: noise of two or four times the
# deviation (the same share), coarse or 1/f noise (a half of it in early layers, nearly all from inception4a on), and
# the best of eight noises (8 to 56 % stay silent). A rescue in the first quarter of the steps alone left units that
# respond at a few places first, and died later: of a unit of SqueezeNet's features.10 at 128 pixels, two of six seeds.
INTERACT = register(
    Recipe(
        "interact",
        (Octave(60, (0.05, 0.02), (1.0, 0.3)),),
        optimiser="rms",
        clamp="never",
        rescue=1.0,
        rescue_terms=True,
        notes=("linear steps only: under them a linear network shows no interaction",),
    )
)
# What "interact" was up to version 0.2: units that are silent on the noise stay silent.
INTERACT_UNRESCUED = register(replace(INTERACT, name="interact-unrescued", rescue=0.0, rescue_terms=False))
# The pixel images of versions up to 0.2, kept for their runs and for studies, chosen by activation on the bundled
# network (`analyses.benchmarks.search`). Adam with a shorter memory (betas) tolerates longer steps that shrink almost
# to zero. "large" makes its first steps at half the size, where one costs a quarter.
SHORT_MEMORY_BETAS = (0.8, 0.99)
_PIXELS = Recipe("pixels", (Octave(24, (0.08, 0.01), (0.95, 0.38)),), betas=SHORT_MEMORY_BETAS, clamp="every")
PIXELS = register(replace(_PIXELS, max_default_size=128))
PIXELS_LONG = register(replace(_PIXELS, name="pixels-long", octaves=(Octave(60, (0.06, 0.005), (0.92, 0.36)),)))
_HALF_THEN_WHOLE = (Octave(24, (0.1, 0.04), (0.92, 0.5), 0.5), Octave(24, (0.1, 0.004), (0.75, 0.345)))
LARGE = register(
    replace(_PIXELS, name="large", octaves=_HALF_THEN_WHOLE, notes=("deprecated: take standard, or pixels-long",))
)
# Images that other networks recognise too, chosen by `analyses.benchmarks.image_candidates`: decorrelated colours, the
# spectrum of natural images, a random transform before each step, and the response less what is typical of the
# layer. At equal cost few steps of large images carry over better than many of small ones.
NATURAL = register(
    Recipe(
        "natural",
        (Octave(192, (0.05, 0.05)),),
        parameterisation="spectrum",
        betas=(0.9, 0.99),
        std=0.42,
        transform=Transform(rotation=15.0, scale=(0.85, 1.67), shift=0.1, flip=True),
        contrast=1.0,
        spread=1.0,
    )
)
FAST = register(
    replace(
        NATURAL,
        name="fast",
        octaves=(Octave(32, (0.12, 0.12)),),
        transform=Transform(rotation=5.0, scale=(0.9, 1.1), shift=0.05, flip=True),
        max_default_size=160,
    )
)
STANDARD = register(replace(NATURAL, name="standard", octaves=(Octave(96, (0.07, 0.07)),)))
