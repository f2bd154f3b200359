from __future__ import annotations

import hashlib
import io
import json
import pickle
import random
import socket
import urllib.error
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

import featmap.models
from featmap import weights as files
from featmap.descent import descend
from featmap.errors import FeatmapError, ModelError, UnitError
from featmap.models import IMAGENET_MEAN, IMAGENET_STD, Network, data_folder, known_models, load
from featmap.objectives import objective
from featmap.probing import Probe
from featmap.recipes import FAST
from featmap.units import parse_unit
from featmap.weights import sha256_state

CARD = data_folder() / "card.json"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch.hub's, and no way out to any network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)

    def unreachable(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError(OSError("Network is unreachable"))

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    return tmp_path / "torch" / "hub" / "checkpoints"


def refusal(call: Callable[[], Any], kind: type[FeatmapError] = ModelError) -> str:
    """The one line that a call is refused with."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert message and len(message.splitlines()) == 1
    return message


def constants(name: str, **settings: Any) -> dict[str, Tensor]:
    """A state of a torchvision network's shapes, another constant in every tensor."""
    with torch.device("meta"):
        module = torchvision.models.get_model(name, weights=None, **settings)
    state = {}
    for k, (key, value) in enumerate(module.state_dict().items()):
        kind = torch.float16 if value.is_floating_point() else value.dtype
        state[key] = torch.full(value.shape, k % 64 / 64 + 0.5 if value.is_floating_point() else 3, dtype=kind)
    return state


def assert_holds(network: Network, state: dict[str, Tensor]) -> None:
    own = network.module.state_dict()
    assert all(torch.equal(v, state[k].to(v.dtype)) for k, v in own.items())


# ---------------------------------------------------------------- the reference


def test_the_reference_is_what_its_card_says() -> None:
    card = json.loads(CARD.read_text(encoding="utf-8"))
    network = load()
    file = CARD.parent / card["file"]
    assert network.sha256 == card["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert file.stat().st_size == card["bytes"]
    assert (network.name, network.weights, network.input_size) == ("reference", card["file"], 96)
    assert (network.mean, network.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert network.categories == tuple(card["classes"]) and len(network.categories) == 200
    assert network.notes == () and card["sha256"] in str(network)
    assert network.module.fc.out_features == 200 and not network.module.transform_input
    assert not network.module.training
    assert network.identity()["transform_input"] is False
    described = (CARD.parent / "CARD.md").read_text(encoding="utf-8")
    assert "aux_logits=False, transform_input=False" in described


def test_damaged_bundled_weights_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = json.loads(CARD.read_text(encoding="utf-8"))
    (tmp_path / "card.json").write_text(json.dumps(card), encoding="utf-8")
    (tmp_path / card["file"]).write_bytes(b"damaged")
    monkeypatch.setattr(featmap.models, "data_folder", lambda: tmp_path)
    assert "are damaged (SHA-256" in refusal(load)


def test_the_reference_with_weights_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    state = constants("googlenet", aux_logits=False, init_weights=False, num_classes=5)
    torch.save(state, path)
    network = load("reference", path)
    assert_holds(network, state)
    assert (network.weights, network.input_size, network.module.fc.out_features) == ("mine.pth", 96, 5)


# ---------------------------------------------------------------- random weights


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "googlenet"])
def test_random_weights_are_seeded_and_leave_the_global_state_alone(name: str) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    first = load(name, "random:7")
    torch.rand(3)
    again = load(name, weights="random:7")
    after = torch.get_rng_state(), np.random.get_state()[1], random.getstate()  # noqa: NPY002
    torch.set_rng_state(before[0])
    torch.rand(3)
    assert torch.equal(after[0], torch.get_rng_state())
    assert np.array_equal(before[1], after[1]) and before[2] == after[2]
    assert first.sha256 == again.sha256 == sha256_state(first.module)
    assert first.weights == "random:7" and not first.module.training
    assert (first.mean, first.std) == (IMAGENET_MEAN, IMAGENET_STD)


def test_other_seeds_give_other_weights() -> None:
    shas = {load("squeezenet1_1", w).sha256 for w in ("random", "random:0", "random:1")}
    assert len(shas) == 2 and load("squeezenet1_1", "random").weights == "random:0"


def test_a_random_reference_takes_the_same_size() -> None:
    network = load("reference", "random:3")
    assert (network.input_size, network.weights, len(network.categories)) == (96, "random:3", 200)


@pytest.mark.parametrize("text", ["random:", "random:x", "random:-1", "random:1.5", "Random", "random:1234567890"])
def test_malformed_random_weights(text: str) -> None:
    assert f"weights {text!r}: there is no such file" in refusal(lambda: load("squeezenet1_1", text))


# ---------------------------------------------------------------- published weights


@pytest.mark.parametrize(
    ("name", "size", "heads"),
    [
        ("resnet18", 224, False),
        ("googlenet", 224, True),
        ("inception_v3", 299, True),
        ("resnet50", 224, False),
    ],
)
def test_published_weights_are_found_offline(name: str, size: int, heads: bool, cache_folder: Path) -> None:
    published = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
    settings = {"aux_logits": True, "init_weights": False} if heads else {}
    state = constants(name, **settings)
    assert any(k.startswith(("aux1.", "AuxLogits.")) for k in state) == heads
    cache_folder.mkdir(parents=True)
    path = cache_folder / published.url.rsplit("/", 1)[-1]
    torch.save(state, path)
    network = load(name)
    own = network.module.state_dict()
    assert_holds(network, state)
    assert not any(k.startswith(("aux", "AuxLogits")) for k in own)
    assert set(state) - set(own) == {k for k in state if k.startswith(("aux1.", "aux2.", "AuxLogits."))}
    assert (network.name, network.weights) == (name, f"IMAGENET1K_V1 ({path.name})")
    assert network.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (network.input_size, network.mean, network.std) == (size, IMAGENET_MEAN, IMAGENET_STD)
    assert len(network.categories) == 1000 and "goldfish" in network.categories
    assert getattr(network.module, "transform_input", False) is heads
    assert network.identity()["transform_input"] is heads
    (note,) = network.notes
    assert note.startswith("NOT torchvision's published file") and path.stem[-8:] in note
    assert note in str(network)
    path.unlink()


def test_the_same_file_elsewhere_is_treated_alike(tmp_path: Path) -> None:
    published = torchvision.models.GoogLeNet_Weights.IMAGENET1K_V1
    path = tmp_path / published.url.rsplit("/", 1)[-1]
    torch.save(constants("googlenet", aux_logits=True, init_weights=False), path)
    network = load("googlenet", path)
    assert network.module.transform_input is True and network.input_size == 224
    renamed = path.rename(tmp_path / "mine.pth")
    assert load("googlenet", renamed).module.transform_input is False
    renamed.unlink()


def test_a_file_with_the_published_hash_is_not_doubted(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1
    cache_folder.mkdir(parents=True)
    path = cache_folder / published.url.rsplit("/", 1)[-1]
    torch.save(constants("squeezenet1_1"), path)
    monkeypatch.setattr(files, "sha256_file", lambda _: path.stem[-8:] + "0" * 56)
    assert load("squeezenet1_1").notes == ()


def test_the_set_in_the_cache_is_taken(cache_folder: Path) -> None:
    sets = torchvision.models.ResNet50_Weights
    cache_folder.mkdir(parents=True)
    newer, older = (cache_folder / sets[k].url.rsplit("/", 1)[-1] for k in ("IMAGENET1K_V2", "IMAGENET1K_V1"))
    newer.write_bytes(b"")
    assert newer.name in refusal(lambda: load("resnet50"))
    older.write_bytes(b"")
    assert older.name in refusal(lambda: load("resnet50")), "the one that the article used"
    assert newer.name in refusal(lambda: load("resnet50", "IMAGENET1K_V2"))


def test_no_file_and_no_network(cache_folder: Path) -> None:
    published = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    path = cache_folder / published.url.rsplit("/", 1)[-1]
    timeout = socket.getdefaulttimeout()
    message = refusal(lambda: load("resnet18"))
    assert f"are not at {path} and cannot be downloaded (Network is unreachable)" in message
    assert f"copy {published.url} to that place" in message
    assert all(way in message for way in ("--weights FILE", "--weights random", "--model reference"))
    assert socket.getdefaulttimeout() == timeout and not path.exists()


@pytest.mark.parametrize("error", [TimeoutError("timed out"), RuntimeError("invalid hash value"), PermissionError(13)])
def test_other_failures_of_a_download(error: Exception, cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    assert "cannot be downloaded" in refusal(lambda: load("squeezenet1_1"))


def test_a_download_is_checked_against_the_published_hash(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published, asked = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1, []

    def download(url: str, dst: str, hash_prefix: str | None = None, progress: bool = True) -> None:
        asked.append((url, dst, hash_prefix, socket.getdefaulttimeout()))
        torch.save(constants("squeezenet1_1"), dst)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    load("squeezenet1_1")
    load("squeezenet1_1")
    path = cache_folder / published.url.rsplit("/", 1)[-1]
    assert asked == [(published.url, str(path), path.stem[-8:], files.CONNECT_SECONDS)], "once, with a time limit"
    assert socket.getdefaulttimeout() is None


def test_unknown_names_and_sets(cache_folder: Path) -> None:
    assert "model 'googlent' is unknown (nearest: googlenet" in refusal(lambda: load("googlent"))
    assert "allowed: reference" in refusal(lambda: load(""))
    assert "weights 'IMAGENET1K_V9': there is no such file" in refusal(lambda: load("resnet18", "IMAGENET1K_V9"))
    assert "fcn_resnet50" in refusal(lambda: load("fcn_resnet50"))
    assert {"reference", "googlenet", "inception_v3", "resnet50"} <= set(known_models())


# ---------------------------------------------------------------- files


def shuffled_state(module: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(21)
    return {k: torch.randn(v.shape, generator=generator) for k, v in module.state_dict().items()}


FACTORY = "tests.networks:linear_network"


@pytest.mark.parametrize("kind", ["plain", "state_dict", "model_state_dict", "model", "module.", "both", "safetensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_every_way_in_which_a_state_is_saved(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    state = {k: v.to(dtype) for k, v in shuffled_state(networks.linear_network()).items()}
    prefixed = {f"module.{k}": v for k, v in state.items()}
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file(state, path)
    elif kind in ("plain", "module."):
        torch.save(state if kind == "plain" else prefixed, path)
    elif kind == "both":
        torch.save({"epoch": 3, "state_dict": prefixed, "optimizer": {"lr": 0.1}}, path)
    else:
        torch.save({"epoch": 3, kind: state}, path)
    network = load(FACTORY, path)
    assert all(torch.equal(v, state[k].float()) for k, v in network.module.state_dict().items())
    assert (network.weights, network.sha256) == (path.name, hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize("classes", [7, 1, 1000])
@pytest.mark.parametrize("name", ["squeezenet1_1", "shufflenet_v2_x0_5"])
def test_the_number_of_classes_is_inferred(name: str, classes: int, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    state = constants(name, num_classes=classes)
    torch.save(state, path)
    network = load(name, path)
    assert_holds(network, state)
    logits = list(network.trace(64).layers.values())[-1]
    assert logits.shape == (classes, 1, 1) and network.input_size == 224


def test_weights_of_another_network(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(constants("squeezenet1_0"), path)
    message = refusal(lambda: load("squeezenet1_1", path))
    assert "weights w.pth do not fit squeezenet1_1" in message and "of another shape: features.0.weight is" in message
    torch.save(networks.small_inception().state_dict(), path)
    message = refusal(lambda: load("resnet18", path))
    assert "missing: conv1.weight, bn1.weight and" in message and "unknown: stem.weight, norm.weight and" in message


def test_a_misfit_leaves_the_users_module_alone(tmp_path: Path) -> None:
    module = networks.linear_network()
    digest, path = sha256_state(module), tmp_path / "w.pth"
    state = shuffled_state(module)
    state["conv3.weight"] = state["conv3.weight"][:2]
    torch.save(state, path)
    assert "conv3.weight is 2x8x3x3, not 5x8x3x3" in refusal(lambda: load(module, path))
    assert sha256_state(module) == digest


def test_weights_for_a_module_of_ones_own_leave_the_object_alone(tmp_path: Path) -> None:
    module = networks.linear_network()
    digest, path = sha256_state(module), tmp_path / "w.pth"
    torch.save(shuffled_state(module), path)
    assert sha256_state(load(module, path).module) != digest
    assert sha256_state(module) == digest


class Bomb:
    """Pickled code that leaves a mark if it is run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.mark, "ran")


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ""])
def test_pickled_code_is_refused_and_not_run(suffix: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / f"w{suffix}"
    for save in (torch.save, lambda x, p: p.write_bytes(pickle.dumps(x))):
        save({"state_dict": {"conv1.weight": Bomb(mark)}}, path)
        message = refusal(lambda: load(FACTORY, path))
        assert "it holds pickled code or is damaged, and featmap reads nothing but tensors" in message
        assert not mark.exists()
    pickle.loads(path.read_bytes())
    assert mark.read_text() == "ran", "the bomb is live"


def test_a_whole_pickled_module_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(networks.linear_network(), path)
    assert "holds pickled code" in refusal(lambda: load(FACTORY, path))


@cache
def saved() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(3)}, buffer)
    return buffer.getvalue()


DAMAGED: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"this is no checkpoint",
    "json": lambda: b'{"a": 1}',
    "page": lambda: b"<!DOCTYPE html><html>Not found</html>",
    "zeros": lambda: bytes(100),
    "archive": lambda: b"PK\x03\x04" + bytes(50),
    "picture": lambda: b"\x89PNG\r\n\x1a\n" + bytes(40),
    "list": lambda: pickle.dumps([1, 2]),
    "cut short": lambda: saved()[:200],
    "nearly whole": lambda: saved()[:-30],
    "stop": lambda: b".",
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_checkpoints(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(DAMAGED[kind]())
    assert str(path) in refusal(lambda: load(FACTORY, path))


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_safetensors(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(DAMAGED[kind]())
    assert f"weights {str(path)!r} cannot be read" in refusal(lambda: load(FACTORY, path))


@pytest.mark.parametrize("held", [{}, {"a": 1}, [torch.ones(2)], torch.ones(2), {"state_dict": {}}, {"model": "x"}])
def test_files_without_a_state(held: Any, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(held, path)
    assert "hold no state dict (names to tensors)" in refusal(lambda: load(FACTORY, path))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.pth", tmp_path):
        assert f"weights {str(path)!r}: there is no such file" in refusal(lambda path=path: load(FACTORY, path))


# ---------------------------------------------------------------- factories


def test_a_factory() -> None:
    network = load("tests.networks:small_inception")
    assert (network.name, network.weights, network.input_size) == ("tests.networks:small_inception", "its own", 224)
    assert network.sha256 == sha256_state(networks.small_inception()) == load("tests.networks:small_inception").sha256
    assert (network.mean, network.std) == ((0, 0, 0), (1, 1, 1))
    assert network.notes == ("no --mean and --std: the network takes images in [0, 1]",)
    assert network.arguments["model"] == "tests.networks:small_inception"
    again = load(**network.arguments)
    assert again.identity() == network.identity()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("tests.networks:nothing", "cannot be imported (module 'tests.networks' has no attribute 'nothing')"),
        ("tests.networks:", "cannot be imported"),
        ("no_such_package_of_mine:make", "No module named 'no_such_package_of_mine'"),
        ("tests.networks:not_a_module", "the factory returned str, not a torch.nn.Module"),
        ("tests.networks:TARGET", "the factory failed (TypeError: 'tuple' object is not callable)"),
        ("tests.networks:ConvNorm", "the factory failed (TypeError"),
        (":make", "the factory failed"),
        ("tests.networks:failing", "the factory failed (RuntimeError: no such thing"),
    ],
)
def test_factories_that_fail(path: str, words: str) -> None:
    message = refusal(lambda: load(path))
    assert message.startswith(f"model {path!r}") and words in message


def test_random_weights_are_the_factorys_own_business() -> None:
    assert "random weights are the factory's own business" in refusal(lambda: load(FACTORY, "random:3"))


def test_a_network_is_returned_as_it_is() -> None:
    network = load(networks.linear_network())
    assert load(network) is network


# ---------------------------------------------------------------- normalisation


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mean": (0, 0, 0)}, "--mean and --std belong together"),
        ({"std": (1, 1, 1)}, "--mean and --std belong together"),
        ({"mean": (0, 0), "std": (1, 1, 1)}, "--mean takes three numbers (red, green, blue), not 2"),
        ({"mean": (0, 0, 0), "std": (1, 1, 1, 1)}, "--std takes three numbers (red, green, blue), not 4"),
        ({"mean": (0, 0, 0), "std": (1, 0, 1)}, "a standard deviation is above 0"),
        ({"mean": (0, 0, 0), "std": (1, -1, 1)}, "a standard deviation is above 0"),
        ({"input_size": 0}, "--input-size 0: give 1 or more pixels"),
    ],
)
def test_normalisations_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    assert words in refusal(lambda: load(networks.linear_network(), **settings))
    assert words in refusal(lambda: load(**settings))


@pytest.mark.parametrize(
    ("mean", "std"),
    [((0, float("nan"), 0), (1, 1, 1)), ((0, 0, 0), (1, float("nan"), 1)), ((0, 0, 0), (1, 1, float("inf")))],
)
def test_normalisations_that_are_not_finite(mean: tuple, std: tuple) -> None:
    assert "give three finite numbers" in refusal(lambda: load(networks.linear_network(), mean=mean, std=std))


def test_normalisation() -> None:
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    network = load(networks.linear_network(), mean=[0.1, 0.2, 0.3], std=[0.5, 1, 2], input_size=40)
    expected = torch.stack([(images[:, c] - m) / s for c, (m, s) in enumerate([(0.1, 0.5), (0.2, 1), (0.3, 2)])], dim=1)
    torch.testing.assert_close(network.normalise(images), expected)
    assert network.input_size == 40 and network.notes == ()
    assert network.normalise(images.double()).dtype == torch.float64
    assert torch.equal(load(networks.linear_network()).normalise(images), images)


def test_the_references_normalisation_can_be_replaced() -> None:
    network = load("squeezenet1_1", "random", mean=(0, 0, 0), std=(1, 1, 1), input_size=64)
    assert (network.mean, network.std, network.input_size) == ((0, 0, 0), (1, 1, 1), 64)
    assert network.identity()["mean"] == [0, 0, 0]


# ---------------------------------------------------------------- layers and units of a network


@pytest.mark.parametrize("size", [0, -5])
def test_a_size_that_is_none(size: int) -> None:
    network = load(networks.linear_network(), input_size=8)
    assert f"size {size}: an image has at least 1 pixel" in refusal(lambda: network.trace(size), UnitError)


def test_layers_are_found_or_the_nearest_are_named() -> None:
    network = load(networks.small_inception(), input_size=16)
    assert network.layer("mixed").shape == (11, 8, 8)
    assert network.layer("mixed", 32).shape == (11, 16, 16)
    assert network.trace() is network.trace(16), "traced once a size"
    message = refusal(lambda: network.layer("mixd"), UnitError)
    assert "no layer 'mixd' in SmallInception (nearest: mixed" in message
    message = refusal(lambda: network.layer("relu"), UnitError)
    assert "layer 'relu' is called 2 times in one pass; say which: relu@1 to relu@2" in message


def test_a_layer_that_is_no_grid() -> None:
    network = load(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(2)), input_size=8)
    assert "layer '1' gives no N x C x H x W grid" in refusal(lambda: network.layer("1"), UnitError)


def test_a_size_that_is_too_small_is_answered_with_one_that_is_not() -> None:
    network = load(networks.small_inception(), input_size=16)
    message = refusal(lambda: network.layer("relu@2", 4), UnitError)
    assert "size 4 is too small for layer 'relu@2' of SmallInception; give --size 5 or more" in message
    assert network.layer("relu@2", 5).shape == (7, 1, 1)


def test_class_units() -> None:
    network = load(networks.logits_network(), input_size=8)
    assert str(network.unit(parse_unit("class:2"))) == "fc:2"
    assert "channel 3 is out of range" in refusal(lambda: network.unit(parse_unit("class:3")), UnitError)
    assert str(network.unit(parse_unit("conv:5:7:7"))) == "conv:5:7:7"
    assert "row 8 is out of range" in refusal(lambda: network.unit(parse_unit("conv:5:8")), UnitError)
    without = load(networks.linear_network(), input_size=8)
    assert "has no layer of class logits; name a layer" in refusal(
        lambda: without.unit(parse_unit("class:0")), UnitError
    )


def test_googlenets_classes_are_its_last_layer() -> None:
    network = load("googlenet", "random:1")
    assert str(network.unit(parse_unit("class:999"), 48)) == "fc:999"


def test_classes_of_a_network_that_does_not_take_this_size() -> None:
    fixed = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16 * 16, 10))
    network = load(fixed, input_size=16)
    assert str(network.unit(parse_unit("class:3"))) == "3:3"
    refusal(lambda: network.unit(parse_unit("class:3"), 8), UnitError)


# ---------------------------------------------------------------- the user's module is given back


def test_the_users_module_is_given_back() -> None:
    module = networks.small_inception().train()
    module.mixed.branch1.eval()
    module.stem.weight.requires_grad_(False)
    digest = sha256_state(module)
    training, learning = [m.training for m in module.modules()], [p.requires_grad for p in module.parameters()]
    network = load(module, input_size=16)
    assert network.module is module
    network.trace()
    network.trace(4)
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    probe = Probe(network, 4)
    probe.responses(images, ["mixed"])
    probe.activations(images, [objective("mixed:1")] * 3)
    recipe = FAST.resolved(16, size=16, steps=2, rows=2)
    descend(module, network.normalise, [objective("mixed:1")], recipe, {16: {"mixed": (11, 8, 8)}})
    with pytest.raises(RuntimeError):
        probe.responses(images[:, :, :4, :4], ["relu@2"])
    assert sha256_state(module) == digest == network.sha256
    assert [m.training for m in module.modules()] == training
    assert [p.requires_grad for p in module.parameters()] == learning
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in module.modules())
    assert all(p.grad is None for p in module.parameters())


# ---------------------------------------------------------------- hashes


def test_the_hash_of_a_state_knows_names_types_shapes_and_values() -> None:
    def module(**tensors: Tensor) -> nn.Module:
        holder = nn.Module()
        for name, tensor in tensors.items():
            holder.register_buffer(name, tensor)
        return holder

    base = module(a=torch.zeros(2, 3), b=torch.ones(1))
    assert sha256_state(base) == sha256_state(module(b=torch.ones(1), a=torch.zeros(2, 3))), "whatever the order"
    others = [
        module(a=torch.zeros(3, 2), b=torch.ones(1)),
        module(a=torch.zeros(2, 3), c=torch.ones(1)),
        module(a=torch.zeros(2, 3, dtype=torch.int32), b=torch.ones(1)),
        module(a=torch.zeros(2, 3), b=torch.zeros(1)),
        module(a=torch.zeros(2, 3)),
    ]
    assert len({sha256_state(m) for m in [base, *others]}) == 6
    strided = torch.zeros(3, 2).t()
    assert sha256_state(module(a=strided, b=torch.ones(1))) == sha256_state(base), "whatever the strides"
    assert len(sha256_state(module(a=torch.tensor(3.0), b=torch.tensor([True]), c=torch.zeros(0)))) == 64
