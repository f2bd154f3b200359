"""Directions of a layer's channels: their files, what is refused, and the map from channels to directions."""

from __future__ import annotations

import json
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from featmap.errors import FeatmapError
from featmap.network.directions import Directions, Projection, read_directions, stored_path
from featmap.network.hooks import ActivationHooks
from featmap.network.loading import load
from featmap.network.model import Network
from featmap.network.selection import select_layers
from featmap.network.unit import Unit
from featmap.optimize.measured_fields import find_fields
from featmap.optimize.responses import Probe
from featmap.validation.weight_paths import find_weights
from tests.helpers.networks import logits_network, small_inception
from tests.helpers.tiny import FEATURES, small

VECTORS = np.random.default_rng(3).normal(size=(4, FEATURES)).astype(np.float32)
BIAS = np.array([0.5, -1.0, 0.0, 2.0], dtype=np.float32)
NAMES = ("wheel", "fur", "sky", "edge")


def grid_of(seed: int, n: int = 3, channels: int = FEATURES, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, channels, 5, 4, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def with_set(vectors: Any, layer: str = "second") -> Network:
    return load(small(), input_size=32).with_directions({f"{layer}/d": vectors})


# ---------------------------------------------------------------- files


def write(path: Path) -> Path:
    if path.suffix == ".npz":
        np.savez(path, directions=VECTORS, bias=BIAS, relu=True, names=np.array(NAMES), name="mine")
    else:
        metadata = {"relu": "true", "names": json.dumps(NAMES), "name": "mine", "format": "pt"}
        save_file({"encoder": torch.from_numpy(VECTORS), "bias": torch.from_numpy(BIAS)}, path, metadata)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_files_hold_vectors_bias_relu_and_names(tmp_path: Path, suffix: str) -> None:
    read = read_directions(write(tmp_path / f"set{suffix}"))
    assert np.array_equal(read.vectors, VECTORS) and read.bias is not None and np.array_equal(read.bias, BIAS)
    assert (read.relu, read.names, read.name) == (True, NAMES, "mine")
    assert read.identity() == Directions(VECTORS, BIAS, True, NAMES).identity()


def test_an_array_alone_is_named_by_its_file(tmp_path: Path) -> None:
    np.save(tmp_path / "nmf.npy", VECTORS.astype(np.float64))
    read = read_directions(tmp_path / "nmf.npy")
    assert np.array_equal(read.vectors, VECTORS) and (read.bias, read.relu, read.names) == (None, False, ())
    network = load(small(), input_size=32).with_directions({"second": tmp_path / "nmf.npy"})
    assert list(network.directions) == ["second/nmf"]


def test_stored_directions_are_read_back_and_have_the_same_bytes(tmp_path: Path) -> None:
    directions = Directions(VECTORS, BIAS, True, NAMES, "mine")
    (tmp_path / "x.safetensors").write_bytes(directions.to_bytes())
    read = read_directions(tmp_path / "x.safetensors")
    assert read.sha256 == directions.sha256 and read.name == "mine"
    assert read.to_bytes() == directions.to_bytes()
    assert stored_path("a.b@2/../c", {"sha256": "f" * 64}) == "directions/a.b-2-..-c-ffffffffff.safetensors"


def test_half_precision_tensors_become_float32(tmp_path: Path) -> None:
    save_file({"weight": torch.from_numpy(VECTORS).bfloat16()}, tmp_path / "h.safetensors")
    assert np.array_equal(
        read_directions(tmp_path / "h.safetensors").vectors, torch.from_numpy(VECTORS).bfloat16().float().numpy()
    )


def _npy(values: Any) -> Callable[[Path], Any]:
    return lambda path: np.save(path, values)


def _npz(**values: Any) -> Callable[[Path], Any]:
    return lambda path: np.savez(path, **values)


ONES, EMPTY_ROW = np.ones((2, 3)), np.array([[1.0, 0, 0], [0, 0, 0]])
BAD_FILES: list[tuple[str, str, Callable[[Path], Any], str]] = [
    ("not finite", "x.npy", _npy([[1.0, np.nan, 0]]), r"directions\[0, 1\] is nan"),
    ("too large", "x.npy", _npy([[1e300, 1.0, 0]]), r"directions\[0, 0\] is inf"),
    ("a zero row", "x.npy", _npy(EMPTY_ROW), "direction 1 is zero in all channels"),
    ("pickled", "x.npy", _npy(np.array([{"a": 1}], dtype=object)), "pickled objects"),
    ("a pickle", "x.npy", lambda p: p.write_bytes(pickle.dumps([1.0])), "cannot be read"),
    ("pickled names", "x.npz", _npz(directions=ONES, names=np.array(["a", "b"], object)), "pickled objects"),
    ("truncated", "x.npz", lambda p: p.write_bytes(b"PK\x03\x04"), "cannot be read"),
    ("no safetensors", "x.safetensors", lambda p: p.write_bytes(b"12345678901"), "cannot be read"),
    ("missing", "x.npy", lambda p: None, "no such file"),
    ("another kind", "x.pt", lambda p: p.write_bytes(b""), r"\.safetensors, \.npy, \.npz"),
    ("three dimensions", "x.npy", _npy(np.ones((2, 3, 1))), r"shape \(2, 3, 1\)"),
    ("none", "x.npy", _npy(np.ones((0, 3))), r"shape \(0, 3\)"),
    ("text", "x.npy", _npy([["a", "b"]]), "real numbers"),
    ("complex", "x.npy", _npy(np.ones((2, 3)) * 1j), "real numbers"),
    ("a short bias", "x.npz", _npz(directions=ONES, bias=[1.0]), "2 directions and a bias of 1"),
    ("an infinite bias", "x.npz", _npz(directions=ONES, bias=[1.0, np.inf]), r"bias\[1\] is inf"),
    ("too few names", "x.npz", _npz(directions=ONES, names=["a"]), "2 directions and 1 names"),
    ("names twice", "x.npz", _npz(directions=ONES, names=["a", "a"]), "2 directions are named 'a'"),
    ("two matrices", "x.npz", _npz(encoder=ONES, decoder=ONES), "'encoder', 'decoder'"),
    ("a vector of another name", "x.npz", _npz(probe=np.ones(3)), "it holds 'probe'; allowed: one matrix, K x C"),
    ("something else", "x.npz", _npz(directions=ONES, threshold=[1.0, 2.0]), "'threshold'"),
    ("relu of a kind", "x.npz", _npz(directions=ONES, relu="leaky"), "relu is 'leaky'"),
]


@pytest.mark.parametrize(("name", "write_bad", "words"), [b[1:] for b in BAD_FILES], ids=[b[0] for b in BAD_FILES])
def test_bad_files_are_refused_in_one_line(
    tmp_path: Path, name: str, write_bad: Callable[[Path], Any], words: str
) -> None:
    write_bad(tmp_path / name)
    with pytest.raises(FeatmapError, match=words) as refused:
        read_directions(tmp_path / name)
    assert name in str(refused.value) and "\n" not in str(refused.value)


BAD_SETS: list[tuple[str, dict[str, Any], str]] = [
    ("wrong width", {"second/d": np.ones((2, 5))}, "5 channels wide, while second has 11 channels"),
    ("transposed", {"second/d": np.ones((11, 5))}, "made for: this is C x K, so transpose it"),
    ("one vector of another layer", {"second/d": np.ones(6)}, "6 channels wide, while second has 11 channels"),
    ("missing layer", {"secnd/d": np.ones((2, 11))}, "nearest: second"),
    ("missing layer, no name", {"secnd": np.ones((2, 11))}, "nearest: second"),
    ("a name with a colon", {"second/a:b": np.ones((2, 11))}, "'a:b' cannot name a set"),
    ("no name", {"second/": np.ones((2, 11))}, "'' cannot name a set"),
    ("directions of directions", {"second/d": np.ones((2, 11)), "second/d/e": np.ones((1, 2))}, "no directions of"),
    ("one name twice", {"second/d": np.ones((2, 11)), "second": Directions(np.eye(11), name="d")}, "already"),
]


@pytest.mark.parametrize(("sets", "words"), [b[1:] for b in BAD_SETS], ids=[b[0] for b in BAD_SETS])
def test_sets_that_do_not_fit_are_refused(sets: dict[str, Any], words: str) -> None:
    network = load(small(), input_size=32)
    with pytest.raises(FeatmapError, match=words):
        network.with_directions(sets)
    assert network.directions == {}


def test_a_loaded_set_is_not_replaced() -> None:
    network = with_set(VECTORS)
    for key in ("second/d", "second/d/e"):
        with pytest.raises(FeatmapError, match=r"already|directions themselves"):
            network.with_directions({key: VECTORS})


# ---------------------------------------------------------------- the map


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("relu", [False, True])
def test_values_are_those_of_a_matrix_product(relu: bool, dtype: torch.dtype) -> None:
    grid = grid_of(0, dtype=dtype)
    found = Projection(Directions(VECTORS, BIAS, relu), grid)(grid)
    plain = torch.einsum("kc,nchw->nkhw", torch.from_numpy(VECTORS).double(), grid.double())
    plain = plain + torch.from_numpy(BIAS).double()[:, None, None]
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), plain.relu() if relu else plain, rtol=0, atol=1e-5)


