"""Figures between layers: the order drawn, the words written, the files' bytes; overlaps by arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from featmap.errors import FeatmapError
from featmap.plotting import heatmaps, style
from tests.plotting.test_heatmaps import overlaps, words

BANDS = ("clusters", "communities")
LONG = "features.denseblock4.denselayer16.conv2.some.more"


def rectangle(n: int = 6, m: int = 9, layer: str = "inception4a", **given: object) -> Figure:
    values = pd.DataFrame(np.random.default_rng(n).normal(0, 1, (n, m)), index=range(n), columns=range(100, 100 + m))
    settings: dict[str, object] = {
        "row_clusters": [i // 3 for i in range(n)],
        "column_clusters": [i // 4 for i in range(m)],
        "row_name": f"maximising image of feature of {layer}",
        "column_name": f"response of feature of {layer}",
        "title": f"{layer} maximised, {layer} probed: {n} x {m} features",
        "cbar_label": "co-activation (share of the responding feature's own best response)",
    }
    settings |= given
    for axis in ("row", "column"):
        groups = (settings.pop(f"{axis}_{word}", None) for word in ("clusters", "communities"))
        settings[f"{axis}s"] = heatmaps.Axis(settings.pop(f"{axis}_name"), *groups)  # type: ignore[arg-type]
    return heatmaps.cross_heatmap(settings.pop("values", values), **settings)  # type: ignore[arg-type]


def grid(n: int = 3, layer: str = "inception4", **given: object) -> Figure:
    names = [f"{layer}{'abcdefghi'[i]}" for i in range(n)]
    best = pd.DataFrame(np.linspace(-0.2, 1, n * n).reshape(n, n), index=names, columns=names)
    settings: dict[str, object] = {"title": "best partners", "row_name": "features of", "column_name": "find them in"}
    return heatmaps.layer_grid(given.pop("best", best), best - 0.2, **(settings | given))  # type: ignore[arg-type]


def mesh(figure: Figure) -> np.ma.MaskedArray:
    axes = next(a for a in figure.axes if a.collections)
    rows, columns = (round(max(limits)) for limits in (axes.get_ylim(), axes.get_xlim()))
    return np.ma.asarray(axes.collections[0].get_array()).reshape(rows, columns)


def test_cells_and_names_are_drawn_in_the_order_given() -> None:
    figure = rectangle(3, 5)
    np.testing.assert_array_equal(mesh(figure), np.random.default_rng(3).normal(0, 1, (3, 5)))
    axes = next(a for a in figure.axes if a.collections)
    assert [t.get_text() for t in axes.get_yticklabels()] == ["0", "1", "2"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["100", "101", "102", "103", "104"]
    assert axes.get_ylim() == (3, 0)
    assert axes.yaxis.get_ticks_position() == "right"


def test_undefined_cells_are_gray_and_counted(tmp_path: Path) -> None:
    values = pd.DataFrame([[0.5, np.nan], [np.inf, -0.25]], index=["0", "1"], columns=["7", "8"], dtype="object")
    figure = rectangle(2, 2, values=values, row_clusters=None, column_clusters=[0, None])
    assert np.ma.getmaskarray(mesh(figure)).tolist() == [[False, True], [True, False]]
    assert {"undefined (2 cells)", "in no cluster"} <= set(words(figure))
    blank = rectangle(2, 2, values=values.mask(values.notna(), np.nan))
    assert "undefined (4 cells)" in words(blank)
    assert len(style.save(blank, tmp_path / "x")) == 2


def test_bands_number_each_layers_own_clusters() -> None:
    figure = rectangle()
    assert words(figure).count("cluster") == 2
    assert "clusters are each layer's own" in words(figure)
    assert words(figure).count("2") == 2  # the third row's name, and the columns' third cluster
    plain = rectangle(row_clusters=None, column_clusters=None)
    assert not [w for w in words(plain) if "cluster" in w]


def test_communities_are_a_second_band_with_their_own_numbers() -> None:
    shared = {"row_communities": [7, 7, 8, 8, None, None], "column_communities": [8] * 5 + [7] * 4}
    figure, plain = rectangle(**shared), rectangle()
    assert words(figure).count("community") == words(figure).count("cluster") == 2
    assert words(figure).count("8") == 2 and words(figure).count("7") == 2, "rows and columns share the numbers"
    assert {"in no community", "communities join rows and columns"} <= set(words(figure))
    assert "in no cluster" not in words(figure) and not any("communit" in word for word in words(plain))
    bands = [axes for axes in figure.axes if axes.patches and not axes.collections and len(axes.patches) < 5]
    colours = [[patch.get_facecolor()[:3] for patch in axes.patches] for axes in bands[-4:]]
    assert [style.colour(k) for k in (7, 8, -1)] in colours and [style.colour(k) for k in (8, 7)] in colours
    with pytest.raises(FeatmapError, match="9 columns needs as many clusters, not 2"):
        rectangle(column_communities=[0, 1])


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 64), (24, 24), (70, 5)])
def test_texts_beside_two_bands_keep_apart(n: int, m: int) -> None:
    values = pd.DataFrame(np.eye(n, m), index=range(n), columns=range(m))
    groups = {f"{axis}_{word}": [0] * size for axis, size in (("row", n), ("column", m)) for word in BANDS}
    assert overlaps(rectangle(n, m, "c", values=values, **groups)) == []


@pytest.mark.parametrize("clusters", [True, False])
@pytest.mark.parametrize("layer", ["c", "inception4a", LONG])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 40), (40, 1), (3, 64), (24, 24), (70, 5), (24, 512)])
def test_texts_of_a_rectangle_keep_apart(n: int, m: int, layer: str, clusters: bool) -> None:
    given = {} if clusters else {"row_clusters": None, "column_clusters": None}
    values = pd.DataFrame(np.eye(n, m), index=range(n), columns=range(m))
    values.iloc[0, 0] = np.nan
    assert overlaps(rectangle(n, m, layer, values=values, **given)) == []


@pytest.mark.parametrize("layer", ["c", "inception4", LONG])
@pytest.mark.parametrize("n", [2, 3, 9])
def test_texts_of_a_grid_keep_apart(n: int, layer: str) -> None:
    title = "Best partner's profile similarity S, mean over features (the same by chance)"
    assert overlaps(grid(n, layer, title=title)) == []


def test_a_grid_writes_numbers_and_floors_off_the_diagonal() -> None:
    figure = grid(2)
    assert {"0.20", "(0.00)", "0.60", "(0.40)"} <= set(words(figure))
    assert not {"-0.20", "1.00"} & set(words(figure))
    names = ["a", "b"]
    empty = pd.DataFrame(np.nan, index=names, columns=names)
    figure = heatmaps.layer_grid(empty, empty, title="t", row_name="r", column_name="c")
    assert words(figure).count("undefined") == 2


@pytest.mark.parametrize("figure", [rectangle, grid])
def test_same_data_same_bytes(figure, tmp_path: Path) -> None:
    first, second = style.save(figure(), tmp_path / "one"), style.save(figure(), tmp_path / "two")
    assert [p.name for p in first] == ["one.png", "one.svg"]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


def test_what_cannot_be_drawn_is_said() -> None:
    with pytest.raises(FeatmapError, match="needs rows and columns"):
        rectangle(values=pd.DataFrame(index=["0"]))
    with pytest.raises(FeatmapError, match="6 rows needs as many clusters, not 2"):
        rectangle(row_clusters=[0, 1])
    with pytest.raises(FeatmapError, match="same layers"):
        grid(2, best=pd.DataFrame([[1.0]], index=["a"], columns=["a"]))
