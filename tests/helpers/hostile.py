"""Networks and names that a hostile user would give; each factory can be named by ``tests.helpers.hostile:name``."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

NAMES = {
    "climbing": "../../x",
    "parent": "..",
    "here": ".",
    "markup": "<img src=x onerror=alert(1)>&\"'",
    "long": "x" * 400,
    "wide": "\U0001f600" * 100,
    "lines": "two\nlines\r\ttab",
    "bidi": "\u202eabc\u2066",
    "own": "validation",
    "arrays": "arrays.zarr",
    "colon": "a:b",
    "comma": "a,b",
    "plus": "a + b",
    "at": "a@1",
    "nothing": " ",
    "dollar": "$x_1$",
    "surrogate": "a\ud800b",
    "null": "a\0b",
}
"""Names of layers by the factory that makes a network with it."""


class Named(nn.Module):
    """Two convolutions, the first of them called as one likes (torch itself refuses dots)."""

    def __init__(self, name: str) -> None:
        super().__init__()
        first, second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for conv in (first, second):
                for tensor in conv.parameters():
                    tensor.copy_(torch.randn(tensor.shape, generator=generator))
        self._modules = OrderedDict({name: first, "last": second})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for module in self.children():
            x = module(x)
        return x


def __getattr__(name: str) -> object:
    if name not in NAMES:
        raise AttributeError(name)
    return lambda: Named(NAMES[name]).eval()
