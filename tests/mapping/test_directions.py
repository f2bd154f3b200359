"""Maps of directions: copies, channels beside directions, and directions that an autoencoder finds again."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import featmap
from featmap import Execution, Recipe, View
from featmap.errors import UnitError
from featmap.mapping import neighbours
from featmap.mapping.neighbours import neighbour_frame
from featmap.network.directions import Directions
from featmap.network.loading import load
from featmap.stats import measures
from tests.helpers.tiny import FEATURES, small

pytestmark = [
    pytest.mark.usefixtures("cheap_runs", "one_thread"),
    pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning"),
]
FAST = Recipe.named("pixels", 16, 8, rows=8)


def test_copies_and_multiples_of_a_direction_are_the_same(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(6, FEATURES)).astype(np.float32)
    vectors[3:] = vectors[:3] * np.array([[1.0], [2.0], [0.3]], dtype=np.float32)
    network = load(small(), input_size=16).with_directions({"second/d": vectors})
    found = featmap.similarity("second/d", network, recipe=FAST, execution=Execution("cpu", out=tmp_path / "map"))
    S = found.measures["profile"].to_numpy()
    np.testing.assert_allclose(S[[0, 1, 2], [3, 4, 5]], 1, atol=1e-6)
    assert np.abs(S[np.triu_indices(3, 1)]).max() < 0.999
    data = found.dataset
    assert data["images"][0, 0].values.tobytes() == data["images"][0, 3].values.tobytes()
    nearest = neighbour_frame("second/d:1", tmp_path / "map")
    assert nearest["other"][0] == "second/d:4"
    assert nearest["coactivation"][0] == pytest.approx(1, abs=1e-4)


def test_one_hot_directions_give_the_tables_of_channels(tmp_path: Path) -> None:
    plain = load(small(), input_size=16)
    copies = plain.with_directions({"second/d": np.eye(FEATURES)})
    one = featmap.similarity("second", plain, recipe=FAST, execution=Execution("cpu", out=tmp_path / "channels"))
    two = featmap.similarity("second/d", copies, recipe=FAST, execution=Execution("cpu", out=tmp_path / "directions"))
    for name in ("activations", "coactivation", "profile", "features"):
        text = (tmp_path / "directions" / f"{name}.csv").read_text(encoding="utf-8").replace("second/d:", "second:")
        assert text == (tmp_path / "channels" / f"{name}.csv").read_text(encoding="utf-8")
    assert one.summary["identity_rate"] == two.summary["identity_rate"]


def test_channels_and_directions_stand_in_one_map(tmp_path: Path) -> None:
    """Values of the crossing by plain PyTorch: responses, then their measures."""
    vectors = np.random.default_rng(2).normal(size=(4, FEATURES)).astype(np.float32)
    network = load(small(), input_size=16).with_directions({"second/d": vectors})
    layers = ["second", "second/d"]
    both = featmap.similarity(layers, network, recipe=FAST, execution=Execution("cpu", out=tmp_path / "map"))
    crossing = both.crossings["second/d", "second"]
    images = torch.from_numpy(both.dataset["images"].values[0])
    with torch.no_grad():
        grid = small()(images)
    responses = torch.cat([grid, torch.einsum("kc,nchw->nkhw", torch.from_numpy(vectors), grid)], 1).mean((2, 3))
    np.testing.assert_allclose(both.dataset["A"].values[0], responses, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(crossing.activations, responses[FEATURES:, :FEATURES], rtol=1e-5, atol=1e-6)
    assert (tmp_path / "map" / "second-d" / "features.csv").is_file()
    assert neighbour_frame("second/d:1", tmp_path / "map")["other"].tolist() != []


# ---------------------------------------------------------------- planted directions

SOURCES, CHANNELS = 6, 24


def planted() -> tuple[nn.Module, Tensor]:
    """Layer `mixed`: sparse sources, mixed into more channels by planted directions (CHANNELS x SOURCES)."""
    generator = torch.Generator().manual_seed(12)
    sources, mixed = nn.Conv2d(3, SOURCES, 3, padding=1), nn.Conv2d(SOURCES, CHANNELS, 1, bias=False)
    # orthogonal filters: over white noise their outputs are independent
    filters = torch.linalg.qr(torch.randn(27, SOURCES, generator=generator)).Q.T
    mixing = F.normalize(torch.randn(CHANNELS, SOURCES, generator=generator), dim=0)
    with torch.no_grad():
        sources.weight.copy_(filters.view_as(sources.weight))
        sources.bias.copy_(-0.5 * filters.sum(1) - 0.35)  # silent at most positions
        mixed.weight.copy_(mixing[:, :, None, None])
    return nn.Sequential(OrderedDict(sources=sources, relu=nn.ReLU(), mixed=mixed)).eval(), mixing


def autoencoder(values: Tensor, hidden: int) -> tuple[Tensor, Tensor]:
    """Train a tied autoencoder with a ReLU on rows of values; its unit vectors (hidden x channels) and its bias."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(hidden, values.shape[1], generator=generator).requires_grad_(True)
    bias = torch.zeros(hidden, requires_grad=True)
    values = values / values.norm(dim=1).mean()
    optimiser = torch.optim.Adam([weight, bias], lr=0.02)
    for _ in range(600):
        batch = values[torch.randint(len(values), (512,), generator=generator)]
        unit = F.normalize(weight)
        codes = F.relu(batch @ unit.T + bias)
        loss = (batch - codes @ unit).square().sum(1).mean() + 0.03 * codes.sum(1).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return F.normalize(weight).detach(), bias.detach()


