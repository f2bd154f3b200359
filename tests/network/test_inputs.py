"""Networks that take other than three channels, or one size only, or return more than one tensor."""

from __future__ import annotations

import json
import math
import types
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import featmap
from featmap.errors import FeatmapError, ModelError, RecipeError, UnitError
from featmap.image_ops import blur, noise, pink_noise
from featmap.image_shape import as_size, describe_colours, parse_size, to_rgb
from featmap.network.hooks import ActivationHooks
from featmap.network.layouts import competing_tensors, first_tensor, replace_first
from featmap.optimize.limits import resolve_recipe
from featmap.optimize.parameterization import Fourier
from featmap.optimize.photographs import read_photograph
from featmap.optimize.recipe import RECIPES, Recipe
from featmap.plotting import sheets
from featmap.report.encode import ThumbnailSheet, to_rgb_picture
from featmap.runs.engine import Execution
from featmap.runs.maximise import Extras
from featmap.stats.measures import FewStimuliWarning
from featmap.validation.random_weights import randomise_weights


def network(channels: int, seed: int = 0) -> nn.Module:
    """Two convolutions that take any size."""
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3, stride=2))
    return body.eval()


class Flat(nn.Module):
    """A linear layer behind a flattened grid: only one size fits."""

    def __init__(self, side: int, channels: int = 1) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(channels, 4, 3), nn.Linear(4 * (side - 2) ** 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.conv(x).flatten(1))


class Patches(nn.Module):
    """Patches by a linear map, and positional embeddings of one grid."""

    def __init__(self, channels: int = 2, grid: tuple[int, int] = (3, 3), image_size: Any = None) -> None:
        super().__init__()
        self.config = types.SimpleNamespace(image_size=image_size)
        self.linear = nn.Linear(16 * channels, 8)
        self.position = nn.Parameter(torch.randn(1, math.prod(grid), 8))
        self.block = nn.Sequential(nn.Linear(8, 8), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.view(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 1, 3, 5).reshape(n, h * w // 16, 16 * c)
        return self.block(self.linear(x) + self.position)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_the_number_of_channels_is_found_by_the_first_layer(channels: int) -> None:
    loaded = featmap.load(network(channels))
    assert (loaded.channels, loaded.input_size) == (channels, 224)
    assert (len(loaded.mean), len(loaded.std)) == (channels, channels)
    assert loaded.layer("2").shape == (5, 111, 111)


@pytest.mark.parametrize(
    ("module", "channels", "size"),
    [
        (Flat(28), 1, 28),
        (Flat(37, 3), 3, 37),
        (nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 4)), 1, 28),
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 20 * 20, 4)), 3, 20),
        (Patches(), 2, 12),
        (Patches(3, (2, 5), (8, 20)), 3, (8, 20)),
        (Patches(1, (4, 4), 16), 1, 16),
    ],
    ids=["flat", "flat odd", "linear gray", "linear", "patches", "configured", "configured gray"],
)
def test_the_only_size_that_works_is_found_and_named(module: nn.Module, channels: int, size: Any) -> None:
    loaded = featmap.load(module.eval())
    assert (loaded.channels, loaded.input_size) == (channels, size)
    assert any("found by trying: the network fails at 224" in note for note in loaded.notes)
    assert loaded.trace().failure == ""


@pytest.mark.parametrize("size", [20, 64])
def test_a_wrong_size_is_answered_by_the_one_that_works(size: int) -> None:
    for loaded in (featmap.load(Flat(28).eval()), featmap.load(Flat(28).eval(), input_size=size)):
        with pytest.raises(
            UnitError, match=f"size {size} does not fit layer 'linear' .* works at 28 pixels .* choose 28"
        ):
            loaded.layer("linear", size)


