"""Measures between two layers: what layer k's features do when layer l's are maximised, and who is alike.

Rows are features of layer l (and stand for their maximising images), columns are features of layer k, both
labelled ``layer:channel``. `A` holds the responses (columns) of all layers at hand to the images (rows) that
were made: those of layer l alone (*probed*: k's features have no images of their own), or of both and of
others (*listed*). Undefined is ``pd.NA`` throughout, as in `measures`.

Source: the article, section "Feature Visualization from First Principles", whose plot of how a layer's
features respond to one's image is taken here to another layer's features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from featmap.errors import FeatmapError
from featmap.stats import measures
from featmap.stats.correlation import DIGITS
from featmap.stats.measures import Correlation, to_floats, to_frame, unit_profiles

DRAWS = 20
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class CrossLayerMap:
    """The cross-layer map of one ordered pair of layers.

    Attributes
    ----------
    layer, other : the layer l that is maximised, the layer k whose features respond
    activations : A, features of l (their images) x features of k, averaged over seeds
    null : k's responses to the null image, averaged over seeds
    measures : frames of the same shape by name: coactivation (only where k's own images were made), relative,
        selective, profile; `pd.NA` where undefined
    partners : for each live feature of l, those of k with the most similar profiles, see `partners`
    first, second : the responses that profiles are taken over, see `blocks`
    """

    layer: str
    other: str
    activations: pd.DataFrame
    null: pd.Series
    measures: dict[str, pd.DataFrame]
    partners: pd.DataFrame
    first: pd.DataFrame
    second: pd.DataFrame

    @property
    def name(self) -> str:
        """The pair as it is written: ``l to k``."""
        return f"{self.layer} to {self.other}"


def coactivation(
    A: pd.DataFrame, null: pd.Series, rows: Sequence[str], columns: Sequence[str], live: Sequence[str]
) -> pd.DataFrame:
    """Return C[i, j] = (A[i, j] - n_j) / (A[j, j] - n_j), the share of j's own best that i's image gives to j.

    rows x columns, unbounded, 0 where i's image does no more to j than the null image, 1 where it does as
    much as j's own. A column is undefined where j has no image among the rows of A (a probed layer), where
    that image does not beat the null image by the floor, or where j is not in `live`.
    """
    own = [j for j in columns if j in A.index]
    C = measures.coactivation(A.loc[[*rows, *own], list(columns)], null)
    return _only(C.loc[list(rows)], live)


def relative(
    A: pd.DataFrame, null: pd.Series, rows: Sequence[str], columns: Sequence[str], live: Sequence[str]
) -> pd.DataFrame:
    """Return R[i, j] = A[i, j] / A[i, i]: k's response over that of the feature the image was made for.

    rows x columns, unbounded, ruled by the features' scales. A row is undefined where A[i, i] is no more than
    the floor, a column where j is not in `live`.
    """
    R = measures.relative(A.loc[list(rows), [*rows, *columns]], null)
    return _only(R[list(columns)], live)


def selective(
    A: pd.DataFrame, null: pd.Series, rows: Sequence[str], columns: Sequence[str], live: Sequence[str]
) -> pd.DataFrame:
    """Return Z[i, j] = (A[i, j] - mean_i A[:, j]) / std_i A[:, j] over layer l's live images.

    rows x columns, mean 0 and variance 1 by column over the live rows. A column is undefined where it does not
    vary over these images, or where j is not in `live`.
    """
    block = A.loc[list(rows), list(columns)]
    known = {*rows, *columns}
    Z = measures.selective(block, null, [f for f in live if f in known])
    return _only(Z, live)


def shared_responses(
    A: pd.DataFrame, rows: Sequence[str], columns: Sequence[str], live: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the live features' responses of both layers to the same images: N x M_l and N x M_k.

    The images are all of `A` that are live: those of layer l where k is probed, those of all listed layers
    otherwise. Images to which a layer has no finite response at all are left out of both.
    """
    wanted = set(live)
    images = [i for i in A.index if i in wanted]
    pair = [A.loc[images, [f for f in names if f in wanted]] for names in (rows, columns)]
    seen = [np.isfinite(to_floats(block, "A")).any(axis=1) for block in pair]
    both = seen[0] & seen[1]
    return pair[0][both], pair[1][both]


def profile(first: pd.DataFrame, second: pd.DataFrame, method: Correlation = "pearson") -> pd.DataFrame:
    """Return S[i, j], how alike features i and j of two layers respond over the same images.

    Each layer's block of responses (N images x M features) is standardised by column and centred by row
    within itself, so that what an image does to all features of one layer is not similarity; then the columns
    of one are correlated with those of the other. M_l x M_k in [-1, 1]; high where the same images drive
    both; `profile(b, a)` is the transpose. A positive factor on a feature, and the order of the images,
    change nothing. Constant columns are undefined.

    Parameters
    ----------
    first, second : responses of layer l and of layer k, with the same images in the same order. A run takes
        the live images of all the listed layers' features, or those of the one layer that is maximised.

    Raises FeatmapError if the images differ.
    """
    if list(first.index) != list(second.index):
        raise FeatmapError("the profiles of two layers are correlated over the same images in the same order")
    pair = [unit_profiles(to_floats(block, "A"), method) for block in (first, second)]
    return to_frame(_products(pair[0], pair[1]), first.columns, second.columns)


def _products(one: tuple[np.ndarray, np.ndarray], two: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    full = np.full((len(one[1]), len(two[1])), np.nan)
    full[np.ix_(one[1], two[1])] = np.clip(one[0].T @ two[0], -1.0, 1.0)
    return full


def _only(frame: pd.DataFrame, live: Sequence[str]) -> pd.DataFrame:
    """Return the frame with the columns that are not live undefined."""
    values = to_floats(frame, "the frame")
    values[:, ~frame.columns.isin(list(live))] = np.nan
    return to_frame(values, frame.index, frame.columns)


def partners(S: pd.DataFrame, n: int = 5) -> pd.DataFrame:
    """Return the `n` features of layer k with the most similar profiles for each feature of layer l.

    Columns feature (in the order of S), rank (from 1), partner (by falling similarity, ties in the order of
    S), similarity; fewer rows where fewer are defined.
    """
    values = to_floats(S, "the similarity frame")
    mean_best = np.argsort(-np.round(values, DIGITS), axis=1, kind="stable")[:, : max(n, 0)]
    at, rank = np.divmod(np.arange(mean_best.size), max(mean_best.shape[1], 1))
    similarity = values[at, mean_best.ravel()]
    keep = np.isfinite(similarity)
    found = {"feature": S.index[at[keep]], "rank": rank[keep] + 1, "partner": S.columns[mean_best.ravel()[keep]]}
    return pd.DataFrame(found | {"similarity": similarity[keep]})


def build_map(
    A: pd.DataFrame,
    null: pd.Series,
    layers: tuple[str, str],
    rows: Sequence[str],
    columns: Sequence[str],
    live: Sequence[str],
    n: int = 5,
    profiles: pd.DataFrame | None = None,
) -> CrossLayerMap:
    """Return the cross-layer map of `layers` (l, k), whose features are `rows` and `columns`.

    Parameters
    ----------
    A, null : responses of both layers to all images at hand, and to the null image
    live : live features of l, and those of k that are not known to be anything else
    n : partners to list
    profiles : S where it is known from the other direction, of which it is the transpose

    Warns (FewStimuliWarning) where profiles are taken over fewer than `measures.FEW_STIMULI` images.
    """
    first, second = shared_responses(A, rows, columns, live)
    if profiles is None:
        measures.warn_few_stimuli(len(first))
        profiles = profile(first, second)
    found = {
        "relative": relative(A, null, rows, columns, live),
        "selective": selective(A, null, rows, columns, live),
        "profile": expand(profiles, rows, columns),
    }
    if set(columns) & set(A.index):
        found = {"coactivation": coactivation(A, null, rows, columns, live)} | found
    return CrossLayerMap(
        *layers,
        activations=A.loc[list(rows), list(columns)],
        null=null.loc[list(columns)],
        measures=found,
        partners=partners(found["profile"], n),
        first=first,
        second=second,
    )


def expand(S: pd.DataFrame, rows: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """Return a frame on these rows and columns, undefined where it has none of them."""
    values = to_floats(S, "the frame")
    full = np.full((len(rows), len(columns)), np.nan)
    at, to = pd.Index(rows).get_indexer(S.index), pd.Index(columns).get_indexer(S.columns)
    full[np.ix_(at, to)] = values
    return to_frame(full, pd.Index(rows), pd.Index(columns))


def mean_best(S: np.ndarray) -> float:
    """Return the mean over the rows of their highest defined similarity, NaN where none has any."""
    rows = np.isfinite(S).any(axis=1)
    return float(np.where(np.isfinite(S), S, -np.inf)[rows].max(axis=1).mean()) if rows.any() else float("nan")


def layer_agreement(
    first: pd.DataFrame, second: pd.DataFrame, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float, float]:
    """Return how well layer l's features find a like one in layer k, and what chance would find.

    The first number is the mean, over the features i of l with a defined profile, of max_j S[i, j]: in
    [-1, 1], 1 where every feature of l has a copy in k; it is not symmetric. The floor is the same after the
    responses of each of k's features have been permuted over the images, independently of the other
    features', so that only the number of features and images, and each feature's own distribution, are left
    to find a partner by; then standardised, centred and correlated anew. Returned are the mean and the
    highest of `draws` such floors. NaN where nothing is defined.
    """
    table, one = to_floats(second, "A"), unit_profiles(to_floats(first, "A"))
    found = mean_best(_products(one, unit_profiles(table)))
    floors = [
        mean_best(
            _products(one, unit_profiles(np.random.Generator(np.random.PCG64([seed, k])).permuted(table, axis=0)))
        )
        for k in range(draws)
    ]
    return found, float(np.mean(floors)), float(np.max(floors))


def layer_table(crossings: Sequence[CrossLayerMap], progress: Progress | None = None) -> pd.DataFrame:
    """Return one row an ordered pair of layers: layer, other, features, images, best, floor, highest_floor, draws.

    `features` counts the features of `layer` with a defined profile, `images` the stimuli; `best`, `floor` and
    `highest_floor` are those of `agreement`, `pd.NA` where undefined.
    """
    rows = []
    for done, c in enumerate(crossings):
        found = layer_agreement(c.first, c.second)
        features = int(c.measures["profile"].notna().any(axis=1).sum())
        rows.append((c.layer, c.other, features, len(c.first), *found, DRAWS))
        if progress:
            progress(done + 1, len(crossings))
    names = ["layer", "other", "features", "images", "best", "floor", "highest_floor", "draws"]
    table = pd.DataFrame(rows, columns=names)
    for name in ("best", "floor", "highest_floor"):
        values = table[name].to_numpy(dtype=float)
        table[name] = pd.arrays.FloatingArray(np.nan_to_num(values), np.isnan(values))
    return table
