"""Collect what the page of an interaction run says of its pairs: their kinds, and the communities of their units."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.colors import to_hex

from featmap.interaction.communities import interacting_graph
from featmap.interaction.kinds import KINDS, UNDEFINED
from featmap.plotting.heatmaps import category_colours
from featmap.plotting.labels import labelled_statistics, statistic_label
from featmap.plotting.style import GRAY
from featmap.report.page import PairKinds, UnitMark
from featmap.runs import store

MAX_LISTED = 60
"""Pairs that a table lists of all, and of each kind; and communities."""
MAX_CELLS_A_PAIR = 4
"""Cells of a map for each of its pairs: the few pairs of a screening would leave it almost empty."""


def collect_pairs(folder: Path) -> PairKinds | None:
    """Collect the pairs of a run by their kind.

    Parameters
    ----------
    folder : Path
        Run folder of pairs.

    Returns
    -------
    PairKinds or None
        None for a run of an earlier version, without kinds.
    """
    pairs, ranking = store.read_frame(folder, "pairs"), store.read_frame(folder, "ranking")
    if "kind" not in pairs:
        return None
    counts, shown = pairs["kind"].value_counts(), [kind for kind in KINDS if kind != UNDEFINED]
    colours = dict(zip(shown, map(to_hex, category_colours(len(shown))), strict=True)) | {UNDEFINED: GRAY}
    kinds = [(kind, colours[kind], int(counts[kind])) for kind in KINDS if kind in counts]
    position = {kind: k for k, (kind, *_) in enumerate(kinds)}
    # the ranking has the pairs whose excess is defined, the least linear first
    rest = pairs[pairs["excess"].isna()]
    whole = pd.concat([ranking, rest], ignore_index=True) if len(rest) else ranking.reset_index(drop=True)
    of_kind = whole.groupby("kind").cumcount()
    listed = whole[(whole.index < MAX_LISTED) | (of_kind < MAX_LISTED)]
    rows, columns = order_units(folder, pairs)
    # the same layer twice gives each pair once: its map shows a pair on both sides of the diagonal
    both = pd.concat([pairs, pairs.rename(columns={"a": "b", "b": "a"})]) if rows == columns else pairs
    cells = {}
    if len(rows) * len(columns) <= MAX_CELLS_A_PAIR * len(pairs):
        at = [{mark.name: k for k, mark in enumerate(side)} for side in (rows, columns)]
        for one, other, kind, excess in zip(both["a"], both["b"], both["kind"], both["excess"], strict=True):
            size = "" if pd.isna(excess) else f", response nonlinearity less its floor {excess:.3g}"
            cells[at[0][one], at[1][other]] = position[kind], f"{one} with {other}: {kind}{size}"
    return PairKinds(
        kinds=kinds,
        rows=rows if cells else [],
        columns=columns if cells else [],
        cells=cells,
        caption=f"The {min(len(whole), MAX_LISTED)} least linear pairs, or those of the kind that is chosen above",
        table=tabulate(listed),
        kind_of_row=[position[kind] for kind in listed["kind"]],
        beyond=[int(k) >= MAX_LISTED for k in listed.index],
    )


def tabulate(ranking: pd.DataFrame) -> pd.DataFrame:
    """Select the columns of a ranking that a page shows, and name them in words.

    Parameters
    ----------
    ranking : pandas.DataFrame
        Pairs, a row each.

    Returns
    -------
    pandas.DataFrame
        Units, nonlinearity and retentions, kind, floor, ceiling, p and q.
    """
    statistics = labelled_statistics(list(ranking.columns))
    ranked = [c for c in statistics if c in ("response_nonlinearity", "excess") or c.startswith("retention")]
    last = ("kind", "response_nonlinearity_floor", "response_nonlinearity_ceiling", "p", "q")
    chosen = ranking[["a", "b", *ranked, *(c for c in last if c in ranking)]]
    return chosen.rename(columns={c: statistic_label(c) for c in chosen.columns[2:]})


def order_units(folder: Path, pairs: pd.DataFrame) -> tuple[list[UnitMark], list[UnitMark]]:
    """List the units of both sides in the order of their clusters.

    Parameters
    ----------
    folder : Path
        Run folder of pairs.
    pairs : pandas.DataFrame
        Its pairs.

    Returns
    -------
    tuple of (list of UnitMark, list of UnitMark)
        Rows and columns; of a run of an earlier version, without clusters, in the order of the pairs.
    """
    if not (folder / "units.parquet").is_file():
        first, second = ([UnitMark(str(name)) for name in dict.fromkeys(pairs[side])] for side in "ab")
        return first, second
    units = store.read_frame(folder, "units")
    marks = [
        (str(side), UnitMark(str(name), *(None if pd.isna(v) else int(v) for v in numbers)))
        for name, side, *numbers in zip(*(units[c] for c in ("unit", "side", "cluster", "community")), strict=True)
    ]
    first, second = ([mark for side, mark in marks if letter in side] for letter in "ab")
    return first, second


def list_communities(folder: Path) -> pd.DataFrame:
    """List the communities of interacting units.

    Parameters
    ----------
    folder : Path
        Run folder of pairs.

    Returns
    -------
    pandas.DataFrame
        A row for each of the largest ones: number, units of each layer, number of interacting pairs within it, their
        mean response nonlinearity less its floor, and their kinds; empty where no units interact, or for a run of an
        earlier version.
    """
    pairs = store.read_frame(folder, "pairs")
    rows, columns = order_units(folder, pairs)
    community = {mark.name: mark.community for mark in [*rows, *columns] if mark.community is not None}
    kinds = dict(zip(zip(pairs["a"], pairs["b"], strict=True), pairs["kind"], strict=True)) if community else {}
    edges: list[tuple[str, str, float]] = list(interacting_graph(pairs).edges(data="weight")) if community else []
    layers = dict.fromkeys(name.partition(":")[0] for name in [*pairs["a"], *pairs["b"]])
    found = []
    for number in sorted(set(community.values()))[:MAX_LISTED]:
        within = [(a, b, w) for a, b, w in edges if community.get(a) == community.get(b) == number]
        names = [kinds.get((a, b)) or kinds[b, a] for a, b, _ in within]
        members = [name for name in community if community[name] == number]
        by_layer = {f"units of {la}": ", ".join(n for n in members if n.partition(":")[0] == la) for la in layers}
        found.append(
            {"community": number}
            | by_layer
            | {
                "interacting pairs": len(within),
                "mean of " + statistic_label("excess"): float(np.mean([w for *_, w in within])),
                "kinds": ", ".join(f"{names.count(kind)} {kind}" for kind in KINDS if kind in names),
            }
        )
    return pd.DataFrame(found)
