"""What colours images hold: their dominant colour, how flat they are, whether colours form a palette. No torch.

Colours are compared in OKLab (Ottosson, 2020, https://bottosson.github.io/posts/oklab/), whose plane (a, b) is that of
opponent colours: a from green (negative) to red, b from blue (negative) to yellow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist, squareform

from featmap.rng import generator

CELLS = 8
GRAY_CHROMA = 0.04
"""Chroma below which a colour has no hue: the saturated colours of sRGB have 0.15 to 0.32."""
MAX_CLUSTERS, DRAWS = 6, 199
_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
HUES = {
    "red": (1, 0, 0),
    "yellow": (1, 1, 0),
    "green": (0, 1, 0),
    "cyan": (0, 1, 1),
    "blue": (0, 0, 1),
    "magenta": (1, 0, 1),
}


def oklab(rgb: np.ndarray) -> np.ndarray:
    """Return sRGB colours in [0, 1], ... x 3, as OKLab: lightness in [0, 1], a and b within about 0.32 of 0."""
    given = np.clip(np.asarray(rgb, dtype=np.float64), 0, 1)
    linear = np.where(given <= 0.04045, given / 12.92, ((given + 0.055) / 1.055) ** 2.4)
    found: np.ndarray = np.cbrt(linear @ _LMS.T) @ _LAB.T
    return found


def dominant_colour(image: np.ndarray) -> np.ndarray:
    """Return the commonest colour of an image (3 x H x W, clipped to [0, 1]): sRGB in [0, 1].

    It is the mean of the pixels in the fullest of 8 x 8 x 8 cells of the colour cube; ties go to the darker cell.
    """
    pixels = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.5, posinf=1, neginf=0).clip(0, 1).reshape(3, -1).T
    cells = np.minimum((pixels * CELLS).astype(int), CELLS - 1)
    number = cells @ (CELLS**2, CELLS, 1)
    fullest = np.bincount(number, minlength=CELLS**3).argmax()
    found: np.ndarray = pixels[number == fullest].mean(axis=0)
    return found


def flatness(images: np.ndarray) -> np.ndarray:
    """Return the share of each image's deviation from middle gray that its mean colour holds.

    N values in [0, 1] for images N x 3 x H x W in [0, 1]: 1 for one colour all over, 0 for a pattern about gray. NaN
    for an image that is gray throughout or not finite.
    """
    away = np.asarray(images, dtype=np.float64) - 0.5
    whole = np.square(away).mean((2, 3)).sum(1)
    held = np.square(away.mean((2, 3))).sum(1)
    found: np.ndarray = held / np.where(np.isfinite(whole) & (whole > 1e-12), whole, np.nan)
    return found


def hue_name(lab: np.ndarray) -> str:
    """Return a colour's name: the nearest of `CORNERS` by hue; black, gray, white below a chroma of `GRAY`."""
    light, a, b = (float(v) for v in lab)
    if np.hypot(a, b) < GRAY_CHROMA:
        return "black" if light < 0.25 else "white" if light > 0.9 else "gray"
    corners = oklab(np.array(list(HUES.values())))
    angles = np.arctan2(corners[:, 2], corners[:, 1]) - np.arctan2(b, a)
    return list(HUES)[int(np.cos(angles).argmax())]


def mean_silhouette(distances: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean silhouette of n points from their distances, n x n: in [-1, 1], high for clusters far apart.

    A point alone in its cluster counts 0. NaN for one cluster. Source: Rousseeuw (1987, 10.1016/0377-0427(87)90125-7).
    """
    names, numbers = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        return float("nan")
    member = np.eye(len(names))[numbers]
    size = member.sum(0)
    sums = distances @ member
    own = member.astype(bool)
    inside = sums[own] / np.maximum(size[numbers] - 1, 1)
    nearest = np.where(own, np.inf, sums / size).min(1)
    larger = np.maximum(inside, nearest)
    scores = np.where((size[numbers] > 1) & (larger > 0), (nearest - inside) / np.where(larger > 0, larger, 1), 0.0)
    return float(scores.mean())


@dataclass(frozen=True, eq=False)
class Palette:
    """Clusters of colours: each colour's cluster (0 the largest), their mean silhouette, and p against one cloud.

    All colours are in cluster 0 and the rest is NaN where there are fewer than four, or all are alike.
    """

    labels: np.ndarray
    mean_silhouette: float
    p: float

    @property
    def count(self) -> int:
        """The number of clusters."""
        return int(self.labels.max(initial=0)) + 1


def _best_clustering(points: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the largest mean silhouette over 2 to `MOST` clusters (Ward's), and the clusters."""
    distances = pdist(points)
    tree, square = linkage(points, method="ward"), squareform(distances)
    found = []
    for k in range(2, min(MAX_CLUSTERS, len(points) - 1) + 1):
        labels = fcluster(tree, t=k, criterion="maxclust")
        found.append((mean_silhouette(square, labels), k, labels))
    best = max((f for f in found if np.isfinite(f[0])), key=lambda f: (f[0], -f[1]))
    return best[0], best[2]


def fit_palette(points: np.ndarray, draws: int = DRAWS) -> Palette:
    """Return the clusters of n colours in the opponent plane, n x 2, tested against one Gaussian cloud.

    The number of clusters is that of 2 to 6 with the largest mean silhouette; p is the share of draws, of as
    many points from a Gaussian with the same mean and covariance, whose largest silhouette reaches it:
    (1 + b) / (draws + 1).
    """
    n = len(points)
    if n < 4 or not np.ptp(points.round(9), axis=0).any():
        return Palette(np.zeros(n, dtype=int), float("nan"), float("nan"))
    value, labels = _best_clustering(points)
    rng = generator("palette", n, draws)
    mean, spread = points.mean(0), np.cov(points.T) + 1e-12 * np.eye(2)
    reached = sum(_best_clustering(rng.multivariate_normal(mean, spread, size=n))[0] >= value for _ in range(draws))
    _, first, inverse, size = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(size), dtype=int)
    rank[np.lexsort((first, -size))] = np.arange(len(size))
    return Palette(rank[inverse], value, (1 + int(reached)) / (draws + 1))
