"""Where the nodes of a neighbour graph lie on a page: by community, no two on top of each other. Seeded."""

from __future__ import annotations

import networkx as nx
import numpy as np
from scipy.spatial import cKDTree

NODE_DISTANCE = 1.0  # the least distance of two nodes; a node's image is a little smaller
COMMUNITY_DISTANCE = 1.5  # that of nodes of two communities


def _spring(graph: nx.Graph, seed: int) -> np.ndarray:
    """Return N x 2 positions of a seeded spring layout, the mean at the origin."""
    if len(graph) < 2:
        return np.zeros((len(graph), 2))
    found = nx.spring_layout(graph, seed=seed, iterations=60, weight="weight")
    points = np.array([found[node] for node in graph])
    return points - points.mean(0)


def _spread(points: np.ndarray, radii: np.ndarray, rounds: int = 400, squares: bool = False) -> np.ndarray:
    """Return the points pushed apart until no two circles of these radii overlap (or the rounds are over).

    With `squares` the radii are half the sides of squares instead.
    """
    points, reach = points.copy(), 2 * radii.max(initial=0.0)
    for _ in range(rounds):
        pairs = cKDTree(points).query_pairs(reach, p=np.inf if squares else 2, output_type="ndarray")
        one, two = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))].T
        gap = points[two] - points[one]
        if squares:  # squares part along the axis in which they overlap less
            wider = np.abs(gap).argmax(axis=1)
            gap = np.where(np.arange(2) == wider[:, None], gap, 0.0)
        distance = np.maximum(np.linalg.norm(gap, axis=1), 1e-9)
        lacking = radii[one] + radii[two] - distance
        close = lacking > 1e-3
        if not close.any():
            break
        push = (gap / distance[:, None] * (lacking / 2 + 1e-3)[:, None])[close]
        np.add.at(points, one[close], -push)
        np.add.at(points, two[close], push)
    return points


def _within(graph: nx.Graph, members: list[str], seed: int) -> np.ndarray:
    """Return the positions of one community's members around the origin."""
    inside: nx.Graph = nx.Graph()
    inside.add_nodes_from(members)  # in this order: that of a subgraph's nodes differs from process to process
    inside.add_weighted_edges_from((u, v, graph[u][v]["weight"]) for u in members for v in graph[u] if v in inside)
    points = _spring(inside, seed)
    wanted = 0.7 * np.sqrt(len(members)) * NODE_DISTANCE
    points = points * wanted / max(np.abs(points).max(initial=0.0), 1e-9)
    # two nodes at one place have no direction to part in
    points = points + 1e-3 * np.random.default_rng(seed).standard_normal(points.shape)
    return _spread(points - points.mean(0), np.full(len(members), NODE_DISTANCE / 2), squares=True)


def lay_out_graph(graph: nx.Graph, communities: dict[str, int], seed: int = 0) -> np.ndarray:
    """Return positions of a graph's nodes, N x 2 in its order: communities apart, springs within each.

    Distances are in node widths: two nodes are about 1 apart or more. Communities that share strong edges lie
    near each other; those without any lie around the rest.
    """
    nodes = list(graph)
    groups: dict[int, list[str]] = {}
    for node in nodes:
        groups.setdefault(communities[node], []).append(node)
    numbers = sorted(groups)
    inner = {number: _within(graph, groups[number], seed) for number in numbers}
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
        for number, shape in zip(numbers, _drawn_in(shapes), strict=True)
        for node, point in zip(groups[number], shape, strict=True)
    }
    return np.array([position[node] for node in nodes]).reshape(-1, 2)


def _drawn_in(shapes: list[np.ndarray], rounds: int = 40) -> list[np.ndarray]:
    """Return groups of points moved as wholes towards the middle, as far as the others leave room."""
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
                tried = shapes[k] + share * (middle - shapes[k].mean(0))
                if tree.query(tried, p=np.inf)[0].min() >= COMMUNITY_DISTANCE:
                    shapes[k], moved = tried, True
                    break
        if not moved:
            break
    return shapes
