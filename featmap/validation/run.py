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
from typing import Any

import pandas as pd

from featmap.errors import FeatmapError, ModelError
from featmap.mapping import cluster_io, result, tables
from featmap.mapping import run as mapping
from featmap.network.model import Network, load
from featmap.network.random_weights import untrained
from featmap.network.unit import parse_channels
from featmap.optimize import photographs
from featmap.optimize.objective import objective
from featmap.optimize.recipe import Recipe
from featmap.report import atlas
from featmap.runs import device, integrity, lifecycle, maximise
from featmap.runs import estimate as estimates
from featmap.runs import job as runs
from featmap.runs.engine import Silent, Watcher
from featmap.runs.estimate import Estimate
from featmap.runs.job import Job
from featmap.runs.manifest import is_run
from featmap.runs.store import MANIFEST, Run, digest, readable
from featmap.validation import report as certificates
from featmap.validation import verdict
from featmap.validation.figures import Trial, Validation
from featmap.validation.inputs import Side, trials_of
from featmap.validation.null import permuted

SEEDS, NULL_SEEDS = 5, 2
FEWEST_PHOTOGRAPHS = 32
FOLDER = "validation"
_STANDARD = ("model", "images", "responses", "recipe", "seeds", "start", "device")


@dataclass(frozen=True, eq=False)
class Plan:
    """What a validation is to do.

    Attributes
    ----------
    run, job, shown : the run that is judged, its job, the features that it shows
    folder : where the validation lies
    seeds : all seeds, the run's own first
    images : the folder of photographs, or None
    random : the network with random weights, or None where there is none (then `reason` says why)
    null_seeds : the seeds of the maps with random weights
    """

    run: Run
    job: Job
    shown: list[str]
    folder: Path
    seeds: tuple[int, ...]
    images: Path | None
    random: Network | None
    reason: str
    null_seeds: tuple[int, ...]


def plan(
    folder: str | Path,
    *,
    images: str | Path | None = None,
    seeds: int = SEEDS,
    null_seeds: int = NULL_SEEDS,
    network: Network | None = None,
    out: str | Path | None = None,
) -> Plan:
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
    with readable(Path(folder)):
        return _plan(run, images, seeds, null_seeds, network, out)


def _plan(
    run: Run,
    images: str | Path | None,
    seeds: int,
    null_seeds: int,
    network: Network | None,
    out: str | Path | None,
) -> Plan:
    folder = run.folder
    if run.identity.get("command") != "similarity" or run.manifest.get("status") != "complete":
        raise FeatmapError(
            f"run {str(folder)!r} is no finished similarity run; `featmap similarity` makes one, and finishes it"
        )
    if run.identity.get("start") is not None:
        raise FeatmapError(f"run {str(folder)!r} began from a photograph: all its seeds are one, none can be added")
    integrity.require(folder, pages=False, parts=False)
    network = network or maximise.network_of(folder)
    job, shown = job_of(run, network)
    most = runs.MOST_SEEDS
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
            random, reason = untrained(network), ""
        except ModelError as error:
            reason = str(error)
    return Plan(
        run,
        job,
        shown,
        Path(out) if out is not None else run.folder / FOLDER,
        every,
        None if images is None else Path(images),
        random,
        reason,
        tuple(range(own[0], own[0] + null_seeds)),
    )


def job_of(run: Run, network: Network) -> tuple[Job, list[str]]:
    """Return the job that a similarity run was made by, and the features that it shows.

    Raises
    ------
    FeatmapError
        if the network is another than the run's.
    """
    identity = run.identity
    if json.loads(json.dumps(network.identity())) != identity["model"]:
        raise FeatmapError(
            f"run {str(run.folder)!r} was made with another network than {network.name} ({network.weights}); "
            "give the --model and --weights that it was made with"
        )
    data = result.open_arrays(run.folder)
    about = tuple((k, v) for k, v in identity.items() if k not in _STANDARD)
    job = Job(
        network,
        tuple(objective(str(name)) for name in data["image"].values),
        Recipe.from_identity(identity["recipe"]),
        tuple(identity["seeds"]),
        tuple(identity["responses"]),
        device.device(identity["device"]),
        None,
        about,
    ).check()
    if json.loads(json.dumps(job.identity())) != identity:
        raise FeatmapError(
            f"run {str(run.folder)!r} has settings that this featmap cannot take up; make the run again with it"
        )
    shown = identity["shown"]
    listed = shown if isinstance(shown, dict) else {identity["layer"]: shown}
    counts = {layer: network.layer(layer, job.recipe.size).channels for layer in listed}
    return job, [f"{la}:{c}" for la, text in listed.items() for c in parse_channels(text, counts[la], la)]


