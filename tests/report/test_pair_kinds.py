"""Pairs of a page by their kind: what is listed, the map and its order, the filter in Chromium, communities."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from featmap.interaction import report as tables
from featmap.interaction.communities import find_groups
from featmap.interaction.kinds import ADDITIVE, COMPETING, KINDS, SUPPRESSIVE, SYNERGISTIC, UNDECIDED, UNDEFINED
from featmap.report import html
from featmap.report.page import Report
from featmap.report.pairs import MAX_LISTED, collect_pairs, list_communities
from featmap.stats.frames import plain_columns
from tests.helpers.browser import Tab, chromium, needs_chromium
from tests.interaction.test_communities import planted, similarity_of

LAYERS = ("first", "second")
HOSTILE = "<img src=x onerror=alert(1)>"


def with_statistics(pairs: pd.DataFrame) -> pd.DataFrame:
    """Planted pairs with a kind each: a block's pairs are synergistic or suppressive, most others additive."""
    rows = []
    for row in pairs.to_dict("records"):
        i, j = (int(row[side].rpartition(":")[2]) for side in "ab")
        kind = ADDITIVE if i % 3 != j % 3 else SYNERGISTIC if i % 3 == 0 else SUPPRESSIVE
        kind = COMPETING if (i, j) == (0, 1) else UNDECIDED if (i, j) == (1, 0) else kind
        kind = UNDEFINED if (i, j) in ((2, 0), (2, 1)) else kind
        excess = np.nan if kind == UNDEFINED else row["excess"]
        rows.append(row | {"kind": kind, "excess": excess, "p": row["q"] / 2})
    found = pd.DataFrame(rows)
    limits = {"response_nonlinearity_floor": 0.1, "response_nonlinearity_ceiling": 0.9}
    return found.assign(response_nonlinearity=found["excess"] + 0.1, retention_a=0.8, retention_b=0.7, **limits)


def write(folder: Path, pairs: pd.DataFrame, groups: bool = True) -> Path:
    """Write the tables of a run of pairs that its page is made from."""
    folder.mkdir(parents=True)
    pairs.to_parquet(folder / "pairs.parquet")
    tables.rank_pairs(pairs).to_parquet(folder / "ranking.parquet")
    if groups:
        units = find_groups(similarity_of(3), pairs).units
        plain_columns(units.reset_index()).to_parquet(folder / "units.parquet")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("pairs") / "run", with_statistics(planted()))


def test_every_kind_has_its_number_and_its_pairs(folder: Path) -> None:
    found, pairs = collect_pairs(folder), pd.read_parquet(folder / "pairs.parquet")
    assert found is not None
    counts = pairs["kind"].value_counts()
    assert [(name, count) for name, _, count in found.kinds] == [(k, counts[k]) for k in KINDS if k in counts]
    assert len({colour for _, colour, _ in found.kinds}) == len(found.kinds) == 6
    for k, (_, _, count) in enumerate(found.kinds):
        assert found.kind_of_row.count(k) == min(count, MAX_LISTED), "the least linear of each kind can be shown"
    assert found.beyond.count(False) == MAX_LISTED and found.beyond == sorted(found.beyond)
    shown = found.table["response nonlinearity less its floor"].to_numpy()
    assert (np.diff(shown[~np.isnan(shown)]) <= 0).all() and np.isnan(shown[-2:]).all(), "undefined pairs come last"
    kinds = [found.kinds[k][0] for k in found.kind_of_row]
    assert found.table["kind"].tolist() == kinds and "q" in found.table


def test_the_map_has_every_pair_in_the_order_of_the_clusters(folder: Path) -> None:
    found, units = collect_pairs(folder), pd.read_parquet(folder / "units.parquet").set_index("unit")
    assert found is not None and len(found.cells) == 144
    for side, marks in (("a", found.rows), ("b", found.columns)):
        of_side = units[units["side"] == side]
        assert [mark.name for mark in marks] == list(of_side.index) and len(set(of_side["cluster"])) == 3
        assert [mark.cluster for mark in marks] == of_side["cluster"].tolist()
        assert [mark.community for mark in marks] == of_side["community"].tolist()
    for row in pd.read_parquet(folder / "pairs.parquet").to_dict("records"):
        i, j = ([m.name for m in side].index(row[n]) for side, n in ((found.rows, "a"), (found.columns, "b")))
        kind, label = found.cells[i, j]
        assert found.kinds[kind][0] == row["kind"] and label.startswith(f"{row['a']} with {row['b']}: {row['kind']}")
        assert ("less its floor" in label) == np.isfinite(row["excess"])


