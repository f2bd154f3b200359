"""Similarity between two layers: how layer k's features respond when layer l's are maximised, and which are alike.

Rows are features of layer l (and stand for their maximising images), columns are features of layer k, both labelled
``layer:channel``. `A` holds the responses (columns) of all layers at hand to the maximising images (rows): those of
layer l alone (k is *probed*: its features have no images of their own), or of both and of others (*listed*). Undefined
is NaN throughout, as in `measures`.

Source: the article, section "Feature Visualization from First Principles". It plots how a layer's features respond to
the image of one of them; here the features of another layer respond.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from featmap.errors import FeatmapError
from featmap.stats import measures
from featmap.stats.frames import count_undefined, largest_in_rows, to_floats, to_frame
from featmap.stats.measures import Correlation, unit_profiles

DRAWS = 20
"""Permutations that the agreement expected by chance is computed from."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class CrossLayerMap:
    """The cross-layer map of one ordered pair of layers.

    Parameters
    ----------
    layer, other : str
        The layer l that is maximised, and the layer k whose features respond.
    activations : pandas.DataFrame
        A, features of l (their images) x features of k, averaged over seeds.
    null : pandas.Series
        k's responses to the null image, averaged over seeds.
    measures : dict of str to pandas.DataFrame
        Measures of the same shape by name: coactivation (only where k has images of its own), relative, selective,
        profile; NaN where undefined.
    partners : pandas.DataFrame
        For each live feature of l, those of k with the most similar profiles; see `partners`.
    first, second : pandas.DataFrame
        Responses that profiles are computed from; see `shared_responses`.
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
    """Compute the share of its own best response that a feature gives to an image.

    ``C[i, j] = (A[i, j] - null[j]) / (A[j, j] - null[j])``.

    Parameters
    ----------
    A : pandas.DataFrame
        Responses of all layers to all images.
    null : pandas.Series
        Response of each feature to the null image.
    rows, columns : sequence of str
        Features of layer l and of layer k.
    live : sequence of str
        Live features of both.

    Returns
    -------
    pandas.DataFrame
        Rows x columns, unbounded: 0 where i's image does no more to j than the null image, 1 where it does as much as
        j's own. A column is NaN where j has no image among the rows of A (a probed layer), where its response to that
        image is not above that to the null image by the floor, or where j is not live.
    """
    own = [j for j in columns if j in A.index]
    C = measures.coactivation(A.loc[[*rows, *own], list(columns)], null)
    return _keep_live(C.loc[list(rows)], live)


def relative(
    A: pd.DataFrame, null: pd.Series, rows: Sequence[str], columns: Sequence[str], live: Sequence[str]
) -> pd.DataFrame:
    """Divide k's responses by that of the feature which the image maximises.

    ``R[i, j] = A[i, j] / A[i, i]``.

    Parameters
    ----------
    A : pandas.DataFrame
        Responses of all layers to all images.
    null : pandas.Series
        Response of each feature to the null image; checked only.
    rows, columns : sequence of str
        Features of layer l and of layer k.
    live : sequence of str
        Live features of both.

    Returns
    -------
    pandas.DataFrame
        Rows x columns, unbounded, dominated by features of large scale. A row is NaN where A[i, i] is not above the
        floor, a column where j is not live.
    """
    R = measures.relative(A.loc[list(rows), [*rows, *columns]], null)
    return _keep_live(R[list(columns)], live)


def selective(
    A: pd.DataFrame, null: pd.Series, rows: Sequence[str], columns: Sequence[str], live: Sequence[str]
) -> pd.DataFrame:
    """Standardise k's responses over layer l's live images.

    ``Z[i, j] = (A[i, j] - mean_i A[:, j]) / std_i A[:, j]``.

    Parameters
    ----------
    A : pandas.DataFrame
        Responses of all layers to all images.
    null : pandas.Series
        Response of each feature to the null image; checked only.
    rows, columns : sequence of str
        Features of layer l and of layer k.
    live : sequence of str
        Live features of both.

    Returns
    -------
    pandas.DataFrame
        Rows x columns, mean 0 and variance 1 by column over the live rows. A column is NaN where it does not vary over
        these images, or where j is not live.
    """
    block = A.loc[list(rows), list(columns)]
    labels = {*rows, *columns}
    Z = measures.selective(block, null, [f for f in live if f in labels])
    return _keep_live(Z, live)


def shared_responses(
    A: pd.DataFrame, rows: Sequence[str], columns: Sequence[str], live: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Select the live features' responses of both layers to the same images.

    Parameters
    ----------
    A : pandas.DataFrame
        Responses of all layers to all images.
    rows, columns : sequence of str
        Features of layer l and of layer k.
    live : sequence of str
        Live features; the images are all rows of A that are live: those of layer l where k is probed, those of all
        listed layers otherwise.

    Returns
    -------
    first, second : pandas.DataFrame
        N images x M_l and N x M_k. Images to which a layer has no finite response at all are left out of both.
    """
    wanted = set(live)
    images = [i for i in A.index if i in wanted]
    pair = [A.loc[images, [f for f in names if f in wanted]] for names in (rows, columns)]
    responds = [np.isfinite(to_floats(block, "A")).any(axis=1) for block in pair]
    both = responds[0] & responds[1]
    return pair[0][both], pair[1][both]