def test_gradients_are_those_of_a_matrix_product() -> None:
    vectors = np.concatenate([VECTORS, np.eye(FEATURES)[:2] * 3])
    grid = grid_of(1, dtype=torch.float64).requires_grad_(True)
    found = Projection(Directions(vectors, relu=True), grid)(grid)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    plain = torch.einsum("kc,nchw->nkhw", torch.from_numpy(vectors.astype(np.float32)).double(), grid).relu()
    (expected,) = torch.autograd.grad((plain * weights).sum(), grid)
    (gradient,) = torch.autograd.grad((found * weights).sum(), grid)
    torch.testing.assert_close(gradient, expected)


def test_a_value_has_the_same_bits_alone_and_among_others() -> None:
    many = np.random.default_rng(0).normal(size=(70, 300)).astype(np.float32)
    grid = grid_of(2, 5, channels=300)
    whole = Projection(Directions(many), grid)(grid)
    for k, n in ((0, 0), (33, 4), (69, 2)):
        alone = Projection(Directions(many[k]), grid)
        assert torch.equal(alone(grid[n : n + 1])[0, 0], whole[n, k])
        assert torch.equal(alone(grid.contiguous(memory_format=torch.channels_last))[n, 0], whole[n, k])
        needed = Projection(Directions(many), grid)(grid, [(n, k)])
        assert torch.equal(needed[n, k], whole[n, k]) and int((needed != 0).sum()) == whole[n, k].numel()


