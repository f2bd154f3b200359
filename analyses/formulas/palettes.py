"""Colours of images: the dominant colour, how flat an image is, and whether colours form a palette, without torch.

Colours are compared in OKLab (Ottosson, 2020, https://bottosson.github.io/posts/oklab/), whose plane (a, b) is that of
the opponent colours: a from green (negative) to red, b from blue (negative) to yellow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist, squareform

from featmap.rng import generator
from featmap.stats.correlation import VARIANCE_FLOOR

CELLS = 8
"""Cells of the colour cube along each side."""
GRAY_CHROMA = 0.04
"""Chroma below which a colour has no hue: the saturated colours of sRGB have 0.15 to 0.32."""
MAX_CLUSTERS, DRAWS = 6, 199
"""Most clusters of a palette, and draws of its null distribution."""
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
    """Convert sRGB colours to OKLab.

    Parameters
    ----------
    rgb : numpy.ndarray
        Colours, `... x 3`, clipped to [0, 1].

    Returns
    -------
    numpy.ndarray
        `... x 3`: lightness in [0, 1], a and b within about 0.32 of 0.
    """
    encoded = np.clip(np.asarray(rgb, dtype=np.float64), 0, 1)
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    lab: np.ndarray = np.cbrt(linear @ _LMS.T) @ _LAB.T
    return lab


def dominant_colour(image: np.ndarray) -> np.ndarray:
    """Find the most common colour of an image.

    It is the mean of the pixels in the fullest of 8 x 8 x 8 cells of the colour cube; ties go to the darker cell.

    Parameters
    ----------
    image : numpy.ndarray
        Image, `3 x H x W`, clipped to [0, 1].

    Returns
    -------
    numpy.ndarray
        sRGB, 3 values in [0, 1].
    """
    pixels = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.5, posinf=1, neginf=0).clip(0, 1).reshape(3, -1).T
    cells = np.minimum((pixels * CELLS).astype(int), CELLS - 1)
    number = cells @ (CELLS**2, CELLS, 1)
    fullest = np.bincount(number, minlength=CELLS**3).argmax()
    colour: np.ndarray = pixels[number == fullest].mean(axis=0)
    return colour


def flatness(images: np.ndarray) -> np.ndarray:
    """Compute how much of each image's deviation from gray its mean colour explains.

    Parameters
    ----------
    images : numpy.ndarray
        Images, `N x 3 x H x W`, in [0, 1].

    Returns
    -------
    numpy.ndarray
        N values in [0, 1]: 1 for a single colour throughout, 0 for a pattern around gray; NaN for an image that is gray
        throughout or not finite.
    """
    deviation = np.asarray(images, dtype=np.float64) - 0.5
    total = np.square(deviation).mean((2, 3)).sum(1)
    flat = np.square(deviation.mean((2, 3))).sum(1)
    share: np.ndarray = flat / np.where(np.isfinite(total) & (total > VARIANCE_FLOOR), total, np.nan)
    return share


def hue_name(lab: np.ndarray) -> str:
    """Name a colour by the nearest hue of `HUES`.

    Parameters
    ----------
    lab : numpy.ndarray
        Colour in OKLab, 3 values.

    Returns
    -------
    str
        Name of the hue; black, gray or white below a chroma of `GRAY_CHROMA`.
    """
    light, a, b = (float(v) for v in lab)
    if np.hypot(a, b) < GRAY_CHROMA:
        return "black" if light < 0.25 else "white" if light > 0.9 else "gray"
    hues = oklab(np.array(list(HUES.values())))
    angles = np.arctan2(hues[:, 2], hues[:, 1]) - np.arctan2(b, a)
    return list(HUES)[int(np.cos(angles).argmax())]


def mean_silhouette(distances: np.ndarray, labels: np.ndarray) -> float:
    """Compute the mean silhouette of a clustering.

    Parameters
    ----------
    distances : numpy.ndarray
        Distances of n points, `n x n`.
    labels : numpy.ndarray
        Cluster of each point.

    Returns
    -------
    float
        In [-1, 1], high for compact clusters far apart; a point alone in its cluster counts 0. NaN for one cluster.

    References
    ----------
    Rousseeuw (1987), Silhouettes. doi:10.1016/0377-0427(87)90125-7
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
    """Clusters of colours and the test against a single Gaussian cloud.

    Where there are fewer than four colours, or all are the same, all are in cluster 0 and the rest is NaN.

    Parameters
    ----------
    labels : numpy.ndarray
        Cluster of each colour; 0 is the largest.
    silhouette : float
        Mean silhouette of the clusters.
    p : float
        p of that silhouette under a single Gaussian cloud.
    """

    labels: np.ndarray
    silhouette: float
    p: float

    @property
    def count(self) -> int:
        """Number of clusters."""
        return int(self.labels.max(initial=0)) + 1


def _best_clustering(points: np.ndarray) -> tuple[float, np.ndarray]:
    """Find the largest mean silhouette over 2 to `MAX_CLUSTERS` clusters by Ward's linkage, and the clusters."""
    distances = pdist(points)
    tree, square = linkage(points, method="ward"), squareform(distances)
    clusterings = []
    for k in range(2, min(MAX_CLUSTERS, len(points) - 1) + 1):
        labels = fcluster(tree, t=k, criterion="maxclust")
        clusterings.append((mean_silhouette(square, labels), k, labels))
    best = max((c for c in clusterings if np.isfinite(c[0])), key=lambda c: (c[0], -c[1]))
    return best[0], best[2]


def fit_palette(points: np.ndarray, draws: int = DRAWS) -> Palette:
    """Cluster colours in the opponent plane, and test the clusters.

    The null hypothesis is a single Gaussian cloud.

    The number of clusters is the one of 2 to 6 with the largest mean silhouette. p is `(1 + b) / (draws + 1)`, where b
    is the number of draws, of as many points from a Gaussian with the same mean and covariance, whose largest mean
    silhouette reaches it.

    Parameters
    ----------
    points : numpy.ndarray
        Coordinates a and b of n colours in OKLab, `n x 2`.
    draws : int, default DRAWS
        Number of draws from the Gaussian.

    Returns
    -------
    Palette
        Clusters, their mean silhouette and p.
    """
    n = len(points)
    if n < 4 or not np.ptp(points.round(9), axis=0).any():
        return Palette(np.zeros(n, dtype=int), float("nan"), float("nan"))
    value, labels = _best_clustering(points)
    rng = generator("palette", n, draws)
    mean, spread = points.mean(0), np.cov(points.T) + VARIANCE_FLOOR * np.eye(2)
    reached = sum(_best_clustering(rng.multivariate_normal(mean, spread, size=n))[0] >= value for _ in range(draws))
    _, first, inverse, size = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(size), dtype=int)
    rank[np.lexsort((first, -size))] = np.arange(len(size))
    return Palette(rank[inverse], value, (1 + int(reached)) / (draws + 1))