def profile(
    first: pd.DataFrame, second: pd.DataFrame, method: Correlation = "pearson", roots: bool = True
) -> pd.DataFrame:
    """Correlate the responses of two layers' features over the same images.

    The signed square roots of each layer's block of responses are standardised by column and centred by row within the
    block, so that what an image does to all features of one layer is not similarity; then the columns of one are
    correlated with those of the other.

    Parameters
    ----------
    first, second : pandas.DataFrame
        Responses of layer l and of layer k, N images x M_l and N x M_k, the same images in the same order. A run takes
        the live images of all the listed layers' features, or those of the one layer that is maximised.
    method : {"pearson", "spearman"}, default "pearson"
        Correlation of values or of ranks.
    roots : bool, default True
        False correlates the responses themselves, as `featmap.stats.measures.linear_profile` does.

    Returns
    -------
    pandas.DataFrame
        S, M_l x M_k in [-1, 1]; high where the same images drive both. ``profile(b, a)`` is the transpose. A positive
        factor on a feature, and the order of the images, change nothing. Constant columns are NaN.

    Raises
    ------
    FeatmapError
        If the images differ.
    """
    if list(first.index) != list(second.index):
        raise FeatmapError("the profiles of two layers are correlated over the same images in the same order")
    pair = [unit_profiles(to_floats(block, "A"), method, roots) for block in (first, second)]
    return to_frame(_products(pair[0], pair[1]), first.columns, second.columns)


