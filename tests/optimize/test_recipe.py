from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields, replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featmap.errors import FeatmapError, RecipeError
from featmap.optimize.recipe import (
    ARTICLE,
    ARTICLE_LOWRES,
    ARTICLE_NORMALISED,
    CHANGEABLE,
    INTERACT,
    METRICS,
    PIXELS,
    RECIPES,
    Octave,
    Recipe,
)
from featmap.optimize.schedule import interpolate_schedule, renamed_recipe

repeatable = settings(derandomize=True, deadline=None, max_examples=100)


def test_every_named_recipe_is_registered_under_its_own_name() -> None:
    assert {"pixels", "article", "article-lowres", "article-normalised", "interact"} <= set(RECIPES)
    for name, found in RECIPES.items():
        assert found.name == name and Recipe.named(name) is found and Recipe.named(found) is found
        assert found.optimiser in ("gradient", "rms", "adam") and found.clamp in ("never", "end", "every")
        assert found.parameterisation in ("pixels", "fourier", "spectrum") and found.metric in METRICS
        assert found.rows >= 2 and found.steps >= 1


@pytest.mark.parametrize("name", ["artcle", "", "FAST", "fast "])
def test_an_unknown_recipe_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(RecipeError, match=r"is unknown.*allowed: .*article") as caught:
        Recipe.named(name)
    assert len(str(caught.value).splitlines()) == 1 and isinstance(caught.value, FeatmapError)


def test_the_nearest_name_is_given() -> None:
    with pytest.raises(RecipeError, match=r"recipe 'artcle' is unknown \(nearest: article"):
        Recipe.named("artcle")


def test_the_articles_numbers_as_printed() -> None:
    # the article, section "Feature Visualization from First Principles": generate_singleinput and octave
    assert [o.steps for o in ARTICLE.octaves] == [100, 100, 100]
    assert [o.rate for o in ARTICLE.octaves] == [(0.4, 0.3), (0.3, 0.2), (0.2, 0.1)]
    assert [o.sigma for o in ARTICLE.octaves] == [(2.4, 0.8), (1.5, 0.4), (1.1, 0.3)]
    assert [o.size for o in ARTICLE.octaves] == [299, 340, 380]
    assert ARTICLE.C == 200 and ARTICLE.default_seed == 999
    assert (ARTICLE.metric, ARTICLE.optimiser, ARTICLE.parameterisation) == ("l1", "gradient", "pixels")
    assert ARTICLE.clamp == "never" and ARTICLE.jitter == 0 and ARTICLE.rescue == 0
    assert ARTICLE.resolved(224).sizes == (299, 340, 380), "whatever the network's own size"


def test_what_the_article_leaves_out_is_said() -> None:
    for found in (ARTICLE, ARTICLE_LOWRES, ARTICLE_NORMALISED):
        assert found.notes and all(isinstance(n, str) and n for n in found.notes)
    notes = " ".join(ARTICLE.notes)
    assert all(word in notes for word in ("299", "blur", "start", "normalisation", "clamp"))


def test_article_lowres_only_makes_smaller() -> None:
    assert ARTICLE_LOWRES.steps == 100
    sizes = [o.size for o in ARTICLE_LOWRES.octaves]
    assert sizes == sorted(sizes, reverse=True) == [299, 260, 224]
    ends = [(o.rate, o.sigma) for o in ARTICLE_LOWRES.octaves]
    assert ends[0][0][0] == 0.4 and ends[-1][0][1] == 0.3 and ends[0][1][0] == 2.4 and ends[-1][1][1] == 0.8
    assert all(a[0][1] == b[0][0] and a[1][1] == b[1][0] for a, b in pairwise(ends)), "one schedule"


def test_article_normalised_moves_a_pixel_by_hundredths() -> None:
    assert ARTICLE_NORMALISED.optimiser == "rms"
    assert [tuple(round(v, 12) for v in o.rate) for o in ARTICLE_NORMALISED.octaves] == [
        (0.04, 0.03),
        (0.03, 0.02),
        (0.02, 0.01),
    ]
    assert [(o.steps, o.sigma, o.size) for o in ARTICLE_NORMALISED.octaves] == [
        (o.steps, o.sigma, o.size) for o in ARTICLE.octaves
    ]


def test_interact_has_linear_steps_only() -> None:
    assert (INTERACT.optimiser, INTERACT.clamp, INTERACT.parameterisation) == ("rms", "never", "pixels")
    assert (INTERACT.metric, INTERACT.rescue, INTERACT.jitter) == ("l1", 1.0, 0)


def test_the_earlier_interact_has_the_identity_that_its_runs_recorded() -> None:
    # the settings of version 0.2, whose runs know no `rescue_terms`
    identity = Recipe.named("interact-unrescued", size=96).identity()
    assert "rescue_terms" not in identity and identity["rescue"] == 0
    assert renamed_recipe(identity | {"name": "interact"}) == "interact-unrescued"
    assert renamed_recipe(Recipe.named("interact", size=96).identity()) is None
    assert renamed_recipe(Recipe.named("fast", size=96).identity()) is None


