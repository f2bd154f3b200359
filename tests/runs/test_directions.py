"""Runs of directions: bits of channels, responses by plain PyTorch, independence, resuming and checking."""

from __future__ import annotations

import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn

import featmap
from featmap import Execution, Recipe
from featmap.errors import FeatmapError, StoreError
from featmap.network.directions import Directions
from featmap.network.loading import load
from featmap.network.model import Network
from featmap.optimize.batch import Batches
from featmap.optimize.objective import channel
from featmap.runs import integrity, lifecycle
from featmap.runs.manifest import FORMAT, read
from featmap.runs.maximise import Extras
from tests.helpers.networks import dead_network, small_inception
from tests.helpers.tiny import FEATURES, landed, small

pytestmark = [
    pytest.mark.usefixtures("cheap_runs", "one_thread"),
    pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning"),
]

RNG = np.random.default_rng(8)
MIXTURES = RNG.normal(size=(5, FEATURES)).astype(np.float32)
BIAS = RNG.normal(size=5).astype(np.float32) / 10
SIZE = 24


def recipe(name: str = "pixels", **changes: Any) -> Recipe:
    return Recipe.named(name, SIZE, 6, rows=4, **changes)


def network(vectors: Any = MIXTURES) -> Network:
    return load(small(), input_size=SIZE).with_directions({"second/d": vectors})


def same(one: xr.Dataset, two: xr.Dataset, names: tuple[str, ...]) -> bool:
    return all(one[n].values.tobytes() == two[n].values.tobytes() for n in names)


STORED = ("images", "activation", "null_activation", "curve", "status", "null_images")

RECIPES = [
    ("pixels", recipe()),
    ("fast, with contrast", recipe("fast")),
    ("linear steps", recipe("interact")),
    ("l2", recipe(metric="l2", C=100.0)),
    ("linf", recipe("article", metric="linf")),
    ("bfloat16", recipe(precision="bfloat16")),
]


@pytest.mark.parametrize("chosen", [r for _, r in RECIPES], ids=[name for name, _ in RECIPES])
def test_a_direction_of_one_channel_has_its_bits(chosen: Recipe) -> None:
    """Beside mixtures, and beside channels as neighbours in a batch."""
    channels = [9, 0, 4]
    vectors = np.concatenate([MIXTURES[:2], np.eye(FEATURES)[channels]])
    plain = load(small(), input_size=SIZE)
    by_channel = featmap.maximise(
        [f"second:{c}" for c in channels], plain, recipe=chosen, extras=Extras(responses="second")
    )
    named = [f"second/d:{k}" for k in (2, 3, 4, 0, 1)]
    by_direction = featmap.maximise(
        named, network(vectors), recipe=chosen, extras=Extras(responses=["second", "second/d"])
    )
    copies = by_direction.isel(image=slice(3))
    assert same(by_channel, copies, STORED)
    own = copies.A.sel(response=by_channel.response)
    assert own.values.tobytes() == by_channel.A.values.tobytes()
    read = by_direction.A.sel(response=[f"second/d:{k}" for k in (2, 3, 4)])
    expected = by_direction.A.sel(response=[f"second:{c}" for c in channels])
    assert read.values.tobytes() == expected.values.tobytes()


@pytest.mark.parametrize("layer", ["relu", "features"])
def test_dead_units_are_rescued_as_channels_are(layer: str) -> None:
    channels = dead_network().features.out_channels  # type: ignore[union-attr]
    plain = load(dead_network(), input_size=16)
    copies = plain.with_directions({f"{layer}/d": np.eye(channels)})
    chosen = Recipe.named("pixels", 16, 8, rows=4)
    one = featmap.maximise([f"{layer}:{c}" for c in range(channels)], plain, recipe=chosen)
    two = featmap.maximise([f"{layer}/d:{c}" for c in range(channels)], copies, recipe=chosen)
    assert same(one, two, STORED)


def test_a_dead_direction_is_rescued_through_its_own_relu() -> None:
    """The layer `features`, rectified by the directions: what the layer `relu` of the network is."""
    directions = Directions(np.eye(5), relu=True)
    plain = load(dead_network(), input_size=16)
    copies = plain.with_directions({"features/d": directions})
    chosen = Recipe.named("pixels", 16, 8, rows=4)
    one = featmap.maximise([f"relu:{c}" for c in range(5)], plain, recipe=chosen)
    two = featmap.maximise([f"features/d:{c}" for c in range(5)], copies, recipe=chosen)
    assert one.status.values.tolist() == two.status.values.tolist()
    assert "rescued" in [one.status.attrs["flag_meanings"].split()[k] for k in one.status.values[0]]
    np.testing.assert_allclose(one.images, two.images, atol=1e-6)


