"""The command `featmap interact`: one group of units, all pairs of two layers' features, or a screening."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featmap.cli.options import (
    DryRun,
    ExecutionOptions,
    LinearRecipeOptions,
    NetworkOptions,
)
from featmap.cli.parsing import Limit, SkipBroken, parse_count, parse_layers, parse_seeds
from featmap.errors import FeatmapError
from featmap.image_shape import format_size

if TYPE_CHECKING:
    import torch

    from featmap.interaction.groups import JointSettings, LayerChannels
    from featmap.interaction.job import JointJob
    from featmap.interaction.precision import AutoSeeds
    from featmap.interaction.screening_job import ScreeningJob
    from featmap.network.model import Network
    from featmap.optimize.photograph_folder import Photographs
    from featmap.optimize.recipe import Recipe
    from featmap.runs.engine import Execution


@dataclass
class PairOptions:
    """Options that say which pairs are measured, and how.

    Parameters
    ----------
    layers : tuple of str or None, default None
        Two layers.
    features : tuple of str or None, default None
        Channels of each layer.
    screen : bool, default False
        Predict the nonlinear pairs instead of measuring all.
    top : int, default 50
        Predicted pairs that a screening measures.
    checks : int, default 200
        Random pairs that a screening measures.
    balance : str, default "solo"
        Weights of the units in the joint objective.
    probe_layers : str or None, default None
        Layers whose responses are compared, joined by commas.
    width : float or None, default None
        With automatic seeds: width of the interval that is asked for.
    most_seeds : int or None, default None
        With automatic seeds: their largest number.
    photographs : Path or None, default None
        Folder or zip of photographs on which pairs are measured too, or from which a screening predicts.
    limit : int or None, default None
        Largest number of photographs.
    skip_broken : bool, default False
        Go on without photographs that cannot be read.
    """

    layers: Annotated[
        tuple[str, str] | None,
        typer.Option(help="Instead of units: two layers, such as inception4a inception4b, with --features."),
    ] = None
    features: Annotated[
        tuple[str, str] | None, typer.Option(help="With --layers: the channels of each, such as 0-15 0-15.")
    ] = None
    screen: Annotated[
        bool,
        typer.Option(
            "--screen",
            help="With --layers: predict the most nonlinear of all pairs, and measure only the top ones. Small images "
            "and few steps make it fast: --size 64 --steps 40 (--dry-run says how long it takes).",
        ),
    ] = False
    top: Annotated[int, typer.Option(help="With --screen: number of top pairs to measure.")] = 50
    checks: Annotated[int, typer.Option(help="With --screen: number of random pairs to judge the prediction by.")] = 200
    balance: Annotated[
        str, typer.Option(help="Weights of the units: solo (each divided by its solo maximum) or none (the plain sum).")
    ] = "solo"
    probe_layers: Annotated[
        str | None,
        typer.Option(help="Layers whose responses are compared, joined by commas. Default: those of the units."),
    ] = None
    width: Annotated[
        float | None,
        typer.Option(
            help="With --seeds auto: after five seeds, add one at a time until the 95 % interval of the response "
            "nonlinearity less its floor is at most this wide, from end to end. Of many pairs each ends by itself "
            "(batches are filled up). Only the width decides; of groups without interaction up to 7 % then have "
            "p < 0.05. Default: 0.05."
        ),
    ] = None
    most_seeds: Annotated[int | None, typer.Option(help="With --seeds auto: at most this many. Default: 20.")] = None

    photographs: Annotated[
        Path | None,
        typer.Option(
            help="A folder, with its sub-folders, or zip of photographs: also measure whether two units respond to the "
            "same ones, and whether responses add up there. With --screen: only predict from them."
        ),
    ] = None
    limit: Limit = None
    skip_broken: SkipBroken = False

    def check(self, units: list[str] | None) -> None:
        """Check that the options go together.

        Parameters
        ----------
        units : list of str or None
            Units on the command line.

        Raises
        ------
        FeatmapError
            If they do not.
        """
        if bool(units) == bool(self.layers):
            raise FeatmapError("give either units (inception4a:17 inception4b:201) or two --layers with --features")
        if self.screen and not self.layers:
            raise FeatmapError("--screen goes with --layers: --layers inception4a inception4b --screen")
        if not self.screen and ((self.top, self.checks) != (type(self).top, type(self).checks)):
            raise FeatmapError("--top and --checks go with --screen; leave them out, or screen two layers")
        if self.screen and (self.width is not None or self.most_seeds is not None):
            raise FeatmapError("--width and --most-seeds go with --seeds auto, which --screen does not take")
        if self.layers and not self.features and not self.screen:
            raise FeatmapError("--layers takes --features, one list for each of the two: --features 0-15 0-15")
        if units and self.features:
            raise FeatmapError("--features goes with --layers; name single units as inception4a:17 inception4b:201")

    def parse_sides(self) -> list[LayerChannels]:
        """Combine the two layers with their channels.

        Returns
        -------
        list of (str, str)
            Layer and channels; "all" where no channels are named.
        """
        return list(zip(self.layers or (), self.features or ("all", "all"), strict=True))

    def parse_probe_layers(self) -> list[str]:
        """Parse the layers whose responses are compared.

        Returns
        -------
        list of str
            The names; empty for the default.
        """
        return parse_layers(self.probe_layers, "--probe-layers") if self.probe_layers is not None else []

    def parse_joint_seeds(self, seed: int | None, seeds: str | None) -> int | range | AutoSeeds:
        """Parse the seeds of joint descents.

        Parameters
        ----------
        seed : int or None
            First seed.
        seeds : str or None
            A number, "auto", or None for the default number.

        Returns
        -------
        int, range or AutoSeeds
            As `featmap.interact` takes them.

        Raises
        ------
        FeatmapError
            If a value is out of range, or a setting of automatic seeds is given without them.
        """
        from featmap.interaction import groups
        from featmap.interaction.precision import AUTO, AutoSeeds

        if seeds == AUTO:
            width = AutoSeeds.width if self.width is None else self.width
            most = AutoSeeds.most if self.most_seeds is None else self.most_seeds
            rule = AutoSeeds(width, most, seed).checked()
            parse_seeds(seed, rule.most)  # refuses a first seed that is out of range
            return rule
        for option, value in (("--width", self.width), ("--most-seeds", self.most_seeds)):
            if value is not None:
                raise FeatmapError(f"{option} {value} goes with automatic seeds: add --seeds {AUTO}")
        default = groups.SEEDS_OF_PAIRS if self.layers else groups.SEEDS_OF_GROUP
        return parse_seeds(seed, default if seeds is None else parse_count(seeds))

    def build_photographs(self) -> Photographs | None:
        """Build the settings of the photographs.

        Returns
        -------
        Photographs or None
            None where no folder is given.

        Raises
        ------
        FeatmapError
            If an option needs ``--photographs``.
        """
        from featmap.optimize.photograph_folder import Photographs

        if self.photographs is None:
            if self.limit is not None or self.skip_broken:
                raise FeatmapError("--limit and --skip-broken go with --photographs FOLDER")
            return None
        return Photographs(self.photographs, self.limit, self.skip_broken)

    def settings(self, seeds: int | Iterable[int] | AutoSeeds, device: torch.device) -> JointSettings:
        """Build the settings of the joint descents.

        Parameters
        ----------
        seeds : int, iterable of int or AutoSeeds
            As `featmap.interact` takes them.
        device : torch.device
            Where the network is computed.

        Returns
        -------
        JointSettings
            With the balance and the probed layers of the options.
        """
        from featmap.interaction.groups import JointSettings

        return JointSettings(self.balance, self.parse_probe_layers(), seeds, device)


def interact(
    network: NetworkOptions,
    pair: PairOptions,
    recipe: LinearRecipeOptions,
    execution: ExecutionOptions,
    units: Annotated[
        list[str] | None, typer.Argument(help="Two units or more, such as inception4a:17 inception4b:201.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the noise that descents start from.")] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER|auto",
            help="Number of seeds, or auto: as many as --width needs. Default: 5 for a group of units, 3 for pairs of "
            "layers.",
        ),
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Measure how far two units together are from their sum.

    Maximises each unit alone and all together from the same noise, and compares the responses of the probed layers
    to these images.
    """
    from featmap.cli import console

    pair.check(units)
    photographs = pair.build_photographs()
    settings = execution.build()
    loaded = network.load()
    chosen = recipe.resolve(loaded, settings.device)
    if pair.screen:
        from featmap.interaction import screening

        screened = _screening_job(pair, loaded, chosen, (seed, seeds), settings)
        if photographs is not None:
            screened = console.run_with_progress(partial(screening.add_photographs, screened, photographs))
        _screen(screened, settings, dry_run)
    else:
        job = _joint_job(units, pair, loaded, chosen, (seed, seeds), settings)
        if photographs is not None:
            from featmap.interaction.run import add_photographs

            job = console.run_with_progress(partial(add_photographs, job, photographs))
        _measure(job, settings, dry_run)