def test_a_layer_with_itself_is_shown_on_both_sides_of_the_diagonal(tmp_path: Path) -> None:
    pairs = with_statistics(planted()).replace({"b": {f"second:{k}": f"first:{k}" for k in range(12)}})
    pairs = pairs[[int(a[6:]) < int(b[6:]) for a, b in zip(pairs["a"], pairs["b"], strict=True)]]
    found = collect_pairs(write(tmp_path / "run", pairs.reset_index(drop=True)))
    assert found is not None and found.rows == found.columns and len(found.rows) == 12
    assert len(found.cells) == 2 * len(pairs) == 12 * 11
    assert all(found.cells[i, j][0] == found.cells[j, i][0] for i, j in found.cells)


def test_few_pairs_among_many_units_have_a_table_but_no_map(tmp_path: Path) -> None:
    diagonal = with_statistics(planted()).iloc[::13].reset_index(drop=True)
    found = collect_pairs(write(tmp_path / "run", diagonal))
    assert found is not None and len(found.table) == 12 and not (found.cells or found.rows or found.columns)
    text = html.render_reports([Report("pairs", pairs=found)])
    assert text.count("<table") == 1 and 'type="radio"' in text


def test_runs_of_earlier_versions_have_what_they_stored(tmp_path: Path) -> None:
    pairs = with_statistics(planted())
    found = collect_pairs(write(tmp_path / "units", pairs, groups=False))
    assert found is not None and [mark.name for mark in found.rows] == [f"first:{k}" for k in range(12)]
    assert {mark.cluster for mark in found.rows} == {None} and list_communities(tmp_path / "units").empty
    assert collect_pairs(write(tmp_path / "kind", pairs.drop(columns="kind"), groups=False)) is None


def test_communities_list_their_units_and_pairs(folder: Path) -> None:
    found, units = list_communities(folder), pd.read_parquet(folder / "units.parquet").set_index("unit")
    assert found["community"].tolist() == [0, 1, 2]
    pairs = pd.read_parquet(folder / "pairs.parquet")
    for row in found.to_dict("records"):
        members = {layer: row[f"units of {layer}"].split(", ") for layer in LAYERS}
        assert all(name.startswith(layer) for layer, names in members.items() for name in names)
        both = [name for names in members.values() for name in names]
        assert sorted(both) == sorted(units.index[units["community"] == row["community"]])
        inside = pairs[pairs["a"].isin(both) & pairs["b"].isin(both) & (pairs["q"] < 0.05) & (pairs["excess"] > 0)]
        assert row["interacting pairs"] == len(inside)
        assert row["mean of response nonlinearity less its floor"] == pytest.approx(inside["excess"].mean())
        assert sum(int(part.split()[0]) for part in row["kinds"].split(", ")) == len(inside)
    without = with_statistics(planted().assign(q=0.5))
    assert list_communities(write(folder.parent / "none", without)).empty


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@needs_chromium
@pytest.mark.slow
def test_the_filter_shows_the_pairs_of_one_kind_and_dims_the_others(browser: Any, folder: Path, tmp_path: Path) -> None:
    """Two reports on one page: each is filtered by itself, and what a run names is text."""
    hostile = with_statistics(planted()).replace({"a": {"first:0": f"{HOSTILE}:0"}})
    reports = [
        Report("planted", pairs=collect_pairs(folder)),
        Report("hostile", pairs=collect_pairs(write(tmp_path / "hostile", hostile))),
    ]
    page = tmp_path / "page.html"
    page.write_text(html.render_report_page("pairs", "a network", reports), encoding="utf-8")
    tab = Tab(browser, page)
    found = reports[0].pairs
    assert found is not None and tab.page.locator("script, img").count() == 0
    first, second = tab.page.locator(".kinds").all()
    order = first.locator(".pairs tbody th").all_text_contents()
    assert order == [mark.name for mark in found.rows]

    def listed(place: Any) -> list[str]:
        rows = place.locator("div.scroll:last-child tbody tr").all()
        return [str(row.locator("td").nth(found.table.columns.get_loc("kind")).text_content()) for row in rows
                if row.is_visible()]  # fmt: skip

    def bright(place: Any) -> int:
        script = "(cells) => cells.filter((cell) => getComputedStyle(cell).opacity === '1').length"
        return int(place.locator(".pairs td.kind").evaluate_all(script))

    assert len(listed(first)) == MAX_LISTED and bright(first) == 144
    for k, (name, _, count) in enumerate(found.kinds):
        first.get_by_label(f"{name} ({count})").check()
        assert listed(first) == [name] * min(count, MAX_LISTED), name
        assert bright(first) == count == sum(kind == k for kind, _ in found.cells.values())
        assert first.locator(".pairs tbody th").all_text_contents() == order, "the order stays that of the clusters"
    tab.keep("pairs-by-kind")
    assert len(listed(second)) == MAX_LISTED and bright(second) == 144, "the other report has a control of its own"
    assert HOSTILE in str(second.locator(".pairs tbody").text_content())
    first.get_by_label("all (144)").check()
    assert len(listed(first)) == MAX_LISTED and bright(first) == 144
    tab.close()
