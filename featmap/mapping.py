"""The main job: a layer's features maximised, probed, compared, clustered and drawn, in one run folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

from featmap import estimates, findings, graph, measures, runs, tables
from featmap.engine import Silent, Watcher
from featmap.errors import FeatmapError, RecipeError, StoreError, UnitError
from featmap.models import Network, load
from featmap.objectives import channel
from featmap.photographs import read_photograph
from featmap.recipes import Recipe
from featmap.recipes import recipe as named_recipe
from featmap.runs import STATUSES, Job
from featmap.store import ARRAYS, Run, digest
from featmap.units import parse_channels, written_channels

STIMULI = ("layer", "shown")
DEFAULT_NEIGHBOURS = 10
CHANGEABLE = ("metric", "C", "rows", "jitter", "parameterisation", "optimiser", "clamp", "rescue")


@dataclass(eq=False)
class SimilarityMap:
    """What a similarity run found; the same as lies in its folder.

    Attributes
    ----------
    folder : the run folder
    activations : A of the features mapped, rows images, columns responses, averaged over seeds
    null : responses to the null image, averaged over seeds
    measures : frames by name: coactivation, relative, selective, profile; `pd.NA` where undefined
    clusters : consensus clusters of the profile similarity and their nulls
    features : one row a feature: status, activation, branch, cluster, nearest neighbours
    shown : the features that tables and figures show
    summary : the figures that the command prints
    """

    folder: Path
    activations: pd.DataFrame
    null: pd.Series
    measures: dict[str, pd.DataFrame]
    clusters: graph.Clusters
    features: pd.DataFrame
    shown: list[str]
    summary: dict[str, Any]

    @property
    def dataset(self) -> xr.Dataset:
        """The run's arrays with their labels: images, A, curves, statuses."""
        return open_arrays(self.folder)

    def lines(self) -> list[str]:
        """Return what was found, in words."""
        return tables.summary_lines(self.summary)

    def _repr_html_(self) -> str:
        items = "".join(f"<li>{escape(line)}</li>" for line in self.lines())
        head = self.features.head(20)._repr_html_()
        return f"<b>featmap similarity</b> {escape(str(self.folder))}<ul>{items}</ul>{head}"


def open_arrays(folder: str | Path) -> xr.Dataset:
    """Return the labelled arrays of a run folder, read lazily."""
    Run.read(Path(folder))
    return xr.open_zarr(Path(folder) / ARRAYS, consolidated=True)


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
    return named_recipe(recipe or default_recipe(where)).resolved(network.input_size, size, steps, **changes)


def similarity_job(
    layer: str,
    network: Network,
    recipe: Recipe,
    *,
    features: str | Sequence[int] = "all",
    stimuli: str = "layer",
    seed: int | None = None,
    seeds: int = 1,
    where: torch.device | None = None,
    start: str | Path | None = None,
) -> tuple[Job, list[str]]:
    """Return the checked job of a layer's map, and the names of the features to show.

    Raises
    ------
    FeatmapError
        for an unknown layer, channels out of range, or a size that is too small.
    """
    if stimuli not in STIMULI:
        raise UnitError(f"stimuli {stimuli!r} is unknown; allowed: layer (images of all its features) or shown")
    channels = network.layer(layer, recipe.size).channels
    listed = features if isinstance(features, str) else ",".join(map(str, features))
    chosen = parse_channels(listed, channels, layer)
    shown = [f"{layer}:{c}" for c in chosen]
    mapped = chosen if stimuli == "shown" else range(channels)
    job = Job(
        network,
        tuple(channel(layer, c) for c in mapped),
        recipe,
        runs.check_seeds(seed, seeds, recipe),
        (layer,),
        where or torch.device("cpu"),
        None if start is None else read_photograph(Path(start), recipe.sizes[0]),
        (("command", "similarity"), ("layer", layer), ("shown", written_channels(chosen)), ("stimuli", stimuli)),
    ).check()
    return job, shown


