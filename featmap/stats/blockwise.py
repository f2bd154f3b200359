"""Profiles of a whole network's features, compared block by block: A is read a few rows at a time, S never held.

S is that of `featmap.stats.cross_layer.profile`: every feature's responses to the same images (those of all layers'
live
features), standardised, centred by image within the feature's own layer, correlated. Kept of it are each feature's
nearest others, its best partner in each layer, and how good a partner chance finds.

A has one chunk a batch of rows, as wide as the network has features, so that no column can be read by itself. S is
therefore made in panels of as many of its rows as the budget takes, each by one pass over A, and what a pass reads
serves the whole panel. S is symmetric: a panel begins where earlier ones end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from featmap.stats.correlation import DIGITS, FLOOR, TINY

LARGE = 3000
DRAWS, CHANCE_FEATURES = 5, 1024
PANEL_BYTES = 256 * 2**20
SLICE_CELLS = 2**22  # cells of S that are sorted at once

Progress = Callable[[int, int], None]
BlockReader = Callable[[], Iterator[np.ndarray]]


def is_large(channels: Sequence[int]) -> bool:
    """Are several layers of so many features compared block by block? So they are from `LARGE` features on."""
    return len(channels) > 1 and sum(channels) >= LARGE


def block_rows(features: int, chunk: int) -> int:
    """Return how many rows of A are read at once: whole chunks, about 32 MiB of them in float64."""
    return max(1, SLICE_CELLS // (max(features, 1) * chunk)) * chunk


def memory_needed(features: int) -> int:
    """Return about how many bytes `compare` takes for so many features."""
    return 4 * PANEL_BYTES + 8 * features * min(CHANCE_FEATURES, features) + 8 * 8 * SLICE_CELLS


@dataclass(frozen=True, eq=False)
class SimilarityOverview:
    """What is kept of S for F features of L layers.

    Attributes
    ----------
    images : how many images profiles are taken over
    defined : has the feature a profile? [F]
    nearest, similarity : the k features most like each with S above 0, the most similar first, ties by place: their
        places and S, [F, k]; -1 and NaN where there are fewer
    partner, best : the most similar feature of each layer and its S, [F, L]; -1 and NaN in the feature's own layer and
        where nothing is defined
    floors : what chance finds from each layer in each other, one a draw, [draws, L, L], NaN where nothing is defined
    """

    images: int
    defined: np.ndarray
    nearest: np.ndarray
    similarity: np.ndarray
    partner: np.ndarray
    best: np.ndarray
    floors: np.ndarray


def compare(
    rows: BlockReader,
    groups: Sequence[slice],
    k: int,
    *,
    draws: int = DRAWS,
    lefts: int = CHANCE_FEATURES,
    seed: int = 0,
    budget: int = PANEL_BYTES,
    progress: Progress | None = None,
) -> SimilarityOverview:
    """Return what is kept of the profile similarity of F features.

    Parameters
    ----------
    rows : called once a pass; yields the same blocks of A each time, images x F, NaN where not finite. Images to
        which a layer has no finite response at all are left out
    groups : the columns of each layer, one after another, all F of them
    k : nearest features to keep
    draws, lefts, seed : a floor of layers l and k is the mean, over up to lefts / L features of l drawn at random, of
        the highest correlation with a feature of k, each of whose profiles has been permuted over the images by itself
    budget : bytes that a panel of S may take; it changes no result but the rounding of sums

    In [-1, 1] throughout; equal to the dense formula but for the order of sums.
    """
    say = progress or (lambda done, total: None)
    moments = _moments(rows, groups)
    profiles, chance = _settle(rows, moments, groups, draws, lefts, seed)
    D = len(profiles.columns)
    best = _Best.empty(D, k, profiles.cuts)
    width = max(1, budget // (8 * max(D, 1)))
    for first in range(0, D, width):
        say(first, D)
        panel, S = _panel(profiles, rows, first, min(first + width, D))
        best.take(S, first)
        chance.take(panel, first, profiles)
    say(D, D)
    return _spread(best, chance, profiles)


@dataclass(frozen=True, eq=False)
class _Moments:
    """Which rows of each block and which columns count, what standardises these; `cuts` are each layer's of them."""

    features: int
    keep: list[np.ndarray]
    used: np.ndarray
    scale: np.ndarray
    mean: np.ndarray
    spread: np.ndarray
    cuts: list[slice]

    @property
    def images(self) -> int:
        return int(sum(k.sum() for k in self.keep))

    def centred(self, rows: BlockReader) -> Iterator[np.ndarray]:
        """Yield the standardised columns, each image's mean over a layer taken off, by block."""
        for X, keep in zip(rows(), self.keep, strict=True):
            Z = (X[keep][:, self.used] / self.scale - self.mean) / self.spread
            for cut in self.cuts:
                Z[:, cut] -= Z[:, cut].sum(axis=1, keepdims=True) / max(cut.stop - cut.start, 1)
            yield Z


