"""Interaction of units: one group of them, or every pair of two layers' features, in one run folder each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import xarray as xr

from featmap.errors import UnitError
from featmap.interaction import figures as interplay
from featmap.interaction import report as verdicts
from featmap.interaction import worker as jointwork
from featmap.interaction.figures import Interplay
from featmap.interaction.job import Group, JointJob
from featmap.mapping import run as mapping
from featmap.network.model import Network, load
from featmap.network.unit import Unit, parse_channels, parse_unit
from featmap.optimize.recipe import Recipe
from featmap.runs import device as devices
from featmap.runs import job as runs
from featmap.runs import lifecycle
from featmap.runs.engine import Engine, Silent, Watcher
from featmap.runs.store import ARRAYS, Run

DEFAULT_RECIPE = "interact"
SEEDS_OF_ONE, SEEDS_OF_MANY = 5, 3
MOST_PAIRS = 20_000
OF_LAYERS = "interact --layers"


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
        return xr.open_zarr(self.folder / ARRAYS, consolidated=True)

    def _repr_html_(self) -> str:
        items = "".join(f"<li>{escape(line)}</li>" for line in [*self.sentences[:10], *self.notes])
        return (
            f"<b>featmap interact</b> {escape(str(self.folder))}<ul>{items}</ul>{self.summary.head(20)._repr_html_()}"
        )


def resolve(
    network: Network,
    recipe: str | Recipe | None = None,
    size: int | None = None,
    steps: int | None = None,
    **changes: Any,
) -> Recipe:
    """Return the recipe with this network's sizes; linear steps (`interact`) where none is named."""
    return mapping.resolve(network, torch.device("cpu"), recipe or DEFAULT_RECIPE, size, steps, **changes)


def group_job(
    units: Sequence[str | Unit],
    network: Network,
    recipe: Recipe,
    *,
    balance: str = "solo",
    probe_layers: Sequence[str] = (),
    seed: int | None = None,
    seeds: int = SEEDS_OF_ONE,
    where: torch.device | None = None,
) -> JointJob:
    """Return the checked job of one group of units.

    Raises
    ------
    FeatmapError
        for fewer than two units, unknown ones, or settings out of range.
    """
    given = [units] if isinstance(units, str) else units
    group = tuple(parse_unit(u) if isinstance(u, str) else u for u in given)
    if len(group) < 2:
        raise UnitError(f"{' '.join(map(str, group)) or 'no unit'}: interaction takes two units or more")
    return _job((group,), network, recipe, balance, probe_layers, seed, seeds, where, "interact")


def pairs_of(
    layers: Sequence[str], features: Sequence[str | Sequence[int]], network: Network, size: int
) -> tuple[Group, ...]:
    """Return every pair of two layers' features; within one layer each pair of different ones once.

    `features` names the channels of each layer, "0-15,42" or a sequence.
    """
    if len(layers) != 2 or len(features) != 2:
        raise UnitError(f"{len(layers)} layers, {len(features)} lists of features; give two of each")
    chosen = []
    for layer, given in zip(layers, features, strict=True):
        listed = given if isinstance(given, str) else ",".join(map(str, given))
        channels = parse_channels(listed, network.layer(layer, size).channels, layer)
        chosen.append([Unit(layer, c) for c in channels])
    pairs = [(a, b) for a in chosen[0] for b in chosen[1] if a != b]
    if layers[0] == layers[1]:
        known: set[frozenset[Unit]] = set()
        pairs = [p for p in pairs if not (frozenset(p) in known or known.add(frozenset(p)))]  # type: ignore[func-returns-value]
    if not pairs:
        raise UnitError(f"{layers[0]} with {layers[1]}: these features make no pair; name two different ones")
    if len(pairs) > MOST_PAIRS:
        raise UnitError(
            f"{layers[0]} with {layers[1]}: {len(pairs):,} pairs would be descended one by one, {MOST_PAIRS:,} are "
            "allowed; name fewer --features, or let --screen all find the most nonlinear ones"
        )
    return tuple(pairs)


