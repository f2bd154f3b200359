"""The atlas's parts alone: layout of the graph, pictures within a budget, the dendrogram, measures from scales."""

from __future__ import annotations

import base64
import io

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.cluster.hierarchy import dendrogram

from featmap.report import encode, graph_layout
from featmap.report.map_data import list_joins
from featmap.stats import clustering, frames, measures


def rings(groups: int, size: int) -> tuple[nx.Graph, dict[str, int]]:
    """Return rings of features, and which ring each is in."""
    graph: nx.Graph = nx.Graph()
    names = [f"f:{k}" for k in range(groups * size)]
    graph.add_nodes_from(names)
    for k in range(len(names)):
        first = k // size * size
        graph.add_edge(names[k], names[first + (k + 1 - first) % size], weight=0.9)
    for g in range(groups - 1):
        graph.add_edge(names[g * size], names[(g + 1) * size], weight=0.2)
    return graph, {name: k // size for k, name in enumerate(names)}


@pytest.mark.parametrize(("groups", "size"), [(1, 5), (4, 12), (30, 3)])
def test_no_two_nodes_overlap_and_communities_stay_together(groups: int, size: int) -> None:
    graph, communities = rings(groups, size)
    points = graph_layout.lay_out_graph(graph, communities)
    gaps = np.abs(points[:, None] - points).max(-1) + 9 * np.eye(len(points))
    assert gaps.min() > 0.9
    labels = np.array([communities[name] for name in graph])
    apart = gaps[labels[:, None] != labels]
    assert apart.size == 0 or apart.min() >= 0.9
    np.testing.assert_array_equal(points, graph_layout.lay_out_graph(graph, communities))


def test_layout_of_one_node_and_of_none() -> None:
    single: nx.Graph = nx.Graph()
    single.add_node("f:0")
    assert graph_layout.lay_out_graph(single, {"f:0": 0}).shape == (1, 2)
    assert graph_layout.lay_out_graph(nx.Graph(), {}).shape == (0, 2)


def noise(count: int, size: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).random((count, 3, size, size), dtype=np.float32))


@pytest.mark.parametrize("room", [10_000_000, 200_000, 20_000])
def test_encoded_images_stay_within_the_budget(room: int) -> None:
    images = noise(16, 64)
    coding = encode.choose_encoding(images, 16, room)
    assert sum(len(encode.encode_image(image, coding)) for image in images) <= max(room, 16 * 4000)
    assert (coding.quality is None and coding.side == 64) == (room == 10_000_000)


def test_png_keeps_all_pixels_and_replaces_non_finite_ones() -> None:
    image = noise(1, 20)[0]
    image[0, 0, 0], image[1, 0, 0], image[2, 0, 0] = np.nan, np.inf, -3.0
    uri = encode.encode_image(image, encode.Encoding(None, 20))
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as read:
        pixels = np.asarray(read).transpose(2, 0, 1)
    np.testing.assert_array_equal(pixels[:, 1:], np.rint(255 * image[:, 1:]).astype(np.uint8))
    assert pixels[:, 0, 0].tolist() == [128, 255, 0]


def test_thumbnails_are_at_the_positions_the_page_expects() -> None:
    sheet = encode.ThumbnailSheet(5)
    for k in range(5):
        sheet.put(k, np.full((3, 8, 8), k / 5, dtype=np.float32))
    placed, side, columns = np.asarray(sheet.sheet), sheet.side, sheet.columns
    for k in range(5):
        tile = placed[k // columns * side :, k % columns * side :][:side, :side]
        assert (tile == round(255 * k / 5)).all()


def test_dendrogram_matches_scipy() -> None:
    rng = np.random.default_rng(1)
    names = [f"f:{k}" for k in range(17)]
    S = pd.DataFrame(np.corrcoef(rng.random((17, 30))), index=names, columns=names)
    linkage, _ = clustering.leaf_order((S + S.T) / 2, [k % 3 for k in range(17)])
    tree = dendrogram(linkage, no_plot=True)
    expected = sorted(
        (x[0] / 10, y[0], x[3] / 10, y[3], y[1]) for x, y in zip(tree["icoord"], tree["dcoord"], strict=True)
    )
    assert np.allclose(sorted(map(tuple, list_joins(linkage, 17))), expected, atol=1e-3)


def test_scales_give_the_measures_of_any_A() -> None:
    rng = np.random.default_rng(2)
    names = [f"f:{k}" for k in range(9)]
    values = rng.normal(size=(9, 9)) * 10.0 ** rng.integers(-8, 8, 9)
    values[:, 3] = 2.0  # constant
    values[4, :] = 0.0  # answers to nothing
    values[5, 6] = np.nan
    A, live = pd.DataFrame(values, index=names, columns=names), names[:7]
    null = pd.Series(rng.normal(size=9), index=names)
    null["f:2"] = values[2, 2]  # no better than the null image
    s = {name: column.to_numpy() for name, column in measures.measure_scales(A, null, live).items()}
    derived = {
        "coactivation": (values - s["null"]) / s["best"],
        "relative": values / s["own"][:, None],
        "selective": (values - s["mean"]) / s["deviation"],
    }
    for name, from_scales in derived.items():
        expected = frames.to_floats(measures.MEASURES[name](A, null, live), name)
        np.testing.assert_allclose(from_scales, expected, rtol=1e-9, atol=1e-12)
        assert np.isnan(expected).any()
