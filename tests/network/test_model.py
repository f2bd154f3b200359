from __future__ import annotations

import hashlib
import json
import random
import socket
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from featmap.errors import FeatmapError, ModelError
from featmap.network import libraries, loading
from featmap.network.loading import IMAGENET_MEAN, IMAGENET_STD, find_data_folder, list_models, load
from featmap.network.model import Network
from featmap.network.weights import hash_state

pytestmark = pytest.mark.usefixtures("one_thread")

CARD = find_data_folder() / "card.json"


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
    monkeypatch.setattr(loading, "find_data_folder", lambda: tmp_path)
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
    assert first.sha256 == again.sha256 == hash_state(first.module)
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
    monkeypatch.setattr(loading, "hash_file", lambda _: path.stem[-8:] + "0" * 56)
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


def test_missing_weights_without_network_name_three_ways(cache_folder: Path) -> None:
    published = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    path = cache_folder / published.url.rsplit("/", 1)[-1]
    timeout = socket.getdefaulttimeout()
    message = refusal(lambda: load("resnet18"))
    assert f"are not at {path} and cannot be downloaded (Network is unreachable)" in message
    assert f"copy {published.url} to that place" in message
    assert all(way in message for way in ("a weights file", "random weights", "the model reference"))
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
    assert asked == [(published.url, str(path), path.stem[-8:], libraries.CONNECT_TIMEOUT)], "once, with a time limit"
    assert socket.getdefaulttimeout() is None


def test_unknown_names_and_sets(cache_folder: Path) -> None:
    assert "model 'googlent' is unknown (nearest: googlenet" in refusal(lambda: load("googlent"))
    assert "allowed: reference" in refusal(lambda: load(""))
    assert "weights 'IMAGENET1K_V9': there is no such file" in refusal(lambda: load("resnet18", "IMAGENET1K_V9"))
    assert "fcn_resnet50" in refusal(lambda: load("fcn_resnet50"))
    assert {"reference", "googlenet", "inception_v3", "resnet50"} <= set(list_models())


# ---------------------------------------------------------------- files


def shuffled_state(module: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(21)
    return {k: torch.randn(v.shape, generator=generator) for k, v in module.state_dict().items()}
