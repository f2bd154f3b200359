"""Modules of any kind: copied, computed as written, converted or refused, and given back as they were."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from featmap.errors import ModelError
from featmap.network import modules
from featmap.network.hooks import ActivationHooks
from featmap.network.loading import load
from featmap.validation.random_weights import randomise_weights
from tests.helpers import kinds

pytestmark = pytest.mark.usefixtures("one_thread")


def images(count: int = 2, size: int = 12) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(3))


def with_old_norms() -> nn.Module:
    net = kinds.plain()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch prefers the newer ones
        nn.utils.weight_norm(net[0])
        nn.utils.spectral_norm(net[3])
    return net.eval()


def with_new_norms() -> nn.Module:
    net = kinds.plain()
    parametrizations.weight_norm(net[0])
    parametrizations.spectral_norm(net[3])
    return net.eval()


def pruned() -> nn.Module:
    net = kinds.plain()
    prune.l1_unstructured(net[0], "weight", amount=0.3)
    return net.eval()


KINDS = {
    "old norms": with_old_norms,
    "new norms": with_new_norms,
    "pruned": pruned,
    "aliased": kinds.aliased,
    "checkpointed": kinds.checkpointed,
    "remembering": kinds.remembering,
    "autocast": kinds.autocast,
    "compiled": lambda: torch.compile(kinds.plain()),
    "compiled part": lambda: nn.Sequential(torch.compile(kinds.plain()), nn.ReLU()).eval(),
}
LAST = {"aliased": "head", "checkpointed": "last", "remembering": "conv", "autocast": "body.3", "compiled part": "0.3"}


def described(net: nn.Module) -> dict[str, Any]:
    """All that a caller may find changed: tensors, types, flags, modes, hooks and other attributes."""
    return {
        "state": {k: (v.clone(), v.dtype) for k, v in net.state_dict().items()},
        "gradients": [(p.requires_grad, p.grad is None) for p in net.parameters()],
        "modes": [m.training for m in net.modules()],
        "kinds": [type(m) for m in net.modules()],
        "hooks": [[len(getattr(m, name)) for name in modules.HOOKS] for m in net.modules()],
        "attributes": [{k: id(v) for k, v in vars(m).items() if not isinstance(v, (bool, int))} for m in net.modules()],
    }


def assert_same(net: nn.Module, before: dict[str, Any]) -> None:
    after = described(net)
    for name, (value, dtype) in before.pop("state").items():
        found, found_dtype = after["state"][name]
        assert torch.equal(found, value) and found_dtype == dtype, name
    assert {k: v for k, v in after.items() if k != "state"} == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fails", [False, True])
def test_a_module_is_given_back_as_it_was(kind: str, fails: bool) -> None:
    net = KINDS[kind]()
    net.train()
    first = next(net.parameters())
    first.requires_grad_(False)
    before = described(net)
    network = load(net)
    layer = LAST.get(kind, "3")
    network.layer(layer, 12)
    try:
        with ActivationHooks(network.module, [layer]) as hooks:
            hooks.run(images())
            if fails:
                raise KeyError("of the caller's")
    except KeyError:
        pass
    assert_same(net, before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_computes_the_same_and_shares_nothing(kind: str) -> None:
    net = KINDS[kind]().eval()
    twin = modules.copy_module(net)
    with torch.no_grad(), modules.plain_execution():
        torch.testing.assert_close(twin(images()), net(images()), rtol=0, atol=0)
        shared = {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in twin.parameters()}
    assert not shared
    assert not any(modules.is_compiled(part) for part in twin.modules())


def test_a_copy_of_an_aliased_module_is_aliased() -> None:
    twin = modules.copy_module(kinds.aliased())
    assert twin.conv is twin.backbone[0] is twin.parts[0]


def test_only_torchs_own_classes_with_nothing_added_are_plain() -> None:
    assert modules.is_plain(nn.BatchNorm2d(3), nn.BatchNorm2d)
    assert not modules.is_plain(kinds.ActivatedNorm(3), nn.BatchNorm2d)
    hooked, bound = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
    hooked.register_forward_hook(lambda *_: None)
    bound.forward = lambda x: x  # type: ignore[method-assign,assignment]
    for net in (hooked, bound, pruned()[0], with_old_norms()[0], with_new_norms()[0]):
        assert not modules.is_plain(net, nn.Conv2d)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("layer", ["middle.0", "middle.1", "last"])
def test_checkpointing_leaves_the_gradient_as_it_is(reentrant: bool, layer: str) -> None:
    net = kinds.checkpointed(reentrant)
    plain = copy.deepcopy(net)
    plain.on = False
    gradients = []
    for one in (net, plain):
        x = images().requires_grad_(True)
        with ActivationHooks(one, [layer]) as hooks:
            out = hooks.run(x)[layer]
        gradients.append(torch.autograd.grad(out.square().sum(), x)[0])
    assert torch.equal(*gradients)
    x = images().requires_grad_(True)
    net(x).sum().backward()  # afterwards checkpointing works as before
    assert x.grad is not None


def test_either_name_of_a_shared_module_is_a_layer() -> None:
    net = kinds.aliased()
    network = load(net)
    assert network.layer("norm", 12).shape == network.layer("backbone.1", 12).shape == (8, 12, 12)
    assert network.layer("norm", 12).name == "norm"
    with torch.no_grad():
        expected = net.norm(net.conv(images()))
        with ActivationHooks(net, ["norm", "backbone.1"]) as hooks:
            found = hooks.run(images())
    assert torch.equal(found["norm"], expected) and torch.equal(found["backbone.1"], expected)


def test_outputs_of_less_than_float32_are_measured_in_float32() -> None:
    net = kinds.autocast()
    with torch.no_grad():
        expected = net(images())
        with ActivationHooks(net, ["body.3"]) as hooks:
            found = hooks.run(images())["body.3"]
    assert expected.dtype is torch.bfloat16 and found.dtype is torch.float32
    assert torch.equal(found, expected.float())


def test_mixed_precision_of_the_caller_is_left_out() -> None:
    net = kinds.plain()
    with torch.no_grad():
        expected = net(images())
        with torch.autocast("cpu", dtype=torch.bfloat16), ActivationHooks(net, ["3"]) as hooks:
            found = hooks.run(images())["3"]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_parameters_of_another_type_are_converted_in_a_copy(dtype: torch.dtype) -> None:
    net = kinds.plain().to(dtype)
    network = load(net, input_size=12)
    assert {p.dtype for p in net.parameters()} == {dtype}
    expected = copy.deepcopy(net).float()
    with torch.no_grad():
        assert torch.equal(network.module(images()), expected(images()))
    assert any("converted to float32" in note for note in network.notes)


def test_a_network_that_converts_its_input_keeps_its_type() -> None:
    net = kinds.OwnHalf().eval()
    network = load(net, input_size=12)
    assert network.module is net and not any("converted" in note for note in network.notes)
    assert network.layer("body.3", 12).channels == 6


def test_lazy_modules_are_initialised_in_a_copy() -> None:
    net = nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(5))
    network, again = load(net, input_size=12), load(net, input_size=12)
    assert modules.is_uninitialised(net) and type(net[0]) is nn.LazyConv2d
    assert network.sha256 == again.sha256
    assert network.layer("3", 12).channels == 5 and network.layer("0", 12).shape == (8, 10, 10)
    state = torch.random.get_rng_state()
    load(net, input_size=12)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_compiled_networks_are_computed_by_their_originals() -> None:
    net = kinds.plain()
    assert load(torch.compile(net)).module is net
    part = nn.Sequential(torch.compile(net), nn.ReLU()).eval()
    network = load(part)
    assert network.layer("0.3", 12).channels == 6
    with torch.no_grad():
        assert torch.equal(network.module(images()), net(images()).relu())
    assert modules.is_compiled(part[0])


def quantised() -> nn.Module:
    linear = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(400, 5)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(linear, {nn.Linear}, dtype=torch.qint8)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch.jit.script(kinds.plain()), ("TorchScript", "give the torch.nn.Module")),
        (lambda: nn.Sequential(torch.jit.trace(kinds.plain(), images())), ("part '0'", "TorchScript")),
        (quantised, ("part '2'", "quantised", "float32")),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, device="meta")), ("part '0'", "no values", "load its weights")),
        (lambda: nn.Sequential(nn.LazyConv2d(4, 400)), ("lazy modules", "24 pixels", "name the input size")),
    ],
)
def test_what_cannot_be_done_says_so_in_one_line(make: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(ModelError) as error:
        load(make(), input_size=24)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("make", [with_old_norms, with_new_norms, pruned])
def test_reparametrised_weights_are_not_called_random(make: Any) -> None:
    with pytest.raises(ModelError, match="the weight of 0 is reparametrised"):
        randomise_weights(load(make()), 1)
