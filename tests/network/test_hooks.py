from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featmap.errors import UnitError
from featmap.network.hooks import ActivationHooks
from featmap.network.modules import freeze
from tests.helpers import networks

pytestmark = pytest.mark.usefixtures("one_thread")


def images(count: int = 2, size: int = 16) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def counted(module: nn.Module) -> Counter[str]:
    """Count what runs in a module from now on."""
    ran: Counter[str] = Counter()
    for name, part in module.named_modules():
        part.register_forward_pre_hook(lambda _, __, name=name: ran.update([name]))
    return ran


def state_of(module: nn.Module) -> dict[str, Any]:
    """Everything that hooks could leave behind."""
    return {
        "training": [m.training for m in module.modules()],
        "requires_grad": [p.requires_grad for p in module.parameters()],
        "gradients": [p.grad for p in module.parameters()],
        "state": {k: v.clone().tolist() for k, v in module.state_dict().items()},
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in module.modules()],
    }


def mixed_state() -> nn.Module:
    """A network in training, but for one module, and learning, but for some parameters."""
    net = networks.small_inception().train()
    net.mixed.branch1.eval()
    net.stem.weight.requires_grad_(False)
    net.fc.bias.requires_grad_(False)
    return net


BRANCH1 = {"", "stem", "norm", "relu", "mixed", "mixed.branch1", "mixed.branch1.conv", "mixed.branch1.bn"}
BRANCH2 = {
    "mixed.branch2",
    *[f"mixed.branch2.{k}{part}" for k in (0, 1) for part in ("", ".conv", ".bn")],
}


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (["stem"], {"", "stem"}),
        (["relu@1"], {"", "stem", "norm", "relu"}),
        (["mixed.branch1"], BRANCH1),
        (["mixed"], BRANCH1 | BRANCH2),
        (["mixed", "stem"], BRANCH1 | BRANCH2),
        (["stem", "mixed.branch1.conv", "norm"], BRANCH1 - {"mixed.branch1.bn"}),
        (["relu@2"], BRANCH1 | BRANCH2 | {"narrow", "norm2"}),
        (["fc"], BRANCH1 | BRANCH2 | {"narrow", "norm2", "pool", "fc"}),
    ],
)
def test_the_forward_stops_at_the_deepest_layer(layers: list[str], expected: set[str]) -> None:
    net = networks.small_inception()
    ran = counted(net)
    with torch.no_grad(), ActivationHooks(net, layers) as hooks:
        hooks.run(images())
    assert set(ran) == expected
    assert ran["relu"] == (2 if "norm2" in expected else int("relu" in expected))
    assert all(n == 1 for name, n in ran.items() if name != "relu")


def test_outputs_are_those_of_the_whole_pass() -> None:
    net, x = networks.small_inception(), images()
    with torch.no_grad():
        stem = net.stem(x)
        norm = net.norm(stem)
        relu1 = norm.clamp(min=0)
        mixed = net.mixed(relu1)
        norm2 = net.norm2(net.narrow(mixed))
        relu2 = norm2.clamp(min=0)
        logits = net(x)
        with ActivationHooks(net, ["fc", "relu@2", "norm2", "mixed", "relu@1", "norm", "stem"]) as hooks:
            found = hooks.run(x)
    expected = {"stem": stem, "norm": norm, "relu@1": relu1, "mixed": mixed, "norm2": norm2, "relu@2": relu2}
    assert list(found) == ["fc", "relu@2", "norm2", "mixed", "relu@1", "norm", "stem"], "in the order asked for"
    assert torch.equal(found.pop("fc"), logits[:, :, None, None]), "logits are a grid of one"
    assert all(torch.equal(found[k], v) for k, v in expected.items())


def test_an_in_place_relu_does_not_overwrite_a_hooked_norm() -> None:
    net, x = networks.small_inception(), images()
    names = ["norm", "mixed.branch1.bn", "norm2"]
    with torch.no_grad(), ActivationHooks(net, [*names, "relu@1", "mixed.branch1", "relu@2"]) as hooks:
        found = hooks.run(x)
    for before, after in zip(names, ["relu@1", "mixed.branch1", "relu@2"], strict=True):
        assert (found[before] < 0).any(), before
        assert torch.equal(found[before].clamp(min=0), found[after])


def test_gradients_reach_the_images() -> None:
    net, x = networks.small_inception(), images().requires_grad_(True)
    with ActivationHooks(net, ["norm"]) as hooks:
        (gradient,) = torch.autograd.grad(hooks.run(x)["norm"][:, 3].sum(), x)
    y = x.detach().clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(net.norm(net.stem(y))[:, 3].sum(), y)
    torch.testing.assert_close(gradient, expected)
    assert all(p.grad is None for p in net.parameters())


def test_two_calls_of_one_module_are_two_places() -> None:
    net, x = networks.small_inception(), images()
    with torch.no_grad(), ActivationHooks(net, ["relu@2", "relu@1"]) as hooks:
        found = hooks.run(x)
        again = hooks.run(x)
    assert found["relu@1"].shape[1] == 8 and found["relu@2"].shape[1] == 7
    assert all(torch.equal(found[k], again[k]) for k in found), "the count starts anew with every pass"
    with torch.no_grad(), ActivationHooks(net, ["relu"]) as hooks:
        assert torch.equal(hooks.run(x)["relu"], found["relu@1"])


def test_a_layer_asked_for_twice_is_given_once() -> None:
    with torch.no_grad(), ActivationHooks(networks.small_inception(), ["stem", "stem"]) as hooks:
        assert list(hooks.run(images())) == ["stem"]