def test_an_image_depends_on_its_own_direction_only() -> None:
    together = featmap.maximise([f"second/d:{k}" for k in range(5)], network(), recipe=recipe())
    for k in (0, 4):
        alone = featmap.maximise("second/d:0", network(MIXTURES[k]), recipe=recipe())
        assert alone.images.values.tobytes() == together.images.values[:, k : k + 1].tobytes()
    mixed = featmap.maximise(["first:2", "second/d:3", "second:1"], network(), recipe=recipe())
    assert mixed.images.values[:, 1].tobytes() == together.images.values[:, 3].tobytes()


def plain_responses(images: np.ndarray, vectors: np.ndarray, bias: np.ndarray | None, relu: bool) -> Tensor:
    """Responses by a forward hook, a matrix product, bias, ReLU and mean, in float64."""
    module, seen = small().double(), []
    handle = module.second.register_forward_hook(lambda _, __, out: seen.append(out))  # type: ignore[union-attr]
    with torch.no_grad():
        module(torch.from_numpy(images).double())
    handle.remove()
    values = torch.einsum("kc,nchw->nkhw", torch.from_numpy(vectors).double(), seen[0])
    values = values if bias is None else values + torch.from_numpy(bias).double()[:, None, None]
    return (values.relu() if relu else values).mean((2, 3))