def _screening_job(
    pair: PairOptions,
    network: Network,
    recipe: Recipe,
    seeds: tuple[int | None, str | None],
    settings: Execution,
) -> ScreeningJob:
    """Build the job of a screening; its solo descents take two seeds more than those of the pairs."""
    from featmap.interaction import screening_job

    first, count = seeds[0], screening_job.SEEDS if seeds[1] is None else parse_count(seeds[1])
    chosen = parse_seeds(first, count if first is None else screening_job.SOLO_SEEDS + count)
    return screening_job.screening_job(
        pair.parse_sides(),
        network,
        recipe,
        budget=screening_job.Budget(pair.top, pair.checks, chosen),
        balance=pair.balance,
        probe_layers=pair.parse_probe_layers(),
        device=settings.torch_device(),
    )


def _joint_job(
    units: list[str] | None,
    pair: PairOptions,
    network: Network,
    recipe: Recipe,
    seeds: tuple[int | None, str | None],
    settings: Execution,
) -> JointJob:
    """Build the job of a group of units, or of all pairs of two layers' features."""
    from featmap.interaction import groups

    joint = pair.settings(pair.parse_joint_seeds(*seeds), settings.torch_device())
    if pair.layers:
        return groups.pairs_job(groups.pairs_of(pair.parse_sides(), network, recipe.size), network, recipe, joint)
    return groups.group_job(units or [], network, recipe, joint)


