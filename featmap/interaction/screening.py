"""Screening: which of all pairs of two layers' features interact most, guessed from solo runs and then checked.

The root folder holds the solo runs and what was predicted from them; two runs of pairs lie in it: `check`, pairs
drawn at random, by which every predictor is judged, and `top`, those that the best one puts first. Both have seeds of
their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from featmap import image_ops, rng
from featmap.errors import UnitError
from featmap.interaction import report
from featmap.interaction import run as pairs_run
from featmap.interaction.estimate import estimate_joint
from featmap.interaction.job import PINK, Group, JointJob
from featmap.interaction.run import DEFAULT_RECIPE, Interaction, Side, pairs_job, side_units
from featmap.interaction.worker import yardstick
from featmap.network.loading import load
from featmap.network.model import Network
from featmap.network.unit import Unit
from featmap.optimize.batch import Batches
from featmap.optimize.limits import resolve_recipe, seeds_of
from featmap.optimize.objective import Objective, channel
from featmap.optimize.recipe import Recipe
from featmap.optimize.responses import Probe
from featmap.plotting.scatter import predictor_scores
from featmap.runs import lifecycle, output
from featmap.runs.array_layout import LIVE, RESCUED
from featmap.runs.device import remembered_settings
from featmap.runs.engine import Execution
from featmap.runs.estimate import Estimate
from featmap.runs.estimate import estimate as estimate_descents
from featmap.runs.job import Job
from featmap.runs.progress import Watcher
from featmap.runs.store import Run
from featmap.runs.worker import Worker, checked
from featmap.stats import interaction
from featmap.stats import predictors as predicting
from featmap.stats.predictors import PREDICTORS, evaluate, seed_reliability

SEEDS, SOLO_SEEDS = 3, 2


@dataclass(eq=False)
class Screening:
    """What a screening found; the same as lies in its folder.

    Attributes
    ----------
    folder : the run folder
    predictors : one row a predictor: Spearman's rank correlation with the exact figure (response nonlinearity less its
        floor) over the pairs drawn at random, its standard error, the same without taking off the floor
        (`spearman_with_floor`), the number of pairs
    best : the predictor that the top pairs were chosen by
    reliability : Spearman's correlation of the exact figure with itself, mean over pairs of single seeds; NaN for one
    check, top : the exact figures of the pairs drawn at random and of those predicted to be the most nonlinear
    """

    folder: Path
    predictors: pd.DataFrame
    best: str
    reliability: float
    check: Interaction
    top: Interaction

    def lines(self) -> list[str]:
        """Return what was found, in words."""
        said = [
            f"{row['predictor']}: rank correlation {row['spearman']:.2f} (standard error {row['error']:.2f}, "
            f"{row['pairs']} pairs) with response nonlinearity less its floor, "
            f"{report.number(row['spearman_with_floor'], 2)} with the whole"
            for row in self.predictors.to_dict("records")
            if pd.notna(row["spearman"])
        ]
        if not said:
            said = [f"no predictor could be judged by {len(self.check.summary)} pairs: give more checks or more seeds"]
        means = [i.summary["excess"].mean() for i in (self.top, self.check)]
        if np.isfinite(self.reliability):
            k = self.check.figures["seed"].nunique()
            mean = k * self.reliability / (1 + (k - 1) * self.reliability)
            said.append(
                f"the exact figure agrees with itself between single seeds with {self.reliability:.2f}: its mean of "
                f"{k} seeds has a reliability of {mean:.2f}, and no predictor can reach more than "
                f"{max(mean, 0) ** 0.5:.2f}"
            )
        top, drawn = (report.number(m) for m in means)
        said.append(
            f"kept: {self.best}; response nonlinearity less its floor: {top} in its {len(self.top.summary)} top pairs, "
            f"{drawn} in {len(self.check.summary)} pairs drawn at random (means)"
        )
        return said


@dataclass(frozen=True)
class Budget:
    """How many pairs a screening descends exactly.

    Parameters
    ----------
    top : int, default 50
        Pairs that are predicted to be the most nonlinear.
    checks : int, default 200
        Pairs drawn at random, by which the predictors are judged.

    Raises
    ------
    UnitError
        If a number is below 1.
    """

    top: int = 50
    checks: int = 200

    def __post_init__(self) -> None:
        for name, value in (("top", self.top), ("checks", self.checks)):
            if value < 1:
                raise UnitError(f"{name} {value}: give 1 or more")


@dataclass(frozen=True, kw_only=True)
class ScreeningJob(Job):
    """The job of a screening's solo runs, and what comes after them.

    Parameters
    ----------
    sides : tuple of (tuple of Unit, tuple of Unit)
        The features of the two layers.
    balance : str, default "solo"
        See `featmap.interaction.run.interact`.
    budget : Budget
        Pairs that are descended exactly; no more than there are.
    fresh_seeds : tuple of int
        Seeds of the exact runs; the solo runs have others.
    """

    sides: tuple[tuple[Unit, ...], tuple[Unit, ...]]
    balance: str = "solo"
    budget: Budget = Budget()
    fresh_seeds: tuple[int, ...] = ()

    @property
    def name_parts(self) -> list[str]:
        """The two layers."""
        return ["screen", *(side[0].layer for side in self.sides)]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Places of all pairs of different units, each pair once."""
        return _pairs(*self.sides)

    @property
    def top(self) -> int:
        """Pairs that are predicted and descended."""
        return min(self.budget.top, len(self.pairs))

    @property
    def checks(self) -> int:
        """Pairs that are drawn at random."""
        return min(self.budget.checks, len(self.pairs))

    def identity(self) -> dict[str, Any]:
        """Return everything that the screening's numbers depend on.

        Returns
        -------
        dict
            Plain JSON values.
        """
        return super().identity() | {
            "balance": self.balance,
            "fresh_seeds": list(self.fresh_seeds),
            "top": self.budget.top,
            "checks": self.budget.checks,
            "sides": [len(side) for side in self.sides],
        }

    @property
    def disk_needed(self) -> int:
        """Bytes that the solo runs and the predictions will take on disk."""
        return int(1.1 * self.array_bytes + 100e6)


