"""Networks that take something other than one batch of images: the error shows the wrapper that makes them work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import featmap
from featmap.errors import InputError


def network() -> nn.Module:
    """Two convolutions that take any size."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3, stride=2)).eval()


class Reading(nn.Module):
    """A network whose forward is given."""

    def __init__(self, read: Callable[..., Any]) -> None:
        super().__init__()
        self.inner, self.read = network(), read

    def forward(self, batch: Any) -> Any:
        return self.inner(self.read(batch))


class Masked(Reading):
    def forward(self, image: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return self.inner(image) * mask.mean()


class ByName(Reading):
    def __init__(self) -> None:
        super().__init__(lambda b: b)

    def forward(self, *, pixel_values: Tensor, scale: float = 1.0) -> Tensor:  # type: ignore[override]
        return self.inner(pixel_values) * scale


class ByNames(ByName):
    def forward(self, *, pixel_values: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return self.inner(pixel_values) * mask


class ByAnyName(ByName):
    def forward(self, **images: Tensor) -> Tensor:  # type: ignore[override]
        return self.inner(images["pixel_values"])


@pytest.mark.parametrize(
    ("module", "takes", "call"),
    [
        (
            Reading(lambda b: b["image"] * b["mask"]),
            "a dictionary with 'image', 'mask'",
            "{'image': images, 'mask': ...}",
        ),
        (Reading(lambda b: b.get("x")), "a dictionary with 'x'", "{'x': images}"),
        (
            Reading(lambda b: b.pixel_values),
            "an object with pixel_values",
            "types.SimpleNamespace(pixel_values=images)",
        ),
        (Masked(lambda b: b), "2 inputs (image, mask)", "images, mask=..."),
        (ByName(), "its input by name (pixel_values)", "pixel_values=images"),
        (ByNames(), "2 inputs (pixel_values, mask)", "pixel_values=images, mask=..."),
        (ByAnyName(), "its input by name (any)", "...=images"),
        (Reading(lambda b: (lambda x, y: x + y)(*b)), "", ""),
    ],
    ids=["dictionary", "get", "object", "several", "name", "names", "any name", "list"],
)
def test_other_inputs_are_answered_by_a_wrapper_in_three_lines(module: nn.Module, takes: str, call: str) -> None:
    if not takes:  # unpacked as arguments of a function: no layer is reached, and nothing tells what it wants
        assert featmap.load(module).trace().layers == {}
        return
    with pytest.raises(InputError) as caught:
        featmap.load(module)
    assert f" takes {takes}, and featmap gives one batch of images" in caught.value.message
    lines = caught.value.example.splitlines()
    assert len(lines) == 3 and lines[2].endswith(f"return self.network({call})")
    assert str(caught.value) == f"{caught.value.message}\n{caught.value.example}"


@pytest.mark.parametrize("module", [Reading(lambda b: b["image"]), ByName()], ids=["dictionary", "name"])
def test_the_wrapper_of_the_message_works(module: nn.Module) -> None:
    with pytest.raises(InputError) as caught:
        featmap.load(module)
    names: dict[str, Any] = {"torch": torch, "make": lambda: module}
    exec(caught.value.example, names)
    loaded = featmap.load(names["OnImages"]().eval())
    assert loaded.layer("network.inner.2", 16).shape == (5, 7, 7)
