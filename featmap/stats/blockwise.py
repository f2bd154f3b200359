"""Profile similarity of a whole network, block by block: A is read a few rows at a time and S never held whole.

S is that of `featmap.stats.cross_layer.profile`: every feature's responses to the same images (those of all layers'
live features), as signed square roots, standardised, centred by image within the feature's own layer, and correlated.
Kept of it are each feature's nearest others, its best partner in each layer, and how good a partner chance gives.

A is stored in chunks of a batch of rows, each as wide as the network has features, so that no column can be read by
itself. S is therefore computed in panels of as many of its rows as the budget takes, each by one pass over A; what a
pass reads serves the whole panel. S is symmetric: a panel begins where the earlier ones end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from featmap.stats.correlation import DIGITS, FLOOR, TINY, ColumnSimilarity, RunningMoments, signed_roots

LARGE = 3000
"""Total number of features, in two or more layers, from which they are compared block by block."""
DRAWS, CHANCE_FEATURES = 5, 1024
"""Permutations of the chance level, and features that it is computed from."""
PANEL_BYTES = 256 * 2**20
"""Bytes that a panel of S may take."""
SLICE_CELLS = 2**22
"""Cells of S that are sorted at once."""

Progress = Callable[[int, int], None]
BlockReader = Callable[[], Iterator[np.ndarray]]


def is_large(channels: Sequence[int]) -> bool:
    """Check whether layers of so many features are compared block by block.

    Parameters
    ----------
    channels : sequence of int
        Number of features of each layer.

    Returns
    -------
    bool
        True from `LARGE` features of two or more layers on.
    """
    return len(channels) > 1 and sum(channels) >= LARGE


def block_rows(features: int, chunk: int) -> int:
    """Compute how many rows of A to read at once.

    Parameters
    ----------
    features : int
        Columns of A.
    chunk : int
        Rows of a stored chunk.

    Returns
    -------
    int
        Rows of whole chunks that take about 32 MiB in float64.
    """
    return max(1, SLICE_CELLS // (max(features, 1) * chunk)) * chunk


def memory_needed(features: int) -> int:
    """Estimate the memory that `compare` takes.

    Parameters
    ----------
    features : int
        Columns of A.

    Returns
    -------
    int
        Bytes.
    """
    # panel, its S, a permuted copy and a product; the sampled profiles; eight arrays of the size of a sorted slice
    return 4 * PANEL_BYTES + 8 * features * min(CHANCE_FEATURES, features) + 8 * 8 * SLICE_CELLS


@dataclass(frozen=True, eq=False)
class SimilarityOverview:
    """Nearest features, best partners and chance level of F features of L layers.

    Parameters
    ----------
    images : int
        Number of images that profiles are computed from.
    defined : numpy.ndarray
        Whether the feature has a profile, F booleans.
    nearest, similarity : numpy.ndarray
        Positions of the k features most similar to each with S above 0, the most similar first, ties by position, and
        their S: F x k; -1 and NaN where there are fewer.
    partner, best : numpy.ndarray
        Position of the most similar feature of each layer, and its S, in [-1, 1]: F x L; -1 and NaN in the feature's
        own layer and where nothing is defined.
    floors : numpy.ndarray
        Mean best similarity that chance gives from each layer in each other, for each draw: draws x L x L; NaN where
        nothing is defined.
    """

    images: int
    defined: np.ndarray
    nearest: np.ndarray
    similarity: np.ndarray
    partner: np.ndarray
    best: np.ndarray
    floors: np.ndarray


@dataclass(frozen=True)
class ChanceSettings:
    """How the chance level of `compare` is computed.

    The floor of layers l and m is the mean, over up to ``sample / L`` features of l drawn at random, of the highest
    correlation with a feature of m, each of which has been permuted over the images independently of the others.

    Parameters
    ----------
    draws : int, default 5
        Permutations.
    sample : int, default 1024
        Features of all L layers together that the level is computed from.
    seed : int, default 0
        Seed of sample and permutations.
    """

    draws: int = DRAWS
    sample: int = CHANCE_FEATURES
    seed: int = 0


def compare(
    rows: BlockReader,
    groups: Sequence[slice],
    k: int,
    *,
    chance: ChanceSettings | None = None,
    budget: int = PANEL_BYTES,
    progress: Progress | None = None,
) -> SimilarityOverview:
    """Compare the profiles of F features of L layers.

    Parameters
    ----------
    rows : callable
        Called for each pass over A; yields the same blocks each time, images x F, NaN where not finite. Images to which
        a layer has no finite response at all are left out.
    groups : sequence of slice
        Columns of each layer, one after another, all F of them.
    k : int
        Nearest features to keep.
    chance : ChanceSettings, optional
        How the chance level is computed.
    budget : int, default 256 MiB
        Bytes that a panel of S may take; it changes results by the rounding of sums only.
    progress : callable, optional
        Called with (done, total) features.

    Returns
    -------
    SimilarityOverview
        Similarities in [-1, 1]; equal to the dense formula but for the order of sums.
    """
    report = progress or (lambda done, total: None)
    moments = _column_moments(rows, groups)
    profiles, level = _normalise(rows, moments, groups, chance or ChanceSettings())
    D = len(profiles.columns)
    best = _Best.empty(D, k, profiles.cuts)
    width = max(1, budget // (8 * max(D, 1)))
    # Both halves of S come from the upper one: later panels start further right, which halves the products.
    for first in range(0, D, width):
        report(first, D)
        panel, S = _panel(profiles, rows, first, min(first + width, D))
        best.add(S, first)
        level.add(panel, first, profiles)
    report(D, D)
    return _overview(best, level, profiles)


def correlate(
    rows: BlockReader, features: int | Sequence[slice], progress: Progress | None = None, roots: bool = True
) -> ColumnSimilarity:
    """Compute the profile similarity of features in two passes over A.

    The first pass takes the moments of the columns, the second sums the products of what centring by image leaves.

    Parameters
    ----------
    rows : callable
        Called for each pass over A; yields the same blocks each time, images x F, NaN where not finite.
    features : int or sequence of slice
        Number F of columns of one layer, or the columns of each layer, one after another, all F of them.
    progress : callable, optional
        Called with (done, total) blocks of both passes.
    roots : bool, default True
        As in `featmap.stats.measures.unit_profiles`.

    Returns
    -------
    ColumnSimilarity
        S as `featmap.stats.measures.profile` gives it for all rows and columns, and between layers as
        `featmap.stats.cross_layer.profile` does, but for the order of sums.
    """
    report, done = progress or (lambda done, total: None), 0
    moments = _column_moments(rows, [slice(0, features)] if isinstance(features, int) else features, roots)
    D, total = len(moments.used), 2 * len(moments.rows)
    report(len(moments.rows), total)
    width = max(1, SLICE_CELLS // max(D, 1))
    panels = [slice(a, min(a + width, D)) for a in range(0, D, width)]
    S = np.zeros((D, D))
    for done, Z in enumerate(moments.centred_blocks(rows), 1):
        # in panels, so that no product as large as S is held beside it; the columns' means are 0 already
        for panel in panels:
            S[panel, panel.start :] += Z[:, panel].T @ Z[:, panel.start :]
        report(len(moments.rows) + done, total)
    length = np.sqrt(S.diagonal())
    length = np.where(length > FLOOR * np.sqrt(max(moments.images, 1)), length, np.nan)
    for panel in panels:
        S[panel, panel.start :] /= length[panel, None] * length[panel.start :]
        upper = np.triu(S[panel, panel])
        S[panel, panel] = upper + np.triu(upper, 1).T
        S[panel.stop :, panel] = S[panel, panel.stop :].T
    np.clip(S, -1.0, 1.0, out=S)
    S[np.arange(D), np.arange(D)] = np.where(np.isfinite(length), 1.0, np.nan)
    return ColumnSimilarity(moments.used, S, moments.images, moments.means, moments.deviations)


@dataclass(frozen=True, eq=False)
class _Moments:
    """Which rows of each block and which columns count, what standardises these, and the moments of all columns.

    `scale`, `mean` and `deviation` are those of the values that S is computed from (`roots`: of signed roots), for the
    columns in use; `means` and `deviations` those of the responses, for all columns.
    """

    features: int
    roots: bool
    rows: list[np.ndarray]
    used: np.ndarray
    scale: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    cuts: list[slice]
    means: np.ndarray
    deviations: np.ndarray

    @property
    def images(self) -> int:
        """Number of rows that count."""
        return int(sum(keep.sum() for keep in self.rows))

    def centred_blocks(self, rows: BlockReader) -> Iterator[np.ndarray]:
        """Yield the standardised columns block by block, less each image's mean over a layer."""
        for X, keep in zip(rows(), self.rows, strict=True):
            values = X[keep][:, self.used]
            values = signed_roots(values) if self.roots else values
            Z = (values / self.scale - self.mean) / self.deviation
            # A row holds all layers, so centring by image needs no second pass over A.
            for cut in self.cuts:
                Z[:, cut] -= Z[:, cut].sum(axis=1, keepdims=True) / max(cut.stop - cut.start, 1)
            yield Z