def screening_job(
    layers: Sequence[Side],
    network: Network,
    recipe: Recipe,
    *,
    budget: Budget | None = None,
    balance: str = "solo",
    probe_layers: Sequence[str] = (),
    seeds: int | Iterable[int] = SEEDS,
    device: torch.device | None = None,
) -> ScreeningJob:
    """Return the checked job of a screening.

    Parameters
    ----------
    layers : sequence of str or (str, channels)
        Two layers, each with the channels that take part.
    network : Network
        Network that they belong to.
    recipe : Recipe
        Resolved recipe.
    budget, balance, probe_layers, seeds
        See `screen`.
    device : torch.device, optional
        Where the network is computed; None is the CPU.

    Returns
    -------
    ScreeningJob
        The checked job.

    Raises
    ------
    FeatmapError
        If a layer or feature does not exist, there is no pair to choose, or a setting is out of range.
    """
    if len(layers) != 2:
        raise UnitError(f"{len(layers)} layers; give two, each with its channels if it is not to be all of them")
    first, second = (side_units(side, network, recipe.size) for side in layers)
    names = (first[0].layer, second[0].layer)
    count = len(_pairs(first, second))
    if count < 2:
        raise UnitError(f"{' with '.join(names)}: {count} pairs are nothing to screen; name more features")
    if isinstance(seeds, int):
        seeds = [recipe.default_seed + k for k in range(SOLO_SEEDS + seeds)] if seeds > 0 else seeds
    every = seeds_of(seeds, recipe)
    if len(every) <= SOLO_SEEDS:
        raise UnitError(
            f"{len(every)} seeds: a screening takes {SOLO_SEEDS} for its solo runs and others for its pairs"
        )
    units = dict.fromkeys([*first, *second])
    job = ScreeningJob(
        network=network,
        objectives=tuple(channel(u.layer, u.channel) for u in units if u.channel is not None),
        recipe=recipe,
        seeds=every[:SOLO_SEEDS],
        responses=tuple(dict.fromkeys(probe_layers or names)),
        device=device or torch.device("cpu"),
        command="interact --screen",
        sides=(first, second),
        balance=balance,
        budget=budget or Budget(),
        fresh_seeds=every[SOLO_SEEDS:],
    )
    job = checked(job)
    exact_job(job, _random_pairs(job)[:1])  # what the exact runs would refuse is refused now
    return job


def _pairs(first: Sequence[Unit], second: Sequence[Unit]) -> list[tuple[int, int]]:
    """Return the places of all pairs of different units, each pair once."""
    if first and second and first[0].layer == second[0].layer:
        at = {u: k for k, u in enumerate(second)}
        both = set(first) & set(second)
        return [
            (i, j)
            for i, a in enumerate(first)
            for j, b in enumerate(second)
            if a != b and not (a in both and b in both and at[a] > j)
        ]
    return [(i, j) for i in range(len(first)) for j in range(len(second))]


def _random_pairs(job: ScreeningJob) -> tuple[Group, ...]:
    """Return the pairs drawn at random, by a generator that depends on the layers, their features and the seeds."""
    pairs = job.pairs
    key = [f"{side[0].layer}:{len(side)}" for side in job.sides]
    chosen = rng.generator("screen", *key, *job.fresh_seeds).choice(len(pairs), job.checks, replace=False)
    return tuple((job.sides[0][pairs[k][0]], job.sides[1][pairs[k][1]]) for k in sorted(chosen))


