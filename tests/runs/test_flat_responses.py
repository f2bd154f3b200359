"""Statuses where responses hardly change: saturated units, means that are fixed, layers of one channel."""

from __future__ import annotations

import copy
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from featmap.network.loading import load
from featmap.optimize.objective import Objective
from featmap.optimize.responses import Probe
from featmap.runs import folder_layout, maximise
from tests.helpers.settings import options

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE = 16
FAST = {"size": SIZE, "steps": 6, "rows": 4}


class Turned(nn.Module):
    """Puts the channels last."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 3, 1)


@pytest.mark.parametrize("recipe", ["pixels", "fast"])
def test_saturated_units_that_descent_moves_are_not_dead(recipe: str) -> None:
    """At 0.99988 the slope is 1e-4 and at 0.9999992 it is 1e-6; at 25 there is none that float32 could hold."""
    torch.manual_seed(0)
    net = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 5), act=nn.Sigmoid())).eval()
    net.conv.bias.data = torch.tensor([0.0, 9.0, 14.0, 25.0])
    for part in (net, copy.deepcopy(net).double()):  # the slopes that are claimed
        x = torch.full((1, 3, 5, 5), 0.5, dtype=next(part.parameters()).dtype, requires_grad=True)
        slopes = [float(torch.autograd.grad(part(x)[0, c].sum(), x)[0].abs().sum()) for c in range(4)]
        assert 1e-5 < slopes[1] < 1e-2 and 1e-7 < slopes[2] < 1e-4
        assert slopes[3] == 0 if part is net else 0 < slopes[3] < 1e-9
    data = maximise.maximise([f"act:{c}" for c in range(4)], net, **options(**FAST | {"recipe": recipe, "steps": 24}))
    found = folder_layout.status_names(data["status"].values[0])
    rise = (data["activation"] - data["null_activation"]).values[0]
    assert found[0] == "live" and found[3] == "dead"
    assert found[1] == ("live" if rise[1] > folder_layout.FLAT else "unconverged")
    assert found[2] == "unconverged" and abs(rise[2]) < folder_layout.FLAT


def test_directions_that_a_normalisation_fixes_are_dead() -> None:
    """Behind a softmax over channels their sum is 1, and behind a LayerNorm it is 0: what remains is rounding."""
    torch.manual_seed(0)
    net = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 6, 5), soft=nn.Softmax(1), last=Turned(), norm=nn.LayerNorm(6)))
    network = load(net.eval(), input_size=SIZE).with_directions(
        {f"{layer}/d": np.stack([np.ones(6), np.arange(6)]) for layer in ("soft", "norm")}
    )
    units = [f"{layer}/d:{k}" for layer in ("soft", "norm") for k in (0, 1)]
    data = maximise.maximise(units, network, **options(**FAST | {"steps": 24}))
    assert folder_layout.status_names(data["status"].values[0]) == ["dead", "live", "dead", "live"]


def test_a_layer_of_one_channel_is_live_under_contrast() -> None:
    """There is no mean of the others to be set apart from; the channel less itself would have no gradient."""
    torch.manual_seed(0)
    net = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 5), tanh=nn.Tanh(), depth=nn.Conv2d(4, 1, 1))).eval()
    network = load(net, input_size=SIZE).with_directions({"depth/minus": [[-1.0]]})
    data = maximise.maximise(["depth:0", "depth/minus:0"], network, **options(**FAST | {"recipe": "fast"}))
    assert folder_layout.status_names(data["status"].values[0]) == ["live", "live"]
    assert (data["activation"].values > data["null_activation"].values).all()


class Float32Norm(nn.GroupNorm):
    """A norm that computes in float32 whatever the type of its input, as many diffusion models have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.group_norm(x.float(), self.num_groups, eps=self.eps).type(x.dtype)


@pytest.mark.parametrize(("norm", "bias"), [(Float32Norm, 0.0), (Float32Norm, 10.0), (nn.GroupNorm, 20.0)])
def test_means_fixed_by_a_norm_of_each_channel_are_not_live(norm: type[nn.GroupNorm], bias: float) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 16, 3), norm=norm(16, 16, affine=False))).eval()
    net.conv.bias.data.fill_(bias)
    data = maximise.maximise([f"norm:{c}" for c in range(16)], net, **options(**FAST | {"steps": 24}))
    status = data["status"].values
    assert not np.isin(status, folder_layout.LIVE_CODES).any()
    # what the norm computes in float32 cannot be decided in float64
    assert (status == folder_layout.DEAD).all() or norm is Float32Norm


def test_what_float64_decides_for_a_row_does_not_depend_on_its_neighbours() -> None:
    net = nn.Sequential(OrderedDict(norm=nn.GroupNorm(3, 3, affine=False), own=Float32Norm(3, 3, affine=False)))
    probe = Probe(load(net.eval()))
    nulls, images = torch.rand(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    mixed = [Objective.parse(unit) for unit in ("norm:0", "own:0", "norm:1")]
    probe.activations(images, mixed)  # the network is traced at this size
    together = probe.exact_changes(nulls, images, mixed, np.arange(3))
    assert np.isnan(together).tolist() == [False, True, False]
    assert together[2] == probe.exact_changes(nulls, images, mixed, np.array([2]))[0]