def pairs_job(
    groups: tuple[Group, ...],
    network: Network,
    recipe: Recipe,
    *,
    balance: str = "solo",
    probe_layers: Sequence[str] = (),
    seed: int | None = None,
    seeds: int = SEEDS_OF_MANY,
    where: torch.device | None = None,
) -> JointJob:
    """Return the checked job of many pairs."""
    return _job(groups, network, recipe, balance, probe_layers, seed, seeds, where, OF_LAYERS)


def _job(
    groups: tuple[Group, ...],
    network: Network,
    recipe: Recipe,
    balance: str,
    probe_layers: Sequence[str],
    seed: int | None,
    seeds: int,
    where: torch.device | None,
    command: str,
) -> JointJob:
    named = tuple(network.unit(u, recipe.size).layer for u in groups[0])
    probed = tuple(dict.fromkeys(probe_layers or named))
    known = runs.check_seeds(seed, seeds, recipe)
    return JointJob(
        network, groups, recipe, known, probed, balance, where or torch.device("cpu"), (("command", command),)
    ).check()


def folder_of(job: JointJob, out: str | Path | None) -> Path:
    """Return the folder of a job's run: `out`, or one named after it."""
    if out is not None:
        return Path(out)
    return lifecycle.default_folder(job, ["interact", *(_layers(job) if of_layers(job) else map(str, job.groups[0]))])


def open_run(job: JointJob, folder: Path) -> Run:
    """Return the job's run folder, new or taken up."""
    need = int(1.1 * lifecycle.bytes_of(job)) + 400 * len(job.joints) + lifecycle.OWN_FILES
    return lifecycle.open_run(job, folder, need)


def of_layers(job: JointJob) -> bool:
    """Is this about pairs of two layers, be it one pair, rather than about one group of units?"""
    return dict(job.about)["command"] == OF_LAYERS


def _layers(job: JointJob) -> list[str]:
    return [u.layer for u in job.groups[0]]


def carry_out(job: JointJob, run: Run, watcher: Watcher | None = None, engine: Engine | None = None) -> Interaction:
    """Do what is left of an interaction run, write its report and return what it found."""
    watcher = watcher or Silent()
    with run.held():
        made = lifecycle.carry_out(job, run, watcher, lambda: jointwork.execute(job, run, watcher, engine), engine)
        found = Interplay(job, run.arrays)
        finished = not made and run.is_complete()
        begun = time.perf_counter()
        table = found.table(lambda done, total: watcher.stage("figures", done, total))
        summary = interplay.summary(table)
        sentences = [verdicts.sentence(row, job) for _, row in summary.iterrows()]
        notes = list(dict.fromkeys(note for _, row in summary.iterrows() for note in verdicts.notes(row, job)))
        if not finished:
            run.manifest["files"] = {}
            if of_layers(job):
                verdicts.write_pairs(run, found, table, summary, watcher)
            else:
                verdicts.write_group(run, found, table, summary)
            run.manifest["timings"]["tables_and_figures"] = round(time.perf_counter() - begun, 3)
            run.manifest["summary"] = {"sentences": sentences[:20], "notes": notes}
            lifecycle.complete(run, (piece.name for piece in job.pieces()))
        return Interaction(run.folder, verdicts.tidy(table), verdicts.tidy(summary), sentences, notes)


