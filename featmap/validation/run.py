"""The trial of a finished map: further seeds, photographs, the path, random weights; made once, resumed, judged.

Everything lies in `RUN/validation/`, inside the run that it judges: the run's tables are marked by it, and the two are
copied together. Each part is a run folder of its own, named by what it depends on (`seed-1`, `photographs-...`), so
that a later call with more seeds, or with photographs, makes only what is new.
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
from featmap.mapping.view import View
from featmap.network.loading import load
from featmap.network.model import Network
from featmap.network.random_weights import randomise_weights
from featmap.optimize import photographs
from featmap.optimize.limits import MAX_SEEDS
from featmap.optimize.objective import Objective
from featmap.optimize.recipe import Recipe
from featmap.report import atlas
from featmap.runs import device, integrity, lifecycle
from featmap.runs import estimate as estimates
from featmap.runs.engine import Execution
from featmap.runs.estimate import Estimate
from featmap.runs.job import Job, Selection
from featmap.runs.manifest import COMPLETE, MANIFEST, RUNNING, SIMILARITY, is_run, translate_read_errors
from featmap.runs.progress import Silent, Watcher
from featmap.runs.store import Run, open_arrays
from featmap.runs.worker import Worker, checked
from featmap.validation import report as validation_report
from featmap.validation import verdict
from featmap.validation.inputs import EvaluatedNetwork, evaluate_layers
from featmap.validation.null import permuted_statistics
from featmap.validation.statistics import Evaluation, Validation

SEEDS, NULL_SEEDS = 5, 2
FEWEST_PHOTOGRAPHS = 32
FOLDER = "validation"


@dataclass(frozen=True, eq=False)
class ValidationPlan:
    """What a validation is to do.

    Attributes
    ----------
    run, job : the run that is judged, and its job
    folder : where the validation lies
    seeds : all seeds, the run's own first
    images : the folder of photographs, or None
    random : the network with random weights, or None where there is none (then `reason` says why)
    null_seeds : the seeds of the maps with random weights
    """

    run: Run
    job: Job
    folder: Path
    seeds: tuple[int, ...]
    images: Path | None
    random: Network | None
    reason: str
    null_seeds: tuple[int, ...]


def plan_validation(
    folder: str | Path,
    *,
    images: str | Path | None = None,
    seeds: int = SEEDS,
    null_seeds: int = NULL_SEEDS,
    network: Network | None = None,
    out: str | Path | None = None,
) -> ValidationPlan:
    """Return the checked plan of a validation.

    Parameters
    ----------
    folder : of a finished `featmap similarity` run
    images : a folder of photographs, at least `FEWEST_PHOTOGRAPHS`; without one, nothing is said of natural images
    seeds : how many in all, those of the run included
    null_seeds : how many maps to make with random weights; 0 for none
    network : that the run was made with; None loads it as the run did
    out : where the validation goes; None: `validation` inside the run

    Raises
    ------
    FeatmapError
        for a run that is unfinished, of another command or network, or settings out of range.
    """
    run = Run.read(Path(folder))
    with translate_read_errors(Path(folder)):
        return _plan(run, images, seeds, null_seeds, network, out)


def _plan(
    run: Run,
    images: str | Path | None,
    seeds: int,
    null_seeds: int,
    network: Network | None,
    out: str | Path | None,
) -> ValidationPlan:
    folder = run.folder
    if run.identity.get("command") != SIMILARITY or not run.manifest.is_complete:
        raise FeatmapError(
            f"run {str(folder)!r} is no finished similarity run; `featmap similarity` makes one, and finishes it"
        )
    if run.identity.get("start") is not None:
        raise FeatmapError(f"run {str(folder)!r} began from a photograph: all its seeds are one, none can be added")
    integrity.require_intact(folder, pages=False, parts=False)
    network = network or lifecycle.network_of(folder)
    job = job_of(run, network)
    most = MAX_SEEDS
    if not 2 <= seeds <= most or not 0 <= null_seeds <= most:
        raise FeatmapError(
            f"seeds {seeds}, null seeds {null_seeds}: repeatability takes 2 seeds or more (5 is the default), "
            f"the null 0 or more, {most:,} at most"
        )
    own = job.seeds
    every = (*own, *range(own[-1] + 1, own[-1] + 1 + seeds - len(own)))
    if images is not None:
        if is_run(Path(images)):
            raise FeatmapError(f"images {str(images)!r} is a run; give a folder of photographs")
        count = len(photographs.find_photographs(Path(images)))
        if count < FEWEST_PHOTOGRAPHS:
            raise FeatmapError(
                f"images {str(images)!r}: {count} photographs; give {FEWEST_PHOTOGRAPHS} or more (1,000 say much more)"
            )
    random, reason = None, "none was asked for (null seeds 0)"
    if null_seeds:
        try:
            random, reason = randomise_weights(network), ""
        except ModelError as error:
            reason = str(error)
    return ValidationPlan(
        run,
        job,
        Path(out) if out is not None else run.folder / FOLDER,
        every,
        None if images is None else Path(images),
        random,
        reason,
        tuple(range(own[0], own[0] + null_seeds)),
    )


def job_of(run: Run, network: Network) -> Job:
    """Return the job that a similarity run was made by.

    Parameters
    ----------
    run : Run
        Folder of a similarity run.
    network : Network
        Network that it was made with.

    Returns
    -------
    Job
        The checked job.

    Raises
    ------
    FeatmapError
        If the network is another one than the run's, or the run has settings that this version cannot take up.
    """
    identity = run.identity
    if json.loads(json.dumps(network.identity())) != identity["model"]:
        raise FeatmapError(
            f"run {str(run.folder)!r} was made with another network than {network.name} ({network.weights}); "
            "name the network and the weights that it was made with"
        )
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
    )
    job = checked(job)
    if json.loads(json.dumps(job.identity())) != identity:
        raise FeatmapError(
            f"run {str(run.folder)!r} has settings that this featmap cannot take up; make the run again with it"
        )
    return job


def similarity_jobs(given: ValidationPlan) -> list[tuple[Job, Path]]:
    """Return the similarity jobs that a validation needs besides the run itself, each with its folder."""
    job = replace(given.job, responses=tuple(given.job.layers))
    made = [(replace(job, seeds=(s,)), given.folder / f"seed-{s}") for s in given.seeds if s not in given.job.seeds]
    if given.random is not None:
        null = replace(job, network=given.random)
        made += [(replace(null, seeds=(s,)), given.folder / "random" / f"seed-{s}") for s in given.null_seeds]
    return made


def carry_out(given: ValidationPlan, watcher: Watcher | None = None) -> Validation:
    """Make what is missing of a validation, judge the map, write the page and mark the run's tables and figures."""
    watcher = watcher or Silent()
    identity = {"command": "validate", "run": digest(given.run.identity)}
    about = {"network": str(given.job.network), "environment": device.describe_environment(given.job.device)}
    if given.images is not None:
        paths = photographs.find_photographs(given.images)
        photographs.check_readable(paths, lambda done, total: watcher.stage("photographs opened", done, total))
    _note_in_run(given)
    with Run(given.folder, identity).open({}, {}, about).locked() as store:
        store.manifest.status = RUNNING
        store.save()
        found = _evaluate(given, store, watcher)
    _draw_atlas(given, watcher)  # now that the validation inside the run is complete: an atlas reads whole runs only
    return found


