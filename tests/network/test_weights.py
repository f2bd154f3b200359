"""More of `test_models`: weights in files, good and bad."""

from __future__ import annotations

import hashlib
import io
import pickle
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from featmap.network.loading import load
from featmap.network.weights import hash_state
from tests.helpers import networks
from tests.network.test_model import assert_holds, constants, refusal, shuffled_state

pytestmark = pytest.mark.usefixtures("one_thread")

FACTORY = "tests.helpers.networks:linear_network"


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
    digest, path = hash_state(module), tmp_path / "w.pth"
    state = shuffled_state(module)
    state["conv3.weight"] = state["conv3.weight"][:2]
    torch.save(state, path)
    assert "conv3.weight is 2x8x3x3, not 5x8x3x3" in refusal(lambda: load(module, path))
    assert hash_state(module) == digest


def test_weights_for_a_module_of_ones_own_leave_the_object_alone(tmp_path: Path) -> None:
    module = networks.linear_network()
    digest, path = hash_state(module), tmp_path / "w.pth"
    torch.save(shuffled_state(module), path)
    assert hash_state(load(module, path).module) != digest
    assert hash_state(module) == digest


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
def test_damaged_checkpoints_are_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(DAMAGED[kind]())
    assert str(path) in refusal(lambda: load(FACTORY, path))


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_safetensors_are_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(DAMAGED[kind]())
    assert f"weights {str(path)!r} cannot be read" in refusal(lambda: load(FACTORY, path))


@pytest.mark.parametrize("held", [{}, {"a": 1}, [torch.ones(2)], torch.ones(2), {"state_dict": {}}, {"model": "x"}])
def test_files_without_weights_are_refused(held: Any, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(held, path)
    assert "hold no state dict (names to tensors)" in refusal(lambda: load(FACTORY, path))


def archive(names: list[str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for name in names:
            zipped.writestr(name, "x")
    return buffer.getvalue()


def broken_directory() -> bytes:
    """Make an archive whose end is whole, and whose directory is not."""
    return saved().replace(b"PK\x01\x02", b"XXXX", 1)


WORDS: list[tuple[Callable[[], bytes], str]] = [
    (DAMAGED["empty"], "it is empty)"),
    (DAMAGED["page"], "it is a web page, as a failed download leaves"),
    (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "it is a pointer of Git LFS"),
    (lambda: archive(["a.npy", "b.npy"]), "it is an archive of NumPy arrays (.npz)"),
    (lambda: archive(["a.txt", "b.txt", "c.txt"]), "it is a zip archive of 'a.txt', 'b.txt'"),
    (lambda: b"\x93NUMPY" + bytes(80), "it is a NumPy array"),
    (lambda: b"\x1f\x8b" + bytes(80), "it is compressed by gzip; unpack it"),
    (lambda: b"\x89HDF\r\n\x1a\n" + bytes(80), "it is an HDF5 file"),
    (lambda: b"\xef\xbb\xbf" + DAMAGED["page"](), "it is a web page, as a failed download leaves"),
    (lambda: broken_directory(), "it is damaged or cut short)"),
    (DAMAGED["text"], "it is text, not tensors"),
    (DAMAGED["cut short"], "it is damaged or cut short"),
    (DAMAGED["nearly whole"], "it is damaged or cut short"),
]


@pytest.mark.parametrize(("content", "words"), WORDS)
def test_files_of_other_kinds_are_recognised(content: Callable[[], bytes], words: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(content())
    message = refusal(lambda: load(FACTORY, path))
    assert f"weights {str(path)!r} cannot be read ({words}" in message and "\n" not in message


def test_safetensors_that_are_cut_short_are_told(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    assert "cannot be read (it is damaged or cut short); give" in refusal(lambda: load(FACTORY, path))
    path.write_bytes(bytes(range(1, 9)) * 30)
    assert "cannot be read (it is damaged, or no safetensors file); give" in refusal(lambda: load(FACTORY, path))


def test_keys_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({1: 2}, path)
    assert "(names to tensors), only 1; save" in refusal(lambda: load(FACTORY, path))


def test_an_optimisers_state_is_no_state_dict(tmp_path: Path) -> None:
    module, path = networks.linear_network(), tmp_path / "w.pth"
    optimiser = torch.optim.Adam(module.parameters())
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimiser.step()
    for held in (optimiser.state_dict(), {"optimizer": optimiser.state_dict(), "epoch": 3}):
        torch.save(held, path)
        assert "tensors), only the state of an optimiser; save" in refusal(lambda: load(FACTORY, path))
    torch.save({"epoch": 3, "args": {"lr": 0.1}}, path)
    assert "(names to tensors), only 'epoch', 'args'; save" in refusal(lambda: load(FACTORY, path))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.pth", tmp_path):
        assert f"weights {str(path)!r}: there is no such file" in refusal(lambda path=path: load(FACTORY, path))


# ---------------------------------------------------------------- factories
