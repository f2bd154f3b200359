"""Validate a similarity run: repeat its maps with further seeds and compare them with photographs, weights and nulls.

Everything is stored in `RUN/validation/`, inside the evaluated run, because the run's tables are marked by it and both
are copied together. Each part is a run folder of its own, named by what it depends on (`seed-1`, `photographs-...`), so
that a later call with more seeds, or with photographs, computes only what is new.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from torch import nn

from featmap.errors import FeatmapError, ModelError
from featmap.files import digest
from featmap.mapping import cluster_io, tables
from featmap.mapping import run as mapping
from featmap.mapping.photographs import with_stored_photographs, without_photographs
from featmap.mapping.view import PHOTOGRAPHS, View, recorded_formula
from featmap.network.loading import load
from featmap.network.model import Network
from featmap.optimize.limits import MAX_SEEDS
from featmap.optimize.objective import Objective
from featmap.optimize.photograph_files import PhotographFiles
from featmap.optimize.photograph_folder import PhotographFolder
from featmap.optimize.photographs import check_photograph_channels
from featmap.optimize.recipe import Recipe
from featmap.report import atlas
from featmap.runs import device, integrity, lifecycle
from featmap.runs import estimate as estimates
from featmap.runs.engine import HERE, Execution
from featmap.runs.estimate import ATLAS, CLUSTERS, TABLES, Estimate, Part, descents, later_seconds, part
from featmap.runs.job import Job, Selection
from featmap.runs.manifest import COMPLETE, MANIFEST, RUNNING, SIMILARITY, is_run, translate_read_errors
from featmap.runs.progress import Watcher
from featmap.runs.store import Run, open_arrays
from featmap.runs.worker import Worker, checked
from featmap.stats.measures import FORMULA
from featmap.validation import inputs, report, verdict
from featmap.validation.null import permuted_statistics
from featmap.validation.random_weights import randomise_weights
from featmap.validation.results import Evaluation, Validation

SEEDS, NULL_SEEDS = 5, 2
"""Default numbers of seeds of the trained network, and with random weights."""
FOLDER = "validation"


@dataclass(frozen=True, eq=False)
class ValidationPlan:
    """Settings of a validation, checked.

    Parameters
    ----------
    run, job : Run, Job
        The evaluated run, and its job.
    folder : Path
        Folder of the validation.
    seeds : tuple of int
        All seeds; those of the run come first.
    photographs : PhotographFiles, PhotographFolder or None
        Photographs; those of a path are decoded when the validation begins.
    random : Network or None
        The network with random weights.
    reason : str
        Why there is no network with random weights, "" where there is one.
    null_seeds : tuple of int
        Seeds of the maps with random weights.
    skip_broken : bool, default False
        Go on without photographs that cannot be read.
    """

    run: Run
    job: Job
    folder: Path
    seeds: tuple[int, ...]
    photographs: PhotographFiles | PhotographFolder | None
    random: Network | None
    reason: str
    null_seeds: tuple[int, ...]
    skip_broken: bool = False


def plan_validation(
    folder: str | Path,
    *,
    photographs: inputs.GivenPhotographs | None = None,
    seeds: int = SEEDS,
    null_seeds: int = NULL_SEEDS,
    network: Network | None = None,
) -> ValidationPlan:
    """Check the settings of a validation.

    Parameters
    ----------
    folder : path
        Folder of a complete similarity run.
    photographs : path or PhotographFolder, optional
        Folder or zip of at least `FEWEST_PHOTOGRAPHS` photographs; without one nothing is concluded about photographs.
    seeds : int, default 5
        Number of seeds, those of the run included.
    null_seeds : int, default 2
        Number of maps with random weights; 0 for none.
    network : Network, optional
        Network of the run. None loads it as the run did.

    Returns
    -------
    ValidationPlan
        The checked settings, with the folder `validation` inside the run; a photograph that cannot be read stops it.

    Raises
    ------
    FeatmapError
        If the run is not complete, or of another command or network, or a setting is out of range.
    """
    run = Run.read(Path(folder))
    with translate_read_errors(Path(folder)):
        return _plan(run, photographs, seeds, null_seeds, network)


def _plan(
    run: Run, photographs: inputs.GivenPhotographs | None, seeds: int, null_seeds: int, network: Network | None
) -> ValidationPlan:
    """Check the settings of a validation of a run that could be read."""
    folder = run.folder
    if run.identity.get("command") != SIMILARITY or not run.manifest.is_complete:
        raise FeatmapError(
            f"run {str(folder)!r} is not a complete similarity run; give the folder of one, or complete this one first"
        )
    if run.identity.get("stimuli") == PHOTOGRAPHS:
        raise FeatmapError(f"run {str(folder)!r} has photographs as its only stimuli; give one with maximising images")
    if run.identity.get("start") is not None:
        raise FeatmapError(
            f"run {str(folder)!r} starts from an image, so all its seeds give the same images and none can be added; "
            "give a run that starts from noise"
        )
    integrity.require_intact(folder, pages=False, parts=False)
    network = lifecycle.with_run_directions(network, folder) if network else lifecycle.network_of(folder)
    job = job_of(run, network)
    if not 2 <= seeds <= MAX_SEEDS or not 0 <= null_seeds <= MAX_SEEDS:
        raise FeatmapError(
            f"seeds {seeds}, null seeds {null_seeds}: give 2 seeds or more (the default is {SEEDS}) and 0 null seeds "
            f"or more, {MAX_SEEDS:,} at most"
        )
    run_seeds, next_seed = job.seeds, max(job.seeds) + 1
    listed = inputs.list_photographs(photographs)
    if listed is not None:
        check_photograph_channels(network.channels)
    random, reason = None, "null seeds 0"
    if null_seeds:
        try:
            random, reason = randomise_weights(network), ""
        except ModelError as error:
            reason = str(error)
    return ValidationPlan(
        run,
        job,
        folder / FOLDER,
        (*run_seeds, *range(next_seed, next_seed + seeds - len(run_seeds))),
        listed,
        random,
        reason,
        tuple(range(run_seeds[0], run_seeds[0] + null_seeds)),
    )


def job_of(run: Run, network: Network) -> Job:
    """Set up the job of a similarity run again.

    Parameters
    ----------
    run : Run
        Folder of a similarity run.
    network : Network
        Network of the run.

    Returns
    -------
    Job
        The checked job.

    Raises
    ------
    FeatmapError
        If the run is one of another network, or has settings that this version of featmap does not know.
    """
    identity = run.identity
    lifecycle.require_network(run, network)
    data = open_arrays(run.folder)
    job = Job(
        network=network,
        objectives=tuple(Objective.parse(str(name)) for name in data["image"].values),
        recipe=Recipe.from_identity(identity["recipe"]),
        seeds=tuple(identity["seeds"]),
        responses=tuple(identity["responses"]),
        device=device.select_device(identity["device"]),
        command=identity["command"],
        selection=Selection.from_identity(identity),
        facets=identity.get("facets", 0),
    )
    job = with_stored_photographs(checked(job), identity, data)
    if json.loads(json.dumps(job.identity())) != identity:
        raise FeatmapError(
            f"run {str(run.folder)!r} has settings that this version of featmap does not know; "
            "make the run again with this version"
        )
    return job


def similarity_jobs(plan: ValidationPlan) -> list[tuple[Job, Path]]:
    """List the similarity jobs that a validation needs besides the run itself.

    Parameters
    ----------
    plan : ValidationPlan
        The validation.

    Returns
    -------
    list of (Job, Path)
        Jobs of one seed each, with their folders: further seeds of the network, then those with random weights.
    """
    job = replace(without_photographs(plan.job), responses=tuple(plan.job.layers), facets=0)
    jobs = [(replace(job, seeds=(s,)), plan.folder / f"seed-{s}") for s in plan.seeds if s not in plan.job.seeds]
    if plan.random is not None:
        null, random = replace(job, network=plan.random), plan.folder / "random"
        jobs += [(replace(null, seeds=(s,)), random / f"seed-{s}") for s in plan.null_seeds]
    return jobs


def carry_out(plan: ValidationPlan, watcher: Watcher) -> Validation:
    """Compute what is missing of a validation, write its page and mark the run.

    Parameters
    ----------
    plan : ValidationPlan
        The validation.
    watcher : Watcher
        Receives progress updates.

    Returns
    -------
    Validation
        Evaluations of all layers. The run's tables get each feature's reliability, its figures mark unreliable
        features, and its atlas is made again where it has one.
    """
    identity = {"command": "validate", "run": digest(plan.run.identity)}
    about = {"network": str(plan.job.network), "environment": device.describe_environment(plan.job.device)}
    files, skip = plan.photographs, plan.skip_broken
    photographs = None if files is None else inputs.decode_photographs(files, skip, watcher)
    registered = lifecycle.registered_inside(plan.run.folder, plan.folder)
    with registered, Run(plan.folder, identity).open({}, {}, about).locked() as store:
        store.manifest.status = RUNNING
        store.save()
        validation = _evaluate(plan, photographs, store, watcher)
    _redraw_atlas(plan, watcher)  # only now: an atlas reads complete runs, and the validation is part of this one
    return validation


def _evaluate(plan: ValidationPlan, photographs: PhotographFolder | None, store: Run, watcher: Watcher) -> Validation:
    """Do the missing descents, evaluate both networks and write the results."""
    for job, folder in similarity_jobs(plan):
        watcher.note(f"{'random weights' if job.network is plan.random else 'trained'}: seed {job.seeds[0]}")
        _descend(job, folder, watcher)
        store.register_part(folder)
    layer_folders = tables.layer_folders(plan.job.layers)
    neighbours = View.from_record(plan.run.manifest.view).neighbours
    further = [plan.folder / f"seed-{s}" for s in plan.seeds if s not in plan.job.seeds]
    trained_network = inputs.EvaluatedNetwork(
        "trained",
        plan.job.network,
        [open_arrays(folder) for folder in (plan.run.folder, *further)],
        len(plan.job.seeds),
        store,
        plan.folder,
        {layer: plan.run.folder / name / cluster_io.FILE_NAME for layer, name in layer_folders.items()},
    )
    trained = inputs.evaluate_layers(plan.job, trained_network, photographs, neighbours, watcher)
    random: dict[str, Evaluation] = {}
    if plan.random is not None:
        random_folder = plan.folder / "random"
        random_network = inputs.EvaluatedNetwork(
            "random weights",
            plan.random,
            [open_arrays(random_folder / f"seed-{s}") for s in plan.null_seeds],
            1,
            store,
            random_folder,
            {layer: random_folder / name / cluster_io.FILE_NAME for layer, name in layer_folders.items()},
        )
        random = inputs.evaluate_layers(plan.job, random_network, photographs, neighbours, watcher)
    permuted = {layer: permuted_statistics(evaluation.evidence) for layer, evaluation in trained.items()}
    validation = Validation(plan.folder, trained, random, permuted, plan.reason)
    report.write_report(store, plan.job, validation, photographs, watcher)
    mark_reliability(plan, trained, watcher)
    _remove_abandoned(store)
    manifest = store.manifest
    manifest.status, manifest.seeds, manifest.null_seeds = COMPLETE, list(plan.seeds), list(plan.null_seeds)
    manifest.photographs = {} if photographs is None else photographs.record()
    manifest.images = manifest.photographs.get("folder")
    store.save()
    return validation


def _remove_abandoned(store: Run) -> None:
    """Remove incomplete runs that earlier validations left with other seeds or photographs."""
    for folder in (*store.folder.glob("*"), *store.folder.glob("random/*")):
        if is_run(folder) and _is_complete(folder):
            store.register_part(folder)
        elif is_run(folder):
            shutil.rmtree(folder)
    store.manifest.parts = [p for p in store.manifest.parts if is_run(store.folder / p)]


def _descend(job: Job, folder: Path, watcher: Watcher) -> None:
    """Do the descents that are missing of one similarity job."""
    with lifecycle.open_run(job, folder).locked() as run:
        if lifecycle.carry_out(job, run, Worker, watcher) or not run.manifest.is_complete:
            lifecycle.complete(job, run)


def mark_reliability(plan: ValidationPlan, trained: dict[str, Evaluation], watcher: Watcher) -> None:
    """Write the reliability to the run's tables and mark unreliable features.

    Parameters
    ----------
    plan : ValidationPlan
        The validation.
    trained : dict of Evaluation
        Evaluations of the run's network, by layer.
    watcher : Watcher
        Receives progress updates.
    """
    reliability = {
        name: None if pd.isna(row["reliability"]) else round(float(row["reliability"]), 6)
        for evaluation in trained.values()
        for name, row in evaluation.features.iterrows()
        if not pd.isna(row["reliable"])
    }
    with Run.read(plan.run.folder).locked() as run:
        run.manifest = Run.read(run.folder).manifest  # as it is now that no other process can write it
        view = run.manifest.view
        changed = run.manifest.reliability != reliability
        if changed:
            run.manifest.reliability = reliability
            run.save()
        is_drawn = view.get("reliability") == (digest(reliability) if reliability else None) and run.is_complete()
        is_drawn &= recorded_formula(view) == FORMULA
    if changed or not is_drawn:
        mapping.carry_out(plan.job, run, View.from_record(view), Execution(watcher=watcher))


def _redraw_atlas(plan: ValidationPlan, watcher: Watcher) -> None:
    """Make the run's atlas again if it has one that shows other marks."""
    run = Run.read(plan.run.folder)
    if run.manifest.atlas and not atlas.is_current(run):
        atlas.atlas(run.folder, network=plan.job.network, watcher=watcher)


