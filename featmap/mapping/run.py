"""The main job: features of layers maximised, probed, compared, clustered and drawn, in one run folder."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from numpy.typing import ArrayLike

from featmap.errors import RecipeError, UnitError
from featmap.mapping import cross_tables, flags, large, result, tables
from featmap.mapping.result import LayerMaps, SimilarityMap, open_arrays
from featmap.network import selection
from featmap.network.model import Network, load
from featmap.network.unit import parse_channels, written_channels
from featmap.optimize.objective import channel
from featmap.optimize.photographs import starting_image
from featmap.optimize.recipe import Recipe
from featmap.optimize.recipe import recipe as named_recipe
from featmap.runs import device as devices
from featmap.runs import estimate, lifecycle
from featmap.runs import job as runs
from featmap.runs.engine import Engine, Silent, Watcher
from featmap.runs.job import Job
from featmap.runs.store import Run, digest

__all__ = ["LayerMaps", "SimilarityMap", "open_arrays", "similarity"]

STIMULI = ("layer", "shown")
Features = str | Sequence[int] | Mapping[str, str | Sequence[int]]
DEFAULT_NEIGHBOURS = 10
CHANGEABLE = (
    "metric",
    "C",
    "rows",
    "jitter",
    "parameterisation",
    "optimiser",
    "clamp",
    "rescue",
    "gradients",
    "precision",
)


def default_recipe(where: torch.device) -> str:
    """Return the recipe that is used where none is named: `fast` on a CPU, `standard` on an accelerator."""
    return "fast" if where.type == "cpu" else "standard"


def resolve(
    network: Network,
    where: torch.device,
    recipe: str | Recipe | None = None,
    size: int | None = None,
    steps: int | None = None,
    **changes: Any,
) -> Recipe:
    """Return the recipe with this network's sizes and the changes asked for.

    Raises
    ------
    RecipeError
        for a setting that is unknown or out of range.
    """
    unknown = [name for name in changes if name not in CHANGEABLE]
    if unknown:
        raise RecipeError(f"setting {unknown[0]!r} is unknown; allowed: {', '.join(CHANGEABLE)}")
    return named_recipe(default_recipe(where) if recipe is None else recipe).resolved(
        network.input_size, size, steps, **changes
    )


def similarity_job(
    layer: str | Sequence[str],
    network: Network,
    recipe: Recipe,
    *,
    probe_layers: str | Sequence[str] = (),
    features: Features = "all",
    stimuli: str = "layer",
    seed: int | None = None,
    seeds: int = 1,
    where: torch.device | None = None,
    start: str | Path | ArrayLike | None = None,
) -> tuple[Job, list[str]]:
    """Return the checked job of the maps of one layer or several, and the names of the features to show.

    What `layer` may be says `featmap.network.selection.named`.

    Raises
    ------
    FeatmapError
        for an unknown layer, channels out of range, or a size that is too small.
    """
    if stimuli not in STIMULI:
        raise UnitError(f"stimuli {stimuli!r} is unknown; allowed: layer (images of all its features) or shown")
    layers, probed = _layers(selection.named(layer, network, recipe.size), probe_layers)
    channels = {name: network.layer(name, recipe.size).channels for name in layers}
    listed = _listed(features, layers)
    chosen = {name: parse_channels(listed[name], count, name) for name, count in channels.items()}
    mapped = chosen if stimuli == "shown" else {name: list(range(count)) for name, count in channels.items()}
    written = {name: written_channels(c) for name, c in chosen.items()}
    several = len(layers) > 1
    job = Job(
        network,
        tuple(channel(name, c) for name in layers for c in mapped[name]),
        recipe,
        runs.check_seeds(seed, seeds, recipe),
        (*layers, *probed),
        where or torch.device("cpu"),
        None if start is None else starting_image(start, recipe.sizes[0]),
        (
            ("command", "similarity"),
            ("layers", layers) if several else ("layer", layers[0]),
            ("shown", written if several else written[layers[0]]),
            ("stimuli", stimuli),
        ),
    ).check()
    return job, [f"{name}:{c}" for name in layers for c in chosen[name]]


def _listed(features: Features, layers: list[str]) -> dict[str, str]:
    """Return the channels asked for, as `parse_channels` reads them, by layer."""
    if isinstance(features, Mapping):
        if set(features) != set(layers):
            raise UnitError(
                f"features are given for the layers {', '.join(map(str, features))}, the run maps {', '.join(layers)}; "
                "name the same layers, or give one list for all"
            )
        given: dict[str, str | Sequence[int]] = dict(features)
    else:
        given = dict.fromkeys(layers, features)
    return {name: text if isinstance(text, str) else ",".join(map(str, text)) for name, text in given.items()}


def _layers(layers: list[str], probe_layers: str | Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the layers to maximise and those to probe beside them, each once."""
    probed = list(dict.fromkeys([probe_layers] if isinstance(probe_layers, str) else probe_layers))
    if len(layers) > 1 and probed:
        raise UnitError(
            f"{len(layers)} layers and probe layers ({', '.join(probed)}) exclude each other: several layers are "
            "recorded at each other's images; list all, or maximise one layer and probe others"
        )
    if layers[0] in probed:
        raise UnitError(f"probe layer {layers[0]!r} is the layer that is maximised; name another one")
    return layers, probed


def default_folder(job: Job) -> Path:
    """Return where a job's run goes if nobody says."""
    return lifecycle.default_folder(job, dict(job.about).get("layers", job.layers[:1]))


