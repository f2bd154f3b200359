"""Collect the evidence on each layer from stored arrays, of the trained network and with random weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from featmap.errors import FeatmapError
from featmap.files import digest
from featmap.image_shape import Size
from featmap.mapping import cluster_io
from featmap.network.model import Network
from featmap.network.unit import split_call
from featmap.optimize.photograph_files import PhotographFiles, find_photographs
from featmap.optimize.photograph_folder import PhotographFolder
from featmap.runs import probe
from featmap.runs.engine import Execution
from featmap.runs.folder_layout import LIVE_CODES
from featmap.runs.job import Job
from featmap.runs.manifest import is_run
from featmap.runs.progress import Watcher
from featmap.runs.store import Run
from featmap.stats import agreement, clustering, measures
from featmap.stats.clustering import Clusters
from featmap.validation import weight_paths
from featmap.validation.evidence import Evidence
from featmap.validation.results import Evaluation
from featmap.validation.statistics import evaluate_layer

FEWEST_PHOTOGRAPHS = 32
GivenPhotographs = str | Path | PhotographFiles | PhotographFolder
MAX_PATH_LAYERS = 8
"""Outermost layers on the processing path that are measured, and as many of those inside them."""


def list_photographs(
    photographs: GivenPhotographs | None, limit: int | None = None
) -> PhotographFiles | PhotographFolder | None:
    """List the photographs of a path, without decoding them.

    Parameters
    ----------
    photographs : path, PhotographFiles, PhotographFolder or None
        Folder or zip, or photographs that are listed or decoded already.
    limit : int, optional
        Largest number of photographs of a path, evenly spaced in the order of their names. None lists all.

    Returns
    -------
    PhotographFiles, PhotographFolder or None
        The photographs; None where none are given.

    Raises
    ------
    FeatmapError
        If the path is that of a run, there are fewer than `FEWEST_PHOTOGRAPHS`, or a limit is given without any.
    """
    if photographs is None:
        if limit is not None:
            raise FeatmapError(f"limit {limit} of no photographs; give a folder or zip of photographs, too")
        return None
    if isinstance(photographs, (str, Path)) and is_run(Path(photographs)):
        raise FeatmapError(f"photographs {str(photographs)!r} is a run; give a folder of photographs")
    if isinstance(photographs, (str, Path)):
        listed: PhotographFiles | PhotographFolder = find_photographs(photographs, "photographs").limited(limit)
    else:
        listed = photographs
    _require_enough(listed)
    return listed


def decode_photographs(
    photographs: PhotographFiles | PhotographFolder, skip_broken: bool = False, watcher: Watcher | None = None
) -> PhotographFolder:
    """Decode all photographs once.

    Parameters
    ----------
    photographs : PhotographFiles or PhotographFolder
        The photographs; those of a `PhotographFolder` are decoded already.
    skip_broken : bool, default False
        Go on without photographs that cannot be read.
    watcher : Watcher, optional
        Receives the progress, and what is left out.

    Returns
    -------
    PhotographFolder
        The readable photographs.

    Raises
    ------
    FeatmapError
        If photographs are broken and not skipped, or fewer than `FEWEST_PHOTOGRAPHS` are left.
    """
    if isinstance(photographs, PhotographFolder):
        return photographs
    opened = probe.decode_photographs(photographs, skip_broken, watcher)
    _require_enough(opened)
    return opened


def _require_enough(photographs: PhotographFiles | PhotographFolder) -> None:
    """Check that there are enough photographs to compare a map with."""
    if len(photographs) < FEWEST_PHOTOGRAPHS:
        raise FeatmapError(
            f"photographs {str(photographs.path)!r}: {len(photographs)} photographs; "
            f"give {FEWEST_PHOTOGRAPHS} or more, best about 1,000"
        )


def layers_on_path(network: Network, layer: str, size: Size, limit: int = MAX_PATH_LAYERS) -> tuple[list[str], int]:
    """Choose layers on the processing path to a layer.

    Parameters
    ----------
    network : Network
        The network.
    layer : str
        Name of the layer.
    size : int or (int, int)
        Image size in pixels.
    limit : int, default 8
        Outermost layers that are chosen among those computed before the layer, evenly spaced, and as many of those
        inside them or inside the layer itself: two branches may separate and join again within one block.

    Returns
    -------
    list of str
        Layers in the order in which they are computed, the layer itself last. Layers of fewer than three channels are
        not chosen: their responses have no correlations.
    int
        Number of layers on the path that are not chosen.
    """
    layers = network.trace(size).layers
    names = [name for name in layers if name == layer or not layers[name].base]
    before = names[: names.index(layer)]
    module_names = {name: split_call(name)[0] for name in before}
    containers = {split_call(layer)[0], *module_names.values()}

    def is_inside(name: str) -> bool:
        path = module_names[name]
        return any(path[:k] in containers for k, character in enumerate(path) if character == ".")

    measurable = [name for name in before if network.layer(name, size).channels >= 3]
    inner = [name for name in measurable if is_inside(name)]
    outer = [name for name in measurable if not is_inside(name)]
    selected = {*_evenly_spaced(outer, limit), *_evenly_spaced(inner, limit)}
    return [*(name for name in before if name in selected), layer], len(before) - len(selected)


def _evenly_spaced(names: list[str], limit: int) -> list[str]:
    """Select evenly spaced names, the first and the last among them."""
    if len(names) <= limit:
        return names
    return [names[k] for k in np.unique(np.linspace(0, len(names) - 1, limit).round().astype(int))]


@dataclass(frozen=True, eq=False)
class EvaluatedNetwork:
    """A network whose map is evaluated, with its stored descents.

    Parameters
    ----------
    name : str
        "trained" or "random weights".
    network : Network
        The network.
    datasets : list of xarray.Dataset
        Arrays of all its descents; those of the evaluated map come first.
    run_seeds : int
        Number of seeds that the evaluated map is the mean of.
    store : Run
        Run folder of the validation.
    folder : Path
        Folder inside it that responses to photographs are stored in.
    clusters : dict of Path
        For each layer the file that the clusters of its map are read from, or written to.
    """

    name: str
    network: Network
    datasets: list[xr.Dataset]
    run_seeds: int
    store: Run
    folder: Path
    clusters: dict[str, Path]


def evaluate_layers(
    job: Job, evaluated: EvaluatedNetwork, images: PhotographFolder | None, neighbours: int, watcher: Watcher
) -> dict[str, Evaluation]:
    """Evaluate all layers of one network.

    Parameters
    ----------
    job : Job
        Job of the evaluated run (that of the trained network).
    evaluated : EvaluatedNetwork
        The network and its descents.
    images : PhotographFolder or None
        Photographs, which are probed by the network.
    neighbours : int
        Neighbours k of each feature in the run's graph.
    watcher : Watcher
        Receives progress updates.

    Returns
    -------
    dict of Evaluation
        By layer.
    """
    size, layers, evaluations = job.recipe.size, job.layers, {}
    paths = {layer: layers_on_path(evaluated.network, layer, size) for layer in layers}
    path_layers = [layer for path, _ in paths.values() for layer in path]
    responses = None if images is None else _probe_images(job, evaluated, images, path_layers, watcher)
    for layer in layers:
        evidence = _collect_evidence(job, layer, evaluated, responses, paths[layer])
        evidence.neighbours = neighbours
        evidence.clusters = _find_clusters(evidence, evaluated, layer, watcher)
        evaluations[layer] = evaluate_layer(evidence, evaluated.name, watcher)
    return evaluations


def _probe_images(
    job: Job, evaluated: EvaluatedNetwork, images: PhotographFolder, layers: list[str], watcher: Watcher
) -> tuple[xr.DataArray, xr.DataArray]:
    """Measure the layers' responses to photographs, and to the first seed's maximising images."""
    layers, size, device, network = list(dict.fromkeys(layers)), job.recipe.size, job.device.type, evaluated.network
    watcher.note(f"{evaluated.name}: {len(images)} photographs through {', '.join(layers)}")
    # A part is registered once it is complete, so that an interrupted one belongs to nothing and is removed later.
    part = evaluated.folder / f"photographs-{digest({'images': images.digest, 'layers': layers})}"
    execution = Execution(device, out=part, watcher=watcher)
    to_photographs = probe.probe(images, layers, network, size=size, execution=execution)
    evaluated.store.register_part(part)
    watcher.note(f"{evaluated.name}: {len(job.labels)} maximising images through the same layers")
    first_seed, part = evaluated.datasets[0].isel(seed=[0]), evaluated.folder / f"path-{digest({'layers': layers})}"
    execution = Execution(device, out=part, watcher=watcher)
    to_images = probe.probe(first_seed, layers, network, execution=execution)
    evaluated.store.register_part(part)
    return to_photographs, to_images


def _collect_evidence(
    job: Job,
    layer: str,
    evaluated: EvaluatedNetwork,
    responses: tuple[xr.DataArray, xr.DataArray] | None,
    path: tuple[list[str], int],
) -> Evidence:
    """Collect the evidence on one layer, all but its clusters."""
    names, size, run_seeds = job.features_of(layer), job.recipe.size, evaluated.run_seeds
    A = np.concatenate([d["A"].sel(image=names, response=names).values for d in evaluated.datasets])
    status = np.concatenate([d["status"].sel(image=names).values for d in evaluated.datasets])
    live = np.isin(status, LIVE_CODES) & np.isfinite(A).all(axis=2) & np.isfinite(A).all(axis=1)
    evidence = Evidence(layer, names, live[:run_seeds].all(axis=0), live.all(axis=0), A, run_seeds)
    images = evaluated.datasets[0]["images"].isel(seed=0)
    evidence.read_image = lambda name: images.sel(image=name).values
    if responses is not None:
        to_photographs, to_images = responses
        evidence.photograph_responses = to_photographs.sel(response=names).values
        path_layers, evidence.skipped_layers = path
        for path_layer in path_layers:
            columns = [f"{path_layer}:{c}" for c in range(evaluated.network.layer(path_layer, size).channels)]
            evidence.path_responses[path_layer] = (
                to_images.sel(image=names, response=columns).values,
                to_photographs.sel(response=columns).values,
            )
    channels = [int(name.rpartition(":")[2]) for name in names]
    weights = weight_paths.find_weights(evaluated.network, layer, size)
    evidence.incoming, evidence.outgoing = (_weight_cosines(w, channels) for w in weights)
    return evidence


def _weight_cosines(weights: weight_paths.FeatureWeights, channels: list[int]) -> tuple[np.ndarray, np.ndarray] | None:
    """Compute the cosines of some features' weights, and their groups; None where no feature has any."""
    groups = weights.groups[channels]
    if not (groups >= 0).any():
        return None
    return agreement.cosine_table(weights.vectors[channels], groups), groups


