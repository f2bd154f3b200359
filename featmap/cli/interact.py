"""The command `featmap interact`: one group of units, every pair of two layers' features, or a screening."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from featmap.cli.options import (
    DryRun,
    ExecutionOptions,
    LinearRecipeOptions,
    NetworkOptions,
    parse_layers,
    print_estimate,
    seed_values,
    watched,
)
from featmap.errors import FeatmapError

if TYPE_CHECKING:
    from featmap.interaction.job import JointJob
    from featmap.interaction.run import Side
    from featmap.interaction.screening import ScreeningJob
    from featmap.network.model import Network
    from featmap.optimize.recipe import Recipe
    from featmap.runs.engine import Execution


@dataclass
class PairOptions:
    """Options that say which pairs are measured, and how.

    Parameters
    ----------
    layers, features
        Two layers and their channels.
    screen, top, checks
        Whether pairs are screened, and how many are descended exactly.
    balance, probe_layers
        See `featmap.interact`.
    """

    layers: Annotated[tuple[str, str] | None, typer.Option(help="Instead of units: two layers, with --features.")] = (
        None
    )
    features: Annotated[tuple[str, str] | None, typer.Option(help="Channels of each layer, such as 0-15 0-15.")] = None
    screen: Annotated[
        bool, typer.Option("--screen", help="Predict which of all pairs are most nonlinear, descend the top ones.")
    ] = False
    top: Annotated[int, typer.Option(help="With --screen: how many pairs are descended exactly.")] = 50
    checks: Annotated[int, typer.Option(help="With --screen: pairs drawn at random that judge the predictors.")] = 200
    balance: Annotated[str, typer.Option(help="solo: each unit divided by its solo maximum; none: the plain sum.")] = (
        "solo"
    )
    probe_layers: Annotated[
        str | None, typer.Option(help="Layers whose responses are compared. Default: the units' own.")
    ] = None

    def check(self, units: list[str] | None) -> None:
        """Refuse options that contradict each other.

        Parameters
        ----------
        units : list of str or None
            Units on the command line.

        Raises
        ------
        FeatmapError
            That names the options.
        """
        if bool(units) == bool(self.layers):
            raise FeatmapError("give either units (inception4a:17 inception4b:201) or two --layers with --features")
        if self.screen and not self.layers:
            raise FeatmapError("--screen goes with --layers: --layers inception4a inception4b --screen")
        if self.layers and not self.features and not self.screen:
            raise FeatmapError("--layers takes --features, one list for each of the two: --features 0-15 0-15")
        if units and self.features:
            raise FeatmapError("--features goes with --layers; name single units as inception4a:17 inception4b:201")

    def sides(self) -> list[Side]:
        """Return the two layers with their channels.

        Returns
        -------
        list of (str, str)
            Layer and channels; all channels where none are named.
        """
        return list(zip(self.layers or (), self.features or ("all", "all"), strict=True))

    def probed(self) -> list[str]:
        """Return the layers whose responses are compared.

        Returns
        -------
        list of str
            Empty for the default.
        """
        return parse_layers(self.probe_layers, "--probe-layers") if self.probe_layers is not None else []


def interact(
    network: NetworkOptions,
    pair: PairOptions,
    recipe: LinearRecipeOptions,
    execution: ExecutionOptions,
    units: Annotated[list[str] | None, typer.Argument(help="Two units or more, such as inception4a:17.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the noise. Default: the recipe's.")] = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds. Default: 5 for a group, 3 for layers.")] = None,
    dry_run: DryRun = False,
) -> None:
    """Maximise units together and measure how far that is from the sum of its parts."""
    pair.check(units)
    settings = execution.execution()
    loaded = network.load()
    chosen = recipe.resolve(loaded, settings.device)
    if pair.screen:
        _screen(_screening_job(pair, loaded, chosen, (seed, seeds), settings), settings, dry_run)
    else:
        _measure(_joint_job(units, pair, loaded, chosen, (seed, seeds), settings), settings, dry_run)


def _screening_job(
    pair: PairOptions,
    network: Network,
    recipe: Recipe,
    seeds: tuple[int | None, int | None],
    settings: Execution,
) -> ScreeningJob:
    """Return the job of a screening; its solo runs have two seeds before those of the exact runs."""
    from featmap.interaction import screening

    first, count = seeds[0], screening.SEEDS if seeds[1] is None else seeds[1]
    return screening.screening_job(
        pair.sides(),
        network,
        recipe,
        budget=screening.Budget(pair.top, pair.checks),
        balance=pair.balance,
        probe_layers=pair.probed(),
        seeds=count if first is None else seed_values(first, screening.SOLO_SEEDS + count),
        device=settings.torch_device(),
    )


def _joint_job(
    units: list[str] | None,
    pair: PairOptions,
    network: Network,
    recipe: Recipe,
    seeds: tuple[int | None, int | None],
    settings: Execution,
) -> JointJob:
    """Return the job of a group of units, or of every pair of two layers' features."""
    from featmap.interaction import run as joint

    first, count = seeds
    if pair.layers:
        return joint.pairs_job(
            joint.pairs_of(pair.sides(), network, recipe.size),
            network,
            recipe,
            balance=pair.balance,
            probe_layers=pair.probed(),
            seeds=seed_values(first, joint.SEEDS_OF_PAIRS if count is None else count),
            device=settings.torch_device(),
        )
    return joint.group_job(
        units or [],
        network,
        recipe,
        balance=pair.balance,
        probe_layers=pair.probed(),
        seeds=seed_values(first, joint.SEEDS_OF_GROUP if count is None else count),
        device=settings.torch_device(),
    )


def _screen(job: ScreeningJob, settings: Execution, dry_run: bool) -> None:
    """Carry out a screening, or estimate it."""
    from featmap.cli import console
    from featmap.interaction import screening
    from featmap.runs import lifecycle

    if dry_run:
        folder = settings.out or job.default_folder()
        what = f"{len(job.objectives)} features, {job.checks} + {job.top} pairs, {job.recipe.size} pixels"
        print_estimate(screening.estimate(job, folder), what, folder)
        return
    run = lifecycle.open_run(job, settings.out)
    result = watched(lambda watcher: screening.carry_out(job, run, settings.watched_by(watcher)))
    for line in result.lines():
        console.out().print(line)
    console.out().print(f"result: {run.folder} (screening.png, predictors.csv, predicted.parquet, check/, top/)")


def _measure(job: JointJob, settings: Execution, dry_run: bool) -> None:
    """Carry out the joint descents of a job, or estimate them."""
    from featmap.cli import console
    from featmap.interaction import run as joint
    from featmap.interaction.estimate import estimate_joint
    from featmap.runs import lifecycle

    if dry_run:
        folder, recipe = settings.out or job.default_folder(), job.recipe
        what = f"{len(job.solos)} solo and {len(job.joints)} joint descents, {recipe.steps} steps, {recipe.size} pixels"
        print_estimate(estimate_joint(job, folder), what, folder)
        return
    run = lifecycle.open_run(job, settings.out)
    result = watched(lambda watcher: joint.carry_out(job, run, settings.watched_by(watcher)))
    for line in joint.lines(job, result):
        console.out().print(line)
    for note in result.notes:
        console.out().print(f"note: {note}")
    main_files = ("panel.png", "interaction.json", "pairs.csv", "ranking.csv", "least-linear.png", "figures.csv")
    files = [name for name in main_files if name in run.manifest.files]
    console.out().print(f"result: {run.folder} ({', '.join([*files, 'arrays.zarr'])})")