def describe(validation: Validation) -> list[str]:
    """Describe the verdicts in words.

    Parameters
    ----------
    validation : Validation
        Results of a validation.

    Returns
    -------
    list of str
        A line for each conclusion.
    """
    return [
        line
        for layer, evaluation in validation.trained.items()
        for line in verdict.reach_verdict(evaluation, validation.random.get(layer)).lines()
    ]


def list_parts(plan: ValidationPlan) -> list[Part]:
    """List the parts of a validation, in their order.

    Parameters
    ----------
    plan : ValidationPlan
        The validation.

    Returns
    -------
    list of Part
        Descents that are missing, statistics of both networks, and what is drawn.
    """
    parts = [descents(job) for job, folder in similarity_jobs(plan) if not _is_complete(folder)]
    counts = {layer: len(plan.job.features_of(layer)) for layer in plan.job.layers}
    kind = "evidence" if plan.photographs is None else "evidence with photographs"
    for network in ("trained", "random weights") if plan.random is not None else ("trained",):
        for layer, count in counts.items():
            nulls = part("permuted" if network == "trained" else CLUSTERS, count)
            parts.append(Part(f"statistics of {layer}, {network}", part(kind, count).seconds + nulls.seconds))
    shown = {layer: sum(f.rpartition(":")[0] == layer for f in plan.job.shown) for layer in counts}
    drawn = ["panels"] * (plan.photographs is not None) + [TABLES] + [ATLAS] * bool(plan.run.manifest.atlas)
    return [*parts, *(part(name, count) for name in drawn for count in shown.values())]


