from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image

from analyses import natural_start
from analyses.natural_start import STUDY, judge, measure, measure_departure, starting_image
from analyses.support import half_life
from analyses.support.inputs import REFERENCE_IMAGES, reference_statistics, smallest_size
from featmap import FeatmapError, image_ops
from featmap.network.loading import load
from featmap.optimize.parameterization import null_image
from featmap.optimize.recipe import PIXELS, Octave
from featmap.runs.folder_layout import DEAD
from tests.helpers import networks, tiny
from tests.helpers.studying import context_of, value_of

pytestmark = pytest.mark.usefixtures("one_thread")
RNG = np.random.default_rng(4)


def orthogonal(count: int, features: int) -> np.ndarray:
    """Profiles that have no correlation with each other: zero mean, length 1."""
    given = np.column_stack([np.ones(features), RNG.normal(size=(features, count))])
    return np.linalg.qr(given)[0][:, 1:].T


def run_of(**arrays: tuple[tuple[str, ...], np.ndarray]) -> xr.Dataset:
    return xr.Dataset(arrays, coords={"image": ["a:0", "a:1"]})


def test_half_life_of_a_profile_that_turns_into_another() -> None:
    """(1 - s) P + s Q: its correlation with P is (1 - s) / |.|, a half at s = sqrt(3) / (1 + sqrt(3))."""
    photo, *aims = orthogonal(3, 30)
    s = np.linspace(0, 1, 201)[:, None]
    frames = np.stack([(1 - s) * photo + s * aim for aim in aims])
    mean, deviation = RNG.normal(size=30), RNG.uniform(0.5, 2, 30)
    one = run_of(
        frame_A=(("seed", "image", "frame", "response"), (frames * deviation + mean)[None]),
        activation=(("seed", "image"), np.array([[3.0, 2.0]])),
        frame=(("frame",), np.arange(201)),
    )
    other = run_of(
        A=(("seed", "image", "response"), np.stack([np.stack(aims)] * 2) * deviation + mean),
        status=(("seed", "image"), np.zeros((2, 2), dtype=np.uint8)),
        activation=(("seed", "image"), np.array([[4.0, 2.0], [6.0, 4.0]])),
        null_activation=(("seed", "image"), np.array([[1.0, 1.0], [1.0, 1.0]])),
    )
    still = np.array([photo, photo + aims[0], aims[1], *[aims[1]] * 198]) * deviation + mean
    first, second = measure_departure("a", one, other, (mean, deviation), still)
    assert first.half == pytest.approx(200 * np.sqrt(3) / (1 + np.sqrt(3)), abs=0.01)
    assert (
        first.with_start[0] == pytest.approx(1)
        and first.with_target[-1] == pytest.approx(1)
        and first.seeds == pytest.approx(1)
    )
    assert first.floor == pytest.approx(0, abs=1e-9) and first.other == pytest.approx(0, abs=1e-9)
    assert first.blurred[:3] == pytest.approx([1, np.sqrt(0.5), 0], abs=1e-9)
    assert first.half_blurred == pytest.approx(1 + (np.sqrt(0.5) - 0.5) / np.sqrt(0.5)), "to the same end, 0"
    assert half_life.count_early([first, second]) == 0
    quick = replace(second, with_start=np.array([1.0, 0.4, *[0.0] * 199]))
    assert quick.half == 1 and half_life.count_early([quick, first, quick]) == 2
    assert (first.reached, second.reached) == (0.5, 0.5)
    (alone,) = measure_departure(
        "a", one, other.assign(status=(("seed", "image"), [[0, DEAD], [0, 0]])), (mean, deviation), still
    )
    assert alone.unit == "a:0" and np.isnan(alone.other)
    missing = np.where(np.arange(30) == 7, np.nan, deviation)
    assert measure_departure("a", one, other, (mean, missing), still)[0].half == pytest.approx(first.half, abs=10)


def leaving(half: float, blurred: float) -> natural_start.Departure:
    """A feature whose two half-lives over ten steps, to an end of 0, are these: a fall by 1 / (2 half) a step."""
    steps = np.arange(11)
    own, still = (np.maximum(1 - steps / (2 * h), 0) if np.isfinite(h) else np.ones(11) for h in (half, blurred))
    return natural_start.Departure("a:0", "a", steps, own, own, 0.0, 0.0, 0.0, still, 1.0)