def descents(given: Plan) -> list[tuple[Job, Path]]:
    """Return the similarity jobs that a validation needs besides the run itself, each with its folder."""
    job = replace(given.job, responses=tuple(given.job.layers))
    made = [(replace(job, seeds=(s,)), given.folder / f"seed-{s}") for s in given.seeds if s not in given.job.seeds]
    if given.random is not None:
        null = replace(job, network=given.random)
        made += [(replace(null, seeds=(s,)), given.folder / "random" / f"seed-{s}") for s in given.null_seeds]
    return made


def carry_out(given: Plan, watcher: Watcher | None = None) -> Validation:
    """Make what is missing of a validation, judge the map, write the page and mark the run's tables and figures."""
    watcher = watcher or Silent()
    identity = {"command": "validate", "run": digest(given.run.identity)}
    about = {"network": str(given.job.network), "environment": device.environment(given.job.device)}
    if given.images is not None:
        paths = photographs.find_photographs(given.images)
        photographs.check(paths, lambda done, total: watcher.stage("photographs opened", done, total))
    _note_in_run(given)
    with Run(given.folder, identity).open({}, {}, about).held() as store:
        store.manifest["status"] = "running"
        store.save()
        found = _carry_out(given, store, watcher)
    _draw_atlas(given, watcher)  # now that the validation inside the run is complete: an atlas reads whole runs only
    return found


def _note_in_run(given: Plan) -> None:
    """Let the judged run know of a validation that lies inside it."""
    if given.folder.resolve().is_relative_to(given.run.folder.resolve()):
        with Run.read(given.run.folder).held() as run:
            run.manifest = Run.read(run.folder).manifest
            run.note_part(run.folder / given.folder.resolve().relative_to(run.folder.resolve()))


def _carry_out(given: Plan, store: Run, watcher: Watcher) -> Validation:
    for job, folder in descents(given):
        watcher.note(f"{'random weights' if job.network is given.random else 'trained'}: seed {job.seeds[0]}")
        _descend(job, folder, watcher)
        store.note_part(folder)
    places = tables.places(given.job.layers)
    view = given.run.manifest.get("view", {})
    neighbours = int(view.get("neighbours", mapping.DEFAULT_NEIGHBOURS))
    further = [given.folder / f"seed-{s}" for s in given.seeds if s not in given.job.seeds]
    own = Side(
        "trained",
        given.job.network,
        [result.open_arrays(f) for f in (given.run.folder, *further)],
        len(given.job.seeds),
        store,
        given.folder,
        {layer: given.run.folder / place / cluster_io.NAME for layer, place in places.items()},
    )
    trained = trials_of(given.job, own, given.images, neighbours, watcher)
    random: dict[str, Trial] = {}
    if given.random is not None:
        where = given.folder / "random"
        null = Side(
            "random weights",
            given.random,
            [result.open_arrays(where / f"seed-{s}") for s in given.null_seeds],
            1,
            store,
            where,
            {layer: where / place / cluster_io.NAME for layer, place in places.items()},
        )
        random = trials_of(given.job, null, given.images, neighbours, watcher)
    permutations = {layer: permuted(trial.evidence) for layer, trial in trained.items()}
    found = Validation(given.folder, trained, random, permutations, given.reason)
    certificates.write(store, given.job, found, given.images, given.shown, watcher)
    mark(given, trained, watcher)
    _drop_abandoned(store)
    store.manifest |= {
        "status": "complete",
        "seeds": list(given.seeds),
        "null_seeds": list(given.null_seeds),
        "images": None if given.images is None else given.images.name,
    }
    store.save()
    return found


