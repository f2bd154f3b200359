"""Interaction of units: one group of them, or every pair of two layers' features, in one run folder."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pandas as pd
import torch
import xarray as xr
from torch import nn

from featmap.errors import UnitError
from featmap.interaction import figures, report
from featmap.interaction.figures import Interplay
from featmap.interaction.job import MEMBERS, OF_GROUP, OF_LAYERS, Group, JointJob
from featmap.interaction.worker import JointWorker
from featmap.network.loading import load
from featmap.network.model import Network
from featmap.network.unit import Unit, parse_channels
from featmap.optimize.limits import resolve_recipe, seeds_of
from featmap.optimize.recipe import Recipe
from featmap.runs import lifecycle
from featmap.runs.engine import Execution
from featmap.runs.store import Run, open_arrays
from featmap.runs.worker import checked

DEFAULT_RECIPE = "interact"
SEEDS_OF_GROUP, SEEDS_OF_PAIRS = 5, 3
MOST_PAIRS = 20_000
Side = str | tuple[str, str | Sequence[int]]
"""A layer, or a layer and its channels."""


@dataclass(eq=False)
class Interaction:
    """What an interaction run found; the same as lies in its folder.

    Attributes
    ----------
    folder : the run folder
    figures : every figure of every group and seed (`group`, `seed`, `status`, a column a figure; `pd.NA` undefined)
    summary : one row a group: means over seeds, interval, floors, ceiling, excess, p and q
    sentences : the conclusion about each group
    notes : what a reader has to know before believing them
    """

    folder: Path
    figures: pd.DataFrame
    summary: pd.DataFrame
    sentences: list[str]
    notes: list[str]

    @property
    def dataset(self) -> xr.Dataset:
        """The run's arrays with their labels."""
        return open_arrays(self.folder)

    def _repr_html_(self) -> str:
        items = "".join(f"<li>{escape(line)}</li>" for line in [*self.sentences[:10], *self.notes])
        return (
            f"<b>featmap interact</b> {escape(str(self.folder))}<ul>{items}</ul>{self.summary.head(20)._repr_html_()}"
        )


def group_job(
    units: Sequence[str | Unit] | str,
    network: Network,
    recipe: Recipe,
    *,
    balance: str = "solo",
    probe_layers: Sequence[str] = (),
    seeds: int | Iterable[int] = SEEDS_OF_GROUP,
    device: torch.device | None = None,
) -> JointJob:
    """Return the checked job of one group of units.

    Parameters
    ----------
    units : sequence of str or Unit
        Two units or more.
    network : Network
        Network that they belong to.
    recipe : Recipe
        Resolved recipe.
    balance, probe_layers, seeds
        See `interact`.
    device : torch.device, optional
        Where the network is computed; None is the CPU.

    Returns
    -------
    JointJob
        The checked job.

    Raises
    ------
    FeatmapError
        If there are fewer than two units, one does not exist, or a setting is out of range.
    """
    listed = [units] if isinstance(units, str) else units
    group = tuple(Unit.parse(u) if isinstance(u, str) else u for u in listed)
    if len(group) < 2:
        raise UnitError(f"{' '.join(map(str, group)) or 'no unit'}: interaction takes two units or more")
    return _joint_job((group,), network, recipe, OF_GROUP, (balance, probe_layers, seeds, device))


def side_units(side: Side, network: Network, size: int) -> tuple[Unit, ...]:
    """Return the features of one of the two layers.

    Parameters
    ----------
    side : str or (str, channels)
        A layer, which stands for all its features, or a layer and channels as "0-15,42" or a sequence.
    network : Network
        Network that it belongs to.
    size : int
        Image size in pixels.

    Returns
    -------
    tuple of Unit
        In the order of the channels.

    Raises
    ------
    UnitError
        If the layer does not exist or a channel is out of range.
    """
    layer, channels = (side, "all") if isinstance(side, str) else side
    text = channels if isinstance(channels, str) else ",".join(map(str, channels))
    return tuple(Unit(layer, c) for c in parse_channels(text, network.layer(layer, size).channels, layer))


