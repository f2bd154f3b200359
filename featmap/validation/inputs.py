"""What is known of each layer, gathered from stored arrays: of the trained network, and with random weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from featmap.files import digest
from featmap.mapping import cluster_io
from featmap.network import weight_paths
from featmap.network.model import Network
from featmap.network.unit import split_call
from featmap.runs import probe
from featmap.runs.array_layout import LIVE_CODES
from featmap.runs.engine import Execution
from featmap.runs.job import Job
from featmap.runs.progress import Watcher
from featmap.runs.store import Run
from featmap.stats import agreement, clustering, measures
from featmap.stats.clustering import Clusters
from featmap.validation.statistics import Evaluation, Evidence, evaluate_layer

MAX_PATH_LAYERS = 8
"""How many of the outermost layers on the way are looked at, and how many of those inside them."""


def layers_on_path(network: Network, layer: str, size: int, most: int = MAX_PATH_LAYERS) -> tuple[list[str], int]:
    """Return the layers on the way to a layer that are looked at, itself last, and how many are not.

    Of the layers done before it, `most` of the outermost, spread evenly, and `most` of those inside them or inside the
    layer itself: two ways may part and join again within one block. Layers of fewer than three channels cannot be
    looked at, what is no module is no layer.
    """
    names = list(network.trace(size).layers)
    before = names[: names.index(layer)]
    bare = {name: split_call(name)[0] for name in before}
    target = split_call(layer)[0]
    around = {target, *bare.values()}

    def is_inside(name: str) -> bool:
        path = bare[name]
        return any(path[:k] in around for k, sign in enumerate(path) if sign == ".")

    able = [name for name in before if network.layer(name, size).channels >= 3]
    inner = [name for name in able if is_inside(name)]
    outer = [name for name in able if not is_inside(name)]
    chosen = {*_evenly_spread(outer, most), *_evenly_spread(inner, most)}
    return [*(name for name in before if name in chosen), layer], len(before) - len(chosen)


def _evenly_spread(names: list[str], most: int) -> list[str]:
    if len(names) <= most:
        return names
    return [names[k] for k in np.unique(np.linspace(0, len(names) - 1, most).round().astype(int))]


@dataclass(frozen=True, eq=False)
class EvaluatedNetwork:
    """One network's part of a validation.

    Attributes
    ----------
    name : "trained" or "random weights"
    network : the network
    sets : the arrays of all its descents, the judged map's own first
    kept : how many seeds of the first of `sets` that map is the mean of
    store : the run folder of the validation
    folder : in it, where responses to photographs go
    clusters : by layer, the file that the clusters of its map lie in, or go to
    """

    name: str
    network: Network
    sets: list[xr.Dataset]
    kept: int
    store: Run
    folder: Path
    clusters: dict[str, Path]


def evaluate_layers(
    job: Job, side: EvaluatedNetwork, images: Path | None, neighbours: int, watcher: Watcher
) -> dict[str, Evaluation]:
    """Return the trials of all layers of one network; photographs are streamed through it where there are some.

    `job` is the judged run's (of the trained network), `neighbours` its k.
    """
    size, layers, found = job.recipe.size, job.layers, {}
    ways = {layer: layers_on_path(side.network, layer, size) for layer in layers}
    passed = [la for way, _ in ways.values() for la in way]
    seen = None if images is None else _probe_images(job, side, images, passed, watcher)
    for layer in layers:
        evidence = _collect_evidence(job, layer, side, seen, ways[layer])
        evidence.neighbours = neighbours
        evidence.clusters = _find_clusters(evidence, side, layer, watcher)
        found[layer] = evaluate_layer(evidence, side.name, watcher)
    return found


def _probe_images(
    job: Job, side: EvaluatedNetwork, folder: Path, layers: list[str], watcher: Watcher
) -> tuple[xr.DataArray, xr.DataArray]:
    """Return the layers' responses to photographs, and to the first seed's maximising images."""
    layers, size, where = list(dict.fromkeys(layers)), job.recipe.size, job.device.type
    given = probe.open_source(folder, size, size)
    watcher.note(f"{side.name}: {len(given.labels)} photographs through {', '.join(layers)}")
    # a part of the validation is noted once it is whole: what is given up half made belongs to nothing
    place = side.folder / f"photographs-{digest({'images': given.digest, 'layers': layers})}"
    natural = probe.probe(
        folder, layers, side.network, size=size, execution=Execution(where, out=place, watcher=watcher)
    )
    side.store.register_part(place)
    watcher.note(f"{side.name}: {len(job.labels)} maximising images through the same layers")
    first, place = side.sets[0].isel(seed=[0]), side.folder / f"path-{digest({'layers': layers})}"
    images = probe.probe(first, layers, side.network, execution=Execution(where, out=place, watcher=watcher))
    side.store.register_part(place)
    return natural, images


def _collect_evidence(
    job: Job,
    layer: str,
    side: EvaluatedNetwork,
    seen: tuple[xr.DataArray, xr.DataArray] | None,
    way: tuple[list[str], int],
) -> Evidence:
    names, size = job.features_of(layer), job.recipe.size
    A = np.concatenate([d["A"].sel(image=names, response=names).values for d in side.sets])
    status = np.concatenate([d["status"].sel(image=names).values for d in side.sets])
    well = np.isin(status, LIVE_CODES) & np.isfinite(A).all(axis=2) & np.isfinite(A).all(axis=1)
    evidence = Evidence(layer, names, well[: side.kept].all(axis=0), well.all(axis=0), A, side.kept)
    pictures = side.sets[0]["images"].isel(seed=0)
    evidence.image_of = lambda name: pictures.sel(image=name).values
    if seen is not None:
        natural, images = seen
        evidence.photographs = natural.sel(response=names).values
        looked_at, evidence.passed_over = way
        for place in looked_at:
            columns = [f"{place}:{c}" for c in range(side.network.layer(place, size).channels)]
            pair = images.sel(image=names, response=columns).values, natural.sel(response=columns).values
            evidence.paths[place] = pair
    chosen = [int(n.rpartition(":")[2]) for n in names]
    incoming, outgoing = (_weight_cosines(w, chosen) for w in weight_paths.find_weights(side.network, layer, size))
    evidence.incoming, evidence.outgoing = incoming, outgoing
    return evidence


def _weight_cosines(weights: weight_paths.FeatureWeights, chosen: list[int]) -> tuple[np.ndarray, np.ndarray] | None:
    groups = weights.groups[chosen]
    if not (groups >= 0).any():
        return None
    return agreement.cosine_table(weights.vectors[chosen], groups), groups


def _find_clusters(evidence: Evidence, side: EvaluatedNetwork, layer: str, watcher: Watcher) -> Clusters | None:
    """Return the clusters of the side's map: those in its file, or new ones, which are then kept there."""
    who = [n for n, w in zip(evidence.names, evidence.live, strict=True) if w]
    if len(who) < 3:
        return None
    frame = pd.DataFrame(evidence.own, index=evidence.names, columns=evidence.names)
    null, path = pd.Series(0.0, index=evidence.names), side.clusters[layer]
    own = None if side.name == "trained" else path.relative_to(side.store.folder).as_posix()
    noted = side.store.manifest.files
    if own is None or (own in noted and side.store.are_intact({own: noted[own]})):
        known = cluster_io.read(path, measures.profile(frame, null, who), evidence.neighbours)
        if known is not None:
            return known
    found = clustering.find_clusters(
        frame,
        null,
        who,
        k=evidence.neighbours,
        progress=lambda done, total: watcher.stage(f"clusters of {layer}, {side.name}", done, total),
    )
    if own is not None:  # the run's own file is the run's business
        text = cluster_io.to_json(found, evidence.neighbours)
        side.store.write(own, lambda p: p.write_text(text, encoding="utf-8"))
        side.store.save()
    return found