def default_folder(job: Job) -> Path:
    """Return where a job's run goes if nobody says: its name ends in a hash of all that its numbers depend on."""
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in f"{job.network.name}-{job.layers[0]}")
    return Path("runs") / f"{name[:80]}-{job.recipe.name}-{digest(job.identity())}"


def open_run(job: Job, out: str | Path | None) -> Run:
    """Return the job's run folder, new or taken up, with room enough for what is to come."""
    folder = default_folder(job) if out is None else Path(out)
    need, free = estimates.disk_needed(job), estimates.free_space(folder)
    if need > free and not (folder / "manifest.json").exists():
        raise StoreError(
            f"run folder {str(folder)!r}: no space: {need / 1e6:,.0f} MB needed, "
            f"{free / 1e6:,.0f} MB free; give another --out"
        )
    about = {
        "network": str(job.network),
        "model_arguments": job.network.arguments,
        "command": dict(job.about).get("command"),
        "environment": runs.environment(job.device),
        "recipe_notes": list(job.recipe.notes),
        "timings": {},
    }
    return Run(folder, job.identity()).open(job.arrays(), job.coords(), about)


def carry_out(job: Job, run: Run, watcher: Watcher) -> int:
    """Make what is missing of the run's arrays; return how many work units were made now."""
    now = runs.environment(job.device)
    if now != run.manifest["environment"]:
        later = run.manifest.setdefault("later_environments", [])
        later += [now] if now not in later else []
        watcher.note("this run was begun with other library versions or threads: images may differ in the last bits")
    begun = time.perf_counter()
    made = runs.execute(job, run, watcher)
    if made:
        timings = run.manifest["timings"]
        timings["descent_and_probe"] = round(timings.get("descent_and_probe", 0.0) + time.perf_counter() - begun, 3)
        run.manifest["status"] = "running"
        run.save()
    return made


def complete(job: Job, run: Run) -> None:
    """Note the checksums of everything in the manifest and call the run complete."""
    run.manifest["units"] = {u.name: run.record(u.name) for u in job.units()}
    run.manifest["status"] = "complete"
    run.save()


def similarity(
    layer: str,
    model: Any = "reference",
    *,
    weights: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_size: int | None = None,
    features: str | Sequence[int] = "all",
    stimuli: str = "layer",
    measure: str = "coactivation",
    recipe: str | Recipe | None = None,
    size: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
    seeds: int = 1,
    neighbours: int = DEFAULT_NEIGHBOURS,
    device: str = "auto",
    start: str | Path | None = None,
    out: str | Path | None = None,
    watcher: Watcher | None = None,
    **changes: Any,
) -> SimilarityMap:
    """Map how alike the features of a layer are.

    Parameters
    ----------
    layer : as `featmap layers` prints it
    model, weights, mean, std, input_size : the network, see `featmap.load`
    features : those that tables and figures show, "0-15,42" or a sequence; the rest are stimuli all the same
    stimuli : "layer": the images of all the layer's features; "shown": only those of the features shown
    measure : what the heatmap shows, a key of `featmap.measures.MEASURES`
    recipe, size, steps : how the images are made; `changes` are other fields of the recipe (metric, C, rows)
    seed, seeds : the first seed and how many maps to make and average
    neighbours : k of the neighbour graph
    out : the run folder; the same call with the same folder goes on where it stopped

    Raises
    ------
    FeatmapError
        in one line that says what was given, what is allowed and what to do.

    Source: the article, section "Feature Visualization from First Principles".
    """
    where = runs.device(device)
    network = load(model, weights, mean=mean, std=std, input_size=input_size)
    chosen = resolve(network, where, recipe, size, steps, **changes)
    tables.check_view(measure, neighbours)
    job, shown = similarity_job(
        layer,
        network,
        chosen,
        features=features,
        stimuli=stimuli,
        seed=seed,
        seeds=seeds,
        where=where,
        start=start,
    )
    return run_similarity(job, shown, open_run(job, out), measure=measure, neighbours=neighbours, watcher=watcher)


