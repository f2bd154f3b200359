"""Clusters of the units of two layers, and communities of units that interact across them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import pytest

import featmap
from featmap.interaction import communities, report
from featmap.interaction.communities import UnitGroups, find_groups
from featmap.interaction.groups import pairs_job, pairs_of
from featmap.interaction.run import Interaction
from featmap.interaction.statistics import JointArrays
from featmap.network.unit import Unit
from featmap.plotting import heatmaps
from featmap.runs.store import Run
from tests.helpers import settings, tiny

pytestmark = [
    pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning"),
    pytest.mark.usefixtures("cheap_runs", "one_thread"),
]
BLOCKS = 3


def planted(seed: int = 0, strength: float = 0.3) -> pd.DataFrame:
    """Twelve units by twelve in three blocks: pairs within a block interact, a few others do by chance."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for i, j in product(range(12), range(12)):
        inside = i % BLOCKS == j % BLOCKS
        rows.append(
            {
                "a": f"first:{i}",
                "b": f"second:{j}",
                "excess": strength + 0.02 * rng.normal() if inside else 0.01 * rng.normal(),
                "q": 0.01 if inside else 0.5,
            }
        )
    return pd.DataFrame(rows)


def similarity_of(kinds: int, live: bool = True) -> communities.Similarity:
    """S of units of some kinds: 0.9 within a kind and -0.3 between them; or of none that are live."""

    def compute(names: Sequence[str]) -> pd.DataFrame:
        kind = np.array([int(name.partition(":")[2]) % kinds for name in names])
        S = np.where(kind[:, None] == kind, 0.9, -0.3)
        np.fill_diagonal(S, 1.0)
        return pd.DataFrame(S, index=list(names), columns=list(names)) if live else pd.DataFrame()

    return compute


def test_planted_communities_and_clusters_are_found() -> None:
    found = find_groups(similarity_of(BLOCKS), planted())
    assert found.edges == 48 and found.sizes == [8, 8, 8]
    number = found.units["community"]
    for name, community in number.items():
        same = [n for n in number.index if number[n] == community]
        assert {int(n.partition(":")[2]) % BLOCKS for n in same} == {int(str(name).partition(":")[2]) % BLOCKS}
    # three blocks of 16 equal edges: each has a third of all, and a third of all ends
    assert found.modularity == pytest.approx(3 * (1 / 3 - 1 / 9), abs=0.01)
    assert found.p == pytest.approx(1 / 101)
    assert "48 interacting pairs join 24 units in 3 communities" in str(found) and "more than by chance" in str(found)
    for side in "ab":
        order, clusters = found.order(side), found.clusters(side)
        assert len(order) == 12 and sorted(clusters) == [0] * 4 + [1] * 4 + [2] * 4
        assert clusters == sorted(clusters, key=clusters.index)  # a cluster stands together
        assert len({(int(n.partition(":")[2]) % BLOCKS, c) for n, c in zip(order, clusters, strict=True)}) == 3
    assert found.units["partners"].tolist() == [4] * 24


def test_excesses_without_structure_are_no_communities() -> None:
    pairs = planted()
    rng = np.random.default_rng(5)
    pairs[["excess", "q"]] = pairs[["excess", "q"]].to_numpy()[rng.permutation(len(pairs))]
    found = find_groups(similarity_of(BLOCKS), pairs)
    assert found.edges == 48 and found.p > communities.LEVEL
    assert "no more than by chance" in str(found)


def test_without_interacting_pairs_or_live_units_nothing_is_claimed() -> None:
    pairs = planted().assign(q=np.nan)
    found = find_groups(similarity_of(BLOCKS, live=False), pairs)
    assert found.edges == 0 and np.isnan(found.modularity) and np.isnan(found.p) and found.sizes == []
    assert str(found).startswith("communities: none, since no pair is above its floor")
    assert found.order("a") == [f"first:{k}" for k in range(12)] and found.clusters("a") == [None] * 12
    negative = planted(strength=-0.3)
    assert communities.interacting_graph(negative).number_of_edges() == 0


def test_the_order_of_the_pairs_changes_no_community() -> None:
    pairs = planted()
    one, two = (find_groups(similarity_of(BLOCKS), p) for p in (pairs, pairs.iloc[::-1]))
    names = [str(name) for name in one.units.index]
    assert one.units.loc[names, "partners"].tolist() == two.units.loc[names, "partners"].tolist()
    pairs_of_names = list(product(names, names))
    same = [[bool(g.units["community"][a] == g.units["community"][b]) for a, b in pairs_of_names] for g in (one, two)]
    assert same[0] == same[1] and one.modularity == pytest.approx(two.modularity)


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> Interaction:
    folder = tmp_path_factory.mktemp("layers") / "run"
    chosen = [("second", "0-3"), ("first", "0,2,5")]
    return featmap.interact(
        network=tiny.small(),
        layers=chosen,
        seeds=3,
        **settings.options("interact", size=12, steps=6, rows=4, device="cpu", out=folder),
    )


