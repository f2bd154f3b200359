"""Families of timm's networks, with random weights and without a connection: layers, receptive fields and a map."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

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

timm = pytest.importorskip("timm")
pytestmark = [
    pytest.mark.usefixtures("cheap_runs", "one_thread"),
    pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning"),
]

SMALL = {"embed_dim": 96, "depth": 3, "num_heads": 3, "img_size": 64}
FAMILIES = (
    Family(
        *("vit_tiny_patch16_224", 64),
        {
            "patch_embed": (TOKENS, (96, 4, 4)),
            "blocks.1": (TOKENS, (96, 4, 4)),
            "blocks.1@cls": (TOKENS, (96, 1, 1)),
            "blocks.1.mlp.fc1": (TOKENS, (384, 4, 4)),
            "head": (VECTOR, (10, 1, 1)),
        },
        *("blocks.1.mlp.fc1", 1, ("patch_embed.proj", "blocks.0.norm1", "blocks.0.attn"), SMALL),
    ),
    Family(
        *("vit_small_patch14_reg4_dinov2", 56),
        {
            "blocks.1": (TOKENS, (96, 4, 4)),
            "blocks.1@cls": (TOKENS, (96, 1, 1)),
            "blocks.1@reg4": (TOKENS, (96, 1, 1)),
            "blocks.1.attn.proj": (TOKENS, (96, 4, 4)),
        },
        *("blocks.1.attn.proj", 5, ("patch_embed.proj", "blocks.0"), SMALL | {"img_size": 56}),
    ),
    Family(
        *("deit_tiny_distilled_patch16_224", 64),
        {
            "blocks.2": (TOKENS, (96, 4, 4)),
            "blocks.2@cls": (TOKENS, (96, 1, 1)),
            "blocks.2@dist": (TOKENS, (96, 1, 1)),
            "head_dist": (VECTOR, (10, 1, 1)),
        },
        *("blocks.2", 2, ("patch_embed.proj", "blocks.2"), SMALL),
    ),
    Family(
        *("beit_base_patch16_224", 64),
        {
            "blocks.1": (TOKENS, (96, 4, 4)),
            "blocks.1@cls": (TOKENS, (96, 1, 1)),
            "blocks.1.attn": (TOKENS, (96, 4, 4)),
        },
        *("blocks.1", 1, ("patch_embed.proj", "blocks.0.norm1", "blocks.1"), SMALL),
    ),
    Family(
        *("swin_tiny_patch4_window7_224", 64),
        {
            "patch_embed": (LAST, (96, 16, 16)),
            "layers.0.blocks.1": (LAST, (96, 16, 16)),
            "layers.0.blocks.1.attn": (WINDOWS, (96, 21, 21)),
            "layers.1.blocks.0": (LAST, (192, 8, 8)),
            "layers.1.blocks.0.mlp.fc1": (TOKENS, (768, 8, 8)),
            "head": (VECTOR, (10, 1, 1)),
        },
        *("layers.0.blocks.1.attn", 0, ("patch_embed", "layers.0.blocks.0.norm1"), {"img_size": 64}),
    ),
    Family(
        *("convnext_atto", 32),
        {
            "stages.0": (GRID, (40, 8, 8)),
            "stages.1.blocks.1.mlp.fc1": (GRID, (320, 4, 4)),
            "head": (VECTOR, (10, 1, 1)),
        },
        *("stages.1.blocks.1.mlp.fc1", 0, ("stem", "stages.0.blocks.0.conv_dw", "stages.1")),
    ),
    Family(
        *("efficientnet_b0", 32),
        {
            "blocks.2": (GRID, (40, 4, 4)),
            "blocks.2.0.bn2": (GRID, (144, 4, 4)),
            "classifier": (VECTOR, (10, 1, 1)),
        },
        *("blocks.2.0.bn2", 0, ("bn1", "blocks.0.0.bn1", "blocks.1.0.conv_pw")),
    ),
    Family(
        *("mobilenetv3_small_050", 32),
        {"blocks.1": (GRID, (16, 4, 4)), "blocks.3": (GRID, (24, 2, 2)), "classifier": (VECTOR, (10, 1, 1))},
        *("blocks.1", 0, ("bn1", "blocks.0.0.bn1", "blocks.0.0.se.conv_reduce")),
    ),
    Family(
        *("regnetx_002", 32),
        {"s1": (GRID, (24, 8, 8)), "s2": (GRID, (56, 4, 4)), "head": (VECTOR, (10, 1, 1))},
        *("s2", 0, ("stem", "s1.b1.conv2", "s2")),
    ),
    Family(
        *("resnet18", 32),
        {"layer2": (GRID, (128, 4, 4)), "layer3.0.act2": (GRID, (256, 2, 2)), "fc": (VECTOR, (10, 1, 1))},
        *("layer2", 0, ("conv1", "layer1", "layer2")),
    ),
    Family(
        *("mixer_s32_224", 64),
        {"blocks.3": (TOKENS, (512, 2, 2)), "blocks.3.mlp_channels.fc1": (TOKENS, (2048, 2, 2))},
        *("blocks.3.mlp_channels.fc1", 0, ("stem", "blocks.0"), {"img_size": 64}),
    ),
    Family(
        *("resmlp_12_224", 64),
        {"blocks.3": (TOKENS, (384, 4, 4)), "blocks.3.mlp_channels.act": (TOKENS, (1536, 4, 4))},
        *("blocks.3", 0, ("stem", "blocks.0.norm1", "blocks.0"), {"img_size": 64}),
    ),
    Family(
        *("repvgg_a0", 32),
        {"stages.0": (GRID, (48, 8, 8)), "stages.1": (GRID, (96, 4, 4)), "head": (VECTOR, (10, 1, 1))},
        *("stages.1", 0, ("stem", "stages.0.0.conv_kxk", "stages.1")),
    ),
    Family(
        *("ghostnet_050", 32),
        {"blocks.1": (GRID, (12, 8, 8)), "blocks.4": (GRID, (20, 4, 4)), "classifier": (VECTOR, (10, 1, 1))},
        *("blocks.4", 0, ("conv_stem", "blocks.0.0.ghost1", "blocks.2")),
    ),
    Family(
        *("nf_resnet26", 32),
        {"stages.0": (GRID, (256, 8, 8)), "stages.1": (GRID, (512, 4, 4)), "head": (VECTOR, (10, 1, 1))},
        *("stages.1", 0, ("stem", "stages.0.0.conv2", "stages.1")),
    ),
    Family(
        *("levit_128s", 64),
        {
            "stages.0.blocks.0.attn.qkv.linear": (TOKENS, (256, 4, 4)),
            "stages.0.blocks.0.mlp.ln1.bn": (WINDOWS, (256, 4, 4)),
            "stages.1.blocks.0": (TOKENS, (256, 2, 2)),
        },
        *("stages.0.blocks.0.mlp.ln1.bn", 0, ("stem", "stages.0.blocks.0.attn.qkv", "stages.0.blocks.0")),
        {"img_size": 64},
    ),
)


@pytest.fixture(scope="module", params=FAMILIES, ids=str)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture(scope="module")
def network(family: Family) -> Iterator[Network]:
    yield load_family(
        family, lambda: timm.create_model(family.name, pretrained=False, num_classes=10, **family.settings)
    )


def test_layers_are_those_of_the_architecture(network: Network, family: Family) -> None:
    assert_layers(network, family)


def test_receptive_fields_are_those_that_are_measured(network: Network, family: Family) -> None:
    assert_fields_are_measured(network, family)


def test_a_map_holds_the_responses_of_plain_pytorch(network: Network, family: Family, tmp_path: Path) -> None:
    assert_map_is_plain_pytorchs(network, family, tmp_path / "run")