@pytest.mark.slow
def test_planted_directions_are_recovered_and_mapped(tmp_path: Path) -> None:
    module, mixing = planted()
    with torch.no_grad():
        grid = module(0.5 + 0.25 * torch.randn(24, 3, 24, 24, generator=torch.Generator().manual_seed(2)))
    values = grid.permute(0, 2, 3, 1).reshape(-1, CHANNELS)
    values = values[values.norm(dim=1) > 1e-3]
    vectors, bias = autoencoder(values, SOURCES)
    cosines = (vectors @ mixing).numpy()
    assert sorted(cosines.argmax(0)) == list(range(SOURCES))
    assert cosines.max(0).min() >= 0.9

    network = load(module, input_size=24).with_directions(
        {"mixed/sae": Directions(vectors.numpy(), bias.numpy(), True)}
    )
    settings = {"recipe": Recipe.named("pixels", 24, 20, rows=8), "execution": Execution("cpu", out=tmp_path / "map")}
    both = featmap.similarity(["relu", "mixed/sae"], network, **settings)  # type: ignore[call-overload]
    images = torch.from_numpy(both.dataset["images"].values[0])
    seen: list[Tensor] = []
    handle = module.mixed.register_forward_hook(lambda _, __, out: seen.append(out))  # type: ignore[union-attr]
    with torch.no_grad():
        module(images)
    handle.remove()
    by_hand = (torch.matmul(seen[0].permute(0, 2, 3, 1), vectors.T) + bias).relu().mean((1, 2))
    columns = [f"mixed/sae:{k}" for k in range(SOURCES)]
    A = both.dataset["A"].sel(response=columns).values[0]
    np.testing.assert_allclose(A, by_hand, rtol=1e-4, atol=1e-5)
    # over other images each direction responds as the source that it was planted for
    noise = 0.5 + 0.25 * torch.randn(64, 3, 24, 24, generator=torch.Generator().manual_seed(3))
    responses = featmap.probe(noise.numpy(), ["relu", "mixed/sae"], network).values
    r = np.corrcoef(responses.T)[:SOURCES, SOURCES:]
    assert r.argmax(1).tolist() == cosines.argmax(0).tolist() and r.max(1).min() >= 0.9


def test_shown_directions_alone_may_be_stimuli(tmp_path: Path) -> None:
    vectors = np.random.default_rng(5).normal(size=(5, FEATURES))
    network = load(small(), input_size=16).with_directions({"second/d": vectors})
    view, execution = View("1-3", stimuli="shown"), Execution("cpu", out=tmp_path / "map")
    found = featmap.similarity("second/d", network, view=view, recipe=FAST, execution=execution)
    assert list(found.features.index) == ["second/d:1", "second/d:2", "second/d:3"]
    assert set(measures.MEASURES) >= set(found.measures)


def test_neighbours_find_names_with_colons_and_suggest_the_nearest() -> None:
    features = pd.DataFrame({"name": ["eyes", "a:b"]}, index=["0/s:0", "0/s:1"])
    assert neighbours._label_of("0/s:a:b", features) == "0/s:1"
    assert neighbours._label_of("0/s:7", features) == "0/s:7"
    with pytest.raises(UnitError, match=r"0/s has no direction 'eys'.*eyes"):
        neighbours._label_of("0/s:eys", features)