def estimate_validation(plan: ValidationPlan) -> tuple[Estimate, str]:
    """Estimate a validation: the descents that are missing, and what follows.

    Parameters
    ----------
    plan : ValidationPlan
        The validation.

    Returns
    -------
    Estimate
        Time, memory and disk, measured on the trained network.
    str
        Number of maps and their settings, in words.
    """
    missing = [job for job, folder in similarity_jobs(plan) if not _is_complete(folder)]
    of_one, count = estimates.estimate(missing[0] if missing else plan.job, plan.folder), len(missing)
    words = f"{count} maps of {len(plan.job.objectives)} images to make, {plan.job.recipe.steps} steps"
    seconds, later = of_one.seconds * count, later_seconds(list_parts(plan))
    return replace(of_one, seconds=seconds, disk=of_one.disk * count, later=later), words


def _is_complete(folder: Path) -> bool:
    """Check whether a folder holds a complete run."""
    return (folder / MANIFEST).is_file() and Run.read(folder).manifest.is_complete


def validate(
    run: str | Path,
    *,
    photographs: inputs.GivenPhotographs | None = None,
    skip_broken: bool = False,
    seeds: int = SEEDS,
    null_seeds: int = NULL_SEEDS,
    network: str | nn.Module | Network | None = None,
    execution: Execution | None = None,
) -> Validation:
    """Test whether the maps of a similarity run hold.

    The maps are repeated with further seeds, and compared with photographs, with the network's weights, and with two
    nulls: random weights, and A permuted within its columns.

    Parameters
    ----------
    run : path
        Folder of a complete run of `similarity`.
    photographs : path or PhotographFolder, optional
        Folder or zip of at least `FEWEST_PHOTOGRAPHS` photographs; without one nothing is concluded about photographs.
    skip_broken : bool, default False
        Go on without photographs that cannot be read; otherwise all of them are named and nothing is computed.
    seeds : int, default 5
        Number of seeds, those of the run included.
    null_seeds : int, default 2
        Number of maps with random weights; 0 for none.
    network : str, torch.nn.Module or Network, optional
        Network of the run, needed only if it is one of the caller's own.
    execution : Execution, optional
        Folder of the results and progress; without a folder it is `validation` inside the run. Everything is computed
        in this process, on the kind of device that the run was computed on.

    Returns
    -------
    Validation
        `statistics` has a row for each statistic; `trained`, `random` and `permuted` hold them by layer. The same call
        resumes an interrupted validation; one with more seeds, or with photographs, computes only what is new.

    Raises
    ------
    FeatmapError
        If the run is not complete, or of another command or network, or a setting is out of range.
    """
    execution = execution or Execution()
    loaded = None if network is None else load(network)
    plan = plan_validation(run, photographs=photographs, seeds=seeds, null_seeds=null_seeds, network=loaded)
    _require_device_of_run(plan, execution)
    plan = replace(plan, skip_broken=skip_broken, folder=execution.out or plan.folder)
    if null_seeds and plan.reason:
        execution.watcher.note(f"no null model with random weights: {plan.reason}")
    return carry_out(plan, execution.watcher)


def _require_device_of_run(plan: ValidationPlan, execution: Execution) -> None:
    """Check that a validation is not asked for on an engine or a device that it does not use."""
    if execution.engine.name != HERE:
        raise FeatmapError(f"engine {execution.engine.name}: a validation is computed in this process; use {HERE!r}")
    used = plan.job.device.type
    if execution.device != "auto" and execution.torch_device().type != used:
        raise FeatmapError(
            f"device {execution.device}: run {str(plan.run.folder)!r} was computed on {used}, and its further seeds "
            f"have to be as well; use {used!r} or 'auto'"
        )
