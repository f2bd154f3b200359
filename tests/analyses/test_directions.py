"""Directions by NMF and PCA: their formulas by hand, and the command on tiny generated photographs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from analyses import directions
from analyses.formulas.directions import channels_for_share, explained_share, most_similar_channels
from featmap import FeatmapError, load
from featmap.network.directions import read_directions

pytestmark = pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning")


def test_channels_are_counted_until_the_share_is_reached() -> None:
    vectors = np.array([[0, 3, 0, 0], [1, 1, 1, 1], [3, -1, 0, 0], [0, -2, 1, 1]])
    assert channels_for_share(vectors, 0.9).tolist() == [1, 4, 1, 3]
    assert channels_for_share(vectors, 0.5).tolist() == [1, 2, 1, 1]
    assert channels_for_share(vectors, 1).tolist() == [1, 4, 2, 3]


def test_the_most_similar_channel_is_found_by_correlation() -> None:
    rng = np.random.default_rng(0)
    channels = rng.normal(size=(40, 5))
    channels[:, 2] = 1  # does not vary
    mixed = np.stack([3 * channels[:, 4] + 7, channels[:, 1] + 0.1 * channels[:, 0], np.ones(40)], axis=1)
    nearest, r = most_similar_channels(mixed, channels)
    assert nearest.tolist() == [4, 1, -1] and np.isnan(r[2])
    assert r[0] == pytest.approx(1)
    assert r[1] == pytest.approx(np.corrcoef(mixed[:, 1], channels[:, 1])[0, 1])


def test_the_explained_share_is_that_of_a_projection() -> None:
    rng = np.random.default_rng(1)
    values, vectors = rng.normal(size=(200, 6)) + 2, rng.normal(size=(2, 6))
    fitted = values @ np.linalg.pinv(vectors) @ vectors
    assert explained_share(values, vectors, False) == pytest.approx((fitted**2).sum() / (values**2).sum())
    assert explained_share(values, np.eye(6), True) == pytest.approx(1)
    assert explained_share(values, np.array([[1.0, 0, 0, 0, 0, 0], [2, 0, 0, 0, 0, 0]]), True) < 0.5


def test_planted_parts_are_found_by_nmf() -> None:
    rng = np.random.default_rng(2)
    parts = rng.random((3, 8)) * (rng.random((3, 8)) < 0.5) + np.eye(3, 8)
    values = (rng.random((500, 3)) * (rng.random((500, 3)) < 0.4)) @ parts
    found = directions.find_components("nmf", values, 3)
    cosines = found.vectors @ (parts / np.linalg.norm(parts, axis=1, keepdims=True)).T
    assert sorted(cosines.argmax(0)) == [0, 1, 2] and cosines.max(0).min() > 0.95


def test_pca_directions_are_the_axes_of_the_covariance() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(size=(300, 5)) * [5, 1, 3, 0.5, 2] + 4
    found = directions.find_components("pca", values, 2)
    axes = np.linalg.eigh(np.cov(values.T))[1][:, ::-1][:, :2].T
    np.testing.assert_allclose(np.abs((found.vectors * axes).sum(1)), 1, atol=1e-5)
    assert found.bias is not None
    np.testing.assert_allclose((values @ found.vectors.T + found.bias).mean(0), 0, atol=1e-4)


def test_too_many_components_are_refused() -> None:
    with pytest.raises(FeatmapError, match="smaller --count"):
        directions._directions("nmf", np.array([[1.0, 0], [0, 0]]))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(4)
    for k in range(20):
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC).save(folder / f"{k:02d}.png")
    return folder


def make(photographs: Path, folder: Path) -> None:
    directions.main(
        photographs=photographs,
        model="tests.helpers.tiny:small",
        weights=None,
        layer="relu",
        count=3,
        positions=8,
        size=16,
        steps=3,
        out_=folder / "out",
        results=folder / "results",
        page=folder / "page.md",
    )


@pytest.mark.usefixtures("one_thread")
def test_directions_are_made_mapped_and_described(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2])
    make(photographs, tmp_path)
    sets = {kind: read_directions(tmp_path / "out" / f"{kind}.safetensors") for kind in directions.KINDS}
    network = load("tests.helpers.tiny:small").with_directions({"relu": tmp_path / "out" / "nmf.safetensors"})
    assert network.layer("relu/nmf").channels == 3 and (sets["nmf"].vectors >= 0).all()
    np.testing.assert_allclose(np.linalg.norm(sets["pca"].vectors, axis=1), 1, rtol=1e-6)
    table = pd.read_csv(tmp_path / "results" / "directions.csv")
    assert table["direction"].tolist() == [f"relu/{kind}:{k}" for kind in directions.KINDS for k in range(3)]
    assert table["channels"].tolist() == [
        *channels_for_share(sets["nmf"].vectors),
        *channels_for_share(sets["pca"].vectors),
    ]
    responses = pd.read_parquet(tmp_path / "out" / "photographs" / "responses.parquet")
    for row in table.itertuples():
        r = responses[[f"relu:{c}" for c in range(6)]].corrwith(responses[row.direction])
        assert row.similar_channel == r.idxmax() and row.correlation == pytest.approx(r.max(), rel=1e-4)
    about = json.loads((tmp_path / "results" / "directions.json").read_text(encoding="utf-8"))
    assert (about["photographs"], about["activations"], about["negative"]) == (20, 160, 0)
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "(results/images.webp)" in page and all(name in page for name in table["direction"])
    before = {p.name: p.read_bytes() for p in (tmp_path / "results").iterdir()}
    make(photographs, tmp_path)  # the same directions, runs resumed
    assert {p.name: p.read_bytes() for p in (tmp_path / "results").iterdir()} == before


def test_the_stored_page_is_written_from_the_stored_results() -> None:
    assert directions.build_page(directions.RESULTS, directions.PAGE) == directions.PAGE.read_text(encoding="utf-8")


def test_the_page_needs_results(tmp_path: Path) -> None:
    with pytest.raises(FeatmapError, match="holds no results"):
        directions.build_page(tmp_path, tmp_path / "page.md")