def _column_moments(rows: BlockReader, groups: Sequence[slice], roots: bool = True) -> _Moments:
    """Compute the moments of every column in one pass, merged from those of the blocks."""
    F, keep = groups[-1].stop, []
    plain, of_values, complete = RunningMoments(F), RunningMoments(F), np.ones(F, dtype=bool)
    for X in rows():
        finite = np.isfinite(X)
        good = np.all([finite[:, g].any(axis=1) for g in groups], axis=0)
        keep.append(good)
        if not good.any():
            continue
        complete &= finite[good].all(axis=0)
        block = np.where(finite[good], X[good], 0.0).astype(np.float64)
        plain.add(block)
        of_values.add(signed_roots(block) if roots else block)
    scale = np.where(of_values.largest > TINY, of_values.largest, np.nan)
    deviation = of_values.deviation / scale
    # As in the dense formula, a column with a hole has no profile: pairs would else be taken over different images.
    used = np.flatnonzero(complete & (deviation > FLOOR))
    whole = complete & (plain.count > 0)
    varying = np.where(deviation > FLOOR, plain.deviation, 0.0)
    means, deviations = (np.where(whole, v, np.nan) for v in (plain.mean, varying))
    standard = scale[used], (of_values.mean / scale)[used], deviation[used]
    return _Moments(F, roots, keep, used, *standard, _cuts(used, groups), means, deviations)