def _drop_abandoned(store: Run) -> None:
    """Remove what earlier validations left half made of other seeds or photographs: it belongs to nothing any more."""
    for place in (*store.folder.glob("*"), *store.folder.glob("random/*")):
        if is_run(place) and _is_made(place):
            store.note_part(place)
        elif is_run(place):
            shutil.rmtree(place)
    store.manifest["parts"] = [p for p in store.manifest.get("parts", []) if is_run(store.folder / p)]


def _descend(job: Job, folder: Path, watcher: Watcher) -> None:
    """Do what is left of one similarity job's descents."""
    with lifecycle.open_run(job, folder, estimates.disk_needed(job)).held() as run:
        made = lifecycle.carry_out(job, run, watcher, lambda: runs.execute(job, run, watcher))
        if made or run.manifest["status"] != "complete":
            lifecycle.complete(run, (u.name for u in job.units()))


def mark(given: Plan, trained: dict[str, Trial], watcher: Watcher) -> None:
    """Enter each feature's reliability into the run's tables, and mark the unreliable ones in its figures."""
    known = {
        name: None if pd.isna(row["reliability"]) else round(float(row["reliability"]), 6)
        for trial in trained.values()
        for name, row in trial.features.iterrows()
        if not pd.isna(row["reliable"])
    }
    with Run.read(given.run.folder).held() as run:
        run.manifest = Run.read(run.folder).manifest  # read again now that nobody else writes it
        view = run.manifest.get("view", {})
        changed = run.manifest.get("reliability", {}) != known
        if changed:
            run.manifest["reliability"] = known
            run.save()
        drawn = view.get("reliability") == (digest(known) if known else None) and run.is_complete()
    if changed or not drawn:
        mapping.run_similarity(
            given.job,
            given.shown,
            run,
            measure=view.get("measure", "coactivation"),
            neighbours=int(view.get("neighbours", mapping.DEFAULT_NEIGHBOURS)),
            watcher=watcher,
        )


def _draw_atlas(given: Plan, watcher: Watcher) -> None:
    """Make the run's atlas again if it has one that shows other marks."""
    run = Run.read(given.run.folder)
    if atlas.KEY in run.manifest and not atlas.is_current(run):
        atlas.atlas(run.folder, network=given.job.network, watcher=watcher)


def lines(found: Validation) -> list[str]:
    """Return the verdicts, a line each."""
    return [
        line
        for layer, trial in found.trained.items()
        for line in verdict.verdict(trial, found.random.get(layer)).lines()
    ]


def estimate(given: Plan) -> tuple[Estimate, str]:
    """Return what the descents that are still to make will take (measured on the trained network), and their number."""
    open_jobs = [(job, folder) for job, folder in descents(given) if not _is_made(folder)]
    one = estimates.estimate(given.job if not open_jobs else open_jobs[0][0], given.folder)
    count = len(open_jobs)
    what = f"{count} maps of {len(given.job.objectives)} images to make, {given.job.recipe.steps} steps"
    return replace(one, seconds=one.seconds * count, disk=one.disk * count), what


def _is_made(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() and Run.read(folder).manifest.get("status") == "complete"


def validate(
    run: str | Path,
    *,
    images: str | Path | None = None,
    seeds: int = SEEDS,
    null_seeds: int = NULL_SEEDS,
    model: Any = None,
    out: str | Path | None = None,
    watcher: Watcher | None = None,
) -> Validation:
    """Put a finished similarity run to the test.

    Parameters
    ----------
    run, images, seeds, null_seeds, out : see `plan`
    model : the run's network, where it was one of the caller's own (a module or a `Network`)

    Returns
    -------
    Validation
        `figures` is a row a figure; `trained`, `random` and `permuted` hold them by layer. The same call goes on where
        it stopped; one with more seeds, or with photographs, makes only what is new.

    Raises
    ------
    FeatmapError
        in one line that says what was given, what is allowed and what to do.
    """
    network = None if model is None else load(model)
    return carry_out(plan(run, images=images, seeds=seeds, null_seeds=null_seeds, network=network, out=out), watcher)
