"""Screening: which of all pairs of two layers' features interact most, guessed from solo runs and then checked.

The root folder holds the solo runs and what was predicted from them; two runs of pairs lie in it: `check`, pairs
drawn at random, by which every predictor is judged, and `top`, those that the best one puts first. Both have seeds of
their own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from featmap import image_ops
from featmap.errors import UnitError
from featmap.interaction import report as verdicts
from featmap.interaction import run as pairings
from featmap.interaction.job import PINK, Group, JointJob
from featmap.interaction.worker import yardstick
from featmap.mapping import tables
from featmap.network.model import Network, load
from featmap.network.unit import Unit, parse_channels
from featmap.optimize.batch import Batches
from featmap.optimize.objective import Objective, channel
from featmap.optimize.recipe import Recipe
from featmap.optimize.responses import Probe
from featmap.plotting import screenplots
from featmap.runs import device as devices
from featmap.runs import estimate as estimates
from featmap.runs import job as runs
from featmap.runs import lifecycle
from featmap.runs.engine import Engine, Silent, Watcher
from featmap.runs.job import Job
from featmap.runs.store import Run
from featmap.stats import interaction
from featmap.stats.judging import judged, reliability
from featmap.stats.predictors import PREDICTORS, Side

TOP, CHECKS, SEEDS = 50, 200, 3
SOLO_SEEDS = 2
KINDS = ("all",)


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
    check: pairings.Interaction
    top: pairings.Interaction

    def lines(self) -> list[str]:
        """Return what was found, in words."""
        said = [
            f"{row['predictor']}: rank correlation {row['spearman']:.2f} (standard error {row['error']:.2f}, "
            f"{row['pairs']} pairs) with response nonlinearity less its floor, "
            f"{verdicts.number(row['spearman_with_floor'], 2)} with the whole"
            for row in self.predictors.to_dict("records")
            if pd.notna(row["spearman"])
        ]
        if not said:
            said = [f"no predictor could be judged by {len(self.check.summary)} pairs: give more --checks or --seeds"]
        means = [i.summary["excess"].mean() for i in (self.top, self.check)]
        if np.isfinite(self.reliability):
            k = self.check.figures["seed"].nunique()
            mean = k * self.reliability / (1 + (k - 1) * self.reliability)
            said.append(
                f"the exact figure agrees with itself between single seeds with {self.reliability:.2f}: its mean of "
                f"{k} seeds has a reliability of {mean:.2f}, and no predictor can reach more than "
                f"{max(mean, 0) ** 0.5:.2f}"
            )
        top, drawn = (verdicts.number(m) for m in means)
        said.append(
            f"kept: {self.best}; response nonlinearity less its floor: {top} in its {len(self.top.summary)} top pairs, "
            f"{drawn} in {len(self.check.summary)} pairs drawn at random (means)"
        )
        return said


@dataclass(frozen=True)
class Plan:
    """The checked settings of a screening: the job of its solo runs, and what comes after it."""

    job: Job
    sides: tuple[tuple[Unit, ...], tuple[Unit, ...]]
    probed: tuple[str, ...]
    balance: str
    top: int
    checks: int
    seeds: tuple[int, ...]


def plan(
    layers: Sequence[str],
    features: Sequence[str | Sequence[int]],
    network: Network,
    recipe: Recipe,
    *,
    kind: str = "all",
    top: int = TOP,
    checks: int = CHECKS,
    balance: str = "solo",
    probe_layers: Sequence[str] = (),
    seed: int | None = None,
    seeds: int = SEEDS,
    where: torch.device | None = None,
) -> Plan:
    """Return the checked plan of a screening.

    Raises
    ------
    FeatmapError
        for unknown layers or features, fewer than two of them, or settings out of range.
    """
    if kind not in KINDS:
        raise UnitError(f"screen {kind!r} is unknown; allowed: {', '.join(KINDS)}")
    if len(layers) != 2 or len(features) != 2:
        raise UnitError(f"{len(layers)} layers, {len(features)} lists of features; give two of each")
    for name, value in (("top", top), ("checks", checks)):
        if value < 1:
            raise UnitError(f"{name} {value}: give 1 or more")
    sides = []
    for layer, given in zip(layers, features, strict=True):
        listed = given if isinstance(given, str) else ",".join(map(str, given))
        channels = parse_channels(listed, network.layer(layer, recipe.size).channels, layer)
        sides.append(tuple(Unit(layer, c) for c in channels))
    count = len(_pairs(sides[0], sides[1]))
    if count < 2:
        raise UnitError(f"{layers[0]} with {layers[1]}: {count} pairs are nothing to screen; name more --features")
    first = runs.check_seeds(seed, SOLO_SEEDS, recipe)
    fresh = runs.check_seeds(first[-1] + 1, seeds, recipe)
    probed = tuple(dict.fromkeys(probe_layers or layers))
    about = (
        ("command", "interact --screen"),
        ("balance", balance),
        ("fresh_seeds", list(fresh)),
        ("top", top),
        ("checks", checks),
        ("sides", [len(side) for side in sides]),
    )
    units = dict.fromkeys([*sides[0], *sides[1]])
    targets = tuple(channel(u.layer, u.channel) for u in units if u.channel is not None)
    job = Job(network, targets, recipe, first, probed, where or torch.device("cpu"), None, about).check()
    made = Plan(job, (sides[0], sides[1]), probed, balance, min(top, count), min(checks, count), fresh)
    exact_job(made, _drawn(made)[:1])
    return made


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


def _drawn(given: Plan) -> tuple[Group, ...]:
    """Return the pairs drawn at random, by a generator that depends on the layers, their features and the seeds."""
    pairs = _pairs(*given.sides)
    key = [f"{side[0].layer}:{len(side)}" for side in given.sides]
    chosen = image_ops.generator("screen", *key, *given.seeds).choice(len(pairs), given.checks, replace=False)
    return tuple((given.sides[0][pairs[k][0]], given.sides[1][pairs[k][1]]) for k in sorted(chosen))


def folder_of(given: Plan, out: str | Path | None) -> Path:
    """Return the folder of a screening: `out`, or one named after it."""
    layers = [side[0].layer for side in given.sides]
    return lifecycle.default_folder(given.job, ["screen", *layers]) if out is None else Path(out)


def estimate(given: Plan, folder: Path) -> estimates.Estimate:
    """Extrapolate a screening: its solo runs, the checked pairs and the top ones."""
    solos = estimates.estimate(given.job, folder)
    both = [estimates.estimate_joint(exact_job(given, groups), folder) for groups in foreseen(given)]
    return estimates.Estimate(
        sum(e.seconds for e in (solos, *both)),
        max(e.memory for e in (solos, *both)) + 12 * given.job.recipe.size**2 * len(given.job.objectives) * 6,
        sum(e.disk for e in (solos, *both)),
        solos.free,
    )


def carry_out(given: Plan, folder: Path, watcher: Watcher | None = None, engine: Engine | None = None) -> Screening:
    """Do what is left of a screening and return what it found."""
    watcher = watcher or Silent()
    job = given.job
    run = lifecycle.open_run(job, folder, int(1.1 * lifecycle.bytes_of(job) + 100e6))
    with run.held():
        for part in (folder / "check", folder / "top"):
            run.note_part(part)
        watcher.note(f"1 of 3: {len(job.objectives)} solo runs, {SOLO_SEEDS} seeds")
        made = lifecycle.carry_out(job, run, watcher, lambda: runs.execute(job, run, watcher, engine), engine)
        done = not made and run.is_complete()
        watcher.note(f"2 of 3: {given.checks} pairs drawn at random, {len(given.seeds)} fresh seeds")
        check = _exact(given, _drawn(given), folder / "check", watcher, engine)
        predicted = pd.read_parquet(folder / "predicted.parquet") if done else predict(given, run, watcher)
        table, predicted = judged(predicted, check.summary)
        best = str(table["predictor"].iloc[0])
        chosen = _chosen(given, predicted, best, float(table["spearman"].iloc[0]))
        if not chosen:
            watcher.note("no pair could be predicted: every unit's solo descent found nothing; others stand in")
            chosen = _drawn(given)[: given.top]
        watcher.note(f"3 of 3: the {len(chosen)} pairs that {best} puts first")
        top = _exact(given, chosen, folder / "top", watcher, engine)
        found = Screening(folder, table, best, reliability(check.figures), check, top)
        if not done:
            run.manifest["files"] = {}
            run.write("predicted.parquet", lambda p: verdicts.tidy(predicted).to_parquet(p, index=False))
            verdicts.write_table(run, "predictors", table)
            text = json.dumps({"best": best, "lines": found.lines()}, indent=1, ensure_ascii=False)
            run.write("screening.json", lambda p: p.write_text(text + "\n", encoding="utf-8"))
            scatter = predicted.merge(check.summary[["a", "b", "excess"]], on=["a", "b"])
            tables.save(
                run, screenplots.judgement(table, scatter[best], scatter["excess"], best), "screening", ("png", "svg")
            )
            lifecycle.complete(run, (u.name for u in job.units()))
        return found


def exact_job(given: Plan, groups: tuple[Group, ...]) -> JointJob:
    """Return the job of some pairs' exact figures, under the fresh seeds."""
    return pairings.pairs_job(
        groups,
        given.job.network,
        given.job.recipe,
        balance=given.balance,
        probe_layers=given.probed,
        seed=given.seeds[0],
        seeds=len(given.seeds),
        where=given.job.device,
    )


