"""timm's networks: their own configuration, published weights from the cache, and the message without them."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from featmap.network import libraries
from featmap.network.loading import load
from tests.network.test_model import refusal

timm = pytest.importorskip("timm")
hub = pytest.importorskip("huggingface_hub")
pytestmark = pytest.mark.usefixtures("one_thread")

NAME = "test_resnet"  # the smallest that timm has: 0.5 million parameters
REVISION = "0" * 40


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no connection to it."""
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "hub"


def publish(cache: Path, state: dict[str, torch.Tensor], repository: str = "timm/test_resnet.r160_in1k") -> Path:
    """Put weights into the cache as the hub's client does."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(REVISION)
    path = folder / "snapshots" / REVISION / "model.safetensors"
    path.parent.mkdir(parents=True)
    save_file(state, path)
    return path


def filled(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(5)
    return {
        k: torch.rand(v.shape, generator=draws) * 0.1 + 0.05 if v.is_floating_point() else v.clone()
        for k, v in module.state_dict().items()
    }


def test_random_weights_have_timms_configuration() -> None:
    network = load(f"timm:{NAME}", "random:3")
    config = timm.data.resolve_model_data_config(timm.create_model(NAME, pretrained=False))
    assert (network.name, network.weights, network.input_size) == (f"timm:{NAME}", "random:3", 160)
    assert (network.mean, network.std) == (tuple(config["mean"]), tuple(config["std"])) != ((0,) * 3, (1,) * 3)
    assert network.sha256 == load(f"timm:{NAME}", "random:3").sha256 != load(f"timm:{NAME}", "random:4").sha256
    assert "layer1.0" in network.trace(64).layers and not network.module.training


def test_published_weights_come_from_the_cache(cache: Path) -> None:
    module = timm.create_model(NAME, pretrained=False).eval()
    state = filled(module)
    path = publish(cache, state)
    module.load_state_dict(state)
    network = load(f"timm:{NAME}")
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(network.module(images), module(images))
    assert network.weights == "r160_in1k (timm/test_resnet.r160_in1k)" and network.input_size == 160
    again = load(f"timm:{NAME}.r160_in1k")
    assert again.sha256 == network.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_weights_published_at_an_address_come_from_torchs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As timm has them for some networks: no repository of the hub, but a file of torch.save."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    published = SimpleNamespace(hf_hub_id=None, url="http://127.0.0.1:9/weights/w-0badcafe.pth", tag="in1k")
    monkeypatch.setattr(libraries, "find_timm_set", lambda name: published)
    message = refusal(lambda: load(f"timm:{NAME}"))
    path = tmp_path / "checkpoints" / "w-0badcafe.pth"
    assert f"are not at {path} and cannot be downloaded" in message and "copy http://127.0.0.1:9/weights" in message
    module = timm.create_model(NAME, pretrained=False).eval()
    state = filled(module)
    path.parent.mkdir(exist_ok=True)
    torch.save(state, path)
    network = load(f"timm:{NAME}")
    assert network.weights == "in1k (w-0badcafe.pth)" and network.input_size == 160
    assert all(torch.equal(v, state[k]) for k, v in network.module.state_dict().items())


def test_weights_of_ones_own_with_another_number_of_classes(tmp_path: Path) -> None:
    state = filled(timm.create_model(NAME, pretrained=False, num_classes=7))
    torch.save({"state_dict": {f"model.{k}": v for k, v in state.items()}}, tmp_path / "w.ckpt")
    network = load(f"timm:{NAME}", tmp_path / "w.ckpt")
    assert all(torch.equal(v, state[k]) for k, v in network.module.state_dict().items())
    assert network.input_size == 160 and list(network.trace(64).layers.values())[-1].channels == 7
    assert network.notes == ("weights found in 'state_dict', without the prefix 'model.'",)


def test_weights_that_are_not_there_offline(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal(lambda: load(f"timm:{NAME}"))
    assert f"the pretrained weights of timm:{NAME} are not in the cache {cache}" in message
    assert "choose a weights file or random weights" in message and "HF_HUB_OFFLINE is set" in message
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "refused" in refusal(lambda: load(f"timm:{NAME}"))


@pytest.mark.parametrize("error", [OSError("disk full\nand more"), RuntimeError("429 Too Many Requests"), ValueError()])
def test_a_download_that_fails_is_one_line(cache: Path, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **settings: Any) -> str:
        raise error

    monkeypatch.setattr(libraries, "_require_connection", lambda address: None)
    monkeypatch.setattr(hub, "hf_hub_download", fail)
    message = refusal(lambda: load(f"timm:{NAME}"))
    assert "cannot be downloaded" in message and "\n" not in message


def test_a_download_lands_in_the_cache_and_is_loaded(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = filled(timm.create_model(NAME, pretrained=False))
    calls: list[tuple[str, str, bool]] = []

    def download(repository: str, file: str, revision: str | None = None) -> str:
        calls.append((repository, file, hub.utils.are_progress_bars_disabled()))
        return str(publish(cache, state, repository))

    monkeypatch.setattr(libraries, "_require_connection", lambda address: None)
    monkeypatch.setattr(hub, "hf_hub_download", download)
    first, second = load(f"timm:{NAME}"), load(f"timm:{NAME}")
    assert calls == [("timm/test_resnet.r160_in1k", "model.safetensors", False)], "once, with its progress shown"
    assert json.dumps(first.identity()) == json.dumps(second.identity())


def test_unknown_names_list_the_nearest() -> None:
    message = refusal(lambda: load("timm:resnet5O"))
    assert "model 'timm:resnet5O' is unknown to timm" in message and "nearest: resnet50" in message
    assert "is unknown to timm" in refusal(lambda: load("timm:", "random"))


def test_names_without_published_weights() -> None:
    bare = sorted(set(timm.list_models()) - {n.split(".")[0] for n in timm.list_models(pretrained=True)})
    message = refusal(lambda: load(f"timm:{bare[0]}"))
    assert f"timm publishes no weights for {bare[0]}; choose a weights file or random weights" in message


def test_without_timm_one_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert refusal(lambda: load("timm:resnet18")) == "timm is not installed; install it: pip install 'featmap[timm]'"


def test_sizes_that_are_not_square_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0), "input_size": (3, 64, 96)}
    monkeypatch.setattr(timm.data, "resolve_model_data_config", lambda module: settings)
    network = load(f"timm:{NAME}", "random")
    assert (network.input_size, network.channels) == ((64, 96), 3)
    grid = network.layer("layer1.0").shape[1:]
    assert grid[1] * 64 == grid[0] * 96


@pytest.mark.parametrize("name", ["timm:hf-hub:timm/resnet18", "timm:hf_hub:timm/resnet18", "timm:local-dir:/nowhere"])
def test_names_of_a_hub_or_folder_are_refused_in_one_line(name: str) -> None:
    message = refusal(lambda: load(name, "random"))
    assert message.startswith(f"model {name!r}: names of a hub or folder are not followed") and "\n" not in message


@pytest.mark.parametrize(("error", "words"), [(OSError(), "OSError"), (OSError("\nno route"), "no route")])
def test_failures_without_a_text_are_named_by_their_type(error: Exception, words: str) -> None:
    assert libraries._summarise(error) == words