def _cuts(positions: np.ndarray, groups: Sequence[slice]) -> list[slice]:
    """Find the range of each group's members among sorted positions."""
    ends = np.searchsorted(positions, [groups[0].start, *(g.stop for g in groups)])
    return [slice(int(a), int(b)) for a, b in pairwise(ends)]


@dataclass(frozen=True, eq=False)
class _Profiles:
    """Columns that have a profile: positions among the features and in `moments.used`; their mean and length."""

    moments: _Moments
    columns: np.ndarray
    within: np.ndarray
    mean: np.ndarray
    norm: np.ndarray
    cuts: list[slice]

    def blocks(self, rows: BlockReader) -> Iterator[np.ndarray]:
        """Yield rows of the profiles, whose columns have length 1, block by block."""
        for Z in self.moments.centred_blocks(rows):
            yield (Z[:, self.within] - self.mean) / self.norm


def _normalise(
    rows: BlockReader, moments: _Moments, groups: Sequence[slice], chance: ChanceSettings
) -> tuple[_Profiles, _Chance]:
    """Find which columns have a profile, and keep those that the chance level is computed from, in one pass."""
    width, N = len(moments.used), max(moments.images, 1)
    total, squares, blocks = np.zeros(width), np.zeros(width), []
    wanted = _sample_columns(moments, chance.sample, chance.seed)
    for Z in moments.centred_blocks(rows):
        total += Z.sum(axis=0)
        squares += (Z**2).sum(axis=0)
        blocks.append(Z[:, wanted])
    # The difference may come out below 0 by rounding, for a column that centring has made constant.
    norm = np.sqrt(np.maximum(squares - total**2 / N, 0.0))
    varies = (np.sqrt(squares / N) > FLOOR) & (norm > 0)
    within = np.flatnonzero(varies)
    columns = moments.used[within]
    profiles = _Profiles(moments, columns, within, (total / N)[varies], norm[varies], _cuts(columns, groups))
    sampled = varies[wanted]
    at = wanted[sampled]
    left = (np.concatenate(blocks)[:, sampled] - total[at] / N) / norm[at]
    layer = np.searchsorted([c.stop for c in moments.cuts], at, side="right")
    return profiles, _Chance(left, layer, chance.seed, np.full((chance.draws, len(at), len(groups)), -np.inf))


