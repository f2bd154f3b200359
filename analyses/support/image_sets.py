"""Sets of images of one layer's units under one recipe, the layer's responses to them, and findings from both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

import featmap
from analyses.formulas.likeness import ProfileAgreement, profile_agreement
from analyses.support.study import Context
from featmap.optimize.recipe import Recipe
from featmap.runs.folder_layout import LIVE_CODES
from featmap.runs.maximise import Extras

COLUMNS = ("measure", "layer", "feature", "seed", "recipe", "against", "value")


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of N units under one recipe over S seeds.

    Parameters
    ----------
    units : tuple of str
        Names of the units.
    images : numpy.ndarray
        `S x N x 3 x H x W`.
    nulls : numpy.ndarray
        Null images of the seeds, `S x 3 x H x W`.
    activation : numpy.ndarray
        Activation of each unit on its own image, `S x N`.
    live : numpy.ndarray
        Booleans, `S x N`: the descent found a gradient and the activation rose.
    A : numpy.ndarray, default None
        Responses of the layer's M features, `S x N x M`; None where they were not recorded.
    null_A : numpy.ndarray, default None
        Their responses to the null images, `S x M`; None where they were not recorded.
    """

    units: tuple[str, ...]
    images: np.ndarray
    nulls: np.ndarray
    activation: np.ndarray
    live: np.ndarray
    A: np.ndarray | None = None
    null_A: np.ndarray | None = None

    def subset(self, at: slice) -> ImageSet:
        """Select some of the units.

        Parameters
        ----------
        at : slice
            Positions of the units.

        Returns
        -------
        ImageSet
            The images of these units.
        """
        A = None if self.A is None else self.A[:, at]
        of_units = (self.images[:, at], self.nulls, self.activation[:, at], self.live[:, at], A)
        return ImageSet(self.units[at], *of_units, self.null_A)

    @property
    def responses(self) -> np.ndarray:
        """Recorded responses A, `S x N x M`."""
        assert self.A is not None
        return self.A

    @property
    def risen(self) -> np.ndarray:
        """Recorded responses less those to the null image of the same seed, `S x N x M`."""
        assert self.null_A is not None
        difference: np.ndarray = self.responses - self.null_A[:, None]
        return difference

    @property
    def clipped(self) -> np.ndarray:
        """Images clipped to [0, 1] as they are displayed, `S x N x 3 x H x W`."""
        return np.clip(self.images, 0, 1)

    @property
    def changes(self) -> np.ndarray:
        """Each image minus the null image of its seed, `S x N x 3 x H x W`."""
        difference: np.ndarray = self.images - self.nulls[:, None]
        return difference


def make_images(
    context: Context,
    units: Sequence[str],
    recipe: Recipe,
    *parts: Any,
    probe: str | None = None,
    seeds: int | None = None,
    network: featmap.Network | None = None,
) -> ImageSet:
    """Maximise units and collect their images.

    Parameters
    ----------
    context : Context
        The study.
    units : sequence of str
        Units of one layer.
    recipe : Recipe
        Recipe of the descents.
    *parts : Any
        Parts of the name of the run folder, from which an interrupted run resumes.
    probe : str, default None
        Layer whose responses are recorded.
    seeds : int, default None
        Number of seeds; None: those of the study.
    network : Network, default None
        Network; None: that of the study. Images of a network that is given are not counted as left out: the study
        says itself which of them it leaves out.

    Returns
    -------
    ImageSet
        The images.
    """
    named = network is not None
    network, count = network or context.network, seeds or context.seeds
    folder = context.folder(*parts, units=list(units), recipe=recipe.identity(), seeds=count, network=network.name)
    data = featmap.maximise(
        units,
        network,
        recipe=recipe,
        seeds=count,
        extras=Extras(responses=probe),
        execution=featmap.Execution(context.device, out=folder, watcher=context.watcher),
    )
    context.note_recipe(recipe)
    if not named:
        context.count_images(data)
    return ImageSet(
        tuple(units),
        data["images"].values,
        data["null_images"].values,
        data["activation"].values.astype(np.float64),
        np.isin(data["status"].values, LIVE_CODES),
        None if probe is None else data["A"].values.astype(np.float64),
        None if probe is None else data["null"].values.astype(np.float64),
    )


