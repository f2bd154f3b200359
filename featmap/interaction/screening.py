"""Screen all pairs of two layers' features: predict the most nonlinear ones from solo runs, then measure those exactly.

The run folder holds the solo runs and the predictions. Two runs of pairs lie inside it: `check`, random pairs by which
every predictor is evaluated, and `top`, the pairs that the best predictor ranks first. Both have seeds of their own, so
that no prediction is evaluated on the noise that it was made from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from featmap import image_ops
from featmap.interaction import report
from featmap.interaction import run as pairs_run
from featmap.interaction.conclusion import format_number
from featmap.interaction.groups import LayerChannels
from featmap.interaction.job import PINK_IMAGES, Group
from featmap.interaction.run import DEFAULT_RECIPE, Interaction, estimate_joint, joint_parts
from featmap.interaction.screening_job import (
    PHOTOGRAPH_PREDICTORS,
    SOLO_SEEDS,
    Budget,
    PhotographResponses,
    ScreeningJob,
    exact_job,
    random_pairs,
    representative_pairs,
    screening_job,
)
from featmap.interaction.worker import measure_response_deviations
from featmap.network.loading import load
from featmap.network.model import Network
from featmap.network.unit import Unit
from featmap.optimize.batch import Batches
from featmap.optimize.limits import resolve_recipe
from featmap.optimize.objective import Objective
from featmap.optimize.photograph_folder import UNIT_PHOTOGRAPHS, AnyPhotographs, PhotographStimuli
from featmap.optimize.recipe import Recipe
from featmap.optimize.responses import Probe
from featmap.plotting.scatter import predictor_scores
from featmap.runs import lifecycle, output
from featmap.runs.device import deterministic_settings
from featmap.runs.engine import Execution
from featmap.runs.estimate import Estimate, Part, descents, later_seconds, part, probe_seconds
from featmap.runs.estimate import estimate as estimate_descents
from featmap.runs.folder_layout import LIVE_CODES
from featmap.runs.probe import open_stimuli
from featmap.runs.progress import Watcher
from featmap.runs.store import Run
from featmap.runs.worker import Worker
from featmap.stats import interaction
from featmap.stats import predictors as predicting
from featmap.stats.correlation import RunningCorrelation, seed_reliability
from featmap.stats.frames import plain_columns
from featmap.stats.predictors import PREDICTORS, evaluate
from featmap.stats.reliability import spearman_brown

PLACES = 49
"""Largest number of places at which features are compared: finer grids are averaged down to 7 x 7."""


@dataclass(eq=False)
class Screening:
    """Results of a screening, as they are stored in its folder.

    Parameters
    ----------
    folder : Path
        Run folder.
    predictors : pandas.DataFrame
        A row for each predictor: Spearman's rank correlation with the exact statistic (response nonlinearity less its
        floor) over the random pairs (`spearman`), its standard error (`error`), the correlation with response
        nonlinearity alone (`spearman_with_floor`) and the number of pairs (`pairs`).
    best : str
        Predictor that the top pairs were selected by.
    reliability : float
        Spearman's rank correlation of the exact statistic between single seeds, mean over pairs of seeds; NaN for one
        seed.
    check, top : Interaction
        Exact statistics of the random pairs, and of the pairs predicted to be the most nonlinear.
    """

    folder: Path
    predictors: pd.DataFrame
    best: str
    reliability: float
    check: Interaction
    top: Interaction

    def lines(self) -> list[str]:
        """Describe the results in words.

        Returns
        -------
        list of str
            A line for each predictor that could be evaluated, then the reliability of the exact statistic, the means of
            the top and of the random pairs, and what the runs of both could find.
        """
        lines = [
            f"{row['predictor']}: rank correlation {row['spearman']:.2f} (standard error {row['error']:.2f} "
            f"or more, {row['pairs']} pairs that share features) with response nonlinearity less its floor, "
            f"{format_number(row['spearman_with_floor'], 2)} with response nonlinearity alone"
            for row in self.predictors.to_dict("records")
            if pd.notna(row["spearman"])
        ]
        if not lines:
            lines = [
                f"no predictor could be evaluated on {len(self.check.summary)} random pairs: give more checks or seeds"
            ]
        k = self.check.statistics["seed"].nunique()
        mean_reliability = spearman_brown(self.reliability, k)
        if np.isfinite(mean_reliability):
            lines.append(
                f"the exact statistic of single seeds has a reliability of {self.reliability:.2f}, "
                f"its mean of {k} seeds one of {mean_reliability:.2f}: no predictor can reach a rank correlation above "
                f"{max(mean_reliability, 0) ** 0.5:.2f}"
            )
        top, random = (format_number(result.summary["excess"].mean()) for result in (self.top, self.check))
        lines.append(
            f"selected by {self.best}; response nonlinearity less its floor (means): {top} in the "
            f"{len(self.top.summary)} top pairs, {random} in {len(self.check.summary)} random pairs"
        )
        both = (("top", self.top), ("random", self.check))
        return lines + [f"{name} pairs: {result.power}" for name, result in both]


def screening_parts(job: ScreeningJob) -> list[Part]:
    """List the parts of a screening, in their order.

    Parameters
    ----------
    job : ScreeningJob
        The checked job.

    Returns
    -------
    list of Part
        The solo runs, the random pairs, the predictors, the top pairs and the report.
    """
    check, top = (joint_parts(exact_job(job, pairs)) for pairs in representative_pairs(job))
    return [descents(job), *check, part("gradients", len(job.objectives)), *top, part("screening", len(job.pairs))]


def estimate_screening(job: ScreeningJob, folder: Path) -> Estimate:
    """Estimate a screening: its solo runs, the random pairs and the top ones.

    Parameters
    ----------
    job : ScreeningJob
        The checked job.
    folder : Path
        Run folder that it would get; nothing is written.

    Returns
    -------
    Estimate
        Time, memory and disk.
    """
    solos = estimate_descents(job, folder)
    parts = [solos, *(estimate_joint(exact_job(job, pairs), folder) for pairs in representative_pairs(job))]
    # the predictors hold six float32 images of each unit
    gradients = 6 * 4 * math.prod(job.network.image_shape(job.recipe.size)) * len(job.objectives)
    shown = len(job.photographs or ())
    return Estimate(
        sum(part.seconds for part in parts) + -(-shown // job.recipe.rows) * probe_seconds(job, job.recipe.rows),
        max(part.memory for part in parts) + gradients,
        sum(part.disk for part in parts),
        solos.free,
        solos.start,
        later_seconds(screening_parts(job)),
    )


def carry_out(job: ScreeningJob, run: Run, execution: Execution | None = None) -> Screening:
    """Compute the solo runs, the predictions and the exact runs that are missing.

    Parameters
    ----------
    job : ScreeningJob
        Job of the solo runs.
    run : Run
        Its folder.
    execution : Execution, optional
        Engine and progress.

    Returns
    -------
    Screening
        Results of the predictors and exact statistics.
    """
    execution = execution or Execution()
    watcher, folder = execution.watcher, run.folder
    with run.locked():
        if job.photographs is not None:
            lifecycle.record_photographs(run, job.photographs.require_source().record())
        watcher.note(f"1 of 3: {len(job.objectives)} solo runs, {SOLO_SEEDS} seeds")
        count = lifecycle.carry_out(job, run, Worker, watcher, execution.engine)
        # only now: a folder with parts is one that holds results, which a start that fails at its first unit does not
        for part in (folder / "check", folder / "top"):
            run.register_part(part)
        finished = not count and run.is_complete()
        watcher.note(f"2 of 3: {job.checks} random pairs, {len(job.fresh_seeds)} fresh seeds")
        check = _measure_pairs(job, random_pairs(job), folder / "check", execution)
        predicted = (
            plain_columns(pd.read_parquet(folder / "predicted.parquet")) if finished else predict(job, run, watcher)
        )
        table, predicted = evaluate(predicted, check.summary)
        best = str(table["predictor"].iloc[0])
        top_pairs = _select_top_pairs(job, predicted, best, float(table["spearman"].iloc[0]))
        if not top_pairs:
            watcher.note("no pair could be predicted: no unit's solo descent raised it; random pairs are used instead")
            top_pairs = random_pairs(job)[: job.top]
        watcher.note(f"3 of 3: the {len(top_pairs)} pairs that {best} ranks first")
        top = _measure_pairs(job, top_pairs, folder / "top", execution)
        result = Screening(folder, table, best, seed_reliability(check.statistics), check, top)
        if not finished:
            run.manifest.files = {}
            run.write("predicted.parquet", lambda p: report.to_finite(predicted).to_parquet(p, index=False))
            report.write_table(run, "predictors", table)
            power = {"check": check.power.record(), "top": top.power.record()}
            text = json.dumps({"best": best, "lines": result.lines(), "power": power}, indent=1, ensure_ascii=False)
            run.write("screening.json", lambda p: p.write_text(text + "\n", encoding="utf-8"))
            scatter = predicted.merge(check.summary[["a", "b", "excess"]], on=["a", "b"])
            figure = predictor_scores(table, scatter[best], scatter["excess"], best)
            output.save_figure(run, figure, "screening", ("png", "svg"))
            lifecycle.complete(job, run)
        return result


def _measure_pairs(job: ScreeningJob, groups: tuple[Group, ...], folder: Path, execution: Execution) -> Interaction:
    """Measure pairs exactly, in a run of their own."""
    exact = exact_job(job, groups)
    result = pairs_run.carry_out(exact, lifecycle.open_run(exact, folder), execution)
    return replace(result, summary=report.add_unit_columns(result.summary, exact))


def _select_top_pairs(job: ScreeningJob, predicted: pd.DataFrame, best: str, sign: float) -> tuple[Group, ...]:
    """Select the pairs that a predictor ranks first, without those that it does not define; there may be none."""
    values = predicted[best].to_numpy(dtype=float, na_value=np.nan) * (1 if sign >= 0 else -1)
    order = np.argsort(-np.where(np.isfinite(values), values, -np.inf), kind="stable")
    first = [int(k) for k in order[: job.top] if np.isfinite(values[k])]
    units = {str(u): u for side in job.sides for u in side}
    return tuple((units[predicted["a"].iloc[k]], units[predicted["b"].iloc[k]]) for k in first)


def predict(job: ScreeningJob, run: Run, watcher: Watcher) -> pd.DataFrame:
    """Compute every predictor for every pair.

    Parameters
    ----------
    job : ScreeningJob
        Job of the screening.
    run : Run
        Its folder, in which the solo runs are complete.
    watcher : Watcher
        Receives progress updates.

    Returns
    -------
    pandas.DataFrame
        A row for each pair: columns `a`, `b` and one for each predictor of `featmap.stats.predictors`, and with
        photographs of `featmap.interaction.screening_job`.
    """
    first, second = (_collect_side(job, run, *sides, watcher) for sides in (job.sides, job.sides[::-1]))
    pairs = np.array(job.pairs)
    columns: dict[str, Any] = {
        "a": [str(job.sides[0][i]) for i in pairs[:, 0]],
        "b": [str(job.sides[1][j]) for j in pairs[:, 1]],
    }
    tables = {name: function(first, second) for name, function in PREDICTORS.items()}
    if job.photographs is not None:
        with deterministic_settings():
            probe = Probe(job.network, job.recipe.rows, job.device)
            found = PhotographResponses(*measure_features(probe, job.responses, job.sides, job.photographs, watcher))
        tables |= {name: function(found) for name, function in PHOTOGRAPH_PREDICTORS.items()}
    return pd.DataFrame(columns | {name: table[pairs[:, 0], pairs[:, 1]] for name, table in tables.items()})


def _collect_side(
    job: ScreeningJob, run: Run, units: Sequence[Unit], others: Sequence[Unit], watcher: Watcher
) -> predicting.Side:
    """Compute the predictors' inputs for one layer's units, from the solo runs and a few more passes each."""
    arrays = run.arrays
    network, recipe = job.network, job.recipe
    index = {label: k for k, label in enumerate(job.labels)}
    rows = np.array([index[str(u)] for u in units])
    with deterministic_settings():
        probe = Probe(network, recipe.rows, job.device)
        pink = image_ops.pink_noise(PINK_IMAGES, recipe.size, network.channels)
        deviation = measure_response_deviations(probe, pink, job.responses)
        null = torch.from_numpy(arrays["null_images"][0])
        images = torch.from_numpy(np.stack([arrays["images"][0, k] for k in rows]))
        halves, _ = probe.measure_units(null + (images - null) / 2, job.responses, ())
        _, null_z = probe.measure_units(null[None], (), _all_units(job))
        _, z = probe.measure_units(images, (), _all_units(job))
        watcher.stage("gradients", 0, 2)
        batches = Batches(network, job.device)
        objectives = [Objective(((1.0, u),)) for u in units]
        at_solo = batches.image_gradients(objectives, images, recipe.rows).flatten(1).numpy()
        at_null = (
            batches.image_gradients(objectives, null.expand(len(units), -1, -1, -1), recipe.rows).flatten(1).numpy()
        )
        reads = np.full((len(units), len(others)), np.nan)
        if units[0].layer != others[0].layer:
            read = batches.channel_gradients(objectives, images, recipe.rows, others[0].layer).numpy()
            reads = (read * np.nan_to_num(measure_response_deviations(probe, pink, (others[0].layer,))))[
                :, [u.channel or 0 for u in others]
            ]
        watcher.stage("gradients", 2, 2)
    A, nulls = (np.asarray(arrays[name][...]) for name in ("A", "null"))
    r = np.stack([interaction.standardise_responses(A[s][rows], nulls[s], deviation) for s in range(len(job.seeds))])
    is_not_live = ~np.isin(np.asarray(arrays["status"][...])[:, rows], LIVE_CODES).all(0)
    r[:, is_not_live] = np.nan
    columns = {u: k for k, u in enumerate(_all_units(job))}
    return predicting.Side(
        r,
        interaction.standardise_responses(halves, nulls[0], deviation),
        (images - null).flatten(1).numpy(),
        at_null,
        at_solo,
        z.astype(float) - null_z[0],
        np.array([columns[u] for u in units]),
        reads,
    )


def _all_units(job: ScreeningJob) -> list[Unit]:
    """List the units of both sides, each once."""
    return list(dict.fromkeys([*job.sides[0], *job.sides[1]]))


def add_photographs(job: ScreeningJob, photographs: AnyPhotographs, watcher: Watcher | None = None) -> ScreeningJob:
    """Open photographs, and add them to a job of a screening.

    Parameters
    ----------
    job : ScreeningJob
        The checked job.
    photographs : path, Photographs or PhotographFolder
        The photographs; every one that is not open yet is decoded once.
    watcher : Watcher, optional
        Receives the progress, and what is left out.

    Returns
    -------
    ScreeningJob
        The job with the photographs at the size of the recipe's images.

    Raises
    ------
    FeatmapError
        If the network does not take photographs, there are none, or some are broken and not skipped.
    """
    return replace(job, photographs=open_stimuli(photographs, job.recipe.size, job.network.channels, watcher))


def screen(
    layers: Sequence[LayerChannels],
    network: str | nn.Module | Network = "reference",
    *,
    photographs: AnyPhotographs | None = None,
    budget: Budget | None = None,
    balance: str = "solo",
    probe_layers: str | Sequence[str] = (),
    recipe: str | Recipe | None = None,
    execution: Execution | None = None,
) -> Screening:
    """Find the pairs of features that interact most, without a descent for every pair.

    Parameters
    ----------
    layers : sequence of str or (str, channels)
        Two layers, each with the channels that take part; a name stands for all its features.
    network : str, torch.nn.Module or Network, default "reference"
        A name that `featmap.load` takes, a module that takes images in [0, 1], or a loaded network.
    photographs : path, Photographs or PhotographFolder, optional
        Photographs that pairs are predicted from too: whether both features respond to the same ones, and at the same
        places of them.
    budget : Budget, optional
        Numbers of pairs that are measured exactly, and of their seeds. Default: 50 predicted pairs and 200 random
        ones, 3 seeds.
    balance, probe_layers, recipe
        See `featmap.interact`.
    execution : Execution, optional
        Device, engine, run folder and progress.

    Returns
    -------
    Screening
        The predictors' rank correlations, and exact statistics of the random and of the top pairs.

    Raises
    ------
    FeatmapError
        If a layer or feature does not exist, there are fewer than two pairs, or a setting is out of range.
    """
    execution = execution or Execution()
    loaded, device = load(network), execution.torch_device()
    probed = [probe_layers] if isinstance(probe_layers, str) else probe_layers
    job = screening_job(
        layers,
        loaded,
        resolve_recipe(recipe, loaded, device, DEFAULT_RECIPE),
        budget=budget or Budget(),
        balance=balance,
        probe_layers=probed,
        device=device,
    )
    if photographs is not None:
        job = add_photographs(job, photographs, execution.watcher)
    return carry_out(job, lifecycle.open_run(job, execution.out), execution)


def measure_features(
    probe: Probe,
    layers: Sequence[str],
    sides: Sequence[Sequence[Unit]],
    photographs: PhotographStimuli,
    watcher: Watcher,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Show photographs to the network.

    Parameters
    ----------
    probe : Probe
        Probe of the network.
    layers : sequence of str
        Layers whose features are probed.
    sides : sequence of sequence of Unit
        Features of the two layers.
    photographs : PhotographStimuli
        The photographs, at the size of the images.
    watcher : Watcher
        Receives the progress.

    Returns
    -------
    tuple of numpy.ndarray
        The fields of `featmap.interaction.screening_job.PhotographResponses`, in their order, from one pass
        for each batch of `UNIT_PHOTOGRAPHS` photographs.
    """
    source, size, channels = photographs.require_source(), photographs.size, probe.network.channels
    names = [side[0].layer for side in sides]
    picks = [torch.tensor([u.channel or 0 for u in side]) for side in sides]
    places = RunningCorrelation(len(sides[0]), len(sides[1]))
    responses: list[Tensor] = []
    units: tuple[list[Tensor], list[Tensor]] = ([], [])
    for begin in range(0, len(photographs), UNIT_PHOTOGRAPHS):
        stop = min(begin + UNIT_PHOTOGRAPHS, len(photographs))
        images = source.read(range(begin, stop), size, channels)
        for out in probe.outputs(images, list(dict.fromkeys([*layers, *names]))):
            responses.append(torch.cat([out[la].mean((2, 3)) for la in layers], dim=1).cpu())
            chosen = [out[la][:, pick.to(out[la].device)] for la, pick in zip(names, picks, strict=True)]
            for k in (0, 1):
                units[k].append(chosen[k].mean((2, 3)).cpu())
            grid = _common_grid([tuple(maps.shape[2:]) for maps in chosen])
            pooled = [functional.adaptive_avg_pool2d(maps, grid).cpu() for maps in chosen]
            places.add(*(maps.permute(0, 2, 3, 1).flatten(0, 2).numpy() for maps in pooled))
        watcher.stage("photographs", stop, len(photographs))
    first, second = (torch.cat(side).numpy() for side in units)
    return first, second, places.result(), torch.cat(responses).numpy()


def _common_grid(shapes: Sequence[tuple[int, ...]]) -> tuple[int, int]:
    """Choose the grid on which maps are compared: the smaller one, with at most `PLACES` places."""
    height, width = (min(shape[k] for shape in shapes) for k in (0, 1))
    side = int(PLACES**0.5)
    return min(height, side), min(width, side)
