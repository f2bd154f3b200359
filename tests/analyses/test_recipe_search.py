"""The search for recipes: what it measures of each candidate, in a closed form where there is one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from analyses.benchmarks import search
from featmap import Network, channel, load
from featmap.errors import FeatmapError, RecipeError
from featmap.optimize.batch import Batches
from featmap.optimize.recipe import LARGE, PIXELS, PIXELS_LONG, Octave, Recipe
from featmap.optimize.responses import Probe
from tests.helpers import networks

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


def inception() -> Network:
    return load(networks.small_inception(), input_size=32)


def test_work_weights_steps_by_the_images_area() -> None:
    recipe = Recipe("two", (Octave(10, (0.1, 0.1), size=0.5), Octave(4, (0.1, 0.1)))).resolved(32)
    assert search.work(recipe) == 10 / 4 + 4


def test_a_row_is_stopped_once_it_hardly_rises() -> None:
    curve = np.array([[1, 2, 3, 4, 4.02, 4.03, 4.04, 5], [1, 2, 3, 4, 5, 6, 7, 8], [0] * 8, [0, 0, 0, 0, 0, 0, 1, 2]])
    found = search.early_stops(curve)
    assert found[0].tolist() == [7 / 8, 4.04 / 5], "4.04 is less than 1.02 times 4, three steps before"
    assert found[1].tolist() == [1, 1] and np.isnan(found[2]).all() and found[3].tolist() == [1, 1]


def tally(activation: float | list[float], high: float = 0.1, own: float = 1.0, seconds: float = 1.0) -> search.Tally:
    """Four layers and seeds of three features."""
    rows = [[activation] * 3 if isinstance(activation, float) else activation] * 4
    return search.Tally(rows, [[high] * 3] * 4, [[own] * 3] * 4, [[[0.5, 0.9]] * 3] * 4, [seconds, 2 * seconds])  # type: ignore[list-item]


def test_a_candidate_that_is_twice_the_base_has_a_gain_of_two() -> None:
    base, twice = tally([1.0, 2.0, 0.0], seconds=2), tally([2.0, 4.0, 1.0], high=0.2)
    twice.own = [[True, False, True]] * 4
    found = search.summarise("x", twice, base, seeds=2)
    assert found["activation"] == pytest.approx([2, 2, 2]) and found["lost"] == 0 and found["rows"] == 12
    assert found["seconds"] == 0.5 and found["high"] == pytest.approx([2, 2, 2]) and found["high_share"] == 0.2
    assert found["identity"][0] == pytest.approx(2 / 3)
    assert found["stopped"] == pytest.approx([0.5, 0.9])
    assert search.summarise("y", base, twice, seeds=2)["lost"] == 4


def test_a_winner_is_faster_as_smooth_and_loses_nothing() -> None:
    base = tally(1.0)
    for mine, expected in (
        (tally(0.95, seconds=0.5), True),
        (tally(0.95, seconds=1.0), False),
        (tally(0.95, high=0.11, seconds=0.5), False),
        (tally([0.95, 0.95, 0.0], seconds=0.5), False),
        (tally(0.95, own=0.9, seconds=0.5), False),
        (tally(1.0), False),
    ):
        assert search.summarise("x", mine, base, seeds=2)["wins"] is expected


def test_features_count_once_after_the_mean_over_their_seeds() -> None:
    rng = np.random.default_rng(2)
    gains = rng.normal(size=(3, 2, 5))  # layers, seeds, features
    gains[0, 1, 0] = np.nan
    each = np.nanmean(gains, axis=1).ravel()
    (middle, low, high), count = search.interval_over_features(gains.reshape(6, 5), 2)
    assert middle == pytest.approx(each.mean()) and count == 15
    assert high - low == pytest.approx(2 * 2.1447867 * each.std(ddof=1) / np.sqrt(15)), "t of 14 degrees of freedom"


def test_what_is_tried_is_judged_on_the_untouched_network() -> None:
    network, channels = inception(), [1, 3, 4]
    recipes = [c.recipe.resolved(32, 32, steps=6, rows=2) for c in search.choose_candidates("quick-20,coarse-to-fine")]
    found = search.try_recipes(network, "mixed", channels, recipes, 1)
    assert len(found) == 3
    for recipe, made in zip(recipes, found, strict=True):
        images = torch.cat(
            [
                Batches(network, CPU).descend([channel("mixed", c) for c in part], recipe, 1).images
                for part in ([1, 3], [4])
            ]
        )
        responses = Probe(network, 2).responses(images, ["mixed"])["mixed"]
        assert made["activation"] == pytest.approx([responses[k, c] for k, c in enumerate(channels)], rel=1e-5)
        assert made["own"] == [bool(responses[:, c].argmax() == k) for k, c in enumerate(channels)]
        assert len(made["seconds"]) == 2 and all(s > 0 for s in made["seconds"])


def test_candidates_are_chosen_by_unique_names() -> None:
    assert len({c.recipe.name for c in search.CANDIDATES}) == len(search.CANDIDATES)
    assert [c.recipe.name for c in search.choose_candidates("quick-20")] == [search.BASE, "quick-20"]
    with pytest.raises(FeatmapError, match="candidate 'quick' is unknown; allowed: adam-40"):
        search.choose_candidates("quick")


def test_our_recipes_are_candidates() -> None:
    tried = {c.recipe.name: c for c in search.CANDIDATES}
    for ours, name in ((PIXELS, "quick-24-middle"), (PIXELS_LONG, "quick-60-lighter"), (LARGE, "half-then-whole")):
        assert (tried[name].recipe.octaves, tried[name].recipe.betas) == (ours.octaves, ours.betas)
        assert f"`{ours.name}`" in tried[name].words


def test_the_search_writes_numbers_and_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "load", lambda *_: inception())
    page, numbers = tmp_path / "README.md", tmp_path / "search.json"
    for only in ("quick-20", "normalised-24"):
        search.main(layers="mixed", features=3, seeds=2, only=only, out=numbers, readme=page)
        known = json.loads(numbers.read_text())["networks"]
        assert len(known) == 1 and search.format_table({"networks": known}) in page.read_text()
    (found,) = known.values()
    assert [r["name"] for r in found["rows"]] == [search.BASE, "quick-20", "normalised-24"], "tried in pieces"
    given = "--layers mixed --features 3 --seeds 2 --only quick-20,normalised-24"
    assert f"`python -m analyses.benchmarks.search {given}` on network " in page.read_text()
    assert found["rows"][1]["machine"]["cores"] > 0
    assert found["rows"][0]["activation"] == pytest.approx([1, 1, 1]) and found["rows"][0]["seconds"] == 1
    search.main(layers="mixed", features=3, seeds=1, size=24, only="quick-20", out=numbers, readme=page)
    search.main(layers="mixed", features=3, seeds=1, only="quick-20", out=numbers, readme=page)
    known = json.loads(numbers.read_text())["networks"]
    assert [len(v["rows"]) for v in known.values()] == [2, 2], "other seeds: what was stored before is not the same"
    assert "--features 3 --seeds 1 --size 24 --only quick-20` on network " in page.read_text()


def test_a_row_of_another_recipe_under_the_same_name_is_dropped() -> None:
    what, recipes = {"layers": ["a"]}, {"one": {"steps": 1}, "two": {"steps": 2}}
    old = [{"name": "one", "recipe": {"steps": 9}}, {"name": "two", "recipe": {"steps": 2}}]
    new = [{"name": "one", "recipe": {"steps": 1}}]
    assert search.merge_rows({**what, "rows": old}, what, recipes, new) == [new[0], old[1]]
    assert search.merge_rows({**what, "rows": old}, what, recipes, []) == [old[1]]
    assert search.merge_rows({"layers": ["b"], "rows": old}, what, recipes, new) == new


# ---------------------------------------------------------------- Adam's memory


def test_betas_belong_to_a_recipes_identity_unless_they_are_adams_own() -> None:
    shorter = Recipe("x", PIXELS.octaves, betas=(0.8, 0.99)).resolved(32)
    plain = Recipe("x", PIXELS.octaves, betas=(0.9, 0.999)).resolved(32)
    assert "betas" not in plain.identity() and shorter.digest != plain.digest
    assert Recipe.from_identity(shorter.identity()).betas == (0.8, 0.99)
    for wrong in ((1.0, 0.9), (-0.1, 0.9), (0.9,)):
        with pytest.raises(RecipeError, match="give two numbers from 0 to less than 1"):
            Recipe("x", PIXELS.octaves, betas=wrong)  # type: ignore[arg-type]


def test_adam_with_other_betas_is_torchs() -> None:
    from featmap.optimize.parameterization import Optimiser

    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4, requires_grad=True)
    direction, optimiser = Optimiser("adam", (0.8, 0.99)), torch.optim.Adam([theirs], lr=0.1, betas=(0.8, 0.99))
    for _ in range(5):
        gradient = torch.randn(ours.shape, generator=generator)
        ours = ours - 0.1 * direction(gradient)
        theirs.grad = gradient.clone()
        optimiser.step()
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)