def test_the_lead_over_blur_follows_the_paired_interval() -> None:
    both, first, late = leaving(0.5, 0.7), leaving(0.6, 2.0), leaving(3.0, 2.0)
    never = leaving(np.inf, 4.0)
    assert half_life.lead_over_blur([both, first, late, never]) == pytest.approx([0, 1, -1, -6])
    conclusion = half_life.half_life_sentence([first, first, leaving(0.5, 3.0), both])
    assert "within the first step in 4 of 4 features, under the recipe's blur alone in 1" in conclusion
    assert "not shown to be faster: the half-life under blur alone is longer by 1.00 [-0.30, 2.30] steps" in conclusion
    conclusion = half_life.half_life_sentence([first, leaving(0.5, 3.0), leaving(0.5, 2.5)])
    assert "The descent is faster: the half-life under blur alone is longer by 1.50 [0.26, 2.74] steps" in conclusion
    assert "faster" not in half_life.half_life_sentence([first, first]), "two features have no say"
    assert half_life.half_life_sentence([replace(first, with_start=np.full(11, np.nan))]) == ""


def test_a_lead_over_half_lives_that_blur_never_reaches_is_a_lower_bound() -> None:
    reached, never = leaving(2.0, 5.0), leaving(2.0, np.inf)  # leads of 3, and of 10 - 2 with the last of ten steps
    given = [reached, never, never]
    found_ = {f.name: f for f in natural_start.collect_findings(given, [], True)}
    assert found_["sooner:a"].value == pytest.approx((3 + 8 + 8) / 3)
    assert found_["sooner:a"].words.endswith(
        "; never reached, and counted as the last step, under blur alone in 2 of 3 features: the difference is at "
        "least this"
    )
    assert found_["half_blurred:a"].value == pytest.approx(5)
    assert found_["half_blurred:a"].words.endswith("; mean of the 1 of 3 features in which it is reached")
    text = natural_start.write_conclusion(given, [], True)
    assert "least this: under blur alone the half-life is within the 10 steps in only 1 of 3 features. All" in text
    assert text.endswith(
        "All this is of one photograph; the article shows nothing of it here, and only points to its part II."
    )
    everywhere = natural_start.write_conclusion([reached] * 3, [], True)
    assert "longer by 3.00" in everywhere and "at least" not in everywhere
    words = {f.name: f.words for f in natural_start.collect_findings([reached] * 3, [], True)}
    assert not any("reached" in words[f"{name}:a"] for name in ("sooner", "half_blurred"))


FAST, SLOW, EARLY, STAYS, STILL = (
    leaving(2.0, 5.0),
    leaving(3.0, 5.0),
    leaving(0.5, 5.0),
    leaving(np.inf, 5.0),
    leaving(2.0, np.inf),
)
QUICK_BLUR = leaving(2.0, 0.7)


@pytest.mark.parametrize(
    ("given", "truth"),
    [
        ([FAST, SLOW, EARLY], None),
        ([FAST, SLOW, STILL], "at least"),
        ([EARLY, SLOW, STILL], "at least"),  # shorter than the one step it counts as
        ([FAST, SLOW, STAYS], "at most"),
        ([QUICK_BLUR, SLOW, STAYS], "at most"),
        ([FAST, STILL, STAYS], "neither"),
        ([FAST, STILL, QUICK_BLUR], "neither"),
        ([EARLY, SLOW, STAYS], "neither"),
        ([FAST, SLOW, leaving(np.inf, np.inf)], "neither"),
    ],
)
def test_the_lead_bounds_the_true_one_in_the_direction_of_its_cuts(
    given: list[natural_start.Departure], truth: str | None
) -> None:
    """By hand: in each feature, the range of true leads that the ten steps leave open, minus the computed lead."""
    lowest = highest = 0.0
    for d, lead in zip(given, half_life.lead_over_blur(given), strict=True):
        ends = [(10, 999) if h == np.inf else (0, 1) if h == 1 else (h, h) for h in (d.half, d.half_blurred)]
        lowest += ends[1][0] - ends[0][1] - lead
        highest += ends[1][1] - ends[0][0] - lead
    cut = any(np.inf in (d.half, d.half_blurred) for d in given)
    by_hand = {(True, False): "at most", (False, True): "at least", (True, True): "neither"}
    assert truth == (by_hand[bool(lowest < 0), bool(highest > 0)] if cut else None)
    assert natural_start.lead_bound(given) == truth
    text = natural_start.lead_sentence(given)
    if truth is None:
        assert text == ""
    else:
        assert text.startswith(f". The difference is {truth} ")