def test_gradients_have_the_same_bits_alone_and_among_others() -> None:
    many = np.random.default_rng(0).normal(size=(70, 300)).astype(np.float32)
    grid = grid_of(2, 5, channels=300).requires_grad_(True)
    chosen = [(0, 3), (1, 69), (4, 20)]
    (together,) = torch.autograd.grad(Projection(Directions(many), grid)(grid, chosen).square().sum(), grid)
    for n, k in chosen:
        (alone,) = torch.autograd.grad(Projection(Directions(many[k]), grid)(grid)[n].square().sum(), grid)
        assert torch.equal(alone[n], together[n])


def test_a_direction_of_one_channel_is_that_channel() -> None:
    grid = grid_of(3)
    grid[0, 1, 0, 0], grid[1, 2, 0, 1], grid[2, 4] = -0.0, torch.inf, torch.nan
    found = Projection(Directions(np.concatenate([VECTORS, np.eye(FEATURES)])), grid)(grid)
    assert found[:, 4:].numpy().tobytes() == grid.numpy().tobytes()


def test_a_broken_channel_spoils_only_what_reads_it() -> None:
    grid = grid_of(4)
    grid[:, 7] = torch.nan
    vectors = np.array(VECTORS)
    vectors[:3, 7] = 0
    found = Projection(Directions(vectors), grid)(grid)
    assert bool(found[:, :3].isfinite().all()) and bool(found[:, 3].isnan().all())


