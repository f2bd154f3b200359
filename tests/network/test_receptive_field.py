"""More of `test_trace`: receptive fields, and torchvision's networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from featmap.network.hooks import ActivationHooks
from featmap.network.receptive_field import WHOLE_IMAGE, ReceptiveField, join
from featmap.network.trace import Layer, Trace, trace
from tests.helpers import networks
from tests.network.test_trace import Net, conv

pytestmark = pytest.mark.usefixtures("one_thread")


def reached(net: nn.Module, layer: str, size: int, places: list[tuple[int, int]], image: Tensor) -> np.ndarray:
    """Which pixels (P x H x W) have a gradient to the layer's output at each of P places."""
    images = image.expand(len(places), -1, -1, -1).clone().requires_grad_(True)
    with ActivationHooks(net, [layer]) as hooks:
        out = hooks.run(images)[layer]
    rows, columns = zip(*places, strict=True)
    seen = out[range(len(places)), :, rows, columns].sum()
    (gradient,) = torch.autograd.grad(seen, images)
    return (gradient != 0).any(1).numpy()


def box(seen: np.ndarray) -> tuple[slice, slice] | None:
    """The smallest rectangle around the pixels that are seen."""
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    return (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)) if len(rows) else None


def all_places(layer: Layer, most: int = 6) -> list[tuple[int, int]]:
    """All places of a small grid, the outermost and middle ones of a larger one."""

    def some(n: int) -> list[int]:
        return sorted({*range(min(n, most // 2)), n // 2, *range(max(0, n - most // 2), n)})

    return [(m, n) for m in some(layer.height) for n in some(layer.width)]


def assert_fields_are_exact(net: nn.Module, size: int, names: list[str] | None = None, most: int = 6) -> None:
    """Every layer's field, clipped to the image, is the rectangle around the pixels with a gradient."""
    found = trace(net.eval(), size)
    twin, image = networks.positive(net), torch.ones(1, 3, size, size, dtype=torch.float64)
    checked = 0
    for name, layer in found.layers.items():
        if names is not None and name not in names:
            continue
        places = all_places(layer, most)
        for place, seen in zip(places, reached(twin, name, size, places, image), strict=True):
            bounds = layer.field.bounds(*place, size, size)
            empty = any(b.start >= b.stop for b in bounds)
            assert (None if empty else bounds) == box(seen), f"{name} at {place}: {layer.field}"
            checked += 1
    assert checked > 0


def test_receptive_fields_of_small_inception() -> None:
    assert_fields_are_exact(networks.small_inception(), 24)


def residual(s: Any, x: Tensor) -> Tensor:
    return s.out(s.a(x) + s.b(x))


def unequal(s: Any, x: Tensor) -> Tensor:
    return s.out(torch.cat([s.a(x), s.b(x), F.avg_pool2d(x, 3, 1, 1)], 1))


EXACT = {
    "kernel": conv(3, 2, 3),
    "padding": conv(3, 2, 3, padding=1),
    "more padding than kernel": conv(3, 2, 1, padding=2),
    "stride": nn.Sequential(conv(3, 2, 3, stride=2), conv(2, 2, 3, stride=3, padding=1), conv(2, 2, 3)),
    "dilation": nn.Sequential(conv(3, 2, 3, dilation=2), conv(2, 2, 3, dilation=3)),
    "rectangles": nn.Sequential(conv(3, 2, (1, 7), padding=(0, 3)), conv(2, 2, (5, 1), stride=(1, 2))),
    "same": nn.Sequential(conv(3, 2, 3, padding="same"), conv(2, 2, 3, padding="same", dilation=2)),
    "valid": conv(3, 2, 3, padding="valid"),
    "groups": nn.Sequential(conv(3, 6, 3, groups=3), conv(6, 6, 3, padding=1, groups=6)),
    "one-sided padding": nn.Sequential(nn.ZeroPad2d((1, 0, 2, 3)), conv(3, 2, 4)),
    "maximum": nn.Sequential(nn.MaxPool2d(3, 2, 1), conv(3, 2, 3)),
    "maximum, rounded up": nn.Sequential(nn.MaxPool2d(3, 2, ceil_mode=True), conv(3, 2, 2)),
    "default stride": nn.Sequential(nn.AvgPool2d(3), nn.MaxPool2d(2)),
    "rectangular pool": nn.Sequential(nn.AvgPool2d((3, 1), (2, 1), (1, 0)), conv(3, 2, 2)),
    "norm and functions": nn.Sequential(conv(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Dropout(), nn.Softplus()),
    "sum of two": Net(residual, a=conv(3, 4), b=conv(3, 4, 5, padding=2), out=conv(4, 2, 3)),
    "joined": Net(unequal, a=conv(3, 4), b=conv(3, 4, (1, 5), padding=(0, 2)), out=conv(11, 2, 3)),
    "global mean": nn.Sequential(conv(3, 4, 3), nn.AdaptiveAvgPool2d(1), conv(4, 2)),
    "squeeze and excite": Net(
        lambda s, x: s.out(s.a(x) * s.gate(s.a(x).mean((2, 3), keepdim=True)).sigmoid()),
        a=conv(3, 4),
        gate=conv(4, 4),
        out=conv(4, 2, 3),
    ),
    "minus the mean": Net(lambda s, x: s.out(2 * x - x.mean((2, 3), keepdim=True) * 0.1), out=conv(3, 2)),
    "channels shuffled": Net(
        lambda s, x: s.out(s.a(x).view(-1, 2, 2, *x.shape[2:]).transpose(1, 2).reshape(-1, 4, *x.shape[2:])),
        a=conv(3, 4),
        out=conv(4, 2, 3),
    ),
    "channels mean": Net(lambda s, x: s.out(s.a(x).mean(1, keepdim=True)), a=conv(3, 4, 3), out=conv(1, 2, 3)),
    "to channels last and back": Net(
        lambda s, x: s.b(s.a(x).permute(0, 2, 3, 1).permute(0, 3, 1, 2)),
        a=conv(3, 4, 3),
        b=conv(4, 2, 3),
    ),
    "logits": nn.Sequential(conv(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
    "every pixel of its own": nn.Sequential(conv(3, 2, 3), nn.Flatten(), nn.Linear(2 * 11 * 11, 3)),
}


@pytest.mark.parametrize("case", EXACT)
def test_receptive_fields_against_gradients(case: str) -> None:
    net = EXACT[case]
    assert_fields_are_exact(net if not isinstance(net, nn.Conv2d) else nn.Sequential(net), 13)


def in_place_sum(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    y += s.b(x)
    return s.out(y)


def in_place_gate(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    y *= s.gate(y).sigmoid()
    return s.out(y)


COVERED = [
    pytest.param(Net(in_place_sum, a=conv(3, 4), b=conv(3, 4, 5, padding=2), out=conv(4, 2)), id="+="),
    pytest.param(
        Net(
            in_place_gate,
            a=conv(3, 4),
            gate=nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(4, 4)),
            out=conv(4, 2),
        ),
        id="*= gate",
    ),
    pytest.param(nn.Sequential(conv(3, 4), nn.GroupNorm(2, 4)), id="group norm"),
    pytest.param(nn.Sequential(conv(3, 4), nn.InstanceNorm2d(4)), id="instance norm"),
    pytest.param(nn.Sequential(conv(3, 4), nn.LayerNorm([4, 12, 12])), id="layer norm of the grid"),
    pytest.param(Net(lambda s, x: s.a(x)[:, :, 1::2, ::2], a=conv(3, 4, 3)), id="every second"),
    pytest.param(Net(lambda s, x: s.a(x)[:, :, 4:, 3:], a=conv(3, 4, 3)), id="cropped"),
    pytest.param(Net(lambda s, x: s.a(x).flip(2), a=conv(3, 4, 3)), id="flipped"),
    pytest.param(
        Net(lambda s, x: s.out(s.a(x).transpose(2, 3)), a=conv(3, 4, 3), out=conv(4, 2)),
        id="transposed",
    ),
    pytest.param(Net(lambda s, x: s.a(x).softmax(3), a=conv(3, 4, 3)), id="softmax over columns"),
    pytest.param(Net(lambda s, x: s.a(x).cumsum(2), a=conv(3, 4, 3)), id="running sum"),
    pytest.param(Net(lambda s, x: x / x.std((2, 3), keepdim=True)), id="over its deviation"),
    pytest.param(Net(lambda s, x: F.normalize(x, dim=(2, 3))), id="normalised"),
    pytest.param(nn.Sequential(conv(3, 4), nn.PixelShuffle(2), conv(1, 2)), id="pixels shuffled"),
    pytest.param(nn.Sequential(nn.PixelUnshuffle(2), conv(12, 2)), id="pixels unshuffled"),
    pytest.param(nn.Sequential(conv(3, 4), nn.Linear(12, 12)), id="linear over columns"),
    pytest.param(nn.Sequential(conv(3, 4, 3, padding=1, padding_mode="circular")), id="circular padding"),
    pytest.param(
        nn.Sequential(conv(3, 4), nn.LPPool2d(2, 2), conv(4, 2)),
        id="Lp pool",
    ),
    pytest.param(nn.Sequential(conv(3, 4, 3, dilation=2, padding=2), conv(4, 2, 3, stride=2)), id="dilated"),
    pytest.param(nn.Sequential(conv(3, 4, 3), nn.Upsample(scale_factor=2), conv(4, 2)), id="enlarged"),
    pytest.param(nn.Sequential(conv(3, 4, 3), nn.ConvTranspose2d(4, 2, 3, 2)), id="transposed convolution"),
    pytest.param(
        Net(lambda s, x: s.out(s.a(x).reshape(len(x), 16, 6, 6)), a=conv(3, 4), out=conv(16, 2)), id="regrouped"
    ),
    pytest.param(Net(lambda s, x: s.a(x).roll(3, 2), a=conv(3, 4)), id="rolled"),
    pytest.param(nn.Sequential(nn.ReflectionPad2d(1), conv(3, 4, 3)), id="reflected"),
    pytest.param(Net(lambda s, x: s.a(x) @ s.a(x).transpose(2, 3), a=conv(3, 4)), id="product"),
    pytest.param(nn.Sequential(conv(3, 4), nn.AdaptiveAvgPool2d(5)), id="adaptive mean"),
]


@pytest.mark.parametrize("net", COVERED)
def test_no_field_is_too_small(net: nn.Module) -> None:
    outer = nn.Sequential(networks.randomised(net, seed=4))
    found = trace(outer.eval(), 12)
    assert found.failure == ""
    layer = found.layers["0"]
    image = torch.rand(1, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    places = all_places(layer)
    for place, seen in zip(places, reached(outer.double(), "0", 12, places, image), strict=True):
        inside = np.zeros_like(seen)
        inside[layer.field.bounds(*place, 12, 12)] = True
        assert not (seen & ~inside).any(), f"{place}: {layer.field}"


@pytest.mark.parametrize("size", range(29, 34))
def test_pixels_that_strides_leave_out_are_seen_by_nothing(size: int) -> None:
    # at even sizes the first convolution (3 x 3, stride 2, no padding) reads neither the last row nor the last column
    assert_fields_are_exact(hollow("squeezenet1_1"), size, ["features.0", "features.4", "features.12"], most=2)
    assert_fields_are_exact(nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(3, 2, 3, 2, padding=1)), size)


def test_fields_of_known_networks() -> None:
    # torchvision's resnet18 and googlenet by hand from Araujo et al. 2019 (10.23915/distill.00021), equation 2
    resnet = trace(hollow("resnet18"), 64).layers
    assert [str(resnet[k].field) for k in ("conv1", "maxpool", "layer1", "layer2", "layer3", "layer4")] == [
        "7 x 7",
        "11 x 11",
        "43 x 43",
        "99 x 99",
        "211 x 211",
        "435 x 435",
    ]
    assert resnet["layer4"].field.jump == (32, 32) and resnet["avgpool"].field.whole
    assert str(resnet["avgpool"].field) == "whole image"


def test_bounds_are_clipped_to_the_image() -> None:
    field = ReceptiveField((7, 3), (2, 1), (-3, -1))
    assert field.bounds(0, 0, 10, 10) == (slice(0, 4), slice(0, 2))
    assert field.bounds(2, 4, 10, 10) == (slice(1, 8), slice(3, 6))
    assert field.bounds(9, 9, 10, 10) == (slice(10, 10), slice(8, 10))


def test_a_joined_field_covers_both_fields() -> None:
    joined = join([ReceptiveField((3, 1), (2, 2), (-1, 0)), ReceptiveField((1, 5), (2, 2), (0, -2))])
    assert joined == ReceptiveField((3, 5), (2, 2), (-1, -2))


# ---------------------------------------------------------------- torchvision's networks, small and with any weights


def hollow(name: str, **settings: Any) -> nn.Module:
    """A torchvision network with small constant weights: built in no time, for shapes only."""
    with torch.device("meta"):
        module = torchvision.models.get_model(name, weights=None, **settings)
    module = module.to_empty(device="cpu").eval()
    for tensor in module.state_dict().values():
        tensor.fill_(0.01 if tensor.is_floating_point() else 0)
    return module


WITHOUT_HEADS = {"aux_logits": False, "init_weights": False}


def shapes(found: Trace, *names: str) -> list[tuple[int, int, int]]:
    return [found.layers[n].shape for n in names]


def test_googlenet_is_traced_with_its_published_branches() -> None:
    found = trace(hollow("googlenet", **WITHOUT_HEADS), 64)
    assert found.failure == ""
    # Szegedy et al. 2015, table 1
    assert found.layers["inception4a"].branches == (
        ("branch1", 192),
        ("branch2", 208),
        ("branch3", 48),
        ("branch4", 64),
    )
    assert shapes(found, "conv1", "inception3a", "inception4a", "inception5b", "fc") == [
        (64, 32, 32),
        (256, 8, 8),
        (512, 4, 4),
        (1024, 2, 2),
        (1000, 1, 1),
    ]
    assert [found.layers["inception4a"].branch(c) for c in (191, 192, 399, 400, 447, 448, 511)] == [
        "branch1",
        "branch2",
        "branch2",
        "branch3",
        "branch3",
        "branch4",
        "branch4",
    ]
    assert len(found.folds) == 57, "every convolution has its norm"


def test_inception_v3() -> None:
    found = trace(hollow("inception_v3", **WITHOUT_HEADS), 96)
    assert found.failure == "" and len(found.folds) == 94
    assert found.layers["Mixed_6b"].branches == (
        ("branch1x1", 192),
        ("branch7x7_3", 192),
        ("branch7x7dbl_5", 192),
        ("branch_pool", 192),
    )
    assert [w for _, w in found.layers["Mixed_7c"].branches] == [320, 384, 384, 384, 384, 192]
    assert shapes(found, "Mixed_6b", "fc") == [(768, 4, 4), (1000, 1, 1)]


def test_inception_v3_fails_at_64_pixels() -> None:
    found = trace(hollow("inception_v3", **WITHOUT_HEADS), 64)
    assert "Kernel size" in found.failure
    assert "Mixed_6e" in found.layers and "Mixed_7a" not in found.layers


def test_resnet50() -> None:
    found = trace(hollow("resnet50"), 64)
    assert found.failure == "" and len(found.folds) == 53
    assert shapes(found, "layer3.2", "layer4", "fc") == [(1024, 4, 4), (2048, 2, 2), (1000, 1, 1)]
    assert {"layer3.2.relu@1", "layer3.2.relu@2", "layer3.2.relu@3"} <= set(found.layers)
    assert "layer3.2.relu" not in found.layers
    assert found.layers["layer3.2"].branches == ()


def test_densenet121() -> None:
    found = trace(hollow("densenet121"), 32)
    assert found.failure == ""
    block = found.layers["features.denseblock1"]
    assert block.branches == (("max_pool2d", 64), *[(f"denselayer{k}", 32) for k in range(1, 7)])
    assert block.channels == 256 and block.branch(64 + 32) == "denselayer2"
    assert all("conv2" not in conv for conv, _ in found.folds), "a dense layer's output is read by all that follow"


def test_shufflenet() -> None:
    found = trace(hollow("shufflenet_v2_x0_5"), 64)
    assert found.failure == "" and len(found.folds) == 56
    assert shapes(found, "stage2", "conv5", "fc") == [(48, 8, 8), (1024, 2, 2), (1000, 1, 1)]
    assert not found.layers["stage4"].field.whole


def test_convnext_blocks_are_grids_in_channels_last() -> None:
    found = trace(hollow("convnext_tiny"), 64)
    assert found.failure == "" and found.folds == []
    assert shapes(found, "features", "features.1.0") == [(768, 2, 2), (96, 16, 16)]
    assert not found.layers["features"].field.whole
    inside = [n for n in found.layers if n.startswith("features.1.0.block.")]
    kinds = [found.layers[n].layout.kind for n in inside]
    assert inside == [f"features.1.0.block.{k}" for k in range(7)], "the block computes channels last in between"
    assert kinds == ["N x C x H x W", *["N x H x W x C"] * 5, "N x C x H x W"]
    assert shapes(found, "features.1.0.block.3") == [(384, 16, 16)], "the hidden layer"


def test_swin_is_traced_with_channels_last() -> None:
    found = trace(hollow("swin_t"), 64)
    assert found.failure == ""
    inside = [n for n in found.layers if n.startswith("features.") and n != "features.0.0"]
    assert all(found.layers[n].layout.kind == "N x H x W x C" for n in inside), "channels last"
    assert {"features.1.0.attn", "features.3.1.mlp.0", "features.5.3", "features.6"} <= set(inside)
    assert shapes(found, "features.0.0", "features.1.1", "features.1.1.mlp.0", "features.6") == [
        (96, 16, 16),
        (96, 16, 16),
        (384, 16, 16),
        (768, 2, 2),
    ]
    assert shapes(found, "permute", "head") == [(768, 2, 2), (1000, 1, 1)]


def test_vit_has_a_grid_behind_its_patches_and_a_class_token() -> None:
    found = trace(hollow("vit_b_16", image_size=32), 32)
    assert found.failure == ""
    block = "encoder.layers.encoder_layer_3"
    assert shapes(found, "conv_proj", block, f"{block}@cls", f"{block}.mlp.0", "heads.head") == [
        (768, 2, 2),
        (768, 2, 2),
        (768, 1, 1),
        (3072, 2, 2),
        (1000, 1, 1),
    ]
    assert shapes(found, f"{block}.self_attention") == [(768, 2, 2)], "the first of a tuple"
    kinds = {la.layout.kind for n, la in found.layers.items() if n.startswith("encoder")}
    assert kinds == {"N x L x C"} and str(found.layers[block].field) == "whole image"


@pytest.mark.parametrize(
    ("name", "size", "layers", "settings"),
    [("resnet18", 64, ["layer1.1"], {}), ("googlenet", 64, ["inception3a", "inception3b"], WITHOUT_HEADS)],
)
def test_torchvisions_fields_against_gradients(name: str, size: int, layers: list[str], settings: dict) -> None:
    assert_fields_are_exact(hollow(name, **settings), size, layers, most=2)


def test_centres_are_the_middles_of_the_fields() -> None:
    assert ReceptiveField((7, 5), (2, 4), (-3, 0)).centres((3, 2), (16, 16)) == ([0, 2, 4], [2, 6])
    assert WHOLE_IMAGE.centres((4, 1), (16, 9)) == ([1.5, 5.5, 9.5, 13.5], [4])