def _moments(rows: BlockReader, groups: Sequence[slice]) -> _Moments:
    """Return the moments of every column in one pass: those of blocks, merged (Chan et al. 1979)."""
    F = groups[-1].stop
    count, keep = 0, []
    mean, squares, largest, whole = np.zeros(F), np.zeros(F), np.zeros(F), np.ones(F, dtype=bool)
    for X in rows():
        finite = np.isfinite(X)
        good = np.all([finite[:, g].any(axis=1) for g in groups], axis=0)
        keep.append(good)
        if not good.any():
            continue
        whole &= finite[good].all(axis=0)
        part = np.where(finite[good], X[good], 0.0).astype(np.float64)
        n, middle = len(part), part.mean(axis=0)
        squares += ((part - middle) ** 2).sum(axis=0) + (middle - mean) ** 2 * (count * n / (count + n))
        mean += (middle - mean) * (n / (count + n))
        largest = np.maximum(largest, np.abs(part).max(axis=0))
        count += n
    scale = np.where(largest > TINY, largest, np.nan)
    spread = np.sqrt(squares / max(count, 1)) / scale
    used = np.flatnonzero(whole & (spread > FLOOR))
    return _Moments(F, keep, used, scale[used], (mean / scale)[used], spread[used], _cuts(used, groups))


def _cuts(chosen: np.ndarray, groups: Sequence[slice]) -> list[slice]:
    """Return where each group's members lie among the chosen places, which are sorted."""
    ends = np.searchsorted(chosen, [groups[0].start, *(g.stop for g in groups)])
    return [slice(int(a), int(b)) for a, b in pairwise(ends)]


@dataclass(frozen=True, eq=False)
class _Profiles:
    """Columns that have a profile: their places among the features, in `moments.used`, and what makes length 1."""

    moments: _Moments
    columns: np.ndarray
    within: np.ndarray
    middle: np.ndarray
    norm: np.ndarray
    cuts: list[slice]

    def blocks(self, rows: BlockReader) -> Iterator[np.ndarray]:
        """Yield rows of the profiles, whose columns have length 1, by block."""
        for Z in self.moments.centred(rows):
            yield (Z[:, self.within] - self.middle) / self.norm


def _settle(
    rows: BlockReader, moments: _Moments, groups: Sequence[slice], draws: int, lefts: int, seed: int
) -> tuple[_Profiles, _Chance]:
    """Return which columns have a profile, and some of these whose partners by chance are looked for: one pass."""
    width, N = len(moments.used), max(moments.images, 1)
    total, squares, kept = np.zeros(width), np.zeros(width), []
    wanted = _drawn(moments, lefts, seed)
    for Z in moments.centred(rows):
        total += Z.sum(axis=0)
        squares += (Z**2).sum(axis=0)
        kept.append(Z[:, wanted])
    norm = np.sqrt(np.maximum(squares - total**2 / N, 0.0))
    alive = (np.sqrt(squares / N) > FLOOR) & (norm > 0)
    within = np.flatnonzero(alive)
    columns = moments.used[within]
    profiles = _Profiles(moments, columns, within, (total / N)[alive], norm[alive], _cuts(columns, groups))
    living = alive[wanted]
    at = wanted[living]
    left = (np.concatenate(kept)[:, living] - total[at] / N) / norm[at]
    layer = np.searchsorted([c.stop for c in moments.cuts], at, side="right")
    return profiles, _Chance(left, layer, seed, np.full((draws, len(at), len(groups)), -np.inf))


