"""Windows with the channels second, as MobileViT v2 has them: N x C x positions of a window x windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import featmap
from featmap import Recipe
from featmap.cli.listing import layer_lines, modules_left_out
from featmap.network.layouts import CHANNELS_FIRST_WINDOWS
from featmap.network.loading import load
from featmap.runs.maximise import Extras

pytestmark = pytest.mark.usefixtures("cheap_runs", "one_thread")
PATCH = (2, 3)


class Unfolded(nn.Module):
    """A convolution of single positions inside windows of 2 x 3, and around it what brings windows and grids together.

    `plain` computes the same on the grid itself.
    """

    def __init__(self, joined: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.joined = joined
        self.stem, self.inside, self.act = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 5, 1), nn.SiLU()
        self.scores, self.last = nn.Softmax(-1), nn.Conv2d(5, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, c, height, width = x.shape
        rows, columns = height // PATCH[0], width // PATCH[1]
        x = x.reshape(n, c, rows, PATCH[0], columns, PATCH[1]).permute(0, 1, 3, 5, 2, 4)
        x = x.reshape(n, c, 1, -1) if self.joined else x.reshape(n, c, -1, rows * columns)
        x = self.act(self.inside(x))
        self.scores(x.flatten(2).transpose(1, 2) @ x.flatten(2))
        x = x.reshape(n, -1, *PATCH, rows, columns).permute(0, 1, 4, 2, 5, 3).reshape(n, -1, height, width)
        return self.last(x)

    def plain(self, x: Tensor) -> Tensor:
        return self.act(self.inside(self.stem(x)))


@pytest.mark.parametrize("joined", [False, True])
def test_windows_with_channels_second_are_layers(joined: bool) -> None:
    module = Unfolded(joined).eval()
    network = load(module, input_size=(32, 36))
    layer = network.layer("act")
    assert (layer.layout.kind, layer.shape) == (CHANNELS_FIRST_WINDOWS, (5, 8, 9))
    images = torch.rand(3, 3, 32, 36, generator=torch.Generator().manual_seed(1))
    caught: list[Tensor] = []
    with torch.no_grad():
        handle = module.act.register_forward_hook(lambda *call: caught.append(call[2]))
        module(images)
        handle.remove()
        expected = module.plain(images)
    grid = layer.layout.to_grid(caught[0])
    torch.testing.assert_close(grid, expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(layer.layout.with_grid(caught[0], grid), caught[0])
    changed = layer.layout.with_grid(caught[0], grid + 1)
    assert changed.shape == caught[0].shape and torch.equal(changed, caught[0] + 1)


def test_their_features_and_neurons_are_maximised_and_measured() -> None:
    module = Unfolded(False).eval()
    network = load(module, input_size=(32, 36))
    recipe = Recipe.named("pixels", (32, 36), 8, rows=4)
    data = featmap.maximise(["act:2", "act:4:7:1"], network, extras=Extras(responses="act"), recipe=recipe)
    with torch.no_grad():
        grids = module.plain(torch.from_numpy(data["images"].values[0]))
    np.testing.assert_allclose(data["A"].values[0], grids.mean((2, 3)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(data["activation"].values[0], [grids[0, 2].mean(), grids[1, 4, 7, 1]], rtol=1e-5)
    assert (data["activation"].values > data["null_activation"].values).all()


def test_modules_that_are_no_layers_are_named() -> None:
    network = load(Unfolded(False).eval(), input_size=(32, 36))
    assert modules_left_out(network.trace()) == ["scores"]
    last = list(layer_lines(network, None, "*"))[-1]
    assert last.startswith(
        "not listed: 1 module (scores), since the positions of the image in the output are not known"
    )
    assert not any("not listed" in line for line in layer_lines(network, None, "act"))