def test_a_fixed_network_is_not_reduced_to_a_recipes_default_size() -> None:
    fixed, free = featmap.load(Patches(3, (40, 40)), input_size=160), featmap.load(network(3), input_size=160)
    cpu = torch.device("cpu")
    assert resolve_recipe("pixels", fixed, cpu).size == 160
    assert resolve_recipe("pixels", free, cpu).size == 128
    with pytest.raises(
        RecipeError, match=r"makes steps at 80, and layer 'block' .* one size, such as fast or standard"
    ):
        featmap.maximise("block:1", fixed, recipe="large")


def test_settings_that_contradict_the_channels_are_refused() -> None:
    with pytest.raises(ModelError, match="mean must be one number"):
        featmap.load(network(1), mean=(0, 0, 0), std=(1, 1, 1))
    with pytest.raises(ModelError, match="std must be 4 numbers"):
        featmap.load(network(4), mean=(0, 0, 0, 0), std=(1, 1, 1))
    with pytest.raises(ModelError, match="channels 0: give a whole number"):
        featmap.load(network(1), channels=0)
    with pytest.raises(ModelError, match="channels 1: network reference takes images of 3"):
        featmap.load(channels=1)


@pytest.mark.parametrize(("channels", "size"), [(1, (20, 28)), (4, 16), (7, (24, 16))])
@pytest.mark.parametrize("recipe", ["pixels", "interact", "large"])
def test_images_and_responses_are_plain_pytorchs(channels: int, size: Any, recipe: str) -> None:
    module = network(channels)
    mean, std = [0.1 * (c + 1) for c in range(channels)], [0.5 + 0.1 * c for c in range(channels)]
    loaded = featmap.load(module, mean=mean, std=std)
    chosen = Recipe.named(recipe, size=size, steps=6)
    found = featmap.maximise([f"2:{c}" for c in range(5)], loaded, recipe=chosen, extras=Extras(responses="2"))
    sides = (size, size) if isinstance(size, int) else size
    assert found["images"].shape == (1, 5, channels, *sides)
    images = torch.from_numpy(found["images"].values[0])
    normal = (images - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    with torch.no_grad():
        expected = module(normal).mean((2, 3)).numpy()
    np.testing.assert_allclose(found["A"].values[0], expected, rtol=1e-4, atol=1e-5)
    assert (found["activation"].values[0] > found["null_activation"].values[0]).all()


def test_a_step_on_a_gray_image_that_is_not_square() -> None:
    module = network(1)
    start = 0.5 + 0.2 * noise(0, (12, 20), channels=1)
    recipe = Recipe.named("interact", size=(12, 20), steps=1)
    image = start[None].clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(-module(image)[:, 1].sum(), image)
    expected = start - 0.05 * gradient[0] / gradient.square().mean().sqrt()
    found = featmap.maximise("2:1", featmap.load(module), recipe=recipe)["images"].values[0, 0]
    np.testing.assert_allclose(found, blur(expected[None], 1.0)[0].numpy(), atol=1e-5)


@pytest.mark.parametrize(("channels", "size"), [(1, 15), (4, (9, 14)), (3, (8, 13)), (5, (12, 7))])
def test_fourier_images_come_back_from_their_spectrum(channels: int, size: Any) -> None:
    recipe = Recipe.named("pixels", size=size, parameterisation="fourier", clamp="never")
    images = torch.rand(2, channels, *((size, size) if isinstance(size, int) else size)) * 0.8 + 0.1
    fourier = Fourier(recipe)
    torch.testing.assert_close(fourier.to_images(fourier.to_parameters(images)), images, atol=1e-4, rtol=0)


def test_noise_of_a_channel_does_not_depend_on_their_number() -> None:
    for draw in (lambda n: noise(3, (6, 9), channels=n), lambda n: pink_noise(2, (6, 9), n)[1]):
        seven = draw(7)
        assert seven.shape == (7, 6, 9)
        for count in (1, 3, 4):
            assert torch.equal(draw(count), seven[:count])
        assert len({float(c.sum()) for c in seven}) == 7
    assert torch.equal(noise(3, 6), noise(3, 6, channels=5)[:3])


def test_pink_noise_falls_as_one_over_frequency_on_any_shape() -> None:
    images = pink_noise(200, (32, 64), 1).numpy()[:, 0] - 0.5
    power = (np.abs(np.fft.fft2(images)) ** 2).mean(0)
    fy, fx = np.fft.fftfreq(32, 1 / 64)[:, None], np.fft.fftfreq(64, 1 / 64)[None]
    f = np.hypot(fy, fx)
    inside = (f >= 2) & (f < 16)
    slope = np.polyfit(np.log(f[inside]), np.log(power[inside]), 1)[0]
    assert slope == pytest.approx(-2, abs=0.1)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_octaves_scale_both_sides(name: str) -> None:
    square, wide = (Recipe.named(name, size=size) for size in (64, (64, 128)))
    assert [s if isinstance(s, tuple) else (s, s) for s in wide.sizes] == [(s, 2 * s) for s in square.sizes] or all(
        abs(w[1] - 2 * s) <= 1 and w[0] == s for w, s in zip(wide.sizes, square.sizes, strict=True)
    )
    again = Recipe.from_identity(wide.identity())
    assert again.sizes == wide.sizes and again.digest == wide.digest
    assert Recipe.named(name, size=(64, 64)).digest == square.digest


def test_sizes_are_parsed_and_refused() -> None:
    assert [parse_size(t) for t in ("96", "64x128", " 64 X 128 ", "32x32", None)] == [
        96,
        (64, 128),
        (64, 128),
        32,
        None,
    ]
    for text in ("", "x", "64x", "64x12x3", "a", "6.5"):
        with pytest.raises(FeatmapError, match="give pixels, such as 96, or height x width"):
            parse_size(text)
    with pytest.raises(FeatmapError, match="give a whole number of pixels"):
        as_size([1, 2, 3])


class Output(OrderedDict[str, Any]):
    """A dictionary with attributes, as transformers returns it."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


@dataclass(frozen=True)
class Features:
    grid: Tensor
    pooled: Tensor
    names: tuple[str, ...] = ("a",)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: (x, None),
        lambda x: {"out": x},
        lambda x: Output(last_hidden_state=x, pooler_output=x.mean((2, 3))),
        lambda x: Features(x, x.mean((2, 3))),
        lambda x: types.SimpleNamespace(grid=x, loss=None),
    ],
    ids=["tuple", "dictionary", "model output", "dataclass", "object"],
)
def test_layers_that_return_one_grid_in_something_are_layers(wrap: Callable[[Tensor], Any]) -> None:
    class Wrapping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)

        def forward(self, x: Tensor) -> Any:
            return wrap(self.conv(x))

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.head = Wrapping(), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(first_tensor(self.encoder(x)))

    module = Whole().eval()
    loaded, x = featmap.load(module), torch.rand(2, 1, 9, 12)
    assert loaded.layer("encoder", (9, 12)).shape == (4, 7, 10)
    with ActivationHooks(module, ["encoder"]) as hooks:
        torch.testing.assert_close(hooks.run(x)["encoder"], module.encoder.conv(x))
    with ActivationHooks(module, ["encoder", "head"], leaves=["encoder"]) as hooks:
        out = hooks.run(x)
        assert torch.autograd.grad(out["head"].sum(), out["encoder"])[0].abs().sum() > 0
    doubled = replace_first(wrap(x), 2 * x)
    assert type(doubled) is type(wrap(x))
    assert torch.equal(first_tensor(doubled), 2 * x) and torch.equal(first_tensor(wrap(x)), x)


def test_a_layer_of_several_grids_is_answered_in_one_line() -> None:
    class Pyramid(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"fine": x, "coarse": nn.functional.avg_pool2d(x, 2)}

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pyramid = nn.Conv2d(3, 4, 3), Pyramid()

        def forward(self, x: Tensor) -> Tensor:
            return self.pyramid(self.conv(x))["fine"]

    loaded = featmap.load(Whole().eval())
    assert list(loaded.trace(16).layers) == ["conv"]
    with pytest.raises(UnitError, match=r"'pyramid' returns several tensors \(fine, coarse\).* choose a layer inside"):
        loaded.layer("pyramid", 16)
    assert competing_tensors(torch.zeros(1)) == [] and competing_tensors(None) == []


def test_channels_are_shown_in_the_colours_that_are_named() -> None:
    image = np.random.default_rng(0).random((7, 4, 5))
    assert describe_colours(7) == "false colours: red the mean of 0-2, green the mean of 3-4, blue the mean of 5-6"
    expected = np.stack([image[:3].mean(0), image[3:5].mean(0), image[5:].mean(0)])
    np.testing.assert_allclose(to_rgb(image), expected)
    assert describe_colours(4) == (
        "false colours: red is channel 0, green is channel 1, blue is channel 2; channel 3 is not shown"
    )
    np.testing.assert_array_equal(to_rgb(image[:4]), image[:3])
    np.testing.assert_array_equal(to_rgb(image[:1]), image[[0, 0, 0]])
    np.testing.assert_allclose(to_rgb(image[:2]), [image[0], image[1], image[:2].mean(0)])
    np.testing.assert_array_equal(to_rgb(image[:3]), image[:3])
    assert (describe_colours(1), describe_colours(3)) == ("gray", "")


def test_thumbnails_keep_the_ratio_of_their_sides() -> None:
    sheet = ThumbnailSheet(4)
    sheet.put(0, np.zeros((1, 10, 40)))
    pixels = np.asarray(sheet.sheet)[: sheet.side, : sheet.side]
    dark = (pixels == 0).all(2)
    rows, columns = np.flatnonzero(dark.any(1)), np.flatnonzero(dark.any(0))
    assert (len(rows), len(columns)) == (sheet.side // 4, sheet.side)
    assert rows[0] == (sheet.side - sheet.side // 4) // 2
    assert to_rgb_picture(np.zeros((1, 2, 6))).size == (6, 2)


class Attending(nn.Module):
    """A vision transformer's kind, with parameters that no module resets: a class token, positions, a layer scale."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.patch = nn.Conv2d(1, 12, 4, 4)
        self.cls_token, self.pos = (nn.Parameter(0.3 + 0.7 * torch.randn(1, n, 12)) for n in (1, 9))
        self.gamma = nn.Parameter(torch.full((12,), 1e-3))
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos
        return x + self.gamma * self.attention(x, x, x)[0]


def test_bare_parameters_are_drawn_from_their_own_mean_and_deviation() -> None:
    loaded = featmap.load(Attending().eval())
    before = {k: v.clone() for k, v in loaded.module.state_dict().items()}
    first, again, other = (randomise_weights(loaded, seed).module.state_dict() for seed in (3, 3, 4))
    for name in ("cls_token", "pos", "attention.in_proj_weight"):
        assert torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name])
        assert not torch.equal(first[name], before[name])
        # a mean of n draws lies within 5 standard errors, a standard deviation too
        n, spread = before[name].numel(), float(before[name].std(correction=0))
        assert abs(float(first[name].mean() - before[name].mean())) < 5 * spread / math.sqrt(n)
        assert abs(float(first[name].std(correction=0)) / spread - 1) < 5 / math.sqrt(2 * n)
    assert torch.equal(first["gamma"], before["gamma"]), "a constant has no spread"
    assert all(torch.equal(v, before[k]) for k, v in loaded.module.state_dict().items())


