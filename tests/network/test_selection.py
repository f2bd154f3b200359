"""Which layers are meant by a word, a pattern or a list."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from featmap.errors import UnitError
from featmap.mapping import run as mapping
from featmap.network import selection
from featmap.network.loading import load
from tests.helpers import networks, settings, tiny

INCEPTION = [
    "conv1",
    "conv2",
    "conv3",
    *(f"inception{n}" for n in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")),
]


def test_blocks_of_the_bundled_network_are_stem_and_inceptions() -> None:
    network = load()
    assert selection.select_layers("all", network, 96) == INCEPTION
    assert sum(network.layer(name, 96).channels for name in INCEPTION) == 5808
    convolutions = selection.select_layers("convs", network, 96)
    assert len(convolutions) == 57 and all(name.endswith(".conv") for name in convolutions)
    assert selection.select_layers("inception4*", network, 96) == INCEPTION[5:10]
    assert selection.select_layers("inception4*, conv1,inception4a", network, 96) == [*INCEPTION[5:10], "conv1"]
    assert selection.select_layers("inception4a.branch1*", network, 96) == [
        f"inception4a.branch1{end}" for end in (".conv", ".bn", "")
    ]
    assert (
        selection.select_layers(["all"], network, 4) == INCEPTION
    )  # also where the size is too small to reach them all


def test_resnet50s_blocks_are_its_residual_blocks() -> None:
    network = load("resnet50", "random")
    found = selection.select_layers("all", network, 64)
    stages = [f"layer{stage}.{k}" for stage, count in ((1, 3), (2, 4), (3, 6), (4, 3)) for k in range(count)]
    assert found == ["conv1", *stages]
    assert sum(network.layer(name, 64).channels for name in found) == 15168
    every = selection.select_layers("convs", network, 64)
    assert (len(every), sum(network.layer(name, 64).channels for name in every)) == (53, 26560)


class Wrapped(nn.Module):
    """Everything inside one module, one of whose convolutions is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Module()
        self.body.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.body.again = nn.Conv2d(4, 4, 3, padding=1)
        self.body.stages = nn.ModuleList([nn.Sequential(nn.Conv2d(4, 5, 1), nn.ReLU(), nn.Conv2d(5, 4, 1))])
        self.body.unused = nn.Conv2d(3, 3, 1)
        self.head = nn.Linear(4, 2)
        self.body.forward = self._inside  # type: ignore[method-assign]

    def _inside(self, x: Tensor) -> Tensor:
        y = self.body.stem(x)
        y = self.body.again(self.body.again(y))
        for stage in self.body.stages:
            y = stage(y)
        return y

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


def test_containers_are_looked_into_and_calls_told_apart() -> None:
    network = load(Wrapped().eval(), input_size=12)
    assert selection.select_layers("all", network, 12) == [
        *("body.stem", "body.again@1", "body.again@2", "body.stages.0.0", "body.stages.0.2"),
    ]
    assert selection.select_layers("all", load(tiny.small()), 16) == ["first", "second"]
    assert selection.select_layers("all", load(networks.small_inception()), 18)[0] == "stem"


def test_a_layer_named_like_a_pattern_is_found() -> None:
    odd = nn.Sequential(OrderedDict({"a,b*": nn.Conv2d(3, 2, 1), "all": nn.Conv2d(2, 2, 1)}))
    network = load(odd.eval(), input_size=8)
    assert selection.select_layers("a,b*", network, 8) == ["a,b*"]
    assert selection.select_layers("all", network, 8) == ["all"]
    assert selection.select_layers(["a,b*", "all"], network, 8) == ["a,b*", "all"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", "no layer"),
        (",", "no layer"),
        ("frist*", "pattern 'frist\\*' matches no layer of Sequential"),
        ("frist", "nearest: first"),
        ("first,secnd", "nearest: second"),
    ],
)
def test_layers_that_select_nothing_are_refused(given: str, words: str) -> None:
    network = load(tiny.small())
    recipe = settings.resolve(network, torch.device("cpu"), "pixels", 16, 3, rows=4)
    with pytest.raises(UnitError, match=words):
        mapping.similarity_job(given, network, recipe)
