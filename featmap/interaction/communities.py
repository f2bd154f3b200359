"""Order the units of two layers by what they respond to, and find groups of units that interact across the layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd

from featmap import rng
from featmap.stats import clustering
from featmap.stats.correlation import TIE
from featmap.stats.frames import finite_column

LEVEL = 0.05
"""False discovery rate up to which a pair counts as interacting."""
DRAWS, LOUVAIN_RUNS = 100, 20
"""Draws of the null model, and Louvain runs of each consensus."""
NEIGHBOURS = 10
Similarity = Callable[[Sequence[str]], pd.DataFrame]


@dataclass(frozen=True, eq=False)
class UnitGroups:
    """Clusters of each layer's units, and communities of interacting units.

    Parameters
    ----------
    units : pandas.DataFrame
        One row a unit, those of the first layer first, each layer in the order of its clusters: side ("a", "b" or
        "ab" for a layer with itself), cluster (of the units of its layer that respond to the same solo images, 0 the
        largest; missing for a unit that is not live), community (of the graph of interacting pairs, 0 the largest;
        missing for a unit in no such pair), partners (number of such pairs).
    edges : int
        Number of interacting pairs.
    modularity : float
        Modularity of the communities; NaN without an interacting pair.
    p : float
        Share of draws, with one more, whose modularity reaches that: in a draw the same excesses belong to pairs drawn
        at random among those that were measured. NaN without an interacting pair.
    """

    units: pd.DataFrame
    edges: int
    modularity: float
    p: float

    @property
    def sizes(self) -> list[int]:
        """Number of units in communities 0, 1, and so on."""
        return self.units["community"].dropna().astype(int).value_counts().sort_index().tolist()

    def __str__(self) -> str:
        if not self.edges:
            return "communities: none, since no pair is above its floor at a false discovery rate of 5 %"
        count = len(self.sizes)
        found = f"communities: {self.edges} interacting pairs join {sum(self.sizes)} units in {count} communities"
        found = found.replace("1 communities", "1 community") if count == 1 else found
        chance = "no more than" if self.p > LEVEL else "more than"
        return f"{found}; they are separate {chance} by chance (modularity {self.modularity:.2f}, p {self.p:.2g})"

    def order(self, side: str) -> list[str]:
        """List the units of a side in the order of their clusters.

        Parameters
        ----------
        side : str
            "a" or "b".

        Returns
        -------
        list of str
            Names of units.
        """
        return [str(name) for name in self.units.index[self.units["side"].str.contains(side)]]

    def clusters(self, side: str) -> list[int | None]:
        """List the clusters of a side's units, in their order; None for none.

        Parameters
        ----------
        side : str
            "a" or "b".

        Returns
        -------
        list of int or None
            Cluster of each unit.
        """
        return self._numbers("cluster", side)

    def communities(self, side: str) -> list[int | None] | None:
        """List the communities of a side's units, in the order of their clusters.

        Parameters
        ----------
        side : str
            "a" or "b".

        Returns
        -------
        list of int or None, or None
            Community of each unit; None without an interacting pair.
        """
        return self._numbers("community", side) if self.edges else None

    def _numbers(self, column: str, side: str) -> list[int | None]:
        """List the numbers of a side's units in one of the columns."""
        values = self.units[column][self.units["side"].str.contains(side)]
        return [None if pd.isna(v) else int(v) for v in values]


def find_groups(similarity: Similarity, pairs: pd.DataFrame, progress: clustering.Progress | None = None) -> UnitGroups:
    """Find clusters of each layer's units and communities of interacting ones.

    Two units interact where the response nonlinearity of their pair is above its floor at a false discovery rate of
    `LEVEL`; the weight of that edge is the excess.

    Parameters
    ----------
    similarity : callable
        Computes the profile similarity S of those of some units, by name, that are live; empty for fewer than two.
    pairs : pandas.DataFrame
        Summary of all pairs, with columns `a`, `b`, `excess` and `q`.
    progress : callable, optional
        Called with (done, total) draws of the null model.

    Returns
    -------
    UnitGroups
        Clusters and communities.
    """
    sides = [list(dict.fromkeys(pairs[letter])) for letter in "ab"]
    shared = set(sides[0]) & set(sides[1])
    listed = [(sides[0], "a"), (sides[1], "b")] if not shared else [(list(dict.fromkeys(sides[0] + sides[1])), "ab")]
    tables = []
    for names, side in listed:
        S = similarity(names)
        order, clusters = list(S.columns), pd.Series(dtype="Int64")
        if len(order):
            found = clustering.communities(clustering.neighbour_graph(S, NEIGHBOURS), LOUVAIN_RUNS)
            clusters = found.labels.astype("Int64")
            order = [order[k] for k in clustering.leaf_order(S, found.labels)[1]]
        order += [n for n in names if n not in set(order)]
        tables.append(pd.DataFrame({"side": side, "cluster": clusters.reindex(order)}, index=order))
    units = pd.concat(tables)
    graph = interacting_graph(pairs)
    units["community"], units["partners"] = pd.Series(pd.NA, index=units.index, dtype="Int64"), 0
    modularity = p = float("nan")
    if graph.number_of_edges():
        found = clustering.communities(graph, LOUVAIN_RUNS)
        units.loc[list(found.labels.index), "community"] = found.labels.to_numpy()
        units.loc[list(graph), "partners"] = [degree for _, degree in graph.degree()]
        modularity, p = found.modularity, compare_modularity(pairs, found.mean_modularity, progress)
    units.index.name = "unit"
    return UnitGroups(units, graph.number_of_edges(), modularity, p)


def interacting_graph(pairs: pd.DataFrame) -> nx.Graph:
    """Build the graph of the pairs that interact.

    Parameters
    ----------
    pairs : pandas.DataFrame
        Columns `a`, `b`, `excess` and `q`.

    Returns
    -------
    networkx.Graph
        Units in an interacting pair; edge attribute `weight`, the excess, above 0.
    """
    excess, q = finite_column(pairs["excess"].to_numpy()), finite_column(pairs["q"].to_numpy())
    graph: nx.Graph = nx.Graph()
    for k in np.flatnonzero((q < LEVEL) & (excess > 0)):
        graph.add_edge(pairs["a"].iloc[k], pairs["b"].iloc[k], weight=float(excess[k]))
    return graph


def compare_modularity(pairs: pd.DataFrame, value: float, progress: clustering.Progress | None = None) -> float:
    """Compare a modularity with that of the same excesses on pairs drawn at random.

    Parameters
    ----------
    pairs : pandas.DataFrame
        Columns `a`, `b`, `excess` and `q`.
    value : float
        Mean modularity of the Louvain runs on the data.
    progress : callable, optional
        Called with (done, total) draws.

    Returns
    -------
    float
        (1 + b) / (`DRAWS` + 1), b the number of draws whose modularity reaches the value.
    """
    defined = pairs[pairs["excess"].notna() & pairs["q"].notna()]
    reached = 0
    for draw in range(DRAWS):
        if progress is not None:
            progress(draw, DRAWS)
        order = rng.generator("communities of pairs", draw).permutation(len(defined))
        moved: dict[str, Any] = {c: defined[c].to_numpy()[order] for c in ("excess", "q")}
        graph = interacting_graph(defined.assign(**moved))
        reached += clustering.communities(graph, 2).mean_modularity >= value - TIE
    return (1 + reached) / (1 + DRAWS)
