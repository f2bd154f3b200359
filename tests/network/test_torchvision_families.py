"""Every family of torchvision's classification networks, with random weights: layers, receptive fields and a map."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torchvision
from torch import nn

from featmap.network.loading import list_models
from featmap.network.model import Network
from tests.helpers.families import (
    GRID,
    LAST,
    TOKENS,
    VECTOR,
    WINDOWS,
    Family,
    assert_fields_are_measured,
    assert_layers,
    assert_map_is_plain_pytorchs,
    load_family,
)

pytestmark = [
    pytest.mark.usefixtures("cheap_runs", "one_thread"),
    pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning"),
]

HEADLESS = {"aux_logits": False, "init_weights": True}
BLOCK, PAIR = "encoder.layers.encoder_layer_", "blocks.0.layers.0.layers"
FAMILIES = (
    Family(
        *("alexnet", 63),
        {"features.2": (GRID, (64, 7, 7)), "features.6": (GRID, (384, 3, 3)), "classifier": (VECTOR, (10, 1, 1))},
        *("features.6", 0, ("features.2", "features.6", "features.12")),
    ),
    Family(
        *("vgg11", 32),
        {"features.8": (GRID, (256, 8, 8)), "features.13": (GRID, (512, 4, 4)), "classifier.3": (VECTOR, (64, 1, 1))},
        *("features.13", 0, ("features.3", "features.8", "features.20")),
    ),
    Family(
        *("vgg11_bn", 32),
        {"features.7": (GRID, (128, 8, 8)), "features.15": (GRID, (512, 4, 4)), "classifier.6": (VECTOR, (10, 1, 1))},
        *("features.15", 0, ("features.5", "features.14", "features.26")),
    ),
    Family(
        *("squeezenet1_1", 63),
        {"features.4": (GRID, (128, 15, 15)), "features.7": (GRID, (256, 7, 7)), "classifier": (GRID, (10, 1, 1))},
        *("features.7", 0, ("features.3.expand3x3", "features.4", "features.7", "features.12", "classifier")),
    ),
    Family(
        *("resnet18", 32),
        {"layer2.1": (GRID, (128, 4, 4)), "layer4.1.relu@2": (GRID, (512, 1, 1)), "fc": (VECTOR, (10, 1, 1))},
        *("layer2.1", 0, ("conv1", "layer1", "layer2.1")),
    ),
    Family(
        *("resnext50_32x4d", 32),
        {"layer2.1.conv2": (GRID, (256, 4, 4)), "layer3": (GRID, (1024, 2, 2)), "fc": (VECTOR, (10, 1, 1))},
        *("layer2.1.conv2", 0, ("layer1.0.conv2", "layer1", "layer2.1.conv2")),
    ),
    Family(
        *("wide_resnet50_2", 32),
        {"layer2.1.conv2": (GRID, (256, 4, 4)), "layer3": (GRID, (1024, 2, 2)), "fc": (VECTOR, (10, 1, 1))},
        *("layer2.1.conv2", 0, ("layer1.0.conv2", "layer1", "layer2.1.conv2")),
    ),
    Family(
        *("densenet121", 32),
        {
            "features.transition1.pool": (GRID, (128, 4, 4)),
            "features.denseblock2": (GRID, (512, 4, 4)),
            "features.transition2": (GRID, (256, 2, 2)),
            "features.norm5": (GRID, (1024, 1, 1)),
        },
        *("features.transition1.pool", 0, ("features.pool0", "features.denseblock1", "features.transition1")),
    ),
    Family(
        *("googlenet", 32),
        {"inception3b": (GRID, (480, 4, 4)), "inception4a": (GRID, (512, 2, 2)), "fc": (VECTOR, (10, 1, 1))},
        *("inception3b", 0, ("conv3", "inception3a.branch3", "inception3b", "inception5b"), HEADLESS),
    ),
    Family(
        *("inception_v3", 75),
        {"Mixed_5d": (GRID, (288, 7, 7)), "Mixed_6b": (GRID, (768, 3, 3)), "Mixed_7a": (GRID, (1280, 1, 1))},
        *("Mixed_5d", 0, ("Conv2d_2a_3x3", "Mixed_5b.branch5x5_2", "Mixed_6b.branch7x7_2", "Mixed_7c"), HEADLESS),
    ),
    Family(
        *("mobilenet_v2", 32),
        {"features.6": (GRID, (32, 4, 4)), "features.18": (GRID, (1280, 1, 1)), "classifier": (VECTOR, (10, 1, 1))},
        *("features.6", 0, ("features.2.conv.1", "features.3", "features.6")),
    ),
    Family(
        *("mobilenet_v3_small", 32),
        {"features.3": (GRID, (24, 4, 4)), "features.8": (GRID, (48, 2, 2)), "classifier.1": (VECTOR, (1024, 1, 1))},
        *("features.3", 0, ("features.0", "features.1.block.0", "features.1.block.1.avgpool", "features.3")),
    ),
    Family(
        *("shufflenet_v2_x0_5", 32),
        {"stage2": (GRID, (48, 4, 4)), "conv5": (GRID, (1024, 1, 1)), "fc": (VECTOR, (10, 1, 1))},
        *("stage2", 0, ("maxpool", "stage2.0.branch2", "stage2", "stage3")),
    ),
    Family(
        *("mnasnet0_5", 32),
        {"layers.8.2.layers.3": (GRID, (48, 8, 8)), "layers.9": (GRID, (24, 4, 4)), "classifier": (VECTOR, (10, 1, 1))},
        *("layers.9", 0, ("layers.3", "layers.8", "layers.9")),
    ),
    Family(
        *("efficientnet_b0", 32),
        {"features.3": (GRID, (40, 4, 4)), "features.8": (GRID, (1280, 1, 1)), "classifier": (VECTOR, (10, 1, 1))},
        *("features.3", 0, ("features.1.0.block.0", "features.1.0.block.1.avgpool", "features.3")),
    ),
    Family(
        *("efficientnet_v2_s", 32),
        {"features.2": (GRID, (48, 8, 8)), "features.3": (GRID, (64, 4, 4)), "features.4": (GRID, (128, 2, 2))},
        *("features.2", 0, ("features.1", "features.2", "features.3", "features.4.0.block.1")),
    ),
    Family(
        *("regnet_y_400mf", 32),
        {
            "trunk_output.block1": (GRID, (48, 8, 8)),
            "trunk_output.block2": (GRID, (104, 4, 4)),
            "fc": (VECTOR, (10, 1, 1)),
        },
        *("trunk_output.block2", 0, ("stem", "trunk_output.block1.block1-0.f.b", "trunk_output.block2")),
    ),
    Family(
        *("convnext_tiny", 32),
        {
            "features.1": (GRID, (96, 8, 8)),
            "features.1.1.block.3": (LAST, (384, 8, 8)),
            "features.3": (GRID, (192, 4, 4)),
        },
        *("features.1.1.block.3", 0, ("features.0", "features.1.0.block.0", "features.1.1.block.3", "features.3")),
    ),
    Family(
        *("vit_b_16", 32),
        {
            "conv_proj": (GRID, (768, 2, 2)),
            f"{BLOCK}1": (TOKENS, (768, 2, 2)),
            f"{BLOCK}1@cls": (TOKENS, (768, 1, 1)),
            f"{BLOCK}1.mlp.0": (TOKENS, (3072, 2, 2)),
            "heads": (VECTOR, (10, 1, 1)),
        },
        *(f"{BLOCK}1", 1, ("conv_proj", f"{BLOCK}0.ln_1", f"{BLOCK}0"), {"image_size": 32}),
    ),
    Family(
        *("swin_t", 64),
        {
            "features.0.0": (GRID, (96, 16, 16)),
            "features.1.1.attn": (LAST, (96, 16, 16)),
            "features.3.1.mlp.0": (LAST, (768, 8, 8)),
            "head": (VECTOR, (10, 1, 1)),
        },
        *("features.1.1.attn", 0, ("features.0.0", "features.1.0.norm1")),
    ),
    Family(
        *("swin_v2_t", 64),
        {"features.1.1.attn": (LAST, (96, 16, 16)), "features.3": (LAST, (192, 8, 8)), "head": (VECTOR, (10, 1, 1))},
        *("features.1.1.attn", 0, ("features.0.0", "features.0")),
    ),
    Family(
        *("maxvit_t", 224),
        {
            "stem": (GRID, (64, 112, 112)),
            f"{PAIR}.window_attention.attn_layer.1.to_qkv": (WINDOWS, (192, 56, 56)),
            f"{PAIR}.grid_attention.mlp_layer.1": (WINDOWS, (256, 56, 56)),
            "blocks.1": (GRID, (128, 28, 28)),
            "classifier": (VECTOR, (10, 1, 1)),
        },
        *(f"{PAIR}.window_attention.attn_layer.1.to_qkv", 0, ("stem", f"{PAIR}.MBconv.layers.conv_b")),
    ),
)
NARROWED, WIDTH = ("alexnet", "vgg11", "vgg11_bn"), 64
"""Families whose classifiers have up to a hundred million weights, and the width that their hidden layers get here."""


def build(family: Family) -> nn.Module:
    module = torchvision.models.get_model(family.name, weights=None, num_classes=10, **family.settings)
    if family.name in NARROWED:
        linear = [k for k, part in enumerate(module.classifier) if isinstance(part, nn.Linear)]
        inputs = module.classifier[linear[0]].in_features
        for k in linear:
            outputs = WIDTH if k != linear[-1] else 10
            module.classifier[k], inputs = nn.Linear(inputs, outputs), outputs
    return module


@pytest.fixture(scope="module", params=FAMILIES, ids=str)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture(scope="module")
def network(family: Family) -> Iterator[Network]:
    yield load_family(family, lambda: build(family))


def test_layers_are_those_of_the_architecture(network: Network, family: Family) -> None:
    assert_layers(network, family)


def test_receptive_fields_are_those_that_are_measured(network: Network, family: Family) -> None:
    assert_fields_are_measured(network, family)


def test_a_map_holds_the_responses_of_plain_pytorch(network: Network, family: Family, tmp_path: Path) -> None:
    assert_map_is_plain_pytorchs(network, family, tmp_path / "run")


def test_every_family_of_torchvision_is_here() -> None:
    here = {vars(torchvision.models)[f.name].__module__ for f in FAMILIES}
    assert here == {vars(torchvision.models)[n].__module__ for n in list_models() if n != "reference"}
