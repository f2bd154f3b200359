"""The search for recipes: what it measures of each candidate, in a closed form where there is one."""

from __future__ import annotations

import json
from pathlib import Path

import networks
import numpy as np
import pytest
import torch

from analyses.benchmarks import search
from featmap import Network, channel, load
from featmap.batches import Batches
from featmap.errors import FeatmapError, RecipeError
from featmap.probing import Probe
from featmap.recipes import FAST, Octave, Recipe

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


def inception() -> Network:
    return load(networks.small_inception(), input_size=32)


def test_work_weights_steps_by_the_images_area() -> None:
    recipe = Recipe("two", (Octave(10, (0.1, 0.1), size=0.5), Octave(4, (0.1, 0.1)))).resolved(32)
    assert search.work(recipe) == 10 / 4 + 4


def test_settled_is_the_share_of_steps_after_which_a_row_has_nearly_all() -> None:
    curve = np.array([[0, 0.5, 0.995, 1.0, 1.0], [0, 0.2, 0.4, 0.6, 1.0], [0, 0, 0, 0, 0]])
    assert search.settled(curve)[:2].tolist() == [0.5, 1.0] and np.isnan(search.settled(curve)[2])


def test_a_candidate_that_is_twice_the_base_has_a_gain_of_two() -> None:
    own = [[True, False, True]] * 4
    base = search.Tally([[1.0, 2.0, 0.0]] * 4, [[0.1] * 3] * 4, own, [[0.5] * 3] * 4, [2.0, 4.0])
    twice = search.Tally([[2.0, 4.0, 1.0]] * 4, [[0.2] * 3] * 4, own, [[0.5] * 3] * 4, [1.0, 2.0])
    found = search.row("x", twice, base, seeds=2)
    assert found["activation"] == pytest.approx([2, 2, 2]) and found["lost"] == 0
    assert found["seconds"] == 0.5 and found["high"] == 0.2 and found["identity"][0] == pytest.approx(2 / 3)
    assert search.row("y", base, twice, seeds=2)["lost"] == 4


def test_features_count_once_after_the_mean_over_their_seeds() -> None:
    rng = np.random.default_rng(2)
    gains = rng.normal(size=(3, 2, 5))  # layers, seeds, features
    ones = np.ones((6, 5))
    base = search.Tally(ones.tolist(), ones.tolist(), ones.tolist(), ones.tolist(), [1.0])
    mine = search.Tally(np.exp(gains).reshape(6, 5).tolist(), *[ones.tolist()] * 3, [1.0])
    each = gains.mean(1).ravel()
    middle, low, high = np.log(search.row("x", mine, base, seeds=2)["activation"])
    assert middle == pytest.approx(each.mean())
    assert high - low == pytest.approx(2 * 2.1447867 * each.std(ddof=1) / np.sqrt(15)), "t of 14 degrees of freedom"


def test_what_is_tried_is_judged_on_the_untouched_network() -> None:
    network, channels = inception(), [1, 3, 4]
    recipes = [c.recipe.resolved(32, 32, steps=6, rows=2) for c in search.chosen("quick-20,coarse-to-fine")]
    found = search.tried(network, "mixed", channels, recipes, 1)
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


def test_names_of_candidates() -> None:
    assert len({c.recipe.name for c in search.CANDIDATES}) == len(search.CANDIDATES)
    assert [c.recipe.name for c in search.chosen("quick-20")] == [search.BASE, "quick-20"]
    with pytest.raises(FeatmapError, match="candidate 'quick' is unknown; allowed: adam-40"):
        search.chosen("quick")


def test_the_search_writes_numbers_and_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "load", lambda *_: inception())
    page, numbers = tmp_path / "README.md", tmp_path / "search.json"
    for only in ("quick-20", "normalised-24"):
        search.main(layers="mixed", features=3, seeds=2, only=only, out=numbers, readme=page)
        known = json.loads(numbers.read_text())["networks"]
        assert len(known) == 1, "a network's rows are those of its last run"
        assert [r["name"] for r in next(iter(known.values()))["rows"]] == [search.BASE, only]
        assert search.table({"networks": known}) in page.read_text()
    base = next(iter(known.values()))["rows"][0]
    assert base["activation"] == pytest.approx([1, 1, 1]) and base["seconds"] == 1


# ---------------------------------------------------------------- Adam's memory


def test_betas_belong_to_a_recipes_identity_unless_they_are_adams_own() -> None:
    shorter = Recipe("x", FAST.octaves, betas=(0.8, 0.99)).resolved(32)
    plain = Recipe("x", FAST.octaves, betas=(0.9, 0.999)).resolved(32)
    assert "betas" not in plain.identity() and shorter.digest != plain.digest
    assert Recipe.from_identity(shorter.identity()).betas == (0.8, 0.99)
    for wrong in ((1.0, 0.9), (-0.1, 0.9), (0.9,)):
        with pytest.raises(RecipeError, match="give two numbers from 0 to less than 1"):
            Recipe("x", FAST.octaves, betas=wrong)  # type: ignore[arg-type]


def test_adam_with_other_betas_is_torchs() -> None:
    from featmap.descent import _Steps

    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4, requires_grad=True)
    direction, optimiser = _Steps("adam", (0.8, 0.99)), torch.optim.Adam([theirs], lr=0.1, betas=(0.8, 0.99))
    for _ in range(5):
        gradient = torch.randn(ours.shape, generator=generator)
        ours = ours - 0.1 * direction(gradient)
        theirs.grad = gradient.clone()
        optimiser.step()
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)
