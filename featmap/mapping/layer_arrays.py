"""Arrays of a run restricted to one layer: responses to its own images, and to photographs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pandas as pd
import xarray as xr

from featmap.mapping.view import PHOTOGRAPH_RESPONSES
from featmap.runs.folder_layout import LIVE_CODES
from featmap.stats import blockwise, measures
from featmap.stats.correlation import ColumnSimilarity
from featmap.stats.frames import to_frame
from featmap.stats.top_responses import HalfMaps, halve_blocks


@dataclass(frozen=True, eq=False)
class LayerArrays:
    """Arrays of a run restricted to the features of one layer and their own images.

    Parameters
    ----------
    names : list of str
        The N features, which label images and responses.
    responses : numpy.ndarray
        A of each seed, S x N x N in float64.
    nulls : numpy.ndarray
        Responses to the null image of each seed, S x N in float64.
    activation : numpy.ndarray
        Response of each feature to its own image, S x N.
    status : numpy.ndarray
        Worst status of each feature over the seeds, an index into `featmap.runs.folder_layout.STATUSES`.
    """

    names: list[str]
    responses: np.ndarray
    nulls: np.ndarray
    activation: np.ndarray
    status: np.ndarray

    @staticmethod
    def read(data: xr.Dataset, names: list[str]) -> LayerArrays:
        """Read the arrays of some features.

        Parameters
        ----------
        data : xarray.Dataset
            Arrays of a run.
        names : list of str
            Features of one layer.

        Returns
        -------
        LayerArrays
            In the order of `names`.
        """
        own = data.sel(image=names, response=names)
        return LayerArrays(
            names,
            own["A"].values.astype(np.float64),
            own["null"].values.astype(np.float64),
            own["activation"].values,
            worst_status(own["status"].values.astype(int)),
        )

    @property
    def live(self) -> list[str]:
        """Features that have a maximising image."""
        return [n for n, s in zip(self.names, self.status, strict=True) if s in LIVE_CODES]

    @property
    def A(self) -> pd.DataFrame:
        """Responses averaged over seeds, N x N."""
        return pd.DataFrame(self.responses.mean(0), index=self.names, columns=self.names)

    @property
    def null(self) -> pd.Series:
        """Responses to the null image averaged over seeds, N."""
        return pd.Series(self.nulls.mean(0), index=self.names)

    def compute_measures(self, shown: str, formula: int = measures.FORMULA) -> dict[str, pd.DataFrame]:
        """Compute the measures of a map.

        Parameters
        ----------
        shown : str
            Measure of the heatmap.
        formula : int, default FORMULA
            Formula of S, as `featmap.mapping.view.recorded_formula` reads it: a map of an earlier version is read with
            the S that its clusters and tables were computed from.

        Returns
        -------
        dict of str to pandas.DataFrame
            By name: all but `raw`, which is A; `linear_profile` only where the heatmap shows it.
        """
        names = [n for n in measures.MEASURES if n not in ("raw", "linear_profile") or n == shown != "raw"]
        frames = {name: measures.MEASURES[name](self.A, self.null, self.live) for name in names}
        if formula == measures.LINEAR:
            frames["profile"] = measures.linear_profile(self.A, self.null, self.live)
        return frames


def worst_status(status: np.ndarray) -> np.ndarray:
    """Find the worst status of each image over all seeds.

    Parameters
    ----------
    status : numpy.ndarray
        Indices into `featmap.runs.folder_layout.STATUSES`, which are ordered from good to bad: S seeds x N images.

    Returns
    -------
    numpy.ndarray
        N indices.
    """
    return status.max(axis=0)


def photograph_responses(data: xr.Dataset, layer: str) -> xr.DataArray:
    """Select the responses of a layer's features to photographs.

    Parameters
    ----------
    data : xarray.Dataset
        Arrays of a run with photographs.
    layer : str
        Name of a recorded layer.

    Returns
    -------
    xarray.DataArray
        Photograph x response, float32, read lazily.
    """
    own = [k for k, n in enumerate(map(str, data["response"].values)) if n.rpartition(":")[0] == layer]
    return data[PHOTOGRAPH_RESPONSES].isel(response=slice(own[0], own[-1] + 1))  # a layer's columns lie side by side


def correlate_photographs(
    responses: xr.DataArray, progress: Callable[[int, int], None] | None = None, formula: int = measures.FORMULA
) -> tuple[ColumnSimilarity, pd.DataFrame]:
    """Compute the similarity S of features over photographs, block by block.

    Parameters
    ----------
    responses : xarray.DataArray
        Responses of one layer, see `photograph_responses`.
    progress : callable, optional
        Called with (done, total) blocks.
    formula : int, default FORMULA
        Formula of S, as in `LayerArrays.compute_measures`.

    Returns
    -------
    ColumnSimilarity
        Similarities and moments of all features.
    pandas.DataFrame
        S of the features that have one.
    """
    roots = formula != measures.LINEAR
    profiles = blockwise.correlate(block_reader(responses), responses.shape[1], progress, roots)
    S = profiles.among_used  # not copied, as it may take most of the memory
    defined = np.isfinite(S.diagonal())
    names = pd.Index([str(name) for name in responses["response"].values[profiles.used[defined]]])
    S = S if defined.all() else S[np.ix_(defined, defined)]
    # S is symmetric; of its transpose the columns lie side by side, which Parquet writes without a copy
    return profiles, to_frame(S.T, names, names)


def select_compared(
    own: pd.DataFrame, stimuli: pd.DataFrame, responses: xr.DataArray, S: pd.DataFrame, formula: int
) -> tuple[pd.DataFrame, xr.DataArray, pd.DataFrame]:
    """Select the features that maps of images and photographs are compared over.

    Those are the features that have S in both maps. Centring depends on the features that take part: each map that has
    more of them is computed again over these.

    Parameters
    ----------
    own : pandas.DataFrame
        Profile similarity over the images.
    stimuli : pandas.DataFrame
        Responses that it is computed from, images x features, see `featmap.stats.measures.select_stimuli`.
    responses : xarray.DataArray
        Responses of all features of the layer to photographs.
    S : pandas.DataFrame
        Profile similarity over them.
    formula : int
        Formula of S, see `featmap.stats.measures.FORMULA`.

    Returns
    -------
    own : pandas.DataFrame
        Profile similarity over the images, of the features that both maps have.
    responses : xarray.DataArray
        Responses to photographs that S is computed from; unchanged where these are all of S, or none.
    S : pandas.DataFrame
        Profile similarity over the photographs.
    """
    defined = own.columns[np.isfinite(np.diag(own.to_numpy()))]
    both = pd.Index([name for name in defined if name in S.columns])
    if not len(both):
        return own.loc[both, both], responses, S
    if len(both) < len(defined):
        again = measures.profile_correlations(stimuli[both].to_numpy(), roots=formula != measures.LINEAR)
        own = to_frame(again, both, both)
    if len(both) < len(S.columns):
        responses = responses.sel(response=list(both))
        S = correlate_photographs(responses, formula=formula)[1]
    return own, responses, S


def block_reader(responses: xr.DataArray) -> blockwise.BlockReader:
    """Make the function that reads responses to photographs block by block.

    Parameters
    ----------
    responses : xarray.DataArray
        Photograph x response, read lazily.

    Returns
    -------
    callable
        Yields photographs x responses in float64, NaN where not finite, the same blocks in each pass.
    """
    count, width = responses.shape
    # a stored chunk is as wide as all recorded layers
    step = blockwise.block_rows(max(width, responses.encoding["chunks"][1]), responses.encoding["chunks"][0])

    def blocks() -> Iterator[np.ndarray]:
        for first in range(0, count, step):
            block = responses[first : first + step].values.astype(np.float64)
            block[~np.isfinite(block)] = np.nan
            yield block

    return blocks


def halve_photographs(responses: xr.DataArray, compared: Sequence[str], formula: int = measures.FORMULA) -> HalfMaps:
    """Compute the maps of halves of the photographs, and of best photographs.

    Parameters
    ----------
    responses : xarray.DataArray
        Responses of one layer, see `photograph_responses`.
    compared : sequence of str
        The features that are compared.
    formula : int, default FORMULA
        Formula of S, as in `LayerArrays.compute_measures`.

    Returns
    -------
    HalfMaps
        Of the features compared.
    """
    at = pd.Index([str(name) for name in responses["response"].values]).get_indexer(list(compared))
    shape = len(responses), responses.shape[1]
    return halve_blocks(block_reader(responses), shape, at, roots=formula != measures.LINEAR)


@dataclass(frozen=True, eq=False)
class PhotographLayers:
    """Responses of several layers to the same photographs, read block by block.

    Parameters
    ----------
    layers : list of str
        The layers.
    names : list of str
        Their F features, layer after layer.
    groups : list of slice
        Range of each layer within `names`.
    responses : xarray.DataArray
        Photograph x F responses.
    """

    layers: list[str]
    names: list[str]
    groups: list[slice]
    responses: xr.DataArray

    @staticmethod
    def read(data: xr.Dataset, layers: Sequence[str]) -> PhotographLayers:
        """Select the responses of some recorded layers.

        Parameters
        ----------
        data : xarray.Dataset
            Arrays of a run with photographs.
        layers : sequence of str
            Names of recorded layers.

        Returns
        -------
        PhotographLayers
            In the order of `layers`.
        """
        own: dict[str, list[int]] = {layer: [] for layer in layers}
        labels = [str(name) for name in data["response"].values]
        for k, label in enumerate(labels):
            if label.rpartition(":")[0] in own:
                own[label.rpartition(":")[0]].append(k)
        at = [k for columns in own.values() for k in columns]
        ends = np.cumsum([0, *map(len, own.values())])
        groups = [slice(int(a), int(b)) for a, b in pairwise(ends)]
        names = [labels[k] for k in at]
        return PhotographLayers(list(layers), names, groups, data[PHOTOGRAPH_RESPONSES].isel(response=at))

    def similarity(self, progress: Callable[[int, int], None] | None = None) -> np.ndarray:
        """Compute S of all features, within layers and between them.

        Parameters
        ----------
        progress : callable, optional
            Called with (done, total) blocks.

        Returns
        -------
        numpy.ndarray
            F x F, exactly symmetric, in [-1, 1]; NaN where undefined.
        """
        return blockwise.correlate(block_reader(self.responses), self.groups, progress).similarity

    def overview(self, k: int, progress: Callable[[int, int], None] | None = None) -> blockwise.SimilarityOverview:
        """Find nearest features, best partners, and how good a partner chance gives.

        Parameters
        ----------
        k : int
            Nearest features to keep.
        progress : callable, optional
            Called with (done, total) features.

        Returns
        -------
        SimilarityOverview
            Of the F features. Panels and samples shrink with the number of photographs, so that memory stays bounded.
        """
        count, features = len(self.responses), max(len(self.names), 1)
        budget = blockwise.PANEL_BYTES * features // max(count, features)
        sample = min(blockwise.CHANCE_FEATURES, max(blockwise.PANEL_BYTES // (8 * max(count, 1)), 1))
        chance = blockwise.ChanceSettings(sample=sample)
        reader = block_reader(self.responses)
        return blockwise.compare(reader, self.groups, k, chance=chance, budget=budget, progress=progress)


@dataclass(frozen=True, eq=False)
class ComparedFeatures:
    """Features of several layers that are compared with each other.

    Parameters
    ----------
    layers : list of str
        The L layers.
    names : list of str
        The F features, in the order of the layers.
    groups : list of slice
        Range of each layer within `names`.
    starts : list of str, optional
        How each feature's descent started; None without descents.
    reliability : mapping, optional
        Reliability by feature; empty before a validation, and over photographs.
    """

    layers: list[str]
    names: list[str]
    groups: list[slice]
    starts: list[str | None] | None = None
    reliability: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def layer_numbers(self) -> np.ndarray:
        """Number of each feature's layer, F integers."""
        return np.repeat(np.arange(len(self.groups)), [g.stop - g.start for g in self.groups])