def open_run(job: Job, out: str | Path | None) -> Run:
    """Return the job's run folder, new or taken up, with room enough for what is to come."""
    return lifecycle.open_run(job, default_folder(job) if out is None else Path(out), estimate.disk_needed(job))


def carry_out(job: Job, run: Run, watcher: Watcher, engine: Engine | None = None) -> int:
    """Make what is missing of the run's arrays; return how many work units were made now."""
    return lifecycle.carry_out(job, run, watcher, lambda: runs.execute(job, run, watcher, engine), engine)


def complete(job: Job, run: Run) -> None:
    """Note the checksums of everything in the manifest and call the run complete."""
    lifecycle.complete(run, (u.name for u in job.units()))


@overload
def similarity(layer: str, model: Any = "reference", **options: Any) -> SimilarityMap: ...
@overload
def similarity(layer: list[str] | tuple[str, ...], model: Any = "reference", **options: Any) -> LayerMaps: ...
def similarity(
    layer: str | Sequence[str],
    model: Any = "reference",
    *,
    probe_layers: str | Sequence[str] = (),
    weights: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_size: int | None = None,
    features: Features = "all",
    stimuli: str = "layer",
    measure: str = "coactivation",
    recipe: str | Recipe | None = None,
    size: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
    seeds: int = 1,
    neighbours: int = DEFAULT_NEIGHBOURS,
    device: str = "auto",
    start: str | Path | ArrayLike | None = None,
    out: str | Path | None = None,
    engine: str | Engine = "here",
    watcher: Watcher | None = None,
    **changes: Any,
) -> SimilarityMap | LayerMaps:
    """Map how alike the features of a layer are, or of several layers and between them.

    Parameters
    ----------
    layer : as `featmap layers` prints it; a list of layers maps each of them and every ordered pair, and so do
        "all" (the network's blocks), "convs" (all convolutions) and patterns, see `featmap.network.selection.named`
    probe_layers : layers whose responses to the one layer's images are recorded in the same forward passes
    model, weights, mean, std, input_size : the network, see `featmap.load`
    features : those that tables and figures show, "0-15,42" or a sequence, or either by layer; the rest are stimuli
        all the same
    stimuli : "layer": the images of all the layer's features; "shown": only those of the features shown
    measure : what the heatmap shows, a key of `featmap.stats.measures.MEASURES`
    recipe, size, steps : how the images are made; `changes` are other fields of the recipe (metric, C, rows)
    seed, seeds : the first seed and how many maps to make and average
    start : a photograph, or 3 x H x H of floats, to start from instead of noise
    neighbours : k of the neighbour graph
    out : the run folder; the same call with the same folder goes on where it stopped
    engine : where the descents run, "here", "ray" or a `featmap.Engine`

    Returns
    -------
    SimilarityMap
        for a name: the layer's map, square frames [N, N]; in `crossings`, by (layer, probed layer), what the
        probed layers' features do on its images: frames [N, M], labelled as all others.
    LayerMaps
        for several: `maps` by layer, `crossings` by ordered pair (l, k), frames [N_l, N_k]. From
        `featmap.stats.blockwise.LARGE` features on, these are read anew each time that they are asked for.

    In a crossing `profile` lies in [-1, 1]; `coactivation`, the share of the column feature's own best, needs
    that feature's own image and is there between listed layers only; `relative` and `selective` are unbounded.

    Raises
    ------
    FeatmapError
        in one line that says what was given, what is allowed and what to do.

    Source: the article, section "Feature Visualization from First Principles".
    """
    where, engine = devices.device(device), Engine.of(engine)
    network = load(model, weights, mean=mean, std=std, input_size=input_size)
    chosen = resolve(network, where, recipe, size, steps, **changes)
    tables.check_view(measure, neighbours)
    job, shown = similarity_job(
        layer,
        network,
        chosen,
        probe_layers=probe_layers,
        features=features,
        stimuli=stimuli,
        seed=seed,
        seeds=seeds,
        where=where,
        start=start,
    )
    run = open_run(job, out)
    found = run_similarity(job, shown, run, measure=measure, neighbours=neighbours, engine=engine, watcher=watcher)
    return found.maps[layer] if isinstance(layer, str) and list(found.maps) == [layer] else found


def run_similarity(
    job: Job,
    shown: list[str],
    run: Run,
    *,
    measure: str = "coactivation",
    neighbours: int = DEFAULT_NEIGHBOURS,
    engine: Engine | None = None,
    watcher: Watcher | None = None,
) -> LayerMaps:
    """Do what is left of a similarity run and return what it found."""
    watcher = watcher or Silent()
    with run.held():
        made = carry_out(job, run, watcher, engine)
        reliability = run.manifest.get("reliability", {})
        view: dict[str, Any] = {"measure": measure, "neighbours": neighbours}
        view |= {"reliability": digest(reliability)} if reliability else {}
        if large.is_large(job):
            return large.carry_out(job, shown, run, view, made, watcher)
        finished = not made and run.is_complete()
        begun = time.perf_counter()
        found = result.analyse(job, shown, run.folder, neighbours, watcher, finished, measure)
        for one in found.maps.values():
            flags.enter(one.features, reliability)
        if not finished or run.manifest.get("view") != view:
            run.manifest["files"] = {}
            for one in found.maps.values():
                tables.write(run, one, measure, neighbours, watcher)
            cross_tables.write(run, found, measure, watcher)
            run.manifest["timings"]["tables_and_figures"] = round(time.perf_counter() - begun, 3)
            run.manifest |= {"view": view, "summary": found.summary}
            complete(job, run)
        return found
