"""The command `featmap interact`: one group of units, every pair of two layers' features, or a screening."""

from __future__ import annotations

from typing import Annotated

import typer

from featmap.cli.options import (
    Address,
    Device,
    DryRun,
    EngineName,
    InputSize,
    Mean,
    Model,
    Out,
    Rows,
    Seed,
    Size,
    Std,
    Steps,
    Threads,
    Weights,
    Workers,
    print_estimate,
    read_engine,
    read_layers,
    read_network,
    watched,
)
from featmap.errors import FeatmapError


def interact(
    units: Annotated[list[str] | None, typer.Argument(help="Two units or more, such as inception4a:17.")] = None,
    layers: Annotated[
        tuple[str, str] | None, typer.Option(help="Instead of units: two layers, with --features.")
    ] = None,
    features: Annotated[tuple[str, str] | None, typer.Option(help="Channels of each layer, such as 0-15 0-15.")] = None,
    screen: Annotated[
        str | None, typer.Option(help="all: predict which of all pairs are most nonlinear, descend the top ones.")
    ] = None,
    top: Annotated[int, typer.Option(help="With --screen: how many pairs are descended exactly.")] = 50,
    checks: Annotated[int, typer.Option(help="With --screen: pairs drawn at random that judge the predictors.")] = 200,
    balance: Annotated[
        str, typer.Option(help="solo: each unit divided by its solo maximum; none: the plain sum.")
    ] = "solo",
    probe_layers: Annotated[
        str | None, typer.Option(help="Layers whose responses are compared. Default: the units' own.")
    ] = None,
    model: Model = "reference",
    weights: Weights = None,
    mean: Mean = None,
    std: Std = None,
    input_size: InputSize = None,
    recipe: Annotated[str, typer.Option(help="See `featmap recipes`; only linear steps carry a claim.")] = "interact",
    size: Size = None,
    steps: Steps = None,
    rows: Rows = None,
    seed: Seed = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds. Default: 5 for a group, 3 for layers.")] = None,
    device: Device = "auto",
    engine: EngineName = "here",
    workers: Workers = None,
    threads: Threads = None,
    address: Address = None,
    out: Out = None,
    dry_run: DryRun = False,
) -> None:
    """Maximise units together and measure how far that is from the sum of its parts."""
    from featmap.cli import console
    from featmap.interaction import run as pairings
    from featmap.interaction import screening
    from featmap.runs import device as devices
    from featmap.runs import estimate

    if bool(units) == bool(layers):
        raise FeatmapError("give either units (inception4a:17 inception4b:201) or two --layers with --features")
    if screen is not None and not layers:
        raise FeatmapError("--screen goes with --layers: --layers inception4a inception4b --screen all")
    if layers and not features and screen is None:
        raise FeatmapError("--layers takes --features, one list for each of the two: --features 0-15 0-15")
    if units and features:
        raise FeatmapError("--features goes with --layers; name single units as inception4a:17 inception4b:201")
    where, runner = devices.device(device), read_engine(engine, workers, threads, address)
    network = read_network(model, weights, mean, std, input_size)
    chosen = pairings.resolve(network, recipe, size, steps, rows=rows)
    probed = read_layers(probe_layers, "--probe-layers") if probe_layers is not None else []
    if layers and screen is not None:
        given = screening.plan(
            layers,
            features or ("all", "all"),
            network,
            chosen,
            kind=screen,
            top=top,
            checks=checks,
            balance=balance,
            probe_layers=probed,
            seed=seed,
            seeds=screening.SEEDS if seeds is None else seeds,
            where=where,
        )
        folder = screening.folder_of(given, out)
        if dry_run:
            what = f"{len(given.job.objectives)} features, {given.checks} + {given.top} pairs, {chosen.size} pixels"
            print_estimate(screening.estimate(given, folder), what, folder)
            return
        done = watched(lambda watcher: screening.carry_out(given, folder, watcher, runner))
        for line in done.lines():
            console.out().print(line)
        console.out().print(f"result: {folder} (screening.png, predictors.csv, predicted.parquet, check/, top/)")
        return
    if layers:
        groups = pairings.pairs_of(layers, features or (), network, chosen.size)
        count = pairings.SEEDS_OF_MANY if seeds is None else seeds
        job = pairings.pairs_job(
            groups, network, chosen, balance=balance, probe_layers=probed, seed=seed, seeds=count, where=where
        )
    else:
        count = pairings.SEEDS_OF_ONE if seeds is None else seeds
        job = pairings.group_job(
            units or [], network, chosen, balance=balance, probe_layers=probed, seed=seed, seeds=count, where=where
        )
    folder = pairings.folder_of(job, out)
    if dry_run:
        what = f"{len(job.solos)} solo and {len(job.joints)} joint descents, {chosen.steps} steps, {chosen.size} pixels"
        print_estimate(estimate.estimate_joint(job, folder), what, folder)
        return
    run = pairings.open_run(job, folder)
    found = watched(lambda watcher: pairings.carry_out(job, run, watcher, runner))
    for line in pairings.lines(job, found):
        console.out().print(line)
    for note in found.notes:
        console.out().print(f"note: {note}")
    main_files = ("panel.png", "interaction.json", "pairs.csv", "ranking.csv", "least-linear.png", "figures.csv")
    files = [name for name in main_files if name in run.manifest["files"]]
    console.out().print(f"result: {run.folder} ({', '.join([*files, 'arrays.zarr'])})")