def test_the_profile_of_units_is_that_of_their_solo_responses(layers: Interaction) -> None:
    network = featmap.load(tiny.small())
    recipe = settings.resolve_linear(network, size=12, steps=6, rows=4)
    job = pairs_job(pairs_of([("second", "0-3"), ("first", "0,2,5")], network, 12), network, recipe)
    run = Run.read(layers.folder)
    arrays = JointArrays(job, run.arrays)
    units = [u for u in job.units if u.layer == "second"]
    S = arrays.solo_similarity([str(u) for u in units])
    data = layers.dataset
    responses = np.asarray(data["solo_units"])  # by hand: mean over seeds, roots, both ways standardised
    rows = [[arrays.solo_rows[u, seed, False] for seed in job.seeds] for u in job.units]
    columns = [job.units.index(u) for u in units]
    A = np.array([[responses[r][:, columns[c]].mean() for c in range(len(units))] for r in rows], dtype=float)
    R = np.sign(A) * np.sqrt(np.abs(A))
    Z = (R - R.mean(0)) / R.std(0)
    Z -= Z.mean(1, keepdims=True)
    np.testing.assert_allclose(S.to_numpy(dtype=float), np.corrcoef(Z.T), atol=1e-5)


def test_the_graph_says_which_edges_communities_are_made_of() -> None:
    pairs = planted()
    found = find_groups(similarity_of(BLOCKS), pairs)
    graph = report.build_graph(pairs, found.units)
    marked = [(a, b) for a, b, is_one in graph.edges(data="interacting") if is_one]
    assert len(marked) == found.edges == 48 and graph.number_of_edges() == len(pairs)
    assert all(graph.nodes[a]["community"] == graph.nodes[b]["community"] for a, b in marked), "across both layers"
    text = "\n".join(nx.generate_graphml(graph))
    assert 'attr.name="interacting" attr.type="boolean"' in text and 'attr.name="community"' in text


def test_graph_table_and_matrices_hold_the_groups(layers: Interaction) -> None:
    units = pd.read_parquet(layers.folder / "units.parquet").set_index("unit")
    assert list(units.columns) == ["side", "cluster", "community", "partners"]
    graph = nx.read_graphml(layers.folder / "interaction.graphml")
    assert set(graph) == set(units.index)
    for name, data in graph.nodes(data=True):
        for column in ("cluster", "community"):
            assert data.get(column) == (None if pd.isna(units.loc[name, column]) else units.loc[name, column])
    assert {data["kind"] for *_, data in graph.edges(data=True)} <= set(report.KINDS)
    line = [note for note in layers.notes if note.startswith("communities: ")]
    assert len(line) == 1
    assert (layers.folder / "matrices" / "kind.png").is_file()


def test_matrices_stand_in_the_order_of_the_clusters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = find_groups(similarity_of(BLOCKS), planted())
    drawn: list[tuple[pd.DataFrame, Any, Any]] = []
    monkeypatch.setattr(
        heatmaps, "cross_heatmap", lambda values, rows, columns, **_: drawn.append((values, rows, columns))
    )
    monkeypatch.setattr(report.output, "save_figure", lambda *_: None)
    pairs = planted().assign(kind="additive", response_nonlinearity=0.1)
    job = SimpleNamespace(groups=[[Unit("first", 0), Unit("second", 0)]], seeds_of=lambda group: (0,))
    watcher: Any = SimpleNamespace(stage=lambda *_: None)
    run: Any = None
    report._write_matrices(run, job, pairs, found, watcher)  # type: ignore[arg-type]
    values, rows, columns = drawn[0]
    assert list(values.index) == found.order("a") and list(values.columns) == found.order("b")
    assert list(rows.clusters) == found.clusters("a") and list(columns.clusters) == found.clusters("b")
    assert rows.communities == [int(found.units["community"][name]) for name in values.index]
    assert columns.communities == [int(found.units["community"][name]) for name in values.columns]
    assert find_groups(similarity_of(BLOCKS), planted().assign(q=0.5)).communities("a") is None, "no band without any"
    assert (values == 0).to_numpy().all()  # the first kind


def test_categories_have_colours_and_counts() -> None:
    values = pd.DataFrame([[0.0, 1.0, np.nan], [1.0, 1.0, 0.0]], index=list("ab"), columns=list("xyz"))
    axis = heatmaps.Axis("units")
    figure = heatmaps.cross_heatmap(
        values, rows=axis, columns=axis, title="t", cbar_label="kind", categories=["even", "odd", "other"]
    )
    texts = [t.get_text() for axes in figure.axes for t in axes.texts]
    assert {"even (2)", "odd (3)", "undefined (1 cells)", "kind"} <= set(texts)
    assert not any("other" in t for t in texts)
    assert isinstance(find_groups(similarity_of(2), planted()), UnitGroups)