def _drawn(moments: _Moments, lefts: int, seed: int) -> np.ndarray:
    """Return the places among the columns in use of some of each layer's, drawn at random."""
    rng = np.random.Generator(np.random.PCG64([seed, 0]))
    share = max(1, lefts // max(len(moments.cuts), 1))
    drawn = [c.start + rng.permutation(c.stop - c.start)[:share] for c in moments.cuts]
    return np.sort(np.concatenate(drawn)).astype(np.intp)


def _panel(profiles: _Profiles, rows: BlockReader, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """Return profiles `first` to `last` as columns, and their S with each from `first` on, NaN with themselves."""
    S = np.zeros((last - first, len(profiles.columns) - first))
    panel, at = np.empty((profiles.moments.images, last - first)), 0
    for Z in profiles.blocks(rows):
        mine = Z[:, first:last]
        panel[at : at + len(Z)] = mine
        S += mine.T @ Z[:, first:]
        at += len(Z)
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
        """Return it before anything is known."""
        nothing = np.full((count, k), -1, dtype=np.int64), np.full((count, k), np.nan)
        none = np.full((count, len(cuts)), -1, dtype=np.int64), np.full((count, len(cuts)), -np.inf)
        return _Best(cuts, *nothing, *none)

    def take(self, S: np.ndarray, first: int) -> None:
        """Take in a panel: rows from `first` with columns from `first`, and what lies below it by symmetry."""
        self._rows(S, first, first)
        self._rows(S[:, len(S) :].T, first + len(S), first)

    def _rows(self, S: np.ndarray, row: int, column: int) -> None:
        """Take in some cells of S whose first row and column are given; columns may only come in rising order."""
        step = max(1, SLICE_CELLS // max(S.shape[1], 1))
        for a in range(0, len(S), step):
            part = np.nan_to_num(S[a : a + step], nan=-np.inf)
            at = slice(row + a, row + a + len(part))
            for layer, cut in enumerate(self.cuts):
                left, right = max(cut.start - column, 0), min(cut.stop - column, part.shape[1])
                if right > left:
                    high = part[:, left:right].argmax(axis=1)
                    value = part[np.arange(len(part)), left + high]
                    better = value > self.best[at, layer]
                    self.best[at, layer][better] = value[better]
                    self.partner[at, layer][better] = column + left + high[better]
            self._highest(part, at, column)

    def _highest(self, part: np.ndarray, at: slice, column: int) -> None:
        k = self.nearest.shape[1]
        least = np.partition(part, -k, axis=1)[:, -k] if part.shape[1] > k else np.full(len(part), -np.inf)
        r, c = np.nonzero((part >= least[:, None]) & (part > 0))
        known = np.nonzero(self.nearest[at] >= 0)
        row = np.concatenate([known[0], r])
        value = np.concatenate([self.similarity[at][known], part[r, c]])
        place = np.concatenate([self.nearest[at][known], c + column])
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

    def take(self, panel: np.ndarray, first: int, profiles: _Profiles) -> None:
        """Take in a panel of profiles, each permuted by a generator of its own, whatever the panel."""
        for draw in range(len(self.best)):
            moved = np.empty_like(panel)
            for j in range(panel.shape[1]):
                key = [self.seed, 1 + draw, int(profiles.columns[first + j])]
                moved[:, j] = np.random.Generator(np.random.PCG64(key)).permutation(panel[:, j])
            S = np.clip(self.left.T @ moved, -1.0, 1.0)
            for layer, cut in enumerate(profiles.cuts):
                a, b = max(cut.start - first, 0), min(cut.stop - first, panel.shape[1])
                if b > a:
                    self.best[draw, :, layer] = np.maximum(self.best[draw, :, layer], S[:, a:b].max(axis=1))

    def floors(self, layers: int) -> np.ndarray:
        """Return the mean over each layer's profiles, [draws, L, L]."""
        found = np.full((len(self.best), layers, layers), np.nan)
        for layer in np.unique(self.layer):
            found[:, layer] = self.best[:, self.layer == layer].mean(axis=1)
        found[:, np.arange(layers), np.arange(layers)] = np.nan
        return np.where(np.isfinite(found), found, np.nan)


def _spread(best: _Best, chance: _Chance, profiles: _Profiles) -> SimilarityOverview:
    """Return what was found of the profiles by the places of all features."""
    F, columns, layers = profiles.moments.features, profiles.columns, len(profiles.cuts)
    own = np.concatenate([np.full(c.stop - c.start, k) for k, c in enumerate(profiles.cuts)]).astype(np.intp)
    best.best[np.arange(len(own)), own] = -np.inf
    nothing = ~np.isfinite(best.best)
    places = np.append(columns, -1)  # place -1 stays -1
    k = best.nearest.shape[1]
    found = SimilarityOverview(
        profiles.moments.images,
        np.isin(np.arange(F), columns),
        np.full((F, k), -1, dtype=np.int64),
        np.full((F, k), np.nan),
        np.full((F, layers), -1, dtype=np.int64),
        np.full((F, layers), np.nan),
        chance.floors(layers),
    )
    found.nearest[columns], found.similarity[columns] = places[best.nearest], best.similarity
    found.partner[columns] = places[np.where(nothing, -1, best.partner)]
    found.best[columns] = np.where(nothing, np.nan, best.best)
    return found
