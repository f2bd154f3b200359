"""Candidates of a recipe, and variants with priors that no recipe has, on planted networks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from analyses.benchmarks import (
    image_candidates,
    image_records,
    image_variants,
    image_ways,
    images,
    records,
)
from featmap.cli.judge import JudgeOptions
from featmap.cli.options import NetworkOptions
from featmap.errors import FeatmapError
from featmap.network.hooks import ActivationHooks
from featmap.network.loading import load
from featmap.optimize.parameterization import Spectrum
from featmap.optimize.recipe import Recipe
from featmap.optimize.schedule import Octave
from featmap.runs.progress import Silent
from tests.helpers import judges, tiny

pytestmark = [
    pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning"),
    pytest.mark.usefixtures("one_thread"),
]


def test_candidates_differ_from_the_recipe_and_from_each_other() -> None:
    candidates = image_candidates.CANDIDATES
    identities = {
        json.dumps([c.recipe.identity() | {"name": ""}, str(c.change)], sort_keys=True) for c in candidates.values()
    }
    assert len(identities) == len(candidates) > 20
    assert {"base", "fast", "standard", "natural", "pixels"} <= set(candidates)


def test_candidates_are_judged_and_the_table_names_them(tmp_path: Path) -> None:
    place = {"out": tmp_path / "runs", "store": tmp_path / "candidates.json", "readme": tmp_path / "README.md"}
    settings = {"size": 16, "classes": 3} | place
    network, by = (
        NetworkOptions("tests.helpers.judges:colours", input_size="16"),
        JudgeOptions(["tests.helpers.judges:same_colours"], by_input_size=["16"]),
    )
    image_candidates.main(network, by, only="narrow,still", **settings)
    rows = [line.split(" | ") for line in place["readme"].read_text().splitlines() if line.startswith("| ")]
    assert [row[0].strip("| *") for row in rows] == ["candidate", "narrow", "still"]
    stored = json.loads((tmp_path / "candidates.json").read_text())["records"]
    ranks = np.array([record["transfer"]["same_colours"]["rank"] for record in stored])
    assert ranks.shape == (2, 3) and rows[0][2] == "colours by same_colours"
    for row, values in zip(rows[1:], ranks, strict=True):
        assert row[2].startswith(f"{np.mean(values < 1):.2f} / {np.mean(values < 5):.2f} / {np.median(values):g}")
    with pytest.raises(FeatmapError, match="candidate 'none' is unknown"):
        image_candidates.main(network, by, only="none", **settings)


def logit_task(folder: Path) -> image_ways.Task:
    """Three logits of the classifier of colours."""
    network = NetworkOptions("tests.helpers.judges:colours", input_size=judges.SIZE).load()
    layer, drawn = images.draw_units(network, [], 3, 0, None, 0)
    return image_ways.Task(network, layer, drawn, 0, folder)


def variant(**change: Any) -> image_variants.VariantWay:
    """A few steps of the candidates' base with a change."""
    recipe = replace(image_candidates.BASE, octaves=(Octave(6, (0.1, 0.1)),), rows=3)
    return image_variants.VariantWay(recipe.resolved(16, size=16), image_variants.Change(**change))


def test_a_variant_without_a_change_gives_the_images_of_its_recipe(tmp_path: Path) -> None:
    task, plain = logit_task(tmp_path), variant()
    watcher = Silent()
    made = plain.make(task, 1, watcher).images
    own = image_ways.RecipeWay(plain.recipe).make(task, 1, watcher).images
    assert made.labels == own.labels and made.size == own.size
    expected = own.read(0, 3)
    assert torch.allclose(made.read(0, 3), expected, atol=1e-4)
    noisy = variant(noise=0.1, copies=2).make(task, 1, watcher)  # no gradient of a linear network depends on the image
    assert torch.allclose(noisy.images.read(0, 3), expected, atol=1e-4)
    for change in ({"variation": 0.5}, {"blur": 2.0}, {"phases": True}, {"log_probability": True}):
        other = variant(**change).make(task, 1, watcher)
        assert not torch.allclose(other.images.read(0, 3), expected, atol=1e-3), change
        again = variant(**change).make(task, 1, watcher)
        assert torch.equal(again.images.read(0, 3), other.images.read(0, 3))
    assert len(list(tmp_path.rglob("*.npy"))) == 6
    with pytest.raises(FeatmapError, match="recipe pixels: variants are made of recipes of a spectrum"):
        image_variants.descend(task, task.classes, Recipe.named("pixels", 16).resolved(16), plain.change, 0)


def test_variation_makes_smoother_images(tmp_path: Path) -> None:
    task = logit_task(tmp_path)
    some, more = (variant(**c).make(task, 1, Silent()).images.read(0, 3) for c in ({"noise": 1e-9}, {"variation": 3.0}))
    assert image_variants.total_variation(more).mean() < 0.9 * image_variants.total_variation(some).mean()
    stripes = torch.tensor([0.0, 1.0, 0.0, 1.0]).expand(1, 3, 4, 4)  # each row the same: columns differ by 1
    assert image_variants.total_variation(stripes).item() == 1
    assert image_variants.total_variation(torch.stack([torch.full((3, 4, 4), 0.3)])).item() == 0


