"""Lay out a neighbour graph on a page: communities apart, no two nodes overlapping, reproducible by a seed."""

from __future__ import annotations

import networkx as nx
import numpy as np
from scipy.spatial import cKDTree

from featmap.stats.correlation import TINY

NODE_DISTANCE = 1.0
"""Minimum distance of two nodes; the image of a node is slightly smaller."""
COMMUNITY_DISTANCE = 1.5
"""Minimum distance of nodes of two communities."""


def _spring(graph: nx.Graph, seed: int) -> np.ndarray:
    """Return the N x 2 positions of a seeded spring layout with the mean at the origin."""
    if len(graph) < 2:
        return np.zeros((len(graph), 2))
    positions = nx.spring_layout(graph, seed=seed, iterations=60, weight="weight")
    points = np.array([positions[node] for node in graph])
    return points - points.mean(0)


def _spread(points: np.ndarray, radii: np.ndarray, rounds: int = 400, squares: bool = False) -> np.ndarray:
    """Push points apart until no two circles of these radii overlap, or the rounds are over.

    With `squares`, the radii are half the sides of squares instead.
    """
    points, reach = points.copy(), 2 * radii.max(initial=0.0)
    for _ in range(rounds):
        pairs = cKDTree(points).query_pairs(reach, p=np.inf if squares else 2, output_type="ndarray")
        # the tree lists pairs in no fixed order, and the order of the sums below decides the last bits
        one, two = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))].T
        gap = points[two] - points[one]
        if squares:  # separate squares along the axis on which they overlap less
            wider = np.abs(gap).argmax(axis=1)
            gap = np.where(np.arange(2) == wider[:, None], gap, 0.0)
        distance = np.maximum(np.linalg.norm(gap, axis=1), TINY)
        overlap = radii[one] + radii[two] - distance
        close = overlap > 1e-3
        if not close.any():
            break
        push = (gap / distance[:, None] * (overlap / 2 + 1e-3)[:, None])[close]
        np.add.at(points, one[close], -push)
        np.add.at(points, two[close], push)
    return points


def _lay_out_community(graph: nx.Graph, members: list[str], seed: int) -> np.ndarray:
    """Return the positions of one community's members around the origin."""
    inside: nx.Graph = nx.Graph()
    inside.add_nodes_from(members)  # in this order: the nodes of `graph.subgraph` have another one in every process
    inside.add_weighted_edges_from((u, v, graph[u][v]["weight"]) for u in members for v in graph[u] if v in inside)
    points = _spring(inside, seed)
    radius = 0.7 * np.sqrt(len(members)) * NODE_DISTANCE
    points = points * radius / max(np.abs(points).max(initial=0.0), TINY)
    # two nodes at the same position have no direction in which to separate
    points = points + 1e-3 * np.random.default_rng(seed).standard_normal(points.shape)
    return _spread(points - points.mean(0), np.full(len(members), NODE_DISTANCE / 2), squares=True)


def lay_out_graph(graph: nx.Graph, communities: dict[str, int], seed: int = 0) -> np.ndarray:
    """Lay out a graph: communities apart from each other, a spring layout within each.

    Communities that share strong edges lie near each other; communities without shared edges lie around the others.

    Parameters
    ----------
    graph : networkx.Graph
        Graph of N nodes whose edges have the attribute `weight`.
    communities : dict of str to int
        Community of each node.
    seed : int, default 0
        Seed of the layout.

    Returns
    -------
    numpy.ndarray
        Positions in the order of the nodes, N x 2, in node widths: two nodes are about 1 apart or more.
    """
    nodes = list(graph)
    groups: dict[int, list[str]] = {}
    for node in nodes:
        groups.setdefault(communities[node], []).append(node)
    numbers = sorted(groups)
    inner = {number: _lay_out_community(graph, groups[number], seed) for number in numbers}
    radii = np.array([np.linalg.norm(inner[n], axis=1).max(initial=0.0) + 0.8 * NODE_DISTANCE for n in numbers])
    between: nx.Graph = nx.Graph()
    between.add_nodes_from(numbers)
    for u, v, weight in graph.edges(data="weight", default=1.0):
        one, two = sorted((communities[u], communities[v]))
        if one != two:
            before = between.get_edge_data(one, two, {"weight": 0.0})["weight"]
            between.add_edge(one, two, weight=before + weight)
    centres = _spring(between, seed) * np.sqrt((radii**2).sum())
    centres = _spread(centres, radii)
    shapes = [centre + inner[number] for centre, number in zip(centres, numbers, strict=True)]
    position = {
        node: point
        for number, shape in zip(numbers, _contract(shapes), strict=True)
        for node, point in zip(groups[number], shape, strict=True)
    }
    return np.array([position[node] for node in nodes]).reshape(-1, 2)


def _contract(shapes: list[np.ndarray], rounds: int = 40) -> list[np.ndarray]:
    """Move groups of points as a whole towards the middle, as far as the others leave room."""
    shapes = [shape.copy() for shape in shapes]
    middle = np.concatenate(shapes).mean(0) if shapes else np.zeros(2)
    for _ in range(rounds):
        moved = False
        for k in sorted(range(len(shapes)), key=lambda k: float(np.linalg.norm(shapes[k].mean(0) - middle))):
            rest = [shape for other, shape in enumerate(shapes) if other != k]
            if not rest:
                return shapes
            tree = cKDTree(np.concatenate(rest))
            for share in (0.3, 0.1, 0.03):
                candidate = shapes[k] + share * (middle - shapes[k].mean(0))
                if tree.query(candidate, p=np.inf)[0].min() >= COMMUNITY_DISTANCE:
                    shapes[k], moved = candidate, True
                    break
        if not moved:
            break
    return shapes
