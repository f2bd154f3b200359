"""Checkpoints as trainers write them: wrappers, prefixes, other types, and what lies beside the tensors."""

from __future__ import annotations

import argparse
import collections
import pathlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from featmap.errors import ModelError
from featmap.network.loading import load
from featmap.network.weights import Match, load_state, match_state, read_states
from tests.network.test_model import refusal

pytestmark = pytest.mark.usefixtures("one_thread")


class Plain(nn.Module):
    """Two convolutions with norms, and a classifier."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6)
        )
        self.fc = nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.body(x).mean((2, 3)))
        return y


class Holder(nn.Module):
    """A network with one child, whose name may be that of a wrapper."""

    def __init__(self, name: str = "module") -> None:
        super().__init__()
        self.add_module(name, Plain())
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.get_submodule(self.name)(x)
        return y


def filled(module: nn.Module, seed: int = 7) -> dict[str, Tensor]:
    """A state dict of random numbers; variances are positive."""
    draws = torch.Generator().manual_seed(seed)
    return {
        k: torch.rand(v.shape, generator=draws) + 0.1 if v.is_floating_point() else v.clone()
        for k, v in module.state_dict().items()
    }


STATE = filled(Plain())
IMAGES = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def expected() -> Tensor:
    """What plain PyTorch makes of the state."""
    module = Plain().eval()
    module.load_state_dict(STATE, strict=True)
    with torch.no_grad():
        y: Tensor = module(IMAGES)
    return y


def prefixed(prefix: str, state: dict[str, Tensor] = STATE) -> dict[str, Tensor]:
    return {prefix + k: v for k, v in state.items()}


OTHER = filled(Plain(), seed=8)
FORMS: dict[str, tuple[Callable[[], Any], str]] = {
    "plain": (lambda: STATE, ""),
    "lightning": (
        lambda: {"state_dict": prefixed("model."), "epoch": 3, "hyper_parameters": {"lr": np.float64(0.1)}},
        "weights found in 'state_dict', without the prefix 'model.'",
    ),
    "compiled": (lambda: prefixed("_orig_mod."), "weights without '_orig_mod.'"),
    "net": (lambda: {"net": STATE, "acc": 91.2}, "weights found in 'net'"),
    "arguments": (lambda: {"model": STATE, "args": argparse.Namespace(lr=0.1)}, "weights found in 'model'"),
    "parallel": (lambda: prefixed("module."), "weights without 'module.'"),
    "parallel part": (
        lambda: {k.replace("body.", "body.module."): v for k, v in STATE.items()},
        "weights without 'module.'",
    ),
    "parallel, compiled, lightning": (
        lambda: {"state_dict": prefixed("net._orig_mod.module.")},
        "weights found in 'state_dict', without '_orig_mod.', without 'module.', without the prefix 'net.'",
    ),
    "nested": (lambda: {"checkpoint": {"model": {"state_dict": STATE}}}, "found in 'checkpoint.model.state_dict'"),
    "any key": (lambda: {"student": STATE, "step": torch.tensor(3)}, "weights found in 'student'"),
    "two": (
        lambda: {"model_ema": OTHER, "model": STATE},
        "weights found in 'model', not those in 'model_ema', which fit too",
    ),
    "only an average": (lambda: {"model_ema": STATE, "epoch": 9}, "weights found in 'model_ema'"),
    "criterion beside it": (
        lambda: {"state_dict": {**prefixed("model."), "loss.weight": torch.ones(5)}},
        "without the prefix 'model.', 1 tensors of something else are left out",
    ),
    "teacher": (
        lambda: {**prefixed("student."), **prefixed("teacher.", OTHER)},
        "weights without the prefix 'student.', not those without the prefix 'teacher.', which fit too",
    ),
    "optimiser": (
        lambda: {
            "model": STATE,
            "optimizer": {"state": {0: {"exp_avg": torch.ones(6, 3, 3, 3)}}, "param_groups": [{"lr": np.float32(1)}]},
            "best": np.float64(91.2),
            "count": np.int64(4),
            "history": np.arange(3.0),
            "random": np.random.default_rng(0).bit_generator.state,
            "folder": pathlib.Path("runs/1"),
            "log": collections.defaultdict(list, {"loss": [np.float64(1.0)]}),
            "scheduler": {"milestones": collections.Counter([3, 4])},
        },
        "weights found in 'model'",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_checkpoint_gives_the_networks_outputs(form: str, tmp_path: Path) -> None:
    make, note = FORMS[form]
    torch.save(make(), tmp_path / "w.ckpt")
    network = load(Plain(), tmp_path / "w.ckpt")
    with torch.no_grad():
        assert torch.equal(network.module.eval()(IMAGES), expected())
    notes = [n for n in network.notes if "[0, 1]" not in n]
    assert len(notes) == bool(note) and note in "".join(notes)
    assert note in str(network)


@pytest.mark.parametrize("name", ["module", "_orig_mod", "model", "net"])
def test_names_that_fit_are_taken_as_they_are(name: str, tmp_path: Path) -> None:
    for content in (prefixed(f"{name}."), {"state_dict": prefixed(f"{name}.")}, STATE, {"model": STATE}):
        torch.save(content, tmp_path / "w.pth")
        network = load(Holder(name), tmp_path / "w.pth")
        with torch.no_grad():
            assert torch.equal(network.module.eval()(IMAGES), expected())
    torch.save(prefixed(f"{name}."), tmp_path / "w.pth")
    assert not [n for n in load(Holder(name), tmp_path / "w.pth").notes if n.startswith("weights")]


def test_a_prefix_is_added_where_the_network_has_one(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "w.pth")
    assert "weights with the prefix 'backbone.'" in load(Holder("backbone"), tmp_path / "w.pth").notes
    assert "weights with 'module.'" in load(Holder(), tmp_path / "w.pth").notes


def test_an_unknown_tensor_is_refused_beside_those_that_fit(tmp_path: Path) -> None:
    torch.save(prefixed("backbone.") | {"another.weight": STATE["fc.weight"]}, tmp_path / "w.pth")
    message = refusal(lambda: load(Holder("backbone"), tmp_path / "w.pth"))
    assert "16 of its 16 tensors fit (unknown: another.weight)" in message


def test_a_file_of_another_number_of_classes_behind_a_prefix(tmp_path: Path) -> None:
    import torchvision

    state = torchvision.models.squeezenet1_1(num_classes=7).state_dict()
    torch.save({"state_dict": {f"model.{k}": v for k, v in state.items()}}, tmp_path / "w.ckpt")
    network = load("squeezenet1_1", tmp_path / "w.ckpt")
    assert all(torch.equal(v, state[k]) for k, v in network.module.state_dict().items())
    assert network.notes == ("weights found in 'state_dict', without the prefix 'model.'",)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_converted_with_a_note(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.save({k: v.to(dtype) if v.is_floating_point() else v for k, v in STATE.items()}, tmp_path / "w.pth")
    network = load(Plain(), tmp_path / "w.pth")
    assert f"weights converted from {str(dtype).removeprefix('torch.')} to float32" in network.notes
    for name, tensor in network.module.state_dict().items():
        assert torch.equal(tensor, STATE[name].to(dtype).to(tensor.dtype))


def test_quantised_numbers_are_refused(tmp_path: Path) -> None:
    torch.save(STATE | {"fc.weight": torch.ones(5, 6, dtype=torch.int8)}, tmp_path / "w.pth")
    assert "fc.weight is int8, not float32 (quantized)" in refusal(lambda: load(Plain(), tmp_path / "w.pth"))


def test_what_does_not_fit_says_where_it_is_and_how_near_it_came(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"state_dict": {k: v for k, v in prefixed("model.").items() if ".body.3" not in k}}, path)
    message = refusal(lambda: load(Plain(), path))
    assert "14 of its 16 tensors fit (missing: body.3.weight, body.3.bias)" in message
    torch.save({k: v for k, v in STATE.items() if not k.startswith("body.4")}, path)
    assert "11 of its 16 tensors fit (missing: body.4.weight, body.4.bias and 2 more, all in body.4)" in refusal(
        lambda: load(Plain(), path)
    )
    torch.save(filled(Plain(classes=9)), path)
    assert "14 of its 16 tensors fit (of another shape: fc.weight is 9x6, not 5x6, fc.bias is 9, not 5)" in refusal(
        lambda: load(Plain(), path)
    )
    torch.save({f"layer{k}.{i}": torch.ones(1) for k in range(5) for i in range(2)}, path)
    message = refusal(lambda: load(Plain(), path))
    assert "0 of its 16 tensors fit" in message
    assert "unknown: layer0.0, layer0.1 and 8 more, in layer0, layer1, layer2 and 2 other parts" in message


class Foreign:
    """A class of the user's own, as pickled beside a state dict."""