def test_a_descent_that_keeps_its_start_makes_the_lead_an_upper_bound() -> None:
    """Computed with the last of ten steps: 5 - 10, 5 - 2 and 5 - 3; the first is less than -5."""
    given = [STAYS, FAST, SLOW]
    assert natural_start.lead_sentence(given) == (
        ". The difference is at most this: in the descent the half-life is within the 10 steps in only 2 of 3 features"
    )
    found_ = {f.name: f for f in natural_start.collect_findings(given, [], True)}
    assert found_["sooner:a"].value == pytest.approx(0)
    assert found_["sooner:a"].words.endswith(
        "; never reached, and counted as the last step, in the descent in 1 of 3 features: the difference is at most "
        "this"
    )
    assert "reached" not in found_["half_blurred:a"].words, "all of these are reached"


@pytest.mark.parametrize("other", [leaving(np.inf, 5.0), leaving(0.5, 0.7)], ids=["stays", "early"])
def test_a_lead_with_bounds_on_both_sides_is_no_bound(other: natural_start.Departure) -> None:
    """A feature that keeps its start to the end makes the lead too high, and so does a blur of less than a step."""
    given = [leaving(2.0, np.inf), leaving(2.0, 5.0), other]
    assert natural_start.lead_bound(given) == "neither"
    stays = int(other.half == np.inf)
    assert natural_start.lead_sentence(given) == (
        ". The difference is neither an upper nor a lower bound: the half-life is within the 10 steps in 2 of 3 "
        f"features under blur alone, and in {3 - stays} of 3 in the descent"
    )
    words = next(f.words for f in natural_start.collect_findings(given, [], True) if f.name == "sooner:a")
    assert words.endswith("in 1 of 3 features" + " and in the descent in 1 of 3 features" * stays)
    assert natural_start.lead_sentence(given[:2]) == "", "two features have no say"


def test_upper_bounds_are_counted_and_have_no_interval() -> None:
    given = [leaving(0.6, 2.0), leaving(2.0, 2.5), leaving(3.0, 3.0)]
    found_ = {f.name: f for f in half_life.half_life_findings("a", given)}
    assert found_["half:a"].value == pytest.approx(2) and found_["half:a"].low is None
    assert "at most" in found_["half:a"].words and found_["early_half:a"].value == pytest.approx(1 / 3)
    assert found_["half_blurred:a"].low is not None and found_["early_half_blurred:a"].value == 0
    assert found_["sooner:a"].value == pytest.approx(0.5)


def photograph(path: Path, size: int) -> Path:
    pixels = RNG.integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_features_with_one_best_image_reach_it_from_anywhere(tmp_path: Path) -> None:
    """`planted_1x1`: a colour all over is the best image of features 0, 2 and 3, and green 1 that of feature 1."""
    context = context_of(STUDY, networks.planted_1x1(), ("features",), tmp_path / "runs", features=4, seeds=2)
    context = replace(context, image=photograph(tmp_path / "photo.png", 20))
    outcome = measure(context)
    assert value_of(outcome, "reached:features") == pytest.approx(1.0, abs=0.01)
    assert value_of(outcome, "reached:sum:features") == pytest.approx(1.0, abs=0.01)
    assert value_of(outcome, "reached:layer:features") == pytest.approx(1.0, abs=0.01)
    assert value_of(outcome, "aim:features") == pytest.approx(1.0, abs=0.01) and outcome.verdict == "holds"
    assert outcome.conclusion.startswith("From the photograph 4 features")
    assert "All this is of one photograph; " in outcome.conclusion
    own = outcome.rows[(outcome.rows.part == "own") & (outcome.rows.step == 0)]
    np.testing.assert_allclose(own.value, 1)
    assert set(outcome.rows.unit) == {
        *(f"features:{k}" for k in range(4)),
        "4 drawn features",
        "the whole layer",
        "blur alone",
    }


def test_without_a_photograph_a_named_substitute_is_used(tmp_path: Path) -> None:
    context = context_of(STUDY, tiny.small(), ("second",), tmp_path, features=3)
    image = starting_image(context, 16)
    assert image.shape == (3, 16, 16) and image.min() >= 0 and image.max() <= 1
    assert not any(np.allclose(image, p.clamp(0, 1)) for p in image_ops.pink_noise(REFERENCE_IMAGES, 16)), (
        "not one of the reference images"
    )
    outcome = measure(context)
    assert not any("photograph" in f.words for f in outcome.findings)
    assert "All this is of one image; " in outcome.conclusion
    assert "a 1/f image (no photograph was tested" in outcome.conclusion and outcome.verdict in (
        "holds in part",
        "not decided",
    )