def test_tokens_on_images_that_are_not_square_lie_on_their_own_grid() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.block = nn.Conv2d(1, 6, 4, 4), nn.Sequential(nn.Linear(6, 5), nn.GELU())

        def forward(self, x: Tensor) -> Tensor:
            x = self.patch(x).flatten(2).transpose(1, 2)
            return self.block(torch.cat([x.mean(1, keepdim=True), x], 1))

    module = Tokens().eval()
    loaded, x = featmap.load(module), torch.rand(2, 1, 8, 20)
    assert loaded.layer("block", (8, 20)).shape == (5, 2, 5)
    with ActivationHooks(module, ["block"], layouts=loaded.find_layout) as hooks, torch.no_grad():
        found = hooks.run(x)["block"]
        expected = module(x)[:, 1:].transpose(1, 2).unflatten(2, (2, 5))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_photographs_get_the_networks_channels_and_ratio(channels: int, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = read_photograph(tmp_path / "a.png", (20, 30), channels).numpy()
    assert found.shape == (channels, 20, 30)
    cut = pixels[:, 10:40].transpose(2, 0, 1) / 255
    if channels == 1:
        luma = np.tensordot([0.299, 0.587, 0.114], cut, 1)
        np.testing.assert_allclose(found[0], luma, atol=1.01 / 255)
    else:
        np.testing.assert_allclose(found[:3], cut, atol=1e-6)
        assert (found[3:] == 1).all()
    responses = featmap.probe(tmp_path, "2", featmap.load(network(channels)), size=(20, 30))
    assert responses.shape == (1, 5)


def test_photographs_of_seven_channels_are_refused_in_one_line(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(FeatmapError, match=r"photographs have 1 channel .* the network takes 7; give an array"):
        featmap.probe(tmp_path, "2", featmap.load(network(7)), size=16)
    images = np.random.default_rng(0).random((2, 7, 9, 12), dtype=np.float32)
    with torch.no_grad():
        expected = network(7)(torch.from_numpy(images)).mean((2, 3)).numpy()
    np.testing.assert_allclose(featmap.probe(images, "2", featmap.load(network(7))).values, expected, atol=1e-6)


@pytest.mark.parametrize(("channels", "note"), [(1, ""), (5, "false colours: red the mean of 0-1")])
def test_a_run_stores_and_shows_any_channels(
    channels: int, note: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[str] = []
    draw = sheets.contact_sheet
    monkeypatch.setattr(sheets, "contact_sheet", lambda s: (titles.append(s.title), draw(s))[1])
    folder, loaded = tmp_path / "run", featmap.load(network(channels))
    recipe = Recipe.named("pixels", size=(16, 24), steps=3, rows=4)
    execution = Execution("cpu", out=folder)
    with pytest.warns(FewStimuliWarning):
        result = featmap.similarity("2", loaded, recipe=recipe, execution=execution)
    data = result.dataset
    assert data["images"].shape[2:] == (channels, 16, 24)
    assert list(data["channel"].values) == (["gray"] if channels == 1 else ["0", "1", "2", "3", "4"])
    with torch.no_grad():
        expected = loaded.module(torch.from_numpy(data["images"].values[0])).mean((2, 3))
    np.testing.assert_allclose(data["A"].values[0], expected.numpy(), atol=1e-5)
    assert note in titles[0] and ("false" in titles[0]) == bool(note)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["identity"]["recipe"]["octaves"][-1]["size"] == [16, 24]
    assert (note or "images are gray") in manifest["network"]
    page = (folder / "atlas.html") if (folder / "atlas.html").exists() else featmap.atlas(folder, network=loaded)[0]
    assert page.is_file()
    if channels == 1:
        sheet = np.asarray(Image.open(folder / "features.png").convert("RGB")).astype(int)
        middle = sheet[sheet.shape[0] // 3 : sheet.shape[0] // 2]
        assert np.ptp(middle, axis=2).max() == 0, "gray pictures on a white page, with black and gray text"


class OneSize(nn.Module):
    """A network that refuses every other size in the same words."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side, self.conv = side, nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.side:
            raise ValueError("wrong size")
        y: Tensor = self.conv(x)
        return y


@pytest.mark.parametrize("side", [160, 192, 448])
def test_the_only_size_is_found_where_every_failure_reads_the_same(side: int) -> None:
    assert featmap.load(OneSize(side)).input_size == side
