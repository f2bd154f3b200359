"""Estimate and measure the interaction of a group of units, or of pairs of two layers, in one run folder."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

import pandas as pd
import xarray as xr
from torch import nn

from featmap.errors import UnitError
from featmap.interaction import natural, report
from featmap.interaction.conclusion import (
    compare_methods,
    describe_nonlinearity,
    describe_photographs,
    describe_photographs_of_pairs,
    list_notes,
    state_conclusion,
)
from featmap.interaction.groups import JointSettings, LayerChannels, group_job, pairs_job, pairs_of, require_pairs
from featmap.interaction.job import LATER_ARRAYS, MEMBERS, PINK_IMAGES, JointJob, JointUnit
from featmap.interaction.kinds import summarise
from featmap.interaction.photographs import PhotographJointJob, with_photographs, worker_of
from featmap.interaction.power import RunPower, state_power
from featmap.interaction.precision import AutoSeeds, GrowingJob, end_notes
from featmap.interaction.statistics import JointArrays
from featmap.network.loading import load
from featmap.network.model import Network
from featmap.network.unit import Unit
from featmap.optimize.limits import resolve_recipe
from featmap.optimize.objective import Objective
from featmap.optimize.photograph_folder import AnyPhotographs
from featmap.optimize.recipe import Recipe
from featmap.runs import lifecycle
from featmap.runs.engine import AnyUnit, Execution
from featmap.runs.estimate import (
    Estimate,
    Part,
    descents,
    estimate_process_memory,
    estimate_seconds,
    later_seconds,
    part,
    probe_seconds,
    start_seconds,
)
from featmap.runs.folder_layout import ARRAYS
from featmap.runs.manifest import UNITS, read_record
from featmap.runs.probe import open_stimuli
from featmap.runs.progress import SingleBeginning, Watcher
from featmap.runs.store import Run, open_arrays
from featmap.stats.interaction import simplex_lattice

DEFAULT_RECIPE = "interact"
SOLO_PASSES, JOINT_PASSES = 4, 6
"""Images that the untouched network is shown for each descent: the result, the null image and mixtures; those of the
blends of solo images come on top."""
COUNTS = "counts"
"""Entry of the manifest's summary: the number of automatic seeds of each group."""


@dataclass(eq=False)
class Interaction:
    """Results of an interaction run, as they are stored in its folder.

    Parameters
    ----------
    folder : Path
        Run folder.
    statistics : pandas.DataFrame
        A row for each group and seed: `group`, `seed`, `status`, and a column for each statistic; NaN where undefined.
    summary : pandas.DataFrame
        A row for each group: means over seeds, interval, floors, ceiling, excess, p and q; see
        `featmap.interaction.kinds.summarise`.
    sentences : list of str
        Conclusion about each group.
    notes : list of str
        Limits of the conclusions that a reader has to know.
    power : RunPower
        What the run could find with its seeds.
    """

    folder: Path
    statistics: pd.DataFrame
    summary: pd.DataFrame
    sentences: list[str]
    notes: list[str]
    power: RunPower

    @property
    def dataset(self) -> xr.Dataset:
        """Arrays of the run with their labels."""
        return open_arrays(self.folder)

    def _repr_html_(self) -> str:
        """Show the conclusions and the head of the summary in a notebook."""
        items = "".join(f"<li>{escape(line)}</li>" for line in [*self.sentences[:10], *self.notes])
        return (
            f"<b>featmap interact</b> {escape(str(self.folder))}<ul>{items}</ul>{self.summary.head(20)._repr_html_()}"
        )


def joint_parts(job: JointJob) -> list[Part]:
    """List the parts of a run of joint descents, in their order.

    Parameters
    ----------
    job : JointJob
        The checked job.

    Returns
    -------
    list of Part
        Descents, statistics, and the report of a group or of pairs.
    """

    def passes(unit: AnyUnit) -> float:
        blends = len(simplex_lattice(job.members))
        return JOINT_PASSES + blends if isinstance(unit, JointUnit) and unit.stage == "joint" else SOLO_PASSES

    report = part("matrices", len(job.groups)) if job.is_pairs else part("panel", job.members)
    return [descents(job, passes), part("statistics", len(job.joints)), report]