def estimate(job: ScreeningJob, folder: Path) -> Estimate:
    """Extrapolate a screening: its solo runs, the checked pairs and the top ones."""
    solos = estimate_descents(job, folder)
    both = [estimate_joint(exact_job(job, groups), folder) for groups in expected_pairs(job)]
    return Estimate(
        sum(e.seconds for e in (solos, *both)),
        max(e.memory for e in (solos, *both)) + 12 * job.recipe.size**2 * len(job.objectives) * 6,
        sum(e.disk for e in (solos, *both)),
        solos.free,
    )


def carry_out(job: ScreeningJob, run: Run, execution: Execution | None = None) -> Screening:
    """Do what is left of a screening and return what it found."""
    execution = execution or Execution()
    watcher, folder = execution.watcher, run.folder
    with run.held():
        for part in (folder / "check", folder / "top"):
            run.note_part(part)
        watcher.note(f"1 of 3: {len(job.objectives)} solo runs, {SOLO_SEEDS} seeds")
        made = lifecycle.carry_out(job, run, Worker, watcher, execution.engine)
        done = not made and run.is_complete()
        watcher.note(f"2 of 3: {job.checks} pairs drawn at random, {len(job.fresh_seeds)} fresh seeds")
        check = _exact(job, _random_pairs(job), folder / "check", execution)
        predicted = pd.read_parquet(folder / "predicted.parquet") if done else predict(job, run, watcher)
        table, predicted = evaluate(predicted, check.summary)
        best = str(table["predictor"].iloc[0])
        chosen = _chosen(job, predicted, best, float(table["spearman"].iloc[0]))
        if not chosen:
            watcher.note("no pair could be predicted: every unit's solo descent found nothing; others stand in")
            chosen = _random_pairs(job)[: job.top]
        watcher.note(f"3 of 3: the {len(chosen)} pairs that {best} puts first")
        top = _exact(job, chosen, folder / "top", execution)
        result = Screening(folder, table, best, seed_reliability(check.figures), check, top)
        if not done:
            run.manifest.files = {}
            run.write("predicted.parquet", lambda p: report.tidy(predicted).to_parquet(p, index=False))
            report.write_table(run, "predictors", table)
            text = json.dumps({"best": best, "lines": result.lines()}, indent=1, ensure_ascii=False)
            run.write("screening.json", lambda p: p.write_text(text + "\n", encoding="utf-8"))
            scatter = predicted.merge(check.summary[["a", "b", "excess"]], on=["a", "b"])
            output.save_figure(
                run, predictor_scores(table, scatter[best], scatter["excess"], best), "screening", ("png", "svg")
            )
            lifecycle.complete(job, run)
        return result


def exact_job(job: ScreeningJob, groups: tuple[Group, ...]) -> JointJob:
    """Return the job of some pairs' exact figures, under the fresh seeds."""
    return pairs_job(
        groups,
        job.network,
        job.recipe,
        balance=job.balance,
        probe_layers=job.responses,
        seeds=job.fresh_seeds,
        device=job.device,
    )