def test_classes_of_the_users_own_are_refused_by_name(tmp_path: Path) -> None:
    torch.save({"model": STATE, "config": Foreign()}, tmp_path / "w.pth")
    message = refusal(lambda: load(Plain(), tmp_path / "w.pth"))
    assert "it holds pickled code" in message and "test_checkpoints.Foreign" in message


def test_what_lies_beside_the_tensors_is_never_built(tmp_path: Path) -> None:
    torch.save({"model": STATE, "args": argparse.Namespace(lr=0.1), "x": np.arange(3)}, tmp_path / "w.pth")
    before = set(torch.serialization.get_safe_globals())
    assert list(read_states(tmp_path / "w.pth")) == ["model"]
    assert set(torch.serialization.get_safe_globals()) == before


def test_a_match_counts_names_before_shapes() -> None:
    module = Plain()
    states = {"small": filled(Plain(classes=9)), "other": {"fc.weight": torch.ones(5, 6)}}
    match = match_state(module, states)
    assert (match.place, match.renamed) == ("small", "") and isinstance(match, Match)
    with pytest.raises(ModelError, match="14 of its 16 tensors fit"):
        load_state(module, match.state, "it", "file")


def test_the_counter_of_an_averaged_model_does_no_harm(tmp_path: Path) -> None:
    module = Plain()
    averaged = torch.optim.swa_utils.AveragedModel(module)
    averaged.update_parameters(module)
    torch.save(averaged.state_dict(), tmp_path / "averaged.pt")
    network = load(Plain(), tmp_path / "averaged.pt", input_size=16)
    for name, value in module.state_dict().items():
        assert torch.equal(network.module.state_dict()[name], value), name
    extra = {**module.state_dict(), "temperature": torch.tensor(0.5)}
    torch.save(extra, tmp_path / "extra.pt")
    with pytest.raises(ModelError, match="unknown: temperature"):
        load(Plain(), tmp_path / "extra.pt", input_size=16)
