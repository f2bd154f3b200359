"""The benchmark of steps, and of one unit beside sixteen, on several networks."""

from __future__ import annotations

import pytest
import torch

from analyses.benchmarks import networks, records, steps
from featmap import load
from featmap.optimize.recipe import Recipe
from tests.helpers.networks import linear_network

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small images and matrices, and one round."""
    for name, value in (("SIZE", 24), ("ROUNDS", 1), ("MATRIX", 64)):
        monkeypatch.setattr(steps, name, value)
    monkeypatch.setattr(networks, "ROUNDS", 1)


def test_all_three_steps_have_the_same_gradient() -> None:
    network = load(linear_network(), input_size=24)
    variants = networks.step_variants(network, "conv3")
    user, full, half = (steps.make_step(v, network, "conv3", 24)() for v in variants.values())
    assert user.shape == (steps.BATCH, 3, 24, 24) and user.abs().max() > 0
    assert torch.allclose(user, full, rtol=1e-4, atol=1e-7)
    assert (user - half.float()).norm() < 0.02 * user.norm()


def test_tokens_have_their_channels_last() -> None:
    network = load("timm:vit_tiny_patch16_224", "random")
    variant = steps.Variant("user", network.module, True, 2)
    gradient = steps.make_step(variant, network, "blocks.0", 224)()
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    with steps.stop_at_layer(network.module, "blocks.0") as run:
        output = run(network.normalise(images))  # image x token x channel
    output[torch.arange(2), :, torch.arange(2)].mean(1).sum().neg().backward()
    assert torch.allclose(gradient, images.grad, rtol=1e-4, atol=1e-9)


@pytest.mark.usefixtures("small")
def test_a_step_and_units_are_measured() -> None:
    network = load(linear_network(), input_size=24)
    found = networks.measure_steps(network, "conv3")
    assert set(found["ms"]) == {"user", *networks.AIMS} and min(found["ms"].values()) > 0
    assert set(found["share"]) == set(networks.AIMS) and 0 < len(found["operations"]) <= networks.SHOWN
    units = networks.measure_units(network, "conv3", Recipe.named("pixels", 24, 3))
    assert units["same_bits"] and units["size"] == 24 and units["units"] == 5, "conv3 has five features"
    assert min(units["seconds"]) > 0


def test_ratios_are_those_of_the_stored_seconds() -> None:
    result = {
        "source": "net",
        "layers": ["body"],
        "machine": {"processor": "some", "cores": 2},
        "steps": {
            "gflop": 1.234,
            "ms": {"user": 12.0, "float32": 3.0, "bfloat16": 4.0},
            "share": {"float32": 0.5, "bfloat16": 0.25},
            "operations": {"conv": 0.61, "relu": 0.2},
        },
        "units": {"units": 16, "size": 160, "seconds": [1.5, 12.0], "rows": [2, 16], "same_bits": False},
    }
    page = networks.format_page([result])
    row = "| net | body | 1.23 | 12 | 3 (**4.00**) | 4 (3.00) | 0.50 and 0.25 | `conv` 61%, `relu` 20% |"
    assert row in page.splitlines()
    assert "| net | body | 160 | 1.50 | 12.00 | 0.12 | 2 and 16 | **no** |" in page.splitlines()


def test_the_table_is_made_from_the_stored_numbers() -> None:
    stored = records.read_results(networks.STORE)
    assert stored and networks.format_page(stored) in records.README.read_text(encoding="utf-8")