def expected_pairs(job: ScreeningJob) -> list[tuple[Group, ...]]:
    """Return the pairs drawn at random and, standing for the top ones that nobody knows yet, as many of any others."""
    pairs = job.pairs
    step = max(1, len(pairs) // job.top)
    some = [(job.sides[0][i], job.sides[1][j]) for i, j in pairs[::step][: job.top]]
    return [_random_pairs(job), tuple(some)]


def _exact(job: ScreeningJob, groups: tuple[Group, ...], folder: Path, execution: Execution) -> Interaction:
    """Measure some pairs exactly, in a run of their own."""
    exact = exact_job(job, groups)
    result = pairs_run.carry_out(exact, lifecycle.open_run(exact, folder), execution)
    return replace(result, summary=report.with_units(result.summary, exact))


def _chosen(job: ScreeningJob, predicted: pd.DataFrame, best: str, sign: float) -> tuple[Group, ...]:
    """Return the pairs that a predictor puts first, leaving out those it says nothing of: there may be none."""
    values = predicted[best].to_numpy(dtype=float, na_value=np.nan) * (1 if sign >= 0 else -1)
    order = np.argsort(-np.where(np.isfinite(values), values, -np.inf), kind="stable")
    first = [int(k) for k in order[: job.top] if np.isfinite(values[k])]
    units = {str(u): u for side in job.sides for u in side}
    return tuple((units[predicted["a"].iloc[k]], units[predicted["b"].iloc[k]]) for k in first)


def predict(job: ScreeningJob, run: Run, watcher: Watcher) -> pd.DataFrame:
    """Return what every predictor says of every pair: columns a, b and one a predictor."""
    first, second = (_side(job, run, *sides, watcher) for sides in (job.sides, job.sides[::-1]))
    pairs = np.array(job.pairs)
    found: dict[str, Any] = {
        "a": [str(job.sides[0][i]) for i in pairs[:, 0]],
        "b": [str(job.sides[1][j]) for j in pairs[:, 1]],
    }
    for name, function in PREDICTORS.items():
        found[name] = function(first, second)[pairs[:, 0], pairs[:, 1]]
    return pd.DataFrame(found)


def _side(
    job: ScreeningJob, run: Run, units: Sequence[Unit], others: Sequence[Unit], watcher: Watcher
) -> predicting.Side:
    """Return what the solo runs tell of one layer's units; a few passes more for each."""
    arrays = run.arrays
    network, recipe = job.network, job.recipe
    at = {label: k for k, label in enumerate(job.labels)}
    rows = np.array([at[str(u)] for u in units])
    with remembered_settings():
        probe = Probe(network, recipe.rows, job.device)
        pink = image_ops.pink_noise(PINK, recipe.size)
        deviation = yardstick(probe, pink, job.responses)
        null = torch.from_numpy(arrays["null_images"][0])
        images = torch.from_numpy(np.stack([arrays["images"][0, k] for k in rows]))
        halves, _ = probe.measure_units(null + (images - null) / 2, job.responses, ())
        _, nothing = probe.measure_units(null[None], (), _all(job))
        _, z = probe.measure_units(images, (), _all(job))
        watcher.stage("gradients", 0, 2)
        batches = Batches(network, job.device)
        targets = [Objective(((1.0, u),)) for u in units]
        at_solo = batches.image_gradients(targets, images, recipe.rows).flatten(1).numpy()
        at_null = batches.image_gradients(targets, null.expand(len(units), -1, -1, -1), recipe.rows).flatten(1).numpy()
        reads = np.full((len(units), len(others)), np.nan)
        if units[0].layer != others[0].layer:
            read = batches.channel_gradients(targets, images, recipe.rows, others[0].layer).numpy()
            reads = (read * np.nan_to_num(yardstick(probe, pink, (others[0].layer,))))[
                :, [u.channel or 0 for u in others]
            ]
        watcher.stage("gradients", 2, 2)
    A, nulls = (np.asarray(arrays[name][...]) for name in ("A", "null"))
    r = np.stack([interaction.standardise_responses(A[s][rows], nulls[s], deviation) for s in range(len(job.seeds))])
    found_nothing = ~np.isin(np.asarray(arrays["status"][...])[:, rows], (LIVE, RESCUED)).all(0)
    r[:, found_nothing] = np.nan
    places = {u: k for k, u in enumerate(_all(job))}
    return predicting.Side(
        r,
        interaction.standardise_responses(halves, nulls[0], deviation),
        (images - null).flatten(1).numpy(),
        at_null,
        at_solo,
        z.astype(float) - nothing[0],
        np.array([places[u] for u in units]),
        reads,
    )


def _all(job: ScreeningJob) -> list[Unit]:
    return list(dict.fromkeys([*job.sides[0], *job.sides[1]]))


def screen(
    layers: Sequence[Side],
    network: str | nn.Module | Network = "reference",
    *,
    budget: Budget | None = None,
    balance: str = "solo",
    probe_layers: Sequence[str] = (),
    recipe: str | Recipe | None = None,
    seeds: int | Iterable[int] = SEEDS,
    execution: Execution | None = None,
) -> Screening:
    """Find the pairs of two layers' features that interact most, without a joint descent for every pair.

    Parameters
    ----------
    layers : sequence of str or (str, channels)
        Two layers, each with the channels that take part; a name stands for all its features.
    network : str, torch.nn.Module or Network, default "reference"
        A name that `featmap.load` takes, a module that takes images in [0, 1], or a loaded network.
    budget : Budget, optional
        Pairs that are descended exactly: 50 predicted ones and 200 drawn at random.
    balance, probe_layers, recipe
        See `featmap.interact`.
    seeds : int or iterable of int, default 3
        How many fresh seeds the exact runs have, after the two of the solo runs; or all seeds, the first two of which
        are those of the solo runs.
    execution : Execution, optional
        Device, engine, run folder and progress.

    Returns
    -------
    Screening
        How well each predictor did, and the exact statistics of the pairs.

    Raises
    ------
    FeatmapError
        If a layer or feature does not exist, there is no pair to choose, or a setting is out of range.
    """
    execution = execution or Execution()
    loaded, device = load(network), execution.torch_device()
    job = screening_job(
        layers,
        loaded,
        resolve_recipe(recipe, loaded, device, DEFAULT_RECIPE),
        budget=budget,
        balance=balance,
        probe_layers=probe_layers,
        seeds=seeds,
        device=device,
    )
    return carry_out(job, lifecycle.open_run(job, execution.out), execution)