def mean_over_seeds(values: np.ndarray, live: np.ndarray) -> np.ndarray:
    """Average the values of each unit over its live seeds.

    Parameters
    ----------
    values : numpy.ndarray
        `S x N`.
    live : numpy.ndarray
        Booleans, `S x N`.

    Returns
    -------
    numpy.ndarray
        N values; NaN where no seed is live.
    """
    defined = live & np.isfinite(values)
    count = defined.sum(0)
    mean: np.ndarray = np.where(count > 0, np.where(defined, values, 0).sum(0) / np.maximum(count, 1), np.nan)
    return mean


def set_agreement(one: ImageSet, two: ImageSet, fewest: int = 2) -> ProfileAgreement:
    """Compare how two sets of images of the same features drive the layer.

    All pairs of different seeds are compared.

    Seeds differ so that remains of the same noise do not count as agreement; with a single seed, that one is used. If
    both sets are the same object, the result is the agreement over seeds, undefined with one seed.

    Parameters
    ----------
    one, two : ImageSet
        Sets with recorded responses.
    fewest : int, default 2
        Fewest live images; below, a pair of seeds is undefined.

    Returns
    -------
    ProfileAgreement
        Means over the pairs of seeds.
    """
    A = [np.where(m.live[..., None], m.responses, np.nan) for m in (one, two)]
    pairs = [(s, t) for s in range(len(A[0])) for t in range(len(A[1])) if s != t]
    if not pairs and one is not two:
        pairs = [(0, 0)]
    return _mean_agreement([profile_agreement(A[0][s], A[1][t], fewest) for s, t in pairs], len(one.units))


def restrict_live(one: ImageSet, two: ImageSet) -> ImageSet:
    """Restrict a set to images that are live in another set too.

    Parameters
    ----------
    one, two : ImageSet
        Sets of the same units, from the same seeds.

    Returns
    -------
    ImageSet
        `one` with `live` restricted to where `two` is live from the same seed.
    """
    return replace(one, live=one.live & two.live[: len(one.live)])


def agreement_ceiling(one: ImageSet, two: ImageSet, fewest: int = 2) -> ProfileAgreement:
    """Compute the `set_agreement` that two recipes would have if both did the same.

    It is the agreement of `two` with its other seeds, over the same pairs of seeds and the same rows: those live in
    `one`.

    Parameters
    ----------
    one, two : ImageSet
        Sets of the same units with recorded responses.
    fewest : int, default 2
        As for `set_agreement`.

    Returns
    -------
    ProfileAgreement
        Undefined where `two` has one seed.
    """
    count = len(one.images)
    if len(two.images) < 2:
        return ProfileAgreement(*np.full((2, len(two.units)), np.nan))
    first = replace(two, images=two.images[:count], live=restrict_live(one, two).live, A=two.responses[:count])
    return set_agreement(first, two, fewest)


def count_compared(one: ImageSet, two: ImageSet) -> list[int]:
    """Count the images that `set_agreement` compares for each pair of seeds.

    Parameters
    ----------
    one, two : ImageSet
        Sets of the same units.

    Returns
    -------
    list of int
        One count for each pair of seeds.
    """
    pairs = [(s, t) for s in range(len(one.live)) for t in range(len(two.live)) if s != t]
    return [int((one.live[s] & two.live[t]).sum()) for s, t in pairs or [(0, 0)]]


def _mean_agreement(agreements: Sequence[ProfileAgreement], units: int) -> ProfileAgreement:
    """Average several agreements, feature by feature over those that are defined."""
    pick: tuple[Callable[[ProfileAgreement], np.ndarray], ...] = (lambda r: r.same, lambda r: r.different)
    tables = [np.array([p(r) for r in agreements]).reshape(-1, units) for p in pick]
    return ProfileAgreement(*(mean_over_seeds(t, np.isfinite(t)) for t in tables))


