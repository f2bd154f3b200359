"""The photographs that a feature responds to most, and those at percentiles of its responses; none is counted twice.

Also S over one best photograph of each feature, chosen in one half of the photographs, and S over the other half; and
how often two features respond strongly to the same photographs, and at the same places of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from featmap.errors import FeatmapError
from featmap.rng import generator
from featmap.stats import blockwise
from featmap.stats.blockwise import BlockReader
from featmap.stats.correlation import TIE, floors
from featmap.stats.measures import profile_correlations

PERCENTILES = (50, 90, 99)
"""Percentiles of a feature's responses at which a photograph is kept too."""
NONE = -1
"""Position where there is no photograph."""
LEAST_PHOTOGRAPHS = 8
"""Fewest photographs that are halved."""
SORTED_CELLS = 2**20
"""Responses that are compared at once: before the first ones are kept, all of them are candidates and are sorted."""
LEAST_PAIRED = 20
"""Fewest photographs over which two features are compared."""
STRONG = 90
"""Percentile of its responses above which a feature is strong, and of its activations above which it fires."""
PERMUTATIONS = 999
"""Permutations of the photographs that a null distribution consists of."""


class TopResponses:
    """The k largest responses of each feature, kept while responses arrive in parts.

    Parameters
    ----------
    features : int
        Number F of features.
    k : int
        Responses that are kept, 1 or more.

    Raises
    ------
    FeatmapError
        If `k` is below 1.
    """

    def __init__(self, features: int, k: int) -> None:
        if k < 1:
            raise FeatmapError(f"count {k}: give the number of photographs to keep for each feature, 1 or more")
        self._values = np.full((features, k), -np.inf, dtype=np.float32)
        self._positions = np.full((features, k), NONE, dtype=np.int64)
        self._lowest, self._seen = np.full(features, np.inf, dtype=np.float32), NONE

    def add(self, positions: np.ndarray, responses: np.ndarray) -> None:
        """Take the responses to some photographs into account.

        Parameters
        ----------
        positions : numpy.ndarray
            Position of each photograph in the order of all, B integers; they rise, also from call to call.
        responses : numpy.ndarray
            B x F. Those that are not finite do not count.

        Raises
        ------
        FeatmapError
            If a position is not above all earlier ones.
        """
        if not len(positions):
            return
        if np.any(np.diff(positions) <= 0) or positions[0] <= self._seen:
            raise FeatmapError("photographs out of order; add each once, in the order in which ties are broken")
        self._seen = int(positions[-1])
        step = max(1, SORTED_CELLS // max(len(self._values), 1))
        for first in range(0, len(positions), step):
            self._add(np.asarray(positions[first : first + step]), np.asarray(responses[first : first + step]))

    def _add(self, positions: np.ndarray, responses: np.ndarray) -> None:
        """Take the responses to a few photographs into account."""
        values = responses.astype(np.float32)
        finite = np.isfinite(values)
        self._lowest = np.minimum(self._lowest, np.where(finite, values, np.inf).min(axis=0))
        # of equal responses the earlier one stays, so only larger ones get in
        rows, columns = np.nonzero(finite & (values > self._values[:, -1]))
        if not len(rows):
            return
        changed, k = np.unique(columns), self._values.shape[1]
        column = np.concatenate([np.repeat(changed, k), columns])
        value = np.concatenate([self._values[changed].ravel(), values[rows, columns]])
        position = np.concatenate([self._positions[changed].ravel(), positions[rows]])
        order = np.lexsort((position, -value, column))
        starts = np.searchsorted(column[order], changed)
        first = order[starts[:, None] + np.arange(k)]
        self._values[changed], self._positions[changed] = value[first], position[first]

    @property
    def positions(self) -> np.ndarray:
        """Positions of photographs, F x k, the best first; `NONE` beyond the last."""
        return self._positions.copy()

    @property
    def values(self) -> np.ndarray:
        """Responses to them, F x k, float32; NaN where there are fewer."""
        return np.where(self._positions == NONE, np.nan, self._values).astype(np.float32)

    @property
    def varies(self) -> np.ndarray:
        """Whether a feature's responses differ by more than rounding, F booleans."""
        highest = self._values[:, 0].astype(np.float64)
        known = np.isfinite(highest)
        spread = np.where(known, highest, 0) - np.where(known, self._lowest, 0)
        return spread > floors(np.where(known, np.maximum(np.abs(highest), np.abs(self._lowest)), 0))


def at_percentiles(responses: np.ndarray, percentiles: Sequence[int] = PERCENTILES) -> tuple[np.ndarray, np.ndarray]:
    """Find the photographs at percentiles of each feature's responses.

    The response at percentile q is the smallest one that at least q % of the finite responses do not exceed, so that a
    photograph has it; of several photographs the first is taken.

    Parameters
    ----------
    responses : numpy.ndarray
        N photographs x F features. Those that are not finite do not count.
    percentiles : sequence of int, default `PERCENTILES`
        P percentiles, 1 to 100.

    Returns
    -------
    rows : numpy.ndarray
        Rows of `responses`, F x P integers; `NONE` for a feature without a finite response.
    values : numpy.ndarray
        The responses, F x P; NaN for such a feature.

    References
    ----------
    Hyndman, R. J. and Fan, Y. (1996). Sample quantiles in statistical packages. The American Statistician 50(4),
    361-365, definition 1. 10.1080/00031305.1996.10473566
    """
    values = np.ascontiguousarray(np.asarray(responses).T)
    finite = np.isfinite(values)
    counts = finite.sum(axis=1)
    if not finite.all():
        values = np.where(finite, values, np.inf)
    ranked = np.sort(values, axis=1)
    rows = np.full((len(values), len(percentiles)), NONE, dtype=np.int64)
    found = np.full(rows.shape, np.nan, dtype=values.dtype)
    known = np.flatnonzero(counts)
    for k, percentile in enumerate(percentiles):
        # in whole numbers: 0.99 * 100 need not be 99
        ranks = np.maximum(-(-percentile * counts[known] // 100), 1) - 1
        found[known, k] = ranked[known, ranks]
        rows[known, k] = (values[known] == found[known, k][:, None]).argmax(axis=1)
    return rows, found


def equal_rows(parts: Iterable[np.ndarray]) -> list[list[int]]:
    """Find photographs to which all features respond alike, to the bit.

    Those with equal pixels are among them.

    Parameters
    ----------
    parts : iterable of numpy.ndarray
        Responses, B photographs x F features, part after part.

    Returns
    -------
    list of list of int
        Positions of two or more photographs each, in their order.
    """
    groups: dict[bytes, list[int]] = {}
    position = 0
    for part in parts:
        for row in np.ascontiguousarray(part):
            groups.setdefault(hashlib.blake2b(row.tobytes(), digest_size=16).digest(), []).append(position)
            position += 1
    return [group for group in groups.values() if len(group) > 1]


@dataclass(frozen=True, eq=False)
class HalfMaps:
    """S over halves of the photographs, and over best photographs.

    Parameters
    ----------
    photographs : int
        Number of photographs of both halves.
    halves : (numpy.ndarray, numpy.ndarray)
        S over each half, D x D; NaN where undefined.
    best : (numpy.ndarray, numpy.ndarray)
        S over one best photograph of each feature, D x D, chosen in the half that the one of the same position in
        `halves` leaves out.
    """

    photographs: int
    halves: tuple[np.ndarray, np.ndarray]
    best: tuple[np.ndarray, np.ndarray]


def photograph_halves(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide photographs into halves at random.

    Parameters
    ----------
    count : int
        Number of photographs.

    Returns
    -------
    one, two : numpy.ndarray
        Positions of either half, in rising order; the first has one more where the number is odd.
    """
    order = generator("halves of photographs", count).permutation(count)
    one, two = (np.sort(part) for part in np.array_split(order, 2))
    return one, two


def halve(responses: np.ndarray, similarity: Callable[[np.ndarray], np.ndarray] = profile_correlations) -> HalfMaps:
    """Compute the maps of either half from responses in memory.

    Parameters
    ----------
    responses : numpy.ndarray
        Responses to N photographs, N x D, NaN or infinite where undefined.
    similarity : callable, optional
        Computes S from responses, stimuli x D to D x D; default: `featmap.stats.measures.profile_correlations`.

    Returns
    -------
    HalfMaps
        Equal responses are ranked by position. Features that respond to all photographs of a half alike have no best
        one and add no stimulus. All NaN below `LEAST_PHOTOGRAPHS` photographs.
    """
    if len(responses) < LEAST_PHOTOGRAPHS:
        return _no_halves(len(responses), responses.shape[1])
    parts = [responses[positions] for positions in photograph_halves(len(responses))]
    halves, best = [], []
    for half, other in (parts, parts[::-1]):
        halves.append(similarity(half))
        best.append(similarity(other[_best_rows([other], other.shape[1])]))
    return HalfMaps(len(responses), (halves[0], halves[1]), (best[0], best[1]))


def halve_blocks(
    rows: BlockReader,
    shape: tuple[int, int],
    compared: Sequence[int] | np.ndarray,
    progress: Callable[[int, int], None] | None = None,
    roots: bool = True,
) -> HalfMaps:
    """Compute the maps of either half from responses that are read in blocks.

    Parameters
    ----------
    rows : callable
        Called for each pass over the responses; yields blocks of photographs x features, NaN where not finite.
    shape : (int, int)
        Number of photographs and of features.
    compared : sequence of int
        The D features that are compared, by position. The others take part in the centring only.
    progress : callable, optional
        Called with (done, total) halves.
    roots : bool, default True
        As in `featmap.stats.measures.unit_profiles`.

    Returns
    -------
    HalfMaps
        As `halve` gives it, but for the order of sums, of the features compared.
    """
    report, (count, features) = progress or (lambda done, total: None), shape
    at = np.asarray(compared, dtype=np.intp)
    if count < LEAST_PHOTOGRAPHS:
        return _no_halves(count, len(at))
    parts, halves, best, own = photograph_halves(count), [], [], np.ix_(at, at)
    for k, (half, other) in enumerate((parts, parts[::-1])):
        report(k, 2)
        S = blockwise.correlate(partial(_rows_of, rows, half), features, roots=roots)
        halves.append(S.similarity[own])
        chosen = _best_rows((block[:, at] for block in _rows_of(rows, other)), len(at))
        wanted, repeats = np.unique(other[chosen], return_inverse=True)
        stimuli = np.concatenate([*_rows_of(rows, wanted), np.empty((0, features))])
        best.append(profile_correlations(stimuli[repeats], roots=roots)[own])
    report(2, 2)
    return HalfMaps(count, (halves[0], halves[1]), (best[0], best[1]))


def _no_halves(photographs: int, features: int) -> HalfMaps:
    """Return undefined maps."""
    empty = np.full((features, features), np.nan)
    return HalfMaps(photographs, (empty, empty), (empty, empty))


def _rows_of(rows: BlockReader, positions: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the rows at some rising positions, block by block."""
    first = 0
    for block in rows():
        last = first + len(block)
        a, b = np.searchsorted(positions, (first, last))
        yield block[positions[a:b] - first]
        first = last


def _best_rows(blocks: Iterable[np.ndarray], features: int) -> np.ndarray:
    """Find the row of each feature's highest response, of features that respond to some rows more than to others."""
    top, first = TopResponses(features, 1), 0
    for block in blocks:
        top.add(np.arange(first, first + len(block)), block)
        first += len(block)
    return top.positions[:, 0][top.varies]


@dataclass(frozen=True)
class Association:
    """How far two features go together over photographs.

    Parameters
    ----------
    value : float
        The statistic; NaN where undefined.
    p : float
        Share of permutations of the photographs with a value as far out, on either side: twice the smaller of the two
        one-sided shares, each ``(1 + count) / (permutations + 1)``, at most 1. NaN where the value is.
    """

    value: float = float("nan")
    p: float = float("nan")


@lru_cache(maxsize=2)
def permute_photographs(count: int) -> np.ndarray:
    """Draw the permutations under which all pairs of features are compared.

    Parameters
    ----------
    count : int
        Number of photographs N.

    Returns
    -------
    numpy.ndarray
        `PERMUTATIONS` x N positions, from a generator keyed by N.
    """
    rng = generator("photograph permutations", count)
    return np.stack([rng.permutation(count).astype(np.int32) for _ in range(PERMUTATIONS)])


def _associate(observed: float, chance: float, drawn: np.ndarray) -> Association:
    """Divide a sum by its mean over all permutations, and rank it among those of the drawn ones."""
    tie = TIE * max(abs(observed), float(np.abs(drawn).max()))
    counts = (drawn >= observed - tie).sum(), (drawn <= observed + tie).sum()
    return Association(observed / chance, min(1.0, 2 * (1 + float(min(counts))) / (len(drawn) + 1)))


def response_correlation(one: np.ndarray, two: np.ndarray) -> Association:
    """Correlate the responses of two features over photographs.

    Parameters
    ----------
    one, two : numpy.ndarray
        Responses (means over the grid) to N photographs.

    Returns
    -------
    Association
        Pearson's correlation, in [-1, 1], whose mean over permutations is 0. NaN for fewer than `LEAST_PAIRED`
        photographs, responses that are not finite, and a feature that does not vary.
    """
    series = [np.asarray(values, dtype=np.float64) for values in (one, two)]
    if len(one) < LEAST_PAIRED or not all(np.isfinite(values).all() for values in series):
        return Association()
    if any(values.std() <= floors(np.abs(values).max()) for values in series):
        return Association()
    first, second = ((values - values.mean()) / (values.std() * np.sqrt(len(values))) for values in series)
    return _associate(float(first @ second), 1.0, second[permute_photographs(len(one))] @ first)


def strong_lift(one: np.ndarray, two: np.ndarray) -> Association:
    """Compare how often two features are strong on one photograph with chance.

    Parameters
    ----------
    one, two : numpy.ndarray
        Responses to N photographs. A feature is strong above the `STRONG` percentile of its own.

    Returns
    -------
    Association
        ``N n_ab / (n_a n_b)``, 0 or more: the number of photographs on which both are strong over its mean under
        permutation of the photographs. 1 by chance, about 10 where they are strong on the same photographs, 0 where
        never together. NaN for fewer than `LEAST_PAIRED` photographs, responses that are not finite, and a feature
        that is nowhere above that percentile.
    """
    if len(one) < LEAST_PAIRED or not (np.isfinite(one).all() and np.isfinite(two).all()):
        return Association()
    first, second = (np.asarray(values) > np.percentile(values, STRONG) for values in (one, two))
    chance = first.sum() * second.sum() / len(one)
    if not chance:
        return Association()
    drawn = second[permute_photographs(len(one))][:, first].sum(axis=1)
    return _associate(float((first & second).sum()), float(chance), drawn)


def firing_places(maps: np.ndarray) -> np.ndarray:
    """Determine where a feature fires on photographs.

    Parameters
    ----------
    maps : numpy.ndarray
        Activation maps on N photographs, N x y x x.

    Returns
    -------
    numpy.ndarray
        N x (y x): true where the activation is above the `STRONG` percentile of the feature's activations at all
        places of all photographs; nowhere if one is not finite.
    """
    values = np.asarray(maps).reshape(len(maps), -1)
    return values > np.percentile(values, STRONG) if np.isfinite(values).all() else np.zeros(values.shape, dtype=bool)


def place_lift(one: np.ndarray, two: np.ndarray) -> Association:
    """Compare how often two features fire at one place with chance.

    Chance is the mean over all pairings of a photograph for one feature with a photograph for the other: the places
    stay, so that a preference for the middle of the image, which both may have, is no co-activation.

    Parameters
    ----------
    one, two : numpy.ndarray
        Where they fire, N photographs x P places, from `firing_places` on one grid.

    Returns
    -------
    Association
        Number of places at which both fire over that mean, 0 or more; 1 by chance. NaN for fewer than `LEAST_PAIRED`
        photographs, a single place, and features that no pairing of photographs makes fire at one place.
    """
    chance = float((one.sum(axis=0, dtype=float) * two.sum(axis=0, dtype=float)).sum()) / max(len(one), 1)
    if len(one) < LEAST_PAIRED or one.shape[1] < 2 or not chance:
        return Association()
    first, second = (_pack(values) for values in (one, two))
    # words of 64 places: sums over every permutation take milliseconds
    drawn = [int(np.bitwise_count(first & second[order]).sum()) for order in permute_photographs(len(one))]
    return _associate(float((one & two).sum()), chance, np.array(drawn))


def _pack(fires: np.ndarray) -> np.ndarray:
    """Pack booleans, N x P, into words of 64 bits."""
    packed = np.packbits(fires, axis=1)
    return np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8))).view(np.uint64)
