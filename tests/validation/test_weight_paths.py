"""Which weights make features and which read them, in networks whose weights are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featmap.errors import ModelError, UnitError
from featmap.image_ops import pink_noise
from featmap.network.loading import load
from featmap.stats import agreement
from featmap.validation import weight_paths
from featmap.validation.random_weights import randomise_weights
from tests.helpers.networks import randomised, small_inception
from tests.helpers.twofold import bare, honest


def rows(conv: nn.Module) -> np.ndarray:
    return conv.weight.detach().double().flatten(1).numpy()  # type: ignore[union-attr,operator]


def scales(norm: nn.Module) -> np.ndarray:
    found = norm.weight / torch.sqrt(norm.running_var + norm.eps)  # type: ignore[operator,arg-type]
    return found.detach().double().numpy()


def test_a_concatenations_features_have_the_weights_of_their_own_branch() -> None:
    net = small_inception()
    incoming, outgoing = weight_paths.find_weights(load(net), "mixed", 16)
    assert incoming.names == ("mixed.branch1.conv", "mixed.branch2.1.conv")
    assert incoming.groups.tolist() == [0] * 5 + [1] * 6
    np.testing.assert_allclose(incoming.vectors[:5, :8], rows(net.mixed.branch1.conv))
    np.testing.assert_allclose(incoming.vectors[5:], rows(net.mixed.branch2[1].conv))
    assert not incoming.vectors[:5, 8:].any()
    assert outgoing.names == ("narrow",) and set(outgoing.groups) == {0}
    np.testing.assert_allclose(outgoing.vectors, net.narrow.weight.detach().double().transpose(0, 1).flatten(1).numpy())
    table = agreement.cosine_table(incoming.vectors, incoming.groups)
    assert np.isfinite(table).sum() == 5 * 5 + 6 * 6


def test_batch_norm_between_scales_outgoing_and_signs_incoming() -> None:
    net = small_inception()
    with torch.no_grad():
        net.norm.weight[2] = -0.7
    before, _ = weight_paths.find_weights(load(net), "stem", 16)
    np.testing.assert_allclose(before.vectors, rows(net.stem))
    after, read = weight_paths.find_weights(load(net), "norm", 16)
    sign = np.where(np.arange(8) == 2, -1, 1)[:, None]
    np.testing.assert_allclose(after.vectors, sign * rows(net.stem))
    _, through = weight_paths.find_weights(load(net), "stem", 16)
    assert read.names == through.names == ("mixed.branch1.conv", "mixed.branch2.0.conv")
    np.testing.assert_allclose(through.vectors, scales(net.norm)[:, None] * read.vectors, rtol=1e-6)
    expected = torch.cat([net.mixed.branch1.conv.weight, net.mixed.branch2[0].conv.weight])
    np.testing.assert_allclose(read.vectors, expected.detach().double().transpose(0, 1).flatten(1).numpy())


class Crossed(nn.Module):
    """Grouped convolutions, a sum of two branches, a functional linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.grouped = nn.Conv2d(6, 4, 3, padding=1, groups=2)
        self.side = nn.Conv2d(6, 4, 1)
        self.sum = nn.Identity()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.first(x)), 2)
        y = self.sum(self.grouped(x) + self.side(x))
        return self.head(F.adaptive_avg_pool2d(F.relu(y), 1).flatten(1))


def test_groups_have_spaces_of_their_own_and_a_sum_has_no_weights() -> None:
    net = randomised(Crossed(), seed=1).eval()
    network = load(net)
    incoming, _ = weight_paths.find_weights(network, "grouped", 8)
    assert incoming.groups.tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(incoming.vectors, rows(net.grouped))
    _, outgoing = weight_paths.find_weights(network, "first", 8)
    assert outgoing.names == ("grouped", "side")
    assert outgoing.groups.tolist() == [0, 0, 0, 1, 1, 1]  # read by the same convolution, by other groups
    by_hand = torch.cat([net.grouped.weight[2:, 1].flatten(), net.side.weight[:, 4].flatten()])
    np.testing.assert_allclose(outgoing.vectors[4], by_hand.detach().double().numpy())
    made, read = weight_paths.find_weights(network, "sum", 8)
    assert set(made.groups) == {-1} and made.names == ()
    assert read.names == ("head",)
    np.testing.assert_allclose(read.vectors, net.head.weight.detach().double().T.numpy())
    last, none = weight_paths.find_weights(network, "head", 8)
    np.testing.assert_allclose(last.vectors, rows(net.head))
    assert none.names == () and set(none.groups) == {-1}


def test_following_the_weights_changes_nothing_and_names_unknown_layers() -> None:
    net = small_inception().train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    weight_paths.find_weights(load(net), "relu@2", 16)
    assert net.training and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(m._forward_hooks for m in net.modules())
    with pytest.raises(UnitError, match="no layer 'mixd'"):
        weight_paths.find_weights(load(net), "mixd", 16)


def test_random_weights_are_others_and_the_same_for_a_seed() -> None:
    network = load(small_inception(), input_size=16)
    state = {k: v.clone() for k, v in network.module.state_dict().items()}
    one, two, other = (randomise_weights(network, seed) for seed in (0, 0, 1))
    assert one.sha256 == two.sha256 != other.sha256 != network.sha256
    assert all(torch.equal(v, state[k]) for k, v in network.module.state_dict().items())
    assert one.weights == "random:0, batch norms on 1/f images"
    seen: list[Tensor] = []
    handle = one.module.norm.register_forward_hook(lambda _, __, out: seen.append(out.clone()))  # type: ignore[operator,union-attr]
    with torch.no_grad():
        one.module(one.normalise(pink_noise(64, 16)))
    handle.remove()
    np.testing.assert_allclose(seen[0].mean((0, 2, 3)), 0, atol=1e-3)
    np.testing.assert_allclose(seen[0].std((0, 2, 3)), 1, atol=1e-2)


def test_a_known_network_is_built_anew_and_one_that_cannot_be_is_refused() -> None:
    network = load("resnet18", "random:3")
    found = randomise_weights(network, 5)
    fresh = load("resnet18", "random:5").module
    assert torch.equal(found.module.conv1.weight, fresh.conv1.weight)  # type: ignore[union-attr,arg-type]
    assert randomise_weights(load(honest()), 1).weights == "random:1"
    with pytest.raises(ModelError, match="the weight of features is reparametrised"):
        randomise_weights(load(bare()))