def foreseen(given: Plan) -> list[tuple[Group, ...]]:
    """Return the pairs drawn at random and, standing for the top ones that nobody knows yet, as many of any others."""
    pairs = _pairs(*given.sides)
    step = max(1, len(pairs) // given.top)
    some = [(given.sides[0][i], given.sides[1][j]) for i, j in pairs[::step][: given.top]]
    return [_drawn(given), tuple(some)]


def _exact(
    given: Plan, groups: tuple[Group, ...], folder: Path, watcher: Watcher, engine: Engine | None
) -> pairings.Interaction:
    job = exact_job(given, groups)
    found = pairings.carry_out(job, pairings.open_run(job, folder), watcher, engine)
    return replace(found, summary=verdicts.with_units(found.summary, job))


def _chosen(given: Plan, predicted: pd.DataFrame, best: str, sign: float) -> tuple[Group, ...]:
    """Return the pairs that a predictor puts first, leaving out those it says nothing of: there may be none."""
    values = predicted[best].to_numpy(dtype=float, na_value=np.nan) * (1 if sign >= 0 else -1)
    order = np.argsort(-np.where(np.isfinite(values), values, -np.inf), kind="stable")
    first = [int(k) for k in order[: given.top] if np.isfinite(values[k])]
    units = {str(u): u for side in given.sides for u in side}
    return tuple((units[predicted["a"].iloc[k]], units[predicted["b"].iloc[k]]) for k in first)


def predict(given: Plan, run: Run, watcher: Watcher) -> pd.DataFrame:
    """Return what every predictor says of every pair: columns a, b and one a predictor."""
    first, second = (_side(given, run, *sides, watcher) for sides in (given.sides, given.sides[::-1]))
    pairs = np.array(_pairs(*given.sides))
    found: dict[str, Any] = {
        "a": [str(given.sides[0][i]) for i in pairs[:, 0]],
        "b": [str(given.sides[1][j]) for j in pairs[:, 1]],
    }
    for name, function in PREDICTORS.items():
        found[name] = function(first, second)[pairs[:, 0], pairs[:, 1]]
    return pd.DataFrame(found)


def _side(given: Plan, run: Run, units: Sequence[Unit], others: Sequence[Unit], watcher: Watcher) -> Side:
    """Return what the solo runs tell of one layer's units; a few passes more for each."""
    job, arrays = given.job, run.arrays
    network, recipe = job.network, job.recipe
    at = {label: k for k, label in enumerate(job.labels)}
    rows = np.array([at[str(u)] for u in units])
    with devices.remembered_settings():
        probe = Probe(network, recipe.rows, job.device)
        pink = image_ops.pink(PINK, recipe.size)
        deviation = yardstick(probe, pink, given.probed)
        null = torch.from_numpy(arrays["null_images"][0])
        images = torch.from_numpy(np.stack([arrays["images"][0, k] for k in rows]))
        halves, _ = probe.measure(null + (images - null) / 2, given.probed, ())
        _, nothing = probe.measure(null[None], (), _all(given))
        _, z = probe.measure(images, (), _all(given))
        watcher.stage("gradients", 0, 2)
        batches = Batches(network, job.device)
        targets = [Objective(((1.0, u),)) for u in units]
        at_solo = batches.gradients(targets, images, recipe.rows).flatten(1).numpy()
        at_null = batches.gradients(targets, null.expand(len(units), -1, -1, -1), recipe.rows).flatten(1).numpy()
        reads = np.full((len(units), len(others)), np.nan)
        if units[0].layer != others[0].layer:
            read = batches.influence(targets, images, recipe.rows, others[0].layer).numpy()
            reads = (read * np.nan_to_num(yardstick(probe, pink, (others[0].layer,))))[
                :, [u.channel or 0 for u in others]
            ]
        watcher.stage("gradients", 2, 2)
    A, nulls = (np.asarray(arrays[name][...]) for name in ("A", "null"))
    r = np.stack([interaction.standardised(A[s][rows], nulls[s], deviation) for s in range(len(job.seeds))])
    found_nothing = ~np.isin(np.asarray(arrays["status"][...])[:, rows], (runs.LIVE, runs.RESCUED)).all(0)
    r[:, found_nothing] = np.nan
    places = {u: k for k, u in enumerate(_all(given))}
    return Side(
        r,
        interaction.standardised(halves, nulls[0], deviation),
        (images - null).flatten(1).numpy(),
        at_null,
        at_solo,
        z.astype(float) - nothing[0],
        np.array([places[u] for u in units]),
        reads,
    )


def _all(given: Plan) -> list[Unit]:
    return list(dict.fromkeys([*given.sides[0], *given.sides[1]]))


def screen(
    layers: Sequence[str],
    features: Sequence[str | Sequence[int]] = ("all", "all"),
    model: Any = "reference",
    *,
    weights: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_size: int | None = None,
    top: int = TOP,
    checks: int = CHECKS,
    balance: str = "solo",
    probe_layers: Sequence[str] = (),
    recipe: str | Recipe | None = None,
    size: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
    seeds: int = SEEDS,
    device: str = "auto",
    out: str | Path | None = None,
    engine: str | Engine = "here",
    watcher: Watcher | None = None,
    **changes: Any,
) -> Screening:
    """Find the pairs of two layers' features that interact most, without a joint descent for every pair.

    Parameters
    ----------
    layers, features : two names, and the channels of each that take part
    top : how many of the pairs that are predicted to be the most nonlinear are descended exactly
    checks : how many pairs drawn at random judge the predictors
    seeds : how many fresh ones for the exact figures; the solo runs that predict have two of their own

    The rest is as in `featmap.interact`.
    """
    engine = Engine.of(engine)
    network = load(model, weights, mean=mean, std=std, input_size=input_size)
    chosen = pairings.resolve(network, recipe, size, steps, **changes)
    given = plan(
        layers,
        features,
        network,
        chosen,
        top=top,
        checks=checks,
        balance=balance,
        probe_layers=probe_layers,
        seed=seed,
        seeds=seeds,
        where=devices.device(device),
    )
    return carry_out(given, folder_of(given, out), watcher, engine)
