"""Second derivatives of responses: closed forms, two passes backward for each feature, and finite differences."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from featmap.network.loading import load
from featmap.optimize import responses
from featmap.optimize.responses import Probe
from tests.helpers import couples

pytestmark = pytest.mark.usefixtures("threads")


def images(size: int = 12, count: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Images, and two directions at each."""
    draw = torch.Generator().manual_seed(0)
    return (
        torch.rand(count, 3, size, size, generator=draw),
        torch.randn(count, 3, size, size, generator=draw),
        torch.randn(count, 3, size, size, generator=draw),
    )


class Gate(nn.Module):
    """An elementwise function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def network(middle: nn.Module) -> nn.Module:
    """Layers `first`, `middle` and `last`."""
    torch.manual_seed(3)
    layers = OrderedDict(first=nn.Conv2d(3, 6, 3), middle=middle, last=nn.Conv2d(6, 4, 3))
    return nn.Sequential(layers).eval()


def by_feature(function: Callable[[Tensor], Tensor], x: Tensor, one: Tensor, two: Tensor) -> np.ndarray:
    """Compute u' H v of one feature after the other, in float64, by two passes backward."""
    x = x.double().requires_grad_(True)
    found = []
    for mean in function(x).mean((2, 3)).unbind(1):
        (gradient,) = torch.autograd.grad(mean.sum(), x, create_graph=True)
        (product,) = torch.autograd.grad((gradient * one).sum(), x, retain_graph=True)
        found.append((product * two).sum((1, 2, 3)))
    return torch.stack(found, dim=1).numpy()


def central(function: Callable[[Tensor], Tensor], x: Tensor, one: Tensor, two: Tensor, step: float) -> np.ndarray:
    """The mixed derivative by central differences in float64."""
    with torch.no_grad():
        f = [function(x.double() + step * (s * one + t * two)).mean((2, 3)) for s, t in ((1, 1), (1, -1), (-1, 1))]
        last = function(x.double() - step * (one + two)).mean((2, 3))
    return ((f[0] - f[1] - f[2] + last) / (4 * step**2)).numpy()


def close(found: np.ndarray, expected: np.ndarray, share: float) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=share * np.abs(expected).max())
    assert np.abs(expected).max() > 0


def test_a_quadratic_network_has_its_closed_form() -> None:
    """The mean of x_i x_j: u' H v is the mean of u_i v_j + u_j v_i, at any image."""
    x, u, v = images()
    found = Probe(load(couples.product(), input_size=12)).mixed_derivatives(x, u, v, ["products", "colours"])
    expected = [(u[:, i] * v[:, j] + u[:, j] * v[:, i]).mean((1, 2)) for i, j in ((0, 1), (0, 2), (1, 2))]
    np.testing.assert_allclose(found[:, :3], torch.stack(expected, dim=1), rtol=1e-4, atol=1e-6)
    assert (found[:, 3:] == 0).all() and found.dtype == np.float32


@pytest.mark.parametrize(
    "middle", [nn.Identity(), nn.BatchNorm2d(6), nn.AvgPool2d(2), nn.MaxPool2d(2, ceil_mode=True), nn.LeakyReLU()]
)
def test_where_a_network_is_linear_it_is_zero(middle: nn.Module) -> None:
    assert (Probe(load(network(middle), input_size=12)).mixed_derivatives(*images(), ["last"]) == 0).all()


@pytest.mark.parametrize(
    "middle",
    [
        nn.Softplus(),
        nn.SiLU(),
        nn.GELU(),
        nn.LocalResponseNorm(3, alpha=0.5),
        nn.LayerNorm([6, 10, 10]),
        nn.Softmax2d(),
        nn.Sequential(nn.Sigmoid(), nn.MaxPool2d(2, ceil_mode=True)),
    ],
    ids=lambda m: type(m).__name__,
)
def test_a_smooth_network_has_its_hessian(middle: nn.Module) -> None:
    module, (x, u, v) = network(middle), images()
    found = Probe(load(module, input_size=12)).mixed_derivatives(x, u, v, ["last"])
    exact = module.double()
    close(found, by_feature(exact, x, u, v), 2e-5)
    close(found, central(exact, x, u, v, 2e-4), 1e-3)


RELUS: dict[str, Any] = {
    "module": nn.ReLU(),
    "in place": nn.ReLU(inplace=True),
    "functional": Gate(functional.relu),
    "functional in place": Gate(lambda x: functional.relu(x, True)),
    "torch": Gate(torch.relu),
    "method": Gate(Tensor.relu),
    "method in place": Gate(lambda x: (x.relu_(), x)[1]),
}