def _note_in_run(given: ValidationPlan) -> None:
    """Let the judged run know of a validation that lies inside it."""
    if given.folder.resolve().is_relative_to(given.run.folder.resolve()):
        with Run.read(given.run.folder).locked() as run:
            run.manifest = Run.read(run.folder).manifest
            run.register_part(run.folder / given.folder.resolve().relative_to(run.folder.resolve()))


def _evaluate(given: ValidationPlan, store: Run, watcher: Watcher) -> Validation:
    for job, folder in similarity_jobs(given):
        watcher.note(f"{'random weights' if job.network is given.random else 'trained'}: seed {job.seeds[0]}")
        _descend(job, folder, watcher)
        store.register_part(folder)
    places = tables.layer_folders(given.job.layers)
    neighbours = View.from_record(given.run.manifest.view).neighbours
    further = [given.folder / f"seed-{s}" for s in given.seeds if s not in given.job.seeds]
    own = EvaluatedNetwork(
        "trained",
        given.job.network,
        [open_arrays(f) for f in (given.run.folder, *further)],
        len(given.job.seeds),
        store,
        given.folder,
        {layer: given.run.folder / place / cluster_io.FILE_NAME for layer, place in places.items()},
    )
    trained = evaluate_layers(given.job, own, given.images, neighbours, watcher)
    random: dict[str, Evaluation] = {}
    if given.random is not None:
        where = given.folder / "random"
        null = EvaluatedNetwork(
            "random weights",
            given.random,
            [open_arrays(where / f"seed-{s}") for s in given.null_seeds],
            1,
            store,
            where,
            {layer: where / place / cluster_io.FILE_NAME for layer, place in places.items()},
        )
        random = evaluate_layers(given.job, null, given.images, neighbours, watcher)
    permutations = {layer: permuted_statistics(trial.evidence) for layer, trial in trained.items()}
    found = Validation(given.folder, trained, random, permutations, given.reason)
    validation_report.write_report(store, given.job, found, given.images, watcher)
    mark_reliability(given, trained, watcher)
    _drop_abandoned(store)
    manifest = store.manifest
    manifest.status, manifest.seeds, manifest.null_seeds = COMPLETE, list(given.seeds), list(given.null_seeds)
    manifest.images = None if given.images is None else given.images.name
    store.save()
    return found