def test_the_articles_schedule() -> None:
    # start * (n - i) / n + end * i / n, as in the article's octave(): the last value is never quite reached
    assert interpolate_schedule((2.4, 0.8), 0, 100) == 2.4
    assert interpolate_schedule((2.4, 0.8), 50, 100) == pytest.approx(1.6)
    assert interpolate_schedule((2.4, 0.8), 99, 100) == pytest.approx(2.4 / 100 + 0.8 * 0.99)
    assert interpolate_schedule((0.4, 0.4), 3, 7) == pytest.approx(0.4)


def test_recipes_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        PIXELS.C = 3  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        PIXELS.octaves[0].steps = 3  # type: ignore[misc]
    assert hash(PIXELS) == hash(replace(PIXELS))


# ---------------------------------------------------------------- sizes and steps


def test_an_open_size_is_the_networks_own_or_the_one_asked_for() -> None:
    assert INTERACT.resolved(96).size == 96
    assert INTERACT.resolved(96, size=40).size == 40
    assert INTERACT.resolved(96).octaves[0].steps == INTERACT.octaves[0].steps
    with pytest.raises(RecipeError, match="recipe interact has no size yet"):
        _ = INTERACT.size


def test_a_largest_size_bounds_the_networks_own_only() -> None:
    bounded = replace(INTERACT, max_default_size=128)
    assert bounded.resolved(299).size == 128
    assert bounded.resolved(96).size == 96
    assert bounded.resolved(299, size=200).size == 200


def test_the_articles_sizes_keep_their_proportions() -> None:
    assert ARTICLE.resolved(96, size=96).sizes == (76, 86, 96)
    assert ARTICLE.resolved(96, size=760).sizes == (598, 680, 760)
    assert ARTICLE.resolved(96, size=1).sizes == (1, 1, 1)
    assert ARTICLE_LOWRES.resolved(96, size=112).sizes == (150, 130, 112)


def test_octaves_are_fractions_of_the_final_size() -> None:
    two = Recipe("two", (Octave(3, (0.1, 0.1), size=0.5), Octave(3, (0.1, 0.1))))
    assert two.resolved(97).sizes == (48, 97)
    assert two.resolved(97, size=20).sizes == (10, 20)
    assert two.resolved(1).sizes == (1, 1)


@given(st.integers(1, 700))
@repeatable
def test_steps_are_shared_out_in_proportion(steps: int) -> None:
    for chosen in (ARTICLE, ARTICLE_LOWRES, PIXELS):
        shared = chosen.resolved(96, steps=steps)
        assert shared.steps == steps
        assert all(o.steps >= 1 for o in shared.octaves)
        if steps >= chosen.steps:
            ratio = steps / chosen.steps
            for old, new in zip(chosen.octaves, shared.octaves, strict=True):
                assert abs(new.steps - old.steps * ratio) <= 1
        if steps > 1:
            assert shared.size == chosen.resolved(96).size, "the finished size is reached all the same"


@pytest.mark.parametrize("name", ["article", "article-lowres"])
def test_a_single_step_makes_an_image_of_the_size_asked_for(name: str) -> None:
    assert Recipe.named(name).resolved(96, size=96, steps=1).size == 96


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("size", [1, 37, 96, 299, 380])
def test_a_resolved_recipe_stays_as_it_is(name: str, size: int) -> None:
    for changes in ({}, {"steps": 7}, {"rows": 4, "metric": "l2"}):
        chosen = Recipe.named(name, size=size, **changes)
        assert chosen.size == size
        for input_size in (1, 64, 224, 500):
            assert chosen.resolved(input_size) == chosen
            assert chosen.resolved(input_size, size, chosen.steps) == chosen
        assert Recipe.named(chosen) is chosen and Recipe.named(chosen, size=size, steps=chosen.steps) == chosen


@given(name=st.sampled_from(sorted(RECIPES)), size=st.integers(1, 400), steps=st.integers(1, 400))
@repeatable
def test_a_named_recipe_with_a_size_is_the_resolved_one(name: str, size: int, steps: int) -> None:
    plain = RECIPES[name]
    assert Recipe.named(name, size) == plain.resolved(size, size=size)
    chosen = Recipe.named(name, size, steps, metric="l2", rows=8, C=None)
    assert chosen == plain.resolved(size, size=size, steps=steps, metric="l2", rows=8) and chosen.C == plain.C
    assert Recipe.named(plain, size, steps, metric="l2", rows=8) == chosen


@given(name=st.sampled_from(sorted(RECIPES)), size=st.integers(1, 400), steps=st.integers(1, 400))
@repeatable
def test_a_named_recipe_without_a_size_is_resolved_later(name: str, size: int, steps: int) -> None:
    shared = Recipe.named(name, steps=steps, jitter=2)
    assert shared.steps == steps and {o.size for o in shared.octaves} <= {o.size for o in RECIPES[name].octaves}
    for later in ({}, {"size": size}):
        assert shared.resolved(96, **later) == RECIPES[name].resolved(96, steps=steps, jitter=2, **later)


