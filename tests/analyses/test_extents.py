"""Where an image changed; the linear twin; a branch's own receptive field; animations."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from analyses.formulas import extents
from analyses.formulas.linear import linear_twin
from featmap.errors import ModelError
from featmap.network.loading import load
from featmap.network.receptive_field import WHOLE_IMAGE, ReceptiveField
from featmap.optimize.responses import Probe
from featmap.report.encode import encode_animation
from tests.helpers.networks import small_inception

pytestmark = pytest.mark.usefixtures("one_thread")
Y, X = np.mgrid[:60, :80].astype(float)


def discs(*places: tuple[float, float, float]) -> np.ndarray:
    """Changes that are 1 within a radius of a place, in three channels of different sign."""
    inside = [np.hypot(Y - y, X - x) <= r for y, x, r in places]
    return np.array([1.0, -2.0, 0.5])[None, :, None, None] * np.array(inside)[:, None]


def test_a_disc_has_its_centre_and_its_radius() -> None:
    changes = discs((20.0, 40.0, 15.0), (30.0, 25.5, 12.0))
    np.testing.assert_allclose(extents.centres(changes), [[20, 40], [30, 25.5]], atol=1e-9)
    for share in (0.25, 0.5, 0.9):  # the energy within r of a disc of radius R is (r / R)^2
        np.testing.assert_allclose(extents.radii(changes, share), np.sqrt(share) * np.array([15, 12]), atol=0.4)
    np.testing.assert_allclose(
        extents.change_energy(changes).sum((1, 2)), 5.25 * np.pi * np.array([225, 144]), rtol=0.02
    )


def test_outside_and_region_count_energy() -> None:
    changes = discs((20.0, 40.0, 10.0), (20.0, 40.0, 10.0))
    whole, half = (slice(0, 60), slice(0, 80)), (slice(0, 60), slice(0, 40))
    found = extents.outside_share(changes, [whole, half])
    column = (changes[1, 0, :, 40] != 0).sum() / (changes[1, 0] != 0).sum()
    np.testing.assert_allclose(found, [0, (1 + column) / 2], atol=1e-12)
    change = np.zeros((3, 4, 5))
    change[0, 1, 2], change[1, 3, 3], change[2, 0, 0] = 3.0, 2.0, 1.0  # energies 9, 4, 1
    assert np.argwhere(extents.energy_region(change, 0.9)).tolist() == [[1, 2], [3, 3]]
    assert extents.energy_region(change, 0.5).sum() == 1
    assert extents.energy_region(change, 1.0).sum() == 3


def test_what_did_not_change_is_undefined() -> None:
    nothing = np.zeros((2, 3, 8, 8))
    assert np.isnan(extents.centres(nothing)).all()
    assert np.isnan(extents.radii(nothing)).all()
    assert np.isnan(extents.outside_share(nothing, [(slice(0, 8), slice(0, 8))] * 2)).all()
    assert not extents.energy_region(nothing[0]).any()


def test_a_fields_middle_and_coverage() -> None:
    field = ReceptiveField((5, 7), (4, 2), (-1, 0))
    rows, columns = field.bounds(2, 3, 40, 40)
    assert extents.field_centre(field, 2, 3) == (
        (rows.start + rows.stop - 1) / 2,
        (columns.start + columns.stop - 1) / 2,
    )
    assert extents.field_centre(field, 0, 0) == (1.0, 3.0)  # also where the field reaches beyond the image
    assert extents.field_coverage(field, 2, 3, 40, 40) == 35 / 1600
    assert extents.field_coverage(field, 0, 0, 40, 40) == 28 / 1600
    assert extents.field_coverage(WHOLE_IMAGE, 0, 0, 9, 9) == 1


def test_a_channel_has_its_branchs_field() -> None:
    trace = load(small_inception(), input_size=24).trace(24)
    mixed = trace.layers["mixed"]
    fields, first = [trace.field("mixed", c) for c in range(mixed.channels)], 0
    assert len({f.size for f in fields}) > 1
    for branch, width in mixed.branches:
        own = trace.layers.get(f"mixed.{branch}")
        assert all(f == (own or mixed).field for f in fields[first : first + width])
        first += width
    assert trace.field("stem", 0) == trace.layers["stem"].field


class Functional(nn.Module):
    """Activations and maxima in every way of writing them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)
        self.pool, self.six = nn.MaxPool2d(2, ceil_mode=True), nn.ReLU6()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(torch.relu_(self.one(x)))
        x = nn.functional.max_pool2d(nn.functional.silu(x), 3, 1, 1)
        return nn.functional.adaptive_max_pool2d(self.six(self.two(x)), 2)


class Normalised(nn.Module):
    """Convolutions of large responses with a local response normalisation as a module, and as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3)
        self.norm, self.pool = nn.LocalResponseNorm(3, alpha=1.0), nn.MaxPool2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.pool(self.one(x)))
        return nn.functional.local_response_norm(torch.relu(self.two(10 * x)), 3, alpha=1.0)


NETWORKS = {"functional": Functional().eval(), "inception": small_inception(), "normalised": Normalised().eval()}


@pytest.mark.parametrize("module", NETWORKS.values(), ids=NETWORKS)
def test_the_linear_twin_is_affine_and_the_network_untouched(module: nn.Module) -> None:
    network = load(module, input_size=24)
    twin = linear_twin(network)
    names = list(network.trace(24).layers)
    one, two, nothing = (*torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0)), torch.zeros(3, 24, 24))
    images = torch.stack([one, two, one + two, nothing])

    def bend(of: Probe) -> float:
        last = max(of.responses(images, names).values(), key=lambda v: np.abs(v).max())
        return float(np.abs(last[0] + last[1] - last[2] - last[3]).max() / np.abs(last).max())

    before = Probe(network).responses(images, names)
    assert bend(Probe(network)) > 0.05
    assert bend(Probe(twin)) < 1e-5
    assert {n: la.field for n, la in twin.trace(24).layers.items()} == {
        n: la.field for n, la in network.trace(24).layers.items()
    }
    after = Probe(network).responses(images, names)
    assert all(np.array_equal(before[n], after[n]) for n in names)
    assert twin.identity() != network.identity()


def test_a_spread_maximum_has_no_linear_twin() -> None:
    twin = linear_twin(load(nn.Sequential(nn.Conv2d(3, 2, 1), nn.MaxPool2d(2, dilation=2)).eval(), input_size=12))
    with pytest.raises(ModelError, match="dilation"), torch.no_grad():
        twin.module(torch.zeros(1, 3, 12, 12))


def test_an_animation_has_its_frames() -> None:
    frames = [np.full((3, 10, 20), k / 4) for k in range(5)]
    data = encode_animation(frames, 100, 40)
    with Image.open(io.BytesIO(data)) as film:
        assert (film.n_frames, film.size, film.info["loop"]) == (5, (40, 20), 0)
        film.seek(3)
        shade = np.asarray(film.convert("L"))
    assert abs(shade.mean() - 255 * 3 / 4) < 4
    assert encode_animation(frames, 100, 40) == data