def _find_clusters(evidence: Evidence, evaluated: EvaluatedNetwork, layer: str, watcher: Watcher) -> Clusters | None:
    """Read the clusters of a layer's map from their file, or find them; those with random weights are stored."""
    live = [name for name, is_live in zip(evidence.names, evidence.live, strict=True) if is_live]
    if len(live) < 3:
        return None
    frame = pd.DataFrame(evidence.mean_responses, index=evidence.names, columns=evidence.names)
    null, path = pd.Series(0.0, index=evidence.names), evaluated.clusters[layer]
    # The file of the trained network's clusters belongs to the evaluated run, which alone writes it.
    own_file = None if evaluated.name == "trained" else path.relative_to(evaluated.store.folder).as_posix()
    files = evaluated.store.manifest.files
    if own_file is None or (own_file in files and evaluated.store.are_intact({own_file: files[own_file]})):
        stored = cluster_io.read(path, measures.profile(frame, null, live), evidence.neighbours)
        if stored is not None:
            return stored
    clusters = clustering.find_clusters(
        frame,
        null,
        live,
        settings=clustering.ClusterSettings(k=evidence.neighbours),
        progress=lambda done, total: watcher.stage(f"clusters of {layer}, {evaluated.name}", done, total),
    )
    if own_file is not None:
        text = cluster_io.to_json(clusters, evidence.neighbours)
        evaluated.store.write(own_file, lambda p: p.write_text(text, encoding="utf-8"))
        evaluated.store.save()
    return clusters