def _screen(job: ScreeningJob, settings: Execution, dry_run: bool) -> None:
    """Carry out a screening, or estimate it."""
    from featmap.cli import console
    from featmap.interaction import screening
    from featmap.runs import lifecycle

    if dry_run:
        folder = settings.out or job.default_folder()
        work = f"{len(job.objectives)} features, {job.checks} + {job.top} pairs, {format_size(job.recipe.size)} pixels"
        console.print_estimate(screening.estimate_screening(job, folder), work, folder)
        return
    run = lifecycle.open_run(job, settings.out)
    result = console.run_with_progress(
        lambda watcher: screening.carry_out(job, run, settings.with_watcher(watcher)), screening.screening_parts(job)
    )
    for line in result.lines():
        console.out().print(line)
    console.out().print(f"result: {run.folder} (screening.png, predictors.csv, predicted.parquet, check/, top/)")


def _measure(job: JointJob, settings: Execution, dry_run: bool) -> None:
    """Carry out the joint descents of a job, or estimate them."""
    from featmap.cli import console
    from featmap.interaction import run as joint
    from featmap.interaction.precision import estimated_jobs
    from featmap.runs import lifecycle

    if dry_run:
        folder, recipe = settings.out or job.default_folder(), job.recipe
        for words, each in estimated_jobs(job):
            count = f"{words}{len(each.solos)} solo and {len(each.joints)} joint descents"
            work = f"{count}, {recipe.steps} steps, {format_size(recipe.size)} pixels"
            console.print_estimate(joint.estimate_joint(each, folder), work, folder)
        return
    run = lifecycle.open_run(job, settings.out)
    result = console.run_with_progress(
        lambda watcher: joint.carry_out(job, run, settings.with_watcher(watcher)), joint.joint_parts(job)
    )
    for line in joint.describe(job, result):
        console.out().print(line)
    for note in result.notes:
        console.out().print(f"note: {note}")
    tables = ("interaction.json", "pairs.csv", "ranking.csv", "methods.csv")
    main_files = ("panel.png", *tables, "least-linear.png", "figures.csv")
    files = [name for name in main_files if name in run.manifest.files]
    console.out().print(f"result: {run.folder} ({', '.join([*files, 'arrays.zarr'])})")


RESULTS_HELP = """
Power: what a run could have found. Runs of as many pairs are simulated, a tenth of which (one at least) have an excess
of the response nonlinearity over its floor, with the standard deviation between seeds that the run's own pairs have;
the smallest excess that the summary's test finds in 80 % of them, at a false discovery rate of 5 % (of one group: at p
< 0.05), is printed, shown on the page, and stored under "power" in interaction.json: excess (null where none up to 1 is
found, or it is unknown), power, rate, pairs and planted ones, seeds, and under deviations the network, the number of
groups, and their degrees of freedom: few leave the power itself uncertain. Where pairs have different numbers of seeds,
as with --seeds auto, it is stated for the fewest and, under median, for their median. With automatic seeds the median
is the better guide: pairs with few seeds are those whose seeds differ little, and the statement for the fewest is too
cautious. A screening states it for its random and for its top pairs (screening.json); of the top pairs more than a
tenth may interact, which makes it easier to find them. Measured on two networks: analyses/benchmarks/README.md.

Files of the run folder:

\b
  of units      panel.png, panel.svg, interaction.json, interaction.csv,
                figures.csv (the statistics of all seeds)
  of pairs      pairs, figures, ranking, units (.parquet, .csv), matrices/,
                most-linear.png, least-linear.png, interaction.graphml,
                interaction.json (settings, kinds, communities, power)
  of screening  predictors.csv, predicted.parquet, screening.png,
                screening.json, and two runs of pairs: check/ (random ones)
                and top/
"""