@pytest.mark.parametrize("layer", ["nowhere", "mixed.branch3", "relu.1", "nowhere@2"])
def test_an_unknown_layer_is_refused_without_changes(layer: str) -> None:
    net = mixed_state()
    before = state_of(net)
    with pytest.raises(UnitError, match=r"no layer .* in this network; `featmap layers` lists them"):
        ActivationHooks(net, [layer]).__enter__()
    assert state_of(net) == before


def test_a_layer_that_is_not_reached() -> None:
    net = mixed_state()
    before = state_of(net)
    with pytest.raises(UnitError, match="layer 'relu@3' was not reached"), ActivationHooks(net, ["relu@3"]) as hooks:
        hooks.run(images())
    assert state_of(net) == before


class Tuples(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pair = networks.linear_network()
        self.flat = nn.Flatten(2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.flat(self.pair(x)), x


@pytest.mark.parametrize("layer", ["flat", ""])
def test_an_output_that_is_no_grid(layer: str) -> None:
    with (
        torch.no_grad(),
        ActivationHooks(Tuples(), [layer]) as hooks,
        pytest.raises(UnitError, match="outputs neither a grid nor a vector"),
    ):
        hooks.run(images())


def test_the_state_is_restored() -> None:
    net = mixed_state()
    before = state_of(net)
    with ActivationHooks(net, ["mixed", "relu@2"]) as hooks:
        assert not any(m.training for m in net.modules())
        assert not any(p.requires_grad for p in net.parameters())
        hooks.run(images())
    assert state_of(net) == before
    with ActivationHooks(net, ["mixed"]) as hooks:
        hooks.run(images())
    assert state_of(net) == before, "a second time"


def test_the_state_is_restored_after_an_error_in_the_forward() -> None:
    net = mixed_state()
    before = state_of(net)
    with pytest.raises(RuntimeError, match="size"), ActivationHooks(net, ["relu@2"]) as hooks:
        hooks.run(images(size=4))
    assert state_of(net) == before


def test_the_state_is_restored_after_an_interruption() -> None:
    net = mixed_state()
    before = state_of(net)
    with pytest.raises(KeyboardInterrupt), ActivationHooks(net, ["mixed"]):
        raise KeyboardInterrupt
    assert state_of(net) == before


def test_the_users_own_hooks_stay_and_run() -> None:
    net, seen = networks.small_inception(), []
    net.stem.register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape)))
    with torch.no_grad(), ActivationHooks(net, ["mixed"]) as hooks:
        hooks.run(images())
    assert seen == [(2, 8, 8, 8)] and len(net.stem._forward_hooks) == 1


def test_nested_hooks_give_back_the_outermost_state() -> None:
    net = mixed_state()
    before = state_of(net)
    with ActivationHooks(net, ["mixed"]) as outer, torch.no_grad():
        with ActivationHooks(net, ["stem"]) as inner:
            assert inner.run(images())["stem"].shape[1] == 8
        assert outer.run(images())["mixed"].shape[1] == 11
        assert not net.training
    assert state_of(net) == before


def test_hooks_stop_their_own_passes_only() -> None:
    net = networks.small_inception()
    with ActivationHooks(net, ["stem"]), torch.no_grad(), ActivationHooks(net, ["mixed"]) as inner:
        assert inner.run(images())["mixed"].shape[1] == 11


def test_frozen_lends_and_gives_back() -> None:
    net = mixed_state()
    before = state_of(net)
    with pytest.raises(ValueError, match="stop"), freeze(net) as lent:
        assert lent is net and not net.training
        raise ValueError("stop")
    assert state_of(net) == before


def test_dropout_and_norms_are_in_evaluation_mode() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    networks.randomised(net, seed=6)
    before = state_of(net)
    with torch.no_grad(), ActivationHooks(net, ["2"]) as hooks:
        first, second = hooks.run(images())["2"], hooks.run(images())["2"]
    assert torch.equal(first, second)
    assert state_of(net) == before, "running statistics as well"


class Cautious(nn.Module):
    """A forward pass that goes on after an error of one of its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)
        self.after = 0

    def forward(self, x: Tensor) -> Tensor:
        try:
            x = self.first(x)
        except Exception:  # noqa: BLE001 - as users write it
            x = torch.zeros(1, 4, 1, 1)
        self.after += 1
        return self.second(x)


def test_a_forward_that_catches_errors_is_stopped_as_well() -> None:
    net = Cautious()
    with torch.no_grad(), ActivationHooks(net, ["first"]) as hooks:
        assert hooks.run(images())["first"].shape == (2, 4, 16, 16)
    assert net.after == 0


@pytest.mark.parametrize("make", [networks.linear_network, networks.planted_1x1, networks.logits_network])
def test_tapping_the_last_layer_is_the_network_itself(make: Callable[[], nn.Module]) -> None:
    net, x = make(), images()
    last = list(dict(net.named_children()))[-1]
    with torch.no_grad(), ActivationHooks(net, [last]) as hooks:
        assert torch.equal(hooks.run(x)[last].squeeze(), net(x).squeeze())


def test_a_functional_relu_behind_a_tap_is_no_trouble() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(x)
            F.relu_(x)
            x += 100
            return x

    with torch.no_grad(), ActivationHooks(nn.Sequential(Net(), nn.Identity()), ["0.norm", "1"]) as hooks:
        found = hooks.run(images() - 0.5)
    assert (found["0.norm"] < 0).any() and (found["1"] >= 100).all()