@pytest.mark.parametrize(("bias", "relu"), [(None, False), (BIAS, False), (BIAS, True)])
def test_responses_are_those_of_plain_pytorch(bias: np.ndarray | None, relu: bool) -> None:
    chosen = network(Directions(MIXTURES, bias, relu))
    data = featmap.maximise(
        [f"second/d:{k}" for k in range(5)], chosen, recipe=recipe(), extras=Extras(responses="second/d")
    )
    expected = plain_responses(data.images.values[0], MIXTURES, bias, relu)
    np.testing.assert_allclose(data.A.values[0], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(data.activation.values[0], np.diag(expected), rtol=1e-5, atol=1e-6)
    null = plain_responses(data.null_images.values, MIXTURES, bias, relu)
    np.testing.assert_allclose(data.null.values, null, rtol=1e-5, atol=1e-6)
    assert (data.activation.values[0] > np.diag(null.expand(5, -1))).all()


def test_neurons_rows_and_sums_of_directions_are_maximised() -> None:
    units = ["second/d:1:2:3", "second/d:2:0", "second/d:0:..5", "second/d:all", "second/d:1 + 0.5 * second:3"]
    data = featmap.maximise(units, network(), recipe=recipe())
    assert (data.activation.values > data.null_activation.values).all()


class Tokens(nn.Module):
    """A grid, turned into a sequence of tokens and mixed by a linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, 4)
        self.mix = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.embed(x).flatten(2).transpose(1, 2))


def test_directions_of_tokens_are_read_from_their_grid() -> None:
    torch.manual_seed(4)
    plain = load(Tokens().eval(), input_size=16)
    chosen = plain.with_directions({"mix/d": np.eye(8)[[5]]})
    settings: dict[str, Any] = {"recipe": Recipe.named("pixels", 16, 4, rows=4), "extras": Extras(responses="mix")}
    one = featmap.maximise("mix:5", plain, **settings)
    two = featmap.maximise("mix/d:0", chosen, **settings | {"extras": Extras(responses=["mix", "mix/d"])})
    assert chosen.layer("mix/d").shape == (1, 4, 4)
    assert same(one, two, STORED)
    assert two.A.values[0, 0, 8] == one.A.values[0, 0, 5]


def test_gradients_by_directions_are_derivatives_along_them() -> None:
    """Of a deeper unit, by moving the layer's channels along the direction, in the network cut in two."""
    module = small_inception().eval()
    vectors = np.concatenate([np.eye(11)[[6]], np.random.default_rng(1).normal(size=(2, 11))]).astype(np.float32)
    chosen = load(module, input_size=16).with_directions({"mixed/d": vectors})
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    objectives = [channel("narrow", 1), channel("narrow", 4)]
    batches = Batches(chosen, torch.device("cpu"))
    found = batches.channel_gradients(objectives, images, 2, "mixed/d")
    by_channel = batches.channel_gradients(objectives, images, 2, "mixed")
    assert torch.equal(found[:, 0], by_channel[:, 6])
    with torch.no_grad():
        inner = module.mixed(module.relu(module.norm(module.stem(images)))).double()  # type: ignore[operator]
        after = torch.nn.functional.conv2d(inner, module.narrow.weight.double(), module.narrow.bias.double())  # type: ignore[union-attr,operator]
        for k, vector in enumerate(torch.from_numpy(vectors).double()):
            moved = inner + (vector / vector.square().sum())[:, None, None]
            moved = torch.nn.functional.conv2d(moved, module.narrow.weight.double(), module.narrow.bias.double())  # type: ignore[union-attr,operator]
            for row, unit in enumerate((1, 4)):  # the layer after it is linear, so that a step of 1 is exact
                assert float((moved - after)[row, unit].sum()) == pytest.approx(float(found[row, k]), rel=1e-4)


# ---------------------------------------------------------------- run folders


def map_to(folder: Path, chosen: Network | None = None, **more: Any) -> Any:
    execution = Execution("cpu", out=folder)
    return featmap.similarity("second/d", chosen or network(), recipe=recipe(), execution=execution, **more)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "map"
    map_to(folder, network(Directions(MIXTURES, BIAS, True, tuple("abcde"))))
    return folder


def test_a_run_keeps_its_directions(finished: Path) -> None:
    manifest = read(finished)
    assert manifest.format == FORMAT and integrity.inspect(finished).faults == []
    recorded = manifest.identity["model"]["directions"]["second/d"]
    assert (recorded["count"], recorded["channels"], recorded["bias"], recorded["relu"]) == (5, FEATURES, True, True)
    restored = lifecycle.with_run_directions(load(small(), input_size=SIZE), finished).directions["second/d"]
    assert np.array_equal(restored.vectors, MIXTURES) and restored.names == tuple("abcde")
    table = featmap.open_arrays(finished)
    assert [str(n) for n in table["image"].values] == [f"second/d:{k}" for k in range(5)]


def test_names_of_directions_are_in_the_table(finished: Path) -> None:
    import pandas as pd

    assert pd.read_csv(finished / "features.csv", index_col=0)["name"].tolist() == list("abcde")


def test_a_finished_run_is_left_as_it_is(finished: Path) -> None:
    before = landed(finished)
    map_to(finished, network(Directions(MIXTURES, BIAS, True, tuple("abcde"))))
    assert landed(finished) == before


def test_other_directions_are_another_run(finished: Path) -> None:
    with pytest.raises(StoreError, match=r"model.directions.second/d.sha256"):
        map_to(finished, network(Directions(MIXTURES * 2, BIAS, True, tuple("abcde"))))
    with pytest.raises(StoreError, match="other settings"):
        map_to(finished, network(Directions(MIXTURES, None, True, tuple("abcde"))))


def test_damaged_directions_are_found_and_repaired(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    (stored,) = (folder / "directions").iterdir()
    content = bytearray(stored.read_bytes())
    content[-1] ^= 1
    stored.write_bytes(bytes(content))
    assert [(f.kind, f.path) for f in integrity.inspect(folder).faults] == [("changed", f"directions/{stored.name}")]
    with pytest.raises(FeatmapError, match="second/d have changed"):
        lifecycle.with_run_directions(load(small(), input_size=SIZE), folder)
    map_to(folder, network(Directions(MIXTURES, BIAS, True, tuple("abcde"))))
    assert integrity.inspect(folder).faults == []
    stored.unlink()
    assert [(f.kind, f.path) for f in integrity.inspect(folder).faults] == [("missing", f"directions/{stored.name}")]


def test_an_interrupted_run_of_directions_is_resumed(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    map_to(whole)
    shutil.copytree(whole, cut)
    record = next(p for p in (cut / "units").iterdir() if "null" not in p.name)
    record.unlink()
    map_to(cut)
    assert integrity.inspect(cut).faults == []
    assert featmap.open_arrays(cut).images.values.tobytes() == featmap.open_arrays(whole).images.values.tobytes()


def test_probing_a_run_with_its_directions(finished: Path) -> None:
    restored = lifecycle.with_run_directions(load(small(), input_size=SIZE), finished)
    again = featmap.probe(finished, "second/d", restored)
    stored = featmap.open_arrays(finished)
    assert again.values.tobytes() == stored.A.values[0].tobytes()


def test_directions_of_named_modules_survive_a_rename() -> None:
    """A shared module has two names: directions named after either are the same layer."""
    conv = nn.Conv2d(3, 4, 3)
    module = nn.Sequential(OrderedDict(a=conv, b=nn.ReLU())).eval()
    module.alias = conv
    chosen = load(module, input_size=12).with_directions({"alias/d": np.eye(4)[:1]})
    assert list(chosen.directions) == ["a/d"]