# ---------------------------------------------------------------- layers of directions


def test_directions_are_listed_behind_their_layer() -> None:
    network = load(small_inception(), input_size=16).with_directions(
        {"mixed/d": np.eye(11)[:3], "stem/e": np.ones((1, 8))}
    )
    names = list(network.trace().layers)
    assert names[names.index("stem") + 1] == "stem/e" and names[names.index("mixed") + 1] == "mixed/d"
    layer = network.layer("mixed/d")
    assert (layer.kind, layer.shape, layer.base, layer.branches) == ("directions", (3, 8, 8), "mixed", ())
    fields = find_fields(network, ["mixed", "mixed/d"])
    assert fields["mixed"] == fields["mixed/d"]
    assert select_layers("mixed/*", network, 16) == ["mixed/d"]
    for words in ("all", "convs"):
        assert select_layers(words, network, 16) == select_layers(words, load(small_inception(), input_size=16), 16)


def test_directions_of_logits_are_not_the_logits() -> None:
    network = load(logits_network(), input_size=16).with_directions({"fc/d": np.ones((2, 3))})
    assert str(network.resolve_unit(Unit.parse("class:1"))) == "fc:1"


def test_an_unknown_set_is_named() -> None:
    with pytest.raises(FeatmapError, match=r"no directions of this name are loaded \(second/d are\)"):
        with_set(VECTORS).layer("second/e")


def test_the_identity_depends_on_all_of_a_set() -> None:
    base = Directions(VECTORS, BIAS, True, NAMES)
    others = [
        Directions(VECTORS * 2, BIAS, True, NAMES),
        Directions(VECTORS, BIAS + 1, True, NAMES),
        Directions(VECTORS, None, True, NAMES),
        Directions(VECTORS, BIAS, False, NAMES),
        Directions(VECTORS, BIAS, True, NAMES[::-1]),
    ]
    assert len({d.sha256 for d in (base, *others)}) == 6
    assert "directions" not in load(small(), input_size=32).identity()
    assert with_set(base).identity()["directions"] == {"second/d": base.identity()}


class Last(nn.Module):
    """Channels last inside, so that its output's memory is in another order."""

    def forward(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last)


def test_responses_of_copies_are_the_channels_in_any_memory_order() -> None:
    module = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 37, 3), last=Last())).eval()
    network = load(module, input_size=16).with_directions({"last/d": np.eye(37)[[5, 36, 11]]})
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    responses = Probe(network, 4).responses(images, ["last/d"])["last/d"]
    assert np.array_equal(responses, Probe(network, 4).responses(images, ["last"])["last"][:, [5, 36, 11]])


def test_hooks_read_layer_and_directions_in_one_pass() -> None:
    network = with_set(VECTORS)
    with ActivationHooks(
        network.module, ["second/d", "first"], layouts=network.find_layout, directions=network.directions
    ) as hooks:
        outputs = hooks.run(torch.rand(2, 3, 32, 32))
    assert {name: tuple(v.shape) for name, v in outputs.items()} == {
        "second/d": (2, 4, 16, 16),
        "first": (2, 6, 16, 16),
    }


def test_incoming_weights_of_directions_are_their_vectors() -> None:
    incoming, outgoing = find_weights(with_set(VECTORS), "second/d", 32)
    assert np.array_equal(incoming.vectors, VECTORS.astype(float)) and incoming.names == ("second",)
    assert set(incoming.groups) == {0} and set(outgoing.groups) == {-1}


def test_rows_of_different_lengths_are_refused() -> None:
    with pytest.raises(FeatmapError, match="directions are no array"):
        Directions([[1.0, 2.0], [3.0]])  # type: ignore[arg-type]