def estimate_joint(job: JointJob, folder: Path) -> Estimate:
    """Estimate a joint job from a few steps of its batches at each size.

    Parameters
    ----------
    job : JointJob
        The checked job.
    folder : Path
        Run folder that it would get; nothing is written.

    Returns
    -------
    Estimate
        Time, memory and disk.
    """
    rows, started = job.recipe.rows, start_seconds()
    solos: dict[str, list[Objective]] = {}
    for solo in job.solos:
        solos.setdefault(solo.unit.layer, []).append(Objective(((1.0, solo.unit),)))
    joints = [Objective(tuple((1.0, u) for u in job.groups[g])) for g, _ in job.joints]
    batches = [(objectives, -(-len(objectives) // rows)) for objectives in (*solos.values(), joints)]
    shown = PINK_IMAGES + len(job.starts) + SOLO_PASSES * len(job.solos)
    shown += (JOINT_PASSES + len(simplex_lattice(job.members))) * len(job.joints)
    shown += job.shown_photographs if isinstance(job, PhotographJointJob) else 0
    return Estimate(
        estimate_seconds(job, batches) + -(-shown // rows) * probe_seconds(job, rows),
        estimate_process_memory(job),
        int(1.1 * job.array_bytes),
        lifecycle.free_space(folder),
        started,
        later_seconds(joint_parts(job)),
    )


def carry_out(job: JointJob, run: Run, execution: Execution | None = None) -> Interaction:
    """Compute the work units that an interaction run lacks, and write its report.

    Parameters
    ----------
    job : JointJob
        Job of the run.
    run : Run
        Its folder.
    execution : Execution, optional
        Engine and progress.

    Returns
    -------
    Interaction
        Statistics of every group.
    """
    execution = execution or Execution()
    watcher = execution.watcher
    with run.locked():
        job, count = _compute(job, run, execution)
        arrays = JointArrays(job, run.arrays)
        finished = not count and run.is_complete()
        begun = time.perf_counter()
        table = arrays.table(lambda done, total: watcher.stage("statistics", done, total))
        summary = summarise(table)
        if isinstance(job, PhotographJointJob):
            summary = natural.add_columns(summary, arrays, job.bases, lambda *of: watcher.stage("photographs", *of))
        rows = [row for _, row in summary.iterrows()]
        made = [len(job.seeds_of(g)) for g in range(len(job.groups))]
        sentences = [state_conclusion(row, n) for row, n in zip(rows, made, strict=True)]
        each = [note for row, n in zip(rows, made, strict=True) for note in list_notes(row, n, job.recipe)]
        notes = list(dict.fromkeys([*end_notes(job, summary), *each]))
        power = state_power(table, job.network.name)
        if not finished:
            run.manifest.files = {}
            if job.is_pairs:
                notes.append(str(report.write_pairs_report(run, arrays, table, summary, power, watcher)))
            else:
                report.write_group_report(run, arrays, table, summary, power)
            run.manifest.timings["tables_and_figures"] = round(time.perf_counter() - begun, 3)
            run.manifest.summary |= {"sentences": sentences[:20], "notes": notes}
            lifecycle.complete(job, run)
        elif job.is_pairs:  # the communities are in the folder
            notes = list(run.manifest.summary["notes"])
        return Interaction(run.folder, report.to_finite(table), report.to_finite(summary), sentences, notes, power)


def _compute(job: JointJob, run: Run, execution: Execution) -> tuple[JointJob, int]:
    """Compute what is missing of a run, and let it grow; return the job that it has become, and the units computed.

    The numbers of automatic seeds are recorded before any of them is computed, so that a run that is resumed, or
    complete, goes on from there.
    """
    engine = execution.engine
    watcher: Watcher = execution.watcher
    if isinstance(job, PhotographJointJob):
        lifecycle.record_photographs(run, job.photographs.require_source().record())
    if not isinstance(job, GrowingJob):
        lacking = _list_lacking(job, run)
        if lacking or isinstance(job, PhotographJointJob):
            lifecycle.extend(job, run, lacking)  # a run of an earlier version has no array of second derivatives
        return job, lifecycle.carry_out(job, run, worker_of(job), watcher, engine)
    count, growing = 0, job.with_recorded(run.manifest.summary.get(COUNTS))
    lacking = _list_lacking(growing, run)
    if not run.manifest.is_complete:
        steps = job.steps_per_unit * sum(unit.last > 0 for unit in job.most.work_units())
        watcher = SingleBeginning(watcher, steps)
    while True:
        lifecycle.extend(growing, run, lacking)
        count += lifecycle.carry_out(growing, run, worker_of(growing), watcher, engine)
        grown = growing.grown(JointArrays(growing, run.arrays).excess())
        if grown is None:
            return growing, count
        growing = grown
        run.manifest.summary |= {COUNTS: list(growing.counts)}
        run.save()
        n = len(growing.seeds)
        which = f": {growing.counts.count(n)} of {len(job.groups)} pairs go on" if job.is_pairs else ""
        watcher.note(f"seed {n} of at most {growing.auto.most}{which}")


def _list_lacking(job: JointJob, run: Run) -> list[str]:
    """List the arrays of joint descents that an earlier version did not write, where it has begun the run.

    Units that have landed are not computed again, so that such an array would stay unfinished for ever: the run goes
    without it, further seeds included.
    """
    names = [unit.name for unit in job.work_units() if isinstance(unit, JointUnit) and unit.stage == "joint"]
    # the manifest comes first, as in an inspection: only it knows the records of a complete run
    records = [run.manifest.units.get(name) or read_record(run.folder / UNITS / f"{name}.json") for name in names]
    return [
        array
        for array in LATER_ARRAYS
        if any(record and not any(file.startswith(f"{ARRAYS}/{array}/") for file in record) for record in records)
    ]


def describe(job: JointJob, result: Interaction, limit: int = 5) -> list[str]:
    """Describe the results of a run in words.

    Parameters
    ----------
    job : JointJob
        Job of the run.
    result : Interaction
        Its results.
    limit : int, default 5
        Most nonlinear pairs that are listed.

    Returns
    -------
    list of str
        Lines: of one group the conclusion and the units' activations; of many pairs their number, how many lie above
        their floor, and the most nonlinear ones.
    """
    if not job.is_pairs:
        row = result.summary.iloc[0]
        activations = [
            f"{u}: {row[f'solo_{c}']:.4g} alone, {row[f'joint_{c}']:.4g} in the joint image"
            for c, u in zip(MEMBERS, job.groups[0], strict=False)
            if f"joint_{c}" in row and pd.notna(row[f"joint_{c}"])
        ]
        return [*result.sentences, *activations, str(result.power), *describe_photographs(row)]
    ranking = report.rank_pairs(result.summary)
    counts = ", ".join(f"{n} {status}" for status, n in result.summary["status"].value_counts().items())
    significant = int((result.summary["q"] < 0.05).sum())
    kinds = ", ".join(f"{n} {kind}" for kind, n in result.summary["kind"].value_counts().items())
    tested = int(result.summary["q"].notna().sum())
    lacking = f"; {len(ranking) - tested} are not tested, for want of three seeds with a floor" if tested else ""
    lines = [
        f"{len(job.groups)} pairs: {counts}",
        f"kinds, each pair judged by itself: {kinds}",
        f"{significant} of {tested or len(ranking)} are above their floor at a false discovery rate of 5 %"
        + lacking * (tested < len(ranking)),
    ]
    lines.append(str(result.power))
    if "photographs" in result.summary:
        lines += describe_photographs_of_pairs(result.summary, compare_methods(result.summary))
    lines += [
        f"{row['group']}: {row['kind']}; {describe_nonlinearity(row)}" for row in ranking.head(limit).to_dict("records")
    ]
    return lines


def add_photographs(job: JointJob, photographs: AnyPhotographs, watcher: Watcher | None = None) -> PhotographJointJob:
    """Open photographs, and add them to a job of joint descents.

    Parameters
    ----------
    job : JointJob
        The checked job.
    photographs : path, Photographs or PhotographFolder
        The photographs; every one that is not open yet is decoded once.
    watcher : Watcher, optional
        Receives the progress, and what is left out.

    Returns
    -------
    PhotographJointJob
        The job with the photographs at the size of the recipe's images.

    Raises
    ------
    FeatmapError
        If a group is not of two units, the network does not take photographs, there are none, or some are broken and
        not skipped.
    """
    require_pairs(job)  # before all photographs are decoded
    return with_photographs(job, open_stimuli(photographs, job.recipe.size, job.network.channels, watcher))


def interact(
    units: Sequence[str | Unit] | None = None,
    network: str | nn.Module | Network = "reference",
    *,
    layers: Sequence[LayerChannels] | None = None,
    photographs: AnyPhotographs | None = None,
    settings: JointSettings | None = None,
    recipe: str | Recipe | None = None,
    seeds: int | Iterable[int] | str | AutoSeeds | None = None,
    execution: Execution | None = None,
) -> Interaction:
    """Maximise units together and measure how far that is from the sum of its parts.

    Parameters
    ----------
    units : sequence of str or Unit, optional
        2 to 8 units, such as "inception4a:17", of the same or of different layers.
    network : str, torch.nn.Module or Network, default "reference"
        A name that `featmap.load` takes, a module that takes images in [0, 1], or a loaded network.
    layers : sequence of str or (str, channels), optional
        Instead of units: two layers, each with its channels, such as
        ``[("inception4a", "0-15"), ("inception4b", range(16))]``. Every pair is measured, and the pairs are ranked
        under control of the false discovery rate; a solo descent serves all pairs of its unit. The same layer twice
        gives each pair of its features once.
    photographs : path, Photographs or PhotographFolder, optional
        A folder or zip, or `featmap.optimize.photograph_folder.Photographs` to set a limit or to skip broken ones, at
        the size of the recipe's images. Pairs are then measured on photographs, too: whether both units respond
        together, whether the responses add up where they do, and whether the effects of the two solo images add up
        where these are added to photographs; and by second derivatives along the solo images, at photographs and at
        images; see `featmap.interaction.natural.add_columns`.
    settings : JointSettings, optional
        Balance of the units and probed layers; its seeds and device are those of the other arguments.
    recipe : str or Recipe, optional
        Recipe of the descents. Default: "interact", whose steps are linear; with other recipes even a linear network
        looks nonlinear, and the report says so.
    seeds : int, iterable of int, "auto" or AutoSeeds, optional
        Number of seeds, counted from the recipe's own, or the seeds themselves. Default: 5 for a group, 3 for layers;
        an interval needs 3, a claim 5. "auto" adds seeds until the excess over the floor is known to plus or minus
        0.025, 20 at most; `featmap.interaction.precision.AutoSeeds` sets both.
    execution : Execution, optional
        Device, engine, run folder and progress.

    Returns
    -------
    Interaction
        Statistics, summary and conclusions; the statistics are defined in `featmap.stats.interaction`.

    Raises
    ------
    FeatmapError
        If both or neither of `units` and `layers` are given, a unit does not exist, a setting is out of range, or the
        run folder holds something else.

    References
    ----------
    The article, section "Layer and Neuron Interactions".
    """
    if (units is None) == (layers is None):
        raise UnitError("give either units (two or more) or two layers")
    execution = execution or Execution()
    loaded, device = load(network), execution.torch_device()
    resolved = resolve_recipe(recipe, loaded, device, DEFAULT_RECIPE)
    settings = replace(settings or JointSettings(), seeds=seeds, device=device)
    if units is not None:
        job = group_job(units, loaded, resolved, settings)
    else:
        job = pairs_job(pairs_of(layers or (), loaded, resolved.size), loaded, resolved, settings)
    if photographs is not None:
        job = add_photographs(job, photographs, execution.watcher)
    return carry_out(job, lifecycle.open_run(job, execution.out), execution)