PHOTOGRAPH_HELP = """
With --photographs FOLDER, pairs (two units, or --layers) are also measured on photographs, at the size of the images:

\b
  photograph_correlation   correlation of the two units' responses over
                           photographs
  photograph_lift          photographs on which both are above their own 90th
                           percentile, times as many as by chance
  place_lift               places (of the coarser of the two grids) at which
                           both are above the 90th percentile of all their
                           activations, times chance; chance keeps the
                           places: a common preference for the middle of the
                           image counts as chance
  natural_nonlinearity     the response nonlinearity of photographs: mean
                           response to up to 16 photographs on which both are
                           strong, against the mean responses to those on
                           which only one is, all less the mean of those on
                           which neither is; its floor is that of random
                           halves of the photographs of one unit, its
                           ceiling that of random photographs of neither as
                           the parts
  joint_agreement          whether features (all probed ones that neither unit
                           reads; --probe-layers adds those of the next
                           layer) treat photographs of both as they treat
                           the joint image: rank correlation of the response
                           to photographs of both less that to photographs
                           of either, with the response to the joint image
                           less that to the solo images; with the interval
                           over photographs, p against random photographs,
                           and the level of other pairs' photographs
                           (joint_agreement_others)
  natural_difference       the second difference of the same photographs:
                           both, less one, less the other, plus neither,
                           over the response to both, at levels where a sum
                           leaves nothing; its floor is what a sum leaves by
                           chance. A small p is no proof of interaction:
                           photographs of both may differ in other things.
                           natural_difference_agreement: rank correlation
                           with that of the solo images
  direct                   both solo images added to a photograph, with a
                           root mean square of 0.1: the change of the
                           responses less the changes by each alone, over
                           the size of their sum; mean of 16 photographs,
                           interval over these, and the sign at the feature
                           where it is largest. direct_balance: more less
                           than less over all features, from -1 to 1, with
                           interval
  direct_curvature         the same from central differences of a quarter of
                           that step: the second derivative along both
                           images. A network of ReLUs has none between its
                           kinks; what is measured is its mean over the
                           step, kinks included
  direct_hessian           as direct, with the second derivative along both
                           by automatic differentiation in the place of the
                           difference of responses,
                           on half of the photographs, in the middle between
                           the four images. ReLUs have none but at their
                           kinks: they get that of a softplus, which is 0.3
                           of their inputs' root mean square wide. Undefined
                           where it is 0. direct_agreement: rank correlation
                           of the two over features: low where ReLUs
                           matter, as in SqueezeNet (0.10 to 0.60, see
                           below); there the difference is the measure
  second_derivative        the same at images, of each seed: the second
                           derivative along the halves of both solo images,
                           in the middle of the four images of the second
                           difference, over the size of the response to the
                           joint image, as that of the second difference;
                           0 in linear networks. second_derivative_agreement:
                           rank correlation of the two over features, means
                           over seeds. Needs no photograph, but is measured
                           only with --photographs. Between features.6 and
                           features.9 of SqueezeNet (64 pairs, 3 seeds, 112
                           pixels) it is 0.7 to 3.0 times as large as the
                           difference; over pairs the two agree by 0.74
                           (0.45 to 0.92), over the features of a pair by
                           0.04 to 0.66

The p-values of the first three are two-sided, from 999 permutations of the photographs between the two units; below 20
photographs these are undefined. The natural nonlinearity needs 8 photographs of each kind; photographs_note says what
is missing. All of this adds nearly half to the time of the descents of 30 pairs with 1,000 photographs. With
--seeds auto the photographs are measured once, with the solo images of the five seeds that every pair gets, and second
derivatives are those of these seeds. interaction.json holds all but second_derivative, which is one of the figures,
under "photographs"; of pairs, the columns of pairs.csv and ranking.csv, and methods.csv: the rank correlations, over
pairs, of statistics that measure interaction in different ways, with intervals from a bootstrap of the units. They need
not agree: read these before a claim from one of them.
"""