def run_similarity(
    job: Job,
    shown: list[str],
    run: Run,
    *,
    measure: str = "coactivation",
    neighbours: int = DEFAULT_NEIGHBOURS,
    watcher: Watcher | None = None,
) -> SimilarityMap:
    """Do what is left of a similarity run and return what it found."""
    watcher = watcher or Silent()
    made = carry_out(job, run, watcher)
    view = {"measure": measure, "neighbours": neighbours}
    finished = not made and run.is_complete()
    begun = time.perf_counter()
    found = analyse(job, shown, run.folder, neighbours, watcher, read_clusters=finished)
    if not finished or run.manifest.get("view") != view:
        run.manifest["files"] = {}
        tables.write(run, found, measure, neighbours, watcher)
        run.manifest["timings"]["tables_and_figures"] = round(time.perf_counter() - begun, 3)
        run.manifest |= {"view": view, "summary": found.summary}
        complete(job, run)
    return found


def combined_status(status: np.ndarray) -> np.ndarray:
    """Return one status a feature from those of all seeds (S x N): the worst, as `STATUSES` is ordered."""
    return status.max(axis=0)


def analyse(
    job: Job, shown: list[str], folder: Path, neighbours: int, watcher: Watcher, read_clusters: bool = False
) -> SimilarityMap:
    """Return measures, clusters and tables of the arrays in a run folder.

    `read_clusters` says that those in the folder belong to these arrays, so that they need not be found again.
    """
    data = open_arrays(folder)
    names = job.labels
    responses = data["A"].sel(response=names).values.astype(np.float64)
    nulls = data["null"].sel(response=names).values.astype(np.float64)
    status = combined_status(data["status"].values.astype(int))
    live = [n for n, s in zip(names, status, strict=True) if s in (runs.LIVE, runs.RESCUED)]
    A = pd.DataFrame(responses.mean(0), index=names, columns=names)
    null = pd.Series(nulls.mean(0), index=names)
    frames = {name: m(A, null, live) for name, m in measures.MEASURES.items() if name != "raw"}
    clusters = findings.read(folder / findings.NAME, frames["profile"], neighbours) if read_clusters else None
    if clusters is None:
        clusters = graph.find_clusters(
            A, null, live, k=neighbours, progress=lambda done, total: watcher.stage("clusters and nulls", done, total)
        )
    layer = job.network.layer(job.responses[0], job.recipe.size)
    features = tables.features(
        names,
        layer,
        [STATUSES[s] for s in status],
        data["activation"].values.mean(0),
        A,
        null,
        frames,
        clusters,
    )
    summary = tables.summarise(features, A, frames, clusters, live, shown)
    if len(job.seeds) > 1:
        summary["seeds"] = _over_seeds(job, responses, nulls, live, clusters, neighbours)
    return SimilarityMap(folder, A, null, frames, clusters, features, shown, summary)


def _over_seeds(
    job: Job,
    responses: np.ndarray,
    nulls: np.ndarray,
    live: list[str],
    clusters: graph.Clusters,
    neighbours: int,
) -> dict[str, Any]:
    """Return how far the maps of single seeds agree: correlation of S, and ARI of the communities."""
    names, frames, parts = job.labels, [], []
    for one, none in zip(responses, nulls, strict=True):
        A = pd.DataFrame(one, index=names, columns=names)
        S = measures.profile(A, pd.Series(none, index=names), live)
        frames.append(S)
        parts.append(graph.communities(graph.neighbour_graph(S, neighbours)).labels.to_numpy())
    pairs = [(i, j) for i in range(len(parts)) for j in range(i)]
    try:
        agreement: float | None = float(measures.seed_agreement(frames))
    except FeatmapError:  # fewer than two similarities that vary: nothing to correlate
        agreement = None
    return {
        "count": len(job.seeds),
        "correlation_of_S": agreement,
        "ari_of_clusters": float(np.mean([graph.adjusted_rand(parts[i], parts[j]) for i, j in pairs])),
        "ari_of_louvain_with_itself": float(clusters.communities.self_agreement),
    }