def tidy_rows(
    measure: str, layer: str, image_set: ImageSet, values: np.ndarray, recipe: str, against: str = ""
) -> pd.DataFrame:
    """Arrange the values of a layer's units as one observation per row.

    Undefined values, and those of images that are not live, are left out.

    Parameters
    ----------
    measure : str
        Name of the measure.
    layer : str
        Name of the layer.
    image_set : ImageSet
        Images that the values belong to.
    values : numpy.ndarray
        `S x N`; or N values over all seeds, whose rows have no seed.
    recipe : str
        Label of the recipe.
    against : str, default ""
        Label of what the value is compared with.

    Returns
    -------
    pandas.DataFrame
        Rows with the columns `COLUMNS`.
    """
    table = np.asarray(values, dtype=float)
    over_all_seeds = table.ndim == 1
    table = table[None] if over_all_seeds else np.where(image_set.live, table, np.nan)
    seed, at = np.nonzero(np.isfinite(table))
    return pd.DataFrame(
        {
            "measure": measure,
            "layer": layer,
            "feature": [image_set.units[i].split(":", 1)[1] for i in at],
            "seed": pd.array([pd.NA] * len(at) if over_all_seeds else seed, dtype="Int64"),
            "recipe": recipe,
            "against": against,
            "value": table[seed, at],
        }
    )


def values_by_feature(rows: pd.DataFrame, measure: str, recipe: str, against: str = "") -> pd.Series:
    """Look up one measure of every feature, averaged over its seeds.

    Parameters
    ----------
    rows : pandas.DataFrame
        Rows of `tidy_rows`.
    measure, recipe, against : str
        Labels of the rows.

    Returns
    -------
    pandas.Series
        Values indexed by layer and feature.
    """
    chosen = rows[(rows["measure"] == measure) & (rows["recipe"] == recipe) & (rows["against"] == against)]
    return chosen.groupby(["layer", "feature"])["value"].mean().astype(float)


def values_by_channel(rows: pd.DataFrame, measure: str, recipe: str) -> pd.Series:
    """Look up one measure of every channel, averaged over seeds, then neurons.

    Parameters
    ----------
    rows : pandas.DataFrame
        Rows of `tidy_rows`, whose features are neurons, `channel:row:column`.
    measure, recipe : str
        Labels of the rows.

    Returns
    -------
    pandas.Series
        Values indexed by layer and channel.
    """
    values = values_by_feature(rows, measure, recipe).reset_index()
    values["feature"] = values["feature"].astype(str).str.split(":").str[0]
    return values.groupby(["layer", "feature"])["value"].mean().astype(float)


def agreement_rows(
    layer: str,
    one: ImageSet,
    two: ImageSet,
    recipe: str,
    against: str,
    agreement: ProfileAgreement | None = None,
    prefix: str = "",
) -> pd.DataFrame:
    """Arrange the agreement of two sets as rows `same` and `different`.

    Parameters
    ----------
    layer : str
        Name of the layer.
    one, two : ImageSet
        Sets of the same units.
    recipe, against : str
        Labels of the two sets.
    agreement : ProfileAgreement, default None
        Agreement to store; None: `set_agreement` of the sets.
    prefix : str, default ""
        Prefix of the names of the measures.

    Returns
    -------
    pandas.DataFrame
        Rows with the columns `COLUMNS`.
    """
    agreement = agreement or set_agreement(one, two)
    return pd.concat(
        [
            tidy_rows(f"{prefix}same", layer, one, agreement.same, recipe, against),
            tidy_rows(f"{prefix}different", layer, one, agreement.different, recipe, against),
        ]
    )


def excess_agreement(rows: pd.DataFrame, recipe: str, against: str, prefix: str = "") -> pd.Series:
    """Subtract the agreement of different features from that of the same.

    Parameters
    ----------
    rows : pandas.DataFrame
        Rows of `agreement_rows`.
    recipe, against : str
        Labels of the two sets.
    prefix : str, default ""
        Prefix of the names of the measures.

    Returns
    -------
    pandas.Series
        Values indexed by layer and feature.
    """
    same, different = (values_by_feature(rows, f"{prefix}{what}", recipe, against) for what in ("same", "different"))
    return same - different


def image_size(context: Context) -> int:
    """Choose the size of a study's images without ``--full``.

    Parameters
    ----------
    context : Context
        The study.

    Returns
    -------
    int
        That of the command line; otherwise the network's input size, at most 128 pixels.
    """
    return context.size or min(context.network.input_size, 128)