def test_blur_alone_is_the_descent_without_a_gradient(tmp_path: Path) -> None:
    context = context_of(STUDY, tiny.small(), ("second",), tmp_path, features=2)
    photo = starting_image(context, 16)
    recipe = replace(
        PIXELS.resolved(16, size=16, steps=6), octaves=tuple(Octave(3, (0.1, 0.1), (1, 1), s) for s in (16, 20))
    )
    found_ = natural_start.blur_responses(context, "second", recipe, photo, 2)
    assert found_.shape == (4, 11), "at steps 0, 2, 4 and 6, of which two at 20 pixels"
    end = null_image(recipe, 0, torch.from_numpy(photo))
    for frame, image in ((0, torch.from_numpy(photo)), (-1, end)):
        with torch.no_grad():
            plain = tiny.small()(image[None]).mean((2, 3)).numpy()[0]
        np.testing.assert_allclose(found_[frame], plain, rtol=1e-4, atol=1e-5)


def test_layers_of_few_or_dead_features_are_undefined_not_an_error(tmp_path: Path) -> None:
    few = measure(context_of(STUDY, tiny.two(), ("features",), tmp_path / "two", features=2))
    assert "half:features" not in {f.name for f in few.findings}, "two features have no profile"
    dead = measure(context_of(STUDY, tiny.asleep(), ("relu",), tmp_path / "dead", features=2))
    assert dead.verdict == "not decided" and dead.conclusion == "0 features rose from noise."


def test_the_verdict_follows_the_activation_reached() -> None:
    def of(reached: float) -> list[natural_start.Departure]:
        given = np.zeros(3)
        return [
            natural_start.Departure("a:0", "a", given, given, given, 0, 0, 0, given, reached * f)
            for f in (1, 1.01, 0.99)
        ]

    assert judge(of(1.0), of(0.9), True) == "holds"
    assert judge(of(1.0), of(0.5), True) == judge(of(0.5), of(1.0), True) == "holds in part"
    assert judge(of(0.5), of(0.5), True) == "does not hold"
    assert judge(of(np.nan), of(1.0), True) == "not decided"
    assert judge(of(1.0), of(0.9), False) == judge(of(1.0), of(0.5), False) == "holds in part", "no photograph"
    assert judge(of(0.5), of(0.5), False) == "not decided"


def test_reference_statistics_and_small_sizes(tmp_path: Path) -> None:
    context = context_of(STUDY, tiny.small(), ("second",), tmp_path)
    mean, deviation = reference_statistics(context, ["second", "first"], 16)
    with torch.no_grad():
        plain = tiny.small()(image_ops.pink_noise(REFERENCE_IMAGES, 16)).mean((2, 3)).numpy()
    np.testing.assert_allclose(mean[:11], plain.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(deviation[:11], plain.std(0), rtol=1e-3)
    assert mean.shape == (17,)
    assert smallest_size(load(tiny.shrinking(), input_size=200), ["last"], "pixels", 9) == 80, "9 is too small for it"
    assert smallest_size(load(tiny.small(), input_size=200), ["second"], "pixels") == 64
    assert smallest_size(load(tiny.small(), input_size=32), ["second"], "article-normalised") == 32


def test_layers_fit_into_the_smallest_octave_of_the_recipe() -> None:
    """`last` takes images of 15 pixels: octaves begin at 299 / 380 of the size, at 13 of 16 and at 15 of 19."""
    network = load(tiny.shrinking(), input_size=200)
    assert smallest_size(network, ["last"], "pixels", 16) == 16
    assert smallest_size(network, ["last"], "article-normalised", 16) == 80
    assert smallest_size(network, ["last"], "article-normalised", 19) == 19
    assert smallest_size(load(tiny.shrinking(), input_size=19), ["last"], "article-normalised") == 19
    small = load(tiny.shrinking(), input_size=18)
    with pytest.raises(FeatmapError, match=r"layer 'last' does not fit .* article-normalised, 14 pixels"):
        smallest_size(small, ["first", "last"], "article-normalised")
