"""Local response normalisation by sums over channels, beside torch's own and beside a plain loop."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from featmap.optimize.comparison import copy_settings
from featmap.optimize.prepare import FOLDED, UNTOUCHED, ChannelSumNorm, prepare, sum_neighbours

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


def with_sums(norm: nn.LocalResponseNorm) -> nn.Module:
    return prepare(nn.Sequential(norm), (), ["0"], CPU)


def output_and_gradient(module: nn.Module, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_(True)
    out = module(x)
    (gradient,) = torch.autograd.grad((out * weights).sum(), x)
    return out.detach(), gradient


@settings(max_examples=60, deadline=None)
@given(
    channels=st.integers(1, 9),
    size=st.integers(1, 8),
    beta=st.sampled_from([0.75, 0.5, 1.0, 1.3]),
    alpha=st.floats(1e-5, 2.0),
    k=st.floats(0.5, 3.0),
    seed=st.integers(0, 99),
    last=st.booleans(),
)
def test_output_and_gradient_are_torchs(
    channels: int, size: int, beta: float, alpha: float, k: float, seed: int, last: bool
) -> None:
    norm = nn.LocalResponseNorm(size, alpha, beta, k)
    twin = with_sums(norm)
    assert isinstance(twin[0], ChannelSumNorm) and type(norm) is nn.LocalResponseNorm
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, channels, 4, 5, generator=generator, dtype=torch.float64) * 4
    weights = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    expected, found = output_and_gradient(norm, x, weights), output_and_gradient(twin, x, weights)
    for one, two in zip(expected, found, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("before", "after", "channels"), [(0, 0, 4), (2, 2, 9), (2, 1, 5), (0, 3, 2), (4, 1, 3)])
def test_neighbours_are_summed_as_in_a_loop(before: int, after: int, channels: int) -> None:
    x = torch.randn(2, channels, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = sum_neighbours(x, before, after)
    for c in range(channels):
        window = [x[:, j] for j in range(channels) if c - before <= j <= c + after]
        torch.testing.assert_close(found[:, c], torch.stack(window).sum(dim=0))


def test_a_norm_of_known_value() -> None:
    # three channels 1, 2, 3 and a window of three: 1 / (1 + 5 / 3), 2 / (1 + 14 / 3), 3 / (1 + 13 / 3)
    x = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)
    out = with_sums(nn.LocalResponseNorm(3, alpha=1.0, beta=1.0, k=1.0))(x).flatten()
    torch.testing.assert_close(out, torch.tensor([3 / 8, 6 / 17, 9 / 16]))


def test_a_row_has_the_bits_of_the_row_alone() -> None:
    norm = with_sums(nn.LocalResponseNorm(5)).to(memory_format=torch.channels_last)
    x = (torch.rand(7, 24, 5, 5, generator=torch.Generator().manual_seed(2)) * 90).contiguous(
        memory_format=torch.channels_last
    )
    weights = torch.ones_like(x)
    out, gradient = output_and_gradient(norm, x, weights)
    for row in range(len(x)):
        one = x[row : row + 1].contiguous(memory_format=torch.channels_last)
        alone = output_and_gradient(norm, one, weights[:1])
        assert torch.equal(alone[0][0], out[row]) and torch.equal(alone[1][0], gradient[row])


def test_norms_of_other_kinds_stay_as_they_are() -> None:
    class Doubled(nn.LocalResponseNorm):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * functional.local_response_norm(input, self.size)

    hooked = nn.LocalResponseNorm(5)
    hooked.register_forward_hook(lambda module, inputs, output: output + 1)
    net = nn.Sequential(Doubled(5), hooked, nn.LocalResponseNorm(5))
    before = copy.deepcopy(net)
    assert [isinstance(m, ChannelSumNorm) for m in prepare(net, (), ["2"], CPU)] == [False, False, True]
    untouched = prepare(net, layers=["2"], device=CPU, **copy_settings(UNTOUCHED, ()))
    assert not any(isinstance(m, ChannelSumNorm) for m in untouched)
    assert [type(m) for m in net] == [type(m) for m in before]


def test_the_untouched_network_is_its_own_and_the_folded_has_sums() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.LocalResponseNorm(3, alpha=0.5))
    x = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(3))
    exact = net.double()(x.double())
    net = net.float()
    for kind in (FOLDED, UNTOUCHED):
        twin = prepare(net, layers=["1"], device=CPU, **copy_settings(kind, ()))
        assert isinstance(twin[1], ChannelSumNorm) is (kind == FOLDED)
        torch.testing.assert_close(twin(x).double(), exact, rtol=1e-5, atol=1e-6)