@pytest.mark.parametrize("name", RELUS)
def test_a_relu_keeps_its_values_and_bends_like_a_softplus(name: str) -> None:
    module, (x, u, v) = network(RELUS[name]), images()
    found = Probe(load(module, input_size=12)).mixed_derivatives(x, u, v, ["last"])
    first, last = module.first.double(), module.last.double()

    def softened(image: Tensor) -> Tensor:
        z = first(image)
        width = responses.SMOOTH_WIDTH * z.detach().square().mean((1, 2, 3), keepdim=True).sqrt()
        return last(width * torch.logaddexp(z / width, torch.zeros_like(z)))

    close(found, by_feature(softened, x, u, v), 2e-5)


@pytest.mark.parametrize("gate", [nn.ReLU6(), nn.Hardtanh(-0.2, 0.3, inplace=True), Gate(functional.relu6)])
def test_a_gate_of_two_kinks_bends_at_both(gate: nn.Module) -> None:
    module, (x, u, v) = network(gate), images()
    module.first.weight.data *= 1.0 if isinstance(gate, nn.Hardtanh) and gate.max_val < 1 else 30.0
    low, high = (-0.2, 0.3) if module.first.weight.abs().max() < 1 else (0.0, 6.0)
    found = Probe(load(module, input_size=12)).mixed_derivatives(x, u, v, ["last"])
    first, last = module.first.double(), module.last.double()

    def softened(image: Tensor) -> Tensor:
        z = first(image)
        width = responses.SMOOTH_WIDTH * z.detach().square().mean((1, 2, 3), keepdim=True).sqrt()
        soft = [width * functional.softplus((z - edge) / width, threshold=50) for edge in (low, high)]
        return last(soft[0] - soft[1])

    close(found, by_feature(softened, x, u, v), 2e-4)


def test_later_layers_see_the_values_of_the_network() -> None:
    """Behind a ReLU the quadratic layer multiplies its values, not those of a softplus."""
    module = nn.Sequential(OrderedDict(relu=nn.ReLU(), products=couples.Product())).eval()
    x, u, v = (t - 0.5 * (k == 0) for k, t in enumerate(images()))
    rms = x.square().mean((1, 2, 3), keepdim=True).sqrt() * responses.SMOOTH_WIDTH
    value, slope = x.clamp(min=0), torch.sigmoid(x / rms)
    bend = slope * (1 - slope) / rms
    i, j = 0, 1
    expected = slope[:, i] * slope[:, j] * (u[:, i] * v[:, j] + u[:, j] * v[:, i])
    expected += bend[:, i] * u[:, i] * v[:, i] * value[:, j] + bend[:, j] * u[:, j] * v[:, j] * value[:, i]
    found = Probe(load(module, input_size=12)).mixed_derivatives(x, u, v, ["products"])
    np.testing.assert_allclose(found[:, 0], expected.mean((1, 2)), rtol=1e-3, atol=1e-4)


class Once(torch.autograd.Function):
    """Twice the input, with a backward pass that has no derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


class Around(nn.Sequential):
    """The modules, and a way around them."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


@pytest.mark.parametrize(
    "middle",
    [
        nn.Sequential(nn.Sigmoid(), Gate(Once.apply)),
        nn.Sequential(Gate(Once.apply), nn.Sigmoid()),
        Around(nn.Sigmoid(), Gate(Once.apply)),
        Around(Gate(Once.apply), nn.Sigmoid()),
    ],
)
def test_an_operation_without_a_second_derivative_leaves_it_undefined(middle: nn.Module) -> None:
    """Torch drops such an operation from the graph and raises nothing."""
    module = network(middle)
    assert np.isnan(Probe(load(module, input_size=12)).mixed_derivatives(*images(), ["last"])).all()


def test_an_image_depends_on_itself_and_the_network_is_left_as_it_was() -> None:
    module, (x, u, v) = network(nn.ReLU()).train(), images()
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    probe = Probe(load(module, input_size=12))
    with torch.no_grad():
        found = probe.mixed_derivatives(x, u, v, ["last"])
    assert probe.module.first.weight.requires_grad and probe.module.first.weight.grad is None
    doubled = probe.mixed_derivatives(x, 2 * v, u, ["last"])
    np.testing.assert_allclose(doubled, 2 * found, rtol=1e-4, atol=1e-5 * np.abs(found).max())
    others = probe.mixed_derivatives(x.flip(0), u.flip(0), v.flip(0), ["last"])[::-1]
    np.testing.assert_allclose(others, found, rtol=1e-4, atol=1e-5 * np.abs(found).max())