def pairs_of(layers: Sequence[Side], network: Network, size: int) -> tuple[Group, ...]:
    """Return every pair of two layers' features.

    Parameters
    ----------
    layers : sequence of str or (str, channels)
        Two layers; the same one twice makes each pair of its different features once.
    network : Network
        Network that they belong to.
    size : int
        Image size in pixels.

    Returns
    -------
    tuple of (Unit, Unit)
        At most `MOST_PAIRS`.

    Raises
    ------
    UnitError
        If there are not two layers, no pair, or too many.
    """
    if len(layers) != 2:
        raise UnitError(f"{len(layers)} layers; give two, each with its channels if it is not to be all of them")
    first, second = (side_units(side, network, size) for side in layers)
    pairs: list[Group] = [(a, b) for a in first for b in second if a != b]
    if first[0].layer == second[0].layer:  # a with b and b with a are one pair
        unordered: dict[frozenset[Unit], Group] = {}
        for pair in pairs:
            unordered.setdefault(frozenset(pair), pair)
        pairs = list(unordered.values())
    names = f"{first[0].layer} with {second[0].layer}"
    if not pairs:
        raise UnitError(f"{names}: these features make no pair; name two different ones")
    if len(pairs) > MOST_PAIRS:
        raise UnitError(
            f"{names}: {len(pairs):,} pairs would be descended one by one, {MOST_PAIRS:,} are "
            "allowed; name fewer features, or let a screening find the most nonlinear ones"
        )
    return tuple(pairs)


def pairs_job(
    groups: tuple[Group, ...],
    network: Network,
    recipe: Recipe,
    *,
    balance: str = "solo",
    probe_layers: Sequence[str] = (),
    seeds: int | Iterable[int] = SEEDS_OF_PAIRS,
    device: torch.device | None = None,
) -> JointJob:
    """Return the checked job of many pairs.

    Parameters
    ----------
    groups : tuple of (Unit, Unit)
        The pairs.
    network : Network
        Network that they belong to.
    recipe : Recipe
        Resolved recipe.
    balance, probe_layers, seeds
        See `interact`.
    device : torch.device, optional
        Where the network is computed; None is the CPU.

    Returns
    -------
    JointJob
        The checked job.
    """
    return _joint_job(groups, network, recipe, OF_LAYERS, (balance, probe_layers, seeds, device))


def _joint_job(
    groups: tuple[Group, ...],
    network: Network,
    recipe: Recipe,
    command: str,
    settings: tuple[str, Sequence[str], int | Iterable[int], torch.device | None],
) -> JointJob:
    """Return the checked job; `settings` are balance, probed layers, seeds and device."""
    balance, probe_layers, seeds, device = settings
    layers = tuple(network.resolve_unit(u, recipe.size).layer for u in groups[0])
    job = JointJob(
        network=network,
        groups=groups,
        recipe=recipe,
        seeds=seeds_of(seeds, recipe),
        responses=tuple(dict.fromkeys(probe_layers or layers)),
        balance=balance,
        device=device or torch.device("cpu"),
        command=command,
    )
    return checked(job)


def carry_out(job: JointJob, run: Run, execution: Execution | None = None) -> Interaction:
    """Do what is left of an interaction run and write its report.

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
        The statistics of every group.
    """
    execution = execution or Execution()
    watcher = execution.watcher
    with run.held():
        count = lifecycle.carry_out(job, run, JointWorker, watcher, execution.engine)
        interplay = Interplay(job, run.arrays)
        finished = not count and run.is_complete()
        begun = time.perf_counter()
        table = interplay.table(lambda done, total: watcher.stage("figures", done, total))
        summary = figures.summary(table)
        rows = [row for _, row in summary.iterrows()]
        sentences = [report.sentence(row, job) for row in rows]
        notes = list(dict.fromkeys(note for row in rows for note in report.notes(row, job)))
        if not finished:
            run.manifest.files = {}
            if job.is_pairs:
                report.write_pairs(run, interplay, table, summary, watcher)
            else:
                report.write_group(run, interplay, table, summary)
            run.manifest.timings["tables_and_figures"] = round(time.perf_counter() - begun, 3)
            run.manifest.summary = {"sentences": sentences[:20], "notes": notes}
            lifecycle.complete(job, run)
        return Interaction(run.folder, report.tidy(table), report.tidy(summary), sentences, notes)