def _products(one: tuple[np.ndarray, np.ndarray], two: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Compute the products of two layers' unit profiles, NaN where a feature has none."""
    full = np.full((len(one[1]), len(two[1])), np.nan)
    full[np.ix_(one[1], two[1])] = np.clip(one[0].T @ two[0], -1.0, 1.0)
    return full


def _keep_live(frame: pd.DataFrame, live: Sequence[str]) -> pd.DataFrame:
    """Copy a frame with NaN in the columns that are not live."""
    values = to_floats(frame, "the frame")
    values[:, ~frame.columns.isin(list(live))] = np.nan
    return to_frame(values, frame.index, frame.columns)


def partners(S: pd.DataFrame, n: int = 5) -> pd.DataFrame:
    """List the most similar features of layer k for each feature of layer l.

    Parameters
    ----------
    S : pandas.DataFrame
        Similarity, M_l x M_k.
    n : int, default 5
        Partners of each feature; fewer where fewer are defined.

    Returns
    -------
    pandas.DataFrame
        Columns feature (in the order of S), rank (from 1), partner (by falling similarity, ties in the order of S),
        similarity.
    """
    values = to_floats(S, "the similarity frame")
    nearest = largest_in_rows(values, n)
    at, rank = np.divmod(np.arange(nearest.size), max(nearest.shape[1], 1))
    similarity = values[at, nearest.ravel()]
    keep = np.isfinite(similarity)
    table = {"feature": S.index[at[keep]], "rank": rank[keep] + 1, "partner": S.columns[nearest.ravel()[keep]]}
    return pd.DataFrame(table | {"similarity": similarity[keep]})


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
    """Compute the cross-layer map of two layers.

    Parameters
    ----------
    A : pandas.DataFrame
        Responses of both layers to all images at hand.
    null : pandas.Series
        Response of each feature to the null image.
    layers : tuple of str
        Names of l and k.
    rows, columns : sequence of str
        Features of l and of k.
    live : sequence of str
        Live features of l and of k; all features of a probed layer, whose statuses are not known.
    n : int, default 5
        Partners to list.
    profiles : pandas.DataFrame, optional
        S where it is known from the other direction, of which it is the transpose.

    Returns
    -------
    CrossLayerMap
        Measures and partners.

    Warns
    -----
    FewStimuliWarning
        Where profiles are computed from fewer than `measures.FEW_STIMULI` images.
    """
    first, second = shared_responses(A, rows, columns, live)
    if profiles is None:
        measures.warn_few_stimuli(len(first))
        profiles = profile(first, second)
    frames = {
        "relative": relative(A, null, rows, columns, live),
        "selective": selective(A, null, rows, columns, live),
        "profile": expand(profiles, rows, columns),
    }
    if set(columns) & set(A.index):
        frames = {"coactivation": coactivation(A, null, rows, columns, live)} | frames
    return CrossLayerMap(
        *layers,
        activations=A.loc[list(rows), list(columns)],
        null=null.loc[list(columns)],
        measures=frames,
        partners=partners(frames["profile"], n),
        first=first,
        second=second,
    )


def expand(S: pd.DataFrame, rows: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """Expand a frame to more rows and columns.

    Parameters
    ----------
    S : pandas.DataFrame
        Similarity of some of the features.
    rows, columns : sequence of str
        All features of layer l and of layer k.

    Returns
    -------
    pandas.DataFrame
        Rows x columns, NaN where S has no such row or column.
    """
    values = to_floats(S, "the frame")
    full = np.full((len(rows), len(columns)), np.nan)
    at, to = pd.Index(rows).get_indexer(S.index), pd.Index(columns).get_indexer(S.columns)
    full[np.ix_(at, to)] = values
    return to_frame(full, pd.Index(rows), pd.Index(columns))


def mean_best(S: np.ndarray) -> float:
    """Compute the mean over the rows of their highest defined similarity.

    Parameters
    ----------
    S : numpy.ndarray
        M_l x M_k, NaN where undefined.

    Returns
    -------
    float
        In [-1, 1]; NaN where no row has a defined similarity.
    """
    rows = np.isfinite(S).any(axis=1)
    return float(np.where(np.isfinite(S), S, -np.inf)[rows].max(axis=1).mean()) if rows.any() else float("nan")


def layer_agreement(
    first: pd.DataFrame, second: pd.DataFrame, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float, float]:
    """Compute the mean similarity of features' best partners, and the same by chance.

    Parameters
    ----------
    first, second : pandas.DataFrame
        Responses of layers l and k to the same images, as for `profile`.
    draws : int, default 20
        Permutations.
    seed : int, default 0
        Seed of the permutations.

    Returns
    -------
    best : float
        Mean of max_j S[i, j] over the features i of l with a defined profile: in [-1, 1], 1 where every feature of l
        has a copy in k; not symmetric. NaN where nothing is defined.
    floor : float
        Mean of the same over the draws. In each draw the responses of every feature of k are permuted over the images,
        independently of the other features, then standardised, centred and correlated anew. The permutation keeps the
        numbers of features and images and each feature's distribution, and destroys everything else.
    highest_floor : float
        Highest of the draws.
    """
    table, one = to_floats(second, "A"), unit_profiles(to_floats(first, "A"))
    best = mean_best(_products(one, unit_profiles(table)))
    # each draw has its own generator, so that draw k does not depend on how many there are
    floors = [
        mean_best(
            _products(one, unit_profiles(np.random.Generator(np.random.PCG64([seed, k])).permuted(table, axis=0)))
        )
        for k in range(draws)
    ]
    return best, float(np.mean(floors)), float(np.max(floors))


def layer_table(maps: Sequence[CrossLayerMap], progress: Progress | None = None) -> pd.DataFrame:
    """Tabulate the agreement of every ordered pair of layers.

    Parameters
    ----------
    maps : sequence of CrossLayerMap
        Maps of the pairs.
    progress : callable, optional
        Called with (done, total) after each.

    Returns
    -------
    pandas.DataFrame
        One row a pair: layer, other, features (those of `layer` with a defined profile), images (the stimuli), best,
        floor, highest_floor (see `layer_agreement`; NaN where undefined), draws.
    """
    rows = []
    for done, pair in enumerate(maps):
        agreement = layer_agreement(pair.first, pair.second)
        features = int(pair.measures["profile"].notna().any(axis=1).sum())
        rows.append((pair.layer, pair.other, features, len(pair.first), *agreement, DRAWS))
        if progress:
            progress(done + 1, len(maps))
    names = ["layer", "other", "features", "images", "best", "floor", "highest_floor", "draws"]
    return pd.DataFrame(rows, columns=names).astype(dict.fromkeys(("best", "floor", "highest_floor"), np.float64))


def shown_measure(crossing: CrossLayerMap, measure: str) -> str:
    """Choose the measure that the heatmap of a pair of layers shows.

    Parameters
    ----------
    crossing : CrossLayerMap
        Map of the pair.
    measure : str
        Requested measure.

    Returns
    -------
    str
        The requested measure, or "selective" if the pair does not have it: `coactivation` of a probed layer.
    """
    return measure if measure == "raw" or measure in crossing.measures else "selective"


def summarise_crossings(crossings: Sequence[CrossLayerMap], table: pd.DataFrame, measure: str) -> list[dict[str, Any]]:
    """Summarise the maps between layers.

    Parameters
    ----------
    crossings : sequence of CrossLayerMap
        Maps of the ordered pairs.
    table : pandas.DataFrame
        Table of layers with a row for each of them, see `layer_table`.
    measure : str
        Requested measure of the heatmaps.

    Returns
    -------
    list of dict
        Plain JSON values, one entry for each pair.
    """
    entries = []
    for crossing, row in zip(crossings, table.to_dict("records"), strict=True):
        pairs = distinct_partners(crossing.partners, 5)
        entries.append(
            {
                "layer": crossing.layer,
                "other": crossing.other,
                "features": int(row["features"]),
                "images": int(row["images"]),
                **{k: None if pd.isna(row[k]) else float(row[k]) for k in ("best", "floor", "highest_floor")},
                "strongest": [[r.feature, r.partner, float(r.similarity)] for r in pairs.itertuples()],
                "undefined": {name: count_undefined(frame) for name, frame in crossing.measures.items()},
                "requested": measure,
                "heatmap": shown_measure(crossing, measure),
            }
        )
    return entries


def distinct_partners(partners: pd.DataFrame, n: int) -> pd.DataFrame:
    """List the most similar pairs of a feature and its first partner.

    Parameters
    ----------
    partners : pandas.DataFrame
        Columns feature, rank, partner, similarity, see `partners`.
    n : int
        Maximum number of pairs.

    Returns
    -------
    pandas.DataFrame
        Rows of `partners`, by falling similarity; no feature of either layer is in two of them.
    """
    first = partners[partners["rank"] == 1].sort_values("similarity", ascending=False, kind="stable")
    return first.drop_duplicates("partner").head(n)