def lines(job: JointJob, found: Interaction, most: int = 5) -> list[str]:
    """Return what a run found, in words: the sentence of one group, or the least and most linear of many pairs."""
    if not of_layers(job):
        row = found.summary.iloc[0]
        kept = [
            f"{u}: {row[f'solo_{c}']:.4g} alone, {row[f'joint_{c}']:.4g} in the joint image"
            for c, u in zip(interplay.LETTERS, job.groups[0], strict=False)
            if f"joint_{c}" in row and pd.notna(row[f"joint_{c}"])
        ]
        return [*found.sentences, *kept]
    ranking = verdicts.ranked(found.summary)
    counts = ", ".join(f"{n} {status}" for status, n in found.summary["status"].value_counts().items())
    claimed = int((found.summary["q"] < 0.05).sum())
    said = [
        f"{len(job.groups)} pairs: {counts}",
        f"{claimed} of {len(ranking)} are above their floor at a false discovery rate of 5 %",
    ]
    said += [f"{row['group']}: {verdicts.headline(row)}" for row in ranking.head(most).to_dict("records")]
    return said


def interact(
    units: Sequence[str | Unit],
    model: Any = "reference",
    *,
    weights: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_size: int | None = None,
    balance: str = "solo",
    probe_layers: Sequence[str] = (),
    recipe: str | Recipe | None = None,
    size: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
    seeds: int = SEEDS_OF_ONE,
    device: str = "auto",
    out: str | Path | None = None,
    engine: str | Engine = "here",
    watcher: Watcher | None = None,
    **changes: Any,
) -> Interaction:
    """Maximise units together and measure how far that is from the sum of its parts.

    Parameters
    ----------
    units : two or more, "inception4a:17" or `Unit`; in the same or in different layers
    model, weights, mean, std, input_size : the network, see `featmap.load`
    balance : "solo" divides each unit by its solo maximum; "none" is the article's plain sum, which the unit of
        larger scale wins
    probe_layers : whose features' responses tell linear from nonlinear; default: the units' own layers
    recipe, size, steps : how the images are made; other recipes than `interact` make even a linear network look
        nonlinear, and the report says so
    seed, seeds : the first seed and how many; an interval takes three, a claim five
    out : the run folder; the same call with the same folder goes on where it stopped
    engine : where the descents run, "here", "ray" or a `featmap.Engine`

    Returns
    -------
    Interaction
        The figures are defined in `featmap.stats.interaction`.

    Raises
    ------
    FeatmapError
        in one line that says what was given, what is allowed and what to do.

    Source: the article, section "Layer and Neuron Interactions".
    """
    engine = Engine.of(engine)
    network = load(model, weights, mean=mean, std=std, input_size=input_size)
    chosen = resolve(network, recipe, size, steps, **changes)
    job = group_job(
        units,
        network,
        chosen,
        balance=balance,
        probe_layers=probe_layers,
        seed=seed,
        seeds=seeds,
        where=devices.device(device),
    )
    return carry_out(job, open_run(job, folder_of(job, out)), watcher, engine)


def interact_layers(
    layers: Sequence[str],
    features: Sequence[str | Sequence[int]],
    model: Any = "reference",
    *,
    weights: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_size: int | None = None,
    balance: str = "solo",
    probe_layers: Sequence[str] = (),
    recipe: str | Recipe | None = None,
    size: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
    seeds: int = SEEDS_OF_MANY,
    device: str = "auto",
    out: str | Path | None = None,
    engine: str | Engine = "here",
    watcher: Watcher | None = None,
    **changes: Any,
) -> Interaction:
    """Measure the interaction of every pair of two layers' features.

    Parameters
    ----------
    layers : two names; the same one twice makes each pair of its features once
    features : the channels of each, "0-15,42" or a sequence

    The rest, and what is returned, is as in `interact`; the solo descents are made once each, and pairs are ranked
    with control of the false discovery rate.
    """
    engine = Engine.of(engine)
    network = load(model, weights, mean=mean, std=std, input_size=input_size)
    chosen = resolve(network, recipe, size, steps, **changes)
    job = pairs_job(
        pairs_of(layers, features, network, chosen.size),
        network,
        chosen,
        balance=balance,
        probe_layers=probe_layers,
        seed=seed,
        seeds=seeds,
        where=devices.device(device),
    )
    return carry_out(job, open_run(job, folder_of(job, out)), watcher, engine)
