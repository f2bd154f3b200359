"""More of `test_models`: factories, normalisation, layers, the module given back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from featmap.errors import UnitError
from featmap.network.loading import load
from featmap.network.unit import Unit
from featmap.network.weights import hash_state
from featmap.optimize.descent import DescentNetwork, descend
from featmap.optimize.objective import Objective
from featmap.optimize.recipe import PIXELS
from featmap.optimize.responses import Probe
from tests.helpers import networks
from tests.network.test_model import refusal

pytestmark = pytest.mark.usefixtures("one_thread")

FACTORY = "tests.helpers.networks:linear_network"


def test_a_factory_is_called_and_loads_the_same_network_again() -> None:
    network = load("tests.helpers.networks:small_inception")
    assert (network.name, network.weights, network.input_size) == (
        "tests.helpers.networks:small_inception",
        "its own",
        224,
    )
    assert (
        network.sha256
        == hash_state(networks.small_inception())
        == load("tests.helpers.networks:small_inception").sha256
    )
    assert (network.mean, network.std) == ((0, 0, 0), (1, 1, 1))
    assert network.notes == ("no mean and std given: the network takes images in [0, 1]",)
    assert network.arguments["model"] == "tests.helpers.networks:small_inception"
    again = load(**network.arguments)
    assert again.identity() == network.identity()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (
            "tests.helpers.networks:nothing",
            "cannot be imported (module 'tests.helpers.networks' has no attribute 'nothing')",
        ),
        ("tests.helpers.networks:", "cannot be imported"),
        ("no_such_package_of_mine:make", "No module named 'no_such_package_of_mine'"),
        ("tests.helpers.networks:not_a_module", "the factory returned str, not a torch.nn.Module"),
        ("tests.helpers.networks:TARGET", "the factory failed (TypeError: 'tuple' object is not callable)"),
        ("tests.helpers.networks:ConvNorm", "the factory failed (TypeError"),
        (":make", "the factory failed"),
        ("tests.helpers.networks:failing", "the factory failed (RuntimeError: no such thing"),
    ],
)
def test_failing_factories_are_named_in_one_line(path: str, words: str) -> None:
    message = refusal(lambda: load(path))
    assert message.startswith(f"model {path!r}") and words in message


def test_random_weights_are_the_factorys_own_business() -> None:
    assert "random weights are set by the factory itself" in refusal(lambda: load(FACTORY, "random:3"))


def test_a_network_is_returned_as_it_is() -> None:
    network = load(networks.linear_network())
    assert load(network) is network


# ---------------------------------------------------------------- normalisation


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mean": (0, 0, 0)}, "mean and std belong together"),
        ({"std": (1, 1, 1)}, "mean and std belong together"),
        ({"mean": (0, 0), "std": (1, 1, 1)}, "mean must be three numbers (red, green, blue), not 2"),
        ({"mean": (0, 0, 0), "std": (1, 1, 1, 1)}, "std must be three numbers (red, green, blue), not 4"),
        ({"mean": (0, 0, 0), "std": (1, 0, 1)}, "a standard deviation is above 0"),
        ({"mean": (0, 0, 0), "std": (1, -1, 1)}, "a standard deviation is above 0"),
        ({"input_size": 0}, "input size 0: give 1 pixel or more"),
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
    assert "give finite numbers" in refusal(lambda: load(networks.linear_network(), mean=mean, std=std))


def test_images_are_normalised_by_the_given_mean_and_std() -> None:
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
def test_a_size_below_one_pixel_is_refused(size: int) -> None:
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
    assert "layer 'relu' is called 2 times in one pass; choose one of relu@1 to relu@2" in message


def test_a_layer_that_is_no_grid() -> None:
    network = load(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(2)), input_size=8)
    assert "layer '1' outputs neither a grid nor a vector" in refusal(lambda: network.layer("1"), UnitError)


def test_a_size_that_is_too_small_is_answered_with_one_that_is_not() -> None:
    network = load(networks.small_inception(), input_size=16)
    message = refusal(lambda: network.layer("relu@2", 4), UnitError)
    assert "size 4 is too small for layer 'relu@2' of SmallInception; choose a size of 5 or more" in message
    assert network.layer("relu@2", 5).shape == (7, 1, 1)


def test_class_units_resolve_to_the_layer_of_logits() -> None:
    network = load(networks.logits_network(), input_size=8)
    assert str(network.resolve_unit(Unit.parse("class:2"))) == "fc:2"
    assert "channel 3 is out of range" in refusal(lambda: network.resolve_unit(Unit.parse("class:3")), UnitError)
    assert str(network.resolve_unit(Unit.parse("conv:5:7:7"))) == "conv:5:7:7"
    assert "row 8 is out of range" in refusal(lambda: network.resolve_unit(Unit.parse("conv:5:8")), UnitError)
    without = load(networks.linear_network(), input_size=8)
    assert "has no layer of class logits; name a layer" in refusal(
        lambda: without.resolve_unit(Unit.parse("class:0")), UnitError
    )


def test_googlenets_classes_are_its_last_layer() -> None:
    network = load("googlenet", "random:1")
    assert str(network.resolve_unit(Unit.parse("class:999"), 48)) == "fc:999"


def test_classes_of_a_network_that_does_not_take_this_size() -> None:
    fixed = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16 * 16, 10))
    network = load(fixed, input_size=16)
    assert str(network.resolve_unit(Unit.parse("class:3"))) == "3:3"
    refusal(lambda: network.resolve_unit(Unit.parse("class:3"), 8), UnitError)


# ---------------------------------------------------------------- the user's module is given back


def test_the_users_module_is_given_back() -> None:
    module = networks.small_inception().train()
    module.mixed.branch1.eval()
    module.stem.weight.requires_grad_(False)
    digest = hash_state(module)
    training, learning = [m.training for m in module.modules()], [p.requires_grad for p in module.parameters()]
    network = load(module, input_size=16)
    assert network.module is module
    network.trace()
    network.trace(4)
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    probe = Probe(network, 4)
    probe.responses(images, ["mixed"])
    probe.activations(images, [Objective.parse("mixed:1")] * 3)
    recipe = PIXELS.resolved(16, size=16, steps=2, rows=2)
    descend(
        DescentNetwork(module, network.normalise, {16: {"mixed": (11, 8, 8)}}), [Objective.parse("mixed:1")], recipe
    )
    with pytest.raises(RuntimeError):
        probe.responses(images[:, :, :4, :4], ["relu@2"])
    assert hash_state(module) == digest == network.sha256
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
    assert hash_state(base) == hash_state(module(b=torch.ones(1), a=torch.zeros(2, 3))), "whatever the order"
    others = [
        module(a=torch.zeros(3, 2), b=torch.ones(1)),
        module(a=torch.zeros(2, 3), c=torch.ones(1)),
        module(a=torch.zeros(2, 3, dtype=torch.int32), b=torch.ones(1)),
        module(a=torch.zeros(2, 3), b=torch.zeros(1)),
        module(a=torch.zeros(2, 3)),
    ]
    assert len({hash_state(m) for m in [base, *others]}) == 6
    strided = torch.zeros(3, 2).t()
    assert hash_state(module(a=strided, b=torch.ones(1))) == hash_state(base), "whatever the strides"
    assert len(hash_state(module(a=torch.tensor(3.0), b=torch.tensor([True]), c=torch.zeros(0)))) == 64