def lines(job: JointJob, found: Interaction, most: int = 5) -> list[str]:
    """Return what a run found, in words: the sentence of one group, or the least and most linear of many pairs."""
    if not job.is_pairs:
        row = found.summary.iloc[0]
        kept = [
            f"{u}: {row[f'solo_{c}']:.4g} alone, {row[f'joint_{c}']:.4g} in the joint image"
            for c, u in zip(MEMBERS, job.groups[0], strict=False)
            if f"joint_{c}" in row and pd.notna(row[f"joint_{c}"])
        ]
        return [*found.sentences, *kept]
    ranking = report.ranked(found.summary)
    counts = ", ".join(f"{n} {status}" for status, n in found.summary["status"].value_counts().items())
    claimed = int((found.summary["q"] < 0.05).sum())
    said = [
        f"{len(job.groups)} pairs: {counts}",
        f"{claimed} of {len(ranking)} are above their floor at a false discovery rate of 5 %",
    ]
    said += [f"{row['group']}: {report.headline(row)}" for row in ranking.head(most).to_dict("records")]
    return said


def interact(
    units: Sequence[str | Unit] | None = None,
    network: str | nn.Module | Network = "reference",
    *,
    layers: Sequence[Side] | None = None,
    balance: str = "solo",
    probe_layers: Sequence[str] = (),
    recipe: str | Recipe | None = None,
    seeds: int | Iterable[int] | None = None,
    execution: Execution | None = None,
) -> Interaction:
    """Maximise units together and measure how far that is from the sum of its parts.

    Parameters
    ----------
    units : sequence of str or Unit, optional
        Two units or more, such as "inception4a:17", of the same or of different layers.
    network : str, torch.nn.Module or Network, default "reference"
        A name that `featmap.load` takes, a module that takes images in [0, 1], or a loaded network.
    layers : sequence of str or (str, channels), optional
        Instead of units: two layers, each with its channels, such as
        ``[("inception4a", "0-15"), ("inception4b", range(16))]``. Every pair is measured, each solo descent made once,
        and the pairs are ranked under control of the false discovery rate. The same layer twice makes each pair of its
        features once.
    balance : str, default "solo"
        "solo" divides each unit by its solo maximum; "none" is the article's plain sum, which the unit of larger scale
        dominates.
    probe_layers : sequence of str, optional
        Layers whose features' responses tell linear from nonlinear. Default: the layers of the units.
    recipe : str or Recipe, optional
        How the images are made. Default: "interact", whose steps are linear; with other recipes even a linear network
        looks nonlinear, and the report says so.
    seeds : int or iterable of int, optional
        How many seeds, counted from the recipe's own, or the seeds themselves. Default: 5 for a group, 3 for layers;
        an interval takes 3, a claim 5.
    execution : Execution, optional
        Device, engine, run folder and progress.

    Returns
    -------
    Interaction
        The statistics are defined in `featmap.stats.interaction`.

    Raises
    ------
    FeatmapError
        If a unit does not exist, a setting is out of range, or the run folder holds something else.

    References
    ----------
    The article, section "Layer and Neuron Interactions".
    """
    if (units is None) == (layers is None):
        raise UnitError("give either units (two or more) or two layers")
    execution = execution or Execution()
    loaded, device = load(network), execution.torch_device()
    chosen = resolve_recipe(recipe, loaded, device, DEFAULT_RECIPE)
    if units is not None:
        job = group_job(
            units,
            loaded,
            chosen,
            balance=balance,
            probe_layers=probe_layers,
            seeds=SEEDS_OF_GROUP if seeds is None else seeds,
            device=device,
        )
    else:
        job = pairs_job(
            pairs_of(layers or (), loaded, chosen.size),
            loaded,
            chosen,
            balance=balance,
            probe_layers=probe_layers,
            seeds=SEEDS_OF_PAIRS if seeds is None else seeds,
            device=device,
        )
    return carry_out(job, lifecycle.open_run(job, execution.out), execution)