def _drop_abandoned(store: Run) -> None:
    """Remove what earlier validations left half made of other seeds or photographs: it belongs to nothing any more."""
    for place in (*store.folder.glob("*"), *store.folder.glob("random/*")):
        if is_run(place) and _is_complete(place):
            store.register_part(place)
        elif is_run(place):
            shutil.rmtree(place)
    store.manifest.parts = [p for p in store.manifest.parts if is_run(store.folder / p)]


def _descend(job: Job, folder: Path, watcher: Watcher) -> None:
    """Do what is left of one similarity job's descents."""
    with lifecycle.open_run(job, folder).locked() as run:
        if lifecycle.carry_out(job, run, Worker, watcher) or not run.manifest.is_complete:
            lifecycle.complete(job, run)


def mark_reliability(given: ValidationPlan, trained: dict[str, Evaluation], watcher: Watcher) -> None:
    """Enter each feature's reliability into the run's tables, and mark the unreliable ones in its figures."""
    known = {
        name: None if pd.isna(row["reliability"]) else round(float(row["reliability"]), 6)
        for trial in trained.values()
        for name, row in trial.features.iterrows()
        if not pd.isna(row["reliable"])
    }
    with Run.read(given.run.folder).locked() as run:
        run.manifest = Run.read(run.folder).manifest  # read again now that nobody else writes it
        view = run.manifest.view
        changed = run.manifest.reliability != known
        if changed:
            run.manifest.reliability = known
            run.save()
        drawn = view.get("reliability") == (digest(known) if known else None) and run.is_complete()
    if changed or not drawn:
        mapping.carry_out(given.job, run, View.from_record(view), Execution(watcher=watcher))


def _draw_atlas(given: ValidationPlan, watcher: Watcher) -> None:
    """Make the run's atlas again if it has one that shows other marks."""
    run = Run.read(given.run.folder)
    if run.manifest.atlas and not atlas.is_current(run):
        atlas.atlas(run.folder, network=given.job.network, watcher=watcher)


def describe(found: Validation) -> list[str]:
    """Return the verdicts, a line each."""
    return [
        line
        for layer, trial in found.trained.items()
        for line in verdict.reach_verdict(trial, found.random.get(layer)).lines()
    ]


def estimate_validation(given: ValidationPlan) -> tuple[Estimate, str]:
    """Return what the descents that are still to make will take (measured on the trained network), and their number."""
    open_jobs = [(job, folder) for job, folder in similarity_jobs(given) if not _is_complete(folder)]
    one = estimates.estimate(given.job if not open_jobs else open_jobs[0][0], given.folder)
    count = len(open_jobs)
    what = f"{count} maps of {len(given.job.objectives)} images to make, {given.job.recipe.steps} steps"
    return replace(one, seconds=one.seconds * count, disk=one.disk * count), what


def _is_complete(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() and Run.read(folder).manifest.is_complete


def validate(
    run: str | Path,
    *,
    images: str | Path | None = None,
    seeds: int = SEEDS,
    null_seeds: int = NULL_SEEDS,
    network: str | nn.Module | Network | None = None,
    out: str | Path | None = None,
    watcher: Watcher | None = None,
) -> Validation:
    """Put a finished similarity run to the test.

    Parameters
    ----------
    run : path
        Folder of a finished run of `similarity`.
    images : path, optional
        Folder of photographs, at least `FEWEST_PHOTOGRAPHS`; without one nothing is said of natural images.
    seeds : int, default 5
        Seeds in all, those of the run included.
    null_seeds : int, default 2
        Maps that are made with random weights; 0 for none.
    network : str, torch.nn.Module or Network, optional
        Network of the run, where it was one of the caller's own.
    out : path, optional
        Folder of the validation. None takes `validation` inside the run.
    watcher : Watcher, optional
        Hears of the progress.

    Returns
    -------
    Validation
        `figures` has a row for each statistic; `trained`, `random` and `permuted` hold them by layer. The same call
        goes on where it stopped; one with more seeds, or with photographs, makes only what is new.

    Raises
    ------
    FeatmapError
        If the run is not finished, of another command or network, or a setting is out of range.
    """
    loaded = None if network is None else load(network)
    return carry_out(
        plan_validation(run, images=images, seeds=seeds, null_seeds=null_seeds, network=loaded, out=out), watcher
    )