def test_statistics_of_layers_are_those_of_numpy_and_have_a_distance(tmp_path: Path) -> None:
    network = load(tiny.small(), input_size=16)
    photographs = torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = image_variants.LayerStatistics.measure(network, ["first", "second"], photographs)
    with torch.no_grad(), ActivationHooks(network.module, ["first", "second"]) as hooks:
        outputs = hooks.run(network.normalise(photographs))
    expected = []
    for layer, output in outputs.items():
        values = output.numpy().reshape(40, output.shape[1], -1).astype(float)
        moments = np.stack([values.mean(2), values.std(2)], axis=1)
        spread = np.where(moments.std(0, ddof=1) > 0, moments.std(0, ddof=1), 1)
        np.testing.assert_allclose(found.mean[layer], moments.mean(0), atol=1e-5)
        expected.append((((moments - moments.mean(0)) / spread) ** 2).mean((1, 2)))
    np.testing.assert_allclose(found.distance(outputs), np.mean(expected, axis=0), rtol=1e-2)


def test_statistics_as_photographs_come_nearer_to_theirs(tmp_path: Path) -> None:
    network = load(tiny.small(), input_size=16)
    task = image_ways.Task(network, "", {"second": [0, 1, 2]}, 0, tmp_path)
    photographs = torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    layers = image_variants.list_layers(network, "second", 16)
    assert layers == ["first", "second"]
    statistics = image_variants.LayerStatistics.measure(network, layers, photographs)
    distances = []
    for share in (0.0, 3.0):
        way = variant(statistics=share)
        made = image_variants.descend(task, "second", way.recipe, way.change, 0, photographs)
        with torch.no_grad(), ActivationHooks(network.module, layers) as hooks:
            distances.append(statistics.distance(hooks.run(network.normalise(made))).mean().item())
    assert distances[1] < 0.8 * distances[0]
    way = variant(statistics=1.0)
    with pytest.raises(FeatmapError, match="statistics are those of photographs; give a folder"):
        image_variants.descend(task, "second", way.recipe, way.change, 0)


def test_an_added_gradient_has_its_share_of_the_length() -> None:
    one, two = torch.eye(4).reshape(2, 2, 4), torch.full((2, 2, 4), 3.0)
    added = image_variants.lengthen(one, two, 0.5) - one
    lengths = torch.linalg.vector_norm(added.flatten(1), dim=1) / torch.linalg.vector_norm(one.flatten(1), dim=1)
    assert torch.allclose(lengths, torch.tensor([0.5, 0.5]))
    assert torch.equal(image_variants.lengthen(one, torch.zeros_like(two), 0.5), one)


def test_candidates_of_hidden_features_have_a_table_of_their_own(tmp_path: Path) -> None:
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    rng = np.random.default_rng(0)
    for k in range(24):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(photographs / f"{k:02}.png")
    place = {"out": tmp_path / "runs", "store": tmp_path / "hidden.json", "readme": tmp_path / "README.md"}
    network = NetworkOptions("tests.helpers.judges:colours", input_size=judges.SIZE)
    by = JudgeOptions(["tests.helpers.judges:same_colours"], by_input_size=[str(judges.SIZE)])
    hidden = {"layers": "features", "features": 3, "size": 16, "only": "narrow,statistics"}
    image_candidates.main(network, by, photographs=photographs, **hidden, **place)
    page = place["readme"].read_text()
    assert "<!-- hidden-candidates" in page and "### Hidden features" in page
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith(("| narrow", "| statistics"))]
    stored = json.loads(place["store"].read_text())["records"]
    for row, record in zip(rows, stored, strict=True):
        (found,) = record["agreement"].values()
        assert row[2] == f"{found['agreement']:.3f} / {found['agreement_of_S']:.3f}"
    with pytest.raises(FeatmapError, match="photographs are missing"):
        image_candidates.main(network, by, **hidden, **place)


def test_phases_keep_the_magnitudes_of_the_decay() -> None:
    recipe = replace(image_candidates.BASE, decay=1.0).resolved(16, size=16)
    spectrum = Spectrum(recipe)
    way = image_variants.Phases(spectrum)
    image = spectrum.noise_image(0, 16)[None]
    phases = way.to_parameters(image)
    made = way.to_images(phases)
    assert made.std().item() == pytest.approx(image_variants.PHOTOGRAPHS_CONTRAST, rel=1e-3)
    # colours undone by hand: logit, decorrelated, transformed; 16 pixels at frequency k cycles have factor 16 / k
    colours = np.array([[0.26, 0.09, 0.02], [0.27, 0.0, -0.05], [0.27, -0.09, 0.03]])
    colours /= np.linalg.norm(colours, axis=0).max()
    logits = np.log(made[0].numpy() / (1 - made[0].numpy())) * 4
    magnitudes = np.abs(np.fft.rfft2(np.einsum("ij,jhw->ihw", np.linalg.inv(colours), logits), norm="ortho"))
    ratio = magnitudes[:, 0, 1] / magnitudes[:, 0, 4]
    assert np.allclose(ratio, 4, rtol=1e-3) and np.allclose(magnitudes[:, 3, 4], magnitudes[:, 0, 5], rtol=1e-3)


def test_the_committed_candidates_agree_with_their_table() -> None:
    records_of = image_records.RecordFile(image_candidates.STORE).read()
    begin, end = records.marks(image_candidates.SECTION)
    text = records.README.read_text(encoding="utf-8").partition(begin)[2].partition(end)[0]
    assert text.strip() == image_candidates.format_candidates(records_of).strip()