@pytest.mark.parametrize("changes", [{"std": 0.1}, {"colour": 3}, {"octaves": ()}])
def test_settings_that_a_named_recipe_does_not_have(changes: dict) -> None:
    setting = next(iter(changes))
    with pytest.raises(RecipeError, match=f"setting '{setting}' is unknown; allowed: metric, C, rows") as caught:
        Recipe.named("pixels", **changes)
    assert str(caught.value).endswith(", ".join(CHANGEABLE))


@pytest.mark.parametrize("changes", [{"size": 0}, {"steps": 0}, {"steps": 2.5}, {"size": "96"}, {"rows": 1}])
def test_values_that_a_named_recipe_cannot_have(changes: dict) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.named("pixels", **changes)
    assert len(str(caught.value).splitlines()) == 1


def test_which_recipes_are_linear() -> None:
    linear = {name: Recipe.named(name, size=96).linear for name in RECIPES}
    assert linear == {
        "article": True,
        "article-lowres": True,
        "article-normalised": False,  # over its RMS, and at several sizes
        "interact": True,
        "interact-unrescued": True,
        "pixels": False,
        "pixels-long": False,
        "large": False,
        "natural": False,
        "fast": False,
        "standard": False,
    }
    interact = Recipe.named("interact", size=96)
    assert not replace(interact, clamp="every").linear and not replace(interact, parameterisation="fourier").linear


def test_other_fields_can_be_changed() -> None:
    changed = PIXELS.resolved(96, metric="l2", C=3.0, rows=4, clamp=None)
    assert (changed.metric, changed.C, changed.rows, changed.clamp) == ("l2", 3.0, 4, PIXELS.clamp)
    assert PIXELS.metric == "l1", "the recipe itself stays"


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": 0}, "size 0: an image has at least 1 pixel"),
        ({"size": -3}, "size -3"),
        ({"steps": 0}, "at least 1 step"),
        ({"steps": -3}, "at least 1 step"),
        ({"rows": 1}, "a batch of one image rounds differently"),
        ({"rows": 0}, "rows 0"),
        ({"metric": "l3"}, r"metric 'l3' is unknown \(nearest: .*allowed: l1, l2, linf, linf-elementwise"),
        ({"metric": "L1"}, "metric 'L1' is unknown"),
        ({"C": float("nan")}, "C nan: give a finite number"),
        ({"C": float("inf")}, "C inf: give a finite number"),
    ],
)
def test_settings_that_cannot_be(changes: dict, words: str) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        PIXELS.resolved(96, **changes)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"optimiser": "sgd"},  # runs as Adam
        {"clamp": "always"},  # clamps at the end
        {"parameterisation": "wavelets"},  # a KeyError later
        {"jitter": -1},  # NumPy's ValueError later
        {"std": float("nan")},
        {"rescue": -0.5},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_settings_that_mean_nothing_are_refused(changes: dict) -> None:
    with pytest.raises(RecipeError):
        PIXELS.resolved(96, **changes)


def test_a_recipe_without_octaves() -> None:
    with pytest.raises(RecipeError, match="every octave takes at least 1 step"):
        Recipe("none", ())
    with pytest.raises(RecipeError, match="every octave takes at least 1 step"):
        Recipe("none", (Octave(2, (0.1, 0.1)), Octave(0, (0.1, 0.1))))


# ---------------------------------------------------------------- identity


@pytest.mark.parametrize("name", RECIPES)
def test_identity_survives_json(name: str) -> None:
    chosen = Recipe.named(name).resolved(96, size=50)
    again = Recipe.from_identity(json.loads(json.dumps(chosen.identity())))
    assert again.identity() == chosen.identity() and again.digest == chosen.digest
    assert (again.octaves, again.steps, again.sizes) == (chosen.octaves, chosen.steps, chosen.sizes)
    forgotten = {"notes", "default_seed", "max_default_size"}
    assert all(getattr(again, f.name) == getattr(chosen, f.name) for f in fields(Recipe) if f.name not in forgotten)


def test_identity_knows_what_it_does_not_know() -> None:
    values = PIXELS.resolved(96).identity() | {"a later version's": 3}
    assert Recipe.from_identity(values) == replace(
        PIXELS.resolved(96), notes=(), default_seed=Recipe.default_seed, max_default_size=None
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"size": 64},
        {"steps": 11},
        {"metric": "l2"},
        {"C": 100.0},
        {"rows": 8},
        {"optimiser": "rms"},
        {"parameterisation": "fourier"},
        {"clamp": "never"},
        {"jitter": 2},
        {"mean": 0.4},
        {"std": 0.1},
        {"rescue": 0.0},
        {"rescue_terms": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_whatever_images_depend_on_is_in_the_identity(changes: dict) -> None:
    base = PIXELS.resolved(96)
    assert PIXELS.resolved(96, **changes).digest != base.digest
    assert replace(base, notes=("a note",), default_seed=5).digest == base.digest
