"""Run a similarity map: maximise the features of layers, probe, compare, cluster and draw, in one run folder."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import overload

import numpy as np
import psutil
import torch
from numpy.typing import ArrayLike
from torch import nn

from featmap.errors import UnitError
from featmap.mapping import analysis, cross_tables, examples, flags, large, photograph_map, writing
from featmap.mapping import photographs as photograph_jobs
from featmap.mapping.examples import ExampleSource
from featmap.mapping.layer_arrays import PhotographLayers
from featmap.mapping.photographs import BATCH, PhotographJob, PhotographUnit, PhotographWorker
from featmap.mapping.result import LayerMaps, SimilarityMap, photograph_prefix
from featmap.mapping.view import DEFAULT_EXAMPLES, PHOTOGRAPHS, View, recorded_formula
from featmap.network import selection
from featmap.network.loading import load
from featmap.network.model import Network
from featmap.network.unit import format_channels, parse_channels
from featmap.optimize.limits import estimate_memory, resolve_recipe, seeds_of
from featmap.optimize.objective import channel
from featmap.optimize.photograph_folder import UNIT_PHOTOGRAPHS, AnyPhotographs
from featmap.optimize.photographs import load_start_image
from featmap.optimize.recipe import Recipe
from featmap.plotting import heatmaps
from featmap.runs import estimate as estimates
from featmap.runs import lifecycle, probe
from featmap.runs.device import deterministic_settings
from featmap.runs.engine import Execution
from featmap.runs.estimate import ATLAS, CLUSTERS, TABLES, Estimate, Part, part
from featmap.runs.job import Job, Selection
from featmap.runs.manifest import SIMILARITY
from featmap.runs.progress import Watcher
from featmap.runs.store import Run, open_arrays
from featmap.runs.worker import checked
from featmap.stats import blockwise
from featmap.stats.measures import FORMULA


def similarity_job(
    layers: str | Sequence[str],
    network: Network,
    recipe: Recipe,
    *,
    view: View | None = None,
    seeds: int | Iterable[int] = 1,
    start: str | Path | ArrayLike | None = None,
    device: torch.device | None = None,
) -> Job:
    """Build and check the job of a similarity run of one layer or several.

    Parameters
    ----------
    layers : str or sequence of str
        See `featmap.network.selection.select_layers`.
    network : Network
        Network of the layers.
    recipe : Recipe
        Resolved recipe.
    view, seeds, start
        See `similarity`.
    device : torch.device, optional
        Where the network is computed; None is the CPU.

    Returns
    -------
    Job
        The checked job.

    Raises
    ------
    FeatmapError
        If a layer does not exist, a channel is out of range, the size is too small, or a setting does not go with
        photographs alone.
    """
    view = view or View()
    mapped, probed = _split_layers(selection.select_layers(layers, network, recipe.size), view.probed())
    known = {name: network.layer(name, recipe.size) for name in mapped}
    counts = {name: layer.channels for name, layer in known.items()}
    shown = {
        name: parse_channels(text, counts[name], name, known[name].names)
        for name, text in view.channels(mapped).items()
    }
    stimuli = shown if view.stimuli == "shown" else {name: list(range(count)) for name, count in counts.items()}
    maximised = [] if view.stimuli == PHOTOGRAPHS else [(name, c) for name in mapped for c in stimuli[name]]
    job = Job(
        network=network,
        objectives=tuple(channel(name, c) for name, c in maximised),
        recipe=recipe,
        seeds=seeds_of(seeds, recipe),
        responses=(*mapped, *probed),
        device=device or torch.device("cpu"),
        start=None if start is None else load_start_image(start, recipe.sizes[0], network.channels),
        command=SIMILARITY,
        facets=view.facets,
        selection=Selection(tuple((name, format_channels(shown[name])) for name in mapped), view.stimuli),
    )
    return checked(job) if job.objectives else photograph_jobs.check_alone(job)


def add_photographs(
    job: Job, photographs: AnyPhotographs, watcher: Watcher, examples: int = DEFAULT_EXAMPLES
) -> PhotographJob:
    """Open photographs, and add them to a similarity job.

    Parameters
    ----------
    job : Job
        The checked job, see `similarity_job`.
    photographs : path, Photographs or PhotographFolder
        The photographs; every one that is not open yet is decoded once.
    watcher : Watcher
        Receives the progress, and what is left out.
    examples : int, default 9
        Best photographs of each feature that are shown.

    Returns
    -------
    PhotographJob
        The job with the photographs at the size of the recipe's images.

    Raises
    ------
    FeatmapError
        If the network does not take photographs, there are none, some are broken and not skipped, or the limit is
        below 1.
    """
    stimuli = probe.open_stimuli(photographs, job.recipe.size, job.network.channels, watcher)
    return photograph_jobs.with_photographs(job, stimuli, examples)


def _split_layers(layers: list[str], probed: list[str]) -> tuple[list[str], list[str]]:
    """Check that the layers to maximise and those to probe do not overlap; return both, each layer once."""
    if len(layers) > 1 and probed:
        raise UnitError(
            f"{len(layers)} layers and probe layers ({', '.join(probed)}) exclude each other: several layers respond "
            "to each other's images anyway; list all layers, or maximise one layer and probe the others"
        )
    if layers[0] in probed:
        raise UnitError(f"probe layer {layers[0]!r} is the layer that is maximised; name another one")
    return layers, probed


@overload
def similarity(
    layers: str,
    network: str | nn.Module | Network = ...,
    *,
    view: View | None = ...,
    recipe: str | Recipe | None = ...,
    seeds: int | Iterable[int] = ...,
    start: str | Path | ArrayLike | None = ...,
    photographs: AnyPhotographs | None = ...,
    execution: Execution | None = ...,
) -> SimilarityMap: ...
@overload
def similarity(
    layers: list[str] | tuple[str, ...],
    network: str | nn.Module | Network = ...,
    *,
    view: View | None = ...,
    recipe: str | Recipe | None = ...,
    seeds: int | Iterable[int] = ...,
    start: str | Path | ArrayLike | None = ...,
    photographs: AnyPhotographs | None = ...,
    execution: Execution | None = ...,
) -> LayerMaps: ...
def similarity(
    layers: str | Sequence[str],
    network: str | nn.Module | Network = "reference",
    *,
    view: View | None = None,
    recipe: str | Recipe | None = None,
    seeds: int | Iterable[int] = 1,
    start: str | Path | ArrayLike | None = None,
    photographs: AnyPhotographs | None = None,
    execution: Execution | None = None,
) -> SimilarityMap | LayerMaps:
    """Map the similarity of the features of one layer, or within and between several.

    Parameters
    ----------
    layers : str or sequence of str
        A name as `featmap layers` prints it. A list of layers maps each of them and every ordered pair, and so do
        "all" (the blocks of the network), "convs" (all convolutions) and patterns, see
        `featmap.network.selection.select_layers`.
    network : str, torch.nn.Module or Network, default "reference"
        A name that `featmap.load` takes, a module that takes images in [0, 1], or a loaded network.
    view : View, optional
        Features that are shown, stimuli, probed layers and measure.
    recipe : str or Recipe, optional
        Recipe of the maximising images, such as ``Recipe.named("fast", size=96, steps=40)``. None is "fast" on a CPU
        and "standard" on an accelerator.
    seeds : int or iterable of int, default 1
        Number of seeds of the noise, counted from the recipe's own, or the seeds themselves; responses are averaged
        over seeds.
    start : path or array, optional
        A photograph, or C x H x W values in [0, 1], to start from instead of noise.
    photographs : path, Photographs or PhotographFolder, optional
        Photographs that make a second map, `SimilarityMap.photographs`, or the only one under
        ``View(stimuli="photographs")``. A folder or zip, or `featmap.optimize.photograph_folder.Photographs` to set a
        limit or to skip broken ones. They are resized to the size of the recipe's images.
    execution : Execution, optional
        Device, engine, run folder and progress.

    Returns
    -------
    SimilarityMap or LayerMaps
        For a single name, the map of the layer, with frames [N, N]; its `crossings`, by (layer, probed layer), hold
        the responses of the probed layer's features to its images, with frames [N, M]. For several layers: `maps` by
        layer, `crossings` by ordered pair (l, k), with frames [N_l, N_k]; from `featmap.stats.blockwise.LARGE` features
        on, these are read each time that one is requested. With photographs, `photograph_crossings` hold S over
        photographs of the same pairs.

    Raises
    ------
    FeatmapError
        If a layer does not exist, a setting is out of range, or the run folder holds something else.

    Notes
    -----
    Between layers, `profile` lies in [-1, 1]; `coactivation`, the share of the column feature's own best response,
    needs that feature's own image and exists between mapped layers only; `relative` and `selective` are unbounded.

    References
    ----------
    The article, section "Feature Visualization from First Principles".
    """
    execution, view = execution or Execution(), view or View()
    loaded, device = load(network), execution.torch_device()
    job = similarity_job(
        layers,
        loaded,
        resolve_recipe(recipe, loaded, device),
        view=view,
        seeds=seeds,
        start=start,
        device=device,
    )
    if photographs is None:
        photograph_jobs.require_images(job)
    else:
        job = add_photographs(job, photographs, execution.watcher, view.examples)
    maps = carry_out(job, lifecycle.open_run(job, execution.out), view, execution)
    return maps.maps[layers] if isinstance(layers, str) and list(maps.maps) == [layers] else maps


def carry_out(job: Job, run: Run, view: View, execution: Execution | None = None) -> LayerMaps:
    """Finish a similarity run: missing arrays, analysis, tables and figures.

    Parameters
    ----------
    job : Job
        Job of the run.
    run : Run
        Run folder.
    view : View
        Features, measure and neighbours that tables and figures show.
    execution : Execution, optional
        Engine and progress.

    Returns
    -------
    LayerMaps
        Similarity map of each layer and cross-layer map of every ordered pair.
    """
    execution = execution or Execution()
    watcher = execution.watcher
    with run.locked():
        source = None
        if isinstance(job, PhotographJob) and job.photographs.source is not None:
            lifecycle.record_photographs(run, job.photographs.source.record())
            examples.record_folder(run, job.photographs.source.path)
            source = ExampleSource(job.network, job.photographs.source, job.photographs.size, job.device)
        count = lifecycle.carry_out(job, run, photograph_jobs.worker_of(job), watcher, execution.engine)
        reliability = run.manifest.reliability
        record = view.record(reliability)
        if large.is_large(job):
            earlier = run.manifest.files
            also = partial(examples.write_examples, run, source, earlier=earlier, watcher=watcher, k=view.examples)
            return large.carry_out(job, run, view, count, watcher, also)
        # without new work units, the stored clusters and tables belong to the present arrays; S of an earlier version
        # had another formula
        finished = not count and run.is_complete() and recorded_formula(run.manifest.view) == FORMULA
        # the agreement of both maps counts the communities of their graphs
        same_graphs = finished and View.from_record(run.manifest.view).neighbours == view.neighbours
        begun = time.perf_counter()
        analyse = analysis.analyse if job.objectives else photograph_map.map_alone
        maps = analyse(job, run.folder, view, watcher, reuse=finished)
        for one in maps.maps.values():
            flags.add_reliability(one.features, reliability)
            if isinstance(job, PhotographJob) and job.objectives:
                photograph_map.add(one, job, view, watcher, same_graphs)
        crossings = _photograph_crossings(job, run, maps)
        if finished:  # not in runs of earlier versions
            names = ("photograph_crossings", "photograph_network")
            maps.summary |= {name: run.manifest.summary[name] for name in names if name in run.manifest.summary}
        if not finished or run.manifest.view != record:
            earlier, run.manifest.files = run.manifest.files, {}  # all tables and figures are written again
            for one in maps.maps.values():
                writing.write(run, one, view, watcher)
                examples.write_examples(run, source, one, earlier, watcher, view.examples)
            cross_tables.write(run, maps, view, watcher)
            if crossings:
                _write_photograph_crossings(job, run, maps, crossings, view, watcher)
            run.manifest.timings["tables_and_figures"] = round(time.perf_counter() - begun, 3)
            run.manifest.view, run.manifest.summary = record, maps.summary
            lifecycle.complete(job, run)
        return maps


def _photograph_crossings(job: Job, run: Run, maps: LayerMaps) -> cross_tables.PhotographCrossings | None:
    """Open the maps over photographs between layers; None for a run without photographs or of a single layer."""
    pairs = [(one, other) for one in job.layers for other in job.responses if other != one]
    if not isinstance(job, PhotographJob) or not pairs:
        return None
    found = cross_tables.PhotographCrossings(open_arrays(run.folder), pairs)
    maps.photograph_crossings = found
    for one in maps.maps.values() if len(maps.maps) == 1 else ():
        one.photograph_crossings = found
    return found


def _write_photograph_crossings(
    job: Job,
    run: Run,
    maps: LayerMaps,
    crossings: cross_tables.PhotographCrossings,
    view: View,
    watcher: Watcher,
) -> None:
    """Write the maps over photographs between layers, block by block where photographs alone map a whole network."""
    prefix = photograph_prefix("", not job.objectives)
    channels = [job.network.layer(layer, job.recipe.size).channels for layer in job.layers]
    if blockwise.is_large(channels):
        # of the mapped layers, as in a run with images
        mapped = PhotographLayers.read(open_arrays(run.folder), job.layers)
        maps.summary["photograph_network"] = large.write_photographs(run, mapped, view, prefix, watcher)
    else:
        entries = cross_tables.write_photographs(run, maps, crossings, prefix, watcher)
        maps.summary["photograph_crossings"] = entries  # of a single layer this is the summary of its map, too


def list_parts(job: Job, atlas: bool = False) -> list[Part]:
    """List the parts of a similarity run, in their order.

    Parameters
    ----------
    job : Job
        The checked job.
    atlas : bool, default False
        Whether an atlas is made.

    Returns
    -------
    list of Part
        Descents, analysis, tables and figures, and pages.
    """
    parts = [estimates.descents(job)] if job.objectives else []
    has_photographs = isinstance(job, PhotographJob)
    if has_photographs:
        parts.append(Part(PHOTOGRAPHS))  # timed while it runs
    if large.is_large(job):  # of whole networks nothing but descents and responses is foretold
        return parts
    shown = {layer: sum(f.rpartition(":")[0] == layer for f in job.shown) for layer in job.layers}
    wide = {layer: job.network.layer(layer, job.recipe.size).channels for layer in job.layers}
    images = {layer: len(job.features_of(layer)) for layer in job.layers if job.objectives}
    parts += [part(CLUSTERS, count) for count in images.values()]
    pairs = len(job.layers) * len(job.responses) - len(job.layers)
    if pairs and job.objectives:
        parts.append(part("layer pairs and floors", pairs))
    for layer in job.layers if has_photographs else ():
        parts.append(part("clusters and nulls of photographs", wide[layer]))
        if images:
            parts.append(part("agreement with photographs, and its ceiling", images[layer]))
    for layer in job.layers:
        if has_photographs:
            parts.append(part("tables and figures of photographs", shown[layer]))
        if images:
            parts.append(part(TABLES, shown[layer]))
        if has_photographs:
            parts.append(part("examples", min(shown[layer], examples.PAGE_ROWS)))
    cross = "cross-layer tables and figures"
    if pairs and images:
        parts.append(part(cross, pairs))
    if pairs and has_photographs:
        parts.append(Part(f"{cross} of photographs", part(cross, pairs).seconds))
    return [*parts, *(part(ATLAS, min(count, heatmaps.MAX_CELLS)) for count in shown.values() if atlas)]


def estimate(job: Job, folder: Path, atlas: bool = False) -> Estimate:
    """Estimate a similarity job, with its photographs.

    One batch of photographs is read and measured, and extrapolated.

    Parameters
    ----------
    job : Job
        The checked job.
    folder : Path
        Run folder of the job; nothing is written.
    atlas : bool, default False
        Whether an atlas is made.

    Returns
    -------
    Estimate
        Time, memory and disk.
    """
    start, later = estimates.start_seconds(), estimates.later_seconds(list_parts(job, atlas))
    if not isinstance(job, PhotographJob):
        return replace(estimates.estimate(job, folder), start=start, later=later)
    of_images = (
        estimates.estimate(job, folder)
        if job.makes_images
        else Estimate(0.0, psutil.Process().memory_info().rss, job.disk_needed, lifecycle.free_space(folder))
    )
    count = min(len(job.photographs), BATCH)
    with deterministic_settings():
        worker = PhotographWorker(job)
        worker.measure(PhotographUnit(0, 1))  # the first pass warms up
        begun = time.perf_counter()
        worker.measure(PhotographUnit(0, count))
        # a batch is padded: a short one takes the time of a full one
        seconds = (time.perf_counter() - begun) / count * len(job.photographs)
    memory = psutil.Process().memory_info().rss + memory_needed(job)
    memory = max(of_images.memory, memory)
    return replace(of_images, seconds=of_images.seconds + seconds, memory=memory, start=start, later=later)


def memory_needed(job: PhotographJob) -> int:
    """Estimate the memory that photographs take beside what the process holds.

    Parameters
    ----------
    job : PhotographJob
        The job.

    Returns
    -------
    int
        Bytes: the largest of a work unit's, of those that the layers' similarities and the agreement with those over
        images take, and of those of the comparison of all layers.
    """
    network, size = job.network, job.recipe.size
    pixels = 4 * int(np.prod(network.image_shape(size))) * UNIT_PHOTOGRAPHS
    unit = pixels + estimate_memory(network, job.recipe, job.responses, BATCH)
    cells = [network.layer(layer, size).channels ** 2 for layer in job.layers]
    # S of all layers; of the widest one what its graph takes, or the comparison with the map of images (measured: S of
    # both, of two halves and of best photographs, and 12 arrays in the work on them); and eight of a block
    own = 8 * (sum(cells) + (18 if job.objectives else 3) * max(cells) + 8 * blockwise.SLICE_CELLS)
    if len(job.responses) == 1:
        return max(unit, own)
    features, count = len(job.columns), len(job.photographs)
    panel = min(blockwise.PANEL_BYTES, 8 * features * max(count, features))
    sampled = 8 * count * min(features, blockwise.CHANCE_FEATURES)
    kept = 8 * min(features, blockwise.LARGE) ** 2
    return max(unit, own, 4 * panel + min(blockwise.PANEL_BYTES, sampled) + kept + 64 * blockwise.SLICE_CELLS)