def _sample_columns(moments: _Moments, sample: int, seed: int) -> np.ndarray:
    """Draw some of each layer's columns at random; return their positions among the columns in use."""
    rng = np.random.Generator(np.random.PCG64([seed, 0]))
    share = max(1, sample // max(len(moments.cuts), 1))
    drawn = [c.start + rng.permutation(c.stop - c.start)[:share] for c in moments.cuts]
    # Sorted, so that a block's columns are read in the order in which they lie in memory.
    return np.sort(np.concatenate(drawn)).astype(np.intp)


def _panel(profiles: _Profiles, rows: BlockReader, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute profiles `first` to `last` as columns, and their S with each from `first` on, NaN with themselves."""
    S = np.zeros((last - first, len(profiles.columns) - first))
    panel, at = np.empty((profiles.moments.images, last - first)), 0
    for Z in profiles.blocks(rows):
        own = Z[:, first:last]
        panel[at : at + len(Z)] = own
        S += own.T @ Z[:, first:]
        at += len(Z)
    # Rounded as in the dense tables, so that ties are ties whatever the size of blocks and panels.
    np.round(np.clip(S, -1.0, 1.0, out=S), DIGITS, out=S)
    S[np.arange(last - first), np.arange(last - first)] = np.nan
    return panel, S


@dataclass(frozen=True, eq=False)
class _Best:
    """The highest S of each profile so far: the k highest above 0, and the highest in each layer."""

    cuts: list[slice]
    nearest: np.ndarray
    similarity: np.ndarray
    partner: np.ndarray
    best: np.ndarray

    @staticmethod
    def empty(count: int, k: int, cuts: list[slice]) -> _Best:
        """Create it without any similarity."""
        nearest = np.full((count, k), -1, dtype=np.int64), np.full((count, k), np.nan)
        partner = np.full((count, len(cuts)), -1, dtype=np.int64), np.full((count, len(cuts)), -np.inf)
        return _Best(cuts, *nearest, *partner)

    def add(self, S: np.ndarray, first: int) -> None:
        """Add a panel: rows from `first` with columns from `first`, and the cells below it by symmetry."""
        self._add_rows(S, first, first)
        self._add_rows(S[:, len(S) :].T, first + len(S), first)

    def _add_rows(self, S: np.ndarray, row: int, column: int) -> None:
        """Add cells of S that begin at a row and a column; for each row, columns must come in rising order."""
        step = max(1, SLICE_CELLS // max(S.shape[1], 1))
        for a in range(0, len(S), step):
            cells = np.nan_to_num(S[a : a + step], nan=-np.inf)
            at = slice(row + a, row + a + len(cells))
            for layer, cut in enumerate(self.cuts):
                left, right = max(cut.start - column, 0), min(cut.stop - column, cells.shape[1])
                if right > left:
                    high = cells[:, left:right].argmax(axis=1)
                    value = cells[np.arange(len(cells)), left + high]
                    # Only a higher value replaces an earlier one: columns rise, so ties go to the lower position.
                    better = value > self.best[at, layer]
                    self.best[at, layer][better] = value[better]
                    self.partner[at, layer][better] = column + left + high[better]
            self._add_nearest(cells, at, column)

    def _add_nearest(self, cells: np.ndarray, at: slice, column: int) -> None:
        """Merge the k highest cells of each row with the k highest so far."""
        k = self.nearest.shape[1]
        # A partial sort leaves few candidates, ties with the k-th among them; the full sort below ranks only these.
        least = np.partition(cells, -k, axis=1)[:, -k] if cells.shape[1] > k else np.full(len(cells), -np.inf)
        r, c = np.nonzero((cells >= least[:, None]) & (cells > 0))
        earlier = np.nonzero(self.nearest[at] >= 0)
        row = np.concatenate([earlier[0], r])
        value = np.concatenate([self.similarity[at][earlier], cells[r, c]])
        place = np.concatenate([self.nearest[at][earlier], c + column])
        order = np.lexsort((place, -value, row))
        row = row[order]
        rank = np.arange(len(row)) - np.searchsorted(row, row)
        order, row, rank = order[rank < k], row[rank < k], rank[rank < k]
        self.nearest[at][row, rank] = place[order]
        self.similarity[at][row, rank] = value[order]


@dataclass(frozen=True, eq=False)
class _Chance:
    """Some profiles with their layers, and the highest S of each with each layer's permuted profiles, by draw."""

    left: np.ndarray
    layer: np.ndarray
    seed: int
    best: np.ndarray

    def add(self, panel: np.ndarray, first: int, profiles: _Profiles) -> None:
        """Add a panel of profiles, each permuted over the images."""
        for draw in range(len(self.best)):
            permuted = np.empty_like(panel)
            for j in range(panel.shape[1]):
                # A generator for each feature: the permutation does not depend on the panel that it lies in.
                key = [self.seed, 1 + draw, int(profiles.columns[first + j])]
                permuted[:, j] = np.random.Generator(np.random.PCG64(key)).permutation(panel[:, j])
            S = np.clip(self.left.T @ permuted, -1.0, 1.0)
            for layer, cut in enumerate(profiles.cuts):
                a, b = max(cut.start - first, 0), min(cut.stop - first, panel.shape[1])
                if b > a:
                    self.best[draw, :, layer] = np.maximum(self.best[draw, :, layer], S[:, a:b].max(axis=1))

    def floors(self, layers: int) -> np.ndarray:
        """Average over each layer's profiles, draws x L x L."""
        means = np.full((len(self.best), layers, layers), np.nan)
        for layer in np.unique(self.layer):
            means[:, layer] = self.best[:, self.layer == layer].mean(axis=1)
        means[:, np.arange(layers), np.arange(layers)] = np.nan
        return np.where(np.isfinite(means), means, np.nan)


def _overview(best: _Best, chance: _Chance, profiles: _Profiles) -> SimilarityOverview:
    """Expand the similarities of profiles to the positions of all features."""
    F, columns, layers, k = profiles.moments.features, profiles.columns, len(profiles.cuts), best.nearest.shape[1]
    own = np.concatenate([np.full(c.stop - c.start, k) for k, c in enumerate(profiles.cuts)]).astype(np.intp)
    # The nearest features may be in the same layer; partners are features of other layers only.
    best.best[np.arange(len(own)), own] = -np.inf
    undefined = ~np.isfinite(best.best)
    positions = np.append(columns, -1)  # position -1 stays -1
    overview = SimilarityOverview(
        profiles.moments.images,
        np.isin(np.arange(F), columns),
        np.full((F, k), -1, dtype=np.int64),
        np.full((F, k), np.nan),
        np.full((F, layers), -1, dtype=np.int64),
        np.full((F, layers), np.nan),
        chance.floors(layers),
    )
    overview.nearest[columns], overview.similarity[columns] = positions[best.nearest], best.similarity
    overview.partner[columns] = positions[np.where(undefined, -1, best.partner)]
    overview.best[columns] = np.where(undefined, np.nan, best.best)
    return overview
