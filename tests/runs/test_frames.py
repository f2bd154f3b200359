"""Frames of descents, starts given as arrays, and the two ways to compute the gradient of a sum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image

import featmap
from featmap import image_ops
from featmap.cli.app import main
from featmap.errors import FeatmapError
from featmap.network.loading import load
from featmap.optimize.parameterization import frame_steps, initial_image
from featmap.optimize.recipe import ARTICLE, PIXELS, Recipe
from featmap.optimize.schedule import interpolate_schedule
from featmap.runs.maximise import Extras, maximise_job
from featmap.runs.progress import Silent
from tests.helpers import networks, tiny
from tests.helpers.settings import options, resolve

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL: dict[str, Any] = {"size": 16, "steps": 7, "rows": 4, "device": "cpu"}
UNITS = ["second:1", "first:2", "second:5", "relu:3", "second:1 + 0.5 * first:4"]


def test_frames_are_stored_at_the_start_the_end_and_in_between() -> None:
    assert frame_steps(6, 2) == [0, 2, 4, 6]
    assert frame_steps(7, 3) == [0, 3, 6, 7]
    assert frame_steps(3, 10) == [0, 3]
    assert frame_steps(7, 0) == []


def planted_frames(recipe: Recipe, colour: torch.Tensor, seed: int) -> dict[int, torch.Tensor]:
    """Image after each step of a feature whose gradient is `colour` everywhere, always: written out step by step."""
    image, found, done = initial_image(recipe, seed)[None], {}, 0
    for octave in recipe.octaves:
        image = image_ops.resize(image, int(octave.size or 0))
        found.setdefault(done, image[0])
        for i in range(octave.steps):
            image = image + interpolate_schedule(octave.rate, i, octave.steps) * colour[:, None, None]
            image = image_ops.blur(image, interpolate_schedule(octave.sigma, i, octave.steps))
            done += 1
            found[done] = image[0]
    return found


@pytest.mark.parametrize("every", [1, 4])
def test_frames_of_a_planted_feature_in_every_octave(every: int) -> None:
    network = load(networks.planted_1x1())
    settings = {**SMALL, "size": 19, "steps": 12, "recipe": "article", "seed": 5}
    data = featmap.maximise("features:0", network, **options(frames=every, **settings))
    recipe = ARTICLE.resolved(19, 19, 12)
    assert len(set(recipe.sizes)) == 3
    known = planted_frames(recipe, torch.tensor(networks.DIRECTIONS[0]), 5)
    assert list(data["frame"].values) == frame_steps(12, every)
    for step in data["frame"].values:
        kept = data["frames"].sel(frame=step).values[0, 0]
        own = known[int(step)]
        np.testing.assert_allclose(kept, image_ops.resize(own[None], 19)[0], rtol=1e-4, atol=1e-4)
        plain = networks.planted_1x1().double()(own[None].double()).mean((2, 3))[0].detach()
        np.testing.assert_allclose(data["frame_A"].sel(frame=step).values[0, 0], plain, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def kept() -> xr.Dataset:
    return featmap.maximise(UNITS, tiny.small(), **options(seeds=2, frames=3, **SMALL))


def test_the_last_frame_is_the_image_and_its_responses(kept: xr.Dataset) -> None:
    assert kept["frames"].dims == ("seed", "image", "frame", "channel", "y", "x")
    assert list(kept["frame"].values) == [0, 3, 6, 7]
    assert kept["frames"].values[:, :, -1].tobytes() == kept["images"].values.tobytes()
    assert kept["frame_A"].values[:, :, -1].tobytes() == kept["A"].values.tobytes()
    assert list(dict.fromkeys(str(r).rpartition(":")[0] for r in kept["response"].values)) == [
        "second",
        "first",
        "relu",
    ]
    probed = featmap.probe(kept["images"].values[1], ["second", "first", "relu"], tiny.small(), **options(device="cpu"))
    np.testing.assert_allclose(kept["A"].values[1], probed, rtol=1e-5, atol=1e-7)


def test_the_first_frame_is_the_noise_and_curves_match_the_frames(kept: xr.Dataset) -> None:
    recipe = resolve(load(tiny.small()), torch.device("cpu"), "pixels", 16, 7)
    for s in range(2):
        noise = initial_image(recipe, s).clamp(0, 1).numpy()
        assert all(frame.tobytes() == noise.tobytes() for frame in kept["frames"].values[s, :, 0])
        own = kept["frame_A"].sel(response="second:5").values[s, 2]
        # the fold of the first step sees the noise as it is, every later one what is stored
        np.testing.assert_allclose(kept["curve"].values[s, 2][[3, 6]], own[1:3], rtol=1e-4, atol=1e-6)


def test_storing_frames_changes_no_bit(kept: xr.Dataset) -> None:
    plain = featmap.maximise(UNITS, tiny.small(), **options(seeds=2, **SMALL))
    assert set(plain.variables) == set(kept.variables) - {"frames", "frame_A", "frame", "A", "null", "response"}
    for name in plain.data_vars:
        assert plain[name].values.tobytes() == kept[name].values.tobytes()


class Stopper(Silent):
    def __init__(self, after: int) -> None:
        self.left = after

    def landed(self) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def test_a_resumed_run_folder_holds_the_same(kept: xr.Dataset, tmp_path: Path) -> None:
    call = {"seeds": 2, "frames": 3, "out": tmp_path / "run", **SMALL}
    with pytest.raises(KeyboardInterrupt):
        featmap.maximise(UNITS, tiny.small(), **options(watcher=Stopper(4), **call))
    data = featmap.maximise(UNITS, tiny.small(), **options(**call))
    for name in kept.variables:
        assert data[name].values.tobytes() == kept[name].values.tobytes(), name
    with pytest.raises(FeatmapError, match="frames: 3 there, 2 here"):
        featmap.maximise(UNITS, tiny.small(), **options(**(call | {"frames": 2})))


def test_runs_without_frames_keep_their_identity() -> None:
    network = load(tiny.small())
    recipe = resolve(network, torch.device("cpu"), "pixels", 16, 7)
    plain, framed = (maximise_job(["second:1"], network, recipe, extras=Extras(frames=k)) for k in (0, 2))
    assert "frames" not in plain.identity() and framed.identity()["frames"] == 2
    assert plain.responses == () and framed.responses == ("second",)
    logits = load(networks.logits_network())
    assert maximise_job(["class:2"], logits, recipe, extras=Extras(frames=1)).responses == ("fc",), (
        "the last layer is named"
    )
    probed = maximise_job(["second:1"], network, recipe, extras=Extras(responses="first"))
    assert probed.responses == ("first",)


@pytest.mark.parametrize("frames", [-1, 2.0, True])
def test_impossible_numbers_of_frames_are_refused(frames: Any) -> None:
    with pytest.raises(FeatmapError, match="frames"):
        featmap.maximise("second:1", tiny.small(), **options(frames=frames, **SMALL))


def test_a_layer_too_deep_for_an_earlier_octave_is_refused() -> None:
    with pytest.raises(FeatmapError, match="too small for layer 'last'"):
        featmap.maximise(
            "first:1", tiny.shrinking(), **options(recipe="article", size=16, steps=6, frames=1, responses="last")
        )


def test_the_command_stores_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = "optimize second:1 --model tests.helpers.tiny:small --size 16 --steps 5 --rows 4 --frames 2 --out run"
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent.parent))
    with pytest.raises(SystemExit) as end:
        main(line.split())
    assert end.value.code == 0
    data = featmap.open_arrays("run")
    assert list(data["frame"].values) == [0, 2, 4, 5] and np.isfinite(data["frames"].values).all()


# ---------------------------------------------------------------- starts


def test_an_array_of_noise_starts_as_its_seed_does() -> None:
    recipe = resolve(load(tiny.small()), torch.device("cpu"), "pixels", 16, 7)
    noise = initial_image(recipe, 3)
    own = featmap.maximise(UNITS, tiny.small(), **options(seed=3, **SMALL))
    for start in (noise, noise.numpy(), noise.double().numpy().tolist()):
        given = featmap.maximise(UNITS, tiny.small(), **options(start=start, **SMALL))
        assert given["images"].values.tobytes() == own["images"].values.tobytes()
        assert given["null_images"].values.tobytes() == own["null_images"].values.tobytes()


def test_a_picture_and_its_array_are_the_same_start(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    array = pixels.transpose(2, 0, 1).astype(np.float32) / 255
    network = load(tiny.small())
    recipe = resolve(network, torch.device("cpu"), "pixels", 16, 7)
    read, given, other = (
        maximise_job(["second:1"], network, recipe, start=s).identity()
        for s in (tmp_path / "a.png", array, array[::-1])
    )
    assert read == given
    assert given["start"] != other["start"]


def test_a_start_array_is_copied() -> None:
    network, array = load(tiny.small()), np.zeros((3, 16, 16), dtype=np.float32)
    recipe = resolve(network, torch.device("cpu"), "pixels", 16, 7)
    for start in (array, torch.from_numpy(array)):
        job = maximise_job(["second:1"], network, recipe, start=start)
        before = job.identity()["start"]
        array += 1
        assert job.identity()["start"] == before


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (np.zeros((2, 3, 8, 8)), r"\(2, 3, 8, 8\).*3 x H x H"),
        (np.zeros((3, 8, 9)), "3 x H x H"),
        (np.zeros((3, 0, 0)), "3 x H x H"),
        (np.zeros((3, 8, 8), dtype=np.uint8), "floats"),
        (np.full((3, 8, 8), np.nan), "finite"),
    ],
)
def test_arrays_that_are_no_images_are_refused_as_starts(start: np.ndarray, message: str) -> None:
    with pytest.raises(FeatmapError, match=message):
        featmap.maximise("second:1", tiny.small(), **options(start=start, **SMALL))


# ---------------------------------------------------------------- the gradient of a sum


def test_the_choice_of_gradients_leaves_other_identities_unchanged() -> None:
    from dataclasses import replace

    assert "gradients" not in PIXELS.identity()
    together = replace(PIXELS, gradients="together")
    assert together.identity()["gradients"] == "together" and together.digest != PIXELS.digest
    assert Recipe.from_identity(together.resolved(16).identity()).gradients == "together"
    assert Recipe.from_identity(PIXELS.resolved(16).identity()).gradients == "separate"
    with pytest.raises(FeatmapError, match="gradients 'both' is unknown; allowed: separate, together"):
        featmap.maximise("second:1", tiny.small(), **options(gradients="both", **SMALL))


def test_both_ways_to_compute_gradients_agree_up_to_rounding() -> None:
    units = ["second:1 + 0.5 * first:4", "second:5"]
    ways = [
        featmap.maximise(units, tiny.small(), **options(gradients=g, recipe="interact", **SMALL))
        for g in ("separate", "together")
    ]
    sums, single = (np.abs(ways[0]["images"].values[0, k] - ways[1]["images"].values[0, k]).max() for k in (0, 1))
    assert sums < 1e-4
    assert single == 0, "one term has one gradient"


def test_gradients_together_are_the_gradient_of_the_sum() -> None:
    """One plain step on a network that is linear: the image moves by the weighted sum of the colours."""
    network = load(networks.planted_1x1())
    from featmap.optimize.recipe import Octave

    recipe = Recipe(
        "plain", (Octave(1, (1.0, 1.0)),), optimiser="gradient", clamp="never", rows=2, gradients="together"
    )
    data = featmap.maximise("2 * features:0 + features:1", network, **options(recipe=recipe, size=8, device="cpu"))
    colour = 2 * np.array(networks.DIRECTIONS[0]) + np.array(networks.DIRECTIONS[1])
    moved = data["images"].values[0, 0] - data["null_images"].values[0]
    np.testing.assert_allclose(moved, np.broadcast_to(colour[:, None, None], (3, 8, 8)), rtol=1e-5)


def test_the_estimate_counts_the_frames(tmp_path: Path) -> None:
    from featmap.runs.estimate import estimate

    network = load(tiny.small())
    recipe = resolve(network, torch.device("cpu"), "pixels", 16, 7)
    plain, framed = (
        estimate(maximise_job(["second:1"], network, recipe, extras=Extras(frames=k)), tmp_path) for k in (0, 1)
    )
    assert framed.disk - plain.disk >= 8 * 3 * 16 * 16 * 4
