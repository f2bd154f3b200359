from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from featmap.network.hooks import ActivationHooks
from featmap.network.trace import trace
from featmap.network.weights import hash_state
from featmap.optimize.prepare import prepare
from tests.helpers import networks

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
WITHOUT_HEADS = {"aux_logits": False, "init_weights": False}


def images(count: int, size: int) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(8))


def output_and_gradient(net: nn.Module, layer: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """A layer's output, and the gradient of a random weighting of it."""
    x = x.clone().requires_grad_(True)
    with ActivationHooks(net, [layer]) as hooks:
        out = hooks.run(x)[layer]
    weights = torch.randn(out.shape[1:], generator=torch.Generator().manual_seed(9)).to(out)
    (gradient,) = torch.autograd.grad((out * weights).sum(), x)
    return out.detach(), gradient


def error(found: Tensor, exact: Tensor) -> float:
    """Norm of the difference over the norm."""
    assert float(exact.norm()) > 0
    return float((found - exact).norm() / exact.norm())


def typical_error(found: Tensor, exact: Tensor) -> float:
    """Median over the images: a unit at a ReLU's boundary that flips spoils one image's gradient, by about 1e-2."""
    return float(torch.tensor([error(f, e) for f, e in zip(found, exact, strict=True)]).median())


def assert_prepared_is_the_same(net: nn.Module, size: int, layers: Sequence[str]) -> None:
    folds, digest = trace(net, size).folds, hash_state(net)
    double = copy.deepcopy(net).double()
    for layer in layers:
        twin, x = prepare(net, folds, [layer], CPU), images(3, size)
        norms = sum(isinstance(m, nn.BatchNorm2d) for m in twin.modules())
        assert norms <= sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) - len(folds) + 1
        expected, found = output_and_gradient(net, layer, x), output_and_gradient(twin, layer, x)
        assert error(found[0], expected[0]) < 1e-4, layer
        assert typical_error(found[1], expected[1]) < 1e-3, layer
        exact = output_and_gradient(double, layer, x.double())
        found = output_and_gradient(prepare(double, folds, [layer], CPU), layer, x.double())
        assert error(found[0], exact[0]) < 1e-12, layer
        assert float((found[1] - exact[1]).abs().max() / exact[1].abs().max()) < 1e-10, layer
    assert hash_state(net) == digest


def test_prepared_inception_computes_the_same() -> None:
    layers = ["stem", "norm", "relu@1", "mixed.branch1", "mixed.branch2.0.conv", "mixed", "narrow", "relu@2", "fc"]
    assert_prepared_is_the_same(networks.small_inception(), 16, layers)


@cache
def random_network(name: str) -> nn.Module:
    """A torchvision network with random weights and batch statistics, made once."""
    with torch.device("meta"):
        net = torchvision.models.get_model(
            name, weights=None, **(WITHOUT_HEADS if "inc" in name or "goo" in name else {})
        )
    return networks.randomised(net, seed=1).eval()


@pytest.mark.parametrize(
    ("name", "size", "layers"),
    [
        ("resnet18", 32, ["layer1.0.conv2", "layer3"]),
        ("googlenet", 32, ["inception4c"]),
        ("inception_v3", 75, ["Mixed_6b"]),
        ("resnet50", 32, ["layer2"]),
    ],
)
def test_torchvisions_networks(name: str, size: int, layers: list[str]) -> None:
    assert_prepared_is_the_same(random_network(name), size, layers)


def test_folded_batch_norms_become_identities() -> None:
    net = networks.small_inception()
    twin = prepare(net, trace(net, 16).folds, ["fc"], CPU)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in twin.modules())
    assert sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == 5
    assert isinstance(twin.get_submodule("norm"), nn.Identity)
    assert twin.get_submodule("stem").bias is not None


@pytest.mark.parametrize(
    ("layer", "kept"),
    [("stem", "norm"), ("narrow", "norm2"), ("mixed.branch2.1.conv", "mixed.branch2.1.bn"), ("narrow@1", "norm2")],
)
def test_a_hooked_convolution_is_not_folded(layer: str, kept: str) -> None:
    net, x = networks.small_inception(), images(2, 16)
    twin = prepare(net, trace(net, 16).folds, [layer, "fc"], CPU)
    assert [n for n, m in twin.named_modules() if isinstance(m, nn.BatchNorm2d)] == [kept]
    with torch.no_grad(), ActivationHooks(net, [layer]) as hooks, ActivationHooks(twin, [layer]) as twin_hooks:
        torch.testing.assert_close(twin_hooks.run(x)[layer], hooks.run(x)[layer])


def test_a_hooked_container_that_ends_in_a_convolution_is_not_folded() -> None:
    net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1)), nn.BatchNorm2d(4), nn.ReLU())
    networks.randomised(net, seed=2).eval()
    twin, x = prepare(net, trace(net, 8).folds, ["0"], CPU), images(1, 8)
    with torch.no_grad(), ActivationHooks(net, ["0"]) as hooks, ActivationHooks(twin, ["0"]) as twin_hooks:
        torch.testing.assert_close(twin_hooks.run(x)["0"], hooks.run(x)["0"])


def test_the_users_module_is_untouched() -> None:
    net = networks.small_inception().train()
    net.stem.weight.requires_grad_(False)
    digest, modules = hash_state(net), dict(net.named_modules())
    flags = [p.requires_grad for p in net.parameters()]
    strides = [p.stride() for p in net.parameters()]
    twin = prepare(net, trace(networks.small_inception(), 16).folds, ["fc"], CPU)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    assert hash_state(net) == digest
    assert dict(net.named_modules()) == modules and all(m.training for m in net.modules())
    assert [p.requires_grad for p in net.parameters()] == flags
    assert [p.stride() for p in net.parameters()] == strides


def test_the_copy_is_frozen() -> None:
    net = networks.small_inception().train()
    twin = prepare(net, trace(networks.small_inception(), 16).folds, ["fc"], CPU)
    assert not any(m.training for m in twin.modules() if not isinstance(m, nn.Identity))
    assert not any(p.requires_grad for p in twin.parameters())


@pytest.mark.parametrize(
    "settings",
    [
        {"bias": True},
        {"bias": False, "groups": 2},
        {"bias": True, "stride": 2, "dilation": 2, "padding": 2},
        {"bias": True, "padding": 1, "padding_mode": "reflect"},
    ],
)
@pytest.mark.parametrize("affine", [True, False])
def test_every_kind_of_convolution(settings: dict[str, Any], affine: bool) -> None:
    conv, norm = nn.Conv2d(6, 4, 3, **settings), nn.BatchNorm2d(4, affine=affine, eps=0.1)
    net = nn.Sequential(nn.Conv2d(3, 6, 1), conv, norm, nn.ReLU())
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
        norm.running_mean.copy_(torch.randn(4, generator=generator))
        norm.running_var.copy_(torch.rand(4, generator=generator) + 0.5)
    assert trace(net.eval(), 9).folds == [("1", "2")]
    assert_prepared_is_the_same(net, 9, ["3"])


def test_without_pairs_the_copy_computes_the_same_bits() -> None:
    net, x = networks.linear_network(), images(2, 16)
    twin = prepare(net, [], ["conv3"], CPU)
    with torch.no_grad():
        torch.testing.assert_close(twin(x), net(x))
    assert twin is not net
