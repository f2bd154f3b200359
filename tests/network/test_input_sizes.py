"""Networks that take one height and width only, found by their linear layers and positional embeddings."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import featmap
from featmap.network import inputs

pytestmark = pytest.mark.usefixtures("one_thread")


class Functional(nn.Module):
    """Poolings without modules, behind convolutions with and without padding, and a linear layer for one size."""

    def __init__(self, size: tuple[int, int], padding: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 5, 2, padding), nn.Conv2d(4, 6, 3, padding=padding)
        with torch.no_grad():
            self.linear = nn.Linear(self.grid(torch.zeros(1, 1, *size)).shape[1], 3)

    def grid(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.second(F.max_pool2d(self.first(x).relu(), 2)).relu(), 2).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.grid(x))


class Positions(nn.Module):
    """Patches of 8 pixels, a class token, and positional embeddings of one grid without any settings."""

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.patches, self.cls_token = nn.Conv2d(3, 6, 8, 8), nn.Parameter(torch.zeros(1, 1, 6))
        self.pos_embed, self.norm = nn.Parameter(torch.zeros(1, 1 + math.prod(grid), 6)), nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.norm(torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], 1) + self.pos_embed)


class Pooled(nn.Sequential):
    """Three poolings in front of a linear layer for 80 x 64 pixels."""

    def __init__(self) -> None:
        parts: list[nn.Module] = []
        for channels in (3, 8, 8):
            parts += [nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        super().__init__(*parts, nn.Flatten(), nn.Linear(8 * 10 * 8, 100))


class Strict(nn.Module):
    """Names the only size that it takes in an error of its own."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.conv, self.text = nn.Conv2d(3, 4, 3), text

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] != (24, 40):
            raise ValueError(self.text)
        return self.conv(x)


@pytest.mark.parametrize("text", ["expected images of 24x40, got 1x3", "size must be (24, 40)", "give 24 by 40 pixels"])
def test_a_size_that_an_error_names_is_tried(text: str) -> None:
    assert featmap.load(Strict(text).eval()).input_size == (24, 40)


class Shrinking(nn.Module):
    """Three poolings in front of a linear layer for 32 pixels, whose own errors name the shapes of matrices."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 16, 8)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths))
        self.linear = nn.Linear(8 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = F.max_pool2d(conv(x), 2)
        return x.flatten(1) @ self.linear.weight.T


def test_shapes_in_errors_of_torch_are_no_sizes_of_images() -> None:
    loaded = featmap.load(Shrinking().eval())
    failed = inputs.try_input(loaded.module, 224, 3)
    assert "(1x6272 and 128x10)" in failed.failure
    assert loaded.input_size == 32
    assert list(inputs._sizes_of_message(failed)) == []
    # a kernel that is larger than the grid
    failed = inputs.try_input(nn.Conv2d(3, 4, 11), 8, 3)
    assert "Kernel size: (11 x 11)" in failed.failure
    assert list(inputs._sizes_of_message(failed)) == []
    failed = inputs.try_input(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(16, 64, 3)), 32, 3)
    assert "[64, 16, 3, 3]" in failed.failure
    assert list(inputs._sizes_of_message(failed)) == []


@pytest.mark.parametrize(
    ("module", "size"),
    [
        (Functional((48, 96), 1), (48, 96)),
        (Functional((48, 96), 0), (48, 96)),
        (Functional((96, 72), 2), (72, 96)),  # as many positions either way round
        (Functional((66, 200), 0), (66, 200)),
        (Pooled(), (64, 80)),  # and not 44 x 132, of which three poolings leave pixels over
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 30 * 50, 4)), (30, 50)),
        (Positions((6, 12)), (48, 96)),
    ],
    ids=["padded", "not padded", "three by four", "published", "no remainder", "linear", "positions"],
)
def test_sizes_that_are_not_square_are_found_and_named(module: nn.Module, size: tuple[int, int]) -> None:
    passes = []
    module.register_forward_hook(lambda *_: passes.append(1), always_call=True)
    loaded = featmap.load(module.eval())
    assert loaded.trace().failure == "" and len(passes) < 200, "a bounded number of tries"
    assert loaded.input_size == size
    assert any(
        f"size {size[0]} x {size[1]}, found by trying" in n and "name the one" in n and "(input_size)" in n
        for n in loaded.notes
    )
